"""A round trains its cohort once; a rejected round changes nothing; a failure concerns one client."""

from __future__ import annotations

import errno
import gc
import re
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import flwr.serverapp.strategy as stock
import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from helpers import same

from fedsim import Experiment, clients, servers
from fedsim.clients import Array, Context
from fedsim.clients.task import Update
from fedsim.data import Dataset
from fedsim.engines.threads import ThreadEngine
from fedsim.errors import ClientError, ConfigError, DivergenceError, FedsimError
from fedsim.files import write_whole
from fedsim.flower import records
from fedsim.flower.messages import Instructions
from fedsim.models.mlp import MLP
from fedsim.rounds.grid import RoundGrid, make_grid
from fedsim.rounds.statistics import RoundStatistics, drift
from fedsim.rounds.validity import ValidityChecks
from fedsim.splits import IID, Dirichlet, FederatedDataset, LogNormal, Natural, Partition
from fedsim.streams import Purpose
from fedsim.study import runner
from fedsim.study.callbacks import Callback, FinishedRound
from fedsim.updates import UpdateTransform
from fedsim.updates.aggregation import Aggregation
from fedsim.updates.aggregators import Mean

BASE = Experiment(split=Dirichlet(12, alpha=0.5), hidden=(8,), rounds=4, fraction_train=0.5, fraction_evaluate=0.5)


class Looking(servers.FedAvg):
    """Reads its replies twice before it aggregates them."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        first = [reply.content.metric_records["metrics"]["num-examples"] for reply in replies]
        again = [reply.content.metric_records["metrics"]["num-examples"] for reply in replies]
        assert first == again
        assert len(first) == 6
        return super().aggregate_train(server_round, replies)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> Any:
        assert len(list(replies)) == 6
        found = super().aggregate_evaluate(server_round, replies)
        from_messages = super().aggregate_evaluate(server_round, list(replies))
        assert found is not None
        assert from_messages is not None
        assert dict(found) == pytest.approx(dict(from_messages), rel=1e-12)
        return found


class Sorting(servers.FedAvg):
    """Hands on a list of its own, as a strategy that leaves some replies out does."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        return super().aggregate_train(server_round, list(replies)[::-1])


@pytest.mark.parametrize("client", [clients.SGD(), clients.SCAFFOLD(), clients.IFCA()])
@pytest.mark.parametrize("server", [Looking, Sorting])
def test_a_strategy_may_look_at_its_replies(server: Any, client: clients.SGD) -> None:
    """The bits, the counts of clients and bytes, and clients' state are those of a strategy that does not look."""
    experiment = replace(BASE, client=client)
    assert same(replace(experiment, server=server).run(), experiment.run())


class Sometimes(clients.SCAFFOLD):
    """Fails on most clients in round 2."""

    def train(self, ctx: Context) -> Array:
        weights = super().train(ctx)
        if ctx.round == 2:
            weights[ctx.partition_ids > 1] = np.nan
        return weights


