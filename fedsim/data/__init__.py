"""Datasets by name; `load` resolves one."""

from __future__ import annotations

import os
from collections.abc import Callable

from fedsim.data import article, digits, mnist
from fedsim.data.dataset import Dataset
from fedsim.errors import one_of

__all__ = ["DATASETS", "Dataset", "load"]

#: Name -> loader of a dataset that needs no files of the user's.
_BUILT_IN: dict[str, Callable[[], Dataset]] = {
    "digits": digits.load,
    "article": article.load,
    "article_teacher": article.load_teacher,
}

#: Every name that `load` accepts.
DATASETS = (*_BUILT_IN, "mnist")


def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Return the dataset called `name`.

    Parameters
    ----------
    name : {"digits", "article", "article_teacher", "mnist"}
    data_dir : path, optional
        Where the user keeps data files; default ``$FEDSIM_DATA``.

    Raises
    ------
    ConfigError
        Unknown name.
    DataError
        Its files cannot be found or read.
    """
    one_of("dataset", name, DATASETS)
    return mnist.load(data_dir) if name == "mnist" else _BUILT_IN[name]()
