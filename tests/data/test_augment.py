"""Batched augmentation against torchvision: given parameters bit for bit and image by image, draws by their distribution.

Blends are equal to the bit where torch adds with a fused multiply-add: on every x86-64 processor with AVX2 and on 64-bit ARM. Elsewhere
torchvision's own result may be one grey level off.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from vitlab import config
from vitlab.data import augment, ops
from vitlab.data.rng import seed_for

MEAN, STD = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
OPS = list(ops.TRIVIAL_AUGMENT)
THEIRS = v2.TrivialAugmentWide()  # its operations by name and magnitude are private, and the only ones of torchvision's to compare with
ALL = config.Augment(
    crop=4,
    flip=True,
    trivial_augment=1,
    erase=0.5,
    color_jitter=config.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
)
P_MIN = 1e-3  # of every test of a distribution; the seeds are fixed, so these pass or fail for good


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(height: int = 32, width: int = 32) -> Tensor:
    """(7, 3, H, W): noise, smooth colour gradients, low contrast, one grey, black, a saturated edge."""
    g = generator(1)
    noise = torch.randint(256, (1, 3, height, width), generator=g, dtype=torch.uint8)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = [127 + 60 * torch.sin(x / (3 + k) + k) + 60 * torch.cos(y / (5 + k) - k) for k in range(6)]
    smooth = torch.stack(waves).view(2, 3, height, width).to(torch.uint8)
    dull = torch.randint(100, 104, (1, 3, height, width), generator=g, dtype=torch.uint8)
    edge = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    edge[:, 0, :, width // 2 :] = 255
    return torch.cat([noise, smooth, dull, torch.full_like(dull, 93), torch.zeros_like(dull), edge])


def noise(batch: int) -> Tensor:
    return torch.randint(256, (batch, 3, 32, 32), generator=generator(2), dtype=torch.uint8)


def one_by_one(fn, images: Tensor, *params) -> Tensor:
    return torch.stack([fn(image, *p) for image, *p in zip(images, *params, strict=True)])


def same_bits(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


# ------------------------------------------------------------------------------------ given parameters: torchvision's bits


@pytest.mark.parametrize(
    ("k", "name", "size"),
    [
        (k, name, size)
        for k, name in enumerate(THEIRS._AUGMENTATION_SPACE)
        for size in ((32, 32), (24, 40))
        if size == (32, 32) or k in range(1, 6)
    ],
)
def test_trivial_augment_is_torchvisions(k, name, size):
    images = pictures(*size)
    magnitudes, signed = THEIRS._AUGMENTATION_SPACE[name]
    magnitudes = magnitudes(31, *size)
    values = [0.0] if magnitudes is None else [float(m) * sign for m in magnitudes for sign in ((1, -1) if signed else (1,))]
    for value in values:
        assert value in ops.signed_magnitudes(torch.device("cpu"))[k]
        ours = ops.trivial_augment(images, torch.full((7,), k), torch.full((7,), value, dtype=torch.float64))
        theirs = one_by_one(
            lambda x, v=value: THEIRS._apply_image_or_video_transform(x, name, v, THEIRS.interpolation, THEIRS._fill), images
        )
        assert ours.dtype == torch.uint8
        same_bits(ours, theirs)


def test_trivial_augment_table_is_torchvisions():
    """The other half of the test above: no magnitude of ours is missing in torchvision's table."""
    for ours, (magnitudes, signed) in zip(ops.TRIVIAL_AUGMENT.values(), THEIRS._AUGMENTATION_SPACE.values(), strict=True):
        theirs = magnitudes(31, 32, 32)
        assert ours[1] == signed
        same_bits(ours[0], torch.zeros(31) if theirs is None else theirs.float())


