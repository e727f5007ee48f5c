"""Images of the tests of decode_normalize, and its tolerances."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# How far a float field may be from the reference's, per backend.
TOLERANCE = {
    "cpu": {"rtol": 2e-6, "atol": 1e-5},
    "gpu": {"rtol": 2e-6, "atol": 2e-5},
}


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
