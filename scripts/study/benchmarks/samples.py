"""The training sample: ours against a plain full-resize float pipeline, on VOC-like files."""

import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from datasets import train_and_val
from datasets.base import TrainStream
from datasets.transforms import SCALES, pad
from scripts.study.benchmarks.timing import BenchmarkConfig, Comparison, medians
from utils.pixels import CONVENTIONS
from utils.seeding import derive_seed
from utils.types import IGNORE_INDEX

COUNT, CROP = 48, (512, 512)
CONVENTION = CONVENTIONS["bgr_mean"]


def voc_like(root: Path) -> None:
    """Images in CamVid's layout of VOC's usual size, 500x375, about 80 kB of JPEG each, and grey labels."""
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        coarse = rng.integers(0, 256, (24, 32, 3)).astype(np.float32)
        image = cv2.resize(coarse, (500, 375), interpolation=cv2.INTER_CUBIC) + rng.normal(0, 12, (375, 500, 3))
        label = cv2.resize(rng.integers(0, 12, (5, 7)).astype(np.uint8), (500, 375), interpolation=cv2.INTER_NEAREST)
        for split in ("train", "val") if i == 0 else ("train",):
            for name, pixels in ((f"{split}/{i:04}.jpg", np.clip(image, 0, 255)), (f"{split}annot/{i:04}.png", label)):
                (root / name).parent.mkdir(exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(root / name, quality=90)


def plain_sample(stream: TrainStream, position: int) -> tuple[np.ndarray, np.ndarray]:
    """The order of work of the LAD release (dataset/voc.py): decode, resize all of it, subtract the mean, pad, crop.

    The draws are those of ``datasets.transforms.cirkd`` from the same generator. Float32: the image ``[3, H, W]``, BGR
    minus the mean, and the label.
    """
    image_path, label_path = stream.dataset.pairs[stream.index(position)]
    rng = np.random.default_rng(derive_seed(stream.seed, 4, position))
    image = cv2.imread(str(image_path), cv2.IMREAD_COLOR)
    label = cv2.imread(str(label_path), cv2.IMREAD_GRAYSCALE).astype(np.int32)
    label[label == 11] = IGNORE_INDEX  # CamVid's void
    scale = SCALES[rng.integers(len(SCALES))]
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    label = cv2.resize(label, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    image, label = pad(np.asarray(image, np.float32) - CONVENTION.mean[::-1], label, CROP, (0.0, 0.0, 0.0))
    top, left = (int(rng.integers(have - want + 1)) for have, want in zip(label.shape, CROP, strict=True))
    box = slice(top, top + CROP[0]), slice(left, left + CROP[1])
    image, label = np.asarray(image[box], np.float32), np.asarray(label[box], np.float32)
    if rng.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    return image.transpose(2, 0, 1).copy(), label.copy()


def loader(config: BenchmarkConfig, device: torch.device) -> Comparison:
    """One training sample from files, and from the cache: same draws, same files."""
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        voc_like(Path(folder))
        pad_color = CONVENTION.pad_color
        stream, cached = (
            train_and_val("camvid", folder, crop_size=CROP, pad_color=pad_color, cache_gb=gb).train for gb in (0.0, 1.0)
        )
        ways = {"as released": lambda i: plain_sample(stream, i), "ours": stream.__getitem__}
        seconds = medians(ways | {"ours, --cache-gb": cached.__getitem__}, config.rounds, COUNT, torch.device("cpu"))
        wrong, shares = 0, []
        for i in range(COUNT):
            (image, label), (plain, plain_label) = stream[i], plain_sample(stream, i)
            wrong += int((label.numpy() != plain_label).sum())
            # padding is the mean to half a grey level, a resized window is all of it to one
            shares.append((np.abs(CONVENTION.normalize(image[None])[0].numpy() - plain) > 0.5).mean())
    check = {"label pixels that differ": wrong, "share of image values off by more than 0.5": float(np.mean(shares))}
    return Comparison("training sample, 500x375 JPEG to a 512x512 crop", seconds, check)
