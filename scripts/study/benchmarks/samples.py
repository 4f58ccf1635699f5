"""The training sample: ours against a plain full-resize float pipeline."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from datasets import train_and_val
from datasets.base import SegmentationDataset, TrainStream
from datasets.transforms import SCALES
from scripts.study.benchmarks.timing import BenchmarkConfig, Comparison, medians
from utils.pixels import CONVENTIONS
from utils.seeding import derive_seed


@contextmanager
def voc_like(count: int) -> Iterator[Path]:
    """``count`` images in CamVid's layout of VOC's usual size, 500x375, about 80 kB of JPEG each, and grey labels."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for split in ("train", "val"):
            (root / split).mkdir()
            (root / f"{split}annot").mkdir()
        for i in range(count):
            coarse = rng.integers(0, 256, (24, 32, 3)).astype(np.float32)
            image = cv2.resize(coarse, (500, 375), interpolation=cv2.INTER_CUBIC) + rng.normal(0, 12, (375, 500, 3))
            label = cv2.resize(
                rng.integers(0, 12, (5, 7)).astype(np.uint8), (500, 375), interpolation=cv2.INTER_NEAREST
            )
            for split in ("train", "val") if i == 0 else ("train",):
                Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(root / f"{split}/{i:04}.jpg", quality=90)
                Image.fromarray(label).save(root / f"{split}annot/{i:04}.png")
        yield root


def plain_item(stream: TrainStream, crop_size: tuple[int, int], position: int) -> tuple[np.ndarray, np.ndarray]:
    """The order of work of the LAD release (dataset/voc.py): decode, resize all of it, subtract the mean, pad, crop.

    The draws are those of ``datasets.transforms.cirkd`` from the same generator. Returns float32 ``[3, H, W]`` BGR
    minus the mean and float32 labels with -1.
    """
    convention = CONVENTIONS["bgr_mean"]
    image_path, label_path = stream.dataset.pairs[stream.index(position)]
    rng = np.random.default_rng(derive_seed(stream.seed, 4, position))
    image = cv2.imread(str(image_path), cv2.IMREAD_COLOR)
    label = cv2.imread(str(label_path), cv2.IMREAD_GRAYSCALE).astype(np.int32)
    label[label == 11] = -1
    scale = SCALES[rng.integers(len(SCALES))]
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    label = cv2.resize(label, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    image = np.asarray(image, np.float32) - np.array(convention.mean[::-1])
    down, right = (max(0, want - have) for want, have in zip(crop_size, label.shape, strict=True))
    if down or right:
        image = cv2.copyMakeBorder(image, 0, down, 0, right, cv2.BORDER_CONSTANT, value=(0.0, 0.0, 0.0))
        label = cv2.copyMakeBorder(label, 0, down, 0, right, cv2.BORDER_CONSTANT, value=(-1,))
    top, left = (int(rng.integers(have - want + 1)) for have, want in zip(label.shape, crop_size, strict=True))
    box = slice(top, top + crop_size[0]), slice(left, left + crop_size[1])
    image, label = np.asarray(image[box], np.float32), np.asarray(label[box], np.float32)
    if rng.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    return image.transpose(2, 0, 1).copy(), label.copy()


def loader(config: BenchmarkConfig, device: torch.device) -> Comparison:
    """One training sample from files: ours against a plain full-resize float loader, same draws, same files."""
    crop_size, convention = (512, 512), CONVENTIONS["bgr_mean"]
    with voc_like(config.count) as root:
        pad_color = convention.pad_color
        stream, cached = (
            train_and_val("camvid", str(root), crop_size=crop_size, pad_color=pad_color, cache_gb=gb).train
            for gb in (0.0, 1.0)
        )
        decoded = [stream.dataset.read(i) for i in range(len(stream.dataset))]
        held = SegmentationDataset(stream.dataset.spec, root, "train")
        held.read = decoded.__getitem__
        ways = {
            "plain: full resize, float, from files": lambda i: plain_item(stream, crop_size, i),
            "ours, from files": stream.__getitem__,
            "ours and normalisation on the CPU": lambda i: convention.normalize(stream[i][0][None]),
            "ours, --cache-gb": cached.__getitem__,
            "ours, augmentation alone": TrainStream(held, stream.transform, 0).__getitem__,
        }
        seconds = medians(ways, config.rounds, config.count, torch.device("cpu"))
        wrong_labels = wrong_values = values = 0
        largest = 0.0
        for i in range(config.count):
            image, label = stream[i]
            plain, plain_label = plain_item(stream, crop_size, i)
            wrong_labels += int((label.numpy() != np.where(plain_label < 0, 255, plain_label)).sum())
            difference = np.abs(convention.normalize(image[None])[0].numpy() - plain)
            wrong_values += int((difference > 0.5).sum())  # padding is the mean to half a grey level
            values, largest = values + difference.size, max(largest, float(difference.max()))
    check = {
        "label pixels that differ": wrong_labels,
        "largest difference of the image in grey levels": largest,
        "share of its values off by more than half": wrong_values / values,
    }
    return Comparison("training sample, 500x375 JPEG to a 512x512 crop", seconds, check)
