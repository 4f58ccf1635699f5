"""Score a network on a data set. Validation during training and eval.py both call this."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from engine.loader import load_eval_batches
from engine.lockstep import Lockstep
from engine.metrics import ASSISTED, Metrics, count_confusions
from engine.runtime import Runtime
from models.prediction import Predictor
from utils.distributed import all_reduce
from utils.errors import OutOfMemory, explain_out_of_memory
from utils.seeding import RowGenerator, derive_seed


def evaluate(
    predictor: Predictor,
    dataset: Dataset,
    num_classes: int,
    runtime: Runtime,
    workers: int | None = 0,
    seed: int = 0,
    batch_size: int = 1,
    on_prediction: Callable[[int, np.ndarray], None] | None = None,
    progress: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> Metrics:
    """Score a network on a data set. Each image counts once for any number of ranks.

    workers: loader processes; 0 loads in this process, None takes ``count_default_workers``.
    seed: the label noise of image i is a function of (seed, i).
    batch_size: of so many successive images, those of equal size go through the network together.
    on_prediction: called as ``(index, prediction [H, W])`` for each prediction of this rank.
    progress: show a bar on a terminal.
    should_stop: whether this rank is asked to stop.

    Raises:
        Stopped: a rank was asked to stop.
        UserError: this or another rank cannot read an image, or an image does not fit in the memory of this rank.
    """
    mark = f" {ASSISTED}" if predictor.noise is not None else ""
    scores = Scores(len(dataset), num_classes, runtime.device)
    batches = load_eval_batches(dataset, workers, runtime, batch_size)
    with closing(batches), switch_to_eval(predictor.model), make_bar(dataset, runtime, progress) as bar:
        for image, label, indices in Lockstep(batches, should_stop):
            generators = [RowGenerator(derive_seed(seed, index)) for index in indices.tolist()]
            predictions = predict_within_memory(predictor, image, label, generators)
            for index, prediction, truth in zip(indices.tolist(), predictions, label, strict=True):
                scores.add(index, prediction, truth)
                if on_prediction is not None:
                    on_prediction(index, prediction.cpu().numpy())
            update_bar(bar, len(indices), scores, mark)
    return scores.reduce()


class Scores:
    """Count the pixels of each label and prediction, in total and for each image."""

    def __init__(self, images: int, num_classes: int, device: torch.device) -> None:
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
        self.areas = torch.zeros(images, 3, num_classes, dtype=torch.int64, device=device)

    def add(self, index: int, prediction: Tensor, label: Tensor) -> None:
        """Count the pixels of one image."""
        counts = count_confusions(prediction, label, len(self.confusion))
        self.confusion += counts
        self.areas[index] = torch.stack([counts.diagonal(), counts.sum(1), counts.sum(0)])

    def compute_metrics_so_far(self, images: int) -> Metrics:
        """Return the metrics of the images that this rank has counted."""
        return Metrics(self.confusion.cpu().numpy(), images)

    def reduce(self) -> Metrics:
        """Return the metrics over all ranks."""
        all_reduce(self.areas)
        all_reduce(self.confusion)
        return Metrics(self.confusion.cpu().numpy(), len(self.areas), self.areas.cpu().numpy())


@contextmanager
def switch_to_eval(model: nn.Module) -> Iterator[None]:
    """Put a network into eval mode, and switch off cuDNN's search for the fastest algorithm.

    Images have many sizes, and a search for each would take longer than it saves. The former modes are restored after a
    success only, because a failure ends the run.
    """
    was_training = model.training
    was_searching = torch.backends.cudnn.benchmark
    model.eval()
    torch.backends.cudnn.benchmark = False
    yield
    model.train(was_training)
    torch.backends.cudnn.benchmark = was_searching


def make_bar(dataset: Dataset, runtime: Runtime, progress: bool) -> tqdm:
    """Make the progress bar of rank 0. It is shown on a terminal only."""
    total = len(range(runtime.rank, len(dataset), runtime.size))
    hidden = None if progress and runtime.is_main else True  # None: hidden unless the output is a terminal
    return tqdm(total=total, desc="eval", disable=hidden, leave=False)


def update_bar(bar: tqdm, images: int, scores: Scores, mark: str) -> None:
    """Advance the bar by some images. About every ten images, show the mIoU so far, followed by a mark."""
    bar.update(images)
    if not bar.disable and bar.n % 10 < images:
        miou = 100 * scores.compute_metrics_so_far(bar.n).miou()
        bar.set_postfix_str(f"mIoU so far {miou:.2f} %{mark}")


def predict_within_memory(
    predictor: Predictor, image: Tensor, label: Tensor, generators: Sequence[RowGenerator]
) -> Tensor:
    """Predict the classes of a batch. If it does not fit in memory, predict one image after another.

    Raises:
        UserError: a single image does not fit in memory.
    """
    size = "x".join(map(str, image.shape[-2:]))
    message = f"out of memory for one image of {size}: --amp bf16, or eval.py's --window H W"
    try:
        with explain_out_of_memory(message):
            return predictor.predict_classes(image, label, generators)
    except OutOfMemory:
        pass  # the next attempt comes after this block, which still holds tensors of the failed one
    torch.cuda.empty_cache()
    classes = []
    with explain_out_of_memory(message):
        for x, y, generator in zip(image.split(1), label.split(1), generators, strict=True):
            classes.append(predictor.predict_classes(x, y, [generator]))
        return torch.cat(classes)
