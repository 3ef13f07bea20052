"""FedSAM: sharpness-aware minimisation, which finds flat minima, at the clients.

Qu, Li, Duan, Liu, Tang and Lu, "Generalized federated learning via sharpness aware minimization", ICML 2022
(arXiv:2206.02618), algorithm 1; Caldarola, Caputo and Ciccone, ECCV 2022 (arXiv:2203.11834).
"""

from __future__ import annotations

import numpy as np

from fedsim.checks import Interval
from fedsim.clients.context import Array, Context
from fedsim.clients.sgd import SGD


class FedSAM(SGD):
    """SGD along the gradient at ``w + rho * grad / ||grad||``, where the loss is highest nearby, to first order.

    Parameters
    ----------
    lr, epochs, batch_size, momentum, weight_decay, lr_decay, lr_decay_every, steps
        As for SGD.
    rho : float
        Radius of the neighbourhood, at least 0; 0 is SGD.
    """

    rho: float = 0.05
    neutral = {"rho": 0.0}
    limits = {"rho": Interval(0)}

    def gradient(self, weights: Array, x: Array, y: Array, ctx: Context) -> tuple[Array, Array]:
        """Return the loss at the current weights and the gradient at the perturbed weights."""
        loss, grad = ctx.model.loss_and_gradient(weights, x, y)
        norm = np.sqrt(np.sum(grad * grad, axis=1, keepdims=True))
        grad *= self.rho / np.maximum(norm, np.finfo(grad.dtype).tiny)
        return loss, ctx.model.loss_and_gradient(weights + grad, x, y)[1]
