"""Make the default name of a run: its role, data set and network, and the settings that differ from its recipe."""

import hashlib
import re
from pathlib import Path
from typing import Any

from utils.options import REQUIRED, list_marked

NETWORK = ("dataset", "model", "backbone")  # what the name of every run begins with
LONGEST = 255  # bytes of the name of a file


def make_run_name(role: str, settings: Any, usual: Any) -> str:
    """Return a name such as ``student-voc-pspnet-resnet18_v1s-kd=cwd=3-seed=1``.

    The name has the role, the data set and the network, then the recipe if it is not called like the data set. Then
    comes each setting with the mark "names_run" that is not usual; a file is named as by ``name_file``. The student's
    teacher is named only if its run does not have the usual name. A character that is no letter, digit or one of
    ``_.,=+-`` becomes "_".

    A name that is too long for a file is cut off, and ends with a hash of the whole.

    usual: the settings without the flags. A setting that is REQUIRED in them is not part of the name. Neither is one
    that is None: that follows from another setting, such as the strength of label codes that have none.
    """
    network = "-".join(str(getattr(settings, key)) for key in NETWORK)
    parts = [f"{role}-{network}"]
    recipe = Path(settings.recipe).stem
    if recipe not in ("", settings.dataset):
        parts.append(recipe)
    naming = list_marked(type(settings), "names_run") - {*NETWORK}
    if role == "baseline":
        naming.remove("kd")
    files = list_marked(type(settings), "is_file")
    for key, value in vars(settings).items():
        expected = getattr(usual, key)
        if key not in naming or expected in (value, REQUIRED) or value is None:
            continue
        text = name_file(value, network) if key in files else name_value(value)
        if key == "teacher_pretrained" and text == "teacher":
            continue
        parts.append(key if value is True else f"{key}={text}")
    name = re.sub(r"[^\w.,=+-]", "_", "-".join(parts))
    encoded = name.encode(errors="replace")
    if len(encoded) <= LONGEST:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:8]
    return f"{encoded[: LONGEST - 9].decode(errors='ignore')}-{digest}"


def name_value(value: object) -> str:
    """Return a value as it stands in a name."""
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def name_file(value: str, network: str) -> str:
    """Return a short name of a file.

    A run's best.pth and last.pth are called by their folder, without the network's name. That of last.pth ends
    with "_last". Another file keeps its own name, without the suffix.
    """
    path = Path(value)
    run = path.absolute().parent.name.replace(f"-{network}", "")
    if path.stem == "best":
        return run
    if path.stem == "last":
        return f"{run}_last"
    return path.stem
