"""JAX: solutions as differentiable functions of traced numbers.

A solution is a function with its own rule for derivatives (`jax.custom_jvp`), which is written with
`jax.lax.custom_linear_solve`. JAX derives everything else from it: reverse mode by transposing the
linear solve, and higher derivatives by differentiating the rule. Under eager transformations the
function is called with values, so the run itself is an ordinary one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend import core

from lbfgs_xp.arrays.backend import Array, is_array
from lbfgs_xp.arrays.jax_mesh import axes_of, is_traced

if hasattr(core, "get_opaque_trace_state"):
    _trace_state: Callable[[], Any] = core.get_opaque_trace_state
else:    # before JAX 0.10; the argument has no effect
    _trace_state = functools.partial(jax.core.get_opaque_trace_state, None)


def is_transformed() -> bool:
    """Whether a transformation of JAX (grad, jit, vmap, ...) is under way."""
    here = _trace_state()
    with jax.core.eval_context():
        return here != _trace_state()


class Hoisted:
    """A function of the user, with the traced arrays that it closes over as its last argument.

    shared : what all functions of a call close over.
    is_compiled : whether the user has compiled the function.
    """

    def __init__(self, function: Callable, shared: list[Any], is_compiled: bool):
        self._function, self._shared, self.is_compiled = function, shared, is_compiled
        self._programs: dict[Any, Any] = {}

    def __call__(self, *arguments: Any) -> Any:
        *arguments, held = arguments    # type: ignore[assignment]
        leaves, structure = jax.tree.flatten(arguments)
        moving = [leaf for leaf in leaves if is_array(leaf)]
        shapes = tuple(jax.typeof(leaf) if is_array(leaf) else repr(leaf) for leaf in leaves)
        key = structure, shapes
        if key not in self._programs:
            self._programs[key] = _program(self._function, arguments)
        closed, nested = self._programs[key]
        places = {id(array): place for place, array in enumerate(self._shared)}
        constants = [
            held.arrays[places[id(each)]] if id(each) in places else each for each in closed.consts
        ]
        return nested(jax.core.eval_jaxpr(closed.jaxpr, constants, *moving))


@jax.tree_util.register_pytree_node_class
class _Held:
    """Arrays among the arguments of a function that belong to no rows of a batch."""

    def __init__(self, arrays: list[Array]):
        self.arrays = arrays

    def tree_flatten(self) -> tuple[tuple, None]:
        return tuple(self.arrays), None

    @classmethod
    def tree_unflatten(cls, _: None, arrays: Any) -> _Held:
        return cls(list(arrays))


def _program(function: Callable, arguments: Any) -> tuple[Any, Callable]:
    """The program of a function for arrays of these shapes, and how its results are nested."""
    leaves, structure = jax.tree.flatten(arguments)
    results: list[Any] = []

    def call(moving: list[Array]) -> list[Array]:
        rest = iter(moving)
        given = [next(rest) if is_array(leaf) else leaf for leaf in leaves]
        out, found = jax.tree.flatten(function(*jax.tree.unflatten(structure, given)))
        # What is no array, like a name in aux, is not traced.
        results[:] = found, [None if is_array(leaf) else leaf for leaf in out]
        return [leaf for leaf in out if is_array(leaf)]

    closed = jax.make_jaxpr(call)([leaf for leaf in leaves if is_array(leaf)])
    found, others = results

    def nested(arrays: list[Array]) -> Any:
        rest = iter(arrays)
        return found.unflatten([next(rest) if leaf is None else leaf for leaf in others])

    return closed, nested


def _hoisted(
    functions: dict[str, Any], compiled: set[str], x0: Any, args: tuple
) -> tuple[dict[str, Any], tuple]:
    """The functions and args, with the traced arrays that the functions close over in args."""
    shared: list[Any] = []
    for function in filter(callable, functions.values()):
        try:
            found = _program(function, (x0, *args))[0].consts
        except Exception:
            # It branches on values, or has an error that the run will raise.
            continue
        shared += [
            each for each in found
            if is_traced(each) and all(each is not other for other in shared)
        ]
    if not shared:
        return functions, args
    return {
        name: Hoisted(function, shared, name in compiled) if callable(function) else function
        for name, function in functions.items()
    }, (*args, _Held(shared))


def solution(
    find: Callable, functions: dict[str, Any], compiled: set[str], x0: Any, args: tuple,
    carried: tuple,
) -> Any:
    """See `Backend.solution`.

    compiled : the names of the functions that the user has compiled.
    """
    functions, args = _hoisted(functions, compiled, x0, args)
    starts, of_start = jax.tree.flatten((x0, carried))
    leaves, of_args = jax.tree.flatten(args)
    inputs = [leaf for leaf in (*starts, *leaves) if is_traced(leaf)]
    if not inputs:
        return find(functions, x0, args, *carried).result
    # The rule outlives this call, and must keep nothing that is traced here.
    starts, leaves = (
        [_Input(leaf.dtype) if is_traced(leaf) else leaf for leaf in each]
        for each in (starts, leaves)
    )
    last: list[Any] = []    # what was found, and how its result is nested if that is traced

    def joined(inputs: list[Array]) -> tuple[Any, list[Any]]:
        rest = iter(inputs)
        start, given = (
            [next(rest) if isinstance(leaf, _Input) else leaf for leaf in each]
            for each in (starts, leaves)
        )
        return jax.tree.unflatten(of_start, start), given

    @jax.custom_jvp
    def root(inputs: list[Array]) -> tuple[Any, list[Array]]:
        (x0, carried), given = joined(inputs)
        found = find(functions, x0, jax.tree.unflatten(of_args, given), *carried)
        results: list[Array] = []
        nested = None
        if any(map(is_traced, jax.tree.leaves(found.point))):
            results, nested = jax.tree.flatten(found.result)
        point = jax.tree.map(jax.numpy.asarray, found.point)
        # What is traced here must not outlive this call.
        last[:] = found if nested is None else found._replace(point=None, result=None), nested
        return point, results

    @root.defjvp
    def rule(primals: tuple, tangents: tuple) -> tuple[Any, Any]:
        (inputs,), (changes,) = primals, tangents
        out = root(inputs)
        point, (found, nested) = out[0], last
        # The start has no influence on the solution.
        given, moves = joined(inputs)[1], joined(changes)[1]
        before = jax.tree.leaves(found.leading)
        given, moves = [*before, *given], [*before, *moves]
        moving = tuple(
            len(before) + i for i, leaf in enumerate(leaves)
            if isinstance(leaf, _Input) and jax.numpy.issubdtype(leaf.dtype, jax.numpy.inexact)
        )
        structure = jax.tree.structure((*found.leading, *jax.tree.unflatten(of_args, leaves)))
        prepare: Any = functools.partial
        if found.problem.compiled and nested is None:
            prepare = found.problem.space.backend.jit
        about = found.problem, structure, moving
        arguments = [0.0 if i in moving else leaf for i, leaf in enumerate(given)], point
        inputs, changes = ([each[i] for i in moving] for each in (given, moves))
        regular = prepare(_is_regular, *about)(*_still((*arguments, inputs)))
        change = prepare(_change, *about)(*arguments, inputs, changes)
        zero = jax.tree.map(jax.custom_derivatives.zero_from_primal, out)
        moved = zero[0]._replace(x=change * _one_or_nan(found.problem, regular, point))
        return out, (moved, zero[1])

    point, results = root(inputs)
    found, nested = last
    result = found.result if nested is None else nested.unflatten(results)
    evaluated = found.problem.evaluation((*found.leading, *args), point.x)
    return found.completed(result, point.x, *evaluated)


class _Input:
    """The place of a traced array among the arguments."""

    def __init__(self, dtype: Any):
        self.dtype = dtype


def _linearized(
    problem: Any, structure: Any, moving: tuple[int, ...], fixed: list[Any], point: Any,
    inputs: list[Array],
) -> tuple[Callable, Callable]:
    """The gradient of the free variables as a function of the inputs, and the products with the
    Hessian."""

    def gradient(inputs: list[Array], x: Array) -> Array:
        leaves = list(fixed)
        for place, array in zip(moving, inputs, strict=True):
            leaves[place] = array
        _, found, _ = problem.evaluation(structure.unflatten(leaves), x)
        return problem.free_part(point, found)

    _, product = jax.linearize(functools.partial(gradient, inputs), point.x)
    return (lambda inputs: gradient(inputs, point.x)), problem.completed(product, point)


def _is_regular(
    problem: Any, structure: Any, moving: tuple[int, ...], fixed: list[Any], point: Any,
    inputs: list[Array],
) -> Array:
    _, product = _linearized(problem, structure, moving, fixed, point, inputs)
    return problem.is_regular(product, point)


def _change(
    problem: Any, structure: Any, moving: tuple[int, ...], fixed: list[Any], point: Any,
    inputs: list[Array], changes: list[Array],
) -> Array:
    """The derivative of x along changes of the inputs."""
    gradient, product = _linearized(problem, structure, moving, fixed, point, inputs)
    _, force = jax.jvp(gradient, (inputs,), (changes,))
    if axes := axes_of((fixed, inputs)) - axes_of(force):
        # To JAX, the solution of a system differs wherever anything in it does.
        raise ValueError(
            f"fun communicates over {', '.join(sorted(map(str, axes)))}, and its solution is "
            "differentiated inside jax.shard_map; wanted jax.shard_map inside fun, and the "
            "minimization outside of it"
        )
    # What shapes the way to the solution has no part in its derivatives.
    known = _still(point)

    def solve(product: Callable, b: Array) -> Array:
        solution, solved = problem.solve(product, known, b)
        return jax.numpy.where(solved[..., None], solution, jax.numpy.nan)

    return jax.lax.custom_linear_solve(product, -force, solve, symmetric=True)


def _one_or_nan(problem: Any, regular: Array, point: Any) -> Array:
    """A factor of derivatives (..., 1): 1, or nan where there are none, which `problem` says."""
    success, one = _still(point.success), jax.numpy.ones((), point.x.dtype)
    factor = jax.numpy.where(regular, one, jax.numpy.nan)[..., None]
    if not is_traced(regular):
        problem.check(np.asarray(regular))
        return factor

    def on_host(regular: Any, success: Any, one: Any) -> np.ndarray:
        problem.warn(np.asarray(regular), np.asarray(success))
        return np.ones_like(one)

    def said() -> Array:
        return jax.pure_callback(on_host, one, regular, success, one, vmap_method="broadcast_all")

    return factor * jax.lax.cond(jax.numpy.all(regular & success), lambda: one, said)


@jax.custom_jvp
def without_derivative(array: Array, x: Array) -> Array:
    """The array, whose derivatives are nan wherever x has any."""
    return array


@without_derivative.defjvp
def _no_derivative(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    array, _ = primals

    def nan(_: Any, change: Array) -> Array:
        return jax.numpy.where(change == 0.0, 0.0, jax.numpy.nan)

    # The solution of a system, because 0 has to stay 0 in the other direction, too.
    change = jax.lax.custom_linear_solve(
        lambda each: each, jax.numpy.sum(tangents[1]), nan, symmetric=True
    )
    return array, jax.numpy.broadcast_to(change.astype(array.dtype), array.shape)


def _still(tree: Any) -> Any:
    """The tree as constants."""
    return jax.tree.map(
        lambda leaf: jax.lax.stop_gradient(leaf) if is_traced(leaf) else leaf, tree
    )
