"""Flower's SuperLink with token authentication of its Control API: ``python -m fedsim.apps.superlink``.

Anyone who can connect to the Control API can run code, as an app, with the rights of the SuperLink's user; on loopback
that is every user of the machine. Flower 1.42 offers account authentication by a plugin of the SuperLink and
credentials of the command ``flwr``, but no plugin that works without an account server. The plugin in this module
accepts a single token from a file that only its owner can read. An environment variable gives the file's path; the
arguments are those of ``flower-superlink``.

The SuperLink runs in its own process. The non-public parts of Flower that it needs are therefore imported here and not
in `fedsim.flower.internals`, which every run imports.
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

#: The environment variable with the path of the token's file.
TOKEN_FILE_VARIABLE = "FEDSIM_CONTROL_TOKEN_FILE"

Metadata = Sequence[tuple[str, str | bytes]]


class TokenPlugin(ControlAuthnPlugin):
    """Authentication of one account by one token.

    Parameters
    ----------
    token : str
        If empty, all requests are refused.
    """

    def __init__(self, token: str = "") -> None:
        self._token = token

    def get_login_details(self) -> AccountAuthLoginDetails | None:
        """Return None: there is no login."""
        return None

    def validate_tokens_in_metadata(self, metadata: Metadata) -> tuple[bool, AccountInfo | None]:
        """Return whether the metadata has the token, and if so the account."""
        given = dict(metadata).get(ACCESS_TOKEN_KEY, "")
        given = given if isinstance(given, bytes) else given.encode()
        if not self._token or not hmac.compare_digest(given, self._token.encode()):
            return False, None
        return True, AccountInfo(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME)

    def get_auth_tokens(self, device_code: str) -> AccountAuthCredentials | None:
        """Return None: there is no login."""
        return None

    def refresh_tokens(self, metadata: Metadata) -> tuple[Metadata | None, AccountInfo | None]:
        """Return nothing: the token is valid until the SuperLink ends."""
        return None, None


def write_credentials(home: Path, address: str, token: str) -> None:
    """Write the credentials with which ``flwr`` sends the token to an address, to its home folder."""
    store = FileCredentialStore(home / "credentials.yaml")
    store.set(AUTHN_TYPE_STORE_KEY % address, AuthnType.OIDC.encode())
    for name in (ACCESS_TOKEN_STORE_KEY, REFRESH_TOKEN_STORE_KEY):
        store.set(name % address, token.encode())


def main() -> None:
    """Run Flower's SuperLink."""
    command = import_module("flwr.superlink.cli.flower_superlink")  # the package has a function of the same name
    token = Path(os.environ[TOKEN_FILE_VARIABLE]).read_text(encoding="ascii")
    vars(command)["load_control_authn_plugin"] = lambda: TokenPlugin(token)
    command.flower_superlink()


if __name__ == "__main__":
    main()
