"""Decoding: every format comes out upright and RGB, every damage as a ValueError."""

import io
import random
import struct
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch.utils.data import DataLoader

from shardsieve.errors import ShardError
from shardsieve.shards.dataset import ImageRows, collate
from shardsieve.shards.files import ShardFiles
from shardsieve.shards.images import decode

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
# Smooth, so that lossy formats stay close.
SMOOTH = np.stack(np.broadcast_arrays(*np.ogrid[0:200:40j, 40:240:56j], 90), -1).astype(np.uint8)


def encoded(image, kind, **options):
    out = io.BytesIO()
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    image.save(out, kind, **options)
    return out.getvalue()


def pixels(data):
    image = decode(data)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_are_exact(kind):
    assert np.array_equal(pixels(encoded(PIXELS, kind)), PIXELS)


def test_lossless_webp_is_exact():
    assert np.array_equal(pixels(encoded(PIXELS, "WEBP", lossless=True)), PIXELS)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_are_close(kind, options):
    assert np.abs(pixels(encoded(SMOOTH, kind, quality=95, **options)) - SMOOTH).mean() < 3


def test_cmyk_jpeg():
    image = Image.fromarray(SMOOTH).convert("CMYK")
    data = encoded(image, "JPEG", quality=98)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert np.abs(pixels(data) - SMOOTH).mean() < 5


def test_grey_and_bilevel():
    grey = PIXELS[..., 0]
    assert np.array_equal(pixels(encoded(grey, "PNG")), np.stack([grey] * 3, -1))
    bits = Image.fromarray(grey > 127)
    assert set(np.unique(pixels(encoded(bits, "PNG")))) == {0, 255}


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette(kind):
    image = Image.fromarray(SMOOTH).quantize(16)
    assert np.array_equal(pixels(encoded(image, kind)), np.asarray(image.convert("RGB")))


def test_palette_with_transparency():
    image = Image.fromarray(SMOOTH).quantize(16)
    expected = np.asarray(image.convert("RGB"))
    for transparency in (0, bytes(range(0, 160, 10))):
        data = encoded(image, "PNG", transparency=transparency)
        assert np.array_equal(pixels(data), expected)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_is_dropped_and_colours_stay(kind):
    alpha = np.full((40, 56, 1), 128, np.uint8)
    image = Image.fromarray(np.concatenate([PIXELS, alpha], -1))
    data = encoded(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    assert np.array_equal(pixels(data), PIXELS)


def test_grey_with_alpha():
    image = Image.fromarray(np.stack([PIXELS[..., 0], PIXELS[..., 1]], -1), "LA")
    assert np.array_equal(pixels(encoded(image, "PNG"))[..., 1], PIXELS[..., 0])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind):
    grey = np.linspace(0, 65535, 40 * 56).astype(np.uint16).reshape(40, 56)
    assert np.array_equal(pixels(encoded(grey, kind))[..., 0], grey >> 8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    data = encoded(PIXELS, "PNG", exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(pixels(data), expected)
    if orientation == 6:
        assert np.array_equal(pixels(data), np.rot90(PIXELS, -1))
    lossy = encoded(SMOOTH, "JPEG", exif=exif)
    assert decode(lossy).size == ((56, 40) if orientation < 5 else (40, 56))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_orientation_changes_nothing(orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    assert np.array_equal(pixels(encoded(PIXELS, "PNG", exif=exif)), PIXELS)


def test_damaged_exif_does_not_make_a_damaged_picture():
    orientation = struct.pack("<HHLHH", 0x112, 3, 1, 6, 0)
    unit_as_text = struct.pack("<HHL4s", 0x128, 2, 4, b"2\0\0\0")
    tiff = b"II*\0\x08\0\0\0" + b"\2\0" + orientation + unit_as_text + bytes(4)
    data = encoded(SMOOTH, "JPEG", quality=95, exif=b"Exif\0\0" + tiff)
    with pytest.raises(struct.error), Image.open(io.BytesIO(data)) as image:
        ImageOps.exif_transpose(image)
    assert np.abs(pixels(data) - np.rot90(SMOOTH, -1)).mean() < 3


@pytest.mark.parametrize("rubbish", [b"rubbish", b"II*\0\xff\xff\xff\xff", b""])
def test_rubbish_for_exif_is_no_orientation(rubbish):
    data = encoded(SMOOTH, "JPEG", quality=95, exif=b"Exif\0\0" + rubbish)
    assert np.abs(pixels(data) - SMOOTH).mean() < 3


def test_animated_webp_and_gif_give_the_first_frame():
    frames = [Image.new("RGB", (30, 20), colour) for colour in ((200, 10, 10), (10, 200, 10))]
    for kind, options in (("WEBP", {"lossless": True}), ("GIF", {}), ("PNG", {})):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        with Image.open(io.BytesIO(data)) as image:
            assert image.n_frames == 2
        assert np.array_equal(pixels(data)[0, 0], (200, 10, 10))


# Damage.


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 bytes that are no known image format"),
        (bytes(1000), "1000 bytes that are no known image format"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "44 bytes that are no known image"),
        (random.Random(0).randbytes(500), "500 bytes that are no known image format"),
        (encoded(PIXELS, "JPEG")[:2000], "damaged: .*truncated"),
        (encoded(PIXELS, "PNG")[:600], "damaged: "),
        (encoded(PIXELS, "WEBP")[:200], "no known image format|damaged: "),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "PostScript"),
    ],
    ids=["empty", "zeros", "html", "noise", "half-jpeg", "half-png", "half-webp", "postscript"],
)
def test_what_is_no_image_says_so(data, reason):
    with pytest.raises(ValueError, match=rf"^({reason})"):
        decode(data)


