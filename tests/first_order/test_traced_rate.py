"""Learning rates that JAX traces: compiled, mapped over and differentiated, as those of optax."""

from __future__ import annotations

from typing import Any

import pytest

import lbfgs_xp as lx

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
jnp = jax.numpy

RATES = (0.01, 0.03)
PAIRS = {
    "Adam": (lx.Adam, optax.adam),
    "SGD": (lambda r: lx.SGD(r, momentum=0.9), lambda r: optax.sgd(r, momentum=0.9)),
    "RAdam": (lx.RAdam, optax.radam),
    "schedule": (
        lambda r: lx.Adam(optax.cosine_decay_schedule(r, 50)),
        lambda r: optax.adam(optax.cosine_decay_schedule(r, 50)),
    ),
    "function": (
        lambda r: lx.Adam(lambda step: r * 0.9**step),
        lambda r: optax.adam(lambda step: r * 0.9**step),
    ),
    "constant function": (lambda r: lx.Adam(lambda step: r), optax.adam),
}


def loss_after(update: Any, start: Any) -> Any:
    def step(carry: Any, _: Any) -> Any:
        return update(*carry), None

    x = jax.lax.scan(step, start, None, length=20)[0][0]
    return jnp.sum(x**2)


def ours(make: Any, rate: Any) -> Any:
    opt, x = make(rate), jnp.asarray([1.0, -2.0, 3.0])
    return loss_after(lambda x, state: opt.update(x, jnp.sin(x), state), (x, opt.init(x)))


def of_optax(make: Any, rate: Any) -> Any:
    opt, x = make(rate), jnp.asarray([1.0, -2.0, 3.0])

    def update(x: Any, state: Any) -> Any:
        step, state = opt.update(jnp.sin(x), state, x)
        return optax.apply_updates(x, step), state

    return loss_after(update, (x, opt.init(x)))


@pytest.mark.parametrize("name", PAIRS)
def test_compiled_and_mapped(name: str) -> None:
    here, there = PAIRS[name]
    rates = jnp.asarray(RATES)
    wanted = jax.vmap(lambda rate: of_optax(there, rate))(rates)
    mapped = jax.vmap(lambda rate: ours(here, rate))
    for run in (mapped, jax.jit(mapped)):
        assert jnp.allclose(run(rates), wanted, rtol=1e-6)
    assert jnp.allclose(jax.jit(lambda rate: ours(here, rate))(rates[0]), wanted[0], rtol=1e-6)


@pytest.mark.parametrize("name", PAIRS)
def test_differentiated(name: str) -> None:
    here, _ = PAIRS[name]
    slope = jax.grad(lambda rate: ours(here, rate))(jnp.asarray(0.02))
    lower, upper = (ours(here, jnp.asarray(0.02 + step)) for step in (-1e-3, 1e-3))
    assert jnp.allclose(slope, (upper - lower) / 2e-3, rtol=0.05)


def test_outside_loops() -> None:
    def after(rate: Any) -> Any:
        opt, x = lx.Adam(rate), jnp.ones(2)
        state = opt.init(x)
        for _ in range(3):
            x, state = opt.update(x, x, state)
        return x[0]

    # While gradients keep their sign, Adam's first steps are as long as the rate.
    assert jax.grad(after)(1e-3) == pytest.approx(-3.0, rel=1e-2)
    ends = jax.vmap(after)(jnp.asarray([1e-3, 1e-2]))
    assert jnp.allclose(ends, jnp.asarray([0.997, 0.97]), rtol=1e-3)


@pytest.mark.parametrize("make", [
    lambda rate: lx.LBFGS(learning_rate=rate), lambda rate: lx.schedules.Cosine(rate, steps=10),
])
def test_where_it_must_be_known(make: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="learning_rate is a traced number, whose"):
        jax.jit(lambda rate: make(rate) and rate)(0.1)


@pytest.mark.parametrize(("name", "value"), [("gtol", 1e-3), ("maxiter", 3)])
def test_settings_of_a_run_must_be_known(name: str, value: Any) -> None:
    def solve(value: Any) -> Any:
        return lx.minimize(lambda x: jnp.sum(x**2), jnp.ones(2), **{name: value}).x

    with pytest.raises(ValueError, match=f"{name} is a traced number, whose value only"):
        jax.jit(solve)(value)
