"""Plain values in TOML: what a configuration file, a message or a ``KEY=VALUE`` option may hold."""

from __future__ import annotations

import tomllib
from typing import Any

from fedsim.checks import shorten
from fedsim.errors import ConfigError
from fedsim.text import one_line

#: The most bits of an integer in text; Python cannot even print one of 5,000 digits.
MOST_BITS = 128


def check_plain(field: str, value: Any) -> None:
    """Raise ConfigError unless a value read from text is None, a truth value, a number, text, or a collection of them.

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
        raise ConfigError(f"{field} has the value {value!r}; allowed: numbers, text, truth values, and lists of them")


def read_toml(what: str, text: str) -> dict[str, Any]:
    """Return the settings in a TOML text.

    Raises
    ------
    ConfigError
        It is not TOML, or holds values that are not plain; `what` says which text it is.
    """
    try:
        settings = tomllib.loads(text)
    except (ValueError, RecursionError, MemoryError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError | MemoryError) else one_line(error)
        raise ConfigError(f"{what} is not TOML: {reason}") from None
    for name, value in settings.items():
        check_plain(name, value)
    return settings


def toml_value(what: str, text: str) -> Any:
    """Return the value of a ``KEY=VALUE`` option: TOML, or else the text itself.

    Raises
    ------
    ConfigError
        It is nested too deeply, or not plain; `what` says which option it is.
    """
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        found = {}
    except (ValueError, RecursionError, MemoryError):
        raise ConfigError(f"{what} is {shorten(text)}; allowed: a value in TOML") from None
    value = found["value"] if list(found) == ["value"] else text.strip()  # more than one line is no value
    check_plain(what, value)
    return value
