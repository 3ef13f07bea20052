"""Configuration files and command-line values: the Python arguments, written as text.

A TOML file holds `Experiment`'s own arguments. Objects are written as they are in Python, one call:

    dataset = "digits"
    split = "Dirichlet(50, alpha=0.1)"
    client = "SGD(lr=0.1, epochs=5)"
    server = "FedAdam(eta=0.1)"

A class of your own is ``"package.module:Class(...)"``. A study adds a ``[compare]`` table: axes of values, and seeds.
"""

from __future__ import annotations

import ast
import os
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from fedsim import clients, splits
from fedsim.errors import ConfigError, near
from fedsim.experiment import Experiment


@dataclass(frozen=True)
class Plan:
    """What a study file asks for: `compare`'s arguments."""

    base: Experiment
    axes: Mapping[str, Sequence[Any]]
    seeds: int | Sequence[int]
    baselines: Sequence[str] = ()


def _servers() -> dict[str, Any]:
    import flwr.serverapp.strategy as stock

    from fedsim import servers

    found = {name: getattr(stock, name) for name in stock.__all__}
    usable = {n: c for n, c in found.items() if issubclass(c, stock.Strategy) and c is not stock.Strategy}
    return usable | {name: getattr(servers, name) for name in servers.__all__}


def _namespace(field: str) -> dict[str, Any]:
    """Return the classes that a field's text may name without a module."""
    if field == "server":
        return _servers()
    module, base = (splits, splits.Split) if field == "split" else (clients, clients.SGD)
    found = {name: getattr(module, name) for name in module.__all__}
    return {name: cls for name, cls in found.items() if issubclass(cls, base) and cls is not splits.Split}


def _import(field: str, path: str) -> Any:
    module_name, _, name = path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as python -m does: a strategy beside the user
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{field} names the module {module_name!r}, which cannot be imported: {error}") from None
    if not hasattr(module, name):
        names = [n for n in vars(module) if not n.startswith("_")]
        raise ConfigError(f"{field} names {name!r}, which {module_name!r} does not have{near(name, names)}")
    return getattr(module, name)


def build(field: str, text: str) -> Any:
    """Make the object that a text such as ``"Dirichlet(50, alpha=0.1)"`` describes.

    Parameters
    ----------
    field : {"split", "client", "server"}
    text : str
        ``Name``, ``Name(arguments)``, ``module:Name`` or ``module:Name(arguments)``; arguments are literals.

    Raises
    ------
    ConfigError
        Not of that form, an unknown name, or arguments that the class does not take.
    """
    head, bracket, rest = text.strip().partition("(")
    if ":" in head:
        target = _import(field, head)
    else:
        names = _namespace(field)
        if head not in names:
            raise ConfigError(f"{field} is {text!r}; allowed: {', '.join(names)} or module:Class{near(head, names)}")
        target = names[head]
    args, keywords = _arguments(field, text, f"f({rest}" if bracket else "f()")
    if field == "server":
        if args:
            raise ConfigError(f"{field} is {text!r}; its options must be named, as in FedAdam(eta=0.1)")
        return partial(target, **keywords) if keywords else target
    try:
        return target(*args, **keywords)
    except TypeError as error:
        settings = [f.name for f in fields(target)] if is_dataclass(target) else []
        reason = str(error).rpartition("() ")[2]
        hint = "".join({near(k, settings) for k in keywords if k not in settings})
        raise ConfigError(
            f"{field} is {text!r}: {head} takes {', '.join(settings) or 'other arguments'} ({reason}){hint}"
        ) from None


def _arguments(field: str, text: str, call: str) -> tuple[list[Any], dict[str, Any]]:
    try:
        node = ast.parse(call, mode="eval").body
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            raise ValueError("not one call")
        args = [ast.literal_eval(a) for a in node.args]
        keywords = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords if k.arg}
        if len(keywords) != len(node.keywords):
            raise ValueError("** is not allowed")
    except (SyntaxError, ValueError):
        raise ConfigError(f"{field} is {text!r}; allowed: a call with plain values, as in Name(1, key=0.5)") from None
    return args, keywords


def value_of(field: str, raw: Any) -> Any:
    """Return a TOML value as the Python argument it stands for."""
    if field in ("split", "client", "server") and isinstance(raw, str):
        return build(field, raw)
    if field == "hidden" and isinstance(raw, list):
        return tuple(raw)
    return raw


