"""Optimiser, learning rate, loss scaling, clipping and moving average: timm's and torch's."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from shardsieve.config import TuneConfig
from shardsieve.engines.processes import Group
from shardsieve.errors import ConfigError

_MOMENTUM = 0.9
# Of the schedule in an epoch: its number of steps may change with the selection.
_TICKS = 1000
# torch's own, which can update all weights in one kernel.
_FUSED = ("adam", "adamw", "sgd")


def refuse_unknown_optimiser(name: str) -> None:
    """Checks a name against timm's list.

    Raises:
        ConfigError: timm has no such optimiser.
    """
    from timm.optim import list_optimizers

    if name not in list_optimizers():
        known = ", ".join(n for n in list_optimizers() if not n.startswith(("bnb", "fused")))
        raise ConfigError(f"tune.optimiser = {name}: timm has no such optimiser; it has {known}")


class Optimisation:
    """What turns gradients into weights, and everything of it that must survive a restart."""

    def __init__(self, network: nn.Module, config: TuneConfig, group: Group, fp16: bool) -> None:
        from timm.optim import create_optimizer_v2
        from timm.scheduler import CosineLRScheduler
        from timm.utils import ModelEmaV3

        refuse_unknown_optimiser(config.optimiser)
        fused = group.device.type == "cuda" and config.optimiser in _FUSED
        self._config, self._network = config, network
        self._optimiser: torch.optim.Optimizer = create_optimizer_v2(
            network,
            opt=config.optimiser,
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=_MOMENTUM,
            layer_decay=config.layer_decay,
            **({"fused": True} if fused else {}),
        )
        self._schedule = CosineLRScheduler(
            self._optimiser,
            t_initial=_TICKS * config.epochs,
            lr_min=config.lr if config.schedule == "constant" else 0.0,
            warmup_t=_TICKS * config.warmup_epochs,
            t_in_epochs=False,
        )
        self._scaler = torch.amp.GradScaler(group.device.type, enabled=fp16)
        self._ema = (
            ModelEmaV3(network, decay=config.ema_decay, use_warmup=True)
            if config.ema_decay is not None
            else None
        )
        self._updates = 0

    @property
    def averaged(self) -> nn.Module:
        """The network that counts: the moving average where there is one."""
        module: nn.Module = self._network if self._ema is None else self._ema.module
        return module

    @property
    def lr(self) -> float:
        """The learning rate now, of the layers that learn fastest."""
        return max(float(group["lr"]) for group in self._optimiser.param_groups)

    def begin(self, at: float) -> None:
        """Sets the learning rate for a step `at` so many epochs from the start; no gradients."""
        self._schedule.step_update(_TICKS * at)
        self._optimiser.zero_grad(set_to_none=True)

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradients of a part of the step."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """Changes the weights by the gradients of the step."""
        if self._config.clip_norm is not None:
            self._scaler.unscale_(self._optimiser)
            nn.utils.clip_grad_norm_(self._network.parameters(), self._config.clip_norm)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        self._updates += 1
        if self._ema is not None:
            self._ema.update(self._network, self._updates)

    def state_dict(self) -> dict[str, Any]:
        """Returns what a restart needs; the learning rate follows from the position."""
        return {
            "optimiser": self._optimiser.state_dict(),
            "scaler": self._scaler.state_dict(),
            "ema": None if self._ema is None else self._ema.module.state_dict(),
            "updates": self._updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` returned."""
        self._optimiser.load_state_dict(state["optimiser"])
        self._scaler.load_state_dict(state["scaler"])
        if self._ema is not None:
            self._ema.module.load_state_dict(state["ema"])
        self._updates = state["updates"]
