"""``fedsim flower``, ``strategies``, ``check`` and ``data``."""

from __future__ import annotations

import argparse

from fedsim.cli.options import DATA_DIR_HELP


def add_flower_options(sub: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fedsim flower``."""
    sub.add_argument("folder", metavar="APP_DIR", help="with a pyproject.toml that names its components")
    sub.add_argument("--nodes", metavar="N", type=int, help="SuperNodes (default: the app's, else 10)")
    sub.add_argument(
        "--run-config", metavar="KEY=VALUE", action="append", default=[], help="change run configuration; repeatable"
    )
    sub.add_argument("--workers", metavar="N", type=int, help="threads (default: one per core)")
    sub.add_argument("-v", "--verbose", action="store_true", help="show Flower's log")


def flower(args: argparse.Namespace) -> None:
    """Run any Flower app in this process."""
    from fedsim.apps.app_folder import run_app

    seconds = run_app(args.folder, args.nodes, args.run_config, args.workers, args.verbose)
    print(f"the app has run for {seconds:.1f} s")


def strategies(args: argparse.Namespace) -> None:
    """List client and server strategies."""
    from fedsim.report.catalogue import catalogue

    print(catalogue(), end="")


def add_check_options(sub: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fedsim check``."""
    sub.add_argument("client", metavar="STRATEGY", help="such as my_module:MyStrategy or 'my_module:MyStrategy(mu=1)'")


def check(args: argparse.Namespace) -> None:
    """Check a client strategy of the user's own."""
    from fedsim.study import config
    from fedsim.testing import check_client_strategy

    for name in check_client_strategy(config.build("client", args.client)):
        print(f"passed: {name}")


def add_data_options(sub: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fedsim data``."""
    sub.add_argument("--data-dir", metavar="DIR", help=DATA_DIR_HELP)


def data(args: argparse.Namespace) -> None:
    """List the datasets, and where their files are."""
    from fedsim.data import idx

    print("digits           1,797 images 8 x 8, bundled with scikit-learn; no download (the default)")
    print("article          1,000 x 100 random inputs, 10 classes; its labels are pure noise")
    print("article_teacher  the same inputs, labelled by a random network: learnable")
    for source in (idx.MNIST, idx.FASHION_MNIST):
        print(f"{source.name:16} 70,000 images 28 x 28; {source.describe_location(args.data_dir)}")
    print("synthetic        synthetic(alpha, beta): FedProx's 30 devices of 60 features, 10 classes; made here")
    print("synthetic_iid    the same with one model for all devices")
    print("fcube            NIID-Bench's 4,000 points in a cube, 2 classes, 4 clients by octants; made here")
    print("table            table('FILE', label='COLUMN', client_column='COLUMN'): your own CSV or Parquet file")
    print("hub              hub('NAME', label='COLUMN'): the Hugging Face hub, or a folder of save_to_disk (extra hub)")
