"""Checks of the options of losses, which the command line gives as floats."""

from utils.errors import UserError


def require_whole_number(option: str, value: float) -> int:
    """Return the value of ``option`` as an int.

    Raises:
        UserError: the value is not a positive whole number.
    """
    if not (value >= 1 and value % 1 == 0):
        raise UserError(f"{option}={value:g}: give a positive whole number")
    return int(value)
