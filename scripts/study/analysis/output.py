"""Write results, and say where they are."""

import json
from pathlib import Path
from typing import Any

from utils.files import write_text


def save_text(text: str, path: Path) -> None:
    """Write text.

    Raises:
        UserError: the file cannot be written.
    """
    write_text(path, text)
    print(f"wrote {path}")


def save_json(content: Any, path: Path) -> None:
    """Write plain values as JSON.

    Raises:
        UserError: the file cannot be written.
    """
    save_text(json.dumps(content, indent=1) + "\n", path)
