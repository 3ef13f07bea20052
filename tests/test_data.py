"""Datasets: the real files, where they are looked for, and what damaged ones say."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import os
import threading
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim import data
from fedsim.data import idx
from fedsim.data.idx import read_idx
from fedsim.errors import ConfigError, DataError


def test_digits_are_scikit_learns() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    ours, theirs = data.load("digits"), datasets.load_digits()
    together = np.concatenate([ours.x_train, ours.x_test])
    assert together.shape == (1797, 64)
    assert sorted(map(bytes, (together * 16).astype(np.uint8))) == sorted(map(bytes, theirs.data.astype(np.uint8)))
    assert np.bincount(ours.y_test).tolist() == [n // 5 for n in np.bincount(theirs.target)]
    assert ours.x_train.min() == 0
    assert ours.x_train.max() == 1


def test_every_fifth_digit_of_a_class_is_for_the_test() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    ours, theirs = data.load("digits"), datasets.load_digits()
    for label in range(10):
        rows = (theirs.data[theirs.target == label] / 16).astype(np.float32)
        assert np.array_equal(ours.x_test[ours.y_test == label], rows[4::5])
        assert np.array_equal(ours.x_train[ours.y_train == label], np.delete(rows, np.s_[4::5], axis=0))


def test_the_teacher_labels_by_its_largest_output() -> None:
    """A network with the teacher's own weights has no error."""
    from fedsim.models import MLP
    from fedsim.models.losses import is_correct
    from fedsim.streams import Purpose, generator

    found, model = data.load("article_teacher"), MLP((100, 50, 10))
    weights = model.init(generator(0, Purpose.DATA, 1))[None]
    for x, y in ((found.x_train, found.y_train), (found.x_test, found.y_test)):
        scores = model.scores(weights, x[None])
        assert is_correct(scores, y[None]).all()


