"""Clients on SuperNodes, here ones in this process: the same bits, and whatever a client does, the round ends."""

from __future__ import annotations

import re
import threading
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import flwr.serverapp.strategy as stock
import numpy as np
import pandas as pd
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from helpers import OnRound, same
from threadpoolctl import threadpool_info, threadpool_limits

from fedsim import Experiment, clients, servers
from fedsim.apps import app
from fedsim.apps.app_folder import load_app
from fedsim.apps.export import export
from fedsim.apps.in_process import AppGrid, run_flower
from fedsim.clients import SGD
from fedsim.clients.server_hooks import ServerHooks
from fedsim.data import Dataset
from fedsim.engines.runtime import ClientRuntime
from fedsim.engines.supernodes.arrays import (
    RESULT,
    Layout,
    ReplyError,
    first_line,
    invalid_rows,
    read_array,
    read_columns,
)
from fedsim.engines.supernodes.engine import SuperNodeEngine
from fedsim.engines.supernodes.fingerprint import ROWS, difference, fingerprint
from fedsim.engines.supernodes.node import answer, hello
from fedsim.engines.supernodes.replies import EVALUATION, FAILED, Hello, read_hello, read_reply, training_layout
from fedsim.engines.supernodes.roster import Roster
from fedsim.errors import ConfigError, FedsimError
from fedsim.flower import internals, records, strategies
from fedsim.flower.messages import LocalGrid
from fedsim.splits import IID, Dirichlet, FeatureNoise, FederatedDataset, Partition, TimeOrdered
from fedsim.study import config
from fedsim.study.result import Result
from fedsim.updates.compression import TopK

BASE = Experiment(
    split=Dirichlet(12, alpha=0.4), rounds=3, fraction_train=0.7, fraction_evaluate=0.5, test_fraction=0.1
)


def on_supernodes(experiment: Experiment, nodes: int, client_app: ClientApp = app.client_app, **options: Any) -> Result:
    settings = {"experiment": config.to_toml(experiment)}
    with strategies.quiet(), AppGrid(client_app, nodes, run_config=settings, workers=4) as grid:
        engine = partial(SuperNodeEngine, grid=grid, on_failure=experiment.on_failure, **({"nodes": nodes} | options))
        return experiment.run(engine=engine)


@pytest.mark.parametrize(
    "experiment",
    [
        BASE,
        replace(BASE, kernel="compiled"),
        replace(BASE, client=clients.SCAFFOLD()),
        replace(BASE, client=clients.FedDyn()),
        replace(BASE, client=clients.FedNova(momentum=0.5)),
        replace(BASE, client=clients.FedPer(), metrics=("macro_f1", "recall")),
        replace(BASE, client=clients.Ditto(), metrics=("log_loss", "confusion_matrix")),
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


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("client", "own_parts:Client"),
        ("server", "own_parts:Server"),
        ("transforms", "own_parts:Half"),
        ("metrics", "own_parts:half"),
    ],
)
def test_an_exported_app_has_the_files_of_ones_own_classes(
    field: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_parts.py").write_text(
        "from fedsim.clients import SGD\nfrom fedsim.updates.compression import Float16\n"
        "from fedsim.servers import FedAvg\n\n\n"
        "class Client(SGD):\n    pass\n\n\nclass Half(Float16):\n    pass\n\n\nclass Server(FedAvg):\n    pass\n\n\n"
        "def half(y, scores):\n    return float(scores.mean()) / 2\n"
    )
    monkeypatch.chdir(tmp_path)
    made = config.value_of(field, [text] if field in ("transforms", "metrics") else text)
    experiment = replace(BASE, **{field: made})
    folder = export(experiment, tmp_path / "app")
    assert (folder / "own_parts.py").read_text() == (tmp_path / "own_parts.py").read_text()
    if field == "metrics":  # the app's SuperNodes find the function
        server_app, client_app, run_config, _ = load_app(folder)
        run_flower(server_app, client_app, 2, run_config=run_config | {"out": str(tmp_path / "out")})
        written = pd.read_csv(tmp_path / "out" / "metrics.csv", float_precision="round_trip")
        assert written["value"].equals(experiment.run().metrics["value"])


# Faults. Partition p of 4 holds the clients whose id is p modulo 4.


@contextmanager
def faulty(
    partition: int, fault: Callable[[Message, Context], Message | None], rounds: tuple[int, ...], when: str = "train"
) -> Iterator[ClientApp]:
    """fedsim's ClientApp, of which one SuperNode misbehaves in some rounds; None from the fault means: as usual."""
    made = ClientApp()

    @made.query()
    def _query(message: Message, context: Context) -> Message:
        return hello(message, context, app._client_runtime(context, None))

    def handler(kind: str) -> Callable[[Message, Context], Message]:
        def handle(message: Message, context: Context) -> Message:
            order = message.content.config_records["fedsim.order"]
            if context.node_config["partition-id"] == partition and order["round"] in rounds and kind == when:
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
        return Message(RecordDict({RESULT: records.record(arrays)}), reply_to=message)

    return fault


def added(name: str, make: Callable[[int], Any]) -> Callable[[Message, Context], Message]:
    """A reply with one more array."""

    def fault(message: Message, context: Context) -> Message:
        reply = app.client_app(message, context)
        arrays = {k: a.numpy() for k, a in reply.content.array_records[RESULT].items()}
        arrays[name] = make(len(arrays["partition_ids"]))
        return Message(RecordDict({RESULT: records.record(arrays)}), reply_to=message)

    return fault


def saved(values: Any, **options: Any) -> bytes:
    buffer = BytesIO()
    np.save(buffer, values, **options)
    return buffer.getvalue()


pickled = saved(np.array([{}], dtype=object), allow_pickle=True)
cut = saved(np.zeros((3, BASE.make_model(BASE.load_data()).num_parameters), np.float32))[: 128 + 4]
header = saved(np.zeros(1, np.float32)).replace(b"(1,), }" + b" " * 12, b"(1000000000000,), }")


def boom(message: Message, context: Context) -> Message:
    raise OSError("the disk is full\nand more")


def unreadable(data: bytes) -> Callable[[Message, Context], Message]:
    """A reply whose weights are other bytes than an array's."""

    def fault(message: Message, context: Context) -> Message:
        reply = app.client_app(message, context)
        arrays = dict(reply.content.array_records[RESULT].items())
        shape = tuple(arrays["weights"].shape)
        arrays["weights"] = Array(dtype="float32", shape=shape, stype="numpy.ndarray", data=data)
        return Message(RecordDict({RESULT: ArrayRecord(arrays)}), reply_to=message)

    return fault


