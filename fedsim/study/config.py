"""Configuration files and command-line values: the Python arguments, written as text.

A TOML file holds `Experiment`'s own arguments. Objects are written as they are in Python, one call:

    dataset = "digits"
    split = "Dirichlet(50, alpha=0.1)"
    client = "SGD(lr=0.1, epochs=5)"
    server = "FedAdam(eta=0.1)"

A class of your own is ``"package.module:Class(...)"``; `fedsim.modules` says which modules a text may name. A study
adds a ``[compare]`` table: axes of values, and seeds.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fedsim import clients, splits, updates
from fedsim.checks import check_integer, check_real, shorten, suggest, to_builtin
from fedsim.errors import ConfigError
from fedsim.modules import EVERY, Modules, load_class
from fedsim.objects import class_name, classes_of, from_text, read_call, to_text
from fedsim.study.callbacks import EarlyStopping
from fedsim.study.experiment import Experiment
from fedsim.text import call, making, read_toml, toml_value


@dataclass(frozen=True)
class Plan:
    """What a study file asks for: `compare`'s arguments."""

    base: Experiment
    axes: Mapping[str, Sequence[Any]]
    seeds: int | Sequence[int]
    baselines: Sequence[str] = ()


#: Options of servers that no text can set: objects that fedsim makes, and names of records.
INTERNAL = ("server_hooks", "strategy", "weighted_by_key", "arrayrecord_key", "configrecord_key", "train_loss_key")


def _servers() -> dict[str, Any]:
    import flwr.serverapp.strategy as stock

    from fedsim import servers

    found = {name: getattr(stock, name) for name in stock.__all__}
    usable = {n: c for n, c in found.items() if issubclass(c, stock.Strategy) and c is not stock.Strategy}
    return usable | {name: getattr(servers, name) for name in servers.__all__}


def _kinds(field: str) -> tuple[type, ...]:
    """Return what a field's class must be a subclass of."""
    if field == "server":
        from flwr.serverapp.strategy import Strategy

        return (Strategy,)
    return {
        "split": (splits.Split,),
        "client": (clients.ClientStrategy,),
        "transforms": (updates.UpdateTransform,),
        "early_stopping": (EarlyStopping,),
    }[field]


def _namespace(field: str) -> dict[str, Any]:
    """Return the classes that a field's text may name without a module."""
    if field == "server":
        return _servers()
    if field == "early_stopping":
        return {"EarlyStopping": EarlyStopping}
    return classes_of({"split": splits, "client": clients, "transforms": updates}[field], *_kinds(field))


def build(field: str, text: str, modules: Modules = EVERY) -> Any:
    """Make the object that a text such as ``"Dirichlet(50, alpha=0.1)"`` describes.

    Parameters
    ----------
    field : {"split", "client", "server", "transforms", "early_stopping"}
    text : str
        ``Name``, ``Name(arguments)``, ``module:Name`` or ``module:Name(arguments)``; arguments are literals.
    modules : Modules
        What ``module:Name`` may import; default any module, for a text that the person at this machine wrote.

    Raises
    ------
    ConfigError
        Not of that form, an unknown name, a class of another kind, a module that the text may not import, or arguments
        that the class does not take.
    """

    def load(head: str) -> type:
        return load_class(field, head, _kinds(field), modules)

    if field != "server":
        nested = classes_of(splits, splits.Split, splits.Sizes) if field == "split" else {}
        return from_text(field, text, _namespace(field), nested, load)
    target, _, args, keywords = read_call(field, text, _namespace(field), {}, load)
    if args:
        raise ConfigError(f"{field} is {shorten(text)}; its options must be named, as in FedAdam(eta=0.1)")
    _check_options(target, keywords)
    return partial(target, **keywords) if keywords else target


def _check_options(server: type, given: Mapping[str, Any]) -> None:
    """Raise ConfigError for options that a server does not take from text, or of another type than it declares."""
    options = _options(server)
    name = server.__name__
    for option, value in given.items():
        if option not in options:
            allowed = ", ".join(options) or "none"
            raise ConfigError(
                f"server {name} has no option {option!r} in text; allowed: {allowed}{suggest(option, options)}"
            )
        declared = options[option].removesuffix(" | None")
        if value is None and declared != options[option]:
            continue
        if declared == "bool" and not isinstance(value, bool):
            raise ConfigError(f"{name}'s {option} is {value!r}; allowed: True or False")
        if declared == "int":
            check_integer(f"{name}'s {option}", value)
        if declared == "float":
            share = option.startswith("fraction_")
            check_real(f"{name}'s {option}", value, *((0, 1) if share else ()))


def _options(server: type) -> dict[str, str]:
    """Return the options of a server that text can set: name -> declared type, or "" if any literal may do.

    Classes of fedsim and Flower take numbers and truth values; those of the user's own what they take. Options that a
    class hands on by ``**options`` are its bases'.
    """
    found: dict[str, str] = {}
    for cls in server.__mro__:
        if "__init__" not in vars(cls) or cls is object:
            continue
        parameters = list(inspect.signature(vars(cls)["__init__"]).parameters.values())[1:]
        stock = cls.__module__.partition(".")[0] in ("fedsim", "flwr")
        for parameter in parameters:
            kind = parameter.annotation if isinstance(parameter.annotation, str) else ""
            if isinstance(parameter.annotation, type) and parameter.annotation is not parameter.empty:
                kind = parameter.annotation.__name__
            if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or parameter.name in INTERNAL:
                continue
            if not stock or kind.removesuffix(" | None") in ("int", "float", "bool"):
                found.setdefault(parameter.name, kind)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def value_of(field: str, raw: Any, modules: Modules = EVERY) -> Any:
    """Return a TOML value as the Python argument it stands for."""
    if field in ("split", "client", "server", "early_stopping") and isinstance(raw, str):
        return build(field, raw, modules)
    if field == "transforms" and isinstance(raw, list | tuple):
        return tuple(build(field, text, modules) if isinstance(text, str) else text for text in raw)
    if field == "hidden" and isinstance(raw, list):
        return tuple(raw)
    return raw


