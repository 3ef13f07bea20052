"""pFedMe: the global model is trained on the clients' Moreau envelopes, whose minimisers are the personal models.

Dinh, Tran and Nguyen, "Personalized federated learning with Moreau envelopes", NeurIPS 2020 (arXiv:2006.08848),
algorithm 1.
"""

from __future__ import annotations

from fedsim.checks import Interval, check_real
from fedsim.clients.context import Array, Context
from fedsim.clients.fedprox import FedProx
from fedsim.clients.server_hooks import ServerContext
from fedsim.clients.sgd import SGD


class PFedMe(SGD):
    """SGD along ``lam * (w - theta)`` with theta the minimiser of ``F_k(theta; batch) + lam/2 ||theta - w||^2``.

    For each batch, theta is approximated by `inner_steps` steps of gradient descent from w. The paper does not specify
    the start; the authors' code starts from the previous batch's theta.

    Parameters
    ----------
    lr, epochs, batch_size, momentum, weight_decay, lr_decay, lr_decay_every, steps
        As for SGD, for w; ``lr`` is 0.005 by default, as in the paper's experiments.
    lam : float
        Greater than 0; the paper's is 15.
    personal_lr : float
        Learning rate of theta, greater than 0. Theta diverges unless ``personal_lr * (lam + curvature of the loss)`` is
        below 2. The paper's 0.1 allows a curvature of 5, which the digits exceed; hence the default of 0.05.
    inner_steps : int
        Steps of theta per batch (the paper's K), at least 1.
    beta : float
        Weight of the clients' mean in the new global model, greater than 0; the paper's default is 1.
    """

    lr: float = 0.005
    lam: float = 15.0
    personal_lr: float = 0.05
    inner_steps: int = 5
    beta: float = 1.0
    limits = {"lam": Interval(0, open_low=True), "inner_steps": Interval(1), "beta": Interval(0, open_low=True)}

    def __post_init__(self) -> None:
        super().__post_init__()
        field = f"{type(self).__name__}'s personal_lr"
        check_real(field, self.personal_lr, 0, 2 / self.lam, open_low=True, open_high=True)

    def gradient(self, weights: Array, x: Array, y: Array, ctx: Context) -> tuple[Array, Array]:
        """Return the loss at w and the gradient of the envelope."""
        theta, losses = weights, []
        for _ in range(self.inner_steps):
            loss, grad = ctx.model.loss_and_gradient(theta, x, y)
            losses.append(loss)
            theta = theta - self.personal_lr * (grad + self.lam * (theta - weights))
        return losses[0], self.lam * (weights - theta)

    def personalise(self, ctx: Context) -> Array:
        """Return the client's theta for the newest global model."""
        return ctx.fit(by=FedProx.of(self, lr=self.personal_lr, proximal_mu=self.lam))

    def server_step(self, ctx: ServerContext) -> Array:
        """Move the global weights towards the mean by beta."""
        return (1 - self.beta) * ctx.global_weights + self.beta * ctx.mean["weights"]
