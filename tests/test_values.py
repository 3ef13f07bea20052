"""Values of every kind in every field: numbers of NumPy are taken, what cannot be used is refused in one sentence."""
# Arguments of the wrong type are the subject here:
# mypy: disable-error-code="arg-type, list-item"

from __future__ import annotations

import inspect
import math
import tomllib
import warnings
from collections.abc import Callable
from dataclasses import MISSING, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Optional

import flwr.serverapp.strategy as stock
import numpy as np
import pytest
from helpers import same

from fedsim import Experiment, clients, compare, data, servers, splits, updates
from fedsim.checks import Interval, check_integer, check_real, to_builtin
from fedsim.cli import main as cli
from fedsim.clients import SGD, FedProx, FedRep
from fedsim.data import Dataset
from fedsim.errors import ConfigError, DataError, DivergenceError, FedsimError
from fedsim.objects import to_text
from fedsim.servers import FedAdam, FedAvg, MultiKrum
from fedsim.splits import IID, Dirichlet, LabelDirichlet, LogNormal, Rotation, Split, TimeOrdered
from fedsim.study import config
from fedsim.study.build import make_strategy
from fedsim.study.callbacks import Callback, EarlyStopping, FinishedRound
from fedsim.study.plan import Plan, make_plan
from fedsim.updates.compression import TopK

#: What a file, a command line or a program may put into any field.
ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    10**10,
    2**31,
    10**23,
    10**400,
    -(10**400),
    10**5000,
    5e-324,
    1e300,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    "x",
    "a\0b",
    b"x",
    (),
    [],
    {},
    {"a": 1},
    [1, "x"],
    1j,
    object(),
    np.int64(3),
    np.float32(0.5),
    np.bool_(True),
    np.array([1, 2]),
    np.array(["a"]),
    IID(2),
]

RNG = np.random.default_rng(0)
X, Y = RNG.random((60, 4)), np.arange(60) % 3
SMALL = Dataset("small", X, Y, X[:5], Y[:5], 3, groups={"who": Y % 2})

#: Arguments that a class needs.
NEEDED: dict[str, Any] = {
    "split": IID(4),
    "other": IID(4),
    "num_clients": 4,
    "partitioner": "IidPartitioner",
    "options": {"num_partitions": 4},
}


def classes(module: Any, base: type) -> list[type]:
    found = (getattr(module, name) for name in module.__all__)
    return [c for c in found if inspect.isclass(c) and issubclass(c, base) and not inspect.isabstract(c)]


def places() -> list[tuple[type, str]]:
    """Every field of every class that a configuration can name."""
    kinds = [(splits, Split), (splits, splits.Sizes), (clients, SGD), (updates, updates.UpdateTransform)]
    every = [c for module, base in kinds for c in classes(module, base)] + [Experiment]
    return [(c, f.name) for c in every for f in fields(c)]


def use(made: Any) -> None:
    """Do what comes before training, as far as it costs little."""
    if isinstance(made, splits.Sizes):
        made = IID(4, sizes=made)
    if isinstance(made, Split):
        made.federate(SMALL, 1).at(2)
        str(made)
        made = Experiment(split=made)
    if isinstance(made, SGD):
        made = Experiment(client=made)
    if isinstance(made, updates.UpdateTransform):
        made = Experiment(transforms=(made,))
    if made.server is None:
        text = config.to_toml(replace(made, dataset="digits"))
        if ":" not in text.replace("fedsim.", ""):
            again = config.experiment(tomllib.loads(text))
            assert config.to_toml(again) == text
    made.make_model(SMALL)
    made.federate(SMALL)
    make_strategy(made)


