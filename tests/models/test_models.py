"""The models against torch, torchvision and timm under copied weights, and against hand-written truth."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
import torchvision
from timm.layers import DropPath as TimmDropPath
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitlab import config
from vitlab.models import layers
from vitlab.models.layers import (
    MLP,
    Attention,
    Block,
    ClassAttention,
    ClassBlock,
    DropPath,
    LayerScale,
    RelativePositionBias,
    attend,
)
from vitlab.models.registry import BUILDERS, build
from vitlab.paths import REPOSITORY

EXACT = {"rtol": 1e-4, "atol": 1e-5}  # float32, the same mathematics in another order


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def vit(**changes: object) -> config.ViT:
    return config.ViT(**({"name": "vit", "dim": 32, "depth": 2, "heads": 4, "mlp_ratio": 2.0, "patch_size": 8} | changes))


def resnet(depth: int, width: int = 8) -> config.ResNet:
    return config.ResNet(name="resnet", depth=depth, width=width)


def images(n: int = 3) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def shake(model: nn.Module) -> nn.Module:
    """Random weights everywhere, so that no zero or one hides a mistake."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return model


# ------------------------------------------------------------------------------------------------------ encoders


def to_explicit(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The torch encoder's state dict in the explicit encoder's names."""
    names = {
        "self_attn.in_proj_": "attn.qkv.",
        "self_attn.out_proj.": "attn.proj.",
        "linear1.": "mlp.fc1.",
        "linear2.": "mlp.fc2.",
        "encoder.layers.": "encoder.",
    }
    out = {}
    for key, value in state.items():
        for old, new in names.items():
            key = key.replace(old, new)
        out[key] = value
    return out


def same_gradients(ours: Tensor, theirs: Tensor, our_parameters: dict[str, Tensor], their_parameters: dict[str, Tensor]) -> None:
    """Of a random linear function of both outputs, by the parameters of one name."""
    weights = torch.randn(theirs.shape)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    assert our_parameters.keys() == their_parameters.keys()
    for name, p in their_parameters.items():
        torch.testing.assert_close(our_parameters[name].grad, p.grad, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_explicit_block_is_torchs_pre_norm_gelu_layer(mode: str) -> None:
    drop = 0.3 if mode == "eval" else 0.0  # dropout only in eval, where it must do nothing
    theirs = shake(nn.TransformerEncoderLayer(32, 4, 64, drop, "gelu", batch_first=True, norm_first=True)).train(mode == "train")
    ours = Block(32, Attention(32, 4, drop), 64, drop, 0.0, None, None).train(mode == "train")
    ours.load_state_dict(to_explicit(theirs.state_dict()))
    x = torch.randn(3, 17, 32)
    expected, got = theirs(x), ours(x)
    torch.testing.assert_close(got, expected, **EXACT)
    same_gradients(got, expected, dict(ours.named_parameters()), to_explicit(dict(theirs.named_parameters())))


@pytest.mark.parametrize("stem", ["patch", "resnet18"])
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("distill_token", [False, True])
def test_torch_encoder_is_pytorchs_with_its_defaults(stem: str, mode: str, distill_token: bool) -> None:
    """Post-norm, ReLU, no norm after the last layer: each token's head reads what nn.TransformerEncoder puts out."""
    drop = 0.3 if mode == "eval" else 0.0
    model = shake(build(vit(stem=stem, stem_width=8, encoder="torch", distill_token=distill_token, dropout=drop), 10)).train(
        mode == "train"
    )
    layer = nn.TransformerEncoderLayer(d_model=32, nhead=4, dim_feedforward=64, dropout=drop, batch_first=True)
    theirs = nn.TransformerEncoder(layer, num_layers=2).train(mode == "train")
    theirs.load_state_dict(model.encoder.state_dict())
    stem_out = model.stem(images()).flatten(2).transpose(1, 2)
    tokens = torch.cat((model.tokens.expand(3, -1, -1), stem_out), dim=1) + model.position
    encoded = theirs(tokens)
    expected = torch.stack([head(encoded[:, i]) for i, head in enumerate(model.heads)])
    got = model.forward_heads(images())
    torch.testing.assert_close(got, expected, **EXACT)
    same_gradients(got, expected, dict(model.encoder.named_parameters()), dict(theirs.named_parameters()))


def test_torch_encoder_under_no_grad_is_itself() -> None:
    """Evaluation takes PyTorch's fused fast path; it must say the same."""
    model = shake(build(vit(encoder="torch"), 10)).eval()
    with_grad = model(images())
    with torch.no_grad():
        torch.testing.assert_close(model(images()), with_grad, **EXACT)


def test_dropout_falls_where_torchs_encoder_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[object, ...]] = []
    theirs, attention, ours = F.dropout, F.scaled_dot_product_attention, layers.dropout

    def spy_theirs(x: Tensor, p: float, training: bool = True, inplace: bool = False) -> Tensor:
        if training and p > 0:
            seen.append((p, *x.shape))
        return theirs(x, p, training, inplace)

    def spy_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, *rest: bool) -> Tensor:
        if dropout_p > 0:
            seen.append((dropout_p, *q.shape[:-1], k.shape[-2]))
        return attention(q, k, v, attn_mask, dropout_p, *rest)

    def spy_ours(x: Tensor, p: float) -> Tensor:
        if p > 0:
            seen.append((p, *x.shape))
        return ours(x, p)

    monkeypatch.setattr(F, "dropout", spy_theirs)
    monkeypatch.setattr(F, "scaled_dot_product_attention", spy_attention)
    monkeypatch.setattr(layers, "dropout", spy_ours)
    p, n, dim, hidden, heads = 0.1, 17, 32, 64, 4

    def block(q: int) -> list[tuple[object, ...]]:
        return [(p, 3, heads, q, n), (p, 3, q, dim), (p, 3, q, hidden), (p, 3, q, dim)]

    for encoder, last in (("torch", n), ("explicit", 1)):  # of its last block the explicit one computes the class token alone
        model = build(vit(encoder=encoder, dropout=p), 10)
        model.train()(images())
        assert seen == [(p, 3, n, dim), *block(n), *block(last)], encoder
        seen.clear()
        model.eval()(images())
        assert not seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dropout_keeps_its_share_and_the_mean(dtype: torch.dtype) -> None:
    """Each place with probability p, by itself; what is kept is divided by 1 - p; the gradient goes where the values went."""
    torch.manual_seed(5)
    x = torch.ones(400, 501, dtype=dtype, requires_grad=True)  # no multiple of the eight draws that come at once
    for asked, p in ((0.05, 13 / 256), (0.5, 0.5), (0.9, 230 / 256), (0.01, 655 / 65536), (0.001, 66 / 65536), (0.999, 65470 / 65536)):
        y = layers.dropout(x, asked)
        kept = y != 0
        torch.testing.assert_close(y.unique(), torch.tensor([0.0, 1 / (1 - p)], dtype=dtype), rtol=1e-6, atol=0)
        n = x.numel()
        assert abs(kept.sum().item() - n * (1 - p)) < 4 * (n * p * (1 - p)) ** 0.5
        pairs = (kept[:, 1:] & kept[:, :-1]).double().mean().item()  # neighbours are independent
        assert abs(pairs - (1 - p) ** 2) < 4 * ((1 - p) ** 2 / n) ** 0.5 * 2
        (grad,) = torch.autograd.grad(y.float().sum(), x)
        assert torch.equal(grad, y)


