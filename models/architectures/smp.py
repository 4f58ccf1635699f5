"""Decoders of segmentation_models_pytorch (MIT) as architectures: ``--model smp_fpn``, ``smp_unet``, ...

The library builds encoder and decoder; this file takes them apart into a ``Segmentor``, so that they train, distil and
are saved like every other network here. The library's final upsampling is left out: ``logits`` have the decoder's own
stride, and whoever needs full-size logits upsamples them with corners aligned, as the library does.
"""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import Pool
from models.segmentor import Segmentor
from utils.bilinear import resize
from utils.errors import UserError, first_line, nearest
from utils.types import Output, Supervision

# architecture -> the library's name. Its DPT is not here: it reads the tokens of a vision transformer beside the maps,
# and runs at one image size only.
DECODERS = {
    f"smp_{name}": name
    for name in (
        "unet",
        "unetplusplus",
        "manet",
        "linknet",
        "fpn",
        "pspnet",
        "deeplabv3",
        "deeplabv3plus",
        "pan",
        "upernet",
        "segformer",
    )
}
OWN = "smp-"  # prefix of the library's own encoders: "resnet34" is timm's network, "smp-resnet34" the library's
# what the library's constructors take and this project decides, or has no use for
NOT_OPTIONS = {
    "self",
    "encoder_name",
    "encoder_weights",
    "in_channels",
    "classes",
    "activation",
    "aux_params",
    "kwargs",
}
# what the library and timm raise for an encoder or an option they cannot use
BUILD_FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
SMALLEST_MAP = {"smp_pan": 8}  # cells a side that a decoder needs of the encoder's last map: it halves it three times


def encoder_name(backbone: str) -> str:
    """Return the library's name of a backbone: timm's networks have the prefix "tu-" there, its own have none.

    Raises UserError: the backbone is neither timm's nor, with the prefix "smp-", the library's own.
    """
    import timm
    from segmentation_models_pytorch.encoders import encoders

    if timm.is_model(backbone):
        return f"tu-{backbone}"
    own = backbone.removeprefix(OWN)
    if backbone.startswith(OWN) and own in encoders:
        return own
    if backbone.startswith("tu-") and timm.is_model(backbone.removeprefix("tu-")):
        raise UserError(f"backbone {backbone!r}: timm's networks go by timm's names here: {backbone[3:]!r}")
    if own in encoders:
        raise UserError(
            f"backbone {backbone!r} is an encoder of segmentation_models_pytorch: write {OWN + own!r} "
            f"(only for --model smp_...)"
        )
    hint = nearest(backbone, [*(OWN + name for name in encoders), *timm.list_models()])
    raise UserError(f"unknown backbone {backbone!r}{hint} (a timm name, or smp-NAME for an encoder of the library)")


def library_class(arch: str) -> type[nn.Module]:
    """Return the library's class of an architecture. Its import takes seconds, so it waits until it is needed."""
    import segmentation_models_pytorch as library

    return library.MODEL_ARCHITECTURES_MAPPING[DECODERS[arch]]


def decoder_options(arch: str) -> tuple[str, ...]:
    """Return what of a decoder may be chosen: the library's arguments, such as ``decoder_pyramid_channels``."""
    parameters = inspect.signature(library_class(arch).__init__).parameters
    return tuple(name for name in parameters if name not in NOT_OPTIONS)


def build_smp(arch: str, backbone: str, num_classes: int, **options: Any) -> "PaddedSegmentor":
    """Build a decoder of the library on one of its encoders, with random weights and three input channels.

    options: see ``decoder_options``.

    Raises UserError: an unknown backbone, one that this decoder cannot read, or a bad option.
    """
    name = encoder_name(backbone)
    try:
        model = library_class(arch)(name, encoder_weights=None, classes=num_classes, **options)
        network = PaddedSegmentor(arch, model)
        network.try_small_image(getattr(model.segmentation_head[1], "scale_factor", 1))
    except BUILD_FAILURES as error:
        reason = first_line(error) if str(error) else "timm does not build it with the stride that this decoder needs"
        raise UserError(
            f"{arch} cannot be built on backbone {backbone!r}: {reason}; it needs maps at strides 2 or 4 to "
            f"32 for images of any size, such as those of resnet18 or tf_efficientnet_lite0"
        ) from error
    return network


