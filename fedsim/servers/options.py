"""The options of server strategies, fedsim's, Flower's and a user's: which there are, and what each may be."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fedsim.checks import check_flag, check_integer, check_real, check_seed, shorten, suggest, to_builtin
from fedsim.clients.server_hooks import ServerHooks
from fedsim.errors import ConfigError

#: What Flower's strategies call the least numbers of clients, all 1 by default here: fractions decide.
MINIMUM = ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes")
#: Options that fedsim gives whatever makes a server strategy, if it takes them.
COMMON = ("fraction_train", "fraction_evaluate", "seed", *MINIMUM)
#: Options that name what a client's reply consists of; an experiment's clients use Flower's default names.
RECORD_KEYS = ("weighted_by_key", "arrayrecord_key", "configrecord_key", "train_loss_key")


def options_of(server: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the options that a class, or a function that makes a server strategy, takes by name.

    Options that a class hands on by ``**options`` are its bases'; a function that does so takes `COMMON`.
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


def check_options(server: Callable[..., Any], given: Mapping[str, Any], name: str = "") -> dict[str, Any]:
    """Return a server strategy's options with plain numbers.

    Parameters
    ----------
    server : callable
        Its class, or a function that makes it. The types that it declares are checked, as are the options of Flower's
        FedAvg and ``seed``, whatever they are declared as.
    given : mapping
        Option -> value.
    name : str
        Of the strategy, for errors; default the name of `server`.

    Raises
    ------
    ConfigError
        It has no such option, or takes another type or value.
    """
    name = name or getattr(server, "__name__", repr(server))
    known = options_of(server)
    checked = {option: to_builtin(value) for option, value in given.items()}
    for option, value in checked.items():
        if option not in known:
            allowed = ", ".join(known) or "none"
            raise ConfigError(f"server {name} has no option {option!r}; allowed: {allowed}{suggest(option, known)}")
        _check(f"{name}'s {option}", known[option], value)
    return checked


def _check(field: str, option: inspect.Parameter, value: Any) -> None:
    declared = declared_type(option)
    kind = declared.removesuffix(" | None")
    if option.name in ("fraction_train", "fraction_evaluate"):
        check_real(field, value, 0, 1)
    elif option.name in MINIMUM:
        check_integer(field, value)
    elif option.name == "seed":
        check_seed(field, value)
    elif option.name == "min_clients":
        check_integer(field, value, 1)
    elif value is None and (option.default is None or kind != declared):
        return
    elif option.name == "server_hooks" and not isinstance(value, ServerHooks):
        raise ConfigError(f"{field} is {shorten(value)}; allowed: a ServerHooks")
    elif kind == "bool":
        check_flag(field, value)
    elif kind == "int":
        check_integer(field, value)
    elif kind == "float":
        check_real(field, value)
    elif kind == "str" and not isinstance(value, str):
        raise ConfigError(f"{field} is {shorten(value)}; allowed: text")
    elif "Callable[" in kind and not callable(value):
        raise ConfigError(f"{field} is {shorten(value)}; allowed: a function")
    elif kind == "Strategy" and not hasattr(value, "aggregate_train"):
        raise ConfigError(f"{field} is {shorten(value)}; allowed: a server strategy")


def declared_type(option: inspect.Parameter) -> str:
    """Return the annotation of an option as text; "" if it has none."""
    declared = option.annotation
    if declared is option.empty:
        return ""
    return declared.__name__ if isinstance(declared, type) else str(declared)


def with_options(server: Any) -> Any:
    """Return a server strategy's class, or a partial of it with the options that were given to the object.

    Raises
    ------
    ConfigError
        It is something else, an object of Flower's that does not tell its options, or an option is not allowed.
    """
    if hasattr(type(server), "aggregate_train"):
        options = getattr(server, "_given_options", None)
        if options is None:
            raise ConfigError(
                f"server is a {type(server).__name__} object, whose options are unknown; allowed: the class, or "
                "functools.partial of it"
            )
        cls: Any = type(server)
        server = partial(cls, **options) if options else cls
    if not callable(server):
        raise ConfigError(f"server is {shorten(server)}; allowed: a server strategy, or the class of one")
    if isinstance(server, partial):
        name = getattr(server.func, "__name__", repr(server.func))
        for option in set(RECORD_KEYS) & set(server.keywords):
            value = shorten(server.keywords[option])
            raise ConfigError(f"{name}'s {option} is {value}; allowed: the default, the name that clients use")
        return partial(server.func, *server.args, **check_options(server.func, server.keywords))
    return server
