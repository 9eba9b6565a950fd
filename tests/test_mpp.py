"""Masked patch prediction is the paper's: colours beside a slow loop, shares as asked, a loss over the corrupted patches and no others."""

import copy
import io
import math
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.parity import relative_error
from timm.models import VisionTransformer
from torch import Tensor, nn
from torchvision.models import VisionTransformer as TorchvisionViT
from support.unlabelled import SMALL

from vit_course import mpp
from vit_course.cait import CaiT
from vit_course.distillation import DistilledViT
from vit_course.lab.data import MEAN, STD, normalise, photos
from vit_course.lab.pretrained import adapt
from vit_course.max_vit import MaxViT
from vit_course.mpp import MPP, Corruption, corrupt, draw_corruption, mean_colour_labels
from vit_course.patching import ConvStem, PatchEmbedding
from vit_course.training import fit
from vit_course.vit import SimpleViT, ViT
from vit_course.xcit import XCiT


def colours(*shape: int, seed: int = 0) -> Tensor:
    """Images in 0 … 1 whose patches differ in colour: the mean of mere noise is grey everywhere."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(shape[0], shape[1], shape[2] // 4, shape[3] // 4, generator=generator)
    noise = 0.1 * torch.randn(*shape, generator=generator)
    return (F.interpolate(coarse, shape[2:]) + noise).clamp(0, 1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_mpp(seed: int = 0, **changes) -> MPP:
    torch.manual_seed(seed)
    return MPP(ViT(**SMALL), **changes)


# ---- the labels -------------------------------------------------------------------------------------------------------


def slow_labels(images: Tensor, p1: int, p2: int, bits: int) -> list[list[int]]:
    """Pixel by pixel, in Python's own numbers."""
    b, c, height, width = images.shape
    pixels, levels = images.tolist(), 2**bits
    return [
        [
            sum(
                min(
                    levels - 1,
                    math.floor(
                        levels
                        * math.fsum(
                            pixels[i][channel][y][x]
                            for y in range(top, top + p1)
                            for x in range(left, left + p2)
                        )
                        / (p1 * p2)
                    ),
                )
                * levels**channel
                for channel in range(c)
            )
            for top in range(0, height, p1)
            for left in range(0, width, p2)
        ]
        for i in range(b)
    ]


@pytest.mark.parametrize(("p1", "p2"), [(4, 4), (2, 8), (1, 1)])
@pytest.mark.parametrize(("bits", "channels"), [(3, 3), (1, 3), (5, 3), (8, 1), (3, 1), (2, 5)])
def test_labels_are_those_of_the_slow_loop(p1: int, p2: int, bits: int, channels: int) -> None:
    images = colours(3, channels, 8, 16, seed=bits)
    assert mean_colour_labels(images, (p1, p2), bits).tolist() == slow_labels(images, p1, p2, bits)


@pytest.mark.parametrize(
    ("colour", "label"),
    [
        ((0.0, 0.0, 0.0), 0),
        ((1.0, 1.0, 1.0), 511),
        ((0.5, 0.5, 0.5), 292),  # 4 + 8 · 4 + 64 · 4: the upper of the two levels that meet at .5
        ((0.499, 0.499, 0.499), 219),
        ((1.0, 0.0, 0.0), 7),
        ((0.0, 1.0, 0.0), 56),
        ((0.0, 0.0, 1.0), 448),
    ],
)
def test_labels_of_plain_colours(colour: tuple[float, ...], label: int) -> None:
    images = torch.tensor(colour).view(1, 3, 1, 1).expand(2, 3, 8, 8)
    assert mean_colour_labels(images, 4, 3).tolist() == [[label] * 4] * 2


def test_borders_of_the_levels_survive_normalisation() -> None:
    """Every border k / 8, in each channel, taken to normalised numbers and back: rounding must not drop it into the level below."""
    borders = (torch.arange(9) / 8).view(9, 1, 1, 1).expand(9, 3, 8, 8)
    wanted = torch.arange(9).clamp(max=7) * 73
    for mean, std in [
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.201)),
    ]:
        mean, std = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
        back = (borders - mean) / std * std + mean
        assert mean_colour_labels(back, 4, 3)[:, 0].tolist() == wanted.tolist()