def test_a_rejected_round_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither the model, the server's state nor any client's: the next round starts where the rejected one did."""
    seen: dict[int, Array] = {}

    class Watching(Sometimes):
        def train(self, ctx: Context) -> Array:
            for client, control in zip(ctx.partition_ids, ctx.state["control"], strict=True):
                seen[100 * ctx.round + int(client)] = control.copy()
            seen[100 * ctx.round + 99] = np.array(ctx.down["control"])
            return super().train(ctx)

    experiment = replace(BASE, split=IID(6), client=Watching(), fraction_train=1.0, on_failure="exclude", min_clients=3)
    result = experiment.run(block_size=2)
    row = result.history.iloc[2]
    assert row["clients"] == 0
    assert row["failures"] == 4
    assert row["test_loss"] == result.history["test_loss"][1]
    assert np.isnan(row["train_loss"])
    assert row["bytes_up"] > 0
    for client in (*range(6), 99):
        np.testing.assert_array_equal(seen[300 + client], seen[200 + client])
        assert seen[300 + client].any()
    assert (
        "round 2 of Watching (seed 0) had 2 updates, fewer than min_clients = 3: the model is unchanged"
        in capsys.readouterr().err
    )


def test_a_round_that_is_too_small_for_its_server_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """Krum with one attacker needs five clients; in round 2 it has two."""
    krum = partial(servers.Krum, num_malicious_nodes=1)
    settings: dict[str, Any] = {"fraction_train": 1.0, "on_failure": "exclude", "server": krum}
    history = replace(BASE, split=IID(6), client=Sometimes(), **settings).run().history
    assert history["clients"].tolist() == [0, 6, 0, 6, 6]
    assert history["test_loss"][2] == history["test_loss"][1]
    assert (
        "round 2 of Sometimes (seed 0) had 2 updates, fewer than min_clients = 5: the model is unchanged"
        in capsys.readouterr().err
    )


def test_more_clients_than_a_round_has_are_refused() -> None:
    """12 clients, half of them sampled: 7 updates can never come."""
    with pytest.raises(ConfigError, match=r"min_clients is 7; allowed: 1 to 6, the clients sampled in a round"):
        replace(BASE, min_clients=7).run()
    assert replace(BASE, min_clients=6, rounds=1).run().history["clients"][1] == 6


class Fragile(clients.SCAFFOLD):
    """Raises on two clients."""

    def train(self, ctx: Context) -> Array:
        if np.isin(ctx.partition_ids, (3, 7)).any():
            raise ValueError("no such thing\nas this")
        return super().train(ctx)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("block", [1, 5, 12])
def test_a_client_that_raises_is_left_out(workers: int, block: int) -> None:
    """By name, with the reason and the line; the others have the bits they have without it."""
    experiment = replace(BASE, client=Fragile(), fraction_train=1.0, on_failure="exclude", fraction_evaluate=0.0)
    result = experiment.run(workers=workers, block_size=block)
    assert (result.history["clients"][1:] == 10).all()
    assert result.failures["partition_id"].tolist() == [3, 7] * 4
    reason = result.failures["reason"][0]
    assert reason.startswith("ValueError: no such thing as this (test_round.py, line ")
    assert reason.endswith(")")
    assert same(result, experiment.run())


def test_a_client_that_raises_ends_a_run_in_one_sentence() -> None:
    with pytest.raises(
        FedsimError,
        match=r"^client \d+ failed in round 1: ValueError: no such thing as this \(test_round.py, line \d+\)$",
    ):
        replace(BASE, client=Fragile(), fraction_train=1.0).run()


class Huge(clients.SGD):
    """Client 2 sends finite nonsense."""

    value: float = 1e38

    def train(self, ctx: Context) -> Array:
        weights = ctx.fit()
        weights[ctx.partition_ids == 2] = self.value
        return weights


@pytest.mark.parametrize("kernel", ["numpy", "compiled"])
@pytest.mark.parametrize(("dtype", "value"), [("float32", 1e38), ("float32", 3e37), ("float64", 1e308)])
def test_an_update_too_large_to_measure_is_left_out(kernel: str, dtype: str, value: float) -> None:
    """Its length is no number of the model's dtype; it would take the mean with it."""
    experiment = replace(BASE, client=Huge(value=value), kernel=kernel, dtype=dtype, fraction_train=1.0)
    with pytest.raises(DivergenceError, match=r"round 1 at client 2 \(norm of the update"):
        experiment.run()
    result = replace(experiment, on_failure="exclude").run()
    assert set(result.failures["partition_id"]) == {2}
    assert np.isfinite(result.history["test_loss"]).all()


def test_a_diverged_global_model_names_the_largest_update() -> None:
    server = partial(servers.FedAvgM, server_learning_rate=1e25)
    experiment = replace(BASE, client=Huge(value=1e17), fraction_train=1.0, on_failure="exclude", server=server)
    length = 1e17 * np.sqrt(experiment.make_model(experiment.load_data()).num_parameters)
    said = rf"in round 1: .* test loss is (nan|inf) with Huge.* client 2's, of length {re.escape(f'{length:.3g}')};"
    with pytest.raises(DivergenceError, match=said):
        experiment.run()


