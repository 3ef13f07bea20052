"""Whom does the model come from? Contributions of eight clients by four methods, and the influence on each class.

The clients differ in the number of their examples and in the share of wrong labels, and one is a free rider, which
sends back the model that it received. Leave-one-out, Monte Carlo Shapley and exact Shapley values retrain coalitions of
clients; GTG-Shapley reads the updates of a single run. A table has the correlations with the exact values. With --alpha
the clients differ in their labels instead. A heatmap has the influence of each client's removal on the recall of each
class, for clients with a few digits each. The last table is of a client that is unlearned by retraining.
"""

from __future__ import annotations

from argparse import ArgumentDefaultsHelpFormatter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedsim.cli.guard import Parser, guard
from fedsim.clients import SGD, Array, Context
from fedsim.contribution import (
    ClassInfluence,
    Contributions,
    Retraining,
    class_influence,
    combine,
    exact_shapley,
    gtg_shapley,
    leave_one_out,
    monte_carlo_shapley,
    repeat,
    unlearn,
)
from fedsim.files import writable_directory, write_csv
from fedsim.report.intervals import with_interval
from fedsim.report.style import COLOURS, saved_figure
from fedsim.splits import IID, Dirichlet, LabelNoise, Shards
from fedsim.study.experiment import Experiment
from fedsim.study.progress import ProgressBar

#: Examples of each client; label noise increases from the first client to the last.
SIZES = (240, 240, 160, 160, 80, 80, 240, 240)
FREE_RIDER = 6
METHODS = ("exact Shapley", "Monte Carlo Shapley", "GTG-Shapley", "leave-one-out")


class FreeRider(SGD):
    """SGD, but one client sends back the model that it received."""

    def train(self, ctx: Context) -> Array:
        return np.where((ctx.partition_ids == FREE_RIDER)[:, None], ctx.global_weights, ctx.fit())


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hidden", type=int, nargs="*", default=[], help="widths of hidden layers")
    parser.add_argument("--noise", type=float, default=0.8, help="share of wrong labels of the last client")
    parser.add_argument("--alpha", type=float, help="clients differ in their labels, by a Dirichlet split, instead")
    parser.add_argument("--permutations", type=int, metavar="N", default=40, help="of Monte Carlo Shapley")
    parser.add_argument("--seeds", type=int, metavar="N", default=3, help="number of seeds, with the same clients")
    parser.add_argument("--out", metavar="DIR", default="results/contribution")
    args = parser.parse_args()
    out = writable_directory(args.out)

    quality = LabelNoise(IID(len(SIZES), sizes=SIZES), high=args.noise)
    experiment = Experiment(hidden=tuple(args.hidden), rounds=args.rounds, split=quality, client=FreeRider(lr=0.3))
    if args.alpha is not None:
        experiment = replace(experiment, split=Dirichlet(len(SIZES), alpha=args.alpha), client=SGD(lr=0.3))
    with ProgressBar(args.seeds * 2 ** len(SIZES) * args.rounds, leave=False) as bar:
        parts = measure(experiment, args.seeds, args.permutations, bar)
    means = [combine(seeds) for seeds in parts]
    print("contributions to the test accuracy, 95 % intervals over the seeds:")
    print(table(means).to_string())
    print("\ncorrelation of the means over seeds with the exact values (lowest of a seed); trainings per seed:")
    print(correlations(parts).to_string(index=False))
    digits = Experiment(split=Shards(len(SIZES), per_client=2), hidden=(), rounds=10, client=SGD(lr=0.3))
    classes = class_influence(digits, seeds=args.seeds)
    print("\nclient 0, of eight with 20 examples, is unlearned; AUC of membership inference on its examples:")
    print(unlearning(args.seeds).to_string(float_format="{:.3f}".format))

    write_csv(out / "contribution.csv", pd.concat([part.to_frame() for part in means]))
    write_csv(out / "class_influence.csv", classes.to_frame())
    draw(means, classes, experiment, out / "contribution.png")
    print(f"wrote contribution.csv, class_influence.csv, contribution.png to {out}")


def measure(experiment: Experiment, seeds: int, permutations: int, bar: ProgressBar) -> list[list[Contributions]]:
    """Return the contributions by each of `METHODS`, for each seed."""
    found: list[list[Contributions]] = [[] for _ in METHODS]
    for repeated in repeat(experiment, seeds):
        game = Retraining(repeated, callbacks=[bar])  # trains each coalition once for all methods
        values = (
            exact_shapley(game),
            monte_carlo_shapley(game, permutations=permutations, tolerance=0.005),
            gtg_shapley(repeated, callbacks=[bar]),
            leave_one_out(game),
        )
        for method, value in zip(found, values, strict=True):
            method.append(value)
    return found