@pytest.mark.parametrize(
    ("ours", "theirs", "low", "high"),
    [
        (ops.brightness, F.adjust_brightness, 0, 2),
        (ops.contrast, F.adjust_contrast, 0, 2),
        (ops.saturation, F.adjust_saturation, 0, 2),
        (ops.hue, F.adjust_hue, -0.5, 0.5),
        (ops.sharpness, F.adjust_sharpness, 0, 2),
    ],
)
def test_color_operations_are_torchvisions(ours, theirs, low, high):
    images = pictures().repeat(16, 1, 1, 1)
    values = torch.rand(len(images), generator=generator(), dtype=torch.float64) * (high - low) + low
    values[:7], values[7:14], values[14:21] = low, high, (low + high) / 2
    same_bits(ours(images, values), one_by_one(theirs, images, values.tolist()))


def test_color_jitter_is_torchvisions_in_every_order():
    images = pictures().repeat(24, 1, 1, 1)
    order = torch.tensor(list(itertools.permutations(range(4)))).repeat_interleave(7, 0)
    values, _ = ops.draw_color_jitter(len(images), config.ColorJitter(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.5), generator())
    keys = ("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")

    def theirs(image, order, *values):
        return v2.ColorJitter().transform(image, {"fn_idx": order, **dict(zip(keys, values, strict=True))})

    for present in (0b1111, 0b1000, 0b0101):
        chosen = tuple(v if present >> k & 1 else None for k, v in enumerate(values))
        columns = [[None] * len(images) if v is None else v.tolist() for v in chosen]
        same_bits(ops.color_jitter(images, chosen, order), one_by_one(theirs, images, order, *columns))


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_crop_flip_is_torchvisions(padding):
    images, g = noise(40), generator()
    corner, mirrored = augment.draw_crop(40, padding, g), augment.draw_flip(40, 0.5, g)

    def theirs(image, corner, mirrored):
        cut = F.crop(F.pad(image, [padding] * 4), *corner, 32, 32)
        return F.horizontal_flip(cut) if mirrored else cut

    same_bits(augment.crop_flip(images, corner, padding, mirrored), one_by_one(theirs, images, corner.tolist(), mirrored.tolist()))


def test_crop_flip_hand_worked():
    """One row, 1 2 3, padded by 1 to 0 1 2 3 0: the windows begin at 0, 1, 2; the last one mirrored."""
    row = torch.tensor([1, 2, 3], dtype=torch.uint8).expand(3, 3, 1, 3)
    ours = augment.crop_flip(row, torch.tensor([[1, 0], [1, 1], [1, 2]]), 1, torch.tensor([False, False, True]))
    assert ours[:, 0, 0].tolist() == [[0, 1, 2], [1, 2, 3], [0, 3, 2]]


def test_normalize_is_torchvisions():
    images = noise(4)
    theirs = F.normalize(F.to_dtype(images, torch.float32, scale=True), MEAN.tolist(), STD.tolist())
    same_bits(augment.normalize(images, MEAN, STD), theirs)


def test_erase_is_torchvisions():
    images = augment.normalize(noise(60), MEAN, STD)
    before = images.clone()
    box = augment.draw_erase(60, 32, 32, 0.8, generator())
    assert 0 < (box[:, 2] == 0).sum() < 60
    ours = augment.erase(images, box)
    same_bits(ours, one_by_one(lambda x, b: F.erase(x, *b, v=torch.zeros(3, 1, 1)), images, box.tolist()))
    same_bits(images, before)


def test_augment_is_torchvisions_pipeline():
    """The whole of it, the draws replayed in their order, image by image."""
    images = noise(32)
    ours = augment.augment(images, ALL, MEAN, STD, generator(5), mirror=True)
    g = generator(5)
    corner, mirrored = augment.draw_crop(32, 4, g), augment.draw_flip(32, 0.5, g)
    jitter, order = ops.draw_color_jitter(32, ALL.color_jitter, g)
    op, magnitude = ops.draw_trivial_augment(32, 1, g)
    box = augment.draw_erase(32, 32, 32, 0.5, g)
    names = list(THEIRS._AUGMENTATION_SPACE)
    adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for i, image in enumerate(images):
        x = F.crop(F.pad(image, [4] * 4), *corner[i].tolist(), 32, 32)
        x = F.horizontal_flip(x) if mirrored[i] else x
        for k in order[i].tolist():
            x = adjust[k](x, jitter[k][i].item())
        x = THEIRS._apply_image_or_video_transform(x, names[op[i]], magnitude[i].item(), THEIRS.interpolation, THEIRS._fill)
        x = F.normalize(F.to_dtype(x, torch.float32, scale=True), MEAN.tolist(), STD.tolist())
        same_bits(ours[i], F.erase(x, *box[i].tolist(), v=torch.zeros(3, 1, 1)))


