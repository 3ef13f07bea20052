"""A digest of values with the user's own code on which they depend: classes, functions, and what these use.

Functions count by their compiled code, their defaults, and what their closures and the global names that they use hold;
classes by their attributes; objects by their class and state; modules by their attributes whose names occur, or else by
their source and that of the modules which they import. fedsim, Python and installed packages count by name. So do
objects that cannot be pickled, such as open files. Files that code reads do not count.
"""

from __future__ import annotations

import ast
import dis
import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from importlib.util import find_spec, resolve_name
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from fedsim.text import is_user_code

#: Depth to which values in values count.
MAX_DEPTH = 50
#: Number of objects of other packages whose state counts; that of further ones does not.
MAX_OBJECTS = 10_000
#: Attributes of classes that Python and dataclasses add, and that say nothing more.
_ADDED = {
    *("__abstractmethods__", "__annotations__", "__annotations_cache__", "__dict__", "__doc__", "__firstlineno__"),
    *("__match_args__", "__module__", "__slotnames__", "__static_attributes__", "__weakref__", "_abc_impl"),
    *("__dataclass_fields__", "__dataclass_params__"),
}
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), type(NotImplemented))


def digest(values: Iterable[Any], state: bool = True) -> str:
    """Return a digest, in hexadecimal digits, that is equal for values with the same code and state.

    Parameters
    ----------
    values : iterable
    state : bool
        Whether what a run may change counts: the items of lists, dicts and sets, and the state of other packages'
        objects, such as Flower's strategies.
    """
    walk = _Walk(state)
    return hashlib.sha256("\n".join(map(walk.describe, values)).encode()).hexdigest()


def own_objects(value: Any) -> Iterator[Any]:
    """Yield the parts of settings that are the user's, or arrays: all but plain values and fedsim's own objects."""
    if isinstance(value, partial):
        parts: list[Any] = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, list | tuple):
        parts = list(value)
    elif isinstance(value, dict):
        parts = list(value.values())
    elif is_dataclass(value) and not isinstance(value, type) and not _is_users(type(value)):
        parts = [getattr(value, field.name) for field in fields(value)]
    elif isinstance(value, _PLAIN) or (isinstance(value, type) and not _is_users(value)):
        parts = []
    else:
        yield value
        return
    for part in parts:
        yield from own_objects(part)


def _is_users(owner: Any) -> bool:
    """Return whether the module of a class or a function is the user's."""
    name = getattr(owner, "__module__", None) or "builtins"
    file = getattr(sys.modules.get(name), "__file__", None)
    return name != "builtins" and name not in sys.builtin_module_names and (file is None or is_user_code(file))


