"""``fedsim run`` and ``fedsim resume``: one experiment."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fedsim.cli.options import (
    add_engine_options,
    add_experiment_options,
    add_module_option,
    engine,
    path,
    print_notes,
    read_experiment,
    table,
    with_data_dir,
)
from fedsim.errors import ConfigError

if TYPE_CHECKING:
    from fedsim.study.experiment import Experiment


def add_run_options(sub: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fedsim run``."""
    sub.add_argument("file", metavar="FILE", help="the experiment's configuration (.toml), or a table (.csv, .parquet)")
    add_experiment_options(sub)


def add_resume_options(sub: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fedsim resume``."""
    sub.add_argument("out", metavar="DIR", type=path, help="directory that fedsim run --out was writing to")
    add_module_option(sub)
    add_engine_options(sub)


def run(args: argparse.Namespace) -> None:
    """Run one experiment and print its rounds."""
    from fedsim.study import config
    from fedsim.study.plan import table_plan

    text = table(args, args.file)
    experiment = table_plan(text, args.data_dir).base if text else read_experiment(args, args.file)
    chosen = [f"client={text}" for text in args.client[-1:]] + [f"split={text}" for text in args.split[-1:]]
    experiment = config.apply(experiment, chosen + with_data_dir(args.set, args.data_dir))
    print_notes(experiment)
    if args.engine == "deployment":
        settings = {} if args.workers is None else {"nodes": args.workers}
        from fedsim.cli.deploy import run_on_supernodes

        run_on_supernodes(experiment, args.address or "local", settings, args)
    else:
        _execute(experiment, args)


def resume(args: argparse.Namespace) -> None:
    """Go on with an interrupted run."""
    from fedsim.study.directory import CHECKPOINT, CONFIGURATION, RESULTS

    folder = Path(args.out)
    if not (folder / CONFIGURATION).exists():
        raise ConfigError(f"{args.out!r} has no {CONFIGURATION}; allowed: a directory that fedsim run --out wrote")
    if not (folder / CHECKPOINT).exists():
        state = "is complete" if (folder / RESULTS[0]).exists() else f"has no {CHECKPOINT}"
        raise ConfigError(f"the run in {args.out!r} {state}; there is nothing to resume")
    _execute(read_experiment(args, folder / CONFIGURATION), args)


def _execute(experiment: Experiment, args: argparse.Namespace) -> None:
    from fedsim.study.directory import RESULTS
    from fedsim.study.progress import ProgressBar

    try:
        with ProgressBar(experiment.rounds, leave=False) as bar:
            result = experiment.run(
                workers=args.workers, callbacks=[bar], verbose=args.verbose, directory=args.out, engine=engine(args)
            )
    except KeyboardInterrupt:
        if args.out:
            print(f"interrupted; fedsim resume {args.out} goes on", file=sys.stderr)
        raise
    known = result.history.dropna(axis="columns", how="all")
    print(known.to_string(index=False, float_format=lambda x: f"{x:.4g}"))
    if result.stop_reason:
        print(f"stopped after round {result.rounds} of {experiment.rounds}: {result.stop_reason}")
    if args.out:
        print(f"wrote {', '.join(RESULTS)} to {args.out}")
