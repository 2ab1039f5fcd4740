"""Reference problems, written once for any library that follows the array API standard.

Each factory returns a :class:`Problem`: a function with its hand-written gradient, a start and, if
known, the minimum. The same formula serves one point of shape ``(n,)`` and a batch of points of
shape ``(..., n)``, so every problem can be solved once or many times side by side. No files are
read and nothing is downloaded: data come from closed formulas or a seeded generator.

With ``reproducible=True`` every sum has a fixed order and every matrix product is formed from
elementwise products and such sums. Addition, multiplication and division are correctly rounded
in every IEEE library, so values and gradients are then bitwise the same in all of them. Problems
that call ``exp``, ``cos`` or ``tanh`` agree only to a few units in the last place, because
libraries differ there; each factory says which kind it is.

>>> from lbfgs_xp import problems
>>> p = problems.rosenbrock(4)
>>> value, gradient = p.value_and_gradient(p.x0)
>>> round(float(value), 6), gradient.shape
(48.4, (4,))
>>> float(p.fun(p.x_min)) == p.minimum
True
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from array_api_compat import device as device_of

from lbfgs_xp.arrays.backend import device_context
from lbfgs_xp.arrays.current import on_device_of
from lbfgs_xp.arrays.space import fixed_sum
from lbfgs_xp.checks import count, flag, tolerance

Array = Any


@dataclass(frozen=True, eq=False)
class Problem:
    """One function to minimise, for one array library, device and dtype.

    Attributes
    ----------
    name : str
        The name of its factory.
    xp, device, dtype
        Namespace, device and dtype of `x0`; points passed to the functions must share them.
    x0 : array, shape (n,)
        The usual start.
    value_and_gradient : callable
        ``(..., n) -> ((...), (..., n))``, both from one pass.
    fun : callable
        ``(..., n) -> (...)``, the value alone, with the same bits as in `value_and_gradient`. It
        uses only functional operations, so it can be differentiated automatically.
    minimum : float or None
        The lowest value, if known.
    x_min : array, shape (n,), or None
        A point where it is attained (there may be others).
    """

    name: str
    xp: Any = field(repr=False)
    device: Any
    dtype: Any
    x0: Array = field(repr=False)
    fun: Callable[[Array], Array] = field(repr=False)
    value_and_gradient: Callable[[Array], tuple[Array, Array]] = field(repr=False)
    minimum: float | None = None
    x_min: Array | None = field(default=None, repr=False)

    def gradient(self, x: Array) -> Array:
        """The gradient alone, ``(..., n) -> (..., n)``."""
        return self.value_and_gradient(x)[1]

    @property
    def n(self) -> int:
        """Number of variables."""
        return self.x0.shape[-1]

    def starts(self, count: int, *, scale: float = 0.1, seed: int = 0) -> Array:
        """`count` different starts around `x0`, shape ``(count, n)``.

        Normal variates times `scale` are added to `x0`. NumPy's generator draws them from `seed`,
        so they are the same numbers for every library.

        >>> himmelblau().starts(5).shape
        (5, 2)
        """
        noise = np.random.default_rng(seed).normal(scale=scale, size=(count, self.n))
        with device_context(self.x0):
            return self.x0 + self.xp.asarray(noise, dtype=self.dtype, device=self.device)


@dataclass(frozen=True)
class _Arithmetic:
    """Where a problem's arrays live and how its sums are formed."""

    xp: Any
    dtype: Any
    device: Any
    reproducible: bool

    @staticmethod
    def of(xp: Any, dtype: Any, device: Any, reproducible: bool) -> _Arithmetic:
        flag("reproducible", reproducible)
        xp = array_namespace(xp.empty(0))
        if dtype is None:
            known = xp.__array_namespace_info__().dtypes(device=device, kind="real floating")
            dtype = known.get("float64", known["float32"])  # float32: JAX without x64, MPS
        elif isinstance(dtype, str):
            dtype = getattr(xp, dtype)
        if not xp.isdtype(dtype, "real floating"):
            raise TypeError(f"dtype is {dtype}; wanted a real floating-point dtype")
        return _Arithmetic(xp, dtype, device, reproducible)

    def array(self, values: Any) -> Array:
        host = np.array(values, dtype=np.float64)  # a copy, never shared with the caller
        return self.xp.asarray(host, dtype=self.dtype, device=self.device)

    def dot(self, u: Array, v: Array) -> Array:
        """(..., n), (..., n) -> (...)"""
        return fixed_sum(u * v) if self.reproducible else self.xp.vecdot(u, v)

    def sum(self, u: Array, axis: int = -1) -> Array:
        return fixed_sum(u, axis) if self.reproducible else self.xp.sum(u, axis=axis)

    def matmul(self, a: Array, b: Array) -> Array:
        """(..., i, k), (..., k, j) -> (..., i, j)"""
        if not self.reproducible:
            return self.xp.matmul(a, b)
        return fixed_sum(a[..., :, :, None] * b[..., None, :, :], axis=-2)

    def vecmat(self, v: Array, a: Array) -> Array:
        """(..., k), (k, j) -> (..., j)"""
        if not self.reproducible:
            return self.xp.matmul(v, a)
        return fixed_sum(v[..., :, None] * a, axis=-2)

    def problem(
        self,
        name: str,
        x0: Any,
        fun: Callable[[Array], Array],
        value_and_gradient: Callable[[Array], tuple[Array, Array]],
        x_min: Any = None,
    ) -> Problem:
        """The finished problem; its minimum is 0 if `x_min` is given."""
        start = self.array(x0)
        return Problem(
            name=name,
            xp=self.xp,
            device=self.device if self.device is not None else device_of(start),
            dtype=start.dtype,
            x0=start,
            fun=on_device_of("x")(fun),
            value_and_gradient=on_device_of("x")(value_and_gradient),
            minimum=None if x_min is None else 0.0,
            x_min=None if x_min is None else self.array(x_min),
        )


