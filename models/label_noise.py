"""The noised label that an assisted teacher sees next to the image (LAD, train_baseline.py:387-450).

Each class has a code: a number, or one number for each plane. A label plane shows the code of each pixel's class, plus
Gaussian noise.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from utils.errors import UserError, require_known
from utils.seeding import RowGenerator
from utils.types import IGNORE_INDEX

LABEL_DROPOUT_STREAM = 100  # of a RowGenerator; path p uses its streams 2 p (codes) and 2 p + 1 (pixel noise)


def make_fixed_table(num_classes: int) -> Tensor:
    """Make K + 1 codes, evenly spaced over [-1.1, 1], float64. The last code is that of ignored pixels.

    The release has (k - 11) / 10 for K = 21, which this gives exactly. For other K the interval is kept, not the step:
    the teacher learns with codes from N(0, 1), and a step of 0.1 would reach 13 standard deviations with ADE20K's 150
    classes.
    """
    k = torch.arange(num_classes + 1, dtype=torch.float64)
    return (k * 21 / num_classes - 11) / 10


def give_random_codes(table: Tensor, normal: Tensor, code_std: float) -> Tensor:
    """Return a code from N(0, 1) for each class of each image. LAD trains its teacher with these."""
    return normal


def compute_near_codes(table: Tensor, normal: Tensor, code_std: float) -> Tensor:
    """Compute codes near the table: its codes plus ``code_std`` times N(0, 1).

    This is a dial of this project. At 0 the teacher can copy the label; at a large value it learns only its regions.
    """
    return table + code_std * normal


def give_fixed_codes(table: Tensor, normal: Tensor, code_std: float) -> Tensor:
    """Return the same codes, those of the table, for every image. LAD trains its student with these."""
    return table[None]


def shuffle_codes(table: Tensor, normal: Tensor, code_std: float) -> Tensor:
    """Shuffle the table for each image. The release has this, but commented out."""
    return table[normal.argsort(1)]


def make_onehot_codes(table: Tensor, normal: Tensor, code_std: float) -> Tensor:
    """Make a plane for each class, which is 1 where the class is. Ignored pixels are 0 in every plane.

    This is an ablation of this project.
    """
    return torch.ones_like(table).diag()[None, :-1]


# kind of codes -> function (table of K + 1 codes, standard normal numbers [B, K + 1], code_std) that returns the codes:
# [B, K + 1], or [1, K + 1] for the same codes in every image, or [1, P, K + 1] for P planes
CODES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "random": give_random_codes,
    "near": compute_near_codes,
    "fixed": give_fixed_codes,
    "shuffled": shuffle_codes,
    "onehot": make_onehot_codes,
}


def count_planes(codes: str, num_classes: int) -> int:
    """Return how many label planes a kind of codes makes."""
    return num_classes if codes == "onehot" else 1


def compute_noised_planes(
    label: Tensor, codes: Tensor, noise: Tensor, pixel_std: float, scale: float, out: Tensor | None = None
) -> Tensor:
    """Compute ``scale * (code of each pixel's class + pixel_std * noise)``: ``[B, P, H, W]``.

    label: integer ``[B, H, W]``, classes 0..K-1 or the ignore index, whose code is the last one.
    codes: ``[B, K + 1]``, or ``[B, P, K + 1]`` for several planes.
    noise: standard normal numbers, ``[B, P, H, W]`` or as many in another shape, in the type of ``codes``.
    out: tensor ``[B, P, H, W]`` that receives the result; it may be ``noise`` itself.
    """
    codes = codes.reshape(len(label), -1, codes.shape[-1])
    # A longer table, in which every id from K on has the code of ignored pixels, is cheaper than clamping the ids.
    ignored = codes[..., -1:].expand(-1, -1, IGNORE_INDEX + 1 - codes.shape[-1])
    table = torch.cat([codes, ignored], 2)
    noise = noise.view(*table.shape[:2], *label.shape[1:])
    out = torch.empty_like(noise) if out is None else out
    # image by image, so that temporary values stay in the processor's cache
    for image_out, image_noise, image_table, image_label in zip(out, noise, table, label, strict=True):
        pixel_codes = image_table.index_select(1, image_label.flatten().int()).view_as(image_out)
        torch.add(pixel_codes, image_noise, alpha=pixel_std, out=image_out).mul_(scale)
    return out


class LabelNoise(nn.Module):
    """Turn labels into noised planes: the code of each pixel's class plus Gaussian noise for each pixel.

    Attributes:
        planes: number of input channels that it adds to the image's.
        config: the arguments that make the same noise again; a checkpoint's card stores them.
    """

    def __init__(
        self, num_classes: int, codes: str, pixel_std: float, scale: float, code_std: float | None = None
    ) -> None:
        """Set the kind and strength of the noise.

        codes: a key of CODES. pixel_std: standard deviation of the pixel noise, before scaling. scale: factor that
        brings the planes to the range of the image's pixel convention. code_std: strength of the codes "near".

        Raises:
            UserError: the kind of codes is unknown, or it is "near" and ``code_std`` is missing or negative.
        """
        super().__init__()
        require_known(codes, CODES, "label codes")
        self.config = {"codes": codes, "pixel_std": pixel_std, "scale": scale}
        if codes == "near":
            if code_std is None or not 0 <= code_std < math.inf:
                raise UserError(f"label codes 'near' need --code-std S, a number from 0 on, not {code_std}")
            self.config["code_std"] = code_std
        self.pixel_std = pixel_std
        self.scale = scale
        self.code_std = code_std or 0.0
        self.register_buffer("table", make_fixed_table(num_classes), persistent=False)
        self.planes = count_planes(codes, num_classes)

    def forward(self, label: Tensor, generator: RowGenerator, path: int = 0) -> Tensor:
        """Make the planes of labels ``[B, H, W]``: float32 ``[B, planes, H, W]``.

        generator: where the random numbers come from. path: each path of one generator has independent noise.
        """
        no_image = torch.empty(len(label), 0, *label.shape[1:], device=label.device)
        return self.add_planes(no_image, label, generator, path)

    def add_planes(
        self, image: Tensor, label: Tensor, generator: RowGenerator, path: int = 0, dropout: float = 0.0
    ) -> Tensor:
        """Return ``[B, C + planes, H, W]``: the channels of ``image [B, C, H, W]``, then the label planes.

        The planes are written directly into the result; ``torch.cat`` would copy them.

        dropout: share of images whose planes are all zero, for training. An image is dropped in all paths or in none.
        """
        channels = image.shape[1]
        x = image.new_empty(len(image), channels + self.planes, *image.shape[2:])
        x[:, :channels] = image
        codes = self.draw_codes(self.table.to(x.dtype), len(x), generator, path)
        noise = generator.normal(x[:, channels:], 2 * path + 1)
        compute_noised_planes(label, codes, noise, self.pixel_std, self.scale, out=noise)
        if dropout:
            keeps_label = generator.uniform(len(x), LABEL_DROPOUT_STREAM, x.device) >= dropout
            x[:, channels:].mul_(keeps_label.view(-1, 1, 1, 1))
        return x

    def draw_codes(self, table: Tensor, batch: int, generator: RowGenerator, path: int) -> Tensor:
        """Draw the codes of a batch: ``[B, K + 1]``, or ``[B, planes, K + 1]``. ``table`` has the fixed codes."""
        normal = generator.normal(table.new_empty(batch, len(table)), 2 * path)  # some kinds of codes do not use it
        codes = CODES[self.config["codes"]](table, normal, self.code_std)
        return codes.expand(batch, *codes.shape[1:])


def list_fitting_codes(num_classes: int, planes: int) -> list[str]:
    """List the kinds of label codes that make so many planes."""
    return [kind for kind in CODES if count_planes(kind, num_classes) == planes]
