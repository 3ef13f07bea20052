"""Compression: transforms that make what clients send smaller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_flag, check_real
from fedsim.updates.transform import TransformContext, UpdateTransform

Array = NDArray[Any]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Float16(UpdateTransform):
    """Send half-precision numbers; beyond their range, the largest of them."""

    def on_client(self, values: Array, ctx: TransformContext) -> tuple[Array, dict[str, Array]]:
        """Round."""
        most = np.finfo(np.float16).max
        return np.clip(values, -most, most).astype(np.float16), {}

    def on_server(self, values: Array, side: Mapping[str, Array], ctx: TransformContext) -> Array:
        """Widen."""
        return values.astype(np.float64)


@dataclass(frozen=True)
class Int8(UpdateTransform):
    """Send whole numbers from -127 to 127 and one scale, rounded at random so that they are right on average.

    Alistarh et al., "QSGD: communication-efficient SGD via gradient quantization and encoding", NeurIPS 2017
    (arXiv:1610.02132), section 3.1, with 127 levels and the largest value as the scale.
    """

    def on_client(self, values: Array, ctx: TransformContext) -> tuple[Array, dict[str, Array]]:
        """Round."""
        scale = np.abs(values).max(axis=1, initial=0).astype(np.float32) / np.float32(127)
        steps = values / np.where(scale > 0, scale, 1)[:, None].astype(np.float64)
        for row, rng in zip(steps, ctx.rngs(), strict=True):
            row += rng.random(len(row))
        return np.clip(np.floor(steps), -127, 127).astype(np.int8), {"scale": scale}

    def on_server(self, values: Array, side: Mapping[str, Array], ctx: TransformContext) -> Array:
        """Scale."""
        return values * side["scale"][:, None].astype(np.float64)


@dataclass(frozen=True)
class TopK(UpdateTransform):
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
        check_real("TopK's fraction", self.fraction, 0, 1, open_low=True)
        check_flag("TopK's error_feedback", self.error_feedback)

    @property
    def feeds_back(self) -> bool:
        """Whether it does."""
        return self.error_feedback

    def on_client(self, values: Array, ctx: TransformContext) -> tuple[Array, dict[str, Array]]:
        """Choose."""
        kept = _kept(self.fraction, values.shape[1])
        largest = np.argpartition(-np.abs(values), kept - 1, axis=1)[:, :kept]
        index = np.sort(largest, axis=1).astype(np.min_scalar_type(max(values.shape[1] - 1, 0)))
        return np.take_along_axis(values, index.astype(np.intp), axis=1), {"index": index}

    def on_server(self, values: Array, side: Mapping[str, Array], ctx: TransformContext) -> Array:
        """Put back; zero elsewhere."""
        whole = np.zeros((len(values), ctx.length))
        np.put_along_axis(whole, side["index"].astype(np.intp), values, axis=1)
        return whole


@dataclass(frozen=True)
class RandomMask(UpdateTransform):
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
        check_real("RandomMask's fraction", self.fraction, 0, 1, open_low=True)

    @property
    def contracts(self) -> bool:
        """Whether it does: only if everything is sent."""
        return self.fraction == 1

    def _mask(self, ctx: TransformContext) -> Indices:
        kept = _kept(self.fraction, ctx.length)
        return np.array([np.sort(rng.permutation(ctx.length)[:kept]) for rng in ctx.rngs()]).reshape(-1, kept)

    def on_client(self, values: Array, ctx: TransformContext) -> tuple[Array, dict[str, Array]]:
        """Choose."""
        return np.take_along_axis(values, self._mask(ctx), axis=1), {}

    def on_server(self, values: Array, side: Mapping[str, Array], ctx: TransformContext) -> Array:
        """Put back, scaled; zero elsewhere."""
        whole = np.zeros((len(values), ctx.length))
        scaled = values * (ctx.length / _kept(self.fraction, ctx.length))
        np.put_along_axis(whole, self._mask(ctx), scaled, axis=1)
        return whole


def _kept(fraction: float, length: int) -> int:
    return max(1, round(fraction * length))