class _Walk:
    """Describes values, each function, class and module once."""

    def __init__(self, state: bool = True) -> None:
        self._state = state
        self._known: dict[int, int] = {}
        self._open: list[int] = []
        self._kept: list[Any] = []  # so that no other object gets the address of a described one
        self._objects = 0

    def describe(self, value: Any) -> str:
        """Return a text that is equal for values with the same code and state."""
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, FunctionType) and "checks_arguments" in vars(value):
            value = vars(value)["__wrapped__"]  # fedsim wraps methods of the user's classes when they are first used
        if isinstance(value, _PLAIN):
            return repr(value)
        if isinstance(value, CodeType | FunctionType | ModuleType | type):
            return self._once(value)
        if id(value) in self._open:
            return f"cycle {len(self._open) - self._open.index(id(value))}"
        if len(self._open) > MAX_DEPTH:
            return type(value).__qualname__
        self._open.append(id(value))
        self._kept.append(value)
        try:
            return self._describe_object(value)
        finally:
            self._open.pop()

    def _all(self, values: Iterable[Any]) -> str:
        return f"({', '.join(map(self.describe, values))})"

    def _once(self, value: Any) -> str:
        """Describe a function, a class or a module, or refer to its description."""
        if id(value) in self._known:
            return f"#{self._known[id(value)]}"
        self._known[id(value)] = len(self._known)
        self._kept.append(value)
        if isinstance(value, ModuleType):
            return f"module {value.__name__} {_source_digest(value.__name__)}"
        if isinstance(value, type):
            return self._describe_class(value)
        return self._describe_function(value)

    def _describe_function(self, function: FunctionType) -> str:
        name, code = f"{function.__module__}:{function.__qualname__}", function.__code__
        if code.co_qualname.startswith("__create_fn__."):
            return name  # made by dataclasses
        held, changed = zip(code.co_freevars, function.__closure__ or (), strict=True), _assigned(code)
        cells = [cell.cell_contents for free, cell in held if free not in changed and not _is_empty(cell)]
        if not _is_users(function):  # a decorator of a package may have the user's function in its closure
            return f"{name}{self._all(part for cell in cells for part in own_objects(cell))}"
        parts = [function.__defaults__, function.__kwdefaults__, cells, vars(function)]
        return f"def {self._describe_code(code, function)} {self._all(parts)}"

    def _describe_code(self, code: CodeType, function: FunctionType) -> str:
        """Describe compiled code, and the global names and modules that it uses."""
        globals_ = function.__globals__
        changed = _assigned(code)
        found = [globals_[name] for name in code.co_names if name in globals_ and name not in changed]
        imported = [
            name
            for instruction in dis.get_instructions(code)
            if instruction.opname == "IMPORT_NAME"
            for name in (instruction.argval, _resolve(f".{instruction.argval}", function.__module__))
        ]
        found += [sys.modules[name] for name in imported if name in sys.modules]
        used = list(_used(found, code.co_names))
        unloaded = [_source_digest(name) for name in imported if name not in sys.modules]
        constants = [
            self._describe_code(part, function) if isinstance(part, CodeType) else self.describe(part)
            for part in code.co_consts
        ]
        names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_flags
        return f"{code.co_qualname} {code.co_code.hex()} {names} {constants} {self._all(used)} {unloaded}"

    def _describe_class(self, cls: type) -> str:
        name = f"{cls.__module__}:{cls.__qualname__}"
        if not _is_users(cls):
            return name
        attributes = {name: value for name, value in sorted(vars(cls).items()) if name not in _ADDED}
        return f"class {name} {self._all(cls.__bases__)} {tuple(attributes)} {self._all(attributes.values())}"

    def _describe_object(self, value: Any) -> str:
        cls = type(value)
        if cls in (list, dict, set) and not self._state:
            return cls.__name__
        if cls in (list, tuple):
            return self._all(value)
        if cls is dict:
            return f"{{{', '.join(f'{self.describe(k)}: {self.describe(v)}' for k, v in value.items())}}}"
        if cls in (set, frozenset):
            return f"{cls.__name__} {sorted(map(self.describe, value))}"
        if isinstance(value, np.ndarray) and value.dtype != object:
            return f"array {value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
        for inner in ("__wrapped__", "py_func", "__func__"):  # of cached, compiled, and class and static methods
            if isinstance(getattr(value, inner, None), FunctionType):
                receiver = [value.__self__] if isinstance(value, MethodType) else []
                return f"{cls.__name__} {self._all([getattr(value, inner), *receiver])}"
        if isinstance(value, property):
            return f"property {self._all([value.fget, value.fset, value.fdel])}"
        if is_dataclass(value):
            return f"{self.describe(cls)} {self._all(getattr(value, field.name, None) for field in fields(value))}"
        return f"{self.describe(cls)} {self._describe_state(value)}"

    def _describe_state(self, value: Any) -> str:
        """Describe the state of an object as pickle sees it, or its attributes if it cannot be pickled."""
        if not _is_users(type(value)):
            self._objects += 1
            if self._objects > MAX_OBJECTS or not self._state:
                return ""
        try:
            reduced = value.__reduce_ex__(4)
        except Exception:  # whatever the classes of others raise
            return self.describe(getattr(value, "__dict__", {})) if _is_users(type(value)) else ""
        if isinstance(reduced, str):
            return reduced
        make, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
        return self._all([make, arguments, state, list(items or ()), dict(pairs or ())])


def _assigned(code: CodeType) -> set[str]:
    """Return the variables outside of a function that its code assigns: they are its state, such as counters."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname in ("STORE_GLOBAL", "STORE_DEREF")}
    return names.union(*(_assigned(part) for part in code.co_consts if isinstance(part, CodeType)))


def _used(values: Iterable[Any], names: Sequence[str]) -> Iterator[Any]:
    """Yield values and, instead of each of the user's modules, its attributes with these names."""
    todo, modules = list(values)[::-1], set()  # modules may import each other
    while todo:
        value = todo.pop()
        file = getattr(value, "__file__", None) if isinstance(value, ModuleType) else None
        if not file or not is_user_code(file):
            yield value
        elif value not in modules:
            modules.add(value)
            todo += [vars(value)[name] for name in reversed(names) if name in vars(value)]


def _is_empty(cell: Any) -> bool:
    try:
        return cell.cell_contents is cell
    except ValueError:
        return True


def _resolve(name: str, module: str) -> str:
    """Return the absolute name of a module that a module imports; empty if there is none."""
    package = getattr(sys.modules.get(module), "__package__", None)
    try:
        return resolve_name(name, package) if package else name.lstrip(".")
    except ImportError:
        return ""


def _source_digest(name: str) -> str:
    """Return the digest of the source of one of the user's modules and of those that it imports; empty for others.

    A package has those of its modules that are loaded.
    """
    sources: dict[str, str] = {}
    todo = [name]
    while todo:
        name = todo.pop()
        if name in sources or not (file := _file_of(name)) or not is_user_code(file):
            continue
        try:
            sources[name] = Path(file).read_text(encoding="utf-8", errors="replace")
            tree = ast.parse(sources[name])
        except (OSError, SyntaxError, ValueError):
            continue
        todo += [loaded for loaded in tuple(sys.modules) if loaded.startswith(f"{name}.")]
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                todo += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = _resolve("." * node.level + (node.module or ""), name)
                todo += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return hashlib.sha256(repr(sorted(sources.items())).encode()).hexdigest() if sources else ""


def _file_of(name: str) -> str:
    """Return the file of a module, without importing it if it is not loaded; empty if there is none."""
    try:
        spec = None if name in sys.modules else find_spec(name)
    except (ImportError, AttributeError, ValueError):
        return ""
    return getattr(sys.modules.get(name), "__file__", None) or (spec and spec.has_location and spec.origin) or ""
