"""Client state on a SuperNode, which follows the updates that the server accepts.

The server may reject an update that a SuperNode has sent: a check fails, a timeout passes, the round is rejected. The
SuperNode therefore stores the state after an update beside the accepted state. With its next message for a client the
server sends the last round whose update of the client it accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.engines.client_state import ClientState
from fedsim.errors import FedsimError

Array = NDArray[Any]
Indices = NDArray[np.intp]

#: Name of the array with the round after which a client had the state.
ROUND = "round"
#: Prefixes of the arrays of each part in a state dict.
PARTS = ("accepted ", "sent ")


class NodeState:
    """State of a SuperNode's clients: as accepted by the server, and after the last update that was sent.

    Parameters
    ----------
    num_clients : int
        Number of clients of all SuperNodes.
    state : mapping of str to ndarray, optional
        What `state_dict` returned.
    """

    def __init__(self, num_clients: int, state: Mapping[str, Array] | None = None) -> None:
        self._accepted, self._sent = ClientState(num_clients), ClientState(num_clients)
        for part, prefix in zip((self._accepted, self._sent), PARTS, strict=True):
            if state:
                part.load_state_dict(
                    {k.removeprefix(prefix): rows for k, rows in state.items() if k.startswith(prefix)}
                )

    def accept(self, clients: Indices, rounds: Indices) -> None:
        """Set the state of each client to that after the last update that the server accepted.

        Parameters
        ----------
        clients : ndarray of int, shape (clients,)
        rounds : ndarray of int, shape (clients,)
            The round of that update; 0 for none.

        Raises
        ------
        FedsimError
            The SuperNode does not have a client's state after that round.
        """
        known = self._sent.known(clients)
        sent = self._sent.rows(clients[known])
        if sent:
            accepted = sent[ROUND] == rounds[known]
            self._accepted.store(clients[known][accepted], {name: rows[accepted] for name, rows in sent.items()})
        known = self._accepted.known(clients)
        found = np.zeros(len(clients), dtype=np.intp)
        if known.any():
            found[known] = self._accepted.rows(clients[known])[ROUND]
        lost = np.flatnonzero(found != rounds)
        if len(lost):
            raise FedsimError(
                f"client {clients[lost[0]]} has no state after round {rounds[lost[0]]} on this SuperNode, which has "
                "been restarted; only a new run starts from new state"
            )

    def load(self, clients: Indices, make: Callable[[Indices], Mapping[str, Array]]) -> dict[str, Array]:
        """Return a copy of clients' accepted state; `make` provides that of new clients."""
        state = self._accepted.load(clients, lambda new: {**make(new), ROUND: np.zeros(len(new), np.int64)})
        del state[ROUND]
        return state

    def store(self, clients: Indices, state: Mapping[str, Array], round_number: int) -> None:
        """Store clients' state after an update that is about to be sent."""
        self._sent.store(clients, {**state, ROUND: np.full(len(clients), round_number, np.int64)})

    def state_dict(self) -> dict[str, Array]:
        """Return the state as named arrays."""
        parts = zip((self._accepted, self._sent), PARTS, strict=True)
        return {prefix + name: rows for part, prefix in parts for name, rows in part.state_dict().items()}
