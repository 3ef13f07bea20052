"""Local training of many clients at once in NumPy: the readable definition of a fit.

A step is ``v = momentum * v + direction(grad + weight_decay * w + mu * (w - center) + correction)``, ``w -= lr * v``,
with v = 0 when a fit starts. In a private fit, ``grad`` is the noisy mean of clipped gradients; see `PrivateSteps`.

The clients of a block are rows of one array and take their steps together, each on its own examples. In an epoch, all
clients that have another full batch take a step (a prefix of the rows, which are sorted by decreasing size); then each
client takes a step on its smaller last batch, together with the clients whose last batches have the same size. No batch
is padded, and no example is skipped or repeated. The shapes in a client's arithmetic do not depend on the other clients
of its block, so results do not depend on blocks and threads.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fedsim import streams
from fedsim.kernels.fit import FitJob, FitResult, PrivateSteps
from fedsim.models import Array
from fedsim.models.clipping import clipped_gradient
from fedsim.splits.partition import Indices


def schedule(job: FitJob) -> Indices:
    """Return the examples on which clients train, in order; each epoch has its own shuffle.

    Returns
    -------
    ndarray of int, shape (epochs, clients, largest shard)
        The rows of smaller clients are padded with valid indices.
    """
    sizes, keys = job.partition.sizes[job.clients], job.shuffles
    order = streams.permutations(keys.ravel(), np.tile(sizes, len(keys))).reshape(*keys.shape, -1)
    np.minimum(order, sizes[:, None] - 1, out=order)
    order += job.partition.offsets[job.clients, None]
    return job.partition.indices.take(order)


def fit(job: FitJob) -> FitResult:
    """Train a block of clients."""
    model, sizes = job.model, job.partition.sizes[job.clients]
    weights = np.array(np.broadcast_to(job.start, (len(sizes), model.num_parameters)), order="C")
    center = np.broadcast_to(job.center, weights.shape)
    correction = None if job.correction is None else np.broadcast_to(job.correction, weights.shape)
    lr = job.lr.astype(model.dtype)[:, None]
    scratch = np.empty_like(weights)
    velocity = np.zeros_like(weights) if job.momentum else None
    frozen_groups = [group for group, trained in zip(model.groups, job.trained, strict=True) if not trained]
    frozen = [model.layout[name][0] for group in frozen_groups for name in group]
    loss = np.zeros(len(sizes))

    for number, rows, examples in private_steps(job, job.private) if job.private else epoch_steps(job):
        x, y = job.x.take(examples, axis=0), job.y.take(examples, axis=0)
        w = weights[rows]
        if job.private:
            summed_loss, grad = noisy_gradient(job, job.private, number, rows, w, x, y)
        else:
            if job.gradient:
                batch_loss, grad = job.gradient(rows, w, x, y, examples)
            else:
                batch_loss, grad = model.loss_and_gradient(w, x, y, out=scratch[: len(w)])
            summed_loss = batch_loss.astype(np.float64) * examples.shape[1]
        loss[rows] += summed_loss
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
    loss[~np.isfinite(weights).all(axis=1)] = np.nan
    return FitResult(weights, loss, update_norms(weights, job.start))


def epoch_steps(job: FitJob) -> Iterator[tuple[int, slice | Indices, Indices]]:
    """Yield the steps of a fit: their number in the epoch, the rows that take them, and each row's batch."""
    batch, sizes = job.batch_size, job.partition.sizes[job.clients]
    full = sizes // batch if batch else np.zeros_like(sizes)
    last = sizes - full * batch
    left = job.steps.copy()
    for order in schedule(job):
        number = 0
        while (active := (full > number) & (left > number)).any():
            rows = _as_slice(np.flatnonzero(active))
            yield number, rows, order[rows, number * batch : (number + 1) * batch]
            number += 1
        ending = (last > 0) & (left > full)
        for size in np.unique(last[ending]):
            group = np.flatnonzero(ending & (last == size))
            yield number, group, order[group[:, None], full[group, None] * batch + np.arange(size)]
        left -= full + (last > 0)


def private_steps(job: FitJob, private: PrivateSteps) -> Iterator[tuple[int, slice | Indices, Indices]]:
    """Yield the steps of a private fit, as `epoch_steps`; each step draws its batch from all examples of a client."""
    sizes = job.partition.sizes[job.clients]
    order = np.tile(np.arange(sizes.max(initial=0)), (len(sizes), 1))
    for number, counts in enumerate(private.counts):
        streams.choose(order, private.batches[number], sizes, counts)
        for size in np.unique(counts):
            rows = np.flatnonzero((counts == size) & (job.steps > number))
            if len(rows):
                entries = job.partition.offsets[job.clients[rows], None] + order[rows, :size]
                yield number, rows, job.partition.indices[entries]


def noisy_gradient(
    job: FitJob, private: PrivateSteps, number: int, rows: slice | Indices, weights: Array, x: Array, y: Array
) -> tuple[NDArray[np.float64], Array]:
    """Return the sum of the losses on each client's batch, and the noisy mean of the clipped gradients."""
    groups = [group for group, trained in zip(job.model.groups, job.trained, strict=True) if trained]
    loss, grad = clipped_gradient(job.model, weights, x, y, private.clip, groups)
    if private.noise:
        grad += private.noise * streams.normals(private.normals[number, rows], grad.shape[1], grad.dtype)
    grad /= private.expected[rows, None]
    return loss, grad


def _as_slice(rows: Indices) -> slice | Indices:
    """Return consecutive row numbers as a slice, for views instead of copies; other row numbers as they are."""
    return slice(rows[0], rows[-1] + 1) if rows[-1] - rows[0] == len(rows) - 1 else rows


def add_weighted(total: NDArray[np.float64], rows: Array, weights: NDArray[np.float64]) -> None:
    """Add rows, multiplied by their weights, to a sum in order and in float64.

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


def update_norms(rows: Array, center: Array) -> NDArray[np.float64]:
    """Return the Euclidean distance of each row from a center, shape (clients,).

    Parameters
    ----------
    rows : ndarray, shape (clients, parameters)
    center : ndarray, shape (parameters,), or (clients, parameters) for each row's own
    """
    update = np.subtract(rows, center, dtype=np.float64)  # in float32, squares overflow from 1e19 on
    squares: NDArray[np.float64] = np.einsum("kj,kj->k", update, update)
    return np.sqrt(squares)
