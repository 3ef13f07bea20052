"""How far clients went apart in a round, from what the engine has at hand: each update's length and their mean's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Drift(NamedTuple):
    """How far clients' updates ``d_k = w_k - w`` went apart, with ``p_k`` the clients' shares of the examples.

    Attributes
    ----------
    client_drift : float
        Mean of ``|w_k - w|`` over clients.
    gradient_diversity : float
        ``sum |p_k d_k|^2 / |sum p_k d_k|^2``: 1 where updates are orthogonal, 1 / K where K equal clients agree, large
        where they cancel (Yin et al., "Gradient diversity: a key ingredient for scalable distributed learning",
        AISTATS 2018, arXiv:1706.05699, definition 1).
    update_cosine : float
        Mean cosine between the updates of two clients, pairs weighted by ``p_j |d_j| p_k |d_k|``; from -1 to 1. That
        mean is ``(|sum p_k d_k|^2 - sum |p_k d_k|^2) / ((sum |p_k d_k|)^2 - sum |p_k d_k|^2)``, which needs no pairs.
    """

    client_drift: float
    gradient_diversity: float
    update_cosine: float


@dataclass
class Movements:
    """A round's movements, added up block by block in cohort order."""

    lengths: list[NDArray[np.float64]] = field(default_factory=list)
    examples: list[NDArray[np.intp]] = field(default_factory=list)
    #: Length of the mean update, weighted by examples; NaN where nobody took the mean.
    mean_length: float = float("nan")

    def add(self, lengths: NDArray[np.float64], examples: NDArray[np.intp]) -> None:
        """Take a block's lengths ``|w_k - w|`` and numbers of examples, each of shape (clients,)."""
        self.lengths.append(lengths)
        self.examples.append(examples)

    def drift(self) -> Drift:
        """Return what they amount to; NaN where it is not defined (no client; one client has no pair)."""
        lengths = np.concatenate([np.zeros(0), *self.lengths])
        if not len(lengths):
            return Drift(*[float("nan")] * 3)
        examples = np.concatenate(self.examples)
        shares = lengths * (examples / examples.sum())
        squares, mean = float((shares * shares).sum()), self.mean_length**2
        pairs = float(shares.sum()) ** 2 - squares
        diversity = squares / mean if mean > 0 else float("nan")
        cosine = (mean - squares) / pairs if len(lengths) > 1 and pairs > 0 else float("nan")
        return Drift(float(lengths.mean()), diversity, min(max(cosine, -1.0), 1.0))
