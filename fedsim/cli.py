"""The `fedsim` command. Thin: it reads arguments, calls the library, prints."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fedsim.errors import ConfigError, FedsimError

if TYPE_CHECKING:
    from fedsim.experiment import Experiment


class Parser(argparse.ArgumentParser):
    """argparse, with errors of one sentence."""

    def error(self, message: str) -> NoReturn:
        """Print the sentence and exit 2."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def guard(main: Callable[[], None]) -> NoReturn:
    """Call `main` and exit: 0 if it returns, 2 with one sentence for the user's errors, 130 for Ctrl-C."""
    program = Path(sys.argv[0]).name
    try:
        main()
    except FedsimError as error:
        _leave(f"{program}: error: {error}", 2)
    except BrokenPipeError:  # the reader of our output has left, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        _leave(f"{program}: error: {name}{error.strerror or error}", 2)
    except MemoryError as error:
        _leave(f"{program}: error: not enough memory: {error}", 2)
    except KeyboardInterrupt:
        _leave(f"{program}: interrupted", 130)
    sys.exit(0)


def _leave(sentence: str, code: int) -> NoReturn:
    print(sentence, file=sys.stderr)
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the `fedsim` command."""
    args = parser().parse_args(arguments)
    guard(lambda: args.action(args))


def parser() -> Parser:
    """Return the command's parser."""
    top = Parser(
        prog="fedsim",
        description="Simulate federated learning: what non-IID data does to it, in seconds.",
        epilog="A configuration file holds the Python arguments in TOML; see docs/configuration.md.",
    )
    top.add_argument("--version", action="version", version=_version())
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, action: Callable[[argparse.Namespace], None], about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
        sub.set_defaults(action=action)
        return sub

    run = command("run", _run, "run one experiment and print its rounds")
    compare = command("compare", _compare, "run a study (a file with a [compare] table) and print its table")
    for sub, what in ((run, "experiment"), (compare, "study")):
        sub.add_argument("file", metavar=f"{what}.toml", help=f"the {what}'s configuration")
        sub.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change a setting; repeatable")
        several = "; repeat it to compare several" if sub is compare else ""
        sub.add_argument(
            "--client",
            metavar="STRATEGY",
            action="append",
            default=[],
            help=f"client strategy, such as 'FedProx(proximal_mu=0.1)' or my_module:MyStrategy{several}",
        )
        sub.add_argument("--out", metavar="DIR", help="write results there; earlier results are kept beside it")
        sub.add_argument("--data-dir", metavar="DIR", help="folder with data files (default: $FEDSIM_DATA)")
        sub.add_argument("--workers", metavar="N", type=int, help="threads (default: one per core for large jobs)")
        sub.add_argument("-v", "--verbose", action="store_true", help="show Flower's log")
    resume = command("resume", _resume, "go on with an interrupted run")
    resume.add_argument("out", metavar="DIR", help="where fedsim run --out was writing")
    resume.add_argument("--workers", metavar="N", type=int, help="threads (default: one per core for large jobs)")
    resume.add_argument("-v", "--verbose", action="store_true", help="show Flower's log")
    compare.add_argument("--target", metavar="ACCURACY", type=float, help="count the rounds to this test accuracy")

    show = command("splits", _splits, "show who holds which labels, before anyone trains")
    show.add_argument(
        "split", nargs="+", help="such as 'IID(50)' 'Shards(50, per_client=2)' 'Dirichlet(50, alpha=0.1)'"
    )
    show.add_argument("--dataset", default="digits", help="default: digits")
    show.add_argument("--data-dir", metavar="DIR", help="folder with data files (default: $FEDSIM_DATA)")
    show.add_argument("--seed", type=int, default=0, help="default: 0")
    show.add_argument("--out", metavar="FILE", help="draw a picture too (.png, .svg or .pdf)")
    show.add_argument("--most", metavar="N", type=int, default=10, help="clients shown of each split (default: 10)")

    command("strategies", _strategies, "list client and server strategies: parameters and papers")
    check = command("check", _check, "check a client strategy of your own, and say what to fix")
    check.add_argument(
        "client", metavar="STRATEGY", help="such as my_module:MyStrategy or 'my_module:MyStrategy(mu=1)'"
    )

    about = command("data", _data, "list the datasets: what is here, and where the rest would come from")
    about.add_argument("--data-dir", metavar="DIR", help="folder with data files (default: $FEDSIM_DATA)")
    return top


def _version() -> str:
    from fedsim import __version__

    return f"fedsim {__version__}"


def _with_data_dir(assignments: list[str], data_dir: str | None) -> list[str]:
    import json

    return assignments + ([f"data_dir={json.dumps(data_dir)}"] if data_dir else [])


def _run(args: argparse.Namespace) -> None:
    from fedsim import config

    chosen = [f"client={text}" for text in args.client[-1:]]
    experiment = config.experiment(config.read(args.file))
    experiment = config.apply(experiment, chosen + _with_data_dir(args.set, args.data_dir))
    _execute(experiment, args)


def _resume(args: argparse.Namespace) -> None:
    from fedsim import config
    from fedsim.rundir import CHECKPOINT, CONFIGURATION, RESULTS

    folder = Path(args.out)
    if not (folder / CONFIGURATION).exists():
        raise ConfigError(f"{args.out!r} has no {CONFIGURATION}; allowed: a directory that fedsim run --out wrote")
    if (folder / RESULTS[0]).exists() and not (folder / CHECKPOINT).exists():
        raise ConfigError(f"the run in {args.out!r} is complete; there is nothing to resume")
    _execute(config.experiment(config.read(folder / CONFIGURATION)), args)


