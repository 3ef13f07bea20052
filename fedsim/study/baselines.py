"""What a comparison is measured against: training without federation, and with an average after every step."""

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

    Each round is the client's number of local epochs over all examples that clients hold, as they hold them, by SGD
    with its learning rate, batch size, momentum and weight decay.
    """
    client = SGD.of(experiment.client)
    alone: dict[str, Any] = {"server": None, "fraction_train": 1.0, "min_clients": 1, "transforms": ()}
    return replace(experiment, split=Pooled(experiment.split), client=client, **alone)


def data_parallel(experiment: Experiment) -> Experiment:
    """Return the experiment as synchronous data-parallel SGD, the article's distributed learning.

    In each round every client computes the gradient of one batch of its shard and the server steps along their
    average: as many messages as federated averaging over the same rounds, and one step for each.
    """
    from fedsim.servers import FedAvg, FedAvgM

    client = SGD.of(experiment.client)
    server = partial(FedAvgM, server_momentum=client.momentum) if client.momentum else FedAvg
    worker = FedSGD.of(client, steps=1, momentum=0.0)
    return replace(experiment, client=worker, server=server, fraction_train=1.0)


#: Name, as `compare` and a study file take it -> what makes the baseline of an experiment.
BASELINES: dict[str, Callable[[Experiment], Experiment]] = {"centralised": centralised, "data-parallel": data_parallel}
