"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), and the labels of CIFAR-10N and CIFAR-100N.

```
cifar-10-batches-py/     data_batch_1 .. data_batch_5, test_batch, batches.meta      (pickle)
cifar-10-batches-bin/    data_batch_1.bin .. data_batch_5.bin, test_batch.bin, batches.meta.txt
cifar-100-python/        train, test, meta                                           (pickle)
cifar-100-binary/        train.bin, test.bin, fine_label_names.txt
```

SOURCE is such a folder or the one that it lies in. A pickle is a program: these are read by an
unpickler that knows NumPy's arrays and nothing else. A binary record is a label (CIFAR-100: the
coarse and the fine one), then three planes of 32 x 32.

CIFAR-N labels (Wei et al. 2022) are for the images in this very order. Where the file also holds
`clean_label`, it is compared with CIFAR's own: a file in another order (the authors publish one for
TensorFlow's) is refused.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shardsieve.errors import DataError, LabelError
from shardsieve.importers.arrays import ArrayReader, Pixels, array_rows, read_records
from shardsieve.importers.label_files import read_label_file
from shardsieve.importers.layouts import Options
from shardsieve.importers.lists import need_folder, published_count, read_lines, wrong_layout
from shardsieve.importers.plan import Plan, check_labels

_SIDE = 32
_IMAGES = {"train": 50_000, "test": 10_000}
# Fewer equal labels than this, and the label file is for other images or another order.
_SAME = 0.99


class _Version(NamedTuple):
    """One of the published versions."""

    folder: str
    files: dict[str, tuple[str, ...]]
    names: str
    # Bytes before the pixels and which of them is the label; None for pickles.
    header: tuple[int, int] | None
    # Keys in the pickles.
    label_key: str = ""
    names_key: str = ""


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_VERSIONS = {
    "cifar10": (
        _Version(
            "cifar-10-batches-py",
            {"train": _BATCHES, "test": ("test_batch",)},
            "batches.meta",
            None,
            "labels",
            "label_names",
        ),
        _Version(
            "cifar-10-batches-bin",
            {"train": tuple(f"{name}.bin" for name in _BATCHES), "test": ("test_batch.bin",)},
            "batches.meta.txt",
            (1, 0),
        ),
    ),
    "cifar100": (
        _Version(
            "cifar-100-python",
            {"train": ("train",), "test": ("test",)},
            "meta",
            None,
            "fine_labels",
            "fine_label_names",
        ),
        _Version(
            "cifar-100-binary",
            {"train": ("train.bin",), "test": ("test.bin",)},
            "fine_label_names.txt",
            (2, 1),
        ),
    ),
}


def plan(kind: str, source: Path, options: Options) -> Plan:
    """Finds the version that is there and reads its labels.

    Raises:
        DataError: Neither version is whole, or a file is not what it should be.
        LabelError: The other labels do not fit.
    """
    split = options.split or "train"
    base, version = _find(kind, source, split)
    files = [base / name for name in version.files[split]]
    parts = [_labels(file, version) for file in files]
    rows = array_rows(files, [len(part) for part in parts])
    given_N = np.concatenate(parts)
    names = _names(base / version.names, version)
    if options.labels is not None:
        other_N = _other_labels(options.labels, options.label_set, given_N, split)
        rows = rows.append_column("label", pa.array(other_N))
        rows = rows.append_column("clean_label", pa.array(given_N))
    elif options.label_set is not None:
        raise LabelError("--label-set chooses from a file with other labels: give --labels, too")
    else:
        rows = rows.append_column("label", pa.array(given_N))
    rows, outside = check_labels(rows, names, where=str(options.labels or base))
    notes = published_count(len(given_N), _IMAGES[split], f"{kind}'s {split} split")
    return Plan(rows, names, ArrayReader(files, _Loader(version)), outside, notes)


def _find(kind: str, source: Path, split: str) -> tuple[Path, _Version]:
    expected = " or ".join(
        f"{version.folder}/ with {', '.join(version.files[split])} and {version.names}"
        for version in _VERSIONS[kind]
    )
    need_folder(source, kind, expected)
    absent = []
    for version in _VERSIONS[kind]:
        for base in (source, source / version.folder):
            needed = [*version.files[split], version.names]
            lacks = [name for name in needed if not (base / name).is_file()]
            if not lacks:
                return base, version
            if len(lacks) < len(needed):
                absent.append(f"{base.name} lacks {', '.join(lacks)}")
    other = next(name for name in _VERSIONS if name != kind)
    if not absent and any((source / version.folder).is_dir() for version in _VERSIONS[other]):
        absent.append(f"it looks like {other}")
    raise wrong_layout(source, kind, "; ".join(absent) or "none of its files are in it", expected)


