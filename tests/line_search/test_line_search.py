"""The line searches: conditions, budgets, hostile functions, and batches equal to single runs."""

from __future__ import annotations

import doctest
import importlib
import math
import random

import array_api_compat
import numpy as np
import pytest

from lbfgs_xp.arrays import scalars
from lbfgs_xp.line_search import (
    ACCEPTED,
    NAMES,
    SEARCHING,
    STUCK,
    Armijo,
    Bisection,
    Fixed,
    HagerZhang,
    LineSearch,
    MoreThuente,
    Search,
    StrongWolfe,
    line_search,
    rule_of,
)

RULES = [pytest.param(rule, id=name) for name, rule in NAMES.items()]
WOLFE = [Bisection, StrongWolfe, MoreThuente, HagerZhang]
INF, NAN = math.inf, math.nan

# Each maps (functions, step, location) to value and slope, for floats and for arrays, with
# operations that round in the same way for both.
KINDS = {
    "quadratic": lambda fn, a, m: ((a - m) * (a - m), 2.0 * (a - m)),
    "quartic": lambda fn, a, m: (
        (a - m) * (a - m) * (a - m) * (a - m),
        4.0 * (a - m) * (a - m) * (a - m),
    ),
    "rational": lambda fn, a, m: (
        fn.divide(-a, a * a + m),
        fn.divide(a * a - m, (a * a + m) * (a * a + m)),
    ),
    "wiggle": lambda fn, a, m: (
        (a - m) * (a - m) * (0.1 + (a - 2.0 * m) * (a - 2.0 * m)),
        2.0 * (a - m) * (0.1 + (a - 2.0 * m) * (a - 2.0 * m))
        + 2.0 * (a - m) * (a - m) * (a - 2.0 * m),
    ),
    "kink": lambda fn, a, m: (fn.abs(a - m), fn.where(a < m, -1.0 + 0.0 * a, 1.0)),
    "far": lambda fn, a, m: (1e-8 * m * a * (1e-8 * m * a - 2.0), 2e-8 * m * (1e-8 * m * a - 1.0)),
    "near": lambda fn, a, m: (1e8 * m * a * (1e8 * m * a - 2.0), 2e8 * m * (1e8 * m * a - 1.0)),
    "near kink": lambda fn, a, m: (
        fn.abs(1e8 * a - m),
        fn.where(1e8 * a < m, -1e8 + 0.0 * a, 1e8),
    ),
    "domain": lambda fn, a, m: (
        -fn.sqrt(0.5 * m - a) - a,
        fn.divide(0.5, fn.sqrt(0.5 * m - a)) - 1.0,
    ),
    "near domain": lambda fn, a, m: (
        fn.where(1e8 * a < m, -a * (m - 0.5e8 * a), NAN),
        fn.where(1e8 * a < m, 1e8 * a - m, NAN),
    ),
    "wall": lambda fn, a, m: (fn.where(a < 0.3 * m, -a, INF), -1.0 + 0.0 * a),
    "abyss": lambda fn, a, m: (fn.where(a < 0.3 * m, -a, -INF), -1.0 + 0.0 * a),
    "hole": lambda fn, a, m: (
        fn.where((a > 0.3 * m) & (a < 0.6 * m), NAN, (a - m) * (a - m)),
        2.0 * (a - m),
    ),
    "hole at the minimum": lambda fn, a, m: (
        fn.where((a > 0.9 * m) & (a < 1.1 * m), NAN, (a - m) * (a - m)),
        2.0 * (a - m),
    ),
    "bad slope": lambda fn, a, m: (-a, fn.where(a > 0.2 * m, NAN, -1.0 + 0.0 * a)),
    "nowhere": lambda fn, a, m: (fn.where(a > 0.0, NAN, a), -1.0 + 0.0 * a),
    "flat": lambda fn, a, m: (m + 0.0 * a, 0.0 * a - 1e-20),
    "liar": lambda fn, a, m: (a, -1.0 + 0.0 * a),
    "unbounded": lambda fn, a, m: (-m * a, -m + 0.0 * a),
    "steeper": lambda fn, a, m: (-a * a - m * a, -2.0 * a - m),
    "huge": lambda fn, a, m: (1e300 * (a - m) * (a - m) * 1e8, 2e300 * (a - m) * 1e8),
    "tiny": lambda fn, a, m: (1e-300 * (a - m) * (a - m), 2e-300 * (a - m)),
    "drowned": lambda fn, a, m: (1e8 + 1e-10 * (a - m) * (a - m), 2e-10 * (a - m)),
    "ascent": lambda fn, a, m: (a, 1.0 + 0.0 * a),
    "stationary": lambda fn, a, m: (a * a, 2.0 * a),
    "not finite at 0": lambda fn, a, m: (NAN + a, -1.0 + 0.0 * a),
}
SMOOTH = ["quadratic", "quartic", "rational", "wiggle"]
STUCK_AT_ONCE = ["ascent", "stationary", "not finite at 0"]


