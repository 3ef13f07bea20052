"""Options that several commands share, and what they stand for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.errors import ConfigError

if TYPE_CHECKING:
    from fedsim.study.experiment import Experiment

#: Help of ``--data-dir`` and ``--set``.
DATA_DIR_HELP = "folder with data files (default: $FEDSIM_DATA)"
SET_HELP = "change a setting; repeatable"


def path(text: str) -> str:
    """Refuse the empty text, which is what an unset shell variable gives."""
    if not text:
        raise argparse.ArgumentTypeError("it is ''; allowed: a path")
    return text


def add_engine_options(sub: argparse.ArgumentParser) -> None:
    """Add the options of engines."""
    engines = "in-process, ray or, of fedsim run, deployment (default: in-process)"
    group = sub.add_argument_group("where clients run")
    group.add_argument("--engine", metavar="NAME", default="in-process", help=engines)
    group.add_argument(
        "--address",
        metavar="ADDRESS",
        help="of a running Ray cluster, or a SuperLink's connection; default: started here",
    )
    group.add_argument(
        "--workers", metavar="N", type=int, help="threads (default: one per core for large jobs), actors or SuperNodes"
    )
    sub.add_argument("-v", "--verbose", action="store_true", help="show Flower's log")


def add_module_option(sub: argparse.ArgumentParser) -> None:
    """Add the option that allows modules in configuration files."""
    about = (
        "allow the configuration file to name classes of this module, besides those in the current folder; repeatable"
    )
    sub.add_argument("--module", metavar="MODULE", action="append", default=[], help=about)


def read_experiment(args: argparse.Namespace, file: str | Path) -> Experiment:
    """Return the experiment in a configuration file."""
    from fedsim.modules import Modules
    from fedsim.study import config

    return config.experiment(config.read(file), Modules.here(args.module))


def engine(args: argparse.Namespace) -> Any:
    """Return the engine that was asked for."""
    from functools import partial

    from fedsim.engines.engine import engine_class

    make = engine_class(args.engine)
    if not args.address:
        return make
    if args.engine != "ray":
        raise ConfigError(f"--address is for --engine ray; --engine is {args.engine!r}")
    return partial(make, address=args.address)


def add_table_options(sub: argparse.ArgumentParser) -> None:
    """Add the options that describe a table of the user's own."""
    group = sub.add_argument_group("a table of your own")
    group.add_argument("--label", metavar="COLUMN", help="column to predict")
    group.add_argument(
        "--client-column",
        metavar="COLUMN",
        action="append",
        help="column that says which client a row belongs to; repeatable",
    )
    group.add_argument("--drop", metavar="COLUMN", action="append", default=[], help="column to leave out; repeatable")
    group.add_argument(
        "--categorical",
        metavar="COLUMN",
        action="append",
        default=[],
        help="numeric column to treat as categories; repeatable",
    )


def table(args: argparse.Namespace, file: str) -> str | None:
    """Return the dataset's text if the file is a table, and None if it is none."""
    from fedsim.data import SUFFIXES
    from fedsim.objects import format_call

    options = {
        "label": args.label,
        "client_column": args.client_column,
        "drop": args.drop,
        "categorical": args.categorical,
    }
    given = {name: value for name, value in options.items() if value}
    if not file.lower().endswith(SUFFIXES):
        if given:
            name = next(iter(given)).replace("_", "-")
            raise ConfigError(f"--{name} is for a table ({', '.join(SUFFIXES)}); {file!r} is none")
        return None
    if not args.label:
        raise ConfigError(f"{file!r} is a table; say which column to predict by --label COLUMN")
    return format_call("table", [file], given)


def add_experiment_options(sub: argparse.ArgumentParser, several: str = "") -> None:
    """Add the options that change an experiment or a study, and say where it is written."""
    sub.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help=SET_HELP)
    sub.add_argument(
        "--client",
        metavar="STRATEGY",
        action="append",
        default=[],
        help=f"client strategy, such as 'FedProx(proximal_mu=0.1)' or my_module:MyStrategy{several}",
    )
    sub.add_argument("--split", action="append", default=[], help=f"split, such as 'Dirichlet(50, alpha=0.1)'{several}")
    add_module_option(sub)
    add_table_options(sub)
    sub.add_argument("--out", metavar="DIR", type=path, help="write results there; earlier results are kept beside it")
    sub.add_argument("--data-dir", metavar="DIR", help=DATA_DIR_HELP)
    add_engine_options(sub)


def with_data_dir(assignments: list[str], data_dir: str | None) -> list[str]:
    """Return assignments of ``--set`` with that of the data folder."""
    import tomli_w

    return assignments + ([tomli_w.dumps({"data_dir": data_dir})] if data_dir else [])


def print_notes(experiment: Experiment) -> None:
    """Print how the user's own data was read."""
    from fedsim import data
    from fedsim.text import print_notice

    if isinstance(experiment.dataset, str) and experiment.dataset.startswith(("table", "hub")):
        dataset = data.load(experiment.dataset, experiment.data_dir)
        kind = "numbers to regress on" if dataset.regression else f"{dataset.num_classes} labels"
        print_notice(
            f"{dataset.name}: {len(dataset.x_train):,} training and {len(dataset.x_test):,} test examples, "
            f"{dataset.x_train.shape[1]} features, {kind}"
        )
        for note in dataset.notes:
            print_notice(f"{dataset.name}: {note}")
