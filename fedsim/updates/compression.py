"""Compression of what clients send: the change of the weights, by transforms one after another.

``compress = ["TopK(0.05)", "Int8()"]`` sends a twentieth of the coordinates, as bytes. A client encodes its change, the
server decodes it and goes on with what it has got; every engine makes the same numbers of it, and counts the bytes of
the encoded arrays. The model on its way down, and arrays that a strategy sends besides the weights, stay as they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import ConfigError, flag, plain_fields, real
from fedsim.streams import Purpose, generator

__all__ = ["Compression", "Float16", "Int8", "RandomMask", "TopK", "Transform"]

Array = NDArray[Any]
Indices = NDArray[np.intp]

#: The state under which a client keeps what compression has swallowed so far.
RESIDUAL = "compression residual"
#: The encoded values, beside which transforms may send arrays of their own.
VALUES = "values"


@dataclass(frozen=True)
class Draws:
    """The random numbers of some clients' transforms: the same on both sides.

    Attributes
    ----------
    seed, round : int
    clients : ndarray of int, shape (clients,)
    place : int
        Of the transform among the others.
    """

    seed: int
    round: int
    clients: Indices
    place: int = 0

    def rngs(self) -> list[np.random.Generator]:
        """Return one generator per client."""
        return [generator(self.seed, Purpose.COMPRESS, self.round, int(c), self.place) for c in self.clients]


@dataclass(frozen=True)
class Transform(ABC):
    """One step of a compression, on rows of numbers, one per client."""

    def __post_init__(self) -> None:
        plain_fields(self)

    @abstractmethod
    def encode(self, values: Array, draws: Draws) -> tuple[Array, dict[str, Array]]:
        """Return shorter or smaller values, shape (clients, fewer), and what else decoding needs, a row per client."""

    @abstractmethod
    def decode(self, values: Array, side: Mapping[str, Array], length: int, draws: Draws) -> Array:
        """Return values of shape (clients, length) again."""

    @property
    def feeds_back(self) -> bool:
        """Whether clients add what this transform loses to their next change."""
        return False

    @property
    def contracts(self) -> bool:
        """Whether it loses less than it is given, as error feedback needs."""
        return True


def check_chain(transforms: Sequence[Transform]) -> None:
    """Raise ConfigError where error feedback would diverge.

    Feedback adds to a client's next change what the whole chain has lost of this one. That stays bounded if every
    transform contracts: `TopK` drops the smallest coordinates, `Float16` errs by a share of each number, `Int8` by at
    most 1/127 of the largest. An unbiased choice of coordinates scaled by ``1 / fraction`` loses up to
    ``1 / fraction - 1`` times what was there, so the residual grows without bound.
    """
    back = next((t for t in transforms if t.feeds_back), None)
    grows = next((t for t in transforms if not t.contracts), None)
    if back and grows:
        raise ConfigError(
            f"compress has {back} with error feedback beside {grows}, which scales up what it sends, so that the error "
            f"fed back would grow from round to round; allowed: {type(back).__name__} with error_feedback=False, or no "
            f"{type(grows).__name__}"
        )


@dataclass(frozen=True)
class Float16(Transform):
    """Send half-precision numbers; beyond their range, the largest of them."""

    def encode(self, values: Array, draws: Draws) -> tuple[Array, dict[str, Array]]:
        """Round."""
        most = np.finfo(np.float16).max
        return np.clip(values, -most, most).astype(np.float16), {}

    def decode(self, values: Array, side: Mapping[str, Array], length: int, draws: Draws) -> Array:
        """Widen."""
        return values.astype(np.float64)


@dataclass(frozen=True)
class Int8(Transform):
    """Send whole numbers from -127 to 127 and one scale, rounded at random so that they are right on average.

    Alistarh et al., "QSGD: communication-efficient SGD via gradient quantization and encoding", NeurIPS 2017
    (arXiv:1610.02132), section 3.1, with 127 levels and the largest value as the scale.
    """

    def encode(self, values: Array, draws: Draws) -> tuple[Array, dict[str, Array]]:
        """Round."""
        scale = np.abs(values).max(axis=1, initial=0).astype(np.float32) / np.float32(127)
        steps = values / np.where(scale > 0, scale, 1)[:, None].astype(np.float64)
        for row, rng in zip(steps, draws.rngs(), strict=True):
            row += rng.random(len(row))
        return np.clip(np.floor(steps), -127, 127).astype(np.int8), {"scale": scale}

    def decode(self, values: Array, side: Mapping[str, Array], length: int, draws: Draws) -> Array:
        """Scale."""
        return values * side["scale"][:, None].astype(np.float64)


@dataclass(frozen=True)
class TopK(Transform):
    """Send the coordinates that changed most, and which they are.

    Stich, Cordonnier and Jaggi, "Sparsified SGD with memory", NeurIPS 2018 (arXiv:1809.07599), algorithm 1: with
    feedback, a client keeps what was not sent and adds it to its next change.

    Parameters
    ----------
    fraction : float
        Of the coordinates, greater than 0 and at most 1; at least one.
    error_feedback : bool
    """

    fraction: float = 0.1
    error_feedback: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        real("TopK's fraction", self.fraction, 0, 1, open_low=True)
        flag("TopK's error_feedback", self.error_feedback)

    @property
    def feeds_back(self) -> bool:
        """Whether it does."""
        return self.error_feedback

    def encode(self, values: Array, draws: Draws) -> tuple[Array, dict[str, Array]]:
        """Choose."""
        kept = _kept(self.fraction, values.shape[1])
        largest = np.argpartition(-np.abs(values), kept - 1, axis=1)[:, :kept]
        index = np.sort(largest, axis=1).astype(np.min_scalar_type(max(values.shape[1] - 1, 0)))
        return np.take_along_axis(values, index.astype(np.intp), axis=1), {"index": index}

    def decode(self, values: Array, side: Mapping[str, Array], length: int, draws: Draws) -> Array:
        """Put back; zero elsewhere."""
        whole = np.zeros((len(values), length))
        np.put_along_axis(whole, side["index"].astype(np.intp), values, axis=1)
        return whole


@dataclass(frozen=True)
class RandomMask(Transform):
    """Send coordinates chosen at random, which both sides draw alike, so that only their values travel.

    Konečný et al., "Federated learning: strategies for improving communication efficiency", 2016 (arXiv:1610.05492),
    section 2. Values are scaled by ``1 / fraction``, so that the change is right on average. It cannot be combined with
    error feedback, which needs a transform that loses less than it is given.

    Parameters
    ----------
    fraction : float
        Of the coordinates, greater than 0 and at most 1; at least one.
    """

    fraction: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        real("RandomMask's fraction", self.fraction, 0, 1, open_low=True)

    @property
    def contracts(self) -> bool:
        """Whether it does: only if everything is sent."""
        return self.fraction == 1

    def _mask(self, length: int, draws: Draws) -> Indices:
        kept = _kept(self.fraction, length)
        return np.array([np.sort(rng.permutation(length)[:kept]) for rng in draws.rngs()]).reshape(-1, kept)

    def encode(self, values: Array, draws: Draws) -> tuple[Array, dict[str, Array]]:
        """Choose."""
        return np.take_along_axis(values, self._mask(values.shape[1], draws), axis=1), {}

    def decode(self, values: Array, side: Mapping[str, Array], length: int, draws: Draws) -> Array:
        """Put back, scaled; zero elsewhere."""
        whole = np.zeros((len(values), length))
        scaled = values * (length / _kept(self.fraction, length))
        np.put_along_axis(whole, self._mask(length, draws), scaled, axis=1)
        return whole


def _kept(fraction: float, length: int) -> int:
    return max(1, round(fraction * length))


class Compression:
    """Transforms one after another, on the coordinates that clients share.

    Parameters
    ----------
    transforms : sequence of Transform
    shared : ndarray of bool, shape (parameters,)
        Which parameters clients send.
    dtype : str
        Of the weights.
    """

    def __init__(self, transforms: Sequence[Transform], shared: NDArray[np.bool_], dtype: str) -> None:
        check_chain(transforms)
        self._transforms, self._shared, self._dtype = tuple(transforms), shared, dtype
        self.feeds_back = any(transform.feeds_back for transform in transforms)
        self._lengths = [int(shared.sum())]
        for transform in self._transforms:
            values, _ = transform.encode(np.zeros((1, self._lengths[-1])), Draws(0, 0, np.zeros(1, np.intp)))
            self._lengths.append(values.shape[1])

    def encode(self, change: Array, seed: int, round_number: int, clients: Indices) -> dict[str, Array]:
        """Return what some clients send of their changes, shape (clients, parameters), a row of each array each."""
        values = change[:, self._shared].astype(np.float64)
        sent: dict[str, Array] = {}
        for place, transform in enumerate(self._transforms):
            values, side = transform.encode(values, Draws(seed, round_number, clients, place))
            sent |= {f"{place}.{name}": rows for name, rows in side.items()}
        if values.dtype == np.float64:
            values = values.astype(self._dtype)
        return sent | {VALUES: values}

    def decode(self, sent: Mapping[str, Array], seed: int, round_number: int, clients: Indices) -> Array:
        """Return the changes that the server makes of it, shape (clients, parameters)."""
        values: Array = sent[VALUES].astype(np.float64) if sent[VALUES].dtype.kind == "f" else sent[VALUES]
        for place, transform in reversed(list(enumerate(self._transforms))):
            side = {n.partition(".")[2]: rows for n, rows in sent.items() if n.startswith(f"{place}.")}
            draws = Draws(seed, round_number, clients, place)
            values = transform.decode(values, side, self._lengths[place], draws)
        change = np.zeros((len(values), len(self._shared)), dtype=self._dtype)
        change[:, self._shared] = values
        return change
