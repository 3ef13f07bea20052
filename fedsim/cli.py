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
    from types import FrameType

    from fedsim.study.experiment import Experiment


class Parser(argparse.ArgumentParser):
    """argparse, with errors of one sentence."""

    def error(self, message: str) -> NoReturn:
        """Print the sentence and exit 2."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def guard(main: Callable[[], None]) -> NoReturn:
    """Call `main` and exit: 0 if it returns, 2 with one sentence for the user's errors, 130 for Ctrl-C.

    An exception in a class of the user's that fedsim has called is one of these errors, and so is code that ends the
    process, such as a strategy that calls ``sys.exit()``.
    """
    program = Path(sys.argv[0]).name
    try:
        main()
        sys.stdout.flush()  # an error of writing is one of main's
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
        print(f"{program}: interrupted", file=sys.stderr)
        _leave_threads(130)
    except SystemExit as error:
        if (place := _who_exits(error)) is None:
            raise  # argparse has said all there is to say
        _leave(f"{program}: error: {place} ended the program ({error!r}); allowed: to return, or to raise an error", 2)
    except Exception as error:
        from fedsim.text import describe, raised_by_user_class

        if not raised_by_user_class(error):
            raise
        _leave(f"{program}: error: {describe(error)}", 2)
    sys.exit(0)


def _leave_threads(code: int) -> NoReturn:
    """Exit without waiting for threads that are training: a client may take for ever."""
    import threading

    if any(t is not threading.current_thread() and not t.daemon for t in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _who_exits(error: SystemExit) -> str | None:
    """Return who raised SystemExit, such as ``Mine.train in mine.py, line 5``; None for the command's own parser."""
    import traceback

    frames = list(traceback.walk_tb(error.__traceback__))
    if frames[-1][0].f_globals.get("__name__") == "argparse":
        return None
    others = ("", "fedsim", "flwr", "concurrent", "_frozen_importlib", "_frozen_importlib_external")
    own = [f for f in frames if _module_of_self(f[0]).partition(".")[0] not in others]
    frame, line = (own or frames)[-1]
    name = f"{type(frame.f_locals['self']).__name__}'s {frame.f_code.co_name}" if own else frame.f_code.co_name
    return f"{name} in {frame.f_code.co_filename}, line {line},"


