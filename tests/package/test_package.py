"""What a user installs: two packages, all their files, and a command that works elsewhere."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from bench.record import RECORDS, render_readme

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, ROOT],
        check=True,
    )
    (built,) = folder.glob("shardsieve-*.whl")
    return built


def test_wheel_holds_both_packages_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert top == {"shardsieve", "shardsieve_kernels"}
    listed = subprocess.run(
        ["git", "ls-files", "engine", "kernels"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    expected = {line.split("/", 1)[1] for line in listed.stdout.splitlines()}
    assert expected <= set(names), "templates, style sheets and type markers travel, too"


def test_wheel_works_outside_the_checkout(wheel, shards, checkpoint, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    # -S leaves out this environment's hook to the checkout; its packages come by path.
    python = [sys.executable, "-S"]
    place = {
        "env": {**os.environ, "PYTHONPATH": f"{site}:{sysconfig.get_path('purelib')}"},
        "cwd": tmp_path,
        "capture_output": True,
        "text": True,
    }
    where = subprocess.run(
        [*python, "-c", "import shardsieve; print(shardsieve.__file__)"], **place
    )
    assert where.stdout.startswith(str(site))
    done = subprocess.run(
        [
            *(*python, "-m", "shardsieve", "clean", *shards.patterns, "-o", "RUN"),
            *("--backbone", "test_resnet", "--checkpoint", str(checkpoint), "--json"),
            *("--set", "embed.image_size=32", "--set", "workers=0"),
        ],
        **place,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["counts"]["samples_in"] == 240
    assert (tmp_path / "RUN" / "report" / "report.html").is_file()


def test_source_roots_are_not_packages():
    assert not (ROOT / "engine" / "__init__.py").exists()
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_public_names_exist():
    import shardsieve

    for name in shardsieve.__all__:
        assert getattr(shardsieve, name)
    with pytest.raises(AttributeError):
        shardsieve.no_such_name  # noqa: B018


def test_readme_figures_are_those_of_the_records():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert render_readme(text) == text, "run `python -m bench readme`"
    assert len(re.findall("<!-- record: ", text)) >= 2


def test_records_say_where_they_come_from():
    files = sorted(RECORDS.glob("*/result.json"))
    assert files
    for file in files:
        record = json.loads(file.read_text(encoding="utf-8"))
        assert re.fullmatch(r"[0-9a-f]{40}", record["commit"])
        assert record["machine"]["cores"] >= 1
        assert record["repeats"] >= 1


def test_no_file_names_a_registry_or_this_machine():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    hosts, paths = ["pypi" + r"\.org", "python" + "hosted"], ["/wo" + "rk/", "/ro" + "ot/"]
    forbidden = re.compile("|".join(hosts + paths))
    for name in listed.stdout.splitlines():
        text = (ROOT / name).read_text(encoding="utf-8", errors="replace")
        assert not forbidden.search(text), name