@pytest.mark.parametrize(("cls", "field"), places(), ids=lambda value: getattr(value, "__name__", value))
def test_any_value_in_any_field_is_used_or_refused_in_a_sentence(cls: Any, field: str) -> None:
    given = {f.name: NEEDED[f.name] for f in fields(cls) if f.default is MISSING and f.name in NEEDED}
    if cls.__name__ == "FlowerDatasets":
        pytest.importorskip("flwr_datasets", reason="flwr_datasets is not installed")
    if cls is Experiment:
        given["split"] = IID(4)
    for value in ODD:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            try:
                use(cls(**(given | {field: value})))
            except FedsimError as error:
                sentence = str(error)
                assert "\n" not in sentence, sentence
                assert len(sentence) < 2000, sentence


# Numbers of NumPy.


def test_numbers_of_numpy_become_pythons() -> None:
    for value, expected in [
        (np.int8(3), 3),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.float16(0.5), 0.5),
        (np.float64(0.1), 0.1),
        (np.longdouble(0.25), 0.25),
        (np.bool_(False), False),
        (np.str_("a"), "a"),
        (np.array(7), 7),
        ([np.int64(1), (np.float32(2), "b")], [1, (2.0, "b")]),
        ({"k": np.int64(1)}, {"k": 1}),
    ]:
        found = to_builtin(value)
        assert found == expected
        assert type(found) is type(expected)
    assert [type(part) for part in to_builtin((np.int64(1), np.float32(2)))] == [int, float]
    array, table = np.array([1, 2]), {"a": 1}
    assert to_builtin(array) is array
    assert to_builtin(table) is table


def test_an_experiment_of_numpys_numbers_is_that_of_pythons() -> None:
    """As they come out of np.arange, np.linspace and data frames: the same bits, text and label."""
    python = Experiment(
        split=LabelDirichlet(4, alpha=0.5, min_size=2, balance=True, seed=3),
        hidden=(6, 4),
        client=FedProx(lr=0.25, epochs=2, batch_size=8, momentum=0.5, proximal_mu=0.5),
        server=partial(FedAdam, eta=0.5),
        fraction_train=0.5,
        fraction_evaluate=1.0,
        test_fraction=0.25,
        rounds=2,
        seed=7,
        weight_divergence=True,
        min_clients=2,
        transforms=(TopK(0.5, error_feedback=True),),
        kernel="numpy",
    )
    numpys = Experiment(
        split=LabelDirichlet(
            np.int64(4), alpha=np.float32(0.5), min_size=np.uint8(2), balance=np.bool_(True), seed=np.int32(3)
        ),
        hidden=np.array([6, 4]),
        client=FedProx(
            lr=np.float32(0.25),
            epochs=np.int64(2),
            batch_size=np.int16(8),
            momentum=np.float16(0.5),
            proximal_mu=np.float64(0.5),
        ),
        server=partial(FedAdam, eta=np.float32(0.5)),
        fraction_train=np.float32(0.5),
        fraction_evaluate=np.int64(1),
        test_fraction=np.float64(0.25),
        rounds=np.int64(2),
        seed=np.uint64(7),
        weight_divergence=np.bool_(True),
        min_clients=np.int64(2),
        transforms=(TopK(np.float32(0.5), error_feedback=np.bool_(True)),),
        kernel="numpy",
    )
    assert numpys.split == python.split
    assert numpys.client == python.client
    assert numpys.transforms == python.transforms
    assert str(numpys.client) == str(python.client)
    assert config.to_toml(replace(numpys, fraction_evaluate=1.0)) == config.to_toml(python)
    one, other = python.run(), numpys.run(workers=np.int64(1), block_size=np.int64(2))
    assert all(np.array_equal(one.weights[k], other.weights[k]) for k in one.weights)


