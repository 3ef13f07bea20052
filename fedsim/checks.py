"""Checks of the user's values. An error is one sentence with the field, its value, and the allowed values."""

from __future__ import annotations

import difflib
import math
import numbers
import os
import re
import sys
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from math import inf
from types import UnionType
from typing import Any, NamedTuple

from fedsim.errors import ConfigError
from fedsim.synonyms import SYNONYMS, normalised

#: The default upper bound of a whole number, because some code stores counts and sizes in 32 bits.
LARGEST = 2**31 - 1
#: The largest seed. Keys of random streams have 64 bits, so larger seeds would repeat the numbers of smaller ones.
LARGEST_SEED = 2**64 - 1
LARGEST_FLOAT = int(sys.float_info.max)


def shorten(value: Any) -> str:
    """Return the repr of a value for an error message, shortened to about a line."""
    try:
        text = repr(value)
    except ValueError:  # Python does not print integers of more than 4,300 digits
        return f"a {type(value).__name__} too large to print"
    return text if len(text) <= 200 else f"{text[:90]} ... {text[-90:]}"


def translate(word: Any, allowed: Iterable[str], synonyms: bool = True) -> str:
    """Return the allowed word that is `word` in another spelling, or else a synonym of it, or an empty string."""
    if not isinstance(word, str) or len(word) > 100 or not normalised(word):
        return ""
    words, given = list(allowed), normalised(word)
    same = next((name for name in words if normalised(name) == given), "")
    if same or not synonyms:
        return same
    return next((name for name in words if given in SYNONYMS.get(name, "").split()), "")


