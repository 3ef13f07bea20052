"""Options that several commands share, and the objects that they stand for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.checks import shorten
from fedsim.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from fedsim.study.experiment import Experiment
    from fedsim.trackers import Tracker

REPEATABLE: dict[str, Any] = {"action": "append", "default": []}
#: Flag -> arguments of `argparse.ArgumentParser.add_argument`.
OPTIONS: dict[str, dict[str, Any]] = {
    "--set": {"metavar": "KEY=VALUE", "help": "change a setting; repeatable", **REPEATABLE},
    "--module": {"help": "allow the configuration file to name classes of this module; repeatable", **REPEATABLE},
    "--data-dir": {"metavar": "DIR", "help": "folder with data files (default: $FEDSIM_DATA)"},
    "--verbose": {"action": "store_true", "help": "show Flower's log, and the traceback of an error"},
    "--engine": {"default": "in-process", "help": "in-process, ray or deployment (default: in-process)"},
    "--address": {"help": "address of a Ray cluster, or a SuperLink connection (default: start one)"},
    "--workers": {
        "metavar": "N",
        "type": int,
        "help": "threads, actors or SuperNodes (default: by the size of the job)",
    },
    "--jobs": {
        "metavar": "N",
        "type": int,
        "help": "runs at the same time, in processes (default: one per core for small runs)",
    },
    "--track": {
        "metavar": "TRACKER",
        "help": "log to mlflow, tensorboard or wandb, or as in \"MLflow(uri='sqlite:///mlflow.db')\"; repeatable",
        **REPEATABLE,
    },
    "--label": {"metavar": "COLUMN", "help": "column to predict"},
    "--client-column": {"metavar": "COLUMN", "help": "column that identifies a row's client; repeatable", **REPEATABLE},
    "--group-column": {"metavar": "COLUMN", "help": "column of groups of people; repeatable", **REPEATABLE},
    "--drop": {"metavar": "COLUMN", "help": "column to ignore; repeatable", **REPEATABLE},
    "--categorical": {"metavar": "COLUMN", "help": "numeric column to treat as categories; repeatable", **REPEATABLE},
}


def nonempty_path(text: str) -> str:
    """Refuse an empty path, which an unset shell variable results in."""
    if not text:
        raise argparse.ArgumentTypeError("it is ''; allowed: a path")
    return text


def add(parser: argparse._ActionsContainer, *flags: str) -> None:
    """Add shared options to a parser or a group."""
    for flag in flags:
        names = ("-v", flag) if flag == "--verbose" else (flag,)
        parser.add_argument(*names, **OPTIONS[flag])


def add_engine_options(sub: argparse.ArgumentParser) -> None:
    """Add the options that select an engine."""
    add(sub.add_argument_group("engine"), "--engine", "--address", "--workers")
    add(sub, "--verbose")


def add_table_options(sub: argparse.ArgumentParser) -> None:
    """Add the options that describe a table of the user's own."""
    add(sub.add_argument_group("table"), "--label", "--client-column", "--group-column", "--drop", "--categorical")


def add_experiment_options(sub: argparse.ArgumentParser, repeat: str = "") -> None:
    """Add the options of an experiment or a study; `repeat` is appended to the help of ``--client`` and ``--split``."""
    add(sub, "--set")
    example = "'FedProx(proximal_mu=0.1)' or my_module:MyStrategy"
    sub.add_argument("--client", metavar="STRATEGY", help=f"client strategy, such as {example}{repeat}", **REPEATABLE)
    sub.add_argument("--split", help=f"split, such as 'Dirichlet(50, alpha=0.1)'{repeat}", **REPEATABLE)
    add(sub, "--module")
    add_table_options(sub)
    out = "write results to this directory; earlier results are moved to a numbered directory beside it"
    sub.add_argument("--out", metavar="DIR", type=nonempty_path, help=out)
    add(sub, "--track", "--data-dir")
    add_engine_options(sub)


def grid(flag: str, texts: Sequence[str]) -> dict[str, Any]:
    """Return the axes of ``--grid`` or ``--tune``: ``client.lr=0.01,0.1``, or ``split=IID(9);Dirichlet(9, alpha=0.1)``.

    Values are separated by semicolons if there are any, else by commas, but not inside of brackets and quotes.
    """
    from fedsim.toml import read_assignment

    axes: dict[str, Any] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if not equals:
            raise ConfigError(f"{flag} is {shorten(text)}; allowed: KEY=VALUES, such as client.lr=0.01,0.1")
        if key.strip() in axes:
            raise ConfigError(f"{flag} has {key.strip()} twice; allowed: all of its values in one list")
        parts = _split(values, ";")
        parts = parts if len(parts) > 1 else _split(values, ",")
        axes[key.strip()] = [read_assignment(flag, f"{key}={part}")[1] for part in parts]
    return axes


