"""The picture that a run shows in TensorBoard."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from torch.utils.data import Dataset

from models.prediction import Predictor
from utils.colors import colorize, diverging, error_map, strongest
from utils.errors import UserError
from utils.seeding import derive_seed
from utils.types import Draw, Rgb


def preview(predict: Predictor, dataset: Dataset, palette: Sequence[Rgb], count: int = 4) -> np.ndarray:
    """Rows of image | label | noised label (assisted) | prediction | error for a few fixed images, RGB."""
    rows = []
    for i in np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int).tolist():
        sample = dataset[i]
        if isinstance(sample, UserError):
            raise sample
        image, label, _ = sample
        draw, device = Draw(derive_seed(0, i)), next(predict.model.parameters()).device
        prediction = predict.classes(image[None].to(device), label[None].to(device), [draw])[0].cpu().numpy()
        assisted = predict.noise is not None
        row = {"image": image.permute(1, 2, 0).numpy(), "label": colorize(label.numpy(), palette)}
        if assisted:
            plane = predict.noise(label[None].to(device), draw)[0].cpu().numpy()
            row["noised label"] = diverging(strongest(plane))
        row["prediction, LABEL-ASSISTED" if assisted else "prediction"] = colorize(prediction, palette)
        row["error"] = error_map(prediction, label.numpy())
        rows.append(row)
    return tile(rows)


def heading(text: str, width: int, height: int = 18) -> np.ndarray:
    """Black on white, RGB; smaller where it would be wider than ``width``."""
    strip = np.full((height, width, 3), 255, np.uint8)
    font = cv2.FONT_HERSHEY_SIMPLEX
    (wide, _), _ = cv2.getTextSize(text, font, 1.0, 1)
    scale = min(0.5, width / max(wide, 1))
    return cv2.putText(strip, text, (0, height - 5), font, scale, (0, 0, 0), 1, cv2.LINE_AA)


def tile(rows: Sequence[Mapping[str, np.ndarray]], height: int = 192, gap: int = 4) -> np.ndarray:
    """Rows of RGB pictures by title, each scaled to ``height``, on white; the first row bears the titles."""
    strips = []
    for row in rows:
        scaled = [
            cv2.resize(p, (max(1, round(p.shape[1] * height / p.shape[0])), height), interpolation=cv2.INTER_NEAREST)
            for p in row.values()
        ]
        if not strips:
            scaled = [np.vstack([heading(title, p.shape[1]), p]) for title, p in zip(row, scaled, strict=True)]
        strips.append(np.hstack([np.pad(p, ((gap, gap), (gap, gap), (0, 0)), constant_values=255) for p in scaled]))
    width = max(strip.shape[1] for strip in strips)
    return np.vstack([np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0)), constant_values=255) for s in strips])
