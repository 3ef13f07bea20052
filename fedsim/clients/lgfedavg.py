"""LG-FedAvg: local representations, and a global head on top of them.

Liang, Liu, Liu, Salakhutdinov and Morency, "Think locally, act globally: federated learning with local and global
representations", 2020 (arXiv:2001.01523), algorithm 1: the reverse of FedPer.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedsim.checks import Interval
from fedsim.clients.private import last_groups
from fedsim.clients.sgd import SGD
from fedsim.models import Group, Model


class LGFedAvg(SGD):
    """SGD whose first layers are private to each client; the last are shared.

    Parameters
    ----------
    lr, epochs, batch_size, momentum, weight_decay, lr_decay, lr_decay_every, steps
        As for SGD.
    global_layers : int
        Number of layers (the model's groups of parameters) that are shared, counted from the output, at least 1; at
        least one must be local.
    """

    global_layers: int = 1
    limits = {"global_layers": Interval(1)}

    def private_groups(self, model: Model) -> Sequence[Group]:
        """Return the first layers."""
        shared = last_groups(f"{type(self).__name__}'s global_layers", self.global_layers, model)
        return model.groups[: -len(shared)]
