"""Secure aggregation: exact sums, what the server sees, recovery from dropouts, and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from flwr.serverapp import strategy as stock
from helpers import same
from numpy.typing import NDArray
from scipy import stats

from fedsim import Experiment, clients, servers
from fedsim.apps import app
from fedsim.apps.in_process import AppGrid
from fedsim.clients.task import Task, Update
from fedsim.engines.runtime import ClientRuntime
from fedsim.engines.supernodes.engine import SuperNodeEngine
from fedsim.engines.threads import ThreadEngine
from fedsim.errors import ClientError, ConfigError, DivergenceError, FedsimError
from fedsim.flower import strategies
from fedsim.privacy import CentralDP, Clip, ExampleDP, LocalDP
from fedsim.secure import SecureAggregation, crypto, shamir
from fedsim.secure.clients import CHANGE, LOSS, SecureClients, mask_key
from fedsim.secure.quantise import dequantise, dequantise_loss, quantise, quantise_loss, scale_of
from fedsim.secure.server import SecureSum
from fedsim.splits import IID, Dirichlet
from fedsim.streams import Purpose, generator
from fedsim.study import config
from fedsim.study.build import build_runtime
from fedsim.study.callbacks import Callback, FinishedRound
from fedsim.toml import read_toml
from fedsim.updates import TopK

Array = NDArray[Any]
SECURE = SecureAggregation()
BASE = Experiment(split=Dirichlet(10, alpha=0.5), hidden=(8,), rounds=2, kernel="numpy")


def secured(settings: SecureAggregation = SECURE, **changes: Any) -> Experiment:
    return replace(BASE, secure_aggregation=settings, **changes)


def largest_difference(one: Mapping[str, Array], other: Mapping[str, Array]) -> float:
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


# Secret sharing.


@pytest.mark.parametrize(("shares", "threshold"), [(1, 1), (5, 3), (9, 9), (40, 21)])
def test_any_shares_above_the_threshold_recover_the_secret(shares: int, threshold: int) -> None:
    rng = np.random.default_rng(shares)
    for secret in (rng.bytes(32), bytes(32), b"\xff" * 32):
        points = rng.choice(2**31 - 3, shares, replace=False) + 1
        made = shamir.share(secret, points, threshold)
        assert int(made.max()) < 2**31 - 1
        chosen = rng.choice(shares, threshold, replace=False)
        assert shamir.recover(made[chosen], points[chosen]) == secret
        assert shamir.recover(made, points) == secret
        if threshold > 1:
            assert shamir.recover(made[chosen[1:]], points[chosen[1:]]) != secret


def test_fewer_shares_are_uniform_whatever_the_secret() -> None:
    """Of all shares but one of the threshold, each is a uniform number modulo the prime."""
    points = np.arange(1, 4)
    for secret in (bytes(32), b"\xff" * 32):
        values = np.concatenate([shamir.share(secret, points, 3)[:2].ravel() for _ in range(400)])
        assert stats.kstest(values / int(shamir.PRIME), "uniform").pvalue > 1e-4


# Fixed-point numbers.


def test_sums_of_quantised_numbers_are_exact_and_right_on_average() -> None:
    rng = np.random.default_rng(0)
    count = 7
    values = rng.uniform(-2, 2, (count, 1000))
    values[:, 0], values[:, 1] = 2.0, -2.0  # the sum of the largest does not overflow
    total: Any = np.sum([quantise({"x": row}, 1.0, 2.0, count, rng)["x"] for row in values], axis=0, dtype=np.uint32)
    step = 1 / scale_of(2.0, count)
    assert np.abs(dequantise(total, 2.0, count) - values.sum(axis=0)).max() <= count * step
    half = quantise({"x": np.full(100_000, 2 * step)}, 0.25, 2.0, count, rng)["x"]
    assert set(half.tolist()) == {0, 1}
    assert abs(half.mean() - 0.5) < 0.01
    losses: Any = np.sum([quantise_loss(loss, 0.5, count) for loss in (1.5, -2.0, 1e6)], axis=0, dtype=np.uint64)
    assert dequantise_loss(losses) == pytest.approx((1.5 - 2.0 + 1e6) / 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 2.1, -2.1])
def test_numbers_that_do_not_fit_are_refused(bad: float) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="its x has a coordinate of"):
        quantise({"x": np.array([0.0, bad])}, 0.1, 2.0, 3, rng)


@pytest.mark.parametrize("loss", [np.nan, np.inf, -np.inf, 2.0**38])
def test_losses_that_do_not_fit_are_refused(loss: float) -> None:
    with pytest.raises(ValueError, match="its training loss is"):
        quantise_loss(loss, 0.1, 3)


# The protocol by itself, on updates that are given.


class Protocol:
    """A round of ten clients whose updates are given; it stores all that the server receives."""

    ids = np.array([3, 0, 8, 5, 12, 7, 1, 20, 9, 4])
    weights = np.stack([np.linspace(0.2, 1, 10), np.linspace(1, 0.3, 10)], axis=1)

    losses = np.linspace(-1, 2.5, 10)

    def __init__(self, updates: Array, settings: SecureAggregation = SECURE) -> None:
        self.updates, self.settings = updates, settings
        self.task: Any = SimpleNamespace(round=1, seed=0, global_weights=np.zeros(updates.shape[1]))
        self.clients = SecureClients(settings, np.ones(updates.shape[1], np.bool_))
        self.total = SecureSum(settings, self.exchange, 0, 1)
        self.seen: dict[str, Array] = {}
        self.silent: dict[str, list[int]] = {}

    def exchange(self, step: str, clients: NDArray[np.intp], sent: Mapping[str, Array]) -> Any:
        some = clients
        answers = self.clients.answer(step, 1, some, sent)
        heard = ~np.isin(some, self.silent.pop(step, []))
        self.seen |= {name: rows[heard] for name, rows in answers.items()}
        lost = {int(client): ClientError(int(client), 1, "silent") for client in some[~heard]}
        return some[heard], {name: rows[heard] for name, rows in answers.items()}, lost

    def run(self, dropouts: tuple[int, ...] = ()) -> tuple[dict[str, Array], float] | None:
        self.total.share_keys(self.ids, self.weights)
        sending = np.flatnonzero(np.isin(self.ids, self.total.clients) & ~np.isin(self.ids, dropouts))
        for rows in (sending[:2], sending[2:]):  # in two blocks
            masked = self.protected(self.clients, rows)
            self.seen |= {str(self.ids[k]): row for k, row in zip(rows, masked.encoded[CHANGE], strict=True)}
            self.total.add(masked)
        return self.total.mean()

    def protected(self, clients: SecureClients, rows: Array) -> Update:
        """What some clients send."""
        ones = np.ones(len(rows))
        update = Update(self.ids[rows], ones.astype(int), self.updates[rows], self.losses[rows], update_norm=ones)
        return clients.protect(self.task, update)

    def quantised(self, position: int) -> dict[str, Array]:
        """A client's integers, without masks."""
        rng = generator(0, Purpose.QUANTISE, 1, int(self.ids[position]))
        weight, loss_weight = self.weights[position].tolist()
        clients, update = len(self.total.clients), {CHANGE: self.updates[position]}
        return quantise(update, weight, self.settings.max_abs, clients, rng) | {
            LOSS: quantise_loss(self.losses[position], loss_weight, clients)
        }

    def plain(self, dropouts: tuple[int, ...] = ()) -> tuple[Array, float]:
        """The mean of the quantised updates, without masks."""
        used = [k for k, client in enumerate(self.ids) if client in self.total.clients and client not in dropouts]
        rows, (weight, loss_weight) = [self.quantised(k) for k in used], self.weights[used].sum(axis=0)
        change = sum(row[CHANGE].astype(np.int32).astype(np.int64) for row in rows)
        loss = sum(int(row[LOSS].astype(np.int64)[0]) for row in rows)
        scale = scale_of(self.settings.max_abs, len(self.total.clients))
        return change / scale / weight, loss / 2**24 / loss_weight