def _module_of_self(frame: FrameType) -> str:
    """Return where the class is defined whose method a frame runs, or nothing."""
    return type(frame.f_locals["self"]).__module__ if "self" in frame.f_locals else ""


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
        sub.add_argument(
            "file", metavar="FILE", help=f"the {what}'s configuration (.toml), or a table (.csv, .parquet)"
        )
        sub.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change a setting; repeatable")
        several = "; repeat it to compare several" if sub is compare else ""
        sub.add_argument(
            "--client",
            metavar="STRATEGY",
            action="append",
            default=[],
            help=f"client strategy, such as 'FedProx(proximal_mu=0.1)' or my_module:MyStrategy{several}",
        )
        sub.add_argument(
            "--split", action="append", default=[], help=f"split, such as 'Dirichlet(50, alpha=0.1)'{several}"
        )
        _about_modules(sub)
        _about_table(sub)
        sub.add_argument(
            "--out", metavar="DIR", type=_path, help="write results there; earlier results are kept beside it"
        )
        sub.add_argument("--data-dir", metavar="DIR", help="folder with data files (default: $FEDSIM_DATA)")
        _about_engine(sub)
    resume = command("resume", _resume, "go on with an interrupted run")
    resume.add_argument("out", metavar="DIR", type=_path, help="where fedsim run --out was writing")
    _about_modules(resume)
    _about_engine(resume)
    compare.add_argument("--seeds", metavar="N", type=int, help="how many (default: the file's; 3 for a table)")
    compare.add_argument("--target", metavar="ACCURACY", type=float, help="count the rounds to this test accuracy")

    show = command("splits", _splits, "show who holds which labels, before anyone trains")
    show.add_argument(
        "split", nargs="+", help="such as 'IID(50)' 'Shards(50, per_client=2)' 'Dirichlet(50, alpha=0.1)'"
    )
    show.add_argument("--dataset", default="digits", help="default: digits; a table's file name will do")
    _about_table(show)
    show.add_argument("--data-dir", metavar="DIR", help="folder with data files (default: $FEDSIM_DATA)")
    show.add_argument("--seed", type=int, default=0, help="default: 0")
    show.add_argument("--out", metavar="FILE", type=_path, help="draw a picture too (.png, .svg or .pdf)")
    show.add_argument(
        "--kind", default="bars", metavar="KIND", help="of picture: bars, bubbles or sizes (default: bars)"
    )
    show.add_argument("--most", metavar="N", type=int, default=10, help="clients shown of each split (default: 10)")

    deploy = command("deploy", _deploy, "run an experiment on a real Flower deployment: a SuperLink and SuperNodes")
    deploy.add_argument(
        "superlink",
        metavar="SUPERLINK",
        help="local: one is brought up on this machine, with TLS and authentication, and taken down again; "
        "else a connection of your Flower configuration",
    )
    export = command("export", _export, "write a stand-alone Flower app of an experiment, for flwr run")
    for sub in (deploy, export):
        sub.add_argument("file", metavar="experiment.toml", help="the experiment's configuration")
    export.add_argument("folder", metavar="DIR", help="new, or empty")
    for sub in (deploy, export):
        sub.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change a setting; repeatable")
        _about_modules(sub)
        sub.add_argument("--data-dir", metavar="DIR", help="folder with data files (default: $FEDSIM_DATA)")
        sub.add_argument("--nodes", metavar="N", type=int, help="SuperNodes (default: 4 locally, else all there are)")
        sub.add_argument("--timeout", metavar="S", type=float, help="seconds to wait for a SuperNode (default: any)")
        sub.add_argument("--retries", metavar="N", type=int, help="times a failed SuperNode is asked again in a round")
    deploy.add_argument(
        "--out", metavar="DIR", type=_path, help="write results there (with a SuperLink elsewhere: on its machine)"
    )
    deploy.add_argument(
        "--insecure", action="store_true", help="locally, plain text and no authentication in the place of TLS"
    )
    deploy.add_argument("-v", "--verbose", action="store_true", help="show Flower's log")
    anybodys = command("flower", _flower, "run anybody's Flower app in this process, without Ray")
    anybodys.add_argument("folder", metavar="APP_DIR", help="with a pyproject.toml that names its components")
    anybodys.add_argument("--nodes", metavar="N", type=int, help="SuperNodes (default: the app's, else 10)")
    anybodys.add_argument(
        "--run-config", metavar="KEY=VALUE", action="append", default=[], help="change run configuration; repeatable"
    )
    anybodys.add_argument("--workers", metavar="N", type=int, help="threads (default: one per core)")
    anybodys.add_argument("-v", "--verbose", action="store_true", help="show Flower's log")

    command("strategies", _strategies, "list client and server strategies: parameters and papers")
    check = command("check", _check, "check a client strategy of your own, and say what to fix")
    check.add_argument(
        "client", metavar="STRATEGY", help="such as my_module:MyStrategy or 'my_module:MyStrategy(mu=1)'"
    )

    about = command("data", _data, "list the datasets: what is here, and where the rest would come from")
    about.add_argument("--data-dir", metavar="DIR", help="folder with data files (default: $FEDSIM_DATA)")
    return top


def _path(text: str) -> str:
    """Refuse the empty text, which is what an unset shell variable gives."""
    if not text:
        raise argparse.ArgumentTypeError("it is ''; allowed: a path")
    return text


def _about_engine(sub: argparse.ArgumentParser) -> None:
    """Add what says where clients run."""
    engines = "in-process, ray or, of fedsim run, deployment (default: in-process)"
    group = sub.add_argument_group("where clients run")
    group.add_argument("--engine", metavar="NAME", default="in-process", help=engines)
    group.add_argument(
        "--address",
        metavar="ADDRESS",
        help="of a running Ray cluster, or a SuperLink's connection; default: started here",
    )
    group.add_argument(
        "--workers", metavar="N", type=int, help="threads (default: one per core for large jobs), actors or SuperNodes"
    )
    sub.add_argument("-v", "--verbose", action="store_true", help="show Flower's log")


