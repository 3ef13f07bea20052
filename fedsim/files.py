"""Files written whole: to a temporary name in the same folder, flushed to disk, then renamed over the target."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING

from fedsim.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

#: Inside a results folder, where earlier results are gathered before they are moved out of it together.
EARLIER = ".earlier"


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Call ``write(stream)`` on a temporary file and put it in `path`'s place once it is complete.

    The stream can be read too. When this returns, the file is on the disk under its name; if the process or the
    machine stops before, the old file is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w+b") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # as where the disk is full
            error.filename = str(path)
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Flush a folder's entries to disk, so that what was renamed or deleted in it stays so after a power cut."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows cannot open folders
        return
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_temporary(directory: Path, names: Iterable[str]) -> None:
    """Delete the temporary files that `write_whole` left for files called `names` when its process was killed.

    The caller makes sure that nobody is writing these files.
    """
    known = "|".join(map(re.escape, names))
    pattern = re.compile(rf"\.({known})\.[a-z0-9_]{{8}}")  # the names that tempfile makes
    for file in directory.iterdir():
        if pattern.fullmatch(file.name):
            file.unlink(missing_ok=True)


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
    if not os.fspath(path):
        raise ConfigError("the results folder is ''; allowed: the path of a folder")
    directory = Path(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"the results folder {str(directory)!r} cannot be written: {reason}") from None
    return directory


def keep_earlier(directory: Path, names: Iterable[str]) -> Path | None:
    """Move earlier results called `names` into a numbered folder beside `directory`; return it, or None.

    They appear there together: after an interruption the next call goes on with what this one has begun.
    """
    gathered = directory / EARLIER
    present = [directory / name for name in names if (directory / name).exists()]
    if present:
        gathered.mkdir(exist_ok=True)
    elif not gathered.is_dir():
        return None
    for file in present:
        file.rename(gathered / file.name)
    odd = directory.name in ("", "..") or directory.is_symlink()
    place = directory.resolve() if odd else directory
    number = 1
    while (kept := place.parent / f"{place.name}.{number}").exists():
        number += 1
    gathered.rename(kept)
    return kept