UPDATES = np.random.default_rng(1).normal(size=(10, 500))


@pytest.mark.parametrize("settings", [SECURE, SecureAggregation(neighbours=8, threshold=0.0)])
@pytest.mark.parametrize("dropouts", [(), (8, 20, 0)])
def test_the_sum_is_the_quantised_plain_sum_bit_for_bit(settings: SecureAggregation, dropouts: tuple[int, ...]) -> None:
    protocol = Protocol(UPDATES, settings)
    found, expected = protocol.run(dropouts), protocol.plain(dropouts)
    assert found
    assert np.array_equal(found[0][CHANGE], expected[0])
    assert found[1] == expected[1]
    assert np.abs(expected[0]).max() > 0.1


@pytest.mark.parametrize("step", ["keys", "shares", "unmask"])
def test_clients_that_fall_silent_in_any_step(step: str) -> None:
    protocol = Protocol(UPDATES)
    protocol.silent = {step: [12, 4]}
    found, expected = protocol.run(), protocol.plain()
    assert found
    assert np.array_equal(found[0][CHANGE], expected[0])
    assert len(protocol.total.clients) == (10 if step == "unmask" else 8)
    assert set(protocol.total.failed) == (set() if step == "unmask" else {12, 4})


@pytest.mark.parametrize("step", ["keys", "shares"])
def test_two_clients_have_no_sum_because_each_knows_the_other(step: str) -> None:
    protocol = Protocol(UPDATES)
    protocol.silent = {step: [int(client) for client in protocol.ids[2:]]}
    protocol.total.share_keys(protocol.ids, protocol.weights)
    assert not len(protocol.total.clients)
    assert protocol.total.mean() is None


