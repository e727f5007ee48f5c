"""Threads whose results come in order, with back-pressure, and errors that say where."""

import io
import threading
import time

import numpy as np
import pytest
from PIL import Image

from shardsieve.errors import ShardError
from shardsieve.shards.pixels import Fit, fast_decoder
from shardsieve.shards.prefetch import ImageBatches, in_order

FIT = Fit(16, 16, "bilinear")


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_results_keep_their_order(threads):
    def slow_first(number):
        time.sleep(0.02 if number % 3 == 0 else 0)
        return number * number

    found = list(in_order(slow_first, range(20), threads=threads, ahead=5))
    assert found == [number * number for number in range(20)]


def test_no_more_is_begun_than_may_be_ahead():
    begun = []
    results = in_order(begun.append, range(100), threads=2, ahead=4)
    for taken in range(1, 6):
        next(results)
        time.sleep(0.05)
        # The four that are ahead, beside what the caller took.
        assert len(begun) == taken + 4


def test_an_error_comes_in_its_turn_and_ends_the_work():
    begun = []

    def work(number):
        begun.append(number)
        if number == 3:
            raise ShardError("three")
        return number

    results = in_order(work, range(1000), threads=2, ahead=4)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ShardError, match="three"):
        next(results)
    assert len(begun) < 12
    assert not [thread for thread in threading.enumerate() if "shardsieve" in thread.name]


def test_a_caller_that_stops_leaves_no_thread():
    results = in_order(lambda number: number, range(1000), threads=2, ahead=4)
    next(results)
    results.close()
    assert not [thread for thread in threading.enumerate() if "shardsieve" in thread.name]


def image(value):
    out = io.BytesIO()
    Image.new("RGB", (20, 20), (value, value, value)).save(out, "PNG")
    return out.getvalue()


def batches(tmp_path, contents, decoder=None):
    path = tmp_path / "shard.tar"
    path.write_bytes(b"".join(contents))
    sizes = np.array([len(content) for content in contents], np.int64)
    return ImageBatches(
        [path],
        np.zeros(len(sizes), np.int32),
        np.cumsum(sizes) - sizes,
        sizes,
        decoder or fast_decoder(FIT),
        side=16,
        key_of=lambda row: f"key-{row}",
    )


def test_a_batch_of_good_and_bad_rows(tmp_path):
    images = batches(tmp_path, [image(10), b"html", image(30), b"", image(50)])
    pixels, rows, refused = images(np.array([4, 3, 2, 1, 0]))
    assert rows.tolist() == [4, 2, 0]
    assert pixels.shape == (3, 3, 16, 16)
    assert pixels.permute(0, 2, 3, 1).is_contiguous()
    assert pixels[:, 0, 5, 5].tolist() == [50, 30, 10]
    assert refused == [
        (3, "0 bytes that are no known image format"),
        (1, "4 bytes that are no known image format"),
    ]
    assert images.clock.seconds["decode_s"] > 0 and images.clock.seconds["read_s"] > 0


def test_a_batch_of_bad_rows_is_empty(tmp_path):
    pixels, rows, refused = batches(tmp_path, [b"x"])(np.array([0]))
    assert len(pixels) == len(rows) == 0 and len(refused) == 1


def test_a_lost_shard_names_shard_and_key(tmp_path):
    images = batches(tmp_path, [image(10)] * 8)
    (tmp_path / "shard.tar").unlink()
    with pytest.raises(ShardError, match=r"^sample key-3: .*shard\.tar: No such file"):
        list(in_order(images, np.split(np.arange(3, 8), 5), threads=2, ahead=3))


def test_a_bug_in_a_decoder_says_where(tmp_path):
    def broken(data):
        raise RuntimeError("out of order")

    with pytest.raises(RuntimeError, match="out of order") as caught:
        batches(tmp_path, [image(10)], broken)(np.array([0]))
    assert caught.value.__notes__ == [f"while decoding sample key-0 of {tmp_path / 'shard.tar'}"]


def test_files_are_closed(tmp_path):
    from pathlib import Path

    images = batches(tmp_path, [image(10)] * 8)
    before = len(list(Path("/proc/self/fd").iterdir()))
    list(in_order(images, np.split(np.arange(8), 4), threads=3, ahead=3))
    images.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
