"""Calls with arguments that do not fit, and methods that fedsim could not call: one sentence each."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pytest

from fedsim import Experiment, compare, contribution, data, explain, fairness, leakage, splits
from fedsim.arguments import CheckedInit, check_methods, checked_arguments, misfit
from fedsim.attacks import Attack
from fedsim.clients import SGD, ClientStrategy
from fedsim.data import Dataset
from fedsim.errors import ConfigError
from fedsim.models import MLP, Model
from fedsim.secure import SecureAggregation
from fedsim.servers import FedAdam, FedAvg
from fedsim.splits import IID, CountedSplit, Dirichlet, LogNormal, Partition
from fedsim.study.callbacks import Callback, EarlyStopping
from fedsim.updates import TopK, UpdateTransform


class Prox(SGD):
    """A user's strategy."""

    mu: float = 0.1


@dataclass(frozen=True)
class Halves(CountedSplit):
    """A user's split."""

    share: float = 0.5

    def assign(self, labels: Any, rng: np.random.Generator) -> Partition:
        return IID(self.num_clients).assign(labels, rng)


class Momentum(FedAvg):
    """A user's server strategy with a constructor of its own."""

    def __init__(self, *, rho: float = 0.9, **options: Any) -> None:
        super().__init__(**options)
        self.rho = rho


def refusal(call: Callable[[], Any]) -> str:
    """What a ConfigError says."""
    with pytest.raises(ConfigError) as caught:
        call()
    return str(caught.value)


anything: Any = 3
SGD_TAKES = "lr, epochs, batch_size, momentum, weight_decay, lr_decay, lr_decay_every, steps"
wrong: Any = {"foo": 1}


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: SGD(**wrong), f"SGD takes {SGD_TAKES} (got an unexpected keyword argument 'foo')"),
        (lambda: Prox(**wrong), f"Prox takes {SGD_TAKES}, mu (got an unexpected keyword argument 'foo')"),
        (lambda: replace(Prox(), **wrong), f"Prox takes {SGD_TAKES}, mu (got an unexpected keyword argument 'foo')"),
        (
            lambda: Dirichlet(50, 0.1, **wrong),
            "Dirichlet takes num_clients, alpha, sizes, seed (got an unexpected keyword argument 'foo')",
        ),
        (
            lambda: Halves(),  # type: ignore[call-arg]
            "Halves takes num_clients, share, seed (missing a required argument: 'num_clients')",
        ),
        (lambda: LogNormal(1, 2, 3), "LogNormal takes sigma, least (too many positional arguments)"),  # type: ignore[call-arg]
        (lambda: TopK(**wrong), "TopK takes fraction, error_feedback (got an unexpected keyword argument 'foo')"),
        (lambda: MLP(), "MLP takes sizes, activation, loss, dtype (missing a required argument: 'sizes')"),  # type: ignore[call-arg]
        (lambda: MLP(3), "sizes is 3; allowed: a list of layer widths, with inputs and outputs"),  # type: ignore[arg-type]
        (
            lambda: FedAdam(0.1),  # type: ignore[call-arg]
            "FedAdam takes eta, beta_1, beta_2, tau, **options (too many positional arguments); name the arguments, "
            "as in eta=...",
        ),
        (
            lambda: Momentum(0.1),  # type: ignore[call-arg]
            "Momentum takes rho, **options (too many positional arguments); name the arguments, as in rho=...",
        ),
        (
            lambda: Momentum(rh=1),
            "server Momentum has no option 'rh'; allowed: rho, seed, server_hooks, min_clients, .*",
        ),
        (lambda: EarlyStopping(**wrong), "EarlyStopping takes metric, target, patience .*"),
        (lambda: SecureAggregation(**wrong), "SecureAggregation takes max_abs, threshold, neighbours, dropout .*"),
        (lambda: Dataset("x"), "Dataset takes name, x_train, y_train, .* .missing a required argument: 'x_train'."),  # type: ignore[call-arg]
        (
            lambda: Experiment().run(2),  # type: ignore[call-arg]
            "Experiment.run takes workers, block_size, callbacks, verbose, directory, engine (too many positional "
            "arguments); name the arguments, as in workers=...",
        ),
        (
            lambda: compare(Experiment(), [IID(5)]),  # type: ignore[call-arg,list-item]
            "compare takes base, seeds, .*, [*][*]axes .too many positional arguments.; name .*, as in seeds=...",
        ),
        (lambda: compare(3), "base is 3; allowed: an Experiment"),  # type: ignore[arg-type]
        (lambda: data.load(), "load takes text, data_dir (missing a required argument: 'text')"),  # type: ignore[call-arg]
        (lambda: data.load(3), "dataset is 3; allowed: a name, such as 'digits'"),  # type: ignore[arg-type]
    ],
)
def test_arguments_that_do_not_fit_are_one_sentence(call: Callable[[], Any], sentence: str) -> None:
    said = refusal(call)
    assert said == sentence or re.fullmatch(sentence, said), said


