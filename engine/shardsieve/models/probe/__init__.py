"""The probe: linear heads on cached features, trained side by side."""

from shardsieve.models.probe.heads import Heads, HeadSpec
from shardsieve.models.probe.train import head_specs, train_heads

__all__ = ["HeadSpec", "Heads", "head_specs", "train_heads"]
