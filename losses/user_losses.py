"""Load losses from outside this project, named ``package.module:Class``."""

import importlib
import inspect
import os
import sys
from types import ModuleType

from torch import nn

from utils.errors import UserError, first_line, nearest


def load_user_loss(name: str, flag: str) -> type[nn.Module]:
    """Import the class ``package.module:Class`` from the import path or the current folder.

    Raises UserError: it cannot be imported, does not exist, or is not built and called as a distillation loss is. The
    message begins with ``flag`` and the name.
    """
    where = f"{flag} {name}"
    path, _, class_name = name.partition(":")
    if not all(part.isidentifier() for part in (*path.split("."), class_name)):
        raise UserError(f"{where}: write package.module:Class, e.g. my_losses:Huber for Huber in my_losses.py")
    module = _import_module(path, where)
    found = getattr(module, class_name, None)
    if found is None:
        classes = [key for key, value in vars(module).items() if inspect.isclass(value)]
        file = getattr(module, "__file__", None) or path
        raise UserError(f"{where}: {file} has no {class_name}{nearest(class_name, classes)}")
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise UserError(f"{where}: {class_name} is no torch.nn.Module")
    _require_signature(found, "__init__", "self, student_channels, teacher_channels, num_classes", where)
    _require_signature(found, "forward", "self, student, teacher, label", where)
    return found


def _import_module(path: str, where: str) -> ModuleType:
    """Import a module, also one of the current folder.

    Raises UserError: the module or a package around it does not exist, or its import fails.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # at the end, so that it hides no other module
    try:
        return importlib.import_module(path)
    except Exception as error:  # the file may do anything when it is imported
        is_missing = isinstance(error, ModuleNotFoundError) and f"{path}.".startswith(f"{error.name}.")
        if is_missing:
            reason = f"{error.name!r} is neither in {os.getcwd()} nor on the import path (PYTHONPATH)"
        else:
            reason = f"{path} cannot be imported: {type(error).__name__}: {first_line(error)}"
        raise UserError(f"{where}: {reason}") from error


def _require_signature(found: type[nn.Module], method: str, arguments: str, where: str) -> None:
    """Check that a class defines ``method`` and that it takes ``arguments``.

    Raises UserError: it takes others, or the class only inherits torch's own method, which takes anything.
    """
    call = getattr(found, method)
    signature = inspect.signature(call)
    try:
        if call is getattr(nn.Module, method):
            raise TypeError
        signature.bind(*arguments.split(", "))
    except TypeError as error:
        raise UserError(f"{where}: {method}({', '.join(signature.parameters)}) must take ({arguments})") from error
