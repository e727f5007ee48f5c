"""The recipe `turn`: who is kept, which class falls back, and the balanced draw."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardsieve.selection.turn import (
    BY_CLASS,
    BY_POOLED,
    KEEP_ALL,
    balanced_draw,
    mixture_losses,
    select_turn,
)


def noisy_class(rng, n_clean=400, n_noisy=150):
    return np.concatenate([rng.gamma(2, 0.1, n_clean), rng.normal(4, 0.8, n_noisy)])


def select(losses_by_class, **options):
    labels = np.concatenate(
        [np.full(len(x), label, np.int32) for label, x in enumerate(losses_by_class)]
    )
    losses = np.concatenate(losses_by_class).astype(np.float32)
    settings = {"preset": "converged", "min_samples": 20, "reg_covar": 5e-4, "backend": "cpu"}
    selection = select_turn(losses, labels, len(losses_by_class), **{**settings, **options})
    return selection, losses, labels


def test_separates_two_plain_modes():
    rng = np.random.default_rng(0)
    selection, losses, _ = select([noisy_class(rng), noisy_class(rng)])
    assert (selection.rule_K == BY_CLASS).all()
    kept = selection.p_clean_N > 0.6
    assert kept[losses < 1].mean() > 0.97
    assert kept[losses > 2.5].mean() < 0.02


def test_class_without_noise_is_judged_by_all_classes_and_kept():
    rng = np.random.default_rng(0)
    # One Gaussian is all there is: its own mixture would cut it in half.
    selection, _, labels = select([noisy_class(rng), rng.normal(0.2, 0.02, 300)])
    assert selection.rule_K.tolist() == [BY_CLASS, BY_POOLED]
    assert "one mode" in selection.why_K[1]
    assert (selection.p_clean_N[labels == 1] > 0.6).mean() > 0.99


def test_wholly_wrong_class_is_not_kept_whole():
    rng = np.random.default_rng(0)
    selection, _, labels = select([noisy_class(rng), rng.normal(4, 0.3, 300)])
    assert selection.rule_K[1] == BY_POOLED
    assert (selection.p_clean_N[labels == 1] > 0.6).mean() < 0.05


@pytest.mark.parametrize(
    ("losses", "why"),
    [(np.full(50, 0.3), "all losses are equal"), (np.array([0.1, 5.0]), "fewer than 20 samples")],
    ids=["equal", "too-few"],
)
def test_degenerate_class_names_its_fallback(losses, why):
    rng = np.random.default_rng(0)
    selection, _, labels = select([noisy_class(rng), losses])
    assert selection.why_K == ("", why)
    own = selection.p_clean_N[labels == 1]
    assert (own[losses < 1] > 0.6).all()
    assert (own[losses > 3] < 0.4).all()


def test_nothing_to_tell_apart_keeps_everything():
    selection, _, _ = select([np.full(50, 0.2), np.full(50, 0.2)])
    assert (selection.rule_K == KEEP_ALL).all()
    assert (selection.p_clean_N == 1).all()
    assert "all classes together" in selection.why_K[0]


def test_empty_class_is_no_fallback():
    rng = np.random.default_rng(0)
    selection, _, _ = select([noisy_class(rng), np.empty(0)])
    assert selection.rule_K.tolist() == [BY_CLASS, BY_CLASS]
    assert selection.why_K[1] == "no sample"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(30, 300), st.floats(0.01, 10))
def test_order_of_samples_changes_nothing(seed, n, scale):
    rng = np.random.default_rng(seed)
    losses = (np.abs(rng.normal(0, scale, n)) + (rng.random(n) < 0.3) * 3).astype(np.float32)
    labels = rng.integers(0, 3, n).astype(np.int32)
    order = rng.permutation(n)
    options = {"preset": "converged", "min_samples": 10, "reg_covar": 5e-4, "backend": "cpu"}
    one = select_turn(losses, labels, 3, **options)
    two = select_turn(losses[order], labels[order], 3, **options)
    assert np.array_equal(one.p_clean_N[order], two.p_clean_N)
    assert ((one.p_clean_N >= 0) & (one.p_clean_N <= 1)).all()


def test_gce_follows_from_cross_entropy():
    p = np.array([1e-9, 0.2, 0.9, 1.0])
    found = mixture_losses((-np.log(p)).astype(np.float32), "gce", 0.7)
    np.testing.assert_allclose(found, (1 - p**0.7) / 0.7, rtol=1e-6, atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any),
    st.one_of(st.none(), st.integers(1, 60)),
    st.integers(0, 99),
)
def test_balanced_draw(counts, at_most, seed):
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    drawn, per_class, absent = balanced_draw(
        labels, len(counts), at_most=at_most, rng=np.random.default_rng(seed)
    )
    present = [label for label, count in enumerate(counts) if count]
    assert absent == [label for label, count in enumerate(counts) if not count]
    assert len(set(drawn.tolist())) == len(drawn), "without replacement"
    assert np.bincount(labels[drawn], minlength=len(counts)).tolist() == [
        per_class if label in present else 0 for label in range(len(counts))
    ]
    smallest = min(counts[label] for label in present)
    limit = smallest if at_most is None else max(1, min(smallest, at_most // len(present)))
    assert per_class == limit


def test_balanced_draw_is_uniform_within_a_class():
    labels = np.array([0] * 10 + [1] * 3, np.int32)
    seen = np.zeros(13)
    for seed in range(600):
        drawn, _, _ = balanced_draw(labels, 2, at_most=None, rng=np.random.default_rng(seed))
        seen[drawn] += 1
    # Binomial(600, 0.3): five standard deviations are 56.
    assert np.abs(seen[:10] - 180).max() < 57
    assert (seen[10:] == 600).all()
