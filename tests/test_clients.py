"""Every client strategy: the checks for extenders, an identity or a published behaviour, and bad values."""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
import tracemalloc
from dataclasses import replace
from functools import partial
from typing import Any

import flwr.serverapp.strategy as stock
import numpy as np
import pytest
from helpers import same
from numpy.typing import NDArray

from fedsim import Experiment, clients, servers
from fedsim.clients import SGD
from fedsim.clients.local_round import new_client_state, run_local_round
from fedsim.clients.server_hooks import ServerHooks
from fedsim.clients.task import Task
from fedsim.data import Dataset
from fedsim.engines.client_state import ClientState
from fedsim.errors import ConfigError
from fedsim.models import MLP, named_arrays
from fedsim.splits import IID, CountedSplit, Dirichlet, Partition, Shards, Split, TimeOrdered
from fedsim.testing import CHECKS, check_client_strategy

STRATEGIES = [
    cls
    for cls in (getattr(clients, name) for name in clients.__all__)
    if isinstance(cls, type) and issubclass(cls, SGD)
]
RNG = np.random.default_rng(0)


def weights_of(result: Any) -> NDArray[Any]:
    return np.concatenate([w.ravel() for w in result.weights.values()])


@pytest.mark.parametrize("cls", STRATEGIES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("base", [{}, {"momentum": 0.5, "weight_decay": 0.01, "lr_decay": 0.9, "epochs": 2}], ids=str)
def test_every_strategy_passes_the_checks(cls: type[SGD], base: dict[str, Any]) -> None:
    options = {"lr": 0.05, **base} if base else {}
    assert len(check_client_strategy(cls(**options))) == len(CHECKS)


# Oracles 3 and 4 of the design: identities with centralised gradient descent and with FedAvg.

FULL = Experiment(split=IID(6), hidden=(9,), activation="tanh", dtype="float64", rounds=5)


def centralised(experiment: Experiment) -> NDArray[Any]:
    """Gradient descent on all examples, in a plain loop."""
    data = experiment.load_data()
    model = experiment.make_model(data)
    assert isinstance(experiment.client, SGD)
    w = weights_of(replace(experiment, rounds=1, client=SGD(lr=1e-300)).run())  # the initial weights
    x, y = data.x_train.astype(model.dtype)[None], data.y_train[None]
    for _ in range(experiment.rounds):
        w = w - experiment.client.lr * model.loss_and_gradient(w[None], x, y)[1][0]
    return w


#: With one local step on the full batch these step along the global gradient, whatever the clients.
FIRST_ORDER: list[SGD] = [
    clients.SGD(batch_size=None),
    clients.FedSGD(),
    clients.FedProx(batch_size=None, proximal_mu=3.0),  # the pull is zero where a round starts
    clients.FedNova(batch_size=None),
    clients.SCAFFOLD(batch_size=None),
    clients.SCAFFOLD(batch_size=None, option=1),
    clients.Ditto(batch_size=None),
    clients.FineTune(batch_size=None),
    clients.APFL(batch_size=None),
    clients.IFCA(batch_size=None, clusters=1),
    clients.FedRS(batch_size=None, alpha=1.0),
    clients.FedSAM(batch_size=None, rho=0.0),
    clients.MOON(batch_size=None),  # contrast has no slope where the model is the global one
    clients.ClippedSGD(batch_size=None, max_norm=1e9),
    clients.MimeLite(batch_size=None, beta=0.0),
]


@pytest.mark.parametrize("strategy", FIRST_ORDER, ids=str)
@pytest.mark.parametrize("split", [IID(6), Dirichlet(6, alpha=0.5), Shards(6, per_client=2)], ids=str)
def test_one_full_step_is_centralised_gradient_descent(strategy: SGD, split: Split) -> None:
    if isinstance(strategy, clients.MOON):
        split = IID(1)  # on several clients the last local model is not the global one
    experiment = replace(FULL, split=split, client=strategy)
    np.testing.assert_allclose(weights_of(experiment.run()), centralised(experiment), rtol=1e-12, atol=1e-13)


class Identical(CountedSplit):
    """Every client holds the same examples, all of them."""

    def assign(self, labels: NDArray[Any], rng: np.random.Generator) -> Partition:
        n = len(labels)
        return Partition(np.tile(np.arange(n), self.num_clients), np.arange(self.num_clients + 1) * n)


@pytest.mark.parametrize(
    "strategy",
    [clients.SCAFFOLD(), clients.SCAFFOLD(option=1), clients.FedNova(), clients.FedNova(momentum=0.9, lr=0.02)],
    ids=str,
)
def test_on_identical_clients_it_is_fedavg(strategy: SGD) -> None:
    """With full batches, so that the clients take identical steps too."""
    local: dict[str, Any] = {"batch_size": None, "epochs": 4}
    ours = replace(FULL, split=Identical(3), client=replace(strategy, **local), rounds=4).run()
    fedavg = replace(
        FULL, split=Identical(3), client=SGD(**local, lr=strategy.lr, momentum=strategy.momentum), rounds=4
    )
    np.testing.assert_allclose(weights_of(ours), weights_of(fedavg.run()), rtol=1e-10, atol=1e-12)


def test_fednova_with_equal_steps_is_fedavg_and_with_unequal_ones_is_not() -> None:
    base = replace(FULL, client=SGD(epochs=3))
    nova = clients.FedNova(epochs=3)
    even = Shards(6, per_client=2)
    equal = [weights_of(replace(base, split=even, client=c, dataset=trimmed(60)).run()) for c in (base.client, nova)]
    np.testing.assert_allclose(equal[0], equal[1], rtol=1e-10, atol=1e-12)
    data = trimmed(100)
    split = Sized(3, sizes=(70, 20, 10))
    unequal = [weights_of(replace(base, split=split, client=c, dataset=data).run()) for c in (base.client, nova)]
    assert np.abs(unequal[0] - unequal[1]).max() > 1e-3


def trimmed(n: int) -> Dataset:
    digits = FULL.load_data()
    return replace(digits, x_train=digits.x_train[:n], y_train=digits.y_train[:n])


class Sized(CountedSplit):
    """Consecutive shards of given sizes."""

    sizes: tuple[int, ...] = ()

    def __init__(self, num_clients: int, sizes: tuple[int, ...]) -> None:
        super().__init__(num_clients)
        object.__setattr__(self, "sizes", sizes)

    def assign(self, labels: NDArray[Any], rng: np.random.Generator) -> Partition:
        return Partition(np.arange(sum(self.sizes)), np.concatenate([[0], np.cumsum(self.sizes)]))


def test_data_parallel_sgd_is_minibatch_sgd_on_the_union_of_the_batches() -> None:
    """The article's distributed learning: gradients of all workers' batches, averaged, one step."""
    experiment = replace(FULL, client=clients.FedSGD(batch_size=10, lr=0.2), dataset=trimmed(60), rounds=1)
    data = experiment.load_data()
    start = weights_of(replace(experiment, client=clients.FedSGD(lr=1e-300)).run())
    partition = experiment.federate(data).partition
    model = experiment.make_model(data)
    assert (partition.sizes == 10).all()  # a worker's batch is its whole shard
    _, grad = model.loss_and_gradient(start[None], data.x_train[None].astype(float), data.y_train[None])
    np.testing.assert_allclose(weights_of(experiment.run()), start - 0.2 * grad[0], rtol=1e-12, atol=1e-13)


# Clients whose loss is quadratic: optima and FedAvg's fixed point are known in closed form.


class Quadratics:
    """Linear regression on one-hot labels: client k's loss is ``1/2 (w - w_k)' H_k (w - w_k)`` plus a constant."""

    def __init__(self) -> None:
        rng = np.random.default_rng(2)
        self.sizes = (30, 20, 10)
        total = sum(self.sizes)
        scale = np.repeat([0.3, 1.0, 2.0], self.sizes)[:, None]  # clients see different ranges, and labels
        x = scale * rng.normal(size=(total, 3))
        y = (np.repeat([0, 1, 0], self.sizes) + (rng.random(total) < 0.3)) % 2
        self.data = Dataset("quadratic", x, y, x[:5], y[:5], 2)
        self.model = MLP((3, 2), loss="mse", dtype="float64")
        cuts = np.cumsum((0, *self.sizes))
        self.hessians, self.slopes = [], []
        for a, b in itertools.pairwise(cuts):
            zero, eye = np.zeros(self.model.num_parameters), np.eye(self.model.num_parameters)
            slope = self.model.loss_and_gradient(zero[None], x[None, a:b], y[None, a:b])[1][0]
            columns = [self.model.loss_and_gradient(e[None], x[None, a:b], y[None, a:b])[1][0] - slope for e in eye]
            self.hessians.append(np.array(columns).T)
            self.slopes.append(slope)
        self.shares = np.array(self.sizes) / total
        self.optimum = np.linalg.solve(self._mean(self.hessians), -self._mean(self.slopes))

    def _mean(self, parts: list[NDArray[Any]]) -> NDArray[Any]:
        return sum((p * part for p, part in zip(self.shares, parts, strict=True)), np.zeros_like(parts[0]))

    def fedavg_limit(self, lr: float, steps: int) -> NDArray[Any]:
        """Where FedAvg with full-batch local steps stays: ``sum p_k (I - (I - lr H_k)^steps) (w - w_k) = 0``."""
        left, right = [], []
        for hessian, slope in zip(self.hessians, self.slopes, strict=True):
            eye = np.eye(len(slope))
            shrunk = np.linalg.matrix_power(eye - lr * hessian, steps)
            local = np.linalg.solve(hessian, -slope)
            left.append(eye - shrunk)
            right.append((eye - shrunk) @ local)
        return np.asarray(np.linalg.solve(self._mean(left), self._mean(right)))

    def run(self, client: SGD, rounds: int) -> NDArray[Any]:
        experiment = Experiment(
            dataset=self.data,
            split=Sized(3, self.sizes),
            hidden=(),
            loss="mse",
            dtype="float64",
            client=client,
            rounds=rounds,
        )
        return weights_of(experiment.run())


QUADRATIC = Quadratics()


def test_fedavg_with_local_steps_stops_short_of_the_optimum() -> None:
    limit = QUADRATIC.fedavg_limit(0.1, 10)
    found = QUADRATIC.run(SGD(lr=0.1, epochs=10, batch_size=None), rounds=1500)
    np.testing.assert_allclose(found, limit, atol=1e-9)
    assert np.linalg.norm(limit - QUADRATIC.optimum) > 0.05
    one_step = QUADRATIC.fedavg_limit(0.1, 1)
    np.testing.assert_allclose(one_step, QUADRATIC.optimum, atol=1e-9)


@pytest.mark.parametrize(
    ("client", "rounds"),
    [
        (clients.SCAFFOLD(lr=0.1, epochs=10, batch_size=None), 2000),
        pytest.param(clients.SCAFFOLD(lr=0.1, epochs=10, batch_size=None, option=1), 4000, marks=pytest.mark.slow),
        pytest.param(clients.FedDyn(lr=0.1, epochs=10, batch_size=None, alpha=0.5), 3000, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_scaffold_and_feddyn_reach_it(client: SGD, rounds: int) -> None:
    np.testing.assert_allclose(QUADRATIC.run(client, rounds), QUADRATIC.optimum, atol=1e-7)


@pytest.mark.parametrize(("seed", "accuracy"), [(0, 0.84), (1, 0.89), (2, 0.87)])
def test_scaffold_learns_where_clients_see_a_window_at_a_time(seed: int, accuracy: float) -> None:
    """With a share of all windows' examples c lags behind the c_i, and accuracy is 0.22, 0.32 and 0.38."""
    split = TimeOrdered(Dirichlet(10, alpha=0.1), windows=5, rounds_per_window=8)
    found = Experiment(hidden=(16,), client=clients.SCAFFOLD(), rounds=40, seed=seed, split=split).run()
    assert found.final_accuracy == pytest.approx(accuracy, abs=0.05)


def test_scaffolds_controls_are_the_clients_gradients_in_the_end() -> None:
    """c is the mean of the c_i, and at the optimum each c_i is its client's gradient there."""
    task_state: dict[str, Any] = {}

    class Spy(clients.SCAFFOLD):
        def server_step(self, ctx: clients.ServerContext) -> NDArray[Any]:
            new = super().server_step(ctx)
            task_state["control"] = ctx.state["control"]
            return new

    QUADRATIC.run(Spy(lr=0.1, epochs=10, batch_size=None), 2000)
    np.testing.assert_allclose(task_state["control"], 0, atol=1e-7)


def test_fednova_mends_what_unequal_steps_do() -> None:
    """With one epoch in batches of 10 clients take 3, 2 and 1 steps; FedAvg then weighs them wrongly."""
    avg, nova = (QUADRATIC.run(cls(lr=0.01, batch_size=10), 3000) for cls in (SGD, clients.FedNova))
    assert np.linalg.norm(nova - QUADRATIC.optimum) < 0.3 * np.linalg.norm(avg - QUADRATIC.optimum)


# One strategy's formula each, against a plain transcription of it.

NET = MLP((6, 5, 3), "tanh", dtype="float64")
X = RNG.normal(size=(40, 6))
Y = RNG.integers(0, 3, 40)
START = NET.init(RNG)
HELD = Partition(np.arange(40), np.array([0, 25, 40]))


def one_step(strategy: SGD, w: NDArray[Any] = START, state: dict[str, Any] | None = None, **down: Any) -> NDArray[Any]:
    """Client 0's weights after one full-batch step of size 1, as the step itself."""
    strategy = replace(strategy, lr=1.0, batch_size=None, epochs=1)
    task = Task(NET, strategy, X, Y, HELD, w, 1, 0, down)
    ids = np.array([0])
    return np.asarray(w - run_local_round(task, ids, state or new_client_state(task, ids)).weights[0])


def grad(w: NDArray[Any], rows: slice = slice(0, 25), **options: Any) -> NDArray[Any]:
    return np.asarray(NET.loss_and_gradient(w[None], X[None, rows], Y[None, rows], **options)[1][0])


def numeric(loss: Any, w: NDArray[Any]) -> NDArray[Any]:
    """Central differences."""
    eye = 1e-6 * np.eye(len(w))
    return np.array([(loss(w + e) - loss(w - e)) / 2e-6 for e in eye])


def test_fedsam_steps_along_the_gradient_of_the_worst_point_nearby() -> None:
    g = grad(START)
    np.testing.assert_allclose(one_step(clients.FedSAM(rho=0.3)), grad(START + 0.3 * g / np.linalg.norm(g)), atol=1e-12)


def test_clipping_shortens_only_what_is_too_long() -> None:
    g = grad(START)
    norm = float(np.linalg.norm(g))
    np.testing.assert_allclose(one_step(clients.ClippedSGD(max_norm=norm / 3)), g / 3, atol=1e-12)
    np.testing.assert_allclose(one_step(clients.ClippedSGD(max_norm=3 * norm)), g, atol=1e-12)


def scores(w: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(NET.scores(w[None], X[None, :25])[0])


def softmax_loss(z: NDArray[Any]) -> float:
    return float(np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(25), Y[:25]]))


def test_fedlc_is_the_gradient_of_its_calibrated_loss() -> None:
    counts = np.bincount(Y[:25], minlength=3)
    expected = numeric(lambda w: softmax_loss(scores(w) - 2.0 * counts**-0.25), START)
    np.testing.assert_allclose(one_step(clients.FedLC(tau=2.0)), expected, atol=1e-8)


@pytest.mark.parametrize("strategy", [clients.FedLC(), clients.FedRS(alpha=0.0)], ids=str)
def test_label_skew_losses_leave_absent_labels_alone(strategy: SGD, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "Y", np.where(Y == 2, 0, Y))  # no client has label 2
    moved = named_arrays(NET, one_step(strategy))
    assert np.all(moved["W2"][:, 2] == 0)
    assert np.all(moved["b2"][2] == 0)
    assert np.any(named_arrays(NET, one_step(SGD()))["W2"][:, 2] != 0)


def test_fedrs_is_the_gradient_of_its_restricted_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "Y", np.where(Y == 2, 0, Y))
    expected = numeric(lambda w: softmax_loss(scores(w) * np.array([1, 1, 0.4])), START)
    np.testing.assert_allclose(one_step(clients.FedRS(alpha=0.4)), expected, atol=1e-8)


@pytest.mark.parametrize("strategy", [clients.FedLC(), clients.FedRS()], ids=str)
def test_softmax_strategies_refuse_other_losses(strategy: SGD) -> None:
    with pytest.raises(ConfigError, match="which changes the softmax, is 'mse'"):
        replace(FULL, loss="mse", client=strategy).run()


def test_moon_is_the_gradient_of_its_contrastive_loss() -> None:
    last = START + 0.3 * RNG.normal(size=START.shape)
    glob = START + 0.3 * RNG.normal(size=START.shape)

    def hidden(w: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(NET.representation(w[None], X[None, :25])[0])

    def cosine(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
        return np.asarray((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))

    def loss(w: NDArray[Any]) -> float:
        near, far = (np.exp(cosine(hidden(w), hidden(other)) / 0.5) for other in (glob, last))
        return softmax_loss(scores(w)) + 2.0 * float(np.mean(-np.log(near / (near + far))))

    class From(clients.MOON):  # START, while the server's weights are others
        def train(self, ctx: clients.Context) -> NDArray[Any]:
            return np.asarray(glob - (START - ctx.fit(START)))

    found = one_step(From(mu=2.0), glob, {"last": last[None].copy()})
    np.testing.assert_allclose(found, numeric(loss, START), atol=1e-7)


def test_moon_needs_a_hidden_layer() -> None:
    with pytest.raises(ConfigError, match="so the MLP has no hidden representation; allowed: at least one layer"):
        replace(FULL, hidden=(), client=clients.MOON()).run()


def test_pfedme_steps_towards_the_proximal_point() -> None:
    """With many inner steps lam (w - theta) is the Moreau envelope's gradient, that is F's at theta."""
    step = one_step(clients.PFedMe(lam=5.0, personal_lr=0.1, inner_steps=400))
    np.testing.assert_allclose(grad(START - step / 5.0), step, atol=1e-9)


def test_perfedavg_takes_the_gradient_after_a_step_on_the_other_half() -> None:
    class InOrder(clients.PerFedAvg):
        def gradient(self, weights: Any, x: Any, y: Any, ctx: Any) -> Any:
            return super().gradient(weights, X[None, :25], Y[None, :25], ctx)

    after = START - 0.3 * grad(START, slice(0, 13))
    np.testing.assert_allclose(one_step(InOrder(inner_lr=0.3)), grad(after, slice(13, 25)), atol=1e-12)


def test_mimelite_mixes_the_servers_momentum_in() -> None:
    m = RNG.normal(size=START.shape)
    np.testing.assert_allclose(one_step(clients.MimeLite(beta=0.7), m=m), 0.3 * grad(START) + 0.7 * m, atol=1e-12)


def test_apfl_steps_the_local_model_through_the_mixture() -> None:
    strategy = clients.APFL(alpha=0.3, adaptive=True, lr=1.0, batch_size=None)
    local = START + RNG.normal(size=START.shape)
    task = Task(NET, strategy, X, Y, HELD, START, 1, 0)
    state = {"local": local[None].copy(), "alpha": np.array([[0.3]])}
    update = run_local_round(task, np.array([0]), state)
    alpha = np.clip(0.3 - (local - START) @ grad(0.3 * local + 0.7 * START), 0, 1)
    assert update.state["alpha"][0, 0] == pytest.approx(alpha)
    g = grad(alpha * local + (1 - alpha) * START)
    np.testing.assert_allclose(update.state["local"][0], local - alpha * g, atol=1e-12)
    np.testing.assert_allclose(update.weights[0], START - grad(START), atol=1e-12)


def test_feddyns_state_is_the_gradient_of_a_solved_local_problem() -> None:
    strategy = clients.FedDyn(lr=0.3, alpha=1.0, batch_size=None, epochs=3000)
    task = Task(NET, strategy, X, Y, HELD, START, 1, 0)
    update = run_local_round(task, np.array([0]), new_client_state(task, np.array([0])))
    np.testing.assert_allclose(update.state["gradient"][0], grad(update.weights[0]), atol=1e-8)


def test_momentum_enters_effective_steps_as_fednova_says() -> None:
    """With a constant gradient the update is lr * effective_steps * gradient."""

    class Constant(clients.SCAFFOLD):
        def gradient(self, weights: Any, x: Any, y: Any, ctx: Any) -> Any:
            return np.zeros(len(weights)), np.ones_like(weights)

    strategy = Constant(momentum=0.8, epochs=3, batch_size=10, lr=0.1)
    task = Task(NET, strategy, X, Y, HELD, START, 1, 0, {"control": np.zeros_like(START)})
    update = run_local_round(task, np.arange(2), new_client_state(task, np.arange(2)))
    np.testing.assert_allclose(update.state["control"], 1.0, rtol=1e-10)  # the mean gradient along the path


def test_ditto_with_no_pull_trains_alone_and_with_a_strong_one_stays() -> None:
    free = replace(FULL, fraction_evaluate=1.0, rounds=3, split=Shards(6, per_client=2))
    alone = replace(free, client=clients.LocalOnly(batch_size=None, epochs=5)).run()
    ditto = replace(free, client=clients.Ditto(batch_size=None, epochs=5, lam=0.0)).run()
    np.testing.assert_allclose(ditto.clients["loss"], alone.clients["loss"], rtol=1e-9)
    held = replace(free, client=clients.Ditto(lr=0.001, lam=999.0, batch_size=None, epochs=200)).run()
    plain = replace(free, client=clients.SGD(lr=0.001, batch_size=None, epochs=200)).run()
    assert held.clients["loss"].iloc[-6:].mean() == pytest.approx(plain.clients["loss"].iloc[-6:].mean(), rel=0.1)


@pytest.mark.parametrize(
    ("strategy", "kept", "shared"),
    [
        (clients.LocalOnly(), {1, 2, 3}, set()),
        (clients.FedPer(), {3}, {1, 2}),
        (clients.FedPer(personal_layers=2), {2, 3}, {1}),
        (clients.FedRep(head_epochs=2), {3}, {1, 2}),
        (clients.LGFedAvg(), {1, 2}, {3}),
        (clients.LGFedAvg(global_layers=2), {1}, {2, 3}),
    ],
    ids=str,
)
def test_layers_are_private_or_shared(strategy: SGD, kept: set[int], shared: set[int]) -> None:
    base = replace(FULL, hidden=(9, 7), fraction_evaluate=1.0, rounds=2)
    before, after = (replace(base, client=c).run() for c in (replace(strategy, lr=1e-300), strategy))
    for layer in (1, 2, 3):
        moved = not np.array_equal(before.weights[f"W{layer}"], after.weights[f"W{layer}"])
        assert moved == (layer in shared)
    every = replace(base, client=SGD()).run().history
    share = after.history["bytes_up"].iloc[-1] / every["bytes_up"].iloc[-1]
    sizes = {1: 64 * 9 + 9, 2: 9 * 7 + 7, 3: 7 * 10 + 10}
    assert share == pytest.approx(sum(sizes[k] for k in shared) / sum(sizes.values()), abs=0.1)
    assert after.history["bytes_down"].iloc[-1] == 2 * after.history["bytes_up"].iloc[-1]  # to train, to evaluate


@pytest.mark.parametrize(
    ("base", "field"),
    [(clients.FedPer, "personal_layers"), (clients.FedRep, "personal_layers"), (clients.LGFedAvg, "global_layers")],
)
def test_more_layers_than_there_are_is_an_error_of_the_users_own_class(base: Any, field: str) -> None:
    class Own(base):  # type: ignore[misc]
        pass

    with pytest.raises(ConfigError, match=f"^Own's {field} is 4; allowed"):
        Experiment(hidden=(8, 8), client=Own(**{field: 4}), rounds=1).run()


@pytest.mark.parametrize("strategy", [clients.FedPer(personal_layers=2), clients.LGFedAvg(global_layers=2)], ids=str)
def test_some_layer_must_be_shared_and_some_kept(strategy: SGD) -> None:
    with pytest.raises(ConfigError, match="a whole number, 1 to 1"):
        replace(FULL, client=strategy).run()


def test_fedrep_trains_head_and_representation_in_turn() -> None:
    seen: list[list[Any]] = []

    class Spy(clients.FedRep):
        def train(self, ctx: clients.Context) -> NDArray[Any]:
            fit = ctx.fit

            def spy(start: Any = None, *, by: Any = None, groups: Any = None) -> Any:
                seen.append(list(groups))
                out = fit(start, by=by, groups=groups)
                before = ctx.start if start is None else start
                for group in ctx.model.groups:
                    place = ctx.model.layout[group[0]][0]
                    moved = np.any(out[:, place] != before[:, place])
                    assert moved == (group in groups)
                return out

            ctx.fit = spy  # type: ignore[method-assign]
            return super().train(ctx)

    replace(FULL, client=Spy(head_epochs=2), rounds=1, kernel="numpy").run()
    assert seen == [[("W2", "b2")], [("W1", "b1")]]


def test_ifca_finds_clusters() -> None:
    """Two groups of clients whose labels contradict each other: no one model fits, two do (the paper's rotations)."""
    digits = Experiment().load_data()
    half = len(digits.y_train) // 2
    y = np.concatenate([digits.y_train[:half], (digits.y_train[half:] + 5) % 10])
    data = replace(digits, y_train=y)
    n = len(y) // 10
    base = Experiment(dataset=data, split=Sized(10, (n,) * 10), rounds=30, fraction_evaluate=1.0, test_fraction=0.2)
    one, two = (
        [replace(base, client=c, seed=s).run().history["local_accuracy"].iloc[-1] for s in range(3)]
        for c in (SGD(epochs=5), clients.IFCA(epochs=5))
    )
    assert max(one) < 0.75
    assert max(two) > 0.95  # where the models start decides whether two clusters form


def test_fedala_takes_in_what_helps() -> None:
    """Mixing weights stay in [0, 1], are learned for the last layers only, and lower layers come from the server."""
    strategy = clients.FedALA(first_epochs=3, batch_size=None, epochs=2, mixing_lr=50.0)
    task = Task(NET, strategy, X, Y, HELD, START, 1, 0)
    ids = np.arange(2)
    first = run_local_round(task, ids, new_client_state(task, ids))
    assert (first.state["mixing"] == 1).all()
    moved = replace(task, global_weights=START + 0.2 * RNG.normal(size=START.shape), round=2)
    second = run_local_round(moved, ids, dict(first.state))
    mixing = named_arrays(NET, second.state["mixing"])
    assert (mixing["W1"] == 1).all()
    assert mixing["W2"].min() >= 0
    assert 0.01 < np.mean(mixing["W2"] < 1) < 1
    assert second.state["rounds"].ravel().tolist() == [2, 2]


# Hyperparameters of a client's own.


def test_each_client_may_have_its_own_step_size_and_number_of_steps() -> None:
    class Own(SGD):
        def learning_rate(self, ctx: clients.Context) -> NDArray[Any]:
            return np.where(ctx.partition_ids == 0, 0.2, 0.05)

        def local_steps(self, ctx: clients.Context) -> NDArray[Any]:
            return np.where(ctx.partition_ids == 0, 7, 2)

    ids = np.arange(2)
    for kernel in ("numpy", "compiled"):
        mixed = run_local_round(Task(NET, Own(), X, Y, HELD, START, 1, 0, kernel=kernel), ids, {})
        for client, strategy in enumerate((SGD(lr=0.2, steps=7), SGD(lr=0.05, steps=2))):
            alone = run_local_round(
                Task(NET, strategy, X, Y, HELD, START, 1, 0, kernel=kernel), ids[client : client + 1], {}
            )
            assert np.array_equal(mixed.weights[client], alone.weights[0])
            assert mixed.train_loss[client] == alone.train_loss[0]


@pytest.mark.parametrize("kernel", ["numpy", "compiled"])
def test_steps_are_epochs_cut_anywhere(kernel: str) -> None:
    """A whole number of epochs in steps is those epochs; one step more is one batch of the next shuffle."""
    base = Task(NET, SGD(epochs=2, batch_size=10), X, Y, HELD, START, 1, 0, kernel=kernel)
    first = np.array([0])  # 25 examples: batches of 10, 10, 5
    epochs = run_local_round(base, first, {})
    steps = run_local_round(replace(base, strategy=SGD(steps=6, batch_size=10)), first, {})
    assert np.array_equal(epochs.weights, steps.weights)
    assert epochs.train_loss == pytest.approx(steps.train_loss)
    fewer = run_local_round(replace(base, strategy=SGD(steps=5, batch_size=10)), first, {})
    assert not np.array_equal(fewer.weights, steps.weights)


def test_step_size_schedules() -> None:
    def at(strategy: SGD, number: int) -> float:
        context = clients.Context(Task(NET, strategy, X, Y, HELD, START, number, 0), np.arange(2), {})
        assert context.lr[0] == context.lr[1]
        return float(context.lr[0])

    decayed = SGD(lr=0.4, lr_decay=0.5)
    assert [at(decayed, k) for k in (1, 2, 3)] == [0.4, 0.2, 0.1]
    stepped = SGD(lr=0.4, lr_decay=0.5, lr_decay_every=10)
    assert [at(stepped, k) for k in (1, 10, 11, 21)] == [0.4, 0.4, 0.2, 0.1]


# Short is part of the promise.


def code_lines(cls: type) -> int:
    """Lines of code of a class, without docstrings, blank lines and comments."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    return len(ast.unparse(tree).replace("\n\n", "\n").splitlines())


def test_a_strategy_is_short() -> None:
    assert code_lines(clients.FedProx) <= 10
    assert code_lines(clients.SCAFFOLD) <= 40
    assert max(code_lines(cls) for cls in STRATEGIES if cls is not SGD) <= 40


@pytest.mark.parametrize(
    ("cls", "options", "said"),
    [
        (SGD, {"lr_decay": 0.0}, "SGD's lr_decay is 0.0"),
        (SGD, {"lr_decay_every": 0}, "SGD's lr_decay_every is 0"),
        (SGD, {"steps": 0}, "SGD's steps is 0"),
        (clients.SCAFFOLD, {"option": 3}, "SCAFFOLD's option is 3; allowed: a whole number, 1 to 2"),
        (clients.FedDyn, {"alpha": 0.0}, "FedDyn's alpha is 0.0"),
        (clients.MimeLite, {"beta": 1.0}, "MimeLite's beta is 1.0"),
        (clients.ClippedSGD, {"max_norm": -1.0}, "ClippedSGD's max_norm is -1.0"),
        (clients.FedLC, {"tau": -1.0}, "FedLC's tau is -1.0"),
        (clients.FedRS, {"alpha": 1.5}, "FedRS's alpha is 1.5"),
        (clients.FedSAM, {"rho": float("inf")}, "FedSAM's rho is inf"),
        (clients.MOON, {"temperature": 0.0}, "MOON's temperature is 0.0"),
        (clients.FineTune, {"tune_epochs": 0}, "FineTune's tune_epochs is 0"),
        (clients.FineTune, {"tune_lr": 0.0}, "FineTune's tune_lr is 0.0"),
        (clients.FedRep, {"head_epochs": 0}, "FedRep's head_epochs is 0"),
        (clients.Ditto, {"lam": -0.1}, "Ditto's lam is -0.1"),
        (clients.PFedMe, {"personal_lr": 0.2}, "PFedMe's personal_lr is 0.2"),
        (clients.PFedMe, {"inner_steps": 0}, "PFedMe's inner_steps is 0"),
        (clients.APFL, {"alpha": 2.0}, "APFL's alpha is 2.0"),
        (clients.PerFedAvg, {"inner_lr": 0.0}, "PerFedAvg's inner_lr is 0.0"),
        (clients.FedALA, {"mixing_lr": 0.0}, "FedALA's mixing_lr is 0.0"),
        (clients.IFCA, {"clusters": 0}, "IFCA's clusters is 0"),
    ],
)
def test_bad_hyperparameters_are_one_sentence(cls: type[SGD], options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cls(**options)
    assert str(caught.value).startswith(said)


def test_strategies_compose_with_servers() -> None:
    """SCAFFOLD's server hooks under FedAvgM's learning rate is the paper's eta_g."""
    base = replace(FULL, split=Shards(6, per_client=2), client=clients.SCAFFOLD(epochs=2))
    one = replace(base, server=partial(servers.FedAvgM, server_learning_rate=1.0)).run()
    np.testing.assert_allclose(weights_of(one), weights_of(base.run()), rtol=1e-12, atol=1e-14)
    slower = replace(base, server=partial(servers.FedAvgM, server_learning_rate=0.5)).run()
    assert not np.allclose(weights_of(slower), weights_of(one))


def test_a_client_that_fails_keeps_its_old_state() -> None:
    """State of an excluded client is not renewed, and others' are."""

    class Fragile(clients.SCAFFOLD):
        def train(self, ctx: clients.Context) -> NDArray[Any]:
            weights = super().train(ctx)
            if ctx.round == 2:
                weights[ctx.partition_ids == 3] = np.nan
            ctx.state["count"] = ctx.state["count"] + 1
            return weights

        def client_state(self, ctx: clients.Context) -> dict[str, Any]:
            return {**super().client_state(ctx), "count": np.zeros(len(ctx.partition_ids), np.int64)}

        def personalise(self, ctx: clients.Context) -> NDArray[Any]:
            counts.update(zip(ctx.partition_ids.tolist(), ctx.state["count"].tolist(), strict=True))
            return ctx.start

    counts: dict[int, int] = {}
    result = replace(FULL, client=Fragile(), rounds=3, on_failure="exclude", fraction_evaluate=1.0).run()
    assert result.history["failures"].tolist() == [0, 0, 1, 0]
    assert counts == {0: 3, 1: 3, 2: 3, 3: 2, 4: 3, 5: 3}


@pytest.mark.parametrize("server", [None, stock.FedAvg])
def test_a_client_without_examples_is_left_out_and_counted(server: Any) -> None:
    client: SGD = SGD() if server else clients.SCAFFOLD()
    base = replace(FULL, dataset=trimmed(60), client=client, server=server, rounds=2, fraction_evaluate=1.0)
    some = replace(base, split=Sized(4, (30, 20, 10, 0))).run()
    assert some.history["failures"].tolist() == [0, 1, 1]
    assert some.history["clients"].tolist() == [0, 3, 3]
    assert set(some.clients["partition_id"]) == {0, 1, 2}
    without = replace(base, split=Sized(3, (30, 20, 10))).run()
    np.testing.assert_allclose(weights_of(some), weights_of(without), rtol=1e-12, atol=1e-14)


def test_state_has_rows_of_the_clients_that_took_part_only() -> None:
    """A million clients with a row of 8 kB each would be 8 GB; ten took part, and an index has 8 bytes for each."""
    tracemalloc.start()
    try:
        state = ClientState(1_000_000)
        for first in (0, 500_000):
            ids = first + np.arange(5)
            rows = state.load(ids, lambda new: {"c": np.zeros((len(new), 1000))})
            state.store(ids, {"c": rows["c"] + ids[:, None]})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10e6
    both = state.load(np.array([500_004, 3]), lambda new: {})
    assert both["c"][:, 0].tolist() == [500_004, 3]


def test_state_of_clients_that_come_and_go() -> None:
    """A client's state waits for it."""

    class Counting(SGD):
        def client_state(self, ctx: clients.Context) -> dict[str, Any]:
            return {"rounds": np.zeros((len(ctx.partition_ids), 1))}

        def train(self, ctx: clients.Context) -> NDArray[Any]:
            ctx.state["rounds"] += 1
            ctx.up["rounds"] = ctx.state["rounds"]
            seen.extend(zip(ctx.partition_ids.tolist(), ctx.state["rounds"][:, 0].tolist(), strict=True))
            return ctx.fit()

    seen: list[tuple[int, float]] = []
    replace(FULL, split=IID(9), fraction_train=0.4, rounds=9, client=Counting()).run()
    times: dict[int, int] = {}
    for client, count in seen:
        times[client] = times.get(client, 0) + 1
        assert count == times[client]
    assert ServerHooks(Counting(), NET, 9, 0).down(START) == {}


def test_personalised_results_do_not_depend_on_workers() -> None:
    experiment = replace(
        FULL, split=Dirichlet(9, alpha=0.3), fraction_evaluate=0.7, test_fraction=0.3, fraction_train=0.5
    )
    for cls in (clients.FineTune, clients.FedRep, clients.PerFedAvg, clients.FedALA):
        one = replace(experiment, client=cls()).run()
        assert same(one, replace(experiment, client=cls()).run(workers=3, block_size=2))