def _execute(experiment: Experiment, args: argparse.Namespace) -> None:
    from fedsim.rundir import RESULTS

    try:
        result = experiment.run(
            workers=args.workers, on_round=_progress(experiment), verbose=args.verbose, directory=args.out
        )
    except KeyboardInterrupt:
        if args.out:
            print(f"interrupted; fedsim resume {args.out} goes on", file=sys.stderr)
        raise
    known = result.history.dropna(axis="columns", how="all")
    print(known.to_string(index=False, float_format=lambda x: f"{x:.4g}"))
    if args.out:
        print(f"wrote {', '.join(RESULTS)} to {args.out}")


def _progress(experiment: Experiment) -> Callable[[Any], None]:
    from tqdm import tqdm

    bar = tqdm(total=experiment.rounds, unit="round", disable=None, leave=False)

    def tick(row: Any) -> None:
        if row["round"]:
            bar.update()
            bar.set_postfix(accuracy=f"{row['test_accuracy']:.3f}")
        if row["round"] == experiment.rounds:
            bar.close()

    return tick


def _compare(args: argparse.Namespace) -> None:
    from fedsim import config
    from fedsim.report.files import keep_earlier, writable_directory
    from fedsim.study import compare

    settings = config.read(args.file)
    if args.client:
        settings.setdefault("compare", {})["client"] = args.client
    plan = config.plan(settings, _with_data_dir(args.set, args.data_dir))
    out = writable_directory(args.out) if args.out else None
    axes: dict[str, Any] = dict(plan.axes)
    fixed: dict[str, Any] = {"seeds": plan.seeds, "baselines": plan.baselines}
    study = compare(plan.base, **fixed, workers=args.workers, verbose=args.verbose, **axes)
    print(study.table(args.target).to_string())
    if out:
        pictures = {"accuracy.png": "test_accuracy"} | (
            {"local_accuracy.png": "local_accuracy"} if study.evaluated else {}
        )
        names = ["rounds.csv", "clients.csv", "summary.csv", *pictures]
        report_kept(keep_earlier(out, [*names, "local_accuracy.png"]))
        study.to_csv(out)
        for name, column in pictures.items():
            study.plot(out / name, column)
        print(f"wrote {', '.join(names)} to {out}")


def report_kept(folder: Path | None) -> None:
    """Say where earlier results were moved, if they were."""
    if folder:
        print(f"kept the earlier results in {folder}")


def _splits(args: argparse.Namespace) -> None:
    from fedsim import config, data
    from fedsim.errors import whole
    from fedsim.report.tables import split_table

    whole("--most", args.most, 1)
    whole("--seed", args.seed, 0)
    chosen = [config.build("split", text) for text in args.split]
    labels = [str(split) for split in chosen]
    if len(set(labels)) < len(labels):
        labels = args.split
    dataset = data.load(args.dataset, args.data_dir)
    counts = {}
    for label, split in zip(labels, chosen, strict=True):
        table = split.partition(dataset.y_train, args.seed).label_counts(dataset.y_train, dataset.num_classes)
        counts[label] = table
        held = (table > 0).sum(axis=1)
        sizes = table.sum(axis=1)
        print(
            f"{label} on {dataset.name}: {len(table)} clients, {sizes.min()} to {sizes.max()} examples each, "
            f"{held.mean():.1f} labels per client on average"
        )
        print(split_table(table).head(args.most).to_string())
        if len(table) > args.most:
            print(f"... and {len(table) - args.most} more clients (--most {len(table)} shows all)")
        print()
    if args.out:
        from fedsim.report.plots import plot_splits

        target = Path(args.out)
        if target.exists():
            raise ConfigError(f"{args.out!r} exists; give --out another name, nothing is overwritten")
        plot_splits(counts, target, f"Who holds which labels of {dataset.name}")
        print(f"wrote {target}")


def _strategies(args: argparse.Namespace) -> None:
    from fedsim.report.catalogue import catalogue

    print(catalogue(), end="")


def _check(args: argparse.Namespace) -> None:
    from fedsim import config
    from fedsim.testing import check_client_strategy

    strategy = config.build("client", args.client)
    for name in check_client_strategy(strategy):
        print(f"passed: {name}")


def _data(args: argparse.Namespace) -> None:
    from fedsim.data import mnist

    print("digits           1,797 images 8 x 8, bundled with scikit-learn; no download (the default)")
    print("article          1,000 x 100 random inputs, 10 classes; its labels are pure noise")
    print("article_teacher  the same inputs, labelled by a random network: learnable")
    place = args.data_dir or os.environ.get("FEDSIM_DATA")
    cached = mnist.cache_dir() / "mnist"
    if place:
        missing = [name for name in mnist.FILES if not _found(name, place)]
        state = f"in {place}" if not missing else f"NOT in {place}: {', '.join(missing)} missing"
    elif all((cached / f"{name}.gz").is_file() for name in mnist.FILES):
        state = f"in {cached}"
    else:
        state = (
            f"not here; would be downloaded once from {mnist.MIRRORS[0]} into {cached}, "
            "or is read from --data-dir DIR or $FEDSIM_DATA"
        )
    print(f"mnist            70,000 images 28 x 28; {state}")


def _found(name: str, place: str) -> bool:
    from fedsim.data import mnist

    try:
        return mnist.find(name, place) is not None
    except FedsimError:
        return False


if __name__ == "__main__":
    main()
