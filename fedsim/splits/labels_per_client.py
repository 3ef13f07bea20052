"""Pathological label skew: a fixed number of labels per client, with disjoint or overlapping shards."""

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
        by_label, totals = shuffle_by_label(labels, rng)
        has_label = self._choose(len(totals), rng)
        starts = np.concatenate([[0], np.cumsum(totals)[:-1]])
        owners, indices = [], []
        for label, (start, total) in enumerate(zip(starts, totals, strict=True)):
            clients = np.flatnonzero(has_label[:, label])
            own = even_sizes(total, len(clients))
            more = np.minimum(np.rint(self.overlap * own).astype(np.intp), np.roll(own, -1))
            sizes = own + (more if len(clients) > 1 else 0)
            first = np.cumsum(own) - own
            position = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            owners.append(np.repeat(clients, sizes))
            indices.append(by_label[start + (np.repeat(first, sizes) + position) % total])
        partition = Partition.from_owners(np.concatenate(owners), self.num_clients, np.concatenate(indices))
        return partition.top_up(1, rng)  # if a label has fewer examples than clients, a client may get none

    def _choose(self, labels: int, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Return which labels each client has, shape (clients, labels)."""
        clients = self.num_clients
        least = -(-labels // clients)  # so that every label has a client
        check_integer(f"LabelsPerClient's k for {clients} clients and {labels} labels", self.k, least, labels)
        order = rng.random((clients, labels))
        client, label = np.ogrid[:clients, :labels]
        order[client % labels == label if clients >= labels else label % clients == client] = -1
        has_label = np.zeros((clients, labels), dtype=bool)
        np.put_along_axis(has_label, np.argsort(order, axis=1)[:, : self.k], True, axis=1)
        return has_label
