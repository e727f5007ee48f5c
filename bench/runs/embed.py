"""Images to features, part by part and all of it, beside PyTorch behind a Pillow DataLoader."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from bench.embed_gpu import goals_gpu, measure_gpu
from bench.jpegs import photos, write_tars
from bench.timing import Cost, cost, in_bare_process, spreads
from shardsieve.config import EmbedConfig, IndexConfig
from shardsieve.data.index import SampleIndex
from shardsieve.embedding import Runner
from shardsieve.environment import SETTINGS
from shardsieve.models.backbone import load_backbone
from shardsieve.progress import Silent
from shardsieve.shards.prefetch import Rows, in_order
from shardsieve.stages.index import index

__all__ = ["describe", "goals", "goals_gpu", "measure", "measure_gpu"]

_SIDE = 128
_BASELINE = "PyTorch behind a Pillow DataLoader"
_THEIR_BATCH = 64
_CPU = torch.device("cpu")


def measure(*, quick: bool) -> dict[str, Any]:
    """Times read, decode, model and all of it in turn, on all cores, each in a process of its own.

    torch reads the settings of a command when it is loaded, and the baseline is to be without them.
    """
    n_images, repeats = (96, 1) if quick else (1200, 3)
    source, images = photos(n_images)
    if not quick:
        # A run goes on for minutes; the first seconds of a thread go into getting its memory.
        images = images * 3
    cores = len(os.sched_getaffinity(0))
    engines = ["torch", *(["openvino"] if find_spec("openvino") else [])]
    calls = {
        _BASELINE: ("", ""),
        "read only": ("read", "torch"),
        "decode only": ("decode", "torch"),
    }
    for engine in engines:
        calls[f"model only, {engine}"] = ("model", engine)
        if engine != "openvino":
            # Its streams are fixed when it is compiled.
            calls[f"model only, {engine}, all cores on one batch"] = ("model_at_once", engine)
        calls[f"all of it, {engine}"] = ("everything", engine)
    spent: dict[str, list[Cost]] = {what: [] for what in calls}
    with tempfile.TemporaryDirectory(prefix="shardsieve-bench-") as name:
        write_tars(Path(name), images, per_shard=max(len(images) // 6, 1))
        index(sorted(Path(name).glob("*.tar")), IndexConfig(), out=Path(name), progress=Silent())
        agreement = {
            engine: in_bare_process(cosine, name, engine, environment=SETTINGS)
            for engine in engines
        }
        for _ in range(repeats):
            for what, (part, engine) in calls.items():
                # The baseline is PyTorch as it comes.
                settings = SETTINGS if part else {}
                told = in_bare_process(one_part, name, part, engine, environment=settings)
                spent[what].append(Cost(*told))
    costs = spreads(spent)
    rates = {what: round(len(images) / cost["wall_s"][1], 1) for what, cost in costs.items()}
    ratios = {}
    for engine in engines:
        alone = max(
            rate for what, rate in rates.items() if what.startswith(f"model only, {engine}")
        )
        together = rates[f"all of it, {engine}"]
        ratios[engine] = {
            "of_model": round(together / alone, 3),
            "times_baseline": round(together / rates[_BASELINE], 2),
        }
    return {
        "repeats": repeats,
        "images": f"{len(images)} JPEGs ({source}), {_SIDE} px, tf_efficientnet_lite0, fp32",
        "cores": cores,
        "images_per_s": rates,
        "costs": costs,
        "ratios": ratios,
        "least_cosine_with_baseline": agreement,
    }


def describe(result: dict[str, Any]) -> str:
    """A line for each part."""
    cpu_s = {what: cost["cpu_s"][1] for what, cost in result["costs"].items()}
    lines = [
        f"{result['images']}; {result['cores']} cores, median of {result['repeats']}",
        f"{'':44} {'images/s':>9} {'CPU s':>8}",
        *(
            f"{what:44} {rate:9,.1f} {cpu_s[what]:8.2f}"
            for what, rate in result["images_per_s"].items()
        ),
    ]
    for engine, ratio in result["ratios"].items():
        lines.append(
            f"{engine}: all of it at {ratio['of_model']:.1%} of the model alone (goal: 95 %), "
            f"{ratio['times_baseline']:.2f} times the baseline (goal: 1.6); features' cosine with "
            f"it {result['least_cosine_with_baseline'][engine]:.5f} at least"
        )
    return "\n".join(lines)


def goals(result: dict[str, Any]) -> dict[str, bool]:
    """Says which goals were met."""
    met = {}
    for engine, ratio in result["ratios"].items():
        met[f"{engine}: 95 % of the model alone ({ratio['of_model']})"] = ratio["of_model"] >= 0.95
        met[f"{engine}: 1.6 times the baseline ({ratio['times_baseline']})"] = (
            ratio["times_baseline"] >= 1.6
        )
    return met


def one_part(folder: str, part: str, engine: str) -> Cost:
    """Times a part, after it has been done once; no part is the baseline."""
    samples, cores = SampleIndex.open(Path(folder)), len(os.sched_getaffinity(0))
    whose = _Parts(samples, engine, cores) if part else _Baseline(samples, cores)
    call: Callable[[], object] = getattr(whose, part or "run")
    call()
    return cost(call)


def cosine(folder: str, engine: str) -> float:
    """Returns the least cosine of an image's features with those of the baseline."""
    samples, cores = SampleIndex.open(Path(folder)), len(os.sched_getaffinity(0))
    ours = _Parts(samples, engine, cores).features()
    return _cosine(ours, _Baseline(samples, cores).features())


