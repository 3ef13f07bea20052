"""Sums of per-example gradients, each clipped to a norm: the gradient of DP-SGD before noise.

Abadi et al., "Deep learning with differential privacy", CCS 2016 (arXiv:1607.00133), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedsim.models.model import Array, Group, Model


def clip_factors(norms: Any, clip: float) -> Any:
    """Return the factors that scale vectors down to the norm `clip`, given their norms."""
    return np.minimum(1.0, clip / np.maximum(norms, 1e-150))


def clipped_gradient(
    model: Model, parameters: Array, x: Array, y: Array, clip: float, groups: Sequence[Group] | None = None
) -> tuple[Array, Array]:
    """Return the sum of the losses and of the clipped gradients of the examples in each client's batch.

    The model's own method ``clipped_gradient`` is called if it has one, with the other arguments, as `MLP` has;
    otherwise `loss_and_gradient` for one example of each client after another.

    Parameters
    ----------
    model : Model
    parameters : ndarray, shape (clients, parameters)
    x : ndarray, shape (clients, batch, ...)
        A batch may be empty.
    y : ndarray, shape (clients, batch) or (clients, batch, outputs)
    clip : float
        An example's gradient that is longer is scaled down to this norm.
    groups : sequence of tuple of str, optional
        The groups of parameters that are trained, default all. The gradient of the others is 0 and does not count.

    Returns
    -------
    loss : ndarray of float64, shape (clients,)
    grad : ndarray, shape (clients, parameters)
    """
    own = getattr(model, "clipped_gradient", None)
    if own is not None:
        result: tuple[Array, Array] = own(parameters, x, y, clip, groups)
        return result
    return clipped_by_example(model, parameters, x, y, clip, groups)


def clipped_by_example(
    model: Model, parameters: Array, x: Array, y: Array, clip: float, groups: Sequence[Group] | None = None
) -> tuple[Array, Array]:
    """Return the result of `clipped_gradient` from the gradients of single examples."""
    losses, total = np.zeros(len(parameters)), np.zeros_like(parameters)
    frozen = [model.layout[name][0] for g in model.groups if groups is not None and g not in groups for name in g]
    for k in range(x.shape[1]):
        loss, grad = model.loss_and_gradient(parameters, x[:, k : k + 1], y[:, k : k + 1])
        for place in frozen:
            grad[:, place] = 0
        norms = np.sqrt(np.einsum("kj,kj->k", grad, grad, dtype=np.float64))
        total += grad * clip_factors(norms, clip).astype(grad.dtype)[:, None]
        losses += loss
    return losses, total
