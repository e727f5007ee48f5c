"""Inputs, tolerances and comparisons that the tests and the benchmarks share, a file per op."""

from shardsieve_kernels.testing import class_gmm, decode_normalize, softmax_stats
from shardsieve_kernels.testing.assertions import assert_close, assert_same_decision
from shardsieve_kernels.testing.class_gmm import GMM_CASES, GmmCase, gmm_inputs, web_sizes
from shardsieve_kernels.testing.decode_normalize import IMAGE_CASES, ImageCase, image_inputs
from shardsieve_kernels.testing.softmax_stats import SOFTMAX_CASES, SoftmaxCase, softmax_inputs
from shardsieve_kernels.testing.tar_scan import TAR_CASES, TarCase, tar_inputs

# Per op and backend: how far a float field may be from the reference's.
TOLERANCE: dict[str, dict[str, dict[str, float]]] = {
    "class_gmm": class_gmm.TOLERANCE,
    "decode_normalize": decode_normalize.TOLERANCE,
    "softmax_stats": softmax_stats.TOLERANCE,
}

__all__ = [
    "GMM_CASES",
    "IMAGE_CASES",
    "SOFTMAX_CASES",
    "TAR_CASES",
    "TOLERANCE",
    "GmmCase",
    "ImageCase",
    "SoftmaxCase",
    "TarCase",
    "assert_close",
    "assert_same_decision",
    "gmm_inputs",
    "image_inputs",
    "softmax_inputs",
    "tar_inputs",
    "web_sizes",
]