@pytest.mark.parametrize(
    "made", [SGD(lr=0.5), Prox(mu=0.3), Halves(4, share=0.25), TopK(0.2), MLP((2, 3)), Experiment()]
)
def test_objects_are_copied_and_replaced_as_before(made: Any) -> None:
    for twin in (pickle.loads(pickle.dumps(made)), copy.copy(made), copy.deepcopy(made), replace(made)):
        assert type(twin) is type(made)
        assert twin == made


def test_signatures_are_those_of_the_classes() -> None:
    SGD(), Halves(3), FedAdam(), Experiment()  # what is checked exists once an object has been made
    assert list(inspect.signature(SGD).parameters) == SGD_TAKES.split(", ")
    assert list(inspect.signature(Prox).parameters) == [*SGD_TAKES.split(", "), "mu"]
    assert inspect.signature(Halves).parameters["share"].default == 0.5
    assert list(inspect.signature(FedAdam).parameters) == ["eta", "beta_1", "beta_2", "tau", "options"]
    assert inspect.signature(Experiment).parameters["rounds"].kind is inspect.Parameter.KEYWORD_ONLY
    assert next(iter(inspect.signature(compare).parameters)) == "base"
    assert "Run an experiment for every combination" in (compare.__doc__ or "")


class Mistaken(SGD):
    """Its constructor has a mistake of its own."""

    def __post_init__(self) -> None:
        len(3)  # type: ignore[arg-type]


def test_a_type_error_of_the_users_own_code_is_left_as_it_is() -> None:
    with pytest.raises(TypeError, match="object of type 'int' has no len"):
        Mistaken()

    @checked_arguments
    def fails(number: int) -> int:
        return number + None  # type: ignore[operator]

    with pytest.raises(TypeError, match="unsupported operand"):
        fails(3)
    assert refusal(lambda: fails()) == "fails takes number (missing a required argument: 'number')"  # type: ignore[call-arg]
    assert refusal(lambda: fails("x")) == "number is 'x'; allowed: an int"  # type: ignore[arg-type]


class Sized(Protocol):
    def __len__(self) -> int: ...


def test_types_that_cannot_be_compared_are_not() -> None:
    @checked_arguments
    def fails(free: Any, sized: Sized, number: int | None, *rest: int, **options: list[int]) -> None:
        raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fails(anything, anything, None, 3, x=anything)
    assert refusal(lambda: fails(anything, anything, "x")) == "number is 'x'; allowed: an int"  # type: ignore[arg-type]


def test_a_function_without_a_signature_is_not_checked() -> None:
    assert misfit(type, "type", [1, 2, 3, 4], {}) == ""


def test_a_constructor_of_another_base_is_not_replaced() -> None:
    class Other:
        def __init__(self, number: int) -> None:
            self.number = number

    class Both(Other, CheckedInit):
        pass

    assert Both(3).number == 3
    with pytest.raises(TypeError):
        Both()  # type: ignore[call-arg]
    assert not hasattr(Other.__init__, "checks_arguments")


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: fairness.client_fairness(anything), "results is 3; allowed: a Result or a Study"),
        (lambda: fairness.group_gaps(anything), "counts is 3; allowed: a DataFrame"),
        (lambda: fairness.group_rates(pd.DataFrame({"num_examples": [1]})), "counts has no column correct, .*"),
        (lambda: fairness.group_gaps(pd.DataFrame({"a": [1]})), "counts has no column group, num_examples, .*"),
        (lambda: fairness.group_report(anything), "result is 3; allowed: a Result"),
        (lambda: fairness.metric_frame(anything), "result is 3; allowed: a Result"),
        (lambda: leakage.observe(anything), "experiment is 3; allowed: an Experiment"),
        (lambda: leakage.attack_result(anything), "result is 3; allowed: a Result"),
        (lambda: leakage.invert(anything, anything), "observation is 3; allowed: an Observation"),
        (lambda: explain.saliency(anything), "result is 3; allowed: the Result of an experiment"),
        (lambda: contribution.class_influence(anything), "experiment is 3; allowed: an Experiment"),
        (lambda: contribution.gtg_shapley(anything), "experiment is 3; allowed: an Experiment"),
        (lambda: contribution.class_recall(anything), "result is 3; allowed: a Result"),
        (lambda: splits.skew(anything), "federated is 3; allowed: a FederatedDataset"),
        (lambda: fairness.client_fairness(), "client_fairness takes results .*"),  # type: ignore[call-arg]
    ],
)
def test_public_functions_name_an_argument_of_a_wrong_type(call: Callable[[], Any], sentence: str) -> None:
    assert re.fullmatch(sentence, refusal(call))


