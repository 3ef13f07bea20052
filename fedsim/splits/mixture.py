"""Combinations: a mixture of two splits, examples shared by all clients, and all examples on one client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import Interval, shorten
from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError
from fedsim.splits.base import Split
from fedsim.splits.federated import FederatedDataset
from fedsim.splits.partition import Indices, Partition
from fedsim.splits.wrapped import Wrapped
from fedsim.streams import Purpose


@dataclass(frozen=True)
class Mixture(Wrapped):
    """Divide a random share of the examples by one split and the rest by another; each client gets a part of both.

    ``Mixture(IID(100), Shards(100, per_client=1), share=0.1)`` is SCAFFOLD's data of 10 % similarity (Karimireddy et
    al., ICML 2020, arXiv:1910.06378, section 7.1).

    Parameters
    ----------
    split, other : Split
        Both into the same number of clients.
    share : float
        Share of the examples that `split` divides, between 0 and 1; both parts must be large enough for their split.
    seed : int, optional, keyword
    """

    other: Split
    share: float = 0.5
    limits = {"share": Interval(0, 1, open_low=True, open_high=True)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.other, Split):
            raise ConfigError(f"Mixture's other is {shorten(self.other)}; allowed: a split, such as IID(50)")

    def partition(
        self, labels: NDArray[Any], seed: int = 0, groups: Mapping[str, NDArray[Any]] | None = None
    ) -> Partition:
        """Divide examples, as `Split.partition` says; ConfigError if the splits make different numbers of clients."""
        labels = np.asarray(labels)
        rng = self.rng(seed, Purpose.SPLIT_CHANGE)
        order = rng.permutation(len(labels))
        cut = round(self.share * len(labels))
        parts = []
        for split, chosen in ((self.split, np.sort(order[:cut])), (self.other, np.sort(order[cut:]))):
            held = {name: group[chosen] for name, group in (groups or {}).items()}
            part = split.partition(labels[chosen], int(rng.integers(2**63)), held)
            parts.append(Partition(chosen[part.indices], part.offsets))
        if len(parts[0]) != len(parts[1]):
            raise ConfigError(
                f"Mixture has splits into {len(parts[0])} and {len(parts[1])} clients; allowed: the same number"
            )
        return _together(parts[0], parts[1])


@dataclass(frozen=True)
class Shared(Wrapped):
    """Give a random share of the examples to every client, in addition to its own shard.

    The remedy of Zhao et al., "Federated learning with non-IID data", 2018 (arXiv:1806.00582), section 4: a small
    globally shared set raises accuracy on skewed shards. Shared examples are in every shard, all others in one shard.

    Parameters
    ----------
    split : Split
        Divides the remaining examples.
    fraction : float
        Share of the examples that all clients get, between 0 and 1; enough must remain for the split.
    seed : int, optional, keyword
    """

    fraction: float = 0.05
    limits = {"fraction": Interval(0, 1, open_low=True, open_high=True)}

    def partition(
        self, labels: NDArray[Any], seed: int = 0, groups: Mapping[str, NDArray[Any]] | None = None
    ) -> Partition:
        """Divide examples, as `Split.partition` says."""
        labels = np.asarray(labels)
        order = self.rng(seed, Purpose.SPLIT_CHANGE).permutation(len(labels))
        cut = round(self.fraction * len(labels))
        common, rest = order[:cut], np.sort(order[cut:])
        held = {name: group[rest] for name, group in (groups or {}).items()}
        part = super().partition(labels[rest], seed, held)
        own = Partition(rest[part.indices], part.offsets)
        everywhere = Partition.of_sizes(np.tile(common, len(own)), np.full(len(own), cut))
        return _together(own, everywhere)


@dataclass(frozen=True)
class Pooled(Wrapped):
    """Give the examples of all clients of another split to one client, for centralised training on the same data.

    Parameters
    ----------
    split : Split
    seed : int, optional, keyword
        Of that split; default the experiment's.
    """

    @property
    def num_clients(self) -> int:
        """One."""
        return 1

    def federate(self, dataset: Dataset, seed: int = 0) -> FederatedDataset:
        """Divide the dataset and merge the shards."""
        return self.inner(dataset, seed).pooled()

    def partition(
        self, labels: NDArray[Any], seed: int = 0, groups: Mapping[str, NDArray[Any]] | None = None
    ) -> Partition:
        """Give all examples to one client, as `Split.partition` says."""
        indices = super().partition(labels, seed, groups).indices
        return Partition(indices, np.array([0, len(indices)]))


def _together(one: Partition, other: Partition) -> Partition:
    """Return each client's examples of both partitions."""
    owners: Indices = np.concatenate([one.owners, other.owners])
    return Partition.from_owners(owners, len(one), np.concatenate([one.indices, other.indices]))
