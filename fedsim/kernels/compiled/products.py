"""Matrix products within the flat scratch array, assembled from register tiles."""

from __future__ import annotations

from typing import Any

from fedsim.kernels.compiled.compilation import helper, named_helper
from fedsim.kernels.compiled.tiles import TILE_VECTORS, dot_tile, product_tile


def _make_product(name: str, transposed: bool) -> Any:
    """Make a helper with a name: ``C = A @ B``, or ``C += A.T @ B``, within the flat array `s`.

    All rows read one group of vector columns of B before the next group. If the last vector is at most half full, only
    half of it is computed for as many rows as fill a tile of half vectors.
    """
    tile_5_wide, tile_5_1 = product_tile(5, TILE_VECTORS, transposed), product_tile(5, 1, transposed)
    tile_2_wide, tile_2_1 = product_tile(2, TILE_VECTORS, transposed), product_tile(2, 1, transposed)
    tile_1_wide, tile_1_1 = product_tile(1, TILE_VECTORS, transposed), product_tile(1, 1, transposed)
    tile_10_half = product_tile(10, 1, transposed, parts=2)

    @named_helper(name)
    def product(s, c, c_row, rows, a, a_row, b, b_row, columns, lanes, depth):
        v = 0
        while v < columns:
            wide = v + TILE_VECTORS * lanes - lanes // 2 < columns
            half = columns - v <= lanes // 2
            right = b + v
            r = 0
            while r < rows:
                out = c + r * c_row + v
                left = a + r * (1 if transposed else a_row)
                if half and r + 10 <= rows:
                    tile_10_half(s, out, c_row, s, left, a_row, s, right, b_row, depth)
                    r += 10
                elif r + 5 <= rows:
                    if wide:
                        tile_5_wide(s, out, c_row, s, left, a_row, s, right, b_row, depth)
                    else:
                        tile_5_1(s, out, c_row, s, left, a_row, s, right, b_row, depth)
                    r += 5
                elif r + 2 <= rows:
                    if wide:
                        tile_2_wide(s, out, c_row, s, left, a_row, s, right, b_row, depth)
                    else:
                        tile_2_1(s, out, c_row, s, left, a_row, s, right, b_row, depth)
                    r += 2
                else:
                    if wide:
                        tile_1_wide(s, out, c_row, s, left, a_row, s, right, b_row, depth)
                    else:
                        tile_1_1(s, out, c_row, s, left, a_row, s, right, b_row, depth)
                    r += 1
            v += TILE_VECTORS * lanes if wide else lanes

    return product


multiply = _make_product("multiply", transposed=False)
add_transposed_product = _make_product("add_transposed_product", transposed=True)

_dots_5_wide, _dots_5_1, _dots_1_wide, _dots_1_1 = (dot_tile(r, k) for r in (5, 1) for k in (TILE_VECTORS, 1))


@helper
def multiply_transposed(s, c, c_row, rows, a, a_row, b, b_row, columns, vectors):
    """``C = A @ B.T`` within the flat array `s`; rows of A and B are so many vectors long."""
    r = 0
    while r < rows:
        five = r + 5 <= rows
        left = a + r * a_row
        k = 0
        while k < columns:
            out = c + r * c_row + k
            right = b + k * b_row
            if k + TILE_VECTORS <= columns:
                if five:
                    _dots_5_wide(s, out, c_row, s, left, a_row, s, right, b_row, vectors)
                else:
                    _dots_1_wide(s, out, c_row, s, left, a_row, s, right, b_row, vectors)
                k += TILE_VECTORS
            else:
                if five:
                    _dots_5_1(s, out, c_row, s, left, a_row, s, right, b_row, vectors)
                else:
                    _dots_1_1(s, out, c_row, s, left, a_row, s, right, b_row, vectors)
                k += 1
        r += 5 if five else 1
