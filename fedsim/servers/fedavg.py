"""FedAvg as a Flower strategy, and the class fedsim's other server strategies extend.

McMahan, Moore, Ramage, Hampson and Aguera y Arcas, "Communication-efficient learning of deep networks from
decentralized data", AISTATS 2017 (arXiv:1602.05629), algorithm 1: in each round a random set of ``max(C * K, 1)``
clients trains, and ``w_{t+1} = sum_k n_k / n * w_k`` over that set.

A round's aggregation is three steps, each a method to override: a `rule` combines the clients' weights as they stream
in; the client strategy's server half, if any, makes something of it and of whatever else clients sent (SCAFFOLD's
control variates); and `step` goes from the old global weights to the new.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from numpy.typing import NDArray

from fedsim.clients.base import ServerHalf, Update, has_server_half, overrides
from fedsim.engines import flower
from fedsim.engines.in_process import Replies
from fedsim.engines.site import mean_evaluation
from fedsim.kernels.mean import RunningMean
from fedsim.kernels.numpy import add_weighted
from fedsim.streams import Purpose, generator

Array = NDArray[Any]


class Rule(Protocol):
    """Combines a round's weights."""

    def add(self, update: Update, weights: NDArray[np.float64]) -> None:
        """Take a block of updates, in cohort order, each with its weight in the mean, shape (clients,)."""

    def value(self) -> Array:
        """Return the combination, shape (parameters,); at least one update has been added."""


