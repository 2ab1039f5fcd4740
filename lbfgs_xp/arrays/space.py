"""All reductions over the variables, and the transfers of numbers between host and device.

Vectors are (..., n) arrays of the user's library; scalars are (...), Python floats for one problem
and arrays for a batch. No other module used by `minimize` sums over the variables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import array_api_compat as compat
import numpy as np

from lbfgs_xp.arrays import scalars
from lbfgs_xp.arrays.backend import Array, Backend, compiled, identity, is_array, take
from lbfgs_xp.arrays.current import on_device_of
from lbfgs_xp.arrays.keyed import Keyed
from lbfgs_xp.arrays.pending import Queue
from lbfgs_xp.checks import flag

# How many numbers of rows in lower precision are widened at a time, on the host and on a device,
# and in how many pieces at most where each is compiled.
_IN_CACHE, _ON_DEVICE, _COMPILED = 2**16, 2**26, 8


@on_device_of("x")
def fixed_sum(x: Array, axis: int = -1) -> Array:
    """The sum along one axis, in an order that depends only on its length.

    The axis is padded with zeros to a power of two, and neighbours are repeatedly added until one
    element is left. All additions are elementwise, so every library that rounds as IEEE 754
    specifies gives the same bits, on any device and with any number of threads. The error grows
    like log2(n), not n (pairwise summation: Higham, Accuracy and Stability of Numerical Algorithms,
    section 4.2).

    Parameters
    ----------
    x : array with at least one axis, of any library that follows the array API standard.
    axis : int, the axis to sum over.

    Returns
    -------
    array of the same library, dtype and device, with `axis` removed; 0 for an empty axis.

    Examples
    --------
    >>> import numpy as np
    >>> float(fixed_sum(np.asarray([1.0, 2.0, 3.0])))
    6.0
    """
    if not is_array(x):
        raise TypeError(f"x is a {type(x).__name__}; wanted an array with at least one axis")
    if isinstance(x, np.ndarray) and x.dtype.kind not in "biufc":
        raise TypeError(f"x has dtype {x.dtype}; wanted numbers")
    if x.ndim == 0:
        raise ValueError("x is a 0-d array; wanted one with at least one axis")
    if not isinstance(axis, int) or not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis is {axis!r}; wanted an integer from {-x.ndim} to {x.ndim - 1}")
    if axis not in (-1, x.ndim - 1):
        x = compat.array_namespace(x).moveaxis(x, axis, -1)
    # JAX compiles the additions as one program, without anything else: it would fuse a product with
    # its sum and round only once.
    return compiled(x, _paired)(x)


def _paired(x: Array) -> Array:
    """`fixed_sum` over the last axis."""
    xp = compat.array_namespace(x)
    if x.shape[-1] == 0:
        return xp.sum(x, axis=-1, dtype=x.dtype)
    while x.shape[-1] > 1:
        x = pair_sums(xp, x)
    return x[..., 0]


def pair_sums(xp: Any, x: Array) -> Array:
    """The sums of neighbours along the last axis; a last element without one is added to 0."""
    if x.shape[-1] % 2:
        x = xp.concat([x, xp.zeros_like(x[..., :1])], axis=-1)
    return x[..., ::2] + x[..., 1::2]


class Space(Keyed):
    """The plain and fastest space, which uses the library's own products.

    Parameters
    ----------
    backend : Backend, or an array with the library, device and dtype to use
    batched : bool
        Whether vectors are (B, n); otherwise they are (n,).

    Attributes
    ----------
    remote : bool
        Whether this is one problem on a device. There each read of a number waits, so reads are
        gathered.
    small_on_host : bool
        Whether the small algebra, on m x m matrices, runs in NumPy on the host, in float64: for one
        problem whose reads are free, for NumPy arrays, and for reproducible runs. Otherwise it runs
        on the device, in the dtype of x.
    small : namespace of that algebra.
    queue : the pending numbers of the run; see `later`.
    scalars : the functions for the scalars of each problem.
    sharded : bool
        Whether this process holds a piece of every vector, and reading a number takes a message to
        all others; see `lbfgs_xp.distributed.sharded`.
    """

    reproducible = False
    sharded = False

    def __init__(self, backend: Backend | Array, batched: bool = False):
        if not isinstance(backend, Backend):
            if not is_array(backend):
                raise TypeError(f"backend is {backend!r}; wanted an array, or a Backend")
            backend = Backend.of(backend, "backend")
        batched = flag("batched", batched)
        self.backend = backend
        self.xp = backend.xp
        self.batched = batched
        self._key = backend, batched
        self.remote = not (batched or backend.reads_are_free or self.reproducible)
        self.small_on_host = not (batched or self.remote) or self.reproducible or backend.on_host
        self.queue = Queue(backend, backend.read)
        self.small = np if self.small_on_host else backend.xp
        self.scalars = scalars.of(self.small_zeros(()) if batched else 0.0)
        # Subclasses get no shortcuts, because these would bypass the reductions they define.
        plain = type(self) is Space and not batched
        # Small problems spend their time in call overhead, so these call NumPy directly.
        dot = np.ndarray.dot
        if plain and self.small_on_host:
            vars(self).update(matvec=dot, vecmat=dot)
        if backend.reads_are_free and plain:
            vars(self).update(read_one=float)
        if backend.on_host and plain:
            vars(self).update(dot=dot, products=dot, combine=dot, max_abs=backend.max_abs)
            if backend.dtype == np.float64:
                vars(self).update(fetch=identity, send=identity, small_products=dot)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.backend!r}, batched={self.batched})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.backend, self.batched)

    # --- reductions ----------------------------------------------------------------------------

    def dot(self, u: Array, v: Array) -> Array:
        """u . v over the last axis: (..., n), (..., n) -> (...)."""
        if self.batched:
            return self.backend.dot(u, v)
        if u.ndim == v.ndim == 1:
            return u @ v  # PyTorch's vecdot takes twenty times as long on a small vector
        return self.xp.vecdot(u, v)

    def products(self, rows: Array, vector: Array) -> Array:
        """The product of every row with the vector: (..., k, n), (..., n) -> (..., k)."""
        return self.backend.products(rows, vector) if self.batched else rows @ vector

    def small_products(self, rows: Array, vector: Array) -> Array:
        """`products`, for the small algebra."""
        return self.fetch(self.products(rows, vector))

    def matmul(self, a: Array, b: Array) -> Array:
        """Matrix products: (..., k, n), (..., n, p) -> (..., k, p)."""
        return a @ b

    def gram(self, rows: Array) -> Array:
        """The products of all rows with each other: (..., k, n) -> (..., k, k)."""
        return rows @ self.xp.matrix_transpose(rows)

    def add_outer(self, factor: Any, matrix: Array, u: Array, v: Array) -> Array:
        """factor matrix + u v' + v u', for symmetric matrices (..., n, n) and vectors (..., n).

        It may overwrite the matrices; see `own_matrices`.
        """
        if self.batched:
            return self.backend.add_outer(self.send(factor), matrix, u, v)
        return self.backend.add_outer_to_one(factor, matrix, u, v)

    def add_products(
        self, factor: Any, matrix: Array, *pairs: tuple[Array, Array]
    ) -> Array:
        """factor matrix + u v' + w z', for matrices (..., n, n) and two pairs (u, v), (w, z) of
        vectors (..., n).

        It may overwrite the matrices; see `own_matrices`.
        """
        if self.batched:
            return self.backend.add_products(self.send(factor), matrix, pairs)
        return self.backend.add_products_to_one(factor, matrix, pairs, self.reproducible)

    def own_matrices(self, matrix: Array) -> Array:
        """A copy of matrices (..., n, n) that `add_outer` and `add_products` may overwrite, or the
        matrices themselves if these do not overwrite any."""
        return self.backend.own_matrices(matrix)

    def combine(self, coefficients: Array, rows: Array) -> Array:
        """sum_k coefficients[k] rows[k]: (..., k), (..., k, n) -> (..., n)."""
        if self.batched:
            return self.backend.combine(coefficients, rows)
        return coefficients @ rows

    def in_full(self, rows: Array) -> Array:
        """Rows in the dtype of x, if they are in a lower precision."""
        return self.xp.astype(rows, self.backend.dtype, copy=False)

    def products_in_full(self, rows: Array, *vectors: Array) -> list[Array]:
        """`products` with each vector for rows (k, n) in a lower precision, summed in that of x."""
        totals: list[Any] = [0.0] * len(vectors)
        for piece in self._pieces(rows):
            full = self.in_full(rows[:, piece])    # which takes longer than the products
            totals = [
                total + full @ vector[piece] for total, vector in zip(totals, vectors, strict=True)
            ]
        return totals

    def combine_in_full(self, coefficients: Array, rows: Array) -> Array:
        """`combine` for rows (k, n) in a lower precision."""
        return self.xp.concat(
            [coefficients @ self.in_full(rows[:, piece]) for piece in self._pieces(rows)]
        )

    def _pieces(self, rows: Array) -> list[slice]:
        """Where to cut the rows (k, n), so that a piece in full precision stays in the cache."""
        (k, n), backend = rows.shape, self.backend
        length = max(1, (_IN_CACHE if backend.reads_are_free else _ON_DEVICE) // k)
        if backend.compiles:
            length = max(length, -(-n // _COMPILED))    # every piece is compiled
        return [slice(i, min(i + length, n)) for i in range(0, n, length)] or [slice(0, 0)]

    def descend(self, coefficients: Array, rows: Array, gamma: Any, gradient: Array) -> Array:
        """coefficients rows - gamma gradient, with coefficients and gamma of the small algebra."""
        lower = rows.dtype != gradient.dtype
        sum_ = (self.combine_in_full if lower else self.combine)(self.send(coefficients), rows)
        gamma = self.spread(gamma) if self.batched else gamma
        return self.backend.subtract_scaled(sum_, gamma, gradient)

    def max_abs(self, u: Array) -> Array:
        """The infinity norm over the last axis: (..., n) -> (...); nan where u has one."""
        return self.backend.max_abs(u)

    def sum(self, u: Array) -> Array:
        """The sum over the last axis: (..., n) -> (...)."""
        return self.backend.sum(u)

    def cumulative_sum(self, u: Array) -> Array:
        """The sums of the first 1, 2, ... n elements: (..., n) -> (..., n).

        They are built from sums of the last 1, 2, 4, ... elements (Hillis & Steele 1986), in the
        same order on every library, with errors that grow like log2(n), not n.
        """
        reach = 1
        while reach < u.shape[-1]:
            u = self.xp.concat([u[..., :reach], u[..., reach:] + u[..., :-reach]], axis=-1)
            reach *= 2
        return u

    def sqrt(self, u: Array) -> Array:
        """Square roots of reduced numbers."""
        return self.xp.sqrt(u)

    def matvec(self, matrix: Array, vector: Array) -> Array:
        """Small matrices times small vectors: (..., m, m), (..., m) -> (..., m)."""
        return self.backend.products(matrix, vector) if self.batched else matrix @ vector

    def eigh(self, matrix: Array) -> tuple[Array, Array]:
        """Eigenvalues (..., n), ascending, for the small algebra, and eigenvectors, as rows
        (..., n, n), of symmetric matrices (..., n, n). The eigenvalues of a matrix that is not
        finite are nan."""
        xp = self.xp
        finite = xp.all(xp.isfinite(matrix), axis=(-2, -1))[..., None, None]
        values, vectors = self.backend.eigh(xp.where(finite, matrix, xp.zeros_like(matrix)))
        values = xp.where(finite[..., 0], values, xp.full_like(values, math.nan))
        return self.fetch(values), xp.matrix_transpose(vectors)

    def qr(self, matrix: Array) -> Array:
        """Q of the QR decomposition of matrices (..., n, n)."""
        return self.backend.linalg("qr")(matrix)[0]

    # --- elementwise, on vectors ---------------------------------------------------------------

    def move(self, x: Array, alpha: Any, direction: Array) -> Array:
        """x + alpha direction, as a product and then a sum: rounded twice on every library."""
        if self.batched:
            return x + self.spread(alpha) * direction
        return x + (direction if alpha == 1.0 else alpha * direction)

    def scale(self, factor: Any, u: Array) -> Array:
        """factor u, with one factor per problem."""
        if not self.batched and isinstance(factor, float) and factor == 1.0:
            return u
        return self.spread(factor) * u

    def spread(self, scalar: Any) -> Any:
        """One scalar per problem, shaped to multiply vectors."""
        return self.send(scalar)[..., None] if self.batched else scalar

    def pick(self, mask: Any, new: Array, old: Array) -> Array:
        """Vectors: `new` where the problem's mask holds, else `old`."""
        if not self.batched:
            return new if mask else old
        return self.xp.where(self.send(mask)[..., None], new, old)

    def merge(self, mask: Any, new: Any, old: Any) -> Any:
        """Named tuples of vectors and scalars: `new` where the problem's mask holds, else `old`."""
        if not self.batched:
            return new if mask else old

        def pick(new: Array, old: Array) -> Array:
            return old if new is old else self.pick_rows(mask, new, old)

        return _map_rows(pick, new, old)

    def pick_rows(self, mask: Array, new: Array, old: Array) -> Array:
        """Arrays (B, ...), also of the small algebra: `new` where the mask holds, else `old`."""
        on_host = isinstance(new, np.ndarray)
        if on_host and new.ndim == 1:
            return np.where(mask, new, old)
        xp, mask = (np, mask) if on_host and self.small_on_host else (self.xp, self.send(mask))
        return xp.where(xp.reshape(mask, (-1, *(1,) * (new.ndim - 1))), new, old)

    def take(self, tree: Any, order: Array) -> Any:
        """The rows `order`, on the host or in the small algebra, of all arrays (B, ...) in (nested)
        tuples."""
        places = self.backend.index_array(order) if isinstance(order, np.ndarray) else order

        def rows(array: Array) -> Array:
            return take(array, order if isinstance(array, np.ndarray) else places)

        return _map_rows(rows, tree)

    def put(self, rows: np.ndarray, new: Any, old: Any) -> Any:
        """The tree `old` with its rows `rows` replaced, in order, by the rows of `new`.

        rows : row numbers, on the host.
        """
        size = (old[0] if isinstance(old, tuple) else old).shape[0]
        places = np.arange(size)
        places[rows] = size + np.arange(rows.size)

        def replaced(old: Array, new: Array) -> Array:
            if not isinstance(old, np.ndarray):
                return self.take(self.xp.concat([old, new]), places)
            copied = old.copy("K")
            copied[rows] = new
            return copied

        return _map_rows(replaced, old, new)

    def gather(self, numbers: Sequence[Array], trees: Sequence[Any]) -> Any:
        """The rows of several trees in the order of their numbers, which begin at 0."""
        order = self.small.argsort(self.small.concat(numbers))

        def rows(*arrays: Array) -> Array:
            first = arrays[0]
            if not isinstance(first, np.ndarray):
                return self.take(self.xp.concat(arrays), order)
            # Keep the memory layout, because the order of sums depends on it.
            narrow = any(array.flags.fnc for array in arrays)
            shape = order.shape[0], *first.shape[1:]
            found = np.empty(shape, first.dtype, order="F" if narrow else "C")
            for places, array in zip(numbers, arrays, strict=True):
                found[places] = array
            return found

        return _map_rows(rows, *trees)

    # --- between vectors and scalars -----------------------------------------------------------

    def read(self, *numbers: Array) -> Sequence[Any]:
        """Reduced numbers as scalars: floats (at most one transfer), or (B,) arrays."""
        if self.remote:
            return self.queue.read_with(numbers)
        if not self.batched:
            return self.backend.read(numbers)
        return [self.fetch(number) for number in numbers]

    def later(self, *numbers: Array) -> Sequence[Any]:
        """`read` of numbers that are not needed yet: for one problem on a device each is pending,
        and arrives with the next read."""
        return self.queue.add(numbers) if self.remote else self.read(*numbers)

    def read_one(self, number: Array) -> Any:
        """`read` of a single number."""
        return self.read(number)[0]

    def fetch(self, array: Array) -> Array:
        """Numbers (..., k) from the device, for the small algebra."""
        if not self.small_on_host:
            return self.xp.astype(array, self.backend.dtype, copy=False)
        array = self.backend.to_host(array)
        return array if array.dtype == np.float64 else array.astype(np.float64)

    def fetch_each(self, *arrays: Array) -> list[Array]:
        """`fetch` of several arrays."""
        return [self.fetch(array) for array in arrays]

    def fetch_mask(self, mask: Array) -> Any:
        """A mask of the problems of a batch from the device, for the scalars."""
        return self.backend.to_host(mask) if self.small_on_host else mask

    def send(self, array: Array) -> Array:
        """Numbers, counts or masks from the small algebra, for the device."""
        if not self.small_on_host:
            return array
        kind = array.dtype.kind
        if self.backend.on_host and (kind == "b" or array.dtype == self.backend.dtype):
            return array
        dtypes = {"b": self.xp.bool, "i": self.xp.int64}
        return self.backend.from_host(array, dtypes.get(kind, self.backend.dtype))

    def any(self, mask: Any) -> bool:
        """Whether the mask holds for any problem; one read. True if that is not known yet, because
        a function is being compiled."""
        if not self.batched:
            return mask
        if self.backend.is_traced(mask):
            return True
        return bool(mask.any() if self.small_on_host else self.backend.to_host(self.xp.any(mask)))

    def count(self, mask: Array) -> int:
        """The number of problems in a batch for which the mask holds; one read."""
        if self.small_on_host:
            return int(np.count_nonzero(mask))
        xp = self.xp
        return int(self.backend.to_host(xp.sum(xp.astype(mask, xp.int32))))

    def none(self, mask: Any) -> bool:
        """Whether the mask holds for no problem; always False if checking would wait for a
        device."""
        if not self.batched:
            return not mask
        return self.small_on_host and not mask.any()

    def every(self, mask: Any) -> bool:
        """Whether the mask holds for all problems; always False if checking would wait for a
        device."""
        if not self.batched:
            return mask
        return self.small_on_host and bool(mask.all())

    def some(self, mask: Any, function: Callable[[Any], Any], old: Any) -> Any:
        """`function(mask)`, which equals `old` in the rows of a batch outside the mask.

        It is `old` itself if the mask holds nowhere, unless checking would wait for a device.
        """
        return old if self.none(mask) else self.backend.branch(mask, function, old)

    def equal(self, u: Any, v: Any) -> bool:
        """Whether two vectors, or two scalars per problem, hold the same numbers (nan equals nan);
        one read."""
        if u is v:
            return True
        if isinstance(u, float):
            return u == v or (u != u and v != v)
        if self.backend.reads_are_free and bool((u == v).all()):
            return True
        same = _same(u, v)
        on_host = isinstance(same, np.generic)
        return bool(same if on_host else self.backend.to_host(same))

    def equal_later(self, u: Array, v: Array) -> Any:
        """`equal` for two vectors; for one problem on a device it is pending, as 1 or 0."""
        if not self.remote or u is v:
            return self.equal(u, v)
        return self.later(self.xp.astype(_same(u, v), self.backend.dtype))[0]

    # --- the small algebra ---------------------------------------------------------------------

    def vecmat(self, vector: Array, matrix: Array) -> Array:
        """`matvec` with the transposed matrices."""
        transposed = matrix.T if not self.batched else self.small.matrix_transpose(matrix)
        return self.matvec(transposed, vector)

    def per_problem(self, scalar: Any) -> Any:
        """One scalar per problem, shaped to multiply small vectors (..., m)."""
        return scalar[..., None] if self.batched else scalar

    def small_zeros(self, shape: tuple[int, ...]) -> Array:
        """Zeros: float64 on the host, the vectors' dtype on a device."""
        return np.zeros(shape) if self.small_on_host else self.backend.zeros(shape)

    def small_count(self, shape: tuple[int, ...]) -> Array:
        """Integer zeros, for counters."""
        if self.small_on_host:
            return np.zeros(shape, dtype=np.int64)
        backend = self.backend
        return self.xp.zeros(shape, dtype=backend.index_dtype, device=backend.creation_device)

    def small_arange(self, size: int) -> Array:
        if self.small_on_host:
            return np.arange(size)
        return self.xp.arange(size, device=self.backend.creation_device)


