"""All that needs a GPU: the tests of its backend, then the measurements, with a record of each."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, Protocol, cast

from bench.record import tree_state, write_record
from shardsieve.data.manifest import library_versions

# Measurements of bench.runs that have a part for the GPU.
GPU_RUNS = ("class_gmm", "probe", "probe_step", "softmax_stats", "embed", "tune")
LAST_RUN = Path(__file__).parents[1] / "tests/gpu_last_run.json"


class GpuMeasurement(Protocol):
    """What a module of `bench.runs` that measures on a GPU offers."""

    def measure_gpu(self, *, quick: bool, **data: Any) -> dict[str, Any]:
        """Checks that the results are right, then times them on the current device."""

    def goals_gpu(self, result: dict[str, Any]) -> dict[str, bool]:
        """Says of each goal, with the figure seen, whether it was met."""


def describe_device() -> dict[str, Any]:
    """Returns name, memory and software of the current GPU."""
    import cupy as cp

    properties = cp.cuda.runtime.getDeviceProperties(cp.cuda.Device().id)
    return {
        "name": properties["name"].decode(),
        "memory_bytes": int(properties["totalGlobalMem"]),
        "multiprocessors": int(properties["multiProcessorCount"]),
        "driver": _version(cp.cuda.runtime.driverGetVersion()),
        "runtime": _version(cp.cuda.runtime.runtimeGetVersion()),
        "cupy": cp.__version__,
    }


def run_tests() -> dict[str, Any]:
    """Runs every test of the kernels on the GPU, and leaves what came of it in LAST_RUN.

    Returns:
        Commit, device, libraries, and how many tests passed, failed and were skipped.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        selection = ["tests/kernels", "-k", "gpu", "--backends=gpu"]
        command = [sys.executable, "-m", "pytest", "-q", *selection, f"--junit-xml={report}"]
        exit_code = subprocess.run(command, cwd=LAST_RUN.parents[1], check=False).returncode
        if not report.exists():
            raise RuntimeError(f"pytest wrote no report, exit code {exit_code}")
        counts = count_tests(report.read_text(encoding="utf-8"))
    result = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **tree_state(),
        "device": describe_device(),
        "libraries": library_versions(),
        "seconds": round(time.monotonic() - start, 1),
        "exit_code": exit_code,
        **counts,
    }
    LAST_RUN.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def count_tests(junit_xml: str) -> dict[str, Any]:
    """Counts the outcomes in a JUnit report, and names what failed."""
    cases = ET.fromstring(junit_xml).iter("testcase")
    counts: dict[str, Any] = {"passed": 0, "failed": 0, "skipped": 0, "failures": []}
    for case in cases:
        outcomes = {child.tag for child in case}
        if outcomes & {"failure", "error"}:
            counts["failed"] += 1
            counts["failures"].append(f"{case.get('classname')}::{case.get('name')}")
        elif "skipped" in outcomes:
            counts["skipped"] += 1
        else:
            counts["passed"] += 1
    return counts


def missing_in(data: Path) -> list[str]:
    """Names what the whole line needs of a folder and does not find there."""
    wanted = ("train-*.tar", "test-*.tar", "truth.parquet")
    return [pattern for pattern in wanted if not any(data.glob(pattern))]


def run_measurement(
    name: str, *, quick: bool, record: bool, data: Path | None = None
) -> dict[str, bool]:
    """Runs one measurement, records it if asked, and says which goals were met.

    Args:
        name: One of GPU_RUNS.
        quick: Small inputs.
        record: Write a record.
        data: Folder with shards, for measurements that take one.
    """
    module = cast("GpuMeasurement", import_module(f"bench.runs.{name}"))
    takes_data = data is not None and "data" in signature(module.measure_gpu).parameters
    result = module.measure_gpu(quick=quick, **({"data": data} if takes_data else {}))
    goals = module.goals_gpu(result)
    if record:
        whole = {**result, "device": describe_device(), "goals": goals}
        write_record(f"gpu-{name}", whole, result["repeats"])
    return goals


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