def test_a_run_that_diverges_under_a_server_of_flowers_gives_no_warnings_of_numpys() -> None:
    server = partial(stock.FedAvgM, server_learning_rate=1e60, server_momentum=0.9)
    with pytest.raises(DivergenceError, match="the global model's test loss is"):
        replace(BASE, server=server, rounds=3).run()


def test_an_untrained_model_without_a_loss_is_reported_as_such() -> None:
    """Nobody has sent an update then."""
    data = held().dataset
    far = replace(data, x_train=data.x_train[:8], y_train=data.y_train[:8], x_test=np.full((8, 3), 3e38))
    with pytest.raises(DivergenceError, match=r"in round 0: .* test loss is nan with SGD; ") as caught:
        replace(BASE, dataset=far, split=IID(2)).run()
    assert "update" not in str(caught.value)


@pytest.mark.parametrize("server", [servers.FedAvg, stock.FedAvg])
def test_a_client_without_test_examples_does_not_evaluate(server: Any) -> None:
    """One of five sites has a single example, which it trains on."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((81, 3))
    y = (x[:, 0] > 0).astype(int)
    site = np.append(np.arange(80) % 4, 4)
    dataset = Dataset("sites", x, y, x, y, groups={"site": site})
    settings: dict[str, Any] = {"split": Natural("site"), "server": server, "test_fraction": 0.3}
    result = replace(BASE, dataset=dataset, fraction_train=1.0, fraction_evaluate=1.0, **settings).run()
    assert (result.history["clients"][1:] == 5).all()
    assert set(result.clients["partition_id"]) == {0, 1, 2, 3}
    assert not len(result.failures)


class Unevaluated(clients.SGD):
    """Fails wherever it is evaluated."""

    def personalise(self, ctx: Context) -> Array:
        raise ValueError("no model of its own")


def test_a_round_in_which_every_client_fails_to_evaluate_has_no_score() -> None:
    """Every engine hands over an empty evaluation for a block whose clients have all failed."""
    result = replace(BASE, client=Unevaluated(), rounds=2, on_failure="exclude").run()
    assert result.history["failures"].tolist() == [0, 6, 6]
    assert result.history["local_accuracy"].isna().all()
    assert np.array_equal(result.weights["W1"], replace(BASE, rounds=2).run().weights["W1"])
    assert result.clients.empty


class UnprintableError(Exception):
    """Cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("never")


class Hostile(clients.SGD):
    """Raises at client 3 what no terminal and no file takes."""

    what: str = ""

    def train(self, ctx: Context) -> Array:
        if 3 in ctx.partition_ids:
            raise ValueError(self.what) if self.what else UnprintableError
        return super().train(ctx)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("\x1b[2Jred\x07\0", r"ValueError: \x1b[2Jred\x07\x00"),
        ("two\nlines \udcff \u202eé", r"ValueError: two lines \udcff \u202eé"),
        ("", "UnprintableError: no message"),
    ],
)
def test_what_an_exception_says_is_made_printable(what: str, said: str, tmp_path: Path) -> None:
    """It reaches the terminal, and the results in UTF-8."""
    experiment = replace(BASE, fraction_train=1.0, rounds=1, client=Hostile(what=what), on_failure="exclude")
    result = experiment.run(directory=tmp_path)
    assert result.failures["partition_id"].tolist() == [3]
    assert result.failures["reason"][0].startswith(said)
    assert said in (tmp_path / "failures.csv").read_text(encoding="utf-8")
    with pytest.raises(FedsimError) as error:
        replace(experiment, on_failure="raise").run()
    assert said in str(error.value)


class Repeating(servers.FedAvg):
    """Sends each message twice, or each client two models."""

    copies: bool = True

    def configure_train(self, *args: Any) -> Any:
        more = () if self.copies else super().configure_train(*args)
        messages = list(super().configure_train(*args))
        return messages + (messages if self.copies else list(more))


