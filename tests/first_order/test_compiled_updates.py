"""Updates within compiled functions of JAX take the steps that they take outside."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import schedules
from lbfgs_xp.first_order import NAMES, update

jax = pytest.importorskip("jax")
jnp = jax.numpy

# Those whose numbers depend on earlier ones agree to rounding, all others to the bit.
OPTIMIZERS = [
    lx.AdamW(schedules.Cosine(0.1, 10)),
    lx.SGD(0.1, momentum=0.9, clip_norm=0.3),
    lx.NAdam(1e-2),
    lx.RAdam(0.1),
    lx.SGD(0.1, labels=str, groups={"b": {"learning_rate": 0.3}}),
]


def start() -> dict[str, Any]:
    return {"a": jnp.ones(3), "b": jnp.asarray([[2.0, 1.0]])}


def gradient(w: Any) -> Any:
    return {name: leaf - 0.5 for name, leaf in w.items()}


def loss(w: Any) -> Any:
    return sum(jnp.sum((leaf - 0.5) ** 2) for leaf in w.values())


@pytest.mark.parametrize("opt", OPTIMIZERS, ids=lambda opt: type(opt).__name__)
def test_jit_and_scan(opt: Any) -> None:
    def step(carry: Any, _: Any) -> Any:
        w, state = carry
        return opt.update(w, gradient(w), state), None

    w, state = start(), opt.init(start())
    (scanned, last), _ = jax.lax.scan(step, (w, state), None, length=6)
    for _ in range(6):
        w, state = opt.update(w, gradient(w), state)
    for name, leaf in w.items():
        rounding = 0.0 if not opt.carried() else 4e-16
        np.testing.assert_allclose(scanned[name], leaf, rtol=rounding, atol=0.0)
    # The state can be used outside.
    more, _ = opt.update(scanned, gradient(scanned), last)
    here, _ = opt.update(w, gradient(w), state)
    np.testing.assert_allclose(more["a"], here["a"], rtol=1e-12)
    assert int(last.step) == state.step == 6


def test_a_rate_that_depends_on_values() -> None:
    opt = lx.SGD(schedules.ReduceOnPlateau(0.1, patience=1, threshold=0.5))
    w, state = start(), opt.init(start())
    compiled = jax.jit(lambda w, s: opt.update(w, gradient(w), s, value=loss(w)))
    v, other = w, state
    for _ in range(8):
        w, state = compiled(w, state)
        v, other = opt.update(v, gradient(v), other, value=float(loss(v)))
    np.testing.assert_array_equal(w["a"], v["a"])
    assert float(state.plateaus[0].learning_rate) == other.plateaus[0].learning_rate < 0.1


RULES = [rule() for name, rule in NAMES.items() if name != "gradient_descent"]
MORE = [
    lx.AdamW(schedules.Sequence((schedules.Cosine(0.1, 6000, warmup_steps=9), 0.01), (6000,))),
    lx.SGD(schedules.Product((schedules.OneCycle(0.1, 9000), schedules.StepDecay(1.0, 700)))),
    lx.SGD(schedules.ReduceOnPlateau(0.1, patience=1)),
    lx.SGD(lambda step: jnp.where(step < 5000, 0.1, 0.01)),
]


def steps_of(opt: Any) -> Any:
    """Four steps in a program."""

    def step(carry: Any, _: Any) -> Any:
        w, state = carry
        return opt.update(w, gradient(w), state, value=loss(w)), None

    return lambda w, state: jax.lax.scan(step, (w, state), None, length=4)[0]


@pytest.mark.parametrize("opt", RULES + MORE, ids=lambda opt: type(opt).__name__)
def test_steps_beyond_the_table_are_computed_in_the_program(opt: Any) -> None:
    w, state = opt.update(start(), gradient(start()), opt.init(start()))
    state = state._replace(step=update._TABULATED[True] - 2)
    run = steps_of(opt)
    assert "callback" not in str(jax.make_jaxpr(run)(w, state))
    there, _ = jax.jit(run)(w, state)
    for _ in range(4):
        w, state = opt.update(w, gradient(w), state, value=float(loss(w)))
    for name, leaf in w.items():
        np.testing.assert_allclose(there[name], leaf, rtol=1e-13, atol=0.0)


def test_the_rule_of_a_user_is_computed_on_the_host(monkeypatch: Any) -> None:
    monkeypatch.setitem(update._TABULATED, False, 2)

    @dataclasses.dataclass(frozen=True)
    class Slower(lx.SGD):
        def numbers(self, t: int, rate: float, carried: tuple) -> tuple:
            # In a program, an integer would overflow.
            return (rate / t**12, 1.0), carried

    opt, w = Slower(0.1), start()
    state = opt.init(w)._replace(step=40)
    there, _ = jax.jit(steps_of(opt))(w, state)
    for _ in range(4):
        w, state = opt.update(w, gradient(w), state)
    np.testing.assert_array_equal(there["a"], w["a"])


def test_a_whole_training_is_one_function_beyond_the_steps_that_are_constants(
    monkeypatch: Any,
) -> None:
    monkeypatch.setitem(update._TABULATED, False, 3)
    # Not a number above 0 at step 7, which no run reaches.
    opt = lx.AdamW(lambda step: 0.1 / (7 - step))

    def train(w: Any) -> Any:
        def step(carry: Any, _: Any) -> Any:
            w, state = carry
            return opt.update(w, gradient(w), state), None

        return jax.lax.scan(step, (w, opt.init(w)), None, length=6)[0]

    v, state = start(), opt.init(start())
    w, last = jax.jit(train)(start())
    for _ in range(6):
        v, state = opt.update(v, gradient(v), state)
    np.testing.assert_array_equal(w["a"], v["a"])
    assert int(last.step) == 6
    each = jax.vmap(lambda a: train({**start(), "a": a})[0]["a"])(jnp.ones((2, 3)))
    np.testing.assert_allclose(each, [v["a"], v["a"]], rtol=1e-12)
    # What a compiled function returned is a state like any other.
    again = [opt.update(w, gradient(w), each._replace(step=5))[0] for each in (last, state)]
    np.testing.assert_array_equal(again[0]["b"], again[1]["b"])


def test_what_cannot_be_compiled() -> None:
    opt = lx.Adam(on_nonfinite="skip")
    state = opt.init(start())
    with pytest.raises(TypeError, match='on_nonfinite is .skip.; wanted "ignore" in a compiled'):
        jax.jit(opt.update)(start(), gradient(start()), state)
    with pytest.raises(ValueError, match=r"grads\.a is .*; wanted"):
        jax.jit(lx.Adam().update)(
            start(), {**gradient(start()), "a": jnp.ones(2)}, lx.Adam().init(start())
        )
