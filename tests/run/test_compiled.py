"""JAX: a function that the user has compiled runs in one loop with the solver.

The programs are few, because each takes seconds to compile: the same functions, shapes and solvers
throughout.
"""

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import Status
from lbfgs_xp.run import compiled

jax = pytest.importorskip("jax")
jnp = jax.numpy

START = np.asarray([-1.2, 1.0])
STARTS = START + np.asarray([[0.0, 0.0], [0.5, 0.5], [1.0, -1.0], [1.9, 0.0]])
traced = []


def valley(x, steepness):
    traced.append(1)
    return steepness * (x[..., 1] - x[..., 0] ** 2) ** 2 + (1.0 - x[..., 0]) ** 2


def curved(x, radius):
    """nan outside a disc, and its own gradient."""
    room = radius - jnp.sum(x["a"] ** 2) - x["b"] ** 2
    value, slope = -jnp.log(room) + x["a"][0] + 0.5 * x["b"], jnp.asarray([1.0, 0.0])
    return value, {"a": 2.0 * x["a"] / room + slope, "b": 2.0 * x["b"] / room + 0.5}


def with_distance(x):
    return jnp.sum((x - 1.0) ** 4, axis=-1), {"from 0": jnp.sum(x * x, axis=-1), "name": (x,)}


COMPILED = jax.jit(valley)
LBFGS = {"method": lx.LBFGS(memory_size=3), "gtol": 1e-8}


def run(fun, x0, *args, **settings):
    return lx.minimize(fun, jax.tree.map(jnp.asarray, x0), args, **{**LBFGS, **settings})


def in_python(fun):
    """The same function, which JAX does not know to be pure."""
    return lambda *args: fun(*args)


def compare(one, two, places=1e-7):
    assert np.array_equal(one.status, two.status)
    assert np.array_equal(one.nit, two.nit) and np.array_equal(one.nfev, two.nfev)
    assert np.array_equal(one.success, two.success) and one.message == two.message
    leaves = (jax.tree.leaves((res.x, res.jac)) for res in (one, two))
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_allclose(a, b, rtol=0.0, atol=places)


@pytest.mark.parametrize("batched", [False, True])
def test_same_as_the_loop_in_python(batched):
    x0 = STARTS if batched else START
    one, two = (run(f, x0, 100.0, batched=batched) for f in (COMPILED, in_python(valley)))
    compare(one, two)
    assert np.all(one.status == Status.GRADIENT)
    assert type(one.nfev) is type(two.nfev) and type(one.fun) is type(two.fun)
    dense = [np.asarray(res.hess_inv.todense()) for res in (one, two)]
    np.testing.assert_allclose(*dense, rtol=1e-3)


@pytest.mark.parametrize("batched", [False, True])
def test_numbers_do_not_compile_again_and_budgets_are_exact(batched):
    x0 = STARTS if batched else START
    run(COMPILED, x0, 100.0, batched=batched)
    before = len(traced)
    for settings in ({"maxfun": 1}, {"maxfun": 7}, {"maxiter": 0}, {"maxiter": 5}):
        res = run(COMPILED, x0, 10.0, batched=batched, **settings)
        ended, counts = (
            (Status.EVALUATIONS, res.nfev) if "maxfun" in settings else (Status.ITERATIONS, res.nit)
        )
        assert np.all(res.status == ended)
        assert np.all(counts == next(iter(settings.values())))
    assert len(traced) == before


def test_a_run_in_many_calls_is_the_same(monkeypatch):
    whole = [run(COMPILED, x0, 100.0, batched=x0.ndim == 2) for x0 in (START, STARTS)]
    monkeypatch.setattr(compiled.Chunk, "within", lambda self, seconds: 1)
    for one in whole:
        batched = one.x.ndim == 2
        res = run(COMPILED, STARTS if batched else START, 100.0, batched=batched)
        assert np.asarray(res.x).tobytes() == np.asarray(one.x).tobytes()
        assert np.array_equal(res.nfev, one.nfev)


def test_states_go_on_in_either_loop():
    whole = run(COMPILED, START, 100.0)
    for first, then in ((COMPILED, in_python(valley)), (in_python(valley), COMPILED)):
        part = run(first, START, 100.0, maxiter=12)
        rest = run(then, part.x, 100.0, state=part.state)
        assert part.nit + rest.nit == whole.nit and rest.status == Status.GRADIENT
        np.testing.assert_allclose(rest.x, whole.x, atol=1e-7)


