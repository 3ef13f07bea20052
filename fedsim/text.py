"""Python objects written as text: one call with plain values, as in ``Dirichlet(50, alpha=0.1)``."""

from __future__ import annotations

import ast
import inspect
import os
import sysconfig
import tomllib
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fedsim.checks import shorten, suggest, to_builtin
from fedsim.errors import ConfigError, FedsimError

#: The most bits of an integer in text; Python cannot even print one of 5,000 digits.
MOST_BITS = 128


def parse(field: str, text: str, names: Mapping[str, Any]) -> tuple[str, list[Any], dict[str, Any]]:
    """Take a call apart.

    Parameters
    ----------
    field : str
        What the text is, for errors.
    text : str
        ``Name`` or ``Name(arguments)``. Arguments are literals, or calls of their own.
    names : mapping
        What calls among the arguments may call.

    Returns
    -------
    name : str
    args : list
    keywords : dict

    Raises
    ------
    ConfigError
        Not of that form.
    """
    head, bracket, rest = text.strip().partition("(")
    form = f"{field} is {shorten(text)}; allowed: a call with plain values, as in Name(1, key=0.5)"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python about its own grammar, such as "\d"
            node = ast.parse(f"f({rest}" if bracket else "f()", mode="eval").body
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            raise ConfigError(form)
        return head, *_arguments(field, node, names)
    except FedsimError:
        raise
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise ConfigError(form) from None


def _arguments(field: str, node: ast.Call, names: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    keywords = {k.arg: _value(field, k.value, names) for k in node.keywords if k.arg}
    if len(keywords) != len(node.keywords):
        raise ValueError("** is not allowed")
    return [_value(field, a, names) for a in node.args], keywords


def _value(field: str, node: ast.expr, names: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Name):  # a call without arguments needs no brackets
        node = ast.Call(node, [], [])
    if not isinstance(node, ast.Call):
        value = ast.literal_eval(node)
        check_plain(field, value)
        return value
    if not isinstance(node.func, ast.Name):
        raise ValueError("not a name")
    name = node.func.id
    if name not in names:
        allowed = f"allowed: {', '.join(names)}{suggest(name, names)}" if names else "it takes plain values only"
        raise ConfigError(f"{field} names {name!r}; {allowed}")
    args, keywords = _arguments(field, node, names)
    with making(field, name):
        return make(field, names[name], name, args, keywords)


def make(field: str, target: Callable[..., Any], name: str, args: list[Any], keywords: dict[str, Any]) -> Any:
    """Call a class or a function; ConfigError names what it takes where the arguments do not fit."""
    try:
        inspect.signature(target).bind(*args, **keywords)
    except TypeError as error:
        settings = list(inspect.signature(target).parameters)
        hint = "".join({suggest(k, settings) for k in keywords if k not in settings})
        raise ConfigError(
            f"{field} is {call(name, args, keywords)!r}: {name} takes "
            f"{', '.join(settings) or 'no arguments'} ({error}){hint}"
        ) from None
    return target(*args, **keywords)


@contextmanager
def making(field: str, name: str) -> Iterator[None]:
    """Turn whatever a constructor raises into one sentence."""
    try:
        yield
    except FedsimError:
        raise
    except Exception as error:
        raise ConfigError(f"{field}: {name} refuses its arguments: {describe(error)}") from error


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


def printable(text: str) -> str:
    """Return a text on one line, with escapes in the place of characters that a terminal or a file may not take."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def one_line(error: BaseException) -> str:
    """Return what an exception says, in one printable line; nothing if it cannot say it."""
    try:
        return printable(str(error))
    except Exception:  # raised by a __str__ that somebody else wrote
        return ""


_PACKAGE = str(Path(__file__).parent) + os.sep
#: Code that is not the user's: this package, installed packages, Python itself, and what dataclasses generate.
_LIBRARIES = (_PACKAGE, sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"), "<frozen", "<string>")


def describe(error: BaseException, most: int = 200) -> str:
    """Return an exception's type, what it says in one line, and the line of the user's code that raised it, if any."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_LIBRARIES)]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    said = one_line(error) or "no message"
    return f"{type(error).__name__}: {said if len(said) <= most else said[:most] + '...'}{place}"


def raised_by_user_class(error: BaseException) -> bool:
    """Whether an exception comes from code of the user that fedsim has called, such as a method of a strategy.

    A script that calls fedsim is not such code, unless fedsim calls it back.
    """
    frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    last = max((i for i, name in enumerate(frames) if not name.startswith(_LIBRARIES)), default=-1)
    package = [i for i, name in enumerate(frames) if name.startswith(_PACKAGE)]
    # The first frame of the package is the command itself, which calls a script's main function.
    return len(package) > 1 and package[-1] < last


def short(value: Any) -> str:
    """Write an object as the call that makes it, without what is as by default, at every depth."""
    if isinstance(value, partial):
        return call(short(value.func), list(value.args), value.keywords)
    if isinstance(value, type):
        return value.__qualname__
    if not is_dataclass(value):
        return _literal(value)
    given = {f: getattr(value, f.name) for f in fields(value) if f.repr}
    changed = [f"{f.name}={short(v)}" for f, v in given.items() if v != _default(f)]
    return f"{type(value).__name__}({', '.join(changed)})"


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def call(name: str, args: list[Any], keywords: Mapping[str, Any]) -> str:
    """Write a call."""
    shown = [*map(_literal, args), *(f"{k}={_literal(v)}" for k, v in keywords.items())]
    return f"{name}({', '.join(shown)})"


def _literal(value: Any) -> str:
    if is_dataclass(value) and not isinstance(value, type):
        return call(type(value).__qualname__, [], {f.name: getattr(value, f.name) for f in fields(value) if f.repr})
    return repr(to_builtin(value))
