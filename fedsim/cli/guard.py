"""Exit codes of commands: 0, 2 with a one-line message after a user's error, or 130 after Ctrl-C."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from fedsim.errors import FedsimError

#: Follows the traceback of an error of fedsim itself.
REPORT = "This is an error in fedsim. Please report it on the issue tracker of its repository, with the lines above."


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def guard(main: Callable[[], None], verbose: bool = False) -> NoReturn:
    """Call `main` and exit: with 0 if it returns, 2 and a one-line message after a user's error, 130 after Ctrl-C.

    Exceptions raised in a user's class are user's errors, and so are calls of ``sys.exit()`` there. A script's own call
    of ``sys.exit()`` ends the script. Other exceptions end with Python's traceback, and those of fedsim itself with a
    request to report them.

    Parameters
    ----------
    main : callable
    verbose : bool
        Print the traceback before the message.
    """
    program = Path(sys.argv[0]).name

    def fail(message: str, error: BaseException) -> NoReturn:
        from fedsim.text import escape, full_traceback, user_line

        if verbose:
            print(full_traceback(error), end="", file=sys.stderr)
        line = user_line(error, called=True)
        known = line.strip(" ()").partition(",")[0] in message
        print(f"{program}: error: {escape(message)}{'' if known else line}", file=sys.stderr)
        sys.exit(2)

    try:
        main()
        sys.stdout.flush()  # inside the try block, because writing may fail
    except FedsimError as error:
        fail(str(error), error)
    except BrokenPipeError:  # the reader of the output has exited, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        fail(f"{name}{error.strerror or error}", error)
    except MemoryError as error:
        fail(f"not enough memory: {error}", error)
    except KeyboardInterrupt:
        _exit_after_interrupt(program)
    except (Exception, SystemExit) as error:
        from fedsim.text import describe, raised_by_fedsim, raised_by_user_class

        if raised_by_user_class(error):
            fail(describe(error), error)
        if raised_by_fedsim(error) and not isinstance(error, SystemExit):
            error.add_note(REPORT)
        raise
    sys.exit(0)


def _exit_after_interrupt(program: str) -> NoReturn:
    """Exit with code 130 without waiting for threads, which may train for a long time."""
    import signal
    import threading

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # another Ctrl-C would change the exit code
    print(f"{program}: interrupted", file=sys.stderr)
    if any(t is not threading.current_thread() and not t.daemon for t in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(130)
    sys.exit(130)
