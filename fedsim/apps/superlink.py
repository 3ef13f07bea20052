"""Flower's SuperLink with a Control API that only its owner can use: ``python -m fedsim.apps.superlink``.

Whoever reaches the Control API can run an app, which is code, as the user of the SuperLink; on loopback that is every
user of the machine. Flower 1.42 has the places for account authentication, a plugin of the SuperLink and credentials of
the command ``flwr``, and ships no plugin that needs no account server. This one accepts a single token, which is in a
file that only the owner can read. Besides the arguments of ``flower-superlink`` it takes the file's path from the
environment, for other users can read arguments.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from flwr.cli.constant import ACCESS_TOKEN_STORE_KEY, AUTHN_TYPE_STORE_KEY, REFRESH_TOKEN_STORE_KEY
from flwr.common.constant import ACCESS_TOKEN_KEY, NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, AuthnType
from flwr.supercore.auth.typing import AccountAuthCredentials, AccountAuthLoginDetails, AccountInfo
from flwr.supercore.credential_store.file_credential_store import FileCredentialStore
from flwr.superlink.auth_plugin import ControlAuthnPlugin

#: The variable that names the token's file.
TOKEN_FILE = "FEDSIM_CONTROL_TOKEN_FILE"

Metadata = Sequence[tuple[str, str | bytes]]


class TokenPlugin(ControlAuthnPlugin):
    """One account, which is known by one token."""

    def __init__(self, token: str = "") -> None:
        self._token = token

    def get_login_details(self) -> AccountAuthLoginDetails | None:
        """Return nothing: nobody can log in."""
        return None

    def validate_tokens_in_metadata(self, metadata: Metadata) -> tuple[bool, AccountInfo | None]:
        """Return whether the token is there."""
        given = dict(metadata).get(ACCESS_TOKEN_KEY, "")
        given = given if isinstance(given, bytes) else given.encode()
        if not self._token or not hmac.compare_digest(given, self._token.encode()):
            return False, None
        return True, AccountInfo(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME)

    def get_auth_tokens(self, device_code: str) -> AccountAuthCredentials | None:
        """Return nothing."""
        return None

    def refresh_tokens(self, metadata: Metadata) -> tuple[Metadata | None, AccountInfo | None]:
        """Return nothing: the token is good for as long as the SuperLink."""
        return None, None


def write_credentials(home: Path, address: str, token: str) -> None:
    """Let the command ``flwr`` with this home use the token at this address."""
    store = FileCredentialStore(home / "credentials.yaml")
    store.set(AUTHN_TYPE_STORE_KEY % address, AuthnType.OIDC.encode())
    for name in (ACCESS_TOKEN_STORE_KEY, REFRESH_TOKEN_STORE_KEY):
        store.set(name % address, token.encode())


def main() -> None:
    """Run Flower's SuperLink."""
    command = import_module("flwr.superlink.cli.flower_superlink")  # the package has a function of the same name
    token = Path(os.environ[TOKEN_FILE]).read_text(encoding="ascii")
    vars(command)["load_control_authn_plugin"] = lambda: TokenPlugin(token)
    command.flower_superlink()


if __name__ == "__main__":
    main()
