"""The callback that writes checkpoints and ends a run after Ctrl-C."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fedsim.study.callbacks import Callback, FinishedRound
from fedsim.study.directory import RunDirectory
from fedsim.text import print_notice

if TYPE_CHECKING:
    from fedsim.study.run_state import RunState

#: A checkpoint is written after a round if this many seconds have passed since the last one, and if writing takes at
#: most this share of the time.
CHECKPOINT_SECONDS, CHECKPOINT_SHARE = 5.0, 0.1


class Checkpoints(Callback):
    """Writes a run's state every few seconds, and ends the run after the round that was interrupted.

    Parameters
    ----------
    folder : RunDirectory
    state : RunState
    """

    def __init__(self, folder: RunDirectory, state: RunState) -> None:
        self._folder, self._state = folder, state
        self._interrupted = False
        self._saved, self._saving = time.perf_counter(), 0.0

    def interrupt(self, number: int, frame: Any) -> None:
        """End the run after this round, as the handler of Ctrl-C; the second time, at once."""
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True
        print_notice("stopping after this round; Ctrl-C again stops at once")

    def round_finished(self, finished: FinishedRound) -> None:
        """Write a checkpoint if it is due or Ctrl-C was pressed; then raise KeyboardInterrupt in the latter case."""
        self._folder.check()
        now = time.perf_counter()
        due = max(CHECKPOINT_SECONDS, self._saving / CHECKPOINT_SHARE)
        if self._interrupted or now - self._saved >= due:
            self._folder.save({**self._state.state_dict(), "stop_reason": finished.stop_reason})
            self._saved = time.perf_counter()
            self._saving = self._saved - now
        if self._interrupted:
            raise KeyboardInterrupt
