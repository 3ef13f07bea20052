"""Searches: the best settings, pruning by the median, and the same trials after every interruption."""

from __future__ import annotations

import multiprocessing
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedsim import Dataset, Experiment, Result
from fedsim.cli import main as cli
from fedsim.clients import SGD, FedProx, LocalOnly
from fedsim.errors import ConfigError, DivergenceError
from fedsim.servers import FedAdam
from fedsim.splits import IID, Dirichlet
from fedsim.study import config
from fedsim.study.callbacks import Callback, FinishedRound
from fedsim.study.search import search
from fedsim.study.search_result import Search
from fedsim.study.search_store import BEST, JOURNAL, TRIALS

if find_spec("optuna") is None:
    pytest.skip("the extra tune is not installed", allow_module_level=True)
pytestmark = pytest.mark.xdist_group("search")  # Optuna is imported by one worker

BASE = Experiment(
    split=Dirichlet(4, alpha=0.5), hidden=(4,), rounds=4, kernel="numpy", client=SGD(lr=0.3, batch_size=50)
)
SPACE: dict[str, Any] = {"client.lr": ("log", 0.001, 1.0), "client.epochs": (1, 3)}


@pytest.fixture(scope="module")
def found() -> Search:
    return search(BASE, SPACE, trials=14)


@pytest.fixture(scope="module")
def short() -> Search:
    return search(BASE, SPACE, trials=4)


def strategy(result: Search) -> Any:
    return result.best.client


def check_same(a: Search, b: Search) -> None:
    pd.testing.assert_frame_equal(a.trials.drop(columns="seconds"), b.trials.drop(columns="seconds"), check_exact=True)
    assert (a.best, a.value) == (b.best, b.value)


# What is found.


def test_the_better_of_two_learning_rates_is_found_and_its_value_is_the_mean_of_its_runs() -> None:
    result = search(BASE, {"client.lr": [1e-4, 0.3]}, trials=6, seeds=[3, 8])
    assert result.best == BASE
    assert result.value == np.mean([replace(result.best, seed=seed).run().final_score for seed in (3, 8)])
    assert set(result.trials["client.lr"]) == {1e-4, 0.3}


def test_the_value_of_the_best_trial_is_the_best_of_all(found: Search) -> None:
    complete = found.trials.query("state == 'complete'")
    assert found.value == complete["value"].max() == found.top(1)["value"].item()
    row = found.top(1).iloc[0]
    assert (strategy(found).lr, strategy(found).epochs) == (row["client.lr"], row["client.epochs"])
    assert found.trials["client.lr"].between(0.001, 1).all()
    assert set(found.trials["client.epochs"]) == {1, 2, 3}
    assert "optimistic" in str(found)
    assert "compare(replace(search.best, seed=2), seeds=5)" in found._repr_html_()


def test_losses_are_minimised() -> None:
    result = search(BASE, {"client.lr": (0.01, 0.5)}, trials=4, seeds=1, metric="test_loss")
    assert result.value == result.trials["value"].min() == result.best.run().history["test_loss"].iloc[-1]


def test_r2_is_the_default_for_regression() -> None:
    x = np.random.default_rng(0).normal(size=(80, 3))
    own = Dataset("own", x, x[:, 0], x, x[:, 0], regression=True)
    base = replace(BASE, dataset=own, loss="mse", split=IID(4))
    result = search(base, {"client.lr": [0.1, 1e-6]}, trials=4, seeds=1)
    assert (result.metric, strategy(result).lr) == ("test_r2", 0.1)


def test_any_setting_can_be_searched() -> None:
    space = {
        "client.lr": (0.1, 0.5),
        "client": [SGD(), FedProx(proximal_mu=0.1)],
        "server": [FedAdam(eta=0.1), FedAdam(eta=0.01)],
        "split.alpha": ("log", 0.1, 10.0),
        "rounds": (2, 4),
        "hidden": [(), (4,)],
    }
    result = search(BASE, space, trials=6, seeds=1, prune=False)
    assert list(result.trials["rounds_run"]) == list(result.trials["rounds"])
    assert set(result.trials["client"]) == {"SGD", "FedProx(proximal_mu=0.1)"}
    row = result.top(1).iloc[0]
    assert (result.best.rounds, result.best.split.alpha) == (row["rounds"], row["split.alpha"])  # type: ignore[attr-defined]
    assert str(result.best.client).startswith(row["client"].partition("(")[0])
    assert strategy(result).lr == row["client.lr"]


def test_a_trial_that_diverges_does_not_end_the_search() -> None:
    result = search(BASE, {"client.lr": [1e6, 0.3]}, trials=6, seeds=1)
    assert set(result.trials["client.lr"][result.trials["state"] == "diverged"]) == {1e6}
    assert strategy(result).lr == 0.3
    with pytest.raises(DivergenceError, match="all 2 trials diverged; the first one: training diverged in round 1"):
        search(BASE, {"client.lr": (1e6, 1e7)}, trials=2, seeds=1)


