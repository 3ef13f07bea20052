"""The bars, fedsim's targets for speed and memory, each measured in one run with its peer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.jobs import ARTICLE, TWO_NN, Job, fedsim_rounds
from benchmarks.measure import ROOT, fresh, median, peak_memory, quartiles, ratio, sgemm, take_turns
from fedsim import Experiment, compare
from fedsim.clients import SGD
from fedsim.clients.example_noise import ExampleNoise
from fedsim.engines.workers import available_cores
from fedsim.splits import Dirichlet


@dataclass(frozen=True)
class Measured:
    """The measurement of one bar.

    Attributes
    ----------
    what : str
    value, low, high : float
        The median and the quartiles.
    bar : float or None
        The target; None if there is none.
    unit : {"x", "%", "x at most", "s at most"}
        ``at most``: smaller is better.
    samples : dict
        The measured seconds or bytes by peer.
    """

    what: str
    value: float
    low: float
    high: float
    bar: float | None
    unit: str
    samples: dict[str, list[float]]

    @property
    def met(self) -> bool:
        """Whether the bar is met."""
        if self.bar is None:
            return True
        return self.value <= self.bar if self.unit.endswith("at most") else self.value >= self.bar

    def as_dict(self) -> dict[str, Any]:
        """Return the measurement for JSON."""
        return {**asdict(self), "met": self.met}


def _against_ray(job: Job, what: str, bar: float, samples: int) -> list[Measured]:
    with fedsim_rounds(job) as ours, peers.ray_rounds(job) as flower, peers.loop_rounds(job) as plain:
        found = take_turns({"fedsim": ours, "ray": flower, "loop": plain}, samples)
    ms = {peer: f"{1e3 * median(taken):.3g} ms" for peer, taken in found.items()}
    ray, loop = ratio(found["ray"], found["fedsim"]), ratio(found["loop"], found["fedsim"])
    ray_what = f"{what}: against Flower's Ray simulation ({ms['fedsim']} and {ms['ray']} a round)"
    loop_what = f"{what}: against a plain NumPy loop ({ms['loop']})"
    return [Measured(ray_what, *ray, bar, "x", found), Measured(loop_what, *loop, None, "x", {})]


def article(samples: int) -> list[Measured]:
    """Time the article's MLP against Flower's Ray simulation."""
    return _against_ray(ARTICLE, "article MLP, 100 clients x 100 examples, batch 10", 150, samples)


def two_nn(samples: int) -> list[Measured]:
    """Time the FedAvg paper's 2NN against Flower's Ray simulation."""
    return _against_ray(TWO_NN, "2NN, 10 of 100 clients x 600 examples, batch 10", 8, samples)


def _share(job: Job, what: str, bar: float, samples: int) -> list[Measured]:
    product, flops = sgemm()
    with fedsim_rounds(job) as ours:
        taken = take_turns({"fedsim": ours, "sgemm": product}, samples)
    speeds = {"fedsim": [job.flops / s for s in taken["fedsim"]], "sgemm": [flops / s for s in taken["sgemm"]]}
    value, low, high = ratio(speeds["fedsim"], speeds["sgemm"])
    speed, peak = (f"{median(speeds[peer]) / 1e9:.0f}" for peer in ("fedsim", "sgemm"))
    what = f"{what}: share of the sgemm peak, all cores ({speed} of {peak} GFLOP/s)"
    return [Measured(what, 100 * value, 100 * low, 100 * high, bar, "%", taken)]


def peak_batch_10(samples: int) -> list[Measured]:
    """Compare small batches of the 2NN with the machine's matrix product."""
    return _share(TWO_NN, "2NN, batch 10", 60, samples)


def peak_full_batch(samples: int) -> list[Measured]:
    """Compare full batches of the 2NN with the machine's matrix product."""
    return _share(replace(TWO_NN, batch=None, epochs=5), "2NN, full batch, 5 epochs", 80, samples)


def threads(samples: int) -> list[Measured]:
    """Compare two threads with one."""
    with fedsim_rounds(TWO_NN, 1) as one, fedsim_rounds(TWO_NN, 2) as two:
        taken = take_turns({"1 thread": one, "2 threads": two}, samples)
    bar = 1.8 if available_cores() >= 2 else None
    return [
        Measured("2NN, batch 10: 2 threads against 1", *ratio(taken["1 thread"], taken["2 threads"]), bar, "x", taken)
    ]


