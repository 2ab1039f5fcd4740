"""The results of `lx.train`, and the records it passes to callbacks."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from lbfgs_xp.result import Status, table


class TrainRecord(NamedTuple):
    """The record that is passed to a callback after each epoch.

    epoch, updates : how many are done, including those of earlier runs that this one continues.
    loss : the mean loss of the epoch; see `History`.
    learning_rate : the learning rate of the last update.
    validation : what `validate` returned; nan without it.
    metrics : with `has_aux`, the means of the epoch; see `History`. They are floats here.
    params : a copy of the parameters.
    state : `TrainResult.state`, to be saved and continued from.
    """

    epoch: int
    updates: int
    loss: float
    learning_rate: float
    validation: float
    metrics: Any
    params: Any
    state: TrainState


class TrainState(NamedTuple):
    """All that is needed to continue a run: `lx.train(..., state=res.state)`.

    epoch, updates : how many are done.
    seen : the finished batches of the current epoch.
    told : the mean loss of the last epoch, if it has not yet been passed to the learning rate.
    memory : the state of the method; None before it has begun.
    begun : the batch after those, if it has been begun but not finished.
    average : the leaves of the averaged parameters; None without `average_decay`.
    best : the epoch with the lowest validation so far; None before there is one.
    aux : with `has_aux`, what the loss returned with the last batch, else None.
    together : how many batches an update takes, if their number grows; 0 before the first epoch.
    """

    epoch: int
    updates: int
    seen: tuple[SeenBatch, ...]
    told: float | None
    memory: Any
    begun: BegunBatch | None = None
    average: Any = None
    best: BestEpoch | None = None
    aux: Any = None
    together: int = 0


class SeenBatch(NamedTuple):
    """A finished batch.

    loss : on it, before the updates.
    rows : how many it has.
    rate : the learning rate of the last update.
    metrics : the numbers in aux that belong to the loss; None without `has_aux`.
    """

    loss: Any
    rows: int
    rate: Any
    metrics: tuple[Any, ...] | None = None


class BestEpoch(NamedTuple):
    """The epoch with the lowest validation.

    epoch, value : its number, from 1, and what `validate` returned.
    leaves : the parameters that were validated.
    """

    epoch: int
    value: float
    leaves: list[Any]


class BegunBatch(NamedTuple):
    """A batch that has been begun.

    place : its place in the epoch, from 0.
    loss : the loss on it before the first update.
    done : how many of its updates (for a solver, iterations) are done.
    step : the number of the last of these updates in the run, from 0; for a solver, 0.
    metrics : the numbers in aux that belong to the loss; None without `has_aux`.
    """

    place: int
    loss: Any
    done: int
    step: int
    metrics: tuple[Any, ...] | None = None


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class History:
    """The course of a run, as NumPy arrays of float64.

    Attributes
    ----------
    loss : (batches,)
        The loss on each batch, before the updates on it.
    learning_rate : (batches,)
        The learning rate of the last update on each batch; for a solver, its step length.
    epoch_loss : (epochs,)
        The mean of `loss` over each finished epoch, weighted by the rows of the batches.
    seconds : (epochs,)
        The duration of each of these epochs. Those that JAX runs in one call share it equally.
    validation : (epochs,)
        What `validate` returned after each of them; empty without it.
    metrics : nested like aux
        With `has_aux`, arrays (epochs,) in the places of its numbers: their means over each epoch,
        as of `loss`. None in other places, without `has_aux`, and before the first batch.
    """

    loss: np.ndarray
    learning_rate: np.ndarray
    epoch_loss: np.ndarray
    seconds: np.ndarray
    validation: np.ndarray
    metrics: Any

    def __repr__(self) -> str:
        return f"losses of {len(self.loss)} batches and {len(self.epoch_loss)} epochs"


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class TrainResult:
    """The outcome of `lx.train`.

    Attributes
    ----------
    params : like the parameters passed
        The parameters after the last update, with the structure, library, devices and dtypes of
        those passed. If the loss or a parameter was not finite (`DIVERGED`), the parameters at the
        start of that epoch.
    loss : float
        The mean loss of the last finished epoch; nan if there is none.
    aux
        With `has_aux`, what the loss returned with the last batch, before the updates on it. Its
        numbers are floats. (If batches are accumulated: their means, and the last of all else.)
    average : like the parameters passed
        The exponential moving average of the parameters; None without `average_decay`.
    best_params, best_epoch, best_validation
        The parameters (averaged, if they are averaged) after the epoch with the lowest validation,
        its number, from 1, and its value; None, 0 and nan without `validate`.
    history : History
        The course of this run only.
    epochs, updates : int
        How many are done, including those of earlier runs that this one continues.
    success, status, message
        Whether the run succeeded, and why it ended; see `lx.Status`. Finishing all epochs is a
        success.
    state : TrainState
        Pass it as `state=` to continue.
    """

    params: Any = dataclasses.field(repr=False)
    loss: float
    aux: Any = dataclasses.field(repr=False)
    average: Any = dataclasses.field(repr=False)
    best_params: Any = dataclasses.field(repr=False)
    best_epoch: int
    best_validation: float
    history: History
    epochs: int
    updates: int
    success: bool
    status: Status
    message: str
    state: TrainState = dataclasses.field(repr=False)

    def __repr__(self) -> str:
        return table(self)
