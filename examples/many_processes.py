"""Data divided among processes: python examples/many_processes.py

Digits are classified by logistic regression. Each process holds its own part of the images and
returns what this part contributes to the loss; `distributed=` adds the parts up, and all processes
take the same steps. The result is compared with that of one process with all images.

The script starts the processes itself. On a cluster, `torchrun` or `mpirun` does so. It needs
PyTorch, and scikit-learn for its digits.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import _common as shared
import numpy as np
from _digits import Digits, digits

import lbfgs_xp as lx

L2 = 1e-3    # of the mean loss


class Run(NamedTuple):
    """What a process returns: its share of the images, and the result."""

    rows: int
    nit: int
    success: bool
    w: np.ndarray


def classify(rank: int, size: int, store: str) -> Run:
    """Minimise the loss as process `rank` of `size`; one process needs no others."""
    import torch

    torch.set_num_threads(1)
    team = None
    if size > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=size
        )
        team = lx.distributed.torch()
    train, _ = digits(None)
    total = len(train.labels)
    images = torch.tensor(train.images[rank::size], dtype=torch.float64)
    labels = torch.tensor(train.labels[rank::size], dtype=torch.int64)

    def part(w: Any) -> Any:
        """The share of this process: a sum over its images, and 1 / size of the penalty."""
        misfit = torch.nn.functional.cross_entropy(images @ w, labels, reduction="sum")
        return misfit / total + L2 / size * (w * w).sum()

    start = torch.zeros(images.shape[1], 10, dtype=torch.float64)
    res = lx.minimize(part, start, distributed=team)
    if team is not None:
        torch.distributed.destroy_process_group()
    return Run(len(labels), res.nit, res.success, res.x.numpy())


def run(size: int) -> list[Run]:
    """The results of all processes."""
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        with multiprocessing.get_context("spawn").Pool(size) as pool:
            return pool.starmap(classify, [(rank, size, store) for rank in range(size)], 1)


def draw(w: np.ndarray, test: Digits, folder: Path) -> None:
    """The weights of each digit, as an image."""
    figure = shared.figure(6.4, 3.4)
    if figure is None:
        return
    side = round(len(w) ** 0.5)
    limit = np.max(np.abs(w))
    for digit, axes in enumerate(figure.subplots(2, 5).flat):
        axes.imshow(w[:, digit].reshape(side, side), cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes.set(title=str(digit), xticks=[], yticks=[])
    figure.supxlabel("the weight of each pixel for each digit: red for, blue against", fontsize=10)
    shared.save(figure, folder, "many_processes")


def arguments() -> argparse.Namespace:
    parser = shared.parser(__doc__, backends=("torch",))
    parser.add_argument("--processes", type=int, default=4, metavar="N", help="default: 4")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    size = 2 if args.quick else args.processes
    found, alone = run(size), classify(0, 1, "")
    for rank, each in enumerate(found):
        print(f"process {rank}: {each.rows} images, {each.nit} iterations, success {each.success}")
    print(f"one process: {alone.rows} images, {alone.nit} iterations, success {alone.success}")
    same = all(np.array_equal(each.w, found[0].w) for each in found)
    print(f"all processes have the same weights, bit for bit: {same}")
    print(f"largest difference from one process: {np.max(np.abs(found[0].w - alone.w)):.1e}")
    _, test = digits(None)
    right = np.mean(np.argmax(test.images @ found[0].w, axis=1) == test.labels)
    print(f"{len(test.labels)} other images: {right:.1%} right")
    draw(found[0].w, test, args.out)


if __name__ == "__main__":
    main()
