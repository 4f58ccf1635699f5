"""Queues of the teacher's feature vectors, which CIRKD's losses compare with."""

import torch
from torch import Tensor, nn

from utils.memory import GIB, require_memory

HEADROOM = 2  # required ratio of free memory to queue size: networks, activations and optimizer need the rest


def write_to_queues(queue: Tensor, pointer: Tensor, keys: Tensor, valid: Tensor) -> None:
    """Write the valid keys of each class into its ring buffer, from its pointer on, in order and in place.

    queue: ``[K, S, C]``, S slots for each class.
    pointer: ``[K]``, the slot that is written next; it is advanced.
    keys: ``[B, K, V, C]``.
    valid: ``[B, K, V]``, which keys are to be written. Of more than S keys the last S remain.

    The number of valid keys stays on the device, so that the host does not wait for it. As many slots are written as
    there could be valid keys. The slots beyond the valid keys get the values that they already hold.
    """
    slots = queue.shape[1]
    keys = keys.transpose(0, 1).flatten(1, 2)  # [K, B V, C]
    valid = valid.transpose(0, 1).flatten(1, 2)
    candidates = valid.shape[1]
    count = valid.sum(1, keepdim=True)
    skipped = (count - slots).clamp(min=0)  # the earliest keys of a class that has more than there are slots
    place = skipped + torch.arange(min(slots, candidates), device=queue.device)
    valid_first = valid.long().argsort(dim=1, descending=True, stable=True)
    key = valid_first.gather(1, place.clamp(max=candidates - 1))
    slot = (pointer.unsqueeze(1) + place) % slots
    row = torch.arange(len(queue), device=queue.device).unsqueeze(1)
    is_new = (place < count).unsqueeze(2)
    queue[row, slot] = torch.where(is_new, keys[row, key].to(queue.dtype), queue[row, slot])
    pointer.copy_((pointer + count.squeeze(1)) % slots)


def normalise_in_place(vectors: Tensor) -> Tensor:
    """Scale vectors ``[K, S, C]`` to length 1 and return them. This is done in place, as a copy might not fit."""
    return vectors.div_(vectors.norm(dim=2, keepdim=True).clamp_(min=1e-12))


class VectorQueues(nn.Module):
    """Hold ``queue [K, S, C]``, K ring buffers of S unit vectors, and ``pointer [K]``, the slots to write next.

    This is the base class of CIRKD's losses with a memory. They keep the queues equal on every rank: all ranks start
    from one seed, and write the same vectors in the same order.

    The vectors are random directions at first. The queue takes 4 K S C bytes on the device and in ``last.pth``. The
    free memory of the host is checked when the queue is made, that of a GPU when the queue is moved there.
    """

    def __init__(self, queues: int, slots: int, channels: int) -> None:
        """Make the queue. ``channels`` may be 0: ``ChannelTerms`` knows C, and fills the queue, at its first batch.

        Raises:
            UserError: the host does not have twice as much free memory as the queue takes.
        """
        super().__init__()
        self.require_room((queues, slots, max(channels, 1)), torch.device("cpu"))
        self.register_buffer("queue", normalise_in_place(torch.randn(queues, slots, channels)))
        self.register_buffer("pointer", torch.zeros(queues, dtype=torch.long))

    def _apply(self, fn, recurse: bool = True) -> "VectorQueues":
        """Check the memory of a new device before PyTorch moves the module there."""
        device = fn(self.queue[:0]).device
        if device != self.queue.device:
            self.require_room(self.queue.shape, device)
        return super()._apply(fn, recurse)

    def require_room(self, shape: tuple[int, int, int], device: torch.device) -> None:
        """Refuse a queue that would leave too little memory for training.

        Raises:
            UserError: the device does not have ``HEADROOM`` times as much free memory as the queue takes.
        """
        queues, slots, channels = shape
        size = 4 * queues * slots * channels
        require_memory(
            HEADROOM * size,
            f"{type(self).__name__}: a queue of {queues} x {slots} vectors of {channels} values "
            f"({size / GIB:.1f} GiB) and as much again for training",
            "reduce its slots, e.g. cirkd_pixel=1:size=2000 (for cirkd2 pixel_size, region_size or channel_size)",
            device,
        )

    def draw_contrasts(self, count: int) -> Tensor:
        """Draw ``count`` random slots, the same ones of every class: ``[K count, C]``."""
        slots = torch.randperm(self.queue.shape[1], device=self.queue.device)[:count]
        return self.queue[:, slots].flatten(0, 1)
