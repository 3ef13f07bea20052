"""One experiment: a configuration and a seed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any

from fedsim import data, kernels
from fedsim.arguments import CheckedInit, check_methods, checked_arguments
from fedsim.attacks import Attack
from fedsim.checks import (
    LARGEST,
    check_choice,
    check_flag,
    check_instance,
    check_integer,
    check_path,
    check_real,
    check_seed,
    convert_fields,
    shorten,
    to_builtin_sequence,
)
from fedsim.clients import SGD, ClientStrategy
from fedsim.clients.sgd import numpy_hooks
from fedsim.errors import ConfigError
from fedsim.models import MLP, Model
from fedsim.models.metrics import AnyMetric, check_metrics
from fedsim.objects import short_repr
from fedsim.privacy import CentralDP, ExampleDP
from fedsim.secure import SecureAggregation
from fedsim.splits import IID, FederatedDataset, Split
from fedsim.study.callbacks import Callback, EarlyStopping
from fedsim.study.settings import check_model, check_object, check_server, suggest_setting
from fedsim.updates.transform import UpdateTransform, check_transforms

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy

    from fedsim.engines.engine import Engine
    from fedsim.study.result import Result


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Experiment(CheckedInit):
    """The complete description of one federated-learning run.

    Parameters
    ----------
    dataset : str or Dataset
        A name for `fedsim.data.load`, such as ``"digits"`` or ``"table('my.csv', label='y')"``, or your own arrays.
    data_dir : path, optional
        Folder with data files; default ``$FEDSIM_DATA``, otherwise data is downloaded into the user's cache.
    split : Split
        How training examples are divided among clients.
    hidden : tuple of int
        Width of each hidden layer; () is a linear model.
    activation : {"relu", "tanh", "sigmoid"}
    loss : {"cross_entropy", "binary_cross_entropy", "mse"}
    dtype : {"float32", "float64"}
    model : callable, optional
        Function of the `Dataset` that returns the `fedsim.models.Model` to train. It replaces the MLP of ``hidden``,
        ``activation``, ``loss`` and ``dtype``, and has no TOML form.
    client : ClientStrategy
    server : Strategy or callable, optional
        A server strategy of fedsim, such as ``FedAdam(eta=0.1)``, from whose options each run makes a new object; or a
        Flower ``Strategy`` class, or a ``functools.partial`` of one. Options that are not given and that the class
        takes are set: ``fraction_train``, ``fraction_evaluate``, ``seed`` and minimum node counts of 1. Default:
        fedsim's FedAvg.
    fraction_train : float
        Share of clients trained in each round (the FedAvg paper's C), greater than 0 and at most 1; at least one
        client is trained.
    fraction_evaluate : float
        Share of clients, 0 to 1, that evaluate the new global model, or their personalised model, on their own
        examples after each round.
    test_fraction : float
        Share of each client's examples, at least 0 and less than 1, that are held out for its own evaluation; at least
        one example is for training. With 0, clients evaluate on their training examples.
    rounds : int
        At least 1.
    seed : int
        Seed of weights, split, sampling and shuffling.
    on_failure : {"raise", "exclude"}
        If a client diverges or raises an error, ``"raise"`` ends the run with an error that names the client, and
        ``"exclude"`` excludes the client from the round and records it in `Result.failures`.
    kernel : {"auto", "numpy", "compiled"}
        Implementation of local training; both agree to rounding. ``"auto"`` chooses ``"compiled"`` for large rounds;
        see `fedsim.kernels.choose`.
    weight_divergence : bool
        Also train centrally on all examples, for as many epochs in each round as a client, and record the relative
        distance of the global weights, ``|w - w_central| / |w_central|`` (Zhao et al., 2018, arXiv:1806.00582, section
        3.2). This doubles the time of training.
    min_clients : int
        Minimum number of clients whose updates make a new global model, at most the clients sampled in a round; a
        round with fewer valid updates changes nothing. More than 1 requires a server strategy of fedsim.
    transforms : sequence of UpdateTransform
        Applied in order to the updates of clients; see `fedsim.updates`.
    early_stopping : EarlyStopping, optional
        Ends the run before its last round; see `fedsim.study.callbacks`.
    privacy : CentralDP or ExampleDP, optional
        Differential privacy of clients or of examples; see `fedsim.privacy`. It needs the extra ``privacy``.
    secure_aggregation : SecureAggregation, optional
        The server learns the sum of a round's updates only; see `fedsim.secure`.
    attack : Attack, optional
        Some clients are malicious; see `fedsim.attacks`.
    sensitive : str, optional
        A column of the dataset's groups of people, such as ``"sex"``: the test set, and clients that evaluate, count
        predictions in each group after each round; see `Result.groups`.
    positive : int, optional
        Number of the label that counts as positive in these counts, in the order of `Dataset.label_names`; may be
        omitted with two labels, and is then 1. It has no effect without ``sensitive``.

    metrics : sequence of str or callable
        Metrics besides the loss and the accuracy, of the global model on the test set, and of clients that evaluate on
        their own examples: names in `fedsim.models.metrics.METRICS`, such as ``"macro_f1"``, or functions of labels or
        targets, shape (examples,), and scores as of `Result.scores`, which return a number; see `Result.metrics`.

    Raises
    ------
    ConfigError
        A value is not allowed.
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
    server: Callable[..., Strategy] | Strategy | None = None
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
    early_stopping: EarlyStopping | None = None
    privacy: CentralDP | ExampleDP | None = None
    secure_aggregation: SecureAggregation | None = None
    attack: Attack | None = None
    sensitive: str | None = None
    positive: int | None = None
    metrics: tuple[AnyMetric, ...] = ()

    suggest_argument = staticmethod(suggest_setting)

    def __post_init__(self) -> None:
        convert_fields(self)
        if isinstance(self.dataset, str):
            data.check(self.dataset)
        check_instance("dataset", self.dataset, str | data.Dataset, "a name or a fedsim.data.Dataset")
        if self.data_dir is not None:
            check_path("data_dir", self.data_dir)
        check_object("split", self.split, "a fedsim Split object")
        check_object("client", self.client, "a fedsim ClientStrategy object")
        hidden = to_builtin_sequence(self.hidden)
        check_instance("hidden", hidden, tuple | list, "a list of layer widths")
        object.__setattr__(self, "hidden", tuple(hidden))
        for width in self.hidden:
            check_integer("hidden", width, 1)
        MLP((1, *self.hidden, 1), self.activation, self.loss, self.dtype)
        if self.model is not None:
            self._check_model()
        if self.server is not None:
            object.__setattr__(self, "server", check_server(self.server))
        check_real("fraction_train", self.fraction_train, 0, 1, open_low=True)
        check_real("fraction_evaluate", self.fraction_evaluate, 0, 1)
        check_real("test_fraction", self.test_fraction, 0, 1, open_high=True)
        check_integer("rounds", self.rounds, 1)
        check_seed("seed", self.seed)
        check_choice("on_failure", self.on_failure, ("raise", "exclude"))
        check_choice("kernel", self.kernel, kernels.KERNELS)
        check_integer("min_clients", self.min_clients, 1)
        check_instance("transforms", self.transforms, tuple | list, "a list of transforms, such as [TopK(0.1)]")
        object.__setattr__(self, "transforms", tuple(self.transforms))
        for transform in self.transforms:
            check_object("transforms", transform, "a transform, such as TopK(0.1)", "an item of transforms")
        check_transforms(self.transforms)
        check_flag("weight_divergence", self.weight_divergence)
        check_object("early_stopping", self.early_stopping, "an EarlyStopping object")
        check_object("privacy", self.privacy, "a CentralDP or ExampleDP object")
        check_object("secure_aggregation", self.secure_aggregation, "a SecureAggregation object")
        check_object("attack", self.attack, "an object of a class in fedsim.attacks")
        check_instance("sensitive", self.sensitive, str | None, "the name of a column")
        if self.positive is not None:
            check_integer("positive", self.positive)
        object.__setattr__(self, "metrics", check_metrics(self.metrics))

    def _values(self) -> list[Any]:
        """Return the values of the fields; a partial as a tuple of its parts, which can be compared."""
        values = [getattr(self, f.name) for f in fields(self)]
        return [(v.func, v.args, v.keywords) if isinstance(v, partial) else v for v in values]

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if isinstance(other, Experiment) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.seed, self.rounds, self.hidden, repr(self.split), repr(self.client)))

    def __repr__(self) -> str:
        return short_repr(self)

    @checked_arguments
    def run(
        self,
        *,
        workers: int | None = None,
        block_size: int | None = None,
        callbacks: Sequence[Callback] = (),
        verbose: bool = False,
        directory: str | os.PathLike[str] | None = None,
        engine: str | Callable[..., Engine] = "in-process",
    ) -> Result:
        """Run the experiment. These arguments do not change the bits of the result.

        Parameters
        ----------
        workers : int, optional
            Number of threads; default one per available core with the compiled kernel, one with the NumPy kernel.
        block_size : int, optional
            Number of clients trained together; default by the size of the model.
        callbacks : sequence of Callback
            Called after each round; see `fedsim.study.callbacks`.
        verbose : bool
            Show Flower's log.
        directory : path, optional
            Where to write the configuration, checkpoints and results. If it has an interrupted run of the same
            experiment, the run continues from the last checkpoint and gives the bits of an uninterrupted run. Earlier
            results are moved to a numbered folder beside it.
        engine : {"in-process", "ray"} or callable
            Where clients run: a name, the class of an engine, or a partial of one, such as
            ``functools.partial(RayEngine, address="auto")``.

        Raises
        ------
        ConfigError
            The directory cannot be written, another run is writing there, or it has an interrupted run of another
            experiment.
        DivergenceError
            A client that is not excluded, or the global model, diverged.
        DataError
            The dataset cannot be found or cannot be trained on.
        """
        if directory is not None and self.model is not None:
            raise ConfigError("directory cannot be given with a model of your own, which has no TOML form")
        from fedsim.study.runner import run

        return run(self, workers, block_size, callbacks, verbose, directory, engine)

    def load_data(self) -> data.Dataset:
        """Return the dataset."""
        return data.load(self.dataset, self.data_dir) if isinstance(self.dataset, str) else self.dataset

    def federate(self, dataset: data.Dataset) -> FederatedDataset:
        """Return the dataset split among the clients."""
        return self.split.federate(dataset, self.seed).with_tests(self.test_fraction, self.seed)

    def _check_model(self) -> None:
        check_model(self.model)
        for replaced in ("hidden", "activation", "loss", "dtype"):
            if getattr(self, replaced) != type(self).__dataclass_fields__[replaced].default:
                raise ConfigError(f"{replaced} and model are both given; allowed: one, because model replaces the MLP")

    def kernel_for(self, model: Model, federated: FederatedDataset) -> str:
        """Return the kernel that trains; for ``"auto"``, it depends on the size of a round."""
        return kernels.choose(self.kernel, numpy_hooks(self.client), model, self.examples_per_round(federated))

    def examples_per_round(self, federated: FederatedDataset) -> float:
        """Return the expected number of examples on which a round's clients train, including repetitions."""
        examples = self.client.examples_per_round(federated.partition.sizes / federated.windows).sum()
        return self.fraction_train * float(examples)

    def make_model(self, dataset: data.Dataset) -> Model:
        """Return the model for a dataset.

        Raises
        ------
        ConfigError
            The model or its loss does not fit the dataset, or the model has too many parameters.
        """
        model = self.model(dataset) if self.model else self._mlp(dataset)
        if not isinstance(model, Model):
            raise ConfigError(f"model returned {shorten(model)}; allowed: a fedsim.models.Model")
        check_methods(model, Model)
        if model.num_parameters > LARGEST:
            cause = "model" if self.model else f"hidden is {shorten(self.hidden)}, which"
            raise ConfigError(f"{cause} makes {model.num_parameters:,} parameters; allowed: at most {LARGEST:,}")
        return model

    def _mlp(self, dataset: data.Dataset) -> MLP:
        """Return the MLP for a dataset, with one output for regression and for binary cross-entropy on two classes."""
        shape = dataset.x_train.shape[1:]
        if len(shape) > 1:
            raise ConfigError(
                f"{dataset.name} has examples of shape {shape}, and the MLP takes features in one dimension"
            )
        if dataset.regression and self.loss != "mse":
            raise ConfigError(f"loss is {self.loss!r}, and {dataset.name} has real-valued targets; allowed: mse")
        single = self.loss == "binary_cross_entropy" and dataset.num_classes == 2
        outputs = 1 if single else dataset.num_classes
        return MLP((*shape, *self.hidden, outputs), self.activation, self.loss, self.dtype)
