"""The fast decoder beside Pillow and timm: the same pixels within what is stated."""

import io
import threading
import warnings

import numpy as np
import pytest
from PIL import Image
from timm.data import create_transform

from shardsieve.shards import pixels as module
from shardsieve.shards.images import decode, quiet_pillow
from shardsieve.shards.pixels import Fit, exact_decoder, fast_decoder

SIDE = 64


def photo(width, height, seed=0):
    """Smooth shapes with edges and a little grain, as photos have."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    channels = [
        120 + 70 * np.sin(9 * x + k) * np.cos(7 * y) + 40 * ((x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.05)
        for k in range(3)
    ]
    grain = rng.normal(0, 3, (height, width, 1))
    return Image.fromarray(np.clip(np.stack(channels, -1) + grain, 0, 255).astype(np.uint8))


def encoded(image, kind="JPEG", **options):
    out = io.BytesIO()
    image.save(out, kind, **({"quality": 92} if kind == "JPEG" else {}) | options)
    return out.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    return exif


def both(data, filter="bicubic", crop_pct=0.875):
    fit = Fit.of(SIDE, crop_pct, "center", filter)
    transform = create_transform(
        (3, SIDE, SIDE), interpolation=filter, crop_pct=crop_pct, use_prefetcher=True
    )
    fast = fast_decoder(fit)(data)
    assert fast.shape == (3, SIDE, SIDE) and fast.dtype == np.uint8
    return np.abs(fast.astype(int) - exact_decoder(transform)(data))


SMALL = photo(133, 101)
LARGE = photo(1501, 1127)
WHOLE = {
    "photo": encoded(SMALL),
    "portrait": encoded(SMALL.transpose(Image.Transpose.ROTATE_90)),
    "square": encoded(SMALL.crop((0, 0, 101, 101))),
    "smaller than the input": encoded(SMALL.resize((40, 31))),
    "progressive": encoded(SMALL, progressive=True),
    "no subsampling": encoded(SMALL, subsampling=0),
    "grey": encoded(SMALL.convert("L")),
    "cmyk": encoded(SMALL.convert("CMYK")),
    "png": encoded(SMALL, "PNG"),
    "16 bits": encoded(
        Image.fromarray(np.asarray(SMALL.convert("L")).astype(np.uint16) * 256), "PNG"
    ),
    "alpha": encoded(SMALL.convert("RGBA"), "PNG"),
    "palette": encoded(SMALL.quantize(20), "PNG"),
    "webp": encoded(SMALL, "WEBP"),
    **{f"exif {n}": encoded(SMALL, exif=turned(n)) for n in range(1, 9)},
}


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("filter", ["bicubic", "bilinear"])
def test_full_size_within_two_levels(name, filter):
    difference = both(WHOLE[name], filter)
    assert difference.max() <= 2 and difference.mean() < 0.05


LARGE_ONES = {
    "odd size": encoded(LARGE),
    "grey": encoded(LARGE.convert("L")),
    "progressive": encoded(LARGE, progressive=True),
    "no subsampling": encoded(LARGE, subsampling=0),
    "turned, even size": encoded(LARGE.crop((0, 0, 1504, 1128)), exif=turned(6)),
    "turned, odd size": encoded(LARGE, exif=turned(6)),
}


@pytest.mark.parametrize("name", LARGE_ONES)
@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
def test_a_fraction_of_the_size_differs_by_half_a_level(name, crop_pct):
    difference = both(LARGE_ONES[name], crop_pct=crop_pct)
    assert difference.mean() < 0.5 and difference.max() <= 10


def test_large_photos_are_decoded_smaller(monkeypatch):
    asked = []
    real = module.simplejpeg.decode_jpeg

    def spy(data, **least):
        result = real(data, **least)
        asked.append(result.shape[:2])
        return result

    monkeypatch.setattr(module.simplejpeg, "decode_jpeg", spy)
    fast = fast_decoder(Fit(64, 64, "bicubic"))
    for name in ("odd size", "turned, odd size"):
        fast(LARGE_ONES[name])
    fast(WHOLE["photo"])
    assert asked == [(141, 188), (1127, 1501), (101, 133)]


def test_what_the_fast_decoder_refuses_goes_to_pillow():
    # Rubbish after a marker: a warning for libjpeg, and a picture all the same.
    data = encoded(SMALL)
    odd = data[:2] + b"\xff\xe1\x00\x08Exif\0\0" + data[2:20] + data[20:] + b"rubbish"
    with pytest.raises(ValueError, match=r"^damaged: .*truncated"):
        fast_decoder(Fit(64, 64, "bicubic"))(data[: len(data) // 2])
    assert both(odd).max() <= 2


def test_damage_in_the_middle_is_alike_on_both_paths():
    data = bytearray(encoded(SMALL))
    data[len(data) // 2 : len(data) // 2 + 2] = b"\xff\xd9"
    try:
        expected = np.asarray(decode(bytes(data)))
    except ValueError as error:
        with pytest.raises(ValueError, match=str(error)[:20]):
            fast_decoder(Fit(64, 64, "bicubic"))(bytes(data))
    else:
        assert expected.shape == (101, 133, 3)
        assert both(bytes(data)).max() <= 2


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xd8", b"\xff\xd8\xff\xe0rubbish", b"<html>", encoded(Image.new("RGB", (402, 2)))],
    ids=["empty", "two bytes", "no jpeg", "html", "strip"],
)
def test_refusals_are_pillows(data):
    with pytest.raises(ValueError) as theirs:
        decode(data)
    with pytest.raises(ValueError) as ours:
        fast_decoder(Fit(64, 64, "bicubic"))(data)
    assert str(ours.value) == str(theirs.value)


def test_bombs_are_refused_on_the_fast_path(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(ValueError, match=r"^too many pixels"):
        fast_decoder(Fit(64, 64, "bicubic"))(encoded(SMALL))


@pytest.mark.parametrize(
    ("crop_mode", "filter", "crop_pct"),
    [("squash", "bicubic", 0.9), ("center", "lanczos", 0.9), ("center", "bicubic", 1.1)],
)
def test_what_timm_does_otherwise_has_no_fast_way(crop_mode, filter, crop_pct):
    assert Fit.of(64, crop_pct, crop_mode, filter) is None


def test_threads_leave_the_warning_filters_alone():
    before = list(warnings.filters)
    data = WHOLE["palette"]
    start = threading.Barrier(4)

    def work():
        start.wait()
        for _ in range(20):
            decode(data)

    with quiet_pillow():
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert warnings.filters != before
    assert warnings.filters == before
