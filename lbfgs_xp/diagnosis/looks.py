"""Looks at a function, each at one property: from a probe to numbers and findings."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from lbfgs_xp.arrays.scalars import FLOATS
from lbfgs_xp.diagnosis.probe import Probe
from lbfgs_xp.diagnosis.result import GOOD, NOTE, PROBLEM, Finding
from lbfgs_xp.run import noise

# A slope that differs by more than this part of it from all differences is wrong.
_WRONG = 1e-2
# A difference in slope that is clear from rounding, as a part of it.
_UNSURE = 1e-4
# A slope of this part of the changes of the value is as good as none.
_SMALL = 1e-6
# How many directions are looked along.
_DIRECTIONS = 3
# The number of equally spaced values by which noise is measured (Moré & Wild 2011), how far apart
# they are relative to the size of the variables, and by how much their estimates may differ.
_VALUES, _SPACINGS, _AGREE = 8, (0.125, 8.0, 512.0), 4.0
# Noise of this many times the rounding of the value is more than rounding.
_ABOVE_ROUNDING = 50.0
# Intervals along a direction, and how often the one where the slope changes most is halved.
_INTERVALS, _HALVINGS = 16, 12
# What is left of a change of the slope over an interval 4,000 times shorter shows a kink.
_LEFT = 0.3
# A kink that changes the slope by more than this part of it.
_SHARP = 0.2
# Up to how many variables the Hessian is formed, and in how many steps its range is estimated else.
_FORMED, _STEPS = 60, 12
# A condition number up to which a handful of pairs serves well, and one at which digits are lost.
_EASY, _HARD = 1e4, 1e10
# By how much units of the variables must lower the condition number to be worth it.
_WORTH = 100.0
# How many times larger than its changes a value may be.
_BESIDE = 1e4


class Point(NamedTuple):
    """Where a function is looked at: on the host, vectors (n,).

    size : of each variable, |x| or 1.
    """

    x: np.ndarray
    value: float
    gradient: np.ndarray
    size: np.ndarray
    eps: float

    @property
    def rounding(self) -> float:
        """What rounding may hide in a value."""
        return self.eps * max(abs(self.value), float(np.finfo(np.float64).tiny))


def at_start(probe: Probe) -> tuple[Point, list[Finding]]:
    """The point to look at, and what its value and gradient show."""
    x = probe.start()
    value, gradient = probe.first(x)
    size = np.where(np.abs(x) > 0.0, np.abs(x), 1.0)
    point = Point(x, value, gradient, size, probe.backend.eps)
    if not math.isfinite(value):
        return point, [Finding("value", PROBLEM, value, (
            f"fun(x0) is {value}. Start from a point where fun is finite."
        ))]
    bad = np.flatnonzero(~np.isfinite(gradient))
    if probe.by_differences and bad.size == x.size:
        return point, [Finding("value", GOOD, value, f"fun(x0) is {value:.6g}.")]
    if bad.size:
        return point, [Finding("gradient", PROBLEM, float(bad.size), (
            f"{bad.size} of {x.size} components of the gradient at x0 are not finite, the first "
            f"of them that of {probe.name(bad[0])}. Typical causes are sqrt or log at 0, and a "
            "where whose other branch is not finite."
        ))]
    return point, [Finding("value", GOOD, value, (
        f"fun(x0) is {value:.6g}, and the largest component of its gradient is "
        f"{np.max(np.abs(gradient)):.3g}."
    ))]


def repeats(probe: Probe, point: Point) -> list[Finding]:
    """Whether fun gives the same value at the same x."""
    values = [
        probe.value(point.x) if probe.by_differences else probe.both(point.x)[0] for _ in range(2)
    ]
    apart = max(abs(value - point.value) for value in values)
    if apart == 0.0:
        return [Finding("repeats", GOOD, 0.0, "fun gives the same value each time.")]
    relative = apart / max(abs(point.value), apart)
    if apart <= 100.0 * point.rounding:
        return [Finding("repeats", NOTE, relative, (
            f"fun(x0) varies by {relative:.1e} of its value from call to call, which is rounding: "
            "sums are taken in different orders. Runs will not repeat to the last bit."
        ))]
    return [Finding("repeats", PROBLEM, relative, (
        f"fun(x0) varies by {relative:.1e} of its value from call to call. L-BFGS compares values, "
        "so fun must not draw new random numbers or new batches of data: fix the seed, switch off "
        "dropout, take all data; or use lx.Adam or lx.train for random values."
    ))]


def gradient(probe: Probe, point: Point, level: float) -> tuple[float, list[Finding]]:
    """How far the gradient is from differences of values along directions.

    level : of the noise.
    """
    if probe.by_differences:
        cost = 2 * point.x.size
        advice = (
            "Pass jac=, a function; or jac=True, if fun returns (value, gradient); or "
            'jac="3-point" for differences'
            if probe.without_jac else "A gradient of its own would be cheaper, and more accurate"
        )
        return math.nan, [Finding("gradient", NOTE, float(cost), (
            f"{probe.backend.name} does not differentiate and there is no jac, so differences "
            f"were used here: {cost} evaluations for each gradient. {advice}."
            if probe.without_jac else
            f"The gradient comes from differences: {cost} evaluations for each. {advice}."
        ))]
    directions, where = [*_directions(point), _levelled(point)], ""
    errors = [_slope_error(probe, point, direction, level) for direction in directions]
    seen = f"along {len(directions)} directions"
    if point.x.size <= _FORMED:
        # Steep variables would hide what is wrong with the others along a direction of all.
        each = [_slope_error(probe, point, step, level) for step in np.diag(point.size)]
        errors, seen = errors + each, seen + " and in each variable"
        where = f"; the worst component is that of {probe.name(int(np.argmax(each)))}"
    worst = max(errors)
    if worst <= _UNSURE:
        return worst, [Finding("gradient", GOOD, worst, (
            f"The gradient agrees with differences of the value {seen}, to "
            + (f"{worst:.0e} of the slope." if worst else "rounding.")
        ))]
    if worst <= _WRONG:
        return worst, [Finding("gradient", NOTE, worst, (
            f"The gradient agrees with differences of the value to {worst:.0e} of the slope only. "
            "Noise or a function that changes fast may be why; lx.check_gradient compares each "
            "component."
        ))]
    return worst, [Finding("gradient", PROBLEM, worst, (
        f"The gradient disagrees with differences of the value, by {worst:.2g} of the slope along "
        f"a direction{where}. Mend jac; lx.check_gradient compares each component."
    ))]


def _slope_error(probe: Probe, point: Point, direction: np.ndarray, level: float) -> float:
    """The smallest relative difference between the slope and central differences of any length."""
    slope = float(point.gradient @ direction)
    # Beside changes over the whole size, a slope of 0 is no more than small.
    changes = [abs(probe.value(point.x + sign * direction) - point.value) for sign in (1.0, -1.0)]
    small = _SMALL * max((change for change in changes if math.isfinite(change)), default=0.0)
    errors = []
    for length in point.eps ** (1.0 / 3.0) * np.asarray([10.0, 1.0, 0.1, 100.0, 1000.0]):
        ahead, behind = (
            probe.value(point.x + sign * length * direction) for sign in (1.0, -1.0)
        )
        found = (ahead - behind) / (2.0 * length)
        # What rounding and noise explain is no disagreement.
        off = max(abs(found - slope) - (level + point.rounding) / length, 0.0)
        scale = max(abs(slope), abs(found), small)
        errors.append(off / scale if scale > 0.0 else 0.0)
        if errors[-1] <= _UNSURE * 1e-2:
            break
    finite = [error for error in errors if math.isfinite(error)]
    return min(finite) if finite else 0.0


def noise_of(probe: Probe, point: Point) -> tuple[float, list[Finding]]:
    """The noise of the value next to x0."""
    direction = _directions(point)[0]
    level, largest = 0.0, abs(point.value)
    for number, spacing in enumerate(math.sqrt(point.eps) * np.asarray(_SPACINGS)):
        steps = noise.points(np.zeros(point.x.size), spacing * direction, _VALUES)
        values = [probe.value(point.x + step) for step in steps]
        if not np.isfinite(values).all():
            break
        largest = max(largest, *map(abs, values))
        found = [float(each) for each in noise.deviations(FLOATS, values)]
        # What is smooth shrinks with the order of the differences, noise does not.
        if number == 0 or max(found) <= _AGREE * min(found):
            level = max(level, min(found))
    relative = level / largest if largest else 0.0
    if relative <= _ABOVE_ROUNDING * point.eps:
        return 0.0, [Finding("noise", GOOD, relative, (
            f"The value shows no noise beyond the rounding of {probe.dtype_name}."
        ))]
    single = 1e-9 < relative < 1e-5 and point.eps < 1e-10
    cause = (
        "A part of fun may compute in float32." if single else
        "Solvers with loose tolerances, sums of many terms and tables are typical causes."
    )
    return level, [Finding("noise", NOTE, relative, (
        f"The value has noise of {relative:.1e} of itself, {relative / point.eps:.1g} times its "
        f"rounding. {cause} Runs end where noise hides what is left to gain; tighten the tolerance "
        "if that is not enough. Differences then need steps that suit the noise, which "
        'lx.minimize(jac="3-point") finds.'
    ))]


def kinks(probe: Probe, point: Point, level: float) -> list[Finding]:
    """Whether the slope jumps, where fun is not finite, and how much it changes, within half of the
    size of the variables."""
    found: list[Finding] = []
    lost, seen_values = 0, [point.value]
    for direction in _directions(point):
        step = 0.5 * direction
        spots = np.linspace(-1.0, 1.0, _INTERVALS + 1)
        seen = [_along(probe, point, step, t) for t in spots]
        lost += sum(not math.isfinite(value) for value, _ in seen)
        seen_values += [value for value, _ in seen if math.isfinite(value)]
        kink = _kink(probe, point, step, spots, seen, level)
        if kink is not None and not found:
            found.append(kink)
    if lost:
        total = _DIRECTIONS * (_INTERVALS + 1)
        why = f" ({probe.errors[0]})" if probe.errors else ""
        ends = " An exception ends a run, unless on_error= names its class."
        found.append(Finding("domain", NOTE, lost / total, (
            f"fun is not finite at {lost} of {total} points within half of |x0|{why}. Line "
            "searches step back from such points, which costs evaluations; bounds keep a run away "
            "from them." + (ends if probe.errors else "")
        )))
    found += _range_of_values(point, seen_values)
    if not any(finding.topic == "kinks" for finding in found):
        found.insert(0, Finding("kinks", GOOD, 0.0, (
            f"No kink or jump within half of |x0|, along {_DIRECTIONS} directions."
        )))
    return found


def _range_of_values(point: Point, values: list[float]) -> list[Finding]:
    """What it means if fun changes little or not at all."""
    change = max(values) - min(values)
    if change == 0.0:
        return [Finding("value", PROBLEM, 0.0, (
            "fun is the same at all points within half of |x0|. Start elsewhere, or look for a "
            "variable that is not used, or for integers."
        ))]
    if np.max(np.abs(point.gradient)) == 0.0:
        return [Finding("gradient", NOTE, 0.0, (
            "The gradient at x0 is 0, so a run ends there at once, although fun changes around it. "
            "Start elsewhere."
        ))]
    lost = abs(point.value) / change
    if lost > _BESIDE:
        return [Finding("precision", NOTE, lost, (
            f"fun is {point.value:.3g} and changes by {change:.2g} only within half of |x0|: "
            f"rounding of the large part takes {math.log10(lost):.0f} digits from the rest. "
            "Subtract the constant inside fun, before it is added."
        ))]
    return []


def _along(probe: Probe, point: Point, step: np.ndarray, t: float) -> tuple[float, float]:
    """Value and slope at x0 + t step."""
    if probe.by_differences:
        short = point.eps ** (1.0 / 3.0)
        low, value, high = (probe.value(point.x + at * step) for at in (t - short, t, t + short))
        return value, (high - low) / (2.0 * short)
    value, gradient = probe.both(point.x + t * step)
    # Outside its domain, fun may still have a gradient.
    return value, float(gradient @ step) if math.isfinite(value) else math.nan


def _kink(
    probe: Probe, point: Point, step: np.ndarray, spots: np.ndarray, seen: list, level: float
) -> Finding | None:
    """The kink or the jump where the slope or the value changes most, if it is one."""
    slopes = np.asarray([slope for _, slope in seen])
    rough = max(level, point.rounding)
    for what in ("slope", "value"):
        changes = [
            _change(what, one, other, width)
            for one, other, width in zip(seen, seen[1:], np.diff(spots), strict=False)
        ]
        known = np.where(np.isfinite(changes), changes, 0.0)
        place = int(np.argmax(known))
        first, scale = known[place], np.nanmax(np.abs(slopes))
        if first <= 1e-3 * scale or (what == "value" and first <= 100.0 * rough):
            continue
        low, high = spots[place], spots[place + 1]
        ends = [seen[place], seen[place + 1]]
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            there = _along(probe, point, step, middle)
            halves = [_change(what, ends[0], there, middle - low),
                      _change(what, there, ends[1], high - middle)]
            if not np.isfinite(halves).all():
                break
            if halves[0] >= halves[1]:
                high, ends[1] = middle, there
            else:
                low, ends[0] = middle, there
        else:
            left = _change(what, ends[0], ends[1], high - low)
            # Noise in a gradient looks like a kink over distances this short.
            if left >= _LEFT * first and (what == "slope" or left > 100.0 * rough):
                return _kink_found(what, left, scale, low)
    return None


def _change(what: str, one: Any, other: Any, width: float) -> float:
    """The change of the slope, or that of the value that the slopes at both ends do not explain."""
    (value, slope), (value_there, slope_there) = one, other
    if what == "slope":
        return abs(slope_there - slope)
    return abs(value_there - value - 0.5 * width * (slope + slope_there))


def _kink_found(what: str, size: float, scale: float, place: float) -> Finding:
    relative = size / scale if scale else size
    where = f"at {abs(place) / 2:.2g} |x0| from x0"
    if what == "value":
        return Finding("kinks", PROBLEM, size, (
            f"The value jumps by {size:.2g} {where}, along a line. L-BFGS needs a continuous "
            "function: look for integers, rounding, a change of branch or of a mesh."
        ))
    return Finding("kinks", PROBLEM if relative > _SHARP else NOTE, relative, (
        f"The slope jumps by {relative:.2g} of its largest value {where}, along a line: a kink, "
        "as abs, maximum or relu have. A run may stop early at one. lx.Bisection as the line "
        "search copes with kinks; for a penalty weight |x| pass l1=weight; or take a smooth "
        "function, such as softplus or sqrt(x^2 + c)."
    ))


class Curvature(NamedTuple):
    """What the Hessian at x0 shows; `scale` is None if it was not formed."""

    condition: float
    scaled: float
    scale: np.ndarray | None
    findings: list[Finding]


def conditioning(probe: Probe, point: Point) -> Curvature:
    """The range of the eigenvalues of the Hessian, by differences of gradients, and the units of
    the variables in which it is narrower."""
    if probe.by_differences and point.x.size > _FORMED:
        return Curvature(math.nan, math.nan, None, [])
    if point.x.size > _FORMED:
        return _range(probe, point)
    rows = [_product(probe, point, step) for step in np.diag(point.size)]
    hessian = np.stack(rows) / point.size[:, None]
    hessian = 0.5 * (hessian + hessian.T)
    if not np.isfinite(hessian).all():
        return Curvature(math.nan, math.nan, None, [])
    eigenvalues = np.linalg.eigvalsh(hessian)
    # Below this part of the largest one, an eigenvalue is an error of the differences.
    resolved = 1e-4 if probe.by_differences else point.eps ** (2.0 / 3.0)
    diagonal = np.abs(np.diag(hessian))
    scale, scaled = None, math.nan
    if (diagonal > resolved**2 * diagonal.max()).all():
        scale = 1.0 / np.sqrt(diagonal)
        scaled = _ratio(np.linalg.eigvalsh(hessian * np.outer(scale, scale)))
        scaled = min(scaled, 1.0 / resolved)
    condition = _ratio(eigenvalues)
    if scale is None:
        condition = min(condition, 1.0 / resolved)
    silent = (point.gradient == 0.0) & ~hessian.any(axis=-1)
    return Curvature(condition, scaled, scale, _judged(
        probe, point, condition, scaled, scale, eigenvalues, silent
    ))


def _is_unused(probe: Probe, point: Point, index: int) -> bool:
    step = np.zeros(point.x.size)
    step[index] = point.size[index]
    return probe.value(point.x + step) == point.value


def _judged(
    probe: Probe, point: Point, condition: float, scaled: float, scale: np.ndarray | None,
    eigenvalues: np.ndarray, silent: np.ndarray,
) -> list[Finding]:
    unused = [int(i) for i in np.flatnonzero(silent) if _is_unused(probe, point, int(i))]
    if unused:
        return [Finding("conditioning", NOTE, float(len(unused)), (
            f"{len(unused)} of {point.x.size} variables do not change fun at x0, the first of them "
            f"{probe.name(unused[0])}: a run leaves them as they are. Is that intended?"
        ))]
    concave = eigenvalues[0] < -1e-3 * abs(eigenvalues[-1])
    shape = (
        f" The smallest eigenvalue is {eigenvalues[0]:.2g}: fun is not convex at x0, which L-BFGS "
        "copes with; it may end in one of several minima." if concave else ""
    )
    if condition <= _EASY:
        return [Finding("conditioning", GOOD, condition, (
            f"The condition number of the Hessian at x0 is {condition:.2g}.{shape}"
        ))]
    explained = scale is not None and scaled * _WORTH <= condition
    flat = condition >= _HARD and not explained
    text = f"The condition number of the Hessian at x0 is {condition:.1g}" + (
        ", so some combination of variables hardly changes fun" if flat else ""
    )
    if scale is not None and explained:
        low, high = int(np.argmin(scale)), int(np.argmax(scale))
        text += (
            f". The variables have different units: {scale[high] / scale[low]:.1g} in "
            f"{probe.name(high)} counts as much as 1 in {probe.name(low)}. With "
            f"x_scale=diagnosis.x_scale it is {scaled:.1g}."
        )
    else:
        text += (
            ". Units of the variables do not explain it: expect many iterations, take "
            "lx.LBFGS(memory_size=30) or lx.BFGS(), float64, or other parameters."
        )
    return [Finding("conditioning", NOTE, condition, text + shape)]


def _range(probe: Probe, point: Point) -> Curvature:
    """A lower bound of the condition number, by the Lanczos process."""
    rng = np.random.default_rng(0)
    v = rng.normal(size=point.x.size)
    v /= np.linalg.norm(v)
    basis, alphas, betas = [v], [], []
    for _ in range(_STEPS):
        w = _product(probe, point, basis[-1])
        if not np.isfinite(w).all():
            return Curvature(math.nan, math.nan, None, [])
        alphas.append(float(w @ basis[-1]))
        # Against all of them, since rounding would bring them back.
        for _ in range(2):
            for u in basis:
                w = w - (u @ w) * u
        beta = float(np.linalg.norm(w))
        if beta <= 1e-8 * max(map(abs, alphas)):
            break
        betas.append(beta)
        basis.append(w / beta)
    size = len(alphas)
    middle = np.diag(alphas) + sum(np.diag(betas[: size - 1], k) for k in (-1, 1))
    eigenvalues = np.linalg.eigvalsh(middle)
    condition = _ratio(eigenvalues)
    easy = condition <= _EASY
    return Curvature(condition, math.nan, None, [Finding(
        "conditioning", GOOD if easy else NOTE, condition,
        f"The condition number of the Hessian at x0 is at least {condition:.1g}, by {size} "
        "products with it" + ("." if easy else (
            ". If the variables have different units, pass x_scale=; else expect many iterations, "
            "and take lx.LBFGS(memory_size=30)."
        )),
    )])


def _product(probe: Probe, point: Point, v: np.ndarray) -> np.ndarray:
    """The Hessian times v, by central differences of gradients."""
    power = 0.2 if probe.by_differences else 1.0 / 3.0
    reach = float(np.max(np.abs(v) / point.size))
    length = point.eps**power / reach if reach else 1.0
    ahead, behind = (probe.both(point.x + sign * length * v)[1] for sign in (1.0, -1.0))
    return (ahead - behind) / (2.0 * length)


def _ratio(eigenvalues: np.ndarray) -> float:
    sizes = np.abs(eigenvalues)
    return float(sizes.max() / sizes.min()) if sizes.min() > 0.0 else math.inf


def transfers(probe: Probe) -> list[Finding]:
    """Whether fun makes a program on a GPU wait."""
    if probe.backend.on_host:
        return []
    value = probe.raw_value()
    if not isinstance(value, int | float | np.generic | np.ndarray):
        return []
    return [Finding("transfers", NOTE, math.nan, (
        f"fun returns its value as a {type(value).__name__} on the host, so each call waits for "
        "the device. Return the 0-d array of the library."
    ))]


def precision(probe: Probe, point: Point) -> list[Finding]:
    """Whether the dtype has digits enough."""
    digits = int(-math.log10(point.eps))
    if point.eps < 1e-10:
        return [Finding("precision", GOOD, point.eps, f"x0 has {digits} digits.")]
    return [Finding("precision", NOTE, point.eps, (
        f"x0 is {probe.dtype_name}, with {digits} digits: changes of the value below "
        f"{point.rounding:.1g} are rounding, so a run ends at about half of these digits in x. "
        "Pass x0 in float64 for more."
    ))]


def time_of(probe: Probe) -> tuple[float, list[Finding]]:
    """How long an evaluation takes."""
    first, rest = probe.seconds[0], probe.seconds[1:]
    usual = float(np.median(rest)) if rest else first
    thousand = _span(1e3 * usual)
    text = f"Value and gradient take {_span(usual)}, so 1,000 evaluations take {thousand}."
    if first > 0.2 and first > 20.0 * usual:
        text += f" The first call took {_span(first)}, as compilation does."
    if probe.backend.compiles and not probe.is_compiled and usual > 1e-3:
        return usual, [Finding("time", NOTE, usual, text + (
            " fun is not compiled: pass a compiled one, such as jax.jit(fun)."
        ))]
    return usual, [Finding("time", GOOD, usual, text)]


def _span(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            number = seconds / size
            return f"{number:.0f} {unit}" if number >= 10.0 else f"{number:.2g} {unit}"
    return f"{1e9 * seconds:.0f} ns"


def _levelled(point: Point) -> np.ndarray:
    """A direction along which no variable contributes more to the slope than the median one."""
    (direction, *_), share = _directions(point), np.abs(point.gradient) * point.size
    level = float(np.median(share[share > 0.0])) if np.any(share > 0.0) else 0.0
    return direction * np.where(share > level, level / np.where(share > level, share, 1.0), 1.0)


def _directions(point: Point) -> list[np.ndarray]:
    """Directions along which each variable changes by about its own size."""
    rng = np.random.default_rng(0)
    return [
        point.size * rng.choice([-1.0, 1.0], point.x.size) * rng.uniform(0.5, 1.0, point.x.size)
        for _ in range(_DIRECTIONS)
    ]