def test_images_are_rows_of_pixels_from_0_to_1(tmp_path: Path) -> None:
    write_idx(tmp_path)
    found = idx.MNIST.load(tmp_path)
    raw = gzip.decompress((tmp_path / "t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    expected = np.frombuffer(raw, np.uint8).reshape(10, 784) / 255
    np.testing.assert_allclose(found.x_test, expected, rtol=1e-6)


def test_regression_targets_have_ten_equal_strata() -> None:
    y = np.random.default_rng(0).normal(size=1000)
    found = data.Dataset("numbers", y[:, None], y, y[:5, None], y[:5], regression=True)
    assert np.bincount(found.strata).tolist() == [100] * 10
    assert (np.diff(found.strata[np.argsort(y)]) >= 0).all()  # in the order of the target


def test_digits_survive_a_scikit_learn_that_moved_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = data.load("digits")
    monkeypatch.setattr("fedsim.data.digits.find_spec", lambda name: None)
    found = data.load("digits")
    assert np.array_equal(found.x_train, expected.x_train)
    assert np.array_equal(found.y_test, expected.y_test)


def test_the_articles_data() -> None:
    article, teacher = data.load("article"), data.load("article_teacher")
    assert article.x_train.shape == (1000, 100)
    assert article.num_classes == 10
    assert abs(article.x_train.mean()) < 0.01
    assert abs(article.x_train.std() - 1) < 0.01
    assert np.array_equal(article.x_train, teacher.x_train)
    assert len(np.unique(teacher.y_train)) == 10


def test_mnist_is_the_published_one(mnist_dir: Path) -> None:
    found = data.load("mnist", mnist_dir)
    assert found.x_train.shape == (60_000, 784)
    assert found.x_test.shape == (10_000, 784)
    assert np.bincount(found.y_train).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert found.x_train.dtype == np.float32
    assert found.x_train.max() == 1
    header = bytes([0, 0, 8, 3]) + np.array([60_000, 28, 28], ">u4").tobytes()
    raw = header + (found.x_train * 255).round().astype(np.uint8).tobytes()
    published = "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"  # of train-images-idx3-ubyte
    assert hashlib.sha256(raw).hexdigest() == published


def test_fashion_mnist_has_its_authors_checksums() -> None:
    """As the table of its README gives them, file by file."""
    assert idx.FASHION_MNIST.files == {
        "train-images-idx3-ubyte": "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte": "md5:25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte": "md5:bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte": "md5:bb300cfdad3c16e7a12a480ee83cd310",
    }


def test_mnist_by_environment_and_from_the_folder_above(mnist_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSIM_DATA", str(mnist_dir.parent))
    assert len(data.load("mnist").y_test) == 10_000


def write_idx(folder: Path, sizes: tuple[int, int] = (30, 10)) -> None:
    """A tiny dataset in MNIST's form."""
    rng = np.random.default_rng(0)
    for name in idx.MNIST.files:
        n = sizes[0] if name.startswith("train") else sizes[1]
        shape = (n, 28, 28) if "images" in name else (n,)
        body = rng.integers(0, 10, shape).astype(np.uint8)
        header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()
        (folder / f"{name}.gz").write_bytes(gzip.compress(header + body.tobytes()))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A mirror on loopback."""
    folder = tmp_path / "mirror"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}/", folder
        httpd.shutdown()
        thread.join()


@pytest.mark.parametrize("genuine", [idx.MNIST, idx.FASHION_MNIST], ids=lambda source: source.name)
def test_idx_files_are_downloaded_once_and_checked(
    genuine: idx.Source, server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = server
    write_idx(folder)
    hashes = {
        name: "sha256:" + hashlib.sha256((folder / f"{name}.gz").read_bytes()).hexdigest() for name in idx.MNIST.files
    }
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    here = replace(genuine, mirrors=("http://127.0.0.1:9/", url))

    with pytest.raises(
        DataError,
        match=r"gz could not be downloaded \(http://127.*:9/: \w+; http.*: ValueError\); .*--data-dir DIR",
    ):
        here.load()  # the genuine checksums: the mirror's files are others

    here = replace(here, files=hashes)
    assert here.load().x_train.shape == (30, 784)
    for file in folder.iterdir():
        file.unlink()
    assert here.load().x_test.shape == (10, 784)  # from the cache now
    assert {f.name for f in (tmp_path / "cache" / "fedsim" / here.name).iterdir()} == {f"{n}.gz" for n in hashes}


def test_files_may_be_unzipped(tmp_path: Path) -> None:
    write_idx(tmp_path)
    for file in list(tmp_path.iterdir()):
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()
    assert idx.MNIST.load(tmp_path).x_train.shape == (30, 784)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data_dir is .* contains neither train-images-idx3-ubyte.gz nor"):
        idx.MNIST.load(tmp_path)


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "cannot be read|not an idx"),
        (b"hello", "cannot be read"),
        (gzip.compress(b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", mtime=0), "not an idx file of unsigned bytes"),
        (
            gzip.compress(b"\0\0\x08\x01\0\0\0\x05ab", mtime=0),
            r"damaged: .* array of size 2 into shape \(5,\)",
        ),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x01ab", mtime=0), r"array of size 2 into shape \(1,\)"),
        (gzip.compress(b"\0\0\x08\x03\0\0", mtime=0), "damaged"),
        (gzip.compress(b"\0\0\x08\0a", mtime=0), "not an idx file"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x02ab", mtime=0)[:-6], "cannot be read"),
    ],
)
def test_damaged_files_say_so(tmp_path: Path, raw: bytes, sentence: str) -> None:
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(raw)
    with pytest.raises(DataError, match=sentence):
        read_idx(file)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^dataset is 'digits\('; allowed: a call with plain values"):
        data.load("digits(")
    with pytest.raises(ConfigError, match=r"dataset is 'digit'; allowed: digits, .*did you mean 'digits'"):
        data.load("digit")


def test_data_dir_comes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, sizes in (("given", (30, 10)), ("environment", (20, 10))):
        (tmp_path / name).mkdir()
        write_idx(tmp_path / name, sizes)
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "environment"))
    assert len(idx.MNIST.load(tmp_path / "given").y_train) == 30
    assert len(idx.MNIST.load().y_train) == 20


def test_a_label_that_only_the_test_set_has_is_a_class() -> None:
    x = np.ones((3, 1))
    assert data.Dataset("late", x, np.array([0, 1, 1]), x, np.array([0, 1, 4])).num_classes == 5


def test_a_datasets_arrays_are_read_only_and_the_callers_are_not() -> None:
    x, y = np.ones((3, 1)), np.array([0, 1, 1])
    made = data.Dataset("mine", x, y, x, y, groups={"who": y})
    for values in (made.x_train, made.y_train, made.x_test, made.y_test, made.groups["who"]):
        assert not values.flags.writeable
    assert x.flags.writeable
    assert y.flags.writeable


def test_labels_that_are_no_numbering_are_refused() -> None:
    """Identifiers in the place of labels would make a network with an output for each number up to the largest."""
    x = np.zeros((4, 2))
    with pytest.raises(DataError, match=r"it has 1,000,000,001 classes; allowed: at most 100,000, numbered from 0"):
        data.Dataset("ids", x, np.array([0, 10**9, 0, 1]), x, np.zeros(4, int))
    assert data.Dataset("ids", x, np.array([0, 99_999, 0, 1]), x, np.zeros(4, int)).num_classes == 100_000


def test_the_articles_labels_are_uniform_and_its_test_set_is_another() -> None:
    article, teacher = data.load("article"), data.load("article_teacher")
    for y in (article.y_train, article.y_test):
        counts = np.bincount(y, minlength=10)
        assert counts.sum() == 1000
        assert ((counts - 100) ** 2 / 100).sum() < 28  # chi-squared, 9 degrees of freedom, 0.1 %
    assert not np.isin(article.x_test[:, 0], article.x_train[:, 0]).any()
    assert np.array_equal(article.x_test, teacher.x_test)
    assert (article.name, teacher.name) == ("article", "article_teacher")


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("digits", "digits"),
        ("synthetic(0.5, 0.5)", "synthetic(0.5, 0.5)"),
        ("table('a/b/patients.csv', 'outcome')", "patients.csv"),
        ("table(label='outcome', path='a/patients.csv')", "patients.csv"),
        ("hub('ylecun/mnist')", "mnist"),
    ],
)
def test_a_dataset_is_called_by_the_name_of_its_file(text: str, title: str) -> None:
    assert data.title(text) == title


def test_arguments_are_checked_before_anything_is_loaded() -> None:
    assert data.check("synthetic(0.5, beta=1)") == ("synthetic", [0.5], {"beta": 1})
    with pytest.raises(ConfigError, match="synthetic takes alpha, beta, seed"):
        data.check("synthetic(1, 1, 0, 9)")


def test_the_nearest_mention_of_a_folder_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One in the dataset's text before one beside it, and that before the environment's; files compressed or not."""
    for name, size in (("text", 40), ("given", 30), ("environment", 20)):
        (tmp_path / name).mkdir()
        write_idx(tmp_path / name, (size, 10))
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "environment"))
    assert len(data.load("mnist").y_train) == 20
    assert len(data.load("mnist", tmp_path / "given").y_train) == 30
    assert len(data.load(f"mnist(data_dir={str(tmp_path / 'text')!r})", tmp_path / "given").y_train) == 40


def test_a_table_is_read_again_only_if_its_file_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    file, texts = tmp_path / "there" / "t.csv", ("table('t.csv', 'y')", "table(path='t.csv', label='y')")
    rows = "a,y\n1,0\n2,1\n3,0\n4,1\n"
    for text in texts:
        file.write_text(rows)
        os.utime(file, ns=(10**18, 10**18))
        first = data.load(text, "there")
        assert data.load(text, "there") is first
        file.write_text(rows.replace("4", "9"))  # as long
        os.utime(file, ns=(10**18, 10**18 + 1))
        second = data.load(text, "there")
        assert not np.array_equal(np.sort(second.x_train, axis=None), np.sort(first.x_train, axis=None))
        file.write_text(rows + "5,0\n6,1\n")  # as old
        os.utime(file, ns=(10**18, 10**18 + 1))
        assert len(data.load(text, "there").y_train) + len(data.load(text, "there").y_test) == 6
    (tmp_path / "t.csv").write_text(rows)
    found = [data.load(text, "there") for text in texts]  # what is in the working directory comes first
    assert [len(each.y_train) + len(each.y_test) for each in found] == [4, 4]
    (tmp_path / "t.csv").write_text(rows + "5,0\n")
    assert len(data.load(texts[1], "there").y_train) + len(data.load(texts[1], "there").y_test) == 5
    (tmp_path / "t.csv").unlink()
    monkeypatch.setenv("FEDSIM_DATA", "there")
    assert len(data.load(texts[0]).y_train) + len(data.load(texts[0]).y_test) == 6


def test_where_idx_files_are_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder, which may be the environment's, in part or whole; in the cache; or nowhere yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    cache = idx.cache_dir() / "mnist"
    nowhere = idx.MNIST.describe_location()
    assert nowhere.startswith(
        f"not available locally; downloaded when first used from {idx.MNIST.mirrors[0]} into {cache}, or read from"
    )
    cache.mkdir(parents=True)
    write_idx(cache)
    assert idx.MNIST.describe_location() == f"in {cache}"
    assert idx.MNIST.describe_location(cache) == f"in {cache}"
    assert idx.FASHION_MNIST.describe_location().startswith("not available locally")
    (cache / f"{list(idx.MNIST.files)[2]}.gz").unlink()
    assert idx.MNIST.describe_location() == nowhere
    folder = tmp_path / "mine" / "mnist"
    folder.mkdir(parents=True)
    write_idx(folder)
    assert idx.MNIST.describe_location(folder.parent) == f"in {folder.parent}"
    for name in list(idx.MNIST.files)[1:3]:
        (folder / f"{name}.gz").unlink()
    said = f"NOT in {folder.parent}: train-labels-idx1-ubyte, t10k-images-idx3-ubyte missing"
    assert idx.MNIST.describe_location(folder.parent) == said
    monkeypatch.setenv("FEDSIM_DATA", str(folder.parent))
    assert idx.MNIST.describe_location() == said
    with pytest.raises(DataError) as caught:
        idx.MNIST.load()
    assert f"$FEDSIM_DATA is {str(folder.parent)!r}" in str(caught.value)
    assert (
        "nor train-labels-idx1-ubyte, directly or under mnist/; put the MNIST files there, or leave $FEDSIM_DATA"
        in (str(caught.value))
    )


@pytest.mark.parametrize("below", ["fashion_mnist", "fashion-mnist", "FashionMNIST/raw"])
def test_fashion_mnist_is_looked_for_in_folders_of_its_own(below: str, tmp_path: Path) -> None:
    """Its files are called as MNIST's are."""
    write_idx(tmp_path)
    with pytest.raises(DataError, match=r"under fashion_mnist/ or under fashion-mnist/ or under FashionMNIST/raw/"):
        idx.FASHION_MNIST.load(tmp_path)
    (tmp_path / below).mkdir(parents=True)
    write_idx(tmp_path / below, (20, 10))
    found = idx.FASHION_MNIST.load(tmp_path)
    assert (found.name, len(found.y_train), found.num_classes) == ("fashion_mnist", 20, 10)
    assert (found.label_names[0], found.label_names[9]) == ("T-shirt", "ankle boot")


def test_what_a_dataset_makes_of_its_arrays() -> None:
    """Whole numbers become float32 and other kinds stay; labels become int64; there are two classes at least."""
    x, one = np.array([[0, 255], [1, 2]], np.uint8), np.ones((1, 2))
    found = data.Dataset(
        "mixed", x, np.array([0.0, 0.0]), one, np.array([False]), groups={"who": np.array(["a", 3], object)}
    )
    assert [v.dtype for v in (found.x_train, found.x_test, found.y_train, found.y_test)] == [
        np.float32, np.float64, np.int64, np.int64
    ]  # fmt: skip
    assert (found.num_classes, found.num_strata, found.label_names) == (2, 2, ("0", "1"))
    assert found.groups["who"].tolist() == ["a", "3"]
    more = data.Dataset("more", x, np.array([0, 1]), one, np.array([2]), 5)
    assert (more.num_classes, more.label_names) == (5, ("0", "1", "2", "3", "4"))
    assert more.strata.tolist() == [0, 1]
    named = data.Dataset("named", x, np.array([0, 1]), one, np.array([1]), label_names=("no", "yes"))
    assert named.label_names == ("no", "yes")
    numbers = data.Dataset("numbers", x, np.array([7, 9]), one, np.array([8]), 4, regression=True)
    assert (numbers.num_classes, numbers.num_strata, len(numbers.label_names)) == (1, 10, 10)
    assert numbers.y_train.dtype == np.float64


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"num_classes": 100_001}, "it has 100,001 classes; allowed: at most 100,000"),
        ({"groups": {"who": np.zeros(3)}}, r"group 'who' has shape \(3,\); allowed: \(2,\)"),
        ({"x_train": [[1], [1, 2]]}, "x_train is not an array of numbers"),
        ({"x_train": np.zeros((2, 3))}, r"x_train has examples of shape \(3,\) but x_test of shape \(2,\)"),
        ({"x_train": np.array([[1, 2], [np.nan, np.inf]])}, "has 2 values that are .* at row 1, column 0"),
        ({"x_test": np.zeros((1, 2), complex)}, "x_test has shape .* dtype complex128"),
        ({"y_test": np.zeros((1, 1))}, "y_test must be whole-number labels from 0"),
        ({"y_test": np.array(["a"])}, "y_test must be whole-number labels"),
        ({"y_test": np.array([0, 1])}, "x_test has 1 rows but y_test has 2 labels"),
        ({"y_test": np.array([0, 1]), "regression": True}, "x_test has 1 rows but y_test has 2 labels"),
    ],
)
def test_odd_arrays_are_refused(arrays: dict[str, Any], sentence: str) -> None:
    good: dict[str, Any] = {
        "x_train": np.zeros((2, 2)), "y_train": np.array([0, 1]), "x_test": np.zeros((1, 2)), "y_test": np.array([0])
    }  # fmt: skip
    with pytest.raises(DataError, match=sentence):
        data.Dataset("mine", **(good | arrays))


