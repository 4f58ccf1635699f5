"""A Markdown table of the networks: parameters, operations, stride, speed; as student and as assisted teacher.

    python scripts/study/models_table.py                                  # all, at 512x1024
    python scripts/study/models_table.py --crop-size 512 512 --num-classes 21 --only stdc ocrnet

GFLOPs are of one forward pass of one image (torch's counter: a multiplication and an addition are two). Parameters
include auxiliary branches, operations and speed do not: evaluation leaves them out. Speed is the median of --repeats
passes of one image in float32, after two that do not count.
"""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.environment import require_packages

require_packages()

import torch
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from engine.machine import get_device_name
from models import build_model
from utils.entry import run_main
from utils.errors import UserError
from utils.options import option, parse_flags

NETWORKS = (  # architecture, backbone
    ("fcn", "resnet18_v1c"),
    ("fcn", "resnet50_v1c"),
    ("fcn", "resnet101_v1c"),
    ("pspnet", "mobilenetv2_100"),
    ("pspnet", "resnet18_v1s"),
    ("pspnet", "resnet101_v1s"),
    ("deeplabv3", "mobilenetv2_100"),
    ("deeplabv3", "resnet18_v1s"),
    ("deeplabv3", "resnet101_v1s"),
    ("stdc", "stdc1"),
    ("stdc", "stdc2"),
    ("ocrnet", "hrnet_w18_small_v2"),
    ("ocrnet", "hrnet_w18"),
    ("ocrnet", "hrnet_w48"),
)
ROLES = {"student": 3, "assisted teacher": 4}  # input channels
HEADER = ("model", "backbone", "role", "parameters", "GFLOPs", "stride")


@dataclass(frozen=True)
class TableConfig:
    """Hold the settings of models_table.py."""

    crop_size: tuple[int, int] = option((512, 1024), "height and width of the image", minimum=32)
    num_classes: int = option(19, "classes", minimum=2)
    only: tuple[str, ...] = option((), "architectures or backbones to list (default: all)")
    repeats: int = option(5, "timed passes; 0 leaves the speed out", minimum=0)
    threads: int = option(1, "CPU threads", minimum=1)


@torch.inference_mode()
def make_row(arch: str, backbone: str, role: str, config: TableConfig, devices: list[str]) -> list[str]:
    """Count and time one network in one role. Return the cells of its row."""
    channels = ROLES[role]
    height, width = config.crop_size
    with torch.device("meta"):
        model = build_model(arch, backbone, config.num_classes, channels).eval()
        with FlopCounterMode(display=False) as counter:
            output = model(torch.zeros(1, channels, height, width), with_aux=False)
    cells = [arch, backbone, role, f"{sum(p.numel() for p in model.parameters()):,}"]
    cells += [f"{counter.get_total_flops() / 1e9:.1f}", str(round(height / output.logits.shape[2]))]
    if config.repeats:
        model = build_model(arch, backbone, config.num_classes, channels).eval()
        for device in devices:
            image = torch.randn(1, channels, height, width, device=device)
            names = {"model": model.to(device), "image": image}
            timer = Timer("model(image, with_aux=False)", globals=names, num_threads=config.threads)
            timer.timeit(2)  # does not count
            passes = [timer.timeit(1).median for _ in range(config.repeats)]
            cells.append(f"{1 / statistics.median(passes):.2f}")
    return cells


def main(argv: Sequence[str] | None = None) -> None:
    config = TableConfig(**parse_flags(TableConfig, __doc__, argv))
    networks = [n for n in NETWORKS if not config.only or set(n) & set(config.only)]
    if not networks:
        raise UserError(f"--only {' '.join(config.only)}: no such network in the table")
    threads = "1 thread" if config.threads == 1 else f"{config.threads} threads"
    devices = {"cpu": f"{get_device_name(torch.device('cpu'))}, {threads}"}
    if torch.cuda.is_available():
        devices["cuda"] = get_device_name(torch.device("cuda"))
    height, width = config.crop_size
    speeds = [f"images/s, {name}" for name in devices.values()] if config.repeats else []
    print(f"{height}x{width}, {config.num_classes} classes, torch {torch.__version__}\n")
    header = [*HEADER, *speeds]
    print_row(header)
    print_row(["---"] * len(header))
    for arch, backbone in networks:
        for role in ROLES:
            print_row(make_row(arch, backbone, role, config, list(devices)))


def print_row(cells: Sequence[str]) -> None:
    """Print a row of the table as soon as it is measured."""
    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    run_main(main)
