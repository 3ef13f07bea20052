"""The sentences of refused values: which field, what value, what is allowed; and what is taken as it is."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest

from fedsim import checks, errors
from fedsim.clients import SGD
from fedsim.errors import ClientError, ConfigError, DataError, DivergenceError, FedsimError


def refusal(call: Callable[[], Any]) -> str:
    """What a ConfigError says."""
    with pytest.raises(ConfigError) as caught:
        call()
    return str(caught.value)


def test_errors_are_of_pythons_kinds_too() -> None:
    """So that a caller may catch ValueError; and they cross processes whole."""
    for kind, base in ((ConfigError, ValueError), (DataError, ValueError), (DivergenceError, ArithmeticError)):
        error = kind("why")
        assert isinstance(error, base)
        assert isinstance(error, FedsimError)
        assert (error.reason, str(pickle.loads(pickle.dumps(error)))) == ("why", "why")
    failed = pickle.loads(pickle.dumps(ClientError(7, 3, "why")))
    assert isinstance(failed, FedsimError)
    assert (str(failed), failed.reason) == ("client 7 failed in round 3: why", "why")


def test_an_extra_that_is_missing_is_said_with_the_command_that_installs_it() -> None:
    assert str(errors.missing_extra("reading Parquet", "parquet")) == (
        "reading Parquet needs the extra 'parquet'; install it by: pip install 'fedsim[parquet]'"
    )


def test_values_are_shown_in_at_most_a_line() -> None:
    assert checks.shorten("a'b") == '''"a'b"'''
    assert checks.shorten("x" * 198) == f"'{'x' * 198}'"
    assert checks.shorten("x" * 100 + "y" * 99) == f"'{'x' * 89} ... {'y' * 89}'"
    assert checks.shorten(10**5000) == "a int too large to print"


def test_one_of_some_words() -> None:
    assert checks.suggest("tahn", ["relu", "tanh"]) == "; did you mean 'tanh'?"
    assert checks.suggest("x", ["relu", "tanh"]) == checks.suggest(3, ["relu"]) == checks.suggest(None, []) == ""
    checks.check_choice("activation", "tanh", iter(["relu", "tanh"]))
    assert refusal(lambda: checks.check_choice("activation", "tahn", iter(["relu", "tanh"]))) == (
        "activation is 'tahn'; allowed: relu, tanh; did you mean 'tanh'?"
    )
    assert (
        refusal(lambda: checks.check_choice("activation", ["relu"], ["relu"]))
        == "activation is ['relu']; allowed: relu"
    )
    assert refusal(lambda: checks.check_choice("activation", np.array(["relu"]), ["relu"])).endswith("; allowed: relu")


def test_containers_without_numbers_of_others_are_left_as_they_are() -> None:
    for value in ([1, "a", (2.0, None)], (1, 2), {"a": [1], 2: True}, "x", None, 1j):
        assert checks.to_builtin(value) is value
    made = checks.to_builtin({np.int64(1): [np.float32(0.5), (np.bool_(True),), None], "b": "b"})
    assert made == {1: [0.5, (True,), None], "b": "b"}
    assert [type(key) for key in made] == [int, str]
    assert [type(part) for part in (made[1][0], made[1][1], made[1][1][0])] == [float, tuple, bool]


def test_arrays_become_tuples() -> None:
    for value, expected in [
        (np.array([[1, 2], [3, 4]]), ((1, 2), (3, 4))),
        (np.array([0.5, 1.0], np.float32), (0.5, 1.0)),
        (np.array(3), 3),
        (np.array([]), ()),
        ([np.int64(1)], [1]),
        ("ab", "ab"),
    ]:
        found = checks.to_builtin_sequence(value)
        assert found == expected
        assert type(found) is type(expected)


def test_whole_numbers_that_numpy_cannot_hold_become_floats_in_fields_of_floats() -> None:
    for given, kind in [(2**63 - 1, int), (2**63, float), (2**70, float), (2**1000, float), (2, int)]:
        lr = SGD(lr=given).lr
        assert lr == given
        assert type(lr) is kind
    assert type(SGD(steps=7).steps) is int
    assert SGD(weight_decay=int(1.5e308)).weight_decay == 1.5e308
    assert refusal(lambda: SGD(momentum=-(2**63))).startswith("SGD's momentum is -9.223372036854776e+18; allowed")


def test_whole_numbers_and_their_bounds() -> None:
    for value, least, most in [(0, 0, 4), (4, 0, 4), (np.uint8(3), 3, 3), (2**31 - 1, 0, checks.LARGEST)]:
        assert checks.check_integer("n", value, least, most) == value
    for call, said in [
        (lambda: checks.check_integer("n", 5, 1, 4), "n is 5; allowed: a whole number, 1 to 4"),
        (lambda: checks.check_integer("n", 0, 1, 4), "n is 0; allowed: a whole number, 1 to 4"),
        (lambda: checks.check_integer("n", "x", 1, 4), "n is 'x'; allowed: a whole number, 1 to 4"),
        (lambda: checks.check_integer("n", 0, 1), "n is 0; allowed: a whole number, 1 or more"),
        (lambda: checks.check_integer("n", 1.0), "n is 1.0; allowed: a whole number, 0 or more"),
        (lambda: checks.check_integer("n", 2**31, 1), "n is 2147483648; allowed: a whole number, 1 to 2147483647"),
        (lambda: checks.check_seed("s", -1), "s is -1; allowed: a whole number, 0 or more"),
        (
            lambda: checks.check_seed("s", 2**64),
            "s is 18446744073709551616; allowed: a whole number, 0 to 18446744073709551615",
        ),
    ]:
        assert refusal(call) == said
    assert checks.check_seed("s", 2**64 - 1) == 2**64 - 1


def test_real_numbers_and_their_bounds() -> None:
    for value, low, high in [(0, 0, 1), (1.0, 0, 1), (np.float32(0.5), 0, 1), (-1e308, -math.inf, math.inf)]:
        assert checks.check_real("x", value, low, high) == value
    half_open: dict[str, Any] = {"open_low": True, "open_high": True}
    assert checks.check_real("x", 5e-324, 0, 1, **half_open) == 5e-324
    for call, said in [
        (lambda: checks.check_real("x", -0.1, 0, 1), "x is -0.1; allowed: a finite number at least 0 and at most 1"),
        (lambda: checks.check_real("x", 1.1, 0, 1), "x is 1.1; allowed: a finite number at least 0 and at most 1"),
        (
            lambda: checks.check_real("x", 0, 0, 1, **half_open),
            "x is 0; allowed: a finite number greater than 0 and less than 1",
        ),
        (
            lambda: checks.check_real("x", 1.0, 0, 1, open_high=True),
            "x is 1.0; allowed: a finite number at least 0 and less than 1",
        ),
        (lambda: checks.check_real("x", math.nan), "x is nan; allowed: a finite number"),
        (lambda: checks.check_real("x", math.inf, 0), "x is inf; allowed: a finite number at least 0"),
        (lambda: checks.check_real("x", True, high=2), "x is True; allowed: a finite number at most 2"),
        (lambda: checks.check_real("x", "1"), "x is '1'; allowed: a finite number"),
    ]:
        assert refusal(call) == said


def test_truth_values_and_paths() -> None:
    assert checks.check_flag("f", np.bool_(True)) is True
    assert refusal(lambda: checks.check_flag("f", 1)) == "f is 1; allowed: true or false"

    class Bytes(PurePosixPath):
        def __fspath__(self) -> Any:
            return b"x"

    sound: list[Any] = ["a", "", Path("a"), PurePosixPath("a")]
    for path in sound:
        checks.check_path("p", path)
    for path, shown in [("a\0b", r"'a\x00b'"), (None, "None"), (b"a", "b'a'"), (3, "3"), (Bytes("x"), "Bytes('x')")]:
        assert refusal(lambda: checks.check_path("p", path)) == f"p is {shown}; allowed: a path"  # noqa: B023