def function(kind: str, m: float = 1.0):
    """A function of one variable, with its minimiser or its obstacle near m."""
    return lambda a: KINDS[kind](scalars.of(a), a, m)


def decreased(result, c1: float, phi0: float, dphi0: float) -> bool:
    return result.phi <= phi0 + result.alpha * (c1 * dphi0)


# ---- what a rule promises ------------------------------------------------------------------------


@pytest.mark.parametrize("rule", WOLFE)
def test_wolfe_conditions_hold_where_accepted(rule):
    rng = random.Random(0)
    search = rule()
    c1 = getattr(search, "c1", getattr(search, "delta", None))
    c2 = getattr(search, "c2", getattr(search, "sigma", None))
    for _ in range(300):
        phi = function(rng.choice(SMOOTH), 10.0 ** rng.uniform(-2, 2))
        phi0, dphi0 = phi(0.0)
        result = line_search(phi, search, 10.0 ** rng.uniform(-3, 3))
        assert result.success
        assert (result.phi, result.dphi) == phi(result.alpha)
        assert result.dphi >= c2 * dphi0
        near = rule is HagerZhang and result.dphi <= (2 * c1 - 1) * dphi0
        near = near and result.phi <= phi0 + 1e-6 * abs(phi0)
        assert decreased(result, c1, phi0, dphi0) or near
        if rule in (StrongWolfe, MoreThuente):
            assert abs(result.dphi) <= -c2 * dphi0


@pytest.mark.parametrize("rule", [StrongWolfe, MoreThuente])
def test_a_strict_slope_test_is_met(rule):
    rng = random.Random(1)
    for _ in range(200):
        phi = function(rng.choice(SMOOTH[:3]), 10.0 ** rng.uniform(-2, 2))
        result = line_search(
            phi,
            rule(c2=0.01, **({"xtol": 0.0} if rule is MoreThuente else {})),
            10.0 ** rng.uniform(-3, 3),
        )
        assert result.success
        assert abs(result.dphi) <= -0.01 * phi(0.0)[1]


def test_armijo_only_shrinks_and_decreases():
    rng = random.Random(2)
    for _ in range(300):
        kind = rng.choice([*SMOOTH, "kink", "near", "near kink", "domain", "near domain"])
        phi, alpha0 = function(kind, 10.0 ** rng.uniform(-2, 2)), 10.0 ** rng.uniform(-3, 3)
        if not phi(0.0)[1] < 0:
            continue
        result = line_search(phi, Armijo(), alpha0)
        steps = [trial[0] for trial in result.trials]
        assert result.success
        assert decreased(result, 1e-4, *phi(0.0))
        for old, new in zip(steps, steps[1:], strict=False):
            assert 0.0999 * old <= new <= 0.5001 * old


def test_fixed_takes_the_step_it_is_given():
    phi = function("quadratic")
    assert line_search(phi, "fixed", 7.0).alpha == 7.0
    assert line_search(phi, Fixed(0.3), 7.0).alpha == 0.3
    assert line_search(phi, Fixed(0.3), 7.0).success


