"""The same bits on every library, and the same bits if a run is repeated."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import problems
from tests.backends import CPU, Backend

# problem -> (factory, arguments, iterations, memory_size)
EXACT: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "chained-2": ("chained_rosenbrock", {"n": 2}, 100, 10),
    "chained-50": ("chained_rosenbrock", {"n": 50}, 120, 10),
    "chained-1000": ("chained_rosenbrock", {"n": 1000}, 110, 10),
    # one pair, for speed; each sum is padded with 2^17 - n zeros
    "chained-100003": ("chained_rosenbrock", {"n": 100_003}, 100, 1),
    "extended-50": ("rosenbrock", {"n": 50}, 100, 5),
    "mlp-softsign": ("mlp_regression", {"activation": "softsign", "hidden": 8}, 120, 10),
    "mlp-relu": ("mlp_regression", {"activation": "relu", "hidden": 8, "seed": 1}, 120, 10),
}
OTHERS = [b for b in CPU if not b.is_numpy]


def path(
    name: str,
    backend: Backend,
    *,
    reproducible: bool = True,
    dtype: str = "float64",
    iterations: int | None = None,
    line_search: str = "more_thuente",
) -> list[tuple[Any, ...]]:
    """(digest of x, value, gradient norm, step, nit, nfev) for each iterate."""
    factory, arguments, limit, memory_size = EXACT[name]
    p = problems.ALL[factory](
        xp=backend.xp, device=backend.device, dtype=backend.dtype(dtype),
        reproducible=reproducible, **arguments,
    )
    seen: list[tuple[Any, ...]] = []

    def callback(record: lx.Record) -> None:
        bits = backend.to_numpy(record.x).tobytes()
        seen.append((hashlib.sha1(bits).hexdigest(), *record[1:]))

    res = lx.minimize(
        p.value_and_gradient, p.x0, jac=True, gtol=0.0, maxiter=iterations or limit,
        reproducible=reproducible, callback=callback,
        method=lx.LBFGS(memory_size=memory_size, line_search=line_search),
    )
    last = (res.x, res.jac, res.hess_inv @ res.jac)
    seen.append(tuple(backend.to_numpy(a).tobytes() for a in last) + (res.status,))
    return seen


@functools.cache
def numpy_path(name: str, **settings: Any) -> list[tuple[Any, ...]]:
    return path(name, Backend.NUMPY, **settings)


def same(found: list[tuple[Any, ...]], wanted: list[tuple[Any, ...]]) -> None:
    for k, (a, b) in enumerate(zip(found, wanted, strict=False)):
        assert a == b, f"iteration {k + 1} differs"
    assert len(found) == len(wanted)


@pytest.mark.sampled
@pytest.mark.parametrize("name", EXACT)
def test_the_same_bits_on_every_library(backend: Backend, name: str) -> None:
    if backend is Backend.JAX and name == "extended-50":
        pytest.skip("slow op by op; the chained function has the same operations")
    wanted = numpy_path(name)
    assert len(wanted) > 100 or name in ("chained-2", "extended-50")  # these converge earlier
    assert len(wanted) > 30
    same(path(name, backend), wanted)


@pytest.mark.sampled
@pytest.mark.parametrize("backend_", OTHERS, ids=str)
@pytest.mark.parametrize("line_search", ["armijo", "bisection", "strong_wolfe", "hager_zhang"])
def test_the_same_bits_for_each_rule(backend_: Backend, line_search: str) -> None:
    iterations = 15 if backend_.is_jax else 40  # JAX runs op by op
    settings: dict[str, Any] = {"line_search": line_search, "iterations": iterations}
    same(path("chained-50", backend_, **settings), numpy_path("chained-50", **settings))


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("name", "backend_"),
    [("chained-50", b) for b in OTHERS] + [("mlp-softsign", b) for b in OTHERS if not b.is_jax],
)
def test_the_same_bits_in_float32(backend_: Backend, name: str) -> None:
    iterations = 15 if backend_.is_jax else 60
    settings: dict[str, Any] = {"dtype": "float32", "iterations": iterations}
    same(path(name, backend_, **settings), numpy_path(name, **settings))


@pytest.mark.sampled
@pytest.mark.parametrize("backend_", OTHERS, ids=str)
@pytest.mark.parametrize("kind", ["unscaled", "scalar", "diagonal", "callable"])
def test_the_same_bits_for_each_initial_matrix(backend_: Backend, kind: str) -> None:
    diagonal = np.linspace(0.001, 0.01, 10)

    def solve(backend: Backend) -> tuple[Any, ...]:
        weights = backend.asarray(diagonal)
        initial = {"unscaled": None, "scalar": 0.01, "diagonal": weights}.get(
            kind, lambda v: weights * v
        )
        p = problems.chained_rosenbrock(
            10, xp=backend.xp, device=backend.device, dtype="float64", reproducible=True
        )
        res = lx.minimize(
            p.value_and_gradient, p.x0, jac=True, gtol=0.0, maxiter=12, reproducible=True,
            method=lx.LBFGS(initial_inverse_hessian=initial, scale_initial=kind == "diagonal"),
        )
        return backend.to_numpy(res.x).tobytes(), res.fun, res.nit, res.nfev

    assert solve(backend_) == solve(Backend.NUMPY)


# For JAX, test_batch.py compares the rows with single runs, whose bits are compared above.
@pytest.mark.parametrize("backend_", [b for b in OTHERS if not b.is_jax], ids=str)
def test_a_batch_has_the_same_bits(backend_: Backend) -> None:
    def solve(backend: Backend) -> list[bytes]:
        p = problems.chained_rosenbrock(
            6, xp=backend.xp, device=backend.device, dtype="float64", reproducible=True
        )
        res = lx.minimize(
            p.value_and_gradient, p.starts(3), jac=True, batched=True, gtol=0.0, maxiter=15,
            reproducible=True,
        )
        return [backend.to_numpy(a).tobytes() for a in (res.x, res.fun, res.jac)]

    assert solve(backend_) == solve(Backend.NUMPY)


# --- what need not be bitwise ------------------------------------------------------------------


def iterates(
    backend: Backend, factory: str, arguments: dict[str, Any], reproducible: bool
) -> tuple[np.ndarray, list[int]]:
    p = problems.ALL[factory](
        xp=backend.xp, device=backend.device, dtype="float64", reproducible=reproducible,
        **arguments,
    )
    xs, counts = [], []

    def callback(record: lx.Record) -> None:
        xs.append(backend.to_numpy(record.x))
        counts.append(record.nfev)

    lx.minimize(
        p.value_and_gradient, p.x0, jac=True, gtol=0.0, maxiter=20, callback=callback,
        reproducible=reproducible,
    )
    return np.stack(xs), counts


NEAR = {
    "chained-2": ("chained_rosenbrock", {"n": 2}, False),
    "chained-50": ("chained_rosenbrock", {"n": 50}, False),
    "chained-1000": ("chained_rosenbrock", {"n": 1000}, False),
    "beale": ("beale", {}, False),
    "mlp-softsign": ("mlp_regression", {"activation": "softsign"}, False),
    "mlp-tanh": ("mlp_regression", {}, False),
    "mlp-tanh-fixed": ("mlp_regression", {"hidden": 4}, True),
    "decay-fixed": ("exponential_decay", {}, True),
    "logistic-fixed": ("logistic_regression", {}, True),
}


@pytest.mark.sampled
@pytest.mark.parametrize("name", NEAR)
def test_the_first_iterates_agree(backend: Backend, name: str) -> None:
    factory, arguments, reproducible = NEAR[name]
    wanted, counts = _numpy_iterates(name)
    found, found_counts = iterates(backend, factory, arguments, reproducible)
    shared = 20 if name not in ("beale", "decay-fixed", "logistic-fixed") else 10
    assert found_counts[:shared] == counts[:shared]
    scale = np.max(np.abs(wanted), axis=1, keepdims=True)
    worst = np.max(np.abs(found[:shared] - wanted[:shared]) / scale[:shared])
    assert worst < 1e-9


@functools.cache
def _numpy_iterates(name: str) -> tuple[np.ndarray, list[int]]:
    return iterates(Backend.NUMPY, *NEAR[name])


@pytest.mark.sampled
@pytest.mark.parametrize("reproducible", [False, True], ids=["plain", "fixed"])
@pytest.mark.parametrize("name", ["chained-50", "mlp-softsign"])
def test_twice_is_the_same(backend: Backend, name: str, reproducible: bool) -> None:
    settings: dict[str, Any] = {"reproducible": reproducible, "iterations": 20}
    same(path(name, backend, **settings), path(name, backend, **settings))
