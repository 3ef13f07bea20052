"""What a split is: a small object with a seed that divides examples among clients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import ConfigError, whole
from fedsim.streams import Purpose, generator


class Partition(Sequence[NDArray[np.intp]]):
    """Who holds which examples: one index array per client, stored as one array and its cuts.

    A million clients cost two arrays, and ``partition[k]`` is a view.

    Parameters
    ----------
    indices : ndarray of int, shape (examples,)
        All clients' example indices, client after client.
    offsets : ndarray of int, shape (clients + 1,)
        Client k holds ``indices[offsets[k]:offsets[k + 1]]``.
    """

    def __init__(self, indices: NDArray[np.intp], offsets: NDArray[np.intp]) -> None:
        self.indices = np.ascontiguousarray(indices, dtype=np.intp)
        self.offsets = np.ascontiguousarray(offsets, dtype=np.intp)
        self.sizes: NDArray[np.intp] = np.diff(self.offsets)

    @classmethod
    def from_owners(cls, owners: NDArray[np.intp], num_clients: int) -> Partition:
        """Build from each example's client, shape (examples,); indices rise within a client."""
        sizes = np.bincount(owners, minlength=num_clients)
        return cls(np.argsort(owners, kind="stable"), np.concatenate([[0], np.cumsum(sizes)]))

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, client: int) -> NDArray[np.intp]: ...
    @overload
    def __getitem__(self, client: slice) -> Sequence[NDArray[np.intp]]: ...
    def __getitem__(self, client: int | slice) -> Any:
        if isinstance(client, slice):
            return [self[k] for k in range(*client.indices(len(self)))]
        k = range(len(self))[client]
        return self.indices[self.offsets[k] : self.offsets[k + 1]]

    def divide(self, fraction: float, seed: int) -> tuple[Partition, Partition]:
        """Divide every client's examples at random into those it trains on and those it is tested on.

        Parameters
        ----------
        fraction : float
            Share to test on, rounded to whole examples; at least one example of a client that has any stays for
            training.
        seed : int

        Returns
        -------
        train, test : Partition
        """
        sizes = self.sizes
        tested = np.minimum(np.rint(sizes * fraction).astype(np.intp), np.maximum(sizes - 1, 0))
        owner = np.repeat(np.arange(len(self)), sizes)
        draws = generator(seed, Purpose.CLIENT_TEST).random(len(self.indices))
        shuffled = np.lexsort((draws, owner))  # within each client
        place = np.arange(len(owner)) - self.offsets[owner]
        for_test = np.empty(len(owner), dtype=bool)
        for_test[shuffled] = place < tested[owner]
        parts = (~for_test, sizes - tested), (for_test, tested)
        train, test = (Partition(self.indices[m], np.concatenate([[0], np.cumsum(n)])) for m, n in parts)
        return train, test

    def label_counts(self, labels: NDArray[Any], num_classes: int) -> NDArray[np.intp]:
        """Count each client's examples of each label, shape (clients, num_classes)."""
        owner = np.repeat(np.arange(len(self)), self.sizes)
        cell = owner * num_classes + labels[self.indices]
        counts = np.bincount(cell, minlength=len(self) * num_classes)
        return counts.reshape(len(self), num_classes).astype(np.intp)


@dataclass(frozen=True)
class Split(ABC):
    """Divides a dataset's training examples among clients; every example goes to exactly one.

    Parameters
    ----------
    num_clients : int
        At least 1, and no more than there are examples (no client is left empty).
    seed : int, optional, keyword
        Default: the experiment's seed, so that a study's seeds vary the split too.
    """

    num_clients: int
    seed: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        whole(f"{type(self).__name__}'s num_clients", self.num_clients, 1)
        if self.seed is not None:
            whole(f"{type(self).__name__}'s seed", self.seed, 0)

    def __str__(self) -> str:
        """Return a short label: the family and what shapes it, without the number of clients."""
        shape = [getattr(self, f.name) for f in fields(self) if f.name not in ("num_clients", "seed")]
        return f"{type(self).__name__}({', '.join(map(str, shape))})" if shape else type(self).__name__

    def partition(self, labels: NDArray[Any], seed: int = 0) -> Partition:
        """Divide examples among clients.

        Parameters
        ----------
        labels : ndarray of int, shape (examples,)
        seed : int
            Used when the split has none of its own.

        Returns
        -------
        Partition
            One index array per client.

        Raises
        ------
        ConfigError
            More clients than examples.
        """
        labels = np.asarray(labels)
        if self.num_clients > len(labels):
            raise ConfigError(
                f"{type(self).__name__}'s num_clients is {self.num_clients}; "
                f"allowed: at most {len(labels)}, one training example each"
            )
        own = seed if self.seed is None else self.seed
        return self._partition(labels, generator(own, Purpose.SPLIT))

    @abstractmethod
    def _partition(self, labels: NDArray[Any], rng: np.random.Generator) -> Partition:
        """Divide; the number of clients has been checked."""


def even_offsets(total: int, parts: int) -> NDArray[np.intp]:
    """Return cuts that divide `total` into parts differing by at most one, the larger first."""
    sizes = np.full(parts, total // parts)
    sizes[: total % parts] += 1
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.intp)