def test_normalised_images_have_the_labels_of_the_raw_ones() -> None:
    raw, grey = photos("test", 20).images, colours(4, 1, 16, 16)
    wanted = mean_colour_labels(raw, 4, 3)
    imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    mean, std = (torch.tensor(imagenet[name]).view(3, 1, 1) for name in ("mean", "std"))
    everything = {"mask_prob": 1.0}
    for model, images, labels in [
        (small_mpp(**everything), raw, wanted),
        (small_mpp(**everything, mean=MEAN, std=STD), normalise(raw), wanted),
        (small_mpp(**everything, **imagenet), (raw - mean) / std, wanted),
        (MPP(ViT(**SMALL, channels=1), **everything, channels=1, mean=[0.2], std=[3.0]), (grey - 0.2) / 3, mean_colour_labels(grey, 4, 3)),
    ]:  # fmt: skip
        _, asked, corruption = model.predict(images)
        assert torch.equal(asked, labels.gather(1, corruption.index))


def test_images_that_are_no_colours_are_refused() -> None:
    for images in (
        normalise(colours(2, 3, 16, 16)),
        255 * colours(2, 3, 16, 16),
        torch.full((1, 3, 16, 16), math.nan),
    ):
        with pytest.raises(
            ValueError, match=r"colours must be in 0 … 1, got means of patches in .* the mean and std"
        ):
            small_mpp()(images)
    small_mpp()(colours(2, 3, 16, 16) * 1.002 - 0.001)  # as after a resampling that overshoots


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ((torch.zeros(1, 3, 8, 8).byte(), 4, 3), TypeError, "divide bytes by 255"),
        ((torch.zeros(3, 8, 8), 4, 3), ValueError, r"axes \(b c h w\), got shape \(3, 8, 8\)"),
        ((torch.zeros(1, 3, 8, 8), 3, 3), ValueError, r"image_size \(8, 8\) is not divisible by patch_size \(3, 3\)"),
        ((torch.zeros(1, 3, 8, 8), 4, 0), ValueError, "bits must be at least 1, got 0"),
        ((torch.zeros(1, 3, 8, 8), 4, 3.0), TypeError, "bits must be an int, got 3.0"),
        ((torch.zeros(1, 3, 8, 8), 4, 6), ValueError, r"6 bits in each of 3 channels are 2\^18 classes"),
        (([1.0], 4, 3), TypeError, "images must be a tensor"),
    ],
)  # fmt: skip
def test_labels_refuse_bad_input(arguments: tuple, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        mean_colour_labels(*arguments)


# ---- the corruption ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "n", "m"),
    [
        (0.5, 16, 8),
        (0.5, 9, 5),
        (0.15, 196, 30),
        (0.07, 100, 7),
        (0.1, 30, 3),
        (0.01, 16, 1),
        (1.0, 7, 7),
        (1, 4, 4),
    ],
)
def test_exactly_so_many_patches_are_corrupted_each_once(share: float, n: int, m: int) -> None:
    """ceil(share · n), and 0.07 · 100 is 7 although floats say 7.000000000000001."""
    corruption = draw_corruption(50, n, mask_prob=share)
    assert all(part.shape == (50, m) for part in corruption)
    ordered = corruption.index.sort(dim=1).values
    assert (ordered[:, 1:] > ordered[:, :-1]).all() and 0 <= ordered.min() and ordered.max() < n


