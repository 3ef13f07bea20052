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

from fedsim import Experiment
from fedsim.checks import check_integer, check_real
from fedsim.cli.guard import Parser, guard
from fedsim.clients import SGD, Ditto, FedPer, FineTune, LocalOnly
from fedsim.data import Dataset, adult, load
from fedsim.fairness import GAPS, FairFed, Reweighing, group_gaps, group_report
from fedsim.files import writable_directory, write_csv
from fedsim.privacy import CentralDP, ExampleDP
from fedsim.report.intervals import half_width
from fedsim.report.style import COLOURS, saved_figure
from fedsim.splits import IID, Natural
from fedsim.study.baselines import centralised

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
    parser.add_argument("--part", choices=("gaps", "noise", "both"), default="both", help="what to measure")
    parser.add_argument("--people", type=int, metavar="N", default=32_561, help="training people of Adult, at random")
    parser.add_argument("--min-examples", type=int, metavar="N", default=20, help="fewest people of a rate")
    parser.add_argument("--seeds", type=int, metavar="N", default=3, help="number of seeds")
    parser.add_argument("--out", metavar="DIR", default="results/fairness_groups")
    args = parser.parse_args()
    for name, least in (("rounds", 1), ("people", 100), ("min_examples", 1), ("seeds", 1)):
        check_integer(f"--{name.replace('_', '-')}", getattr(args, name), least)
    for epsilon in args.epsilon:
        check_real("--epsilon", epsilon, 0, open_low=True)
    dataset = prepare(load("adult", args.data_dir), args.people)
    out = writable_directory(args.out)

    if args.part != "noise":
        gaps = measure_gaps(dataset, args)
        print_gaps(gaps, args)
        write_csv(out / "fairness_groups.csv", gaps)
        draw_gaps(gaps, out / "fairness_groups.png", f"Gaps between groups on Adult, one client per {args.by}")
        print(f"wrote fairness_groups.csv, fairness_groups.png to {out}")
    if args.part != "gaps":
        noise = measure_noise(dataset, args)
        print_noise(noise)
        write_csv(out / "fairness_noise.csv", noise)
        draw_noise(noise, out / "fairness_noise.png")
        print(f"wrote fairness_noise.csv, fairness_noise.png to {out}")


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


def combine(groups: Mapping[str, Any]) -> list[str]:
    """Return the combination of sex and race of each person."""
    return [", ".join(pair) for pair in zip(*(groups[column] for column in COLUMNS), strict=True)]


def variants(base: Experiment) -> dict[str, Experiment]:
    """Return what is compared, by name."""
    client = base.client
    fair = Reweighing.of(client)
    found = {"centralised": centralised(base), "FedAvg": base}
    found |= {cls.__name__: replace(base, client=cls.of(client)) for cls in (LocalOnly, FineTune, FedPer, Ditto)}
    return found | {
        "Reweighing": replace(base, client=fair),
        "FairFed": replace(base, server=FairFed(beta=1.0)),
        "FairFed, Reweighing": replace(base, client=fair, server=FairFed(beta=1.0)),
        "ExampleDP, epsilon 8": replace(base, privacy=ExampleDP(clip=1.0, epsilon=8.0)),
        "CentralDP, epsilon 8": replace(base, privacy=CentralDP(clip=1.0, epsilon=8.0)),
    }


def measure_gaps(data: Dataset, args: Namespace) -> pd.DataFrame:
    """Return a row per column, variant and seed: accuracy and gaps on the clients' held-out people together."""
    rows = []
    base = Experiment(
        dataset=data, split=Natural(args.by), client=SGD(lr=0.1, batch_size=64), rounds=args.rounds,
        fraction_evaluate=1.0, test_fraction=0.2, sensitive=BOTH,
    )  # fmt: skip
    for name, experiment in variants(base).items():
        for seed in range(args.seeds):
            counts = replace(experiment, seed=seed).run().groups
            last = counts[(counts["round"] == args.rounds) & (counts["partition_id"] >= 0)]
            accuracy = last["correct"].sum() / last["num_examples"].sum()
            for k, column in enumerate(COLUMNS):
                groups = last.assign(group=last["group"].str.split(", ").str[k])
                found = group_gaps(groups, by=["round"], min_examples=args.min_examples).iloc[0]
                rows.append({"column": column, "variant": name, "seed": seed, "accuracy": accuracy, **found})
    return pd.DataFrame(rows)


def print_gaps(gaps: pd.DataFrame, args: Namespace) -> None:
    """Print a table for each column, with 95 % intervals over the seeds."""
    for column, rows in gaps.groupby("column", sort=False):
        groups = rows.groupby("variant", sort=False)
        print(f"\nby {column}")
        print(pd.DataFrame({name: groups[name].agg(interval) for name in ("accuracy", *GAPS)}).to_string())
        left_out = sorted({name for names in rows["left_out"] for name in names.split(",") if name})
        if left_out:
            print(f"left out where a rate has fewer than {args.min_examples} people: {', '.join(left_out)}")


def interval(values: Sequence[float]) -> str:
    """Return a mean with its 95 % interval."""
    return f"{np.mean(values):.3f} ± {half_width(list(values)):.3f}"


