"""What has the model learned, and what does it look at? Prototypes and attributions with IID and non-IID clients.

Trains the article's network with 50 hidden units on IID and on non-IID clients, and draws the prototype of each hidden
unit and each class, and the saliency map and integrated gradients of one test image per class. Prints two checks of the
pictures, with 95 % intervals over the seeds: whether another model, of another seed and IID clients, recognises the
class prototypes; and how many predictions stay the same without the pixels that an attribution finds most important. An
untrained model is the control.
"""

from __future__ import annotations

from argparse import ArgumentDefaultsHelpFormatter
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from fedsim import explain
from fedsim.checks import check_integer
from fedsim.cli.guard import Parser, guard
from fedsim.clients import SGD
from fedsim.errors import ConfigError
from fedsim.files import writable_directory, write_csv
from fedsim.models import Array
from fedsim.report.intervals import half_width, with_interval
from fedsim.report.leaks import plot_images
from fedsim.splits import IID, LabelsPerClient
from fedsim.streams import Purpose, generator
from fedsim.study.experiment import Experiment
from fedsim.study.result import Result

#: Name of an attribution -> the scores by which pixels are removed, largest first.
ATTRIBUTIONS = ("integrated gradients", "saliency", "random")
#: Prototypes in a row of the picture.
ROW = 17


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--dataset", default="digits", help="images with pixels from 0 to 1; fedsim data lists them")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with data files, else $FEDSIM_DATA, else download")
    parser.add_argument("--clients", type=int, metavar="K", default=10, help="number of clients; all train each round")
    parser.add_argument("--labels", type=int, metavar="N", default=1, help="labels per client, non-IID")
    parser.add_argument("--hidden", type=int, nargs="+", metavar="WIDTH", default=[50], help="hidden layers")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--epochs", type=int, metavar="E", default=2, help="local epochs")
    parser.add_argument("--weight-decay", type=float, default=0.003, help="makes prototypes clearer")
    parser.add_argument("--radius", type=float, default=3.0, help="size of prototypes in standard deviations")
    parser.add_argument("--image-shape", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="default: a square")
    parser.add_argument("--removed", type=float, metavar="SHARE", default=0.1, help="share of pixels to remove")
    parser.add_argument("--seeds", type=int, metavar="N", default=3, help="number of seeds")
    parser.add_argument("--workers", type=int, metavar="N", help="threads, else one per core for large jobs")
    parser.add_argument("--out", metavar="DIR", default="results/explain_digits")
    args = parser.parse_args()
    seeds = check_integer("--seeds", args.seeds, 1)
    out = writable_directory(args.out)
    shape = tuple(args.image_shape) if args.image_shape else None

    data = Experiment(dataset=args.dataset, data_dir=args.data_dir).load_data()
    if data.x_train.ndim > 2 or data.regression:
        raise ConfigError(f"--dataset is {args.dataset}; allowed: flat images with labels")
    base = Experiment(
        dataset=data,
        hidden=tuple(args.hidden),
        client=SGD(lr=0.1, epochs=args.epochs, weight_decay=args.weight_decay),
        rounds=args.rounds,
    )
    splits = {"IID": IID(args.clients), "non-IID": LabelsPerClient(args.clients, args.labels)}
    judge = replace(base, split=splits["IID"], seed=seeds).run(workers=args.workers)
    rows: list[dict[str, Any]] = []
    first: dict[str, Result] = {}
    for name, split in splits.items():
        for seed in range(seeds):
            result = replace(base, split=split, seed=seed).run(workers=args.workers)
            first.setdefault(name, result)
            rows.append({"model": name, "seed": seed} | measure(result, judge, args.radius, args.removed))
    frame = pd.DataFrame(rows)
    show(frame, args.removed)
    check = untrained_correlation(first["IID"])
    print(f"Rank correlation with the maps of an untrained model: {check}.")
    print(f"Correlation of the hidden units' prototypes of seed 0: {similarity(first, args.radius)}.")

    settings = f"{data.name}, {args.clients} clients; non-IID: {args.labels} label{'s' * (args.labels > 1)} per client"
    title = f"Inputs that excite hidden units and classes most ({settings})"
    plot_images(prototype_rows(first, args.radius), out / "prototypes.png", title, shape)
    plot_images(map_rows(first), out / "saliency.png", f"What the score depends on ({settings})", shape)
    write_csv(out / "explain_digits.csv", frame)
    print(f"wrote explain_digits.csv, prototypes.png, saliency.png to {out}")


