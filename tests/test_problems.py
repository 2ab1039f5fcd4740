"""Every reference problem, on every library."""

from __future__ import annotations

import numpy as np
import pytest

from lbfgs_xp import problems
from tests.backends import CPU, Backend

NAMES = sorted(problems.ALL)

# factory arguments besides the defaults, so that every branch is visited
VARIANTS = {
    **{name: (name, {}) for name in NAMES},
    "rosenbrock-100": ("rosenbrock", {"n": 100}),
    "chained_rosenbrock-2": ("chained_rosenbrock", {"n": 2}),
    "rastrigin-5": ("rastrigin", {"n": 5}),
    "quadratic-spectrum": ("quadratic", {"spectrum": [1.0, 4.0, 30.0, 30.0, 500.0]}),
    "quadratic-diagonal": ("quadratic", {"n": 7, "rotation": None}),
    "mlp-softsign": ("mlp_regression", {"hidden": (3, 2), "activation": "softsign", "samples": 8}),
    "mlp-relu": ("mlp_regression", {"hidden": (4,), "activation": "relu", "samples": 5}),
    "decay-noise": ("exponential_decay", {"noise": 0.05}),
}
# only sums, products and quotients: the same bits everywhere
EXACT = [
    "rosenbrock",
    "rosenbrock-100",
    "chained_rosenbrock",
    "beale",
    "himmelblau",
    "quadratic",
    "quadratic-spectrum",
    "mlp-softsign",
    "mlp-relu",
]


def make(variant: str, backend: Backend, dtype: str = "float64", **more: object):
    name, arguments = VARIANTS[variant]
    return problems.ALL[name](
        xp=backend.xp, dtype=backend.dtype(dtype), device=backend.device, **arguments, **more
    )


def points(problem: problems.Problem, shape: tuple[int, ...] = ()) -> np.ndarray:
    """Points in [-1, 1]^n, none on a kink of relu; NumPy, float64."""
    return np.random.default_rng(7).uniform(-1.0, 1.0, size=(*shape, problem.n))


@pytest.mark.sampled
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_is_the_slope(backend: Backend, variant: str) -> None:
    p = make(variant, backend)
    host = points(p)
    h = 1e-6
    shifts = h * np.eye(p.n)
    ahead = backend.to_numpy(p.fun(backend.asarray(host + shifts)))
    behind = backend.to_numpy(p.fun(backend.asarray(host - shifts)))
    gradient = backend.to_numpy(p.gradient(backend.asarray(host)))
    scale = np.max(np.abs(gradient))
    np.testing.assert_allclose(gradient, (ahead - behind) / (2.0 * h), atol=1e-6 * scale + 1e-8)


@pytest.mark.sampled
@pytest.mark.parametrize("variant", VARIANTS)
def test_batch_equals_its_rows(backend: Backend, variant: str) -> None:
    p = make(variant, backend)
    host = points(p, (2, 3))
    values, gradients = p.value_and_gradient(backend.asarray(host))
    assert tuple(values.shape) == (2, 3)
    assert tuple(gradients.shape) == (2, 3, p.n)
    values, gradients = backend.to_numpy(values), backend.to_numpy(gradients)
    for index in np.ndindex(2, 3):
        value, gradient = p.value_and_gradient(backend.asarray(host[index]))
        np.testing.assert_allclose(values[index], backend.to_numpy(value), rtol=1e-12)
        scale = np.max(np.abs(gradients[index]))
        np.testing.assert_allclose(
            gradients[index], backend.to_numpy(gradient), rtol=0.0, atol=1e-12 * scale
        )


@pytest.mark.parametrize("variant", EXACT)
def test_fixed_order_makes_rows_bitwise_equal(variant: str) -> None:
    p = make(variant, Backend.NUMPY, reproducible=True)
    x = points(p, (3,))
    values, gradients = p.value_and_gradient(x)
    for k in range(3):
        value, gradient = p.value_and_gradient(x[k])
        assert values[k].tobytes() == value.tobytes()
        assert gradients[k].tobytes() == gradient.tobytes()


@pytest.mark.parametrize("variant", VARIANTS)
def test_fixed_order_changes_rounding_alone(variant: str) -> None:
    plain = make(variant, Backend.NUMPY)
    fixed = make(variant, Backend.NUMPY, reproducible=True)
    x = points(plain, (3,))
    value, gradient = plain.value_and_gradient(x)
    value_fixed, gradient_fixed = fixed.value_and_gradient(x)
    np.testing.assert_allclose(value_fixed, value, rtol=1e-12)
    scale = np.max(np.abs(gradient))
    np.testing.assert_allclose(gradient_fixed, gradient, rtol=0.0, atol=1e-12 * scale)


