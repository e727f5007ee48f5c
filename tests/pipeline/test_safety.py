"""What must never happen: somebody's files replaced, a check walked around, a stale result used."""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import pytest
from tiny import add_member, write_shards

import shardsieve
from shardsieve.errors import (
    ConfigError,
    DataError,
    DeviceUnavailable,
    LabelError,
    RunLocked,
    StaleArtefact,
)
from shardsieve.pipeline import run_stages
from shardsieve.rundir import RunDir


@pytest.fixture
def tiny(tmp_path):
    return write_shards(tmp_path / "data", n_shards=2, per_shard=40)


def test_a_folder_that_is_not_ours_is_left_alone(tiny, settings, tmp_path):
    project = tmp_path / "project"
    (project / "report").mkdir(parents=True)
    (project / "report" / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match=r"report is there already and was not made by shardsieve"):
        shardsieve.clean(tiny.patterns, project, settings())
    assert (project / "report" / "thesis.tex").read_text() == "years of work"


def test_a_part_folder_that_is_not_ours_is_left_alone(tiny, settings, tmp_path):
    foreign = tmp_path / "RUN" / "embed.part"
    foreign.mkdir(parents=True)
    (foreign / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"embed.part is there already"):
        shardsieve.clean(tiny.patterns, tmp_path / "RUN", settings())
    assert (foreign / "notes.txt").is_file()


def test_a_run_does_not_eat_its_own_shards(tiny, settings, tmp_path):
    run = shardsieve.clean(tiny.patterns, tmp_path / "RUN", settings())
    clean = [str(path) for path in run.clean_shards]
    with pytest.raises(DataError, match=r"clean-000000.tar lies in .*which this run would replace"):
        shardsieve.clean(clean, tmp_path / "RUN", settings())
    assert all(path.is_file() for path in run.clean_shards)


@pytest.mark.parametrize("inside", ["clean", "report/removed"])
def test_removed_shards_do_not_go_where_they_would_vanish(tiny, settings, tmp_path, inside):
    folder = tmp_path / "RUN" / inside
    with pytest.raises(ConfigError, match="outside the folders of the stages"):
        shardsieve.clean(tiny.patterns, tmp_path / "RUN", settings(write__removed=str(folder)))
    assert not (tmp_path / "RUN").exists()


def test_removed_shards_do_not_replace_the_input(tiny, settings, tmp_path):
    folder = tmp_path / "removed"
    config = settings(write__removed=str(folder))
    shardsieve.clean(tiny.patterns, tmp_path / "RUN", config)
    before = {path: path.read_bytes() for path in folder.glob("*.tar")}
    assert before
    # The removed set is cleaned once more, by the very run that owns its folder.
    with pytest.raises(ConfigError, match="holds the input shards"):
        shardsieve.clean(str(folder), tmp_path / "RUN", config)
    assert {path: path.read_bytes() for path in folder.glob("*.tar")} == before


def test_precision_that_cannot_work_is_refused_where_it_is_used(tiny, settings, tmp_path):
    config = settings(tune__precision="fp16", device="cpu")
    with pytest.raises(DeviceUnavailable, match="fp16 needs a GPU"):
        shardsieve.clean(tiny.patterns, tmp_path / "RUN", config, tune=True)
    assert not (tmp_path / "RUN").exists()
    # Nothing is tuned, so the setting is in nobody's way.
    assert shardsieve.clean(tiny.patterns, tmp_path / "RUN", config).clean_shards


def test_removed_shards_inside_the_run_directory_are_fine(tiny, settings, tmp_path):
    folder = tmp_path / "RUN" / "removed"
    run = shardsieve.clean(tiny.patterns, tmp_path / "RUN", settings(write__removed=str(folder)))
    assert len(list(folder.glob("*.tar"))) == len(run.manifest.outputs["removed"]) > 0


def test_interrupted_removed_set_is_written_again(tiny, settings, tmp_path, monkeypatch):
    from shardsieve.shards import copier

    folder = tmp_path / "removed"
    config = settings(write__removed=str(folder))
    copy, calls = copier.copy_ranges, []

    def killed_at_the_last(files, ranges, target, **options):
        calls.append(target)
        if target.name == "removed-000001.tar":
            raise KeyboardInterrupt
        return copy(files, ranges, target, **options)

    monkeypatch.setattr(copier, "copy_ranges", killed_at_the_last)
    with pytest.raises(KeyboardInterrupt):
        shardsieve.clean(tiny.patterns, tmp_path / "RUN", config)
    assert list(folder.glob("removed-*.tar")), "it was to be caught half-way"
    monkeypatch.undo()
    run = shardsieve.clean(tiny.patterns, tmp_path / "RUN", config)
    assert run.manifest.counts.reconciles
    # Another tau removes from fewer shards: nothing of the larger set stays behind.
    run = shardsieve.clean(
        tiny.patterns, tmp_path / "RUN", settings(write__removed=str(folder), select__tau=0.0)
    )
    assert {path.name for path in folder.glob("removed-*.tar")} == {
        shard["file"] for shard in run.manifest.outputs["removed"]
    }