def _split(text: str, separator: str) -> list[str]:
    """Split a text at the separators that are outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in "([{") - (character in ")]}")
        if character == separator and not quote and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def choose_engine(args: argparse.Namespace) -> Any:
    """Return the engine's name, or a partial of its class with the address."""
    from functools import partial

    from fedsim.engines.engine import engine_class

    make = engine_class(args.engine)
    if not args.address:
        return args.engine
    if args.engine != "ray":
        raise ConfigError(f"--address is for --engine ray; --engine is {args.engine!r}")
    return partial(make, address=args.address)


def table_call(args: argparse.Namespace, file: str) -> str | None:
    """Return the call ``table(...)`` as text if the file is a table, else None."""
    from fedsim.data import SUFFIXES
    from fedsim.objects import format_call

    names = ("label", "client_column", "group_column", "drop", "categorical")
    given = {name: value for name in names if (value := getattr(args, name))}
    if not file.lower().endswith(SUFFIXES):
        if given:
            flag = next(iter(given)).replace("_", "-")
            raise ConfigError(f"--{flag} is for tables ({', '.join(SUFFIXES)}); {file!r} is not a table")
        return None
    if not args.label:
        raise ConfigError(f"{file!r} is a table; name the column to predict with --label COLUMN")
    options = {"group_column": "group_columns"}  # where the option of `table` has another name than the flag
    return format_call("table", [file], {options.get(name, name): value for name, value in given.items()})


def read_experiment(file: str | Path, modules: list[str]) -> Experiment:
    """Return the experiment of a configuration file, which may name classes of these modules."""
    from fedsim.modules import Modules
    from fedsim.study import config

    return config.experiment(config.read(file), Modules.here(modules))


def chosen_experiment(args: argparse.Namespace) -> Experiment:
    """Return the experiment of the configuration file or the table, with the changes of the command line."""
    from fedsim.study import config
    from fedsim.study.plan import table_plan

    table = table_call(args, args.file)
    base = table_plan(table, args.data_dir).base if table else read_experiment(args.file, args.module)
    chosen = [f"client={text}" for text in args.client[-1:]] + [f"split={text}" for text in args.split[-1:]]
    return config.apply(base, chosen + assignments(args))


def assignments(args: argparse.Namespace) -> list[str]:
    """Return the assignments of ``--set`` and ``--data-dir``."""
    import tomli_w

    return [*args.set, *([tomli_w.dumps({"data_dir": args.data_dir})] if args.data_dir else [])]


def make_trackers(args: argparse.Namespace) -> list[Tracker]:
    """Return the trackers of ``--track``."""
    from functools import partial

    from fedsim import trackers
    from fedsim.modules import EVERY, load_class
    from fedsim.objects import classes_of, from_text

    classes = classes_of(trackers, trackers.Tracker)
    names = {name.lower(): cls for name, cls in classes.items()} | classes
    load = partial(load_class, "--track", base=trackers.Tracker, modules=EVERY)
    return [from_text("--track", text, names, load_class=load) for text in args.track]


def print_dataset(experiment: Experiment) -> None:
    """Print how a table or a dataset of the hub was read."""
    from fedsim import data
    from fedsim.text import print_notice

    if isinstance(experiment.dataset, str) and experiment.dataset.startswith(("table", "hub")):
        dataset = data.load(experiment.dataset, experiment.data_dir)
        target = "a real-valued target" if dataset.regression else f"{dataset.num_classes} labels"
        print_notice(
            f"{dataset.name}: {len(dataset.x_train):,} training and {len(dataset.x_test):,} test examples, "
            f"{dataset.x_train.shape[1]} features, {target}"
        )
        for note in dataset.notes:
            print_notice(f"{dataset.name}: {note}")


def print_history(history: pd.DataFrame, out: str | None) -> None:
    """Print a run's history: all of it to a file or a pipe, and what fits to a terminal."""
    from fedsim.report.terminal import history_text, terminal_width

    text, omission = history_text(history, terminal_width())
    print(text)
    if omission:
        print(f"showing {omission}; {'' if out else 'with --out DIR, '}history.csv has all")
