"""Which algorithm, when, and how sure are we: five client strategies on five degrees of label skew, with five seeds.

The learning rate of each algorithm is chosen for each degree of skew with other seeds than are reported. The study is
written to a directory: if it is killed, the same command continues it.
"""

from __future__ import annotations

from argparse import ArgumentDefaultsHelpFormatter
from pathlib import Path

from fedsim.cli.guard import Parser, guard
from fedsim.clients import SCAFFOLD, SGD, FedDyn, FedProx, FedSAM
from fedsim.report.style import COLOURS, saved_figure
from fedsim.splits import Dirichlet
from fedsim.study.compare import compare
from fedsim.study.experiment import Experiment
from fedsim.study.study import Study


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--alpha", type=float, nargs="+", default=[0.05, 0.1, 0.3, 1.0, 10.0], help="of the splits")
    parser.add_argument(
        "--lr", type=float, nargs="+", default=[0.03, 0.1, 0.3, 1.0], help="learning rates to choose from"
    )
    parser.add_argument("--clients", type=int, metavar="K", default=20, help="number of clients")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seeds", type=int, metavar="N", default=5, help="number of seeds that are reported")
    parser.add_argument("--tune-seeds", type=int, metavar="N", default=2, help="number of seeds to choose with")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at the same time, else one per core")
    parser.add_argument("--out", metavar="DIR", default="results/study_dirichlet")
    args = parser.parse_args()

    settings = {"epochs": 5, "batch_size": 10}
    study = compare(
        Experiment(split=Dirichlet(args.clients, alpha=1.0), fraction_train=0.5, rounds=args.rounds),
        client=[
            SGD(**settings),
            FedProx(**settings, proximal_mu=0.1),
            SCAFFOLD(**settings),
            FedDyn(**settings),
            FedSAM(**settings),
        ],
        split=[Dirichlet(args.clients, alpha=alpha) for alpha in args.alpha],
        seeds=args.seeds,
        tune={"client.lr": args.lr},
        tune_seeds=args.tune_seeds,
        jobs=args.jobs,
        directory=args.out,
    )
    print(study)
    print(conclusion(study))
    plot(study, args.alpha, Path(args.out) / "accuracy_by_alpha.png")
    print(f"wrote the runs, {', '.join([*study.files, 'accuracy_by_alpha.png'])} to {args.out}")


def conclusion(study: Study) -> str:
    """Return which differences from FedAvg hold, in a sentence for each split."""
    tests = study.test(axis="client", reference="SGD")
    lines = []
    for split, rows in tests.groupby("split", sort=False):
        held = rows[rows["holds"].fillna(False)]
        found = [f"{row.variant} {row.difference:+.3f} (p = {row.p_holm:.2g})" for row in held.itertuples()]
        lines.append(f"{split}: {', '.join(found) or 'no difference from SGD (FedAvg) holds'}")
    return "\n".join(["Against SGD (FedAvg), Holm's correction for all of these tests:", *lines])


def plot(study: Study, alphas: list[float], path: Path) -> None:
    """Plot final accuracy against alpha, a line per algorithm with its 95 % interval."""
    summary = study.summary()
    with saved_figure(path, 8, 4.6) as figure:
        axes = figure.subplots()
        for number, (client, rows) in enumerate(summary.groupby("client", sort=False)):
            shift = 1.04 ** (number - 2)  # so that intervals do not cover each other
            axes.errorbar(
                [alpha * shift for alpha in alphas],
                rows["final_accuracy"],
                rows["final_accuracy_ci95"],
                color=COLOURS[number],
                marker="o",
                markersize=4,
                capsize=3,
                label=client,
            )
        axes.set(xscale="log", xlabel="alpha of the Dirichlet split (smaller is more skewed)", ylabel="test accuracy")
        axes.set_xticks(alphas, [f"{alpha:g}" for alpha in alphas])
        axes.minorticks_off()
        axes.legend(loc="lower right", frameon=False)
        seeds = len(study.variants[0].results)
        axes.set_title(f"Accuracy by label skew: digits, mean of {seeds} seeds with 95 % intervals", fontsize=11)


if __name__ == "__main__":
    guard(main)