@pytest.mark.parametrize(
    ("numpys", "python"),
    [
        (lambda: IID(np.int64(3), sizes=np.array([5, 1, 7])), IID(3, sizes=(5, 1, 7))),
        (lambda: IID(3, sizes=[np.int64(5), 1, 7]), IID(3, sizes=[5, 1, 7])),
        (lambda: Dirichlet(2, sizes=np.array([3, 4])), Dirichlet(2, sizes=(3, 4))),
        (lambda: IID(3, sizes=LogNormal(np.float32(0.5), np.int64(2))), IID(3, sizes=LogNormal(0.5, 2))),
        (lambda: Rotation(IID(2), np.array([0, 45])), Rotation(IID(2), (0, 45))),
        (lambda: TimeOrdered(IID(2), np.int64(3), np.int64(2)), TimeOrdered(IID(2), 3, 2)),
    ],
)
def test_splits_of_numpys_numbers_are_those_of_pythons(numpys: Callable[[], Split], python: Split) -> None:
    made = numpys()
    assert made == python
    assert repr(made) == repr(python)
    assert config.build("split", to_text(made, vars(splits))) == python


def test_seeds_of_numpy_give_the_same_bits() -> None:
    five: Any = np.int64(5)
    assert np.array_equal(IID(4).partition(Y, five).indices, IID(4).partition(Y, 5).indices)
    assert np.array_equal(
        data.synthetic.synthetic(1, 1, np.int64(5)).x_train, data.synthetic.synthetic(1, 1, 5).x_train
    )


def test_a_study_of_numpys_numbers(tmp_path: Path) -> None:
    """Also in the study's file."""
    base = Experiment(dataset=SMALL, split=IID(4), rounds=1, kernel="numpy")
    for seeds in (np.int64(2), np.array([0, 1]), [np.int64(0), 1], range(2)):
        study = compare(base, seeds=seeds, fraction_train=np.array([0.5, 1.0]), directory=tmp_path)
        assert [r.experiment.seed for r in study.variants[0].results] == [0, 1]
        assert [v.label for v in study.variants] == ["fraction_train=0.5", "fraction_train=1.0"]
    numbers: Any = np.array([0.5, 1.0])
    made = Plan(Experiment(), {"fraction_train": numbers}, np.int64(2)).to_toml()
    assert "seeds = 2" in made
    assert "0.5," in made


