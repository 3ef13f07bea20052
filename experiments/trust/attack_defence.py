"""Which defence withstands which attack? Each attack against each server strategy, for IID and non-IID data.

Prints the test accuracy, and the success rate of targeted attacks, with 95 % intervals over the seeds; writes them as
CSV and as heatmaps, in which bright is good for the defender. A fifth of the clients are malicious, except for model
replacement, which a single client tries. The defences know how many clients are malicious, where they need it. Clients
take few steps on small batches, so that their updates differ. The defaults are 1,560 runs: about three minutes on two
cores.
"""

from __future__ import annotations

import multiprocessing
import os
from argparse import ArgumentDefaultsHelpFormatter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fedsim import Experiment, servers
from fedsim.attacks import (
    Attack,
    Backdoor,
    FreeRider,
    GaussianAttack,
    InnerProduct,
    LabelFlip,
    LittleIsEnough,
    MinMax,
    MinSum,
    ModelReplacement,
    SignFlip,
)
from fedsim.checks import check_choice, check_integer, check_real, check_seed
from fedsim.cli.guard import Parser, guard
from fedsim.clients import SGD
from fedsim.errors import ConfigError, DivergenceError
from fedsim.files import writable_directory, write_csv
from fedsim.report.intervals import half_width, with_interval
from fedsim.report.style import saved_figure
from fedsim.splits import IID, Dirichlet

ATTACKS: dict[str, type[Attack] | partial[Any] | None] = {
    "none": None,
    "free-rider": FreeRider,
    "label-flip": LabelFlip,
    "7-as-1": partial(LabelFlip, source=7, target=1),
    "sign-flip": partial(SignFlip, scale=2.0),
    "gaussian": GaussianAttack,
    "inner-product": InnerProduct,
    "little": partial(LittleIsEnough, z=1.5),
    "min-max": MinMax,
    "min-sum": MinSum,
    "backdoor": Backdoor,
    "replacement": ModelReplacement,
}
#: Attacks that have a success rate.
TARGETED = ("7-as-1", "backdoor", "replacement")


