"""Objects as text and text as objects: what may be written, what it makes, and each refusal in one sentence."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest

from fedsim import objects, text, toml
from fedsim.clients import SGD
from fedsim.errors import ConfigError, DataError
from fedsim.splits import IID, LogNormal, PowerLaw


@dataclass
class Pair:
    """Something to make from text."""

    left: Any
    right: Any = 2
    hidden: Any = field(default=0, repr=False)


def shape(width: int, height: int = 1) -> Any:
    """A function to call from text."""
    return width, height


def nothing() -> None:
    """A function without arguments."""


def refusal(call: Callable[[], Any]) -> str:
    """What a ConfigError says."""
    with pytest.raises(ConfigError) as caught:
        call()
    return str(caught.value)


# Calls.


def test_a_call_is_taken_apart() -> None:
    names = {"Pair": Pair, "shape": shape}
    for written, expected in [
        (" IID ", ("IID", [], {})),
        ("IID()", ("IID", [], {})),
        ("IID(3, 'a', sizes=[1, (2, None)], on=True)", ("IID", [3, "a"], {"sizes": [1, (2, None)], "on": True})),
        ("X(-1.5, {'k': [2]})", ("X", [-1.5, {"k": [2]}], {})),
        ("X(Pair(1), part=shape(2, height=3))", ("X", [Pair(1)], {"part": (2, 3)})),
    ]:
        assert objects.parse_call("it", written, names) == expected
    _, args, _ = objects.parse_call("it", "IID(3, PowerLaw)", {"PowerLaw": PowerLaw})
    assert args == [3, PowerLaw()]  # brackets may be left out
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert objects.parse_call("it", r"table('\d')", {})[1] == [r"\d"]


@pytest.mark.parametrize(
    "written", ["X(", "X(1)(2)", "X(1) + 1", "X(**{'a': 1})", "X(*[1])", "X(a.b(1))", "X(a:b)", "X(1 + x)"]
)
def test_what_is_no_call_is_refused(written: str) -> None:
    said = f"it is {written!r}; allowed: a call with plain values, as in Name(1, key=0.5)"
    assert refusal(lambda: objects.parse_call("it", written, {})) == said


def test_names_among_the_arguments_are_known_ones() -> None:
    names = {"Pair": Pair, "shape": shape}
    assert refusal(lambda: objects.parse_call("it", "X(pair(1))", names)) == (
        "it names 'pair'; allowed: Pair, shape; did you mean 'Pair'?"
    )
    assert (
        refusal(lambda: objects.parse_call("it", "X(k=open('x'))", {})) == "it names 'open'; it takes plain values only"
    )
    assert refusal(lambda: objects.parse_call("it", "X(Pair())", names)).startswith(
        "it is 'Pair()': Pair takes left, right"
    )


def test_arguments_that_do_not_fit_name_those_that_do() -> None:
    assert objects.make("it", shape, "shape", [1], {"height": 2}) == (1, 2)
    assert refusal(lambda: objects.make("it", Pair, "Pair", [], {"left": 1, "rigth": np.int64(3)})) == (
        "it is 'Pair(left=1, rigth=3)': Pair takes left, right, hidden (got an unexpected keyword argument 'rigth'); "
        "did you mean 'right'?"
    )
    assert refusal(lambda: objects.make("it", shape, "shape", [], {})) == (
        "it is 'shape()': shape takes width, height (missing a required argument: 'width')"
    )
    assert refusal(lambda: objects.make("it", nothing, "nothing", [1], {})) == (
        "it is 'nothing(1)': nothing takes no arguments (too many positional arguments)"
    )
    with pytest.raises(TypeError, match="inside"):  # an error of the function's own is not one of the arguments
        objects.make("it", functools.partial(_raise, TypeError("inside")), "f", [], {})


def _raise(error: BaseException) -> None:
    raise error


def test_what_a_constructor_raises_becomes_one_sentence() -> None:
    said = r"^it: X failed with KeyError: 'gone' \(test_text.py, line \d+\)$"
    with pytest.raises(ConfigError, match=said), objects.constructor_errors("it", "X"):
        _raise(KeyError("gone"))
    with pytest.raises(DataError, match=r"^as it is$"), objects.constructor_errors("it", "X"):
        _raise(DataError("as it is"))


def test_objects_are_written_as_the_call_that_makes_them() -> None:
    assert objects.format_call("X", [1, "a"], {"k": np.float32(0.5), "none": None}) == "X(1, 'a', k=0.5, none=None)"
    assert objects.format_call("X", [Pair(np.int64(1), IID, hidden=5)], {}).startswith("X(Pair(left=1, right=<class ")
    assert "hidden" not in objects.format_call("X", [Pair(1, hidden=5)], {})
    assert objects.format_call("X", [], {}) == "X()"
    assert objects.short_repr(IID(3, sizes=LogNormal(0.5))) == "IID(num_clients=3, sizes=LogNormal(sigma=0.5))"
    assert objects.short_repr(SGD(lr=0.5)) == "SGD(lr=0.5)"
    assert objects.short_repr(Pair(1)) == "Pair(left=1)"
    assert objects.short_repr(SGD) == "SGD"
    assert objects.short_repr(partial(SGD, 0.5, epochs=2)) == "SGD(0.5, epochs=2)"
    assert objects.short_repr("x") == "'x'"


# Plain values.


def test_values_from_text_are_plain() -> None:
    largest = 2**128 - 1
    sound: list[Any] = [None, True, 0.5, "é", largest, -largest, [1, ("a", {"k": [None]})]]
    for value in sound:
        toml.check_plain("it", value)
    large: list[Any] = [2**128, [2**128], (1, {"k": 2**128}), {2**128: 1}, -(2**128)]
    broken: list[Any] = ["\ud800", ["\ud800"], {"\ud800": 1}]
    others: list[Any] = [b"x", 1j, {1}, ..., [b"x"]]
    for values, said in [
        (large, "it has an integer of 129 bits; allowed: at most 128"),
        (broken, r"it has the text '\ud800'; allowed: valid Unicode"),
        (others, "; allowed: numbers, text, booleans, and lists of these"),
    ]:
        for value in values:
            assert refusal(functools.partial(toml.check_plain, "it", value)).endswith(said)


def test_toml_is_read_or_refused_in_a_sentence() -> None:
    assert toml.read_toml("it", "a = 1\n[b]\nc = [true, 'x']") == {"a": 1, "b": {"c": [True, "x"]}}
    assert refusal(lambda: toml.read_toml("it", "a = \n")).startswith("it is not TOML: Invalid value (at line 1")
    assert refusal(lambda: toml.read_toml("it", "a = " + "[" * 9_000)) == "it is not TOML: it is nested too deeply"
    assert refusal(lambda: toml.read_toml("it", "[when]\nat = 2020-01-01")).startswith("when has the value datetime")


def test_a_value_in_toml_or_else_the_text_itself() -> None:
    for written, value in [
        ("3", 3),
        (" [1, 2.5] ", [1, 2.5]),
        ("'three'", "three"),
        (" three ", "three"),
        ("IID(4)", "IID(4)"),
        ("3\nseed = 4", "3\nseed = 4"),
        ("", ""),
    ]:
        assert toml.read_assignment("it", f" key ={written}") == ("key", value)
    assert refusal(lambda: toml.read_assignment("it", "key=" + "[" * 9_000)) == (
        f"it 'key' is '{'[' * 89} ... {'[' * 89}'; allowed: a value in TOML"
    )
    assert refusal(lambda: toml.read_assignment("it", "key=0x" + "F" * 40)) == (
        "it 'key' has an integer of 160 bits; allowed: at most 128"
    )
    assert refusal(lambda: toml.read_assignment("it", "key")) == "it is 'key'; allowed: KEY=VALUE"


# Errors in words.


class MuteError(Exception):
    """Cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("never")


