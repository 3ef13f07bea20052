"""The pathological split of the FedAvg paper: sorted by label, cut into shards, and a few shards per client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import Interval, check_integer
from fedsim.splits.base import CountedSplit, shuffle_by_label
from fedsim.splits.partition import Partition
from fedsim.splits.sizes import even_sizes


@dataclass(frozen=True)
class Shards(CountedSplit):
    """Sort by label, cut into ``num_clients * per_client`` equal shards, and give each client `per_client` at random.

    McMahan et al., AISTATS 2017 (arXiv:1602.05629), section 3: MNIST in 200 shards of 300, two to each of 100
    clients, so that most clients hold two digits. Here the examples of a label are shuffled before cutting.

    Parameters
    ----------
    num_clients : int
    per_client : int
        Shards per client, at least 1; ``num_clients * per_client`` is at most the number of examples.
    seed : int, optional, keyword
    """

    per_client: int = 2
    limits = {"per_client": Interval(1)}

    def assign(self, labels: NDArray[Any], rng: np.random.Generator) -> Partition:
        """Sort, cut and distribute."""
        field = f"Shards's per_client for {self.num_clients} clients and {len(labels)} training examples"
        check_integer(field, self.per_client, 1, len(labels) // self.num_clients)
        shards = self.num_clients * self.per_client
        by_label, _ = shuffle_by_label(labels, rng)
        shard_owner = np.repeat(np.arange(self.num_clients), self.per_client)[rng.permutation(shards)]
        owners = np.repeat(shard_owner, even_sizes(len(labels), shards))
        return Partition.from_owners(owners, self.num_clients, by_label)
