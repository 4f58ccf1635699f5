"""Comparisons in time, each against a plain way of doing the same work and with a check that it is the same.

    python scripts/benchmark.py loader
    python scripts/benchmark.py --json speed.json

CPU time of one thread (the clock that neighbours on a shared machine disturb least), in alternation; the median of the
rounds counts. A new comparison is a function that returns a Comparison, and a line in COMPARISONS.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets import train_and_val
from datasets.base import SegmentationDataset, TrainStream
from datasets.transforms import SCALES
from models.label_noise import noised_plane
from utils.config import TrainConfig, option, parse_flags
from utils.errors import lookup, run_main
from utils.evaluate import upsampled_argmax
from utils.logger import environment
from utils.pixels import CONVENTIONS
from utils.seeding import derive_seed
from utils.types import IGNORE_INDEX


@dataclass(frozen=True)
class BenchmarkConfig:
    only: tuple[str, ...] = option((), "comparisons to run (default: all)", positional=True)
    rounds: int = option(7, "alternating rounds of each way", minimum=3)
    count: int = option(48, "images a round", minimum=1)
    json: str = option("", "file for the result")


@dataclass
class Comparison:
    """``seconds[way]``: medians a sample; ratios are against the first way. ``check``: how the results agree."""

    what: str
    seconds: dict[str, float]
    check: dict[str, float] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        yield self.what
        first = next(iter(self.seconds.values()))
        for way, seconds in self.seconds.items():
            yield f"  {way:<44} {1 / seconds:9.1f} /s   {first / seconds:5.2f}x"
        for name, value in self.check.items():
            yield f"  {name}: {value:.6g}"


def medians(ways: dict[str, Callable[[int], object]], rounds: int, count: int) -> dict[str, float]:
    """CPU seconds of one call ``way(i)``: median over the rounds of the mean over ``count`` calls."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(1 + rounds):  # the first round warms up
        for name, way in ways.items():
            start = time.process_time()
            for i in range(count):
                way(i)
            if number:
                times[name].append((time.process_time() - start) / count)
    return {name: statistics.median(values) for name, values in times.items()}


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


def loader(config: BenchmarkConfig) -> Comparison:
    """One training sample from files: ours against a plain full-resize float loader, same draws, same files."""
    crop_size, convention = (512, 512), CONVENTIONS["bgr_mean"]
    with voc_like(config.count) as root:
        settings = TrainConfig(dataset="camvid", data=str(root), crop_size=crop_size)
        stream = train_and_val(settings)[1]
        cached = train_and_val(replace(settings, cache_gb=1.0))[1]
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
        seconds = medians(ways, config.rounds, config.count)
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


def noising(num_classes: int, config: BenchmarkConfig) -> Comparison:
    """The label plane: one table look-up against a loop over images and classes, on given codes and pixel noise."""
    generator = torch.Generator().manual_seed(0)
    shape = (16, 512, 512)
    coarse = torch.randint(0, num_classes + 1, (16, 1, 8, 8), generator=generator).float()
    index = F.interpolate(coarse, shape[1:], mode="nearest")[:, 0].long()  # class K is the ignored one
    label = index.masked_fill(index == num_classes, IGNORE_INDEX).to(torch.uint8)
    codes = torch.randn(16, num_classes + 1, generator=generator)
    noise = torch.randn(shape, generator=generator)

    def loop(_: int) -> torch.Tensor:
        plane = index.float()
        for j in range(len(plane)):
            for k in range(num_classes + 1):
                plane[j][index[j] == k] = codes[j, k]
        return (100 * (plane + 0.03 * noise)).unsqueeze(1)

    def table(_: int) -> torch.Tensor:
        return noised_plane(label, codes, noise, 0.03, 100.0)

    seconds = medians({"plain: loop over images and classes": loop, "ours: table look-up": table}, config.rounds, 2)
    check = {"largest difference": float((loop(0) - table(0)).abs().max())}
    return Comparison(f"label plane of 16 images, 512x512, {num_classes} classes (drawing excluded)", seconds, check)


def argmax(num_classes: int, config: BenchmarkConfig) -> Comparison:
    """From logits at stride 8 to the class of every pixel of a VOC-sized image."""
    generator = torch.Generator().manual_seed(0)
    smooth = 4 * torch.randn(1, num_classes, 6, 8, generator=generator)
    logits, size = F.interpolate(smooth, (47, 63), mode="bicubic").contiguous(), (375, 500)

    def plain(_: int) -> torch.Tensor:
        return F.interpolate(logits, size, mode="bilinear", align_corners=True).argmax(1)

    def banded(_: int) -> torch.Tensor:
        return upsampled_argmax(logits, size, True)

    seconds = medians({"plain: upsample everything, argmax": plain, "ours: in bands": banded}, config.rounds, 5)
    check = {"pixels that differ": float((plain(0) != banded(0)).sum())}
    return Comparison(f"classes of a 375x500 image from {num_classes} logits at stride 8", seconds, check)


COMPARISONS: dict[str, Callable[[BenchmarkConfig], Comparison]] = {
    "loader": loader,
    **{f"noising-{k}": partial(noising, k) for k in (21, 150)},
    **{f"argmax-{k}": partial(argmax, k) for k in (21, 171)},
}


def main() -> None:
    config = BenchmarkConfig(**parse_flags(BenchmarkConfig, __doc__))
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    results = {}
    for name in config.only or COMPARISONS:
        results[name] = lookup(COMPARISONS, name, "comparison")(config)
        print("\n".join(results[name].lines()))
    if config.json:
        content = {"environment": environment(torch.device("cpu"))}
        content |= {name: asdict(result) for name, result in results.items()}
        Path(config.json).parent.mkdir(parents=True, exist_ok=True)
        Path(config.json).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_main(main)
