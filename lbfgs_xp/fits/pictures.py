"""Pictures of fits, drawn with matplotlib."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lbfgs_xp.arrays.backend import is_array
from lbfgs_xp.drawing import pyplot
from lbfgs_xp.fits.analysis import Analysis
from lbfgs_xp.fits.complex_data import is_complex
from lbfgs_xp.fits.distributions import rise_of
from lbfgs_xp.fits.summary import listed, measured

# Colours that differ in brightness, too.
_DATA, _CURVE, _LEVEL = "#22313f", "#c0392b", "#7f8c8d"
# How many points a curve has, at least, along the axis and along the data.
_POINTS = 400
_LEVELS = (0.6827, 0.9545)
# Profiles are drawn up to here.
_HIGHEST = 0.9973
# How many points the profiles beside contours have, at least.
_PROFILED = 31


def plot(fit: Any, analysis: Analysis, level: float, row: Any) -> Any:
    """See `CurveFit.plot`."""
    plt = pyplot()
    if analysis.layout.batched:
        fit, analysis = analysis.alone(fit, row)
    x, label = _axis(analysis)
    host = _host(analysis)
    columns = np.arange(2 if analysis.complex else 1)
    data, rest, used, errors = _data(fit, analysis)
    data, rest, used = (np.reshape(each, (columns.size, -1)) for each in (data, rest, used))
    figure, axes = plt.subplots(
        2, columns.size, sharex=True, squeeze=False, figsize=(7.0 + 3.0 * columns[-1], 5.6),
        layout="constrained", height_ratios=[3.0, 1.0],
    )
    grid = _grid(x, analysis)
    at = x if grid is None else np.ravel(grid)
    order = np.argsort(at, kind="stable")
    where: Any = None if grid is None else analysis.layout.backend.from_host(grid)
    curves = [
        np.reshape(host(analysis.real(each)), (columns.size, -1))[:, order]
        for each in (fit.predict(where), *fit.band(where, level))
    ]
    at = at[order]
    points = dict(fmt="o", color=_DATA, markersize=3.5, linewidth=0.9, zorder=2)
    shade = dict(color=_CURVE, alpha=0.22, linewidth=0.0, zorder=1)
    for part, (above, below), name in zip(
        columns, axes.T, ("real part of y", "imaginary part of y"), strict=False
    ):
        shown = used[part]
        bars = None
        if errors is not None:
            bars = np.reshape(errors, (2, columns.size, -1))[:, part, shown]
        above.errorbar(x[shown], data[part][shown], bars, label="data", **points)
        below.errorbar(x[shown], rest[part][shown], bars, **points)
        middle, low, high = (curve[part] for curve in curves)
        above.plot(at, middle, color=_CURVE, label="fit", zorder=3)
        share = f"{100.0 * level:.4g} % band"
        above.fill_between(at, low, high, label=share, **shade)
        below.fill_between(at, low - middle, high - middle, **shade)
        below.axhline(0.0, color=_CURVE, linewidth=1.0)
        above.set_ylabel(name if analysis.complex else "y")
        below.set_xlabel(label)
    axes[1, 0].set_ylabel("data - fit")
    legend = axes[0, 0].legend(title=_values(fit), fontsize="small", title_fontsize="small")
    legend.set_alignment("left")    # of the title
    return figure


def _host(analysis: Analysis) -> Any:
    return lambda array: np.asarray(analysis.layout.backend.to_host(array))


def _axis(analysis: Analysis) -> tuple[np.ndarray, str]:
    """The coordinates of the data to plot over, and what they are called."""
    x, y, _ = analysis.objective.args
    m = y.shape[-1] // (2 if analysis.complex else 1)
    single = is_array(x) and x.shape[-1:] == (m,) and math.prod(x.shape) == m
    if single and not is_complex(x):
        return np.ravel(_host(analysis)(x)).astype(np.float64), "x"
    return np.arange(float(m)), "number of the point"


def _grid(x: np.ndarray, analysis: Analysis) -> np.ndarray | None:
    """Coordinates close enough for a smooth curve, including those of the data; None if the model
    takes more than numbers of one axis."""
    if _axis(analysis)[1] != "x" or not np.isfinite(x).all():
        return None
    given = analysis.objective.args[0]
    # Between the data, too, which may be evenly spaced along a logarithmic axis.
    data = np.unique(x)
    steps = np.linspace(0.0, data.size - 1.0, _POINTS)
    between = np.interp(steps, np.arange(data.size), data)
    grid = np.unique(np.concatenate([np.linspace(x.min(), x.max(), _POINTS), between, x]))
    return grid if given.ndim == 1 else grid[None, :]


def _data(
    fit: Any, analysis: Analysis
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """The data and the residuals, in the unit of the model; which of them count; and their standard
    deviations downwards and upwards (2, m), None if nothing says what they are."""
    host, (_, y, weights) = _host(analysis), analysis.objective.args
    likelihood: Any = analysis.objective.likelihood
    data, rest = np.ravel(host(y)), np.ravel(host(analysis.real(fit.residuals)))
    used: np.ndarray = np.ones(data.size, dtype=bool)
    scale: Any = 1.0
    if not fit.absolute_sigma:
        reduced = host(fit.reduced_chi2) if analysis.layout.batched else fit.reduced_chi2
        scale = np.sqrt(np.ravel(reduced))
    if likelihood is None:
        if weights is None:
            sigma = np.ones(data.size)
        elif weights.ndim == 2 and not analysis.layout.batched:
            inverse = np.linalg.inv(host(weights))
            sigma = np.sqrt(np.sum(inverse * inverse, axis=-1))
        else:
            used = np.ravel(host(weights)) > 0.0
            sigma = 1.0 / np.where(used, np.ravel(host(weights)), np.nan)
        sigma = sigma * scale
        return data, rest, used, np.stack([sigma, sigma])
    if likelihood.kept is not None:
        used = np.ravel(host(likelihood.kept)) > 0.0
    variance = likelihood.variance(fit.predict())
    if variance is not None:
        sigma = np.sqrt(np.ravel(host(variance)))
        if likelihood.name == "binomial":    # the model predicts shares of the trials
            trials = np.ravel(host(likelihood.trials))
            data, rest, sigma = data / trials, rest / trials, sigma / trials
        return data, rest, used, np.stack([sigma, sigma])
    if likelihood.name == "gaussian":
        sides = (np.ravel(host(side)) for side in (likelihood.low, likelihood.high))
        return data, rest, used, np.stack([scale / np.where(used, side, np.nan) for side in sides])
    return data, rest, used, None


def _values(fit: Any) -> str:
    """The parameters with their errors, one per line."""
    x, stderr = (np.ravel(listed(fit, tree)) for tree in (fit.x, fit.stderr))
    each = zip(fit.names, x, stderr, strict=True)
    return "\n".join(
        f"{name} = " + (f"{value:.6g}" if error == 0.0 else measured(value, error))
        for name, value, error in list(each)[:12]
    )


def plot_profiles(fit: Any, analysis: Analysis, size: int) -> Any:
    """See `CurveFit.plot_profiles`."""
    plt = pyplot()
    names, x, stderr = _free(fit, analysis)
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(
        rows, columns, squeeze=False, figsize=(3.4 * columns, 2.8 * rows), layout="constrained"
    )
    ends = [listed(fit, side) for side in fit.intervals(_LEVELS[0])]
    grids = _grids(fit, analysis, names, x, size)
    for ax, name, middle, error, grid in zip(axes.flat, names, x, stderr, grids, strict=False):
        _draw_profile(fit, analysis, ax, name, middle, error, grid)
        for side in ends:
            end = side[fit.names.index(name)]
            if np.isfinite(end):
                ax.axvline(end, color=_LEVEL, linewidth=0.9, linestyle=":")
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    axes.flat[0].legend(fontsize="small")
    return figure


def _free(fit: Any, analysis: Analysis) -> tuple[list[str], list[float], list[float]]:
    """The parameters that have a profile, with their values and errors."""
    if isinstance(fit.message, list):
        raise ValueError("the fit is a batch; wanted a single fit, such as fit.row(0)")
    places = [i for i, place in enumerate(analysis.order) if place in analysis.free]
    x, stderr = listed(fit, fit.x), listed(fit, fit.stderr)
    places = [i for i in places if stderr[i] > 0.0 and np.isfinite(stderr[i])]
    if not places:
        raise ValueError("the fit has no parameter with a finite error; wanted one to plot")
    return [fit.names[i] for i in places], [x[i] for i in places], [stderr[i] for i in places]


def _grids(
    fit: Any, analysis: Analysis, names: list[str], x: list[float], size: int
) -> list[np.ndarray]:
    """About `size` values of each parameter, one of them that of the fit, from one end of the
    interval to the other; where there is no end, as far as `profile` goes."""
    low, high = (listed(fit, side) for side in fit.intervals(_HIGHEST))
    grids = []
    for name, middle in zip(names, x, strict=True):
        place = fit.names.index(name)
        ends = np.asarray([low[place], high[place]])
        if not np.isfinite(ends).all():
            usual = _host(analysis)(fit.profile(name, size=2).values)
            ends = np.where(np.isfinite(ends), ends, usual)
        halves = [np.linspace(end, middle, size // 2 + 1) for end in ends]
        grids.append(np.concatenate([halves[0], halves[1][-2::-1]]))
    return grids


def _draw_profile(
    fit: Any, analysis: Analysis, ax: Any, name: str, middle: float, error: float,
    grid: np.ndarray,
) -> None:
    host = _host(analysis)
    found = fit.profile(name, analysis.layout.backend.from_host(grid))
    values, delta = host(found.values), host(found.delta)
    ax.plot(values, delta, color=_CURVE, label="profile")
    ax.plot(
        values, ((values - middle) / error) ** 2, color=_DATA, linewidth=0.9, linestyle="--",
        label="covariance",
    )
    for level in _LEVELS:
        ax.axhline(rise_of(level, fit._dof_of_scale), color=_LEVEL, linewidth=0.6)
    ax.set_ylim(0.0, 1.1 * rise_of(_HIGHEST))
    ax.set_xlabel(name)
    ax.set_ylabel("rise of chi2")


def plot_contours(fit: Any, analysis: Analysis, size: int, progress: bool) -> Any:
    """See `CurveFit.plot_contours`."""
    plt = pyplot()
    names, x, stderr = _free(fit, analysis)
    count, host = len(names), _host(analysis)
    figure, axes = plt.subplots(
        count, count, squeeze=False, figsize=(2.3 * count + 0.8, 2.3 * count + 0.6),
        layout="constrained",
    )
    covariance = host(fit.covariance)
    places = [fit.names.index(name) for name in names]
    angles = np.linspace(0.0, 2.0 * math.pi, 100)
    circle = np.stack([np.cos(angles), np.sin(angles)])
    grids = _grids(fit, analysis, names, x, max(size, _PROFILED))
    for i in range(count):
        for j in range(count):
            ax = axes[i, j]
            if j > i:
                ax.set_visible(False)
                continue
            if i == j:
                _draw_profile(fit, analysis, ax, names[i], x[i], stderr[i], grids[i])
                ax.yaxis.tick_right()
                ax.yaxis.set_label_position("right")
            else:
                pair = np.ix_([places[j], places[i]], [places[j], places[i]])
                root = np.linalg.cholesky(covariance[pair])
                for level, shade in zip(_LEVELS, (1.0, 0.55), strict=True):
                    border = host(fit.contour(names[j], names[i], level, size, progress))
                    ax.plot(*border.T, color=_CURVE, alpha=shade)
                    ellipse = math.sqrt(rise_of(level, fit._dof_of_scale, 2)) * (root @ circle)
                    ax.plot(
                        x[j] + ellipse[0], x[i] + ellipse[1], color=_DATA, linewidth=0.7,
                        linestyle="--", alpha=shade,
                    )
                ax.plot(x[j], x[i], "+", color=_DATA)
                ax.set_ylabel(names[i] if j == 0 else "")
            ax.set_xlabel(names[j] if i == count - 1 else "")
            if j > 0 and i != j:
                ax.tick_params(labelleft=False)
            if i < count - 1:
                ax.tick_params(labelbottom=False)
    _share_axes(axes, count)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), fontsize="small",
        loc="upper right" if count > 1 else "outside upper right",
    )
    return figure


def _share_axes(axes: Any, count: int) -> None:
    """The same range of a parameter in its column and in its row."""
    for j in range(count):
        column = [axes[i, j].get_xlim() for i in range(j + 1, count)]
        row = [axes[j, k].get_ylim() for k in range(j)]
        ranges = np.asarray(column + row) if column + row else np.asarray([axes[j, j].get_xlim()])
        low, high = ranges[:, 0].min(), ranges[:, 1].max()
        for i in range(j, count):
            axes[i, j].set_xlim(low, high)
        for k in range(j):
            axes[j, k].set_ylim(low, high)
