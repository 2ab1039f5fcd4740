"""Every learning-rate schedule on the same problem: python examples/schedules.py

The problem is a small training: a linear model is fitted to noisy data by stochastic gradient
descent, in batches of 16. A high rate makes fast progress and then wanders around the minimum; a
low rate gets closer but takes long. A schedule leads from one to the other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import _common as shared
import numpy as np

import lbfgs_xp as lx
from lbfgs_xp import schedules

ROWS, FEATURES, BATCH = 400, 10, 16
RATE = 0.25


def every_schedule(steps: int) -> dict[str, schedules.Schedule]:
    """One schedule of each class, ending (if it ends) at this step; and a constant low rate."""
    tenth = steps // 10
    decay = schedules.Exponential(RATE, 0.01, every=steps)
    made = [
        schedules.Constant(RATE),
        decay,
        schedules.Factor(RATE, 0.5, every=tenth, minimum=RATE / 30.0),
        schedules.StepDecay(RATE, every=steps // 3),
        schedules.MultiStep(RATE, boundaries=(steps // 2, 3 * steps // 4)),
        schedules.PiecewiseConstant(RATE, (2 * tenth, 5 * tenth, 8 * tenth), (0.5, 0.2, 0.2)),
        schedules.PiecewiseInterpolate(RATE, (3 * tenth, steps), (1.0, 0.05)),
        schedules.InverseSquareRoot(RATE, warmup_steps=tenth // 2),
        schedules.Linear(RATE, 0.0, steps),
        schedules.Polynomial(RATE, steps, power=3.0),
        schedules.Cosine(RATE, steps, warmup_steps=tenth),
        schedules.CosineRestarts(RATE, period=1 + steps // 7, growth=2),
        schedules.OneCycle(RATE, steps),
        schedules.Cyclic(RATE, up_steps=tenth, minimum=RATE / 50.0, shape="triangular2"),
        schedules.WarmupStableDecay(RATE, tenth, 6 * tenth, 3 * tenth),
        schedules.Warmup(decay, warmup_steps=tenth),
        schedules.Sequence((schedules.Linear(0.0, RATE, tenth), RATE, decay), (tenth, 3 * tenth)),
        schedules.Product((decay, schedules.CosineRestarts(1.0, period=2 * tenth, minimum=0.2))),
        schedules.Function(lambda step: RATE / (1.0 + 20.0 * step / steps)),
        schedules.ReduceOnPlateau(RATE, factor=0.3, patience=1),
    ]
    named = {type(schedule).__name__: schedule for schedule in made}
    return named | {"Constant, low": schedules.Constant(RATE / 30.0)}


class Run(NamedTuple):
    """One training: the rate at each step, and the loss above the minimum after each epoch."""

    rates: np.ndarray
    losses: np.ndarray


def half_mean_square(w: Any, batch: Any) -> tuple[Any, Any]:
    X, y = batch
    r = X @ w - y
    return 0.5 * (r @ r) / y.shape[0], (r @ X) / y.shape[0]


class Problem(NamedTuple):
    """The rows (X, y), the initial parameters, and the lowest loss."""

    rows: tuple[Any, Any]
    start: Any
    minimum: float


def problem(lib: shared.Library) -> Problem:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(ROWS, FEATURES)) * np.geomspace(1.0, 0.3, FEATURES)
    y = X @ rng.normal(size=FEATURES) + rng.normal(size=ROWS)
    rows, start = (lib.array(X), lib.array(y)), lib.array(np.zeros(FEATURES))
    best = lx.minimize(half_mean_square, start, (rows,), jac=True)
    return Problem(rows, start, best.fun)


def train(schedule: Any, problem: Problem, epochs: int, seed: int) -> Run:
    rows, start, minimum = problem
    params = [start]
    res = lx.train(
        half_mean_square, start, rows, jac=True, method=lx.SGD(schedule), batch_size=BATCH,
        epochs=epochs, seed=seed, callback=lambda record: params.append(record.params),
    )
    losses = [float(half_mean_square(w, rows)[0]) - minimum for w in params]
    return Run(res.history.learning_rate, np.asarray(losses))


def end(runs: list[Run]) -> float:
    """The mean of the final losses of the runs."""
    return float(np.mean([run.losses[-1] for run in runs]))


def draw(runs: dict[str, list[Run]]) -> Any:
    """A panel for each schedule: its rate, and the loss over the training."""
    picture = shared.figure(20.0, 8.5)
    if picture is None:
        return None
    picture.suptitle("shaded: the learning rate; lines: the loss above the minimum, one for each "
                     "random order of the batches; in the titles: its final value, on average")
    panels = picture.subplots(3, 7, sharex=True, sharey=True)
    for (name, found), ax in zip(runs.items(), panels.flat, strict=True):
        rates = found[0].rates
        ax.fill_between(np.arange(len(rates)), rates, color=shared.SKY, alpha=0.5, linewidth=0,
                        step="post")
        ax.set(ylim=(0.0, 1.05 * RATE), title=f"{name}: {end(found):.0e}")
        right = ax.twinx()
        for run in found:
            epochs = np.linspace(0, len(rates), len(run.losses))
            right.semilogy(epochs, run.losses, color=shared.VERMILION, linewidth=1.2)
        right.set(ylim=(3e-6, 10.0))
        right.minorticks_off()
        right.tick_params(labelright=ax in panels[:, -1])
        if ax in panels[:, 0]:
            ax.set_ylabel("learning rate", color=shared.BLUE)
        if ax in panels[:, -1]:
            right.set_ylabel("loss above the minimum", color=shared.VERMILION)
        if ax in panels[-1]:
            ax.set_xlabel("step")
    return picture


def main() -> None:
    options = shared.parser(__doc__).parse_args()
    fit = problem(shared.array_library(options.backend))
    epochs, seeds = (8, 1) if options.quick else (20, 3)
    batches = ROWS // BATCH

    runs: dict[str, list[Run]] = {}
    for name, schedule in every_schedule(epochs * batches).items():
        shared.progress(f"training with {name}")
        runs[name] = [train(schedule, fit, epochs, seed) for seed in range(seeds)]
    shared.progress()
    print(f"{epochs * batches} steps, rate at most {RATE:g}; final loss above the minimum")
    for name, found in runs.items():
        print(f"{name:18} {end(found):.1e}")

    picture = draw(runs)
    if picture is not None:
        shared.save(picture, options.out, "schedules")


if __name__ == "__main__":
    main()
