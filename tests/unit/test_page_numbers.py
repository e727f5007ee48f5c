"""Noise rates, purity, queues and the map, each against a count made another way."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardsieve.data.features import FeatureStore, write_shard
from shardsieve.page.feature_map import feature_map
from shardsieve.page.noise import (
    MATRIX_CLASSES,
    label_matrix,
    noise_rates,
    noise_summary,
    purity_by_tau,
    transition_matrix,
)
from shardsieve.page.queues import queues, suggested_labels
from shardsieve.page.verdicts import Verdicts


def verdicts_of(label, p_clean, pred=None, tau=0.6):
    p_clean_N = np.array(p_clean, float)
    judged_N = np.isfinite(p_clean_N)
    kept_N = judged_N & (p_clean_N > tau)
    return Verdicts(
        np.array(label, np.int32),
        np.array(label if pred is None else pred, np.int32),
        np.where(judged_N, 1.0, np.nan).astype(np.float32),
        p_clean_N,
        kept_N,
        judged_N & ~kept_N,
    )


def test_rates_and_intervals_of_a_poisson_binomial():
    rates = noise_rates(np.array([0, 0, 0, 0, 2]), np.array([1.0, 0.5, 0.5, 0.0, 1.0]), 3)
    assert rates[0] == pytest.approx([0.5, 0.5 - 1.959964 * 0.5**0.5 / 4, 0.5 + 0.3464758], 1e-5)
    assert np.isnan(rates[1]).all()
    assert rates[2].tolist() == [0, 0, 0]


def test_the_interval_covers_what_it_promises():
    rng = np.random.default_rng(0)
    p_clean = rng.beta(2, 0.7, 400)
    [[rate, low, high]] = noise_rates(np.zeros(400, int), p_clean, 1)
    drawn = (rng.random((4000, 400)) > p_clean).mean(1)
    assert rate == pytest.approx(drawn.mean(), abs=0.002)
    assert np.mean((low <= drawn) & (drawn <= high)) == pytest.approx(0.95, abs=0.015)


def test_summary_leaves_out_what_was_not_judged():
    summary = noise_summary(verdicts_of([0, 0, 1, 1], [0.9, 0.1, 0.7, np.nan]))
    assert summary["rate"] == pytest.approx((0.1 + 0.9 + 0.3) / 3)
    assert summary["left"] == pytest.approx(0.2)
    assert noise_summary(verdicts_of([0], [np.nan])) is None


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=30))
def test_purity_is_the_mean_of_what_is_above(p_clean):
    values = np.array(p_clean)
    for row in purity_by_tau(verdicts_of([0] * len(values), values), [0.0, 0.25, 0.6, 0.99]):
        above = values[values > row.tau]
        assert row.samples == len(above)
        assert row.kept == pytest.approx(len(above) / len(values))
        assert row.purity == (pytest.approx(above.mean()) if len(above) else None)


def test_matrix_counts_every_sample_of_a_class():
    label = [0, 0, 0, 0, 1, 1, 2, 0]
    looks = np.array([0, 0, 1, 2, 1, 1, 0, -1], np.int32)
    matrix = label_matrix(verdicts_of(label, [0.9] * 7 + [np.nan]), looks, ["a", "b", "c", "d"])
    assert matrix["names"] == ["a", "b", "c"], "a class without samples has no row"
    assert matrix["rows"] == [[0.5, 0.25, 0.25], [0, 1, 0], [1, 0, 0]]
    assert matrix["others"] == [0, 0, 0]


def test_matrix_of_many_classes_shows_the_most_confused():
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(100), 20)
    looks = label.copy()
    confused = np.isin(label, [7, 50, 93])
    looks[confused] = rng.integers(0, 100, confused.sum())
    names = [f"c{i}" for i in range(100)]
    matrix = label_matrix(verdicts_of(label, [0.9] * 2000), looks.astype(np.int32), names)
    assert len(matrix["names"]) == MATRIX_CLASSES
    assert {"c7", "c50", "c93"} <= set(matrix["names"])
    assert matrix["left_out"] == 76
    for row, others in zip(matrix["rows"], matrix["others"], strict=True):
        assert sum(row) + others == pytest.approx(1)
    assert matrix["others"][matrix["names"].index("c7")] > 0.3


def test_transition_shows_the_noisiest_classes():
    transition = np.eye(100)
    transition[7], transition[8] = 0.01, 0.0
    transition[8, [7, 90]] = 0.5
    matrix = transition_matrix(transition, [f"c{i}" for i in range(100)])
    assert len(matrix["names"]) == MATRIX_CLASSES and matrix["left_out"] == 76
    at = [matrix["names"].index(name) for name in ("c7", "c8")]
    assert matrix["rows"][at[1]][at[0]] == 0.5 and matrix["others"][at[1]] == pytest.approx(0.5)
    assert matrix["others"][at[0]] == pytest.approx(0.76)


def scores_of(verdicts, **more):
    n_samples = len(verdicts.label_N)
    unjudged = ~verdicts.judged_N
    word = np.where(unjudged, "no_image", np.where(verdicts.kept_N, "kept", "high_loss"))
    columns = {
        "reason": word,
        "margin": pa.array(np.linspace(-1, 1, n_samples), mask=unjudged),
        "duplicate_of": pa.nulls(n_samples, pa.int64()),
    }
    return pa.table(columns | more)


def test_queues_hold_what_they_say():
    verdicts = verdicts_of([0, 0, 1, 1, 0, 0], [0.9, 0.55, 0.05, 0.61, 0.99, np.nan],
                           [0, 1, 0, 1, 1, -1])  # fmt: skip
    found = {
        queue.name: queue.rows_R.tolist() for queue in queues(scores_of(verdicts), verdicts, 0.6)
    }
    assert found == {
        "suspicious": [2, 1],
        "borderline": [3, 1],
        "suggested": [1, 2, 4],
        "quarantined": [5],
    }


def test_columns_of_a_recipe_are_used_where_it_has_them():
    verdicts = verdicts_of([0, 0, 1, 1], [0.9] * 4)
    more = {
        "suggested_label": pa.array([0, 1, None, 0], pa.int32()),
        "suggestion_confidence": pa.array([0.9, 0.2, None, 0.8]),
        "duplicate_of": pa.array([None, 0, 0, None], pa.int64()),
    }
    scores = scores_of(verdicts, **more)
    assert suggested_labels(scores, verdicts).tolist() == [0, 1, -1, 0]
    found = {queue.name: queue.rows_R.tolist() for queue in queues(scores, verdicts, 0.5)}
    assert found == {"suggested": [3, 1], "duplicates": [0, 2]}


def store_of(folder, features):
    write_shard(folder, 0, features.astype(np.float16), np.zeros(len(features), np.uint8),
                [None] * len(features))  # fmt: skip
    return FeatureStore.open(folder, 1)


def test_map_keeps_neighbours_together_and_is_the_same_every_time(tmp_path):
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1, 2], 40)
    features = rng.normal(0, 1, (120, 16)) + 12 * np.eye(3, 16)[label]
    store = store_of(tmp_path, features)
    verdicts = verdicts_of(label, np.linspace(0, 1, 120))
    placed = feature_map(store, verdicts, ("a", "b", "c"), most=90, seed=3)
    again = feature_map(store, verdicts, ("a", "b", "c"), most=90, seed=3)
    assert np.array_equal(placed.x_P2, again.x_P2)
    assert (len(placed.x_P2), placed.of) == (90, 120)
    rows = np.rint((1 - placed.suspicion_P) * 119).astype(int)
    distance = np.linalg.norm(placed.x_P2[:, None] - placed.x_P2[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert np.mean(label[rows] == label[rows[distance.argmin(1)]]) > 0.95
    assert [name for name, *_ in placed.names] == ["a", "b", "c"]


@pytest.mark.parametrize("kind", ["few", "constant", "one direction"])
def test_map_of_next_to_nothing(tmp_path, kind):
    n_samples = 8 if kind == "few" else 40
    features = np.ones((n_samples, 6))
    if kind == "one direction":
        features[:, 0] = np.arange(n_samples)
    verdicts = verdicts_of([0] * n_samples, np.linspace(0, 1, n_samples))
    placed = feature_map(store_of(tmp_path, features), verdicts, ("a",), most=2000, seed=0)
    assert (placed is None) is (kind == "few")
    if placed is not None:
        assert placed.x_P2.shape == (n_samples, 2) and np.isfinite(placed.x_P2).all()


def test_leaks_and_images_of_no_class_have_galleries():
    verdicts = verdicts_of([0, 0, 1, 1], [0.9] * 4)
    more = {
        "out_of_class": pa.array([0.7, 0.6, None, 0.9], pa.float32()),
        "leak_of": pa.array(["a", None, "b", "c"]),
        "leak_label": pa.array([0, None, 0, None], pa.int32()),
    }
    scores = scores_of(verdicts, **more)
    found = {q.name: q.rows_R.tolist() for q in queues(scores, verdicts, 0.5, no_class=0.65)}
    assert found == {"no-class": [3, 0], "leaks": [2, 0, 3]}
