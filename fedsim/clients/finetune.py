"""FedAvg with fine-tuning: each client adapts the global model to its own examples before using it.

Cheng, Chadha and Duchi, "Fine-tuning is fine in federated learning", 2021 (arXiv:2108.07313); Wang, Mathews, Kiddon,
Eichner, Beaufays and Ramage, "Federated evaluation of on-device personalization", 2019 (arXiv:1910.10252).
"""

from __future__ import annotations

from fedsim.checks import Interval
from fedsim.clients.context import Array, Context
from fedsim.clients.sgd import SGD


class FineTune(SGD):
    """SGD; before it evaluates, each client trains the global model on its own training examples.

    Parameters
    ----------
    lr, epochs, batch_size, momentum, weight_decay, lr_decay, lr_decay_every, steps
        As for SGD.
    tune_epochs : int
        Passes over the client's examples, at least 1.
    tune_lr : float, optional
        Learning rate of fine-tuning, greater than 0; default ``lr``.
    """

    tune_epochs: int = 1
    tune_lr: float | None = None
    neutral = {}
    limits = {"tune_epochs": Interval(1), "tune_lr": Interval(0, open_low=True)}

    def personalise(self, ctx: Context) -> Array:
        """Fine-tune the newest global model."""
        lr = self.lr if self.tune_lr is None else self.tune_lr
        return ctx.fit(by=SGD.of(self, lr=lr, epochs=self.tune_epochs, steps=None))
