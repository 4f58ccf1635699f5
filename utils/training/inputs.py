"""What a run is trained with, and whether a run to be continued was trained with the same."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from utils import files
from utils.errors import UserError
from utils.training.configuration import TrainConfig
from utils.training.naming import FILES, RESUMABLE


def inputs_of(config: TrainConfig, data: Any, located: Callable) -> dict[str, str]:
    """What a run depends on and its settings only name: files by their hash, images by their order, what labels mean.

    data: as ``utils.training.script.train``'s load gives it.
    """
    named = {name: located(getattr(config, name, "")) for name in FILES}
    root, spec = str(Path(config.data).expanduser()), data.spec

    def images(pairs: Sequence[tuple[Path, Path]]) -> str:
        names = (f"{str(image).removeprefix(root)}\t{str(label).removeprefix(root)}" for image, label in pairs)
        return f"{len(pairs)} images, {_short(*names)}"

    meaning = repr((spec.names, asdict(spec.ids), {end: asdict(ids) for end, ids in spec.other_ids.items()}))
    return {name: files.digest_of(path)[:16] for name, path in named.items() if path.is_file()} | {
        "training": images(data.train.dataset.pairs),
        "validation": images(data.val.pairs),
        "classes": f"{len(spec.names)}, {_short(meaning)}",
    }


def _short(*lines: str) -> str:
    """The first digits of a hash."""
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()[:16]


def differences(state: Mapping[str, Any], config: TrainConfig, inputs: Mapping[str, Any]) -> str:
    """Why the run is not to be continued: it has other settings, or was trained with something else. "": it may be.

    Raises UserError: the checkpoint is damaged.
    """
    try:
        saved, recorded = dict(state["config"]), dict(state.get("inputs", {}))
    except (KeyError, TypeError, ValueError):
        raise UserError("it is damaged: it does not hold the settings of its run") from None
    old, new = completed(saved, type(config)), plain(asdict(config))
    free = RESUMABLE | {k for k in FILES if k in recorded and recorded[k] == inputs.get(k)}  # the same file, elsewhere
    advice = "another --save-dir keeps both, --overwrite starts anew in its place"
    theirs, own = name_role(saved), name_role(asdict(config))
    if theirs != own:
        return f"{_name_resumed(config)} the run of a {theirs}, and this is a {own}: {advice}"
    changed = [f"{k}: {old[k]!r} -> {new[k]!r}" for k in new if k not in free and new[k] != old[k]]
    if changed:
        if old["max_iterations"] != new["max_iterations"]:
            advice += "; the learning rate follows the length: --pretrained takes its last.pth to train on from there"
        return f"{_name_resumed(config)} a run with other settings ({'; '.join(changed)}): {advice}"
    changed = [f"{k}: {recorded[k]} -> {inputs[k]}" for k in inputs if k in recorded and recorded[k] != inputs[k]]
    advice = "restore them, or start anew with --overwrite or in another --save-dir"
    return f"{_name_resumed(config)} a run with other inputs ({'; '.join(changed)}): {advice}" if changed else ""


def name_role(settings: Mapping[str, Any]) -> str:
    """Say whose run has these settings: a teacher's, a student's or a baseline's."""
    if "single_path" in settings:
        return "teacher"
    return "baseline" if str(settings.get("kd", "")).strip() == "none" else "student"


def _name_resumed(config: TrainConfig) -> str:
    """Begin a sentence on what the run in question is."""
    if config.resume == "auto":
        return f"--resume auto: {config.save_dir} holds"
    return f"--resume {config.resume} is of" if config.resume else f"--save-dir {config.save_dir} holds"


def completed(saved: Mapping[str, Any], config_class: type) -> dict[str, Any]:
    """The settings of a run: one that is younger than the run had its default value."""
    return {**plain(asdict(config_class())), **saved}


def plain(value: Any) -> Any:
    """Tuples as lists, the form yaml and json give back."""
    return json.loads(json.dumps(value))
