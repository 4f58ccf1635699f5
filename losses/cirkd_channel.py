"""Relations between channels, of CIRKDV2 (winycg/CIRKD, losses/cirkd_channel.py).

A channel is represented by the vector of its 4x4 averages over the map, scaled to length 1. The release is corrected
in three places:

- The sides of a map need not be divisible by four. In the release the vectors of the queue have h w / 16 values, and
  those of the pooled maps have more.
- A single process needs no process group, and every rank stores the same channels in the same order. In the release
  each rank shuffles them by itself.
- A full ring buffer continues at its start.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.cirkd import average_over_image_pairs, relation_kl
from losses.options import require_whole_number
from losses.projector import build_projector
from losses.vector_queues import VectorQueues, normalise_in_place, write_to_queues
from utils.distributed import all_gather_cat
from utils.types import Output


def pool_features(feat: Tensor) -> Tensor:
    """Average over 4x4 windows, the last of which may be smaller: ``[B, C, h, w] -> [B, C, h', w']``."""
    return F.avg_pool2d(feat, 4, 4, ceil_mode=True)


def normalise_channels(maps: Tensor) -> Tensor:
    """Turn pooled maps ``[B, C, h', w']`` into one vector of length 1 for each channel, ``[B, C, h' w']``."""
    return F.normalize(maps.flatten(2), dim=2)


def channel_minibatch_loss(student: Tensor, teacher: Tensor, tau: float = 0.1) -> Tensor:
    """Compute ``cirkd_loss`` with channels in place of pixels.

    KL(p_T || p_S) is averaged over the channels, then over the ordered pairs of images, where p is
    softmax(channel . channels of the other image / tau). The maps are pooled, ``[B, C, h', w']``; the student's are
    projected, too. The teacher gets no gradient.
    """
    return average_over_image_pairs(normalise_channels(student), normalise_channels(teacher.detach()), tau)


def channel_memory_loss(student: Tensor, teacher: Tensor, contrasts: Tensor, tau: float = 0.1) -> Tensor:
    """Average KL(p_T || p_S) over all channels, where p = softmax(channel . contrasts / tau).

    Pooled maps ``[B, C, h', w']`` with the same C on both sides; contrasts are unit vectors ``[M, h' w']``. The teacher
    gets no gradient.
    """
    s = normalise_channels(student).flatten(0, 1)
    t = normalise_channels(teacher.detach()).flatten(0, 1)
    return relation_kl(s, contrasts, t, contrasts, tau).mean()


def channel_mse_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the mean squared difference of the channels' unit vectors. Pooled maps; no gradient to the teacher."""
    return F.mse_loss(normalise_channels(student), normalise_channels(teacher.detach()))


class ChannelTerms(VectorQueues):
    """Compute the three channel terms, with a projector to the teacher's channels and a queue of its channels.

    size: the slots of the queue. An iteration compares with ``contrasts`` of them, or all if there are fewer, and
    stores up to ``fresh`` new channels; with --accumulate each part of an iteration does. The first batch decides the
    length of the vectors, h' w'.
    """

    contrasts = 2048
    fresh = 256

    def __init__(self, student_channels: int, teacher_channels: int, tau: float = 0.1, size: float = 10_000) -> None:
        super().__init__(1, require_whole_number("channel_size", size), 0)
        self.tau = tau
        self.seed = torch.initial_seed()  # the seed of the run, which is the same on every rank
        self.projector = build_projector(student_channels, teacher_channels)

    def forward(self, student: Output, teacher: Output, label: Tensor) -> dict[str, Tensor]:
        """Store channels of the batch (in training mode only) and return the terms by name."""
        s = self.projector(pool_features(student.feat))
        t = pool_features(teacher.feat.detach())
        if not self.queue.shape[2]:
            self.make_queue(t.shape[2] * t.shape[3])
        if self.training:
            self.store_channels(normalise_channels(t))
        contrasts = self.draw_contrasts(self.contrasts)
        return {
            "channel": channel_minibatch_loss(s, t, self.tau),
            "memory_channel": channel_memory_loss(s, t, contrasts, self.tau),
            "channel_mse": channel_mse_loss(s, t),
        }

    def make_queue(self, length: int) -> None:
        """Fill the queue with random unit vectors of ``length`` values, the same ones on every rank.

        Raises:
            UserError: the queue is too large for the memory of the host or of the device.
        """
        shape = (*self.queue.shape[:2], length)
        for device in (torch.device("cpu"), self.queue.device):
            self.require_room(shape, device)
        start = torch.randn(shape, generator=torch.Generator().manual_seed(self.seed))
        self.queue = normalise_in_place(start).to(self.queue)

    @torch.no_grad()
    def store_channels(self, channels: Tensor) -> None:
        """Add up to ``fresh`` random channels of the global batch to the queue, about as many from every rank.

        Each rank offers up to ``fresh`` of its channels. Evenly spaced ones of all that are offered are stored.

        channels: the teacher's unit vectors ``[B, C, h' w']`` of this rank.
        """
        mine = channels.flatten(0, 1)
        mine = mine[torch.randperm(len(mine), device=mine.device)[: self.fresh]]
        everyone = all_gather_cat(mine)
        count = min(len(everyone), self.fresh)
        evenly_spaced = torch.arange(count, device=mine.device) * len(everyone) // count
        keys = everyone[evenly_spaced].view(1, 1, count, -1)
        write_to_queues(self.queue, self.pointer, keys, keys.new_ones(1, 1, count, dtype=torch.bool))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *rest: object) -> None:
        """Give the queue the shape of the saved one, which a module that has seen no batch does not know."""
        saved = state_dict.get(f"{prefix}queue")
        if saved is not None and not self.queue.shape[2]:
            self.queue = self.queue.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)
