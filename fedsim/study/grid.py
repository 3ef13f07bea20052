"""The runs of a study: every combination of the axes' values, with labels that name what varies."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import partial
from typing import Any

from fedsim.checks import check_choice, check_integer, check_seed, shorten, to_builtin_sequence
from fedsim.errors import ConfigError
from fedsim.objects import short_repr
from fedsim.study.config import with_setting
from fedsim.study.experiment import Experiment
from fedsim.study.settings import suggest_setting

#: Arguments of `fedsim.compare` that are not axes, for hints.
OPTIONS = (
    "seeds", "baselines", "tune", "tune_seeds", "tune_metric",
    "progress", "callbacks", "workers", "jobs", "verbose", "engine", "directory",
)  # fmt: skip
#: Start of the name of an axis whose values were chosen by tuning. They describe the variants, which are not compared
#: by them.
TUNED = "tuned "
#: The largest number of seeds.
MOST_SEEDS = 10_000


def variants(base: Experiment, axes: Mapping[str, Sequence[Any]]) -> list[tuple[dict[str, str], Experiment]]:
    """Return every combination of the axes' values as (labels, experiment).

    Axes with one value have no label, unless all have one value.

    Parameters
    ----------
    base : Experiment
    axes : mapping
        Setting -> values. ``client.lr`` is an argument of the client strategy, also of those of an axis ``client``.

    Raises
    ------
    ConfigError
        An axis is not a setting of an experiment, has no values, has one twice, or has one that is not allowed.
    """
    check_axes(axes)
    axes = {axis: to_builtin_sequence(values) for axis, values in axes.items()}
    for axis, values in axes.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ConfigError(f"{axis} is {shorten(values)}; compare needs a list of at least one value")
    order = sorted(axes, key=lambda axis: "." in axis)  # objects before their arguments
    labels = {axis: distinct_labels([_shown(base, axis, value) for value in values]) for axis, values in axes.items()}
    for axis, texts in labels.items():
        if twice := {text for text in texts if texts.count(text) > 1}:
            raise ConfigError(f"{axis} has {shorten(min(twice))} twice; allowed: values that have different labels")
    named = [axis for axis, values in axes.items() if len(values) > 1] or list(axes)
    found = []
    for places in itertools.product(*(range(len(values)) for values in axes.values())):
        place, experiment = dict(zip(axes, places, strict=True)), base
        for axis in order:
            experiment = with_setting(experiment, axis, axes[axis][place[axis]], "compare")
        found.append(({axis: labels[axis][place[axis]] for axis in named}, experiment))
    return found


def has_setting(experiment: Experiment, name: str) -> bool:
    """Return whether an experiment has a setting; ``client.lr`` if its client strategy has an argument ``lr``."""
    outer, dot, inner = name.partition(".")
    return not dot or outer == "server" or hasattr(getattr(experiment, outer, None), inner)


def check_axes(axes: Iterable[str]) -> None:
    """Raise ConfigError if an axis is not a setting of an experiment, or is the seed."""
    known = [f.name for f in fields(Experiment) if f.name != "seed"]
    for axis in axes:
        check_choice("an axis of compare", axis.partition(".")[0], known, _suggest_axis)


def _suggest_axis(word: Any, allowed: list[str]) -> str:
    """Return a hint for a name that is not an axis, such as the plural of a setting."""
    if word in ("clients", "num_clients", "n_clients"):
        return "; the number of clients is the split's: split.num_clients, or split = IID(50)"
    singular = str(word).removesuffix("s")
    return f"; did you mean {singular!r}?" if singular in allowed else suggest_setting(word, [*allowed, *OPTIONS])


def seed_list(seeds: Any, first: int) -> Sequence[int]:
    """Return a list of seeds as it is; for a number of seeds, return that many from the experiment's own."""
    seeds = to_builtin_sequence(seeds)
    if isinstance(seeds, str | bytes) or not isinstance(seeds, Sequence):
        return range(first, first + check_integer("seeds", seeds, 1, MOST_SEEDS))
    if not seeds:
        raise ConfigError("seeds is empty; allowed: a number of seeds, or a list of them")
    for seed in seeds:
        check_seed("seeds", seed)
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds is {shorten(seeds)}; allowed: each seed once")
    return seeds


def _shown(base: Experiment, axis: str, value: Any) -> Any:
    """Return the value of an axis as the experiment stores it."""
    return with_setting(base, axis, value, "compare").server if axis == "server" else value


def distinct_labels(values: Sequence[Any]) -> list[str]:
    """Return a label of each value, without the arguments that all values share."""
    shorten_one = short_repr if _differ_in_size(values) else _short
    short = [shorten_one(_without(value, _shared(values))) for value in values]
    alike = [[other for other, text in zip(values, short, strict=True) if text == label] for label in short]
    labels = [
        text if len(same) == 1 else _distinguish(text, value, same)
        for value, text, same in zip(values, short, alike, strict=True)
    ]
    return labels if len(set(labels)) == len(labels) else list(map(short_repr, values))


def _differ_in_size(values: Sequence[Any]) -> bool:
    """Return whether objects, such as splits, have other numbers of clients, which their short labels leave out."""
    return len({getattr(value, "num_clients", None) for value in values} - {None}) > 1


def _shared(values: Sequence[Any]) -> list[str]:
    """Return the names of arguments that several objects all have, with the same value."""
    if len(values) == 1 or not all(is_dataclass(value) for value in values):
        return []
    names = [field.name for field in fields(values[0]) if field.init]
    missing = object()
    return [name for name in names if len({repr(getattr(value, name, missing)) for value in values}) == 1]


def _without(value: Any, names: Sequence[str]) -> Any:
    """Return an object with the defaults of some arguments, or the object itself where these are not allowed."""
    if not names:
        return value
    defaults = {field.name: field.default for field in fields(value) if field.default is not MISSING}
    try:
        return replace(value, **{name: defaults[name] for name in names if name in defaults})
    except ConfigError:
        return value


def _distinguish(label: str, value: Any, alike: Sequence[Any]) -> str:
    """Return a label with the arguments in which objects of one class differ, such as ``IID(num_clients=5)``."""
    if not is_dataclass(value) or len({type(other) for other in alike}) > 1:
        return short_repr(value)
    names = [field.name for field in fields(value) if field.init]
    different = [name for name in names if len({repr(getattr(other, name)) for other in alike}) > 1]
    head, bracket, rest = label.partition("(")
    known = [rest.removesuffix(")")] if bracket else []
    return f"{head}({', '.join([*known, *(f'{name}={short_repr(getattr(value, name))}' for name in different)])})"


def _short(value: Any) -> str:
    """Return the short label of a value."""
    if isinstance(value, partial):
        return f"{_short(value.func)}({', '.join(f'{k}={v!r}' for k, v in value.keywords.items())})"
    return getattr(value, "__name__", None) or str(value)
