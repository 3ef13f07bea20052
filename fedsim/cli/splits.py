"""``fedsim splits``: splits of a dataset, before anything is trained."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedsim.cli.options import DATA_DIR_HELP, add_table_options, path, table
from fedsim.errors import ConfigError


def add_options(sub: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fedsim splits``."""
    sub.add_argument("split", nargs="+", help="such as 'IID(50)' 'Shards(50, per_client=2)' 'Dirichlet(50, alpha=0.1)'")
    sub.add_argument("--dataset", default="digits", help="a dataset, or a table's file name (default: digits)")
    add_table_options(sub)
    sub.add_argument("--data-dir", metavar="DIR", help=DATA_DIR_HELP)
    sub.add_argument("--seed", type=int, default=0, help="default: 0")
    sub.add_argument("--out", metavar="FILE", type=path, help="draw a picture too (.png, .svg or .pdf)")
    sub.add_argument(
        "--kind", default="bars", metavar="KIND", help="kind of picture: bars, bubbles or sizes (default: bars)"
    )
    sub.add_argument("--most", metavar="N", type=int, default=10, help="clients shown of each split (default: 10)")


def splits(args: argparse.Namespace) -> None:
    """Print, and draw, the label distribution of each client."""
    from fedsim import data
    from fedsim.checks import check_choice, check_integer, check_seed
    from fedsim.report.split_plots import KINDS, plot_splits
    from fedsim.report.tables import shards_table, splits_table
    from fedsim.study import config

    check_integer("--most", args.most, 1)
    check_seed("--seed", args.seed)
    check_choice("--kind", args.kind, KINDS)
    if args.out and Path(args.out).exists():
        raise ConfigError(f"{args.out!r} exists; give --out another name, nothing is overwritten")
    chosen = [config.build("split", text) for text in args.split]
    labels = [str(split) for split in chosen]
    if len(set(labels)) < len(labels):
        labels = args.split
    name = table(args, args.dataset) or args.dataset
    dataset = data.load(name, args.data_dir)
    held = {label: split.federate(dataset, args.seed) for label, split in zip(labels, chosen, strict=True)}
    if args.out:
        counts = {label: federated.label_counts() for label, federated in held.items()}
        plot_splits(counts, args.out, dataset.name, args.kind, dataset.label_names)
    print(f"{dataset.name}: {len(dataset.x_train):,} training examples; means over clients")
    print(splits_table(held).to_string())
    for label, federated in held.items():
        print(f"\n{label}")
        print(shards_table(federated).head(args.most).to_string())
        if len(federated.partition) > args.most:
            rest = len(federated.partition) - args.most
            print(f"... and {rest:,} more clients (--most {len(federated.partition)} shows all)")
    if args.out:
        print(f"\nwrote {args.out}")
