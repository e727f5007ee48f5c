import ctypes

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shardsieve_kernels.decode_normalize import PackedImages, decode_normalize
from shardsieve_kernels.testing import (
    IMAGE_CASES,
    TOLERANCE,
    ImageCase,
    assert_close,
    image_inputs,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY_LEVELS = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# Two numbers that round to neighbours differ by one unit in the last place.
LAST_PLACE = {"float16": 2.0**-10, "bfloat16": 2.0**-7}

by_name = {"ids": lambda case: case.name}


def resized(case, backend, filter="bicubic", dtype="float32", layout="NCHW"):
    pixels_P, shapes_B2, boxes_B4 = image_inputs(case)
    return decode_normalize(
        PackedImages(pixels_P, shapes_B2),
        boxes_B4=boxes_B4,
        size=case.size,
        mean=MEAN,
        std=STD,
        filter=filter,
        dtype=dtype,
        layout=layout,
        backend=backend,
    )


def as_float32(values, dtype):
    if dtype == "bfloat16":
        return torch.from_numpy(values).view(torch.bfloat16).float().numpy()
    return values.astype(np.float32)


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("case", IMAGE_CASES, **by_name)
def test_matches_reference(case, filter, backend):
    want = resized(case, "reference", filter)
    got = resized(case, backend, filter)
    assert_close("pixel", got, want, **TOLERANCE["decode_normalize"][backend])


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_small_formats_are_the_rounded_float32(dtype, layout, any_backend):
    case = IMAGE_CASES[4]
    exact = torch.from_numpy(resized(case, any_backend, layout=layout))
    got = as_float32(resized(case, any_backend, dtype=dtype, layout=layout), dtype)
    assert np.array_equal(got, exact.to(getattr(torch, dtype)).float().numpy())
    want = as_float32(resized(case, "reference", dtype=dtype, layout=layout), dtype)
    assert_close("pixel", got, want, rtol=LAST_PLACE[dtype], atol=2e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("std", [1e-6, 1e-3, 1.0, 1e3, 1e5, 1e9])
def test_rounding_is_that_of_torch_at_every_size(std, dtype, any_backend):
    levels = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(1, 16, 16, 3)
    arguments = {"size": (16, 16), "mean": (0.5, 0.0, 1.0), "std": (std,) * 3}
    got = decode_normalize(levels, **arguments, dtype=dtype, backend=any_backend)
    exact = decode_normalize(levels, **arguments, dtype="float32", backend=any_backend)
    want = torch.from_numpy(exact).to(getattr(torch, dtype)).float().numpy()
    assert np.array_equal(as_float32(got, dtype), want)


def test_channels_last_is_the_same_picture(any_backend):
    case = IMAGE_CASES[4]
    first = resized(case, any_backend)
    last = resized(case, any_backend, layout="NHWC")
    assert last.shape == (3, 32, 48, 3)
    assert np.array_equal(last.transpose(0, 3, 1, 2), first)


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("case", IMAGE_CASES[1:], **by_name)
def test_matches_pillow(case, filter, any_backend):
    pixels_P, shapes_B2, boxes_B4 = image_inputs(case)
    got = decode_normalize(
        PackedImages(pixels_P, shapes_B2),
        boxes_B4=boxes_B4,
        size=case.size,
        **GREY_LEVELS,
        filter=filter,
        dtype="float32",
        layout="NHWC",
        backend=any_backend,
    )
    start = 0
    for i, (height, width) in enumerate(case.shapes):
        image = pixels_P[start : start + 3 * height * width].reshape(height, width, 3)
        start += image.size
        top, left, bottom, right = boxes_B4[i]
        how = {"resample": FILTERS[filter], "box": (left, top, right, bottom)}
        # Floats in Pillow are neither rounded nor cut off on the way.
        channels = [Image.fromarray(image[:, :, c].astype(np.float32)) for c in range(3)]
        want = np.dstack([channel.resize(case.size[::-1], **how) for channel in channels])
        np.testing.assert_allclose(got[i], want.clip(0, 255), rtol=1e-5, atol=5e-3)
        if filter == "bilinear":
            # Bytes are rounded twice: half a level, widened by the second axis, and half a level.
            want = np.asarray(Image.fromarray(image).resize(case.size[::-1], **how), np.float32)
            assert np.abs(got[i] - want).max() <= 1.3


@pytest.mark.parametrize("filter", FILTERS)
def test_a_box_on_whole_pixels_that_is_not_scaled_is_copied(filter, any_backend):
    image = np.random.default_rng(0).integers(0, 256, (1, 30, 40, 3), np.uint8)
    got = decode_normalize(
        image,
        boxes_B4=np.array([[5.0, 7.0, 25.0, 31.0]]),
        size=(20, 24),
        **GREY_LEVELS,
        filter=filter,
        dtype="float32",
        layout="NHWC",
        backend=any_backend,
    )
    np.testing.assert_allclose(got[0], image[0, 5:25, 7:31], rtol=1e-6, atol=1e-4)


def test_a_batch_of_one_size_needs_no_packing(any_backend):
    images = np.random.default_rng(0).integers(0, 256, (5, 12, 10, 3), np.uint8)
    shapes_B2 = np.tile(np.array([12, 10]), (5, 1))
    settings = {"size": (8, 8), "mean": MEAN, "std": STD, "backend": any_backend}
    want = decode_normalize(PackedImages(images.ravel(), shapes_B2), **settings)
    assert np.array_equal(decode_normalize(images, **settings), want)
    flipped = images[:, ::-1, ::-1]
    assert np.array_equal(
        decode_normalize(flipped, **settings), decode_normalize(flipped.copy(), **settings)
    )


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4),
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.sampled_from(sorted(FILTERS)),
    st.booleans(),
)
def test_any_sizes_match_the_reference(shapes, size, filter, cropped):
    case = ImageCase("any", tuple(shapes), size, cropped)
    want = resized(case, "reference", filter)
    assert_close(
        "pixel", resized(case, "cpu", filter), want, **TOLERANCE["decode_normalize"]["cpu"]
    )
    assert want.min() >= -np.max(np.divide(MEAN, STD)) - 1e-5
    assert want.max() <= np.max((1 - np.array(MEAN)) / STD) + 1e-5


