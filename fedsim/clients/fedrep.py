"""FedRep: a shared representation, and a head per client that is trained first.

Collins, Hassani, Mokhtari and Shakkottai, "Exploiting shared representations for personalized federated learning",
ICML 2021 (arXiv:2102.07078), algorithm 1: many local updates of the head, then of the representation; only the latter
is sent.
"""

from __future__ import annotations

from fedsim.checks import Interval
from fedsim.clients.context import Array, Context
from fedsim.clients.fedper import FedPer


class FedRep(FedPer):
    """FedPer that first trains the head, with the representation frozen, then the representation, with the head frozen.

    Parameters
    ----------
    lr, epochs, batch_size, momentum, weight_decay, lr_decay, lr_decay_every, steps
        As for SGD, for the representation.
    personal_layers : int
        As for FedPer.
    head_epochs : int
        Passes over the client's examples to train the head, at least 1; the paper takes 10.
    """

    head_epochs: int = 10
    limits = {"head_epochs": Interval(1)}

    def train(self, ctx: Context) -> Array:
        """Train the head, then the representation."""
        head = self.private_groups(ctx.model)
        weights = ctx.fit(by=FedPer.of(self, epochs=self.head_epochs, steps=None), groups=head)
        return ctx.fit(weights, groups=ctx.model.groups[: -len(head)])
