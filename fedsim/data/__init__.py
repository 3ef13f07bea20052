"""Datasets by name, and `load`, which returns one."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedsim.arguments import checked_arguments
from fedsim.checks import check_instance, suggest
from fedsim.data import adult, article, digits, idx, synthetic
from fedsim.data.dataset import Dataset
from fedsim.data.hub import hub
from fedsim.data.table import table
from fedsim.data.table_reader import SUFFIXES, locate
from fedsim.errors import ConfigError
from fedsim.objects import check_call, make, parse_call

__all__ = ["DATASETS", "SUFFIXES", "Dataset", "check", "hub", "load", "synthetic", "table"]

#: Name -> the function that returns the dataset; functions with a parameter `data_dir` read files.
DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": digits.load,
    "article": article.load,
    "article_teacher": article.load_teacher,
    "mnist": idx.MNIST.load,
    "fashion_mnist": idx.FASHION_MNIST.load,
    "adult": adult.load,
    "synthetic": synthetic.synthetic,
    "synthetic_iid": synthetic.synthetic_iid,
    "fcube": synthetic.fcube,
    "table": table,
    "hub": hub,
}


def check(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Return the name, positional and keyword arguments in a dataset's text, without loading the dataset.

    Raises
    ------
    ConfigError
        The name is unknown, or the dataset does not take these arguments.
    """
    check_instance("dataset", text, str, "a name, such as 'digits'")
    name, args, keywords = parse_call("dataset", text, {})
    if name not in DATASETS:
        hint = "; a file is table('FILE', label='COLUMN')" if name.endswith(SUFFIXES) else suggest(name, DATASETS)
        raise ConfigError(f"dataset is {text!r}; allowed: {', '.join(DATASETS)}{hint}")
    check_call("dataset", DATASETS[name], name, args, keywords)
    return name, args, keywords


def reads_files(text: str) -> bool:
    """Return whether a dataset is read from files, which may change; the others are functions of their text."""
    return "data_dir" in inspect.signature(DATASETS[check(text)[0]]).parameters


def title(text: str) -> str:
    """Return a dataset's name for titles: the last part of the path of a table or hub dataset, else the text."""
    name, args, keywords = check(text)
    return Path(str(args[0] if args else keywords["path"])).name if name in ("table", "hub") else text


@checked_arguments
def load(text: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Return the dataset with the given name.

    Parameters
    ----------
    text : str
        A name in `DATASETS`, with arguments if it takes any: ``"digits"``, ``"synthetic(0.5, 0.5)"``,
        ``"table('patients.csv', label='outcome', client_column='hospital')"``.
    data_dir : path, optional
        Folder with the user's data files; default ``$FEDSIM_DATA``.

    Raises
    ------
    ConfigError
        The name is unknown, or an argument is invalid.
    DataError
        A file cannot be found or read.
    """
    name, args, keywords = check(text)
    folder = str(data_dir or os.environ.get("FEDSIM_DATA") or "")
    if name != "table":
        return _load(text, folder)
    file = locate(str(args[0] if args else keywords["path"]), str(keywords.get("data_dir") or folder))
    stamp = (file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else None
    return _load_table(text, folder, stamp)


def _load(text: str, data_dir: str) -> Dataset:
    name, args, keywords = check(text)
    if reads_files(text):
        keywords.setdefault("data_dir", data_dir or None)
    return make("dataset", DATASETS[name], name, args, keywords)


@lru_cache(maxsize=1)
def _load_table(text: str, data_dir: str, stamp: tuple[int, int] | None) -> Dataset:
    """Return a table, read again only if its file's time of modification or size (`stamp`) has changed."""
    return _load(text, data_dir)
