"""The state of any server strategy between rounds, which a checkpoint contains."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from flwr.serverapp.strategy import Strategy

from fedsim.servers.fedavg import FedAvg
from fedsim.study.checkpoint import check_fits


def strategy_state_dict(strategy: Strategy) -> dict[str, Any]:
    """Return the state of a server strategy between rounds.

    It is ``state`` for fedsim's own classes. For other classes, including subclasses of fedsim's, it is all attributes
    except functions and fedsim's internal ones, and the state of each strategy among the attributes.
    """
    internal: set[str] = set()
    if isinstance(strategy, FedAvg):
        if type(strategy).__module__.startswith("fedsim."):
            return {"state": strategy.state}
        internal = {name for name in vars(FedAvg()) if name.startswith("_")}
    state: dict[str, Any] = {}
    for name, value in vars(strategy).items():
        if name in internal or type(value).__module__.startswith("fedsim."):
            continue
        if isinstance(value, Strategy):
            state[name] = strategy_state_dict(value)
        elif not _is_function(value):
            state[name] = value
    return state


def _is_function(value: Any) -> bool:
    """Return whether a value is a function, a method, a class, a partial or a compiled function."""
    return inspect.isroutine(value) or isinstance(value, type | partial | np.ufunc) or hasattr(value, "__wrapped__")


def load_strategy_state(strategy: Strategy, state: Mapping[str, Any]) -> None:
    """Load the result of `strategy_state_dict` into a fresh strategy; raise ConfigError if it does not fit."""
    fresh = strategy_state_dict(strategy)
    for name, value in state.items():
        inner = getattr(strategy, name, None)
        if isinstance(inner, Strategy):
            load_strategy_state(inner, value)
            continue
        check_fits(not hasattr(type(strategy), name) or name in fresh, "server")
        known = fresh.get(name)
        check_fits(known is None or value is None or _kind(known) == _kind(value), "server")
        setattr(strategy, name, value)


def _kind(value: Any) -> str:
    """Return the name of a value's type, for comparison; all types of numbers are one."""
    return "number" if isinstance(value, bool | int | float | np.number) else type(value).__name__
