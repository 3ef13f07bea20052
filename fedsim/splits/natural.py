"""Natural splits: a column of the data identifies the client of each example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import Interval, check_instance, check_integer, suggest
from fedsim.errors import ConfigError
from fedsim.splits.base import Split
from fedsim.splits.partition import Groups, Partition
from fedsim.splits.sizes import even_sizes


@dataclass(frozen=True)
class Natural(Split):
    """One client per value of a column (a user, a hospital, a lecturer), or several values per client.

    With one client per value, the values are the names of the clients, and partition ids have their order.

    Parameters
    ----------
    column : str, optional
        One of the dataset's groups; optional if there is only one.
    num_clients : int, optional
        Distribute the groups at random and evenly over this number of clients; default one client per group.
    seed : int, optional, keyword
    """

    column: str | None = None
    num_clients: int | None = None
    limits = {"num_clients": Interval(1)}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_instance("Natural's column", self.column, str | None, "the name of a column")

    def partition(self, labels: NDArray[Any], seed: int = 0, groups: Groups | None = None) -> Partition:
        """Divide examples, as `Split.partition` says.

        Raises
        ------
        ConfigError
            The column does not exist, or there are fewer groups than clients.
        """
        values, owners = np.unique(self._group_of(groups or {}), return_inverse=True)
        clients = self.num_clients or len(values)
        check_integer(f"Natural's num_clients for {len(values)} groups", clients, 1, len(values))
        if self.num_clients:
            client_of = np.repeat(np.arange(clients), even_sizes(len(values), clients))
            owners = client_of[self.rng(seed).permutation(len(values))][owners]
        return Partition.from_owners(owners, clients)

    def client_names(self, groups: Groups) -> NDArray[Any]:
        """Return the values of the column in ascending order, unless clients have several, or these are 0, 1, 2, ..."""
        values = np.empty(0) if self.num_clients else np.unique(self._group_of(groups))
        return values[:0] if np.array_equal(values, np.arange(len(values))) else values

    def _group_of(self, groups: Groups) -> NDArray[Any]:
        """Return the group of each example; ConfigError if the column does not exist."""
        names = list(groups)
        if not names or (self.column is None and len(names) > 1) or (self.column and self.column not in names):
            allowed = f"allowed: {', '.join(names)}" if names else "this dataset has no column that identifies clients"
            raise ConfigError(f"Natural's column is {self.column!r}; {allowed}{suggest(self.column, names)}")
        return groups[self.column or names[0]]