def test_too_many_bad_images_stop_the_second_run_as_well(settings, tmp_path):
    tiny = write_shards(tmp_path / "data", n_shards=2, per_shard=20)
    path = tmp_path / "bad.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(30):
            add_member(tar, f"bad{number}.jpg", b"no image")
            add_member(tar, f"bad{number}.cls", b"0")
    for _ in range(2):
        with pytest.raises(DataError, match=r"more than index.max_bad_fraction"):
            shardsieve.clean([*tiny.patterns, str(path)], tmp_path / "RUN", settings())


def test_a_late_stage_sees_that_an_early_one_is_out_of_date(tiny, settings, tmp_path):
    run = shardsieve.clean(tiny.patterns, tmp_path / "RUN", settings())
    before = (run.path / "config.toml").read_text()
    with pytest.raises(StaleArtefact, match=r"probe, which was made from something else.*q: 0.7"):
        run_stages(["write"], run.path, settings(probe__q=0.5))
    assert (run.path / "config.toml").read_text() == before


def test_commit_cut_off_before_its_name_is_finished(tiny, settings, tmp_path):
    run = shardsieve.clean(tiny.patterns, tmp_path / "RUN", settings())
    (run.path / "embed").rename(run.path / "embed.part")
    run_stages(["probe"], run.path, settings())
    assert (run.path / "embed").is_dir()


def test_new_labels_leave_the_features_alone(tiny, settings, tmp_path):
    run = shardsieve.clean(tiny.patterns, tmp_path / "RUN", settings())
    made = (run.path / "embed" / "stage.json").stat().st_mtime_ns
    table = tmp_path / "labels.csv"
    table.write_text("key,label\n" + "".join(f"{k},{v}\n" for k, v in tiny.true.items()))
    again = shardsieve.clean(tiny.patterns, tmp_path / "RUN", settings(index__labels=str(table)))
    assert (run.path / "embed" / "stage.json").stat().st_mtime_ns == made
    assert again.scores.column("label").to_pylist() == list(tiny.true.values())


def test_moved_shards_keep_their_features(tiny, settings, tmp_path):
    run = shardsieve.clean(tiny.patterns, tmp_path / "RUN", settings())
    made = (run.path / "embed" / "stage.json").stat().st_mtime_ns
    moved = tmp_path / "elsewhere"
    shutil.move(tiny.paths[0].parent, moved)
    shardsieve.clean(str(moved), tmp_path / "RUN", settings())
    assert (run.path / "embed" / "stage.json").stat().st_mtime_ns == made


def test_weights_from_the_hub_reach_the_report(tiny, settings, tmp_path, monkeypatch):
    import timm

    create = timm.create_model

    def downloaded(name, pretrained=False, **options):
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", downloaded)
    config = settings(embed__backbone="resnet10t.c3_in1k", embed__checkpoint="hub")
    run = shardsieve.clean(tiny.patterns, tmp_path / "RUN", config)
    assert "hub resnet10t.c3_in1k" in run.report.read_text()


def test_class_names_that_are_other_numbers_are_refused(tiny, settings, tmp_path):
    classes = tmp_path / "classes.txt"
    classes.write_text("2\n1\n0\n")
    with pytest.raises(LabelError, match="class 0 is named '2'"):
        shardsieve.clean(tiny.patterns, tmp_path / "RUN", settings(index__classes=str(classes)))


def test_validation_labels_may_stand_elsewhere(tiny, settings, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("key,label\n" + "".join(f"{k},{v}\n" for k, v in tiny.given.items()))
    clean = write_shards(tmp_path / "validation", n_shards=1, per_shard=20, noise=0, seed=5)
    # Keys of their own, so that the table knows none of them.
    with tarfile.open(clean.paths[0]) as old, tarfile.open(tmp_path / "val.tar", "w") as new:
        for member in old:
            add_member(new, f"val-{member.name}", old.extractfile(member).read())
    options = {
        "index__labels": str(table),
        "tune__epochs": 1,
        "tune__validation": [str(tmp_path / "val.tar")],
    }
    with pytest.raises(DataError, match=r"validation shards: .*tune.validation_labels"):
        shardsieve.clean(tiny.patterns, tmp_path / "RUN", settings(**options), tune=True)
    assert shardsieve.open_run(tmp_path / "RUN").clean_shards, "the shards did not wait for tune"
    run = shardsieve.clean(
        tiny.patterns,
        tmp_path / "RUN",
        settings(**options, tune__validation_labels="cls"),
        tune=True,
    )
    (epoch,) = run.manifest.stages["tune"].facts["metrics"]
    assert epoch["validation_accuracy"] > 0.8


def test_diverging_probe_is_no_verdict_on_the_samples(tiny, settings, tmp_path):
    with pytest.raises(DataError, match=r"diverged.*lower probe.lr"):
        shardsieve.clean(
            tiny.patterns, tmp_path / "RUN", settings(probe__lr=1e30, probe__normalise="none")
        )


def test_lock_dies_with_its_process_and_not_with_its_children(tmp_path):
    script = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from shardsieve.rundir import RunDir\n"
        "with RunDir(Path(sys.argv[1])).lock():\n"
        "    if os.fork() == 0:\n"
        "        time.sleep(30)\n"
        "    print('locked', flush=True)\n"
        "    time.sleep(30)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout.readline() == b"locked\n"
        process.kill()
        process.wait()
        deadline = time.monotonic() + 2
        while True:
            try:
                with RunDir(tmp_path).lock():
                    break
            except RunLocked:
                assert time.monotonic() < deadline, "a child holds the lock"
                time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
