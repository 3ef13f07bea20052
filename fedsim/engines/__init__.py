"""Engines: where clients run, all behind Flower's own interfaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fedsim.errors import ConfigError, one_of

if TYPE_CHECKING:
    from fedsim.rounds.grid import InProcessGrid

#: What `Experiment.run` takes by name.
ENGINES = ("in-process", "ray")


def choose(engine: str | Callable[..., InProcessGrid]) -> Callable[..., InProcessGrid]:
    """Return what makes an engine: a class by its name, or what was given.

    Raises
    ------
    ConfigError
        Unknown name.
    """
    if not isinstance(engine, str):
        if not callable(engine):
            raise ConfigError(f"engine is {engine!r}; allowed: {', '.join(ENGINES)}, or what makes a Grid")
        return engine
    one_of("engine", engine, ENGINES)
    if engine == "ray":
        from fedsim.engines.ray import RayGrid

        return RayGrid
    from fedsim.rounds.grid import InProcessGrid

    return InProcessGrid
