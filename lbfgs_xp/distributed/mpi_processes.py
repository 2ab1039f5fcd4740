"""Processes of MPI, by mpi4py."""

from __future__ import annotations

from typing import Any

import numpy as np
from mpi4py import MPI

from lbfgs_xp.arrays.backend import Array, class_of
from lbfgs_xp.checks import flag
from lbfgs_xp.distributed.team import Engine, on_host


class MPIEngine(Engine):
    """See `lbfgs_xp.distributed.mpi`."""

    def __init__(self, comm: Any = None, sharded: bool = False):
        self.sharded = flag("sharded", sharded)
        self.comm = MPI.COMM_WORLD if comm is None else comm
        self.rank, self.size = self.comm.Get_rank(), self.comm.Get_size()

    def sum(self, array: Array) -> Array:
        return on_host(self._sum, array)

    def _sum(self, host: np.ndarray) -> np.ndarray:
        total = np.empty_like(host)
        # The standard only advises that all processes get the same bits.
        self.comm.Reduce(host, total, op=MPI.SUM, root=0)
        self.comm.Bcast(total, root=0)
        return total

    def collect(self, numbers: Array) -> np.ndarray:
        own = np.ascontiguousarray(class_of(numbers).to_host(numbers))
        found = np.empty((self.size, *own.shape), own.dtype)
        self.comm.Allgather(own, found)
        return found

    def gather(self, item: Any) -> list[Any]:
        return self.comm.allgather(item)

    def broadcast(self, item: Any) -> Any:
        return self.comm.bcast(item, root=0)