def test_interrupts_keep_the_best_point(monkeypatch):
    inside, calls = compiled.advance, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return inside(*arguments)

    monkeypatch.setattr(compiled.Chunk, "within", lambda self, seconds: 3)
    monkeypatch.setattr(compiled, "advance", interrupted)
    res = run(COMPILED, START, 100.0)
    assert res.status == Status.INTERRUPTED and res.nfev == 1 + 3 * 3
    assert res.fun == float(valley(res.x, 100.0)) < float(valley(START, 100.0))


def test_a_gradient_of_its_own_nested_parameters_and_nan():
    x0 = {"a": np.asarray([0.0, 0.9]), "b": np.asarray(0.0)}
    res = [run(f, x0, 1.0, jac=True) for f in (jax.jit(curved), in_python(curved))]
    compare(*res)
    assert res[0].success and float(np.sum(res[0].x["a"] ** 2) + res[0].x["b"] ** 2) < 1.0


@pytest.mark.parametrize("batched", [False, True])
def test_aux_belongs_to_the_best_point(batched):
    res = run(jax.jit(with_distance), STARTS if batched else START, has_aux=True, batched=batched)
    np.testing.assert_allclose(res.aux["name"][0], res.x)
    np.testing.assert_allclose(res.aux["from 0"], np.sum(np.asarray(res.x) ** 2, axis=-1))


def test_a_function_that_is_not_compiled_is_called_for_each_evaluation():
    calls = []

    def fun(x):
        calls.append(x)
        return jnp.sum((x - 3.0) ** 2)

    assert run(fun, START, maxiter=4).nfev == len(calls)


def test_how_many_evaluations_a_call_makes():
    chunk = compiled.Chunk(0.001)
    assert chunk.evaluations == 200 and chunk.within(1.0) == 200
    assert chunk.within(0.05) == 100 and chunk.within(-1.0) == 1
    chunk.took(200, 0.01)
    assert chunk.evaluations == 1600    # 2000 would take a tenth of a second
    chunk.took(1600, 3.0)
    assert chunk.evaluations == 53
    assert compiled.Chunk(5.0).evaluations == 1


def test_a_later_phase_runs_compiled():
    """The first one does not."""
    method = [lx.Adam(0.1).until(maxiter=3), lx.LBFGS()]
    res = lx.minimize(jax.jit(valley), jnp.asarray(START), (100.0,), method=method)
    assert res.success and res.phases[0].nit == 3
    np.testing.assert_allclose(res.x, 1.0, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "settings", "one", "batch"),
    [
        (lx.LBFGS(), {}, True, True),
        (lx.LBFGS(), {"bounds": (0.0, 0.5)}, False, True),
        (lx.LBFGS(), {"l1": 0.1}, False, True),
        (lx.LBFGS(learning_rate=0.5), {}, False, True),
        (lx.LBFGS(history_dtype="float32"), {}, False, None),
        (lx.BFGS(), {}, True, True),
        (lx.BFGS(), {"bounds": (0.0, 0.5)}, False, True),
        (lx.SSBFGS(), {}, True, True),
        (lx.SSBroyden(), {}, True, True),
        (lx.GradientDescent(line_search="armijo"), {}, True, True),
        (lx.NewtonCG(), {}, False, False),
        (lx.Adam(), {}, False, False),
    ],
    ids=lambda each: type(each).__name__ if hasattr(each, "solver") else None,
)
def test_what_runs_in_one_loop(method, settings, one, batch, monkeypatch):
    """The sentence below the table in docs/jax.md."""

    class Compiles(Exception):
        pass

    def advance(*args):
        raise Compiles

    monkeypatch.setattr("lbfgs_xp.run.compiled.advance", advance)
    fun = jax.jit(lambda x: jnp.sum((x - 1.0) ** 4 + x**2, axis=-1))

    def compiles(x0, **more):
        try:
            lx.minimize(fun, x0, method=method, maxiter=1, **settings, **more)
        except Compiles:
            return True
        return False

    assert compiles(jnp.ones(2)) == one
    if batch is not None:
        assert compiles(jnp.ones((3, 2)), batched=True) == batch