def test_dropout_draws_from_torchs_generator() -> None:
    """Whose state is in the checkpoint, so that a resumed run drops the same."""
    x = torch.ones(64, 64)
    torch.manual_seed(1)
    first = layers.dropout(x, 0.5)
    state = torch.get_rng_state()
    second = layers.dropout(x, 0.5)
    torch.set_rng_state(state)
    assert torch.equal(layers.dropout(x, 0.5), second)
    assert not torch.equal(first, second)
    assert layers.dropout(x, 0.0) is x
    assert layers.Dropout(0.5).eval()(x) is x


@pytest.mark.parametrize("position", ["learned", "relative"])
@pytest.mark.parametrize("class_attention", [0, 1])
def test_the_last_block_leaves_out_only_what_nobody_reads(position: str, class_attention: int) -> None:
    model = shake(build(vit(position=position, class_attention=class_attention, distill_token=True, layer_scale=0.1), 10))
    x = torch.randn(3, 18, 32)
    whole = x
    for block in model.encoder:
        whole = block(whole)
    assert whole.shape == x.shape
    few = model.encoder(x)
    assert few.shape == (3, 2, 32)
    torch.testing.assert_close(few, whole[:, :2], **EXACT)
    ours, theirs = (torch.autograd.grad(y.square().sum(), list(model.encoder.parameters())) for y in (few, whole[:, :2]))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


