"""The directory of a search: Optuna's journal of its trials, their runs, and the files made at the end.

journal.log     the trials, as Optuna's journal
journal.sha256  the checksum and the length of the journal when the search last ended
runs/NAME/      a run of a trial: see `fedsim.study.result_files` and `fedsim.study.checkpoint`
trials.csv      `Search.trials`
best.toml       the best experiment; not if its dataset was given as arrays
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedsim.errors import ConfigError
from fedsim.files import write_csv, write_text
from fedsim.study.config import to_toml
from fedsim.study.directory import ResultsDirectory
from fedsim.study.search_result import ROUNDS, Search, finished_trials
from fedsim.text import describe

JOURNAL, CHECKSUM, TRIALS, BEST = "journal.log", "journal.sha256", "trials.csv", "best.toml"
#: Attribute of Optuna's study: what decides on the trials.
SETTINGS = "settings"


class SearchDirectory(ResultsDirectory):
    """The directory of a search, locked while its context is open.

    Parameters
    ----------
    path : path
        Created if it does not exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path, (TRIALS, BEST, CHECKSUM))
        self.journal = self.path / JOURNAL

    def _prepare(self) -> None:
        """Delete what a killed process has left: an incomplete last line of the journal, and Optuna's lock of it."""
        if self.journal.exists():
            self._verify()
            lines = self.journal.read_bytes().splitlines(keepends=True)
            if lines and not _is_complete(lines[-1]):
                os.truncate(self.journal, sum(map(len, lines[:-1])))
        Path(f"{self.journal}.lock").unlink(missing_ok=True)

    def __exit__(self, *details: object) -> None:
        """Write the checksum of the journal, and its length, because a search that continues makes it longer."""
        with suppress(OSError):
            content = self.journal.read_bytes()
            write_text(self.path / CHECKSUM, f"{hashlib.sha256(content).hexdigest()} {len(content)}\n")
        super().__exit__(*details)

    def _verify(self) -> None:
        """Raise ConfigError if the part of the journal that has a checksum was changed; it may have been cut off."""
        try:
            digest, length = (self.path / CHECKSUM).read_text(encoding="utf-8").split()
            content = self.journal.read_bytes()[: int(length)]
        except (OSError, ValueError):  # a search that was killed may have none
            return
        if len(content) == int(length) and hashlib.sha256(content).hexdigest() != digest:
            raise _damaged(self, "its checksum is another")

    def write(self, search: Search) -> None:
        """Write the files of a search that has ended."""
        self.check()
        write_csv(self.path / TRIALS, search.trials)
        if isinstance(search.best.dataset, str):
            write_text(self.path / BEST, to_toml(search.best))


def _is_complete(line: bytes) -> bool:
    """Return whether a line of the journal was written to its end."""
    try:
        json.loads(line)
    except ValueError:
        return False
    return line.endswith(b"\n")


def open_study(folder: SearchDirectory | None, rises: bool, **settings: Any) -> Any:
    """Return Optuna's study: that in the directory, if there is one, or a new one.

    Parameters
    ----------
    folder : SearchDirectory, optional
        Default: the study is in memory.
    rises : bool
        Whether the metric should rise.
    **settings : object
        Whatever decides on the trials, as JSON: `prune`, `space` (setting -> text), and others.

    Raises
    ------
    ConfigError
        The directory has another search, or its journal is damaged.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState

    pruner = optuna.pruners.MedianPruner() if settings["prune"] else optuna.pruners.NopPruner()
    direction = "maximize" if rises else "minimize"
    try:
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder.journal))) if folder else None
        study = optuna.create_study(
            storage=storage, pruner=pruner, study_name="fedsim", direction=direction, load_if_exists=True
        )
        known = study.user_attrs.get(SETTINGS)
        interrupted = study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise _damaged(folder, describe(error)) from error
    if known is None:
        study.set_user_attr(SETTINGS, settings)
    elif changed := [name for name in settings if known.get(name) != settings[name]]:
        path = str(folder and folder.path)
        raise ConfigError(f"{path!r} has a search with another {', '.join(changed)}; choose another directory")
    for trial in finished_trials(study):
        if set(trial.params) != set(settings["space"]) or ROUNDS not in trial.user_attrs:
            raise _damaged(folder, f"trial {trial.number} is not complete")
    for trial in interrupted:
        study.tell(trial.number, state=TrialState.FAIL)
    return study


def _damaged(folder: SearchDirectory | None, reason: str) -> ConfigError:
    file = str(folder and folder.journal)
    return ConfigError(f"{file!r} is damaged: {reason}; restore it, or delete it to start again")
