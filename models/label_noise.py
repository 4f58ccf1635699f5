"""The noised label that an assisted teacher sees next to the image (LAD, train_baseline.py:387-450)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from utils.errors import UserError, lookup
from utils.types import IGNORE_INDEX, Draw

DROPOUT_STREAM = 100  # of random numbers: beyond those of the paths, 2 * path and 2 * path + 1


def fixed_table(num_classes: int) -> Tensor:
    """K + 1 codes, evenly spaced over [-1.1, 1]; the last one is the ignore class's.

    The release has (k - 11) / 10 for K = 21, which this reproduces exactly. Its interval rather than its step is kept
    for other K: the teacher is trained on codes drawn from N(0, 1), and a step of 0.1 would put ADE20K's 150 classes
    out to 13 standard deviations.
    """
    k = torch.arange(num_classes + 1, dtype=torch.float64)
    return (k * 21 / num_classes - 11) / 10


# (table of K + 1 codes, what draws N(0, 1) of [B, K + 1], code_std) -> codes [B or 1, K + 1], of P planes [1, P, K + 1]
CODES: dict[str, Callable[[Tensor, Callable[[], Tensor], float], Tensor]] = {
    # one of its own for each image and class: the teacher phase
    "random": lambda table, normal, std: normal(),
    # the table plus a share of them: this project's own dial between a teacher that can copy the label (0) and one that
    # learns no more than its regions
    "near": lambda table, normal, std: table + std * normal(),
    # the same table for every image: the student phase
    "fixed": lambda table, normal, std: table[None],
    # the table in an order of its own for every image (present but commented out in the release)
    "shuffled": lambda table, normal, std: table[normal().argsort(1)],
    # a plane for each class, 1 where the class is; the ignore class is 0 in every plane (this project's ablation)
    "onehot": lambda table, normal, std: torch.ones_like(table).diag()[None, :-1],
}


def noised_plane(
    label: Tensor, codes: Tensor, noise: Tensor, pixel_std: float, scale: float, out: Tensor | None = None
) -> Tensor:
    """``scale * (code of each pixel's class + pixel_std * noise)``, in ``out`` where given, which may be ``noise``.

    label: integer ``[B, H, W]``, classes 0..K-1 or the ignore index, which is class K here.
    codes: ``[B, K + 1]``, or ``[B, P, K + 1]`` of several planes. noise: standard normal, as many values as the result,
    ``[B, P, H, W]`` in the type of ``codes``.
    """
    codes = codes.reshape(len(label), -1, codes.shape[-1])
    # every id from K on is the ignore class: a longer table is cheaper than clamping the ids
    table = torch.cat([codes, codes[..., -1:].expand(-1, -1, IGNORE_INDEX + 1 - codes.shape[-1])], 2)
    noise = noise.view(*table.shape[:2], *label.shape[1:])
    out = torch.empty_like(noise) if out is None else out
    # image by image: temporaries that stay in the processor's cache
    for planes, values, code, ids in zip(out, noise, table, label, strict=True):
        chosen = code.index_select(1, ids.flatten().int()).view_as(planes)
        torch.add(chosen, values, alpha=pixel_std, out=planes).mul_(scale)
    return out


class LabelNoise(nn.Module):
    """Label map -> noised planes: a scalar per class and plane, plus Gaussian noise per pixel.

    codes: a key of CODES. pixel_std: before scaling. scale: brings the planes to the range of the image's pixel
    convention. planes: the input channels it adds to the image's.

    Raises UserError: unknown kind of codes, or "near" without a strength.
    """

    def __init__(
        self, num_classes: int, codes: str, pixel_std: float, scale: float, code_std: float | None = None
    ) -> None:
        super().__init__()
        lookup(CODES, codes, "label codes")
        self.config = {"codes": codes, "pixel_std": pixel_std, "scale": scale}
        if codes == "near":
            if code_std is None or not 0 <= code_std < math.inf:
                raise UserError(f"label codes 'near' need --code-std S, a number from 0 on, not {code_std}")
            self.config["code_std"] = code_std
        self.pixel_std, self.scale, self.code_std = pixel_std, scale, code_std or 0.0
        self.register_buffer("table", fixed_table(num_classes), persistent=False)
        self.planes = self.codes(self.table, 1, Draw(0), 0).numel() // (num_classes + 1)

    def forward(self, label: Tensor, draw: Draw, path: int = 0) -> Tensor:
        """``label [B, H, W] -> [B, planes, H, W]``, float32; each ``path`` of one ``draw`` is an independent noise."""
        return self.add_planes(torch.empty(len(label), 0, *label.shape[1:], device=label.device), label, draw, path)

    def add_planes(self, image: Tensor, label: Tensor, draw: Draw, path: int = 0, dropout: float = 0.0) -> Tensor:
        """Return ``image [B, C, H, W]`` with the planes behind its channels, each written once: no concatenation.

        dropout: the share of images that are shown a plane of zeros, one draw an image, the same in every path. Only
        training asks for it.
        """
        channels = image.shape[1]
        x = image.new_empty(len(image), channels + self.planes, *image.shape[2:])
        x[:, :channels] = image
        codes = self.codes(self.table.to(x.dtype), len(x), draw, path)
        noise = draw.normal(x[:, channels:], 2 * path + 1)
        noised_plane(label, codes, noise, self.pixel_std, self.scale, out=noise)
        if dropout:
            shown = draw.uniform(len(x), DROPOUT_STREAM, x.device) >= dropout
            x[:, channels:].mul_(shown.view(-1, 1, 1, 1))
        return x

    def codes(self, table: Tensor, batch: int, draw: Draw, path: int) -> Tensor:
        """``[B, K + 1]``, or ``[B, planes, K + 1]``."""
        codes = CODES[self.config["codes"]](
            table, lambda: draw.normal(table.new_empty(batch, len(table)), 2 * path), self.code_std
        )
        return codes.expand(batch, *codes.shape[1:])
