"""The digits bundled with scikit-learn: 1,797 real 8 x 8 images of handwritten digits; the default, no download.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
Pixels 0..16 are divided by 16. Every fifth example of each class is the test set (1,442 train, 355 test).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsim.data.dataset import Dataset


def load() -> Dataset:
    """Return the digits, always with the same test set."""
    table = _read()
    x, y = (table[:, :-1] / 16).astype(np.float32), table[:, -1].astype(np.int64)
    test = np.zeros(len(y), dtype=bool)
    for label in range(10):
        test[np.flatnonzero(y == label)[4::5]] = True
    return Dataset("digits", x[~test], y[~test], x[test], y[test], 10)


def _read() -> NDArray[np.float64]:
    """Return rows of 64 pixels and a label."""
    # Importing scikit-learn takes a second, so the file is read directly unless it has moved.
    spec = find_spec("sklearn")
    file = Path(spec.origin or "" if spec else "").parent / "datasets" / "data" / "digits.csv.gz"
    if file.is_file():
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    return np.column_stack(load_digits(return_X_y=True))
