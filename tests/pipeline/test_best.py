"""The recipe `best` through the whole line."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import shardsieve
from shardsieve.data.table import read_ipc
from shardsieve.errors import ConfigError
from shardsieve.explain import explain, in_words
from shardsieve.models import held_out
from shardsieve.selection.best import select_best
from shardsieve.stages import select


@pytest.fixture(scope="module")
def finished(shards, settings, tmp_path_factory):
    config = settings(select__recipe="best", select__folds=3)
    return shardsieve.clean(shards.patterns, tmp_path_factory.mktemp("best"), config)


def test_finds_planted_noise_and_suggests_labels(finished, shards):
    scores = finished.scores.to_pydict()
    kept = dict(zip(scores["key"], scores["kept"], strict=True))
    wrong = shards.wrong
    assert np.mean([not kept[key] for key in wrong]) > 0.9
    assert np.mean([kept[key] for key in kept if key not in wrong]) > 0.9
    suggested = dict(zip(scores["key"], scores["suggested_label"], strict=True))
    assert np.mean([suggested[key] == shards.true[key] for key in wrong]) > 0.9
    assert not {
        "agreement", "margin_unseen", "suggestion_confidence", "neighbour_agreement", "distance"
    } - scores.keys()  # fmt: skip
    assert np.median(scores["distance"]) == pytest.approx(1, abs=1e-3)


def test_record_holds_rate_and_matrix(finished, shards):
    facts = json.loads((finished.path / "select" / "stage.json").read_text())["facts"]
    rate = facts["noise_rate"]
    truth = len(shards.wrong) / len(shards.given)
    assert rate["low"] <= truth <= rate["high"]
    assert list(facts["expected_noise_by_tau"].values()) == sorted(
        facts["expected_noise_by_tau"].values(), reverse=True
    )
    matrix = read_ipc(finished.path / "select" / "transition.arrow")
    given = np.array(matrix.column("given").to_pylist())
    np.testing.assert_allclose(given.sum(1), 1)
    classes = finished.classes.to_pydict()
    assert set(classes["rule"]) == {"posterior"}
    np.testing.assert_allclose(1 - np.diag(given), classes["noise_true"])
    assert not (finished.path / "select" / "scratch").exists()


def test_another_tau_takes_the_judgement_over(finished, shards, settings, tmp_path, monkeypatch):
    values = {"select__recipe": "best", "select__folds": 3, "select__tau": 0.95}
    anew = shardsieve.clean(shards.patterns, tmp_path / "anew", settings(**values))
    again = tmp_path / "again"
    shutil.copytree(finished.path, again)
    monkeypatch.setattr(held_out, "train_held_out", None)
    shardsieve.clean(shards.patterns, again, settings(**values))
    for name in ("scores.parquet", "classes.parquet", "transition.arrow", "clean.idx"):
        one, two = (run / "select" / name for run in (anew.path, again))
        assert one.read_bytes() == two.read_bytes(), name
    facts = [
        json.loads((run / "select" / "stage.json").read_text())["facts"]
        for run in (anew.path, again)
    ]
    assert facts[0] == facts[1]


def test_other_folds_judge_anew(finished, shards, settings, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(finished.path, again)
    config = settings(select__recipe="best", select__folds=4)
    other = shardsieve.clean(shards.patterns, again, config)
    assert other.scores.column("p_clean") != finished.scores.column("p_clean")


def test_quotas_and_target_purity(shards, settings, tmp_path):
    config = settings(
        select__recipe="best", select__folds=3, select__cap=20, select__target_purity=0.99
    )
    run = shardsieve.clean(shards.patterns, tmp_path, config)
    scores = run.scores.to_pydict()
    reasons = [str(reason) for reason in scores["reason"]]
    labels = np.array(scores["label"])[np.array(scores["kept"])]
    assert np.bincount(labels).tolist() == [20, 20, 20]
    assert "over_quota" in reasons
    manifest = run.manifest.counts
    assert manifest.kept + sum(manifest.removed.values()) == manifest.samples_in


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"select__cap": 3, "select__floor": 5}, "below floor"),
        ({"select__recipe": "turn", "select__target_purity": 0.9}, "recipe = best"),
    ],
)
def test_settings_that_contradict_each_other(settings, values, message):
    with pytest.raises(ConfigError, match=message):
        settings(**values)


def test_images_of_no_class_are_told(finished, shards, settings, tmp_path, monkeypatch):
    def some_are_foreign(*args, **kwargs):
        cleaning = select_best(*args, **kwargs)
        return replace(cleaning, foreign_N=np.linspace(0, 0.9, len(cleaning.p_clean_N), dtype="f4"))

    monkeypatch.setattr(select, "select_best", some_are_foreign)
    config = settings(select__recipe="best", select__folds=4)
    run = shardsieve.clean(shards.patterns, tmp_path / "run", config)
    score = run.scores.column("out_of_class").to_numpy()
    record = run.manifest.stages["select"]
    count = int((score > 0.5).sum())
    assert count > 0
    assert record.facts["out_of_class"] == {"above": 0.5, "samples": count}
    assert any(f"{count} samples probably show none of the classes" in n for n in record.notes)
    assert "Perhaps of no class" in run.report.read_text("utf-8")
    keys = run.scores.column("key").to_pylist()
    first, last = (keys[row] for row in (score.argmax(), score.argmin()))
    assert "none of the classes" in in_words(explain(run.path, first)[0])
    assert "none of the classes" not in in_words(explain(run.path, last)[0])
    # Another tau takes them over as they were; a new judgement would find none.
    monkeypatch.undo()
    config = settings(select__recipe="best", select__folds=4, select__tau=0.9)
    again = shardsieve.clean(shards.patterns, run.path, config)
    np.testing.assert_array_equal(again.scores.column("out_of_class").to_numpy(), score)


def test_none_are_told_where_all_show_a_class(finished):
    assert (finished.scores.column("out_of_class").to_numpy() == 0).all()
    assert finished.manifest.stages["select"].facts["out_of_class"]["samples"] == 0