FAULTS: dict[str, tuple[Callable[[Message, Context], Message | None], str]] = {
    "raises": (boom, "failed: OSError: the disk is full"),
    "sends NaN": (altered("weights", lambda w: w * np.nan), "training diverged|not finite"),
    "sends a number that overflows": (altered("weights", lambda w: w * 0 + 1e38), "sent weights too large for float32"),
    "sends a loss below any": (altered("train_loss", lambda loss: loss * 0 - 1e9), r"sent a training loss of -1e\+09"),
    "sends bytes": (unreadable(b"no array"), "sent weights of bytes that are no array"),
    "sends a pickle": (unreadable(pickled), "sent weights of shape .* and dtype object"),
    "sends a header only": (unreadable(header), r"sent weights of shape \(1000000000000,\)"),
    "sends too few bytes": (unreadable(cut), "sent weights of 4 bytes; expected"),
    "sends another dtype": (altered("weights", lambda w: w.astype(np.float64)), "and dtype float64; expected"),
    "sends too many examples": (
        altered("num_examples", lambda n: n * 0 + 10**15),
        "sent num_examples of 10+;",
    ),
    "sends a client twice": (altered("partition_ids", lambda ids: ids * 0 + ids[0]), "answered for other clients"),
    "sends huge ids": (altered("partition_ids", lambda ids: ids + 2**62), "answered for other clients"),
    "sends negative ids": (altered("partition_ids", lambda ids: -ids), "answered for other clients"),
    "sends a record of another kind": (
        lambda m, c: Message(RecordDict({RESULT: MetricRecord({"weights": 1.0})}), reply_to=m),
        "sent no partition_ids",
    ),
    "sends a wrong shape": (altered("weights", lambda w: w[:, :-1]), "sent weights of shape"),
    "sends no examples": (altered("num_examples", lambda n: n * 0), "sent num_examples of 0; the client has"),
    "sends other clients": (altered("partition_ids", lambda ids: ids + 1), "answered for other clients"),
    "sends more": (added("up.more", np.zeros), "sent 'up.more', which was not asked for"),
    "sends nothing": (lambda m, c: Message(RecordDict(), reply_to=m), "sent no partition_ids"),
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


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
def test_what_is_sent_besides_weights_is_checked_too(value: float) -> None:
    """A client that has trained well by its own account, and whose control variate is no number."""
    experiment = replace(
        BASE, client=clients.SCAFFOLD(), fraction_train=1.0, fraction_evaluate=0.0, on_failure="exclude", rounds=3
    )
    named = [name for name in layout_of(experiment) if name.startswith("up.")]
    assert named
    for name in named:
        with faulty(1, altered(name, lambda sent: sent * 0 + value), (1,)) as client_app:
            result = on_supernodes(experiment, 4, client_app)
        assert result.history["failures"].tolist() == [0, 3, 0, 0]
        assert (
            result.failures["reason"].str.contains(f"sent {name} (?:that are not finite|too large)", regex=True).all()
        )
        assert all(np.isfinite(values).all() for values in result.weights.values())


def layout_of(experiment: Experiment) -> Layout:
    """What a SuperNode sends in an experiment's first round."""
    federated = experiment.federate(experiment.load_data())
    model = experiment.make_model(federated.dataset)
    site = ClientRuntime(model, federated, experiment.client, experiment.seed, "numpy", experiment.transforms)
    weights = np.zeros(model.num_parameters, np.float32)
    hooks = ServerHooks(experiment.client, model, len(federated.partition.indices), 0)
    down = hooks.down(weights) if experiment.client.broadcast else {}
    return training_layout(site, site.task(weights, 1, down=down), np.arange(len(federated.partition)))


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("num_examples", 10**15, "sent num_examples of 10+; the client has"),
        ("num_examples", -1, "sent num_examples of -1; the client has"),
        ("loss", np.nan, "sent a loss or accuracy that is not finite"),
        ("loss", -1.0, "sent a loss of -1 and an accuracy of"),
        ("loss", 1e39, "sent a loss or accuracy too large for float32"),
        ("accuracy", np.inf, "sent a loss or accuracy that is not finite"),
        ("accuracy", 1.5, "and an accuracy of 1.5"),
    ],
)
def test_scores_that_cannot_be_are_not_averaged(name: str, value: float, reason: str) -> None:
    experiment = replace(BASE, fraction_evaluate=1.0, on_failure="exclude", rounds=1)
    with faulty(1, altered(name, lambda values: values * 0 + value), (1,), "evaluate") as client_app:
        result = on_supernodes(experiment, 4, client_app)
    assert sorted(result.clients["partition_id"]) == [0, 2, 3, 4, 6, 7, 8, 10, 11]
    assert result.failures["partition_id"].tolist() == [1, 5, 9]
    assert result.failures["reason"].str.contains(reason, regex=True).all(), result.failures["reason"].tolist()
    honest = replace(experiment, on_failure="raise").run()
    mine = honest.clients[~honest.clients["partition_id"].isin([1, 5, 9])]
    assert result.history["local_loss"].iloc[1] == np.average(mine["loss"], weights=mine["num_examples"])


@pytest.mark.parametrize("kind", ["sends a number that overflows", "sends bytes", "sends too many examples"])
def test_a_reply_that_does_not_count_ends_the_run_by_name(kind: str) -> None:
    fault, reason = FAULTS[kind]
    said = pytest.raises(FedsimError, match=rf"client \d+ failed in round 1: its SuperNode {reason}")
    with faulty(1, fault, (1,)) as client_app, said:
        on_supernodes(replace(BASE, fraction_train=1.0), 4, client_app)


def test_the_second_of_two_answers_does_not_count() -> None:
    """Nor does an answer to another round, whatever the SuperLink lets through."""

    class Repeating(AppGrid):
        earlier: tuple[Message, ...] = ()

        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
            replies = list(super().send_and_receive(messages, timeout=timeout))
            if replies and replies[0].metadata.message_type == "train":
                if self.earlier:
                    assert replies[0].metadata.src_node_id == self.earlier[0].metadata.src_node_id
                    replies[0] = self.earlier[0]
                self.earlier = tuple(replies)
                replies += replies[1:2]
            return replies

    experiment = replace(BASE, fraction_train=1.0, fraction_evaluate=0.0, on_failure="exclude", rounds=2)
    settings = {"experiment": config.to_toml(experiment)}
    with strategies.quiet(), Repeating(app.client_app, 4, run_config=settings) as grid:
        result = experiment.run(engine=partial(SuperNodeEngine, on_failure=experiment.on_failure, grid=grid, nodes=4))
    assert result.history["clients"].tolist() == [0, 12, 9]
    assert result.failures["reason"].unique().tolist() == ["SuperNode 2 answered another message"]


def test_a_strategy_that_fails_on_some_clients_fails_there_only() -> None:
    """The server learns what a strategy sends by training a client; it tries another one."""
    experiment = replace(
        BASE, client=Failing(lost=(3,)), fraction_train=1.0, fraction_evaluate=0.0, on_failure="exclude", rounds=1
    )
    largest = int(np.argmax(experiment.federate(experiment.load_data()).partition.sizes))
    result = on_named_strategy(replace(experiment, client=Failing(lost=(largest,))), 12)
    assert result.failures["partition_id"].tolist() == [largest]
    result = on_named_strategy(replace(experiment, client=Failing(lost=tuple(range(12)))), 12)
    assert len(result.failures) == 12
    assert "Failing fails on the server too: RuntimeError: no" in result.failures["reason"].iloc[0]


class Failing(SGD):
    """Some clients raise."""

    lost: tuple[int, ...] = ()

    def train(self, ctx: clients.Context) -> Any:
        if np.isin(ctx.partition_ids, self.lost).any():
            raise RuntimeError("no")
        return ctx.fit()


def on_named_strategy(experiment: Experiment, nodes: int) -> Result:
    """Run with a strategy of this file, which a SuperNode takes as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedsim.engines.supernodes.engine.to_text", lambda strategy, names: "SGD()")
        patch.setattr("fedsim.engines.supernodes.node.received_client", lambda text, own: experiment.client)
        settings = {"experiment": config.to_toml(replace(experiment, client=SGD()))}
        with strategies.quiet(), AppGrid(app.client_app, nodes, run_config=settings, workers=1) as grid:
            return experiment.run(
                engine=partial(SuperNodeEngine, on_failure=experiment.on_failure, grid=grid, nodes=nodes)
            )


# What SuperNodes say about themselves.


def greeting(change: Callable[[int, dict[str, Any]], Any]) -> ClientApp:
    """fedsim's ClientApp, whose SuperNodes change what they say about themselves."""
    made = ClientApp()

    @made.query()
    def _query(message: Message, context: Context) -> Message:
        honest = app.client_app(message, context)
        said = dict(honest.content.config_records[RESULT].items())
        changed = change(int(context.node_config["partition-id"]), said)
        content = changed if isinstance(changed, RecordDict) else RecordDict({RESULT: ConfigRecord(changed or said)})
        return Message(content, reply_to=message)

    made.train()(app.client_app)
    made.evaluate()(app.client_app)
    return made


def lie(**changes: Any) -> Callable[[int, dict[str, Any]], Any]:
    """SuperNode 1 changes some of what it says."""
    return lambda number, said: said | {k.replace("_", "-"): v for k, v in changes.items()} if number == 1 else said


