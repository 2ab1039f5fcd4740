"""`lx.minimize` inside functions that JAX compiles ends as it does outside.

The programs are few, because each takes seconds to compile: one function with many cases, for all
of them at once.
"""

import functools

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import Status

jax = pytest.importorskip("jax")
jnp = jax.numpy

START = np.asarray([-1.2, 1.0, 0.3, 0.4])
METHOD, MAXITER = lx.LBFGS(memory_size=3), 1000
# steepness, error of the gradient, kink, constant: see `fun`.
CASES = {
    "valley": (100.0, 0.0, 0.0, 0.0),
    "steep": (1e6, 0.0, 0.0, -3.0),
    "a wrong gradient": (100.0, 0.5, 0.0, 0.0),
    "a kink": (100.0, 0.0, 1.0, 0.0),
    "large": (100.0, 0.0, 0.0, 1e6),
    "round": (1.0, 0.0, 0.0, 0.0),
}
# From this version on, both programs round alike. Otherwise only short runs have the same counts,
# because long ones magnify rounding, which at 1e6 also decides how a run at the minimum ends.
ROUNDS_ALIKE = jax.__version_info__ >= (0, 10, 2)
# By default the tests compile what is the user's in a quicker way, which rounds differently.
AS_USERS = {"xla_cpu_use_fusion_emitters": True}


def fun(x, steepness, wrong, kink, constant):
    def value(x):
        valley = steepness * (x[1::2] - x[::2] ** 2) ** 2 + (1.0 - x[::2]) ** 2
        return constant + jnp.sum(valley) + kink * jnp.sum(jnp.abs(x - 0.3))

    f, g = jax.value_and_grad(value)(x)
    return f, g * (1.0 + wrong * jnp.asarray([1.0, -1.0, 0.0, 0.0]))


def solve(x, case):
    return lx.minimize(fun, x, tuple(case), jac=True, method=METHOD, maxiter=MAXITER)


@pytest.fixture(scope="module")
def inside():
    """The results of all cases, from one program."""
    cases = jnp.asarray(list(CASES.values()))
    run = jax.jit(jax.vmap(solve, in_axes=(None, 0)), compiler_options=AS_USERS)
    return run(jnp.asarray(START), cases)


@pytest.fixture(scope="module")
def compiled():
    return jax.jit(fun)


@pytest.mark.parametrize("name", CASES)
def test_same_as_outside(name, inside, compiled):
    i, x0 = list(CASES).index(name), jnp.asarray(START)
    res = lx.minimize(compiled, x0, CASES[name], jac=True, method=METHOD, maxiter=MAXITER)
    assert inside.success.dtype == bool and bool(inside.success[i]) == res.success
    if name.startswith("a "):
        # Where a run ends that has no end depends on rounding.
        assert not res.success
        return
    if name == "large" and not ROUNDS_ALIKE:
        np.testing.assert_allclose([inside.fun[i], res.fun], CASES[name][-1], rtol=0, atol=1e-6)
        return
    assert Status(int(inside.status[i])) == res.status
    if not (ROUNDS_ALIKE or name == "round"):
        return
    assert int(inside.nit[i]) == res.nit and int(inside.nfev[i]) == res.nfev
    np.testing.assert_allclose(inside.x[i], res.x, atol=1e-7)
    np.testing.assert_allclose(inside.fun[i], res.fun, rtol=1e-12, atol=1e-12)


def test_results_are_nested_arrays(inside):
    assert isinstance(inside, lx.Result) and inside.state.best.x.shape == (len(CASES), 1, 4)
    assert inside.gradient_norm.shape == (len(CASES),) and inside.nit.dtype == jnp.int32
    first = jax.tree.map(lambda leaf: leaf[0], inside)
    dense = first.hess_inv.todense()
    np.testing.assert_allclose(first.hess_inv @ jnp.asarray(START), dense @ START, rtol=1e-6)
    assert dense.shape == (4, 4) and np.all(np.linalg.eigvalsh(dense) > 0.0)
    with pytest.raises(ValueError, match="do not keep fun"):
        first.hessian()


