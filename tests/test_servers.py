"""Server strategies against Flower's, against their formulas written down independently, and under attack."""

from __future__ import annotations

import inspect
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import flwr.serverapp.strategy as stock
import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict
from helpers import same
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, brentq, minimize
from scipy.stats import trim_mean

from fedsim import Experiment, clients, servers
from fedsim.clients.server_hooks import ServerHooks
from fedsim.clients.task import Update
from fedsim.errors import ConfigError, DivergenceError
from fedsim.flower import records
from fedsim.kernels.mean import RunningMean
from fedsim.models import MLP
from fedsim.servers import krum
from fedsim.splits import IID, Dirichlet, LogNormal, Shards
from fedsim.study.build import make_strategy
from fedsim.updates.aggregators import Aggregator, columns

Array = NDArray[Any]

BASE = Experiment(split=Shards(13, per_client=2), hidden=(8,), rounds=4, dtype="float64")
#: Every strategy that Flower has too, with options that show.
TWINS: dict[str, dict[str, Any]] = {
    "FedAvg": {},
    "FedAvgM": {"server_momentum": 0.9, "server_learning_rate": 0.7},
    "FedAdagrad": {"eta": 0.05},
    "FedAdam": {"eta": 0.05, "beta_1": 0.8, "beta_2": 0.95, "tau": 1e-2},
    "FedYogi": {"eta": 0.05},
    "FedMedian": {},
    "FedTrimmedAvg": {"beta": 0.3},
    "Krum": {"num_malicious_nodes": 2},
    "MultiKrum": {"num_malicious_nodes": 2, "num_nodes_to_select": 4},
    "QFedAvg": {"q": 0.5, "client_learning_rate": 0.1},
}
OURS = [name for name in servers.__all__ if name not in TWINS]
#: Their formulas are in tests/test_defences.py.
DEFENCES = {"NormBounding", "FLTrust", "FoolsGold", "SpectralFilter"}
RNG = np.random.default_rng(0)


