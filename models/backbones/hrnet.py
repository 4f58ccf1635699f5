"""HRNet (Wang et al., TPAMI 2020) from timm, with the fusion of MMSegmentation's segmentation networks."""

from torch import Tensor, nn

from utils.bilinear import resize


class HRModule(nn.Module):
    """Exchange features between the resolutions: run each branch, then add all branches at each resolution.

    This is MMSegmentation's HRModule. It takes over the layers of timm's module, so that the keys stay. It differs from
    timm's in two points. Coarser maps are upsampled bilinearly (timm: nearest neighbour). And they are upsampled to the
    exact size of the finer map, so that image sides need not be multiples of 32 (timm: an error).
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.branches = module.branches
        self.fuse_layers = module.fuse_layers
        self.fuse_act = module.fuse_act
        for layer in self.fuse_layers.modules():
            if isinstance(layer, nn.Upsample):
                layer.mode = "bilinear"

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return the fused maps, one for each output resolution of the module."""
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        fused = []
        for target, layers in zip(maps, self.fuse_layers, strict=False):  # the last module of a network may give fewer
            terms = [resize(layer(x), target.shape[-2:]) for layer, x in zip(layers, maps, strict=True)]
            total = sum(terms[1:], terms[0])
            fused.append(self.fuse_act(total))
        return fused
