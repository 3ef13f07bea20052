"""Facts of federated learning that an experiment must reproduce."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from functools import partial
from html import escape, unescape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import same
from numpy.typing import NDArray

from fedsim import Experiment, compare, data, servers
from fedsim.clients import SGD, Context, FedProx
from fedsim.errors import ConfigError, DataError, DivergenceError, FedsimError
from fedsim.models import MLP, named_arrays
from fedsim.models.losses import LOSSES, is_correct
from fedsim.models.model import Array
from fedsim.splits import IID, CountedSplit, Dirichlet, Partition, Shards, Split, TimeOrdered
from fedsim.streams import Purpose, generator, keys, permutations
from fedsim.study import config
from fedsim.study.build import make_strategy
from fedsim.study.callbacks import EarlyStopping
from fedsim.study.grid import variants
from fedsim.study.result import Result, history_columns


class Unequal(CountedSplit):
    """Client k gets k + 1 parts of 55."""

    def assign(self, labels: Any, rng: np.random.Generator) -> Partition:
        cuts = np.cumsum(np.arange(1, self.num_clients + 1)) * len(labels) // 55
        return Partition(rng.permutation(len(labels)), np.concatenate([[0], cuts]))


@pytest.mark.parametrize("loss", LOSSES)
def test_full_participation_and_full_batches_are_centralised_gradient_descent(loss: str) -> None:
    """Fraction 1, one epoch, full batch, unequal shards: 20 rounds are 20 steps on the pooled data, to 1e-12."""
    experiment = Experiment(
        split=Unequal(10),
        hidden=(16,),
        loss=loss,
        dtype="float64",
        client=SGD(lr=0.3, epochs=1, batch_size=None),
        rounds=20,
    )
    result = experiment.run()
    dataset = data.load("digits")
    model = experiment.make_model(dataset)
    w = model.init(generator(0, Purpose.INIT))[None]
    x, y = dataset.x_train[None].astype(np.float64), dataset.y_train[None]
    for _ in range(20):
        w = w - 0.3 * model.loss_and_gradient(w, x, y)[1]
    for name, expected in named_arrays(model, w[0]).items():
        error = np.linalg.norm(result.weights[name] - expected) / np.linalg.norm(expected)
        assert error < 1e-12, name


def test_fedprox_with_mu_0_is_fedavg() -> None:
    base = Experiment(split=Dirichlet(20, alpha=0.1), rounds=3, client=SGD(epochs=3))
    plain, prox = base.run(), replace(base, client=FedProx(epochs=3, proximal_mu=0.0)).run()
    assert all(np.array_equal(plain.weights[k], prox.weights[k]) for k in plain.weights)


def test_a_strong_proximal_term_holds_clients_back() -> None:
    base = Experiment(split=Dirichlet(20, alpha=0.1), rounds=1, client=SGD(epochs=5))
    start = replace(base, client=SGD(lr=1e-12)).run().weights["W1"]

    def moved(client: SGD) -> float:
        return float(np.linalg.norm(replace(base, client=client).run().weights["W1"] - start))

    assert moved(FedProx(epochs=5, proximal_mu=5.0)) < 0.5 * moved(SGD(epochs=5))


def test_one_client_holding_everything_is_plain_sgd() -> None:
    """Federated learning with one client is that client's training, round after round: here in one plain loop."""
    experiment = Experiment(split=IID(1), rounds=3, dtype="float64", kernel="numpy", client=SGD(lr=0.2, batch_size=25))
    dataset = experiment.load_data()
    model, held = experiment.make_model(dataset), experiment.federate(dataset).partition[0]
    assert sorted(held) == list(range(len(dataset.y_train)))
    w = model.init(generator(0, Purpose.INIT))[None]
    for number in (1, 2, 3):
        order = held[permutations(keys(0, Purpose.SHUFFLE, number, 0, 0), np.array([len(held)]))[0]]
        for start in range(0, len(order), 25):
            batch = order[start : start + 25]
            w = (
                w
                - 0.2
                * model.loss_and_gradient(w, dataset.x_train[None, batch].astype(float), dataset.y_train[None, batch])[
                    1
                ]
            )
    found = np.concatenate([values.ravel() for values in experiment.run().weights.values()])
    np.testing.assert_allclose(found, w[0], rtol=1e-10, atol=1e-12)


