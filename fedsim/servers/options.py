"""Checks of the options that fedsim's server strategies share with Flower's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedsim.checks import check_integer, check_real, check_seed, to_builtin

#: What Flower's strategies call the least numbers of clients, all 1 by default here: fractions decide.
MINIMUM = ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes")


def check_flower_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a server strategy's options with plain numbers; ConfigError for a fraction or count that is none.

    Parameters
    ----------
    name : str
        Of the strategy.
    options : mapping
        Option -> value; only those of Flower's FedAvg, and ``seed``, are checked.
    """
    checked = {option: to_builtin(value) for option, value in options.items()}
    for option, value in checked.items():
        field = f"{name}'s {option}"
        if option in ("fraction_train", "fraction_evaluate"):
            check_real(field, value, 0, 1)
        elif option in MINIMUM:
            check_integer(field, value)
        elif option == "seed":
            check_seed(field, value)
    return checked
