"""Examples of client strategies, from five lines to server hooks; docs/extend.md explains them one by one.

Arrays have a row per client. fedsim does the batches, messages, threads, aggregation and checkpoints.
"""

import argparse

import numpy as np

from fedsim import Experiment, compare
from fedsim.cli.guard import guard
from fedsim.clients import SGD, Affine, Array, ClientStrategy, Context, ServerContext
from fedsim.models import Group, Model
from fedsim.report.terminal import to_text
from fedsim.splits import Dirichlet
from fedsim.testing import check_client_strategy


class MyFedProx(SGD):
    """A changed step: SGD with a proximal term, which pulls towards the weights that the server sent."""

    mu: float = 0.1

    def direction(self, grad: Array, weights: Array, ctx: Context) -> Array:
        return grad + self.mu * (weights - ctx.global_weights)


class FastFedProx(SGD):
    """The same strategy, declared as data for every kernel."""

    mu: float = 0.1

    def affine(self, ctx: Context) -> Affine:
        return Affine(mu=self.mu)


class LabelSmoothing(SGD):
    """A changed loss: label smoothing."""

    smoothing: float = 0.1

    def gradient(self, weights: Array, x: Array, y: Array, ctx: Context) -> tuple[Array, Array]:
        def smooth(scores: Array, labels: Array) -> tuple[Array, Array]:
            p = np.exp(scores - scores.max(axis=-1, keepdims=True))
            p /= p.sum(axis=-1, keepdims=True)
            classes = scores.shape[-1]
            target = (1 - self.smoothing) * (labels[..., None] == np.arange(classes)) + self.smoothing / classes
            return -(target * np.log(p + 1e-30)).sum(axis=-1), (p - target).astype(scores.dtype)

        return ctx.model.loss_and_gradient(weights, x, y, loss=smooth)


class LastingMomentum(SGD):
    """Client state: momentum that lasts from one round of a client to its next."""

    beta: float = 0.5

    def client_state(self, ctx: Context) -> dict[str, Array]:
        return {"velocity": np.zeros((len(ctx.partition_ids), ctx.global_weights.size), ctx.model.dtype)}

    def direction(self, grad: Array, weights: Array, ctx: Context) -> Array:
        ctx.state["velocity"] = self.beta * ctx.state["velocity"] + (1 - self.beta) * grad
        return ctx.state["velocity"]


class GlobalDirection(SGD):
    """Uploads and server hooks: steps are partly along the clients' mean direction in the previous round."""

    share: float = 0.3
    broadcast = ("direction",)

    def server_state(self, weights: Array, server_hooks: object) -> dict[str, Array]:
        return {"direction": np.zeros_like(weights)}

    def affine(self, ctx: Context) -> Affine:
        return Affine(correction=-self.share * ctx.down["direction"])

    def train(self, ctx: Context) -> Array:
        weights = ctx.fit()
        scale = (ctx.lr * ctx.steps)[:, None].astype(weights.dtype)
        ctx.up["direction"] = (weights - ctx.global_weights) / scale
        return weights

    def server_step(self, ctx: ServerContext) -> Array:
        ctx.state["direction"] = ctx.mean["direction"]
        return ctx.mean["weights"]


class OwnHead(SGD):
    """Private parameters and local evaluation: a client's own last layer, fine-tuned before the client predicts."""

    def private_groups(self, model: Model) -> tuple[Group, ...]:
        return model.groups[-1:]

    def personalise(self, ctx: Context) -> Array:
        return ctx.fit(by=SGD.of(self, epochs=2), groups=self.private_groups(ctx.model))


class SlowStarter(SGD):
    """Hyperparameters per client: a smaller learning rate for few examples, and at most 20 steps."""

    def learning_rate(self, ctx: Context) -> Array:
        return self.lr * np.minimum(1, ctx.num_examples / 30)

    def local_steps(self, ctx: Context) -> Array:
        steps: Array = np.minimum(20, self.epochs * self.steps_per_epoch(ctx))
        return steps


class GradientStep(ClientStrategy):
    """A strategy that is not SGD: one step along the gradient of all of the client's examples."""

    rate: float = 0.5

    def train(self, ctx: Context) -> Array:
        _, grad = ctx.full_gradient(ctx.global_weights)
        return ctx.global_weights - self.rate * grad


STRATEGIES = (MyFedProx, FastFedProx, LabelSmoothing, LastingMomentum, GlobalDirection, OwnHead, SlowStarter)


def main() -> None:
    parser = argparse.ArgumentParser(description="Check the strategies of this file and compare them with SGD.")
    parser.add_argument("--seeds", type=int, default=3, help="default: 3")
    parser.add_argument("--rounds", type=int, default=30, help="default: 30")
    args = parser.parse_args()
    for cls in (*STRATEGIES, GradientStep):
        print(f"{cls.__name__}: passes {len(check_client_strategy(cls))} checks")
    base = Experiment(
        split=Dirichlet(50, alpha=0.1), fraction_train=0.2, rounds=args.rounds, fraction_evaluate=1.0, test_fraction=0.2
    )
    study = compare(base, client=[*(cls(epochs=5) for cls in (SGD, *STRATEGIES)), GradientStep()], seeds=args.seeds)
    print("\n".join([to_text(study.table()), *study.notes]))


if __name__ == "__main__":
    guard(main)
