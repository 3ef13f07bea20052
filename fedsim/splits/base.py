"""The base classes of splits: objects with a seed that divide examples among clients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsim.arguments import CheckedInit, checked_arguments
from fedsim.checks import Interval, check_fields, check_integer, check_seed
from fedsim.data.dataset import Dataset
from fedsim.splits.federated import FederatedDataset
from fedsim.splits.names import make_names
from fedsim.splits.partition import Groups, Indices, Partition
from fedsim.streams import Purpose, generator


@dataclass(frozen=True)
class Split(CheckedInit, ABC):
    """Divides a dataset's training examples among clients.

    Every example goes to exactly one client, and no client is left empty, unless a split says otherwise.

    Parameters
    ----------
    seed : int, optional, keyword
        Default: the experiment's seed, so that the seeds of a study also vary the split.
    """

    #: Allowed values of numeric parameters, in addition to those of the base class.
    limits: ClassVar[Mapping[str, Interval]] = {}

    seed: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.seed is not None:
            check_seed(f"{type(self).__name__}'s seed", self.seed)

    def __str__(self) -> str:
        """Return a short label: the class, its first parameter, and the others that differ from their defaults."""
        shown = [f for f in fields(self) if f.name not in ("num_clients", "seed")]
        values = [(f, getattr(self, f.name)) for f in shown]
        texts = [str(value) for f, value in values if value != f.default or (f is shown[0] and f.default)]
        return f"{type(self).__name__}({', '.join(texts)})" if texts else type(self).__name__

    @checked_arguments
    def federate(self, dataset: Dataset, seed: int = 0) -> FederatedDataset:
        """Divide a dataset.

        Parameters
        ----------
        dataset : Dataset
        seed : int
            Used if the split has no seed.

        Returns
        -------
        FederatedDataset

        Raises
        ------
        ConfigError
            The split cannot be applied to this dataset.
        """
        partition = self.partition(dataset.strata, seed, dataset.groups)
        names = self.client_names(dataset.groups)
        known = len(names) == len(partition)  # a part of the examples may lack some of the values
        return FederatedDataset(dataset, partition, client_names=make_names(names) if known else ())

    @abstractmethod
    def partition(self, labels: NDArray[Any], seed: int = 0, groups: Groups | None = None) -> Partition:
        """Divide examples by their labels and groups alone.

        Parameters
        ----------
        labels : ndarray of int, shape (examples,)
        seed : int
            Used if the split has no seed.
        groups : mapping of str to ndarray, shape (examples,), optional
            Name -> the group of each example.

        Returns
        -------
        Partition
        """

    def client_names(self, groups: Groups) -> NDArray[Any]:
        """Return what names each client in the data, by partition id, shape (clients,); shape (0,) if nothing does.

        Parameters
        ----------
        groups : mapping of str to ndarray, shape (examples,)
            As for `partition`.
        """
        return np.empty(0)

    def rng(self, seed: int, purpose: Purpose = Purpose.SPLIT) -> np.random.Generator:
        """Return the random number generator of the split."""
        return generator(seed if self.seed is None else self.seed, purpose)


@dataclass(frozen=True)
class CountedSplit(Split):
    """A split into a given number of clients that uses labels only; subclasses implement `assign`.

    Parameters
    ----------
    num_clients : int
        At least 1 and at most the number of examples.
    seed : int, optional, keyword
        Default: the experiment's.
    """

    num_clients: int
    limits = {"num_clients": Interval(1)}

    def partition(self, labels: NDArray[Any], seed: int = 0, groups: Groups | None = None) -> Partition:
        """Divide examples, as `Split.partition` says; ConfigError if there are more clients than examples."""
        labels = np.asarray(labels)
        field = f"{type(self).__name__}'s num_clients for {len(labels)} training examples"
        check_integer(field, self.num_clients, 1, len(labels))
        return self.assign(labels, self.rng(seed))

    @abstractmethod
    def assign(self, labels: NDArray[Any], rng: np.random.Generator) -> Partition:
        """Return the partition; there are at least as many examples as clients."""


def shuffle_by_label(labels: NDArray[Any], rng: np.random.Generator) -> tuple[Indices, Indices]:
    """Return the examples sorted by label, in random order within a label, and the number of examples of each label."""
    shuffled = rng.permutation(len(labels))
    _, label, totals = np.unique(labels, return_inverse=True, return_counts=True)
    small = label.astype(np.min_scalar_type(len(totals)))  # NumPy sorts short integers by radix
    return shuffled[np.argsort(small[shuffled], kind="stable")], totals


def distribute(labels: NDArray[Any], counts: Indices, rng: np.random.Generator) -> Partition:
    """Assign the examples of each label to clients at random, a given number to each client.

    Parameters
    ----------
    labels : ndarray, shape (examples,)
    counts : ndarray of int, shape (clients, labels)
        Number of examples of each label, in ascending order, that each client gets; at most as many as there are.
    rng : Generator
    """
    by_label, totals = shuffle_by_label(labels, rng)
    starts = np.concatenate([[0], np.cumsum(totals)[:-1]])
    assigned = [by_label[start : start + total] for start, total in zip(starts, counts.sum(axis=0), strict=True)]
    owners = np.repeat(np.tile(np.arange(len(counts)), counts.shape[1]), counts.T.ravel())
    return Partition.from_owners(owners, len(counts), np.concatenate(assigned))