def few_eights() -> Dataset:
    """Return the digits with few training images of an eight; the groups are eights and the other digits."""
    digits = load("digits")
    keep = np.ones(len(digits.y_train), dtype=bool)
    keep[np.flatnonzero(digits.y_train == 8)[FEW:]] = False
    train, test = (np.where(y == 8, "eights", "other digits") for y in (digits.y_train[keep], digits.y_test))
    arrays = digits.x_train[keep], digits.y_train[keep], digits.x_test, digits.y_test
    return Dataset("digits with few eights", *arrays, 10, groups={"digit": train}, groups_test={"digit": test})


def measure_noise(data: Dataset, args: Namespace) -> pd.DataFrame:
    """Return a row per dataset, setting of privacy, seed and group: accuracy on the test set."""
    linear: dict[str, Any] = {"hidden": (), "sensitive": "digit", "positive": 8}
    digits = Experiment(
        dataset=few_eights(), split=IID(5), client=SGD(lr=2.0, batch_size=64), rounds=3 * args.rounds, **linear
    )
    people = Experiment(
        dataset=data, split=IID(10), client=SGD(lr=0.2, batch_size=128), rounds=args.rounds, hidden=(), sensitive="race"
    )
    budgets = sorted(set(args.epsilon))
    rows = []
    for title, base, epsilons in (("digits", digits, budgets), ("Adult by race", people, budgets[:1])):
        settings = {f"{epsilon:g}": ExampleDP(clip=1.0, epsilon=epsilon) for epsilon in epsilons}
        settings |= {"clipping only": ExampleDP(clip=1.0, noise_multiplier=0.0)}
        for name, privacy in [*settings.items(), ("no privacy", None)]:
            for seed in range(args.seeds):
                report = group_report(replace(base, privacy=privacy, seed=seed).run())
                for group, row in report.iterrows():
                    rows.append((title, name, seed, group, int(row["num_examples"]), row["accuracy"]))
    return pd.DataFrame(rows, columns=["dataset", "epsilon", "seed", "group", "num_examples", "accuracy"])


def print_noise(noise: pd.DataFrame) -> None:
    """Print accuracy by group and epsilon."""
    for title, rows in noise.groupby("dataset", sort=False):
        table = rows.groupby(["epsilon", "group"], sort=False)["accuracy"].agg(interval).unstack()
        print(f"\naccuracy by group on {title}, by epsilon of DP-SGD\n{table.to_string()}")


def draw_gaps(gaps: pd.DataFrame, path: Path, title: str) -> None:
    """Plot the gaps of each variant, a panel per column."""
    shown = {"demographic_parity": "demographic parity", "equal_opportunity": "equal opportunity"}
    names = list(dict.fromkeys(gaps["variant"]))
    with saved_figure(path, 9, 4.8) as figure:
        panels = figure.subplots(1, len(COLUMNS), sharey=True)
        for axes, column in zip(panels, COLUMNS, strict=True):
            for k, (gap, label) in enumerate(shown.items()):
                groups = gaps[gaps["column"] == column].groupby("variant", sort=False)[gap]
                half = [np.nan_to_num(half_width(list(values))) for _, values in groups]
                place = np.arange(len(names)) + 0.24 * (k - 0.5)
                axes.errorbar(
                    groups.mean(), place, xerr=half, fmt="os"[k], color=COLOURS[k], ms=5, capsize=2, label=label
                )
            axes.set_title(f"by {column}", fontsize=10)
            axes.set_xlim(left=0)
            axes.set_xlabel("gap between groups (0 is none)")
        panels[0].set_yticks(range(len(names)), names)
        panels[0].invert_yaxis()
        figure.suptitle(title, fontsize=11, fontweight="bold")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)


def draw_noise(noise: pd.DataFrame, path: Path) -> None:
    """Plot accuracy by group from no privacy to the smallest epsilon, a panel per dataset."""
    with saved_figure(path, 9.6, 4.6) as figure:
        panels = figure.subplots(1, 2, width_ratios=[1.3, 1])
        for axes, (title, rows) in zip(panels, noise.groupby("dataset", sort=False), strict=True):
            settings = list(dict.fromkeys(rows["epsilon"]))[::-1]
            for (group, own), colour in zip(rows.groupby("group", sort=False), COLOURS, strict=False):
                by_setting = [list(own["accuracy"][own["epsilon"] == setting]) for setting in settings]
                mean = [np.mean(values) for values in by_setting]
                half = [np.nan_to_num(half_width(values)) for values in by_setting]
                label = f"{group} ({own['num_examples'].iloc[0]:,})"
                axes.errorbar(
                    range(len(settings)), mean, yerr=half, fmt="o-", color=colour, ms=4, capsize=2, label=label
                )
            axes.set_xticks(range(len(settings)), [s.replace(" ", "\n") for s in settings])
            axes.set_xlabel("epsilon of DP-SGD (further right: more private)")
            axes.set_ylim(0 if title == "digits" else 0.7, 1)
            axes.set_title("digits with few eights" if title == "digits" else title, fontsize=10)
            axes.legend(frameon=False, fontsize=8, loc="lower left")
        panels[0].set_ylabel("test accuracy in the group")
        figure.suptitle("Accuracy by group under privacy (test examples in brackets)", fontsize=11, fontweight="bold")


if __name__ == "__main__":
    guard(main)