# ------------------------------------------------------------------------------------------------ draws: their distribution


def test_draw_crop_is_uniform():
    corner = augment.draw_crop(20_000, 4, generator())
    counts = torch.bincount(corner[:, 0] * 9 + corner[:, 1], minlength=81)
    assert len(counts) == 81
    assert stats.chisquare(counts.numpy()).pvalue > P_MIN
    transform = v2.RandomCrop(32, padding=4)
    torch.manual_seed(0)
    theirs = [transform.make_params([torch.zeros(3, 32, 32)]) for _ in range(4000)]
    for k, key in enumerate(("top", "left")):
        their_counts = torch.bincount(torch.tensor([t[key] for t in theirs]), minlength=9)
        our_counts = torch.bincount(corner[:, k], minlength=9)
        assert stats.chi2_contingency([our_counts.tolist(), their_counts.tolist()]).pvalue > P_MIN


def test_draw_flip_share():
    assert stats.binomtest(int(augment.draw_flip(20_000, 0.5, generator()).sum()), 20_000, 0.5).pvalue > P_MIN


def test_draw_color_jitter_is_torchvisions():
    cfg = config.ColorJitter(brightness=0.4, contrast=1.0, saturation=0.2, hue=0.1)
    values, order = ops.draw_color_jitter(20_000, cfg, generator())
    for value, (low, high) in zip(values, [(0.6, 1.4), (0, 2), (0.8, 1.2), (-0.1, 0.1)], strict=True):
        assert stats.kstest(value.numpy(), stats.uniform(low, high - low).cdf).pvalue > P_MIN
    ranks = (order * torch.tensor([64, 16, 4, 1])).sum(1)
    counts = torch.unique(ranks, return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts.numpy()).pvalue > P_MIN
    transform = v2.ColorJitter(brightness=0.4, contrast=1.0, saturation=0.2, hue=0.1)
    torch.manual_seed(0)
    theirs = [transform.make_params([]) for _ in range(3000)]
    for value, key in zip(values, ("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor"), strict=True):
        assert stats.ks_2samp(value.numpy(), [t[key] for t in theirs]).pvalue > P_MIN


def test_draw_color_jitter_leaves_off_what_is_off():
    values, _ = ops.draw_color_jitter(4, config.ColorJitter(contrast=0.1), generator())
    assert [v is None for v in values] == [True, False, True, True]


def test_trivial_augment_spares_the_share_of_images_that_it_is_told_to():
    op, magnitude = ops.draw_trivial_augment(40_000, 0.3, generator())
    counts = torch.bincount(op, minlength=14).numpy()
    expected = [40_000 * (0.7 + 0.3 / 14)] + [40_000 * 0.3 / 14] * 13  # of the 30 % a fourteenth draws the identity
    assert stats.chisquare(counts, expected).pvalue > P_MIN
    assert (magnitude[op == 0] == 0).all()
    always, _ = ops.draw_trivial_augment(1000, 1, generator())
    assert (always != op[:1000]).any()