class FixedOrderSpace(Space):
    """The reproducible space: all sums of `minimize` by `fixed_sum`, all scalars in float64 on the
    host, and therefore the same bits on every library."""

    reproducible = True

    def dot(self, u: Array, v: Array) -> Array:
        return fixed_sum(u * v)

    def sum(self, u: Array) -> Array:
        return fixed_sum(u)

    def sqrt(self, u: Array) -> Array:
        # On the host, because not every library rounds square roots correctly.
        return self.send(np.sqrt(self.fetch(u)))

    def products(self, rows: Array, vector: Array) -> Array:
        return fixed_sum(rows * vector[..., None, :])

    def matmul(self, a: Array, b: Array) -> Array:
        return fixed_sum(a[..., :, None, :] * self.xp.matrix_transpose(b)[..., None, :, :])

    def products_in_full(self, rows: Array, *vectors: Array) -> list[Array]:
        full = self.in_full(rows)
        return [self.products(full, vector) for vector in vectors]

    def combine_in_full(self, coefficients: Array, rows: Array) -> Array:
        return self.combine(coefficients, self.in_full(rows))

    def gram(self, rows: Array) -> Array:
        products = [self.products(rows, rows[..., i, :]) for i in range(rows.shape[-2])]
        return self.xp.stack(products, axis=-1)

    def combine(self, coefficients: Array, rows: Array) -> Array:
        return fixed_sum(coefficients[..., :, None] * rows, axis=-2)

    def matvec(self, matrix: Array, vector: Array) -> Array:
        return fixed_sum(matrix * vector[..., None, :])

    def eigh(self, matrix: Array) -> tuple[Array, Array]:
        """`Space.eigh` by NumPy on the host, because no two libraries' eigenvectors agree in all
        bits."""
        values, rows = Space(np.zeros(()), self.batched).eigh(self.fetch(matrix))
        return values, self.send(rows)

    def qr(self, matrix: Array) -> Array:
        """`Space.qr` by NumPy on the host."""
        return self.send(Space(np.zeros(()), self.batched).qr(self.fetch(matrix)))


def _same(u: Array, v: Array) -> Array:
    """Whether two arrays hold the same numbers (nan equals nan), as a 0-d array."""
    return compat.array_namespace(u).all((u == v) | ((u != u) & (v != v)))


def _map_rows(function: Callable, tree: Any, *others: Any) -> Any:
    """`function` applied to the arrays (B, ...) of (nested) tuples with the same structure; all
    other entries are taken from the last tuple."""

    def each(*entries: Any) -> Any:
        # JAX turns numbers shared by all problems into 0-d arrays.
        several = is_array(entries[0]) and entries[0].ndim > 0
        return function(*entries) if several else entries[-1]

    return scalars.map_tuple(each, tree, *others)
