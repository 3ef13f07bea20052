"""Whether federating, personalising and privacy widen gaps between groups of people, and what fair strategies cost.

Adult (48,842 people of the US census, income above 50,000 dollars) is divided by a natural column, so that a client is,
for example, a class of worker. Each client holds out a fifth of its people and predicts for them with its own weights;
the counts of all clients are added up, so that a client with ten people counts as ten. A rate over fewer than
`--min-examples` people is left out. The second part adds noise: accuracy by group against epsilon on Adult by race, and
on digits with few images of an eight, in the manner of Bagdasaryan, Poursaeed and Shmatikov, "Differential privacy has
disparate impact on model accuracy", NeurIPS 2019 (arXiv:1905.12101). It needs the extra "privacy" and Adult's files.
"""

from __future__ import annotations

from argparse import ArgumentDefaultsHelpFormatter, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedsim import Experiment
from fedsim.checks import check_integer, check_real
from fedsim.cli.guard import Parser, guard
from fedsim.clients import SGD, Ditto, FedPer, FineTune, LocalOnly
from fedsim.data import Dataset, adult, load
from fedsim.fairness import FairFed, Reweighing, group_gaps, group_report
from fedsim.files import writable_directory, write_csv
from fedsim.privacy import CentralDP, ExampleDP
from fedsim.report.intervals import half_width, with_interval
from fedsim.report.style import COLOURS, saved_figure
from fedsim.splits import IID, Natural
from fedsim.study.baselines import centralised

PARTS = ("gaps", "race", "digits")
#: The columns compared, and the column of their combinations: one run counts for both, because counts add up.
COLUMNS = ("sex", "race")
BOTH = "sex, race"
#: Training images of an eight that are kept, of about 140.
FEW = 60


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data-dir", metavar="DIR", help="folder with adult.data and adult.test, else download")
    parser.add_argument("--by", default="workclass", choices=adult.GROUPS[2:], help="the column that makes clients")
    parser.add_argument("--rounds", type=int, default=10, help="rounds on Adult; three times as many on digits")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1, 4, 16], help="privacy budgets")
    parser.add_argument(
        "--part", choices=PARTS, nargs="+", default=list(PARTS), help="what to measure; digits needs no files"
    )
    parser.add_argument("--people", type=int, metavar="N", default=32_561, help="training people of Adult, at random")
    parser.add_argument("--min-examples", type=int, metavar="N", default=20, help="fewest people of a rate")
    parser.add_argument("--seeds", type=int, metavar="N", default=3, help="number of seeds")
    parser.add_argument("--out", metavar="DIR", default="results/fairness_groups")
    args = parser.parse_args()
    for name, least in (("rounds", 1), ("people", 100), ("min_examples", 1), ("seeds", 1)):
        check_integer(f"--{name.replace('_', '-')}", getattr(args, name), least)
    for epsilon in args.epsilon:
        check_real("--epsilon", epsilon, 0, open_low=True)
    data = prepare(load("adult", args.data_dir), args.people) if {"gaps", "race"} & set(args.part) else few_eights()
    out = writable_directory(args.out)
    for part in dict.fromkeys(args.part):
        name = f"fairness_{part}"
        if part == "gaps":
            frame = measure_gaps(data, args)
            print_gaps(frame, args)
            draw_gaps(frame, out / f"{name}.png", f"Gaps between groups on Adult, one client per {args.by}")
        else:
            title, base = noise_experiment(part, data, args.rounds)
            frame = measure_noise(base, sorted(set(args.epsilon)), args.seeds)
            print(f"\naccuracy by group on {title}, by epsilon of DP-SGD\n{noise_table(frame).to_string()}")
            draw_noise(frame, out / f"{name}.png", f"Accuracy by group under privacy: {title}")
        write_csv(out / f"{name}.csv", frame)
        print(f"wrote {name}.csv, {name}.png to {out}")


def prepare(data: Dataset, people: int) -> Dataset:
    """Return Adult with at most so many training people, and with the combinations of sex and race as groups."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(data.y_train))[:people])
    groups = {name: values[chosen] for name, values in data.groups.items()}
    return replace(
        data,
        x_train=data.x_train[chosen],
        y_train=data.y_train[chosen],
        groups=groups | {BOTH: combine(groups)},
        groups_test={**data.groups_test, BOTH: combine(data.groups_test)},
    )


def combine(groups: Mapping[str, Any]) -> NDArray[np.str_]:
    """Return the combination of sex and race of each person."""
    return np.array([", ".join(pair) for pair in zip(*(groups[column] for column in COLUMNS), strict=True)])


def variants(base: Experiment) -> dict[str, Experiment]:
    """Return what is compared, by name."""
    client = base.client
    found = {"centralised": centralised(base), "FedAvg": base}
    found |= {cls.__name__: replace(base, client=cls.of(client)) for cls in (LocalOnly, FineTune, FedPer, Ditto)}
    return found | {
        "ExampleDP, noise 2": replace(base, privacy=ExampleDP(clip=1.0, noise_multiplier=2.0)),
        "CentralDP, noise 1": replace(base, privacy=CentralDP(clip=1.0, noise_multiplier=1.0)),
    }


def fair_variants(base: Experiment) -> dict[str, Experiment]:
    """Return the strategies that use the groups of the experiment's column."""
    fair = Reweighing.of(base.client)
    return {
        "Reweighing": replace(base, client=fair),
        "FairFed": replace(base, server=FairFed(beta=1.0)),
        "FairFed, Reweighing": replace(base, client=fair, server=FairFed(beta=1.0)),
    }


