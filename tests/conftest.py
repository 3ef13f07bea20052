"""Shared fixtures: the data beside the checkout, and a small real experiment."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """The folder with MNIST's files, or a skip where it is absent (never in CI)."""
    folder = SHARED / "mnist"
    if not folder.is_dir():
        pytest.skip("MNIST's files are not beside this checkout (../shared/data/mnist)")
    return folder
