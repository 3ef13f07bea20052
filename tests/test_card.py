"""Model cards: their figures are those of the result, and hostile names stay text."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import precision_recall_fscore_support

from fedsim import Experiment, data
from fedsim.attacks import Backdoor
from fedsim.clients import SGD, FineTune
from fedsim.contribution import Retraining, leave_one_out
from fedsim.data import Dataset
from fedsim.errors import ConfigError
from fedsim.splits import IID, Dirichlet, Shards

BASE = Experiment(split=Dirichlet(8, alpha=0.3), rounds=2, hidden=(8,))


def test_recall_and_precision_are_those_of_scikit_learn() -> None:
    result = BASE.run()
    precision, recall, _, support = precision_recall_fscore_support(
        result.dataset.y_test, result.predict(), zero_division=np.nan
    )
    scores = result.class_scores()
    np.testing.assert_allclose(scores[["recall", "precision"]], np.column_stack([recall, precision]))
    assert scores["test_examples"].tolist() == support.tolist()
    best = int(np.nanargmax(precision))
    assert f"| {best} | {support[best]} | {recall[best]:.3f} | {precision[best]:.3f} |" in result.card()
    never = int(np.flatnonzero(np.isnan(precision))[0])
    assert f"| {never} | {support[never]} | {recall[never]:.3f} |  |" in result.card()


def test_a_run_writes_the_card_of_its_result(tmp_path: Path) -> None:
    result = BASE.run(directory=tmp_path)
    card = (tmp_path / "model_card.md").read_text()
    assert card == result.card()
    assert f"Test accuracy: {result.final_accuracy:.3f}." in card
    assert "8 clients" in card
    assert "No differential privacy. The server sees each client's update." in card
    assert "How accuracy differs between clients was not measured." in card


def test_the_card_says_how_clients_differ() -> None:
    result = replace(BASE, fraction_evaluate=1.0, test_fraction=0.3).run()
    scores = result.clients[result.clients["round"] == 2]["accuracy"]
    assert f"8 clients have accuracy of {scores.mean():.3f} on average" in result.card()
    assert f"the worst tenth {scores.min():.3f}, the best tenth {scores.max():.3f}." in result.card()
    assert "had trained on" not in result.card()
    assert "had trained on" in replace(BASE, fraction_evaluate=1.0).run().card()


def test_the_card_names_what_is_wrong_with_a_run() -> None:
    few = Dataset(
        "few", np.eye(4)[[0, 1, 0, 1]], np.arange(4) % 2, np.eye(4)[:2], np.arange(2), 3, label_names=("a", "b", "c")
    )
    card = Experiment(dataset=few, split=IID(2), rounds=1, client=FineTune()).run().card()
    assert "No client has training examples of class c." in card
    assert "There are no test examples of class c." in card
    assert "Clients predict with models of their own" in card
    failing = replace(BASE, client=SGD(lr=1e6), on_failure="exclude", rounds=3).run()
    assert f"{len(failing.failures)} updates of 8 clients were excluded." in failing.card()
    assert len(failing.failures) == 24


def test_the_card_has_the_rates_of_groups_of_people() -> None:
    digits = data.load("digits")
    sides = {"side": np.where(digits.x_train[:, 20] > 0, "ink", "<b>")}
    tests = {"side": np.where(digits.x_test[:, 20] > 0, "ink", "<b>")}
    grouped = replace(digits, groups=sides, groups_test=tests)
    card = replace(BASE, dataset=grouped, sensitive="side", positive=3).run().card()
    assert "Rates in the groups of side on the test set; 3 is positive:" in card
    for name in ("ink", r"\<b\>"):
        count = int((tests["side"] == name.replace("\\", "")).sum())
        assert f"| {name} | {count} |" in card
    assert "groups of people was not measured" in BASE.run().card()


def test_names_are_text() -> None:
    hostile = ("<script>alert(1)</script>", "a | b\n# c", "*bold* [x](y) `z`", "\x1b[31m")
    digits = data.load("digits")
    x, y = digits.x_train, digits.y_train % 4
    dataset = Dataset("<b>|", x, y, x[:50], y[:50], label_names=hostile, notes=("# note <i>",))
    card = Experiment(dataset=dataset, split=IID(3), rounds=1).run().card()
    assert "<script>" not in card.replace("\\<", "")
    assert "\x1b" not in card
    assert not re.search(r"^# c", card, re.MULTILINE)
    columns = {line.replace("\\|", "").count("|") for line in card.splitlines() if line.startswith("| ")}
    assert columns == {3, 5, 6}
    assert "\n- \\# note \\<i\\>\n" in card


def test_of_many_classes_the_worst_are_listed() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 5)), np.arange(300) % 30
    result = Experiment(dataset=Dataset("many", x, y, x, y), split=IID(5), rounds=1).run()
    scores = result.class_scores()
    card = result.card()
    assert "The 20 of 30 classes with the lowest recall" in card
    listed = [int(n) for n in re.findall(r"^\| (\d+) \| 10 \|", card, re.MULTILINE)]
    assert len(listed) == 20
    assert scores["recall"][listed].max() <= scores["recall"].drop(listed).min()


def test_a_regression_has_r_squared_and_no_classes() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    dataset = Dataset("line", x, x.sum(axis=1), x, x.sum(axis=1), regression=True)
    result = Experiment(dataset=dataset, split=IID(3), rounds=2, loss="mse").run()
    assert result.predict().shape == (60,)
    residual = ((result.predict() - dataset.y_test) ** 2).sum() / ((dataset.y_test - dataset.y_test.mean()) ** 2).sum()
    assert 1 - residual == pytest.approx(result.final_score, abs=1e-5)
    assert f"R squared of {result.final_score:.3f}" in result.card()
    assert "recall" not in result.card()


def test_contributions_are_shown_if_they_are_given() -> None:
    values = pd.DataFrame({"partition_id": [0, 1], "value": [0.25, -0.125]})
    card = BASE.run().card(values)
    assert "| partition\\_id | value |\n| --- | --- |\n| 0 | 0.250 |\n| 1 | -0.125 |" in card
    assert "was not measured" not in card.partition("## Known limits")[0]
    sizes = np.sort(BASE.federate(data.load("digits")).partition.sizes)[::-1]
    assert f"8 clients have training examples; the largest has {sizes[0] / sizes.sum():.1%} of them" in card


def test_a_class_that_some_clients_lack_is_not_untrained() -> None:
    card = Experiment(split=Shards(10), rounds=1).run().card()
    assert "No client has training examples" not in card


def test_contributions_may_be_the_object_that_a_function_returns() -> None:
    experiment = Experiment(split=IID(3), rounds=1)
    result, found = experiment.run(), leave_one_out(Retraining(experiment))
    assert result.card(found) == result.card(found.to_frame())
    many = result.card(pd.DataFrame({"client": range(21), "value": 0.5}))
    assert "The first 20 of 21 rows:" in many
    with pytest.raises(ConfigError, match=r"contributions is 'shapley'; allowed: a DataFrame"):
        result.card("shapley")


def test_scores_do_not_depend_on_how_many_are_computed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    result = BASE.run()
    whole = result.scores()
    monkeypatch.setattr("fedsim.study.scoring.SCORED_ROWS", 7)
    np.testing.assert_allclose(result.scores(), whole, rtol=1e-5, atol=1e-6)
    assert result.scores(np.empty((0, 64))).shape == (0, 10)


def test_the_card_says_how_often_an_attack_succeeds() -> None:
    result = replace(BASE, attack=Backdoor(fraction=0.5, target=3), client=SGD(lr=0.5), rounds=4).run()
    success = result.history["attack_success"].iloc[-1]
    assert success > 0
    assert f"Their attack succeeds on {success:.2f} of the targeted examples." in result.card()
