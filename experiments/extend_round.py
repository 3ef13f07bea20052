"""Extensions of a round: an update transform, an aggregator, a callback; the last section of docs/extend.md."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedsim import Experiment
from fedsim.cli.guard import guard
from fedsim.clients import Array
from fedsim.clients.task import Update
from fedsim.servers import FedAvg
from fedsim.splits import Dirichlet
from fedsim.study.callbacks import Callback, FinishedRound
from fedsim.updates import TransformContext, UpdateTransform
from fedsim.updates.aggregators import Mean


@dataclass(frozen=True)
class Clip(UpdateTransform):
    """An update transform: updates are scaled down to a maximum norm."""

    norm: float = 1.0

    def on_client(self, values: Array, ctx: TransformContext) -> tuple[Array, dict[str, Array]]:
        length = np.linalg.norm(values, axis=1, keepdims=True)
        return values * np.minimum(1, self.norm / np.maximum(length, 1e-12)), {}


class UniformMean(Mean):
    """An aggregator: the mean in which all clients have the same weight."""

    def add(self, update: Update, weights: NDArray[np.float64]) -> None:
        super().add(update, np.ones(len(weights)))


class UniformFedAvg(FedAvg):
    """A server strategy with this aggregator."""

    def aggregator(self) -> UniformMean:
        return UniformMean()


class StopWhenApart(Callback):
    """A callback: it ends the run when the client drift is too large."""

    def __init__(self, most: float) -> None:
        self.most = most

    def round_finished(self, finished: FinishedRound) -> None:
        if finished.metrics["client_drift"] > self.most:
            finished.stop(f"the client drift is above {self.most}")


def main() -> None:
    base = Experiment(split=Dirichlet(50, alpha=0.1), fraction_train=0.2, rounds=20)
    for name, experiment in (
        ("FedAvg", base),
        ("clipped", replace(base, transforms=(Clip(0.5),))),
        ("uniform", replace(base, server=UniformFedAvg())),
    ):
        result = experiment.run(callbacks=[StopWhenApart(most=2.0)])
        why = f", {result.stop_reason}" if result.stop_reason else ""
        print(f"{name}: test accuracy {result.final_accuracy:.3f} after {result.rounds} rounds{why}")


if __name__ == "__main__":
    guard(main)
