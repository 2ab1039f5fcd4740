"""Looks along variables to which the function has not responded so far.

A start of 0 says nothing about the unit of a variable. If that is far larger than the steps of
differences, these see no change, and the variable stays where it is while others move. A longer
step shows one.
"""

from __future__ import annotations

from typing import Any

from lbfgs_xp.run import agreement, units
from lbfgs_xp.run.visits import Visits

# A variable has stayed where it was if it has moved by at most this part of its unit.
_STAYED = 1e-3
# The first step, in this unit, becomes longer by this factor so often.
_LONGER, _OFTEN = 30.0, 14
# The value falls in proportion to such a step if it does so by more than this factor.
_GROWS = 4.0
# A change counts if it exceeds what rounding and noise hide by this factor.
_ENOUGH = 4.0


def look(visits: Visits, ended: Any) -> None:
    """Look over longer and longer steps along such variables of problems by differences that have
    ended well, until the value changes, and on where it falls in proportion. `lowest` goes back to
    what is found."""
    run, (_, p, best) = visits.run, visits.run.standing
    space, fn, solver = run.space, run.space.scalars, run.solver_here()
    ended = ended & (p.nit > 0)
    if not (run.objective.differs and space.any(ended)):
        return
    xp, unit = space.xp, units.of_run(run, best.x)
    hidden = agreement.hidden_by_rounding(fn, space.backend, best.value)
    hidden = _ENOUGH * fn.maximum(hidden, p.noise)
    stayed = xp.abs(best.x - run.layout.start()) <= _STAYED * unit
    silent = stayed & (xp.abs(best.gradient) * unit <= space.spread(hidden))
    places = xp.arange(best.x.shape[-1], device=space.backend.creation_device)
    for i in range(best.x.shape[-1]):
        here = ended & space.fetch_mask(silent[..., i])
        step, found = xp.where(places == i, unit, 0.0 * unit), fn.full(False, best.value)
        for side in (step, -step):
            going, most = here & fn.logical_not(found), 0.0 * best.value
            for _ in range(_OFTEN):
                going = visits.can_afford(1, going)
                if not space.any(going):
                    break
                x = units.at_steps(solver, space, best.x, side)
                fallen = best.value - visits.value_at(x, going)
                falls = fallen > fn.maximum(_GROWS * most, hidden)
                going = going & (falls | (fn.abs(fallen) <= hidden))
                most = fn.where(going & falls, fallen, most)
                side = _LONGER * side
            found = found | (most > 0.0)
