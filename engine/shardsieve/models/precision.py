"""Where a model runs and in which numbers: decided once, in one place."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from shardsieve.config import Precision
from shardsieve.errors import DeviceUnavailable

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """Turns `auto`, `cpu`, `cuda` or `cuda:N` into a device that can be used.

    Raises:
        DeviceUnavailable: A GPU was asked for and torch cannot use it; the message says why.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda":
        if torch.version.cuda is None:
            raise DeviceUnavailable(f"device {name}: this torch was built without CUDA")
        if not torch.cuda.is_available():
            raise DeviceUnavailable(f"device {name}: torch finds no CUDA device or driver")
        if (device.index or 0) >= torch.cuda.device_count():
            raise DeviceUnavailable(f"device {name}: there are {torch.cuda.device_count()}")
    return device


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """Chooses the number format of forward passes for `auto`.

    Raises:
        DeviceUnavailable: fp16 was asked for on a CPU, where half the operators lack it.
    """
    if precision == "fp16" and device.type == "cpu":
        raise DeviceUnavailable("precision fp16 needs a GPU; on a CPU use bf16 or fp32")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        with torch.cuda.device(device):
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    # Elsewhere bf16 is emulated and slower than fp32.
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Returns the autocast context of a resolved precision."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, _DTYPES[precision])
