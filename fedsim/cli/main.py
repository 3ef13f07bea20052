"""The command line: its commands and how they are told apart."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import NoReturn

from fedsim import __version__
from fedsim.cli import compare, deploy, run, splits, tools
from fedsim.cli.guard import Parser, guard

#: Name, what it does, the function that does it, and the function that declares its arguments.
Command = tuple[str, str, Callable[[argparse.Namespace], None], Callable[[argparse.ArgumentParser], None] | None]
COMMANDS: tuple[Command, ...] = (
    ("run", "run one experiment and print its rounds", run.run, run.add_run_options),
    (
        "compare",
        "run a study (a file with a [compare] table) and print its table",
        compare.compare,
        compare.add_options,
    ),
    ("resume", "go on with an interrupted run", run.resume, run.add_resume_options),
    ("splits", "show the label distribution per client, before training", splits.splits, splits.add_options),
    (
        "deploy",
        "run an experiment on a real Flower deployment: a SuperLink and SuperNodes",
        deploy.deploy,
        deploy.add_deploy_options,
    ),
    (
        "export",
        "write a stand-alone Flower app of an experiment, for flwr run",
        deploy.export,
        deploy.add_export_options,
    ),
    ("flower", "run any Flower app in this process, without Ray", tools.flower, tools.add_flower_options),
    ("strategies", "list client and server strategies: parameters and papers", tools.strategies, None),
    ("check", "check a client strategy of your own, and say what to fix", tools.check, tools.add_check_options),
    ("data", "list the datasets, and where their files are or come from", tools.data, tools.add_data_options),
)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the `fedsim` command."""
    args = parser().parse_args(arguments)
    guard(lambda: args.action(args))


def parser() -> Parser:
    """Return the command's parser."""
    top = Parser(
        prog="fedsim",
        description="Simulate federated learning: what non-IID data does to it, in seconds.",
        epilog="A configuration file holds the Python arguments in TOML; see docs/configuration.md.",
    )
    top.add_argument("--version", action="version", version=f"fedsim {__version__}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, about, action, add_options in COMMANDS:
        sub = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
        sub.set_defaults(action=action)
        if add_options:
            add_options(sub)
    return top
