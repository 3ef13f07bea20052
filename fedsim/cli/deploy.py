"""``fedsim deploy`` and ``fedsim export``: an experiment on Flower's SuperNodes."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from fedsim.cli import options
from fedsim.errors import ConfigError

if TYPE_CHECKING:
    from fedsim.study.experiment import Experiment


def add_deploy_options(sub: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fedsim deploy``."""
    superlink = "local, to start one on this machine, or the name of a connection in your Flower configuration"
    sub.add_argument("superlink", metavar="SUPERLINK", help=superlink)
    _add_common_options(sub)
    out = "write results to this directory (if the SuperLink is not local: on its machine)"
    sub.add_argument("--out", metavar="DIR", type=options.nonempty_path, help=out)
    insecure = "plain text and no authentication instead of TLS, for a local SuperLink"
    sub.add_argument("--insecure", action="store_true", help=insecure)
    options.add(sub, "--verbose")


def add_export_options(sub: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fedsim export``."""
    _add_common_options(sub)
    sub.add_argument("folder", metavar="DIR", help="a new or empty folder")


def _add_common_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("file", metavar="experiment.toml", help="the experiment's configuration")
    options.add(sub, "--set", "--module", "--data-dir")
    nodes = "number of SuperNodes (default: 4 locally, otherwise all that are connected)"
    sub.add_argument("--nodes", metavar="N", type=int, help=nodes)
    sub.add_argument("--timeout", metavar="S", type=float, help="seconds to wait for a SuperNode (default: no limit)")
    sub.add_argument("--retries", metavar="N", type=int, help="retries per round if a SuperNode fails (default: 0)")


def _read(args: argparse.Namespace) -> tuple[Experiment, dict[str, Any]]:
    """Return the experiment, and the run configuration that was given."""
    from fedsim.checks import check_real
    from fedsim.study import config

    given = {name: value for name in ("nodes", "timeout", "retries") if (value := getattr(args, name)) is not None}
    for name, value in given.items():
        check_real(f"--{name}", value, 1 if name == "nodes" else 0, open_low=name == "timeout")
    return config.apply(options.read_experiment(args.file, args.module), options.assignments(args)), given


def deploy(args: argparse.Namespace) -> None:
    """Run an experiment on a real Flower deployment: a SuperLink and SuperNodes."""
    experiment, settings = _read(args)
    run_on_supernodes(experiment, args.superlink, settings, args)


def run_on_supernodes(
    experiment: Experiment, superlink: str, settings: dict[str, Any], args: argparse.Namespace
) -> None:
    """Run an experiment on the SuperNodes of a SuperLink: one that is started here, or one of a connection."""
    insecure = getattr(args, "insecure", False)

    def print_line(line: str) -> None:
        if args.verbose or line.startswith("fedsim: "):
            print(line, file=sys.stderr)

    if superlink != "local":
        if insecure:
            raise ConfigError("--insecure is for a local SuperLink; for another, set insecure in its connection")
        from fedsim.apps.submission import submit

        submit(experiment, superlink, on_line=print_line, out=args.out or "", **settings)
        return
    from fedsim.apps.deployment import run_local_deployment

    nodes = settings.pop("nodes", 4)
    history = run_local_deployment(experiment, nodes, args.out, print_line, insecure, **settings)
    options.print_history(history, args.out)
    if args.out:
        print(f"wrote the results to {args.out}")


def export(args: argparse.Namespace) -> None:
    """Write a stand-alone Flower app of an experiment, for flwr run."""
    from fedsim.apps import export as apps

    experiment, settings = _read(args)
    folder = apps.export(experiment, args.folder, **settings)
    print(f"wrote a Flower app to {folder}; run it with: flwr run {folder}")
