"""Write a checkpoint's network as ONNX, and check the file with onnxruntime against PyTorch.

    pip install -r requirements-export.txt
    python scripts/deploy/export_onnx.py --pretrained runs/student/best.pth --output student.onnx --image street.png
    python scripts/deploy/export_onnx.py --pretrained camvid_fpn --output student.onnx --int8 --calibration photos/

Input ``image``: uint8 RGB [batch, 3, height, width], values 0..255 as decoded: the normalisation is inside. Output
``logits``: float32 [batch, classes, height, width] at input size. Batch, height and width are free; --size fixes
height and width. Class names, colours and the size of the training crops are in the file's metadata. The file is kept
only when it agrees with PyTorch.

--int8 writes NAME.int8.onnx beside it, by onnxruntime's static quantisation, and prints the share of pixels of equal
class; with --data, the root of a labelled data set, also the mIoU of both files.
"""

import copy
import importlib.util
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.environment import require_packages

require_packages()

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets import build_dataset_for_network, choose_evenly
from datasets.base import SegmentationDataset
from models.checkpoints.card import Card
from models.checkpoints.loading import LoadedNetwork, from_checkpoint
from scripts.deploy.onnx_int8 import (
    MOST_IMAGES,
    Sample,
    Sizes,
    compare_files,
    describe_agreement,
    find_files,
    quantise,
    read_dataset,
    read_files,
)
from scripts.deploy.onnx_sizes import make_pools_exportable, use_new_maps, use_simple_same_padding
from utils.entry import run_main
from utils.errors import UserError, explain_out_of_memory, get_first_line
from utils.files import write
from utils.options import get_flag, option, parse_flags
from utils.pictures import read_image
from utils.pixels import PixelConvention

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TRACED_SIZE = (97, 131)  # height and width of the example that the exporter traces: odd and unequal
CHECKED_SIZES = ((97, 131), (128, 64), (65, 200))  # height and width of the random images that the file is checked with
INT8_SETTINGS = ("calibration", "dataset", "data", "resize")  # settings that only --int8 uses
AGREEMENT = 0.9999  # share of pixels whose class must be the same
TIE = 1e-5  # two logits are as good as equal if they differ by this share of the largest logit


@dataclass(frozen=True)
class OnnxConfig:
    """Hold the settings of export_onnx.py."""

    pretrained: str = option("", "checkpoint of an image-only network")
    model: str = option("", "package.module:function, where the checkpoint holds a network of your own")
    output: str = option("", "file to write (*.onnx)")
    size: tuple[int, int] | None = option(None, "fixed height and width (default: any)", minimum=1)
    image: tuple[str, ...] = option((), "images to check the file with, besides random ones")
    int8: bool = option(False, "also write NAME.int8.onnx, with weights and maps of 8 bits")
    calibration: tuple[str, ...] = option((), "--int8: images and folders that show the range of every map")
    dataset: str = option("", "--int8: labelled data set that both files are scored on (default: the checkpoint's)")
    data: str = option("", "--int8: its root folder; its training images calibrate where --calibration gives none")
    resize: tuple[int, int] | None = option(
        None, "--int8: long and short side that images are resized to fit, as by eval.py", minimum=32
    )


class PixelsToLogits(nn.Module):
    """Wrap a network: it takes uint8 RGB ``[B, 3, H, W]`` and returns float32 logits ``[B, K, H, W]``.

    Pixels are normalised and logits are upsampled inside, as in validation, so that the file's users need not do it.
    """

    def __init__(self, model: nn.Module, convention: PixelConvention) -> None:
        super().__init__()
        self.model = model
        self.convention = convention
        self.align_corners = model.supervision[0].align_corners

    def forward(self, image: Tensor) -> Tensor:
        logits = self.model(self.convention.normalize(image), with_aux=False).logits
        return F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=self.align_corners)


def export_network(network: nn.Module, size: tuple[int, int] | None) -> Any:
    """Export a network as an ONNX program for one fixed ``size``, or for every size where it is None.

    Raises:
        torch.onnx.OnnxExporterError: the network cannot be written.
    """
    free = {0: "batch"} if size else {0: "batch", 2: "height", 3: "width"}
    height, width = size or TRACED_SIZE
    # two images, because the exporter takes a batch of one image for a fixed size
    example = torch.zeros(2, 3, height, width, dtype=torch.uint8)
    with warnings.catch_warnings(), use_simple_same_padding():
        warnings.simplefilter("ignore")  # the exporter warns about its own code
        return torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=(free,),
            verbose=False,
        )


