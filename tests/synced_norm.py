"""Compare SyncedNorm on two ranks with BatchNorm on the whole batch. tests/test_norms.py runs this script.

The script runs on the CPU, for which PyTorch lacks the five kernels. It defines them in Python.
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

REDUCED_DIMS = (0, 2, 3)


def expand_channels(x: Tensor) -> Tensor:
    return x.view(1, -1, 1, 1)


def compute_stats(x, eps):
    return x.mean(REDUCED_DIMS), (x.var(REDUCED_DIMS, correction=0) + eps).rsqrt()


def gather_stats(x, means, inverses, running_mean, running_var, momentum, eps, counts):
    share = (counts / counts.sum()).unsqueeze(1)
    total = counts.sum()
    mean = (means * share).sum(0)
    var = ((inverses**-2 - eps + means**2) * share).sum(0) - mean**2
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(var * total / (total - 1), momentum)
    return mean, (var + eps).rsqrt()


def normalize(x, weight, bias, mean, inverse, eps):
    return (x - expand_channels(mean)) * expand_channels(inverse * weight) + expand_channels(bias)


def reduce_gradients(output_gradient, x, mean, inverse, weight, *needed):
    gradient_sum = output_gradient.sum(REDUCED_DIMS)
    product_sum = (output_gradient * (x - expand_channels(mean))).sum(REDUCED_DIMS)
    return gradient_sum, product_sum, product_sum * inverse, gradient_sum.clone()


def compute_input_gradient(output_gradient, x, mean, inverse, weight, gradient_sum, product_sum, counts):
    total = counts.sum()
    centred = (
        output_gradient
        - expand_channels(gradient_sum / total)
        - (x - expand_channels(mean)) * expand_channels(product_sum / total * inverse**2)
    )
    return centred * expand_channels(inverse * weight)


KERNELS = {
    "batch_norm_stats": compute_stats,
    "batch_norm_gather_stats_with_counts": gather_stats,
    "batch_norm_elemt": normalize,
    "batch_norm_backward_reduce": reduce_gradients,
    "batch_norm_backward_elemt": compute_input_gradient,
}


class ForbidHostWaits(TorchDispatchMode):
    """Fail on an operation in which the host would wait for the device."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        assert not function.__name__.startswith(("nonzero", "index.", "_local_scalar_dense")), function
        return function(*arguments, **keywords or {})


def main() -> None:
    library = torch.library.Library("aten", "IMPL")
    for name, kernel in KERNELS.items():
        library.impl(name, kernel, "CPU")
    dist.init_process_group("gloo")
    dist.all_gather = None  # the layer must gather into one tensor, because a list costs one copy per tensor
    rank = dist.get_rank()
    torch.manual_seed(0)
    for layout in (torch.contiguous_format, torch.channels_last):
        synced_norm, batch_norm = SyncedNorm(3).double(), nn.BatchNorm2d(3).double()
        for parameter, other in zip(synced_norm.parameters(), batch_norm.parameters(), strict=True):
            other.data = nn.init.normal_(parameter.data).clone()
        for _ in range(2):
            full_batch, output_gradient = (2 * torch.randn(2, 4, 3, 5, 6).double() + 3).contiguous().unbind()
            full_batch.requires_grad_()
            expected = batch_norm(full_batch)
            expected.backward(output_gradient)
            local_batch, local_output_gradient = (
                x.detach().split([1, 3])[rank].contiguous(memory_format=layout) for x in (full_batch, output_gradient)
            )
            local_batch.requires_grad_()
            with ForbidHostWaits():
                found = synced_norm(local_batch)
                found.backward(local_output_gradient)
            torch.testing.assert_close(found, expected.split([1, 3])[rank])
            torch.testing.assert_close(local_batch.grad, full_batch.grad.split([1, 3])[rank])
        for parameter, other in zip(synced_norm.parameters(), batch_norm.parameters(), strict=True):
            dist.all_reduce(parameter.grad)
            torch.testing.assert_close(parameter.grad, other.grad)
        torch.testing.assert_close(synced_norm.state_dict(), batch_norm.state_dict())
    dist.destroy_process_group()


if __name__ == "__main__":
    run_main(main)
