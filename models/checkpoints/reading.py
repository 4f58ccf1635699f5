"""Read weight files, torch's and safetensors, without running anything in them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from utils import checkpoint
from utils.errors import UserError, get_first_line, suggest_nearest
from utils.files import open_regular

SUFFIX = ".safetensors"
CARD = "card"  # the key of the card, as JSON, in the metadata of a safetensors file
SHIPPED = Path(__file__).resolve().parents[2] / "checkpoints"  # files that come with the project, known by name
# the two files that save_pretrained of segmentation_models_pytorch writes into a folder
SMP_CONFIG = "config.json"
SMP_ENTRY = "smp_config"  # the key of its content in what is read
SMP_WEIGHTS = "model.safetensors"


class Ignored:
    """Replace an object of a training file that is no weight, such as a log or an argument. Keep nothing of it."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


IGNORED_TYPES = (
    "argparse.Namespace",
    "builtins.getattr",  # mmengine's HistoryBuffer holds methods of its class, which pickle gets by getattr
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.ndarray",
    "numpy.dtype",
)
# dictionaries of settings, which Lightning writes as hyper_parameters
DICTIONARY_TYPES = (
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)


def read_weight_file(path: str | Path) -> dict[str, Any]:
    """Read the content of a weight file to the CPU.

    A safetensors file gives the entries of its card, and its weights under "model". A folder that
    segmentation_models_pytorch wrote is read as well.

    path: as in ``find_checkpoint``.

    Raises:
        UserError: there is no such file, it is damaged, or it holds anything but tensors and plain values.
    """
    path = find_checkpoint(path)
    if is_smp_folder(path):
        path = path / SMP_WEIGHTS
    if path.is_dir():
        inside = ", ".join(file.name for file in sorted(path.iterdir()) if file.suffix in (".pth", SUFFIX))
        raise UserError(f"{path} is a folder: give a checkpoint in it ({inside or 'there is none'})")
    if not path.is_file():
        raise UserError(f"checkpoint not found: {path}{_suggest_shipped(path)}")
    if path.suffix == SUFFIX or _is_safetensors(path):
        return _read_safetensors(path)
    stand_ins = [(Ignored, name) for name in IGNORED_TYPES]
    stand_ins += [(dict, name) for name in DICTIONARY_TYPES]
    with torch.serialization.safe_globals(stand_ins):
        return checkpoint.read(path)


def find_checkpoint(path: str | Path) -> Path:
    """Return the path of a checkpoint.

    A bare name such as ``camvid_fpn`` finds a file that is shipped with the project.
    """
    path = Path(path).expanduser()
    shipped = SHIPPED / f"{path.name}{SUFFIX}"
    is_bare_name = path.name == str(path)
    if is_bare_name and not path.exists() and shipped.is_file():
        return shipped
    return path


def is_smp_folder(path: Path) -> bool:
    """Return whether a path is a folder that segmentation_models_pytorch wrote."""
    return (path / SMP_CONFIG).is_file() and (path / SMP_WEIGHTS).is_file()


def list_checkpoint_files(path: str | Path) -> list[Path]:
    """List the files that decide what ``read_weight_file`` returns: one, or those of a folder. Empty if none is there.

    path: as in ``find_checkpoint``.
    """
    path = find_checkpoint(path)
    if is_smp_folder(path):
        return [path / SMP_CONFIG, path / SMP_WEIGHTS]
    return [path] if path.is_file() else []


def _suggest_shipped(path: Path) -> str:
    """Return the end of a message on a missing file: where a bare name was given, the names of the shipped files."""
    is_bare_name = path.name == str(path) and not path.suffix
    shipped = sorted(file.stem for file in SHIPPED.glob(f"*{SUFFIX}"))
    if not is_bare_name or not shipped:
        return ""
    return f"{suggest_nearest(path.name, shipped)}; the project comes with {', '.join(shipped)}"


def _is_safetensors(path: Path) -> bool:
    """Return whether a file begins like safetensors: with the length of a JSON object in 8 bytes, then the object."""
    try:
        with open_regular(path) as file:
            start = file.read(9)
    except OSError:
        return False
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size - 8


def _read_safetensors(path: Path) -> dict[str, Any]:
    """Read a safetensors file: the entries of its card, and the weights as the entry "model".

    Raises:
        UserError: the file is damaged, or its card is no JSON object.
    """
    try:
        with safe_open(path, framework="pt") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dict
            card = json.loads((file.metadata() or {}).get(CARD, "{}"))
    except (SafetensorError, OSError, RecursionError, ValueError) as error:
        raise UserError(f"{path} is damaged or no safetensors file: {get_first_line(error)}") from error
    if not isinstance(card, dict):
        raise UserError(f"{path}: its card is no JSON object")
    if not card and (path.parent / SMP_CONFIG).is_file():
        card = {SMP_ENTRY: _read_smp_config(path.parent / SMP_CONFIG)}
    return {**card, "model": weights}


def _read_smp_config(path: Path) -> dict[str, Any] | None:
    """Read the arguments with which segmentation_models_pytorch built a network. None: another library's file.

    Raises:
        UserError: the file is damaged.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError) as error:
        raise UserError(f"{path} is damaged: {get_first_line(error)}") from error
    return config if isinstance(config, dict) and "_model_class" in config else None
