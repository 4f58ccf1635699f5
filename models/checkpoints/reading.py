"""Weight files on disk: torch's and safetensors, read without running anything in them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from utils import checkpoint
from utils.errors import UserError, first_line, nearest
from utils.files import open_regular

SUFFIX = ".safetensors"
SMP_CONFIG, SMP_WEIGHTS = "config.json", "model.safetensors"  # of segmentation_models_pytorch's save_pretrained
CARD = "card"  # the metadata key under which the card lies, as JSON
SHIPPED = Path(__file__).resolve().parents[2] / "checkpoints"  # files that come with the project, known by name


class Inert:
    """Stands in for what training files carry besides weights (logs, arguments, numpy scalars) and keeps none of it."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


INERT = (
    "argparse.Namespace",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.ndarray",
    "numpy.dtype",
)
DICTIONARIES = (  # of settings, which Lightning writes as hyper_parameters
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)


def read(path: str | Path) -> dict[str, Any]:
    """The content of a weight file, on the CPU; of safetensors the card's entries and the weights under "model".

    path: see ``located``.

    Raises UserError: no such file, damaged, or one that holds anything but tensors and plain values.
    """
    path = located(path)
    if (path / SMP_CONFIG).is_file() and (path / SMP_WEIGHTS).is_file():
        path = path / SMP_WEIGHTS
    if path.is_dir():
        inside = ", ".join(file.name for file in sorted(path.iterdir()) if file.suffix in (".pth", SUFFIX))
        raise UserError(f"{path} is a folder: give a checkpoint in it ({inside or 'there is none'})")
    if not path.is_file():
        named = path.name == str(path) and not path.suffix  # not a place
        shipped = sorted(file.stem for file in SHIPPED.glob(f"*{SUFFIX}")) if named else []
        known = f"; the project comes with {', '.join(shipped)}" if shipped else ""
        raise UserError(f"checkpoint not found: {path}{nearest(path.name, shipped)}{known}")
    if path.suffix == SUFFIX or _is_safetensors(path):
        return _read_safetensors(path)
    stand_ins = [*((Inert, name) for name in INERT), *((dict, name) for name in DICTIONARIES)]
    with torch.serialization.safe_globals(stand_ins):
        return checkpoint.read(path)


def located(path: str | Path) -> Path:
    """The file itself, or the one that comes with the project under that name (``camvid_baseline``)."""
    path = Path(path).expanduser()
    shipped = SHIPPED / f"{path.name}{SUFFIX}"
    return shipped if path.name == str(path) and not path.exists() and shipped.is_file() else path


def _is_safetensors(path: Path) -> bool:
    """Say whether a file begins as safetensors do: the length of a JSON object, and the object."""
    try:
        with open_regular(path) as file:
            start = file.read(9)
    except OSError:
        return False
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size - 8


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dict
            card = json.loads((file.metadata() or {}).get(CARD, "{}"))
    except (SafetensorError, OSError, RecursionError, ValueError) as error:
        raise UserError(f"{path} is damaged or no safetensors file: {first_line(error)}") from error
    if not isinstance(card, dict):
        raise UserError(f"{path}: its card is no JSON object")
    if not card and (path.parent / SMP_CONFIG).is_file():
        card = {"smp_config": _read_smp_config(path.parent / SMP_CONFIG)}
    return {**card, "model": weights}


def _read_smp_config(path: Path) -> dict[str, Any] | None:
    """Read how segmentation_models_pytorch built the network. None: another library's file."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {first_line(error)}") from error
    return config if isinstance(config, dict) and "_model_class" in config else None
