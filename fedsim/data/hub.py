"""Image and tabular datasets of the Hugging Face hub, or of folders on disk (extra ``hub``)."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_choice, check_instance, check_real
from fedsim.data.dataset import Dataset
from fedsim.data.table import check_columns, column_names, encode, table
from fedsim.data.table_reader import locate
from fedsim.errors import ConfigError, DataError, missing_extra


def hub(
    path: str,
    label: str = "label",
    client_column: str | Sequence[str] = (),
    *,
    config: str | None = None,
    test_fraction: float = 0.2,
    data_dir: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Dataset:
    """Return a dataset of the hub.

    Parameters
    ----------
    path : str
        Its name, such as ``"ylecun/mnist"`` or ``"flwrlabs/femnist"``, or a folder written by ``save_to_disk`` of the
        package ``datasets``.
    label : str
        The column to predict.
    client_column : str or sequence of str
        Columns that identify the client of each example.
    config : str, optional
        The name of one of the dataset's configurations.
    test_fraction : float
        Share of the examples for the test set if the dataset has no split called ``test``.
    data_dir : path, optional
        Where a relative path is looked up if it does not exist in the working directory.
    **options
        Options of `fedsim.data.table`, for datasets without images.

    Returns
    -------
    Dataset
        Images as rows of pixels from 0 to 1, with the channels of each pixel together; columns of other datasets are
        encoded as by `fedsim.data.table`.

    Raises
    ------
    ConfigError
        The extra is not installed, a column does not exist, or an option is invalid.
    DataError
        The dataset cannot be found, loaded or downloaded, or its images differ in size.
    """
    folder = locate(path, data_dir, "hub")
    check_instance("hub's config", config, str | None, "the name of a configuration")
    test_fraction = check_real("hub's test_fraction", test_fraction, 0, 1, open_low=True, open_high=True)
    known = [p.name for p in inspect.signature(table).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        check_choice("hub's option", option, known)
    names = column_names("hub's client_column", client_column)
    try:
        import datasets
        import pandas as pd
    except ImportError:
        raise missing_extra(f"the dataset {path!r} of the hub", "hub") from None
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_from_disk(str(folder)) if folder.is_dir() else datasets.load_dataset(path, config)
    except Exception as error:  # of many packages and types
        raise DataError(f"the dataset {path!r} cannot be loaded: {str(error).splitlines()[0]}") from None
    parts = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    train, test = parts.get("train", next(iter(parts.values()))), parts.get("test")
    check_columns(train.column_names, path, label=[label], client_column=names)
    images = [c for c, kind in train.features.items() if isinstance(kind, datasets.Image)]
    if images and options:
        raise ConfigError(f"{path} contains images, to which {', '.join(options)} does not apply")
    if images:
        return _images(path, train, test, label, images[0], names, test_fraction)
    frame, in_test = train.to_pandas(), None
    if test is not None:
        frame = pd.concat([frame, test.to_pandas()], ignore_index=True)
        in_test = np.arange(len(frame)) >= len(train)
    return encode(frame, path, label, names, test_fraction=test_fraction, test=in_test, **options)


def _images(
    path: str, train: Any, test: Any, label: str, image: str, clients: list[str], test_fraction: float
) -> Dataset:
    names = tuple(getattr(train.features[label], "names", None) or ())
    if test is None:
        divided = train.train_test_split(test_fraction, seed=0)
        train, test = divided["train"], divided["test"]
    x_train, x_test = (_pixels(path, part, image) for part in (train, test))
    y_train, y_test = (np.asarray(part[label]) for part in (train, test))
    if not names:
        values, both = np.unique(np.concatenate([y_train, y_test]), return_inverse=True)
        y_train, y_test, names = both[: len(y_train)], both[len(y_train) :], tuple(map(str, values))
    groups = {name: np.asarray(train[name]) for name in clients}
    return Dataset(path, x_train, y_train, x_test, y_test, len(names), groups=groups, label_names=names)


def _pixels(path: str, part: Any, image: str) -> NDArray[np.float32]:
    """Return images as rows of pixels; DataError at the first image of another size."""
    images: list[NDArray[np.uint8]] = []
    for picture in part[image]:
        images.append(np.asarray(picture if picture.mode in ("L", "RGB") else picture.convert("RGB")))
        if images[-1].shape != images[0].shape:
            shapes = f"{images[0].shape} and {images[-1].shape}"
            raise DataError(f"{path} has images of shape {shapes}; allowed: one size")
    if not images:
        raise DataError(f"{path} has an empty split")
    return np.stack(images, dtype=np.float32).reshape(len(images), -1) / np.float32(255)