@pytest.mark.parametrize(
    ("text", "examples", "labels", "features"),
    [
        ("article", 1000, 1694088935, 159681.5),
        ("article_teacher", 1000, 418881614, 159681.5),
        ("synthetic(0.5, 0.5, seed=3)", 8294, 3322042658, 464758.0),
        ("synthetic_iid", 9641, 1804781465, 93623.0),
        ("synthetic_iid(2)", 6909, 3143951007, 66921.5),
        ("fcube", 4000, 1978265305, 7505.0),
        ("fcube(1)", 4000, 2391614583, 7468.7),
    ],
)
def test_made_up_data_are_the_same_in_every_version(text: str, examples: int, labels: int, features: float) -> None:
    """Whoever publishes results on them publishes the data by name and seed alone."""
    found = data.load(text)
    y = np.concatenate([found.y_train, found.y_test]).astype(np.uint8)
    x = np.concatenate([found.x_train, found.x_test]).astype(np.float64)
    assert (len(found.y_train), zlib.crc32(y.tobytes())) == (examples, labels)
    assert np.abs(x).sum() == pytest.approx(features, abs=0.1)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"x_train": [["a"]]}, r"x_train has shape \(1, 1\) and dtype <U1; allowed: \(examples, features\) of numbers"),
        ({"x_train": [[1], [1, 2]]}, r"dataset 'mine': x_train is not an array of numbers \("),
        ({"x_test": np.ones(4)}, r"x_test has shape \(4,\)"),
        ({"x_train": np.ones((0, 2)), "y_train": []}, r"x_train has shape \(0, 2\)"),
        ({"x_test": np.ones((4, 0))}, r"x_test has shape \(4, 0\) .* at least one of each"),
        ({"x_test": np.ones((4, 3))}, r"x_train has examples of shape \(2,\) but x_test of shape \(3,\)"),
        ({"y_test": [0, 1, 1]}, "x_test has 4 rows but y_test has 3 labels"),
        ({"y_test": [[0], [1], [1], [1]]}, "y_test must be whole-number labels from 0"),
        ({"y_test": list("abcd")}, "y_test must be whole-number labels from 0"),
        ({"y_test": [], "x_test": np.ones((1, 2))}, "y_test must be whole-number labels from 0"),
        ({"x_test": [[1, 2]] * 2 + [[1, np.inf], [np.nan, 1]]}, "x_test has 2 values .* the first at row 2, column 1"),
        ({"num_classes": 1}, "num_classes is 1 but a label is 1"),
        ({"num_classes": 100_001}, "it has 100,001 classes; allowed: at most 100,000"),
        ({"groups": {"who": [0, 1, 1]}}, r"group 'who' has shape \(3,\); allowed: \(4,\)"),
        ({"regression": True, "y_train": [0, 1, np.inf, 0]}, "y_train must be finite numbers, shape"),
        ({"regression": True, "y_train": [[0], [1], [1], [0]]}, "y_train must be finite numbers, shape"),
        ({"regression": True, "y_test": list("abcd")}, "y_test must be finite numbers, shape"),
        ({"regression": True, "y_test": []}, "y_test must be finite numbers, shape"),
    ],
)
def test_arrays_that_are_no_dataset_are_refused(change: dict[str, Any], sentence: str) -> None:
    good: dict[str, Any] = {"x_train": np.ones((4, 2)), "y_train": [0, 1, 1, 0]}
    good |= {"x_test": np.ones((4, 2)), "y_test": [0.0, 1.0, 1.0, 1.0], "groups": {"who": [0, 1, 1, 0]}}
    assert data.Dataset("mine", **good).num_classes == 2
    with pytest.raises(DataError, match=sentence):
        data.Dataset("mine", **(good | change))


