"""The state of a run between rounds, and its form in a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fedsim.clients import metrics, sensitive
from fedsim.clients.metrics import Metrics
from fedsim.clients.private import has_global_model
from fedsim.clients.server_hooks import ServerHooks
from fedsim.engines.client_state import ClientState
from fedsim.engines.isolation import isolate_failures
from fedsim.flower import records
from fedsim.flower.strategies import load_sampling_state, sampling_state
from fedsim.models.metrics import scalar_metrics
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

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[Any]
#: Columns of `Result.clients`, in order, before the score.
CLIENTS = ("round", "partition_id", "num_examples", "loss")
#: Arrays of the measures of some sets of examples; see `fedsim.clients.measures`.
MEASURED = ("round", "partition_id", "value")
#: Name of each measure -> the columns of its frame in the result.
MEASURE_COLUMNS = {"groups": sensitive.COLUMNS, "metrics": metrics.COLUMNS}
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
    has_global_model : bool
        Whether clients send all parameters; scores of the global model are NaN otherwise.
    columns : tuple of str
        Of the history.
    untrained_loss : float
        The test loss of the initial weights.
    rows, client_rows, failures : list of dict
        Rows of the history, of the clients' evaluations, and of the failures.
    measured : dict of str to list of dict
        The values of each measure.
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
        self.has_global_model = has_global_model(experiment.client, self.model)
        self.untrained_loss = math.nan
        self.columns = history_columns(self.score, scalar_metrics(experiment.metrics))
        self.rows: list[dict[str, float]] = []
        self.client_rows: list[dict[str, NDArray[Any]]] = []
        self.failures: list[dict[str, Any]] = []
        self.measured: dict[str, list[dict[str, Array]]] = {name: [] for name in runtime.measures}
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
        if not self.has_global_model or self.success_examples is None or not len(self.success_examples[1]):
            return math.nan
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

    def test_metrics(self, measured: Mapping[str, Array]) -> list[float]:
        """Return the metrics in the history from the measures on the test set; NaN without a global model."""
        measure = self._grid.runtime.measures.get("metrics")
        if not isinstance(measure, Metrics):
            return []
        [row] = measured.get("metrics", np.full((1, *measure.shape), math.nan))
        return list(measure.scalars(row).values())

    def record_measures(self, number: int, clients: NDArray[Any], measured: Mapping[str, Array]) -> None:
        """Add the values of measures, shape (clients, ...), in a round."""
        for name, values in measured.items():
            columns = np.full(len(clients), number), clients, values
            self.measured[name].append(dict(zip(MEASURED, columns, strict=True)))

    def frame_of(self, name: str) -> pd.DataFrame:
        """Return the values of a measure as a frame; empty if the experiment does not have it."""
        import pandas as pd

        parts = self.measured.get(name)
        if not parts:
            return pd.DataFrame(columns=list(MEASURE_COLUMNS[name]))
        columns = (np.concatenate([part[column] for part in parts]) for column in MEASURED)
        return self._grid.runtime.measures[name].to_frame(*columns)

    def check_can_be_saved(self) -> None:
        """Raise ConfigError if a checkpoint cannot hold the state of the server strategy."""
        for name, value in strategy_state_dict(self.strategy).items():
            pack(value, {}, f"server {type(self.strategy).__name__}'s {name}")

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {
            "arrays": self.arrays,
            "untrained_loss": self.untrained_loss,
            "history": self.rows,
            "clients": self.client_rows,
            "failures": self.failures,
            "measured": self.measured,
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
        self.rows = _rows(saved["history"], self.columns, (int, float))
        check_fits(0 < len(self.rows) <= self._experiment.rounds + 1, "history")
        check_fits([row["round"] for row in self.rows] == list(range(len(self.rows))), "history")
        self.client_rows = _rows(saved["clients"], (*CLIENTS, self.score), np.ndarray)
        for part in self.client_rows:
            check_fits({values.shape for values in part.values()} == {(len(part["round"]),)}, "clients")
        self.failures = _rows(saved["failures"], FAILURES, (int, str))
        check_fits(all(type(row["reason"]) is str for row in self.failures), "failures")
        self._load_measured(saved["measured"])
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
        check_fits(type(saved["untrained_loss"]) is float and math.isfinite(saved["untrained_loss"]), "untrained_loss")
        self.untrained_loss = saved["untrained_loss"]
        self._grid.checks.limit_loss(self.untrained_loss)

    def _load_measured(self, saved: Any) -> None:
        """Load the values of the measures after comparing their shapes with the experiment's measures."""
        measures = self._grid.runtime.measures
        check_fits(isinstance(saved, dict) and saved.keys() == measures.keys(), "measured")
        for name, measure in measures.items():
            for part in _rows(saved[name], MEASURED, np.ndarray):
                sets = part["round"].shape
                check_fits(len(sets) == 1 and part["partition_id"].shape == sets, name)
                check_fits((part["value"].shape, part["value"].dtype) == (sets + measure.shape, measure.dtype), name)
        self.measured = saved

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
