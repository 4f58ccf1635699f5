"""Write a checkpoint's network as ONNX, and check the file with onnxruntime against PyTorch.

    pip install -r requirements-export.txt
    python scripts/deploy/export_onnx.py --pretrained runs/student/best.pth --output student.onnx --image street.png

Input ``image``: uint8 RGB [batch, 3, height, width], values 0..255 as decoded: the normalisation is inside. Output
``logits``: float32 [batch, classes, height, width] at input size. Batch, height and width are free; --size fixes
height and width. Class names, colours and the size of the training crops are in the file's metadata. The file is kept
only when it agrees with PyTorch.
"""

import copy
import importlib.util
import json
import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.environment import require_packages

require_packages()

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.checkpoints.card import Card
from models.checkpoints.loading import from_checkpoint
from scripts.deploy.onnx_sizes import replace_pools, simple_same_padding
from utils.errors import UserError, first_line, run_main
from utils.files import write
from utils.options import option, parse_flags
from utils.pictures import read_image
from utils.pixels import PixelConvention

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TRACED_SIZE = (97, 131)  # of the example that is traced: odd, unequal
CHECKED_SIZES = ((97, 131), (128, 64), (65, 200))  # of random images
AGREEMENT = 0.9999  # share of pixels whose class must be the same


@dataclass(frozen=True)
class ExportConfig:
    pretrained: str = option("", "checkpoint of an image-only network")
    model: str = option("", "package.module:function, where the checkpoint holds a network of your own")
    output: str = option("", "file to write (*.onnx)")
    size: tuple[int, int] | None = option(None, "fixed height and width (default: any)", minimum=1)
    image: tuple[str, ...] = option((), "images to check the file with, besides random ones")


class PixelsToLogits(nn.Module):
    """uint8 RGB ``[B, 3, H, W]`` -> logits float32 ``[B, K, H, W]``.

    The pixel convention and the upsampling are those of validation, so that nobody has to know them.
    """

    def __init__(self, model: nn.Module, convention: PixelConvention) -> None:
        super().__init__()
        self.model, self.convention = model, convention
        self.align_corners = model.supervision[0].align_corners

    def forward(self, image: Tensor) -> Tensor:
        logits = self.model(self.convention.normalize(image), with_aux=False).logits
        return F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=self.align_corners)


def export(network: nn.Module, size: tuple[int, int] | None) -> Any:
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
            output_names=["logits"],
            dynamic_shapes=(free,),
            verbose=False,
        )


def metadata(card: Card, source: str) -> dict[str, str]:
    """Return what the ONNX file says of its network, texts by name.

    crop_size: height and width of the training crops as JSON, null where the checkpoint does not say; objects should
    appear about as large as they did there.
    """
    return {
        "input": "uint8 RGB 0..255, as decoded; normalisation is inside",
        "class_names": json.dumps(list(card.class_names)),
        "palette": json.dumps(list(card.palette)),
        "network": json.dumps(card.arch),
        "crop_size": json.dumps(card.crop_size),
        "checkpoint": Path(source).name,
    }


def compare(path: Path, network: nn.Module, images: dict[str, Tensor]) -> dict[str, float]:
    """The share of pixels of equal class by image; printed with the largest difference of a logit.

    Raises UserError: onnxruntime cannot load the file, or cannot run it on an image.
    """
    import onnxruntime

    same, what = {}, "the file"
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for what, image in images.items():
            ours, (theirs,) = network(image).numpy(), session.run(None, {"image": image.numpy()})
            difference, largest = np.abs(ours - theirs).max(), np.abs(ours).max()
            same[what] = float((ours.argmax(1) == theirs.argmax(1)).mean())
            logits = f"logits up to {largest:.3g} differ by at most {difference:.1e}"
            print(f"{what}: {logits}, equal classes {100 * same[what]:.4f} %")
    except Exception as error:  # onnxruntime's kinds have no base of their own
        raise UserError(f"onnxruntime fails on {what}: {first_line(error)} (--size H W fixes the size)") from error
    return same


def check_images(files: Sequence[str], size: tuple[int, int] | None) -> dict[str, Tensor]:
    """Random pixels of several sizes, and the user's images; of a fixed size those are scaled to it."""
    generator = torch.Generator().manual_seed(0)
    images = {
        f"random {h}x{w}": torch.randint(0, 256, (1, 3, h, w), dtype=torch.uint8, generator=generator)
        for h, w in ([size] if size else CHECKED_SIZES)
    }
    for path in files:
        pixels = read_image(Path(path))
        pixels = cv2.resize(pixels, size[::-1]) if size else pixels
        images[path] = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]
    return images


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> None:
    config = ExportConfig(**parse_flags(ExportConfig, __doc__, argv))
    if not config.pretrained:
        raise UserError("--pretrained FILE is missing: the checkpoint to export")
    if not config.output.endswith(".onnx"):
        raise UserError(f"--output {config.output or 'FILE'}: the file's name must end with .onnx")
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} not installed: pip install -r requirements-export.txt")
    loaded = from_checkpoint(config.pretrained, model=config.model)
    if loaded.noise is not None:
        reads = f"--pretrained {config.pretrained} reads the label"
        raise UserError(f"{reads}: a teacher cannot be deployed; export a student")
    network = PixelsToLogits(loaded.model, loaded.convention).eval()
    images = check_images(config.image, config.size)  # first, so that a bad file is reported at once
    exportable = copy.deepcopy(network)
    replace_pools(exportable)

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        program = export(exportable, config.size)
    except torch.onnx.OnnxExporterError as error:
        name = f"{loaded.card.arch['arch']} on {loaded.card.arch['backbone']}"
        hint = "" if config.size else " (--size H W fixes the size, which is easier to write)"
        raise UserError(f"{name} cannot be written as ONNX: {first_line(error)}{hint}") from error

    path = Path(config.output).expanduser()
    with TemporaryDirectory() as folder:
        file = Path(folder) / path.name
        program.model.metadata_props.update(metadata(loaded.card, config.pretrained))
        program.save(str(file), external_data=False)  # one file, weights inside
        same = compare(file, network, images)
        worst = min(same, key=same.get)
        if same[worst] < AGREEMENT:
            raise UserError(f"onnxruntime and PyTorch differ on {worst}: {config.output} is not kept")
        write(path, lambda output: output.write(file.read_bytes()))
    shape = f"{config.size[0]}x{config.size[1]}" if config.size else "any size"
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB): uint8 RGB [N, 3, H, W], {shape} -> logits")


if __name__ == "__main__":
    run_main(main)
