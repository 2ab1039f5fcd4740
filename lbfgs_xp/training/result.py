"""What `lx.train` returns, and what it passes to callbacks."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from lbfgs_xp.result import Status, table


class TrainRecord(NamedTuple):
    """What a callback is given after each epoch.

    epoch, updates : how many are done, those of the runs that this one goes on from included.
    loss : the mean loss of the epoch, see `History`.
    learning_rate : that of its last update.
    params : a copy of the parameters.
    state : `TrainResult.state`, to save and to go on from.
    """

    epoch: int
    updates: int
    loss: float
    learning_rate: float
    params: Any
    state: TrainState


class TrainState(NamedTuple):
    """All that is needed to go on: `lx.train(..., state=res.state)`.

    epoch, updates : how many are done.
    seen : (loss, rows, learning rate) of each batch that is done of the epoch under way.
    told : the mean loss of the last epoch, where the learning rate has not been told of it yet.
    memory : what the method remembers; None before it has begun.
    """

    epoch: int
    updates: int
    seen: tuple[tuple[float, int, float], ...]
    told: float | None
    memory: Any


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class History:
    """What was seen on the way, as NumPy arrays of float64.

    Attributes
    ----------
    loss : (batches,)
        Of each batch the loss before the updates on it.
    learning_rate : (batches,)
        Of the last update on each batch; of a solver its step length.
    epoch_loss : (epochs,)
        The mean of `loss` over each epoch that is done, weighted by the rows of the batches.
    seconds : (epochs,)
        What each of these epochs took.
    """

    loss: np.ndarray
    learning_rate: np.ndarray
    epoch_loss: np.ndarray
    seconds: np.ndarray

    def __repr__(self) -> str:
        return f"losses of {len(self.loss)} batches and {len(self.epoch_loss)} epochs"


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class TrainResult:
    """The outcome of `lx.train`.

    Attributes
    ----------
    params : of the structure, library, devices and dtypes of the parameters given
        Those after the last update; where the loss has ceased to be finite (`DIVERGED`), those
        that the epoch began with.
    loss : float
        The mean loss of the last epoch that was done; nan where none was.
    history : History
        Of this run alone.
    epochs, updates : int
        How many are done, those of the runs that this one goes on from included.
    success, status, message
        Whether and why the run ended; see `lx.Status`. The end of the last epoch is a success.
    state : TrainState
        Pass it as `state=` to go on.
    """

    params: Any = dataclasses.field(repr=False)
    loss: float
    history: History
    epochs: int
    updates: int
    success: bool
    status: Status
    message: str
    state: TrainState = dataclasses.field(repr=False)

    def __repr__(self) -> str:
        return table(self)
