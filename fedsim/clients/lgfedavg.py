"""LG-FedAvg: local representations, and a global head on top of them.

Liang, Liu, Liu, Salakhutdinov and Morency, "Think locally, act globally: federated learning with local and global
representations", 2020 (arXiv:2001.01523), algorithm 1: FedPer the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedsim.checks import check_integer
from fedsim.clients.sgd import SGD, count_layers
from fedsim.models import mlp


class LGFedAvg(SGD):
    """SGD that keeps the first layers to the client and shares the last.

    Parameters
    ----------
    lr, epochs, batch_size, momentum, weight_decay, lr_decay, lr_decay_every, steps
        As for SGD.
    global_layers : int
        How many layers are shared, counted from the output, at least 1; one at least must be local.
    """

    global_layers: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("LGFedAvg's global_layers", self.global_layers, 1)

    def private_layers(self, net: mlp.MLP) -> Sequence[int]:
        """Keep the first layers."""
        depth = count_layers("LGFedAvg's global_layers", self.global_layers, net)
        return range(1, depth - self.global_layers + 1)
