"""The settings of a run: one section per stage, checked before anything is read.

Order of precedence: defaults, then the TOML file, then `--set section.key=value`. No environment
variable changes a result.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from shardsieve.config_section import Precision as Precision
from shardsieve.config_section import Section as Section
from shardsieve.config_tune import TuneConfig as TuneConfig
from shardsieve.errors import ConfigError
from shardsieve.presets import PREFIX, read_preset

AnyBackend = Literal["auto", "reference", "cpu", "gpu"]


class IndexConfig(Section):
    """What a sample is: which member is the image and where its label stands."""

    image: tuple[str, ...] = Field(("jpg", "jpeg", "png", "webp"), min_length=1)
    """Extensions that mark the image member of a sample, the first one found wins."""
    labels: str = Field("cls", min_length=1)
    """`cls` (a member's extension), `json:FIELD` (dots reach into nested fields), or the path of
    a parquet or CSV table with the columns `key` and `label`."""
    classes: Path | None = None
    """Class names: a JSON list, or a text file with one name a line; label i is the i-th name."""
    n_classes: int | None = Field(None, ge=1)
    """Number of classes when there are no names; default: the largest label + 1."""
    max_bad_fraction: float = Field(0.25, ge=0, le=1)
    """Stop when more than this share of the samples has no usable image or label."""

    @field_validator("image")
    @classmethod
    def _as_in_names(cls, image: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(extension.lower().removeprefix(".") for extension in image)


class EmbedConfig(Section):
    """The frozen backbone and how images reach it."""

    backbone: str = "tf_efficientnet_lite0"
    """Any timm model name, `.tag` of its weights included."""
    checkpoint: str | None = Field(None, min_length=1)
    """`hub`, `package:NAME` or a .safetensors/.pth file. Default: the weights that shardsieve's own
    dependencies bring for `tf_efficientnet_lite0`, the hub for every other backbone."""
    image_size: int | None = Field(None, ge=16)
    """Side of the square input in pixels; default: what timm resolves for the backbone."""
    crop_pct: Annotated[float, Field(gt=0, le=1)] | Literal["timm"] = 1.0
    """Share of the resized image's side that is cut out of its middle. `timm`: what the backbone's
    weights were evaluated with, often 0.875. What a label names may stand at the edge."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Images in one forward pass; a batch never spans two shards. `auto`: 16 on a CPU, on a GPU
    as many as pay and fit."""
    precision: Precision = "auto"
    """`auto`: bf16 where the device computes it natively, else fp16 on a GPU and fp32 on a CPU."""
    decode: Literal["fast", "exact", "device"] = "fast"
    """`fast`: JPEGs by libjpeg-turbo, large ones at a fraction of their size. `exact`: Pillow at
    full size and timm's own transform. `device`: JPEGs by the GPU's nvJPEG."""
    engine: Literal["torch", "openvino"] = "torch"
    """What runs the network; `openvino` is for CPUs: pip install 'shardsieve[openvino]'."""
    compile: bool = False
    """torch.compile: minutes at first, worth it for long runs on a GPU."""
    devices: Literal["one", "all"] = "one"
    """`all`: the shards are dealt out to every GPU of this machine, where `device` is not `cpu`."""


class ProbeConfig(Section):
    """The linear probe on cached features."""

    loss: Literal["gce", "ce"] = "gce"
    """Generalized cross entropy (TURN), or plain cross entropy."""
    q: float = Field(0.7, gt=0, le=1)
    """The q of generalized cross entropy: near 0 it is cross entropy, 1 is mean absolute error."""
    epochs: int = Field(20, ge=1)
    """`minibatch`: passes over the features. `mm`: rounds at most, of five passes each; it ends
    by itself where a round lowers the loss by less than 1e-4 of it. Fewer stop early: where wrong
    labels resemble each other, more rounds learn them."""
    solver: Literal["minibatch", "mm", "ridge"] = "minibatch"
    """`minibatch`: AdamW (TURN). `mm`: rounds of reweighted cross entropy that minimise the loss
    with no seed, step size or batch size. `ridge`: least squares in closed form, a preview: it does
    not look at `loss` and `q`."""
    batch_size: int = Field(512, ge=1)
    """`minibatch`: samples in one step, those of all processes together."""
    processes: int = Field(1, ge=1)
    """`minibatch`: processes that each train on a part of the features, for more than one machine
    holds; on Ray they are its workers, which must see the run directory. It changes which samples
    share a step."""
    lr: float = Field(1e-3, gt=0)
    """`minibatch`: peak learning rate of AdamW; it falls to zero along a cosine."""
    weight_decay: float = Field(1e-2, ge=0)
    """`minibatch`: decoupled weight decay of AdamW."""
    l2: float = Field(0.07, ge=0)
    """`mm`: penalty l2 K^-q / 2 |weights|^2 beside the mean loss of a sample, K classes: K^-q is
    the weight that the loss gives a sample before anything is learned, so that one value serves few
    classes and many. Too small and wrong labels are learned by heart, too large and the weights go
    to zero."""
    normalise: Literal["standardise", "l2", "none"] = "standardise"
    """Features: zero mean and unit variance each, unit length per sample, or as they are."""
    folds: int = Field(0, ge=0, le=100)
    """0: every sample is scored by the probe that was trained on it (TURN). k >= 2: scored by the
    one of k probes that never saw it."""

    @model_validator(mode="after")
    def _shared_steps(self) -> Self:
        if self.processes > 1 and self.solver != "minibatch":
            raise ValueError(f"processes = {self.processes} is for the solver minibatch alone")
        if self.processes > self.batch_size:
            raise ValueError(f"processes = {self.processes} is more than a step has samples")
        return self

    @field_validator("folds")
    @classmethod
    def _one_fold_is_none(cls, folds: int) -> int:
        if folds == 1:
            raise ValueError("one fold leaves nothing to train on: 0 for none, or at least 2")
        return folds


class SelectConfig(Section):
    """Which samples are kept."""

    recipe: Literal["turn", "best"] = "best"
    """`best`: the posterior under an estimated transition matrix, by classifiers that never saw the
    label they judge. `turn`: a two-component Gaussian mixture on the losses of each class."""
    tau: float = Field(0.6, ge=0, lt=1)
    """Keep a sample when its p_clean is greater than this."""
    target_purity: float | None = Field(None, gt=0, lt=1)
    """In place of tau: keep as many samples as possible such that this share of the kept labels is
    expected to be right. Needs the recipe `best`, whose p_clean is a probability."""
    floor: int = Field(0, ge=0)
    """Keep at least this many samples of every class, the surest ones, whatever tau says."""
    cap: int | None = Field(None, ge=1)
    """Keep at most this many samples of every class, the surest ones."""
    folds: int = Field(5, ge=3, le=20)
    """Parts of the data that `best` holds out in turn."""
    held_out: tuple[str, ...] = ()
    """Shards that are kept for validation or test: samples whose image also stands there, byte for
    byte, are told in `leak_of`. Those of tune.validation are added."""
    leaks: Literal["note", "remove"] = "note"
    """What becomes of such samples: `note` only tells, `remove` leaves them out."""
    near_duplicates: float | None = Field(None, ge=0.5, le=1)
    """Look for copies that were saved anew, resized, cropped or mirrored: the least cosine of the
    features of an image and its copy, such as 0.93. Default: not looked for."""
    out_of_class: float = Field(0.5, ge=0, le=1)
    """Samples with `out_of_class` above, the probability that they show none of the classes, are
    told. Their p_clean says as much, so that most of them are removed."""
    loss: Literal["ce", "gce"] = "ce"
    """The loss that the mixture sees. GCE saturates and squeezes the noisy mode."""
    gmm: Literal["converged", "sklearn-compatible"] = "converged"
    """Stopping rule and numerics of the mixture fit."""
    min_samples: int = Field(20, ge=3)
    """`turn`: a class with fewer samples is judged by the mixture of all classes, as is one whose
    losses are all equal or have one mode (BIC: one Gaussian describes them as well as two). Fewer
    samples in all are judged by `turn`, whatever the recipe."""
    reg_covar: float = Field(5e-4, ge=0)
    """Added to both variances. `converged` fits losses scaled to [0, 1] within each class, so that
    it has no unit; `sklearn-compatible` fits them as they are, in nats squared."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.cap is not None and self.cap < self.floor:
            raise ValueError(f"cap ({self.cap}) is below floor ({self.floor})")
        if self.target_purity is not None and self.recipe != "best":
            raise ValueError(
                "target_purity needs recipe = best: a mixture's posterior is no probability"
            )
        return self


class WriteConfig(Section):
    """The shards that come out."""

    removed: Path | None = None
    """A folder for a second set of shards with the samples that select removed. Samples that are
    clean but over a quota are in neither set; `manifest.parquet` says where they lie."""
    to: str | None = Field(None, pattern=r"^[a-z][a-z0-9+.-]*://.")
    """A URL such as `s3://bucket/clean` under which the clean shards and `manifest.parquet` are
    written as well; each shard is uploaded when it is whole. Those in the run directory stay."""
    shard_samples: int | None = Field(None, ge=1)
    """At most this many samples in an output shard; default: one output shard per input shard."""
    shard_bytes: int | None = Field(None, ge=1)
    """At most this many bytes in an output shard, if more than one sample is in it."""
    order: Literal["source", "shuffle"] = "source"
    """`source`: the order of the input; `shuffle`: samples of all shards mixed, by `seed`."""
    per_class_cap: int | None = Field(None, ge=1)
    """At most this many samples of each class, those with the highest p_clean."""
    balance: bool = False
    """Every class gets as many samples as the smallest class that has any, those with the highest
    p_clean."""
    sha256: bool = True
    """Hash the output shards while they are written; costs more processor time than the copy."""

    @field_validator("removed", mode="before")
    @classmethod
    def _named(cls, removed: object) -> object:
        if removed == "":
            raise ValueError("an empty name is no folder")
        return removed


class ReportConfig(Section):
    """The page that people look at."""

    gallery: int = Field(60, ge=0)
    """How many samples each gallery shows; one that is in several is shown once."""
    classes: int = Field(24, ge=1)
    """How many classes get a loss histogram, those with the most suspected noise first."""
    map: int = Field(2000, ge=0, le=10_000)
    """How many samples, drawn at random, the feature map shows; 0 for no map."""


class Config(Section):
    """All settings of a run."""

    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of everything random: the probe's shuffles and folds, and fine-tuning."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """`auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:N`."""
    backend: AnyBackend = "auto"
    """Which kernels run; `auto`: the GPU's where there is one, unless `device` is `cpu`. The
    manifest says what it came to."""
    workers: int | None = Field(None, ge=0)
    """Threads that decode images for embed, and processes that do for tune; default: one per core,
    but at most 8 for tune on a CPU. 0: none beside the one that computes."""
    index: IndexConfig = IndexConfig()
    embed: EmbedConfig = EmbedConfig()
    probe: ProbeConfig = ProbeConfig()
    select: SelectConfig = SelectConfig()
    tune: TuneConfig = TuneConfig()
    write: WriteConfig = WriteConfig()
    report: ReportConfig = ReportConfig()

    @property
    def held_out_labels(self) -> str:
        """Where the labels of validation and test shards stand, as for `index.labels`."""
        return self.tune.validation_labels or self.index.labels


def load_config(
    file: Path | None = None,
    overrides: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
) -> Config:
    """Merges defaults, a TOML file, explicit values and `section.key=value` overrides.

    Args:
        file: TOML file with the sections of `Config`, or `preset:NAME`.
        overrides: Assignments such as `probe.q=0.5`; the right side is read as TOML, or taken as
            text when it is no TOML value.
        values: Dotted names to Python values, between the file and the overrides.

    Raises:
        ConfigError: The file cannot be read, or a key or value is not allowed; every problem is
            listed with its path.
    """
    tree: dict[str, Any] = _read_toml(file) if file is not None else {}
    for name, value in (values or {}).items():
        _assign(tree, name, value)
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override}: write it as section.key=value")
        _assign(tree, name.strip(), _parse_value(text.strip()))
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from error


def _read_toml(file: Path) -> dict[str, Any]:
    if str(file).startswith(PREFIX):
        return read_preset(str(file).removeprefix(PREFIX))
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the settings in {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not a TOML file: {error}") from error


def _assign(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{dotted}: {parent} is a value, not a section")
    tree[leaf] = value


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(error: ValidationError) -> str:
    problems = []
    for problem in error.errors():
        path = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            section = problem["loc"][0] if len(problem["loc"]) > 1 else None
            field = Config.model_fields.get(str(section))
            known = field.annotation if field is not None else Config
            names = ", ".join(getattr(known, "model_fields", {}))
            problems.append(f"{path}: no such setting (there are: {names})")
        else:
            problems.append(f"{path} = {problem['input']!r}: {problem['msg']}")
    return "; ".join(problems)
