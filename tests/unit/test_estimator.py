"""Cleaning arrays: scikit-learn's own checks, and what the numbers must be."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import make_blobs
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.utils.estimator_checks import parametrize_with_checks

from shardsieve import NoisyLabelFilter, clean_labels
from shardsieve.errors import ConfigError


@parametrize_with_checks([NoisyLabelFilter(), NoisyLabelFilter(folds=2, epochs=5)])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def noisy():
    """600 points of three classes, a fifth of them labelled wrong: features, given, true."""
    features, true = make_blobs(600, n_features=8, centers=3, cluster_std=3.0, random_state=0)
    rng = np.random.default_rng(0)
    given = true.copy()
    wrong = rng.random(600) < 0.2
    given[wrong] = (true[wrong] + 1 + rng.integers(2, size=wrong.sum())) % 3
    return features, given, true


def test_wrong_labels_are_found_and_corrected(noisy):
    features, given, true = noisy
    found = NoisyLabelFilter().fit(features, given)
    right = given == true
    assert roc_auc_score(right, found.p_clean_) > 0.97
    assert np.mean(right[found.keep_]) > 0.97
    assert np.mean(found.keep_[right]) > 0.9
    assert np.mean(found.suggested_labels_ == true) > 0.97
    assert found.noise_rate_ == pytest.approx(np.mean(~right), abs=0.05)
    assert found.noise_rate_ == pytest.approx(np.mean(1 - found.p_clean_))


def test_own_probabilities(noisy):
    features, given, true = noisy
    probs = cross_val_predict(LogisticRegression(), features, given, method="predict_proba")
    found = clean_labels(given, pred_probs=probs)
    assert np.mean((given == true)[found.keep]) > 0.97
    assert np.array_equal(found.suggested_labels, probs.argmax(axis=1))
    named = clean_labels(
        np.array(["ant", "bee", "cat"])[given], pred_probs=probs, classes=["ant", "bee", "cat"]
    )
    assert np.array_equal(named.p_clean, found.p_clean)
    assert set(named.suggested_labels) == {"ant", "bee", "cat"}
    # The order of the columns is the caller's.
    turned = clean_labels(given, pred_probs=probs[:, ::-1], classes=[2, 1, 0])
    np.testing.assert_allclose(turned.p_clean, found.p_clean, atol=1e-9)


def test_estimator_and_function_agree(noisy):
    features, given, _ = noisy
    names = np.array(["x", "y", "z"])[given]
    one = NoisyLabelFilter(random_state=3, folds=3).fit(features, names)
    other = clean_labels(names, features=features, seed=3, folds=3)
    assert np.array_equal(one.p_clean_, other.p_clean)
    assert np.array_equal(one.suggested_labels_, other.suggested_labels)
    again = NoisyLabelFilter(random_state=np.random.RandomState(1), folds=3).fit(features, names)
    same = NoisyLabelFilter(random_state=np.random.RandomState(1), folds=3).fit(features, names)
    assert np.array_equal(again.p_clean_, same.p_clean_)


def test_folds_judge_labels_that_were_not_seen():
    """On features that say nothing, a label can only be known by heart."""
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(150, 200)), rng.integers(3, size=150)
    seen = clean_labels(labels, features=features)
    held_out = clean_labels(labels, features=features, folds=3)
    assert np.mean(seen.suggested_labels == labels) > 0.8
    assert np.mean(held_out.suggested_labels == labels) < 0.5


def test_small_classes_say_how_they_were_judged(noisy):
    features, given, _ = noisy
    labels = given.astype(object)
    labels[:5] = 9
    found = clean_labels(labels.astype(int), features=features)
    assert set(found.fallbacks) == {9}
    assert "fewer than 20 samples" in found.fallbacks[9]


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({}, ValueError, "give features or pred_probs, one of the two"),
        ({"features": np.ones((4, 2)), "pred_probs": np.ones((4, 2))}, ValueError, "one of the tw"),
        ({"features": np.ones((3, 2))}, ValueError, "4 labels and 3 rows"),
        ({"features": np.full((4, 2), np.nan)}, ValueError, "features contains NaN"),
        ({"pred_probs": np.full((4, 2), 0.4)}, ValueError, "must be probabilities that sum to 1"),
        ({"pred_probs": [[2.0, -1.0]] * 4}, ValueError, "the smallest value is -1"),
        ({"pred_probs": np.ones((4, 1))}, ValueError, "label .*1.* of row 1 is none of the 1 cla"),
        ({"pred_probs": np.full((4, 2), 0.5), "classes": [0, 1, 2]}, ValueError, "3 classes, but"),
        ({"pred_probs": np.full((4, 2), 0.5), "classes": [0, 0]}, ValueError, "different names"),
        ({"features": np.ones((4, 2)), "tau": 2}, ConfigError, "select.tau = 2"),
        ({"features": np.ones((4, 2)), "recipe": "x"}, ConfigError, "for arrays there is turn"),
        ({"features": np.ones((4, 2)), "folds": 5}, ValueError, "folds = 5, but n_samples = 4"),
    ],
)
def test_what_does_not_fit_is_named(arguments, error, says):
    with pytest.raises(error, match=says):
        clean_labels([0, 1, 0, 1], **arguments)


def test_probabilities_need_no_torch():
    script = (
        "import sys, numpy as np, shardsieve\n"
        "shardsieve.clean_labels([0, 1] * 30, pred_probs=np.full((60, 2), 0.5))\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
