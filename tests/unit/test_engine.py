"""What runs the backbone: OpenVINO and compiled torch beside eager torch, and what is refused."""

import numpy as np
import pytest
import torch

from shardsieve.config import load_config
from shardsieve.errors import ConfigError, DeviceUnavailable
from shardsieve.models import engine as module
from shardsieve.models.backbone import load_backbone
from shardsieve.models.engine import (
    CPU_BATCH,
    batch_size,
    find_batch_size,
    load_engine,
    refuse_engine,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda")
# Of what OpenVINO makes of a network in fp32, beside torch: rounding in another order.
RELATIVE_ERROR = 1e-4


def embed_config(checkpoint, **changes):
    values = {
        "embed.backbone": "test_resnet",
        "embed.checkpoint": str(checkpoint),
        "embed.image_size": 32,
        "embed.precision": "fp32",
    }
    return load_config(values=values | {f"embed.{k}": v for k, v in changes.items()}).embed


def pixels(count=5, seed=0):
    drawn = torch.from_numpy(
        np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), np.uint8)
    )
    return drawn.contiguous(memory_format=torch.channels_last)


def engine_of(config):
    backbone = load_backbone(config, CPU)
    return load_engine(backbone, config, CPU, "fp32", lanes=2)


def test_openvino_gives_torchs_features_within_the_stated_error(checkpoint):
    pytest.importorskip("openvino")
    config = embed_config(checkpoint)
    want = engine_of(config)(pixels())
    engine = engine_of(config.model_copy(update={"engine": "openvino"}))
    assert engine.warm_up_s > 0
    for count in (5, 1, 3):
        got = engine(pixels()[:count])
        assert got.dtype == torch.float32 and got.shape == (count, want.shape[1])
        error = (got - want[:count]).norm(dim=1) / want[:count].norm(dim=1)
        assert float(error.max()) < RELATIVE_ERROR


def test_the_engine_is_what_the_backbone_gives(checkpoint):
    config = embed_config(checkpoint)
    backbone = load_backbone(config, CPU)
    assert torch.equal(engine_of(config)(pixels()), backbone.features(pixels(), CPU, "fp32"))


def test_a_compiled_network_gets_whole_batches_only(checkpoint, monkeypatch):
    seen = []

    def compile(network, *, dynamic):
        assert dynamic is False

        def run(images):
            seen.append(len(images))
            return network(images)

        return run

    config = embed_config(checkpoint, batch_size=8)
    want = engine_of(config)(pixels())
    monkeypatch.setattr(torch, "compile", compile)
    engine = engine_of(config.model_copy(update={"compile": True}))
    assert engine.warm_up_s > 0
    assert torch.allclose(engine(pixels()), want, rtol=1e-5, atol=1e-6)
    assert seen == [8, 8]


@pytest.mark.parametrize(
    ("changes", "device", "reason"),
    [
        ({"engine": "openvino"}, GPU, "runs on a CPU, and the device is cuda"),
        ({"engine": "openvino", "compile": True}, CPU, "OpenVINO compiles by itself"),
        ({"decode": "device"}, CPU, "a GPU's nvJPEG, and networks run on the cpu here"),
    ],
)
def test_what_cannot_run_says_why(checkpoint, changes, device, reason):
    pytest.importorskip("openvino")
    with pytest.raises(DeviceUnavailable, match=reason):
        refuse_engine(embed_config(checkpoint, **changes), device)


def test_openvino_that_is_not_installed_says_what_installs_it(checkpoint, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(DeviceUnavailable, match=r"pip install 'shardsieve\[openvino\]'"):
        refuse_engine(embed_config(checkpoint, engine="openvino"), CPU)


def test_bf16_needs_a_processor_that_has_it(checkpoint, monkeypatch):
    config = embed_config(checkpoint, precision="bf16")
    monkeypatch.setattr(module, "computes_bf16", lambda: False)
    with pytest.raises(DeviceUnavailable, match=r"neither avx512_bf16 nor amx"):
        refuse_engine(config, CPU)
    refuse_engine(config, GPU)
    monkeypatch.setattr(module, "computes_bf16", lambda: True)
    refuse_engine(config, CPU)


def test_batch_sizes(checkpoint):
    assert batch_size(embed_config(checkpoint), CPU) == CPU_BATCH
    assert batch_size(embed_config(checkpoint), GPU) is None
    assert batch_size(embed_config(checkpoint, batch_size=7), GPU) == 7
    # Every size that is tried would be compiled.
    assert batch_size(embed_config(checkpoint, compile=True), GPU) == 256
    with pytest.raises(ConfigError, match=r"embed\.batch_size"):
        embed_config(checkpoint, batch_size=0)


class PretendedGpu:
    """Rates and memory by batch size, as a GPU could have them."""

    def __init__(self, monkeypatch, rates, fits):
        self.tried = []
        monkeypatch.setattr(module, "_rate", self.rate)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (self.free, 1000))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 1000 - self.free)
        self.rates, self.fits, self.free = rates, fits, 1000

    def rate(self, engine, images, device):
        size = len(images)
        self.tried.append(size)
        if size > self.fits:
            raise torch.OutOfMemoryError
        self.free = 1000 - 1000 * size // self.fits
        return self.rates.get(size, 100.0)


@pytest.mark.parametrize(
    ("rates", "fits", "best", "tried"),
    [
        # Twice as large is no faster.
        ({32: 50.0, 64: 80.0, 128: 100.0, 256: 101.0}, 10**6, 128, [32, 64, 128, 256]),
        # The next would not fit.
        ({32: 50.0, 64: 80.0, 128: 120.0, 256: 200.0}, 200, 128, [32, 64, 128]),
        # The first that was tried after a good one does not fit.
        ({32: 50.0, 64: 80.0}, 60, 32, [32]),
    ],
)
def test_the_batch_grows_while_it_pays_and_fits(monkeypatch, rates, fits, best, tried):
    gpu = PretendedGpu(monkeypatch, rates, fits)
    assert find_batch_size(None, 4, CPU) == best
    assert gpu.tried == tried
