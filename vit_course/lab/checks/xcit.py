"""Exercises of lesson 06: the layers of XCiT; cross-covariance attention with a mask, and in chunks.

`WRONG` holds the mistakes in these layers once more, for the lesson's table of wrong versions.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vit_course.cait import ClassAttentionBlock
from vit_course.vit import residual
from vit_course.xcit import (
    FourierPositions,
    LocalPatchInteraction,
    XCAttention,
    XCiTBlock,
    XCiTClassBlock,
)

from .exercise import Exercise, Mistake, forward


def _draw(seed: int, *shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Normal numbers of these shapes from a seed; PyTorch's own random state stays as it is."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def _but(kind: type[nn.Module], method: str, wrong: Callable) -> type[nn.Module]:
    """The same class with another method."""
    return type(kind.__name__, (kind,), {method: wrong})


# ----------------------------------------------------------------------------------------------- XCAttention


def _attends(weigh: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable:
    """A forward of XCAttention whose weights (b, h, k, k) come from q, k (b, h, n, k) and the temperature."""

    def forward(self: XCAttention, tokens: Tensor) -> Tensor:
        q, k, v = (self.split(part) for part in self.qkv(tokens).chunk(3, dim=-1))
        return self.merge(v @ weigh(q, k, self.temperature).transpose(-2, -1))

    return forward


def _cosines(q: Tensor, k: Tensor, dim: int = -2) -> Tensor:
    return F.normalize(q, dim=dim).mT @ F.normalize(k, dim=dim)


def _exp_of_temperature(q: Tensor, k: Tensor, temperature: Tensor) -> Tensor:
    return (temperature.exp() * _cosines(q, k)).softmax(dim=-1)


def _divided_by_temperature(q: Tensor, k: Tensor, temperature: Tensor) -> Tensor:
    return (_cosines(q, k) / temperature).softmax(dim=-1)


def _lengths_over_channels(q: Tensor, k: Tensor, temperature: Tensor) -> Tensor:
    return (temperature * _cosines(q, k, dim=-1)).softmax(dim=-1)


def _down_the_columns(q: Tensor, k: Tensor, temperature: Tensor) -> Tensor:
    return (temperature * _cosines(q, k)).softmax(dim=-2)


def _no_lengths(q: Tensor, k: Tensor, temperature: Tensor) -> Tensor:
    return (temperature * (q.mT @ k)).softmax(dim=-1)


def _turned(q: Tensor, k: Tensor, temperature: Tensor) -> Tensor:
    return (temperature * _cosines(q, k)).softmax(dim=-1).mT


def _without_output(self: XCAttention, tokens: Tensor) -> Tensor:
    q, k, v = (self.split(part) for part in self.qkv(tokens).chunk(3, dim=-1))
    weights = (self.temperature * _cosines(q, k)).softmax(dim=-1)
    return rearrange(v @ weights.mT, "b h n k -> b n (h k)")


def _lengths_over_heads(q: Tensor, k: Tensor, temperature: Tensor) -> Tensor:
    return (temperature * _cosines(q, k, dim=1)).softmax(dim=-1)


def _queries_for_keys(q: Tensor, k: Tensor, temperature: Tensor) -> Tensor:
    return (temperature * _cosines(k, q)).softmax(dim=-1)


def _no_temperature(q: Tensor, k: Tensor, temperature: Tensor) -> Tensor:
    return _cosines(q, k).softmax(dim=-1)


_EXPONENTIAL = _attends(_exp_of_temperature)
_OVER_CHANNELS = _attends(_lengths_over_channels)
_COLUMNS = _attends(_down_the_columns)
_DOT_PRODUCTS = _attends(_no_lengths)

XCA = Exercise(
    name="XCAttention",
    solution=XCAttention,
    cases=(
        ({"dim": 12, "heads": 3}, _draw(2, (2, 7, 12))),
        ({"dim": 8, "heads": 2}, _draw(3, (3, 10, 8))),
    ),
    praise="The softmax runs over channels, and no matrix in it has an axis for tokens.",
    calls=forward,
    mistakes={
        "exponential of the temperature": Mistake(
            _but(XCAttention, "forward", _EXPONENTIAL),
            says=(
                "You multiplied by e to the temperature. XCiT's weights are made for the temperature itself."
            ),
        ),
        "divided by the temperature": Mistake(
            _but(XCAttention, "forward", _attends(_divided_by_temperature)),
            says=(
                "You divided by the temperature, as the paper writes it. Its code and its weights multiply: "
                "a larger number is a sharper softmax."
            ),
        ),
        "no temperature": Mistake(
            _but(XCAttention, "forward", _attends(_no_temperature)),
            says="The temperature is missing: multiply the cosines by self.temperature before the softmax.",
        ),
        "lengths over channels": Mistake(
            _but(XCAttention, "forward", _OVER_CHANNELS),
            says=(
                "You divided every token by its length. A channel is a column: its length is taken over the "
                "tokens, which are axis -2 of (b, h, n, k)."
            ),
        ),
        "lengths over heads": Mistake(
            _but(XCAttention, "forward", _attends(_lengths_over_heads)),
            says=(
                "F.normalize takes lengths along axis 1 unless told, which here is the heads: the tokens are "
                "axis -2 of (b, h, n, k)."
            ),
        ),
        "queries and keys exchanged": Mistake(
            _but(XCAttention, "forward", _attends(_queries_for_keys)),
            says="Rows are channels of the queries and columns those of the keys: q.mT @ k, not k.mT @ q.",
        ),
        "softmax down the columns": Mistake(
            _but(XCAttention, "forward", _COLUMNS),
            says=(
                "Your softmax runs over the channels of the queries; it must run over those of the keys. In "
                "q.mT @ k a row is a query, so that is softmax(dim=-1)."
            ),
        ),
        "no lengths": Mistake(
            _but(XCAttention, "forward", _DOT_PRODUCTS),
            says="The scores are dot products; divide each channel of q and of k by its length first.",
        ),
        "weights not transposed": Mistake(
            _but(XCAttention, "forward", _attends(_turned)),
            says=(
                "The weights are right, but v meets them the wrong way round: row i holds what channel i "
                "takes, so the product is v @ weights.mT."
            ),
        ),
        "no output layer": Mistake(
            _but(XCAttention, "forward", _without_output),
            says="The heads stand side by side, but the output layer is missing: self.merge does both.",
        ),
    },
)


# ------------------------------------------------------------------------------------- LocalPatchInteraction


def _norm_before_gelu(self: LocalPatchInteraction, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    maps = rearrange(tokens, "b (r c) d -> b d r c", r=grid[0])
    return rearrange(self.conv2(self.act(self.bn(self.conv1(maps)))), "b d r c -> b (r c) d")


def _columns_first(self: LocalPatchInteraction, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    maps = rearrange(tokens, "b (c r) d -> b d r c", r=grid[0])
    return rearrange(self.conv2(self.bn(self.act(self.conv1(maps)))), "b d r c -> b (c r) d")


def _grid_turned(self: LocalPatchInteraction, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    return LocalPatchInteraction.forward(self, tokens, (grid[1], grid[0]))


def _one_convolution(self: LocalPatchInteraction, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    maps = rearrange(tokens, "b (r c) d -> b d r c", r=grid[0])
    return rearrange(self.bn(self.act(self.conv1(maps))), "b d r c -> b (r c) d")


def _no_batch_norm(self: LocalPatchInteraction, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    maps = rearrange(tokens, "b (r c) d -> b d r c", r=grid[0])
    return rearrange(self.conv2(self.act(self.conv1(maps))), "b d r c -> b (r c) d")


def _residual_inside(self: LocalPatchInteraction, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    return tokens + LocalPatchInteraction.forward(self, tokens, grid)


LOCAL = Exercise(
    name="LocalPatchInteraction",
    solution=LocalPatchInteraction,
    cases=(
        ({"dim": 6}, (*_draw(4, (2, 15, 6)), (3, 5))),
        ({"dim": 4}, (*_draw(5, (3, 8, 4)), (4, 2))),
    ),
    praise="Each channel is convolved by itself, and a patch now sees 5 × 5 patches.",
    calls=forward,
    mistakes={
        "BatchNorm before GELU": Mistake(
            _but(LocalPatchInteraction, "forward", _norm_before_gelu),
            says=(
                "You normalise before the GELU, as the paper's text has it. The authors' code and every "
                "published weight have GELU first, then BatchNorm."
            ),
        ),
        "columns first": Mistake(
            _but(LocalPatchInteraction, "forward", _columns_first),
            says="You filled the grid column by column; tokens stand in reading order, row by row.",
        ),
        "grid turned": Mistake(
            _but(LocalPatchInteraction, "forward", _grid_turned),
            says="You took the grid as (columns, rows); it is (rows, columns).",
        ),
        "one convolution": Mistake(
            _but(LocalPatchInteraction, "forward", _one_convolution),
            says="The second convolution is missing.",
        ),
        "no BatchNorm": Mistake(
            _but(LocalPatchInteraction, "forward", _no_batch_norm),
            says="BatchNorm between GELU and the second convolution is missing.",
        ),
        "residual inside": Mistake(
            _but(LocalPatchInteraction, "forward", _residual_inside),
            says="You added the tokens; the residual connection belongs to the block, behind LayerScale.",
        ),
    },
)


# ------------------------------------------------------------------------------------------ FourierPositions


def _waves_of(along: Callable[[int], Tensor]) -> Callable:
    """The waves of FourierPositions, with another formula along a side."""

    def waves(self: FourierPositions, grid: tuple[int, int]) -> Tensor:
        rows, columns = along(grid[0]), along(grid[1])
        return torch.cat([rows.repeat_interleave(grid[1], dim=0), columns.repeat(grid[0], 1)], dim=1)

    return waves


def _along(
    length: int, first: int = 1, divisor: float = 16, over: int = 0, interleaved: bool = True
) -> Tensor:
    angles = 2 * torch.pi * torch.arange(first, first + length)[:, None] / (over or length)
    angles = angles * 10000.0 ** -(torch.arange(16) / divisor)
    parts = [angles.sin(), angles.cos()]
    return torch.stack(parts, dim=-1).flatten(1) if interleaved else torch.cat(parts, dim=1)


def _columns_before_rows(self: FourierPositions, grid: tuple[int, int]) -> Tensor:
    waves = FourierPositions.waves(self, grid)
    return torch.cat([waves[:, 32:], waves[:, :32]], dim=1)


def _places_column_by_column(self: FourierPositions, grid: tuple[int, int]) -> Tensor:
    rows, columns = _along(grid[0]), _along(grid[1])
    return torch.cat([rows.repeat(grid[1], 1), columns.repeat_interleave(grid[0], dim=0)], dim=1)


_OTHER_FREQUENCIES = _waves_of(lambda length: _along(length, divisor=15))

POSITIONS = Exercise(
    name="FourierPositions",
    solution=FourierPositions,
    cases=(({"dim": 8}, ((3, 4),)), ({"dim": 5}, ((5, 2),))),
    praise="A place between the edges has the same waves on every grid.",
    calls=forward,
    mistakes={
        "other frequencies": Mistake(
            _but(FourierPositions, "waves", _OTHER_FREQUENCIES),
            says="The frequencies are 10000^(-j / 16), j = 0 … 15; yours fall with j / 15.",
        ),
        "from 0": Mistake(
            _but(FourierPositions, "waves", _waves_of(lambda length: _along(length, first=0))),
            says="Row i stands at (i + 1) / r of a turn; yours begin at 0.",
        ),
        "not between the edges": Mistake(
            _but(FourierPositions, "waves", _waves_of(lambda length: _along(length, over=1))),
            says="Divide by the number of rows, so that the last row has gone once round whatever the grid.",
        ),
        "sines, then cosines": Mistake(
            _but(FourierPositions, "waves", _waves_of(lambda length: _along(length, interleaved=False))),
            says="Sine and cosine of one frequency stand side by side: sin, cos, sin, cos …",
        ),
        "columns before rows": Mistake(
            _but(FourierPositions, "waves", _columns_before_rows),
            says="The first 32 numbers are the row's, the last 32 the column's.",
        ),
        "places column by column": Mistake(
            _but(FourierPositions, "waves", _places_column_by_column),
            says=(
                "Your places run down the columns; tokens stand in reading order. A row's waves are repeated "
                "for each of its columns (repeat_interleave), the columns' waves once for each row (repeat)."
            ),
        ),
    },
)


# ------------------------------------------------------------------------------------------------- XCiTBlock


def _local_last(self: XCiTBlock, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    tokens = residual(tokens, self.norm1, self.attn, self.ls1, self.drop_path)
    tokens = residual(tokens, self.norm2, self.mlp, self.ls2, self.drop_path)
    return residual(tokens, self.norm3, lambda x: self.local_mp(x, grid), self.ls3, self.drop_path)


def _norms_by_number(self: XCiTBlock, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    tokens = residual(tokens, self.norm1, self.attn, self.ls1, self.drop_path)
    tokens = residual(tokens, self.norm2, lambda x: self.local_mp(x, grid), self.ls2, self.drop_path)
    return residual(tokens, self.norm3, self.mlp, self.ls3, self.drop_path)


def _no_local(self: XCiTBlock, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    tokens = residual(tokens, self.norm1, self.attn, self.ls1, self.drop_path)
    return residual(tokens, self.norm2, self.mlp, self.ls2, self.drop_path)


def _no_layer_scale(self: XCiTBlock, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    tokens = tokens + self.attn(self.norm1(tokens))
    tokens = tokens + self.local_mp(self.norm3(tokens), grid)
    return tokens + self.mlp(self.norm2(tokens))


def _no_residuals(self: XCiTBlock, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    tokens = self.ls1(self.attn(self.norm1(tokens)))
    tokens = self.ls3(self.local_mp(self.norm3(tokens), grid))
    return self.ls2(self.mlp(self.norm2(tokens)))


BLOCK = Exercise(
    name="XCiTBlock",
    solution=XCiTBlock,
    cases=(
        ({"dim": 8, "heads": 2, "mlp_dim": 12, "init": 1.0}, (*_draw(6, (2, 12, 8)), (3, 4))),
        ({"dim": 6, "heads": 3, "mlp_dim": 8, "init": 0.1}, (*_draw(7, (2, 10, 6)), (5, 2))),
    ),
    praise="Channels, then neighbours, then each token by itself: three branches, each behind its own norm.",
    calls=forward,
    mistakes={
        "local interaction last": Mistake(
            _but(XCiTBlock, "forward", _local_last),
            says="Local interaction stands between attention and feed-forward layer; yours comes last.",
        ),
        "norms by number": Mistake(
            _but(XCiTBlock, "forward", _norms_by_number),
            says=(
                "The order is right, but norm3 and ls3 belong to local interaction and norm2 and ls2 to the "
                "feed-forward layer: the published names do not follow the order."
            ),
        ),
        "no local interaction": Mistake(
            _but(XCiTBlock, "forward", _no_local),
            says="The branch of local interaction, norm3 and ls3, is missing.",
        ),
        "no residual connection": Mistake(
            _but(XCiTBlock, "forward", _no_residuals),
            says="Each branch is added to the tokens that it read; yours replaces them.",
        ),
        "no LayerScale": Mistake(
            _but(XCiTBlock, "forward", _no_layer_scale),
            says="Each branch passes its LayerScale (ls1, ls3, ls2) before it is added.",
        ),
    },
)


# -------------------------------------------------------------------------------------------- XCiTClassBlock


def _class_block_of_cait(self: XCiTClassBlock, tokens: Tensor) -> Tensor:
    return ClassAttentionBlock.forward(self, tokens)


def _class_block(raw: bool = False, doubled: bool = True, behind: bool = True) -> Callable:
    def forward(self: XCiTClassBlock, tokens: Tensor) -> Tensor:
        normed = self.norm1(tokens)
        context = torch.cat([normed[:, :1], tokens[:, 1:]], dim=1) if raw else normed
        before = tokens[:, :1] + self.ls1(self.attn(context))
        class_token = self.norm2(before)
        patches = tokens[:, 1:] + self.ls1(normed[:, 1:])
        patches = self.norm2(patches) if self.tokens_norm else patches
        class_token = (class_token if behind else before) + self.ls2(self.mlp(class_token))
        return torch.cat([class_token, 2 * patches if doubled else patches], dim=1)

    return forward


_RAW_PATCHES = _class_block(raw=True)

CLASS_BLOCK = Exercise(
    name="XCiTClassBlock",
    solution=XCiTClassBlock,
    cases=(
        ({"dim": 8, "heads": 2, "mlp_dim": 12, "init": 1.0}, _draw(8, (2, 7, 8))),
        ({"dim": 6, "heads": 3, "mlp_dim": 8, "init": 1.0, "tokens_norm": False}, _draw(9, (3, 5, 6))),
    ),
    praise="As the authors compute it: the patches move too, and are doubled.",
    calls=forward,
    mistakes={
        "CaiT's class block": Mistake(
            _but(XCiTClassBlock, "forward", _class_block_of_cait),
            says="This is CaiT's class block, in which the patches stand still. Here they move too.",
        ),
        "raw patches": Mistake(
            _but(XCiTClassBlock, "forward", _RAW_PATCHES),
            says="Class attention reads the normalised patches, norm1 of all tokens.",
        ),
        "not doubled": Mistake(
            _but(XCiTClassBlock, "forward", _class_block(doubled=False)),
            says="The class token is right. The patches are doubled at the end, as in the authors' code.",
        ),
        "residual before the norm": Mistake(
            _but(XCiTClassBlock, "forward", _class_block(behind=False)),
            says=(
                "The residual of the feed-forward layer starts behind norm2 here: norm2(x) + "
                "ls2(mlp(norm2(x)))."
            ),
        ),
    },
)

# Mistakes in a model that is otherwise right: the class, its method, and what stands in its place.
WRONG: dict[str, tuple[type[nn.Module], str, Callable]] = {
    "exponential of the temperature": (XCAttention, "forward", _EXPONENTIAL),
    "lengths over channels": (XCAttention, "forward", _OVER_CHANNELS),
    "softmax down the columns": (XCAttention, "forward", _COLUMNS),
    "no lengths at all": (XCAttention, "forward", _DOT_PRODUCTS),
    "BatchNorm before GELU": (LocalPatchInteraction, "forward", _norm_before_gelu),
    "CaiT's class block": (XCiTClassBlock, "forward", _class_block_of_cait),
    "class attention on raw patches": (XCiTClassBlock, "forward", _RAW_PATCHES),
    "other frequencies": (FourierPositions, "waves", _OTHER_FREQUENCIES),
}


# ------------------------------------------------------------------------------------------------- masked_xca


def masked_xca(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, real: Tensor) -> Tensor:
    """Queries, keys, values (b, h, n, k), temperature (h, 1, 1), real (b, n) -> (b, h, n, k), padded by 0."""
    mask = real[:, None, :, None]
    return _xca(q * mask, k * mask, v * mask, temperature)


def _xca(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor) -> Tensor:
    cosines = F.normalize(q, dim=-2).mT @ F.normalize(k, dim=-2)
    return v @ (temperature * cosines).softmax(dim=-1).mT


def _unmasked(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, real: Tensor) -> Tensor:
    return _xca(q, k, v, temperature)


def _only_the_output(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, real: Tensor) -> Tensor:
    return _xca(q, k, v * real[:, None, :, None], temperature)


def _only_the_weights(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, real: Tensor) -> Tensor:
    mask = real[:, None, :, None]
    return _xca(q * mask, k * mask, v, temperature)


def _mask_behind_the_lengths(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, real: Tensor) -> Tensor:
    mask = real[:, None, :, None]
    q, k = F.normalize(q, dim=-2) * mask, F.normalize(k, dim=-2) * mask
    return (v * mask) @ (temperature * (q.mT @ k)).softmax(dim=-1).mT


def _exp_of_the_temperature(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, real: Tensor) -> Tensor:
    return masked_xca(q, k, v, temperature.exp(), real)


def _divided_by_the_temperature(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, real: Tensor) -> Tensor:
    return masked_xca(q, k, v, 1 / temperature, real)


def _dot_products(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, real: Tensor) -> Tensor:
    mask = real[:, None, :, None]
    return (v * mask) @ (temperature * ((q * mask).mT @ (k * mask))).softmax(dim=-1).mT


def _softmax_down_the_columns(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, real: Tensor) -> Tensor:
    mask = real[:, None, :, None]
    cosines = F.normalize(q * mask, dim=-2).mT @ F.normalize(k * mask, dim=-2)
    return (v * mask) @ (temperature * cosines).softmax(dim=-2).mT


def _weights_not_transposed(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, real: Tensor) -> Tensor:
    mask = real[:, None, :, None]
    cosines = F.normalize(q * mask, dim=-2).mT @ F.normalize(k * mask, dim=-2)
    return (v * mask) @ (temperature * cosines).softmax(dim=-1)


def _masked_case(seed: int, b: int, h: int, n: int, k: int) -> tuple[Tensor, ...]:
    """Queries and keys with something in common, for uneven weights, and pictures of several lengths."""
    q, k_, v, temperature = _draw(seed, (b, h, n, k), (b, h, n, k), (b, h, n, k), (h, 1, 1))
    real = torch.arange(n) < torch.arange(n - b, n)[:, None]
    return q, k_ + 0.5 * q.flip(-1), v, 2 + temperature.abs(), real


MASKED_XCA = Exercise(
    name="masked_xca",
    solution=masked_xca,
    cases=(_masked_case(0, 2, 3, 8, 4), _masked_case(1, 3, 2, 6, 5)),
    praise=(
        "A token of zeros adds nothing to a sum over tokens: where attention between tokens needs minus "
        "infinity, this one needs a zero, in time."
    ),
    mistakes={
        "mask ignored": Mistake(
            _unmasked,
            says=(
                "`real` was not used: the padding takes part in the sums over tokens. Set it to zero in q, "
                "k and v."
            ),
        ),
        "only the output": Mistake(
            _only_the_output,
            says=(
                "Padded tokens give nothing, but they still speak in the weights: q and k need the mask "
                "too, since every cosine is a sum over tokens."
            ),
        ),
        "only the weights": Mistake(
            _only_the_weights,
            says="The weights are right. Padded tokens still have an output; mask v as well, and it is zero.",
        ),
        "mask behind the lengths": Mistake(
            _mask_behind_the_lengths,
            says=(
                "You masked after dividing by the lengths, which counted the padding. Mask first, then "
                "normalise."
            ),
        ),
        "exp of the temperature": Mistake(
            _exp_of_the_temperature,
            says=(
                "You multiplied by e to the temperature, as some reimplementations do. XCiT's "
                "weights are made for the temperature itself."
            ),
        ),
        "divided by the temperature": Mistake(
            _divided_by_the_temperature,
            says=(
                "You divided by the temperature, as the paper writes it. Its code and its weights "
                "multiply: a larger number is a sharper softmax."
            ),
        ),
        "no lengths": Mistake(
            _dot_products,
            says=(
                "The scores are dot products; divide each channel of q and k by its length over the tokens "
                "first: F.normalize(…, dim=-2)."
            ),
        ),
        "softmax down the columns": Mistake(
            _softmax_down_the_columns,
            says=(
                "Your softmax runs over the channels of the queries; it must run over those of the keys. In "
                "q.mT @ k a row is a query, so that is softmax(dim=-1)."
            ),
        ),
        "weights not transposed": Mistake(
            _weights_not_transposed,
            says=(
                "The weights are right, but v meets them the wrong way round: row i holds what channel i "
                "*takes*, so the product is v @ weights.mT."
            ),
        ),
    },
)


# ------------------------------------------------------------------------------------------- streamed_weights


def streamed_weights(chunks: Iterable[tuple[Tensor, Tensor]], temperature: float) -> Tensor:
    """Pairs of queries and keys (n, k) of one head, a temperature -> the weights (k, k) of all tokens."""
    products = q_squares = k_squares = torch.zeros(())
    for q, k in chunks:
        products = products + q.T @ k
        q_squares, k_squares = q_squares + (q**2).sum(dim=0), k_squares + (k**2).sum(dim=0)
    return (temperature * products / (q_squares[:, None] * k_squares[None]).sqrt()).softmax(dim=-1)


class _Stream:
    """Chunks that come once: an iterator, as of a file that is read. A copy begins anew."""

    def __init__(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        self.pairs, self.rest = pairs, iter(pairs)

    def __iter__(self) -> Iterator:
        return self.rest

    def __next__(self) -> tuple[Tensor, Tensor]:
        return next(self.rest)

    def __deepcopy__(self, memo: dict) -> "_Stream":
        return _Stream([(q.clone(), k.clone()) for q, k in self.pairs])


def _whole(wrong: Callable) -> Callable:
    """A wrong answer that is written for all chunks (chunks, n, k) at once."""

    def answer(chunks: Iterable[tuple[Tensor, Tensor]], temperature: float) -> Tensor:
        q, k = (torch.stack(part) for part in zip(*chunks, strict=True))
        return wrong(q, k, temperature)

    return answer


def _of(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    return streamed_weights([(q, k)], temperature)


def _mean_of_weights(q_chunks: Tensor, k_chunks: Tensor, temperature: float) -> Tensor:
    return torch.stack([_of(q, k, temperature) for q, k in zip(q_chunks, k_chunks, strict=True)]).mean(dim=0)


def _mean_of_cosines(q_chunks: Tensor, k_chunks: Tensor, temperature: float) -> Tensor:
    cosines = [_cosines(q, k) for q, k in zip(q_chunks, k_chunks, strict=True)]
    return (temperature * torch.stack(cosines).mean(dim=0)).softmax(dim=-1)


def _sum_of_cosines(q_chunks: Tensor, k_chunks: Tensor, temperature: float) -> Tensor:
    cosines = [_cosines(q, k) for q, k in zip(q_chunks, k_chunks, strict=True)]
    return (temperature * torch.stack(cosines).sum(dim=0)).softmax(dim=-1)


def _last_chunk(q_chunks: Tensor, k_chunks: Tensor, temperature: float) -> Tensor:
    return _of(q_chunks[-1], k_chunks[-1], temperature)


def _products(q_chunks: Tensor, k_chunks: Tensor) -> Tensor:
    return (q_chunks.mT @ k_chunks).sum(dim=0)


def _sum_of_lengths(q_chunks: Tensor, k_chunks: Tensor, temperature: float) -> Tensor:
    q_lengths, k_lengths = (chunks.norm(dim=1).sum(dim=0) for chunks in (q_chunks, k_chunks))
    return (temperature * _products(q_chunks, k_chunks) / (q_lengths[:, None] * k_lengths[None])).softmax(
        dim=-1
    )


def _squared_lengths(q_chunks: Tensor, k_chunks: Tensor, temperature: float) -> Tensor:
    q_squares, k_squares = ((chunks**2).sum(dim=(0, 1)) for chunks in (q_chunks, k_chunks))
    return (temperature * _products(q_chunks, k_chunks) / (q_squares[:, None] * k_squares[None])).softmax(
        dim=-1
    )


def _no_lengths_streamed(q_chunks: Tensor, k_chunks: Tensor, temperature: float) -> Tensor:
    return (temperature * _products(q_chunks, k_chunks)).softmax(dim=-1)


def _chunks(seed: int, chunks: int, n: int, k: int, temperature: float) -> tuple[_Stream, float]:
    q, noise, size = _draw(seed, (chunks, n, k), (chunks, n, k), (chunks, 1, 1))
    keys = (noise + q.roll(1, dims=2)) * (1 + size**2)  # chunks of different brightness
    return _Stream(list(zip(q * size, keys, strict=True))), temperature


STREAMED_WEIGHTS = Exercise(
    name="streamed_weights",
    solution=streamed_weights,
    cases=(_chunks(0, 3, 5, 4, 3.0), _chunks(1, 2, 8, 5, 5.0)),
    praise=(
        "The products and the squares of all tokens are sums, and sums can be kept up to date: memory for "
        "one chunk, whatever the picture."
    ),
    mistakes={
        "mean of weights": Mistake(
            _whole(_mean_of_weights),
            says=(
                "You made weights of each chunk and took their mean. A softmax of sums is not a mean of "
                "softmaxes: add up first, one softmax at the end."
            ),
        ),
        "mean of cosines": Mistake(
            _whole(_mean_of_cosines),
            says=(
                "You took the mean of the chunks' cosines. Each was divided by the length within its "
                "chunk; the length that counts is that over all tokens."
            ),
        ),
        "sum of cosines": Mistake(
            _whole(_sum_of_cosines),
            says=(
                "You added the chunks' cosines, so the scores grow with the number of chunks. Add dot "
                "products and squares, and divide once."
            ),
        ),
        "last chunk only": Mistake(
            _whole(_last_chunk),
            says=(
                "These are the weights of the last chunk alone: the sums start anew with each chunk, "
                "instead of going on."
            ),
        ),
        "lengths added": Mistake(
            _whole(_sum_of_lengths),
            says=(
                "The dot products are right. Lengths do not add up, their squares do: keep the sums of "
                "squares and take the root at the end."
            ),
        ),
        "no lengths": Mistake(
            _whole(_no_lengths_streamed),
            says=(
                "The sums of products are right, but nothing was divided by the lengths: keep the sums of "
                "squares as well."
            ),
        ),
        "squares not rooted": Mistake(
            _whole(_squared_lengths),
            says="You divided by the squares of the lengths; the root is missing.",
        ),
    },
)


EXERCISES = [XCA, LOCAL, POSITIONS, BLOCK, CLASS_BLOCK, MASKED_XCA, STREAMED_WEIGHTS]
