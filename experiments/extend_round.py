"""Extensions of a round: an update transform, an attack, an aggregator, a callback; see the end of docs/extend.md."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedsim import Experiment
from fedsim.attacks import Attack, AttackContext
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
    """An update transform: scale updates down to a maximum norm."""

    max_norm: float = 1.0

    def on_client(self, values: Array, ctx: TransformContext) -> tuple[Array, dict[str, Array]]:
        norm = np.linalg.norm(values, axis=1, keepdims=True)
        return values * np.minimum(1, self.max_norm / np.maximum(norm, 1e-12)), {}


@dataclass(frozen=True)
class StandStill(Attack):
    """An attack: malicious clients send what cancels the honest updates of the round, if all have equal weights."""

    @property
    def sees(self) -> str:
        return "all"

    def corrupt(self, changes: Array, ctx: AttackContext) -> Array:
        return np.tile(-ctx.others.sum(axis=0) / len(changes), (len(changes), 1))


class UniformMean(Mean):
    """An aggregator: the mean with equal weights for all clients."""

    def add(self, update: Update, weights: NDArray[np.float64]) -> None:
        super().add(update, np.ones(len(weights)))


class UniformFedAvg(FedAvg):
    """A server strategy with this aggregator."""

    def aggregator(self) -> UniformMean:
        return UniformMean()


class StopAtDrift(Callback):
    """A callback: end the run when the client drift exceeds a limit."""

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def round_finished(self, finished: FinishedRound) -> None:
        if finished.metrics["client_drift"] > self.limit:
            finished.stop(f"the client drift is above {self.limit}")


def main() -> None:
    base = Experiment(split=Dirichlet(50, alpha=0.1), fraction_train=0.2, rounds=20)
    for name, experiment in (
        ("FedAvg", base),
        ("clipped", replace(base, transforms=(Clip(0.5),))),
        ("uniform", replace(base, server=UniformFedAvg())),
        ("attacked", replace(base, server=UniformFedAvg(), attack=StandStill(fraction=0.5))),
    ):
        result = experiment.run(callbacks=[StopAtDrift(limit=2.0)])
        why = f", {result.stop_reason}" if result.stop_reason else ""
        print(f"{name}: test accuracy {result.final_accuracy:.3f} after {result.rounds} rounds{why}")


if __name__ == "__main__":
    guard(main)
