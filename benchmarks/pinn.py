"""Physics-informed networks in float64: the error of the solution against evaluations and time.

Four equations, several seeds: 300 steps of Adam, then 1,500 evaluations by each method from the
same parameters. A table of the geometric means of the relative L2 errors, one of the times, and
with --out a picture of the curves. The networks and their derivatives are JAX, compiled; the
solvers work on NumPy arrays, as SciPy's do. A product of Newton-CG with the Hessian, which takes
about two gradients, counts as two evaluations.

With --burgers, one long run instead, in the setting of Urbán, Stefanou & Pons (2025): Burgers'
equation, 3 x 20 tanh, 5,000 steps of Adam, then 10,000 iterations of SSBroyden, whose matrix is
kept when points are drawn anew, every 500 steps, where the residual is large. The solution is odd
in x because the initial values are; so is the network of this run, by construction.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _common import print_machine, print_table
from scipy import integrate, optimize, stats

import lbfgs_xp as lx

jax.config.update("jax_enable_x64", True)
NU = 0.01 / math.pi
# Where the errors are measured, between the end of Adam and the last evaluation.
MARKS = 12


class Equation(NamedTuple):
    """An equation with its network.

    inputs, widths : the size of an input, and of each hidden layer.
    solution : (network, point) -> u, which meets the initial and boundary values.
    residual : (u, point) -> what is 0 for the solution, where u maps a point to a number.
    count : of the points where residuals are taken.
    points : from numbers (k, inputs) between 0 and 1 to these points.
    exact : (points, values) to compare with.
    """

    inputs: int
    widths: tuple[int, ...]
    solution: Callable
    residual: Callable
    count: int
    points: Callable
    exact: Callable[[], tuple[np.ndarray, np.ndarray]]


# --- the equations -------------------------------------------------------------------------------


def derivative(u: Callable, *places: int) -> Callable:
    """The derivative of u by the inputs at these places, one after another."""
    for i in places:
        u = functools.partial(lambda f, i, p: jax.grad(f)(p)[i], u, i)
    return u


def grid(*axes: np.ndarray) -> np.ndarray:
    return np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=-1)


def burgers() -> Equation:
    """u_t + u u_x = nu u_xx with nu = 0.01 / pi; exact by the transform of Cole and Hopf."""

    def exact() -> tuple[np.ndarray, np.ndarray]:
        p = grid(np.linspace(-1.0, 1.0, 101), np.linspace(0.05, 0.99, 40))
        z, weights = np.polynomial.hermite.hermgauss(100)
        y = p[:, :1] - np.sqrt(4.0 * NU * p[:, 1:]) * z
        exponent = -np.cos(np.pi * y) / (2.0 * np.pi * NU)
        w = weights * np.exp(exponent - exponent.max(-1, keepdims=True))
        return p, -np.sum(np.sin(np.pi * y) * w, -1) / np.sum(w, -1)

    def residual(u: Callable, p: Any) -> Any:
        u_x, u_t = jax.grad(u)(p)
        return u_t + u(p) * u_x - NU * derivative(u, 0, 0)(p)

    def points(r: np.ndarray) -> np.ndarray:
        s = 2.0 * r[:, 0] - 1.0
        # Denser near x = 0, where a shock forms.
        return np.stack([np.sign(s) * np.abs(s) ** 1.5, r[:, 1]], axis=-1)

    return Equation(
        2, (16, 16, 16),
        lambda net, p: -jnp.sin(math.pi * p[0]) + p[1] * (1.0 - p[0] ** 2) * net(2 * p - 1),
        residual, 1024, points, exact,
    )


def odd_burgers() -> Equation:
    """The same with a solution that is odd in x, from points with x > 0."""

    def solution(net: Callable, p: Any) -> Any:
        x, t = p
        there, mirrored = (net(jnp.stack([each, 2.0 * t - 1.0])) for each in (x, -x))
        return -jnp.sin(math.pi * x) + 0.5 * t * (1.0 - x**2) * (there - mirrored)

    return burgers()._replace(
        widths=(20, 20, 20), solution=solution,
        points=lambda r: np.stack([r[:, 0] ** 1.5, r[:, 1]], axis=-1),
    )


def pendulum() -> Equation:
    """u'' = -sin(u), u(0) = 2, u'(0) = 0, for 0 < t < 8."""

    def exact() -> tuple[np.ndarray, np.ndarray]:
        t = np.linspace(0.0, 8.0, 401)
        found = integrate.solve_ivp(
            lambda t, y: [y[1], -np.sin(y[0])], (0.0, 8.0), [2.0, 0.0], "DOP853", t, rtol=1e-13,
            atol=1e-13,
        )
        return t[:, None], found.y[0]

    return Equation(
        1, (20, 20),
        lambda net, p: 2.0 + p[0] ** 2 / 8.0 * net(p / 4.0 - 1.0),
        lambda u, p: derivative(u, 0, 0)(p) + jnp.sin(u(p)),
        256, lambda r: 8.0 * r, exact,
    )


