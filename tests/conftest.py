"""Shared fixtures: the data beside the checkout, and a small real experiment."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as under nohup, which the processes of tests would inherit
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """The folder with MNIST's files, or a skip where it is absent (never in CI)."""
    folder = SHARED / "mnist"
    if not folder.is_dir():
        pytest.skip("MNIST's files are not beside this checkout (../shared/data/mnist)")
    return folder
