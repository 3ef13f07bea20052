"""Scores of a global model are blank where clients have private parameters or several models: there is none."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedsim import Experiment, compare
from fedsim.attacks import Backdoor
from fedsim.cli.main import main
from fedsim.clients import IFCA, SGD, FedPer, FedRep, FineTune, LGFedAvg, LocalOnly
from fedsim.clients.private import has_global_model, no_global_model
from fedsim.data import Dataset
from fedsim.errors import ConfigError, DivergenceError
from fedsim.models import MLP, Group, Model
from fedsim.splits import IID, Dirichlet
from fedsim.study.callbacks import EarlyStopping
from fedsim.study.progress import ProgressBar

BASE = Experiment(split=Dirichlet(6, alpha=0.3), hidden=(8,), rounds=2, fraction_evaluate=1.0, test_fraction=0.3)


class OwnBias(SGD):
    """A user's strategy whose clients have private first layers."""

    def private_groups(self, model: Model) -> Sequence[Group]:
        return model.groups[:1]


@pytest.mark.parametrize("client", [LocalOnly(), FedPer(), FedRep(), LGFedAvg(), OwnBias(), IFCA()])
def test_global_scores_are_blank(client: SGD) -> None:
    result = replace(BASE, client=client, metrics=("macro_f1",), attack=Backdoor(fraction=0.3)).run()
    assert not has_global_model(client, result.model)
    blank = result.history[["test_loss", "test_accuracy", "attack_success", "test_macro_f1"]]
    assert blank.isna().all(axis=None)
    assert result.history[["local_loss", "local_accuracy"]].iloc[1:].notna().all(axis=None)
    assert sorted(result.metrics["partition_id"].unique()) == [0, 1, 2, 3, 4, 5]  # no -1, the test set
    assert not result.has_global_model
    assert np.isnan(result.final_score)
    assert np.isnan(result.rounds_to(0.1))
    assert "no global model after 2 rounds" in repr(result)
    with pytest.raises(ConfigError, match=no_global_model(client, result.model)):
        result.predict()


def test_personalised_models_beside_a_global_one_are_scored() -> None:
    assert has_global_model(FineTune(), MLP((4, 3, 2)))
    assert has_global_model(IFCA(clusters=1), MLP((4, 3, 2)))
    assert replace(BASE, client=FineTune()).run().history["test_accuracy"].notna().all()


def test_sensitive_groups_of_the_card_are_those_of_the_clients() -> None:
    rng = np.random.default_rng(0)
    x, kind = rng.normal(size=(200, 4)), np.array(["a", "b"] * 100)
    y = (x[:, 0] > 0).astype(int)
    data = Dataset("people", x, y, x, y, groups={"kind": kind}, groups_test={"kind": kind})
    result = replace(BASE, dataset=data, split=IID(4), client=FedPer(), sensitive="kind").run()
    assert result.groups["partition_id"].min() == 0
    last = result.groups[result.groups["round"] == 2].groupby("group")["num_examples"].sum()
    assert "on the clients' own examples; 1 is positive" in result.card()
    assert f"| a | {last['a']} |" in result.card()


def test_a_study_of_models_with_and_without_a_global_one(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study = compare(BASE, client=[SGD(), LocalOnly(), FedPer()], seeds=2, directory=tmp_path)
        alone = compare(BASE, client=[LocalOnly()], seeds=2)
        table, shown = study.table(), alone.table()
        study.plot(tmp_path / "accuracy.svg")
    assert study.target == compare(BASE, client=[SGD()], seeds=2).target
    assert (
        table.loc["LocalOnly", ["final accuracy", "best accuracy", f"rounds to {study.target:.2f}"]].tolist()
        == [""] * 3
    )
    assert table["local accuracy"].str.match(r"\d\.\d{3}").all()
    assert shown.columns.tolist() == ["local accuracy", "MB sent"]
    assert np.isnan(alone.target)
    assert study.summary()["final_accuracy"].isna().tolist() == [False, True, True]
    assert re.search(r"no global model: LocalOnly, FedPer", (tmp_path / "accuracy.svg").read_text())
    rows = (tmp_path / "rounds.csv").read_text().splitlines()
    assert next(row for row in rows if row.startswith("LocalOnly")).startswith("LocalOnly,0,0,,,")
    with pytest.raises(ConfigError, match="no variant has a global model to plot the test scores of"):
        alone.plot(tmp_path / "accuracy.svg")


def test_the_command_draws_no_empty_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "study.toml"
    file.write_text('client = "FedPer"\nsplit = "IID(3)"\nrounds = 1\nfraction_evaluate = 1.0\n[compare]\nseeds = 1\n')
    with pytest.raises(SystemExit) as end:
        main(["compare", str(file), "--out", str(tmp_path / "out")])
    assert end.value.code == 0
    assert " accuracy.png" not in capsys.readouterr().out
    assert not (tmp_path / "out" / "accuracy.png").exists()
    assert (tmp_path / "out" / "local_accuracy.png").exists()


def test_the_card_describes_the_clients_models() -> None:
    result = replace(BASE, client=FedPer()).run()
    card, local = result.card(), result.history["local_accuracy"].iloc[-1]
    assert "There is no global model: each client predicts with a model of its own." in card
    assert f"Their mean accuracy on their own examples: {local:.3f}." in card
    assert "| private parameters | W2, b2: each client has its own |" in card
    assert "6 clients have accuracy of" in card
    assert "Test accuracy" not in card
    assert "nan" not in card
    assert "The server sees each client's update." in card
    assert "The server sees no parameters of the clients." in replace(BASE, client=LocalOnly()).run().card()
    silent = replace(BASE, client=FedPer(), fraction_evaluate=0.0).run().card()
    assert "The clients' models were not evaluated." in silent


@pytest.mark.parametrize("as_callback", [False, True])
def test_early_stopping_needs_scores_that_exist(as_callback: bool) -> None:
    stopping = EarlyStopping("test_accuracy", target=0.9)
    experiment = replace(BASE, client=FedPer(), early_stopping=None if as_callback else stopping)
    message = (
        "EarlyStopping's metric is 'test_accuracy', and there is no global model to test, because the clients of "
        "FedPer have private parameters; allowed: local_accuracy, local_loss, train_loss"
    )
    with pytest.raises(ConfigError, match=message):
        experiment.run(callbacks=[stopping] if as_callback else [])
    allowed = replace(BASE, client=FedPer(), early_stopping=EarlyStopping("local_accuracy", target=0.0)).run()
    assert allowed.rounds == 1


def test_divergence_is_found_all_the_same() -> None:
    """The limit on clients' losses follows from the test loss of the untrained weights, which is not shown."""
    with pytest.raises(DivergenceError, match="training diverged in round"):
        replace(BASE, client=FedPer(lr=1e6)).run()
    result = replace(BASE, client=FedPer(lr=1e6), on_failure="exclude").run()
    assert len(result.failures) == 12


def test_the_progress_bar_shows_the_clients_score(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(2, show=True) as bar:
        result = replace(BASE, client=FedPer()).run(callbacks=[bar])
    assert f"local accuracy={result.history['local_accuracy'].iloc[-1]:.3f}" in capsys.readouterr().err
