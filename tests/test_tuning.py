"""Settings are chosen for each variant with other seeds than are reported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedsim import Experiment, Study, compare
from fedsim.clients import SGD, FedProx
from fedsim.errors import ConfigError, DivergenceError
from fedsim.servers import FedAdam
from fedsim.splits import IID
from fedsim.study.grid import variants
from fedsim.study.plan import make_plan
from fedsim.study.tuning import Tuning

BASE = Experiment(split=IID(4), hidden=(4,), rounds=3, client=SGD(lr=0.1))
AXES: dict[str, Any] = {"client": [SGD(), FedProx(proximal_mu=0.5)]}
RATES = [0.001, 0.1, 0.3, 1e9]


def test_each_variant_reports_the_value_that_was_best_on_other_seeds(tmp_path: Path) -> None:
    study = compare(BASE, seeds=2, tune={"client.lr": RATES}, tune_seeds=2, directory=tmp_path / "ran", **AXES)
    assert study.tuning
    study.save(tmp_path / "saved")
    for folder in ("ran", "saved"):
        loaded = Study.load(tmp_path / folder)
        assert loaded.tuning
        assert loaded.notes == study.notes
        assert loaded.tuning.summary().equals(study.tuning.summary())
    for variant in study.variants:
        seeds = [result.experiment.seed for result in variant.results]
        assert seeds == [0, 1]
        client: Any = variant.results[0].experiment.client
        scores = []
        for lr in RATES[:3]:
            runs = [replace(BASE, client=replace(client, lr=lr), seed=seed).run() for seed in (10_000, 10_001)]
            scores.append(np.mean([run.final_score for run in runs]))
        assert client.lr == RATES[int(np.argmax(scores))]
        assert variant.labels["tuned client.lr"] == str(client.lr)
        alone = replace(BASE, client=client, seed=1).run()
        assert np.array_equal(variant.results[1].test_scores, alone.test_scores)
    assert {r.experiment.seed for v in study.tuning.variants for r in v.results} == {10_000, 10_001}
    assert "Chosen with seeds 10000, 10001, which are not in this table: client.lr." in study.notes
    assert any("Diverged" in note for note in study.tuning.notes)


def test_a_value_at_the_end_of_the_grid_is_noted() -> None:
    study = compare(BASE, tune={"client.lr": [0.001, 0.002, 0.004]}, tune_seeds=1)
    assert study.notes[-1] == "client.lr 0.004, the largest that was tried, is best for 1 of 1: try more."


def test_a_loss_is_to_fall() -> None:
    settings: dict[str, Any] = {"tune": {"client.lr": [0.001, 0.1]}, "tune_seeds": 1}
    for metric in ("test_loss", "train_loss", "test_accuracy"):
        study = compare(BASE, tune_metric=metric, **settings)
        assert study.variants[0].labels == {"tuned client.lr": "0.1"}
    with pytest.raises(ConfigError, match="tune_metric is 'bytes_up'; allowed: test_loss, test_accuracy, "):
        compare(BASE, tune_metric="bytes_up", **settings)


def test_variants_without_the_setting_keep_what_they_have() -> None:
    study = compare(BASE, tune={"client.proximal_mu": [0.1, 1.0]}, tune_seeds=1, **AXES)
    assert study.variants[0].labels == {"client": "SGD", "tuned client.proximal_mu": "-"}
    assert study.variants[1].labels["tuned client.proximal_mu"] in ("0.1", "1.0")


def test_seeds_of_both_kinds_are_others() -> None:
    with pytest.raises(ConfigError, match="tune_seeds has 1, which is reported too; allowed: other seeds than 0, 1"):
        compare(BASE, seeds=2, tune={"client.lr": [0.1]}, tune_seeds=[1, 2])
    with pytest.raises(ConfigError, match=r"client.lr is both tuned and compared; allowed: one of the two"):
        compare(BASE, tune={"client.lr": [0.1, 0.2]}, **{"client.lr": [0.1, 0.2]})  # type: ignore[arg-type]
    with pytest.raises(DivergenceError):
        compare(BASE, tune={"client.lr": [1e9, 1e10]}, tune_seeds=1)


def test_a_value_that_diverges_with_some_seeds_is_not_chosen() -> None:
    """Though its mean over the others is best."""
    labels = [({"client.lr": lr}, BASE) for lr in ("0.1", "0.9")]
    runs = [replace(BASE, seed=seed).run() for seed in (5, 6)]
    good = replace(runs[0], history=runs[0].history.assign(test_accuracy=0.99))
    tuned = Study.of([(labels[0][0], run) for run in runs] + [(labels[1][0], good)], [(labels[1][0], 6)])
    best, _ = Tuning({"client.lr": ["0.1", "0.9"]}).choose([labels], tuned, 2)
    assert best[0][0] == {"tuned client.lr": "0.1"}


def test_a_tuned_study_continues_in_its_directory(tmp_path: Path) -> None:
    settings = {"tune": {"client.lr": [0.01, 0.1]}, "tune_seeds": 1, "directory": tmp_path / "out"}
    first = compare(BASE, **settings, **AXES)  # type: ignore[arg-type]
    stamps = {file: file.stat().st_mtime_ns for file in tmp_path.glob("out/**/SHA256SUMS")}
    assert len(stamps) == 4 + 2
    again = compare(BASE, **settings, **AXES)  # type: ignore[arg-type]
    assert {file: file.stat().st_mtime_ns for file in tmp_path.glob("out/**/SHA256SUMS")} == stamps
    pd.testing.assert_frame_equal(first.rounds(), again.rounds())
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_plan_is_written_and_read() -> None:
    settings = {
        "split": "IID(4)",
        "compare": {
            "client": ["SGD()", "FedProx(proximal_mu=0.1)"],
            "split": {"num_clients": [4, 5]},
            "seeds": 2,
            "baselines": [],
        },
        "tune": {"client": {"lr": [0.1, 0.2]}, "seeds": [7], "metric": "test_loss"},
    }
    import tomllib

    plan = make_plan(settings)
    assert list(plan.axes) == ["client", "split.num_clients"]
    assert make_plan(tomllib.loads(plan.to_toml())) == plan
    with pytest.raises(ConfigError, match="a table of a study is"):
        make_plan(settings | {"tune": [1]})
    with pytest.raises(ConfigError, match=r"client.lr is 0\.1; compare needs a list"):
        compare(BASE, tune={"client.lr": 0.1})  # type: ignore[dict-item]


# Grids.


def test_axes_may_be_arguments_of_objects() -> None:
    found = variants(BASE, {"client.lr": [0.1, 0.2], "client": [SGD(), FedProx(proximal_mu=0.5)]})
    assert [labels for labels, _ in found] == [
        {"client.lr": lr, "client": name} for lr in ("0.1", "0.2") for name in ("SGD", "FedProx(proximal_mu=0.5)")
    ]
    assert [e.client for _, e in found] == [
        SGD(lr=0.1), FedProx(lr=0.1, proximal_mu=0.5), SGD(lr=0.2), FedProx(lr=0.2, proximal_mu=0.5)
    ]  # fmt: skip
    (_, small), (_, large) = variants(replace(BASE, server=FedAdam(eta=0.1)), {"server.eta": [0.1, 0.2]})
    assert small.server.keywords == {"eta": 0.1}  # type: ignore[union-attr]
    assert large.server.keywords == {"eta": 0.2}  # type: ignore[union-attr]


def test_labels_name_what_varies_and_only_that() -> None:
    def labels(**axes: Any) -> list[dict[str, str]]:
        return [found for found, _ in variants(BASE, axes)]

    clients = [SGD(lr=0.2, epochs=5), FedProx(lr=0.2, epochs=5, proximal_mu=1.0)]
    assert [found["client"] for found in labels(client=clients)] == ["SGD", "FedProx(proximal_mu=1.0)"]
    both = [SGD(lr=0.2, epochs=5), SGD(lr=0.3, epochs=5)]
    assert [found["client"] for found in labels(client=both)] == ["SGD(lr=0.2)", "SGD(lr=0.3)"]
    assert labels(client=clients, rounds=[3])[0] == {"client": "SGD"}
    assert labels(rounds=[3]) == [{"rounds": "3"}]


@pytest.mark.parametrize(
    ("axis", "sentence"),
    [
        ("client.nothing", "compare is 'client.nothing=1'; allowed: client.lr, "),
        ("nothing.lr", "an axis of compare is 'nothing'"),
        ("seed.x", "an axis of compare is 'seed'"),
    ],
)
def test_axes_that_are_none_are_refused(axis: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        compare(BASE, **{axis: [1]})  # type: ignore[arg-type]
