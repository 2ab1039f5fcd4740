"""What a fit does before it accepts that it has ended: better differences, and noise.

The error of finite differences may end a fit far from the minimum. Forward differences are replaced
by central ones. If columns are nearly dependent, the difference of two of them has no correct
digits; then differences are taken along the singular vectors instead, with a separate step for
each. If derivatives change with the step, the noise of the residuals is measured, and the steps are
chosen to suit it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.fits import levenberg_marquardt as lm
from lbfgs_xp.fits import noise, reach
from lbfgs_xp.fits.linear_algebra import norm, svd
from lbfgs_xp.result import Status
from lbfgs_xp.run.differences import Known

if TYPE_CHECKING:
    from lbfgs_xp.fits.loop import Fit

# By which factor steps of differences are lengthened at a time, and in all, to see whether noise
# spoils them; and by which share of their norms the columns of two Jacobians then differ.
_STRETCH, _STRETCHED, _OTHER = 1e2, 1e4, 0.05
# The lengths are measured anew if the residuals have fallen by this factor since.
_FALLEN = 1e3
# How often the directions of the differences are chosen; again only if the cost has fallen by this
# share.
_TURNS, _LOWER = 4, 1e-6
# How often noise may be found; again only if it is larger by the second factor. How many times its
# standard deviation it may be in a difference.
_MEASURED, _LOUDER, _SPREAD = 3, 2.0, 4.0
# It is measured again where a fit has ended below this share of the cost, and is taken to be less
# if it is by this factor.
_BELOW, _QUIETER = 0.99, 16.0
# After how many trials the costs are looked at first, and which share of them is left if they fall
# slowly.
_WATCH, _SLOW = 12, 0.9


class Sharpening:
    """The looks of one fit.

    measured : how often noise was found.
    noted_at : the costs (B,) where it was found, or looked for again.
    looked : whether parameters without influence have been looked at.
    renewed : whether lengths have been measured anew after a fall.
    turns, turned_at : how often directions were chosen, and the costs (B,) at the last time.
    trials, next_watch, watched : trials so far, when to look at the costs next, and what they were.
    """

    def __init__(self, fit: Fit):
        self.fit = fit
        self.measured, self.noted_at = 0, None
        self.looked = self.renewed = False
        self.turns, self.turned_at = 0, None
        self.trials, self.next_watch, self.watched = 0, _WATCH, None

    @property
    def memory(self) -> tuple:
        """What the looks know, to be saved."""
        return (
            self.measured, self.noted_at, self.looked, self.renewed, self.turns, self.turned_at,
            self.trials, self.next_watch, self.watched,
        )

    @memory.setter
    def memory(self, memory: tuple) -> None:
        (
            self.measured, self.noted_at, self.looked, self.renewed, self.turns, self.turned_at,
            self.trials, self.next_watch, self.watched,
        ) = memory

    # --- a fit that has ended --------------------------------------------------------------------

    def resumes(self) -> bool:
        """Whether some fits continue with better differences."""
        fit = self.fit
        objective, state, space = fit.here, fit.state, fit.space
        if not self._differs() or not self._affords(2 * objective.layout.size):
            return False
        if self._is_quieter():
            return True
        claimed, near = lm.doubtful(space, state, self._errors)
        silent = self._silent() & (not self.looked) & (state.status != int(Status.NOT_FINITE))
        doubtful = claimed | near | silent
        if not space.any(doubtful):
            return False
        if space.any(silent):
            self.looked = True
            if self._measure(silent) or self._reaches(silent):
                return self._again(silent, fit.columns())
        if objective.jac == "2-point":
            objective.jac = "3-point"
            columns = fit.columns_of(doubtful)
            other = doubtful & self._differ(columns)
            if space.any(other) and self._measure(other):
                columns = fit.columns()
            return self._again(doubtful, columns)
        return self._turn(near) or self._stretch(claimed)

    def _is_quieter(self) -> bool:
        """Measure the noise again in fits that have ended below where it was found: what seemed
        noise up there may have been a bend, and errors of parameters depend on it."""
        fit, space, state = self.fit, self.fit.space, self.fit.state
        if self.noted_at is None or not self._affords(noise.POINTS * len(noise.SPACINGS)):
            return False
        lower = (state.noise > 0.0) & (state.value < _BELOW * self.noted_at)
        lower = lower & (state.status != int(Status.NOT_FINITE))
        if not space.any(lower):
            return False
        self.noted_at = state.value
        found = space.xp.zeros_like(state.noise)
        for spacing in noise.SPACINGS:
            found = space.xp.maximum(found, self._seen(self._along(spacing)))
        quieter = lower & (_QUIETER * found < state.noise)
        if not space.any(quieter):
            return False
        self._note(space.xp.where(quieter, found, state.noise))
        return self._again(quieter, fit.columns())

    def _reaches(self, silent: Array) -> bool:
        """Lengthen the steps along parameters that seemed without influence, if they have one."""
        fit = self.fit
        if fit.here.directions is not None:
            return False
        length = reach.lengths(fit, fit.of_rows(silent))
        if length is None:
            return False
        fit.here.differences.assume(fit.send(fit.state.x), fit.send(length))
        return True

    def _turn(self, near: Array) -> bool:
        """Take differences along singular vectors where columns are nearly dependent."""
        fit = self.fit
        objective, state, space = fit.here, fit.state, fit.space
        if self.turned_at is not None:
            near = near & (state.value < (1.0 - _LOWER) * self.turned_at)
        if fit.box_here is not None or self.turns >= _TURNS or not space.any(near):
            return False
        xp, linear = space.xp, state.linear
        if objective.directions is None:
            near = near & lm.unresolved(space, state, self._errors())
            if not space.any(near):
                return False
        _, _, rows = svd(space, linear.R)
        to_x = xp.matrix_transpose(rows) / linear.scale[..., None]
        from_x = rows * linear.scale[..., None, :]
        self.turns, self.turned_at = self.turns + 1, state.value
        objective.turn((fit.send(to_x), fit.send(from_x)))
        self._expect(xp.maximum(_SPREAD * state.noise, self._blur()))
        return self._again(near, fit.columns())

    def _stretch(self, claimed: Array) -> bool:
        """Lengthen the steps, if this gives other derivatives."""
        fit, space, differences = self.fit, self.fit.space, self.fit.here.differences
        stretch, claimed = differences.stretch, claimed & (fit.state.noise == 0.0)
        if stretch >= _STRETCHED or not space.any(claimed):
            return False
        if stretch == 1.0 and not self.renewed and self._has_fallen(claimed):
            # Lengths from far up are too long to be stretched.
            self.renewed = True
            differences.known = differences.known._replace(lengths=None)
            return self._again(claimed, fit.columns())
        differences.stretch = _STRETCH * stretch
        columns = fit.columns_of(claimed)
        again = claimed & self._differ(columns)
        if not space.any(again):
            differences.stretch = stretch
            return False
        if self._measure(again):
            differences.stretch = stretch
            columns = fit.columns()
        return self._again(again, columns)

    def _has_fallen(self, rows: Array) -> bool:
        """Whether the residuals are now far smaller than where the lengths were measured."""
        fit, space = self.fit, self.fit.space
        variation = fit.fetch(fit.here.differences.known.lengths.variation)
        return space.any(rows & (variation > _FALLEN * space.max_abs(fit.state.residuals)))

    def explains(self) -> bool:
        """Whether noise may be why no step was found, so that fits continue knowing it."""
        fit = self.fit
        refuted = fit.confirmed == int(Status.LINE_SEARCH)
        if not refuted.any() or fit.here.in_chunks:
            return False
        refuted = fit.mask_of(refuted)
        if not self._measure(refuted) and not self._forgets(refuted):
            return False
        fit.confirmed = None
        columns = fit.state.columns
        if self._differs():
            fit.here.jac = "3-point"
            columns = fit.columns()
        return self._again(refuted, columns)

    def _forgets(self, rows: Array) -> bool:
        """Forget noise for which steps were chosen in vain: a pole looks like noise."""
        fit, space, state = self.fit, self.fit.space, self.fit.state
        wrong = rows & (state.noise > 0.0)
        affordable = self._differs() and self._affords(2 * fit.here.layout.size)
        if not affordable or not space.any(wrong):
            return False
        self.measured = _MEASURED
        self._note(space.xp.where(wrong, space.xp.zeros_like(state.noise), state.noise))
        return True

    # --- a fit in progress -----------------------------------------------------------------------

    def watch(self) -> None:
        """Measure noise now and then in fits that take long, because nothing else ends them."""
        self.trials += 1
        fit, space = self.fit, self.fit.space
        if self.trials < self.next_watch or not self._differs():
            return
        # All rows must know the same kind of things of their differences.
        fit.rejoin_rows()
        self.next_watch += max(_WATCH, self.trials // 2)
        value, before = fit.state.value, self.watched
        self.watched = value
        if before is None:
            return
        slow = (fit.state.status == int(Status.RUNNING)) & (value > _SLOW * before)
        if not space.any(slow) or not self._affords(2 * fit.here.layout.size):
            return
        if self._measure(slow, noise.SPACINGS[1:]):
            fit.here.jac = "3-point"
            self._again(slow, fit.columns())

    # --- parts -----------------------------------------------------------------------------------

    def _differs(self) -> bool:
        objective = self.fit.here
        return (
            bool(objective.calls_per_jacobian) and objective.differences.step is None
            and not objective.in_chunks
        )

    def _affords(self, calls: int) -> bool:
        objective = self.fit.here
        return objective.calls.nfev + calls <= self.fit.plan.maxfun

    def _blur(self) -> Array:
        """How far rounding the parameters changes each residual, (B,)."""
        space, state = self.fit.space, self.fit.state
        return space.backend.eps * space.sum(
            space.max_abs(state.columns) * space.xp.abs(state.x)
        )

    def _errors(self) -> Array:
        """How far noise and rounding change the derivatives of the residuals, (B, p)."""
        fit, differences = self.fit, self.fit.here.differences
        gain, level = fit.fetch(differences.gain), fit.fetch(differences.level)
        level = fit.space.xp.maximum(level, self._blur())
        return gain * fit.space.per_problem(level)

    def _silent(self) -> Array:
        """Which problems have a parameter to which the residuals do not respond, except those fixed
        by their bounds: a mask (B,)."""
        fit, space, state = self.fit, self.fit.space, self.fit.state
        if fit.box_here is None and space.none(state.linear.hard):
            return state.linear.hard    # normal equations would have lost such a parameter
        silent = space.max_abs(state.columns) == 0.0
        if fit.box_here is not None:
            low, high = fit.box_here
            silent = silent & (low < high)
        return space.xp.any(silent, axis=-1) & (state.value > 0.0)

    def _scale(self, rows: Array) -> Array:
        """The scale of the parameters so far, or none after columns that were noise, or 0."""
        fit, space = self.fit, self.fit.space
        scale, noisy = fit.state.linear.scale, rows & (fit.state.noise > 0.0)
        if fit.plan.settings.own_scale:
            return scale
        none = space.xp.zeros_like(scale)
        scale = space.xp.where(space.max_abs(fit.state.columns) == 0.0, none, scale)
        return space.pick(noisy, none, scale)

    def _differ(self, columns: Array) -> Array:
        """Where these columns are far from those of the state: a mask (B,)."""
        space, known = self.fit.space, self.fit.state.columns
        sizes = norm(space, columns) + norm(space, known)
        return space.xp.any(norm(space, columns - known) > _OTHER * sizes, axis=-1)

    def _measure(self, rows: Array, spacings: tuple[float, ...] = noise.SPACINGS) -> bool:
        """Measure the noise of these problems; return whether any has more than was known."""
        space, state = self.fit.space, self.fit.state
        calls = noise.POINTS * (len(spacings) + len(noise.CLOSER))
        if self.measured >= _MEASURED or not self._affords(calls):
            return False
        for spacing in spacings:
            seen = self._along(spacing)
            found = self._seen(seen)
            more = rows & (found > _LOUDER * state.noise)
            if space.any(more) and noise.is_long(spacing):
                more = self._lasting(more, spacing, seen)
            if space.any(more):
                break
        else:
            return False
        self.measured += 1
        self._note(space.xp.where(more, found, state.noise))
        return True

    def _seen(self, residuals: list[Array]) -> Array:
        """The noise (B,) of the residuals at points along a line."""
        return noise.estimate(self.fit.space, self.fit.state.x, self.fit.state.columns, residuals)

    def _note(self, found: Array) -> None:
        """Note the noise of the residuals, (B,), and take differences that suit it."""
        self.noted_at = self.fit.state.value
        self._expect(_SPREAD * found)
        self.fit.state = self.fit.state._replace(noise=found)

    def _expect(self, level: Array) -> None:
        """Measure the steps of the differences anew, for values with errors of this size, (B,)."""
        self.fit.here.differences.known = Known(noise=self.fit.send(level))

    def _lasting(self, rows: Array, spacing: float, seen: list[Array]) -> Array:
        """Those of these problems whose noise persists at points closer together."""
        space, lasts = self.fit.space, rows & False
        for factor in noise.CLOSER:
            lasts = lasts | noise.lasting(space, seen, self._along(spacing / factor))
            if not space.any(rows & space.scalars.logical_not(lasts)):
                break
        return rows & lasts

    def _along(self, spacing: float) -> list[Array]:
        """The residuals at the points at which noise is measured; with a likelihood, whose kinks
        and poles are no noise of the model, the predictions in units of the residuals."""
        fit, state, objective = self.fit, self.fit.state, self.fit.here
        at = noise.points_along(
            fit.space, state.x, state.residuals, state.columns, fit.box_here, spacing
        )
        if objective.likelihood is None:
            return [fit.residuals(point) for point in at]
        slopes = fit.ask(objective.slopes_of_likelihood, state.x, state.residuals)
        return [slopes * fit.ask(objective.predictions, point) for point in at]

    def _again(self, rows: Array, columns: Array) -> bool:
        """Begin these problems again where they are, with these columns."""
        fit, space, state = self.fit, self.fit.space, self.fit.state
        linear, _ = fit.steps.linearize(
            state.x, state.residuals, columns, fit.box_here, self._scale(rows)
        )
        fresh = fit.steps.begin(state.x, state.residuals, columns, linear)
        fresh = fresh._replace(nit=state.nit, noise=state.noise)
        fit.move_to(space.merge(rows, fresh, state))
        return True
