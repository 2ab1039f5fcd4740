"""The table of docs/jax.md that says what runs where: each of its cells is tried."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx

PAGE = Path(__file__).parents[2] / "docs" / "jax.md"
# The numbers on which each problem depends.
T = [0.5, 2.0]
START = [0.0, 0.0]
# What says that a call is refused, or that its result has no gradient.
REFUSED = "is traced|JAX transforms|does not require grad"
# Where programs compile for several seconds each, a plain run stands for the others.
LONG = [f"`minimize` with `{name}`" for name in ("bounds", "l1", "batched=True")]


class Library:
    """An array library, and what a call needs there."""

    def __init__(self, name: str, differentiable: bool = False):
        self.xp = pytest.importorskip({"jax": "jax.numpy"}.get(name, name))
        self.has_gradients = name != "numpy"
        self.differentiable = {"differentiable": True} if differentiable else {}

    def array(self, numbers: Any) -> Any:
        return self.xp.asarray(numbers, dtype=self.xp.float64)

    def gradient(self, gradient: Callable) -> dict[str, Any]:
        """The argument `jac` where the library has no gradients."""
        return {} if self.has_gradients else {"jac": gradient}


def squares(x: Any, t: Any) -> Any:
    return 0.5 * ((x - t) ** 2).sum(-1)


def gradient(x: Any, t: Any) -> Any:
    return x - t


def minimize(lib: Library, t: Any, **more: Any) -> Any:
    settings = {"method": lx.LBFGS(memory_size=2), **lib.gradient(gradient), **lib.differentiable}
    return lx.minimize(squares, lib.array(START), (t,), **settings, **more).x


def within_bounds(lib: Library, t: Any) -> Any:
    return minimize(lib, t, bounds=(None, 1.0))


def with_l1(lib: Library, t: Any) -> Any:
    return minimize(lib, t, l1=0.25)


def many(lib: Library, t: Any) -> Any:
    x0 = lib.array([START, START])
    settings = {**lib.gradient(gradient), **lib.differentiable}
    return lx.minimize(squares, x0, (t[None],), batched=True, **settings).x[1, ...]


def least_squares(lib: Library, t: Any) -> Any:
    return lx.least_squares(gradient, lib.array(START), (t,), **lib.differentiable).x


def curve_fit(lib: Library, t: Any) -> Any:
    x = lib.array([1.0, 2.0, 3.0])

    def line(x: Any, a: Any, b: Any) -> Any:
        return a * x + b

    return lx.curve_fit(line, x, t[0] * x + t[1], START, **lib.differentiable).x


def first_order(lib: Library, t: Any) -> Any:
    opt, w = lx.SGD(1.0), lib.array(START)
    return opt.update(w, w - t, opt.init(w))[0]


def train(lib: Library, t: Any) -> Any:
    def loss(w: Any, batch: Any) -> Any:
        return 0.5 * ((w - batch) ** 2).sum(-1).mean()

    def slopes(w: Any, batch: Any) -> Any:
        return loss(w, batch), (w - batch).mean(0)

    given = {"jac": True} if not lib.has_gradients else {}
    return lx.train(
        loss if lib.has_gradients else slopes, lib.array(START), t[None, :], method=lx.SGD(1.0),
        epochs=1, **given,
    ).params


def constrained(lib: Library, t: Any) -> Any:
    settings = lib.gradient(gradient)
    if settings:
        settings["equality_jac"] = lambda x, t: np.ones((1, 2))
    return lx.augmented_lagrangian(
        squares, lib.array(START), (t,), equality=lambda x, t: x.sum(-1)[None] - 2.5, **settings
    ).x


class Alone(lx.distributed.Engine):
    """A team of one process."""

    rank, size = 0, 1

    def sum(self, array: Any) -> Any:
        return array

    def gather(self, data: bytes) -> list[bytes]:
        return [data]


def distributed(lib: Library, t: Any) -> Any:
    return minimize(lib, t, distributed=Alone())


EXAMPLES: dict[str, Callable[[Library, Any], Any]] = {
    "`minimize`": minimize,
    "`minimize` with `bounds`": within_bounds,
    "`minimize` with `l1`": with_l1,
    "`minimize` with `batched=True`": many,
    "`minimize` with `distributed`": distributed,
    "`least_squares`": least_squares,
    "`curve_fit`": curve_fit,
    "`opt.init` and `opt.update`": first_order,
    "`train`": train,
    "`quadratic_penalty`, `augmented_lagrangian`": constrained,
}


def rows_of_page() -> list[list[str]]:
    """The cells of the table, the first row of which is its head."""
    section = PAGE.read_text().partition("## What runs where")[2]
    table = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert table is not None
    lines = [line for line in table[0].splitlines() if "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def in_program(transform: str) -> Callable:
    """How an example runs in a transformation of JAX: its solutions for t."""

    def run(example: Callable) -> Any:
        lib = Library("jax")
        import jax

        t = lib.array(T)
        if transform == "vmap":
            return jax.vmap(lambda t: example(lib, t))(lib.array([T, T]))[1]
        if transform == "jit":
            return jax.jit(lambda t: example(lib, t))(t)
        slopes = jax.jacrev(lambda t: example(lib, t))(t)
        np.testing.assert_allclose(slopes, np.diag(slope(example)), atol=1e-6)
        return example(lib, t)

    return run


def from_python(library: str) -> Callable:
    def run(example: Callable) -> Any:
        lib = Library(library)
        return example(lib, lib.array(T))

    return run


def differentiated_by_torch(example: Callable) -> Any:
    lib = Library("torch", differentiable=True)
    t = lib.array(T).requires_grad_()
    x = example(lib, t)
    x.sum().backward()
    np.testing.assert_allclose(t.grad, slope(example), atol=1e-6)
    return x.detach()


COLUMNS: dict[str, Callable] = {
    "NumPy, CuPy, others": from_python("numpy"),
    "PyTorch": from_python("torch"),
    "JAX": from_python("jax"),
    "in `jax.jit`": in_program("jit"),
    "in `jax.vmap`": in_program("vmap"),
    "derivatives in PyTorch": differentiated_by_torch,
    "derivatives in JAX": in_program("grad"),
}


def solution(example: Callable) -> list[float]:
    """The solution for `T`."""
    return {within_bounds: [0.5, 1.0], with_l1: [0.25, 1.75]}.get(example, T)


def slope(example: Callable) -> list[float]:
    """The derivative of each number of the solution by its number in `T`."""
    return [1.0, 0.0] if example is within_bounds else [1.0, 1.0]


def cells() -> list[Any]:
    (_, *columns), *rows = rows_of_page()
    return [
        pytest.param(
            name, column, cell, id=f"{name}-{column}",
            marks=[pytest.mark.thorough] * (name in LONG and column in list(COLUMNS)[3:5]),
        )
        for name, *row in rows for column, cell in zip(columns, row, strict=True)
    ]


def test_the_table_is_complete() -> None:
    head, *rows = rows_of_page()
    assert head[1:] == list(COLUMNS)
    assert [row[0] for row in rows] == list(EXAMPLES)
    assert {cell for row in rows for cell in row[1:]} == {"yes", "no"}


@pytest.mark.parametrize(("name", "column", "cell"), cells())
def test_a_cell(name: str, column: str, cell: str) -> None:
    run, example = COLUMNS[column], EXAMPLES[name]
    if cell == "yes":
        np.testing.assert_allclose(np.asarray(run(example)), solution(example), atol=1e-6)
        return
    with pytest.raises((TypeError, ValueError, RuntimeError), match=REFUSED):
        run(example)
