"""``fedsim splits``: measures and plots of splits, without training."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedsim.cli import options
from fedsim.errors import ConfigError


def add_options(sub: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fedsim splits``."""
    sub.add_argument("split", nargs="+", help="such as 'IID(50)' 'Shards(50, per_client=2)' 'Dirichlet(50, alpha=0.1)'")
    sub.add_argument("--dataset", default="digits", help="a dataset, or a table's file name (default: digits)")
    options.add_table_options(sub)
    options.add(sub, "--data-dir")
    sub.add_argument("--seed", type=int, default=0, help="seed of the splits (default: 0)")
    sub.add_argument("--out", metavar="FILE", type=options.nonempty_path, help="also plot (.png, .svg or .pdf)")
    kind = "kind of plot: bars, bubbles or sizes (default: bars)"
    sub.add_argument("--kind", default="bars", metavar="KIND", help=kind)
    listed = "number of clients to list per split (default: 10)"
    sub.add_argument("--max-clients", metavar="N", type=int, default=10, help=listed)


def splits(args: argparse.Namespace) -> None:
    """Show the label distribution per client, before training."""
    from fedsim import data
    from fedsim.checks import check_choice, check_integer, check_seed
    from fedsim.report.split_plots import KINDS, plot_splits
    from fedsim.report.tables import shards_table, splits_table
    from fedsim.report.terminal import to_text
    from fedsim.study import config
    from fedsim.text import printable

    check_integer("--max-clients", args.max_clients, 1)
    check_seed("--seed", args.seed)
    check_choice("--kind", args.kind, KINDS)
    if args.out and Path(args.out).exists():
        raise ConfigError(f"{args.out!r} exists and is not overwritten; choose another --out")
    chosen = [config.build("split", text) for text in args.split]
    labels = [str(split) for split in chosen]
    if len(set(labels)) < len(labels):
        labels = args.split
    name = options.table_call(args, args.dataset) or args.dataset
    dataset = data.load(name, args.data_dir)
    federated = {label: split.federate(dataset, args.seed) for label, split in zip(labels, chosen, strict=True)}
    if args.out:
        counts = {label: each.label_counts() for label, each in federated.items()}
        names = {label: each.client_names for label, each in federated.items()}
        plot_splits(counts, args.out, dataset.name, args.kind, dataset.label_names, names)
    print(f"{printable(dataset.name)}: {len(dataset.x_train):,} training examples; means over clients")
    print(to_text(splits_table(federated)))
    for label, each in federated.items():
        print(f"\n{label}\n{to_text(shards_table(each).head(args.max_clients))}")
        if (rest := len(each.partition) - args.max_clients) > 0:
            print(f"... and {rest:,} more clients (--max-clients {len(each.partition)} shows all)")
    if args.out:
        print(f"\nwrote {args.out}")
