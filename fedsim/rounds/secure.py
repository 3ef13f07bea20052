"""Training of a cohort under secure aggregation: the server learns the mean of the updates only.

The outcome gets an update in which every client has the mean weights, arrays and loss, so that its mean is the right
one, and whose norms are not known.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.clients.task import Task, Update
from fedsim.engines.engine import Engine
from fedsim.engines.isolation import concatenate
from fedsim.errors import ConfigError, FedsimError
from fedsim.rounds.outcome import RoundOutcome
from fedsim.rounds.statistics import RoundStatistics
from fedsim.rounds.validity import ValidityChecks
from fedsim.secure.clients import CHANGE, UP
from fedsim.secure.server import SecureSum
from fedsim.secure.settings import MIN_CLIENTS

#: The means of the updates' arrays, by name, and of the losses.
Mean = tuple[dict[str, NDArray[Any]], float]


def train_securely(
    engine: Engine,
    task: Task,
    clients: NDArray[np.intp],
    outcome: RoundOutcome,
    checks: ValidityChecks,
    statistics: RoundStatistics,
) -> None:
    """Train clients, and add the mean of their updates to the outcome; parameters as for `run_round`."""
    secure = engine.runtime.secure
    assert secure
    aggregator = outcome.aggregation.aggregator
    if outcome.keeps_rows or aggregator.needs == "rows":
        reader = "the server strategy, which reads replies," if outcome.keeps_rows else type(aggregator).__name__
        raise ConfigError(f"secure aggregation shows the server the sum of updates only, and {reader} needs each")
    settings, failed = secure.settings, statistics.failed
    total = SecureSum(settings, partial(engine.exchange, task), task.seed, task.round)
    shares = task.partition.sizes[clients] / task.partition.sizes[clients].max()
    weights = np.stack([shares if secure.clip is None else np.ones(len(shares)), shares], axis=1)
    start = time.perf_counter()
    total.share_keys(clients, weights)
    seconds = time.perf_counter() - start
    for client, error in total.failed.items():
        checks.fail(client, error, failed)
    if not len(total.clients):
        reason = f"fewer than {MIN_CLIENTS} clients shared keys for secure aggregation"
        failed |= {client: reason for client in clients.tolist() if client not in failed}
    lost = [client for client in total.clients.tolist() if settings.drops_out(client, task.seed, task.round)]
    failed |= dict.fromkeys(lost, f"it dropped out (dropout = {settings.dropout:g})")
    sending = total.clients[~np.isin(total.clients, lost)]
    blocks = []
    for block in engine.train(task, sending) if len(sending) else ():
        checks.record_failures(block, failed)
        if len(block.partition_ids):
            statistics.add_bytes_up(block, 0)
            total.add(block)
            blocks.append(replace(block, encoded={}))
    start = time.perf_counter()
    mean, reason = _unmask(total, task, checks)
    statistics.secure_seconds = seconds + time.perf_counter() - start
    statistics.secure_bytes = total.bytes_down + total.bytes_up
    statistics.bytes_down += total.bytes_down
    statistics.bytes_up += total.bytes_up
    if mean is None:
        received = [int(client) for block in blocks for client in block.partition_ids]
        failed |= dict.fromkeys(received, reason)
        outcome.not_recovered = len(received)
    else:
        outcome.add(_with_mean(concatenate(blocks), *mean, task, secure.shared))


def _unmask(total: SecureSum, task: Task, checks: ValidityChecks) -> tuple[Mean | None, str]:
    """Return the mean of the updates and of the losses; or None, and why there is none."""
    reason = "too many clients dropped out"
    try:
        if mean := total.mean():
            checks.check_mean_loss(task, mean[1])
            return mean, ""
    except FedsimError as error:
        if checks.on_failure == "raise":
            raise
        reason = str(error)
    return None, "; ".join([reason, *(error.reason for error in list(total.unmask_failed.values())[:1])])


def _with_mean(
    updates: Update, values: Mapping[str, NDArray[Any]], loss: float, task: Task, shared: NDArray[np.bool_]
) -> Update:
    """Return updates in which every client has the mean weights, arrays and loss."""
    clients, weights = len(updates.partition_ids), task.global_weights.astype(np.float64)
    weights[shared] += values[CHANGE]

    def for_all(value: NDArray[Any]) -> NDArray[Any]:
        return np.broadcast_to(value.astype(task.model.dtype), (clients, *value.shape))

    return replace(
        updates,
        weights=for_all(weights),
        train_loss=np.full(clients, loss),
        up={name.removeprefix(UP): for_all(value) for name, value in values.items() if name != CHANGE},
    )
