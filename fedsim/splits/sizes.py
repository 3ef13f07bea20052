"""Quantity skew: the number of examples of each client."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsim.arguments import CheckedInit
from fedsim.checks import Interval, check_fields, check_integer, shorten, to_builtin_sequence
from fedsim.errors import ConfigError
from fedsim.splits.partition import Indices


class Sizes(CheckedInit, ABC):
    """A distribution of client sizes, which are in random order; subclasses are frozen dataclasses."""

    #: The minimum number of examples per client.
    least: int
    limits: ClassVar[Mapping[str, Interval]] = {"least": Interval(1)}

    def __post_init__(self) -> None:
        check_fields(self)

    def __str__(self) -> str:
        return f"{type(self).__name__}({next(iter(vars(self).values()))})"

    @abstractmethod
    def shares(self, num_clients: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return relative sizes of the clients, shape (clients,), at least 0."""


@dataclass(frozen=True)
class LogNormal(Sizes):
    """Log-normal sizes: the logarithm of the sizes has standard deviation `sigma`.

    As in LEAF's and FedProx's synthetic data (Li et al., MLSys 2020, arXiv:1812.06127), where sigma is 2.

    Parameters
    ----------
    sigma : float
        At least 0; 0 is equal sizes.
    least : int
        Minimum number of examples per client, at least 1.
    """

    sigma: float = 1.0
    least: int = 1
    limits = {"sigma": Interval(0, 50)}

    def shares(self, num_clients: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw the shares."""
        return rng.lognormal(0, self.sigma, num_clients)


@dataclass(frozen=True)
class PowerLaw(Sizes):
    """Power law: the size of the k-th largest client is proportional to ``k ** -exponent`` (Zipf's law).

    Parameters
    ----------
    exponent : float
        At least 0; 0 is equal sizes.
    least : int
        Minimum number of examples per client, at least 1.
    """

    exponent: float = 1.0
    least: int = 1
    limits = {"exponent": Interval(0, 50)}

    def shares(self, num_clients: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw the ranks of the clients."""
        ranks = 1 + rng.permutation(num_clients)
        return np.power(ranks, -float(self.exponent), dtype=np.float64)


@dataclass(frozen=True)
class DirichletSizes(Sizes):
    """Shares of the data drawn from a symmetric Dirichlet distribution.

    Li, Diao, Chen and He, "Federated learning on non-IID data silos: an experimental study", ICDE 2022
    (arXiv:2102.02079), section IV-D, q ~ Dir(beta). NIID-Bench draws again until each client has 10 examples;
    here clients below `least` get `least` examples, and the others correspondingly fewer.

    Parameters
    ----------
    alpha : float
        Concentration, greater than 0.
    least : int
        Minimum number of examples per client, at least 1.
    """

    alpha: float = 0.5
    least: int = 1
    limits = {"alpha": Interval(0, open_low=True)}

    def shares(self, num_clients: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw the shares."""
        return rng.dirichlet(np.full(num_clients, self.alpha))


def check_sizes(field: str, sizes: Any, num_clients: int) -> Any:
    """Return `sizes`, with an array as a tuple; ConfigError unless None, a distribution, or one number per client."""
    if sizes is None or isinstance(sizes, Sizes):
        return sizes
    sizes = to_builtin_sequence(sizes)
    if isinstance(sizes, str) or not isinstance(sizes, Sequence) or len(sizes) != num_clients:
        laws = "LogNormal, PowerLaw, DirichletSizes"
        raise ConfigError(f"{field} is {shorten(sizes)}; allowed: {laws}, or {num_clients} numbers of examples")
    for size in sizes:
        check_integer(field, size, 1)
    return sizes


def client_sizes(
    sizes: Sizes | Sequence[int] | None, total: int, num_clients: int, rng: np.random.Generator
) -> Indices:
    """Return the number of examples of each client, out of `total`, shape (clients,).

    Raises
    ------
    ConfigError
        The sizes need more examples than there are.
    """
    if sizes is None:
        return even_sizes(total, num_clients)
    if isinstance(sizes, Sizes):
        field = f"{type(sizes).__name__}'s least for {num_clients} clients and {total} training examples"
        check_integer(field, sizes.least, 1, total // num_clients)
        return apportion(sizes.shares(num_clients, rng), total, sizes.least)
    given = np.asarray(sizes, dtype=np.intp)
    if given.sum() > total:
        raise ConfigError(f"sizes add up to {given.sum()}; allowed: at most {total}, the training examples")
    return given


def even_sizes(total: int, parts: int) -> Indices:
    """Return sizes of `parts` that differ by at most one, larger ones first."""
    sizes = np.full(parts, total // parts, dtype=np.intp)
    sizes[: total % parts] += 1
    return sizes


def apportion(shares: NDArray[np.float64], total: int, least: int = 0) -> Indices:
    """Return integers of at least `least` that add up to `total` and are as close to the shares as possible.

    Parameters
    ----------
    shares : ndarray of float64, shape (parts,)
        At least 0.
    total : int
        At least ``least * parts``.
    least : int
    """
    raised = np.zeros(len(shares), dtype=bool)
    while True:  # raising small sizes to the minimum may lower others below it
        free = shares * ~raised
        left = total - least * int(raised.sum())
        quota = free * (left / free.sum()) if free.sum() > 0 else np.full(len(shares), total / len(shares))
        below = ~raised & (quota < least)
        if not below.any() or free.sum() <= 0:
            break
        raised |= below
    quota[raised] = least
    sizes = np.floor(quota).astype(np.intp)
    rest = total - int(sizes.sum())
    sizes[np.argsort(sizes - quota, kind="stable")[:rest]] += 1  # the largest remainders
    return sizes
