"""The user's own tables and the hub: what becomes of columns, and what is said about it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedsim import Experiment, data
from fedsim.clients import SGD
from fedsim.data import hub, table
from fedsim.data.table import encode
from fedsim.errors import ConfigError, DataError
from fedsim.splits import Natural

INSTEVAL = Path(__file__).parents[2] / "shared" / "data" / "insteval" / "InstEval.csv.gz"


@pytest.fixture
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    n = 400
    age = rng.normal(50, 10, n)
    return pd.DataFrame(
        {
            "age": np.where(np.arange(n) % 20 == 0, np.nan, age),
            "smoker": pd.Series(rng.integers(0, 2, n).astype(bool)),
            "city": np.array(["Bonn", "Köln", None])[rng.choice(3, n, p=[0.5, 0.4, 0.1])],
            "same": 7,
            "hospital": rng.choice(["north", "south", "west"], n),
            "outcome": np.where(age > 50, "ill", "well"),
        }
    )


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv", ".parquet"])
def test_a_mixed_table_becomes_numbers_and_says_how(frame: pd.DataFrame, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"patients{suffix}"
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        frame.to_parquet(file)
    else:
        frame.to_csv(file, index=False, sep="\t" if suffix == ".tsv" else ",")
    found = table(file, "outcome", "hospital")
    assert found.label_names == ("ill", "well")
    assert (len(found.x_train), len(found.x_test)) == (320, 80)
    assert found.x_train.shape[1] == 1 + 1 + 1 + 3  # age, its marker, smoker, three cities
    assert found.x_train[:, :2].mean() == pytest.approx(0, abs=0.1)
    assert set(found.groups["hospital"]) == {"north", "south", "west"}
    assert "age: 20 of 400 values missing; replaced by the median" in found.notes[1]
    assert f"city: {frame['city'].isna().sum()} of 400 values missing, treated as a category" in found.notes
    assert "same dropped: constant" in found.notes
    per_label = np.bincount(found.y_test)
    assert per_label / per_label.sum() == pytest.approx(np.bincount(found.y_train) / 320, abs=0.02)
    assert len(Natural().federate(found).partition) == 3


def test_a_table_can_be_learnt_from(frame: pd.DataFrame, tmp_path: Path) -> None:
    file = tmp_path / "patients.csv"
    frame.to_csv(file, index=False)
    text = f"table({str(file)!r}, 'outcome', 'hospital')"
    result = Experiment(dataset=text, split=Natural("hospital"), client=SGD(lr=0.1), rounds=15).run()
    assert result.final_accuracy > 0.85


def test_only_the_training_part_is_looked_at() -> None:
    """Statistics of the test rows must not leak: changing them changes no training example."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=100), "kind": rng.choice(list("uvw"), 100), "y": np.arange(100) % 2})
    test = np.arange(100) >= 80
    other = frame.assign(a=np.where(test, 1e6, frame["a"]), kind=np.where(test, "z", frame["kind"]))
    plain, changed = (encode(f, "t", "y", test=test) for f in (frame, other))
    assert np.array_equal(plain.x_train, changed.x_train)
    assert not np.array_equal(plain.x_test, changed.x_test)
    assert (changed.x_test[:, 1:] == 0).all()  # a category never seen is none of those known


def _write(frame: pd.DataFrame, file: Path) -> Path:
    frame.to_csv(file, index=False)
    return file


def test_numbers_are_regressed_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(600, 3))
    frame = pd.DataFrame(x, columns=list("abc")).assign(price=300 + 40 * (x @ [1, -2, 0.5]) + rng.normal(size=600))
    found = table(_write(frame, tmp_path / "p.csv"), "price")
    assert found.regression
    assert found.num_classes == 1
    assert found.y_train.std() == pytest.approx(1)
    assert found.notes[-1].startswith("price standardised")
    labels = table(_write(frame.round(), tmp_path / "q.csv"), "price", regression=False)
    assert not labels.regression


