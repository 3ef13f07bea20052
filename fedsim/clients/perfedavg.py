"""Per-FedAvg, first order: a global model that adapts well to a client's examples in one step.

Fallah, Mokhtari and Ozdaglar, "Personalized federated learning: a meta-learning approach", NeurIPS 2020
(arXiv:2002.07948), algorithm 1 without the Hessian (the paper's FO variant).
"""

from __future__ import annotations

from fedsim.checks import Interval
from fedsim.clients.context import Array, Context
from fedsim.clients.sgd import SGD


class PerFedAvg(SGD):
    """SGD along the gradient after a step of `inner_lr`; the step uses one half of each batch, the gradient the other.

    Parameters
    ----------
    lr, epochs, batch_size, momentum, weight_decay, lr_decay, lr_decay_every, steps
        As for SGD. A batch of one example is used as both halves.
    inner_lr : float
        The paper's alpha, greater than 0.
    tune_epochs : int
        Passes over its examples with which a client adapts the global model before it predicts, with the learning rate
        `inner_lr`; at least 1. The paper takes a single step.
    """

    inner_lr: float = 0.05
    tune_epochs: int = 1
    limits = {"inner_lr": Interval(0, open_low=True), "tune_epochs": Interval(1)}

    def gradient(self, weights: Array, x: Array, y: Array, ctx: Context) -> tuple[Array, Array]:
        """Take a step on the first half; return the gradient on the second half after it."""
        half = (x.shape[1] + 1) // 2
        rest = slice(half if x.shape[1] > 1 else 0, None)
        loss, grad = ctx.model.loss_and_gradient(weights, x[:, :half], y[:, :half])
        return loss, ctx.model.loss_and_gradient(weights - self.inner_lr * grad, x[:, rest], y[:, rest])[1]

    def personalise(self, ctx: Context) -> Array:
        """Adapt the newest global model by `tune_epochs` epochs."""
        return ctx.fit(by=SGD.of(self, lr=self.inner_lr, epochs=self.tune_epochs, steps=None, momentum=0.0))
