"""The stacked NumPy kernel against the plainest loop one can write."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedsim import streams
from fedsim.clients import SGD, Context, FedProx
from fedsim.clients.local_round import run_local_round
from fedsim.clients.task import Task
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