def test_rows_without_label_or_client_are_left_out(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame.loc[:9, "outcome"] = None
    frame.loc[5:14, "hospital"] = None
    found = table(_write(frame, tmp_path / "a.csv"), "outcome", "hospital")
    assert found.notes[0] == "15 of 400 rows dropped: the label or client is missing"
    assert len(found.x_train) + len(found.x_test) == 385


def test_numbers_are_standardised_by_the_training_rows_and_missing_ones_marked() -> None:
    """The median of the training rows stands in; the mean and the deviation are those after that."""
    a = np.array([1.0, 2.0, np.nan, 4.0, 10.0, np.nan, 700.0, 900.0])
    train = np.arange(8) < 6
    frame = pd.DataFrame({"a": a, "y": [0, 1] * 4})
    found = encode(frame, "t", "y", test=~train)
    filled = np.where(np.isnan(a), 3, a)  # the median of 1, 2, 4 and 10
    scaled = (filled - filled[train].mean()) / filled[train].std()
    np.testing.assert_allclose(np.concatenate([found.x_train[:, 0], found.x_test[:, 0]]), scaled, rtol=1e-6)
    assert len(np.unique(found.x_train[np.isnan(a[train]), 1])) == 1
    assert found.x_train[2, 1] > found.x_train[0, 1]
    assert "a: 2 of 8 values missing; replaced by the median, 3," in found.notes[0]


def test_targets_are_standardised_by_the_training_rows() -> None:
    y = np.arange(10) ** 2 + 0.5
    test = np.arange(10) >= 7
    found = encode(pd.DataFrame({"a": np.arange(10.0), "y": y}), "t", "y", test=test)
    np.testing.assert_allclose(found.y_train, (y[:7] - y[:7].mean()) / y[:7].std())
    np.testing.assert_allclose(found.y_test, (y[7:] - y[:7].mean()) / y[:7].std())


def test_the_test_set_has_its_share_of_every_label_and_rows_keep_their_client() -> None:
    y = np.random.default_rng(0).permutation(np.repeat(list("abc"), (200, 75, 25)))
    frame = pd.DataFrame({"x": np.arange(300.0), "y": y, "who": y})
    found = encode(frame, "t", "y", "who")
    assert np.abs(np.bincount(found.y_test) - [40, 15, 5]).max() <= 1
    assert np.array_equal(found.groups["who"], np.array(found.label_names)[found.y_train])


def test_dates_become_days_and_missing_ones_are_missing() -> None:
    when = pd.to_datetime(["2024-01-01", "2024-01-03", None, "2024-01-02"] * 10)
    frame = pd.DataFrame({"when": when, "y": [0, 1] * 20})
    found = encode(frame, "t", "y", test=np.arange(40) >= 36)
    assert "when: 10 of 40 values missing; replaced by the median, 1," in found.notes[0]
    days = np.unique(found.x_train[:, 0])
    assert len(days) == 3
    assert days[1] == pytest.approx((days[0] + days[2]) / 2, abs=1e-6)
    assert len(np.unique(found.x_train[:, 1])) == 2  # the marker


def test_many_categories_are_gathered(tmp_path: Path) -> None:
    frame = pd.DataFrame({"word": [f"w{k // 3}" for k in range(300)], "y": [0, 1] * 150})
    found = table(_write(frame, tmp_path / "a.csv"), "y", max_categories=10)
    assert found.x_train.shape[1] == 10
    assert "all but the 9 most frequent are merged" in found.notes[0]


@pytest.mark.parametrize(
    ("content", "arguments", "sentence"),
    [
        (b"", {}, "cannot be read"),
        (b"\xff\xfe\x00", {}, "cannot be read"),
        (b"a,y\n", {}, "0 rows with a label"),
        (b"a,y\n1,0\n2,0\n", {}, "only one value, 0; allowed: at least 2"),
        (b"y\n0\n1\n", {}, "no column to predict from"),
        (b"a,y\n1,0\n2,1\n", {"label": "z"}, "label is 'z'; allowed: a, y"),
        (b"a,y\n1,0\n2,1\n", {"client_column": "b"}, "client_column is 'b'"),
        (b"a,y\n1,0\n2,1\n", {"drop": ["x"]}, "drop is 'x'"),
        (b"a,y\n1,inf\n2,1\n", {}, "infinite values"),
        (b"a,y\n1,u\n2,v\n", {"regression": True}, "regression needs numbers"),
        (b"a,y\n1,0\n2,1\n", {"test_fraction": 1.0}, "test_fraction is 1.0"),
        (b"a,y\n1,0\n2,1\n", {"max_categories": 1}, "max_categories is 1"),
    ],
)
def test_bad_tables_say_so(tmp_path: Path, content: bytes, arguments: dict[str, Any], sentence: str) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(content)
    with pytest.raises((ConfigError, DataError), match=sentence):
        table(file, **({"label": "y"} | arguments))


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ends in '.xlsx'; allowed: .csv"):
        table("a.xlsx", "y")
    with pytest.raises(DataError, match="does not exist"):
        table(tmp_path / "none.csv", "y")
    with pytest.raises(ConfigError, match=r"dataset is 'my.csv'; allowed: .*a file is table\('FILE'"):
        data.load("my.csv")


@pytest.mark.skipif(not INSTEVAL.exists(), reason="InstEval lies beside this checkout only where it is developed")
@pytest.mark.parametrize(("column", "clients"), [("dept", 14), ("d", 1128)])
def test_insteval_is_a_natural_split(column: str, clients: int) -> None:
    found = table(INSTEVAL, "y", ["dept", "d"], drop=["s"], categorical=["studage", "lectage"])
    assert found.label_names == ("1", "2", "3", "4", "5")
    assert len(found.x_train) + len(found.x_test) == 73_421
    partition = Natural(column).federate(found).partition
    assert len(partition) in (clients, clients - 1, clients - 2)  # a lecturer with a rating or two may be all test
    assert partition.sizes.sum() == len(found.x_train)
    experiment = Experiment(
        dataset=found, split=Natural(column), fraction_train=0.1, rounds=1, fraction_evaluate=0.1, test_fraction=0.2
    )
    assert experiment.run().history["failures"].tolist() == [0, 0]


# The hub, on sets made on disk.


def test_images_of_the_hub(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (30, 5, 4), dtype=np.uint8)
    columns = {"image": list(pictures), "label": np.arange(30) % 3, "writer": [f"w{k % 4}" for k in range(30)]}
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["a", "b", "c"]),
            "writer": datasets.Value("string"),
        }
    )
    made = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict({"train": made.select(range(24)), "test": made.select(range(24, 30))}).save_to_disk(tmp_path)
    datasets.enable_progress_bars()
    found = hub(str(tmp_path), client_column="writer")
    assert datasets.are_progress_bars_disabled()  # fedsim has its own
    assert np.array_equal(found.x_train * 255, pictures[:24].reshape(24, 20))
    assert np.array_equal(found.x_test * 255, pictures[24:].reshape(6, 20))
    assert found.label_names == ("a", "b", "c")
    assert len(Natural("writer").federate(found).partition) == 4
    loaded = data.load(f"hub({str(tmp_path)!r}, client_column='writer')")
    assert np.array_equal(loaded.x_train, found.x_train)
    with pytest.raises(ConfigError, match="label is 'digit'; allowed: image, label, writer"):
        hub(str(tmp_path), "digit")
    with pytest.raises(ConfigError, match="to which drop does not apply"):
        hub(str(tmp_path), drop=["writer"])


