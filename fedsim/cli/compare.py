"""``fedsim compare``: a study."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedsim.cli.options import add_experiment_options, engine, print_notes, table, with_data_dir


def add_options(sub: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fedsim compare``."""
    sub.add_argument("file", metavar="FILE", help="the study's configuration (.toml), or a table (.csv, .parquet)")
    add_experiment_options(sub, "; repeat it to compare several")
    sub.add_argument("--seeds", metavar="N", type=int, help="how many (default: the file's; 3 for a table)")
    sub.add_argument("--target", metavar="ACCURACY", type=float, help="count the rounds to this test accuracy")


def compare(args: argparse.Namespace) -> None:
    """Run a study and print its table."""
    from fedsim.checks import check_real
    from fedsim.modules import Modules
    from fedsim.study import compare as studies
    from fedsim.study import config
    from fedsim.study.plan import make_plan, table_plan

    if args.target is not None:
        check_real("--target", args.target)
    assignments = with_data_dir(args.set, args.data_dir)
    chosen: dict[str, Any] = {"client": args.client, "split": args.split, "seeds": args.seeds}
    chosen = {name: value for name, value in chosen.items() if value not in ([], None)}
    if text := table(args, args.file):
        plan = table_plan(text, args.data_dir, assignments, chosen)
    else:
        plan = make_plan(config.read(args.file), assignments, chosen, Modules.here(args.module))
    print_notes(plan.base)
    axes: dict[str, Any] = dict(plan.axes)
    fixed: dict[str, Any] = {"seeds": plan.seeds, "baselines": plan.baselines}
    settings = {"workers": args.workers, "verbose": args.verbose, "engine": engine(args), "directory": args.out}
    study = studies.compare(plan.base, **fixed, **settings, **axes)
    print(study.table(args.target).to_string())
    if args.out:
        pictures: dict[str, Callable[[Path], None]] = {
            "accuracy.png": study.plot,
            "drift.png": study.plot_drift,
            "splits.png": study.plot_splits,
        }
        if study.evaluated:
            pictures["local_accuracy.png"] = lambda path: study.plot(path, "local")
            pictures["accuracy_by_skew.png"] = study.plot_score_by_skew
        for name, draw in pictures.items():
            draw(Path(args.out) / name)
        print(f"wrote {', '.join([*studies.TABLES, *pictures])} to {args.out}")
