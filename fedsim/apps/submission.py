"""Submission of an experiment to a running SuperLink."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from fedsim.apps.export import export
from fedsim.apps.private_folder import private_folder
from fedsim.apps.processes import defer_signals, end_processes, start_process
from fedsim.errors import FedsimError
from fedsim.study.experiment import Experiment


def submit(
    experiment: Experiment,
    connection: str,
    environment: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] = lambda line: None,
    **settings: Any,
) -> None:
    """Run an experiment on the SuperLink of a connection in Flower's configuration, and wait for its end.

    Parameters
    ----------
    experiment : Experiment
        On a dataset with a name; every machine reads it itself.
    connection : str
        Name of the connection; ``flwr config list`` shows them.
    environment : mapping, optional
        Environment of the command ``flwr``; by default that of this process.
    on_line : callable
        Called with each line of the server's output; fedsim's lines begin with ``fedsim: ``.
    **settings
        More run configuration, as for `fedsim.apps.export.export`; ``out`` is a path on the SuperLink's machine.

    Raises
    ------
    FedsimError
        The run failed; the message has the server's reason.
    """
    with private_folder() as folder:
        app = export(experiment, folder / "app", **settings)
        submit_app(app, connection, environment or os.environ, on_line)


def submit_app(app: Path, connection: str, environment: Mapping[str, str], on_line: Callable[[str], None]) -> None:
    """Run fedsim's app in a folder on the SuperLink of a connection, and wait for its end; see `submit`."""
    command = ["flwr", "run", str(app), connection, "--stream"]
    process = start_process(command, environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout
    try:
        lines = []
        for raw in process.stdout:
            line = raw.decode(errors="replace").rstrip()
            lines.append(line)
            on_line(line)
        finished = any(line.startswith("fedsim: done") for line in lines)
        if process.wait() or not finished:
            raise FedsimError(f"the run on the SuperLink {connection!r} failed: {failure_reason(lines)}")
    finally:
        with defer_signals():
            end_processes(process)
            process.stdout.close()


def failure_reason(lines: Sequence[str]) -> str:
    """Return why a command failed: the last exception in its output, else Flower's error box, else the last line."""
    stripped = [line.strip("│╭╮╰╯─ ") for line in lines]
    raised = [line for line in stripped if re.search(r"\w(Error|Exception): ", line)]
    start = max((i for i, line in enumerate(stripped) if line == "Error"), default=len(lines))
    box = [line.strip("│ ") for line in takewhile(lambda line: line.startswith("│"), lines[start + 1 :])]
    boxed = [" ".join(box)] if box else []
    return next((found[-1] for found in (raised, boxed, [line for line in stripped if line]) if found), "no output")
