"""Label skew of any strength: each client's label mixture is drawn from a Dirichlet distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import real
from fedsim.splits.base import Partition, Split, even_offsets


@dataclass(frozen=True)
class Dirichlet(Split):
    """Give each client a label mixture drawn from Dirichlet(alpha * prior), and equally many examples.

    Hsu, Qi and Brown, "Measuring the effects of non-identical data distribution for federated visual
    classification", 2019 (arXiv:1909.06335), section 2: alpha -> infinity gives every client the prior (the data's own
    label distribution), alpha -> 0 a single label. Examples are drawn without replacement; when a label runs out, the
    client's mixture is renormalised over what is left, so the last clients take the remains. Clients draw in random
    order, and shard sizes differ by at most one.

    Parameters
    ----------
    num_clients : int
    alpha : float
        Concentration, greater than 0.
    seed : int, optional, keyword
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        real("Dirichlet's alpha", self.alpha, 0, open_low=True)

    def _partition(self, labels: NDArray[Any], rng: np.random.Generator) -> Partition:
        _, label, left = np.unique(labels, return_inverse=True, return_counts=True)
        prior = left / left.sum()
        mixtures = rng.dirichlet(self.alpha * prior, self.num_clients)
        sizes = np.diff(even_offsets(len(labels), self.num_clients))
        counts = np.zeros((self.num_clients, len(left)), dtype=np.intp)
        for client in rng.permutation(self.num_clients):
            need = sizes[client]
            while need:
                odds = mixtures[client] * (left > 0)
                if not odds.sum() > 0:  # its labels are gone (or underflowed): take what is left as it comes
                    odds = left.astype(float)
                drawn = np.minimum(rng.multinomial(need, odds / odds.sum()), left)
                counts[client] += drawn
                left -= drawn
                need -= drawn.sum()
        owners = np.empty(len(labels), dtype=np.intp)
        shuffled = rng.permutation(len(labels))
        by_label = shuffled[np.argsort(label[shuffled], kind="stable")]
        owners[by_label] = np.repeat(np.tile(np.arange(self.num_clients), counts.shape[1]), counts.T.ravel())
        return Partition.from_owners(owners, self.num_clients)
