"""Write a checkpoint's network as ONNX, and check the file with onnxruntime against PyTorch.

    pip install -r requirements-export.txt
    python scripts/deploy/export_onnx.py --pretrained runs/student/best.pth --output student.onnx --image street.png

Input ``image``: uint8 RGB [batch, 3, height, width], values 0..255 as decoded: the normalisation is inside. Output
``logits``: float32 [batch, classes, height, width] at input size; with --labels ``classes``: uint8 [batch, height,
width]. Batch, height and width are free; --size, or a network that cannot be written so, fixes height and width. Class
names and colours are in the file's metadata. The file is kept only when it agrees with PyTorch.
"""

import importlib.util
import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor, nn

from models.checkpoints.card import Card
from models.checkpoints.loading import from_checkpoint
from models.prediction import PixelsToLogits
from scripts.deploy.onnx_check import check_images, compare
from scripts.deploy.onnx_padding import simple_same_padding
from scripts.deploy.onnx_pools import replace_pools
from utils.errors import UserError, first_line, run_main
from utils.options import option, parse_flags

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
FIXED_SIZE = (512, 512)  # of a network that cannot take every size, without --size
TRACED_SIZE = (97, 131)  # of the example that is traced: odd, unequal
AGREEMENT = 0.9999  # share of pixels whose class must be the same


@dataclass(frozen=True)
class ExportConfig:
    pretrained: str = option("", "checkpoint of an image-only network")
    output: str = option("", "file to write (*.onnx)")
    size: tuple[int, int] | None = option(None, "fixed height and width (default: any)", minimum=1)
    labels: bool = option(False, "output the class of every pixel instead of logits")
    image: tuple[str, ...] = option((), "images to check the file with, besides random ones")


class Exported(nn.Module):
    """What the file computes: logits of ``PixelsToLogits``, or their classes."""

    def __init__(self, network: PixelsToLogits, labels: bool) -> None:
        super().__init__()
        self.network, self.labels = network, labels

    def forward(self, image: Tensor) -> Tensor:
        logits = self.network(image)
        return logits.argmax(1).to(torch.uint8) if self.labels else logits


def require_packages() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} not installed: pip install -r requirements-export.txt")


def export(network: nn.Module, size: tuple[int, int] | None, output_name: str) -> Any:
    """An ONNX program for one fixed ``size``, or for every size when it is None.

    Raises:
        torch.onnx.OnnxExporterError: the network cannot be written.
    """
    free = {0: "batch"} if size else {0: "batch", 2: "height", 3: "width"}
    shape = (2, 3, *(size or TRACED_SIZE))
    with warnings.catch_warnings(), simple_same_padding():
        warnings.simplefilter("ignore")  # of the exporter about itself
        return torch.onnx.export(
            network,
            (torch.zeros(shape, dtype=torch.uint8),),
            dynamo=True,
            input_names=["image"],
            output_names=[output_name],
            dynamic_shapes=(free,),
            verbose=False,
        )


def save(program: Any, path: Path, metadata: dict[str, str]) -> None:
    """One file, weights inside."""
    program.model.metadata_props.update(metadata)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        program.save(str(path), external_data=False)
    except OSError as error:
        raise UserError(f"--output {path} cannot be written: {error.strerror or error}") from error


def metadata(card: Card, source: str) -> dict[str, str]:
    return {
        "input": "uint8 RGB 0..255, as decoded; normalisation is inside",
        "class_names": json.dumps(list(card.class_names)),
        "palette": json.dumps(list(card.palette)),
        "network": json.dumps(card.arch),
        "checkpoint": Path(source).name,
    }


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> None:
    config = ExportConfig(**parse_flags(ExportConfig, __doc__, argv))
    if not config.pretrained:
        raise UserError("--pretrained FILE is missing: the checkpoint to export")
    if not config.output.endswith(".onnx"):
        raise UserError(f"--output {config.output or 'FILE'}: the file's name must end with .onnx")
    require_packages()
    loaded = from_checkpoint(config.pretrained)
    if loaded.noise is not None:
        reads = f"--pretrained {config.pretrained} reads the label"
        raise UserError(f"{reads}: a teacher cannot be deployed; export a student")
    network = Exported(PixelsToLogits(loaded.model, loaded.convention), config.labels).eval()
    images = check_images(config.image, config.size)  # first, so that a bad file is reported at once
    again = from_checkpoint(config.pretrained)  # whose pools are replaced
    exportable = Exported(PixelsToLogits(again.model, again.convention), config.labels)
    replace_pools(exportable.eval())

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    size, output_name = config.size, "classes" if config.labels else "logits"
    try:
        program = export(exportable, size, output_name)
    except torch.onnx.OnnxExporterError as error:
        name = f"{loaded.card.arch['arch']} on {loaded.card.arch['backbone']}"
        if size is not None:
            raise UserError(f"{name} cannot be written as ONNX: {first_line(error)}") from error
        size = FIXED_SIZE
        print(f"{name} cannot be written for every size; fixed to {size[0]}x{size[1]} (--size H W picks another)")
        program, images = export(exportable, size, output_name), check_images(config.image, size)

    path = Path(config.output).expanduser()
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        save(program, temporary, metadata(loaded.card, config.pretrained))
        rows = compare(temporary, network, config.labels, images)
        for name, logits, same in rows:
            print(f"{name}: {logits}equal classes {100 * same:.4f} %")
        worst = min(rows, key=lambda row: row[2])
        if worst[2] < AGREEMENT:
            raise UserError(f"onnxruntime and PyTorch differ on {worst[0]}: {config.output} is not kept")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    shape = f"{size[0]}x{size[1]}" if size else "any size"
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB): uint8 RGB [N, 3, H, W], {shape} -> {output_name}")


if __name__ == "__main__":
    run_main(main)