# Numbers that cannot be used.


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: FedRep(head_epochs=10**23), "FedRep's head_epochs is 10{23}; allowed: a whole number, 1 to"),
        (lambda: SGD(epochs=2**31), "SGD's epochs is 2147483648; allowed: a whole number, 1 to 2147483647"),
        (lambda: SGD(lr=10**400), "SGD's lr is 1000.* ... .*000; allowed: a finite number greater than 0"),
        (lambda: SGD(lr=10**5000), "SGD's lr is a int too large to print; allowed"),
        (lambda: IID(10**5000), "IID's num_clients is a int too large to print"),
        (lambda: IID(2, sizes=(1, 10**23)), "IID's sizes is 10{23}"),
        (lambda: LogNormal(least=10**23), "LogNormal's least is 10{23}"),
        (lambda: Rotation(IID(2), (10**400,)), "Rotation's degrees is 1000"),
        (lambda: TimeOrdered(IID(4), 3, by=False), "TimeOrdered's by is False; allowed: the name of a column"),
        (lambda: Experiment(seed=2**64), "seed is 18446744073709551616; allowed: a whole number, 0 to"),
        (lambda: IID(2, seed=2**64), "IID's seed is 18446744073709551616"),
        (lambda: Experiment(rounds=10**23), "rounds is 10{23}"),
        (lambda: Experiment(hidden=(10**23,)), "hidden is 10{23}"),
        (lambda: Experiment(hidden=(10**5, 10**5)).make_model(SMALL), "makes .* parameters; allowed: at most 2,147"),
        (lambda: Experiment(data_dir=-1), "data_dir is -1; allowed: a path"),
        (lambda: Experiment(data_dir=True), "data_dir is True; allowed: a path"),
        (lambda: Experiment(data_dir="a\0b"), r"data_dir is 'a\\x00b'; allowed: a path"),
        (lambda: Experiment(weight_divergence=1), "weight_divergence is 1; allowed: true or false"),
        (lambda: data.load("mnist(data_dir=2.0)"), "mnist's data_dir is 2.0; allowed: a path"),
        (lambda: data.load("fashion_mnist(data_dir=False)"), "fashion_mnist's data_dir is False; allowed: a path"),
        (lambda: data.load("synthetic(1, 1, 99999999999999999999)"), "synthetic's seed is 9{20}"),
        (lambda: data.load("fcube(1.5)"), "fcube's seed is 1.5"),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_used_are_refused(make: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make()


def test_checkers_return_plain_numbers() -> None:
    assert type(check_integer("n", np.int64(3))) is int
    assert type(check_real("x", np.float32(0.5))) is float
    assert type(check_real("x", 2)) is int  # as written, so that texts stay as they are
    for value in (True, np.bool_(True), 2.0, "2"):
        with pytest.raises(ConfigError):
            check_integer("n", value)
    with pytest.raises(ConfigError, match=r"n is 5; allowed: a whole number, 0 to 4"):
        check_integer("n", 5, 0, 4)
    with pytest.raises(ConfigError, match=r"n is -1; allowed: a whole number, 0 or more"):
        check_integer("n", -1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"seeds": 99999999999999999999}, "seeds is 9{20}; allowed: a whole number, 1 to 10000"),
        ({"seeds": float("nan")}, "seeds is nan; allowed: a whole number"),
        ({"seeds": 1.5}, "seeds is 1.5"),
        ({"seeds": True}, "seeds is True"),
        ({"seeds": None}, "seeds is None"),
        ({"seeds": "3"}, "seeds is '3'"),
        ({"seeds": []}, "seeds is empty"),
        ({"seeds": [0, -1]}, "seeds is -1"),
        ({"seeds": [0, 2**64]}, "seeds is 18446744073709551616"),
        ({"seeds": [1, 1]}, r"seeds is \[1, 1\]; allowed: each seed once"),
        ({"baselines": 0}, "baselines is 0; allowed: a list of centralised, data-parallel"),
        ({"baselines": False}, "baselines is False"),
        ({"baselines": "centralised"}, "baselines is 'centralised'"),
        ({"baselines": [0]}, "baselines is 0"),
    ],
)
def test_studies_of_odd_numbers_are_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        compare(Experiment(dataset=SMALL, split=IID(4), rounds=1), **arguments)


# Options of servers.


