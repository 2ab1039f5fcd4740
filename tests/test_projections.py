"""Projections: the properties that define the nearest point, on every library."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp.projections import Box, Halfspace, L1Ball, L2Ball, NonNegative, Projection, Simplex
from tests.backends import Backend

RNG = np.random.default_rng(0)
N = 7
LOWER = RNG.normal(size=N) - 1.0
CENTER = RNG.normal(size=N)
NORMAL = RNG.normal(size=N)


def in_box(rng: Any) -> np.ndarray:
    return LOWER + rng.uniform(size=N) * (2.0 - LOWER)


def in_simplex(rng: Any, total: float = 1.0) -> np.ndarray:
    z = rng.exponential(size=N) * (rng.uniform(size=N) < 0.5) + 1e-9
    return total * z / z.sum()


def in_l1_ball(rng: Any) -> np.ndarray:
    return rng.choice([-1.0, 1.0], size=N) * in_simplex(rng, 2.0 * rng.uniform() ** 0.2)


def in_l2_ball(rng: Any) -> np.ndarray:
    z = rng.normal(size=N)
    return CENTER + 1.5 * rng.uniform() ** 0.2 * z / np.linalg.norm(z)


def in_halfspace(rng: Any) -> np.ndarray:
    z = 3.0 * rng.normal(size=N)
    return z - max(NORMAL @ z - 0.5, 0.0) * NORMAL / (NORMAL @ NORMAL)


# each set with a sampler of its points that does not use the projection
SETS: dict[str, tuple[Projection, Callable]] = {
    "box": (Box(LOWER, 2.0), in_box),
    "non-negative": (NonNegative(), lambda rng: np.abs(rng.normal(size=N))),
    "simplex": (Simplex(), in_simplex),
    "simplex-3": (Simplex(total=3.0), lambda rng: in_simplex(rng, 3.0)),
    "l1": (L1Ball(radius=2.0), in_l1_ball),
    "l2": (L2Ball(radius=1.5, center=CENTER), in_l2_ball),
    "halfspace": (Halfspace(NORMAL, 0.5), in_halfspace),
}


@pytest.fixture(params=SETS)
def case(request: pytest.FixtureRequest) -> tuple[Projection, Callable]:
    return SETS[request.param]


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_what_defines_the_nearest_point(
    backend: Backend, case: tuple[Projection, Callable], dtype: str
) -> None:
    """(x - P x) . (z - P x) <= 0 for all z in the set; P P x = P x; |P x - P y| <= |x - y|."""
    project, sample = case
    eps = np.finfo(dtype).eps
    rng = np.random.default_rng(1)
    rows = (4.0 * rng.normal(size=(50, N))).astype(dtype)
    x = backend.asarray(rows, dtype)
    before = backend.to_numpy(x)
    nearest = project(x)
    assert type(nearest) is type(x) and nearest.dtype == x.dtype and nearest.shape == x.shape
    assert np.array_equal(backend.to_numpy(x), before)
    p = backend.to_numpy(nearest).astype(float)
    for z in (sample(rng) for _ in range(40)):
        assert np.all(np.sum((rows - p) * (z - p), axis=1) <= 1e3 * eps)
    again = backend.to_numpy(project(nearest)).astype(float)
    assert np.allclose(again, p, rtol=0.0, atol=20 * eps)
    moved = np.linalg.norm(np.diff(p, axis=0), axis=1)
    assert np.all(moved <= np.linalg.norm(np.diff(rows, axis=0), axis=1) + 1e2 * eps)


def test_points_of_the_set_stay(backend: Backend, case: tuple[Projection, Callable]) -> None:
    project, sample = case
    rng = np.random.default_rng(2)
    inside = np.stack([sample(rng) for _ in range(30)])
    x = backend.asarray(inside)
    assert np.array_equal(backend.to_numpy(project(x)), inside)


def test_rows_are_projected_alone(backend: Backend, case: tuple[Projection, Callable]) -> None:
    project, _ = case
    x = 3.0 * np.random.default_rng(3).normal(size=(2, 1, N))
    all_at_once = backend.to_numpy(project(backend.asarray(x)))
    for i in (0, 1):
        alone = backend.to_numpy(project(backend.asarray(x[i, 0])))
        assert np.allclose(all_at_once[i, 0], alone, rtol=1e-14, atol=1e-15)


@pytest.mark.sampled
@pytest.mark.parametrize("scale", [1e-35, 1e38])
def test_no_scale_overflows(
    backend: Backend, case: tuple[Projection, Callable], scale: float
) -> None:
    """At the limits of float32 the result is the same as in float64, which has room there."""
    project, _ = case
    x = (scale * np.random.default_rng(4).normal(size=N)).astype("float32")
    found = backend.to_numpy(project(backend.asarray(x, "float32")))
    wanted = project(x.astype(float))
    assert np.allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.max(np.abs(wanted)))


def test_no_scale_overflows_in_float64(case: tuple[Projection, Callable]) -> None:
    """Far from a set, the projection is the same at another scale."""
    project, _ = case
    x = np.random.default_rng(4).normal(size=N)
    far, near = project(x * 1e308), project(x * 1e30)
    bounded = not isinstance(project, Box | NonNegative | Halfspace)
    factor = np.where((np.abs(near) > 1e20) & (not bounded), 1e278, 1.0)
    assert np.allclose(far / factor, near, rtol=1e-12)


def bisected(x: np.ndarray, total: float) -> np.ndarray:
    """Projection onto the simplex by bisection on the threshold t: sum max(x - t, 0) = total."""
    low, high = x.min() - total, x.max()
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if np.maximum(x - middle, 0).sum() > total else (low, middle)
    return np.maximum(x - low, 0.0)


@pytest.mark.parametrize("n", [1, 2, 100])
def test_simplex_and_l1_ball_against_bisection(backend: Backend, n: int) -> None:
    x = np.random.default_rng(n).normal(size=(5, n)) * 10.0
    wanted = np.stack([bisected(row, 2.5) for row in x])
    found = backend.to_numpy(Simplex(2.5)(backend.asarray(x)))
    assert np.allclose(found, wanted, rtol=0.0, atol=1e-13)
    if n == 100:
        signed = np.sign(x) * np.stack([bisected(row, 2.5) for row in np.abs(x)])
        found = backend.to_numpy(L1Ball(2.5)(backend.asarray(x)))
        assert np.allclose(found, signed, rtol=0.0, atol=1e-13)


def test_large_simplex_in_float32(backend: Backend) -> None:
    """The sum is right even if it is shared by ten thousand numbers of similar size."""
    x = np.full(10_001, -0.9, dtype=np.float32)
    x[0] = 0.0
    x += 1e-5 * np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
    p = backend.to_numpy(Simplex()(backend.asarray(x, "float32"))).astype(float)
    assert abs(p.sum() - 1.0) < 1e-4 and np.all(p >= 0.0)
    assert np.allclose(p, bisected(x.astype(float), 1.0), atol=1e-7)


def test_against_a_general_solver(case: tuple[Projection, Callable]) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    project, _ = case
    x = np.random.default_rng(5).normal(size=N) * 2.0
    equal = {"type": "eq", "fun": lambda z: z.sum() - getattr(project, "total", 0.0)}
    # the 1-norm ball has kinks, so it is written with z = u - v, where u and v >= 0
    constraints: Any = {
        Box: [],
        NonNegative: [],
        Simplex: [equal],
        L1Ball: [{"type": "ineq", "fun": lambda z: 2.0 - z.sum()}],
        L2Ball: [{"type": "ineq", "fun": lambda z: 1.5**2 - np.sum((z - CENTER) ** 2)}],
        Halfspace: [{"type": "ineq", "fun": lambda z: 0.5 - NORMAL @ z}],
    }[type(project)]
    split = isinstance(project, L1Ball)
    bounds = {
        Box: list(zip(LOWER, [2.0] * N, strict=True)),
        NonNegative: [(0, None)] * N,
        Simplex: [(0, None)] * N,
        L1Ball: [(0, None)] * (2 * N),
    }.get(type(project))

    def value(z: np.ndarray) -> float:
        z = z[:N] - z[N:] if split else z
        return 0.5 * float(np.sum((z - x) ** 2))

    start = np.full(2 * N if split else N, 0.1)
    found = optimize.minimize(
        value, start, bounds=bounds, constraints=constraints, method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    ).x
    found = found[:N] - found[N:] if split else found
    assert np.allclose(project(x), found, atol=1e-5)


def test_same_bits_with_fixed_order(case: tuple[Projection, Callable]) -> None:
    project, _ = case
    x = 3.0 * np.random.default_rng(6).normal(size=(4, N))
    bits = set()
    for backend in (b for b in Backend if not b.missing):
        for batched in (True, False):
            rows = [x] if batched else list(x)
            out = []
            for row in rows:
                array = backend.asarray(row)
                space = lx.FixedOrderSpace(array, batched)
                out.append(backend.to_numpy(project.project(space, array)))
            bits.add(np.asarray(out).tobytes())
    assert len(bits) == 1


def test_jax_compiles_and_differentiates(case: tuple[Projection, Callable]) -> None:
    jax = pytest.importorskip("jax")
    project, _ = case
    x = 3.0 * np.random.default_rng(7).normal(size=(4, N))
    compiled = jax.jit(project)(jax.numpy.asarray(x))
    assert np.allclose(np.asarray(compiled), project(x), atol=1e-14)
    jacobian = np.asarray(jax.jacobian(project)(jax.numpy.asarray(x[0])))
    h = 1e-6
    numeric = np.stack(
        [(project(x[0] + h * e) - project(x[0] - h * e)) / (2 * h) for e in np.eye(N)], axis=1
    )
    assert np.allclose(jacobian, numeric, atol=1e-7)


def test_bounds_that_are_none_or_infinite(backend: Backend) -> None:
    x = backend.asarray([-3.0, 0.0, 3.0])
    assert backend.to_numpy(Box()(x)).tolist() == [-3.0, 0.0, 3.0]
    assert backend.to_numpy(Box(lower=-1.0)(x)).tolist() == [-1.0, 0.0, 3.0]
    sides = [-math.inf, -1.0, 1.0], [math.inf, math.inf, 2.0]
    assert backend.to_numpy(Box(*sides)(x)).tolist() == [-3.0, 0.0, 2.0]
    own = backend.asarray([-2.0, 1.0, 1.0])
    assert backend.to_numpy(Box(lower=own)(x)).tolist() == [-2.0, 1.0, 3.0]


def test_complex_ball(backend: Backend) -> None:
    x = backend.asarray(np.asarray([3.0 + 4.0j, 12.0j]), "complex128")
    p = backend.to_numpy(L2Ball(radius=6.5)(x))
    assert np.allclose(p, np.asarray([1.5 + 2.0j, 6.0j]))
    for project in (Box(0.0), NonNegative(), Simplex(), L1Ball(), Halfspace([1.0, 1.0], 1.0)):
        with pytest.raises(TypeError, match="complex128; wanted real"):
            project(x)


def test_settings_are_copied_and_compared_by_value() -> None:
    normal = np.asarray([1.0, 2.0])
    project = Halfspace(normal, 1.0)
    normal[0] = 100.0
    assert project == Halfspace([1.0, 2.0], 1) and hash(project) == hash(Halfspace([1, 2], 1.0))
    assert project != Halfspace(normal, 1.0) and Box(0, 1) != Box(0, 2) and Simplex() != L1Ball()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Box(1.0, 0.0), "lower is 1.0 and upper is 0.0"),
        (lambda: Box([0.0, 2.0], [1.0, 1.0]), "lower is 2.0 and upper is 1.0 at index 1"),
        (lambda: Box([0.0, math.nan]), "lower has entries that are nan"),
        (lambda: Box([0.0, 1.0], [1.0, 2.0, 3.0]), r"\(2,\) and upper \(3,\)"),
        (lambda: Box(lower=math.inf), "lower is inf"),
        (lambda: Box("a"), "lower is 'a'; wanted real numbers"),
        (lambda: Box([[1.0], [1.0, 2.0]]), "lower is a ragged list"),
        (lambda: Simplex(0.0), "total is 0.0; wanted a finite number above 0"),
        (lambda: Simplex(True), "total is True"),
        (lambda: L1Ball(-1.0), "radius is -1.0"),
        (lambda: L2Ball(math.inf), "radius is inf"),
        (lambda: L2Ball(center=[math.inf]), "center has entries that are not finite"),
        (lambda: Halfspace([0.0, 0.0], 1.0), r"normal is .*; wanted an array \(n,\)"),
        (lambda: Halfspace(1.0, 1.0), "normal is 1.0"),
        (lambda: Halfspace([1.0], [1.0]), "offset is .*; wanted a number"),
        (lambda: Simplex()(3.0), "Simplex was given a float"),
        (lambda: Simplex()(np.asarray(3.0)), "Simplex was given a 0-d array"),
        (lambda: Box([0.0, 1.0])(np.zeros(3)), r"lower has shape \(2,\); wanted one that broad"),
        (lambda: Box(np.zeros((2, 3)))(np.zeros(3)), r"lower has shape \(2, 3\)"),
    ],
)
def test_bad_settings(make: Callable, text: str) -> None:
    with pytest.raises((ValueError, TypeError), match=text):
        make()


def test_settings_of_another_library() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="lower is an array of torch; wanted an array of numpy"):
        Box(torch.zeros(3))(np.zeros(3))


def test_a_normal_of_another_length() -> None:
    with pytest.raises(ValueError, match="normal has shape"):
        lx.projections.Halfspace([1.0], 1.0)(np.ones(3))
