"""The stacked NumPy kernel against the plainest loop one can write."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedsim import kernels, streams
from fedsim.clients import SGD, Context, FedProx
from fedsim.clients.local_round import run_local_round
from fedsim.clients.task import Task
from fedsim.kernels.numpy import update_norms
from fedsim.models import MLP
from fedsim.models.model import Array
from fedsim.splits import Partition

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 6))
Y = RNG.integers(0, 3, 120)
NET = MLP((6, 5, 3), "tanh", "cross_entropy", "float64")
START = NET.init(RNG)


def one_by_one(strategy: SGD, shard: Array, client: int, seed: int) -> tuple[Array, float]:
    """One client, one batch at a time, straight from FedAvg's algorithm 1."""
    w, losses = START.copy(), 0.0
    size = strategy.batch_size or len(shard)
    for epoch in range(strategy.epochs):
        key = streams.keys(seed, streams.Purpose.SHUFFLE, 4, client, epoch)
        order = shard[streams.permutations(key, np.array([len(shard)]))[0]]
        for begin in range(0, len(order), size):
            batch = order[begin : begin + size]
            loss, grad = NET.loss_and_gradient(w[None], X[None, batch], Y[None, batch])
            losses += float(loss[0]) * len(batch)
            pull = strategy.proximal_mu * (w - START) if isinstance(strategy, FedProx) else 0
            w = w - strategy.lr * (grad[0] + pull)
    return w, losses / (strategy.epochs * len(shard))


def partition(shards: list[NDArray[np.intp]]) -> Partition:
    return Partition(np.concatenate(shards), np.concatenate([[0], np.cumsum([len(shard) for shard in shards])]))