def _interleave(xp: Any, even: Array, odd: Array) -> Array:
    """(..., k), (..., k) -> (..., 2k)"""
    if isinstance(even, np.ndarray):  # two strided writes cost a third of a stack
        out = np.empty((*even.shape[:-1], 2 * even.shape[-1]), dtype=even.dtype)
        out[..., ::2] = even
        out[..., 1::2] = odd
        return out
    return xp.reshape(xp.stack([even, odd], axis=-1), (*even.shape[:-1], -1))


def rosenbrock(
    n: int = 2, *, xp: Any = np, dtype: Any = None, device: Any = None, reproducible: bool = False
) -> Problem:
    """n/2 separate banana-shaped valleys (the extended Rosenbrock function).

        f(x) = sum_i (100 (x_{2i} - x_{2i-1}^2)^2 + (1 - x_{2i-1})^2)

    Start (-1.2, 1, -1.2, 1, ...), minimum 0 at (1, ..., 1), the only stationary point.
    Source: Moré, Garbow, Hillstrom (1981), problem 21. The same bits in every
    library with reproducible=True.

    Parameters
    ----------
    n : int
        Number of variables, even.
    xp : namespace
        The array library, by default NumPy.
    dtype : dtype or str, optional
        By default float64, or float32 if the library or the device has no float64.
    device : optional
        By default the library's default device.
    reproducible : bool
        Whether every sum has a fixed order: value and gradient then have the same bits in every
        library.

    Raises
    ------
    ValueError
        If n is odd or less than 2.

    >>> p = rosenbrock(2)
    >>> [float(v) for v in p.gradient(p.x0)]
    [-215.59999999999997, -87.99999999999999]
    """
    n = count("n", n, 2)
    if n % 2:
        raise ValueError(f"n is {n}; wanted an even integer of at least 2")
    m = _Arithmetic.of(xp, dtype, device, reproducible)
    xp, dot = m.xp, m.dot

    def fun(x: Array) -> Array:
        a = x[..., ::2]
        t = x[..., 1::2] - a * a
        u = 1.0 - a
        return 100.0 * dot(t, t) + dot(u, u)

    def value_and_gradient(x: Array) -> tuple[Array, Array]:
        a = x[..., ::2]
        t = x[..., 1::2] - a * a
        u = 1.0 - a
        slope = 200.0 * t
        gradient = _interleave(xp, -2.0 * (a * slope + u), slope)
        return 100.0 * dot(t, t) + dot(u, u), gradient

    return m.problem("rosenbrock", [-1.2, 1.0] * (n // 2), fun, value_and_gradient, [1.0] * n)


def chained_rosenbrock(
    n: int = 10, *, xp: Any = np, dtype: Any = None, device: Any = None, reproducible: bool = False
) -> Problem:
    """One long curved valley: each variable is tied to the next.

        f(x) = sum_{i<n} (100 (x_{i+1} - x_i^2)^2 + (1 - x_i)^2)

    Start (-1.2, 1, -1.2, 1, ...), minimum 0 at (1, ..., 1); for n >= 4 a second, local minimum lies
    near (-1, 1, ..., 1).
    Source: Toint (1978), in the form of `scipy.optimize.rosen`. With
    reproducible=True, value and gradient have the same bits in every library.

    >>> p = chained_rosenbrock(3)
    >>> [float(v) for v in p.gradient(p.xp.zeros(3))]
    [-2.0, -2.0, 0.0]
    """
    n = count("n", n, 2)
    m = _Arithmetic.of(xp, dtype, device, reproducible)
    xp, dot = m.xp, m.dot

    def fun(x: Array) -> Array:
        a = x[..., :-1]
        t = x[..., 1:] - a * a
        u = 1.0 - a
        return 100.0 * dot(t, t) + dot(u, u)

    def value_and_gradient(x: Array) -> tuple[Array, Array]:
        a = x[..., :-1]
        t = x[..., 1:] - a * a
        u = 1.0 - a
        right = 200.0 * t  # contribution of each term to x_{i+1}
        left = -2.0 * (a * right + u)  # and to x_i
        inner = left[..., 1:] + right[..., :-1]
        gradient = xp.concat([left[..., :1], inner, right[..., -1:]], axis=-1)
        return 100.0 * dot(t, t) + dot(u, u), gradient

    start = [-1.2 if i % 2 == 0 else 1.0 for i in range(n)]
    return m.problem("chained_rosenbrock", start, fun, value_and_gradient, [1.0] * n)


def rastrigin(
    n: int = 2, *, xp: Any = np, dtype: Any = None, device: Any = None, reproducible: bool = False
) -> Problem:
    """A bowl covered with local minima, one near every point of the integer grid.

        f(x) = 10 n + sum_i (x_i^2 - 10 cos(2 pi x_i))

    Minimum 0 at the origin. The start, (0.3, -0.3, ...), lies in the basin of the global minimum;
    `Problem.starts` with a scale of 2 reaches many basins. Source: Rastrigin (1974). With
    reproducible=True, libraries differ only by the rounding of cos.

    >>> p = rastrigin(2)
    >>> float(p.fun(p.x_min))
    0.0
    """
    n = count("n", n, 1)
    m = _Arithmetic.of(xp, dtype, device, reproducible)
    xp = m.xp

    def fun(x: Array) -> Array:
        # 10 - 10 cos inside the sum: no cancellation against 10 n near the minimum
        return m.sum(x * x + (10.0 - 10.0 * xp.cos(2.0 * math.pi * x)))

    def value_and_gradient(x: Array) -> tuple[Array, Array]:
        return fun(x), 2.0 * x + (20.0 * math.pi) * xp.sin(2.0 * math.pi * x)

    start = [0.3 if i % 2 == 0 else -0.3 for i in range(n)]
    return m.problem("rastrigin", start, fun, value_and_gradient, [0.0] * n)


def beale(
    *, xp: Any = np, dtype: Any = None, device: Any = None, reproducible: bool = False
) -> Problem:
    """Two variables: a flat valley with steep corners.

        f(x, y) = (1.5 - x (1 - y))^2 + (2.25 - x (1 - y^2))^2 + (2.625 - x (1 - y^3))^2

    Start (1, 1), minimum 0 at (3, 0.5).
    Source: Beale (1958); Moré, Garbow, Hillstrom (1981), problem 5. The same bits in every
    library with reproducible=True.

    >>> p = beale()
    >>> float(p.fun(p.x0))
    14.203125
    """
    m = _Arithmetic.of(xp, dtype, device, reproducible)
    xp = m.xp

    def terms(x: Array) -> tuple[Array, ...]:
        u, v = x[..., 0], x[..., 1]
        v2 = v * v
        c1, c2, c3 = 1.0 - v, 1.0 - v2, 1.0 - v2 * v
        return u, v, v2, c1, c2, c3, 1.5 - u * c1, 2.25 - u * c2, 2.625 - u * c3

    def fun(x: Array) -> Array:
        *_, r1, r2, r3 = terms(x)
        return r1 * r1 + r2 * r2 + r3 * r3

    def value_and_gradient(x: Array) -> tuple[Array, Array]:
        u, v, v2, c1, c2, c3, r1, r2, r3 = terms(x)
        by_u = -2.0 * (r1 * c1 + r2 * c2 + r3 * c3)
        by_v = 2.0 * u * (r1 + 2.0 * (v * r2) + 3.0 * (v2 * r3))
        return r1 * r1 + r2 * r2 + r3 * r3, xp.stack([by_u, by_v], axis=-1)

    return m.problem("beale", [1.0, 1.0], fun, value_and_gradient, [3.0, 0.5])


def himmelblau(
    *, xp: Any = np, dtype: Any = None, device: Any = None, reproducible: bool = False
) -> Problem:
    """Two variables and four minima, all with value 0.

        f(x, y) = (x^2 + y - 11)^2 + (x + y^2 - 7)^2

    Start (0, 0). `x_min` is (3, 2); the others lie near (-2.805, 3.131), (-3.779, -3.283) and
    (3.584, -1.848).
    Source: Himmelblau (1972). The same bits in every library with reproducible=True.

    >>> p = himmelblau()
    >>> [float(v) for v in p.gradient(p.x0)]
    [-14.0, -22.0]
    """
    m = _Arithmetic.of(xp, dtype, device, reproducible)
    xp = m.xp

    def terms(x: Array) -> tuple[Array, ...]:
        u, v = x[..., 0], x[..., 1]
        return u, v, u * u + v - 11.0, u + v * v - 7.0

    def fun(x: Array) -> Array:
        _, _, p, q = terms(x)
        return p * p + q * q

    def value_and_gradient(x: Array) -> tuple[Array, Array]:
        u, v, p, q = terms(x)
        gradient = xp.stack([4.0 * (u * p) + 2.0 * q, 2.0 * p + 4.0 * (v * q)], axis=-1)
        return p * p + q * q, gradient

    return m.problem("himmelblau", [0.0, 0.0], fun, value_and_gradient, [3.0, 2.0])


def quadratic(
    n: int = 10,
    *,
    spectrum: Sequence[float] | None = None,
    rotation: str | None = "householder",
    seed: int = 0,
    xp: Any = np,
    dtype: Any = None,
    device: Any = None,
    reproducible: bool = False,
) -> Problem:
    """A convex quadratic with given eigenvalues.

        f(x) = 1/2 (x - x_min)^T A (x - x_min)
        A = H diag(spectrum) H,  H = I - 2 w w^T / (w^T w)

    A is never formed; a product with it costs O(n). The start is the origin, x_min is
    (1, -1, 1, ...) and the minimum is 0. The same bits in every library with reproducible=True.

    Parameters
    ----------
    n : int
        Number of variables; ignored if `spectrum` is given.
    spectrum : sequence of float, optional
        The eigenvalues of A, by default a geometric progression from 1 to 1000.
    rotation : {"householder", None}
        None leaves A diagonal.
    seed : int
        The seed from which w is drawn.
    xp, dtype, device, reproducible
        As for `rosenbrock`.

    >>> p = quadratic(spectrum=[1.0, 10.0, 100.0], rotation=None)
    >>> [float(v) for v in p.gradient(p.x0)]
    [-1.0, 10.0, -100.0]
    """
    if rotation not in ("householder", None):
        raise ValueError(f"rotation is {rotation!r}; wanted 'householder' or None")
    if spectrum is None:
        values = np.geomspace(1.0, 1e3, count("n", n, 1))
    else:
        values = _numbers("spectrum", spectrum)
    n = len(values)
    m = _Arithmetic.of(xp, dtype, device, reproducible)
    eigenvalues = m.array(values)
    x_min = [1.0 if i % 2 == 0 else -1.0 for i in range(n)]
    center = m.array(x_min)
    normal = np.random.default_rng(seed).normal(size=n)
    w, beta = m.array(normal), 2.0 / math.fsum(v * v for v in normal.tolist())

    def reflect(z: Array) -> Array:
        if rotation is None:
            return z
        return z - (beta * m.dot(z, w))[..., None] * w

    def fun(x: Array) -> Array:
        z = reflect(x - center)
        return 0.5 * m.dot(z, eigenvalues * z)

    def value_and_gradient(x: Array) -> tuple[Array, Array]:
        z = reflect(x - center)
        scaled = eigenvalues * z
        return 0.5 * m.dot(z, scaled), reflect(scaled)

    return m.problem("quadratic", [0.0] * n, fun, value_and_gradient, x_min)


def logistic_regression(
    n: int = 10,
    *,
    samples: int = 200,
    l2: float = 1e-2,
    seed: int = 0,
    xp: Any = np,
    dtype: Any = None,
    device: Any = None,
    reproducible: bool = False,
) -> Problem:
    """Two classes separated by a linear rule: smooth and strictly convex.

        f(x) = 1/m sum_i log(1 + exp(-b_i a_i^T x)) + l2/2 |x|^2

    Start 0. The features a_i are normal; the labels b_i = +-1 follow a hidden rule, with 10 % of
    them flipped. No exponential overflows. The minimum has no closed form, so `minimum` is None.
    With reproducible=True, libraries differ only by the rounding of exp and log.

    Parameters
    ----------
    n, samples : int
        Number of variables (features) and of examples (m).
    l2 : float
        Weight of the squared norm.
    seed : int
        The seed from which the data are drawn.
    xp, dtype, device, reproducible
        As for `rosenbrock`.

    >>> p = logistic_regression()
    >>> round(float(p.fun(p.x0)), 12) == round(math.log(2), 12)
    True
    """
    n, samples, l2 = count("n", n, 1), count("samples", samples, 1), tolerance("l2", l2)
    m = _Arithmetic.of(xp, dtype, device, reproducible)
    xp = m.xp
    share = 1.0 / samples
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(samples, n))
    scores = (features * rng.normal(size=n)).sum(axis=1)
    labels = np.where(scores >= 0.0, 1.0, -1.0) * np.where(rng.random(samples) < 0.1, -1.0, 1.0)
    signed = labels[:, None] * features
    rows, columns = m.array(signed), m.array(signed.T)

    def value_at(x: Array, margin: Array) -> Array:
        # logaddexp(0, -margin) = log(1 + exp(-margin)) without overflow, smooth for autodiff
        losses = xp.logaddexp(xp.zeros_like(margin), -margin)
        return m.sum(losses) * share + (0.5 * l2) * m.dot(x, x)

    def fun(x: Array) -> Array:
        return value_at(x, m.vecmat(x, columns))

    def value_and_gradient(x: Array) -> tuple[Array, Array]:
        margin = m.vecmat(x, columns)
        e = xp.exp(-xp.abs(margin))
        # the logistic function at -margin, from an exponential that is at most one
        weight = xp.where(margin < 0.0, xp.ones_like(e), e) / (1.0 + e)
        gradient = l2 * x - share * m.vecmat(weight, rows)
        return value_at(x, margin), gradient

    return m.problem("logistic_regression", [0.0] * n, fun, value_and_gradient)


# name -> (z -> a, a -> da/dz); the derivatives are written in terms of the activated value a
_ACTIVATIONS: dict[str, tuple[Callable[[Any, Array], Array], Callable[[Any, Array], Array]]] = {
    "tanh": (lambda xp, z: xp.tanh(z), lambda xp, a: 1.0 - a * a),
    # a = z / (1 + |z|), so 1 - |a| = 1 / (1 + |z|) and the derivative is its square
    "softsign": (
        lambda xp, z: z / (1.0 + xp.abs(z)),
        lambda xp, a: (1.0 - xp.abs(a)) * (1.0 - xp.abs(a)),
    ),
    "relu": (
        lambda xp, z: xp.where(z > 0.0, z, xp.zeros_like(z)),
        lambda xp, a: xp.where(a > 0.0, xp.ones_like(a), xp.zeros_like(a)),
    ),
}


def mlp_regression(
    hidden: int | Sequence[int] = 16,
    *,
    activation: str = "tanh",
    samples: int = 32,
    seed: int = 0,
    xp: Any = np,
    dtype: Any = None,
    device: Any = None,
    reproducible: bool = False,
) -> Problem:
    """A small neural network fitted to a sine curve: non-convex and badly scaled.

        f(x) = 1/(2 m) sum_i (net(t_i; x) - sin(3 t_i))^2

    The t_i are evenly spaced in [-1, 1]. All weights and biases form one vector x, layer by layer:
    W_1 (in-by-out, row by row), b_1, W_2, b_2, ... The gradient is hand-written backpropagation.
    The start is drawn from Glorot's uniform distribution, with small biases; `minimum` is None.
    With reproducible=True, "softsign" and "relu" give the same bits in every library; with "tanh",
    libraries differ only by its rounding.

    Parameters
    ----------
    hidden : int or sequence of int
        Width of each hidden layer.
    activation : {"tanh", "softsign", "relu"}
        The activation after each hidden layer. "relu" has kinks.
    samples : int
        Number of points m.
    seed : int
        The seed from which the start is drawn.
    xp, dtype, device, reproducible
        As for `rosenbrock`.

    >>> mlp_regression().n, mlp_regression((8, 8), activation="softsign").n
    (49, 97)
    """
    if activation not in _ACTIVATIONS:
        names = ", ".join(map(repr, sorted(_ACTIVATIONS)))
        raise ValueError(f"activation is {activation!r}; wanted one of {names}")
    samples = count("samples", samples, 1)
    wide = hidden if isinstance(hidden, (list, tuple)) else [hidden]
    wide = [count("hidden", width, 1) for width in wide]
    m = _Arithmetic.of(xp, dtype, device, reproducible)
    xp = m.xp
    activate, derivative = _ACTIVATIONS[activation]
    share = 1.0 / samples  # a factor: JAX's division by a scalar can be an ulp off
    widths = [1, *wide, 1]
    shapes = list(itertools.pairwise(widths))
    t = np.linspace(-1.0, 1.0, samples)
    inputs, targets = m.array(t[:, None]), m.array(np.sin(3.0 * t)[:, None])

    def layers(x: Array) -> list[tuple[Array, Array]]:
        """Views of x: weights (..., in, out) and biases (..., 1, out)."""
        batch, parts, at = x.shape[:-1], [], 0
        for fan_in, fan_out in shapes:
            middle = at + fan_in * fan_out
            weights = xp.reshape(x[..., at:middle], (*batch, fan_in, fan_out))
            at = middle + fan_out
            parts.append((weights, x[..., None, middle:at]))
        return parts

    def forward(parts: list[tuple[Array, Array]]) -> list[Array]:
        """The input of each layer, shapes (..., m, width); the last entry is the residual."""
        values = [inputs]
        for k, (weights, biases) in enumerate(parts):
            z = m.matmul(values[-1], weights) + biases
            values.append(activate(xp, z) if k + 1 < len(parts) else z - targets)
        return values

    def value_of(residual: Array) -> Array:
        flat = residual[..., 0]
        return m.dot(flat, flat) * (0.5 * share)

    def fun(x: Array) -> Array:
        return value_of(forward(layers(x))[-1])

    def value_and_gradient(x: Array) -> tuple[Array, Array]:
        parts = layers(x)
        values = forward(parts)
        residual = values.pop()
        delta = residual * share  # df/dz of the current layer, (..., m, out)
        pieces: list[Array] = []
        for k in range(len(parts) - 1, -1, -1):
            by_weights = m.matmul(xp.matrix_transpose(values[k]), delta)
            pieces.append(m.sum(delta, axis=-2))
            pieces.append(xp.reshape(by_weights, (*x.shape[:-1], -1)))
            if k > 0:
                back = m.matmul(delta, xp.matrix_transpose(parts[k][0]))
                delta = back * derivative(xp, values[k])
        return value_of(residual), xp.concat(pieces[::-1], axis=-1)

    return m.problem("mlp_regression", _mlp_start(shapes, seed), fun, value_and_gradient)


def _numbers(name: str, values: Any) -> np.ndarray:
    """A sequence of at least one finite number, (n,)."""
    found = None
    with contextlib.suppress(TypeError, ValueError):
        found = np.asarray(values, np.float64)
    if found is None or found.ndim != 1 or not found.size or not np.all(np.isfinite(found)):
        raise ValueError(f"{name} is {values!r}; wanted a sequence of finite numbers")
    return found


def _mlp_start(shapes: Sequence[tuple[int, int]], seed: int) -> list[float]:
    """Uniform weights (Glorot & Bengio 2010) and small biases, layer after layer."""
    rng = np.random.default_rng(seed)
    start: list[float] = []
    for fan_in, fan_out in shapes:
        limit = math.sqrt(6.0 / (fan_in + fan_out))
        start += rng.uniform(-limit, limit, size=fan_in * fan_out).tolist()
        start += rng.uniform(-0.1, 0.1, size=fan_out).tolist()
    return start


def exponential_decay(
    *,
    samples: int = 40,
    noise: float = 0.0,
    seed: int = 0,
    xp: Any = np,
    dtype: Any = None,
    device: Any = None,
    reproducible: bool = False,
) -> Problem:
    """A fit of a decay curve: a small nonlinear least-squares problem from the laboratory.

        f(a, b, c) = 1/2 sum_i (a exp(-b t_i) + c - y_i)^2

    The t_i are evenly spaced in [0, 4], and the y_i are computed with (a, b, c) = (2.5, 1.3, 0.5).
    Start (1, 1, 0). Without noise the minimum is 0
    at those numbers, up to the rounding of y; with noise `minimum` and `x_min` are None.
    With reproducible=True, libraries differ only by the rounding of exp.

    Parameters
    ----------
    samples : int
        Number of points.
    noise : float
        Standard deviation of the normal noise on y.
    seed : int
        The seed from which the noise is drawn.
    xp, dtype, device, reproducible
        As for `rosenbrock`.

    >>> p = exponential_decay()
    >>> float(p.fun(p.x_min)) < 1e-28
    True
    """
    samples, noise = count("samples", samples, 1), tolerance("noise", noise)
    m = _Arithmetic.of(xp, dtype, device, reproducible)
    xp = m.xp
    truth = [2.5, 1.3, 0.5]
    times = np.linspace(0.0, 4.0, samples)
    data = truth[0] * np.exp(-truth[1] * times) + truth[2]
    data = data + noise * np.random.default_rng(seed).normal(size=samples)
    t, y = m.array(times), m.array(data)

    def model(x: Array) -> tuple[Array, Array, Array]:
        a, b, c = x[..., 0:1], x[..., 1:2], x[..., 2:3]
        e = xp.exp(-b * t)
        return a, e, a * e + c - y

    def fun(x: Array) -> Array:
        _, _, r = model(x)
        return 0.5 * m.dot(r, r)

    def value_and_gradient(x: Array) -> tuple[Array, Array]:
        a, e, r = model(x)
        by_a = m.dot(r, e)
        by_b = -a[..., 0] * m.dot(r, t * e)
        gradient = xp.stack([by_a, by_b, m.sum(r)], axis=-1)
        return 0.5 * m.dot(r, r), gradient

    x_min = truth if noise == 0.0 else None
    return m.problem("exponential_decay", [1.0, 1.0, 0.0], fun, value_and_gradient, x_min)


ALL: dict[str, Callable[..., Problem]] = {
    factory.__name__: factory
    for factory in (
        rosenbrock,
        chained_rosenbrock,
        rastrigin,
        beale,
        himmelblau,
        quadratic,
        logistic_regression,
        mlp_regression,
        exponential_decay,
    )
}
"""Name -> factory; each can be called without arguments."""