@pytest.mark.parametrize("limit", [PIXELS.size // 3 // 2 - 1, PIXELS.size // 3 - 1])
def test_decompression_bombs(monkeypatch, limit):
    # Pillow warns above its limit and raises above twice that; both end here.
    data = encoded(PIXELS, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match=r"^too many pixels: .*2240 pixels"):
        decode(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", PIXELS.size // 3)
    assert np.array_equal(pixels(data), PIXELS)


@pytest.mark.parametrize("size", [(1, 201), (30_000, 2)])
def test_strips_too_thin_to_be_resized(size):
    with pytest.raises(ValueError, match=rf"^{size[0]} x {size[1]} pixels: too thin a strip"):
        decode(encoded(Image.new("RGB", size), "PNG"))


def test_a_thin_strip_is_still_an_image():
    assert decode(encoded(Image.new("RGB", (1, 200)), "PNG")).size == (1, 200)


def test_errors_leave_the_warning_filters_alone():
    before = list(warnings.filters)
    with pytest.raises(ValueError, match="no known"):
        decode(b"nothing")
    assert warnings.filters == before


EXIF = Image.Exif()
EXIF[0x112], EXIF[0x10E], EXIF[0x11A] = 6, "somewhere", 72.0
VICTIMS = {
    "jpeg": encoded(PIXELS, "JPEG", exif=EXIF),
    "progressive": encoded(PIXELS, "JPEG", progressive=True, exif=EXIF),
    "png": encoded(PIXELS, "PNG", exif=EXIF),
    "palette": encoded(Image.fromarray(PIXELS).quantize(9), "PNG"),
    "webp": encoded(PIXELS, "WEBP", exif=EXIF),
    "lossless": encoded(PIXELS, "WEBP", lossless=True),
    "gif": encoded(PIXELS, "GIF"),
    "bmp": encoded(PIXELS, "BMP"),
    "avif": encoded(PIXELS, "AVIF", exif=EXIF),
    "mpo": encoded(PIXELS, "MPO", exif=EXIF),
    "dds": encoded(PIXELS, "DDS"),
}


@pytest.mark.parametrize("kind", VICTIMS)
@given(seed=st.integers(0, 2**32))
def test_damage_gives_an_image_or_a_value_error(kind, seed):
    rng = random.Random(seed)
    data = bytearray(VICTIMS[kind])
    reach = rng.choice([64, 400, len(data)])
    for _ in range(rng.choice([1, 2, 5, 30])):
        position = rng.randrange(min(reach, len(data)))
        change = rng.choice(["set", "set", "set", "cut", "insert"])
        if change == "set":
            data[position] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
        elif change == "cut" and len(data) > 100:
            del data[position : position + rng.randrange(1, 9)]
        elif change == "insert":
            data[position:position] = rng.randbytes(rng.randrange(1, 9))
    try:
        image = decode(bytes(data))
    except ValueError as error:
        assert str(error)
    else:
        assert image.mode == "RGB" and min(image.size) > 0


# Reading byte ranges of shards.


def shard_files(tmp_path, count, **options):
    paths = []
    for number in range(count):
        paths.append(tmp_path / f"{number}.tar")
        paths[-1].write_bytes(bytes([number]) * 100 + b"end")
    return ShardFiles(paths, **options)


def test_ranges(tmp_path):
    files = shard_files(tmp_path, 3)
    assert files.read(2, 0, 4) == b"\2\2\2\2"
    assert files.read(0, 99, 4) == b"\0end"
    assert files.read(1, 50, 0) == b""
    files.close()
    assert files.read(1, 100, 3) == b"end"
    files.close()


def open_files():
    from pathlib import Path

    return len(list(Path("/proc/self/fd").iterdir()))


def test_more_shards_than_may_be_open(tmp_path):
    files = shard_files(tmp_path, 10, most_open=3)
    before = open_files()
    for shard in [*range(10), *range(9, -1, -1), 0, 5, 0]:
        assert files.read(shard, 98, 5) == bytes([shard, shard]) + b"end"
        assert open_files() <= before + 3
    files.close()
    assert open_files() == before


def test_a_vanished_shard(tmp_path):
    files = shard_files(tmp_path, 2)
    (tmp_path / "1.tar").unlink()
    with pytest.raises(ShardError, match=r"1\.tar: No such file.*bring it back"):
        files.read(1, 7, 3)
    assert files.read(0, 0, 1) == b"\0"
    files.close()


def test_a_shrunken_shard(tmp_path):
    files = shard_files(tmp_path, 1)
    assert files.read(0, 0, 103)
    (tmp_path / "0.tar").write_bytes(bytes(60))
    with pytest.raises(ShardError, match=r"at byte 50: 20 bytes expected, 10 found.*run again"):
        files.read(0, 50, 20)
    files.close()


# Rows of the index.


class RandomPatch:
    """Draws from both generators that timm's transforms draw from."""

    def __call__(self, image):
        left = random.randrange(40)
        noise = torch.randint(0, 100, (1,)).item()
        return np.asarray(image.crop((left, 0, left + 8, 8))).transpose(2, 0, 1) // 2 + noise


def whole(image):
    return np.asarray(image).transpose(2, 0, 1)


def rows(tmp_path, contents, transform, seed=None):
    path = tmp_path / "shard.tar"
    path.write_bytes(b"".join(contents))
    sizes = np.array([len(content) for content in contents], np.int64)
    offsets = np.cumsum(sizes) - sizes
    return ImageRows([path], np.zeros(len(sizes), np.int32), offsets, sizes, transform, seed)


def test_rows_and_bad_rows(tmp_path):
    other = PIXELS[::-1].copy()
    contents = [encoded(PIXELS, "PNG"), b"html", encoded(other, "PNG"), b""]
    data = rows(tmp_path, contents, whole)
    assert len(data) == 4
    images, good, bad = collate([data[row] for row in (3, 2, 1, 0)])
    assert images.dtype == torch.uint8
    assert np.array_equal(images.numpy(), np.stack([whole(other), whole(PIXELS)]))
    assert good.tolist() == [2, 0]
    assert bad == [
        (3, None, "0 bytes that are no known image format"),
        (1, None, "4 bytes that are no known image format"),
    ]


def test_a_batch_without_a_good_row(tmp_path):
    data = rows(tmp_path, [b"x"], whole)
    images, good, bad = collate([data[0]])
    assert len(images) == len(good) == 0 and len(bad) == 1


def test_a_lost_shard_is_no_bad_row(tmp_path):
    data = rows(tmp_path, [encoded(PIXELS, "PNG")], whole)
    (tmp_path / "shard.tar").unlink()
    with pytest.raises(ShardError):
        data[0]


def drawn(tmp_path, seed, workers=0, order=range(12)):
    data = rows(tmp_path, [encoded(PIXELS, "PNG")] * 12, RandomPatch(), (seed, 0))
    loader = DataLoader(
        data, batch_size=4, sampler=list(order), num_workers=workers, collate_fn=collate
    )
    found = {}
    for images, good, bad in loader:
        assert not bad
        found |= dict(zip(good.tolist(), images.numpy().tolist(), strict=True))
    return [found[row] for row in range(12)]


def test_random_transforms_depend_on_seed_and_row_only(tmp_path):
    first = drawn(tmp_path, 7)
    torch.manual_seed(99)
    random.seed(99)
    assert drawn(tmp_path, 7, order=range(11, -1, -1)) == first
    assert drawn(tmp_path, 7, workers=2) == first
    different = {str(patch) for patch in first}
    assert len(different) >= 11
    assert sum(a == b for a, b in zip(first, drawn(tmp_path, 8), strict=True)) <= 1


def test_the_global_generators_are_not_disturbed(tmp_path):
    data = rows(tmp_path, [encoded(PIXELS, "PNG")], RandomPatch(), seed=(3, 1))
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    expected = (torch.rand(1).item(), random.random(), np.random.rand())  # noqa: NPY002
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    data[0]
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == expected  # noqa: NPY002