def caught(call: Callable[[], Any]) -> Exception:
    """The exception that a call raises, with its traceback."""
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_an_exception_in_one_line() -> None:
    assert text.printable(" two\n\tlines\x1b \u202eé ") == r"two lines\x1b \u202eé"
    assert text.one_line(ValueError("a\nb")) == "a b"
    assert text.one_line(MuteError()) == ""
    assert text.describe(ValueError("a\nb")) == "ValueError: a b"
    assert text.describe(MuteError()) == "MuteError: no message"
    assert text.describe(ValueError("x" * 200)) == f"ValueError: {'x' * 200}"
    assert text.describe(ValueError("x" * 201)) == f"ValueError: {'x' * 200}..."
    assert text.describe(ValueError("abcd"), most=3) == "ValueError: abc..."


def test_an_exception_names_the_last_line_of_the_users_own() -> None:
    """Not a line of this package, of an installed one, or of Python's library."""
    module: dict[str, Any] = {}
    exec(compile("def fails():\n    raise ValueError('x')", "/home/me/mine.py", "exec"), module)
    assert text.describe(caught(module["fails"])) == "ValueError: x (mine.py, line 2)"
    own = _raise.__code__.co_firstlineno + 1
    assert text.describe(caught(lambda: _raise(ValueError("x")))) == f"ValueError: x (test_text.py, line {own})"
    here = caught.__code__.co_firstlineno + 3  # the call itself; the frames below are of others
    for call in (
        functools.partial(np.zeros(3).reshape, 2),
        functools.partial(np.linalg.inv, np.zeros((2, 2))),
        functools.partial(json.loads, "{"),
        functools.partial(objects.parse_call, "it", "(", {}),
    ):
        assert text.describe(caught(call)).endswith(f" (test_text.py, line {here})")