def table(parts: list[Contributions]) -> pd.DataFrame:
    """Return a row per client with its contribution by each method."""
    columns = {part.method: list(map(with_interval, part.values, part.half_widths)) for part in parts}
    return pd.DataFrame(columns, index=pd.Index(parts[0].clients, name="client"))


def correlations(parts: list[list[Contributions]]) -> pd.DataFrame:
    """Return a row per method: the correlations with the exact values, and the number of trainings."""
    rows = []
    exact, *others = parts
    for seeds in others:
        pairs = [(combine(exact), combine(seeds)), *zip(exact, seeds, strict=True)]
        row: dict[str, Any] = {"method": seeds[0].method}
        for name in ("pearson", "spearman"):
            mean, *single = [pd.Series(a.values).corr(pd.Series(b.values), method=name) for a, b in pairs]
            row[name] = f"{mean:.3f} ({min(single):.3f})"
        trained = 1 if seeds[0].method == "GTG-Shapley" else np.mean([part.evaluations - 1 for part in seeds])
        rows.append(row | {"trainings": f"{trained:.0f}"})
    return pd.DataFrame(rows)


def unlearning(seeds: int) -> pd.DataFrame:
    """Return the scores before and after a client has been unlearned from a model that overfits, mean over seeds."""
    small = Experiment(split=IID(8, sizes=(20,) * 8), client=SGD(epochs=5), rounds=10)
    frames = [unlearn(repeated, 0).to_frame() for repeated in repeat(small, seeds)]
    return sum(frames[1:], frames[0]) / len(frames)


def describe_clients(experiment: Experiment) -> list[str]:
    """Return each client's number of examples, and its share of wrong labels or its most frequent label."""
    split = experiment.split
    if isinstance(split, LabelNoise):
        texts = [
            f"{size}\n{level:.0%}" for size, level in zip(SIZES, np.linspace(0, split.high, len(SIZES)), strict=True)
        ]
        texts[FREE_RIDER] = f"{SIZES[FREE_RIDER]}\nfree rider"
        return texts
    counts = experiment.federate(experiment.load_data()).label_counts()
    return [f"{row.sum()}\nmost {row.argmax()}" for row in counts]


def draw(parts: list[Contributions], classes: ClassInfluence, experiment: Experiment, path: Path) -> None:
    """Draw the contributions as bars with error bars, and the influence on each class as a heatmap."""
    with saved_figure(path, 11.5, 4.4) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
        width = 0.8 / len(parts)
        for k, (part, colour) in enumerate(zip(parts, COLOURS, strict=False)):
            places = part.clients + (k - (len(parts) - 1) / 2) * width
            left.bar(places, part.values, width, color=colour, label=part.method)
            left.errorbar(places, part.values, part.half_widths, fmt="none", ecolor="#444444", elinewidth=1, capsize=2)
        left.set_xticks(parts[0].clients, describe_clients(experiment))
        left.set_xlabel("clients: number of examples, and share of wrong labels or most frequent label")
        left.set_ylabel("contribution to the test accuracy")
        left.axhline(0, color="black", lw=0.8)
        left.set_title("Contributions, 95 % intervals over seeds", fontsize=11)
        left.legend(frameon=False)
        left.grid(axis="x", visible=False)

        values = -classes.influence
        image = right.imshow(values, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
        for client, row in enumerate(values):
            for label, value in enumerate(row):
                colour = "white" if abs(value) > 0.6 else "black"
                text = f"{value:+.2f}" if abs(value) >= 0.005 else "0"
                right.text(label, client, text, ha="center", va="center", fontsize=7, color=colour)
        right.set_xticks(range(len(classes.label_names)), classes.label_names)
        right.set_yticks(range(len(classes.clients)), classes.clients.tolist())
        right.set_xlabel("class (digit)")
        right.set_ylabel("removed client, with two shards of digits")
        right.set_title("Change of the recall without a client", fontsize=11)
        right.grid(visible=False)
        figure.colorbar(image, ax=right, label="recall without it, minus recall with all")


if __name__ == "__main__":
    guard(main)
