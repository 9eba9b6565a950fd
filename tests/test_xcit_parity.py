"""XCiT is timm's: logits, gradients and counts; wrong versions are found, what differs is refused."""

import math
from collections.abc import Callable
from types import MethodType

import pytest
import timm
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from vit_course.attention import record_attention
from vit_course.lab.catalogue import MODELS
from vit_course.lab.parity import DIFFERENT, SAME, disagreement, randomise, relative_error
from vit_course.lab.pretrained import from_timm
from vit_course.xcit import (
    FourierPositions,
    LocalPatchInteraction,
    XCAttention,
    XCiT,
    XCiTBlock,
    XCiTClassBlock,
)

SMALL = MODELS["XCiT"].tiny


def small_xcit(**changes) -> XCiT:
    return XCiT(**SMALL | changes)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*(shape or (4, 3, 16, 16)), generator=torch.Generator().manual_seed(seed))


# ---- equal to the published models

TINY = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 64,
    "depth": 3,
    "num_heads": 4,
    "num_classes": 7,
    "tokens_norm": True,
}
TIMM = {
    "N12/16, no tokens_norm": {"model": "xcit_nano_12_p16_224"},
    "T12/16": {"model": "xcit_tiny_12_p16_224"},
    "N12/8, no tokens_norm": {"model": "xcit_nano_12_p8_224"},
    "T24/16, small gammas at the start": {"model": "xcit_tiny_24_p16_224"},
    "rectangular, patches of 8": {"img_size": (24, 48)},
    "rectangular, patches of 16": {"img_size": (48, 32), "patch_size": 16},
    "one row of patches": {"img_size": (8, 64)},
    "features, no tokens_norm": {"num_classes": 0, "tokens_norm": False},
    "grey, one class layer, narrow feed-forward": {"in_chans": 1, "cls_attn_layers": 1, "mlp_ratio": 1.5},
    "one head": {"num_heads": 1},
}


def timm_xcit(model: str | None = None, **config) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(model) if model else timm.models.xcit.Xcit(**TINY | config)


def suited(model: nn.Module, batch: int = 2) -> Tensor:
    """Images for a model of timm; those of the named ones are smaller than published, which XCiT does not
    mind.
    """
    height, width = model.patch_embed.img_size
    return images(batch, model.in_chans, min(height, 96), min(width, 64))


@pytest.mark.parametrize("config", TIMM.values(), ids=TIMM.keys())
@pytest.mark.parametrize("input_scale", [1.0, 1e-3], ids=["large", "faint"])
def test_equal_to_timm(config: dict, input_scale: float) -> None:
    theirs = randomise(timm_xcit(**config), input_scale=input_scale)
    assert disagreement(from_timm(theirs), theirs, suited(theirs)) < SAME


def test_equal_to_timm_at_the_published_size() -> None:
    theirs = randomise(timm_xcit("xcit_nano_12_p16_224"))
    assert disagreement(from_timm(theirs), theirs, images(1, 3, 224, 224)) < SAME


@pytest.mark.parametrize("tokens_norm", [True, False])
def test_tokens_are_equal_to_timm_too(tokens_norm: bool) -> None:
    """The patches as well as the class token, and with weights recorded as well as without."""
    theirs = randomise(timm_xcit(tokens_norm=tokens_norm))
    ours, pixels = from_timm(theirs), suited(theirs)
    with torch.no_grad():
        expected = theirs.forward_features(pixels)
        assert relative_error(ours.forward_features(pixels), expected) < SAME
        with record_attention(ours) as record:
            assert relative_error(ours.forward_features(pixels), expected) < SAME
    assert [layer.kind for layer in record] == ["channel"] * 3 + ["class"] * 2


