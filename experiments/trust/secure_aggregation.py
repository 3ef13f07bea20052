"""Secure aggregation with dropouts: what the server sees, what it costs, and that the model is the same.

Each client has the examples of one digit, so that its update of a linear model shows what the digit looks like. The
picture has three clients' updates, the same as the server receives them, and the sum of all clients that it can
recover. The table compares runs without and with secure aggregation, with none to 40 % of the clients dropping out.
"""

from __future__ import annotations

from argparse import ArgumentDefaultsHelpFormatter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedsim.cli.guard import Parser, guard
from fedsim.clients import SGD
from fedsim.engines.threads import ThreadEngine
from fedsim.files import writable_directory, write_csv
from fedsim.report.style import saved_figure
from fedsim.secure import SecureAggregation
from fedsim.secure.clients import CHANGE
from fedsim.secure.server import SecureSum
from fedsim.splits import Shards
from fedsim.streams import Purpose, generator
from fedsim.study.build import build_runtime
from fedsim.study.experiment import Experiment
from fedsim.study.progress import ProgressBar

Array = NDArray[Any]

DROPOUTS = (0.0, 0.1, 0.2, 0.3, 0.4)
SHOWN = 3


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--clients", type=int, metavar="K", default=30, help="number of clients, at least 10")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--neighbours", type=int, metavar="N", help="masks per client, else one per other client")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", metavar="DIR", default="results/secure_aggregation")
    args = parser.parse_args()
    out = writable_directory(args.out)

    base = Experiment(
        split=Shards(args.clients, per_client=1),
        hidden=(),
        client=SGD(lr=0.5),
        rounds=args.rounds,
        seed=args.seed,
    )
    secure = [SecureAggregation(neighbours=args.neighbours, dropout=dropout) for dropout in DROPOUTS]
    table = measure(base, secure)
    print(table.to_string(index=False))
    write_csv(out / "secure_aggregation.csv", table)
    draw(*observe(replace(base, secure_aggregation=secure[0])), out / "secure_aggregation.png")
    print(f"wrote secure_aggregation.csv, secure_aggregation.png to {out}")


def measure(base: Experiment, settings: list[SecureAggregation]) -> pd.DataFrame:
    """Return a row per run: mean clients in the sum, final accuracy, and what a round costs and adds."""
    rows, reference = [], None
    with ProgressBar((1 + len(settings)) * base.rounds, leave=False) as bar:
        for setting in (None, *settings):
            result = replace(base, secure_aggregation=setting).run(callbacks=[bar])
            reference, rounds = reference or result, result.history.iloc[1:]
            thousands = 1e3 * reference.history["clients"].max()
            difference = max(float(np.abs(result.weights[k] - reference.weights[k]).max()) for k in result.weights)
            rows.append(
                {
                    "aggregation": "secure" if setting else "plain",
                    "dropout": f"{setting.dropout:.0%}" if setting else "",
                    "clients": f"{rounds['clients'].mean():.1f}",
                    "accuracy": f"{result.final_score:.3f}",
                    "difference of weights": f"{difference:.1g}",
                    "kB per client": f"{(rounds['bytes_up'] + rounds['bytes_down']).mean() / thousands:.1f}",
                    "of it keys": f"{rounds['secure_bytes'].mean() / thousands:.1f}" if setting else "",
                    "ms per round": f"{rounds['seconds'].median() * 1e3:.0f}",
                }
            )
    return pd.DataFrame(rows)


def observe(experiment: Experiment) -> tuple[list[Array], list[Array], Array, list[int]]:
    """Return updates of round 1, what the server receives of them, the mean that it recovers, and the clients' labels.

    The updates are of the first three clients whose labels differ.
    """
    plain = ThreadEngine(build_runtime(replace(experiment, secure_aggregation=None)))
    secure = ThreadEngine(build_runtime(experiment))
    settings, runtime = experiment.secure_aggregation, secure.runtime
    assert settings
    weights = runtime.model.init(generator(experiment.seed, Purpose.INIT))
    task, clients = runtime.task(weights, 1), np.arange(len(runtime.partition))
    sizes = runtime.partition.sizes
    with plain, secure:
        updates = np.concatenate([block.weights for block in plain.train(task, clients)]) - weights
        total = SecureSum(settings, partial(secure.exchange, task), task.seed, task.round)
        total.share_keys(clients, np.stack([sizes, sizes], axis=1) / sizes.max())
        masked = []
        for block in secure.train(task, clients):
            masked.append(block.encoded[CHANGE])
            total.add(block)
        mean = total.mean()
    assert mean
    labels = [int(runtime.y[runtime.partition[client]][0]) for client in clients.tolist()]
    shown = [labels.index(label) for label in sorted(set(labels))[:SHOWN]]
    received = np.concatenate(masked)
    return [updates[k] for k in shown], [received[k] for k in shown], mean[0][CHANGE], [labels[k] for k in shown]


def image_of(values: Array, label: int) -> Array:
    """Return what a linear model's update changes in the score of a label, pixel by pixel."""
    pixels = values[:-10].reshape(-1, 10)[:, label]
    side = int(len(pixels) ** 0.5)
    return pixels.reshape(side, side).astype(float)


def draw(updates: list[Array], received: list[Array], mean: Array, labels: list[int], path: Path) -> None:
    """Draw a column per client: its update, what the server receives, and the mean of all."""
    rows = [
        ("sent without protection", updates),
        ("received by the server", received),
        ("mean of all clients,\nall that it can recover", [mean] * SHOWN),
    ]
    with saved_figure(path, 7, 6.4) as figure:
        axes = figure.subplots(len(rows), SHOWN)
        for row, (name, arrays) in zip(axes, rows, strict=True):
            for place, values, label in zip(row, arrays, labels, strict=True):
                place.imshow(image_of(values, label), cmap="gray", interpolation="nearest")
                place.set_xticks([])
                place.set_yticks([])
                place.grid(False)
                for spine in place.spines.values():
                    spine.set_visible(False)
            row[0].set_ylabel(name)
        for place, label in zip(axes[0], labels, strict=True):
            place.set_title(f"client with digit {label} only", fontsize=10, fontweight="normal")
        figure.suptitle("One round: change of the weights of each client's own digit", fontweight="bold")


if __name__ == "__main__":
    guard(main)
