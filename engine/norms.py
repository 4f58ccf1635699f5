"""BatchNorm layers for training: with the statistics of all ranks, or with exact ones of channels-last maps."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm

from engine.step import Step

# torch 2.15 renames this function, and warns where the old name is used
gather_into_tensor = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def find_learnable_norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """Return the BatchNorm layers that learn, by name. They are those to replace by layers of another kind.

    A layer whose parameters are frozen is left out, in a frozen teacher or where a user's network has frozen it. A
    layer without parameters is one of them: nothing says that it is frozen.
    """
    norms = {name: part for name, part in module.named_modules() if isinstance(part, _BatchNorm)}
    return {
        name: norm
        for name, norm in norms.items()
        if not norm.affine or any(parameter.requires_grad for parameter in norm.parameters(False))
    }


def find_norms_of_trained_modules(step: Step) -> dict[str, _BatchNorm]:
    """Find the BatchNorm layers of the trained network and the losses, by name: all outside the frozen networks.

    Layers that ``--freeze-bn`` keeps in eval mode are among them. So is one whose parameters a user's network has
    frozen, because its statistics change nevertheless; ``find_learnable_norms`` leaves it out.
    """
    frozen_networks = [network for network in step.list_networks() if network is not step.model]
    frozen = {id(module) for network in frozen_networks for module in network.modules()}
    modules = step.named_modules()
    return {name: part for name, part in modules if isinstance(part, _BatchNorm) and id(part) not in frozen}


def has_trained_statistics(norm: _BatchNorm) -> bool:
    """Return whether a layer's running statistics differ from the initial ones, mean 0 and variance 1."""
    if norm.running_mean is None:
        return False
    return bool(norm.running_mean.any()) or bool((norm.running_var != 1).any())


def replace_norms(module: nn.Module, kind: type[_BatchNorm]) -> None:
    """Replace the BatchNorm layers that learn by layers of ``kind``, with the same parameters and buffers."""
    for name, norm in find_learnable_norms(module).items():
        new = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        # the same tensors, so that the optimizer and the state dict keep them; timm's layers hold modules, too
        new._parameters = norm._parameters
        new._buffers = norm._buffers
        new._modules = norm._modules
        parent, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(parent), attribute, new.train(norm.training))


def _apply_children(norm: _BatchNorm, x: Tensor) -> Tensor:
    """Apply the modules inside a layer to its normalised maps: timm's layers hold a dropout and an activation."""
    for child in norm.children():
        x = child(x)
    return x


class SyncedNorm(nn.SyncBatchNorm):
    """Normalise with the statistics of all ranks. The host does not wait for the device.

    PyTorch's layer waits three times in each forward pass, to leave out ranks without images. Here every rank has
    images.
    """

    def forward(self, x: Tensor) -> Tensor:
        size = dist.get_world_size() if self.training and dist.is_initialized() else 1
        if size == 1 or not self.track_running_stats or self.momentum is None:
            return _apply_children(self, super().forward(x))
        self.num_batches_tracked.add_(1)
        normalised = _Synced.apply(
            x,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            self.eps,
            self.momentum,
            dist.group.WORLD,
            size,
        )
        return _apply_children(self, normalised)


class _Synced(SyncBatchNorm):
    """PyTorch's function, with a forward pass in which the host does not wait for the device."""

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, eps, momentum, group, size) -> Tensor:
        x = x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()
        mean, inverse = torch.batch_norm_stats(x, eps)
        own = torch.cat([mean, inverse, mean.new_full((1,), x.numel() // x.shape[1])])
        every = own.new_empty(size * len(own))
        gather_into_tensor(every, own, group)
        means, inverses, counts = every.view(size, -1).split(x.shape[1], 1)
        mean, inverse = torch.batch_norm_gather_stats_with_counts(
            x,
            means,
            inverses,
            running_mean,
            running_var,
            momentum,
            eps,
            counts.flatten(),
        )
        ctx.save_for_backward(x, weight, mean, inverse, counts.int())
        ctx.process_group = group
        return torch.batch_norm_elemt(x, weight, bias, mean, inverse, eps)


class ExactNorm(_BatchNorm):
    """BatchNorm whose statistics of channels-last maps are as exact on the CPU as those of maps in the plain layout.

    PyTorch adds up a channel of channels-last maps in one float32 number, and in float64 in the plain layout. For 8
    maps of 90x120 the statistics are off by 1e-5 instead of 1e-7, and more for larger maps. Here each column of the
    maps has statistics of its own, which are then joined. This is as fast as PyTorch's layer.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        """Accept any number of dimensions, as SyncBatchNorm does: it replaces layers of one, two and three."""

    def forward(self, x: Tensor) -> Tensor:
        is_channels_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        if not (is_channels_last and self.training and x.dtype == torch.float32):
            return _apply_children(self, super().forward(x))
        x, mean, var = _Exact.apply(x, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            self.num_batches_tracked += 1
            average_factor = self.momentum
            if average_factor is None:  # a plain mean over all batches
                average_factor = 1 / self.num_batches_tracked.item()
            count = x.numel() / x.shape[1]
            self.running_mean.lerp_(mean, average_factor)
            self.running_var.lerp_(var * (count / (count - 1)), average_factor)
        return _apply_children(self, x)


class _Exact(torch.autograd.Function):
    """Return the normalised map, and the mean and (population) variance of each channel."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        batch, channels, height, width = x.shape
        columns = x.permute(0, 2, 3, 1).reshape(1, batch * height, 1, width * channels).permute(0, 3, 1, 2)
        means, variances = torch.batch_norm_update_stats(columns, None, None, 0.0)
        means = means.view(width, channels)
        variances = variances.view(width, channels)
        mean = means.mean(0)
        var = (variances + (means - mean).square()).mean(0)
        ctx.eps = eps
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt())
        ctx.mark_non_differentiable(mean, var)
        return torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, eps)[0], mean, var

    @staticmethod
    def backward(ctx, grad_output: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse = ctx.saved_tensors
        gradients = torch.ops.aten.native_batch_norm_backward(
            grad_output,
            x,
            weight,
            None,  # the running mean, which training does not read
            None,  # the running variance
            mean,
            inverse,
            True,  # training
            ctx.eps,
            ctx.needs_input_grad[:3],
        )
        return *gradients, None
