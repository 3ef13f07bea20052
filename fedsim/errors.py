"""The errors a user can cause, each one sentence: which field, what value, what is allowed."""

from __future__ import annotations


class FedsimError(Exception):
    """Base of every error fedsim raises on purpose; the command line prints it and exits 2."""

    @property
    def reason(self) -> str:
        """What went wrong, for a table that has columns for round and client."""
        return str(self)


class ConfigError(FedsimError, ValueError):
    """A setting or an input file that cannot be used."""


class DataError(FedsimError, ValueError):
    """Data that cannot be trained on, or that cannot be found."""


class DivergenceError(FedsimError, ArithmeticError):
    """Training left the finite numbers or blew up; names the round and the client."""


class ClientError(FedsimError):
    """What went wrong at one client.

    Parameters
    ----------
    client, round_number : int
    reason : str
    """

    def __init__(self, client: int, round_number: int, reason: str) -> None:
        super().__init__(client, round_number, reason)

    @property
    def reason(self) -> str:
        """What went wrong."""
        return str(self.args[2])

    def __str__(self) -> str:
        client, round_number, reason = self.args
        return f"client {client} failed in round {round_number}: {reason}"


def missing_extra(what: str, extra: str) -> ConfigError:
    """Return the error for something that an extra brings, with the command that installs it."""
    return ConfigError(f"{what} needs the extra {extra!r}; install it by: pip install 'fedsim[{extra}]'")
