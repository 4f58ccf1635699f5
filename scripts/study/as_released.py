"""The LAD release's way of training and evaluation, rewritten from a description of it: what ours is timed against.

Labels are float32 ``[B, H, W]`` with -1 for ignored pixels, images float32 with the mean subtracted, networks this
project's own in PyTorch's default memory layout.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.types import Output

Code = Callable[[int, int], Tensor | float]  # of an image and a class
Pixels = Callable[[Tensor], Tensor]  # standard normal values like a plane


def draw_random_code(image: int, label: int) -> Tensor:
    """Draw the code of a class in an image."""
    return torch.randn(1)


def make_noised_label(
    target: Tensor, num_classes: int, std: float, code: Code = draw_random_code, pixels: Pixels = torch.randn_like
) -> Tensor:
    """Make the release's label planes ``[B, 1, H, W]``: a code for each image and class, and noise on every pixel.

    Each code is written with a mask of its own, as the release does.
    """
    plane = target.unsqueeze(1).clone()
    plane[plane == -1] = num_classes
    for j in range(len(plane)):
        for k in range(num_classes + 1):
            plane[j][(plane[j] - k).abs() < 1e-5] = torch.as_tensor(code(j, k), device=plane.device)
    return (plane + std * pixels(plane)) * 100


def compute_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Upsample the logits to the label's size and compute their cross entropy."""
    wide = F.interpolate(logits, target.shape[-2:], mode="bilinear", align_corners=True)
    return F.cross_entropy(wide, target.long(), ignore_index=-1)


def compute_task_loss(output: Output, target: Tensor, aux_weight: float) -> Tensor:
    """Compute the cross entropy of the main and the auxiliary logits."""
    main_loss = compute_cross_entropy(output.logits, target)
    aux_loss = sum(aux_weight * compute_cross_entropy(aux, target) for aux in output.aux)
    return main_loss + aux_loss


def compute_cwd_loss(student: Tensor, teacher: Tensor, tau: float = 4.0) -> Tensor:
    """Compute the channel-wise distillation loss (Shu et al., ICCV 2021)."""
    p_t = (teacher.detach().flatten(2) / tau).softmax(2)
    p_s = (student.flatten(2) / tau).softmax(2)
    return (p_t * (p_t.log() - p_s.log())).sum() * tau**2 / (student.shape[0] * student.shape[1])


def compute_teacher_loss(model: nn.Module, image: Tensor, target: Tensor, planes: tuple[Tensor, Tensor]) -> Tensor:
    """Compute the release's loss of a teacher: two paths, and their consistency both ways."""
    one = model(torch.cat([image, planes[0]], 1))
    two = model(torch.cat([image, planes[1]], 1))
    consistency = compute_cwd_loss(one.logits, two.logits) + compute_cwd_loss(two.logits, one.logits)
    return compute_task_loss(one, target, 0.4) + compute_task_loss(two, target, 0.4) + 5 * consistency


def compute_student_loss(model: nn.Module, teacher: nn.Module, image: Tensor, target: Tensor, plane: Tensor) -> Tensor:
    """Compute the release's loss of a student.

    The student has a fourth input channel of zeros, and the teacher computes its auxiliary map without need.
    """
    output = model(torch.cat([image, plane * 0.0], 1))
    with torch.no_grad():
        taught = teacher(torch.cat([image, plane], 1))
    return compute_task_loss(output, target, 0.02) + 3 * compute_cwd_loss(output.logits, taught.logits)


class Score:
    """The release's score: float32 areas summed over images, and the mean over all classes after each image."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.right = 0.0
        self.labelled = 0.0
        self.intersection = torch.zeros(num_classes)
        self.union = torch.zeros(num_classes)

    def update(self, logits: Tensor, target: Tensor) -> float:
        """Add an image by its full-size logits. Return the mIoU so far."""
        # the release's pixel accuracy takes the largest of logits cut to integers
        self.right += ((logits.long().argmax(1) == target) & (target >= 0)).sum().item()
        self.labelled += (target >= 0).sum().item()
        prediction = (logits.argmax(1) + 1) * (target >= 0)
        common = prediction * (prediction == target + 1)
        both = self.count_pixels(common)
        self.intersection += both
        self.union += self.count_pixels(prediction) + self.count_pixels(target + 1) - both
        return (self.intersection / (self.union + 2.220446e-16)).mean().item()

    def count_pixels(self, classes: Tensor) -> Tensor:
        """Count the pixels of each class; classes are numbered from 1, other numbers do not count."""
        return torch.histc(classes.float().cpu(), self.num_classes, 1, self.num_classes)


def score_image(logits: Tensor, target: Tensor, score: Score) -> float:
    """Upsample the logits of each scale (one here), average them over the scales, and score them."""
    total = torch.zeros(*logits.shape[:2], *target.shape[-2:], device=logits.device)
    total += F.interpolate(logits, target.shape[-2:], mode="bilinear", align_corners=True)
    total /= 1
    return score.update(total, target)
