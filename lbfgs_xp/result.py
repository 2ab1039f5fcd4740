"""What a run returns, and why it stopped."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import enum
import functools
import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Self

import numpy as np

from lbfgs_xp.arrays.backend import Backend, class_of, is_array, is_tracing
from lbfgs_xp.arrays.space import FixedOrderSpace, Space
from lbfgs_xp.arrays.tree import Layout, flatten, map_leaves
from lbfgs_xp.saving.descriptions import Described, described
from lbfgs_xp.saving.encoding import Decoder
from lbfgs_xp.saving.placing import as_own, placed

if TYPE_CHECKING:
    from lbfgs_xp.solvers.inverse_hessian import Operator


class Reason(enum.IntEnum):
    """The reason why something stopped; `str(reason)` is its name, `reason.message` a sentence."""

    message: str
    success: bool

    def __new__(cls, code: int, success: bool, message: str) -> Self:
        member = int.__new__(cls, code)
        member._value_ = code
        member.success = success
        member.message = message
        return member

    def __str__(self) -> str:
        return self.name


class Status(Reason):
    """The reason why a run stopped; `status.message` says it in a sentence.

    `status.success` says whether the run ended as intended: the gradient is small, the value or the
    step has settled, the precision floor of the dtype is reached, or all epochs are done.
    """

    RUNNING = -1, False, "still running"
    GRADIENT = (
        0,
        True,
        "the gradient is small: its largest component (under constraints, of the projected "
        "gradient) is at most gtol",
    )
    VALUE = 1, True, "the value has settled: its relative change is at most ftol"
    STEP = 2, True, "the step has settled: its largest component is at most xtol (relative to x)"
    PRECISION = (
        3,
        True,
        "precision floor: rounding or noise of the function, or the step given for its "
        "differences, hides any better point from this one",
    )
    ITERATIONS = 4, False, "the iteration budget (maxiter) is spent"
    EVALUATIONS = 5, False, "the evaluation budget (maxfun) is spent"
    TIME = 6, False, "the time budget (maxtime) is spent"
    LINE_SEARCH = (
        7,
        False,
        "no step along the descent direction lowers the value: function and gradient disagree "
        "(lx.check_gradient compares them), or there is a kink, a jump, a large rounding error or "
        "the edge of the domain here",
    )
    NOT_FINITE = 8, False, "the value or the gradient at the start is not finite"
    UNBOUNDED = 9, False, "the value falls without bound along the search direction"
    CALLBACK = 10, False, "stopped by the callback"
    INTERRUPTED = 11, False, "interrupted from the keyboard"
    DIVERGED = (
        12,
        False,
        "a step led to a value or gradient that is not finite: the learning rate may be too "
        "large; the best point before it is kept",
    )
    HIGHER = (
        13,
        False,
        "settled higher than the best point seen, which is the one returned: at a saddle, at a "
        "maximum, in another valley, or after many overly short steps",
    )
    EPOCHS = 14, True, "all epochs are done"


# Internal codes besides those of `Status`, below RUNNING, for ends that have yet to be confirmed:
# the run seems to be at the precision floor; the gradient is small by the default tolerance; a
# search has failed, and rounding does not explain it unless it is larger than that of one number;
# and for a run that is to continue, because noise of the value has ended it.
CLAIMED, FLAT, DOUBTED, NOISY = -2, -3, -4, -5


class Best(NamedTuple):
    """The best point seen: vectors (..., n), scalars (...); `lowest` is the lowest value seen."""

    x: Any
    value: Any
    gradient: Any
    gradient_norm: Any
    lowest: Any


class State(NamedTuple):
    """Everything needed to continue a run: `lx.minimize(..., state=res.state)`.

    solver, space : the solver and the space of the run; None for the space of a run inside a
        function that JAX compiles.
    solver_state : the state of the solver.
    best, aux : the best point so far, and its aux.
    central : whether central differences have replaced forward ones.
    differences : what the differences know of fun.
    progress : the progress of the run, which gives the units of f.
    x_scale : the scale of the variables, in a form that can be compared.
    looks : what the second looks know.
    """

    solver: Any
    space: Any
    solver_state: Any
    best: Best
    aux: Any
    central: bool = False
    differences: Any = None
    progress: Any = None
    x_scale: Any = None
    looks: Any = None

    def to_saved(self) -> tuple:
        """What a file holds of it; the solver is known by its settings."""
        solver, space, *rest = self
        if space is None:
            raise TypeError(
                "the state comes from a function that JAX has compiled; wanted, for a file, the "
                "state of a run outside"
            )
        return described(solver), space.reproducible, space.batched, tuple(rest)

    @classmethod
    def from_saved(cls, saved: tuple, decoder: Decoder) -> State:
        """The state for variables like `decoder.like`."""
        solver, reproducible, batched, rest = saved
        layout = Layout(decoder.like, batched)
        space = (FixedOrderSpace if reproducible else Space)(layout.backend, batched)
        state = cls(Described(solver), space, *rest)
        shape = tuple(state.solver_state.x.shape)
        if shape != layout.shape:
            raise ValueError(
                f"the file holds the state of {shape} variables; wanted {layout.shape}, like "
                "`like`"
            )
        if decoder.library == space.backend.name:
            return state
        moved = placed((state.solver_state, state.best, state.progress), space, layout.size)
        solver_state, best, progress = moved
        known = map_leaves(functools.partial(as_own, space.backend), state.differences)
        looks = state.looks and {
            name: placed(value, space, layout.size) for name, value in state.looks.items()
        }
        return state._replace(
            solver_state=solver_state, best=best, progress=progress, differences=known, looks=looks
        )


class _Seen(NamedTuple):
    x: Any
    fun: Any
    gradient_norm: Any
    step: Any
    nit: Any
    nfev: Any


class Record(_Seen):
    """What a callback receives after each iteration.

    x : the iterate, with the structure of x0.
    fun, gradient_norm, step : float, or (B,) arrays for a batch: the value, the infinity norm of
        the gradient, and the step length alpha of the line search that led here.
    nit, nfev : int, or (B,) arrays: iterations and evaluations so far.
    """

    take: Callable[[], State] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Record, tuple(self)

    @property
    def state(self) -> State:
        """A copy of the state of the run, to be saved, or to continue from like `res.state`. It can
        be taken only inside the callback."""
        if self.take is None:
            raise RuntimeError(
                "the state of a record was taken after its callback; wanted it inside the callback"
            )
        return self.take()


@dataclasses.dataclass(frozen=True)
class Result:
    """The outcome of `lx.minimize`; a batch gives an `lx.BatchResult`.

    Attributes
    ----------
    x : with the structure, library, device and dtype of x0
        The best point seen: the one with the lowest value or, among values that agree up to
        rounding, with the smallest gradient.
    fun : float
        Its value.
    jac : with the structure of x
        Its gradient.
    gradient_norm : float
        The largest absolute component of `jac`: with bounds, without the components of variables
        that a bound holds; for a solver with a projection P, the largest of P(x - jac) - x. With
        x_scale, that of the scaled variables x / x_scale.
    nit, nfev : int
        Accepted iterations; evaluations of fun (including those for finite differences).
    nhev : int
        How often the Hessian was formed (in a batch, for all problems at once).
    success, status, message
        Whether the run ended as intended, and why it ended; see `lx.Status`. (From inside a
        compiled function of JAX, where a result is a pytree, `status` is an integer array.)
    aux : Any
        What fun returned besides the value at `x` with has_aux=True, else None.
    hess_inv : operator (n, n), or None
        The solver's inverse Hessian at its last iterate: `@`, `diagonal()`, `todense()`. It is a
        preconditioner, which has seen the curvature along the steps only, and no covariance: use
        `hessian` for errors. Variables that a bound holds count as constant: their rows and columns
        are 0.
    active : with the structure of x, 8-bit integers; None without bounds
        -1 for a variable at its lower bound, 1 at its upper bound, 0 between them. The multipliers
        of the bounds are the components of `jac` there. A variable whose bounds are equal counts
        as at the one that its gradient presses it against.
    hessian() : array (n, n)
        The Hessian at x, computed when it is called; see there.
    state : State
        Pass it as `state=` to continue the run.
    phases : tuple of Result
        If `method` lists several phases, one result for each phase that began, with its own counts
        of iterations and evaluations and the best point so far. Otherwise empty.
    """

    x: Any
    fun: float
    jac: Any
    gradient_norm: float
    nit: int
    nfev: int
    success: bool
    status: Status
    message: str
    nhev: int = 0
    aux: Any = None
    hess_inv: Operator | None = dataclasses.field(default=None, repr=False)
    active: Any = dataclasses.field(default=None, repr=False)
    state: State | None = dataclasses.field(default=None, repr=False)
    phases: tuple[Result, ...] = dataclasses.field(default=(), repr=False)
    _curvature: Any = dataclasses.field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        return table(self)

    def hessian(self) -> Any:
        """The Hessian of fun at x, a symmetric matrix (n, n); for a batch (B, n, n).

        It comes from `hess` or automatic differentiation, if the run had one of them (PyTorch and
        JAX without jac), otherwise from central differences: of the gradients, in 4n to 10n
        evaluations (more if the function bends much faster than its value suggests), or of the
        values if the gradients are differences themselves, in about 2n^2 evaluations and with half
        of the digits. A warning says so if no length of step gives a definite result, as at a kink.
        The n variables are all numbers of x, in the order
        of its leaves (those of a dict by sorted keys); a complex number counts as two, its leaf's
        real parts before its imaginary parts. At a bound it holds for a point next to x.

        For this the result keeps fun and args, except in copies and pickles.

        Returns
        -------
        array of the library and dtype of x

        Raises
        ------
        ValueError
            If this result is a copy or comes from a pickle.

        Examples
        --------
        Standard errors of a maximum-likelihood estimate: fun is -log likelihood.

        >>> import numpy as np
        >>> import lbfgs_xp as lx
        >>> data = np.asarray([1.2, 0.3, 2.5, 0.9, 1.7, 0.4])
        >>> def fun(x):                       # an exponential distribution with the rate exp(x)
        ...     return np.sum(np.exp(x[0]) * data - x[0]), [np.sum(np.exp(x[0]) * data) - 6.0]
        >>> res = lx.minimize(fun, np.zeros(1), jac=True)
        >>> errors = np.sqrt(np.diagonal(np.linalg.inv(res.hessian())))
        >>> bool(np.allclose(errors, 1.0 / np.sqrt(6.0)))
        True
        """
        if self._curvature is None:
            raise ValueError(
                "this result is a copy or comes from a pickle, which do not keep fun; wanted the "
                "result that lx.minimize has returned"
            )
        return self._curvature.at(self.x)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_curvature": None}

    def __iter__(self) -> NoReturn:
        raise TypeError(
            "the result of minimize is a single object and cannot be unpacked; wanted "
            "res = lx.minimize(...), then res.x and res.fun"
        )


@dataclasses.dataclass(frozen=True, repr=False)
class BatchResult(Result):
    """The outcome of `lx.minimize` with batched=True, for B problems.

    It has the attributes of `lx.Result`, but `fun`, `gradient_norm`, `nit`, `nfev`, `success` and
    `status` are arrays (B,) of the library of x0, and `message` is a list of B strings. `status`
    holds the integers of `lx.Status`.
    """

    fun: Any
    gradient_norm: Any
    nit: Any
    nfev: Any
    success: Any
    status: Any
    message: list[str]  # type: ignore[assignment]


_COUNTS = ("nit", "nfev", "nhev")


def joined(results: list[Result]) -> Result:
    """The last of the results of several phases, with all of them as `phases`; the counts in
    `results` accumulate, whereas those in `phases` are of one phase each."""
    own = results[:1]
    for before, after in itertools.pairwise(results):
        counts = {name: getattr(after, name) - getattr(before, name) for name in _COUNTS}
        own.append(dataclasses.replace(after, **counts))
    return dataclasses.replace(results[-1], phases=tuple(own))


# How many numbers are shown, of nested arrays together. If there are more, arrays are shown by
# their shape, and only single numbers as they are.
_SHOWN = 100
# Fields with the structure of x: even for a batch they do not hold one number per row, whatever
# their shape.
_LIKE_X = ("x", "jac", "stderr")


def table(result: Any) -> str:
    """The fields of a result, one per line; for a batch, counts and ranges over the rows."""
    batched = isinstance(result.message, list)
    rows = []
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        unused = value is None if field.name == "aux" else field.name == "nhev" and not value
        if not field.repr or unused:
            continue
        if field.name in _LIKE_X:
            total = sum(math.prod(getattr(leaf, "shape", ())) for leaf in flatten(value)[0])
            most = _SHOWN if total <= _SHOWN else 1
            text = str(map_leaves(functools.partial(_short, most=most), value))
        elif batched and field.name == "message":
            text = "\n".join(f"{count} x {message}" for message, count in _counts(value))
        elif batched and is_array(value) and field.name != "aux":
            backend = Backend.of(flatten(result.x)[0][0], "x")
            text = _of_rows(field.name, backend.to_host(value))
        else:
            # Only the name of a status is shown, because the message has its own line.
            text = value.name if isinstance(value, Reason) else str(_short(value))
        rows.append(f"{field.name:>14}: " + text.replace("\n", "\n" + " " * 16))
    leaves = [each for each in flatten(getattr(result, "active", None))[0] if each is not None]
    if leaves and not is_tracing(leaves):
        sides = np.concatenate([np.reshape(class_of(leaf).to_host(leaf), -1) for leaf in leaves])
        low, free, high = (np.count_nonzero(sides == side) for side in (-1, 0, 1))
        rows.append(f"{'active':>14}: {low} at lower bounds, {high} at upper ones, {free} free")
    return "\n".join(rows)


class _Words(str):
    """A string shown without quotes inside a container."""

    __repr__ = str.__str__


def _short(value: Any, most: int = _SHOWN) -> Any:
    """`value` itself, or the description of an array of more than `most` numbers."""
    if is_array(value) and math.prod(value.shape) > most:
        return _Words(f"{value.dtype} array of shape {tuple(value.shape)}")
    return value


def _of_rows(name: str, values: np.ndarray) -> str:
    """A summary of `values`, one number per row."""
    if name == "success":
        return f"{np.count_nonzero(values)} of {values.size}"
    if name == "status":
        names = {int(status): status.name for status in Status}
        return ", ".join(f"{names[code]} {count}" for code, count in _counts(values.tolist()))
    known = values[~np.isnan(values)]
    digits = 6 if values.dtype.kind == "f" else 12
    texts = [f"nan {values.size - known.size}"] if known.size < values.size else []
    if known.size:
        with np.errstate(all="ignore"):    # some may be infinite
            found = {"min": np.min(known), "median": np.median(known), "max": np.max(known)}
        texts = [f"{what} {number:.{digits}g}" for what, number in found.items()] + texts
    return ", ".join(texts)


def _counts(values: list[Any]) -> list[tuple[Any, int]]:
    """The distinct values and how often each occurs, the most frequent first."""
    return collections.Counter(values).most_common()


_ATTACHED = "lbfgs_xp: in the attribute `result` of this exception: "


def attach(error: BaseException, result: Any, what: str) -> None:
    """Attach what is known so far to an error, with a note that says what it is."""
    # Some exceptions take no attributes; they are raised unchanged.
    with contextlib.suppress(Exception):
        error.result = result  # type: ignore[attr-defined]
        # A run within this one may have added such a note about its own result.
        notes = getattr(error, "__notes__", [])
        error.__notes__ = [note for note in notes if not note.startswith(_ATTACHED)]
        error.add_note(_ATTACHED + what)