def test_bisection_ends_on_a_kink_as_lewis_and_overton_do():
    result = line_search(function("kink", 0.3), Bisection(c1=0.1, c2=0.5))
    assert [trial[0] for trial in result.trials] == [1.0, 0.5]
    assert result.success


def hager_zhang_of_the_paper(phi, c: float, rule: HagerZhang) -> list[float]:
    """The trial steps of Hager & Zhang (2005), section 4, as written there: loops without a state.

    If the secant lies outside the bracket, where the paper would halt, this halves the bracket.
    """
    trials: list[float] = []
    known = {0.0: phi(0.0)}
    phi0, dphi0 = known[0.0]
    limit = phi0 + rule.epsilon * abs(phi0)

    class Found(Exception):
        pass

    def look(a):
        if a not in known:
            trials.append(a)
            known[a] = value, slope = phi(a)
            wolfe = value <= phi0 + a * (rule.delta * dphi0)
            near = (2 * rule.delta - 1) * dphi0 >= slope and value <= limit
            if (wolfe or near) and slope >= rule.sigma * dphi0 or len(trials) == 50:
                raise Found
        return known[a]

    def cut(a, b):  # U3
        while True:
            d = (1 - rule.theta) * a + rule.theta * b
            value, slope = look(d)
            if slope >= 0:
                return a, d
            a, b = (d, b) if value <= limit else (a, d)

    def update(a, b, c):
        if not a < c < b:
            return a, b
        value, slope = look(c)
        if slope >= 0:
            return a, c
        return (c, b) if value <= limit else cut(a, c)

    def bracket(c):
        low = 0.0
        while True:
            value, slope = look(c)
            if slope >= 0:
                return low, c
            if value > limit:
                return cut(low, c)
            low, c = c, rule.rho * c

    def secant(a, b):
        da, db = known[a][1], known[b][1]
        return b + db / (db - da) * (a - b) if db != da else NAN

    try:
        a, b = bracket(c)
        while True:
            c = secant(a, b)
            if not a < c < b:
                a, b = update(a, b, a + 0.5 * (b - a))
                continue
            low, high = update(a, b, c)
            if c == high:
                low, high = update(low, high, secant(b, high))
            elif c == low:
                low, high = update(low, high, secant(a, low))
            if high - low > rule.gamma * (b - a):
                low, high = update(low, high, low + 0.5 * (high - low))
            a, b = low, high
    except Found:
        return trials


def hills(m: float):
    """A function that falls at 0 and behind hills that rise above its value at 0, where U3 cuts."""
    return lambda a: (0.3 * a - m * math.sin(5.0 * a / m), 0.3 - 5.0 * math.cos(5.0 * a / m))


def test_hager_zhang_walks_as_the_paper():
    rng = random.Random(4)
    longest = 0
    for _ in range(400):
        rule = HagerZhang(
            delta=0.49, sigma=0.5, epsilon=rng.choice([0.0, 1e-6, 1.0]), alpha_max=1e15,
            theta=rng.choice([0.5, 0.3]),
        )
        kind = rng.choice([*SMOOTH, "far", "near", "near kink", "hills"])
        m, alpha0 = 10.0 ** rng.uniform(-2, 2), 10.0 ** rng.uniform(-3, 3)
        phi = hills(m) if kind == "hills" else function(kind, m)
        result = line_search(phi, rule, alpha0)
        ours = [trial[0] for trial in result.trials]
        theirs = hager_zhang_of_the_paper(phi, alpha0, rule)
        assert ours == (theirs if result.success else theirs[: len(ours)])
        longest = max(longest, len(ours))
    assert longest > 10


