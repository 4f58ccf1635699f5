"""Two processes hold a batch's images: SyncedNorm against BatchNorm of the whole batch. tests/test_norms.py runs it.

On the CPU, where PyTorch has none of the five kernels: here they are in Python, by their definition.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.norms import SyncedNorm
from utils.entry import run_main

ACROSS = (0, 2, 3)


def wide(x: Tensor) -> Tensor:
    return x.view(1, -1, 1, 1)


def stats(x, eps):
    return x.mean(ACROSS), (x.var(ACROSS, correction=0) + eps).rsqrt()


def gather(x, means, inverses, running_mean, running_var, momentum, eps, counts):
    share, total = (counts / counts.sum()).unsqueeze(1), counts.sum()
    mean = (means * share).sum(0)
    var = ((inverses**-2 - eps + means**2) * share).sum(0) - mean**2
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(var * total / (total - 1), momentum)
    return mean, (var + eps).rsqrt()


def elements(x, weight, bias, mean, inverse, eps):
    return (x - wide(mean)) * wide(inverse * weight) + wide(bias)


def sums(upper, x, mean, inverse, weight, *needed):
    down, along = upper.sum(ACROSS), (upper * (x - wide(mean))).sum(ACROSS)
    return down, along, along * inverse, down.clone()


def gradient(upper, x, mean, inverse, weight, down, along, counts):
    total = counts.sum()
    inner = upper - wide(down / total) - (x - wide(mean)) * wide(along / total * inverse**2)
    return inner * wide(inverse * weight)


KERNELS = {
    "batch_norm_stats": stats,
    "batch_norm_gather_stats_with_counts": gather,
    "batch_norm_elemt": elements,
    "batch_norm_backward_reduce": sums,
    "batch_norm_backward_elemt": gradient,
}


class NoWaiting(TorchDispatchMode):
    """Refuses what the host would wait for a device in."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        assert not function.__name__.startswith(("nonzero", "index.", "_local_scalar_dense")), function
        return function(*arguments, **keywords or {})


def main() -> None:
    library = torch.library.Library("aten", "IMPL")
    for name, kernel in KERNELS.items():
        library.impl(name, kernel, "CPU")
    dist.init_process_group("gloo")
    dist.all_gather = None  # a list of tensors costs a copy each: the layer gathers into one tensor
    rank = dist.get_rank()
    torch.manual_seed(0)
    for layout in (torch.contiguous_format, torch.channels_last):
        norm, plain = SyncedNorm(3).double(), nn.BatchNorm2d(3).double()
        for parameter, other in zip(norm.parameters(), plain.parameters(), strict=True):
            other.data = nn.init.normal_(parameter.data).clone()
        for _ in range(2):
            whole, upper = (2 * torch.randn(2, 4, 3, 5, 6).double() + 3).contiguous().unbind()
            whole.requires_grad_()
            expected = plain(whole)
            expected.backward(upper)
            parts = (x.detach().split([1, 3])[rank].contiguous(memory_format=layout) for x in (whole, upper))
            own, own_upper = parts
            own.requires_grad_()
            with NoWaiting():
                found = norm(own)
                found.backward(own_upper)
            torch.testing.assert_close(found, expected.split([1, 3])[rank])
            torch.testing.assert_close(own.grad, whole.grad.split([1, 3])[rank])
        for parameter, other in zip(norm.parameters(), plain.parameters(), strict=True):
            dist.all_reduce(parameter.grad)
            torch.testing.assert_close(parameter.grad, other.grad)
        torch.testing.assert_close(norm.state_dict(), plain.state_dict())
    dist.destroy_process_group()


if __name__ == "__main__":
    run_main(main)
