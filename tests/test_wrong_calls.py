"""Wrong calls of every public function: one clear error each, with the argument and the value.

Each row is a call and what its message must name. The error must be a TypeError or ValueError that
this library raises itself: one from the depths of NumPy is not enough.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import problems, projections, schedules

PACKAGE = str(Path(lx.__file__).parent)


class Row(NamedTuple):
    """A call; the words that its message must hold."""

    name: str
    call: Callable[[], Any]
    words: tuple[str, ...]


def named(value: Any) -> str:
    """A pattern for any of the ways in which a message may show a value."""
    ways = [re.escape(repr(value)), rf"\b{type(value).__name__}\b"]
    if isinstance(value, np.ndarray):
        ways += [re.escape(str(value.shape)), re.escape(str(value.dtype))]
        if value.dtype.kind in "fc":
            ways += [re.escape(str(value.flat[0]))] if value.size else ["empty"]
            ways += ["complex"] if value.dtype.kind == "c" else []
    if isinstance(value, dict):
        ways += [f"names {re.escape(repr(key))}" for key in value]
        ways += [rf"\['{re.escape(str(key))}'\]" for key in value]
    if isinstance(value, (list, tuple)):
        ways += [re.escape(repr(each)) for each in value] or [re.escape("(0,)")]
    return "|".join(ways)


def rows(
    what: str, function: Callable[..., Any], good: dict[str, Any],
    bad: dict[str, Iterable[Any]],
) -> list[Row]:
    """A row for each bad value of each argument; the others are good."""
    return [
        Row(
            f"{what}({argument}={value!r})"[:90],
            functools.partial(function, **good | {argument: value}),
            (rf"\b{argument}\b", named(value)),
        )
        for argument, values in bad.items() for value in values
    ]


class Nothing:
    """An object that is nothing of what any function takes."""

    def __repr__(self) -> str:
        return "Nothing()"


NOTHING = Nothing()
NO_NUMBER = ["a", math.nan, 1j, NOTHING]
NO_COUNT = ["a", -1, 1.5, math.nan, NOTHING]
NO_BUDGET = ["a", -1, 1.5, math.nan, NOTHING]
NO_TOLERANCE = ["a", -1.0, math.nan, 1j, NOTHING]
NO_FLAG = [2, 0, "no", None, NOTHING]
NO_FUNCTION = [3, "a", NOTHING]
NO_CALLBACK = [3, "a", NOTHING]
NO_EXCEPTION = [3, "a", None, ValueError(), (ValueError, 3), NOTHING]
NO_SCALE = ["a", -1.0, 0.0, math.nan, 1j, NOTHING]
NO_BOUNDS = [3, "a", (0.0,), (0.0, 1.0, 2.0), NOTHING]
NO_JAC = ["cs", 3, False, NOTHING]

X0, X, Y = np.ones(3), np.arange(5.0), np.arange(5.0) + 1.0


def fun(x: Any) -> Any:
    return np.sum(x * x, axis=-1), 2.0 * x


def value(x: Any) -> Any:
    return np.sum(x * x)


def residuals(x: Any) -> Any:
    return x - 3.0


def line(x: Any, a: Any, b: Any) -> Any:
    return a + b * x


# --- minimize and the fits ---------------------------------------------------------------------

LIMITS: dict[str, Iterable[Any]] = {
    "gtol": NO_TOLERANCE, "ftol": NO_TOLERANCE, "xtol": NO_TOLERANCE,
    "maxiter": NO_BUDGET, "maxfun": [*NO_BUDGET, 0], "maxtime": NO_TOLERANCE,
}
MINIMIZE = rows("minimize", lx.minimize, {"fun": fun, "x0": X0, "jac": True}, {
    **LIMITS,
    "fun": [*NO_FUNCTION, None, X0],
    "x0": [None, "a", NOTHING, np.ones(3, int), np.ones(0), np.asarray(["a"])],
    "method": ["sgdd", "l-bfgs", 3, NOTHING, lx.LBFGS, []],
    "jac": NO_JAC,
    "diff_step": [*NO_NUMBER, 0.0, -1.0],
    "hess": NO_FUNCTION,
    "has_aux": NO_FLAG, "batched": NO_FLAG, "pass_rows": NO_FLAG, "reproducible": NO_FLAG,
    "progress": NO_FLAG,
    "callback": NO_CALLBACK, "on_error": NO_EXCEPTION, "x_scale": NO_SCALE,
    "state": [3, "a", NOTHING],
}) + rows(
    "minimize", lx.minimize,
    {"fun": fun, "x0": X0, "jac": True, "method": "projected_gradient"}, {"bounds": NO_BOUNDS},
)
FITS = [
    *rows("least_squares", lx.least_squares, {
        "residuals": residuals, "x0": X0, "jac": "3-point",
    }, {
        **LIMITS,
        "residuals": [*NO_FUNCTION, None, X0],
        "x0": [None, "a", NOTHING, np.ones(3, int), np.ones(0), np.ones(3) * 1j],
        "jac": NO_JAC, "diff_step": [*NO_NUMBER, 0.0, -1.0], "bounds": NO_BOUNDS,
        "loss": ["square", 3, NOTHING], "f_scale": [*NO_NUMBER, 0.0, -1.0],
        "factor": [*NO_NUMBER, 0.0, -1.0], "batched": NO_FLAG, "compact": NO_FLAG,
        "callback": NO_CALLBACK, "on_error": NO_EXCEPTION, "x_scale": NO_SCALE,
    }),
    *rows("curve_fit", lx.curve_fit, {
        "model": line, "x": X, "y": Y, "p0": [1.0, 1.0], "jac": "3-point",
    }, {
        **LIMITS,
        "model": [*NO_FUNCTION, None, X0],
        "y": ["a", None, 3.0, NOTHING, np.ones(0), np.ones((2, 3)), np.full(5, "a")],
        "p0": ["a", None, NOTHING, [], np.ones((2, 2))],
        "sigma": ["a", np.ones(3), np.zeros(5), -np.ones(5), np.full(5, np.nan),
                  np.full(5, np.inf), NOTHING],
        "absolute_sigma": NO_FLAG, "batched": NO_FLAG, "compact": NO_FLAG,
        "jac": NO_JAC, "diff_step": [*NO_NUMBER, 0.0, -1.0], "bounds": NO_BOUNDS,
        "loss": ["square", 3, NOTHING], "f_scale": [*NO_NUMBER, 0.0, -1.0],
        "factor": [*NO_NUMBER, 0.0, -1.0], "method": ["trf", 3, None, NOTHING],
        "threads": [*NO_COUNT, 0], "on_error": NO_EXCEPTION, "x_scale": NO_SCALE,
        "fixed": ["c", 7, 1.5, ("a", "c"), [NOTHING], NOTHING],
        "ties": ["a", 3, ("a",), {"c": line}, {7: line}, {"a": 2.0}, NOTHING],
        "priors": ["a", 3, ("a", (0.0, 1.0)), {"c": (0.0, 1.0)}, {"a": 3.0}, {"a": (0.0, -1.0)},
                   {"a": (0.0, NOTHING)}, NOTHING],
        "likelihood": ["poison", 3, None, NOTHING],
        "trials": [3, "a", NOTHING],
        "starts": [3, "a", np.ones(2), np.ones((4, 3)), {"c": [1.0]}, NOTHING],
    }),
    *rows("curve_fit", lx.curve_fit, {
        "model": line, "x": X, "y": Y, "p0": [1.0, 1.0], "likelihood": "poisson",
    }, {
        "y": [-Y, Y * 1j], "sigma": [1.0, np.ones(5), (1.0, 2.0)], "loss": ["huber"],
        "trials": [3.0],
    }),
    *rows("curve_fit", lx.curve_fit, {
        "model": lambda x, a: 0.0 * x + a, "x": X, "y": Y, "p0": [0.5], "likelihood": "binomial",
        "trials": 9.0,
    }, {"trials": ["a", 0.0, -1.0, math.nan, np.ones(3), NOTHING]}),
]
CONSTRAINED = [
    row for function in (lx.augmented_lagrangian, lx.quadratic_penalty)
    for row in rows(function.__name__, function, {
        "fun": value, "x0": X0, "jac": lambda x: 2.0 * x, "equality": lambda x: x[:1] - 1.0,
        "equality_jac": lambda x: np.asarray([[1.0, 0.0, 0.0]]),
    }, {
        "fun": NO_FUNCTION, "x0": [None, "a", NOTHING, np.ones(3, int)], "jac": NO_JAC,
        "inequality": NO_FUNCTION, "equality": NO_FUNCTION,
        "inequality_jac": NO_FUNCTION, "equality_jac": NO_FUNCTION,
        "method": ["sgdd", 3, NOTHING], "bounds": NO_BOUNDS,
        "penalty": [*NO_NUMBER, 0.0], "growth": [*NO_NUMBER, 1.0],
        "ctol": NO_TOLERANCE, "gtol": NO_TOLERANCE, "maxiter": NO_BUDGET,
        "maxiter_inner": NO_BUDGET, "maxfun": NO_BUDGET, "maxtime": NO_TOLERANCE,
        "reproducible": NO_FLAG, "callback": NO_CALLBACK,
    })
]
TRAIN = rows("train", lx.train, {
    "loss": lambda p, x: (np.sum((p - x) ** 2), 2.0 * np.sum(p - x, axis=0)),
    "params": X0, "data": np.ones((4, 3)), "jac": True,
}, {
    "loss": NO_FUNCTION, "params": [None, "a", NOTHING, np.ones(3, int)],
    "method": ["sgdd", 3, NOTHING], "jac": ["cs", 3, "3-point", NOTHING],
    "batch_size": [*NO_COUNT, 0], "epochs": NO_COUNT, "shuffle": NO_FLAG,
    "seed": ["a", -1, 1.5, NOTHING], "updates_per_batch": [*NO_COUNT, 0],
    "maxtime": NO_TOLERANCE, "reproducible": NO_FLAG, "compile": NO_FLAG,
    "callback": NO_CALLBACK, "progress": NO_FLAG, "state": [3, "a", NOTHING],
})
CHECK = rows("check_gradient", lx.check_gradient, {"fun": fun, "x": X0, "jac": True}, {
    "fun": NO_FUNCTION, "x": [None, "a", NOTHING, np.ones(3, int)], "jac": NO_JAC,
    "has_aux": NO_FLAG,
})

# --- settings ----------------------------------------------------------------------------------

# What is no value of a field of this type, and some fields that take more than their type says.
BAD_FIELDS: dict[str, Iterable[Any]] = {
    "float": NO_NUMBER, "float | None": NO_NUMBER, "int": NO_COUNT, "int | None": NO_COUNT,
    "bool": NO_FLAG, "str": ["a", 3, None, NOTHING],
    "tuple[float, float]": ["a", (0.5,), (0.5, "a"), 3, (0.5, math.nan), NOTHING],
    "tuple[int, ...]": ["a", (1.5,), (-1,), 3, ("a",), (3, 2), NOTHING],
    "tuple[float, ...]": ["a", ("a",), (math.nan,), 3, NOTHING],
    "Schedule": ["a", -1.0, NOTHING], "tuple[Schedule, ...]": ["a", 3, ("a",), NOTHING],
}
OF_NAME: dict[str, Iterable[Any]] = {
    "learning_rate": ["a", -1.0, math.nan, 1j, NOTHING],
    "line_search": ["wolfe", 3, NOTHING],
    "initial_inverse_hessian": ["a", -1.0, math.nan, True, NOTHING],
    "on_nonfinite": ["no", 3, None, NOTHING], "modify": ["no", 3, NOTHING],
    "projection": [3, "a", NOTHING], "labels": [3, 1j], "groups": [3, NOTHING],
    "function": NO_FUNCTION, "mode": ["most", 3, None, NOTHING],
    "threshold_mode": ["most", 3, None, NOTHING],
}
GOOD: dict[type, dict[str, Any]] = {
    schedules.Constant: {"learning_rate": 0.1},
    schedules.Cosine: {"learning_rate": 0.1, "steps": 10},
    schedules.CosineRestarts: {"learning_rate": 0.1, "period": 10},
    schedules.Cyclic: {"learning_rate": 0.1, "up_steps": 10, "minimum": 0.01},
    schedules.Exponential: {"learning_rate": 0.1, "factor": 0.9},
    schedules.Factor: {"learning_rate": 0.1, "factor": 0.9},
    schedules.Function: {"function": float},
    schedules.InverseSquareRoot: {"learning_rate": 0.1, "warmup_steps": 10},
    schedules.Linear: {"initial": 0.1, "final": 0.2, "steps": 10},
    schedules.MultiStep: {"learning_rate": 0.1, "boundaries": (3, 5)},
    schedules.OneCycle: {"learning_rate": 0.1, "steps": 10},
    schedules.PiecewiseConstant: {
        "learning_rate": 0.1, "boundaries": (3, 5), "factors": (0.5, 2.0)
    },
    schedules.PiecewiseInterpolate: {
        "learning_rate": 0.1, "boundaries": (3, 5), "factors": (0.5, 2.0)
    },
    schedules.Polynomial: {"learning_rate": 0.1, "steps": 10},
    schedules.Product: {"schedules": (schedules.Constant(0.1),)},
    schedules.ReduceOnPlateau: {"learning_rate": 0.1},
    schedules.Sequence: {
        "schedules": (schedules.Constant(0.1), schedules.Constant(0.2)), "boundaries": (3,)
    },
    schedules.StepDecay: {"learning_rate": 0.1, "every": 3},
    schedules.Warmup: {"schedule": schedules.Constant(0.1), "warmup_steps": 3},
    schedules.WarmupStableDecay: {
        "learning_rate": 0.1, "warmup_steps": 3, "stable_steps": 3, "decay_steps": 3
    },
    lx.Limits: {}, lx.LBFGS: {}, lx.BFGS: {}, lx.Newton: {}, lx.ProjectedGradient: {},
    lx.Armijo: {}, lx.Bisection: {}, lx.Fixed: {}, lx.HagerZhang: {}, lx.MoreThuente: {},
    lx.StrongWolfe: {}, lx.GradientDescent: {},
    **{optimizer: {} for optimizer in (
        lx.SGD, lx.Adagrad, lx.RMSProp, lx.Adadelta, lx.Adam, lx.AdamW, lx.Adamax, lx.NAdam,
        lx.RAdam, lx.Yogi, lx.AdaBelief, lx.Lion, lx.Rprop, lx.ASGD, lx.StochasticLBFGS,
    )},
    projections.L1Ball: {}, projections.Simplex: {}, projections.L2Ball: {},
    projections.Halfspace: {"normal": np.ones(3), "offset": 1.0},
}


def bad_fields(cls: type) -> dict[str, Iterable[Any]]:
    fields = {}
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        bad = OF_NAME.get(field.name, BAD_FIELDS.get(str(field.type), ()))
        fields[field.name] = [
            each for each in bad
            # Where None is the default or a choice, it is no bad value; "a" is no shape either.
            if not (each is None and (field.default is None or "None" in str(field.type)))
        ]
    return fields


PROBLEMS = [
    *rows("rosenbrock", problems.rosenbrock, {}, {
        "n": [*NO_COUNT, 1], "reproducible": NO_FLAG, "dtype": [np.int64],
    }),
    *rows("chained_rosenbrock", problems.chained_rosenbrock, {}, {"n": NO_COUNT}),
    *rows("rastrigin", problems.rastrigin, {}, {"n": NO_COUNT}),
    *rows("quadratic", problems.quadratic, {}, {
        "n": NO_COUNT, "rotation": ["random", 3], "spectrum": [3, "a", [1.0, "a"]],
    }),
    *rows("logistic_regression", problems.logistic_regression, {}, {
        "n": NO_COUNT, "samples": [*NO_COUNT, 0], "l2": NO_TOLERANCE,
    }),
    *rows("exponential_decay", problems.exponential_decay, {}, {
        "samples": [*NO_COUNT, 0], "noise": NO_TOLERANCE,
    }),
    *rows("mlp_regression", problems.mlp_regression, {}, {
        "hidden": ["a", -1, 1.5, NOTHING], "activation": ["step", 3], "samples": [*NO_COUNT, 0],
    }),
]


# --- calls that are wrong in their own way -----------------------------------------------------

def solve(function: Any = fun, x0: Any = X0, **settings: Any) -> Any:
    return lx.minimize(function, x0, **{"jac": True, **settings})


def fit(**settings: Any) -> Any:
    return lx.curve_fit(**{"model": line, "x": X, "y": Y, "p0": [1.0, 1.0], "jac": "3-point"}
                        | settings)


def constrained(**settings: Any) -> Any:
    return lx.augmented_lagrangian(value, X0, jac=lambda x: 2.0 * x, **settings)


def trained_from(**of_state: Any) -> Any:
    def mean(p: Any, x: Any) -> Any:
        return np.mean((p - x) ** 2), 2.0 * np.mean(p - x, axis=0)

    first = lx.train(mean, X0, np.ones((2, 3)), jac=True)
    return lx.train(
        mean, X0, np.ones((2, 3)), jac=True, epochs=2, state=first.state._replace(**of_state)
    )


def matrix_of(residual: Any) -> Callable[[], Any]:
    return lambda: lx.least_squares(residual, np.ones(2), jac="3-point")


OWN = [
    Row(name, call, words) for name, call, *words in [
        ("c1", lambda: lx.MoreThuente(c1=2.0), "c1", r"2\.0"),
        ("c1 and c2", lambda: lx.MoreThuente(c1=0.5, c2=0.1), "c1", "c2", r"0\.5", r"0\.1"),
        ("c2", lambda: lx.MoreThuente(c2=1.5), "c2", r"1\.5"),
        ("bisection", lambda: lx.Bisection(c1=0.5, c2=0.1), "c1", "c2", r"0\.5"),
        ("strong wolfe", lambda: lx.StrongWolfe(c1=0.5, c2=0.1), "c1", "c2", r"0\.5"),
        ("hager zhang", lambda: lx.HagerZhang(delta=0.6, sigma=0.1), "delta|sigma", r"0\.6|0\.1"),
        ("shrink", lambda: lx.Armijo(shrink_min=0.9, shrink_max=0.1), "shrink_min", r"0\.9"),
        ("alpha_min", lambda: lx.MoreThuente(alpha_min=1.0, alpha_max=0.1), "alpha_min", r"1\.0"),
        ("fixed_sum of a string", lambda: lx.fixed_sum("a"), "x", "str|'a'"),
        ("fixed_sum of a number", lambda: lx.fixed_sum(3), "x", "int|3"),
        ("fixed_sum of a list", lambda: lx.fixed_sum([1.0]), "x", "list"),
        ("fixed_sum of strings", lambda: lx.fixed_sum(np.asarray(["a"])), "x", "<U1"),
        ("fixed_sum axis", lambda: lx.fixed_sum(X0, axis=1), "axis", "1"),
        ("fixed_sum axis name", lambda: lx.fixed_sum(X0, axis="a"), "axis", "'a'"),
        ("fixed_sum 0-d", lambda: lx.fixed_sum(np.ones(())), "x", "0-d"),
        ("two_loop", lambda: lx.two_loop(X0, 3, 4), "S", "3|int"),
        ("two_loop gradient", lambda: lx.two_loop("a", np.ones((1, 3)), np.ones((1, 3))),
         "gradient", "'a'|str"),
        ("two_loop shapes", lambda: lx.two_loop(X0, np.ones((1, 3)), np.ones((2, 3))),
         "S", "Y", r"\(1, 3\)", r"\(2, 3\)"),
        ("two_loop length", lambda: lx.two_loop(X0, np.ones((1, 2)), np.ones((1, 2))),
         "S", r"\(1, 2\)"),
        ("two_loop axes", lambda: lx.two_loop(X0, X0, X0), "S", r"\(3,\)"),
        ("two_loop dot", lambda: lx.two_loop(X0, np.ones((1, 3)), np.ones((1, 3)), dot=3),
         "dot", "3"),
        ("two_loop gamma", lambda: lx.two_loop(X0, np.ones((1, 3)), np.ones((1, 3)), gamma="a"),
         "gamma", "'a'"),
        ("Space", lambda: lx.Space(3), "backend", "3|int"),
        ("Space of a string", lambda: lx.Space("numpy"), "backend", "'numpy'|str"),
        ("Space batched", lambda: lx.Space(X0, batched=2), "batched", "2"),
        ("FixedOrderSpace", lambda: lx.FixedOrderSpace(None), "backend", "None"),
        ("line_search", lambda: lx.line_search(3, "armijo"), "phi", "3|int"),
        ("line_search rule", lambda: lx.line_search(lambda a: (a, 1.0), "wolfe"), "rule|'wolfe'",
         "wolfe"),
        ("line_search alpha0", lambda: lx.line_search(lambda a: (a, 1.0), "armijo", "a"),
         "alpha0", "'a'"),
        ("line_search noise",
         lambda: lx.line_search(lambda a: (a, -1.0), "armijo", noise="a"), "noise", "'a'"),
        ("line_search phi returns", lambda: lx.line_search(lambda a: a, "armijo"), "phi", "float"),
        ("Phase", lambda: solve(method=[lx.Phase("sgdd")]), "method", "'sgdd'"),
        ("Phase limits", lambda: lx.Phase("adam", 3), "limits", "3|int"),
        ("until", lambda: lx.Adam().until(maxiter="a"), "maxiter", "'a'"),
        ("sigma singular", lambda: fit(sigma=np.ones((5, 5))), "sigma", "positive definite"),
        ("sigma not symmetric", lambda: fit(sigma=np.triu(np.ones((5, 5)))), "sigma", "symmetric"),
        ("y ragged", lambda: lx.curve_fit(line, X, [[1.0], [1.0, 2.0]], [1.0, 1.0]), "y", "ragged"),
        ("sigma not finite", lambda: fit(sigma=np.diag([1.0, 1.0, 1.0, 1.0, np.inf])),
         "sigma", "entries that are not finite"),
        ("sigma all infinite", lambda: fit(sigma=np.full(5, np.inf)), "sigma", "inf"),
        ("batch, one sigma all infinite", lambda: lx.curve_fit(
            line, X, np.stack([Y, Y]), [1.0, 1.0], jac="3-point", batched=True,
            sigma=np.stack([np.ones(5), np.full(5, np.inf)])), "sigma", "inf"),
        ("residuals (m, m)", matrix_of(lambda x: x[:, None] - x), "residuals", r"\(2, 2\)"),
        ("residuals (m, 1)", matrix_of(lambda x: x[:, None] - 3.0), "residuals", r"\(2, 1\)"),
        ("residuals ()", matrix_of(lambda x: np.sum(x)), "residuals", r"float64|\(\)"),
        ("residuals that become fewer", lambda: lx.least_squares(
            lambda x: x[: 2 if np.all(x == 1.0) else 1] - 3.0, np.ones(2), jac="2-point"),
         "residuals", "length 1, and 2 at the start"),
        ("residuals of integers", matrix_of(lambda x: np.arange(3)), "residuals", "int64"),
        ("residuals of a list", matrix_of(lambda x: [1.0]), "residuals", "list"),
        ("residuals of a batch", lambda: lx.least_squares(
            lambda x: x[:, :, None] - x[:, None], np.ones((2, 2)), jac="3-point", batched=True),
         "residuals", r"\(2, 2, 2\)"),
        ("complex constraint", lambda: constrained(
            equality=lambda x: x[:1] * 1j, equality_jac=lambda x: np.eye(3)[:1]),
         "equality", "complex"),
        ("complex inequality", lambda: constrained(
            inequality=lambda x: x[:1] * 1j, inequality_jac=lambda x: np.eye(3)[:1]),
         "inequality", "complex"),
        ("constraint of strings", lambda: constrained(
            equality=lambda x: "a", equality_jac=lambda x: np.eye(3)[:1]), "equality", "'a'"),
        ("constraint without its Jacobian", lambda: constrained(equality=lambda x: x[:1]),
         "equality_jac"),
        ("no constraints", lambda: constrained(), "inequality", "equality"),
        ("pass_rows", lambda: solve(batched=True, x0=np.ones((2, 3)), pass_rows="a"),
         "pass_rows", "'a'"),
        ("pass_rows of one problem", lambda: solve(pass_rows=True), "pass_rows", "True"),
        ("method as a class", lambda: solve(method=lx.Adam), "method", "Adam"),
        ("bounds for gradient descent", lambda: solve(method="gradient_descent", bounds=(0, 1)),
         "bounds", "GradientDescent"),
        ("bounds crossed", lambda: solve(bounds=(2.0, 1.0)), "lower", r"2\.0", r"1\.0"),
        ("bounds of nan", lambda: solve(bounds=(math.nan, 1.0)), "lower", "nan"),
        ("bounds of a shape", lambda: solve(bounds=(np.zeros(2), None)), "lower bound", r"\(2,\)"),
        ("bounds of strings", lambda: solve(bounds=("a", None)), "lower bound", "'a'|str"),
        ("bounds of unknown names", lambda: lx.minimize(
            lambda p: (np.sum(p["a"]), p), {"a": X0}, jac=True, bounds=({"b": 0.0}, None)),
         "lower bound", "'b'"),
        ("hess for l-bfgs", lambda: solve(hess=lambda x: np.eye(3)), "hess", "LBFGS"),
        ("no hess", lambda: solve(method="newton"), "hess", "numpy"),
        ("hess of a shape", lambda: solve(method="newton", hess=lambda x: np.eye(2)),
         "hess|Hessian", r"\(2, 2\)"),
        ("value of a shape", lambda: solve(lambda x: (x, x)), "fun", r"\(3,\)"),
        ("value of a string", lambda: solve(lambda x: ("a", x)), "fun", "str"),
        ("value complex", lambda: solve(lambda x: (1j, x)), "fun", "complex"),
        ("no pair", lambda: solve(lambda x: 1.0), "fun", "float", "jac=True"),
        ("gradient of a shape", lambda: solve(lambda x: (1.0, x[:2])), "gradient", r"\(2,\)"),
        ("gradient of strings", lambda: solve(lambda x: (1.0, np.asarray(["a"] * 3))), "gradient",
         "<U1"),
        ("gradient complex", lambda: solve(lambda x: (1.0, x * 1j)), "gradient", "complex"),
        ("gradient of a name", lambda: lx.minimize(
            lambda p: (1.0, {"a": X0, "b": np.ones(2)}), {"a": X0, "b": X0}, jac=True),
         r"gradient\.b", r"\(2,\)"),
        ("a mask in x0", lambda: solve(x0=np.ma.masked_array(X0, [0, 1, 0])), "x0", "mask"),
        ("a leaf of integers", lambda: solve(x0={"a": X0, "b": [X0, np.ones(2, int)]}),
         r"x0\.b\.1", "int64"),
        ("a leaf that is None", lambda: solve(x0={"a": X0, "b": None}), r"x0\.b", "NoneType"),
        ("a leaf that is a function", lambda: solve(x0={"a": X0, "b": [len]}), r"x0\.b\.0",
         "builtin"),
        ("leaves of two dtypes", lambda: solve(x0={"a": X0, "b": np.ones(2, np.float32)}),
         r"x0\.b", "float32"),
        ("rows of two lengths", lambda: solve(
            x0={"a": np.ones((2, 3)), "b": np.ones((3, 3))}, batched=True), r"x0\.b", r"\(3, 3\)"),
        ("init", lambda: lx.Adam().init("a"), "params", "'a'|str"),
        ("init of a leaf", lambda: lx.Adam().init({"a": X0, "b": np.ones(2, int)}), r"params\.b",
         "int64"),
        ("update without a state", lambda: lx.Adam().update(X0, X0, 3), "state", "int|3"),
        ("update with a gradient of a shape",
         lambda: lx.Adam().update(X0, X0[:2], lx.Adam().init(X0)), "grad", r"\(2,\)"),
        ("update with a string", lambda: lx.Adam().update(X0, "a", lx.Adam().init(X0)), "grad",
         "'a'|str"),
        ("schedule of a step", lambda: schedules.Cosine(0.1, steps=10)("a"), "step", "'a'"),
        ("schedule at -1", lambda: schedules.Cosine(0.1, steps=10)(1.5), "step", r"1\.5"),
        ("as_schedule", lambda: schedules.as_schedule("a"), "learning_rate", "'a'"),
        ("factors for boundaries", lambda: schedules.PiecewiseConstant(0.1, (1, 2), (0.5,)),
         "boundaries", "factors"),
        ("Sequence", lambda: schedules.Sequence((schedules.Constant(0.1),), (1,)), "boundaries",
         "schedules"),
        ("Box", lambda: solve(method=lx.ProjectedGradient(projections.Box("a", None))), "lower",
         "'a'|str"),
        ("Box crossed", lambda: projections.Box(2.0, 1.0), "lower", r"2\.0", r"1\.0"),
        ("Simplex", lambda: projections.Simplex(0.0), "total", r"0\.0"),
        ("L2Ball center", lambda: solve(method=lx.ProjectedGradient(
            projections.L2Ball(1.0, center=np.ones(2)))), "center", r"\(2,\)"),
        ("L2Ball of a string", lambda: solve(method=lx.ProjectedGradient(
            projections.L2Ball(1.0, center="a"))), "center", "'a'|str"),
        ("Halfspace of a string", lambda: solve(method=lx.ProjectedGradient(
            projections.Halfspace("a", 1.0))), "normal", "'a'|str"),
        ("Halfspace of zeros", lambda: solve(method=lx.ProjectedGradient(
            projections.Halfspace(np.zeros(3), 1.0))), "normal", "0"),
        ("a result of its own", lambda: tuple(solve()), "res"),
        ("two results", lambda: tuple(fit()), "fit"),
        ("covariance_of", lambda: fit().covariance_of("q"), "parameter", "'q'"),
        ("covariance_of a place", lambda: fit().covariance_of(7), "parameter", "7"),
        ("train without data", lambda: lx.train(lambda p, x: (1.0, p), X0, [], jac=True), "data"),
        ("train with data of two lengths", lambda: lx.train(
            lambda p, x, y: (1.0, p), X0, (np.ones((2, 3)), np.ones(3)), jac=True), "data",
         r"2", "3"),
        *[
            (f"a negative {name}", functools.partial(trained_from, **{name: -1}), rf"state\.{name}",
             "-1")
            for name in ("epoch", "updates")
        ],
        ("p0 of a shape", lambda: lx.curve_fit(
            line, X, np.stack([Y, Y]), np.ones((3, 2)), jac="3-point", batched=True), "p0",
         r"\(3, 2\)"),
        ("too many p0", lambda: fit(p0=[1.0, 1.0, 1.0]), "p0 holds 3", "takes a, b"),
        ("too few p0", lambda: fit(p0=[1.0]), "p0 holds 1", "wanted 2: .*takes a, b"),
        ("too many p0 for defaults", lambda: fit(
            model=lambda x, a=1.0, b=0.0: a * x + b, p0=[1.0] * 3),
         "p0 holds 3", "wanted 1 to 2: .*takes a, b"),
        ("bounds of p0", lambda: fit(bounds=([0.0] * 3, None)), "lower bound", r"\(3,\)"),
        ("model of a shape", lambda: fit(model=lambda x, a, b: x[:2]), "model", r"\(2,\)"),
        ("model of integers", lambda: fit(model=lambda x, a, b: x.astype(int)), "model", "int64"),
        ("model of a list", lambda: fit(model=lambda x, a, b: [1.0] * 5), "model", "list"),
        ("jac of a shape", lambda: fit(jac=lambda x, a, b: np.ones((5, 3))), "Jacobian",
         r"\(5, 3\)"),
        *[
            (f"minimize({name})", functools.partial(solve, **{name: 3}), name)
            for name in (
                "lr", "learning_rate", "tol", "options", "max_iter", "constraints", "hessp", "disp",
                "memory_size", "line_search", "maxit", "max_nfev",
            )
        ],
        *[
            (f"{function.__name__}({name})", functools.partial(function, *given, **{name: 3}), name)
            for function, given, names in (
                (lx.least_squares, (residuals, X0), (
                    "tol", "max_nfev", "verbose", "fun", "kwargs", "method",
                )),
                (lx.curve_fit, (line, X, Y, [1.0, 1.0]), (
                    "f", "maxfev", "full_output", "verbose", "kwargs", "args",
                )),
            )
            for name in names
        ],
    ]
]
TABLE = {
    "minimize": MINIMIZE, "fits": FITS, "constraints": CONSTRAINED, "train": TRAIN,
    "check_gradient": CHECK, "problems": PROBLEMS, "own": OWN,
    **{cls.__name__: rows(cls.__name__, cls, good, bad_fields(cls)) for cls, good in GOOD.items()},
}


def test_the_table_is_long() -> None:
    assert sum(map(len, TABLE.values())) >= 2000


@pytest.mark.parametrize("name", TABLE)
def test_a_wrong_call_has_one_clear_error(name: str) -> None:
    """All rows in one test for each function, because two thousand tests take their time."""
    faults = [f"{row.name}: {fault}" for row in TABLE[name] if (fault := fault_of(row))]
    assert not faults, "\n".join(faults)


def fault_of(row: Row) -> str:
    """What is wrong with the error of a call; "" if nothing is."""
    try:
        row.call()
    except (TypeError, ValueError) as error:
        message = str(error)
        missing = [word for word in row.words if not re.search(word, message)]
        if missing:
            return f"{missing} is not in: {message}"
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        if not last.startswith(PACKAGE):
            return f"raised in {last}: {message}"
        if not (error.__suppress_context__ or error.__context__ is None):
            return f"raised while another error was being handled: {message}"
        return ""
    except Exception as error:
        return f"an unclear error: {error!r}"
    return "no error"
