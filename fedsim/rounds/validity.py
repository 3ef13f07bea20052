"""Exclusion of clients that failed or diverged, unless they end the run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsim.attacks import Attack
from fedsim.checks import check_choice
from fedsim.clients.task import Task, Update
from fedsim.errors import ClientError, DivergenceError, FedsimError
from fedsim.splits.names import MAX_LENGTH, describe_client
from fedsim.text import cut

#: A client whose training loss exceeds this multiple of the untrained model's loss has diverged.
MAX_LOSS_RATIO = 10.0


class ValidityChecks:
    """Checks of a round's updates.

    Parameters
    ----------
    dtype : str
        Of the weights: an update longer than its largest number has diverged.
    on_failure : {"raise", "exclude"}
        Whether a failure ends the run or excludes the client from the round.
    attack : Attack, optional
        The attack on training, for errors.
    client_names : sequence of str
        By partition id; empty if clients have numbers only.
    """

    def __init__(
        self,
        dtype: str,
        on_failure: str = "raise",
        attack: Attack | None = None,
        client_names: Sequence[str] = (),
    ) -> None:
        check_choice("on_failure", on_failure, ("raise", "exclude"))
        self.on_failure, self._attack, self._client_names = on_failure, attack, client_names
        self._max_loss = float(np.finfo(np.float64).max)
        self._max_norm = float(np.finfo(dtype).max)

    def limit_loss(self, untrained_loss: float) -> None:
        """Set the largest valid training loss from the untrained model's test loss."""
        self._max_loss = MAX_LOSS_RATIO * max(untrained_loss, 1.0)

    def advice(self, round_number: int) -> str:
        """Return what may help against divergence in a round."""
        lr = "a smaller lr usually helps"
        if self._attack is None or round_number < self._attack.start:
            return lr
        return f"the attack {self._attack} may be the cause; without an attack, {lr}"

    def fail(self, client: int, error: FedsimError, failed: dict[int, str]) -> None:
        """Raise the error, or record its reason in `failed`."""
        if isinstance(error, ClientError) and self._client_names:
            error.client_name = cut(self._client_names[client], MAX_LENGTH)
        if self.on_failure == "raise":
            raise error
        failed[client] = error.reason

    def record_failures(self, update: Update, failed: dict[int, str]) -> None:
        """Record the clients that have failed to train, or raise the error of the first."""
        for client, error in update.failed.items():
            self.fail(client, error, failed)

    def keep_valid(self, task: Task, update: Update, failed: dict[int, str]) -> Update:
        """Return the valid updates.

        Parameters
        ----------
        task : Task
        update : Update
        failed : dict of int to str
            Partition id -> reason; excluded clients are added.
        """
        self.record_failures(update, failed)
        assert update.update_norm is not None
        valid = np.abs(update.train_loss) <= self._max_loss  # False for NaN
        valid &= update.update_norm <= self._max_norm
        for row in np.flatnonzero(~valid):
            self.fail(int(update.partition_ids[row]), self._diverged(task, update, int(row)), failed)
        return update if valid.all() else update.rows(valid)

    def check_mean_loss(self, task: Task, loss: float) -> None:
        """Raise DivergenceError if the clients' mean loss, the only one known, is that of diverged training."""
        if not abs(loss) <= self._max_loss:
            raise DivergenceError(
                f"training diverged in round {task.round} (the clients' mean training loss is {loss:.3g}) with "
                f"{task.strategy}; {self.advice(task.round)}"
            )

    def _diverged(self, task: Task, update: Update, row: int) -> DivergenceError:
        loss, norm = float(update.train_loss[row]), float(update.update_norm[row])  # type: ignore[index]
        if not np.isfinite(loss):
            what = "weights or loss not finite"
        elif norm <= self._max_norm:
            what = f"training loss {loss:.3g}"
        else:
            what = f"norm of the update {norm:.3g}"
        return DivergenceError(
            f"training diverged in round {task.round} at "
            f"{describe_client(update.partition_ids[row], task.client_names)} ({what}) "
            f"with {task.strategy}; {self.advice(task.round)}"
        )