def _about_modules(sub: argparse.ArgumentParser) -> None:
    """Add what says which classes a configuration file may name."""
    about = (
        "allow the configuration file to name classes of this module, besides those in the current folder; repeatable"
    )
    sub.add_argument("--module", metavar="MODULE", action="append", default=[], help=about)


def _read(args: argparse.Namespace, file: str | Path) -> Experiment:
    """Return the experiment in a configuration file."""
    from fedsim.modules import Modules
    from fedsim.study import config

    return config.experiment(config.read(file), Modules.here(args.module))


def _engine(args: argparse.Namespace) -> Any:
    """Return the engine that was asked for."""
    from functools import partial

    from fedsim.engines.engine import choose

    make = choose(args.engine)
    if not args.address:
        return make
    if args.engine != "ray":
        raise ConfigError(f"--address is for --engine ray; --engine is {args.engine!r}")
    return partial(make, address=args.address)


def _about_table(sub: argparse.ArgumentParser) -> None:
    """Add what says how to read the user's own table."""
    group = sub.add_argument_group("a table of your own")
    group.add_argument("--label", metavar="COLUMN", help="what to predict")
    group.add_argument("--client-column", metavar="COLUMN", action="append", help="whose a row is; repeatable")
    group.add_argument("--drop", metavar="COLUMN", action="append", default=[], help="leave out; repeatable")
    group.add_argument(
        "--categorical", metavar="COLUMN", action="append", default=[], help="numbers that are names; repeatable"
    )


def _table(args: argparse.Namespace, file: str) -> str | None:
    """Return the dataset's text if the file is a table, and None if it is none."""
    from fedsim.data import SUFFIXES
    from fedsim.text import call

    options = {
        "label": args.label,
        "client_column": args.client_column,
        "drop": args.drop,
        "categorical": args.categorical,
    }
    given = {name: value for name, value in options.items() if value}
    if not file.lower().endswith(SUFFIXES):
        if given:
            name = next(iter(given)).replace("_", "-")
            raise ConfigError(f"--{name} is for a table ({', '.join(SUFFIXES)}); {file!r} is none")
        return None
    if not args.label:
        raise ConfigError(f"{file!r} is a table; say which column to predict by --label COLUMN")
    return call("table", [file], given)


def _version() -> str:
    from fedsim import __version__

    return f"fedsim {__version__}"


def _with_data_dir(assignments: list[str], data_dir: str | None) -> list[str]:
    import tomli_w

    return assignments + ([tomli_w.dumps({"data_dir": data_dir})] if data_dir else [])


def _run(args: argparse.Namespace) -> None:
    from fedsim.study import config

    table = _table(args, args.file)
    experiment = config.table_plan(table, args.data_dir).base if table else _read(args, args.file)
    chosen = [f"client={text}" for text in args.client[-1:]] + [f"split={text}" for text in args.split[-1:]]
    experiment = config.apply(experiment, chosen + _with_data_dir(args.set, args.data_dir))
    _say_notes(experiment)
    if args.engine == "deployment":
        settings = {} if args.workers is None else {"nodes": args.workers}
        _deployed(experiment, args.address or "local", settings, args)
    else:
        _execute(experiment, args)


def _say_notes(experiment: Experiment) -> None:
    """Say what reading the data did to it."""
    from fedsim import data
    from fedsim.study.directory import notice

    if isinstance(experiment.dataset, str) and experiment.dataset.startswith(("table", "hub")):
        dataset = data.load(experiment.dataset, experiment.data_dir)
        kind = "numbers to regress on" if dataset.regression else f"{dataset.num_classes} labels"
        notice(
            f"{dataset.name}: {len(dataset.x_train):,} training and {len(dataset.x_test):,} test examples, "
            f"{dataset.x_train.shape[1]} features, {kind}"
        )
        for note in dataset.notes:
            notice(f"{dataset.name}: {note}")


