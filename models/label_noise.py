"""The noised label that an assisted teacher sees next to the image (LAD, train_baseline.py:387-450)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from utils.errors import UserError, lookup
from utils.types import IGNORE_INDEX, Draw


def fixed_table(num_classes: int) -> Tensor:
    """K + 1 codes, evenly spaced over [-1.1, 1]; the last one is the ignore class's.

    The release has (k - 11) / 10 for K = 21, which this reproduces exactly. Its interval rather than its step is kept
    for other K: the teacher is trained on codes drawn from N(0, 1), and a step of 0.1 would put ADE20K's 150 classes
    out to 13 standard deviations.
    """
    k = torch.arange(num_classes + 1, dtype=torch.float64)
    return (k * 21 / num_classes - 11) / 10


def _random(table: Tensor, batch: int, draw: Draw, stream: int, code_std: float) -> Tensor:
    """A code ~ N(0, 1) per image and class: the teacher phase."""
    return draw.normal(table.new_empty(batch, len(table)), stream)


def _fixed(table: Tensor, batch: int, draw: Draw, stream: int, code_std: float) -> Tensor:
    """The same table for every image: the student phase."""
    return table.expand(batch, -1)


def _near(table: Tensor, batch: int, draw: Draw, stream: int, code_std: float) -> Tensor:
    """The table plus ``code_std`` * N(0, 1) per image and class: from "fixed" (0) towards "random", up to scale.

    This project's own dial between a teacher that can copy the label and one that learns no more than its regions.
    """
    return table + code_std * _random(table, batch, draw, stream, code_std)


def _shuffled(table: Tensor, batch: int, draw: Draw, stream: int, code_std: float) -> Tensor:
    """The fixed table in an order of its own for every image (present but commented out in the release)."""
    return table[_random(table, batch, draw, stream, code_std).argsort(1)]


def _onehot(table: Tensor, batch: int, draw: Draw, stream: int, code_std: float) -> Tensor:
    """A plane for each class instead of one for all: 1 where the class is, 0 elsewhere (this project's ablation).

    ``[B, K, K + 1]``; the ignore class is 0 in every plane.
    """
    classes = torch.eye(len(table) - 1, len(table), device=table.device, dtype=table.dtype)
    return classes.expand(batch, -1, -1)


CODES: dict[str, Callable[[Tensor, int, Draw, int, float], Tensor]] = {
    "random": _random,
    "near": _near,
    "fixed": _fixed,
    "shuffled": _shuffled,
    "onehot": _onehot,
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

    codes: "random" (one draw of N(0, 1) per image and class), "fixed" (one table), "near" (that table plus ``code_std``
    * N(0, 1) per image and class), "shuffled" (the table permuted per image) or "onehot" (a plane for each class).
    pixel_std: before scaling. scale: brings the planes to the range of the image's pixel convention. planes: the input
    channels it adds to the image's.

    Raises:
        UserError: unknown kind of codes, or "near" without a strength.
    """

    def __init__(
        self, num_classes: int, codes: str, pixel_std: float, scale: float, code_std: float | None = None
    ) -> None:
        super().__init__()
        self.draw_codes = lookup(CODES, codes, "label codes")
        self.config = {"codes": codes, "pixel_std": pixel_std, "scale": scale}
        if codes == "near":
            if code_std is None or not 0 <= code_std < math.inf:
                raise UserError(f"label codes 'near' need --code-std S, a number from 0 on, not {code_std}")
            self.config["code_std"] = code_std
        self.pixel_std, self.scale, self.code_std = pixel_std, scale, code_std or 0.0
        self.register_buffer("table", fixed_table(num_classes), persistent=False)
        self.planes = self.draw_codes(self.table, 1, Draw(0), 0, 0.0).numel() // (num_classes + 1)

    def forward(self, label: Tensor, draw: Draw, path: int = 0) -> Tensor:
        """``label [B, H, W] -> [B, planes, H, W]``, float32; each ``path`` of one ``draw`` is an independent noise."""
        planes = torch.empty(len(label), self.planes, *label.shape[1:], device=label.device)
        return self._write(planes, label, draw, path)

    def beside(self, image: Tensor, label: Tensor, draw: Draw, path: int = 0) -> Tensor:
        """``image [B, C, H, W]`` with the planes behind its channels, each written once: no concatenation."""
        channels = image.shape[1]
        x = image.new_empty(len(image), channels + self.planes, *image.shape[2:])
        x[:, :channels] = image
        self._write(x[:, channels:], label, draw, path)
        return x

    def _write(self, planes: Tensor, label: Tensor, draw: Draw, path: int) -> Tensor:
        codes = self.draw_codes(self.table.to(planes.dtype), len(label), draw, 2 * path, self.code_std)
        noise = draw.normal(planes, 2 * path + 1)
        return noised_plane(label, codes, noise, self.pixel_std, self.scale, out=noise)
