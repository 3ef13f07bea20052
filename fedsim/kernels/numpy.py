"""Local training in NumPy, many clients at once: the readable definition of what a client does in a round.

A step is ``v = momentum * v + direction(grad + weight_decay * w)``, ``w -= lr * v``, with v = 0 when a round starts.

Clients of a block are rows of one array and take their steps together. Each trains on exactly its own examples: in an
epoch all full batches come first, on the clients that still have one (a prefix, for clients come sorted by falling
size), then each client's smaller last batch, on groups of clients whose last batches are equally large. No batch is
padded and no example is skipped or repeated. A client's arithmetic has the same shapes whoever shares its block, which
is what makes results independent of blocks and threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim import mlp, streams
from fedsim.clients import SGD, Context
from fedsim.splits import Partition

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
    partition : Partition
        Which examples each client holds.
    global_weights : ndarray, shape (parameters,)
    round : int
    seed : int
    """

    net: mlp.MLP
    strategy: SGD
    x: Array
    y: Array
    partition: Partition
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
        Mean over the examples processed, each taken before the step it led to; NaN if a weight is not finite.
    """

    partition_ids: Indices
    num_examples: Indices
    weights: Array
    train_loss: NDArray[np.float64]


def shuffle_keys(task: Task, clients: Indices) -> NDArray[np.uint64]:
    """Return the stream key of each epoch's shuffle on each client, shape (epochs, clients)."""
    epochs = np.arange(task.strategy.epochs)[:, None]
    return streams.keys(task.seed, streams.Purpose.SHUFFLE, task.round, clients, epochs)


def schedule(task: Task, clients: Indices) -> Indices:
    """Return the examples that clients train on, in order: each epoch shuffled anew.

    Returns
    -------
    ndarray of int, shape (epochs, clients, largest shard)
        A smaller client's row ends in padding, which is a valid index.
    """
    sizes = task.partition.sizes[clients]
    keys = shuffle_keys(task, clients)
    order = streams.permutations(keys.ravel(), np.tile(sizes, len(keys))).reshape(*keys.shape, -1)
    np.minimum(order, sizes[:, None] - 1, out=order)
    order += task.partition.offsets[clients, None]
    return task.partition.indices.take(order)


def train(task: Task, clients: Indices) -> Update:
    """Run one round's local training of some clients.

    Parameters
    ----------
    task : Task
    clients : ndarray of int, shape (clients,)
        Partition ids, none of an empty client, in order of falling size.

    Returns
    -------
    Update
    """
    strategy = task.strategy
    sizes = task.partition.sizes[clients]
    batch = strategy.batch_size or 0
    full = sizes // batch if batch else np.zeros_like(sizes)
    last = sizes - full * batch
    context = Context(task.round, clients, sizes, task.global_weights)

    weights = np.repeat(task.global_weights[None], len(clients), axis=0)
    scratch = np.empty_like(weights)
    velocity = np.zeros_like(weights) if strategy.momentum else None
    loss = np.zeros(len(clients))

    def step(rows: slice | Indices, examples: Indices) -> None:
        x, y = task.x.take(examples, axis=0), task.y.take(examples, axis=0)
        w = weights[rows]
        batch_loss, grad = mlp.gradient(task.net, w, x, y, out=scratch[: len(w)])
        loss[rows] += batch_loss.astype(np.float64) * examples.shape[1]
        if strategy.weight_decay:
            grad += strategy.weight_decay * w
        direction = strategy.direction(grad, w, context.rows(rows))
        if velocity is not None:
            direction = velocity[rows] = strategy.momentum * velocity[rows] + direction
        np.multiply(direction, strategy.lr, out=grad)
        weights[rows] -= grad

    for order in schedule(task, clients):
        for number in range(full[0]):
            step(slice(0, np.count_nonzero(full > number)), order[full > number, number * batch : (number + 1) * batch])
        for size in np.unique(last[last > 0]):
            group = np.flatnonzero(last == size)
            step(group, order[group[:, None], full[group, None] * batch + np.arange(size)])
    loss[~np.isfinite(weights).all(axis=1)] = np.nan
    return Update(clients, sizes, weights, loss / (sizes * strategy.epochs))


def add_weighted(total: NDArray[np.float64], rows: Array, weights: NDArray[np.float64]) -> None:
    """Add rows, each times its weight, to a running sum, one after another, in float64.

    Parameters
    ----------
    total : ndarray of float64, shape (parameters,)
        Changed in place.
    rows : ndarray, shape (clients, parameters)
    weights : ndarray of float64, shape (clients,)
    """
    scaled = np.empty_like(total)
    for row, weight in zip(rows, weights, strict=True):
        np.multiply(row, weight, out=scaled, dtype=np.float64)
        total += scaled


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
