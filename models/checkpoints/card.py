"""The card of a checkpoint: what the file says about its network besides the weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from utils.errors import UserError
from utils.files import is_color, is_list
from utils.pixels import CONVENTIONS

FORMAT = 1  # of the cards that this version writes and reads
REQUIRED = ("num_classes", "class_names", "palette", "dataset", "data", "pixels", "label_noise")
SINGLE_LOGIT = "single_logit"  # entry of a checkpoint, True where two classes were made of another project's one logit
TRAINING_STATE = ("optimizer", "scaler", "losses", "frozen_norms")  # needed to resume, not part of the card


def _is_text(value: object) -> bool:
    return type(value) is str


def _is_pixel_convention(value: object) -> bool:
    return _is_text(value) and value in CONVENTIONS


def _is_list_of_text(value: object) -> bool:
    return is_list(value, str)


def _is_palette(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(map(is_color, value))


def _is_label_noise(value: object) -> bool:
    """Return whether a value is None or holds the arguments of LabelNoise, of which ``code_std`` is optional."""
    if value is None:
        return True
    if not isinstance(value, Mapping) or set(value) - {"code_std"} != {"codes", "pixel_std", "scale"}:
        return False
    numbers = [item for key, item in value.items() if key != "codes"]
    return _is_text(value["codes"]) and all(type(number) in (int, float) for number in numbers)


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping)


# key of a card -> function that returns whether a value from a file has the right form
VALID_FORMS: dict[str, Callable[[object], bool]] = {
    "dataset": _is_text,
    "data": _is_text,
    "start": _is_text,
    "source": _is_text,
    "pixels": _is_pixel_convention,
    "class_names": _is_list_of_text,
    "palette": _is_palette,
    "label_noise": _is_label_noise,
    "config": _is_mapping,
}


@dataclass(frozen=True)
class Card:
    """Describe a network in plain values. Class names, palette and data set are empty where a file lacks them."""

    arch: Mapping[str, Any]  # arguments of build_model
    class_names: Sequence[str] = ()
    palette: Sequence[Sequence[int]] = ()
    dataset: str = ""  # name of the data set
    data: str = ""  # root of the data set
    pixels: str = ""  # a key of utils.pixels.CONVENTIONS
    label_noise: Mapping[str, Any] | None = None  # arguments of LabelNoise; None: the network sees the image only
    start: str = ""  # which weights its training started from, in words
    source: str = ""  # the project whose file it is, if it is not this project's
    training: Mapping[str, Any] = field(default_factory=dict)  # iteration, best_miou, config, ...

    @property
    def num_classes(self) -> int:
        """Return the number of classes."""
        return self.arch["num_classes"]

    @property
    def reads_label(self) -> bool:
        """Return whether the network is a label-assisted teacher."""
        return bool(self.label_noise)

    @property
    def has_single_logit(self) -> bool:
        """Return whether the network's two classes were made of one logit: class 1 is where it is above 0."""
        return bool(self.training.get(SINGLE_LOGIT))

    @property
    def crop_size(self) -> tuple[int, int] | None:
        """Return height and width of the crops the network was trained on, or None if the file does not say."""
        config = self.training.get("config", {})
        size = config.get("crop_size") if isinstance(config, Mapping) else None
        return tuple(size) if is_list(size, int) and len(size) == 2 else None

    def entries(self) -> dict[str, Any]:
        """Return the card as the entries of a checkpoint. The values in ``training`` become entries of their own."""
        values = asdict(self)
        values["class_names"] = list(self.class_names)
        values["palette"] = [list(color) for color in self.palette]
        training = values.pop("training")
        return {"format": FORMAT, "num_classes": self.num_classes, **values, **training}


def read_card(content: Mapping[str, Any], source: object) -> Card:
    """Make the card from the content of a checkpoint. Weights and training state are left out.

    source: the file, for messages.

    Raises:
        UserError: the checkpoint is of another version, incomplete, or has a value of a wrong form.
    """
    _require_entries(content, source)
    own_keys = {item.name for item in fields(Card)} - {"training"}
    not_training = {*own_keys, "format", "num_classes", "model", *TRAINING_STATE}
    training = {key: value for key, value in content.items() if key not in not_training}
    own = {key: content[key] for key in own_keys & content.keys()}
    return Card(**own, training=training)


def _require_entries(content: Mapping[str, Any], source: object) -> None:
    """Check the entries of a card in a checkpoint.

    Raises:
        UserError: an entry is missing or does not have the right form.
    """
    for key in REQUIRED:
        if key not in content:
            raise UserError(f"{source} is no checkpoint of this version: no {key!r}")
    if content.get("format") != FORMAT:
        found = content.get("format")
        raise UserError(f"{source} is no checkpoint of this version: format {found!r}, not {FORMAT}")
    if not isinstance(content.get("model"), Mapping):
        raise UserError(f"{source} is no checkpoint of this version: it holds no weights under 'model'")
    arch = content["arch"]
    if not isinstance(arch, Mapping) or arch.get("num_classes") != content["num_classes"]:
        raise UserError(f"{source} does not say which network it holds")
    for key, has_valid_form in VALID_FORMS.items():
        if key in content and not has_valid_form(content[key]):
            raise UserError(f"{source} is damaged: {key} is {str(content[key])[:60]!r}")
