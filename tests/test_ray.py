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
from helpers import mean_margin, same
from numpy.typing import NDArray

from fedsim import Experiment, clients, compare, data, servers
from fedsim.attacks import ModelReplacement
from fedsim.clients import SGD, Context
from fedsim.engines.ray import RayEngine, _check_listening, _state_loader
from fedsim.engines.runtime import ClientRuntime
from fedsim.errors import ConfigError, DivergenceError, FedsimError
from fedsim.privacy import CentralDP, ExampleDP, LocalDP
from fedsim.secure import SecureAggregation
from fedsim.splits import IID, Dirichlet, FeatureNoise, Natural, TimeOrdered
from fedsim.updates.compression import Int8, TopK

ray = pytest.importorskip("ray", reason="ray is not installed")
pytestmark = pytest.mark.xdist_group("ray")  # one process, one cluster

BASE = Experiment(
    split=Dirichlet(12, alpha=0.4), rounds=3, fraction_train=0.7, fraction_evaluate=0.5, test_fraction=0.1
)


HOSPITALS = np.repeat(["Bergen", "Charité"], 721)
NAMED = replace(BASE, dataset=replace(data.load("digits"), groups={"hospital": HOSPITALS}), split=Natural())


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
        replace(BASE, client=clients.SCAFFOLD(), metrics=("auc", "confusion_matrix", mean_margin)),
        replace(BASE, attack=ModelReplacement(start=2), transforms=(TopK(0.2),)),  # changed examples, and at the server
        pytest.param(replace(BASE, client=clients.FedPer()), marks=pytest.mark.slow),
        pytest.param(replace(BASE, client=clients.MOON()), marks=pytest.mark.slow),
        pytest.param(replace(BASE, client=clients.IFCA(), dtype="float64"), marks=pytest.mark.slow),
        pytest.param(replace(BASE, server=servers.FedMedian, split=FeatureNoise(IID(12), 0.5)), marks=pytest.mark.slow),
        replace(BASE, client=clients.FineTune(), split=TimeOrdered(IID(12), 2, by="label")),  # a fit in evaluation too
        pytest.param(replace(BASE, client=clients.FedNova(), transforms=(TopK(0.2), Int8())), marks=pytest.mark.slow),
        pytest.param(replace(BASE, client=clients.FedLC()), marks=pytest.mark.slow),
        replace(BASE, secure_aggregation=SecureAggregation(dropout=0.2), transforms=(LocalDP(0.5),)),
        pytest.param(replace(BASE, privacy=CentralDP(clip=0.5, noise_multiplier=0.5)), marks=pytest.mark.slow),
        pytest.param(replace(BASE, privacy=ExampleDP(noise_multiplier=1.0)), marks=pytest.mark.slow),
    ],
    ids=lambda e: f"{type(e.client).__name__}-{type(e.split).__name__}-{e.kernel}",
)
def test_the_same_bits_as_in_process(experiment: Experiment) -> None:
    assert same(experiment.run(), experiment.run(engine="ray"))
    assert same(experiment.run(), experiment.run(engine="ray", workers=1, block_size=2))


def test_a_study_runs_there_too() -> None:
    base = replace(BASE, rounds=1)
    here, there = (compare(base, split=[IID(4), IID(8)], engine=e).summary() for e in ("in-process", "ray"))
    assert here.drop(columns="seconds_to_target").equals(there.drop(columns="seconds_to_target"))


class Suicidal(SGD):
    """Kills its own process in round 2, a few times; a file has a byte for each."""

    flag: str = ""
    times: int = 1

    def train(self, ctx: Context) -> NDArray[Any]:
        flag = Path(self.flag)
        if ctx.round == 2 and (not flag.exists() or flag.stat().st_size < self.times):
            with flag.open("ab") as stream:
                stream.write(b"x")
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


class Leaving(SGD):
    """Calls sys.exit()."""

    def train(self, ctx: Context) -> NDArray[Any]:
        sys.exit(3)


