"""Checkpoints: tensors and plain values only, written atomically, read without running code."""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils import files
from utils.errors import UserError, get_first_line


class DoesNotFit(UserError):
    """Weights have other keys or shapes than the network that they are loaded into."""


def save(state: Mapping[str, Any], path: Path, previous: Path | None = None) -> None:
    """Write ``state`` whole or not at all; see ``utils.files.write``, also for what it raises.

    Tensors are written as those of the CPU, so that plain ``torch.load`` reads them where there is no GPU.
    """
    content = _move_to_cpu(state)
    files.write(path, lambda file: torch.save(content, file), previous)


def _move_to_cpu(value: Any) -> Any:
    """Return a value with all tensors in its dictionaries, lists and tuples on the CPU. Those there are not copied."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, Mapping):
        return {key: _move_to_cpu(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_move_to_cpu, value))
    return value


def read(path: str | Path) -> dict[str, Any]:
    """Return the content of a checkpoint, on the CPU.

    Raises:
        UserError: there is no such file, it is damaged, or it holds anything but tensors and plain values. Or this
            torch is older than 2.10, whose ``torch.load`` is not safe.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"checkpoint not found: {path}")
    if torch.__version__ < (2, 10):  # CVE-2026-24747, CVE-2025-32434
        raise UserError(f"{path}: torch {torch.__version__} may run what is hidden in it; torch 2.10 does not")
    try:
        if zipfile.is_zipfile(path):
            check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message is not passed on, because it advises to run the code in the file
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        asks = f"; it asks for {wanted[1]}" if wanted else ""
        raise UserError(f"{path} is no plain checkpoint, or a damaged one; nothing in it was run{asks}") from error
    except UserError:
        raise
    except Exception as error:  # torch.load raises nearly anything on damaged bytes
        raise UserError(f"{path} is damaged or no checkpoint: {get_first_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint's dictionary")
    return content


def check_archive(path: Path) -> None:
    """Check the zip archive that torch.save writes.

    Raises:
        UserError: it is a TorchScript program, would unpack to more than its size, or a checksum is wrong.
    """
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            what = "a TorchScript archive, a program with its weights"
            raise UserError(f"{path} is {what}: save the network's state_dict() by torch.save instead")
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            raise UserError(f"{path} is no checkpoint: unpacked it would be larger than it is")
        damaged = archive.testzip()  # torch.load does not compare the checksums
    if damaged:
        raise UserError(f"{path} is damaged (checksum of {damaged})")


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Load a state dict strictly.

    source: the file, for messages.

    Raises:
        DoesNotFit: keys or shapes differ. The message counts them and names the first.
        UserError: a value is no tensor, or is not finite.
    """
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{source} is damaged: its weights are no tensors")
    differences = _list_differences(module.state_dict(), weights)
    if differences:
        raise DoesNotFit(f"{source} does not fit this network: {'; '.join(differences)}")
    lost = sorted(key for key, value in weights.items() if value.is_floating_point() and not value.isfinite().all())
    if lost:
        count = f"{len(lost)} of {len(weights)} tensors, first {lost[0]}"
        raise UserError(f"{source} holds weights that are not finite ({count}): the training that wrote it had failed")
    module.load_state_dict(dict(weights))


def _list_differences(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """Say how the keys and shapes of weights differ from a network's own: a text for each kind of difference."""
    shared = own.keys() & weights.keys()
    differing = [key for key in shared if own[key].shape != weights[key].shape]
    problems = {
        "keys missing": own.keys() - weights.keys(),
        "unknown keys": weights.keys() - own.keys(),
        "other shapes": [f"{key} {list(weights[key].shape)} for {list(own[key].shape)}" for key in differing],
    }
    texts = []
    for what, names in problems.items():
        if names:
            more = ", ..." if len(names) > 1 else ""
            texts.append(f"{len(names)} {what} ({min(names)}{more})")
    return texts