def test_images_do_not_see_each_other_and_bits_repeat(backend):
    case = IMAGE_CASES[7]
    pixels_P, _, boxes_B4 = image_inputs(case)
    together = resized(case, backend)
    assert resized(case, backend).tobytes() == together.tobytes()
    start = 0
    for i, (height, width) in enumerate(case.shapes):
        alone = decode_normalize(
            pixels_P[start : start + 3 * height * width].reshape(1, height, width, 3),
            boxes_B4=boxes_B4[i : i + 1],
            size=case.size,
            mean=MEAN,
            std=STD,
            dtype="float32",
            backend=backend,
        )
        start += 3 * height * width
        assert alone[0].tobytes() == together[i].tobytes()


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("case", IMAGE_CASES, **by_name)
def test_the_arithmetic_of_the_cuda_kernel(case, filter, host_twin):
    pixels_P, _, boxes_B4 = image_inputs(case)
    want = resized(case, "reference", filter, layout="NHWC")
    got = np.full_like(want, 123)
    scale_3 = (1 / (255 * np.array(STD))).astype(np.float32)
    shift_3 = (-np.array(MEAN) / STD).astype(np.float32)
    start = 0
    for i, (height, width) in enumerate(case.shapes):
        image = pixels_P[start : start + 3 * height * width].copy()
        start += image.size
        arrays = (boxes_B4[i], scale_3, shift_3, got[i])
        box, scale, shift, out = (ctypes.c_void_p(array.ctypes.data) for array in arrays)
        getattr(host_twin, f"decode_normalize_{filter}")(
            ctypes.c_void_p(image.ctypes.data), height, width, box, *case.size, scale, shift, out
        )
    assert_close("pixel", got, want, **TOLERANCE["decode_normalize"]["gpu"])


IMAGES = np.zeros((2, 4, 5, 3), np.uint8)
SHAPES = np.array([[4, 5], [4, 5]])
BAD_INPUTS = {
    "list": ({"images": [[0]]}, TypeError, "images must be a NumPy array, found list"),
    "float": ({"images": np.zeros((1, 2, 2, 3))}, TypeError, "images must have dtype uint8"),
    "one image": ({"images": IMAGES[0]}, ValueError, r"images must have 4 dim.*\(4, 5, 3\)"),
    "channels first": ({"images": np.zeros((1, 3, 4, 4), np.uint8)}, ValueError, "3 channels last"),
    "no pixels": ({"images": np.zeros((1, 0, 4, 3), np.uint8)}, ValueError, r"image 0 has.*\[0, 4"),
    "too few bytes": (
        {"images": PackedImages(IMAGES.ravel()[:-1], SHAPES)},
        ValueError,
        "describes 120 bytes of pixels, pixels_P has 119",
    ),
    "shapes": (
        {"images": PackedImages(IMAGES.ravel(), SHAPES[:, :1])},
        ValueError,
        "shapes_B2 must have two columns",
    ),
    "size": ({"size": (0, 4)}, ValueError, "height must be at least 1, found 0"),
    "size-float": ({"size": (4, 4.0)}, TypeError, "width must be an integer"),
    "mean": ({"mean": (0.0, np.nan, 0.0)}, ValueError, "mean must be three finite numbers"),
    "std": ({"std": (0.2, 0.0, 0.2)}, ValueError, "std must be above 0"),
    "filter": ({"filter": "nearest"}, ValueError, "filter must be one of bilinear, bicubic"),
    "dtype": ({"dtype": "float64"}, ValueError, "dtype must be one of float32, float16, bfloat16"),
    "layout": ({"layout": "CHWN"}, ValueError, "layout must be one of NCHW, NHWC"),
    "boxes": ({"boxes_B4": np.zeros((1, 4))}, ValueError, r"boxes_B4 must have shape \(2, 4\)"),
    "outside": (
        {"boxes_B4": np.array([[0, 0, 4, 5], [0, 0, 4, 5.5]])},
        ValueError,
        "box .* of image 1 is empty or not inside its 4 x 5",
    ),
    "empty": ({"boxes_B4": np.array([[0, 1, 4, 1.0], [0, 0, 4, 5]])}, ValueError, "of image 0"),
    "nan": ({"boxes_B4": np.full((2, 4), np.nan)}, ValueError, "of image 0 is empty or not inside"),
}


@pytest.mark.parametrize("bad", BAD_INPUTS.values(), ids=BAD_INPUTS.keys())
def test_bad_input_is_refused_alike(bad, any_backend):
    change, error, message = bad
    arguments = {"images": IMAGES, "size": (4, 4), "mean": MEAN, "std": STD, **change}
    with pytest.raises(error, match=message):
        decode_normalize(**arguments, backend=any_backend)