@pytest.mark.parametrize("cls", [servers.FedAvgM, stock.FedAvgM, servers.FedMedian, stock.FedProx, FedAvg])
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("fraction_train", 1e30),
        ("fraction_train", True),
        ("fraction_train", float("nan")),
        ("fraction_evaluate", 1e308),
        ("fraction_evaluate", -0.1),
        ("min_available_nodes", None),
        ("min_train_nodes", 1.5),
        ("min_evaluate_nodes", -1),
        ("min_available_nodes", 10**23),
    ],
)
def test_fractions_and_counts_of_a_server_are_checked(cls: Any, option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{cls.__name__}'s {option} is .*; allowed"):
        make_strategy(Experiment(server=partial(cls, **{option: value})))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: FedAvg(fraction_train=1e30), "FedAvg's fraction_train is 1e.30; allowed"),
        (lambda: MultiKrum(seed=float("inf")), "MultiKrum's seed is inf; allowed: a whole number"),
        (lambda: FedAvg(seed=2**64), "FedAvg's seed is 18446744073709551616"),
        (lambda: FedAvg(server_hooks=1), "FedAvg's server_hooks is 1; allowed: a ServerHooks"),
        (lambda: FedAvg(min_clients=0), "FedAvg's min_clients is 0"),
        (lambda: MultiKrum(num_malicious_nodes=10**23), "num_malicious_nodes is 10{23}"),
        (lambda: make_strategy(Experiment(server=partial(stock.FedAdam, eta=float("inf")))), "FedAdam's eta is inf"),
        (
            lambda: make_strategy(Experiment(server=partial(stock.FedProx, proximal_mu="x"))),
            "FedProx's proximal_mu is 'x'",
        ),
        (
            lambda: make_strategy(Experiment(server=partial(stock.MultiKrum, num_nodes_to_select=0.5))),
            "to_select is 0.5",
        ),
        (
            lambda: make_strategy(Experiment(server=partial(stock.FedAvg, weighted_by_key=3))),
            "by_key is 3; allowed: no",
        ),
        (lambda: make_strategy(Experiment(server=partial(stock.FedAvg, train_metrics_aggr_fn=3))), "aggr_fn is 3"),
    ],
)
def test_other_options_of_servers_are_checked(make: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make()


@pytest.mark.parametrize("cls", [FedAvg, stock.FedAvg, stock.FedAdam])
@pytest.mark.parametrize("option", ["min_train_nodes", "min_available_nodes", "min_evaluate_nodes"])
def test_a_server_that_waits_for_more_clients_than_there_are_is_refused(cls: Any, option: str) -> None:
    base = Experiment(dataset=SMALL, split=IID(4), rounds=1, fraction_evaluate=1.0, kernel="numpy")
    experiment = replace(base, server=partial(cls, **{option: 5}))
    with pytest.raises(ConfigError, match=f"{cls.__name__}'s {option} is 5; allowed: at most 4, the number of clients"):
        experiment.run()
    assert replace(experiment, server=partial(cls, **{option: 4})).run().history["clients"].iloc[-1] == 4


def test_options_of_a_server_may_be_numpys() -> None:
    made = FedAvg(fraction_train=np.float32(0.5), min_train_nodes=np.int64(2), seed=np.int64(3), min_clients=np.int8(2))
    assert (made.fraction_train, made.min_train_nodes, made.seed, made.min_clients) == (0.5, 2, 3, 2)
    assert type(made.seed) is int
    experiment = Experiment(dataset=SMALL, split=IID(4), rounds=1, kernel="numpy")
    for cls in (servers.FedAdam, stock.FedAdam):
        plain_one, numpys = (replace(experiment, server=partial(cls, eta=eta)).run() for eta in (0.5, np.float32(0.5)))
        assert all(np.array_equal(plain_one.weights[k], numpys.weights[k]) for k in plain_one.weights)


@pytest.mark.parametrize("lr", [1e300, 10**308])
def test_the_largest_learning_rates_diverge_and_say_so(lr: float) -> None:
    with pytest.raises((DivergenceError, ConfigError, DataError)):
        Experiment(dataset=SMALL, split=IID(4), rounds=1, client=SGD(lr=lr), kernel="numpy").run()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["splits", "LogNormal()"], "split is 'LogNormal()'; allowed: IID, Dirichlet"),
        (["splits", "PowerLaw"], "split is 'PowerLaw'; allowed: IID, Dirichlet"),
        (["splits", "IID(4)", "--seed", "99999999999999999999"], "--seed is 99999999999999999999; allowed"),
        (["splits", "IID(99999999999999999999)"], "IID's num_clients is 99999999999999999999; allowed"),
        (["splits", "TimeOrdered(IID(4), 3, by=False)"], "TimeOrdered's by is False"),
        (["splits", "IID(4)", "--dataset", "mnist(data_dir=2.0)"], "mnist's data_dir is 2.0; allowed: a path"),
        (["splits", "IID(4)", "--dataset", "table('t.csv', 'y', drop=False)"], "table's drop is False"),
        (["splits", "IID(4)", "--dataset", "table('t.csv', 'y', categorical=0)"], "table's categorical is 0"),
        (["run", "t.toml", "--client", "FedRep(head_epochs=1" + "0" * 23 + ")"], "FedRep's head_epochs is 1"),
        (["run", "t.toml", "--set", "data_dir=-1"], "data_dir is -1; allowed: a path"),
        (["run", "t.toml", "--set", "server=FedAvgM(fraction_train=1e30)"], "FedAvgM's fraction_train is 1e+30"),
        (["run", "t.toml", "--set", "server=FedProx(fraction_train=True)"], "FedProx's fraction_train is True"),
        (["run", "t.toml", "--set", "server=MultiKrum(seed=1e999)"], "MultiKrum's seed is inf"),
        (["compare", "t.toml", "--split", "IID(4)", "--seeds", "99999999999999999999"], "seeds is 9999"),
        (["compare", "t.toml", "--split", "IID(4)", "--target", "nan"], "--target is nan; allowed: a finite number"),
    ],
)
def test_the_command_line_refuses_them_in_a_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.toml").write_text("rounds = 1\nsplit = 'IID(4)'\n")
    (tmp_path / "t.csv").write_text("a,y\n1,0\n2,1\n3,0\n4,1\n5,0\n6,1\n7,0\n8,1\n9,0\n10,1\n")
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    printed = capsys.readouterr().err
    assert caught.value.code == 2
    assert sentence in printed
    assert printed.count("\n") == 1


