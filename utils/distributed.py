"""What processes tell each other, one process without a group included. Only utils imports torch.distributed."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils.norms import trained_norms


def all_reduce(value: Tensor, op: str = "sum") -> Tensor:
    """The "sum", "mean" or "max" over processes, in place; the value itself when there is one process.

    A CPU tensor does not wait for a GPU.
    """
    if dist.is_initialized():
        dist.all_reduce(value, dist.ReduceOp.MAX if op == "max" else dist.ReduceOp.SUM)
        if op == "mean":
            value.div_(dist.get_world_size())
    return value


def all_gather_cat(value: Tensor) -> Tensor:
    """The values of all processes joined along dim 0, by rank; the value itself when there is one process.

    Without gradient. The shapes of all processes are equal.
    """
    if not dist.is_initialized():
        return value
    parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, value.contiguous())
    return torch.cat(parts)


def broadcast_statistics(module: nn.Module) -> None:
    """Give every process rank 0's running statistics, of the BatchNorm layers that are trained."""
    if dist.is_initialized():
        for part in trained_norms(module).values():
            for buffer in part.buffers(False):
                dist.broadcast(buffer, 0)