def measure(result: Result, judge: Result, radius: float, removed: float) -> dict[str, float]:
    """Return accuracy, the class prototypes that the judge recognises, and the predictions that survive deletion."""
    classes = np.arange(result.model.outputs)
    noise = generator(result.experiment.seed, Purpose.IMPORTANCE).random(result.dataset.x_test.shape)
    maps = explain.integrated_gradients(result), explain.saliency(result), noise
    prototypes = explain.class_prototypes(result, radius=radius)
    found = {"accuracy": result.final_accuracy, "prototypes recognised": share(judge.predict(prototypes) == classes)}
    weights = result.model.init(generator(result.experiment.seed, Purpose.IMPORTANCE, 1))
    control = explain.class_prototypes(result, radius=radius, weights=weights)
    found["untrained"] = share(judge.predict(control) == classes)
    for name, values in zip(ATTRIBUTIONS, maps, strict=True):
        found[name] = share(explain.deletion_curve(result, values, fractions=[removed]))
    return found


def share(values: Any) -> float:
    """Return the mean of an array."""
    return float(np.mean(values))


def show(frame: pd.DataFrame, removed: float) -> None:
    """Print the mean of each measure over the seeds, with its interval."""
    columns = [column for column in frame.columns if column not in ("model", "seed")]
    table = {
        model: {c: with_interval(part[c].mean(), half_width(part[c].tolist()), 2) for c in columns}
        for model, part in frame.groupby("model", sort=False)
    }
    print(pd.DataFrame(table).to_string())
    print("prototypes recognised: share of class prototypes that a model of another seed, trained on IID clients,")
    print("assigns to their class; untrained: the same for a model with random weights.")
    removal = f"predictions that stay without {removed:.0%} of the pixels"
    print(f"Last {len(ATTRIBUTIONS)} rows: share of {removal}, those with the largest attribution.")


def untrained_correlation(result: Result) -> str:
    """Return the mean rank correlation of attributions with those of a model with random weights."""
    weights = result.model.init(generator(result.experiment.seed, Purpose.IMPORTANCE, 1))
    labels = result.predict()
    texts = []
    for name, method in (("saliency", explain.saliency), ("integrated gradients", explain.integrated_gradients)):
        maps = method(result, target=labels), method(result, target=labels, weights=weights)
        texts.append(f"{name} {np.nanmean(explain.rank_correlation(*maps)):.2f}")
    return ", ".join(texts)


def similarity(results: dict[str, Result], radius: float) -> str:
    """Return the mean correlation of the IID units' prototypes, less the mean image, with others of the same seed."""
    trained, other = results.values()
    initial = trained.model.init(generator(trained.experiment.seed, Purpose.INIT))
    mean = trained.dataset.x_test.mean(axis=0)
    rows = trained.flat_weights, other.flat_weights, initial
    made = [explain.prototypes(trained, radius=radius, weights=row) - mean for row in rows]
    pairs = [np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(made[0], part, strict=True)]) for part in made[1:]]
    return f"IID and non-IID {pairs[0]:.2f}, IID and initial weights {pairs[1]:.2f}"


def prototype_rows(results: dict[str, Result], radius: float) -> list[tuple[str, Array, Any]]:
    """Return the rows of the picture of prototypes: hidden units of each model, then classes."""
    rows: list[tuple[str, Array, Any]] = []
    for name, result in results.items():
        units = explain.prototypes(result, radius=radius)[: 3 * ROW]
        for start in range(0, len(units), ROW):
            part = units[start : start + ROW]
            rows.append((f"{name}: hidden units\n{start + 1} to {start + len(part)}", part, None))
    names = next(iter(results.values())).dataset.label_names[:ROW]
    for name, result in results.items():
        rows.append((f"{name}: classes", explain.class_prototypes(result, radius=radius)[:ROW], names))
    return rows


def map_rows(results: dict[str, Result]) -> list[tuple[str, Array, Any]]:
    """Return the rows of the picture of attributions, of the first test image of each class."""
    data = next(iter(results.values())).dataset
    examples = [int(np.flatnonzero(data.y_test == k)[0]) for k in range(data.num_classes) if (data.y_test == k).any()]
    x, y = data.x_test[examples][:ROW], data.y_test[examples][:ROW]
    rows: list[tuple[str, Array, Any]] = [("test image", x, None)]
    for name, result in results.items():
        maps = explain.saliency(result, x, y)
        captions = [f"predicted {data.label_names[k]}" for k in result.predict(x)]
        rows.append((f"{name}: saliency of\nthe true class", maps / maps.max(axis=1, keepdims=True), captions))
    for name, result in results.items():
        rows.append((f"{name}: integrated\ngradients", explain.integrated_gradients(result, x, y), None))
    return rows


if __name__ == "__main__":
    guard(main)
