"""Least squares on the labels in closed form: no step size, no seed, one pass.

Shapes: B samples, D features, H heads, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from shardsieve.models.probe.batches import Batches
from shardsieve.models.probe.heads import HeadSpec
from shardsieve.models.probe.targets import Targets

# Samples from which the temperature is found.
_TEMPERATURE_ROWS = 8192
# Columns of X'X computed at a time, so that what lies below its diagonal is mostly left out.
_PANEL = 192
# Shares of the mean eigenvalue that the penalty is chosen from.
_PENALTIES = torch.logspace(-6, 1, 29, dtype=torch.float64)


@dataclass(slots=True)
class Moments:
    """Sums over samples: all that least squares knows of them; f64, on the device.

    Attributes:
        weight: Sum of weights.
        sum_D: Of the features.
        count_K: Weight of each class.
        gram_DD: X'X on and above the diagonal; what lies below means nothing, see `gram`.
        cross_DK: X'Y, Y one column per class, 1 for the label.
    """

    weight: torch.Tensor
    sum_D: torch.Tensor
    count_K: torch.Tensor
    gram_DD: torch.Tensor
    cross_DK: torch.Tensor

    @classmethod
    def none(cls, dim: int, n_classes: int, device: torch.device) -> Moments:
        """Returns the moments of no sample."""

        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        return cls(zeros(), zeros(dim), zeros(n_classes), zeros(dim, dim), zeros(dim, n_classes))

    def add(
        self, inputs_BD: torch.Tensor, labels_B: torch.Tensor, weight_B: torch.Tensor | None
    ) -> None:
        """Adds samples; None weighs all 1."""
        inputs_BD = inputs_BD.float()
        weighted = inputs_BD if weight_B is None else inputs_BD * weight_B[:, None]
        weight_B = torch.ones_like(inputs_BD[:, 0]) if weight_B is None else weight_B
        labels_B = labels_B.long()
        n_classes = len(self.count_K)
        if inputs_BD.device.type == "cpu":
            self.count_K.index_add_(0, labels_B, weight_B.double())
            sums_KD = inputs_BD.new_zeros(n_classes, inputs_BD.shape[1])
            sums_DK = sums_KD.index_add_(0, labels_B, weighted).T
        else:
            # Sums by index are not the same twice there, and a product costs little.
            one_hot = inputs_BD.new_zeros(len(labels_B), n_classes)
            one_hot.scatter_(1, labels_B[:, None], 1.0)
            self.count_K += weight_B @ one_hot
            sums_DK = weighted.T @ one_hot
        # Products in f32, their sums over the pieces in f64.
        self.weight += weight_B.sum()
        self.cross_DK += sums_DK
        self.sum_D += sums_DK.sum(1)
        for start in range(0, inputs_BD.shape[1], _PANEL):
            panel = weighted[:, start : start + _PANEL]
            self.gram_DD[start : start + _PANEL, start:] += panel.T @ inputs_BD[:, start:]

    def minus(self, other: Moments | None) -> Moments:
        """Returns the moments without those samples."""
        if other is None:
            return self
        return Moments(
            self.weight - other.weight,
            self.sum_D - other.sum_D,
            self.count_K - other.count_K,
            self.gram_DD - other.gram_DD,
            self.cross_DK - other.cross_DK,
        )

    def gram(self) -> torch.Tensor:
        """Returns all of X'X, (D, D)."""
        upper = self.gram_DD.triu()
        return upper + upper.triu(1).T

    def centred(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (D, D) covariance of the features and (D, K) with the classes, per sample."""
        mean_D = self.sum_D / self.weight
        covariance = self.gram() / self.weight - torch.outer(mean_D, mean_D)
        cross = self.cross_DK / self.weight - torch.outer(mean_D, self.count_K / self.weight)
        return covariance, cross


def measure_moments(
    batches: Batches,
    targets: Targets,
    specs: Sequence[HeadSpec],
    dim: int,
    n_classes: int,
    device: torch.device,
    advance: Callable[[int], None],
) -> list[Moments]:
    """Measures the moments of what each head may see, in one pass.

    With weights that all heads share, folds cost nothing more: a head sees all but its fold. With
    weights of their own every head costs a product of its own.
    """
    n_heads = len(specs)
    if targets.per_head:
        each = [Moments.none(dim, n_classes, device) for _ in specs]
        for inputs_BD, where in batches.all():
            labels_B, weights_BH = targets.at(where)
            assert weights_BH is not None
            for head in range(n_heads):
                each[head].add(inputs_BD, labels_B, weights_BH[:, head])
            advance(len(labels_B))
        return each
    folds = sorted({spec.fold for spec in specs if spec.fold is not None})
    whole = Moments.none(dim, n_classes, device)
    parts = {fold: Moments.none(dim, n_classes, device) for fold in folds}
    for inputs_BD, where in batches.all():
        labels_B, fold_B, weight_B = targets.shared_at(where)
        left = torch.ones(len(labels_B), dtype=torch.bool, device=device)
        for fold in folds:
            assert fold_B is not None
            inside = fold_B == fold
            left &= ~inside
            _add_some(parts[fold], inputs_BD, labels_B, weight_B, inside)
        if folds:
            _add_some(whole, inputs_BD, labels_B, weight_B, left)
        else:
            whole.add(inputs_BD, labels_B, weight_B)
        advance(len(labels_B))
    for part in parts.values():
        for name in ("weight", "sum_D", "count_K", "gram_DD", "cross_DK"):
            getattr(whole, name).add_(getattr(part, name))
    return [whole.minus(None if spec.fold is None else parts[spec.fold]) for spec in specs]


def _add_some(
    moments: Moments,
    inputs_BD: torch.Tensor,
    labels_B: torch.Tensor,
    weight_B: torch.Tensor | None,
    some_B: torch.Tensor,
) -> None:
    moments.add(inputs_BD[some_B], labels_B[some_B], None if weight_B is None else weight_B[some_B])


def solve_ridge(
    moments: Sequence[Moments], batches: Batches, targets: Targets, parameters: torch.Tensor
) -> None:
    """Writes the closed-form heads into `parameters`, (D + 1, H K) f32.

    Each class is regressed on as 0 or 1, with a penalty on the weights, none on the bias; the
    penalty is the one with the least generalised cross validation error (Golub, Heath & Wahba 1979)
    for the first head, and the same for the others. The scores, about P(class | sample), become
    logits by one factor per head, the one under which the given labels of a sample of the data are
    most likely; their order is that of the scores.
    """
    n_heads = len(moments)
    n_classes = len(moments[0].count_K)
    penalty = _choose_penalty(moments[0])
    view = parameters.view(len(parameters), n_heads, n_classes)
    for head, own in enumerate(moments):
        covariance, cross = own.centred()
        covariance.diagonal().add_(penalty)
        weight = torch.linalg.solve(covariance, cross)
        view[:-1, head] = weight.float()
        view[-1, head] = ((own.count_K - own.sum_D @ weight) / own.weight).float()
    _scale_to_logits(view, batches, targets)


def _choose_penalty(moments: Moments) -> torch.Tensor:
    covariance, cross = moments.centred()
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp_min(0)
    energy_D = (vectors.T @ cross).square().sum(1)
    share_K = moments.count_K / moments.weight
    variance = (share_K - share_K.square()).sum()
    penalties = _PENALTIES.to(values.device) * values.mean()
    shrunk = values + penalties[:, None]
    # Per sample: |Y|^2 - 2 <W, X'Y> + <W, X'X W> along the eigenvectors.
    residual = variance - ((shrunk + penalties[:, None]) / shrunk.square() * energy_D).sum(1)
    freedom = 1 + (values / shrunk).sum(1)
    left = (1 - freedom / moments.weight).clamp_min(1e-3)
    return penalties[(residual / left.square()).argmin()]


def _scale_to_logits(view: torch.Tensor, batches: Batches, targets: Targets) -> None:
    """Multiplies (D + 1, H, K) scores by the factor under which the labels are most likely."""
    scores, labels, weights = [], [], []
    for inputs_BD, where in batches.sample(_TEMPERATURE_ROWS):
        labels_B, weights_BH = targets.at(where)
        scores.append(_scores(inputs_BD.float(), view))
        labels.append(labels_B.long())
        if weights_BH is None:
            weights_BH = torch.ones(len(labels_B), view.shape[1], device=view.device)
        weights.append(weights_BH)
    score_BHK, label_B, weight_BH = (torch.cat(list_) for list_ in (scores, labels, weights))
    index = label_B[:, None, None].expand(*score_BHK.shape[:2], 1)
    score_BH = score_BHK.gather(-1, index).squeeze(-1)
    weight_BH = weight_BH / weight_BH.sum(0).clamp_min(1e-30)
    factor_H = torch.full((view.shape[1],), 1.0, device=view.device)
    # Newton's method on a convex function of one number, in its logarithm so that it stays above 0.
    for _ in range(30):
        p = torch.softmax(factor_H[:, None] * score_BHK, -1)
        mean_BH = (p * score_BHK).sum(-1)
        spread_BH = (p * score_BHK.square()).sum(-1) - mean_BH.square()
        slope_H = ((mean_BH - score_BH) * weight_BH).sum(0)
        bend_H = (spread_BH * weight_BH).sum(0)
        move_H = (-slope_H / (factor_H * bend_H).clamp_min(1e-12)).clamp_(-1, 1)
        factor_H = (factor_H * move_H.exp()).clamp_(1e-2, 1e4)
        if float(move_H.abs().max()) < 1e-5:
            break
    view *= factor_H[:, None]


def _scores(inputs_BD: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
    flat = view.flatten(1)
    return torch.addmm(flat[-1], inputs_BD, flat[:-1]).view(-1, *view.shape[1:])
