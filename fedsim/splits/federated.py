"""A dataset divided among clients."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.data.dataset import Dataset
from fedsim.splits.partition import Indices, Partition


@dataclass(frozen=True, eq=False)
class FederatedDataset:
    """A dataset and the partition of its training examples among the clients.

    Parameters
    ----------
    dataset : Dataset
        Its training examples are those of all clients, including changes by the split; its test set is global.
    partition : Partition
        The training examples of each client.
    partition_test : Partition, optional
        Each client's own test examples, taken from the training examples of `dataset`; by default clients evaluate on
        their training examples.
    windows : int
        Number of consecutive parts of every client's training examples; see `TimeOrdered`.
    rounds_per_window : int
        Number of rounds that clients train on each part; the last part is used until the end.
    poisoned : Partition, optional
        The examples that clients train on from round `poisoned_from`, under an attack that changes those of some; as
        many of each client as in `partition`. See `fedsim.attacks`.
    poisoned_from : int
    sizes_before : ndarray of int, shape (clients,), optional
        Sizes of the shards before clients were removed; see `Without`. Removed clients are not counted as failures.
    client_names : tuple of str
        Name of each client in messages, tables and plots, by partition id; empty if clients have numbers only. See
        `Split.client_names`.
    """

    dataset: Dataset
    partition: Partition
    partition_test: Partition | None = None
    windows: int = 1
    rounds_per_window: int = 1
    poisoned: Partition | None = None
    poisoned_from: int = 1
    sizes_before: Indices | None = None
    client_names: tuple[str, ...] = ()

    def window(self, round_number: int) -> int:
        """Return the number of the part that clients train on in a round, both counted from 1."""
        return min(1 + (max(round_number, 1) - 1) // self.rounds_per_window, self.windows)

    def at(self, round_number: int) -> Partition:
        """Return the training examples of each client in a round, counted from 1."""
        return self._at(round_number, self.partition)

    def poisoned_at(self, round_number: int) -> Partition | None:
        """Return the examples that clients train on in a round instead of those of `at`, under an attack."""
        if self.poisoned is None or round_number < self.poisoned_from:
            return None
        return self._at(round_number, self.poisoned)

    def _at(self, round_number: int, partition: Partition) -> Partition:
        return partition if self.windows == 1 else partition.window(self.window(round_number) - 1, self.windows)

    def with_tests(self, fraction: float, seed: int) -> FederatedDataset:
        """Return a copy with a share of each client's examples held out as its test set; see `Partition.divide`."""
        if not fraction:
            return self
        train, test = self.partition.divide(fraction, seed, self.sizes_before)
        return replace(self, partition=train, partition_test=test)

    def pooled(self) -> FederatedDataset:
        """Return a copy with one client that has the training examples of all clients, and no client test set."""
        return FederatedDataset(self.dataset, self.partition.pooled())

    def replace_examples(self, x: NDArray[Any] | None = None, y: NDArray[Any] | None = None) -> FederatedDataset:
        """Return a copy with changed training examples, stored client after client.

        Parameters
        ----------
        x, y : ndarray, optional
            Replace ``dataset.x_train[partition.indices]`` and ``dataset.y_train[partition.indices]``.
        """
        data, indices = self.dataset, self.partition.indices
        changed = replace(
            data,
            x_train=data.x_train[indices] if x is None else x,
            y_train=data.y_train[indices] if y is None else y,
            groups={name: group[indices] for name, group in data.groups.items()},
        )
        return replace(self, dataset=changed, partition=Partition(np.arange(len(indices)), self.partition.offsets))

    def label_counts(self) -> Indices:
        """Count each client's training examples per label (decile for regression), shape (clients, labels)."""
        return self.partition.label_counts(self.dataset.strata, self.dataset.num_strata)
