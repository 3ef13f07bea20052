"""Which labels does a client have? Its label distribution, inferred from the update of the last layer in one round.

The attacker has the update as the server sees it, and the test set. With non-IID data, the labels are what is private:
which illnesses a hospital treats. Several local epochs and clipping hide little; noise hides the labels. Prints a table
and writes a picture with the first clients' true and inferred label distributions.
"""

from __future__ import annotations

from argparse import ArgumentDefaultsHelpFormatter
from dataclasses import replace

import pandas as pd

from fedsim.cli.guard import Parser, guard
from fedsim.clients import SGD
from fedsim.files import writable_directory, write_csv
from fedsim.leakage import infer_labels, observe
from fedsim.privacy import Clip, LocalDP
from fedsim.report.leaks import plot_labels
from fedsim.splits import IID, Dirichlet
from fedsim.study.experiment import Experiment


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--dataset", default="digits", help="fedsim data lists them")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with data files, else $FEDSIM_DATA, else download")
    parser.add_argument("--clients", type=int, metavar="K", default=50, help="number of clients")
    parser.add_argument("--alpha", type=float, default=0.1, help="of the Dirichlet split")
    parser.add_argument("--hidden", type=int, nargs="*", metavar="WIDTH", default=[32], help="hidden layers")
    parser.add_argument("--lr", type=float, default=0.1, help="local learning rate")
    parser.add_argument("--epochs", type=int, metavar="E", default=5, help="local epochs of the settings with several")
    parser.add_argument("--noise", type=float, nargs=2, default=[0.1, 1.0], help="noise multipliers, little and more")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", metavar="DIR", default="results/label_inference")
    args = parser.parse_args()
    out = writable_directory(args.out)

    base = Experiment(
        dataset=args.dataset,
        data_dir=args.data_dir,
        hidden=tuple(args.hidden),
        client=SGD(lr=args.lr, batch_size=None),
        seed=args.seed,
    )
    data = base.load_data()
    base = replace(base, dataset=data, client=SGD(lr=args.lr, batch_size=None))
    several = replace(base, client=SGD(lr=args.lr, epochs=args.epochs))
    settings = {
        "one step": base,
        f"{args.epochs} epochs": several,
        f"{args.epochs} epochs, clipped": replace(several, transforms=(Clip(0.5),)),
        **{f"{args.epochs} epochs, noise {z:g}": replace(several, transforms=(LocalDP(0.5, z),)) for z in args.noise},
    }
    rows, panels = [], []
    for split in (Dirichlet(args.clients, alpha=args.alpha), IID(args.clients)):
        for name, experiment in settings.items():
            found = infer_labels(observe(replace(experiment, split=split)), data)
            error, guess = float(found.error.mean()), float(found.error_of_prior.mean())
            rows.append((str(split), name, error, guess, found.top_label))
            if isinstance(split, Dirichlet) and experiment is not base:
                panels.append((f"{split}, {name}: error {error:.2f}", found.true, found.inferred))
    columns = ["split", "update", "error", "error of guessing", "most frequent label found"]
    frame = pd.DataFrame(rows, columns=columns)
    print(frame.round(3).to_string(index=False))
    print("error: total variation between the inferred and the true label distribution, mean over clients.")
    plot_labels(panels, out / "label_inference.png")
    write_csv(out / "label_inference.csv", frame)
    print(f"wrote label_inference.csv, label_inference.png to {out}")


if __name__ == "__main__":
    guard(main)
