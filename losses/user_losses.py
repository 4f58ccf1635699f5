"""Load losses from outside this project, named ``package.module:Class``."""

import inspect

from torch import nn

from utils.errors import UserError
from utils.user_code import import_user_object


def load_user_loss(name: str, flag: str) -> type[nn.Module]:
    """Import the class ``package.module:Class`` from the import path or the current folder.

    Raises:
        UserError: the class cannot be imported, does not exist, or is not built and called as a distillation loss is.
            The message begins with ``flag`` and the name.
    """
    where = f"{flag} {name}"
    example = "package.module:Class, e.g. my_losses:Huber for Huber in my_losses.py"
    found = import_user_object(name, where, example, inspect.isclass)
    class_name = name.rpartition(":")[2]
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise UserError(f"{where}: {class_name} is no torch.nn.Module")
    _require_signature(found, "__init__", "self, student_channels, teacher_channels, num_classes", where)
    _require_signature(found, "forward", "self, student, teacher, label", where)
    return found


def _require_signature(found: type[nn.Module], method: str, arguments: str, where: str) -> None:
    """Check that a class defines ``method`` and that it takes ``arguments``.

    Raises:
        UserError: the method takes other arguments, or the class only inherits torch's own, which takes anything.
    """
    call = getattr(found, method)
    signature = inspect.signature(call)
    try:
        if call is getattr(nn.Module, method):
            raise TypeError
        signature.bind(*arguments.split(", "))
    except TypeError as error:
        raise UserError(f"{where}: {method}({', '.join(signature.parameters)}) must take ({arguments})") from error
