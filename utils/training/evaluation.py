"""The one evaluator: validation during training and eval.py both call it."""

from collections.abc import Callable, Sequence
from contextlib import closing, suppress

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from utils.bilinear import resize, upsampled_argmax
from utils.errors import UserError
from utils.pixels import PixelConvention
from utils.seeding import derive_seed
from utils.training.guards import InStep
from utils.training.loader import eval_batches
from utils.training.metrics import Metrics, confusion_matrix
from utils.training.protocol import resize_to_fit
from utils.training.runtime import Runtime
from utils.types import Draw

Window = tuple[int, int]


class Predictor:
    """``(image, label, draws) -> logits`` at label size, with one signature for teacher and student.

    image: uint8 RGB ``[B, 3, H, W]``; label ``[B, H, W]`` is looked at only by an assisted teacher, whose ``noise``
    turns it into input planes; draws: where that noise comes from, one for each image.
    scales, flip: logits of the resized and mirrored inputs are averaged (LAD: eval.py). window: height and width of
    a sliding window with the given stride (default two thirds of it); overlapping logits are averaged. resize: the
    sides that images are resized to fit first; their logits are resized to that size, then to the image's.

    Raises UserError: a stride that leaves pixels out.
    """

    def __init__(
        self,
        model: nn.Module,
        convention: PixelConvention,
        noise: nn.Module | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        window: Window | None = None,
        stride: Window | None = None,
        runtime: Runtime | None = None,
        resize: tuple[int, int] | None = None,
    ) -> None:
        if stride and not (window and all(step <= side for step, side in zip(stride, window, strict=True))):
            step = "{} {}".format(*stride)
            raise UserError(f"--stride {step} needs a --window of at least its size: no pixel may lie between two")
        self.model, self.convention, self.noise, self.runtime = model, convention, noise, runtime or Runtime()
        self.resize, self.window = resize, window
        self.views = [(scale, mirrored) for mirrored in (False, True)[: 1 + flip] for scale in scales]
        self.stride = stride or (window and tuple(max(1, side * 2 // 3) for side in window))
        self.align_corners = model.supervision[0].align_corners

    @torch.inference_mode()
    def __call__(self, image: Tensor, label: Tensor, draws: Sequence[Draw]) -> Tensor:
        """Logits ``[B, K, H, W]``, float32."""
        x, total = self._input(image, label, draws), None
        for scale, mirrored in self.views:
            logits = resize(self._view(x.flip(3) if mirrored else x, scale), image.shape[-2:], self.align_corners)
            logits = logits.flip(3) if mirrored else logits
            total = logits if total is None else total.add_(logits)
        return total / len(self.views) if len(self.views) > 1 else total

    @torch.inference_mode()
    def classes(self, image: Tensor, label: Tensor, draws: Sequence[Draw]) -> Tensor:
        """The class of every pixel, int64 ``[B, H, W]``; a single view never holds full-size logits."""
        if len(self.views) > 1:
            return self(image, label, draws).argmax(1)
        logits = self._view(self._input(image, label, draws), self.views[0][0])
        return upsampled_argmax(logits, image.shape[-2:], self.align_corners)

    def _input(self, image: Tensor, label: Tensor, draws: Sequence[Draw]) -> Tensor:
        if self.resize:
            image, label = resize_to_fit(image, label, self.resize)
        x = self.convention.normalize(image)
        if self.noise is None:
            return x
        rows = zip(x.split(1), label.split(1), draws, strict=True)
        return torch.cat([self.noise.beside(*row) for row in rows])

    def _view(self, x: Tensor, scale: float) -> Tensor:
        """Logits at head resolution, or at the input's."""
        if scale != 1:
            scaled = [max(1, int(side * scale)) for side in x.shape[-2:]]
            x = F.interpolate(x, scaled, mode="bilinear", align_corners=True)
        logits = self._slide(x) if self.window else self._logits(x)
        return resize(logits, x.shape[-2:], self.align_corners) if self.resize else logits

    def _logits(self, x: Tensor) -> Tensor:
        """At head resolution."""
        with self.runtime.autocast():
            return self.model(x, with_aux=False).logits.float()

    def _slide(self, x: Tensor) -> Tensor:
        """Mean of the logits of overlapping windows; the last row and column are moved inwards to fit."""
        height, width = x.shape[-2:]
        total, count = None, x.new_zeros(height, width)
        for top in _starts(height, self.window[0], self.stride[0]):
            for left in _starts(width, self.window[1], self.stride[1]):
                box = ..., slice(top, top + self.window[0]), slice(left, left + self.window[1])
                logits = resize(self._logits(x[box]), x[box].shape[-2:], self.align_corners)
                if total is None:
                    total = logits.new_zeros(*logits.shape[:2], height, width)
                total[box] += logits
                count[box] += 1
        return total / count


def _starts(side: int, window: int, stride: int) -> list[int]:
    last = max(side - window, 0)
    return sorted({*range(0, last, stride), last})


def _fitting(predict: Predictor, image: Tensor, label: Tensor, draws: Sequence[Draw]) -> Tensor:
    """The classes of a batch; image by image where the device's memory does not hold it at once; a UserError where it
    does not hold one image."""
    with suppress(torch.OutOfMemoryError):
        return predict.classes(image, label, draws)
    torch.cuda.empty_cache()
    rows = zip(image.split(1), label.split(1), draws, strict=True)
    try:
        return torch.cat([predict.classes(x, y, [draw]) for x, y, draw in rows])
    except torch.OutOfMemoryError as error:
        size = "x".join(map(str, image.shape[-2:]))
        raise UserError(f"out of memory for one image of {size}: --amp bf16, or eval.py's --window H W") from error


def evaluate(
    predict: Predictor,
    dataset: Dataset,
    num_classes: int,
    runtime: Runtime,
    workers: int = 0,
    seed: int = 0,
    batch_size: int = 1,
    on_prediction: Callable[[int, np.ndarray], None] | None = None,
    progress: bool = False,
    asked: Callable[[], bool] = lambda: False,
) -> Metrics:
    """Scores over the data set, each image counted once for any number of processes.

    ``on_prediction(index, prediction [H, W])`` sees every prediction of this process. The label noise of image i is a
    function of (seed, i). Images of equal size among ``batch_size`` neighbours go through the network together. The
    network is put into eval mode for the duration. A failure of one process, or being ``asked`` to stop, ends all.
    """
    was_training, searched = predict.model.training, torch.backends.cudnn.benchmark
    predict.model.eval()
    torch.backends.cudnn.benchmark = False  # images of many sizes: a search for each would take longer than it saves
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=runtime.device)
    areas = torch.zeros(len(dataset), 3, num_classes, dtype=torch.int64, device=runtime.device)
    total = len(range(runtime.rank, len(dataset), runtime.size))
    mark = " LABEL-ASSISTED" if predict.noise is not None else ""
    hidden = None if progress and runtime.is_main else True  # None: hidden unless a terminal looks on
    batches = eval_batches(dataset, workers, runtime, batch_size)
    with closing(batches), tqdm(total=total, desc="eval", disable=hidden, leave=False) as bar:
        for image, label, indices in InStep(batches, asked):
            draws = [Draw(derive_seed(seed, i)) for i in indices.tolist()]
            predictions = _fitting(predict, image, label, draws)
            for i, prediction, truth in zip(indices.tolist(), predictions, label, strict=True):
                counts = confusion_matrix(prediction, truth, num_classes)
                confusion += counts
                areas[i] = torch.stack([counts.diagonal(), counts.sum(1), counts.sum(0)])
                if on_prediction is not None:
                    on_prediction(i, prediction.cpu().numpy())
            bar.update(len(indices))
            if not bar.disable and bar.n % 10 < len(indices):
                bar.set_postfix_str(f"mIoU so far {100 * Metrics(confusion.cpu().numpy(), bar.n).miou():.2f} %{mark}")
    predict.model.train(was_training)
    torch.backends.cudnn.benchmark = searched
    runtime.reduce(areas)
    return Metrics(runtime.reduce(confusion).cpu().numpy(), len(dataset), areas.cpu().numpy())