HELLOS: dict[str, tuple[Callable[[int, dict[str, Any]], Any], str]] = {
    "all partitions": (lie(partition_id=0, num_partitions=1), "its num-partitions is 1, and that of others is 4"),
    "a list": (lie(partition_id=[0, 1, 2, 3]), "it did not say which partition it is"),
    "NaN": (lie(partition_id=float("nan")), "it did not say which partition it is"),
    "true": (lie(partition_id=True), "it did not say which partition it is"),
    "a negative id": (lie(partition_id=-1), "it says partition-id=-1 with num-partitions=4; allowed: 0 to 3"),
    "a huge id": (lie(partition_id=2**62), "allowed: 0 to 3"),
    "huge partitions": (lie(num_partitions=2**62), "it says num-partitions=4611686018427387904; allowed: 1 to 12"),
    "no partitions": (lie(num_partitions=0), "allowed: 1 to 12"),
    "nothing": (lambda k, said: RecordDict() if k == 1 else said, "it did not say which partition it is"),
    "metrics": (
        lambda k, said: (
            RecordDict({RESULT: MetricRecord({"partition-id": 1, "num-partitions": 4})}) if k == 1 else said
        ),
        "it did not say which partition it is",
    ),
    "no sketch": (lie(sketch=[]), "it sent no sketch of its features"),
    "words for numbers": (lie(sketch=["x"] * 9), "it sent no fingerprint of its data"),
    "NaN for a sketch": (lie(sketch=[float("nan")] * 9), "its features are not the server's"),
    "other labels": (lie(held="0"), "its labels, or the examples of its clients, are not the server's"),
    "fewer examples": (lie(examples=3), "its data have 3 examples, the server's 1442"),
}


@pytest.mark.parametrize("kind", list(HELLOS))
def test_a_supernode_that_says_nonsense_about_itself_is_refused(kind: str) -> None:
    change, reason = HELLOS[kind]
    experiment = replace(BASE, fraction_train=1.0, fraction_evaluate=0.0, rounds=1)
    with pytest.raises(FedsimError, match=r"SuperNode 3 is refused: .*" + re.escape(reason)):
        on_supernodes(experiment, 4, greeting(change))
    result = on_supernodes(replace(experiment, on_failure="exclude"), 4, greeting(change))
    assert result.failures["partition_id"].tolist() == [1, 5, 9]
    assert result.failures["reason"].str.startswith("no SuperNode is partition 1 of 4; SuperNode 3 is refused: ").all()
    assert result.failures["reason"].str.contains(reason, regex=False).all(), result.failures["reason"].tolist()
    assert result.history["clients"].iloc[1] == 9


def test_two_supernodes_with_one_partition() -> None:
    """The first serves it. The other one does so when the first has left."""
    experiment = replace(BASE, fraction_train=1.0, fraction_evaluate=0.0, rounds=2)
    with pytest.raises(FedsimError, match="SuperNode 3 is refused: SuperNode 2 is partition 0 too"):
        on_supernodes(experiment, 4, greeting(lie(partition_id=0)))
    result = on_supernodes(replace(experiment, on_failure="exclude"), 4, greeting(lie(partition_id=0)))
    assert result.history["clients"].tolist() == [0, 9, 9]
    assert result.failures["reason"].iloc[0] == (
        "no SuperNode is partition 1 of 4; SuperNode 3 is a spare: SuperNode 2 is partition 0 too"
    )

    class Leaving(AppGrid):
        asked = 0

        def get_node_ids(self) -> list[int]:
            self.asked += 1
            return list(super().get_node_ids())[self.asked > 2 :]

        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
            to = {message.metadata.dst_node_id for message in messages}
            assert to <= set(range(2 + (self.asked > 2), 6)), "no message goes to a SuperNode that has left"
            return super().send_and_receive(messages, timeout=timeout)

    settings = {"experiment": config.to_toml(experiment)}
    excluding = replace(experiment, on_failure="exclude")
    with strategies.quiet(), Leaving(greeting(lie(partition_id=0)), 4, run_config=settings) as grid:
        result = excluding.run(engine=partial(SuperNodeEngine, on_failure=excluding.on_failure, grid=grid, nodes=4))
    assert result.failures["partition_id"].tolist() == [1, 5, 9] * 2
    assert result.history["clients"].tolist() == [0, 9, 9]


def test_sites_with_tables_of_their_own_are_refused(tmp_path: Path) -> None:
    """Each would standardise by its own statistics, and hold other examples than the server counts."""
    rng = np.random.default_rng(0)
    places = []
    for number in range(3):
        (tmp_path / f"{number}").mkdir()
        values = rng.normal(number, 1, (40 if number < 2 else 80, 2))
        rows = "".join(f"{a:.3f},{b:.3f},{a + b > number}\n" for a, b in values)
        (tmp_path / f"{number}" / "my.csv").write_text("a,b,y\n" + rows)
        places.append({"data-dir": str(tmp_path / f"{number}")})
    experiment = Experiment(
        dataset="table('my.csv', label='y')", data_dir=str(tmp_path / "0"), split=IID(4), rounds=1, hidden=(4,)
    )

    def run(*order: int) -> Result:
        settings = {"experiment": config.to_toml(replace(experiment, data_dir=None))}
        configs = [places[k] for k in order]
        with (
            strategies.quiet(),
            AppGrid(app.client_app, 2, run_config=settings, node_configs=configs, workers=1) as grid,
        ):
            return experiment.run(engine=partial(SuperNodeEngine, on_failure=experiment.on_failure, grid=grid, nodes=2))

    assert same(run(0, 0), experiment.run())
    with pytest.raises(FedsimError, match="SuperNode 3 is refused: it has other data than the server: its labels"):
        run(0, 1)
    with pytest.raises(FedsimError, match="SuperNode 2 is refused: it has other data than the server: its data have"):
        run(2, 0)


def test_a_fingerprint_sees_who_holds_what() -> None:
    data = BASE.load_data()
    own = fingerprint(IID(5).federate(data, 0).with_tests(0.2, 0))
    for other in (
        IID(5).federate(data, 1).with_tests(0.2, 0),
        IID(5).federate(data, 0).with_tests(0.2, 1),
        IID(5).federate(data, 0),
        TimeOrdered(IID(5), 2).federate(data, 0).with_tests(0.2, 0),
    ):
        assert difference(own, fingerprint(other)) == "its labels, or the examples of its clients, are not the server's"
    assert difference(own, fingerprint(IID(6).federate(data, 0))) == "its data have 6 clients, the server's 5"


def test_a_fingerprint_sees_where_clients_are_cut() -> None:
    own, other = (
        fingerprint(FederatedDataset(BASE.load_data(), Partition(np.arange(100), np.array([0, cut, 100]))))
        for cut in (40, 60)
    )
    assert difference(own, other) == "its labels, or the examples of its clients, are not the server's"


def test_a_fingerprint_sees_rows_exchanged_between_blocks() -> None:
    x = np.random.default_rng(0).normal(size=(ROWS + 100, 3))
    exchanged = x.copy()
    exchanged[[7, ROWS + 7]] = x[[ROWS + 7, 7]]
    y = np.zeros(len(x), dtype=int)
    held = Partition(np.arange(len(x)), np.array([0, len(x)]))
    own, other = (fingerprint(FederatedDataset(Dataset("d", v, y, x[:1], y[:1]), held)) for v in (x, exchanged))
    assert "its features are not the server's" in difference(own, other)


