"""No change changes a result unless it means to: `stored_results` says how to look and how to store."""

from __future__ import annotations

import json

import pytest
import stored_results

STORED = json.loads(stored_results.FILE.read_text())
CASES = stored_results.cases()


def test_every_case_is_stored() -> None:
    assert set(CASES) == set(STORED["results"])


@pytest.mark.parametrize("name", CASES)
def test_a_stored_result(name: str) -> None:
    """In bits where NumPy, Numba and the processor are those it was stored with; elsewhere to rounding."""
    bits = STORED["made on"] == stored_results.machine()
    found = stored_results.summary(CASES[name]())
    assert not stored_results.differences(found, STORED["results"][name], bits)
