"""Make the picture that a run shows in TensorBoard."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from datasets import choose_evenly
from datasets.base import SegmentationDataset
from engine.evaluator import predict_within_memory
from engine.metrics import ASSISTED
from models.prediction import Predictor
from utils.colors import choose_strongest_plane, colorize, draw_error_map, paint_diverging
from utils.seeding import RowGenerator, derive_seed
from utils.types import Rgb

MAX_RATIO = 4  # of width to height, of one picture


def make_preview(
    predictor: Predictor, dataset: SegmentationDataset, palette: Sequence[Rgb], count: int = 4
) -> np.ndarray:
    """Return an RGB picture with a row for each of a few fixed images.

    A row shows image, label, noised label (of an assisted network), prediction and error.

    Raises:
        UserError: an image cannot be read, or does not fit in memory.
    """
    indices = choose_evenly(len(dataset), count)
    return tile([make_row(predictor, dataset, index, palette) for index in indices])


def make_row(
    predictor: Predictor, dataset: SegmentationDataset, index: int, palette: Sequence[Rgb]
) -> dict[str, np.ndarray]:
    """Return the pictures of one image, by title."""
    image, label = dataset.load_sample(index)
    device = next(predictor.model.parameters()).device
    labels = label[None].to(device)
    generator = RowGenerator(derive_seed(0, index))
    prediction = predict_within_memory(predictor, image[None].to(device), labels, [generator])[0].cpu().numpy()
    row = {"image": image.permute(1, 2, 0).numpy(), "label": colorize(label.numpy(), palette)}
    title = "prediction"
    if predictor.noise is not None:
        title = f"prediction, {ASSISTED}"
        plane = predictor.noise(labels, generator)[0].cpu().numpy()
        row["noised label"] = paint_diverging(choose_strongest_plane(plane))
    row[title] = colorize(prediction, palette)
    row["error"] = draw_error_map(prediction, label.numpy())
    return row


def tile(rows: Sequence[Mapping[str, np.ndarray]], height: int = 192, gap: int = 4) -> np.ndarray:
    """Join rows of RGB pictures by title, on white. The first row bears the titles.

    Pictures are scaled to ``height``, and wider ones than MAX_RATIO allows to that width. Those of a row have one size.
    """
    strips = []
    for row in rows:
        pictures = [scale_to_fit(picture, height, MAX_RATIO * height) for picture in row.values()]
        if not strips:
            titled = zip(row, pictures, strict=True)
            pictures = [np.vstack([draw_heading(title, p.shape[1]), p]) for title, p in titled]
        strips.append(np.hstack([pad_white(picture, ((gap, gap), (gap, gap))) for picture in pictures]))
    width = max(strip.shape[1] for strip in strips)
    return np.vstack([pad_white(strip, ((0, 0), (0, width - strip.shape[1]))) for strip in strips])


def scale_to_fit(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale a picture to a height, or to a width if it would be wider, without new colours."""
    scale = min(height / picture.shape[0], width / picture.shape[1])
    size = [max(1, round(side * scale)) for side in (picture.shape[1], picture.shape[0])]
    return cv2.resize(picture, size, interpolation=cv2.INTER_NEAREST)


def pad_white(picture: np.ndarray, padding: tuple[tuple[int, int], tuple[int, int]]) -> np.ndarray:
    """Add white above and below, left and right."""
    return np.pad(picture, (*padding, (0, 0)), constant_values=255)


def draw_heading(text: str, width: int, height: int = 18) -> np.ndarray:
    """Return a text in black on white, RGB; smaller where it would be wider than ``width``."""
    strip = np.full((height, width, 3), 255, np.uint8)
    font = cv2.FONT_HERSHEY_SIMPLEX
    (text_width, _), _ = cv2.getTextSize(text, font, 1.0, 1)
    scale = min(0.5, width / max(text_width, 1))
    return cv2.putText(strip, text, (0, height - 5), font, scale, (0, 0, 0), 1, cv2.LINE_AA)
