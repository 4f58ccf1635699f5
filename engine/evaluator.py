"""The one evaluator: validation during training and eval.py both call it."""

from collections.abc import Callable, Sequence
from contextlib import closing, suppress

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from engine.loader import eval_batches
from engine.lockstep import InStep
from engine.metrics import Metrics, confusion_matrix
from engine.runtime import Runtime
from models.prediction import Predictor
from utils.errors import UserError
from utils.seeding import derive_seed
from utils.types import Draw


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