class _Loader:
    """Reads the pixels of a file."""

    def __init__(self, version: _Version) -> None:
        self._version = version

    def __call__(self, file: Path) -> Pixels:
        if self._version.header is not None:
            return read_records(file, self._version.header[0], _SIDE, "CIFAR")[1]
        return _pixels(_unpickle(file), file)


def _labels(file: Path, version: _Version) -> npt.NDArray[np.int64]:
    if version.header is not None:
        header, column = version.header
        return read_records(file, header, _SIDE, "CIFAR")[0][:, column].astype(np.int64)
    batch = _unpickle(file)
    labels = np.asarray(batch.get(version.label_key, ()))
    pixels = _pixels(batch, file)
    if labels.dtype.kind not in "iu" or labels.shape != (len(pixels),):
        raise DataError(
            f"{file}: {len(pixels):,} images but no list of as many {version.label_key!r} "
            f"(has: {', '.join(map(str, batch))})"
        )
    return labels.astype(np.int64)


def _pixels(batch: dict[str, Any], file: Path) -> Pixels:
    data = batch.get("data")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3072,):
        raise DataError(f"{file}: 'data' is no array of (n, 3072) bytes")
    return data.reshape(-1, 3, _SIDE, _SIDE)


def _names(file: Path, version: _Version) -> tuple[str, ...]:
    if version.header is not None:
        return tuple(read_lines(file).to_pylist())
    names = _unpickle(file).get(version.names_key)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{file}: no list {version.names_key!r} in it")
    return tuple(names)


class _ArraysOnly(pickle.Unpickler):
    """Builds NumPy arrays, numbers, text, lists and dicts; anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns what makes an array.

        Raises:
            pickle.UnpicklingError: Something else was asked for.
        """
        module = module.replace("numpy._core", "numpy.core")
        if (module, name) == ("numpy.core.multiarray", "_reconstruct"):
            from numpy._core.multiarray import _reconstruct

            return _reconstruct
        allowed = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
        if (module, name) in allowed:
            return allowed[module, name]
        if (module, name) == ("_codecs", "encode"):
            from _codecs import encode

            return encode
        raise pickle.UnpicklingError(f"it calls {module}.{name}, which no CIFAR file does")


def _unpickle(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            # Written by Python 2: its strings are bytes.
            content = _ArraysOnly(stream, encoding="latin1").load()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    except (
        *(pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError),
        *(AttributeError, ImportError, OverflowError, MemoryError),
    ) as error:
        raise DataError(f"{file}: not one of CIFAR's pickles: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: a pickled dict was expected, not {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


def _other_labels(
    file: Path, label_set: str | None, given_N: npt.NDArray[np.int64], split: str
) -> npt.NDArray[np.int64]:
    if split != "train":
        raise LabelError(f"{file}: CIFAR-N has labels for the training images alone")
    # CIFAR-100N has labels of the 20 coarse classes, too; these are the fine ones.
    sets = {name: labels for name, labels in read_label_file(file).items() if "coarse" not in name}
    lengths = {name: len(labels) for name, labels in sets.items()}
    if set(lengths.values()) != {len(given_N)}:
        raise LabelError(
            f"{file}: {', '.join(f'{n} has {k:,} labels' for n, k in lengths.items())}, and there "
            f"are {len(given_N):,} images"
        )
    clean_N = sets.pop("clean_label", None)
    if clean_N is not None:
        same = float(np.mean(clean_N == given_N))
        if same < _SAME:
            raise LabelError(
                f"{file}: its clean_label is CIFAR's label for only {same:.1%} of the images. It "
                "is in another order (such as TensorFlow's) or for another data set"
            )
    return _choose(file, sets, label_set)


def _choose(
    file: Path, sets: dict[str, npt.NDArray[np.int64]], label_set: str | None
) -> npt.NDArray[np.int64]:
    if label_set is None and len(sets) == 1:
        return next(iter(sets.values()))
    if label_set not in sets:
        asked = f"no label set {label_set!r}" if label_set else "several label sets"
        raise LabelError(f"{file}: {asked}; choose with --label-set: {', '.join(sorted(sets))}")
    return sets[label_set]
