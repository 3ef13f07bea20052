"""Clients in Ray actors: the same bits as in process, and a worker that is killed costs nothing but time."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
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
from fedsim.engines.ray import RayEngine, _check_listening, _result, _state_loader
from fedsim.engines.runtime import ClientRuntime
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
        pytest.param(replace(BASE, kernel="compiled"), marks=pytest.mark.slow),  # each actor loads the kernel
        replace(BASE, client=clients.SCAFFOLD()),
        pytest.param(replace(BASE, client=clients.FedPer()), marks=pytest.mark.slow),
        pytest.param(replace(BASE, client=clients.MOON()), marks=pytest.mark.slow),
        replace(BASE, client=clients.IFCA(), dtype="float64"),
        replace(BASE, server=servers.FedMedian, split=FeatureNoise(IID(12), 0.5)),
        replace(BASE, split=TimeOrdered(IID(12), 2, by="label")),
        replace(BASE, client=clients.FedNova(), transforms=(TopK(0.2), Int8())),
        pytest.param(replace(BASE, client=clients.FedLC()), marks=pytest.mark.slow),
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
    with pytest.raises(ConfigError, match=r"no Ray cluster at .127\.0\.0\.1:1.: Connection refused"):
        _check_listening("127.0.0.1:1")
    assert replace(BASE, rounds=1).run(engine=partial(RayEngine, address="auto")).kernel == "numpy"  # the one there is


def test_an_address_is_tried_before_ray_waits_for_it() -> None:
    """One with a port; the others are Ray's to find."""
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1"):
        with pytest.raises(ConfigError, match=f"^no Ray cluster at '{address}': Connection refused$"):
            _check_listening(address)
    with pytest.raises(ConfigError, match=r"^no Ray cluster at 'no\.such\.host\.invalid:1': "):
        _check_listening("no.such.host.invalid:1")
    for found_by_ray in (None, "", "auto", "local", "ray://head", "head:port"):
        _check_listening(found_by_ray)
    with socket.create_server(("127.0.0.1", 0)) as server:
        _check_listening(f"ray://127.0.0.1:{server.getsockname()[1]}")


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"^the engine ray needs the extra 'ray'; install it by: pip install"):
        BASE.run(engine="ray")


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "actors"), [(1, 1), (50, 2)])
def test_there_are_no_more_actors_than_cpus(workers: int, actors: int) -> None:
    """They are gone at the end; a cluster that was there before stays."""
    federated = BASE.federate(BASE.load_data())
    runtime = ClientRuntime(BASE.make_model(federated.dataset), federated, SGD(), 0, "numpy")
    engine = RayEngine(runtime, workers=workers, block_size=5)
    with engine:
        assert (len(engine._actors), engine.workers.count, engine.blocks.workers) == (actors, actors, actors)
        weights = np.zeros(runtime.model.num_parameters, np.float32)
        updates = list(engine.train(runtime.task(weights, 1), np.arange(12)))
        assert [len(update.partition_ids) for update in updates] == [5, 5, 2]
        gone = list(engine._actors)
    assert engine._actors == []
    assert ray.is_initialized()
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(gone[0].call.remote("train", None, None, None))
    for wrong in (0, 4097):
        with pytest.raises(ConfigError, match=f"workers is {wrong}"):
            RayEngine(runtime, workers=wrong)


class Dying:
    """Ends its process at every call."""

    def train(self) -> None:
        os._exit(1)


@pytest.mark.slow
def test_a_worker_that_is_lost_again_and_again_ends_the_run() -> None:
    actor = ray.remote(num_cpus=0, max_restarts=0)(Dying).remote()
    with pytest.raises(FedsimError, match=r"^a Ray worker was lost 4 times: .+$"):
        _result(actor.train.remote())


def test_state_of_some_clients_of_a_block_is_a_copy() -> None:
    rows = np.arange(6.0).reshape(3, 2)
    rows.flags.writeable = False
    some = _state_loader(np.array([4, 1, 2]), {"x": rows})(np.array([4, 2]))["x"]
    assert some.tolist() == [[0, 1], [4, 5]]
    some[:] = 0
    assert rows[0, 1] == 1


@pytest.mark.slow
def test_a_cluster_that_was_started_for_a_run_ends_with_it() -> None:
    """Of as many CPUs as there are workers, without Ray's messages."""
    program = (
        "import ray\nfrom dataclasses import replace\nfrom test_ray import BASE\n"
        "from fedsim.engines.ray import RayEngine\n"
        "class Seen(RayEngine):\n"
        "    def __enter__(self):\n        made = super().__enter__()\n"
        "        print(ray.is_initialized(), ray.cluster_resources()['CPU'])\n        return made\n"
        "result = replace(BASE, rounds=1).run(engine=Seen, workers=1)\n"
        "print(result.rounds, ray.is_initialized())\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300
    )
    assert ended.stdout.split() == ["True", "1.0", "1", "False"], ended.stderr
