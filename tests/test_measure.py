"""How non-IID: measures against definitions written out, limits, and what moves during training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from fedsim import Experiment, data
from fedsim.clients import SGD, FedPer
from fedsim.data import Dataset
from fedsim.errors import DivergenceError
from fedsim.report.tables import shards_table, splits_table
from fedsim.rounds.statistics import drift
from fedsim.servers import FedMedian
from fedsim.splits import IID, Dirichlet, FederatedDataset, LabelDirichlet, Partition, Shards, skew
from fedsim.splits.measure import gini, summary
from fedsim.streams import Purpose, generator
from fedsim.study.baselines import centralised
from fedsim.study.build import build_runtime
from fedsim.study.centralised import CentralisedTraining
from fedsim.study.result import Result


def test_measures_are_their_definitions() -> None:
    held = LabelDirichlet(7, 0.3).federate(data.load("digits"), 4)
    table = skew(held)
    x, y = held.dataset.x_train, held.dataset.y_train
    q = np.bincount(y, minlength=10) / len(y)
    varies = x.std(axis=0) > 0
    for row, shard in zip(table.itertuples(), held.partition, strict=True):
        p = np.bincount(y[shard], minlength=10) / len(shard)
        assert row.examples == len(shard)
        assert row.labels == len(np.unique(y[shard]))
        assert row.emd == pytest.approx(np.abs(p - q).sum())
        assert row.total_variation == pytest.approx(np.abs(p - q).sum() / 2)
        assert row.jensen_shannon == pytest.approx(jensenshannon(p, q, base=2) ** 2)
        assert row.effective_labels == pytest.approx(np.exp(entropy(p)))
        away = (x[shard].mean(axis=0) - x.mean(axis=0))[varies] / x.std(axis=0)[varies]
        assert row.feature_distance == pytest.approx(np.sqrt((away**2).mean()), rel=1e-5)


def test_their_limits() -> None:
    y = np.repeat(np.arange(10), 100)
    dataset = Dataset("even", y[:, None] * 1.0, y, y[:1, None] * 1.0, y[:1], 10)
    alike = Partition(np.arange(1000).reshape(10, 100).T.ravel(), np.arange(0, 1001, 10))  # one of each label
    one = skew(FederatedDataset(dataset, alike))
    assert one["emd"].max() == pytest.approx(0, abs=1e-12)
    assert one["effective_labels"].min() == pytest.approx(10)
    assert one["feature_distance"].max() == pytest.approx(0, abs=1e-12)
    single = skew(Shards(10, per_client=1).federate(dataset))
    assert single["emd"].tolist() == pytest.approx([1.8] * 10)
    assert single["effective_labels"].tolist() == pytest.approx([1.0] * 10)
    assert 0 <= single["jensen_shannon"].min() <= single["jensen_shannon"].max() <= 1


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    held = LabelDirichlet(60, 0.1).federate(data.load("digits"))
    whole = skew(held)
    monkeypatch.setattr("fedsim.splits.measure.MAX_COPIED", 64 * 20)
    np.testing.assert_allclose(skew(held)["feature_distance"], whole["feature_distance"], rtol=1e-9)


def test_a_table_of_shards_has_a_row_per_client_with_its_labels_by_name() -> None:
    """A client without examples differs from nobody."""
    x, y = np.array([[0.0], [0.0], [4.0], [4.0]]), np.array([0, 0, 1, 1])
    dataset = Dataset("pets", x, y, x[:1], y[:1], label_names=("cat", "dog"))
    held = FederatedDataset(dataset, Partition(np.arange(4), np.array([0, 1, 1, 4])))
    table = shards_table(held)
    assert (table.index.name, table.index.tolist()) == ("client", [0, 1, 2])
    assert list(table.columns) == ["cat", "dog", "examples", "EMD", "features"]
    assert table[["cat", "dog", "examples"]].to_numpy().tolist() == [[1, 0, 1], [0, 0, 0], [1, 2, 3]]
    np.testing.assert_array_equal(table["EMD"], [1.0, np.nan, 0.33])
    np.testing.assert_array_equal(table["features"], [1.0, np.nan, 0.33])


def test_clients_without_examples_are_left_out() -> None:
    held = FederatedDataset(data.load("digits"), Partition(np.arange(9), np.array([0, 4, 4, 9])))
    assert skew(held)["client"].tolist() == [0, 2]
    assert summary(held)["smallest"] == 0


def test_a_summary_has_the_sizes_and_means_over_clients_that_hold_examples() -> None:
    held = FederatedDataset(data.load("digits"), Partition(np.arange(9), np.array([0, 3, 3, 4, 9])))
    found, table = summary(held), skew(held)
    assert [found[name] for name in ("clients", "smallest", "median", "largest")] == [4, 0, 2.0, 5]
    assert found["gini"] == pytest.approx(gini(np.array([3, 0, 1, 5])))
    assert list(found)[5:] == list(table.columns)[2:]
    assert found["labels"] == pytest.approx(table["labels"].sum() / 3)
    assert found["feature_distance"] == pytest.approx(table["feature_distance"].sum() / 3)


@pytest.mark.parametrize(("sizes", "expected"), [([5, 5, 5], 0.0), ([0, 0, 0, 8], 0.75), ([1, 3], 0.25), ([7], 0.0)])
def test_gini(sizes: list[int], expected: float) -> None:
    assert gini(np.array(sizes)) == pytest.approx(expected)
    pairs = np.abs(np.subtract.outer(sizes, sizes)).mean() / (2 * np.mean(sizes))
    assert gini(np.array(sizes)) == pytest.approx(pairs)


def test_the_table_of_splits_rounds_means_of_measures() -> None:
    held = Dirichlet(7, alpha=0.3).federate(data.load("digits"), 4)
    row, table = summary(held), splits_table({"mine": held})
    assert table.loc["mine", ["EMD", "TV", "Gini"]].tolist() == [
        f"{row[name]:.2f}" for name in ("emd", "total_variation", "gini")
    ]
    assert table.loc["mine", ["clients", "largest"]].tolist() == ["7", f"{row['largest']:,.0f}"]


def test_the_table_of_shards_keeps_labels_named_like_its_columns() -> None:
    y = np.array([0, 0, 1, 1])
    dataset = Dataset("odd", y[:, None] * 1.0, y, y[:1, None] * 1.0, y[:1], 2, label_names=("examples", "EMD"))
    table = shards_table(FederatedDataset(dataset, Partition(np.arange(4), np.array([0, 3, 4]))))
    assert table.columns.tolist() == ["examples", "EMD", "examples", "EMD", "features"]
    assert table.iloc[:, :4].to_numpy().tolist() == [[2, 1, 3, 0.33], [0, 1, 1, 1.0]]


# During training.

BASE = Experiment(split=Dirichlet(8, alpha=0.3), client=SGD(lr=0.1, epochs=2), rounds=3, seed=5, dtype="float64")


def first_round(experiment: Experiment) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """The initial weights, each client's after its first round, and its share of the examples."""
    dataset = experiment.load_data()
    held = experiment.federate(dataset)
    model = experiment.make_model(dataset)
    start = model.init(generator(experiment.seed, Purpose.INIT))
    ends = []
    for client in range(len(held.partition)):
        alone = Partition(held.partition.indices, held.partition.offsets)
        from fedsim.rounds.grid import make_grid

        grid = make_grid(model, FederatedDataset(held.dataset, alone), experiment.client, experiment.seed)
        [update] = grid.engine.train(grid.runtime.task(start, 1), np.array([client]))
        ends.append(update.weights[0])
    return start, np.array(ends), held.partition.sizes / held.partition.sizes.sum()