def test_gradients_equal_to_timm() -> None:
    theirs = randomise(timm_xcit())
    ours = from_timm(theirs)
    gradients = []
    for model in (ours, theirs):
        pixels = suited(theirs, batch=2).requires_grad_()  # at batch 1 BatchNorm2d's may be wrong on a CPU
        model(pixels).square().sum().backward()
        gradients.append(pixels.grad)
    assert relative_error(*gradients) < SAME
    others = {name.replace("gamma", "ls"): parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        other = others[name.replace(".gamma", "")].view_as(parameter)
        # The class token meets every key with the same bias, which softmax does not see: both gradients of it
        # are rounding.
        if not name.endswith("attn.k.bias"):
            assert relative_error(parameter.grad, other) < 10 * SAME, name


def test_training_is_equal_to_timm() -> None:
    """BatchNorm with the batch's own statistics, and what it remembers of them."""
    theirs = randomise(timm_xcit())
    ours = from_timm(theirs).train()
    theirs.train()
    assert disagreement(ours, theirs, suited(theirs, batch=4)) < SAME
    ours_norm, their_norm = ours.blocks[0].local_mp.bn, theirs.blocks[0].local_mp.bn
    assert relative_error(ours_norm.running_var, their_norm.running_var) < SAME


def test_gradient_of_one_image_is_right() -> None:
    """Beside finite differences: through timm's it is not, where BatchNorm2d meets batch 1 on a CPU."""
    model = randomise(small_xcit(patch_size=8, image_size=32))
    pixels, direction = images(1, 3, 32, 32).requires_grad_(), images(1, 3, 32, 32, seed=1)
    (gradient,) = torch.autograd.grad(model(pixels).square().sum(), pixels)
    precise, step = model.double(), 1e-5
    with torch.no_grad():
        ahead, behind = (
            precise(pixels.double() + sign * step * direction.double()).square().sum() for sign in (1, -1)
        )
    slope = ((ahead - behind) / (2 * step)).item()
    assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-3)


def _with_forward(kind: type[nn.Module], forward: Callable) -> Callable[[XCiT], None]:
    """A mutant whose parts of this kind compute something else."""

    def mutate(model: XCiT) -> None:
        for module in model.modules():
            if type(module) is kind:
                module.forward = MethodType(forward, module)

    mutate.__name__ = forward.__name__
    return mutate


