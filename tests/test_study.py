"""Comparing: the axes, the statistics, the files and the pictures."""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import OnRound
from matplotlib.figure import Figure

from fedsim import Experiment, compare
from fedsim.clients import SGD, FedPer, FedProx
from fedsim.data import Dataset
from fedsim.engines.threads import ThreadEngine
from fedsim.errors import ConfigError
from fedsim.files import keep_earlier, remove_temporary, writable_directory, write_whole
from fedsim.report import plots, split_plots, style
from fedsim.report.intervals import half_width
from fedsim.report.split_plots import plot_splits
from fedsim.servers import FedAdam
from fedsim.splits import IID, Dirichlet, LabelNoise, Shards, skew
from fedsim.study import baselines, store
from fedsim.study.baselines import centralised
from fedsim.study.directory import ResultsDirectory
from fedsim.study.grid import variants
from fedsim.study.result import Result
from fedsim.study.study import Study, Variant
from fedsim.updates.compression import TopK

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
    assert math.isnan(half_width([0.9, 0.8]))


def test_summary_and_table(study: Study) -> None:
    summary = study.summary(target=0.05)
    assert summary["seeds"].tolist() == [3] * 4
    finals = [r.final_accuracy for r in study.variants[0].results]
    assert summary["final_accuracy"][0] == pytest.approx(np.mean(finals))
    assert summary["reached"].tolist() == [3] * 4
    table = study.table(target=1.0)
    assert (table["rounds to 1.00"] == "> 2 (0 of 3 seeds)").all()
    with pytest.raises(ConfigError, match="target is 97; allowed: a finite number at most 1"):
        study.table(target=97)
    assert "±" in table["final accuracy"].iloc[0]


def test_files(study: Study, tmp_path: Path) -> None:
    study.to_csv(tmp_path / "new" / "folder")
    rounds = pd.read_csv(tmp_path / "new" / "folder" / "rounds.csv")
    assert list(rounds.columns[:4]) == ["split", "client", "seed", "round"]
    assert len(rounds) == 4 * 3 * 3
    assert rounds["seed"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] * 4
    assert study.rounds().index.tolist() == list(range(36))
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
    with pytest.raises(ConfigError, match=r"a.docx' is 'docx'; allowed: .*png"):
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
    labels = [labels["split"] for labels, _ in variants(BASE, {"split": [IID(5), IID(10)]})]
    assert labels == ["IID(num_clients=5)", "IID(num_clients=10)"]
    splits = [IID(50), Dirichlet(20, alpha=0.3)]  # short labels leave out the number of clients
    labels = [labels["split"] for labels, _ in variants(BASE, {"split": splits})]
    assert labels == ["IID(num_clients=50)", "Dirichlet(num_clients=20, alpha=0.3)"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"splits": [IID(5)]}, "an axis of compare is 'splits'.*did you mean 'split'"),
        ({"seed": [1, 2]}, "an axis of compare is 'seed'"),
        ({"split": []}, "at least one"),
        ({"split": IID(5)}, "compare needs a list"),
        ({"dataset": "digits"}, "compare needs a list"),
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
    model = base.make_model(data)
    w = flat(replace(base, rounds=1, client=SGD(lr=1e-300)).run())
    x, y, v = data.x_train.astype(float)[None], data.y_train[None], np.zeros_like(w)
    for _ in range(6):
        v = momentum * v + model.loss_and_gradient(w[None], x, y)[1][0]
        w = w - 0.1 * v
    np.testing.assert_allclose(flat(baselines.data_parallel(base).run()), w, rtol=1e-11, atol=1e-13)
    one_round = replace(baselines.centralised(base), rounds=1, client=SGD.of(base.client, epochs=6))
    np.testing.assert_allclose(flat(one_round.run()), w, rtol=1e-11, atol=1e-13)


def flat(result: Result) -> Any:
    return np.concatenate([values.ravel() for values in result.weights.values()])


def test_local_accuracy_has_its_column() -> None:
    study = compare(replace(BASE, test_fraction=0.3), client=[SGD(), FedPer()], seeds=3)
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
    experiment = Experiment(split=LabelNoise(IID(6), 0.9, 0.9), rounds=3, min_clients=6, transforms=(TopK(0.01),))
    clean = replace(experiment, split=IID(6))
    noisy, plain = (centralised(e).run() for e in (experiment, clean))
    assert noisy.history["clients"].tolist() == [0, 1, 1, 1]
    assert noisy.final_accuracy < 0.4 < plain.final_accuracy


