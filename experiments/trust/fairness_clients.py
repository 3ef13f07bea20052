"""Who is served badly? The mean of the clients' accuracies against their worst decile, by server strategy.

Twenty clients train a linear model on digits; four of them hold their images upside down, and the model cannot serve
all well. Each fair strategy is run with several values of its parameter, and FedAvg with one model for all and with
Ditto's personal models. With --setting labels, each client has few of the digits (Dirichlet(0.1)), and the model has a
hidden layer. Prints the measures of fairness with 95 % intervals over the seeds and writes them, and a plot.
"""

from __future__ import annotations

from argparse import ArgumentDefaultsHelpFormatter, Namespace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fedsim import Experiment, clients, compare, servers
from fedsim.checks import check_integer
from fedsim.cli.guard import Parser, guard
from fedsim.fairness import client_fairness, fairness_measures
from fedsim.files import writable_directory, write_csv
from fedsim.report.intervals import half_width, with_interval
from fedsim.report.style import COLOURS, saved_figure
from fedsim.splits import IID, Dirichlet, Rotation
from fedsim.study.result import Result
from fedsim.study.study import Study, Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Strategy -> its class, its parameter, and the values, from FedAvg's weights to the fairest.
STRATEGIES: dict[str, tuple[Any, str, tuple[float, ...]]] = {
    "q-FedAvg": (servers.QFedAvg, "q", (0.5, 1.0, 2.0)),
    "AgnosticFL": (servers.AgnosticFL, "mixture_learning_rate", (0.03, 0.1, 0.3)),
    "TERM": (servers.TERM, "t", (1.0, 2.0, 5.0)),
    "FedMGDA+": (servers.FedMGDA, "epsilon", (0.02, 0.05, 1.0)),
}
SHOWN = {
    "mean": "mean",
    "worst_decile": "worst decile",
    "worst_decile_gain": "gain",
    "best_decile": "best decile",
    "std": "std",
    "gini": "Gini",
}


class StartLoss(clients.SGD):
    """SGD that reports the loss of the global model, as in the papers, for one more pass over the client's examples."""

    def train(self, ctx: clients.Context) -> clients.Array:
        weights = ctx.fit()
        ctx.loss_sum = ctx.evaluate(ctx.global_weights)[0] * ctx.processed
        return weights


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--setting", choices=["rotated", "labels"], default="rotated", help="how clients differ")
    parser.add_argument("--loss", choices=["training", "start"], default="training", help="the loss clients report")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=[*STRATEGIES], help="beside FedAvg")
    parser.add_argument("--clients", type=int, default=20, help="a fifth of them is the minority if rotated")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=1, help="local epochs")
    parser.add_argument("--lr", type=float, default=0.2, help="learning rate of the clients")
    parser.add_argument("--seeds", type=int, metavar="N", default=5, help="number of seeds")
    parser.add_argument("--workers", type=int, metavar="N", help="threads, else one per core for large jobs")
    parser.add_argument("--out", metavar="DIR", default="results/fairness_clients")
    args = parser.parse_args()
    check_integer("--clients", args.clients, 5)
    out = writable_directory(args.out)

    base = setting(args)
    settings: dict[str, Any] = {"seeds": args.seeds, "workers": args.workers}
    chosen = {name: STRATEGIES[name] for name in args.strategies}
    options = [("FedAvg", np.nan)] + [(name, v) for name, (_, _, values) in chosen.items() for v in values]
    made = [servers.FedAvg, *(partial(cls, **{o: v}) for cls, o, values in chosen.values() for v in values)]
    study = compare(base, server=made, **settings)
    personal = compare(base, client=[clients.Ditto(lr=args.lr, epochs=args.epochs)], **settings)
    options.append(("FedAvg, Ditto", np.nan))
    study = Study((*study.variants, *(Variant({"server": v.title}, v.results) for v in personal.variants)))

    measures = client_fairness(study).drop(columns=["server", "seeds", "clients"])
    frame = pd.concat([pd.DataFrame(options, columns=["strategy", "parameter"]), measures], axis=1)
    for name in ("mean", "worst_decile"):
        gains = [differences(variant, study.variants[0], name) for variant in study.variants]
        frame[f"{name}_gain"] = [float(np.mean(gain)) for gain in gains]
        frame[f"{name}_gain_ci95"] = [half_width(gain) for gain in gains]
    print(table(frame).to_string(index=False))
    print("A client counts once, with its accuracy on its own test examples; 95 % intervals over the seeds.")
    print("gain: of the worst decile over FedAvg with the same seed.")
    draw(frame, study, out / "fairness_clients.png")
    write_csv(out / "fairness_clients.csv", frame)
    print(f"wrote fairness_clients.csv, fairness_clients.png to {out}")


