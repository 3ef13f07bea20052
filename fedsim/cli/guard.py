"""Exit codes: 0, or 2 with one sentence for the user's errors, or 130 after Ctrl-C."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from fedsim.errors import FedsimError

if TYPE_CHECKING:
    from types import FrameType


class Parser(argparse.ArgumentParser):
    """argparse, with errors of one sentence."""

    def error(self, message: str) -> NoReturn:
        """Print the sentence and exit 2."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def guard(main: Callable[[], None]) -> NoReturn:
    """Call `main` and exit: 0 if it returns, 2 with one sentence for the user's errors, 130 for Ctrl-C.

    An exception in a class of the user's that fedsim has called is one of these errors, and so is code that ends the
    process, such as a strategy that calls ``sys.exit()``.
    """
    program = Path(sys.argv[0]).name
    try:
        main()
        sys.stdout.flush()  # an error of writing is one of main's
    except FedsimError as error:
        exit_with(f"{program}: error: {error}", 2)
    except BrokenPipeError:  # the reader of our output has left, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        exit_with(f"{program}: error: {name}{error.strerror or error}", 2)
    except MemoryError as error:
        exit_with(f"{program}: error: not enough memory: {error}", 2)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        _leave_threads(130)
    except SystemExit as error:
        if (place := _who_exits(error)) is None:
            raise  # argparse has said all there is to say
        exit_with(
            f"{program}: error: {place} ended the program ({error!r}); allowed: to return, or to raise an error", 2
        )
    except Exception as error:
        from fedsim.text import describe, raised_by_user_class

        if not raised_by_user_class(error):
            raise
        exit_with(f"{program}: error: {describe(error)}", 2)
    sys.exit(0)


def _leave_threads(code: int) -> NoReturn:
    """Exit without waiting for threads that are training: a client may take for ever."""
    import threading

    if any(t is not threading.current_thread() and not t.daemon for t in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _who_exits(error: SystemExit) -> str | None:
    """Return who raised SystemExit, such as ``Mine.train in mine.py, line 5``; None for the command's own parser."""
    import traceback

    frames = list(traceback.walk_tb(error.__traceback__))
    if frames[-1][0].f_globals.get("__name__") == "argparse":
        return None
    others = ("", "fedsim", "flwr", "concurrent", "_frozen_importlib", "_frozen_importlib_external")
    own = [f for f in frames if _module_of_self(f[0]).partition(".")[0] not in others]
    frame, line = (own or frames)[-1]
    name = f"{type(frame.f_locals['self']).__name__}'s {frame.f_code.co_name}" if own else frame.f_code.co_name
    return f"{name} in {frame.f_code.co_filename}, line {line},"


def _module_of_self(frame: FrameType) -> str:
    """Return where the class is defined whose method a frame runs, or nothing."""
    return type(frame.f_locals["self"]).__module__ if "self" in frame.f_locals else ""


def exit_with(sentence: str, code: int) -> NoReturn:
    """Print a sentence on standard error and exit."""
    print(sentence, file=sys.stderr)
    sys.exit(code)


def report_kept(folder: Path | None) -> None:
    """Say where earlier results were moved, if they were."""
    if folder:
        print(f"kept the earlier results in {folder}")
