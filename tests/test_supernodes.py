"""Clients on SuperNodes, here ones in this process: the same bits, and whatever a client does, the round ends."""

from __future__ import annotations

import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import flwr.serverapp.strategy as stock
import numpy as np
import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from helpers import same

from fedsim import Experiment, clients, config, servers
from fedsim.clients import SGD
from fedsim.engines import app, flower
from fedsim.engines.flower_app import AppGrid, load_app, run_flower
from fedsim.engines.supernodes import RESULT, SuperNodeGrid, hello
from fedsim.errors import ConfigError, FedsimError
from fedsim.experiment import Result
from fedsim.export import export
from fedsim.splits import Dirichlet, FeatureNoise, TimeOrdered

BASE = Experiment(
    split=Dirichlet(12, alpha=0.4), rounds=3, fraction_train=0.7, fraction_evaluate=0.5, test_fraction=0.1
)


def on_supernodes(experiment: Experiment, nodes: int, client_app: ClientApp = app.client_app, **options: Any) -> Result:
    settings = {"experiment": config.to_toml(experiment)}
    with flower.quiet(), AppGrid(client_app, nodes, run_config=settings, workers=4) as grid:
        engine = partial(SuperNodeGrid, grid=grid, **({"nodes": nodes} | options))
        return experiment.run(engine=engine)


@pytest.mark.parametrize(
    "experiment",
    [
        BASE,
        replace(BASE, kernel="compiled"),
        replace(BASE, client=clients.SCAFFOLD()),
        replace(BASE, client=clients.FedDyn()),
        replace(BASE, client=clients.FedNova(momentum=0.5)),
        replace(BASE, client=clients.FedPer()),
        replace(BASE, client=clients.Ditto()),
        replace(BASE, client=clients.MOON()),
        replace(BASE, client=clients.IFCA(), dtype="float64"),
        replace(BASE, client=clients.FedLC(), server=servers.FedMedian),
        replace(BASE, client=SGD(), server=servers.FedAdam, split=FeatureNoise(Dirichlet(12), 0.5)),
        replace(BASE, split=TimeOrdered(Dirichlet(12), 2, by="label"), fraction_train=1.0),
    ],
    ids=lambda e: f"{type(e.client).__name__}-{type(e.split).__name__}-{e.kernel}",
)
def test_the_same_bits_as_in_process(experiment: Experiment) -> None:
    """For a strategy of each family, with many clients on a SuperNode and one each."""
    here = experiment.run()
    assert same(here, on_supernodes(experiment, 5))
    assert same(here, on_supernodes(experiment, 12))


def test_the_app_runs_an_experiment_and_writes_it_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"experiment": config.to_toml(BASE), "out": str(tmp_path / "out")}
    run_flower(app.server_app, app.client_app, 4, run_config=settings)
    printed = capsys.readouterr().out
    assert "fedsim: round 3 test_loss=" in printed
    assert "fedsim: done after 3 rounds, accuracy=" in printed
    with np.load(tmp_path / "out" / "weights.npz") as there:
        here = BASE.run().weights
        assert all(np.array_equal(here[name], there[name]) for name in here)


def test_an_exported_app_is_the_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_here.py").write_text(
        "from fedsim.clients import SGD\n\n\nclass Mine(SGD):\n    mu: float = 0.1\n\n"
        "    def direction(self, grad, weights, ctx):\n"
        "        return grad + self.mu * (weights - ctx.global_weights)\n"
    )
    monkeypatch.chdir(tmp_path)
    experiment = replace(BASE, client=config.build("client", "mine_here:Mine(mu=0.5)"))
    folder = export(experiment, tmp_path / "app", nodes=3)
    assert (folder / "mine_here.py").read_text() == (tmp_path / "mine_here.py").read_text()
    server_app, client_app, run_config, _ = load_app(folder)
    assert run_config["nodes"] == 3
    assert config.to_toml(config.experiment(tomllib.loads(run_config["experiment"]))) == config.to_toml(experiment)
    run_flower(server_app, client_app, 3, run_config=run_config | {"out": str(tmp_path / "out")})
    with np.load(tmp_path / "out" / "weights.npz") as there:
        assert np.array_equal(there["W1"], experiment.run().weights["W1"])
    with pytest.raises(ConfigError, match="is not empty; give another folder"):
        export(experiment, folder)


