"""The states of runs as arguments and results of functions that JAX compiles.

Programs know a state in one form only: that of a batch, whose numbers are arrays. One problem is a
batch of one.
"""

from __future__ import annotations

from typing import Any

from lbfgs_xp.arrays.backend import Backend, is_array
from lbfgs_xp.arrays.pending import now
from lbfgs_xp.arrays.scalars import map_tuple
from lbfgs_xp.arrays.tree import flatten, unflatten
from lbfgs_xp.result import State


def keep_states(backend: Backend) -> None:
    """Let compiled functions take and return states."""
    backend.keep_node(State, _parts, _joined)


def _parts(state: State) -> tuple[tuple, tuple]:
    state = for_programs(state)
    arrays = state.solver_state, state.best, state.aux, state.progress
    return arrays, (state.solver, state.x_scale)


def _joined(constants: tuple, arrays: tuple) -> State:
    (solver, x_scale), (solver_state, best, aux, progress) = constants, arrays
    return State(solver, None, solver_state, best, aux, progress=progress, x_scale=x_scale)


def for_programs(state: State) -> State:
    """The state in the form that programs know."""
    space, solver = state.space, state.solver
    if space is None:
        return state
    inner = state.solver_state
    if not space.batched:
        inner = solver.as_row(space, inner)
    if inner is None:
        raise ValueError(
            f"state comes from a run of {type(solver).__name__} outside of compiled functions "
            "and has no form inside (as with bounds, l1, a schedule or a first-order rule); wanted "
            "the state of a run inside"
        )
    xp, backend = space.xp, space.backend
    kinds = {bool: xp.bool, int: xp.int32, float: backend.dtype}

    def lifted(part: Any) -> Any:
        if part is None:
            return None
        if not is_array(part):
            number = now(part)
            kind = next(kind for kind in kinds if isinstance(number, kind))
            return xp.full((1,), kind(number), dtype=kinds[kind])
        array = xp.asarray(part)
        if xp.isdtype(array.dtype, "real floating"):
            array = xp.astype(array, backend.dtype)
        return array if space.batched else array[None, ...]

    inner, best = map_tuple(lifted, inner), map_tuple(lifted, state.best)
    if solver.rescales:
        inner = solver.in_units(space, inner)
    leaves, structure = flatten(state.aux)
    aux = unflatten(structure, [lifted(leaf) if is_array(leaf) else leaf for leaf in leaves])
    progress = map_tuple(lifted, state.progress)
    return State(solver, None, inner, best, aux, progress=progress, x_scale=state.x_scale)