@pytest.mark.parametrize("shares", [(0.8, 0.1), (0.5, 0.5), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (0.3, 0.6)])
def test_shares_are_measured(shares: tuple[float, float]) -> None:
    """Masked, random and kept within three standard deviations; places and donors uniform; never a patch from itself."""
    b, n = 4000, 10
    corruption = draw_corruption(
        b, n, replace_prob=shares[0], random_patch_prob=shares[1], generator=seeded(1)
    )
    is_random = corruption.source != corruption.index
    assert not (is_random & corruption.is_masked).any()
    total = corruption.index.numel()
    counts = corruption.is_masked.sum(), is_random.sum(), (~is_random & ~corruption.is_masked).sum()
    for count, share in zip(counts, (*shares, 1 - sum(shares)), strict=True):
        assert abs(count.item() - total * share) <= 3 * math.sqrt(total * share * (1 - share) + 1e-9) + 1e-6
    places = corruption.index.flatten().bincount(minlength=n)
    assert (places - b / 2).abs().max() < 4 * math.sqrt(b / 4)
    if is_random.sum() > 1000:
        donors = ((corruption.source - corruption.index) % n)[is_random].bincount(minlength=n)
        expected = is_random.sum().item() / (n - 1)
        assert donors[0] == 0 and (donors[1:] - expected).abs().max() < 4 * math.sqrt(expected)


