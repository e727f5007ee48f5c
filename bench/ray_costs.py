"""What Ray itself costs: its start, what workers load, and the driver's work for a shard."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

_FILE_BYTES = 4_000_000


def costs_of_the_engine(folder: str) -> dict[str, Any]:
    """Times what Ray adds: its start, what workers load, and the driver's work for a shard."""
    from shardsieve.engines.executor import Job
    from shardsieve.engines.ray_engine import RayExecutor
    from shardsieve.engines.ray_worker import Place
    from shardsieve.progress import Silent

    out = Path(folder) / "engine"
    out.mkdir()
    executor = RayExecutor(Silent(), workers=2)
    start = time.perf_counter()
    # As a command does.
    executor.start("cpu", 2)
    list(executor.map(Job("index", "images", _Nothing, _one), list(range(8)), out, _unheard))
    ray_s = time.perf_counter() - start
    start = time.perf_counter()
    list(executor.map(Job("embed", "images", _Load, _one), [0, 1], out, _unheard))
    load_s = time.perf_counter() - start
    n_pieces = 400
    start = time.perf_counter()
    list(executor.map(Job("embed", "images", _Nothing, _one), list(range(n_pieces)), out, _unheard))
    driver_s = (time.perf_counter() - start) / n_pieces
    n_files = 40
    start = time.perf_counter()
    with _hidden(Place):
        # As without a common disk: the files pass through the driver.
        list(executor.map(Job("embed", "images", _File, _one), list(range(n_files)), out, _unheard))
    seconds = time.perf_counter() - start - n_files * driver_s
    executor.close()
    return {
        "ray_s": round(ray_s, 2),
        "load_s": round(load_s, 2),
        "driver_s": round(driver_s, 5),
        "bytes_per_s": round(n_files * _FILE_BYTES / max(seconds, 1e-3)),
    }


class _Nothing:
    """Work that costs nothing, so that the rest is seen."""

    def run(self, pieces: Any, out: Path, advance: Any) -> Any:
        yield from pieces

    def close(self) -> None:
        """Nothing is open."""


class _File(_Nothing):
    """Work that leaves a file of features, and costs nothing else."""

    def run(self, pieces: Any, out: Path, advance: Any) -> Any:
        for piece in pieces:
            (out / f"{piece}.bin").write_bytes(bytes(_FILE_BYTES))
            yield piece


class _Load(_Nothing):
    """Loads what `embed` loads."""

    def __init__(self) -> None:
        import torch

        from shardsieve.config import EmbedConfig
        from shardsieve.models.backbone import load_backbone

        load_backbone(EmbedConfig(), torch.device("cpu"))


def _one(result: object) -> int:
    return 1


def _unheard(amount: int) -> None:
    return None


class _hidden:
    """Workers do not find the folder by which they would know that they see the driver's."""

    def __init__(self, place: Any) -> None:
        self._place = place

    def __enter__(self) -> None:
        self._place.__reduce__ = lambda place: (type(place), (place.out, "another disk"))

    def __exit__(self, *error: object) -> None:
        del self._place.__reduce__
