"""``fedsim compare``: a study."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedsim.cli import options


def add_options(sub: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fedsim compare``."""
    sub.add_argument("file", metavar="FILE", help="the study's configuration (.toml), or a table (.csv, .parquet)")
    options.add_experiment_options(sub, "; repeat it to compare several")
    sub.add_argument("--seeds", metavar="N", type=int, help="number of seeds (default: the file's; 3 for a table)")
    sub.add_argument("--target", metavar="ACCURACY", type=float, help="report the rounds to this test accuracy")


def compare(args: argparse.Namespace) -> None:
    """Run a study (a file with a [compare] table) and print its table."""
    from fedsim.checks import check_real
    from fedsim.modules import Modules
    from fedsim.study import compare as studies
    from fedsim.study import config
    from fedsim.study.directory import FAIRNESS, GROUPS
    from fedsim.study.plan import make_plan, table_plan

    if args.target is not None:
        check_real("--target", args.target)
    changes = options.assignments(args)
    chosen = {name: value for name in ("client", "split", "seeds") if (value := getattr(args, name)) not in ([], None)}
    if table := options.table_call(args, args.file):
        plan = table_plan(table, args.data_dir, changes, chosen)
    else:
        plan = make_plan(config.read(args.file), changes, chosen, Modules.here(args.module))
    options.print_dataset(plan.base)
    settings: dict[str, Any] = {**plan.axes, "workers": args.workers, "verbose": args.verbose, "directory": args.out}
    settings["callbacks"] = options.make_trackers(args)
    engine = options.choose_engine(args)
    study = studies.compare(plan.base, seeds=plan.seeds, baselines=plan.baselines, engine=engine, **settings)
    print(study.table(args.target).to_string())
    if args.out:
        tables = [
            *studies.TABLES,
            *([FAIRNESS] if study.evaluated else []),
            *([GROUPS] if study.counted_groups else []),
        ]
        plots: dict[str, Callable[[Path], None]] = {"accuracy.png": study.plot}
        if study.measured_drift:
            plots["drift.png"] = study.plot_drift
        plots["splits.png"] = study.plot_splits
        if study.evaluated:
            plots["local_accuracy.png"] = lambda path: study.plot(path, "local")
            plots["accuracy_by_skew.png"] = study.plot_score_by_skew
        for name, plot in plots.items():
            plot(Path(args.out) / name)
        print(f"wrote {', '.join([*tables, *plots])} to {args.out}")