def make_metadata(card: Card, source: str) -> dict[str, str]:
    """Return the metadata of the ONNX file: texts by name.

    "crop_size" is the height and width of the training crops, or null where the checkpoint does not say it. Objects in
    an image should appear about as large as they did in these crops.
    """
    return {
        "input": "uint8 RGB 0..255, as decoded; normalisation is inside",
        "class_names": json.dumps(list(card.class_names)),
        "palette": json.dumps(list(card.palette)),
        "network": json.dumps(card.arch),
        "crop_size": json.dumps(card.crop_size),
        "checkpoint": Path(source).name,
    }


def compare_with_network(path: Path, network: nn.Module, images: dict[str, Tensor]) -> dict[str, float]:
    """Compare an ONNX file with its network. Return the share of pixels of equal class for each image.

    images: name -> uint8 RGB ``[1, 3, H, W]``. For each image, the largest difference of a logit is printed.

    Raises:
        UserError: onnxruntime cannot load the file, or cannot run it on an image, or PyTorch is out of memory.
    """
    import onnxruntime

    with explain_onnxruntime("the file"):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    same = {}
    for name, image in images.items():
        with explain_out_of_memory(f"{name}: PyTorch is out of memory: take a smaller --image"):
            ours = network(image).numpy()
        with explain_onnxruntime(name):
            (theirs,) = session.run(None, {"image": image.numpy()})
        same[name] = compute_equal_share(ours, theirs)
        largest = np.abs(ours).max()
        difference = np.abs(ours - theirs).max()
        logits = f"logits up to {largest:.3g} differ by at most {difference:.1e}"
        print(f"{name}: {logits}, equal classes {100 * same[name]:.4f} %")
    return same


@contextmanager
def explain_onnxruntime(what: str) -> Iterator[None]:
    """Raise a UserError if onnxruntime fails inside this block. what: what it was given, for the message."""
    try:
        yield
    except Exception as error:  # onnxruntime's errors have no common base class
        raise UserError(f"onnxruntime fails on {what}: {get_first_line(error)} (--size H W fixes the size)") from error