# Faults. Partition p of 4 holds the clients whose id is p modulo 4.


@contextmanager
def faulty(
    partition: int, fault: Callable[[Message, Context], Message | None], rounds: tuple[int, ...]
) -> Iterator[ClientApp]:
    """fedsim's ClientApp, of which one SuperNode misbehaves in some rounds; None from the fault means: as usual."""
    made = ClientApp()

    @made.query()
    def _query(message: Message, context: Context) -> Message:
        return hello(message, context)

    def handler(kind: str) -> Callable[[Message, Context], Message]:
        def handle(message: Message, context: Context) -> Message:
            order = message.content.config_records["fedsim.order"]
            if context.node_config["partition-id"] == partition and order["round"] in rounds and kind == "train":
                reply = fault(message, context)
                if reply is not None:
                    return reply
            return app.client_app(message, context)

        return handle

    made.train()(handler("train"))
    made.evaluate()(handler("evaluate"))
    yield made


def altered(name: str, change: Callable[[Any], Any]) -> Callable[[Message, Context], Message]:
    """A reply with one array changed."""

    def fault(message: Message, context: Context) -> Message:
        reply = app.client_app(message, context)
        record = reply.content.array_records[RESULT]
        arrays = {k: np.array(a.numpy()) for k, a in record.items()}
        arrays[name] = change(arrays[name])
        return Message(RecordDict({RESULT: flower.record(arrays)}), reply_to=message)

    return fault


def added(name: str, make: Callable[[int], Any]) -> Callable[[Message, Context], Message]:
    """A reply with one more array."""

    def fault(message: Message, context: Context) -> Message:
        reply = app.client_app(message, context)
        arrays = {k: a.numpy() for k, a in reply.content.array_records[RESULT].items()}
        arrays[name] = make(len(arrays["partition_ids"]))
        return Message(RecordDict({RESULT: flower.record(arrays)}), reply_to=message)

    return fault


def boom(message: Message, context: Context) -> Message:
    raise OSError("the disk is full\nand more")


FAULTS: dict[str, tuple[Callable[[Message, Context], Message | None], str]] = {
    "raises": (boom, "failed: OSError: the disk is full"),
    "sends NaN": (altered("weights", lambda w: w * np.nan), "training diverged|not finite"),
    "sends a wrong shape": (altered("weights", lambda w: w[:, :-1]), "sent weights of shape"),
    "sends no examples": (altered("num_examples", lambda n: n * 0), "no whole numbers above 0"),
    "sends other clients": (altered("partition_ids", lambda ids: ids + 1), "answered for other clients"),
    "sends more": (added("up.more", np.zeros), "sent other arrays than the rest"),
    "sends nothing": (lambda m, c: Message(RecordDict(), reply_to=m), "sent partition_ids of shape None"),
}


@pytest.mark.parametrize("kind", list(FAULTS))
def test_whatever_a_client_does_the_round_is_the_survivors(kind: str) -> None:
    fault, reason = FAULTS[kind]
    experiment = replace(BASE, fraction_train=1.0, fraction_evaluate=0.0, on_failure="exclude", rounds=2)
    with faulty(1, fault, (1,)) as client_app:
        result = on_supernodes(experiment, 4, client_app)
    assert result.history["failures"].tolist() == [0, 3, 0]
    assert result.history["clients"].tolist() == [0, 9, 12]
    assert result.failures["partition_id"].tolist() == [1, 5, 9]
    assert result.failures["reason"].str.contains(reason, regex=True).all(), result.failures["reason"].tolist()
    # The weights are the survivors' mean: the same as if the lost clients had been told to diverge here.
    survivors = replace(experiment, client=Surviving(lost=(1, 5, 9)), rounds=2).run()
    assert np.array_equal(survivors.weights["W1"], result.weights["W1"])