@pytest.mark.parametrize("client", [clients.SGD(), clients.SCAFFOLD()])
@pytest.mark.parametrize("copies", [True, False])
def test_a_client_takes_part_once_in_a_round(client: clients.SGD, copies: bool) -> None:
    """Its second update would be counted like another client's, and would begin from a state that is not stored yet."""
    server = type("Repeating", (Repeating,), {"copies": copies})
    with pytest.raises(ConfigError, match=r"asks client \d+ 2 times in a round to train; allowed: once"):
        replace(BASE, client=client, server=server).run()


def test_an_error_of_a_full_disk_names_the_file(tmp_path: Path) -> None:
    """The system does not name it where a write fails."""

    def write(stream: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*history.csv'"):
        write_whole(tmp_path / "history.csv", write)
    assert not list(tmp_path.iterdir())


class Clocked(clients.SGD):
    """Takes three seconds of `CLOCK`."""

    def train(self, ctx: Context) -> Array:
        CLOCK.now += 3.0
        return super().train(ctx)


CLOCK = SimpleNamespace(now=0.0)


class Noting(Callback):
    """Takes a minute of `CLOCK` wherever it is called, and notes what it sees."""

    def __init__(self) -> None:
        self.frozen: list[int] = []

    def run_started(self, *_: Any) -> None:
        CLOCK.now += 60.0

    def round_finished(self, finished: FinishedRound) -> None:
        CLOCK.now += 60.0
        assert {type(value) for value in finished.metrics.values()} == {int, float}
        self.frozen.append(gc.get_freeze_count())


def test_the_seconds_of_a_round_are_those_of_its_training_not_of_callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "time", SimpleNamespace(perf_counter=lambda: CLOCK.now))
    experiment = replace(BASE, split=IID(1), client=Clocked(), rounds=2, fraction_train=1.0, kernel="numpy")
    result = experiment.run(workers=1, callbacks=[Noting()])
    assert result.history["seconds"].tolist() == [0.0, 3.0, 3.0]


class Streaming(servers.FedAvg):
    """Notes whether its rounds add up updates as they come."""

    seen: ClassVar[list[bool]] = []

    def configure_train(self, *args: Any) -> Any:
        made: Any = super().configure_train(*args)
        self.seen.append(made.aggregation is not None)
        return made


def test_a_run_has_the_engine_that_was_asked_for_and_keeps_no_replies() -> None:
    """Its memory does not grow with the cohort, and the collector spares what the run has imported."""
    asked: list[dict[str, Any]] = []

    def engine(*arguments: Any, **options: Any) -> ThreadEngine:
        asked.append(options)
        return ThreadEngine(*arguments, **options)

    noting = Noting()
    result = replace(BASE, rounds=1, server=Streaming).run(workers=2, block_size=3, engine=engine, callbacks=[noting])
    assert asked == [{"workers": 2, "block_size": 3}]
    assert Streaming.seen == [True]
    assert all(noting.frozen)
    assert gc.get_freeze_count() == 0
    assert list(result.failures.columns) == ["round", "partition_id", "reason"]
    assert len(result.failures) == 0


# The parts of a round, without a run.

NET = MLP((3, 4, 2), dtype="float64")
#: Clients 0 to 5; client 3 holds nothing.
SIZES = np.array([4, 9, 9, 0, 20, 2])


def held(sizes: Any = SIZES) -> FederatedDataset:
    rng = np.random.default_rng(0)
    count = int(np.sum(sizes))
    data = Dataset("d", rng.normal(size=(count, 3)), np.arange(count) % 2, rng.normal(size=(8, 3)), np.arange(8) % 2)
    return FederatedDataset(data, Partition(np.arange(count), np.concatenate([[0], np.cumsum(sizes)])))


def grid_of(client: clients.SGD | None = None, **options: Any) -> RoundGrid:
    return make_grid(NET, held(), client or clients.SGD(), on_failure="exclude", **options)


def content_of(scale: float = 0.0, config: ConfigRecord | None = None) -> RecordDict:
    weights = np.random.default_rng(1).normal(size=NET.num_parameters) * scale
    return RecordDict({"arrays": records.to_record(NET, weights), **({"config": config} if config else {})})


