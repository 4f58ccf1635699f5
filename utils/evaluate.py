"""The one evaluator: validation during training and eval.py both call it."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from utils.distributed import World, all_reduce_sum
from utils.loader import eval_batches
from utils.metrics import Metrics, confusion_matrix
from utils.pixels import PixelConvention
from utils.seeding import derive_seed
from utils.types import Draw

Window = tuple[int, int]


class Predictor:
    """``(image, label, draw) -> logits`` at label size, with one signature for teacher and student.

    image: uint8 RGB ``[B, 3, H, W]``; label ``[B, H, W]`` is looked at only by an assisted teacher, whose ``noise``
    turns it into input planes; draw: where that noise comes from.
    scales, flip: logits of the resized and mirrored inputs are averaged (LAD: eval.py). window: height and width of
    a sliding window with the given stride (default two thirds of it); overlapping logits are averaged.
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
        amp: torch.dtype | None = None,
    ) -> None:
        self.model, self.convention, self.noise = model, convention, noise
        self.scales, self.flip, self.window, self.amp = tuple(scales), flip, window, amp
        self.stride = stride or (window and tuple(max(1, side * 2 // 3) for side in window))
        self.align_corners = model.supervision[0].align_corners

    @torch.inference_mode()
    def __call__(self, image: Tensor, label: Tensor, draw: Draw) -> Tensor:
        """Logits ``[B, K, H, W]``, float32."""
        x = self.convention.normalize(image)
        if self.noise is not None:
            x = torch.cat([x, self.noise(label, draw)], 1)
        size = x.shape[-2:]
        views = [self._view(x, scale) for scale in self.scales]
        views += [self._view(x.flip(3), scale).flip(3) for scale in self.scales if self.flip]
        total = views[0] if len(views) == 1 else torch.stack(views).mean(0)
        assert total.shape[-2:] == size
        return total

    def _view(self, x: Tensor, scale: float) -> Tensor:
        size = x.shape[-2:]
        if scale != 1:
            scaled = [max(1, round(side * scale)) for side in size]
            x = F.interpolate(x, scaled, mode="bilinear", align_corners=True)
        logits = self._slide(x) if self.window else self._upsampled(x)
        return logits if logits.shape[-2:] == size else self._resize(logits, size)

    def _upsampled(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=self.amp, enabled=self.amp is not None):
            logits = self.model(x, with_aux=False).logits
        return self._resize(logits.float(), x.shape[-2:])

    def _resize(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        return F.interpolate(logits, size, mode="bilinear", align_corners=self.align_corners)

    def _slide(self, x: Tensor) -> Tensor:
        """Mean of the logits of overlapping windows; the last row and column are moved inwards to fit."""
        height, width = x.shape[-2:]
        total, count = 0, x.new_zeros(height, width)
        for top in _starts(height, self.window[0], self.stride[0]):
            for left in _starts(width, self.window[1], self.stride[1]):
                box = slice(top, top + self.window[0]), slice(left, left + self.window[1])
                logits = self._upsampled(x[..., box[0], box[1]])
                if isinstance(total, int):
                    total = logits.new_zeros(*logits.shape[:2], height, width)
                total[..., box[0], box[1]] += logits
                count[box] += 1
        return total / count


def _starts(side: int, window: int, stride: int) -> list[int]:
    last = max(side - window, 0)
    return sorted({*range(0, last, stride), last})


def evaluate(
    predict: Predictor,
    dataset: Dataset,
    num_classes: int,
    world: World,
    workers: int = 0,
    seed: int = 0,
    on_prediction: Callable[[int, np.ndarray], None] | None = None,
    progress: bool = False,
) -> Metrics:
    """Confusion matrix over the data set, each image counted once for any number of processes.

    ``on_prediction(index, prediction [H, W])`` sees every prediction of this process. The label noise of image i is a
    function of (seed, i). The network is put into eval mode for the duration.
    """
    was_training = predict.model.training
    predict.model.eval()
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=world.device)
    batches = eval_batches(dataset, workers, world)
    total = len(range(world.rank, len(dataset), world.size))
    for image, label, index in tqdm(batches, "eval", total, disable=not (progress and world.is_main), leave=False):
        i = int(index)
        prediction = predict(image, label, Draw(derive_seed(seed, i))).argmax(1)
        confusion += confusion_matrix(prediction, label, num_classes)
        if on_prediction is not None:
            on_prediction(i, prediction[0].cpu().numpy())
    predict.model.train(was_training)
    return Metrics(all_reduce_sum(confusion).cpu().numpy(), len(dataset))