def test_errors_are_raised_as_in_process() -> None:
    with pytest.raises(
        FedsimError, match=r"^client \d+ failed in round 1: ZeroDivisionError: on purpose \(.*line \d+\)$"
    ) as caught:
        replace(BASE, client=Broken()).run(engine="ray")
    assert 'raise ZeroDivisionError("on purpose")' in str(caught.value.__cause__)  # the actor's traceback
    with pytest.raises(FedsimError, match=r"^SystemExit: 3 \(test_ray.py, line \d+\)$"):
        replace(BASE, client=Leaving()).run(engine="ray")
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


@pytest.mark.slow
@pytest.mark.parametrize("times", [3, 99])
def test_a_block_is_tried_four_times(times: int, tmp_path: Path) -> None:
    flag = tmp_path / "dead"
    experiment = replace(BASE, client=Suicidal(flag=str(flag), times=times), rounds=2)
    if times == 3:
        assert experiment.run(engine="ray", workers=1, block_size=12).rounds == 2
    else:
        with pytest.raises(FedsimError, match=r"^a Ray worker was lost 4 times: .+$"):
            experiment.run(engine="ray", workers=1, block_size=12)
    assert flag.stat().st_size == min(times, 4)


def test_state_of_some_clients_of_a_block_is_a_copy() -> None:
    rows = np.arange(6.0).reshape(3, 2)
    rows.flags.writeable = False
    some = _state_loader(np.array([4, 1, 2]), {"x": rows})(np.array([4, 2]))["x"]
    assert some.tolist() == [[0, 1], [4, 5]]
    some[:] = 0
    assert rows[0, 1] == 1


def test_blocks_are_submitted_two_per_actor_ahead_or_as_far_as_memory_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """State travels with a block, so the number of states that were loaded is that of the blocks submitted."""
    federated = IID(12).federate(BASE.load_data())
    runtime = ClientRuntime(BASE.make_model(federated.dataset), federated, clients.FedPer(), 0, "numpy")
    loaded: list[int] = []

    def load_state(task: Any, state: Any, some: NDArray[np.intp]) -> Any:
        loaded.append(len(some))
        return ClientRuntime.load_state(runtime, task, state, some)

    monkeypatch.setattr(runtime, "load_state", load_state)
    task = runtime.task(np.zeros(runtime.model.num_parameters, np.float32), 1)
    with RayEngine(runtime, workers=1, block_size=1) as engine:
        for pending, submitted in ((0, 2), (5, 5)):
            row = 4 * runtime.model.num_parameters
            monkeypatch.setattr("fedsim.engines.blocks.PENDING_BYTES", pending * row)
            loaded.clear()
            updates = engine.train(task, np.arange(12))
            assert next(updates).partition_ids.tolist() == [0]
            assert loaded == [1] * submitted
            updates.close()  # type: ignore[attr-defined]
        loaded.clear()
        assert next(engine.evaluate(task, np.arange(12))).partition_ids.tolist() == [0]
        assert loaded == [1] * 12


def test_what_ray_says_when_it_cannot_be_reached_is_one_line() -> None:
    """Here that this process has reached one."""
    federated = BASE.federate(BASE.load_data())
    runtime = ClientRuntime(BASE.make_model(federated.dataset), federated, SGD(), 0, "numpy")
    with pytest.raises(ConfigError, match=r"^no Ray cluster at 'auto': .*ray\.init.*$"):
        RayEngine(runtime, address="auto")._start(ray)


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
        "import os\nprint(os.environ['RAY_USAGE_STATS_ENABLED'])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300
    )
    assert ended.stdout.split() == ["True", "1.0", "1", "False", "0"], ended.stderr
    assert "Warning" not in ended.stderr


def test_clients_in_actors_have_names() -> None:
    """In results, and in errors that actors raise."""
    assert NAMED.run(engine="ray").clients["client_name"].equals(NAMED.run().clients["client_name"])
    with pytest.raises(
        DivergenceError, match=r"client (0 \(Bergen|1 \(Charité)\) when FineTune.* made the client's own"
    ):
        replace(NAMED, client=clients.FineTune(lr=0.01, tune_lr=1e30)).run(engine="ray")
