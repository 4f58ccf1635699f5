"""Whether an ONNX file computes what the network does."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from datasets.files import read_image
from utils.errors import UserError, first_line

CHECKED_SIZES = ((97, 131), (128, 64), (65, 200))  # random images


def compare(path: Path, network: nn.Module, labels: bool, images: dict[str, Tensor]) -> list[tuple[str, str, float]]:
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
        if labels:
            rows.append((name, "", float((ours == theirs).mean())))
        else:
            difference, largest = np.abs(ours - theirs).max(), np.abs(ours).max()
            words = f"logits up to {largest:.3g} differ by at most {difference:.1e}, "
            rows.append((name, words, float((ours.argmax(1) == theirs.argmax(1)).mean())))
    return rows


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
