"""Configuration files and command-line values: the arguments of `Experiment`, written as text.

A TOML file has these arguments under the same names. Objects are written as a call, as in Python:

    dataset = "digits"
    split = "Dirichlet(50, alpha=0.1)"
    client = "SGD(lr=0.1, epochs=5)"
    server = "FedAdam(eta=0.1)"

A class of your own is ``"package.module:Class(...)"``; `fedsim.modules` describes which modules a text may import.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fedsim import splits
from fedsim.checks import check_choice, shorten
from fedsim.errors import ConfigError
from fedsim.modules import EVERY, Modules, load_class, load_function
from fedsim.objects import (
    class_name,
    classes_of,
    constructor_errors,
    format_call,
    from_text,
    read_call,
    to_text,
)
from fedsim.study.experiment import Experiment
from fedsim.study.settings import OBJECTS, OPTIONAL, suggest_class, suggest_part, suggest_setting
from fedsim.study.settings import known_classes as known_classes
from fedsim.toml import read_assignment, read_toml


def build(field: str, text: str, modules: Modules = EVERY) -> Any:
    """Make the object that a text such as ``"Dirichlet(50, alpha=0.1)"`` describes.

    Parameters
    ----------
    field : {"split", "client", "server", "transforms", "early_stopping", "privacy", "secure_aggregation", "attack"}
    text : str
        ``Name``, ``Name(arguments)``, ``module:Name`` or ``module:Name(arguments)``; arguments are literals.
    modules : Modules
        What ``module:Name`` may import; default any module, for a text that the user of this machine wrote.

    Raises
    ------
    ConfigError
        The text does not have that form, or it has an unknown name, a class of another kind, a module that it may not
        import, or arguments that the class does not take.
    """
    base, classes = known_classes(field)
    load, hint = partial(load_class, field, base=base, modules=modules), partial(suggest_class, field)
    if field != "server":
        nested = classes_of(splits, splits.Split, splits.Sizes) if field == "split" else {}
        return from_text(field, text, classes, nested, load, hint)
    target, _, args, keywords = read_call(field, text, classes, {}, load, hint)
    if args:
        raise ConfigError(f"{field} is {shorten(text)}; its options must be named, as in FedAdam(eta=0.1)")
    from fedsim.servers.options import check_server

    return check_server(partial(target, **keywords)) if keywords else target


def value_of(field: str, raw: Any, modules: Modules = EVERY) -> Any:
    """Return the Python argument for a TOML value."""
    if field == "transforms" and isinstance(raw, list | tuple):
        return tuple(build(field, text, modules) if isinstance(text, str) else text for text in raw)
    if field == "metrics" and isinstance(raw, list | tuple):
        return tuple(
            load_function("an item of metrics", item, modules) if isinstance(item, str) and ":" in item else item
            for item in raw
        )
    if field in OPTIONAL and raw == "none":
        return None
    if field in (*OBJECTS, "server") and isinstance(raw, str):
        return build(field, raw, modules)
    if field == "hidden" and isinstance(raw, list):
        return tuple(raw)
    return raw


def experiment(settings: Mapping[str, Any], modules: Modules | None = None) -> Experiment:
    """Make an experiment from TOML settings.

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
        check_choice("setting", name, known, suggest_setting)
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
    except (OSError, ValueError) as error:  # ValueError if it is not UTF-8, or its name has a NUL
        raise ConfigError(f"{str(path)!r} cannot be read: {getattr(error, 'strerror', error)}") from None
    return read_toml(repr(str(path)), text)


def apply(base: Experiment, assignments: Sequence[str]) -> Experiment:
    """Return the experiment with the ``key=value`` changes of the command line's ``--set``.

    A key may name an argument of an object: ``client.lr=0.05``, ``split.alpha=0.3``. A value that is not TOML is text.
    """
    for assignment in assignments:
        key, raw = read_assignment("--set", assignment)
        if "." not in key:
            check_choice("setting", key, [f.name for f in fields(base)], partial(suggest_setting, base=base))
            experiment({key: raw}, EVERY)  # errors name this setting only
            raw = value_of(key, raw)
        base = with_setting(base, key, raw, "--set")
    return base


def with_setting(base: Experiment, key: str, value: Any, where: str) -> Experiment:
    """Return the experiment with a setting changed.

    Parameters
    ----------
    base : Experiment
    key : str
        A setting, or an argument of its object, such as ``client.lr``, ``split.alpha`` or ``server.eta``.
    value : object
    where : str
        Where the key was given, for errors.

    Raises
    ------
    ConfigError
        There is no such setting or argument, or the value is not allowed.
    """
    outer, dot, inner = key.partition(".")
    if not dot:
        return replace(base, **{outer: value})
    part: Any = getattr(base, outer, None)
    is_object = is_dataclass(part) and not isinstance(part, type)
    names = (
        _server_options(part) if outer == "server" else [f.name for f in fields(part) if f.init] if is_object else []
    )
    given = shorten(f"{key}={value}")
    value = None if value in ("none", "None") else value
    if inner not in names:
        allowed = ", ".join(f"{outer}.{name}" for name in names) or "split.NAME and client.NAME"
        hint = part.suggest_argument(inner, names) if is_object else suggest_part(outer, inner, value)
        raise ConfigError(f"{where} is {given}; allowed: {allowed}{hint}")
    if outer == "server":
        made = _as_partial(part)
        return replace(base, server=partial(made.func, *made.args, **{**made.keywords, inner: value}))
    with constructor_errors(where, given):
        changed: Any = replace(part, **{inner: value})
    return replace(base, **{outer: changed})


def _as_partial(server: Any) -> partial[Any]:
    from fedsim.servers import FedAvg

    return server if isinstance(server, partial) else partial(server or FedAvg)


def _server_options(server: Any) -> list[str]:
    """Return the names of the options of a server strategy that the experiment does not determine."""
    from fedsim.servers.options import FIXED, options_of

    return [name for name in options_of(_as_partial(server).func) if name not in FIXED]


def to_settings(experiment: Experiment) -> dict[str, Any]:
    """Return the settings of an experiment as TOML values; a dataset of arrays and a model stay as they are."""
    values = {field.name: getattr(experiment, field.name) for field in fields(experiment)}
    return {name: to_plain(name, value) for name, value in values.items() if value is not None}


def to_plain(name: str, value: Any) -> Any:
    """Return the TOML value of a setting, from which `value_of` makes it."""
    if value is None and (name in OPTIONAL or "." in name):
        return "none"
    if name == "server":
        from fedsim.servers.options import check_server

        made = _as_partial(check_server(value))
        return format_call(class_name(made.func, known_classes("server")[1]), [], made.keywords)
    if name == "metrics":
        return [item if isinstance(item, str) else f"{item.__module__}:{item.__qualname__}" for item in value]
    if name in OBJECTS:
        names = known_classes(name)[1]
        return [to_text(part, names) for part in value] if isinstance(value, tuple | list) else to_text(value, names)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def to_toml(experiment: Experiment) -> str:
    """Return the text of the TOML file that describes the experiment.

    Raises
    ------
    ConfigError
        Its dataset is given as arrays, or its model by a function, which have no TOML form.
    """
    import tomli_w

    if not isinstance(experiment.dataset, str):
        raise ConfigError("an experiment on arrays of your own has no TOML form; its dataset has no name")
    if experiment.model is not None:
        raise ConfigError("an experiment with a model of your own has no TOML form; its model has no name")
    return tomli_w.dumps(to_settings(experiment))
