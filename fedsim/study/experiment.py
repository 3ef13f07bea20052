"""One experiment: a configuration and a seed, run through a Flower server, giving a Result."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim import data, kernels
from fedsim.checks import (
    LARGEST,
    check_choice,
    check_flag,
    check_integer,
    check_path,
    check_real,
    check_seed,
    convert_fields,
    shorten,
    to_builtin,
    to_builtin_sequence,
)
from fedsim.clients import SGD, ClientStrategy
from fedsim.clients.check_hooks import check_signatures
from fedsim.clients.server_hooks import ServerHooks, needs_server_hooks
from fedsim.clients.sgd import numpy_hooks
from fedsim.errors import ConfigError
from fedsim.models import MLP, Model
from fedsim.splits import IID, FederatedDataset, Split
from fedsim.updates.transform import UpdateTransform, check_transforms

if TYPE_CHECKING:
    import pandas as pd
    from flwr.serverapp.strategy import Strategy

    from fedsim.engines.engine import Engine


def history_columns(score: str) -> tuple[str, ...]:
    """Return the columns of `Result.history`, in order, for a score: ``"accuracy"`` or ``"r2"``."""
    return (
        "round",
        "test_loss",
        f"test_{score}",
        "train_loss",
        "local_loss",
        f"local_{score}",
        "clients",
        "failures",
        "client_drift",
        "gradient_diversity",
        "update_cosine",
        "weight_divergence",
        "bytes_up",
        "bytes_down",
        "seconds",
    )


@dataclass(frozen=True, eq=False)
class Result:
    """What an experiment found.

    Attributes
    ----------
    experiment : Experiment
    history : DataFrame
        One row per round, round 0 being the untrained model: ``round, test_loss, test_accuracy, train_loss`` (mean
        over the cohort's examples as they were trained on), ``local_loss, local_accuracy`` (mean over the examples
        of the clients that evaluated; NaN if none did), ``clients`` (aggregated), ``failures`` (left out), how far
        clients went apart (``client_drift, gradient_diversity, update_cosine``; see `fedsim.rounds.drift.Drift`),
        ``weight_divergence`` (from training on all examples in one place; NaN unless asked for), ``bytes_up,
        bytes_down`` (serialised arrays, all clients together), ``seconds`` (wall clock of the round). For regression
        ``test_r2`` and ``local_r2`` are in the place of accuracies: ``1 - loss / variance of the test targets``.
    clients : DataFrame
        One row per client and evaluated round: ``round, partition_id, num_examples, loss, accuracy`` of the weights
        that the client would use, on its own examples; empty unless ``fraction_evaluate`` is positive.
    weights : dict of ndarray
        The named arrays of the final global model; for the MLP ``W1, b1, W2, b2, ...``.
    kernel : {"numpy", "compiled"}
        What trained the clients.
    score : {"accuracy", "r2"}
        What is measured: accuracy, or for regression R squared.
    failures : DataFrame
        One row per client that was left out of a round: ``round, partition_id, reason``.
    """

    experiment: Experiment
    history: pd.DataFrame
    clients: pd.DataFrame
    weights: dict[str, NDArray[Any]]
    kernel: str
    score: str
    failures: pd.DataFrame

    @property
    def test_scores(self) -> NDArray[np.float64]:
        """Test accuracy, or R squared, by round from round 0."""
        scores: NDArray[np.float64] = self.history[f"test_{self.score}"].to_numpy(dtype=float)
        return scores

    @property
    def final_accuracy(self) -> float:
        """Test accuracy after the last round; R squared for regression."""
        return float(self.test_scores[-1])

    def rounds_to(self, target: float) -> float:
        """Return after how many rounds test accuracy (or R squared) passes `target`, or NaN if it never does.

        As the FedAvg paper counts: each round's accuracy is the best so far, interpolated linearly between rounds.
        """
        best = np.maximum.accumulate(self.test_scores)
        above = np.flatnonzero(best >= target)
        if not len(above):
            return float("nan")
        k = int(above[0])
        if k == 0:
            return 0.0
        return float(k - 1 + (target - best[k - 1]) / (best[k] - best[k - 1]))


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One federated-learning run, fully described.

    Parameters
    ----------
    dataset : str or Dataset
        What `fedsim.data.load` takes, such as ``"digits"`` or ``"table('my.csv', label='y')"``, or your own arrays.
    data_dir : path, optional
        Where data files are kept; default ``$FEDSIM_DATA``, else downloads into the user's cache.
    split : Split
        How training examples are divided among clients.
    hidden : tuple of int
        Width of each hidden layer; () is a linear model.
    activation : {"relu", "tanh", "sigmoid"}
    loss : {"cross_entropy", "binary_cross_entropy", "mse"}
    dtype : {"float32", "float64"}
    model : callable, optional
        Function of the `Dataset` that returns the `fedsim.models.Model` to train, in place of the MLP of ``hidden``,
        ``activation``, ``loss`` and ``dtype``. It has no TOML form.
    client : ClientStrategy
        The client strategy.
    server : callable
        A Flower ``Strategy`` class, or ``functools.partial`` of one with its own options. It is called with
        ``fraction_train``, ``fraction_evaluate``, minimum node counts of 1 and, if it takes one, ``seed``. Default:
        fedsim's FedAvg.
    fraction_train : float
        Share of clients trained in each round (the FedAvg paper's C), greater than 0 and at most 1; at least one.
    fraction_evaluate : float
        Share of clients that evaluate after each round on their own examples, 0 to 1: the new global model, or what
        a personalised strategy makes of it.
    test_fraction : float
        Share of each client's examples that are kept from training for its own evaluation, at least 0 and less than
        1; a client keeps at least one for training. With 0 it evaluates on its training examples.
    rounds : int
        At least 1.
    seed : int
        Of weights, split, sampling and shuffling.
    on_failure : {"raise", "exclude"}
        How a client is handled whose training diverges or raises an error: the run ends with an error that names it,
        or it is left out of the round and recorded in `Result.failures`.
    kernel : {"auto", "numpy", "compiled"}
        What trains the clients; the two agree to rounding. auto is compiled where the configuration makes large
        rounds; see `fedsim.kernels.choose`.
    weight_divergence : bool
        Also train on all examples in one place, as long in each round as a client does, and record how far the global
        weights are from those: ``|w - w_central| / |w_central|`` (Zhao et al., 2018, arXiv:1806.00582, section 3.2).
        It takes as long again.
    min_clients : int
        Fewest clients whose updates make a new global model, at most the clients sampled in a round; a round with
        fewer changes nothing. More than 1 needs a server of fedsim.
    transforms : sequence of UpdateTransform
        Applied one after another to the updates that clients send; see `fedsim.updates`.

    Raises
    ------
    ConfigError
        For any value outside these.
    """

    dataset: str | data.Dataset = "digits"
    data_dir: str | os.PathLike[str] | None = None
    split: Split = field(default_factory=lambda: IID(50))
    hidden: tuple[int, ...] = (32,)
    activation: str = "relu"
    loss: str = "cross_entropy"
    dtype: str = "float32"
    model: Callable[[data.Dataset], Model] | None = None
    client: ClientStrategy = field(default_factory=SGD)
    server: Callable[..., Strategy] | None = None
    fraction_train: float = 1.0
    fraction_evaluate: float = 0.0
    test_fraction: float = 0.0
    rounds: int = 20
    seed: int = 0
    on_failure: str = "raise"
    kernel: str = "auto"
    weight_divergence: bool = False
    min_clients: int = 1
    transforms: tuple[UpdateTransform, ...] = ()

    def __post_init__(self) -> None:
        convert_fields(self)
        if isinstance(self.dataset, str):
            data.check(self.dataset)
        elif not isinstance(self.dataset, data.Dataset):
            raise ConfigError(f"dataset is {shorten(self.dataset)}; allowed: a name or a fedsim.data.Dataset")
        if self.data_dir is not None:
            check_path("data_dir", self.data_dir)
        for name, kind in (("split", Split), ("client", ClientStrategy)):
            if not isinstance(getattr(self, name), kind):
                raise ConfigError(f"{name} is {shorten(getattr(self, name))}; allowed: a fedsim {kind.__name__} object")
        check_signatures(self.client)
        object.__setattr__(self, "hidden", to_builtin_sequence(self.hidden))
        if not isinstance(self.hidden, tuple | list):
            raise ConfigError(f"hidden is {shorten(self.hidden)}; allowed: a list of layer widths")
        object.__setattr__(self, "hidden", tuple(self.hidden))
        for width in self.hidden:
            check_integer("hidden", width, 1)
        MLP((1, *self.hidden, 1), self.activation, self.loss, self.dtype)
        self._check_model()
        if self.server is not None and not callable(self.server):
            raise ConfigError(f"server is {shorten(self.server)}; allowed: a Flower Strategy class or a partial of one")
        if isinstance(self.server, partial) and to_builtin(self.server.keywords) is not self.server.keywords:
            plain_server = partial(self.server.func, *self.server.args, **to_builtin(self.server.keywords))
            object.__setattr__(self, "server", plain_server)
        check_real("fraction_train", self.fraction_train, 0, 1, open_low=True)
        check_real("fraction_evaluate", self.fraction_evaluate, 0, 1)
        check_real("test_fraction", self.test_fraction, 0, 1, open_high=True)
        check_integer("rounds", self.rounds, 1)
        check_seed("seed", self.seed)
        check_choice("on_failure", self.on_failure, ("raise", "exclude"))
        check_choice("kernel", self.kernel, kernels.KERNELS)
        check_integer("min_clients", self.min_clients, 1)
        if isinstance(self.transforms, UpdateTransform) or not isinstance(self.transforms, tuple | list):
            raise ConfigError(
                f"transforms is {shorten(self.transforms)}; allowed: a list of transforms, such as [TopK(0.1)]"
            )
        object.__setattr__(self, "transforms", tuple(self.transforms))
        for transform in self.transforms:
            if not isinstance(transform, UpdateTransform):
                raise ConfigError(f"transforms has {shorten(transform)}; allowed: transforms, such as TopK(0.1)")
        check_transforms(self.transforms)
        check_flag("weight_divergence", self.weight_divergence)

    def run(
        self,
        *,
        workers: int | None = None,
        block_size: int | None = None,
        on_round: Callable[[Mapping[str, float]], None] | None = None,
        verbose: bool = False,
        directory: str | os.PathLike[str] | None = None,
        engine: str | Callable[..., Engine] = "in-process",
    ) -> Result:
        """Run it; the same experiment gives the same bits, whatever the arguments here.

        Parameters
        ----------
        workers : int, optional
            Threads; default one per available core with the compiled kernel, one with the NumPy kernel.
        block_size : int, optional
            Clients trained together; default by the size of the model.
        on_round : callable, optional
            Called with each row of the history as it is known.
        verbose : bool
            Show Flower's log.
        directory : path, optional
            Where to keep the configuration, checkpoints and results. If this very experiment was interrupted there,
            by Ctrl-C or by force, it goes on from the last checkpoint to the bits of an uninterrupted run. Earlier
            results are kept beside it.
        engine : {"in-process", "ray"} or callable
            Where clients run; or the class of an engine, or a partial of one:
            ``functools.partial(RayEngine, address="auto")``.

        Raises
        ------
        ConfigError
            The directory cannot be written, another run is writing there, or it holds another experiment's
            interrupted run.
        DivergenceError
            A client's training (unless excluded) or the global model left the finite numbers or blew up.
        DataError
            The dataset cannot be found or is not fit to train on.
        """
        if directory is not None and self.model is not None:
            raise ConfigError("directory cannot be given with a model of your own, which has no TOML form")
        from fedsim.study.runner import execute

        return execute(self, workers, block_size, on_round or (lambda row: None), verbose, directory, engine)

    def load_data(self) -> data.Dataset:
        """Return the dataset."""
        return data.load(self.dataset, self.data_dir) if isinstance(self.dataset, str) else self.dataset

    def federate(self, dataset: data.Dataset) -> FederatedDataset:
        """Return the dataset as clients hold it."""
        return self.split.federate(dataset, self.seed).with_tests(self.test_fraction, self.seed)

    def _check_model(self) -> None:
        if self.model is None:
            return
        if not callable(self.model):
            raise ConfigError(f"model is {shorten(self.model)}; allowed: a function of a Dataset that returns a Model")
        for replaced in ("hidden", "activation", "loss", "dtype"):
            default = type(self).__dataclass_fields__[replaced].default
            if getattr(self, replaced) != default:
                raise ConfigError(f"{replaced} configures the MLP, which model replaces; allowed: one of the two")

    def kernel_for(self, model: Model, federated: FederatedDataset) -> str:
        """Return the kernel that trains: the one requested, or for ``"auto"`` by the size of a round."""
        examples = self.client.examples_per_round(federated.partition.sizes / federated.windows).sum()
        return kernels.choose(self.kernel, numpy_hooks(self.client), model, self.fraction_train * float(examples))

    def make_model(self, dataset: data.Dataset) -> Model:
        """Return the model for a dataset.

        Raises
        ------
        ConfigError
            The model or its loss does not fit the dataset, or it has too many parameters.
        """
        model = self.model(dataset) if self.model else self._mlp(dataset)
        if not isinstance(model, Model):
            raise ConfigError(f"model returned {shorten(model)}; allowed: a fedsim.models.Model")
        if model.num_parameters > LARGEST:
            hidden = "model" if self.model else f"hidden is {shorten(self.hidden)}, which"
            raise ConfigError(f"{hidden} makes {model.num_parameters:,} parameters; allowed: at most {LARGEST:,}")
        return model

    def _mlp(self, dataset: data.Dataset) -> MLP:
        """Return the MLP for a dataset; regression, and binary cross-entropy on two classes, have one output."""
        if dataset.x_train.ndim > 2:
            raise ConfigError(
                f"{dataset.name} has examples of shape {dataset.x_train.shape[1:]}, and the MLP takes features in one "
                "dimension; allowed: a model of your own, or reshaped examples"
            )
        if dataset.regression and self.loss != "mse":
            raise ConfigError(f"loss is {self.loss!r}, and {dataset.name} has real-valued targets; allowed: mse")
        single = self.loss == "binary_cross_entropy" and dataset.num_classes == 2
        outputs = 1 if single else dataset.num_classes
        return MLP((dataset.x_train.shape[1], *self.hidden, outputs), self.activation, self.loss, self.dtype)

    def strategy(self, server_hooks: ServerHooks | None = None, num_clients: int | None = None) -> Strategy:
        """Return a fresh server strategy, which calls the client strategy's server hooks if it can.

        Parameters
        ----------
        server_hooks : ServerHooks, optional
        num_clients : int, optional
            Refuse a strategy that waits for more clients than there are.

        Raises
        ------
        ConfigError
            It cannot be made, or does not support the server hooks or groups that the client strategy needs.
        """
        from fedsim.servers.fedavg import FedAvg
        from fedsim.servers.options import MINIMUM

        make: Callable[..., Strategy] = self.server or FedAvg
        cls = make.func if isinstance(make, partial) else make
        name = getattr(cls, "__name__", repr(cls))
        settings: dict[str, Any] = {
            "fraction_train": self.fraction_train,
            "fraction_evaluate": self.fraction_evaluate,
            "seed": self.seed,
            **dict.fromkeys(MINIMUM, 1),
        }
        if isinstance(cls, type) and issubclass(cls, FedAvg):
            settings |= {"server_hooks": server_hooks, "min_clients": self.min_clients}
            if self.client.grouped:
                cls.check_groups(type(self.client).__name__)
        elif self.min_clients > 1:
            raise ConfigError(f"min_clients is {self.min_clients}, which the server {name} does not heed; allowed: 1")
        elif server_hooks and needs_server_hooks(self.client):
            raise ConfigError(
                f"client {type(self.client).__name__} has server hooks, which the server {name} does not call; "
                "allowed: a server of fedsim.servers or a subclass of one"
            )
        own = make.keywords if isinstance(make, partial) else {}
        accepted = _parameters(cls)
        _check_options(cls, name, own)
        settings = {k: v for k, v in settings.items() if k in accepted and k not in own}
        try:
            made = make(**settings)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"server {name} cannot be made: {error}") from None
        for option in MINIMUM:
            least = getattr(made, option, 0)
            if num_clients is not None and least > num_clients:
                raise ConfigError(
                    f"{name}'s {option} is {least}; allowed: at most {num_clients}, the number of clients"
                )
        return made


