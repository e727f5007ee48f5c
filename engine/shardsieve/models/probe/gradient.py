"""Loss and gradient of H heads: two matrix products and one op per piece of a batch.

Shapes: B samples, D features, H heads, K classes. Parameters are one (D + 1, H K) matrix, heads
side by side, with the biases in its last row.
"""

from __future__ import annotations

from typing import Any

import torch

from shardsieve_kernels import Backend
from shardsieve_kernels.probe_step import probe_step

# Bounds the logits at hand, of which a piece of a batch is a share: 32 MB of f32 on a CPU, 128 MB
# of f16 on a GPU, where small pieces would wait for their launches. 512 rows of f32 features per
# thread stay in the cache from scaling to the second product.
_CPU_LOGITS, _GPU_LOGITS = 8_388_608, 67_108_864
_CPU_ROWS, _GPU_ROWS = 512, 262_144


def rows_at_once(n_columns: int, device: torch.device) -> int:
    """How many samples go through the products together, for H K columns."""
    if device.type == "cuda":
        return max(1024, min(_GPU_ROWS, _GPU_LOGITS // n_columns))
    return max(128, min(_CPU_ROWS * torch.get_num_threads(), _CPU_LOGITS // n_columns))


class LossGradient:
    """Sums of loss and gradient, piece by piece, with scratch that is made once."""

    def __init__(
        self, q_H: torch.Tensor, n_classes: int, *, dtype: torch.dtype, backend: Backend
    ) -> None:
        """Takes what stays the same from piece to piece.

        Args:
            q_H: (H,) f32 in [0, 1], on the device that computes.
            n_classes: K.
            dtype: Of scaled features and logits: f32, or f16 where products of f16 add up in f32.
            backend: Whose `probe_step` runs.
        """
        self.q_H = q_H
        self._shape = (len(q_H), n_classes)
        self._dtype = dtype
        self._backend = backend
        # CuPy may be missing where torch has a GPU; then torch does it, with more passes.
        self._plain = q_H.device.type == "cuda" and backend != "gpu"
        self._logits: torch.Tensor | None = None

    def add_to(
        self,
        gradient: torch.Tensor,
        inputs_BD: torch.Tensor,
        parameters: torch.Tensor,
        labels_B: torch.Tensor,
        weights_BH: torch.Tensor | None,
        *,
        first: bool,
        q_H: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Adds a piece's gradient, summed over its samples.

        Args:
            gradient: (D + 1, H K) f32; overwritten if `first`.
            inputs_BD: Scaled features.
            parameters: (D + 1, H K) of the dtype of the inputs.
            labels_B: i32 or i64, known to be classes.
            weights_BH: f32, factor of each sample's gradient; None is 1.
            first: Nothing was added before.
            q_H: Another q than that of the heads.

        Returns:
            (B, H) f32 loss of each sample, not weighted.
        """
        logits = self._scratch(inputs_BD)
        torch.addmm(parameters[-1], inputs_BD, parameters[:-1], out=logits)
        q_H = self.q_H if q_H is None else q_H
        logits_BHK = logits.view(-1, *self._shape)
        if self._plain:
            loss_BH = gce_(logits_BHK, labels_B, q_H, weights_BH)
        else:
            loss_BH = probe_step(
                logits_BHK,
                labels_B,
                q_H,
                weights_BH=weights_BH,
                out=logits_BHK,
                checked=True,
                backend=self._backend,
            ).loss_BH
        sums = logits.sum(0, dtype=torch.float32)
        if first:
            _product(inputs_BD.T, logits, gradient[:-1])
            gradient[-1] = sums
        else:
            if self._dtype == torch.float32:
                gradient[:-1].addmm_(inputs_BD.T, logits)
            else:
                gradient[:-1] += _product(inputs_BD.T, logits, None)
            gradient[-1] += sums
        return loss_BH

    def _scratch(self, inputs_BD: torch.Tensor) -> torch.Tensor:
        if self._logits is None or len(self._logits) < len(inputs_BD):
            columns = self._shape[0] * self._shape[1]
            self._logits = inputs_BD.new_empty(len(inputs_BD), columns)
        return self._logits[: len(inputs_BD)]


def _product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    if a.dtype == torch.float32:
        return torch.mm(a, b, out=out)
    if a.device.type != "cuda":
        raise TypeError("products of f16 that add up in f32 need a GPU")
    # mm with out_dtype is not in torch's type stubs.
    mm: Any = torch.mm
    return mm(a, b, out_dtype=torch.float32, out=out)


def gce_(
    logits_BHK: torch.Tensor,
    labels_B: torch.Tensor,
    q_H: torch.Tensor,
    weights_BH: torch.Tensor | None,
) -> torch.Tensor:
    """`probe_step` in torch: returns the (B, H) f32 loss, the logits become the gradient.

    L = (1 - p_y^q) / q and dL/dz = p_y^q (p - e_y) (Zhang & Sabuncu 2018, eq. 6 and section 3.3),
    in the log domain: -expm1(q log p_y) / q is exact for q and p near 0, and a weight that
    underflows leaves a sample out as the loss intends. q = 0 is cross entropy.
    """
    log_p = torch.log_softmax(logits_BHK, -1, dtype=torch.float32)
    index = labels_B.long()[:, None, None].expand(*log_p.shape[:-1], 1)
    log_p_y = log_p.gather(-1, index)
    q = q_H.float()[None, :, None]
    is_ce = q < 1e-30
    loss = torch.where(is_ce, -log_p_y, -torch.expm1(q * log_p_y) / q.clamp_min(1e-30))
    factor = torch.exp(q * log_p_y)
    if weights_BH is not None:
        factor *= weights_BH[:, :, None]
    gradient = log_p.exp_().scatter_add_(-1, index, torch.full_like(log_p_y, -1.0)).mul_(factor)
    logits_BHK.copy_(gradient)
    return loss.squeeze(-1)
