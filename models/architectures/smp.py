"""Decoders of segmentation_models_pytorch (MIT) as architectures: ``--model smp_fpn``, ``smp_unet``, ...

The library builds encoder and decoder. This file puts them into a ``Segmentor``, so that they are trained, distilled
and saved like every other network here. The library's final upsampling is left out: ``logits`` have the decoder's own
stride. Code that needs full-size logits upsamples them with aligned corners, as the library does.
"""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import Pool, freeze_unused
from models.segmentor import Segmentor
from utils.bilinear import resize
from utils.errors import UserError, get_first_line, suggest_nearest
from utils.types import Output, Supervision

# architecture -> the library's name
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
# the library's name of a decoder that is left out -> the reason
LEFT_OUT = {"dpt": "it reads the tokens of a vision transformer, not the maps of an encoder"}
OWN_PREFIX = "smp-"  # "resnet34" is timm's network, "smp-resnet34" is the library's own encoder
# arguments of the library's constructors that this project sets itself or does not use
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
# exceptions that the library and timm raise for an encoder or an option that they cannot use
LIBRARY_FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
# smallest side, in positions, of the encoder's last map that a decoder can read; smp_pan halves it three times
SMALLEST_MAP = {"smp_pan": 8}


def find_encoder_name(backbone: str) -> str:
    """Find the library's name of a backbone. In the library, timm's networks have the prefix "tu-", its own have none.

    Raises:
        UserError: the backbone is neither a timm network nor, with the prefix "smp-", an encoder of the library.
    """
    import timm
    from segmentation_models_pytorch.encoders import encoders

    if timm.is_model(backbone):
        return f"tu-{backbone}"
    own = backbone.removeprefix(OWN_PREFIX)
    if backbone.startswith(OWN_PREFIX) and own in encoders:
        return own
    if backbone.startswith("tu-") and timm.is_model(backbone.removeprefix("tu-")):
        raise UserError(f"backbone {backbone!r}: timm's networks go by timm's names here: {backbone[3:]!r}")
    if own in encoders:
        raise UserError(
            f"backbone {backbone!r} is an encoder of segmentation_models_pytorch: write {OWN_PREFIX + own!r} "
            f"(only for --model smp_...)"
        )
    hint = suggest_nearest(backbone, [*(OWN_PREFIX + name for name in encoders), *timm.list_models()])
    raise UserError(f"unknown backbone {backbone!r}{hint} (a timm name, or smp-NAME for an encoder of the library)")


def get_library_class(arch: str) -> type[nn.Module]:
    """Return the library's class of an architecture. The library is imported here because that takes seconds."""
    import segmentation_models_pytorch as library

    return library.MODEL_ARCHITECTURES_MAPPING[DECODERS[arch]]


def list_decoder_options(arch: str) -> tuple[str, ...]:
    """List the arguments of the library that a user may choose, such as ``decoder_pyramid_channels``."""
    parameters = inspect.signature(get_library_class(arch).__init__).parameters
    return tuple(name for name in parameters if name not in NOT_OPTIONS)


def build_smp(arch: str, backbone: str, num_classes: int, **options: Any) -> "PaddedSegmentor":
    """Build a decoder of the library on one of its encoders, with random weights and three input channels.

    options: arguments of the library's constructor that ``list_decoder_options`` names.

    Raises:
        UserError: the backbone is unknown, this decoder cannot read it, or an option is wrong.
    """
    name = find_encoder_name(backbone)
    try:
        model = get_library_class(arch)(name, encoder_weights=None, classes=num_classes, **options)
        network = PaddedSegmentor(arch, model)
        logits = network.run_small_image()
        freeze_unused(network, logits.sum())  # layers of the encoder that the decoder does not read
        network.check_upsampling(logits, getattr(model.segmentation_head[1], "scale_factor", 1))
    except LIBRARY_FAILURES as error:
        reason = (
            get_first_line(error) if str(error) else "timm does not build it with the stride that this decoder needs"
        )
        raise UserError(
            f"{arch} cannot be built on backbone {backbone!r}: {reason}; it needs maps at strides 2 or 4 to "
            f"32 for images of any size, such as those of resnet18 or tf_efficientnet_lite0"
        ) from error
    return network