def _check_options(cls: Any, name: str, options: Mapping[str, Any]) -> None:
    """Check a server's options: those that fedsim knows, and of Flower's own classes all numbers, flags and names."""
    from fedsim.servers.options import check_flower_options

    check_flower_options(name, options)
    if not getattr(cls, "__module__", "").startswith("flwr."):
        return  # fedsim's classes, and the user's, check their own
    for option, parameter in inspect.signature(cls).parameters.items():
        field, kind = f"{name}'s {option}", parameter.annotation
        if option not in options:
            continue
        if kind in (float, "float"):
            check_real(field, options[option])
        elif kind in (int, "int"):
            check_integer(field, options[option])
        elif kind in (str, "str") and not isinstance(options[option], str):
            raise ConfigError(f"{field} is {shorten(options[option])}; allowed: text")
        elif option.endswith(("_fn", "_rule")) and not (options[option] is None or callable(options[option])):
            raise ConfigError(f"{field} is {shorten(options[option])}; allowed: a function")


def _parameters(make: Callable[..., Any]) -> set[str]:
    """Return the names a class or function takes; what a class hands on by ``**options`` is what its bases take."""
    from fedsim.servers.options import MINIMUM

    found: set[str] = set()
    for part in make.__mro__ if isinstance(make, type) else [make]:
        if isinstance(part, type) and "__init__" not in vars(part):
            continue
        parameters = inspect.signature(vars(part)["__init__"] if isinstance(part, type) else part).parameters
        found |= set(parameters)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return found
    return found if isinstance(make, type) else found | {"fraction_train", "fraction_evaluate", "seed", *MINIMUM}
