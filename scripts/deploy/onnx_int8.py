"""Quantise an ONNX file: write it with weights and maps of 8 bits, and compare the two files."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from datasets import choose_evenly
from datasets.base import SegmentationDataset
from datasets.files import IMAGE_SUFFIXES, walk_images
from engine.metrics import Metrics, count_confusions
from models.prediction import resize_images_to_fit
from utils.bilinear import upsample_argmax
from utils.errors import UserError, get_first_line
from utils.pictures import read_image

MOST_IMAGES = 100  # a file is calibrated with at most this many images, evenly spaced over those that are given


class Sample(NamedTuple):
    """Hold the image that an ONNX file is run on, uint8 ``[1, 3, h, w]``, and its label, uint8 ``[H, W]``, if any.

    The label keeps its own size when the image is resized.
    """

    image: np.ndarray
    label: np.ndarray | None = None


class Sizes(NamedTuple):
    """Say to which size images are brought: a ``fixed`` height and width, or what they ``fit``, a long and short side.

    With neither, images keep their size.
    """

    fixed: tuple[int, int] | None = None
    fit: tuple[int, int] | None = None

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Resize an image, RGB uint8 ``[H, W, 3]``. Return it as uint8 ``[1, 3, h, w]``."""
        if self.fixed:
            height, width = self.fixed
            pixels = cv2.resize(pixels, (width, height))
        image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]
        if self.fit:
            image = resize_images_to_fit(image, self.fit)
        return image.numpy()


class Agreement(NamedTuple):
    """Hold how an 8-bit file compares with its float file: the share of pixels of equal class, and the mIoU of both.

    The mIoU is NaN without labels.
    """

    equal: float
    float_miou: float
    int8_miou: float


def find_files(given: Sequence[str]) -> list[Path]:
    """Find image files: those that are given, and all in folders that are given. The messages name ``--calibration``.

    Raises:
        UserError: there is no such file or folder, or a folder holds no images.
    """
    found: list[Path] = []
    for text in given:
        path = Path(text).expanduser()
        if path.is_file():
            found.append(path)
            continue
        if not path.is_dir():
            raise UserError(f"--calibration {path}: no such file or folder")
        inside = [folder / name for folder, names in walk_images(path) for name in names]
        if not inside:
            raise UserError(f"--calibration {path} holds no images ({' '.join(IMAGE_SUFFIXES)})")
        found += inside
    return found


def read_files(files: Sequence[Path], sizes: Sizes) -> Iterator[Sample]:
    """Read image files one after another, at most MOST_IMAGES of them.

    Raises:
        UserError: a file cannot be read.
    """
    for index in choose_evenly(len(files), MOST_IMAGES):
        yield Sample(sizes.apply(read_image(files[index], behind="white")))


def read_dataset(dataset: SegmentationDataset, indices: Iterable[int], sizes: Sizes) -> Iterator[Sample]:
    """Read images of a data set with their labels, one after another.

    Raises:
        UserError: a file cannot be read.
    """
    for index in indices:
        pixels, label = dataset.read(index)
        yield Sample(sizes.apply(pixels), label)


class CalibrationImages:
    """Hand out images in the form that onnxruntime's calibration asks for."""

    def __init__(self, samples: Iterator[Sample]) -> None:
        self.samples = samples

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the inputs of the next run, or None at the end."""
        sample = next(self.samples, None)
        return None if sample is None else {"image": sample.image}


def quantise(file: Path, target: Path, samples: Iterator[Sample]) -> None:
    """Write the network of the ONNX file ``file`` to ``target``, with weights and maps of 8 bits.

    samples: images that show the range of every map.

    Static quantisation of onnxruntime in the QDQ form. Weights are signed, with a scale for each channel. Maps are
    unsigned: onnxruntime then joins every convolution with its activation, which with signed maps it does not. The
    file is prepared as the library recommends: constants and BatchNorm are folded first. Its symbolic shape inference
    is left out, because it fails on networks for images of any size and the convolutions do not need it.

    Raises:
        UserError: onnxruntime cannot quantise the network, or a sample cannot be read.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        try:
            quant_pre_process(str(file), str(prepared), skip_symbolic_shape=True)
            float_nodes = find_upsampling(onnx.load(prepared).graph)
            quantize_static(
                str(prepared),
                str(target),
                CalibrationImages(samples),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=float_nodes,
            )
        except UserError:
            raise
        except Exception as error:  # onnxruntime's errors have no common base class
            raise UserError(f"--int8: onnxruntime cannot quantise the network: {get_first_line(error)}") from error


def find_upsampling(graph: Any) -> list[str]:
    """Return the names of the nodes after the last convolution: the upsampling of the logits, which stays in float."""
    producers = {output: node for node in graph.node for output in node.output}
    names = []
    node = producers.get(graph.output[0].name)
    while node is not None and node.op_type != "Conv":
        names.append(node.name)
        node = producers.get(node.input[0])
    return names


def compare_files(file: Path, int8_file: Path, samples: Iterable[Sample], align_corners: bool) -> Agreement:
    """Run both files on images, and compare the classes of their pixels: with each other, and with the labels, if any.

    align_corners: how logits are upsampled to the size of a label that is larger than the image.
    """
    import onnxruntime

    sessions = [
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]) for path in (file, int8_file)
    ]
    classes = sessions[0].get_outputs()[0].shape[1]
    confusions = [torch.zeros(classes, classes, dtype=torch.int64) for _ in sessions]
    equal = 0
    pixels = 0
    for image, label in samples:
        predictions = []
        for session, confusion in zip(sessions, confusions, strict=True):
            (logits,) = session.run(None, {"image": image})
            size = logits.shape[-2:] if label is None else label.shape
            prediction = upsample_argmax(torch.from_numpy(logits), size, align_corners)[0]
            predictions.append(prediction)
            if label is not None:
                confusion += count_confusions(prediction, torch.from_numpy(label.copy()), classes)
        equal += int((predictions[0] == predictions[1]).sum())
        pixels += predictions[0].numel()
    float_miou, int8_miou = (Metrics(confusion.numpy(), 0).miou() for confusion in confusions)
    return Agreement(equal / pixels, float_miou, int8_miou)


def describe_agreement(agreement: Agreement, images: str) -> str:
    """Return a line on how the two files compare. images: a few words on the images that they ran on."""
    text = f"int8 and float32: equal classes {100 * agreement.equal:.2f} % on {images}"
    if np.isnan(agreement.float_miou):
        return text
    loss = 100 * (agreement.float_miou - agreement.int8_miou)
    scores = f"mIoU {100 * agreement.int8_miou:.2f} % instead of {100 * agreement.float_miou:.2f} %"
    return f"{text}; {scores} (loss {loss:.2f})"
