"""Compare what is done around the network: loading, label planes, scores."""

import tempfile
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from datasets import build_train_and_val
from datasets.base import TrainStream
from datasets.transforms import SCALE_RANGE, list_scales, pad
from engine.metrics import count_confusions
from models.label_noise import LabelNoise
from scripts.study import as_released
from scripts.study.benchmarks.comparison import BenchmarkConfig, Comparison, measure_medians
from scripts.study.benchmarks.inputs import CONVENTION, make_label_maps, mark_ignored, repeat_draws
from utils.bilinear import upsample_argmax
from utils.seeding import AUGMENTATION_STREAM, RowGenerator, derive_seed
from utils.types import IGNORE_INDEX

COUNT = 48  # images that are loaded
CROP = (512, 512)


def compare_noising(num_classes: int, config: BenchmarkConfig, device: torch.device) -> Comparison:
    """Compare how the network input of one path is made: random draws, label plane, and the image beside it."""
    label = make_label_maps(16, (512, 512), num_classes).to(device)
    target = mark_ignored(label)
    image = torch.randn(16, 3, 512, 512, device=device)
    noise = LabelNoise(num_classes, "random", 0.03, 100.0).to(device)

    def run_plain(_: int) -> Tensor:
        return torch.cat([image, as_released.make_noised_label(target, num_classes, 0.03)], 1)

    def run_ours(i: int) -> Tensor:
        return noise.add_planes(image, label, RowGenerator(i))

    code, pixels = repeat_draws(noise, label, RowGenerator(0), 0)
    plane_with_our_draws = as_released.make_noised_label(target, num_classes, 0.03, code, pixels)
    check = {"largest difference": float((plane_with_our_draws - run_ours(0)[:, 3:]).abs().max())}
    ways = {
        "as released: a mask for each image and class": run_plain,
        "ours: table look-up, written in place": run_ours,
    }
    what = "label plane of 16 images and their concatenation, 512x512"
    return Comparison(what, measure_medians(ways, config.rounds, 1, device), check, num_classes)


def compare_scores(num_classes: int, config: BenchmarkConfig, device: torch.device) -> Comparison:
    """Compare the way from logits at stride 8 to the sums of a score, for an image of VOC's size."""
    generator = torch.Generator().manual_seed(0)
    smooth = 4 * torch.randn(1, num_classes, 6, 8, generator=generator)
    logits = F.interpolate(smooth, (47, 63), mode="bicubic").contiguous().to(device)
    label = make_label_maps(1, (375, 500), num_classes).to(device)
    target = mark_ignored(label)
    score = as_released.Score(num_classes)
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def run_ours(_: int) -> None:
        classes = upsample_argmax(logits, label.shape[-2:], True)
        confusion.add_(count_confusions(classes, label, num_classes))

    def run_plain(_: int) -> float:
        return as_released.score_image(logits, target, score)

    expected = run_plain(0)
    run_ours(0)
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    miou = (confusion.diagonal() / union.clamp(min=1)).mean().item()
    check = {"difference of the mIoU": abs(miou - expected)}
    ways = {"as released: full-size logits, sums of areas": run_plain, "ours: classes, confusion matrix": run_ours}
    what = "score of a 375x500 image from logits at stride 8"
    return Comparison(what, measure_medians(ways, config.rounds, 5, device), check, num_classes)


def write_voc_like(root: Path) -> None:
    """Write images of VOC's usual size in CamVid's layout: 500x375, about 80 kB of JPEG each, and grey labels."""
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        coarse = rng.integers(0, 256, (24, 32, 3)).astype(np.float32)
        image = cv2.resize(coarse, (500, 375), interpolation=cv2.INTER_CUBIC) + rng.normal(0, 12, (375, 500, 3))
        image = np.clip(image, 0, 255).astype(np.uint8)
        label = rng.integers(0, 12, (5, 7)).astype(np.uint8)
        label = cv2.resize(label, (500, 375), interpolation=cv2.INTER_NEAREST)
        splits = ("train", "val") if i == 0 else ("train",)  # one image is enough for validation
        for split in splits:
            for folder in (split, f"{split}annot"):
                (root / folder).mkdir(exist_ok=True)
            Image.fromarray(image).save(root / split / f"{i:04}.jpg", quality=90)
            Image.fromarray(label).save(root / f"{split}annot" / f"{i:04}.png", quality=90)


def load_as_released(stream: TrainStream, position: int) -> tuple[np.ndarray, np.ndarray]:
    """Load a sample in the order of the LAD release (dataset/voc.py): decode, resize all, subtract the mean, pad, crop.

    The draws are those of ``datasets.transforms.augment_cirkd`` from the same generator. Both results are float32: the
    image ``[3, H, W]``, BGR minus the mean, and the label.
    """
    image_path, label_path = stream.dataset.pairs[stream.get_index(position)]
    rng = np.random.default_rng(derive_seed(stream.seed, AUGMENTATION_STREAM, position))
    image = cv2.imread(str(image_path), cv2.IMREAD_COLOR)
    label = cv2.imread(str(label_path), cv2.IMREAD_GRAYSCALE).astype(np.int32)
    label[label == 11] = IGNORE_INDEX  # CamVid's void
    scales = list_scales(*SCALE_RANGE)
    scale = scales[rng.integers(len(scales))]
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    label = cv2.resize(label, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    image, label = pad(np.asarray(image, np.float32) - CONVENTION.mean[::-1], label, CROP, (0.0, 0.0, 0.0))
    height, width = CROP
    top = int(rng.integers(label.shape[0] - height + 1))
    left = int(rng.integers(label.shape[1] - width + 1))
    image = np.asarray(image[top : top + height, left : left + width], np.float32)
    label = np.asarray(label[top : top + height, left : left + width], np.float32)
    if rng.random() < 0.5:
        image = image[:, ::-1]
        label = label[:, ::-1]
    return image.transpose(2, 0, 1).copy(), label.copy()


def compare_loaders(config: BenchmarkConfig, device: torch.device) -> Comparison:
    """Compare one training sample from files, and from the cache: same draws, same files."""
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        write_voc_like(Path(folder))
        build = partial(build_train_and_val, "camvid", folder, crop_size=CROP, pad_color=CONVENTION.pad_color)
        stream = build(cache_gb=0.0).train
        cached = build(cache_gb=1.0).train
        ways = {
            "as released": lambda i: load_as_released(stream, i),
            "ours": stream.__getitem__,
            "ours, --cache-gb": cached.__getitem__,
        }
        seconds = measure_medians(ways, config.rounds, COUNT, torch.device("cpu"))
        wrong = 0
        shares = []
        for i in range(COUNT):
            image, label = stream[i]
            plain, plain_label = load_as_released(stream, i)
            wrong += int((label.numpy() != plain_label).sum())
            # padding is the mean to half a grey level, a resized window is all of it to one
            difference = np.abs(CONVENTION.normalize(image[None])[0].numpy() - plain)
            shares.append((difference > 0.5).mean())
    check = {"label pixels that differ": wrong, "share of image values off by more than 0.5": float(np.mean(shares))}
    return Comparison("training sample, 500x375 JPEG to a 512x512 crop", seconds, check)
