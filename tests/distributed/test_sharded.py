"""Variables that are divided among processes: the run of one process, and no hang.

The processes are threads; `test_processes.py` has processes of torch.distributed and MPI.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from tests.backends import Backend
from tests.distributed.threads import Meeting, ThreadEngine, together

N = 40
RANDOM = np.random.default_rng(0)
SCALES, CENTRES = np.exp(RANDOM.normal(size=N)), RANDOM.normal(size=N)
# Where the pieces end, for each number of processes; one of four is empty.
CUTS = {1: [], 2: [13], 3: [5, 26], 4: [11, 11, 30]}
SIZES = (1, 4)
METHODS: dict[str, dict[str, Any]] = {
    "L-BFGS": {},
    "few pairs": {"method": lx.LBFGS(memory_size=2, line_search=lx.HagerZhang())},
    "schedule": {"method": lx.LBFGS(learning_rate=lambda step: 1.0 / (1.0 + 0.1 * step))},
    "gradient descent": {"method": "gradient_descent", "maxiter": 300},
    "bounds": {"bounds": (-0.5, 0.5)},
    "penalty": {"l1": 0.3},
    "tolerances": {"xtol": 1e-6, "ftol": 1e-12},
    "Adam": {"method": lx.Adam(lx.schedules.Cosine(0.1, steps=60), clip_norm=1.0), "maxiter": 60},
    "plateau": {"method": lx.SGD(lx.schedules.ReduceOnPlateau(0.05)), "maxiter": 60},
    "phases": {"method": [lx.Adam(0.05).until(maxiter=10), lx.LBFGS()]},
    "floor": {"gtol": 0.0},
    "units": {"x_scale": 4.0},
    "fixed order": {"reproducible": True},
    "fixed order in bounds": {"reproducible": True, "bounds": (-0.5, 0.5)},
}


def pieces(size: int) -> list[slice]:
    ends = [0, *CUTS[size], N]
    return [slice(a, b) for a, b in zip(ends, ends[1:], strict=False)]


def function(here: slice, engine: Any = None, backend: Backend = Backend.NUMPY) -> Any:
    """The share of a piece in a quartic function, and its gradient."""
    a, c = (backend.asarray(array[here]) for array in (SCALES, CENTRES))

    def fun(x: Any) -> Any:
        d = x - c
        terms = a * (d * d) + d * d * d * d
        gradient = 2.0 * (a * d) + 4.0 * (d * d * d)
        if engine is None:
            return lx.fixed_sum(terms), gradient
        total = engine.fixed_sum(terms)
        return (total if engine.rank == 0 else 0.0), gradient

    return fun


def solve(engine: ThreadEngine, in_order: bool = False, **how: Any) -> lx.Result:
    here = pieces(engine.size)[engine.rank]
    fun = function(here, engine if in_order else None)
    how = {"jac": True, **how}
    return lx.minimize(fun, np.zeros(N)[here], distributed=engine, **how)


@pytest.mark.parametrize("method", METHODS)
def test_the_outcome_is_that_of_one_process(method: str) -> None:
    how = METHODS[method]
    wanted = lx.minimize(function(slice(None)), np.zeros(N), jac=True, **how)
    for size in SIZES:
        found = together(size, lambda engine: solve(engine, **how))
        assert all(isinstance(res, lx.Result) for res in found), found
        x, jac = (np.concatenate([getattr(res, name) for res in found]) for name in ("x", "jac"))
        np.testing.assert_allclose(x, wanted.x, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(jac, wanted.jac, rtol=1e-7, atol=1e-6)
        for res in found:
            if method != "floor":    # where rounding decides when to stop
                assert (res.nit, res.nfev) == (wanted.nit, wanted.nfev)
            assert (res.status, res.fun) == (wanted.status, found[0].fun)
            assert res.fun == pytest.approx(wanted.fun, rel=1e-9)
            assert len(res.phases) == len(wanted.phases)


@pytest.mark.parametrize("how", [{}, {"bounds": (-0.5, 0.5)}, {"method": lx.Adam(0.05)}], ids=str)
def test_bits_do_not_depend_on_the_number_of_processes(how: dict[str, Any]) -> None:
    how = {"reproducible": True, "maxiter": 50, **how}
    wanted = lx.minimize(function(slice(None)), np.zeros(N), jac=True, **how)
    for size in CUTS:
        found = together(size, lambda engine: solve(engine, in_order=True, **how))
        assert np.concatenate([res.x for res in found]).tobytes() == wanted.x.tobytes()
        assert {(res.nit, res.nfev, res.fun) for res in found} == {
            (wanted.nit, wanted.nfev, wanted.fun)
        }


def test_bytes_of_an_iteration() -> None:
    m, counts = 5, []

    def work(engine: ThreadEngine) -> lx.Result:
        def callback(record: lx.Record) -> None:
            counts.append((record.nit, record.nfev, list(engine.messages)))

        watched = {"callback": callback} if engine.rank == 0 else {}
        return solve(engine, method=lx.LBFGS(memory_size=m), gtol=1e-4, **watched)

    found = together(3, work)
    assert found[0].success
    two = 0
    for (nit, nfev, before), (_, later, after) in zip(counts, counts[1:], strict=False):
        sent = after[len(before) :]
        trials, rest = sent[: later - nfev], sent[later - nfev :]
        assert all(each <= 32 for each in trials), nit
        assert rest[0] <= 8 * (2 * m + 4), nit
        # A second one where digits would cancel.
        assert len(rest) <= 2
        two += len(rest) == 2
    assert two <= len(counts) // 4
    found = together(2, lambda engine: (solve(
        engine, method="sgd", maxiter=20), engine.messages)[1])
    assert max(found[0]) <= 40
    assert len(found[0]) <= 25


def test_inverse_hessian() -> None:
    v = RANDOM.normal(size=N)
    whole = lx.minimize(function(slice(None)), np.zeros(N), jac=True, maxiter=12)
    wanted = whole.hess_inv @ v

    def work(engine: ThreadEngine) -> Any:
        res = solve(engine, maxiter=12)
        with pytest.raises(TypeError, match=r"sharded=True.*hess_inv @ v"):
            res.hess_inv.todense()
        with pytest.raises(TypeError, match=r"sharded=True.*hess_inv @ v"):
            res.hess_inv.diagonal()
        return res.hess_inv @ v[pieces(engine.size)[engine.rank]]

    np.testing.assert_allclose(np.concatenate(together(3, work)), wanted, rtol=1e-6)


def test_runs_go_on_from_a_state() -> None:
    def work(engine: ThreadEngine) -> Any:
        first = solve(engine, maxiter=8)
        here = pieces(engine.size)[engine.rank]
        second = lx.minimize(
            function(here), first.x, jac=True, state=first.state, maxiter=8, distributed=engine
        )
        return second.x, first.nfev + second.nfev

    found = together(3, work)
    wanted = lx.minimize(function(slice(None)), np.zeros(N), jac=True, maxiter=16)
    np.testing.assert_allclose(np.concatenate([x for x, _ in found]), wanted.x, rtol=1e-8)
    assert found[0][1] == wanted.nfev + 1


def test_every_library(backend: Backend) -> None:
    # JAX compiles every operation for every shape.
    sizes, most = ((2,), 6) if backend.is_jax else ((3, 4), 100)

    def work(engine: ThreadEngine) -> Any:
        here = pieces(engine.size)[engine.rank]
        return lx.minimize(
            function(here, backend=backend), backend.asarray(np.zeros(N)[here]), jac=True,
            distributed=engine, reproducible=engine.size == 3, maxiter=most,
        )

    wanted = lx.minimize(function(slice(None)), np.zeros(N), jac=True, maxiter=most)
    for size in sizes:
        found = together(size, work)
        assert all(isinstance(res, lx.Result) for res in found), found
        x = np.concatenate([backend.to_numpy(res.x) for res in found])
        np.testing.assert_allclose(x, wanted.x, rtol=1e-6)
        assert found[0].nit == wanted.nit


def test_nested_pieces() -> None:
    def fun(p: Any) -> Any:
        d, z = p["real"] - 1.0, p["complex"] - (1.0 + 2.0j)
        value = np.sum(d * d * np.arange(1.0, 1.0 + d.size)) + np.sum(np.abs(z) ** 2) * 3.0
        return value, {"real": 2.0 * d * np.arange(1.0, 1.0 + d.size), "complex": 6.0 * z}

    def work(engine: ThreadEngine) -> Any:
        start = {"real": np.zeros(engine.rank), "complex": np.zeros((2, 3 - engine.rank), complex)}
        return lx.minimize(fun, start, jac=True, distributed=engine)

    for res in together(3, work):
        assert res.success
        np.testing.assert_allclose(res.x["real"], 1.0, atol=1e-6)
        np.testing.assert_allclose(res.x["complex"], 1.0 + 2.0j, atol=1e-6)


@pytest.mark.parametrize("where", ["fun", "callback", "x0", "bounds"])
def test_an_error_in_one_process(where: str) -> None:
    def work(engine: ThreadEngine) -> Any:
        here, bad = pieces(3)[engine.rank], engine.rank == 1
        fun, calls = function(here), []

        def failing(x: Any) -> Any:
            calls.append(1)
            if bad and where == "fun" and len(calls) == 7:
                raise ZeroDivisionError("one of us")
            return fun(x)

        def callback(record: lx.Record) -> None:
            if bad and where == "callback" and record.nit == 4:
                raise ZeroDivisionError("one of us")

        start = "nothing" if bad and where == "x0" else np.zeros(N)[here]
        bounds = (1.0, -1.0) if bad and where == "bounds" else (-9.0, 9.0)
        return lx.minimize(
            failing, start, jac=True, distributed=engine, callback=callback, bounds=bounds
        )

    first, second, third = together(3, work)
    assert not isinstance(second, (lx.Result, lx.distributed.ProcessFailed))
    for error in (first, third):
        assert isinstance(error, lx.distributed.ProcessFailed)
        assert str(error).startswith("process 1 failed: ")
        if where in ("fun", "callback"):
            assert error.result.nit >= 2
            with pytest.raises(lx.distributed.ProcessFailed, match="has failed in another"):
                error.result.hess_inv @ np.zeros_like(error.result.x)


@pytest.mark.parametrize("where", ["fun", "callback"])
def test_an_error_before_a_sum_of_all(where: str) -> None:
    """The others wait in `fixed_sum`, which fun calls itself."""
    def work(engine: ThreadEngine) -> Any:
        share, calls = function(pieces(3)[engine.rank], engine), []

        def failing(x: Any) -> Any:
            calls.append(1)
            if where == "fun" and engine.rank == 1 and len(calls) == 4:
                raise ZeroDivisionError("one of us")
            return share(x)

        def callback(record: lx.Record) -> None:
            if where == "callback" and engine.rank == 1 and record.nit == 3:
                raise ZeroDivisionError("one of us")
            engine.fixed_sum(record.x)

        return lx.minimize(
            failing, np.zeros(N)[pieces(3)[engine.rank]], jac=True, distributed=engine,
            reproducible=True, callback=callback,
        )

    first, second, third = together(3, work)
    assert isinstance(second, ZeroDivisionError)
    for error in (first, third):
        assert isinstance(error, lx.distributed.ProcessFailed)
        assert str(error) == "process 1 failed: ZeroDivisionError: one of us"


def stopping(engine: ThreadEngine, how: str) -> dict[str, Any]:
    """Settings that stop a run in process 1: by its "callback", an "interrupt", or its "time"."""
    late = engine.rank == 1

    def callback(record: lx.Record) -> bool:
        if late and how == "interrupt" and record.nit == 3:
            raise KeyboardInterrupt
        return late and how == "callback" and record.nit == 3

    time = {"maxtime": 1e-9} if late and how == "time" else {}
    return {"callback": callback, **time}


def test_stops_are_taken_together() -> None:
    def then(engine: ThreadEngine, how: str) -> Any:
        res = solve(engine, **stopping(engine, how))
        assert np.isfinite(res.hess_inv @ res.x).all()
        return res

    wanted = {"callback": "CALLBACK", "interrupt": "INTERRUPTED", "time": "TIME"}
    for how, status in wanted.items():
        found = together(3, lambda engine, how=how: then(engine, how))
        assert {res.status.name for res in found} == {status}
        assert len({(res.nit, res.nfev, res.fun) for res in found}) == 1


@pytest.mark.parametrize(
    ("other", "says"),
    [({"gtol": 1e-3}, "the settings"), ({"maxiter": 7}, "the settings"),
     ({"bounds": (0.0, 1.0)}, "the settings"), ({"method": "sgd"}, "the settings")],
    ids=str,
)
@pytest.mark.parametrize("sharded", [True, False])
def test_other_settings_in_one_process(
    other: dict[str, Any], says: str, sharded: bool
) -> None:
    def work(engine: ThreadEngine) -> Any:
        how = other if engine.rank else {}
        return lx.minimize(
            lambda x: ((x * x).sum(), 2.0 * x), np.ones(3), jac=True, distributed=engine, **how
        )

    for error in together(2, work, sharded):
        assert isinstance(error, ValueError)
        assert str(error).startswith(f"{says} differs between process 0 and process 1")


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"method": "bfgs"}, "BFGS, which needs all variables in one process"),
        ({"method": [lx.Adam(0.1).until(maxiter=3), lx.BFGS()]}, "BFGS, which needs"),
        ({"method": lx.LBFGS(initial_inverse_hessian=lambda v: v)}, "LBFGS, which needs"),
        ({"method": lx.ProjectedGradient(lx.projections.Simplex())}, "which needs"),
        ({"method": "newton", "hess": np.diag}, "needs the Hessian"),
        ({"jac": "3-point"}, "differences"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_takes_no_pieces(how: dict[str, Any], says: str) -> None:
    (error,) = together(1, lambda engine: solve(engine, **how))
    assert isinstance(error, ValueError)
    assert says in str(error)


def test_a_batch_is_not_divided() -> None:
    (error,) = together(1, lambda engine: lx.minimize(
        lambda x: ((x * x).sum(-1), 2.0 * x), np.ones((2, 3)), jac=True, batched=True,
        distributed=engine,
    ))
    assert isinstance(error, ValueError)
    assert "batched=True" in str(error)


def test_parts_are_only_added() -> None:
    from lbfgs_xp.distributed.parts import SUM, Part

    part = Part(((), 1.0, SUM))
    assert len((part + part).terms) == len(sum([part, part]).terms) == 2
    for wrong in (lambda: part * 2.0, lambda: part + 1.0, lambda: part < 1.0, lambda: float(part)):
        with pytest.raises(TypeError):
            wrong()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fixed_sums_over_pieces(dtype: Any) -> None:
    generator = np.random.default_rng(1)
    for size in (1, 2, 3, 5):
        for count in (0, 1, 2, 3, 7, 64, 100):
            terms = (generator.normal(size=count) * 1e3).astype(dtype)
            ends = np.sort(generator.integers(0, count + 1, size - 1)).tolist()
            cut = [terms[a:b] for a, b in zip([0, *ends], [*ends, count], strict=True)]
            found = together(size, lambda engine, cut=cut: engine.fixed_sum(cut[engine.rank]))
            assert set(found) == {float(lx.fixed_sum(terms))}
    with pytest.raises(TypeError, match=r"terms is 3\.0; wanted a 1-d array"):
        ThreadEngine(Meeting(1), 0).fixed_sum(3.0)  # type: ignore[arg-type]


# --- values and gradients that are added up ------------------------------------------------------


def test_forgiven_errors_are_shared() -> None:
    """An error that counts as nan in one process counts as nan in all."""
    def work(engine: ThreadEngine) -> Any:
        def fun(x: Any) -> Any:
            if engine.rank == 1 and x[0] > 2.0:
                raise np.linalg.LinAlgError
            return 0.5 * ((x - 1.9) ** 2).sum(), x - 1.9

        return lx.minimize(
            fun, np.asarray([-3.0, 0.0]), jac=True, distributed=engine,
            on_error=np.linalg.LinAlgError, method=lx.LBFGS(scale_initial=False),
        )

    first, second = together(2, work, sharded=False)
    assert first.success
    np.testing.assert_allclose(first.x, 1.9, atol=1e-6)
    assert first.x.tobytes() == second.x.tobytes()
    assert first.fun == pytest.approx(0.0, abs=1e-12)


def test_solutions_of_many_processes_are_not_differentiable() -> None:
    torch = pytest.importorskip("torch")
    x = torch.ones(3, dtype=torch.float64)
    (error,) = together(1, lambda engine: lx.minimize(
        lambda x: (x * x).sum(), x, differentiable=True, distributed=engine,
    ), sharded=False)
    assert isinstance(error, ValueError)
    assert "distributed was passed where the solution" in str(error)