# ---- budgets and bad functions -------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_search_ends_within_its_budget(rule, kind):
    for budget in (1, 2, 3, 5, 8, 13, None):
        search = rule() if budget is None else rule(max_evaluations=budget)
        for m in (1.0, 0.37, 12.5):
            for alpha0 in (1e-8, 1e-3, 1.0, 50.0, 1e8):
                phi = function(kind, m)
                result = line_search(phi, search, alpha0)
                steps = [trial[0] for trial in result.trials]
                assert result.evaluations == len(steps) <= search.max_evaluations
                assert all(0.0 < step <= search.alpha_max for step in steps)
                assert len(set(steps)) == len(steps), "a point was asked for twice"
                assert 0.0 <= result.alpha < INF
                if result.success:
                    assert result.alpha == steps[-1]
                    assert math.isfinite(result.phi) and math.isfinite(result.dphi)
                elif kind not in STUCK_AT_ONCE:
                    finite = [t for t in result.trials if all(map(math.isfinite, t))]
                    lowest = min([phi(0.0)[0], *(t[1] for t in finite)])
                    assert result.phi == lowest


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", STUCK_AT_ONCE)
def test_no_descent_is_stuck_at_once(rule, kind):
    result = line_search(function(kind), rule())
    assert not result.success
    assert result.evaluations == 0 and result.trials == []
    assert result.alpha == 0.0


@pytest.mark.parametrize("rule", RULES)
def test_bad_first_steps_are_stuck_at_once(rule):
    for alpha0 in (0.0, -1.0, NAN, INF):
        assert rule().begin(1.0, -1.0, alpha0).status == STUCK


@pytest.mark.parametrize("rule", WOLFE)
def test_steps_grow_by_eight_orders(rule):
    result = line_search(function("far"), rule(), 1.0)
    assert result.success
    assert 1e6 < result.alpha < 3e8


@pytest.mark.parametrize("rule", [*WOLFE, Armijo])
@pytest.mark.parametrize("kind", ["near", "near kink", "near domain"])
def test_steps_shrink_by_eight_orders(rule, kind):
    result = line_search(function(kind), rule(), 1.0)
    assert 0.0 < result.alpha < 3e-8
    assert result.phi < function(kind)(0.0)[0]
    if kind != "near kink" or rule in (Armijo, Bisection):
        assert result.success


@pytest.mark.parametrize("rule", WOLFE)
def test_unbounded_functions_end_at_the_largest_step(rule):
    for kind in ("unbounded", "steeper"):
        search = rule()
        result = line_search(function(kind), search)
        assert not result.success
        assert result.alpha == search.alpha_max
        result = line_search(function(kind), rule(alpha_max=64.0))
        assert result.alpha == 64.0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["domain", "wall", "abyss", "hole", "bad slope"])
def test_bad_regions_do_not_stop_the_descent(rule, kind):
    for alpha0 in (0.01, 0.5, 1.0, 1e3):
        phi = function(kind)
        result = line_search(phi, rule(), alpha0)
        assert result.alpha > 0.0
        if rule is not Fixed:
            assert result.phi < phi(0.0)[0]


@pytest.mark.parametrize("rule", RULES)
def test_a_domain_with_a_minimiser_before_its_end_is_solved(rule):
    # phi(a) = -log(1 - a) - 2a has its pole at 1 and its minimiser at 1/2.
    def phi(a):
        return (-math.log(1 - a) - 2 * a, 1 / (1 - a) - 2) if a < 1 else (NAN, NAN)

    for alpha0 in (1e-3, 0.9, 1.0, 7.0, 1e6):
        result = line_search(phi, rule(), alpha0)
        assert result.success


@pytest.mark.parametrize("rule", RULES)
def test_rows_that_are_done_stay_as_they_are(rule):
    search = rule().begin(1.0, -1.0, 1.0)
    done = search._replace(status=ACCEPTED)
    assert rule().advance(done, 0.0, 0.0) is done

    start = rule().begin(np.ones(3), np.asarray([-1.0, 1.0, -1.0]), np.ones(3))
    batch = start._replace(status=np.asarray([SEARCHING, STUCK, ACCEPTED]))
    after = rule().advance(batch, np.asarray([2.0, NAN, 0.0]), np.asarray([1.0, NAN, 0.0]))
    assert after.evaluations.tolist() == [1, 0, 0]

    def check(old, new):
        if isinstance(old, tuple):
            for a, b in zip(old, new, strict=True):
                check(a, b)
        else:
            np.testing.assert_array_equal(old[1:], new[1:])

    check(batch, after)


