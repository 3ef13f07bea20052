"""Statistics of a round: clients, failures, bytes, and client drift."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim.clients.task import Evaluation, Task, Update
from fedsim.flower.records import array_bytes

Indices = NDArray[np.intp]


class Drift(NamedTuple):
    """Client drift, from the updates ``d_k = w_k - w``, with ``p_k`` the clients' shares of the examples.

    Attributes
    ----------
    client_drift : float
        Mean of ``|d_k|`` over clients.
    gradient_diversity : float
        ``sum |p_k d_k|^2 / |sum p_k d_k|^2``: 1 if updates are orthogonal, 1 / K if K equal clients agree, large if
        they cancel (Yin et al., "Gradient diversity: a key ingredient for scalable distributed learning", AISTATS
        2018, arXiv:1706.05699, definition 1).
    update_cosine : float
        Mean cosine between the updates of two clients, pairs weighted by ``p_j |d_j| p_k |d_k|``; from -1 to 1. That
        mean is ``(|sum p_k d_k|^2 - sum |p_k d_k|^2) / ((sum |p_k d_k|)^2 - sum |p_k d_k|^2)``, which needs no pairs.
    """

    client_drift: float
    gradient_diversity: float
    update_cosine: float


def drift(norms: NDArray[np.float64], examples: Indices, mean_norm: float) -> Drift:
    """Return a round's client drift; NaN where it is not defined (no client; one client has no pair).

    Parameters
    ----------
    norms : ndarray of float64, shape (clients,)
        ``|d_k|``.
    examples : ndarray of int, shape (clients,)
    mean_norm : float
        ``|sum p_k d_k|``.
    """
    if not len(norms):
        return Drift(*[float("nan")] * 3)
    shares = norms * (examples / examples.sum())
    squares, mean = float((shares * shares).sum()), mean_norm**2
    pairs = float(shares.sum()) ** 2 - squares
    diversity = squares / mean if mean > 0 else float("nan")
    cosine = (mean - squares) / pairs if len(norms) > 1 and pairs > 0 else float("nan")
    return Drift(float(norms.mean()), diversity, min(max(cosine, -1.0), 1.0))


@dataclass
class RoundStatistics:
    """Statistics of one round.

    Attributes
    ----------
    trained : list of tuple of Task and ndarray of int
        The tasks of cohorts and the clients that trained, also if they failed.
    updates : list of Update
        Of the aggregated clients; their norms are known.
    evaluations : list of Evaluation
    failed : dict of int to str
        Partition id -> reason, for excluded clients.
    bytes_down, bytes_up : int
        Serialised arrays sent to and received from clients.
    secure_bytes, secure_seconds : float
        Bytes of keys and shares, and time of their exchange and of removing the masks; NaN without secure aggregation.
    mean_update_norm : float
        Length of the mean update, weighted by examples; NaN if no mean was computed.
    rejected : tuple of two int, optional
        Number of updates of a rejected round, and the number that it needed.
    """

    trained: list[tuple[Task, Indices]] = field(default_factory=list)
    updates: list[Update] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    bytes_down: int = 0
    bytes_up: int = 0
    secure_bytes: float = float("nan")
    secure_seconds: float = float("nan")
    mean_update_norm: float = float("nan")
    rejected: tuple[int, int] | None = None

    def add_bytes_up(self, update: Update, model_bytes: int) -> None:
        """Count the bytes that the clients of a block send; `model_bytes` for the weights, if they are not encoded."""
        encoded = sum(array_bytes(rows[0]) for rows in update.encoded.values())
        others = sum(array_bytes(rows[0]) for rows in update.up.values())
        self.bytes_up += len(update.partition_ids) * ((encoded or model_bytes) + others)

    def _column(self, name: str) -> NDArray[Any]:
        return np.concatenate([np.zeros(0), *(getattr(update, name) for update in self.updates)])

    @property
    def clients(self) -> int:
        """Number of clients whose updates were aggregated."""
        return sum(len(update.partition_ids) for update in self.updates)

    @property
    def train_loss(self) -> float:
        """The mean over the aggregated clients' examples, or NaN."""
        if not self.clients:
            return float("nan")
        losses, examples = self._column("train_loss"), self._column("num_examples")
        return float((losses * examples).sum() / examples.sum())

    @property
    def largest_update(self) -> tuple[int, float]:
        """The partition id and the length of the longest update; there must be at least one."""
        norms = self._column("update_norm")
        return int(self._column("partition_ids")[norms.argmax()]), float(norms.max())

    def drift(self) -> Drift:
        """Return the client drift of the round."""
        return drift(self._column("update_norm"), self._column("num_examples"), self.mean_update_norm)
