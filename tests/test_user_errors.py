"""Errors in the user's own code under the commands: one sentence with the line, and the whole traceback with -v."""

from __future__ import annotations

import importlib
import pickle
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fedsim import Experiment, compare, text
from fedsim.attacks import SignFlip
from fedsim.cli.guard import REPORT, guard
from fedsim.cli.main import main
from fedsim.clients import SGD
from fedsim.errors import ClientError, ConfigError, DivergenceError, named_run
from fedsim.splits import IID, Dirichlet

MODULE = """
from concurrent.futures import ThreadPoolExecutor

from fedsim.clients import SGD
from fedsim.servers import FedAvg


class Key(SGD):
    def train(self, ctx):
        return {}["wieghts"]  # the line of Key


class Lines(SGD):
    def train(self, ctx):
        raise ValueError("one\\n\\ttwo")  # the line of Lines


class Silent(SGD):
    def train(self, ctx):
        raise RuntimeError  # the line of Silent


class Thread(SGD):
    def train(self, ctx):
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(lambda: 1 / 0).result()  # the line of Thread


class Keyword(SGD):
    def train(self, ctx):
        return ctx.fit(lr=0.1)  # the line of Keyword


class Refused(SGD):
    def train(self, ctx):
        return SGD(lr=-1)  # the line of Refused


class Cost(SGD):
    def examples_per_round(self, num_examples):
        return num_examples / None  # the line of Cost


class File(SGD):
    def server_step(self, ctx):
        open("absent.txt")  # the line of File


class Leaves(SGD):
    def train(self, ctx):
        raise SystemExit(3)  # the line of Leaves


class Server(FedAvg):
    def step(self, server_round, weights, combined):
        return self.rate * combined  # the line of Server
"""
NAME = "module_with_mistakes"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The current folder has an experiment, and a module that is imported anew in each test."""
    (tmp_path / f"{NAME}.py").write_text(MODULE)
    (tmp_path / "exp.toml").write_text('split = "IID(3)"\nrounds = 1\nhidden = [2]\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(sys, "argv", ["fedsim"])
    importlib.invalidate_caches()
    yield
    for name in (NAME, "broken"):
        sys.modules.pop(name, None)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command prints on standard error before it exits with code 2."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    return capsys.readouterr().err


def line_of(name: str) -> int:
    return next(i for i, line in enumerate(MODULE.splitlines(), 1) if line.endswith(f"# the line of {name}"))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("Key", "client 0 failed in round 1: KeyError: 'wieghts'"),
        ("Lines", "client 0 failed in round 1: ValueError: one two"),
        ("Silent", "client 0 failed in round 1: RuntimeError: no message"),
        ("Thread", "client 0 failed in round 1: ZeroDivisionError: division by zero"),
        ("Keyword", "client 0 failed in round 1: TypeError: Context.fit() got an unexpected keyword argument 'lr'"),
        ("Refused", "SGD's lr is -1; allowed: a finite number greater than 0"),
        ("Cost", "TypeError: unsupported operand type(s) for /: 'float' and 'NoneType'"),
        ("File", "absent.txt: No such file or directory"),
        ("Leaves", "SystemExit: 3"),
        ("Server", "AttributeError: 'Server' object has no attribute 'rate'"),
    ],
)
def test_an_error_is_one_sentence_with_the_line(name: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    setting = "server" if name == "Server" else "client"
    error = said(capsys, "run", "exp.toml", "--set", f"{setting}={NAME}:{name}")
    if name == "Cost":  # NumPy's message is longer
        sentence = error.removeprefix("fedsim: error: ").partition(" (module")[0]
        assert sentence.startswith("TypeError: ")
    assert error == f"fedsim: error: {sentence} ({NAME}.py, line {line_of(name)})\n"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("x = 1\nclass Mine(:\n", "SyntaxError: invalid syntax (broken.py, line 2)"),
        ("x = 1\n   y = 2\n", "IndentationError: unexpected indent (broken.py, line 2)"),
        ("\nimport no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module' (broken.py, line 2)"),
        ("def f():\n    return 1 / 0\n\n\nf()\n", "ZeroDivisionError: division by zero (broken.py, line 2)"),
        ("import sys\nsys.exit('bye')\n", "SystemExit: bye (broken.py, line 2)"),
    ],
)
def test_a_module_that_cannot_be_imported(source: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.py").write_text(source)
    importlib.invalidate_caches()
    error = said(capsys, "run", "exp.toml", "--client", "broken:Mine")
    assert error == f"fedsim: error: client names the module 'broken', which cannot be imported: {reason}\n"


def test_an_installed_module_is_the_users_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If a text names a class in it."""
    monkeypatch.setattr(text, "_LIBRARIES", (*text._LIBRARIES, str(tmp_path)))
    monkeypatch.setattr(text, "_user_code", set())
    error = said(capsys, "run", "exp.toml", "--set", f"server={NAME}:Server")
    assert error.endswith(f" ({NAME}.py, line {line_of('Server')})\n")


