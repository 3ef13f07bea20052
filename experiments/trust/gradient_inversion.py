"""What an update shows: training images that a server reconstructs from what one client sends in one round.

The attacks see what the server sees: the global model, the update as it was sent, the learning rate and the number of
examples. Larger batches, several local steps, noise, and secure aggregation, which shows the server only a mean over
clients, make them harder; clipping alone does not, nor a mean over few examples, and a malicious server can choose
global weights from which it reads examples in any mean. Prints a table and writes a picture.
"""

from __future__ import annotations

import textwrap
from argparse import ArgumentDefaultsHelpFormatter
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fedsim.cli.guard import Parser, guard
from fedsim.clients import SGD, Array
from fedsim.data import Dataset
from fedsim.files import writable_directory, write_csv
from fedsim.leakage import Inversion, assign, imprint_weights, invert, observe, psnr, read_imprint
from fedsim.privacy import Clip, LocalDP
from fedsim.report.leaks import plot_images
from fedsim.splits import IID
from fedsim.study.experiment import Experiment

#: Images in a row of the picture.
SHOWN = 8
#: Clients whose mean the server sees under secure aggregation.
SUMMED = 10
#: Clipping norm, about that of the shortest updates.
CLIP = 0.1


class Setting(NamedTuple):
    """What the server sees: the updates of clients with so many examples each, or the mean of `SUMMED` of them."""

    label: str
    examples: int
    view: str = "updates"
    changes: Mapping[str, Any] = MappingProxyType({})
    malicious: bool = False


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--dataset", default="digits", help="images with pixels from 0 to 1; fedsim data lists them")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with data files, else $FEDSIM_DATA, else download")
    parser.add_argument("--hidden", type=int, nargs="*", metavar="WIDTH", default=[100], help="hidden layers")
    parser.add_argument("--lr", type=float, default=0.1, help="local learning rate")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.01, 0.1, 1.0], help="noise multipliers")
    parser.add_argument("--starts", type=int, default=3, help="random starts of the optimisation")
    parser.add_argument("--hops", type=int, default=6, help="further optimisations from the best so far")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", metavar="DIR", default="results/gradient_inversion")
    args = parser.parse_args()
    out = writable_directory(args.out)

    data = Experiment(dataset=args.dataset, data_dir=args.data_dir).load_data()
    client = SGD(lr=args.lr, batch_size=None)
    base = Experiment(dataset=data, hidden=tuple(args.hidden), client=client, seed=args.seed)
    rows, pictures = [], []
    for setting in settings(args.lr, args.noise, len(args.hidden) == 1):
        originals, found, others, method = attack(setting, base, data, args.starts, args.hops)
        score, guessed = psnr(originals, found), psnr(originals[: len(others)], others)
        rows.append((setting.label, method, score.mean(), score.max(), guessed.mean(), (score >= 20).mean()))
        pictures.append((f"{textwrap.fill(setting.label, 31)}\n({method})", found[:SHOWN], score[:SHOWN]))
    pictures.append((f"other images, assigned as in\nthe mean of {SUMMED} clients", others[:SHOWN], guessed[:SHOWN]))

    columns = ["what the server sees", "attack", "PSNR", "best", "guessing", "above 20 dB"]
    frame = pd.DataFrame(rows, columns=columns)
    print(frame.round({"PSNR": 1, "best": 1, "guessing": 1, "above 20 dB": 2}).to_string(index=False))
    print("PSNR in decibels, mean over the examples; guessing is that of other images of the test set.")
    plot_images(
        [("original", originals[:SHOWN], None), *pictures],
        out / "gradient_inversion.png",
        f"Training images reconstructed from one round's updates ({data.name}, hidden {args.hidden})",
    )
    write_csv(out / "gradient_inversion.csv", frame)
    print(f"wrote gradient_inversion.csv, gradient_inversion.png to {out}")


def settings(lr: float, noises: list[float], malicious: bool) -> list[Setting]:
    """Return what the server sees: updates with less and less in them, and a mean that a malicious server reads."""
    several = SGD(lr=lr, batch_size=2, epochs=5)
    return [
        Setting("1 example", 1),
        Setting("8 examples", 8),
        Setting("1 example, clipped", 1, changes={"transforms": (Clip(CLIP),)}),
        *(
            Setting(f"1 example, clipped, noise {noise:g}", 1, changes={"transforms": (LocalDP(CLIP, noise),)})
            for noise in noises
        ),
        Setting("8 examples, 20 local steps", 8, changes={"client": several}),
        Setting("32 examples", 32),
        Setting(f"1 example, mean of {SUMMED} clients", 1, "mean"),
        Setting(f"8 examples, mean of {SUMMED} clients", 8, "mean"),
        *(
            [Setting(f"8 examples, mean of {SUMMED} clients, malicious server", 8, "mean", malicious=True)]
            if malicious
            else []
        ),
    ]


def attack(setting: Setting, base: Experiment, data: Dataset, starts: int, hops: int) -> tuple[Any, Any, Any, str]:
    """Return the originals, their reconstructions, images of the test set in their place, and the attacks' names."""
    experiment = replace(base, split=IID(SUMMED, sizes=[setting.examples] * SUMMED), **setting.changes)
    weights = imprint_weights(experiment.make_model(data), data.x_test) if setting.malicious else None
    clients = list(range(SUMMED if setting.view == "mean" else -(-SHOWN // setting.examples)))
    parts, methods = [], set()
    for observation in observe(experiment, view=setting.view, clients=clients, weights=weights):
        if setting.malicious:
            inversion = Inversion(np.clip(read_imprint(observation), 0, 1), "imprint")
        else:
            inversion = invert(observation, data, starts=starts, hops=hops, seed=experiment.seed)
        originals = data.x_train[observation.indices]
        parts.append((originals, inversion.aligned(originals), guess(originals, data)))
        methods.add(inversion.method)
    originals, found, others = map(np.concatenate, zip(*parts, strict=True))
    return originals, found, others, ", ".join(sorted(methods))


def guess(originals: Array, data: Dataset) -> Array:
    """Return as many images of the test set, assigned to the originals as reconstructions are."""
    others = data.x_test[: len(originals)]
    return others[assign(originals[: len(others)], others)]


if __name__ == "__main__":
    guard(main)