def _resume(args: argparse.Namespace) -> None:
    from fedsim.study.directory import CHECKPOINT, CONFIGURATION, RESULTS

    folder = Path(args.out)
    if not (folder / CONFIGURATION).exists():
        raise ConfigError(f"{args.out!r} has no {CONFIGURATION}; allowed: a directory that fedsim run --out wrote")
    if not (folder / CHECKPOINT).exists():
        state = "is complete" if (folder / RESULTS[0]).exists() else f"has no {CHECKPOINT}"
        raise ConfigError(f"the run in {args.out!r} {state}; there is nothing to resume")
    _execute(_read(args, folder / CONFIGURATION), args)


def _execute(experiment: Experiment, args: argparse.Namespace) -> None:
    from fedsim.study.directory import RESULTS
    from fedsim.study.progress import ProgressBar

    try:
        with ProgressBar(experiment.rounds, leave=False) as bar:
            result = experiment.run(
                workers=args.workers, callbacks=[bar], verbose=args.verbose, directory=args.out, engine=_engine(args)
            )
    except KeyboardInterrupt:
        if args.out:
            print(f"interrupted; fedsim resume {args.out} goes on", file=sys.stderr)
        raise
    known = result.history.dropna(axis="columns", how="all")
    print(known.to_string(index=False, float_format=lambda x: f"{x:.4g}"))
    if result.stop_reason:
        print(f"stopped after round {result.rounds} of {experiment.rounds}: {result.stop_reason}")
    if args.out:
        print(f"wrote {', '.join(RESULTS)} to {args.out}")


def _compare(args: argparse.Namespace) -> None:
    from fedsim.checks import check_real
    from fedsim.modules import Modules
    from fedsim.study import config
    from fedsim.study.compare import TABLES, compare

    if args.target is not None:
        check_real("--target", args.target)
    assignments = _with_data_dir(args.set, args.data_dir)
    chosen: dict[str, Any] = {"client": args.client, "split": args.split, "seeds": args.seeds}
    chosen = {name: value for name, value in chosen.items() if value not in ([], None)}
    if table := _table(args, args.file):
        plan = config.table_plan(table, args.data_dir, assignments, chosen)
    else:
        plan = config.plan(config.read(args.file), assignments, chosen, Modules.here(args.module))
    _say_notes(plan.base)
    axes: dict[str, Any] = dict(plan.axes)
    fixed: dict[str, Any] = {"seeds": plan.seeds, "baselines": plan.baselines}
    settings = {"workers": args.workers, "verbose": args.verbose, "engine": _engine(args), "directory": args.out}
    study = compare(plan.base, **fixed, **settings, **axes)
    print(study.table(args.target).to_string())
    if args.out:
        pictures: dict[str, Callable[[Path], None]] = {
            "accuracy.png": study.plot,
            "drift.png": study.plot_drift,
            "splits.png": study.plot_splits,
        }
        if study.evaluated:
            pictures["local_accuracy.png"] = lambda path: study.plot(path, "local")
            pictures["accuracy_by_skew.png"] = study.plot_score_by_skew
        for name, draw in pictures.items():
            draw(Path(args.out) / name)
        print(f"wrote {', '.join([*TABLES, *pictures])} to {args.out}")


def report_kept(folder: Path | None) -> None:
    """Say where earlier results were moved, if they were."""
    if folder:
        print(f"kept the earlier results in {folder}")


