"""The base class of update transforms, and the pipeline that applies them one after another.

A client's update is the change of its weights in a round. A transform has a part on the client (`on_client`) and one on
the server (`on_server`): compression encodes and decodes; clipping and noise change values on the client only.
``transforms = ["TopK(0.05)", "Int8()"]`` sends a twentieth of the values, as bytes. All engines compute the same
numbers and count the bytes of the arrays that are sent. The global model, and other arrays that a client strategy
sends, are not transformed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.arguments import CheckedInit
from fedsim.checks import check_fields, shorten
from fedsim.clients.task import Task, Update
from fedsim.errors import ConfigError
from fedsim.streams import Purpose, generator

Array = NDArray[Any]
Indices = NDArray[np.intp]

#: Name of the client state that error feedback adds to the next update.
RESIDUAL = "compression residual"
#: Name of the array of values that a client sends; transforms may send other arrays too.
VALUES = "values"


@dataclass(frozen=True)
class TransformContext:
    """The context of a transform; the same on the client and on the server.

    Attributes
    ----------
    seed, round : int
    clients : ndarray of int, shape (clients,)
        Partition ids.
    length : int
        Number of values per client that are passed to `UpdateTransform.on_client`.
    position : int
        Index of the transform in the pipeline.
    """

    seed: int
    round: int
    clients: Indices
    length: int
    position: int = 0

    def rngs(self) -> list[np.random.Generator]:
        """Return a random generator per client; the client and the server draw the same numbers."""
        return [generator(self.seed, Purpose.COMPRESS, self.round, int(c), self.position) for c in self.clients]


@dataclass(frozen=True)
class UpdateTransform(CheckedInit):
    """The base class of transforms, which changes nothing.

    Never combine rows: each row belongs to one client.
    """

    def __post_init__(self) -> None:
        check_fields(self)

    def on_client(self, values: Array, ctx: TransformContext) -> tuple[Array, dict[str, Array]]:
        """Return the arrays that are sent.

        Parameters
        ----------
        values : ndarray, shape (clients, length)
            The updates of the shared parameters in float64, or the values that the previous transform returned.
        ctx : TransformContext

        Returns
        -------
        values : ndarray, shape (clients, any length)
        side : dict of str to ndarray, shape (clients, ...)
            Other arrays that `on_server` needs.
        """
        return values, {}

    def on_server(self, values: Array, side: Mapping[str, Array], ctx: TransformContext) -> Array:
        """Return the decoded values, shape (clients, ctx.length).

        Parameters
        ----------
        values, side
            As `on_client` returned them.
        ctx : TransformContext
        """
        return values

    @property
    def error_feedback(self) -> bool:
        """Whether a client adds the error of its update to its next update."""
        return False

    @property
    def is_private(self) -> bool:
        """Whether the client's update is private, so that no other arrays may be sent beside it."""
        return False

    @property
    def is_contractive(self) -> bool:
        """Whether the norm of the error is smaller than that of the values, which error feedback requires."""
        return True


def check_transforms(transforms: Sequence[UpdateTransform]) -> None:
    """Raise ConfigError if error feedback would diverge.

    Error feedback adds the error of the whole pipeline to a client's next update. The error stays bounded if every
    transform is contractive: `TopK` drops the smallest values, the error of `Float16` is relative to each value, and
    that of `Int8` is at most 1/127 of the largest value. The error of a random choice scaled by ``1 / fraction`` is up
    to ``1 / fraction - 1`` times the values, so the residual would grow without bound.
    """
    feedback = next((t for t in transforms if t.error_feedback), None)
    unbounded = next((t for t in transforms if not t.is_contractive), None)
    if feedback and unbounded:
        raise ConfigError(
            f"transforms has {feedback} with error feedback together with {unbounded}, whose error can exceed "
            f"the values, so that it would grow from round to round; allowed: {type(feedback).__name__} with "
            f"error_feedback=False, or no {type(unbounded).__name__}"
        )


