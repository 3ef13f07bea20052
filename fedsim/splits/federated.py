"""A dataset divided among clients, as they hold it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.data.dataset import Dataset
from fedsim.splits.partition import Indices, Partition


@dataclass(frozen=True, eq=False)
class FederatedDataset:
    """A dataset and who holds which of its training examples.

    Parameters
    ----------
    dataset : Dataset
        The training examples as clients hold them, one array for all. The test set is the population's.
    partition : Partition
        What each client trains on.
    partition_test : Partition, optional
        Each client's own test examples, among the training examples of `dataset`; default: it evaluates on what it
        trains on.
    windows : int
        Parts into which time cuts every client's training examples, in their order.
    rounds_per_window : int
        Rounds that a part lasts; from the last one on, the last part stays.
    """

    dataset: Dataset
    partition: Partition
    partition_test: Partition | None = None
    windows: int = 1
    rounds_per_window: int = 1

    def window(self, round_number: int) -> int:
        """Return which part of their examples clients train on in a round, both counted from 1."""
        return min(1 + (max(round_number, 1) - 1) // self.rounds_per_window, self.windows)

    def at(self, round_number: int) -> Partition:
        """Return what clients train on in a round, counted from 1."""
        if self.windows == 1:
            return self.partition
        return self.partition.window(self.window(round_number) - 1, self.windows)

    def with_tests(self, fraction: float, seed: int) -> FederatedDataset:
        """Return it with a share of each client's examples kept for its own test; see `Partition.divide`."""
        if not fraction:
            return self
        train, test = self.partition.divide(fraction, seed)
        return replace(self, partition=train, partition_test=test)

    def pooled(self) -> FederatedDataset:
        """Return it with one client that holds all clients' training examples, and none to test on."""
        together = Partition(self.partition.indices, np.array([0, len(self.partition.indices)]))
        return FederatedDataset(self.dataset, together)

    def changed(self, x: NDArray[Any] | None = None, y: NDArray[Any] | None = None) -> FederatedDataset:
        """Return it with other training examples, stored client after client.

        Parameters
        ----------
        x, y : ndarray, optional
            In place of ``dataset.x_train[partition.indices]`` and of ``y_train`` there.
        """
        held, data = self.partition, self.dataset
        own = replace(
            data,
            x_train=data.x_train[held.indices] if x is None else x,
            y_train=data.y_train[held.indices] if y is None else y,
            groups={name: group[held.indices] for name, group in data.groups.items()},
        )
        return replace(self, dataset=own, partition=Partition(np.arange(len(held.indices)), held.offsets))

    def label_counts(self) -> Indices:
        """Count each client's training examples of each label, shape (clients, labels); of deciles for regression."""
        return self.partition.label_counts(self.dataset.strata, self.dataset.num_strata)
