"""Passes over all examples of clients, for full gradients and evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.clients.task import Task
from fedsim.splits import Partition

Array = NDArray[Any]
Indices = NDArray[np.intp]

#: Examples of a client that are processed together; a constant, so that sums have one order.
PASS_ROWS = 500


def for_each_shard(
    task: Task,
    partition: Partition,
    clients: Indices,
    weights: Array,
    process: Callable[[Indices, Array, Array, Array], None],
) -> None:
    """Call ``process(rows, weights, x, y)`` until it has seen every example of the clients once.

    Clients with equally large shards are processed together, up to PASS_ROWS examples of each at a time.
    """
    weights = np.atleast_2d(weights)
    sizes = partition.sizes[clients]
    for size in np.unique(sizes[sizes > 0]):
        rows = np.flatnonzero(sizes == size)
        own = weights if len(weights) == 1 else weights[rows]
        for first in range(0, size, PASS_ROWS):
            place = partition.offsets[clients[rows], None] + np.arange(first, min(first + PASS_ROWS, size))
            shards = partition.indices[place]
            process(rows, own, task.x.take(shards, axis=0), task.y.take(shards, axis=0))


def evaluate_shards(
    task: Task, partition: Partition, clients: Indices, weights: Array
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean loss and the accuracy of weights on each client's shard of a partition.

    Parameters
    ----------
    task : Task
    partition : Partition
    clients : ndarray of int, shape (clients,)
    weights : ndarray, shape (parameters,) or (clients, parameters)

    Returns
    -------
    loss, accuracy : ndarray of float64, shape (clients,)
        NaN for a client without examples.
    """
    loss, correct = np.zeros(len(clients)), np.zeros(len(clients))

    def add(rows: Indices, w: Array, x: Array, y: Array) -> None:
        part_loss, part_correct = task.model.evaluate(w, x, y)
        loss[rows] += part_loss
        correct[rows] += part_correct

    for_each_shard(task, partition, clients, weights, add)
    with np.errstate(invalid="ignore"):
        return loss / partition.sizes[clients], correct / partition.sizes[clients]
