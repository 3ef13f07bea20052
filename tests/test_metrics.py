"""Metrics besides loss and accuracy: scikit-learn's answers, definitions, and the same bits wherever clients run."""

from __future__ import annotations

import math
import pickle
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as sk
from flwr.app import RecordDict
from helpers import mean_margin, same
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit, softmax

from fedsim import Experiment, compare
from fedsim.clients import SGD, Context
from fedsim.clients.measures import measure_shards
from fedsim.data import Dataset
from fedsim.engines.supernodes.arrays import RESULT
from fedsim.engines.supernodes.replies import EVALUATION, evaluation_layout, read_reply
from fedsim.errors import ConfigError
from fedsim.flower import records
from fedsim.models.metrics import METRICS, Predictions, compute, default_metrics
from fedsim.modules import Modules
from fedsim.splits import IID, Dirichlet, Partition
from fedsim.study import config
from fedsim.study.build import build_runtime
from fedsim.study.callbacks import EarlyStopping

LABELS = tuple(name for name, metric in METRICS.items() if not metric.regression)
BASE = Experiment(split=Dirichlet(8, alpha=0.5), hidden=(8,), rounds=3, fraction_evaluate=1.0, test_fraction=0.3)


def random_predictions(classes: int, loss: str, outputs: int, seed: int = 0, examples: int = 60) -> Predictions:
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), rng.integers(0, classes, examples - classes)])
    return Predictions(y, rng.normal(size=(examples, outputs)).astype(np.float32), loss, classes)


# Values.


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("classes", "loss", "outputs"),
    [(2, "cross_entropy", 2), (2, "binary_cross_entropy", 1), (4, "binary_cross_entropy", 4), (5, "mse", 5),
     (3, "cross_entropy", 3)],
)  # fmt: skip
def test_metrics_of_labels_are_those_of_scikit_learn(classes: int, loss: str, outputs: int, seed: int) -> None:
    p = random_predictions(classes, loss, outputs, seed)
    y, chances, predicted = p.y, p.probabilities, p.labels
    several: dict[str, Any] = {} if classes == 2 else {"multi_class": "ovr"}
    expected = {
        "macro_f1": sk.f1_score(y, predicted, average="macro"),
        "auc": sk.roc_auc_score(y, chances[:, 1] if classes == 2 else chances, **several),
        "log_loss": sk.log_loss(y, chances),
        "recall": sk.recall_score(y, predicted, average=None),
        "confusion_matrix": sk.confusion_matrix(y, predicted),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(compute(name, p), value, rtol=1e-12, err_msg=name)
    if classes == 2:
        assert compute("brier_score", p) == pytest.approx(sk.brier_score_loss(y, chances[:, 1]), rel=1e-12)


def test_metrics_of_real_targets_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    y, scores = rng.normal(size=40), rng.normal(size=(40, 1))
    p = Predictions(y, scores, "mse", 1)
    assert compute("mae", p) == pytest.approx(sk.mean_absolute_error(y, scores[:, 0]))
    assert compute("rmse", p) ** 2 == pytest.approx(sk.mean_squared_error(y, scores[:, 0]))
    assert default_metrics(True) == ("mae", "rmse")


def test_brier_score_of_several_classes_is_the_mean_squared_distance() -> None:
    p = random_predictions(3, "cross_entropy", 3)
    one_hot = (p.y[:, None] == np.arange(3)).astype(float)
    assert compute("brier_score", p) == pytest.approx(((p.probabilities - one_hot) ** 2).sum(axis=1).mean())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.floats(0.1, 20))
def test_calibration_error_is_equation_3_of_guo_et_al(seed: int, classes: int, scale: float) -> None:
    p = random_predictions(classes, "cross_entropy", classes, seed)
    p = replace(p, scores=p.scores * np.float32(scale))
    confidence, right = p.probabilities.max(axis=1), p.probabilities.argmax(axis=1) == p.y
    expected = 0.0
    for m in range(1, 16):
        members = (confidence > (m - 1) / 15) & (confidence <= m / 15)
        if members.any():
            expected += members.mean() * abs(right[members].mean() - confidence[members].mean())
    assert compute("calibration_error", p) == pytest.approx(expected, abs=1e-12)


