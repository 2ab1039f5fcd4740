"""Changing batches: StochasticLBFGS beside Adam, SGD and torch.optim.LBFGS, over several seeds.

Logistic regression with features of very different sizes, in NumPy: how far the loss on all data
is above its minimum after equal numbers of rows seen by gradients, for every method at each of its
learning rates, which stay constant or fall to 0 on a straight line. A pair of StochasticLBFGS costs
a second gradient, so it makes fewer updates. It runs as it is and with the settings that its
docstring recommends for convex losses.

With --data FOLDER (the files of MNIST), also a small convolutional network in PyTorch, 128 images
at a time: the test accuracy after four epochs, and its range over the seeds. SGD and Adam have the
best learning rates of those tried for `examples/cnn_minibatches.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gzip
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _common import print_machine, print_table

import lbfgs_xp as lx

try:
    import torch
except ImportError:
    torch = None

PENALTY = 1e-4
BATCH = 64
METHODS: dict[str, tuple[Callable[[Any], Any], list[float]]] = {
    "SGD, momentum 0.9": (lambda rate: lx.SGD(rate, momentum=0.9), [0.1, 0.3, 1.0, 3.0, 10.0]),
    "SGD": (lx.SGD, [1.0, 3.0, 10.0, 30.0, 100.0]),
    "Adam": (lx.Adam, [0.01, 0.03, 0.1, 0.3, 1.0, 3.0]),
    "StochasticLBFGS": (lx.StochasticLBFGS, [0.01, 0.03, 0.1, 1.0]),
    "StochasticLBFGS, convex": (
        functools.partial(lx.StochasticLBFGS, damping=0.01, momentum=0.97), [0.01, 0.03, 0.1, 1.0]
    ),
}


# --- logistic regression -----------------------------------------------------------------------


def regression(seed: int, rows: int, size: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Features (rows, size) whose covariance has the condition number 1e4, and labels of -1, 1."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(size, size)))
    sizes = np.geomspace(1.0, 1e-2, size)
    features = (rng.normal(size=(rows, size)) * sizes) @ turn.T
    weights = turn @ (0.5 * rng.normal(size=size) / sizes)
    chance = 1.0 / (1.0 + np.exp(-features @ weights))
    return features, np.where(rng.uniform(size=rows) < chance, 1.0, -1.0)


def logistic(p: np.ndarray, batch: tuple[np.ndarray, np.ndarray]) -> tuple[float, np.ndarray]:
    features, labels = batch
    margins = labels * (features @ p)
    wrong = 0.5 * (1.0 - np.tanh(0.5 * margins))
    value = np.mean(np.logaddexp(0.0, -margins)) + 0.5 * PENALTY * (p @ p)
    return float(value), PENALTY * p - (labels * wrong) @ features / len(labels)


def excess(
    method: Any, falls: bool, data: tuple, best: float, passes: int, seed: int
) -> float:
    """How far the loss on all data is above `best` after so many passes' rows of gradients.

    falls : whether the learning rate falls to 0.
    """
    rows = len(data[0])
    share = 1.0 / (1.0 + 1.0 / method.pair_every) if method.needs_fun else 1.0
    order = np.concatenate([
        np.random.default_rng([seed, epoch]).permutation(rows) for epoch in range(passes)
    ])
    count = int(share * order.size / BATCH)
    if falls:
        line = lx.schedules.Linear(method.learning_rate(0), 0.0, count)
        method = dataclasses.replace(method, learning_rate=line)
    batches = [order[k * BATCH : (k + 1) * BATCH] for k in range(count)]
    with np.errstate(all="ignore"):
        res = lx.train(
            logistic, np.zeros(data[0].shape[1]), [tuple(d[b] for d in data) for b in batches],
            jac=True, method=method,
        )
        found = logistic(res.params, data)[0] - best
    return found if res.success and math.isfinite(found) else math.inf


def compare_regressions(seeds: int, rows: int, passes: int) -> None:
    problems = [regression(seed, rows) for seed in range(seeds)]
    bests = []
    for data in problems:
        fun = functools.partial(logistic, batch=data)
        res = lx.minimize(fun, np.zeros(data[0].shape[1]), jac=True, gtol=1e-9)
        bests.append(res.fun)
    table, lowest = [], {}
    for falls in (False, True):
        for name, (make, rates) in METHODS.items():
            means = []
            for rate in rates:
                found = [
                    excess(make(rate), falls, data, best, passes, seed)
                    for seed, (data, best) in enumerate(zip(problems, bests, strict=True))
                ]
                means.append(float(np.exp(np.mean(np.log(np.maximum(found, 1e-300))))))
            best = int(np.argmin(means))
            lowest[name, falls] = means[best]
            table.append([
                name, "falls" if falls else "constant", f"{rates[best]:g}", f"{means[best]:.2e}",
                "  ".join(f"{rate:g}: {mean:.1e}" for rate, mean in zip(rates, means, strict=True)),
            ])
    print_table(
        f"Logistic regression, {rows} rows, 60 features, batches of {BATCH}, {passes} passes, "
        f"{seeds} seeds: loss above the minimum, geometric means",
        ["method", "rate", "best rate", "loss - minimum", "for each rate"], table,
    )
    for falls in (False, True):
        values = {name: value for (name, how), value in lowest.items() if how is falls}
        ours = {name: value for name, value in values.items() if name.startswith("Stochastic")}
        others = min(value for name, value in values.items() if name not in ours)
        for name, value in ours.items():
            print(
                f"{name} / the best other, rate {'falling' if falls else 'constant'}: "
                f"{value / others:.2f}"
            )


# --- a network ---------------------------------------------------------------------------------


def mnist(folder: Path) -> list[Any]:
    arrays = []
    for name in ("train", "t10k"):
        for kind, skipped in (("images-idx3", 16), ("labels-idx1", 8)):
            path = folder / f"{name}-{kind}-ubyte.gz"
            flat = np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=skipped)
            if skipped == 8:
                arrays.append(torch.from_numpy(flat.astype(np.int64)))
            else:
                images = flat.reshape(-1, 1, 28, 28).astype(np.float32) / 255.0
                arrays.append(torch.from_numpy(images))
    return arrays


def network(seed: int) -> Any:
    torch.manual_seed(seed)
    nn = torch.nn
    model = nn.Sequential(
        nn.Conv2d(1, 8, 5, 2), nn.Tanh(), nn.Conv2d(8, 16, 5, 2), nn.Tanh(), nn.Flatten(),
        nn.Linear(256, 10),
    )
    for layer in model:
        if hasattr(layer, "weight"):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model


def accuracy_of(make: Callable[[Any], Any], data: list[Any], seed: int, epochs: int) -> float:
    """The test accuracy after training with an optimizer of torch's interface; nan if it fails."""
    images, labels, test_images, test_labels = data
    model = network(seed)
    optimizer = make(model.parameters())
    lossy = torch.nn.functional.cross_entropy
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(labels))
        for start in range(0, len(labels), 128):
            rows = torch.from_numpy(order[start : start + 128])
            x, y = images[rows], labels[rows]

            def closure(x: Any = x, y: Any = y) -> Any:
                optimizer.zero_grad()
                loss = lossy(model(x), y)
                loss.backward()
                return loss

            if not math.isfinite(float(optimizer.step(closure).detach())):
                return math.nan
    with torch.no_grad():
        return float((model(test_images).argmax(1) == test_labels).double().mean())


