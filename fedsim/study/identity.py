"""The identity of a run: a text that is equal for runs that give the same bits, and its digest, which names a folder.

It has the experiment's settings, the contents of a dataset that has no lasting name, and the source of the user's own
classes and functions, because a run of changed code is another run.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import partial
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from fedsim.data import Dataset
from fedsim.study.config import to_toml
from fedsim.text import is_user_code

if TYPE_CHECKING:
    from fedsim.study.callbacks import Callback
    from fedsim.study.experiment import Experiment

#: Number of hexadecimal digits of a run's name.
DIGITS = 16


def fingerprint(experiment: Experiment, dataset: Dataset | None = None) -> str:
    """Return a text that is equal for experiments that give the same bits.

    Parameters
    ----------
    experiment : Experiment
    dataset : Dataset, optional
        Its dataset, if it has been loaded.
    """
    name = experiment.dataset
    if not isinstance(name, str) or name.startswith(("table", "hub")):  # a file may have changed
        name = (dataset or experiment.load_data()).digest
    settings = [getattr(experiment, field.name) for field in fields(experiment)]
    sources = "".join(f"# {module} {digest}\n" for module, digest in sorted(_sources(settings).items()))
    return f"# {name}\n{sources}" + to_toml(replace(experiment, dataset="digits", data_dir=None))


def run_name(experiment: Experiment, dataset: Dataset | None = None, callbacks: Sequence[Callback] = ()) -> str:
    """Return the name of a run in a store, of `DIGITS` hexadecimal digits.

    It is that of a version of fedsim, because another version may give other bits, and of the callbacks that may end
    the run.
    """
    from fedsim import __version__

    active = [callback for callback in callbacks if not callback.passive]
    sources = sorted(_sources(active).items())
    parts = [__version__, fingerprint(experiment, dataset), *map(_describe, active), repr(sources)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:DIGITS]


def _describe(callback: Callback) -> str:
    """Return the class and the attributes of a callback, without addresses in memory."""
    text = repr(callback) if is_dataclass(callback) else repr(sorted(vars(callback).items(), key=lambda item: item[0]))
    return f"{type(callback).__module__}:{type(callback).__qualname__} {re.sub(r' at 0x[0-9a-f]+', '', text)}"


def _sources(values: Iterable[Any]) -> dict[str, str]:
    """Return the digest of each of the user's modules on which values depend, by name of the module.

    A module is the user's unless it is fedsim's, Python's or an installed package's. Modules depend on those whose
    classes, functions and names they use.
    """
    found: dict[str, str] = {}
    todo = [name for value in values for name in _modules_of(value)]
    while todo:
        name = todo.pop()
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None)
        if module is None or name in found or name == "builtins" or (file and not is_user_code(file)):
            continue
        found[name] = _digest(module, file)
        todo += [used for value in vars(module).values() for used in _modules_of(value)]
    return found


def _modules_of(value: Any) -> list[str]:
    """Return the names of the modules in which a value, its class or its parts were defined."""
    if isinstance(value, ModuleType):
        return [value.__name__]
    if isinstance(value, partial):
        return [name for part in (value.func, *value.args, *value.keywords.values()) for name in _modules_of(part)]
    if isinstance(value, type):
        return [cls.__module__ for cls in value.__mro__]
    if isinstance(value, FunctionType):
        return [value.__module__]
    if isinstance(value, list | tuple):
        return [name for part in value for name in _modules_of(part)]
    parts = [getattr(value, field.name, None) for field in fields(value)] if is_dataclass(value) else []
    return [cls.__module__ for cls in type(value).__mro__] + [name for part in parts for name in _modules_of(part)]


def _digest(module: ModuleType, file: str | None) -> str:
    """Return the digest of a module's source, or of its functions' code if it has no file, as in a notebook."""
    try:
        text = inspect.getsource(module) if file else repr(_code_of(module))
    except OSError:
        text = repr(_code_of(module))
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def _code_of(module: ModuleType) -> list[tuple[Any, ...]]:
    """Return the compiled functions of a module and its classes, with the constants that they use."""
    values = [part for v in vars(module).values() for part in (vars(v).values() if isinstance(v, type) else [v])]
    functions = [f.__code__ for f in values if isinstance(f, FunctionType) and f.__module__ == module.__name__]
    plain = (bool, int, float, str)
    return [(c.co_qualname, c.co_code, c.co_names, [k for k in c.co_consts if isinstance(k, plain)]) for c in functions]
