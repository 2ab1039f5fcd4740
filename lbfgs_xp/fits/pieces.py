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
from lbfgs_xp.fits.residuals import Residuals
from lbfgs_xp.fits.result import BatchCurveFit, CurveFit
from lbfgs_xp.fits.settings import FitPlan
from lbfgs_xp.result import Status

# The fewest rows of a piece: below that, calls from Python cost more than memory access.
_FEWEST = 256


def fit_pieces(
    fit: Callable[[Any, FitPlan], CurveFit], objective: Residuals, plan: FitPlan, threads: int
) -> CurveFit:
    """Fit a batch piece by piece; `fit` fits some rows, or all for None."""
    backend, layout = objective.backend, objective.layout
    (rows,) = layout.batch
    _, y, _ = objective.args
    pieces = _pieces(backend, rows, y.shape[-1] * layout.size, threads)
    backend.keep_freed_memory()
    if threads == 1 or len(pieces) == 1:
        fits = []
        for piece in pieces:
            fits.append(fit(piece, plan))
            if Status.INTERRUPTED.message in fits[-1].message:
                plan = plan._replace(end=Status.INTERRUPTED)
    else:
        fits = _in_threads(fit, pieces, plan, threads, backend)
    return _joined(fits, Space(backend), rows)


def _pieces(backend: Backend, rows: int, numbers: int, threads: int) -> list[Any]:
    """Split the rows of a batch into pieces of equal size, whose Jacobians stay in the caches.

    numbers : the numbers of the Jacobian in each row.

    Returns [None] if one piece holds all rows.
    """
    most = max(min(backend.cache_size // numbers, -(-rows // threads)), _FEWEST)
    if rows <= most:
        return [None]
    size = -(-rows // -(-rows // most))
    # The last piece begins earlier, so that it is as large as the others.
    return [np.arange(size) + min(start, rows - size) for start in range(0, rows, size)]


def _in_threads(
    fit: Callable, pieces: list[Any], plan: FitPlan, threads: int, backend: Backend
) -> list[CurveFit]:
    """Fit the pieces in threads that see the context of the caller."""

    def fit_there(rows: Any) -> CurveFit:
        with backend.thread_context():
            return fit(rows, plan)

    pool = futures.ThreadPoolExecutor(threads)
    try:
        tasks = [pool.submit(contextvars.copy_context().run, fit_there, rows) for rows in pieces]
        return [task.result() for task in tasks]
    finally:
        pool.shutdown(cancel_futures=True)


def _joined(fits: list[CurveFit], space: Space, rows: int) -> CurveFit:
    """Join the fits of the pieces of a batch."""
    if len(fits) == 1:
        return fits[0]
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
