"""Write a checkpoint's network as safetensors, the form for publishing: weights, and what is known about them.

    python scripts/deploy/export_safetensors.py --pretrained runs/student/best.pth --export student.safetensors

Any file that eval.py reads can be exported, and eval.py reads the result. The metadata's "card" is JSON: network, class
names, palette, pixel convention, data set, the run's settings and its scores. Folders of this machine are left out.
Of the files that the training started from, only the names remain.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.environment import require_packages

require_packages()

from safetensors.torch import save
from torch import Tensor, nn

from engine.settings import StudentConfig, list_file_settings
from models.checkpoints.card import Card
from models.checkpoints.loading import from_checkpoint
from models.checkpoints.reading import CARD, SUFFIX, list_checkpoint_files
from utils.entry import run_main
from utils.errors import UserError
from utils.files import require_apart, write
from utils.options import option, parse_flags

FOLDERS = ("data", "save_dir", "resume")  # settings that name places on the machine of the run
FILES = {"recipe", *list_file_settings(StudentConfig)}  # settings that name files


@dataclass(frozen=True)
class SafetensorsConfig:
    """Hold the settings of export_safetensors.py."""

    pretrained: str = option("", "checkpoint to export")
    export: str = option("", f"file to write (*{SUFFIX})")
    half: bool = option(False, "weights in half precision: half the size; the network still computes in float32")
    model: str = option("", "package.module:function, where the checkpoint holds a network of your own")
    backbone: str = option("", "encoder of a file of segmentation_models_pytorch whose keys do not tell it")
    assisted: bool = option(False, "keep the label plane of a file of the LAD release: it is a teacher")


def write_safetensors(path: str | Path, weights: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Write weights, with the card as JSON in the metadata. The file is written whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    # clones, because safetensors refuses tensors that share memory, as tied weights do
    plain = {key: value.detach().cpu().contiguous().clone() for key, value in weights.items()}
    content = save(plain, {"format": "pt", CARD: json.dumps(dict(card))})
    write(Path(path).expanduser(), lambda file: file.write(content))


def remove_folders(card: Card) -> Card:
    """Return a card without the folders of the machine that trained the network. Of a file's path, the name stays."""
    training = dict(card.training)
    settings = {}
    for key, value in training.get("config", {}).items():
        if key in FILES and isinstance(value, str):
            settings[key] = Path(value).name
        elif key not in FOLDERS:
            settings[key] = value
    if settings:
        training["config"] = settings
    # card.start is a text such as "the weights of runs/teacher/last.pth"; the folders are cut out of its path
    start = re.sub(r"(?<=weights of ).*/(?=.)", "", card.start)
    return replace(card, data="", start=start, training=training)


def halve_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters in half precision.

    Buffers are left out: the running variances of networks that see pixels of 0..255 exceed the largest half.

    Raises:
        UserError: a parameter has values that half precision cannot hold.
    """
    halves = {}
    for name, parameter in model.named_parameters():
        halves[name] = parameter.detach().half()
        if not halves[name].isfinite().all():
            raise UserError(f"--half: {name} has values that half precision cannot hold")
    return halves


def main(argv: Sequence[str] | None = None) -> None:
    config = SafetensorsConfig(**parse_flags(SafetensorsConfig, __doc__, argv))
    if not config.pretrained:
        raise UserError("--pretrained FILE is missing: the checkpoint to export")
    if not config.export.endswith(SUFFIX):
        raise UserError(f"--export {config.export or 'FILE'}: the file's name must end with {SUFFIX}")
    inputs = list_checkpoint_files(config.pretrained)
    output = Path(config.export).expanduser()
    require_apart([(output, Path(config.pretrained))], inputs, "--export")
    model, card = from_checkpoint(config.pretrained, config.assisted, config.backbone, config.model)
    card = remove_folders(card)
    weights = model.state_dict()
    if config.half:
        weights |= halve_parameters(model)
    write_safetensors(output, weights, card.entries())
    arch = card.arch
    print(f"{config.export}: {arch['arch']} on {arch['backbone']}, {card.num_classes} classes, {card.pixels} pixels")


if __name__ == "__main__":
    run_main(main)
