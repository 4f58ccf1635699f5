"""The projector from student to teacher features that all losses of CIRKD share (winycg/CIRKD)."""

from torch import nn


def build_conv_bn_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    """Build a 1x1 convolution without bias, BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def build_projector(student_channels: int, teacher_channels: int) -> nn.Sequential:
    """Build CIRKD's projector: 1x1 convolution, BatchNorm, ReLU, 1x1 convolution; no biases in the convolutions."""
    projector = build_conv_bn_relu(student_channels, teacher_channels)
    return projector.append(nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False))
