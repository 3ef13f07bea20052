"""The command-line interface: the table of commands and the parser."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import NoReturn

from fedsim import __version__
from fedsim.cli import compare, deploy, run, splits, tools
from fedsim.cli.guard import Parser, guard

#: Name, description, the function that runs the command, and the function that declares its arguments.
Command = tuple[str, str, Callable[[argparse.Namespace], None], Callable[[argparse.ArgumentParser], None] | None]
COMMANDS: tuple[Command, ...] = (
    ("run", "run one experiment and print its history", run.run, run.add_run_options),
    (
        "compare",
        "run a study (a file with a [compare] table) and print its table",
        compare.compare,
        compare.add_options,
    ),
    ("resume", "resume an interrupted run", run.resume, run.add_resume_options),
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
    ("strategies", "list client and server strategies with their parameters and papers", tools.strategies, None),
    ("check", "check a client strategy of your own, and report what to fix", tools.check, tools.add_check_options),
    ("data", "list the datasets and the locations of their files", tools.data, tools.add_data_options),
)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the `fedsim` command."""
    args = parser().parse_args(arguments)
    guard(lambda: args.action(args))


def parser() -> Parser:
    """Return the command's parser."""
    top = Parser(
        prog="fedsim",
        description="Simulate federated learning on IID and non-IID data.",
        epilog="Configuration files hold the arguments of Experiment in TOML; see docs/configuration.md.",
    )
    top.add_argument("--version", action="version", version=f"fedsim {__version__}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, about, action, add_options in COMMANDS:
        sub = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
        sub.set_defaults(action=action)
        if add_options:
            add_options(sub)
    return top