def test_draw_trivial_augment_is_torchvisions(monkeypatch):
    op, magnitude = ops.draw_trivial_augment(40_000, 1, generator())
    assert stats.chisquare(torch.bincount(op, minlength=14).numpy()).pvalue > P_MIN
    seen = []
    monkeypatch.setattr(THEIRS, "_apply_image_or_video_transform", lambda image, name, value, **_: seen.append((name, value)) or image)
    image = torch.zeros(3, 1, 1, dtype=torch.uint8)
    torch.manual_seed(0)
    for _ in range(8000):
        THEIRS(image)
    names = list(THEIRS._AUGMENTATION_SPACE)
    their_op, their_magnitude = torch.tensor([names.index(n) for n, _ in seen]), torch.tensor([v for _, v in seen], dtype=torch.float64)
    assert stats.chi2_contingency([torch.bincount(o, minlength=14).tolist() for o in (op, their_op)]).pvalue > P_MIN
    for k, name in enumerate(OPS):
        ours, theirs = magnitude[op == k], their_magnitude[their_op == k]
        table, where = torch.unique(torch.cat([ours, theirs]).abs(), return_inverse=True)
        if len(table) > 1:  # by magnitude, signs aside: -0 and 0 are one value
            counts = [torch.bincount(w, minlength=len(table)).tolist() for w in where.split([len(ours), len(theirs)])]
            assert stats.chi2_contingency(counts).pvalue > P_MIN, name
        assert bool((theirs < 0).any()) == bool((ours < 0).any()) == ops.TRIVIAL_AUGMENT[name][1]
        if ops.TRIVIAL_AUGMENT[name][1]:
            moved = ours[ours != 0]
            assert stats.binomtest(int((moved < 0).sum()), len(moved), 0.5).pvalue > P_MIN, name


@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 6)])
def test_draw_erase_is_torchvisions(height, width):
    """In the narrow image most boxes do not fit, so that the ten tries matter."""
    ours = augment.draw_erase(20_000, height, width, 1.0, generator())
    transform = v2.RandomErasing(p=1.0)
    torch.manual_seed(0)
    drawn = [transform.make_params([torch.zeros(3, height, width)]) for _ in range(4000)]
    theirs = torch.tensor([[t[key] if t["v"] is not None else 0 for key in ("i", "j", "h", "w")] for t in drawn])
    erased = [int((box[:, 2] > 0).sum()) for box in (ours, theirs)]
    if erased != [20_000, 4000]:
        assert stats.chi2_contingency([[erased[0], 20_000 - erased[0]], [erased[1], 4000 - erased[1]]]).pvalue > P_MIN
    ours, theirs = (box[box[:, 2] > 0].double() for box in (ours, theirs))
    for what in (
        lambda b: b[:, 2] * b[:, 3],  # area
        lambda b: b[:, 2] / b[:, 3],  # aspect ratio
        lambda b: b[:, 0] / (height - b[:, 2]),  # place, of those there are
        lambda b: b[:, 1] / (width - b[:, 3]),
    ):
        assert stats.ks_2samp(what(ours).numpy(), what(theirs).numpy()).pvalue > P_MIN
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()


def test_draw_erase_needs_its_tries():
    """Guards the narrow case above: one try alone would erase visibly fewer."""
    box = augment.draw_erase(4000, 40, 6, 1.0, generator())
    area = torch.empty(4000).uniform_(0.02, 0.33, generator=generator()) * 240
    ratio = torch.empty(4000).uniform_(math.log(0.3), math.log(3.3), generator=generator(1)).exp()
    first_try = (area / ratio).sqrt().round() < 6
    assert (box[:, 2] > 0).float().mean() - first_try.float().mean() > 0.2


def test_draw_erase_share():
    erased = (augment.draw_erase(20_000, 32, 32, 0.25, generator())[:, 2] > 0).sum()
    assert stats.binomtest(int(erased), 20_000, 0.25).pvalue > P_MIN


@pytest.mark.parametrize("which", [0, 1], ids=["mixup", "cutmix"])
@pytest.mark.parametrize("alpha", [0.01, 0.4, 1.0, 5.0])
def test_draw_shares(alpha, which):
    """Of step after step, whose seeds are hashes."""
    lam = np.array([augment.draw_shares(config.Mix(mixup=alpha, cutmix=alpha), seed_for(0, "augment", i))[which] for i in range(3000)])
    low = lam[lam < 0.5]  # near 1 float64 is too coarse for a small alpha: take each half for itself, folded
    beta = stats.beta(alpha, alpha)
    assert stats.kstest(low, lambda x: 2 * beta.cdf(x)).pvalue > P_MIN
    assert stats.binomtest(len(low), 3000, 0.5).pvalue > P_MIN
    if alpha >= 0.4:
        assert stats.kstest(lam, beta.cdf).pvalue > P_MIN


