"""Which images are taken for images of no class, on synthetic features."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from shardsieve.selection.best import fold_of, select_best
from shardsieve.selection.out_of_class import out_of_class, unlike_any
from shardsieve.selection.projection import fit_projection

ABOVE = 0.6


def scores_of(features, label, n_classes):
    projection = fit_projection(features)
    points = projection.apply(features).astype(np.float16)
    cleaning = select_best(
        points,
        projection.views,
        label.astype(np.int32),
        n_classes,
        fold_of(len(label), 5, 0),
        probe_logits=None,
    )
    return out_of_class(cleaning.agree_N, cleaning.margin_N, n_classes)


def clusters(n, n_clusters, seed, dim=40):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(1).standard_normal((n_clusters, dim))
    true = rng.integers(0, n_clusters, n)
    features = centres[true] + 0.9 * rng.standard_normal((n, dim))
    return features.astype(np.float32), true, rng


def test_flags_images_of_foreign_classes_and_few_wrong_labels():
    features, true, rng = clusters(4000, 10, 0)
    foreign = true >= 8
    label = np.where(foreign, rng.integers(0, 8, len(true)), true)
    wrong = ~foreign & (rng.random(len(true)) < 0.1)
    label[wrong] = (label[wrong] + rng.integers(1, 8, wrong.sum())) % 8
    score = scores_of(features, label, 8)
    assert roc_auc_score(foreign, score) > 0.95
    flagged = score > ABOVE
    assert flagged[foreign].mean() > 0.1
    assert foreign[flagged].mean() > 0.7, "a wrong label alone is no sign of a foreign class"
    assert flagged[~foreign].mean() < 0.01


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_flags_next_to_nothing_where_nothing_is_foreign(noise):
    features, true, rng = clusters(3000, 6, 3)
    wrong = rng.random(len(true)) < noise
    label = np.where(wrong, rng.integers(0, 6, len(true)), true)
    assert (scores_of(features, label, 6) > ABOVE).mean() < 0.01


def test_ends_of_the_scale():
    agree = np.array([1.0, 0.1, 0.0, 0.0], np.float32)
    # Sure and right; all ten alike; sure of another; spread over nine others.
    margin = np.array([1.0, 0.0, -1.0, -1 / 9], np.float32)
    found = out_of_class(agree, margin, 10)
    spread = np.log(9) / np.log(10)
    assert found == pytest.approx([0, 0.74, 0.5, (spread + 1) / 2], abs=0.01)
    assert (out_of_class(agree, margin, 1) == 0).all()
    assert unlike_any(np.array([0.7, np.nan, 0.2], np.float32), 0.65)[0]["samples"] == 1
