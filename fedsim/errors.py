"""Errors that a user can cause. The message is one sentence with the field, its value, and the allowed values."""

from __future__ import annotations


class FedsimError(Exception):
    """Base class of fedsim's errors; the command line prints the message and exits with status 2."""

    @property
    def reason(self) -> str:
        """The message without round and client, for tables that have columns for these."""
        return str(self)


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

    def __str__(self) -> str:
        client, round_number, reason = self.args
        name = f" ({self.client_name})" if self.client_name else ""
        return f"client {client}{name} failed in round {round_number}: {reason}"


def missing_extra(what: str, extra: str) -> ConfigError:
    """Return the error for a feature that needs an extra, with the command that installs it."""
    return ConfigError(f"{what} needs the extra {extra!r}; install it by: pip install 'fedsim[{extra}]'")