@pytest.mark.parametrize("kernel", ["numpy", "compiled"])
def test_drift_is_its_definition(kernel: str) -> None:
    experiment = replace(BASE, kernel=kernel, rounds=1)
    start, ends, p = first_round(experiment)
    d = ends - start
    row = experiment.run().history.iloc[1]
    assert row.client_drift == pytest.approx(np.linalg.norm(d, axis=1).mean(), rel=1e-6)
    weighted = p[:, None] * d
    expected = (weighted**2).sum() / (weighted.sum(axis=0) ** 2).sum()
    assert row.gradient_diversity == pytest.approx(expected, rel=1e-6)
    unit = d / np.linalg.norm(d, axis=1)[:, None]
    pairs = ~np.eye(len(d), dtype=bool)
    weights = np.outer(np.linalg.norm(weighted, axis=1), np.linalg.norm(weighted, axis=1))[pairs]
    assert row.update_cosine == pytest.approx(np.average((unit @ unit.T)[pairs], weights=weights), rel=1e-6)


def drifts(result: Result) -> NDArray[Any]:
    found: NDArray[Any] = result.history[["client_drift", "gradient_diversity", "update_cosine"]].to_numpy()[1:]
    return found


def test_every_server_reports_the_clients_drift() -> None:
    """In a first round clients do the same under any server: ours that average, ours that do not, and Flower's."""
    from flwr.serverapp.strategy import FedAvg as FlowerFedAvg

    once = replace(BASE, rounds=1)
    expected = drifts(once.run())
    for server in (FedMedian, FlowerFedAvg):
        np.testing.assert_allclose(drifts(replace(once, server=server).run()), expected, rtol=1e-6)


