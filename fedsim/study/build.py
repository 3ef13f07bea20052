"""What an experiment describes, made: its data, its split, its model and the client runtime over them."""

from __future__ import annotations

from fedsim.engines.runtime import ClientRuntime
from fedsim.study.experiment import Experiment


def build_runtime(experiment: Experiment) -> ClientRuntime:
    """Load an experiment's data, divide it, and return the runtime that trains its clients.

    Raises
    ------
    DataError, ConfigError
        The dataset cannot be found, or does not fit the experiment's split, loss or kernel.
    """
    dataset = experiment.load_data()
    federated = experiment.federate(dataset)
    model = experiment.make_model(dataset)
    kernel = experiment.kernel_for(model, federated)
    return ClientRuntime(model, federated, experiment.client, experiment.seed, kernel, experiment.transforms)
