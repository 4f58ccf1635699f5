"""Check that something large will fit in memory before it is made."""

import os
from pathlib import Path

import torch

from utils.errors import UserError

CGROUP = Path("/sys/fs/cgroup")
GIB = 2**30


def require_memory(size: int, what: str, advice: str, device: torch.device) -> None:
    """Check that ``size`` bytes fit on a GPU, or in the memory of this host once for each of its processes.

    Where the free memory is not known, nothing is checked.

    Raises:
        UserError: the bytes do not fit. The message has ``what``, its size, the free memory, and ``advice``.
    """
    copies = count_sharers(device)
    free = get_free_memory(device)
    if free is not None and size * copies > free:
        each = f" in each of {copies} processes" if copies > 1 else ""
        raise UserError(f"{what} takes {size / GIB:.1f} GiB{each}, {device} has {free / GIB:.1f} GiB free: {advice}")


def count_sharers(device: torch.device) -> int:
    """Return how many processes of this launch share the memory of a device.

    On the CPU these are all processes of this host. On a GPU it is 1, also where ``--backend gloo`` lets processes
    share it.
    """
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if device.type == "cpu" else 1


def get_free_memory(device: torch.device) -> int | None:
    """Return how many bytes are free on a device, or None where that is not known.

    For the CPU these are the host's, within the limit of the control group at CGROUP, such as a container's.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    limits = (_read_host_memory(), _read_group_memory())
    return min((limit for limit in limits if limit is not None), default=None)


def _read_host_memory() -> int | None:
    """Return the bytes that the host can give without swapping, or None if that is not known."""
    table = Path("/proc/meminfo")
    if not table.exists():
        return None
    for line in table.read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _read_group_memory() -> int | None:
    """Return the bytes left within the limit of the control group at CGROUP, or None without a limit."""
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        statistics = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no control group here, or one without a limit ("max")
        return None
    return max(0, limit - used + int(statistics["inactive_file"]))