def test_calibration_error_by_hand() -> None:
    """Four examples at a confidence of 0.8, three of them right: |0.75 - 0.8|; and one of 0.6 that is wrong."""
    z = math.log(4)
    scores = np.array([[z, 0], [z, 0], [0, z], [0, z], [math.log(1.5), 0]])
    p = Predictions(np.array([0, 0, 1, 0, 1]), scores, "cross_entropy", 2)
    assert compute("calibration_error", p) == pytest.approx((4 * 0.05 + 1 * 0.6) / 5)


def test_probabilities_are_those_of_the_loss() -> None:
    scores = np.array([[2.0, -1.0, 0.5], [-3.0, -2.0, -1.0]])
    y = np.array([0, 1])
    sigmoid = expit(scores)
    expected = {
        "cross_entropy": softmax(scores, axis=1),
        "binary_cross_entropy": sigmoid / sigmoid.sum(axis=1, keepdims=True),
        "mse": np.array([[0.8, 0.0, 0.2], [1 / 3] * 3]),  # no positive score: all classes are equally likely
    }
    for loss, values in expected.items():
        np.testing.assert_allclose(Predictions(y, scores, loss, 3).probabilities, values)
    one = Predictions(y, scores[:, :1], "binary_cross_entropy", 2)
    np.testing.assert_allclose(one.probabilities, np.column_stack([1 - sigmoid[:, 0], sigmoid[:, 0]]))
    assert np.array_equal(one.labels, one.probabilities.argmax(axis=1))