class DecoderBranch(nn.Module):
    """Compute a logit map: run the library's decoder on all maps of the encoder, and classify each position."""

    def __init__(self, decoder: nn.Module, classifier: nn.Conv2d) -> None:
        super().__init__()
        self.head = decoder
        self.classifier = classifier
        self.supervision = Supervision(align_corners=True)

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits ``[B, K, h, w]`` and the classifier's input ``[B, C, h, w]``. The list is left as it is."""
        feat = self.head(list(features))  # some decoders write into the list that they get
        return self.classifier(feat), feat


class PaddedSegmentor(Segmentor):
    """Segment images of any size with an encoder whose input must have sides that are multiples of its stride.

    Images with other sides are padded at the bottom and right with zeros, which is the mean colour. Their logits are
    upsampled to the padded size and cropped to the image, so that nothing is stretched. These logits have the image's
    size, not the decoder's stride. ``feat`` keeps the stride and is cropped to the positions that the image covers.
    """

    def __init__(self, arch: str, model: nn.Module) -> None:
        """Take encoder and decoder out of the library's ``model``, whose pyramid pools are replaced in place."""
        replace_pools(model.decoder)
        super().__init__(model.encoder, DecoderBranch(model.decoder, model.segmentation_head[0]))
        self.divisor = model.encoder.output_stride
        self.smallest = self.divisor * SMALLEST_MAP.get(arch, 1)

    def forward(self, x: Tensor, with_aux: bool = True) -> Output:
        """Return logits of the decoder's stride, or of the image's size if the image had to be padded.

        While the network is exported, they always have the image's size.
        """
        height, width = x.shape[-2:]
        bottom = self._count_missing(height)
        right = self._count_missing(width)
        is_exporting = torch.compiler.is_exporting()  # then the sides are unknown, and a comparison would fix them
        if not is_exporting and bottom == 0 and right == 0:
            logits, feat = self.main(self.backbone(x))
            return Output(logits, (), feat)
        padded = F.pad(x, (0, right, 0, bottom))
        logits, feat = self.main(self.backbone(padded))
        stride = padded.shape[-2] // feat.shape[-2]
        logits = resize(logits, padded.shape[-2:], align_corners=True)
        rows = (height + stride - 1) // stride
        columns = (width + stride - 1) // stride
        return Output(logits[..., :height, :width], (), feat[..., :rows, :columns])

    def _count_missing(self, side: int) -> int:
        """Return how many rows or columns must be added to a side: ``max(-side % divisor, smallest - side)``.

        It is computed in another form, in which torch's exporter sees that the padded side is a multiple of the
        divisor. With the short form the exporter would need minutes to find the sizes of all maps.
        """
        cells = (side + self.divisor - 1) // self.divisor
        if self.smallest > self.divisor:
            cells = max(cells, self.smallest // self.divisor)
        return cells * self.divisor - side

    @property
    def small_side(self) -> int:
        """Return the height of the image that a new network is tried on."""
        return max(64, self.smallest)

    def run_small_image(self) -> Tensor:
        """Return the logits of one small image, in eval mode. Leave the network in train mode."""
        self.eval()
        logits = self(torch.zeros(1, 3, self.small_side, self.small_side + self.divisor)).logits
        self.train()
        return logits

    def check_upsampling(self, logits: Tensor, factor: float) -> None:
        """Check that the library's final upsampling leads from the logits of ``run_small_image`` to the image's size.

        Raises:
            ValueError: it leads to another size.
        """
        height = logits.shape[-2]
        if height * factor != self.small_side:
            raise ValueError(f"its logits are at stride {self.small_side // height}, 'upsampling' is {factor:g}")


def replace_pools(module: nn.Module) -> None:
    """Replace pyramid pools by ``Pool``, which is deterministic if torch is set to that. They have no weights."""
    for name, child in module.named_children():
        if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size not in (1, (1, 1)):
            setattr(module, name, Pool(child.output_size))
        else:
            replace_pools(child)
