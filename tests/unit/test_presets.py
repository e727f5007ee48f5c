"""Every preset loads, and says what the paper's backbones are tuned with."""

from pathlib import Path

import pytest

from shardsieve.config import load_config
from shardsieve.errors import ConfigError
from shardsieve.presets import preset_names, preset_toml


@pytest.mark.parametrize("name", preset_names())
def test_each_preset_loads(name):
    config = load_config(Path(f"preset:{name}"))
    assert (config.probe.loss, config.probe.q, config.probe.epochs) == ("gce", 0.7, 20)
    assert (config.select.recipe, config.select.tau) == ("turn", 0.6)
    assert (config.tune.epochs, config.tune.reselect) == (4, "epoch")


@pytest.mark.parametrize(
    ("name", "optimiser", "lr", "decay"),
    [
        ("clothing1m-vit-b16", "sgd", 1e-2, 1e-5),
        ("clothing1m-resnet50", "adamw", 1e-3, 1e-5),
        ("webvision-mini-convnext-t", "adamw", 1e-4, 1e-4),
        ("mae-vit-b", "adamw", 1e-4, 1e-3),
    ],
)
def test_tuning_per_backbone(name, optimiser, lr, decay):
    tune = load_config(Path(f"preset:{name}")).tune
    assert (tune.optimiser, tune.lr, tune.weight_decay) == (optimiser, lr, decay)


def test_classes_per_data_set():
    counts = {
        "clothing1m": 14,
        "webvision": 1000,
        "webvision-mini": 50,
        "cifar10n": 10,
        "cifar100n": 100,
        "food101n": 101,
        "animal10n": 10,
    }
    for data, n_classes in counts.items():
        assert load_config(Path(f"preset:{data}-resnet50")).index.n_classes == n_classes


def test_settings_after_a_preset_win():
    config = load_config(Path("preset:vit-b16"), ["tune.lr=0.5"], {"select.tau": 0.9})
    assert (config.tune.lr, config.select.tau) == (0.5, 0.9)
    assert config.tune.optimiser == "sgd"


def test_a_preset_is_printed_as_a_settings_file(tmp_path):
    for name in ("clothing1m-vit-b16", "resnet50"):
        (tmp_path / "a.toml").write_text(preset_toml(name))
        assert load_config(tmp_path / "a.toml") == load_config(Path(f"preset:{name}"))
    assert "a follow-up paper" in preset_toml("resnet50")


def test_unknown_presets_are_named():
    with pytest.raises(ConfigError, match="DATASET-BACKBONE or BACKBONE, with data sets animal10n"):
        load_config(Path("preset:clothing1m-vgg"))


def test_timm_knows_the_backbones():
    import timm

    known = set(timm.list_pretrained())
    for name in preset_names():
        assert load_config(Path(f"preset:{name}")).embed.backbone in known
