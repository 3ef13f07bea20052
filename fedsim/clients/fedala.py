"""FedALA: each client learns, parameter by parameter, a mixture of its last model and the global model.

Zhang, Hua, Wang, Song, Xue, Ma and Guan, "FedALA: adaptive local aggregation for personalized federated learning",
AAAI 2023 (arXiv:2212.01197), eq. 4 to 6 and algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedsim.checks import Interval
from fedsim.clients.context import Array, Context
from fedsim.clients.private import parameter_mask
from fedsim.clients.sgd import SGD


class _Mixing(SGD):
    """Gradient descent on mixing weights in [0, 1]: the model's weights are ``last + (global - last) * mixing``."""

    first_epochs: int = 1

    def local_steps(self, ctx: Context) -> Array:
        epochs = np.where(ctx.state["rounds"][:, 0] == 1, self.first_epochs, 1)
        return epochs * self.steps_per_epoch(ctx)

    def gradient(self, weights: Array, x: Array, y: Array, ctx: Context) -> tuple[Array, Array]:
        change = ctx.global_weights - ctx.state["last"]
        loss, grad = ctx.model.loss_and_gradient(ctx.state["last"] + change * weights, x, y)
        return loss, grad * change

    def direction(self, grad: Array, weights: Array, ctx: Context) -> Array:
        stepped = np.clip(weights - self.lr * grad, 0, 1)
        return (weights - stepped) / self.lr


class FedALA(SGD):
    """SGD that starts each round from a mixture of the client's last model and the global one.

    The mixing weights of the last `mixed_layers` are trained on all of the client's examples (the paper samples 80 %)
    and stored in the client state; lower layers are taken from the global model.

    Parameters
    ----------
    lr, epochs, batch_size, momentum, weight_decay, lr_decay, lr_decay_every, steps
        As for SGD.
    mixed_layers : int
        Number of layers (the model's groups of parameters), the paper's p, at least 1.
    mixing_lr : float
        Learning rate of the mixing weights, the paper's eta, greater than 0; the paper takes 1.
    first_epochs : int
        Passes over its examples in which a client learns its first mixing weights, at least 1 (the paper trains them
        until they converge); later rounds take one pass.
    """

    mixed_layers: int = 1
    mixing_lr: float = 1.0
    first_epochs: int = 10
    limits = {"mixed_layers": Interval(1), "mixing_lr": Interval(0, open_low=True), "first_epochs": Interval(1)}

    def client_state(self, ctx: Context) -> Mapping[str, Array]:
        """Initialise the last model with the global one, and the mixing weights with 1."""
        last = np.repeat(ctx.global_weights[None], len(ctx.partition_ids), axis=0)
        return {"last": last, "mixing": np.ones_like(last), "rounds": np.zeros((len(last), 1), np.int64)}

    def _mix(self, ctx: Context) -> tuple[Array, Array]:
        mixed = ctx.model.groups[-self.mixed_layers :]
        strategy = _Mixing.of(
            self, lr=self.mixing_lr, momentum=0.0, weight_decay=0.0, lr_decay=1.0, first_epochs=self.first_epochs
        )
        mixing, last = ctx.fit(ctx.state["mixing"], by=strategy, groups=mixed), ctx.state["last"]
        mixture = last + (ctx.global_weights - last) * mixing
        return np.where(parameter_mask(mixed, ctx.model), mixture, ctx.global_weights), mixing

    def train(self, ctx: Context) -> Array:
        """Mix, train from the mixture, and store both."""
        start, ctx.state["mixing"] = self._mix(ctx)
        weights = ctx.fit(start)
        ctx.state["last"], ctx.state["rounds"] = weights.copy(), ctx.state["rounds"] + 1
        return weights

    def personalise(self, ctx: Context) -> Array:
        """Mix the client's last model with the newest global model."""
        return self._mix(ctx)[0]
