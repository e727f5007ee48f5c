"""Nearest neighbours and their votes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardsieve.selection.neighbours import Neighbourhood, nearest


def brute(points, n_neighbours):
    unit = points.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -2)
    return np.argsort(-cosine, axis=1, kind="stable")[:, : min(n_neighbours, len(points) - 1)]


@given(n=st.integers(2, 60), dim=st.integers(2, 300), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_are_the_nearest_others(n, dim, seed):
    points = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float16)
    found = nearest(points, 5)
    assert found.shape == (n, min(5, n - 1))
    np.testing.assert_array_equal(found, brute(points[:, :256], 5))


def test_one_sample_has_none():
    assert nearest(np.ones((1, 4), np.float16)).shape == (1, 0)


def test_a_copy_is_a_neighbour_and_the_sample_itself_is_not():
    points = np.repeat(np.random.default_rng(0).normal(size=(20, 8)), 3, axis=0)
    found = nearest(points.astype(np.float16), 2)
    for row, others in enumerate(found):
        assert row not in others
        np.testing.assert_array_equal(others // 3, row // 3)


def test_lists_find_most_of_what_all_comparisons_find(tmp_path):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(40, 64))[rng.integers(0, 40, 6000)] + rng.normal(size=(6000, 64))
    points = points.astype(np.float16)
    exact = nearest(points, 10)
    by_lists = nearest(points, 10, folder=tmp_path, exact_samples=1000)
    shared = [len(np.intersect1d(a, b)) / 10 for a, b in zip(exact, by_lists, strict=True)]
    assert np.mean(shared) > 0.8
    assert (by_lists >= 0).all()
    assert (tmp_path / "neighbours.npy").is_file()


@pytest.mark.parametrize("mapped", [False, True])
def test_votes_are_those_of_other_folds_under_the_own_fold(tmp_path, mapped):
    index = np.array([[1, 2], [0, 2], [0, 1]], np.int32)
    near = Neighbourhood(index, 2, 3, tmp_path if mapped else None)
    fold = np.array([0, 1, 1])
    # Rows 1 and 2 are judged under fold 0, row 0 under fold 1; elsewhere there is no posterior.
    posterior = np.zeros((3, 2, 3))
    posterior[1, 0] = [0.7, 0.2, 0.1]
    posterior[2, 0] = [0.5, 0.5, 0.0]
    posterior[0, 1] = [0.0, 0.25, 0.75]
    near.remember(np.arange(3), posterior)
    votes = np.array([[1.2, 0.7, 0.1], [0.0, 0.25, 0.75], [0.0, 0.25, 0.75]]) + 5 / 3
    want = np.log(votes / votes.sum(1, keepdims=True))
    np.testing.assert_allclose(near.logits(np.arange(3), fold), want, atol=2e-3)


def test_of_many_classes_the_largest_parts_are_kept():
    index = np.array([[1], [0]], np.int32)
    near = Neighbourhood(index, 2, 50, None)
    posterior = np.zeros((2, 2, 50))
    posterior[:, :, 10:20] = np.linspace(0.19, 0.01, 10)
    near.remember(np.arange(2), posterior)
    shares = np.exp(near.logits(np.array([0]), np.array([0])))[0]
    np.testing.assert_allclose(shares.sum(), 1, rtol=1e-5)
    assert list(np.argsort(-shares)[:8]) == list(range(10, 18))


def test_agreement_leaves_gaps_out():
    # Row 0 has one neighbour and a gap, which is filled with the row itself; row 2 has gaps only.
    near = Neighbourhood(np.array([[1, 0], [0, 2], [2, 2]], np.int32), 2, 3, None)
    found = near.agreement(np.arange(3), np.array([4, 5, 5], np.int32))
    np.testing.assert_array_equal(found, np.array([0, 0.5, np.nan], np.float32))
