"""Exercises of lesson 07: windows, their attention, a gate for every channel, the head of a pyramid."""

from collections.abc import Callable
from itertools import product
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vit_course.max_vit import (
    Pyramid,
    SqueezeExcitation,
    WindowAttention,
    WindowTransformerBlock,
    relative_position_index,
    window_members,
)

from .exercise import Exercise, Mistake, forward


def _draw(seed: int, *shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Normal numbers of these shapes from a seed; PyTorch's own random state stays as it is."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


# --------------------------------------------------------------------------------------------- window_members


def _sorted_by(pattern: Callable[[str], str], counts: str = "r c") -> Callable:
    """A wrong `window_members`: an einops pattern for each axis, and which two letters have the length w."""

    def members(rows: int, columns: int, window_size: int, axis: str) -> Tensor:
        cells = torch.arange(rows * columns).view(rows, columns)
        return rearrange(cells, pattern(axis), **dict.fromkeys(counts.split(), window_size))

    return members


def _steps_of_w(rows: int, columns: int, window_size: int, axis: str) -> Tensor:
    """Windows by loops; those of the grid take steps of w where the number of windows is wanted."""
    w = window_size
    down, across = (w, w) if axis == "grid" else (1, 1)
    start = (1, 1) if axis == "grid" else (w, w)
    places = product(range(rows // w), range(columns // w), range(w), range(w))
    cells = [(y * start[0] + r * down) * columns + x * start[1] + c * across for y, x, r, c in places]
    return torch.tensor(cells).view(-1, w * w)


CELLS = {"block": "(y r) (x c)", "grid": "(r y) (c x)"}
OTHER = {"block": "grid", "grid": "block"}

WINDOW_MEMBERS = Exercise(
    name="window_members",
    solution=window_members,
    cases=((4, 6, 2, "grid"), (4, 6, 2, "block"), (6, 9, 3, "grid"), (6, 9, 3, "block")),
    praise="The order of two letters is all that tells a block from a grid.",
    mistakes={
        "block and grid exchanged": Mistake(
            _sorted_by(lambda axis: f"{CELLS[OTHER[axis]]} -> (y x) (r c)"),
            says=(
                "Block and grid are exchanged. In a block r, which counts inside the window, takes steps "
                "of one row: row = y · w + r, in einops (y r). In a grid it takes the large steps: (r y)."
            ),
        ),
        "always blocks": Mistake(
            _sorted_by(lambda axis: f"{CELLS['block']} -> (y x) (r c)"),
            says=(
                "These are blocks, whatever axis says: the cells of each window are neighbours. The cells "
                "of a grid window lie as far apart as there are windows: (r y) where a block has (y r)."
            ),
        ),
        "always grids": Mistake(
            _sorted_by(lambda axis: f"{CELLS['grid']} -> (y x) (r c)"),
            says=(
                "These are grid windows, whatever axis says. A block holds neighbours: (y r) where a grid "
                "has (r y)."
            ),
        ),
        "so many windows": Mistake(
            _sorted_by(lambda axis: f"{CELLS[axis]} -> (y x) (r c)", counts="y x"),
            says=lambda answer: (
                f"You made windows of {answer.shape[-1]} cells: window_size was taken as the number of "
                "windows down and across. It is the side of one window, the length of r and of c."
            ),
        ),
        "columns first": Mistake(
            _sorted_by(lambda axis: f"{CELLS[axis]} -> (y x) (c r)"),
            says="The right windows, but the cells inside them stand column by column: (r c), not (c r).",
        ),
        "windows columns first": Mistake(
            _sorted_by(lambda axis: f"{CELLS[axis]} -> (x y) (r c)"),
            says="The right windows, but in the order of columns: (y x), not (x y).",
        ),
        "steps of w": Mistake(
            _steps_of_w,
            says=(
                "Your grid takes steps of w cells. Its steps are as long as there are windows: Y = rows / w "
                "down, X = columns / w across."
            ),
        ),
        "a grid in rows only": Mistake(
            _sorted_by(lambda axis: f"{'(r y) (x c)' if axis == 'grid' else CELLS['block']} -> (y x) (r c)"),
            says=(
                "Your grid is spread over the rows only; across, its cells are neighbours. Write (c x) as "
                "well."
            ),
        ),
    },
)


# ------------------------------------------------------------------------------------ relative_position_index


def _rows(row: Callable[[Tensor, Tensor, int], Tensor]) -> Callable:
    """A wrong `relative_position_index`, which tells the row from an offset down, one across, and w."""

    def index(window_size: int) -> Tensor:
        cells = torch.cartesian_prod(torch.arange(window_size), torch.arange(window_size))
        down, across = (cells[:, None] - cells).unbind(dim=-1)
        return row(down, across, window_size)

    return index


RELATIVE_POSITION_INDEX = Exercise(
    name="relative_position_index",
    solution=relative_position_index,
    cases=((2,), (3,), (5,)),
    praise="Equal offsets share one number, wherever in the window they occur.",
    mistakes={
        "key minus query": Mistake(
            _rows(lambda down, across, w: (w - 1 - down) * (2 * w - 1) + w - 1 - across),
            says=(
                "Your matrix is transposed: the offset was taken as key minus query. A key one to the left "
                "of its query has offset +1: places[:, None] - places, with the queries along the first "
                "axis."
            ),
        ),
        "across first": Mistake(
            _rows(lambda down, across, w: (across + w - 1) * (2 * w - 1) + down + w - 1),
            says=(
                "Down and across changed places: the offset down counts in steps of 2w - 1, the offset "
                "across in steps of 1."
            ),
        ),
        "rows as long as a window": Mistake(
            _rows(lambda down, across, w: (down + w - 1) * w + across + w - 1),
            says=lambda answer: (
                f"For windows of 2 your index has {answer.unique().numel()} different numbers where there "
                "are 9 offsets: some collide. Offsets across run from 1 - w to w - 1, so the first digit "
                "counts in steps of 2w - 1, not w."
            ),
        ),
        "not shifted": Mistake(
            _rows(lambda down, across, w: down * (2 * w - 1) + across),
            says=(
                "The offset (0, 0) took row 0 of the table, and some rows are negative. Add w - 1 to both "
                "offsets, so that they start at 0."
            ),
        ),
        "no sign": Mistake(
            _rows(lambda down, across, w: (down.abs() + w - 1) * (2 * w - 1) + across.abs() + w - 1),
            says=(
                "You took the size of the offsets: left and right of a query get the same number. Keep the "
                "sign."
            ),
        ),
    },
)


# -------------------------------------------------------------------------------------------- WindowAttention


def _attend(
    layer: WindowAttention,
    features: Tensor,
    *,
    cut: str | None = None,
    put: str | None = None,
    heads: str = "(h k)",
    scale: float | None = None,
    bias: Callable[[Tensor], Tensor] = lambda bias: bias,
    scores_over: int = -1,
    project: bool = True,
    bias_behind: bool = False,
) -> Tensor:
    """Window attention with one part of it changed."""
    w = layer.window_size
    rows, columns = features.shape[2:]
    cells = rearrange(features, "b d rows columns -> b rows columns d")
    pattern = f"b {CELLS[cut or layer.axis]} {heads} -> (b y x) h (r c) k"
    q, k, v = (
        rearrange(part, pattern, r=w, c=w, h=layer.heads) for part in layer.qkv(cells).chunk(3, dim=-1)
    )
    scores = q @ k.transpose(-2, -1) * (layer.scale if scale is None else scale)
    added = bias(layer.bias())
    weights = scores.softmax(dim=-1) + added if bias_behind else (scores + added).softmax(dim=scores_over)
    out = weights @ v
    pattern = f"(b y x) h (r c) k -> b {CELLS[put or layer.axis]} {heads}"
    out = rearrange(out, pattern, r=w, c=w, y=rows // w, x=columns // w)
    return rearrange(layer.proj(out) if project else out, "b rows columns d -> b d rows columns")


class _Exchanged(WindowAttention):
    def forward(self, features):
        return _attend(self, features, cut=OTHER[self.axis], put=OTHER[self.axis])


class _AlwaysBlocks(WindowAttention):
    def forward(self, features):
        return _attend(self, features, cut="block", put="block")


class _PutBackAsBlocks(WindowAttention):
    def forward(self, features):
        return _attend(self, features, put="block")


class _NoBias(WindowAttention):
    def forward(self, features):
        return _attend(self, features, bias=lambda bias: 0 * bias)


class _BiasTransposed(WindowAttention):
    def forward(self, features):
        return _attend(self, features, bias=lambda bias: bias.transpose(-2, -1))


class _BiasScaled(WindowAttention):
    def forward(self, features):
        return _attend(self, features, bias=lambda bias: bias * self.scale)


class _BiasBehindSoftmax(WindowAttention):
    def forward(self, features):
        return _attend(self, features, bias_behind=True)


class _Reshaped(WindowAttention):
    def forward(self, features):
        return _attend(self, features).movedim(1, -1).reshape(features.shape)


class _NoScale(WindowAttention):
    def forward(self, features):
        return _attend(self, features, scale=1.0)


class _ScaleOfTheWidth(WindowAttention):
    def forward(self, features):
        return _attend(self, features, scale=self.qkv.in_features**-0.5)


class _SoftmaxOverQueries(WindowAttention):
    def forward(self, features):
        return _attend(self, features, scores_over=-2)


class _HeadsInterleaved(WindowAttention):
    def forward(self, features):
        return _attend(self, features, heads="(k h)")


class _NoProjection(WindowAttention):
    def forward(self, features):
        return _attend(self, features, project=False)


WINDOW_ATTENTION = Exercise(
    name="WindowAttention",
    solution=WindowAttention,
    cases=(
        ({"dim": 6, "axis": "grid", "window_size": 2, "dim_head": 3}, _draw(0, (2, 6, 4, 6))),
        ({"dim": 6, "axis": "block", "window_size": 2, "dim_head": 3}, _draw(1, (2, 6, 4, 6))),
    ),
    praise="Attention itself never learned that there are windows: they stand in the batch.",
    mistakes={
        "block and grid exchanged": Mistake(
            _Exchanged,
            says=(
                "Block and grid are exchanged: cells of a block are neighbours, (y r) (x c); a grid is (r "
                "y) (c x)."
            ),
        ),
        "always blocks": Mistake(
            _AlwaysBlocks,
            says=(
                "This is block attention, whatever self.axis says. For 'grid' the pattern of the cells is "
                "(r y) (c x)."
            ),
        ),
        "put back as blocks": Mistake(
            _PutBackAsBlocks,
            says=(
                "Windows were cut by the grid and put back as blocks: every shape fits and the map is "
                "scrambled. Use one pattern on both ways."
            ),
        ),
        "no bias": Mistake(
            _NoBias,
            says=(
                "The bias is missing. Look it up in the table, relative_position_bias_table[index], heads "
                "first, and add it to the scores before the softmax."
            ),
        ),
        "bias transposed": Mistake(
            _BiasTransposed,
            says="The bias is transposed, key minus query: its rows are queries, like those of the scores.",
        ),
        "bias scaled": Mistake(
            _BiasScaled,
            says=(
                "The bias was divided by √k together with the scores. Equation 1 divides only the products."
            ),
        ),
        "bias behind the softmax": Mistake(
            _BiasBehindSoftmax,
            says="The bias was added to the weights. Add it to the scores, before the softmax.",
        ),
        "reshaped": Mistake(
            _Reshaped,
            says=(
                "The channels were put in front by reshape or view, which keeps the order of the numbers and "
                "scrambles the map. Move the axis: movedim(-1, 1), or rearrange."
            ),
        ),
        "no scale": Mistake(_NoScale, says="The scores are not divided by √k, k = dim_head."),
        "scale of the whole width": Mistake(
            _ScaleOfTheWidth,
            says=(
                "The scores are divided by √D, the width of all heads together, as torchvision does; the "
                "paper, and this step, divide by √k, the width of one head."
            ),
        ),
        "softmax over queries": Mistake(
            _SoftmaxOverQueries,
            says="The softmax runs over the queries. The weights of one query sum to one: dim=-1.",
        ),
        "heads interleaved": Mistake(
            _HeadsInterleaved,
            says="The channels are split as (k h). A head has neighbouring channels: (h k).",
        ),
        "no projection": Mistake(
            _NoProjection, says="The output layer proj, which mixes the heads, is missing."
        ),
    },
    calls=forward,
)


# ------------------------------------------------------------------------------------- WindowTransformerBlock


def _on_cells(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """A layer that wants channels last, for a map."""
    return lambda features: layer(features.movedim(1, -1)).movedim(-1, 1)


class _NoSkip(WindowTransformerBlock):
    def forward(self, features):
        features = self.attn(_on_cells(self.norm1)(features))
        return _on_cells(self.mlp)(_on_cells(self.norm2)(features))


class _NoSkipAroundAttention(WindowTransformerBlock):
    def forward(self, features):
        features = self.attn(_on_cells(self.norm1)(features))
        return features + _on_cells(self.mlp)(_on_cells(self.norm2)(features))


class _NormAfterwards(WindowTransformerBlock):
    def forward(self, features):
        features = _on_cells(self.norm1)(features + self.attn(features))
        return _on_cells(self.norm2)(features + _on_cells(self.mlp)(features))


class _NoNorm(WindowTransformerBlock):
    def forward(self, features):
        features = features + self.attn(features)
        return features + _on_cells(self.mlp)(features)


class _FirstNormTwice(WindowTransformerBlock):
    def forward(self, features):
        features = features + self.attn(_on_cells(self.norm1)(features))
        return features + _on_cells(self.mlp)(_on_cells(self.norm1)(features))


class _Parallel(WindowTransformerBlock):
    def forward(self, features):
        update = self.attn(_on_cells(self.norm1)(features))
        return features + update + _on_cells(self.mlp)(_on_cells(self.norm2)(features))


WINDOW_TRANSFORMER_BLOCK = Exercise(
    name="WindowTransformerBlock",
    solution=WindowTransformerBlock,
    cases=(
        ({"dim": 6, "axis": "grid", "window_size": 2, "dim_head": 3}, _draw(2, (2, 6, 4, 6))),
        ({"dim": 4, "axis": "block", "window_size": 3, "dim_head": 2}, _draw(3, (1, 4, 3, 6))),
    ),
    praise="The block of lesson 03, on a map.",
    mistakes={
        "no residual connection": Mistake(
            _NoSkip, says="Both residual connections are missing: x + branch(norm(x))."
        ),
        "none around attention": Mistake(
            _NoSkipAroundAttention,
            says="The residual connection around attention is missing: x + attn(norm1(x)).",
        ),
        "norm afterwards": Mistake(
            _NormAfterwards,
            says="The norms stand behind the sums (post-norm). Here they stand first in each branch.",
        ),
        "no norm": Mistake(_NoNorm, says="Neither norm is used: x + attn(norm1(x)), then x + mlp(norm2(x))."),
        "first norm twice": Mistake(
            _FirstNormTwice, says="norm1 stands in both branches; the second has norm2."
        ),
        "side by side": Mistake(
            _Parallel,
            says=(
                "The feed-forward layer got what came into the block. It works on what attention has changed."
            ),
        ),
    },
    calls=forward,
)


# ------------------------------------------------------------------------------------------ SqueezeExcitation


class _EveryPlace(SqueezeExcitation):
    def forward(self, features):
        return features * self.fc2(F.silu(self.fc1(features))).sigmoid()


class _Softmax(SqueezeExcitation):
    def forward(self, features):
        return features * self.fc2(F.silu(self.fc1(features.mean(dim=(2, 3), keepdim=True)))).softmax(dim=1)


class _ReLU(SqueezeExcitation):
    def forward(self, features):
        return features * self.fc2(F.relu(self.fc1(features.mean(dim=(2, 3), keepdim=True)))).sigmoid()


class _NothingBetween(SqueezeExcitation):
    def forward(self, features):
        return features * self.fc2(self.fc1(features.mean(dim=(2, 3), keepdim=True))).sigmoid()


class _Added(SqueezeExcitation):
    def forward(self, features):
        return features + self.fc2(F.silu(self.fc1(features.mean(dim=(2, 3), keepdim=True)))).sigmoid()


class _Sum(SqueezeExcitation):
    def forward(self, features):
        return features * self.fc2(F.silu(self.fc1(features.sum(dim=(2, 3), keepdim=True)))).sigmoid()


class _Largest(SqueezeExcitation):
    def forward(self, features):
        return features * self.fc2(F.silu(self.fc1(features.amax(dim=(2, 3), keepdim=True)))).sigmoid()


class _WholeBatch(SqueezeExcitation):
    def forward(self, features):
        return features * self.fc2(F.silu(self.fc1(features.mean(dim=(0, 2, 3), keepdim=True)))).sigmoid()


class _NoSigmoid(SqueezeExcitation):
    def forward(self, features):
        return features * self.fc2(F.silu(self.fc1(features.mean(dim=(2, 3), keepdim=True))))


class _GateAlone(SqueezeExcitation):
    def forward(self, features):
        return self.fc2(F.silu(self.fc1(features.mean(dim=(2, 3), keepdim=True)))).sigmoid()


def _map_with_means(seed: int, b: int, d: int, rows: int, columns: int) -> tuple[Tensor]:
    """A map whose channels have means of their own, so that the gates differ."""
    features, means = _draw(seed, (b, d, rows, columns), (b, d, 1, 1))
    return (features + 2 * means,)


SQUEEZE_EXCITATION = Exercise(
    name="SqueezeExcitation",
    solution=SqueezeExcitation,
    cases=(
        ({"dim": 4, "hidden_dim": 2}, _map_with_means(0, 2, 4, 3, 5)),
        ({"dim": 6, "hidden_dim": 3}, _map_with_means(1, 3, 6, 4, 4)),
    ),
    praise="One number for each channel of each picture, made from the whole map.",
    mistakes={
        "a gate at every place": Mistake(
            _EveryPlace,
            says=(
                "Every cell got a gate of its own: nothing was squeezed. Take the mean over rows and "
                "columns first, features.mean(dim=(2, 3), keepdim=True), so that the gate knows the whole "
                "picture and is the same at every place."
            ),
        ),
        "softmax": Mistake(
            _Softmax,
            says=(
                "The gates of a picture sum to one: that is a softmax, in which channels compete. Here "
                "each channel is let through or not for itself: sigmoid."
            ),
        ),
        "relu": Mistake(
            _ReLU,
            says=(
                "Between the two layers stands a ReLU, as in the paper of 2018. MBConv has a SiLU there, "
                "x · sigmoid(x): F.silu."
            ),
        ),
        "nothing between": Mistake(
            _NothingBetween,
            says="Between the two layers stands nothing. MBConv has a SiLU there, x · sigmoid(x): F.silu.",
        ),
        "added": Mistake(
            _Added, says="The gate was added to the features. A gate multiplies: features * gate."
        ),
        "sum": Mistake(
            _Sum,
            says=(
                "You summed over the map where a mean is wanted: the gate would depend on the size of the "
                "picture."
            ),
        ),
        "largest": Mistake(
            _Largest, says="You took the largest value of each channel. Squeezing is the mean."
        ),
        "the whole batch": Mistake(
            _WholeBatch,
            says=(
                "The mean runs over the pictures of the batch too, so that they see each other. Keep axis 0: "
                "features.mean(dim=(2, 3), keepdim=True)."
            ),
        ),
        "no sigmoid": Mistake(
            _NoSigmoid,
            says=(
                "Your gates can be any numbers, even negative ones. The sigmoid after fc2 puts them between "
                "0 and 1."
            ),
        ),
        "the gate alone": Mistake(
            _GateAlone,
            says="You returned the gates themselves. Multiply the features by them: features * gate.",
        ),
    },
    calls=forward,
)


# ----------------------------------------------------------------------------------------------- forward_head


def forward_head(features: Tensor, norm: nn.Module, head: nn.Module) -> Tensor:
    """The package's `Pyramid.forward_head`, with these two layers for its own."""
    pyramid = SimpleNamespace(num_features=features.shape[1], norm=norm, head=head)
    return Pyramid.forward_head(pyramid, features)  # type: ignore[arg-type]


def _norm_first(features: Tensor, norm: nn.Module, head: nn.Module) -> Tensor:
    return head(norm(features.movedim(1, -1)).mean(dim=(1, 2)))


def _no_norm(features: Tensor, norm: nn.Module, head: nn.Module) -> Tensor:
    return head(features.mean(dim=(2, 3)))


def _no_head(features: Tensor, norm: nn.Module, head: nn.Module) -> Tensor:
    return norm(features.mean(dim=(2, 3)))


def _largest_of_the_map(features: Tensor, norm: nn.Module, head: nn.Module) -> Tensor:
    return head(norm(features.amax(dim=(2, 3))))


def _layers(seed: int, d: int, classes: int) -> tuple[nn.Module, nn.Module]:
    """A norm and a head with weights that matter; PyTorch's own random state stays as it is."""
    norm, head = nn.LayerNorm(d), nn.Linear(d, classes, bias=False)
    weights = _draw(seed, (d,), (d,), (classes, d))
    with torch.no_grad():
        for parameter, value in zip((norm.weight, norm.bias, head.weight), weights, strict=True):
            parameter.copy_(value)
    return norm.requires_grad_(False), head.requires_grad_(False)


with torch.random.fork_rng(devices=[]):
    FORWARD_HEAD = Exercise(
        name="forward_head",
        solution=forward_head,
        cases=(
            (*_draw(4, (2, 5, 3, 4)), *_layers(5, 5, 3)),
            (*_draw(6, (3, 4, 2, 2)), *_layers(7, 4, 4)),
        ),
        praise="First the mean over the map, then the norm: the two do not commute.",
        mistakes={
            "norm before pooling": Mistake(
                _norm_first,
                says=(
                    "You normalised every cell and then took the mean, as a ViT does. Here the mean comes "
                    "first; the norm works on one row for each picture."
                ),
            ),
            "no norm": Mistake(_no_norm, says="The norm between pooling and head is missing."),
            "no head": Mistake(
                _no_head, says="These are the pooled features; the head turns them into logits."
            ),
            "the largest": Mistake(
                _largest_of_the_map,
                says="You took the largest value of each channel; pooling is the mean here.",
            ),
        },
    )


# -------------------------------------------------------------------------------------------- smallest_window


def smallest_window(side: int) -> int:
    """The smallest w that divides the side and with which block, then grid reaches the whole map."""
    return next(w for w in range(1, side + 1) if side % w == 0 and w * w >= side)


SMALLEST_WINDOW = Exercise(
    name="smallest_window",
    solution=smallest_window,
    cases=((56,), (49,), (14,), (12,), (13,)),
    praise=(
        "A window must fill the map, and there must be no more windows in a row than cells in a window's row."
    ),
    mistakes={
        "does not fill": Mistake(
            lambda side: next(w for w in range(1, side + 1) if w * w >= side),
            says="Some of your windows do not fill the map: w must divide the side.",
        ),
        "larger than": Mistake(
            lambda side: next((w for w in range(1, side + 1) if side % w == 0 and w * w > side), side),
            says="w² = R is enough: with w = 7 a map of 49 × 49 is covered. Compare with >=.",
        ),
        "the largest below": Mistake(
            lambda side: next(w for w in range(side, 0, -1) if side % w == 0 and w * w <= side),
            says="Your windows are too small: the condition is w² ≥ R, that is w ≥ Y, and you have w² ≤ R.",
        ),
        "half the map": Mistake(
            lambda side: next(w for w in range(1, side + 1) if side % w == 0 and 2 * w >= side),
            says="You let one block and its neighbour fill the map. It is enough that w ≥ Y = R / w.",
        ),
    },
)


# -------------------------------------------------------------------------------------------- shifted_members


def _shifted(down: int, across: int, pattern: str = CELLS["block"]) -> Callable:
    """Members of windows on a map whose cells have moved by so many half windows."""

    def members(rows: int, columns: int, window_size: int) -> Tensor:
        cells = torch.arange(rows * columns).view(rows, columns)
        half = window_size // 2
        moved = cells.roll((down * half, across * half), dims=(0, 1))
        return rearrange(moved, f"{pattern} -> (y x) (r c)", r=window_size, c=window_size)

    return members


SHIFTED_MEMBERS = Exercise(
    name="shifted_members",
    solution=_shifted(-1, -1),
    cases=((4, 8, 4), (8, 8, 4), (4, 6, 2)),
    praise="Swin's second kind of window: it crosses the walls of the first, half a window at a time.",
    mistakes={
        "not shifted": Mistake(
            _shifted(0, 0), says="These are plain blocks. Move them half a window down and right."
        ),
        "the other way": Mistake(
            _shifted(1, 1),
            says=(
                "Shifted up and left: your first window begins in the last rows. roll with *negative* "
                "numbers brings cell (w // 2, w // 2) to the corner."
            ),
        ),
        "down only": Mistake(_shifted(-1, 0), says="Shifted down only; shift across as well."),
        "across only": Mistake(_shifted(0, -1), says="Shifted across only; shift down as well."),
        "a whole window": Mistake(
            _shifted(-2, -2),
            says="Shifted by a whole window: the same blocks in another order. Half a window: w // 2.",
        ),
        "grid": Mistake(
            _shifted(-1, -1, CELLS["grid"]), says="Shifted, but cut by the grid. Swin cuts blocks."
        ),
    },
)


# ---------------------------------------------------------------------------------------------- merge_windows


def _merged(pattern: Callable[[str], str]) -> Callable:
    """Windows (b · windows, t, d) put back into maps by an einops pattern for each axis."""

    def merge(windows: Tensor, rows: int, columns: int, axis: str) -> Tensor:
        w = round(windows.shape[1] ** 0.5)
        return rearrange(windows, pattern(axis), r=w, c=w, y=rows // w, x=columns // w)

    return merge


MERGE_WINDOWS = Exercise(
    name="merge_windows",
    solution=_merged(lambda axis: f"(b y x) (r c) d -> b d {CELLS[axis]}"),
    cases=((*_draw(8, (12, 4, 3)), 4, 6, "grid"), (*_draw(9, (12, 4, 3)), 4, 6, "block")),
    praise="A test with one picture could not have told: with b = 1 both orders are the same.",
    mistakes={
        "pictures last": Mistake(
            _merged(lambda axis: f"(y x b) (r c) d -> b d {CELLS[axis]}"),
            says=(
                "Still wrong where a batch has two pictures. Windows stand image by image, so the batch is "
                "the slowest letter of the first axis: (b y x)."
            ),
        ),
        "always blocks": Mistake(
            _merged(lambda axis: f"(b y x) (r c) d -> b d {CELLS['block']}"),
            says="Put back as blocks whatever axis says.",
        ),
        "columns first": Mistake(
            _merged(lambda axis: f"(b x y) (r c) d -> b d {CELLS[axis]}"),
            says="The windows are read column by column; they stand in reading order, (b y x).",
        ),
    },
)


EXERCISES: list[Exercise] = [
    WINDOW_MEMBERS,
    RELATIVE_POSITION_INDEX,
    WINDOW_ATTENTION,
    WINDOW_TRANSFORMER_BLOCK,
    SQUEEZE_EXCITATION,
    FORWARD_HEAD,
    SMALLEST_WINDOW,
    SHIFTED_MEMBERS,
    MERGE_WINDOWS,
]
