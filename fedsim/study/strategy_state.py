"""The state of any server strategy between rounds, for a checkpoint."""

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
    """Return what a server strategy keeps between rounds, for a checkpoint.

    Of fedsim's own classes that is ``state``. Of any other class, subclasses of fedsim's among them, it is all
    attributes but functions and fedsim's internal ones, and the same of strategies that it wraps.
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
    """Whether a value is code: a function, a method, a class, a partial or compiled one; not an object with a state."""
    return inspect.isroutine(value) or isinstance(value, type | partial | np.ufunc) or hasattr(value, "__wrapped__")


def load_strategy_state(strategy: Strategy, state: Mapping[str, Any]) -> None:
    """Give a fresh strategy what `strategy_state_dict` returned; raise ConfigError where that cannot be what it was."""
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
    """Return what kind of value this is, for comparison: a number may become another type of number."""
    return "number" if isinstance(value, bool | int | float | np.number) else type(value).__name__
