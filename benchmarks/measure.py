"""Timing: peers take turns in one process, so that a busy machine is busy for all of them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
#: Seconds that a sample should last; what is quicker is run several times for one, so that caches that others filled
#: in the pause cost each peer as little as they do in a run of many rounds.
SAMPLE = 0.5
#: Seconds of rest before a sample: threads of the peer before it (OpenBLAS's spin while idle) must have come to rest.
PAUSE = 0.1


def take_turns(peers: Mapping[str, Callable[[], object]], samples: int) -> dict[str, list[float]]:
    """Time each peer `samples` times in turn.

    Returns
    -------
    dict of list of float
        Seconds per call, in the order they were taken.
    """
    taken: dict[str, list[float]] = {name: [] for name in peers}
    repeats = {name: max(1, round(SAMPLE / _seconds(call, 1))) for name, call in peers.items()}
    for _ in range(samples):
        for name, call in peers.items():
            time.sleep(PAUSE)
            taken[name].append(_seconds(call, repeats[name]))
    return taken


def _seconds(call: Callable[[], object], repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - started) / repeats


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return float(np.median(values))


def quartiles(values: Sequence[float] | NDArray[np.float64]) -> tuple[float, float]:
    """Return the lower and the upper quartile."""
    low, high = np.percentile(values, [25, 75])
    return float(low), float(high)


def ratio(above: Sequence[float], below: Sequence[float]) -> tuple[float, float, float]:
    """Return the ratio of the medians, and the quartiles of the ratios of neighbouring samples."""
    return median(above) / median(below), *quartiles(np.array(above) / np.array(below))


def sgemm(size: int = 3000, threads: int | None = None) -> tuple[Callable[[], object], float]:
    """Return a call of single-precision matrix product, by default on all cores, and its floating-point operations."""
    from threadpoolctl import threadpool_limits

    from fedsim.engines.workers import available_cores

    matrix = np.random.default_rng(0).random((size, size), dtype=np.float32)
    out = np.empty_like(matrix)

    def call() -> None:
        with threadpool_limits(threads or available_cores(), "blas"):
            np.matmul(matrix, matrix, out=out)

    call()
    return call, 2.0 * size**3


def fresh(code: str, *arguments: str, cwd: str | None = None) -> float:
    """Return the wall seconds of a fresh Python process."""
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments, *(["-c", code] if code else [])], check=True, cwd=cwd, capture_output=True
    )
    return time.perf_counter() - started


_PEAK = """
import sys
from benchmarks.jobs import Job, fedsim_rounds
job = Job((784, 200, 200, 10), registered=10_000, cohort=int(sys.argv[1]), examples=6, distinct=1_000)
with fedsim_rounds(job) as step:
    step()
print(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
"""


def peak_memory(cohort: int) -> float:
    """Return the peak resident bytes of a fresh process that runs rounds of 2NN with this cohort (Linux only)."""
    command = [sys.executable, "-c", _PEAK, str(cohort)]
    return 1024 * float(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)


def machine() -> dict[str, Any]:
    """Describe the machine and the versions that matter."""
    from importlib.metadata import PackageNotFoundError, version

    from fedsim.engines.workers import available_cores

    def of(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "absent"

    model = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            names = [line.partition(":")[2].strip() for line in stream if line.startswith("model name")]
        model = names[0] if names else model
    from fedsim.kernels.compiled.emitter import VECTOR_BYTES

    return {
        "processor": model,
        "cores": available_cores(),
        "vector_bytes": VECTOR_BYTES,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: of(package) for package in ("numpy", "numba", "flwr", "ray")},
    }
