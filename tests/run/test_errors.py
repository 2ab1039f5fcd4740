"""Bad input raises one clear error at once, with what was passed and what is wanted."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from tests.backends import Backend


def fun(x: Any) -> Any:
    return np.sum(x * x), 2.0 * x


def value(x: Any) -> Any:
    return np.sum(x * x)


X0 = np.ones(3)


def solve(function: Any = fun, x0: Any = X0, **settings: Any) -> lx.Result:
    return lx.minimize(function, x0, **{"jac": True, **settings})


def fails(call: Callable[[], Any], error: type[Exception], *words: str) -> None:
    """Check that the call raises exactly this error, with all the words in its message."""
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    message = str(caught.value)
    for word in words:
        assert re.search(word, message), f"{word!r} is not in: {message}"
    # A single error, not one raised while another was being handled.
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


# --- x0 ----------------------------------------------------------------------------------------

BAD_X0: dict[str, tuple[Any, type[Exception], list[str]]] = {
    "integers": (np.asarray([1, 2]), TypeError, ["x0", "int64", "floating"]),
    "booleans": (np.asarray([True]), TypeError, ["x0", "bool", "floating"]),
    "a list of integers": ([1, 2], TypeError, ["x0", "int64", "floating"]),
    "one integer": (3, TypeError, ["x0", "int64", "floating"]),
    "None": (None, TypeError, ["x0", "NoneType", "array"]),
    "a string": ("1, 2", TypeError, ["x0", "str", "array"]),
    "strings": (np.asarray(["a"]), TypeError, ["x0", "floating"]),
    "objects": (np.asarray([None, 1.0]), TypeError, ["x0", "object", "floating"]),
    "a ragged list": ([[1.0, 2.0], [3.0]], ValueError, ["x0", "ragged", "array"]),
    "None in a dict": ({"a": np.ones(2), "b": None}, TypeError, ["x0", "NoneType", "array"]),
    "a number in a dict": ({"a": np.ones(2), "b": 1.0}, TypeError, ["x0", "float", "array"]),
    "a string in a list": ([np.ones(2), "b"], TypeError, ["x0", "str", "array"]),
    "a set": ({1.0, 2.0}, TypeError, ["x0", "set", "array"]),
    "a function": (lambda: 0, TypeError, ["x0", "function", "array"]),
    "an empty array": (np.ones(0), ValueError, ["x0", "empty", "wanted"]),
    "an empty list": ([], ValueError, ["x0", "wanted"]),
    "an empty dict": ({}, ValueError, ["x0", "wanted"]),
    "empty arrays": ({"a": np.ones((0, 3))}, ValueError, ["x0", "empty", "wanted"]),
    "two precisions": (
        [np.ones(2), np.ones(2, np.float32)], TypeError, ["x0", "float32", "float64", "one"],
    ),
}


@pytest.mark.parametrize("kind", BAD_X0)
def test_x0(kind: str) -> None:
    x0, error, words = BAD_X0[kind]
    fails(lambda: solve(x0=x0), error, *words)


def test_x0_of_integers_on_every_library(backend: Backend) -> None:
    for dtype, name in (("int64", "int64"), ("bool", "bool")):
        x0 = backend.asarray([1, 0], dtype)
        fails(lambda x0=x0: solve(x0=x0), TypeError, "x0", name, "floating")


def test_x0_empty_on_every_library(backend: Backend) -> None:
    fails(lambda: solve(x0=backend.asarray(np.ones(0))), ValueError, "x0", "empty")
    empty = backend.asarray(np.ones((0, 2)))
    fails(lambda: solve(x0=empty, batched=True), ValueError, "x0", "empty")
    empty = backend.asarray(np.ones((2, 0)))
    fails(lambda: solve(x0=empty, batched=True), ValueError, "x0", "empty")


def test_libraries_are_not_mixed() -> None:
    import torch

    tree = {"a": np.ones(2), "b": torch.ones(2, dtype=torch.float64)}
    fails(lambda: solve(x0=tree), TypeError, "x0", "numpy", "torch", "one library")


def test_devices_are_not_mixed() -> None:
    tree = [Backend.STRICT.asarray([1.0]), Backend.STRICT_DEVICE.asarray([1.0])]
    fails(lambda: solve(x0=tree), ValueError, "x0", "CPU_DEVICE", "device1", "wanted one")


@pytest.mark.parametrize("x0", [np.float64(1.0) * np.ones(()), 1.0], ids=["0-d", "number"])
def test_a_batch_has_a_first_axis(x0: Any) -> None:
    fails(lambda: solve(x0=x0, batched=True), ValueError, "x0", r"\(\)", "batched", "axis")


def test_a_batch_has_one_first_axis() -> None:
    tree = {"a": np.ones((3, 2)), "b": np.ones(2)}
    fails(lambda: solve(x0=tree, batched=True), ValueError, "x0", r"\(3, 2\)", r"\(2,\)", "axis")


# --- fun and jac -------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [None, 3.0, "rosenbrock", X0], ids=lambda b: type(b).__name__)
def test_fun_is_a_function(bad: Any) -> None:
    fails(lambda: solve(bad), TypeError, "fun", type(bad).__name__, "function")


def test_numpy_has_no_autodiff() -> None:
    ways = ["jac", "function", "jac=True", "2-point", "3-point"]
    fails(lambda: lx.minimize(value, X0), ValueError, "numpy", "differentiation", *ways)
    for backend in (Backend.STRICT, Backend.STRICT_DEVICE):
        x0 = backend.asarray(X0)
        fails(lambda x0=x0: lx.minimize(value, x0), ValueError, "array_api_strict", *ways)


@pytest.mark.parametrize("jac", ["4-point", "cs", 2, 1.0, X0], ids=str)
def test_jac(jac: Any) -> None:
    words = ["True", "function", "2-point", "3-point"]
    fails(lambda: lx.minimize(value, X0, jac=jac), ValueError, "jac is", *words)


def test_fun_returns_a_vector(backend: Backend) -> None:
    x0 = backend.asarray(X0)
    shape = r"\(3,\)"
    fails(lambda: solve(lambda x: (x * x, 2.0 * x), x0), ValueError, "fun", shape, "single|0-d")
    fails(
        lambda: solve(lambda x: x * x, x0, jac=lambda x: 2.0 * x), ValueError, "fun", shape,
        "single|0-d",
    )
    if backend.has_autodiff:
        fails(lambda: solve(lambda x: x * x, x0, jac=None), ValueError, "fun", shape, "single|0-d")


def test_fun_of_a_batch_returns_one_number(backend: Backend) -> None:
    x0 = backend.asarray(np.ones((2, 3)))
    xp = backend.xp
    for total in (lambda x: xp.sum(x * x), lambda x: x * x):
        fails(
            lambda total=total: solve(lambda x: (total(x), 2.0 * x), x0, batched=True),
            ValueError, "fun", r"\(2,\)", "row",
        )
    fails(lambda: solve(lambda x: (1.0, x), x0, batched=True), TypeError, "fun", "float", r"\(2,\)")


def test_fun_returns_a_pair_without_jac_true() -> None:
    for jac in (lambda x: 2.0 * x, "2-point"):
        fails(lambda jac=jac: solve(fun, jac=jac), TypeError, "fun", "tuple", "jac=True")


@pytest.mark.parametrize("name", ["TORCH", "JAX"])
def test_fun_returns_a_pair_to_autodiff(name: str) -> None:
    x0 = Backend[name].asarray(X0)
    fails(lambda: solve(lambda x: (x @ x, 2.0 * x), x0, jac=None), TypeError, "fun", "tuple")


def test_fun_returns_no_pair_with_jac_true(backend: Backend) -> None:
    x0 = backend.asarray(X0)
    xp = backend.xp
    fails(lambda: solve(lambda x: xp.sum(x), x0), TypeError, "fun", "jac=True", "pair")
    fails(lambda: solve(lambda x: None, x0), TypeError, "fun", "NoneType", "pair")
    fails(lambda: solve(lambda x: (1.0, x, 2), x0), TypeError, "fun", "tuple of 3", "pair")


def test_fun_returns_no_pair_with_has_aux() -> None:
    for jac in (True, lambda x: 2.0 * x):
        out = fun if jac is True else value
        fails(lambda jac=jac, out=out: solve(out, jac=jac, has_aux=True), TypeError,
              "fun", "has_aux=True", "pair")


@pytest.mark.parametrize("bad", [None, "1.0", 1j, np.asarray(1j), np.asarray(3)], ids=repr)
def test_fun_returns_a_real_number(bad: Any) -> None:
    fails(lambda: solve(lambda x: (bad, 2.0 * x)), TypeError, "fun", "real")


def test_fun_returns_another_library() -> None:
    import torch

    fails(
        lambda: solve(lambda x: (torch.tensor(1.0, dtype=torch.float64), 2.0 * x)),
        TypeError, "fun", "torch", "numpy",
    )


def test_torch_fun_that_does_not_depend_on_x() -> None:
    x0 = Backend.TORCH.asarray(X0)
    fails(lambda: solve(lambda x: x.detach().sum(), x0, jac=None), TypeError, "fun", "autograd")
    fails(lambda: solve(lambda x: 1.0, x0, jac=None), TypeError, "fun", "float", "autograd")


def test_gradient_of_another_shape(backend: Backend) -> None:
    x0, xp = backend.asarray(X0), backend.xp

    def bad(x: Any) -> Any:
        return x[:2]

    words = ["gradient", r"\(2,\)", r"\(3,\)"]
    fails(lambda: solve(lambda x: (xp.sum(x), bad(x)), x0), ValueError, *words)
    fails(lambda: solve(lambda x: xp.sum(x), x0, jac=bad), ValueError, *words)
    column = lambda x: x[:, None]  # noqa: E731
    fails(lambda: solve(lambda x: xp.sum(x), x0, jac=column), ValueError, "gradient", r"\(3, 1\)")


def test_gradient_of_another_library() -> None:
    strict = Backend.STRICT
    x0 = strict.asarray(X0)
    fails(
        lambda: solve(lambda x: (strict.xp.sum(x), np.ones(3)), x0), TypeError,
        "gradient", "numpy", "array_api_strict",
    )
    fails(
        lambda: solve(lambda x: (1.0, strict.asarray(X0))), TypeError,
        "gradient", "array_api_strict", "numpy",
    )
    fails(lambda: solve(lambda x: (1.0, [1.0] * 3), x0), ValueError, "gradient", "structure")


def test_gradient_on_another_device() -> None:
    x0 = Backend.STRICT.asarray(X0)
    away = Backend.STRICT_DEVICE.asarray(X0)
    fails(lambda: solve(lambda x: (1.0, away), x0), ValueError, "gradient", "device1", "CPU_DEVICE")


def test_gradient_of_another_structure() -> None:
    x0 = {"a": np.ones(2), "b": np.ones(1)}
    for bad in ({"a": np.ones(2)}, [np.ones(2), np.ones(1)], np.ones(3)):
        fails(lambda bad=bad: solve(lambda x: (1.0, bad), x0), ValueError, "gradient", "structure")


@pytest.mark.parametrize("bad", [None, "2x", np.asarray(["a", "b", "c"])], ids=repr)
def test_gradient_is_an_array_of_numbers(bad: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="the gradient"):
        solve(lambda x: (1.0, bad))


def test_gradient_is_not_complex() -> None:
    fails(lambda: solve(lambda x: (1.0, 1j * x)), TypeError, "gradient", "complex", "float64")


# --- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gtol", "ftol", "xtol", "maxtime", "maxiter", "maxfun"])
@pytest.mark.parametrize("bad", [-1, -1e-9, float("nan"), "1", True, [1.0]], ids=repr)
def test_tolerances_and_budgets(name: str, bad: Any) -> None:
    least = "at least 1" if name == "maxfun" else "at least 0"
    words = [f"{name} is", re.escape(repr(bad)), least]
    fails(lambda: solve(**{name: bad}), ValueError, *words)


def test_arrays_do_not_fill_pages() -> None:
    many = np.zeros(1000)
    shape = r"an array of shape \(1000,\)"
    fails(lambda: solve(gtol=many), ValueError, shape)
    fails(lambda: solve(maxiter=many), ValueError, shape)
    fails(lambda: solve(method=many), TypeError, shape)
    fails(lambda: solve(bounds=many, method="projected_gradient"), TypeError, shape)


def test_modules_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(lx, "torch", raising=False)
    fails(lambda: lx.torch, AttributeError, "import lbfgs_xp.torch")
    fails(lambda: lx.maximize, AttributeError, "has no 'maximize'$")


def test_a_dtype_that_does_not_fit_is_told_of() -> None:
    torch = pytest.importorskip("torch")
    matrix = torch.ones(3, 3, dtype=torch.float64)
    with pytest.raises(RuntimeError) as caught:
        lx.minimize(lambda x: (matrix @ x).sum(), torch.zeros(3))
    assert caught.value.__notes__ == ["lbfgs_xp: functions are passed torch.float32, like x0"]


@pytest.mark.parametrize("name", ["maxiter", "maxfun"])
def test_budgets_are_whole_numbers(name: str) -> None:
    fails(lambda: solve(**{name: 2.5}), ValueError, f"{name} is 2.5", "integer")
    # What counts as a whole number.
    assert solve(**{name: 100.0}).success and solve(**{name: np.int64(100)}).success
    assert solve(**{name: float("inf")}).success and solve(**{name: None}).success


def test_tolerances_may_be_numbers_of_numpy() -> None:
    assert solve(gtol=np.float32(1e-3), ftol=np.float64(1e-3), xtol=0).success


def test_fixed_sum_of_a_number() -> None:
    words = "^x is a 0-d array; wanted one with at least one axis$"
    fails(lambda: lx.fixed_sum(np.asarray(1.0)), ValueError, words)


def test_bounds_are_a_pair_in_a_tuple_or_a_list() -> None:
    """In `minimize` and in `least_squares` alike."""
    least, start = lx.least_squares, np.asarray([3.0, -2.0])
    calls: dict[str, Callable[[Any], Any]] = {
        "minimize": lambda b: solve(x0=start, bounds=b, method="projected_gradient"),
        "least_squares": lambda b: least(lambda x: x, start, jac=lambda x: np.eye(2), bounds=b),
    }
    for call in calls.values():
        for pair in ((1.0, 2.0), [1.0, 2.0], [np.ones(2), None], ([1.0, 1.0], [2.0, 2.0])):
            assert np.array_equal(call(pair).x, [1.0, 1.0])
        # SciPy's pairs for two variables.
        for strange in ([(1.0, 2.0), (1.0, 2.0)], [[1.0, 1.0], [2.0, 2.0]]):
            fails(lambda call=call, b=strange: call(b), TypeError, "two variables", "the tuple")
        for strange in (3.0, np.ones((2, 2)), [1.0], {"lower": 1.0}):
            fails(lambda call=call, b=strange: call(b), TypeError, "bounds is", "pair")


@pytest.mark.parametrize("bad", [0, -1, 2.5, True, "5", None], ids=repr)
def test_memory_size(bad: Any) -> None:
    fails(
        lambda: lx.LBFGS(memory_size=bad), ValueError, "memory_size", re.escape(repr(bad)),
        "at least 1",
    )


def test_memory_size_of_numpy() -> None:
    assert solve(method=lx.LBFGS(memory_size=np.int64(4))).success


@pytest.mark.parametrize("bad", ["lbgfs", "L-BFGS", "l-bfgs", "LBFGS", "bgfs"])
def test_unknown_method_names_the_nearest(bad: str) -> None:
    fails(lambda: solve(method=bad), ValueError, bad, "did you mean 'l?bfgs'")


def test_unknown_method_lists_all() -> None:
    fails(lambda: solve(method="simplex"), ValueError, "simplex", "wanted", "'lbfgs'")
    for bad in (3, lx.LBFGS, object(), fun):
        fails(lambda bad=bad: solve(method=bad), TypeError, "method", r"lx\.LBFGS\(\)")


@pytest.mark.parametrize("bad", [lx.LBFGS, lx.Adam, lx.Newton])
def test_a_class_as_method(bad: type) -> None:
    words = ["method is", "class", rf"pass an object such as {bad.__name__}\(\)$"]
    fails(lambda: solve(method=bad), TypeError, *words)
    fails(lambda: solve(method=[lx.Adam().until(maxiter=1), bad]), TypeError, *words)
    fails(lambda: lx.train(value, X0, X0, jac=value, method=bad), TypeError, *words)


@pytest.mark.parametrize(
    "bad", [lx.HagerZhang(), lx.HagerZhang, "hager_zhang", "Hager-Zhang"],
    ids=["object", "class", "name", "other name"],
)
def test_a_line_search_as_method(bad: Any) -> None:
    error = ValueError if isinstance(bad, str) else TypeError
    words = ["method is", r"method=lx\.LBFGS\(line_search=lx\.HagerZhang\(\)\)$"]
    fails(lambda: solve(method=bad), error, *words)
    fails(lambda: lx.train(value, X0, X0, jac=value, method=bad), error, *words)


@pytest.mark.parametrize(
    ("make", "passed", "wanted"),
    [
        (lx.Adam, "lr", "learning_rate"),
        (lx.SGD, "lr", "learning_rate"),
        (lx.GradientDescent, "lr", "learning_rate"),
        (lx.LBFGS, "lr", "learning_rate"),
        (lx.LBFGS, "history_size", "memory_size"),
        (lx.Adam, "b1", "betas"),
        (lx.LBFGS, "line_search_fn", "line_search"),
        (lx.ProjectedGradient, "maxcor", "memory_size"),
        (lx.BFGS, "linesearch", "line_search"),
        (lx.RMSProp, "decay", "alpha"),
        (lx.SGD, "clipnorm", "clip_norm"),
        (lx.StrongWolfe, "maxls", "max_evaluations"),
        (lx.Armijo, "amax", "alpha_max"),
        (lx.MoreThuente, "ftol", "c1"),
        (lx.HagerZhang, "c2", "sigma"),
    ],
)
def test_settings_called_as_elsewhere(make: Any, passed: str, wanted: str) -> None:
    words = [f"{passed} was passed to {make.__name__}; wanted {wanted}$"]
    fails(lambda: make(**{passed: 1}), TypeError, *words)


@pytest.mark.parametrize(
    ("make", "passed", "wanted"),
    [(lx.LBFGS, "max_iter", "maxiter"), (lx.LBFGS, "tolerance_grad", "gtol"),
     (lx.Adam, "gtol", "gtol"), (lx.BFGS, "bounds", "bounds"),
     (lx.LBFGS, "iprint", "progress=True"), (lx.LBFGS, "eps", "diff_step")],
)
def test_settings_of_the_run_passed_to_the_method(make: Any, passed: str, wanted: str) -> None:
    words = [f"{passed} was passed to {make.__name__}; wanted {wanted}, an argument of lx.minimize"]
    fails(lambda: make(**{passed: 1}), TypeError, *words)


def test_settings_of_line_searches_passed_to_the_method() -> None:
    words = ["maxls was passed to LBFGS; wanted line_search, such as", "max_evaluations="]
    fails(lambda: lx.LBFGS(maxls=50), TypeError, *words)


def test_limits_of_a_phase_called_as_elsewhere() -> None:
    words = ["max_iter was passed to until; wanted maxiter"]
    fails(lambda: lx.LBFGS().until(max_iter=5), TypeError, *words)


def test_unknown_settings_are_refused_by_python() -> None:
    unknown = (
        (lx.Adam, "history_size"), (lx.Newton, "lr"), (lx.LBFGS, "speed"), (lx.Armijo, "c2")
    )
    for make, name in unknown:
        fails(lambda make=make, name=name: make(**{name: 1}), TypeError, "unexpected keyword", name)
    assert list(inspect.signature(lx.LBFGS).parameters)[:2] == ["memory_size", "line_search"]


@pytest.mark.parametrize(
    ("bad", "near"),
    [("more-thuente", "more_thuente"), ("MoreThuente", "more_thuente"), ("wolfe", "strong_wolfe"),
     ("hager-zang", "hager_zhang"), ("armjo", "armijo")],
)
def test_unknown_line_search_names_the_nearest(bad: str, near: str) -> None:
    fails(lambda: lx.LBFGS(line_search=bad), ValueError, re.escape(bad), near)


def test_unknown_line_search_lists_all() -> None:
    fails(lambda: lx.LBFGS(line_search="xyz"), ValueError, "xyz", "armijo", "more_thuente")
    for bad in (None, 0.1, lx.MoreThuente):
        fails(lambda bad=bad: lx.LBFGS(line_search=bad), TypeError, "line_search is", "name")


@pytest.mark.parametrize(
    "bad", [0, -1.0, float("nan"), float("inf"), True, "identity", [1.0, -1.0, 1.0]], ids=repr
)
def test_initial_inverse_hessian(bad: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="initial_inverse_hessian.*wanted"):
        solve(method=lx.LBFGS(initial_inverse_hessian=bad))


@pytest.mark.parametrize(
    "function", [lambda v: 1.0, lambda v: v[:1], lambda v: np.ones(3, dtype=int)]
)
def test_initial_inverse_hessian_by_a_wrong_function(function: Any) -> None:
    solver = lx.LBFGS(initial_inverse_hessian=function)
    fails(
        lambda: solve(method=solver), ValueError, "initial_inverse_hessian returned", "wanted",
        r"float64 \(3,\)",
    )


def test_initial_inverse_hessian_of_another_size() -> None:
    solver = lx.LBFGS(initial_inverse_hessian=np.ones(2))
    fails(lambda: solve(method=solver), ValueError, "initial_inverse_hessian", r"\(2,\)", "3")


def test_scale_initial() -> None:
    fails(lambda: lx.LBFGS(scale_initial=1), TypeError, "scale_initial", "1", "True or False")


@pytest.mark.parametrize("method", ["newton", lx.Newton()], ids=["name", "object"])
def test_newton_takes_no_bounds(method: Any) -> None:
    fails(lambda: solve(method=method, bounds=(0.0, 1.0)), ValueError, "bounds", "Newton", "None")


@pytest.mark.parametrize("bad", [3, "print", [print], True], ids=repr)
def test_callback(bad: Any) -> None:
    fails(lambda: solve(callback=bad), TypeError, "callback", re.escape(repr(bad)), "function")


@pytest.mark.parametrize("bad", [3, {}, (1, 2), solve()], ids=lambda b: type(b).__name__)
def test_state(bad: Any) -> None:
    fails(lambda: solve(state=bad), TypeError, "state", type(bad).__name__, "Result")


def test_state_of_another_library() -> None:
    state = solve().state
    x0 = Backend.STRICT.asarray(X0)
    fails(
        lambda: solve(lambda x: (Backend.STRICT.xp.sum(x), x), x0, state=state),
        ValueError, "state", "wanted",
    )


def test_fun_is_not_called_where_arguments_are_wrong() -> None:
    def never(x: Any) -> Any:
        raise AssertionError("called")

    calls: list[dict[str, Any]] = [
        {"gtol": -1}, {"maxiter": -1}, {"callback": 3}, {"jac": "4-point"}, {"bounds": (0, 1, 2)},
        {"method": "x"}, {"state": 3},
    ]
    for bad in calls:
        with pytest.raises((TypeError, ValueError)):
            solve(never, **bad)


def test_misspelt_argument() -> None:
    fails(lambda: solve(gtoll=1e-3), TypeError, "gtoll")


@pytest.mark.parametrize(
    ("function", "passed", "wanted"),
    [
        (lx.minimize, "tol", "gtol"), (lx.minimize, "options", "maxiter="),
        (lx.minimize, "max_iter", "maxiter"), (lx.minimize, "disp", "progress"),
        (lx.minimize, "lr", "lx.Adam"), (lx.minimize, "history_size", "memory_size"),
        (lx.minimize, "constraints", "lx.augmented_lagrangian"),
        (lx.train, "lr", "lx.Adam"), (lx.train, "num_epochs", "epochs"),
        (lx.curve_fit, "maxfev", "maxfun"), (lx.least_squares, "max_nfev", "maxfun"),
    ],
)
def test_arguments_called_as_elsewhere(function: Any, passed: str, wanted: str) -> None:
    words = [f"^{passed} was passed to {function.__name__}; .*{wanted}"]
    fails(lambda: function(value, X0, X0, **{passed: 1}), TypeError, *words)


def test_bounds_of_scipy() -> None:
    class Bounds:
        lb, ub = [-np.inf, 2.0, -np.inf], np.inf

    res = solve(method="projected_gradient", bounds=Bounds())
    assert res.success and res.x[1] == 2.0
    fails(
        lambda: solve(method="projected_gradient", bounds=[(0.0, 1.0)] * 3), TypeError,
        "a list of 3", r"wanted the pair \(lower, upper\)", "SciPy",
    )


# --- the other faces ---------------------------------------------------------------------------


def test_fixed_sum() -> None:
    fails(lambda: lx.fixed_sum(np.asarray(1.0)), ValueError, "axis", "0-d")


def test_state_of_a_solver_that_cannot_go_on() -> None:
    class Bare:
        init, step = lx.LBFGS().init, lx.LBFGS().step

    first = solve(maxiter=1)
    with pytest.raises(ValueError, match="Bare cannot resume from one"):
        solve(x0=first.x, method=Bare(), state=first.state)


# --- other names elsewhere, and forgotten arguments ----------------------------------------------


def test_values_of_fewer_digits_than_differences_need(backend: Backend) -> None:
    """float32 values in a float64 run: the differences are 0, or noise."""
    xp = backend.xp

    def narrow(x: Any) -> Any:
        return xp.sum(xp.astype(x - 3.0, xp.float32) ** 2)

    x0 = backend.asarray(np.ones(2))
    for jac in ("2-point", "3-point"):
        fails(
            lambda jac=jac: lx.minimize(narrow, x0, jac=jac), TypeError,
            "fun returned .*float32", "wanted .*float64",
        )
    fails(
        lambda: lx.minimize(lambda x: (narrow(x), 1), x0, jac="2-point", has_aux=True), TypeError,
        "fun returned .*float32",
    )
    # With an explicit gradient they are accepted.
    res = lx.minimize(lambda x: (narrow(x), 2.0 * (x - 3.0)), x0, jac=True, gtol=1e-3)
    assert res.success


def test_residuals_of_fewer_digits_than_differences_need() -> None:
    x = np.arange(5.0)
    fails(
        lambda: lx.least_squares(lambda p: (p - x).astype(np.float32), x, jac="3-point"),
        TypeError, "residuals returned float32", "wanted float64",
    )
    fails(
        lambda: lx.curve_fit(lambda x, a: (a * x).astype(np.float32), x, x, [1.0], jac="2-point"),
        TypeError, "model returned float32", "wanted float64",
    )


def test_batched_forgotten(backend: Backend) -> None:
    x0 = backend.asarray(np.ones((30, 2)))
    fails(
        lambda: lx.minimize(lambda x: (backend.xp.sum(x * x, axis=-1), 2.0 * x), x0, jac=True),
        ValueError, r"shape \(30,\)", "batched=True",
    )


def test_aux_beside_a_gradient() -> None:
    fails(
        lambda: solve(lambda x: (1.0, 2.0 * x, None), has_aux=True), TypeError, "tuple of 3",
        r"\(\(value, aux\), gradient\)",
    )


def test_a_module_or_its_parameters_as_x0() -> None:
    class Module:
        def named_parameters(self) -> None: ...

    for x0 in (Module(), (each for each in [1.0])):
        fails(lambda x0=x0: solve(x0=x0), TypeError, "named_parameters", "lbfgs_xp.torch")


def test_a_dict_of_numbers() -> None:
    def bowl(p: Any) -> Any:
        return (p["a"] - 2.0) ** 2 + p["b"] ** 2

    res = lx.minimize(bowl, {"a": 1.0, "b": 0.5}, jac="3-point")
    assert res.x["a"] == pytest.approx(2.0) and abs(res.x["b"]) < 1e-6


@pytest.mark.parametrize(
    "method, here",
    [
        ("CG", "lbfgs"), ("L-BFGS-B", "projected_gradient"), ("TNC", "projected_gradient"),
        ("SLSQP", "augmented_lagrangian"), ("trust-constr", "augmented_lagrangian"),
        ("Newton-CG", "newton"), ("trf", "least_squares"), ("Nelder-Mead", "3-point"),
    ],
)
def test_methods_of_scipy(method: str, here: str) -> None:
    fails(lambda: solve(method=method), ValueError, f"{re.escape(repr(method))}.*; .*{here}")


def test_a_callback_may_stop_as_in_scipy() -> None:
    def stop(record: Any) -> None:
        raise StopIteration

    res = solve(lambda x: (np.sum(x**4), 4.0 * x**3), callback=stop)
    assert res.status is lx.Status.CALLBACK and res.nit == 1


def test_a_result_is_no_tuple() -> None:
    with pytest.raises(TypeError, match=r"cannot be unpacked; wanted .* res\.x and res\.fun"):
        x, _ = solve()