def compute_equal_share(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the share of pixels that have the same class by two maps of logits ``[B, K, H, W]``.

    A pixel counts as equal, too, if ``ours`` gives both classes almost the same logit: rounding decides between them.
    """
    their_classes = theirs.argmax(1, keepdims=True)
    logit_of_our_class = ours.max(1)
    logit_of_their_class = np.take_along_axis(ours, their_classes, 1)[:, 0]
    tolerance = TIE * np.abs(ours).max()
    is_equal = logit_of_our_class - logit_of_their_class <= tolerance
    return float(is_equal.mean())


def make_check_images(files: Sequence[str], size: tuple[int, int] | None) -> dict[str, Tensor]:
    """Make pictures of random pixels in several sizes, and read the user's images.

    size: the height and width of all of them where the file has a fixed size; the user's images are scaled to it.
    Returns name -> uint8 RGB ``[1, 3, H, W]``.

    Raises:
        UserError: an image cannot be read.
    """
    generator = torch.Generator().manual_seed(0)
    images: dict[str, Tensor] = {}
    for height, width in [size] if size else CHECKED_SIZES:
        pixels = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=generator)
        images[f"random {height}x{width}"] = pixels
    sizes = Sizes(fixed=size)
    for path in files:
        pixels = read_image(Path(path).expanduser(), behind="white")
        images[path] = torch.from_numpy(sizes.apply(pixels))
    return images


def check_config(config: OnnxConfig) -> None:
    """Check what can be checked before the checkpoint is read.

    Raises:
        UserError: a flag is missing or has no effect, or a package is not installed.
    """
    if not config.pretrained:
        raise UserError("--pretrained FILE is missing: the checkpoint to export")
    if not config.output.endswith(".onnx"):
        raise UserError(f"--output {config.output or 'FILE'}: the file's name must end with .onnx")
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} not installed: pip install -r requirements-export.txt")
    unused = [get_flag(name) for name in INT8_SETTINGS if getattr(config, name)]
    if unused and not config.int8:
        raise UserError(f"{', '.join(unused)}: only with --int8")
    if config.int8 and not (config.calibration or config.data or config.dataset):
        needed = "images like those that the network will see, which show the range of every map"
        raise UserError(f"--int8 needs {needed}: --calibration FOLDER, or --data ROOT of a labelled data set")
    if config.size and config.resize:
        raise UserError("--size and --resize: images have one fixed size, or fit two sides; leave one of them out")


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> None:
    config = OnnxConfig(**parse_flags(OnnxConfig, __doc__, argv))
    check_config(config)
    loaded = from_checkpoint(config.pretrained, model=config.model)
    if loaded.card.reads_label:
        reads = f"--pretrained {config.pretrained} reads the label"
        raise UserError(f"{reads}: a teacher cannot be deployed; export a student")
    images = make_check_images(config.image, config.size)  # before the export, so that a bad file is reported at once
    int8_inputs = open_int8_inputs(config, loaded) if config.int8 else None
    write_onnx(config, loaded, images)
    if int8_inputs is not None:
        write_int8(config, loaded, int8_inputs)


def write_onnx(config: OnnxConfig, loaded: LoadedNetwork, images: dict[str, Tensor]) -> None:
    """Write the network, if the file agrees with it on ``images``.

    Raises:
        UserError: the network cannot be written, or the file does not agree with it.
    """
    network = PixelsToLogits(loaded.model, loaded.convention).eval()
    program = make_program(network, loaded.card, config.size)
    path = Path(config.output).expanduser()
    with TemporaryDirectory() as folder:
        file = Path(folder) / path.name
        program.model.metadata_props.update(make_metadata(loaded.card, config.pretrained))
        program.save(str(file), external_data=False)  # one file, weights inside
        same = compare_with_network(file, network, images)
        worst = min(same, key=same.get)
        if same[worst] < AGREEMENT:
            raise UserError(f"onnxruntime and PyTorch differ on {worst}: {config.output} is not kept")
        write(path, lambda output: output.write(file.read_bytes()))
    shape = f"{config.size[0]}x{config.size[1]}" if config.size else "any size"
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB): uint8 RGB [N, 3, H, W], {shape} -> logits")


def make_program(network: nn.Module, card: Card, size: tuple[int, int] | None) -> Any:
    """Export a copy of the network, changed to a form that the exporter can write. ``network`` stays as it is.

    Raises:
        UserError: the network cannot be written.
    """
    exportable = copy.deepcopy(network)
    make_pools_exportable(exportable)
    use_new_maps(exportable)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        return export_network(exportable, size)
    except torch.onnx.OnnxExporterError as error:
        name = f"{card.arch['arch']} on {card.arch['backbone']}"
        hint = "" if size else " (--size H W fixes the size, which is easier to write)"
        raise UserError(f"{name} cannot be written as ONNX: {get_first_line(error)}{hint}") from error


class Int8Inputs(NamedTuple):
    """Hold the images that an 8-bit file is calibrated with and compared on.

    sizes: to which size they are brought. files: the images of ``--calibration``. training, validation: the splits of a
    labelled data set, or None; the training split is only needed without files.
    """

    sizes: Sizes
    files: list[Path]
    training: SegmentationDataset | None
    validation: SegmentationDataset | None

    def read_calibration_images(self) -> Iterator[Sample]:
        """Read the images that show the range of every map: the files, or else training images."""
        if self.files:
            return read_files(self.files, self.sizes)
        return read_dataset(self.training, choose_evenly(len(self.training), MOST_IMAGES), self.sizes)

    def read_comparison_images(self) -> Iterator[Sample]:
        """Read the images that the two files are compared on: all validation images, or else the files."""
        if self.validation is None:
            return read_files(self.files, self.sizes)
        return read_dataset(self.validation, range(len(self.validation)), self.sizes)

    def describe(self) -> str:
        """Return a few words on the images that the two files are compared on."""
        if self.validation is None:
            return "the images it was calibrated with"
        return f"{len(self.validation)} validation images"


def open_int8_inputs(config: OnnxConfig, loaded: LoadedNetwork) -> Int8Inputs:
    """Find the images for ``--int8``.

    Raises:
        UserError: an image, a folder or the data set is not found, or the data set has other classes than the network.
    """
    files = find_files(config.calibration)
    training = None
    validation = None
    if config.data or config.dataset:
        dataset = config.dataset or loaded.card.dataset
        data = config.data or loaded.card.data
        _, validation = build_dataset_for_network(loaded.card, dataset, data, "val", config.pretrained)
        if not files:
            _, training = build_dataset_for_network(loaded.card, dataset, data, "train", config.pretrained)
    return Int8Inputs(Sizes(config.size, config.resize), files, training, validation)


def write_int8(config: OnnxConfig, loaded: LoadedNetwork, inputs: Int8Inputs) -> None:
    """Write NAME.int8.onnx beside NAME.onnx, and print how the two compare.

    Raises:
        UserError: onnxruntime cannot quantise the network, or an image cannot be read.
    """
    float_file = Path(config.output).expanduser()
    path = float_file.with_suffix(".int8.onnx")
    with TemporaryDirectory() as folder:
        file = Path(folder) / path.name
        quantise(float_file, file, inputs.read_calibration_images())
        align_corners = loaded.model.supervision[0].align_corners
        agreement = compare_files(float_file, file, inputs.read_comparison_images(), align_corners)
        write(path, lambda output: output.write(file.read_bytes()))
    print(describe_agreement(agreement, inputs.describe()))
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB): as {float_file.name}, with weights and maps of 8 bits")


if __name__ == "__main__":
    run_main(main)
