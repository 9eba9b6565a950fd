"""CaiT is timm's: logits, gradients and counts; wrong versions are found, what differs is refused."""

from collections.abc import Callable
from types import MethodType

import pytest
import timm
import torch
from timm.models.cait import Cait
from torch import Tensor, nn

from vit_course.attention import MultiHeadAttention, record_attention
from vit_course.cait import (
    CaiT,
    ClassAttention,
    ClassAttentionBlock,
    LayerScale,
    LayerScaleBlock,
    TalkingHeadsAttention,
)
from vit_course.lab.catalogue import MODELS
from vit_course.lab.parity import DIFFERENT, SAME, disagreement, randomise, relative_error
from vit_course.lab.pretrained import from_timm

SMALL = MODELS["CaiT"].tiny
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4, "num_classes": 7}


def small_cait(**changes) -> CaiT:
    return CaiT(**SMALL | changes)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def images(*shape: int, seed: int = 0) -> Tensor:
    return normal(*(shape or (4, 3, 16, 16)), seed=seed)


# ---- equal to the published model

TIMM = {
    "XXS24": {"model": "cait_xxs24_224"},
    "rectangular": {"img_size": (24, 48), "patch_size": (6, 8)},
    "features": {"num_classes": 0},
    "grey, narrow heads": {"in_chans": 1, "num_heads": 8, "mlp_ratio": 1.5, "mlp_ratio_token_only": 1.5},
    "one class layer": {"depth_token_only": 1},
    "three class layers": {"depth_token_only": 3},
}


def timm_cait(model: str | None = None, **config) -> Cait:
    torch.manual_seed(0)
    return timm.create_model(model) if model else Cait(**TINY | config)


def suited(model: Cait, batch: int = 2) -> Tensor:
    return images(batch, model.in_chans, *model.patch_embed.img_size)


@pytest.mark.parametrize("config", TIMM.values(), ids=TIMM.keys())
@pytest.mark.parametrize("input_scale", [1.0, 1e-3], ids=["large", "faint"])
def test_equal_to_timm(config: dict, input_scale: float) -> None:
    theirs = randomise(timm_cait(**config), input_scale=input_scale)
    assert disagreement(from_timm(theirs), theirs, suited(theirs)) < SAME


def test_recorded_is_equal_to_timm_too() -> None:
    theirs = randomise(timm_cait())
    ours = from_timm(theirs)
    with record_attention(ours) as record:
        assert disagreement(ours, theirs, suited(theirs)) < SAME
    assert len(record) == len(theirs.blocks) + len(theirs.blocks_token_only)