class Picky(clients.SGD):
    """Raises on client 1."""

    def train(self, ctx: Context) -> Array:
        if 1 in ctx.partition_ids:
            raise ValueError("not this one")
        return super().train(ctx)

    def personalise(self, ctx: Context) -> Array:
        if 4 in ctx.partition_ids:
            raise ValueError("nor this one")
        return np.repeat(ctx.global_weights[None], len(ctx.partition_ids), axis=0)


@pytest.mark.parametrize("pushed", [False, True])
@pytest.mark.parametrize("kind", ["train", "train.more", "evaluate"])
def test_each_reply_answers_the_message_to_its_client(kind: str, pushed: bool) -> None:
    """In cohort order, with the message's group and type; an error says why its client sent nothing."""
    content = content_of(1.0)
    with grid_of(Picky()) as grid:
        sent = [Message(content, node, kind, group_id=f"g{node}") for node in (7, 2, 5, 3, 6, 4)]
        replies: Any = grid.pull_messages(grid.push_messages(sent)) if pushed else grid.send_and_receive(sent)
        replies = list(replies)
        failed = grid.take_statistics().failed
    asked = {message.metadata.message_id: message.metadata.dst_node_id for message in sent}
    assert len(asked) == 6
    assert [m.metadata.src_node_id - 2 for m in replies] == [4, 1, 2, 0, 5, 3]
    for reply in replies:
        assert asked[reply.metadata.reply_to_message_id] == reply.metadata.src_node_id
        assert reply.metadata.message_type == kind
        assert reply.metadata.group_id == f"g{reply.metadata.src_node_id}"
    errors = {m.metadata.src_node_id - 2: m.error.reason for m in replies if m.has_error()}
    lost, word = (1, "train") if kind.startswith("train") else (4, "evaluate")
    assert errors.keys() == {3, lost}
    assert errors[3] == f"client 3 has no examples to {word} on"
    assert errors[lost].startswith("ValueError: no")
    assert failed == (errors if word == "train" else {4: errors[4]})  # to have nothing to evaluate on is no failure
    metrics: dict[int, Any] = {
        m.metadata.src_node_id - 2: m.content.metric_records["metrics"] for m in replies if m.has_content()
    }
    assert {client: row["num-examples"] for client, row in metrics.items()} == {
        client: size for client, size in enumerate(SIZES) if size and client != lost
    }
    expected = {"num-examples", "train_loss"} if word == "train" else {"num-examples", "eval_loss", "eval_accuracy"}
    assert all(set(row) == expected for row in metrics.values())


def test_a_strategy_without_messages_gets_replies_of_its_own() -> None:
    with grid_of() as grid:
        outcome = grid.send_and_receive(Instructions(content_of(), [2, 6, 3], "train"))
        ids = [(m.metadata.reply_to_message_id, m.metadata.message_type, m.metadata.group_id) for m in outcome]
        assert ids == [(f"train-1-{client}", "train", "") for client in (4, 1, 0)]
        assert [m.metadata.src_node_id for m in outcome[1:]] == [3, 2]
        added_up = Instructions(content_of(), [2, 6], "train", Aggregation(Mean()), 2)
        sums = grid.send_and_receive(added_up)
        assert [update.weights.size for update in sums.updates] == [0] * len(sums.updates)
        assert (sums.clients, sums.accepted, len(sums)) == (2, True, 2)
        assert len(grid.send_and_receive(Instructions(content_of(), [], "train"))) == 0
        with pytest.raises(ValueError, match=r"nodes are 2\.\.7$"):
            grid.send_and_receive(Instructions(content_of(), [8], "train"))
        with pytest.raises(ValueError, match="unknown node"):
            grid.send_and_receive(Instructions(content_of(), [1], "train"))
        assert list(grid.get_node_ids()) == [2, 3, 4, 5, 6, 7]