def defences(clients: int, malicious: int) -> dict[str, partial[Any]]:
    """Return the server strategies by name, for rounds of so many clients, some of them malicious."""
    known = {"num_malicious_nodes": malicious}
    return {
        "FedAvg": partial(servers.FedAvg),
        "FedMedian": partial(servers.FedMedian),
        "FedTrimmedAvg": partial(servers.FedTrimmedAvg, beta=min(malicious / clients + 1e-9, 0.49)),
        "Krum": partial(servers.Krum, **known),
        "MultiKrum": partial(servers.MultiKrum, num_nodes_to_select=clients - malicious, **known),
        "Bulyan": partial(servers.Bulyan, num_malicious_nodes=min(malicious, (clients - 3) // 4)),
        "RFA": partial(servers.RFA),
        "CenteredClipping": partial(servers.CenteredClipping),
        "NormBounding": partial(servers.NormBounding),
        "NormBounding+noise": partial(servers.NormBounding, noise=0.01),
        "FLTrust": partial(servers.FLTrust),
        "FoolsGold": partial(servers.FoolsGold),
        "SpectralFilter": partial(servers.SpectralFilter, **known),
    }


class Cell(NamedTuple):
    """A run of the matrix."""

    split: str
    attack: str
    defence: str
    experiment: Experiment


def run(cell: Cell) -> tuple[float, float, bool]:
    """Return the accuracy, the attack success, and whether the run diverged, which counts as an accuracy of 0."""
    try:
        result = cell.experiment.run(workers=1)
    except DivergenceError:
        return 0.0, float("nan"), True
    return result.final_accuracy, float(result.history["attack_success"].iloc[-1]), False


def measure(cells: Sequence[Cell], jobs: int) -> pd.DataFrame:
    """Run the cells, and return a row for each split, attack and defence, with means over the seeds."""
    if jobs == 1:
        found: Iterable[tuple[float, float, bool]] = map(run, cells)
        rows = [(*cell[:3], *values) for cell, values in zip(cells, found, strict=True)]
    else:
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            rows = [(*cell[:3], *values) for cell, values in zip(cells, pool.map(run, cells, chunksize=8), strict=True)]
    runs = pd.DataFrame(rows, columns=["split", "attack", "defence", "accuracy", "success", "diverged"])
    groups = runs.groupby(["split", "attack", "defence"], sort=False)
    table = groups[["accuracy", "success"]].agg(["mean", half_width])
    table.columns = pd.Index(["accuracy", "accuracy_ci95", "success", "success_ci95"])
    return table.assign(seeds=groups.size(), diverged=groups["diverged"].sum()).reset_index()


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--attacks", nargs="+", metavar="NAME", default=list(ATTACKS), help="attacks, by name")
    names = list(defences(30, 6))
    parser.add_argument("--defences", nargs="+", metavar="NAME", default=names, help="server strategies, by name")
    parser.add_argument("--clients", type=int, default=30, help="number of clients, at least 5")
    parser.add_argument("--fraction", type=float, default=0.2, help="share of malicious clients, less than a half")
    parser.add_argument("--alpha", type=float, default=0.3, help="of the Dirichlet split")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--steps", type=int, default=2, help="steps of a client in a round, on batches of 5 examples")
    parser.add_argument("--lr", type=float, default=0.3, help="learning rate")
    parser.add_argument("--seeds", type=int, metavar="N", default=5, help="number of seeds")
    parser.add_argument("--first-seed", type=int, metavar="N", default=100, help="the first of them")
    parser.add_argument("--jobs", type=int, metavar="N", default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--out", metavar="DIR", default="results/attack_defence")
    args = parser.parse_args()
    for field, value, least in (("seeds", args.seeds, 1), ("jobs", args.jobs, 1), ("clients", args.clients, 5)):
        check_integer(f"--{field}", value, least)
    check_seed("--first-seed", args.first_seed)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    check_real("--fraction", args.fraction, 0, 0.5, open_low=True, open_high=True)
    known = defences(args.clients, max(round(args.fraction * args.clients), 1))
    for field, chosen, allowed in (("attacks", args.attacks, list(ATTACKS)), ("defences", args.defences, list(known))):
        for name in chosen:
            check_choice(f"--{field}", name, allowed)
        if len(set(chosen)) < len(chosen):
            raise ConfigError(f"--{field} is {' '.join(chosen)}; allowed: each name once")
    client = SGD(lr=args.lr, batch_size=5, steps=args.steps)
    base = Experiment(client=client, rounds=args.rounds, on_failure="exclude", kernel="compiled")
    splits = {"IID": IID(args.clients), f"Dirichlet({args.alpha:g})": Dirichlet(args.clients, alpha=args.alpha)}
    out = writable_directory(args.out)

    cells = []
    for split, value in splits.items():
        for defence in args.defences:
            for attack in args.attacks:
                make = ATTACKS[attack]
                fraction = 1 / args.clients if attack == "replacement" else args.fraction
                made = make(fraction=fraction) if make else None
                one = replace(base, split=value, server=known[defence], attack=made)
                cells += [Cell(split, attack, defence, replace(one, seed=seed)) for seed in seeds]
    frame = measure(cells, args.jobs)

    for split in splits:
        show(frame[frame["split"] == split], "accuracy", f"test accuracy, {split}")
        show(frame[(frame["split"] == split) & frame["success"].notna()], "success", f"attack success, {split}")
    print(f"95 % intervals over {args.seeds} seeds; {int(frame['diverged'].sum())} of {len(cells)} runs diverged.")
    title = f"digits, {args.clients} clients, {args.fraction:.0%} malicious (replacement: one), {args.rounds} rounds"
    draw(frame, list(splits), out / "attack_defence.png", title)
    write_csv(out / "attack_defence.csv", frame)
    print(f"wrote attack_defence.csv, attack_defence.png to {out}")


def show(frame: pd.DataFrame, column: str, title: str) -> None:
    """Print a table with a row per defence and a column per attack."""
    if len(frame):
        pairs = zip(frame[column], frame[f"{column}_ci95"], strict=True)
        text = frame.assign(text=[with_interval(mean, half, 2) for mean, half in pairs])
        table = text.pivot(index="defence", columns="attack", values="text")
        print(title, table.reindex(frame["defence"].unique())[list(frame["attack"].unique())].to_string(), sep="\n")
        print()


def draw(frame: pd.DataFrame, splits: Sequence[str], path: Path, title: str) -> None:
    """Draw a heatmap of accuracy for each split, and one of attack success if there is a targeted attack."""
    attacks, rows = list(frame["attack"].unique()), list(frame["defence"].unique())
    targeted = [name for name in attacks if name in TARGETED]
    panels = [("test accuracy", "accuracy", attacks, "cividis")]
    panels += [("attack success", "success", targeted, "cividis_r")] if targeted else []
    wide = [len(columns) for *_, columns, _ in panels]
    width, height = 2.6 + 0.46 * sum(wide), 0.8 + len(splits) * (1.2 + 0.23 * len(rows))
    with saved_figure(path, max(width, 6.5), height) as figure:
        grid = figure.subplots(len(splits), len(panels), squeeze=False, width_ratios=wide)
        for split, line in zip(splits, grid, strict=True):
            part = frame[frame["split"] == split]
            for axes, (name, column, columns, colours) in zip(line, panels, strict=True):
                values = part.pivot(index="defence", columns="attack", values=column).reindex(rows)[columns].to_numpy()
                axes.imshow(values, vmin=0, vmax=1, cmap=colours, aspect="auto")
                for (y, x), value in np.ndenumerate(values):
                    bright = value > 0.5 if column == "accuracy" else value < 0.5
                    text = "" if value != value else f"{value:.2f}"
                    axes.text(x, y, text, ha="center", va="center", size=7.5, color="black" if bright else "white")
                axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor")
                axes.set_yticks(range(len(rows)), rows if axes is line[0] else [""] * len(rows))
                axes.tick_params(length=0)
                axes.grid(visible=False)
                axes.spines[:].set_visible(False)
                axes.set_title(f"{name}, {split}" if axes is line[0] else name, fontsize=10)
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")


if __name__ == "__main__":
    guard(main)
