"""Reweighing: each client weighs its examples so that group and label are independent.

Kamiran and Calders, "Data preprocessing techniques for classification without discrimination", Knowledge and
Information Systems 33, 2012 (doi:10.1007/s10115-011-0463-8), "Reweighing": an example of group a and label y has the
weight ``n_a n_y / (n n_ay)``, here with the client's own counts n. It is the local debiasing that FairFed is combined
with.
"""

from __future__ import annotations

import numpy as np

from fedsim.clients.context import Array, Context
from fedsim.clients.sgd import SGD
from fedsim.models.losses import LOSSES


class Reweighing(SGD):
    """SGD on the loss weighted by ``n_a n_y / (n n_ay)``; the experiment's ``sensitive`` names the column of groups.

    Nothing about groups is sent. A client in which only one group or one label occurs trains as with SGD. The gradient
    is of this class's own, so training is by the NumPy kernel.

    Parameters
    ----------
    lr, epochs, batch_size, momentum, weight_decay, lr_decay, lr_decay_every, steps
        As for SGD.

    Raises
    ------
    ConfigError
        In the run: the experiment has no ``sensitive``, or differential privacy of examples.
    """

    def gradient(self, weights: Array, x: Array, y: Array, ctx: Context) -> tuple[Array, Array]:
        """Weigh the loss of each example of the batch."""
        counts = ctx.group_label_counts
        rows = np.arange(len(y))[:, None]
        factors = example_weights(counts)[rows, ctx.groups, y].astype(weights.dtype)

        def weighted(scores: Array, labels: Array) -> tuple[Array, Array]:
            losses, derivative = LOSSES[ctx.model.loss](scores, labels)
            return losses * factors, derivative * factors[..., None]

        return ctx.model.loss_and_gradient(weights, x, y, loss=weighted)


def example_weights(counts: Array) -> Array:
    """Return the weight of an example of each group and label, 0 where there is none.

    Parameters
    ----------
    counts : ndarray of int, shape (clients, groups, labels)

    Returns
    -------
    ndarray of float64, shape (clients, groups, labels)
    """
    of_group, of_label = counts.sum(axis=2, keepdims=True), counts.sum(axis=1, keepdims=True)
    total = np.maximum(counts.sum(axis=(1, 2), keepdims=True), 1)
    return np.where(counts > 0, of_group * of_label / (total * np.maximum(counts, 1)), 0.0)
