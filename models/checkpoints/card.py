"""What a checkpoint says about its network besides the weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from utils.errors import UserError
from utils.files import is_color, is_list
from utils.pixels import CONVENTIONS

FORMAT = 1  # of the cards this version writes
REQUIRED = ("num_classes", "class_names", "palette", "dataset", "data", "pixels", "label_noise")
TRAINING_STATE = ("optimizer", "scaler", "losses", "frozen_norms")


def _is_noise(value: object) -> bool:
    if not isinstance(value, Mapping) or {*value} - {"code_std"} != {"codes", "pixel_std", "scale"}:
        return False
    return all(type(item) is str if key == "codes" else type(item) in (int, float) for key, item in value.items())


KINDS: dict[str, Callable[[Any], bool]] = {  # of what a file says
    **dict.fromkeys(("dataset", "data", "start", "source"), lambda value: type(value) is str),
    "pixels": lambda value: type(value) is str and value in CONVENTIONS,
    "class_names": lambda value: is_list(value, str),
    "palette": lambda value: isinstance(value, (list, tuple)) and all(map(is_color, value)),
    "label_noise": lambda value: value is None or _is_noise(value),
    "config": lambda value: isinstance(value, Mapping),
}


@dataclass(frozen=True)
class Card:
    """Plain values only. Of a file that does not know them, names, palette and data set are empty."""

    arch: Mapping[str, Any]  # arguments of build_model
    class_names: Sequence[str] = ()
    palette: Sequence[Sequence[int]] = ()
    dataset: str = ""
    data: str = ""
    pixels: str = ""
    label_noise: Mapping[str, Any] | None = None  # arguments of LabelNoise; None: it sees the image only
    start: str = ""  # what its training started from, in words
    source: str = ""  # of which code base's file, where not this project's
    training: Mapping[str, Any] = field(default_factory=dict)  # iteration, best_miou, config, ...

    @property
    def num_classes(self) -> int:
        return self.arch["num_classes"]

    @property
    def crop_size(self) -> tuple[int, int] | None:
        """Return height and width of the crops it was trained on; None where the file does not say."""
        config = self.training.get("config", {})
        size = config.get("crop_size") if isinstance(config, Mapping) else None
        return tuple(size) if is_list(size, int) and len(size) == 2 else None

    def entries(self) -> dict[str, Any]:
        """As it lies in a file."""
        values = asdict(self) | {"class_names": list(self.class_names), "palette": [list(c) for c in self.palette]}
        training = values.pop("training")
        return {"format": FORMAT, "num_classes": self.num_classes, **values, **training}


def read_card(content: Mapping[str, Any], source: object) -> Card:
    """Of a file's content, weights and training state left out.

    Raises UserError: not of this version, or incomplete.
    """
    missing = [key for key in REQUIRED if key not in content]
    if content.get("format") != FORMAT or missing or not isinstance(content.get("model"), Mapping):
        what = f"no {missing[0]!r}" if missing else f"format {content.get('format')!r}, not {FORMAT}, or no weights"
        raise UserError(f"{source} is no checkpoint of this version: {what}")
    arch = content["arch"]
    if not isinstance(arch, Mapping) or arch.get("num_classes") != content["num_classes"]:
        raise UserError(f"{source} does not say which network it holds")
    for key, holds in KINDS.items():
        if key in content and not holds(content[key]):
            raise UserError(f"{source} is damaged: {key} is {str(content[key])[:60]!r}")
    own = {item.name for item in fields(Card)} - {"training"}
    training = {k: v for k, v in content.items() if k not in {*own, "format", "num_classes", "model", *TRAINING_STATE}}
    return Card(**{key: content[key] for key in own & content.keys()}, training=training)