# Methods of a user's classes.


class ShortServer(FedAvg):
    def aggregator(self, more: int) -> Any:  # type: ignore[override]
        return more


class Sum:
    needs = "sums"

    def add(self, update: Any) -> None: ...

    def result(self) -> None: ...


class SumServer(FedAvg):
    def aggregator(self) -> Any:
        return Sum()


class ShortTransform(UpdateTransform):
    def on_client(self, values: Any) -> Any:  # type: ignore[override]
        return values


class ShortAttack(Attack):
    def corrupt(self, changes: Any) -> Any:  # type: ignore[override]
        return changes


class ShortSplit(CountedSplit):
    def assign(self, labels: Any) -> Any:  # type: ignore[override]
        return labels


class ShortCallback(Callback):
    def round_finished(self) -> None:  # type: ignore[override]
        """Too few arguments."""


class ShortModel(MLP):
    def evaluate(self) -> Any:  # type: ignore[override]
        """Too few arguments."""


SMALL: dict[str, Any] = {"split": IID(3), "hidden": (2,), "rounds": 1}


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: Experiment(server=ShortServer, **SMALL).run(), "ShortServer's aggregator() takes (self, more)"),
        (lambda: Experiment(server=SumServer, **SMALL).run(), "Sum's add() takes (self, update)"),
        (lambda: Experiment(transforms=(ShortTransform(),)), "ShortTransform's on_client() takes (self, values)"),
        (lambda: Experiment(attack=ShortAttack()), "ShortAttack's corrupt() takes (self, changes)"),
        (lambda: Experiment(split=ShortSplit(3)), "ShortSplit's assign() takes (self, labels)"),
        (lambda: Experiment().run(callbacks=[ShortCallback()]), "ShortCallback's round_finished() takes (self)"),
        (
            lambda: Experiment(split=IID(3), rounds=1, model=lambda _: ShortModel((64, 10))).run(),
            "ShortModel's evaluate() takes (self)",
        ),
    ],
)
def test_methods_that_fedsim_cannot_call_are_named_with_their_line(call: Callable[[], Any], sentence: str) -> None:
    said = refusal(call)
    assert said.startswith(f"{sentence}; allowed: (self")
    assert re.search(r" \(.*test_arguments.py:\d+\)$", said)


def test_methods_of_fedsim_and_of_other_classes_are_not_checked() -> None:
    for instance in (SGD(), MLP((2, 3)), object(), None, Sum()):
        check_methods(instance)
    check_methods(MLP((2, 3)), Model)
    assert issubclass(SGD, ClientStrategy)


def test_a_model_function_takes_one_argument() -> None:
    said = refusal(lambda: Experiment(model=lambda: MLP((64, 10))))  # type: ignore[misc,arg-type]
    assert said.endswith("that returns a Model: <lambda> takes no arguments (too many positional arguments)")
    with pytest.raises(ConfigError, match="sizes is Dataset"):
        Experiment(model=MLP).run()  # type: ignore[arg-type]


def test_a_misspelt_hook_is_named_and_not_ignored() -> None:
    """Otherwise the run would be that of plain SGD."""

    class Own(SGD):
        def directon(self, grad: Any, weights: Any, ctx: Any) -> Any:
            return 2 * grad

    class Helps(SGD):
        def half(self, grad: Any) -> Any:
            return grad / 2

        def _directon(self, grad: Any) -> Any:
            return grad

    with pytest.raises(ConfigError, match=r"Own's directon\(\) is never called; did you mean direction\?.* _directon"):
        Experiment(client=Own())
    Experiment(client=Helps())
