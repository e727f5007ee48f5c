"""What write makes of its settings, on one selection."""

import hashlib
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny import write_shards

import shardsieve
from shardsieve.pipeline import plan_write, run_stages
from shardsieve.verify import verify

LINE = ["index", "embed", "probe", "select"]


@pytest.fixture(scope="module")
def selected(shards, settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("selected") / "RUN"
    return run_stages(LINE, out, settings(), shards.patterns)


def members(path):
    with tarfile.open(path) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}


def keys_of(path):
    with tarfile.open(path) as tar:
        return list(dict.fromkeys(name.partition(".")[0] for name in tar.getnames()))


def kept_rows(run):
    return [row for row in run.scores.to_pylist() if row["kept"]]


def test_by_count_in_source_order(selected, settings):
    config = settings(write__shard_samples=50)
    told = plan_write(selected.path, config)
    run = run_stages(["write"], selected.path, config)
    kept = [row["key"] for row in kept_rows(run)]
    assert [keys_of(path) for path in run.clean_shards] == [
        kept[start : start + 50] for start in range(0, len(kept), 50)
    ]
    written = run.manifest.outputs["clean"]
    assert told["clean"]["shards"] == len(written)
    assert told["clean"]["samples"] == len(kept) == sum(row["samples"] for row in written)
    assert told["clean"]["size_bytes"] == sum(path.stat().st_size for path in run.clean_shards)
    assert sum(row["samples"] for row in told["clean"]["classes"]) == len(kept)
    assert verify(run.path).problems == []


def test_by_bytes(selected, settings):
    run = run_stages(["write"], selected.path, settings(write__shard_bytes=200_000))
    sizes = [path.stat().st_size for path in run.clean_shards]
    assert len(sizes) > 2 and max(sizes) <= 200_000
    assert [key for path in run.clean_shards for key in keys_of(path)] == [
        row["key"] for row in kept_rows(run)
    ]


def test_shuffled_samples_are_the_same_samples(selected, shards, settings, tmp_path):
    config = settings(write__order="shuffle", write__shard_samples=64, seed=3)
    # Another seed is another probe.
    run = run_stages([*LINE, "write"], tmp_path / "RUN", config, shards.patterns)
    kept = [row["key"] for row in kept_rows(run)]
    placed = [key for path in run.clean_shards for key in keys_of(path)]
    assert sorted(placed) == sorted(kept) and placed != kept
    source = {name: data for path in shards.paths for name, data in members(path).items()}
    for path in run.clean_shards:
        for name, data in members(path).items():
            assert source[name] == data
    assert verify(run.path).problems == []
    before = [path.read_bytes() for path in run.clean_shards]
    again = run_stages([*LINE, "write"], tmp_path / "again", config.model_copy(), shards.patterns)
    assert [path.read_bytes() for path in again.clean_shards] == before


@pytest.mark.parametrize("change", [{"write__per_class_cap": 20}, {"write__balance": True}])
def test_quota_leaves_out_the_least_probably_clean(selected, settings, tmp_path, change):
    run = run_stages(["write"], selected.path, settings(**change))
    rows = kept_rows(run)
    per_class = np.bincount([row["label"] for row in rows])
    limit = change.get("write__per_class_cap", per_class.min())
    written = {key for path in run.clean_shards for key in keys_of(path)}
    for label in range(3):
        of_class = sorted(
            (row for row in rows if row["label"] == label), key=lambda row: -row["p_clean"]
        )
        assert {row["key"] for row in of_class[:limit]} == {
            row["key"] for row in of_class if row["key"] in written
        }
    over = len(rows) - 3 * limit
    counts = run.manifest.counts
    assert (counts.kept, counts.removed["over_quota"]) == (3 * limit, over)
    assert counts.reconciles
    assert any(f"{over} clean samples are over the quota" in note for note in run.manifest.notes)
    table = pq.read_table(run.path / "clean" / "manifest.parquet")
    assert table.column("reason").to_pylist().count("over_quota") == over
    assert verify(run.path).problems == []


