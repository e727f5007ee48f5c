"""Inputs, tolerances and comparisons that the tests and the benchmarks share.

Shapes: N samples, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

# Per op and backend: how far a float field may be from the reference's, and the reference's from
# another float64 computation. The GPU's softmax_stats adds in f32 if the logits are f16 or f32.
TOLERANCE: dict[str, dict[str, dict[str, float]]] = {
    "softmax_stats": {
        "reference": {"rtol": 3e-7, "atol": 1e-7},
        "cpu": {"rtol": 3e-7, "atol": 1e-7},
        "gpu": {"rtol": 2e-6, "atol": 1e-6},
    },
    "decode_normalize": {
        "cpu": {"rtol": 2e-6, "atol": 1e-5},
        "gpu": {"rtol": 2e-6, "atol": 2e-5},
    },
    "class_gmm": {"cpu": {"rtol": 1e-6, "atol": 1e-6}},
}


@dataclass(frozen=True)
class SoftmaxCase:
    """Shape and kind of the logits of one test."""

    name: str
    n_samples: int
    n_classes: int
    dtype: Literal["float16", "float32", "float64"] = "float32"
    scale: float = 4.0
    """Standard deviation of the logits."""
    bad_rows: bool = False
    """Put NaN and infinities into some rows."""


SOFTMAX_CASES = (
    SoftmaxCase("no-samples", 0, 5),
    SoftmaxCase("one-sample", 1, 10),
    SoftmaxCase("one-class", 17, 1),
    SoftmaxCase("two-classes-f64", 301, 2, dtype="float64"),
    SoftmaxCase("odd", 1237, 37),
    SoftmaxCase("half-over-two-blocks", 5003, 11, dtype="float16"),
    SoftmaxCase("thousand-classes", 211, 1000),
    SoftmaxCase("sure", 503, 10, scale=200.0),
    SoftmaxCase("bad-rows", 509, 9, bad_rows=True),
)


def softmax_inputs(case: SoftmaxCase, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Make logits, most of which favour the label, and labels.

    Args:
        case: one of SOFTMAX_CASES.
        seed: the same seed gives the same arrays.

    Returns:
        logits (N, K) of case.dtype, labels (N,) i32.
    """
    rng = np.random.default_rng([seed, case.n_samples, case.n_classes])
    logits_NK = rng.normal(0.0, case.scale, (case.n_samples, case.n_classes))
    labels_N = rng.integers(0, case.n_classes, case.n_samples, dtype=np.int32)
    # Two in three samples agree with their label; otherwise every row would be a hard one.
    agree_N = np.flatnonzero(rng.random(case.n_samples) < 2 / 3)
    logits_NK[agree_N, labels_N[agree_N]] += 3 * case.scale
    if case.bad_rows:
        for row, value in enumerate((np.nan, np.inf, -np.inf)):
            logits_NK[row :: 3 * 13, row % case.n_classes] = value
    return logits_NK.astype(case.dtype), labels_N


@dataclass(frozen=True)
class ImageCase:
    """Images and the size they are brought to in one test."""

    name: str
    shapes: tuple[tuple[int, int], ...]
    """Height and width of each image."""
    size: tuple[int, int]
    cropped: bool = False
    """Give every image a box, with edges between pixels."""


IMAGE_CASES = (
    ImageCase("no-images", (), (4, 4)),
    ImageCase("one-pixel", ((1, 1),), (3, 2)),
    ImageCase("to-one-pixel", ((31, 17),), (1, 1)),
    ImageCase("same-size", ((24, 32), (24, 32)), (24, 32)),
    ImageCase("smaller", ((97, 64), (33, 150), (224, 224)), (32, 48)),
    ImageCase("much-smaller", ((701, 503),), (16, 16)),
    ImageCase("larger", ((7, 5), (20, 19)), (41, 23)),
    ImageCase("boxes", ((97, 64), (33, 150), (20, 20)), (24, 24), cropped=True),
    ImageCase("strips", ((1, 300), (300, 1)), (8, 8)),
    ImageCase("over-a-block", ((9, 8),) * 131, (5, 6)),
)


