"""Whether something large will fit, asked before it is made."""

import os
from pathlib import Path

import torch

from utils.errors import UserError

CGROUP = Path("/sys/fs/cgroup")
GIB = 2**30


def require_memory(size: int, what: str, advice: str, device: torch.device) -> None:
    """Refuse what does not fit: ``size`` bytes on a GPU, or in each process of this host.

    Raises UserError: ``what``, how much it takes, how much is free, and ``advice``.
    """
    copies = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if device.type == "cpu" else 1
    free = free_memory(device)
    if free is not None and size * copies > free:
        each = f" in each of {copies} processes" if copies > 1 else ""
        raise UserError(f"{what} takes {size / GIB:.1f} GiB{each}, {device} has {free / GIB:.1f} GiB free: {advice}")


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be had on a device; of the host, within this process's control group. None: not known here."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    known = [value for value in (_host(), _control_group()) if value is not None]
    return min(known) if device.type == "cpu" and known else None


def _host() -> int | None:
    table = Path("/proc/meminfo")
    lines = table.read_text(encoding="ascii").splitlines() if table.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _control_group() -> int | None:
    """A container's limit, less what it holds and cannot drop."""
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        statistics = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no control group here, or one without a limit ("max")
        return None
    return max(0, limit - used + int(statistics["inactive_file"]))
