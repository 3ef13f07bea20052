"""MNIST and Fashion-MNIST: 60,000 training and 10,000 test images, 28 x 28, pixels 0..255 divided by 255.

Files are looked up in ``data_dir``, or else in ``$FEDSIM_DATA``, as ``NAME.gz`` or ``NAME``. Without either they are
downloaded once into the user's cache folder and verified by checksum.
"""

from __future__ import annotations

import gzip
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_path
from fedsim.data.dataset import Dataset
from fedsim.errors import DataError


@dataclass(frozen=True)
class Source:
    """A dataset of published files.

    Attributes
    ----------
    name : str
    title : str
        The dataset's name in messages.
    mirrors : tuple of str
        URLs of folders.
    folders : tuple of str
        Subfolders of a data folder in which its files may be.
    files : dict of str to str
        Name of the training images, training labels, test images, test labels -> checksum of the published file.
    label_names : tuple of str
    suffix : str
        What follows a name in the published file's.
    contents : str
        What the dataset holds, for lists.
    """

    name: str
    title: str
    mirrors: tuple[str, ...]
    folders: tuple[str, ...]
    files: dict[str, str]
    label_names: tuple[str, ...] = ()
    suffix: str = ".gz"
    contents: str = "70,000 images 28 x 28"

    def load(self, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
        """Return a dataset of four idx files.

        Parameters
        ----------
        data_dir : path, optional
            Folder that contains the four files; default ``$FEDSIM_DATA``, or else they are downloaded.

        Raises
        ------
        DataError
            The folder lacks a file, a file is damaged, or the download failed.
        """
        found = (read_idx(self.locate(name, data_dir)) for name in self.files)
        x_train, y_train, x_test, y_test = found
        return Dataset(self.name, _pixels(x_train), y_train, _pixels(x_test), y_test, 10, label_names=self.label_names)

    def locate(self, name: str, data_dir: str | os.PathLike[str] | None = None) -> Path:
        """Return the path of a file in the data folder or, if there is no data folder, of the downloaded file."""
        if data_dir is not None:
            check_path(f"{self.name}'s data_dir", data_dir)
        return self.find(name, data_dir) or self.download(name)

    @property
    def _subfolders(self) -> str:
        return " or ".join(f"under {folder}/" if folder else "directly" for folder in self.folders)

    def find(self, name: str, data_dir: str | os.PathLike[str] | None = None) -> Path | None:
        """Return the path of a file in the data folder, or None if there is no data folder."""
        folder = data_dir or os.environ.get("FEDSIM_DATA")
        if not folder:
            return None
        if file := self._file_in(folder, name):
            return file
        source = "$FEDSIM_DATA" if str(folder) == os.environ.get("FEDSIM_DATA") else "data_dir"
        raise DataError(
            f"{source} is {str(folder)!r} but contains neither {name}.gz nor {name}, {self._subfolders}; "
            f"put the {self.title} files there, or leave {source} unset to download them"
        )

    def _file_in(self, folder: str | os.PathLike[str], name: str) -> Path | None:
        files = (Path(folder) / sub / (name + end) for sub in self.folders for end in (".gz", ""))
        return next((file for file in files if file.is_file()), None)

    def describe_location(self, data_dir: str | os.PathLike[str] | None = None) -> str:
        """Return in words where the files are, or from where they would be downloaded."""
        folder = data_dir or os.environ.get("FEDSIM_DATA")
        if folder:
            missing = [name for name in self.files if not self._file_in(folder, name)]
            return f"NOT in {folder}: {', '.join(missing)} missing" if missing else f"in {folder}"
        cached = cache_dir() / self.name
        if all((cached / (name + self.suffix)).is_file() for name in self.files):
            return f"in {cached}"
        return (
            f"not available locally; downloaded when first used from {self.mirrors[0]} into {cached}, "
            "or read from --data-dir DIR or $FEDSIM_DATA"
        )

    def download(self, name: str) -> Path:
        """Download a file into the cache, with a progress bar, unless it is there; verify its checksum."""
        import pooch

        pooch.get_logger().setLevel("ERROR")
        downloader = pooch.HTTPDownloader(progressbar=os.isatty(2), timeout=30)
        file, checksum, folder, failures = name + self.suffix, self.files[name], cache_dir() / self.name, []
        for mirror in self.mirrors:
            try:
                return Path(pooch.retrieve(mirror + file, checksum, file, folder, downloader=downloader))
            except (OSError, ValueError) as error:
                failures.append(f"{mirror}: {type(error).__name__}")
        raise DataError(
            f"{self.title}'s {file} could not be downloaded ({'; '.join(failures)}); connect to the internet, or "
            f"give the folder of its files {', '.join(self.files)} ({self._subfolders}) with --data-dir DIR or "
            "FEDSIM_DATA=DIR"
        )


_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

_MNIST_CHECKSUMS = (
    "sha256:440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "sha256:3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
)
#: Y. LeCun, C. Cortes and C. J. C. Burges, "The MNIST database of handwritten digits", 1998.
MNIST = Source(
    "mnist",
    "MNIST",
    ("https://storage.googleapis.com/cvdf-datasets/mnist/", "https://ossci-datasets.s3.amazonaws.com/mnist/"),
    ("", "mnist"),
    dict(zip(_NAMES, _MNIST_CHECKSUMS, strict=True)),
)

_FASHION_MNIST_CHECKSUMS = (
    "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "md5:25c81989df183df01b3e8a0aad5dffbe",
    "md5:bef4ecab320f06d8554ea6380940ec79",
    "md5:bb300cfdad3c16e7a12a480ee83cd310",
)
#: H. Xiao, K. Rasul and R. Vollgraf, "Fashion-MNIST", 2017 (arXiv:1708.07747), with its authors' checksums. The files
#: have the same names as MNIST's, so they are looked up only in subfolders.
FASHION_MNIST = Source(
    "fashion_mnist",
    "Fashion-MNIST",
    (
        "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    ("fashion_mnist", "fashion-mnist", "FashionMNIST/raw"),
    dict(zip(_NAMES, _FASHION_MNIST_CHECKSUMS, strict=True)),
    ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
)


def cache_dir() -> Path:
    """Return the user's cache folder for fedsim (``$XDG_CACHE_HOME/fedsim`` or the system's own)."""
    import pooch

    return Path(pooch.os_cache("fedsim"))


def _pixels(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255)


def read_idx(file: Path) -> NDArray[Any]:
    """Return the array in an idx file of unsigned bytes, gzipped or not.

    Raises
    ------
    DataError
        It is not an idx file of unsigned bytes, or is truncated.
    """
    try:
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} cannot be read: {error}") from None
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or raw[3] == 0:
        raise DataError(f"{file} is not an idx file of unsigned bytes")
    dimensions = raw[3]
    try:
        shape = np.frombuffer(raw, ">u4", dimensions, 4)
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except ValueError as error:
        raise DataError(f"{file} is damaged: {error}") from None
