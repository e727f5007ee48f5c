"""ImageFolder: `SOURCE/CLASS/anything/image.jpg`, the classes are the folders in sorted order.

Folders that are all numbered 0 to K - 1 are taken in the order of their numbers, so that folder 10
is label 10. (Sorted as text, as torchvision does, it would be label 2.)
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa

from shardsieve.errors import DataError
from shardsieve.importers.columns import name_classes
from shardsieve.importers.files import FileReader
from shardsieve.importers.layouts import Options
from shardsieve.importers.lists import need_folder, wrong_layout
from shardsieve.importers.plan import PROBLEMS, Plan, Problem, problem_table

_EXPECTED = "a folder per class with its images in it: SOURCE/cat/1.jpg, SOURCE/dog/2.jpg"
_IMAGES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".avif"),
)
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


def plan(kind: str, source: Path, options: Options) -> Plan:
    """Walks the folders.

    Raises:
        DataError: There are no folders of images, or they are splits and none was chosen.
    """
    base = source / options.split if options.split else source
    need_folder(base, kind, _EXPECTED)
    folders, loose = _list_root(base)
    if not folders:
        raise wrong_layout(base, kind, f"no folder in it, {len(loose):,} files", _EXPECTED)
    if {name.lower() for name in folders} <= _SPLITS:
        raise wrong_layout(
            base,
            kind,
            f"its folders are {', '.join(folders)}, which are splits, not classes",
            f"--split {folders[0]}, or that folder as the source",
        )
    folders, classes, notes = _order(folders, base)
    problems = [problem_table(loose, Problem.NO_LABEL, "lies in no class folder")]
    sources: list[pa.Array] = []
    counts = []
    for folder in folders:
        images, others = _walk(base, folder)
        sources.append(pa.array(images, pa.string()))
        counts.append(len(images))
        problems.append(problem_table(others, Problem.NOT_AN_IMAGE, "not called like an image"))
    label_N = np.repeat(np.arange(len(folders), dtype=np.int32), counts)
    rows = pa.table({"source": pa.chunked_array(sources, pa.string()), "label": label_N})
    if not rows.num_rows:
        raise wrong_layout(base, kind, f"no image in its {len(folders)} folders", _EXPECTED)
    found = pa.concat_tables([PROBLEMS.empty_table(), *problems])
    return Plan(rows, classes, FileReader(base), found, notes)


def _list_root(base: Path) -> tuple[list[str], list[str]]:
    folders: list[str] = []
    loose: list[str] = []
    for entry in os.scandir(base):
        if entry.name.startswith("."):
            continue
        (folders if entry.is_dir() else loose).append(entry.name)
    return sorted(folders), sorted(loose)


def _order(folders: list[str], base: Path) -> tuple[list[str], tuple[str, ...], tuple[str, ...]]:
    """Returns the folders by label, the names of the classes, and what to say about them."""
    numbers = [int(name) if name.isascii() and name.isdigit() else -1 for name in folders]
    if sorted(numbers) == list(range(len(folders))):
        folders = sorted(folders, key=int)
        return folders, tuple(str(label) for label in range(len(folders))), ()
    names, notes = name_classes(folders, base)
    return folders, names, notes


def _walk(base: Path, folder: str) -> tuple[list[str], list[str]]:
    """Returns images and other files of a class, as sorted paths below `base`."""
    images: list[str] = []
    others: list[str] = []
    seen: set[str] = set()
    for place, below, files in os.walk(base / folder, followlinks=True, onerror=_stop):
        real = os.path.realpath(place)
        if real in seen:
            # A link that leads back up.
            below.clear()
            continue
        seen.add(real)
        below.sort()
        where = os.path.relpath(place, base)
        for file in sorted(files):
            name = f"{where}/{file}"
            text = name.encode("utf-8", "backslashreplace").decode()
            # A name that is no text cannot stand in a table.
            is_image = file.lower().endswith(_IMAGES) and file[0] != "." and text == name
            (images if is_image else others).append(text)
    return images, others


def _stop(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error
