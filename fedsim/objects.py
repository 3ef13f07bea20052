"""Configured objects as text: ``Dirichlet(50, alpha=0.1)`` to an object and back.

A text names a class of a given set of names, or ``module:Class`` where the reader allows it; arguments are literals.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from types import ModuleType
from typing import Any

from fedsim.checks import shorten, suggest
from fedsim.errors import ConfigError
from fedsim.text import call, make, making, parse

#: Returns the class that ``module:Class`` names.
LoadClass = Callable[[str], type]


def classes_of(module: ModuleType, *bases: type) -> dict[str, Any]:
    """Return a module's public classes that extend one of the bases and are not abstract, by name."""
    found = {name: getattr(module, name) for name in module.__all__}
    classes = {name: cls for name, cls in found.items() if inspect.isclass(cls) and not inspect.isabstract(cls)}
    return {name: cls for name, cls in classes.items() if issubclass(cls, bases) and cls not in bases}


def read_call(
    field: str, text: str, names: Mapping[str, Any], nested: Mapping[str, Any], load_class: LoadClass | None
) -> tuple[Any, str, list[Any], dict[str, Any]]:
    """Return the class that a text calls, its name there, and the arguments.

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

    Raises
    ------
    ConfigError
        Not of that form, or an unknown name.
    """
    head = text.strip().partition("(")[0].strip()
    if head in names:
        target = names[head]
    elif ":" in head and load_class is not None:
        target = load_class(head)
    else:
        own = " or module:Class" if load_class is not None else ""
        raise ConfigError(f"{field} is {shorten(text)}; allowed: {', '.join(names)}{own}{suggest(head[:100], names)}")
    _, args, keywords = parse(field, text, nested)
    return target, head, args, keywords


def from_text(
    field: str,
    text: str,
    names: Mapping[str, Any],
    nested: Mapping[str, Any] | None = None,
    load_class: LoadClass | None = None,
) -> Any:
    """Make the object that a text describes; parameters as for `read_call`.

    Raises
    ------
    ConfigError
        Not of that form, an unknown name, or arguments that the class does not take.
    """
    target, name, args, keywords = read_call(field, text, names, nested or {}, load_class)
    with making(field, name):
        return make(field, target, name, args, keywords)


def to_text(value: Any, names: Mapping[str, Any]) -> str:
    """Return the text from which a dataclass instance can be made again; a class not among the names by its module."""
    settings = {f: getattr(value, f.name) for f in fields(value) if f.init}
    written = {f.name: v for f, v in settings.items() if v is not None or f.default is not None}
    return call(class_name(type(value), names), [], written)


def class_name(cls: Any, names: Mapping[str, Any]) -> str:
    """Return how a text names a class: its own name if that is known, else ``module:Class``."""
    name: str = cls.__name__
    return name if name in names and names[name] is cls else f"{cls.__module__}:{cls.__qualname__}"
