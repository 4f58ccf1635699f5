"""Describe what a run is trained with, and refuse to continue a run that was trained with something else."""

import hashlib
import json
import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datasets import Data
from engine.runtime import Runtime
from engine.settings import TrainConfig, is_baseline, list_file_settings, list_resumable_settings
from models.checkpoints.reading import list_checkpoint_files
from utils import files
from utils.errors import UserError


class OtherRun(UserError):
    """A checkpoint is intact, but belongs to another run than the one to be continued."""


def describe_inputs(settings: TrainConfig, data: Data) -> dict[str, str]:
    """Describe the inputs that the settings only name: hashes of weight files, of image lists and of the classes."""
    described = {}
    for name in list_file_settings(type(settings)):
        digest = hashlib.sha256()
        value = getattr(settings, name)
        found = list_checkpoint_files(value) if value else []
        for path in found:
            files.compute_digest(path, digest)
        if found:
            described[name] = digest.hexdigest()[:16]
    spec = data.spec
    root = Path(settings.data).expanduser() if settings.data else None
    described["training"] = describe_images(data.train.dataset.pairs, root)
    described["validation"] = describe_images(data.val.pairs, root)
    other_ids = {ending: asdict(ids) for ending, ids in spec.other_ids.items()}
    meaning = repr((spec.names, asdict(spec.ids), other_ids))
    described["classes"] = f"{len(spec.names)}, {compute_short_hash(meaning)}"
    return described


def agree_on_inputs(settings: TrainConfig, data: Data, runtime: Runtime) -> dict[str, str]:
    """Describe the inputs of the run, and check that every rank has the same. Hosts may have copies of their own.

    Raises:
        UserError: this rank has other files than rank 0.
    """
    own = describe_inputs(settings, data)
    inputs = runtime.broadcast(own)
    differing = [f"{k}: {own[k]}, rank 0: {inputs[k]}" for k in own if k in inputs and own[k] != inputs[k]]
    if differing:
        where = f"rank {runtime.rank} on {platform.node()}"
        raise UserError(f"{where} has other files than rank 0 ({'; '.join(differing)}): give every host the same")
    return inputs


def describe_images(pairs: Sequence[tuple[Path, Path]], root: Path | None) -> str:
    """Return the number of images, and a hash of their names and their order. The hash does not depend on ``root``."""
    lines = [f"{_name_in_tree(image, root)}\t{_name_in_tree(label, root)}" for image, label in pairs]
    return f"{len(pairs)} images, {compute_short_hash(*lines)}"


def _name_in_tree(path: Path, root: Path | None) -> str:
    """Return "/" and the path from the root of the data set, or the whole path of a file that lies elsewhere."""
    if root is None or not path.is_relative_to(root):
        return str(path)
    return f"/{path.relative_to(root)}"


def compute_short_hash(*lines: str) -> str:
    """Return the first digits of a hash of lines."""
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()[:16]


def check_same_run(content: Mapping[str, Any], settings: TrainConfig, inputs: Mapping[str, str]) -> None:
    """Refuse to continue a run that was trained with other settings or inputs.

    content: of its checkpoint.

    Raises:
        OtherRun: which settings or inputs differ, and what to do.
        UserError: the checkpoint is damaged.
    """
    try:
        saved = dict(content["config"])
        recorded = dict(content.get("inputs", {}))
    except (KeyError, TypeError, ValueError):
        raise UserError("it is damaged: it does not hold the settings of its run") from None
    have_same_files = {name for name in recorded if recorded[name] == inputs.get(name)}
    _check_same_settings(saved, settings, have_same_files)
    changed = [f"{k}: {recorded[k]} -> {inputs[k]}" for k in inputs if k in recorded and recorded[k] != inputs[k]]
    if changed:
        advice = "restore them, or start anew with --overwrite or in another --save-dir"
        raise OtherRun(f"{name_resumed(settings)} a run with other inputs ({'; '.join(changed)}): {advice}")


def _check_same_settings(saved: Mapping[str, Any], settings: TrainConfig, have_same_files: Collection[str]) -> None:
    """Refuse to continue a run that was trained with other settings.

    saved: the settings of the run. have_same_files: the settings that name a file of the same content as in the run.

    Raises:
        OtherRun: which settings differ, and what to do.
    """
    old = add_defaults(saved, type(settings))
    new = make_plain(asdict(settings))
    may_differ = list_resumable_settings(type(settings))
    for name in list_file_settings(type(settings)):  # the same file may lie elsewhere now
        if name in have_same_files:
            may_differ.add(name)
        if bool(old[name]) != bool(new[name]):  # a start from a file and one without are two runs
            may_differ.discard(name)
    advice = "another --save-dir keeps both, --overwrite starts anew in its place"
    old_role = name_role(saved)
    new_role = name_role(asdict(settings))
    if old_role != new_role:
        raise OtherRun(f"{name_resumed(settings)} the run of a {old_role}, and this is a {new_role}: {advice}")
    changed = [f"{k}: {old[k]!r} -> {new[k]!r}" for k in new if k not in may_differ and new[k] != old[k]]
    if changed:
        if old["max_iterations"] != new["max_iterations"]:
            advice += "; the learning rate follows the length: --pretrained takes its last.pth to train on from there"
        raise OtherRun(f"{name_resumed(settings)} a run with other settings ({'; '.join(changed)}): {advice}")


def name_role(settings: Mapping[str, Any]) -> str:
    """Return the role that has these settings: "teacher", "student" or "baseline"."""
    if "single_path" in settings:
        return "teacher"
    return "baseline" if is_baseline(str(settings.get("kd", ""))) else "student"


def name_resumed(settings: TrainConfig) -> str:
    """Return the beginning of a sentence about the run that was to be resumed."""
    if settings.resume == "auto":
        return f"--resume auto: {settings.save_dir} holds"
    if settings.resume:
        return f"--resume {settings.resume} is of"
    return f"--save-dir {settings.save_dir} holds"


def add_defaults(saved: Mapping[str, Any], config_class: type) -> dict[str, Any]:
    """Return the settings of a run. A setting that did not exist yet gets its default value."""
    return {**make_plain(asdict(config_class())), **saved}


def make_plain(value: Any) -> Any:
    """Return a value with lists in place of tuples, as yaml and JSON return it."""
    return json.loads(json.dumps(value))
