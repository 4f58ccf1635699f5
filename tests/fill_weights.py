"""Deterministic, name-keyed weight fill used to regenerate the reference logits.

Every tensor of a ``state_dict`` gets its values from a generator that is seeded
with nothing but the tensor's *own key*, so two models with the same keys and
shapes end up with the same weights no matter how their modules are ordered or
which framework built them.  Only numpy and torch are needed.

For a tensor stored under ``key`` with shape ``shape``::

    rng = numpy.random.default_rng(zlib.crc32(key.encode()))

    ndim >= 2                   rng.standard_normal(shape) * sqrt(2 / fan_in)
                                with fan_in = prod(shape[1:])
    1-D, key ends '.weight'     rng.uniform(0.5, 1.5, shape)  [norm scale] * gain(key)
    key ends '.bias'            0.1 * rng.standard_normal(shape)
    key ends '.running_mean'    0.1 * rng.standard_normal(shape)
    key ends '.running_var'     rng.uniform(0.5, 1.5, shape)
    'num_batches_tracked'       0

all computed in float64 and then cast to float32.

``gain(key)`` keeps deep residual nets finite and numerically comparable.  With
random (not calibrated) batch-norm statistics every residual addition multiplies
the activation variance, so a plain fill ends around 1e4..1e7 for ResNet-101 and
HRNet and saturates every softmax.  The later norms of a residual block (``bn2``
and ``bn3`` inside ``layerN.M`` or ``branches.N.M``) and the norms of the HRNet
fusion paths (1-D weights inside ``fuse_layers``) are therefore scaled by
``RESIDUAL_GAIN``; every other key, stems included, has gain 1.  The rule looks
at the key only and is the same for all models.

Two constants of the STDC detail head are left as the model built them, because
they are not learned: the Laplacian kernel and the fusion kernel.
"""

import math
import re
import zlib

import numpy as np
import torch

RESIDUAL_GAIN = 0.2
_CLOSING_NORM = re.compile(r"(?:layer\d+|branches\.\d+)\.\d+\.bn[23]\.weight$|fuse_layers\..*\.weight$")
_CONSTANTS = ("laplacian_kernel", "fusion_kernel")


def _rng(name):
    return np.random.default_rng(zlib.crc32(name.encode()))


def values_for(key, shape):
    """Values for one tensor: a float32 array, or None if ``key`` is a constant."""
    shape = tuple(int(s) for s in shape)
    name = key.rsplit(".", 1)[-1]
    if name in _CONSTANTS:
        return None
    rng = _rng(key)
    if name == "num_batches_tracked":
        out = np.zeros(shape)
    elif name in ("bias", "running_mean"):
        out = 0.1 * rng.standard_normal(shape)
    elif name == "running_var":
        out = rng.uniform(0.5, 1.5, shape)
    elif len(shape) >= 2:
        out = rng.standard_normal(shape) * math.sqrt(2.0 / math.prod(shape[1:]))
    elif name == "weight" and len(shape) == 1:
        out = rng.uniform(0.5, 1.5, shape)
        if _CLOSING_NORM.search(key):
            out = out * RESIDUAL_GAIN
    else:
        raise KeyError(f"no fill rule for {key} with shape {shape}")
    return np.asarray(out, dtype=np.float32)


def fill_state(shapes):
    """{key: shape} -> {key: tensor}, e.g. from ``reference_keys.json``.

    The two STDC constants are left out, so load the result with strict=False
    (or add them) when such a head is present.
    """
    state = {}
    for key, shape in shapes.items():
        value = values_for(key, shape)
        if value is None:
            continue
        tensor = torch.from_numpy(value)
        if key.endswith("num_batches_tracked"):
            tensor = tensor.long()
        state[key] = tensor
    return state


@torch.no_grad()
def fill_model(model):
    """Fill every parameter and buffer of ``model`` in place; returns the model."""
    for key, tensor in model.state_dict().items():
        value = values_for(key, tensor.shape)
        if value is not None:
            tensor.copy_(torch.from_numpy(value).to(tensor.dtype))
    return model


def reference_input(shape):
    """The network input that belongs to the fixtures (float32, N x C x H x W)."""
    return torch.from_numpy(_rng("input").standard_normal(tuple(shape)).astype(np.float32))
