"""FedAvg's client with clipped gradients.

Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", ICML 2013 (arXiv:1211.5063),
algorithm 1. It clips the gradient of every step, not a client's whole update as differential privacy does.
"""

from __future__ import annotations

import numpy as np

from fedsim.checks import Interval
from fedsim.clients.context import Array, Context
from fedsim.clients.sgd import SGD


class ClippedSGD(SGD):
    """SGD that scales a batch's gradient down to the norm `max_norm` if its norm is larger.

    Parameters
    ----------
    lr, epochs, batch_size, momentum, weight_decay, lr_decay, lr_decay_every, steps
        As for SGD; the clipped gradient includes weight decay.
    max_norm : float
        Greater than 0: the Euclidean norm over all parameters.
    """

    max_norm: float = 1.0
    neutral = {"max_norm": 1e9}
    limits = {"max_norm": Interval(0, open_low=True)}

    def direction(self, grad: Array, weights: Array, ctx: Context) -> Array:
        """Clip each client's gradient."""
        norm = np.sqrt(np.sum(grad * grad, axis=1, keepdims=True))
        grad *= self.max_norm / np.maximum(norm, self.max_norm)
        return grad