def test_a_datasets_kinds_names_and_strata() -> None:
    """Whole-number features become float32, others keep their kind; labels are int64 and targets float64."""
    pixels, halves = np.eye(4, dtype=np.uint8), np.eye(4, dtype=np.float16)
    y = np.array([0.0, 1, 1, 0])
    labels = data.Dataset("l", pixels, y, halves, y, 3, groups={"who": np.array(["a", 1, None, "a"], dtype=object)})
    assert [a.dtype for a in (labels.x_train, labels.x_test, labels.y_train)] == [np.float32, np.float16, np.int64]
    assert (labels.label_names, labels.num_classes, labels.num_strata) == (("0", "1", "2"), 3, 3)
    assert labels.groups["who"].tolist() == ["a", "1", "None", "a"]
    assert np.array_equal(labels.strata, y)
    numbers = data.Dataset("n", pixels, np.arange(4), halves, np.arange(4), 7, regression=True)
    assert (numbers.num_classes, numbers.num_strata, len(numbers.label_names)) == (1, 10, 10)
    assert numbers.y_train.dtype == np.float64
    few = np.repeat([0, 1], (6, 5))[:, None]  # each number is several of the cuts, and lies above those
    numbers = data.Dataset("n", few, few[:, 0], few, few[:, 0], regression=True)
    assert np.unique(numbers.strata).tolist() == [5, 9]
    assert numbers.x_train.dtype == np.float32
    assert data.Dataset("one", pixels, y * 0, halves, y * 0).num_classes == 2
    assert data.Dataset("named", pixels, y, halves, y, label_names=("no", "yes")).label_names == ("no", "yes")