def test_scan_and_names_and_bounds():
    """Each problem starts where the last one ended."""
    target = jnp.asarray([[1.0, 2.0], [3.0, -1.0], [0.5, 0.0]])

    def residual(x, target):
        return jnp.sum((x["a"] - target) ** 2) + x["b"] ** 4, {"from 0": jnp.sum(x["a"] ** 2)}

    def step(x, target):
        res = lx.minimize(
            residual, x, (target,), has_aux=True, bounds=({"a": 0.0}, {"a": 2.5}),
            method=lx.BFGS(), gtol=1e-9, maxiter=100,
        )
        return res.x, (res.x["a"], res.status, res.active["a"], res.aux["from 0"])

    start = {"a": jnp.asarray([0.3, 5.0]), "b": jnp.asarray(0.0)}
    _, (found, status, active, aux) = jax.jit(lambda x: jax.lax.scan(step, x, target))(start)
    np.testing.assert_allclose(found, np.clip(target, 0.0, 2.5), atol=1e-8)
    assert np.all(status == Status.GRADIENT)
    np.testing.assert_array_equal(active, [[0, 0], [1, -1], [0, -1]])
    np.testing.assert_allclose(aux, np.sum(np.asarray(found) ** 2, axis=1))


def test_first_order_rules_and_phases_and_budgets():
    opt = lx.AdamW(lx.schedules.Cosine(0.1, steps=40))
    method = [opt.until(maxiter=20), lx.SGD(0.1)]

    def value(x):
        return jnp.sum((x - 1.0) ** 2)

    inside = jax.jit(lambda x: lx.minimize(value, x, method=method, maxiter=30))(jnp.asarray(START))
    res = lx.minimize(jax.jit(value), jnp.asarray(START), method=method, maxiter=30)
    assert int(inside.status) == res.status == Status.ITERATIONS
    assert int(inside.nit) == res.nit == 30 and int(inside.nfev) == res.nfev
    assert [int(phase.nit) for phase in inside.phases] == [20, 10]
    assert [int(phase.nfev) for phase in inside.phases] == [phase.nfev for phase in res.phases]
    np.testing.assert_allclose(inside.x, res.x, rtol=1e-12)
    np.testing.assert_allclose(inside.phases[0].x, res.phases[0].x, rtol=1e-12)
    assert inside.hess_inv is None


def test_a_state_is_carried_along():
    """Runs in a scan, each of which goes on from the last, are one run."""
    method, target = lx.Adam(lx.schedules.Linear(0.2, 0.01, steps=15)), jnp.asarray([1.0, 2.0])

    def value(x, target):
        return jnp.sum((x - target) ** 4) + jnp.prod(x)

    def run(x, target, state, maxiter=5):
        return lx.minimize(value, x, (target,), method=method, maxiter=maxiter, state=state)

    def step(carry, target):
        res = run(carry[0].x, target, carry[0].state)
        return (res,), res.nit

    first = lx.minimize(jax.jit(value), jnp.zeros(2), (target,), method=method, maxiter=5)
    begun = jax.jit(run)(jnp.zeros(2), target, None)
    last = jax.jit(run)(begun.x, target, begun.state)
    (res,), nit = jax.jit(lambda c, t: jax.lax.scan(step, (c,), t))(last, target[None])
    whole = lx.minimize(jax.jit(value), jnp.zeros(2), (target,), method=method, maxiter=15)
    np.testing.assert_allclose(begun.x, first.x, rtol=1e-14)
    np.testing.assert_allclose(res.x, whole.x, rtol=1e-14)
    assert int(nit[0]) == 5 and int(res.state.progress.earlier[0]) == 10
    with pytest.raises(ValueError, match="state comes from a run of Stepping outside of compiled"):
        jax.jit(run)(first.x, target, first.state)
    with pytest.raises(ValueError, match="state comes from a function that JAX has compiled"):
        run(begun.x, target, begun.state)
    with pytest.raises(ValueError, match=r"state belongs to other variables: .*1, 2.*wanted"):
        jax.jit(run)(jnp.zeros(3), jnp.ones(3), begun.state)
    with pytest.raises(TypeError, match="for a file, the state of a run outside"):
        begun.state.to_saved()


def test_a_run_goes_on_although_two_programs_round_differently(compiled):
    """The start is evaluated on its own, and earlier points in the loop."""
    case, settings = CASES["valley"], {"jac": True, "method": METHOD, "maxiter": MAXITER}
    whole = lx.minimize(compiled, jnp.asarray(START), case, **settings)
    first = lx.minimize(compiled, jnp.asarray(START), case, **{**settings, "maxiter": 7})
    second = lx.minimize(compiled, first.x, case, state=first.state, **settings)
    assert first.nit + second.nit == whole.nit
    np.testing.assert_array_equal(second.x, whole.x)


