"""Which examples was the global model trained on? Membership inference against the result of federated averaging.

Members are the examples of all clients' shards, half of the training set; the others are the rest. A share of the
labels is wrong, as in real data: a model can only know such a label by heart. LiRA's shadow models are the clients of
one cohort, so one call of a kernel trains them all. Prints a table and writes the ROC curves of LiRA, on logarithmic
axes.
"""

from __future__ import annotations

import time
from argparse import ArgumentDefaultsHelpFormatter
from dataclasses import replace

import numpy as np
import pandas as pd

from fedsim.cli.guard import Parser, guard
from fedsim.clients import SGD
from fedsim.data import Dataset
from fedsim.files import writable_directory, write_csv
from fedsim.leakage import attack_result
from fedsim.privacy import CentralDP
from fedsim.report.leaks import plot_roc
from fedsim.splits import IID
from fedsim.study.experiment import Experiment


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--dataset", default="digits", help="fedsim data lists them")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with data files, else $FEDSIM_DATA, else download")
    parser.add_argument(
        "--clients", type=int, metavar="K", default=10, help="number of clients; all train in each round"
    )
    parser.add_argument(
        "--examples", type=int, default=1442, help="of the training set that are used; half are members"
    )
    parser.add_argument("--wrong-labels", type=float, metavar="SHARE", default=0.2, help="share of wrong labels")
    parser.add_argument("--hidden", type=int, nargs="*", metavar="WIDTH", default=[100], help="hidden layers")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--epochs", type=int, metavar="E", default=5, help="local epochs")
    parser.add_argument("--shadow-models", type=int, metavar="N", default=64)
    parser.add_argument("--noise", type=float, default=1.0, help="noise multiplier of central DP")
    parser.add_argument("--workers", type=int, metavar="N", help="threads, else one per core")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", metavar="DIR", default="results/membership_inference")
    args = parser.parse_args()
    out = writable_directory(args.out)

    clean = Experiment(dataset=args.dataset, data_dir=args.data_dir).load_data()
    data = with_wrong_labels(clean, args.examples, args.wrong_labels, args.seed)
    k, members = args.clients, len(data.y_train) // 2
    base = Experiment(
        dataset=data,
        split=IID(k, sizes=[members // k] * k),
        hidden=tuple(args.hidden),
        client=SGD(epochs=args.epochs),
        rounds=args.rounds,
        seed=args.seed,
    )
    privacy = CentralDP(clip=0.5, noise_multiplier=args.noise, delta=1e-3)
    settings = {
        "FedAvg": base,
        f"{max(1, args.rounds // 8)} rounds": replace(base, rounds=max(1, args.rounds // 8)),
        "linear model": replace(base, hidden=()),
        "correct labels": replace(base, dataset=with_wrong_labels(clean, args.examples, 0.0, args.seed)),
        "central DP": replace(base, privacy=privacy),
    }
    rows, curves = [], []
    began = time.perf_counter()
    for name, experiment in settings.items():
        result = experiment.run(workers=args.workers)
        attacks = attack_result(result, models=args.shadow_models, seed=args.seed, workers=args.workers)
        for attack, found in attacks.items():
            rows.append(
                {
                    "model": name,
                    "test accuracy": result.final_accuracy,
                    "attack": attack,
                    "AUC": found.auc,
                    "TPR at 1 % FPR": found.tpr_at(0.01),
                    "TPR at 0.1 % FPR": found.tpr_at(0.001),
                }
            )
        lira = attacks["lira"]
        curves.append((f"{name}\n  AUC {lira.auc:.2f}, accuracy {result.final_accuracy:.2f}", *lira.roc()))
        if experiment.privacy:
            epsilon = float(result.history["epsilon"].iloc[-1])
    seconds = time.perf_counter() - began

    frame = pd.DataFrame(rows)
    print(frame.round(3).to_string(index=False))
    print(
        f"{len(settings)} models and {len(settings) * args.shadow_models} shadow models in {seconds:.0f} s; "
        f"central DP: epsilon {epsilon:.1f} of a client at delta 0.001."
    )
    title = f"Membership inference by LiRA ({data.name}, {args.wrong_labels:.0%} wrong labels)"
    plot_roc(curves, out / "membership_inference.png", title)
    write_csv(out / "membership_inference.csv", frame)
    print(f"wrote membership_inference.csv, membership_inference.png to {out}")


def with_wrong_labels(data: Dataset, examples: int, share: float, seed: int) -> Dataset:
    """Return a dataset of the first examples with a random share of wrong training labels."""
    rng = np.random.default_rng(seed)
    y = data.y_train[:examples].copy()
    wrong = rng.random(len(y)) < share
    y[wrong] = (y[wrong] + rng.integers(1, data.num_classes, int(wrong.sum()))) % data.num_classes
    return replace(data, x_train=data.x_train[:examples], y_train=y, groups={})


if __name__ == "__main__":
    guard(main)
