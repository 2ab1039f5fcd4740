"""PyTorch: autograd, and CPU tensors whose memory NumPy can use."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from lbfgs_xp.arrays import matrices, torch_implicit, torch_kernels
from lbfgs_xp.arrays.backend import Array, InPlaceBackend, Pairs, check_local


def check_dense(array: Array, what: str) -> None:
    """Refuse a sparse tensor."""
    if array.layout is not torch.strided:
        raise TypeError(
            f"{what} has the layout {array.layout}; wanted a dense tensor, such as "
            f"{what}.to_dense()"
        )


class TorchBackend(InPlaceBackend):
    """See `Backend`.

    meets_sparse : whether a function has had a sparse gradient, which no part of a vector can have.
    """

    differentiates = True
    meets_sparse = False

    def __init__(self, array: Array, what: str = "x0", traced: bool = False):
        check_dense(array, what)
        check_local(array, what)
        if array.is_meta:
            raise TypeError(
                f"{what} is on the device meta, which holds no numbers; wanted a tensor with values"
            )
        super().__init__(array, what, traced)
        self.reads_are_free = array.device.type == "cpu"

    @property
    def cache_size(self) -> int:
        return 2**20 if self.reads_are_free else super().cache_size

    @staticmethod
    def to_host(array: Array) -> np.ndarray:
        return array.detach().cpu().numpy()

    @staticmethod
    def copy(array: Array) -> Array:
        return array.clone()

    def own(self, array: Array) -> Array:
        return array.detach().clone(memory_format=torch.contiguous_format)

    @staticmethod
    def is_dense(array: Array) -> bool:
        return array.layout is torch.strided

    def detach(self, value: Any) -> Any:
        return value.detach() if isinstance(value, torch.Tensor) else value

    def dense(self, array: Array) -> Array:
        return _dense(array)

    def with_dense_gradient(self, array: Array) -> Array:
        return _DenseGradient.apply(array) if self.meets_sparse else array

    def requires_grad_like(self, array: Array, like: Array) -> Array:
        if like.requires_grad and not array.requires_grad:
            array.requires_grad_(True)
        return array

    # --- memory --------------------------------------------------------------------------------

    def memory_key(self, array: Array) -> Any:
        if array.layout is not torch.strided:
            return id(array)
        return array.untyped_storage().data_ptr()

    def is_writable(self, array: Array) -> bool:
        return all(s != 0 or n < 2 for s, n in zip(array.stride(), array.shape, strict=True))

    def flat_view(self, array: Array) -> np.ndarray:
        check_dense(array, "an array")
        array = array.detach()
        if array.is_complex():
            array = torch.view_as_real(array.resolve_conj())
        return array.resolve_neg().numpy().reshape(-1)

    def has_flat_view(self, array: Array) -> bool:
        return (
            self.reads_are_free
            and array.is_contiguous()
            and not (array.is_conj() or array.is_neg())
        )

    def mark_overwritten(self, array: Array) -> None:
        array.detach().reshape(-1)[:0].zero_()

    # --- matrices ------------------------------------------------------------------------------

    def add_outer_to_one(self, factor: float, matrix: Array, u: Array, v: Array) -> Array:
        if not self.has_flat_view(matrix):
            return super().add_outer_to_one(factor, matrix, u, v)
        return self._with_products(factor, matrix, ((u, v), (v, u)))

    def add_products_to_one(
        self, factor: float, matrix: Array, pairs: Pairs, as_written: bool
    ) -> Array:
        if not as_written:
            left, right = (torch.stack(vectors) for vectors in zip(*pairs, strict=True))
            return matrix.addmm_(left.T, right, beta=factor)
        if not self.has_flat_view(matrix):
            return super().add_products_to_one(factor, matrix, pairs, as_written)
        return self._with_products(factor, matrix, pairs)

    def _with_products(self, factor: float, matrix: Array, pairs: Pairs) -> Array:
        view = self.flat_view(matrix).reshape(matrix.shape)
        matrices.add_products(
            factor, view, [(self.flat_view(u), self.flat_view(v)) for u, v in pairs]
        )
        return matrix

    def own_matrices(self, matrix: Array) -> Array:
        return self.own(matrix) if matrix.ndim == 2 else matrix

    # --- differentiation -----------------------------------------------------------------------

    def value_and_gradient(self, evaluate: Callable, fun: Callable, *static: Any) -> Callable:
        return functools.partial(self._gradient, evaluate, fun, *static)

    def _gradient(self, evaluate: Callable, *arguments: Any) -> tuple[Array, Array, Any]:
        try:
            return _gradient(evaluate, *arguments)
        except RuntimeError as error:
            if self.meets_sparse or "sparse" not in str(error):
                raise
        self.meets_sparse = True
        return _gradient(evaluate, *arguments)

    def value_and_gradients(self, compiled: bool, evaluate: Callable, *static: Any) -> Callable:
        return functools.partial(_gradients, evaluate, *static)

    def hessian(self, evaluate: Callable, fun: Callable, *static: Any) -> Callable:
        return functools.partial(_hessian, evaluate, fun, *static)

    def hessian_product(self, evaluate: Callable, fun: Callable, *static: Any) -> Callable:
        return functools.partial(_hessian_product, evaluate, fun, *static)

    def jacobian(self, compiled: bool, evaluate: Callable, *static: Any) -> Callable:
        return functools.partial(_jacobian, evaluate, *static)

    def jacobian_products(self, compiled: bool, evaluate: Callable, *static: Any) -> Callable:
        return functools.partial(_jacobian_products, evaluate, *static)

    def row_gradients(self, compiled: bool, evaluate: Callable, *static: Any) -> Callable:
        return functools.partial(_row_gradients, evaluate, *static)

    def positive_solver(self, matrix: Array, shift: float) -> Callable[[Array], Array] | None:
        matrix = matrix.clone()
        matrix.diagonal().add_(shift)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if failed:
            return None
        return lambda b: torch.cholesky_solve(b[:, None], factor)[:, 0]

    may_vary = staticmethod(torch_implicit.may_vary)
    solution = staticmethod(torch_implicit.solution)

    def pieces(self, vector: Array, sizes: Sequence[int]) -> Sequence[Array]:
        # The gradient of a slice is a whole vector, that of all pieces together one join.
        return vector.split(list(sizes), dim=-1)

    @staticmethod
    def kernels(array: Array) -> Callable | None:
        return torch_kernels.kernels_on(array.device) if array.is_cuda else None

    # --- what the command line shows -----------------------------------------------------------

    @staticmethod
    def samples(library: Any) -> list[tuple[str, Array]]:
        places = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        return [(d, torch.asarray([1.0, 1.0], dtype=torch.float64, device=d)) for d in places]


def _dense(array: Array) -> Array:
    """`array`, which may be sparse, as those of an embedding with sparse=True."""
    return array if array.layout is torch.strided else array.to_dense()


class _DenseGradient(torch.autograd.Function):
    """The identity, whose gradient is dense."""

    @staticmethod
    def forward(ctx: Any, array: Array) -> Array:
        return array.view_as(array)

    @staticmethod
    def backward(ctx: Any, gradient: Array) -> Array:
        return _dense(gradient)


def _gradient(evaluate: Callable, *arguments: Any) -> tuple[Array, Array, Any]:
    _, value, gradient, aux = _record(evaluate, *arguments)
    return value.detach(), _dense(gradient), aux


def _record(
    evaluate: Callable, *arguments: Any, twice: bool = False
) -> tuple[Array, Array, Array, Any]:
    """x, value, gradient and aux; the gradient can be differentiated again if `twice`."""
    *rest, x = arguments
    _refuse_inference_mode("minimize", "jac= a function or True")
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        value, aux = evaluate(*rest, x)
        _check_depends(value, "fun", "x")
        (gradient,) = torch.autograd.grad(
            value.sum(), x, create_graph=twice, allow_unused=True
        )
    if gradient is None:
        raise TypeError(
            "fun returned a value that depends on tensors that require a gradient, but not on x; "
            "wanted a tensor computed from x"
        )
    return x, value, gradient, aux


def _gradients(evaluate: Callable, *arguments: Any) -> tuple[Array, list[Array], Any]:
    *static, leaves, batch = arguments
    _refuse_inference_mode("train", "jac= a function or True")
    with torch.enable_grad():
        leaves = [leaf.detach().requires_grad_(True) for leaf in leaves]
        value, aux = evaluate(*static, leaves, batch)
        _check_depends(value, "loss", "params")
        gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    if all(gradient is None for gradient in gradients):
        raise TypeError(
            "loss uses none of params, so there is nothing to train (a module called directly uses "
            "its own parameters); wanted torch.func.functional_call(module, params, ...) in the "
            "loss, with the names of module.named_parameters()"
        )
    # A parameter that the loss does not use has gradient 0.
    return value.detach(), [
        torch.zeros_like(leaf) if gradient is None else _dense(gradient)
        for leaf, gradient in zip(leaves, gradients, strict=True)
    ], aux


def _check_depends(value: Any, function: str, parameters: str) -> None:
    """Refuse a value that autograd cannot differentiate."""
    if not isinstance(value, torch.Tensor) or not value.requires_grad:
        raise TypeError(
            f"{function} returned a value ({type(value).__name__}) that does not depend on "
            f"{parameters} through torch operations, so autograd finds no gradient; wanted a "
            f"tensor computed from {parameters}, or jac= a function or True"
        )


def _refuse_inference_mode(caller: str, otherwise: str) -> None:
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            f"{caller} was called under torch.inference_mode, which forbids autograd; wanted a "
            f"call outside it, or {otherwise}"
        )


def _hessian(evaluate: Callable, *arguments: Any) -> Array:
    x, _, gradient, _ = _record(evaluate, *arguments, twice=True)
    # A linear function has no second derivative to trace.
    if not gradient.requires_grad:
        return torch.diag_embed(torch.zeros_like(gradient))
    # The caller may be under no_grad.
    with torch.enable_grad():
        rows = [
            torch.autograd.grad(
                gradient[..., i].sum(), x, retain_graph=True, allow_unused=True,
                materialize_grads=True,
            )[0]
            for i in range(x.shape[-1])
        ]
    return torch.stack(rows, dim=-2)


def _hessian_product(evaluate: Callable, *arguments: Any) -> Callable[[Array], Array]:
    x, _, gradient, _ = _record(evaluate, *arguments, twice=True)

    def product(vector: Array) -> Array:
        # A linear function has no second derivative to trace.
        if not gradient.requires_grad:
            return torch.zeros_like(vector)
        # The caller may be under no_grad.
        with torch.enable_grad():
            return torch.autograd.grad(
                gradient, x, vector, retain_graph=True, allow_unused=True, materialize_grads=True
            )[0]

    return product


def _jacobian(evaluate: Callable, *arguments: Any) -> Array:
    *rest, x = arguments
    _refuse_inference_mode("a fit", 'jac= a function, "2-point" or "3-point"')
    x = x.detach()

    def column(unit: Array) -> Array:
        return torch.func.jvp(lambda x: evaluate(*rest, x), (x,), (unit.expand_as(x),))[1]

    with _FORWARD:
        _warm_up()
        units = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        return torch.func.vmap(column, out_dims=-1)(units).detach()


def _jacobian_products(evaluate: Callable, *arguments: Any) -> tuple[Callable, Callable]:
    """See `Backend.jacobian_products`. J v is the derivative by u of (J^T u) . v, because functions
    that differentiate by torch.autograd cannot be differentiated in forward mode."""
    *rest, x = arguments
    _refuse_inference_mode("a fit", 'jac= a function, or solver="dense" with differences')
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        values = evaluate(*rest, x)
        _check_depends(values, "residuals", "x")
        dual = torch.zeros_like(values, requires_grad=True)
    slope: list[Array] = []

    def grad(of: Array, by: Array, along: Array) -> Array:
        # The caller may be under no_grad.
        with torch.enable_grad():
            return torch.autograd.grad(
                of, by, along, retain_graph=True, allow_unused=True, materialize_grads=True,
                is_grads_batched=along.ndim > of.ndim,
            )[0]

    def push(vectors: Array) -> Array:
        if not slope:
            with torch.enable_grad():
                slope.append(torch.autograd.grad(values, x, dual, create_graph=True)[0])
        return grad(slope[0], dual, vectors)

    def pull(vectors: Array) -> Array:
        return grad(values, x, vectors)

    return push, pull


def _row_gradients(evaluate: Callable, *arguments: Any) -> Array:
    *rest, rows, x = arguments
    x = x.detach()

    def one(row: list[Array]) -> Array:
        return torch.func.grad(lambda x: evaluate(*rest, row, x))(x)

    return torch.func.vmap(one)(rows).detach()


# All threads share torch's state of forward-mode differentiation.
_FORWARD = threading.RLock()


@functools.cache
def _warm_up() -> None:
    """Import what forward-mode differentiation needs, without the warnings of its first use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.func.jvp(torch.sin, (torch.ones(()),), (torch.ones(()),))
