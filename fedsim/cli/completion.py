"""``fedsim completion``: completion of commands, options and file names by a shell."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

SHELLS = ("bash", "zsh")
#: Placeholders of arguments that are paths.
FILES, FOLDERS = ("FILE", "experiment.toml"), ("DIR", "APP_DIR")


def add_options(sub: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fedsim completion``."""
    sub.add_argument("shell", choices=SHELLS, help='for bash: eval "$(fedsim completion bash)" in ~/.bashrc')


def completion(args: argparse.Namespace) -> None:
    """Print a script that completes commands, options and file names in a shell."""
    import shtab

    for action in _arguments(args.parser):
        if action.metavar in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar in FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    print(shtab.complete(args.parser, args.shell))


def _arguments(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the arguments of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _arguments(command)
