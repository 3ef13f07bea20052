"""FedPer: shared lower layers, and top layers of each client's own.

Arivazhagan, Aggarwal, Singh and Choudhary, "Federated learning with personalization layers", 2019 (arXiv:1912.00818),
algorithms 1 and 2: base and personal layers are trained together; only base layers are sent.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedsim.checks import check_integer
from fedsim.clients.sgd import SGD, count_layers
from fedsim.models import mlp


class FedPer(SGD):
    """SGD that keeps the last layers to the client.

    Parameters
    ----------
    lr, epochs, batch_size, momentum, weight_decay, lr_decay, lr_decay_every, steps
        As for SGD.
    personal_layers : int
        How many layers, counted from the output, at least 1; one layer at least must be shared.
    """

    personal_layers: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer(f"{type(self).__name__}'s personal_layers", self.personal_layers, 1)

    def private_layers(self, net: mlp.MLP) -> Sequence[int]:
        """Keep the last layers."""
        depth = count_layers(f"{type(self).__name__}'s personal_layers", self.personal_layers, net)
        return range(depth - self.personal_layers + 1, depth + 1)
