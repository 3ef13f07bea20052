"""FedAvg as a Flower strategy, with seeded sampling by partition id and streaming aggregation.

McMahan, Moore, Ramage, Hampson and Aguera y Arcas, "Communication-efficient learning of deep networks from
decentralized data", AISTATS 2017 (arXiv:1602.05629), algorithm 1: in each round a random set of ``max(C * K, 1)``
clients trains, and ``w_{t+1} = sum_k n_k / n * w_k`` over that set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from numpy.typing import NDArray

from fedsim.engines import flower
from fedsim.engines.in_process import Replies
from fedsim.kernels.numpy import add_weighted
from fedsim.streams import Purpose, generator


class FedAvg(FlowerFedAvg):
    """Flower's FedAvg, deterministic and streaming.

    On fedsim's in-process engine it adds each block of updates into a running sum as it finishes, so memory does not
    grow with the cohort; on any other grid, or inside a wrapper of Flower's, it takes ordinary replies, in the order
    of falling num-examples, then node id. Sums are kept in float64 in that fixed order.

    Parameters
    ----------
    seed : int
        Of the sampling.
    **flower_options
        As for ``flwr.serverapp.strategy.FedAvg`` (``fraction_train``, ``fraction_evaluate``, ...). The minimum
        numbers of nodes default to 1 here.
    """

    def __init__(self, *, seed: int = 0, **flower_options: Any) -> None:
        minimum = dict.fromkeys(("min_train_nodes", "min_evaluate_nodes", "min_available_nodes"), 1)
        super().__init__(**(minimum | flower_options))
        self.seed = seed

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
        return RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})

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
        """Average the cohort's weights, each by its number of examples."""
        if not isinstance(replies, Replies):
            ordered = sorted(replies, key=self._cohort_order)
            valid, _ = self._check_and_log_replies(ordered, is_train=True)
            return self._average(valid)
        mean = RunningMean(replies.add_weighted)
        for update in replies.blocks():
            mean.add(update.weights, update.num_examples)
        if not mean.total:
            return None, None
        return replies.to_record(mean.value()), MetricRecord({"train_loss": replies.train_loss})

    def _cohort_order(self, message: Message) -> tuple[float, int]:
        size = 0.0
        if message.has_content():
            for metrics in message.content.metric_records.values():
                size = float(metrics.get(self.weighted_by_key, 0))  # type: ignore[arg-type]
        return -size, message.metadata.src_node_id

    def _average(self, replies: list[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average ordinary replies, array by array."""
        if not replies:
            return None, None
        means: dict[str, RunningMean] = {}
        for reply in replies:
            metrics = next(iter(reply.content.metric_records.values()))
            for name, array in next(iter(reply.content.array_records.values())).items():
                weight = np.array([metrics[self.weighted_by_key]], dtype=np.float64)
                means.setdefault(name, RunningMean()).add(array.numpy()[None], weight)
        record = ArrayRecord()
        for name, mean in means.items():
            record[name] = flower.Array(mean.value())
        return record, self.train_metrics_aggr_fn([r.content for r in replies], self.weighted_by_key)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Average clients' loss and accuracy, each by its number of examples."""
        if not isinstance(replies, Replies):
            return super().aggregate_evaluate(server_round, replies)
        parts = list(replies.evaluations())
        if not parts:
            return None
        examples, loss, accuracy = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("num_examples", "loss", "accuracy")
        )
        return MetricRecord(
            {
                "eval_loss": float(np.average(loss, weights=examples)),
                "eval_accuracy": float(np.average(accuracy, weights=examples)),
            }
        )


class RunningMean:
    """A weighted mean of equally shaped arrays, added in order in float64 and returned in their own dtype.

    Each array is added to the sum of all before it, so how they are gathered into blocks changes no bit.

    Parameters
    ----------
    add_weighted : callable, optional
        `kernels.numpy.add_weighted` or another kernel's, which gives the same bits.
    """

    def __init__(self, add_weighted: Callable[..., None] = add_weighted) -> None:
        self.total = 0.0
        self._add_weighted = add_weighted
        self._sum: NDArray[np.float64] | None = None
        self._shape: tuple[int, ...] = ()
        self._dtype: Any = None

    def add(self, values: NDArray[Any], weights: NDArray[Any]) -> None:
        """Add a block of arrays, shape (clients, ...), each with its weight, shape (clients,)."""
        rows = values.reshape(len(values), math.prod(values.shape[1:]))  # -1 would not do for an empty block
        if self._sum is None:
            self._sum, self._shape, self._dtype = np.zeros(rows.shape[1]), values.shape[1:], values.dtype
        factors = np.asarray(weights, dtype=np.float64)
        self._add_weighted(self._sum, rows, factors)
        for factor in factors:
            self.total += float(factor)

    def value(self) -> NDArray[Any]:
        """Return the mean; at least one array has been added."""
        assert self._sum is not None
        mean: NDArray[Any] = np.empty(self._shape, self._dtype)
        np.divide(self._sum, self.total, out=mean.reshape(-1), casting="same_kind")
        return mean
