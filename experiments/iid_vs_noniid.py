"""IID against non-IID federated learning: the same network on the same data, with four splits.

Without arguments: scikit-learn's digits, 50 clients, five seeds. Writes tables and two plots.
"""

from __future__ import annotations

from argparse import ArgumentDefaultsHelpFormatter

from fedsim.cli.guard import Parser, guard
from fedsim.clients import SGD
from fedsim.files import keep_earlier, writable_directory
from fedsim.report.terminal import to_text
from fedsim.splits import IID, Dirichlet, Shards
from fedsim.study.compare import compare
from fedsim.study.experiment import Experiment
from fedsim.study.study import Study
from fedsim.study.tables import TABLES

PICTURES = ["accuracy.png", "splits.png"]


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--dataset", default="digits", help="fedsim data lists them")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with MNIST's files, else $FEDSIM_DATA, else download")
    parser.add_argument("--clients", type=int, metavar="K", default=50, help="number of clients")
    parser.add_argument("--fraction", type=float, metavar="C", default=0.2, help="share of clients trained each round")
    parser.add_argument("--epochs", type=int, metavar="E", default=5, help="local epochs")
    parser.add_argument("--batch-size", type=int, metavar="B", default=10, help="local batch size")
    parser.add_argument("--lr", type=float, default=0.1, help="local learning rate")
    parser.add_argument("--hidden", type=int, nargs="*", metavar="WIDTH", default=[32], help="hidden layers")
    parser.add_argument("--shards", type=int, metavar="N", default=2, help="shards per client of the Shards split")
    parser.add_argument("--alpha", type=float, nargs="*", default=[1.0, 0.1], help="of the Dirichlet splits")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seeds", type=int, metavar="N", default=5, help="number of seeds")
    parser.add_argument("--target", type=float, metavar="ACCURACY", help="count the rounds to this test accuracy")
    parser.add_argument("--workers", type=int, metavar="N", help="threads, else one per core for large jobs")
    parser.add_argument("--out", metavar="DIR", default="results/iid_vs_noniid")
    args = parser.parse_args()

    k = args.clients
    base = Experiment(
        dataset=args.dataset,
        data_dir=args.data_dir,
        split=IID(k),
        hidden=tuple(args.hidden),
        client=SGD(lr=args.lr, epochs=args.epochs, batch_size=args.batch_size),
        fraction_train=args.fraction,
        fraction_evaluate=1.0,
        rounds=args.rounds,
    )
    splits = [IID(k), Shards(k, per_client=args.shards), *(Dirichlet(k, alpha=a) for a in args.alpha)]
    out = writable_directory(args.out)
    study = compare(base, split=splits, seeds=args.seeds, workers=args.workers)

    print("\n".join([to_text(study.table(args.target)), *study.notes, conclusion(study)]))
    if kept := keep_earlier(out, [*TABLES, *PICTURES]):
        print(f"kept the earlier results in {kept}")
    study.to_csv(out)
    study.plot(out / "accuracy.png")
    study.plot_splits(out / "splits.png")
    print(f"wrote {', '.join([*study.files, *PICTURES])} to {out}")


def conclusion(study: Study) -> str:
    """Return the result in one sentence."""
    summary = study.summary().set_index("split")
    accuracy = summary["final_accuracy"]
    worst = accuracy.idxmin()
    lost = 100 * (accuracy["IID"] - accuracy[worst])
    if lost <= 0:
        return (
            "No split is worse than IID: the splits are too similar or the training is too short to show a difference."
        )
    tests = study.test().query("variant == 'IID'").set_index("against")
    ending = "" if tests["holds"].fillna(False)[worst] else " (not significant at 5 %; use more seeds or rounds)"
    return (
        f"Same data, same network, same number of messages: dividing it as {worst} instead of IID "
        f"costs {lost:.1f} points of accuracy{ending}."
    )


if __name__ == "__main__":
    guard(main)