class FedAvg(FlowerFedAvg):
    """Flower's FedAvg, deterministic and streaming.

    On fedsim's in-process engine it adds each block of updates into a running sum as it finishes, so memory does not
    grow with the cohort; on any other grid, or inside a wrapper of Flower's, it takes ordinary replies, in the order
    of falling num-examples, then node id. Sums are kept in float64 in that fixed order.

    Parameters
    ----------
    seed : int
        Of the sampling.
    half : ServerHalf, optional
        The client strategy's server half.
    min_clients : int
        Fewest clients whose updates make a new model; with fewer the old one stays.
    **flower_options
        As for ``flwr.serverapp.strategy.FedAvg`` (``fraction_train``, ``fraction_evaluate``, ...). The minimum
        numbers of nodes default to 1 here.
    """

    def __init__(
        self, *, seed: int = 0, half: ServerHalf | None = None, min_clients: int = 1, **flower_options: Any
    ) -> None:
        minimum = dict.fromkeys(("min_train_nodes", "min_evaluate_nodes", "min_available_nodes"), 1)
        super().__init__(**(minimum | flower_options))
        self.seed = seed
        self.half = half
        self.min_clients = min_clients
        self.state: dict[str, Array] = {}
        self._add_weighted = add_weighted
        self._sent: ArrayRecord | None = None
        self._sent_flat: Array | None = None

    # What other strategies override.

    def rule(self) -> Rule:
        """Return what combines a round's weights; by default the mean."""
        return Mean(self._add_weighted)

    def step(self, server_round: int, weights: Array, combined: Array) -> Array:
        """Return the new global weights from the old and the round's outcome, all of shape (parameters,).

        What it keeps between rounds belongs into ``self.state``, a dict of arrays: checkpoints hold that.
        """
        return combined

    def _instructions(
        self, purpose: Purpose, fraction: float, least: int, record: RecordDict, server_round: int, grid: Grid
    ) -> Iterable[Message]:
        nodes: Any = grid.get_node_ids()
        numbered = isinstance(nodes, range)  # as in process, where a million of them must cost nothing
        nodes = nodes if numbered else sorted(nodes)
        size = min(len(nodes), max(int(len(nodes) * fraction), least))
        if size < len(nodes):
            chosen = np.sort(generator(self.seed, purpose, server_round).choice(len(nodes), size, replace=False))
            nodes = chosen + nodes[0] if numbered else [nodes[k] for k in chosen]
        kind = MessageType.TRAIN if purpose is Purpose.SAMPLE_TRAIN else MessageType.EVALUATE
        return flower.Instructions(record, nodes, kind)

    def _record(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord) -> RecordDict:
        config["server-round"] = server_round
        content = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        self._sent, self._sent_flat = arrays, None
        if self.half and self.half.strategy.broadcast:
            content[flower.DOWN] = flower.record(self.half.down(self.global_weights))
        return content

    @property
    def global_weights(self) -> Array:
        """The weights sent last, shape (parameters,); read-only."""
        if self._sent_flat is None:
            assert self._sent is not None, "configure_train comes before aggregate_train"
            self._sent_flat = flower.flatten(self._sent)
        return self._sent_flat

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample the round's cohort."""
        if self.fraction_train == 0:
            return []
        record = self._record(server_round, arrays, config)
        return self._instructions(
            Purpose.SAMPLE_TRAIN, self.fraction_train, self.min_train_nodes, record, server_round, grid
        )

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample the clients that evaluate the new global model on their own examples."""
        if self.fraction_evaluate == 0:
            return []
        record = self._record(server_round, arrays, config)
        return self._instructions(
            Purpose.SAMPLE_EVALUATE, self.fraction_evaluate, self.min_evaluate_nodes, record, server_round, grid
        )

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the cohort's weights into the new global model."""
        if isinstance(replies, Replies):
            self._add_weighted = replies.add_weighted
            flat = self._aggregate(server_round, replies.blocks(), replies.took_mean)
            if flat is None:
                return None, None
            return replies.to_record(flat), MetricRecord({"train_loss": replies.train_loss})
        ordered = sorted(replies, key=self._cohort_order)
        valid, _ = self._check_and_log_replies(ordered, is_train=True)
        flat = self._aggregate(server_round, map(self._update, valid))
        if flat is None:
            return None, None
        metrics = self.train_metrics_aggr_fn([reply.content for reply in valid], self.weighted_by_key)
        like, _ = flower.parts(next(iter(valid[0].content.array_records.values())))
        return flower.unflatten(like, flat), metrics

    def _aggregate(
        self, server_round: int, updates: Iterable[Update], took_mean: Callable[[Array], None] | None = None
    ) -> Array | None:
        """Return the new flat weights, or None where nothing came back; report the mean weighted by examples."""
        rule, means, examples, clients = self.rule(), dict[str, RunningMean](), 0, 0
        half = self.half if self.half and has_server_half(self.half.strategy) else None
        plain = isinstance(rule, Mean) and not (half and overrides(half.strategy, "weigh"))
        mean = None if plain or not took_mean else RunningMean(self._add_weighted)
        for update in updates:
            if not len(update.partition_ids):
                continue
            examples += int(update.num_examples.sum())
            clients += len(update.partition_ids)
            weights = half.weigh(update.num_examples, update.up) if half else update.num_examples
            factors = np.asarray(weights, dtype=np.float64)
            rule.add(update, factors)
            if mean:
                mean.add(update.weights, update.num_examples)
            for name, rows in update.up.items():
                add = self._add_weighted if rows.dtype == update.weights.dtype else add_weighted
                means.setdefault(name, RunningMean(add)).add(rows, factors)
        if not examples or clients < self.min_clients:
            return None
        combined = rule.value()
        if took_mean:
            took_mean(mean.value() if mean else combined)
        if half or type(self).step is not FedAvg.step:
            old = self.global_weights
            if half:
                sent = {"weights": combined} | {name: sums.value() for name, sums in means.items()}
                combined = half.step(server_round, old, sent, examples)
            combined = self.step(server_round, old, combined).astype(old.dtype, copy=False)
        return combined

    def _update(self, reply: Message) -> Update:
        """Return an ordinary reply as a block of one."""
        metrics = next(iter(reply.content.metric_records.values()))
        examples = np.array([metrics[self.weighted_by_key]])
        weights, up = flower.parts(next(iter(reply.content.array_records.values())))
        loss = np.array([float(metrics.get("train_loss", np.nan))])  # type: ignore[arg-type]
        node = np.array([reply.metadata.src_node_id])
        sent = {name: values[None] for name, values in up.items()}
        return Update(node, examples, flower.flatten(weights)[None], loss, sent)

    def _cohort_order(self, message: Message) -> tuple[float, int]:
        size = 0.0
        if message.has_content():
            for metrics in message.content.metric_records.values():
                size = float(metrics.get(self.weighted_by_key, 0))  # type: ignore[arg-type]
        return -size, message.metadata.src_node_id

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Average clients' loss and accuracy, each by its number of examples."""
        if not isinstance(replies, Replies):
            return super().aggregate_evaluate(server_round, replies)
        parts = list(replies.evaluations())
        if not parts:
            return None
        loss, accuracy = mean_evaluation(parts)
        return MetricRecord({"eval_loss": loss, "eval_accuracy": accuracy})


class Mean:
    """FedAvg's rule."""

    def __init__(self, add_weighted: Callable[..., None] = add_weighted) -> None:
        self._mean = RunningMean(add_weighted)

    def add(self, update: Update, weights: NDArray[np.float64]) -> None:
        """Add a block."""
        self._mean.add(update.weights, weights)

    def value(self) -> Array:
        """Return the mean."""
        return self._mean.value()
