"""What a run is called by default: what it is, and in what it differs from its recipe."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# settings that may differ between the two halves of a resumed run: none of them changes what is computed
RESUMABLE = {
    "recipe", "data", "workers", "save_dir", "save_per_iters", "val_per_iters", "log_iter", "skip_val", "resume",
    "overwrite", "device", "pretrained_base", "pretrained", "cache_gb", "backend", "channels_last", "tf32",
    "deterministic", "compile", "other_class_names",
}  # fmt: skip
FILES = ("pretrained_base", "pretrained", "teacher_pretrained")  # settings that name a file


def run_name(role: str, settings: Mapping[str, Any], usual: Mapping[str, Any], required: object) -> str:
    """``student-voc-pspnet-resnet18_v1s-kd=cwd=3-seed=1``: role, data set, network, and each setting that is not usual.

    usual: the values without the flags; one that is ``required`` is always the user's, and does not tell runs apart.
    A file is called by its folder, without what the names have in common; the student's teacher only where that is
    not the one of the usual name.
    """
    network = "-".join(str(settings[key]) for key in ("dataset", "model", "backbone"))
    parts = [f"{role}-{network}"]
    recipe = Path(settings["recipe"]).stem
    if recipe not in ("", settings["dataset"]):
        parts.append(recipe)
    for key, value in settings.items():
        same = value == usual[key] or usual[key] == required or (key in RESUMABLE and key not in FILES)
        if same or key in ("dataset", "model", "backbone") or (role, key) == ("baseline", "kd"):
            continue
        text = _file(value, network) if key in FILES else _text(value)
        if (key, text) != ("teacher_pretrained", "teacher"):
            parts.append(key if value is True else f"{key}={text}")
    return re.sub(r"[^\w.,=+-]", "_", "-".join(parts))


def _text(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _file(value: str, network: str) -> str:
    path = Path(value)
    run = path.absolute().parent.name.replace(f"-{network}", "")
    return {"best": run, "last": f"{run}_last"}.get(path.stem, path.stem)
