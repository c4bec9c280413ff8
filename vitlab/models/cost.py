"""Parameters and FLOPs of a model: by formula (FORMULAS), so that a plan loads no torch; models without a formula are built and counted.

One multiply-add is 2 FLOPs. Convolutions and matrix products count, nothing else does, as in torch.utils.flop_counter.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from vitlab import config
from vitlab.config import IMAGE_SIZE


@dataclass(frozen=True)
class Cost:
    """The cost of a part of a model. Parts are added, and multiplied by how often they occur."""

    parameters: int = 0
    flops: int = 0  # forward, one image

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.parameters + other.parameters, self.flops + other.flops)

    def __mul__(self, times: int) -> Cost:
        return Cost(self.parameters * times, self.flops * times)


def parameters(cfg: config.Schema, classes: int) -> int:
    """Return the model's number of trainable parameters."""
    return _formula(cfg, classes).parameters if cfg.name in FORMULAS else _counted(cfg, classes)[0]


def forward_flops(cfg: config.Schema, classes: int) -> int:
    """Return the FLOPs of one image's forward pass, all heads included."""
    return _formula(cfg, classes).flops if cfg.name in FORMULAS else _counted(cfg, classes)[1]


def training_flops(cfg: config.Schema, classes: int, teacher: int = 0) -> int:
    """Return the FLOPs of one image's training step: forward, backward, and `teacher`, those of the teacher's forward pass.

    Backward is twice forward, less the gradient of the image itself.
    """
    own = 3 * forward_flops(cfg, classes) - _first(cfg).flops if cfg.name in FORMULAS else _counted(cfg, classes)[2]
    return own + teacher


def _formula(cfg: config.ViT | config.ResNet, classes: int) -> Cost:
    return FORMULAS[cfg.name](cfg, classes)


@cache
def _counted(cfg: config.Schema, classes: int) -> tuple[int, int, int]:
    from vitlab.models.count import count  # late: it loads torch

    return count(cfg, classes)


