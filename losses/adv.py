"""The adversarial term of SKD, IFVD and CWD: a discriminator tells the student's logits from the teacher's.

This is holistic distillation (Liu et al., CVPR 2019, arXiv 1903.04197) as CIRKD runs it (losses/adv.py,
utils/sagan.py, train_kd.py), with hinge losses and SAGAN's discriminator. The published weight is ``adv=0.001``.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from utils.bilinear import resize
from utils.distributed import all_reduce
from utils.types import Output

SMALLEST_SIDE = 64  # pixels: four convolutions of stride 2 leave 4, the size of the last kernel


def adv_loss(student_scores: Tensor) -> Tensor:
    """Compute the student's hinge loss, the negative mean of the discriminator's scores."""
    return -student_scores.mean()


def discriminator_loss(student_scores: Tensor, teacher_scores: Tensor) -> Tensor:
    """Compute the discriminator's hinge loss, mean(relu(1 - D(teacher))) + mean(relu(1 + D(student)))."""
    return (1 - teacher_scores).relu().mean() + (1 + student_scores).relu().mean()


class SelfAttention(nn.Module):
    """Compute x + gamma * attention(x) over the positions; gamma is 0 at first (Zhang et al., arXiv 1805.08318)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels // 8, 1)
        self.key = nn.Conv2d(channels, channels // 8, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (conv(x).flatten(2) for conv in (self.query, self.key, self.value))
        weights = (query.transpose(1, 2) @ key).softmax(2)
        return x + self.gamma * (value @ weights.transpose(1, 2)).view_as(x)


class Discriminator(nn.Module):
    """Score logits ``[B, K, h, w]``: high for a teacher's, low for a student's, ``[B, 1, h', w']``.

    BatchNorm comes first. Then come four spectrally normalised 4x4 convolutions of stride 2, with 64, 128, 256 and 512
    channels. The last two of them are followed by self-attention. A 4x4 convolution is the last layer. BatchNorm uses
    the statistics of the batch on this rank, where the release uses those of all ranks. Maps of less than 64 pixels a
    side, on which the release fails, are enlarged to 64.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(num_classes, track_running_stats=False)
        layers: list[nn.Module] = []
        for in_channels, out_channels in ((num_classes, 64), (64, 128), (128, 256), (256, 512)):
            layers += [spectral_norm(nn.Conv2d(in_channels, out_channels, 4, 2, 1)), nn.LeakyReLU(0.1)]
            if out_channels >= 256:
                layers.append(SelfAttention(out_channels))
        self.layers = nn.Sequential(*layers, nn.Conv2d(512, 1, 4))

    def forward(self, logits: Tensor) -> Tensor:
        size = [max(side, SMALLEST_SIDE) for side in logits.shape[-2:]]
        # contiguous: on channels-last maps BatchNorm's statistics are less exact on the CPU
        return self.layers(self.norm(resize(logits, size).contiguous()))


class Adversarial(nn.Module):
    """Apply ``adv_loss`` to the logits, and train the discriminator: one step of Adam (4e-4, 0.9, 0.99) each time.

    With --accumulate the discriminator takes a step for each part of an iteration. As in the release, the student is
    judged before the discriminator learns from the same batch.

    The discriminator and its optimizer belong to this module alone, and are moved and saved with it. The parameters are
    not registered, so that neither DDP nor the main optimizer sees them. Averaged gradients keep the discriminator
    equal on all ranks.

    Options: discriminator, the weight of the discriminator's loss (0.1 in the release).
    """

    reads_feat = False

    def __init__(
        self, student_channels: int, teacher_channels: int, num_classes: int, discriminator: float = 0.1
    ) -> None:
        super().__init__()
        self.weight = discriminator
        self.unregistered = (Discriminator(num_classes),)  # nn.Module does not register what lies in a tuple
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), 4e-4, (0.9, 0.99))

    @property
    def discriminator(self) -> Discriminator:
        return self.unregistered[0]

    def forward(self, student: Output, teacher: Output, label: Tensor) -> Tensor:
        """Return the student's loss and, in training mode, train the discriminator."""
        if not self.training:
            return adv_loss(self.discriminator(student.logits))
        # Training changes the discriminator's weights before the backward pass of the step. So the gradient with
        # respect to the logits is computed now, and the returned value passes it on.
        logits = student.logits.detach().requires_grad_()
        with torch.enable_grad():
            value = adv_loss(self.discriminator(logits))
        (gradient,) = torch.autograd.grad(value, logits)
        self.train_discriminator(logits.detach(), teacher.logits.detach())
        return value.detach() + ((student.logits - logits.detach()) * gradient).sum()

    @torch.enable_grad()
    def train_discriminator(self, student: Tensor, teacher: Tensor) -> None:
        """Take one step of Adam with the mean of the ranks' gradients. Logits ``[B, K, h, w]``."""
        loss = self.weight * discriminator_loss(self.discriminator(student), self.discriminator(teacher))
        parameters = list(self.discriminator.parameters())
        gradients = torch.autograd.grad(loss, parameters)
        mean = all_reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
        # in fp16 the logits of a step that will be skipped may be infinite: the discriminator must outlive them
        mean = torch.where(mean.isfinite().all(), mean, 0.0)
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, gradient in zip(parameters, mean.split(sizes), strict=True):
            parameter.grad = gradient.view_as(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Adversarial":
        """Move the discriminator with this module."""
        self.discriminator._apply(fn)
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True) -> "Adversarial":
        """Set the mode of the discriminator, too."""
        self.discriminator.train(mode)
        return super().train(mode)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the state of the discriminator and its optimizer, for the state dict of this module."""
        return {"discriminator": self.discriminator.state_dict(), "optimizer": self.optimizer.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what ``get_extra_state`` returned."""
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])