class Pipeline:
    """Applies transforms one after another to the parameters that clients share.

    Parameters
    ----------
    transforms : sequence of UpdateTransform
        At least one.
    shared : ndarray of bool, shape (parameters,)
        Mask of the parameters that clients send.
    dtype : str
        Dtype of the weights.
    """

    def __init__(self, transforms: Sequence[UpdateTransform], shared: NDArray[np.bool_], dtype: str) -> None:
        check_transforms(transforms)
        self._transforms, self._shared, self._dtype = tuple(transforms), shared, dtype
        self._private = next((transform for transform in transforms if transform.is_private), None)
        self.error_feedback = any(transform.error_feedback for transform in transforms)
        self._lengths = [int(shared.sum())]
        for position, transform in enumerate(self._transforms):
            ctx = TransformContext(0, 0, np.zeros(1, np.intp), self._lengths[-1], position)
            values, side = _on_client(transform, np.zeros((1, ctx.length)), ctx)
            self._lengths.append(values.shape[1])
            _on_server(transform, values, side, ctx)

    def on_client(self, task: Task, update: Update, malicious: NDArray[np.bool_] | None = None) -> Update:
        """Return the updates with the encoded arrays that clients send, and with the weights that the server decodes.

        Error feedback needs the decoded weights on the client too.

        Parameters
        ----------
        task : Task
        update : Update
        malicious : ndarray of bool, shape (clients,), optional
            As for `encode`.
        """
        if self._private and update.up:
            raise ConfigError(
                f"client {type(task.strategy).__name__} sends {', '.join(update.up)} besides the weights, which "
                f"{type(self._private).__name__} does not protect"
            )
        change = update.weights - task.global_weights
        state = update.state
        if self.error_feedback:
            change += state[RESIDUAL]
        encoded = self.encode(change, task.seed, task.round, update.partition_ids, malicious)
        decoded = self.decode(encoded, task.seed, task.round, update.partition_ids)
        if self.error_feedback:
            state = {**state, RESIDUAL: change - decoded}
        weights = task.global_weights + decoded
        return replace(update, weights=weights, state=state, encoded=encoded, update_norm=None)

    def encode_again(self, task: Task, update: Update, malicious: NDArray[np.bool_]) -> Update:
        """Return updates in which some clients, whose weights an attack has changed at the server, have encoded theirs.

        `Update.encoded` remains, because the arrays of these clients have the same size.
        """
        weights, ids = update.weights.copy(), update.partition_ids[malicious]
        change = weights[malicious] - task.global_weights
        encoded = self.encode(change, task.seed, task.round, ids, np.ones(len(ids), np.bool_))
        weights[malicious] = task.global_weights + self.decode(encoded, task.seed, task.round, ids)
        return replace(update, weights=weights, update_norm=None)

    def encode(
        self,
        change: Array,
        seed: int,
        round_number: int,
        clients: Indices,
        malicious: NDArray[np.bool_] | None = None,
    ) -> dict[str, Array]:
        """Return the arrays that clients send, with a row per client.

        Parameters
        ----------
        change : ndarray, shape (clients, parameters)
        seed, round_number : int
        clients : ndarray of int, shape (clients,)
        malicious : ndarray of bool, shape (clients,), optional
            Clients that do not apply transforms without `on_server`, such as clipping: only the client could enforce
            them.
        """
        values = change[:, self._shared].astype(np.float64)
        sent: dict[str, Array] = {}
        for position, transform in enumerate(self._transforms):
            ctx = TransformContext(seed, round_number, clients, self._lengths[position], position)
            before = values
            values, side = _on_client(transform, values, ctx)
            if malicious is not None and type(transform).on_server is UpdateTransform.on_server:
                values = np.where(malicious[:, None], before, values)
            sent |= {f"{position}.{name}": rows for name, rows in side.items()}
        if values.dtype == np.float64:
            values = values.astype(self._dtype)
        return sent | {VALUES: values}

    def decode(self, sent: Mapping[str, Array], seed: int, round_number: int, clients: Indices) -> Array:
        """Return the decoded changes, shape (clients, parameters)."""
        values: Array = sent[VALUES].astype(np.float64) if sent[VALUES].dtype.kind == "f" else sent[VALUES]
        for position, transform in reversed(list(enumerate(self._transforms))):
            side = {n.partition(".")[2]: rows for n, rows in sent.items() if n.startswith(f"{position}.")}
            ctx = TransformContext(seed, round_number, clients, self._lengths[position], position)
            values = _on_server(transform, values, side, ctx)
        change = np.zeros((len(values), len(self._shared)), dtype=self._dtype)
        change[:, self._shared] = values
        return change


def _on_client(transform: UpdateTransform, values: Array, ctx: TransformContext) -> tuple[Array, dict[str, Array]]:
    """Call a transform's `on_client`; ConfigError unless it returns values and a dict, with a row per client."""
    result: Any = transform.on_client(values, ctx)
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
        raise ConfigError(
            f"{type(transform).__name__}'s on_client() returned {shorten(result)}; allowed: a tuple of "
            f"values, shape ({len(ctx.clients)}, any length), and a dict of arrays"
        )
    for name, rows in ({"values": result[0]} | result[1]).items():
        if (
            not isinstance(rows, np.ndarray)
            or rows.shape[:1] != (len(ctx.clients),)
            or (name == "values") > (rows.ndim == 2)
        ):
            raise ConfigError(
                f"{type(transform).__name__}'s on_client() returned {name} of shape {np.shape(rows)}; allowed: arrays "
                f"with a row for each of the {len(ctx.clients)} clients"
            )
    return result


def _on_server(transform: UpdateTransform, values: Array, side: Mapping[str, Array], ctx: TransformContext) -> Array:
    """Call a transform's `on_server`; ConfigError unless it returns what `on_client` was given, by shape."""
    result = transform.on_server(values, side, ctx)
    if np.shape(result) != (len(ctx.clients), ctx.length):
        raise ConfigError(
            f"{type(transform).__name__}'s on_server() returned values of shape {np.shape(result)}; allowed: "
            f"{(len(ctx.clients), ctx.length)}"
        )
    return result
