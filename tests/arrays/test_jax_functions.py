"""JAX: what is compiled for a function goes with it, and its arguments need not all be arrays."""

import gc
import os
import subprocess
import sys
import weakref

import numpy as np
import pytest

import lbfgs_xp as lx

jax = pytest.importorskip("jax")
jnp = jax.numpy

START = np.zeros(3, dtype="float32")


def mean_square(matrix):
    return jax.jit(lambda x: jnp.mean((matrix @ x - 1.0) ** 2))


def of_a_batch(matrix):
    fun = jax.jit(lambda x: jnp.mean((x @ matrix.T - 1.0) ** 2, axis=-1))
    lx.minimize(fun, jnp.asarray(np.zeros((4, 3), dtype="float32")), batched=True, maxiter=3)


def of_a_fit(matrix):
    model = jax.jit(lambda x, a, b, c: matrix @ jnp.stack([a, b, c]))
    lx.curve_fit(model, jnp.zeros(50), jnp.ones(50), [0.0, 0.0, 0.0])


def of_training(matrix):
    def loss(x, batch):
        return jnp.mean((matrix @ x - 1.0) ** 2) + jnp.mean(batch)

    lx.train(loss, jnp.asarray(START), jnp.zeros(8), epochs=2, batch_size=4)


def of_constraints(matrix):
    equality = jax.jit(lambda x: jnp.sum(x) - 1.0)
    lx.augmented_lagrangian(mean_square(matrix), jnp.asarray(START), equality=equality)


class Problem:
    def __init__(self, matrix):
        self.matrix = matrix

    def value(self, x):
        return jnp.mean((self.matrix @ x - 1.0) ** 2)


RUNS = {
    "minimize": lambda a: lx.minimize(mean_square(a), jnp.asarray(START), maxiter=3),
    "a method": lambda a: lx.minimize(jax.jit(Problem(a).value), jnp.asarray(START), maxiter=3),
    "newton": lambda a: lx.minimize(mean_square(a), jnp.asarray(START), method="newton"),
    "batch": of_a_batch,
    "least_squares": lambda a: lx.least_squares(
        jax.jit(lambda x: a @ x - 1.0), jnp.asarray(START)
    ),
    "curve_fit": of_a_fit,
    "train": of_training,
    "constraints": of_constraints,
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_the_data_of_a_function_go_with_it(run):
    held = []
    for seed in range(3):
        matrix = np.random.default_rng(seed).normal(size=(50, 3))
        data = jnp.asarray(matrix, dtype=jnp.float32)
        held.append(weakref.ref(data))
        run(data)
        del data
    gc.collect()
    assert [reference() is None for reference in held] == [True] * 3


def test_a_function_that_exists_is_compiled_once():
    traced = []

    @jax.jit
    def fun(x):
        traced.append(1)
        return jnp.sum((x - 1.0) ** 2)

    lx.minimize(fun, jnp.asarray(START))
    gc.collect()
    lx.minimize(fun, jnp.asarray(START) + 5.0)
    assert len(traced) == 1


@pytest.mark.parametrize("batched", [False, True])
def test_a_start_whose_dtype_gives_way_compiles_nothing_more(batched):
    traced = []

    @jax.jit
    def fun(x):
        traced.append(1)
        return jnp.sum((x - 1.0) ** 2, axis=-1)

    weak = jnp.full((2, 3) if batched else 3, 0.5)
    assert weak.weak_type
    lx.minimize(fun, weak, batched=batched)
    count = len(traced)
    lx.minimize(fun, jnp.zeros_like(weak, dtype=weak.dtype), batched=batched)
    assert len(traced) == count == 1


def test_with_loops_as_single_kernels():
    code = """
import jax, jax.numpy as jnp, lbfgs_xp as lx
res = lx.minimize(jax.jit(lambda x: jnp.sum((x - 1.0) ** 2)), jnp.zeros(3))
assert res.success and jnp.allclose(res.x, 1.0)
"""
    flags = "--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=1000000"
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "XLA_FLAGS": flags}, capture_output=True,
        text=True, check=False,
    )
    assert run.returncode == 0, run.stderr


def squares(x, kind, count=1):
    assert kind == "squares"
    return sum(((x - i) ** 2).sum() for i in range(1, 1 + count))


def test_a_string_among_the_arguments():
    fun = jax.jit(squares, static_argnums=1)
    assert np.allclose(lx.minimize(fun, jnp.asarray(START), ("squares",)).x, 1.0, atol=1e-5)


def test_a_static_number_among_the_arguments():
    fun = jax.jit(squares, static_argnums=(1, 2))
    for count, mean in ((3, 2.0), (1, 1.0), (True, 1.0)):
        res = lx.minimize(fun, jnp.asarray(START), ("squares", count))
        assert np.allclose(res.x, mean, atol=1e-5)


def test_static_arguments_of_a_fit_and_of_constraints():
    def residuals(x, matrix, kind):
        assert kind == "linear"
        return matrix @ x - 1.0

    res = lx.least_squares(
        jax.jit(residuals, static_argnums=2), jnp.asarray(START), (jnp.eye(3), "linear")
    )
    assert np.allclose(res.x, 1.0, atol=1e-5)
    res = lx.augmented_lagrangian(
        jax.jit(squares, static_argnums=1), jnp.asarray(START), ("squares",),
        equality=jax.jit(lambda x, kind: jnp.sum(x), static_argnums=1),
    )
    assert np.allclose(res.x, 0.0, atol=1e-3)


def test_numbers_stay_traced_and_errors_of_the_user_are_kept():
    traced = []

    @jax.jit
    def fun(x, shift):
        traced.append(1)
        return jnp.sum((x - shift) ** 2)

    for shift in (1.0, 2.0, 3.0):
        assert np.allclose(lx.minimize(fun, jnp.asarray(START), (shift,)).x, shift, atol=1e-4)
    assert len(traced) == 1

    @jax.jit
    def branching(x, shift):
        return jnp.sum(x) if x[0] > shift else jnp.sum(x**2)

    with pytest.raises(jax.errors.TracerBoolConversionError):
        lx.minimize(branching, jnp.asarray(START), (1.0,))