def test_every_strategy_is_in_this_file() -> None:
    assert set(OURS) - DEFENCES == {"RFA", "CenteredClipping", "FedExP", "Bulyan", "AgnosticFL", "TERM", "FedMGDA"}
    assert {class_of(name) for name in FORMULAS} == set(servers.__all__) - DEFENCES


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("split", [BASE.split, Dirichlet(13, alpha=0.5)], ids=str)
def test_ours_agrees_with_flowers(name: str, split: Any) -> None:
    ours, theirs = (
        replace(BASE, split=split, server=partial(getattr(module, name), **TWINS[name])).run()
        for module in (servers, stock)
    )
    for key, weights in theirs.weights.items():
        np.testing.assert_allclose(ours.weights[key], weights, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", servers.__all__)
def test_same_bits_on_any_workers_and_blocks(name: str) -> None:
    options = {"num_malicious_nodes": 2} if name == "Bulyan" else TWINS.get(name, {})
    experiment = replace(BASE, dtype="float32", server=partial(getattr(servers, name), **options))
    assert same(experiment.run(workers=1), experiment.run(workers=3, block_size=2))


# Each strategy against its formula, over the rounds of a run.


class Recorded(clients.SGD):
    """SGD that notes what goes into and comes out of each client's training; some clients send nonsense."""

    malicious: tuple[int, ...] = ()

    def train(self, ctx: clients.Context) -> Array:
        weights = ctx.fit()
        weights[np.isin(ctx.partition_ids, self.malicious)] *= -3
        columns = ctx.partition_ids, ctx.num_examples, weights.copy(), np.asarray(ctx.loss_sum / ctx.processed)
        NOTES.append((ctx.round, ctx.global_weights, *columns))
        return weights


#: Round, global weights, and a row per client: partition ids, numbers of examples, weights, losses.
Note = tuple[int, Array, Array, Array, Array, Array]
NOTES: list[Note] = []
#: From the round, the old weights, the clients' weights, numbers of examples, losses and, if the function takes them,
#: partition ids to the new weights.
Formula = Callable[..., Any]


def fedavg() -> Formula:
    return lambda t, w, x, n, loss: n @ x / n.sum()


def fedavgm(lr: float, beta: float) -> Formula:
    v: Any = 0.0

    def step(t: int, w: Array, x: Array, n: Array, loss: Array) -> Any:
        nonlocal v
        v = beta * v + (w - n @ x / n.sum())
        return w - lr * v

    return step


def fedopt(second: Callable[[Any, Array], Array], eta: float, beta_1: float, tau: float, beta_2: float = 0) -> Formula:
    m: Any = 0.0
    v: Any = 0.0

    def step(t: int, w: Array, x: Array, n: Array, loss: Array) -> Any:
        nonlocal m, v
        delta = n @ x / n.sum() - w
        m = beta_1 * m + (1 - beta_1) * delta
        v = second(v, delta**2)
        # Only FedAdam corrects the bias; Flower counts rounds from 2 in it.
        lr = eta * (1 - beta_2 ** (t + 1)) ** 0.5 / (1 - beta_1 ** (t + 1)) if beta_2 else eta
        return w + lr * m / (v**0.5 + tau)

    return step


def fedexp(epsilon: float, seen: set[bool]) -> Formula:
    def step(t: int, w: Array, x: Array, n: Array, loss: Array) -> Any:
        p, d = n / n.sum(), x - w
        eta = p @ (d**2).sum(axis=1) / (2 * (((p @ d) ** 2).sum() + epsilon))
        seen.add(bool(eta > 1))
        return w + max(1, eta) * (p @ d)

    return step


def qfedavg(q: float, lr: float) -> Formula:
    def step(t: int, w: Array, x: Array, n: Array, loss: Array) -> Any:
        gradients = [(w - row) / lr for row in x]
        deltas = [f**q * g for f, g in zip(loss, gradients, strict=True)]
        h = [q * f ** (q - 1) * g @ g + f**q / lr for f, g in zip(loss, gradients, strict=True)]
        return w - np.sum(deltas, axis=0) / np.sum(h)

    return step


def scores(x: Array, f: int) -> list[float]:
    """Krum's: the sum of the squared distances to the n - f - 2 nearest others."""
    distances = [sorted(float(((a - b) ** 2).sum()) for j, b in enumerate(x) if j != i) for i, a in enumerate(x)]
    return [sum(row[: max(1, len(x) - f - 2)]) for row in distances]


def multikrum(f: int, m: int) -> Formula:
    def step(t: int, w: Array, x: Array, n: Array, loss: Array) -> Any:
        best = np.argsort(scores(x, f))[:m]
        return n[best] @ x[best] / n[best].sum()

    return step


def bulyan_selection(x: Array, f: int) -> list[int]:
    """Bulyan's: Krum, repeated without what it has chosen so far."""
    left = list(range(len(x)))
    chosen: list[int] = []
    while len(chosen) < len(x) - 2 * f:
        chosen.append(left.pop(int(np.argmin(scores(x[left], f)))))
    return chosen


def bulyan(f: int) -> Formula:
    def step(t: int, w: Array, x: Array, n: Array, loss: Array) -> Any:
        new = []
        for values in x[bulyan_selection(x, f)].T:
            closest = sorted(values, key=lambda v: abs(v - np.median(values)))
            new.append(np.mean(closest[: len(x) - 4 * f]))
        return np.array(new)

    return step


def rfa(iterations: int, smoothing: float) -> Formula:
    def step(t: int, w: Array, x: Array, n: Array, loss: Array) -> Any:
        z = w
        for _ in range(iterations):
            beta = n / n.sum() / np.maximum(smoothing, ((x - z) ** 2).sum(axis=1) ** 0.5)
            z = beta @ x / beta.sum()
        return z

    return step


def centered_clipping(tau: float | None, iterations: int) -> Formula:
    v: Any = 0.0

    def step(t: int, w: Array, x: Array, n: Array, loss: Array) -> Any:
        nonlocal v
        for _ in range(iterations):
            off = x - w - v
            lengths = (off**2).sum(axis=1, keepdims=True) ** 0.5
            v = v + (off * np.minimum(1, (tau or np.median(lengths)) / lengths)).mean(axis=0)
        return w + v

    return step


def agnostic(learning_rate: float) -> Formula:
    r: dict[int, float] = {}

    def step(t: int, w: Array, x: Array, n: Array, loss: Array, ids: Array) -> Any:
        mixture = np.array([r.get(k, 1.0) for k in ids])
        new = mixture @ x / mixture.sum()
        r.update({k: m + learning_rate * (f - loss.mean()) for k, m, f in zip(ids, mixture, loss, strict=True)})
        # The projection: the same is subtracted from all, what is then negative becomes 0, and the mean stays 1.
        excess = brentq(lambda c: sum(max(m - c, 0) for m in r.values()) - len(r), -1e3, 1e3, xtol=1e-13)
        r.update({k: max(m - excess, 0) for k, m in r.items()})
        return new

    return step


def term(tilt: float) -> Formula:
    def step(t: int, w: Array, x: Array, n: Array, loss: Array) -> Any:
        factors = n * np.exp(tilt * loss)
        return factors @ x / factors.sum()

    return step


def fedmgda(epsilon: float, lr: float | None) -> Formula:
    """The quadratic program by an interior-point method."""

    def step(t: int, w: Array, x: Array, n: Array, loss: Array) -> Any:
        p, lengths = n / n.sum(), np.linalg.norm(x - w, axis=1)
        g = (x - w) / lengths[:, None]
        found = minimize(  # type: ignore[call-overload]
            lambda v: float(((v @ g) ** 2).sum()),
            p,
            jac=lambda v: 2 * g @ (v @ g),
            hess=lambda v: 2 * g @ g.T,
            method="trust-constr",
            bounds=Bounds(np.maximum(0, p - epsilon), np.minimum(1, p + epsilon)),
            constraints=LinearConstraint(np.ones(len(p)), 1, 1),
            options={"gtol": 1e-10, "xtol": 1e-12, "barrier_tol": 1e-12, "maxiter": 3000},
        )
        return w + (p @ lengths if lr is None else lr) * (found.x @ g)

    return step


EXTRAPOLATED: dict[str, set[bool]] = {"FedExP": set(), "FedExP at its floor": set()}
#: Options and formula of each strategy.
FORMULAS: dict[str, tuple[dict[str, Any], Callable[[], Formula]]] = {
    "FedAvg": ({}, fedavg),
    "FedAvgM": ({"server_learning_rate": 0.7, "server_momentum": 0.6}, lambda: fedavgm(0.7, 0.6)),
    "FedAvgM by default": ({}, fedavg),
    "FedAdagrad": ({"eta": 0.05, "tau": 1e-2}, lambda: fedopt(lambda v, d: v + d, 0.05, 0, 1e-2)),
    "FedAdam": (
        {"eta": 0.05, "beta_1": 0.8, "beta_2": 0.95, "tau": 1e-2},
        lambda: fedopt(lambda v, d: 0.95 * v + 0.05 * d, 0.05, 0.8, 1e-2, 0.95),
    ),
    "FedYogi": (
        {"eta": 0.05, "beta_1": 0.8, "beta_2": 0.95, "tau": 1e-2},
        lambda: fedopt(lambda v, d: v - 0.05 * d * np.sign(v - d), 0.05, 0.8, 1e-2),
    ),
    "FedExP": ({"epsilon": 1e-2}, lambda: fedexp(1e-2, EXTRAPOLATED["FedExP"])),
    "FedExP at its floor": ({"epsilon": 50.0}, lambda: fedexp(50, EXTRAPOLATED["FedExP at its floor"])),
    "QFedAvg": ({"q": 0.7}, lambda: qfedavg(0.7, 0.1)),
    "FedMedian": ({}, lambda: lambda t, w, x, n, loss: np.median(x, axis=0)),
    "FedTrimmedAvg": ({"beta": 0.3}, lambda: lambda t, w, x, n, loss: trim_mean(x, 0.3)),
    "Krum": ({"num_malicious_nodes": 2}, lambda: multikrum(2, 1)),
    "MultiKrum": ({"num_malicious_nodes": 2, "num_nodes_to_select": 4}, lambda: multikrum(2, 4)),
    "Bulyan": ({"num_malicious_nodes": 1}, lambda: bulyan(1)),
    "Bulyan, two malicious": ({"num_malicious_nodes": 2}, lambda: bulyan(2)),
    "RFA": ({"iterations": 3, "smoothing": 1e-3}, lambda: rfa(3, 1e-3)),
    "RFA, wide smoothing": ({"iterations": 2, "smoothing": 1.0}, lambda: rfa(2, 1.0)),
    "CenteredClipping": ({"tau": 0.4, "iterations": 3}, lambda: centered_clipping(0.4, 3)),
    "CenteredClipping by default": ({}, lambda: centered_clipping(None, 1)),
    "AgnosticFL": ({"mixture_learning_rate": 0.8}, lambda: agnostic(0.8)),
    "TERM": ({"t": 1.5}, lambda: term(1.5)),
    "TERM, negative": ({"t": -2.0}, lambda: term(-2)),
    "FedMGDA": ({"epsilon": 0.05}, lambda: fedmgda(0.05, None)),
    "FedMGDA, any weights": ({"epsilon": 1.0, "server_learning_rate": 0.5}, lambda: fedmgda(1, 0.5)),
}


def class_of(name: str) -> str:
    """Return the class that a name of FORMULAS is about."""
    return name.partition(" ")[0].rstrip(",")


def played(experiment: Experiment) -> tuple[list[Note], Array]:
    """Run an experiment with a client that records; return a note per round, and the final weights."""
    NOTES.clear()
    result = experiment.run(workers=1)
    notes = []
    for t in range(1, experiment.rounds + 1):
        blocks = [note for note in NOTES if note[0] == t]
        columns = [np.concatenate(column) for column in list(zip(*blocks, strict=True))[2:]]
        notes.append((t, blocks[0][1], *columns))
    return notes, np.concatenate([values.ravel() for values in result.weights.values()])  # type: ignore[return-value]


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("malicious", [(), (1, 4)], ids=["honest", "two malicious"])
def test_every_strategy_follows_its_formula(name: str, malicious: tuple[int, ...]) -> None:
    """Partial cohorts of ragged clients over five rounds; the new weights of each from what its clients sent."""
    options, formula = FORMULAS[name]
    server = partial(getattr(servers, class_of(name)), **options)
    split = Dirichlet(17, alpha=0.5, sizes=LogNormal(0.7))
    client = Recorded(malicious=malicious)
    # An odd and an even number of 17 clients; Bulyan's formula does not say which of two equally close values counts,
    # and with an even number there are some, where clients have not changed a weight.
    fraction, size = (0.75, 12) if malicious and class_of(name) != "Bulyan" else (0.7, 11)
    notes, last = played(replace(BASE, split=split, fraction_train=fraction, rounds=5, client=client, server=server))
    step = formula()
    assert len({tuple(sorted(note[2])) for note in notes}) > 1  # cohorts differ
    for (t, w, ids, n, x, loss), new in zip(notes, [note[1] for note in notes[1:]] + [last], strict=True):
        assert len(set(ids)) == size
        assert len(set(n)) > 5
        expected = step(*(t, w, x, n, loss, ids)[: len(inspect.signature(step).parameters)])
        assert np.abs(expected - w).max() > 1e-4
        # Two solvers of a quadratic program agree to their tolerances.
        rtol, atol = (0.0, 1e-4) if class_of(name) == "FedMGDA" else (1e-8, 1e-10)
        np.testing.assert_allclose(new, expected, rtol=rtol, atol=atol)
    if name == "FedExP":
        assert True in EXTRAPOLATED[name]
    if name == "FedExP at its floor":
        assert EXTRAPOLATED[name] == {False}


def test_bulyans_second_step_agrees_with_flowers() -> None:
    """Flower's takes a rule that selects; given Bulyan's of the paper, the results are the same."""

    def select(contents: list[RecordDict], f: int, count: int) -> list[RecordDict]:
        rows = [records.flatten(next(iter(content.array_records.values()))) for content in contents]
        chosen = bulyan_selection(np.array(rows), f)
        assert len(chosen) == count
        return [contents[k] for k in chosen]

    ours = replace(BASE, server=partial(servers.Bulyan, num_malicious_nodes=2)).run()
    theirs = replace(BASE, server=partial(stock.Bulyan, num_malicious_nodes=2, selection_rule=select)).run()
    for key, weights in theirs.weights.items():
        np.testing.assert_allclose(ours.weights[key], weights, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", [name for name in servers.__all__ if name not in DEFENCES])
def test_all_that_a_strategy_keeps_is_in_its_state(name: str) -> None:
    """A fresh strategy that is given the state of another goes on as the other does; checkpoints rely on it."""
    lr = {"client_learning_rate": 0.1} if name == "QFedAvg" else {}
    make = partial(getattr(servers, name), **lr, **FORMULAS[name][0])
    one, other = make(), make()
    rng = np.random.default_rng(4)
    weights = rng.normal(size=6)
    for t in range(1, 5):
        rows, examples = rng.normal(size=(11, 6)), rng.integers(1, 9, 11)
        new = []
        for server in (one, other):
            sent(server, weights)
            new.append(server.step(t, weights, combined(server.aggregator(), rows, examples)))
        np.testing.assert_array_equal(*new)
        weights = new[0]
        other = make()
        other.state = {key: values.copy() for key, values in one.state.items()}


# Sampling.


class Nodes:
    """As much of a Grid as sampling needs."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = ids

    def get_node_ids(self) -> Sequence[int]:
        return self.ids


def cohort(server: servers.FedAvg, t: int, ids: Sequence[int], evaluate: bool = False) -> list[int]:
    configure = server.configure_evaluate if evaluate else server.configure_train
    instructions = configure(t, records.record({"W1": np.zeros(2)}), ConfigRecord(), Nodes(ids))  # type: ignore[arg-type]
    return [int(node) for node in getattr(instructions, "node_ids", ())]


@pytest.mark.parametrize("evaluate", [False, True])
@pytest.mark.parametrize("ids", [range(2, 22), [7, 901, 5, *range(30, 47)]], ids=["in process", "elsewhere"])
def test_cohorts_are_uniform_draws_without_replacement(ids: Sequence[int], evaluate: bool) -> None:
    """Every client and every pair of clients is as frequent as the hypergeometric distribution says."""
    server = servers.FedAvg(seed=3, fraction_train=0.31, fraction_evaluate=0.31)
    rounds = 3000
    drawn = np.zeros((rounds, 20), dtype=int)
    order = sorted(ids)
    for t in range(rounds):
        chosen = cohort(server, t, ids, evaluate)
        assert len(set(chosen)) == len(chosen) == 6  # max(1, int(0.31 * 20))
        drawn[t, [order.index(node) for node in chosen]] = 1
    pairs = drawn.T @ drawn
    single, both = 6 / 20, 6 * 5 / (20 * 19)
    assert np.abs(np.diag(pairs) / rounds - single).max() < 5 * (single * (1 - single) / rounds) ** 0.5
    assert np.abs(pairs[~np.eye(20, dtype=bool)] / rounds - both).max() < 5 * (both * (1 - both) / rounds) ** 0.5
    successive = (drawn[1:] * drawn[:-1]).sum(axis=1).mean()  # 6 of 20, then 6 of 20: 1.8 in both on average
    assert successive == pytest.approx(1.8, abs=0.1)


def test_a_cohort_follows_from_seed_round_and_purpose() -> None:
    server = servers.FedAvg(seed=3, fraction_train=0.3, fraction_evaluate=0.3)
    again = servers.FedAdam(seed=3, fraction_train=0.3, fraction_evaluate=0.3)
    other = servers.FedAvg(seed=4, fraction_train=0.3, fraction_evaluate=0.3)
    ids = [int(k) for k in RNG.permutation(50) * 7]
    cohorts = [cohort(server, t, ids) for t in range(20)]
    assert cohorts == [cohort(again, t, sorted(ids)) for t in range(20)]
    assert sum(a == cohort(other, t, ids) for t, a in enumerate(cohorts)) == 0
    assert sum(a == cohort(server, t, ids, evaluate=True) for t, a in enumerate(cohorts)) == 0
    assert cohort(server, 5, ids) == cohorts[5]  # whatever was asked before


@pytest.mark.parametrize(
    ("fraction", "least", "size"), [(1.0, 1, 7), (0.5, 1, 3), (0.01, 1, 1), (0.3, 4, 4), (0.9, 20, 7), (0.0, 1, 0)]
)
def test_sizes_of_cohorts(fraction: float, least: int, size: int) -> None:
    """``max(int(C * K), least)`` of K clients, and never more than there are; nobody if the fraction is 0."""
    for purpose in ("train", "evaluate"):
        options: dict[str, Any] = {f"fraction_{purpose}": fraction, f"min_{purpose}_nodes": least}
        assert len(cohort(servers.FedAvg(**options), 1, range(2, 9), purpose == "evaluate")) == size


def combined(rule: Aggregator, rows: NDArray[Any], examples: NDArray[np.intp]) -> NDArray[Any]:
    """What a rule makes of rows, handed over in two blocks."""
    for block in (slice(0, 3), slice(3, None)):
        n = len(rows[block])
        rule.add(
            Update(np.arange(n), examples[block], rows[block], np.ones(n)),
            examples[block].astype(np.float64),
        )
    return rule.result()


def sent(server: servers.FedAvg, weights: NDArray[Any]) -> None:
    server._sent, server._sent_flat = records.record({"W1": weights}), None


def test_the_geometric_median_minimises_the_sum_of_distances() -> None:
    rows, examples = RNG.normal(size=(9, 3)), RNG.integers(1, 30, 9)

    def cost(point: NDArray[Any]) -> float:
        return float(examples @ np.linalg.norm(rows - point, axis=1))

    best = minimize(cost, rows.mean(axis=0), tol=1e-12).x
    for iterations, atol in ((300, 1e-4), (4, 0.1)):
        server = servers.RFA(iterations=iterations)
        sent(server, np.zeros(3))
        np.testing.assert_allclose(combined(server.aggregator(), rows, examples), best, atol=atol)


def test_centred_clipping_bounds_what_one_client_can_do() -> None:
    rows = np.concatenate([0.1 * RNG.normal(size=(9, 5)), np.full((1, 5), 1e9)])
    server = servers.CenteredClipping(tau=1.0)
    sent(server, np.zeros(5))
    first = combined(server.aggregator(), rows, np.ones(10, np.intp))
    assert np.linalg.norm(first - rows[:9].sum(axis=0) / 10) == pytest.approx(0.1, rel=1e-6)  # tau / clients
    wide = servers.CenteredClipping(tau=1e6)
    sent(wide, np.zeros(5))
    np.testing.assert_allclose(combined(wide.aggregator(), rows[:9], np.ones(9, np.intp)), rows[:9].mean(axis=0))


def test_fedexp_extrapolates_as_its_formula_says() -> None:
    rng = np.random.default_rng(1)
    old, rows, examples = 0.1 * rng.normal(size=4), rng.normal(size=(6, 4)), rng.integers(1, 9, 6)
    server = servers.FedExP(epsilon=0.01)
    sent(server, old)
    mean = combined(server.aggregator(), rows, examples)
    shares = examples / examples.sum()
    moved = shares @ rows - old
    eta = max(1, shares @ ((rows - old) ** 2).sum(axis=1) / (2 * (moved @ moved + 0.01)))
    assert eta > 1
    np.testing.assert_allclose(server.step(1, old, mean), old + eta * moved)


#: Robust strategies, with options for two malicious of twelve clients.
ROBUST: dict[str, dict[str, Any]] = {
    "FedMedian": {},
    "FedTrimmedAvg": {},
    "Krum": {"num_malicious_nodes": 2},
    "MultiKrum": {"num_malicious_nodes": 2, "num_nodes_to_select": 6},
    "Bulyan": {"num_malicious_nodes": 2},
    "RFA": {},
    "CenteredClipping": {},
}


class Attack(clients.SGD):
    """The first clients send constants, or a multiple of their weights or of their update."""

    constants: tuple[float, ...] = ()
    attackers: int = 0
    factor: float = 1.0
    update_factor: float = 1.0

    def train(self, ctx: clients.Context) -> Array:
        weights = ctx.fit()
        for client, constant in enumerate(self.constants):
            weights[ctx.partition_ids == client] = constant
        bad = ctx.partition_ids < self.attackers
        weights[bad] *= self.factor
        weights[bad] += (self.update_factor - 1) * (weights[bad] - ctx.global_weights)
        return weights


TWELVE = Experiment(split=IID(12), rounds=10)


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("size", [1e-3, 1e-1, 1.0, 1e2, 1e4, 1e6, 1e10, 1e20, 1e30])
def test_robust_strategies_withstand_vectors_of_every_magnitude(name: str, size: float) -> None:
    """In float32, where squares overflow from 1e19 on and small distances vanish beside large ones."""
    server = partial(getattr(servers, name), **ROBUST[name])
    attacked = replace(TWELVE, client=Attack(constants=(size, -size / 2)), server=server)
    assert attacked.run().final_accuracy > 0.85


@pytest.mark.parametrize("size", [1e4, 1e30])
@pytest.mark.parametrize("kernel", ["numpy", "compiled"])
def test_robust_strategies_withstand_one_vector_on_either_kernel(kernel: str, size: float) -> None:
    for name in ("Krum", "RFA", "CenteredClipping"):
        server = partial(getattr(servers, name), **ROBUST[name])
        attacked = replace(TWELVE, kernel=kernel, client=Attack(constants=(size,)), server=server)
        assert attacked.run().final_accuracy > 0.85


@pytest.mark.parametrize("name", ROBUST)
def test_robust_strategies_withstand_what_breaks_the_mean(name: str) -> None:
    """Two of twelve clients send weights a thousand times off."""
    base = replace(BASE, split=Dirichlet(12, alpha=100.0), rounds=15, client=Attack(attackers=2, factor=-1000))
    assert replace(base, server=partial(getattr(servers, name), **ROBUST[name])).run().final_accuracy > 0.6
    with pytest.raises(DivergenceError):
        replace(base, server=servers.FedAvg).run()


def test_centred_clipping_defends_by_default() -> None:
    """Three of twelve clients send -10 times their update; a radius wider than all updates does nothing."""
    base = replace(TWELVE, client=Attack(attackers=3, update_factor=-10))
    accuracy = {
        tau: replace(base, server=partial(servers.CenteredClipping, tau=tau)).run().final_accuracy for tau in (10, None)
    }
    assert accuracy[10] < 0.5
    assert accuracy[None] > 0.85
    nobody = replace(TWELVE, client=clients.SGD())
    plain = nobody.run().final_accuracy
    assert replace(nobody, server=servers.CenteredClipping).run().final_accuracy > plain - 0.02


@pytest.mark.parametrize("size", [1e-3, 1e4, 1e10, 1e30])
def test_distances_are_exact_beside_an_outlier(size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among float32 rows that differ by a thousandth, whoever else is there, in one block of columns or in many."""
    rng = np.random.default_rng(0)
    rows = (1 + 1e-3 * rng.normal(size=(6, 50))).astype(np.float32)
    rows[2] = size
    exact = [[sum((float(a) - float(b)) ** 2 for a, b in zip(x, y, strict=True)) for y in rows] for x in rows]
    np.testing.assert_allclose(krum.squared_distances(rows), exact, rtol=1e-12)
    monkeypatch.setattr(krum, "COLUMN_BYTES", 7 * 6 * 8)
    np.testing.assert_allclose(krum.squared_distances(rows), exact, rtol=1e-12)


def test_distances_take_little_memory() -> None:
    rows = RNG.normal(size=(20, 200_000)).astype(np.float32)  # 16 MB; in float64 it would be 32 MB
    krum.squared_distances(rows[:, :10])
    tracemalloc.start()
    krum.squared_distances(rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6


@given(arrays(np.float64, st.tuples(st.integers(7, 12), st.integers(1, 4)), elements=st.floats(-9, 9, width=16)))
def test_bulyan_selects_as_the_paper_does(rows: Array) -> None:
    """Whatever is selected has the smallest score among what was left, ties aside."""
    chosen = list(krum.select_by_krum(krum.squared_distances(rows), 1, len(rows) - 2))
    assert len(set(chosen)) == len(rows) - 2
    left = list(range(len(rows)))
    for k in chosen:
        values = scores(rows[left], 1)
        assert values[left.index(int(k))] == pytest.approx(min(values), rel=1e-9, abs=1e-9)
        left.remove(int(k))


# Too few clients for the rule.


class Untrained(clients.SGD):
    """Must not be trained."""

    def train(self, ctx: clients.Context) -> Array:
        raise AssertionError("trained")


@pytest.mark.parametrize(
    ("name", "options", "clients_", "said"),
    [
        ("Krum", {"num_malicious_nodes": 5}, 12, "Krum's num_malicious_nodes is 5, .* needs 13 clients; it has 12"),
        ("Krum", {}, 2, "Krum's num_malicious_nodes is 0, .* needs 3 clients; it has 2"),
        ("MultiKrum", {"num_malicious_nodes": 2}, 6, "MultiKrum's num_malicious_nodes is 2, .* 7 clients; it has 6"),
        ("Bulyan", {"num_malicious_nodes": 4}, 18, "Bulyan's num_malicious_nodes is 4, .* 19 clients; it has 18"),
        (
            "MultiKrum",
            {"num_malicious_nodes": 2, "num_nodes_to_select": 11},
            12,
            "MultiKrum's num_nodes_to_select with 12 clients and 2 malicious is 11; .*, 1 to 10",
        ),
    ],
)
def test_too_small_cohorts_are_refused_before_anything_trains(
    name: str, options: dict[str, Any], clients_: int, said: str
) -> None:
    server = partial(getattr(servers, name), **options)
    with pytest.raises(ConfigError, match=said) as caught:
        replace(BASE, split=IID(clients_), client=Untrained(), server=server).run()
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=said):
        replace(BASE, split=IID(2 * clients_), fraction_train=0.5, client=Untrained(), server=server).run()


@pytest.mark.parametrize(
    ("name", "clients_", "options"),
    [
        ("Krum", 7, {"num_malicious_nodes": 2}),
        ("MultiKrum", 7, {"num_malicious_nodes": 2, "num_nodes_to_select": 5}),
        ("Bulyan", 11, {"num_malicious_nodes": 2}),
    ],
)
def test_a_round_left_with_too_few_clients_does_not_change_the_model(
    name: str, clients_: int, options: dict[str, Any]
) -> None:
    """The cohort is just large enough; in round 2 a client fails and is excluded."""

    class Fails(clients.SGD):
        def train(self, ctx: clients.Context) -> Array:
            weights = ctx.fit()
            if ctx.round == 2:
                weights[ctx.partition_ids == 3] = np.nan
            return weights

    server = partial(getattr(servers, name), **options)
    experiment = replace(BASE, split=IID(clients_), client=Fails(), server=server, rounds=3, on_failure="exclude")
    loss = experiment.run().history["test_loss"]
    assert loss[1] < loss[0]
    assert loss[2] == loss[1]
    assert loss[3] < loss[2]


def test_multi_krum_never_averages_malicious_updates_for_lack_of_others() -> None:
    """Where a round lost clients, fewer are selected."""
    rows = np.concatenate([RNG.normal(size=(5, 3)), np.full((2, 3), 1e6)])
    server = servers.MultiKrum(num_malicious_nodes=2, num_nodes_to_select=6)
    sent(server, np.zeros(3))
    np.testing.assert_allclose(combined(server.aggregator(), rows, np.ones(7, np.intp)), rows[:5].mean(axis=0))


@pytest.mark.parametrize("seed", [0, 1])
def test_qfedavg_spreads_the_loss_more_evenly(seed: int) -> None:
    """The paper's claim: at the same mean loss over clients, less variance among them."""
    base = replace(BASE, split=Dirichlet(20, alpha=0.3), rounds=150, fraction_evaluate=1.0, seed=seed)
    spread = []
    for q in (0.0, 0.5):
        clients = replace(base, server=partial(servers.QFedAvg, q=q)).run().clients
        rounds = clients.groupby("round")["loss"].agg(["mean", "std"])
        spread.append(rounds[rounds["mean"] <= 1.6]["std"].iloc[0])
    assert spread[1] < 0.9 * spread[0]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("FedAvgM", {"server_momentum": 1.0}, "FedAvgM's server_momentum is 1.0"),
        ("FedAdam", {"beta_2": -0.1}, "FedAdam's beta_2 is -0.1"),
        ("FedYogi", {"eta": 0.0}, "FedYogi's eta is 0.0"),
        ("FedAdagrad", {"tau": float("nan")}, "FedAdagrad's tau is nan"),
        ("FedTrimmedAvg", {"beta": 0.5}, "FedTrimmedAvg's beta is 0.5"),
        ("Krum", {"num_malicious_nodes": -1}, "Krum's num_malicious_nodes is -1"),
        ("MultiKrum", {"num_nodes_to_select": 0}, "MultiKrum's num_nodes_to_select is 0"),
        ("RFA", {"iterations": 0}, "RFA's iterations is 0"),
        ("CenteredClipping", {"tau": "big"}, "CenteredClipping's tau is 'big'"),
        ("QFedAvg", {"q": -1}, "QFedAvg's q is -1"),
        ("FedExP", {"epsilon": -1}, "FedExP's epsilon is -1"),
        ("FedAdam", {"beta2": 0.9}, "FedAdam has no option 'beta2'"),
    ],
)
def test_bad_options_are_one_sentence(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(BASE, server=partial(getattr(servers, name), **options)).run()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_has_the_experiments_settings_unless_it_has_its_own() -> None:
    """And waits for one client, where Flower's own wait for two."""
    experiment = replace(
        BASE, client=clients.SCAFFOLD(), fraction_train=0.25, fraction_evaluate=0.75, seed=9, min_clients=2
    )
    hooks = ServerHooks(experiment.client, MLP((3, 4, 2)), 10, 9)
    made: Any = make_strategy(experiment, hooks)
    least = ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes")
    assert type(made) is servers.FedAvg
    assert made.server_hooks is hooks
    assert (made.fraction_train, made.fraction_evaluate, made.seed, made.min_clients) == (0.25, 0.75, 9, 2)
    assert [getattr(made, name) for name in least] == [1, 1, 1]
    own = partial(servers.FedAdam, seed=4, fraction_train=0.5, min_clients=3, eta=0.5)
    made = make_strategy(replace(experiment, server=own), hooks, 4)
    assert (made.fraction_train, made.fraction_evaluate, made.seed, made.min_clients) == (0.5, 0.75, 4, 3)
    flowers = replace(experiment, client=clients.SGD(), min_clients=1, server=partial(stock.FedAdam, min_train_nodes=3))
    made = make_strategy(flowers, hooks)
    assert (made.fraction_train, made.fraction_evaluate) == (0.25, 0.75)
    assert [getattr(made, name) for name in least] == [3, 1, 1]
    with pytest.raises(ConfigError, match="min_clients is 2; allowed with the server FedAdam: 1"):
        make_strategy(replace(flowers, min_clients=2))


@pytest.mark.parametrize("error", [TypeError, ValueError])
def test_a_server_that_refuses_to_be_made_is_named(error: type[Exception]) -> None:
    class Refuses(servers.FedAvg):
        def __init__(self, **options: Any) -> None:
            raise error("not today")

    with pytest.raises(ConfigError, match="server Refuses cannot be made: not today"):
        make_strategy(replace(BASE, server=Refuses))


def test_a_server_half_needs_a_server_that_carries_it() -> None:
    with pytest.raises(ConfigError, match="the server FedAdam does not call the server hooks of SCAFFOLD"):
        replace(BASE, client=clients.SCAFFOLD(), server=stock.FedAdam).run()


def test_fedadam_calls_scaffolds_server_hooks() -> None:
    """In round 1 all control variates are zero, so that SCAFFOLD is SGD; from round 2 on they are not."""
    for rounds in (1, 2):
        base = replace(BASE, server=servers.FedAdam, rounds=rounds)
        plain, ours = (replace(base, client=c).run().weights["W1"] for c in (clients.SGD(), clients.SCAFFOLD()))
        assert np.allclose(plain, ours, rtol=1e-12, atol=1e-14) == (rounds == 1)


@pytest.mark.parametrize("name", [name for name in servers.__all__ if name != "FedAvg"])
def test_groups_need_a_server_that_averages(name: str) -> None:
    """Others combine or move one model; they are refused when the strategy is made, before the run."""
    server = partial(getattr(servers, name), **TWINS.get(name, {}))
    experiment = replace(BASE, client=clients.IFCA(), server=server)
    with pytest.raises(ConfigError, match=f"client IFCA averages in groups, which the server {name} does not"):
        make_strategy(experiment)


def test_groups_under_a_server_of_ones_own() -> None:
    class Counting(servers.FedAvg):
        def configure_train(self, server_round: int, *rest: Any) -> Any:
            return super().configure_train(server_round, *rest)

    class Halfway(servers.FedAvg):
        def step(self, server_round: int, weights: Array, combined: Array) -> Array:
            return (weights + combined) / 2

    class Undeclared(clients.SGD):
        def weigh(self, num_examples: Array, up: Any) -> Array:
            return np.stack([num_examples, num_examples], axis=1)

    base = replace(BASE, client=clients.IFCA(), rounds=2)
    assert same(replace(base, server=Counting).run(), base.run())
    with pytest.raises(ConfigError, match="client IFCA averages in groups, which the server Halfway does not"):
        make_strategy(replace(base, server=Halfway))
    with pytest.raises(ConfigError, match="client Undeclared averages in groups, which the server FedExP does not"):
        replace(base, client=Undeclared(), server=servers.FedExP).run()


def test_ifcas_models_are_the_means_of_their_clusters() -> None:
    """Each model of round 2 is the mean, by examples, of the clients that chose it in round 1."""

    class Noted(clients.IFCA):
        def train(self, ctx: clients.Context) -> Array:
            weights = super().train(ctx)
            models = np.concatenate([ctx.global_weights[None], ctx.down["others"]])
            NOTES.append((ctx.round, models, ctx.partition_ids, ctx.num_examples, weights, ctx.up["cluster"]))
            return weights

    notes, _ = played(replace(BASE, split=Dirichlet(13, alpha=0.1), client=Noted(clusters=3), rounds=2))
    (_, old, _, n, x, clusters), (_, new, *_) = notes
    assert clusters.sum(axis=0).astype(bool).sum() > 1
    for k in range(3):
        rows = clusters[:, k].astype(bool)
        expected = n[rows] @ x[rows] / n[rows].sum() if rows.any() else old[k]
        np.testing.assert_allclose(new[k], expected, rtol=1e-10, atol=1e-12)


# The mean.


@given(
    arrays(
        np.float32, st.tuples(st.integers(1, 9), st.integers(1, 5)), elements=st.floats(-(2.0**99), 2.0**99, width=32)
    ),
    st.integers(1, 8),
)
def test_a_mean_is_the_same_however_its_terms_are_gathered(rows: Array, cut: int) -> None:
    weights = np.arange(1, len(rows) + 1) ** 3
    whole, parts = RunningMean(), RunningMean()
    whole.add(rows, weights)
    for block in (slice(0, cut), slice(cut, None)):
        parts.add(rows[block], weights[block])
    np.testing.assert_array_equal(parts.value(), whole.value())
    assert parts.totals == whole.totals == weights.sum()
    assert whole.value().dtype == np.float32
    expected = (weights @ rows.astype(np.float64)) / weights.sum()
    bound = np.abs(rows.astype(np.float64)).max() * 1e-12
    np.testing.assert_allclose(whole.value(), expected, rtol=1e-7, atol=max(bound, 1e-40))


def test_a_mean_is_summed_in_float64() -> None:
    """A million and a hundred thousandth, many times: in float32 the small terms would vanish."""
    mean = RunningMean()
    mean.add(np.array([[1e6], *[[1e-5]] * 999], dtype=np.float32), np.ones(1000))
    mean.add(np.array([[-1e6]], dtype=np.float32), np.ones(1))
    assert mean.value()[0] == pytest.approx(999e-5 / 1001, rel=1e-5)


def test_means_keep_the_shape_of_their_terms() -> None:
    mean = RunningMean()
    mean.add(np.zeros((0, 2, 3), np.int8), np.zeros(0))
    mean.add(np.arange(12, dtype=np.int8).reshape(2, 2, 3), np.array([1.0, 3.0]))
    np.testing.assert_allclose(mean.value(), np.arange(6).reshape(2, 3) + 4.5)
    assert mean.value().dtype == np.float64
    one_group = RunningMean()
    one_group.add(np.ones((2, 3)), np.ones((2, 1)))
    assert one_group.value().shape == (1, 3)


def test_grouped_means_are_means_of_the_groups() -> None:
    rows, factors = RNG.normal(size=(6, 4)), np.array([[2, 0], [0, 3], [1, 0], [0, 0], [0, 1], [5, 0]])
    mean = RunningMean()
    mean.add(rows[:2], factors[:2])
    mean.add(rows[2:], factors[2:])
    np.testing.assert_allclose(mean.value(), (factors.T @ rows) / factors.sum(axis=0)[:, None])
    empty = RunningMean()
    empty.add(rows, np.eye(2)[np.zeros(6, int)])
    assert np.isnan(empty.value()[1]).all()
    scalars = RunningMean()
    scalars.add(np.array([1, 2, 4]), np.array([1.0, 1, 2]))
    assert scalars.value() == pytest.approx(11 / 4)


def test_bulyan_of_an_even_selection_uses_the_mean_of_the_two_middle_values() -> None:
    rows = RNG.normal(size=(8, 50))  # selects 6
    server = servers.Bulyan(num_malicious_nodes=1)
    sent(server, np.zeros(50))
    expected = bulyan(1)(1, np.zeros(50), rows, np.ones(8), np.ones(8))
    np.testing.assert_allclose(combined(server.aggregator(), rows, np.ones(8, np.intp)), expected)


@pytest.mark.parametrize("parameters", [1, 4, 8, 10])
def test_blocks_of_columns_are_all_columns(parameters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim.updates.aggregators.COLUMN_BYTES", 5 * 4 * 8)  # four columns
    rows = RNG.normal(size=(5, parameters))
    blocks = list(columns(rows))
    np.testing.assert_array_equal(np.concatenate([values for _, values in blocks]).T, rows)
    assert [place.start for place, _ in blocks] == list(range(0, parameters, 4))


@pytest.mark.parametrize("name", TWINS)
def test_defaults_are_flowers(name: str) -> None:
    def defaults(cls: type) -> dict[str, Any]:
        parameters = inspect.signature(cls).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not p.empty}

    ours, theirs = (defaults(getattr(module, name)) for module in (servers, stock))
    shared = ours.keys() & theirs.keys()
    assert len(shared) >= len(set(TWINS[name]) - {"client_learning_rate"})
    assert {option: ours[option] for option in shared} == {option: theirs[option] for option in shared}


@pytest.mark.parametrize(
    ("name", "allowed", "refused"),
    [
        ("FedAvgM", {"server_momentum": 0, "server_learning_rate": 1e-9}, {"server_learning_rate": 0}),
        ("FedAvgM", {}, {"server_momentum": -0.1}),
        ("FedAdam", {"beta_1": 0, "beta_2": 0}, {"beta_1": 1.0}),
        ("FedYogi", {}, {"beta_2": 1.0}),
        ("FedAdam", {}, {"tau": 0}),
        ("FedTrimmedAvg", {"beta": 0}, {"beta": -0.1}),
        ("RFA", {"iterations": 1, "smoothing": 1e-300}, {"smoothing": 0}),
        ("CenteredClipping", {"iterations": 1, "tau": 1e-300}, {"tau": 0}),
        ("CenteredClipping", {}, {"iterations": 0}),
        ("FedExP", {"epsilon": 0}, {"epsilon": float("inf")}),
        ("QFedAvg", {"q": 0, "client_learning_rate": 0.1}, {"client_learning_rate": 0}),
        ("MultiKrum", {"num_malicious_nodes": 0, "num_nodes_to_select": 1}, {"num_nodes_to_select": 1.5}),
    ],
)
def test_ends_of_ranges(name: str, allowed: dict[str, Any], refused: dict[str, Any]) -> None:
    lr = {"client_learning_rate": 0.1} if name == "QFedAvg" else {}
    cls = getattr(servers, name)
    cls(**lr | allowed)
    [(option, value)] = refused.items()
    with pytest.raises(ConfigError, match=f"^{name}'s {option} is {value}; allowed: "):
        cls(**lr | refused)


def test_krum_needs_as_many_clients_as_its_rule_or_as_asked_for() -> None:
    assert servers.Krum(num_malicious_nodes=2).min_clients == 7
    assert servers.Krum(num_malicious_nodes=2, min_clients=9).min_clients == 9
    assert servers.Bulyan(num_malicious_nodes=2).min_clients == 11


def test_fedexp_stays_where_no_client_moved() -> None:
    server = servers.FedExP(epsilon=0)
    old = np.array([1.0, -2.0, 3.0])
    sent(server, old)
    mean = combined(server.aggregator(), np.tile(old, (5, 1)), np.arange(1, 6))
    np.testing.assert_array_equal(server.step(1, old, mean), old)


def test_qfedavg_takes_the_clients_step_size_and_losses_of_zero() -> None:
    with pytest.raises(ConfigError, match="client_learning_rate is missing, and no client strategy has an lr"):
        servers.QFedAvg()
    hooks = clients.ServerHooks(clients.SGD(lr=0.25), MLP((3, 2)), 5, 0)
    assert servers.QFedAvg(server_hooks=hooks).client_learning_rate == 0.25
    server = servers.QFedAvg(q=0.5, client_learning_rate=0.1)
    sent(server, np.zeros(3))
    rule = server.aggregator()
    rule.add(Update(np.arange(2), np.ones(2, int), RNG.normal(size=(2, 3)), np.zeros(2)), np.ones(2))
    assert np.isfinite(rule.result()).all()
