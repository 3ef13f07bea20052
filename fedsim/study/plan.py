"""Plans of studies, from a configuration file with a ``[compare]`` table or from a table of data only."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsim import data
from fedsim.errors import ConfigError
from fedsim.modules import EVERY, Modules
from fedsim.study import config
from fedsim.study.compare import check_axes
from fedsim.study.experiment import Experiment


@dataclass(frozen=True)
class Plan:
    """The arguments of `compare` for a study."""

    base: Experiment
    axes: Mapping[str, Sequence[Any]]
    seeds: int | Sequence[int]
    baselines: Sequence[str] = ()


def make_plan(
    settings: Mapping[str, Any],
    assignments: Sequence[str] = (),
    chosen: Mapping[str, Any] | None = None,
    modules: Modules | None = None,
) -> Plan:
    """Make the plan of a study from TOML settings: those of an experiment and a ``[compare]`` table.

    Parameters
    ----------
    settings : mapping
    assignments : sequence of str
        As for `config.apply`.
    chosen : mapping, optional
        Entries of the command line that replace those of the ``[compare]`` table.
    modules : Modules, optional
        As for `config.experiment`.

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
    texts = {axis: (raw, modules) for axis, raw in compared.items()}
    texts |= {axis: (raw, EVERY) for axis, raw in (chosen or {}).items()}
    axes = {
        axis: [config.value_of(axis, value, allowed) for value in raw] if isinstance(raw, list) else raw
        for axis, (raw, allowed) in texts.items()
    }
    seeds, baselines = axes.pop("seeds", 1), axes.pop("baselines", ())
    check_axes(axes)
    return Plan(config.apply(config.experiment(rest, modules), assignments), axes, seeds, baselines)


#: Number of clients for a table without a column that names the client of a row.
TABLE_CLIENTS = 10


def table_plan(
    dataset: str,
    data_dir: str | os.PathLike[str] | None = None,
    assignments: Sequence[str] = (),
    chosen: Mapping[str, Any] | None = None,
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
    return make_plan(settings | {"compare": compared}, assignments, chosen)
