"""Removal of clients: another split without some of its clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_instance, check_integer, shorten, to_builtin_sequence
from fedsim.errors import ConfigError
from fedsim.splits.federated import FederatedDataset
from fedsim.splits.partition import Groups, Partition
from fedsim.splits.wrapped import ChangingWrapper


@dataclass(frozen=True)
class Without(ChangingWrapper):
    """Remove clients: their shards are empty, and everything else is as with them.

    The other clients keep their partition ids, their examples and their random numbers. The removed clients are sampled
    as before but do not train, so that the others take part in the same rounds; they are not counted as failures. For
    clients that hold out test examples (`test_fraction`), this split should be the outermost one.

    Parameters
    ----------
    split : Split
        Divides the examples among all clients.
    clients : sequence of int
        Partition ids of the clients to remove, each once; at least one client must remain.
    seed : int, optional, keyword
    """

    clients: Sequence[int] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        clients = to_builtin_sequence(self.clients)
        check_instance("Without's clients", clients, list | tuple, "a list of partition ids")
        for client in clients:
            check_integer("Without's clients", client)
        if len(set(clients)) < len(clients):
            raise ConfigError(f"Without's clients is {shorten(clients)}; allowed: each partition id once")
        object.__setattr__(self, "clients", tuple(clients))

    def partition(self, labels: NDArray[Any], seed: int = 0, groups: Groups | None = None) -> Partition:
        """Divide examples, as `Split.partition` says; ConfigError if there is no such client, or none remains."""
        return self._remove(super().partition(labels, seed, groups))

    def change(self, federated: FederatedDataset, rng: np.random.Generator) -> FederatedDataset:
        """Remove the clients."""
        whole = federated.partition
        sizes = whole.sizes if federated.sizes_before is None else federated.sizes_before
        return replace(federated, partition=self._remove(whole), sizes_before=sizes)

    def _remove(self, partition: Partition) -> Partition:
        for client in self.clients:
            check_integer("Without's clients", client, 0, len(partition) - 1)
        kept = partition.select(~np.isin(partition.owners, self.clients))
        if not len(kept.indices):
            raise ConfigError(f"Without's clients is {shorten(self.clients)}; allowed: all but one client at most")
        return kept
