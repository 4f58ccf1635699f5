"""Keep sums and softmaxes out of half precision."""

import torch
from torch import Tensor


def widen_to_float32(x: Tensor) -> Tensor:
    """Return half precision as float32, and every other type as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
