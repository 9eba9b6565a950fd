"""Exercises of lesson 12: colours as classes, corruption, a leak, the model; other losses and targets."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from vit_course.mpp import (
    MPP,
    Corruption,
    corrupt,
    corruption_from,
    draw_corruption,
    mean_colour_labels,
    patch_changes,
)
from vit_course.patching import ConvStem, PatchEmbedding, patch_grid, patchify
from vit_course.training import eval_mode
from vit_course.vit import SimpleViT, ViT

from .exercise import Exercise, Mistake, filled

_generator = torch.Generator().manual_seed(12)


def _uniform(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=_generator)


# ---- step 1: mean_colour_labels ----------------------------------------------------------------------------


def _means(images: Tensor, patch_size: int) -> Tensor:
    """Mean colours (b, n, c) of the patches."""
    return reduce(
        images, "b c (rows p1) (columns p2) -> b (rows columns) c", "mean", p1=patch_size, p2=patch_size
    )


def _pack(levels: Tensor, bits: int) -> Tensor:
    return (levels.long() * (2**bits) ** torch.arange(levels.shape[-1])).sum(dim=-1)


def _levels(means: Tensor, bits: int) -> Tensor:
    return (means * 2**bits).floor().clamp(0, 2**bits - 1)


def _wrong_label(change: Callable[[Tensor, int], Tensor]) -> Callable:
    """A wrong answer that does something else with the mean colours and the bits."""
    return lambda images, patch_size, bits: change(_means(images, patch_size), bits)


# Plain white, red, green and blue patches: where a level that does not exist would show.
_PLAIN = torch.cat([torch.ones(1, 3), torch.eye(3)]).T.view(1, 3, 1, 4).repeat_interleave(4, dim=3)
MEAN_COLOUR_LABELS = Exercise(
    name="mean_colour_labels",
    solution=mean_colour_labels,
    cases=(
        (_uniform(2, 3, 2, 3).repeat_interleave(4, 2).repeat_interleave(4, 3), 4, 3),
        (0.8 * _uniform(2, 3, 8, 12) + 0.2 * _uniform(2, 3, 1, 1), 4, 3),
        (_PLAIN.repeat_interleave(4, dim=2), 4, 3),
        (_uniform(1, 3, 4, 6), 2, 2),
    ),
    praise="One number for each colour, patches in reading order, and white is still one of them.",
    mistakes={
        "rounded": Mistake(
            _wrong_label(lambda means, bits: _pack((means * 2**bits).round().clamp(max=2**bits - 1), bits)),
            "You round to the nearest level. A level is an interval: use floor, so that 0.99 · 8 = 7.92 is "
            "level 7 and 0.5 is level 4.",
        ),
        "not clamped": Mistake(
            _wrong_label(lambda means, bits: _pack((means * 2**bits).floor(), bits)),
            "All right but for pure white, red, green and blue: 1.0 · 8 is level 8, which does not exist. "
            "The highest is 7.",
        ),
        "one level too few": Mistake(
            _wrong_label(lambda means, bits: _pack((means * (2**bits - 1)).floor(), bits)),
            "You multiply by 2^bits - 1: then only pure white is in the highest level. Eight intervals "
            "need a factor of 8.",
        ),
        "rounded to one level too few": Mistake(
            _wrong_label(lambda means, bits: _pack((means * (2**bits - 1)).round(), bits)),
            "round(7 · mean) makes the first and the last level half as wide as the others: use floor(8 · "
            "mean).",
        ),
        "channels reversed": Mistake(
            _wrong_label(lambda means, bits: _pack(_levels(means, bits).flip(-1), bits)),
            "Blue has the weight 1 and red 64. Here red counts 1, green 8 and blue 64.",
        ),
        "levels added": Mistake(
            _wrong_label(lambda means, bits: _levels(means, bits).long().sum(dim=-1)),
            "The levels of red, green and blue are added up, so different colours share a label: weigh "
            "them by 1, 8 and 64.",
        ),
        "decimal digits": Mistake(
            _wrong_label(
                lambda means, bits: (_levels(means, bits).long() * torch.tensor([1, 10, 100])).sum(-1)
            ),
            "You pack the levels as decimal digits. There are 8 levels, so the weights are 1, 8 and 64.",
        ),
        "always eight levels": Mistake(
            _wrong_label(lambda means, bits: _pack(_levels(means, 3), 3)),
            "Right for 3 bits, and only for them: there are 2**bits levels, and the weights are its powers.",
        ),
        "powers of two": Mistake(
            _wrong_label(lambda means, bits: (_levels(means, bits).long() * 2 ** torch.arange(3)).sum(-1)),
            "Your weights are 1, 2 and 4. There are 8 levels for 3 bits, so they are 1, 8 and 64: powers of "
            "2**bits.",
        ),
        "rounded up": Mistake(
            _wrong_label(lambda means, bits: _pack((means * 2**bits).ceil() - 1, bits)),
            "You round up and subtract 1. So 0 would be level -1, and a colour on a border falls too low: "
            "use floor.",
        ),
        "by bytes": Mistake(
            _wrong_label(lambda means, bits: _pack((means * 255).floor() // (256 // 2**bits), bits)),
            "You go by whole bytes, 0 … 255, and the borders of the levels move a little: multiply by "
            "2**bits at once.",
        ),
        "pixels for patches": Mistake(
            lambda images, patch_size, bits: _pack(
                _levels(
                    reduce(
                        images,
                        "b c (p1 rows) (p2 columns) -> b (rows columns) c",
                        "mean",
                        p1=patch_size,
                        p2=patch_size,
                    ),
                    bits,
                ),
                bits,
            ),
            "You took the axes apart the wrong way round, so each mean is over pixels from all over the "
            "picture: (rows p1) and (columns p2).",
        ),
        "levels averaged": Mistake(
            lambda images, patch_size, bits: _pack(_means(_levels(images, bits), patch_size).floor(), bits),
            "You take the level of every pixel and then their mean. First the mean of the patch, then its "
            "level.",
        ),
        "first pixel": Mistake(
            lambda images, patch_size, bits: _pack(
                _levels(
                    rearrange(
                        images[:, :, ::patch_size, ::patch_size], "b c rows columns -> b (rows columns) c"
                    ),
                    bits,
                ),
                bits,
            ),
            "This is the colour of the first pixel of each patch: take the mean over all its pixels.",
        ),
        "grey": Mistake(
            _wrong_label(
                lambda means, bits: _pack(
                    _levels(means.mean(dim=-1, keepdim=True).expand_as(means), bits), bits
                )
            ),
            "You took the mean over the channels too, so every label is a grey. Only the pixels are "
            "averaged.",
        ),
        "down the columns": Mistake(
            lambda images, patch_size, bits: mean_colour_labels(images.mT, patch_size, bits),
            "The colours are right; the patches run down the columns. Reading order is (rows columns).",
        ),
        "levels not packed": Mistake(
            _wrong_label(lambda means, bits: _levels(means, bits).long()),
            "The levels are right; now make one number of the three: red + 8 · green + 64 · blue.",
        ),
        "a grid": Mistake(
            lambda images, patch_size, bits: mean_colour_labels(images, patch_size, bits).unflatten(
                1, patch_grid(images.shape[-2:], patch_size)
            ),
            "The labels are right; flatten rows and columns to one axis of n patches.",
        ),
        "floats": Mistake(
            lambda images, patch_size, bits: mean_colour_labels(images, patch_size, bits).float(),
            "The labels are right, but floats: cross_entropy wants whole numbers. Use long().",
        ),
    },
)


# ---- step 2: corruption_from -------------------------------------------------------------------------------


def _corruption(
    order: Tensor,
    chance: Tensor,
    shift: Tensor,
    replace_prob: float,
    random_patch_prob: float,
    *,
    mistake: str = "",
) -> tuple[Tensor, Tensor, Tensor]:
    """A draw with a mistake in it."""
    (b, n), m = order.shape, chance.shape[1]
    ranked = order.argsort(dim=1, descending=mistake == "largest first")
    index = ranked[:, -m:] if mistake == "the other end" else ranked[:, :m]
    if mistake == "not sorted":
        index = (n * order[:, :m]).long()
    if mistake == "one order for all":
        index = index[:1].expand(b, m)
    if mistake == "reading order":
        index = index.sort(dim=1).values
    if mistake == "down the batch":
        index = order.argsort(dim=0)[:, :m]
    if mistake == "ranks":
        index = ranked.argsort(dim=1)[:, :m]
    is_masked = chance < replace_prob
    is_random = ~is_masked & (chance < replace_prob + random_patch_prob)
    if mistake == "never another":
        is_random = ~is_masked & (chance < random_patch_prob)
    if mistake == "none kept":
        is_random = ~is_masked
    if mistake == "from the top":
        is_masked, is_random = chance >= 1 - replace_prob, chance < random_patch_prob
    if mistake == "shares of what is left":
        is_random = ~is_masked & (chance < replace_prob + (1 - replace_prob) * random_patch_prob)
    other = index + shift if mistake == "not in a circle" else (index + shift) % n
    if mistake == "a circle of m":
        other = (index + shift) % m
    if mistake == "a step in the ranking":
        other = ranked.gather(1, (torch.arange(m) + shift) % n)
    if mistake == "shift as a place":
        other = shift
    if mistake == "clamped":
        other = (index + shift).clamp(max=n - 1)
    source = torch.where(is_random, other, index)
    if mistake == "a source for the masked":
        source = torch.where(is_random | is_masked, other, index)
    if mistake == "every source moved":
        source = other
    if mistake == "exchanged for masked":
        is_masked = is_random
    if mistake == "masked means unmasked":
        is_masked = ~is_masked
    if mistake == "source first":
        return source, index, is_masked
    return index, source, is_masked


CORRUPTION_FROM = Exercise(
    name="corruption_from",
    solution=corruption_from,
    cases=tuple(
        (_uniform(b, n), _uniform(b, m), torch.randint(1, n, (b, m), generator=_generator), *shares)
        for b, n, m, shares in ((3, 40, 20, (0.8, 0.1)), (2, 24, 24, (0.3, 0.4)), (4, 9, 5, (0.5, 0.25)))
    ),
    praise="Exactly m patches of each picture, each once, and none is ever replaced by itself.",
    mistakes={
        name: Mistake(lambda *case, name=name: _corruption(*case, mistake=name), says)
        for name, says in {
            "largest first": (
                "You sorted from the largest number down. Any order is a random one, but the check compares "
                "values: the m smallest."
            ),
            "the other end": "These are the m patches with the largest numbers: take the smallest, [:, :m].",
            "not sorted": (
                "You turned the random numbers into places, so a patch may be drawn twice. Sort them: "
                "order.argsort(dim=1)."
            ),
            "one order for all": "Every picture lost the same patches: each row of `order` is one picture.",
            "reading order": (
                "You have the right patches, in reading order. `chance` and `shift` belong to them from the "
                "smallest number up: leave them in the order of argsort."
            ),
            "down the batch": (
                "You sorted down the batch, picture against picture: argsort(dim=1) ranks the patches of one."
            ),
            "ranks": (
                "This is the rank of each of the first m patches (argsort twice). Which patches hold the m "
                "smallest numbers? One argsort, then [:, :m]."
            ),
            "never another": (
                "Hardly a patch is exchanged: the shares add up. Exchanged are those from replace_prob to "
                "replace_prob + random_patch_prob."
            ),
            "none kept": (
                "Every patch that is not masked was exchanged. Those from replace_prob + random_patch_prob "
                "on stay as they are, so that the model cannot trust what it sees."
            ),
            "from the top": (
                "The shares are right, but the order is another: below replace_prob the mask token, above it "
                "the exchange, then what is kept."
            ),
            "shares of what is left": (
                "random_patch_prob is a share of the corrupted patches, not of those that are left after "
                "masking."
            ),
            "not in a circle": "Some sources are n or more: step on in a circle, (index + shift) % n.",
            "clamped": (
                "You clamp at the last patch, which is then taken too often, and may replace itself: step on "
                "in a circle, % n."
            ),
            "a circle of m": (
                "You step in a circle of the m corrupted patches. A patch is exchanged for any of all n: % n."
            ),
            "a step in the ranking": (
                "You step `shift` places further in the ranking of the random numbers. It is places in the "
                "picture: (index + shift) % n."
            ),
            "every source moved": (
                "Every patch has another source, also those that are masked or kept. Only exchanged ones do: "
                "torch.where."
            ),
            "exchanged for masked": (
                "index and source are right. The third is true where a patch is exchanged; it is for those "
                "that are masked."
            ),
            "shift as a place": (
                "`shift` is how far to step on from the patch itself, not a place: (index + shift) % n."
            ),
            "a source for the masked": (
                "Masked patches have another source too. Only exchanged ones do; for all others the source "
                "is the patch itself."
            ),
            "masked means unmasked": "is_masked is true where the mask token stands; yours is the opposite.",
            "source first": "The order of the three is index, source, is_masked.",
        }.items()
    },
)


# ---- step 3: corrupt ---------------------------------------------------------------------------------------


def _corrupt(patches: Tensor, corruption: Corruption, mask_token: Tensor, *, mistake: str = "") -> Tensor:
    """Patches after their corruption, with a mistake in it."""
    out, held = patches.clone(), patches.clone()
    index, source, is_masked = corruption
    if mistake == "masked before exchanged":
        for image in range(len(patches)):
            held[image, index[image][is_masked[image]]] = mask_token
    for image in range(len(patches)):
        for place, donor, masked in zip(
            *(part[image].tolist() for part in (index, source, is_masked)), strict=True
        ):
            giver = out if mistake == "donors corrupted" else held
            if masked and mistake != "never masked":
                out[image, place] = 0 if mistake == "zeros" else mask_token
            elif mistake == "moved the other way":
                out[image, donor] = giver[image, place]
            elif mistake != "never exchanged":
                out[image, place] = giver[image, donor]
            if mistake == "all masked":
                out[image, place] = mask_token
    if mistake == "only the corrupted":
        return out.take_along_dim(index[..., None], dim=1)
    if mistake == "the first picture's draw":
        first = Corruption(*(part[:1].expand_as(part) for part in corruption))
        return corrupt(patches, first, mask_token)
    return out


def _untouched(function: Callable, case: tuple[Tensor, Corruption, Tensor]) -> Any:
    """The corrupted patches, and what has become of those that came in."""
    patches, corruption, mask_token = case
    answer = function(patches, corruption, mask_token)
    return answer if answer is None or answer is Ellipsis else (answer, patches)


def _in_place(patches: Tensor, corruption: Corruption, mask_token: Tensor) -> Tensor:
    return patches.copy_(corrupt(patches, corruption, mask_token))


def _first_number_only(patches: Tensor, corruption: Corruption, mask_token: Tensor) -> Tensor:
    taken = corrupt(patches, corruption, mask_token).take_along_dim(corruption.index[..., None], dim=1)
    return patches.scatter(1, corruption.index[..., None], taken)


def _all_pictures(patches: Tensor, corruption: Corruption, mask_token: Tensor) -> Tensor:
    out = patches.clone()
    index, source, is_masked = corruption
    out[:, index] = torch.where(is_masked[..., None], mask_token, patches[:, source])
    return out


def _draw(b: int, n: int, **shares: float) -> Corruption:
    return draw_corruption(b, n, **shares, generator=_generator)


CORRUPT = Exercise(
    name="corrupt",
    solution=corrupt,
    cases=(
        (_uniform(3, 12, 4), _draw(3, 12, replace_prob=0.4, random_patch_prob=0.4), torch.full((4,), 9.0)),
        (_uniform(2, 30, 2), _draw(2, 30), torch.tensor([-1.0, 2.0])),
        (_uniform(2, 8, 3), _draw(2, 8, mask_prob=1.0, replace_prob=0.2, random_patch_prob=0.8), _uniform(3)),
    ),
    praise="Every donor gave what it held at the start, and what was lent to you is as it was.",
    mistakes={
        name: Mistake(lambda *case, name=name: _corrupt(*case, mistake=name), says)
        for name, says in {
            "donors corrupted": (
                "A donor had been corrupted before it gave: you read from the patches that you write to. "
                "Gather all sources first."
            ),
            "masked before exchanged": (
                "You masked patches first and then took donors from what was left, so some donors are mask "
                "tokens. Read from the patches as they came."
            ),
            "never masked": "No patch became the mask token: those where is_masked is true do.",
            "never exchanged": "No patch was exchanged: where one is not masked, its source stands there.",
            "all masked": "Every corrupted patch became the mask token. Only those with is_masked do.",
            "moved the other way": (
                "You wrote the patch at `index` to the place `source`: the source is read, and the index is "
                "written."
            ),
            "zeros": "Zeros stand where the mask token should: the network learns a vector for it.",
            "only the corrupted": (
                "You gave back the corrupted patches only. The network needs all n of them, in their places."
            ),
            "the first picture's draw": "Every picture got the draw of the first: each has its own row.",
        }.items()
    }
    | {
        "in place": Mistake(
            _in_place,
            "The values are right, but you wrote into the patches that were lent to you. Whoever called "
            "still needs them: write into a copy.",
        ),
        "one number of each patch": Mistake(
            _first_number_only,
            "Only the first number of each patch has changed: `scatter` writes as many as its index has. "
            "Expand the index to all d, index[..., None].expand_as(taken).",
        ),
        "all pictures' draws": Mistake(
            _all_pictures,
            "patches[:, index] takes the places of all pictures for each picture. Each has a row of its own: "
            "patches[torch.arange(b)[:, None], index].",
        ),
    },
    calls=_untouched,
    watches=True,
    errors={
        "does not match the shape of the indexed tensor": (
            "is_masked is (b, m), one for each *corrupted* patch, not for all n: use it beside `index`."
        )
    },
)


# ---- step 4: patch_changes ---------------------------------------------------------------------------------


def _watched(function: Callable, case: tuple[nn.Module, int, int]) -> Any:
    """The changes, and what has become of the embedding's modes."""
    embed, *others = case
    answer = function(embed, *others)
    if answer is None or answer is Ellipsis:
        return answer
    return answer, torch.tensor([part.training for part in embed.modules()])


