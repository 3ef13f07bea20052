"""``fedsim flower``, ``strategies``, ``check`` and ``data``."""

from __future__ import annotations

import argparse

from fedsim.cli import options


def add_flower_options(sub: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fedsim flower``."""
    sub.add_argument("folder", metavar="APP_DIR", help="the app's folder, with a pyproject.toml")
    sub.add_argument("--nodes", metavar="N", type=int, help="number of SuperNodes (default: the app's, else 10)")
    about = "change the run configuration; repeatable"
    sub.add_argument("--run-config", metavar="KEY=VALUE", help=about, **options.REPEATABLE)
    sub.add_argument("--workers", metavar="N", type=int, help="number of threads (default: one per core)")
    options.add(sub, "--verbose")


def flower(args: argparse.Namespace) -> None:
    """Run any Flower app in this process, without Ray."""
    from fedsim.apps.app_folder import run_app

    seconds = run_app(args.folder, args.nodes, args.run_config, args.workers, args.verbose)
    print(f"the app ran for {seconds:.1f} s")


def strategies(args: argparse.Namespace) -> None:
    """List client and server strategies with their parameters and papers."""
    from fedsim.report.catalogue import catalogue

    print(catalogue(), end="")


def add_check_options(sub: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fedsim check``."""
    sub.add_argument("client", metavar="STRATEGY", help="such as my_module:MyStrategy or 'my_module:MyStrategy(mu=1)'")
    sub.add_argument("-v", "--verbose", action="store_true", help="show the traceback of the first error")


def check(args: argparse.Namespace) -> None:
    """Check a client strategy of your own, and report what to fix."""
    from fedsim.study import config
    from fedsim.testing import check_client_strategy

    for name in check_client_strategy(config.build("client", args.client)):
        print(f"passed: {name}")


def add_data_options(sub: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fedsim data``."""
    options.add(sub, "--data-dir")


def data(args: argparse.Namespace) -> None:
    """List the datasets and the locations of their files."""
    from fedsim.data import adult, idx

    print("digits           1,797 images 8 x 8, bundled with scikit-learn (the default)")
    print("article          1,000 x 100 random inputs, 10 classes; random labels")
    print("article_teacher  the same inputs; learnable labels, from a random network")
    for source in (idx.MNIST, idx.FASHION_MNIST, adult.ADULT):
        print(f"{source.name:16} {source.contents}; {source.describe_location(args.data_dir)}")
    print("synthetic        synthetic(alpha, beta): FedProx's 30 devices of 60 features, 10 classes; generated")
    print("synthetic_iid    the same with one true model for all devices")
    print("fcube            NIID-Bench's 4,000 points in a cube, 2 classes, 4 clients by octants; generated")
    print("table            table('FILE', label='COLUMN', client_column='COLUMN'): your own CSV or Parquet file")
    print("hub              hub('NAME', label='COLUMN'): the Hugging Face hub, or a folder of save_to_disk (extra hub)")
