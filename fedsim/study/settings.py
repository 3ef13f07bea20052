"""The classes of each setting's objects, and hints for names that are not settings or belong to another setting."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from fedsim import attacks, clients, privacy, splits, updates
from fedsim.arguments import check_methods, misfit
from fedsim.checks import closest, shorten, suggest, translate
from fedsim.errors import ConfigError
from fedsim.models import MLP
from fedsim.objects import classes_of, format_call
from fedsim.privacy.settings import Privacy
from fedsim.secure import SecureAggregation
from fedsim.study.callbacks import EarlyStopping
from fedsim.updates import UpdateTransform

#: Setting -> the class that its objects extend, and the classes that its text may name without a module.
OBJECTS: dict[str, tuple[type, dict[str, Any]]] = {
    "split": (splits.Split, classes_of(splits, splits.Split)),
    "client": (clients.ClientStrategy, classes_of(clients, clients.ClientStrategy)),
    "transforms": (UpdateTransform, classes_of(updates, UpdateTransform) | classes_of(privacy, UpdateTransform)),
    "early_stopping": (EarlyStopping, {"EarlyStopping": EarlyStopping}),
    "privacy": (Privacy, classes_of(privacy, Privacy)),
    "secure_aggregation": (SecureAggregation, {"SecureAggregation": SecureAggregation}),
    "attack": (attacks.Attack, classes_of(attacks, attacks.Attack)),
}
#: Settings that ``"none"`` switches off, as one of the values that a study compares.
OPTIONAL = ("early_stopping", "privacy", "secure_aggregation", "attack")
#: Classes that hints name first.
COMMON = ("SGD", "FedProx", "IID", "Dirichlet", "Shards", "FedAdam")


def known_classes(field: str) -> tuple[type, dict[str, Any]]:
    """Return the entry of a setting in `OBJECTS`, or of ``"server"``, whose classes import Flower."""
    if field != "server":
        return OBJECTS[field]
    from flwr.serverapp import strategy as stock

    from fedsim import servers

    return stock.Strategy, classes_of(stock, stock.Strategy) | classes_of(servers, stock.Strategy)


def _all_classes() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the settings of objects with their classes, those of ``"server"``, which import Flower, last."""
    for setting in (*OBJECTS, "server"):
        yield setting, known_classes(setting)[1]


def _parameters(cls: Any) -> list[str]:
    """Return the names of a class's parameters."""
    if is_dataclass(cls):
        return [f.name for f in fields(cls) if f.init]
    from fedsim.servers.options import options_of

    return list(options_of(cls))


def _find_parameter(word: str, known: dict[str, Any], synonyms: bool = True) -> tuple[str, str]:
    """Return the class that has a parameter of this name, or of a synonym, and the parameter's name; or "" twice."""
    ordered = sorted(known, key=lambda name: (name not in COMMON, COMMON.index(name) if name in COMMON else 0))
    found = ((cls, translate(word, _parameters(known[cls]), synonyms)) for cls in ordered)
    return next(((cls, name) for cls, name in found if name), ("", ""))


def suggest_setting(word: Any, allowed: list[str], base: Any = None) -> str:
    """Return a hint for a name that is not a setting; parameters as for `find_setting`."""
    found = find_setting(word, allowed, base) if isinstance(word, str) else ""
    return f"; did you mean {found}?" if " = " in found else f"; did you mean {found!r}?" if found else ""


def find_setting(word: str, allowed: list[str], base: Any = None) -> str:
    """Return the setting, or the object that has a parameter, that a name stands for; or an empty string.

    Parameters
    ----------
    word : str
    allowed : list of str
        The settings.
    base : Experiment, optional
        Its objects' parameters are ``--set`` keys, such as ``client.lr``.
    """
    if same := translate(word, allowed):
        return same
    for setting in OBJECTS:
        part = getattr(base, setting, None)
        if is_dataclass(part) and (name := translate(word, _parameters(part))):
            return f"{setting}.{name}"
    common = [(setting, {n: cls for n, cls in known.items() if n in COMMON}) for setting, (_, known) in OBJECTS.items()]
    for classes, synonyms in ((common, True), (_all_classes(), False), (_all_classes(), True)):
        for setting, known in classes:
            cls, name = _find_parameter(word, known, synonyms)
            if name and setting in allowed:
                return f"{setting} = {cls}({name}=...)"
    return closest(word, allowed)