def _splits(args: argparse.Namespace) -> None:
    from fedsim import data
    from fedsim.checks import check_choice, check_integer, check_seed
    from fedsim.report.split_plots import KINDS, plot_splits
    from fedsim.report.tables import shards_table, splits_table
    from fedsim.study import config

    check_integer("--most", args.most, 1)
    check_seed("--seed", args.seed)
    check_choice("--kind", args.kind, KINDS)
    if args.out and Path(args.out).exists():
        raise ConfigError(f"{args.out!r} exists; give --out another name, nothing is overwritten")
    chosen = [config.build("split", text) for text in args.split]
    labels = [str(split) for split in chosen]
    if len(set(labels)) < len(labels):
        labels = args.split
    name = _table(args, args.dataset) or args.dataset
    dataset = data.load(name, args.data_dir)
    held = {label: split.federate(dataset, args.seed) for label, split in zip(labels, chosen, strict=True)}
    if args.out:
        counts = {label: federated.label_counts() for label, federated in held.items()}
        plot_splits(counts, args.out, dataset.name, args.kind, dataset.label_names)
    print(f"{dataset.name}: {len(dataset.x_train):,} training examples; means over clients")
    print(splits_table(held).to_string())
    for label, federated in held.items():
        print(f"\n{label}")
        print(shards_table(federated).head(args.most).to_string())
        if len(federated.partition) > args.most:
            rest = len(federated.partition) - args.most
            print(f"... and {rest:,} more clients (--most {len(federated.partition)} shows all)")
    if args.out:
        print(f"\nwrote {args.out}")


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the run configuration that was asked for."""
    from fedsim.checks import check_integer, check_real

    if args.nodes is not None:
        check_integer("--nodes", args.nodes, 1)
    if args.timeout is not None:
        check_real("--timeout", args.timeout, 0, open_low=True)
    if args.retries is not None:
        check_integer("--retries", args.retries, 0)
    given = {"nodes": args.nodes, "timeout": args.timeout, "retries": args.retries}
    return {name: value for name, value in given.items() if value is not None}


def _deploy(args: argparse.Namespace) -> None:
    from fedsim.study import config

    experiment = config.apply(_read(args, args.file), _with_data_dir(args.set, args.data_dir))
    _deployed(experiment, args.superlink, _settings(args), args)


def _deployed(experiment: Experiment, superlink: str, settings: dict[str, Any], args: argparse.Namespace) -> None:
    """Run an experiment on SuperNodes: of a SuperLink that is brought up here, or of a connection."""
    from fedsim.apps import deploy

    insecure = getattr(args, "insecure", False)

    def say(line: str) -> None:
        if args.verbose or line.startswith("fedsim: "):
            print(line, file=sys.stderr)

    if superlink != "local":
        if insecure:
            raise ConfigError("--insecure is for a local deployment; a connection of yours says itself")
        deploy.submit(experiment, superlink, say=say, out=args.out or "", **settings)
        return
    nodes = settings.pop("nodes", 4)
    history = deploy.local(experiment, nodes, args.out, say, insecure, **settings)
    known = history.dropna(axis="columns", how="all")
    print(known.to_string(index=False, float_format=lambda x: f"{x:.4g}"))
    if args.out:
        print(f"wrote the results to {args.out}")


def _export(args: argparse.Namespace) -> None:
    from fedsim.apps.export import export
    from fedsim.study import config

    experiment = config.apply(_read(args, args.file), _with_data_dir(args.set, args.data_dir))
    folder = export(experiment, args.folder, **_settings(args))
    print(f"wrote a Flower app to {folder}; flwr run {folder} runs it")


def _flower(args: argparse.Namespace) -> None:
    from fedsim.apps.local import run_app

    seconds = run_app(args.folder, args.nodes, args.run_config, args.workers, args.verbose)
    print(f"the app has run for {seconds:.1f} s")


def _strategies(args: argparse.Namespace) -> None:
    from fedsim.report.catalogue import catalogue

    print(catalogue(), end="")


def _check(args: argparse.Namespace) -> None:
    from fedsim.study import config
    from fedsim.testing import check_client_strategy

    strategy = config.build("client", args.client)
    for name in check_client_strategy(strategy):
        print(f"passed: {name}")


def _data(args: argparse.Namespace) -> None:
    from fedsim.data import idx

    print("digits           1,797 images 8 x 8, bundled with scikit-learn; no download (the default)")
    print("article          1,000 x 100 random inputs, 10 classes; its labels are pure noise")
    print("article_teacher  the same inputs, labelled by a random network: learnable")
    for source in (idx.MNIST, idx.FASHION_MNIST):
        print(f"{source.name:16} 70,000 images 28 x 28; {source.whereabouts(args.data_dir)}")
    print("synthetic        synthetic(alpha, beta): FedProx's 30 devices of 60 features, 10 classes; made here")
    print("synthetic_iid    the same with one model for all devices")
    print("fcube            NIID-Bench's 4,000 points in a cube, 2 classes, 4 clients by octants; made here")
    print("table            table('FILE', label='COLUMN', client_column='COLUMN'): your own CSV or Parquet file")
    print("hub              hub('NAME', label='COLUMN'): the Hugging Face hub, or a folder of save_to_disk (extra hub)")


if __name__ == "__main__":
    main()
