"""Files written whole: to a temporary name in the same folder, flushed to disk, then renamed over the target."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING

from fedsim.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Call ``write(stream)`` on a temporary file and put it in `path`'s place once it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a frame as CSV without its index; floats keep every digit."""
    write_whole(path, lambda stream: stream.write(frame.to_csv(index=False).encode()))


def writable_directory(path: str | os.PathLike[str]) -> Path:
    """Return the folder, made if need be, after proving that a file can be written in it.

    Raises
    ------
    ConfigError
        It cannot.
    """
    directory = Path(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ConfigError(f"the results folder {str(directory)!r} cannot be written: {error.strerror}") from None
    return directory


def keep_earlier(directory: Path, names: list[str]) -> Path | None:
    """Move earlier results called `names` into a numbered folder beside `directory`; return it, or None."""
    present = [directory / name for name in names if (directory / name).exists()]
    if not present:
        return None
    number = 1
    while (kept := directory.with_name(f"{directory.name}.{number}")).exists():
        number += 1
    kept.mkdir()
    for file in present:
        file.rename(kept / file.name)
    return kept
