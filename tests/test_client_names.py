"""Names of clients, from a column of the data: which splits know them, and where people see them."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fedsim import Experiment, compare
from fedsim.apps import app
from fedsim.apps.in_process import AppGrid
from fedsim.cli import main as cli
from fedsim.clients import SGD, Context, FineTune
from fedsim.contribution import Retraining, class_influence, combine, exact_shapley, gtg_shapley
from fedsim.data import Dataset, load
from fedsim.data.table import encode
from fedsim.engines.supernodes.engine import SuperNodeEngine
from fedsim.errors import ClientError, DivergenceError
from fedsim.fairness import client_fairness
from fedsim.flower import strategies
from fedsim.leakage import infer_labels, observe
from fedsim.report import split_plots, style
from fedsim.report.split_plots import plot_splits
from fedsim.report.tables import shards_table
from fedsim.secure import SecureAggregation
from fedsim.servers import FedAvgM
from fedsim.splits import (
    IID,
    FeatureNoise,
    FederatedDataset,
    LabelPermutation,
    Mixture,
    Natural,
    Pooled,
    Shared,
    Split,
    TimeOrdered,
    Without,
    skew,
)
from fedsim.splits.names import make_names
from fedsim.study import config
from fedsim.study.callbacks import Callback, FinishedRound

HOSPITALS = ("Bergen", "Charité", "St. Mary")
#: Names as a hostile or careless author of a table writes them, by rising code point.
HOSTILE = ("", "\x1b[31mred\x1b[0m", "$\\frac{$", "<b>&|`*", "=1+1", "a\nb", "x" * 500, "\u202egnp", "東京")


def hospitals(names: tuple[str, ...] = HOSPITALS, rows: int = 90, seed: int = 0) -> pd.DataFrame:
    """Return a table of patients, in which the last name has the fewest."""
    rng = np.random.default_rng(seed)
    number = np.sort(np.r_[np.repeat(np.arange(len(names)), 6), rng.integers(0, len(names), rows - 6 * len(names))])
    age = rng.normal(size=rows) + number
    sick = np.where(age + rng.normal(size=rows) > number.mean(), "yes", "no")
    columns = {"age": age, "pulse": rng.normal(size=rows), "sex": rng.choice(["f", "m"], rows), "sick": sick}
    return pd.DataFrame(columns | {"hospital": np.array(names, dtype=object)[number]})


def patients(names: tuple[str, ...] = HOSPITALS, **options: Any) -> Dataset:
    return encode(hospitals(names), "patients", "sick", "hospital", **options)


def names_of(split: Split, data: Dataset | None = None) -> tuple[str, ...]:
    return split.federate(data or patients()).client_names


BASE = Experiment(dataset=patients(), split=Natural(), hidden=(4,), rounds=2, fraction_evaluate=1.0)


class FailsAt(SGD):
    """Fails at one client."""

    client: int = 1

    def train(self, ctx: Context) -> NDArray[Any]:
        if self.client in ctx.partition_ids:
            raise ValueError("no more memory")
        return super().train(ctx)


# Which clients have names


def test_each_client_has_the_name_of_its_rows() -> None:
    """Also where names are in another order in the file than in the partition."""
    data = encode(hospitals().sample(frac=1, random_state=1), "patients", "sick", "hospital")
    federated = Natural("hospital").federate(data)
    for client, name in enumerate(federated.client_names):
        assert set(data.groups["hospital"][federated.partition[client]]) == {name}
    assert federated.client_names == HOSPITALS


@pytest.mark.parametrize(
    "split",
    [
        Without(Natural(), clients=[1]),
        TimeOrdered(Natural(), windows=3),
        FeatureNoise(Natural(), high=0.1),
        LabelPermutation(TimeOrdered(Natural(), windows=2)),
        Shared(Natural(), 0.2),
        Mixture(Natural(), Natural()),
        Mixture(IID(3), Natural(), share=0.1),
        Mixture(Natural(), IID(3), share=0.9),
    ],
    ids=str,
)
def test_a_split_of_natural_clients_keeps_their_names(split: Split) -> None:
    assert names_of(split) == HOSPITALS
    held = Experiment(dataset=patients(), split=split, test_fraction=0.2).federate(patients())
    assert held.client_names == HOSPITALS


@pytest.mark.parametrize("split", [IID(3), Natural(num_clients=2), Natural(num_clients=3), Pooled(Natural())], ids=str)
def test_other_clients_have_numbers_only(split: Split) -> None:
    """A client that has several values of a column, or the examples of all, has none of their names."""
    assert names_of(split) == ()


@pytest.mark.parametrize(("values", "names"), [([0, 1, 2], ()), ([1, 2, 3], ("1", "2", "3")), ([0.0, 1.0, 2.0], ())])
def test_values_that_are_the_partition_ids_are_no_names(values: list[float], names: tuple[str, ...]) -> None:
    data = patients()
    assert names_of(Natural(), replace(data, groups={"site": np.resize(values, len(data.y_train))})) == names


def test_clients_of_two_columns_have_two_names() -> None:
    groups = {"town": np.repeat(["A", "B"], 45), "ward": np.tile(["x", "y"], 45)}
    data = replace(patients(), groups={name: values[:72] for name, values in groups.items()})
    assert names_of(Mixture(Natural("town"), Natural("ward")), data) == ("A + x", "B + y")


def test_a_part_of_the_examples_that_lacks_a_hospital_gives_no_client_the_name_of_another() -> None:
    """The first split sees three examples of three hospitals at most, and often of fewer."""
    data, seen = patients(), set()
    for seed in range(30):
        split = Mixture(Natural(seed=seed), Natural(num_clients=2, seed=seed), share=0.05, seed=seed)
        try:
            federated = split.federate(data)
        except ValueError:  # other numbers of clients
            continue
        seen.add(len(federated.partition))
        assert federated.client_names == ()
    assert seen == {2}


def test_a_split_of_ones_own_can_name_its_clients() -> None:
    class Wards(IID):
        def client_names(self, groups: Any) -> NDArray[Any]:
            return np.array(["ward\x1b 1", "ward 2"])

    assert names_of(Wards(2)) == ("ward\\x1b 1", "ward 2")


def test_a_million_clients_without_names_have_no_list_of_them() -> None:
    data = Dataset("d", np.zeros((10**6, 1), np.float32), np.zeros(10**6, int), np.zeros((1, 1)), np.zeros(1, int))
    assert IID(10**6).federate(data).client_names is FederatedDataset(data, IID(1).partition(data.y_train)).client_names


# Names as text


def test_names_are_printable_and_differ() -> None:
    made = make_names(np.array(HOSTILE))
    assert made == (
        "[0]", "\\x1b[31mred\\x1b[0m", "$\\frac{$", "<b>&|`*", "=1+1", "a b", "x" * 500, "\\u202egnp", "東京"
    )  # fmt: skip
    alike = make_names(np.array(["", "A", " A", "A\n", "A [1]", "[0]"]))
    assert len(set(alike)) == 6
    assert all(name.isprintable() and name for name in alike)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([3, -1], ("3", "-1")),
        ([3.0, -1.0], ("3", "-1")),
        ([0.5, 2.0], ("0.5", "2.0")),
        ([True, False], ("True", "False")),
        (np.array(["2026-01-31", "2026-02-01"], dtype="datetime64[D]"), ("2026-01-31", "2026-02-01")),
        ([], ()),
    ],
)
def test_names_of_other_values(values: Any, names: tuple[str, ...]) -> None:
    assert make_names(np.array(values)) == names


@pytest.mark.parametrize("missing", [False, True])
def test_whole_numbers_stay_whole_numbers_beside_missing_ones(missing: bool, tmp_path: Path) -> None:
    """The clients of a table are the same with and without a row whose client is missing."""
    table = hospitals().assign(hospital=np.tile([2, 10, 1], 30))
    written = table.to_csv(index=False) + (",,,yes,\n" if missing else "")
    (tmp_path / "t.csv").write_text(written)
    data = load(f"table({str(tmp_path / 't.csv')!r}, label='sick', client_column='hospital')")
    assert names_of(Natural(), data) == ("1", "2", "10")
    assert data.groups["hospital"].dtype == np.int64


@pytest.mark.parametrize("kind", ["float64", "Int64", "Float64"])
def test_groups_of_whole_numbers_beside_missing_ones(kind: str) -> None:
    column = pd.Series([7.0, None] * 45).astype(kind)
    data = encode(hospitals().assign(ward=column), "t", "sick", group_columns="ward")
    assert set(data.groups["ward"]) == {"7", "(missing)"}


# Errors


def test_a_failed_client_is_named() -> None:
    with pytest.raises(
        ClientError, match=r"^client 1 \(Charité\) failed in round 1: ValueError: no more memory"
    ) as info:
        replace(BASE, client=FailsAt()).run()
    assert info.value.reason.startswith("ValueError: no more memory")  # tables have columns for the rest
    with pytest.raises(ClientError, match=r"^client 1 failed in round 1: "):
        replace(BASE, client=FailsAt(), split=IID(3)).run()


def test_a_diverged_client_is_named() -> None:
    named = r"at client (0 \(Bergen|1 \(Charité|2 \(St\. Mary)\)"
    with pytest.raises(DivergenceError, match=rf"in round 1 {named} \("):
        replace(BASE, client=SGD(lr=1e9)).run()
    tuned = FineTune(lr=0.01, tune_lr=1e30, tune_epochs=3)
    with pytest.raises(DivergenceError, match=rf"{named} when FineTune.* made the client's own model"):
        replace(BASE, client=tuned).run()


def test_a_diverged_global_model_names_the_client_with_the_largest_update() -> None:
    with pytest.raises(DivergenceError, match=r"the largest update was client \d \((Bergen|Charité|St\. Mary)\)'s, of"):
        replace(BASE, server=partial(FedAvgM, server_learning_rate=1e300), dtype="float64").run()


def test_a_client_without_examples_is_named() -> None:
    data = replace(patients(), groups={"hospital": np.repeat(["A", "B"], [71, 1])})
    result = replace(BASE, dataset=data, split=TimeOrdered(Natural(), windows=2), on_failure="exclude").run()
    assert result.failures[["client_name", "reason"]].to_numpy().tolist() == [
        ["B", "client 1 (B) has no examples to train on"]
    ]


# Results


def in_process(experiment: Experiment) -> Any:
    return experiment.run(workers=2)


def on_supernodes(experiment: Experiment) -> Any:
    settings = {"experiment": config.to_toml(experiment)}
    with strategies.quiet(), AppGrid(app.client_app, 2, run_config=settings, workers=2) as grid:
        engine = partial(SuperNodeEngine, grid=grid, nodes=2, on_failure=experiment.on_failure)
        return experiment.run(engine=engine)


@pytest.fixture
def from_file(tmp_path: Path) -> Experiment:
    """An experiment whose table every process reads, with groups of people, in which a client of each round fails."""
    hospitals().to_csv(tmp_path / "patients.csv", index=False)
    columns = "label='sick', client_column='hospital', group_columns='sex'"
    dataset = f"table({str(tmp_path / 'patients.csv')!r}, {columns})"
    split, server = Natural("hospital"), SecureAggregation(dropout=0.2, neighbours=2, threshold=0.1)
    return replace(BASE, dataset=dataset, split=split, sensitive="sex", secure_aggregation=server, rounds=4)


@pytest.mark.parametrize("run", [in_process, on_supernodes])
def test_tables_of_a_result_have_names_after_the_ids(run: Callable[[Experiment], Any], from_file: Experiment) -> None:
    result = run(replace(from_file, on_failure="exclude"))
    assert list(result.clients)[:3] == ["round", "partition_id", "client_name"]
    assert list(result.failures) == ["round", "partition_id", "client_name", "reason"]
    assert list(result.groups)[:4] == ["round", "partition_id", "client_name", "group"]
    for frame in (result.clients, result.failures, result.groups):
        assert len(frame)
        expected = [(*HOSPITALS, "(test set)")[client] for client in frame["partition_id"]]
        assert frame["client_name"].tolist() == expected


def test_a_resumed_run_has_the_names_of_an_uninterrupted_one(tmp_path: Path) -> None:
    class Stop(Callback):
        def round_finished(self, finished: FinishedRound) -> None:
            if finished.number == 2:
                raise KeyboardInterrupt

    experiment = replace(BASE, rounds=3, client=FailsAt(), on_failure="exclude")
    with pytest.raises(KeyboardInterrupt):
        experiment.run(directory=tmp_path, callbacks=[Stop()])
    resumed, whole = experiment.run(directory=tmp_path), experiment.run()
    assert resumed.clients.equals(whole.clients)
    assert resumed.failures.equals(whole.failures)
    assert set(whole.failures["client_name"]) == {"Charité"}
    assert pd.read_csv(tmp_path / "failures.csv").equals(whole.failures)


def test_tables_of_clients_without_names_are_as_before() -> None:
    result = replace(BASE, split=IID(3)).run()
    assert list(result.clients) == ["round", "partition_id", "num_examples", "loss", "accuracy"]
    assert list(result.failures) == ["round", "partition_id", "reason"]
    assert "worst_client" not in client_fairness(result)
    assert "Lowest" not in result.card()


@pytest.mark.parametrize("splits", [[Natural(), IID(3)], [IID(3), Natural()]], ids=["first", "second"])
def test_a_study_has_names_where_its_variants_have(splits: list[Split]) -> None:
    """Also beside an axis called client."""
    frame = compare(BASE, split=splits, client=[SGD(), SGD(lr=0.2)]).clients()
    assert list(frame)[:6] == ["split", "client", "seed", "round", "partition_id", "client_name"]
    named = frame["split"] == "Natural"
    assert set(frame.loc[named, "client_name"]) == set(HOSPITALS)
    assert frame.loc[~named, "client_name"].isna().all()


def test_the_worst_client_is_named() -> None:
    result = replace(BASE, rounds=3).run()
    last = result.clients[result.clients["round"] == 3].set_index("client_name")["accuracy"]
    assert client_fairness(result)["worst_client"].iloc[-1] == last.idxmin()
    lowest = re.search(r"Lowest: client \d \\\((.+?)\\\) (0\.\d{3});", result.card())
    assert lowest
    assert lowest.groups() == (last.idxmin(), f"{last.min():.3f}")


# What is computed about clients


def test_contributions_are_of_named_clients() -> None:
    experiment = replace(BASE, rounds=1, fraction_evaluate=0.0)
    exact = exact_shapley(Retraining(experiment))
    for frame in (exact.to_frame(), combine([exact, exact]).to_frame(), gtg_shapley(experiment, cycles=2).to_frame()):
        assert list(frame)[:3] == ["method", "client", "client_name"]
        assert frame["client_name"].tolist() == list(HOSPITALS)
    by_class = class_influence(experiment, clients=[2]).to_frame()
    assert by_class["client_name"].tolist() == ["St. Mary"] * 2
    inferred = infer_labels(observe(replace(experiment, client=SGD()), clients=[2, 0]), patients()).to_frame()
    assert inferred["client_name"].tolist() == ["Bergen"] * 2 + ["St. Mary"] * 2
    assert "client_name" not in exact_shapley(Retraining(replace(experiment, split=IID(2)))).to_frame()


def test_skew_has_the_names_of_clients_with_examples() -> None:
    frame = skew(Without(Natural(), clients=[1]).federate(patients()))
    assert frame[["client", "client_name"]].to_numpy().tolist() == [[0, "Bergen"], [2, "St. Mary"]]


# Names that nobody would give


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    hospitals(HOSTILE[1:]).to_csv(tmp_path / "t.csv", index=False)
    return tmp_path / "t.csv"


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    return int(ended.value.code or 0)


TABLE = "--label", "sick", "--client-column", "hospital"


def printed_lines(text: str) -> list[str]:
    """Return the lines of an output, which has printable characters only."""
    lines = text.splitlines()
    assert all(line.isprintable() for line in lines)
    return lines


def test_hostile_names_in_the_table_of_a_split(hostile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("splits", "Natural", "--dataset", str(hostile), *TABLE) == 0
    lines = printed_lines(capsys.readouterr().out)
    shown = lines[lines.index("Natural") + 3 :]
    assert [line.split()[0] for line in shown] == [str(k) for k in range(len(HOSTILE) - 1)]
    assert all(len(line) < 120 for line in lines)
    assert "=1+1" in shown[3]


@pytest.mark.parametrize("client", range(len(HOSTILE) - 1))
def test_hostile_names_in_an_error(client: int) -> None:
    names = make_names(np.array(HOSTILE[1:]))
    experiment = replace(BASE, dataset=patients(HOSTILE[1:]), client=FailsAt(client=client))
    with pytest.raises(ClientError) as info:
        experiment.run()
    (line,) = printed_lines(str(info.value))
    assert len(line) < 160
    assert line.startswith(f"client {client} ({names[client][:39]}")


def test_hostile_names_in_files(hostile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files have a row per client and round, and the names again as they are in the data, but for what is escaped."""
    settings = "--set", "rounds=1", "--set", "fraction_evaluate=1.0", "--out", str(tmp_path / "out")
    assert command("run", str(hostile), *TABLE, *settings) == 0
    with open(tmp_path / "out" / "clients.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["client_name"] for row in rows) == sorted(make_names(np.array(HOSTILE[1:])))
    printed_lines(capsys.readouterr().out)
    card = (tmp_path / "out" / "model_card.md").read_text()
    printed_lines(card)
    assert "<b>" not in card


@pytest.mark.parametrize("kind", ["bars", "bubbles"])
def test_hostile_names_in_a_plot(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Matplotlib takes dollars for mathematics, and refuses what is none; missing characters are one notice."""
    plot_splits(
        {"$\\frac{$": np.arange(2 * len(HOSTILE)).reshape(-1, 2) + 1},
        tmp_path / "x.svg",
        "$^$",
        kind,
        ["$\\frac{$", "a\nb"],
        {"$\\frac{$": make_names(np.array(HOSTILE))},
    )
    [line] = capsys.readouterr().err.splitlines()
    assert "x.svg has boxes for characters of which no font is installed; Noto Sans CJK SC has Chinese on" in line


# Names in plots, labels in tables


def test_ticks_are_names_of_the_clients_above(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients are sorted by their most frequent label; more than fit are not named, and cut names are told apart."""
    drawn: list[Figure] = []
    monkeypatch.setattr(style, "save", lambda figure, path: drawn.append(figure))
    counts = np.array([[0, 5], [7, 0], [0, 9]])
    plot_splits({"A": counts, "B": counts}, "x.png", "d", client_names={"A": HOSPITALS})
    named, numbered = drawn[0].axes
    assert [tick.get_text() for tick in named.get_xticklabels()] == ["Charité", "St. Mary", "Bergen"]
    assert list(numbered.get_xticks()) == []
    long = [f"{'x' * 30}{k}" for k in range(3)]
    plot_splits({"A": counts}, "x.png", "d", client_names={"A": long})
    ticks = [tick.get_text().lstrip("x") for tick in drawn[1].axes[0].get_xticklabels()]
    assert ticks == ["… [1]", "… [2]", "… [0]"]
    many = split_plots.MAX_NAMES + 1
    plot_splits({"A": np.ones((many, 2), int)}, "x.png", "d", client_names={"A": tuple(map(str, range(many)))})
    assert list(drawn[2].axes[0].get_xticks()) == []


def test_labels_in_the_table_of_a_split_are_printable() -> None:
    data = replace(patients(), label_names=("\x1b[31mno", "y\nes"))
    table = shards_table(Natural().federate(data))
    assert list(table)[:2] == ["\\x1b[31mno", "y es"]
    assert table.index.tolist() == list(enumerate(HOSPITALS))
    assert shards_table(IID(2).federate(data)).index.tolist() == [0, 1]
