"""shardsieve: finds the wrong labels in WebDataset shards and writes the clean samples back.

```python
import shardsieve

if __name__ == "__main__":  # images are decoded in processes of their own
    run = shardsieve.clean(["train-{0000..0019}.tar"], "RUN")
    print(run.manifest.counts)
```

The stages are plain functions in `shardsieve.stages`; `clean` runs them in order and keeps their
results in a run directory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shardsieve.arrays import CleanLabels, clean_labels
    from shardsieve.config import Config, load_config
    from shardsieve.data.manifest import Manifest
    from shardsieve.engines.choice import Engine
    from shardsieve.estimator import NoisyLabelFilter
    from shardsieve.importers.run import import_shards
    from shardsieve.pipeline import clean
    from shardsieve.predictions import Predictions, predict
    from shardsieve.run import Run, open_run
    from shardsieve.shards.clean import open_clean

__all__ = [
    "CleanLabels",
    "Config",
    "Engine",
    "Manifest",
    "NoisyLabelFilter",
    "Predictions",
    "Run",
    "clean",
    "clean_labels",
    "import_shards",
    "load_config",
    "open_clean",
    "open_run",
    "predict",
]

_HOMES = {
    "Config": "shardsieve.config",
    "load_config": "shardsieve.config",
    "Engine": "shardsieve.engines.choice",
    "Manifest": "shardsieve.data.manifest",
    "CleanLabels": "shardsieve.arrays",
    "NoisyLabelFilter": "shardsieve.estimator",
    "clean_labels": "shardsieve.arrays",
    "import_shards": "shardsieve.importers.run",
    "Predictions": "shardsieve.predictions",
    "Run": "shardsieve.run",
    "clean": "shardsieve.pipeline",
    "predict": "shardsieve.predictions",
    "open_clean": "shardsieve.shards.clean",
    "open_run": "shardsieve.run",
}


def __getattr__(name: str) -> Any:
    """Imports on first use: `shardsieve --help` must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'shardsieve' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
