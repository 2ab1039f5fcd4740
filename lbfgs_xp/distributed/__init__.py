"""One run over many processes, each with its part of the data.

The processes are the user's: those of `torchrun`, `mpirun` or a cluster. Each calls `lx.minimize`
with the same arguments and `distributed=lx.distributed.torch()` or `lx.distributed.mpi()`; its fun
returns the part of the value that its data contribute, such as a sum over its rows. The parts and
their gradients are added up, so all processes take the same steps.

Examples
--------
In every process started by `torchrun --nproc-per-node 2 script.py`::

    import torch
    import lbfgs_xp as lx

    torch.distributed.init_process_group("gloo")
    rows = my_rows(torch.distributed.get_rank())
    res = lx.minimize(lambda w: loss_sum(w, rows), w0, distributed=lx.distributed.torch())
"""

from __future__ import annotations

from typing import Any

from lbfgs_xp.distributed.team import Engine, ProcessFailed

__all__ = ["Engine", "ProcessFailed", "mpi", "torch"]


def torch(group: Any = None, sharded: bool = False) -> Engine:
    """The processes of a group of torch.distributed, with any of its engines (gloo, NCCL).

    Parameters
    ----------
    group : a process group; None: all processes.
    sharded : whether the variables are divided among the processes. Each then passes its own piece
        of x0 (and of bounds, `x_scale` and weights), and fun returns this process's share of the
        value and the gradient of the whole value with respect to its piece.

    Raises
    ------
    RuntimeError
        If `torch.distributed.init_process_group` has not been called.
    ValueError
        If this process does not belong to the group.
    """
    from lbfgs_xp.distributed.torch_processes import TorchEngine

    return TorchEngine(group, sharded)


def mpi(comm: Any = None, sharded: bool = False) -> Engine:
    """The processes of a communicator of mpi4py. Sums are taken on the host.

    Parameters
    ----------
    comm : an mpi4py communicator; None: MPI.COMM_WORLD.
    sharded : as in `torch`.
    """
    from lbfgs_xp.distributed.mpi_processes import MPIEngine

    return MPIEngine(comm, sharded)
