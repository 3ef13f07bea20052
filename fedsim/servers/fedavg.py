"""FedAvg as a Flower strategy; the base class of fedsim's server strategies.

McMahan, Moore, Ramage, Hampson and Aguera y Arcas, "Communication-efficient learning of deep networks from
decentralized data", AISTATS 2017 (arXiv:1602.05629), algorithm 1: in each round a random set of ``max(C * K, 1)``
clients trains, and ``w_{t+1} = sum_k n_k / n * w_k`` over that set.

A round's aggregation has three steps. An `aggregator` combines the clients' weights as they arrive. The client
strategy's server hooks, if any, process the result and the other arrays that clients sent (SCAFFOLD's control
variates). `step` computes the new global weights from the old ones and the result. Subclasses override `aggregator` or
`step`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Self

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from numpy.typing import NDArray

from fedsim.arguments import CheckedInit, check_methods
from fedsim.checks import shorten
from fedsim.clients.server_hooks import ServerHooks
from fedsim.clients.task import Update, mean_evaluation
from fedsim.errors import ConfigError
from fedsim.flower import records
from fedsim.flower.messages import Instructions
from fedsim.kernels.numpy import add_weighted
from fedsim.privacy.central import CLIP, CentralMechanism, PrivateMean
from fedsim.rounds.outcome import RoundOutcome
from fedsim.servers.options import MIN_NODES, check_options
from fedsim.streams import Purpose, generator
from fedsim.updates.aggregation import Aggregation
from fedsim.updates.aggregators import Aggregator, Array, GatheringAggregator, Mean


class FedAvg(CheckedInit, FlowerFedAvg):
    """Flower's FedAvg, deterministic and streaming.

    On fedsim's engines it adds each block of updates to a running sum as the block finishes, so memory does not grow
    with the cohort. On any other grid, or inside a wrapper strategy of Flower's, it reads ordinary replies, ordered by
    falling number of examples, then node id. Sums are accumulated in float64 in that order.

    Parameters
    ----------
    seed : int
        Seed of the client sampling.
    server_hooks : ServerHooks, optional
        The client strategy's server hooks.
    min_clients : int
        Minimum number of updates of a round; with fewer, the global model is not changed.
    **flower_options
        As for ``flwr.serverapp.strategy.FedAvg`` (``fraction_train``, ``fraction_evaluate``, ...). The minimum
        numbers of nodes default to 1 here.
    """

    #: Whether clients send counts of the global model's predictions in groups of people, on their training examples.
    needs_group_counts: ClassVar[bool] = False
    _given_options: dict[str, Any] | None = None

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Store the options, from which an experiment makes a fresh strategy for each run."""
        made = super().__new__(cls)
        made._given_options = None if args else options
        return made

    def __init__(
        self, *, seed: int = 0, server_hooks: ServerHooks | None = None, min_clients: int = 1, **flower_options: Any
    ) -> None:
        own = {"seed": seed, "server_hooks": server_hooks, "min_clients": min_clients}
        options = check_options(FedAvg, own | flower_options, type(self).__name__, type(self))
        self.seed: int = options.pop("seed")
        self.server_hooks: ServerHooks | None = options.pop("server_hooks")
        self.min_clients: int = options.pop("min_clients")
        super().__init__(**(dict.fromkeys(MIN_NODES, 1) | options))
        self.state: dict[str, Array] = {}
        #: Whether the grid may add updates to a sum as they finish, without making replies; set by the caller.
        self.streams = False
        #: Samples cohorts and combines updates with differential privacy; set by the caller.
        self.privacy: CentralMechanism | None = None
        self._add_weighted = add_weighted
        self._round = 0
        self._sent: ArrayRecord | None = None
        self._sent_flat: Array | None = None

    # Methods for subclasses to override.

    def aggregator(self) -> Aggregator:
        """Return the aggregator of a round's weights; by default the mean."""
        return Mean(self._add_weighted)

    def step(self, server_round: int, weights: Array, combined: Array) -> Array:
        """Return the new global weights, given the old ones and the aggregated ones, all of shape (parameters,).

        Store values for later rounds in ``self.state``, a dict of arrays, which is saved in checkpoints.
        """
        return combined

    @classmethod
    def check_groups(cls, client: str) -> None:
        """Raise ConfigError unless this class can average a client strategy's updates in groups, as IFCA needs.

        A subclass's aggregator or step handles a single model, but there is one model per group.
        """
        if cls.aggregator is not FedAvg.aggregator or cls.step is not FedAvg.step:
            raise ConfigError(
                f"client {client} averages in groups, which the server {cls.__name__} does not support; allowed: FedAvg"
            )

    def check_clients(self, num_clients: int) -> None:
        """Raise ConfigError if no round of a run with so many registered clients could be accepted."""
        self.check_cohort(self.cohort_size(num_clients))

    def cohort_size(self, num_clients: int) -> int:
        """Return how many of so many registered clients train in a round; with Poisson sampling, about how many."""
        return _cohort_size(num_clients, self.fraction_train, self.min_train_nodes)

    def check_cohort(self, clients: int) -> None:
        """Raise ConfigError if no round with so many clients could be accepted."""
        if self.min_clients > clients:
            raise ConfigError(
                f"min_clients is {self.min_clients}; allowed: 1 to {clients}, the clients sampled in a round"
            )

    def _sample(self, purpose: Purpose, fraction: float, least: int, server_round: int, grid: Grid) -> Any:
        """Return the node ids of a cohort, in rising order."""
        nodes: Any = grid.get_node_ids()
        consecutive = isinstance(nodes, range)  # in process; a million of them must cost nothing
        nodes = nodes if consecutive else sorted(nodes)
        if self.privacy and purpose is Purpose.SAMPLE_TRAIN:
            chosen = self.privacy.sample(len(nodes), server_round)
        else:
            size = _cohort_size(len(nodes), fraction, least)
            if size == len(nodes):
                return nodes
            chosen = np.sort(generator(self.seed, purpose, server_round).choice(len(nodes), size, replace=False))
        return chosen + nodes[0] if consecutive else [nodes[k] for k in chosen]

    def _record(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord) -> RecordDict:
        config["server-round"] = server_round
        content = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        self._round, self._sent, self._sent_flat = server_round, arrays, None
        if self.server_hooks and self.server_hooks.strategy.broadcast:
            content[records.DOWN] = records.record(self.server_hooks.down(self.global_weights))
        return content

    @property
    def global_weights(self) -> Array:
        """The global weights sent most recently, shape (parameters,); read-only."""
        if self._sent_flat is None:
            assert self._sent is not None, "configure_train comes before aggregate_train"
            self._sent_flat = records.flatten(self._sent)
        return self._sent_flat

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample the round's cohort."""
        if self.fraction_train == 0:
            return []
        record = self._record(server_round, arrays, config)
        nodes = self._sample(Purpose.SAMPLE_TRAIN, self.fraction_train, self.min_train_nodes, server_round, grid)
        self._add_weighted = getattr(grid, "add_weighted", add_weighted)
        # A subclass that overrides aggregate_train may read replies.
        streams = self.streams and type(self).aggregate_train is FedAvg.aggregate_train
        aggregation = self._aggregation(server_round) if streams else None
        least = 0 if self.privacy else self.min_clients  # a cohort without clients still releases noise
        return Instructions(record, nodes, MessageType.TRAIN, aggregation, least)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample the clients that evaluate the new global model on their own examples."""
        if self.fraction_evaluate == 0:
            return []
        record = self._record(server_round, arrays, config)
        least = self.min_evaluate_nodes
        nodes = self._sample(Purpose.SAMPLE_EVALUATE, self.fraction_evaluate, least, server_round, grid)
        return Instructions(record, nodes, MessageType.EVALUATE)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the cohort's weights into the new global model."""
        if isinstance(replies, RoundOutcome):
            aggregation = replies.aggregation
            if replies.keeps_rows:
                aggregation = self._aggregation(server_round, replies.updates)
            flat = self._new_weights(server_round, aggregation)
            if flat is None:
                return None, None
            return replies.to_record(flat), MetricRecord({"train_loss": aggregation.train_loss})
        ordered = sorted(replies, key=self._cohort_order)
        valid, _ = self._check_and_log_replies(ordered, is_train=True)
        flat = self._new_weights(server_round, self._aggregation(server_round, map(self._update, valid)))
        if flat is None:
            return None, None
        metrics = self.train_metrics_aggr_fn([reply.content for reply in valid], self.weighted_by_key)
        like, _ = records.split_reply(next(iter(valid[0].content.array_records.values())))
        return records.unflatten(like, flat), metrics

    def _aggregation(self, server_round: int, updates: Iterable[Update] = ()) -> Aggregation:
        """Return an aggregation of these updates; more can be added."""
        aggregator: Aggregator
        if self.privacy:
            clip = float(self.state.get(CLIP, self.privacy.settings.clip))
            aggregator = self.privacy.aggregator(server_round, self.global_weights, clip, self._add_weighted)
        else:
            aggregator = self.aggregator()
        if isinstance(aggregator, type) or not (hasattr(aggregator, "add") and hasattr(aggregator, "result")):
            raise ConfigError(
                f"{type(self).__name__}'s aggregator() returned {shorten(aggregator)}; allowed: an Aggregator object"
            )
        check_methods(aggregator, Aggregator)
        aggregation = Aggregation(aggregator, self.server_hooks, self._add_weighted, self.check_groups)
        for update in updates:
            aggregation.add(update)
        return aggregation

    def _new_weights(self, server_round: int, aggregation: Aggregation) -> Array | None:
        """Return the new flat weights, or None if the round is rejected."""
        if aggregation.clients < max(self.min_clients, 1) and not self.privacy:
            return None
        combined, hooks = aggregation.combined, aggregation.server_hooks
        if isinstance(aggregation.aggregator, PrivateMean) and aggregation.aggregator.adapts:
            self.state[CLIP] = np.array(aggregation.aggregator.next_clip())
        has_step = type(self).step is not FedAvg.step
        if type(aggregation.aggregator) is Mean and not hooks and not has_step:
            return combined
        old = self.global_weights
        if hooks or has_step:
            with np.errstate(all="ignore"):  # a diverging model is reported with the round and client
                if hooks:
                    combined = hooks.step(server_round, old, aggregation.means(), aggregation.examples)
                combined = np.asarray(self.step(server_round, old, combined)).astype(old.dtype, copy=False)
        if combined.shape != old.shape:
            raise ConfigError(
                f"{type(self).__name__} made new weights of shape {combined.shape}; allowed: {old.shape}, from its "
                "aggregator or step()"
            )
        return combined

    def _update(self, reply: Message) -> Update:
        """Return an ordinary reply as a block of one update."""
        metrics = next(iter(reply.content.metric_records.values()))
        examples = np.array([metrics[self.weighted_by_key]])
        weights, up = records.split_reply(next(iter(reply.content.array_records.values())))
        loss = np.array([float(metrics.get("train_loss", np.nan))])  # type: ignore[arg-type]
        node = np.array([reply.metadata.src_node_id])
        sent = {name: values[None] for name, values in up.items()}
        return Update(node, examples, records.flatten(weights)[None], loss, sent)

    def _cohort_order(self, message: Message) -> tuple[float, int]:
        size = 0.0
        if message.has_content():
            for metrics in message.content.metric_records.values():
                size = float(metrics.get(self.weighted_by_key, 0))  # type: ignore[arg-type]
        return -size, message.metadata.src_node_id

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Average clients' loss and accuracy, each by its number of examples."""
        if not isinstance(replies, RoundOutcome):
            return super().aggregate_evaluate(server_round, replies)
        if not replies.evaluations:
            return None
        loss, accuracy = mean_evaluation(replies.evaluations)
        return MetricRecord({"eval_loss": loss, "eval_accuracy": accuracy})


class GatheringFedAvg(FedAvg):
    """The base class of strategies whose aggregation rule needs all updates of a round at once."""

    def aggregator(self) -> Aggregator:
        """Return an aggregator that keeps the cohort's weights and calls `combine`."""
        return GatheringAggregator(self.combine)

    @abstractmethod
    def combine(self, rows: Array, weights: NDArray[np.float64]) -> Array:
        """Return the combined weights, shape (parameters,).

        Parameters
        ----------
        rows : ndarray, shape (clients, parameters)
            The weights of the cohort's clients.
        weights : ndarray of float64, shape (clients,)
            Each client's weight in a mean.
        """


def _cohort_size(num_clients: int, fraction: float, least: int) -> int:
    return min(num_clients, max(int(num_clients * fraction), least))
