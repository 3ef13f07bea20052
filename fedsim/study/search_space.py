"""The space of a search: settings of an experiment, and the values from which a search chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from fedsim.checks import LARGEST_FLOAT, check_choice, check_instance, shorten, to_builtin
from fedsim.errors import ConfigError
from fedsim.study.config import to_plain, with_setting
from fedsim.study.experiment import Experiment
from fedsim.study.grid import distinct_labels
from fedsim.study.settings import suggest_setting

#: Settings that cannot be searched, because values of the metric would not be comparable.
EXCLUDED = ("dataset", "data_dir", "seed")
#: The values of a space.
ALLOWED = "(low, high) or ('log', low, high), with low less than high and low positive for 'log', or a list of choices"


@dataclass(frozen=True)
class Parameter:
    """A setting of a space.

    Attributes
    ----------
    setting : str
        Such as ``"rounds"`` or ``"client.lr"``.
    ends : tuple of int or float
        The range, whole numbers if both ends are; empty for choices.
    log : bool
        Whether the logarithm of the value is uniform.
    choices : dict of str to object
        Label -> value; empty for a range.
    """

    setting: str
    ends: tuple[Any, ...] = ()
    log: bool = False
    choices: Mapping[str, Any] = field(default_factory=dict)

    @property
    def values(self) -> list[Any]:
        """The ends of the range, or the choices."""
        return list(self.ends or self.choices.values())

    @property
    def text(self) -> str:
        """The range or the choices as text, which is the same in another process."""
        return f"{'log ' * self.log}{[to_plain(self.setting, value) for value in self.values]}"

    @property
    def distribution(self) -> Any:
        """Optuna's distribution; that of choices has their labels."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices:
            return CategoricalDistribution(list(self.choices))
        is_whole = all(isinstance(end, int) for end in self.ends)
        return (IntDistribution if is_whole else FloatDistribution)(*self.ends, log=self.log)

    def value(self, suggested: Any) -> Any:
        """Return the value of the setting that Optuna's value stands for."""
        return self.choices[suggested] if self.choices else suggested

    def shown(self, suggested: Any) -> Any:
        """Return the value for a table: numbers and text as they are, objects as their labels."""
        value = self.value(suggested)
        return value if isinstance(value, bool | int | float | str) else suggested


def read_space(base: Experiment, space: Any) -> list[Parameter]:
    """Return the parameters of a space, after trying their values: objects before arguments, otherwise by name.

    Parameters
    ----------
    base : Experiment
    space : mapping
        Setting -> range or choices, as for `fedsim.study.search.search`.

    Raises
    ------
    ConfigError
        A name is not a setting, or a value is not allowed.
    """
    check_instance("space", space, Mapping, "a dict of settings to ranges and lists of choices")
    if not space:
        raise ConfigError(f"space is empty; allowed: at least one setting, with {ALLOWED}")
    known = [f.name for f in fields(Experiment) if f.name not in EXCLUDED]
    for setting in space:
        check_choice("a setting of space", str(setting).partition(".")[0], known, partial(suggest_setting, base=base))
    order = sorted(space, key=lambda setting: ("." in setting, setting))
    parameters = {setting: _parameter(base, setting, to_builtin(space[setting])) for setting in order}
    for setting, parameter in parameters.items():
        outer, dot, _ = setting.partition(".")
        objects = parameters[outer].values if dot and outer in parameters else [getattr(base, outer)]
        for part in objects:
            changed = with_setting(base, outer, part, "space")
            for value in parameter.values:
                with_setting(changed, setting, value, "space")
    return list(parameters.values())


def _parameter(base: Experiment, setting: str, given: Any) -> Parameter:
    """Return the parameter of a setting with a range or choices."""
    if isinstance(given, tuple):
        log = given[:1] == ("log",)
        low, high = ends if len(ends := given[1:] if log else given) == 2 else (None, None)
        if _is_number(low) and _is_number(high) and low < high and (low > 0 or not log):
            return Parameter(setting, ends if all(isinstance(e, int) for e in ends) else tuple(map(float, ends)), log)
    elif isinstance(given, list) and given:
        values = given if "." in setting else [_stored(base, setting, value) for value in given]
        choices = dict(zip(distinct_labels(values), values, strict=True))
        if len(choices) < len(values):
            raise ConfigError(f"space's {setting} is {shorten(given)}; allowed: each choice once")
        return Parameter(setting, choices=choices)
    raise ConfigError(f"space's {setting} is {shorten(given)}; allowed: {ALLOWED}")


def _stored(base: Experiment, setting: str, value: Any) -> Any:
    """Return the value of a setting as an experiment stores it, after checking it."""
    return getattr(with_setting(base, setting, value, "space"), setting)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= LARGEST_FLOAT


def apply(base: Experiment, parameters: Sequence[Parameter], suggested: Mapping[str, Any]) -> Experiment:
    """Return the experiment with the values that Optuna suggests for each setting."""
    for parameter in parameters:
        base = with_setting(base, parameter.setting, parameter.value(suggested[parameter.setting]), "space")
    return base