def test_dropout_rate_is_torchs() -> None:
    """A block's variance under dropout, over many draws, equals nn.TransformerEncoderLayer's."""
    theirs = shake(nn.TransformerEncoderLayer(8, 2, 16, 0.4, "gelu", batch_first=True, norm_first=True)).train()
    ours = Block(8, Attention(8, 2, 0.4), 16, 0.4, 0.0, None, None).train()
    ours.load_state_dict(to_explicit(theirs.state_dict()))
    x = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(3)).expand(20_000, -1, -1)
    with torch.no_grad():
        a, b = theirs(x), ours(x)
    torch.testing.assert_close(b.mean(0), a.mean(0), rtol=0, atol=0.06)
    torch.testing.assert_close(b.std(0), a.std(0), rtol=0.05, atol=0.01)


def test_dropout_rate_of_pytorchs_encoder_is_its_own() -> None:
    """The built-in layer with our attention and dropout varies as it does with its own."""
    theirs = shake(nn.TransformerEncoderLayer(8, 2, 16, 0.4, batch_first=True)).train()
    (ours,) = build(vit(encoder="torch", dim=8, heads=2, mlp_ratio=2.0, depth=1, dropout=0.4), 10).encoder.layers
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(3)).expand(20_000, -1, -1)
    with torch.no_grad():
        a, b = theirs(x), ours.train()(x)
    torch.testing.assert_close(b.mean(0), a.mean(0), rtol=0, atol=0.06)
    torch.testing.assert_close(b.std(0), a.std(0), rtol=0.05, atol=0.01)


def test_both_encoders_start_alike() -> None:
    """Truncated normal of 0.02 for every linear map, zero biases, and no two layers the same (nn.TransformerEncoder copies one)."""
    for encoder in ("torch", "explicit"):
        model = build(vit(encoder=encoder, dim=64), 10)
        state = to_explicit(model.state_dict())
        linear = [n for n, p in state.items() if p.ndim > 1 and n.endswith("weight")]
        assert len(linear) == 1 + 2 * 4 + 1  # patch embedding, two blocks, head
        for name in linear:
            assert state[name].std().item() == pytest.approx(0.02, rel=0.2), name
            assert state[name.replace("weight", "bias")].count_nonzero() == 0
        assert not torch.equal(state["encoder.0.attn.qkv.weight"], state["encoder.1.attn.qkv.weight"])


# ------------------------------------------------------------------------------------------------------ timm


def to_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {
        "stem.": "patch_embed.proj.",
        "encoder.": "blocks.",
        "scale1.": "ls1.",
        "scale2.": "ls2.",
        "heads.0.": "head.",
        "heads.1.": "head_dist.",
    }
    out = {}
    for key, value in state.items():
        for old, new in names.items():
            key = key.replace(old, new)
        out[key] = value
    tokens = out.pop("tokens")
    out["cls_token"] = tokens[:, :1]
    if tokens.shape[1] == 2:
        out["dist_token"] = tokens[:, 1:]
    out["pos_embed"] = out.pop("position")
    return out