def test_runs_that_carry_a_state_are_differentiated():
    def value(x, target):
        return jnp.sum((x - target) ** 4 + (x - target) ** 2)

    def total(scale):
        def step(carry, target):
            x, state = carry
            res = lx.minimize(value, x, (scale * target,), method=method, maxiter=60, state=state)
            return (res.x, res.state), jnp.sum(res.x)

        method = lx.SGD(0.3)
        first = lx.minimize(value, jnp.zeros(2), (scale,), method=method, maxiter=60)
        return jnp.sum(jax.lax.scan(step, (first.x, first.state), jnp.arange(1.0, 4.0))[1])

    found, slope = jax.jit(jax.value_and_grad(total))(1.0)
    np.testing.assert_allclose([found, slope], [12.0, 12.0], rtol=1e-6)


def test_a_state_goes_on_from_its_last_point_which_need_not_be_the_best():
    target, method = jnp.ones(2), lx.Adam(0.1)

    def value(x, target):
        return jnp.sum((x - target) ** 2 * jnp.arange(1.0, 3.0))

    def run(x, target, state, maxiter):
        return lx.minimize(value, x, (target,), method=method, maxiter=maxiter, state=state)

    @jax.jit
    def apart(target):
        first = run(jnp.zeros(2), target, None, 20)
        whole = run(jnp.zeros(2), target, None, 40)
        return first, run(first.x, target, first.state, 20), whole

    first, res, whole = apart(target)
    assert float(jnp.max(jnp.abs(first.x - first.state.solver_state.x))) > 1e-3
    np.testing.assert_allclose(res.x, whole.x, rtol=1e-14)


@pytest.mark.thorough
def test_a_state_from_outside_is_continued_inside(compiled):
    case, x0 = CASES["valley"], jnp.asarray(START)
    first = lx.minimize(compiled, x0, case, jac=True, method=METHOD, maxiter=7)

    @functools.partial(jax.jit, compiler_options=AS_USERS)
    def run(x, case, state):
        return lx.minimize(fun, x, tuple(case), jac=True, method=METHOD, state=state)

    # The same function: the run goes on. Another one: it begins with the curvature.
    for steepness in (100.0, 90.0):
        case = (steepness, *case[1:])
        inside = run(first.x, jnp.asarray(case), first.state)
        res = lx.minimize(
            compiled, first.x, case, jac=True, method=METHOD, maxiter=MAXITER, state=first.state
        )
        assert int(inside.status) == res.status == Status.GRADIENT
        if ROUNDS_ALIKE:
            assert int(inside.nit) == res.nit and int(inside.nfev) == res.nfev
        np.testing.assert_allclose(inside.x, res.x, atol=1e-7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"callback": print}, "callback is .* inside a function that JAX .*; wanted it unset"),
        ({"maxtime": 1.0}, "maxtime is 1.0 inside a function that JAX compiles"),
        ({"method": lx.LBFGS().until(maxtime=2.0)}, "maxtime is 2.0 inside a function that JAX"),
        ({"on_error": ValueError}, "on_error is .* inside a function that JAX compiles"),
        ({"progress": True}, "progress is True inside a function that JAX compiles"),
        ({"reproducible": True}, "reproducible is True inside a function that JAX compiles"),
        ({"jac": "2-point"}, "jac is '2-point' inside .*; wanted None, True or a function"),
        ({"method": [lx.Adam().until(maxtime=1.0), lx.LBFGS()]}, "maxtime is 1.0 inside a fun"),
        ({"method": lx.LBFGS(learning_rate=lambda k: 1.0)}, "LBFGS has settings that need the"),
        ({"method": lx.Adam(on_nonfinite="skip")}, "Adam has settings that need the host"),
    ],
)
def test_what_needs_the_host(settings, message):
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda x: lx.minimize(jnp.sum, x, **settings))(jnp.asarray(START))


def test_what_must_be_known_before():
    with pytest.raises(TypeError, match="x0 is an array of numpy inside a function that JAX"):
        jax.jit(lambda s: lx.minimize(lambda x, s: s * jnp.sum(x * x), START, (s,)))(1.0)
    with pytest.raises(TypeError, match="bounds is traced or requires a gradient; wanted const"):
        jax.jit(lambda s: lx.minimize(jnp.sum, jnp.asarray(START), bounds=(s, None)))(1.0)
    with pytest.raises(TypeError, match="l1 is traced or requires a gradient; wanted constants"):
        jax.jit(lambda s: lx.minimize(jnp.sum, jnp.asarray(START), l1=s))(1.0)