def test_a_round_without_a_number_is_the_next_one() -> None:
    """Of training; an evaluation belongs to the training before it, and draws other numbers."""
    with grid_of() as grid:
        purposes = [grid.send_and_receive([Message(content_of(), 2, kind)]).cohorts[0].task.purpose
                    for kind in ("evaluate", "train")]  # fmt: skip
        assert purposes == [Purpose.SHUFFLE_PERSONAL, Purpose.SHUFFLE]
    with grid_of() as grid:
        numbers = [
            grid.send_and_receive([Message(content_of(config=config), 2, kind)]).cohorts[0].task.round
            for kind, config in (
                ("train", None), ("evaluate", None), ("train", ConfigRecord({"lr": 0.5})),
                ("train", ConfigRecord({"server-round": 9})), ("evaluate", ConfigRecord({"server-round": 7})),
                ("train", None),
            )
        ]  # fmt: skip
    assert numbers == [1, 1, 2, 9, 7, 4]


def test_a_client_may_train_and_evaluate_at_once_but_each_once() -> None:
    one, other = content_of(1.0), content_of(0.5)
    with grid_of() as grid:
        both = grid.send_and_receive([Message(one, 2, "train"), Message(one, 2, "evaluate")])
        assert [m.metadata.message_type for m in both] == ["train", "evaluate"]
        copies = [Message(other, 4, "evaluate"), *(Message(one, node, "train") for node in (2, 6, 3))]
        copies += [Message(other, node, "train") for node in (6, 4)]
        with pytest.raises(ConfigError, match=r"asks client 4 2 times in a round to train; allowed: once$"):
            grid.send_and_receive(copies)
        thrice = [Message(one, node, "evaluate") for node in (3, 7, 7, 7)]
        with pytest.raises(ConfigError, match=r"asks client 5 3 times in a round to evaluate; allowed: once$"):
            grid.send_and_receive(thrice)


def test_the_length_of_the_mean_update_is_of_one_model() -> None:
    """Where clients start from different models there is no such update."""
    one, other = content_of(1.0), content_of(0.5)
    start = records.to_flat(NET, one.array_records["arrays"])
    with grid_of() as grid:
        outcome = grid.send_and_receive([Message(one, node, "train") for node in (2, 3, 4)])
        taken = grid.take_statistics()
        mean = np.average(
            np.concatenate([u.weights for u in outcome.updates]), axis=0, weights=SIZES[[1, 2, 0]]
        )  # fmt: skip
        assert taken.mean_update_norm == pytest.approx(np.linalg.norm(mean - start))
        each = 2 * 128 + 2 * 128 + 8 * NET.num_parameters  # four arrays with NumPy's header
        assert (taken.clients, taken.bytes_down, taken.bytes_up) == (3, 3 * each, 3 * each)
        grid.send_and_receive([Message(one, 2, "train"), Message(other, 3, "train")])
        taken = grid.take_statistics()
        assert (taken.clients, taken.bytes_down) == (2, 2 * each)
        assert np.isnan(taken.mean_update_norm)
        grid.send_and_receive(Instructions(one, [2, 3, 5], "train", None, 3))  # client 3 has nothing
        taken = grid.take_statistics()
        assert taken.rejected == (2, 3)
        assert (taken.clients, taken.bytes_down, taken.bytes_up) == (0, 3 * each, 2 * each)
        assert grid.take_statistics().rejected is None


def update_of(losses: Any, norms: Any) -> Update:
    ids = np.arange(len(losses)) + 3
    return Update(ids, 10 * ids, np.zeros((len(ids), 1)), np.array(losses), update_norm=np.array(norms))


