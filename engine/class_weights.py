"""Find the weights of the classes in the task loss (``--class-weights``): from the labels, a file, or the flag."""

import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from engine.loader import choose_worker_count
from engine.runtime import Runtime
from engine.settings import TrainConfig
from utils.errors import UserError, suggest_nearest
from utils.files import read_yaml

C = TypeVar("C", bound=TrainConfig)

EXPONENT = 0.5  # of "auto" without a number
# "auto" or "auto:0.25"; once its weights have been computed, they follow it: auto=0.5,1.25,...
AUTO = re.compile(r"(?P<rule>auto(:(?P<exponent>[^=]*))?)(=(?P<weights>.*))?")


def resolve_class_weights(config: C, dataset: Any, saved: Mapping[str, Any], runtime: Runtime) -> C:
    """Replace the setting ``class_weights`` by its numbers, the same on every rank.

    The numbers then stand in config.yaml and in the checkpoints. A resumed run takes the numbers of "auto" from there
    and does not count labels again.

    dataset: the training data set (``datasets.base.SegmentationDataset``). saved: the settings of the run that is
    resumed, as ``read_saved_settings`` returns them.

    Raises:
        UserError: a file or a label cannot be read, or the setting or its file does not give each class one number of
            0 or more, not all 0. Or no pixel of the labels has a class.
    """
    if not config.class_weights:
        return config
    return replace(config, class_weights=runtime.on_rank0(_find_class_weights, config, dataset, saved))


def parse_class_weights(setting: str) -> list[float] | None:
    """Return the numbers of a setting that ``resolve_class_weights`` has resolved; None where it is empty."""
    if not setting:
        return None
    return [float(number) for number in setting.rpartition("=")[2].split(",")]


def balance_classes(counts: Sequence[int], exponent: float = EXPONENT) -> list[float]:
    """Compute weights from the number of labelled pixels of each class: frequency^-exponent, with mean weight 1.

    The mean is over the labelled pixels. A class without a pixel has weight 1. The weights have 6 significant digits.
    """
    shares = [count / sum(counts) for count in counts]
    scale = sum(share ** (1 - exponent) for share in shares if share)
    return [float(f"{1 / (share**exponent * scale):.6g}") if share else 1.0 for share in shares]


def read_class_weights(path: Path, names: Sequence[str]) -> list[float]:
    """Read weights from a file: K numbers (yaml, JSON, or text with one a line), or ``name: number`` for each class.

    Raises:
        UserError: the file cannot be read, or does not give each class one number of 0 or more, not all 0.
    """
    content = read_yaml(path)
    if isinstance(content, dict):
        content = _order_by_class(content, names, path)
    elif isinstance(content, (str, int, float)):
        content = _split_numbers(str(content))
    if not isinstance(content, list):
        raise UserError(f"--class-weights {path}: write {len(names)} numbers, or 'class name: number' lines")
    return _require_weights(content, names, str(path))


def _find_class_weights(config: TrainConfig, dataset: Any, saved: Mapping[str, Any]) -> str:
    """Return the resolved setting, e.g. "0.5,1,2" or "auto=0.5,1.25"."""
    setting = config.class_weights.strip()
    names = dataset.spec.names
    auto = AUTO.fullmatch(setting)
    if auto and auto["weights"] is not None:  # of a run's config.yaml
        weights = _require_weights(_split_numbers(auto["weights"]), names, setting)
        return f"{auto['rule']}={_join_numbers(weights)}"
    if auto:
        exponent = _read_exponent(auto["exponent"], setting)
        rule = "auto" if exponent == EXPONENT else f"auto:{exponent:g}"
        return _find_saved(saved, rule, len(names)) or _compute_from_labels(dataset, exponent, rule, config.workers)
    file = os.path.expanduser(setting)
    if os.path.isfile(file):  # unlike Path.is_file, this takes a long list of numbers
        return _join_numbers(read_class_weights(Path(file), names))
    numbers = _split_numbers(setting)
    if not any(_is_number(number) for number in numbers):
        raise UserError(
            f"--class-weights {setting}: no such file (or: auto, auto:0.25, or {len(names)} numbers as in 1,2.5,1)"
        )
    return _join_numbers(_require_weights(numbers, names, setting))


