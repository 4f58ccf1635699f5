"""Fit the settings to the training images (``--fit-to-data``): their size limits the crop, their number the length."""

import statistics
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from datasets import build_dataset, get_dataset_spec
from engine.runtime import Runtime
from engine.settings import TrainConfig
from utils.options import convert, format_value, get_flag
from utils.pictures import read_size

C = TypeVar("C", bound=TrainConfig)

FITTED = ("crop_size", "batch_size", "max_iterations", "val_per_iters", "save_per_iters")
EPOCHS = 50  # how often every image is seen
SHORTEST = 500  # iterations: less is too short for a learning rate to decay, however few the images
VALIDATIONS = 10
DIVISOR = 32  # of a crop's sides: the largest output stride of a backbone
LOOKED_AT = 50  # images whose size is read at least, or all where there are fewer; always less than twice as many


def fit_to_data(settings: C, given: Collection[str], saved: Mapping[str, Any], runtime: Runtime) -> C:
    """Fit crop, batch and length to the training images, where the recipe asks for it.

    The settings' own values of these are upper bounds. A run is validated and saved every tenth of its length. What a
    flag gives stays as it is. A run that is resumed keeps what was fitted at its start.

    given: the names of the settings that flags give. saved: the settings of the run that is resumed, as
    ``read_saved_settings`` returns them.

    Raises:
        UserError: the data set or an image cannot be read, or the config.yaml of a resumed run holds a wrong value.
    """
    if not settings.fit_to_data or not get_dataset_spec(settings.dataset, settings.data, settings.classes).needs_root:
        return settings
    return replace(settings, **runtime.on_rank0(_find_fitted_settings, settings, given, saved, runtime.size))


def _find_fitted_settings(
    settings: TrainConfig, given: Collection[str], saved: Mapping[str, Any], ranks: int
) -> dict[str, Any]:
    """Return the fitted settings without those of ``given``, from the resumed run if there is one. Print them."""
    if all(name in saved for name in FITTED):
        where = "config.yaml of the run that is resumed"
        fitted = {name: convert(type(settings), name, saved[name], f"{where}: {name}") for name in FITTED}
    else:
        fitted = compute_fitted_settings(settings, measure_images(settings), ranks, given)
    fitted = {name: value for name, value in fitted.items() if name not in given}
    text = " ".join(f"{get_flag(name)} {format_value(value)}" for name, value in fitted.items())
    print(f"fitted to the training images of {settings.data or settings.dataset}: {text}")
    return fitted


def compute_fitted_settings(
    settings: TrainConfig, sizes: Mapping[str, Any], ranks: int = 1, given: Collection[str] = ()
) -> dict[str, Any]:
    """Compute the fitted settings.

    sizes: as ``measure_images`` returns them. given: the settings that flags give. The length follows from a given
    batch size, and the intervals from a given length.
    """
    height, width = settings.crop_size
    crop_size = (fit_side(height, sizes["height"]), fit_side(width, sizes["width"]))
    batch_size = settings.batch_size
    if "batch_size" not in given:
        batch_size = fit_batch_size(settings, sizes["count"], ranks)
    max_iterations = settings.max_iterations
    if "max_iterations" not in given:
        max_iterations = min(max_iterations, max(SHORTEST, EPOCHS * sizes["count"] // batch_size))
    interval = max(1, max_iterations // VALIDATIONS)
    return {
        "crop_size": crop_size,
        "batch_size": batch_size,
        "max_iterations": max_iterations,
        "val_per_iters": interval,
        "save_per_iters": interval,
    }


def fit_side(side: int, image_side: float) -> int:
    """Return the side of a crop, reduced for small images to a multiple of DIVISOR."""
    return min(side, max(DIVISOR, int(image_side) // DIVISOR * DIVISOR))


def fit_batch_size(settings: TrainConfig, count: int, ranks: int) -> int:
    """Return the batch size, reduced to the number of images and to a multiple of ranks times ``accumulate``.

    If there are fewer images than that product, the product is taken. A smaller batch size of the settings is kept.
    """
    parts = ranks * settings.accumulate
    fitting = min(settings.batch_size, count) // parts * parts
    return max(fitting, min(settings.batch_size, parts))


def measure_images(settings: TrainConfig) -> dict[str, Any]:
    """Return ``count``, the number of training images, and the median ``height`` and ``width`` of some, evenly spaced.

    Raises:
        UserError: the data set or an image cannot be read.
    """
    dataset = build_dataset(settings.dataset, settings.data, "train", settings.classes)
    step = max(1, len(dataset) // LOOKED_AT)
    heights = []
    widths = []
    for index in range(0, len(dataset), step):
        height, width = read_size(dataset.pairs[index][0])
        heights.append(height)
        widths.append(width)
    return {"count": len(dataset), "height": statistics.median(heights), "width": statistics.median(widths)}
