"""Private parameters: the parts of the model that clients do not send."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_integer
from fedsim.clients.check_hooks import check_groups
from fedsim.clients.strategy import ClientStrategy
from fedsim.models import Group, Model

#: Name of the client state with a client's private parameters.
PRIVATE = "private parameters"


def private_groups(strategy: ClientStrategy, model: Model) -> Sequence[Group]:
    """Return the groups of parameters that are private to a strategy's clients.

    Raises
    ------
    ConfigError
        The strategy returned something else than groups of the model.
    """
    return check_groups(strategy, strategy.private_groups(model), model.groups)


def has_global_model(strategy: ClientStrategy, model: Model) -> bool:
    """Return whether the server has one complete model."""
    return not no_global_model(strategy, model)


def no_global_model(strategy: ClientStrategy, model: Model) -> str:
    """Return why there is no global model, or an empty string if there is one."""
    name = type(strategy).__name__
    if private_groups(strategy, model):
        return f"the clients of {name} have private parameters"
    return "" if strategy.one_model else f"{name} trains several models"


def private_mask(strategy: ClientStrategy, model: Model) -> NDArray[np.bool_]:
    """Return a mask of the parameters that are private to a strategy's clients, shape (parameters,)."""
    return parameter_mask(private_groups(strategy, model), model)


def parameter_mask(groups: Sequence[Group], model: Model) -> NDArray[np.bool_]:
    """Return a mask of the parameters in some of a model's groups, shape (parameters,)."""
    mask = np.zeros(model.num_parameters, dtype=bool)
    for name in (name for group in groups for name in group):
        mask[model.layout[name][0]] = True
    return mask


def last_groups(field: str, count: int, model: Model) -> Sequence[Group]:
    """Return a model's last `count` groups of parameters; raise ConfigError unless other groups are left."""
    return model.groups[-check_integer(field, count, 1, len(model.groups) - 1) :]
