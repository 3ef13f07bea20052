"""The server's own training, on a few clean examples, which FLTrust compares updates with."""

from __future__ import annotations

import numpy as np

from fedsim.clients import SGD
from fedsim.clients.private import private_mask
from fedsim.engines.runtime import ClientRuntime
from fedsim.errors import ConfigError, DivergenceError
from fedsim.models import Array
from fedsim.servers import FLTrust
from fedsim.splits import FederatedDataset, Partition
from fedsim.streams import Purpose, generator
from fedsim.study.experiment import Experiment


class RootTraining:
    """SGD on root examples, with the hyperparameters of the clients, in the server's process.

    Parameters
    ----------
    experiment : Experiment
        Its data are loaded and split again, so that the root examples are clean if the clients' are attacked. They are
        drawn from all clients' training examples together, each with the same probability.
    clients : ClientRuntime
    count : int
        Number of root examples.

    Raises
    ------
    ConfigError
        The client strategy does not extend SGD, or there are fewer examples.
    """

    def __init__(self, experiment: Experiment, clients: ClientRuntime, count: int) -> None:
        seed = experiment.seed
        clean = experiment.federate(experiment.load_data())
        examples = np.unique(clean.partition.indices)
        if count > len(examples):
            raise ConfigError(
                f"FLTrust's root is {count}; allowed: at most {len(examples)}, the clients' training examples"
            )
        chosen = np.sort(generator(seed, Purpose.DEFENCE).choice(examples, count, replace=False))
        root = FederatedDataset(clean.dataset, Partition.from_sizes(chosen, np.array([count]))).replace_examples()
        self._runtime = ClientRuntime(clients.model, root, SGD.of(clients.client), seed, clients.kernel_name)
        self._runtime.prepare()
        self._private = private_mask(clients.client, clients.model)

    def train(self, server_round: int, weights: Array) -> Array:
        """Return the weights after a round's training from the given ones, shape (parameters,).

        Parameters that are private to clients keep their values: no client sends a change of them, and they would add
        to the norm of the server's update.

        Raises
        ------
        DivergenceError
            The weights or the loss are not finite.
        """
        task = self._runtime.task(weights, server_round, purpose=Purpose.DEFENCE)
        update = self._runtime.train(task, np.zeros(1, np.intp), lambda clients: {})
        for error in update.failed.values():
            raise error
        trained: Array = update.weights[0]
        if not (np.isfinite(trained).all() and np.isfinite(update.train_loss[0])):
            raise DivergenceError(
                f"training on FLTrust's root examples diverged in round {server_round} with {task.strategy}; a smaller "
                "lr usually helps"
            )
        return np.where(self._private, weights, trained)


def add_root_training(experiment: Experiment, strategy: object, clients: ClientRuntime) -> None:
    """Give a server strategy that is FLTrust its root examples."""
    if isinstance(strategy, FLTrust):
        strategy.train_on_root = RootTraining(experiment, clients, strategy.root).train
