"""The identity of a run: other settings, data or code are another run, in any process."""

from __future__ import annotations

import functools
import importlib
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from fedsim import Experiment
from fedsim.clients import SGD, Context
from fedsim.models import Array
from fedsim.splits import IID, Dirichlet
from fedsim.study.callbacks import Callback, EarlyStopping
from fedsim.study.identity import run_name
from fedsim.study.user_code import digest, own_objects

BASE = Experiment(split=Dirichlet(6, alpha=0.3), hidden=(8,), rounds=3)


def test_the_name_of_a_run_says_what_gives_other_bits() -> None:
    name = run_name(BASE)
    assert len(name) == 16
    assert name == run_name(replace(BASE)) == run_name(replace(BASE, data_dir="/elsewhere"))
    others = [
        replace(BASE, seed=1),
        replace(BASE, rounds=4),
        replace(BASE, client=SGD(lr=0.2)),
        replace(BASE, dataset="article"),
        replace(BASE, dataset=BASE.load_data()),
    ]
    assert len({name, *map(run_name, others)}) == 6


#: A user's strategy: imports, the body of its method, and a module before and after a change.
OWN_CODE = {
    "name of another module": ("from helper import K", "return K * grad", "K = 1.0", "K = 2.0"),
    "array": (
        "from helper import K",
        "return K * grad",
        "import numpy\nK = numpy.ones(2)",
        "import numpy\nK = numpy.zeros(2)",
    ),
    "module": ("import helper", "return helper.K * grad", "K = 1.0", "K = 2.0"),
    "module of a module": ("import between", "return between.K * grad", "K = 1.0", "K = 2.0"),
    "module of a package": ("import inner.helper", "return inner.helper.K * grad", "K = 1.0", "K = 2.0"),
    "import in a method": ("", "from helper import K; return K * grad", "K = 1.0", "K = 2.0"),
    "module in a dict": ("import helper\nH = {1: helper}\ndel helper", "return H[1].K * grad", "K = 1.0", "K = 2.0"),
    "cached function": (
        "from helper import k",
        "return k() * grad",
        "from functools import cache\n@cache\ndef k(): return 1.0",
        "from functools import cache\n@cache\ndef k(): return 2.0",
    ),
    "compiled function": (
        "from helper import k",
        "return k() * grad",
        "from numba import njit\n@njit\ndef k(): return 1.0",
        "from numba import njit\n@njit\ndef k(): return 2.0",
    ),
    "class": ("from helper import K", "return K.k * grad", "class K:\n    k = 1.0", "class K:\n    k = 2.0"),
    "object": (
        "from helper import k",
        "return k.k * grad",
        "class K: pass\nk = K()\nk.k = 1.0",
        "class K: pass\nk = K()\nk.k = 2.0",
    ),
}
STRATEGY = """
from fedsim.clients import SGD
{imports}
class Own(SGD):
    def direction(self, grad, weights, ctx):
        {body}
def unused():
    return 0
"""


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A function that returns the name of a run with the strategy of a module, given its source and the helper's."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def name(strategy: str, helper: str) -> str:
        (tmp_path / "inner").mkdir(exist_ok=True)
        files = {"helper": helper, "inner/helper": helper, "inner/__init__": "", "strategy": strategy}
        for file, text in {**files, "between": "from helper import K"}.items():
            (tmp_path / f"{file}.py").write_text(text)
        importlib.invalidate_caches()
        for module in ("helper", "inner", "inner.helper", "between", "strategy"):
            sys.modules.pop(module, None)
        return run_name(replace(BASE, client=importlib.import_module("strategy").Own()))

    return name


def test_modules_that_import_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "ring_a.py").write_text("import ring_b\nimport fedsim.clients\nK = 1.0\n")
    (tmp_path / "ring_b.py").write_text(
        "import ring_a\nfrom fedsim.clients import SGD\nclass Own(SGD):\n"
        "    def direction(self, grad, weights, ctx):\n        return ring_a.ring_b.ring_a.K * grad\n"
    )
    ring_a, ring_b = importlib.import_module("ring_a"), importlib.import_module("ring_b")
    experiment = replace(BASE, client=ring_b.Own())
    first = run_name(experiment)
    assert run_name(experiment) == first
    monkeypatch.setattr(ring_a, "K", 2.0)
    assert run_name(experiment) != first


@pytest.mark.parametrize("case", OWN_CODE)
def test_changed_code_of_the_user_is_another_run(case: str, named: Callable[..., str]) -> None:
    imports, body, before, after = OWN_CODE[case]
    strategy = STRATEGY.format(imports=imports, body=body)
    first = named(strategy, before)
    assert named(strategy, before) == first
    assert named(strategy, after) != first
    changed = STRATEGY.format(imports=imports, body=body.replace("* grad", "* grad * 1.5"))
    assert named(changed, before) != first
    assert named(f"# A comment.\n{strategy}".replace("return 0", "return 1"), before) == first  # the rest of a script


