"""Calls whose arguments do not fit: one sentence with the parameters and a hint, in place of Python's TypeError."""

from __future__ import annotations

import builtins
import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial, wraps
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypeVar, cast

from fedsim.checks import Hint, shorten, suggest, translate
from fedsim.errors import ConfigError, FedsimError

F = TypeVar("F", bound=Callable[..., Any])

#: Classes that modules import for type checking only, and that are therefore compared by their names.
BY_NAME = ("DataFrame", "Experiment", "Result", "Study")
#: Similarity of names, of at most 1, from which a method counts as a misspelt one.
MISSPELT = 0.85


def misfit(
    target: Callable[..., Any],
    name: str,
    args: Sequence[Any],
    keywords: Mapping[str, Any],
    hint: Hint | None = None,
) -> str:
    """Return why a call's arguments do not fit, or an empty string if they do.

    Parameters
    ----------
    target : callable
    name : str
        Name of the callable in the sentence.
    args : sequence
    keywords : mapping
    hint : callable, optional
        Returns the hint for a keyword that the callable does not take; default the class's ``suggest_argument``.
    """
    give_hint: Hint = getattr(target, "suggest_argument", suggest) if hint is None else hint
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):  # some compiled functions have none
        return ""
    try:
        signature.bind(*args, **keywords)
    except TypeError as error:
        reason = str(error)
    else:
        return ""
    kinds = {parameter.name: parameter.kind for parameter in signature.parameters.values()}
    taken = ", ".join(f"**{n}" if kind is inspect.Parameter.VAR_KEYWORD else n for n, kind in kinds.items())
    unknown = [key for key in keywords if key not in kinds and inspect.Parameter.VAR_KEYWORD not in kinds.values()]
    advice = "".join(dict.fromkeys(give_hint(key, list(kinds)) for key in unknown))
    if unknown:
        reason = f"got an unexpected keyword argument {unknown[0]!r}"
    elif named := [n for n, kind in kinds.items() if kind is inspect.Parameter.KEYWORD_ONLY]:
        advice = f"; name the arguments, as in {named[0]}=..." if reason.startswith("too many positional") else ""
    return f"{name} takes {taken or 'no arguments'} ({reason}){advice}"


def checked_arguments(function: F) -> F:
    """Make a function or a method raise ConfigError for arguments that it does not take, and for those of a wrong type.

    Types are compared with annotations only if the function raises another exception than fedsim's; otherwise its
    exceptions are unchanged. If it is the ``__init__`` of a class, the class extends `CheckedInit`.
    """

    @wraps(function)
    def checked(*args: Any, **keywords: Any) -> Any:
        try:
            return function(*args, **keywords)
        except FedsimError:
            raise
        except Exception as error:
            inside = error.__traceback__ and error.__traceback__.tb_next
            sentence = wrong_type(function, args, keywords) if inside else _misfit_of(checked, function, args, keywords)
            if not sentence:
                raise
            raise ConfigError(sentence) from (error if inside else None)

    checked.__dict__["checks_arguments"] = True
    return cast("F", checked)


def _misfit_of(
    checked: Callable[..., Any], function: Callable[..., Any], args: Sequence[Any], keywords: Mapping[str, Any]
) -> str:
    """Return why the arguments of a function, a method or a constructor do not fit, as `misfit` does."""
    name = function.__qualname__.rpartition("<locals>.")[2]
    if not args or "self" not in inspect.signature(function).parameters:
        return misfit(function, name, args, keywords)
    hint: Hint | None = None
    if function.__name__ == "__init__":
        name = type(args[0]).__name__ if type(args[0]).__init__ is checked else name.removesuffix(".__init__")
        hint = args[0].suggest_argument
    return misfit(partial(function, args[0]), name, args[1:], keywords, hint)


def wrong_type(function: Callable[..., Any], args: Sequence[Any], keywords: Mapping[str, Any]) -> str:
    """Return which argument is no object of the classes in its annotation, or an empty string.

    Annotations with other parts than names of classes and None are not compared.
    """
    signature = inspect.signature(function)
    for name, value in signature.bind(*args, **keywords).arguments.items():
        parameter = signature.parameters[name]
        declared: Any = parameter.annotation
        several = parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        if several or declared is inspect.Parameter.empty:
            continue
        written = declared.__name__ if isinstance(declared, type) else str(declared)
        kinds = [part.strip().rpartition(".")[2] for part in written.split("|")]
        classes = [function.__globals__.get(kind, vars(builtins).get(kind, kind)) for kind in kinds if kind != "None"]
        named = all(isinstance(cls, type) or cls in BY_NAME for cls in classes)
        if not named or (value is None and "None" in kinds) or any(_is_object(value, cls) for cls in classes):
            continue
        allowed = " or ".join(f"{'an' if kind[0] in 'AEIOUaeiou' else 'a'} {kind}" for kind in kinds if kind != "None")
        return f"{name} is {shorten(value)}; allowed: {allowed}"
    return ""


