"""A small network trained on one fixed batch of digits: python examples/cnn_fixed_batch.py

SGD with momentum, Adam and L-BFGS start from the same weights and see the same images at every
step, so the objective never changes, as L-BFGS requires. The network can memorise all images of the
batch, so the loss has no minimum but tends to 0 as the weights grow. A run ends when the gradient
is small.

--data FOLDER uses the digits of MNIST. Without it the script uses the small digits of scikit-learn,
for which the learning rates of SGD and Adam are the best of those tried: 1, 2 and 5 times a power
of ten. With JAX the time of a method includes the compilation during its run.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _cnn import CNN, accuracy
from _common import COLORS, DASHES, array_library, figure, parser, progress, save
from _digits import digits

import lbfgs_xp as lx

METHODS = {
    "SGD": lx.SGD(0.5, momentum=0.9),
    "Adam": lx.Adam(0.05),
    "L-BFGS": lx.LBFGS(),
}


class Run(NamedTuple):
    """The outcome; for each iteration the loss, and the seconds until then."""

    result: lx.Result
    losses: np.ndarray
    seconds: np.ndarray


def train(network: CNN, batch: Any, name: str, maxiter: int) -> Run:
    losses, seconds = [], []

    def watch(record: lx.Record) -> None:
        seconds.append(time.perf_counter() - begin)
        losses.append(record.fun)
        progress(f"{name}: iteration {record.nit} of {maxiter}, loss {record.fun:.2e}")

    begin = time.perf_counter()
    res = lx.minimize(
        network.value_and_gradient, network.start(), (batch,), jac=True, method=METHODS[name],
        maxiter=maxiter, callback=watch,
    )
    return Run(res, np.asarray(losses), np.asarray(seconds))


def draw(runs: dict[str, Run], title: str, folder: Path) -> None:
    picture = figure(11.0, 4.8)
    if picture is None:
        return
    by_iteration, by_time = picture.subplots(1, 2, sharey=True)
    for (name, run), color, dash in zip(runs.items(), COLORS, DASHES, strict=False):
        style: dict[str, Any] = {"color": color, "linestyle": dash, "linewidth": 1.8}
        label = f"{name}: {run.losses[-1]:.1e} after {run.result.nit} iterations"
        by_iteration.semilogy(range(1, len(run.losses) + 1), run.losses, **style, label=label)
        label = f"{name}: {run.seconds[-1]:.1f} s"
        by_time.semilogy(run.seconds, run.losses, **style, label=label)
    by_iteration.set(title="loss by iteration", xlabel="iteration", ylabel="mean cross-entropy")
    by_time.set(title="loss by time", xlabel="seconds")
    for axes in (by_iteration, by_time):
        axes.grid(color="#DDDDDD", linewidth=0.6)
        axes.legend(frameon=False)
    picture.suptitle(title)
    save(picture, folder, "cnn_fixed_batch")


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--data", type=Path, metavar="FOLDER", help="the files of MNIST")
    options = arguments.parse_args()
    lib = array_library(options.backend)
    train_set, test_set = digits(options.data)
    images, maxiter = (200, 60) if options.quick else (500, 300)
    side = math.isqrt(train_set.images.shape[1])
    network = CNN(lib, side, "float64")
    batch = network.batch(train_set.images[:images], train_set.labels[:images])
    network.value_and_gradient(network.start(), batch)    # JAX compiles it here

    runs = {name: train(network, batch, name, maxiter) for name in METHODS}
    progress()
    title = f"{images} digits of {side} x {side} pixels, {lib.name}"
    print(title)
    test = network.array(test_set.images)
    for name, run in runs.items():
        res = run.result
        print(
            f"  {name:8}{res.nit:4} iterations {res.nfev:4} evaluations {run.seconds[-1]:6.1f} s  "
            f"loss {res.fun:8.2e}  test accuracy: "
            f"{accuracy(network, res.x, test, test_set.labels):.1%}  ({res.status.name})"
        )
    draw(runs, title, options.out)


if __name__ == "__main__":
    main()