def image_inputs(case: ImageCase, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make images with edges and noise, packed, and boxes.

    Args:
        case: one of IMAGE_CASES.
        seed: the same seed gives the same arrays.

    Returns:
        pixels (P,) u8, shapes (B, 2) i32, boxes (B, 4) f64.
    """
    rng = np.random.default_rng([seed, len(case.shapes), *case.size])
    pixels = [np.zeros(0, np.uint8)]
    boxes_B4 = np.zeros((len(case.shapes), 4))
    for i, (height, width) in enumerate(case.shapes):
        levels = rng.integers(0, 2, (-(-height // 6), -(-width // 6), 3)) * 255
        image = np.kron(levels, np.ones((6, 6, 1), int))[:height, :width]
        noisy = np.where(rng.random(image.shape) < 0.5, image, rng.integers(0, 256, image.shape))
        pixels.append(noisy.astype(np.uint8).ravel())
        boxes_B4[i] = 0, 0, height, width
        if case.cropped:
            boxes_B4[i] *= rng.uniform(0.55, 0.95)
            boxes_B4[i] += np.tile((height, width), 2) * rng.uniform(0.0, 0.05)
    shapes_B2 = np.array(case.shapes, np.int32).reshape(-1, 2)
    return np.concatenate(pixels), shapes_B2, boxes_B4


@dataclass(frozen=True)
class GmmCase:
    """Class sizes and kind of the losses of one test."""

    name: str
    sizes_K: tuple[int, ...]
    kind: Literal["two-modes", "one-mode", "atoms", "equal", "outlier"] = "two-modes"

    @property
    def n_classes(self) -> int:
        """K, counting classes without a sample."""
        return len(self.sizes_K)


def web_sizes(n_classes: int, mean: float, seed: int = 0) -> tuple[int, ...]:
    """Draw class sizes as uneven as those of images found by a web search."""
    rng = np.random.default_rng(seed)
    shares_K = rng.lognormal(-0.18, 0.6, n_classes)
    return tuple(int(size) for size in np.maximum(mean * shares_K, 1))


def _long_tail(n_classes: int) -> tuple[int, ...]:
    return tuple(int(4000 / rank) for rank in range(1, n_classes + 1))


GMM_CASES = (
    GmmCase("no-samples", (0, 0, 0)),
    GmmCase("one-sample", (1,)),
    GmmCase("one-class", (2001,)),
    GmmCase("odd-sizes", (21, 101, 333, 1025)),
    GmmCase("empty-classes", (0, 200, 0, 0, 150, 0)),
    GmmCase("tiny-classes", tuple(range(1, 30))),
    GmmCase("five-thousand-classes", _long_tail(5000)),
    GmmCase("web", web_sizes(60, 800.0)),
    GmmCase("all-equal", (50, 100), kind="equal"),
    GmmCase("atoms", (400, 900, 1501), kind="atoms"),
    GmmCase("one-mode", (300, 1000, 2500), kind="one-mode"),
    GmmCase("outlier", (300, 1000), kind="outlier"),
)


def gmm_inputs(case: GmmCase, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Make losses and labels, in a random order.

    Args:
        case: one of GMM_CASES.
        seed: the same seed gives the same arrays.

    Returns:
        losses (N,) f32 in nats, not negative; labels (N,) i32.
    """
    rng = np.random.default_rng([seed, sum(case.sizes_K), case.n_classes])
    labels_N = np.repeat(np.arange(case.n_classes, dtype=np.int32), case.sizes_K)
    parts = [_class_losses(rng, size, case.kind) for size in case.sizes_K]
    losses_N = np.concatenate(parts).astype(np.float32)
    order = rng.permutation(len(labels_N))
    return losses_N[order], labels_N[order]


def _class_losses(rng: np.random.Generator, size: int, kind: str) -> np.ndarray:
    if kind == "equal":
        return np.full(size, 2.3)
    if kind == "one-mode":
        return np.abs(rng.normal(1.0, 0.1, size))
    if kind == "outlier":
        losses = np.abs(rng.normal(1.0, 0.1, size))
        losses[0] = 500.0
        return losses
    noisy = rng.random(size) < rng.uniform(0.1, 0.6)
    high = rng.normal(rng.uniform(3.0, 6.0), 1.2, size)
    losses = np.abs(np.where(noisy, high, rng.lognormal(-0.3, 0.6, size)))
    if kind == "atoms":
        losses = np.round(losses * 4) / 4
        losses[rng.random(size) < 0.3] = 0.0
    return losses


def assert_close(
    field: str, got: np.ndarray, want: np.ndarray, *, rtol: float, atol: float
) -> None:
    """Require two arrays to have one dtype and shape and to agree to a tolerance, NaN for NaN.

    Raises:
        AssertionError: they do not; names the field and the worst element.
    """
    assert got.dtype == want.dtype, f"{field}: dtype {got.dtype}, reference {want.dtype}"
    assert got.shape == want.shape, f"{field}: shape {got.shape}, reference {want.shape}"
    close = np.isclose(got, want, rtol=rtol, atol=atol, equal_nan=True)
    if close.all():
        return
    with np.errstate(invalid="ignore"):
        excess = np.abs(got.astype(np.float64) - want) - atol - rtol * np.abs(want)
    excess[close] = -np.inf
    excess[~close & np.isnan(excess)] = np.inf
    at = tuple(int(i) for i in np.unravel_index(int(np.argmax(excess)), got.shape))
    raise AssertionError(
        f"{field}{list(at)}: got {got[at]}, reference {want[at]} (rtol={rtol}, atol={atol}; "
        f"{int((~close).sum())} of {got.size} differ)"
    )


def assert_same_decision(
    got_N: np.ndarray, want_N: np.ndarray, *, threshold: float, slack: float
) -> None:
    """Require two posteriors to keep the same samples, save those within slack of the threshold.

    Raises:
        AssertionError: a sample is kept by one alone; names the first.
    """
    differ_N = (got_N > threshold) != (want_N > threshold)
    differ_N &= np.abs(want_N - threshold) > slack
    if differ_N.any():
        row = int(np.argmax(differ_N))
        raise AssertionError(
            f"{int(differ_N.sum())} of {len(want_N)} decisions differ at {threshold}; first at row "
            f"{row}: got {got_N[row]}, reference {want_N[row]}"
        )
