"""HRNet (Wang et al., TPAMI 2020) from timm, with the fusion that MMSegmentation's segmentation nets have."""

from torch import Tensor, nn

from utils.bilinear import resize


class Fusion(nn.Module):
    """One exchange module: branches, then every output resolution is the sum of all branches brought to it.

    Takes over the layers of timm's module, so that its keys stay. Two differences: coarser maps are upsampled
    bilinearly (timm: nearest), and then to the exact size of the finer map, so that a side need not be a multiple of
    32 (timm: an error).
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.branches, self.fuse_layers, self.fuse_act = module.branches, module.fuse_layers, module.fuse_act
        for layer in self.fuse_layers.modules():
            if isinstance(layer, nn.Upsample):
                layer.mode = "bilinear"

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        fused = []
        for target, row in zip(maps, self.fuse_layers, strict=False):
            terms = [resize(layer(x), target.shape[-2:]) for layer, x in zip(row, maps, strict=True)]
            fused.append(self.fuse_act(sum(terms[1:], terms[0])))
        return fused