def test_shares_are_a_function_of_the_seed_and_1_for_what_is_off():
    both = config.Mix(mixup=0.4, cutmix=0.4)
    assert augment.draw_shares(both, 5) == augment.draw_shares(both, 5) != augment.draw_shares(both, 6)
    assert augment.draw_shares(config.Mix(mixup=0.4), 5)[1] == augment.draw_shares(config.Mix(cutmix=0.4), 5)[0] == 1
    assert len({*augment.draw_shares(both, 5), *augment.draw_shares(both, 6)}) == 4, "Mixup's and CutMix's are drawn apart"


# ------------------------------------------------------------------------------------------------------------ mixup, cutmix


MIX = config.Mix(mixup=0.4, cutmix=1.0)


def shares(cfg: config.Mix, seed: int) -> tuple[Tensor, Tensor]:
    mixup, cutmix = augment.draw_shares(cfg, seed)
    return torch.tensor(mixup, dtype=torch.float64), torch.tensor(cutmix, dtype=torch.float64)


def batch_of(size: int) -> tuple[Tensor, Tensor]:
    return torch.randn(size, 3, 32, 32, generator=generator()), torch.eye(10)[torch.arange(size) % 10]


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.999, 1.0])
def test_mixup_is_torchvisions(lam):
    images, targets = batch_of(6)
    params = {"lam": lam, "labels": targets, "batch_size": 6}
    mixed, mixed_targets = augment.blend(images, targets, torch.tensor(lam, dtype=torch.float64).expand(32, 32))
    same_bits(mixed, v2.MixUp().transform(images, params))
    torch.testing.assert_close(mixed_targets, v2.MixUp().transform(targets, params), rtol=0, atol=1e-7)  # the mean rounds


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40)])
def test_cutmix_is_torchvisions(height, width):
    images, targets = torch.randn(3, 3, height, width, generator=generator()), torch.eye(3)
    transform = v2.CutMix(num_classes=3)
    for seed, lam in enumerate(torch.rand(100, generator=generator()).tolist()):
        # make_params takes no share: it is drawn from this distribution
        transform._dist.sample = lambda _, lam=lam: torch.tensor(lam, dtype=torch.float64)
        torch.manual_seed(seed)
        params = {"labels": targets, "batch_size": 3, **transform.make_params([images])}
        torch.manual_seed(seed)
        x, y = torch.randint(width, (1,)), torch.randint(height, (1,))  # as make_params draws them
        box = augment.cutmix_box(torch.tensor(lam, dtype=torch.float64), torch.cat([y, x]), height, width)
        mixed, mixed_targets = augment.blend(images, targets, (~box).double())
        same_bits(mixed, transform.transform(images, params))
        same_bits(mixed_targets, transform.transform(targets, params))


def test_cutmix_hand_worked():
    """lam 3/4 in 8x8: half a side is 0.5 * sqrt(1/4) * 8 = 2. Around row 0, column 7: rows 0 to 1, columns 5 to 7, 6 pixels of 64."""
    box = augment.cutmix_box(torch.tensor(0.75, dtype=torch.float64), torch.tensor([0, 7]), 8, 8)
    assert box.nonzero().tolist() == [[y, x] for y in (0, 1) for x in (5, 6, 7)]
    images = torch.tensor([10.0, 20.0]).view(2, 1, 1, 1).expand(2, 3, 8, 8)
    mixed, targets = augment.blend(images, torch.eye(2), (~box).double())
    assert targets.tolist() == [[58 / 64, 6 / 64], [6 / 64, 58 / 64]]
    assert mixed[0, 0, 0].tolist() == [10, 10, 10, 10, 10, 20, 20, 20]
    assert mixed[1, 2, 2].tolist() == [20] * 8