@pytest.mark.thorough
def test_a_penalty():
    rng = np.random.default_rng(0)
    matrix, data = jnp.asarray(rng.normal(size=(20, 8))), jnp.asarray(rng.normal(size=20))
    start = {"w": jnp.zeros(8), "c": jnp.asarray(1.0)}

    def misfit(x, scale):
        return 0.5 * jnp.sum((matrix @ x["w"] - scale * data) ** 2) + 0.1 * x["c"] ** 2

    def solve(fun, scale):
        return lx.minimize(fun, start, (scale,), l1={"w": 3.0}, gtol=1e-10)

    inside, res = jax.jit(lambda s: solve(misfit, s))(1.0), solve(jax.jit(misfit), 1.0)
    assert int(inside.status) == res.status == Status.GRADIENT
    assert int(inside.nit) == res.nit and int(inside.nfev) == res.nfev
    np.testing.assert_allclose(inside.x["w"], res.x["w"], atol=1e-12)
    np.testing.assert_array_equal(inside.x["w"] == 0.0, res.x["w"] == 0.0)
    assert 0 < np.sum(res.x["w"] == 0.0) < 8
    np.testing.assert_allclose(inside.fun, res.fun, rtol=1e-12)


def mapped(function, **settings):
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), ("rows",))
    each = jax.sharding.PartitionSpec("rows")
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=each, out_specs=each, **settings))


needs_shard_map = pytest.mark.skipif(
    not (hasattr(jax, "shard_map") and hasattr(jax.lax, "pcast")), reason="an older version of JAX"
)


@needs_shard_map
@pytest.mark.parametrize("check_vma", [True, False])
def test_problems_of_their_own_inside_shard_map(check_vma):
    def solve(target):
        fun = lambda x, t: jnp.sum((x - t) ** 2)    # noqa: E731
        return lx.minimize(fun, jnp.zeros(2), (target[0],), method=lx.SGD(0.4), maxiter=50).x[None]

    def both(target):
        return jax.vjp(solve, target)[0], jax.jacfwd(lambda t: jnp.sum(solve(t)))(target)

    found, slope = mapped(both, check_vma=check_vma)(jnp.asarray([3.0]))
    np.testing.assert_allclose(found, 3.0 + 0.0 * found, atol=1e-6)
    np.testing.assert_allclose(slope, [2.0])


@needs_shard_map
def test_a_sum_over_processes_inside_shard_map():
    def summed(x, target):
        return jax.lax.psum(jnp.sum((x - target) ** 2), "rows")

    def solve(target):
        return lx.minimize(summed, jnp.zeros(2), (target[0],)).x[None]

    # The types of all loops agree.
    mapped(solve).lower(jnp.asarray([3.0]))
    def slope(target):
        return jax.grad(lambda t: jnp.sum(solve(t)))(target)

    with pytest.raises(ValueError, match="rows, and its solution is differentiated inside"):
        mapped(slope).lower(jnp.asarray([3.0]))
    # A process that has ended would leave the others waiting.
    message = "fun communicates over rows, .* wanted, inside jax.shard_map, either no communication"
    with pytest.raises(ValueError, match=message):
        mapped(solve, check_vma=False).lower(jnp.asarray([3.0]))
    with pytest.raises(ValueError, match=message):
        mapped(lambda t: lx.minimize(summed, t + jnp.zeros(2), (t[0],)).x[None]).lower(
            jnp.asarray([3.0])
        )


def test_traced_arrays_that_fun_holds_are_found():
    def solve(s):
        return lx.minimize(lambda x: jnp.sum((x - s) ** 2), jnp.asarray(START)).x

    wanted = jnp.asarray([1.0, 2.0])
    found = jax.vmap(solve)(wanted)
    np.testing.assert_allclose(found, wanted[:, None] + 0.0 * found, atol=1e-7)


def test_no_tracer_outlives_its_trace():
    def found(a):
        return lx.minimize(lambda x, a: jnp.sum((x - a) ** 2), jnp.zeros(2), (a,), method=METHOD).x

    with jax.checking_leaks():
        shape = jax.eval_shape(found, 1.0)
    assert shape.shape == (2,)


def test_a_function_without_a_module():
    def bowl(x):
        return jnp.sum((x - 1.0) ** 2)

    bowl.__module__ = None
    res = lx.minimize(bowl, jnp.zeros(2), method=METHOD)
    np.testing.assert_allclose(res.x, 1.0, atol=1e-8)
