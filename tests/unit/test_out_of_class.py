"""Which images are taken for images of no class, on synthetic features."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.metrics import roc_auc_score

from shardsieve.selection.best import fold_of, select_best
from shardsieve.selection.neighbours import Neighbourhood
from shardsieve.selection.noise_fit import fit_noise_model, fit_with_foreign
from shardsieve.selection.noise_model import (
    Foreign,
    NoiseModel,
    class_probabilities,
    diffuse_transition,
    fit_transition,
    responsibilities,
)
from shardsieve.selection.out_of_class import first_guess, odds_of_one_vote, unlike_any
from shardsieve.selection.projection import fit_projection


def clean(features, label, n_classes, probe=None):
    projection = fit_projection(features)
    points = projection.apply(features).astype(np.float16)
    fold = fold_of(len(label), 5, 0)
    label = label.astype(np.int32)
    return select_best(points, projection.views, label, n_classes, fold, probe_logits=probe)


def clusters(n, n_clusters, seed, dim=40):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(1).standard_normal((n_clusters, dim))
    true = rng.integers(0, n_clusters, n)
    features = centres[true] + 0.9 * rng.standard_normal((n, dim))
    return features.astype(np.float32), true, rng


def with_foreign(noise, seed=0):
    features, true, rng = clusters(4000, 10, seed)
    foreign = true >= 8
    label = np.where(foreign, rng.integers(0, 8, len(true)), true)
    wrong = ~foreign & (rng.random(len(true)) < noise)
    label[wrong] = (label[wrong] + rng.integers(1, 8, wrong.sum())) % 8
    return features, true, label, foreign


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3])
def test_foreign_images_are_told_from_wrong_labels(noise):
    features, true, label, foreign = with_foreign(noise)
    found = clean(features, label, 8)
    assert roc_auc_score(foreign, found.foreign_N) > 0.97
    flagged = found.foreign_N > 0.5
    assert flagged[foreign].mean() > 0.8
    assert foreign[flagged].mean() > 0.9, "a wrong label alone is no sign of a foreign class"
    right = label == true
    assert roc_auc_score(right, found.p_clean_N) > 0.97
    assert abs((1 - found.p_clean_N.mean()) - (1 - right.mean())) < 0.04
    assert found.transition_KK.shape == (8, 8)
    assert found.suggested_N.max() < 8


def test_a_probe_of_the_classes_alone_does_not_hide_them():
    features, true, label, foreign = with_foreign(0.1)
    rng = np.random.default_rng(0)
    # Sure of a class everywhere, also on foreign images.
    guess = np.where(foreign, rng.integers(0, 8, len(true)), true)
    logits = (3 * np.eye(8)[guess] + rng.normal(0, 1, (len(true), 8))).astype(np.float32)
    found = clean(features, label, 8, probe=lambda rows: logits[rows])
    assert roc_auc_score(foreign, found.foreign_N) > 0.95


@pytest.mark.parametrize("noise", [0.0, 0.3, 0.8])
def test_none_are_found_where_nothing_is_foreign(noise):
    features, true, rng = clusters(3000, 6, 3)
    wrong = rng.random(len(true)) < noise
    label = np.where(wrong, rng.integers(0, 6, len(true)), true)
    assert (clean(features, label, 6).foreign_N == 0).all()


def test_one_confused_pair_is_not_foreign():
    features, true, rng = clusters(3000, 6, 4)
    label = np.where((true < 2) & (rng.random(len(true)) < 0.45), 1 - true, true)
    assert (clean(features, label, 6).foreign_N == 0).all()


def test_votes_of_the_folds_left_out_do_not_count():
    index = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]], np.int32)
    near = Neighbourhood(index, n_folds=4, n_classes=3, folder=None)
    label, fold = np.array([0, 1, 1, 2], np.int32), np.arange(4, dtype=np.int8)
    votes = near.label_votes(np.array([0, 3]), label, fold, (0, 1)).toarray()
    np.testing.assert_array_equal(votes, [[0, 1, 1], [0, 1, 0]])


def test_guess_goes_by_the_labels_around():
    odds = odds_of_one_vote(diffuse_transition(4, 0.7), np.full(4, 0.25))
    votes = csr_array([[24, 0, 0, 0], [17, 3, 2, 2], [6, 6, 6, 6], [0, 0, 0, 0]], dtype=float)
    own, noisy, mixed, nobody = first_guess(votes, odds)
    assert own < noisy < 0.03
    assert mixed > 0.8
    assert nobody == pytest.approx(0.03)


def test_guess_is_none_where_labels_say_nothing():
    votes = csr_array(np.random.default_rng(0).multinomial(24, np.full(4, 0.25), 50), dtype=float)
    guess = first_guess(votes, odds_of_one_vote(np.full((4, 4), 0.25), np.full(4, 0.25)))
    np.testing.assert_allclose(guess, 0.03)


def drawn(share, n=8000, n_classes=5):
    """Labels drawn from probabilities of K classes and a foreign one."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (1, n, n_classes + 1))
    bias = np.log(share * n_classes) if share else -np.inf
    probability = class_probabilities(logits, np.ones(1), bias)
    true = (rng.random((n, 1)) > probability.cumsum(1)).sum(1)
    rows = np.vstack([diffuse_transition(n_classes, 0.8), np.full(n_classes, 1 / n_classes)])
    label = (rng.random((n, 1)) > rows[true].cumsum(1)).sum(1)
    start = NoiseModel.start(np.full(1, 0.5), diffuse_transition(n_classes))
    return logits, label, true, start, Foreign(0.0, np.full(n_classes, 1 / n_classes))


def test_fit_finds_weight_bias_and_transition_matrix():
    logits, label, true, start, foreign = drawn(0.2)
    found = fit_noise_model(logits, label, replace(start, foreign=foreign))
    assert found.weight_M[0] == pytest.approx(1, rel=0.15)
    assert np.diag(found.transition_KK) == pytest.approx(np.full(5, 0.8), abs=0.05)
    posterior = responsibilities(found.probabilities(logits), label, found.rows_CK)
    assert posterior[:, -1].mean() == pytest.approx((true == 5).mean(), abs=0.02)
    again = fit_transition(found.probabilities(logits), label, found.rows_CK, 5, found.prior_KK)
    np.testing.assert_allclose(again, found.transition_KK, atol=0.01)


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_labels_say_whether_anything_is_foreign(share):
    logits, label, _, start, foreign = drawn(share)
    found = fit_with_foreign(logits, label, replace(start, foreign=foreign))
    assert (found is not None) == (share > 0)


def test_counts_what_is_above():
    told, notes = unlike_any(np.array([0.7, np.nan, 0.2], np.float32), 0.65)
    assert told == {"above": 0.65, "samples": 1}
    assert "1 samples" in notes[0]
    assert unlike_any(np.zeros(3, np.float32), 0.5) == ({"above": 0.5, "samples": 0}, [])
