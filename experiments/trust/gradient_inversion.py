"""What an update shows: training images that a server reconstructs from what one client sends in one round.

The attacks see what the server sees: the global model, the update as it was sent, the learning rate and the number of
examples. Larger batches, several local steps, noise, and secure aggregation, which shows the server only a mean over
clients, make them harder; clipping alone does not, nor a mean over few examples. Prints a table and writes a picture.
"""

from __future__ import annotations

from argparse import ArgumentDefaultsHelpFormatter
from typing import Any

import numpy as np
import pandas as pd

from fedsim.cli.guard import Parser, guard
from fedsim.clients import SGD
from fedsim.data import Dataset
from fedsim.files import writable_directory, write_csv
from fedsim.leakage import assign, invert, observe, psnr
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


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--dataset", default="digits", help="images with pixels from 0 to 1; fedsim data lists them")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with data files, else $FEDSIM_DATA, else download")
    parser.add_argument("--hidden", type=int, nargs="*", metavar="WIDTH", default=[100], help="hidden layers")
    parser.add_argument("--lr", type=float, default=0.1, help="local learning rate")
    parser.add_argument("--noise", type=float, nargs=2, default=[0.01, 0.1], help="noise multipliers, little and more")
    parser.add_argument("--starts", type=int, default=3, help="random starts of the optimisation")
    parser.add_argument("--hops", type=int, default=6, help="further optimisations from the best so far")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", metavar="DIR", default="results/gradient_inversion")
    args = parser.parse_args()
    out = writable_directory(args.out)

    base = Experiment(
        dataset=args.dataset, data_dir=args.data_dir, hidden=tuple(args.hidden), seed=args.seed,
        client=SGD(lr=args.lr, batch_size=None),
    )  # fmt: skip
    data = base.load_data()
    little, more = (LocalDP(CLIP, noise) for noise in args.noise)
    several: dict[str, Any] = {"client": SGD(lr=args.lr, batch_size=2, epochs=5)}
    settings: list[tuple[str, int, str, dict[str, Any]]] = [
        ("1 example", 1, "updates", {}),
        ("8 examples", 8, "updates", {}),
        ("1 example, clipped", 1, "updates", {"transforms": (Clip(CLIP),)}),
        (f"1 example, clipped, noise {little.noise_multiplier:g}", 1, "updates", {"transforms": (little,)}),
        (f"1 example, clipped, noise {more.noise_multiplier:g}", 1, "updates", {"transforms": (more,)}),
        ("8 examples, 20 local steps", 8, "updates", several),
        ("32 examples", 32, "updates", {}),
        (f"1 example, mean of {SUMMED} clients", 1, "mean", {}),
        (f"8 examples, mean of {SUMMED} clients", 8, "mean", {}),
    ]
    table, pictures = [], []
    for label, examples, view, changes in settings:
        experiment = Experiment(**(vars(base) | {"dataset": data, "split": sizes(examples)} | changes))
        clients = range(SUMMED if view == "mean" else -(-SHOWN // examples))
        found, scores, chance, methods = [], [], [], set()
        for observation in observe(experiment, view=view, clients=list(clients)):
            inversion = invert(observation, data, starts=args.starts, hops=args.hops, seed=args.seed)
            originals = data.x_train[observation.indices]
            found.append(inversion.aligned(originals))
            scores.append(inversion.psnr(originals))
            others = guess(originals, data)
            chance.append(psnr(originals[: len(others)], others))
            methods.add(inversion.method)
        score, guessed = np.concatenate(scores), np.concatenate(chance)
        method = ", ".join(sorted(methods))
        table.append((label, method, score.mean(), score.max(), guessed.mean(), (score >= 20).mean()))
        pictures.append((f"{label}\n({method})", np.concatenate(found)[:SHOWN], score[:SHOWN]))

    columns = ["what the server sees", "attack", "PSNR", "best", "guessing", "above 20 dB"]
    frame = pd.DataFrame(table, columns=columns)
    print(frame.round({"PSNR": 1, "best": 1, "guessing": 1, "above 20 dB": 2}).to_string(index=False))
    print("PSNR in decibels, mean over the examples; guessing is that of other images of the test set.")
    # The last setting's first client has the examples that all rows show.
    shown, guesses = originals[:SHOWN], others[:SHOWN]
    pictures.append(("other images, assigned in\nthe same way as the row above", guesses, psnr(shown, guesses)))
    plot_images(
        [("original", shown, None), *pictures], out / "gradient_inversion.png",
        f"Training images reconstructed from one round's updates ({data.name}, hidden {args.hidden})",
    )  # fmt: skip
    write_csv(out / "gradient_inversion.csv", frame)
    print(f"wrote gradient_inversion.csv, gradient_inversion.png to {out}")


def sizes(examples: int) -> IID:
    """Return a split whose clients have so many examples each; the first ones are the same for all sizes."""
    return IID(SUMMED, sizes=[examples] * SUMMED)


def guess(originals: Any, data: Dataset) -> Any:
    """Return as many images of the test set, assigned to the originals as reconstructions are."""
    others = data.x_test[: len(originals)]
    return others[assign(originals[: len(others)], others)]


if __name__ == "__main__":
    guard(main)
