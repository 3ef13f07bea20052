"""Atomic writing of files: to a temporary file in the same folder, which is flushed to disk and then renamed."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING

from fedsim.checks import check_instance
from fedsim.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

#: Subfolder of a results folder to which earlier results are moved before it is renamed.
EARLIER = ".earlier"


def write_whole(path: Path, write: Callable[[IO[bytes]], object], durable: bool = True) -> None:
    """Call ``write(stream)`` with a temporary file, which replaces `path` once it is complete.

    The stream can also be read. If the process stops earlier, the old file is unchanged.

    Parameters
    ----------
    path : Path
    write : callable
    durable : bool
        Whether the new file is on the disk when this returns, and the old one is unchanged also if the machine stops
        earlier. Flushing takes milliseconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w+b") as stream:
            write(stream)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # for example if the disk is full
            error.filename = str(path)
        raise
    if durable:
        sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Flush the entries of a folder to disk, so that renamed and deleted files stay so after a power cut."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows cannot open folders
        return
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_temporary(directory: Path, names: Iterable[str]) -> None:
    """Delete temporary files of `write_whole` for files called `names`, left by processes that were killed.

    The caller must make sure that no process is writing these files.
    """
    known = "|".join(map(re.escape, names))
    pattern = re.compile(rf"\.({known})\.[a-z0-9_]{{8}}")  # as tempfile names them
    for file in directory.iterdir():
        if pattern.fullmatch(file.name):
            file.unlink(missing_ok=True)


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """Write a text; see `write_whole`."""
    write_whole(path, lambda stream: stream.write(text.encode()), durable)


def write_csv(path: Path, frame: pd.DataFrame, durable: bool = True) -> None:
    """Write a frame as CSV without its index, with all digits of floats; see `write_whole`."""
    write_text(path, frame.to_csv(index=False), durable)


def writable_directory(path: str | os.PathLike[str]) -> Path:
    """Return the folder, created if needed, after checking that files can be written in it.

    Raises
    ------
    ConfigError
        The folder cannot be created or written.
    """
    check_instance("directory", path, str | os.PathLike, "a path")
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

    They appear there together. If this is interrupted, the next call completes it.
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
