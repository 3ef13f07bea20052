"""Which columns does a model of a table use? Permutation importance of pooled data and of clients, and SHAP.

Trains on a table that is divided among clients, by default scikit-learn's breast cancer data, IID and by label, and
compares four answers: permutation importance on the test set, on the pooled training examples, and measured by the
clients on their own examples without pooling; and the mean absolute SHAP value (extra "explain"). Prints a table and
writes a picture, with 95 % intervals over the seeds.
"""

from __future__ import annotations

from argparse import ArgumentDefaultsHelpFormatter, Namespace
from typing import Any

import numpy as np
import pandas as pd

from fedsim import explain
from fedsim.checks import check_integer
from fedsim.cli.guard import Parser, guard
from fedsim.clients import SGD
from fedsim.data import Dataset, table
from fedsim.data.table import encode
from fedsim.files import writable_directory, write_csv
from fedsim.models import Array
from fedsim.report.importances import plot_importances
from fedsim.report.intervals import half_width, with_interval
from fedsim.splits import IID, Dirichlet, Natural, Split
from fedsim.study.experiment import Experiment
from fedsim.study.result import Result

#: Examples whose SHAP values are computed, and examples of the background.
EXPLAINED, BACKGROUND = 40, 40


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--table", metavar="FILE", help="CSV or Parquet file; default: breast cancer, bundled")
    parser.add_argument("--label", metavar="COLUMN", help="column of the table to predict")
    parser.add_argument("--client-column", metavar="COLUMN", help="column that identifies clients, else IID, Dirichlet")
    parser.add_argument("--clients", type=int, metavar="K", default=10, help="number of clients; all train each round")
    parser.add_argument("--alpha", type=float, default=0.1, help="of the Dirichlet split")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=20, help="permutations of each column")
    parser.add_argument("--columns", type=int, default=10, help="most important columns to show")
    parser.add_argument("--seeds", type=int, metavar="N", default=3, help="number of seeds")
    parser.add_argument("--workers", type=int, metavar="N", help="threads, else one per core for large jobs")
    parser.add_argument("--out", metavar="DIR", default="results/explain_table")
    args = parser.parse_args()
    for option in ("seeds", "columns"):
        check_integer(f"--{option}", getattr(args, option), 1)
    if args.table and not args.label:
        parser.error("--table needs --label")
    out = writable_directory(args.out)

    data = load(args)
    by_column: dict[str, Split] = {args.client_column or "": Natural(args.client_column)}
    drawn: dict[str, Split] = {"IID": IID(args.clients), "non-IID": Dirichlet(args.clients, args.alpha)}
    runs = []
    for name, split in (by_column if args.client_column else drawn).items():
        for seed in range(args.seeds):
            loss = "mse" if data.regression else "cross_entropy"
            client = SGD(lr=0.05 if data.regression else 0.1, epochs=2)
            experiment = Experiment(dataset=data, split=split, loss=loss, client=client, rounds=args.rounds, seed=seed)
            result = experiment.run(workers=args.workers)
            runs.append(measure(result, args.repeats).assign(clients=name, seed=seed, score=result.final_score))
    report(pd.concat(runs), args, data, out)


def load(args: Namespace) -> Dataset:
    """Return the table of the options, or the breast cancer data."""
    if args.table:
        return table(args.table, args.label, args.client_column or ())
    from sklearn.datasets import load_breast_cancer

    frame = load_breast_cancer(as_frame=True).frame
    named = frame["target"].map({0: "malignant", 1: "benign"})
    return encode(frame.assign(target=named), "breast cancer", "target")


def measure(result: Result, repeats: int) -> pd.DataFrame:
    """Return a row per column with its importance by each method."""
    data, seed = result.dataset, result.experiment.seed
    options: dict[str, Any] = {"repeats": repeats, "seed": seed}
    test = explain.permutation_importance(result, **options)
    pooled = explain.permutation_importance(result, data.x_train, data.y_train, **options)
    clients = explain.client_importance(result, **options)
    background = data.x_test[-BACKGROUND:]
    shap = explain.shap_values(result, data.x_test[:EXPLAINED], background=background, permutations=1, seed=seed)
    values = {"test set": test.mean, "pooled training set": pooled.mean, "clients, not pooled": clients.mean}
    return pd.DataFrame({"column": test.names, **values, "SHAP": by_column(shap.values, data, test.names)})


def by_column(values: Array, data: Dataset, names: tuple[str, ...]) -> Array:
    """Return the mean absolute SHAP value of each column: the sum over its features, of the scores' differences."""
    if values.ndim > 2:
        values = values - values.mean(axis=2, keepdims=True)  # a constant added to all scores changes no prediction
    columns = np.array(data.feature_columns)
    return np.array([np.abs(values[:, columns == name].sum(axis=1)).mean() for name in names])


def report(frame: pd.DataFrame, args: Namespace, data: Dataset, out: Any) -> None:
    """Print the most important columns and the rank correlations, and write the picture and the numbers."""
    methods = ["test set", "pooled training set", "clients, not pooled", "SHAP"]
    bars: list[tuple[str, Array, Array]] = []
    for name, part in frame.groupby("clients", sort=False):
        grouped = part.groupby("column", sort=False)[methods]
        mean, half = grouped.mean(), grouped.agg(lambda values: half_width(values.tolist()))
        top = mean["test set"].sort_values(ascending=False, kind="stable").index[: args.columns]
        scores = part.groupby("seed")["score"].first()
        print(f"{name}: test score {with_interval(scores.mean(), half_width(scores.tolist()))}")
        print(
            pd.DataFrame({m: [with_interval(mean[m][c], half[m][c], 4) for c in top] for m in methods}, top).to_string()
        )
        ranks = mean.corr("spearman")["pooled training set"]
        total = mean["clients, not pooled"].sum() / mean["pooled training set"].sum()
        print(
            f"Rank correlation with the pooled training set: clients {ranks['clients, not pooled']:.2f}, "
            f"SHAP {ranks['SHAP']:.2f}; sum over the columns, clients / pooled: {total:.2f}.\n"
        )
        bars += [(f"{name}: {m}", mean[m].to_numpy(), half[m].to_numpy()) for m in methods[1:3]]
    names = frame["column"].drop_duplicates().tolist()
    title = f"Permutation importance without pooling data ({data.name})"
    plot_importances(names, bars, out / "explain_table.png", title, "decrease of the score", args.columns)
    write_csv(out / "explain_table.csv", frame)
    print(f"wrote explain_table.csv, explain_table.png to {out}")


if __name__ == "__main__":
    guard(main)
