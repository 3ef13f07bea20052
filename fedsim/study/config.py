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
from fedsim.modules import EVERY, Modules, load_class
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
        outer, dot, inner = key.partition(".")
        if not dot:
            check_choice("setting", outer, [f.name for f in fields(base)], partial(suggest_setting, base=base))
            experiment({outer: raw}, EVERY)  # errors name this setting only
            base = replace(base, **{outer: value_of(outer, raw)})
            continue
        part: Any = getattr(base, outer, None)
        names = [f.name for f in fields(part) if f.init] if is_dataclass(part) and not isinstance(part, type) else []
        if inner not in names:
            allowed = ", ".join(f"{outer}.{name}" for name in names) or "split.NAME and client.NAME"
            hint = part.suggest_argument(inner, names) if names else suggest_part(outer, inner, raw)
            raise ConfigError(f"--set is {shorten(assignment)}; allowed: {allowed}{hint}")
        with constructor_errors("--set", shorten(assignment)):
            changed: Any = replace(part, **{inner: raw})
        base = replace(base, **{outer: changed})
    return base


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
    settings: dict[str, Any] = {}
    for setting in fields(experiment):
        value = getattr(experiment, setting.name)
        if value is None:
            continue
        if setting.name == "server":
            made = value if isinstance(value, partial) else partial(value)
            value = format_call(class_name(made.func, known_classes("server")[1]), [], made.keywords)
        elif setting.name in OBJECTS:
            names = known_classes(setting.name)[1]
            value = [to_text(part, names) for part in value] if isinstance(value, tuple) else to_text(value, names)
        elif isinstance(value, os.PathLike):
            value = os.fspath(value)
        settings[setting.name] = value
    return tomli_w.dumps(settings)