class _Parts:
    """The parts of embedding, each with the threads that it has in a run."""

    def __init__(self, samples: SampleIndex, engine: str, cores: int) -> None:
        config = EmbedConfig.model_validate(
            {"image_size": _SIDE, "precision": "fp32", "engine": engine}
        )
        self.runner = Runner(config, _CPU, cores)
        self.runner.read_from(samples)
        self._cores = cores
        self._batches: list[Rows] = []
        for shard in range(len(samples.shards)):
            rows, size = samples.rows_of(shard), self.runner.batch_size
            self._batches += [
                np.arange(at, min(at + size, rows.stop))
                for at in range(rows.start, rows.stop, size)
            ]
        self._resident = [self.runner.images(rows).pixels for rows in self._batches]

    def features(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        parts = [done.features_BD for done in self.runner.run(self._batches)]
        return np.concatenate(parts).astype(np.float32)

    def read(self) -> None:
        images = self.runner.images
        self._on_threads(lambda rows: [images.read(row) for row in rows.tolist()], self._batches)

    def decode(self) -> None:
        self._on_threads(self.runner.images, self._batches)

    def model(self) -> None:
        self._on_threads(self.runner.engine, self._resident)

    def model_at_once(self) -> None:
        for pixels in self._resident:
            self.runner.engine(pixels)

    def everything(self) -> None:
        for _ in self.runner.run(self._batches):
            pass

    def _on_threads(self, work: Callable[[Any], object], items: list[Any]) -> None:
        before = torch.get_num_threads()
        for _ in in_order(
            work,
            items,
            threads=self._cores,
            ahead=self._cores + 2,
            start=lambda: torch.set_num_threads(1),
        ):
            pass
        torch.set_num_threads(before)


class _Pictures(Dataset[Any]):
    """What people write: a range of a file, Pillow, timm's transform."""

    def __init__(self, samples: SampleIndex, transform: Callable[[Image.Image], Any]) -> None:
        self._paths = [str(ref.path) for ref in samples.shards]
        self._shard_N = samples.numbers("shard")
        self._offset_N = samples.numbers("image_offset")
        self._size_N = samples.numbers("image_size")
        self._transform = transform

    def __len__(self) -> int:
        return len(self._shard_N)

    def __getitem__(self, row: int) -> Any:
        with Path(self._paths[self._shard_N[row]]).open("rb") as file:
            file.seek(int(self._offset_N[row]))
            data = file.read(int(self._size_N[row]))
        return self._transform(Image.open(io.BytesIO(data)).convert("RGB"))


class _Baseline:
    """Eager fp32, a worker process per core, 64 images a batch."""

    def __init__(self, samples: SampleIndex, cores: int) -> None:
        from timm.data import create_transform

        backbone = load_backbone(EmbedConfig(image_size=_SIDE), _CPU)
        ways = backbone.preprocessing
        self._network = backbone.network.to(memory_format=torch.contiguous_format)
        transform = create_transform(
            (3, _SIDE, _SIDE),
            interpolation=ways.interpolation,
            crop_pct=ways.crop_pct,
            mean=ways.mean,
            std=ways.std,
        )
        self._loader = DataLoader(
            _Pictures(samples, transform), batch_size=_THEIR_BATCH, num_workers=cores
        )

    def features(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        with torch.inference_mode():
            return torch.cat([self._network(images) for images in self._loader]).numpy()

    def run(self) -> None:
        self.features()


def _cosine(
    ours_ND: np.ndarray[Any, np.dtype[np.float32]], theirs_ND: np.ndarray[Any, np.dtype[np.float32]]
) -> float:
    """The least cosine of two features of the same image; anything below 0.99 is another one."""
    lengths = np.linalg.norm(ours_ND, axis=1) * np.linalg.norm(theirs_ND, axis=1)
    least = float(((ours_ND * theirs_ND).sum(1) / lengths).min())
    assert least > 0.99, f"other features than the baseline's: cosine {least}"
    return round(least, 6)
