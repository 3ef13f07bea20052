"""Configuration files and command-line values: the Python arguments, written as text.

A TOML file holds `Experiment`'s own arguments. Objects are written as they are in Python, one call:

    dataset = "digits"
    split = "Dirichlet(50, alpha=0.1)"
    client = "SGD(lr=0.1, epochs=5)"
    server = "FedAdam(eta=0.1)"

A class of your own is ``"package.module:Class(...)"``. A study adds a ``[compare]`` table: axes of values, and seeds.
"""

from __future__ import annotations

import inspect
import os
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from fedsim import clients, compression, splits
from fedsim.clients import SGD
from fedsim.errors import ConfigError, near
from fedsim.experiment import Experiment
from fedsim.text import call, make, parse


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
    """Return the classes that a field's text may name without a module; for a split also those it may be made of."""
    if field == "server":
        return _servers()
    module, bases = {
        "split": (splits, (splits.Split, splits.Sizes)),
        "client": (clients, (clients.SGD,)),
        "compress": (compression, (compression.Transform,)),
    }[field]
    found = {name: getattr(module, name) for name in module.__all__}
    classes = {name: cls for name, cls in found.items() if inspect.isclass(cls) and not inspect.isabstract(cls)}
    return {name: cls for name, cls in classes.items() if issubclass(cls, bases)}


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
    field : {"split", "client", "server", "compress"}
    text : str
        ``Name``, ``Name(arguments)``, ``module:Name`` or ``module:Name(arguments)``; arguments are literals.

    Raises
    ------
    ConfigError
        Not of that form, an unknown name, or arguments that the class does not take.
    """
    head = text.strip().partition("(")[0]
    if ":" in head:
        target = _import(field, head)
    else:
        names = _namespace(field)
        if head not in names:
            raise ConfigError(f"{field} is {text!r}; allowed: {', '.join(names)} or module:Class{near(head, names)}")
        target = names[head]
    _, args, keywords = parse(field, text, _namespace(field) if field == "split" else {})
    if field == "server":
        if args:
            raise ConfigError(f"{field} is {text!r}; its options must be named, as in FedAdam(eta=0.1)")
        return partial(target, **keywords) if keywords else target
    return make(field, target, head, args, keywords)


def value_of(field: str, raw: Any) -> Any:
    """Return a TOML value as the Python argument it stands for."""
    if field in ("split", "client", "server") and isinstance(raw, str):
        return build(field, raw)
    if field == "compress" and isinstance(raw, list | tuple):
        return tuple(build(field, text) if isinstance(text, str) else text for text in raw)
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


#: How many clients share a table in which no column says whose a row is.
TABLE_CLIENTS = 10


def table_plan(
    dataset: str,
    data_dir: str | os.PathLike[str] | None = None,
    assignments: Sequence[str] = (),
    chosen: Mapping[str, Any] | None = None,
) -> Plan:
    """Make a study's plan of nothing but a table: its natural clients, if it names any, against IID and label skew.

    Parameters
    ----------
    dataset : str
        ``"table('FILE', label='COLUMN', ...)"``.
    data_dir : path, optional
    assignments : sequence of str
        As for `apply`.
    chosen : mapping, optional
        What stands in a ``[compare]`` table, to put in place of the plan's own.
    """
    from fedsim import data

    loaded = data.load(dataset, data_dir)
    natural = [f"Natural({column!r})" for column in loaded.groups]
    clients = len(build("split", natural[0]).federate(loaded).partition) if natural else TABLE_CLIENTS
    clients = max(1, min(clients, len(loaded.x_train) // 2))
    settings: dict[str, Any] = {
        "dataset": dataset,
        "split": natural[0] if natural else f"IID({clients})",
        "client": "SGD(lr=0.05)",
        "loss": "mse" if loaded.regression else "cross_entropy",
        "rounds": 30,
        "fraction_train": min(1.0, max(0.1, 50 / clients)),
        "fraction_evaluate": 1.0,
        "test_fraction": 0.2,
    }
    compared = {"split": [*natural, f"IID({clients})", f"Dirichlet({clients}, alpha=0.1)"], "seeds": 3}
    return plan(settings | {"compare": compared | dict(chosen or {})}, assignments)


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
            value = _call(value, _namespace(setting.name))
        elif setting.name == "compress":
            value = [_call(transform, _namespace("compress")) for transform in value]
        elif isinstance(value, tuple):
            value = list(value)
        elif isinstance(value, os.PathLike):
            value = os.fspath(value)
        settings[setting.name] = value
    return tomli_w.dumps(settings)


def _call(value: Any, known: Mapping[str, Any]) -> str:
    """Write an object as the call that makes it."""
    settings = {f.name: getattr(value, f.name) for f in fields(value)}
    shown = {f.name: settings[f.name] for f in fields(value) if settings[f.name] is not None or f.default is not None}
    return call(_name(type(value), known), [], shown)


def client_text(client: SGD) -> str:
    """Return the text that makes a client strategy again."""
    return _call(client, _namespace("client"))


def _server_text(server: Any) -> str:
    made = server if isinstance(server, partial) else partial(server)
    return call(_name(made.func, _servers()), [], made.keywords)


def _name(cls: Any, known: Mapping[str, Any]) -> str:
    """Return how a text names a class."""
    name: str = cls.__name__
    return name if name in known and known[name] is cls else f"{cls.__module__}:{cls.__qualname__}"