def measure_gaps(data: Dataset, args: Namespace) -> pd.DataFrame:
    """Return a row per column, variant and seed: accuracy and gaps on the clients' held-out people together."""
    base = Experiment(
        dataset=data, split=Natural(args.by), client=SGD(lr=0.1, batch_size=64), rounds=args.rounds,
        fraction_evaluate=1.0, test_fraction=0.2, sensitive=BOTH,
    )  # fmt: skip
    runs: list[tuple[str, Experiment, Sequence[str]]] = [
        (name, experiment, COLUMNS) for name, experiment in variants(base).items()
    ]
    for column in COLUMNS:
        fair = fair_variants(replace(base, sensitive=column))
        runs += [(name, experiment, (column,)) for name, experiment in fair.items()]
    rows = []
    for name, experiment, columns in runs:
        for seed in range(args.seeds):
            result = replace(experiment, seed=seed).run()
            counts, epsilon = result.groups, result.history["epsilon"].iloc[-1]
            last = counts[(counts["round"] == args.rounds) & (counts["partition_id"] >= 0)]
            accuracy = last["correct"].sum() / last["num_examples"].sum()
            for column in columns:
                part = COLUMNS.index(column) if len(columns) > 1 else 0
                groups = last.assign(group=last["group"].str.split(", ").str[part])
                found = group_gaps(groups, by=["round"], min_examples=args.min_examples).iloc[0]
                rows.append(
                    {"column": column, "variant": name, "seed": seed, "epsilon": epsilon, "accuracy": accuracy, **found}
                )
    return pd.DataFrame(rows)


def print_gaps(gaps: pd.DataFrame, args: Namespace) -> None:
    """Print a table for each column: the means, and the changes from FedAvg with 95 % intervals of the paired seeds."""
    for column, rows in gaps.groupby("column", sort=False):
        shown = {}
        for measure in ("accuracy", "demographic_parity", "equal_opportunity", "accuracy_gap"):
            means = rows.groupby("variant", sort=False)[measure].mean()
            changes = change(rows, measure)
            shown[measure] = [f"{mean:.3f} ({changes.get(name, 'FedAvg')})" for name, mean in means.items()]
        print(f"\nby {column}: mean (change from FedAvg)\n{pd.DataFrame(shown, index=means.index).to_string()}")
        for name, epsilon in rows.groupby("variant", sort=False)["epsilon"].max().dropna().items():
            print(f"{name}: epsilon {epsilon:.2g}")
        left_out = sorted({name for names in rows["left_out"] for name in names.split(",") if name})
        if left_out:
            print(f"left out where a rate has fewer than {args.min_examples} people: {', '.join(left_out)}")


def change(rows: pd.DataFrame, measure: str) -> dict[str, str]:
    """Return the change of a measure from FedAvg with its 95 % interval, by variant."""
    return {name: interval(values, "+") for name, values in paired(rows, measure).items()}


def paired(rows: pd.DataFrame, measure: str) -> dict[str, list[float]]:
    """Return the differences of a measure from FedAvg with the same seed, by variant."""
    table = rows.pivot(index="seed", columns="variant", values=measure)
    names = [name for name in dict.fromkeys(rows["variant"]) if name != "FedAvg"]
    return {name: list(table[name] - table["FedAvg"]) for name in names}


def interval(values: Sequence[float], sign: str = "") -> str:
    """Return a mean with its 95 % interval."""
    return with_interval(float(np.mean(values)), half_width(list(values)), sign=sign)


def few_eights() -> Dataset:
    """Return the digits with few training images of an eight; the groups are eights and the other digits."""
    digits = load("digits")
    keep = np.ones(len(digits.y_train), dtype=bool)
    keep[np.flatnonzero(digits.y_train == 8)[FEW:]] = False
    train, test = (np.where(y == 8, "eights", "other digits") for y in (digits.y_train[keep], digits.y_test))
    arrays = digits.x_train[keep], digits.y_train[keep], digits.x_test, digits.y_test
    return Dataset("digits with few eights", *arrays, 10, groups={"digit": train}, groups_test={"digit": test})


