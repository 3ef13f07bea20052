"""FedNova: normalised averaging of clients that take different numbers of steps.

Wang, Liu, Liang, Joshi and Poor, "Tackling the objective inconsistency problem in heterogeneous federated
optimization", NeurIPS 2020 (arXiv:2007.07481), eq. 9, with momentum as in section 4.1.
"""

from __future__ import annotations

from fedsim.clients.context import Array, Context
from fedsim.clients.server_hooks import ServerContext
from fedsim.clients.sgd import SGD


class FedNova(SGD):
    """SGD whose update is divided by the client's effective number of steps and multiplied by the cohort's mean number.

    Parameters
    ----------
    lr, epochs, batch_size, momentum, weight_decay, lr_decay, lr_decay_every, steps
        As for SGD.
    """

    def train(self, ctx: Context) -> Array:
        """Send the mean step in place of the sum of all steps."""
        ctx.up["steps"] = self.effective_steps(ctx)
        step = (ctx.fit() - ctx.global_weights) / ctx.up["steps"][:, None].astype(ctx.model.dtype)
        return ctx.global_weights + step

    def server_step(self, ctx: ServerContext) -> Array:
        """Multiply the mean step by the cohort's mean number of steps."""
        return ctx.global_weights + ctx.mean["steps"] * (ctx.mean["weights"] - ctx.global_weights)
