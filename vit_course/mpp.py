"""Masked patch prediction.

Can a model learn from the patches that it was not shown, and what is that worth afterwards?

Made from notebooks/12_mpp.ipynb by `make export`: read and edit the lesson, not this file.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor, nn

from vit_course.patching import (
    pair,
    patch_grid,
    require_at_least,
    require_between,
    require_floats,
    require_images,
)
from vit_course.training import eval_mode
from vit_course.vit import Backbone, require_backbone

__all__ = [
    "mean_colour_labels",
    "Corruption",
    "corruption_from",
    "draw_corruption",
    "corrupt",
    "patch_changes",
    "MPP",
]


def _number_of_colours(bits: int, channels: int) -> int:
    """Classes of a colour with 2^bits levels in each channel. Raises TypeError or ValueError for too many."""
    require_at_least(1, bits=bits, channels=channels)
    if bits * channels > 15:
        raise ValueError(
            f"{bits} bits in each of {channels} channels are 2^{bits * channels} classes, more than 2^15"
        )
    return 2 ** (bits * channels)


def mean_colour_labels(images: Tensor, patch_size: int | tuple[int, int], bits: int) -> Tensor:
    """The class of each patch's mean colour, 2^bits levels in each channel.

    With bits=3, level = floor(8 · mean), in 0 … 7, and label = red + 8 · green + 64 · blue.

    Args:
        images: (b, c, h, w), raw colours in 0 … 1.
        patch_size: p or (p1, p2), in pixels.
        bits: of one channel.

    Returns:
        int64 (b, n), patches in reading order.

    Raises:
        TypeError, ValueError: where a patch's colour is not in 0 … 1, as in images that were normalised,
            where patches do not fill the image, and for more than 2^15 classes.

    Source: Dosovitskiy et al. 2020, appendix B.1.2.

    Built in lesson 12.
    """
    require_images(images)
    _number_of_colours(bits, images.shape[1])
    (p1, p2), levels = pair(patch_size, "patch_size"), 2**bits
    patch_grid(images.shape[-2:], (p1, p2))
    colours = reduce(images.float(), "b c (rows p1) (columns p2) -> b (rows columns) c", "mean", p1=p1, p2=p2)
    if not ((colours > -0.01) & (colours < 1.01)).all():
        raise ValueError(
            f"colours must be in 0 … 1, got means of patches in {colours.min():.2f} … {colours.max():.2f}; "
            "if the images were normalised, give MPP the mean and std of it"
        )
    # A colour on the border of two levels belongs to the upper one, whatever rounding did to its last digits.
    level = ((colours + 5e-7) * levels).floor().clamp(0, levels - 1).long()
    return (level * levels ** torch.arange(images.shape[1], device=images.device)).sum(dim=-1)


class Corruption(NamedTuple("Corruption", [("index", Tensor), ("source", Tensor), ("is_masked", Tensor)])):
    """What happens to which patches; all tensors are (b, m), m patches of each image.

    Args:
        index: the patches that are corrupted, each once.
        source: the patch whose embedding stands there afterwards, another one or the patch itself.
        is_masked: whether the mask token stands there instead.

    Built in lesson 12.
    """


def corruption_from(
    order: Tensor, chance: Tensor, shift: Tensor, replace_prob: float, random_patch_prob: float
) -> Corruption:
    """What random numbers mean: which patches are corrupted, and how.

    Args:
        order: (b, n); corrupted are the patches with the m smallest numbers.
        chance: (b, m) in 0 … 1; below replace_prob a patch is masked, from there on up to replace_prob +
            random_patch_prob it is exchanged.
        shift: (b, m), whole numbers 1 … n - 1; an exchanged patch takes the one so many places further.
        replace_prob, random_patch_prob: shares of the corrupted patches.

    Returns:
        The draw, with tensors (b, m).

    Source: Dosovitskiy et al. 2020, appendix B.1.2.

    Built in lesson 12.
    """
    index = order.argsort(dim=1)[:, : chance.shape[1]]
    is_masked = chance < replace_prob
    is_random = ~is_masked & (chance < replace_prob + random_patch_prob)
    other = (index + shift) % order.shape[1]
    return Corruption(index, torch.where(is_random, other, index), is_masked)


def draw_corruption(
    b: int,
    n: int,
    *,
    mask_prob: float = 0.5,
    replace_prob: float = 0.8,
    random_patch_prob: float = 0.1,
    generator: torch.Generator | None = None,
) -> Corruption:
    """Draw which patches of b images are corrupted, and how.

    Args:
        b: images.
        n: patches of each, two or more.
        mask_prob: share that is corrupted, ceil(mask_prob · n) in every image.
        replace_prob: share of these that become the mask token.
        random_patch_prob: share of these that become another patch of the same image. The rest stay as they
            are.
        generator: source of the draws, PyTorch's own by default; they are made on the CPU, so a seed gives
            the same ones for every device.

    Returns:
        The draw, with tensors (b, m).

    Raises:
        TypeError, ValueError: for numbers out of range.

    Source: Dosovitskiy et al. 2020, appendix B.1.2; Devlin et al. 2018, section 3.1.

    Built in lesson 12.
    """
    require_at_least(1, b=b)
    require_at_least(2, n=n)
    require_between(0, 1, mask_prob=mask_prob, replace_prob=replace_prob, random_patch_prob=random_patch_prob)
    if mask_prob == 0:
        raise ValueError("mask_prob must be above 0: without a corrupted patch there is nothing to predict")
    if replace_prob + random_patch_prob > 1 + 1e-9:
        raise ValueError(
            f"replace_prob and random_patch_prob are shares of the corrupted patches, together at most 1; "
            f"got {replace_prob} and {random_patch_prob}"
        )
    m = math.ceil(mask_prob * n - 1e-9)  # in floats 0.07 · 100 is 7.000000000000001
    order = torch.rand(b, n, generator=generator)
    chance = torch.rand(b, m, generator=generator)
    shift = torch.randint(1, n, (b, m), generator=generator)
    return corruption_from(order, chance, shift, replace_prob, random_patch_prob)


def corrupt(patches: Tensor, corruption: Corruption, mask_token: Tensor) -> Tensor:
    """Patches with the corruption carried out. What is put in place of a patch comes from the patches as they
    were, never from a corrupted one.

    Args:
        patches: (b, n, d), embedded or not.
        corruption: a draw for b images of n patches.
        mask_token: (d,).

    Returns:
        (b, n, d), a new tensor.

    Raises:
        TypeError, ValueError: for patches, a draw or a mask token of another form.

    Built in lesson 12.
    """
    require_floats("patches", patches, "b n d")
    b, n, d = patches.shape
    index, source, is_masked = corruption
    needed = int(torch.maximum(index, source).max()) + 1
    if len(index) != b or needed > n or mask_token.shape != (d,):
        raise ValueError(
            f"patches {(b, n, d)} do not fit a mask token {tuple(mask_token.shape)} and a draw for "
            f"{len(index)} images of at least {needed} patches"
        )
    taken = torch.take_along_dim(patches, source[..., None], dim=1)  # (b, m, d)
    taken = torch.where(is_masked[..., None], mask_token.to(patches.dtype), taken)
    return patches.scatter(1, index[..., None].expand_as(taken), taken)


def patch_changes(
    embed: nn.Module, patch_size: int | tuple[int, int], channels: int, like: Tensor | None = None
) -> Tensor:
    """How much each of nine tokens changes where the middle one of nine black patches turns white.

    An embedding of plain patches changes the token in the middle alone.

    Args:
        embed: images (b, c, h, w) -> one token for each patch (b, n, d); its mode stays as it is.
        patch_size: p or (p1, p2), in pixels.
        channels: c.
        like: a tensor of the images' type and device, the embedding's first weight by default.

    Returns:
        The largest change of each token, over its channels (9,).

    Built in lesson 12.
    """
    p1, p2 = pair(patch_size, "patch_size")
    like = next(embed.parameters()) if like is None else like
    black = like.new_zeros(1, channels, 3 * p1, 3 * p2)
    white = black.clone()
    white[:, :, p1 : 2 * p1, p2 : 2 * p2] = 1.0
    with eval_mode(embed), torch.no_grad():
        return (embed(white) - embed(black)).abs().amax(dim=-1)[0]


def _require_plain_patches(backbone: Backbone, channels: int) -> None:
    """Raise a TypeError unless the backbone makes one token of each patch and can go on from tokens, and a
    ValueError where a token has seen more than its own patch.
    """
    parts = ("patch_embed", "forward_tokens", "patch_size", "num_features", "num_prefix_tokens")
    require_backbone("MPP hides single patches, of which a pyramid has none: its backbone", backbone, *parts)
    embed = backbone.patch_embed
    weight = next(backbone.parameters())  # the embedding of an adapted model lists none of its own
    change = patch_changes(embed, backbone.patch_size, channels, like=weight)
    if not change.isfinite().all():
        raise ValueError(
            f"the tokens of {type(embed).__name__} are not finite: of a black and a white picture they "
            f"differ by {change.tolist()}"
        )
    if change[torch.arange(9) != 4].max() > 1e-3 * change[4]:
        raise ValueError(
            f"the tokens of {type(embed).__name__} see pixels of neighbouring patches, so the neighbours of "
            "a hidden patch would tell its colour: MPP needs plain patches, such as PatchEmbedding"
        )


def _per_channel(name: str, numbers: float | Sequence[float], channels: int) -> Tensor:
    """One finite number for each channel: (c, 1, 1)."""
    given = torch.as_tensor(numbers, dtype=torch.float32).flatten()
    if len(given) not in (1, channels):
        raise ValueError(
            f"{name} must be one number or {channels}, one for each channel; got {given.tolist()}"
        )
    if not given.isfinite().all():
        raise ValueError(f"{name} must be finite, got {numbers}")
    return given.expand(channels).clone().view(channels, 1, 1)


def _at_least_float32(tensor: Tensor) -> Tensor:
    """Numbers of half precision in float32: their own type holds neither a colour's border nor a loss."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class MPP(nn.Module):
    """Masked patch prediction: hide half of the patches, name the mean colour of each.

    Args:
        backbone: any model with plain patches (`patch_embed`, `forward_tokens`); it is trained in place and
            keeps the names of its weights, so that it can be fine-tuned afterwards.
        mask_prob, replace_prob, random_patch_prob: as for draw_corruption.
        output_channel_bits: bits of a colour channel.
        channels: c.
        mean, std: with which the images were normalised, a number or one for each channel; none where the
            images are raw colours in 0 … 1.

    Shape: images (b, c, h, w) and, where the draws must be repeatable, a torch.Generator -> loss, a scalar in
    float32 or better: the mean cross-entropy over the corrupted patches, those left as they are included.

    Raises:
        TypeError, ValueError: for a backbone, arguments and images that do not fit.

    Source: Dosovitskiy et al. 2020, appendix B.1.2.

    Built in lesson 12.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        mask_prob: float = 0.5,
        replace_prob: float = 0.8,
        random_patch_prob: float = 0.1,
        output_channel_bits: int = 3,
        channels: int = 3,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        classes = _number_of_colours(output_channel_bits, channels)
        _require_plain_patches(backbone, channels)
        if (mean is None) != (std is None):
            raise ValueError(f"mean and std belong together, got mean={mean} and std={std}")
        self.backbone, self.bits, self.channels = backbone, output_channel_bits, channels
        self.shares: dict[str, Any] = dict(
            mask_prob=mask_prob, replace_prob=replace_prob, random_patch_prob=random_patch_prob
        )
        draw_corruption(1, 2, **self.shares)  # refuses shares out of range now rather than in the first step
        self.mask_token = nn.Parameter(torch.empty(backbone.num_features).normal_(std=0.02))
        self.head = nn.Linear(backbone.num_features, classes)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("mean", _per_channel("mean", 0.0 if mean is None else mean, channels))
        self.register_buffer("std", _per_channel("std", 1.0 if std is None else std, channels))
        if not (self.std > 0).all():
            raise ValueError(f"std must be above 0, got {std}")

    def predict(
        self, images: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Corruption]:
        """What the model says of the corrupted patches.

        Args:
            images: (b, c, h, w).
            generator: source of the draws, PyTorch's own by default.

        Returns:
            Logits (b, m, classes), true labels (b, m), and which patches they are.

        Raises:
            TypeError, ValueError: for images that do not fit.
        """
        require_images(images, self.channels)
        raw = _at_least_float32(images) * self.std + self.mean
        labels = mean_colour_labels(raw, self.backbone.patch_size, self.bits)
        corruption = draw_corruption(*labels.shape, **self.shares, generator=generator)
        corruption = Corruption(*(part.to(images.device) for part in corruption))
        tokens = corrupt(self.backbone.patch_embed(images), corruption, self.mask_token)
        grid = patch_grid(images.shape[-2:], self.backbone.patch_size)
        tokens = self.backbone.forward_tokens(tokens, grid)[:, self.backbone.num_prefix_tokens :]
        corrupted = torch.take_along_dim(tokens, corruption.index[..., None], dim=1)  # (b, m, d)
        return self.head(corrupted), labels.take_along_dim(corruption.index, dim=1), corruption

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        logits, labels, _ = self.predict(images, generator)
        return F.cross_entropy(_at_least_float32(logits).flatten(0, 1), labels.flatten())
