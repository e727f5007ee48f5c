"""Samples that also stand in validation or test shards, through the whole line."""

import io
import shutil
import tarfile
from pathlib import Path

import pytest
from tiny import add_member

import shardsieve
from shardsieve.errors import ShardError
from shardsieve.explain import explain, in_words
from shardsieve.pipeline import run_stages
from shardsieve.progress import Lines
from shardsieve.verify import verify

LEAKED, DISPUTED, TWIN = "s0-003", "s1-007", "s2-011"


def images(shards):
    found = {}
    for path in shards.paths:
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    found[member.name[:-4]] = tar.extractfile(member).read()
    return found


@pytest.fixture(scope="module")
def held_out(shards, tmp_path_factory):
    """One sample under its label, one under another, one with one other byte, two without."""
    image = images(shards)
    twin = bytearray(image[TWIN])
    twin[len(twin) // 2] ^= 1
    folder = tmp_path_factory.mktemp("held-out")
    with tarfile.open(folder / "val-0000.tar", "w") as tar:
        for key, content, label in (
            ("same", image[LEAKED], shards.given[LEAKED]),
            ("other", image[DISPUTED], (shards.given[DISPUTED] + 1) % 3),
            ("twin", bytes(twin), shards.given[TWIN]),
            ("unlike", image[LEAKED] + b"more", 0),
        ):
            add_member(tar, f"{key}.jpg", content)
            add_member(tar, f"{key}.cls", str(label).encode())
        add_member(tar, "bare.jpg", image["s3-001"])
        add_member(tar, "none.txt", b"no image")
    with tarfile.open(folder / "val-0001.tar", "w") as tar:
        add_member(tar, "again.jpg", image[LEAKED])
    return folder


def run_and_listen(shards, out, config):
    told = io.StringIO()
    run = shardsieve.clean(shards.patterns, out, config, progress=Lines(told, every_s=0))
    return run, told.getvalue()


def leaks_of(run):
    rows = run.scores.select(["key", "leak_of", "leak_label"]).to_pylist()
    return {row["key"]: (row["leak_of"], row["leak_label"]) for row in rows if row["leak_of"]}


def expected(shards):
    return {
        LEAKED: ("same", shards.given[LEAKED]),
        DISPUTED: ("other", (shards.given[DISPUTED] + 1) % 3),
        "s3-001": ("bare", None),
    }


def test_told_and_then_removed(shards, held_out, settings, tmp_path):
    options = {"select__held_out": [str(held_out / "val-*.tar")]}
    run, told = run_and_listen(shards, tmp_path / "RUN", settings(**options))
    assert leaks_of(run) == expected(shards)
    record = run.manifest.stages["select"]
    assert (record.facts["leaks"]["samples"], record.facts["leaks"]["other_label"]) == (3, 1)
    assert any("3 samples also stand in the held-out shards" in note for note in record.notes)
    assert "leaks: 4/4 images" in told, "only images whose ends agree are read whole"
    words = in_words(explain(run.path, DISPUTED)[0])
    assert "held out    other of the held-out shards is the same, labelled" in words
    assert "bare of the held-out shards is the same, without a label" in in_words(
        explain(run.path, "s3-001")[0]
    )
    assert "Also held out" in run.report.read_text("utf-8")

    kept = run.scores.column("kept").to_pylist()
    run, told = run_and_listen(
        shards, tmp_path / "RUN", settings(**options, select__leaks="remove")
    )
    assert "held out: " not in told, "the comparison is taken over"
    assert leaks_of(run) == expected(shards)
    for row, before in zip(run.scores.to_pylist(), kept, strict=True):
        assert row["kept"] == (before and row["leak_of"] is None)
        assert (row["reason"] == "leak") == (row["leak_of"] is not None)
    assert run.manifest.counts.reconciles
    assert run.manifest.counts.removed["leak"] == 3
    assert verify(run.path).problems == []


def test_a_changed_held_out_shard_is_noticed(shards, held_out, settings, tmp_path):
    here = tmp_path / "val"
    shutil.copytree(held_out, here)
    config = settings(select__held_out=[str(here)])
    run, _ = run_and_listen(shards, tmp_path / "RUN", config)
    _, told = run_and_listen(shards, tmp_path / "RUN", config)
    assert "select: up to date" in told
    with tarfile.open(here / "val-0001.tar", "w") as tar:
        add_member(tar, "new.jpg", images(shards)[TWIN])
    run, told = run_and_listen(shards, tmp_path / "RUN", config)
    assert "select: runs again, changed: held_out" in told
    assert leaks_of(run) == {**expected(shards), TWIN: ("new", None)}
    shutil.rmtree(here)
    with pytest.raises(ShardError, match="val"):
        run_and_listen(shards, tmp_path / "RUN", config)


def test_validation_counts_and_stays_in_the_settings(shards, held_out, settings, tmp_path):
    val = str(held_out / "val-0000.tar")
    run, _ = run_and_listen(shards, tmp_path / "RUN", settings(tune__validation=[val]))
    assert leaks_of(run) == expected(shards)
    assert f'held_out = [\n    "{val}",\n]' in (run.path / "config.toml").read_text()
    # Validation shards that are named later do not make the selection out of date.
    named_later = settings(
        select__held_out=[val], tune__validation=[str(held_out / "val-0001.tar")]
    )
    run_stages(["write"], run.path, named_later)


def test_remote_shards_on_both_sides(shards, held_out, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("SHARDSIEVE_CACHE", str(tmp_path / "cache"))
    config = settings(select__held_out=[f"file://{held_out}/val-0000.tar"])
    patterns = [f"file://{path}" for path in shards.paths]
    run = shardsieve.clean(patterns, tmp_path / "RUN", config)
    assert leaks_of(run) == expected(shards)


def test_nothing_held_out_reads_nothing(shards, settings, tmp_path):
    run, told = run_and_listen(shards, tmp_path / "RUN", settings())
    for name in ("leak_of", "leak_label"):
        assert run.scores.column(name).null_count == len(run.scores)
    assert "leaks" not in told
    assert "leaks" not in run.manifest.stages["select"].facts
    assert not (Path(run.path) / "select" / "held_out").exists()


@pytest.mark.parametrize("as_long", [True, False])
def test_nothing_in_common(shards, settings, tmp_path, as_long):
    image = images(shards)[TWIN]
    with tarfile.open(tmp_path / "val.tar", "w") as tar:
        add_member(tar, "one.jpg", image[::-1] if as_long else image * 99)
    run, _ = run_and_listen(
        shards, tmp_path / "RUN", settings(select__held_out=[str(tmp_path / "val.tar")])
    )
    assert leaks_of(run) == {}
    record = run.manifest.stages["select"]
    assert record.facts["leaks"]["samples"] == 0
    assert not any("held-out" in note for note in record.notes)