@pytest.mark.parametrize("place", [0, 32])
def test_a_client_without_public_keys_is_left_out_and_its_neighbours_are_not(place: int) -> None:
    """With zeros, or another point of small order, no key can be agreed on."""

    class Lying(Protocol):
        def exchange(self, step: str, clients: NDArray[np.intp], sent: Mapping[str, Array]) -> Any:
            heard, answers, lost = super().exchange(step, clients, sent)
            if step == "keys":
                public = answers["public"].copy()
                public[heard == 12, place : place + 32] = 0
                answers = {"public": public}
            return heard, answers, lost

    protocol = Lying(UPDATES)
    found, expected = protocol.run(), protocol.plain()
    assert found
    assert np.array_equal(found[0][CHANGE], expected[0])
    assert {client: error.reason for client, error in protocol.total.failed.items()} == {
        12: "it sent no public key for secure aggregation"
    }


@pytest.mark.parametrize(("lost", "recovered"), [(4, True), (5, False)])
def test_the_sum_needs_more_than_half_of_the_neighbours(lost: int, recovered: bool) -> None:
    protocol = Protocol(UPDATES)
    protocol.silent = {"unmask": [int(client) for client in protocol.ids[:lost]]}
    assert (protocol.run() is not None) == recovered


def test_masked_updates_are_uniform() -> None:
    """All clients send zeros or large numbers; the bytes of each are uniform, and those of two are independent."""
    updates = np.zeros((10, 20_000))
    updates[::2] = 7.9
    protocol = Protocol(updates)
    protocol.run()
    rows = [protocol.seen[str(client)] for client in protocol.ids]
    rows += [a - b for a, b in itertools.pairwise(rows)]
    for row in rows:
        counts = np.bincount(row.view(np.uint8), minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-5
        assert stats.kstest(row / 2**32, "uniform").pvalue > 1e-5
    encrypted = protocol.seen["shares"].ravel()
    assert stats.chisquare(np.bincount(encrypted, minlength=256)).pvalue > 1e-5


def unmasked(protocol: Protocol, k: int) -> Array:
    """The best that the server can do for a single client: remove the masks whose keys it has recovered."""
    total, own = protocol.total, int(protocol.ids[k])
    has_sent = np.isin(total.clients, total._sent)
    total._exchange = lambda step, some, sent: (some, {"revealed": protocol.seen["revealed"]})  # type: ignore[method-assign,assignment]
    left = {CHANGE: protocol.seen[str(own)].copy(), LOSS: np.zeros(1, np.uint64)}
    for v, secret in (total._reveal(has_sent) or {}).items():
        other = int(protocol.ids[v])
        if has_sent[v] and v != k:
            continue
        key, add = secret, False
        if v != k:
            key, add = mask_key(crypto.private_key(secret), total._public[k].tobytes(), 1, other, own), own > other
        for name, mask in crypto.masks(key, left):
            left[name] += mask if add else -mask
    return left[CHANGE]


def test_the_server_cannot_unmask_a_client_or_tell_two_apart() -> None:
    """With all that it receives: which of two updates, both known to the server, did a client send?"""
    updates = np.zeros((10, 2_000))
    updates[::2] = 1.0
    right = 0
    for _ in range(20):
        protocol = Protocol(updates)
        assert protocol.run(dropouts=(8, 20, 0))
        guesses = [protocol.quantised(k)[CHANGE] for k in (4, 3)]
        for k in (0, 3, 4, 5):
            left = unmasked(protocol, k)
            assert stats.kstest(left / 2**32, "uniform").pvalue > 1e-6
            distances = [np.abs((left - guess).view(np.int32).astype(float)).sum() for guess in guesses]
            right += int(np.argmin(distances)) == k % 2
    assert stats.binomtest(right, 80).pvalue > 1e-4


def test_an_update_that_arrives_late_stays_masked() -> None:
    """The server knows a client's private key once it has dropped out; its seed still masks what arrives later."""
    protocol = Protocol(np.full((10, 20_000), 7.0))
    state: dict[str, Array] = {}
    answer = protocol.clients.answer

    def remember(step: str, *rest: Any) -> Any:
        state.update(protocol.clients.state if step == "unmask" else {})
        return answer(step, *rest)

    protocol.clients.answer = remember  # type: ignore[method-assign,assignment]
    protocol.run(dropouts=(8,))
    late = protocol.clients.with_state(state)
    left = protocol.protected(late, np.array([2])).encoded[CHANGE][0]
    for other, key in zip(state["neighbours"][2], state["mask_keys"][2], strict=True):
        for _, mask in crypto.masks(key.tobytes(), {CHANGE: left, LOSS: np.zeros(1, np.uint64)}):
            if len(mask) > 1:  # not the loss's
                left = left - mask if other > 8 else left + mask
    assert stats.kstest(left / 2**32, "uniform").pvalue > 1e-5


def test_every_text_is_encrypted_with_a_key_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nonce is constant, so that a key which encrypts two texts would reveal them."""
    keys: list[bytes] = []
    encrypt = crypto.encrypt

    def recorded(key: bytes, text: bytes, about: bytes) -> bytes:
        keys.append(key)
        return encrypt(key, text, about)

    monkeypatch.setattr(crypto, "encrypt", recorded)
    for _ in range(2):
        Protocol(UPDATES).run()
    assert len(keys) == 2 * 10 * 9 == len(set(keys))


def test_a_client_reveals_one_share_of_each_neighbour_only() -> None:
    protocol = Protocol(UPDATES)
    protocol.run()
    with pytest.raises(ClientError, match="no keys"):
        protocol.clients.answer(
            "unmask", 1, protocol.ids, {"shares": protocol.seen["shares"], "has_sent": np.zeros((10, 9), bool)}
        )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda sent: {**sent, "shares": sent["shares"] ^ 1}, "a share of client .* was changed"),
        (lambda sent: {**sent, "shares": sent["shares"][::-1]}, "a share of client .* was changed"),
        (lambda sent: {**sent, "has_sent": np.arange(9) < np.full((10, 1), 4)}, "fewer than 5 of its neighbours"),
    ],
)
def test_a_request_that_is_not_honest_is_refused(change: Any, reason: str) -> None:
    protocol = Protocol(UPDATES)
    honest = protocol.clients.answer
    protocol.clients.answer = lambda step, number, some, sent: honest(  # type: ignore[method-assign,assignment]
        step, number, some, change(sent) if step == "unmask" else sent
    )
    with pytest.raises(ClientError, match=reason):
        protocol.run()


def test_shares_that_recover_another_secret_are_found() -> None:
    protocol = Protocol(UPDATES)
    honest = protocol.clients.answer

    def wrong(step: str, number: int, some: Array, sent: Mapping[str, Array]) -> Any:
        answers = honest(step, number, some, sent)
        if step == "unmask":
            answers["revealed"][2, 3] += 1
        return answers

    protocol.clients.answer = wrong  # type: ignore[method-assign,assignment]
    with pytest.raises(FedsimError, match="do not recover its secret"):
        protocol.run()


@pytest.mark.parametrize(("clients", "neighbours"), [(3, None), (10, None), (10, 4), (31, 8), (5, 4), (5, 100)])
def test_the_graph_is_symmetric_and_regular(clients: int, neighbours: int | None) -> None:
    graph = SecureAggregation(neighbours=neighbours).graph(clients, 0, 1)
    edges = {(i, int(j)) for i in range(clients) for j in graph[i]}
    assert edges == {(j, i) for i, j in edges}
    assert len(edges) == clients * min(neighbours or clients, clients - 1)
    assert all(i != j for i, j in edges)
    assert (np.diff(graph, axis=1) > 0).all()


def test_neighbours_and_dropouts_differ_between_rounds() -> None:
    settings = SecureAggregation(neighbours=4, dropout=0.5)
    graphs = [settings.graph(20, 0, number).tolist() for number in (1, 2)]
    assert graphs[0] != graphs[1]
    lost = np.array([[settings.drops_out(client, 0, number) for client in range(100)] for number in (1, 2)])
    assert (lost.sum(axis=1) > 30).all()
    assert (lost.sum(axis=1) < 70).all()
    assert (lost[0] != lost[1]).any()


def test_a_clipped_update_is_not_longer_once_it_is_rounded() -> None:
    """The server's noise is for a norm of `clip`; here rounding alone adds up to 2 % of it."""
    protocol = Protocol(UPDATES, SecureAggregation(max_abs=50_000.0))
    protocol.clients.clip = 0.3
    state = protocol.clients.without_neighbours(3, 1).state
    for row in np.random.default_rng(2).normal(size=(20, 500)):
        one = Update(np.array([3]), np.ones(1, int), row[None], np.ones(1))
        made = protocol.clients.with_state(state | {"cohort": np.array([10])})._quantise(protocol.task, one, 0, 0)
        norm = np.linalg.norm(dequantise(made[CHANGE], 50_000.0, 10))
        assert 0.28 < norm <= 0.3


# In an experiment.


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kernel": "compiled"},
        {"client": clients.SCAFFOLD()},
        {"client": clients.FedPer()},
        {"server": servers.FedAdam},
        {"transforms": (Clip(0.1),)},
        {"fraction_train": 0.5, "split": Dirichlet(20, alpha=0.5)},
        {"dtype": "float64"},
    ],
)
def test_the_result_is_that_of_the_plain_mean_to_quantisation(changes: dict[str, Any]) -> None:
    plain, found = replace(BASE, **changes).run(), secured(**changes).run()
    assert largest_difference(plain.weights, found.weights) < 1e-5
    assert np.allclose(plain.history["train_loss"], found.history["train_loss"], atol=1e-5, equal_nan=True)
    assert (plain.history["clients"] == found.history["clients"]).all()
    assert found.history[["client_drift", "gradient_diversity", "update_cosine"]].isna().all(axis=None)
    overhead = found.history.iloc[1:]
    assert (overhead["secure_bytes"] > 0).all()
    if not changes:  # the rest is headers of arrays
        sent, before = ((h["bytes_up"] + h["bytes_down"]).iloc[1:] for h in (found.history, plain.history))
        assert ((sent - before - overhead["secure_bytes"]).abs() < 500 * overhead["clients"]).all()
    assert (overhead["secure_seconds"] > 0).all()
    assert plain.history["secure_bytes"].isna().all()


