"""``fedsim search``: a search of hyperparameters."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedsim.cli import options
from fedsim.errors import ConfigError


def add_options(sub: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fedsim search``."""
    sub.add_argument("file", metavar="FILE", help="the experiment's configuration (.toml), or a table (.csv, .parquet)")
    space = "values to try: client.epochs=1:10, client.lr=log:0.001:1, client.lr=0.01,0.1 or 'split=IID(9);Shards(9)'"
    sub.add_argument("--space", metavar="KEY=VALUES", help=f"{space}; repeatable", **options.REPEATABLE)
    sub.add_argument("--trials", metavar="N", type=int, default=50, help="number of trials (default: 50)")
    sub.add_argument("--seeds", metavar="N", type=int, default=2, help="number of seeds of a trial (default: 2)")
    metric = "column of history.csv to improve (default: test_accuracy, or test_r2)"
    sub.add_argument("--metric", metavar="COLUMN", help=metric)
    sub.add_argument("--no-prune", dest="prune", action="store_false", help="run all rounds of bad trials too")
    sub.add_argument("--timeout", metavar="SECONDS", type=float, help="start no further trial after this time")
    options.add_experiment_options(sub)


def search(args: argparse.Namespace) -> None:
    """Search for the best values of settings, and print the best trials (extra tune)."""
    from fedsim.report.terminal import to_text
    from fedsim.study.search import search as run_search
    from fedsim.study.search_result import OPTIMISTIC
    from fedsim.study.search_store import BEST, TRIALS

    base = options.chosen_experiment(args)
    options.print_dataset(base)
    settings: dict[str, Any] = {
        name: getattr(args, name) for name in ("trials", "seeds", "metric", "prune", "timeout", "workers", "verbose")
    }
    engine, trackers = options.choose_engine(args), options.make_trackers(args)
    found = run_search(base, read_space(args.space), callbacks=trackers, engine=engine, directory=args.out, **settings)
    print(to_text(found.top()))
    values, report = found.notes
    if args.out:
        report = f"{OPTIMISTIC}: fedsim compare {Path(args.out) / BEST} --set seed={found.next_seed} --seeds 5"
    print(f"{values}\n{report}")
    if args.out:
        print(f"wrote the runs, {TRIALS} and {BEST} to {args.out}")


def read_space(texts: Sequence[str]) -> dict[str, Any]:
    """Return the space of ``--space``: ranges as in ``client.lr=log:0.001:1``, or choices as for `options.grid`."""
    from fedsim.checks import shorten
    from fedsim.study import config

    space: dict[str, Any] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        is_log = values.strip().startswith("log:")
        ends = tuple(map(_number, values.strip().removeprefix("log:").split(":")))
        is_range = len(ends) == 2 and None not in ends
        if not equals or (is_log and not is_range):
            allowed = "KEY=LOW:HIGH, KEY=log:LOW:HIGH or KEY=VALUE,VALUE,..."
            raise ConfigError(f"--space is {shorten(text)}; allowed: {allowed}")
        if is_range:
            space[key.strip()] = ("log", *ends) if is_log else ends
        else:
            for name, choices in options.grid("--space", [text]).items():
                space[name] = [config.value_of(name, choice) for choice in choices]
    return space


def _number(text: str) -> int | float | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None