class Surviving(SGD):
    """Some clients' weights are lost in round 1."""

    lost: tuple[int, ...] = ()

    def train(self, ctx: clients.Context) -> Any:
        weights = ctx.fit()
        if ctx.round == 1:
            weights[np.isin(ctx.partition_ids, self.lost)] = np.nan
        return weights


def test_a_client_that_hangs_is_not_waited_for_beyond_the_timeout() -> None:
    release = threading.Event()

    def hang(message: Message, context: Context) -> None:
        release.wait(60)

    experiment = replace(BASE, fraction_train=1.0, fraction_evaluate=0.0, on_failure="exclude", rounds=1)
    with faulty(2, hang, (1,)) as client_app:
        timer = threading.Timer(6.0, release.set)
        timer.start()
        started = time.monotonic()
        result = on_supernodes(experiment, 4, client_app, timeout=2.0)
        timer.join()
    assert result.failures["partition_id"].tolist() == [2, 6, 10]
    assert result.failures["reason"].str.contains("did not answer within 2 s").all()
    assert result.history["seconds"].iloc[-1] < time.monotonic() - started


def test_a_word_of_the_superlink_for_a_supernode_that_is_gone() -> None:
    """Flower's SuperLink answers for it, in its own name."""

    class Answering(AppGrid):
        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
            replies = list(super().send_and_receive(messages, timeout=timeout))
            for k, reply in enumerate(replies):
                if reply.metadata.message_type == "train" and reply.metadata.src_node_id == 3:
                    metadata = flower.reply_metadata(1, "x", "train", "", 0.0)
                    replies[k] = flower.make_message(metadata, error=Error(5, "Node unavailable"))
            return replies

    experiment = replace(BASE, fraction_train=1.0, fraction_evaluate=0.0, on_failure="exclude", rounds=1)
    settings = {"experiment": config.to_toml(experiment)}
    with flower.quiet(), Answering(app.client_app, 4, run_config=settings) as grid:
        result = experiment.run(engine=partial(SuperNodeGrid, grid=grid, nodes=4))
    assert result.failures["partition_id"].tolist() == [1, 5, 9]
    assert result.failures["reason"].iloc[0] == "SuperNode 3 did not answer: Node unavailable"


def test_a_retry_makes_a_passing_fault_good() -> None:
    seen: list[int] = []

    def once(message: Message, context: Context) -> Message | None:
        seen.append(1)
        if len(seen) == 1:
            raise OSError("a passing fault")
        return None

    experiment = replace(BASE, fraction_train=1.0, on_failure="exclude", rounds=1)
    with faulty(3, once, (1,)) as client_app:
        result = on_supernodes(experiment, 4, client_app, retries=1)
    assert len(seen) == 2
    assert same(result, experiment.run())


def test_a_failure_ends_the_run_if_it_should() -> None:
    with (
        faulty(0, boom, (2,)) as client_app,
        pytest.raises(FedsimError, match=r"client \d+ failed in round 2: SuperNode \d+ failed: OSError: the disk"),
    ):
        on_supernodes(replace(BASE, fraction_train=1.0), 4, client_app)


def test_too_few_survivors_change_nothing() -> None:
    experiment = replace(
        BASE, fraction_train=1.0, on_failure="exclude", rounds=2, min_clients=10, fraction_evaluate=0.0
    )
    with faulty(1, boom, (1,)) as client_app:
        history = on_supernodes(experiment, 4, client_app).history
    assert history["test_loss"].iloc[0] == history["test_loss"].iloc[1] != history["test_loss"].iloc[2]
    with pytest.raises(ConfigError, match="min_clients is 2, which the server FedAvg does not heed"):
        replace(BASE, min_clients=2, server=stock.FedAvg).run()


