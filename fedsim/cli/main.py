"""The command-line interface: the table of commands and the parser."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import NoReturn

from fedsim import __version__
from fedsim.cli import compare, completion, deploy, options, privacy, run, runs, search, splits, tools
from fedsim.cli.guard import Parser, guard

Options = Callable[[argparse.ArgumentParser], None]
#: Name -> the function that runs the command, whose docstring is its help, and the one that declares its arguments.
COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], None], Options | None]] = {
    "run": (run.run, run.add_run_options),
    "compare": (compare.compare, compare.add_options),
    "search": (search.search, search.add_options),
    "resume": (run.resume, run.add_resume_options),
    "runs": (runs.runs, runs.add_options),
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
    guard(lambda: args.action(args), getattr(args, "verbose", False))


class CommandParser(Parser):
    """The parser of the command, whose errors have hints."""

    def error(self, message: str) -> NoReturn:
        """Print the message, with a hint for an unknown command or option, and exit with code 2."""
        super().error(message + _hint(message))


def _hint(message: str) -> str:
    """Return the command or the setting that an unknown command or option stands for, as a hint."""
    from fedsim.checks import suggest, translate

    if command := re.search(r"invalid choice: '([^']*)'", message):
        return suggest(command[1], COMMANDS)
    option = re.search(r"unrecognized arguments: (?:.*? )?--([\w-]+)", message)
    if option is None:
        return ""
    if flag := translate(option[1], [*(name.strip("-") for name in options.OPTIONS), "out", "seeds"]):
        return f"; did you mean '--{flag}'?"
    from dataclasses import fields

    from fedsim.study.experiment import Experiment
    from fedsim.study.settings import find_setting

    base = Experiment()
    found = find_setting(option[1].replace("-", "_"), [f.name for f in fields(base)], base)
    key, _, value = found.partition(" = ")
    return f'; settings are changed by --set, as in --set "{key}={value or "VALUE"}"' if found else ""


def parser() -> Parser:
    """Return the command's parser."""
    top = CommandParser(
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
