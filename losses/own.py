"""Losses from outside this project: ``package.module:Class`` of the import path or the current folder."""

import importlib
import inspect
import os
import sys

from torch import nn

from utils.errors import UserError, first_line, nearest


def load_class(name: str, flag: str) -> type[nn.Module]:
    """The class that ``package.module:Class`` names.

    Raises UserError: it cannot be imported, is not there, or is not built or called as a distillation loss is.
    """
    where, (path, _, class_name) = f"{flag} {name}", name.partition(":")
    if not all(part.isidentifier() for part in (*path.split("."), class_name)):
        raise UserError(f"{where}: write package.module:Class, e.g. my_losses:Huber for Huber in my_losses.py")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # behind everything else, so that it hides no module
    try:
        module = importlib.import_module(path)
    except Exception as error:  # whatever the file does when it is imported
        missing = isinstance(error, ModuleNotFoundError) and f"{path}.".startswith(f"{error.name}.")
        reason = f"{error.name!r} is neither in {os.getcwd()} nor on the import path (PYTHONPATH)" if missing else None
        reason = reason or f"{path} cannot be imported: {type(error).__name__}: {first_line(error)}"
        raise UserError(f"{where}: {reason}") from error
    found = getattr(module, class_name, None)
    if found is None:
        classes = [key for key, value in vars(module).items() if inspect.isclass(value)]
        place = getattr(module, "__file__", None) or path
        raise UserError(f"{where}: {place} has no {class_name}{nearest(class_name, classes)}")
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise UserError(f"{where}: {class_name} is no torch.nn.Module")
    _require(found, "__init__", "self, student_channels, teacher_channels, num_classes", where)
    _require(found, "forward", "self, student, teacher, label", where)
    return found


def _require(found: type[nn.Module], method: str, arguments: str, where: str) -> None:
    """Of its own, not torch's, which takes anything."""
    call = getattr(found, method)
    own = inspect.signature(call)
    try:
        if call is getattr(nn.Module, method):
            raise TypeError
        own.bind(*arguments.split(", "))
    except TypeError as error:
        raise UserError(f"{where}: {method}({', '.join(own.parameters)}) must take ({arguments})") from error