@pytest.mark.parametrize("command", [["run", "exp.toml", "--client", f"{NAME}:Key"], ["check", f"{NAME}:Key"]])
def test_verbose_shows_the_whole_traceback_too(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    plain, verbose = said(capsys, *command), said(capsys, *command, "-v")
    assert "Traceback" not in plain
    assert verbose.endswith(plain)
    assert f'{NAME}.py", line {line_of("Key")}, in train' in verbose
    assert "KeyError: 'wieghts'" in verbose


def test_verbose_shows_the_traceback_of_a_bad_setting_too(capsys: pytest.CaptureFixture[str]) -> None:
    """And the exception that led to it, which the message replaces."""
    Path("broken.py").write_text("1 / 0\n")
    importlib.invalidate_caches()
    error = said(capsys, "run", "exp.toml", "-v", "--client", "broken:Mine")
    assert 'broken.py", line 1, in <module>' in error
    assert "During handling of the above exception" in error
    assert "Traceback" in said(capsys, "run", "exp.toml", "-v", "--set", "quux=1")
    assert "\x1b" not in said(capsys, "run", "exp.toml", "-v", "--set", "\x1b[31m=1")


def test_an_error_of_fedsim_itself_asks_for_a_report() -> None:
    def fails() -> None:
        text.describe(None)  # type: ignore[arg-type]

    with pytest.raises(AttributeError) as caught:
        guard(fails)
    assert caught.value.__notes__ == [REPORT]


def test_an_error_of_a_script_is_the_scripts() -> None:
    def fails() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError) as caught:
        guard(fails)
    assert not hasattr(caught.value, "__notes__")


def test_a_client_error_of_another_process_keeps_the_traceback() -> None:
    error = ClientError(7, 3, "why")
    try:
        raise KeyError("wieghts")
    except KeyError as cause:
        error.__cause__ = cause
    error.run = "IID, seed 1"
    twin = pickle.loads(pickle.dumps(error))
    assert str(twin) == str(error) == "IID, seed 1: client 7 failed in round 3: why"
    assert "in test_a_client_error_of_another_process" in str(twin.__cause__)
    assert str(twin.__cause__).endswith("KeyError: 'wieghts'\n")
    assert pickle.loads(pickle.dumps(ClientError(7, 3, "why"))).__cause__ is None


# Studies.

SMALL = Experiment(split=IID(3), hidden=(2,), rounds=1)


def test_an_error_in_a_study_names_the_run() -> None:
    with pytest.raises(DivergenceError, match=r"^Dirichlet\(0.1\), SGD\(lr=1e\+20\), seed 3: training diverged"):
        compare(SMALL, split=[Dirichlet(3, 0.1)], client=[SGD(lr=1e20)], seeds=[3])
    with pytest.raises(DivergenceError, match=r"^seed 0: training diverged in round 1"):
        compare(replace(SMALL, client=SGD(lr=1e20)))


def test_an_error_of_the_users_code_in_a_study_has_the_run_in_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    Path("study.toml").write_text(Path("exp.toml").read_text() + '[compare]\nseeds = [4]\nsplit = ["IID(3)"]\n')
    error = said(capsys, "compare", "study.toml", "--set", f"server={NAME}:Server")
    assert error.startswith("fedsim: error: IID, seed 4: AttributeError: 'Server' object has no attribute 'rate' (")
    with pytest.raises(KeyError) as caught, named_run("IID, seed 4"):
        raise KeyError("x")
    assert caught.value.__notes__ == ["IID, seed 4"]


def test_the_innermost_run_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^inner: why$") as caught, named_run("outer"), named_run("inner"):
        raise ConfigError("why")
    assert caught.value.reason == "why"


# Attacks.


def test_divergence_under_attack_names_the_attack() -> None:
    advice = (
        "; the attack SignFlip(scale=1000000000000.0) may be the cause; without an attack, a smaller lr usually helps"
    )
    with pytest.raises(DivergenceError, match=re.escape(advice) + "$"):
        replace(SMALL, rounds=3, attack=SignFlip(scale=1e12)).run()
    late = replace(SMALL, rounds=3, attack=SignFlip(start=3), client=SGD(lr=1e20))
    with pytest.raises(DivergenceError, match=r"with SGD\(lr=1e\+20\); a smaller lr usually helps$"):
        late.run()


def test_an_attack_that_would_never_start_is_refused() -> None:
    never = Experiment(split=IID(3), rounds=2, attack=SignFlip(start=3))
    with pytest.raises(ConfigError, match=r"^SignFlip's start is 3; allowed: 1 to 2, the rounds of the experiment$"):
        never.run()