def heat() -> Equation:
    """u_t = u_xx / 10, from sin(pi x) + sin(3 pi x) / 2."""

    def solution(p: np.ndarray) -> np.ndarray:
        x, t = p.T
        modes = ((1.0, 1.0), (3.0, 0.5))
        return sum(
            a * np.sin(k * np.pi * x) * np.exp(-0.1 * (k * np.pi) ** 2 * t) for k, a in modes
        )

    def exact() -> tuple[np.ndarray, np.ndarray]:
        p = grid(np.linspace(0.0, 1.0, 81), np.linspace(0.0, 1.0, 41))
        return p, solution(p)

    def meets(net: Callable, p: Any) -> Any:
        start = jnp.sin(math.pi * p[0]) + 0.5 * jnp.sin(3.0 * math.pi * p[0])
        return start + p[1] * p[0] * (1.0 - p[0]) * net(2 * p - 1)

    return Equation(
        2, (16, 16), meets,
        lambda u, p: derivative(u, 1)(p) - 0.1 * derivative(u, 0, 0)(p), 1024, lambda r: r, exact,
    )


def helmholtz() -> Equation:
    """u_xx + u_yy + u = q on the square from -1 to 1, with the solution sin(pi x) sin(2 pi y)."""

    def wave(p: Any, xp: Any) -> Any:
        return xp.sin(math.pi * p[..., 0]) * xp.sin(2.0 * math.pi * p[..., 1])

    def residual(u: Callable, p: Any) -> Any:
        q = (1.0 - 5.0 * math.pi**2) * wave(p, jnp)
        return derivative(u, 0, 0)(p) + derivative(u, 1, 1)(p) + u(p) - q

    def exact() -> tuple[np.ndarray, np.ndarray]:
        p = grid(np.linspace(-1.0, 1.0, 61), np.linspace(-1.0, 1.0, 61))
        return p, wave(p, np)

    return Equation(
        2, (16, 16), lambda net, p: (1.0 - p[0] ** 2) * (1.0 - p[1] ** 2) * net(p),
        residual, 1024, lambda r: 2.0 * r - 1.0, exact,
    )


EQUATIONS = {f.__name__: f for f in (burgers, pendulum, heat, helmholtz)}


# --- one network ---------------------------------------------------------------------------------


