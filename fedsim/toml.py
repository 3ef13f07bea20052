"""Plain values in TOML: those of configuration files, messages and ``KEY=VALUE`` options."""

from __future__ import annotations

import tomllib
from typing import Any

from fedsim.checks import shorten
from fedsim.errors import ConfigError
from fedsim.text import one_line

#: The largest number of bits of an integer; Python cannot print integers of more than 4,300 digits.
MOST_BITS = 128


def check_plain(field: str, value: Any) -> None:
    """Raise ConfigError unless a value from text is None, a boolean, a number, text, or a collection of these.

    Integers have at most `MOST_BITS` bits, and text must be valid Unicode.
    """
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise ConfigError(f"{field} has an integer of {value.bit_length():,} bits; allowed: at most {MOST_BITS}")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{field} has the text {shorten(value)}; allowed: valid Unicode") from None
    elif isinstance(value, dict):
        for part in (*value, *value.values()):
            check_plain(field, part)
    elif isinstance(value, list | tuple):
        for part in value:
            check_plain(field, part)
    elif not isinstance(value, int | float | None):
        raise ConfigError(f"{field} has the value {value!r}; allowed: numbers, text, booleans, and lists of these")


def read_toml(what: str, text: str) -> dict[str, Any]:
    """Return the settings in a TOML text.

    Raises
    ------
    ConfigError
        The text, which the message calls `what`, is not TOML or has values that are not plain.
    """
    try:
        settings = tomllib.loads(text)
    except (ValueError, RecursionError, MemoryError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError | MemoryError) else one_line(error)
        raise ConfigError(f"{what} is not TOML: {reason}") from None
    for name, value in settings.items():
        check_plain(name, value)
    return settings


def read_assignment(option: str, assignment: str) -> tuple[str, Any]:
    """Return the key and the value of ``KEY=VALUE``, where the value is TOML, or otherwise the text itself.

    Raises
    ------
    ConfigError
        The argument of the option has no ``=``, or its value is nested too deeply or not plain.
    """
    key, equals, text = assignment.partition("=")
    if not equals:
        raise ConfigError(f"{option} is {shorten(assignment)}; allowed: KEY=VALUE")
    what = f"{option} {shorten(key.strip())}"
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        found = {}
    except (ValueError, RecursionError, MemoryError):
        raise ConfigError(f"{what} is {shorten(text)}; allowed: a value in TOML") from None
    value = found["value"] if list(found) == ["value"] else text.strip()  # not several lines of TOML
    check_plain(what, value)
    return key.strip(), value