@pytest.mark.parametrize("layer_scale", [None, 0.1])
@pytest.mark.parametrize("distill_token", [False, True])
def test_vit_is_timms(layer_scale: float | None, distill_token: bool) -> None:
    ours = shake(build(vit(layer_scale=layer_scale, distill_token=distill_token), 7)).eval()
    kind = VisionTransformerDistilled if distill_token else VisionTransformer
    size = {"img_size": 32, "patch_size": 8, "num_classes": 7, "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0}
    # nn.LayerNorm: with epsilon 1e-5, as nn.TransformerEncoderLayer and CaiT have it; timm's own default is 1e-6
    theirs = kind(**size, init_values=layer_scale, norm_layer=nn.LayerNorm).eval()
    theirs.load_state_dict(to_timm(ours.state_dict()))
    torch.testing.assert_close(ours(images()), theirs(images()), **EXACT)


@pytest.mark.parametrize("special", [1, 2])
def test_class_attention_is_one_torch_attention_per_special_token(special: int) -> None:
    """Each token's query, over the patches alone, in an nn.MultiheadAttention of its own."""
    ours = shake(ClassAttention(32, 4, special))
    x = torch.randn(3, special + 16, 32)
    keys, values = (t.chunk(special) for t in ours.kv.weight.chunk(2))
    key_biases, value_biases = (t.chunk(special) for t in ours.kv.bias.chunk(2))
    expected = []
    for i in range(special):
        theirs = nn.MultiheadAttention(32, 4, batch_first=True)
        with torch.no_grad():
            theirs.in_proj_weight.copy_(torch.cat((ours.q[i].weight, keys[i], values[i])))
            theirs.in_proj_bias.copy_(torch.cat((ours.q[i].bias, key_biases[i], value_biases[i])))
        theirs.out_proj.load_state_dict(ours.proj[i].state_dict())
        expected.append(theirs(x[:, i : i + 1], x[:, special:], x[:, special:])[0])
    torch.testing.assert_close(ours(x), torch.cat(expected, dim=1), **EXACT)


def test_class_block_is_caits_around_its_attention() -> None:
    """z = special + gamma_1 attention(norm(x)); z + gamma_2 mlp(norm(z)) (CaiT, equation 5), the norms and the MLP one for both tokens."""
    block = shake(ClassBlock(32, ClassAttention(32, 4, special=2), 64, 0.0, 0.0, 0.1, None))
    x = torch.randn(3, 18, 32)
    attended = block.attn(F.layer_norm(x, (32,), block.norm1.weight, block.norm1.bias))
    z = x[:, :2] + block.scale1.gamma * attended
    z = z + block.scale2.gamma * block.mlp(F.layer_norm(z, (32,), block.norm2.weight, block.norm2.bias))
    torch.testing.assert_close(block(x)[:, :2], z, **EXACT)


@pytest.mark.parametrize("special", [1, 2])
def test_class_block_leaves_patches_untouched(special: int) -> None:
    block = ClassBlock(32, ClassAttention(32, 4, special), 64, 0.1, 0.1, 0.1, None).train()
    x = torch.randn(3, special + 16, 32)
    y = block(x)
    assert torch.equal(y[:, special:], x[:, special:])
    assert not torch.isclose(y[:, :special], x[:, :special]).all()


# ------------------------------------------------------------------------------------------------------ layers


@pytest.mark.parametrize("biased", [False, True])
def test_attend_is_softmax_attention(biased: bool) -> None:
    """Both ways of computing it, in float64 as truth; bfloat16 has 8 bits of mantissa."""
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 9, 8), torch.randn(2, 3, 9, 8)
    bias = torch.randn(3, 5, 9) if biased else None
    logits = torch.einsum("bhqd,bhnd->bhqn", q.double(), k.double()) / 8**0.5 + (bias.double() if biased else 0)
    truth = torch.einsum("bhqn,bhnd->bhqd", logits.exp() / logits.exp().sum(-1, keepdim=True), v.double())
    torch.testing.assert_close(attend(q, k, v, bias, 0.0).double(), truth, **EXACT)
    half = attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), bias, 0.0)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), truth, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attend_drops_weights(dtype: torch.dtype) -> None:
    """With v the identity the output is the weights: uniform here, so each is 0 or 1 / (N * keep)."""
    n = 16
    zeros, eye = torch.zeros(64, 2, n, n, dtype=dtype), torch.eye(n, dtype=dtype).expand(64, 2, n, n)
    weights = attend(zeros, zeros, eye, None, 0.25).float()
    kept = weights > 0
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.02)
    torch.testing.assert_close(weights[kept], torch.full_like(weights[kept], 1 / (n * 0.75)), rtol=0.01, atol=0)


@pytest.mark.parametrize(("grid", "special"), [(1, 1), (3, 1), (4, 2)])
def test_relative_position_bias_by_hand(grid: int, special: int) -> None:
    heads, n = 2, special + grid * grid
    module = shake(RelativePositionBias(heads, grid, special))
    expected = torch.empty(heads, n, n)
    for h in range(heads):
        for i in range(n):
            for j in range(n):
                if i < special:
                    table = module.special_to_special if j < special else module.special_to_patch
                    expected[h, i, j] = table[h, 0, 0].item()
                elif j < special:
                    expected[h, i, j] = module.patch_to_special[h, 0, 0].item()
                else:
                    (yi, xi), (yj, xj) = divmod(i - special, grid), divmod(j - special, grid)
                    expected[h, i, j] = (module.row[h, abs(yi - yj)] + module.col[h, abs(xi - xj)]).item()
    torch.testing.assert_close(module(), expected)


