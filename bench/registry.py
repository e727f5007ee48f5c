"""The measurements that `python -m bench run NAME` knows."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol, cast

# Name -> what it measures. Each is a module of bench.runs.
RUNS: dict[str, str] = {
    "class_gmm": "two-component mixtures per class, beside scikit-learn's in a loop",
    "probe": "training the linear probe, beside scikit-learn and a PyTorch loop",
    "probe_step": "loss and gradient of linear heads, beside torch",
    "index": "finding the samples of shards, beside tarfile; memory at one and four million",
    "decode": "JPEGs to a backbone's pixels: the decoders there are, beside Pillow",
    "embed": "images/s reading, decoding, computing and all of it; beside a Pillow DataLoader",
    "read": "samples by index from the original shards, beside webdataset's reader",
    "softmax_stats": "per-sample statistics of the logits, beside torch",
    "tune": "accuracy after fine-tuning on planted noise: all, GCE, probe, turn, best [--data]",
    "maps": "what fine-tuning makes of the features, and their maps [--data]",
    "write": "filtered shards, beside cp and webdataset's ShardWriter",
    "ray": "the engine ray beside the local one, and a simulation of 8 to 512 GPUs",
    "million": "the line after embedding at a million samples: seconds and memory per stage",
    "best": "the recipe `best`: seconds of the whole selection, up to a million samples",
    "report": "the report of a million samples: size, seconds to write and to load",
}


class Measurement(Protocol):
    """What a module of `bench.runs` offers."""

    def measure(self, *, quick: bool) -> dict[str, Any]:
        """Checks that the results are right, then times them.

        Args:
            quick: Small inputs, to see that it works; the figures mean nothing.

        Returns:
            JSON values: inputs, repeats, every figure.
        """

    def describe(self, result: dict[str, Any]) -> str:
        """Returns a short table for people."""


def load(name: str) -> Measurement:
    """Imports a measurement.

    Raises:
        KeyError: There is none of this name.
    """
    if name not in RUNS:
        raise KeyError(f"no measurement is called {name!r}; there are: {', '.join(RUNS) or 'none'}")
    return cast("Measurement", import_module(f"bench.runs.{name}"))
