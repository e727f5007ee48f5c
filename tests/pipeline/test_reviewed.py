"""What people decide stands: through select, write and tune, and through another run."""

import io
import tarfile

import pytest

import shardsieve
from shardsieve.data.decision_log import DecisionLog
from shardsieve.data.decisions import Decision
from shardsieve.errors import StaleArtefact
from shardsieve.pipeline import run_stages
from shardsieve.progress import Lines


def keys_in(paths):
    keys = []
    for path in paths:
        with tarfile.open(path) as tar:
            keys += [info.name.split(".")[0] for info in tar if info.name.endswith(".jpg")]
    return keys


def member(paths, name):
    for path in paths:
        with tarfile.open(path) as tar:
            if name in tar.getnames():
                return tar.extractfile(name).read()
    return None


@pytest.fixture
def decided(shards, settings, tmp_path):
    """A run in which somebody kept a removed sample, dropped a kept one and relabelled one."""
    config = settings(write__removed=str(tmp_path / "removed"), tune__epochs=2)
    run = shardsieve.clean(shards.patterns, tmp_path / "RUN", config)
    rows = run.scores.to_pylist()
    removed = [row for row in rows if not row["kept"]]
    kept = [row for row in rows if row["kept"]]
    right = next(name for name in run.index.classes if name != str(removed[1]["label"]))
    names = [ref.path.name for ref in run.index.shards]

    def about(row, what, label=None):
        return Decision(
            shard=names[row["shard"]],
            key=row["key"],
            offset=row["offset"],
            decision=what,
            label=label,
            given=run.index.classes[row["label"]],
        )

    DecisionLog(run.path).add(
        [about(removed[0], "keep"), about(kept[0], "drop"), about(removed[1], "relabel", right)]
    )
    return run, config, removed, kept, right


def test_select_and_write_follow(decided, shards):
    run, config, removed, kept, right = decided
    with pytest.raises(StaleArtefact, match=r"write needs select.*decisions: None -> "):
        run_stages(["write"], run.path, config)
    run_stages(["select", "write"], run.path, config)
    after = {row["key"]: row for row in run.scores.to_pylist()}
    assert after[removed[0]["key"]]["reason"] == "kept_by_review"
    assert after[kept[0]["key"]]["reason"] == "removed_by_review"
    relabelled = after[removed[1]["key"]]
    assert (relabelled["kept"], relabelled["reason"]) == (True, "kept_by_review")
    assert relabelled["label"] == removed[1]["label"], "what was given stays on record"
    assert run.index.classes[relabelled["final_label"]] == right
    changed = {removed[0]["key"], removed[1]["key"], kept[0]["key"]}
    for key, row in after.items():
        assert (row["final_label"] == row["label"]) is (key != removed[1]["key"])
        if key not in changed:
            assert row["reason"] in ("kept", "high_loss")
    clean = keys_in(run.clean_shards)
    gone = keys_in(sorted(config.write.removed.glob("*.tar")))
    assert {removed[0]["key"], removed[1]["key"]} <= set(clean)
    assert kept[0]["key"] in gone and kept[0]["key"] not in clean
    assert sorted(clean + gone) == sorted(shards.given)
    # The bytes are the input's: only tables and manifest know the new label.
    name = f"{removed[1]['key']}.cls"
    assert member(run.clean_shards, name) == str(removed[1]["label"]).encode()
    manifest = run.manifest
    assert manifest.counts.reconciles
    assert manifest.counts.removed["removed_by_review"] == 1
    assert manifest.stages["select"].facts["decisions"] == {"keep": 1, "drop": 1, "relabel": 1}


def test_a_second_run_keeps_them_and_undo_brings_everything_back(decided, shards):
    run, config, removed, *_ = decided

    def again(**changes):
        told = io.StringIO()
        other = config.model_copy(update=changes)
        shardsieve.clean(shards.patterns, run.path, other, progress=Lines(told))
        return told.getvalue()

    before = run.manifest.stages["select"].key
    assert "select: runs again, changed: decisions" in again()
    assert "select: up to date" in again()
    # The features are made anew, and with them everything but what people said.
    again(embed=config.embed.model_copy(update={"image_size": 40}))
    row = next(row for row in run.scores.to_pylist() if row["key"] == removed[0]["key"])
    assert row["reason"] == "kept_by_review"
    log = DecisionLog(run.path)
    while log.undo():
        pass
    again()
    assert run.manifest.stages["select"].key == before
    assert {row["reason"] for row in run.scores.to_pylist()} == {"kept", "high_loss"}


def test_tuning_learns_the_label_that_stands(decided, shards, monkeypatch):
    import shardsieve.tuning.trainer as stage

    run, config, removed, kept, right = decided
    seen = []
    draw = stage.draw_epoch

    def watch(job, kept_N, epoch):
        seen.append((job.samples.label_N.copy(), kept_N.copy()))
        return draw(job, kept_N, epoch)

    monkeypatch.setattr(stage, "draw_epoch", watch)
    run = shardsieve.clean(shards.patterns, run.path, config, tune=True)
    row_of = {key: row for row, key in enumerate(run.index.keys_N.to_pylist())}
    assert len(seen) == 2
    for label_N, kept_N in seen:
        assert run.index.classes[label_N[row_of[removed[1]["key"]]]] == right
        assert kept_N[row_of[removed[0]["key"]]] and kept_N[row_of[removed[1]["key"]]]
        assert not kept_N[row_of[kept[0]["key"]]]