def test_gradients_equal_to_timm() -> None:
    theirs = randomise(timm_cait())
    ours = from_timm(theirs)
    gradients = []
    for model in (ours, theirs):
        pixels = suited(theirs).requires_grad_()
        model(pixels).square().sum().backward()
        gradients.append(pixels.grad)
    assert relative_error(*gradients) < SAME
    others = {name.replace("gamma_", "ls"): parameter for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        # A softmax does not see what is the same for all keys: the gradients of these biases are rounding in
        # both models.
        if not name.endswith(("attn.qkv.bias", "attn.k.bias", "attn.proj_l.bias")):
            assert relative_error(parameter.grad, others[name.removesuffix(".gamma")].grad) < 10 * SAME, name


def _for_each(*kinds: type) -> Callable:
    """A mutant that changes every module of these kinds."""

    def decorate(change: Callable[[nn.Module], None]) -> Callable[[CaiT], None]:
        def mutate(model: CaiT) -> None:
            for module in list(model.modules()):
                if isinstance(module, kinds):
                    change(module)

        mutate.__name__ = change.__name__
        return mutate

    return decorate


@_for_each(TalkingHeadsAttention)
def transposed_mixing_before(attention: TalkingHeadsAttention) -> None:
    attention.proj_l.weight.data = attention.proj_l.weight.data.T.clone()


@_for_each(TalkingHeadsAttention)
def transposed_mixing_after(attention: TalkingHeadsAttention) -> None:
    attention.proj_w.weight.data = attention.proj_w.weight.data.T.clone()


@_for_each(TalkingHeadsAttention)
def mixers_swapped(attention: TalkingHeadsAttention) -> None:
    attention.proj_l, attention.proj_w = attention.proj_w, attention.proj_l


@_for_each(TalkingHeadsAttention)
def silent_heads(attention: TalkingHeadsAttention) -> None:
    """No mixing: the attention of lesson 02."""
    attention.forward = MethodType(MultiHeadAttention.forward, attention)


@_for_each(TalkingHeadsAttention)
def no_bias_after(attention: TalkingHeadsAttention) -> None:
    attention.proj_w.bias.data.zero_()


@_for_each(TalkingHeadsAttention)
def wrong_scale(attention: TalkingHeadsAttention) -> None:
    """Scores divided by the width k of a head, not by its square root."""
    k = attention.proj.in_features // attention.heads
    for parameter in (attention.qkv.weight, attention.qkv.bias):
        parameter.data.chunk(3)[0].mul_(k**-0.5)


@_for_each(ClassAttention)
def no_scale_in_the_class_stage(attention: ClassAttention) -> None:
    k = attention.proj.in_features // attention.heads
    for parameter in (attention.q.weight, attention.q.bias):
        parameter.data.mul_(k**0.5)


@_for_each(ClassAttentionBlock)
def talking_heads_in_the_class_stage(block: ClassAttentionBlock) -> None:
    theirs, talking = block.attn, randomise(TalkingHeadsAttention(dim=64, heads=4))
    for name in ("weight", "bias"):
        three = torch.cat([getattr(getattr(theirs, part), name).data for part in ("q", "k", "v")])
        getattr(talking.qkv, name).data.copy_(three)
    talking.proj = theirs.proj
    block.attn = nn.Sequential(talking, FirstToken())


class FirstToken(nn.Module):
    """Tokens (b, n, d) -> the first of them, (b, 1, d)."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, :1]


@_for_each(ClassAttentionBlock)
def unnormalised_context(block: ClassAttentionBlock) -> None:
    """Only the class token passes the norm, not the patches that it attends to."""
    block.norm1.forward = lambda tokens: torch.cat(
        [nn.LayerNorm.forward(block.norm1, tokens[:, :1]), tokens[:, 1:]], dim=1
    )


@_for_each(ClassAttention)
def class_token_without_itself(attention: ClassAttention) -> None:
    attention.k.register_forward_hook(lambda module, inputs, keys: keys[:, 1:])
    attention.v.register_forward_hook(lambda module, inputs, values: values[:, 1:])


@_for_each(LayerScale)
def no_layer_scale(scale: LayerScale) -> None:
    scale.gamma.data.fill_(1)


@_for_each(LayerScaleBlock, ClassAttentionBlock)
def gammas_swapped(block: nn.Module) -> None:
    block.ls1, block.ls2 = block.ls2, block.ls1


@_for_each(LayerScaleBlock, ClassAttentionBlock)
def norms_swapped(block: nn.Module) -> None:
    block.norm1, block.norm2 = block.norm2, block.norm1


def class_token_from_the_start(model: CaiT) -> None:
    """The class token joins before the first stage, as in a ViT."""

    def forward_tokens(self: CaiT, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        class_token = self.cls_token.expand(tokens.shape[0], -1, -1)
        tokens = torch.cat([class_token, tokens + self.positions(grid)], dim=1)
        return self.norm(self.blocks_token_only(self.blocks(tokens)))

    model.forward_tokens = MethodType(forward_tokens, model)


def no_class_stage(model: CaiT) -> None:
    model.blocks_token_only = nn.Identity()


def no_last_norm(model: CaiT) -> None:
    model.norm = nn.Identity()


def no_positions(model: CaiT) -> None:
    model.pos_embed.data.zero_()


MUTANTS = [transposed_mixing_before, transposed_mixing_after, mixers_swapped, silent_heads, no_bias_after]
MUTANTS += [wrong_scale, no_scale_in_the_class_stage, talking_heads_in_the_class_stage, unnormalised_context]
MUTANTS += [class_token_without_itself, no_layer_scale, gammas_swapped, norms_swapped]
MUTANTS += [class_token_from_the_start, no_class_stage, no_last_norm, no_positions]


@pytest.mark.parametrize("mutate", MUTANTS, ids=lambda mutate: mutate.__name__)
def test_parity_sees_mistakes(mutate: Callable[[CaiT], None]) -> None:
    theirs = randomise(timm_cait())
    ours = from_timm(theirs)
    assert disagreement(ours, theirs, suited(theirs)) < SAME
    mutate(ours)
    assert disagreement(ours, theirs, suited(theirs)) > DIFFERENT


def test_parity_sees_a_wrong_epsilon_in_faint_tokens() -> None:
    theirs = randomise(timm_cait(), input_scale=1e-3)
    ours = from_timm(theirs)
    for module in ours.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5
    assert disagreement(ours, theirs, suited(theirs)) > DIFFERENT


def test_parity_sees_an_approximate_gelu() -> None:
    theirs = randomise(timm_cait())
    ours = from_timm(theirs)
    for block in (*ours.blocks, *ours.blocks_token_only):
        block.mlp.act = nn.GELU("tanh")
    assert disagreement(ours, theirs, suited(theirs)) > 5 * SAME


VARIANTS = {
    "XXS24": (224, 192, 24, 4, 11_956_264),
    "XXS36": (224, 192, 36, 4, 17_299_720),
    "XS24 384": (384, 288, 24, 6, 26_670_088),
    "S24": (224, 384, 24, 8, 46_916_200),
    "S36": (224, 384, 36, 8, 68_220_712),
    "S36 384": (384, 384, 36, 8, 68_366_632),
    "M36 384": (384, 768, 36, 16, 271_221_352),
}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("image_size", "dim", "depth", "heads", "expected"), VARIANTS.values(), ids=VARIANTS.keys()
)
def test_parameter_counts_are_the_published_ones(
    image_size: int, dim: int, depth: int, heads: int, expected: int
) -> None:
    sizes = {"image_size": image_size, "patch_size": 16, "num_classes": 1000, "dim": dim, "mlp_dim": 4 * dim}
    with torch.device("meta"):
        assert count(CaiT(**sizes, depth=depth, heads=heads)) == expected


def test_small_parameter_count() -> None:
    assert count(small_cait(image_size=32, num_classes=10, dim=64, depth=2, heads=4, mlp_dim=256)) == 208_602


# ---- what the converter refuses


class OtherTalkingHeads(timm.models.cait.TalkingHeadAttn):
    """May compute anything."""


class OtherClassAttention(timm.models.cait.ClassAttn):
    """May compute anything."""


REFUSED: dict[str, tuple[dict, str]] = {
    "pooling": ({"global_pool": "avg"}, "global_pool='avg'"),
    "no qkv bias": ({"qkv_bias": False}, "qkv_bias"),
    "ReLU": ({"act_layer": nn.ReLU}, "act_layer"),
    "epsilon": ({"norm_layer": nn.LayerNorm}, "eps 1e-6"),
    "no class stage": ({"depth_token_only": 0}, "depth_token_only"),
    "class widths": ({"mlp_ratio_token_only": 2.0}, "mlp_ratio_token_only"),
    "blocks": ({"attn_block": OtherTalkingHeads}, "its blocks"),
    "class blocks": ({"attn_block_token_only": OtherClassAttention}, "its class attention blocks"),
    "patch embedding": (
        {"patch_layer": lambda **sizes: timm.layers.PatchEmbed(**sizes, norm_layer=nn.LayerNorm)},
        "patch embedding",
    ),
}


@pytest.mark.parametrize(("config", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_differs_is_refused_by_name(config: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        from_timm(timm_cait(**config))


def test_converted_model_is_a_copy() -> None:
    theirs = randomise(timm_cait(drop_path_rate=0.3)).train()
    ours = from_timm(theirs)
    assert ours.training
    before = theirs.eval()(suited(theirs))
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    assert torch.equal(theirs(suited(theirs)), before)


def test_subclasses_are_refused() -> None:
    class Learners(Cait):
        """A change of timm's model in a notebook."""

    with pytest.raises(TypeError, match="Learners"):
        from_timm(Learners(**TINY))
