"""How non-IID data reduces accuracy, by the distance of the clients' label distributions from the population's.

Zhao et al. (2018, arXiv:1806.00582) found that FedAvg loses accuracy as the earth mover's distance between the clients'
label distributions and the population's grows. Here a share of the examples, from all to none in ten steps, is divided
at random and the rest by label. The plot has one point per step and seed. Without arguments: scikit-learn's digits, 10
clients, 5 seeds; for a setting like the paper's use `--dataset mnist --hidden 200 200`.
"""

from __future__ import annotations

from argparse import ArgumentDefaultsHelpFormatter
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import pearsonr, spearmanr

from fedsim.cli.guard import Parser, guard
from fedsim.clients import SGD
from fedsim.files import keep_earlier, writable_directory, write_csv
from fedsim.report.style import COLOURS, saved_figure
from fedsim.splits import IID, Mixture, Shards, Split
from fedsim.splits.measure import skew
from fedsim.study.compare import compare
from fedsim.study.experiment import Experiment
from fedsim.study.study import Study

FILES = ["points.csv", "accuracy_by_distance.png"]
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--dataset", default="digits", help="fedsim data lists them")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with data files, else $FEDSIM_DATA, else download")
    parser.add_argument(
        "--clients", type=int, metavar="K", default=10, help="number of clients; all train in each round"
    )
    parser.add_argument("--epochs", type=int, metavar="E", default=1, help="local epochs")
    parser.add_argument("--batch-size", type=int, metavar="B", default=10, help="local batch size")
    parser.add_argument("--lr", type=float, default=0.1, help="local learning rate")
    parser.add_argument("--hidden", type=int, nargs="*", metavar="WIDTH", default=[32], help="hidden layers")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seeds", type=int, metavar="N", default=5, help="number of seeds")
    parser.add_argument("--workers", type=int, metavar="N", help="threads, else one per core for large jobs")
    parser.add_argument("--out", metavar="DIR", default="results/how_noniid_hurts")
    args = parser.parse_args()

    k = args.clients
    base = Experiment(
        dataset=args.dataset,
        data_dir=args.data_dir,
        split=IID(k),
        hidden=tuple(args.hidden),
        client=SGD(lr=args.lr, epochs=args.epochs, batch_size=args.batch_size),
        rounds=args.rounds,
    )
    by_label = Shards(k, per_client=1)
    splits: list[Split] = [IID(k), *(Mixture(IID(k), by_label, share) for share in SHARES), by_label]
    out = writable_directory(args.out)
    study = compare(base, split=splits, seeds=args.seeds, workers=args.workers)

    points = measure(study)
    print(points.groupby("iid_share", sort=False)[["emd", "accuracy", "loss"]].mean().round(3).to_string())
    print(conclusion(points))
    if kept := keep_earlier(out, FILES):
        print(f"kept the earlier results in {kept}")
    write_csv(out / "points.csv", points)
    draw(points, out / "accuracy_by_distance.png")
    print(f"wrote {', '.join(FILES)} to {out}")


def measure(study: Study) -> pd.DataFrame:
    """Return a row per split and seed: mean distance, accuracy, and accuracy loss from IID with the same seed."""
    rows = []
    shares = (1.0, *SHARES, 0.0)
    data = study.variants[0].results[0].experiment.load_data()
    for share, variant in zip(shares, study.variants, strict=True):
        for result, iid in zip(variant.results, study.variants[0].results, strict=True):
            rows.append(
                {
                    "iid_share": share,
                    "seed": result.experiment.seed,
                    "emd": skew(result.experiment.federate(data))["emd"].mean(),
                    "accuracy": result.final_accuracy,
                    "loss": iid.final_accuracy - result.final_accuracy,
                }
            )
    return pd.DataFrame(rows)


def conclusion(points: pd.DataFrame) -> str:
    """Return the result in one sentence."""
    linear, ranks = pearsonr(points["emd"], points["loss"]), spearmanr(points["emd"], points["loss"])
    trend = "grows" if linear.statistic > 0 and linear.pvalue < 0.05 else "does not clearly grow"
    return (
        f"Accuracy loss {trend} with the earth mover's distance: correlation {linear.statistic:.2f} "
        f"(p = {linear.pvalue:.1g}), of ranks {ranks.statistic:.2f}, over {len(points)} runs."
    )


def draw(points: pd.DataFrame, path: Path) -> None:
    """Plot accuracy against distance: a point per run and a line through the means."""
    means = points.groupby("iid_share", sort=False)[["emd", "accuracy"]].mean()
    correlation = np.corrcoef(points["emd"], points["accuracy"])[0, 1]
    with saved_figure(path, 7, 4.4) as figure:
        axes = figure.subplots()
        axes.plot(means["emd"], means["accuracy"], color=COLOURS[0], lw=1.2, label="mean of the seeds")
        axes.scatter(points["emd"], points["accuracy"], color=COLOURS[1], s=18, zorder=3, label="one run")
        axes.set_xlabel("earth mover's distance of clients' labels from the population's (mean over clients)")
        axes.set_ylabel("test accuracy of the global model")
        axes.set_title(f"Accuracy with non-IID data (correlation {correlation:.2f})", fontsize=11, pad=12)
        axes.legend(frameon=False, loc="lower left")


if __name__ == "__main__":
    guard(main)