def task(strategy: SGD, shards: list[NDArray[np.intp]], seed: int = 0) -> Task:
    return Task(NET, strategy, X, Y, partition(shards), START, 4, seed)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=6),
    st.integers(1, 3),
    st.one_of(st.none(), st.integers(1, 40)),
    st.booleans(),
)
def test_stacked_training_equals_one_by_one(sizes: list[int], epochs: int, batch: int | None, prox: bool) -> None:
    """Ragged sizes, last partial batches, any batch size: exactly each client's own examples, in its own order."""
    strategy: SGD = (
        FedProx(lr=0.3, epochs=epochs, batch_size=batch, proximal_mu=0.7)
        if prox
        else SGD(lr=0.3, epochs=epochs, batch_size=batch)
    )
    shards = [RNG.permutation(120)[:n] for n in sorted(sizes, reverse=True)]
    update = run_local_round(task(strategy, shards, 9), np.arange(len(shards)), {})
    for row, shard in enumerate(shards):
        weights, loss = one_by_one(strategy, shard, row, 9)
        np.testing.assert_allclose(update.weights[row], weights, rtol=1e-10, atol=1e-13)
        assert update.train_loss[row] == pytest.approx(loss, rel=1e-10)
    assert update.num_examples.tolist() == sorted(sizes, reverse=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("hidden", [(), (1,), (7,), (33, 5)])
@pytest.mark.parametrize("batch", [None, 1, 3, 8])
def test_a_clients_bits_do_not_depend_on_its_block(dtype: str, hidden: tuple[int, ...], batch: int | None) -> None:
    model = MLP((6, *hidden, 3), dtype=dtype)
    start = model.init(np.random.default_rng(1))
    held = partition([np.arange(n) + n for n in (40, 40, 25, 25, 13, 9, 8, 2, 1)])
    job = Task(model, SGD(epochs=2, batch_size=batch), X.astype(dtype), Y, held, start, 1, 0)
    ids = np.arange(9)
    whole = run_local_round(job, ids, {})
    for size in (1, 2, 4):
        for k in range(0, 9, size):
            part = run_local_round(job, ids[k : k + size], {})
            assert np.array_equal(part.weights, whole.weights[k : k + size])
            assert np.array_equal(part.train_loss, whole.train_loss[k : k + size])


def test_every_epoch_is_reshuffled() -> None:
    """Each epoch of each client, round and seed has all of the shard's examples, in an order of its own."""
    seen: list[float] = []

    class Spy(SGD):
        def gradient(self, weights: Array, x: Array, y: Array, ctx: Context) -> tuple[Array, Array]:
            seen.extend(x[0, :, 0])
            return super().gradient(weights, x, y, ctx)

    shard = np.arange(20)
    job = task(Spy(epochs=3, batch_size=6), [shard, shard])
    for changed, client in ((job, 0), (job, 1), (replace(job, round=5), 0), (replace(job, seed=1), 0)):
        run_local_round(changed, np.array([client]), {})
    orders = np.array(seen).reshape(4 * 3, 20)
    assert np.array_equal(np.sort(orders), np.tile(np.sort(X[shard, 0]), (12, 1)))
    assert len(np.unique(orders, axis=0)) == 12


def test_a_personal_fit_of_the_same_round_has_an_order_of_its_own() -> None:
    job = task(SGD(batch_size=5), [np.arange(20)])
    trained, personal = (
        run_local_round(replace(job, purpose=purpose), np.array([0]), {}).weights
        for purpose in (streams.Purpose.SHUFFLE, streams.Purpose.SHUFFLE_PERSONAL)
    )
    assert not np.array_equal(trained, personal)


def test_the_global_weights_are_not_touched() -> None:
    before = START.copy()
    run_local_round(task(SGD(epochs=3), [np.arange(30), np.arange(20)]), np.arange(2), {})
    assert np.array_equal(START, before)


def test_evaluation_counts() -> None:
    loss, right = NET.evaluate(START[None], X[None, :30], Y[None, :30])
    z = NET.scores(START[None], X[None, :30])[0]
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    assert loss[0] == pytest.approx(-np.log(p[np.arange(30), Y[:30]]).sum(), rel=1e-12)
    assert right[0] == (p.argmax(axis=1) == Y[:30]).sum()


def test_a_model_for_each_set_or_one_for_all() -> None:
    rows = np.stack([START, 2 * START])
    x, y = X[:60].reshape(2, 30, 6), Y[:60].reshape(2, 30)
    each = NET.evaluate(rows, x, y)
    for k in range(2):
        alone = NET.evaluate(rows[k : k + 1], x[k : k + 1], y[k : k + 1])
        assert (each[0][k], each[1][k]) == (pytest.approx(alone[0][0], rel=1e-12), alone[1][0])
    one = NET.evaluate(rows[:1], x, y)
    assert one[0][0] == pytest.approx(each[0][0], rel=1e-12)
    assert one[0][1] != pytest.approx(each[0][1], rel=1e-3)


def test_movement_is_a_distance_that_does_not_overflow() -> None:
    rows = np.array([[3e30, 0], [0, -4e30]], dtype=np.float32)
    np.testing.assert_allclose(update_norms(rows, np.zeros(2, np.float32)), [3e30, 4e30], rtol=1e-6)
    np.testing.assert_allclose(update_norms(rows, rows[::-1]), [5e30, 5e30], rtol=1e-6)


def test_rounds_of_two_hundred_million_operations_are_worth_compiling() -> None:
    """Six for each weight and example: two to go forward, four to go back."""
    if kernels.missing():
        pytest.skip(kernels.missing())
    limit = 2e8 / (6 * NET.num_parameters)
    assert kernels.choose("auto", "", NET, limit * 1.000001) == "compiled"
    assert kernels.choose("auto", "", NET, limit * 0.999999) == "numpy"
    assert kernels.choose("auto", "somebody's direction()", NET, 1e12) == "numpy"


def test_the_compiled_kernel_is_missing_only_where_compilation_is_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, said in (("1", "NUMBA_DISABLE_JIT is set"), ("0", ""), ("", "")):
        monkeypatch.setenv("NUMBA_DISABLE_JIT", value)
        assert kernels.missing.__wrapped__() == said
