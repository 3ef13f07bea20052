"""Measures of predictions that clients send with their evaluation, besides the loss and the accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fedsim.clients.full_pass import shard_scores
from fedsim.clients.task import Task
from fedsim.models import Array
from fedsim.splits.partition import Indices, Partition

if TYPE_CHECKING:
    import pandas as pd

#: Value of ``partition_id`` in the frames of measures for the server's test set.
TEST_SET = -1


class Measure(Protocol):
    """A measure of a model's predictions on a set of examples."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the value of a set."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the value."""

    def measure(self, y: Array, scores: Array, examples: Indices | None) -> Array:
        """Return the values of sets of training examples, or of the test set, shape (sets, ...).

        Parameters
        ----------
        y : ndarray, shape (sets, examples)
            Labels or targets.
        scores : ndarray, shape (sets, examples, outputs)
        examples : ndarray of int, shape (sets, examples), optional
            Positions among the training examples; None for the test set.
        """

    def refusal(self, value: Array, num_examples: int) -> str:
        """Return what is wrong with a value that a client has sent, for so many examples; empty if it is possible."""

    def to_frame(self, rounds: Indices, clients: Indices, values: Array) -> pd.DataFrame:
        """Return values, shape (sets, ...), as a frame with the columns ``round, partition_id`` and further ones."""


def measure_shards(
    measures: Mapping[str, Measure], task: Task, partition: Partition, clients: Indices, weights: Array
) -> dict[str, Array]:
    """Return the measures of weights on each client's shard; the last four parameters as for `evaluate_shards`.

    Returns
    -------
    dict of str to ndarray, shape (clients, ...)
    """
    found = {name: np.empty((len(clients), *m.shape), m.dtype) for name, m in measures.items()}
    if measures:
        for rows, examples, scores in shard_scores(task, partition, clients, weights):
            for name, measure in measures.items():
                found[name][rows] = measure.measure(task.y[examples], scores, examples)
    return found
