"""Messages for people: text on one printable line, and exceptions in one sentence."""

from __future__ import annotations

import os
import sysconfig
import traceback
from pathlib import Path


def printable(text: str) -> str:
    """Return a text on one line, with escapes in the place of characters that a terminal or a file may not take."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def one_line(error: BaseException) -> str:
    """Return what an exception says, in one printable line; nothing if it cannot say it."""
    try:
        return printable(str(error))
    except Exception:  # raised by a __str__ that somebody else wrote
        return ""


_PACKAGE = str(Path(__file__).parent) + os.sep
#: Code that is not the user's: this package, installed packages, Python itself, and what dataclasses generate.
_LIBRARIES = (_PACKAGE, sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"), "<frozen", "<string>")


def describe(error: BaseException, most: int = 200) -> str:
    """Return an exception's type, what it says in one line, and the line of the user's code that raised it, if any."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_LIBRARIES)]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    said = one_line(error) or "no message"
    return f"{type(error).__name__}: {said if len(said) <= most else said[:most] + '...'}{place}"


def raised_by_user_class(error: BaseException) -> bool:
    """Whether an exception comes from code of the user that fedsim has called, such as a method of a strategy.

    A script that calls fedsim is not such code, unless fedsim calls it back.
    """
    frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    last = max((i for i, name in enumerate(frames) if not name.startswith(_LIBRARIES)), default=-1)
    package = [i for i, name in enumerate(frames) if name.startswith(_PACKAGE)]
    # The first frame of the package is the command itself, which calls a script's main function.
    return len(package) > 1 and package[-1] < last
