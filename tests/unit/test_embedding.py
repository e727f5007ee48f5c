"""The backbone with the threads that feed it: same features, whatever feeds it."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from shardsieve.data.features import FeatureStore
from shardsieve.data.index import SampleIndex
from shardsieve.data.reason import Reason
from shardsieve.embedding import Runner, time_spent
from shardsieve.errors import ShardError
from shardsieve.progress import Silent
from shardsieve.shards.device_pixels import DeviceBatches
from shardsieve.shards.pixels import Fit, fast_decoder
from shardsieve.shards.prefetch import Clock, ImageBatches
from shardsieve.stages.embed import embed
from shardsieve.stages.index import index

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def samples(shards, tmp_path_factory):
    from shardsieve.config import IndexConfig

    out = tmp_path_factory.mktemp("index")
    index(shards.paths, IndexConfig(), out=out, progress=Silent())
    return SampleIndex.open(out)


def reading(samples, config, workers):
    runner = Runner(config, CPU, workers)
    runner.read_from(samples)
    return runner


def embedded(samples, config, out, *, workers=0, devices=(CPU,)):
    out.mkdir()
    result = embed(
        samples,
        config,
        out=out,
        devices=devices,
        workers=workers,
        max_bad_fraction=0.25,
        progress=Silent(),
    )
    return FeatureStore.open(out, len(samples.shards)), result


@pytest.fixture(scope="module")
def reference(samples, settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("features") / "store"
    embedded(samples, settings().embed, out)
    return [path.read_bytes() for path in sorted(out.glob("*.arrow"))]


@pytest.mark.parametrize(
    "how", [{"workers": 0}, {"workers": 1}, {"workers": 3}, {"workers": 4, "devices": (CPU, CPU)}]
)
def test_threads_and_devices_change_no_bit(samples, settings, tmp_path, reference, how):
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        _, result = embedded(samples, settings().embed, tmp_path / "store", **how)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    found = [path.read_bytes() for path in sorted((tmp_path / "store").glob("*.arrow"))]
    assert len(reference) == len(samples.shards) and found == reference
    assert result.counts == {"samples": 240, "embedded": 240}
    spent = result.facts["time"]
    assert spent["model_s"] > 0 and spent["decode_s"] > 0 and 0 < spent["of_model_speed"] <= 1
    assert result.facts["batch_size"] == 16


def test_a_network_in_the_callers_thread_gives_the_same(samples, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda network, dynamic: network)
    config = settings(embed__compile=True).embed
    rows = [np.arange(at, at + 16) for at in range(0, 48, 16)]
    plain = reading(samples, settings().embed, 0)
    beside = reading(samples, config, 2)
    for want, got in zip(plain.run(rows), beside.run(rows), strict=True):
        assert np.array_equal(want.rows, got.rows)
        np.testing.assert_allclose(got.features_BD, want.features_BD, rtol=2e-3, atol=1e-3)
    assert {"wait_s", "model_s"} <= set(beside.clock.seconds)


def test_fast_and_exact_features_are_nearly_the_same(samples, settings):
    rows = [np.arange(16)]
    ways = [reading(samples, settings(embed__decode=d).embed, 0) for d in ("fast", "exact")]
    fast, exact = (next(iter(runner.run(rows))).features_BD.astype(np.float64) for runner in ways)
    cosine = (fast * exact).sum(1) / np.linalg.norm(fast, axis=1) / np.linalg.norm(exact, axis=1)
    assert cosine.min() > 0.9999


def test_an_error_of_one_device_stops_the_others(samples, settings, tmp_path, monkeypatch):
    read = ImageBatches.read

    def fails(self, row):
        if row == 130:
            raise ShardError("gone")
        return read(self, row)

    monkeypatch.setattr(ImageBatches, "read", fails)
    with pytest.raises(ShardError, match="gone"):
        embedded(samples, settings().embed, tmp_path / "s", workers=2, devices=(CPU, CPU))


def test_where_the_time_went():
    lanes, gpu = Clock(), Clock()
    lanes.add(read_s=0.5, decode_s=1.5, model_s=6.0)
    lanes.add(model_s=2.0)
    assert time_spent(lanes.seconds, 5.0) == {
        "read_s": 0.5,
        "decode_s": 1.5,
        "model_s": 8.0,
        "of_model_speed": 0.8,
        "bottleneck": "model",
        "wall_s": 5.0,
    }
    # Beside a GPU the threads' own seconds cost nothing; waiting does.
    gpu.add(read_s=9.0, decode_s=30.0, wait_s=6.0, model_s=4.0)
    told = time_spent(gpu.seconds, 10.0)
    assert told["of_model_speed"] == 0.4 and told["bottleneck"] == "decode"
    assert time_spent({}, 0.0) == {"wall_s": 0.0}


def encoded(image, kind="JPEG", **options):
    out = io.BytesIO()
    image.save(out, kind, **({"quality": 92} if kind == "JPEG" else {}) | options)
    return out.getvalue()


def test_the_devices_decoder_agrees_and_leaves_the_rest_to_the_cpu(tmp_path):
    # torchvision decodes lists on a CPU, too: all but the device itself is tested here.
    y, x = np.mgrid[0:90, 0:120]
    picture = np.stack([120 + 80 * np.sin(x / 9), 100 + y, x + y / 2], -1)
    image = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
    contents = [encoded(image, exif=_turned(n)) for n in range(1, 9)]
    contents += [encoded(image, "PNG"), encoded(image.convert("CMYK")), b"html"]
    contents += [contents[0][: len(contents[0]) // 2], encoded(image.convert("L"))]
    path = tmp_path / "shard.tar"
    path.write_bytes(b"".join(contents))
    size_N = np.array([len(content) for content in contents], np.int64)
    columns = ([path], np.zeros(len(size_N), np.int32), np.cumsum(size_N) - size_N, size_N)
    fit = Fit(48, 40, "bicubic")
    images = DeviceBatches(*columns, fit=fit, device=CPU, key_of=str)
    want = ImageBatches(*columns, fast_decoder(fit), side=40, key_of=str)
    got, expected = (run(np.arange(len(size_N))) for run in (images, want))
    assert got.rows.tolist() == expected.rows.tolist()
    assert [row for row, _ in got.refused] == [10, 11] and got.refused == expected.refused
    assert (got.pixels.int() - expected.pixels.int()).abs().max() <= 2


def _turned(orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    return exif


def test_undecodable_rows_have_their_reason(samples, settings, tmp_path, monkeypatch):
    read = ImageBatches.read
    monkeypatch.setattr(
        ImageBatches, "read", lambda self, row: b"html" if row in (3, 100) else read(self, row)
    )
    store, result = embedded(samples, settings().embed, tmp_path / "s", workers=2)
    assert result.counts["embedded"] == 238
    assert np.flatnonzero(store.reason_N == Reason.UNDECODABLE).tolist() == [3, 100]