def test_images_have_draws_of_their_own_that_repeat() -> None:
    state = torch.get_rng_state()
    one, same, other = (draw_corruption(6, 16, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one.index, other.index)
    assert len({tuple(row.sort().values.tolist()) for row in one.index}) == 6
    torch.manual_seed(5)
    first = draw_corruption(2, 16)
    torch.manual_seed(5)
    assert torch.equal(first.index, draw_corruption(2, 16).index)


def slow_corrupt(patches: Tensor, corruption: Corruption, mask_token: Tensor) -> Tensor:
    """Patch by patch, from a copy that nothing has touched."""
    changed = patches.clone()
    for i in range(patches.shape[0]):
        for place, source, masked in zip(*(part[i].tolist() for part in corruption), strict=True):
            changed[i, place] = mask_token if masked else patches[i, source]
    return changed


def test_corrupt_is_the_slow_loop() -> None:
    """Untouched and kept patches are the same to the last bit, the others masked or copied from patches as they were."""
    patches, token = torch.randn(20, 12, 5), torch.randn(5)
    for shares in ((0.8, 0.1), (0.0, 1.0), (0.2, 0.4)):
        corruption = draw_corruption(
            20, 12, replace_prob=shares[0], random_patch_prob=shares[1], generator=seeded(3)
        )
        wanted = slow_corrupt(patches, corruption, token)
        assert torch.equal(corrupt(patches, corruption, token), wanted)
        donors_are_corrupted = (corruption.source[:, :, None] == corruption.index[:, None, :]).any(-1)
        assert (donors_are_corrupted & (corruption.source != corruption.index)).any() or shares[1] == 0.1


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"mask_prob": 0}, ValueError, "mask_prob must be above 0"),
        ({"mask_prob": 1.5}, ValueError, "mask_prob must be in 0 … 1, got 1.5"),
        ({"mask_prob": "0.5"}, TypeError, "mask_prob must be a number, got '0.5'"),
        ({"replace_prob": -0.1}, ValueError, "replace_prob must be in 0 … 1, got -0.1"),
        ({"replace_prob": 0.8, "random_patch_prob": 0.3}, ValueError, "together at most 1; got 0.8 and 0.3"),
        ({"n": 1}, ValueError, "n must be at least 2, got 1"),
        ({"b": 0}, ValueError, "b must be at least 1, got 0"),
    ],
)
def test_draws_refuse_bad_input(arguments: dict, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        draw_corruption(**{"b": 2, "n": 16} | arguments)
    if not {"n", "b"} & set(arguments):
        with pytest.raises(error, match=says):  # at construction, not in the first step
            small_mpp(**arguments)


# ---- the model --------------------------------------------------------------------------------------------------------


def slow_loss(model: MPP, images: Tensor, generator: torch.Generator, mistake: str = "") -> float:
    """Everything patch by patch and in float64; with a mistake of those that people make where one is named."""
    model = copy.deepcopy(model).double()
    backbone = model.backbone
    raw = images if mistake == "labels of normalised colours" else images.double() * model.std + model.mean
    raw = raw.clamp(0, 1) if mistake else raw
    labels = slow_labels(
        raw.flip(1) if mistake == "channels reversed" else raw, *backbone.patch_size, model.bits
    )
    rows, columns = (side // patch for side, patch in zip(images.shape[2:], backbone.patch_size, strict=True))
    corruption = draw_corruption(images.shape[0], rows * columns, **model.shares, generator=generator)
    embedded = backbone.patch_embed(images.double())
    token = torch.zeros_like(model.mask_token) if mistake == "zeros for the mask token" else model.mask_token
    tokens = slow_corrupt(embedded, corruption, token)
    if mistake == "not corrupted":
        tokens = embedded
    out = backbone.forward_tokens(tokens, (rows, columns))
    out = (
        out[:, : rows * columns]
        if mistake == "class token not left out"
        else out[:, backbone.num_prefix_tokens :]
    )
    total, count = 0.0, 0
    for i in range(images.shape[0]):
        for place, source, masked in zip(*(part[i].tolist() for part in corruption), strict=True):
            if mistake == "kept ones left out" and not masked and source == place:
                continue
            logits = model.head(out[i, place])
            total += (torch.logsumexp(logits, 0) - logits[labels[i][place]]).item()
            count += 1
    if mistake == "all patches":
        logits = model.head(out).flatten(0, 1)
        return F.cross_entropy(logits, torch.tensor(labels).flatten()).item()
    return total / count


def hot_mpp(backbone: nn.Module, **changes) -> MPP:
    """Weights that show a mistake: a large mask token, positions and head."""
    model = MPP(backbone, mean=MEAN, std=STD, **changes)
    with torch.no_grad():
        model.mask_token.normal_(std=3.0)
        model.head.weight.normal_(std=0.5)
        for name, parameter in backbone.named_parameters():
            if parameter.ndim > 1 and "pos_embed" not in name:
                parameter.mul_(1.5)
    return model.eval()


@pytest.mark.parametrize("bits", [1, 3])
@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("patch_size", [4, (2, 8)])
def test_loss_is_that_of_the_slow_loop(bits: int, pool: str, patch_size: int | tuple[int, int]) -> None:
    torch.manual_seed(1)
    model = hot_mpp(ViT(**SMALL | {"pool": pool, "patch_size": patch_size}), output_channel_bits=bits)
    images = normalise(colours(3, 3, 16, 24, seed=bits))  # another size than the backbone's own
    with torch.no_grad():
        loss, exact = model(images, seeded(7)), copy.deepcopy(model).double()(images.double(), seeded(7))
        wanted = slow_loss(model, images, seeded(7))
    assert abs(loss.item() - wanted) < 1e-6 * wanted
    assert abs(exact.item() - wanted) < 1e-6 * wanted


@pytest.mark.parametrize(
    "mistake",
    [
        "labels of normalised colours",
        "channels reversed",
        "zeros for the mask token",
        "not corrupted",
        "class token not left out",
        "kept ones left out",
        "all patches",
    ],
)
def test_mistakes_would_show(mistake: str) -> None:
    torch.manual_seed(1)
    model = hot_mpp(ViT(**SMALL), replace_prob=0.6, random_patch_prob=0.2)
    images = normalise(colours(4, 3, 16, 16))
    errors = []
    for seed in range(4):  # a mean over few patches may hide a mistake by chance
        with torch.no_grad():
            loss = model(images, seeded(seed)).item()
            errors.append(abs(loss - slow_loss(model, images, seeded(seed), mistake)) / loss)
    assert max(errors) > 0.01


def test_zero_logits_cost_log_512() -> None:
    model = small_mpp()
    nn.init.zeros_(model.head.weight)
    assert model(colours(4, 3, 16, 16)).item() == pytest.approx(math.log(512), abs=1e-6)
    assert math.log(512) == pytest.approx(6.2383, abs=1e-4)


def test_only_corrupted_patches_count_and_kept_ones_do() -> None:
    """A colour changed where nothing is asked leaves the labels and, kept from the network, the loss; a kept patch has its part in it."""
    model, images = small_mpp(replace_prob=0.0, random_patch_prob=0.0).eval(), colours(2, 3, 16, 16)
    loss = model(images, seeded())
    logits, labels, corruption = model.predict(images, seeded())
    assert torch.equal(corruption.source, corruption.index) and not corruption.is_masked.any()
    assert loss.item() == pytest.approx(F.cross_entropy(logits.flatten(0, 1), labels.flatten()).item())
    _, untouched, _ = model.predict(images, seeded())
    asked = torch.zeros(2, 16, dtype=torch.bool).scatter(1, corruption.index, True)
    changed = images.clone()
    blocks = changed.view(2, 3, 4, 4, 4, 4)  # rows, p1, columns, p2
    keep = asked.view(2, 1, 4, 1, 4, 1)
    changed = torch.where(keep, blocks, 1 - blocks).view_as(images)
    assert torch.equal(model.predict(changed, seeded())[1], untouched)
    head_only = small_mpp().eval()
    head_only.backbone.forward_tokens = lambda tokens, grid: torch.ones(
        2, 17, 32
    )  # a network that sees nothing
    assert head_only(images, seeded()).item() == pytest.approx(head_only(changed, seeded()).item())
    assert head_only(images, seeded()).item() != pytest.approx(head_only(1 - images, seeded()).item())


def test_what_is_hidden_cannot_be_seen() -> None:
    """The pixels of a masked patch change nothing that the model says; those of any other patch do."""
    model, images = (
        small_mpp(mask_prob=0.5, replace_prob=1.0, random_patch_prob=0.0).eval(),
        colours(1, 3, 16, 16),
    )
    logits, _, corruption = model.predict(images, seeded())
    for patch in range(16):
        row, column = divmod(patch, 4)
        changed = images.clone()
        changed[..., 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 0.9
        same = torch.equal(model.predict(changed, seeded())[0], logits)
        assert same == (patch in corruption.index[0].tolist())


@pytest.mark.parametrize("shares", [{}, {"replace_prob": 0.0}])
def test_mask_token_learns_where_something_is_masked(shares: dict) -> None:
    model = small_mpp(**shares)
    model(colours(4, 3, 16, 16)).backward()
    got = model.mask_token.grad.abs().sum()
    assert got == 0 if shares else got > 0
    assert model.backbone.patch_embed.proj.weight.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.backbone.blocks.parameters())


def test_gradient_is_softmax_minus_one_hot() -> None:
    model = small_mpp()
    logits, labels, _ = model.predict(colours(2, 3, 16, 16))
    logits = logits.detach().flatten(0, 1).requires_grad_()
    F.cross_entropy(logits, labels.flatten()).backward()
    wanted = (logits.softmax(-1) - F.one_hot(labels.flatten(), 512)) / len(logits)
    torch.testing.assert_close(logits.grad, wanted.detach())


def test_four_photographs_can_be_learnt_by_heart() -> None:
    torch.manual_seed(0)
    images = normalise(photos("train", 4).images)
    model = MPP(ViT(**SMALL | {"image_size": 32, "dim": 64, "mlp_dim": 128}), mean=MEAN, std=STD)
    history = fit(
        model, lambda generator: images, lambda model, batch: model(batch), 250, lr=3e-3, progress=False
    )
    assert history["loss"][0] > 5 and sum(history["loss"][-20:]) / 20 < 0.9


def timm_vit() -> nn.Module:
    return adapt(
        VisionTransformer(img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=0)
    )


def torchvision_vit() -> nn.Module:
    return adapt(TorchvisionViT(16, 4, 2, 2, 32, 64))


BACKBONES = {
    "ViT": lambda: ViT(**SMALL),
    "ViT with classes": lambda: ViT(**SMALL | {"num_classes": 10, "pool": "mean", "dropout": 0.1}),
    "SimpleViT": lambda: SimpleViT(**SMALL),
    "DistilledViT": lambda: DistilledViT(**SMALL),
    "CaiT": lambda: CaiT(**SMALL, layer_dropout=0.1),
    "XCiT": lambda: XCiT(**SMALL),
    "timm's ViT": timm_vit,
    "torchvision's ViT": torchvision_vit,
}


@pytest.mark.parametrize("name", BACKBONES)
def test_any_backbone_with_plain_patches_learns_and_can_be_taken_out(name: str) -> None:
    torch.manual_seed(0)
    backbone = BACKBONES[name]()
    names, before = list(backbone.state_dict()), copy.deepcopy(backbone.state_dict())
    model, images = MPP(backbone, mean=MEAN, std=STD), normalise(colours(8, 3, 16, 16))
    history = fit(
        model, lambda generator: images, lambda model, batch: model(batch), 40, lr=3e-3, progress=False
    )
    assert sum(history["loss"][-3:]) / 3 < 0.8 * history["loss"][0]
    assert model.backbone is backbone and list(backbone.state_dict()) == names
    fresh = BACKBONES[name]()
    fresh.load_state_dict(backbone.state_dict())  # what a fine-tuning starts from
    assert torch.equal(fresh.eval().forward_features(images), backbone.eval().forward_features(images))
    assert any(not torch.equal(before[key], value) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize(
    ("build", "error", "says"),
    [
        (lambda: MaxViT(num_classes=0, dim=16, depth=(1, 1), window_size=1, dim_head=8), TypeError,
         "needs patch_embed; MaxViT has none"),
        (lambda: VisionTransformer(img_size=16, patch_size=4, embed_dim=32, depth=1, num_heads=2), TypeError,
         "needs forward_tokens; VisionTransformer has none.*adapt"),
        (lambda: ViT(**SMALL, patch_embedding=ConvStem(patch_size=4, dim=32)), ValueError,
         "the tokens of ConvStem see pixels of neighbouring patches"),
        (lambda: XCiT(**SMALL | {"patch_size": 8}), ValueError, "the tokens of ConvPatchEmbedding see pixels"),
        (lambda: ViT(**SMALL, patch_embedding=Overlapping()), ValueError, "the tokens of Overlapping see pixels"),
        (lambda: nn.Linear(3, 3), TypeError, "Linear has none"),
        (lambda: None, TypeError, "NoneType has none"),
    ],
)  # fmt: skip
def test_backbones_that_would_leak_are_refused(build: object, error: type[Exception], says: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(error, match=says):
        MPP(build())


class Overlapping(nn.Module):
    """One pixel further than the patch, to the right and down only, where the top left corner would not notice."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, 32, 5, stride=4)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(F.pad(images, (0, 1, 0, 1))).flatten(2).transpose(1, 2)


def test_asking_the_patches_changes_nothing() -> None:
    """No statistics, no mode, no random number is used up, and a plain embedding passes whatever its bias."""
    torch.manual_seed(0)
    backbone = XCiT(**SMALL)
    nn.init.constant_(backbone.patch_embed.proj.bias, 50.0)
    before, state = copy.deepcopy(backbone.state_dict()), torch.get_rng_state()
    mpp._require_plain_patches(backbone.train(), 3)
    assert torch.equal(state, torch.get_rng_state()) and all(part.training for part in backbone.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())
    stem = XCiT(**SMALL | {"patch_size": 8}).train()  # its BatchNorm must not take nine patches for data
    before = copy.deepcopy(stem.state_dict())
    with pytest.raises(ValueError, match="ConvPatchEmbedding see pixels"):
        mpp._require_plain_patches(stem, 3)
    assert all(torch.equal(before[name], tensor) for name, tensor in stem.state_dict().items())


def test_the_leak_of_a_stem_is_real() -> None:
    """Put in behind the check's back, a ConvStem lets the pixels of masked patches through; PatchEmbedding does not."""
    changes = {}
    for name, embed in {
        "plain": PatchEmbedding(patch_size=4, dim=32),
        "stem": ConvStem(patch_size=4, dim=32),
    }.items():
        model = small_mpp(replace_prob=1.0, random_patch_prob=0.0).eval()
        model.backbone.patch_embed = embed
        images = colours(2, 3, 16, 16)
        logits, _, corruption = model.predict(images, seeded())
        hidden = (
            torch.zeros(2, 16, dtype=torch.bool).scatter(1, corruption.index, True).view(2, 1, 4, 1, 4, 1)
        )
        blocks = images.view(2, 3, 4, 4, 4, 4)
        repainted = torch.where(hidden, 1 - blocks, blocks).view_as(images)
        changes[name] = relative_error(model.predict(repainted, seeded())[0], logits)
    assert changes["plain"] == 0 and changes["stem"] > 0.01


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"mean": 0.5}, ValueError, "mean and std belong together, got mean=0.5 and std=None"),
        ({"std": 0.5}, ValueError, "belong together"),
        ({"mean": (0.5, 0.5), "std": 1.0}, ValueError, r"mean must be one number or 3, .* got \[0.5, 0.5\]"),
        ({"mean": 0.5, "std": (0.2, 0.0, 0.2)}, ValueError, r"std must be above 0, got \(0.2, 0.0, 0.2\)"),
        ({"output_channel_bits": 0}, ValueError, "bits must be at least 1"),
        ({"output_channel_bits": 6}, ValueError, r"2\^18 classes, more than 2\^15"),
        ({"channels": 0}, ValueError, "channels must be at least 1"),
        ({"channels": 1}, ValueError, "must have 3 channels, got 1"),
    ],
)
def test_model_refuses_bad_arguments(arguments: dict, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        small_mpp(**arguments)
    assert small_mpp(output_channel_bits=5).head.out_features == 32768


def test_model_refuses_bad_images() -> None:
    model = small_mpp()
    for images, error, says in [
        (torch.zeros(2, 1, 16, 16), ValueError, "must have 3 channels, got 1"),
        (torch.zeros(2, 3, 18, 16), ValueError, r"\(18, 16\) is not divisible by patch_size \(4, 4\)"),
        (torch.zeros(3, 16, 16), ValueError, r"axes \(b c h w\)"),
        (torch.zeros(2, 3, 16, 16).byte(), TypeError, "divide bytes by 255"),
        (torch.zeros(0, 3, 16, 16), ValueError, "b must be at least 1, got 0"),
        (torch.zeros(2, 3, 4, 4), ValueError, "n must be at least 2, got 1"),
        (None, TypeError, "images must be a tensor"),
    ]:
        with pytest.raises(error, match=says):
            model(images)


# ---- in earnest -------------------------------------------------------------------------------------------------------


def test_copies_and_stored_weights_are_the_same_and_autocast_nearly() -> None:
    model, images = small_mpp(mean=MEAN, std=STD).eval(), normalise(colours(4, 3, 16, 16))
    assert {"mean", "std", "mask_token"} <= set(model.state_dict())
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = small_mpp(seed=9, mean=0.1, std=0.1).eval()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    loss = model(images, seeded())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
        assert torch.equal(twin(images, seeded()), loss)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(images, seeded())
    assert half.dtype == torch.float32 and relative_error(half, loss) < 0.02


@pytest.mark.parametrize("stop", range(4))
def test_training_stopped_anywhere_and_resumed_is_the_same(stop: int, tmp_path: Path) -> None:
    """Weights, optimiser, and the random state from which masks and dropout are drawn: bit by bit."""

    class Stop(Exception):
        pass

    def whole(seed: int) -> MPP:
        torch.manual_seed(seed)
        return MPP(ViT(**SMALL | {"dropout": 0.2}), mean=MEAN, std=STD)

    pool = normalise(colours(32, 3, 16, 16))

    def train(model: MPP, last: int | None = None, **changes) -> dict[str, list[float]]:
        def after_step(step: int) -> None:
            if step == last:
                raise Stop

        return fit(
            model,
            lambda generator: pool[torch.randint(32, (8,), generator=generator)],
            lambda model, images: model(images),
            5,
            lr=3e-3,
            after_step=after_step,
            checkpoint_every=1,
            progress=False,
            **changes,
        )

    straight, path = whole(0), tmp_path / "run.pt"
    history = train(straight)
    with pytest.raises(Stop):
        train(whole(0), last=stop + 1, checkpoint=path)
    resumed = whole(9)
    torch.manual_seed(99)
    assert train(resumed, checkpoint=path, resume=True) == history
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
