"""Hints for names that users of other libraries type, each in the place where it is typed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from fedsim import Experiment, checks, compare, data
from fedsim.attacks import LabelFlip
from fedsim.cli.main import COMMANDS, main
from fedsim.clients import SCAFFOLD, SGD, Ditto, FedProx
from fedsim.errors import ConfigError
from fedsim.models.activations import ACTIVATIONS
from fedsim.models.losses import LOSSES
from fedsim.models.metrics import METRICS
from fedsim.servers import FedAdam, FedAvg
from fedsim.servers.options import options_of
from fedsim.splits import IID, Dirichlet, Sizes
from fedsim.study import config, settings
from fedsim.study.baselines import BASELINES
from fedsim.study.callbacks import COLUMNS
from fedsim.synonyms import SYNONYMS, normalised
from fedsim.updates import TopK


def refusal(call: Callable[[], Any]) -> str:
    """What a ConfigError says."""
    with pytest.raises(ConfigError) as caught:
        call()
    return str(caught.value)


#: Text of a setting -> the end of the sentence.
TEXTS = [
    # names of other settings
    ("client", "FedAvg", "; did you mean 'SGD'? FedAvg is allowed in the setting server"),
    ("client", "FedAdam(eta=0.1)", "; did you mean 'SGD'? FedAdam is allowed in the setting server"),
    ("client", "Krum", "; Krum is allowed in the setting server"),
    ("client", "TopK(0.1)", "; TopK is allowed in the setting transforms"),
    ("server", "SCAFFOLD", "; SCAFFOLD is allowed in the setting client"),
    ("server", "SGD", "; did you mean 'FedAvg'? SGD is allowed in the setting client"),
    ("server", "CentralDP(epsilon=1.0)", "; CentralDP is allowed in the setting privacy"),
    ("attack", "TopK", "; TopK is allowed in the setting transforms"),
    ("attack", "FedMedian", "; FedMedian is allowed in the setting server"),
    ("privacy", "LocalDP", "; LocalDP is allowed in the setting transforms"),
    ("transforms", "SecureAggregation()", "; SecureAggregation is allowed in the setting secure_aggregation"),
    ("split", "PowerLaw(1.0)", "; PowerLaw is allowed as sizes, as in IID(50, sizes=LogNormal())"),
    # other spellings, and other names
    ("client", "Scaffold", "; did you mean 'SCAFFOLD'?"),
    ("client", "fed_prox", "; did you mean 'FedProx'?"),
    ("client", "local", "; did you mean 'LocalOnly'?"),
    ("client", "Adam(lr=0.01)", "; did you mean 'SGD'?"),
    ("server", "Adam", "; did you mean 'FedAdam'?"),
    ("server", "trimmed_mean", "; did you mean 'FedTrimmedAvg'?"),
    ("server", "geometric_median", "; did you mean 'RFA'?"),
    ("server", "DnC", "; did you mean 'SpectralFilter'?"),
    ("split", "non_iid(10)", "; did you mean 'Dirichlet'?"),
    ("split", "noniid-labeldir", "; did you mean 'Dirichlet'?"),
    ("split", "homo", "; did you mean 'IID'?"),
    ("split", "IidPartitioner(10)", "; did you mean 'IID'?"),
    ("split", "pathological", "; did you mean 'Shards'?"),
    ("split", "NaturalIdPartitioner", "; did you mean 'Natural'?"),
    ("attack", "ALIE", "; did you mean 'LittleIsEnough'?"),
    ("attack", "label_flipping", "; did you mean 'LabelFlip'?"),
    ("privacy", "dp_sgd", "; did you mean 'ExampleDP'?"),
    ("transforms", "quantize", "; did you mean 'Int8'?"),
    # parameters
    ("client", "SGD(learning_rate=0.1)", "; did you mean 'lr'?"),
    ("client", "SGD(eta=0.1)", "; did you mean 'lr'?"),
    ("client", "SGD(step_size=0.1)", "; did you mean 'lr'?"),
    ("client", "SGD(local_epochs=5)", "; did you mean 'epochs'?"),
    ("client", "SGD(E=5, B=10)", "; did you mean 'epochs'?; did you mean 'batch_size'?"),
    ("client", "SGD(batch=10)", "; did you mean 'batch_size'?"),
    ("client", "SGD(l2_reg=0.1)", "; did you mean 'weight_decay'?"),
    ("client", "SGD(proximal_mu=0.1)", "; FedProx has proximal_mu, MOON has mu"),
    ("client", "FedProx(mu=0.1)", "; did you mean 'proximal_mu'?"),
    ("client", "Ditto(lmbda=1)", "; did you mean 'lam'?"),
    ("split", "IID(clients=10)", "; did you mean 'num_clients'?"),
    ("split", "Dirichlet(num_partitions=10, alpha=0.1)", "; did you mean 'num_clients'?"),
    ("split", "Dirichlet(10, beta=0.1)", "; did you mean 'alpha'?"),
    ("split", "IID(10, alpha=0.1)", "; Dirichlet has alpha, LabelDirichlet has alpha"),
    ("split", "Shards(10, num_shards=2)", "; did you mean 'per_client'?"),
    ("split", "LabelsPerClient(10, classes_per_client=2)", "; did you mean 'k'?"),
    ("server", "FedAdam(lr=0.1)", "; did you mean 'eta'?"),
    ("server", "FedAvgM(momentum=0.9)", "; did you mean 'server_momentum'?"),
    ("server", "FedAvg(fraction_fit=0.1)", "; did you mean 'fraction_train'?"),
    ("server", "FedAvg(min_available_clients=2)", "; did you mean 'min_available_nodes'?"),
    ("server", "Krum(f=2)", "; did you mean 'num_malicious_nodes'?"),
    ("privacy", "ExampleDP(max_grad_norm=1.0)", "; did you mean 'clip'?"),
    ("privacy", "CentralDP(sigma=1.0)", "; did you mean 'noise_multiplier'?"),
    ("transforms", "TopK(k=0.1)", "; did you mean 'fraction'?"),
]


@pytest.mark.parametrize(("field", "text", "end"), TEXTS)
def test_texts_of_objects(field: str, text: str, end: str) -> None:
    assert refusal(lambda: config.build(field, text)).endswith(end)


#: Argument of ``--set`` -> the end of the sentence.
ASSIGNMENTS = [
    ("lr=0.1", "; did you mean 'client.lr'?"),
    ("learning_rate=0.1", "; did you mean 'client.lr'?"),
    ("local_epochs=5", "; did you mean 'client.epochs'?"),
    ("B=10", "; did you mean 'client.batch_size'?"),
    ("clients=10", "; did you mean 'split.num_clients'?"),
    ("n_clients=10", "; did you mean 'split.num_clients'?"),
    ("split.clients=10", "; did you mean 'num_clients'?"),
    ("client.learning_rate=0.1", "; did you mean 'lr'?"),
    ("num_rounds=3", "; did you mean 'rounds'?"),
    ("C=0.1", "; did you mean 'fraction_train'?"),
    ("fraction_fit=0.1", "; did you mean 'fraction_train'?"),
    ("random_state=3", "; did you mean 'seed'?"),
    ("hidden_layer_sizes=[8]", "; did you mean 'hidden'?"),
    ("non_iid=true", "; did you mean 'split'?"),
    ("optimizer=sgd", "; did you mean 'client'?"),
    ("strategy=FedAdam", "; did you mean 'server'?"),
    ("alpha=0.1", "; did you mean split = Dirichlet(alpha=...)?"),
    ("mu=0.1", "; did you mean client = FedProx(proximal_mu=...)?"),
    ("epsilon=3.0", "; did you mean privacy = CentralDP(epsilon=...)?"),
    ("patience=3", "; did you mean early_stopping = EarlyStopping(patience=...)?"),
    ("server_momentum=0.9", "; did you mean server = FedAvgM(server_momentum=...)?"),
    ("privacy.epsilon=3", "; privacy is not set, so give the whole object, as in 'privacy=CentralDP(epsilon=3)'"),
    ("server.lr=0.1", "; give the whole object, as in 'server=FedAdam(eta=0.1)'"),
    ("split.alpha=0.1", "; Dirichlet has alpha, LabelDirichlet has alpha"),
    ("model=mlp", "; hidden, activation and loss describe the MLP"),
    ("activation=ReLU", "; did you mean 'relu'?"),
    ("loss=CrossEntropyLoss", "; did you mean 'cross_entropy'?"),
    ("loss=mean_squared_error", "; did you mean 'mse'?"),
    ("dtype=torch.float32", "; did you mean 'float32'?"),
    ("dataset=MNIST", "; did you mean 'mnist'?"),
    ("dataset=cifar10", "; did you mean 'hub'?"),
    ("kernel=numba", "; did you mean 'compiled'?"),
]


@pytest.mark.parametrize(("assignment", "end"), ASSIGNMENTS)
def test_assignments(assignment: str, end: str) -> None:
    assert refusal(lambda: config.apply(Experiment(), [assignment])).endswith(end)


@pytest.mark.parametrize(
    ("given", "end"),
    [
        ({"lr": 0.1}, "; did you mean client = SGD(lr=...)?"),
        ({"clients": 10}, "; did you mean split = IID(num_clients=...)?"),
        ({"epochs": 5}, "; did you mean client = SGD(epochs=...)?"),
        ({"num_rounds": 3}, "; did you mean 'rounds'?"),
        ({"client": {"lr": 0.1}}, '; did you mean client = "SGD(lr=0.1)"?'),
        ({"split": {"num_clients": 10}}, '; did you mean split = "IID(num_clients=10)"?'),
        ({"client": "FedAvg"}, "; did you mean 'SGD'? FedAvg is allowed in the setting server"),
    ],
)
def test_settings_of_a_file(given: dict[str, Any], end: str) -> None:
    assert refusal(lambda: config.experiment(given)).endswith(end)


@pytest.mark.parametrize(
    ("call", "end"),
    [
        (lambda: Experiment(clients=10), "; did you mean split = IID(num_clients=...)?"),  # type: ignore[call-arg]
        (lambda: Experiment(lr=0.1), "; did you mean client = SGD(lr=...)?"),  # type: ignore[call-arg]
        (lambda: Experiment(num_rounds=3), "; did you mean 'rounds'?"),  # type: ignore[call-arg]
        (lambda: Experiment("digits"), "; name the arguments, as in dataset=..."),  # type: ignore[call-arg]
        (lambda: Experiment(client="SGD()"), "; in Python it is an object, without quotes"),  # type: ignore[arg-type]
        (lambda: Experiment(client=SGD), "; did you mean SGD()?"),  # type: ignore[arg-type]
        (lambda: Experiment(client=FedAvg()), "; it is allowed in the setting server"),  # type: ignore[arg-type]
        (lambda: Experiment(server=SCAFFOLD()), "; it is allowed in the setting client"),  # type: ignore[arg-type]
        (lambda: Experiment(server="FedAdam"), "; in Python it is an object, without quotes"),  # type: ignore[arg-type]
        (lambda: Experiment(split="iid"), "; did you mean 'IID'?"),  # type: ignore[arg-type]
        (lambda: Experiment(transforms=[SGD()]), "; it is allowed in the setting client"),  # type: ignore[arg-type]
        (lambda: Experiment(attack=TopK(0.1)), "; it is allowed in the setting transforms"),  # type: ignore[arg-type]
        (lambda: SGD(learning_rate=0.1), "; did you mean 'lr'?"),  # type: ignore[call-arg]
        (lambda: FedProx(mu=1), "; did you mean 'proximal_mu'?"),  # type: ignore[call-arg]
        (lambda: Ditto(mu=1), "; did you mean 'lam'?"),  # type: ignore[call-arg]
        (lambda: IID(n_clients=10), "; did you mean 'num_clients'?"),  # type: ignore[call-arg]
        (lambda: FedAdam(lr=0.1), "; did you mean 'eta'?"),
        (lambda: LabelFlip(ratio=0.1), "; did you mean 'fraction'?"),  # type: ignore[call-arg]
        (lambda: Experiment().run(n_jobs=2), "; did you mean 'workers'?"),  # type: ignore[call-arg]
        (lambda: Experiment().run(engine="threads"), "; did you mean 'in-process'?"),
        (lambda: compare(Experiment(), lr=[0.1, 0.2]), "; did you mean client = SGD(lr=...)?"),
        (lambda: compare(Experiment(), servers=[None]), "; did you mean 'server'?"),
        (
            lambda: compare(Experiment(), clients=[10, 20]),
            "; the number of clients is the split's: split.num_clients, or split = IID(50)",
        ),
        (lambda: compare(Experiment(), seed=3), "; did you mean 'seeds'?"),  # type: ignore[arg-type]
        (lambda: compare(Experiment(), n_jobs=3), "; did you mean 'workers'?"),  # type: ignore[arg-type]
        (lambda: compare(Experiment(), baselines=["centralized"]), "; did you mean 'centralised'?"),
        (lambda: data.load("FashionMNIST"), "; did you mean 'fashion_mnist'?"),
    ],
)
def test_python(call: Callable[[], Any], end: str) -> None:
    assert refusal(call).endswith(end)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ("run exp.toml --rounds 3", '; settings are changed by --set, as in --set "rounds=VALUE"'),
        ("run exp.toml --lr 0.1", '; settings are changed by --set, as in --set "client.lr=VALUE"'),
        ("run exp.toml --num-clients=5", '; settings are changed by --set, as in --set "split.num_clients=VALUE"'),
        ("run exp.toml --server FedAdam", '; settings are changed by --set, as in --set "server=VALUE"'),
        ("run exp.toml --mu 1", '; settings are changed by --set, as in --set "client=FedProx(proximal_mu=...)"'),
        ("run exp.toml --n_jobs 3", "; did you mean '--workers'?"),
        ("run exp.toml --output-dir x", "; did you mean '--out'?"),
        ("compare exp.toml --quux", "unrecognized arguments: --quux"),
        ("train exp.toml", "; did you mean 'run'?"),
    ],
)
def test_the_command_line(arguments: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments.split())
    assert left.value.code == 2
    assert capsys.readouterr().err.endswith(f"{hint} (see fedsim --help)\n")


def test_names_that_nobody_knows_get_no_hint() -> None:
    assert refusal(lambda: config.build("client", "Quux")).endswith("or module:Class")
    assert refusal(lambda: config.apply(Experiment(), ["quux=1"])).endswith("metrics")
    assert refusal(lambda: Dirichlet(50, 0.1, quux=1)).endswith("'quux')")  # type: ignore[call-arg]
    assert checks.suggest("", ["a"]) == checks.suggest("__", ["a"]) == checks.suggest("x" * 200, ["lr"]) == ""


def test_a_hint_is_an_allowed_name() -> None:
    """The same word is another name in another place."""
    assert checks.suggest("learning_rate", ["lr", "eta"]) == "; did you mean 'lr'?"
    assert checks.suggest("learning_rate", ["eta", "tau"]) == "; did you mean 'eta'?"
    assert checks.suggest("learning_rate", ["tau"]) == ""
    assert checks.suggest("LR", ["rl", "lr"]) == "; did you mean 'lr'?"


def test_the_table_has_names_of_fedsim_only() -> None:
    known = {f.name for f in fields(Experiment)} | {
        *COMMANDS,
        *data.DATASETS,
        *LOSSES,
        *ACTIVATIONS,
        *COLUMNS,
        *METRICS,
        *BASELINES,
    }
    known |= {"float32", "float64", "compiled", "in-process", "exclude", "out"}
    known |= {*inspect.signature(compare).parameters, *inspect.signature(Experiment.run).parameters}
    for setting in (*settings.OBJECTS, "server"):
        for name, cls in settings.known_classes(setting)[1].items():
            known |= {name, *([f.name for f in fields(cls)] if is_dataclass(cls) else options_of(cls))}
    known |= {cls.__name__ for cls in Sizes.__subclasses__()}
    assert set(SYNONYMS) <= known
    for name, words in SYNONYMS.items():
        assert all(word == normalised(word) != normalised(name) for word in words.split()), name
