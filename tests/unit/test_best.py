"""The recipe `best`: what each part must do, on small data with a known truth."""

import numpy as np
import pytest
from bench.noise import asymmetric, symmetric, true_transition
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score

from shardsieve.selection.best import fold_of, select_best
from shardsieve.selection.discriminant import ClassSums, discriminant
from shardsieve.selection.estimates import (
    class_weights,
    expected_noise,
    noise_rate,
    tau_for_purity,
    within_quotas,
)
from shardsieve.selection.noise_fit import fit_noise_model
from shardsieve.selection.noise_model import (
    NoiseModel,
    class_probabilities,
    diffuse_transition,
    fit_transition,
    image_dependence,
    responsibilities,
)
from shardsieve.selection.projection import View, fit_projection


def blobs(n=1500, n_classes=4, dim=80, spread=1.6, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, n)
    centres = rng.normal(0, spread / np.sqrt(10), (n_classes, dim)) * (np.arange(dim) < 20)
    scale = np.linspace(3, 0.3, dim)
    return (centres[labels] + rng.normal(0, 0.5, (n, dim))) * scale, labels


def clean(features, given, n_classes, *, probe=None, seed=0):
    projection = fit_projection(features)
    fold = fold_of(len(given), 5, seed)
    points = projection.apply(features).astype(np.float16)
    labels = given.astype(np.int32)
    return select_best(points, projection.views, labels, n_classes, fold, probe_logits=probe)


@pytest.mark.parametrize("kind", [symmetric, asymmetric])
def test_finds_wrong_labels_and_says_how_many(kind):
    features, truth = blobs()
    given = kind(truth, 0.4, 4, 0)
    right = given == truth
    found = clean(features, given, 4)
    assert roc_auc_score(right, found.p_clean_N) > 0.95
    assert abs((1 - found.p_clean_N.mean()) - (1 - right.mean())) < 0.03
    wrong = ~right
    assert (found.suggested_N[wrong] == truth[wrong]).mean() > 0.8
    realised = true_transition(given, truth, 4)
    assert np.abs(found.transition_KK - realised).sum(1).mean() < 0.12
    np.testing.assert_allclose(found.transition_KK.sum(1), 1)


def test_no_noise_is_called_no_noise():
    features, truth = blobs()
    found = clean(features, truth, 4)
    assert 1 - found.p_clean_N.mean() < 0.03
    assert (found.p_clean_N > 0.5).mean() > 0.97


def test_a_label_has_no_part_in_what_is_thought_of_its_sample():
    features, truth = blobs(n=600)
    given = symmetric(truth, 0.3, 4, 0)
    changed = given.copy()
    changed[7] = truth[7] if given[7] != truth[7] else (truth[7] + 1) % 4
    one, two = clean(features, given, 4), clean(features, changed, 4)
    labels = given[7], changed[7]
    # If its own label were seen, P(its label | x) would be high whichever it is.
    assert abs(one.agree_N[7] + two.agree_N[7] - 1) < 0.1
    assert (one.agree_N[7] > 0.5) == (labels[0] == truth[7])


def test_order_of_rows_changes_nothing_but_rounding():
    features, truth = blobs(n=500)
    given = symmetric(truth, 0.3, 4, 0).astype(np.int32)
    projection = fit_projection(features)
    points = projection.apply(features)
    fold = fold_of(500, 5, 0)
    order = np.random.default_rng(1).permutation(500)
    views = projection.views
    one = select_best(points, views, given, 4, fold, probe_logits=None)
    two = select_best(points[order], views, given[order], 4, fold[order], probe_logits=None)
    np.testing.assert_allclose(one.p_clean_N[order], two.p_clean_N, atol=0.01)


def test_a_class_without_samples_and_a_tiny_one():
    features, truth = blobs(n=400)
    truth = np.where(truth == 3, 2, truth)
    truth[:2] = 4
    found = clean(features, truth, 6)
    assert np.isfinite(found.p_clean_N).all()
    assert ((found.p_clean_N >= 0) & (found.p_clean_N <= 1)).all()
    assert not np.isin(found.suggested_N, [3, 5]).any()


def test_a_good_probe_is_listened_to():
    features, truth = blobs(spread=0.5)
    given = symmetric(truth, 0.4, 4, 0)
    right = given == truth
    rng = np.random.default_rng(0)
    oracle = (4 * np.eye(4)[truth] + rng.normal(0, 1, (len(truth), 4))).astype(np.float32)
    alone = clean(features, given, 4)
    helped = clean(features, given, 4, probe=lambda rows: oracle[rows])
    assert helped.opinions[-1] == "probe"
    assert helped.weight_M[-1] > 0.2
    assert roc_auc_score(right, helped.p_clean_N) > roc_auc_score(right, alone.p_clean_N) + 0.02


