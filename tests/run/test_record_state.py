"""The state that a callback can take."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx

PROBLEM = lx.problems.rosenbrock(10)
FUN, START = PROBLEM.value_and_gradient, PROBLEM.x0
METHODS: dict[str, dict[str, Any]] = {
    "L-BFGS": {}, "BFGS": {"method": "bfgs"}, "Adam": {"method": lx.Adam(0.01), "maxiter": 60},
    "bounds": {"bounds": (-0.5, 0.7)}, "differences": {"jac": "3-point"},
}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_goes_on_from_the_state_of_a_record(method: str, tmp_path: Path) -> None:
    how = {"jac": True, **METHODS[method]}
    fun = (lambda x: FUN(x)[0]) if "jac" in METHODS[method] else FUN
    kept: list[Any] = []

    def callback(record: lx.Record) -> None:
        if record.nit == 8:
            lx.save(tmp_path / "state.npz", (record.x, record.state))
            kept.append((record.x.copy(), record.state))

    whole = lx.minimize(fun, START, callback=callback, **how)
    if "maxiter" in how:
        how["maxiter"] -= 8
    for x, state in (*kept, lx.load(tmp_path / "state.npz", like=START)):
        rest = lx.minimize(fun, x, state=state, **how)
        assert rest.x.tobytes() == whole.x.tobytes()
        assert rest.nit == whole.nit - 8


def test_only_inside_the_callback() -> None:
    records: list[lx.Record] = []
    lx.minimize(FUN, START, jac=True, maxiter=3, callback=records.append)
    with pytest.raises(RuntimeError, match="taken after its callback; wanted it inside"):
        records[0].state    # noqa: B018
    assert vars(records[0]) == {"take": None}    # it holds nothing of the run


def test_records_are_plain_tuples() -> None:
    found: list[Any] = []

    def callback(record: lx.Record) -> None:
        found.append((pickle.loads(pickle.dumps(record)), copy.copy(record), record))

    lx.minimize(FUN, START, jac=True, maxiter=1, callback=callback)
    for other in found[0][:2]:
        assert type(other) is lx.Record
        assert other[1:] == found[0][2][1:]
    assert lx.Record._fields == ("x", "fun", "gradient_norm", "step", "nit", "nfev")


def test_rows_that_have_left_are_there() -> None:
    starts = np.stack([START * scale for scale in (1.0, 0.1, -0.5, 0.9)])
    states: list[lx.State] = []

    def fun(x: Any) -> Any:
        values, gradients = zip(*map(FUN, x), strict=True)
        return np.stack(values), np.stack(gradients)

    def callback(record: lx.Record) -> None:
        states.append(record.state)

    res = lx.minimize(fun, starts, jac=True, batched=True, method="lbfgs", callback=callback)
    assert len(set(res.nfev.tolist())) > 1
    assert all(state.solver_state.x.shape == starts.shape for state in states)
    np.testing.assert_array_equal(states[-1].best.value, res.fun)
