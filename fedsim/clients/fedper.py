"""FedPer: shared lower layers, private top layers.

Arivazhagan, Aggarwal, Singh and Choudhary, "Federated learning with personalization layers", 2019 (arXiv:1912.00818),
algorithms 1 and 2: base and personal layers are trained together; only base layers are sent.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedsim.checks import Interval
from fedsim.clients.private import last_groups
from fedsim.clients.sgd import SGD
from fedsim.models import Group, Model


class FedPer(SGD):
    """SGD whose last layers are private to each client.

    Parameters
    ----------
    lr, epochs, batch_size, momentum, weight_decay, lr_decay, lr_decay_every, steps
        As for SGD.
    personal_layers : int
        Number of private layers (the model's groups of parameters), counted from the output, at least 1; at least one
        layer must be shared.
    """

    personal_layers: int = 1
    limits = {"personal_layers": Interval(1)}

    def private_groups(self, model: Model) -> Sequence[Group]:
        """Return the last layers."""
        return last_groups(f"{type(self).__name__}'s personal_layers", self.personal_layers, model)
