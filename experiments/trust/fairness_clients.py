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
from typing import Any

import numpy as np
import pandas as pd

from fedsim import Experiment, clients, compare, servers
from fedsim.checks import check_integer
from fedsim.cli.guard import Parser, guard
from fedsim.fairness import client_fairness
from fedsim.files import writable_directory, write_csv
from fedsim.report.style import COLOURS, saved_figure
from fedsim.splits import IID, Dirichlet, Rotation
from fedsim.study.study import Study

#: Strategy -> its class, its parameter, and the values, from FedAvg's weights to the fairest.
STRATEGIES: dict[str, tuple[Any, str, tuple[float, ...]]] = {
    "q-FedAvg": (servers.QFedAvg, "q", (0.2, 0.5, 1.0, 2.0)),
    "AgnosticFL": (servers.AgnosticFL, "mixture_learning_rate", (0.01, 0.03, 0.1, 0.3)),
    "TERM": (servers.TERM, "t", (0.5, 1.0, 2.0, 5.0)),
    "FedMGDA+": (servers.FedMGDA, "epsilon", (0.02, 0.05, 0.1, 1.0)),
}
SHOWN = {"mean": "mean", "worst_decile": "worst decile", "best_decile": "best decile", "std": "std", "gini": "Gini"}


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
    parser.add_argument("--clients", type=int, default=20, help="a fifth of them is the minority if rotated")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=1, help="local epochs")
    parser.add_argument("--seeds", type=int, metavar="N", default=5, help="number of seeds")
    parser.add_argument("--workers", type=int, metavar="N", help="threads, else one per core for large jobs")
    parser.add_argument("--out", metavar="DIR", default="results/fairness_clients")
    args = parser.parse_args()
    check_integer("--clients", args.clients, 5)
    out = writable_directory(args.out)

    base = setting(args)
    settings: dict[str, Any] = {"seeds": args.seeds, "workers": args.workers}
    options = [("FedAvg", np.nan)] + [(name, v) for name, (_, _, values) in STRATEGIES.items() for v in values]
    made = [servers.FedAvg, *(partial(cls, **{o: v}) for cls, o, values in STRATEGIES.values() for v in values)]
    study = compare(base, server=made, **settings)
    personal = compare(base, client=[clients.Ditto(epochs=args.epochs)], **settings)
    options.append(("FedAvg, Ditto", np.nan))
    study = Study((*study.variants, *(type(v)({"server": v.title}, v.results) for v in personal.variants)))

    measures = client_fairness(study).drop(columns=["server", "seeds"])
    frame = pd.concat([pd.DataFrame(options, columns=["strategy", "parameter"]), measures], axis=1)
    print(table(frame).to_string(index=False))
    print("A client counts once, with its accuracy on its own test examples; 95 % intervals over the seeds.")
    draw(frame, study, out / "fairness_clients.png", args)
    write_csv(out / "fairness_clients.csv", frame)
    print(f"wrote fairness_clients.csv, fairness_clients.png to {out}")


def setting(args: Namespace) -> Experiment:
    """Return the experiment with FedAvg."""
    minority = args.clients // 5
    rotated = Rotation(IID(args.clients), degrees=(0,) * (args.clients - minority) + (180,) * minority)
    return Experiment(
        split=rotated if args.setting == "rotated" else Dirichlet(args.clients, alpha=0.1),
        hidden=() if args.setting == "rotated" else (32,),
        client=(StartLoss if args.loss == "start" else clients.SGD)(epochs=args.epochs),
        rounds=args.rounds,
        fraction_evaluate=1.0,
        test_fraction=0.25,
    )


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
        pairs = zip(frame[name], frame[f"{name}_ci95"], strict=True)
        shown[heading] = [f"{mean:.3f}" + ("" if np.isnan(half) else f" ± {half:.3f}") for mean, half in pairs]
    return pd.DataFrame(shown)


def draw(frame: pd.DataFrame, study: Study, path: Path, args: Namespace) -> None:
    """Plot the frontier of mean and worst decile, and the accuracies of the clients, in rising order."""
    names = ["FedAvg", *STRATEGIES, "FedAvg, Ditto"]
    with saved_figure(path, 11, 4.8) as figure:
        left, right = figure.subplots(1, 2)
        for name, colour, mark in zip(names, ["#000000", *COLOURS[:5]], "sovD^*", strict=True):
            rows = frame[frame["strategy"] == name]
            x, y = rows["worst_decile"], rows["mean"]
            size = 11 if mark == "*" else 6
            intervals: dict[str, Any] = {
                "xerr": rows["worst_decile_ci95"].fillna(0),
                "yerr": rows["mean_ci95"].fillna(0),
            }
            left.errorbar(x, y, **intervals, fmt="none", ecolor=colour, alpha=0.3, lw=1)
            left.plot(x, y, marker=mark, ms=size, color=colour, lw=1.6, label=name)
            best = int(rows["worst_decile"].idxmax())
            scores = [
                np.sort(r.clients.loc[r.clients["round"] == r.rounds, r.score]) for r in study.variants[best].results
            ]
            value = rows.loc[best, "parameter"]
            label = name if np.isnan(value) else f"{name}, {STRATEGIES[name][1].split('_')[-1]} = {value:g}"
            ranks = np.arange(1, args.clients + 1)
            right.plot(ranks, np.mean(scores, axis=0), marker=mark, ms=size - 2, color=colour, lw=1.4, label=label)
        left.set_xlabel("worst decile of the clients' accuracies")
        left.set_ylabel("mean of the clients' accuracies")
        left.set_title("Mean against worst decile", fontsize=11, pad=10)
        left.legend(frameon=False, loc="lower right", fontsize=9)
        right.set_xlabel("client, from the worst served to the best")
        right.set_ylabel("accuracy on its own test examples")
        right.set_title("The clients, mean over the seeds", fontsize=11, pad=10)
        right.set_ylim(top=1.01)
        right.legend(frameon=False, loc="lower right", fontsize=9)


if __name__ == "__main__":
    guard(main)
