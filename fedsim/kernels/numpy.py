"""Local training in NumPy, many clients at once: the readable definition of what a fit does.

A step is ``v = momentum * v + direction(grad + weight_decay * w + mu * (w - center) + correction)``, ``w -= lr * v``,
with v = 0 when a fit starts.

Clients of a block are rows of one array and take their steps together. Each trains on exactly its own examples: in an
epoch all full batches come first, on the clients that still have one (a prefix, for clients come sorted by falling
size), then each client's smaller last batch, on groups of clients whose last batches are equally large. No batch is
padded and no example is skipped or repeated. A client's arithmetic has the same shapes whoever shares its block, which
is what makes results independent of blocks and threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim import streams
from fedsim.models import mlp
from fedsim.splits import Partition

Array = NDArray[Any]
Indices = NDArray[np.intp]
#: ``spread(work)`` calls ``work()`` on every thread there is for a task, and returns when all are done.
Spread = Callable[[Callable[[], None]], None]


def alone(work: Callable[[], None]) -> None:
    """Do some work on this thread only."""
    work()


@dataclass
class Fit:
    """What a kernel is to do for a block of clients.

    Attributes
    ----------
    net : MLP
    x : ndarray, shape (examples, features)
        Every client's examples, of the network's dtype.
    y : ndarray, shape (examples,)
    partition : Partition
        Which examples each client holds.
    clients : ndarray of int, shape (clients,)
        Partition ids, none of an empty client, in order of falling size.
    start : ndarray, shape (clients, parameters) or (1, parameters)
    steps : ndarray of int, shape (clients,)
        How many each client takes.
    shuffles : ndarray of uint64, shape (epochs, clients)
        The stream key of each epoch's shuffle on each client.
    batch_size : int
        0 for the whole shard.
    lr : ndarray of float64, shape (clients,)
    momentum, weight_decay, mu : float
    center : ndarray, shape (clients, parameters) or (1, parameters)
    correction : ndarray, shape (clients, parameters) or (1, parameters), optional
    trained : tuple of bool
        Which layers change.
    spread : Spread
        The threads that may share this block.
    gradient, direction : callable, optional
        A strategy's own: ``gradient(rows, weights, x, y)`` in place of backpropagation, and
        ``direction(rows, grad, weights)``. Only this module's kernel calls them.
    """

    net: mlp.MLP
    x: Array
    y: Array
    partition: Partition
    clients: Indices
    start: Array
    steps: Indices
    shuffles: NDArray[np.uint64]
    batch_size: int
    lr: NDArray[np.float64]
    momentum: float
    weight_decay: float
    mu: float
    center: Array
    correction: Array | None
    trained: tuple[bool, ...]
    spread: Spread = alone
    gradient: Callable[[slice | Indices, Array, Array, Array], tuple[Array, Array]] | None = None
    direction: Callable[[slice | Indices, Array, Array], Array] | None = None


def schedule(job: Fit) -> Indices:
    """Return the examples that clients train on, in order: each epoch shuffled anew.

    Returns
    -------
    ndarray of int, shape (epochs, clients, largest shard)
        A smaller client's row ends in padding, which is a valid index.
    """
    sizes, keys = job.partition.sizes[job.clients], job.shuffles
    order = streams.permutations(keys.ravel(), np.tile(sizes, len(keys))).reshape(*keys.shape, -1)
    np.minimum(order, sizes[:, None] - 1, out=order)
    order += job.partition.offsets[job.clients, None]
    return job.partition.indices.take(order)


def fit(job: Fit) -> tuple[Array, NDArray[np.float64], NDArray[np.float64]]:
    """Train a block of clients.

    Returns
    -------
    weights : ndarray, shape (clients, parameters)
    loss : ndarray of float64, shape (clients,)
        Summed over the examples processed, each taken before the step it led to; NaN if a weight is not finite.
    moved : ndarray of float64, shape (clients,)
        How far each client went: the `movement` of its weights from its start.
    """
    net, sizes = job.net, job.partition.sizes[job.clients]
    clients = len(sizes)
    batch = job.batch_size
    full = sizes // batch if batch else np.zeros_like(sizes)
    last = sizes - full * batch
    left = job.steps.copy()

    weights = np.array(np.broadcast_to(job.start, (clients, net.num_parameters)), order="C")
    center = np.broadcast_to(job.center, weights.shape)
    correction = None if job.correction is None else np.broadcast_to(job.correction, weights.shape)
    lr = job.lr.astype(net.dtype)[:, None]
    scratch = np.empty_like(weights)
    velocity = np.zeros_like(weights) if job.momentum else None
    frozen = [net.layout[f"{kind}{k}"][0] for k, t in enumerate(job.trained, 1) if not t for kind in "Wb"]
    loss = np.zeros(clients)

    def step(rows: slice | Indices, examples: Indices) -> None:
        x, y = job.x.take(examples, axis=0), job.y.take(examples, axis=0)
        w = weights[rows]
        if job.gradient:
            batch_loss, grad = job.gradient(rows, w, x, y)
        else:
            batch_loss, grad = mlp.gradient(net, w, x, y, out=scratch[: len(w)])
        loss[rows] += batch_loss.astype(np.float64) * examples.shape[1]
        if job.weight_decay:
            grad += job.weight_decay * w
        if job.mu:
            grad += job.mu * (w - center[rows])
        if correction is not None:
            grad += correction[rows]
        direction = job.direction(rows, grad, w) if job.direction else grad
        if velocity is not None:
            direction = velocity[rows] = job.momentum * velocity[rows] + direction
        change = np.multiply(direction, lr[rows], out=scratch[: len(w)])
        for place in frozen:
            change[:, place] = 0
        weights[rows] -= change

    for order in schedule(job):
        number = 0
        while (going := (full > number) & (left > number)).any():
            rows = _as_slice(np.flatnonzero(going))
            step(rows, order[rows, number * batch : (number + 1) * batch])
            number += 1
        ending = (last > 0) & (left > full)
        for size in np.unique(last[ending]):
            group = np.flatnonzero(ending & (last == size))
            step(group, order[group[:, None], full[group, None] * batch + np.arange(size)])
        left -= full + (last > 0)
    loss[~np.isfinite(weights).all(axis=1)] = np.nan
    return weights, loss, movement(weights, job.start)


def _as_slice(rows: Indices) -> slice | Indices:
    """Return rising row numbers as a slice, which copies nothing, where they have no gap."""
    return slice(rows[0], rows[-1] + 1) if rows[-1] - rows[0] == len(rows) - 1 else rows


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


def movement(rows: Array, center: Array) -> NDArray[np.float64]:
    """Return the Euclidean distance of each row from a center, shape (clients,).

    Parameters
    ----------
    rows : ndarray, shape (clients, parameters)
    center : ndarray, shape (parameters,), or (clients, parameters) for each row's own
    """
    away = np.subtract(rows, center, dtype=np.float64)  # in float32 squares overflow from 1e19 on
    squares: NDArray[np.float64] = np.einsum("kj,kj->k", away, away)
    return np.sqrt(squares)


def evaluate(net: mlp.MLP, weights: Array, x: Array, y: Array) -> tuple[NDArray[np.float64], Indices]:
    """Evaluate models on equally large sets of examples.

    Parameters
    ----------
    weights : ndarray, shape (sets, parameters), or (1, parameters) for one model on all
    x : ndarray, shape (sets, examples, features)
    y : ndarray, shape (sets, examples)

    Returns
    -------
    loss : ndarray of float64, shape (sets,)
        Summed over examples.
    right : ndarray of int, shape (sets,)
        Examples classified rightly.
    """
    z = mlp.scores(net, weights, x)
    loss, _ = mlp.LOSSES[net.loss](z, y)
    return loss.sum(axis=1, dtype=np.float64), mlp.correct(net, z, y).sum(axis=1)
