"""The functions for vector loops against NumPy in extended precision."""

import numpy as np

from shardsieve_kernels._vector import artanh_third, exp_nonpositive


def test_exp_nonpositive_is_as_exact_as_it_says():
    rng = np.random.default_rng(0)
    x_N = -np.concatenate([rng.uniform(0, 2, 2000), rng.uniform(0, 700, 2000)])
    got_N = np.array([exp_nonpositive(x) for x in x_N])
    want_N = np.exp(x_N.astype(np.longdouble))
    assert (np.abs(got_N / want_N - 1) <= 1.6e-14 + 2e-16 * np.abs(x_N)).all()
    assert exp_nonpositive(0.0) == exp_nonpositive(-0.0) == 1.0
    assert 0 < exp_nonpositive(-np.inf) == exp_nonpositive(-700.0) < 1e-303


def test_artanh_third_is_as_exact_as_it_says():
    x_N = np.concatenate([np.logspace(-300, 0, 2000), np.linspace(0.01, 1, 2000)])
    got_N = np.array([2 * artanh_third(x / (2 + x)) for x in x_N])
    want_N = np.log1p(x_N.astype(np.longdouble))
    assert (np.abs(got_N / want_N - 1) <= 2.5e-15).all()
    assert artanh_third(0.0) == 0.0
