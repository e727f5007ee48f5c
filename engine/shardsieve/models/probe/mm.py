"""Generalised cross entropy without seed, step size or batch size: majorise and minimise.

-exp(q l) / q is concave in l = log p_y, so its tangent at the present heads lies above the loss and
touches it there: L_q(l) <= L_q(l') + p'^q (l' - l). Each round minimises that bound, which is cross
entropy weighted by p'^q and so convex; whatever lowers the bound lowers the loss itself.

Shapes: R rows, B samples, D features, H heads, K classes, E rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from shardsieve.models.probe.batches import Batches
from shardsieve.models.probe.gradient import LossGradient
from shardsieve.models.probe.heads import HeadSpec
from shardsieve.models.probe.ridge import Moments
from shardsieve.models.probe.targets import Targets

# Passes over the features that a round spends on its bound, and pairs that L-BFGS remembers.
_PASSES = 4
_MEMORY = 6
# A step must lower the bound by this share of what its slope promises (Armijo).
_SUFFICIENT = 1e-4
# A head is done when a round lowers its objective by less than this share.
_TOLERANCE = 1e-4
# Added to the second moments of the preconditioner, as a share of their mean.
_DAMPING = 0.01


class Passes:
    """Objectives and gradients over all samples, for all heads at once."""

    def __init__(
        self,
        batches: Batches,
        targets: Targets,
        losses: LossGradient,
        specs: Sequence[HeadSpec],
        n_rows: int,
        n_classes: int,
    ) -> None:
        """Makes room for a factor per sample and head, 4 R H bytes."""
        device = losses.q_H.device
        self._batches, self._targets, self._losses = batches, targets, losses
        self.shape = (-1, len(specs), n_classes)
        # At zero weights every p^q is K^-q, and so is the pull of the labels: a penalty that did
        # not follow would win at 100 classes where it is right for 10: all weights go to zero.
        self._l2_H = torch.tensor([spec.l2 * n_classes**-spec.q for spec in specs], device=device)
        self._factor_RH = torch.ones(n_rows, len(specs), device=device)
        self._no_q_H = torch.zeros_like(losses.q_H)

    def reweight(self, parameters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Lays the bound at these heads.

        Returns:
            (H,) objective, (H,) bound less what is constant in it, both f64, and the
            (D + 1, H, K) gradient, which both have.
        """
        q_H = self._losses.q_H
        objective_H = torch.zeros_like(q_H, dtype=torch.float64)
        bound_H, seen_H = torch.zeros_like(objective_H), torch.zeros_like(objective_H)
        gradient = torch.empty_like(parameters)
        first = True
        for inputs_BD, where in self._batches.all():
            labels_B, weights_BH = self._targets.at(where)
            loss_BH = self._losses.add_to(
                gradient, inputs_BD.float(), parameters, labels_B, weights_BH, first=first
            )
            # p^q, and the cross entropy by it; both loss and q = 0 give cross entropy itself.
            power_BH = (1 - q_H * loss_BH).clamp_min_(0)
            entropy_BH = torch.where(
                q_H > 0, -power_BH.clamp_min(1e-38).log() / q_H.clamp_min(1e-30), loss_BH
            )
            self._factor_RH[where] = power_BH
            weight = 1.0 if weights_BH is None else weights_BH
            objective_H += (loss_BH * weight).sum(0)
            bound_H += (entropy_BH * power_BH * weight).sum(0)
            seen_H += len(labels_B) if weights_BH is None else weights_BH.sum(0)
            first = False
        self._seen_H = seen_H
        penalty_H = self._penalise(parameters, gradient)
        return (
            objective_H / seen_H + penalty_H,
            bound_H / seen_H + penalty_H,
            gradient.view(self.shape),
        )

    def bound(self, parameters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the bound at other heads, (H,) f64, and its (D + 1, H, K) gradient."""
        bound_H = torch.zeros_like(self._seen_H)
        gradient = torch.empty_like(parameters)
        first = True
        for inputs_BD, where in self._batches.all():
            labels_B, weights_BH = self._targets.at(where)
            factor_BH = self._factor_RH[where]
            if weights_BH is not None:
                factor_BH = factor_BH * weights_BH
            loss_BH = self._losses.add_to(
                gradient,
                inputs_BD.float(),
                parameters,
                labels_B,
                factor_BH,
                first=first,
                q_H=self._no_q_H,
            )
            bound_H += (loss_BH * factor_BH).sum(0)
            first = False
        penalty_H = self._penalise(parameters, gradient)
        return bound_H / self._seen_H + penalty_H, gradient.view(self.shape)

    def _penalise(self, parameters: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Turns sums into means, adds the gradient of the penalty and returns the penalty."""
        weight, slope = parameters.view(self.shape), gradient.view(self.shape)
        slope /= self._seen_H[:, None]
        slope[:-1] += weight[:-1] * self._l2_H[:, None]
        return weight[:-1].double().square().sum((0, 2)) * self._l2_H / 2


class Lbfgs:
    """Directions of L-BFGS (Nocedal & Wright 2006, algorithm 7.4) for every head by itself."""

    def __init__(self, preconditioner: torch.Tensor, n_heads: int) -> None:
        """Takes a (D + 1, D + 1) f32 approximate inverse of every class's Hessian."""
        self._preconditioner = preconditioner
        self._pairs: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        # Bounds the Hessian of a softmax, whatever the probabilities (Bohning 1992).
        self._scale_H = torch.full((n_heads,), 2.0, device=preconditioner.device)

    def learn(self, step: torch.Tensor, change: torch.Tensor, taken_H: torch.Tensor) -> None:
        """Remembers how the gradient of some heads changed along a step of theirs."""
        product_H = _dot(step, change)
        known_H = taken_H & (product_H > 0)
        inverse_H = torch.where(known_H, 1 / product_H.where(known_H, 1.0), 0.0)
        keep = known_H[:, None].float()
        self._pairs = [*self._pairs[1 - _MEMORY :], (step * keep, change * keep, inverse_H)]
        curve_H = _dot(change, self._apply(change))
        ratio_H = (product_H / curve_H.clamp_min(1e-38)).float()
        self._scale_H = torch.where(known_H, ratio_H, self._scale_H)

    def direction(self, gradient: torch.Tensor) -> torch.Tensor:
        """Returns where to go from a gradient, both (D + 1, H, K)."""
        left = gradient.clone()
        shares = []
        for step, change, inverse_H in reversed(self._pairs):
            shares.append((inverse_H * _dot(step, left)).float())
            left -= shares[-1][:, None] * change
        left = self._apply(left) * self._scale_H[:, None]
        for (step, change, inverse_H), share_H in zip(self._pairs, reversed(shares), strict=True):
            left += (share_H - inverse_H * _dot(change, left)).float()[:, None] * step
        return left.neg_()

    def _apply(self, values: torch.Tensor) -> torch.Tensor:
        return (self._preconditioner @ values.flatten(1)).view_as(values)


def train_mm(
    parameters: torch.Tensor,
    passes: Passes,
    moments: Moments,
    *,
    rounds: int,
    on_round: Callable[[int], None],
) -> torch.Tensor:
    """Minimises the penalised mean loss of every head, in place; it never rises.

    Args:
        parameters: (D + 1, H K) f32, where to start from: away from zero, where every weight p^q is
            alike and small.
        passes: The objective.
        moments: Of the features, to precondition with.
        rounds: Bounds to lay at most. A head that a round moves by less than 1e-4 of its objective
            is done, and so is the training when all are.
        on_round: Called with the number of each round that has ended.

    Returns:
        (rounds + 1, H) f64 objective before the first and after each round.
    """
    view = parameters.view(len(parameters), *passes.shape[1:])
    search = Lbfgs(_preconditioner(moments), view.shape[1])
    objective_H, bound_H, gradient = passes.reweight(parameters)
    curve = [objective_H]
    alive_H = torch.ones_like(objective_H, dtype=torch.bool)
    for number in range(rounds):
        before = view.clone()
        _lower_bound(view, passes, search, bound_H, gradient, alive_H)
        objective_H, bound_H, gradient = passes.reweight(parameters)
        # Only rounding can have raised it.
        worse_H = objective_H > curve[-1]
        if worse_H.any():
            view.copy_(torch.where(worse_H[:, None], before, view))
        alive_H &= curve[-1] - objective_H > _TOLERANCE * curve[-1]
        curve.append(torch.where(worse_H, curve[-1], objective_H))
        on_round(number)
        if not alive_H.any():
            break
    return torch.stack(curve)


def _lower_bound(
    view: torch.Tensor,
    passes: Passes,
    search: Lbfgs,
    bound_H: torch.Tensor,
    gradient: torch.Tensor,
    alive_H: torch.Tensor,
) -> None:
    """Moves the heads in `view`, (D + 1, H, K), each by steps that lower its bound."""
    direction = search.direction(gradient)
    length_H = torch.ones(view.shape[1], device=view.device)
    for _ in range(_PASSES):
        slope_H = _dot(direction, gradient)
        step = direction * length_H[:, None]
        trial_H, trial_gradient = passes.bound((view + step).flatten(1))
        enough = bound_H + _SUFFICIENT * length_H * slope_H
        taken_H = alive_H & (slope_H < 0) & (trial_H <= enough)
        search.learn(step, trial_gradient - gradient, taken_H)
        taken = taken_H[:, None]
        view += step * taken
        gradient = torch.where(taken, trial_gradient, gradient)
        bound_H = torch.where(taken_H, trial_H, bound_H)
        # Along the same way but shorter where it went too far.
        direction = torch.where(taken, search.direction(gradient), direction)
        length_H = torch.where(taken_H, 1.0, length_H / 4)


def _preconditioner(moments: Moments) -> torch.Tensor:
    dim = len(moments.sum_D)
    second = torch.empty(dim + 1, dim + 1, dtype=torch.float64, device=moments.sum_D.device)
    second[:-1, :-1] = moments.gram()
    second[:-1, -1] = second[-1, :-1] = moments.sum_D
    second[-1, -1] = moments.weight
    second /= moments.weight
    second.diagonal().add_(_DAMPING * second.diagonal().mean())
    return torch.linalg.inv(second).float()


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a.double() * b.double()).sum((0, 2))
