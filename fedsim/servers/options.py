"""The options of server strategies (fedsim's, Flower's and a user's): their names and allowed values."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fedsim.checks import (
    check_flag,
    check_instance,
    check_integer,
    check_real,
    check_seed,
    shorten,
    suggest,
    to_builtin,
)
from fedsim.clients.server_hooks import ServerHooks
from fedsim.errors import ConfigError

#: Flower's options for minimum numbers of clients; 1 by default here, so that the fractions determine the cohort.
MIN_NODES = ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes")
#: Options that fedsim passes to every server strategy that accepts them.
COMMON = ("fraction_train", "fraction_evaluate", "seed", *MIN_NODES)
#: Options that an experiment determines: names in clients' replies, and the client strategy's server hooks.
FIXED = ("weighted_by_key", "arrayrecord_key", "configrecord_key", "train_loss_key", "server_hooks")

#: Checks of the options that have bounds of their own.
BOUNDS: dict[str, Callable[[str, Any], object]] = {
    **dict.fromkeys(("fraction_train", "fraction_evaluate"), lambda field, value: check_real(field, value, 0, 1)),
    **dict.fromkeys(MIN_NODES, check_integer),
    "seed": check_seed,
    "min_clients": lambda field, value: check_integer(field, value, 1),
}


def options_of(server: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the keyword options of a server strategy's class, or of a function that makes one.

    A class with ``**options`` also has the options of its base classes, a function with ``**options`` also `COMMON`.
    """
    found: dict[str, inspect.Parameter] = {}
    classes = [cls for cls in server.__mro__ if "__init__" in vars(cls)] if isinstance(server, type) else []
    for make in [vars(cls)["__init__"] for cls in classes] or [server]:
        parameters = list(inspect.signature(make).parameters.values())[1 if classes else 0 :]
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                found.setdefault(parameter.name, parameter)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return found
    for option in () if classes else COMMON:
        found.setdefault(option, inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY))
    return found


def check_options(
    server: Callable[..., Any], given: Mapping[str, Any], name: str = "", made: Callable[..., Any] | None = None
) -> dict[str, Any]:
    """Return the options of a server strategy, with numbers of other libraries converted to Python's own.

    Parameters
    ----------
    server : callable
        Its class, or a function that makes it. Values are checked against the annotations; the options of Flower's
        FedAvg and ``seed`` are always checked.
    given : mapping
        Option -> value.
    name : str
        Name of the strategy in errors; default the name of `server`.
    made : callable, optional
        The class whose options the error for an unknown option lists; default `server`.

    Raises
    ------
    ConfigError
        There is no such option, or a value has a wrong type or is out of range.
    """
    name = name or getattr(server, "__name__", repr(server))
    known = options_of(server)
    takes_all = not isinstance(server, type) and any(
        p.kind is p.VAR_KEYWORD for p in inspect.signature(server).parameters.values()
    )
    library = _library_options(server)
    checked = {option: to_builtin(value) for option, value in given.items()}
    for option, value in checked.items():
        if option in known:
            _check(f"{name}'s {option}", known[option], value, option in library)
        elif not takes_all:
            names = options_of(made or server)
            allowed = ", ".join(names) or "none"
            raise ConfigError(f"server {name} has no option {option!r}; allowed: {allowed}{suggest(option, names)}")
    return checked


def _library_options(server: Callable[..., Any]) -> set[str]:
    """Return the names of the options that fedsim or Flower defines, whose values have bounds."""
    classes = server.__mro__ if isinstance(server, type) else ()
    library = next((cls for cls in classes if cls.__module__.partition(".")[0] in ("fedsim", "flwr")), None)
    return set(options_of(library)) if library else set(COMMON)


def _check(field: str, option: inspect.Parameter, value: Any, bounded: bool) -> None:
    """Check the value of an option; only its type, and no bounds, if a user's own class or function defines it."""
    declared = declared_type(option)
    kind = declared.removesuffix(" | None")
    if bounded and option.name in BOUNDS:
        BOUNDS[option.name](field, value)
    elif value is None and (option.default is None or kind != declared):
        return
    elif kind == "bool":
        check_flag(field, value)
    elif bounded:
        _check_library_type(field, option.name, kind, value)
    elif kind == "int" and type(value) is not int:
        raise ConfigError(f"{field} is {shorten(value)}; allowed: a whole number")
    elif kind == "float" and type(value) not in (int, float):
        raise ConfigError(f"{field} is {shorten(value)}; allowed: a number")


def _check_library_type(field: str, name: str, kind: str, value: Any) -> None:
    if name == "server_hooks":
        check_instance(field, value, ServerHooks, "a ServerHooks")
    elif kind == "int":
        check_integer(field, value)
    elif kind == "float":
        check_real(field, value)
    elif kind == "str":
        check_instance(field, value, str, "text")
    elif "Callable[" in kind and not callable(value):
        raise ConfigError(f"{field} is {shorten(value)}; allowed: a function")
    elif kind == "Strategy" and not hasattr(value, "aggregate_train"):
        raise ConfigError(f"{field} is {shorten(value)}; allowed: a server strategy")


def declared_type(option: inspect.Parameter) -> str:
    """Return the annotation of an option as text; "" if it has none."""
    declared = option.annotation
    if declared is option.empty:
        return ""
    return declared.__name__ if isinstance(declared, type) else str(declared).strip("'\"")


def check_server(server: Any) -> Any:
    """Return the class of a server strategy, or `functools.partial` of it with checked options.

    Parameters
    ----------
    server : Strategy or callable
        An object of a fedsim class, a class, or a function or partial that makes a server strategy.

    Raises
    ------
    ConfigError
        Anything else, an object of another class (its options are unknown), or an option that is not allowed.
    """
    if hasattr(type(server), "aggregate_train"):
        options = getattr(server, "_given_options", None)
        if options is None:
            made = f"a {type(server).__name__} object, whose options are unknown"
            raise ConfigError(f"server is {made}; allowed: the class, or functools.partial of it")
        cls: Any = type(server)
        server = partial(cls, **options)
    is_other_class = isinstance(server, type) and not hasattr(server, "aggregate_train")
    if not callable(server) or is_other_class:
        raise ConfigError(f"server is {shorten(server)}; allowed: a server strategy, or the class of one")
    if isinstance(server, partial):
        name = getattr(server.func, "__name__", repr(server.func))
        for option in set(FIXED) & set(server.keywords):
            value = shorten(server.keywords[option])
            raise ConfigError(f"{name}'s {option} is {value}; allowed: no value, the experiment determines it")
        server = partial(server.func, *server.args, **check_options(server.func, server.keywords))
        return server if server.args or server.keywords else server.func
    return server
