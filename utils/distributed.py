"""What processes tell each other, one process without a group included. Only utils imports torch.distributed."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


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


def trained_norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorm layers that learn (not a frozen teacher's), by name."""
    norms = {name: part for name, part in module.named_modules() if isinstance(part, _BatchNorm)}
    return {name: part for name, part in norms.items() if any(p.requires_grad for p in part.parameters(False))}


def broadcast_statistics(module: nn.Module) -> None:
    """Give every process rank 0's running statistics, of the BatchNorm layers that are trained."""
    if dist.is_initialized():
        for part in trained_norms(module).values():
            for buffer in part.buffers(False):
                dist.broadcast(buffer, 0)


class SyncedNorm(nn.SyncBatchNorm):
    """BatchNorm over all processes that keeps what a layer does after it (timm's carry dropout and activation)."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        for after in self.children():
            x = after(x)
        return x


def sync_batchnorm(module: nn.Module) -> None:
    """Replace the BatchNorm layers that are trained by SyncedNorm; parameters and buffers are the same objects."""
    for name, norm in trained_norms(module).items():
        synced = SyncedNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        for part in ("_parameters", "_buffers", "_modules"):
            setattr(synced, part, getattr(norm, part))
        parent, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(parent), attribute, synced.train(norm.training))