def test_what_is_not_defined_is_nan_without_a_warning() -> None:
    missing = Predictions(np.array([0, 2, 0]), np.eye(3)[[0, 1, 0]] * 3.0, "cross_entropy", 3)
    single = Predictions(np.array([1, 1]), np.array([[2.0], [3.0]]), "binary_cross_entropy", 2)
    infinite = replace(missing, scores=np.full((3, 3), np.inf))
    empty = Predictions(np.empty(0, np.int64), np.empty((0, 3)), "cross_entropy", 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(compute("auc", missing))
        assert np.isnan(compute("auc", single))
        np.testing.assert_array_equal(compute("recall", missing), [1.0, np.nan, 0.0])
        np.testing.assert_array_equal(compute("recall", single), [np.nan, 1.0])
        assert compute("macro_f1", missing) == pytest.approx((1 + 0 + 0) / 3)
        assert compute("macro_f1", single) == 1.0  # class 0 does not occur
        assert compute("log_loss", single) == pytest.approx(-np.log(expit([2.0, 3.0])).mean())
        for nothing in (infinite, empty):
            assert all(np.isnan(compute(name, nothing)).all() for name in LABELS)
        assert np.isnan(compute(mean_margin, empty))


# The trip from the clients to the result.


class Scaled(SGD):
    """Clients predict with the global weights times their partition id plus one."""

    def personalise(self, ctx: Context) -> NDArray[Any]:
        return ctx.global_weights * (1 + ctx.partition_ids)[:, None].astype(ctx.global_weights.dtype)


def test_metrics_of_clients_are_those_of_their_own_examples_and_weights() -> None:
    result = replace(BASE, client=Scaled(), metrics=("macro_f1", "log_loss", "recall", mean_margin)).run()
    data, model = result.dataset, result.model
    shards = result.experiment.federate(data).partition_test
    assert shards is not None
    last = result.metrics[result.metrics["round"] == 3].set_index(["partition_id", "metric", "class"])["value"]
    for client, shard in enumerate(shards):
        weights = result.flat_weights * np.float32(1 + client)
        y, scores = data.y_train[shard], model.scores(weights[None], data.x_train[shard][None])[0]
        found = last[client]
        assert found["macro_f1", ""] == pytest.approx(sk.f1_score(y, scores.argmax(axis=1), average="macro"))
        chances = softmax(scores.astype(np.float64), axis=1)
        assert found["log_loss", ""] == pytest.approx(sk.log_loss(y, chances, labels=range(10)), 1e-5)
        recall = sk.recall_score(y, scores.argmax(axis=1), labels=range(10), average=None, zero_division=np.nan)
        np.testing.assert_array_equal(found["recall"].reindex(data.label_names), recall)
        assert found["mean_margin", ""] == pytest.approx(mean_margin(y, scores), rel=1e-4)


def test_shards_of_any_size_are_measured_whole() -> None:
    """Also one that is scored in two parts, and one without examples."""
    runtime = build_runtime(replace(BASE, split=IID(1), test_fraction=0.0, metrics=("auc", "log_loss")))
    task = runtime.task(runtime.model.init(np.random.default_rng(0)), 1)
    sizes = np.array([3, 0, 700, 3])
    shards = Partition.from_sizes(np.random.default_rng(1).permutation(len(task.y))[: sizes.sum()], sizes)
    found = measure_shards(runtime.measures, task, shards, np.arange(4), task.global_weights)["metrics"]
    y, x = task.y[shards[2]], task.x[shards[2]]
    chances = softmax(runtime.model.scores(task.global_weights[None], x[None])[0].astype(np.float64), axis=1)
    expected = [sk.roc_auc_score(y, chances, multi_class="ovr"), sk.log_loss(y, chances)]
    np.testing.assert_allclose(found[2], expected, rtol=1e-6)
    assert np.isnan(found).tolist() == [[True, False], [True, True], [False, False], [True, False]]


def test_metrics_of_the_global_model_are_in_the_history_and_of_the_result() -> None:
    result = replace(BASE, metrics=(*LABELS, mean_margin)).run()
    last, test = result.history.iloc[-1], result.metrics[result.metrics["partition_id"] == -1]
    assert test["round"].unique().tolist() == [0, 1, 2, 3]
    found = result.measure((*LABELS, mean_margin))
    assert found["mean_margin"] == mean_margin(result.dataset.y_test, result.scores())
    for name in (*default_metrics(False), "mean_margin"):
        values = test.loc[test["metric"] == name, "value"].tolist()
        np.testing.assert_array_equal(result.history[f"test_{name}"], values)
        assert last[f"test_{name}"] == pytest.approx(found[name], rel=1e-5)
    assert last["test_log_loss"] == pytest.approx(last["test_loss"], rel=1e-5)
    matrix = test[(test["round"] == 3) & (test["metric"] == "confusion_matrix")]
    matrix = matrix.pivot(index="class", columns="predicted", values="value")
    confusion = result.confusion_matrix()
    np.testing.assert_array_equal(matrix, confusion)
    assert confusion.index.tolist() == confusion.columns.tolist() == list(result.dataset.label_names)
    assert np.trace(confusion) / confusion.to_numpy().sum() == pytest.approx(result.final_accuracy)
    np.testing.assert_array_equal(result.class_scores()["recall"], found["recall"])


def test_without_metrics_nothing_changes() -> None:
    plain, measured = BASE.run(), replace(BASE, metrics=("auc",)).run()
    assert plain.metrics.empty
    assert [name for name in measured.history if name not in plain.history] == ["test_auc"]
    kept = [name for name in plain.history if name != "seconds"]
    assert measured.history[kept].equals(plain.history[kept])
    assert measured.clients.equals(plain.clients)


def test_same_bits_with_any_workers_blocks_and_resumed(tmp_path: Path) -> None:
    from stored_results import interrupted

    experiment = replace(BASE, metrics=("auc", "confusion_matrix", mean_margin), rounds=4)
    one = experiment.run(workers=1, directory=tmp_path)
    for other in (experiment.run(workers=2, block_size=1), experiment.run(block_size=3), interrupted(experiment)):
        assert same(one, other)
        assert one.metrics.equals(other.metrics)
    written = pd.read_csv(tmp_path / "metrics.csv")
    assert written["value"].equals(one.metrics["value"])
    assert written["metric"].tolist() == one.metrics["metric"].tolist()


def test_another_process_measures_the_same() -> None:
    """What Ray sends to its actors: the runtime, pickled, and the task."""
    runtime = build_runtime(replace(BASE, metrics=("auc", "recall", mean_margin)))
    weights, clients = runtime.model.init(np.random.default_rng(0)), np.arange(8)
    own, theirs = (
        r.evaluate(r.task(weights, 1), clients, lambda some: {}) for r in (runtime, pickle.loads(pickle.dumps(runtime)))
    )
    assert own.measured["metrics"].shape == (8, 12)
    np.testing.assert_array_equal(own.measured["metrics"], theirs.measured["metrics"])


@pytest.mark.parametrize(
    ("cell", "value", "reason"),
    [
        (0, np.nan, None),
        (0, 1.5, "an impossible macro_f1"),
        (0, -0.1, "an impossible macro_f1"),
        (1, np.inf, "an impossible log_loss"),
        (2, 1000.0, "a confusion_matrix of "),
        (102, np.inf, None),  # a user's function may return any number
    ],
)
def test_a_supernodes_metrics_must_be_possible(cell: int, value: float, reason: str | None) -> None:
    runtime = build_runtime(replace(BASE, metrics=("macro_f1", "log_loss", "confusion_matrix", mean_margin)))
    task, clients = runtime.task(runtime.model.init(np.random.default_rng(0)), 1), np.array([4, 1, 2])
    scores = runtime.evaluate(task, clients, lambda some: {})
    columns = {name: getattr(scores, name).copy() for name in EVALUATION}
    columns["metrics"] = scores.measured["metrics"].copy()
    columns["metrics"][1, cell] = value
    content = RecordDict({RESULT: records.record(columns)})
    rows, failed = read_reply("evaluate", runtime, task, clients, content, evaluation_layout(runtime))
    assert list(rows) == [4, 1, 2] if reason is None else list(failed) == [1]
    assert reason is None or f"its SuperNode sent {reason}" in failed[1]


# Configuration.


def failing(y: NDArray[Any], scores: NDArray[Any]) -> float:
    raise ZeroDivisionError("on purpose")


def overwriting(y: NDArray[Any], scores: NDArray[Any]) -> float:
    scores[:] = 0
    return 0.0


def wordy(y: NDArray[Any], scores: NDArray[Any]) -> Any:
    return "good"


def accuracy(y: NDArray[Any], scores: NDArray[Any]) -> float:
    return 1.0


def lonely(y: NDArray[Any]) -> float:
    return 1.0


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ("auc", "metrics is 'auc'; allowed: a list of macro_f1, auc"),
        (("macro-f1",), "metrics has 'macro-f1'; allowed: .* did you mean 'macro_f1'"),
        ((3,), "metrics has 3; allowed: macro_f1"),
        (("my_module:f",), "metrics has 'my_module:f'; allowed: macro_f1, .* or a function of "),
        (("auc", "auc"), "metrics has 'auc' 2 times; allowed: once"),
        ((accuracy,), "metrics has a function with the name 'accuracy'; allowed: another name"),
        ((lonely,), r"metrics has lonely, which does not take \(y, scores\)"),
        (("rmse",), "metrics has 'rmse', and digits has labels; allowed: macro_f1, auc"),
        ((failing,), r"metric failing failed: ZeroDivisionError: on purpose \(test_metrics.py, line"),
        ((overwriting,), "metric overwriting failed: ValueError: assignment destination is read-only"),
        ((wordy,), "metric wordy returned 'good'; allowed: a number"),
    ],
)
def test_other_metrics_are_refused(metrics: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(BASE, metrics=metrics).run()


def test_regression_has_metrics_of_its_own() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 3))
    data = Dataset("line", x[:60], x[:60].sum(axis=1), x[60:], x[60:].sum(axis=1), regression=True)
    base = Experiment(dataset=data, split=IID(3), rounds=1, loss="mse", fraction_evaluate=1.0)
    result = replace(base, metrics=("mae", "rmse")).run()
    assert result.history["test_rmse"].iloc[-1] ** 2 == pytest.approx(result.history["test_loss"].iloc[-1], rel=1e-5)
    assert result.measure()["mae"] == pytest.approx(result.history["test_mae"].iloc[-1])
    assert "mean absolute error" in result.card()
    with pytest.raises(ConfigError, match="metrics has 'auc', and line has real-valued targets; allowed: mae, rmse"):
        replace(base, metrics=("auc",)).run()
    with pytest.raises(ConfigError, match="line has real-valued targets; allowed: a dataset with classes"):
        result.class_scores()