def test_history_and_clients_are_tidy() -> None:
    result = Experiment(split=Shards(20, per_client=2), rounds=3, fraction_train=0.25, fraction_evaluate=1.0).run()
    assert tuple(result.history.columns) == history_columns("accuracy")
    assert result.history["round"].tolist() == [0, 1, 2, 3]
    assert result.history["clients"].tolist() == [0, 5, 5, 5]
    assert result.history["train_loss"].isna().tolist() == [True, False, False, False]
    assert sorted(result.clients.query("round == 2")["partition_id"]) == list(range(20))
    assert result.clients["num_examples"].sum() == 3 * 1442
    assert result.clients["accuracy"].between(0, 1).all()
    assert {k: v.shape for k, v in result.weights.items()} == {"W1": (64, 32), "b1": (32,), "W2": (32, 10), "b2": (10,)}


def test_evaluation_on_clients_adds_up_to_evaluation_on_all() -> None:
    experiment = Experiment(split=Dirichlet(20, alpha=0.1), rounds=1, fraction_evaluate=1.0, dtype="float64")
    result = experiment.run()
    dataset = data.load("digits")
    model = experiment.make_model(dataset)
    flat = np.concatenate([v.ravel() for v in result.weights.values()])[None]
    z = model.scores(flat, dataset.x_train[None].astype(np.float64))
    accuracy = is_correct(z, dataset.y_train[None]).mean()
    rows = result.clients
    assert np.average(rows["accuracy"], weights=rows["num_examples"]) == pytest.approx(accuracy, rel=1e-12)


def test_the_articles_labels_are_noise_and_the_teachers_are_not() -> None:
    settings: dict[str, Any] = {"split": IID(10), "hidden": (50,), "rounds": 30, "client": SGD(lr=0.05, epochs=2)}
    noise = Experiment(dataset="article", **settings).run()
    taught = Experiment(dataset="article_teacher", **settings).run()
    assert noise.final_accuracy < 0.15
    assert noise.history["train_loss"].iloc[-1] < 1.5  # memorised all the same
    assert taught.final_accuracy > 0.5


@pytest.mark.parametrize("loss", ["binary_cross_entropy", "cross_entropy", "mse"])
def test_two_classes_of_ones_own(loss: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3))
    y = (x @ [1.0, -2.0, 0.5] > 0).astype(int)
    mine = data.Dataset("mine", x[:200], y[:200], x[200:], y[200:])
    result = Experiment(dataset=mine, split=IID(5), hidden=(8,), loss=loss, client=SGD(lr=0.5), rounds=20).run()
    assert result.final_accuracy > 0.9
    assert result.weights["b2"].shape == ((1,) if loss == "binary_cross_entropy" else (2,))


def test_non_iid_hurts() -> None:
    base = Experiment(rounds=20, fraction_train=0.2, client=SGD(epochs=5))
    iid, skewed = base.run(), replace(base, split=Dirichlet(50, alpha=0.1)).run()
    assert iid.final_accuracy > skewed.final_accuracy + 0.1


@pytest.mark.parametrize("lr", [10, 1e4, 1e30])
def test_divergence_is_reported_with_round_and_client(lr: float) -> None:
    with pytest.raises(DivergenceError, match=r"diverged in round 1 at client \d+ .*SGD\(lr="):
        Experiment(client=SGD(lr=lr), rounds=2).run()