def compare_networks(folder: Path, seeds: int, epochs: int, peers: bool) -> None:
    from lbfgs_xp.torch import StochasticLBFGS

    torch.set_num_threads(1)
    data = mnist(folder)
    methods: dict[str, Callable[[Any], Any]] = {
        "torch Adam, 0.01": lambda params: torch.optim.Adam(params, 0.01),
        "torch SGD, 0.1, momentum 0.9": lambda params: torch.optim.SGD(params, 0.1, 0.9),
        "torch LBFGS, one iteration": lambda params: torch.optim.LBFGS(
            params, max_iter=1, line_search_fn="strong_wolfe"
        ),
    } if peers else {}
    for rate in (0.01, 0.03, 0.1, 1.0, 10.0):
        methods[f"StochasticLBFGS, {rate:g}"] = functools.partial(StochasticLBFGS, lr=rate)
    table = []
    for name, make in methods.items():
        begin = time.perf_counter()
        found = [accuracy_of(make, data, seed, epochs) for seed in range(seeds)]
        seconds = (time.perf_counter() - begin) / seeds
        low, middle, high = min(found), float(np.median(found)), max(found)
        table.append([name, f"{middle:.2%}", f"{low:.2%} to {high:.2%}", f"{seconds:.1f}"])
        print(*table[-1], flush=True)
    print_table(
        f"Network on MNIST, batches of 128, {epochs} epochs, {seeds} seeds: test accuracy",
        ["method", "median", "range", "seconds"], table,
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--data", type=Path, metavar="FOLDER", help="the files of MNIST")
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--rows", type=int, default=4000)
    arguments.add_argument("--passes", type=int, default=20)
    arguments.add_argument("--epochs", type=int, default=4)
    arguments.add_argument("--no-peers", action="store_true", help="only ours, for the network")
    arguments.add_argument("--no-regression", action="store_true", help="only the network")
    options = arguments.parse_args()
    if not options.no_regression:
        compare_regressions(options.seeds, options.rows, options.passes)
    if options.data is not None and torch is not None:
        compare_networks(options.data, options.seeds, options.epochs, not options.no_peers)
    print_machine()


if __name__ == "__main__":
    main()
