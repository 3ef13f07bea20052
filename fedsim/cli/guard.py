"""Exit codes of commands: 0, 2 with a one-line message after a user's error, or 130 after Ctrl-C."""

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
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def guard(main: Callable[[], None]) -> NoReturn:
    """Call `main` and exit: with 0 if it returns, 2 and a one-line message after a user's error, 130 after Ctrl-C.

    Exceptions raised in a user's class are user's errors, and so are calls of ``sys.exit()`` there.
    """
    program = Path(sys.argv[0]).name

    def fail(message: object) -> NoReturn:
        from fedsim.text import escape

        print(f"{program}: error: {escape(message)}", file=sys.stderr)
        sys.exit(2)

    try:
        main()
        sys.stdout.flush()  # inside the try block, because writing may fail
    except FedsimError as error:
        fail(error)
    except BrokenPipeError:  # the reader of the output has exited, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        fail(f"{name}{error.strerror or error}")
    except MemoryError as error:
        fail(f"not enough memory: {error}")
    except KeyboardInterrupt:
        _ignore_interrupts()
        print(f"{program}: interrupted", file=sys.stderr)
        _exit_without_threads(130)
    except SystemExit as error:
        if (place := _place_of_exit(error)) is None:
            raise
        fail(f"{place} raised {error!r}; allowed: to return, or to raise an error")
    except Exception as error:
        from fedsim.text import describe, raised_by_user_class

        if not raised_by_user_class(error):
            raise
        fail(describe(error))
    sys.exit(0)


def _ignore_interrupts() -> None:
    """Ignore another Ctrl-C while the process exits, which would change its exit code."""
    import signal
    import threading

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _exit_without_threads(code: int) -> NoReturn:
    """Exit without waiting for threads, which may train for a long time."""
    import threading

    if any(t is not threading.current_thread() and not t.daemon for t in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _place_of_exit(error: SystemExit) -> str | None:
    """Return where SystemExit was raised, such as ``Mine's train in mine.py, line 5,``; None if by argparse."""
    import traceback

    frames = list(traceback.walk_tb(error.__traceback__))
    if frames[-1][0].f_globals.get("__name__") == "argparse":
        return None
    excluded = ("", "fedsim", "flwr", "concurrent", "_frozen_importlib", "_frozen_importlib_external")
    own = [f for f in frames if _module_of_self(f[0]).partition(".")[0] not in excluded]
    frame, line = (own or frames)[-1]
    name = f"{type(frame.f_locals['self']).__name__}'s {frame.f_code.co_name}" if own else frame.f_code.co_name
    return f"{name} in {frame.f_code.co_filename}, line {line},"


def _module_of_self(frame: FrameType) -> str:
    """Return the module of the class whose method a frame runs, or ""."""
    return type(frame.f_locals["self"]).__module__ if "self" in frame.f_locals else ""
