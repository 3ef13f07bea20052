"""Passes over all examples of clients, for gradients of whole shards and for evaluation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fedsim.clients.task import Task
from fedsim.models import Array
from fedsim.splits.partition import Indices, Partition

#: Number of a client's examples that are processed together; a constant, so that the order of sums is fixed.
PASS_ROWS = 500


def shard_batches(
    task: Task, partition: Partition, clients: Indices, weights: Array
) -> Iterator[tuple[Indices, Array, Array, Array]]:
    """Yield all examples of the clients once, as ``(rows, weights, x, y)`` with rows of clients and their weights.

    Clients with equally large shards are yielded together, up to PASS_ROWS examples of each at a time.
    """
    weights = np.atleast_2d(weights)
    sizes = partition.sizes[clients]
    for size in np.unique(sizes[sizes > 0]):
        rows = np.flatnonzero(sizes == size)
        own = weights if len(weights) == 1 else weights[rows]
        for first in range(0, size, PASS_ROWS):
            entries = partition.offsets[clients[rows], None] + np.arange(first, min(first + PASS_ROWS, size))
            examples = partition.indices[entries]
            yield rows, own, task.x.take(examples, axis=0), task.y.take(examples, axis=0)


def shard_scores(task: Task, partition: Partition, clients: Indices, weights: Array) -> Iterator[tuple[Indices, Array]]:
    """Yield for each client the positions of its examples and the scores of weights on them.

    Parameters
    ----------
    task, partition, clients, weights
        As for `evaluate_shards`.

    Yields
    ------
    examples : ndarray of int, shape (examples,)
    scores : ndarray, shape (examples, outputs)
    """
    shape = int(partition.sizes[clients].sum()), task.model.outputs
    stops = np.cumsum(partition.sizes[clients])
    starts = stops - partition.sizes[clients]
    done, scores = np.zeros(len(clients), dtype=np.intp), np.empty(shape, task.model.dtype)
    for rows, w, x, _ in shard_batches(task, partition, clients, weights):
        places = (starts + done)[rows, None] + np.arange(x.shape[1])
        scores[places] = task.model.scores(w, x)
        done[rows] += x.shape[1]
    for client, start, stop in zip(clients, starts, stops, strict=True):
        yield partition[int(client)], scores[start:stop]


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
    for rows, w, x, y in shard_batches(task, partition, clients, weights):
        part_loss, part_correct = task.model.evaluate(w, x, y)
        loss[rows] += part_loss
        correct[rows] += part_correct
    with np.errstate(invalid="ignore"):
        return loss / partition.sizes[clients], correct / partition.sizes[clients]
