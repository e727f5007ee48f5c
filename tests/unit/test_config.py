"""Settings: where they come from, and what is said about wrong ones."""

import re
import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from shardsieve.config import Config, Section, load_config
from shardsieve.config_toml import commented_toml, describe
from shardsieve.errors import ConfigError


def config_file(tmp_path, text):
    path = tmp_path / "clean.toml"
    path.write_text(text, encoding="utf-8")
    return path


def sections():
    fields = Config.model_fields.items()
    return {name: field.annotation for name, field in fields if isinstance(field.default, Section)}


def message(*overrides, **more):
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=overrides, **more)
    return str(caught.value)


def test_defaults_without_anything():
    assert load_config() == Config()


def test_precedence(tmp_path):
    file = config_file(tmp_path, "seed = 1\n[probe]\nq = 0.1\nepochs = 2\nfolds = 5\n")
    config = load_config(file, ["probe.q=0.3"], {"probe.q": 0.2, "probe.epochs": 3})
    assert (config.probe.q, config.probe.epochs, config.probe.folds) == (0.3, 3, 5)
    assert config.seed == 1
    assert config.select == Config().select


def test_the_last_override_wins():
    assert load_config(overrides=["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "section", "name", "value"),
    [
        ("probe.q=0.5", "probe", "q", 0.5),
        ("probe.lr = 1e-4", "probe", "lr", 1e-4),
        ("probe.epochs=7", "probe", "epochs", 7),
        ("probe.loss=ce", "probe", "loss", "ce"),
        ('probe.loss="ce"', "probe", "loss", "ce"),
        ("probe.loss='ce'", "probe", "loss", "ce"),
        ("index.labels=json:meta.label", "index", "labels", "json:meta.label"),
        ("index.labels=/data/a=b.parquet", "index", "labels", "/data/a=b.parquet"),
        ("index.classes=names.txt", "index", "classes", Path("names.txt")),
        ('index.image=["png", "jpg"]', "index", "image", ("png", "jpg")),
        ("tune.validation=[]", "tune", "validation", ()),
        ("tune.crop_scale=[0.5, 1]", "tune", "crop_scale", (0.5, 1.0)),
        ("embed.backbone=vit_b_16.openai", "embed", "backbone", "vit_b_16.openai"),
    ],
)
def test_overrides(override, section, name, value):
    found = getattr(getattr(load_config(overrides=[override]), section), name)
    assert (found == value and type(found) is type(value)) or isinstance(found, Path)


def test_top_level_overrides():
    config = load_config(overrides=["device=cuda:1", "workers=0"])
    assert (config.device, config.workers) == ("cuda:1", 0)


@pytest.mark.parametrize("override", ["probe.q", "", "probe"])
def test_an_override_without_a_value(override):
    assert message(override) == f"--set {override}: write it as section.key=value"


def test_an_unknown_key_is_named_with_what_there_is():
    said = message("probe.epoch=3")
    assert said.startswith("probe.epoch: no such setting (there are: loss, q, epochs, ")
    assert "reg_covar" not in said
    assert (
        message("prob.q=3")
        == f"prob: no such setting (there are: {', '.join(Config.model_fields)})"
    )
    assert message("tau=0.5").startswith("tau: no such setting (there are: seed, device")


def test_every_problem_is_listed_at_once(tmp_path):
    file = config_file(tmp_path, "[probe]\nepochs = 0\nepoch = 3\n[select]\ntau = 'high'\n")
    said = message("sed=1", "device=gpu", file=file)
    for part in (
        "probe.epochs = 0: ",
        "probe.epoch: no",
        "select.tau = 'high': ",
        "sed: no",
        "device",
    ):
        assert part in said
    assert said.count("; ") == 4


@pytest.mark.parametrize(
    "override",
    [
        "probe.q=0",
        "probe.q=1.5",
        "probe.q=nan",
        "probe.lr=inf",
        "probe.lr=-1",
        "probe.epochs=2.5",
        "select.tau=1.01",
        "select.min_samples=2",
        "index.image=[]",
        "index.image=jpg",
        "index.labels=",
        "index.labels=3",
        "index.max_bad_fraction=-0.1",
        "tune.crop_scale=[0.5]",
        "tune.crop_scale=[0, 0]",
        "tune.crop_scale=[0.5, 1.5]",
        "seed=-1",
        "workers=-1",
        "device=cuda:",
        "device=cuda:x",
        "device=cpu0",
        "backend=abacus",
        "probe=3",
    ],
)
def test_values_out_of_range(override):
    name = override.split("=")[0]
    assert message(override).startswith(name)


def test_a_value_where_a_section_should_be(tmp_path):
    assert message("probe.q=0.5", file=config_file(tmp_path, "probe = 3\n")) == (
        "probe.q: probe is a value, not a section"
    )
    assert message("seed=1", "seed.x=2") == "seed.x: seed is a value, not a section"


def test_files_that_cannot_be_read(tmp_path):
    assert "gone.toml: No such file" in message(file=tmp_path / "gone.toml")
    assert "Is a directory" in message(file=tmp_path)
    said = message(file=config_file(tmp_path, "[probe\nq = 1"))
    assert "clean.toml is not a TOML file: " in said and "line 1" in said
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9\n")
    assert "latin.toml is not a TOML file" in message(file=tmp_path / "latin.toml")


def test_settings_cannot_be_changed_later():
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.probe.q = 0.5
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1


def test_every_setting_has_a_description():
    for section in sections().values():
        for name, text in describe(section).items():
            assert len(text) > 10 and "\n" not in text, f"{section.__name__}.{name}"
        assert section.__doc__
    for name, field in Config.model_fields.items():
        assert name in sections() or field.description


def uncommented(text):
    """Turns every commented setting that has a value into a setting."""
    return re.sub(r"^# (?=\w+ = \S)", "", text, flags=re.MULTILINE)


def test_the_commented_file_shows_every_setting():
    text = commented_toml()
    assert tomllib.loads(text) == {name: {} for name in sections()}
    for name, section in {"": Config, **sections()}.items():
        body = text.split(f"\n[{name}]")[-1].split("\n[")[0] if name else text.split("\n[")[0]
        shown = re.findall(r"^# (\w+) =", body, flags=re.MULTILINE)
        assert shown == [field for field in section.model_fields if name or field not in sections()]


def test_the_commented_file_parses_back_to_the_defaults(tmp_path):
    lines = uncommented(commented_toml())
    tree = tomllib.loads(lines)
    # None has no TOML: those stay comments.
    expected = {
        name: {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in getattr(Config(), name).model_dump().items()
            if value is not None
        }
        for name in sections()
    }
    assert {name: tree[name] for name in sections()} == expected
    assert load_config(config_file(tmp_path, lines)) == Config()


def test_the_commented_file_of_other_settings(tmp_path):
    config = load_config(
        overrides=["seed=4", "index.classes=/a b/c.txt", "tune.validation=['x.tar', 'y.tar']"],
        values={"write.removed": Path("out/removed"), "index.n_classes": 3},
    )
    assert load_config(config_file(tmp_path, uncommented(commented_toml(config)))) == config


def test_a_setting_at_a_time(tmp_path):
    lines = commented_toml().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"# \w+ = \S", line):
            alone = [*lines[:number], line.removeprefix("# "), *lines[number + 1 :]]
            assert load_config(config_file(tmp_path, "\n".join(alone))) == Config()


def test_one_fold_is_refused_before_anything_runs():
    with pytest.raises(ConfigError, match=r"probe.folds = 1: .*one fold leaves nothing"):
        load_config(overrides=["probe.folds=1"])


def test_image_extensions_are_written_as_people_do():
    assert load_config(overrides=['index.image=[".JPG", "png"]']).index.image == ("jpg", "png")