@pytest.mark.parametrize(
    ("cfg", "expected"),  # shares of untouched, mixup, cutmix; alpha 5 keeps lambda away from 0 and 1, where they look alike
    [
        (config.Mix(mixup=5.0, cutmix=5.0), (0, 0.5, 0.5)),
        (config.Mix(mixup=5.0, cutmix=5.0, prob=0.6, switch_prob=0.25), (0.4, 0.45, 0.15)),
        (config.Mix(mixup=5.0, prob=0.5), (0.5, 0.5, 0)),
        (config.Mix(cutmix=5.0, switch_prob=0.1), (0, 0, 1)),
        (config.Mix(), (1, 0, 0)),
    ],
)
def test_mix_chooses_as_often_as_asked_and_weighs_labels_by_pixels(cfg, expected):
    images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 32, 32)
    g = generator()
    counts = [0, 0, 0]
    for seed in range(400):
        mixed, targets = augment.mix(images, torch.eye(2), cfg, shares(cfg, seed), g)
        torch.testing.assert_close(targets[1, 1], mixed[1].mean(), rtol=0, atol=1e-6)  # the share of the second image in itself
        torch.testing.assert_close(targets.sum(1), torch.ones(2))
        constant = mixed[1].min() == mixed[1].max()
        counts[0 if torch.equal(mixed, images) else 1 if constant else 2] += 1
    assert all(stats.binomtest(count, 400, share).pvalue > P_MIN for count, share in zip(counts, expected, strict=True)), counts


# --------------------------------------------------------------------------------------- determinism, independence, interface


def test_same_seed_same_bits():
    images = noise(32)
    first, again, other = (augment.augment(images, ALL, MEAN, STD, generator(s), mirror=True) for s in (3, 3, 4))
    same_bits(first, again)
    assert not torch.equal(first, other)
    float_images, targets = batch_of(8)
    (a, b), (c, d) = (augment.mix(float_images, targets, MIX, shares(MIX, 3), generator(3)) for _ in range(2))
    same_bits(a, c)
    same_bits(b, d)


def test_only_the_given_generator_is_drawn_from():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    images, targets = batch_of(4)
    augment.augment(noise(4), ALL, MEAN, STD, generator(), mirror=True)
    numpys = np.random.get_state()[1].copy()
    augment.mix(images, targets, MIX, shares(MIX, 0), generator())
    assert (np.random.get_state()[1] == numpys).all()
    same_bits(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "cfg",
    [
        config.Augment(crop=4),
        config.Augment(flip=True),
        config.Augment(color_jitter=ALL.color_jitter),
        config.Augment(trivial_augment=1),
        config.Augment(erase=1.0),
    ],
)
def test_every_image_has_its_own_draws(cfg):
    images = noise(1).expand(64, -1, -1, -1)
    different = len(torch.unique(augment.augment(images, cfg, MEAN, STD, generator(), mirror=True).flatten(1), dim=0))
    assert different == 2 if cfg.flip else different > 35


def test_an_image_does_not_depend_on_its_neighbours():
    """Alone, or in another order, an image comes out the same. Bit for bit: no sum runs over the batch."""
    images, g = noise(48), generator()
    cut = (augment.draw_crop(48, 4, g), augment.draw_flip(48, 0.5, g))
    trivial = ops.draw_trivial_augment(48, 1, g)
    (jitter, order), box = ops.draw_color_jitter(48, ALL.color_jitter, g), augment.draw_erase(48, 32, 32, 0.5, g)

    def through(index: Tensor) -> Tensor:
        x = augment.crop_flip(images[index], cut[0][index], 4, cut[1][index])
        x = ops.color_jitter(x, tuple(v[index] for v in jitter), order[index])
        x = ops.trivial_augment(x, *(p[index] for p in trivial))
        return augment.erase(augment.normalize(x, MEAN, STD), box[index])

    together = through(torch.arange(48))
    same_bits(through(torch.arange(47, -1, -1)), together.flip(0))
    same_bits(torch.cat([through(torch.tensor([i])) for i in range(48)]), together)


