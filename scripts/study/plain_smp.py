"""Train a network of segmentation_models_pytorch with a plain loop, for compare_with_smp.py to compare with.

    python scripts/study/plain_smp.py --dataset camvid --data data/camvid_half --crop-size 160 192 --seconds 300

The loop is as the library's documentation writes one: its network, its metrics, AdamW, cross entropy, random scale,
crop and flip. It runs for a given processor time, over which the learning rate decays. Encoder: EfficientNet-Lite0 with
ImageNet weights. One thread is used.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.environment import require_packages

require_packages()

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor

from datasets import Data, build_train_and_val
from datasets.base import TrainStream
from models.checkpoints.formats import translate_backbone
from models.checkpoints.imagenet import find_package_file
from utils.entry import run_main
from utils.errors import UserError
from utils.files import write_text
from utils.options import option, parse_flags

ENCODER = "tf_efficientnet_lite0"
BATCH_SIZE = 8
LEARNING_RATE = 0.001
IGNORED = 255


@dataclass(frozen=True)
class PlainConfig:
    """Hold the settings of plain_smp.py."""

    dataset: str = option("camvid", "data set")
    data: str = option("", "root folder of the data set")
    decoder: str = option("fpn", "the library's name of a decoder")
    crop_size: tuple[int, int] = option((160, 192), "height and width of a training crop", minimum=32)
    seconds: float = option(300.0, "processor time of the training", minimum=1)
    seed: int = option(0, "of every random draw", minimum=0)
    json: str = option("", "file for the result")


def make_network(decoder: str, classes: int) -> torch.nn.Module:
    """Build the library's network with the ImageNet weights of an installed package."""
    model = smp.create_model(decoder, f"tu-{ENCODER}", encoder_weights=None, classes=classes)
    weights = translate_backbone(torch.load(find_package_file(ENCODER), weights_only=True))
    own = model.encoder.model.state_dict()
    model.encoder.model.load_state_dict({key: value for key, value in weights.items() if key in own})
    return model.to(memory_format=torch.channels_last)


def normalise(image: Tensor) -> Tensor:
    """Bring uint8 pixels to the range of the ImageNet weights, -1 to 1."""
    return (image.float() / 255 - 0.5) / 0.5


def read_batch(stream: TrainStream, start: int) -> tuple[Tensor, Tensor]:
    """Return BATCH_SIZE samples from a position on: images uint8 ``[B, 3, h, w]`` and labels uint8 ``[B, h, w]``.

    Raises:
        UserError: an image or its label cannot be read.
    """
    images = []
    labels = []
    for position in range(start, start + BATCH_SIZE):
        sample = stream[position]
        if isinstance(sample, UserError):
            raise sample
        image, label = sample
        images.append(image)
        labels.append(label)
    return torch.stack(images), torch.stack(labels)


def train_network(model: torch.nn.Module, data: Data, config: PlainConfig) -> int:
    """Train until the processor time is over. Return the number of iterations.

    Raises:
        UserError: an image or its label cannot be read.
    """
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    begin = time.process_time()
    iteration = 0
    model.train()
    while True:
        share = (time.process_time() - begin) / config.seconds
        if share >= 1:
            return iteration
        images, labels = read_batch(data.train, iteration * BATCH_SIZE)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - share) ** 0.9
        x = normalise(images).contiguous(memory_format=torch.channels_last)
        loss = F.cross_entropy(model(x), labels.long(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        iteration += 1


@torch.inference_mode()
def compute_miou(model: torch.nn.Module, data: Data) -> float:
    """Return the mIoU on the validation images, each padded to sides that the network takes."""
    model.eval()
    classes = len(data.spec.names)
    counts = 0
    for index in range(len(data.val)):
        image, label = data.val.load_sample(index)
        height, width = label.shape
        padded = F.pad(normalise(image[None]), (0, -width % 32, 0, -height % 32))
        prediction = model(padded)[..., :height, :width].argmax(1)
        stats = smp.metrics.get_stats(prediction, label[None].long(), "multiclass", IGNORED, None, classes)
        counts = counts + torch.stack(stats).sum(1)
    true_positive, false_positive, false_negative, _ = counts
    union = true_positive + false_positive + false_negative
    return (true_positive[union > 0] / union[union > 0]).mean().item()


def main(argv: Sequence[str] | None = None) -> None:
    config = PlainConfig(**parse_flags(PlainConfig, __doc__, argv))
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    data = build_train_and_val(config.dataset, config.data, crop_size=config.crop_size, seed=config.seed)
    model = make_network(config.decoder, len(data.spec.names))
    iterations = train_network(model, data, config)
    result = {**asdict(config), "iterations": iterations, "miou": compute_miou(model, data)}
    print(f"{config.decoder}, seed {config.seed}: {100 * result['miou']:.2f} % after {iterations} iterations")
    if config.json:
        write_text(Path(config.json).expanduser(), json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run_main(main)