class Losing(clients.SCAFFOLD):
    """The updates of three clients are lost in round 2."""

    def train(self, ctx: clients.Context) -> Any:
        weights = super().train(ctx)
        if ctx.round == 2:
            weights[np.isin(ctx.partition_ids, (1, 5, 9))] = np.nan
        return weights


@pytest.mark.parametrize("min_clients", [1, 10])
def test_state_is_that_after_the_last_update_that_counted(min_clients: int) -> None:
    """A client that is left out, or whose round is rejected, goes on from where it was, as in process."""
    settings: dict[str, Any] = {"on_failure": "exclude", "min_clients": min_clients, "rounds": 4}
    experiment = replace(BASE, client=clients.SCAFFOLD(), fraction_train=1.0, fraction_evaluate=0.0, **settings)
    with faulty(1, altered("weights", lambda w: w * np.nan), (2,)) as client_app:
        there = on_supernodes(experiment, 4, client_app)
    here = replace(experiment, client=Losing()).run()
    assert here.history["clients"].tolist() == [0, 12, 9 if min_clients == 1 else 0, 12, 12]
    assert all(np.array_equal(here.weights[k], there.weights[k]) for k in here.weights)


def test_supernodes_that_are_missing_are_said() -> None:
    experiment = replace(BASE, on_failure="exclude", fraction_train=1.0, fraction_evaluate=0.0, rounds=1)

    class Half(AppGrid):
        def get_node_ids(self) -> list[int]:
            return list(super().get_node_ids())[:2]

    settings = {"experiment": config.to_toml(experiment)}
    with flower.quiet(), Half(app.client_app, 4, run_config=settings) as grid:
        result = experiment.run(engine=partial(SuperNodeGrid, grid=grid, nodes=4, wait=0.5))
    assert len(result.failures) == 6
    assert result.failures["reason"].iloc[0] == "no SuperNode is partition 2 of 4"

    class Nobody(AppGrid):
        def get_node_ids(self) -> list[int]:
            return []

    said = pytest.raises(FedsimError, match="no SuperNode has answered")
    with flower.quiet(), Nobody(app.client_app, 4) as grid, said:
        experiment.run(engine=partial(SuperNodeGrid, grid=grid, nodes=1, wait=0.3))


def test_a_supernode_that_cannot_start_says_why() -> None:
    settings = {"experiment": 'dataset = "mnist"\ndata_dir = "/nowhere"'}
    with flower.quiet(), AppGrid(app.client_app, 2, run_config=settings) as grid:
        engine = partial(SuperNodeGrid, grid=grid, nodes=2)
        with pytest.raises(FedsimError, match=r"SuperNode \d cannot start: DataError: data_dir is '/nowhere'"):
            BASE.run(engine=engine)


@pytest.mark.parametrize("client", [SGD(), clients.SCAFFOLD()])
def test_an_interrupted_run_goes_on_unless_state_was_on_supernodes(
    client: SGD, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsim.run.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("fedsim.run.CHECKPOINT_SHARE", 1e9)
    experiment = replace(BASE, client=client)
    settings = {"experiment": config.to_toml(experiment)}

    def stop(row: Any) -> None:
        if row["round"] == 2:
            raise InterruptedError

    def run(**options: Any) -> Result:
        with flower.quiet(), AppGrid(app.client_app, 3, run_config=settings) as grid:
            return experiment.run(engine=partial(SuperNodeGrid, grid=grid, nodes=3), directory=tmp_path, **options)

    with pytest.raises(InterruptedError):
        run(on_round=stop)
    if type(client) is SGD:
        assert same(run(), experiment.run())
    else:
        with pytest.raises(FedsimError, match="what clients of SCAFFOLD kept on their SuperNodes went"):
            run()
        with pytest.raises(FedsimError, match="what clients of SCAFFOLD kept on their SuperNodes went"):
            experiment.run(directory=tmp_path)  # in process neither
