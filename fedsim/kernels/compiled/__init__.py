"""Local training compiled by Numba: the fast kernel, equal to `kernels.numpy` up to rounding.

Each thread makes one call that trains clients of a block one after another without the interpreter, so that a client's
model stays in the core's cache from its first step to its last. All expensive work is matrix products, which are cut
into register tiles whose LLVM vector instructions `tiles` emits directly. Performance therefore does not depend on
automatic vectorisation, and compilation takes about eight seconds.

Three properties make a step cheap. The flat layout stores each bias after its matrix, so ``[W; b]`` is one matrix with
an extra row, layer inputs have an extra column of ones, and no code treats biases separately. The gradient of the
weights is never stored: ``W += X.T @ (-lr * delta)`` is a tiled product that accumulates in place. Layer 1 does not
compute the gradient of its inputs.

From bottom to top: `compilation` (decorators, the cache on disk), `emitter`, `tiles`, `products`, `intrinsics`;
`elementary`, `activations`, `losses`, `normals`; `layout`; `backprop`, `update`, `shuffle`, `sums`, `private` (steps
of DP-SGD); `training` (the loop over clients); `kernel` (the functions that Python calls).
"""

from fedsim.kernels.compiled.kernel import fit, prepare, update_norms
from fedsim.kernels.compiled.sums import add_weighted

__all__ = ["add_weighted", "fit", "prepare", "update_norms"]
