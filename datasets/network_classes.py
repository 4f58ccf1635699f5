"""Compare the classes of a network with those of a data set."""

import re
from collections.abc import Sequence
from typing import Protocol

from datasets.base import DatasetSpec
from utils.errors import UserError, print_note

MAX_NAMES_LISTED = 20  # class names that a message lists


class Classes(Protocol):
    """Hold the classes of a network, as in the card of its checkpoint."""

    num_classes: int
    class_names: Sequence[str]  # empty where the file lacks them
    has_single_logit: bool  # its two classes were made of one logit


def require_classes(
    network: Classes, spec: DatasetSpec, name: str, source: str, allow_other_names: bool = True
) -> None:
    """Check that a network has the classes of a data set. Warn about class names that differ.

    name: name of the data set. source: where the network comes from, for messages. allow_other_names: only warn where
    network and data set have no class name in common.

    Raises:
        UserError: the network has another number of classes, the same classes in another order, or entirely different
            ones; or it has one logit and its file does not say which class that stands for.
    """
    if network.num_classes != len(spec.names):
        raise UserError(f"{source} has {network.num_classes} classes, {name} {len(spec.names)}")
    _check_single_logit(network, spec, name, source, allow_other_names)
    _check_order(network, spec, name, source)
    differences = _list_name_differences(network, spec)
    if not differences:
        return
    listed = "; ".join(differences[:MAX_NAMES_LISTED])
    if len(differences) > MAX_NAMES_LISTED:
        listed += f" and {len(differences) - MAX_NAMES_LISTED} more"
    shared = set(_simplify_names(network.class_names)) & set(_simplify_names(spec.names))
    if not shared and not allow_other_names:
        raise UserError(
            f"{source} and {name} have no class name in common ({listed}): the network was trained for something else; "
            "if its classes mean the same nevertheless, give --other-class-names"
        )
    print_note(f"warning: {source} has other class names than {name} ({listed})")


def _check_single_logit(network: Classes, spec: DatasetSpec, name: str, source: str, allow_other_names: bool) -> None:
    """Warn about or refuse a network of one logit whose file has no class names.

    Raises:
        UserError: there is such a network, and ``allow_other_names`` is false.
    """
    if not network.has_single_logit or network.class_names:
        return
    first, second = spec.names[:2]
    problem = (
        f"{source} has one logit and no class names: pixels where it is above 0 must be {second!r} of {name}, "
        f"the others {first!r}"
    )
    if not allow_other_names:
        raise UserError(f"{problem}; if that is so, give --other-class-names")
    print_note(f"warning: {problem}")


def _check_order(network: Classes, spec: DatasetSpec, name: str, source: str) -> None:
    """Check that network and data set number the classes that they share in the same order.

    A few names that have another number may be two spellings of different classes, as "screen" in ADE20K.

    Raises:
        UserError: two classes have changed places, or most of the shared classes have another number.
    """
    network_names = _simplify_names(network.class_names)
    data_names = _simplify_names(spec.names)
    moved = []
    agreeing = 0
    for k, (network_name, data_name) in enumerate(zip(network_names, data_names, strict=False)):
        if network_name == data_name:
            agreeing += 1
        elif network_name in data_names:
            moved.append(k)
    for k in moved:
        if data_names[k] in network_names or len(moved) > agreeing:
            raise UserError(
                f"{source} has the classes in another order: its class {k} is {network.class_names[k]!r}, "
                f"that of {name} is {spec.names[k]!r}"
            )


def _list_name_differences(network: Classes, spec: DatasetSpec) -> list[str]:
    """Describe each class whose name differs between network and data set by more than its spelling."""
    names = zip(_simplify_names(network.class_names), _simplify_names(spec.names), strict=False)
    return [
        f"{k}: {network.class_names[k]!r}, here {spec.names[k]!r}"
        for k, (network_name, data_name) in enumerate(names)
        if network_name != data_name
    ]


def _simplify_names(names: Sequence[str]) -> list[str]:
    """Return class names in lower case and without blanks and marks, in which spellings differ."""
    return [re.sub(r"[\W_]+", "", name).lower() or name for name in names]