class Poisoned(SGD):
    """Client 3 sends NaN."""

    def direction(self, grad: Array, weights: Array, ctx: Any) -> Array:
        bad: Array = np.where(ctx.partition_ids[:, None] == 3, np.nan, grad).astype(grad.dtype)
        return bad


@pytest.mark.parametrize("server", [None, "flower"])
def test_a_diverged_client_can_be_left_out_and_is_counted(server: str | None) -> None:
    import flwr.serverapp.strategy as stock

    strategy = stock.FedAvg if server else None
    experiment = Experiment(split=IID(10), client=Poisoned(), rounds=3, on_failure="exclude", server=strategy)
    result = experiment.run()
    assert result.history["failures"].tolist() == [0, 1, 1, 1]
    assert result.history["clients"].tolist() == [0, 9, 9, 9]
    assert all(np.isfinite(v).all() for v in result.weights.values())
    with pytest.raises(DivergenceError, match="at client 3 "):
        replace(experiment, on_failure="raise").run()


def test_if_all_clients_are_left_out_the_weights_stay() -> None:
    class AllBad(SGD):
        def direction(self, grad: Array, weights: Array, ctx: Any) -> Array:
            return grad * np.float32(np.nan)

    result = Experiment(split=IID(4), client=AllBad(), rounds=2, on_failure="exclude").run()
    assert result.history["failures"].tolist() == [0, 4, 4]
    assert result.history["test_loss"].nunique() == 1


def test_a_server_strategy_that_gives_up_says_so() -> None:
    from flwr.serverapp.exception import AggregationError
    from flwr.serverapp.strategy import FedAvg

    class Quits(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            raise AggregationError("too few honest clients")

    with pytest.raises(FedsimError, match=r"Flower's Quits failed: .*too few honest clients"):
        Experiment(split=IID(4), server=Quits, rounds=1).run()


def with_accuracies(*values: float) -> Result:
    history = pd.DataFrame({"test_accuracy": values, "test_loss": 1.0})
    return Result(Experiment(), history, pd.DataFrame(), {}, "numpy", "accuracy", pd.DataFrame())


@pytest.mark.parametrize(
    ("target", "rounds"), [(0.1, 0.0), (0.5, 1.0), (0.65, 2.5), (0.3, 0.5), (0.8, 3.0), (0.81, float("nan"))]
)
def test_rounds_to_target_are_interpolated_on_the_best_so_far(target: float, rounds: float) -> None:
    result = with_accuracies(0.1, 0.5, 0.2, 0.8, 0.7)
    np.testing.assert_allclose(result.rounds_to(target), rounds)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"dataset": "mnits"}, "dataset is 'mnits'; allowed: digits.*did you mean 'mnist'"),
        ({"dataset": 3}, "dataset is 3"),
        ({"split": "IID(50)"}, "split is 'IID"),
        ({"client": SGD}, "client is <class"),
        ({"hidden": 50}, "hidden is 50"),
        ({"hidden": (0,)}, "hidden is 0"),
        ({"activation": "gelu"}, "activation is 'gelu'"),
        ({"fraction_train": 0}, "fraction_train is 0; allowed: a finite number greater than 0 and at most 1"),
        ({"fraction_train": 1.5}, "fraction_train is 1.5"),
        ({"fraction_evaluate": -0.1}, "fraction_evaluate is -0.1"),
        ({"rounds": 0}, "rounds is 0"),
        ({"rounds": "3"}, "rounds is '3'"),
        ({"seed": -1}, "seed is -1"),
        ({"on_failure": "ignore"}, "on_failure is 'ignore'"),
        ({"server": "FedAvg"}, "server is 'FedAvg'"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Experiment(**change)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"lr": -1}, "SGD's lr is -1"),
        ({"lr": float("inf")}, "SGD's lr is inf"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
    ],
)
def test_bad_client_strategies_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        SGD(**change)


