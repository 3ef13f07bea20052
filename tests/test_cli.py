"""The command and the scripts as a user runs them: in processes of their own."""

from __future__ import annotations

import argparse
import io
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from matplotlib.figure import Figure

from fedsim import Experiment, __version__, compare, data
from fedsim.apps import deployment, submission
from fedsim.apps.in_process import run_flower
from fedsim.cli import guard as guards
from fedsim.cli import main as cli
from fedsim.cli import options as cli_options
from fedsim.clients import SGD, FedDyn
from fedsim.errors import ConfigError
from fedsim.report import style
from fedsim.report.catalogue import catalogue, client_entries, server_entries
from fedsim.report.tables import shards_table, splits_table
from fedsim.report.terminal import to_text
from fedsim.splits import IID, Dirichlet
from fedsim.study import config, execution, pool
from fedsim.study.callbacks import FinishedRound
from fedsim.study.progress import ProgressBar
from fedsim.testing import CHECKS

ROOT = Path(__file__).resolve().parents[1]
SHOWPIECE = str(ROOT / "experiments" / "iid_vs_noniid.py")
QUICK = ["--rounds", "2", "--seeds", "2", "--clients", "10"]


def call(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, timeout=300)


def fedsim(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return call("-m", "fedsim.cli", *arguments, cwd=cwd)


def refused(done: subprocess.CompletedProcess[str], sentence: str) -> None:
    """Exit 2, one line on standard error with the sentence, no traceback."""
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.fixture
def experiment(tmp_path: Path) -> str:
    file = tmp_path / "exp.toml"
    file.write_text('split = "Dirichlet(10, alpha=0.5)"\nrounds = 2\nclient = "SGD(lr=0.2)"\n')
    return str(file)


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, fedsim, fedsim.cli.main; fedsim.cli.main.parser().format_help(); print(*sys.modules)"
    loaded = call("-c", code).stdout.split()
    assert "fedsim.cli" in loaded
    assert not {"flwr", "pandas", "matplotlib", "ray", "sklearn", "scipy", "numpy"} & set(loaded)


def test_run_writes_a_result_that_runs_again(experiment: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = fedsim("run", experiment, "--set", "client.epochs=2", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "test_accuracy" in done.stdout
    again = fedsim("run", str(out / "experiment.toml"), "--out", str(tmp_path / "again"))
    assert again.returncode == 0, again.stderr
    first, second = (pd.read_csv(folder / "history.csv") for folder in (out, tmp_path / "again"))
    assert first.drop(columns="seconds").equals(second.drop(columns="seconds"))
    third = fedsim("run", experiment, "--out", str(out))
    assert f"kept the earlier results in {out}.1" in third.stderr
    assert pd.read_csv(f"{out}.1/history.csv").equals(first)


def test_compare(experiment: str, tmp_path: Path) -> None:
    file = Path(experiment)
    file.write_text(file.read_text() + '[compare]\nseeds = 2\nsplit = ["IID(10)", "Shards(10, per_client=2)"]\n')
    done = fedsim("compare", experiment, "--out", str(tmp_path / "out"), "--target", "0.2")
    assert done.returncode == 0, done.stderr
    assert "Shards(2)" in done.stdout
    assert "rounds to 0.20" in done.stdout
    assert {f.name for f in (tmp_path / "out").iterdir()} == {
        "remarks.txt",
        "rounds.csv",
        "clients.csv",
        "summary.csv",
        "accuracy.png",
        "drift.png",
        "splits.png",
        "study.toml",
        "environment.json",
        "runs.csv",
        "runs",
        ".lock",
    }


def test_a_study_whose_last_variant_diverges_leaves_the_others(experiment: str, tmp_path: Path) -> None:
    done = fedsim(
        "compare", experiment, "--client", "SGD(lr=0.1)", "--client", "SGD(lr=1e9)", "--out", str(tmp_path / "out")
    )
    assert done.returncode == 0, done.stderr
    assert "fedsim: 1 of 2 runs diverged and are left out; the first: SGD(lr=1000000000.0), seed 0" in done.stderr
    assert "training diverged in round 1" in done.stderr
    assert "Diverged, and not in the means: SGD(lr=1000000000.0), seed 0." in done.stdout
    assert pd.read_csv(tmp_path / "out" / "summary.csv")["client"].tolist() == ["SGD"]


def test_the_current_directory_is_a_results_folder_too(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "e.toml").write_text('split = "IID(4)"\nrounds = 1\n')
    for number in range(3):
        done = fedsim("run", "e.toml", "--out", ".", cwd=here)
        assert done.returncode == 0, done.stderr
        assert (f"kept the earlier results in {here}.{number}" in done.stderr) == (number > 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["here", "here.1", "here.2"]


EXITS = """
import sys

from fedsim.clients import SGD
from fedsim.servers import FedAvg


class Leaver(SGD):
    def train(self, ctx):
        leave()


class Server(FedAvg):
    def step(self, server_round, weights, combined):
        sys.exit(0)


def leave():
    raise SystemExit(0)
"""


def test_a_strategy_that_exits_is_an_error_with_its_name(experiment: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(EXITS)
    (tmp_path / "loud.py").write_text("import sys\nsys.exit(0)\n")
    client = "SystemExit: 0 (mine.py, line 19)"
    refused(fedsim("run", experiment, "--client", "mine:Leaver", cwd=tmp_path), client)
    refused(fedsim("run", experiment, "--client", "mine:Leaver", "--workers", "2", cwd=tmp_path), client)
    server = "SystemExit: 0 (mine.py, line 15)"
    refused(fedsim("run", experiment, "--set", "server=mine:Server", cwd=tmp_path), server)
    refused(
        fedsim("run", experiment, "--client", "loud:Any", cwd=tmp_path), "imported: SystemExit: 0 (loud.py, line 2)"
    )
    done = fedsim("check", "mine:Leaver", cwd=tmp_path)
    assert done.returncode == 2
    assert client in done.stderr
    assert "Traceback" not in done.stderr


MISTAKES = """
import numpy as np

from fedsim.clients import SGD
from fedsim.servers import FedAvg
from fedsim.splits import CountedSplit


class Typo(SGD):
    def server_step(self, ctx):
        return ctx.mean["wieghts"]


class Arguments(SGD):
    def weigh(self, ctx):
        return np.ones(3)


class Layers(SGD):
    def private_groups(self, model):
        return model.layers


class Server(FedAvg):
    def step(self, server_round, weights, combined):
        return np.add(weights, combined[:3])


class Cut(CountedSplit):
    def assign(self, labels, rng):
        return labels / None
"""


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--client", "mine:Typo"], "KeyError: 'wieghts' (mine.py, line 11)"),
        (["--client", "mine:Arguments"], "Arguments's weigh() takes (self, ctx); allowed: (self, num_examples, up)"),
        (["--client", "mine:Layers"], "AttributeError: 'MLP' object has no attribute 'layers' (mine.py, line 21)"),
        (["--set", "server=mine:Server"], "ValueError: operands could not be broadcast together"),
        (["--split", "mine:Cut(4)"], "TypeError: unsupported operand type(s) for /"),
    ],
)
def test_an_error_in_a_class_of_ones_own_is_one_sentence(
    experiment: str, tmp_path: Path, options: list[str], sentence: str
) -> None:
    (tmp_path / "mine.py").write_text(MISTAKES)
    done = fedsim("run", experiment, *options, cwd=tmp_path)
    refused(done, sentence)
    assert "mine.py" in done.stderr


def test_an_error_of_fedsim_itself_keeps_its_traceback(tmp_path: Path) -> None:
    """Also if a script of the user's has called fedsim."""
    script = tmp_path / "script.py"
    script.write_text(
        "from fedsim import text\nfrom fedsim.cli import main as cli\n\n\ndef main():\n    text.describe(None)\n\n\n"
        "if __name__ == '__main__':\n    guards.guard(main)\n"
    )
    done = call(str(script))
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_study_that_ends_before_its_first_run_says_that_nothing_is_finished(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text('rounds = 1\nclient = "SGD(lr=1e9)"\n\n[compare]\nseeds = 1\n')
    done = fedsim("compare", "study.toml", "--out", "results", cwd=tmp_path)
    assert done.returncode == 2
    assert "the study ended early; 0 of 1 runs are finished in results" in done.stderr
    assert [p.name for p in (tmp_path / "results").glob("*.csv")] == ["runs.csv"]


BUSY = """
import time

from fedsim.clients import SGD


class Busy(SGD):
    def train(self, ctx):
        print("training", flush=True)
        time.sleep(100_000)
"""


@pytest.mark.parametrize("out", [False, True])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_ends_a_run_whose_clients_are_busy(experiment: str, workers: str, out: bool, tmp_path: Path) -> None:
    """At once; with a directory the second time, for the first asks for the end of the round."""
    (tmp_path / "mine.py").write_text(BUSY)
    command = [sys.executable, "-m", "fedsim.cli", "run", experiment, "--client", "mine:Busy", "--workers", workers]
    process = subprocess.Popen(
        command + (["--out", "out"] if out else []),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline().startswith("training")  # several threads print
        process.send_signal(signal.SIGINT)
        if out:
            assert "stopping after this round" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
        assert process.wait(timeout=100) == 130
        last = process.stderr.read().strip().splitlines()
        assert last[-1].endswith("interrupted")
        told = [line for line in last if line.startswith("interrupted;")]
        assert told == (["interrupted; resume the run with: fedsim resume out"] if out else [])
    finally:
        process.kill()
        process.communicate()


def test_splits(tmp_path: Path) -> None:
    picture = tmp_path / "s.png"
    done = fedsim("splits", "IID(20)", "Dirichlet(20, alpha=0.1)", "--max-clients", "3", "--out", str(picture))
    assert done.returncode == 0, done.stderr
    assert "digits: 1,442 training examples; means over clients" in done.stdout
    row = next(line.split() for line in done.stdout.splitlines() if line.startswith("Dirichlet(0.1) "))
    assert row[1:6] == ["20", "72", "72", "73", "0.00"]
    assert "and 17 more clients" in done.stdout
    assert picture.stat().st_size > 5_000
    refused(fedsim("splits", "IID(20)", "--out", str(picture)), "exists and is not overwritten; choose another --out")


@pytest.mark.parametrize("kind", ["bars", "bubbles", "sizes"])
def test_splits_are_drawn_in_several_ways(kind: str, tmp_path: Path) -> None:
    done = fedsim("splits", "LabelDirichlet(1000, alpha=0.1)", "--kind", kind, "--out", str(tmp_path / "s.png"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "s.png").stat().st_size > 5_000
    refused(fedsim("splits", "IID(20)", "--kind", "pie"), "--kind is 'pie'; allowed: bars, bubbles, sizes")


@pytest.fixture
def patients(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    age = rng.normal(50, 10, 300)
    frame = pd.DataFrame({"age": age, "sex": rng.choice(["f", "m"], 300), "clinic": rng.choice(list("abcd"), 300)})
    frame["outcome"] = np.where(age > 50, "ill", "well")
    frame["days"] = age * 2.5 + rng.normal(size=300)
    frame.loc[:9, "age"] = np.nan
    frame.to_csv(tmp_path / "patients.csv", index=False)
    return str(tmp_path / "patients.csv")


def test_a_table_goes_from_file_to_comparison_in_one_command(patients: str, tmp_path: Path) -> None:
    command = ["compare", patients, "--label", "outcome", "--client-column", "clinic", "--drop", "days"]
    done = fedsim(*command, "--set", "rounds=3", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "240 training and 60 test examples, 4 features, 2 labels" in done.stderr
    assert "patients.csv: age: 10 of 300 values missing" in done.stderr
    rows = [line.split()[0] for line in done.stdout.splitlines()]
    assert [row for row in rows if row.startswith(("Natural", "IID", "Dir"))] == [
        "Natural(clinic)",
        "IID",
        "Dirichlet(0.1)",
    ]
    assert (tmp_path / "out" / "accuracy_by_skew.png").stat().st_size > 5_000
    assert "against best" in done.stdout  # three seeds
    assert "Against best: paired t tests of all pairs, by seed, with Holm's correction." in done.stdout
    assert "summary.csv, tests.csv, fairness.csv" in done.stdout
    assert len(pd.read_csv(tmp_path / "out" / "tests.csv")) == 3
    chosen = ["--split", "IID(4)", "--client", "SGD", "--client", "FedProx", "--seeds", "2", "--set", "rounds=2"]
    assert "FedProx" in fedsim(*command, *chosen).stdout


def test_a_table_of_numbers_is_regressed_on_and_runs_again(patients: str, tmp_path: Path) -> None:
    command = ["run", patients, "--label", "days", "--drop", "outcome", "--set", "rounds=3"]
    done = fedsim(*command, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "test_r2" in done.stdout
    assert "patients.csv: 240 training and 60 test examples, 8 features, a real-valued target" in done.stderr
    again = fedsim("run", str(tmp_path / "out" / "experiment.toml"))
    assert again.stdout.splitlines()[-1].split()[:4] == done.stdout.splitlines()[-2].split()[:4]
    shown = fedsim("splits", "Natural", "--dataset", patients, "--label", "days", "--client-column", "clinic")
    assert "Natural" in shown.stdout


def test_bad_tables_are_one_sentence_and_exit_2(patients: str, experiment: str) -> None:
    refused(fedsim("compare", patients), "is a table; name the column to predict with --label COLUMN")
    refused(fedsim("run", patients, "--label", "outcom"), "label is 'outcom'; allowed: age")
    refused(fedsim("run", patients, "--label", "outcome", "--client-column", "ward"), "client_column is 'ward'")
    refused(fedsim("run", experiment, "--label", "outcome"), "--label is for tables")
    refused(fedsim("run", "none.csv", "--label", "y"), "the table 'none.csv' does not exist")


def test_how_noniid_hurts(tmp_path: Path) -> None:
    script = str(ROOT / "experiments" / "how_noniid_hurts.py")
    done = call(script, "--rounds", "10", "--seeds", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Accuracy loss grows with the earth mover's distance" in done.stdout
    points = pd.read_csv(tmp_path / "results" / "how_noniid_hurts" / "points.csv")
    assert len(points) == 22
    assert points.groupby("iid_share")["emd"].mean().is_monotonic_decreasing
    assert (tmp_path / "results" / "how_noniid_hurts" / "accuracy_by_distance.png").stat().st_size > 10_000
    refused(call(script, "--clients", "2000", cwd=tmp_path), "IID's num_clients for 1442 training examples is 2000")


def test_secure_aggregation_with_dropouts(tmp_path: Path) -> None:
    script = str(ROOT / "experiments" / "trust" / "secure_aggregation.py")
    done = call(script, "--clients", "10", "--rounds", "2", "--neighbours", "8", "--out", "results", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "results" / "secure_aggregation.csv")
    assert table["aggregation"].tolist() == ["plain", *["secure"] * 5]
    assert table["accuracy"][0] == table["accuracy"][1]
    assert table["difference of weights"][1] < 1e-6 < table["difference of weights"][4]
    assert (tmp_path / "results" / "secure_aggregation.png").stat().st_size > 10_000


def test_data_says_where_mnist_is(mnist_dir: Path, tmp_path: Path) -> None:
    assert f"in {mnist_dir}" in fedsim("data", "--data-dir", str(mnist_dir)).stdout
    assert f"NOT in {tmp_path}" in fedsim("data", "--data-dir", str(tmp_path)).stdout


def test_a_strategy_of_the_users_own(experiment: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from fedsim.clients import SGD\n\n\n"
        "class Mine(SGD):\n    mu: float = 0.1\n\n"
        "    def direction(self, grad, weights, ctx):\n"
        "        return grad + self.mu * (weights - ctx.global_weights)\n"
    )
    done = fedsim("run", experiment, "--set", "client=mine:Mine(mu=0.5, lr=0.1)", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        'client = "mine:Mine(lr=0.1, epochs=1, batch_size=10, momentum=0.0, weight_decay=0.0, lr_decay=1.0, '
        'lr_decay_every=1, mu=0.5)"' in (tmp_path / "out/experiment.toml").read_text()
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--set", "dataset=mnits"], "dataset is 'mnits'; allowed: digits"),
        (
            ["--set", "split=Dirichlet(10, alpha=-1)"],
            "Dirichlet's alpha is -1; allowed: a finite number greater than 0",
        ),
        (
            ["--set", "split=Shards(1000, per_client=2)"],
            "per_client for 1000 clients and 1442 training examples is 2; allowed",
        ),
        (["--set", "split=Nope(3)"], "split is 'Nope(3)'; allowed: IID"),
        (["--set", "client.lr=100"], "training diverged in round 1 at client"),
        (["--set", "dataset=mnist", "--data-dir", "/nowhere"], "data_dir is '/nowhere' but contains neither"),
        (["--out", "/proc/nothing"], "the results folder '/proc/nothing' cannot be written"),
        (["--workers", "0"], "workers is 0; allowed: a whole number, 1 to 4096"),
        (["--workers", "99999999"], "workers is 99999999; allowed: a whole number, 1 to 4096"),
        (["--out", ""], "argument --out: it is ''; allowed: a path"),
        (["--workers", "two"], "invalid int value: 'two'"),
        (["--set", "server=flwr.serverapp.strategy:QFedAvg"], "client_learning_rate"),
        (["--set", "server=FedAdam(etta=1)"], "etta"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(experiment: str, arguments: list[str], sentence: str) -> None:
    refused(fedsim("run", experiment, *arguments), sentence)


def test_bad_files_are_one_sentence_and_exit_2(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("rounds = = 3")
    refused(fedsim("run", str(tmp_path / "bad.toml")), "is not TOML")
    refused(fedsim("run", str(tmp_path / "none.toml")), "cannot be read: No such file or directory")
    refused(fedsim("run", str(tmp_path)), "cannot be read: Is a directory")
    (tmp_path / "plain.toml").write_text("rounds = 3")
    refused(fedsim("compare", str(tmp_path / "plain.toml")), "needs a [compare] table")
    refused(fedsim("run", str(ROOT / "experiments" / "fedavg_table1.toml")), "run it with fedsim compare")


def test_the_showpiece(tmp_path: Path) -> None:
    done = call(SHOWPIECE, *QUICK, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # quiet when not a terminal
    for word in ("IID", "Shards(2)", "Dirichlet(1.0)", "Dirichlet(0.1)", "final accuracy"):
        assert word in done.stdout
    out = tmp_path / "results" / "iid_vs_noniid"
    tables = {"rounds.csv", "clients.csv", "summary.csv", "fairness.csv"}
    assert {f.name for f in out.iterdir()} == tables | {"accuracy.png", "splits.png"}
    assert len(pd.read_csv(out / "rounds.csv")) == 4 * 2 * 3
    assert "kept the earlier results" in call(SHOWPIECE, *QUICK, cwd=tmp_path).stdout
    assert (tmp_path / "results" / "iid_vs_noniid.1" / "accuracy.png").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--dataset", "mnits"], "dataset is 'mnits'; allowed: digits"),
        (["--alpha", "-1"], "Dirichlet's alpha is -1.0"),
        (["--clients", "1000"], "per_client for 1000 clients"),
        (["--lr", "1e9"], "training diverged in round 1 at client"),
        (["--out", "/proc/none"], "cannot be written"),
    ],
)
def test_the_showpiece_refuses_bad_input(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    refused(call(SHOWPIECE, *QUICK, *arguments, cwd=tmp_path), sentence)


@pytest.mark.slow
def test_the_extension_example(tmp_path: Path) -> None:
    done = call(str(ROOT / "experiments" / "extend_client_strategy.py"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "MyFedProx" in done.stdout


def test_the_example_of_a_round(tmp_path: Path) -> None:
    done = call(str(ROOT / "experiments" / "extend_round.py"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [
        "FedAvg",
        "clipped",
        "uniform",
        "attacked",
    ]


def test_strategies_are_listed_with_parameters_and_papers() -> None:
    done = fedsim("strategies")
    assert done.returncode == 0, done.stderr
    assert "FedProx(proximal_mu=0.01)" in done.stdout
    assert "(arXiv:1910.06378)" in " ".join(done.stdout.split())
    for entry in [*client_entries(), *server_entries()]:
        assert entry.description
        assert entry.paper or entry.name == "LocalOnly", entry


def test_check_says_what_to_fix(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from fedsim.clients import SGD\n\n\n"
        "class Good(SGD):\n    mu: float = 0.1\n\n\n"
        "class Bad(SGD):\n    def train(self, ctx):\n        return ctx.fit().sum(axis=0)\n"
    )
    good = fedsim("check", "mine:Good(mu=0.5)", cwd=tmp_path)
    assert good.returncode == 0, good.stderr
    assert [line.partition(": ")[0] for line in good.stdout.splitlines()] == ["passed"] * len(CHECKS)
    bad = fedsim("check", "mine:Bad", cwd=tmp_path)
    assert bad.returncode == 2
    assert "it must be (clients, parameters)" in bad.stderr
    assert "Traceback" not in bad.stderr


def test_client_strategies_are_compared_from_the_command_line(experiment: str) -> None:
    done = fedsim("compare", experiment, "--client", "SGD", "--client", "SCAFFOLD(epochs=2)")
    assert done.returncode == 0, done.stderr
    assert "SCAFFOLD(epochs=2)" in done.stdout
    ran = fedsim("run", experiment, "--client", "FedDyn(alpha=0.5)", "--set", "client.lr=0.05")
    assert ran.returncode == 0, ran.stderr


def test_a_terminal_sees_the_score_of_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with ProgressBar(rounds=3, leave=False) as bar:
        for number in range(4):
            bar.round_finished(FinishedRound(number, {"test_accuracy": number / 4}, {}, None, dict))
    shown = terminal.getvalue()
    assert [score in shown for score in ("=0.000", "=0.250", "=0.500", "=0.750")] == [False, *[True] * 3]
    assert "3/3" in shown
    assert "round/s" in shown
    assert shown.endswith("\r")  # at the end the bar is wiped out
    assert not shown.split("\r")[-2].strip()


def test_a_run_that_is_submitted_is_not_deployed_here_too(experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted: list[str] = []
    monkeypatch.setattr(submission, "submit", lambda experiment, superlink, **options: submitted.append(superlink))
    monkeypatch.setattr(deployment, "run_local_deployment", lambda *args, **options: pytest.fail("it is deployed here"))
    arguments = cli.parser().parse_args(["deploy", "mine", experiment])
    arguments.action(arguments)
    assert submitted == ["mine"]


def test_deploy_asks_where(experiment: str) -> None:
    done = fedsim("deploy", experiment)
    assert done.returncode == 2
    assert "the following arguments are required: experiment.toml" in done.stderr


def test_sgd_is_the_first_client_algorithm_and_the_others_follow_by_name() -> None:
    first, *others = [entry.name for entry in client_entries()]
    assert first == "SGD"
    assert others == sorted(others, key=str.lower)


def test_a_table_is_found_in_the_folder_of_data_and_accuracy_is_a_share_of_its_test_set(
    patients: str, tmp_path: Path
) -> None:
    """Every number of right answers among 60 is whole; nothing is rounded off."""
    (tmp_path / "elsewhere").mkdir()
    name = Path(patients).name
    arguments = ["run", name, "--label", "outcome", "--data-dir", str(tmp_path), "--set", "rounds=3", "--out", "out"]
    done = fedsim(*arguments, cwd=tmp_path / "elsewhere")
    assert done.returncode == 0, done.stderr
    right = pd.read_csv(tmp_path / "elsewhere" / "out" / "history.csv")["test_accuracy"] * 60
    np.testing.assert_allclose(right, right.round(), atol=1e-9)


def here(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    """What the command says in this process, on standard output and on standard error."""
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    said = capsys.readouterr()
    assert left.value.code == code, said
    return said.out, said.err


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small experiment, the current one."""
    (tmp_path / "e.toml").write_text('split = "IID(4)"\nhidden = [2]\nrounds = 1\nkernel = "numpy"\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


SMALL: dict[str, Any] = {"split": IID(4), "hidden": (2,), "rounds": 1, "kernel": "numpy"}


def no_buffer_setting() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ConfigError("no"), "no"),
        (FileNotFoundError(2, "No such file or directory", "a.csv"), "a.csv: No such file or directory"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("odd"), "odd"),
        (MemoryError("1 TiB"), "not enough memory: 1 TiB"),
    ],
)
def test_an_error_of_the_user_is_one_sentence_after_the_programs_name(
    error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["/usr/bin/tool", "run"])
    with pytest.raises(SystemExit) as left:
        guards.guard(main)
    assert left.value.code == 2
    assert capsys.readouterr() == ("", f"tool: error: {sentence}\n")


@pytest.mark.parametrize("daemon", [False, True])
def test_ctrl_c_waits_for_no_thread_and_loses_no_output(daemon: bool, tmp_path: Path) -> None:
    """Without threads that Python would wait for, it ends as usual, exit handlers included."""
    script = tmp_path / "tool.py"
    script.write_text(
        "import atexit, threading, time\nfrom fedsim.cli import guard as guards\natexit.register(print, 'the end')\n"
        f"threading.Thread(target=time.sleep, args=(1000,), daemon={daemon}).start()\n\n\n"
        "def main():\n    print('said')\n    raise KeyboardInterrupt\n\n\nguards.guard(main)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], env=no_buffer_setting(), capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stderr) == (130, "tool.py: interrupted\n")
    assert done.stdout == ("said\nthe end\n" if daemon else "said\n")


def test_a_second_ctrl_c_while_the_process_exits_keeps_the_exit_code(tmp_path: Path) -> None:
    script = tmp_path / "tool.py"
    script.write_text(
        "import atexit, os, signal\nfrom fedsim.cli import guard as guards\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))\n\n\n"
        "def main():\n    raise KeyboardInterrupt\n\n\nguards.guard(main)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (130, "tool.py: interrupted\n")


@pytest.mark.parametrize("command", ["data", "strategies"])
def test_a_reader_that_has_left_is_no_error_of_many_lines(command: str) -> None:
    """As head and less leave, whether the output is long or short."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fedsim.cli", command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=no_buffer_setting(),
    )
    assert process.stdout
    process.stdout.close()
    assert process.stderr
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait(100) == 1


def test_a_script_may_exit_with_a_code_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        guards.guard(lambda: sys.exit(3))
    assert left.value.code == 3
    assert capsys.readouterr().err == ""


def test_a_function_of_a_flower_app_that_exits_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    app = ServerApp()

    @app.main()
    def serve(grid: Grid, context: Context) -> None:
        sys.exit(3)

    def main() -> None:
        run_flower(app, ClientApp(), 1)

    with pytest.raises(SystemExit) as left:
        guards.guard(main)
    assert left.value.code == 2
    assert f"error: SystemExit: 3 ({Path(__file__).name}, line " in capsys.readouterr().err


@pytest.mark.parametrize(("argument", "code"), [("--no", 2), ("--help", 0)])
def test_a_scripts_own_arguments_are_left_to_its_parser(
    argument: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        guards.guard(lambda: print(guards.Parser(prog="tool").parse_args([argument])))
    assert left.value.code == code
    error = "tool: error: unrecognized arguments: --no (see tool --help)\n"
    assert capsys.readouterr().err == (error if code else "")


def commands() -> dict[str, argparse.ArgumentParser]:
    [found] = [a.choices for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return found


def test_the_help_says_what_each_command_does_and_the_defaults_there_are() -> None:
    """Only fedsim compare takes a strategy or a split several times."""
    named = 0
    for name, command in commands().items():
        said = command.description or ""
        assert said[0].isupper(), name
        assert said.endswith("."), name
        for action in command._actions:
            found = re.search(r"default: ([\w-]+)", action.help or "")
            if found and action.default is not None:
                assert found[1] == str(action.default), (name, action.dest)
                named += 1
            if action.dest in ("client", "split") and name in ("run", "compare", "search"):
                assert ("repeat it to compare several" in str(action.help)) == (name == "compare")
    assert named == 10


def test_the_command_says_its_version_and_what_its_commands_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.parser().parse_args(["--version"])
    assert (left.value.code, capsys.readouterr().out) == (0, f"fedsim {__version__}\n")
    listed = " ".join(cli.parser().format_help().split())
    for name, command in commands().items():
        said = str(command.description)
        assert f" {name} {said[0].lower()}{said[1:-1]} " in f"{listed} ", name


def test_every_command_of_the_documentation_is_understood() -> None:
    found = 0
    for page in [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for line in re.findall(r"^    fedsim (.*)", page.read_text(encoding="utf-8"), re.MULTILINE):
            cli.parser().parse_args(shlex.split(line.replace("--nodes N", "--nodes 2")))
            found += 1
    assert found > 30


def test_an_empty_path_is_refused_everywhere(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is what an unset variable of the shell gives."""
    for arguments in (
        ["resume", ""],
        ["compare", "e.toml", "--out", ""],
        ["splits", "IID(4)", "--out", ""],
        ["deploy", "local", "e.toml", "--out", ""],
    ):
        assert "it is ''; allowed: a path (see fedsim " in here(capsys, *arguments, code=2)[1]


def test_run_applies_the_last_client_and_split_then_settings_and_writes_all_that_is_known(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--client", "FedProx", "--client", "FedDyn(alpha=0.5)", "--split", "IID(9)", "--split", "IID(3)"]
    changes = ["--set", "client.lr=0.05", "--set", "rounds=2", "--data-dir", "7"]
    out, told = here(capsys, "run", "e.toml", *chosen, *changes, "--out", "out")
    assert told == ""
    made = config.experiment(config.read("out/experiment.toml"))
    assert made == Experiment(**SMALL | {"split": IID(3), "rounds": 2}, client=FedDyn(alpha=0.5, lr=0.05), data_dir="7")
    *table, last = out.splitlines()
    assert last == (
        "wrote history.csv, clients.csv, failures.csv, weights.npz, model_card.md, experiment.toml, environment.json, "
        "result.toml, SHA256SUMS to out"
    )
    history = pd.read_csv("out/history.csv")
    known = [name for name in history if history[name].notna().any()]
    assert table[0].split() == known
    assert "local_accuracy" not in known
    assert [line.split()[2] for line in table[1:]] == [f"{value:.4g}" for value in history["test_accuracy"]]


@pytest.mark.parametrize("command", ["run", "compare"])
def test_flowers_log_is_shown_if_asked_for(command: str, small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records: list[logging.LogRecord] = []

    class Recording(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler = Recording()
    logger = logging.getLogger("flwr")
    logger.addHandler(handler)
    try:
        arguments = [command, "e.toml", *(["--split", "IID(4)", "--seeds", "1"] if command == "compare" else [])]
        here(capsys, *arguments)
        assert not records
        here(capsys, *arguments, "-v")
        assert records
    finally:
        logger.removeHandler(handler)


def test_compare_prints_and_draws_what_the_study_of_the_same_arguments_does(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: dict[str, list[Any]] = {}

    def save(figure: Figure, path: str | Path) -> None:
        drawn[str(path)] = [
            (axes.get_title(), axes.get_ylabel(), [line.get_ydata() for line in axes.lines]) for axes in figure.axes
        ]

    monkeypatch.setattr(style, "save", save)
    (small / "s.toml").write_text((small / "e.toml").read_text() + '[compare]\nsplit = ["IID(4)"]\nseeds = 1\n')
    chosen = ["--split", "IID(3)", "--split", "Dirichlet(3, alpha=0.5)", "--seeds", "2", "--target", "0.15"]
    changes = ["--set", "fraction_evaluate=1.0", "--set", "client.lr=0.2", "--data-dir", "7"]
    out, _ = here(capsys, "compare", "s.toml", *chosen, *changes, "--out", "out")
    base = Experiment(**SMALL, fraction_evaluate=1.0, client=SGD(lr=0.2), data_dir="7")
    study = compare(base, split=[IID(3), Dirichlet(3, alpha=0.5)], seeds=2)
    *table, last = out.splitlines()
    assert table == [*to_text(study.table(0.15)).splitlines(), *study.notes]
    assert study.notes == [
        "2 seeds: no intervals and no tests, which need at least 3 seeds. Rounds are medians; a seed that missed the "
        "target counts as longer (Kaplan-Meier)."
    ]
    names = ["accuracy", "drift", "splits", "local_accuracy", "accuracy_by_skew"]
    pictures = ", ".join(f"{name}.png" for name in names)
    assert last == f"wrote the runs, rounds.csv, clients.csv, summary.csv, fairness.csv, {pictures} to out"
    assert pd.read_csv("out/summary.csv")["split"].tolist() == ["IID", "Dirichlet(0.5)"]
    said = here(capsys, "compare", "s.toml", "--set", "dataset=mnist", "--data-dir", "nowhere", code=2)[1]
    assert "data_dir is 'nowhere' but contains neither" in said
    study.plot("accuracy.png")
    study.plot("local_accuracy.png", "local")
    study.plot_drift("drift.png")
    study.plot_splits("splits.png")
    study.plot_score_by_skew("accuracy_by_skew.png")
    assert len({repr(drawn[f"{name}.png"]) for name in names}) == len(names)
    for name in names:
        assert repr(drawn[f"out/{name}.png"]) == repr(drawn[f"{name}.png"]), name


def test_no_empty_picture_of_drift_is_drawn_under_secure_aggregation(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secure = ["--set", "secure_aggregation=SecureAggregation()", "--split", "IID(3)", "--seeds", "1"]
    here(capsys, "compare", "e.toml", *secure, "--out", "out")
    assert {path.name for path in (small / "out").glob("*.png")} == {"accuracy.png", "splits.png"}


def test_an_address_is_for_an_engine_that_has_one(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = here(capsys, "run", "e.toml", "--address", "auto", code=2)[1]
    assert "--address is for --engine ray; --engine is 'in-process'" in said
    assert (
        "engine is 'rai'; allowed: in-process, ray; did you mean 'ray'?"
        in here(capsys, "run", "e.toml", "--engine", "rai", code=2)[1]
    )
    pytest.importorskip("ray")
    made = cli_options.choose_engine(
        cli.parser().parse_args(["run", "e.toml", "--engine", "ray", "--address", "host:1"])
    )
    assert (made.func.__name__, made.keywords) == ("RayEngine", {"address": "host:1"})


def test_where_and_how_an_experiment_is_deployed(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[Any, ...]] = []

    def local(
        experiment: Experiment, nodes: int, out: str | None, on_line: Any, insecure: bool, **settings: Any
    ) -> pd.DataFrame:
        asked.append(("local", experiment.rounds, nodes, out, insecure, settings))
        on_line("fedsim: round 1")
        on_line("INFO: of Flower")
        return pd.DataFrame({"round": [0, 1], "loss": [0.123456, np.nan], "nothing": [np.nan, np.nan]})

    def submit(experiment: Experiment, superlink: str, on_line: Any, out: str, **settings: Any) -> None:
        asked.append((superlink, experiment.rounds, out, settings))

    monkeypatch.setattr(deployment, "run_local_deployment", local)
    monkeypatch.setattr(submission, "submit", submit)
    out, told = here(capsys, "deploy", "local", "e.toml", "--set", "rounds=3", "--out", "o", "--insecure")
    assert told == "fedsim: round 1\n"
    assert [line.split() for line in out.splitlines()] == [
        ["round", "loss"],
        ["0", "0.1235"],
        ["1", "NaN"],
        ["wrote", "the", "results", "to", "o"],
    ]
    settings = ["--nodes", "1", "--timeout", "0.5", "--retries", "0"]
    out, told = here(capsys, "deploy", "local", "e.toml", "-v", *settings)
    assert told == "fedsim: round 1\nINFO: of Flower\n"
    assert "wrote" not in out
    here(capsys, "deploy", "mine", "e.toml", "--nodes", "2", "--out", "/there")
    here(capsys, "deploy", "mine", "e.toml")
    here(capsys, "run", "e.toml", "--engine", "deployment", "--workers", "3", "--address", "mine")
    here(capsys, "run", "e.toml", "--engine", "deployment", "--client", "FedProx")
    assert asked == [
        ("local", 3, 4, "o", True, {}),
        ("local", 1, 1, None, False, {"timeout": 0.5, "retries": 0}),
        ("mine", 1, "/there", {"nodes": 2}),
        ("mine", 1, "", {}),
        ("mine", 1, "", {"nodes": 3}),
        ("local", 1, 4, None, False, {}),
    ]
    said = here(capsys, "deploy", "mine", "e.toml", "--insecure", code=2)[1]
    assert "--insecure is for a local SuperLink; for another, set insecure in its connection" in said
    for option, value in (("nodes", "0"), ("timeout", "0"), ("timeout", "nan"), ("retries", "-1")):
        said = here(capsys, "deploy", "local", "e.toml", f"--{option}", value, code=2)[1]
        assert f"--{option} is {value}" in said.replace("0.0", "0")


def test_export_writes_the_changed_experiment_and_its_run_configuration(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--nodes", "3", "--timeout", "2.5", "--retries", "1"]
    out, _ = here(capsys, "export", "e.toml", "app", "--set", "rounds=5", "--data-dir", "7", *settings)
    assert out == "wrote a Flower app to app; run it with: flwr run app\n"
    written = tomllib.loads((small / "app/pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert (written["nodes"], written["timeout"], written["retries"]) == (3, 2.5, 1)
    made = config.experiment(tomllib.loads(written["experiment"]))
    assert made == Experiment(**SMALL | {"rounds": 5}, data_dir="7")


def test_a_module_of_a_file_is_allowed_by_the_person(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (small / "elsewhere").mkdir()
    (small / "elsewhere/foreign_cli.py").write_text("from fedsim.clients import SGD\n\nclass Mine(SGD):\n    pass\n")
    monkeypatch.syspath_prepend(small / "elsewhere")
    text = (small / "e.toml").read_text()
    (small / "f.toml").write_text(text + 'client = "foreign_cli:Mine"\n')
    (small / "s.toml").write_text(text + '[compare]\nclient = ["foreign_cli:Mine", "SGD"]\n')
    for command, file in (("run", "f.toml"), ("compare", "s.toml")):
        assert "allow it by --module foreign_cli" in here(capsys, command, file, code=2)[1]
        here(capsys, command, file, "--module", "foreign_cli")


def test_options_of_a_table_are_its_arguments() -> None:
    options = [
        "--label",
        "y",
        "--client-column",
        "a",
        "--client-column",
        "b",
        "--drop",
        "c",
        "--drop",
        "d",
        "--categorical",
        "e",
    ]
    for command in (["run", "T.CSV"], ["compare", "T.CSV"], ["splits", "Natural", "--dataset", "T.CSV"]):
        found = cli_options.table_call(cli.parser().parse_args([*command, *options]), "T.CSV")
        assert found == "table('T.CSV', label='y', client_column=['a', 'b'], drop=['c', 'd'], categorical=['e'])"
    for option in ("label", "client-column", "drop", "categorical"):
        args = cli.parser().parse_args(["run", "e.toml", f"--{option}", "x"])
        with pytest.raises(ConfigError, match=f"--{option} is for tables .*csv, .*parquet.*; 'e.toml' is not a table"):
            cli_options.table_call(args, "e.toml")


def test_splits_are_shown_as_they_are_with_a_seed(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Texts that have the same short label are told apart, and a picture shows its kind and the dataset's labels."""
    texts = ["IID(3)", "IID( 5 )"]
    out, _ = here(capsys, "splits", *texts, "--seed", "7", "--max-clients", "3")
    digits = data.load("digits")
    held = {text: config.build("split", text).federate(digits, 7) for text in texts}
    table = splits_table(held).to_string()
    first, second = (shards_table(held[text]).head(3).to_string() for text in texts)
    assert out == (
        f"digits: 1,442 training examples; means over clients\n{table}\n\n{texts[0]}\n{first}\n"
        f"\n{texts[1]}\n{second}\n... and 2 more clients (--max-clients 5 shows all)\n"
    )
    out, _ = here(capsys, "splits", "IID(3)", "--kind", "sizes", "--out", "s.svg")
    assert out.endswith("\nwrote s.svg\n")
    assert "<!-- Examples per client: digits -->" in (small / "s.svg").read_text()
    (small / "data").mkdir()
    rows = "".join(f"{k},{'ill' if k % 2 else 'well'}\n" for k in range(40))
    (small / "data/t.csv").write_text("a,y\n" + rows)
    here(capsys, "splits", "IID(2)", "--dataset", "t.csv", "--label", "y", "--data-dir", "data", "--out", "t.svg")
    assert {"<!-- ill -->", "<!-- well -->", "<!-- Label distribution per client: t.csv -->"} <= {
        line.strip() for line in (small / "t.svg").read_text().splitlines()
    }
    for option, value in (("max-clients", "0"), ("seed", "-1"), ("kind", "pie")):
        assert f"--{option} is " in here(capsys, "splits", "IID(3)", f"--{option}", value, code=2)[1]


def test_resume_says_what_there_is_not(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (small / "run").mkdir()
    said = here(capsys, "resume", "run", code=2)[1]
    assert "'run' has neither experiment.toml nor study.toml; allowed: a directory that fedsim run --out" in said
    (small / "run/experiment.toml").write_text("rounds = 1\n")
    said = here(capsys, "resume", "run", code=2)[1]
    assert "the run in 'run' has no checkpoint; there is nothing to resume" in said
    (small / "run/SHA256SUMS").touch()
    assert "the run in 'run' is complete; there is nothing to resume" in here(capsys, "resume", "run", code=2)[1]


def test_the_datasets_are_listed_with_their_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = here(capsys, "data")
    listed = {line.split()[0]: line for line in out.splitlines()}
    assert list(listed) == ["digits", "article", "article_teacher", "mnist", "fashion_mnist", *list(data.DATASETS)[5:]]
    for name in ("digits", "article", "fcube"):
        loaded = data.load(name)
        examples = len(loaded.x_train) + (len(loaded.x_test) if name == "digits" else 0)
        assert f" {examples:,} " in listed[name]
    for name in ("mnist", "fashion_mnist"):
        assert " 70,000 images 28 x 28; " in listed[name]  # as they were published
    devices = data.load("synthetic")
    assert f"{len(set(devices.groups['device']))} devices of {devices.x_train.shape[1]} features" in listed["synthetic"]


def test_an_app_of_flower_says_how_long_it_ran(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = cli.parser().parse_args(["flower", "app", "--nodes", "3", "--workers", "2", "-v", "--run-config", "a=1"])
    asked: list[Any] = []

    def run_app(*given: Any) -> float:
        asked.extend(given)
        return 1.25

    monkeypatch.setattr("fedsim.apps.app_folder.run_app", run_app)
    args.action(args)
    assert asked == ["app", 3, ["a=1"], 2, True]
    assert capsys.readouterr().out == "the app ran for 1.2 s\n"


def test_the_catalogue_lists_each_strategys_own_parameters_and_its_paper_in_short() -> None:
    """Parameters of SGD and FedAvg are listed once, unless a strategy has another default."""
    text = catalogue()
    blocks = {block.partition("(")[0]: block for block in text.split("\n\n")}
    assert blocks["SGD"].startswith(
        "SGD(lr=0.1, epochs=1, batch_size=10, momentum=0.0, weight_decay=0.0, lr_decay=1.0, lr_decay_every=1, "
        "steps=None)\n    Minibatch SGD on the client's own examples."
    )
    assert blocks["FedRS"].splitlines()[0] == "FedRS(alpha=0.5)"
    assert blocks["FedRS"].endswith(
        '\n    Li and Zhan, "FedRS: federated learning with restricted softmax for label distribution non-\n'
        '    IID data", KDD 2021'
    )
    assert blocks["LocalOnly"].splitlines()[0] == "LocalOnly()"
    assert [entry.paper for entry in client_entries() if entry.name == "LocalOnly"] == [""]  # it is of no paper
    assert blocks["FedSGD"].splitlines()[0] == "FedSGD(batch_size=None, steps=1)"
    assert blocks["PFedMe"].splitlines()[0] == "PFedMe(lr=0.005, lam=15.0, personal_lr=0.05, inner_steps=5, beta=1.0)"
    assert 'Deng et al., "Adaptive personalized federated learning", 2020 (arXiv:2003.13461)' in blocks["APFL"]
    assert blocks["FedAvg"].splitlines()[0] == "FedAvg(min_clients=1)"
    assert blocks["FedMedian"].splitlines()[0] == "FedMedian()"
    assert blocks["FedAdam"].splitlines()[0] == "FedAdam(eta=0.1, beta_1=0.9, beta_2=0.99, tau=0.001)"
    assert "`" not in text
    assert all(len(line) <= 96 for line in text.splitlines() if line.startswith(" "))
    titles = [text.splitlines()[k - 1] for k, line in enumerate(text.splitlines()) if line.startswith("===")]
    assert [title.partition(";")[0] for title in titles] == ["Client strategies", "Server strategies"]
    for title in titles:
        assert f"{title}\n{'=' * len(title)}\n\n" in text
    servers = text[text.index("Server strategies") :]
    assert re.findall(r"^(\w+)\(", servers, re.MULTILINE) == [entry.name for entry in server_entries()]
    first, *others = [entry.name for entry in server_entries()]
    assert first == "FedAvg"
    assert others == sorted(others, key=str.lower)


def test_a_grid_of_nested_settings_and_objects(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("study.toml").write_text('rounds = 1\n[compare]\nclient = ["SGD()", "FedProx(proximal_mu=0.5)"]\n')
    split = "split=IID(4); Dirichlet(4, alpha=0.1)"
    grid = "--grid", "client.lr=0.1,0.5", "--grid", split
    said, _ = here(capsys, "compare", "study.toml", *grid, "--seeds", "2", "--out", "out")
    assert "Mean ranks over 2 conditions: SGD, lr=0.1 " in said
    runs = pd.read_csv("out/runs.csv")
    labels = {name: list(runs[name].unique()) for name in ("client", "client.lr", "split", "seed")}
    assert labels == {
        "client": ["SGD", "FedProx(proximal_mu=0.5)"],
        "client.lr": [0.1, 0.5],
        "split": ["IID", "Dirichlet(0.1)"],
        "seed": [0, 1],
    }
    assert len(runs) == 16
    first = Path("out/runs") / runs["run"][0] / "experiment.toml"
    assert "lr=0.1" in tomllib.loads(first.read_text())["client"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--grid", "client.lr"], "--grid is 'client.lr'; allowed: KEY=VALUES, such as client.lr=0.01,0.1"),
        (["--grid", "client.lr="], "SGD's lr is ''; allowed: a finite number greater than 0"),
        (["--grid", "client.lr=0.1,0.1"], "client.lr has '0.1' twice; allowed: values that have different labels"),
        (["--grid", "client.lr=1", "--grid", "client.lr=2"], "--grid has client.lr twice; allowed: all of its values"),
        (["--client", "SGD", "--grid", "client=SGD"], "--client and --grid both have values of client; allowed: one"),
        (["--grid", "client.speed=1,2"], "client.speed"),
        (["--grid", "seed=1,2"], "an axis of compare is 'seed'"),
        (["--grid", "client.lr=1,2", "--target", "2"], "--target is 2.0; allowed: a finite number at most 1"),
        (
            ["--grid", "client.lr=1,2", "--tune-seeds", "2"],
            "tune has seeds only; allowed: settings too, such as",
        ),
        (["--grid", "client.lr=1,2", "--tune", "client.lr=3"], "client.lr is both tuned and compared; allowed: one of"),
    ],
)
def test_a_grid_that_cannot_be_run(
    arguments: list[str], sentence: str, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in here(capsys, "compare", "e.toml", *arguments, code=2)[1]


def test_the_command_runs_small_runs_on_all_cores(
    small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []

    def observed(work: Any, numbers: Any, processes: int, observe: Any) -> Any:
        used.append(processes)
        return pool.in_processes(work, numbers, processes, observe)

    monkeypatch.setattr(execution, "available_cores", lambda: 3)
    monkeypatch.setattr(execution, "in_processes", observed)
    here(capsys, "compare", "e.toml", "--grid", "client.lr=0.1,0.2", "--seeds", "2", "--out", "out")
    shutil.rmtree("out/runs")
    here(capsys, "resume", "out")
    assert used == [3, 3]
    here(capsys, "compare", "e.toml", "--grid", "client.lr=0.1,0.2", "--workers", "1")
    assert used == [3, 3]


def test_none_is_a_value_of_an_argument(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here(capsys, "compare", "e.toml", "--grid", "client.batch_size=10,none", "--out", "out")
    study = tomllib.loads(Path("out/study.toml").read_text())
    assert study["compare"]["client.batch_size"] == [10, "none"]
    here(capsys, "resume", "out")
    found = [tomllib.loads(file.read_text())["client"] for file in Path("out").glob("runs/*/experiment.toml")]
    assert sorted("batch_size=None" in text for text in found) == [False, True]
    here(capsys, "run", "e.toml", "--set", "client.batch_size=None")
