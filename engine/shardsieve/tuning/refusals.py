"""What `tune` would refuse after hours of other stages, and must refuse before."""

from __future__ import annotations

from shardsieve.config import TuneConfig
from shardsieve.tuning.metrics import refuse_without_tensorboard
from shardsieve.tuning.optimisation import refuse_unknown_optimiser


def refuse_what_is_missing(tune: TuneConfig) -> None:
    """Makes sure that what the settings name is there.

    Raises:
        ConfigError: timm has no such optimiser, or a package is not installed.
    """
    refuse_unknown_optimiser(tune.optimiser)
    if tune.tensorboard:
        refuse_without_tensorboard()