@pytest.mark.parametrize(("on_doubtful", "on_sure"), [(0.3, 0.3), (0.5, 0.1), (0.1, 0.5)])
def test_noise_that_depends_on_the_image_is_told_from_noise_that_does_not(on_doubtful, on_sure):
    rng = np.random.default_rng(0)
    probability = rng.dirichlet(np.full(5, 0.3), 20_000)
    truth = (probability.cumsum(1) > rng.random((20_000, 1))).argmax(1)
    sure = probability.max(1) > np.quantile(probability.max(1), 0.9)
    wrong = rng.random(20_000) < np.where(sure, on_sure, on_doubtful)
    given_N = np.where(wrong, (truth + rng.integers(1, 5, 20_000)) % 5, truth)
    rate = wrong.mean()
    transition = diffuse_transition(5, 1 - rate)
    found = image_dependence(probability, given_N, transition)
    assert abs(found) < 0.05 if on_doubtful == on_sure else abs(found) > 0.3
    assert found * (on_sure - on_doubtful) >= 0


def test_a_softened_posterior_is_less_sure_and_ranks_alike():
    rng = np.random.default_rng(0)
    probability = rng.dirichlet(np.full(2, 0.3), 500)
    given_N = rng.integers(0, 2, 500)
    sure = responsibilities(probability, given_N, diffuse_transition(2))[:, 0]
    soft = responsibilities(probability, given_N, diffuse_transition(2), 0.75)[:, 0]
    np.testing.assert_array_equal(np.argsort(sure), np.argsort(soft))
    assert (np.abs(soft - 0.5) <= np.abs(sure - 0.5) + 1e-12).all()
    np.testing.assert_allclose(np.log(soft / (1 - soft)), 0.75 * np.log(sure / (1 - sure)))


def test_two_folds_are_too_few():
    features, truth = blobs(n=60)
    with pytest.raises(ValueError, match="at least 3"):
        select_best(
            features,
            (View(np.ones(80, np.float32)),),
            truth.astype(np.int32),
            4,
            fold_of(60, 2, 0),
            probe_logits=None,
        )


def test_discriminant_is_linear_discriminant_analysis():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 4000)
    points = rng.normal(0, 1, (4000, 5)) + np.eye(3, 5)[labels] * 2
    points = (points - points.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(points.T))).T
    sums = ClassSums.empty(1, 2, 3, 5)
    for fold in range(2):
        mine = np.arange(fold, 4000, 2)
        sums.add(fold, points[mine].astype(np.float32), np.eye(3)[labels[mine]][:, None])
    found = discriminant(*sums.without(0), (View(np.ones(5, np.float32)),))
    logits = found.logits(points.astype(np.float32))[0]
    logits -= np.log(np.exp(logits).sum(1, keepdims=True))
    want = LinearDiscriminantAnalysis().fit(points, labels).predict_log_proba(points)
    np.testing.assert_allclose(logits, want, atol=0.02)


def test_folds_are_left_out_by_subtraction():
    rng = np.random.default_rng(0)
    points, labels = rng.normal(size=(90, 4)).astype(np.float32), rng.integers(0, 2, 90)
    sums = ClassSums.empty(1, 3, 2, 4)
    for fold in range(3):
        mine = np.arange(fold, 90, 3)
        sums.add(fold, points[mine], np.eye(2)[labels[mine]][:, None])
    means, share = sums.without(0, 0, 2)
    rest = np.arange(1, 90, 3)
    want = [points[rest][labels[rest] == label].mean(0) for label in range(2)]
    np.testing.assert_allclose(means, want, atol=1e-4)
    np.testing.assert_allclose(share[1], labels[rest].mean())


def test_transition_matrix_is_found_from_true_probabilities():
    rng = np.random.default_rng(0)
    transition = np.array([[0.7, 0.3, 0.0], [0.1, 0.8, 0.1], [0.0, 0.0, 1.0]])
    probability = rng.dirichlet(np.full(3, 0.2), 30_000)
    truth = (rng.random((30_000, 1)) > probability.cumsum(1)).sum(1)
    given = (rng.random((30_000, 1)) > transition[truth].cumsum(1)).sum(1).clip(0, 2)
    found = fit_transition(probability, given, diffuse_transition(3), 100, np.full((3, 3), 0.5))
    np.testing.assert_allclose(found, transition, atol=0.02)


