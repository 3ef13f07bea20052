"""The settings of secure aggregation.

Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning", CCS 2017 (IACR ePrint
2017/281), figure 4, for a server that follows the protocol. With `neighbours`, each client shares masks and secrets
with some of the others only: Bell, Bonawitz, Gascon, Lepoint and Raykova, "Secure single-server aggregation with
(poly)logarithmic overhead", CCS 2020 (IACR ePrint 2020/704), algorithm 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsim.arguments import CheckedInit
from fedsim.checks import Interval, check_fields
from fedsim.errors import ConfigError
from fedsim.objects import short_repr
from fedsim.streams import Purpose, generator

#: With fewer clients, the sum of the others' updates would tell a client, or the server, too much.
MIN_CLIENTS = 3


@dataclass(frozen=True)
class SecureAggregation(CheckedInit):
    """Secure aggregation of the clients' updates.

    Parameters
    ----------
    max_abs : float
        Largest absolute value of a coordinate of an update, greater than 0; a client beyond it fails. The range from
        ``-max_abs`` to ``max_abs`` is divided into about 2**32 / clients steps, to which coordinates are rounded.
    threshold : float
        A client's secrets can be recovered with the help of more than this share of its neighbours, at least 0 and
        less than 1. A round that loses more clients is rejected; fewer colluding clients learn nothing.
    neighbours : int, optional
        Number of other clients with which each client shares masks and secrets, an even number of at least 2; default
        all. The cost of a round is proportional to it.
    dropout : float
        Probability, less than 1, that a client drops out after it has shared its secrets: to try the recovery.

    Raises
    ------
    ConfigError
        A value outside these.
    """

    max_abs: float = 8.0
    threshold: float = 0.5
    neighbours: int | None = None
    dropout: float = 0.0

    limits: ClassVar = {
        "max_abs": Interval(0, 1e6, open_low=True),
        "threshold": Interval(0, 1, open_high=True),
        "neighbours": Interval(2),
        "dropout": Interval(0, 1, open_high=True),
    }

    def __post_init__(self) -> None:
        check_fields(self)
        if self.neighbours and self.neighbours % 2:
            raise ConfigError(f"SecureAggregation's neighbours is {self.neighbours}; allowed: an even number")

    def __str__(self) -> str:
        """Return a short label: the settings that differ from their defaults."""
        return short_repr(self)

    def shares_needed(self, neighbours: int) -> int:
        """Return how many shares recover a secret that is shared among some neighbours; one alone never does."""
        return max(2, int(self.threshold * neighbours) + 1)

    def graph(self, clients: int, seed: int, round_number: int) -> NDArray[np.intp]:
        """Return the positions of each client's neighbours in the cohort, shape (clients, neighbours).

        All others, or those beside it on a ring of the clients in random order.
        """
        if self.neighbours is None or self.neighbours >= clients - 1:
            others = np.arange(clients) + np.arange(1, clients)[:, None]
            return np.sort(others % clients, axis=0).T
        ring = generator(seed, Purpose.NEIGHBOURS, round_number).permutation(clients)
        half = self.neighbours // 2
        offsets = np.concatenate([np.arange(-half, 0), np.arange(1, half + 1)])
        graph = np.empty((clients, self.neighbours), np.intp)
        graph[ring] = ring[(np.arange(clients)[:, None] + offsets) % clients]
        return np.sort(graph, axis=1)

    def drops_out(self, client: int, seed: int, round_number: int) -> bool:
        """Return whether a client drops out in a round."""
        return bool(generator(seed, Purpose.DROPOUT, round_number, client).random() < self.dropout)
