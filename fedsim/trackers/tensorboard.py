"""Runs in the event files of TensorBoard (https://www.tensorflow.org/tensorboard), without TensorFlow or PyTorch."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fedsim.checks import check_path
from fedsim.trackers.description import RunDescription, metrics
from fedsim.trackers.tracker import FINISHED, TrackedRun, Tracker

#: Number of bytes of the name of a run in the name of its folder, without its id.
MAX_NAME = 150


@dataclass(eq=False)
class TensorBoard(Tracker):
    """Logs runs to event files, for ``tensorboard --logdir DIR``; needs the extra ``tensorboard``.

    Metrics are scalars, parameters are hyperparameters of the tab HPARAMS, and tags and the model card are texts.

    Parameters
    ----------
    logdir : path
        The folder of all runs; each has a folder of its own in it.

    Raises
    ------
    ConfigError
        The extra is missing, or a value is not allowed.
    """

    package: ClassVar[str] = "tensorboard"
    logdir: str | os.PathLike[str] = "tensorboard"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_path("TensorBoard's logdir", self.logdir)

    def open_run(self, description: RunDescription, resumed: bool) -> TrackedRun:
        """Open a run; one that is resumed is logged again as a whole, which replaces its earlier event files."""
        logdir = Path(self.logdir)
        name = re.sub(r"[^\w.,=() -]", "_", description.name).encode()[:MAX_NAME].decode(errors="ignore")
        folder = next(iter(logdir.glob(f"*{description.id}")), logdir / f"{name} {description.id}")
        return _TensorBoardRun(folder, description)


class _TensorBoardRun:
    """An event file."""

    def __init__(self, folder: Path, description: RunDescription) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._earlier = list(folder.glob("events.out.tfevents.*"))
        self._writer = EventFileWriter(str(folder))
        # A TensorBoard that has read events of an earlier file drops them, from this step on.
        self._add(0, session_log=SessionLog(status=SessionLog.START))
        self._add(0, summary=hparams_pb(dict(description.parameters), trial_id=description.id))
        self._add_texts(0, description.tags)

    def log_rounds(self, rows: Sequence[Mapping[str, float]]) -> None:
        for row in rows:
            self._add_scalars(int(row["round"]), metrics(row))
        self._writer.flush()
        while self._earlier:
            self._earlier.pop().unlink(missing_ok=True)

    def log_result(self, summary: Mapping[str, float], notes: Mapping[str, str], files: Sequence[Path]) -> None:
        rounds = int(summary["rounds"])
        self._add_scalars(rounds, summary)
        cards = {file.stem: file.read_text(encoding="utf-8") for file in files if file.suffix == ".md"}
        self._add_texts(rounds, {**notes, **cards})

    def close(self, status: str, reason: str) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        try:
            ended = api_pb2.STATUS_SUCCESS if status == FINISHED else api_pb2.STATUS_FAILURE
            info = plugin_data_pb2.SessionEndInfo(status=ended, end_time_secs=time.time())
            about = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=info))
            value = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=about, tensor=metadata.NULL_TENSOR)
            self._add(0, summary=Summary(value=[value]))
            if reason:
                self._add_texts(0, {"error": f"{status}: {reason}"})
        finally:
            self._writer.close()

    def _add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        parts = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(step, summary=Summary(value=parts))

    def _add_texts(self, step: int, texts: Mapping[str, str]) -> None:
        from tensorboard.plugins.text.summary_v2 import text_pb

        for name, text in texts.items():
            self._add(step, summary=text_pb(name, text))

    def _add(self, step: int, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.add_event(Event(wall_time=time.time(), step=step, **content))
