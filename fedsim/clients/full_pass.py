"""Passes over all examples of clients, for gradients of whole shards and for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

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


def shard_scores(
    task: Task, partition: Partition, clients: Indices, weights: Array
) -> Iterator[tuple[Indices, Indices, Array]]:
    """Yield all examples of the clients and their scores, equally large shards together.

    Parameters
    ----------
    task, partition, clients, weights
        As for `evaluate_shards`.

    Yields
    ------
    rows : ndarray of int, shape (shards,)
        Rows of `clients`.
    examples : ndarray of int, shape (shards, examples)
        Positions among the training examples; none for clients without examples.
    scores : ndarray, shape (shards, examples, outputs)
    """
    sizes = partition.sizes[clients]
    numbered = replace(task, y=np.arange(len(task.y)))
    parts: list[tuple[Indices, Array]] = []
    for rows, w, x, examples in shard_batches(numbered, partition, clients, weights):
        parts.append((examples, task.model.scores(w, x)))
        if sum(part.shape[1] for part, _ in parts) == sizes[rows[0]]:
            all_examples, all_scores = zip(*parts, strict=True)
            yield rows, np.concatenate(all_examples, axis=1), np.concatenate(all_scores, axis=1)
            parts = []
    if len(empty := np.flatnonzero(sizes == 0)):
        yield empty, np.empty((len(empty), 0), np.intp), np.empty((len(empty), 0, task.model.outputs))


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