def test_a_file_names_functions_of_the_users_own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_metrics.py").write_text(
        "from shutil import rmtree\n\n\nclass Metric:\n    pass\n\n\ndef half(y, scores):\n    return 0.5\n"
    )
    monkeypatch.chdir(tmp_path)
    made = config.experiment({"metrics": ["auc", "my_metrics:half"], "rounds": 1})
    assert [getattr(metric, "__name__", metric) for metric in made.metrics] == ["auc", "half"]
    assert made.run().history["test_half"].tolist() == [0.5, 0.5]
    assert 'metrics = [\n    "auc",\n    "my_metrics:half",\n]' in config.to_toml(made)
    assert config.apply(made, ['metrics=["my_metrics:half"]']).metrics == made.metrics[1:]
    refused = {
        "my_metrics:rmtree": "an item of metrics is 'my_metrics:rmtree'; allowed: a function that a module of your own",
        "my_metrics:Metric": "an item of metrics is 'my_metrics:Metric'; allowed: a function that a module of your own",
        "my_metrics:haf": "which 'my_metrics' does not have; did you mean 'half'",
        "os:system": "names the module 'os', which is not in",
        "fedsim.files:write_whole": "allowed: a function that a module of your own defines",
        "my_metrics:half()": "allowed: module:function",
    }
    for text, message in refused.items():
        with pytest.raises(ConfigError, match=message):
            config.experiment({"metrics": [text]})
    with pytest.raises(ConfigError, match="names the module 'my_metrics'; allowed here: classes of fedsim and Flower"):
        config.experiment({"metrics": ["my_metrics:half"]}, Modules())


