"""A small network trained on many digits, batch by batch: python examples/cnn_minibatches.py

SGD with momentum and Adam make one update on each batch, L-BFGS ten or one. The loss of a batch is
shown as it was before the updates on it, so it is measured on images that the epoch has not used
yet. The learning rates of SGD and Adam are the best of those tried (1, 2 and 5 times a power of
ten) for one epoch of MNIST.

L-BFGS fails here and StochasticLBFGS does not. The line search of the first fits one batch as well
as it can, and its pairs come from that batch alone. The second takes short steps along a mean of
gradients, without a line search, and its pairs compare, on the current batch, the gradients at two
points some batches apart.

L-BFGS is designed for one objective, but each batch is a different one. On MNIST (--data FOLDER
with its files) ten updates fit the current batch at the expense of the others: in the fourth epoch
they reduced the loss of a batch from 1.1 to 0.002 on average, and the test accuracy fell from 94 %
after the first epoch to 86 %. One update on each batch kept up with SGD and Adam at first, with
twice as many evaluations, and ended at 96.6 %; SGD reached 98.1 %, and StochasticLBFGS with rates
from 0.1 to 10 reached 98.0 % to 98.4 % (`benchmarks/minibatches.py`). The small digits of
scikit-learn, which are used without --data, are so few that batches have 32 of them instead of 128.

MNIST takes several minutes, most of them for the ten updates.
"""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _cnn import CNN, accuracy
from _common import COLORS, DASHES, array_library, figure, parser, progress, save
from _digits import Digits, digits

import lbfgs_xp as lx

SGD, ADAM, TEN, ONE = "SGD", "Adam", "L-BFGS, ten updates per batch", "L-BFGS, one update per batch"
CURE = "StochasticLBFGS"
METHODS = {
    SGD: (lx.SGD(0.1, momentum=0.9), 1),
    ADAM: (lx.Adam(0.01), 1),
    TEN: (lx.LBFGS(), 10),
    ONE: (lx.LBFGS(), 1),
    CURE: (lx.StochasticLBFGS(1.0, momentum=0.8, pair_every=2), 1),
}


class Watched:
    """The network's loss, with a count of its calls and the last value on each batch."""

    def __init__(self, network: CNN, name: str, batches: int):
        self.network, self.name, self.batches = network, name, batches
        self.evaluations = 0
        self.last: list[Any] = []
        self.batch: Any = None

    def __call__(self, params: Any, batch: Any) -> tuple[Any, Any]:
        value, gradient = self.network.value_and_gradient(params, batch)
        self.evaluations += 1
        if batch is not self.batch:
            self.batch = batch
            self.last.append(value)
            if len(self.last) % 10 == 1:
                progress(f"{self.name}: batch {len(self.last)} of {self.batches}")
        self.last[-1] = value
        return value, gradient


class Run(NamedTuple):
    """The outcome.

    last : the last loss evaluated on each batch; SGD and Adam evaluate only one.
    right : the test accuracy after each epoch.
    """

    result: lx.TrainResult
    evaluations: int
    last: np.ndarray
    right: list[float]

    @property
    def before(self) -> float:
        """The mean loss of a batch in the last epoch, before the updates on it."""
        return self.result.loss

    @property
    def after(self) -> float:
        """The mean loss of a batch in the last epoch, after the updates on it; for L-BFGS."""
        each = len(self.last) // self.result.epochs
        return float(np.mean(self.last[-each:]))


def train(
    network: CNN, data: Any, test: Digits, name: str, epochs: int, batch: int
) -> Run:
    method, updates = METHODS[name]
    images = network.array(test.images)
    right = []
    loss = Watched(network, name, epochs * math.ceil(data[0].shape[0] / batch))
    res = lx.train(
        loss, network.start(), data, jac=True, method=method, batch_size=batch, epochs=epochs,
        updates_per_batch=updates,
        callback=lambda record: right.append(
            accuracy(network, record.params, images, test.labels)
        ),
    )
    return Run(res, loss.evaluations, np.asarray([float(value) for value in loss.last]), right)