def test_colour_images_of_the_hub_without_a_test_split(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    pictures = np.random.default_rng(0).integers(0, 256, (20, 3, 3, 3), dtype=np.uint8)
    features = datasets.Features({"img": datasets.Image(), "kind": datasets.Value("string")})
    columns = {"img": list(pictures), "kind": ["cat", "dog"] * 10}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "pets")
    found = hub("pets", "kind", data_dir=tmp_path, test_fraction=0.25)
    assert (len(found.x_train), len(found.x_test), found.x_train.shape[1]) == (15, 5, 27)
    assert found.label_names == ("cat", "dog")


def test_tables_of_the_hub(frame: pd.DataFrame, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    made = datasets.Dataset.from_pandas(frame)
    datasets.DatasetDict({"train": made.select(range(300)), "test": made.select(range(300, 400))}).save_to_disk(
        tmp_path
    )
    found = hub(str(tmp_path), "outcome", "hospital")
    assert (len(found.x_train), len(found.x_test)) == (300, 100)
    assert found.label_names == ("ill", "well")


def test_images_of_any_mode_keep_their_row_and_those_of_several_sizes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One split of any name is divided at random; images with transparency become red, green and blue."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    from PIL import Image

    features = datasets.Features(
        {"label": datasets.Value("string"), "number": datasets.Value("int64"), "picture": datasets.Image()}
    )

    def save(name: str, pictures: list[Image.Image], **sizes: int) -> str:
        columns = {"label": [f"k{i % 2}" for i in range(len(pictures))], "number": list(range(len(pictures)))}
        made = datasets.Dataset.from_dict(columns | {"picture": pictures}, features=features)
        datasets.DatasetDict({part: made.select(range(n)) for part, n in sizes.items()}).save_to_disk(tmp_path / name)
        return name

    monkeypatch.chdir(tmp_path)
    clear = [Image.new("RGBA", (2, 3), (10 * k, 2, 255, 0)) for k in range(20)]
    found = hub(save("clear", clear, validation=20), client_column=["number", "label"], test_fraction=0.3)
    assert (found.x_train.shape, found.x_test.shape, found.num_classes) == ((14, 18), (6, 18), 2)
    number = found.groups["number"]
    assert len(set(number)) == 14
    assert number.tolist() != sorted(number)
    np.testing.assert_allclose(
        found.x_train * 255, np.tile(np.stack([10 * number, 2 + 0 * number, 255 + 0 * number], 1), 6), rtol=1e-6
    )
    assert np.array_equal(np.array(found.label_names)[found.y_train], found.groups["label"])
    assert np.array_equal(found.y_train, number % 2)
    mixed = [Image.new("L", (2, 3 + k // 3)) for k in range(4)]
    with pytest.raises(DataError, match=r"several has images of shape \(3, 2\) and \(4, 2\); allowed: one size"):
        hub(save("several", mixed, train=4))
    with pytest.raises(
        ConfigError, match="several's client_column is 'lable'; allowed: label, number, picture; did you"
    ):
        hub("several", client_column="lable")


def test_tables_of_the_hub_take_the_options_of_table(frame: pd.DataFrame, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    made = datasets.Dataset.from_pandas(frame)
    made.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"test": made.select(range(100)), "train": made.select(range(100, 400))}).save_to_disk(
        tmp_path / "two"
    )
    options: dict[str, Any] = {"drop": ["age"], "max_categories": 2}
    found = hub("one", "outcome", "hospital", data_dir=tmp_path, test_fraction=0.4, **options)
    expected = encode(frame, "one", "outcome", "hospital", test_fraction=0.4, **options)
    whole = pd.concat([frame[100:], frame[:100]])
    divided = hub("two", "outcome", "hospital", data_dir=str(tmp_path), **options)
    given = encode(whole, "two", "outcome", "hospital", test=np.arange(400) >= 300, **options)
    for one, other in ((found, expected), (divided, given)):
        assert (one.name, one.notes) == (other.name, other.notes)
        assert np.array_equal(one.x_train, other.x_train)
        assert np.array_equal(one.y_test, other.y_test)
        assert np.array_equal(one.groups["hospital"], other.groups["hospital"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"foo": 1}, "hub's option is 'foo'; allowed: .*drop"),
        ({"categorial": ["a"]}, "hub's option is 'categorial'; .*did you mean 'categorical'"),
        ({"label": 3}, "label is 3; allowed: a, y"),
        ({"client_column": 0}, "hub's client_column is 0; allowed: a column's name, or a list"),
        ({"test_fraction": 2}, "hub's test_fraction is 2; allowed: a finite number greater than 0 and less than 1"),
        ({"test_fraction": "x"}, "hub's test_fraction is 'x'"),
        ({"test_fraction": 0}, "hub's test_fraction is 0"),
        ({"test_fraction": 1}, "hub's test_fraction is 1"),
        ({"config": 3}, "hub's config is 3"),
        ({"data_dir": 3}, "hub's data_dir is 3; allowed: a path"),
        ({"path": 5}, "hub's path is 5; allowed: a path"),
    ],
)
def test_odd_arguments_of_the_hub_are_refused(tmp_path: Path, arguments: dict[str, Any], sentence: str) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    datasets.Dataset.from_dict({"a": list(range(20)), "y": [0, 1] * 10}).save_to_disk(tmp_path)
    good: dict[str, Any] = {"path": str(tmp_path), "label": "y"}
    assert len(hub(**good).x_test) == 4
    with pytest.raises(ConfigError, match=sentence):
        hub(**(good | arguments))


def test_what_the_hub_does_not_have_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets", reason="datasets is not installed")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="the dataset 'no/such' cannot be loaded"):
        hub("no/such")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="cannot be loaded"):
        hub(str(tmp_path / "empty"))


