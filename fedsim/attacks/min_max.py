"""Min-Max and Min-Sum: the largest change of the mean that is no farther from the others than they are from each other.

Shejwalkar and Houmansadr, "Manipulating the Byzantine: optimizing model poisoning attacks and defenses for federated
learning", NDSS 2021, section IV. The paper finds the length of the perturbation by bisection; its conditions are
quadratic in it, so that it has a closed form.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsim.attacks.base import AttackContext, ColludingAttack
from fedsim.checks import check_choice

#: Names of the perturbations.
PERTURBATIONS = ("unit", "std", "sign")


@dataclass(frozen=True)
class MinMax(ColludingAttack):
    """Send the mean plus the longest perturbation whose largest distance to a known update is not too large.

    That distance is at most the largest one between two known updates. With one known update it is 0, and that update
    is sent.

    Parameters
    ----------
    fraction, clients, start, knowledge
        As for `ColludingAttack`.
    perturbation : {"unit", "std", "sign"}
        Its direction: the negative mean, the negative standard deviation of each coordinate, or the negative signs of
        the mean.
    """

    perturbation: str = "unit"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(f"{type(self).__name__}'s perturbation", self.perturbation, PERTURBATIONS)

    def update(self, known: NDArray[np.float64], ctx: AttackContext) -> NDArray[np.float64]:
        """Return the update."""
        mean = known.mean(axis=0)
        direction = {"unit": -mean, "std": -known.std(axis=0), "sign": -np.sign(mean)}[self.perturbation]
        length = float(np.sqrt(np.einsum("i,i->", direction, direction)))
        if not length > 0:
            return mean
        direction /= length
        return mean + self._length(known, mean, direction) * direction

    def _length(self, known: NDArray[np.float64], mean: NDArray[np.float64], direction: NDArray[np.float64]) -> float:
        """Return the largest t with ``|mean + t direction - known_i| <= max |known_j - known_k|`` for all i."""
        along = np.einsum("ij,j->i", mean - known, direction)
        own = np.einsum("ij,ij->i", mean - known, mean - known)
        largest = float(_squared_distances(known).max())
        return float((np.sqrt(np.maximum(along**2 + largest - own, 0)) - along).min())


@dataclass(frozen=True)
class MinSum(MinMax):
    """Send the mean plus the longest perturbation whose sum of squared distances to the known updates is not too large.

    That sum is at most the largest one of a known update.

    Parameters
    ----------
    fraction, clients, start, knowledge, perturbation
        As for `MinMax`.
    """

    def _length(self, known: NDArray[np.float64], mean: NDArray[np.float64], direction: NDArray[np.float64]) -> float:
        """Return the largest t with ``sum_i |mean + t direction - known_i|^2 <= max_j sum_i |known_j - known_i|^2``."""
        largest = float(_squared_distances(known).sum(axis=1).max())
        return float(np.sqrt(max(largest - float(((mean - known) ** 2).sum()), 0) / len(known)))


def _squared_distances(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the squared distance between every two rows."""
    from scipy.spatial.distance import pdist, squareform

    distances: NDArray[np.float64] = squareform(pdist(rows, "sqeuclidean"))
    return distances