def lesson(runs: dict[str, Run]) -> str:
    """What the run shows about L-BFGS."""
    ten = runs[TEN]
    text = (
        "In the last epoch ten updates of L-BFGS reduced the loss of a batch from "
        f"{ten.before:.2g} to {ten.after:.2g} on average. Before its update the loss was "
        f"{runs[SGD].before:.2g} with SGD, {runs[ADAM].before:.2g} with Adam and "
        f"{runs[ONE].before:.2g} with one update of L-BFGS. "
    )
    if ten.before > max(runs[SGD].before, runs[ADAM].before):
        text += "So ten updates fit the current batch at the expense of the others."
    else:
        text += "So in this run, what ten updates learn from one batch also holds for the others."
    cure = runs[CURE]
    text += (
        f" StochasticLBFGS, with {cure.evaluations} evaluations instead of {ten.evaluations}, came "
        f"to {cure.before:.2g}, and to {cure.right[-1]:.1%} of the test images instead of "
        f"{ten.right[-1]:.1%}."
    )
    return textwrap.fill(text, 100)


# --- the picture -------------------------------------------------------------------------------


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    return np.convolve(values, np.full(window, 1.0 / window), mode="valid")


def draw(runs: dict[str, Run], title: str, folder: Path) -> None:
    picture = figure(13.0, 5.2)
    if picture is None:
        return
    by_update, by_time, by_epoch = picture.subplots(1, 3)
    for (name, run), color, dash, marker in zip(
        runs.items(), COLORS, DASHES, "os^Dv", strict=False
    ):
        style: dict[str, Any] = {"color": color, "linestyle": dash, "linewidth": 1.6}
        history, batches = run.result.history, len(run.result.history.loss)
        window = max(1, batches // 20)
        losses = smooth(history.loss, window)
        share = smooth((np.arange(batches) + 1.0) / batches, window)
        by_update.plot(share * run.result.updates, losses, **style, label=name)
        epochs = np.arange(len(history.seconds) + 1)
        seconds = np.interp(share * epochs[-1], epochs, [0.0, *np.cumsum(history.seconds)])
        by_time.plot(seconds, losses, **style)
        by_epoch.plot(
            epochs[1:], 100.0 * (1.0 - np.asarray(run.right)), **style, marker=marker
        )
        if name == TEN:
            style |= {"linestyle": ":", "linewidth": 1.2}
            label = "L-BFGS, ten: each batch after its updates"
            last = smooth(run.last, window)
            by_update.plot(share * run.result.updates, last, **style, label=label)
            by_time.plot(seconds, last, **style)
    for axes in (by_update, by_time):
        axes.set(xscale="log", yscale="log")
    by_update.set(
        title="loss by update, running mean", xlabel="updates",
        ylabel="mean cross-entropy of a batch",
    )
    by_time.set(title="loss by time, running mean", xlabel="seconds")
    by_epoch.set(
        title="test set", xlabel="epochs", ylabel="error rate, %", yscale="log", xticks=epochs[1:],
    )
    by_epoch.yaxis.set_major_formatter("{x:g}")
    by_epoch.yaxis.set_minor_formatter("{x:g}")
    by_epoch.tick_params(axis="y", which="minor", labelsize="small")
    for axes in (by_update, by_time, by_epoch):
        axes.grid(color="#DDDDDD", linewidth=0.6)
    picture.legend(loc="outside lower center", ncols=3, frameon=False)
    picture.suptitle(title)
    save(picture, folder, "cnn_minibatches")


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--data", type=Path, metavar="FOLDER", help="the files of MNIST")
    arguments.add_argument("--epochs", type=int, help="default: 2 if quick, else 4")
    options = arguments.parse_args()
    epochs = (2 if options.quick else 4) if options.epochs is None else options.epochs
    lib = array_library(options.backend)
    train_set, test_set = digits(options.data)
    batch = 32 if options.data is None and not options.quick else 128
    if options.quick:
        train_set = Digits(*(rows[: 10 * batch] for rows in train_set))
    side = math.isqrt(train_set.images.shape[1])
    network = CNN(lib, side, "float32")
    data = network.batch(*train_set)
    network.value_and_gradient(network.start(), tuple(rows[:batch] for rows in data))    # compiles

    runs = {name: train(network, data, test_set, name, epochs, batch) for name in METHODS}
    progress()
    title = (
        f"{len(train_set.labels)} digits of {side} x {side} pixels in batches of {batch}, "
        f"{epochs} epochs, {lib.name}"
    )
    print(f"{title}\n{'':30}updates  evaluations  seconds  loss of the last epoch   test accuracy")
    for name, run in runs.items():
        seconds = run.result.history.seconds.sum()
        print(
            f"{name:30}{run.result.updates:7}{run.evaluations:13}{seconds:9.1f}{run.before:24.4f}"
            f"{run.right[-1]:16.2%}"
        )
    print(lesson(runs))
    draw(runs, title, options.out)


if __name__ == "__main__":
    main()
