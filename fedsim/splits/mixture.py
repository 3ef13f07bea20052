"""Combinations of shards: a mixture of two splits, examples shared by all clients, all examples on one client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import Interval, check_instance
from fedsim.errors import ConfigError
from fedsim.splits.base import Split
from fedsim.splits.federated import FederatedDataset
from fedsim.splits.partition import Groups, Indices, Partition
from fedsim.splits.wrapped import ChangingWrapper, SplitWrapper
from fedsim.streams import Purpose


@dataclass(frozen=True)
class Mixture(SplitWrapper):
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
        check_instance("Mixture's other", self.other, Split, "a split, such as IID(50)")

    def partition(self, labels: NDArray[Any], seed: int = 0, groups: Groups | None = None) -> Partition:
        """Divide examples, as `Split.partition` says; ConfigError if the splits make different numbers of clients."""
        labels = np.asarray(labels)
        rng = self.rng(seed, Purpose.SPLIT_CHANGE)
        order = rng.permutation(len(labels))
        cut = round(self.share * len(labels))
        first, second = (
            _divide(split, np.sort(chosen), labels, int(rng.integers(2**63)), groups)
            for split, chosen in ((self.split, order[:cut]), (self.other, order[cut:]))
        )
        if len(first) != len(second):
            raise ConfigError(f"Mixture's splits make {len(first)} and {len(second)} clients; allowed: the same number")
        return _merge(first, second)

    def client_names(self, groups: Groups) -> NDArray[Any]:
        """Return the names that one of the splits gives, or both; if both give others, each client has two names."""
        first, second = self.split.client_names(groups), self.other.client_names(groups)
        if len(first) != len(second) or np.array_equal(first, second):
            return first if len(first) else second
        return np.array([f"{a} + {b}" for a, b in zip(first.tolist(), second.tolist(), strict=True)])


@dataclass(frozen=True)
class Shared(SplitWrapper):
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

    def partition(self, labels: NDArray[Any], seed: int = 0, groups: Groups | None = None) -> Partition:
        """Divide examples, as `Split.partition` says."""
        labels = np.asarray(labels)
        order = self.rng(seed, Purpose.SPLIT_CHANGE).permutation(len(labels))
        cut = round(self.fraction * len(labels))
        own = _divide(self.split, np.sort(order[cut:]), labels, seed if self.seed is None else self.seed, groups)
        shared = Partition.from_sizes(np.tile(order[:cut], len(own)), np.full(len(own), cut))
        return _merge(own, shared)


@dataclass(frozen=True)
class Pooled(ChangingWrapper):
    """Give the examples of all clients of another split to one client, for centralised training on the same data.

    Parameters
    ----------
    split : Split
    seed : int, optional, keyword
        Seed of that split; default the experiment's.
    """

    @property
    def num_clients(self) -> int:
        """The number of clients, 1."""
        return 1

    def change(self, federated: FederatedDataset, rng: np.random.Generator) -> FederatedDataset:
        """Merge the shards."""
        return federated.pooled()

    def partition(self, labels: NDArray[Any], seed: int = 0, groups: Groups | None = None) -> Partition:
        """Give all examples to one client, as `Split.partition` says."""
        return super().partition(labels, seed, groups).pooled()


def _divide(split: Split, examples: Indices, labels: NDArray[Any], seed: int, groups: Groups | None) -> Partition:
    """Return a split's partition of some of the examples."""
    part = split.partition(labels[examples], seed, {name: group[examples] for name, group in (groups or {}).items()})
    return Partition(examples[part.indices], part.offsets)


def _merge(one: Partition, other: Partition) -> Partition:
    """Return a partition that gives each client its examples of both partitions."""
    owners = np.concatenate([one.owners, other.owners])
    return Partition.from_owners(owners, len(one), np.concatenate([one.indices, other.indices]))