# ---- at rounding level ---------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [*WOLFE, Armijo])
def test_slopes_decide_where_values_are_drowned(rule):
    # Around the minimiser 3, phi differs from 1e8 by 1e-9; doubles near 1e8 are 1.5e-8 apart.
    phi = function("drowned", 3.0)
    assert phi(0.0)[0] == phi(3.0)[0] == phi(6.0)[0]
    noise = 1e8 * 4e-16
    for alpha0 in (3.0, 0.1, 30.0):
        result = line_search(phi, rule(), alpha0, noise=noise)
        assert result.success
        if rule is not Armijo:
            assert 0.1 <= result.alpha < 6.0
    strict = line_search(phi, StrongWolfe(c2=1e-3), 1.0, noise=noise)
    assert strict.success and strict.alpha == pytest.approx(3.0, rel=2e-3)
    assert not line_search(phi, StrongWolfe(c2=1e-3), 1.0).success


def test_sufficient_decrease_becomes_the_approximate_wolfe_condition():
    c1 = 0.1
    rule = Armijo(c1=c1)
    for slope in (-1.0, 0.0, 0.7999, 0.8001, 1.0):
        search = rule.begin(5.0, -1.0, 2.0, noise=1e-9)
        search = rule.advance(search, 5.0 + 1e-10, slope)
        assert (search.status == ACCEPTED) == ((2 * c1 - 1) * -1.0 >= slope)


def test_noise_zero_changes_nothing():
    search = Armijo().begin(5.0, -1.0, 2.0)
    assert Armijo().advance(search, 5.0, -1.0).status == SEARCHING


# ---- batches -------------------------------------------------------------------------------------


def rows() -> list[tuple[str, float, float]]:
    rng = random.Random(3)
    rows = [(kind, 1.0, 1.0) for kind in KINDS]
    rows += [
        (rng.choice(list(KINDS)), 10.0 ** rng.uniform(-1, 1), 10.0 ** rng.uniform(-4, 4))
        for _ in range(60)
    ]
    return rows


def batch_function(rows, asarray):
    """All rows as one function of an array of steps, each with its own minimiser."""
    m = asarray([row[1] for row in rows])
    masks = {kind: asarray([row[0] == kind for row in rows]) for kind in {row[0] for row in rows}}

    def phi(a):
        fn = scalars.of(a)
        value = slope = 0.0 * a
        with fn.quiet():
            for kind, mask in masks.items():
                v, s = KINDS[kind](fn, a, m)
                value, slope = fn.where(mask, v, value), fn.where(mask, s, slope)
        return value, slope

    return phi


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("noise", [0.0, 1e-6])
def test_each_row_of_a_batch_is_its_single_search_bit_for_bit(rule, noise):
    table = rows()
    alpha0 = np.asarray([row[2] for row in table])
    batch = line_search(batch_function(table, np.asarray), rule(), alpha0, noise=noise)
    assert batch.alpha.dtype == np.float64
    for i, (kind, m, first) in enumerate(table):
        single = line_search(function(kind, m), rule(), first, noise=noise)
        steps = [float(trial[0][i]) for trial in batch.trials[: single.evaluations]]
        assert steps == [trial[0] for trial in single.trials], kind
        assert batch.alpha[i] == single.alpha
        assert batch.success[i] == single.success
        assert batch.evaluations[i] == single.evaluations
        np.testing.assert_equal(batch.phi[i], single.phi)
        np.testing.assert_equal(batch.dphi[i], single.dphi)


def libraries():
    def strict():
        return pytest.importorskip("array_api_strict").asarray

    def torch():
        library = pytest.importorskip("torch")
        return lambda a: library.asarray(np.asarray(a))

    def jax():
        library = pytest.importorskip("jax")
        library.config.update("jax_enable_x64", True)
        return library.numpy.asarray

    return [pytest.param(f, id=f.__name__) for f in (strict, torch, jax)]


