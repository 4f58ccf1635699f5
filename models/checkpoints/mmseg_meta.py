"""Read the entry ``meta`` of MMSegmentation's files: what shapes do not show, and the classes."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from models.architectures import list_options
from models.checkpoints.card import VALID_FORMS
from utils.errors import UserError

# settings of MMSegmentation that change a network but no shape -> the values that this project's networks have
SHAPELESS_SETTINGS = {
    "dilations": ("1,1,2,4", "1,12,24,36"),
    "dilation": ("1",),
    "multi_grid": (),
    "pool_scales": ("1,2,3,6",),
}
# how MMSegmentation's files normalise pixels, where their configuration says it -> the values that are known here
PIXEL_SETTINGS = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
CHANNEL_ORDER = re.compile(r"\b(?:bgr_to_rgb|to_rgb)=False")


class MmsegRecord(NamedTuple):
    """Hold what a file of MMSegmentation says about its network. Names and palette are empty if the file has none."""

    align_corners: bool
    class_names: list[str]
    palette: list[list[int]]


def read_mmseg_record(content: Mapping[str, Any], config: Mapping[str, Any], source: str) -> MmsegRecord:
    """Read the entry ``meta`` of MMSegmentation's files.

    config: the arguments of build_model for the network.

    Raises:
        UserError: a setting in its training configuration, which shapes do not show, has a value that is unknown here,
            or the network was trained on other pixels than this project's networks of MMSegmentation.
    """
    meta = _get_mapping(content, "meta")
    text = meta.get("cfg") or meta.get("config")
    text = text if isinstance(text, str) else ""
    _require_known_settings(text, source)
    _require_known_pixels(text, source)
    align_corners = False
    if "align_corners" in list_options(config["arch"]):
        align_corners = set(re.findall(r"align_corners=(\w+)", text)) == {"True"}
    described = _get_mapping(meta, "dataset_meta")
    num_classes = config["num_classes"]
    return MmsegRecord(
        align_corners=align_corners,
        class_names=_read_per_class("class_names", described.get("classes") or meta.get("CLASSES"), num_classes),
        palette=_read_per_class("palette", described.get("palette") or meta.get("PALETTE"), num_classes),
    )


def _get_mapping(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return an entry that should be a dictionary, or an empty one if it is missing or something else."""
    value = content.get(key)
    return value if isinstance(value, Mapping) else {}


def _require_known_settings(text: str, source: str) -> None:
    """Check the settings in MMSegmentation's configuration that change a network but no shape.

    Raises:
        UserError: a setting has a value that is not in SHAPELESS_SETTINGS.
    """
    for setting, known in SHAPELESS_SETTINGS.items():
        for value in re.findall(rf"\b{setting}=\(?([\d,\s]+)", text):  # a tuple may stand in several lines
            numbers = re.findall(r"\d+", value)
            if ",".join(numbers) not in known:
                raise UserError(
                    f"{source} was trained with {setting}={', '.join(numbers)}, which this project does not have"
                )


def _require_known_pixels(text: str, source: str) -> None:
    """Check that MMSegmentation's configuration normalises images with ImageNet's mean and deviation, as RGB.

    Raises:
        UserError: the configuration has another mean or deviation, or BGR channels.
    """
    for setting, known in PIXEL_SETTINGS.items():
        for value in re.findall(rf"\b{setting}=[\[(]([\d.,\s]+)[\])]", text):
            numbers = tuple(float(number) for number in value.split(",") if number.strip())
            if numbers != known:
                raise UserError(
                    f"{source} was trained on pixels with {setting}={list(numbers)}, this project's networks of "
                    f"MMSegmentation on those with {list(known)}: it would see wrong colours"
                )
    if CHANNEL_ORDER.search(text):
        raise UserError(f"{source} was trained on BGR pixels, this project's networks of MMSegmentation on RGB")


def _read_per_class(key: str, values: object, num_classes: int) -> list[Any]:
    """Return a list of one value for each class, or an empty list if ``values`` is anything else.

    key: "class_names" or "palette", which says the form of the values.
    """
    if not isinstance(values, (list, tuple)):
        return []
    values = [list(value) if isinstance(value, tuple) else value for value in values]
    return values if VALID_FORMS[key](values) and len(values) == num_classes else []
