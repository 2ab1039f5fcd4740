"""Newton's method with conjugate gradients, for Hessians that are never formed."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from lbfgs_xp.arrays.backend import Array, copy_of
from lbfgs_xp.arrays.scalars import Scalars
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.checks import count, number, optional, setting
from lbfgs_xp.line_search import LineSearch, MoreThuente
from lbfgs_xp.solvers.descent import Aim, Descent, DescentState, Iterate, steepest_descent
from lbfgs_xp.solvers.nystrom import Sketch, drawn
from lbfgs_xp.solvers.products import (
    ROUNDING,
    Products,
    checked,
    conjugate_gradients,
    forcing_term,
    most_products,
)
from lbfgs_xp.typing import LineSearchName


class Scale(NamedTuple):
    """What is kept from step to step.

    first : the largest component of the first gradient, by which later ones are judged.
    sketch : the preconditioner; None without one.
    """

    first: Any
    sketch: Sketch | None = None


@dataclasses.dataclass(frozen=True)
class NewtonCG(Descent):
    """Newton's method with a line search, and its direction by truncated conjugate gradients.

    Conjugate gradients solve H d = -g from products of H with vectors (Nocedal & Wright,
    Algorithm 7.1), until the residual is at most min(`tolerance`, sqrt(|g| / |g of the start|))
    times |g|: roughly far from a minimum, precisely near one, where convergence is superlinear. If
    they meet a direction p of negative curvature, the step d so far is extended along p, downhill,
    by |g.p / p.Hp|, but by no more than the size of x. This leads away from saddles. (Where the
    gradient has no component along any such direction, nothing shows that it is a saddle.)

    `lx.minimize` determines where the products come from: `hessp`, `hess`, automatic
    differentiation if it also gives the gradient, else differences of the gradient at x and at
    x + h p, each of which calls fun once. `res.nhev` counts Hessians or products. Memory: a few
    vectors. A batch computes the products of all its rows at once.

    Parameters
    ----------
    line_search : LineSearch or str
        A rule, or its name. The first trial is the full step.
    tolerance : float
        Above 0 and below 1.
    max_products : int or None
        The most products for a direction, at least 1; None: the smaller of 2 n and 200.
    nystrom_rank : int
        How many products a randomised Nyström preconditioner (Frangella, Tropp & Udell 2023; for
        physics-informed networks Rathore et al. 2024) takes, beyond those for directions; 0 for
        none. It is worth while if so many eigenvalues of the Hessian are far larger than the rest,
        and conjugate gradients take many more products without it. Memory: as many vectors. Not for
        batches.
    nystrom_every : int
        After how many steps it is made anew.
    seed : int
        The seed of its random vectors, at least 0.
    clip_norm, clip_value : float or None
        As for `lx.LBFGS`.

    Raises
    ------
    ValueError, TypeError
        If a value is outside these ranges; the message says what was passed.

    Examples
    --------
    >>> import numpy as np
    >>> import lbfgs_xp as lx
    >>> def fun(x):                       # a saddle at 0, minima at (0, 1) and (0, -1)
    ...     return x[0]**2 - 2*x[1]**2 + x[1]**4, np.stack([2*x[0], -4*x[1] + 4*x[1]**3])
    >>> def hessp(x, p):
    ...     return np.stack([2.0, -4.0 + 12.0 * x[1]**2]) * p
    >>> x0 = np.asarray([1.0, 0.01])
    >>> res = lx.minimize(fun, x0, jac=True, hessp=hessp, method="newton-cg")
    >>> bool(np.allclose(res.x, [0.0, 1.0]))
    True
    """

    line_search: LineSearch | LineSearchName = MoreThuente()
    tolerance: float = 0.5
    max_products: int | None = None
    nystrom_rank: int = 0
    nystrom_every: int = 20
    seed: int = 0

    needs_products = True

    def __post_init__(self) -> None:
        super().__post_init__()
        setting(self, "tolerance", number, above=0.0, below=1.0)
        setting(self, "max_products", optional(count), least=1)
        setting(self, "nystrom_rank", count, least=0)
        setting(self, "nystrom_every", count, least=1)
        setting(self, "seed", count, least=0)

    def aim(
        self, space: Space, point: Iterate, secant: Any, steepest: Any, turned: Any = True,
        learned: Scale | None = None, products: Products | None = None, **more: Any,
    ) -> Aim:
        products = checked("NewtonCG", products)
        fn, gradient = space.scalars, point.gradient
        clip = self.clipped(space, gradient, point.norm)
        source, norm = gradient, point.norm
        if clip is not None:
            source, norm, _ = clip
        scale = Scale(norm) if learned is None else learned
        needed = fn.logical_not(steepest) & (point.norm > 0.0) & fn.isfinite(point.norm) & turned
        plain = steepest_descent(space, point, clip)
        if not space.any(needed):
            return plain._replace(learned=scale)
        share = fn.fused(forcing_term, self.tolerance, norm, scale.first)
        product = products(point.x, gradient)
        scale = scale._replace(sketch=self._sketch(space, product, point.x, scale.sketch))
        direction, bent = self._solved(
            space, product, point.x, source, share, needed, scale.sketch
        )
        slope = space.read_one(space.dot(gradient, direction))
        usable = needed & fn.isfinite(slope) & (slope < 0.0)
        # After any number of conjugate gradients, a quadratic falls by half of this.
        half, far = fn.full(0.5, slope), fn.full(math.inf, slope)
        if clip is not None:
            bent = bent | (clip.factor < 1.0)
        newton = Aim(
            direction, slope, fn.full(1.0, slope), fn.where(bent, far, half),
            fn.full(False, slope),
        )
        plain = plain._replace(slope=space.read_one(space.dot(gradient, plain.direction)))
        return space.merge(usable, newton, plain)._replace(learned=scale)

    def _sketch(
        self, space: Space, product: Callable[[Array], Array], x: Array, old: Sketch | None
    ) -> Sketch | None:
        """The preconditioner for a step from x."""
        if self.nystrom_rank == 0:
            return None
        if space.batched:
            raise ValueError(
                f"nystrom_rank is {self.nystrom_rank} for a batch; wanted 0, because the "
                "preconditioner is for one problem"
            )
        if old is not None and old.age + 1 < self.nystrom_every:
            return old._replace(age=old.age + 1)
        number = 0 if old is None else old.number + 1
        return drawn(space, product, self.nystrom_rank, x.shape[-1], self.seed, number)

    def _solved(
        self, space: Space, product: Callable[[Array], Array], x: Array, gradient: Array,
        share: Any, active: Any, sketch: Sketch | None,
    ) -> tuple[Array, Any]:
        """d with |H d + g| <= share |g|, and whether it ends along negative curvature."""
        fn = space.scalars
        size, squares = space.read(space.max_abs(x), space.dot(gradient, gradient))
        size = fn.maximum(size, fn.full(1.0, size))

        def along(step: Array, d: Array, curved: Array, *told: Any) -> Any:
            numbers = space.read(space.dot(d, curved), space.dot(d, d), space.max_abs(d))
            return fn.fused(_along, ROUNDING * space.backend.eps, size, *numbers, *told)

        step, _, bent = conjugate_gradients(
            space, product, gradient, squares, share * share * squares,
            most_products(self.max_products, x.shape[-1]), along, active,
            None if sketch is None else functools.partial(sketch.solve, space),
        )
        return step, bent

    def check_state(self, state: Any) -> None:
        """Refuse a state that does not come from a solver like this."""
        if not isinstance(getattr(state, "learned", None), Scale):
            raise ValueError(
                f"state holds a {type(state).__name__} of another method; wanted the state of "
                "NewtonCG"
            )

    def learned(self, space: Space, state: DescentState) -> Scale:
        """What another run starts from."""
        first, sketch = state.learned
        if sketch is not None:
            sketch = sketch._replace(rows=copy_of(sketch.rows))
        return Scale(first if isinstance(first, float) else copy_of(first), sketch)


def _along(
    fn: Scalars, rounding: float, size: Any, curvature: Any, square: Any, longest: Any,
    squares: Any, largest: Any, active: Any,
) -> tuple[Any, Any, Any, Any, Any]:
    """What `conjugate_gradients` asks of a direction d.

    size : of x. curvature, square, longest : d.Hd, d.d and the largest component of d.
    """
    known = active & fn.isfinite(curvature) & fn.isfinite(square)
    per_unit = fn.divide(fn.abs(curvature), square)
    good = known & (curvature > rounding * largest * square)
    bad = known & fn.logical_not(good)
    alpha = fn.divide(squares, fn.abs(curvature))
    # nan, if both are 0, or inf is replaced by the limit.
    limit = fn.divide(size, longest)
    alpha = fn.where(bad & fn.logical_not(alpha < limit), limit, alpha)
    largest = fn.where(known, fn.maximum(largest, per_unit), largest)
    return alpha, known, good, bad, largest
