"""Errors that a user can cause. The message is one sentence with the field, its value, and the allowed values."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class FedsimError(Exception):
    """Base class of fedsim's errors; the command line prints the message and exits with status 2.

    Attributes
    ----------
    run : str
        The run of a study that raised the error, such as ``"Dirichlet(0.1), seed 3"``, with which the message begins;
        otherwise empty.
    """

    run: str = ""

    def __str__(self) -> str:
        return f"{self.run}: {self._message()}" if self.run else self._message()

    def _message(self) -> str:
        return super().__str__()

    @property
    def reason(self) -> str:
        """The message without run, round and client, for tables that have columns for these."""
        return self._message()


class ConfigError(FedsimError, ValueError):
    """A setting or an input file cannot be used."""


class DataError(FedsimError, ValueError):
    """Data cannot be found or cannot be trained on."""


class DivergenceError(FedsimError, ArithmeticError):
    """Training diverged: values are too large or not finite. The message names the round and the client."""


class ClientError(FedsimError):
    """A client has failed.

    Parameters
    ----------
    client, round_number : int
    reason : str

    Attributes
    ----------
    client_name : str
        Its name, if clients have names.
    """

    client_name = ""

    def __init__(self, client: int, round_number: int, reason: str) -> None:
        super().__init__(client, round_number, reason)

    @property
    def reason(self) -> str:
        """The message without round and client."""
        return str(self.args[2])

    def _message(self) -> str:
        client, round_number, reason = self.args
        name = f" ({self.client_name})" if self.client_name else ""
        return f"client {client}{name} failed in round {round_number}: {reason}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the text of the cause's traceback too, for errors of other processes."""
        text = "".join(traceback.format_exception(self.__cause__)) if self.__cause__ else ""
        return _client_error, (self.args, text), self.__dict__ or None


class RemoteError(Exception):
    """Stands for an exception in another process; its message is the traceback."""


def _client_error(args: tuple[int, int, str], cause: str) -> ClientError:
    error = ClientError(*args)
    error.__cause__ = RemoteError(cause) if cause else None
    return error


@contextmanager
def named_run(run: str) -> Iterator[None]:
    """Name the run of a study in an error that it raises: in the message of fedsim's errors, in a note of others."""
    try:
        yield
    except FedsimError as error:
        error.run = error.run or run
        raise
    except Exception as error:
        error.add_note(run)
        raise


def missing_extra(what: str, extra: str) -> ConfigError:
    """Return the error for a feature that needs an extra, with the command that installs it."""
    return ConfigError(f"{what} needs the extra {extra!r}; install it by: pip install 'fedsim[{extra}]'")
