"""The contract of update transforms, and the pipeline that applies them one after another.

A client's update is the change of its weights in a round. Each transform changes what the client sends (`on_client`)
and what the server makes of it (`on_server`): compression encodes and decodes; clipping and noise change values on the
client only. ``transforms = ["TopK(0.05)", "Int8()"]`` sends a twentieth of the coordinates as bytes. Every engine
computes the same numbers and counts the bytes of the arrays that are sent. The model that the server sends, and arrays
that a client strategy sends beside the weights, are not transformed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import convert_fields
from fedsim.clients.task import Task, Update
from fedsim.errors import ConfigError
from fedsim.streams import Purpose, generator

Array = NDArray[Any]
Indices = NDArray[np.intp]

#: Name of the client state that holds what error feedback adds to the next update.
RESIDUAL = "compression residual"
#: Name of the array of values that a client sends; transforms may send others beside it.
VALUES = "values"


@dataclass(frozen=True)
class TransformContext:
    """Whose updates a transform is given; the same on the client and on the server.

    Attributes
    ----------
    seed, round : int
    clients : ndarray of int, shape (clients,)
        Partition ids.
    length : int
        Values of each client that the transform was given on the client's side.
    position : int
        Of the transform among the others, from 0.
    """

    seed: int
    round: int
    clients: Indices
    length: int
    position: int = 0

    def rngs(self) -> list[np.random.Generator]:
        """Return each client's random generator; the same numbers are drawn on both sides."""
        return [generator(self.seed, Purpose.COMPRESS, self.round, int(c), self.position) for c in self.clients]


@dataclass(frozen=True)
class UpdateTransform:
    """A change of what clients send; by default none. Extend it, and override what differs.

    Rows belong to different clients and must not be combined.
    """

    def __post_init__(self) -> None:
        convert_fields(self)

    def on_client(self, values: Array, ctx: TransformContext) -> tuple[Array, dict[str, Array]]:
        """Return what is sent.

        Parameters
        ----------
        values : ndarray, shape (clients, length)
            The change of the shared weights in float64, or what the transform before returned.
        ctx : TransformContext

        Returns
        -------
        values : ndarray, shape (clients, any length)
        side : dict of str to ndarray, shape (clients, ...)
            Whatever else `on_server` needs.
        """
        return values, {}

    def on_server(self, values: Array, side: Mapping[str, Array], ctx: TransformContext) -> Array:
        """Return the values that the server works with, shape (clients, ctx.length).

        Parameters
        ----------
        values, side
            As `on_client` returned them.
        ctx : TransformContext
        """
        return values

    @property
    def feeds_back(self) -> bool:
        """Whether a client adds what this transform loses to its next update (error feedback)."""
        return False

    @property
    def contracts(self) -> bool:
        """Whether the error is smaller than the values, as error feedback needs."""
        return True


def check_transforms(transforms: Sequence[UpdateTransform]) -> None:
    """Raise ConfigError where error feedback would diverge.

    Feedback adds to a client's next update what all transforms together have lost of this one. That stays bounded if
    every transform contracts: `TopK` drops the smallest coordinates, `Float16` errs by a share of each number, `Int8`
    by at most 1/127 of the largest. An unbiased choice of coordinates scaled by ``1 / fraction`` loses up to
    ``1 / fraction - 1`` times what was there, so the residual grows without bound.
    """
    back = next((t for t in transforms if t.feeds_back), None)
    grows = next((t for t in transforms if not t.contracts), None)
    if back and grows:
        raise ConfigError(
            f"transforms has {back} with error feedback beside {grows}, which scales up what it sends, so that the "
            f"error fed back would grow from round to round; allowed: {type(back).__name__} with error_feedback=False, "
            f"or no {type(grows).__name__}"
        )


class Pipeline:
    """Transforms one after another, on the coordinates that clients share.

    Parameters
    ----------
    transforms : sequence of UpdateTransform
        At least one.
    shared : ndarray of bool, shape (parameters,)
        Which parameters clients send.
    dtype : str
        Of the weights.
    """

    def __init__(self, transforms: Sequence[UpdateTransform], shared: NDArray[np.bool_], dtype: str) -> None:
        check_transforms(transforms)
        self._transforms, self._shared, self._dtype = tuple(transforms), shared, dtype
        self.feeds_back = any(transform.feeds_back for transform in transforms)
        self._lengths = [int(shared.sum())]
        for position, transform in enumerate(self._transforms):
            ctx = TransformContext(0, 0, np.zeros(1, np.intp), self._lengths[-1], position)
            values, _ = transform.on_client(np.zeros((1, ctx.length)), ctx)
            self._lengths.append(values.shape[1])

    def on_client(self, task: Task, update: Update) -> Update:
        """Return the update as clients send it; the weights become those that the server decodes.

        Error feedback needs the decoded weights on the client's side too.
        """
        change = update.weights - task.global_weights
        state = update.state
        if self.feeds_back:
            change += state[RESIDUAL]
        encoded = self.encode(change, task.seed, task.round, update.partition_ids)
        arrived = self.decode(encoded, task.seed, task.round, update.partition_ids)
        if self.feeds_back:
            state = {**state, RESIDUAL: change - arrived}
        weights = task.global_weights + arrived
        return replace(update, weights=weights, state=state, encoded=encoded, update_norm=None)

    def encode(self, change: Array, seed: int, round_number: int, clients: Indices) -> dict[str, Array]:
        """Return the arrays that clients send for changes of shape (clients, parameters): a row of each per client."""
        values = change[:, self._shared].astype(np.float64)
        sent: dict[str, Array] = {}
        for position, transform in enumerate(self._transforms):
            ctx = TransformContext(seed, round_number, clients, self._lengths[position], position)
            values, side = transform.on_client(values, ctx)
            sent |= {f"{position}.{name}": rows for name, rows in side.items()}
        if values.dtype == np.float64:
            values = values.astype(self._dtype)
        return sent | {VALUES: values}

    def decode(self, sent: Mapping[str, Array], seed: int, round_number: int, clients: Indices) -> Array:
        """Return the changes that the server makes of what clients sent, shape (clients, parameters)."""
        values: Array = sent[VALUES].astype(np.float64) if sent[VALUES].dtype.kind == "f" else sent[VALUES]
        for position, transform in reversed(list(enumerate(self._transforms))):
            side = {n.partition(".")[2]: rows for n, rows in sent.items() if n.startswith(f"{position}.")}
            ctx = TransformContext(seed, round_number, clients, self._lengths[position], position)
            values = transform.on_server(values, side, ctx)
        change = np.zeros((len(values), len(self._shared)), dtype=self._dtype)
        change[:, self._shared] = values
        return change
