"""Losses as functions of scores: each example's loss, and its derivative with respect to the scores.

Each loss applies its own sigmoid or softmax, so that neither overflows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fedsim.models.activations import Array, sigmoid

#: Function of scores, shape (..., outputs), and labels or targets, which returns each example's loss, shape (...), and
#: its derivative with respect to the scores, shape (..., outputs).
Loss = Callable[[Array, Array], tuple[Array, Array]]


def _targets(y: Array, scores: Array) -> Array:
    """Return labels or values in the shape of the scores: labels one-hot where there are several outputs."""
    outputs = scores.shape[-1]
    if outputs > 1 and y.ndim < scores.ndim:
        onehot: Array = (y[..., None] == np.arange(outputs)).astype(scores.dtype)
        return onehot
    return y.reshape(scores.shape).astype(scores.dtype, copy=False)


def mse(scores: Array, y: Array) -> tuple[Array, Array]:
    """Squared error, averaged over outputs."""
    error = scores - _targets(y, scores)
    return np.mean(error * error, axis=-1), error * (2 / scores.shape[-1])


def binary_cross_entropy(scores: Array, y: Array) -> tuple[Array, Array]:
    """Cross-entropy of each output's sigmoid, averaged over outputs."""
    target = _targets(y, scores)
    # -[y log p + (1-y) log(1-p)] with p = sigmoid(z) is max(z, 0) - z y + log(1 + exp(-|z|)).
    loss = np.maximum(scores, 0) - scores * target + np.log1p(np.exp(-np.abs(scores)))
    p = scores.copy()
    sigmoid(p)
    return np.mean(loss, axis=-1), (p - target) / scores.shape[-1]


def cross_entropy(scores: Array, y: Array) -> tuple[Array, Array]:
    """Cross-entropy of the softmax over the outputs."""
    z = scores - scores.max(axis=-1, keepdims=True)
    label = (np.arange(y.size), y.ravel())  # one score of each example, in z seen as rows
    rows = z.reshape(-1, z.shape[-1])
    chosen = rows[label].reshape(y.shape)
    np.exp(z, out=z)
    total = z.sum(axis=-1, keepdims=True)
    z /= total
    rows[label] -= 1
    return np.log(total[..., 0]) - chosen, z


LOSSES: dict[str, Loss] = {
    "mse": mse,
    "binary_cross_entropy": binary_cross_entropy,
    "cross_entropy": cross_entropy,
}


def is_correct(scores: Array, y: Array) -> NDArray[np.bool_]:
    """Return which examples are classified correctly: by the largest score, or p > 1/2 if there is one output."""
    result: NDArray[np.bool_]
    if scores.shape[-1] == 1:
        result = (scores[..., 0] > 0) == (y > 0.5)
    else:
        result = scores.argmax(axis=-1) == y
    return result
