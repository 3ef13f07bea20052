"""Games of coalitions: leave-one-out and Shapley values, exact and by permutation sampling.

A game gives each coalition of clients a utility v. Client k's Shapley value is its marginal contribution,
``v(S with k) - v(S)``, to the coalition S of the clients that precede it, averaged over all orders of the clients:
Shapley, "A value for n-person games", Contributions to the Theory of Games II, 1953. It is the only division of
``v(all) - v(nobody)`` that gives equal clients equal shares, gives 0 to a client that changes nothing, and is additive
in the utility.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from fedsim.arguments import checked_arguments
from fedsim.checks import check_instance, check_integer, check_real
from fedsim.contribution.contributions import Contributions, Floats, standard_error
from fedsim.errors import ConfigError, DivergenceError
from fedsim.streams import Purpose, generator

Members = NDArray[np.bool_]

#: Largest number of clients for exact Shapley values, which need the utility of ``2 ** clients`` coalitions.
MOST_EXACT = 12
#: Largest number of permutations.
MOST_PERMUTATIONS = 1_000_000


class CoalitionGame(ABC):
    """A utility for each coalition of clients; subclasses implement `evaluate`, and each coalition is evaluated once.

    Parameters
    ----------
    clients : ndarray of int, shape (clients,)
        Partition ids.
    seed : int
        Seed of the permutations.

    Attributes
    ----------
    client_names : tuple of str
        By partition id; empty if clients have numbers only.
    requested : set of bytes
        The coalitions whose utility has been read since the set was cleared.
    """

    client_names: tuple[str, ...] = ()

    def __init__(self, clients: NDArray[np.intp], seed: int = 0) -> None:
        self.clients, self.seed = clients, seed
        self.requested: set[bytes] = set()
        self._known: dict[bytes, float] = {}

    @abstractmethod
    def evaluate(self, members: Members) -> Floats:
        """Return the utilities of coalitions, shape (coalitions,).

        Parameters
        ----------
        members : ndarray of bool, shape (coalitions, clients)
        """

    def values(self, members: Members) -> Floats:
        """Return the utilities of coalitions; parameters as for `evaluate`."""
        keys = [row.tobytes() for row in members]
        new = {key: row for key, row in zip(keys, members, strict=True) if key not in self._known}
        if new:
            coalitions = np.array(list(new.values()))
            found = self.evaluate(coalitions)
            for place in np.flatnonzero(~np.isfinite(found))[:1]:
                count = np.count_nonzero(coalitions[place])
                raise DivergenceError(
                    f"the utility of a coalition of {count} clients is {found[place]:g}; a smaller lr usually helps"
                )
            self._known |= zip(new, found.tolist(), strict=True)
        self.requested.update(keys)
        return np.array([self._known[key] for key in keys])

    def extremes(self) -> tuple[float, float]:
        """Return the utilities of all clients together and of nobody."""
        everybody, nobody = self.values(np.array([[True], [False]]).repeat(len(self.clients), axis=1))
        return float(everybody), float(nobody)


@checked_arguments
def leave_one_out(game: CoalitionGame) -> Contributions:
    """Return what the utility loses without each client, ``v(all) - v(all but k)``.

    Parameters
    ----------
    game : CoalitionGame
    """
    _check_game(game)
    game.requested.clear()
    everybody, _ = game.extremes()
    values = everybody - game.values(~np.eye(len(game.clients), dtype=bool))
    return _contributions(game, "leave-one-out", values)


@checked_arguments
def exact_shapley(game: CoalitionGame) -> Contributions:
    """Return the Shapley values, from the utility of all coalitions.

    Parameters
    ----------
    game : CoalitionGame

    Raises
    ------
    ConfigError
        There are more than `MOST_EXACT` clients.
    """
    _check_game(game)
    count = len(game.clients)
    if count > MOST_EXACT:
        raise ConfigError(
            f"exact_shapley for {count} clients takes {2**count:,} coalitions; allowed: at most {MOST_EXACT} clients; "
            "monte_carlo_shapley and gtg_shapley are for more"
        )
    game.requested.clear()
    number = np.arange(2**count)
    members = (number[:, None] >> np.arange(count) & 1).astype(bool)
    utility, size = game.values(members), members.sum(axis=1)
    weight = np.array([1 / (count * math.comb(count - 1, others)) for others in range(count)])
    values = np.empty(count)
    for k in range(count):
        before = number[~members[:, k]]
        values[k] = weight[size[before]] @ (utility[before | 1 << k] - utility[before])
    return _contributions(game, "exact Shapley", values)


@checked_arguments
def monte_carlo_shapley(game: CoalitionGame, *, permutations: int = 50, tolerance: float = 0.0) -> Contributions:
    """Estimate the Shapley values from random orders of the clients, with standard errors.

    Ghorbani and Zou, "Data Shapley: equitable valuation of data for machine learning", ICML 2019 (arXiv:1904.02868),
    algorithm 1, truncated Monte Carlo, with clients in the place of examples and a fixed number of permutations.

    Parameters
    ----------
    game : CoalitionGame
    permutations : int
        Number of random orders, at least 2.
    tolerance : float
        The rest of a permutation contributes 0 once the utility is closer than this to that of all clients, at least 0.
        With 0 nothing is truncated and the estimate is unbiased; the standard errors do not include the bias.
    """
    _check_game(game)
    check_integer("permutations", permutations, 2, MOST_PERMUTATIONS)
    check_real("tolerance", tolerance, 0)
    game.requested.clear()
    rng = generator(game.seed, Purpose.CONTRIBUTION)
    orders = rng.permuted(np.tile(np.arange(len(game.clients)), (permutations, 1)), axis=1)
    marginal = marginal_contributions(game, orders, tolerance)
    errors = standard_error(marginal)
    return _contributions(game, "Monte Carlo Shapley", marginal.mean(axis=0), errors, permutations - 1)


def marginal_contributions(game: CoalitionGame, orders: NDArray[np.intp], tolerance: float) -> Floats:
    """Return the marginal contribution of each client in each permutation, shape (permutations, clients).

    Parameters
    ----------
    game : CoalitionGame
    orders : ndarray of int, shape (permutations, clients)
        Places in ``game.clients``.
    tolerance : float
        A permutation is truncated at a utility closer than this to that of all clients.
    """
    everybody, nobody = game.extremes()
    members, marginal = np.zeros(orders.shape, dtype=bool), np.zeros(orders.shape)
    rows, utility = np.arange(len(orders)), np.full(len(orders), nobody)
    for client in orders.T:
        members[rows, client] = True
        scanned = abs(everybody - utility) >= tolerance
        if not scanned.any():
            break
        after = utility.copy()
        after[scanned] = game.values(members[scanned])
        marginal[rows, client] = after - utility
        utility = after
    return marginal


def _check_game(game: object) -> None:
    check_instance("game", game, CoalitionGame, "a CoalitionGame, such as Retraining(experiment)")


def _contributions(
    game: CoalitionGame, method: str, values: Floats, errors: Floats | None = None, degrees: int = 0
) -> Contributions:
    evaluations = len(game.requested)
    everybody, nobody = game.extremes()
    errors = np.full(len(values), np.nan) if errors is None else errors
    return Contributions(
        method, game.clients, values, errors, degrees, everybody, nobody, evaluations, game.client_names
    )
