"""One code path for one process without torchrun and N processes with it. Nothing else imports torch.distributed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from utils.errors import UserError


class World(NamedTuple):
    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


@contextmanager
def world(device: str = "auto", timeout_minutes: float = 30) -> Iterator[World]:
    """Join the process group torchrun describes (nccl on CUDA, gloo on CPU); leave it at the end.

    Without torchrun's environment there is one process and no group. ``device``: auto, cpu or cuda.

    Raises:
        UserError: cuda asked for and not there, or more processes on this host than GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    rank, local_rank = int(os.environ.get("RANK", 0)), int(os.environ.get("LOCAL_RANK", 0))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA GPU; use --device cpu")
    if device == "cuda" and local_rank >= torch.cuda.device_count():
        raise UserError(f"{local_rank + 1} processes on this host but only {torch.cuda.device_count()} GPUs (NGPUS)")
    target = torch.device("cuda", local_rank) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(target)
    if size > 1:
        dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(minutes=timeout_minutes))
    try:
        yield World(rank, size, target)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def all_reduce_sum(value: Tensor) -> Tensor:
    """The sum over processes, in place; the value itself when there is one process."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def all_reduce_mean(value: Tensor) -> Tensor:
    """The mean over processes, in place; the value itself when there is one process."""
    return all_reduce_sum(value).div_(dist.get_world_size()) if dist.is_initialized() else value


def all_gather_cat(value: Tensor) -> Tensor:
    """The values of all processes joined along dim 0, by rank; the value itself when there is one process.

    Without gradient. The shapes of all processes are equal.
    """
    if not dist.is_initialized():
        return value
    parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, value.contiguous())
    return torch.cat(parts)


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process, so that all of them take the same branch."""
    if not dist.is_initialized():
        return flag
    return bool(all_reduce_sum(torch.tensor(int(flag), device=device)).item())


def broadcast_statistics(module: nn.Module) -> None:
    """Give every process rank 0's running statistics, of the BatchNorm layers that are trained (not a teacher's)."""
    if dist.is_initialized():
        for part in module.modules():
            if isinstance(part, _BatchNorm) and any(p.requires_grad for p in part.parameters()):
                for buffer in part.buffers():
                    dist.broadcast(buffer, 0)


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def wrap(module: nn.Module, device: torch.device) -> nn.Module:
    """DistributedDataParallel over the process group; the module itself when there is one process.

    Buffers are not broadcast at each forward: a step may run its network twice before one backward, which plain
    BatchNorm under buffer broadcasting does not survive. ``broadcast_statistics`` aligns them before each use.
    """
    if not dist.is_initialized():
        return module
    device_ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(module, device_ids=device_ids, broadcast_buffers=False)