def suggest(word: Any, allowed: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for a synonym or the closest of the allowed words, or an empty string."""
    words = list(allowed)
    found = translate(word, words) or closest(word, words)
    return f"; did you mean {found!r}?" if found else ""


def closest(word: Any, allowed: list[str]) -> str:
    """Return the allowed word that is spelt most like `word`, or an empty string if none is."""
    return "".join(difflib.get_close_matches(word[:100], allowed, n=1)) if isinstance(word, str) else ""


#: Returns a hint for a word that is none of the allowed words, as `suggest` does.
Hint = Callable[[Any, list[str]], str]


def check_choice(field: str, value: Any, allowed: Iterable[str], hint: Hint = suggest) -> None:
    """Raise ConfigError, with a hint, unless `value` is one of the allowed words."""
    words = list(allowed)
    if not isinstance(value, str) or value not in words:
        raise ConfigError(f"{field} is {shorten(value)}; allowed: {', '.join(words) or 'none'}{hint(value, words)}")


def check_instance(field: str, value: Any, kinds: type | UnionType, allowed: str) -> None:
    """Raise ConfigError, which says what is allowed, unless `value` is an instance of `kinds`."""
    if not isinstance(value, kinds):
        raise ConfigError(f"{field} is {shorten(value)}; allowed: {allowed}")


def to_builtin(value: Any) -> Any:
    """Return NumPy numbers as Python numbers, also inside lists, tuples and dicts; other values are unchanged.

    ``np.int64(3)`` becomes 3, ``np.bool_(True)`` True and ``np.float32(0.5)`` 0.5. Configuration files and labels then
    show them as literals.
    """
    if type(value) in (list, tuple):
        parts = [to_builtin(part) for part in value]
        return value if all(new is old for new, old in zip(parts, value, strict=True)) else type(value)(parts)
    if type(value) is dict:
        made = {to_builtin(key): to_builtin(part) for key, part in value.items()}
        return value if all(made[key] is part for key, part in value.items()) else made
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # a NumPy scalar, or an array of one number
        value = value.item()
    if type(value) in (bool, int, float) or not isinstance(value, numbers.Real):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    try:
        return float(value)
    except OverflowError:
        return value


def to_builtin_sequence(value: Any) -> Any:
    """Return an array as (nested) tuples of Python numbers; other values as `to_builtin` does."""
    if getattr(value, "shape", ()) != () and hasattr(value, "tolist"):
        return _tuples(value.tolist())
    return to_builtin(value)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else to_builtin(value)


def convert_fields(instance: Any) -> None:
    """Convert the fields of a frozen dataclass with `to_builtin`.

    In a field of type float, an integer of more than 64 bits becomes a float, because NumPy cannot calculate with it.
    """
    for field in fields(instance):
        value = to_builtin(getattr(instance, field.name))
        if field.type in (float, "float") and type(value) is int and 2**63 <= abs(value) <= LARGEST_FLOAT:
            value = float(value)
        object.__setattr__(instance, field.name, value)


def check_integer(field: str, value: Any, least: int = 0, most: int = LARGEST) -> int:
    """Return `value` as an int; raise ConfigError unless it is a whole number from `least` to `most`."""
    value = to_builtin(value)
    if type(value) is not int or not least <= value <= most:
        too_large = type(value) is int and value > most
        allowed = f"{least} to {most}" if too_large or most < LARGEST else f"{least} or more"
        raise ConfigError(f"{field} is {shorten(value)}; allowed: a whole number, {allowed}")
    return value


def check_real(
    field: str, value: Any, low: float = -inf, high: float = inf, open_low: bool = False, open_high: bool = False
) -> float:
    """Return `value`; raise ConfigError unless it is a finite number from `low` to `high`, without an open end."""
    value = to_builtin(value)
    is_finite = type(value) in (int, float) and abs(value) <= LARGEST_FLOAT
    excluded = (low if open_low else None, high if open_high else None)
    if not is_finite or not low <= value <= high or value in excluded:
        bounds = []
        if low > -inf:
            bounds.append(f"{'greater than' if open_low else 'at least'} {low:g}")
        if high < inf:
            bounds.append(f"{'less than' if open_high else 'at most'} {high:g}")
        raise ConfigError(f"{field} is {shorten(value)}; allowed: a finite number {' and '.join(bounds)}".rstrip())
    number: float = value
    return number


def check_flag(field: str, value: Any) -> bool:
    """Return `value`; raise ConfigError unless it is True or False."""
    value = to_builtin(value)
    if type(value) is not bool:
        raise ConfigError(f"{field} is {shorten(value)}; allowed: true or false")
    return value


class Interval(NamedTuple):
    """The allowed values of a field, from `low` to `high`, an open end excluded; see `check_fields`."""

    low: float = -inf
    high: float = inf
    open_low: bool = False
    open_high: bool = False


def check_fields(instance: Any) -> None:
    """Convert the numbers in a frozen dataclass's fields by `convert_fields`, and check them.

    A field of type bool must be True or False. A field named in `limits`, a class attribute of the class or of a base
    that maps names to `Interval`, must be a number in the interval: a whole number if its type is int. It may also be
    None if its type includes None.

    Raises
    ------
    ConfigError
        A field has another value.
    """
    convert_fields(instance)
    declared = [vars(cls).get("limits") for cls in type(instance).__mro__]
    limits = ChainMap(*(dict(part) for part in declared if isinstance(part, Mapping)))
    cls, names = type(instance).__name__, [field.name for field in fields(instance)]
    for name, limit in limits.items():
        check_choice(f"a name in {cls}'s limits", name, names)
        check_instance(f"{cls}'s limit of {name!r}", limit, Interval, "an Interval")
    for field in fields(instance):
        name, kind, value = f"{cls}'s {field.name}", str(field.type), getattr(instance, field.name)
        interval = limits.get(field.name)
        if field.type in (bool, "bool"):
            check_flag(name, value)
        elif interval is None or (value is None and ("None" in kind or "Optional" in kind or field.default is None)):
            continue
        elif re.search(r"\bint\b", kind) and "float" not in kind:
            low, high = max(interval.low, -LARGEST), min(interval.high, LARGEST)
            low = math.floor(low) + 1 if interval.open_low else math.ceil(low)
            high = math.ceil(high) - 1 if interval.open_high else math.floor(high)
            check_integer(name, value, low, high)
        else:
            check_real(name, value, *interval)


def check_seed(field: str, value: Any) -> int:
    """Return `value` as an int; raise ConfigError unless it can seed a stream of random numbers."""
    return check_integer(field, value, 0, LARGEST_SEED)


def check_path(field: str, value: Any) -> None:
    """Raise ConfigError unless `value` is a path: text or an object of `pathlib`."""
    name = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(name, str) or "\0" in name:
        raise ConfigError(f"{field} is {shorten(value)}; allowed: a path")
