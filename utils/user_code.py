"""Import what a user names as ``package.module:name`` from outside this project."""

import importlib
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from utils.errors import UserError, get_first_line, suggest_nearest


def import_user_object(name: str, where: str, example: str, is_candidate: Callable[[Any], bool]) -> Any:
    """Import ``package.module:name`` from the import path or the current folder.

    where: the flag and the name, with which messages begin. example: what the message about a name of another form
    shows. is_candidate: which objects of the module may be meant by a name that is not there.

    Raises:
        UserError: the name has another form, the module cannot be imported, or it holds no such object.
    """
    path, _, object_name = name.partition(":")
    if not is_user_name(name):
        raise UserError(f"{where}: write {example}")
    module = _import_module(path, where)
    found = getattr(module, object_name, None)
    if found is None:
        candidates = [key for key, value in vars(module).items() if is_candidate(value)]
        file = getattr(module, "__file__", None) or path
        raise UserError(f"{where}: {file} has no {object_name}{suggest_nearest(object_name, candidates)}")
    return found


def is_user_name(name: str) -> bool:
    """Return whether a name has the form ``package.module:name``."""
    path, _, object_name = name.partition(":")
    return all(part.isidentifier() for part in (*path.split("."), object_name))


def _import_module(path: str, where: str) -> ModuleType:
    """Import a module, also one of the current folder.

    Raises:
        UserError: the module or a package around it does not exist, or its import fails.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # at the end, so that it hides no other module
    try:
        return importlib.import_module(path)
    except (Exception, SystemExit) as error:  # the file may do anything when it is imported
        # error.name is another module's if the import of the user's module fails on a package that it needs
        is_missing = isinstance(error, ModuleNotFoundError) and f"{path}.".startswith(f"{error.name}.")
        if is_missing:
            reason = f"{error.name!r} is neither in {os.getcwd()} nor on the import path (PYTHONPATH)"
            if path.endswith(".py"):
                reason += f"; a module is named without .py: {path.removesuffix('.py')}"
        else:
            reason = f"{path} cannot be imported: {type(error).__name__}: {get_first_line(error)}"
        raise UserError(f"{where}: {reason}") from error
