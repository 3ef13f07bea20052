"""Client state on a SuperNode, where the server decides later whether the update that went with it counts.

A SuperNode trains and sends; the server may leave the update out (a check, a timeout, a rejected round). So the state
after an update is kept beside the state before it until the server says, with the client's next message, which was the
last round whose update of the client it accepted.
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

#: The round after which a client had this state.
ROUND = "round"
#: What precedes the names of the arrays of each part in a state dict.
PARTS = ("accepted ", "sent ")


class NodeState:
    """State of a SuperNode's clients: as accepted by the server, and as last sent.

    Parameters
    ----------
    num_clients : int
        Of the whole federation.
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
        """Take up which update of each client was the last that the server accepted.

        Parameters
        ----------
        clients : ndarray of int, shape (clients,)
        rounds : ndarray of int, shape (clients,)
            The round of that update; 0 for none.

        Raises
        ------
        FedsimError
            A client's state after that round is not here.
        """
        there = np.flatnonzero(self._sent.known(clients))
        sent = self._sent.rows(clients[there])
        if sent:
            counts = sent[ROUND] == rounds[there]
            self._accepted.store(clients[there[counts]], {name: rows[counts] for name, rows in sent.items()})
        held = self._accepted.known(clients)
        found = np.zeros(len(clients), dtype=np.intp)
        if held.any():
            found[held] = self._accepted.rows(clients[held])[ROUND]
        for client, expected in zip(clients[found != rounds], rounds[found != rounds], strict=True):
            raise FedsimError(
                f"client {client} has no state after round {expected} on this SuperNode, which has been restarted; "
                "only a new run starts from new state"
            )

    def load(self, clients: Indices, make: Callable[[Indices], Mapping[str, Array]]) -> dict[str, Array]:
        """Return a copy of clients' accepted state, made new for those that have none."""
        state = self._accepted.load(clients, lambda new: {**make(new), ROUND: np.zeros(len(new), np.int64)})
        del state[ROUND]
        return state

    def store(self, clients: Indices, state: Mapping[str, Array], round_number: int) -> None:
        """Keep clients' state after an update that is about to be sent."""
        self._sent.store(clients, {**state, ROUND: np.full(len(clients), round_number, np.int64)})

    def state_dict(self) -> dict[str, Array]:
        """Return everything as named arrays."""
        parts = zip((self._accepted, self._sent), PARTS, strict=True)
        return {prefix + name: rows for part, prefix in parts for name, rows in part.state_dict().items()}
