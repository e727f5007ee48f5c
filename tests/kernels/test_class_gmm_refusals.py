"""What class_gmm refuses, alike on every backend: the checks are in one place."""

import numpy as np
import pytest

from shardsieve_kernels.class_gmm import class_gmm, mixture_p_clean

LOSSES_N, LABELS_N = np.ones(4, np.float32), np.zeros(4, np.int32)
BAD_INPUTS = {
    "losses-list": ({"losses_N": [1.0]}, TypeError, "losses_N must be a NumPy array, found list"),
    "losses-2d": ({"losses_N": np.ones((4, 1))}, ValueError, r"losses_N must have 1 dim.*\(4, 1\)"),
    "losses-int": ({"losses_N": np.ones(4, int)}, TypeError, "losses_N must have dtype float16"),
    "nan": ({"losses_N": np.array([1, 2, np.nan, 3])}, ValueError, "losses_N .*found nan at row 2"),
    "inf": ({"losses_N": np.array([1, 2, 3, np.inf])}, ValueError, "losses_N .*found inf at row 3"),
    "huge": ({"losses_N": np.array([1, -1e200, 3, 4])}, ValueError, "losses_N .*at most 1e.100"),
    "labels-2d": ({"labels_N": np.zeros((4, 1), int)}, ValueError, "labels_N must have 1 dim"),
    "labels-float": ({"labels_N": np.zeros(4)}, TypeError, "labels_N must have dtype int32"),
    "length": (
        {"labels_N": np.zeros(3, int)},
        ValueError,
        "losses_N has 4 rows but labels_N has 3",
    ),
    "label-high": ({"labels_N": np.array([0, 9, 0, 0])}, ValueError, "labels_N .*9 at row 1"),
    "label-low": ({"labels_N": np.array([0, -2, 0, 0])}, ValueError, "labels_N .*-2 at row 1"),
    "classes": ({"n_classes": 0}, ValueError, "n_classes must be at least 1, found 0"),
    "classes-float": ({"n_classes": 2.0}, TypeError, "n_classes must be an integer, found float"),
    "preset": ({"preset": "fast"}, ValueError, "preset must be one of converged.*found 'fast'"),
    "reg-covar": ({"reg_covar": -1.0}, ValueError, "reg_covar must be a finite.*found -1.0"),
    "reg-covar-nan": ({"reg_covar": np.nan}, ValueError, "reg_covar must be a finite.*found nan"),
    "min-samples": ({"min_samples": 1}, ValueError, "min_samples must be at least 2, found 1"),
}


@pytest.mark.parametrize("bad", BAD_INPUTS.values(), ids=BAD_INPUTS.keys())
def test_bad_input_is_refused_alike(bad, any_backend):
    change, error, message = bad
    arguments = {"losses_N": LOSSES_N, "labels_N": LABELS_N, "n_classes": 2, **change}
    with pytest.raises(error, match=message):
        class_gmm(**arguments, backend=any_backend)


@pytest.mark.parametrize("part", ["weights_2", "means_2", "variances_2"])
@pytest.mark.parametrize("value", [[np.nan, np.nan], [1.0], [np.inf, 1.0]])
def test_a_mixture_not_fitted_is_refused(part, value):
    arguments = {"weights_2": [0.5, 0.5], "means_2": [0.0, 1.0], "variances_2": [1.0, 1.0]}
    arguments[part] = value
    with pytest.raises(ValueError, match=f"{part} must be two finite numbers"):
        mixture_p_clean(np.ones(3), **{key: np.array(v) for key, v in arguments.items()})
