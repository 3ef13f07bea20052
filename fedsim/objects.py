"""Objects from and to text such as ``Dirichlet(50, alpha=0.1)``.

A text is one call of a class: one of a given set of names, or ``module:Class`` where the caller permits it. Arguments
are literals or calls.
"""

from __future__ import annotations

import ast
import inspect
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import partial
from types import ModuleType
from typing import Any

from fedsim.arguments import misfit
from fedsim.checks import Hint, shorten, suggest, to_builtin
from fedsim.errors import ConfigError, FedsimError
from fedsim.text import describe
from fedsim.toml import check_plain

#: Held while Python parses: neither `ast.parse` (cpython issue 106905) nor `catch_warnings` is safe in several threads.
_PARSING = threading.Lock()

#: Returns the class that ``module:Class`` names.
LoadClass = Callable[[str], type]


def classes_of(module: ModuleType, *bases: type) -> dict[str, Any]:
    """Return a module's public classes that extend one of the bases and are not abstract, by name."""
    found = {name: getattr(module, name) for name in module.__all__}
    classes = {name: cls for name, cls in found.items() if inspect.isclass(cls) and not inspect.isabstract(cls)}
    return {name: cls for name, cls in classes.items() if issubclass(cls, bases) and cls not in bases}


def read_call(
    field: str,
    text: str,
    names: Mapping[str, Any],
    nested: Mapping[str, Any],
    load_class: LoadClass | None,
    hint: Hint = suggest,
) -> tuple[Any, str, list[Any], dict[str, Any]]:
    """Return the class that a text calls, its name in the text, and the arguments.

    Parameters
    ----------
    field : str
        What the text configures, for errors.
    text : str
        ``Name``, ``Name(arguments)``, ``module:Name`` or ``module:Name(arguments)``.
    names : mapping
        The classes that it may name.
    nested : mapping
        The classes that its arguments may call.
    load_class : callable, optional
        Loads ``module:Name``; default: such a text is refused.
    hint : callable
        Returns the hint for an unknown name.

    Raises
    ------
    ConfigError
        The text does not have that form, or has an unknown name.
    """
    head = text.strip().partition("(")[0].strip()
    if head in names:
        target = names[head]
    elif ":" in head and load_class is not None:
        target = load_class(head)
    else:
        own = " or module:Class" if load_class is not None else ""
        raise ConfigError(f"{field} is {shorten(text)}; allowed: {', '.join(names)}{own}{hint(head, list(names))}")
    _, args, keywords = parse_call(field, text, nested)
    return target, head, args, keywords


def from_text(
    field: str,
    text: str,
    names: Mapping[str, Any],
    nested: Mapping[str, Any] | None = None,
    load_class: LoadClass | None = None,
    hint: Hint = suggest,
) -> Any:
    """Make the object that a text describes; parameters as for `read_call`.

    Raises
    ------
    ConfigError
        The text does not have that form, or has an unknown name or arguments that the class does not take.
    """
    target, name, args, keywords = read_call(field, text, names, nested or {}, load_class, hint)
    with constructor_errors(field, name):
        return make(field, target, name, args, keywords)


def parse_call(field: str, text: str, names: Mapping[str, Any]) -> tuple[str, list[Any], dict[str, Any]]:
    """Parse a call.

    Parameters
    ----------
    field : str
        What the text configures, for errors.
    text : str
        ``Name`` or ``Name(arguments)``, with literals or calls as arguments.
    names : mapping
        The classes that its arguments may call.

    Returns
    -------
    name : str
    args : list
    keywords : dict

    Raises
    ------
    ConfigError
        The text does not have that form.
    """
    head, bracket, rest = text.strip().partition("(")
    form = f"{field} is {shorten(text)}; allowed: a call with plain values, as in Name(1, key=0.5)"
    try:
        with _PARSING, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as that of an invalid escape "\d"
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
    if isinstance(node, ast.Name):  # brackets are optional without arguments
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
    with constructor_errors(field, name):
        return make(field, names[name], name, args, keywords)


def check_call(field: str, target: Callable[..., Any], name: str, args: list[Any], keywords: dict[str, Any]) -> None:
    """Raise ConfigError with the parameters of a class or a function if the arguments of a call do not fit."""
    if reason := misfit(target, name, args, keywords):
        raise ConfigError(f"{field} is {format_call(name, args, keywords)!r}: {reason}")


def make(field: str, target: Callable[..., Any], name: str, args: list[Any], keywords: dict[str, Any]) -> Any:
    """Call a class or a function; raise ConfigError with its parameters if the arguments do not fit."""
    check_call(field, target, name, args, keywords)
    return target(*args, **keywords)


@contextmanager
def constructor_errors(field: str, name: str) -> Iterator[None]:
    """Turn any exception of a constructor into a ConfigError."""
    try:
        yield
    except FedsimError:
        raise
    except Exception as error:
        raise ConfigError(f"{field}: {name} failed with {describe(error)}") from error


def to_text(value: Any, names: Mapping[str, Any]) -> str:
    """Return the text from which a dataclass instance can be made; a class not in `names` has its module in it."""
    settings = {f: getattr(value, f.name) for f in fields(value) if f.init}
    written = {f.name: v for f, v in settings.items() if v is not None or f.default is not None}
    return format_call(class_name(type(value), names), [], written)


def class_name(cls: Any, names: Mapping[str, Any]) -> str:
    """Return the name of a class in a text: its own name if that is known, otherwise ``module:Class``."""
    name: str = cls.__name__
    return name if name in names and names[name] is cls else f"{cls.__module__}:{cls.__qualname__}"


def short_repr(value: Any) -> str:
    """Return the call that makes an object, without arguments that have their default, also in nested objects."""
    if isinstance(value, partial):
        return format_call(short_repr(value.func), list(value.args), value.keywords)
    if isinstance(value, type):
        return value.__qualname__
    if not is_dataclass(value):
        return _literal(value)
    given = {f: getattr(value, f.name) for f in fields(value) if f.repr}
    changed = [f"{f.name}={short_repr(v)}" for f, v in given.items() if v != _default(f)]
    return f"{type(value).__name__}({', '.join(changed)})"


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def format_call(name: str, args: list[Any], keywords: Mapping[str, Any]) -> str:
    """Return the text of a call."""
    shown = [*map(_literal, args), *(f"{k}={_literal(v)}" for k, v in keywords.items())]
    return f"{name}({', '.join(shown)})"


def _literal(value: Any) -> str:
    if is_dataclass(value) and not isinstance(value, type):
        settings = {f.name: getattr(value, f.name) for f in fields(value) if f.repr}
        return format_call(type(value).__qualname__, [], settings)
    return repr(to_builtin(value))