@pytest.mark.parametrize("change", ["one value", "other statistics", "rows exchanged", "columns exchanged"])
@pytest.mark.parametrize("regression", [False, True])
def test_a_fingerprint_sees_what_matters_and_not_rounding(change: str, regression: bool) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(500, 20)).astype(np.float32), np.arange(500) % 3
    target = x[:, 0].astype(np.float64) if regression else y

    def made(values: Any, targets: Any = target) -> FederatedDataset:
        data = Dataset("d", values, targets, x[:9], targets[:9], regression=regression)
        return IID(5).federate(data, 0)

    own = fingerprint(made(x))
    assert difference(own, own) == ""
    assert difference(own, fingerprint(made(x * np.float32(1 + 1e-7)))) == ""
    other = x.copy()
    if change == "one value":
        other[123, 4] += 0.05
    elif change == "other statistics":
        other = other * 1.001 + 0.001
    elif change == "rows exchanged":
        other[[3, 6]] = other[[6, 3]]
    else:
        other[:, [1, 2]] = other[:, [2, 1]]
    assert "its features are not the server's" in difference(own, fingerprint(made(other)))
    moved = target.copy()
    moved[0] += 1
    expected = "features" if regression else "labels"
    assert expected in difference(own, fingerprint(made(x, moved)))