@pytest.mark.parametrize(("untrained", "most"), [(2.5, 25.0), (0.1, 10.0), (1.0, 10.0)])
def test_a_client_diverges_beyond_ten_times_the_untrained_loss(untrained: float, most: float) -> None:
    """And beyond 10 in any case; its loss may be as large, and as far below zero."""
    task: Any = grid_of().runtime.task(np.zeros(NET.num_parameters), 4)
    checks, failed = ValidityChecks("float32", "exclude"), dict[int, str]()
    longest = float(np.finfo(np.float32).max)
    above = np.nextafter(most, np.inf)
    update = update_of([most, above, -most, -above, np.nan, 1.0, 1.0], [1.0, 1, 1, 1, 1, longest, 2 * longest])
    assert checks.keep_valid(task, update, failed).partition_ids.tolist() == [3, 4, 5, 6, 8]  # no limit has been set
    checks.limit_loss(untrained)
    failed.clear()
    assert checks.keep_valid(task, update, failed).partition_ids.tolist() == [3, 5, 8]
    told = {client: reason.partition(" (")[2].partition(") with")[0] for client, reason in failed.items()}
    assert told == {
        4: f"training loss {most:.3g}", 6: f"training loss {-most:.3g}", 7: "weights or loss not finite",
        9: "norm of the update 6.81e+38",
    }  # fmt: skip
    assert failed[4].startswith("training diverged in round 4 at client 4 (")
    assert failed[4].endswith("with SGD; a smaller lr usually helps")
    raising = ValidityChecks("float32")
    raising.limit_loss(untrained)
    with pytest.raises(DivergenceError, match="in round 4 at client 4"):
        raising.keep_valid(task, update, {})
    lost = replace(update_of([1.0], [1.0]), failed={8: ClientError(8, 4, "its disk is full")})
    assert checks.keep_valid(task, lost, failed).partition_ids.tolist() == [3]
    assert failed[8] == "its disk is full"
    with pytest.raises(ConfigError, match="on_failure is 'ignore'; allowed: raise, exclude"):
        ValidityChecks("float32", "ignore")


def test_statistics_are_over_examples_and_name_the_longest_update() -> None:
    """Of all blocks."""
    statistics = RoundStatistics()
    assert np.isnan(statistics.train_loss)
    assert np.isnan(statistics.drift()).all()
    statistics.updates.append(update_of([1.0, 2.0], [0.5, 7.25]))
    statistics.updates.append(update_of([4.0], [3.0]))
    assert statistics.clients == 3
    assert statistics.train_loss == pytest.approx((30 * 1 + 40 * 2 + 30 * 4) / 100)
    assert statistics.largest_update == (4, 7.25)
    assert statistics.drift().client_drift == pytest.approx((0.5 + 7.25 + 3) / 3)


def test_drift_stays_within_its_limits() -> None:
    assert np.isnan(drift(np.zeros(0), np.zeros(0, int), float("nan"))).all()
    same_way = drift(np.array([2.0, 2.0]), np.array([5, 5]), 2.0 + 1e-9)
    assert same_way.update_cosine == 1.0  # rounding does not take it beyond
    assert drift(np.array([3.0, 1.0]), np.array([5, 5]), 0.0).update_cosine == -1.0
    still = drift(np.array([2.0, 0.0]), np.array([5, 5]), 1.0)  # one update of two: no angle
    assert still[:2] == (1.0, 1.0)
    assert np.isnan(still.update_cosine)
    assert np.isnan(drift(np.zeros(2), np.array([5, 5]), 0.0)[1:]).all()


def test_clients_train_on_the_window_of_the_round_they_are_asked_for() -> None:
    """Also when a round is asked for that is over."""
    federated = replace(held(np.array([4, 8])), windows=2, rounds_per_window=2)
    runtime = make_grid(NET, federated, clients.SGD()).runtime
    weights = np.zeros(NET.num_parameters)
    found = {number: runtime.task(weights, number).partition[1].tolist() for number in (3, 1, 4, 2, 9)}
    assert found == {1: [4, 5, 6, 7], 2: [4, 5, 6, 7], 3: [8, 9, 10, 11], 4: [8, 9, 10, 11], 9: [8, 9, 10, 11]}


class Lost(clients.SGD):
    """Client 2's update is too long."""

    def train(self, ctx: Context) -> Array:
        weights = super().train(ctx)
        weights[ctx.partition_ids == 2] = 1e308
        return weights


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_cohort_without_an_example_runs_nobody(kind: str) -> None:
    with grid_of() as grid:
        [reply] = grid.send_and_receive([Message(content_of(), 5, kind)])
        taken = grid.take_statistics()
    assert reply.error.reason == f"client 3 has no examples to {kind} on"
    assert (taken.clients, taken.bytes_up, taken.evaluations) == (0, 0, [])


