"""PyTorch: solutions as differentiable functions of tensors that require a gradient.

A solution is an `autograd.Function`, and so is the solution of a linear system in its backward
pass, which can therefore be differentiated, too. Both are functions of the tensors in args that
require a gradient, and of those that the functions of the user hold, such as the parameters of a
module: these are found by watching one evaluation, and exchanged for others when the gradient is
differentiated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.tree import flatten, map_leaves, unflatten


class _Watched(TorchFunctionMode):
    """Notes the tensors that require a gradient and come from outside.

    known : tensors that do not.
    """

    def __init__(self, known: Sequence[Array]):
        super().__init__()
        # The tensors themselves, too, so that no other gets their id.
        self._known = {id(tensor): tensor for tensor in known}
        self.found: list[Array] = []

    def __torch_function__(
        self, func: Callable, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            if tensor.requires_grad and id(tensor) not in self._known:
                self._known[id(tensor)] = tensor
                self.found.append(tensor)
        out = func(*args, **kwargs)
        self._known.update((id(tensor), tensor) for tensor in _tensors(out))
        return out


class _Exchanged(TorchFunctionMode):
    """Passes other tensors to functions than those that the user's function holds."""

    def __init__(self, held: Sequence[Array], others: Sequence[Array]):
        super().__init__()
        self._others = {id(tensor): other for tensor, other in zip(held, others, strict=True)}

    def __torch_function__(
        self, func: Callable, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return func(*self._exchanged(args), **self._exchanged(kwargs or {}))

    def _exchanged(self, tree: Any) -> Any:
        if isinstance(tree, torch.Tensor):
            return self._others.get(id(tree), tree)
        if type(tree) in (tuple, list):
            return type(tree)(map(self._exchanged, tree))
        if type(tree) is dict:
            return {name: self._exchanged(part) for name, part in tree.items()}
        return tree


def _tensors(tree: Any) -> Iterator[Array]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for part in tree:
            yield from _tensors(part)
    elif isinstance(tree, dict):
        yield from _tensors(list(tree.values()))


class _Solution:
    """A solution, and the tensors on which it depends.

    problem, point : see `lbfgs_xp.run.implicit`.
    joined : inputs -> the arguments of the evaluation.
    inputs : the tensors in args that require a gradient, and those that functions hold.
    """

    def __init__(self, found: Any, joined: Callable, inputs: list[Array]):
        self.problem, self.point, self._joined = found.problem, found.point, joined
        self._count = len(inputs)
        self._is_regular: Any = None
        self.inputs = [*inputs, *self._held(inputs)]

    def _held(self, inputs: list[Array]) -> list[Array]:
        """The tensors that the functions hold, all of them or an error."""
        fresh = [_leaf(tensor) for tensor in inputs]
        x = _leaf(self.point.x)
        watched = _Watched([x, *fresh])
        with torch.enable_grad(), watched:
            self._returned(fresh, x)
        held = watched.found
        others = [_leaf(tensor) for tensor in held]
        with torch.enable_grad(), _Exchanged(held, others):
            out = self._returned(fresh, x)
        if not all(tensor.requires_grad for tensor in out):
            raise TypeError(
                "the gradient that was returned does not depend on x through torch operations, so "
                "the solution cannot be differentiated; wanted a gradient computed from x, or "
                "jac=None"
            )
        known = {id(tensor) for tensor in (x, *fresh, *others)}
        for leaf in _leaves_of_graph(out):
            if id(leaf) not in known:
                raise TypeError(
                    f"fun uses a tensor of shape {tuple(leaf.shape)} that requires a gradient, in "
                    "code that cannot be watched (such as a compiled module), so its derivative "
                    "would be missing; wanted it in args, or without requires_grad"
                )
        return held

    def _returned(self, inputs: Sequence[Array], x: Array) -> tuple[Array, ...]:
        """What the user's functions return for the value and, if they do, for the gradient."""
        evaluation, args = self.problem.evaluation, self._joined(inputs)
        if evaluation.jac is None:
            return evaluation.value_and_aux(args, x)[:1]
        return evaluation(args, x)[1:2]

    def gradient(self, inputs: Sequence[Array], x: Array) -> Array:
        """The gradient of the free variables, which can be differentiated."""
        with self._exchanged(inputs):
            _, gradient, _ = evaluated(
                self.problem.evaluation, self._joined(inputs[: self._count]), x
            )
        return self.problem.free_part(self.point, gradient)

    def _exchanged(self, inputs: Sequence[Array]) -> contextlib.AbstractContextManager[Any]:
        held = self.inputs[self._count :]
        return _Exchanged(held, inputs[self._count :]) if held else contextlib.nullcontext()

    def solve(self, inputs: Sequence[Array], x: Array, b: Array) -> Array:
        """The solution of H u = b, as numbers."""
        x, inputs = _leaf(x), [tensor.detach() for tensor in inputs]
        with torch.enable_grad():
            gradient = self.gradient(inputs, x)

        def product(v: Array) -> Array:
            return _pulled(gradient, [x], v, False)[0]

        with torch.no_grad():
            product = self.problem.completed(product, self.point)
            b = self.problem.free_part(self.point, b)
            if self._is_regular is None:
                self._is_regular = self.problem.is_regular(product, self.point)
            u, solved = self.problem.solve(product, self.point, b)
            good = self._is_regular & solved
            self.problem.check(good.cpu().numpy())
            return torch.where(good[..., None], u, torch.nan)


def _leaf(tensor: Array) -> Array:
    return tensor.detach().requires_grad_(True)


def _leaves_of_graph(out: Any) -> Iterator[Array]:
    """The tensors from which autograd knows that others were computed."""
    nodes = [tensor.grad_fn for tensor in _tensors(out) if tensor.grad_fn is not None]
    yield from (t for t in _tensors(out) if t.requires_grad and t.grad_fn is None)
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if hasattr(node, "variable"):
            yield node.variable
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                nodes.append(following)


def _pulled(
    out: Array, inputs: Sequence[Array], weights: Array, graph: bool
) -> list[Array]:
    """The gradients of weights . out; 0 for inputs that have no influence."""
    if not out.requires_grad:    # a linear function
        return [torch.zeros_like(tensor) for tensor in inputs]
    return list(torch.autograd.grad(
        out, inputs, weights, retain_graph=True, create_graph=graph, allow_unused=True,
        materialize_grads=True,
    ))


def _partial(tensors: Sequence[Array]) -> list[Array]:
    """The tensors as independent variables; still those of the graph, if it is being recorded."""
    if not torch.is_grad_enabled():
        return [_leaf(tensor) for tensor in tensors]
    return [
        tensor.view_as(tensor) if tensor.requires_grad else _leaf(tensor) for tensor in tensors
    ]


class _Root(torch.autograd.Function):
    """The solution x as a function of the inputs."""

    @staticmethod
    def forward(ctx: Any, solution: _Solution, x: Array, *inputs: Array) -> Array:
        x = x.clone()
        ctx.solution = solution
        ctx.save_for_backward(x, *inputs)
        return x

    @staticmethod
    def backward(ctx: Any, change: Array) -> tuple:
        x, *inputs = ctx.saved_tensors
        solution, graph = ctx.solution, torch.is_grad_enabled()
        u = _LinearSolve.apply(solution, change, x, *inputs)
        x, *inputs = _partial([x, *inputs])
        with torch.enable_grad():
            gradient = solution.gradient(inputs, x)
        return None, None, *_pulled(gradient, inputs, -u, graph)


class _LinearSolve(torch.autograd.Function):
    """u with H u = b, as a function of b, x and the inputs."""

    @staticmethod
    def forward(ctx: Any, solution: _Solution, b: Array, x: Array, *inputs: Array) -> Array:
        u = solution.solve(inputs, x, b)
        ctx.solution = solution
        ctx.save_for_backward(u, x, *inputs)
        return u

    @staticmethod
    def backward(ctx: Any, change: Array) -> tuple:
        u, x, *inputs = ctx.saved_tensors
        solution, graph = ctx.solution, torch.is_grad_enabled()
        w = _LinearSolve.apply(solution, change, x, *inputs)
        x, *inputs = _partial([x, *inputs])
        with torch.enable_grad():
            gradient = solution.gradient(inputs, x)
            (image,) = _pulled(gradient, [x], u, True)
        return None, w, *_pulled(image, [x, *inputs], -w, graph)


def evaluated(evaluation: Any, args: tuple, x: Array) -> tuple[Array, Array, Any]:
    """Value, gradient and aux as functions of args and x that can be differentiated."""
    if evaluation.jac is not None:
        return evaluation(args, x)
    value, aux = evaluation.value_and_aux(args, x)
    (gradient,) = torch.autograd.grad(
        value, x, torch.ones_like(value), create_graph=True, allow_unused=True,
        materialize_grads=True,
    )
    return value, gradient, aux


def solution(
    find: Callable, functions: dict[str, Any], x0: Any, args: tuple, carried: tuple
) -> Any:
    """See `Backend.solution`."""
    leaves, structure = flatten(args)
    places = [i for i, leaf in enumerate(leaves) if may_vary(leaf)]

    def with_inputs(inputs: Sequence[Array]) -> tuple:
        given = list(leaves)
        for place, tensor in zip(places, inputs, strict=True):
            given[place] = tensor
        return unflatten(structure, given)

    given = [leaves[i] for i in places]
    found = find(functions, x0, with_inputs([tensor.detach() for tensor in given]), *carried)

    def joined(inputs: Sequence[Array]) -> tuple:
        return (*found.leading, *with_inputs(inputs))

    solution = _Solution(found, joined, given) if torch.is_grad_enabled() else None
    x = _leaf(found.point.x)
    if solution is not None and solution.inputs:
        x = _Root.apply(solution, found.point.x, *solution.inputs)
    with torch.enable_grad():
        out = x, *evaluated(found.problem.evaluation, joined(given), x)
    if solution is None or not solution.inputs:
        out = map_leaves(lambda leaf: leaf.detach() if may_vary(leaf) else leaf, out)
    return found.completed(found.result, *out)


def may_vary(value: Any) -> bool:
    """Whether a value is a tensor that requires a gradient."""
    return isinstance(value, torch.Tensor) and value.requires_grad
