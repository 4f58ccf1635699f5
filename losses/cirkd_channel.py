"""Relations between channels, of CIRKDV2 (winycg/CIRKD, losses/cirkd_channel.py).

A channel is the vector of its 4x4 averages over the map, of unit length. Mended here: sides that four does not divide
(the release's queue is h w / 16 long, its pooled maps longer) and one process; every process stores the same channels
in the same order, where the release shuffles them in each; a full ring continues at its start.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.cirkd import pair_relations, relation_kl
from losses.rings import Rings, enqueue, projector, unit_, whole
from utils.distributed import all_gather_cat
from utils.types import Output


def pooled(feat: Tensor) -> Tensor:
    """4x4 averages (ceil): ``[B, C, h, w] -> [B, C, h', w']``."""
    return F.avg_pool2d(feat, 4, 4, ceil_mode=True)


def channel_rows(maps: Tensor) -> Tensor:
    """Channels of pooled maps as vectors of length 1: ``[B, C, h', w'] -> [B, C, h' w']``."""
    return F.normalize(maps.flatten(2), dim=2)


def channel_minibatch_loss(student: Tensor, teacher: Tensor, tau: float = 0.1) -> Tensor:
    """``cirkd_loss`` with channels for pixels: mean over ordered image pairs of the mean over channels of
    KL(p_T || p_S), p = softmax(channel . channels of the other image / tau).

    Pooled (and projected) maps ``[B, C, h', w']``; the teacher gets no gradient.
    """
    return pair_relations(channel_rows(student), channel_rows(teacher.detach()), tau)


def channel_memory_loss(student: Tensor, teacher: Tensor, contrasts: Tensor, tau: float = 0.1) -> Tensor:
    """Mean over all channels of KL(p_T || p_S), p = softmax(channel . contrasts / tau).

    Maps as above with C channels on both sides, contrasts ``[M, h' w']`` of unit length.
    """
    s, t = (channel_rows(x).flatten(0, 1) for x in (student, teacher.detach()))
    return relation_kl(s, contrasts, t, contrasts, tau).mean()


def channel_mse_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the unit vectors; maps as above."""
    return F.mse_loss(channel_rows(student), channel_rows(teacher.detach()))


class ChannelTerms(Rings):
    """The three terms, of student maps that a projector takes to the teacher's channels; and the queue of one.

    size: slots. contrasts: how many of them an iteration compares with. fresh: channels that an iteration stores, or
    with --accumulate each part of it. The vectors' length is that of the first batch's pooled maps.
    """

    contrasts, fresh = 2048, 256

    def __init__(self, student_channels: int, teacher_channels: int, tau: float = 0.1, size: float = 10_000) -> None:
        super().__init__(1, whole("channel_size", size), 0)
        self.tau = tau
        self.seed = torch.initial_seed()  # the run's: the same in every process
        self.projector = projector(student_channels, teacher_channels)

    def forward(self, student: Output, teacher: Output, label: Tensor) -> dict[str, Tensor]:
        """The terms by name. Eval mode stores nothing."""
        s, t = self.projector(pooled(student.feat)), pooled(teacher.feat.detach())
        if not self.queue.shape[2]:
            self.begin(t.shape[2] * t.shape[3])
        if self.training:
            self.remember(channel_rows(t))
        return {
            "channel": channel_minibatch_loss(s, t, self.tau),
            "memory_channel": channel_memory_loss(s, t, self.draw(self.contrasts), self.tau),
            "channel_mse": channel_mse_loss(s, t),
        }

    def begin(self, length: int) -> None:
        shape = (*self.queue.shape[:2], length)
        for device in (torch.device("cpu"), self.queue.device):
            self.require(shape, device)
        start = torch.randn(shape, generator=torch.Generator().manual_seed(self.seed))
        self.queue = unit_(start).to(self.queue)

    @torch.no_grad()
    def remember(self, channels: Tensor) -> None:
        """Up to ``fresh`` random channels of the global batch, of every process as many."""
        mine = channels.flatten(0, 1)
        mine = mine[torch.randperm(len(mine), device=mine.device)[: self.fresh]]
        everyone = all_gather_cat(mine)
        count = min(len(everyone), self.fresh)
        keys = everyone[torch.arange(count, device=mine.device) * len(everyone) // count].view(1, 1, count, -1)
        enqueue(self.queue, self.pointer, keys, keys.new_ones(1, 1, count, dtype=torch.bool))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *rest: object) -> None:
        saved = state_dict.get(f"{prefix}queue")
        if saved is not None and not self.queue.shape[2]:
            self.queue = self.queue.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)
