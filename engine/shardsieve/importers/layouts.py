"""The layouts that can be imported: what each is called, where it is read, what it takes."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from importlib import import_module
from pathlib import Path

from shardsieve.errors import ConfigError
from shardsieve.importers.plan import Plan


@dataclass(frozen=True, slots=True)
class Options:
    """What a user can say about a source; each layout takes some of it.

    Attributes:
        split: Which part of the data set.
        labels: A file with other labels for the same images (CIFAR-N).
        label_set: Which of the label sets in `labels`.
        image_column: Column with the image or its path.
        label_column: Column with the label.
        classes: Class names, JSON list or one a line.
        first_label: The number that the source gives to the first class.
    """

    split: str | None = None
    labels: Path | None = None
    label_set: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    classes: Path | None = None
    first_label: int | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """A way in which data sets are published.

    Attributes:
        module: Its file in this package; it has a function `plan(kind, source, options)`.
        about: One line for the help.
        splits: Allowed values of `split`, the first is the default; empty: whatever the source has.
        takes: The options that it understands.
        shuffles: Whether images can be read in any order.
    """

    module: str
    about: str
    splits: tuple[str, ...] = ()
    takes: tuple[str, ...] = ("split",)
    shuffles: bool = True


_COLUMNS = ("image_column", "label_column", "classes", "first_label")

LAYOUTS: dict[str, Layout] = {
    "imagefolder": Layout("imagefolder", "a folder of images per class"),
    "table": Layout(
        "listing", "CSV, TSV, JSONL or parquet of image paths and labels", takes=_COLUMNS
    ),
    "parquet": Layout(
        "parquet", "parquet files with image bytes and labels", takes=_COLUMNS, shuffles=False
    ),
    "huggingface": Layout(
        "huggingface",
        "a `datasets` folder: save_to_disk, or a clone of the hub's parquet",
        takes=("split", "image_column", "label_column"),
        shuffles=False,
    ),
    "cifar10": Layout(
        "cifar",
        "CIFAR-10, Python or binary version; --labels for CIFAR-10N",
        ("train", "test"),
        ("split", "labels", "label_set"),
    ),
    "cifar100": Layout(
        "cifar",
        "CIFAR-100 (fine labels), Python or binary version; --labels for CIFAR-100N",
        ("train", "test"),
        ("split", "labels", "label_set"),
    ),
    "clothing1m": Layout(
        "clothing1m", "Clothing1M with its key lists", ("train", "clean-train", "val", "test")
    ),
    "webvision": Layout(
        "webvision",
        "WebVision 1.0, 1,000 classes",
        ("train", "train-google", "train-flickr", "val"),
    ),
    "webvision-mini": Layout(
        "webvision", "its first 50 classes, Google's images only", ("train", "val")
    ),
    "food101n": Layout(
        "food101n", "Food-101N with its meta folder", ("train", "verified-train", "verified-val")
    ),
    "animal10n": Layout("animal10n", "ANIMAL-10N, raw images or binary", ("train", "test")),
}


def make_plan(kind: str, source: Path, options: Options) -> tuple[Plan, str]:
    """Reads the lists of a source; no image is opened.

    Args:
        kind: A name of `LAYOUTS`.
        source: Folder or file.
        options: What the layout needs to know.

    Returns:
        The plan, and a word for its shards and keys: the split, or `data`.

    Raises:
        ConfigError: There is no such layout, or it does not take one of the options.
        DataError: The source is not laid out like that.
        LabelError: Labels and classes do not fit together.
    """
    if kind not in LAYOUTS:
        raise ConfigError(f"{kind}: no such layout (there are: {', '.join(LAYOUTS)})")
    layout = LAYOUTS[kind]
    for field in fields(options):
        if getattr(options, field.name) is not None and field.name not in layout.takes:
            flags = ", ".join("--" + name.replace("_", "-") for name in layout.takes)
            flag = "--" + field.name.replace("_", "-")
            raise ConfigError(f"{flag} means nothing to {kind} (it takes: {flags or 'none'})")
    split = options.split
    if layout.splits:
        split = split or layout.splits[0]
        if split not in layout.splits:
            raise ConfigError(f"--split {split}: {kind} has {', '.join(layout.splits)}")
    plan: Plan = import_module(f"shardsieve.importers.{layout.module}").plan(
        kind, source, replace(options, split=split)
    )
    return plan, split or "data"
