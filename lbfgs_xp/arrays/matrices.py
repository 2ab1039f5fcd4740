"""Low-rank updates of large matrices, in place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# How many elements to work on at a time: the block and two of its products stay in the cache.
_BLOCK = 2**15


def add_products(
    factor: float, matrix: np.ndarray, pairs: Sequence[tuple[np.ndarray, np.ndarray]]
) -> None:
    """Overwrite a matrix (n, n) with factor matrix + u v' + w z', for the pairs (u, v) and (w, z).

    Every element is rounded as in that expression, the sum of the products first. The matrix is
    read and written once.
    """
    (u, v), (w, z) = pairs
    count = max(1, _BLOCK // matrix.shape[1])
    one, other = (np.empty((min(count, len(u)), len(v)), matrix.dtype) for _ in range(2))
    for i in range(0, len(u), count):
        block = matrix[i : i + count]
        rows = len(block)
        added = np.multiply(u[i : i + count, None], v, out=one[:rows])
        added += np.multiply(w[i : i + count, None], z, out=other[:rows])
        if factor != 1.0:
            block *= factor
        block += added
