"""Labels and lists from MATLAB files."""

from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.files import open_regular


def mat_field(path: Path, *names: str) -> Any:
    """A field of a MATLAB file, by its path through the structs.

    Raises UserError: missing, damaged, or without that field.
    """
    from scipy.io import loadmat  # slow to import, and only SBD and COCO-Stuff 10k are MATLAB files

    try:
        with open_regular(path) as file:
            value = loadmat(file)
        for name in names:
            value = value[name]
            while isinstance(value, np.ndarray) and value.dtype.hasobject and value.size == 1:
                value = value.flat[0]
        return value
    except FileNotFoundError:
        raise UserError(f"file not found: {path}") from None
    except Exception as error:  # scipy raises whatever the damage leads to
        raise UserError(f"{path} cannot be read as a MATLAB file with {'.'.join(names)}: {error}") from error
