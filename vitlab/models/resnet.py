"""torchvision's ResNets for 32 x 32 images: a 3x3 stem of stride 1, no max-pooling, and any width."""

from __future__ import annotations

import copy
import itertools
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import BasicBlock, Bottleneck

from vitlab import config
from vitlab.models.layers import OneHead

BLOCKS = {18: (BasicBlock, (2, 2, 2, 2)), 50: (Bottleneck, (3, 4, 6, 3))}


def features(block: type[BasicBlock | Bottleneck], depths: Sequence[int], width: int) -> OrderedDict[str, nn.Module]:
    """Return stem and stages under torchvision's names: together (B, 3, 32, 32) -> (B, C, r, r).

    Stage i (from 0) has `width` * 2^i planes and, except for i = 0, halves the resolution. With k = len(depths) stages, C = width * 2^(k -
    1) * block.expansion and r = 32 / 2^(k - 1).
    """
    layers = OrderedDict[str, nn.Module](
        conv1=nn.Conv2d(3, width, 3, padding=1, bias=False), bn1=nn.BatchNorm2d(width), relu=nn.ReLU(inplace=True)
    )
    channels = width
    for i, depth in enumerate(depths):
        planes = width * 2**i
        stage = []
        for j in range(depth):
            stride = 2 if i > 0 and j == 0 else 1
            downsample = None
            if stride != 1 or channels != planes * block.expansion:
                conv = nn.Conv2d(channels, planes * block.expansion, 1, stride=stride, bias=False)
                downsample = nn.Sequential(conv, nn.BatchNorm2d(planes * block.expansion))
            stage.append(block(channels, planes, stride, downsample))
            channels = planes * block.expansion
        layers[f"layer{i + 1}"] = nn.Sequential(*stage)
    for layer in layers.values():
        layer.apply(_initialise)
    return layers


def _initialise(module: nn.Module) -> None:
    """Initialise a module by He et al. 2015's fan-out rule, as torchvision does, and the last norm of each residual branch with zeros."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    # Each residual branch starts at zero, the block as the identity ("Bag of Tricks", He et al. 2019, section 3.1):
    # torchvision leaves this off (zero_init_residual), good recipes have it on. `apply` visits children first, so this stays.
    elif isinstance(module, BasicBlock):
        nn.init.zeros_(module.bn2.weight)
    elif isinstance(module, Bottleneck):
        nn.init.zeros_(module.bn3.weight)


def fold_batch_norms(model: nn.Module) -> nn.Module:
    """Return a copy of `model`, for evaluation alone, in which each convolution does the work of the batch norm behind it too."""
    model = copy.deepcopy(model).eval()
    for parent in model.modules():
        if isinstance(parent, nn.Sequential | BasicBlock | Bottleneck):  # their children stand in the order in which they compute
            for (name, conv), (after, norm) in itertools.pairwise(list(parent.named_children())):
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    setattr(parent, name, fuse_conv_bn_eval(conv, norm))
                    setattr(parent, after, nn.Identity())
    return model


class ResNet(OneHead):
    """ResNet-18 or -50 (He et al. 2016): (B, 3, 32, 32) -> (B, classes). At width 64 a state dict is torchvision's own."""

    def __init__(self, cfg: config.ResNet, classes: int) -> None:
        block, depths = BLOCKS[cfg.depth]
        layers = features(block, depths, cfg.width)
        layers["avgpool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(cfg.width * 8 * block.expansion, classes)
        super().__init__(layers)
