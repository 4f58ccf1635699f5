"""Collectives over ranks; with one process and no group they return what they were given."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


def is_launched() -> bool:
    """Return whether a launcher (torchrun, or srun with its variables) started this process as one of a group."""
    return "WORLD_SIZE" in os.environ and "RANK" in os.environ


def all_reduce(value: Tensor, op: str = "sum") -> Tensor:
    """Reduce a value over ranks by "sum", "mean" or "max", in place. Return it.

    A CPU tensor does not wait for a GPU.
    """
    if dist.is_initialized():
        dist.all_reduce(value, dist.ReduceOp.MAX if op == "max" else dist.ReduceOp.SUM)
        if op == "mean":
            value.div_(dist.get_world_size())
    return value


def all_gather_cat(value: Tensor) -> Tensor:
    """Return the values of all ranks joined along dim 0, in the order of ranks, without gradient.

    The shapes on all ranks must be equal.
    """
    if not dist.is_initialized():
        return value
    parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, value.contiguous())
    return torch.cat(parts)


def broadcast_values(values: Sequence[Tensor]) -> None:
    """Give every rank the values of rank 0, in place and to the last bit."""
    if not dist.is_initialized():
        return
    for value in values:
        data = value.detach().contiguous().reshape(-1).view(torch.uint8)  # gloo does not know every type
        dist.broadcast(data, 0)
        value.detach().copy_(data.view(value.dtype).view(value.shape))


@contextmanager
def without_peers() -> Iterator[None]:
    """Have collectives return what they were given, for a computation that the other ranks do not take part in.

    Whatever is called here asks torch whether there is a process group, and is told that there is none.
    """
    is_initialized = dist.is_initialized
    dist.is_initialized = lambda: False
    try:
        yield
    finally:
        dist.is_initialized = is_initialized
