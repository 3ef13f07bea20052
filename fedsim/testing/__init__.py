"""Checks that a client strategy or a model satisfies the requirements of fedsim.

>>> from fedsim.clients import SGD, ClientStrategy
>>> class Halved(SGD):
...     def direction(self, grad, weights, ctx):
...         return grad / 2
>>> passed = check_client_strategy(Halved)
"""

from __future__ import annotations

import inspect

import numpy as np

from fedsim.arguments import check_methods, checked_arguments
from fedsim.clients import ClientStrategy
from fedsim.models.conformance import ModelError, check_model
from fedsim.testing.checks import StrategyChecks, StrategyError
from fedsim.text import describe

__all__ = ["ModelError", "StrategyError", "check_client_strategy", "check_model"]

#: Names of the checks, in the order in which they run.
CHECKS = tuple(name for name in vars(StrategyChecks) if not name.startswith("_"))


@checked_arguments
def check_client_strategy(strategy: ClientStrategy | type[ClientStrategy]) -> list[str]:
    """Try a client strategy on small clients of different sizes.

    Parameters
    ----------
    strategy : ClientStrategy or subclass of it
        A class is tried with its default hyperparameters.

    Returns
    -------
    list of str
        Names of the checks, all passed.

    Raises
    ------
    StrategyError
        Names every check that failed and what to fix.
    """
    cls = strategy if isinstance(strategy, type) else type(strategy)
    if not issubclass(cls, ClientStrategy):
        raise StrategyError(f"{strategy!r} is not a client strategy: extend fedsim.clients.SGD or ClientStrategy")
    if isinstance(strategy, type):
        try:
            inspect.signature(strategy).bind()
            strategy = strategy()
        except TypeError as error:
            raise StrategyError(
                f"{cls.__name__} cannot be made without arguments ({error}): give every hyperparameter a default"
            ) from error
    check_methods(strategy)
    checks = StrategyChecks(strategy)
    passed, failures, skipped = [], [], ""
    causes: list[Exception] = []
    for name in CHECKS:
        title = name.replace("_", " ")
        try:
            with np.errstate(all="ignore"):
                getattr(checks, name)()
            passed.append(title)
        except StrategyError as error:
            failures.append(f"{title}: {error}")
            causes.append(error)
        except Exception as error:
            failures.append(f"{title}: {describe(error)}{_hint(error)}")
            causes.append(error)
        if failures and name == "trains":
            skipped = " (the others run once these pass)"
            break
    if failures:
        tried = len(passed) + len(failures)
        summary = f"{cls.__name__} fails {len(failures)} of {tried} checks{skipped}"
        raise StrategyError("\n  ".join([summary, *failures])) from causes[0]
    return passed


def _hint(error: Exception) -> str:
    if "read-only" in str(error):
        return " (an array that clients share is changed in place: make a new array instead)"
    if "broadcast" in str(error):
        return " (arrays have a row per client: a value per client needs [:, None] beside (clients, parameters))"
    return ""
