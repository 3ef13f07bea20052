"""Partitions: the assignment of examples to clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from fedsim.streams import Purpose, generator

Indices = NDArray[np.intp]
#: Name of a column -> the group of each example.
Groups = Mapping[str, NDArray[Any]]


class Partition(Sequence[Indices]):
    """The assignment of examples to clients: one index array per client, stored as one array and its offsets.

    ``partition[k]`` is a view, so that a partition of a million clients consists of two arrays.

    Parameters
    ----------
    indices : ndarray of int, shape (entries,)
        Example indices of all clients, client after client.
    offsets : ndarray of int, shape (clients + 1,)
        The examples of client k are ``indices[offsets[k]:offsets[k + 1]]``.
    """

    def __init__(self, indices: Indices, offsets: Indices) -> None:
        self.indices = np.ascontiguousarray(indices, dtype=np.intp)
        self.offsets = np.ascontiguousarray(offsets, dtype=np.intp)
        self.sizes: Indices = np.diff(self.offsets)

    @classmethod
    def from_sizes(cls, indices: Indices, sizes: Indices) -> Partition:
        """Build from the indices of all clients, client after client, and the size of each client."""
        return cls(indices, np.concatenate([[0], np.cumsum(sizes)]))

    @classmethod
    def from_owners(cls, owners: Indices, num_clients: int, indices: Indices | None = None) -> Partition:
        """Build from the client of each example; within a client, examples are in ascending order.

        Parameters
        ----------
        owners : ndarray of int, shape (entries,)
        num_clients : int
        indices : ndarray of int, shape (entries,), optional
            The examples; default ``0, 1, ...``.
        """
        sizes = np.bincount(owners, minlength=num_clients)
        owners = owners.astype(np.min_scalar_type(num_clients))  # NumPy sorts short integers by radix
        if indices is not None:
            by_example = np.full(len(owners), num_clients, dtype=owners.dtype)
            if not len(indices) or indices.max() < len(indices):
                by_example[indices] = owners
            if (by_example == num_clients).any():  # some examples are missing or repeated
                return cls.from_sizes(indices[np.lexsort((indices, owners))], sizes)
            owners = by_example
        return cls.from_sizes(np.argsort(owners, kind="stable"), sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, client: int) -> Indices: ...
    @overload
    def __getitem__(self, client: slice) -> Sequence[Indices]: ...
    def __getitem__(self, client: int | slice) -> Any:
        if isinstance(client, slice):
            return [self[k] for k in range(*client.indices(len(self)))]
        k = range(len(self))[client]
        return self.indices[self.offsets[k] : self.offsets[k + 1]]

    @property
    def owners(self) -> Indices:
        """The client of each entry of `indices`, shape (entries,)."""
        return np.repeat(np.arange(len(self)), self.sizes)

    @property
    def positions(self) -> Indices:
        """The position of each entry of `indices` within its client's, from 0, shape (entries,)."""
        return np.arange(len(self.indices)) - np.repeat(self.offsets[:-1], self.sizes)

    def pooled(self) -> Partition:
        """Return a partition in which one client has the examples of all clients."""
        return Partition(self.indices, np.array([0, len(self.indices)]))

    def select(self, keep: NDArray[np.bool_]) -> Partition:
        """Return a partition with the entries of `indices` selected by a mask, shape (entries,)."""
        return Partition(self.indices[keep], np.concatenate([[0], np.cumsum(keep)])[self.offsets])

    def sort(self, key: NDArray[Any]) -> Partition:
        """Return a partition with each client's examples stably sorted by a key, shape (entries,)."""
        return Partition(self.indices[np.lexsort((key, self.owners))], self.offsets)

    def divide(self, fraction: float, seed: int, sizes_before: Indices | None = None) -> tuple[Partition, Partition]:
        """Divide the examples of each client at random into training and test examples.

        Parameters
        ----------
        fraction : float
            Share of test examples, rounded; a client that has examples keeps at least one for training.
        seed : int
        sizes_before : ndarray of int, shape (clients,), optional
            Number of examples of each client before some clients were emptied; the division of the others is then the
            same as before.

        Returns
        -------
        train, test : Partition
        """
        counts = np.minimum(np.rint(self.sizes * fraction).astype(np.intp), np.maximum(self.sizes - 1, 0))
        before = self.sizes if sizes_before is None else sizes_before
        draws = generator(seed, Purpose.CLIENT_TEST).random(int(before.sum()))
        for_test = self._choose(counts, draws[np.repeat(self.sizes > 0, before)])
        return self.select(~for_test), self.select(for_test)

    def _choose(self, counts: Indices, draws: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return a mask of `indices` that has a given number of entries of each client, those with the least draws."""
        chosen = np.empty(len(self.indices), dtype=bool)
        chosen[np.lexsort((draws, self.owners))] = self.positions < np.repeat(counts, self.sizes)
        return chosen

    def window(self, number: int, windows: int) -> Partition:
        """Return one of `windows` consecutive equal parts of each client's examples, counted from 0."""
        cuts = [np.repeat(self.sizes * (number + end) // windows, self.sizes) for end in (0, 1)]
        return self.select((self.positions >= cuts[0]) & (self.positions < cuts[1]))

    def top_up(self, least: int, rng: np.random.Generator) -> Partition:
        """Return a partition in which every client has at least `least` examples.

        Clients with fewer get random examples of random clients that have more.
        """
        lacking = np.maximum(least - self.sizes, 0)
        total = int(lacking.sum())
        if not total:
            return self
        clients, spare = np.arange(len(self)), np.maximum(self.sizes - least, 0)
        givers = np.repeat(clients, spare)[rng.permutation(spare.sum())[:total]]
        moved = self._choose(np.bincount(givers, minlength=len(self)), rng.random(len(self.indices)))
        owners = self.owners
        owners[moved] = np.repeat(clients, lacking)[rng.permutation(total)]
        return Partition.from_owners(owners, len(self), self.indices)

    def label_counts(self, labels: NDArray[Any], num_classes: int) -> Indices:
        """Count each client's examples of each label, shape (clients, num_classes)."""
        cell = self.owners * num_classes + labels[self.indices]
        counts = np.bincount(cell, minlength=len(self) * num_classes)
        return counts.reshape(len(self), num_classes).astype(np.intp)