class Network:
    """The loss of an equation as a function of a vector of parameters, with what counts its use.

    calls : evaluations of the loss, with its gradient, and two for each product with the Hessian.
    seconds : of the processor, in measuring errors.
    time_of : the seconds of the processor that each method has taken.
    """

    def __init__(self, equation: Equation, count: int, seed: int):
        self.equation = equation
        sizes = [equation.inputs, *equation.widths, 1]
        rng, parts = np.random.default_rng(seed), []
        for m, n in zip(sizes, sizes[1:], strict=False):
            # Glorot & Bengio (2010).
            parts += [math.sqrt(2.0 / (m + n)) * rng.normal(size=m * n), np.zeros(n)]
        self.start = np.concatenate(parts)
        sobol = stats.qmc.Sobol(equation.inputs, rng=np.random.default_rng(seed))
        points = jnp.asarray(equation.points(sobol.random(count)))

        def network(x: Any, p: Any) -> Any:
            i = 0
            for m, n in zip(sizes, sizes[1:], strict=False):
                weight = x[i : i + m * n].reshape(m, n)
                i += m * n
                p = p @ weight + x[i : i + n]
                i += n
                p = jnp.tanh(p) if n != 1 else p
            return p[0]

        def solution(x: Any, p: Any) -> Any:
            return equation.solution(functools.partial(network, x), p)

        def residuals(x: Any, points: Any) -> Any:
            u = functools.partial(solution, x)
            return jax.vmap(functools.partial(equation.residual, u))(points)

        def loss(x: Any, points: Any) -> Any:
            return jnp.mean(residuals(x, points) ** 2)

        def product(x: Any, v: Any, points: Any) -> Any:
            return jax.jvp(lambda x: jax.grad(loss)(x, points), (x,), (v,))[1]

        self.points, self.residuals = points, jax.jit(residuals)
        self._both, self._product = jax.jit(jax.value_and_grad(loss)), jax.jit(product)
        self._at = jax.jit(jax.vmap(solution, (None, 0)))
        self.where, self.exact = equation.exact()
        self.time_of: dict[str, float] = {}
        self.reset()

    def reset(self) -> None:
        self.calls, self.seconds, self._began = 0, 0.0, time.process_time()
        self.best, self.x = math.inf, self.start
        self.curve: list[tuple[int, float, float]] = []
        self.marks: list[int] = []

    def __call__(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = self._both(x, self.points)
        value = float(value)
        self.calls += 1
        if value < self.best:
            self.best, self.x = value, np.array(x)
        self.note()
        return value, np.array(gradient)

    def product(self, x: np.ndarray, v: np.ndarray) -> np.ndarray:
        self.calls += 2
        found = np.array(self._product(x, v, self.points))
        self.note()
        return found

    def draw(self, x: np.ndarray, rng: np.random.Generator) -> None:
        """New points, more of them where the residual is large: with probabilities of 1 + |r| / the
        mean of |r| among ten times as many (Wu et al. 2023, RAD)."""
        count = self.points.shape[0]
        found = self.equation.points(rng.random((10 * count, self.equation.inputs)))
        sizes = np.abs(np.asarray(self.residuals(x, found)))
        shares = 1.0 + sizes / sizes.mean()
        chosen = rng.choice(len(found), count, replace=False, p=shares / shares.sum())
        self.points = jnp.asarray(found[chosen])

    def error(self, x: np.ndarray) -> float:
        """The relative L2 error of the solution."""
        found = np.asarray(self._at(x, self.where))
        return float(np.linalg.norm(found - self.exact) / np.linalg.norm(self.exact))

    def watch(self, last: int) -> None:
        """From now on, count calls from 0 and note the error of the best parameters so far."""
        self.reset()
        self.marks = [round(mark) for mark in np.geomspace(last / 64, last, MARKS)]

    def restart(self) -> None:
        """Begin to measure time now."""
        self.seconds, self._began = 0.0, time.process_time()

    def passed(self) -> float:
        """The seconds of the method so far."""
        return time.process_time() - self._began - self.seconds

    def note(self) -> None:
        while self.marks and self.calls >= self.marks[0]:
            passed = self.passed()
            began = time.process_time()
            self.curve.append((self.marks.pop(0), passed, self.error(self.x)))
            self.seconds += time.process_time() - began

    def finish(self) -> None:
        """A run that has ended keeps its error."""
        passed, error = self.passed(), self.error(self.x)
        self.curve += [(mark, passed, error) for mark in self.marks]


class Done(Exception):
    """The evaluations are spent."""


# --- the methods ---------------------------------------------------------------------------------


def by_ours(method: Callable[[], Any]) -> Callable:
    def run(network: Network, x0: np.ndarray, evaluations: int) -> str:
        res = lx.minimize(
            network, x0, jac=True, method=method(), maxfun=evaluations, gtol=0.0, maxiter=None
        )
        return res.status.name

    return run


def by_newton(network: Network, x0: np.ndarray, evaluations: int) -> str:
    def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
        if network.calls >= evaluations:
            raise Done
        return network(x)

    try:
        res = lx.minimize(
            fun, x0, jac=True, hessp=network.product, method=lx.NewtonCG(), gtol=0.0, maxiter=None
        )
    except Done:
        return "EVALUATIONS"
    return res.status.name


def by_gauss_newton(solver: str) -> Callable:
    def run(network: Network, x0: np.ndarray, evaluations: int) -> str:
        limit = network.time_of.get("SSBroyden", math.inf)

        def watch(record: Any) -> bool:
            # A Jacobian by rows counts as one more evaluation; products are not counted.
            network.calls, network.x = record.nfev + record.nit, np.asarray(record.x)
            network.best = 2.0 * record.cost / network.points.shape[0]
            network.note()
            return network.calls >= evaluations or network.passed() >= limit

        settings: dict[str, Any] = {
            "args": (network.points,), "solver": solver, "pointwise": solver == "dual",
            "gtol": 0.0, "maxiter": None,
        }
        start = jnp.asarray(x0)
        lx.least_squares(network.residuals, start, **{**settings, "maxiter": 1})    # compiles
        network.restart()
        fit = lx.least_squares(network.residuals, start, callback=watch, **settings)
        return fit.status.name.replace("CALLBACK", "time of SSBroyden")

    return run


def by_scipy(network: Network, x0: np.ndarray, evaluations: int) -> str:
    def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
        if network.calls >= evaluations:
            raise Done
        return network(x)

    try:
        options = {"gtol": 0.0, "maxiter": evaluations}
        res = optimize.minimize(fun, x0, jac=True, method="BFGS", options=options)
    except Done:
        return "EVALUATIONS"
    return f"status {res.status}"


METHODS: dict[str, Callable] = {
    "Adam": by_ours(lambda: lx.Adam(1e-3)),
    "L-BFGS (m = 50)": by_ours(lambda: lx.LBFGS(memory_size=50)),
    "BFGS": by_ours(lx.BFGS),
    "SSBFGS": by_ours(lx.SSBFGS),
    "SSBroyden": by_ours(lx.SSBroyden),
    "Gauss-Newton, dual": by_gauss_newton("dual"),
    "Gauss-Newton, cg": by_gauss_newton("cg"),
    "Newton-CG": by_newton,
    "SciPy BFGS": by_scipy,
}


# --- one long run --------------------------------------------------------------------------------


def long_run(count: int, seed: int, steps: tuple[int, int], every: int, out: Path | None) -> None:
    """Adam and then SSBroyden, so many `steps` of each, on Burgers' equation with so many points,
    drawn anew `every` so many steps."""
    network = Network(odd_burgers(), count, seed)
    rng, x, rows = np.random.default_rng(seed), network.start, []
    began = time.process_time()
    for name, method, number in (("Adam", lx.Adam(1e-3), steps[0]),
                                 ("SSBroyden", lx.SSBroyden(), steps[1])):
        state = None
        for _ in range(-(-number // every)):
            network.draw(x, rng)
            res = lx.minimize(
                network, x, jac=True, method=method, state=state, maxiter=every, gtol=0.0
            )
            x, state = res.x, res.state
            step = (rows[-1][0] if rows else 0) + res.nit
            rows.append((step, network.calls, time.process_time() - began, res.fun,
                         network.error(x), name))
            print(
                f"{name:10} step {step:6}  {network.calls:6} evaluations, {rows[-1][2]:6.0f} s  "
                f"loss {res.fun:.2e}  error {rows[-1][4]:.2e}  {res.status.name}", flush=True,
            )
    print_table(
        f"Burgers, n = {x.size}, {count} points drawn anew every {every} steps, seed {seed}",
        ["", "steps", "evaluations", "seconds", "loss", "relative L2 error"],
        [
            [name, str(step), str(calls), f"{seconds:.0f}", f"{loss:.1e}", f"{error:.1e}"]
            for step, calls, seconds, loss, error, name in rows
        ],
    )
    print(f"\nlowest error {min(row[4] for row in rows):.1e}")
    print_machine()
    if out:
        draw_long_run(network, x, rows, steps[0], out)


def draw_long_run(
    network: Network, x: np.ndarray, rows: list[tuple], turn: int, path: Path
) -> None:
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    curve, places = figure.subplots(1, 2)
    at = [row[0] for row in rows]
    curve.semilogy(at, [row[4] for row in rows], color="#0072B2", label="relative L2 error")
    curve.semilogy(at, [row[3] for row in rows], "--", color="#D55E00", label="loss")
    curve.axvline(turn, color="0.6", linewidth=0.8)
    curve.annotate("SSBroyden", (turn, 1.0), (4, -12), xycoords=("data", "axes fraction"),
                   textcoords="offset points", fontsize=8, color="0.4")
    curve.set(xlabel="step", title="Adam, then SSBroyden")
    curve.legend(frameon=False)
    p = network.where
    away = np.abs(np.asarray(network._at(x, p)) - network.exact)
    shown = places.tricontourf(
        p[:, 1], p[:, 0], np.maximum(away, 1e-10), np.geomspace(1e-9, 1e-3, 13), cmap="cividis",
        norm=LogNorm(1e-9, 1e-3), extend="both",
    )
    places.set(xlabel="t", ylabel="x", title="|error of u| at the end")
    figure.colorbar(shown, ax=places, format="%.0e", ticks=np.geomspace(1e-9, 1e-3, 7))
    figure.savefig(path, dpi=130)


def mean(numbers: Any) -> float:
    return float(np.exp(np.mean(np.log(list(numbers)))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two equations, one seed, less of all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--evaluations", type=int)
    parser.add_argument("--only", nargs="*", choices=list(EQUATIONS))
    parser.add_argument("--methods", nargs="*", choices=list(METHODS))
    parser.add_argument("--out", type=Path, metavar="FILE.png")
    parser.add_argument("--burgers", action="store_true", help="one long run; see above")
    parser.add_argument("--points", type=int, help="default of the long run: 4096")
    parser.add_argument("--seed", type=int, default=0, help="of the long run")
    options = parser.parse_args()
    if options.burgers:
        steps, every = ((500, 1000), 100) if options.quick else ((5000, 10_000), 500)
        long_run(options.points or 4096, options.seed, steps, every, options.out)
        return
    names = options.only or (["pendulum", "heat"] if options.quick else list(EQUATIONS))
    methods = options.methods or list(METHODS)
    seeds = 1 if options.quick else options.seeds
    evaluations = options.evaluations or (600 if options.quick else 1500)
    curves: dict[tuple[str, str], list[np.ndarray]] = {}
    for name in names:
        for seed in range(seeds):
            equation = EQUATIONS[name]()
            count = options.points or (equation.count // 4 if options.quick else equation.count)
            network = Network(equation, count, seed)
            network(network.start), network.error(network.start)    # compiles
            network.product(network.start, network.start)
            adam = lx.minimize(
                network, network.start, jac=True, method=lx.Adam(5e-3), maxiter=300, gtol=0.0
            )
            for method in methods:
                network.watch(evaluations)
                status = METHODS[method](network, adam.x, evaluations)
                network.finish()
                network.time_of[method] = network.curve[-1][1]
                curves.setdefault((name, method), []).append(np.asarray(network.curve))
                print(
                    f"{name:10} {seed}  {method:18} n {adam.x.size}  {network.calls} evaluations, "
                    f"{network.curve[-1][1]:.1f} s  loss {network.best:.1e}  "
                    f"error {network.curve[-1][2]:.2e}  {status}", flush=True,
                )
    last = {key: mean(c[-1, 2] for c in each) for key, each in curves.items()}
    seconds = {key: mean(c[-1, 1] for c in each) for key, each in curves.items()}
    for title, numbers, form in (
        (f"Relative L2 error, 300 steps of Adam and {evaluations} evaluations", last, "{:.1e}"),
        ("Seconds of the processor", seconds, "{:.1f}"),
    ):
        rows = [
            [m, *(form.format(numbers[name, m]) for name in names),
             form.format(mean(numbers[name, m] for name in names))]
            for m in methods
        ]
        print_table(f"{title}; geometric means of {seeds} seeds", ["", *names, "mean"], rows)
    if {"L-BFGS (m = 50)", "BFGS", "SSBroyden"} <= set(methods):
        ratios = [
            last[name, "SSBroyden"] / min(last[name, m] for m in ("L-BFGS (m = 50)", "BFGS"))
            for name in names
        ]
        print(
            "\nSSBroyden / the better of L-BFGS and BFGS: "
            + ", ".join(f"{name} {ratio:.2f}" for name, ratio in zip(names, ratios, strict=True))
            + f"; mean {mean(ratios):.2f} (bar: 0.4)"
        )
    print_machine()
    if options.out:
        draw(curves, names, methods, options.out)


def draw(
    curves: dict[tuple[str, str], list[np.ndarray]], names: list[str], methods: list[str],
    path: Path,
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(names), 6.4), layout="constrained")
    axes = figure.subplots(2, len(names), squeeze=False, sharey="col")
    # Okabe & Ito: distinct for colour-blind eyes.
    colors = (
        "#999999", "#D55E00", "#E69F00", "#56B4E9", "#0072B2", "#000000", "#000000", "#009E73",
        "#CC79A7",
    )
    styles = {"SciPy BFGS": ":", "Gauss-Newton, cg": "--"}
    for column, name in enumerate(names):
        for method, color in zip(methods, colors, strict=False):
            runs = np.stack(curves[name, method])
            middle = np.exp(np.mean(np.log(np.maximum(runs, 1e-12)), axis=0))
            for row, xs in enumerate((middle[:, 0], middle[:, 1])):
                axes[row, column].loglog(
                    xs, middle[:, 2], styles.get(method, "-"), color=color, label=method,
                    linewidth=1.6,
                )
        axes[0, column].set(title=name, xlabel="evaluations")
        axes[1, column].set(xlabel="seconds of the processor")
    for row in (0, 1):
        axes[row, 0].set_ylabel("relative L2 error")
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