def test_a_table_is_read_anew_when_its_file_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from the folder of $FEDSIM_DATA, and from data_dir before that."""
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "environment"))
    for folder, rows in (("environment", "1,0\n2,1\n"), ("given", "1,0\n2,1\n4,1\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t.csv").write_text("a,y\n" + rows)

    def examples(dataset: data.Dataset) -> int:
        return len(dataset.y_train) + len(dataset.y_test)

    first = data.load("table('t.csv', 'y')")
    assert examples(first) == 2
    assert data.load("table('t.csv', 'y')") is first
    assert data.load("table('t.csv', 'y', test_fraction=0.4)") is not first
    assert examples(data.load("table(label='y', path='t.csv')", tmp_path / "given")) == 3
    first = data.load("table('t.csv', 'y')")
    with (tmp_path / "environment" / "t.csv").open("a") as file:
        file.write("3,0\n4,1\n")
    assert examples(data.load("table('t.csv', 'y')")) == 4
    text = f"table('t.csv', 'y', data_dir={str(tmp_path / 'given')!r})"
    assert examples(data.load(text)) == 3
    with (tmp_path / "given" / "t.csv").open("a") as file:
        file.write("5,0\n")
    assert examples(data.load(text)) == 4


@pytest.mark.parametrize("label", [np.inf, -np.inf, np.nan, 0.5, -1])
def test_labels_that_are_no_whole_numbers_from_0_are_refused(label: float) -> None:
    x, y = np.ones((2, 3)), np.array([0, 1])
    with pytest.raises(DataError, match="y_test must be whole-number labels from 0"):
        data.Dataset("odd", x, y, x, np.array([0, label]))


def test_datasets_have_titles() -> None:
    """A file's or a hub's dataset is called by its last name, others as they are written."""
    for text, expected in {
        "table('/some where/my.csv', 'y')": "my.csv",
        "table(label='y', path='a/b.parquet')": "b.parquet",
        "hub('ylecun/mnist')": "mnist",
        "synthetic(0.5, 1)": "synthetic(0.5, 1)",
        "digits": "digits",
    }.items():
        assert data.title(text) == expected


def test_fashion_mnist_is_the_published_one(mnist_dir: Path) -> None:
    found = data.load("fashion_mnist", mnist_dir.parent)
    assert np.bincount(found.y_train).tolist() == [6000] * 10
    assert np.bincount(found.y_test).tolist() == [1000] * 10


def test_fashion_mnist_has_names_and_folders_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("fashion_mnist", "fashion-mnist", "FashionMNIST/raw"):
        (tmp_path / folder).mkdir(parents=True)
        write_idx(tmp_path / folder)
        found = data.load("fashion_mnist", tmp_path)
        assert (found.name, found.num_classes, len(found.label_names)) == ("fashion_mnist", 10, 10)
        names = "T-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot"
        assert ", ".join(found.label_names) == names
        for file in (tmp_path / folder).iterdir():
            file.unlink()
    write_idx(tmp_path)  # MNIST's files have the same names
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"^\$FEDSIM_DATA is .* under fashion_mnist/ or .*leave \$FEDSIM_DATA unset"):
        data.load("fashion_mnist")
    assert data.load("mnist").label_names == tuple("0123456789")


def test_truth_values_are_labels() -> None:
    x = np.zeros((3, 2))
    found = data.Dataset("flags", x, np.array([True, False, True]), x[:1], np.array([False]))
    assert (found.y_train.tolist(), found.num_classes, found.regression) == ([1, 0, 1], 2, False)
