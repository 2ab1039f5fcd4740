"""Pictures of functions, runs and schedules; matplotlib is imported only when one is drawn.

Each function draws into the matplotlib Axes `ax`, or into those of a new figure, and returns them.
Pictures of fits come from the fit itself: `fit.plot()`.

>>> import lbfgs_xp as lx
>>> problem = lx.problems.rosenbrock(2)
>>> records = []
>>> res = lx.minimize(
...     problem.value_and_gradient, problem.x0, jac=True, callback=records.append
... )
>>> ax = lx.plot.contour(problem.fun, x=(-1.6, 1.6), y=(-0.7, 1.7), batched=True)
>>> ax = lx.plot.trace(records, start=problem.x0, ax=ax, label="L-BFGS")
>>> ax = lx.plot.history({"L-BFGS": records}, over="nfev")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from lbfgs_xp import checks
from lbfgs_xp.arrays.backend import Backend, class_of, is_array
from lbfgs_xp.drawing import COLOURS, DASHES, axes
from lbfgs_xp.schedules import as_schedule

__all__ = ["contour", "history", "schedule", "trace"]

_AN_END = (
    "a result holds only the end of a run; wanted its records: records = [], then "
    "lx.minimize(..., callback=records.append)"
)


def contour(
    fun: Callable[..., Any], x: Any = (-2.0, 2.0), y: Any = (-2.0, 2.0), args: Any = (), *,
    like: Any = None, batched: bool = False, points: int = 100, levels: Any = 14, ax: Any = None,
) -> Any:
    """Draw a function of two variables: its contours, darker where it is higher.

    Parameters
    ----------
    fun : function
        fun(x, *args) -> value for x of shape (2,). If it returns a tuple, the rest of it, such as
        the gradient, is ignored.
    x, y : (float, float)
        The ranges of x[0] and x[1].
    args : tuple
        Further arguments of fun.
    like : array
        fun is called with arrays of its library, device and dtype; by default, NumPy's float64.
    batched : bool
        Whether fun maps (k, 2) to (k,), as in `lx.minimize`. It is then called once.
    points : int
        How many points there are in each direction.
    levels : int, or numbers in increasing order
        How many contours, or at which values. A number of them is chosen so that they lie closer at
        low values.

    Examples
    --------
    >>> import lbfgs_xp as lx
    >>> ax = lx.plot.contour(lambda x: x[0] ** 2 + 3.0 * x[1] ** 2, x=(-1, 1), points=20)
    """
    spans = [_span(name, span) for name, span in (("x", x), ("y", y))]
    count = checks.count("points", points, 2)
    first, second = (np.linspace(*span, count) for span in spans)
    heights = _heights(fun, np.stack(np.meshgrid(first, second), -1), args, like, batched)
    ax = axes(ax)
    shown = np.ma.masked_invalid(heights)
    chosen = _levels(heights, levels)
    shades = np.linspace(0.98, 0.74, len(chosen) + 1)
    ax.contourf(
        first, second, shown, chosen, colors=[str(shade) for shade in shades], extend="both"
    )
    ax.contour(first, second, shown, chosen, colors="0.6", linewidths=0.5)
    ax.set(xlabel="$x_1$", ylabel="$x_2$", xlim=spans[0], ylim=spans[1])
    return ax


def trace(
    records: Any, *, start: Any = None, label: str | None = None, color: Any = None, ax: Any = None
) -> Any:
    """Draw the iterates of a run with two variables, such as over `contour`.

    Parameters
    ----------
    records : list of lx.Record, or of points (2,)
        What a callback has received, or the points themselves, in order.
    start : array (2,)
        Where the run began; a callback does not receive it.
    label : str
        For the legend, which is drawn if there is one.
    color : colour of matplotlib
        By default the next one of those of this module.

    Examples
    --------
    >>> import lbfgs_xp as lx
    >>> ax = lx.plot.trace([[0.0, 0.0], [1.0, 0.5], [1.2, 0.9]], label="by hand")
    """
    points = [_point(each) for each in _listed(records)]
    if start is not None:
        points = [_point(start), *points]
    if not points:
        raise ValueError("records is empty; wanted at least one record or point")
    path = np.stack(points)
    limits = None if ax is None else (ax.get_xlim(), ax.get_ylim())
    ax = axes(ax)
    color = _next(ax) if color is None else color
    ax.plot(*path.T, "-o", color=color, markersize=3.5, linewidth=1.3, label=label)
    ax.plot(*path[0], "s", color=color, markersize=6.5)
    ax.plot(*path[-1], "*", color=color, markersize=11, markeredgecolor="white")
    if limits is not None:
        # A step that leaves the picture does not change what the picture shows.
        ax.set(xlim=limits[0], ylim=limits[1])
    if label is not None:
        ax.legend()
    return ax


def history(
    runs: Any, *, over: str = "nit", minimum: float = 0.0, quantity: str | None = None,
    ax: Any = None,
) -> Any:
    """Draw how runs come down: the value, on a logarithmic scale.

    Parameters
    ----------
    runs : list of lx.Record, TrainResult, or numbers; or a dict of them
        One run, or several by their names. A `TrainResult` shows its loss on each batch, and
        numbers are drawn as they are, from 0 on. Of records of a batch, the medians are drawn.
    over : "nit" or "nfev"
        What records are drawn over: iterations or evaluations.
    minimum : float
        The lowest value, which is subtracted; points at or below it are left out.
    quantity : "fun", "gradient_norm" or "step"
        What of the records is drawn; by default the value.

    Examples
    --------
    >>> import lbfgs_xp as lx
    >>> ax = lx.plot.history({"halved": [1.0, 0.5, 0.25], "quartered": [1.0, 0.25, 0.0625]})
    """
    if over not in ("nit", "nfev"):
        raise ValueError(f"over is {over!r}; wanted 'nit' or 'nfev'")
    if quantity not in (None, "fun", "gradient_norm", "step"):
        raise ValueError(f"quantity is {quantity!r}; wanted 'fun', 'gradient_norm' or 'step'")
    named = runs if isinstance(runs, Mapping) else {None: runs}
    what, along = quantity or "fun", ""
    curves = []
    for label, run in named.items():
        where, values, along = _course(run, over, what)
        curves.append((label, where, values - minimum))
    ax = axes(ax)
    for label, where, values in curves:
        ax.plot(where, np.where(values > 0.0, values, np.nan), label=label, **_style(ax))
    ax.set_yscale("log")
    called = {"fun": "value", "gradient_norm": "largest component of the gradient"}
    ax.set_xlabel(along)
    ax.set_ylabel(called.get(what, what) + (" above the minimum" if minimum else ""))
    ax.grid(True, alpha=0.3)
    if any(label is not None for label in named):
        ax.legend()
    return ax


def schedule(schedules: Any, steps: int | None = None, *, ax: Any = None) -> Any:
    """Draw learning rates over the steps; see `lx.schedules`.

    Parameters
    ----------
    schedules : schedule, number or function; or a list, or a dict with names
        A function maps a step to a rate.
    steps : int
        The last step; by default that of the longest schedule.

    Examples
    --------
    >>> import lbfgs_xp as lx
    >>> ax = lx.plot.schedule([lx.schedules.Cosine(0.1, steps=100), lx.schedules.Constant(0.05)])
    """
    if not isinstance(schedules, Mapping):
        several = isinstance(schedules, list | tuple)
        known = [as_schedule(each) for each in (schedules if several else [schedules])]
        names = [type(each).__name__ for each in known]
        pairs = list(zip(names, known, strict=True))
    else:
        pairs = [(name, as_schedule(each)) for name, each in schedules.items()]
    last = max(each.span for _, each in pairs) if steps is None else steps
    ax = axes(ax)
    for name, each in pairs:
        style = _style(ax)
        each.plot(last, ax)
        ax.lines[-1].set(label=name, **style)
    ax.grid(True, alpha=0.3)
    ax.legend()
    return ax


def _span(name: str, span: Any) -> tuple[float, float]:
    if not (isinstance(span, tuple | list) and len(span) == 2):
        raise TypeError(f"{name} is {span!r}; wanted the range, (low, high)")
    low, high = (checks.number(f"{name}[{i}]", side) for i, side in enumerate(span))
    if not low < high:
        raise ValueError(f"{name} is {span!r}; wanted low < high")
    return low, high


def _heights(
    fun: Callable[..., Any], grid: np.ndarray, args: Any, like: Any, batched: bool
) -> np.ndarray:
    """The values of fun at the points (m, n, 2) of a grid."""
    backend = Backend.of(np.zeros(2) if like is None else like)
    args = args if isinstance(args, tuple) else (args,)
    rows = grid.reshape(-1, 2)

    def values(points: np.ndarray) -> np.ndarray:
        out = fun(backend.from_host(points, backend.dtype), *args)
        return _host(out[0] if isinstance(out, tuple) else out)

    found = values(rows) if batched else np.asarray([values(row) for row in rows], dtype=np.float64)
    wanted = (len(rows),)
    if found.shape != wanted:
        raise ValueError(
            f"fun returned values of shape {found.shape}; wanted {wanted} for x of shape "
            f"{rows.shape} (batched=True)" if batched else
            f"fun returned values of shape {found.shape[1:]}; wanted a number for each x (2,)"
        )
    return found.reshape(grid.shape[:2])


def _levels(heights: np.ndarray, levels: Any) -> np.ndarray:
    """The values at which contours are drawn."""
    if np.ndim(levels):
        chosen = np.asarray(levels, dtype=np.float64)
        if chosen.ndim != 1 or not (np.diff(chosen) > 0.0).all():
            raise ValueError(f"levels is {levels!r}; wanted numbers in increasing order")
        return chosen
    count, finite = checks.count("levels", levels, 1), heights[np.isfinite(heights)]
    if not finite.size or finite.min() == finite.max():
        raise ValueError("fun is the same everywhere or nowhere finite; wanted another range")
    # Equal parts of the picture between them, but closer together at low values.
    shares = np.linspace(0.0, 1.0, count + 2)[1:-1] ** 1.7
    return np.unique(np.quantile(finite, shares))


def _host(array: Any) -> np.ndarray:
    if is_array(array):
        array = class_of(array).to_host(array)
    return np.asarray(array, dtype=np.float64)


def _listed(records: Any) -> Iterable[Any]:
    if hasattr(records, "status"):
        raise TypeError(_AN_END)
    if is_array(records):
        return list(_host(records))
    if not isinstance(records, list | tuple):
        raise TypeError(
            f"records is a {type(records).__name__}; wanted a list of records or points"
        )
    return records


def _point(record: Any) -> np.ndarray:
    point = _host(getattr(record, "x", record))
    if point.shape != (2,):
        raise ValueError(f"an iterate has shape {point.shape}; wanted two variables, (2,)")
    return point


def _course(run: Any, over: str, quantity: str) -> tuple[np.ndarray, np.ndarray, str]:
    """What a run is drawn over, its values, and what the former is called."""
    losses = getattr(getattr(run, "history", run), "loss", None)
    if losses is not None and not isinstance(run, tuple):
        return np.arange(len(losses)), _host(losses), "batch"
    entries = list(_listed(run))
    if not entries:
        raise ValueError("a run has no records; wanted at least one")
    if not hasattr(entries[0], "nit"):
        return np.arange(len(entries)), np.asarray(list(map(float, entries))), "iteration"
    values = [float(np.median(_host(getattr(each, quantity)))) for each in entries]
    where = [float(np.median(_host(getattr(each, over)))) for each in entries]
    return np.asarray(where), np.asarray(values), {"nit": "iteration", "nfev": "evaluation"}[over]


def _drawn(ax: Any) -> int:
    """How many curves there are."""
    return len(ax.lines)


def _style(ax: Any) -> dict[str, Any]:
    """The colour and the dashes of the next curve."""
    number = _drawn(ax)
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number % len(DASHES)]}


def _next(ax: Any) -> str:
    # A trace consists of three.
    return COLOURS[_drawn(ax) // 3 % len(COLOURS)]