def test_cfg_says_what_happens():
    images = noise(16)
    plain = augment.normalize(images, MEAN, STD)
    same_bits(augment.augment(images, config.Augment(), MEAN, STD, generator(), mirror=True), plain)
    same_bits(augment.augment(images, config.Augment(flip=True), MEAN, STD, generator(), mirror=False), plain)
    flipped = augment.augment(images, config.Augment(flip=True), MEAN, STD, generator(), mirror=True)
    for image, before in zip(flipped, plain, strict=True):
        assert torch.equal(image, before) or torch.equal(image, before.flip(-1))
    assert not torch.equal(flipped, plain)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_shapes_types_and_inputs_left_alone(batch):
    images = noise(batch)
    before = images.clone()
    out = augment.augment(images, ALL, MEAN, STD, generator(), mirror=True)
    assert (out.shape, out.dtype, out.device) == (images.shape, torch.float32, images.device)
    assert out.isfinite().all()
    same_bits(images, before)
    targets = torch.eye(10)[torch.arange(batch)]
    kept, kept_targets = out.clone(), targets.clone()
    mixed, mixed_targets = augment.mix(out, targets, MIX, shares(MIX, 0), generator())
    assert (mixed.shape, mixed.dtype, mixed_targets.shape, mixed_targets.dtype) == (out.shape, out.dtype, targets.shape, targets.dtype)
    same_bits(out, kept)
    same_bits(targets, kept_targets)


def test_float_images_are_refused():
    with pytest.raises(AssertionError, match="float32"):
        augment.normalize(torch.rand(1, 3, 8, 8), MEAN, STD)


# ------------------------------------------------------------------------------------------------------------------- GPU


def test_by_mask_is_by_group(monkeypatch):
    """What a GPU does gives what a CPU does."""
    images = noise(64)
    by_group = augment.augment(images, ALL, MEAN, STD, generator(), mirror=True)
    monkeypatch.setattr(ops, "apply_each", ops.apply_by_mask)
    same_bits(augment.augment(images, ALL, MEAN, STD, generator(), mirror=True), by_group)


def test_nothing_reads_back_from_a_gpu(monkeypatch):
    """Fake tensors have no data: `.item()`, a condition on a value, a shape that depends on values, all raise."""
    fake = pytest.importorskip("torch._subclasses.fake_tensor")  # torch has it nowhere else
    ops.signed_magnitudes(torch.device("cpu"))  # a fake one must not stay in the cache
    images, targets, which = noise(4), torch.eye(10)[:4], torch.zeros(4, dtype=torch.long)
    with fake.FakeTensorMode() as mode:
        images, targets, which, mean, std = (mode.from_tensor(t) for t in (images, targets, which, MEAN, STD))
        mode.allow_non_fake_inputs = True
        with pytest.raises(fake.DynamicOutputShapeException):
            ops.apply_each(images, which, ((ops.posterize, which),))  # what a CPU does would read back: the test can fail
        monkeypatch.setattr(ops, "apply_each", ops.apply_by_mask)
        out = augment.augment(images, ALL, mean, std, generator(), mirror=True)
        augment.mix(out, targets, MIX, shares(MIX, 0), generator())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    """Without waiting for it, and, given the parameters, as on a CPU."""
    images, cuda = noise(64), torch.device("cuda")
    g = torch.Generator(cuda).manual_seed(0)
    on_gpu, mean, std, targets = images.to(cuda), MEAN.to(cuda), STD.to(cuda), torch.eye(10, device=cuda).repeat(7, 1)[:64]
    ops.signed_magnitudes(cuda)
    left = tuple(share.to(cuda) for share in shares(MIX, 0))
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = augment.augment(on_gpu, ALL, mean, std, g, mirror=True)
        out, targets = augment.mix(out, targets, MIX, left, g)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert out.device.type == targets.device.type == "cuda"
    op, magnitude = ops.draw_trivial_augment(64, 1, generator())
    jitter, order = ops.draw_color_jitter(64, ALL.color_jitter, generator())
    for apply, params in ((ops.trivial_augment, (op, magnitude)), (ops.color_jitter, (jitter, order))):
        there = [tuple(v.to(cuda) for v in p) if isinstance(p, tuple) else p.to(cuda) for p in params]
        assert (apply(on_gpu, *there).cpu() != apply(images, *params)).float().mean() < 1e-4
