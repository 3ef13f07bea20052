"""What does privacy cost? Test accuracy against epsilon, for IID and non-IID data, with central differential privacy.

The setting is that of experiments/privacy.toml: a linear model, 300 clients, half of them in each round. Prints a table
and writes a plot with 95 % intervals over the seeds; the lines without privacy have clipping and no noise. It needs the
extra "privacy".
"""

from __future__ import annotations

from argparse import ArgumentDefaultsHelpFormatter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from fedsim.cli.guard import Parser, guard
from fedsim.files import writable_directory, write_csv
from fedsim.privacy import CentralDP
from fedsim.privacy.accounting import default_delta
from fedsim.report.intervals import half_width, with_interval
from fedsim.report.style import COLOURS, saved_figure
from fedsim.study import config
from fedsim.study.compare import compare
from fedsim.study.plan import make_plan

STUDY = Path(__file__).parents[1] / "privacy.toml"


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--epsilon", type=float, nargs="+", default=[0.5, 1, 2, 4, 8, 16], help="privacy budgets")
    parser.add_argument("--clip", type=float, default=0.5, help="clipping norm")
    parser.add_argument("--rounds", type=int, help="default: that of experiments/privacy.toml, 40")
    parser.add_argument("--seeds", type=int, metavar="N", default=3, help="number of seeds")
    parser.add_argument("--workers", type=int, metavar="N", help="threads, else one per core for large jobs")
    parser.add_argument("--out", metavar="DIR", default="results/utility_privacy")
    args = parser.parse_args()
    out = writable_directory(args.out)

    plan = make_plan(config.read(STUDY))
    base = replace(plan.base, rounds=args.rounds or plan.base.rounds)
    budgets: list[float] = sorted(set(args.epsilon))
    settings = [CentralDP(clip=args.clip, epsilon=epsilon) for epsilon in budgets]
    none = CentralDP(clip=args.clip, noise_multiplier=0.0)
    splits = plan.axes["split"]
    study = compare(base, split=splits, privacy=[*settings, none], seeds=args.seeds, workers=args.workers)

    rows = []
    for variant, (split, epsilon) in zip(
        study.variants, [(str(s), e) for s in splits for e in [*budgets, np.inf]], strict=True
    ):
        scores = [result.final_accuracy for result in variant.results]
        rows.append((split, epsilon, float(np.mean(scores)), half_width(scores), len(scores)))
    frame = pd.DataFrame(rows, columns=["split", "epsilon", "accuracy", "ci95", "seeds"])
    shown = frame.assign(text=list(map(with_interval, frame["accuracy"], frame["ci95"])))
    print(shown.pivot(index="epsilon", columns="split", values="text").to_string())
    delta = default_delta(splits[0].num_clients)
    print(f"epsilon of all rounds at delta {delta:.2g}; inf is clipping without noise; 95 % intervals over the seeds.")
    draw(frame, out / "utility_privacy.png", f"The cost of differential privacy ({base.dataset}, {base.rounds} rounds)")
    write_csv(out / "utility_privacy.csv", frame)
    print(f"wrote utility_privacy.csv, utility_privacy.png to {out}")


def draw(frame: pd.DataFrame, path: Path, title: str) -> None:
    """Plot accuracy against epsilon: a line and a band per split, and the accuracy without noise as a dashed line."""
    with saved_figure(path, 7.6, 4.6) as figure:
        axes = figure.subplots()
        for (split, rows), colour in zip(frame.groupby("split", sort=False), COLOURS, strict=False):
            finite, without = rows[np.isfinite(rows["epsilon"])], rows[np.isinf(rows["epsilon"])].iloc[0]
            mean, half = finite["accuracy"], finite["ci95"].fillna(0)
            axes.plot(finite["epsilon"], mean, "o-", color=colour, lw=1.8, ms=4, label=str(split))
            axes.fill_between(
                finite["epsilon"], mean - half, (mean + half).clip(upper=1), color=colour, alpha=0.18, lw=0
            )
            axes.axhline(without["accuracy"], color=colour, lw=1.2, ls="--", label=f"{split} without noise")
        ticks = sorted(set(frame["epsilon"][np.isfinite(frame["epsilon"])]))
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_ylim(top=1)
        axes.set_xlabel("epsilon of all rounds (smaller is more private)")
        axes.set_ylabel("test accuracy of the global model")
        axes.set_title(title, fontsize=11, pad=12)
        axes.legend(frameon=False, loc="lower right")


if __name__ == "__main__":
    guard(main)
