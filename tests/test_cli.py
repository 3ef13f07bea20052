"""The command and the scripts as a user runs them: in processes of their own."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedsim import Experiment, cli
from fedsim.apps import deploy
from fedsim.report.catalogue import client_entries, server_entries

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
    code = "import sys, fedsim, fedsim.cli; fedsim.cli.parser().format_help(); print(*sys.modules)"
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
        "rounds.csv",
        "clients.csv",
        "summary.csv",
        "accuracy.png",
        "drift.png",
        "splits.png",
        ".lock",
    }


def test_a_study_whose_last_variant_diverges_leaves_the_others(experiment: str, tmp_path: Path) -> None:
    done = fedsim(
        "compare", experiment, "--client", "SGD(lr=0.1)", "--client", "SGD(lr=1e9)", "--out", str(tmp_path / "out")
    )
    assert done.returncode == 2, done.stderr
    told, error = done.stderr.strip().splitlines()
    assert told.endswith(f"rounds.csv, clients.csv, summary.csv in {tmp_path / 'out'} hold 1 of its 2 runs")
    assert "training diverged in round 1" in error
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
    client = f"Leaver's train in {file}, line 10, ended the program (SystemExit(0))"
    refused(fedsim("run", experiment, "--client", "mine:Leaver", cwd=tmp_path), client)
    refused(fedsim("run", experiment, "--client", "mine:Leaver", "--workers", "2", cwd=tmp_path), client)
    server = f"Server's step in {file}, line 15, ended the program (SystemExit(0))"
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
        "from fedsim import cli, text\n\n\ndef main():\n    text.describe(None)\n\n\n"
        "if __name__ == '__main__':\n    cli.guard(main)\n"
    )
    done = call(str(script))
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_study_that_ends_before_its_first_run_says_that_nothing_was_written(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text('rounds = 1\nclient = "SGD(lr=1e9)"\n\n[compare]\nseeds = 1\n')
    done = fedsim("compare", "study.toml", "--out", "results", cwd=tmp_path)
    assert done.returncode == 2
    assert "the study ended before its first run had finished; nothing was written to results" in done.stderr
    assert not list((tmp_path / "results").glob("*.csv"))


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
        assert process.stderr.read().strip().endswith("interrupted")
    finally:
        process.kill()
        process.communicate()


def test_splits(tmp_path: Path) -> None:
    picture = tmp_path / "s.png"
    done = fedsim("splits", "IID(20)", "Dirichlet(20, alpha=0.1)", "--most", "3", "--out", str(picture))
    assert done.returncode == 0, done.stderr
    assert "digits: 1,442 training examples; means over clients" in done.stdout
    row = next(line.split() for line in done.stdout.splitlines() if line.startswith("Dirichlet(0.1) "))
    assert row[1:6] == ["20", "72", "72", "73", "0.00"]
    assert "and 17 more clients" in done.stdout
    assert picture.stat().st_size > 5_000
    refused(fedsim("splits", "IID(20)", "--out", str(picture)), "exists; give --out another name")


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
    assert "age: 10 of 300 values missing" in done.stderr
    rows = [line.split()[0] for line in done.stdout.splitlines()]
    assert [row for row in rows if row.startswith(("Natural", "IID", "Dir"))] == [
        "Natural(clinic)",
        "IID",
        "Dirichlet(0.1)",
    ]
    assert (tmp_path / "out" / "accuracy_by_skew.png").stat().st_size > 5_000
    chosen = ["--split", "IID(4)", "--client", "SGD", "--client", "FedProx", "--seeds", "2", "--set", "rounds=2"]
    assert "FedProx" in fedsim(*command, *chosen).stdout


def test_a_table_of_numbers_is_regressed_on_and_runs_again(patients: str, tmp_path: Path) -> None:
    command = ["run", patients, "--label", "days", "--drop", "outcome", "--set", "rounds=3"]
    done = fedsim(*command, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "test_r2" in done.stdout
    again = fedsim("run", str(tmp_path / "out" / "experiment.toml"))
    assert again.stdout.splitlines()[-1].split()[:4] == done.stdout.splitlines()[-2].split()[:4]
    shown = fedsim("splits", "Natural", "--dataset", patients, "--label", "days", "--client-column", "clinic")
    assert "Natural" in shown.stdout


def test_bad_tables_are_one_sentence_and_exit_2(patients: str, experiment: str) -> None:
    refused(fedsim("compare", patients), "is a table; say which column to predict by --label COLUMN")
    refused(fedsim("run", patients, "--label", "outcom"), "label is 'outcom'; allowed: age")
    refused(fedsim("run", patients, "--label", "outcome", "--client-column", "ward"), "client_column is 'ward'")
    refused(fedsim("run", experiment, "--label", "outcome"), "--label is for a table")
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
    refused(call(script, "--clients", "2000", cwd=tmp_path), "IID's num_clients is 2000")


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
        (["--set", "split=Shards(1000, per_client=2)"], "2000 shards; allowed: at most 1442"),
        (["--set", "split=Nope(3)"], "split is 'Nope(3)'; allowed: IID"),
        (["--set", "client.lr=100"], "training diverged in round 1 at client"),
        (["--set", "dataset=mnist", "--data-dir", "/nowhere"], "data_dir is '/nowhere' but holds neither"),
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
    assert {f.name for f in out.iterdir()} == {"rounds.csv", "clients.csv", "summary.csv", "accuracy.png", "splits.png"}
    assert len(pd.read_csv(out / "rounds.csv")) == 4 * 2 * 3
    assert "kept the earlier results" in call(SHOWPIECE, *QUICK, cwd=tmp_path).stdout
    assert (tmp_path / "results" / "iid_vs_noniid.1" / "accuracy.png").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--dataset", "mnits"], "dataset is 'mnits'; allowed: digits"),
        (["--alpha", "-1"], "Dirichlet's alpha is -1.0"),
        (["--clients", "1000"], "2000 shards"),
        (["--lr", "1e9"], "training diverged in round 1 at client"),
        (["--out", "/proc/none"], "cannot be written"),
    ],
)
def test_the_showpiece_refuses_bad_input(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    refused(call(SHOWPIECE, *QUICK, *arguments, cwd=tmp_path), sentence)


def test_the_extension_example(tmp_path: Path) -> None:
    done = call(str(ROOT / "experiments" / "extend_client_strategy.py"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "MyFedProx" in done.stdout


def test_strategies_are_listed_with_parameters_and_papers() -> None:
    done = fedsim("strategies")
    assert done.returncode == 0, done.stderr
    assert "FedProx(proximal_mu=0.01)" in done.stdout
    assert "(arXiv:1910.06378)" in " ".join(done.stdout.split())
    for entry in [*client_entries(), *server_entries()]:
        assert entry.about
        assert entry.paper or entry.name == "LocalOnly", entry


def test_check_says_what_to_fix(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from fedsim.clients import SGD\n\n\n"
        "class Good(SGD):\n    mu: float = 0.1\n\n\n"
        "class Bad(SGD):\n    def train(self, ctx):\n        return ctx.fit().sum(axis=0)\n"
    )
    good = fedsim("check", "mine:Good(mu=0.5)", cwd=tmp_path)
    assert good.returncode == 0, good.stderr
    assert good.stdout.count("passed: ") >= 20
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
    tick = cli._progress(Experiment(rounds=3))
    for number in range(4):
        tick({"round": number, "test_accuracy": number / 4})
    assert [score in terminal.getvalue() for score in ("=0.000", "=0.250", "=0.500", "=0.750")] == [False, *[True] * 3]


def test_a_run_that_is_submitted_is_not_deployed_here_too(experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted: list[str] = []
    monkeypatch.setattr(deploy, "submit", lambda experiment, superlink, **options: submitted.append(superlink))
    monkeypatch.setattr(deploy, "local", lambda *args, **options: pytest.fail("it is deployed here"))
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