def noise_experiment(part: str, data: Dataset, rounds: int) -> tuple[str, Experiment]:
    """Return the title and the experiment without privacy; its groups are of race or digits."""
    if part == "race":
        client = SGD(lr=0.2, batch_size=128)
        return "Adult by race", Experiment(
            dataset=data, split=IID(10), client=client, rounds=rounds, hidden=(), sensitive="race"
        )
    client, few = SGD(lr=2.0, batch_size=64), few_eights()
    title = f"digits with {FEW} training images of an eight"
    return title, Experiment(
        dataset=few, split=IID(5), client=client, rounds=3 * rounds, hidden=(), sensitive="digit", positive=8
    )


def measure_noise(base: Experiment, budgets: Sequence[float], seeds: int) -> pd.DataFrame:
    """Return a row per setting of privacy, seed and group: accuracy on the test set."""
    settings: dict[str, ExampleDP | None] = {"no privacy": None}
    settings["clipping only"] = ExampleDP(clip=1.0, noise_multiplier=0.0)
    settings |= {f"{epsilon:g}": ExampleDP(clip=1.0, epsilon=epsilon) for epsilon in reversed(budgets)}
    rows = []
    for name, privacy in settings.items():
        for seed in range(seeds):
            report = group_report(replace(base, privacy=privacy, seed=seed).run())
            for group, row in report.iterrows():
                rows.append((name, seed, group, int(row["num_examples"]), row["accuracy"]))
    return pd.DataFrame(rows, columns=["epsilon", "seed", "group", "num_examples", "accuracy"])


def noise_table(noise: pd.DataFrame) -> pd.DataFrame:
    """Return accuracy with its interval, a row per setting and a column per group."""
    table = noise.groupby(["epsilon", "group"], sort=False)["accuracy"].agg(interval).unstack()
    return table.reindex(list(dict.fromkeys(noise["epsilon"])))


def draw_gaps(gaps: pd.DataFrame, path: Path, title: str) -> None:
    """Plot the change of each variant's gaps from FedAvg, a panel per column."""
    shown = {"demographic_parity": "demographic parity", "equal_opportunity": "equal opportunity"}
    with saved_figure(path, 9, 4.8) as figure:
        panels = figure.subplots(1, len(COLUMNS), sharey=True)
        for axes, column in zip(panels, COLUMNS, strict=True):
            for k, (gap, label) in enumerate(shown.items()):
                found = paired(gaps[gaps["column"] == column], gap)
                means = [np.mean(values) for values in found.values()]
                half = [np.nan_to_num(half_width(values)) for values in found.values()]
                place = np.arange(len(found)) + 0.24 * (k - 0.5)
                style: dict[str, Any] = {"fmt": "os"[k], "color": COLOURS[k], "ms": 5, "capsize": 2, "label": label}
                axes.errorbar(means, place, xerr=half, **style)
            axes.axvline(0, color="#666666", lw=1)
            axes.set_title(f"by {column}", fontsize=10)
            axes.set_xlabel("change of the gap from FedAvg's\n(right: wider)")
        panels[0].set_yticks(range(len(found)), list(found))
        panels[0].invert_yaxis()
        figure.suptitle(title, fontsize=11, fontweight="bold")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)


def draw_noise(noise: pd.DataFrame, path: Path, title: str) -> None:
    """Plot accuracy by group, from no privacy to the smallest epsilon."""
    with saved_figure(path, 7.6, 4.6) as figure:
        axes = figure.subplots()
        settings = list(dict.fromkeys(noise["epsilon"]))
        for (group, own), colour in zip(noise.groupby("group", sort=False), COLOURS, strict=False):
            by_setting = [list(own["accuracy"][own["epsilon"] == setting]) for setting in settings]
            mean = np.array([np.mean(values) for values in by_setting])
            half = np.array([np.nan_to_num(half_width(values)) for values in by_setting])
            ends = np.minimum(half, mean), np.minimum(half, 1 - mean)  # an accuracy is between 0 and 1
            label = f"{group} ({own['num_examples'].iloc[0]:,} test examples)"
            axes.errorbar(range(len(settings)), mean, yerr=ends, fmt="o-", color=colour, ms=4, capsize=2, label=label)
        axes.set_xticks(range(len(settings)), settings)
        axes.set_xlabel("epsilon of DP-SGD (further right: more private)")
        axes.set_ylabel("test accuracy in the group")
        axes.set_ylim(top=1.01)
        axes.set_title(title, fontsize=11, pad=12)
        axes.legend(frameon=False, fontsize=9, loc="lower left")


if __name__ == "__main__":
    guard(main)
