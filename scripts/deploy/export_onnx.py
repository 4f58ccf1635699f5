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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from datasets.files import read_image
from models.checkpoints.card import Card
from models.checkpoints.loading import from_checkpoint
from scripts.deploy.network import Deployed, replace_pools
from utils.errors import UserError, first_line, run_main
from utils.options import option, parse_flags

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
FIXED_SIZE = (512, 512)  # of a network that cannot take every size, without --size
TRACED_SIZE = (97, 131)  # of the example that is traced: odd, unequal
CHECKED_SIZES = ((97, 131), (128, 64), (65, 200))  # random images
AGREEMENT = 0.9999  # share of pixels whose class must be the same


@dataclass(frozen=True)
class ExportConfig:
    pretrained: str = option("", "checkpoint of an image-only network")
    output: str = option("", "file to write (*.onnx)")
    size: tuple[int, int] | None = option(None, "fixed height and width (default: any)", minimum=1)
    labels: bool = option(False, "output the class of every pixel instead of logits")
    image: tuple[str, ...] = option((), "images to check the file with, besides random ones")


class Exported(nn.Module):
    """What the file computes: logits of ``Deployed``, or their classes."""

    def __init__(self, network: Deployed, labels: bool) -> None:
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
    with warnings.catch_warnings():
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


def compare(path: Path, network: Exported, images: dict[str, Tensor]) -> list[tuple[str, str, float]]:
    """Per image: its name, the largest difference of a logit in words (none for classes), share of equal classes.

    Raises:
        UserError: onnxruntime cannot load the file, or cannot run it on an image.
    """
    import onnxruntime

    def attempt(what: str, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # onnxruntime's kinds have no base of their own
            raise UserError(f"onnxruntime fails on {what}: {first_line(error)} (--size H W fixes the size)") from error

    options = {"providers": ["CPUExecutionProvider"]}
    session = attempt("the file", lambda: onnxruntime.InferenceSession(str(path), **options))
    rows = []
    for name, image in images.items():
        ours = network(image).numpy()
        (theirs,) = attempt(name, lambda x=image: session.run(None, {"image": x.numpy()}))
        if network.labels:
            rows.append((name, "", float((ours == theirs).mean())))
        else:
            difference, largest = np.abs(ours - theirs).max(), np.abs(ours).max()
            words = f"logits up to {largest:.3g} differ by at most {difference:.1e}, "
            rows.append((name, words, float((ours.argmax(1) == theirs.argmax(1)).mean())))
    return rows


def check_images(config: ExportConfig, size: tuple[int, int] | None) -> dict[str, Tensor]:
    """Random pixels of several sizes, and the user's images; of a fixed size those are scaled to it."""
    generator = torch.Generator().manual_seed(0)
    images = {
        f"random {h}x{w}": torch.randint(0, 256, (1, 3, h, w), dtype=torch.uint8, generator=generator)
        for h, w in ([size] if size else CHECKED_SIZES)
    }
    for path in config.image:
        pixels = read_image(Path(path))
        pixels = cv2.resize(pixels, size[::-1]) if size else pixels
        images[path] = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]
    return images


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
        raise UserError(
            f"--pretrained {config.pretrained} reads the label: a teacher cannot be deployed; export a student"
        )
    network = Exported(Deployed(loaded.model, loaded.convention), config.labels).eval()
    images = check_images(config, config.size)  # before the long part, so that a bad file is reported at once
    exportable = Exported(Deployed(from_checkpoint(config.pretrained).model, network.network.convention), config.labels)
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
        program, images = export(exportable, size, output_name), check_images(config, size)

    path = Path(config.output).expanduser()
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        save(program, temporary, metadata(loaded.card, config.pretrained))
        rows = compare(temporary, network, images)
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