def test_manifest_finds_every_sample_in_its_shard(selected, shards, settings, tmp_path):
    config = settings(write__removed=str(tmp_path / "removed"), write__shard_samples=30)
    run = run_stages(["write"], selected.path, config)
    rows = pq.read_table(run.path / "clean" / "manifest.parquet").to_pylist()
    scores = run.scores.to_pylist()
    assert [row["key"] for row in rows] == [row["key"] for row in scores] == list(shards.given)
    for row, scored in zip(rows, scores, strict=True):
        for name in ("offset", "label", "loss", "margin", "p_clean", "reason", "suggested_label"):
            assert row[name] == scored[name]
        assert row["decision"] == ("kept" if scored["kept"] else "removed")
        folder = run.path / "clean" if scored["kept"] else tmp_path / "removed"
        places = Path(row["source"]), folder / row["file"]
        with places[0].open("rb") as source, places[1].open("rb") as written:
            source.seek(row["offset"])
            written.seek(row["file_offset"])
            assert source.read(row["size"]) == written.read(row["size"])


def test_without_hashes(selected, settings):
    run = run_stages(["write"], selected.path, settings(write__sha256=False))
    assert {shard["sha256"] for shard in run.manifest.outputs["clean"]} == {None}
    assert verify(run.path).problems == []
    # Then the bytes are compared all the same.
    damage(run.clean_shards[0], 3000)
    assert any("is not what its source has" in problem for problem in verify(run.path).problems)


def damage(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_finished_output_shards_are_not_written_again(selected, settings, monkeypatch):
    from shardsieve.shards import copier as stage

    config = settings(write__shard_samples=25)
    genuine = stage.copy_ranges

    def stop_at_the_fourth(files, ranges, target, **options):
        if target.name == "clean-000003.tar":
            raise KeyboardInterrupt
        return genuine(files, ranges, target, **options)

    monkeypatch.setattr(stage, "copy_ranges", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        run_stages(["write"], selected.path, config)
    part = selected.path / "clean.part"
    made = {path.name: path.stat().st_mtime_ns for path in part.glob("clean-*.tar")}
    assert {"clean-000000.tar"} <= set(made)
    monkeypatch.undo()
    run = run_stages(["write"], selected.path, config)
    after = {path.name: path.stat().st_mtime_ns for path in run.clean_shards}
    assert {name: after[name] for name in made} == made
    assert verify(run.path).problems == []
    assert not list(run.path.rglob("*.part"))

    # One that is lost later is written again alone.
    (run.path / "clean" / "clean-000002.tar").unlink()
    run = run_stages(["write"], selected.path, config)
    again = {path.name: path.stat().st_mtime_ns for path in run.clean_shards}
    assert [name for name in again if again[name] != after[name]] == ["clean-000002.tar"]
    assert verify(run.path).problems == []


def test_neighbours_with_one_key_are_told(settings, tmp_path):
    tiny = write_shards(tmp_path / "data", n_shards=2, per_shard=40)
    (tmp_path / "again.tar").write_bytes(tiny.paths[0].read_bytes())
    shuffled = settings(write__shard_samples=1000, select__tau=0.0)
    run = shardsieve.clean(
        [*tiny.patterns, str(tmp_path / "again.tar")], tmp_path / "RUN", shuffled
    )
    assert not any("of the same key" in note for note in run.manifest.notes), "40 samples apart"
    with tarfile.open(tmp_path / "pair.tar", "w") as tar:
        for path in (tiny.paths[0], tiny.paths[0]):
            with tarfile.open(path) as one:
                for info in one.getmembers()[:3]:
                    tar.addfile(info, one.extractfile(info))
    run = shardsieve.clean(
        [*tiny.patterns, str(tmp_path / "pair.tar")], tmp_path / "pair", shuffled
    )
    assert any("1 samples of the clean set stand right" in note for note in run.manifest.notes)


def test_sha256_is_of_the_file(selected, settings):
    run = run_stages(["write"], selected.path, settings(write__shard_samples=70))
    for shard in run.manifest.outputs["clean"]:
        content = (run.path / "clean" / shard["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == shard["sha256"]
    assert json.loads((run.path / "clean" / "stage.json").read_text())["files"]