# Pruning.


def test_trials_are_pruned_as_soon_as_their_best_value_is_below_the_median(found: Search) -> None:
    """The median rule of Golovin et al., "Google Vizier", KDD 2017, section 3.2.1, computed again."""
    complete: list[dict[int, float]] = []
    last, states = 2 * BASE.rounds, list(found.trials["state"])
    for trial, state, rounds in zip(found.study.trials, states, found.trials["rounds_run"], strict=True):
        values = [trial.intermediate_values[step] for step in range(1, rounds + 1)]
        below = [
            len(complete) >= 5 and max(values[:step]) < np.median([other[step] for other in complete])
            for step in range(1, min(rounds, last - 1) + 1)
        ]
        assert below == [False] * (len(below) - (state == "pruned")) + [True] * (state == "pruned")
        assert (rounds == last) == (state == "complete")
        if state == "complete":
            complete.append(trial.intermediate_values)
    assert states.count("pruned") > 2


def test_without_pruning_all_trials_are_complete() -> None:
    result = search(BASE, SPACE, trials=8, seeds=1, prune=False)
    assert list(result.trials["state"]) == ["complete"] * 8


# The same trials.


def test_the_trials_are_a_function_of_the_arguments(found: Search) -> None:
    check_same(search(BASE, dict(reversed(SPACE.items())), trials=14), found)  # with pruned trials
    other = search(replace(BASE, seed=1), SPACE, trials=1, seeds=1)
    assert other.trials["client.lr"][0] != found.trials["client.lr"][0]


def test_a_search_of_more_trials_begins_with_those_of_a_search_of_fewer(
    short: Search, found: Search, tmp_path: Path
) -> None:
    first = search(BASE, SPACE, trials=2, directory=tmp_path)
    more = search(BASE, SPACE, trials=4, directory=tmp_path)
    check_same(more, short)
    assert list(more.trials["seconds"].head(2)) == list(first.trials["seconds"])  # they were not run again
    assert config.experiment(config.read(tmp_path / BEST)) == more.best
    assert len(pd.read_csv(tmp_path / TRIALS)) == 4
    for fewer in (first, short):
        part = found.trials.head(len(fewer.trials))
        pd.testing.assert_frame_equal(
            fewer.trials.drop(columns="seconds"), part.drop(columns="seconds"), check_exact=True
        )


class Stop(Callback):
    """Interrupts a search after some rounds."""

    passive = True

    def __init__(self, rounds: int) -> None:
        self._left = rounds

    def round_finished(self, finished: FinishedRound) -> None:
        self._left -= finished.number > 0
        if not self._left:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("whole", "rounds"), [("short", 1), ("short", 13), ("found", 60)])
