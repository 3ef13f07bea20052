"""Compression: transforms that reduce the size of updates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedsim.checks import Interval
from fedsim.updates.transform import Array, Indices, TransformContext, UpdateTransform


@dataclass(frozen=True)
class Float16(UpdateTransform):
    """Send values in half precision; values out of its range are clipped."""

    def on_client(self, values: Array, ctx: TransformContext) -> tuple[Array, dict[str, Array]]:
        """Return the values in half precision."""
        largest = np.finfo(np.float16).max
        return np.clip(values, -largest, largest).astype(np.float16), {}

    def on_server(self, values: Array, side: Mapping[str, Array], ctx: TransformContext) -> Array:
        """Return the values in double precision."""
        return values.astype(np.float64)


@dataclass(frozen=True)
class Int8(UpdateTransform):
    """Send integers from -127 to 127 and one scale per client; stochastic rounding makes them unbiased.

    Alistarh et al., "QSGD: communication-efficient SGD via gradient quantization and encoding", NeurIPS 2017
    (arXiv:1610.02132), section 3.1, with 127 levels and the largest value as the scale.
    """

    def on_client(self, values: Array, ctx: TransformContext) -> tuple[Array, dict[str, Array]]:
        """Return the values as integers, and their scale."""
        scale = np.abs(values).max(axis=1, initial=0).astype(np.float32) / np.float32(127)
        scaled = values / np.where(scale > 0, scale, 1)[:, None].astype(np.float64)
        for row, rng in zip(scaled, ctx.rngs(), strict=True):
            row += rng.random(len(row))
        return np.clip(np.floor(scaled), -127, 127).astype(np.int8), {"scale": scale}

    def on_server(self, values: Array, side: Mapping[str, Array], ctx: TransformContext) -> Array:
        """Return the integers times the scale."""
        return values * side["scale"][:, None].astype(np.float64)


@dataclass(frozen=True)
class TopK(UpdateTransform):
    """Send the largest values and their indices.

    Stich, Cordonnier and Jaggi, "Sparsified SGD with memory", NeurIPS 2018 (arXiv:1809.07599), algorithm 1.

    Parameters
    ----------
    fraction : float
        Fraction of the values to send, greater than 0 and at most 1; at least one value is sent.
    error_feedback : bool
        Whether a client keeps the values that were not sent and adds them to its next update.
    """

    fraction: float = 0.1
    error_feedback: bool = True
    limits = {"fraction": Interval(0, 1, open_low=True)}

    def on_client(self, values: Array, ctx: TransformContext) -> tuple[Array, dict[str, Array]]:
        """Return the largest values and their indices."""
        count = _count(self.fraction, values.shape[1])
        largest = np.argpartition(-np.abs(values), count - 1, axis=1)[:, :count]
        index = np.sort(largest, axis=1).astype(np.min_scalar_type(max(values.shape[1] - 1, 0)))
        return np.take_along_axis(values, index.astype(np.intp), axis=1), {"index": index}

    def on_server(self, values: Array, side: Mapping[str, Array], ctx: TransformContext) -> Array:
        """Return the values at their indices, and zero elsewhere; ValueError unless indices increase."""
        index = side["index"].astype(np.intp)
        if not (index[:, 1:] > index[:, :-1]).all():
            raise ValueError("the indices do not increase")
        return _scatter(values, index, ctx)


@dataclass(frozen=True)
class RandomMask(UpdateTransform):
    """Send values at random indices, which the server draws with the same generator, so that no indices are sent.

    Konečný et al., "Federated learning: strategies for improving communication efficiency", 2016 (arXiv:1610.05492),
    section 2. Values are scaled by ``1 / fraction``, which makes the update unbiased. It cannot be combined with error
    feedback; see `fedsim.updates.transform.check_transforms`.

    Parameters
    ----------
    fraction : float
        Fraction of the values to send, greater than 0 and at most 1; at least one value is sent.
    """

    fraction: float = 0.1
    limits = {"fraction": Interval(0, 1, open_low=True)}

    @property
    def is_contractive(self) -> bool:
        """Whether all values are sent."""
        return self.fraction == 1

    def _indices(self, ctx: TransformContext) -> Indices:
        count = _count(self.fraction, ctx.length)
        return np.array([np.sort(rng.permutation(ctx.length)[:count]) for rng in ctx.rngs()]).reshape(-1, count)

    def on_client(self, values: Array, ctx: TransformContext) -> tuple[Array, dict[str, Array]]:
        """Return the values at the random indices."""
        return np.take_along_axis(values, self._indices(ctx), axis=1), {}

    def on_server(self, values: Array, side: Mapping[str, Array], ctx: TransformContext) -> Array:
        """Return the scaled values at their indices, and zero elsewhere."""
        return _scatter(values * (ctx.length / _count(self.fraction, ctx.length)), self._indices(ctx), ctx)


def _count(fraction: float, length: int) -> int:
    """Return the number of values to send."""
    return max(1, round(fraction * length))


def _scatter(values: Array, index: Indices, ctx: TransformContext) -> Array:
    """Return arrays of ``ctx.length`` values with these values at these indices, and zero elsewhere."""
    full = np.zeros((len(values), ctx.length))
    np.put_along_axis(full, index, values, axis=1)
    return full
