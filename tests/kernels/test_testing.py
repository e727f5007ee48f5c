"""The comparisons must be able to fail, or no test of a kernel can."""

import numpy as np
import pytest

from shardsieve_kernels.testing import GmmCase, assert_close, assert_same_decision, gmm_inputs


def test_close_names_the_field_and_the_worst_element():
    want = np.array([1.0, 2.0, np.nan])
    assert_close("means", want + 1e-9, want, rtol=1e-6, atol=0)
    with pytest.raises(AssertionError, match=r"means\[1\]: got 2.1, reference 2.0 .*1 of 3 differ"):
        assert_close("means", want + np.array([0, 0.1, 0]), want, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "got",
    [np.array([1.0, 2.0], np.float32), np.array([1.0]), np.array([1.0, np.nan])],
    ids=["dtype", "shape", "nan"],
)
def test_close_refuses(got):
    with pytest.raises(AssertionError, match="loss"):
        assert_close("loss", got, np.array([1.0, 2.0]), rtol=1e-6, atol=1e-6)


def test_same_decision_forgives_only_near_the_threshold():
    assert_same_decision(np.array([0.61]), np.array([0.5999]), threshold=0.6, slack=1e-3)
    with pytest.raises(AssertionError, match=r"1 of 2 decisions differ at 0\.6; first at row 1"):
        assert_same_decision(
            np.array([0.9, 0.61]), np.array([0.8, 0.59]), threshold=0.6, slack=1e-3
        )


def test_inputs_come_from_their_seed():
    case = GmmCase("two", (30, 40))
    losses_N, labels_N = gmm_inputs(case)
    again_N, _ = gmm_inputs(case)
    other_N, _ = gmm_inputs(case, seed=1)
    assert np.array_equal(losses_N, again_N)
    assert not np.array_equal(losses_N, other_N)
    assert np.bincount(labels_N).tolist() == [30, 40]
