"""How many batches an update takes together: more, once noise dominates their gradients."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.arrays.tree import flatten_like
from lbfgs_xp.training.batches import ArrayBatches
from lbfgs_xp.training.loss import Loss

# So many batches show the variance of a gradient, if the update takes no more.
_LOOKS = 8


def batches_together(
    loss: Loss, spaces: Sequence[Space], leaves: list[Array], batches: ArrayBatches, epoch: int,
    now: int, ratio: float,
) -> int:
    """How many batches an update should take in an epoch, if it took `now` in the last one.

    The norm test (Byrd, Chin, Nocedal & Wu 2012; Bollapragada et al. 2018) asks that the standard
    deviation of a gradient is at most `ratio` times its norm. The gradients of the first batches
    of the epoch, at the same parameters, give the variance s of one of them, and the square of the
    norm without its noise, |mean|^2 - s / batches. At most twice as many as now.
    """
    most = min(2 * now, batches.count)
    looks = min(batches.count, max(_LOOKS, now))
    if most <= now or looks < 2:
        return now
    total, squares = [0.0 * leaf for leaf in leaves], 0.0
    for batch, _ in itertools.islice(batches.epoch(epoch, 0), looks):
        _, gradients, _ = loss(leaves, batch)
        own = gradients if loss.differentiates else flatten_like(gradients, loss.structure)[0]
        total = [a + b for a, b in zip(total, own, strict=True)]
        squares += _square(spaces, own)
    mean = _square(spaces, total) / looks**2
    variance = max(0.0, squares - looks * mean) / (looks - 1)
    signal = mean - variance / looks
    if not math.isfinite(signal) or variance == 0.0:
        return now
    if signal <= 0.0:
        return most
    return max(now, min(most, math.ceil(min(most, variance / (ratio * ratio * signal)))))


def _square(spaces: Sequence[Space], leaves: list[Array]) -> float:
    """The squared Euclidean norm."""
    parts = []
    for space, leaf in zip(spaces, leaves, strict=True):
        with space.backend.current():
            vector = space.backend.vector(leaf)
            parts.append(float(space.read_one(space.dot(vector, vector))))
    return math.fsum(parts)
