"""Differentiable solutions in JAX: by every kind of derivative, against closed forms.

Few functions and shapes, because each program takes seconds to compile.
"""

import numpy as np
import pytest

import lbfgs_xp as lx

jax = pytest.importorskip("jax")
jnp = jax.numpy
check_grads = pytest.importorskip("jax.test_util").check_grads

RNG = np.random.default_rng(7)
ROWS, DATA = RNG.normal(size=(12, 4)), RNG.normal(size=12)


@jax.jit
def ridge(w, penalty):
    return 0.5 * jnp.sum((ROWS @ w - DATA) ** 2) + 0.5 * penalty * jnp.sum(w**2)


def of_ridge(penalty):
    return jnp.linalg.solve(ROWS.T @ ROWS + penalty * jnp.eye(4), ROWS.T @ DATA)


def solution(penalty, fun=ridge, **settings):
    return lx.minimize(fun, jnp.zeros(4), (penalty,), gtol=1e-11, **settings).x


def compare(found, wanted, digits=1e-8):
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, two, rtol=digits, atol=digits)


def cubes(solve):
    return lambda penalty: jnp.sum(solve(penalty) ** 3)


@pytest.mark.parametrize("derivative", [
    jax.grad,
    jax.hessian,
    pytest.param(lambda f: jax.jacrev(jax.jacfwd(f)), marks=pytest.mark.thorough),
])
def test_every_kind_of_derivative(derivative):
    compare(derivative(cubes(solution))(0.7), derivative(cubes(of_ridge))(0.7))


def test_several_numbers_at_once():
    """Also of a function that is not compiled, and that holds the numbers."""
    def of_targets(given):
        def fun(p):
            return jnp.sum((p["a"] - given["t"]) ** 2) + (p["b"] * given["u"][0] - 1.0) ** 2

        start = {"a": jnp.zeros(2), "b": jnp.asarray(1.0)}
        x = lx.minimize(fun, start, gtol=1e-11).x
        return jnp.concatenate([x["a"], x["b"][None]])

    given = {"t": jnp.asarray([1.0, 2.0]), "u": [jnp.asarray(4.0)]}
    found = jax.jacrev(of_targets)(given)
    compare(found["t"], np.eye(3)[:, :2])
    compare(found["u"][0], np.asarray([0.0, 0.0, -1.0 / 16.0]))


def test_value_and_gradient_are_differentiable_too():
    def end(penalty):
        res = lx.minimize(ridge, jnp.zeros(4), (penalty,), gtol=1e-11)
        return res.fun, res.jac

    slope, bend = jax.jacfwd(end)(0.7)
    compare(slope, jax.grad(lambda p: ridge(of_ridge(p), p))(0.7))
    compare(bend, np.zeros(4))


def test_bounds_and_a_gradient_by_hand():
    def fun(w, t):
        return jnp.sum((w - t) ** 2) + 0.5 * w[0] * w[1], 2.0 * (w - t) + 0.5 * w[::-1]

    def held(t):
        return lx.minimize(
            fun, jnp.zeros(2), (t,), jac=True, bounds=(0.0, 1.0), gtol=1e-11
        ).x

    compare(jax.jacrev(held)(jnp.asarray([2.0, 0.5])), np.diag([0.0, 1.0]))


def test_rows_are_independent():
    def fun(w, t):
        return jnp.sum((w - t) ** 2 + w**4, axis=-1)

    def of_rows(t):
        t = jnp.asarray(t)
        x = lx.minimize(fun, jnp.zeros((3, 2)), (t,), batched=True, gtol=1e-11).x
        return jnp.sum(x, axis=-1)

    check_grads(of_rows, (jnp.asarray([[0.3], [1.0], [2.0]]),), order=1, modes=["rev"])


def test_the_start_has_no_influence():
    found = jax.grad(
        lambda x0: jnp.sum(lx.minimize(ridge, x0, (0.7,), gtol=1e-11).x)
    )(jnp.zeros(4))
    assert not np.any(found)


def test_what_has_no_derivative_is_said():
    def flat(w, total):
        return (jnp.sum(w) - total) ** 2

    with pytest.raises(np.linalg.LinAlgError, match="singular"):
        jax.jvp(lambda total: solution(total, flat), (1.0,), (1.0,))
    with pytest.warns(RuntimeWarning, match="not to be trusted"):
        jax.jvp(lambda p: solution(p, maxiter=1), (0.7,), (1.0,))
    with pytest.raises(ValueError, match="finite differences"):
        jax.jvp(lambda p: solution(p, jac="3-point"), (0.7,), (1.0,))
    with pytest.raises(TypeError, match="bounds is traced or requires a gradient"):
        jax.jvp(lambda p: solution(0.7, bounds=(None, p)), (0.7,), (1.0,))
    # Values decide here, so the program that would show what it holds cannot be made.
    with pytest.raises(TypeError, match="closes over traced arrays"):
        jax.jvp(
            lambda p: solution(0.7, lambda w, _: ridge(w, p) if w[0] < 9.0 else 0.0 * w[0]),
            (0.7,), (1.0,),
        )


@pytest.mark.thorough
def test_inside_compiled_functions():
    def closed(penalty):
        return lx.minimize(lambda w: ridge(w, penalty), jnp.zeros(4), gtol=1e-11).x

    wanted = jax.grad(cubes(of_ridge))(0.7)
    compare(jax.jit(jax.grad(cubes(solution)))(0.7), wanted)
    compare(jax.jit(jax.grad(cubes(closed)))(0.7), wanted)
    compare(jax.vmap(jax.grad(cubes(solution)))(jnp.asarray([0.7]))[0], wanted)

    def flat(w, total):
        return (jnp.sum(w) - total) ** 2

    with pytest.warns(RuntimeWarning, match="singular"):
        found = jax.jit(jax.grad(cubes(lambda t: solution(t, flat))))(1.0)
        assert np.isnan(found)