#: Code of a notebook, or of standard input, which has no file: before and after a change.
CELL = """
K, TABLE = 1.0, {"k": 1.0}
def made(k):
    def metric(y, scores):
        return k
    return metric
class Own(SGD):
    factor = 1.0
    def direction(self, grad, weights, ctx, scale=1.0):
        inner = lambda: 5.0
        return grad * K * TABLE["k"] * self.factor * self.share * self.half() * inner() * sum(7.0 for _ in "ab")
    @property
    def share(self):
        return 2.0
    @staticmethod
    def half():
        return 4.0
metrics = (made(3.0),)
"""
CHANGES = [
    *(("K, TABLE = 1.0", "K, TABLE = 9.0"), ('{"k": 1.0}', '{"k": 9.0}'), ("factor = 1.0", "factor = 9.0")),
    *(("scale=1.0", "scale=9.0"), ("return 2.0", "return 9.0"), ("return 4.0", "return 9.0"), ("5.0", "9.0")),
    *(("7.0", "9.0"), ("made(3.0)", "made(9.0)")),
]


def name_of_cell(text: str) -> str:
    module = types.ModuleType("cell")
    module.__dict__["SGD"] = SGD
    exec(compile(text, "<cell>", "exec"), module.__dict__)
    return run_name(replace(BASE, client=module.Own(), metrics=module.metrics))


@pytest.mark.parametrize("change", CHANGES)
def test_code_without_a_file_is_part_of_a_run(change: tuple[str, str]) -> None:
    assert CELL.count(change[0]) == 1
    assert name_of_cell(CELL) == name_of_cell(f"\n{CELL}")
    assert name_of_cell(CELL.replace(*change)) != name_of_cell(CELL)


def test_what_is_set_while_a_program_runs_is_part_of_a_run() -> None:
    class Own(SGD):
        factor = 1.0

        def direction(self, grad: Array, weights: Array, ctx: Context) -> Array:
            return grad * self.factor

    names = []
    for value in (1.0, 2.0, 1.0):
        Own.factor = value
        names.append(run_name(replace(BASE, client=Own())))
    assert names[0] == names[2] != names[1]


def test_names_are_the_same_in_another_process(tmp_path: Path) -> None:
    """With other addresses in memory, and other hashes of strings: sets have another order."""
    (tmp_path / "mine.py").write_text(
        "import re\nfrom fedsim.clients import SGD\nHELD = {'a', 'bc', 'def', 'g'}\nPATTERN = re.compile('a+')\n"
        "LOCK = __import__('threading').Lock()\n"
        "class Own(SGD):\n    def direction(self, grad, weights, ctx):\n"
        "        return grad * len(HELD) if 'x' not in {'p', 'q', 'r'} and PATTERN and LOCK else grad\n"
    )
    script = (
        "from fedsim import Experiment\nfrom fedsim.study.identity import run_name\nimport mine\n"
        "print(run_name(Experiment(client=mine.Own())))"
    )
    names = {
        subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(names) == 1
    assert names != {""}


def test_fedsims_own_objects_have_no_code_of_the_user() -> None:
    settings = [SGD(), partial(SGD, lr=1.0), (IID(5), [Dirichlet(5, alpha=0.1)]), {"a": 1.0}, None, SGD]
    assert list(own_objects(settings)) == []
    assert len(list(own_objects([SGD(), lambda: 1, np.ones(2)]))) == 2


def test_digests_of_values() -> None:
    """Equal values have equal digests, and others do not; cycles end."""
    cycle: list[Any] = [1]
    cycle.append(cycle)
    values: list[Any] = [
        *(1, 1.0, "1", b"1", None, True, 1j, ..., (1,), (1, 1), {1: 2}, {2: 1}, {1, 2}, cycle, [cycle]),
        *(np.ones(2), np.ones(3), np.ones(2, np.float32), np.zeros(2), np.array([1, "a"], dtype=object)),
        *(Path("a"), Path("b"), functools.partial(len, "a"), functools.partial(len, "b"), types.SimpleNamespace(a=1)),
        *(len, abs, json, Mock(), np.random.default_rng(0), np.random.default_rng(1), IID(5), IID(6)),
    ]
    digests = [digest([value]) for value in values]
    assert len(set(digests)) == len(values)
    assert digest([np.float64(1.0)]) == digest([1.0])
    assert digest([[1, 2]]) == digest([(1, 2)])  # as in a file
    assert digest([np.random.default_rng(0)]) == digest([np.random.default_rng(0)])


def test_deep_objects_are_described_in_part() -> None:
    chain: Any = None
    for _ in range(10_000):
        chain = types.SimpleNamespace(inner=chain)
    assert digest([chain]) == digest([chain])


def test_callbacks_that_may_end_a_run_are_part_of_it() -> None:
    class Stops(Callback):
        def __init__(self, at: int) -> None:
            self.at = at

    class Watches(Stops):
        passive = True

    names = [run_name(BASE, callbacks=c) for c in ([], [Stops(1)], [Stops(2)], [EarlyStopping(target=0.5)])]
    assert len(set(names)) == 4
    assert run_name(BASE, callbacks=[Stops(1)]) == names[1]
    assert run_name(BASE, callbacks=[Watches(1)]) == names[0]
