"""The command-line interface: the table of commands and the parser."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import NoReturn

from fedsim import __version__
from fedsim.cli import compare, completion, deploy, privacy, run, splits, tools
from fedsim.cli.guard import Parser, guard

Options = Callable[[argparse.ArgumentParser], None]
#: Name -> the function that runs the command, whose docstring is its help, and the one that declares its arguments.
COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], None], Options | None]] = {
    "run": (run.run, run.add_run_options),
    "compare": (compare.compare, compare.add_options),
    "resume": (run.resume, run.add_resume_options),
    "splits": (splits.splits, splits.add_options),
    "deploy": (deploy.deploy, deploy.add_deploy_options),
    "export": (deploy.export, deploy.add_export_options),
    "privacy": (privacy.privacy, privacy.add_options),
    "flower": (tools.flower, tools.add_flower_options),
    "strategies": (tools.strategies, None),
    "check": (tools.check, tools.add_check_options),
    "data": (tools.data, tools.add_data_options),
    "completion": (completion.completion, completion.add_options),
}


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
    top.set_defaults(parser=top)
    top.add_argument("--version", action="version", version=f"fedsim {__version__}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, (action, add_options) in COMMANDS.items():
        about = action.__doc__ or ""
        sub = commands.add_parser(name, help=about[:1].lower() + about[1:].rstrip("."), description=about)
        sub.set_defaults(action=action)
        if add_options:
            add_options(sub)
    return top
