"""The errors a user can cause, each one sentence: which field, what value, what is allowed."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable
from typing import Any


class FedsimError(Exception):
    """Base of every error fedsim raises on purpose; the command line prints it and exits 2."""


class ConfigError(FedsimError, ValueError):
    """A setting or an input file that cannot be used."""


class DataError(FedsimError, ValueError):
    """Data that cannot be trained on, or that cannot be found."""


class DivergenceError(FedsimError, ArithmeticError):
    """Training left the finite numbers or blew up; names the round and the client."""


def missing_extra(what: str, extra: str) -> ConfigError:
    """Return the error for something that an extra brings, with the command that installs it."""
    return ConfigError(f"{what} needs the extra {extra!r}; install it by: pip install 'fedsim[{extra}]'")


def near(word: str, allowed: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest allowed word, or nothing."""
    close = difflib.get_close_matches(word, list(allowed), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def one_of(field: str, value: Any, allowed: Iterable[str]) -> None:
    """Raise ConfigError unless `value` is one of the allowed words."""
    words = list(allowed)
    if value not in words:
        hint = near(value, words) if isinstance(value, str) else ""
        raise ConfigError(f"{field} is {value!r}; allowed: {', '.join(words)}{hint}")


def whole(field: str, value: Any, least: int = 0, most: int | None = None) -> None:
    """Raise ConfigError unless `value` is a whole number from `least` to `most`."""
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole or value < least or (most is not None and value > most):
        allowed = f"{least} or more" if most is None else f"{least} to {most}"
        raise ConfigError(f"{field} is {value!r}; allowed: a whole number, {allowed}")


def real(
    field: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Raise ConfigError unless `value` is a finite number from `low` to `high`, an open end excluded."""
    is_real = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    below = is_real and (value < low or (open_low and value == low))
    above = is_real and (value > high or (open_high and value == high))
    if not is_real or below or above:
        bounds = []
        if low > -math.inf:
            bounds.append(f"{'greater than' if open_low else 'at least'} {low:g}")
        if high < math.inf:
            bounds.append(f"{'less than' if open_high else 'at most'} {high:g}")
        raise ConfigError(f"{field} is {value!r}; allowed: a finite number {' and '.join(bounds)}".rstrip())
