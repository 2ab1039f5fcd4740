"""How often numbers are read from the device: once per evaluation."""

from __future__ import annotations

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp.problems import rosenbrock
from tests.backends import Backend

# The start reads the value and norm, the first direction, and whether fun has left x unchanged.
AT_START = 8


@pytest.mark.parametrize("n", [2, 100])
def test_one_problem_reads_once_an_evaluation(
    backend: Backend, n: int, reads: list[tuple[int, ...]]
) -> None:
    if backend.is_numpy or backend is Backend.TORCH:
        pytest.skip("these arrays are on the host")
    p = rosenbrock(n, xp=backend.xp, device=backend.device, dtype="float64")
    res = lx.minimize(p.value_and_gradient, p.x0, jac=True, gtol=1e-8)
    assert res.status == lx.Status.GRADIENT
    assert len(reads) <= res.nfev + AT_START
    # Never a vector, only two products with 20 rows each and five more numbers.
    assert max(int(np.prod(shape)) for shape in reads) <= 2 * 20 + 5


def test_a_batch_reads_once_an_evaluation(
    backend: Backend, reads: list[tuple[int, ...]]
) -> None:
    if backend.is_numpy:
        pytest.skip("these arrays are on the host")
    p = rosenbrock(4, xp=backend.xp, device=backend.device, dtype="float64")
    calls = 0

    def fun(x: object) -> object:
        nonlocal calls
        calls += 1
        return p.value_and_gradient(x)

    res = lx.minimize(fun, p.starts(5, seed=1), jac=True, batched=True, gtol=1e-6)
    assert bool(backend.to_numpy(res.success).all())
    assert len(reads) <= calls + AT_START
    assert all(shape in ((), (5,)) for shape in reads)
