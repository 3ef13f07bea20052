"""FedRS: a restricted softmax, in which labels that the client does not have have less weight.

Li and Zhan, "FedRS: federated learning with restricted softmax for label distribution non-IID data", KDD 2021, eq. 6:
the scores of absent labels enter the softmax scaled by alpha.
"""

from __future__ import annotations

import numpy as np

from fedsim.checks import Interval
from fedsim.clients.check_hooks import check_softmax
from fedsim.clients.context import Array, Context
from fedsim.clients.sgd import SGD
from fedsim.models.losses import cross_entropy


class FedRS(SGD):
    """SGD on the softmax cross-entropy of restricted scores.

    Parameters
    ----------
    lr, epochs, batch_size, momentum, weight_decay, lr_decay, lr_decay_every, steps
        As for SGD.
    alpha : float
        Scale of an absent label's score, 0 to 1; 1 is SGD. The paper's default is 0.5.
    """

    alpha: float = 0.5
    neutral = {"alpha": 1.0}
    limits = {"alpha": Interval(0, 1)}

    def gradient(self, weights: Array, x: Array, y: Array, ctx: Context) -> tuple[Array, Array]:
        """Restrict the scores before the softmax."""
        check_softmax(self, ctx.model)
        scale = np.where(ctx.label_counts > 0, 1, self.alpha).astype(weights.dtype)[:, None, :]

        def restricted(scores: Array, labels: Array) -> tuple[Array, Array]:
            loss, by_scores = cross_entropy(scores * scale, labels)
            return loss, by_scores * scale

        return ctx.model.loss_and_gradient(weights, x, y, loss=restricted)