def test_local_accuracy_has_its_picture(study: Study, tmp_path: Path) -> None:
    study.plot(tmp_path / "local.png", "local")
    assert (tmp_path / "local.png").stat().st_size > 10_000
    with pytest.raises(ConfigError, match="no client evaluated on its own examples; set fraction_evaluate"):
        compare(replace(BASE, fraction_evaluate=0.0)).plot(tmp_path / "x.png", "local")
    with pytest.raises(ConfigError, match="evaluation is 'loss'; allowed: test, local"):
        study.plot(tmp_path / "x.png", "loss")


def test_servers_are_labelled_with_their_options() -> None:
    study = compare(BASE, server=[FedAdam, partial(FedAdam, eta=0.5)])
    assert [v.label for v in study.variants] == ["FedAdam", "FedAdam(eta=0.5)"]


def test_what_is_finished_is_written_as_it_finishes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A killed study leaves what was finished: look at the files while the second and the last run are at work."""
    monkeypatch.setattr(store, "WRITING_SHARE", 1e9)
    out, seen = tmp_path / "out", []

    def on_round(row: Mapping[str, float]) -> None:
        if row["round"] == 1:
            seen.append(pd.read_csv(out / "summary.csv")["seeds"].tolist() if (out / "summary.csv").exists() else [])

    axes: dict[str, Any] = {"split": [IID(10), Shards(10, per_client=2)]}
    whole = compare(BASE, seeds=2, directory=out, callbacks=[OnRound(on_round)], **axes)
    assert seen == [[], [1], [2], [2, 1]]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]  # its own tables are no earlier results
    whole.to_csv(tmp_path / "again")
    own = {"study.toml", "environment.json", "remarks.txt", "runs.csv", "runs", ".lock"}
    assert {p.name for p in out.iterdir()} == {"rounds.csv", "clients.csv", "summary.csv", "fairness.csv"} | own
    for name in ("rounds.csv", "clients.csv", "summary.csv", "fairness.csv"):
        assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize("share", [1e9, -1.0])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ConfigError])
def test_a_study_that_ends_early_writes_what_is_finished(
    error: type[BaseException],
    share: float,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """However seldom it writes while it runs; earlier results are kept beside it, and the same call continues."""
    monkeypatch.setattr(store, "WRITING_SHARE", share)
    out, begun, last = tmp_path / "out", 0, 0
    out.mkdir()
    (out / "summary.csv").write_text("earlier")
    (out / ".rounds.csv.abcdefgh").touch()  # of a process that was killed

    def on_round(row: Mapping[str, float]) -> None:
        nonlocal begun, last  # which are assigned, so that their values are no part of a run's identity
        begun, last = begun + (row["round"] == 0), last
        if begun == last:
            raise error("no")

    axes: dict[str, Any] = {"client": [SGD(lr=0.1), SGD(lr=0.2)]}
    for at, finished in ((1, 0), (3, 2)):
        begun, last = 0, at
        with pytest.raises(error):
            compare(BASE, seeds=3, directory=out, callbacks=[OnRound(on_round)], **axes)
        assert not (out / ".rounds.csv.abcdefgh").exists()
        assert f"{finished} of 6 runs are finished in {out}" in capsys.readouterr().err
    assert (tmp_path / "out.1" / "summary.csv").read_text() == "earlier"
    assert len(pd.read_csv(out / "rounds.csv")) == 2 * 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "out.1"]
    last = 1_000
    whole = compare(BASE, seeds=3, directory=out, callbacks=[OnRound(on_round)], **axes)
    pd.testing.assert_frame_equal(
        whole.rounds().drop(columns="seconds"), compare(BASE, seeds=3, **axes).rounds().drop(columns="seconds")
    )


def history(*scores: float) -> pd.DataFrame:
    frame = pd.DataFrame({"round": range(len(scores)), "test_accuracy": scores})
    frame = frame.assign(local_accuracy=np.nan, attack_success=np.nan, seconds=0.5)
    return frame.assign(test_loss=0.5, epsilon=2.0, bytes_up=1e6, bytes_down=1e6)


def test_statistics_of_known_histories() -> None:
    """Two variants, two seeds each, written down: the target is the best variant's, the best round is not the last."""
    runs = [[(0.1, 0.9, 0.6), (0.1, 0.8, 0.8)], [(0.1, 0.3, 0.2), (0.1, 0.2, 0.4)]]
    empty = pd.DataFrame()
    made = Study(
        tuple(
            Variant(
                {"split": name},
                tuple(Result(BASE, history(*scores), empty, {}, "numpy", "accuracy", empty) for scores in seeds),
            )
            for name, seeds in zip("ab", runs, strict=True)
        )
    )
    assert made.target == 0.66  # 95 % of (0.6 + 0.8) / 2, rounded
    summary = made.summary()
    assert summary["final_accuracy"].tolist() == pytest.approx([0.7, 0.3])
    assert summary["best_accuracy"].tolist() == pytest.approx([0.85, 0.35])
    assert summary["reached"].tolist() == [2, 0]
    rounds = np.median([(0.66 - 0.1) / 0.8, (0.66 - 0.1) / 0.7])
    assert summary["rounds_to_target"][0] == pytest.approx(rounds)
    assert summary["megabytes_to_target"][0] == pytest.approx(2 * (1 + rounds))  # 2 MB per round, from round 0
    assert summary["seconds_to_target"][0] == pytest.approx((1 + rounds) / 2)
    assert math.isnan(summary["rounds_to_target"][1])
    assert summary["megabytes_sent"].tolist() == pytest.approx([6.0, 6.0])
    assert summary["epsilon"].tolist() == [2.0, 2.0]
    assert made.table()["epsilon"].tolist() == ["2.00", "2.00"]
    assert summary["final_accuracy_ci95"].isna().all()  # two seeds have no interval
    assert "final_accuracy_low" in made.summary(interval="bootstrap")