def _read_exponent(text: str | None, setting: str) -> float:
    """Return the exponent of "auto:EXPONENT". text: None where there is only "auto".

    Raises:
        UserError: it is no number from 0 to 1.
    """
    if text is None:
        return EXPONENT
    if not _is_number(text) or not 0 <= float(text) <= 1:
        raise UserError(f"--class-weights {setting}: give a number from 0 to 1 after the colon, as in auto:0.25")
    return float(text)


def _find_saved(saved: Mapping[str, Any], rule: str, classes: int) -> str | None:
    """Return what "auto" was in the run that is resumed; None if no run is resumed or it had other weights.

    rule: "auto" or "auto:EXPONENT", which the run must have had, too.
    """
    setting = saved.get("class_weights", "")
    if not isinstance(setting, str) or not setting.startswith(f"{rule}="):
        return None
    numbers = setting.removeprefix(f"{rule}=").split(",")
    are_whole = len(numbers) == classes and all(map(_is_number, numbers))
    return setting if are_whole else None  # the labels give damaged ones again


def _compute_from_labels(dataset: Any, exponent: float, rule: str, workers: int | None) -> str:
    """Count the training labels and balance the classes by a rule, "auto" or "auto:EXPONENT".

    Raises:
        UserError: no pixel has a class, or a label file cannot be read.
    """
    print(f"--class-weights {rule}: counting the pixels of {len(dataset)} training labels")
    counts = dataset.count_label_pixels(choose_worker_count(workers)).tolist()
    if not any(counts):
        raise UserError(f"--class-weights {rule}: no pixel of the training labels has a class")
    absent = [name for name, count in zip(dataset.spec.names, counts, strict=True) if not count]
    if absent:
        print(f"warning: --class-weights {rule}: no training label has {', '.join(absent)}: weight 1", file=sys.stderr)
    weights = balance_classes(counts, exponent)
    print(f"--class-weights {rule}: weights from {min(weights):g} to {max(weights):g}; config.yaml has all of them")
    return f"{rule}={_join_numbers(weights)}"


def _order_by_class(content: Mapping[Any, Any], names: Sequence[str], path: Path) -> list[Any]:
    """Return the values of ``name: number`` lines in the order of the classes.

    Raises:
        UserError: a name is no class, or a class is missing.
    """
    given = {str(name): value for name, value in content.items()}
    unknown = [name for name in given if name not in names]
    if unknown:
        raise UserError(f"--class-weights {path}: {unknown[0]!r} is no class{suggest_nearest(unknown[0], names)}")
    missing = [name for name in names if name not in given]
    if missing:
        raise UserError(f"--class-weights {path}: no weight for {', '.join(missing)}")
    return [given[name] for name in names]


def _require_weights(values: Sequence[Any], names: Sequence[str], where: str) -> list[float]:
    """Return the values as floats.

    Raises:
        UserError: the values are not one for each class, one is not a finite number of 0 or more, or all are 0.
    """
    if len(values) != len(names):
        raise UserError(f"--class-weights {where}: {len(values)} numbers for {len(names)} classes")
    for name, value in zip(names, values, strict=True):
        if not _is_number(value) or not 0 <= float(value) < math.inf:
            raise UserError(f"--class-weights {where}: {value!r} of class {name}: give a finite number of 0 or more")
    weights = [float(value) for value in values]
    if not any(weights):
        raise UserError(f"--class-weights {where}: all weights are 0")
    return weights


def _is_number(value: Any) -> bool:
    """Return whether a value of a file is a number; yaml reads 1e-4 as text."""
    if isinstance(value, bool):
        return False
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _split_numbers(text: str) -> list[str]:
    """Split at commas and blanks."""
    return [part for part in re.split(r"[\s,]+", text) if part]


def _join_numbers(weights: Sequence[float]) -> str:
    """Write weights so that reading them gives the same floats."""
    return ",".join(repr(weight) for weight in weights)