EASY = [row for row in rows() if row[0] in ("quadratic", "quartic", "rational", "kink", "wall")]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("library", libraries())
def test_libraries_agree(rule, library):
    asarray = library()
    easy, all_rows = EASY, rows()
    alpha0 = [row[2] for row in easy]
    ours = line_search(batch_function(easy, asarray), rule(), asarray(alpha0))
    assert type(ours.alpha) is type(asarray(alpha0))
    assert ours.alpha.dtype == asarray(alpha0).dtype
    expected = line_search(batch_function(easy, np.asarray), rule(), np.asarray(alpha0))
    np.testing.assert_allclose(np.asarray(ours.alpha), expected.alpha, rtol=1e-9)
    np.testing.assert_array_equal(np.asarray(ours.evaluations), expected.evaluations)
    # The hostile functions must end too.
    alpha0 = [row[2] for row in all_rows]
    ours = line_search(batch_function(all_rows, asarray), rule(), asarray(alpha0), noise=1e-9)
    assert np.all(np.isfinite(np.asarray(ours.alpha)))


@pytest.mark.parametrize("rule", RULES)
def test_advance_under_jit(rule):
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    search = rule()
    phi = batch_function(EASY, jax.numpy.asarray)
    alpha0 = jax.numpy.asarray([row[2] for row in EASY])

    @jax.jit
    def run(alpha0):
        state = search.begin(*phi(0.0 * alpha0), alpha0)
        return jax.lax.while_loop(
            lambda state: jax.numpy.any(state.status == SEARCHING),
            lambda state: search.advance(state, *phi(state.alpha)),
            state,
        )

    state = run(alpha0)
    expected = line_search(batch_function(EASY, np.asarray), search, np.asarray(alpha0))
    success = np.asarray(state.status == ACCEPTED)
    np.testing.assert_array_equal(success, expected.success)
    np.testing.assert_allclose(np.asarray(state.alpha)[success], expected.alpha[success], rtol=1e-9)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("library", [pytest.param(lambda: np.asarray, id="numpy"), *libraries()])
def test_float32_stays_float32(rule, library):
    asarray = library()
    table = [row for row in rows() if row[0] not in ("huge", "tiny")]
    xp = scalars.of(asarray([1.0])).xp

    def asarray32(values):
        array = asarray(values)
        return xp.astype(array, xp.float32) if array.dtype != xp.bool else array

    alpha0 = asarray32([row[2] for row in table])
    result = line_search(batch_function(table, asarray32), rule(), alpha0, noise=1e-6)
    for array in (result.alpha, result.phi, result.dphi, result.trials[-1][0]):
        assert array.dtype == xp.float32
    assert np.all(np.isfinite(np.asarray(result.alpha)))
    state = rule().begin(alpha0, -alpha0, 1.0)
    after = rule().advance(state, alpha0, -alpha0)
    flat = [a for a in (*state[:-1], *after[:-1])]
    assert {str(a.dtype).split(".")[-1] for a in flat} == {"float32", "int32", "bool"}
    assert all(a.shape == alpha0.shape for a in flat)


def test_the_other_device_of_strict():
    strict = pytest.importorskip("array_api_strict")
    device = strict.Device("device1")
    alpha0 = strict.asarray([0.1, 1.0, 10.0], device=device)
    for rule in NAMES.values():
        search = rule().begin(0.0 * alpha0 + 1.0, 0.0 * alpha0 - 2.0, alpha0)
        for _ in range(4):
            a = search.alpha
            search = rule().advance(search, (a - 1.0) * (a - 1.0), 2.0 * (a - 1.0))
        assert search.alpha.device == search.status.device == device


# ---- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_states_are_named_tuples_and_rules_are_frozen(rule):
    assert isinstance(rule().begin(1.0, -1.0, 1.0), Search)
    assert isinstance(rule(), LineSearch)
    assert rule() == rule() and hash(rule()) == hash(rule())
    with pytest.raises(AttributeError):
        rule().max_evaluations = 3


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bad", [0, 1.5, True, "5", None, INF])
def test_bad_budgets(rule, bad):
    wanted = f"^max_evaluations is {bad!r}; wanted an integer of at least 1$"
    with pytest.raises(ValueError, match=wanted):
        rule(max_evaluations=bad)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("five", [5, 5.0, np.int64(5), np.float32(5.0)])
