"""A finished run, as Python sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shardsieve.data.features import FeatureStore
from shardsieve.data.index import SampleIndex
from shardsieve.data.manifest import Manifest
from shardsieve.errors import StaleArtefact
from shardsieve.rundir import RunDir


class Run:
    """A run directory and what lies in it; everything is read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._directory = RunDir(path)

    @property
    def manifest(self) -> Manifest:
        """What came in, what came out, and why."""
        return Manifest.model_validate_json((self.path / "manifest.json").read_text("utf-8"))

    @property
    def index(self) -> SampleIndex:
        """The samples in the row order of all tables."""
        return SampleIndex.open(self._directory.folder("index"))

    @property
    def scores(self) -> pa.Table:
        """One row per sample: label, loss, margin, pred, p_clean, kept, reason."""
        return pq.read_table(self._directory.folder("select") / "scores.parquet")

    @property
    def classes(self) -> pa.Table:
        """One row per class: samples, kept, and the fitted mixture."""
        return pq.read_table(self._directory.folder("select") / "classes.parquet")

    @property
    def features(self) -> FeatureStore:
        """The cached features, mapped."""
        n_shards = len(self.index.shards)
        return FeatureStore.open(self._directory.folder("embed"), n_shards)

    @property
    def clean_shards(self) -> list[Path]:
        """The filtered shards."""
        return sorted(self._directory.folder("write").glob("clean-*.tar"))

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self._directory.folder("report") / "report.html"

    @property
    def model(self) -> Path:
        """The fine-tuned weights, if the run was tuned."""
        return self._directory.folder("tune") / "model.safetensors"


def open_run(path: str | Path) -> Run:
    """Opens a run directory.

    Raises:
        StaleArtefact: There is no run in it.
    """
    run = Run(Path(path))
    if not (run.path / "manifest.json").is_file():
        raise StaleArtefact(f"{path}: no run here (no manifest.json); make one with `clean`")
    return run


def manifest_json(run: Run) -> dict[str, Any]:
    """Returns the manifest as JSON values, with where the results lie."""
    tree: dict[str, Any] = json.loads((run.path / "manifest.json").read_text(encoding="utf-8"))
    return {"run": str(run.path.resolve()), **tree}