# Declared limits.


class Limited(SGD):
    """Hyperparameters of every type, with limits."""

    limits: ClassVar[Any] = {
        "share": Interval(0, 1, open_low=True),
        "count": Interval(2),
        "cap": Interval(0, open_low=True),
        "window": Interval(1, 5),
    }

    share: float = 0.5
    count: int = 2
    cap: float | None = None
    window: int | None = None
    fast: bool = False
    word: str = "a"


class LimitsOfItsOwn(Limited):
    """A class with a hyperparameter called ``limits``, whose base's limits hold."""

    limits: float = 3.0  # type: ignore[misc]


@pytest.mark.parametrize("cls", [Limited, LimitsOfItsOwn])
def test_declared_limits_are_checked_by_the_type_of_the_field(cls: Any) -> None:
    made = cls(share=np.float32(1), count=np.int64(7), cap=1e-300, window=5, fast=np.bool_(True))
    assert (made.share, made.count, made.window, made.fast) == (1.0, 7, 5, True)
    assert type(made.count) is int
    assert cls(cap=None, window=None, lr=0.3).lr == 0.3
    for settings, allowed in (
        ({"share": 0}, "greater than 0 and at most 1"),
        ({"share": 1.01}, "greater than 0 and at most 1"),
        ({"share": None}, "greater than 0"),
        ({"share": math.nan}, "greater than 0"),
        ({"count": 1}, "2"),
        ({"count": 2.5}, "whole number"),
        ({"count": None}, "whole number"),
        ({"cap": 0}, "greater than 0"),
        ({"window": 6}, "5"),
        ({"window": 2.0**0.5}, "whole number"),
        ({"fast": 1}, "true or false"),
        ({"lr": -1}, "0"),
    ):
        (name, value), *_ = settings.items()
        with pytest.raises(ConfigError) as refused:
            cls(**settings)
        assert f"{cls.__name__}'s {name} is {value!r}; allowed" in str(refused.value)
        assert allowed in str(refused.value)


def test_limits_that_cannot_hold_are_an_error_of_the_class() -> None:
    class Misspelt(SGD):
        nu: float = 0.1
        limits: ClassVar[Any] = {"mu": Interval(0)}

    class NoInterval(SGD):
        mu: float = 0.1
        limits: ClassVar[Any] = {"mu": (0, 1)}

    with pytest.raises(ConfigError, match="a name in Misspelt's limits is 'mu'; allowed: lr"):
        Misspelt()
    with pytest.raises(ConfigError, match=r"NoInterval's limit of 'mu' is \(0, 1\); allowed: an Interval"):
        NoInterval()


