"""Export of an experiment as a stand-alone Flower app, a folder for ``flwr run``."""

from __future__ import annotations

import inspect
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from fedsim.errors import ConfigError
from fedsim.study.experiment import Experiment

#: The app's module.
MODULE = "fedsim_app"
APP = '''\
"""fedsim's Flower app; experiments may name classes of the modules beside this file."""

from fedsim.apps.app import make_apps

server_app, client_app = make_apps(__file__)

__all__ = ["client_app", "server_app"]
'''
README = """\
A Flower app that fedsim exported from an experiment. Every machine needs fedsim, and reads the data itself
from `data-dir` of its node config or from `FEDSIM_DATA`.

    flwr run .

runs it in Flower's simulation; `flwr run . SUPERLINK` runs it on real SuperNodes, whose node configs have
`partition-id=K num-partitions=N`. See docs/scale.md of fedsim.
"""


def export(experiment: Experiment, folder: str | os.PathLike[str], **settings: Any) -> Path:
    """Write a Flower app of an experiment.

    Parameters
    ----------
    experiment : Experiment
        On a dataset with a name.
    folder : path
        A new or an empty folder.
    **settings
        More run configuration: ``nodes``, ``wait``, ``timeout``, ``retries``, ``out``; see docs/scale.md.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ConfigError
        The folder is not empty, the experiment cannot be written as TOML, or the file of a user's class cannot be
        copied.
    """
    import tomli_w

    from fedsim import __version__
    from fedsim.files import writable_directory
    from fedsim.study.config import to_toml

    text = to_toml(experiment)
    place = Path(folder)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise ConfigError(f"{str(place)!r} exists and is not empty; give another folder")
    metrics = [metric for metric in experiment.metrics if not isinstance(metric, str)]
    parts = experiment.client, experiment.split, experiment.server, experiment.attack, *experiment.transforms, *metrics
    files = [file for part in parts if (file := _source_file(part))]
    place = writable_directory(place)
    defaults = {"out": "", "nodes": 0, "wait": 120.0, "timeout": 0.0, "retries": 0, "supervised": False}
    app = {
        "publisher": "fedsim",
        "components": {"serverapp": f"{MODULE}:server_app", "clientapp": f"{MODULE}:client_app"},
        "config": defaults | settings,
    }
    project = {"name": "fedsim-app", "version": __version__, "dependencies": []}
    tables = tomli_w.dumps({"project": project, "tool": {"flwr": {"app": app}}})
    # A literal string is easier to read, but cannot contain '''. The last table is the run configuration.
    line = tomli_w.dumps({"experiment": text}) if "'''" in text else f"experiment = '''\n{text}'''\n"
    (place / "pyproject.toml").write_text(tables + line, encoding="utf-8")
    (place / f"{MODULE}.py").write_text(APP, encoding="utf-8")
    (place / "README.md").write_text(README, encoding="utf-8")
    for file in files:
        shutil.copy(file, place / file.name)
    return place


def _source_file(part: Any) -> Path | None:
    """Return the file of a user's class or function; None for those of fedsim and Flower."""
    named = inspect.isclass(part) or inspect.isfunction(part)
    cls: Any = part.func if isinstance(part, partial) else part if named else type(part)
    package = cls.__module__.partition(".")[0]
    if part is None or package in ("fedsim", "flwr"):
        return None
    if "." in cls.__module__ or cls.__module__ in ("__main__", MODULE):
        raise ConfigError(f"{cls.__name__} is of the module {cls.__module__!r}; to export it, put it into its own file")
    return Path(inspect.getfile(cls))