def test_whose_code_an_exception_comes_from() -> None:
    """Of the user if fedsim, which something of fedsim has called, has called it last."""

    def by_fedsim(call: Callable[[], Any]) -> Any:
        return objects.make("it", call, "call", [], {})

    def fails() -> None:
        np.zeros(3).reshape(2)

    def asks_fedsim() -> None:
        text.describe(None)  # type: ignore[arg-type]

    for call, users in [
        (fails, False),
        (lambda: by_fedsim(fails), False),  # the only frame of fedsim's is the command that calls a script
        (lambda: by_fedsim(lambda: by_fedsim(fails)), True),
        (lambda: by_fedsim(lambda: by_fedsim(asks_fedsim)), False),
        (lambda: by_fedsim(asks_fedsim), False),
    ]:
        assert text.raised_by_user_class(caught(call)) is users


@pytest.mark.slow
def test_texts_are_parsed_in_several_threads() -> None:
    """Garbage collection during `ast.parse` can switch threads, which Python's parser does not expect."""
    script = """
import gc, sys, threading, time
from fedsim.objects import parse_call

class Cycle:
    def __init__(self):
        self.me = self
    def __del__(self):
        sum(range(50))

def parse():
    while time.monotonic() < end and not errors:
        cycles = [Cycle() for _ in range(3)]
        try:
            parse_call("split", "IID(3, sizes=[1, 2, 3, (4, 5, {'a': [1, 2, 3]})])", {})
        except SystemError as error:
            errors.append(error)

sys.setswitchinterval(1e-6)
gc.set_threshold(60, 5, 5)
errors, end = [], time.monotonic() + 8
threads = [threading.Thread(target=parse) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not errors, errors
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_what_a_terminal_would_obey_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    text.print_notice("column \x1b]0;mine\x07 has é\nand \u202e more")
    assert capsys.readouterr().err == "fedsim: column \\x1b]0;mine\\x07 has é\nand \\u202e more\n"