def test_budgets_of_every_kind(rule, five):
    search = rule(max_evaluations=five, alpha_max=np.int64(7))
    assert type(search.max_evaluations) is int and search.max_evaluations == 5
    assert type(search.alpha_max) is float and search.alpha_max == 7.0


@pytest.mark.parametrize(
    ("rule", "bad"),
    [
        (Fixed, {"alpha": -1.0}),
        (Fixed, {"alpha_max": INF}),
        (Fixed, {"alpha": 2e10}),
        (Fixed, {"alpha": True}),
        (Armijo, {"c1": 0.0}),
        (Armijo, {"c1": "a"}),
        (Armijo, {"alpha_max": None}),
        (Armijo, {"shrink_min": 0.6}),
        (Bisection, {"c1": 0.9, "c2": 0.1}),
        (StrongWolfe, {"c2": 1.0}),
        (StrongWolfe, {"growth": 1.0}),
        (MoreThuente, {"c1": -1.0}),
        (MoreThuente, {"xtol": NAN}),
        (MoreThuente, {"alpha_min": 2.0, "alpha_max": 1.0}),
        (HagerZhang, {"delta": 0.5}),
        (HagerZhang, {"sigma": 0.01}),
        (HagerZhang, {"theta": 1.0}),
        (HagerZhang, {"gamma": 0.0}),
        (HagerZhang, {"rho": 1.0}),
        (HagerZhang, {"epsilon": -1.0}),
        (HagerZhang, {"epsilon": 1j}),
    ],
)
def test_bad_constants_are_named_with_their_value(rule, bad):
    name, value = next(iter(bad.items()))
    with pytest.raises(ValueError, match=f"{name} is {value!r}.*; wanted"):
        rule(**bad)


def test_unknown_rules():
    with pytest.raises(ValueError, match="did you mean 'more_thuente'"):
        line_search(function("quadratic"), "more-thuent")
    with pytest.raises(ValueError, match="line_search is 'zzz'; wanted one of 'fixed'"):
        rule_of("zzz")
    with pytest.raises(TypeError, match="^line_search is 3; wanted a name or a LineSearch object$"):
        rule_of(3)
    with pytest.raises(TypeError, match="^rule is 3; wanted a name or a LineSearch object$"):
        line_search(function("quadratic"), 3)
    assert rule_of("strong_wolfe") == StrongWolfe()


def test_bad_functions():
    with pytest.raises(TypeError, match="phi returned a float; wanted the pair"):
        line_search(lambda a: a, "armijo")
    with pytest.raises(TypeError, match="two real scalars"):
        line_search(lambda a: (a, 1j), "armijo")
    with pytest.raises(TypeError, match="two real scalars"):
        line_search(lambda a: (np.ones(3), 1.0), "armijo")
    with pytest.raises(TypeError, match=r"phi returned the slope -1.0; wanted .* \(2,\)"):
        line_search(lambda a: (a, -1.0), "armijo", np.ones(2))
    with pytest.raises(TypeError, match="alpha0 has dtype int64; wanted real floats"):
        line_search(lambda a: (a, a), "armijo", np.ones(2, dtype=int))
    for alpha0 in (0.0, -1, NAN, INF, True, "1"):
        wanted = f"^alpha0 is {alpha0!r}; wanted a finite number above 0$"
        with pytest.raises(ValueError, match=wanted):
            line_search(function("quadratic"), "armijo", alpha0)


# ---- the scalars ---------------------------------------------------------------------------------


def test_floats_and_arrays_have_the_same_functions():
    floats, arrays = scalars.of(1.0), scalars.of(np.ones(1))
    assert scalars.of(1) is scalars.of(True) is floats is scalars.FLOATS
    assert scalars.of(np.zeros(2)) is arrays
    own = {name for name in vars(floats) if not name.startswith("_")}
    assert own | {"some", "picks", "ordered"} == {n for n in dir(arrays) if n[0] != "_"} - {"xp"}
    values = [0.0, -0.0, 1.5, -2.0, INF, -INF, NAN, 1e308, 5e-324]
    with arrays.quiet():
        for a in values:
            for name in ("abs", "sign", "sqrt", "isfinite"):
                np.testing.assert_array_equal(
                    getattr(arrays, name)(np.asarray([a])), [getattr(floats, name)(a)]
                )
            for b in values:
                for name in ("minimum", "maximum", "divide"):
                    expected = getattr(arrays, name)(np.asarray([a]), np.asarray([b]))
                    np.testing.assert_array_equal([getattr(floats, name)(a, b)], expected)


