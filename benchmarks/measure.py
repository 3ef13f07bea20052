"""Timing of peers in turn in one process, so that other load on the machine affects all of them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.engines.workers import available_cores

ROOT = Path(__file__).parents[1]
#: Smallest duration of a sample in seconds. Shorter calls are repeated, so that filling the caches after another peer's
#: sample costs as little as in a run of many rounds.
SAMPLE = 0.5
#: Seconds between samples, in which the threads of the last peer become idle (those of OpenBLAS spin for a while).
PAUSE = 0.1


def take_turns(peers: Mapping[str, Callable[[], object]], samples: int) -> dict[str, list[float]]:
    """Time each peer `samples` times in turn.

    Returns
    -------
    dict of list of float
        Seconds per call, in order.
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
    """Return the ratio of the medians, and the quartiles of the ratios of adjacent samples."""
    return median(above) / median(below), *quartiles(np.array(above) / np.array(below))


def sgemm(size: int = 3000, threads: int | None = None) -> tuple[Callable[[], object], float]:
    """Return a function that multiplies float32 matrices, by default on all cores, and its number of operations."""
    from threadpoolctl import threadpool_limits

    matrix = np.random.default_rng(0).random((size, size), dtype=np.float32)
    out = np.empty_like(matrix)

    def call() -> None:
        with threadpool_limits(threads or available_cores(), "blas"):
            np.matmul(matrix, matrix, out=out)

    call()
    return call, 2.0 * size**3


def fresh(code: str, *arguments: str, cwd: str | None = None) -> float:
    """Return the seconds that a new Python process takes."""
    command = [sys.executable, *arguments, *(["-c", code] if code else [])]
    started = time.perf_counter()
    subprocess.run(command, check=True, cwd=cwd, capture_output=True)
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
    """Return the peak resident bytes of a new process that runs rounds of the 2NN with this cohort (Linux only)."""
    command = [sys.executable, "-c", _PEAK, str(cohort)]
    return 1024 * float(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)


def machine() -> dict[str, Any]:
    """Return the processor, the system, and the versions of Python and of packages."""
    from fedsim.kernels.compiled.emitter import VECTOR_BYTES

    def version(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return "absent"

    processor = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        processor = next(names, processor)
    return {
        "processor": processor,
        "cores": available_cores(),
        "vector_bytes": VECTOR_BYTES,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: version(package) for package in ("numpy", "numba", "flwr", "ray")},
    }