class DecoderBranch(nn.Module):
    """The library's decoder and the convolution of its head. Like ``Branch``, with all of the encoder's maps."""

    def __init__(self, decoder: nn.Module, classifier: nn.Conv2d) -> None:
        super().__init__()
        self.head = decoder
        self.classifier = classifier
        self.supervision = Supervision(align_corners=True)

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits ``[B, K, h, w]`` and the classifier's input ``[B, C, h, w]``."""
        feat = self.head(list(features))  # a copy: some decoders write into the list
        return self.classifier(feat), feat


class PaddedSegmentor(Segmentor):
    """A network that reads images of any size, though its encoder needs sides that its stride divides.

    Other images are padded at the bottom and right with zeros (the mean colour). Their logits are then upsampled to the
    padded size and cropped to the image, so that nothing is stretched: they have the image's size, not the decoder's
    stride. ``feat`` keeps the stride and is cropped to the cells that the image covers.
    """

    def __init__(self, arch: str, model: nn.Module) -> None:
        """Take the library's ``model`` apart."""
        replace_pools(model.decoder)
        super().__init__(model.encoder, DecoderBranch(model.decoder, model.segmentation_head[0]))
        self.divisor = model.encoder.output_stride
        self.smallest = self.divisor * SMALLEST_MAP.get(arch, 1)

    def forward(self, x: Tensor, with_aux: bool = True) -> Output:
        """Return logits of the decoder's stride, or of the image's size where it had to be padded."""
        height, width = x.shape[-2:]
        bottom, right = self._missing(height), self._missing(width)
        if not torch.compiler.is_exporting() and bottom == 0 and right == 0:
            logits, feat = self.main(self.backbone(x))
            return Output(logits, (), feat)
        padded = F.pad(x, (0, right, 0, bottom))
        logits, feat = self.main(self.backbone(padded))
        stride = padded.shape[-2] // feat.shape[-2]
        logits = resize(logits, padded.shape[-2:], align_corners=True)
        rows, columns = (height + stride - 1) // stride, (width + stride - 1) // stride
        return Output(logits[..., :height, :width], (), feat[..., :rows, :columns])

    def _missing(self, side: int) -> int:
        """Return how many rows or columns a side lacks.

        The form matters to torch's exporter: of ``max(-side % divisor, smallest - side)``, which is the same, it does
        not see that the padded side is a multiple of the divisor, and takes minutes over the sizes of all maps.
        """
        cells = (side + self.divisor - 1) // self.divisor
        if self.smallest > self.divisor:
            cells = max(cells, self.smallest // self.divisor)
        return cells * self.divisor - side

    def try_small_image(self, upsampling: float) -> None:
        """Try the network on one small image, and freeze the encoder's layers that the decoder does not read.

        DistributedDataParallel waits for the gradient of every parameter, and those layers never get one.

        Raises ValueError: the library's final upsampling would not lead back to the image's size.
        """
        side = max(64, self.smallest)
        self.eval()
        logits = self(torch.zeros(1, 3, side, side + self.divisor)).logits
        if torch.is_grad_enabled():
            logits.sum().backward()
            for parameter in self.parameters():
                parameter.requires_grad_(parameter.grad is not None)
            self.zero_grad(set_to_none=True)
        self.train()
        if logits.shape[-2] * upsampling != side:
            raise ValueError(f"its logits are at stride {side // logits.shape[-2]}, 'upsampling' is {upsampling:g}")


def replace_pools(module: nn.Module) -> None:
    """Let pyramid pools repeat to the bit where runs must repeat; they have no weights, so keys stay."""
    for name, child in module.named_children():
        if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size not in (1, (1, 1)):
            setattr(module, name, Pool(child.output_size))
        else:
            replace_pools(child)