def test_no_code_of_the_server_sees_a_plain_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that leave the engine hold masked arrays, the same loss for all, and no weights."""
    seen = []
    train = ThreadEngine.train

    def recorded(self: ThreadEngine, task: Task, some: Any) -> Any:
        for block in train(self, task, some):
            seen.append(block)
            yield block

    monkeypatch.setattr(ThreadEngine, "train", recorded)
    secured().run()
    assert seen
    for block in seen:
        assert block.weights.size == 0
        assert not block.up
        assert (block.train_loss == 0).all()
        assert block.update_norm is not None
        assert np.isnan(block.update_norm).all()
        assert {rows.dtype for rows in block.encoded.values()} == {np.dtype(np.uint32), np.dtype(np.uint64)}


def test_dropouts_are_recovered_and_recorded() -> None:
    experiment = secured(SecureAggregation(dropout=0.3, threshold=0.3), split=Dirichlet(20, alpha=0.5), rounds=3)
    result = experiment.run()
    lost = result.failures
    assert 5 < len(lost) < 30
    assert set(lost["reason"]) == {"it dropped out (dropout = 0.3)"}
    assert (result.history["clients"].iloc[1:] + result.history["failures"].iloc[1:] == 20).all()
    assert np.isfinite(result.history["train_loss"].iloc[1:]).all()
    assert result.history["test_loss"].is_monotonic_decreasing


def test_a_round_with_too_many_dropouts_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    result = secured(SecureAggregation(dropout=0.9)).run()
    assert (result.history["clients"].iloc[1:] == 0).all()
    assert result.history["test_loss"].nunique() == 1
    assert "the model is unchanged" in capsys.readouterr().err


def test_a_round_whose_sum_is_lost_says_how_many_updates_there_were(capsys: pytest.CaptureFixture[str]) -> None:
    """Each of eight clients has shares of all others, and six of them are needed: here a few drop out."""
    result = secured(SecureAggregation(dropout=0.4, threshold=0.9), split=IID(8), rounds=1, fraction_train=1.0).run()
    sent = 8 - int(result.failures["reason"].str.startswith("it dropped out").sum())
    assert 0 < sent < 8
    assert set(result.failures["reason"]) == {"it dropped out (dropout = 0.4)", "too many clients dropped out"}
    assert f"had {sent} updates, whose sum could not be recovered: the model" in capsys.readouterr().err


class Altered(ThreadEngine):
    """Clients whose last answer is another one."""

    def __init__(self, runtime: ClientRuntime, *, change: Any, **options: Any) -> None:
        super().__init__(runtime, **options)
        self.exchange, self._change = self._exchange, change

    def _exchange(self, task: Task, step: str, clients: NDArray[np.intp], sent: Mapping[str, Array]) -> Any:
        found = self.runtime.exchange(task, step, clients, sent)
        return self._change(task.round, *found) if step == "unmask" else found


def test_a_round_that_clients_refuse_to_unmask_says_why() -> None:
    def refuse(number: int, ids: Array, answers: dict[str, Array], failed: dict[int, ClientError]) -> Any:
        reasons = {int(k): ClientError(int(k), number, "a share of client 3 was changed") for k in ids}
        return ids[:0], {name: rows[:0] for name, rows in answers.items()}, reasons

    reasons = secured(rounds=1).run(engine=partial(Altered, change=refuse)).failures["reason"]
    assert reasons.tolist() == ["too many clients dropped out; a share of client 3 was changed"] * 10


def test_a_lie_about_shares_ends_the_run_or_excludes_the_round() -> None:
    def lie(number: int, ids: Array, answers: dict[str, Array], failed: dict[int, ClientError]) -> Any:
        return ids, {"revealed": answers["revealed"] + (number == 1)}, failed

    engine = partial(Altered, change=lie)
    with pytest.raises(FedsimError, match=r"failed in round 1.*do not recover its secret"):
        secured().run(engine=engine)
    result = secured(on_failure="exclude").run(engine=engine)
    assert result.history["clients"].tolist() == [0, 0, 10]
    assert result.failures["reason"].str.contains("do not recover its secret").tolist() == [True] * 10


@pytest.mark.parametrize("kernel", ["numpy", "compiled"])
def test_same_bits_with_any_workers_and_blocks(kernel: str) -> None:
    experiment = secured(SecureAggregation(dropout=0.2), kernel=kernel)
    assert same(experiment.run(workers=1, block_size=1), experiment.run(workers=2, block_size=3))


@pytest.mark.parametrize("changes", [{}, {"client": clients.SCAFFOLD()}, {"client": clients.FedPer()}])
def test_supernodes_give_the_same_bits(changes: dict[str, Any]) -> None:
    experiment = secured(SecureAggregation(dropout=0.2), **changes)
    settings = {"experiment": config.to_toml(experiment)}
    with strategies.quiet(), AppGrid(app.client_app, 4, run_config=settings, workers=2) as grid:
        found = experiment.run(engine=partial(SuperNodeEngine, grid=grid, nodes=4))
        kept = [dict(context.state.array_records["fedsim.secure"]) for context in grid._contexts]
    assert same(experiment.run(), found)
    assert kept == [{}] * 4  # secrets that are kept could be asked for again


def test_supernodes_that_return_with_other_ids_are_asked_for_keys() -> None:
    finished_rounds = [0]

    class Returning(AppGrid):
        def get_node_ids(self) -> list[int]:
            ids = list(super().get_node_ids())
            return ids[2:] if finished_rounds[-1] else ids[:2]

        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
            here = [message for message in messages if message.metadata.dst_node_id in self.get_node_ids()]
            return super().send_and_receive(here, timeout=timeout)

    class Restart(Callback):
        def round_finished(self, finished: FinishedRound) -> None:
            finished_rounds.append(finished.number)

    experiment = secured(on_failure="exclude")
    settings = {"experiment": config.to_toml(experiment)}
    partitions = [{"partition-id": k % 2, "num-partitions": 2} for k in range(4)]
    with strategies.quiet(), Returning(app.client_app, 4, run_config=settings, node_configs=partitions) as grid:
        found = experiment.run(engine=partial(SuperNodeEngine, grid=grid, nodes=2), callbacks=[Restart()])
    assert same(experiment.run(), found)


def test_a_client_whose_update_is_too_large_fails() -> None:
    small = secured(SecureAggregation(max_abs=1e-4))
    with pytest.raises(ClientError, match=r"its change has a coordinate of .*; allowed: at most 0.0001"):
        small.run()
    result = replace(small, on_failure="exclude").run()
    assert (result.history["clients"].iloc[1:] == 0).all()
    diverged = secured(client=clients.SGD(lr=1e20), on_failure="exclude").run()
    assert diverged.failures["reason"].str.contains("its training loss is nan").all()


def test_a_round_whose_mean_loss_has_exploded_is_not_used() -> None:
    """No single loss is known; a client that lies about a mask makes the mean one absurd too."""
    diverging = secured(SecureAggregation(max_abs=1e6), client=clients.SGD(lr=50.0), rounds=3)
    with pytest.raises(DivergenceError, match=r"in round \d \(the clients' mean training loss is .* a smaller lr"):
        diverging.run()
    result = replace(diverging, on_failure="exclude").run()
    assert result.failures["reason"].str.contains("mean training loss").any()
    assert result.history["train_loss"].isna().all()


def test_central_dp_clips_on_the_client_and_gives_the_same_noise() -> None:
    pytest.importorskip("dp_accounting")
    private = CentralDP(clip=0.3, noise_multiplier=0.5, sampling="fixed")
    plain, found = replace(BASE, privacy=private).run(), secured(privacy=private).run()
    assert largest_difference(plain.weights, found.weights) < 1e-5
    assert plain.history["epsilon"].equals(found.history["epsilon"])
    assert np.allclose(plain.history["train_loss"], found.history["train_loss"], atol=1e-5, equal_nan=True)
    without = replace(private, noise_multiplier=0.0)
    runtime: ClientRuntime = build_runtime(secured(privacy=without))
    assert runtime.secure
    assert runtime.secure.clip == 0.3


def test_steps_that_are_coarse_for_the_clipping_norm_are_refused() -> None:
    """Otherwise what rounding can add exceeds the clipping norm, and updates change their sign."""
    pytest.importorskip("dp_accounting")
    private = CentralDP(clip=1e-3, noise_multiplier=0.0)
    with pytest.raises(ConfigError, match=r"max_abs is 1e\+06.*half of privacy's clip of 0.001; allowed: at most 4350"):
        secured(SecureAggregation(max_abs=1e6), privacy=private).run()
    plain = replace(BASE, privacy=private, rounds=1).run()
    found = secured(SecureAggregation(max_abs=4350.0), privacy=private, rounds=1).run()
    start = build_runtime(BASE).model.init(generator(0, Purpose.INIT))
    changes = [np.concatenate([w.ravel() for w in result.weights.values()]) - start for result in (plain, found)]
    assert changes[0] @ changes[1] > 0.4 * changes[0] @ changes[0]


def test_steps_of_dp_sgd_cost_the_same_also_in_rejected_rounds() -> None:
    pytest.importorskip("dp_accounting")
    private = replace(BASE, privacy=ExampleDP(noise_multiplier=1.0))
    expected = private.run().history["epsilon"]
    for settings in (SECURE, SecureAggregation(dropout=0.9)):
        found = replace(private, secure_aggregation=settings).run().history["epsilon"]
        assert found.equals(expected)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"server": servers.Krum}, "mean of updates.*Krum has its own aggregator"),
        ({"server": servers.FedMedian}, "mean of updates.*FedMedian"),
        ({"server": servers.QFedAvg}, "QFedAvg has its own aggregator"),
        ({"server": servers.FedExP}, "FedExP has its own aggregator"),
        ({"server": stock.FedAvg}, "Flower's FedAvg"),
        ({"client": clients.IFCA()}, "IFCA has its own weigh"),
        ({"transforms": (TopK(0.1),)}, "TopK.*decodes one by one"),
        ({"fraction_train": 0.2}, "needs 3 clients in a round, and 2 of 10"),
        ({"privacy": CentralDP(noise_multiplier=1.0, target_quantile=0.5)}, "target_quantile"),
        ({"privacy": CentralDP(noise_multiplier=1.0), "fraction_train": 0.5}, "fewer than 3 clients in a round with a"),
        (
            {"privacy": CentralDP(noise_multiplier=1.0), "secure_aggregation": SecureAggregation(dropout=0.1)},
            r"dropout is 0\.1; allowed with CentralDP: 0",
        ),
    ],
)
def test_combinations_that_need_more_than_a_sum_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        replace(BASE, **{"secure_aggregation": SECURE} | changes).run()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_abs": 0.0}, "max_abs is 0"),
        ({"threshold": 1.0}, "threshold is 1"),
        ({"neighbours": 3}, "neighbours is 3; allowed: an even number"),
        ({"neighbours": 0}, "neighbours is 0"),
        ({"dropout": 1.0}, "dropout is 1"),
        ({"dropout": float("nan")}, "dropout is nan"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        SecureAggregation(**settings)


def test_the_text_form() -> None:
    experiment = secured(SecureAggregation(neighbours=4, dropout=0.25), transforms=(LocalDP(0.5),))
    assert config.experiment(read_toml("it", config.to_toml(experiment))) == experiment
    with pytest.raises(ConfigError, match="secure_aggregation is True; allowed: a SecureAggregation object"):
        Experiment(secure_aggregation=True)  # type: ignore[arg-type]
