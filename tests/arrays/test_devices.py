"""JAX arrays on several devices: everything stays on the device of x0."""

import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("jax")

_PRELUDE = """
import contextlib, jax, jax.numpy as jnp, numpy as np
import lbfgs_xp as lx
first, second = jax.devices()

def bowl(x, c=1.0):
    return jnp.sum((x - c) ** 2, axis=-1)

def free(shape, device):
    with jax.default_device(device):
        return jnp.zeros(shape)

def places(*arrays):
    return set().union(*(array.devices() for array in arrays))
"""


def _on_two_devices(script: str) -> None:
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    root = pathlib.Path(__file__).parents[2]
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", _PRELUDE + script], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_result_is_where_x0_is_though_that_is_free_to_move() -> None:
    _on_two_devices("""
for default, place in ((first, second), (second, first)):
    one, many = free(4, place), free((5, 4), place)
    with jax.default_device(default):
        for method in ("bfgs", "adam"):
            res = lx.minimize(bowl, many, method=method, batched=True, maxiter=5)
            assert places(res.x, res.fun, res.jac) == {place}, method
        assert places(lx.minimize(bowl, one).x) == {place}
        res = lx.train(lambda p, batch: bowl(p), one, [()])
        assert places(res.params) == {place}
        res = lx.curve_fit(lambda t, a: a + 0.0 * t, jnp.arange(3.0), free((5, 3), place),
                           free((5, 1), place), batched=True)
        assert places(res.x, res.covariance, res.residuals) == {place}
""")


def test_data_on_another_device_are_refused() -> None:
    _on_two_devices("""
target = jax.device_put(jnp.ones(4), second)
runs = [
    lambda: lx.minimize(bowl, jnp.zeros(4), (target,)),
    lambda: lx.minimize(jax.jit(bowl), jnp.zeros((5, 4)), (target,), batched=True),
    lambda: lx.minimize(bowl, jnp.zeros(4), (target,), jac="3-point"),
    lambda: lx.least_squares(lambda x, c: x - c, jnp.zeros((5, 4)), (target,), batched=True),
]
for run in runs:
    try:
        run()
    except ValueError as error:
        assert "is on device" in str(error) and "wanted" in str(error), error
    else:
        raise AssertionError("the run went to another device")
""")


def test_gradients_that_do_not_depend_on_x_are_brought_to_it() -> None:
    _on_two_devices("""
x0 = jax.device_put(jnp.ones(3), second)
how = dict(method="projected_gradient", bounds=(0.0, 2.0))
for jac in (None, lambda x: jnp.arange(3.0) + 1.0):
    res = lx.minimize(lambda x: jnp.sum((jnp.arange(3.0) + 1.0) * x), x0, jac=jac, **how)
    assert res.success and places(res.x, res.jac) == {second}
""")


def test_batch_spread_over_devices() -> None:
    _on_two_devices("""
from jax.sharding import Mesh, NamedSharding, PartitionSpec
spread = NamedSharding(Mesh(np.asarray([first, second]), ("rows",)), PartitionSpec("rows"))
x0 = jax.device_put(jnp.linspace(-1.0, 2.0, 3000 * 3).reshape(3000, 3), spread)
c = jnp.where(jnp.arange(3000)[:, None] % 4 == 0, x0 + 1.0, x0)    # most rows leave at once
res = lx.minimize(bowl, x0, (c,), batched=True)
assert bool(res.success.all()) and places(res.x) == {first, second}
assert np.allclose(res.x, c, atol=1e-4)
res = lx.least_squares(lambda x, c: x - c, x0, (c,), batched=True, compact=True)
assert bool(res.success.all()) and np.allclose(res.x, c, atol=1e-5)
""")