def test_early_stopping_on_a_metric() -> None:
    rising = replace(BASE, metrics=("macro_f1",), rounds=20, early_stopping=EarlyStopping("test_macro_f1", target=0.3))
    result = rising.run()
    assert result.history["test_macro_f1"].iloc[-1] >= 0.3 > result.history["test_macro_f1"].iloc[-2]
    falling = EarlyStopping("test_calibration_error", target=1.0)
    assert replace(BASE, metrics=("calibration_error",), early_stopping=falling).run().rounds == 0
    with pytest.raises(ConfigError, match="metric is 'test_macro_f1'; this experiment has test_loss, test_accuracy,"):
        replace(rising, metrics=()).run()
    with pytest.raises(ConfigError, match=r"metric is 'test_macro-f1'; allowed: .* did you mean 'test_macro_f1'"):
        EarlyStopping("test_macro-f1", target=0.3)


def test_a_study_has_metrics_of_all_runs(tmp_path: Path) -> None:
    base = replace(BASE, rounds=1, metrics=("macro_f1", "recall", mean_margin))
    study = compare(base, split=[IID(4), Dirichlet(8)], seeds=3, directory=tmp_path)
    summary = study.summary().iloc[0]
    values = [result.history["test_macro_f1"].iloc[-1] for result in study.variants[0].results]
    assert summary["final_macro_f1"] == pytest.approx(np.mean(values))
    assert summary["final_macro_f1_ci95"] == pytest.approx(4.30265 * np.std(values, ddof=1) / np.sqrt(3), rel=1e-4)
    assert study.table()["final macro F1"].iloc[0].startswith(f"{np.mean(values):.3f} ± ")
    assert "final mean_margin" in study.table()
    frame = study.metrics()
    assert frame.columns.tolist()[:3] == ["split", "seed", "round"]
    assert len(pd.read_csv(tmp_path / "metrics.csv")) == len(frame)