def _is_object(value: Any, cls: type | str) -> bool:
    if isinstance(cls, str):
        return any(base.__name__ == cls for base in type(value).__mro__)
    numbers: dict[type, Any] = {bool: Integral, int: Integral, float: Real}
    try:
        return isinstance(value, numbers.get(cls, cls))
    except TypeError:  # Any, and protocols that are not for run time
        return True


class CheckedInit:
    """Base class of classes whose constructors raise ConfigError, with their parameters, for arguments that do not fit.

    Subclasses may be dataclasses. Their ``__init__`` does not exist yet when ``__init_subclass__`` is called, so it is
    replaced when the first object is made.
    """

    if not TYPE_CHECKING:  # type checkers would take the signature from __new__

        def __new__(cls, *args: Any, **keywords: Any) -> Any:
            """Make the ``__init__`` of the class check its arguments, if it does not yet."""
            owner = next(base for base in cls.__mro__ if "__init__" in vars(base))
            if issubclass(owner, CheckedInit) and not hasattr(owner.__init__, "checks_arguments"):
                owner.__init__ = checked_arguments(owner.__init__)
            return super().__new__(cls)

    @classmethod
    def suggest_argument(cls, word: Any, allowed: list[str]) -> str:
        """Return a hint for a keyword that the constructor does not take: a parameter, or a class that has it."""
        if hint := suggest(word, allowed):
            return hint
        family = cls.__mro__[cls.__mro__.index(CheckedInit) - 1]  # such as Split
        having = [(other.__name__, translate(word, _field_names(other))) for other in _public_subclasses(family)]
        found = [f"{other} has {name}" for other, name in having if name]
        return f"; {', '.join(found[:3])}" if found else ""


def _field_names(cls: type) -> list[str]:
    return [field.name for field in fields(cls) if field.init] if is_dataclass(cls) else []


def _public_subclasses(cls: type) -> Iterator[type]:
    """Yield the subclasses of a class in fedsim that have public names, also indirect ones."""
    subclasses: list[type] = cls.__subclasses__()
    for subclass in subclasses:
        if subclass.__module__.startswith("fedsim.") and not subclass.__name__.startswith("_"):
            yield subclass
        yield from _public_subclasses(subclass)


def refusal(instance: Any, method: str, sentence: str) -> ConfigError:
    """Return the error for a method of a user's class, with the method's file and line.

    Parameters
    ----------
    instance : object
    method : str
        The name of the method.
    sentence : str
        What is wrong and what is allowed, without the name of the class and without a full stop.
    """
    code = getattr(inspect.unwrap(getattr(type(instance), method)), "__code__", None)
    location = f" ({code.co_filename}:{code.co_firstlineno})" if code else ""
    return ConfigError(f"{type(instance).__name__}'s {sentence}{location}")


def check_methods(instance: Any, protocol: type | None = None) -> None:
    """Raise ConfigError if a method of a user's class has a misspelt name, or does not take fedsim's arguments.

    Parameters
    ----------
    instance : object
        Nothing is checked for an object of fedsim's own class.
    protocol : type, optional
        Declares the methods; default the class of fedsim that the user's class extends.
    """
    own_class = type(instance).__module__.startswith("fedsim.")
    base = protocol or next((cls for cls in type(instance).__mro__ if cls.__module__.startswith("fedsim.")), None)
    if own_class or base is None:
        return
    hooks = [name for name in dir(base) if not name.startswith("_")]
    for name, _ in inspect.getmembers(type(instance), inspect.isfunction):
        known = name.startswith("_") or name in hooks
        if not known and (meant := difflib.get_close_matches(name, hooks, n=1, cutoff=MISSPELT)):
            raise refusal(instance, name, f"{name}() is never called; did you mean {meant[0]}? If not, call it _{name}")
    for name, method in inspect.getmembers(base, inspect.isfunction):
        own = getattr(type(instance), name, None)
        if name.startswith("_") or own is method or not inspect.isfunction(own):
            continue
        parameters, taken = inspect.signature(method).parameters.values(), inspect.signature(own)
        # Fedsim's optional arguments that are passed by name are those of some callers only.
        expected = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        try:
            taken.bind(*expected)
        except TypeError:
            names = ", ".join(map(str, taken.parameters))
            raise refusal(instance, name, f"{name}() takes ({names}); allowed: ({', '.join(expected)})") from None