def late_flops(cfg: config.ViT) -> int:
    """Return the forward FLOPs of the last third of the blocks, which is where class attention saves work. Plain blocks count whole."""
    third = max(1, cfg.depth // 3)
    saving = min(cfg.class_attention, third)  # class attention comes last
    return (_block(cfg, _special(cfg) + _grid(cfg) ** 2) * (third - saving) + _class_block(cfg) * saving).flops


def _special(cfg: config.ViT) -> int:
    """Return the number of tokens that are not patches: the class token, and the distillation token if there is one."""
    return 2 if cfg.distill_token else 1


def _grid(cfg: config.ViT) -> int:
    """Return the number of patches along a side. Each stage of the ResNet-18 stem but the first halves the resolution."""
    return IMAGE_SIZE // (cfg.patch_size if cfg.stem == "patch" else 2 ** (cfg.stem_stages - 1))


def _first(cfg: config.ViT | config.ResNet) -> Cost:
    """Return the cost of the layer that reads the image."""
    if isinstance(cfg, config.ViT) and cfg.stem == "patch":
        return _linear(3 * cfg.patch_size**2, cfg.dim, tokens=(IMAGE_SIZE // cfg.patch_size) ** 2)
    return _conv(3, cfg.stem_width if isinstance(cfg, config.ViT) else cfg.width, 3, IMAGE_SIZE)


def _resnet(cfg: config.ResNet, classes: int) -> Cost:
    features, channels = _features(cfg.width, (2, 2, 2, 2) if cfg.depth == 18 else (3, 4, 6, 3), bottleneck=cfg.depth == 50)
    return features + _linear(channels, classes)


def _linear(inputs: int, outputs: int, tokens: int = 1) -> Cost:
    return Cost(inputs * outputs + outputs, 2 * tokens * inputs * outputs)


def _conv(inputs: int, outputs: int, kernel: int, size: int) -> Cost:
    """Return the cost of a convolution without bias and the batch norm after it; the output is `size` x `size`."""
    weights = inputs * outputs * kernel**2
    return Cost(weights + 2 * outputs, 2 * weights * size**2)


def _features(width: int, depths: tuple[int, ...], bottleneck: bool) -> tuple[Cost, int]:
    """Return the cost of models.resnet.features, and the number of channels that come out of it."""
    cost, channels, size = _conv(3, width, 3, IMAGE_SIZE), width, IMAGE_SIZE
    for i, depth in enumerate(depths):
        planes = width * 2**i
        outputs = 4 * planes if bottleneck else planes
        for j in range(depth):
            before, size = size, size // 2 if i > 0 and j == 0 else size
            if bottleneck:  # as in torchvision the 3x3 convolution has the stride, so the first 1x1 works on the size before
                cost += _conv(channels, planes, 1, before) + _conv(planes, planes, 3, size) + _conv(planes, outputs, 1, size)
            else:
                cost += _conv(channels, planes, 3, size) + _conv(planes, planes, 3, size)
            if before != size or channels != outputs:
                cost += _conv(channels, outputs, 1, size)  # the shortcut
            channels = outputs
    return cost, channels


def _vit(cfg: config.ViT, classes: int) -> Cost:
    dim, grid, special = cfg.dim, _grid(cfg), _special(cfg)
    if cfg.stem == "patch":
        stem = _first(cfg)
    else:
        stem, channels = _features(cfg.stem_width, (2,) * cfg.stem_stages, bottleneck=False)
        stem += _linear(channels, dim, tokens=grid**2)
    tokens = special + grid**2
    added = special * dim + (tokens * dim if cfg.position == "learned" else 0)
    encoder = _block(cfg, tokens) * (cfg.depth - cfg.class_attention) + _class_block(cfg) * cfg.class_attention
    if cfg.encoder == "explicit":
        encoder += Cost(2 * dim)  # the final norm; PyTorch's post-norm layers have none after them
        if not cfg.class_attention:  # of the last block only the special tokens are computed
            encoder += Cost(flops=_block(cfg, special).flops - _block(cfg, tokens).flops)
    return stem + Cost(added) + encoder + _linear(dim, classes) * special


def _block(cfg: config.ViT, queries: int) -> Cost:
    """Return the cost of a block that updates `queries` of its tokens: all of them, or the special ones alone."""
    dim, grid = cfg.dim, _grid(cfg)
    tokens = _special(cfg) + grid**2
    attention = _linear(dim, dim, queries) + _linear(dim, 2 * dim, tokens) + _linear(dim, dim, queries)
    products = Cost(0, 2 * 2 * queries * tokens * dim)  # q k^T, and the weights times v
    # per head: special to special, special to patch, patch to special, and a distance's term for each row and each column
    bias = Cost(cfg.heads * (3 + 2 * grid) if cfg.position == "relative" else 0)
    return attention + products + bias + _mlp(cfg, queries)


def _class_block(cfg: config.ViT) -> Cost:
    """Return the cost of a block in which each special token attends to the patches, with an attention of its own."""
    dim, special, patches = cfg.dim, _special(cfg), _grid(cfg) ** 2
    attention = _linear(dim, dim) + _linear(dim, 2 * dim, patches) + _linear(dim, dim) + Cost(0, 2 * 2 * patches * dim)
    return attention * special + _mlp(cfg, special)


def _mlp(cfg: config.ViT, tokens: int) -> Cost:
    """Return the cost of a block without its attention: the MLP on `tokens`, two layer norms, two LayerScales."""
    dim, hidden = cfg.dim, int(cfg.dim * cfg.mlp_ratio)
    return _linear(dim, hidden, tokens) + _linear(hidden, dim, tokens) + Cost(2 * 2 * dim + (2 * dim if cfg.layer_scale is not None else 0))


FORMULAS = {"vit": _vit, "resnet": _resnet}