def setting(args: Namespace) -> Experiment:
    """Return the experiment with FedAvg."""
    minority = args.clients // 5
    rotated = Rotation(IID(args.clients), degrees=(0,) * (args.clients - minority) + (180,) * minority)
    return Experiment(
        split=rotated if args.setting == "rotated" else Dirichlet(args.clients, alpha=0.1),
        hidden=() if args.setting == "rotated" else (32,),
        client=(StartLoss if args.loss == "start" else clients.SGD)(lr=args.lr, epochs=args.epochs),
        rounds=args.rounds,
        fraction_evaluate=1.0,
        test_fraction=0.25,
    )


def differences(variant: Variant, other: Variant, name: str) -> list[float]:
    """Return the differences in a measure between runs with the same seed."""
    own, others = ([fairness_measures(last_scores(run))[name] for run in v.results] for v in (variant, other))
    return [a - b for a, b in zip(own, others, strict=True)]


def last_scores(run: Result) -> np.ndarray[Any, Any]:
    """Return the clients' accuracies in the last round, in rising order."""
    return np.sort(run.clients.loc[run.clients["round"] == run.rounds, run.score])


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the measures as text."""
    shown: dict[str, Any] = {
        "strategy": frame["strategy"],
        "parameter": [
            "" if np.isnan(v) else f"{STRATEGIES[s][1]}={v:g}"
            for s, v in zip(frame["strategy"], frame["parameter"], strict=True)
        ],
    }
    for name, heading in SHOWN.items():
        shown[heading] = list(map(with_interval, frame[name], frame[f"{name}_ci95"]))
    return pd.DataFrame(shown)


def draw(frame: pd.DataFrame, study: Study, path: Path) -> None:
    """Plot the frontier of mean and worst decile, and the accuracies of the clients."""
    styles = dict(zip(frame["strategy"].unique(), zip(["#000000", *COLOURS], "sovD^*", strict=False), strict=False))
    with saved_figure(path, 11, 4.9) as figure:
        left, right = figure.subplots(1, 2)
        for name, (colour, mark) in styles.items():
            rows = frame[frame["strategy"] == name]
            style: dict[str, Any] = {"marker": mark, "color": colour, "ms": 11 if mark == "*" else 6}
            x, y = rows["worst_decile"], rows["mean"]
            across, up = rows["worst_decile_gain_ci95"].fillna(0), rows["mean_gain_ci95"].fillna(0)
            left.errorbar(x, y, up, across, fmt="none", ecolor=colour, alpha=0.35, lw=1)
            left.plot(x, y, **style, lw=1.6, label=name)
            draw_clients(right, rows.loc[rows["worst_decile"].idxmax()], study, style)
        left.set_xlabel("worst decile of the clients' accuracies")
        left.set_ylabel("mean of the clients' accuracies")
        left.set_title("Mean against worst decile\n(bars: 95 % of the difference from FedAvg by seed)", fontsize=11)
        left.legend(frameon=False, loc="best", fontsize=9)
        right.set_xlabel("client, from the worst served to the best")
        right.set_ylabel("accuracy on its own test examples")
        right.set_title("Accuracies of the clients in rising order\n(mean over the seeds)", fontsize=11)
        right.set_ylim(top=1.01)
        right.legend(frameon=False, loc="lower right", fontsize=9)


def draw_clients(axes: Axes, row: pd.Series[Any], study: Study, style: dict[str, Any]) -> None:
    """Plot the clients' accuracies in rising order."""
    from matplotlib.ticker import MaxNLocator

    name, value, runs = row["strategy"], row["parameter"], study.variants[int(row.name)].results
    label = name if np.isnan(value) else f"{name}, {STRATEGIES[name][1].split('_')[-1]} = {value:g}"
    mean = np.mean([last_scores(run) for run in runs], axis=0)
    axes.plot(np.arange(1, len(mean) + 1), mean, **style | {"ms": style["ms"] - 2}, lw=1.4, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


if __name__ == "__main__":
    guard(main)
