"""What a run is trained with, and whether a run to be continued was trained with the same."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from utils import files
from utils.errors import UserError
from utils.training.configuration import TrainConfig
from utils.training.naming import FILES, RESUMABLE


def inputs_of(config: TrainConfig, pairs: Sequence[tuple[Path, Path]]) -> dict[str, str]:
    """What a run depends on and its settings only name: files by their hash, the training images by their order."""
    named = {name: Path(getattr(config, name, "")).expanduser() for name in FILES}
    root = str(Path(config.data).expanduser())
    names = "\n".join(f"{str(image).removeprefix(root)}\t{str(label).removeprefix(root)}" for image, label in pairs)
    images = f"{len(pairs)} images, {hashlib.sha256(names.encode(errors='surrogateescape')).hexdigest()[:16]}"
    return {name: files.digest_of(path)[:16] for name, path in named.items() if path.is_file()} | {"training": images}


def compare(state: Mapping[str, Any], config: TrainConfig, inputs: Mapping[str, Any]) -> None:
    """Raises UserError when the run to be continued has other settings or was trained with something else."""
    try:
        saved, recorded = dict(state["config"]), dict(state.get("inputs", {}))
    except (KeyError, TypeError, ValueError):
        raise UserError("--resume: the checkpoint is damaged, it does not hold the settings of its run") from None
    # a setting that is younger than the run had its default value
    old, new = {**plain(asdict(type(config)())), **saved}, plain(asdict(config))
    changed = [f"{k}: {old[k]!r} -> {new[k]!r}" for k in new if k not in RESUMABLE and new[k] != old[k]]
    if changed:
        raise UserError(
            f"--resume {config.resume} is of a run with other settings ({'; '.join(changed)}): "
            "another --save-dir keeps both, --overwrite starts anew in its place"
        )
    changed = [f"{k}: {recorded[k]} -> {inputs[k]}" for k in inputs if k in recorded and recorded[k] != inputs[k]]
    if changed:
        raise UserError(
            f"--resume {config.resume} is of a run with other inputs ({'; '.join(changed)}): restore them, or start "
            "anew with --overwrite or in another --save-dir"
        )


def plain(value: Any) -> Any:
    """Tuples as lists, the form yaml and json give back."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value
