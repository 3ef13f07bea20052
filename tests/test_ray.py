"""Clients in Ray actors: the same bits as in process, and a worker that is killed costs nothing but time."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import same
from numpy.typing import NDArray

from fedsim import Experiment, clients, compare, servers
from fedsim.clients import SGD, Context
from fedsim.errors import ConfigError, DivergenceError, FedsimError
from fedsim.splits import IID, Dirichlet, FeatureNoise, TimeOrdered
from fedsim.updates.compression import Int8, TopK

ray = pytest.importorskip("ray", reason="ray is not installed")
pytestmark = pytest.mark.xdist_group("ray")  # one process, one cluster

BASE = Experiment(
    split=Dirichlet(12, alpha=0.4), rounds=3, fraction_train=0.7, fraction_evaluate=0.5, test_fraction=0.1
)


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    """One small cluster for all, with this folder's modules within reach of its actors."""
    environment = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    yield
    ray.shutdown()


@pytest.mark.parametrize(
    "experiment",
    [
        BASE,
        replace(BASE, kernel="compiled"),
        replace(BASE, client=clients.SCAFFOLD()),
        replace(BASE, client=clients.FedPer()),
        replace(BASE, client=clients.MOON()),
        replace(BASE, client=clients.IFCA(), dtype="float64"),
        replace(BASE, server=servers.FedMedian, split=FeatureNoise(IID(12), 0.5)),
        replace(BASE, split=TimeOrdered(IID(12), 2, by="label")),
        replace(BASE, client=clients.FedNova(), transforms=(TopK(0.2), Int8())),
        replace(BASE, client=clients.FedLC()),
    ],
    ids=lambda e: f"{type(e.client).__name__}-{type(e.split).__name__}-{e.kernel}",
)
def test_the_same_bits_as_in_process(experiment: Experiment) -> None:
    assert same(experiment.run(), experiment.run(engine="ray"))
    assert same(experiment.run(), experiment.run(engine="ray", workers=1, block_size=2))


def test_a_study_runs_there_too() -> None:
    base = replace(BASE, rounds=1)
    here, there = (compare(base, split=[IID(4), IID(8)], engine=e).summary() for e in ("in-process", "ray"))
    assert here.equals(there)


class Suicidal(SGD):
    """Kills its own process, once."""

    flag: str = ""

    def train(self, ctx: Context) -> NDArray[Any]:
        if ctx.round == 2 and not os.path.exists(self.flag):
            Path(self.flag).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return ctx.fit()


def test_a_lost_worker_costs_nothing_but_time(tmp_path: Path) -> None:
    flag = tmp_path / "dead"
    there = replace(BASE, client=Suicidal(flag=str(flag))).run(engine="ray")
    assert flag.exists()
    here = replace(BASE, client=SGD()).run()
    assert all(np.array_equal(here.weights[k], there.weights[k]) for k in here.weights)


class Broken(SGD):
    """Raises."""

    def train(self, ctx: Context) -> NDArray[Any]:
        raise ZeroDivisionError("on purpose")


def test_errors_are_raised_as_in_process() -> None:
    with pytest.raises(
        FedsimError, match=r"^client \d+ failed in round 1: ZeroDivisionError: on purpose \(.*line \d+\)$"
    ):
        replace(BASE, client=Broken()).run(engine="ray")
    with pytest.raises(DivergenceError, match="training diverged in round 1 at client"):
        replace(BASE, client=SGD(lr=100.0)).run(engine="ray")


def test_no_cluster_is_said() -> None:
    from fedsim.engines.ray import RayEngine, _reach

    with pytest.raises(ConfigError, match=r"no Ray cluster at .127\.0\.0\.1:1.: Connection refused"):
        _reach("127.0.0.1:1")
    assert replace(BASE, rounds=1).run(engine=partial(RayEngine, address="auto")).kernel == "numpy"  # the one there is
