"""MNIST: 60,000 training and 10,000 test images of handwritten digits, 28 x 28, pixels 0..255 divided by 255.

Source: Y. LeCun, C. Cortes and C. J. C. Burges, "The MNIST database of handwritten digits", 1998. Files are looked
for in ``data_dir``, then in ``$FEDSIM_DATA``, as ``NAME.gz`` or ``NAME``, directly or under ``mnist/``; else fetched
once into the user's cache, checked by SHA-256.
"""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.data.dataset import Dataset
from fedsim.errors import DataError

MIRRORS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)
#: File -> SHA-256 of the published .gz file.
FILES = {
    "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}


def load(data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Return MNIST.

    Parameters
    ----------
    data_dir : path, optional
        Folder that holds the four idx files; default ``$FEDSIM_DATA``, else download.

    Raises
    ------
    DataError
        The folder lacks a file, a file is damaged, or the download failed.
    """
    x_train, y_train, x_test, y_test = (read_idx(find(name, data_dir) or download(name)) for name in FILES)
    return Dataset("mnist", _pixels(x_train), y_train, _pixels(x_test), y_test, 10)


def _pixels(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255)


def find(name: str, data_dir: str | os.PathLike[str] | None = None) -> Path | None:
    """Return the file called `name` where the user keeps data, or None if no place was named."""
    place = data_dir or os.environ.get("FEDSIM_DATA")
    if not place:
        return None
    candidates = [Path(place) / sub / (name + end) for sub in ("", "mnist") for end in (".gz", "")]
    for file in candidates:
        if file.is_file():
            return file
    source = "data_dir" if data_dir else "$FEDSIM_DATA"
    raise DataError(
        f"{source} is {str(place)!r} but holds neither {name}.gz nor {name}, directly or under mnist/; "
        f"put the MNIST files there, or leave {source} unset to download them"
    )


def cache_dir() -> Path:
    """Return the user's cache folder for fedsim (``$XDG_CACHE_HOME/fedsim`` or the system's own)."""
    import pooch

    return Path(pooch.os_cache("fedsim"))


def download(name: str) -> Path:
    """Fetch one file into the cache unless it is there, with progress, and check its SHA-256."""
    import logging

    import pooch

    pooch.get_logger().setLevel(logging.ERROR)
    failures = []
    for mirror in MIRRORS:
        try:
            return Path(
                pooch.retrieve(
                    mirror + name + ".gz",
                    known_hash="sha256:" + FILES[name],
                    fname=name + ".gz",
                    path=cache_dir() / "mnist",
                    downloader=pooch.HTTPDownloader(progressbar=os.isatty(2), timeout=30),
                )
            )
        except (OSError, ValueError) as error:
            failures.append(f"{mirror}: {type(error).__name__}")
    raise DataError(
        f"MNIST's {name}.gz could not be downloaded ({'; '.join(failures)}); connect to the internet, or give the "
        "folder that holds the four idx files with --data-dir DIR or FEDSIM_DATA=DIR"
    )


def read_idx(file: Path) -> NDArray[Any]:
    """Return the array in an idx file of unsigned bytes, gzipped or not.

    Raises
    ------
    DataError
        Not an idx file of unsigned bytes, or cut short.
    """
    try:
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} cannot be read: {error}") from None
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise DataError(f"{file} is not an idx file of unsigned bytes")
    dimensions = raw[3]
    shape = tuple(int(n) for n in np.frombuffer(raw, ">u4", dimensions, 4)) if len(raw) >= 4 + 4 * dimensions else ()
    body = np.frombuffer(raw, np.uint8, offset=min(len(raw), 4 + 4 * dimensions))
    if not shape or body.size != np.prod(shape):
        raise DataError(f"{file} is damaged: its header promises shape {shape}, it holds {body.size} bytes")
    return body.reshape(shape)
