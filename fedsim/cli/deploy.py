"""``fedsim deploy`` and ``fedsim export``: an experiment on Flower's SuperNodes."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from fedsim.cli.options import DATA_DIR_HELP, SET_HELP, add_module_option, path, read_experiment, with_data_dir
from fedsim.errors import ConfigError

if TYPE_CHECKING:
    from fedsim.study.experiment import Experiment


def add_deploy_options(sub: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fedsim deploy``."""
    sub.add_argument(
        "superlink",
        metavar="SUPERLINK",
        help="local: a SuperLink is started on this machine, with TLS and authentication, and stopped at the end; "
        "else a connection of your Flower configuration",
    )
    sub.add_argument("file", metavar="experiment.toml", help="the experiment's configuration")
    _add_common_options(sub)
    sub.add_argument(
        "--out", metavar="DIR", type=path, help="write results there (with a SuperLink elsewhere: on its machine)"
    )
    sub.add_argument("--insecure", action="store_true", help="locally, plain text and no authentication instead of TLS")
    sub.add_argument("-v", "--verbose", action="store_true", help="show Flower's log")


def add_export_options(sub: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fedsim export``."""
    sub.add_argument("file", metavar="experiment.toml", help="the experiment's configuration")
    sub.add_argument("folder", metavar="DIR", help="new, or empty")
    _add_common_options(sub)


def _add_common_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help=SET_HELP)
    add_module_option(sub)
    sub.add_argument("--data-dir", metavar="DIR", help=DATA_DIR_HELP)
    sub.add_argument("--nodes", metavar="N", type=int, help="SuperNodes (default: 4 locally, else all there are)")
    sub.add_argument("--timeout", metavar="S", type=float, help="seconds to wait for a SuperNode (default: any)")
    sub.add_argument("--retries", metavar="N", type=int, help="times a failed SuperNode is asked again in a round")


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the run configuration that was asked for."""
    from fedsim.checks import check_integer, check_real

    if args.nodes is not None:
        check_integer("--nodes", args.nodes, 1)
    if args.timeout is not None:
        check_real("--timeout", args.timeout, 0, open_low=True)
    if args.retries is not None:
        check_integer("--retries", args.retries, 0)
    given = {"nodes": args.nodes, "timeout": args.timeout, "retries": args.retries}
    return {name: value for name, value in given.items() if value is not None}


def deploy(args: argparse.Namespace) -> None:
    """Run an experiment on a Flower deployment."""
    from fedsim.study import config

    experiment = config.apply(read_experiment(args, args.file), with_data_dir(args.set, args.data_dir))
    run_on_supernodes(experiment, args.superlink, _settings(args), args)


def run_on_supernodes(
    experiment: Experiment, superlink: str, settings: dict[str, Any], args: argparse.Namespace
) -> None:
    """Run an experiment on SuperNodes: of a SuperLink that is started here, or of a connection."""
    insecure = getattr(args, "insecure", False)

    def say(line: str) -> None:
        if args.verbose or line.startswith("fedsim: "):
            print(line, file=sys.stderr)

    if superlink != "local":
        if insecure:
            raise ConfigError("--insecure is for a local deployment; a connection of yours says itself")
        from fedsim.apps.submission import submit

        submit(experiment, superlink, on_line=say, out=args.out or "", **settings)
        return
    from fedsim.apps.deployment import run_local_deployment

    nodes = settings.pop("nodes", 4)
    history = run_local_deployment(experiment, nodes, args.out, say, insecure, **settings)
    known = history.dropna(axis="columns", how="all")
    print(known.to_string(index=False, float_format=lambda x: f"{x:.4g}"))
    if args.out:
        print(f"wrote the results to {args.out}")


def export(args: argparse.Namespace) -> None:
    """Write a stand-alone Flower app of an experiment."""
    from fedsim.apps import export as apps
    from fedsim.study import config

    experiment = config.apply(read_experiment(args, args.file), with_data_dir(args.set, args.data_dir))
    folder = apps.export(experiment, args.folder, **_settings(args))
    print(f"wrote a Flower app to {folder}; flwr run {folder} runs it")