def test_more_clients_than_examples() -> None:
    with pytest.raises(ConfigError, match="num_clients for 1442 training examples is 5000"):
        Experiment(split=IID(5000)).run()


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x_train": np.array([[1.0, np.nan], [1, 2]])}, "x_train has 1 values that are NaN.*row 0, column 1"),
        ({"x_test": np.array([[np.inf, 1.0]])}, "x_test has 1 values"),
        ({"x_train": np.array([["a", "b"], ["c", "d"]])}, "x_train"),
        ({"x_train": np.zeros((3, 2))}, "x_train has 3 rows but y_train has 2 labels"),
        ({"x_train": np.zeros((2, 3))}, r"shape \(3,\) but x_test of shape \(2,\)"),
        ({"x_train": np.zeros((0, 2))}, "x_train has shape"),
        ({"x_train": np.zeros(2)}, "x_train has shape"),
        ({"y_train": np.array([0.5, 1])}, "y_train must be whole-number labels"),
        ({"y_train": np.array([-1, 1])}, "y_train must be whole-number labels"),
        ({"y_train": np.array([0, 7]), "num_classes": 3}, "num_classes is 3 but a label is 7"),
    ],
)
def test_bad_data_is_refused(arrays: dict[str, Any], sentence: str) -> None:
    good: dict[str, Any] = {
        "x_train": np.zeros((2, 2)),
        "y_train": np.array([0, 1]),
        "x_test": np.zeros((1, 2)),
        "y_test": np.array([0]),
    }
    with pytest.raises(DataError, match=sentence):
        data.Dataset("mine", **(good | arrays))


@pytest.mark.slow
@pytest.mark.parametrize(("split", "rounds"), [(IID(100), 87), (Shards(100, per_client=2), 664)])
def test_the_fedavg_papers_table_1(split: Split, rounds: int, mnist_dir: Path) -> None:
    """2NN on MNIST, C = 0.1, E = 1, B = 10: 97 % within the paper's 87 rounds (IID) and 664 (non-IID)."""
    experiment = Experiment(
        dataset="mnist",
        data_dir=mnist_dir,
        split=split,
        hidden=(200, 200),
        client=SGD(lr=0.1, epochs=1, batch_size=10),
        fraction_train=0.1,
        rounds=min(rounds, 350),
    )
    assert experiment.run().rounds_to(0.97) <= rounds


def test_the_seed_decides_which_examples_are_a_clients_test() -> None:
    experiment = Experiment(split=IID(3, seed=0), test_fraction=0.3)
    tests = [replace(experiment, seed=seed).federate(experiment.load_data()).partition_test for seed in (0, 0, 1)]
    assert tests[0] is not None
    assert tests[1] is not None
    assert tests[2] is not None
    assert np.array_equal(tests[0].indices, tests[1].indices)
    assert not np.array_equal(tests[0].indices, tests[2].indices)


def test_failures_of_a_round_are_in_the_order_of_clients() -> None:
    """The cohort is in the order of falling size, here that of falling ids."""

    class Fails(SGD):
        def train(self, ctx: Context) -> NDArray[Any]:
            weights = ctx.fit()
            weights[ctx.partition_ids > 1] = np.nan
            return weights

    split = IID(5, sizes=(10, 20, 30, 40, 50))
    failures = Experiment(split=split, client=Fails(), rounds=2, on_failure="exclude").run().failures
    assert failures["round"].tolist() == [1, 1, 1, 2, 2, 2]
    assert failures["partition_id"].tolist() == [2, 3, 4, 2, 3, 4]


