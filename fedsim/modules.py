"""The user's own classes and functions, named in text as ``module:Class``, and the modules that a text may import.

Importing a module runs its code, so the permitted modules depend on the author of the text. The user of this machine
may name any module that Python finds. A file, which anyone may have written, may name modules in the current folder and
those that the user permits; a run configuration may name modules in the folder of the installed app. fedsim's own
modules and Flower's strategies are always permitted. An object from a module is used only if it is a class of the right
kind.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from fedsim.checks import shorten, suggest
from fedsim.errors import ConfigError
from fedsim.text import add_user_code, describe

#: The form of ``module:Class``.
FORM = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
#: Packages that every text may name.
ALWAYS = ("fedsim", "flwr.serverapp")
#: The module of the script or the notebook that runs, whose classes every text may name.
MAIN = "__main__"


@dataclass(frozen=True)
class Modules:
    """The modules that a text may import, besides fedsim's own and Flower's strategies.

    Attributes
    ----------
    names : tuple of str
        Installed modules or packages, with their submodules.
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
        """Return what a file may import: modules in the current folder and those that the user permits."""
        return cls(tuple(names), Path.cwd())

    def allow(self, module: str) -> bool:
        """Return whether the text may import a module."""
        return self.every or module == MAIN or _is_in(module, (*ALWAYS, *self.names)) or self.has(module)

    def has(self, module: str) -> bool:
        """Return whether a module is a file or a package in the folder."""
        if self.folder is None:
            return False
        place = self.folder.joinpath(*module.split("."))
        return place.with_name(f"{place.name}.py").is_file() or (place / "__init__.py").is_file()


def _is_in(module: str, packages: Iterable[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in packages)


#: For text that the user of this machine enters.
EVERY = Modules(every=True)


def load_class(field: str, path: str, base: type, modules: Modules) -> type:
    """Return the class that ``module:Class`` names.

    Parameters
    ----------
    field : str
        What the text is, for errors.
    path : str
        ``module:Class``.
    base : type
        The class must be a subclass of it.
    modules : Modules
        What may be imported.

    Raises
    ------
    ConfigError
        The text does not have that form, or names a module that may not or cannot be imported, or names anything but a
        concrete subclass of `base`.
    """
    cls: type = _load(field, path, "Class", modules)
    if not issubclass(type(cls), type) or not issubclass(cls, base) or inspect.isabstract(cls):
        raise ConfigError(f"{field} is {path!r}; allowed: a concrete subclass of {base.__name__}")
    return cls


def load_function(field: str, path: str, modules: Modules) -> Callable[..., Any]:
    """Return the function that ``module:function`` names; parameters and errors as for `load_class`.

    The module must define the function itself, so that a text cannot call what the module only imports; functions of
    fedsim and Flower are refused.
    """
    function: Callable[..., Any] = _load(field, path, "function", modules)
    module = path.partition(":")[0]
    own = inspect.isfunction(function) and function.__module__ == module
    if not own or Modules().allow(module):
        raise ConfigError(f"{field} is {path!r}; allowed: a function that a module of your own defines")
    return function


def _load(field: str, path: str, kind: str, modules: Modules) -> Any:
    """Return what ``module:name`` names; `kind` is the word for it in the error for another form."""
    if not FORM.fullmatch(path):
        raise ConfigError(f"{field} names {shorten(path)}; allowed: module:{kind}")
    name, _, attribute = path.partition(":")
    if not modules.allow(name):
        if modules.folder is None:
            raise ConfigError(f"{field} names the module {name!r}; allowed here: classes of fedsim and Flower")
        raise ConfigError(
            f"{field} names the module {name!r}, which is not in {str(modules.folder)!r}; "
            f"if you trust it, allow it by --module {name} (in Python: modules=[{name!r}])"
        )
    folder = os.getcwd() if modules.every else str(modules.folder)
    try:
        if (modules.every or modules.has(name)) and folder not in sys.path:
            sys.path.insert(0, folder)  # as python -m does: a strategy in the current folder
        module = import_module(name)
        if not _is_in(name, ALWAYS):
            add_user_code(module)
        found = getattr(module, attribute, None)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{field} names the module {name!r}, which cannot be imported: {describe(error)}") from None
    if found is None and name == MAIN:
        raise ConfigError(f"{field} names {attribute!r} of the script or notebook that made it; do this there")
    if found is None:
        names = [n for n in vars(module) if not n.startswith("_")]
        raise ConfigError(f"{field} names {attribute!r}, which {name!r} does not have{suggest(attribute, names)}")
    return found
