"""The clients' side of secure aggregation.

In a round a client

1. makes two key pairs and a seed (``keys``);
2. shares the private key of its masks, and the seed, among its neighbours, encrypted for each of them (``shares``);
3. quantises its update and adds a mask that it has agreed on with each neighbour, which one of the two subtracts, and a
   mask made from its own seed (`SecureClients.protect`);
4. decrypts the shares of its neighbours, and reveals that of the seed for each that has sent an update, and that of the
   private key for each that has not (``unmask``); never both.

Keys and masks are always made by the operating system's generator: the sum does not depend on them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from fedsim.clients.task import Task, Update
from fedsim.errors import ClientError
from fedsim.models.clipping import clip_factors
from fedsim.secure import crypto, shamir
from fedsim.secure.quantise import quantise, quantise_loss, scale_of
from fedsim.secure.settings import SecureAggregation
from fedsim.streams import Purpose, generator

Array = NDArray[Any]
Bytes = NDArray[np.uint8]

#: The public keys for shares and for masks, and the digest of the seed.
PUBLIC_BYTES = 3 * crypto.KEY_BYTES
#: A share of the private key of the masks and one of the seed, encrypted.
SHARE_BYTES = 2 * shamir.DIGITS * 4 + crypto.TAG_BYTES
#: Names of the arrays of an update: the change of the weights, the training loss, and others with this prefix.
CHANGE, LOSS, UP = "change", "loss", "up."
#: Purposes of agreed keys.
FOR_SHARES, FOR_MASKS = b"fedsim shares", b"fedsim masks"


class SecureClients:
    """Clients of one process that take part in the secure aggregation of a round.

    Parameters
    ----------
    settings : SecureAggregation
    shared : ndarray of bool, shape (parameters,)
        Mask of the parameters that clients send.
    clip : float, optional
        Clipping norm of an update, where the server adds noise to the sum of equally weighted updates.
    """

    def __init__(self, settings: SecureAggregation, shared: NDArray[np.bool_], clip: float | None = None) -> None:
        self.settings, self.shared, self.clip = settings, shared, clip
        #: By name, arrays with a row for each client that has secrets in this round.
        self.state: dict[str, Array] = {}

    def with_state(self, state: Mapping[str, Array]) -> SecureClients:
        """Return clients with these settings and another `state`."""
        made = SecureClients(self.settings, self.shared, self.clip)
        made.state = dict(state)
        return made

    def without_neighbours(self, client: int, round_number: int) -> SecureClients:
        """Return a client alone, whose protected update has the right layout."""
        made, one = self.with_state({}), np.array([client])
        made._keys(round_number, one)
        nobody, public = np.empty((1, 0), np.intp), np.empty((1, 0, PUBLIC_BYTES), np.uint8)
        made._shares(round_number, one, nobody, public, np.ones((1, 2)), np.ones(1, np.intp))
        return made

    def answer(self, step: str, round_number: int, clients: NDArray[np.intp], sent: Mapping[str, Array]) -> Any:
        """Return what clients answer in a step, by name, with a row per client.

        Parameters
        ----------
        step : {"keys", "shares", "unmask"}
        round_number : int
        clients : ndarray of int, shape (clients,)
            Partition ids.
        sent : mapping of str to ndarray, shape (clients, ...)
            What the server sent to each.

        Raises
        ------
        ClientError
            The request does not fit the step before.
        """
        actions: dict[str, Callable[..., dict[str, Array]]] = {
            "keys": self._keys, "shares": self._shares, "unmask": self._unmask,
        }  # fmt: skip
        return actions[step](round_number, clients, **sent)

    def _keys(self, round_number: int, clients: NDArray[np.intp]) -> dict[str, Array]:
        """Make the secrets of a round and return what is public of them, shape (clients, PUBLIC_BYTES)."""
        made = np.frombuffer(os.urandom(PUBLIC_BYTES * len(clients)), np.uint8).reshape(len(clients), PUBLIC_BYTES)
        self.state = {"clients": clients, "round": np.full(len(clients), round_number), "secrets": made}
        rows = [parts(row.tobytes()) for row in made]
        public = [crypto.public_key(a) + crypto.public_key(b) + crypto.digest(seed) for a, b, seed in rows]
        return {"public": _bytes(public, len(clients), PUBLIC_BYTES)}

    def _shares(
        self,
        round_number: int,
        clients: NDArray[np.intp],
        neighbours: NDArray[np.intp],
        public: Bytes,
        weights: NDArray[np.float64],
        cohort: NDArray[np.intp],
    ) -> dict[str, Array]:
        """Return the shares of each client's secrets, encrypted for its neighbours.

        Parameters
        ----------
        neighbours : ndarray of int, shape (clients, neighbours)
            Their partition ids.
        public : ndarray of uint8, shape (clients, neighbours, PUBLIC_BYTES)
            What is public of their secrets.
        weights : ndarray of float64, shape (clients, 2)
            Each client's weights in the sum of updates and in that of losses, at most 1.
        cohort : ndarray of int, shape (clients,)
            Number of clients in the sum.
        """
        rows = self._rows(round_number, clients)
        own = {name: values[rows] for name, values in self.state.items()}
        threshold = self.settings.shares_needed(neighbours.shape[1])
        encrypted, agreed_masks = list[bytes](), list[bytes]()
        for client, secrets, others, keys in zip(clients, own["secrets"], neighbours, public, strict=True):
            for_shares, for_masks, seed = parts(secrets.tobytes())
            split = [shamir.share(secret, others + 1, threshold) for secret in (for_masks, seed)]
            texts = np.concatenate(split, axis=1).astype("<u4")
            sharing, masking = crypto.private_key(for_shares), crypto.private_key(for_masks)
            for other, key, text in zip(others, keys, texts, strict=True):
                about = _about(round_number, client, other)
                agreed = crypto.agree(sharing, parts(key.tobytes())[0], FOR_SHARES + about)
                encrypted.append(crypto.encrypt(agreed, text.tobytes(), about))
                agreed_masks.append(mask_key(masking, key.tobytes(), round_number, client, other))
        mask_keys = _bytes(agreed_masks, *neighbours.shape, crypto.KEY_BYTES)
        received: dict[str, Array] = {"neighbours": neighbours, "public": public, "weights": weights, "cohort": cohort}
        self.state = own | received | {"mask_keys": mask_keys}
        return {"shares": _bytes(encrypted, *neighbours.shape, SHARE_BYTES)}

    def protect(self, task: Task, update: Update) -> Update:
        """Return updates as the server sees them: quantised and masked, and nothing else that depends on the data.

        A client whose update is too large, or not finite, has no row.
        """
        masked: dict[str, list[Array]] = {}
        failed, kept = dict(update.failed), np.zeros(len(update.partition_ids), np.bool_)
        for row, place in enumerate(self._rows(task.round, update.partition_ids)):
            client = int(update.partition_ids[row])
            try:
                own = self._quantise(task, update, row, place)
            except ValueError as error:
                failed[client] = ClientError(client, task.round, f"{error} under secure aggregation")
                continue
            seed = parts(self.state["secrets"][place].tobytes())[2]
            for name, mask in crypto.masks(seed, own):
                own[name] += mask
            for other, key in zip(self.state["neighbours"][place], self.state["mask_keys"][place], strict=True):
                for name, mask in crypto.masks(key.tobytes(), own):
                    own[name] += mask if client < other else -mask
            for name, array in own.items():
                masked.setdefault(name, []).append(array)
            kept[row] = True
        return replace(
            update.rows(kept),
            weights=np.empty((kept.sum(), 0), update.weights.dtype),
            train_loss=np.zeros(kept.sum()),
            up={},
            encoded={name: np.stack(rows) for name, rows in masked.items()},
            update_norm=np.full(kept.sum(), np.nan),
            failed=failed,
        )

    def _quantise(self, task: Task, update: Update, row: int, place: int) -> dict[str, Array]:
        """Return the update of a client as integers, given its rows in the update and in the state."""
        client, cohort = int(self.state["clients"][place]), int(self.state["cohort"][place])
        weight, loss_weight = self.state["weights"][place].tolist()
        max_abs = self.settings.max_abs
        change = update.weights[row, self.shared].astype(np.float64) - task.global_weights[self.shared]
        if self.clip is not None:
            longest = self.clip - len(change) ** 0.5 / scale_of(max_abs, cohort)  # rounding makes the change longer
            change *= clip_factors(np.linalg.norm(change), longest)
        loss = quantise_loss(float(update.train_loss[row]), loss_weight, cohort)
        others = {UP + name: rows[row].astype(np.float64) for name, rows in update.up.items()}
        rng = generator(task.seed, Purpose.QUANTISE, task.round, client)
        return quantise({CHANGE: change, **others}, weight, max_abs, cohort, rng) | {LOSS: loss}

    def _unmask(
        self, round_number: int, clients: NDArray[np.intp], shares: Bytes, has_sent: NDArray[np.bool_]
    ) -> dict[str, Array]:
        """Return one share of each neighbour: of its seed if it has sent an update, else of its private key.

        Parameters
        ----------
        shares : ndarray of uint8, shape (clients, neighbours, SHARE_BYTES)
            The shares that neighbours have encrypted for the client.
        has_sent : ndarray of bool, shape (clients, neighbours)
            Whether the neighbour's update has reached the server.
        """
        rows = self._rows(round_number, clients)
        state, self.state = self.state, {}  # a second request could ask for the other share
        needed = self.settings.shares_needed(shares.shape[1])
        revealed = np.zeros((len(clients), shares.shape[1], shamir.DIGITS), np.uint32)
        for k, (place, client) in enumerate(zip(rows, clients, strict=True)):
            if has_sent[k].sum() < needed:
                raise ClientError(int(client), round_number, f"fewer than {needed} of its neighbours have sent updates")
            private = crypto.private_key(parts(state["secrets"][place].tobytes())[0])
            for j, (other, public) in enumerate(zip(state["neighbours"][place], state["public"][place], strict=True)):
                about = _about(round_number, other, client)
                agreed = crypto.agree(private, parts(public.tobytes())[0], FOR_SHARES + about)
                try:
                    text = crypto.decrypt(agreed, shares[k, j].tobytes(), about)
                except InvalidTag:
                    raise ClientError(int(client), round_number, f"a share of client {other} was changed") from None
                both = np.frombuffer(text, "<u4").reshape(2, shamir.DIGITS)
                revealed[k, j] = both[int(has_sent[k, j])]
        return {"revealed": revealed}

    def _rows(self, round_number: int, clients: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return the rows of clients in the state."""
        place = {int(client): row for row, client in enumerate(self.state.get("clients", ()))}
        for client in clients.tolist():
            if client not in place or self.state["round"][place[client]] != round_number:
                raise ClientError(client, round_number, "it has no keys for secure aggregation in this round")
        return np.array([place[client] for client in clients.tolist()], np.intp)


