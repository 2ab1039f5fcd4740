"""Fitting a batch in pieces that fit into the processor's caches, in several threads."""

from __future__ import annotations

import contextvars
import dataclasses
import itertools
from collections.abc import Callable
from concurrent import futures
from typing import Any

import numpy as np

from lbfgs_xp.arrays.backend import Array, Backend
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.arrays.tree import map_leaves
from lbfgs_xp.fits.curve_result import BatchCurveFit, CurveFit
from lbfgs_xp.fits.keeping import KeptFits
from lbfgs_xp.fits.residuals import Residuals
from lbfgs_xp.fits.settings import FitPlan
from lbfgs_xp.result import Status

# The fewest rows of a piece: below that, calls from Python cost more than memory access.
_FEWEST = 256


def fit_pieces(
    fit: Callable[[Any, FitPlan], CurveFit], objective: Residuals, plan: FitPlan, threads: int,
    kept: KeptFits | None,
) -> CurveFit:
    """Fit a batch piece by piece; `fit` fits some rows, or all for None.

    kept : what saves the fits, or None.
    """
    backend, layout = objective.backend, objective.layout
    (rows,) = layout.batch
    _, y, _ = objective.args
    size = _size(backend, rows, y.shape[-1] * layout.size, threads)
    if kept is not None:
        # Those of the run that goes on, which may have begun on another machine.
        size = kept.size = kept.size or size
    pieces = _pieces(rows, size)
    backend.keep_freed_memory()
    if len(pieces) == 1:
        return fit(None, plan.kept_by(kept))
    if threads == 1:
        fits = _in_turn(fit, pieces, plan, kept)
    else:
        fits = _in_threads(fit, pieces, plan, threads, backend, kept)
    return _joined(fits, Space(backend), rows)


def _size(backend: Backend, rows: int, numbers: int, threads: int) -> int:
    """How many rows a piece has, so that its Jacobian stays in the caches.

    numbers : the numbers of the Jacobian in each row.
    """
    most = max(min(backend.cache_size // numbers, -(-rows // threads)), _FEWEST)
    return -(-rows // -(-rows // most))


def _pieces(rows: int, size: int) -> list[Any]:
    """The rows of each piece; [None] if one piece holds all of them."""
    if rows <= size:
        return [None]
    # The last piece begins earlier, so that it is as large as the others.
    return [np.arange(size) + min(start, rows - size) for start in range(0, rows, size)]


def _in_turn(
    fit: Callable, pieces: list[Any], plan: FitPlan, kept: KeptFits | None
) -> list[CurveFit]:
    """Fit the pieces one after another, except those that a file holds."""
    fits: list[Any] = []
    for number, piece in enumerate(pieces):
        known = None if kept is None else kept.piece(number)
        keeps = None if kept is None else kept.of_piece(number)
        fits.append(known or fit(piece, plan._replace(keeps=keeps)))
        if Status.INTERRUPTED.message in fits[-1].message:
            plan = plan._replace(end=Status.INTERRUPTED)
        if plan.end is not None or Status.TIME.message in fits[-1].message:
            kept = None    # this is where another run goes on
        if kept is not None and known is None:
            kept.note_piece(number, fits[-1])
    return fits


def _in_threads(
    fit: Callable, pieces: list[Any], plan: FitPlan, threads: int, backend: Backend,
    kept: KeptFits | None,
) -> list[CurveFit]:
    """Fit the pieces in threads that see the context of the caller."""
    fits: list[Any] = [None if kept is None else kept.piece(i) for i in range(len(pieces))]

    def fit_there(rows: Any) -> CurveFit:
        with backend.thread_context():
            return fit(rows, plan)

    pool = futures.ThreadPoolExecutor(threads)
    try:
        tasks = {
            pool.submit(contextvars.copy_context().run, fit_there, rows): number
            for number, rows in enumerate(pieces) if fits[number] is None
        }
        for task in futures.as_completed(tasks):
            number = tasks[task]
            fits[number] = task.result()
            if kept is not None and Status.TIME.message not in fits[number].message:
                kept.note_piece(number, fits[number])
        return fits
    finally:
        pool.shutdown(cancel_futures=True)


def _joined(fits: list[CurveFit], space: Space, rows: int) -> CurveFit:
    """Join the fits of the pieces of a batch."""
    size = len(fits[0].message)
    # How many rows the last piece shares with the previous one.
    over = size * len(fits) - rows

    def joined(*parts: Array) -> Array:
        return space.xp.concat([*parts[:-1], parts[-1][over:, ...]], axis=0)

    together: dict[str, Any] = {}
    for field in dataclasses.fields(BatchCurveFit):
        parts = [getattr(fit, field.name) for fit in fits]
        if field.name in ("nfev", "njev", "derivatives"):
            together[field.name] = max(parts)    # "3-point" if any piece has needed them
        elif field.name in ("n_priors", "absolute_sigma", "names", "starts", "_analysis"):
            together[field.name] = parts[0]
        elif field.name == "message":
            together[field.name] = [*itertools.chain(*parts[:-1]), *parts[-1][over:]]
        else:
            together[field.name] = map_leaves(joined, *parts)
    return BatchCurveFit(**together)
