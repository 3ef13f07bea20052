"""Comparing: the axes, the statistics, the files and the pictures."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedsim import Experiment, baselines, compare, mlp
from fedsim.baselines import centralised
from fedsim.clients import SGD, FedPer, FedProx
from fedsim.compression import TopK
from fedsim.errors import ConfigError
from fedsim.experiment import Result
from fedsim.report.files import keep_earlier, writable_directory, write_whole
from fedsim.report.split_plots import plot_splits
from fedsim.servers import FedAdam
from fedsim.splits import IID, Dirichlet, LabelNoise, Shards
from fedsim.study import Study, half_width, variants

BASE = Experiment(split=IID(10), hidden=(8,), rounds=2, fraction_evaluate=1.0)


@pytest.fixture(scope="module")
def study() -> Study:
    return compare(BASE, split=[IID(10), Dirichlet(10, alpha=0.1)], client=[SGD(), FedProx(proximal_mu=1.0)], seeds=3)


def test_every_combination_and_seed_runs_once(study: Study) -> None:
    assert [v.label for v in study.variants] == [
        "IID, SGD",
        "IID, FedProx(proximal_mu=1.0)",
        "Dirichlet(0.1), SGD",
        "Dirichlet(0.1), FedProx(proximal_mu=1.0)",
    ]
    assert [[r.experiment.seed for r in v.results] for v in study.variants] == [[0, 1, 2]] * 4


def test_a_study_gives_what_its_experiments_give_alone(study: Study) -> None:
    result = study.variants[2].results[1]
    alone = result.experiment.run()
    assert result.experiment.dataset == "digits"
    assert all(np.array_equal(alone.weights[k], result.weights[k]) for k in alone.weights)


def test_the_interval_is_students() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = [0.9, 0.93, 0.85, 0.91]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert half_width(values) == pytest.approx((high - low) / 2, rel=1e-12)
    assert math.isnan(half_width([0.9]))


def test_summary_and_table(study: Study) -> None:
    summary = study.summary(target=0.05)
    assert summary["seeds"].tolist() == [3] * 4
    finals = [r.final_accuracy for r in study.variants[0].results]
    assert summary["final_accuracy"][0] == pytest.approx(np.mean(finals))
    assert summary["reached"].tolist() == [3] * 4
    table = study.table(target=2.0)
    assert (table["rounds to 2.00"] == "not reached").all()
    assert "±" in table["final accuracy"].iloc[0]


def test_files(study: Study, tmp_path: Path) -> None:
    study.to_csv(tmp_path / "new" / "folder")
    rounds = pd.read_csv(tmp_path / "new" / "folder" / "rounds.csv")
    assert list(rounds.columns[:4]) == ["split", "client", "seed", "round"]
    assert len(rounds) == 4 * 3 * 3
    clients = pd.read_csv(tmp_path / "new" / "folder" / "clients.csv")
    assert len(clients) == 4 * 3 * 2 * 10
    assert len(pd.read_csv(tmp_path / "new" / "folder" / "summary.csv")) == 4


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_pictures(study: Study, tmp_path: Path, kind: str) -> None:
    study.plot(tmp_path / f"a.{kind}")
    study.plot_splits(tmp_path / f"s.{kind}")
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind]
    for name in ("a", "s"):
        assert (tmp_path / f"{name}.{kind}").read_bytes().startswith(start)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_picture_of_an_unknown_kind_is_refused(study: Study, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ends in 'docx'; allowed: .*png"):
        study.plot(tmp_path / "a.docx")


@pytest.mark.parametrize(("clients", "classes"), [(1, 2), (7, 30), (1000, 10)])
def test_split_pictures_of_any_size(tmp_path: Path, clients: int, classes: int) -> None:
    counts = np.random.default_rng(0).integers(0, 5, (clients, classes))
    plot_splits({"some": counts}, tmp_path / "s.png", "digits")
    assert (tmp_path / "s.png").stat().st_size > 5_000


def test_without_axes_a_study_is_seeds(tmp_path: Path) -> None:
    study = compare(BASE, seeds=[4, 9])
    assert [r.experiment.seed for r in study.variants[0].results] == [4, 9]
    assert len(study.table()) == 1
    study.plot(tmp_path / "a.png")


def test_labels_that_collide_are_written_out() -> None:
    labels = [labels["split"] for labels, _ in variants(BASE, split=[IID(5), IID(10)])]
    assert labels == ["IID(num_clients=5)", "IID(num_clients=10)"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"splits": [IID(5)]}, "compare cannot vary 'splits'.*did you mean 'split'"),
        ({"seed": [1, 2]}, "compare cannot vary 'seed'"),
        ({"split": []}, "at least one"),
        ({"split": IID(5)}, "compare wants a list"),
        ({"dataset": "digits"}, "compare wants a list"),
        ({"rounds": [0]}, "rounds is 0"),
        ({"seeds": 0}, "seeds is 0"),
        ({"seeds": []}, "seeds is empty"),
        ({"baselines": ["central"]}, "baselines is 'central'; allowed: centralised, data-parallel"),
        ({"baselines": "centralised"}, "baselines is 'centralised'; allowed: a list of"),
    ],
)
def test_bad_studies_are_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        compare(BASE, **arguments)


def test_baselines_stand_beside_the_variants() -> None:
    base = replace(BASE, dtype="float64", client=SGD(momentum=0.5, lr=0.05))
    axes: dict[str, Any] = {"split": [IID(10), Dirichlet(10, alpha=0.1)], "hidden": [(4,), (8,)]}
    study = compare(base, baselines=["centralised", "data-parallel"], **axes)
    labels = [tuple(v.labels.values()) for v in study.variants]
    assert labels[-2:] == [("centralised", "-"), ("data-parallel", "-")]
    assert len(labels) == 6
    table = compare(base, baselines=["centralised"]).table()
    assert table.index.tolist() == ["federated", "centralised"]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_baselines_are_what_they_say(momentum: float) -> None:
    """With full batches both are gradient descent, with momentum, on all examples: written out here."""
    base = replace(BASE, dtype="float64", rounds=6, client=SGD(batch_size=None, lr=0.1, momentum=momentum))
    data = base.load_data()
    net = base.network(data)
    w = flat(replace(base, rounds=1, client=SGD(lr=1e-300)).run())
    x, y, v = data.x_train.astype(float)[None], data.y_train[None], np.zeros_like(w)
    for _ in range(6):
        v = momentum * v + mlp.gradient(net, w[None], x, y)[1][0]
        w = w - 0.1 * v
    np.testing.assert_allclose(flat(baselines.data_parallel(base).run()), w, rtol=1e-11, atol=1e-13)
    one_round = replace(baselines.centralised(base), rounds=1, client=replace(base.client, epochs=6))
    np.testing.assert_allclose(flat(one_round.run()), w, rtol=1e-11, atol=1e-13)


def flat(result: Result) -> Any:
    return np.concatenate([values.ravel() for values in result.weights.values()])


def test_local_accuracy_has_its_column() -> None:
    study = compare(replace(BASE, test_fraction=0.3), client=[SGD(), FedPer()], seeds=2)
    table, summary = study.table(), study.summary()
    assert table["local accuracy"].str.contains("±").all()
    rows = study.clients().query("round == 2")
    for client, found in zip(("SGD", "FedPer"), summary["local_accuracy"], strict=True):
        means = [
            np.average(run["accuracy"], weights=run["num_examples"])
            for _, run in rows[rows["client"] == client].groupby("seed")
        ]
        assert found == pytest.approx(np.mean(means))
    assert "local accuracy" not in compare(replace(BASE, fraction_evaluate=0.0), seeds=1).table()


def test_the_centralised_baseline_is_alone_and_on_clients_data() -> None:
    experiment = Experiment(split=LabelNoise(IID(6), 0.9, 0.9), rounds=3, min_clients=6, compress=(TopK(0.01),))
    clean = replace(experiment, split=IID(6))
    noisy, plain = (centralised(e).run() for e in (experiment, clean))
    assert noisy.history["clients"].tolist() == [0, 1, 1, 1]
    assert noisy.final_accuracy < 0.4 < plain.final_accuracy


def test_local_accuracy_has_its_picture(study: Study, tmp_path: Path) -> None:
    study.plot(tmp_path / "local.png", "local")
    assert (tmp_path / "local.png").stat().st_size > 10_000
    with pytest.raises(ConfigError, match="no client evaluated on its own examples; set fraction_evaluate"):
        compare(replace(BASE, fraction_evaluate=0.0)).plot(tmp_path / "x.png", "local")
    with pytest.raises(ConfigError, match="whose is 'loss'; allowed: test, local"):
        study.plot(tmp_path / "x.png", "loss")


def test_servers_are_labelled_with_their_options() -> None:
    study = compare(BASE, server=[FedAdam, partial(FedAdam, eta=0.5)])
    assert [v.label for v in study.variants] == ["FedAdam", "FedAdam(eta=0.5)"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "x.csv"
    target.write_text("old")

    def fail(stream: Any) -> None:
        stream.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(target, fail)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_earlier_results_are_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number in range(3):
        writable_directory(out)
        kept = keep_earlier(out, ["a.csv", "b.csv"])
        assert kept == (tmp_path / f"out.{number}" if number else None)
        (out / "a.csv").write_text(str(number))
    assert [(tmp_path / f"out.{n}" / "a.csv").read_text() for n in (1, 2)] == ["0", "1"]
    assert (out / "a.csv").read_text() == "2"


def test_shards_label() -> None:
    assert str(Shards(10, per_client=3)) == "Shards(3)"
