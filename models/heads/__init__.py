"""Heads: a map in, a map of ``out_channels`` channels out; the classifier is the branch's."""

from functools import partial

from mmcv.cnn import ConvModule

# convolution without bias, BatchNorm, ReLU; keys conv.weight and bn.*
conv_norm_act = partial(ConvModule, norm_cfg={"type": "BN"}, act_cfg={"type": "ReLU"})
