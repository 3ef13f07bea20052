"""Python objects written as text: one call with plain values, as in ``Dirichlet(50, alpha=0.1)``."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from fedsim.errors import ConfigError, near


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
    try:
        node = ast.parse(f"f({rest}" if bracket else "f()", mode="eval").body
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            raise ValueError("not one call")
        return head, *_arguments(field, node, names)
    except (SyntaxError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{field} is {text!r}; allowed: a call with plain values, as in Name(1, key=0.5)") from None


def _arguments(field: str, node: ast.Call, names: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    keywords = {k.arg: _value(field, k.value, names) for k in node.keywords if k.arg}
    if len(keywords) != len(node.keywords):
        raise ValueError("** is not allowed")
    return [_value(field, a, names) for a in node.args], keywords


def _value(field: str, node: ast.expr, names: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Name):  # a call without arguments needs no brackets
        node = ast.Call(node, [], [])
    if not isinstance(node, ast.Call):
        return ast.literal_eval(node)
    if not isinstance(node.func, ast.Name):
        raise ValueError("not a name")
    name = node.func.id
    if name not in names:
        allowed = f"allowed: {', '.join(names)}{near(name, names)}" if names else "it takes plain values only"
        raise ConfigError(f"{field} names {name!r}; {allowed}")
    return make(field, names[name], name, *_arguments(field, node, names))


def make(field: str, target: Callable[..., Any], name: str, args: list[Any], keywords: dict[str, Any]) -> Any:
    """Call a class or a function; ConfigError names what it takes where the arguments do not fit."""
    try:
        inspect.signature(target).bind(*args, **keywords)
    except TypeError as error:
        if is_dataclass(target):
            settings = [f.name for f in fields(target)]
        else:
            settings = list(inspect.signature(target).parameters)
        hint = "".join({near(k, settings) for k in keywords if k not in settings})
        raise ConfigError(
            f"{field} is {call(name, args, keywords)!r}: {name} takes "
            f"{', '.join(settings) or 'no arguments'} ({error}){hint}"
        ) from None
    return target(*args, **keywords)


def short(value: Any) -> str:
    """Write an object as the call that makes it, without what is as by default."""
    if not is_dataclass(value) or isinstance(value, type):
        return repr(value)
    changed = {f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) != f.default}
    return call(type(value).__name__, [], changed)


def call(name: str, args: list[Any], keywords: Mapping[str, Any]) -> str:
    """Write a call."""
    return f"{name}({', '.join([*map(repr, args), *(f'{k}={v!r}' for k, v in keywords.items())])})"
