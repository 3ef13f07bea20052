"""Loading a Flower app from its folder, and running it in this process."""

from __future__ import annotations

import os
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedsim.apps.in_process import run_flower
from fedsim.checks import check_choice
from fedsim.errors import ConfigError
from fedsim.modules import Modules
from fedsim.text import describe
from fedsim.toml import read_assignment


def load_app(folder: str | os.PathLike[str]) -> tuple[ServerApp, ClientApp, dict[str, Any], int | None]:
    """Load a Flower app from its folder.

    Parameters
    ----------
    folder : path
        With a ``pyproject.toml`` that has ``[tool.flwr.app.components]``.

    Returns
    -------
    server_app : ServerApp
    client_app : ClientApp
    run_config : dict
        Default run configuration; keys of nested tables are joined by dots, as in Flower.
    num_supernodes : int or None
        Number of SuperNodes in the default federation, if the file has one.

    Raises
    ------
    ConfigError
        The file or the components are missing, or a component cannot be imported.
    """
    file = Path(folder) / "pyproject.toml"
    try:
        settings = tomllib.loads(file.read_text(encoding="utf-8"))
        flwr = settings["tool"]["flwr"]
        components = flwr["app"]["components"]
        server, client = components["serverapp"], components["clientapp"]
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{str(file)!r} cannot be read: {getattr(error, 'strerror', error)}") from None
    except (KeyError, TypeError):
        raise ConfigError(f"{str(file)!r} has no serverapp and clientapp in [tool.flwr.app.components]") from None
    place = Path(folder).resolve()
    if str(place) not in sys.path[:1]:
        sys.path.insert(0, str(place))
    _unload_other_apps(place, {str(path).partition(":")[0].partition(".")[0] for path in (server, client)})
    server_app, client_app = _load_component(server, ServerApp), _load_component(client, ClientApp)
    federations = flwr.get("federations", {})
    default = federations.get(federations.get("default", ""), {})
    nodes = default.get("options", {}).get("num-supernodes") if isinstance(default, dict) else None
    return server_app, client_app, _flatten_tables(flwr["app"].get("config", {})), nodes


def _unload_other_apps(folder: Path, packages: set[str]) -> None:
    """Unload modules of these packages that were imported from another app's folder."""
    own = {name for name in packages if Modules(folder=folder).has(name)}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] in own and file and not Path(file).is_relative_to(folder):
            del sys.modules[name]


def _load_component(path: str, kind: type) -> Any:
    module, _, name = path.partition(":")
    try:
        found = getattr(import_module(module), name or "app", None)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"the component {path!r} cannot be imported: {describe(error)}") from None
    if not isinstance(found, kind):
        raise ConfigError(f"the component {path!r} is {type(found).__name__}; allowed: a {kind.__name__}")
    return found


def _flatten_tables(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flatten_tables(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def override_run_config(config: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Return the run configuration with changes, each given as ``key=value`` with a value in TOML.

    Raises
    ------
    ConfigError
        The app does not have the key, or the value is not TOML.
    """
    changed = dict(config)
    for assignment in assignments:
        key, value = read_assignment("--run-config", assignment)
        check_choice("--run-config", key, config)
        changed[key] = value
    return changed


def run_app(
    folder: str | os.PathLike[str],
    num_supernodes: int | None = None,
    assignments: Sequence[str] = (),
    workers: int | None = None,
    verbose: bool = False,
) -> float:
    """Run the Flower app in a folder; return the seconds it took. See `load_app` and `run_flower`."""
    server_app, client_app, config, nodes = load_app(folder)
    settings, number = override_run_config(config, assignments), num_supernodes or nodes or 10  # Flower's default
    started = time.perf_counter()
    run_flower(server_app, client_app, number, run_config=settings, workers=workers, verbose=verbose)
    return time.perf_counter() - started