def test_relative_position_bias_is_each_blocks_own_and_used() -> None:
    model = build(vit(position="relative", depth=3, class_attention=1, distill_token=True), 10).eval()
    assert model.position is None
    *full, last = model.encoder
    assert [type(block.position) for block in full] == [RelativePositionBias, RelativePositionBias]
    assert last.position is None  # a class block: all its keys are patches, and one term for all changes nothing
    before = model(images())
    for block in full:
        saved = {k: v.clone() for k, v in block.position.state_dict().items()}
        shake(block.position)
        assert not torch.allclose(model(images()), before)
        block.position.load_state_dict(saved)
    assert torch.equal(model(images()), before)


def test_drop_path_is_timms() -> None:
    x = torch.randn(50, 4, 8)
    torch.manual_seed(5)
    expected = TimmDropPath(0.3).train()(x)
    torch.manual_seed(5)
    got = DropPath(0.3).train()(x)
    assert torch.equal(got, expected)
    dropped = (got == 0).flatten(1)
    assert torch.equal(dropped.any(1), dropped.all(1))  # whole samples
    assert 0 < dropped.all(1).sum() < 50
    assert DropPath(0.3).eval()(x) is x


def test_drop_path_rises_linearly_over_the_depth() -> None:
    model = build(vit(depth=5, drop_path=0.2, class_attention=2), 10)
    assert [type(block) for block in model.encoder] == [Block, Block, Block, ClassBlock, ClassBlock]
    assert [block.drop_path.p for block in model.encoder] == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])
    assert [block.drop_path.p for block in build(vit(depth=1, drop_path=0.2), 10).encoder] == [0.0]


def test_block_drops_each_branch_per_sample() -> None:
    """A sample's output is one of four: each branch dropped, or doubled at p = 0.5."""
    block = shake(Block(8, Attention(8, 2), 16, 0.0, 0.5, 0.5, None)).train()
    x = torch.randn(1, 5, 8)
    outcomes = []
    for first in (0, 2):
        y = x + first * block.scale1(block.attn(block.norm1(x)))
        outcomes += [y + second * block.scale2(block.mlp(block.norm2(y))) for second in (0, 2)]
    got = block(x.expand(40, -1, -1))
    matches = (got[None] - torch.stack(outcomes)).abs().flatten(2).amax(2) < 1e-5  # (4, 40)
    assert (matches.sum(0) == 1).all()
    assert matches.any(1).all()


def test_layer_scale_and_mlp() -> None:
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(LayerScale(8, 1e-2)(x), x * 0.01)
    mlp = shake(MLP(8, 16))
    hidden = x @ mlp.fc1.weight.T + mlp.fc1.bias
    exact_gelu = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    torch.testing.assert_close(mlp(x), exact_gelu @ mlp.fc2.weight.T + mlp.fc2.bias, **EXACT)


# ------------------------------------------------------------------------------------------------------ ResNet


def torchvision_resnet(depth: int) -> nn.Module:
    theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=10, zero_init_residual=True)
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    return theirs