def test_an_interrupted_search_continues_with_the_same_trials(
    whole: str, rounds: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    expected: Search = request.getfixturevalue(whole)
    trials = len(expected.trials)
    with pytest.raises(KeyboardInterrupt):
        search(BASE, SPACE, trials=trials, callbacks=[Stop(rounds)], directory=tmp_path)
    with (tmp_path / JOURNAL).open("ab") as journal:
        journal.write(b'{"op_code": 4, "trial')  # a power cut while a line was written
    (tmp_path / f"{JOURNAL}.lock").symlink_to(JOURNAL)
    resumed = search(BASE, SPACE, trials=trials, directory=tmp_path)
    check_same(resumed, expected)
    assert [trial.state.name for trial in resumed.study.trials].count("FAIL") == 1


SLOW = replace(BASE, rounds=10, client=SGD(lr=0.3))
SLOW_SPACE: dict[str, Any] = {"client.epochs": (1, 2)}


def wait_for_second_trial(out: Path) -> None:
    give_up = time.monotonic() + 60
    while not (out / "runs").is_dir() or len(list((out / "runs").iterdir())) < 2:
        assert time.monotonic() < give_up
        time.sleep(0.005)


def check_continues(out: Path) -> None:
    settings: dict[str, Any] = {"trials": 2, "seeds": 1}
    resumed = search(SLOW, SLOW_SPACE, directory=out, **settings)
    check_same(resumed, search(SLOW, SLOW_SPACE, **settings))


def test_a_killed_search_continues_where_it_stopped(tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = {"trials": 2, "seeds": 1, "directory": out}
    process = multiprocessing.get_context("fork").Process(target=search, args=(SLOW, SLOW_SPACE), kwargs=settings)
    process.start()
    wait_for_second_trial(out)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    check_continues(out)


def test_ctrl_c_ends_the_command_with_130_and_it_continues(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(config.to_toml(SLOW))
    out = tmp_path / "out"
    arguments = ["search", str(tmp_path / "base.toml"), "--space", "client.epochs=1:2", "--trials", "2", "--seeds", "1"]
    command = [sys.executable, "-m", "fedsim.cli", *arguments, "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for_second_trial(out)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert f"1 of 2 trials are finished in {out}, and the same search continues it" in errors
    assert "Traceback" not in errors
    check_continues(out)


def test_no_further_trial_starts_after_the_timeout(tmp_path: Path) -> None:
    assert len(search(BASE, SPACE, trials=9, seeds=1, timeout=1e-9, directory=tmp_path).trials) == 1
    assert len(search(BASE, SPACE, trials=2, seeds=1, directory=tmp_path).trials) == 2


def test_callbacks_observe_the_runs_of_trials() -> None:
    seen: list[tuple[str, float]] = []

    class Observer(Callback):
        passive = True

        def label_run(self, labels: Any) -> None:
            self.trial = labels["trial"]

        def run_finished(self, result: Result) -> None:
            seen.append((self.trial, result.final_score))

    result = search(BASE, SPACE, trials=2, seeds=1, callbacks=[Observer()])
    assert seen == [(f"trial {row.number}", row.value) for row in result.trials.itertuples()]


# Errors.


def test_a_directory_has_one_search(tmp_path: Path) -> None:
    search(BASE, SPACE, trials=1, seeds=1, directory=tmp_path)
    with pytest.raises(ConfigError, match="has a search with another space, seeds; choose another directory"):
        search(BASE, {"client.lr": [0.1]}, trials=1, seeds=2, directory=tmp_path)
    with pytest.raises(ConfigError, match="has a search with another base; choose"):
        search(replace(BASE, rounds=2), SPACE, trials=1, seeds=1, directory=tmp_path)


def test_a_damaged_journal_is_refused(tmp_path: Path) -> None:
    search(BASE, SPACE, trials=1, seeds=1, directory=tmp_path)
    journal = tmp_path / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(re.sub(rb'("values":.0).', rb"\g<1>9", journal.read_bytes()))
    with pytest.raises(ConfigError, match=r"journal.log' is damaged: its checksum is another; restore it, or delete"):
        search(BASE, SPACE, trials=1, seeds=1, directory=tmp_path)
    journal.with_suffix(".sha256").unlink()
    journal.write_bytes(b"".join(line for line in lines if b'"client.lr","' not in line))
    with pytest.raises(ConfigError, match=r"journal.log' is damaged: trial 0 is not complete; restore it"):
        search(BASE, SPACE, trials=1, seeds=1, directory=tmp_path)
    journal.write_bytes(b"".join([b"{}\n", *lines]))
    with pytest.raises(ConfigError, match=r"journal.log' is damaged: .*; restore it, or delete it to start again"):
        search(BASE, SPACE, trials=1, seeds=1, directory=tmp_path)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"needs the extra 'tune'; install it by: pip install 'fedsim\[tune\]'"):
        search(BASE, SPACE)


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ({}, r"space is empty; allowed: at least one setting, with \(low, high\)"),
        ([("client.lr", (0.1, 1))], "space is .*; allowed: a dict of settings to ranges"),
        ({"client.lr": (1.0, 0.1)}, r"space's client.lr is \(1.0, 0.1\); allowed: \(low, high\) or"),
        ({"client.lr": ("log", 0, 1)}, r"space's client.lr is \('log', 0, 1\); allowed: .*low positive for 'log'"),
        ({"client.lr": (0.1, 0.2, 0.3)}, r"space's client.lr is \(0.1, 0.2, 0.3\); allowed: .*a list of choices"),
        ({"client.lr": (0.1, float("nan"))}, "space's client.lr is"),
        ({"client.lr": (0.1, float("inf"))}, "space's client.lr is"),
        ({"client.lr": (True, 2)}, "space's client.lr is"),
        ({"client.lr": []}, r"space's client.lr is \[\]; allowed"),
        ({"client.lr": [0.1, 0.1]}, r"space's client.lr is \[0.1, 0.1\]; allowed: each choice once"),
        ({"client.lr": (-1, 1)}, "SGD's lr is -1; allowed: a finite number greater than 0"),
        ({"client.epochs": (0, 3)}, "SGD's epochs is 0; allowed: a whole number, 1 or more"),
        ({"client.momentun": (0.1, 0.9)}, "space is 'client.momentun=0.1'; allowed: client.lr, .*'momentum'"),
        ({"client": [SGD(), FedProx()], "client.proximal_mu": (0.1, 1)}, "space is 'client.proximal_mu=0.1'; allowed"),
        ({"learning_rate": (0.1, 1)}, "a setting of space is 'learning_rate'; allowed: .*; did you mean 'client.lr'?"),
        ({"seed": (0, 5)}, "a setting of space is 'seed'; allowed: split, "),
        ({5: (0, 5)}, "a setting of space is '5'; allowed: split, "),
        ({"client": ["SGD"]}, "client is 'SGD'; allowed: a fedsim ClientStrategy object"),
        ({"hidden": [(4,), (-1,)]}, "hidden is -1; allowed"),
    ],
)
def test_a_bad_space_is_refused(space: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        search(BASE, space, trials=1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"trials": 0}, "trials is 0; allowed: a whole number, 1 to"),
        ({"seeds": [1, 1]}, r"seeds is \(1, 1\)|seeds is \[1, 1\]; allowed: each seed once"),
        ({"metric": "accuracy"}, "metric is 'accuracy'; allowed: .*; did you mean 'test_accuracy'?"),
        ({"metric": ""}, "metric is ''; allowed: test_loss"),
        ({"metric": "test_macro_f1"}, "trial 0, seed 0: metric is 'test_macro_f1'; this experiment has test_loss, "),
        ({"metric": "local_accuracy"}, "metric is 'local_accuracy', which is not measured; allowed: test_loss, "),
        ({"prune": 1}, "prune is 1; allowed: true or false"),
        ({"timeout": 0}, "timeout is 0; allowed: a finite number greater than 0"),
        ({"base": replace(BASE, client=LocalOnly())}, "'test_accuracy', which is not measured; allowed: train_loss"),
        ({"jobs": 2}, "search takes base, space, trials"),
    ],
)
def test_bad_arguments_are_refused(arguments: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        search(**({"base": BASE, "space": {"rounds": (1, 2)}, "trials": 1} | arguments))


# The command, and the page.


def test_the_code_on_the_page_reports_the_best_trial_on_other_seeds() -> None:
    page = (Path(__file__).parents[1] / "docs" / "search.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(compile(page.partition("```python\n")[2].partition("```")[0], "search.md", "exec"), names)
    [variant] = names["study"].variants
    assert [result.experiment.seed for result in variant.results] == [2, 3, 4]
    assert names["found"].seeds == (0, 1)
    assert strategy(names["found"]) == variant.results[0].experiment.client


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    (tmp_path / "base.toml").write_text(config.to_toml(BASE))

    def command(name: str, *arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main([name, *arguments])
        return ended.value.code, *capsys.readouterr()  # type: ignore[return-value]

    return command


def test_the_command_gives_the_trials_of_the_function(run: Any, tmp_path: Path) -> None:
    space = ["--space", "client.lr=log:0.001:1", "--space", "client.epochs = 1:3"]
    space += ["--space", "split=IID(4);Dirichlet(4, alpha=0.5)", "--space", "hidden=[4],[]"]
    file, out = str(tmp_path / "base.toml"), str(tmp_path / "out")
    code, printed, _ = run("search", file, *space, "--trials", "3", "--seeds", "1", "--set", "rounds=3", "--out", out)
    assert code == 0
    choices = {"split": [IID(4), Dirichlet(4, alpha=0.5)], "hidden": [(4,), ()]}
    expected = search(replace(BASE, rounds=3), SPACE | choices, trials=3, seeds=1)
    assert expected.notes[0] in printed
    assert f"{expected.value:.6f}" in printed
    assert config.experiment(config.read(Path(out) / BEST)) == expected.best
    report = printed.partition("report it on other seeds: fedsim ")[2].splitlines()[0]
    assert report == f"compare {out}/{BEST} --set seed=1 --seeds 5"
    code, printed, _ = run(*report.split())
    assert code == 0
    assert "final accuracy" in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "space is empty; allowed: at least one setting"),
        (["--space", "client.lr"], "--space is 'client.lr'; allowed: KEY=LOW:HIGH, KEY=log:LOW:HIGH or KEY=VALUE,"),
        (["--space", "client.lr=log:0.1"], "--space is 'client.lr=log:0.1'; allowed: KEY=LOW:HIGH"),
        (["--space", "client.lr=log:a:b"], "--space is 'client.lr=log:a:b'; allowed: KEY=LOW:HIGH"),
        (["--space", "client.lr=1:0.1"], "space's client.lr is (1, 0.1); allowed: (low, high)"),
        (["--space", "client=SGD();Nope()"], "client is 'Nope()'; allowed: "),
        (["--space", "client.lr=0.1:1", "--metric", "accuracy"], "metric is 'accuracy'; allowed: "),
    ],
)
def test_the_command_refuses_in_one_sentence(arguments: list[str], sentence: str, run: Any, tmp_path: Path) -> None:
    code, _, errors = run("search", str(tmp_path / "base.toml"), *arguments)
    assert code == 2
    assert sentence in errors
    assert len(errors.splitlines()) == 1
