"""Base classes of splits that change the shards or the examples of another split."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_instance
from fedsim.data.dataset import Dataset
from fedsim.splits.base import Split
from fedsim.splits.federated import FederatedDataset
from fedsim.splits.partition import Groups, Partition
from fedsim.streams import Purpose


@dataclass(frozen=True)
class SplitWrapper(Split):
    """A split that is made from another split.

    Parameters
    ----------
    split : Split
        Divides the examples; the same seed gives the same shards with and without the change.
    seed : int, optional, keyword
        Seed of both splits; default the experiment's.
    """

    split: Split

    def __post_init__(self) -> None:
        super().__post_init__()
        check_instance(f"{type(self).__name__}'s split", self.split, Split, "a split, such as IID(50)")

    @property
    def num_clients(self) -> int | None:
        """The number of clients of the wrapped split; None if it depends on the data."""
        return getattr(self.split, "num_clients", None)

    def partition(self, labels: NDArray[Any], seed: int = 0, groups: Groups | None = None) -> Partition:
        """Divide examples with the wrapped split."""
        return self.split.partition(labels, seed if self.seed is None else self.seed, groups)

    def client_names(self, groups: Groups) -> NDArray[Any]:
        """Return the names of the wrapped split's clients."""
        return self.split.client_names(groups)


@dataclass(frozen=True)
class ChangingWrapper(SplitWrapper):
    """A split that changes what another split has divided; subclasses implement `change`.

    Parameters
    ----------
    split : Split
    seed : int, optional, keyword
    """

    def federate(self, dataset: Dataset, seed: int = 0) -> FederatedDataset:
        """Divide the dataset with the wrapped split, and change the result."""
        federated = self.split.federate(dataset, seed if self.seed is None else self.seed)
        return self.change(federated, self.rng(seed, Purpose.SPLIT_CHANGE))

    @abstractmethod
    def change(self, federated: FederatedDataset, rng: np.random.Generator) -> FederatedDataset:
        """Return the divided dataset with the change."""


@dataclass(frozen=True)
class GradedWrapper(ChangingWrapper):
    """A change whose strength increases linearly over the clients, from `low` at the first to `high` at the last.

    Parameters
    ----------
    split : Split
    high, low : float
        In NIID-Bench `low` is 0. With equal values all clients are changed in the same way.
    seed : int, optional, keyword
    """

    high: float = 0.0
    low: float = 0.0

    def strengths(self, partition: Partition) -> NDArray[np.float64]:
        """Return the strength at each entry of the partition's `indices`."""
        return np.repeat(np.linspace(self.low, self.high, len(partition)), partition.sizes)
