"""``fedsim runs``: the runs and studies in directories."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fedsim.cli import options
from fedsim.errors import ConfigError


def add_options(sub: argparse.ArgumentParser) -> None:
    """Declare the actions of ``fedsim runs`` and their arguments."""
    actions = sub.add_subparsers(title="actions", required=True, metavar="ACTION", dest="runs_action")
    every = actions.add_parser("list", help="list the studies and runs in a directory, or the runs of a study")
    every.add_argument("directory", nargs="?", default="runs", help="default: runs")
    one = actions.add_parser("show", help="show the table of a study, or the settings and the last rounds of a run")
    one.add_argument("directory", help="directory of a study or of a run")
    several = actions.add_parser("compare", help="compare any finished runs and studies by what differs between them")
    several.add_argument("directories", nargs="+", metavar="directory", help="directory of a study or of a run")
    removed = actions.add_parser("rm", help="delete runs and studies")
    removed.add_argument("directories", nargs="+", metavar="directory", help="directory of a study or of a run")
    removed.add_argument("--yes", action="store_true", help="do not ask")
    for parser in (one, several):
        options.add(parser, "--module")


def runs(args: argparse.Namespace) -> None:
    """List, show, compare and delete runs and studies in directories."""
    {"list": _list, "show": _show, "compare": _compare, "rm": _remove}[args.runs_action](args)


def _list(args: argparse.Namespace) -> None:
    from fedsim.report.terminal import to_text
    from fedsim.study import stored_runs

    directory = Path(args.directory)
    if stored_runs.is_study(directory):
        frame = stored_runs.list_study(directory).round({"score": 3})
    else:
        frame = stored_runs.list_all(directory).round({"megabytes": 1})
    print(to_text(frame) if len(frame) else f"no studies and no runs in {directory}")


def _show(args: argparse.Namespace) -> None:
    from fedsim.study import stored_runs
    from fedsim.study.result import Result
    from fedsim.study.store import FINISHED, state_of
    from fedsim.study.study import Study
    from fedsim.text import escape

    directory = Path(args.directory)
    if stored_runs.is_study(directory):
        print(Study.load(directory, args.module))
        return
    for name, value in stored_runs.describe(directory).items():
        print(f"{name} = {escape(value if isinstance(value, str) else repr(value))}")
    if state_of(directory) == FINISHED:
        print()
        options.print_history(Result.load(directory, modules=args.module).history, args.directory)


def _compare(args: argparse.Namespace) -> None:
    from fedsim.study import stored_runs

    print(stored_runs.combine([Path(name) for name in args.directories], args.module))


def _remove(args: argparse.Namespace) -> None:
    from fedsim.study import stored_runs

    paths = [Path(name) for name in args.directories]
    for path in paths:
        if not stored_runs.is_study(path) and not stored_runs.is_run(path):
            raise ConfigError(f"{str(path)!r} has neither a run nor a study; allowed: a directory that fedsim wrote")
    if not args.yes:
        if not sys.stdin.isatty():
            raise ConfigError("fedsim runs rm asks before it deletes, and there is no terminal; give --yes")
        if input(f"delete {', '.join(args.directories)}? [y/N] ").strip().lower() not in ("y", "yes"):
            return
    for path in paths:
        stored_runs.remove(path)
        print(f"deleted {path}")