def experiment(settings: Mapping[str, Any]) -> Experiment:
    """Make an experiment of TOML settings.

    Raises
    ------
    ConfigError
        An unknown setting or a value that is not allowed.
    """
    known = [f.name for f in fields(Experiment)]
    if "compare" in settings:
        raise ConfigError("a [compare] table makes this a study, not one experiment; run it with fedsim compare")
    for name in settings:
        if name not in known:
            raise ConfigError(f"unknown setting {name!r}; allowed: {', '.join(known)}{near(name, known)}")
    return Experiment(**{name: value_of(name, raw) for name, raw in settings.items()})


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return a TOML file's settings.

    Raises
    ------
    ConfigError
        The file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(path)!r} is not TOML: {error}") from None


def apply(base: Experiment, assignments: Sequence[str]) -> Experiment:
    """Return the experiment with ``key=value`` changes, as the command line's ``--set`` gives them.

    A key may reach into an object: ``client.lr=0.05``, ``split.alpha=0.3``. Values are TOML; a bare word is a string.
    """
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set is {assignment!r}; allowed: key=value")
        outer, dot, inner = key.strip().partition(".")
        try:
            raw = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            raw = text.strip()
        if not dot:
            experiment({outer: raw})  # checks the name and the value by themselves
            base = replace(base, **{outer: value_of(outer, raw)})
            continue
        part = getattr(base, outer, None)
        names = [f.name for f in fields(part)] if is_dataclass(part) and not isinstance(part, type) else []
        if inner not in names:
            allowed = ", ".join(f"{outer}.{name}" for name in names) or "split.NAME and client.NAME"
            raise ConfigError(f"--set is {assignment!r}; allowed: {allowed}{near(inner, names)}")
        changed: Any = replace(part, **{inner: raw})  # type: ignore[type-var]
        base = replace(base, **{outer: changed})
    return base


def plan(settings: Mapping[str, Any], assignments: Sequence[str] = ()) -> Plan:
    """Make a study's plan of TOML settings: an experiment's, and a ``[compare]`` table.

    Raises
    ------
    ConfigError
        No ``[compare]`` table, or anything `experiment` refuses.
    """
    rest = dict(settings)
    axes = rest.pop("compare", None)
    if not isinstance(axes, dict):
        raise ConfigError(
            "a study needs a [compare] table with lists of values, as in split = ['IID(50)', 'Shards(50)']"
        )
    seeds, baselines = axes.pop("seeds", 1), axes.pop("baselines", ())
    values = {axis: [value_of(axis, v) for v in raw] if isinstance(raw, list) else raw for axis, raw in axes.items()}
    return Plan(apply(experiment(rest), assignments), values, seeds, baselines)


def to_toml(experiment: Experiment) -> str:
    """Return the experiment as the TOML file that makes it again.

    Raises
    ------
    ConfigError
        Its dataset is arrays of the user's own, which have no name to write.
    """
    import tomli_w

    if not isinstance(experiment.dataset, str):
        raise ConfigError("an experiment on arrays of your own has no TOML form; its dataset has no name")
    settings: dict[str, Any] = {}
    for setting in fields(experiment):
        value = getattr(experiment, setting.name)
        if value is None:
            continue
        if setting.name == "server":
            value = _server_text(value)
        elif setting.name in ("split", "client"):
            value = _call(value, known=_namespace(setting.name).get(type(value).__name__) is type(value))
        elif isinstance(value, tuple):
            value = list(value)
        elif isinstance(value, os.PathLike):
            value = os.fspath(value)
        settings[setting.name] = value
    return tomli_w.dumps(settings)


def _call(value: Any, known: bool) -> str:
    cls = type(value)
    name = cls.__name__ if known else f"{cls.__module__}:{cls.__qualname__}"
    arguments = ", ".join(
        f"{f.name}={getattr(value, f.name)!r}"
        for f in fields(value)
        if getattr(value, f.name) is not None or f.default is not None
    )
    return f"{name}({arguments})"


def _server_text(server: Any) -> str:
    cls, options = (server.func, server.keywords) if isinstance(server, partial) else (server, {})
    known = _servers().get(cls.__name__) is cls
    name = cls.__name__ if known else f"{cls.__module__}:{cls.__qualname__}"
    return f"{name}({', '.join(f'{k}={v!r}' for k, v in options.items())})"
