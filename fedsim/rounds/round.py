"""One round, from the sampled cohort to an outcome that is accepted or rejected.

    cohort        clients in cohort order, and their task: the global model, the round, the client strategy
    engine.train  blocks of clients: local training, then each transform's `on_client` and `on_server`
    (attack       malicious clients that see the updates of others, once all are there, replace theirs)
    keep_valid    clients that failed or diverged are excluded, and the reason is recorded
    outcome.add   the aggregation of the server strategy sums the updates of the block, or keeps them
    commit        if there are enough updates: client state and statistics are stored, once

A rejected round changes no state; its bytes, failures and evaluations are recorded. The server strategy then reads the
outcome and makes its step.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from flwr.app import MessageType
from numpy.typing import NDArray

from fedsim.clients.task import Task, Update
from fedsim.engines.engine import Engine
from fedsim.engines.isolation import concatenate
from fedsim.flower.records import array_bytes
from fedsim.rounds.outcome import Cohort, RoundOutcome
from fedsim.rounds.secure import train_securely
from fedsim.rounds.statistics import RoundStatistics
from fedsim.rounds.validity import ValidityChecks
from fedsim.splits.names import describe_client


def run_round(
    engine: Engine, outcome: RoundOutcome, checks: ValidityChecks, statistics: RoundStatistics, model_bytes: int
) -> None:
    """Train or evaluate the cohorts of an outcome, and store the changes of an accepted round.

    Parameters
    ----------
    engine : Engine
    outcome : RoundOutcome
        Empty; receives the updates, the evaluations and the failures.
    checks : ValidityChecks
    statistics : RoundStatistics
        Extended.
    model_bytes : int
        Bytes of the weights that a client and the server exchange if no transform encodes them.
    """
    for cohort in outcome.cohorts:
        down = sum(array_bytes(values) for values in cohort.task.down.values())
        statistics.bytes_down += len(cohort.clients) * (model_bytes + down)
        if cohort.kind == MessageType.TRAIN:
            train(engine, cohort, outcome, checks, statistics, model_bytes)
        else:
            evaluate(engine, cohort, outcome, checks, statistics)
    outcome.failed |= statistics.failed
    statistics.evaluations += outcome.evaluations
    if not outcome.accepted:
        statistics.rejected = outcome.clients + outcome.not_recovered, outcome.min_clients
    elif outcome.updates:
        commit(engine, outcome, statistics)


def train(
    engine: Engine,
    cohort: Cohort,
    outcome: RoundOutcome,
    checks: ValidityChecks,
    statistics: RoundStatistics,
    model_bytes: int,
) -> None:
    """Train a cohort and add its valid updates to the outcome."""
    task = cohort.task
    empty, names = task.partition.sizes[cohort.clients] == 0, task.client_names
    reasons = {int(k): f"{describe_client(k, names)} has no examples to train on" for k in cohort.clients[empty]}
    outcome.failed |= reasons
    before = engine.runtime.federated.sizes_before  # a client that the split has removed has not failed
    statistics.failed |= {client: reason for client, reason in reasons.items() if before is None or not before[client]}
    if empty.all():
        return
    statistics.trained.append((task, cohort.clients[~empty]))
    if engine.runtime.secure:
        train_securely(engine, task, cohort.clients[~empty], outcome, checks, statistics)
        return
    for block in train_with_attack(engine, task, cohort.clients[~empty], checks, statistics):
        update = checks.keep_valid(task, block, statistics.failed)
        if len(update.partition_ids):
            statistics.add_bytes_up(update, model_bytes)
            outcome.add(update)


def train_with_attack(
    engine: Engine, task: Task, clients: NDArray[np.intp], checks: ValidityChecks, statistics: RoundStatistics
) -> Iterable[Update]:
    """Return the blocks of a cohort; one block with all of its valid updates if the attack needs those of others.

    Parameters as for `run_round`. Such an attack keeps the weights of all clients of the round in memory.
    """
    blocks, runtime = engine.train(task, clients), engine.runtime
    if runtime.attackers is None or not runtime.attackers.on_server:
        return blocks
    valid = [checks.keep_valid(task, block, statistics.failed) for block in blocks]
    parts = [update for update in valid if len(update.partition_ids)]
    if not parts:
        return []
    update = concatenate(parts)
    malicious = runtime.attackers.among(task.round, update.partition_ids)
    with np.errstate(all="ignore"):
        update = runtime.attackers.corrupt(task, update)
        if runtime.pipeline and malicious.any():
            update = runtime.pipeline.encode_again(task, update, malicious)
        return [runtime.with_norms(task, update)]


def evaluate(
    engine: Engine, cohort: Cohort, outcome: RoundOutcome, checks: ValidityChecks, statistics: RoundStatistics
) -> None:
    """Evaluate a cohort on its own examples; a client without examples is not a failure."""
    sizes = engine.runtime.partition_test.sizes[cohort.clients]
    names, empty = cohort.task.client_names, cohort.clients[sizes == 0]
    outcome.failed |= {int(k): f"{describe_client(k, names)} has no examples to evaluate on" for k in empty}
    if not sizes.any():
        return
    for evaluation in engine.evaluate(cohort.task, cohort.clients[sizes > 0]):
        for client, error in evaluation.failed.items():
            checks.fail(client, error, statistics.failed)
        if len(evaluation.partition_ids):
            outcome.evaluations.append(evaluation)


def commit(engine: Engine, outcome: RoundOutcome, statistics: RoundStatistics) -> None:
    """Store the client state and the statistics of an accepted round."""
    task = outcome.cohorts[0].task
    engine.client_state.commit(task.round, outcome.updates)
    statistics.updates += outcome.updates
    if len(outcome.cohorts) == 1:  # otherwise clients started from different weights
        norms = engine.runtime.kernel.update_norms(outcome.aggregation.mean()[None], task.global_weights)
        statistics.mean_update_norm = float(np.asarray(norms)[0])
