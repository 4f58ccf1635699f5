"""Queues of the teacher's vectors that relations are compared with, in every process the same."""

import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.memory import require_memory


def enqueue(queue: Tensor, pointer: Tensor, keys: Tensor, valid: Tensor) -> None:
    """Write the valid keys of each class into its ring, in order, from its pointer on; in place.

    queue ``[K, S, C]``, pointer ``[K]`` (the next slot), keys ``[B, K, V, C]``, valid ``[B, K, V]``. Of a
    class with more than S keys the last S stay. As many slots are written as there could be valid keys, what is beyond
    them with what it holds: the host need not know how many are valid, and does not wait for the device.
    """
    slots = queue.shape[1]
    keys, valid = (x.transpose(0, 1).flatten(1, 2) for x in (keys, valid))
    count = valid.sum(1, keepdim=True)
    place = (count - slots).clamp(min=0) + torch.arange(min(slots, valid.shape[1]), device=queue.device)
    order = valid.long().argsort(dim=1, descending=True, stable=True)  # the valid ones first, in order
    key = order.gather(1, place.clamp(max=valid.shape[1] - 1))
    slot = (pointer.unsqueeze(1) + place) % slots
    ring = torch.arange(len(queue), device=queue.device).unsqueeze(1)
    queue[ring, slot] = torch.where((place < count).unsqueeze(2), keys[ring, key].to(queue.dtype), queue[ring, slot])
    pointer.copy_((pointer + count.squeeze(1)) % slots)


def conv_bn_relu(in_channels: int, channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, channels, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def projector(student_channels: int, teacher_channels: int) -> nn.Sequential:
    """CIRKD's map from student to teacher features."""
    projected = conv_bn_relu(student_channels, teacher_channels)
    return projected.append(nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False))


def unit_(vectors: Tensor) -> Tensor:
    """``[rings, slots, C]`` made of length 1, in place: a copy of a queue might not fit."""
    return vectors.div_(vectors.norm(dim=2, keepdim=True).clamp_(min=1e-12))


def whole(option: str, value: float) -> int:
    """Raises UserError when an option is no positive whole number."""
    if not (value >= 1 and value % 1 == 0):
        raise UserError(f"{option}={value:g}: give a positive whole number")
    return int(value)


class Rings(nn.Module):
    """``queue [rings, slots, C]`` of unit vectors, random directions at first, and ``pointer [rings]``, the next slots.

    It takes 4 rings slots C bytes on the device and in ``last.pth``. What cannot fit is refused: for the host when it
    is made, for a GPU when it is moved there.
    """

    def __init__(self, rings: int, slots: int, channels: int) -> None:
        """Raises UserError where there is not enough memory."""
        super().__init__()
        self.require((rings, slots, max(channels, 1)), torch.device("cpu"))
        self.register_buffer("queue", unit_(torch.randn(rings, slots, channels)))
        self.register_buffer("pointer", torch.zeros(rings, dtype=torch.long))

    def _apply(self, fn, recurse: bool = True) -> "Rings":
        device = fn(self.queue[:0]).device
        if device != self.queue.device:
            self.require(self.queue.shape, device)
        return super()._apply(fn, recurse)

    def require(self, shape: tuple[int, int, int], device: torch.device) -> None:
        rings, slots, channels = shape
        what = f"{type(self).__name__}: a queue of {rings} x {slots} vectors of {channels} values"
        advice = "give it a smaller size, e.g. cirkd_pixel=1:size=2000"
        require_memory(4 * rings * slots * channels, what, advice, device)

    def draw(self, count: int) -> Tensor:
        """The same random slots of every ring: ``[rings count, C]``."""
        slots = torch.randperm(self.queue.shape[1], device=self.queue.device)[:count]
        return self.queue[:, slots].flatten(0, 1)
