"""The adversarial term of SKD, IFVD and CWD: are these logits a student's or a teacher's?

Holistic distillation (Liu et al., CVPR 2019, arXiv 1903.04197) as CIRKD runs it (losses/adv.py,
utils/sagan.py, train_kd.py): hinge losses and SAGAN's discriminator; ``adv=0.001``.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from utils.bilinear import resize
from utils.distributed import all_reduce
from utils.types import Output

SMALLEST = 64  # sides of a map that four halvings leave 4 pixels of


def adv_loss(student_scores: Tensor) -> Tensor:
    """The student's: the negative mean of what the discriminator gives it."""
    return -student_scores.mean()


def discriminator_loss(student_scores: Tensor, teacher_scores: Tensor) -> Tensor:
    """Hinge: mean of relu(1 - D(teacher)) plus mean of relu(1 + D(student))."""
    return (1 - teacher_scores).relu().mean() + (1 + student_scores).relu().mean()


class SelfAttention(nn.Module):
    """x + gamma * attention(x) over the positions, gamma 0 at first (Zhang et al., arXiv 1805.08318)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query, self.key = (nn.Conv2d(channels, channels // 8, 1) for _ in range(2))
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (conv(x).flatten(2) for conv in (self.query, self.key, self.value))
        weights = (q.transpose(1, 2) @ k).softmax(2)
        return x + self.gamma * (v @ weights.transpose(1, 2)).view_as(x)


class Discriminator(nn.Module):
    """Logits ``[B, K, h, w]`` -> scores ``[B, 1, h', w']``.

    BatchNorm (the batch's own statistics, of one process; of all in the release), four spectrally normalised 4x4
    convolutions of stride 2 with 64, 128, 256, 512 channels, self-attention after the last two, and a 4x4 convolution.
    The release fails on maps of less than 64 pixels a side; here they are enlarged to it.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(num_classes, track_running_stats=False)
        layers: list[nn.Module] = []
        for a, b in ((num_classes, 64), (64, 128), (128, 256), (256, 512)):
            layers += [spectral_norm(nn.Conv2d(a, b, 4, 2, 1)), nn.LeakyReLU(0.1)]
            if b >= 256:
                layers.append(SelfAttention(b))
        self.layers = nn.Sequential(*layers, nn.Conv2d(512, 1, 4))

    def forward(self, logits: Tensor) -> Tensor:
        size = [max(side, SMALLEST) for side in logits.shape[-2:]]
        # contiguous: of channels-last maps BatchNorm's statistics are less exact on the CPU (see utils.norms)
        return self.layers(self.norm(resize(logits, size).contiguous()))


class Adversarial(nn.Module):
    """``adv_loss`` on the logits, against a discriminator that each training step (with --accumulate, each part of it)
    improves by Adam (4e-4, 0.9, 0.99).

    Discriminator and optimizer are this module's own: no parameters of the step, moved and saved with it, and alike in
    every process because gradients are averaged. As in the release the student is judged before the discriminator
    learns from the same batch. Options: discriminator (weight of its loss, 0.1 in the release).
    """

    def __init__(
        self, student_channels: int, teacher_channels: int, num_classes: int, discriminator: float = 0.1
    ) -> None:
        super().__init__()
        self.weight = discriminator
        self.hidden = (Discriminator(num_classes),)  # in a tuple: neither DDP nor the main optimizer see it
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), 4e-4, (0.9, 0.99))

    @property
    def discriminator(self) -> Discriminator:
        return self.hidden[0]

    def forward(self, student: Output, teacher: Output, label: Tensor) -> Tensor:
        """Eval mode leaves the discriminator as it is."""
        if not self.training:
            return adv_loss(self.discriminator(student.logits))
        # its weights change before the step's backward pass: the gradient to the logits is taken now and handed on
        logits = student.logits.detach().requires_grad_()
        with torch.enable_grad():
            value = adv_loss(self.discriminator(logits))
        (gradient,) = torch.autograd.grad(value, logits)
        self.learn(logits.detach(), teacher.logits.detach())
        return value.detach() + ((student.logits - logits.detach()) * gradient).sum()

    @torch.enable_grad()
    def learn(self, student: Tensor, teacher: Tensor) -> None:
        """One step of Adam on the mean over processes of the gradients."""
        loss = self.weight * discriminator_loss(self.discriminator(student), self.discriminator(teacher))
        parameters = list(self.discriminator.parameters())
        gradients = torch.autograd.grad(loss, parameters)
        mean = all_reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
        for parameter, gradient in zip(parameters, mean.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = gradient.view_as(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Adversarial":
        self.discriminator._apply(fn)
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True) -> "Adversarial":
        self.discriminator.train(mode)
        return super().train(mode)

    def get_extra_state(self) -> dict[str, Any]:
        return {"discriminator": self.discriminator.state_dict(), "optimizer": self.optimizer.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])
