"""docs/import.md names what there is."""

import re
from pathlib import Path

import numpy as np
from sklearn.datasets import make_blobs

from shardsieve.importers.layouts import LAYOUTS
from shardsieve.importers.plan import Problem

TEXT = (Path(__file__).parents[2] / "docs" / "import.md").read_text(encoding="utf-8")


def test_every_layout_split_and_reason_is_there():
    rows = [line for line in TEXT.splitlines() if line.startswith("| `")]
    for kind, layout in LAYOUTS.items():
        (row,) = [line for line in rows if f"`{kind}`" in line.split("|")[1]]
        if layout.splits:
            assert re.findall("`([^`]+)`", row.split("|")[3]) == list(layout.splits)
    for reason in Problem:
        assert any(f"`{reason}`" in line.split("|")[1] for line in rows)


def test_the_python_of_the_page_runs():
    (script,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    features, labels = make_blobs(90, n_features=4, centers=3, random_state=0)
    probs = np.eye(3)[labels] * 0.7 + 0.1
    names = {"features": features, "labels": labels, "probs": probs}
    exec(script, names)
    assert names["noisy"].keep_.shape == names["found"].keep.shape == (90,)