@pytest.mark.parametrize(("depth", "training"), [(18, True), (50, False)])
def test_resnet_is_torchvisions(depth: int, training: bool) -> None:
    ours, theirs = shake(build(resnet(depth, 64), 10)).train(training), torchvision_resnet(depth).train(training)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours(images(2)), theirs(images(2)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("depth", [18, 50])
def test_resnet_starts_as_torchvisions(depth: int) -> None:
    """Every weight's spread, and the last batch norm of each branch at zero."""
    theirs = torchvision_resnet(depth).state_dict()
    nn.init.kaiming_normal_(theirs["conv1.weight"], mode="fan_out", nonlinearity="relu")  # the stem we put in
    for name, ours in build(resnet(depth, 64), 10).state_dict().items():
        if ours.numel() >= 64:  # all but fc's bias and the batch norms' counters
            mean, std = theirs[name].mean().item(), theirs[name].std().item()
            assert ours.mean().item() == pytest.approx(mean, abs=0.15 * std + 1e-6), name
            assert ours.std().item() == pytest.approx(std, rel=0.1, abs=1e-6), name


@pytest.mark.parametrize(("stages", "channels", "grid"), [(2, 128, 16), (3, 256, 8)])
def test_stem_is_resnet18_up_to_its_second_or_third_stage(stages: int, channels: int, grid: int) -> None:
    """The hybrid's tokens are torchvision's feature map, row by row, projected also where its channels are the dimension already."""
    model = shake(build(vit(stem="resnet18", stem_stages=stages, stem_width=64, dim=channels, depth=1), 10)).eval()
    theirs = torchvision_resnet(18).eval()
    theirs.load_state_dict(model.stem.state_dict(), strict=False)
    x = images(2)
    with torch.no_grad():
        names = ("conv1", "bn1", "relu", "layer1", "layer2", "layer3")[: 3 + stages]
        features = nn.Sequential(*[getattr(theirs, n) for n in names])(x)
        assert features.shape == (2, channels, grid, grid)
        tokens = torch.einsum("bchw,dc->bdhw", features, model.stem.proj.weight[:, :, 0, 0]) + model.stem.proj.bias[:, None, None]
        torch.testing.assert_close(model.stem(x), tokens, rtol=1e-3, atol=1e-3)
    narrow = build(vit(stem="resnet18", stem_stages=stages, stem_width=8), 10)
    assert narrow.stem.proj.weight.shape == (32, channels // 8, 1, 1)
    assert narrow.position.shape == (1, 1 + grid**2, 32)


# ------------------------------------------------------------------------------------------------------ every model

EVERY = {
    "vit": [
        vit(),
        vit(encoder="torch", dropout=0.1),
        vit(stem="resnet18", stem_width=8),
        vit(stem="resnet18", stem_width=8, stem_stages=2),
        vit(stem="resnet18", stem_width=8, encoder="torch", distill_token=True),
        vit(position="relative", patch_size=32),
        vit(depth=3, position="relative", class_attention=1, distill_token=True, layer_scale=1e-4, drop_path=0.1, dropout=0.1),
        vit(depth=3, stem="resnet18", stem_width=8, position="relative", class_attention=2),
        vit(class_attention=1, distill_token=True),
    ],
    "resnet": [resnet(18), resnet(50)],
}


def test_every_registered_model_is_tested() -> None:
    assert EVERY.keys() == BUILDERS.keys()


@pytest.mark.parametrize("cfg", [cfg for cfgs in EVERY.values() for cfg in cfgs], ids=lambda c: "-".join(map(str, c.model_dump().values())))
@pytest.mark.parametrize("bf16", [False, True])
def test_every_model_forward_and_backward(cfg: config.ViT | config.ResNet, bf16: bool) -> None:
    model = build(cfg, 5).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model.forward_heads(images())
    assert logits.shape == (len(model.head_names), 3, 5)
    F.cross_entropy(logits.float().flatten(0, 1), torch.arange(3).repeat(len(logits))).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
    model.eval()
    x = images()
    torch.testing.assert_close(model(x), model.forward_heads(x).mean(0))
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in model.parameters() if p.ndim == 4)


BACKWARD = """
import torch
from tests.support.experiments import LADDER
from vitlab import config
from vitlab.models import registry

for path in LADDER:
    model = registry.build(config.load(path, "quick").config.model, 10).train()
    for _ in range(5):
        model(torch.randn(32, 3, 32, 32)).sum().backward()
    print(path.stem)
"""


@pytest.mark.slow
def test_quicks_models_have_gradients_on_a_processor_without_avx512() -> None:
    """The variables make oneDNN and torch take their code for AVX2. It may crash, so it has a process of its own."""
    env = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", BACKWARD], cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)


def test_images_do_not_see_each_other() -> None:
    for cfg in (vit(depth=3, position="relative", class_attention=1, distill_token=True, stem="resnet18", stem_width=8), resnet(18)):
        model, x = shake(build(cfg, 5)).eval(), images()
        torch.testing.assert_close(model(x)[1:2], model(x[1:2]), **EXACT)


def test_heads_read_their_own_token() -> None:
    model = shake(build(vit(distill_token=True), 5)).eval()
    assert model.head_names == ("cls", "dist")
    before = model.forward_heads(images())
    with torch.no_grad():
        model.heads[1].bias += 1
    torch.testing.assert_close(model.forward_heads(images()), before + torch.tensor([0.0, 1.0])[:, None, None])


def test_no_weight_decay_names_the_tables() -> None:
    assert build(vit(), 5).no_weight_decay() == {"tokens", "position"}
    model = build(vit(depth=2, position="relative", class_attention=1), 5)
    assert model.no_weight_decay() == {
        "tokens",
        *(f"encoder.0.position.{t}" for t in ("special_to_special", "special_to_patch", "patch_to_special", "row", "col")),
    }
