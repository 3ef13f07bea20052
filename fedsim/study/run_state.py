"""The state of a run between rounds, and its form in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fedsim.clients.sensitive import COUNTS
from fedsim.clients.server_hooks import ServerHooks
from fedsim.engines.client_state import ClientState
from fedsim.engines.isolation import isolate_failures
from fedsim.flower import records
from fedsim.flower.strategies import load_sampling_state, sampling_state
from fedsim.rounds.grid import RoundGrid
from fedsim.rounds.statistics import RoundStatistics
from fedsim.streams import Purpose, generator
from fedsim.study.build import make_strategy
from fedsim.study.centralised import CentralisedTraining
from fedsim.study.checkpoint import check_fits, is_dict_of_arrays, pack
from fedsim.study.example_privacy import check_uses_of_examples, example_accountant, record_steps
from fedsim.study.experiment import Experiment
from fedsim.study.privacy import add_privacy
from fedsim.study.result import history_columns
from fedsim.study.root import add_root_training
from fedsim.study.secure import check_secure_aggregation
from fedsim.study.strategy_state import load_strategy_state, strategy_state_dict

Array = NDArray[Any]
#: Columns of `Result.clients`, in order, before the score.
CLIENTS = ("round", "partition_id", "num_examples", "loss")
#: Columns of `Result.groups`, in order.
GROUPS = ("round", "partition_id", "group", *COUNTS)
#: Columns of `Result.failures`, in order.
FAILURES = ("round", "partition_id", "reason")


class RunState:
    """The state of a run.

    Parameters
    ----------
    experiment : Experiment
    grid : RoundGrid
        Its engine stores the client state.

    Attributes
    ----------
    arrays : ArrayRecord
        The global model; a server strategy may use a larger dtype than the model's.
    weights : ndarray, shape (parameters,)
        The global model in the model's dtype.
    rows, client_rows, failures, group_rows : list of dict
        Rows of the history, of the clients' evaluations, of the failures, and of the counts in groups of people.
    strategy : Strategy
        The server strategy.
    server_hooks : ServerHooks
    centralised : CentralisedTraining, optional
    privacy_loss : PrivacyLoss, optional
    success_examples : tuple of two ndarray, optional
        Examples and the labels that a targeted attack wants for them.
    example_accountant : ExampleAccountant, optional
    """

    def __init__(self, experiment: Experiment, grid: RoundGrid) -> None:
        runtime, federated = grid.runtime, grid.runtime.federated
        self.model, self._experiment, self._grid = runtime.model, experiment, grid
        self.score = "r2" if federated.dataset.regression else "accuracy"
        self.weights = self.model.init(generator(experiment.seed, Purpose.INIT))
        self.arrays = records.to_record(self.model, self.weights)
        self.rows: list[dict[str, float]] = []
        self.client_rows: list[dict[str, NDArray[Any]]] = []
        self.failures: list[dict[str, Any]] = []
        self.group_rows: list[dict[str, NDArray[Any]]] = []
        self.server_hooks = ServerHooks(
            experiment.client, self.model, lambda number: len(federated.at(number).indices), experiment.seed
        )
        clients = len(grid.get_node_ids())
        self.strategy: Strategy = make_strategy(experiment, self.server_hooks, clients)
        check_secure_aggregation(experiment, self.strategy, self.model, clients)
        self.privacy_loss = add_privacy(experiment, self.strategy, self.model, clients)
        add_root_training(experiment, self.strategy, runtime)
        self.example_accountant = example_accountant(experiment, runtime)
        self.success_examples = experiment.attack.success_examples(federated.dataset) if experiment.attack else None
        if self.example_accountant:
            check_uses_of_examples(runtime, self.weights)
        self.centralised = CentralisedTraining(runtime, self.weights) if experiment.weight_divergence else None

    def attack_success(self) -> float:
        """Return the share of a targeted attack's examples that the global model labels as wanted, or NaN."""
        if self.success_examples is None or not len(self.success_examples[1]):
            return float("nan")
        x, y = self.success_examples
        return self._grid.evaluate_examples(self.weights, np.ascontiguousarray(x, dtype=self.model.dtype), y)[1]

    def epsilon(self, rounds: int) -> float:
        """Return the privacy loss of the run after some rounds; NaN for a run without differential privacy."""
        if self.example_accountant:
            return self.example_accountant.epsilon()
        return self.privacy_loss.epsilon(rounds) if self.privacy_loss else float("nan")

    def describe_privacy(self) -> str:
        """Return the privacy loss so far, with delta and the noise multiplier; empty without differential privacy."""
        loss = self.example_accountant.losses.of(1) if self.example_accountant else self.privacy_loss
        if loss is None:
            return ""
        epsilon, noise = self.epsilon(len(self.rows) - 1), loss.noise_multiplier
        return f"epsilon {epsilon:.4g} with delta {loss.delta:.3g} and noise multiplier {noise:.4g}"

    def record_steps(self, statistics: RoundStatistics) -> None:
        """Add the steps of a round's clients to the privacy loss by example."""
        if self.example_accountant:
            record_steps(self.example_accountant, self._grid.runtime, statistics.trained)

    def record_groups(self, number: int, clients: NDArray[Any], counts: NDArray[np.int64] | None) -> None:
        """Add rows of counts in groups of people, shape (clients, groups, 5), if there are any."""
        if counts is not None:
            names = counts.shape[1]
            columns = [
                np.full(counts[..., 0].size, number),
                np.repeat(clients, names),
                np.tile(np.arange(names), len(clients)),
            ]
            columns += list(counts.reshape(-1, len(COUNTS)).T)
            self.group_rows.append(dict(zip(GROUPS, columns, strict=True)))

    def check_can_be_saved(self) -> None:
        """Raise ConfigError if a checkpoint cannot hold the state of the server strategy."""
        for name, value in strategy_state_dict(self.strategy).items():
            pack(value, {}, f"server {type(self.strategy).__name__}'s {name}")

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {
            "arrays": self.arrays,
            "history": self.rows,
            "clients": self.client_rows,
            "failures": self.failures,
            "groups": self.group_rows,
            "client_state": self._grid.engine.client_state.state_dict(),
            "server_hooks": self.server_hooks.state,
            "centralised": self.centralised.weights if self.centralised else None,
            "server": strategy_state_dict(self.strategy),
            "sampling": sampling_state(),
            "example_steps": self.example_accountant.state_dict() if self.example_accountant else None,
        }

    def initial_arrays(self) -> dict[str, dict[str, Array]]:
        """Return the state of a new client and what server hooks first send, whose shapes a checkpoint must have.

        An error of the client strategy is raised here, so that it is not taken for an error of the checkpoint.
        """
        runtime, strategy = self._grid.runtime, self._experiment.client
        client = np.array([runtime.partition.sizes.argmax()])
        store, task = ClientState(len(runtime.partition)), runtime.task(self.weights, 1)
        found, failed = isolate_failures(lambda clients: runtime.load_state(task, store, clients), client, 1)
        for error in failed.values():
            raise error
        hooks = ServerHooks(strategy, self.model, self.server_hooks.num_examples, self._experiment.seed)
        return {"client_state": found[0], "server_hooks": hooks.down(self.weights) if strategy.broadcast else {}}

    def load_state_dict(self, saved: Mapping[str, Any], initial: Mapping[str, Mapping[str, Array]]) -> None:
        """Load a checkpoint; raise any exception if it does not fit the experiment.

        Parameters
        ----------
        saved : mapping
            The result of `state_dict`.
        initial : mapping
            The result of `initial_arrays`.
        """
        check_fits(type(saved["arrays"]) is ArrayRecord, "arrays")
        self.arrays = saved["arrays"]
        self.weights = records.to_flat(self.model, self.arrays)
        self.rows = _rows(saved["history"], history_columns(self.score), (int, float))
        check_fits(0 < len(self.rows) <= self._experiment.rounds + 1, "history")
        check_fits([row["round"] for row in self.rows] == list(range(len(self.rows))), "history")
        self.client_rows = _rows(saved["clients"], (*CLIENTS, self.score), np.ndarray)
        for part in self.client_rows:
            check_fits({values.shape for values in part.values()} == {(len(part["round"]),)}, "clients")
        self.failures = _rows(saved["failures"], FAILURES, (int, str))
        check_fits(all(type(row["reason"]) is str for row in self.failures), "failures")
        self.group_rows = _rows(saved["groups"], GROUPS, np.ndarray)
        for part in self.group_rows:
            check_fits({values.shape for values in part.values()} == {(len(part["round"]),)}, "groups")
        self._load_client_state(saved["client_state"], initial["client_state"])
        hooks = saved["server_hooks"]
        check_fits(hooks is None or is_dict_of_arrays(hooks), "server_hooks")
        for name, values in initial["server_hooks"].items() if hooks is not None else ():
            check_fits((hooks[name].shape, hooks[name].dtype) == (values.shape, values.dtype), "server_hooks")
        self.server_hooks.state = hooks
        if self.centralised:
            central, like = saved["centralised"], self.weights
            check_fits(isinstance(central, np.ndarray), "centralised")
            check_fits((central.shape, central.dtype) == (like.shape, like.dtype), "centralised")
            self.centralised.weights = central
        load_strategy_state(self.strategy, saved["server"])
        load_sampling_state(saved["sampling"])
        if self.example_accountant:
            self.example_accountant.load_state_dict(saved["example_steps"])
        self._grid.checks.limit_loss(self.rows[0]["test_loss"])

    def _load_client_state(self, state: Any, initial: Mapping[str, Array]) -> None:
        """Load client state after comparing its shapes with those of a new client."""
        if state is not None:
            check_fits(is_dict_of_arrays(state), "client_state")
            clients = state["clients"]
            known = np.intersect1d(clients, np.arange(len(self._grid.runtime.partition)))  # sorted, each once
            check_fits(clients.dtype.kind == "i" and np.array_equal(clients, known), "client_state")
            check_fits(all(len(rows) == len(clients) for rows in state.values()), "client_state")
            if len(clients):
                shapes = {f"state {name}": rows.shape[1:] for name, rows in initial.items()}
                found = {name: rows.shape[1:] for name, rows in state.items() if name != "clients"}
                check_fits(found == shapes, "client_state")
        self._grid.engine.client_state.load_state_dict(state)


def _rows(value: Any, columns: Sequence[str], kind: type | tuple[type, ...]) -> list[dict[str, Any]]:
    """Return a list of rows; raise if they have other columns or values of another type."""
    check_fits(isinstance(value, list) and all(isinstance(row, dict) for row in value), "rows")
    for row in value:
        check_fits(tuple(row) == tuple(columns), "rows")
        check_fits(all(isinstance(v, kind) and not isinstance(v, bool) for v in row.values()), "rows")
    return value
