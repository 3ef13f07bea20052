"""``fedsim compare``: a study."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fedsim.cli import options
from fedsim.errors import ConfigError

if TYPE_CHECKING:
    from fedsim.study.plan import Plan


def add_options(sub: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fedsim compare``."""
    sub.add_argument("file", metavar="FILE", help="the study's configuration (.toml), or a table (.csv, .parquet)")
    options.add_experiment_options(sub, "; repeat it to compare several")
    grid = "values to compare, such as client.lr=0.01,0.1 or 'split=IID(50);Shards(50)'; repeatable"
    sub.add_argument("--grid", metavar="KEY=VALUES", help=grid, **options.REPEATABLE)
    tune = "settings to choose for each variant with other seeds, such as client.lr=0.01,0.1,1; repeatable"
    sub.add_argument("--tune", metavar="KEY=VALUES", help=tune, **options.REPEATABLE)
    sub.add_argument("--tune-seeds", metavar="N", type=int, help="number of seeds to choose with (default: 3)")
    sub.add_argument("--seeds", metavar="N", type=int, help="number of seeds (default: the file's; 3 for a table)")
    sub.add_argument("--target", metavar="ACCURACY", type=float, help="report the rounds to this test accuracy")
    options.add(sub, "--jobs")


def compare(args: argparse.Namespace) -> None:
    """Run a study (a file with a [compare] table) and print its table."""
    from fedsim.modules import Modules
    from fedsim.study import config
    from fedsim.study.plan import make_plan, table_plan

    changes = options.assignments(args)
    chosen = {name: value for name in ("client", "split", "seeds") if (value := getattr(args, name)) not in ([], None)}
    grid = options.grid("--grid", args.grid)
    for name in chosen.keys() & grid.keys():
        raise ConfigError(f"--{name} and --grid both have values of {name}; allowed: one of the two")
    chosen |= grid
    tune = options.grid("--tune", args.tune) | ({"seeds": args.tune_seeds} if args.tune_seeds is not None else {})
    if table := options.table_call(args, args.file):
        plan = table_plan(table, args.data_dir, changes, chosen, tune)
    else:
        plan = make_plan(config.read(args.file), changes, chosen, Modules.here(args.module), tune)
    execute(plan, args)


def execute(plan: Plan, args: argparse.Namespace) -> None:
    """Run a study, print its table, and draw its pictures if it has a directory."""
    from fedsim.checks import check_real
    from fedsim.report.terminal import to_text
    from fedsim.study.compare import run_plan
    from fedsim.study.execution import StudyOptions

    if args.target is not None:
        check_real("--target", args.target, high=1)
    options.print_dataset(plan.base)
    engine, trackers = options.choose_engine(args), options.make_trackers(args)
    how = StudyOptions(callbacks=trackers, workers=args.workers, jobs=args.jobs, verbose=args.verbose, engine=engine)
    study = run_plan(plan, how, args.out)
    print("\n".join([to_text(study.table(args.target)), *study.notes]))
    if args.out:
        plots: dict[str, Callable[[Path], None]] = {"accuracy.png": study.plot} if study.has_global_model else {}
        if study.measured_drift:
            plots["drift.png"] = study.plot_drift
        plots["splits.png"] = study.plot_splits
        if study.evaluated:
            plots["local_accuracy.png"] = lambda path: study.plot(path, "local")
            plots["accuracy_by_skew.png"] = study.plot_score_by_skew
        for name, plot in plots.items():
            plot(Path(args.out) / name)
        print(f"wrote the runs, {', '.join([*study.files, *plots])} to {args.out}")
