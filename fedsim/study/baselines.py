"""Baselines of a comparison: training without federation, and averaging gradients after every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from fedsim.clients import SGD, FedSGD
from fedsim.splits import Pooled
from fedsim.study.experiment import Experiment


def centralised(experiment: Experiment) -> Experiment:
    """Return the experiment with all training examples in one place: the upper bound.

    In each round, SGD with the hyperparameters of the client strategy trains on the examples of all clients together,
    for as many epochs as a client does. Nobody attacks.
    """
    pooled: dict[str, Any] = {"split": Pooled(experiment.split), "client": SGD.of(experiment.client), "attack": None}
    return replace(experiment, **pooled, server=None, fraction_train=1.0, min_clients=1, transforms=())


def data_parallel(experiment: Experiment) -> Experiment:
    """Return the experiment as synchronous data-parallel SGD, the article's distributed learning.

    In each round, every client computes the gradient of one batch of its shard, and the server makes one step with the
    average gradient. The number of messages is that of federated averaging over the same rounds.
    """
    from fedsim.servers import FedAvg, FedAvgM

    client = SGD.of(experiment.client)
    server = partial(FedAvgM, server_momentum=client.momentum) if client.momentum else FedAvg
    worker = FedSGD.of(client, steps=1, momentum=0.0)
    return replace(experiment, client=worker, server=server, fraction_train=1.0)


#: Name in `compare` and in a study file -> function that returns the baseline of an experiment.
BASELINES: dict[str, Callable[[Experiment], Experiment]] = {"centralised": centralised, "data-parallel": data_parallel}
