"""The whole line on tiny shards: what comes out, and what runs again when something changes."""

import gc
import hashlib
import io
import json
import tarfile
from pathlib import Path

import pyarrow.compute as pc
import pytest
import webdataset
from tiny import write_shards

import shardsieve
from shardsieve.errors import DataError, RunLocked, ShardError, StaleArtefact
from shardsieve.identity import STAGES
from shardsieve.pipeline import run_stages
from shardsieve.progress import Lines
from shardsieve.rundir import RunDir


def run_and_listen(shards, out, config, **options):
    """Runs `clean`; returns the run and the names of the stages that were not up to date."""
    told = io.StringIO()
    run = shardsieve.clean(shards, out, config, progress=Lines(told), **options)
    fresh = {line.split(":")[0] for line in told.getvalue().splitlines() if "up to date" in line}
    asked = [stage.name for stage in STAGES if options.get("tune") or stage.name != "tune"]
    return run, [name for name in asked if name not in fresh]


def files_of(run):
    """Hashes of everything that must not depend on when or how often a run was interrupted."""
    folders = ("index", "embed", "probe", "select", "clean")
    return {
        str(path.relative_to(run.path)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders
        for path in sorted((run.path / folder).rglob("*"))
        if path.is_file() and path.name != "stage.json"
    }


@pytest.fixture(scope="module")
def finished(shards, settings, tmp_path_factory):
    removed = tmp_path_factory.mktemp("removed")
    config = settings(write__removed=str(removed), tune__epochs=2, tune__validation=[])
    run = shardsieve.clean(
        shards.patterns, tmp_path_factory.mktemp("runs") / "RUN", config, tune=True
    )
    return run, removed


def test_finds_planted_noise(finished, shards):
    run, _ = finished
    scores = run.scores
    kept = scores.column("kept").to_pylist()
    keys = scores.column("key").to_pylist()
    removed = {key for key, keep in zip(keys, kept, strict=True) if not keep}
    # Colours are easy: nearly all wrong labels go and few right ones.
    assert len(removed & shards.wrong) >= 0.9 * len(shards.wrong)
    assert len(removed - shards.wrong) <= 0.1 * len(keys)


def test_manifest_accounts_for_every_sample(finished, shards):
    run, removed = finished
    manifest = run.manifest
    assert manifest.counts.samples_in == len(shards.given) == run.scores.num_rows
    assert manifest.counts.reconciles
    assert manifest.counts.kept == sum(shard["samples"] for shard in manifest.outputs["clean"])
    assert sum(manifest.counts.removed.values()) == sum(
        shard["samples"] for shard in manifest.outputs["removed"]
    )
    for name, folder in (("clean", run.path / "clean"), ("removed", removed)):
        for shard in manifest.outputs[name]:
            content = (folder / shard["file"]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == shard["sha256"]
            assert len(content) == shard["size_bytes"]
    assert list(manifest.stages) == [stage.name for stage in STAGES]
    assert manifest.libraries["torch"]


def test_kept_samples_are_their_source_byte_for_byte(finished, shards):
    run, removed = finished

    def members(paths):
        found = {}
        for path in paths:
            with tarfile.open(path) as tar:
                for info in tar:
                    content = tar.extractfile(info).read()
                    found[info.name] = (content, info.mtime, info.mode, info.uid)
        return found

    source = members(shards.paths)
    clean, gone = members(run.clean_shards), members(sorted(removed.glob("*.tar")))
    assert clean.keys() & gone.keys() == set()
    assert clean | gone == source
    assert list(clean) == [name for name in source if name in clean], "order is kept"


# webdataset leaves its files to the garbage collector, which is to come here and not later.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_clean_shards_open_with_webdataset(finished):
    run, _ = finished
    urls = [str(path) for path in run.clean_shards]
    keys = [sample["__key__"] for sample in webdataset.WebDataset(urls, shardshuffle=False)]
    gc.collect()
    kept = run.scores.filter(run.scores.column("kept"))
    assert keys == kept.column("key").to_pylist()


def test_scores_table_has_the_promised_columns(finished):
    run, _ = finished
    promised = ["key", "shard", "offset", "label", "loss", "margin", "pred", "p_clean", "kept"]
    unseen = ["agreement", "margin_unseen", "suggested_label", "suggestion_confidence"]
    unseen += ["neighbour_agreement", "distance", "out_of_class"]
    last = ["duplicate_of", "near_duplicate_of", "leak_of", "leak_label", "final_label"]
    assert run.scores.column_names == [*promised, "reason", "detail", *unseen, *last]
    kept = run.scores.column("kept")
    assert all(run.scores.column(name).null_count == 0 for name in unseen)
    above = pc.greater(run.scores.column("p_clean"), 0.6)
    assert kept.equals(above)


def test_tuned_checkpoint_loads_into_timm(finished):
    import timm
    import torch

    run, _ = finished
    model = timm.create_model("test_resnet", num_classes=3, checkpoint_path=str(run.model))
    assert torch.isfinite(model.eval()(torch.zeros(1, 3, 32, 32))).all()
    metrics = [
        json.loads(line) for line in (run.model.parent / "metrics.jsonl").read_text().splitlines()
    ]
    assert [row["epoch"] for row in metrics] == [1, 2]
    tuned = run.manifest.stages["tune"]
    kept, corrected = run.manifest.counts.kept, tuned.counts["corrected"]
    assert metrics[0]["drawn"] == kept + corrected
    scores = run.scores
    sure = pc.and_(
        pc.equal(scores.column("reason"), "high_loss"),
        pc.greater(scores.column("suggestion_confidence"), 0.95),
    )
    assert corrected == pc.sum(sure).as_py() > 0
    assert any(f"{corrected} removed samples are trained on" in note for note in tuned.notes)


def test_nothing_runs_twice(shards, settings, tmp_path):
    run, first = run_and_listen(shards.patterns, tmp_path, settings())
    before = files_of(run)
    again, second = run_and_listen(shards.patterns, tmp_path, settings())
    assert first == [stage.name for stage in STAGES if stage.name != "tune"]
    assert second == []
    assert files_of(again) == before


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"probe__q": 0.5}, ["probe", "select", "write", "report"]),
        ({"select__tau": 0.9}, ["select", "write", "report"]),
        ({"seed": 1}, ["probe", "select", "write", "report"]),
        ({"embed__image_size": 40}, ["embed", "probe", "select", "write", "report"]),
        ({"report__gallery": 3}, ["report"]),
        ({"index__n_classes": 4}, ["index", "probe", "select", "write", "report"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else next(iter(value)),
)
def test_only_what_depends_on_a_change_runs_again(shards, settings, tmp_path, change, expected):
    run_and_listen(shards.patterns, tmp_path, settings())
    _, redone = run_and_listen(shards.patterns, tmp_path, settings(**change))
    assert redone == expected


def test_two_runs_give_the_same_bytes(shards, settings, tmp_path):
    one = shardsieve.clean(shards.patterns, tmp_path / "one", settings())
    two = shardsieve.clean(shards.patterns, tmp_path / "two", settings(workers=2))
    assert files_of(one) == files_of(two)


def test_out_of_fold_losses(shards, settings, tmp_path):
    import numpy as np

    from shardsieve.data.losses import LossTable

    run = shardsieve.clean(shards.patterns, tmp_path, settings(probe__folds=3))
    losses = LossTable.open(run.path / "probe" / "losses.arrow")
    assert np.bincount(losses.fold_N).tolist() == [80, 80, 80]
    assert np.isfinite(losses.loss_N).all()


def test_lost_output_is_written_again(shards, settings, tmp_path):
    run = shardsieve.clean(shards.patterns, tmp_path, settings())
    before = files_of(run)
    run.clean_shards[1].unlink()
    again, redone = run_and_listen(shards.patterns, tmp_path, settings())
    assert "write" in redone and "select" not in redone
    assert files_of(again) == before


def test_single_stages_need_what_they_need(shards, settings, tmp_path):
    with pytest.raises(StaleArtefact, match="no index here"):
        run_stages(["embed"], tmp_path, settings())
    run_stages(["index"], tmp_path, settings(), shards.patterns)
    with pytest.raises(StaleArtefact, match="probe needs embed, which has not been run"):
        run_stages(["probe"], tmp_path, settings())
    run_stages(["embed"], tmp_path, settings())
    run_stages(["probe"], tmp_path, settings())
    with pytest.raises(StaleArtefact, match=r"select needs probe.*settings.q: 0.7 -> 0.5"):
        run_stages(["select"], tmp_path, settings(probe__q=0.5))


def test_a_shard_that_changes_under_the_run_is_noticed(settings, tmp_path):
    tiny = write_shards(tmp_path / "data", n_shards=2, per_shard=40)
    run_stages(["index", "embed", "probe", "select"], tmp_path / "RUN", settings(), tiny.patterns)
    tiny.paths[0].write_bytes(tiny.paths[1].read_bytes())
    with pytest.raises((ShardError, StaleArtefact), match="chang"):
        run_stages(["write"], tmp_path / "RUN", settings())


def test_two_runs_in_one_folder_are_refused(shards, settings, tmp_path):
    with RunDir(tmp_path).lock(), pytest.raises(RunLocked, match="works here"):
        shardsieve.clean(shards.patterns, tmp_path, settings())


def test_foreign_removed_shards_are_not_mixed_in(shards, settings, tmp_path):
    folder = tmp_path / "removed"
    folder.mkdir()
    (folder / "removed-000000.tar").write_bytes(b"somebody else's")
    with pytest.raises(DataError, match="holds removed shards of something else"):
        shardsieve.clean(shards.patterns, tmp_path / "RUN", settings(write__removed=str(folder)))
    assert (folder / "removed-000000.tar").read_bytes() == b"somebody else's"


def test_open_run_refuses_an_empty_folder(tmp_path):
    with pytest.raises(StaleArtefact, match="no run here"):
        shardsieve.open_run(Path(tmp_path))
