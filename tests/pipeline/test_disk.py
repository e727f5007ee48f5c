"""A disk that is full or may not be written to: one message, and the next run goes on."""

import errno
import os
from pathlib import Path

import pytest

import shardsieve
from shardsieve.errors import DataError, DiskError
from shardsieve.pipeline import run_stages
from shardsieve.verify import verify


def raising(code):
    def refuse(*_arguments, **_options):
        raise OSError(code, os.strerror(code))

    return refuse


@pytest.mark.parametrize("stage", ["index", "embed", "probe", "select", "write", "report"])
def test_full_at_every_stage(shards, settings, tmp_path, monkeypatch, stage):
    genuine, folder = os.fsync, tmp_path / "RUN" / {"write": "clean"}.get(stage, stage)

    def full(descriptor):
        target = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if target.startswith(f"{folder}.part/") and "begun" not in target:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        genuine(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match=r"cannot be written: No space left on device \(.* MB"):
        shardsieve.clean(shards.patterns, tmp_path / "RUN", settings())
    monkeypatch.undo()
    run = shardsieve.clean(shards.patterns, tmp_path / "RUN", settings())
    assert verify(run.path).problems == []
    assert not list(run.path.rglob("*.part"))


def test_a_disk_that_fills_up_while_shards_are_copied(shards, settings, tmp_path, monkeypatch):
    config = settings(write__shard_samples=40)
    run_stages(["index", "embed", "probe", "select"], tmp_path / "RUN", config, shards.patterns)
    genuine, copied = os.copy_file_range, []

    def full_after_a_while(*arguments, **options):
        copied.append(arguments[2])
        if sum(copied) > 300_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return genuine(*arguments, **options)

    monkeypatch.setattr(os, "copy_file_range", full_after_a_while)
    # Side by side they would all be cut off.
    monkeypatch.setattr("shardsieve.stages.write._MOST_THREADS", 1)
    with pytest.raises(DiskError, match=r"clean-\d+\.tar|clean\.part: .*No space left.*it goes on"):
        run_stages(["write"], tmp_path / "RUN", config)
    part = tmp_path / "RUN" / "clean.part"
    made = {path.name: path.stat().st_mtime_ns for path in part.glob("*.tar")}
    assert made
    monkeypatch.undo()
    run = run_stages(["write"], tmp_path / "RUN", config)
    after = {path.name: path.stat().st_mtime_ns for path in run.clean_shards}
    assert {name: after[name] for name in made} == made
    assert verify(run.path).problems == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(shards, settings, tmp_path):
    (tmp_path / "RUN").mkdir(mode=0o500)
    with pytest.raises(DataError, match="RUN: cannot be written to: Permission denied"):
        shardsieve.clean(shards.patterns, tmp_path / "RUN", settings())


def test_a_file_system_that_became_read_only(shards, settings, tmp_path, monkeypatch):
    run_stages(["index", "embed", "probe", "select"], tmp_path / "RUN", settings(), shards.patterns)
    monkeypatch.setattr(os, "copy_file_range", raising(errno.EROFS))
    with pytest.raises(DiskError, match=r"Read-only file system.*Make it writable, or choose"):
        run_stages(["write"], tmp_path / "RUN", settings())
