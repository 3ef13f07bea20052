"""Local training in NumPy, many clients at once: the readable definition of what a client does in a round.

Clients of a block are rows of one array and take their steps together. Each trains on exactly its own examples: in an
epoch all full batches come first, on the clients that still have one (a prefix, for clients come sorted by falling
size), then each client's smaller last batch, on groups of clients whose last batches are equally large. No batch is
padded and no example is skipped or repeated. A client's arithmetic has the same shapes whoever shares its block, which
is what makes results independent of blocks and threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim import mlp, streams
from fedsim.clients import SGD, Context

Array = NDArray[Any]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Task:
    """What all clients of a round share.

    Attributes
    ----------
    net : MLP
    strategy : SGD
        The client strategy.
    x : ndarray, shape (examples, features)
        Every client's examples, of the network's dtype.
    y : ndarray, shape (examples,)
    global_weights : ndarray, shape (parameters,)
    round : int
    seed : int
    """

    net: mlp.MLP
    strategy: SGD
    x: Array
    y: Array
    global_weights: Array
    round: int
    seed: int


@dataclass(frozen=True)
class Update:
    """What some clients send back, a row each.

    Attributes
    ----------
    partition_ids : ndarray of int, shape (clients,)
    num_examples : ndarray of int, shape (clients,)
    weights : ndarray, shape (clients, parameters)
    train_loss : ndarray of float64, shape (clients,)
        Mean over the examples processed, each taken before the step it led to.
    """

    partition_ids: Indices
    num_examples: Indices
    weights: Array
    train_loss: NDArray[np.float64]


def train(task: Task, partition_ids: Indices, shards: Sequence[Indices]) -> Update:
    """Run one round's local training of some clients.

    Parameters
    ----------
    task : Task
    partition_ids : ndarray of int, shape (clients,)
    shards : sequence of ndarray of int
        Each client's example indices, none empty, in order of falling size.

    Returns
    -------
    Update
    """
    strategy = task.strategy
    sizes = np.array([len(shard) for shard in shards], dtype=np.intp)
    members = np.zeros((len(shards), sizes.max()), dtype=np.intp)
    for row, shard in enumerate(shards):
        members[row, : len(shard)] = shard
    batch = strategy.batch_size or 0
    full = sizes // batch if batch else np.zeros_like(sizes)
    last = sizes - full * batch
    context = Context(task.round, partition_ids, sizes, task.global_weights)

    weights = np.repeat(task.global_weights[None], len(shards), axis=0)
    scratch = np.empty_like(weights)
    loss = np.zeros(len(shards))

    def step(rows: slice | Indices, w: Array, examples: Indices, ctx: Context) -> None:
        x, y = task.x.take(examples, axis=0), task.y.take(examples, axis=0)
        batch_loss, grad = mlp.gradient(task.net, w, x, y, out=scratch[: len(w)])
        loss[rows] += batch_loss.astype(np.float64) * examples.shape[1]
        np.multiply(strategy.direction(grad, w, ctx), strategy.lr, out=grad)
        w -= grad

    for epoch in range(strategy.epochs):
        keys = streams.keys(task.seed, streams.Purpose.SHUFFLE, task.round, partition_ids, epoch)
        order = streams.permutations(keys, sizes)
        np.minimum(order, sizes[:, None] - 1, out=order)  # padding, never used, must still index
        order = np.take_along_axis(members, order, axis=1)
        for number in range(full[0]):
            rows = slice(0, np.count_nonzero(full > number))
            step(rows, weights[rows], order[rows, number * batch : (number + 1) * batch], context.rows(rows))
        for size in np.unique(last[last > 0]):
            group = np.flatnonzero(last == size)
            examples = order[group[:, None], full[group, None] * batch + np.arange(size)]
            w = weights[group]
            step(group, w, examples, context.rows(group))
            weights[group] = w
    return Update(partition_ids, sizes, weights, loss / (sizes * strategy.epochs))


def evaluate(net: mlp.MLP, weights: Array, x: Array, y: Array) -> tuple[NDArray[np.float64], Indices]:
    """Evaluate one model on several equally large sets of examples.

    Parameters
    ----------
    weights : ndarray, shape (parameters,)
    x : ndarray, shape (sets, examples, features)
    y : ndarray, shape (sets, examples)

    Returns
    -------
    loss : ndarray of float64, shape (sets,)
        Summed over examples.
    right : ndarray of int, shape (sets,)
        Examples classified rightly.
    """
    z = mlp.scores(net, weights[None], x)
    loss, _ = mlp.LOSSES[net.loss](z, y)
    return loss.sum(axis=1, dtype=np.float64), mlp.correct(net, z, y).sum(axis=1)
