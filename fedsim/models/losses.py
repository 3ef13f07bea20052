"""Losses as functions of scores: each example's loss, and its derivative with respect to the scores.

Each loss includes the sigmoid or softmax, in a form that does not overflow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.models.activations import Array, sigmoid

#: Function of scores, shape (..., outputs), and labels or targets, which returns each example's loss, shape (...), and
#: its derivative with respect to the scores, shape (..., outputs).
Loss = Callable[[Array, Array], tuple[Array, Array]]


def _targets(y: Array, scores: Array) -> Array:
    """Return labels or values in the shape of the scores; labels are one-hot if there are several outputs."""
    outputs = scores.shape[-1]
    one_hot = outputs > 1 and y.ndim < scores.ndim
    values = y[..., None] == np.arange(outputs) if one_hot else y.reshape(scores.shape)
    return values.astype(scores.dtype, copy=False)


def mse(scores: Array, y: Array) -> tuple[Array, Array]:
    """Return the squared error, averaged over outputs."""
    error = scores - _targets(y, scores)
    return np.mean(error * error, axis=-1), error * (2 / scores.shape[-1])


def binary_cross_entropy(scores: Array, y: Array) -> tuple[Array, Array]:
    """Return the cross-entropy of the sigmoid of each output, averaged over outputs."""
    target = _targets(y, scores)
    # -[y log p + (1-y) log(1-p)] with p = sigmoid(z) is max(z, 0) - z y + log(1 + exp(-|z|)).
    loss = np.maximum(scores, 0) - scores * target + np.log1p(np.exp(-np.abs(scores)))
    p = scores.copy()
    sigmoid(p)
    return np.mean(loss, axis=-1), (p - target) / scores.shape[-1]


def cross_entropy(scores: Array, y: Array) -> tuple[Array, Array]:
    """Return the cross-entropy of the softmax over the outputs."""
    z = scores - scores.max(axis=-1, keepdims=True)
    label = (np.arange(y.size), y.ravel())  # the score of each example's label
    rows = z.reshape(-1, z.shape[-1])
    chosen = rows[label].reshape(y.shape)
    np.exp(z, out=z)
    total = z.sum(axis=-1, keepdims=True)
    z /= total
    rows[label] -= 1
    return np.log(total[..., 0]) - chosen, z


LOSSES: dict[str, Loss] = {"mse": mse, "binary_cross_entropy": binary_cross_entropy, "cross_entropy": cross_entropy}


def predicted_labels(scores: Array) -> NDArray[np.intp]:
    """Return the label with the largest score or, for one output, whether p > 1/2; `scores` is (..., outputs)."""
    return (scores[..., 0] > 0).astype(np.intp) if scores.shape[-1] == 1 else scores.argmax(axis=-1)


def is_correct(scores: Array, y: Array) -> NDArray[np.bool_]:
    """Return whether each example is classified correctly; targets of a single output are rounded to 0 or 1."""
    return predicted_labels(scores) == (y > 0.5 if scores.shape[-1] == 1 else y)


def score(loss: Any, accuracy: Any, variance: float | None) -> Any:
    """Return the accuracy or, for regression, R squared: ``1 - loss / variance``.

    Parameters
    ----------
    loss, accuracy : float or ndarray
        Means over examples.
    variance : float, optional
        Of the test targets, for regression; see `Dataset.test_variance`. R squared is NaN if it is 0.
    """
    if variance is None:
        return accuracy
    return 1 - loss / variance if variance else loss * np.nan
