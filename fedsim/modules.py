"""Classes of the user's own, named in text as ``module:Class``: which modules may be imported, and what they may give.

Importing a module runs its code, so it depends on who wrote the text. The person at this machine may name any module
that Python finds. A file, which anybody may have written, may name modules in the current folder and those that the
person names; a run configuration may name modules in the folder of the installed app. fedsim's own modules and Flower's
strategies are always allowed. What a module gives is used only if it is a class of the right kind.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from fedsim.checks import shorten, suggest
from fedsim.errors import ConfigError
from fedsim.text import describe

#: What ``module:Class`` looks like.
FORM = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
#: Packages that every text may name.
ALWAYS = ("fedsim", "flwr.serverapp")


@dataclass(frozen=True)
class Modules:
    """Which modules a text may import, besides fedsim's own and Flower's strategies.

    Attributes
    ----------
    names : tuple of str
        Installed modules or packages, with all that is in them.
    folder : Path, optional
        Modules and packages in this folder.
    every : bool
        Any module that Python finds.
    """

    names: tuple[str, ...] = ()
    folder: Path | None = None
    every: bool = False

    @classmethod
    def here(cls, names: Iterable[str] = ()) -> Modules:
        """Return what a file may import: modules in the current folder, and those that the user names."""
        return cls(tuple(names), Path.cwd())

    def allow(self, module: str) -> bool:
        """Whether the text may import a module."""
        named = any(module == name or module.startswith(f"{name}.") for name in (*ALWAYS, *self.names))
        return self.every or named or self.has(module)

    def has(self, module: str) -> bool:
        """Whether a module is a file or a package in the folder."""
        if self.folder is None:
            return False
        place = self.folder.joinpath(*module.split("."))
        return place.with_name(f"{place.name}.py").is_file() or (place / "__init__.py").is_file()


#: For what the person at this machine types.
EVERY = Modules(every=True)


def load_class(field: str, path: str, kinds: tuple[type, ...], modules: Modules) -> type:
    """Return the class that ``module:Class`` names.

    Parameters
    ----------
    field : str
        What the text is, for errors.
    path : str
        ``module:Class``.
    kinds : tuple of type
        The class must be a subclass of one of them.
    modules : Modules
        What may be imported.

    Raises
    ------
    ConfigError
        Not of that form, a module that the text may not import or that cannot be imported, or no class of the kind.
    """
    if not FORM.fullmatch(path):
        raise ConfigError(f"{field} names {shorten(path)}; allowed: module:Class")
    name, _, attribute = path.partition(":")
    if not modules.allow(name):
        if modules.folder is None:
            raise ConfigError(f"{field} names the module {name!r}; allowed here: classes of fedsim and Flower")
        raise ConfigError(
            f"{field} names the module {name!r}, which is not in {str(modules.folder)!r}; "
            f"if you trust it, allow it by --module {name}"
        )
    folder = os.getcwd() if modules.every else str(modules.folder)
    try:
        if (modules.every or modules.has(name)) and folder not in sys.path:
            sys.path.insert(0, folder)  # as python -m does: a strategy in the current folder
        module = import_module(name)
        found = getattr(module, attribute, None)
    except (Exception, SystemExit) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}.")
        allowed = "; allowed: a module in the current folder or on Python's search path" if missing else ""
        raise ConfigError(
            f"{field} names the module {name!r}, which cannot be imported: {describe(error)}{allowed}"
        ) from None
    if found is None:
        names = [n for n in vars(module) if not n.startswith("_")]
        raise ConfigError(f"{field} names {attribute!r}, which {name!r} does not have{suggest(attribute, names)}")
    cls: type = found
    if not issubclass(type(found), type) or not issubclass(cls, kinds) or inspect.isabstract(cls):
        allowed = " or ".join(kind.__name__ for kind in kinds)
        raise ConfigError(f"{field} names {path!r}; allowed: a concrete subclass of {allowed}")
    return cls
