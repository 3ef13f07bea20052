"""The baseline without federation: each client trains its own model."""

from __future__ import annotations

from collections.abc import Sequence

from fedsim.clients.sgd import SGD
from fedsim.models import Group, Model


class LocalOnly(SGD):
    """SGD on a model that is private to each client; nothing is sent, and the global model does not change.

    A baseline for personalised strategies: clients benefit from federation only if a strategy outperforms this one.

    Parameters
    ----------
    lr, epochs, batch_size, momentum, weight_decay, lr_decay, lr_decay_every, steps
        As for SGD.
    """

    def private_groups(self, model: Model) -> Sequence[Group]:
        """Return all groups."""
        return model.groups
