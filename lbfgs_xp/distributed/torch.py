"""Processes of torch.distributed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from lbfgs_xp.arrays.backend import Array, class_of, namespace_of
from lbfgs_xp.distributed.team import Engine


class TorchEngine(Engine):
    """See `lbfgs_xp.distributed.torch`."""

    def __init__(self, group: Any = None):
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "torch.distributed has no processes; wanted a call of "
                "torch.distributed.init_process_group before"
            )
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def sum(self, array: Array) -> Array:
        if isinstance(array, torch.Tensor):
            dist.all_reduce(array, group=self.group)
            return array
        host = np.array(class_of(array).to_host(array))
        tensor = torch.from_numpy(host)
        dist.all_reduce(tensor, group=self.group)
        xp = namespace_of(array)
        return host if isinstance(array, np.ndarray) else xp.asarray(host, device=array.device)

    def gather(self, item: Any) -> list[Any]:
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, item, group=self.group)
        return found
