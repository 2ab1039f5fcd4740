"""Checkpoints of fits: the results of the pieces that have ended, and where the current one stands.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lbfgs_xp.arrays.backend import Backend
from lbfgs_xp.arrays.tree import flatten, map_leaves, unflatten
from lbfgs_xp.fits import snapshot
from lbfgs_xp.fits.curve_result import BatchCurveFit
from lbfgs_xp.fits.parameters import FreeLayout
from lbfgs_xp.fits.starts import Starts
from lbfgs_xp.result import Status
from lbfgs_xp.saving.checkpoint import Checkpoint, Keeper, Terminated, keeping
from lbfgs_xp.saving.descriptions import described, fingerprint, fingerprints, kinds_of
from lbfgs_xp.saving.placing import as_own

if TYPE_CHECKING:
    from lbfgs_xp.fits.loop import Fit
    from lbfgs_xp.fits.sharpening import Sharpening

# The fields of a result that are nested like the parameters, and those that belong to all pieces.
_LIKE_X, _OF_ALL = ("x", "stderr"), ("starts", "_analysis")
# A piece with such fits is fitted again if the budgets are other ones.
_SPENT = int(Status.ITERATIONS), int(Status.EVALUATIONS)


class FitPosition(NamedTuple):
    """Where a call of `curve_fit` or `least_squares` stands, to be saved.

    starts : what the fits from several starts have led to, or None.
    size : how many fits each piece has; 0 if there is one piece.
    pieces : the results of the pieces that have ended, by their numbers.
    current : the number of the piece that is being fitted, and where that stands; or None.
    budgets : maxiter and maxfun.
    """

    starts: tuple | None
    size: int
    pieces: dict[int, dict[str, Any]]
    current: tuple[int, snapshot.FitSnapshot] | None
    budgets: tuple[float, float]

    def counts(self) -> dict[str, Any]:
        """What a reader of the file may want to know."""
        return {"pieces": len(self.pieces)}


class KeptFits:
    """What is saved of one call.

    said : what the user calls the residuals.
    structure : of the parameters.
    size : how many fits each piece has in the run that goes on; 0 if nothing says.
    """

    def __init__(
        self, keeper: Keeper, backend: Backend, said: str, structure: Any,
        budgets: tuple[float, float],
    ):
        self.keeper, self.said = keeper, said
        self._backend, self._structure, self._budgets = backend, structure, budgets
        self._starts: tuple | None = None
        self._pieces: dict[int, dict[str, Any]] = {}
        self._current: tuple[int, snapshot.FitSnapshot] | None = None
        self.size, self.same_library = 0, True
        if keeper.saved is None:
            return
        saved: FitPosition = keeper.saved.position(backend)
        self.same_library = keeper.saved.library == backend.name
        self._starts, self.size, self._current = saved.starts, saved.size, saved.current
        same = saved.budgets == budgets
        self._pieces = {
            number: piece for number, piece in saved.pieces.items()
            if same or not np.isin(self._host(piece["status"]), _SPENT).any()
        }

    def position(self) -> FitPosition:
        """Where the call stands."""
        return FitPosition(
            self._starts, self.size, dict(self._pieces), self._current, self._budgets
        )

    # --- the fits from several starts ------------------------------------------------------------

    @property
    def starts(self) -> tuple[Starts, Any, int] | None:
        """What `fit_starts` has returned in the run that goes on; None if nothing is saved."""
        if self._starts is None:
            return None
        x, report, best, calls = map_leaves(self._own, self._starts)
        return Starts(unflatten(self._structure, list(x)), *report), best, calls

    def note_starts(self, report: Starts, best: Any, calls: int) -> None:
        """Keep what `fit_starts` has returned."""
        numbers = report.cost, report.success, report.status, report.best
        self._starts = tuple(flatten(report.x)[0]), numbers, best, calls

    # --- pieces ----------------------------------------------------------------------------------

    def of_piece(self, number: int) -> KeptFit:
        """What saves the fit of this piece."""
        current = self._current
        return KeptFit(
            self, number, current[1] if current is not None and current[0] == number else None
        )

    def piece(self, number: int) -> BatchCurveFit | None:
        """The result of a piece that has ended; None of another."""
        piece = self._pieces.get(number)
        if piece is None:
            return None
        fields = map_leaves(self._own, piece)
        for name in _LIKE_X:
            fields[name] = unflatten(self._structure, list(fields[name]))
        texts, which = piece["message"]
        fields["message"] = [texts[i] for i in self._host(which)]
        fields["names"] = tuple(piece["names"])
        return BatchCurveFit(**fields)

    def note_piece(self, number: int, fit: Any) -> None:
        """Keep the result of a piece that has ended, and save if it is time."""
        fields = {
            field.name: getattr(fit, field.name) for field in dataclasses.fields(fit)
            if field.name not in _OF_ALL
        }
        for name in _LIKE_X:
            fields[name] = tuple(flatten(fields[name])[0])
        texts = sorted(set(fit.message))
        places = {text: i for i, text in enumerate(texts)}
        fields["message"] = texts, np.asarray([places[text] for text in fit.message], np.int32)
        # In one statement, so that an interrupt leaves them consistent.
        self._pieces, self._current = {**self._pieces, number: fields}, None
        self.visit()

    def visit(self, current: tuple[int, snapshot.FitSnapshot] | None = None) -> None:
        """Save if it is time; `current`: where the current piece stands."""
        self._current = current or self._current
        self.keeper.visit(self.position(), 1)

    def note(self, current: tuple[int, snapshot.FitSnapshot]) -> None:
        """Note where the current piece stands."""
        self._current = current

    def _own(self, value: Any) -> Any:
        return as_own(self._backend, value)

    def _host(self, array: Any) -> np.ndarray:
        return array if isinstance(array, np.ndarray) else self._backend.to_host(array)


class KeptFit:
    """What saves one fit.

    saved : where it stood in the run that goes on; None if it begins.
    """

    def __init__(self, call: KeptFits, number: int, saved: snapshot.FitSnapshot | None):
        self.call, self.number, self.saved = call, number, saved

    def begin(self, fit: Fit, sharpening: Sharpening) -> None:
        """Bring a fit that has not begun to where it stood."""
        if self.saved is not None:
            snapshot.restore(
                fit, sharpening, self.saved, self.call.same_library, self.call.said
            )

    def visit(self, fit: Fit, sharpening: Sharpening) -> None:
        """Save a fit between two trials if it is time."""
        self.call.visit((self.number, snapshot.taken(fit, sharpening)))

    def note(self, fit: Fit, sharpening: Sharpening) -> None:
        """Note where a fit stands that ends between two trials."""
        self.call.note((self.number, snapshot.taken(fit, sharpening)))


@contextlib.contextmanager
def kept(
    checkpoint: Checkpoint | None, describe: Callable[[], dict[str, Any]], layout: Any,
    said: str, budgets: tuple[float, float],
) -> Iterator[KeptFits | None]:
    """A context with what saves a call; with None if there is no checkpoint.

    describe : returns what must be the same in the run that goes on.
    """
    with keeping(checkpoint, describe, layout.backend.name) as keeper:
        if keeper is None:
            yield None
            return
        found = KeptFits(keeper, layout.backend, said, layout.structure, budgets)
        keeper.follow(found.position)
        try:
            yield found
        except BaseException as error:
            keeper.save_if_intact()
            if isinstance(error, Terminated):
                raise KeyboardInterrupt from None
            raise
        keeper.save_last(found.position())


def described_fit(
    kind: str, layout: Any, data: dict[str, Any], settings: dict[str, Any]
) -> dict[str, Any]:
    """What must be the same in the run that goes on."""
    # The values of fixed parameters are data, too.
    fixed = layout.values if isinstance(layout, FreeLayout) else None
    return {
        "kind": kind,
        "parameters": kinds_of(layout.leaves, layout.structure, "start"),
        "start": fingerprint(layout.start()),
        **{name: described(value) for name, value in settings.items()},
        "data": fingerprints({**data, "fixed": fixed}, "data"),
    }