def test_evaluations_gather_until_they_are_taken() -> None:
    with grid_of() as grid:
        for node in (2, 3):
            grid.send_and_receive([Message(content_of(), node, "evaluate")])
        found = grid.take_statistics().evaluations
        assert [part.partition_ids.tolist() for part in found] == [[0], [1]]
        assert grid.take_statistics().evaluations == []


def test_a_client_that_is_left_out_has_sent_nothing() -> None:
    """Its block has been sent by the others."""
    content = content_of()
    with grid_of(Lost(), block_size=3) as grid:
        grid.send_and_receive([Message(content, node, "train") for node in (2, 3, 4)])
        taken = grid.take_statistics()
    assert taken.failed.keys() == {2}
    assert taken.bytes_up * 3 == taken.bytes_down * 2 > 0


def test_what_travels_besides_the_model_is_counted() -> None:
    """SCAFFOLD's control variate down and its change up: an array as long as the model, with NumPy's header."""
    once = replace(BASE, rounds=1, fraction_evaluate=0.0)
    plain, both = (replace(once, client=c).run().history.iloc[1] for c in (clients.SGD(), clients.SCAFFOLD()))
    more = 6 * (128 + 4 * once.make_model(once.load_data()).num_parameters)
    assert both["bytes_down"] - plain["bytes_down"] == more
    assert both["bytes_up"] - plain["bytes_up"] == more


# Mistakes in transforms, aggregators and server strategies of the user's own.


class OneValue(UpdateTransform):
    def on_client(self, values: Any, ctx: Any) -> Any:
        return values


class FewerRows(UpdateTransform):
    def on_client(self, values: Any, ctx: Any) -> Any:
        return values[:0], {}


class LongSide(UpdateTransform):
    def on_client(self, values: Any, ctx: Any) -> Any:
        return values, {"scale": np.ones(len(values) + 1)}


class Short(UpdateTransform):
    def on_server(self, values: Any, side: Any, ctx: Any) -> Any:
        return values[:, 1:]


class AClass(servers.FedAvg):
    def aggregator(self) -> Any:
        return Mean


class ShortStep(servers.FedAvg):
    def step(self, server_round: int, weights: Any, combined: Any) -> Any:
        return combined[1:]


class NoStrategy:
    pass


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"transforms": (OneValue(),)}, r"OneValue's on_client\(\) returned .*; allowed: a tuple of values"),
        ({"transforms": (FewerRows(),)}, r"FewerRows's on_client\(\) returned values of shape \(0, "),
        ({"transforms": (LongSide(),)}, r"LongSide's on_client\(\) returned scale of shape \(2,\)"),
        ({"transforms": (Short(),)}, r"Short's on_server\(\) returned values of shape \(1, \d+\); allowed: \(1, "),
        ({"server": AClass}, r"AClass's aggregator\(\) returned <class .*; allowed: an Aggregator object"),
        ({"server": ShortStep}, r"ShortStep made new weights of shape \(\d+,\); allowed: \(\d+,\)"),
        ({"server": NoStrategy}, "server is <class .*NoStrategy'>; allowed: a server strategy"),
        ({"server": lambda: 3}, "server <lambda> returned 3; allowed: a Flower Strategy"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_mistake_outside_client_strategies_is_one_sentence_too(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Experiment(split=IID(4), rounds=1, on_failure="exclude", **changes).run()


def test_statistics_are_of_the_mean_by_examples_whatever_the_aggregator() -> None:
    """The clients' updates of the first round are the same, and so is their diversity."""
    base = Experiment(split=Dirichlet(8, alpha=0.2, sizes=LogNormal(1.0)), rounds=1)
    columns = ["client_drift", "gradient_diversity", "update_cosine"]
    expected = base.run().history[columns].iloc[1]
    for server in (servers.FedMedian, servers.FedExP, Uniform):
        assert replace(base, server=server).run().history[columns].iloc[1].tolist() == pytest.approx(expected.tolist())


class UniformMean(Mean):
    def add(self, update: Any, weights: Any) -> None:
        super().add(update, np.ones(len(weights)))


class Uniform(servers.FedAvg):
    def aggregator(self) -> Any:
        return UniformMean()
