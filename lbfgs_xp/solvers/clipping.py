"""Directions from clipped gradients, for solvers with a line search.

Where the gradient g is too large, a direction is made of the clipped gradient c. Slopes and
tolerances are those of g. A step that begins or ends at such a gradient shows no curvature of use:
its pair (s, y) is not kept, since a y that is as large as g would hide all other curvature.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.pending import now
from lbfgs_xp.arrays.scalars import Scalars
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.checks import number, optional, setting
from lbfgs_xp.solvers.contract import Solver


class Clipped(NamedTuple):
    """A clipped gradient, in the rows of a batch that need it.

    gradient : c (..., n).
    norm : its largest component.
    factor : by which g itself would have to be scaled; 1 where it is not too large.
    """

    gradient: Array
    norm: Any
    factor: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipsGradients(Solver):
    """A solver whose directions come from clipped gradients.

    clip_norm : the gradient is scaled down to at most this Euclidean norm; None for no limit.
    clip_value : after that, each component is clipped to [-clip_value, clip_value].
    """

    clip_norm: float | None = None
    clip_value: float | None = None

    def _check_clips(self) -> None:
        for name in ("clip_norm", "clip_value"):
            setting(self, name, optional(number), above=0.0)

    @property
    def clips(self) -> bool:
        """Whether there is a limit."""
        return self.clip_norm is not None or self.clip_value is not None

    def clipped(self, space: Space, gradient: Array, norm: Any) -> Clipped | None:
        """The clipped gradient; None if it is known to be the gradient itself.

        gradient, norm : of all that is minimised and the free variables, and its largest component.
        """
        if not self.clips:
            return None
        scale, factor = self._factors(space, gradient, norm)
        if space.none(factor < 1.0):
            return None
        clipped = space.scale(scale, gradient)
        if self.clip_value is not None:
            xp, limit = space.xp, self.clip_value
            low, high = (xp.full_like(gradient, side) for side in (-limit, limit))
            clipped = xp.minimum(xp.maximum(clipped, low), high)
        return Clipped(clipped, factor * norm, factor)

    def too_large(self, space: Space, x: Array, gradient: Array) -> Any:
        """For each problem, whether the gradient of fun at x is clipped there."""
        if not self.clips:
            return False
        _, pull = self.around(space, x, gradient)
        whole = gradient if pull is None else gradient + pull
        free = self.reduced(space, x, gradient, whole)
        return self._factors(space, free, space.read_one(space.max_abs(free)))[1] < 1.0

    def _factors(self, space: Space, gradient: Array, norm: Any) -> tuple[Any, Any]:
        """What clip_norm scales the gradient by, and what would satisfy clip_value, too."""
        fn, length = space.scalars, None
        unit = fn.fused(_unit, norm)
        if self.clip_norm is not None:
            scaled = space.scale(unit, gradient)
            length = space.read_one(space.dot(scaled, scaled))
        return fn.fused(_factors, self.clip_norm, self.clip_value, norm, unit, length)

    def aimed(
        self, space: Space, clip: Clipped | None, gradient: Array, direction: Array, slope: Any,
        descent: Callable[[Array], Array],
    ) -> tuple[Array, Any]:
        """-H c and its slope; where that does not go down, -H g, scaled.

        clip : what `clipped` has returned.
        direction, slope : -H g and its slope.
        descent : from c to -H c.
        """
        if clip is None:
            return direction, slope
        scaled, slope = space.scale(clip.factor, direction), clip.factor * now(slope)
        if self.clip_value is None:
            # c is g, scaled.
            return scaled, slope
        other = descent(clip.gradient)
        ahead = space.read_one(space.dot(gradient, other))
        good = (clip.factor < 1.0) & (ahead < 0.0)
        return space.pick(good, other, scaled), space.scalars.where(good, ahead, slope)


def _unit(fn: Scalars, norm: Any) -> Any:
    """A scale in which no square of the gradient overflows."""
    one = fn.full(1.0, norm)
    return fn.where(norm > 1.0, fn.divide(one, norm), one)


def _factors(
    fn: Scalars, clip_norm: float | None, clip_value: float | None, norm: Any, unit: Any,
    square: Any,
) -> tuple[Any, Any]:
    """square : of the gradient times `unit`."""
    scale = one = fn.full(1.0, norm)
    if clip_norm is not None:
        length, limit = fn.sqrt(square), clip_norm * unit
        scale = fn.where(length > limit, fn.divide(limit, length), one)
    if clip_value is None:
        return scale, scale
    far = norm * scale > clip_value
    return scale, fn.where(far, fn.divide(fn.full(clip_value, norm), norm), scale)
