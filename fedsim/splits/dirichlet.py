"""Label skew of adjustable strength: each client's label distribution is drawn from a Dirichlet distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import Interval
from fedsim.splits.base import CountedSplit, distribute
from fedsim.splits.partition import Partition
from fedsim.splits.sizes import Sizes, check_sizes, client_sizes


@dataclass(frozen=True)
class Dirichlet(CountedSplit):
    """Draw the label distribution of each client from Dirichlet(alpha * prior).

    Hsu, Qi and Brown, "Measuring the effects of non-identical data distribution for federated visual
    classification", 2019 (arXiv:1909.06335), section 2: alpha -> infinity gives every client the prior (the data's own
    label distribution), alpha -> 0 a single label. Examples are drawn without replacement; when a label is used
    up, the client's distribution is renormalised over the remaining labels. Clients draw in random order. Their sizes
    differ by at most one unless `sizes` is given, which combines label skew with quantity skew.

    Parameters
    ----------
    num_clients : int
    alpha : float
        Concentration, greater than 0.
    sizes : Sizes or sequence of int, optional
        As for `IID`.
    seed : int, optional, keyword
    """

    alpha: float = 0.5
    sizes: Sizes | Sequence[int] | None = None
    limits = {"alpha": Interval(0, open_low=True)}

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "sizes", check_sizes("Dirichlet's sizes", self.sizes, self.num_clients))

    def assign(self, labels: NDArray[Any], rng: np.random.Generator) -> Partition:
        """Draw the label distributions and divide the examples."""
        _, left = np.unique(labels, return_counts=True)
        prior = left / left.sum()
        mixtures = rng.dirichlet(self.alpha * prior, self.num_clients)
        sizes = client_sizes(self.sizes, len(labels), self.num_clients, rng)
        counts = np.zeros((self.num_clients, len(left)), dtype=np.intp)
        for client in rng.permutation(self.num_clients):
            need = sizes[client]
            while need:
                odds = mixtures[client] * (left > 0)
                if not odds.sum() > 0:  # the client's labels are used up, or underflowed: draw from all remaining ones
                    odds = left.astype(float)
                drawn = np.minimum(rng.multinomial(need, odds / odds.sum()), left)
                counts[client] += drawn
                left -= drawn
                need -= drawn.sum()
        return distribute(labels, counts, rng)