def example_dp(samples: int) -> list[Measured]:
    """Compare DP-SGD, with and without noise, with SGD."""
    measured = []
    for job, name in ((ARTICLE, "article MLP"), (TWO_NN, "2NN")):
        clip, noise = (ExampleNoise(1.0, multiplier, "poisson") for multiplier in (0.0, 1.0))
        with (
            fedsim_rounds(job) as plain,
            fedsim_rounds(job, example_noise=clip) as clipped,
            fedsim_rounds(job, example_noise=noise) as noisy,
        ):
            taken = take_turns({"SGD": plain, "clipped": clipped, "noisy": noisy}, samples)
        for peer, what, bar in (("clipped", "clipped gradients", 2.5), ("noisy", "clipped gradients and noise", None)):
            label = f"DP-SGD, {name}, batch 10, {what}: time per round against SGD"
            measured.append(Measured(label, *ratio(taken[peer], taken["SGD"]), bar, "x at most", taken))
    return measured


def registered(samples: int) -> list[Measured]:
    """Compare a round among a million registered clients with one among a thousand."""
    few = Job(ARTICLE.sizes, registered=1_000, cohort=1_000, examples=10, distinct=5_000)
    with fedsim_rounds(few) as small, fedsim_rounds(replace(few, registered=1_000_000)) as large:
        taken = take_turns({"1,000": small, "1,000,000": large}, samples)
    value = ratio(taken["1,000,000"], taken["1,000"])
    what = "article MLP, 1,000,000 registered clients, 1,000 sampled: time per round against 1,000 registered"
    return [Measured(what, *value, 1.1, "x at most", taken)]


def studies(samples: int) -> list[Measured]:
    """Compare a study of 20 small runs with one process per core with the same study, run after run."""
    base = Experiment(split=Dirichlet(20, alpha=0.1), client=SGD(epochs=2), rounds=30, fraction_evaluate=1.0)
    cores = available_cores()

    def study(jobs: int, stored: bool) -> None:
        with tempfile.TemporaryDirectory() as folder:
            compare(base, seeds=20, jobs=jobs, directory=Path(folder) / "study" if stored else None)

    peers = {
        f"{jobs} at a time{', stored' if stored else ''}": partial(study, jobs, stored)
        for jobs in (1, cores)
        for stored in (False, True)
    }
    taken = take_turns(peers, min(samples, 3))
    one, many = taken["1 at a time"], taken[f"{cores} at a time"]
    kept = taken["1 at a time, stored"], taken[f"{cores} at a time, stored"]
    what = f"a study of 20 small runs on {cores} cores against 1"
    return [
        Measured(f"{what} ({median(one):.3g} s against {median(many):.3g} s)", *ratio(one, many), 1.8, "x", taken),
        Measured(f"{what}, written to a directory", *ratio(*kept), None, "x", taken),
    ]


def memory(samples: int) -> list[Measured]:
    """Compare the peak memory of a 10,000-client cohort with that of 100 clients, in new processes (Linux only)."""
    taken: dict[str, list[float]] = {"100": [], "10,000": []}
    for _ in range(min(samples, 3)):
        taken["100"].append(peak_memory(100))
        taken["10,000"].append(peak_memory(10_000))
    what = f"peak memory of a 10,000-client cohort of 2NN against 100 ({median(taken['10,000']) / 1e6:.0f} MB)"
    return [Measured(what, *ratio(taken["10,000"], taken["100"]), 1.2, "x at most", taken)]


def _process(what: str, bar: float, samples: int, *arguments: str, code: str = "") -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        taken = [fresh(code, *arguments, cwd=folder) for _ in range(samples)]
    return Measured(what, median(taken), *quartiles(taken), bar, "s at most", {"process": taken})


def start_up(samples: int) -> list[Measured]:
    """Time commands in new processes."""
    first = "from fedsim import Experiment; Experiment(rounds=5).run()"
    script = str(ROOT / "experiments" / "iid_vs_noniid.py")
    return [
        _process("`experiments/iid_vs_noniid.py`, cold start to plot", 10, min(samples, 3), script),
        _process("`fedsim --help`", 0.5, samples, "-m", "fedsim.cli", "--help"),
        _process("`import fedsim`", 0.15, samples, code="import fedsim"),
        _process("first result on digits, 5 rounds, from process start", 3, samples, code=first),
    ]


#: Name -> function that measures bars.
BARS: dict[str, Callable[[int], list[Measured]]] = {
    f.__name__.replace("_", "-"): f
    for f in (
        article,
        two_nn,
        peak_batch_10,
        peak_full_batch,
        threads,
        example_dp,
        registered,
        studies,
        memory,
        start_up,
    )
}
