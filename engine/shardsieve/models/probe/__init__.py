"""The probe: linear heads on cached features, trained side by side."""

from shardsieve.models.probe.heads import Heads, HeadSpec
from shardsieve.models.probe.score import draw_folds, score
from shardsieve.models.probe.train import head_specs, train_heads

__all__ = ["HeadSpec", "Heads", "draw_folds", "head_specs", "score", "train_heads"]