@pytest.mark.parametrize("variant", VARIANTS)
def test_minimum_is_reached(backend: Backend, variant: str) -> None:
    p = make(variant, backend)
    assert (p.minimum is None) == (p.x_min is None)
    if p.x_min is None:
        return
    value, gradient = p.value_and_gradient(p.x_min)
    assert abs(float(value) - p.minimum) < 1e-24
    assert np.max(np.abs(backend.to_numpy(gradient))) < 1e-12
    assert float(p.fun(p.x0)) > p.minimum


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("dtype", "reproducible"), [("float64", False), ("float32", True)], ids=["plain64", "fixed32"]
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_keeps_shape_dtype_device(
    backend: Backend, variant: str, dtype: str, reproducible: bool
) -> None:
    p = make(variant, backend, dtype, reproducible=reproducible)
    assert p.dtype == backend.dtype(dtype)
    for x in (p.x0,) if reproducible else (p.x0, p.starts(3)):
        value, gradient = p.value_and_gradient(x)
        assert tuple(value.shape) == tuple(x.shape[:-1])
        assert tuple(gradient.shape) == tuple(x.shape)
        assert value.dtype == gradient.dtype == x.dtype == p.dtype
        assert gradient.device == x.device
        if not backend.is_numpy:  # NumPy returns a scalar for one value
            assert value.device == x.device
        assert np.all(backend.to_numpy(p.fun(x)) == backend.to_numpy(value))


@pytest.mark.sampled
@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_is_near_float64(backend: Backend, variant: str) -> None:
    fine, coarse = make(variant, backend), make(variant, backend, "float32")
    host = points(fine)
    value, gradient = fine.value_and_gradient(backend.asarray(host))
    value32, gradient32 = coarse.value_and_gradient(backend.asarray(host, "float32"))
    assert float(value32) == pytest.approx(float(value), rel=1e-5)
    gradient = backend.to_numpy(gradient)
    scale = np.max(np.abs(gradient))
    np.testing.assert_allclose(backend.to_numpy(gradient32), gradient, rtol=0.0, atol=1e-5 * scale)


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("dtype", "shape"), [("float64", ()), ("float32", (3,))], ids=["one64", "batch32"]
)
@pytest.mark.parametrize("variant", EXACT)
def test_fixed_order_gives_the_same_bits(
    backend: Backend, variant: str, dtype: str, shape: tuple[int, ...]
) -> None:
    here = make(variant, backend, dtype, reproducible=True)
    there = make(variant, Backend.NUMPY, dtype, reproducible=True)
    x = points(there, shape)
    value, gradient = here.value_and_gradient(backend.asarray(x, dtype))
    expected, expected_gradient = there.value_and_gradient(x.astype(dtype))
    assert backend.to_numpy(here.x0).tobytes() == there.x0.tobytes()
    assert backend.to_numpy(value).tobytes() == expected.tobytes()
    assert backend.to_numpy(gradient).tobytes() == expected_gradient.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_autodiff_agrees_at_the_start(name: str) -> None:
    import jax
    import torch

    p = make(name, Backend.TORCH)
    x = p.x0.clone().requires_grad_()
    (by_torch,) = torch.autograd.grad(p.fun(x), x)
    expected = p.gradient(p.x0).numpy()
    np.testing.assert_allclose(by_torch.numpy(), expected, rtol=1e-10, atol=1e-12)

    q = make(name, Backend.JAX)
    np.testing.assert_allclose(jax.grad(q.fun)(q.x0), expected, rtol=1e-10, atol=1e-12)
    value, gradient = jax.jit(q.value_and_gradient)(q.x0)
    assert float(value) == pytest.approx(float(p.fun(p.x0)), rel=1e-12)
    np.testing.assert_allclose(gradient, expected, rtol=1e-10, atol=1e-12)


def test_logistic_regression_does_not_overflow(backend: Backend) -> None:
    p = make("logistic_regression", backend)
    value, gradient = p.value_and_gradient(backend.asarray(np.full(p.n, 1e4)))
    assert np.isfinite(float(value))
    assert np.all(np.isfinite(backend.to_numpy(gradient)))


def test_defaults_to_numpy_and_float64() -> None:
    for name, factory in problems.ALL.items():
        p = factory()
        assert p.name == name
        assert isinstance(p.x0, np.ndarray)
        assert p.x0.dtype == np.float64
        assert name in repr(p)


def test_dtype_by_name_and_raw_namespace() -> None:
    import torch

    assert problems.beale(xp=torch, dtype="float32").x0.dtype == torch.float32
    assert problems.beale(xp=torch).x0.dtype == torch.float64


def test_starts_are_the_same_numbers_everywhere() -> None:
    expected = problems.rosenbrock(4).starts(3, scale=0.5, seed=2)
    for backend in CPU:
        p = problems.rosenbrock(4, xp=backend.xp, device=backend.device, dtype="float64")
        found = p.starts(3, scale=0.5, seed=2)
        assert backend.to_numpy(found).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: problems.rosenbrock(3), "n is 3; wanted an even integer of at least 2"),
        (lambda: problems.rosenbrock(2.5), "n is 2.5; wanted an integer of at least 2"),
        (lambda: problems.chained_rosenbrock(1), "n is 1; wanted an integer of at least 2"),
        (lambda: problems.rastrigin(0), "n is 0; wanted an integer of at least 1"),
        (lambda: problems.quadratic(rotation="qr"), "rotation is 'qr'; wanted 'householder' or"),
        (
            lambda: problems.mlp_regression(activation="gelu"),
            "activation is 'gelu'; wanted one of .*'softsign'",
        ),
    ],
)
def test_errors_name_the_remedy(call, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()
