"""Parts of training and evaluation: the label plane, and what follows the network at evaluation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.metrics import confusion_matrix
from models.label_noise import LabelNoise
from scripts.study.benchmarks import as_released
from scripts.study.benchmarks.timing import BenchmarkConfig, Comparison, medians
from utils.bilinear import upsampled_argmax
from utils.types import IGNORE_INDEX, Draw


def label_maps(batch: int, size: tuple[int, int], num_classes: int) -> Tensor:
    """uint8 patches of random classes and of ignored pixels."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, num_classes + 1, (batch, 1, 8, 8), generator=generator).float()
    index = F.interpolate(coarse, size, mode="nearest")[:, 0]
    return index.masked_fill(index == num_classes, IGNORE_INDEX).to(torch.uint8)


def signed(label: Tensor) -> Tensor:
    """As the release's loader gives labels: float32, -1 where ignored."""
    return label.float().masked_fill(label == IGNORE_INDEX, -1)


def drawn(noise: LabelNoise, label: Tensor, draw: Draw, path: int) -> tuple[as_released.Code, as_released.Pixels]:
    """The codes and the pixel noise that ``noise`` draws, for the release's way of using them."""
    table = noise.table.to(label.device, torch.float32)
    codes = noise.codes(table, len(label), draw, path)
    return lambda j, k: codes[j, k], lambda plane: draw.normal(plane.clone(), 2 * path + 1)


def noising(num_classes: int, config: BenchmarkConfig, device: torch.device) -> Comparison:
    """Network input of one path: random draws, label plane, and the image beside it."""
    label = label_maps(16, (512, 512), num_classes).to(device)
    target, image = signed(label), torch.randn(16, 3, 512, 512, device=device)
    noise = LabelNoise(num_classes, "random", 0.03, 100.0).to(device)

    def loop(_: int, *source) -> Tensor:
        return torch.cat([image, as_released.noised_label(target, num_classes, 0.03, *source)], 1)

    def table(i: int) -> Tensor:
        return noise.add_planes(image, label, Draw(i))

    check = {"largest difference": float((loop(0, *drawn(noise, label, Draw(0), 0)) - table(0)).abs().max())}
    ways = {"as released: a mask for each image and class": loop, "ours: table look-up, written in place": table}
    what = f"label plane of 16 images and their concatenation, 512x512, {num_classes} classes"
    return Comparison(what, medians(ways, config.rounds, 1, device), check)


def metric(num_classes: int, config: BenchmarkConfig, device: torch.device) -> Comparison:
    """From logits at stride 8 to the sums of a score, for an image of VOC's size."""
    generator = torch.Generator().manual_seed(0)
    smooth = 4 * torch.randn(1, num_classes, 6, 8, generator=generator)
    logits = F.interpolate(smooth, (47, 63), mode="bicubic").contiguous().to(device)
    label = label_maps(1, (375, 500), num_classes).to(device)
    target, score = signed(label), as_released.Score(num_classes)
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def ours(_: int) -> None:
        classes = upsampled_argmax(logits, label.shape[-2:], True)
        confusion.add_(confusion_matrix(classes, label, num_classes))

    def plain(_: int) -> float:
        return as_released.evaluate(logits, target, score)

    expected = plain(0)
    ours(0)
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    check = {"difference of the mIoU": abs((confusion.diagonal() / union.clamp(min=1)).mean().item() - expected)}
    ways = {"as released: full-size logits, sums of areas": plain, "ours: classes, confusion matrix": ours}
    what = f"score of a 375x500 image from logits at stride 8, {num_classes} classes"
    return Comparison(what, medians(ways, config.rounds, 5, device), check)