def test_a_partial_without_options_is_its_class() -> None:
    assert Experiment(server=partial(FedAdam)) == Experiment(server=FedAdam) == Experiment(server=FedAdam())
    with pytest.raises(ConfigError, match="callbacks is 3; allowed: a list of callbacks"):
        Experiment(dataset=SMALL, split=IID(4), rounds=1).run(callbacks=3)


class Bounds(SGD):
    limits: ClassVar[Any] = {
        "above": Interval(0, open_low=True),
        "below": Interval(0, 5, open_high=True),
        "between": Interval(1.5, 5.5),
        "most": Interval(high=5),
        "either": Interval(0, 1),
    }
    above: int = 1
    below: int = 4
    between: int = 2
    most: int = 0
    either: Optional[float] = None  # noqa: UP045


def test_limits_of_whole_numbers_have_open_ends_too() -> None:
    Bounds(above=1, below=0, between=5, most=-(2**31) + 1, either=0.5)
    for settings in ({"above": 0}, {"below": 5}, {"between": 1}, {"between": 6}, {"most": 6}, {"either": 1.5}):
        with pytest.raises(ConfigError, match=f"Bounds's {next(iter(settings))} is "):
            Bounds(**settings)


class OwnServer(FedAvg):
    def __init__(self, *, shift: int = 0, cap: float = math.inf, path: str = "", **options: Any) -> None:
        super().__init__(**options)


def test_options_of_a_users_own_server_have_types_but_no_bounds() -> None:
    sound = {"shift": -5, "cap": -math.inf, "path": Path("x")}
    made: Any = Experiment(server=partial(OwnServer, **sound)).server
    assert made.keywords == sound
    made = Experiment(server=OwnServer(shift=2**40)).server
    assert made.keywords == {"shift": 2**40}
    for wrong, said in (
        ({"shift": 0.5}, "a whole number"),
        ({"cap": "x"}, "a number"),
        ({"fraction_train": 2}, "a finite"),
    ):
        with pytest.raises(ConfigError, match=f"OwnServer's {next(iter(wrong))} is .*; allowed: {said}"):
            Experiment(server=partial(OwnServer, **wrong))

    def make(**options: Any) -> FedAvg:
        return FedAvg(**options)

    found: Any = make_strategy(Experiment(server=partial(make, min_clients=2)))
    assert found.min_clients == 2
    with pytest.raises(ConfigError, match="FedAvg's server_hooks is None; allowed: no value"):
        Experiment(server=partial(FedAvg, server_hooks=None))
    with pytest.raises(ConfigError, match="FedAvg's server_hooks is None; allowed: no value"):
        config.build("server", "FedAvg(server_hooks=None)")


def test_a_study_file_varies_settings_of_experiments_only() -> None:
    for axis in ("directory", "workers", "engine", "base", "seed", "progress"):
        with pytest.raises(ConfigError, match=f"an axis of compare is {axis!r}; allowed: dataset"):
            make_plan({"compare": {"split": ["IID(4)"], axis: "/tmp/x"}})


def test_runs_that_share_an_early_stopping_do_not_share_what_it_has_seen() -> None:
    """Two runs at once, here one inside a callback of the other."""
    base = Experiment(dataset=SMALL, split=IID(4), rounds=6, early_stopping=EarlyStopping(patience=2))
    alone = base.run()

    class Nested(Callback):
        def round_finished(self, finished: FinishedRound) -> None:
            if finished.number == 1:
                assert same(base.run(), alone)

    assert same(base.run(callbacks=[Nested()]), alone)


def test_nothing_is_transformed_where_nothing_is_sent() -> None:
    base = Experiment(dataset=SMALL, split=IID(4), rounds=2, client=clients.LocalOnly(), fraction_evaluate=1.0)
    for transform in (updates.RandomMask(0.5), TopK(0.5)):
        assert replace(base, transforms=(transform,)).run().clients.equals(base.run().clients)