def test_the_kernel_follows_from_the_examples_of_one_window(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def choose(kernel: str, hooks: str, model: MLP, examples: float) -> str:
        seen.append(examples)
        return "numpy"

    monkeypatch.setattr("fedsim.kernels.choose", choose)
    experiment = Experiment(split=TimeOrdered(IID(10), windows=4), client=SGD(epochs=3), fraction_train=0.5)
    dataset = experiment.load_data()
    assert experiment.kernel_for(experiment.make_model(dataset), experiment.federate(dataset)) == "numpy"
    assert seen == pytest.approx([3 * 0.5 * len(dataset.x_train) / 4])


# Server strategies given as objects; equality, texts.

SMALL = Experiment(split=IID(4), hidden=(4,), rounds=2, kernel="numpy")


def test_a_server_object_is_the_class_with_its_options() -> None:
    """Each run makes a fresh strategy of them, whatever the object has been used for."""
    given = servers.FedAdam(eta=0.1, fraction_train=0.5)
    made = replace(SMALL, server=given)
    same_options = replace(SMALL, server=partial(servers.FedAdam, eta=0.1, fraction_train=0.5))
    assert made == same_options
    assert hash(made) == hash(same_options)
    assert replace(SMALL, server=servers.FedAdam()) == replace(SMALL, server=servers.FedAdam)
    first = made.run()
    assert first.history["clients"].tolist() == [0, 2, 2]
    assert same(first, made.run())
    assert same(first, same_options.run())
    assert not same(first, replace(SMALL, server=servers.FedAdam(eta=0.2, fraction_train=0.5)).run())
    assert make_strategy(made) is not given
    text = config.to_toml(made)
    assert tomllib.loads(text)["server"] == "FedAdam(eta=0.1, fraction_train=0.5)"
    assert config.experiment(tomllib.loads(text)) == made
    numpys: Any = np.float32(0.5)
    assert "server=FedAdam(eta=0.5), rounds=2" in repr(replace(SMALL, server=servers.FedAdam(eta=numpys)))


def test_studies_label_server_objects_by_their_options() -> None:
    made = variants(SMALL, {"server": [servers.FedAdam(eta=0.1), servers.FedYogi(), servers.FedAvg]})
    assert [label["server"] for label, _ in made] == ["FedAdam(eta=0.1)", "FedYogi", "FedAvg"]
    numpys: Any = np.float32(0.5)
    made = variants(SMALL, {"server": [servers.FedAdam(eta=numpys), partial(servers.FedYogi, eta=numpys)]})
    assert [label["server"] for label, _ in made] == ["FedAdam(eta=0.5)", "FedYogi(eta=0.5)"]


def test_a_server_object_whose_options_are_unknown_is_refused() -> None:
    class Positional(servers.FedAvg):
        def __init__(self, bound: float, **options: Any) -> None:
            super().__init__(**options)

    import flwr.serverapp.strategy as stock

    for server in (stock.FedAvg(), Positional(3.0)):
        name = type(server).__name__
        with pytest.raises(
            ConfigError, match=f"server is a {name} object, whose options are unknown; allowed: the class"
        ):
            Experiment(server=server)
    assert Experiment(server=Positional(bound=3.0)) == Experiment(server=partial(Positional, bound=3.0))
    with pytest.raises(ConfigError, match="server is 3; allowed: a server strategy, or the class of one"):
        Experiment(server=3)  # type: ignore[arg-type]


def test_experiments_are_equal_if_all_their_fields_are() -> None:
    changes: list[dict[str, Any]] = [
        {"seed": 1},
        {"rounds": 3},
        {"hidden": (5,)},
        {"split": IID(5)},
        {"client": SGD(lr=0.2)},
        {"server": servers.FedAdam},
        {"server": partial(servers.FedAdam, eta=0.1)},
        {"server": partial(servers.FedAdam, eta=0.2)},
        {"server": partial(servers.FedYogi, eta=0.1)},
        {"fraction_train": 0.5},
        {"min_clients": 2},
        {"on_failure": "exclude"},
        {"early_stopping": EarlyStopping(patience=2)},
    ]
    made = [replace(SMALL, **change) for change in changes]
    again = [replace(SMALL, **change) for change in changes]
    for k, one in enumerate(made):
        assert [one == other for other in again] == [k == j for j in range(len(again))]
        assert one != SMALL
        assert hash(one) == hash(again[k])
    assert len({*made, *again}) == len(changes)
    assert SMALL != "an experiment"
    assert len({hash(e) for e in made[:5]} | {hash(SMALL)}) == 6


def test_the_text_of_an_experiment_is_the_call_without_what_is_as_by_default() -> None:
    assert repr(Experiment()) == "Experiment()"
    assert repr(Experiment(split=IID(3, seed=4), client=FedProx(lr=0.2))) == (
        "Experiment(split=IID(seed=4, num_clients=3), client=FedProx(lr=0.2))"
    )
    digits = data.load("digits")
    assert (
        repr(Experiment(dataset=digits, hidden=()))
        == "Experiment(dataset=Dataset(name='digits', num_classes=10), hidden=())"
    )
    stopper = EarlyStopping("test_loss", target=0.5)
    stopper.run_started(SMALL, [{"test_loss": 1.0}])
    assert repr(Experiment(server=partial(servers.FedAdam, eta=0.1), early_stopping=stopper)) == (
        "Experiment(server=FedAdam(eta=0.1), early_stopping=EarlyStopping(metric='test_loss', target=0.5))"
    )


def cells(html: str) -> list[str]:
    return list(map(unescape, re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", html)))


def test_results_and_studies_have_short_texts_and_html() -> None:
    study = compare(SMALL, seeds=2, server=[servers.FedAvg, servers.FedAdam(eta=0.1)])
    assert repr(study) == "Study(FedAvg, FedAdam(eta=0.1); runs: 4)"
    table = study.table()
    rows = [[label, *row] for label, row in zip(table.index, table.to_numpy(), strict=True)]
    assert cells(study._repr_html_()) == ["", *table.columns, "server", *[""] * 4, *rows[0], *rows[1]]
    result = study.variants[0].results[0]
    assert repr(result) == f"Result({result.experiment!r}: test accuracy {result.final_accuracy:.4f} after 2 rounds)"
    html = result._repr_html_()
    assert html.startswith(f"<p>{escape(repr(result))}</p><table")
    columns = history_columns("accuracy")
    assert cells(html)[: len(columns) + 1] == [*columns, "2"]
    assert len(cells(html)) == 2 * len(columns)
    odd = compare(replace(SMALL, dataset=replace(data.load("digits"), name="<b>&")))
    assert "Dataset(name=&#x27;&lt;b&gt;&amp;&#x27;" in odd.variants[0].results[0]._repr_html_()
    assert repr(odd) == "Study(all; runs: 1)"
    assert cells(odd._repr_html_()) == [*odd.table().columns, *odd.table().iloc[0]]


def test_final_accuracy_is_for_labels_and_final_score_for_both() -> None:
    result = with_accuracies(0.1, 0.9, 0.7)
    assert (result.final_accuracy, result.final_score, result.rounds) == (0.7, 0.7, 2)
    assert repr(result) == "Result(Experiment(): test accuracy 0.7000 after 2 rounds)"
    line = replace(result, score="r2", history=pd.DataFrame({"test_r2": [-1.0, 0.25], "test_loss": [2.0, 1.0]}))
    assert (line.final_score, line.rounds, line.test_scores.tolist()) == (0.25, 1, [-1.0, 0.25])
    assert line.rounds_to(-0.375) == 0.5
    constant = replace(line, history=line.history.assign(test_r2=np.nan))  # R squared of a constant target
    assert constant.has_global_model
    assert repr(line) == "Result(Experiment(): test r2 0.2500 after 1 rounds)"
    with pytest.raises(ConfigError, match=r"final_accuracy is for labels, .* use final_score"):
        _ = line.final_accuracy


def test_a_run_does_not_import_scipy_stats() -> None:
    """It takes half a second, which would more than double the time to a first result."""
    code = "import sys; from fedsim import Experiment; Experiment(rounds=1).run(); print('scipy.stats' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout == "False\n", done.stderr
