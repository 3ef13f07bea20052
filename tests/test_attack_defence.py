"""What is known of attacks and defences, in small, in the setting of experiments/trust/attack_defence.py."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedsim import Experiment, servers
from fedsim.attacks import Attack, Backdoor, LittleIsEnough, ModelReplacement
from fedsim.clients import SGD
from fedsim.leakage.observation import observe
from fedsim.report.intervals import half_width
from fedsim.servers.krum import krum_scores, squared_distances
from fedsim.splits import IID, Dirichlet

BASE = Experiment(client=SGD(lr=0.3, batch_size=5, steps=2), rounds=30, on_failure="exclude", kernel="compiled")
NON_IID = replace(BASE, split=Dirichlet(30, alpha=0.3))
SEEDS = range(4)
SCRIPT = Path(__file__).parents[1] / "experiments" / "trust" / "attack_defence.py"


def measured(base: Experiment, attack: Attack | None, server: Any, column: str) -> np.ndarray[Any, Any]:
    """Return a column of the history after the last round, for each seed."""
    runs = [replace(base, attack=attack, server=server, seed=seed).run() for seed in SEEDS]
    return np.array([run.history[column].iloc[-1] for run in runs])


def is_larger(a: Any, b: Any) -> bool:
    """Whether the mean difference over the seeds is larger than half of its 95 % interval."""
    return float(np.mean(a - b)) > half_width(list(a - b))


def test_a_little_is_enough_breaks_the_mean_and_passes_krum() -> None:
    """Baruch et al., 2019: small changes, which Krum selects because they are close to each other and to the mean."""
    attack = LittleIsEnough(z=1.5)
    krum = partial(servers.MultiKrum, num_malicious_nodes=6, num_nodes_to_select=24)
    for server in (servers.FedAvg, krum):
        clean, attacked = (measured(NON_IID, a, server, "test_accuracy") for a in (None, attack))
        assert is_larger(clean, attacked)
        assert clean.mean() - attacked.mean() > 0.05
    iid = replace(BASE, split=IID(30))
    assert is_larger(*(measured(iid, a, None, "test_accuracy") for a in (None, replace(attack, fraction=0.4))))


def test_krum_prefers_updates_that_are_a_little_changed() -> None:
    """Equal updates near the mean have the smallest scores: Krum selects one, Multi-Krum keeps all six."""
    for z, selected in ((0.5, 1), (1.5, 24)):
        for seed in SEEDS:
            attack = LittleIsEnough(z=z)
            seen = observe(replace(NON_IID, attack=attack, seed=seed), view="updates")
            scores = krum_scores(squared_distances(np.array([client.update for client in seen])), 6)
            chosen = np.isin(np.argsort(scores)[:selected], attack.malicious(30, seed))
            assert chosen.sum() == min(selected, 6)


def test_a_backdoor_passes_the_median_of_non_iid_data_only() -> None:
    """Honest updates differ so much that a consistent minority decides the median of many coordinates."""
    iid, non_iid = (
        measured(base, Backdoor(), servers.FedMedian, "attack_success")
        for base in (replace(BASE, split=IID(30)), NON_IID)
    )
    assert is_larger(non_iid, iid)
    assert iid.mean() < 0.2 < non_iid.mean()


def test_norm_bounding_with_noise_stops_model_replacement() -> None:
    """Sun et al., 2019: one client of 30 replaces the model of the mean, and not that of bounded updates."""
    attack, bounded = ModelReplacement(fraction=1 / 30), partial(servers.NormBounding, noise=0.01)
    mean, defended = (measured(NON_IID, attack, s, "attack_success") for s in (servers.FedAvg, bounded))
    assert is_larger(mean, defended)
    assert mean.mean() > 0.6 > 0.2 > defended.mean()
    assert measured(NON_IID, attack, bounded, "test_accuracy").mean() > 0.8


def script(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_script_prints_tables_and_writes_a_picture(tmp_path: Path) -> None:
    options = ["--attacks", "none", "backdoor", "--defences", "FedAvg", "NormBounding", "--rounds", "2", "--seeds", "2"]
    done = script(*options, "--jobs", "1", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "attack success, IID" in done.stdout
    assert "95 % intervals over 2 seeds; 0 of 16 runs diverged." in done.stdout
    assert (tmp_path / "attack_defence.png").read_bytes().startswith(b"\x89PNG")
    table = pd.read_csv(tmp_path / "attack_defence.csv")
    assert table["success"].notna().tolist() == (table["attack"] == "backdoor").tolist()
    assert len(table) == 8
    refused = script("--attacks", "backdor")
    assert refused.returncode == 2
    assert "did you mean 'backdoor'?" in refused.stderr
