"""The state of simulated clients between rounds: arrays with a row for each client that has taken part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedsim.clients.task import Update
from fedsim.errors import FedsimError
from fedsim.models import Array
from fedsim.splits.partition import Indices


class ClientState:
    """Named arrays with a row for each client that has taken part, by partition id.

    Several threads may load rows at the same time; only one may store.

    Parameters
    ----------
    num_clients : int
        Number of registered clients, whether they take part or not.
    """

    def __init__(self, num_clients: int) -> None:
        #: The row of each client in the arrays, from 1, or 0 if it has none. Unread zeros take no memory.
        self._rows: Indices = np.zeros(num_clients, np.intp)
        self._used = 0
        self._arrays: dict[str, Array] = {}

    def load(self, clients: Indices, make: Callable[[Indices], Mapping[str, Array]]) -> dict[str, Array]:
        """Return a copy of clients' rows; `make` provides those of clients that have none yet.

        Parameters
        ----------
        clients : ndarray of int, shape (clients,)
        make : callable
            Partition ids -> named arrays with a row each.
        """
        known = self.known(clients)
        stored = self.rows(clients[known])
        if known.all():
            return stored
        state = {}
        for name, rows in make(clients[~known]).items():
            state[name] = np.empty((len(clients), *rows.shape[1:]), rows.dtype)
            state[name][~known] = rows
            if known.any():
                state[name][known] = stored[name]
        return state

    def known(self, clients: Indices) -> NDArray[np.bool_]:
        """Return which clients have rows, shape (clients,)."""
        return self._rows[clients] > 0

    def rows(self, clients: Indices) -> dict[str, Array]:
        """Return a copy of the rows of clients that have rows; empty if no client has any."""
        return {name: rows[self._rows[clients] - 1] for name, rows in self._arrays.items()}

    def store(self, clients: Indices, state: Mapping[str, Array]) -> None:
        """Store clients' rows."""
        if not state or not len(clients):
            return
        new = clients[~self.known(clients)]
        self._rows[new] = self._used + np.arange(1, len(new) + 1)
        self._used += len(new)
        for name, rows in state.items():
            stored = self._arrays.get(name, rows[:0])
            if len(stored) < self._used:
                capacity = min(len(self._rows), max(self._used, 2 * len(stored)))
                self._arrays[name] = np.empty((capacity, *rows.shape[1:]), rows.dtype)
                self._arrays[name][: len(stored)] = stored
            self._arrays[name][self._rows[clients] - 1] = rows

    def commit(self, round_number: int, updates: Sequence[Update]) -> None:
        """Store the state of the clients whose updates an accepted round has aggregated."""
        for update in updates:
            self.store(update.partition_ids, update.state)

    def state_dict(self) -> dict[str, Array]:
        """Return the state as arrays, for a checkpoint: ``clients``, and by name an array with a row for each."""
        clients = np.flatnonzero(self._rows)
        return {"clients": clients} | {f"state {name}": rows for name, rows in self.rows(clients).items()}

    def load_state_dict(self, state: Mapping[str, Array] | None) -> None:
        """Restore the state that `state_dict` returned.

        Raises
        ------
        FedsimError
            `state` is None: the state was on SuperNodes of a run that has ended.
        """
        if state is None:
            ended = "client state was kept on SuperNodes and ended with the interrupted run"
            raise FedsimError(f"{ended}; start the run anew in another directory")
        self._rows, self._used, self._arrays = np.zeros_like(self._rows), 0, {}
        rows = {name.removeprefix("state "): values for name, values in state.items() if name.startswith("state ")}
        self.store(state["clients"], rows)
