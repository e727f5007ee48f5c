"""What comes out: a model that says how it is used, figures, and predictions for other shards."""

from __future__ import annotations

import json
import sys
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import add_member
from tunable import run_job
from typer.testing import CliRunner

import shardsieve
from shardsieve.cli import app
from shardsieve.engines.processes import Group
from shardsieve.errors import BackboneError, ConfigError
from shardsieve.models.tuned import load_tuned
from shardsieve.tuning.evaluation import Reading


@pytest.fixture(scope="module")
def tuned(few, checkpoint, tmp_path_factory):
    from dataclasses import replace

    from tunable import make_job

    # The first colours are learned in a few steps; labels are right.
    job = make_job(few, checkpoint, tmp_path_factory.mktemp("tuned") / "tune", epochs=3, lr=3e-3)
    job = replace(job, validation=job.samples)
    return job, run_job(job)


def test_the_model_says_how_it_is_used(tuned):
    import timm

    job, _ = tuned
    path = job.out / "model.safetensors"
    with safe_open(path, "pt") as file:
        about = file.metadata()
    assert about["architecture"] == "test_resnet" and about["image_size"] == "32"
    assert json.loads(about["classes"]) == ["0", "1", "2"]
    assert json.loads(about["label_mapping"]) == {"0": 0, "1": 1, "2": 2}
    hub = json.loads(about["timm"])
    assert hub["architecture"] == "test_resnet" and hub["num_classes"] == 3
    network = timm.create_model(
        hub["architecture"],
        num_classes=hub["num_classes"],
        checkpoint_path=str(path),
        pretrained_cfg_overlay=hub["pretrained_cfg"],
    )
    assert network.pretrained_cfg["input_size"] == [3, 32, 32]
    ours = load_tuned(path, torch.device("cpu"))
    image = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(network.eval()(image), ours.network(image))


def test_the_best_epoch_and_the_last_are_kept(tuned):
    job, result = tuned
    rows = result.facts["metrics"]
    accuracies = [row["validation_accuracy"] for row in rows]
    assert result.facts["saved_epoch"] == 1 + int(np.argmax(accuracies))
    epochs = []
    for name in ("model", "last"):
        with safe_open(job.out / f"{name}.safetensors", "pt") as file:
            epochs.append(int(file.metadata()["epoch"]))
    assert epochs == [result.facts["saved_epoch"], 3]
    assert [json.loads(row) for row in (job.out / "metrics.jsonl").read_text().splitlines()] == rows


def test_events_for_tensorboard(job, monkeypatch):
    from shardsieve.tuning.metrics import refuse_without_tensorboard

    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'shardsieve\[tensorboard\]'"):
        refuse_without_tensorboard()
    monkeypatch.undo()
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made = job(epochs=6, tensorboard=True)
    result = run_job(made)
    events = EventAccumulator(str(made.out / "tensorboard")).Reload()
    told = [(event.step, event.value) for event in events.Scalars("epoch/training_loss")]
    wanted = [row["training_loss"] for row in result.facts["metrics"]]
    assert [step for step, _ in told] == [5, 10, 15, 20, 25, 30]
    assert [value for _, value in told] == pytest.approx(wanted)
    assert [event.step for event in events.Scalars("step/loss")] == [20]


def test_predictions_agree_with_the_network_one_by_one(tuned, few, tmp_path):
    job, result = tuned
    done = shardsieve.predict(
        job.out / "model.safetensors",
        few.patterns,
        tmp_path / "p.parquet",
        precision="fp32",
        batch_size=7,
        workers=0,
    )
    rows = pq.read_table(done.path).to_pylist()
    assert [row["key"] for row in rows] == [f"s{s}-{n:03d}" for s in range(3) for n in range(25)]
    assert [row["label"] for row in rows] == [few.given[row["key"]] for row in rows]
    assert done.samples == done.labelled == 75 and done.unreadable == 0
    best = max(row["validation_accuracy"] for row in result.facts["metrics"])
    assert done.accuracy == pytest.approx(best)
    model = load_tuned(job.out / "model.safetensors", torch.device("cpu"))
    group = Group(torch.device("cpu"))
    from shardsieve.progress import Silent

    reading = Reading(model.preprocessing, "fp32", group, 0, Silent())
    ((pixels, _, _),) = reading.batches(
        job.samples, [np.arange(75)], model.preprocessing.evaluation()
    )
    with torch.inference_mode():
        p = model.network(model.preprocessing.normalise(pixels, group.device)).softmax(1).numpy()
    assert [row["predicted"] for row in rows] == p.argmax(1).tolist()
    np.testing.assert_allclose([row["probability"] for row in rows], p.max(1), rtol=1e-4)
    np.testing.assert_allclose([row["entropy"] for row in rows], -(p * np.log(p)).sum(1), atol=1e-4)
    for row in rows:
        assert row["top"][0] == row["predicted"] and sorted(row["top"]) == [0, 1, 2]
        assert sum(row["top_probabilities"]) == pytest.approx(1, abs=1e-5)
        assert row["predicted_class"] == str(row["predicted"])
        assert row["shard"].endswith(f"train-000{row['key'][1]}.tar") and row["reason"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["p.parquet"]


def test_bad_samples_are_rows_with_a_reason(tuned, few, tmp_path):
    job, _ = tuned
    with tarfile.open(few.paths[0]) as source:
        image = source.extractfile("s0-000.jpg").read()
    shard = tmp_path / "new.tar"
    with tarfile.open(shard, "w") as tar:
        for key, members in {
            "broken": {"jpg": image[:300], "cls": b"1"},
            "fine": {"jpg": image, "cls": b"1"},
            "foreign": {"jpg": image, "cls": b"9"},
            "none": {"cls": b"1"},
            "unlabelled": {"jpg": image},
        }.items():
            for extension, content in members.items():
                add_member(tar, f"{key}.{extension}", content)
    run = tmp_path / "RUN"
    (run / "tune").mkdir(parents=True)
    (run / "tune" / "model.safetensors").write_bytes((job.out / "model.safetensors").read_bytes())
    out = tmp_path / "new" / "p.parquet"
    told = CliRunner().invoke(app, ["predict", str(run), str(shard), "-o", str(out), "--json"])
    assert told.exit_code == 0, told.output
    rows = {row["key"]: row for row in pq.read_table(out).to_pylist()}
    assert {key: row["reason"] for key, row in rows.items()} == {
        "broken": "undecodable",
        "fine": None,
        "foreign": "label_outside",
        "none": "no_image",
        "unlabelled": None,
    }
    assert rows["broken"]["detail"] and rows["broken"]["predicted"] is None
    assert rows["broken"]["top"] is None and rows["none"]["probability"] is None
    seen = [rows[key]["probability"] for key in ("fine", "foreign", "unlabelled")]
    assert seen[0] == seen[1] == seen[2]
    assert rows["unlabelled"]["label"] is None and rows["foreign"]["label"] is None
    assert json.loads(told.stdout[told.stdout.index("{") :])["unreadable"] == 2


def test_no_model_of_ours_says_so(tmp_path, few):
    other = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, other)
    with pytest.raises(BackboneError, match="no architecture and no classes"):
        shardsieve.predict(other, few.patterns, tmp_path / "p.parquet")
    with pytest.raises(BackboneError, match="there is no such model"):
        shardsieve.predict(tmp_path / "gone", few.patterns, tmp_path / "p.parquet")
    other.write_bytes(b"nothing")
    with pytest.raises(BackboneError, match="not a safetensors file"):
        shardsieve.predict(other, few.patterns, tmp_path / "p.parquet")
