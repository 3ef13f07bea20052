"""Parameters that clients keep to themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_integer
from fedsim.clients.check_hooks import check_groups
from fedsim.clients.strategy import ClientStrategy
from fedsim.models import Group, Model

#: Name of the client state that holds a client's private parameters.
PRIVATE = "private parameters"


def private_groups(strategy: ClientStrategy, model: Model) -> Sequence[Group]:
    """Return the groups of parameters that are private to a strategy's clients.

    Raises
    ------
    ConfigError
        The strategy returned anything but groups of the model.
    """
    return check_groups(strategy, strategy.private_groups(model), model.groups)


def private_mask(strategy: ClientStrategy, model: Model) -> NDArray[np.bool_]:
    """Return which parameters are private to a strategy's clients, shape (parameters,)."""
    mask = np.zeros(model.num_parameters, dtype=bool)
    for group in private_groups(strategy, model):
        for name in group:
            mask[model.layout[name][0]] = True
    return mask


def last_groups(field: str, count: int, model: Model) -> Sequence[Group]:
    """Return a model's last `count` groups of parameters; raise ConfigError unless other groups are left."""
    return model.groups[-check_integer(field, count, 1, len(model.groups) - 1) :]