def _partly_frozen(embed: nn.Module) -> nn.Module:
    """An embedding in training, of which a part is in evaluation mode."""
    filled(embed).train()
    list(embed.modules())[-1].eval()
    return embed


class _Dropping(nn.Module):
    """Plain patches and then dropout: in training mode its tokens change by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.drop = PatchEmbedding(patch_size=2, dim=8), nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        return self.drop(self.embed(images))


def _probe(embed: nn.Module, patch_size: int, channels: int, white: slice, pixel: bool = False) -> Tensor:
    """The difference (9, d) that a white patch makes, its rows and columns given as one slice."""
    black = torch.zeros(1, channels, 3 * patch_size, 3 * patch_size)
    other = black.clone()
    if pixel:
        other[..., 3 * patch_size // 2, 3 * patch_size // 2] = 1
    else:
        other[..., white, white] = 1
    return (embed(other) - embed(black))[0]


def _middle(patch_size: int) -> slice:
    return slice(patch_size, 2 * patch_size)


def _wrong_changes(reduced: Callable[[Tensor], Tensor]) -> Callable:
    """A wrong answer that makes other numbers of the right difference."""

    def answer(embed: nn.Module, patch_size: int, channels: int) -> Tensor:
        with eval_mode(embed):
            return reduced(_probe(embed, patch_size, channels, _middle(patch_size)))

    return answer


def _left_in(embed: nn.Module, patch_size: int, channels: int, *, is_training: bool) -> Tensor:
    """The right changes of an embedding that is left in evaluation or in training mode."""
    answer = patch_changes(embed, patch_size, channels)
    embed.train(is_training)
    return answer


def _other_white(rows: slice, columns: slice, planes: slice = slice(None)) -> Callable:
    """A wrong answer that whitens something else: rows and columns in patches, some channels."""

    def answer(embed: nn.Module, patch_size: int, channels: int) -> Tensor:
        black = torch.zeros(1, channels, 3, 3)
        white = black.clone()
        white[:, planes, rows, columns] = 1
        with eval_mode(embed):
            other, first = (
                embed(part.repeat_interleave(patch_size, 2).repeat_interleave(patch_size, 3))
                for part in (white, black)
            )
        return (other - first).abs().amax(dim=-1)[0]

    return answer


def _maxima_compared(embed: nn.Module, patch_size: int, channels: int) -> Tensor:
    black = torch.zeros(1, channels, 3 * patch_size, 3 * patch_size)
    white = black.clone()
    white[..., _middle(patch_size), _middle(patch_size)] = 1
    with eval_mode(embed):
        return (embed(white).amax(dim=-1) - embed(black).amax(dim=-1)).abs()[0]


def _black_in_white(embed: nn.Module, patch_size: int, channels: int) -> Tensor:
    white = torch.ones(1, channels, 3 * patch_size, 3 * patch_size)
    other = white.clone()
    other[..., _middle(patch_size), _middle(patch_size)] = 0
    with eval_mode(embed):
        return (embed(other) - embed(white)).abs().amax(dim=-1)[0]


def _evaluated(embed: nn.Module, *arguments: object, **options: bool) -> Tensor:
    with eval_mode(embed):
        return _probe(embed, *arguments, **options).abs().amax(dim=-1)  # type: ignore[arg-type]


PATCH_CHANGES = Exercise(
    name="patch_changes",
    solution=patch_changes,
    cases=(
        (_partly_frozen(ConvStem(patch_size=4, dim=8)), 4, 3),
        (filled(PatchEmbedding(patch_size=4, dim=8, channels=1)), 4, 1),
        (filled(_Dropping()).train(), 2, 3),
    ),
    praise="Found by experiment: a stem gives itself away, whatever it is called.",
    mistakes={
        "in training mode": Mistake(
            lambda embed, patch_size, channels: (
                _probe(embed, patch_size, channels, _middle(patch_size)).abs().amax(dim=-1)
            ),
            "You tried the embedding in training mode, where dropout changes its tokens by itself and "
            "BatchNorm takes nine patches for data: use eval_mode(embed).",
        ),
        "not absolute": Mistake(
            _wrong_changes(lambda difference: difference.amax(dim=-1)),
            "A value that falls is a change too: take the absolute value before the maximum.",
        ),
        "sums": Mistake(
            _wrong_changes(lambda difference: difference.abs().sum(dim=-1)),
            "These are sums over the channels of a token; the largest change was wanted, amax(dim=-1).",
        ),
        "means": Mistake(
            _wrong_changes(lambda difference: difference.abs().mean(dim=-1)),
            "These are means over the channels of a token; the largest change was wanted, amax(dim=-1).",
        ),
        "lengths": Mistake(
            _wrong_changes(lambda difference: difference.norm(dim=-1)),
            "These are the lengths of the differences; the largest change was wanted, amax(dim=-1).",
        ),
        "the first patch": Mistake(
            lambda embed, patch_size, channels: _evaluated(embed, patch_size, channels, slice(0, patch_size)),
            "You whitened the patch in the corner, which lacks neighbours on two sides. Take the middle one.",
        ),
        "one pixel": Mistake(
            lambda embed, patch_size, channels: _evaluated(embed, patch_size, channels, slice(0), pixel=True),
            "You whitened a single pixel: it may be too far from the edge for a neighbour to see it. Take "
            "the whole patch.",
        ),
        "all white": Mistake(
            lambda embed, patch_size, channels: _evaluated(embed, patch_size, channels, slice(None)),
            "You whitened the whole picture, so every token changes. Only the middle patch is white.",
        ),
        "over the tokens": Mistake(
            _wrong_changes(lambda difference: difference.abs().amax(dim=0)),
            "Your maximum runs over the tokens. For each token, take it over its channels, dim=-1.",
        ),
        "a grid": Mistake(
            lambda *case: patch_changes(*case).view(3, 3),
            "The numbers are right; leave the nine of them in one row, (9,).",
        ),
        "left in evaluation mode": Mistake(
            partial(_left_in, is_training=False),
            "The numbers are right, but the embedding is left in evaluation mode: `with eval_mode(embed):` "
            "gives every part back the mode it had.",
        ),
        "left in training mode": Mistake(
            partial(_left_in, is_training=True),
            "The numbers are right, but embed.train() at the end switches parts on that were in evaluation "
            "mode before: `with eval_mode(embed):` gives every part back the mode it had.",
        ),
        "a row of patches": Mistake(
            _other_white(slice(1, 2), slice(None)),
            "You whitened a whole row of patches. Only the one in the middle is white: its rows *and* its "
            "columns run from p to 2p.",
        ),
        "one channel": Mistake(
            _other_white(slice(1, 2), slice(1, 2), slice(0, 1)),
            "You changed the first channel only, so the patch is red. White is 1 in all channels.",
        ),
        "maxima compared": Mistake(
            _maxima_compared,
            "You compare the maxima of the tokens. The change comes first, channel by channel, then its "
            "maximum.",
        ),
        "black in white": Mistake(
            _black_in_white,
            "You turned a black patch out of white ones. A stem's layers are not linear, and the numbers "
            "differ: start from black.",
        ),
        "yes or no": Mistake(
            lambda *case: patch_changes(*case) > 1e-6,
            "You return yes or no; how large is the change of each token?",
        ),
    },
    calls=_watched,
    watches=True,
)


# ---- step 5: MPP -------------------------------------------------------------------------------------------


def _predictions(module_type: Callable[..., MPP], case: tuple[dict, tuple]) -> Any:
    """Build the model, give its layers weights, and call `predict`: logits and labels."""
    arguments, inputs = case
    model = module_type(**arguments).eval()
    filled(model.backbone), filled(model.head)
    torch.default_generator.manual_seed(5)
    model.mask_token.data.normal_()
    images, seed = inputs
    answer = model.predict(images, torch.Generator().manual_seed(seed))
    return answer[:2] if isinstance(answer, tuple | list) else answer  # the draw is not judged


_predictions.methods = ("predict",)  # type: ignore[attr-defined]  # what the learner writes


class _Wrong(MPP):
    """The model with a mistake in `predict`; its subclasses name it."""

    mistake = ""

    def predict(self, images: Tensor, generator: torch.Generator | None = None) -> tuple:
        p = self.backbone.patch_size
        raw = images if self.mistake == "normalised colours" else images * self.std + self.mean
        raw = (images - self.mean) / self.std if self.mistake == "normalised twice" else raw
        labels = mean_colour_labels(raw.clamp(0, 1), p, self.bits)
        source = None if self.mistake == "draws of its own" else generator
        shares = {} if self.mistake == "shares of its own" else self.shares
        draw = draw_corruption(*labels.shape, **shares, generator=source)
        patches = self.backbone.patch_embed(raw if self.mistake == "raw colours for the network" else images)
        drawn = draw
        if self.mistake == "drawn twice":
            drawn = draw_corruption(*labels.shape, **shares, generator=source)
        tokens = corrupt(patches, drawn, self.mask_token)
        if self.mistake == "not corrupted":
            tokens = patches
        if self.mistake == "without the blocks":
            out = tokens
        else:
            out = self.backbone.forward_tokens(tokens, patch_grid(images.shape[-2:], p))
            prefix = 1 if self.mistake == "always a class token" else self.backbone.num_prefix_tokens
            out = out[:, : labels.shape[1]] if self.mistake == "class token left in" else out[:, prefix:]
        if self.mistake == "all patches":
            return self.head(out), labels, draw
        index = draw.source if self.mistake == "judged at the source" else draw.index
        logits = self.head(out.take_along_dim(index[..., None], dim=1))
        if self.mistake == "the first labels":
            return logits, labels[:, : index.shape[1]], draw
        if self.mistake == "only the masked":
            return logits[draw.is_masked], labels.take_along_dim(draw.index, dim=1)[draw.is_masked], draw
        if self.mistake == "probabilities":
            logits = logits.softmax(dim=-1)
        if self.mistake == "labels of the source":
            return logits, labels.take_along_dim(draw.source, dim=1), draw
        return logits, labels.take_along_dim(draw.index, dim=1), draw


_SIZES: dict[str, Any] = dict(
    image_size=16, patch_size=4, num_classes=0, dim=16, depth=1, heads=2, mlp_dim=32
)
_SHARES = dict(replace_prob=0.5, random_patch_prob=0.3)
MODEL = Exercise(
    name="MPP",
    solution=MPP,
    cases=(
        (
            dict(backbone=ViT(**_SIZES), mean=0.5, std=0.25, **_SHARES),
            ((_uniform(2, 3, 16, 16) - 0.5) / 0.25, 1),
        ),
        (dict(backbone=SimpleViT(**_SIZES), **_SHARES), (_uniform(2, 3, 16, 16), 2)),
        (dict(backbone=ViT(**_SIZES), mean=0.5, std=0.25), ((_uniform(2, 3, 16, 24) - 0.5) / 0.25, 3)),
    ),
    praise="Hidden after the embedding, judged at the places that were corrupted, by raw colours.",
    calls=_predictions,
    errors={
        "patches needs": (
            "A picture may be wider than those that the ViT was built for: give forward_tokens the grid, "
            "patch_grid(images.shape[-2:], patch_size)."
        )
    },
    mistakes={
        name: Mistake(type("Wrong", (_Wrong,), {"mistake": name}), says)
        for name, says in {
            "normalised colours": (
                "The labels come from the normalised images, whose values leave 0 … 1: undo it first, "
                "images · std + mean."
            ),
            "normalised twice": "You normalised once more; undo it for the labels: images · std + mean.",
            "raw colours for the network": (
                "The labels are right, but the network gets the raw colours too. They are for the labels "
                "alone: embed the images as they came."
            ),
            "draws of its own": (
                "Your draw does not come from `generator`, so no seed repeats it: give it to draw_corruption."
            ),
            "shares of its own": (
                "You draw with the default shares. The model has its own: draw_corruption(…, **self.shares)."
            ),
            "drawn twice": (
                "You draw twice, once for the tokens and once for the places that are judged. Both must be "
                "one draw."
            ),
            "always a class token": (
                "You always leave out one token. SimpleViT has no class token: num_prefix_tokens says how "
                "many there are."
            ),
            "not corrupted": "The backbone saw all patches as they were: it reads off the answer.",
            "without the blocks": (
                "The head sits on the corrupted tokens themselves: what the backbone makes of them is "
                "missing, forward_tokens."
            ),
            "class token left in": (
                "The tokens are off by one: forward_tokens gives the class token first. Leave "
                "num_prefix_tokens of them out."
            ),
            "all patches": "You judge all patches. Take those at corruption.index, and their labels.",
            "judged at the source": (
                "You look where the exchanged patches came from. The question is what stood where they "
                "stand now: index."
            ),
            "the first labels": "The labels are those of the first m patches, not of the corrupted ones.",
            "only the masked": (
                "You judge the masked patches only. Those exchanged or kept are to be predicted too: the "
                "network must not know which patches it can trust."
            ),
            "probabilities": "These are probabilities; cross_entropy wants logits, straight from the head.",
            "labels of the source": (
                "An exchanged patch is judged by the colour of its donor. Right is what stood there before: "
                "labels at index."
            ),
        }.items()
    },
)


# ---- exercise 1: constant_loss -----------------------------------------------------------------------------


def _shares(labels: Tensor, classes: int) -> Tensor:
    return labels.bincount(minlength=classes) / labels.numel()


def _of_shares(change: Callable[[Tensor, int], Tensor]) -> Callable:
    """A wrong answer that makes another number of the shares and the number of classes."""
    return lambda labels, classes: change(_shares(labels, classes), classes)


def _constant_loss(labels: Tensor, classes: int) -> Tensor:
    return torch.special.entr(_shares(labels, classes)).sum()


CONSTANT_LOSS = Exercise(
    name="constant_loss",
    solution=_constant_loss,
    cases=(
        (torch.tensor([3, 3, 3, 3, 0, 0, 7, 5]), 8),
        (torch.randint(0, 6, (40,), generator=_generator), 512),
        (torch.tensor([2, 2, 2]), 4),
    ),
    praise="The entropy of the labels: what the best guess pays that looks at nothing.",
    mistakes={
        "every class alike": Mistake(
            _of_shares(lambda shares, classes: torch.tensor(math.log(classes))),
            "This is ln(classes), the loss of a guess that finds all classes equally likely. The best "
            "constant guess uses how often each one occurs.",
        ),
        "those that occur alike": Mistake(
            _of_shares(lambda shares, classes: (shares > 0).sum().log()),
            "This is the logarithm of the number of classes that occur. They do not occur equally often: use "
            "their shares.",
        ),
        "bits": Mistake(
            _of_shares(lambda shares, classes: torch.special.entr(shares).sum() / math.log(2)),
            "This is the entropy in bits. cross_entropy uses natural logarithms.",
        ),
        "the likeliest": Mistake(
            _of_shares(lambda shares, classes: -shares.max().log()),
            "This is what the most frequent class costs. The loss is the mean over all labels.",
        ),
        "mean over classes": Mistake(
            _of_shares(lambda shares, classes: torch.special.entr(shares).mean()),
            "You average over the classes. Each class counts as often as it occurs: sum of -p ln p.",
        ),
        "unweighted": Mistake(
            _of_shares(lambda shares, classes: -shares[shares > 0].log().mean()),
            "You average -ln p over the classes. Each counts as often as it occurs: sum of -p ln p.",
        ),
        "not a number": Mistake(
            _of_shares(lambda shares, classes: -(shares * shares.log()).sum()),
            "0 · ln 0 is not a number for a computer: leave out the classes that do not occur.",
        ),
        "log softmax of shares": Mistake(
            lambda labels, classes: F.cross_entropy(
                _shares(labels, classes).expand(labels.numel(), classes), labels
            ),
            "cross_entropy takes logits and you gave it shares: their logarithms are logits.",
        ),
        "counts": Mistake(
            lambda labels, classes: torch.special.entr(labels.bincount(minlength=classes).float()).sum(),
            "These are counts: divide them by the number of labels first.",
        ),
        "wrong sign": Mistake(
            _of_shares(lambda shares, classes: -torch.special.entr(shares).sum()),
            "Right but for the sign: a loss is not negative.",
        ),
    },
)


# ---- exercise 2: pixel_loss --------------------------------------------------------------------------------


def _pixel_loss(predicted: Tensor, images: Tensor, index: Tensor, patch_size: int) -> Tensor:
    wanted = patchify(images, patch_size).take_along_dim(index[..., None], dim=1)
    return F.mse_loss(predicted, wanted)


def _of_pixels(change: Callable[[Tensor, Tensor], Tensor]) -> Callable:
    """A wrong answer that compares predicted and wanted pixels (b, m, p·p·c) in another way."""

    def answer(predicted: Tensor, images: Tensor, index: Tensor, patch_size: int) -> Tensor:
        return change(predicted, patchify(images, patch_size).take_along_dim(index[..., None], dim=1))

    return answer


def _laid_out(form: str) -> Callable:
    """A wrong answer whose patches are laid out in another order."""

    def answer(predicted: Tensor, images: Tensor, index: Tensor, patch_size: int) -> Tensor:
        patches = rearrange(images, f"b c (rows p1) (columns p2) -> {form}", p1=patch_size, p2=patch_size)
        return F.mse_loss(predicted, patches.take_along_dim(index[..., None], dim=1))

    return answer


def _drawn(b: int, n: int, m: int) -> Tensor:
    return _uniform(b, n).argsort(dim=1)[:, :m]


PIXEL_LOSS = Exercise(
    name="pixel_loss",
    solution=_pixel_loss,
    cases=(
        (_uniform(2, 3, 12), _uniform(2, 3, 4, 6), _drawn(2, 6, 3), 2),
        (_uniform(3, 8, 48), _uniform(3, 3, 16, 16), _drawn(3, 16, 8), 4),
    ),
    praise="The paper's third target, and nearly what MAE and SimMIM were to build on.",
    mistakes={
        "the first patches": Mistake(
            lambda predicted, images, index, patch_size: F.mse_loss(
                predicted, patchify(images, patch_size)[:, : index.shape[1]]
            ),
            "You compare with the first m patches. Wanted are those at `index`, of each picture its own.",
        ),
        "the first picture's places": Mistake(
            lambda predicted, images, index, patch_size: F.mse_loss(
                predicted, patchify(images, patch_size)[:, index[0]]
            ),
            "You took the places of the first picture for all: each row of `index` belongs to one picture.",
        ),
        "all pictures' places": Mistake(
            lambda predicted, images, index, patch_size: (
                (predicted - patchify(images, patch_size)[:, index]).square().mean()
            ),
            "patches[:, index] takes the places of all pictures for each picture, and the difference is "
            "broadcast. Each has a row of its own: take_along_dim(index[..., None], dim=1).",
        ),
        "one number of each patch": Mistake(
            lambda predicted, images, index, patch_size: (
                (predicted - patchify(images, patch_size).gather(1, index[..., None])).square().mean()
            ),
            "You fetch one number of each patch: `gather` takes as many as its index has. take_along_dim "
            "takes them all.",
        ),
        "channels first": Mistake(
            _laid_out("b (rows columns) (c p1 p2)"),
            "Your patches are laid out channel by channel; those of lesson 01 keep the colours of a pixel "
            "together, (p1 p2 c).",
        ),
        "down the columns": Mistake(
            _laid_out("b (columns rows) (p1 p2 c)"),
            "Your patches run down the columns; reading order is (rows columns).",
        ),
        "sum": Mistake(
            _of_pixels(lambda predicted, wanted: (predicted - wanted).square().sum()),
            "This is the sum of the squares; the loss is their mean.",
        ),
        "sum over a patch": Mistake(
            _of_pixels(lambda predicted, wanted: (predicted - wanted).square().sum(dim=-1).mean()),
            "You sum over the numbers of a patch and average over patches; the loss is the mean of all.",
        ),
        "absolute": Mistake(
            _of_pixels(lambda predicted, wanted: (predicted - wanted).abs().mean()),
            "These are absolute differences, SimMIM's choice; the paper squares them.",
        ),
        "root": Mistake(
            _of_pixels(lambda predicted, wanted: (predicted - wanted).square().mean().sqrt()),
            "You took the root of the mean square; the loss is the mean square itself.",
        ),
        "mean colour": Mistake(
            _of_pixels(
                lambda predicted, wanted: (
                    reduce(predicted - wanted, "b m (pixels c) -> b m c", "mean", c=3).square().mean()
                )
            ),
            "You compare mean colours. Here each pixel of a patch is to be predicted.",
        ),
        "each picture alone": Mistake(
            _of_pixels(lambda predicted, wanted: (predicted - wanted).square().mean(dim=(1, 2))),
            "One loss for each picture: take the mean over them too.",
        ),
    },
)


# ---- exercise 3: grid_labels -------------------------------------------------------------------------------


def _cells(images: Tensor, patch_size: int, cells: int) -> Tensor:
    """Labels of all cells of the picture as (b, rows · cells, columns · cells)."""
    side = patch_size // cells
    rows, columns = patch_grid(images.shape[-2:], side)
    return mean_colour_labels(images, side, 3).view(-1, rows, columns)


def _regrouped(form: str) -> Callable:
    """A wrong answer that puts the cells into another order."""
    return lambda images, patch_size, cells: rearrange(
        _cells(images, patch_size, cells), f"b (rows y) (columns x) -> {form}", y=cells, x=cells
    )


GRID_LABELS = Exercise(
    name="grid_labels",
    solution=_regrouped("b (rows columns) (y x)"),
    cases=((_uniform(2, 3, 8, 12), 4, 2), (_uniform(1, 3, 16, 8), 8, 4), (_uniform(2, 3, 6, 12), 6, 3)),
    praise="One small picture for each patch: the second target that the paper tried.",
    mistakes={
        "reading order of the picture": Mistake(
            lambda images, patch_size, cells: _cells(images, patch_size, cells).reshape(
                images.shape[0], -1, cells * cells
            ),
            "You cut the reading order of the whole picture into pieces: the cells of one patch stand in "
            "several rows of it. Take the axes apart first: (rows y) and (columns x).",
        ),
        "cells transposed": Mistake(
            _regrouped("b (rows columns) (x y)"),
            "The patches are right; inside each the cells run down the columns. Reading order is (y x).",
        ),
        "patches transposed": Mistake(
            _regrouped("b (columns rows) (y x)"),
            "The cells are right; the patches run down the columns. Reading order is (rows columns).",
        ),
        "cells outside": Mistake(
            _regrouped("b (y x) (rows columns)"),
            "The axes have changed places: patches come first, their cells last.",
        ),
        "cells for patches": Mistake(
            lambda images, patch_size, cells: rearrange(
                _cells(images, patch_size, cells),
                "b (y rows) (x columns) -> b (rows columns) (y x)",
                y=cells,
                x=cells,
            ),
            "You took the axes apart the wrong way round: a row of patches holds its cells together, (rows "
            "y) and (columns x).",
        ),
        "cells pixels wide": Mistake(
            lambda images, patch_size, cells: _regrouped("b (rows columns) (y x)")(
                images, patch_size, patch_size // cells
            ),
            "Your cells are `cells` pixels wide. A patch has `cells` of them along each side, so each is "
            "patch_size // cells pixels wide.",
        ),
        "rows of the width": Mistake(
            lambda images, patch_size, cells: rearrange(
                mean_colour_labels(images, patch_size // cells, 3),
                "b (rows y columns x) -> b (rows columns) (y x)",
                rows=images.shape[3] // patch_size,
                y=cells,
                x=cells,
            ),
            "You made the number of rows of the picture's width. Rows are counted along its height: "
            "images.shape[2] // patch_size.",
        ),
        "one label for all": Mistake(
            lambda images, patch_size, cells: (
                _cells(images, patch_size, 1).flatten(1)[..., None].expand(-1, -1, cells * cells)
            ),
            "Every cell has the label of its whole patch. Each has a mean colour of its own.",
        ),
        "cells as a grid": Mistake(
            _regrouped("b (rows columns) y x"),
            "The labels are right; flatten the last two axes to (y x).",
        ),
    },
)

EXERCISES = [
    MEAN_COLOUR_LABELS,
    CORRUPTION_FROM,
    CORRUPT,
    PATCH_CHANGES,
    MODEL,
    CONSTANT_LOSS,
    PIXEL_LOSS,
    GRID_LABELS,
]
