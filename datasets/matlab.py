"""Read labels and lists from MATLAB files."""

from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.files import open_regular


def read_mat_field(path: Path, *names: str) -> Any:
    """Read a field of a MATLAB file. ``names`` lead to it through nested structs.

    Raises:
        UserError: the file is missing or damaged, or has no such field.
    """
    from scipy.io import loadmat  # slow to import, and only SBD and COCO-Stuff 10k are MATLAB files

    try:
        with open_regular(path) as file:
            value = loadmat(file)
        for name in names:
            value = _unpack_single(value[name])
        return value
    except FileNotFoundError:
        raise UserError(f"file not found: {path}") from None
    except Exception as error:  # damaged bytes make scipy raise nearly any exception
        raise UserError(f"{path} cannot be read as a MATLAB file with {'.'.join(names)}: {error}") from error


def _unpack_single(value: Any) -> Any:
    """Return the object inside arrays of one element, which is how scipy represents a nested struct."""
    while isinstance(value, np.ndarray) and value.dtype.hasobject and value.size == 1:
        value = value.flat[0]
    return value
