"""Pathological label skew: a fixed number of labels per client, with disjoint or overlapping shards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import Interval
from fedsim.errors import ConfigError
from fedsim.splits.base import CountedSplit, shuffled_by_label
from fedsim.splits.partition import Partition
from fedsim.splits.sizes import even_sizes


@dataclass(frozen=True)
class LabelsPerClient(CountedSplit):
    """Give every client `k` labels, and divide each label's examples evenly among the clients that have it.

    Li et al., ICDE 2022 (arXiv:2102.02079), section IV-A: NIID-Bench's ``#C = k``. As in its code, client i has label
    ``i mod labels`` and k - 1 others at random. If there are fewer clients than labels, the remaining labels are
    assigned in turn first, so that every label has a client.

    Parameters
    ----------
    num_clients : int
    k : int
        Labels per client, at least 1 and at most the number of labels, which ``num_clients * k`` must reach.
    overlap : float
        Share of a client's examples of a label that the next client with this label also gets, 0 to 1. With 0 shards
        are disjoint; with 1 each example is in two shards.
    seed : int, optional, keyword
    """

    k: int = 2
    overlap: float = 0.0
    limits = {"k": Interval(1), "overlap": Interval(0, 1)}

    def assign(self, labels: NDArray[Any], rng: np.random.Generator) -> Partition:
        """Choose the labels and divide their examples."""
        by_label, totals = shuffled_by_label(labels, rng)
        holds = self._choose(len(totals), rng)
        starts = np.concatenate([[0], np.cumsum(totals)[:-1]])
        owners, indices = [], []
        for label, (start, total) in enumerate(zip(starts, totals, strict=True)):
            holders = np.flatnonzero(holds[:, label])
            own = even_sizes(total, len(holders))
            more = np.minimum(np.rint(self.overlap * own).astype(np.intp), np.roll(own, -1))
            held = own + (more if len(holders) > 1 else 0)
            first = np.cumsum(own) - own
            within = np.arange(held.sum()) - np.repeat(np.cumsum(held) - held, held)
            owners.append(np.repeat(holders, held))
            indices.append(by_label[start + (np.repeat(first, held) + within) % total])
        partition = Partition.from_owners(np.concatenate(owners), self.num_clients, np.concatenate(indices))
        return partition.top_up(1, rng)  # if a label has fewer examples than clients, a client may get none

    def _choose(self, labels: int, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Return which labels each client has, shape (clients, labels)."""
        clients = self.num_clients
        if self.k > labels or clients * self.k < labels:
            need = f"at least {-(-labels // clients)}, so that every label has a holder, and at most {labels}"
            raise ConfigError(f"LabelsPerClient's k is {self.k} for {clients} clients; allowed: {need}")
        order = rng.random((clients, labels))
        client, label = np.ogrid[:clients, :labels]
        order[client % labels == label if clients >= labels else label % clients == client] = -1
        holds = np.zeros((clients, labels), dtype=bool)
        np.put_along_axis(holds, np.argsort(order, axis=1)[:, : self.k], True, axis=1)
        return holds