def test_scalars_in_every_place():
    fn = scalars.of(np.ones(2, dtype=np.float32))
    x = np.asarray([1.0, 5.0], dtype=np.float32)
    for result in (
        fn.minimum(2.0, x),
        fn.maximum(x, 2.0),
        fn.clip(x, 0.0, 2.0),
        fn.where(x > 2.0, x, 0.0),
        fn.where(x > 2.0, 0.0, x),
        fn.full(3.0, x),
        fn.full(np.asarray(3.0), x),
    ):
        assert result.dtype == np.float32 and result.shape == (2,)
    assert fn.full(True, x).dtype == np.bool_ and fn.full(7, x).dtype == np.int32
    assert scalars.FLOATS.every(True) is True


def test_early_exits_are_taken_where_asking_costs_nothing():
    x = np.asarray([1.0, 5.0])
    assert scalars.of(x).every(x > 0) is True and scalars.of(x).every(x > 2.0) is False
    torch = pytest.importorskip("torch")
    x = torch.asarray([1.0, 5.0])
    assert scalars.of(x).every(x > 0) is False


def test_picked_rows_are_those_of_all():
    """For NumPy, `some` and `select` compute only the rows that are needed; the result is the same
    as if all were computed."""
    x = np.linspace(-2.0, 3.0, 11)
    host, plain = scalars.of(x), scalars.Scalars(array_api_compat.array_namespace(x))
    told, old = (x, (2.0 * x, x)), (0.0 * x, (x, x))

    def function(tree):
        a, (b, c) = tree
        return a + 1.0, (b * a, c)

    for mask in (x > 0.5, x > 9.0, x < 9.0):
        found, wanted = (fn.some(mask, function, (told,), old) for fn in (host, plain))
        for a, b in zip((found[0], *found[1]), (wanted[0], *wanted[1]), strict=True):
            np.testing.assert_array_equal(a, b)
        cases = [(mask, lambda: x), (x > 0.0, lambda: -x)]
        np.testing.assert_array_equal(
            host.select(cases, lambda: x * x), plain.select(cases, lambda: x * x)
        )


@pytest.mark.parametrize(
    "module",
    ["arrays.scalars", *(f"line_search.{name}" for name in (*NAMES, "base", "run"))],
)
def test_examples(module):
    result = doctest.testmod(importlib.import_module(f"lbfgs_xp.{module}"))
    assert result.attempted and not result.failed


@pytest.mark.parametrize("rule", NAMES)
def test_trials_that_are_not_finite_in_all_rows(rule):
    """Even if no row has a finite value, each row is the same as its single search."""
    made = rule_of(rule)

    def phi(a):
        return (math.inf, math.inf) if a > 0.3 else ((a - 0.25) ** 2, 2.0 * (a - 0.25))

    def alone(alpha):
        search, seen = made.begin(*phi(0.0), alpha), []
        while search.status == SEARCHING:
            seen.append(search.alpha)
            search = made.advance(search, *phi(search.alpha))
        return seen, search.status

    starts = np.asarray([1.0, 7.0])
    values = np.asarray([phi(0.0)] * 2)
    search = made.begin(values[:, 0], values[:, 1], starts)
    trials = [[], []]
    while (search.status == SEARCHING).any():
        for i in np.flatnonzero(search.status == SEARCHING):
            trials[i].append(float(search.alpha[i]))
        found = np.asarray([phi(float(a)) for a in search.alpha])
        search = made.advance(search, found[:, 0], found[:, 1])
    for i, alpha in enumerate(starts):
        assert (trials[i], int(search.status[i])) == alone(float(alpha))
