"""Gradients that torch makes sparse count like dense ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import lbfgs_xp as lx

F64 = torch.float64
TABLE = torch.linspace(-1.0, 2.0, 15, dtype=F64).reshape(5, 3)
ROWS = torch.tensor([0, 2, 2, 3])


def embedding(sparse: bool) -> Callable:
    module = nn.Embedding(5, 3, sparse=sparse, dtype=F64)

    def loss(p: Any, batch: Any = None) -> Any:
        found = torch.func.functional_call(module, {"weight": p["weight"]}, (ROWS,))
        return ((found - 1.0) ** 4).sum() + p["other"] ** 2

    return loss


def by_hand(loss: Callable) -> Callable:
    def gradient(p: Any, *_: Any) -> Any:
        leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in p.items()}
        loss(leaves).backward()
        return {name: leaf.grad for name, leaf in leaves.items()}

    return gradient


def start() -> dict[str, torch.Tensor]:
    return {"weight": TABLE.clone(), "other": torch.tensor(1.0, dtype=F64)}


def updated(loss: Callable, in_place: bool) -> Any:
    opt, params = lx.Adam(0.1), start()
    state = opt.init(params)
    for _ in range(3):
        grads = by_hand(loss)(params)
        params, state = opt.update(params, grads, state, in_place=in_place)
    return params


WAYS: dict[str, Callable] = {
    "minimize": lambda f: lx.minimize(f, start(), maxiter=20).x,
    "minimize, by hand": lambda f: lx.minimize(f, start(), jac=by_hand(f), maxiter=20).x,
    "minimize, Adam": lambda f: lx.minimize(f, start(), method="adam", maxiter=20).x,
    "train": lambda f: lx.train(f, start(), torch.ones(4), epochs=3).params,
    "train, by hand": lambda f: lx.train(f, start(), torch.ones(4), jac=by_hand(f)).params,
    "train, L-BFGS": lambda f: lx.train(f, start(), torch.ones(4), method="lbfgs").params,
    "update": lambda f: updated(f, in_place=False),
    "update in place": lambda f: updated(f, in_place=True),
}


@pytest.mark.parametrize("way", WAYS)
def test_sparse_gradients_count_like_dense_ones(way: str) -> None:
    dense, sparse = (WAYS[way](embedding(kind)) for kind in (False, True))
    torch.testing.assert_close(sparse, dense, rtol=1e-12, atol=1e-12)
    assert torch.equal(sparse["weight"][1], TABLE[1]) and not torch.equal(sparse["weight"], TABLE)


def test_of_one_vector() -> None:
    def fun(x: torch.Tensor) -> torch.Tensor:
        return ((torch.gather(x, 0, ROWS, sparse_grad=True) - 1.0) ** 2).sum()

    res = lx.minimize(fun, torch.zeros(4, dtype=F64))
    assert res.success and torch.allclose(res.x, torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=F64))
