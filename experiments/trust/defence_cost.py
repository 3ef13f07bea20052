"""What does a defence cost when nobody attacks? Accuracy of robust server strategies on IID and non-IID data.

All clients are honest and all train in every round. Prints a table, and writes a plot of the accuracy that a defence
loses against FedAvg with the same seed, with 95 % intervals over the seeds.
"""

from __future__ import annotations

from argparse import ArgumentDefaultsHelpFormatter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedsim import Experiment, servers
from fedsim.cli.guard import Parser, guard
from fedsim.clients import SGD
from fedsim.errors import ConfigError
from fedsim.files import writable_directory, write_csv
from fedsim.report.intervals import half_width, with_interval
from fedsim.report.style import COLOURS, saved_figure
from fedsim.splits import IID, Dirichlet, Split


def defences(clients: int, malicious: int) -> dict[str, Any]:
    """Return the defences, for so many clients of which some are expected to be malicious."""
    f = malicious
    return {
        "FedAvg": servers.FedAvg,
        "FedMedian": servers.FedMedian,
        "FedTrimmedAvg": partial(servers.FedTrimmedAvg, beta=f / clients),
        "Krum": partial(servers.Krum, num_malicious_nodes=f),
        "MultiKrum": partial(servers.MultiKrum, num_malicious_nodes=f, num_nodes_to_select=clients - f),
        "Bulyan": partial(servers.Bulyan, num_malicious_nodes=f),
        "RFA": servers.RFA,
        "CenteredClipping": servers.CenteredClipping,
        "NormBounding": servers.NormBounding,
        "NormBounding, noise": partial(servers.NormBounding, noise=0.01),
        "FLTrust": servers.FLTrust,
        "FoolsGold": servers.FoolsGold,
        "FoolsGold, all layers": partial(servers.FoolsGold, output_layer=False),
        "SpectralFilter": partial(servers.SpectralFilter, num_malicious_nodes=f),
    }


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data-dir", help="folder with data files")
    parser.add_argument("--clients", type=int, metavar="N", default=20)
    parser.add_argument("--malicious", type=int, metavar="N", default=4, help="number that defences are set to expect")
    parser.add_argument("--alpha", type=float, default=0.1, help="of the Dirichlet split")
    parser.add_argument("--rounds", type=int, metavar="N", default=30)
    parser.add_argument("--epochs", type=int, metavar="N", default=2, help="local epochs")
    parser.add_argument("--seeds", type=int, metavar="N", default=5, help="number of seeds")
    parser.add_argument("--out", metavar="DIR", default="results/defence_cost")
    args = parser.parse_args()
    if args.seeds < 1:
        raise ConfigError(f"seeds is {args.seeds}; allowed: a whole number, 1 or more")
    if not 0 < args.malicious < args.clients / 2:
        raise ConfigError(f"malicious is {args.malicious}; allowed: at least 1 and less than half of the clients")
    splits: list[Split] = [IID(args.clients), Dirichlet(args.clients, alpha=args.alpha)]
    base = Experiment(
        dataset=args.dataset, data_dir=args.data_dir, rounds=args.rounds, client=SGD(epochs=args.epochs), kernel="numpy"
    )
    out = writable_directory(args.out)
    frame = measure(base, splits, defences(args.clients, args.malicious), range(args.seeds))
    shown = frame.assign(accuracy=list(map(with_interval, frame["accuracy"], frame["ci95"])))
    table = shown.pivot(index="defence", columns="split", values="accuracy")
    table = table.loc[frame["defence"].unique(), list(map(str, splits))]
    print(table.to_string())
    print(f"{args.clients} honest clients, {args.seeds} seeds; 95 % intervals over the seeds.")
    draw(frame, out / "defence_cost.png", f"Accuracy lost without attack ({args.dataset}, {args.clients} clients)")
    write_csv(out / "defence_cost.csv", frame)
    print(f"wrote defence_cost.csv, defence_cost.png to {out}")


def measure(base: Experiment, splits: list[Split], servers_: dict[str, Any], seeds: range) -> pd.DataFrame:
    """Run each defence on each split and seed; return a row for each defence and split."""
    rows = []
    for split in splits:
        plain = np.zeros(len(seeds))
        for name, server in servers_.items():
            results = [replace(base, split=split, server=server, seed=seed).run() for seed in seeds]
            scores = np.array([result.final_accuracy for result in results])
            plain = scores if name == "FedAvg" else plain
            loss = plain - scores
            mean, half = float(scores.mean()), half_width(list(scores))
            rows.append((name, str(split), mean, half, float(loss.mean()), half_width(list(loss))))
    names = ["defence", "split", "accuracy", "ci95", "lost", "lost_ci95"]
    return pd.DataFrame(rows, columns=names)


def draw(frame: pd.DataFrame, path: Path, title: str) -> None:
    """Plot the accuracy lost against FedAvg: a bar for each defence and split."""
    names = [name for name in frame["defence"].unique() if name != "FedAvg"]
    groups = list(frame.groupby("split", sort=False))
    height = 0.8 / len(groups)
    with saved_figure(path, 7.6, 5.2) as figure:
        axes = figure.subplots()
        for k, ((split, rows), colour) in enumerate(zip(groups, COLOURS, strict=False)):
            found = rows.set_index("defence").loc[names]
            places = np.arange(len(names)) + (k - (len(groups) - 1) / 2) * height
            error = found["lost_ci95"].fillna(0)
            axes.barh(places, found["lost"], height, xerr=error, color=colour, label=str(split), ecolor="0.35")
        axes.axvline(0, color="0.2", lw=0.8)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel("test accuracy of FedAvg minus that of the defence (95 % intervals)")
        axes.set_title(title, fontsize=11, pad=12)
        axes.legend(frameon=False, loc="lower right")


if __name__ == "__main__":
    guard(main)