def held_by(data: Dataset, **changes: Any) -> FederatedDataset:
    """Five clients with the same number of examples, and tests of their own."""
    cuts = np.arange(0, 41, 8)
    given: dict[str, Any] = {
        "partition": Partition(np.arange(40), cuts), "partition_test": Partition(np.arange(40, 60), cuts // 2)
    }  # fmt: skip
    return FederatedDataset(data, **(given | changes))


def test_a_fingerprint_counts_and_compares_counts_exactly() -> None:
    rng = np.random.default_rng(3)
    data = Dataset("d", rng.normal(size=(60, 7)), np.arange(60) % 3, rng.normal(size=(4, 7)), np.arange(4) % 3)
    own = fingerprint(held_by(data))
    counts = {"examples": 60, "features": 7, "classes": 3, "clients": 5}
    assert {name: own[name] for name in counts} == counts
    sketch: Any = own["sketch"]
    assert sketch[0] == pytest.approx(np.linalg.norm(data.x_train))
    assert np.abs(sketch[1:]).min() > 0
    assert len(set(sketch)) == 9
    for name, count in counts.items():
        said = f"its data have {count + 1} {name}, the server's {count}"
        assert difference(own, own | {name: count + 1}) == said
        long = difference(own, own | {name: "x" * 60})
        assert long == f"its data have '{'x' * 39}... {name}, the server's {count}"
        assert difference(own | {name: 1}, own | {name: True}) == f"its data have True {name}, the server's 1"
    for wrong in (sketch[:-1], "x" * 9, None):
        assert difference(own, own | {"sketch": wrong}) == "it sent no sketch of its features"


@pytest.mark.parametrize(
    "changes",
    [
        {"windows": 2, "rounds_per_window": 2},
        {"windows": 3},
        {"partition_test": Partition(np.arange(40, 60), np.array([0, 3, 8, 12, 16, 20]))},
        {"partition_test": Partition(np.arange(40, 60)[::-1].copy(), np.arange(0, 21, 4))},
        {"partition": Partition(np.arange(40)[::-1].copy(), np.arange(0, 41, 8))},
    ],
)
def test_a_fingerprint_sees_windows_and_the_cuts_of_tests(changes: dict[str, Any]) -> None:
    own, other = fingerprint(held_by(SMALL, windows=2)), fingerprint(held_by(SMALL, **({"windows": 2} | changes)))
    assert difference(own, other) == "its labels, or the examples of its clients, are not the server's"


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_fingerprint_sees_each_number_whatever_the_scale(scale: float) -> None:
    """Of the features, and of the targets beside features that are a million times as large."""
    rng = np.random.default_rng(5)
    x, y, y_test = rng.normal(size=(60, 4)), rng.normal(size=60), rng.normal(size=9)

    def made(features: Any, targets: Any = y, tests: Any = y_test) -> dict[str, Any]:
        data = Dataset("d", features * scale, targets, x[:9], tests, regression=True)
        return fingerprint(held_by(data))

    own = made(x)
    assert difference(own, made(x * (1 + 1e-7), y * (1 + 1e-7))) == ""
    for row, column in np.ndindex(20, 4):
        other = x.copy()
        other[row, column] += 0.01
        assert "its features are not the server's" in difference(own, made(other))
    moved = y.copy()
    moved[7] += 0.01
    assert "its features are not the server's" in difference(own, made(x, moved))
    assert "its features are not the server's" in difference(own, made(x, y, y_test * 1.01))


# Bytes, as Flower makes them.


@pytest.mark.parametrize("layout", ["rows", "columns", "big-endian", "version 2"])
def test_arrays_are_read_as_numpy_writes_them(layout: str) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    made = {"columns": np.asfortranarray(values), "big-endian": values.astype(">f4")}.get(layout, values)
    buffer = BytesIO()
    np.lib.format.write_array(buffer, made, version=(2, 0) if layout == "version 2" else (1, 0))
    array = Array(dtype="float32", shape=(3, 4), stype="numpy.ndarray", data=buffer.getvalue())
    read = read_array(array, (3, 4), np.dtype(np.float32))
    assert read.dtype == np.float32
    assert np.array_equal(read, values)


class Wire(AppGrid):
    """SuperNodes to which every message goes, and from which every reply comes, as the bytes that Flower sends."""

    def push_messages(self, messages: Any) -> Any:
        messages = list(messages)
        return super().push_messages(self._carried(message.metadata, message.content) for message in messages)

    def _handle(self, node: int, message: Message) -> Message:
        reply = super()._handle(node, message)
        return self._carried(reply.metadata, reply.content) if reply.has_content() else reply

    def _carried(self, metadata: Any, content: RecordDict) -> Message:
        with no_object_id_recompute():
            objects = {name: each.deflate() for name, each in get_all_nested_objects(content).items()}
            arrived: Any = inflate_object_from_contents(content.object_id, objects)
        return internals.make_message(metadata, arrived)


@pytest.mark.parametrize(
    "experiment", [replace(BASE, client=clients.SCAFFOLD()), replace(BASE, transforms=(TopK(0.1),))]
)
def test_a_round_is_serialised_once(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many SuperNodes the model goes to; and the bytes give the same bits as no bytes."""
    made: list[int] = []
    save = np.save

    def counting(file: Any, values: Any, **options: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            made.append(values.size)
        save(file, values, **options)

    monkeypatch.setattr(np, "save", counting)
    settings = {"experiment": config.to_toml(experiment)}
    with strategies.quiet(), Wire(app.client_app, 6, run_config=settings, workers=2) as grid:
        result = experiment.run(engine=partial(SuperNodeEngine, on_failure=experiment.on_failure, grid=grid, nodes=6))
    assert same(result, experiment.run())
    size = sum(values.size for values in result.weights.values())
    down = 1 + len(experiment.client.broadcast)
    whole = [each for each in made if each == size]
    assert len(whole) == down * 2 * experiment.rounds  # a message to train and one to evaluate


def test_a_client_that_hangs_is_not_waited_for_beyond_the_timeout() -> None:
    """It hangs until the round's row is written."""
    release, hanging = threading.Event(), []

    def hang(message: Message, context: Context) -> None:
        release.wait(60)

    def row_written(row: Any) -> None:
        if row["round"] == 1:
            hanging.append(not release.is_set())
            release.set()

    experiment = replace(BASE, fraction_train=1.0, fraction_evaluate=0.0, on_failure="exclude", rounds=1)
    settings = {"experiment": config.to_toml(experiment)}
    with (
        faulty(2, hang, (1,)) as client_app,
        strategies.quiet(),
        AppGrid(client_app, 4, run_config=settings, workers=4) as grid,
    ):
        engine = partial(SuperNodeEngine, grid=grid, nodes=4, timeout=2.0)
        result = experiment.run(engine=engine, callbacks=[OnRound(row_written)])
    assert hanging == [True]
    assert result.failures["partition_id"].tolist() == [2, 6, 10]
    assert result.failures["reason"].str.contains("did not answer within 2 s").all()


def test_a_word_of_the_superlink_for_a_supernode_that_is_gone() -> None:
    """Flower's SuperLink answers for it, in its own name."""

    class Answering(AppGrid):
        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
            replies = list(super().send_and_receive(messages, timeout=timeout))
            for k, reply in enumerate(replies):
                if reply.metadata.message_type == "train" and reply.metadata.src_node_id == 3:
                    metadata = internals.reply_metadata(1, "x", "train", "", 0.0)
                    replies[k] = internals.make_message(metadata, error=Error(5, "Node unavailable"))
            return replies

    experiment = replace(BASE, fraction_train=1.0, fraction_evaluate=0.0, on_failure="exclude", rounds=1)
    settings = {"experiment": config.to_toml(experiment)}
    with strategies.quiet(), Answering(app.client_app, 4, run_config=settings) as grid:
        result = experiment.run(engine=partial(SuperNodeEngine, on_failure=experiment.on_failure, grid=grid, nodes=4))
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
    with pytest.raises(ConfigError, match="min_clients is 2; allowed with the server FedAvg: 1"):
        replace(BASE, min_clients=2, server=stock.FedAvg).run()


class Fragile(clients.SCAFFOLD):
    """Raises on one client."""

    def train(self, ctx: clients.Context) -> Any:
        if 6 in ctx.partition_ids:
            raise ValueError("no such thing")
        return super().train(ctx)


def test_a_client_that_raises_is_left_out_and_not_its_supernode() -> None:
    """Two others are on its SuperNode; bits and reasons are those of a run in process."""
    experiment = replace(BASE, client=Fragile(), fraction_train=1.0, on_failure="exclude", rounds=2)
    here, there = experiment.run(), on_supernodes(experiment, 4, app.make_apps(__file__)[1])
    assert same(here, there)
    assert there.failures["partition_id"].tolist() == [6, 6]
    assert there.failures["reason"].tolist() == here.failures["reason"].tolist()
    assert there.failures["reason"][0].startswith("ValueError: no such thing (test_super")


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
    with strategies.quiet(), Half(app.client_app, 4, run_config=settings) as grid:
        result = experiment.run(
            engine=partial(SuperNodeEngine, on_failure=experiment.on_failure, grid=grid, nodes=4, wait=0.5)
        )
    assert len(result.failures) == 6
    assert result.failures["reason"].iloc[0] == "no SuperNode is partition 2 of 4"

    class Nobody(AppGrid):
        def get_node_ids(self) -> list[int]:
            return []

    said = pytest.raises(FedsimError, match="no SuperNode has answered")
    with strategies.quiet(), Nobody(app.client_app, 4) as grid, said:
        experiment.run(engine=partial(SuperNodeEngine, on_failure=experiment.on_failure, grid=grid, nodes=1, wait=0.3))


def test_a_supernode_that_cannot_start_says_why() -> None:
    settings = {"experiment": 'dataset = "mnist"\ndata_dir = "/nowhere"'}
    with strategies.quiet(), AppGrid(app.client_app, 2, run_config=settings) as grid:
        engine = partial(SuperNodeEngine, grid=grid, nodes=2)
        with pytest.raises(FedsimError, match=r"SuperNode \d cannot start: DataError: data_dir is '/nowhere'"):
            BASE.run(engine=engine)


@pytest.mark.parametrize("client", [SGD(), clients.SCAFFOLD()])
def test_an_interrupted_run_goes_on_unless_state_was_on_supernodes(
    client: SGD, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsim.study.saving.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("fedsim.study.saving.CHECKPOINT_SHARE", 1e9)
    experiment = replace(BASE, client=client)
    settings = {"experiment": config.to_toml(experiment)}

    def stop(row: Any) -> None:
        if row["round"] == 2:
            raise InterruptedError

    def run(**options: Any) -> Result:
        with strategies.quiet(), AppGrid(app.client_app, 3, run_config=settings) as grid:
            return experiment.run(
                engine=partial(SuperNodeEngine, on_failure=experiment.on_failure, grid=grid, nodes=3),
                directory=tmp_path,
                **options,
            )

    with pytest.raises(InterruptedError):
        run(callbacks=[OnRound(stop)])
    if type(client) is SGD:
        assert same(run(), experiment.run())
    else:
        with pytest.raises(
            FedsimError, match=r"^client state was kept on SuperNodes and ended with the interrupted run"
        ):
            run()
        with pytest.raises(
            FedsimError, match=r"^client state was kept on SuperNodes and ended with the interrupted run"
        ):
            experiment.run(directory=tmp_path)  # in process neither


# One question at a time: SuperNodes that are told what to answer, and the parts that hear them.

SMALL = Dataset(
    "small", np.random.default_rng(0).normal(size=(90, 3)), np.arange(90) % 2,
    np.random.default_rng(1).normal(size=(30, 3)), np.arange(30) % 2,
)  # fmt: skip
FEW = Experiment(dataset=SMALL, split=Dirichlet(6, alpha=1.0), hidden=(3,), test_fraction=0.2, on_failure="exclude")


def runtime_of(experiment: Experiment) -> ClientRuntime:
    federated = experiment.federate(experiment.load_data())
    net = experiment.make_model(federated.dataset)
    return ClientRuntime(net, federated, experiment.client, 0, "numpy", experiment.transforms)


class Scripted(LocalGrid):
    """SuperNodes 2, 3, ... that are partitions 0, 1, ... and answer honestly, but for what `answers` has of them."""

    def __init__(self, runtime: ClientRuntime, nodes: int) -> None:
        super().__init__()
        self.runtime, self.there = runtime, list(range(2, 2 + nodes))
        self.said = {node: (node - 2, nodes) for node in self.there}
        self.answers: dict[int, Callable[[Message], Any]] = {}
        self.sent: list[tuple[str, list[int], float | None]] = []
        self.arriving: list[int] = []
        self.orders: list[ConfigRecord] = []
        self._contexts: dict[int, Context] = {}

    def get_node_ids(self) -> Any:
        now = list(self.there)
        self.there += self.arriving[:1]
        del self.arriving[:1]
        return now

    def push_messages(self, messages: Any) -> Any:
        raise NotImplementedError

    def pull_messages(self, message_ids: Any) -> Any:
        raise NotImplementedError

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
        messages = list(messages)
        kind = messages[0].metadata.message_type
        self.sent.append((kind, [m.metadata.dst_node_id for m in messages], timeout))
        replies: list[Message] = []
        for message in messages:
            own = self.answers.get(message.metadata.dst_node_id)
            reply = own(message) if own else self.honest(message)
            replies += reply if isinstance(reply, list) else [] if reply is None else [reply]
        return replies

    def honest(self, message: Message) -> Message:
        node, kind = message.metadata.dst_node_id, message.metadata.message_type
        partition, of = self.said[node]
        config: dict[str, Any] = {"partition-id": partition, "num-partitions": of}
        place = self._contexts.setdefault(node, Context(0, node, config, RecordDict(), {}))
        place.node_config.update(config)
        if kind == "query":
            return reply_to(message, hello(message, place, self.runtime).content)
        self.orders.append(message.content.config_records["fedsim.order"])
        return reply_to(message, answer(message, place, self.runtime, kind).content)

    def asked(self, kind: str) -> list[list[int]]:
        return [nodes for what, nodes, _ in self.sent if what == kind]


def reply_to(message: Message, content: RecordDict | None, error: Error | None = None, **other: Any) -> Message:
    told: dict[str, Any] = {"node_id": message.metadata.dst_node_id, "group_id": message.metadata.group_id} | other
    made = internals.reply_metadata(told["node_id"], "m", message.metadata.message_type, told["group_id"], 0.0)
    return internals.make_message(made, content, error)


def broken(message: Message) -> Message:
    return reply_to(message, None, Error(1, "DataError: no file\nand more"))


def other_data(message: Message) -> Message:
    return reply_to(message, RecordDict({RESULT: ConfigRecord({"partition-id": 0, "num-partitions": 3})}))


def roster_of(grid: Scripted, nodes: int, on_failure: str = "exclude", wait: float = 60.0) -> Roster:
    return Roster(grid, nodes, wait, on_failure, fingerprint(grid.runtime.federated), 6)


SITE = runtime_of(FEW)


@pytest.mark.parametrize(
    ("claimed", "nodes", "of"),
    [([4, 4, 2], 9, 4), ([2, 4, 2], 9, 2), ([2, 4], 2, 2), ([4, 2], 4, 4), ([2, 4, 3], 9, 4), ([2, 2, 3], 3, 2)],
)
def test_how_many_partitions_there_are_is_what_most_supernodes_say(claimed: list[int], nodes: int, of: int) -> None:
    """In a tie it is the number of SuperNodes that are waited for, or else the larger number."""
    grid = Scripted(SITE, len(claimed))
    grid.said = {2 + k: (claimed[:k].count(number), number) for k, number in enumerate(claimed)}
    roster = roster_of(grid, nodes, wait=0.0)
    roster.wait()
    assert roster.num_partitions == of
    assert sorted(roster.hosts.values()) == [2 + k for k, number in enumerate(claimed) if number == of]
    others = [f"SuperNode {2 + k} is refused: its num-partitions is {number}, and that of others is {of}"
              for k, number in enumerate(claimed) if number != of]  # fmt: skip
    assert roster.missing(of) == "; ".join([f"no SuperNode is partition {of} of {of}", *others])
    assert grid.sent == [("query", sorted(grid.said), 0.0)]


def test_a_supernode_that_is_late_is_waited_for_and_one_of_no_use_is_not() -> None:
    """One that is refused, or cannot start, has come all the same; before the first round it is asked once."""
    grid = Scripted(SITE, 4)
    grid.there, grid.arriving = [2, 4, 5], [3]
    grid.answers = {4: broken, 5: other_data}
    roster = roster_of(grid, 4)
    roster.wait()
    assert roster.hosts == {0: 2, 1: 3}
    assert grid.asked("query") == [[2, 4, 5], [3]]
    assert roster.missing(3) == (
        "no SuperNode is partition 3 of 4; SuperNode 4 cannot start: DataError: no file; SuperNode 5 is refused: "
        "it has other data than the server: its data have None examples, the server's 90"
    )


@pytest.mark.parametrize("on_failure", ["raise", "exclude"])
def test_what_new_supernodes_say_during_a_run_does_not_end_it(on_failure: str) -> None:
    """One that cannot start is asked again every round, one that is refused is not until it has been away."""
    grid = Scripted(SITE, 3)
    roster = roster_of(grid, 3, on_failure)
    roster.wait()
    assert roster.hosts == {0: 2, 1: 3, 2: 4}
    grid.there += [7, 8, 9, 10, 11, 12, 13]
    grid.said |= {8: (1, 3), 9: (0, 6), 10: (1, 6), 11: (2, 6), 12: (3, 6), 13: (4, 6)}
    grid.answers = {7: broken}
    for _ in range(2):
        roster.update()
    assert roster.hosts == {0: 2, 1: 3, 2: 4}
    assert roster.num_partitions == 3  # more SuperNodes say 6, too late
    assert grid.asked("query") == [[2, 3, 4], [7, 8, 9, 10, 11, 12, 13], [7]]
    del grid.there[-4:]
    grid.there.remove(7)
    roster.update()
    assert roster.missing(5) == (
        "no SuperNode is partition 5 of 3; SuperNode 9 is refused: its num-partitions is 6, and that of others is 3; "
        "SuperNode 8 is a spare: SuperNode 3 is partition 1 too"
    )
    grid.there.append(7)
    grid.there.remove(4)
    roster.update()
    assert roster.hosts == {0: 2, 1: 3}
    assert roster.missing(2) == "SuperNode 4 has disconnected"
    grid.answers, grid.said[7] = {}, (2, 3)  # the file is there now
    grid.there.remove(9)
    roster.update()
    assert roster.hosts == {0: 2, 1: 3, 2: 7}
    grid.there = [8, 7, 9]
    grid.said[9] = (0, 3)
    roster.update()
    assert roster.hosts == {0: 9, 1: 8, 2: 7}
    assert grid.asked("query")[-1] == [9]
    assert roster.missing(5) == "no SuperNode is partition 5 of 3"


def test_a_silent_supernode_is_waited_for_once_during_a_run() -> None:
    """Otherwise it would delay every round. When it has left and returned, it is asked again."""
    grid = Scripted(SITE, 2)
    roster = roster_of(grid, 2)
    roster.wait()
    grid.there.append(7)
    grid.answers = {7: lambda message: None}
    for _ in range(3):
        roster.update()
    assert grid.asked("query") == [[2, 3], [7]]
    assert roster.missing(2) == (
        "no SuperNode is partition 2 of 2; SuperNode 7 is refused: it did not answer within 60 s"
    )
    grid.there.remove(7)
    roster.update()
    grid.there.append(7)
    roster.update()
    assert grid.asked("query") == [[2, 3], [7], [7]]


def test_the_first_hello_of_a_supernode_counts() -> None:
    grid = Scripted(SITE, 2)
    grid.answers = {2: lambda m: [grid.honest(m), broken(m)], 3: lambda m: [other_data(m), grid.honest(m)]}
    roster = roster_of(grid, 2)
    roster.wait()
    assert roster.hosts == {0: 2}
    assert "SuperNode 3 is refused: it has other data" in roster.missing(1)


def test_a_supernode_that_is_refused_has_no_say_any_more() -> None:
    """Two and two do not agree with it when they come."""
    grid = Scripted(SITE, 5)
    grid.there = [2, 3, 4]
    grid.said = {2: (0, 4), 3: (1, 4), 4: (0, 3), 5: (1, 3), 6: (2, 3)}
    roster = roster_of(grid, 9)
    roster.update()
    grid.there += [5, 6]
    roster.update()
    assert roster.num_partitions == 4
    assert roster.hosts == {0: 2, 1: 3}


def test_a_supernode_that_cannot_start_ends_a_run_that_has_not_begun() -> None:
    grid = Scripted(SITE, 2)
    grid.answers = {3: broken}
    with pytest.raises(FedsimError, match=r"^SuperNode 3 cannot start: DataError: no file$"):
        roster_of(grid, 2, "raise").wait()
    grid.answers = {2: broken, 3: broken}
    with pytest.raises(
        FedsimError,
        match=r"^SuperNode 2 cannot start: DataError: no file; SuperNode 3 cannot start: DataError: no file$",
    ):
        roster_of(grid, 2).wait()
    silent = Scripted(SITE, 1)
    silent.answers = {2: lambda message: None}
    with pytest.raises(FedsimError, match=r"^no SuperNode has answered within 0 seconds$"):
        roster_of(silent, 1, wait=0.0).wait()
    stranger = Scripted(SITE, 2)
    stranger.answers = {3: lambda message: reply_to(message, None, Error(1, "no"), node_id=77)}
    roster = roster_of(stranger, 2, "raise", wait=0.0)
    roster.wait()
    assert roster.hosts == {0: 2}


@pytest.mark.parametrize("lacking", ["partition-id", "num-partitions"])
def test_a_supernode_needs_to_be_told_which_partition_it_is(lacking: str) -> None:
    config: dict[str, Any] = {"partition-id": 0, "num-partitions": 3}
    del config[lacking]
    internals.set_default_identity()
    message = Message(RecordDict(), 2, "query")
    with pytest.raises(FedsimError, match=r"^its node config lacks partition-id and num-partitions$"):
        hello(message, Context(0, 2, config, RecordDict(), {}), SITE)
    said = fingerprint(SITE.federated)
    assert read_hello(
        RecordDict({RESULT: ConfigRecord({"partition-id": 5, "num-partitions": 6, **said})}), said, 6
    ) == (Hello(5, 6))
    for partition, of, reason in (
        (6, 6, "it says partition-id=6 with num-partitions=6; allowed: 0 to 5"),
        (0, 7, "it says num-partitions=7; allowed: 1 to 6"),
    ):
        content = RecordDict({RESULT: ConfigRecord({"partition-id": partition, "num-partitions": of, **said})})
        with pytest.raises(ReplyError, match=f"^{reason}$"):
            read_hello(content, said, 6)


def asking(grid: Scripted, nodes: int, **options: Any) -> SuperNodeEngine:
    """An engine whose SuperNodes have said who they are."""
    settings: dict[str, Any] = {"nodes": nodes, "wait": 1.5, "workers": 1, "on_failure": "exclude"} | options
    engine = SuperNodeEngine(grid.runtime, grid=grid, **settings)
    with engine:
        pass
    return engine


def start(runtime: ClientRuntime) -> Any:
    return np.random.default_rng(0).normal(size=runtime.model.num_parameters).astype(np.float32) / 3


def reasons(parts: Any) -> dict[int, str]:
    return {client: str(error.reason) for part in parts for client, error in part.failed.items()}


@pytest.mark.parametrize("retries", [0, 2])
def test_supernodes_that_fail_are_asked_again_as_often_as_was_said(retries: int) -> None:
    """Only they, for their own clients; what the others have sent counts once."""
    grid = Scripted(SITE, 3)
    engine = asking(grid, 3, retries=retries, timeout=7.5)
    grid.answers = {3: broken}
    updates = list(engine.train(SITE.task(start(SITE), 4), np.arange(6)))
    assert grid.sent == [("query", [2, 3, 4], 1.5), ("train", [2, 3, 4], 7.5), *[("train", [3], 7.5)] * retries]
    assert np.concatenate([u.partition_ids for u in updates]).tolist() == [0, 2, 3, 5]
    assert reasons(updates) == dict.fromkeys((1, 4), "SuperNode 3 failed: DataError: no file")
    assert [dict(order)["clients"] for order in grid.orders] == [[0, 3], [2, 5]]
    assert {client: error.args[1] for u in updates for client, error in u.failed.items()} == {1: 4, 4: 4}
    rows = np.concatenate([u.partition_ids for u in updates])
    examples = np.concatenate([u.num_examples for u in updates])
    assert np.array_equal(examples, SITE.partition.sizes[rows])


@pytest.mark.parametrize(
    ("answers", "timeout", "reason"),
    [
        (lambda message: None, None, "SuperNode 3 did not answer"),
        (lambda message: None, 2.5, "SuperNode 3 did not answer within 2.5 s"),
        (lambda message: reply_to(message, None, Error(1, "")), 2.5, "SuperNode 3 failed: no reason given"),
        (
            lambda message: reply_to(message, None, Error(1, "Node unavailable"), node_id=1),
            2.5,
            "SuperNode 3 did not answer: Node unavailable",
        ),
        (lambda message: reply_to(message, RecordDict(), node_id=77), 2.5, "SuperNode 3 did not answer within 2.5 s"),
        (lambda message: reply_to(message, RecordDict(), group_id="3"), None, "SuperNode 3 answered another message"),
    ],
)
@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_why_a_supernode_gave_nothing_is_said(kind: str, answers: Any, timeout: float | None, reason: str) -> None:
    grid = Scripted(SITE, 3)
    engine = asking(grid, 3, timeout=timeout)
    grid.answers = {3: answers}
    assert reasons(getattr(engine, kind)(SITE.task(start(SITE), 4), np.arange(6))) == dict.fromkeys((1, 4), reason)


def test_an_error_after_an_answer_does_not_take_it_back() -> None:
    """Nor does an answer make good an error that came before it."""
    grid = Scripted(SITE, 3)
    engine = asking(grid, 3)
    grid.answers = {2: lambda message: [grid.honest(message), broken(message)],
                    3: lambda message: [broken(message), grid.honest(message)]}  # fmt: skip
    updates = list(engine.train(SITE.task(start(SITE), 4), np.arange(6)))
    assert np.concatenate([u.partition_ids for u in updates]).tolist() == [0, 2, 3, 5]
    assert reasons(updates).keys() == {1, 4}


def test_supernodes_are_looked_for_before_each_message() -> None:
    """One that has left gets none, and nobody is asked where all have left."""
    grid = Scripted(SITE, 2)
    engine = asking(grid, 2)
    task = SITE.task(start(SITE), 1)
    grid.there = [3]
    updates = list(engine.train(task, np.arange(6)))
    assert grid.asked("train") == [[3]]
    assert reasons(updates) == dict.fromkeys((0, 2, 4), "SuperNode 2 has disconnected")
    grid.there = []
    assert reasons(engine.evaluate(task, np.arange(6))) == {
        k: f"SuperNode {2 + k % 2} has disconnected" for k in range(6)
    }
    assert grid.asked("evaluate") == []
    grid.there, grid.said = [9], {9: (0, 2)}  # another machine with the same partition
    assert reasons(engine.evaluate(task, np.arange(6))) == dict.fromkeys((1, 3, 5), "SuperNode 3 has disconnected")
    assert grid.asked("evaluate") == [[9]]


def test_the_server_makes_blocks_and_threads_as_it_is_told() -> None:
    engine = asking(Scripted(SITE, 3), 3, block_size=4, workers=3)
    assert [len(u.partition_ids) for u in engine.train(SITE.task(start(SITE), 4), np.arange(6))] == [4, 2]
    assert engine.workers.count == 3


def test_more_supernodes_than_clients_may_wait_to_be_asked() -> None:
    grid = Scripted(SITE, 8)
    engine = asking(grid, 8)
    assert engine.roster.num_partitions == 8
    assert len(engine.roster.hosts) == 8
    [scores] = engine.evaluate(SITE.task(start(SITE), 1), np.arange(6))
    assert not scores.failed
    assert grid.asked("evaluate") == [[2, 3, 4, 5, 6, 7]]


def test_a_run_that_cannot_begin_gives_blas_its_threads_back() -> None:
    """So does one that has ended."""
    before = [(pool["internal_api"], pool["num_threads"]) for pool in threadpool_info()]
    silent = Scripted(SITE, 1)
    silent.answers = {2: lambda message: None}
    with threadpool_limits(3, "blas"):
        inside = [(pool["internal_api"], pool["num_threads"]) for pool in threadpool_info()]
        with pytest.raises(FedsimError, match="no SuperNode"):
            asking(silent, 1, wait=0.0)
        assert [(pool["internal_api"], pool["num_threads"]) for pool in threadpool_info()] == inside
        asking(Scripted(SITE, 1), 1)
        assert [(pool["internal_api"], pool["num_threads"]) for pool in threadpool_info()] == inside
    assert before != inside or 3 in dict(before).values()


class Unscored(SGD):
    """Two clients cannot be evaluated, and one cannot be trained."""

    def personalise(self, ctx: clients.Context) -> Any:
        if np.isin(ctx.partition_ids, (1, 2)).any():
            raise ValueError("no model of its own")
        return np.repeat(ctx.global_weights[None], len(ctx.partition_ids), axis=0)

    def train(self, ctx: clients.Context) -> Any:
        if 5 in ctx.partition_ids:
            raise ValueError("no training")
        return ctx.fit()


def test_a_supernode_says_which_of_its_clients_failed_and_sends_the_others() -> None:
    """After evaluation as after training."""
    site = runtime_of(replace(FEW, client=Unscored()))
    engine = asking(Scripted(site, 2), 2)
    task = site.task(start(site), 1)
    scores = list(engine.evaluate(task, np.arange(6)))
    found = reasons(scores)
    assert found.keys() == {1, 2}
    assert all(reason.startswith("ValueError: no model of its own (test_supernodes.py") for reason in found.values())
    assert np.concatenate([s.partition_ids for s in scores]).tolist() == [0, 3, 4, 5]
    assert np.concatenate([s.num_examples for s in scores]).tolist() == site.partition_test.sizes[[0, 3, 4, 5]].tolist()
    nobody = site.evaluate(task, np.array([2, 1]), lambda some: {})
    assert nobody.failed.keys() == {1, 2}
    assert [len(getattr(nobody, name)) for name in ("partition_ids", "num_examples", "loss", "accuracy")] == [0] * 4
    updates = list(engine.train(task, np.arange(6)))
    assert reasons(updates).keys() == {5}
    assert np.concatenate([u.partition_ids for u in updates]).tolist() == [0, 1, 2, 3, 4]


# One reply at a time.

GIVEN = np.array([4, 1, 2])


def reply_of(site: ClientRuntime, kind: str, changes: Mapping[str, Any], more: RecordDict | None = None) -> Any:
    """What the server makes of an honest reply for three clients with some rows changed."""
    task = site.task(start(site), 1)
    held = task.partition if kind == "train" else site.partition_test
    columns: dict[str, Any] = {"partition_ids": GIVEN, "num_examples": held.sizes[GIVEN]}
    if kind == "train":
        columns |= {"weights": np.tile(start(site), (3, 1)), "train_loss": np.ones(3)}
        layout = training_layout(site, task, GIVEN)
    else:
        columns |= {"loss": np.ones(3), "accuracy": np.full(3, 0.5)}
        layout = EVALUATION
    for name, rows in changes.items():
        columns[name] = columns[name].copy()
        for row, value in rows.items():
            columns[name][row] = value
    content = RecordDict({RESULT: records.record(columns)})
    content.update(more or {})
    return read_reply(kind, site, task, GIVEN, content, layout)


@pytest.mark.parametrize(
    ("kind", "changes", "failed"),
    [
        ("train", {}, {}),
        ("train", {"train_loss": {0: np.nan}, "weights": {0: np.nan, 2: np.nan}}, {2: "weights that are not finite"}),
        ("train", {"train_loss": {0: np.nan}, "weights": {0: 1e38, 1: 1e38}}, {1: "weights too large for float32"}),
        ("train", {"train_loss": {0: np.inf, 1: np.nan, 2: np.inf}, "weights": {1: np.nan}}, {}),
        ("train", {"num_examples": {1: 3}}, {1: "num_examples of 3; the client has {1}"}),
        ("evaluate", {}, {}),
        ("evaluate", {"loss": {0: 0.0}, "accuracy": {0: 1.0, 1: 0.0}}, {}),
        ("evaluate", {"accuracy": {1: -0.25}}, {1: "a loss of 1 and an accuracy of -0.25"}),
        ("evaluate", {"accuracy": {2: 1.5}, "loss": {1: -0.5}}, {1: "a loss of -0.5 and an accuracy of 0.5",
                                                                2: "a loss of 1 and an accuracy of 1.5"}),
        ("evaluate", {"accuracy": {0: -1e39}}, {0: "a loss or accuracy too large for float32"}),
        ("evaluate", {"loss": {0: 4e38}}, {0: "a loss or accuracy too large for float32"}),
        ("evaluate", {"loss": {0: 3e38}}, {}),
        ("evaluate", {"num_examples": {2: 1}}, {2: "num_examples of 1; the client has {2}"}),
    ],
)  # fmt: skip
def test_each_row_of_a_reply_counts_or_fails_by_itself(kind: str, changes: Any, failed: Any) -> None:
    """A client that says by its loss that it diverged is left to the round, which says so."""
    rows, wrong = reply_of(SITE, kind, changes)
    held = (SITE.partition if kind == "train" else SITE.partition_test).sizes[GIVEN]
    assert wrong == {int(GIVEN[row]): "its SuperNode sent " + said.format(*held) for row, said in failed.items()}
    assert rows.keys() == {int(client) for client in GIVEN} - wrong.keys()
    for client, row in rows.items():
        assert row["partition_ids"] == client
        assert row["num_examples"] == held[GIVEN.tolist().index(client)]


def test_r_squared_may_be_negative_as_far_as_the_dtype_goes() -> None:
    """A model that is worse than the mean of the targets is bad news, not a lie."""
    data = replace(SMALL, y_train=SMALL.x_train[:, 0], y_test=SMALL.x_test[:, 0], regression=True)
    site = runtime_of(replace(FEW, dataset=data, split=IID(6), loss="mse"))
    task = site.task(start(site) * 30, 1)
    [scores] = asking(Scripted(site, 2), 2).evaluate(task, np.arange(6))
    assert not scores.failed
    assert (scores.accuracy < 0).all()
    np.testing.assert_allclose(scores.accuracy, 1 - scores.loss / SMALL.x_test[:, 0].var())
    assert reply_of(site, "evaluate", {"accuracy": {0: -1e39, 1: 1.01, 2: -1e30}})[1] == {
        4: "its SuperNode sent a loss or accuracy too large for float32",
        1: "its SuperNode sent a loss of 1 and an accuracy of 1.01",
    }


def test_what_a_supernode_says_of_failures_is_read_as_text_and_of_its_own_clients() -> None:
    said: dict[str, Any] = {"1": "x" * 400 + "\nmore", "4": 3, "3": "not asked for", "2": " \n "}
    rows, failed = reply_of(SITE, "train", {}, RecordDict({FAILED: ConfigRecord(said)}))
    assert rows == {}  # it says that two have failed, and sends rows of all three
    assert failed.pop(1) == "x" * 300
    assert failed.pop(2) == "no reason given"
    assert failed.pop(4).startswith("its SuperNode sent partition_ids of shape (3,)")
    assert not failed
    assert first_line(None) == "no reason given"
    assert first_line("  a\x1b[2J\nb") == r"a\x1b[2J"


def test_what_was_not_asked_for_is_named_briefly() -> None:
    layout = {"partition_ids": ((), np.dtype(np.int64))}
    content = RecordDict(
        {RESULT: records.record({"partition_ids": np.arange(1), "z": np.ones(1), "y" * 50: np.ones(1)})}
    )
    with pytest.raises(ReplyError, match=f"^its SuperNode sent '{'y' * 40}', which was not asked for$"):
        read_columns(content, layout, np.arange(1))
    rows = {"weights": np.array([[np.nan], [1.0], [1.0]]), "up.control": np.array([[np.inf], [np.nan], [1.0]])}
    assert invalid_rows(rows, "float32") == {
        0: "its SuperNode sent weights that are not finite", 1: "its SuperNode sent up.control that are not finite"
    }  # fmt: skip


class Counting(SGD):
    """Notes whom it trains, and on how many examples; fails on some, by an error of fedsim's or of its own."""

    lost: tuple[int, ...] = ()
    seen: ClassVar[list[tuple[int, int]]] = []

    def train(self, ctx: clients.Context) -> Any:
        client = int(ctx.partition_ids[0])
        self.seen.append((client, int(ctx.num_examples[0])))
        if client in self.lost:
            raise FedsimError("no\nway") if client % 2 else ValueError("no such thing")
        return ctx.fit()


@pytest.mark.parametrize(
    ("lost", "tried", "reason"),
    [
        ((), [4], None),
        ((4, 1), [4, 1, 3], None),
        ((4, 1, 3), [4, 1, 3], "Counting fails on the server too: no"),
        ((3, 1, 4), [3, 1, 4], r"Counting fails on the server too: ValueError: no such thing \(test_supernodes.*"),
    ],
)
def test_the_server_learns_what_is_sent_from_three_clients_at_most(
    lost: tuple[int, ...], tried: list[int], reason: str | None
) -> None:
    """On ten of a client's examples, however many it has."""
    site = runtime_of(replace(FEW, client=Counting(lost=lost)))
    Counting.seen.clear()
    task = site.task(start(site), 1)
    order = np.array([*tried, *({0, 1, 2, 3, 4, 5} - set(tried))])
    if reason:
        with pytest.raises(ReplyError, match=f"^{reason}$"):
            training_layout(site, task, order)
    else:
        assert training_layout(site, task, order) == {
            "partition_ids": ((), np.dtype(np.intp)), "num_examples": ((), np.dtype(np.intp)),
            "weights": ((site.model.num_parameters,), np.dtype(np.float32)), "train_loss": ((), np.dtype(np.float64)),
        }  # fmt: skip
    assert Counting.seen == [(client, min(10, int(site.partition.sizes[client]))) for client in tried]
    assert site.partition.sizes.max() > 10
