"""``fedsim run`` and ``fedsim resume``: one experiment."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fedsim.cli import options
from fedsim.errors import ConfigError

if TYPE_CHECKING:
    from fedsim.study.experiment import Experiment


def add_run_options(sub: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fedsim run``."""
    sub.add_argument("file", metavar="FILE", help="the experiment's configuration (.toml), or a table (.csv, .parquet)")
    options.add_experiment_options(sub)


def add_resume_options(sub: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fedsim resume``."""
    sub.add_argument("out", metavar="DIR", type=options.nonempty_path, help="the --out directory of the run or study")
    options.add(sub, "--module", "--jobs", "--track")
    options.add_engine_options(sub)


def run(args: argparse.Namespace) -> None:
    """Run one experiment and print its history."""
    experiment = options.chosen_experiment(args)
    options.print_dataset(experiment)
    if args.engine == "deployment":
        from fedsim.cli.deploy import run_on_supernodes

        if args.track:
            raise ConfigError("--track is for runs in this process; --engine is 'deployment'")
        settings = {} if args.workers is None else {"nodes": args.workers}
        run_on_supernodes(experiment, args.address or "local", settings, args)
    else:
        _execute(experiment, args)


def resume(args: argparse.Namespace) -> None:
    """Continue an interrupted run or study."""
    from fedsim.modules import Modules
    from fedsim.study import config, store
    from fedsim.study.plan import make_plan
    from fedsim.study.result_files import CONFIGURATION, INDEX

    folder = Path(args.out)
    if (folder / store.CONFIGURATION).exists():
        from fedsim.cli import compare

        args.target = None
        compare.execute(make_plan(config.read(folder / store.CONFIGURATION), modules=Modules.here(args.module)), args)
        return
    if (folder / INDEX).exists():
        raise ConfigError(f"the study in {args.out!r} has no {store.CONFIGURATION}; run the script that made it again")
    state = store.state_of(folder)
    if not (folder / CONFIGURATION).exists():
        raise ConfigError(
            f"{args.out!r} has neither {CONFIGURATION} nor {store.CONFIGURATION}; "
            "allowed: a directory that fedsim run --out or fedsim compare --out wrote"
        )
    if state != store.INTERRUPTED:
        what = "is complete" if state == store.FINISHED else "has no checkpoint"
        raise ConfigError(f"the run in {args.out!r} {what}; there is nothing to resume")
    _execute(options.read_experiment(folder / CONFIGURATION, args.module), args)


def _execute(experiment: Experiment, args: argparse.Namespace) -> None:
    from fedsim.study.progress import ProgressBar
    from fedsim.study.result_files import RESULTS, result_tables

    engine, trackers = options.choose_engine(args), options.make_trackers(args)
    try:
        with ProgressBar(experiment.rounds, leave=False) as bar:
            result = experiment.run(
                workers=args.workers,
                callbacks=[bar, *trackers],
                verbose=args.verbose,
                directory=args.out,
                engine=engine,
            )
    except KeyboardInterrupt:
        if args.out:
            print(f"interrupted; resume the run with: fedsim resume {args.out}", file=sys.stderr)
        raise
    options.print_history(result.history, args.out)
    if result.privacy:
        print(f"differential privacy: {result.privacy}")
    if result.stop_reason:
        print(f"stopped after round {result.rounds} of {experiment.rounds}: {result.stop_reason}")
    if args.out:
        names = dict.fromkeys([*RESULTS, *result_tables(result)])
        print(f"wrote {', '.join(names)} to {args.out}")