def suggest_class(field: str, word: Any, allowed: list[str]) -> str:
    """Return a hint for a name that is not a class of a setting: a class, and the setting to which the name belongs."""
    own = translate(word, allowed)
    if own and translate(word, allowed, synonyms=False):
        return f"; did you mean {own!r}?"
    places = {f"in the setting {setting}": known for setting, known in _all_classes() if setting != field}
    places["as sizes, as in IID(50, sizes=LogNormal())"] = classes_of(splits, splits.Sizes)
    for synonyms in (False,) if own else (False, True):
        for place, known in places.items():
            if name := translate(word, known, synonyms):
                return f"; did you mean {own!r}? {name} is allowed {place}" if own else f"; {name} is allowed {place}"
    return suggest(word, allowed)


def suggest_part(setting: str, name: str, value: Any) -> str:
    """Return a hint for ``--set SETTING.NAME=VALUE`` if there is no object whose field can be changed: the object."""
    known = known_classes(setting)[1] if setting in (*OBJECTS, "server") else {}
    cls, parameter = _find_parameter(name, known)
    missing = f"{setting} is not set, so give" if setting in OPTIONAL else "give"
    return f"; {missing} the whole object, as in '{setting}={cls}({parameter}={value!r})'" if cls else ""


def check_object(setting: str, value: Any, allowed: str, field: str = "") -> None:
    """Raise ConfigError, with a hint, unless `value` is an object of a setting, or None for an optional setting.

    The methods that a user's class overrides must take the arguments with which fedsim calls them.

    Parameters
    ----------
    setting : str
    value : object
    allowed : str
        What is allowed, for the error.
    field : str
        What has the value, for the error; default `setting`.
    """
    if not isinstance(value, OBJECTS[setting][0]) and not (value is None and setting in OPTIONAL):
        raise ConfigError(f"{field or setting} is {shorten(value)}; allowed: {allowed}{suggest_object(setting, value)}")
    check_methods(value)


def check_server(value: Any) -> Any:
    """Return the class of a server strategy, or a partial of it, as `fedsim.servers.options.check_server` does."""
    from fedsim.servers.options import check_server as check_strategy  # servers import Flower

    try:
        return check_strategy(value)
    except ConfigError as error:
        raise ConfigError(f"{error}{suggest_object('server', value)}") from None


def suggest_object(setting: str, value: Any) -> str:
    """Return a hint for a value of a setting that is not one of its objects."""
    base, known = known_classes(setting)
    if isinstance(value, type) and issubclass(value, base) and setting != "server":
        return f"; did you mean {value.__name__}()?"
    if isinstance(value, str):
        name = value.partition("(")[0].strip()
        return (
            "; in Python it is an object, without quotes" if name in known else suggest_class(setting, name, [*known])
        )
    if isinstance(value, dict) and value:
        cls, _ = _find_parameter(next(iter(value)), known)
        return f'; did you mean {setting} = "{format_call(cls, [], value)}"?' if cls else ""
    for other, (kind, _) in OBJECTS.items():
        if other != setting and (isinstance(value, kind) or (isinstance(value, type) and issubclass(value, kind))):
            return f"; it is allowed in the setting {other}"
    if setting != "server" and hasattr(value, "aggregate_train"):
        return "; it is allowed in the setting server"
    return ""


def check_model(value: Any) -> None:
    """Raise ConfigError, with a hint, unless a value is a function of one argument."""
    allowed = "allowed: a function of a Dataset that returns a Model"
    if not callable(value):
        hint = "; hidden, activation and loss describe the MLP" if isinstance(value, str | MLP) else ""
        raise ConfigError(f"model is {shorten(value)}; {allowed}{hint}")
    if reason := misfit(value, getattr(value, "__name__", "it"), ["dataset"], {}):
        raise ConfigError(f"model is {shorten(value)}; {allowed}: {reason}")