def experiment(settings: Mapping[str, Any], modules: Modules | None = None) -> Experiment:
    """Make an experiment of TOML settings.

    Parameters
    ----------
    settings : mapping
    modules : Modules, optional
        What ``module:Class`` may import; default modules in the current folder.

    Raises
    ------
    ConfigError
        An unknown setting or a value that is not allowed.
    """
    modules = modules or Modules.here()
    known = [f.name for f in fields(Experiment)]
    if "compare" in settings:
        raise ConfigError("a [compare] table makes this a study, not one experiment; run it with fedsim compare")
    for name in settings:
        if name not in known:
            raise ConfigError(
                f"unknown setting {shorten(name)}; allowed: {', '.join(known)}{suggest(name[:100], known)}"
            )
    return Experiment(**{name: value_of(name, raw, modules) for name, raw in settings.items()})


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return a TOML file's settings.

    Raises
    ------
    ConfigError
        The file cannot be read or is not TOML.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    except ValueError as error:  # not UTF-8, or a NUL in the name
        raise ConfigError(f"{str(path)!r} is not TOML: {error}") from None
    return read_toml(repr(str(path)), text)


def apply(base: Experiment, assignments: Sequence[str]) -> Experiment:
    """Return the experiment with ``key=value`` changes, as the command line's ``--set`` gives them.

    A key may reach into an object: ``client.lr=0.05``, ``split.alpha=0.3``. Values are TOML; a bare word is a string.
    """
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set is {shorten(assignment)}; allowed: key=value")
        outer, dot, inner = key.strip().partition(".")
        raw = toml_value(f"--set {shorten(key)}", text)
        if not dot:
            experiment({outer: raw}, EVERY)  # checks the name and the value by themselves
            base = replace(base, **{outer: value_of(outer, raw)})
            continue
        part = getattr(base, outer, None)
        names = [f.name for f in fields(part) if f.init] if is_dataclass(part) and not isinstance(part, type) else []
        if inner not in names:
            allowed = ", ".join(f"{outer}.{name}" for name in names) or "split.NAME and client.NAME"
            raise ConfigError(f"--set is {shorten(assignment)}; allowed: {allowed}{suggest(inner[:100], names)}")
        with making("--set", shorten(assignment)):
            changed: Any = replace(part, **{inner: raw})  # type: ignore[type-var]
        base = replace(base, **{outer: changed})
    return base


def plan(
    settings: Mapping[str, Any],
    assignments: Sequence[str] = (),
    chosen: Mapping[str, Any] | None = None,
    modules: Modules | None = None,
) -> Plan:
    """Make a study's plan of TOML settings: an experiment's, and a ``[compare]`` table.

    Parameters
    ----------
    settings : mapping
    assignments : sequence of str
        As for `apply`.
    chosen : mapping, optional
        What the command line puts in the place of entries of the ``[compare]`` table.
    modules : Modules, optional
        As for `experiment`.

    Raises
    ------
    ConfigError
        No ``[compare]`` table, or anything `experiment` refuses.
    """
    modules = modules or Modules.here()
    rest = dict(settings)
    compared = rest.pop("compare", {} if chosen else None)
    if not isinstance(compared, dict):
        raise ConfigError(
            "a study needs a [compare] table with lists of values, as in split = ['IID(50)', 'Shards(50)']"
        )
    texts = {axis: (raw, modules) for axis, raw in compared.items()}
    texts |= {axis: (raw, EVERY) for axis, raw in (chosen or {}).items()}
    axes = {
        axis: [value_of(axis, value, allowed) for value in raw] if isinstance(raw, list) else raw
        for axis, (raw, allowed) in texts.items()
    }
    seeds, baselines = axes.pop("seeds", 1), axes.pop("baselines", ())
    return Plan(apply(experiment(rest, modules), assignments), axes, seeds, baselines)


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
    return plan(settings | {"compare": compared}, assignments, chosen)


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
    if experiment.model is not None:
        raise ConfigError("an experiment with a model of your own has no TOML form; its model has no name")
    settings: dict[str, Any] = {}
    for setting in fields(experiment):
        value = getattr(experiment, setting.name)
        if value is None:
            continue
        if setting.name == "server":
            value = _server_text(value)
        elif setting.name in ("split", "client", "early_stopping"):
            value = to_text(value, _namespace(setting.name))
        elif setting.name == "transforms":
            value = [to_text(transform, _namespace("transforms")) for transform in value]
        elif isinstance(value, tuple):
            value = list(value)
        elif isinstance(value, os.PathLike):
            value = os.fspath(value)
        settings[setting.name] = to_builtin(value)
    return tomli_w.dumps(settings)


def _server_text(server: Any) -> str:
    made = server if isinstance(server, partial) else partial(server)
    return call(class_name(made.func, _servers()), [], made.keywords)
