"""A round trains its cohort once; a rejected round changes nothing; a failure concerns one client."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import flwr.serverapp.strategy as stock
import numpy as np
import pytest
from flwr.app import Message
from helpers import same

from fedsim import Experiment, clients, servers
from fedsim.clients import Array, Context
from fedsim.data import Dataset
from fedsim.errors import ConfigError, DivergenceError, FedsimError
from fedsim.files import write_whole
from fedsim.splits import IID, Dirichlet, Natural

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
        "round 2 of Watching (seed 0) had 2 updates, fewer than min_clients = 3: the model stays as it was"
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
        "round 2 of Sometimes (seed 0) had 2 updates, fewer than min_clients = 5: the model stays"
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
    with pytest.raises(DivergenceError, match=r"round 1 at client 2 \(its update is too large"):
        experiment.run()
    result = replace(experiment, on_failure="exclude").run()
    assert set(result.failures["partition_id"]) == {2}
    assert np.isfinite(result.history["test_loss"]).all()


def test_a_diverged_global_model_names_the_largest_update() -> None:
    server = partial(servers.FedAvgM, server_learning_rate=1e25)
    with pytest.raises(DivergenceError, match=r"global model's test loss is \w+.*the largest update was client 2's"):
        replace(BASE, client=Huge(value=1e17), fraction_train=1.0, on_failure="exclude", server=server).run()


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
