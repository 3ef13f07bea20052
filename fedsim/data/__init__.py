"""Datasets by name; `load` resolves one."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedsim.checks import suggest
from fedsim.data import article, digits, idx, synthetic
from fedsim.data.dataset import Dataset
from fedsim.data.hub import hub
from fedsim.data.table import table
from fedsim.data.table_reader import SUFFIXES
from fedsim.errors import ConfigError
from fedsim.objects import make, parse_call

__all__ = ["DATASETS", "SUFFIXES", "Dataset", "check", "hub", "load", "synthetic", "table"]

#: Name -> what returns the dataset. Those that take `data_dir` read files.
DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": digits.load,
    "article": article.load,
    "article_teacher": article.load_teacher,
    "mnist": idx.MNIST.load,
    "fashion_mnist": idx.FASHION_MNIST.load,
    "synthetic": synthetic.synthetic,
    "synthetic_iid": synthetic.synthetic_iid,
    "fcube": synthetic.fcube,
    "table": table,
    "hub": hub,
}


def check(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Take a dataset's text apart: its name and arguments.

    Raises
    ------
    ConfigError
        Unknown name, or arguments that it does not take.
    """
    name, args, keywords = parse_call("dataset", text, {})
    if name not in DATASETS:
        hint = "; a file is table('FILE', label='COLUMN')" if name.endswith(SUFFIXES) else suggest(name, DATASETS)
        raise ConfigError(f"dataset is {text!r}; allowed: {', '.join(DATASETS)}{hint}")
    try:
        inspect.signature(DATASETS[name]).bind(*args, **keywords)
    except TypeError:
        make("dataset", DATASETS[name], name, args, keywords)
    return name, args, keywords


def title(text: str) -> str:
    """Return what a dataset is called in a sentence: the file's or hub's name where there is one."""
    name, args, keywords = check(text)
    where = args[0] if args else keywords.get("path")
    return Path(str(where)).name if name in ("table", "hub") else text


def load(text: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Return the dataset that a text names.

    Parameters
    ----------
    text : str
        A name of `DATASETS`, with arguments where it takes any: ``"digits"``, ``"synthetic(0.5, 0.5)"``,
        ``"table('patients.csv', label='outcome', client_column='hospital')"``.
    data_dir : path, optional
        Where the user keeps data files; default ``$FEDSIM_DATA``.

    Raises
    ------
    ConfigError
        Unknown name, or arguments that are not allowed.
    DataError
        Its files cannot be found or read.
    """
    name, args, keywords = check(text)
    place = str(data_dir or os.environ.get("FEDSIM_DATA") or "") or None
    if name != "table":
        return _load(text, place)
    path = Path(str(args[0] if args else keywords["path"]))
    file = path if path.exists() or not place else Path(place) / path
    stamp = (file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else None
    return _load_once(text, place, stamp)


def _load(text: str, data_dir: str | None) -> Dataset:
    name, args, keywords = check(text)
    if "data_dir" in inspect.signature(DATASETS[name]).parameters:
        keywords.setdefault("data_dir", data_dir)
    dataset: Dataset = make("dataset", DATASETS[name], name, args, keywords)
    return dataset


@lru_cache(maxsize=1)
def _load_once(text: str, data_dir: str | None, stamp: tuple[int, int] | None) -> Dataset:
    """Read a table once as long as it does not change."""
    return _load(text, data_dir)