def test_drift_is_the_same_bits_however_it_is_run() -> None:
    experiment = replace(BASE, split=LabelDirichlet(40, 0.2), dtype="float32")
    runs = [drifts(experiment.run(workers=w, block_size=b)) for w, b in ((1, None), (2, 3), (2, 1))]
    assert np.array_equal(runs[0], runs[1])
    assert np.array_equal(runs[0], runs[2])


def test_identical_clients_agree_and_one_client_has_nobody_to_agree_with() -> None:
    one = replace(BASE, split=IID(1)).run().history.iloc[1:]
    assert one["update_cosine"].isna().all()
    np.testing.assert_allclose(one["gradient_diversity"], 1)
    norms, examples = np.array([2.0, 2.0]), np.array([5, 5])
    assert drift(norms, examples, mean_norm=2.0) == pytest.approx((2.0, 0.5, 1.0))
    opposed = drift(norms, examples, mean_norm=0.0)
    assert opposed.update_cosine == pytest.approx(-1)
    assert np.isnan(opposed.gradient_diversity)


def test_non_iid_clients_disagree_more() -> None:
    iid, skewed = (drifts(replace(BASE, split=s).run()).mean(axis=0) for s in (IID(8), Shards(8, per_client=1)))
    assert skewed[2] < iid[2]
    assert skewed[1] > iid[1]


def test_private_parameters_do_not_drift() -> None:
    everything, shared = (
        drifts(replace(BASE, client=c).run())[0, 0] for c in (SGD(lr=0.1, epochs=2), FedPer(lr=0.1, epochs=2))
    )
    assert 0 < shared < everything


def test_weight_divergence_is_from_the_centralised_run() -> None:
    experiment = replace(BASE, weight_divergence=True)
    federated = experiment.run()
    central = centralised(replace(BASE, rounds=BASE.rounds)).run()
    away = np.concatenate([(federated.weights[k] - central.weights[k]).ravel() for k in central.weights])
    there = np.concatenate([central.weights[k].ravel() for k in central.weights])
    expected = np.linalg.norm(away) / np.linalg.norm(there)
    assert federated.history["weight_divergence"].iloc[-1] == pytest.approx(expected, rel=1e-6)
    assert federated.history["weight_divergence"].iloc[0] == 0
    plain = BASE.run()
    assert plain.history["weight_divergence"].isna().all()
    assert all(np.array_equal(plain.weights[k], federated.weights[k]) for k in plain.weights)


def test_weight_divergence_is_of_float64_and_of_training_that_does_not_diverge() -> None:
    """The squares of weights may be too large for their own type."""
    runtime = build_runtime(replace(BASE, client=SGD(lr=1e20)))
    weights = np.full(runtime.model.num_parameters, 1e30, dtype=np.float32)
    central = CentralisedTraining(runtime, weights)
    assert central.divergence(0, -weights) == pytest.approx(2.0)
    with pytest.raises(DivergenceError, match="in round 1"), central.engine:
        central.divergence(1, weights)
