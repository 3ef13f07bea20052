"""The server's side of secure aggregation: it forwards keys and shares, adds up masked updates, and removes the masks.

It sees public keys, shares that are encrypted for others, masked updates, and, once those have arrived, of each client
either the shares of its seed or those of its private key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedsim.clients.task import Update
from fedsim.errors import ClientError, FedsimError
from fedsim.secure import crypto, shamir
from fedsim.secure.clients import LOSS, mask_key, parts
from fedsim.secure.quantise import dequantise, dequantise_loss
from fedsim.secure.settings import MIN_CLIENTS, SecureAggregation

Array = NDArray[Any]
Indices = NDArray[np.intp]


class Exchange(Protocol):
    """Sends arrays to clients and returns their answers."""

    def __call__(
        self, step: str, clients: Indices, sent: Mapping[str, Array]
    ) -> tuple[Indices, dict[str, Array], Mapping[int, FedsimError]]:
        """Return the clients that have answered, in order, their arrays with a row for each, and the others' errors.

        Parameters
        ----------
        step : {"keys", "shares", "unmask"}
        clients : ndarray of int, shape (clients,)
        sent : mapping of str to ndarray, shape (clients, ...)
        """


class SecureSum:
    """The sum of a round's updates, of which the server sees masked ones only.

    Parameters
    ----------
    settings : SecureAggregation
    exchange : Exchange
    seed, round_number : int

    Attributes
    ----------
    clients : ndarray of int, shape (clients,)
        The clients that have shared their secrets, in the order in which they were given.
    failed : dict of int to FedsimError
        Partition id -> why a client has not shared its secrets.
    unmask_failed : dict of int to FedsimError
        Partition id -> why a client has not helped to remove the masks.
    bytes_down, bytes_up : int
        Keys and shares sent to and received from clients.
    """

    def __init__(self, settings: SecureAggregation, exchange: Exchange, seed: int, round_number: int) -> None:
        self._settings, self._send = settings, exchange
        self._seed, self._round = seed, round_number
        self.clients: Indices = np.empty(0, np.intp)
        self.failed: dict[int, FedsimError] = {}
        self.unmask_failed: dict[int, FedsimError] = {}
        self.bytes_down = self.bytes_up = 0
        self._weights: NDArray[np.float64] = np.empty(0)
        self._sums: dict[str, Array] = {}
        self._sent: list[int] = []

    def share_keys(self, clients: Indices, weights: NDArray[np.float64]) -> None:
        """Let clients share keys and secrets; again without those that do not answer, until all do.

        Parameters
        ----------
        clients : ndarray of int, shape (clients,)
        weights : ndarray of float64, shape (clients, 2)
            Each client's weights in the sum of updates and in that of losses, at most 1.
        """
        while len(clients) >= MIN_CLIENTS:
            kept, answer = self._exchange("keys", clients, {})
            usable = self._check_keys(kept, answer["public"])
            kept, answer = kept[usable], {"public": answer["public"][usable]}
            clients, weights = kept, weights[np.isin(clients, kept)]
            if len(clients) < MIN_CLIENTS:
                return
            graph = self._settings.graph(len(clients), self._seed, self._round)
            sent = {
                "neighbours": clients[graph],
                "public": answer["public"][graph],
                "weights": weights,
                "cohort": np.full(len(clients), len(clients)),
            }
            kept, shares = self._exchange("shares", clients, sent)
            if len(kept) == len(clients):
                self.clients, self._weights = clients, weights
                self._graph, self._public, self._shares = graph, answer["public"], shares["shares"]
                return
            clients, weights = kept, weights[np.isin(clients, kept)]

    def _check_keys(self, clients: Indices, public: Array) -> NDArray[np.bool_]:
        """Return which clients have sent public keys; with others, their neighbours would fail in their place."""
        rows = [parts(row.tobytes())[:2] for row in public]
        usable = np.array([all(map(crypto.is_public_key, keys)) for keys in rows], np.bool_)
        for client in clients[~usable].tolist():
            self.failed[client] = ClientError(client, self._round, "it sent no public key for secure aggregation")
        return usable

    def add(self, update: Update) -> None:
        """Add a block of masked updates."""
        self._sent += update.partition_ids.tolist()
        for name, rows in update.encoded.items():
            total = rows.sum(axis=0, dtype=rows.dtype)  # modulo 2**32 or 2**64
            self._sums[name] = self._sums[name] + total if name in self._sums else total

    def mean(self) -> tuple[dict[str, Array], float] | None:
        """Remove the masks, and return the weighted means of the updates' arrays and of their losses.

        Returns
        -------
        tuple or None
            The arrays in float64, by name, and the loss; None if too many clients have dropped out.

        Raises
        ------
        FedsimError
            Clients have revealed shares that recover another secret.
        """
        if not self._sent:
            return None
        has_sent = np.isin(self.clients, self._sent)
        revealed = self._reveal(has_sent)
        if revealed is None:
            return None
        ids = self.clients.tolist()
        for v, secret in revealed.items():
            if has_sent[v]:
                for name, mask in crypto.masks(secret, self._sums):
                    self._sums[name] -= mask
                continue
            private = crypto.private_key(secret)
            for u in self._graph[v][has_sent[self._graph[v]]].tolist():
                key = mask_key(private, self._public[u].tobytes(), self._round, ids[v], ids[u])
                for name, mask in crypto.masks(key, self._sums):
                    self._sums[name] += mask if ids[u] > ids[v] else -mask
        weight, loss_weight = self._weights[has_sent].sum(axis=0).tolist()
        loss = dequantise_loss(self._sums.pop(LOSS)) / loss_weight
        clients, max_abs = len(self.clients), self._settings.max_abs
        return {name: dequantise(total, max_abs, clients) / weight for name, total in self._sums.items()}, loss

    def _reveal(self, has_sent: NDArray[np.bool_]) -> dict[int, bytes] | None:
        """Return the secret that removes each client's mask, by position in the cohort; None if shares are missing.

        The seed of a client that has sent its update, the private key of another whose neighbours have.
        """
        (clients, neighbours), positions = self._graph.shape, np.arange(len(self.clients))
        # Edge (i, j) of the graph -> the place of edge (j, i) in the flat list of all edges, which is sorted.
        edges = (positions[:, None] * clients + self._graph).ravel()
        back = np.searchsorted(edges, self._graph * clients + positions[:, None])
        inbox = self._shares.reshape(clients * neighbours, -1)[back]
        needed, found = self._settings.shares_needed(neighbours), {}
        asked = has_sent & (has_sent[self._graph].sum(axis=1) >= needed)  # others refuse
        if not asked.any():
            return None
        request = {"shares": inbox[asked], "has_sent": has_sent[self._graph[asked]]}
        kept, answer = self._exchange("unmask", self.clients[asked], request)
        answered = np.isin(self.clients, kept)
        shares = np.zeros((clients, neighbours, shamir.DIGITS), np.uint64)
        shares[answered] = answer["revealed"]
        shares = shares.reshape(clients * neighbours, -1)[back]
        for v in np.flatnonzero(has_sent | has_sent[self._graph].any(axis=1)).tolist():
            helpers = np.flatnonzero(answered[self._graph[v]])
            if len(helpers) < needed:
                return None
            secret = shamir.recover(shares[v, helpers], self.clients[self._graph[v, helpers]] + 1)
            _, public, digest = parts(self._public[v].tobytes())
            if (crypto.digest(secret) != digest) if has_sent[v] else (crypto.public_key(secret) != public):
                raise FedsimError(
                    f"secure aggregation failed in round {self._round}: the shares of client {self.clients[v]}'s "
                    "neighbours do not recover its secret"
                )
            found[v] = secret
        return found

    def _exchange(self, step: str, clients: Indices, sent: Mapping[str, Array]) -> tuple[Indices, dict[str, Array]]:
        answered, arrays, failed = self._send(step, clients, sent)
        if step == "unmask":  # by then the client's update is in the sum
            self.unmask_failed |= failed
        else:
            self.failed |= failed
        self.bytes_down += sum(array.nbytes for array in sent.values())
        self.bytes_up += sum(array.nbytes for array in arrays.values())
        return answered, arrays