def test_temperature_is_found_although_labels_are_wrong():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (1, 20_000, 4))
    probability = class_probabilities(logits, np.ones(1))
    truth = (rng.random((20_000, 1)) > probability.cumsum(1)).sum(1)
    given = symmetric(truth, 0.4, 4, 0)
    # Given three times too sure: a third is what makes them right.
    start = NoiseModel.start(np.full(1, 0.1), diffuse_transition(4))
    found = fit_noise_model(3 * logits, given, start)
    assert found.weight_M[0] == pytest.approx(1 / 3, rel=0.1)
    assert np.diag(found.transition_KK) == pytest.approx(np.full(4, 0.7), abs=0.05)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.floats(0.01, 5))
def test_p_clean_rises_with_every_opinion(seed, n_classes, step):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (3, 1, n_classes))
    weight = rng.uniform(0, 2, 3)
    transition = rng.dirichlet(np.ones(n_classes), n_classes)
    label = np.array([1])
    raised = logits.copy()
    raised[rng.integers(3), 0, 1] += step

    def p_clean(values):
        return responsibilities(class_probabilities(values, weight), label, transition)[0, 1]

    assert p_clean(raised) >= p_clean(logits) - 1e-12


def test_interval_holds_both_variances():
    p_clean = np.full(1000, 0.8)
    sure = noise_rate(p_clean, np.full(5, 0.2))
    shaky = noise_rate(p_clean, np.array([0.1, 0.15, 0.2, 0.25, 0.3]))
    assert sure.rate == pytest.approx(0.2)
    assert sure.low < 0.2 < sure.high
    assert shaky.high - shaky.low > sure.high - sure.low
    assert noise_rate(np.ones(10), np.zeros(5)).low == 0


def test_tau_for_purity_keeps_as_many_as_it_may():
    p_clean = np.array([1.0, 0.9, 0.9, 0.7, 0.2])
    tau = tau_for_purity(p_clean, 0.93)
    assert tau == 0.7
    assert p_clean[p_clean > tau].mean() >= 0.93
    assert tau_for_purity(p_clean, 0.5) == 0.0
    assert tau_for_purity(np.array([0.5, 0.4]), 0.9) is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 10), min_size=1, max_size=60), st.floats(0.05, 0.95))
def test_tau_for_purity_meets_its_target(tenths, purity):
    p_clean = np.array(tenths) / 10
    tau = tau_for_purity(p_clean, purity)
    best = p_clean.max()
    if tau is None:
        assert best < purity
    else:
        kept = p_clean[p_clean > tau]
        assert not len(kept) or kept.mean() >= purity - 1e-12


def test_expected_noise_by_tau():
    kept, noise = expected_noise(np.array([0.2, 0.6, 0.8, 1.0]), (0.0, 0.6, 1.0))
    assert kept == [1.0, 0.5, 0.0]
    assert noise[0] == pytest.approx(0.35)
    assert noise[1] == pytest.approx(0.1)
    assert np.isnan(noise[2])


def test_quotas():
    p_clean = np.array([0.9, 0.8, 0.7, 0.1, 0.3, 0.2])
    labels = np.array([0, 0, 0, 0, 1, 1], np.int32)
    kept, over = within_quotas(p_clean, labels, 3, 0.5, floor=1, cap=2)
    assert kept.tolist() == [True, True, False, False, True, False]
    assert over.tolist() == [False, False, True, False, False, False]


def test_class_weights_balance_the_kept():
    kept = np.array([10, 30, 0])
    weights = class_weights(kept)
    assert weights[2] == 0
    assert weights[0] * 10 == pytest.approx(weights[1] * 30)
    assert (weights * kept).sum() == pytest.approx(40)


def test_few_samples_of_many_classes_are_not_taken_for_noise():
    # 100 classes of 10: a transition matrix has 10,000 numbers, the data 1,000 labels.
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(100), 10)
    features = rng.normal(0, 0.35, (100, 800))[truth] + rng.normal(0, 1, (1000, 800))
    given_N = symmetric(truth, 0.4, 100, 0)
    right = given_N == truth
    found = clean(features, given_N, 100)
    assert roc_auc_score(right, found.p_clean_N) > 0.95
    assert 1 - found.p_clean_N.mean() < 0.52
