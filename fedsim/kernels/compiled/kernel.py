"""The kernel's functions as Python calls them."""

from __future__ import annotations

import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

from fedsim.kernels.compiled.activations import ACTIVATIONS
from fedsim.kernels.compiled.compilation import compile_all
from fedsim.kernels.compiled.emitter import VECTOR_BYTES
from fedsim.kernels.compiled.layout import Network, make_layout, thread_scratch
from fedsim.kernels.compiled.losses import LOSSES
from fedsim.kernels.compiled.private import Private
from fedsim.kernels.compiled.sums import add_weighted, squared_distances
from fedsim.kernels.compiled.training import train, train_signature
from fedsim.kernels.fit import FitJob, FitResult
from fedsim.models import Array
from fedsim.models.mlp import MLP


def prepare(dtype: str, targets: bool = False, private: bool = False) -> None:
    """Compile for a dtype, or load what an earlier run compiled.

    Parameters
    ----------
    dtype : {"float32", "float64"}
    targets : bool
        For real-valued targets instead of labels.
    private : bool
        For the steps of DP-SGD.
    """
    real, doubles = numba.from_dtype(np.dtype(dtype)), types.float64[::1]
    center = types.Array(real, 1, "C", readonly=True)
    compile_all(
        [
            (train, train_signature(dtype, targets, private)),
            (add_weighted, types.void(doubles, real[:, ::1], doubles)),
            (squared_distances, types.void(doubles, real[:, ::1], center)),
        ]
    )


def fit(job: FitJob) -> FitResult:
    """Train a block of clients, as `kernels.numpy.fit` does, except for strategies' own gradients and directions.

    The result is the same to the bit, however many threads share the block.
    """
    net, dtype = job.model, job.model.dtype
    assert isinstance(net, MLP)
    real = np.dtype(dtype).type
    table, weights, _ = make_layout(net)
    lanes, codes = VECTOR_BYTES // np.dtype(dtype).itemsize, (ACTIVATIONS[net.activation], LOSSES[net.loss])
    network = Network(table, weights, lanes, *codes, np.array(job.trained), job.trained.index(True))
    sizes = job.partition.sizes[job.clients]
    out = np.empty((len(sizes), net.num_parameters), dtype)
    losses, squares = np.empty(len(sizes)), np.empty(len(sizes))
    correction = np.empty((0, 0), dtype) if job.correction is None else job.correction
    own = job.private
    private = own and Private(own.clip, own.noise, own.counts, own.normals, own.expected)
    counter = np.zeros(1, np.int64)
    arguments = (
        out, losses, squares, _readonly(job.start, dtype), _readonly(job.x, dtype), _readonly(job.y),
        job.partition.indices, job.partition.offsets[job.clients], sizes, np.ascontiguousarray(job.steps),
        own.batches if own else job.shuffles, job.batch_size, network, np.asarray(job.lr, dtype), real(job.momentum),
        real(job.weight_decay), real(job.mu), _readonly(job.center, dtype), _readonly(correction, dtype), private,
        counter,
    )  # fmt: skip
    try:
        job.run_on_all_workers(lambda: train(*arguments, thread_scratch(net)))
    finally:
        counter[0] = len(sizes)  # after an interruption, other threads take no further client
    return FitResult(out, losses, np.sqrt(squares))


def update_norms(rows: Array, center: Array) -> NDArray[np.float64]:
    """Return the Euclidean distance of each row from a center, as `kernels.numpy.update_norms` does."""
    squares = np.empty(len(rows))
    squared_distances(squares, rows, _readonly(center))
    return np.sqrt(squares)


def _readonly(array: Array, dtype: str | None = None) -> Array:
    view = np.ascontiguousarray(array, dtype).view()
    view.flags.writeable = False
    return view