def test_a_missing_extra_names_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"needs the extra 'hub'; install it by: pip install 'fedsim\[hub\]'"):
        hub("ylecun/mnist")


def test_labels_of_images_that_are_no_classes_are_numbered_in_both_splits(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    pictures = np.random.default_rng(0).integers(0, 256, (6, 2, 2, 4), dtype=np.uint8)  # with a fourth channel
    features = datasets.Features({"img": datasets.Image(), "kind": datasets.Value("int64")})
    made = datasets.Dataset.from_dict({"img": list(pictures), "kind": [7, 3, 7, 3, 9, 3]}, features=features)
    datasets.DatasetDict({"train": made.select(range(4)), "test": made.select(range(4, 6))}).save_to_disk(tmp_path)
    found = hub(str(tmp_path), "kind")
    assert found.label_names == ("3", "7", "9")
    assert (found.y_train.tolist(), found.y_test.tolist()) == ([1, 0, 1, 0], [2, 0])
    assert (found.x_train.shape, found.x_test.shape) == ((4, 12), (2, 12))  # three channels
    odd = datasets.Dataset.from_dict(
        {"img": [np.zeros((2, 2), np.uint8), np.zeros((4, 1), np.uint8)] * 4, "kind": [0, 1] * 4}, features=features
    )
    odd.save_to_disk(tmp_path / "odd")
    with pytest.raises(DataError, match=r"images of shape .* and .*; allowed: one size"):
        hub(str(tmp_path / "odd"), "kind")


def test_options_and_splits_of_tables_of_the_hub(tmp_path: Path) -> None:
    """Rows of the split called test are the test set; without a split called train it is the first."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    made = datasets.Dataset.from_dict({"a": [*range(10)], "b": [*range(10)], "y": [0, 1] * 5, "who": [*"uvuvuvuvuv"]})
    parts = {"validation": made.select(range(6)), "test": made.select(range(6, 10))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "two")
    found = hub(str(tmp_path / "two"), "y", "who", drop=["b"])
    assert found.x_train.ravel() == pytest.approx((np.arange(6) - 2.5) / np.arange(6).std(), rel=1e-6)
    assert found.y_test.tolist() == [0, 1, 0, 1]
    assert found.groups["who"].tolist() == [*"uvuvuv"]
    made.save_to_disk(tmp_path / "one")
    assert len(hub(str(tmp_path / "one"), "y", test_fraction=0.5, drop="who").x_test) == 5
    with pytest.raises(ConfigError, match="client_column is 'whom'; allowed: a, b, y, who; did you mean 'who'"):
        hub(str(tmp_path / "one"), "y", ["who", "whom"])


@pytest.mark.parametrize(("values", "regression"), [(50, False), (51, True)])
def test_more_than_fifty_whole_numbers_are_a_target(values: int, regression: bool) -> None:
    frame = pd.DataFrame({"a": np.arange(120.0), "y": np.arange(120) % values})
    assert encode(frame, "t", "y").regression == regression
    assert encode(frame, "t", "y", regression=not regression).regression != regression


def test_names_of_labels_are_as_they_are_written() -> None:
    for labels, names in (
        ([0.5, 2.0, 0.5, 2.0], ("0.5", "2")),
        ([True, False, True, False], ("False", "True")),
        (["x", "x", "y", "y"], ("x", "y")),
    ):
        frame = pd.DataFrame({"a": np.arange(4.0), "y": labels})
        assert encode(frame, "t", "y", regression=False).label_names == names


@pytest.mark.parametrize(("fraction", "rows", "tested"), [(0.01, 4, 1), (0.99, 4, 3), (0.5, 9, 5), (0.25, 20, 5)])
def test_either_set_has_a_row_at_least(fraction: float, rows: int, tested: int, tmp_path: Path) -> None:
    file = _write(pd.DataFrame({"a": np.arange(rows), "y": np.arange(rows) % 2}), tmp_path / "t.csv")
    assert len(table(file, "y", test_fraction=fraction).x_test) == tested


def test_names_of_files_may_have_capitals_and_two_endings(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": np.arange(10), "b,c": np.arange(10), "y": [0, 1] * 5})
    frame.to_csv(tmp_path / "T.TSV.GZ", sep="\t", index=False, compression="gzip")
    assert table(tmp_path / "T.TSV.GZ", "y").x_train.shape == (8, 2)
    (tmp_path / "t.tsv").write_text("a,y\n1,0\n2,1\n")
    with pytest.raises(DataError, match=r"its header is one column, 'a,y'; allowed: columns separated by '.t'"):
        table(tmp_path / "t.tsv", "y")


def test_columns_without_values_or_variation_are_left_out_and_others_kept() -> None:
    """Only the training rows count for a column's values; a value and missing ones are two kinds."""
    train = np.arange(6) < 4
    frame = pd.DataFrame(
        {
            "late": np.where(train, np.nan, 1.0),
            "gaps": [7, np.nan, 7, 7, 7, 7],
            "code": [1, 2, 3, 1, 2, 3],
            "word": ["5", "b", "c", "d", "b", "c"],
            "y": [0, 1, 0, 1, 0, 1],
        }
    )
    found = encode(frame, "t", "y", categorical="code", test=~train)
    assert found.notes[0] == "late dropped: no values"
    assert found.notes[1].startswith("gaps: 1 of 6 values missing; replaced by the median, 7,")
    assert len(found.notes) == 2  # a column of words mostly is no column of numbers with odd ones
    assert found.x_train.shape[1] == 2 + 3 + 4
    assert found.x_train[:, 2:5].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert (found.x_train[:, 5:].sum(axis=1) == 1).all()


def test_as_many_categories_as_allowed_are_all_kept_apart() -> None:
    frame = pd.DataFrame({"word": [f"w{k % 10}" for k in range(100)], "y": np.arange(100) // 10 % 2})
    found = encode(frame, "t", "y", max_categories=10)
    assert found.x_train.shape[1] == 10
    assert found.notes == ()


def test_rows_left_out_keep_the_others_in_their_sets_and_numbered_clients_stay_numbers() -> None:
    frame = pd.DataFrame(
        {"a": np.arange(8.0), "y": ["n", "p", None, "p", "n", "p", "n", None], "who": [10, 9, 9, 10, 9, 9, 10, 9]}
    )
    found = encode(frame, "t", "y", "who", test=np.arange(8) >= 5)
    assert (found.y_train.tolist(), found.y_test.tolist()) == ([0, 1, 1, 0], [1, 0])
    assert found.groups["who"].tolist() == [10, 9, 10, 9]
    assert [len(shard) for shard in Natural().federate(found).partition] == [2, 2]


def test_what_standardising_a_target_did_is_said_and_a_constant_one_is_only_shifted() -> None:
    frame = pd.DataFrame({"a": np.arange(5.0), "price": [1.5, 2.5, 3.5, 4.5, 5.5]})
    test = np.arange(5) >= 4
    found = encode(frame, "t", "price", test=test)
    assert found.notes == ("price standardised: subtracted 3, divided by 1.11803",)
    flat = encode(frame.assign(price=[1.5] * 4 + [4.0]), "t", "price", test=test)
    assert (flat.y_train.tolist(), flat.y_test.tolist()) == ([0] * 4, [2.5])


def test_the_largest_number_that_can_be_standardised_is_taken() -> None:
    frame = pd.DataFrame({"a": [1e150, 0, 1, 2], "y": [0, 1, 0, 1]})
    assert np.isfinite(encode(frame, "t", "y").x_train).all()
    with pytest.raises(
        DataError, match=r"column 'a' has the value 1.1e\+150 or its negative; allowed: at most 1e\+150"
    ):
        encode(frame.assign(a=[-1.1e150, 0, 1, 2]), "t", "y")


def test_a_nameless_column_may_be_the_label_or_name_the_clients() -> None:
    frame = pd.DataFrame({"Unnamed: 0": [0, 1, 0, 1], "a": [1.0, 2, 3, 4], "y": [1, 0, 1, 0]})
    assert encode(frame, "t", "Unnamed: 0").notes == ()
    assert set(encode(frame, "t", "y", "Unnamed: 0").groups) == {"Unnamed: 0"}
    assert encode(frame, "t", "y", drop="Unnamed: 0").notes == ()
