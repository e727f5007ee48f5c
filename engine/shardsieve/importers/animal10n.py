"""ANIMAL-10N (Song et al. 2019) as its authors publish it.

```
SOURCE/                            SOURCE/
  training/0_1.jpg ...               data_batch_1.bin ... data_batch_5.bin
  testing/5_7.jpg ...                test_batch.bin
```

In the raw version the label is what stands before the underscore of the name. In the binary one
each record is an id and a label, four bytes each, the highest first, then three planes of 64 x 64.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shardsieve.errors import DataError
from shardsieve.importers.arrays import ArrayReader, Pixels, array_rows, read_records
from shardsieve.importers.files import FileReader
from shardsieve.importers.layouts import Options
from shardsieve.importers.lists import need_folder, published_count, wrong_layout
from shardsieve.importers.plan import Plan, Problem, check_labels, problem_table

_EXPECTED = (
    "training/LABEL_ID.jpg and testing/LABEL_ID.jpg, or data_batch_1.bin .. and test_batch.bin"
)
# In the order of the labels, as the data set's page has them.
CLASSES = (
    *("cat", "lynx", "wolf", "coyote", "cheetah"),
    *("jaguar", "chimpanzee", "orangutan", "hamster", "guinea pig"),
)
_FOLDERS = {"train": "training", "test": "testing"}
_IMAGES = {"train": 50_000, "test": 5_000}
_HEADER, _SIDE = 8, 64


def plan(kind: str, source: Path, options: Options) -> Plan:
    """Lists the files of a split, or its records.

    Raises:
        DataError: Neither version is there, or a file is not made of whole records.
    """
    need_folder(source, kind, _EXPECTED)
    split = options.split or "train"
    folder = source / _FOLDERS[split]
    if folder.is_dir():
        return _raw(kind, folder, split)
    pattern = "data_batch_*.bin" if split == "train" else "test_batch.bin"
    files = sorted(source.glob(pattern), key=lambda path: (len(path.name), path.name))
    if not files:
        found = f"neither a folder {_FOLDERS[split]} nor {pattern} in it"
        raise wrong_layout(source, kind, found, _EXPECTED)
    return _binary(files, split)


def _raw(kind: str, folder: Path, split: str) -> Plan:
    names = [
        os.fsencode(entry.name).decode("utf-8", "backslashreplace") for entry in os.scandir(folder)
    ]
    matches = {name: re.fullmatch(r"(\d+)_(\d+)\.jpe?g", name, re.IGNORECASE) for name in names}
    named = sorted(
        ((int(match[1]), int(match[2]), name) for name, match in matches.items() if match),
        # By id, as in the binary version: names sort by label.
        key=lambda item: (item[1], item[0]),
    )
    others = sorted(name for name, match in matches.items() if not match)
    if not named:
        found = f"no LABEL_ID.jpg among the {len(names):,} files of {folder.name}"
        raise wrong_layout(folder.parent, kind, found, _EXPECTED)
    rows = pa.table(
        {
            "source": pa.array([name for _, _, name in named], pa.string()),
            "label": np.array([label for label, _, _ in named], np.int64),
        }
    )
    rows, outside = check_labels(rows, CLASSES, where=f"the names in {folder.name}")
    strange = problem_table(others, Problem.NO_LABEL, "not called LABEL_ID.jpg")
    notes = published_count(len(named), _IMAGES[split], folder.name)
    return Plan(rows, CLASSES, FileReader(folder), pa.concat_tables([outside, strange]), notes)


def _binary(files: list[Path], split: str) -> Plan:
    headers = [read_records(file, _HEADER, _SIDE, "ANIMAL-10N")[0] for file in files]
    rows = array_rows(files, [len(header) for header in headers])
    header_N8 = np.concatenate(headers)
    numbers_N2 = _numbers(header_N8, files[0])
    rows = rows.append_column("label", pa.array(numbers_N2[:, 1]))
    rows = rows.append_column("id", pa.array(numbers_N2[:, 0]))
    rows, outside = check_labels(rows, CLASSES, where=files[0].name)
    notes = published_count(len(header_N8), _IMAGES[split], f"the binary {split} set")
    return Plan(rows, CLASSES, ArrayReader(files, _load), outside, notes)


def _numbers(header_N8: npt.NDArray[np.uint8], file: Path) -> npt.NDArray[np.int64]:
    """Returns id and label, whichever way round their bytes were written."""
    joined = np.ascontiguousarray(header_N8)
    for order in (">u4", "<u4"):
        numbers_N2 = joined.view(order).astype(np.int64)
        if np.mean(numbers_N2[:, 1] < len(CLASSES)) > 0.5:
            return numbers_N2
    raise DataError(
        f"{file}: bytes 4 to 8 of its records are no labels below {len(CLASSES)}; "
        "ANIMAL-10N's records are id, label (four bytes each) and 12,288 bytes of pixels"
    )


def _load(file: Path) -> Pixels:
    return read_records(file, _HEADER, _SIDE, "ANIMAL-10N")[1]
