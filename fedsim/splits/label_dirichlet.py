"""Label skew as in NIID-Bench: the examples of each label are divided by shares from a Dirichlet distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import Interval, check_integer
from fedsim.splits.base import CountedSplit, distribute
from fedsim.splits.partition import Indices, Partition

#: Largest number of draws for a partition in which every client has enough examples.
MAX_DRAWS = 10


@dataclass(frozen=True)
class LabelDirichlet(CountedSplit):
    """Divide each label's examples among clients by shares drawn from Dirichlet(alpha).

    Yurochkin et al., "Bayesian nonparametric federated learning of neural networks", ICML 2019 (arXiv:1905.12022),
    section 4, and Li et al., ICDE 2022 (arXiv:2102.02079), section IV-A (NIID-Bench's ``noniid-labeldir``). Both
    sizes and labels are skewed. NIID-Bench draws again until every client has 10 examples; fedsim draws at most ten
    times, then moves random examples to the clients that have too few.

    Parameters
    ----------
    num_clients : int
    alpha : float
        Concentration, greater than 0.
    min_size : int
        Minimum number of examples per client, at least 1; 10 in NIID-Bench.
    balance : bool
        Whether a client that already has its equal share of all examples gets no examples of further labels, as in
        the code of both papers.
    seed : int, optional, keyword
    """

    alpha: float = 0.5
    min_size: int = 1
    balance: bool = True
    limits = {"alpha": Interval(0, open_low=True), "min_size": Interval(1)}

    def assign(self, labels: NDArray[Any], rng: np.random.Generator) -> Partition:
        """Draw the shares and divide the examples."""
        field = f"LabelDirichlet's min_size for {self.num_clients} clients and {len(labels)} training examples"
        check_integer(field, self.min_size, 1, len(labels) // self.num_clients)
        _, totals = np.unique(labels, return_counts=True)
        for _ in range(MAX_DRAWS):
            counts = self._draw(totals, rng)
            if counts.sum(axis=1).min() >= self.min_size:
                break
        return distribute(labels, counts, rng).top_up(self.min_size, rng)

    def _draw(self, totals: Indices, rng: np.random.Generator) -> Indices:
        """Return the number of examples of each label per client, shape (clients, labels)."""
        counts = np.zeros((self.num_clients, len(totals)), dtype=np.intp)
        sizes = np.zeros(self.num_clients, dtype=np.intp)
        for k, total in enumerate(totals):
            room = sizes < totals.sum() / self.num_clients if self.balance else np.ones(len(sizes), dtype=bool)
            shares = rng.dirichlet(np.full(self.num_clients, self.alpha)) * room
            if not shares.sum() > 0:  # only clients without room have shares, or all shares underflowed
                shares = np.zeros(len(sizes))
                shares[rng.choice(np.flatnonzero(room))] = 1
            cuts = (np.cumsum(shares / shares.sum()) * total).astype(np.intp)
            cuts[-1] = total
            counts[:, k] = np.diff(cuts, prepend=0)
            sizes += counts[:, k]
        return counts
