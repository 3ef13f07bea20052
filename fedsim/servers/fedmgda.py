"""FedMGDA+: a common descent direction, the shortest mean of the clients' normalised updates.

Hu, Shaloudegi, Zhang and Yu, "Federated learning meets multi-objective optimization", IEEE TNSE 2022
(arXiv:2006.11489), algorithm 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_real
from fedsim.errors import FedsimError
from fedsim.servers.fedavg import GatheringFedAvg
from fedsim.updates.aggregators import Array, distances_to

#: Largest difference of a solution's squared length from the smallest possible one, in units of the squared length 1.
TOLERANCE = 1e-5


class FedMGDA(GatheringFedAvg):
    """FedAvg's mean of updates of length 1, with the weights within `epsilon` of FedAvg's that make it shortest.

    With an `epsilon` of 1 the result reduces the loss of every client of the cohort, to first order, unless it is 0. A
    client's loss is not used. An update of 0 is not normalised: it is a client that nothing improves, so that with an
    `epsilon` of 1 the model stays what it is. A single free rider can cause this.

    The quadratic program is solved by SciPy's SLSQP, whose time grows with the third power of the cohort: about 0.1 s
    for 100 clients.

    Parameters
    ----------
    epsilon : float
        From 0, FedAvg's weights, to 1, any weights.
    server_learning_rate : float, optional
        Greater than 0; the length of the step is this times the length of the mean, which is at most 1. Default: the
        mean length of the cohort's updates, weighted as by FedAvg, with which equal updates have the same result as
        under FedAvg; one client with a huge update then determines the length. The paper tunes a rate that decays.
    **options
        As for FedAvg.
    """

    def __init__(self, *, epsilon: float = 0.1, server_learning_rate: float | None = None, **options: Any) -> None:
        super().__init__(**options)
        check_real("FedMGDA's epsilon", epsilon, 0, 1)
        if server_learning_rate is not None:
            check_real("FedMGDA's server_learning_rate", server_learning_rate, 0, open_low=True)
        self.epsilon, self.server_learning_rate = epsilon, server_learning_rate

    def combine(self, rows: Array, weights: NDArray[np.float64]) -> Array:
        """Take a step in the common descent direction."""
        old = self.global_weights.astype(np.float64)
        lengths = distances_to(old, rows)
        scale = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
        shares = weights / weights.sum()
        directions = (rows - old) * scale[:, None]
        factors = min_norm_weights(directions @ directions.T, shares, self.epsilon) * scale
        factors *= float(shares @ lengths) if self.server_learning_rate is None else self.server_learning_rate
        mean = np.zeros_like(old)
        self._add_weighted(mean, rows, factors)
        return mean + (1 - factors.sum()) * old


def min_norm_weights(gram: NDArray[np.float64], shares: NDArray[np.float64], epsilon: float) -> NDArray[np.float64]:
    """Return the weights whose weighted mean of vectors is shortest.

    Parameters
    ----------
    gram : ndarray of float64, shape (clients, clients)
        Inner products of the vectors, each of which has a length of at most 1.
    shares : ndarray of float64, shape (clients,)
        Weights with a sum of 1; no weight differs from its share by more than `epsilon`.
    epsilon : float

    Returns
    -------
    ndarray of float64, shape (clients,)
        At least 0, with a sum of 1.

    Raises
    ------
    FedsimError
        The solver found no solution.
    """
    if epsilon == 0 or len(shares) == 1:
        return shares
    from scipy.optimize import Bounds, minimize

    low, high = np.maximum(shares - epsilon, 0.0), np.minimum(shares + epsilon, 1.0)
    count = len(shares)
    ones = np.ones(count)
    # In units of a weight of 1 / clients, so that the solver's differences and tolerances have the size of 1.
    found = minimize(  # type: ignore[call-overload]  # SciPy's stubs do not know such constraints
        lambda v: float(v @ gram @ v) / (2 * count),
        shares * count,
        jac=lambda v: gram @ v / count,
        method="SLSQP",
        bounds=Bounds(low * count, high * count),
        constraints={"type": "eq", "fun": lambda v: v.sum() - count, "jac": lambda v: ones},
        options={"ftol": 1e-12, "maxiter": 1000},
    )
    weights: NDArray[np.float64] = np.clip(found.x / count, low, high)
    weights /= weights.sum()
    if not _excess(weights, gram, low, high) <= TOLERANCE:
        raise FedsimError(f"FedMGDA found no weights for {count} clients: {found.message}")
    return weights


def _excess(weights: NDArray[np.float64], gram: NDArray[np.float64], low: Any, high: Any) -> float:
    """Return a bound on how much the squared length exceeds the smallest one: twice the gap of Frank and Wolfe."""
    slopes = gram @ weights
    best = low.copy()
    left = 1.0 - low.sum()
    for k in np.argsort(slopes, kind="stable"):
        more = min(left, high[k] - low[k])
        best[k] += more
        left -= more
    return float(2 * slopes @ (weights - best))
