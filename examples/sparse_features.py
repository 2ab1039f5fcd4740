"""Learning rates for rare features: python examples/sparse_features.py

Logistic regression on features of 0 and 1 whose frequencies follow a power law, like those of
words: the first occurs in every other row, the last in a handful. With a single learning rate, the
rate that suits the frequent features is too small for the rare ones; Adagrad and its successors
give each coordinate its own rate. Each method uses the best learning rate of a small grid. The
weights are compared with those at the minimum, which L-BFGS finds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import _common as shared
import numpy as np

import lbfgs_xp as lx

FEATURES, BATCH, L2 = 150, 20, 1e-3
GRIDS: dict[Any, tuple[float, ...]] = {
    lx.SGD: (0.1, 0.3, 1.0, 3.0, 10.0),
    lx.Adagrad: (0.03, 0.1, 0.3, 1.0, 3.0),
    lx.RMSProp: (0.001, 0.003, 0.01, 0.03, 0.1),
    lx.Adadelta: (1.0, 3.0, 10.0, 30.0, 100.0),
    lx.Adam: (0.003, 0.01, 0.03, 0.1, 0.3),
    lx.Yogi: (0.003, 0.01, 0.03, 0.1, 0.3),
}
MARKERS = "osD^vP"


class Problem(NamedTuple):
    """Rows (X, y), the loss on a batch of them, how often each feature occurs, the minimum."""

    lib: shared.Library
    rows: tuple[Any, Any]
    loss: Any
    counts: np.ndarray
    best: lx.Result


class Run(NamedTuple):
    """After each epoch: the loss above the minimum, and the errors of all weights."""

    rate: float
    losses: np.ndarray
    errors: np.ndarray


def problem(lib: shared.Library, rows: int) -> Problem:
    xp, rng = lib.xp, np.random.default_rng(0)
    there = rng.random((rows, FEATURES)) < 0.5 / np.arange(1.0, FEATURES + 1.0)
    scores = there @ rng.normal(scale=1.5, size=FEATURES)
    labels = rng.random(rows) < 1.0 / (1.0 + np.exp(-scores))
    X, y = lib.array(there), lib.array(labels)

    def loss(w: Any, batch: tuple[Any, Any]) -> tuple[Any, Any]:
        """The mean of -log likelihood over the rows, with a small penalty on the weights; and its
        gradient."""
        X, y = batch
        z = X @ w
        p = 0.5 + 0.5 * xp.tanh(0.5 * z)    # 1 / (1 + exp(-z)), which never overflows
        value = xp.mean(xp.logaddexp(xp.zeros_like(z), z) - y * z) + 0.5 * L2 * (w @ w)
        return value, (p - y) @ X / y.shape[0] + L2 * w

    loss = lib.compiled(loss)
    best = lx.minimize(loss, lib.array(np.zeros(FEATURES)), ((X, y),), jac=True)
    return Problem(lib, (X, y), loss, there.sum(axis=0), best)


def train(p: Problem, method: Any, rate: float, epochs: int) -> Run:
    weights = [p.lib.array(np.zeros(FEATURES))]
    lx.train(
        p.loss, weights[0], p.rows, jac=True, method=method(rate), batch_size=BATCH, epochs=epochs,
        callback=lambda record: weights.append(record.params),
    )
    losses = [float(p.loss(w, p.rows)[0]) - p.best.fun for w in weights]
    errors = p.lib.xp.abs(p.lib.xp.stack(weights) - p.best.x)
    return Run(rate, np.asarray(losses), shared.host(errors))


def relative(run: Run, p: Problem, which: np.ndarray) -> np.ndarray:
    """The error |w - w_min| / |w_min| of these features after each epoch."""
    scale = np.linalg.norm(shared.host(p.best.x)[which])
    return np.linalg.norm(run.errors[:, which], axis=1) / scale


def draw(p: Problem, tried: dict[str, list[Run]], chosen: dict[str, Run], rare: np.ndarray) -> Any:
    picture = shared.figure(12.0, 9.0)
    if picture is None:
        return None
    (losses, rares), (counts, grids) = picture.subplots(2, 2)
    present = p.counts > 0
    groups = np.array_split(np.argsort(p.counts)[::-1][: present.sum()], 10)
    for i, (name, run) in enumerate(chosen.items()):
        style: dict[str, Any] = {
            "color": shared.COLORS[i], "linestyle": shared.DASHES[i], "marker": MARKERS[i],
            "markersize": 5.0, "label": f"{name}, rate {run.rate:g}",
        }
        losses.semilogy(run.losses, **style)
        rares.plot(relative(run, p, rare), **style)
        counts.semilogx(
            [p.counts[group].mean() for group in groups],
            [relative(run, p, group)[-1] for group in groups], **style,
        )
        grids.loglog([r.rate for r in tried[name]], [r.losses[-1] for r in tried[name]], **style)
        grids.plot(run.rate, run.losses[-1], "o", markersize=13.0, fillstyle="none",
                   color=shared.COLORS[i])
    losses.set(xlabel="epoch", ylabel="loss above the minimum", title="loss, at the best rate")
    rares.set(xlabel="epoch", ylabel="|w − w_min| / |w_min|", ylim=(0.0, 1.05),
              title="error of the rarer half of the weights")
    counts.set(xlabel="rows with the feature; each point is a tenth of the features",
               ylabel="|w − w_min| / |w_min|", ylim=(0.0, None),
               title="error at the end, by frequency")
    grids.set(xlabel="learning rate", ylabel="loss above the minimum",
              title="loss at the end, by learning rate")
    losses.legend(frameon=False, fontsize=9)
    return picture


def main() -> None:
    options = shared.parser(__doc__).parse_args()
    rows, epochs = (1000, 4) if options.quick else (2000, 8)
    p = problem(shared.array_library(options.backend), rows)
    rare = (np.arange(FEATURES) >= FEATURES // 2) & (p.counts > 0)
    print(f"{rows} rows, {epochs} epochs; the rarer half of the features occurs in "
          f"{p.counts[rare].min()} to {p.counts[rare].max()} rows each")
    print("           rate   loss above the minimum   error of rare weights   of frequent ones")
    tried, chosen = {}, {}
    for method, grid in GRIDS.items():
        name = method.__name__
        tried[name] = []
        for rate in grid[1:4] if options.quick else grid:
            shared.progress(f"{name}, learning rate {rate:g}")
            tried[name].append(train(p, method, rate, epochs))
        shared.progress()
        run = chosen[name] = min(tried[name], key=lambda run: run.losses[-1])
        print(f"{name:9} {run.rate:6g} {run.losses[-1]:24.5f} {relative(run, p, rare)[-1]:23.2f} "
              f"{relative(run, p, ~rare & (p.counts > 0))[-1]:18.2f}")
    picture = draw(p, tried, chosen, rare)
    if picture is not None:
        shared.save(picture, options.out, "sparse_features")


if __name__ == "__main__":
    main()
