"""The examples of docs/scale.md for clusters that are not here: well formed, and commands parse."""

import subprocess

import shell
import yaml
from blocks import ROOT, blocks_of, commands

BLOCKS = {block.language: block for block in blocks_of(ROOT / "docs" / "scale.md")}


def test_the_job_for_kubernetes_gives_a_command_that_parses(tmp_path):
    job = yaml.safe_load(BLOCKS["yaml"].text)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    shell.check_parses(job["spec"]["entrypoint"], tmp_path)
    workers = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert f"--ray-workers {workers[0]['maxReplicas']}" in job["spec"]["entrypoint"]


def test_the_script_for_slurm_is_one_and_gives_a_command_that_parses(tmp_path):
    text = BLOCKS["bash"].text
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    (last,) = [line for line in commands(text) if line.startswith("srun")]
    shell.check_parses(last.partition(" -- ")[2], tmp_path)
