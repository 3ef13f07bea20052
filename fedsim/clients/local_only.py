"""The baseline without federation: every client trains by itself."""

from __future__ import annotations

from collections.abc import Sequence

from fedsim.clients.sgd import SGD
from fedsim.models import mlp


class LocalOnly(SGD):
    """SGD on a model of the client's own; nothing is sent, and the global model stays as it began.

    What to compare personalised strategies with: federation that does not beat it is not worth it to the clients.

    Parameters
    ----------
    lr, epochs, batch_size, momentum, weight_decay, lr_decay, lr_decay_every, steps
        As for SGD.
    """

    def private_layers(self, net: mlp.MLP) -> Sequence[int]:
        """Keep all layers."""
        return range(1, len(net.sizes))
