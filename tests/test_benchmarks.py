"""The benchmarks run and their peers do the same work; no test depends on how long anything takes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import peers
from benchmarks.bars import Measured
from benchmarks.jobs import ARTICLE, TWO_NN, Job, fedsim_rounds
from fedsim.clients.local_round import run_local_round
from fedsim.clients.task import Task, Update
from fedsim.engines.runtime import ClientRuntime
from fedsim.models import named_arrays

ROOT = Path(__file__).resolve().parents[1]
SMALL = Job((12, 8, 5, 3), registered=6, cohort=4, examples=20, batch=None, epochs=2)


def benchmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)


@pytest.mark.slow
def test_the_numpy_peer_trains_as_fedsim_does() -> None:
    dataset, partition = peers.shards(SMALL)
    start = SMALL.model.init(np.random.default_rng(2))
    layers = [v.copy() for v in named_arrays(SMALL.model, start).values()]
    rows = partition[1]
    loss = peers.train(SMALL, layers, dataset.x_train[rows], dataset.y_train[rows], np.random.default_rng(0))
    task = Task(SMALL.model, SMALL.strategy, dataset.x_train, dataset.y_train, partition, start, 1, 0)
    for kernel in ("numpy", "compiled"):
        update = run_local_round(replace(task, kernel=kernel), np.array([1]), {})
        np.testing.assert_allclose(np.concatenate([v.ravel() for v in layers]), update.weights[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(loss, update.train_loss[0], rtol=1e-5)


def test_a_round_of_each_peer_trains_one_cohort(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many different clients, with as many examples each."""
    train, train_block = peers.train, ClientRuntime.train
    by_loop: list[int] = []
    by_fedsim: list[int] = []

    def counted(job: Job, layers: Any, x: Any, *more: Any) -> float:
        by_loop.append(len(x))
        return train(job, layers, x, *more)

    def counted_block(site: ClientRuntime, task: Task, block: Any, state: Any) -> Update:
        by_fedsim.extend(block.tolist())
        update = train_block(site, task, block, state)
        assert update.num_examples.tolist() == [SMALL.examples] * len(block)
        return update

    monkeypatch.setattr(peers, "train", counted)
    monkeypatch.setattr(ClientRuntime, "train", counted_block)
    with fedsim_rounds(SMALL) as ours, peers.loop_rounds(SMALL) as loop:
        by_loop.clear()
        by_fedsim.clear()
        ours()
        loop()
    assert len(set(by_fedsim)) == len(by_fedsim) == SMALL.cohort
    assert by_loop == [SMALL.examples] * SMALL.cohort


def test_flops_are_counted_from_the_networks_shape() -> None:
    forward = 784 * 200 + 200 * 200 + 200 * 10
    assert TWO_NN.flops == 10 * 600 * 2 * (3 * forward - 784 * 200)
    assert replace(ARTICLE, epochs=2).flops == 2 * ARTICLE.flops


@pytest.mark.slow
def test_one_benchmark_as_json() -> None:
    done = benchmark("--only", "registered", "--samples", "1", "--json")
    assert done.returncode == 0, done.stderr
    (bar,) = json.loads(done.stdout)["bars"]
    assert bar["bar"] == 1.1
    assert set(bar["samples"]) == {"1,000", "1,000,000"}
    assert bar["met"] == (bar["value"] <= 1.1)


def test_an_unknown_benchmark_is_refused() -> None:
    done = benchmark("--only", "nothing")
    assert done.returncode == 2
    assert "invalid choice: 'nothing'" in done.stderr
    assert benchmark("--samples", "0").returncode == 2


def test_a_bar_is_met_in_its_own_direction() -> None:
    def made(value: float, unit: str, bar: float | None = 2) -> Measured:
        return Measured("", value, value, value, bar, unit, {})

    assert made(3, "x").met
    assert not made(1, "x").met
    assert made(1, "s at most").met
    assert not made(3, "x at most").met
    assert made(0, "x", None).met