def test_a_file_is_on_the_disk_before_and_after_its_renaming(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The content is flushed before the name is, and then the folder's entry; each of what it says it is."""
    done: list[str] = []
    handles: list[int] = []

    def fsync(handle: int) -> None:
        handles.append(handle)
        status = os.fstat(handle)
        what = "folder" if os.path.samestat(status, tmp_path.stat()) else f"file of {status.st_size}"
        done.append(f"fsync {what}")

    def rename(source: Any, target: Any, real: Any = os.replace) -> None:
        done.append(f"rename to {Path(target).name}")
        real(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    write_whole(tmp_path / "x.csv", lambda stream: stream.write(b"12345"))
    assert done == ["fsync file of 5", "rename to x.csv", "fsync folder"]
    for handle in handles:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(handle)
    assert (tmp_path / "x.csv").read_bytes() == b"12345"


def test_moving_earlier_results_is_resumed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Interrupted before any of its steps, it is finished by the next call, and all results are in one folder."""
    names = ["a.csv", "b.csv", "c.csv"]
    real = Path.rename
    for steps in range(len(names) + 1):
        out, left = tmp_path / f"{steps}" / "out", steps
        out.mkdir(parents=True)
        for name in names:
            (out / name).write_text(name)

        def rename(self: Path, target: Any) -> Path:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return real(self, target)

        monkeypatch.setattr(Path, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            keep_earlier(out, names)
        monkeypatch.setattr(Path, "rename", real)
        assert keep_earlier(out, names) == out.with_name("out.1")
        assert keep_earlier(out, names) is None
        assert sorted(p.name for p in out.parent.iterdir()) == ["out", "out.1"]
        assert sorted(p.name for p in (out.parent / "out.1").iterdir()) == names
        assert not list(out.iterdir())


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


def test_local_accuracy_is_that_of_the_last_round() -> None:
    frame = history(0.1, 0.5, 0.4).assign(local_accuracy=[np.nan, 0.9, 0.7])
    empty = pd.DataFrame()
    made = Study((Variant({}, (Result(BASE, frame, empty, {}, "numpy", "accuracy", empty),)),))
    assert made.summary()["local_accuracy"].tolist() == [0.7]


def test_a_number_of_seeds_starts_at_the_experiments_own() -> None:
    results = compare(replace(BASE, seed=5, rounds=1), seeds=2).variants[0].results
    assert [r.experiment.seed for r in results] == [5, 6]


def test_each_folder_of_data_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Any] = []
    digits = BASE.load_data()

    def load(name: str, folder: str) -> Dataset:
        loaded.append(folder)
        return digits

    monkeypatch.setattr("fedsim.data.load", load)
    compare(replace(BASE, rounds=1), data_dir=["a", "b"], seeds=2)
    assert loaded == ["a", "b"]


def test_every_worker_takes_part_in_data_parallel_training() -> None:
    result = baselines.data_parallel(replace(BASE, fraction_train=0.3)).run()
    assert result.history["clients"].tolist() == [0, 10, 10]


def test_bars_are_sorted_by_the_label_a_client_holds_most() -> None:
    table = np.random.default_rng(0).integers(0, 50, (80, 6))
    shown = table[split_plots._sample(table, 100)]
    labels, most = shown.argmax(axis=1), shown.max(axis=1)
    assert (np.diff(labels) >= 0).all()
    for label in range(6):
        assert (np.diff(most[labels == label]) <= 0).all()


def test_the_band_is_the_confidence_interval(study: Study) -> None:
    axes = Figure().subplots()
    plots._draw_curves(study._histories, "test_accuracy", axes, (0, 1))
    edges = np.array(axes.collections[0].get_paths()[0].vertices)
    finals = [r.final_accuracy for r in study.variants[0].results]
    last = edges[edges[:, 0] == BASE.rounds, 1]
    assert last.min() == pytest.approx(np.mean(finals) - half_width(finals))
    assert last.max() == pytest.approx(min(np.mean(finals) + half_width(finals), 1))


def test_each_client_is_drawn_at_its_own_skew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(style, "save", lambda figure, path: figures.append(figure))
    experiment = replace(BASE, split=Dirichlet(10, alpha=0.1), fraction_evaluate=0.5, seed=3)
    study = compare(experiment)
    study.plot_score_by_skew(tmp_path / "a.png")
    last = study.clients().query("round == 2")
    emd = skew(experiment.federate(experiment.load_data())).set_index("client")["emd"]
    points: Any = figures[0].axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(points, np.column_stack([emd[last["partition_id"]], last["accuracy"]]))


def test_a_study_of_datasets_with_different_labels_has_its_pictures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(style, "save", lambda figure, path: figures.append(figure))
    study = compare(replace(BASE, rounds=1, split=IID(4)), dataset=["digits", "fcube"], fraction_evaluate=[0.0, 1.0])
    study.plot_splits(tmp_path / "a.png")
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == [str(label) for label in range(10)]
    assert figures[0].get_suptitle() == "Label distribution per client: digits and fcube"
    study.plot_score_by_skew(tmp_path / "a.png")
    labels = [text.get_text().partition(", rank")[0] for text in figures[1].legends[0].get_texts()]
    assert labels == ["digits, fraction_evaluate=1.0", "fcube, fraction_evaluate=1.0"]


def test_the_pictures_of_a_study_show_all_its_runs(
    study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(style, "save", lambda figure, path: drawn.append(figure))
    labels = [variant.label for variant in study.variants]
    study.plot(tmp_path / "a.png", "local")
    (axes,) = drawn.pop().axes
    means = [np.mean([r.history["local_accuracy"] for r in v.results], axis=0)[-1] for v in study.variants]
    assert [line.get_ydata()[-1] for line in axes.lines] == pytest.approx(means)
    assert axes.get_ylabel() == "accuracy of clients' models on their own examples"
    assert "digits, 10 clients (mean of 3 seeds, 95 % interval shaded" in axes.get_title(loc="left")
    study.plot_drift(tmp_path / "a.png")
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == labels
    assert "digits, 10 clients (mean of 3 seeds, 95 % interval shaded" in drawn.pop().get_suptitle()
    study.plot_score_by_skew(tmp_path / "a.png")
    (axes,) = drawn.pop().axes
    assert [len(found.get_offsets()) for found in axes.collections] == [10 * 3] * 4
    assert axes.get_title(loc="left").endswith(": digits")
    other = compare(
        replace(BASE, rounds=1, fraction_evaluate=0.0, seed=3), split=[Shards(6, per_client=2), IID(5)], seeds=2
    )
    other.plot_splits(tmp_path / "a.png", "sizes")
    assert [panel.get_xlabel() for panel in drawn[0].axes] == ["examples per client"] * 2
    assert drawn.pop().get_suptitle().endswith(" digits")
    with pytest.raises(ConfigError, match="set fraction_evaluate"):
        other.plot_score_by_skew(tmp_path / "a.png")
    shown: dict[str, Any] = {}
    monkeypatch.setattr(split_plots, "plot_splits", lambda counts, *_: shown.update(counts))
    other.plot_splits(tmp_path / "a.png")
    assert (
        list(shown) == [variant.label for variant in other.variants] == ["Shards(num_clients=6)", "IID(num_clients=5)"]
    )
    held = Shards(6, per_client=2).federate(BASE.load_data(), 3)  # as the first seed divides it
    assert np.array_equal(shown["Shards(num_clients=6)"], held.label_counts())


def test_split_pictures_name_labels_by_their_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(style, "save", lambda figure, path: drawn.append(figure))
    x, y = np.random.default_rng(0).random((40, 3)), np.arange(40) % 2
    pets = Dataset("pets", x, y, x, y, 2, label_names=("cat", "dog"))
    compare(Experiment(dataset=pets, split=IID(4), rounds=1)).plot_splits(tmp_path / "a.png")
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["cat", "dog"]
    assert drawn[0].get_suptitle().endswith(" pets")


def test_a_study_of_real_numbers_is_by_r2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In every name of its tables and pictures; a target may be below zero."""
    drawn: list[Figure] = []
    monkeypatch.setattr(style, "save", lambda figure, path: drawn.append(figure))
    frame = pd.DataFrame({"test_r2": [-4.0, -2.0], "local_r2": [-3.0, 0.25], "test_loss": [0.9, 0.5]})
    frame = frame.assign(
        train_loss=7.0, epsilon=np.nan, bytes_up=3e6, bytes_down=1e6, attack_success=np.nan, seconds=1.0
    )
    other = frame.assign(local_r2=[-3.0, 0.75], test_loss=[0.9, 0.75])
    scores = pd.DataFrame({"round": [1, 1], "partition_id": [0, 1], "r2": [0.5, 0.0]})
    results = tuple(Result(BASE, f, scores, {}, "numpy", "r2", pd.DataFrame()) for f in (frame, other))
    made = Study((Variant({}, results),))
    assert made.target == -2.1  # 5 % below -2
    summary = made.summary(-3.0).iloc[0]
    assert summary[["final_r2", "best_r2", "local_r2", "target", "rounds_to_target"]].tolist() == [-2, -2, 0.5, -3, 0.5]
    assert math.isnan(summary["local_r2_ci95"])
    assert summary["final_loss"] == 0.625
    assert summary["megabytes_sent"] == 8.0
    table = made.table()
    assert list(table.columns) == ["final R2", "local R2", "best R2", "rounds to -2.10", "MB sent"]
    assert table["local R2"].iloc[0] == "0.500"
    made.plot(tmp_path / "a.png")
    assert drawn[0].axes[0].get_ylabel() == "test R² of the global model"
    made.plot_score_by_skew(tmp_path / "a.png")
    (axes,) = drawn[1].axes
    assert axes.get_ylabel().startswith("R² on")
    points: Any = axes.collections[0].get_offsets()
    assert points[:, 1].tolist() == [0.5, 0.0, 0.5, 0.0]
    zero = Study((replace(made.variants[0], results=(replace(made.variants[0].results[0], history=frame * 0),)),))
    assert math.copysign(1, zero.target) == 1


def test_a_study_shows_how_far_it_is_and_hands_its_arguments_to_every_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A bar over all rounds of all runs; each run has the engine, its workers, the callbacks and Flower's log."""
    made: list[Any] = []

    def engine(*arguments: Any, **options: Any) -> ThreadEngine:
        made.append(options["workers"])
        return ThreadEngine(*arguments, **options)

    seen: list[float] = []
    watch = OnRound(lambda row: seen.append(row["round"]))
    base = replace(BASE, rounds=1, seed=7)
    compare(base, seeds=2, rounds=[1, 2], progress=True, callbacks=[watch], workers=2, engine=engine)
    shown = capsys.readouterr().err.split("\r")[-1]
    assert "100%" in shown
    assert "6/6" in shown
    assert "2, seed 8" in shown
    assert made == [2] * 4
    assert seen == [0, 1, 0, 1, 0, 1, 2, 0, 1, 2]


def test_each_dataset_of_a_study_is_loaded_once_and_all_have_the_same_score(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = np.random.default_rng(0).random((40, 3)), np.arange(40) % 2
    found = {"digits": Dataset("a", x, y, x, y, 2), "article": Dataset("b", x, y, x[:20], y[:20], 2)}
    found["fcube"] = Dataset("c", x, x[:, 0], x, x[:, 0], 1, regression=True)
    asked: list[str] = []

    def load(name: str, _: Any) -> Dataset:
        asked.append(name)
        return found[name]

    monkeypatch.setattr("fedsim.data.load", load)
    base = Experiment(split=IID(2), rounds=1, loss="mse", hidden=(2,))
    both = compare(base, dataset=["digits", "article"], seeds=2)
    assert asked == ["digits", "article"]
    alone = replace(base, dataset=found["article"]).run()
    assert np.array_equal(both.variants[1].results[0].test_scores, alone.test_scores)
    with pytest.raises(ConfigError, match="mixes labels and real-valued targets"):
        compare(base, dataset=["digits", "fcube"])


def test_earlier_tables_and_pictures_are_kept_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    tables = ["rounds.csv", "clients.csv", "summary.csv", "fairness.csv"]
    pictures = ["accuracy.png", "drift.png", "splits.png", "local_accuracy.png", "accuracy_by_skew.png"]
    for name in (*tables, *pictures, "mine.png", ".drift.png.abcdefgh"):
        (out / name).touch()
    compare(replace(BASE, rounds=1), seeds=2, directory=out)
    assert {p.name for p in (tmp_path / "out.1").iterdir()} == {*tables, *pictures}
    assert not {p.name for p in out.iterdir()} & set(pictures)
    assert {*tables, "mine.png"} <= {p.name for p in out.iterdir()}
    assert capsys.readouterr().err == f"fedsim: kept the earlier tables in {tmp_path / 'out.1'}\n"


def test_writing_the_tables_takes_a_twentieth_of_a_studys_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A run takes ten seconds here, and writing two: after the first run, the fourth, and the last."""
    clock = SimpleNamespace(now=50.0)
    monkeypatch.setattr(store, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    written: list[int] = []

    def to_csv(self: Study, directory: Any) -> None:
        written.append(len(self.variants[0].results))
        clock.now += 2.0

    def on_round(row: Mapping[str, float]) -> None:
        clock.now += 5.0

    monkeypatch.setattr(Study, "to_csv", to_csv)
    compare(replace(BASE, rounds=1), seeds=6, directory=tmp_path, callbacks=[OnRound(on_round)])
    assert written == [1, 4, 6]


@pytest.mark.parametrize("broken", [shutil.rmtree, None])
def test_a_study_that_cannot_write_its_tables_ends_with_the_first_error(
    broken: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its directory has been deleted, or its disk is full, when it is interrupted."""
    monkeypatch.setattr(store, "WRITING_SHARE", -1.0)
    out, begun, last = tmp_path / "out", 0, True

    def full(*_: object) -> None:
        raise OSError(28, "full")

    def on_round(row: Mapping[str, float]) -> None:
        nonlocal begun, last
        begun, last = begun + (row["round"] == 0), last
        if begun == 2 and last:
            if broken:
                broken(out)
            raise KeyboardInterrupt

    if not broken:
        monkeypatch.setattr(Study, "to_csv", full)
    for last in (True, False) if not broken else (True,):
        begun = 0
        with pytest.raises(KeyboardInterrupt if last else OSError):
            compare(replace(BASE, rounds=1), seeds=2, directory=out, callbacks=[OnRound(on_round)])
    for line in capsys.readouterr().err.splitlines():
        assert line.startswith("fedsim: the study ended early; 1 of 2 runs are finished")


def test_a_study_that_ends_before_its_first_run_says_that_nothing_is_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def on_round(row: Mapping[str, float]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(BASE, directory=tmp_path, callbacks=[OnRound(on_round)])
    assert f"0 of 1 runs are finished in {tmp_path}" in capsys.readouterr().err


def test_a_verbose_run_shows_flowers_log_with_the_scores_of_each_round() -> None:
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("flwr")
    logger.addHandler(handler)
    try:
        compare(BASE)
        assert told == []
        [result] = compare(BASE, verbose=True).variants[0].results
    finally:
        logger.removeHandler(handler)
    for loss, accuracy in result.history[["test_loss", "test_accuracy"]].itertuples(index=False):
        assert any(f"{{'test_loss': {loss}, 'test_accuracy': {accuracy}}}" in line for line in told)


def test_labels_beside_lines_move_only_where_they_collide() -> None:
    assert plots._separate([0.9, 0.1], 0.05).tolist() == [0.9, 0.1]
    assert plots._separate([0.5, 0.5, 0.2], 0.05).tolist() == pytest.approx([0.5, 0.55, 0.2])
    assert plots._separate([1.0, 1.0], 0.05).tolist() == pytest.approx([0.95, 1.0])


def test_files_are_as_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "a.csv", lambda stream: stream.write(b"a"))
    finally:
        after = os.umask(before)
    assert after == 0o027
    assert (tmp_path / "a.csv").stat().st_mode & 0o777 == 0o640


def test_a_file_is_written_into_new_folders_and_can_be_read_meanwhile(tmp_path: Path) -> None:
    read: list[bytes] = []

    def write(stream: Any) -> None:
        stream.write(b"abc")
        stream.seek(1)
        read.append(stream.read())
        assert [p.parent for p in tmp_path.rglob(".x.csv.*")] == [tmp_path / "new/folder"]  # a rename needs one disk

    write_whole(tmp_path / "new/folder/x.csv", write)
    assert read == [b"bc"]
    assert [p.name for p in tmp_path.rglob("*")] == ["new", "folder", "x.csv"]
    assert (tmp_path / "new/folder/x.csv").stat().st_mode & 0o111 == 0


def test_an_error_that_names_its_file_keeps_the_name(tmp_path: Path) -> None:
    def write(stream: Any) -> None:
        Path("/nowhere/at/all").read_bytes()

    with pytest.raises(FileNotFoundError) as caught:
        write_whole(tmp_path / "x.csv", write)
    assert caught.value.filename == "/nowhere/at/all"


def test_what_a_killed_process_left_of_a_file_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    left = [".a.csv.ab_1x9yz", ".b.csv.00000000"]
    stay = [".aXcsv.abcdefgh", ".a.csv.abcdefghi", ".a.csv.abcdefg", "x.a.csv.abcdefgh", ".a.csv.ABCDEFGH", "a.csv"]
    for name in (*left, *stay):
        (tmp_path / name).touch()
    remove_temporary(tmp_path, ["a.csv", "b.csv"])
    assert {p.name for p in tmp_path.iterdir()} == set(stay)


def test_a_folder_that_cannot_be_written_is_refused_with_the_systems_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert writable_directory(tmp_path / "new/folder").is_dir()
    for path in (str(tmp_path / "file"), str(tmp_path / "file/below"), "a\0b"):
        with pytest.raises(ConfigError) as refused:
            writable_directory(path)
        assert str(refused.value).startswith(f"the results folder {path!r} cannot be written: ")
        assert "Errno" not in str(refused.value)
    with pytest.raises(ConfigError, match="the results folder is ''"):
        writable_directory("")


@pytest.mark.skipif(not hasattr(os, "O_DIRECTORY"), reason="folders cannot be opened here")
def test_a_folder_in_which_no_file_can_be_made_is_refused() -> None:
    with pytest.raises(ConfigError, match="the results folder '/proc/self' cannot be written: "):
        writable_directory("/proc/self")


@pytest.mark.parametrize("way", ["", ".", "..", "link"])
def test_earlier_results_are_kept_beside_the_folder_itself_however_it_is_named(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "place" / "out"
    (out / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(out)
    (out / "a.csv").write_text("earlier")
    (out.parent / "out.1").mkdir()
    monkeypatch.chdir(out / "inner" if way == ".." else out)
    kept = keep_earlier(tmp_path / "link" if way == "link" else Path(way), ["a.csv"])
    assert kept == out.parent / "out.2"
    assert [p.name for p in kept.iterdir()] == ["a.csv"]


def test_a_folder_is_free_again_after_its_run_however_that_ended(tmp_path: Path) -> None:
    """While the object of the run still exists."""

    class Broken(ResultsDirectory):
        def _prepare(self) -> None:
            raise KeyboardInterrupt

    runs = [ResultsDirectory(tmp_path, []), Broken(tmp_path, []), ResultsDirectory(tmp_path, [])]
    with runs[0], pytest.raises(ConfigError, match=re.escape(f"is writing into {str(tmp_path)!r}")), runs[2]:
        pass
    with pytest.raises(KeyboardInterrupt), runs[1]:
        pass
    with runs[2]:
        pass


def test_a_study_whose_folder_is_deleted_ends(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def on_round(row: Mapping[str, float]) -> None:
        if row["round"] == 1:
            shutil.rmtree(out, ignore_errors=True)

    with pytest.raises(ConfigError, match="was deleted or replaced during the run"):
        compare(BASE, seeds=2, directory=out, callbacks=[OnRound(on_round)])
    assert not out.exists()


def test_a_study_does_not_go_on_once_its_folder_is_deleted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nor where it would not have written anything yet."""
    monkeypatch.setattr(store, "WRITING_SHARE", -1.0)
    begun = 0

    def on_round(row: Mapping[str, float]) -> None:
        nonlocal begun
        begun += row["round"] == 0
        shutil.rmtree(tmp_path / "out", ignore_errors=True)

    with pytest.raises(ConfigError, match="was deleted or replaced during the run"):
        compare(replace(BASE, rounds=1), seeds=2, directory=tmp_path / "out", callbacks=[OnRound(on_round)])
    assert begun == 1


def test_tables_of_known_histories_say_which_seeds_reached_the_target() -> None:
    empty = pd.DataFrame()
    runs = [(0.1, 0.9, 0.6), (0.1, 0.8, 0.8)]
    results = [Result(BASE, history(*scores), empty, {}, "numpy", "accuracy", empty) for scores in runs]
    table = Study((Variant({"split": "a"}, tuple(results)), Variant({"split": "b"}, (results[0],)))).table(0.85)
    assert list(table.columns) == ["final accuracy", "best accuracy", "rounds to 0.85", "MB sent", "epsilon"]
    assert table.index.tolist() == ["a", "b"]
    assert table["rounds to 0.85"].tolist() == ["> 0.9 (1 of 2 seeds)", "0.9"]
    assert table["final accuracy"].tolist() == ["0.700", "0.600"]  # no interval of two seeds
    assert table["best accuracy"].tolist() == ["0.850", "0.900"]
    assert table["MB sent"].tolist() == ["6.0", "6.0"]


@pytest.mark.parametrize(
    ("seeds", "sentence"),
    [
        ([1, 2, 1], r"seeds is \[1, 2, 1\]; allowed: each seed once"),
        ([-1], "seeds is -1"),
        (10_001, "seeds is 10001"),
        ("3", "seeds is '3'"),
    ],
)
def test_bad_seeds_are_refused(seeds: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        compare(BASE, seeds=seeds)


def test_pictures_name_the_data_and_as_many_clients_as_all_variants_have() -> None:
    empty = pd.DataFrame()

    def about(*splits: Any) -> str:
        made = [Result(replace(BASE, split=s), history(0.1), empty, {}, "numpy", "accuracy", empty) for s in splits]
        return Study(tuple(Variant({}, (result,)) for result in made))._about

    assert about(IID(10), Shards(10, per_client=2)) == "digits, 10 clients"
    assert about(IID(10), IID(20)) == "digits"
    table = replace(BASE, dataset="table('some/where/pets.csv', label='y')")
    assert (
        Study((Variant({}, (Result(table, history(0.1), empty, {}, "numpy", "accuracy", empty),)),))._dataset
        == "pets.csv"
    )
