"""optax as its best users run it: the whole update, and the whole loop, compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def adam_step(x: Any, g: Any) -> Callable[[], Any]:
    """One step of Adam along g per call, in the memory of x."""
    import jax
    import optax

    opt = optax.adam(1e-3)
    held = [x, opt.init(x)]

    def update(x: Any, state: Any, g: Any) -> Any:
        updates, state = opt.update(g, state, x)
        return optax.apply_updates(x, updates), state

    compiled = jax.jit(update, donate_argnums=(0, 1))

    def step() -> Any:
        held[:] = compiled(held[0], held[1], g)
        return held[0]

    return step


def lbfgs_to_the_end(
    fun: Callable[[Any], Any], memory_size: int, gtol: float, most: int
) -> Callable[[Any], tuple[Any, Any, Any]]:
    """The function from x0 to x, the largest component of the gradient and the iterations made.

    It runs L-BFGS until that component is at most gtol, or for `most` iterations.
    """
    import jax
    import jax.numpy as jnp
    import optax

    solver = optax.lbfgs(memory_size=memory_size)
    value_and_gradient = optax.value_and_grad_from_state(fun)

    def norm(state: Any) -> Any:
        return jnp.max(jnp.abs(optax.tree_utils.tree_get(state, "grad")))

    def step(carry: Any) -> Any:
        x, state, count = carry
        value, gradient = value_and_gradient(x, state=state)
        updates, state = solver.update(
            gradient, state, x, value=value, grad=gradient, value_fn=fun
        )
        return optax.apply_updates(x, updates), state, count + 1

    def unfinished(carry: Any) -> Any:
        _, state, count = carry
        return (count == 0) | ((norm(state) > gtol) & (count < most))

    def solve(x: Any) -> tuple[Any, Any, Any]:
        x, state, count = jax.lax.while_loop(unfinished, step, (x, solver.init(x), 0))
        return x, norm(state), count

    return solve
