"""FedLC: logits calibrated by the client's number of examples of each label.

Zhang, Li, Li, Xu, Shi, Lu and Ye, "Federated learning with label distribution skew via logits calibration", ICML 2022
(arXiv:2209.00189), eq. 8: score c enters the softmax as ``z_c - tau * n_c ** (-1/4)``. As in published implementations,
the softmax's sum runs over all labels. A label that the client does not have has an infinite offset: it does not
contribute to the sum, so training does not lower its score.
"""

from __future__ import annotations

import numpy as np

from fedsim.checks import Interval
from fedsim.clients.check_hooks import check_softmax
from fedsim.clients.context import Array, Context
from fedsim.clients.sgd import SGD
from fedsim.models.losses import cross_entropy


class FedLC(SGD):
    """SGD on the softmax cross-entropy of calibrated scores.

    Parameters
    ----------
    lr, epochs, batch_size, momentum, weight_decay, lr_decay, lr_decay_every, steps
        As for SGD.
    tau : float
        Strength of the calibration, at least 0; with 0 only absent labels are excluded. The paper's default is 1.
    """

    tau: float = 1.0
    limits = {"tau": Interval(0)}

    def gradient(self, weights: Array, x: Array, y: Array, ctx: Context) -> tuple[Array, Array]:
        """Calibrate the scores before the softmax."""
        check_softmax(self, ctx.model)
        counts = ctx.label_counts
        offset = np.where(counts > 0, self.tau * np.maximum(counts, 1) ** -0.25, np.inf).astype(weights.dtype)

        def calibrated(scores: Array, labels: Array) -> tuple[Array, Array]:
            return cross_entropy(scores - offset[:, None, :], labels)

        return ctx.model.loss_and_gradient(weights, x, y, loss=calibrated)
