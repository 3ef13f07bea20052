"""Plans of studies, from a configuration file with a ``[compare]`` table or from a table of data only."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsim import data
from fedsim.checks import check_choice, check_instance, to_builtin, to_builtin_sequence
from fedsim.errors import ConfigError
from fedsim.modules import EVERY, Modules
from fedsim.study import config
from fedsim.study.baselines import BASELINES
from fedsim.study.experiment import Experiment
from fedsim.study.grid import check_axes, seed_list, variants
from fedsim.study.tuning import Tuning, Variants


@dataclass(frozen=True)
class Plan:
    """What a study runs: an experiment for each combination of the axes' values, with each seed, and baselines.

    Parameters
    ----------
    base, axes, seeds, baselines
        As for `fedsim.compare`.
    tuning : Tuning, optional
        Settings to choose for each variant.
    """

    base: Experiment
    axes: Mapping[str, Sequence[Any]]
    seeds: int | Sequence[int] = 1
    baselines: Sequence[str] = ()
    tuning: Tuning | None = None

    def seed_list(self) -> Sequence[int]:
        """Return the seeds that are reported."""
        return seed_list(self.seeds, self.base.seed)

    def variants(self) -> Variants:
        """Return the labels and the experiment of each variant.

        Raises
        ------
        ConfigError
            An axis, a value or a baseline is not allowed.
        """
        check_instance("base", self.base, Experiment, "an Experiment")
        check_instance("baselines", self.baselines, list | tuple, f"a list of {', '.join(BASELINES)}")
        for name in self.baselines:
            check_choice("baselines", name, BASELINES)
        chosen = variants(self.base, self.axes)
        if self.baselines and not self.axes:
            chosen = [({"training": "federated"}, self.base)]
        for name in self.baselines:
            first, *others = chosen[0][0]
            chosen.append(({first: name, **dict.fromkeys(others, "-")}, BASELINES[name](self.base)))
        return chosen

    def to_toml(self) -> str:
        """Return the study's file, from which `make_plan` makes the plan; empty if it has no TOML form."""
        import tomli_w

        try:
            tables = {"compare": _table(self.axes, self.seeds) | {"baselines": list(self.baselines)}}
            if self.tuning:
                metric = {"metric": self.tuning.metric} if self.tuning.metric else {}
                tables["tune"] = _table(self.tuning.settings, self.tuning.seeds) | metric
            return tomli_w.dumps(to_builtin(config.to_settings(self.base) | tables))
        except (ConfigError, TypeError, ValueError):  # arrays, functions, values for which TOML has no type
            return ""


def _table(axes: Mapping[str, Sequence[Any]], seeds: int | Sequence[int]) -> dict[str, Any]:
    """Return axes and seeds as a table in TOML."""
    plain = {axis: [config.to_plain(axis, v) for v in to_builtin_sequence(values)] for axis, values in axes.items()}
    seeds = to_builtin_sequence(seeds)
    return plain | {"seeds": seeds if isinstance(seeds, int) else list(seeds)}


def make_plan(
    settings: Mapping[str, Any],
    assignments: Sequence[str] = (),
    chosen: Mapping[str, Any] | None = None,
    modules: Modules | None = None,
    tune: Mapping[str, Any] | None = None,
) -> Plan:
    """Make the plan of a study from TOML settings: those of an experiment, a ``[compare]`` and a ``[tune]`` table.

    Parameters
    ----------
    settings : mapping
    assignments : sequence of str
        As for `config.apply`.
    chosen : mapping, optional
        Entries of the command line that replace those of the ``[compare]`` table.
    modules : Modules, optional
        As for `config.experiment`.
    tune : mapping, optional
        Entries of the command line that replace those of the ``[tune]`` table.

    Raises
    ------
    ConfigError
        There is no ``[compare]`` table, or `config.experiment` refuses the settings.
    """
    modules = modules or Modules.here()
    rest = dict(settings)
    compared = rest.pop("compare", {} if chosen else None)
    if not isinstance(compared, dict):
        raise ConfigError("a study needs a [compare] table with lists, such as split = ['IID(50)', 'Shards(50)']")
    tuned = _values(rest.pop("tune", {}), tune or {}, modules)
    axes = _values(compared, chosen or {}, modules)
    seeds, baselines = axes.pop("seeds", 1), axes.pop("baselines", ())
    check_axes(axes)
    options = {name: tuned.pop(name) for name in ("seeds", "metric") if name in tuned}
    if options and not tuned:
        raise ConfigError(
            f"tune has {' and '.join(options)} only; allowed: settings too, such as client.lr = [0.01, 0.1]"
        )
    tuning = Tuning(tuned, **options) if tuned else None
    return Plan(config.apply(config.experiment(rest, modules), assignments), axes, seeds, baselines, tuning)


def _values(table: Any, chosen: Mapping[str, Any], modules: Modules) -> dict[str, Any]:
    """Return the entries of a ``[compare]`` or ``[tune]`` table as Python values, with those of the command line."""
    check_instance("a table of a study", table, dict, "names of settings and lists of values")
    texts = {axis: (raw, modules) for axis, raw in _flat(table).items()}
    texts |= {axis: (raw, EVERY) for axis, raw in chosen.items()}
    return {
        axis: [config.value_of(axis, value, allowed) for value in raw] if isinstance(raw, list) else raw
        for axis, (raw, allowed) in texts.items()
    }


def _flat(compared: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a ``[compare]`` table, those of inner tables under names such as ``client.lr``."""
    flat: dict[str, Any] = {}
    for name, raw in compared.items():
        flat |= {f"{name}.{inner}": part for inner, part in raw.items()} if isinstance(raw, dict) else {name: raw}
    return flat


#: Number of clients for a table without a column that names the client of a row.
TABLE_CLIENTS = 10


def table_plan(
    dataset: str,
    data_dir: str | os.PathLike[str] | None = None,
    assignments: Sequence[str] = (),
    chosen: Mapping[str, Any] | None = None,
    tune: Mapping[str, Any] | None = None,
) -> Plan:
    """Make the plan of a study for a table: its natural clients, if it has any, against IID and label skew.

    Parameters
    ----------
    dataset : str
        ``"table('FILE', label='COLUMN', ...)"``.
    data_dir : path, optional
    assignments : sequence of str
        As for `config.apply`.
    chosen : mapping, optional
        Entries of a ``[compare]`` table that replace those of the plan.
    tune : mapping, optional
        Entries of a ``[tune]`` table.
    """
    loaded = data.load(dataset, data_dir)
    natural = [f"Natural({column!r})" for column in loaded.groups if column not in loaded.groups_test]
    clients = len(config.build("split", natural[0]).federate(loaded).partition) if natural else TABLE_CLIENTS
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
    return make_plan(settings | {"compare": compared}, assignments, chosen, tune=tune)
