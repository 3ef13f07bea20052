"""Runs in Weights & Biases (https://wandb.ai), online or offline."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from fedsim.checks import check_choice, check_instance, check_path
from fedsim.trackers.description import RunDescription, metrics
from fedsim.trackers.tracker import FAILED, FINISHED, KILLED, TrackedRun, Tracker

#: The longest tag that Weights & Biases takes.
MAX_TAG = 64
#: Exit codes of a run, by which Weights & Biases shows how it ended.
EXIT_CODES = {FINISHED: 0, FAILED: 1, KILLED: 255}


@dataclass(eq=False)
class WandB(Tracker):
    """Logs runs to Weights & Biases; needs the extra ``wandb``.

    Parameters
    ----------
    project : str
    entity : str, optional
        A user or a team; default that of the login.
    mode : {"online", "offline"}, optional
        ``"offline"`` writes files, which ``wandb sync`` uploads later; default ``$WANDB_MODE``, otherwise online.
    directory : path, optional
        Where the folder ``wandb`` with the files of runs is made; default ``$WANDB_DIR``, otherwise the current folder.

    Raises
    ------
    ConfigError
        The extra is missing, or a value is not allowed.
    """

    package: ClassVar[str] = "wandb"
    project: str = "fedsim"
    entity: str | None = None
    mode: Literal["online", "offline"] | None = None
    directory: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_instance("WandB's project", self.project, str, "the name of a project")
        check_instance("WandB's entity", self.entity, str | None, "the name of a user or a team")
        if self.mode is not None:
            check_choice("WandB's mode", self.mode, ("online", "offline"))
        if self.directory is not None:
            check_path("WandB's directory", self.directory)

    def open_run(self, description: RunDescription, resumed: bool) -> TrackedRun:
        """Open a run; one that is resumed continues online, and offline it is logged again as a whole."""
        import wandb

        if self.directory is not None:
            Path(self.directory).mkdir(parents=True, exist_ok=True)
        tags = {f"{axis}: {label}"[:MAX_TAG] for axis, label in description.labels.items()}
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            mode=self.mode,
            dir=self.directory,
            id=description.id,
            name=description.name,
            group=", ".join(description.labels.values()) or None,
            tags=sorted({description.dataset[:MAX_TAG], *tags}),
            config={**description.tags, **description.parameters},
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(console="off", quiet=True),
        )
        return _WandBRun(run)


class _WandBRun:
    """A run of Weights & Biases."""

    def __init__(self, run: Any) -> None:
        self._run, self._first = run, run.starting_step

    def log_rounds(self, rows: Sequence[Mapping[str, float]]) -> None:
        for row in rows:
            if row["round"] >= self._first:
                self._run.log(metrics(row), step=int(row["round"]))

    def log_result(self, summary: Mapping[str, float], notes: Mapping[str, str], files: Sequence[Path]) -> None:
        import wandb

        self._run.summary.update({**summary, **notes})
        artifact = wandb.Artifact(f"run-{self._run.id}", type="model")
        for file in files:
            artifact.add_file(str(file))
        self._run.log_artifact(artifact)

    def close(self, status: str, reason: str) -> None:
        if reason:
            self._run.summary["error"] = reason
        self._run.finish(exit_code=EXIT_CODES[status])