def answer_layout(step: str, neighbours: int) -> tuple[str, tuple[int, ...], np.dtype[Any]]:
    """Return the name of the array that clients answer in a step, the shape of a row, and the dtype."""
    layouts: dict[str, tuple[str, tuple[int, ...], np.dtype[Any]]] = {
        "keys": ("public", (PUBLIC_BYTES,), np.dtype(np.uint8)),
        "shares": ("shares", (neighbours, SHARE_BYTES), np.dtype(np.uint8)),
        "unmask": ("revealed", (neighbours, shamir.DIGITS), np.dtype(np.uint32)),
    }
    return layouts[step]


def mask_key(private: X25519PrivateKey, public: bytes, round_number: int, client: int, other: int) -> bytes:
    """Return the key of two clients' mask, from the private key of one and what is public of the other."""
    low, high = sorted((client, other))
    return crypto.agree(private, parts(public)[1], FOR_MASKS + _about(round_number, low, high))


def _about(round_number: int, sender: int, receiver: int) -> bytes:
    """Return the round and two clients as bytes."""
    return np.array([round_number, sender, receiver], "<i8").tobytes()


def parts(text: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the three parts of a client's secrets, or of what is public of them."""
    size = crypto.KEY_BYTES
    return text[:size], text[size : 2 * size], text[2 * size :]


def _bytes(texts: list[bytes], *shape: int) -> Bytes:
    return np.frombuffer(b"".join(texts), np.uint8).reshape(shape)