def _attend(self: XCAttention, tokens: Tensor, weigh: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """XCA with weights of one's own making from queries and keys (b, h, n, k)."""
    q, k, v = (
        rearrange(part, "b n (h k) -> b h n k", h=self.heads) for part in self.qkv(tokens).chunk(3, dim=-1)
    )
    return self.proj(rearrange(v @ weigh(q, k, self.temperature).mT, "b h n k -> b n (h k)"))


def _cosines(q: Tensor, k: Tensor, axis: int = -2) -> Tensor:
    return F.normalize(q, dim=axis).mT @ F.normalize(k, dim=axis)


def exp_of_the_temperature(self: XCAttention, tokens: Tensor) -> Tensor:
    return _attend(self, tokens, lambda q, k, t: (t.exp() * _cosines(q, k)).softmax(dim=-1))


def divided_by_the_temperature(self: XCAttention, tokens: Tensor) -> Tensor:
    return _attend(self, tokens, lambda q, k, t: (_cosines(q, k) / t).softmax(dim=-1))


def normalised_over_channels(self: XCAttention, tokens: Tensor) -> Tensor:
    return _attend(self, tokens, lambda q, k, t: (t * _cosines(q, k, axis=-1)).softmax(dim=-1))


def not_normalised(self: XCAttention, tokens: Tensor) -> Tensor:
    return _attend(self, tokens, lambda q, k, t: (t * (q.mT @ k)).softmax(dim=-1))


def softmax_over_queries(self: XCAttention, tokens: Tensor) -> Tensor:
    return _attend(self, tokens, lambda q, k, t: (t * _cosines(q, k)).softmax(dim=-2))


def transposed_weights(self: XCAttention, tokens: Tensor) -> Tensor:
    return _attend(self, tokens, lambda q, k, t: (t * _cosines(q, k)).softmax(dim=-1).mT)


def norm_before_gelu(self: LocalPatchInteraction, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    maps = rearrange(tokens, "b (rows columns) d -> b d rows columns", rows=grid[0])
    maps = self.conv2(self.act(self.bn(self.conv1(maps))))
    return rearrange(maps, "b d rows columns -> b (rows columns) d")


def columns_first(self: LocalPatchInteraction, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    maps = rearrange(tokens, "b (columns rows) d -> b d rows columns", rows=grid[0])
    maps = self.conv2(self.bn(self.act(self.conv1(maps))))
    return rearrange(maps, "b d rows columns -> b (columns rows) d")


def local_interaction_last(self: XCiTBlock, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
    tokens = tokens + self.ls2(self.mlp(self.norm2(tokens)))
    return tokens + self.ls3(self.local_mp(self.norm3(tokens), grid))


def class_block_of_cait(self: XCiTClassBlock, tokens: Tensor) -> Tensor:
    return super(XCiTClassBlock, self).forward(tokens)


def unnormalised_context(self: XCiTClassBlock, tokens: Tensor) -> Tensor:
    """Only the class token passes the first norm."""
    normed = torch.cat([self.norm1(tokens[:, :1]), tokens[:, 1:]], dim=1)
    tokens = self.norm2(tokens + self.ls1(torch.cat([self.attn(normed), normed[:, 1:]], dim=1)))
    return torch.cat([tokens[:, :1] + self.ls2(self.mlp(tokens[:, :1])), 2 * tokens[:, 1:]], dim=1)


def residual_before_the_norm(self: XCiTClassBlock, tokens: Tensor) -> Tensor:
    normed = self.norm1(tokens)
    tokens = tokens + self.ls1(torch.cat([self.attn(normed), normed[:, 1:]], dim=1))
    patches = self.norm2(tokens[:, 1:])
    return torch.cat([tokens[:, :1] + self.ls2(self.mlp(self.norm2(tokens[:, :1]))), 2 * patches], dim=1)


def _waves(along: Callable[[int], Tensor], swapped: bool = False) -> Callable:
    def waves(self: FourierPositions, grid: tuple[int, int]) -> Tensor:
        of_rows = repeat(along(grid[0]), "rows f -> (rows columns) f", columns=grid[1])
        of_columns = repeat(along(grid[1]), "columns f -> (rows columns) f", rows=grid[0])
        return torch.cat([of_columns, of_rows] if swapped else [of_rows, of_columns], dim=1)

    return waves


def _along(
    length: int, *, frequencies: Tensor, start: int = 1, scaled: bool = True, in_turn: bool = True
) -> Tensor:
    places = torch.arange(start, length + start) * (2 * math.pi / length if scaled else 1)
    angles = places[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1 if in_turn else 1).flatten(1)


RIGHT = 10000.0 ** -(torch.arange(16) / 16)
POSITIONS = {
    "wrong frequencies": _waves(lambda r: _along(r, frequencies=10000.0 ** -(torch.arange(16) / 15))),
    "frequencies of 32": _waves(lambda r: _along(r, frequencies=10000.0 ** -(torch.arange(16) / 32))),
    "columns before rows": _waves(lambda r: _along(r, frequencies=RIGHT), swapped=True),
    "counted from 0": _waves(lambda r: _along(r, frequencies=RIGHT, start=0)),
    "counted in patches": _waves(lambda r: _along(r, frequencies=RIGHT, scaled=False)),
    "sines before cosines": _waves(lambda r: _along(r, frequencies=RIGHT, in_turn=False)),
}


def wrong_positions(which: str) -> Callable[[XCiT], None]:
    def mutate(model: XCiT) -> None:
        model.pos_embed.waves = MethodType(POSITIONS[which], model.pos_embed)

    mutate.__name__ = which.replace(" ", "_")
    return mutate


def other_tokens_norm(model: XCiT) -> None:
    for block in model.cls_attn_blocks:
        block.tokens_norm = not block.tokens_norm


def gammas_swapped(model: XCiT) -> None:
    for block in model.blocks:
        block.ls2, block.ls3 = block.ls3, block.ls2


def gelu_after_the_stem(model: XCiT) -> None:
    model.patch_embed.proj.append(nn.GELU())


def heads_first(model: XCiT) -> None:
    for block in model.blocks:
        for parameter in (block.attn.qkv.weight, block.attn.qkv.bias):
            parameter.data = rearrange(
                parameter.data, "(h qkv k) ... -> (qkv h k) ...", h=block.attn.heads, qkv=3
            )


FORWARDS = {
    XCAttention: (
        exp_of_the_temperature,
        divided_by_the_temperature,
        normalised_over_channels,
        not_normalised,
        softmax_over_queries,
        transposed_weights,
    ),
    LocalPatchInteraction: (norm_before_gelu, columns_first),
    XCiTBlock: (local_interaction_last,),
    XCiTClassBlock: (class_block_of_cait, unnormalised_context, residual_before_the_norm),
}
MUTANTS = [
    other_tokens_norm, gammas_swapped, gelu_after_the_stem, heads_first, *map(wrong_positions, POSITIONS),
    *(_with_forward(kind, forward) for kind, forwards in FORWARDS.items() for forward in forwards),
]  # fmt: skip


@pytest.mark.parametrize("mutate", MUTANTS, ids=lambda mutate: mutate.__name__)
def test_parity_sees_mistakes(mutate: Callable[[XCiT], None]) -> None:
    theirs = randomise(timm_xcit(img_size=(24, 48)))
    ours = from_timm(theirs)
    assert disagreement(ours, theirs, suited(theirs)) < SAME
    mutate(ours)
    assert disagreement(ours, theirs, suited(theirs)) > DIFFERENT


def test_parity_sees_a_wrong_epsilon_in_faint_tokens() -> None:
    theirs = randomise(timm_xcit(), input_scale=1e-3)
    ours = from_timm(theirs)
    for module in ours.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5
    assert disagreement(ours, theirs, suited(theirs)) > DIFFERENT


VARIANTS = {  # dim, depth, heads, patch_size, tokens_norm, parameters
    "N12/16": (128, 12, 4, 16, False, 3_053_224),
    "N12/8": (128, 12, 4, 8, False, 3_049_016),
    "T12/16": (192, 12, 4, 16, True, 6_716_272),
    "T24/16": (192, 24, 4, 16, True, 12_116_896),
    "S12/16": (384, 12, 8, 16, True, 26_253_304),
    "S24/16": (384, 24, 8, 16, True, 47_671_384),
    "M24/16": (512, 24, 8, 16, True, 84_395_752),
    "L24/16": (768, 24, 16, 16, True, 189_096_136),
}


@pytest.mark.parametrize(
    ("dim", "depth", "heads", "patch_size", "tokens_norm", "count"), VARIANTS.values(), ids=VARIANTS.keys()
)
def test_parameter_counts_are_the_published_ones(
    dim: int, depth: int, heads: int, patch_size: int, tokens_norm: bool, count: int
) -> None:
    with torch.device("meta"):
        model = XCiT(
            image_size=224,
            patch_size=patch_size,
            num_classes=1000,
            dim=dim,
            depth=depth,
            heads=heads,
            mlp_dim=4 * dim,
            tokens_norm=tokens_norm,
        )
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert sum(buffer.numel() for buffer in model.buffers()) > 0


# ---- what timm's Xcit does and ours does not


def changed(change: Callable[[nn.Module], object]) -> nn.Module:
    model = timm_xcit()
    change(model)
    return model


REFUSED = {
    "no positions": (lambda: timm_xcit(use_pos_embed=False), "use_pos_embed"),
    "qkv_bias": (lambda: timm_xcit(qkv_bias=False), "qkv_bias"),
    "average": (lambda: timm_xcit(global_pool="avg"), "global_pool='avg'"),
    "tanh": (lambda: timm_xcit(act_layer=lambda: nn.GELU("tanh")), "act_layer"),
    "relu": (lambda: timm_xcit(act_layer=nn.ReLU), "act_layer"),
    "epsilon": (lambda: timm_xcit(norm_layer=nn.LayerNorm), "eps 1e-6"),
    "another norm": (lambda: timm_xcit(norm_layer=nn.RMSNorm), "not LayerNorm"),
    "no final norm": (lambda: changed(lambda model: setattr(model, "norm", nn.Identity())), "its norms"),
    "BatchNorm": (
        lambda: changed(lambda model: setattr(model.blocks[0].local_mp.bn, "eps", 1e-3)),
        "BatchNorm",
    ),
    "pruned": (lambda: changed(lambda model: model.prune_intermediate_layers(1)), "its class blocks"),
    "stem": (lambda: changed(lambda model: setattr(model, "patch_embed", nn.Identity())), "Identity"),
    "blocks": (
        lambda: changed(lambda model: setattr(model, "blocks", nn.ModuleList([nn.Identity()]))),
        "its blocks",
    ),
    "two at once": (lambda: timm_xcit(qkv_bias=False, use_pos_embed=False), "qkv_bias.*use_pos_embed"),
}


@pytest.mark.parametrize(("model", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_differs_is_refused_by_name(model: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        from_timm(model())


def test_converted_models_keep_device_mode_and_weights_of_their_own() -> None:
    theirs = timm_xcit().train()
    ours = from_timm(theirs)
    assert ours.training and isinstance(ours, XCiT)
    theirs.head.weight.data.zero_()
    assert ours.head.weight.abs().sum() > 0
