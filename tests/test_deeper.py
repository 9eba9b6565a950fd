"""The models of a1: equal to the authors' and to timm's; wrong versions are found, others refused."""

from collections.abc import Callable
from functools import partial
from types import MethodType

import pytest
import timm
import torch
from support.golden import FOLDER
from timm.models.vision_transformer import ParallelThingsBlock, VisionTransformer
from torch import Tensor, nn

from vit_course.atlas import deeper
from vit_course.atlas.deeper import (
    AnyBlock,
    BlockViT,
    DeepViT,
    DeepViTStem,
    LinearAttention,
    ParallelBlock,
    ParallelViT,
    ReAttention,
    side_by_side,
    which_mix,
)
from vit_course.attention import MultiHeadAttention, record_attention
from vit_course.lab import authors
from vit_course.lab.authors import Golden
from vit_course.lab.catalogue import MODELS
from vit_course.lab.parity import DIFFERENT, SAME, disagreement, randomise, relative_error
from vit_course.lab.pretrained import from_authors, from_timm
from vit_course.vit import FeedForward, ViT

SMALL = MODELS["DeepViT"].tiny


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def each(model: nn.Module, *kinds: type) -> list:
    """All parts of these kinds."""
    return [part for part in model.modules() if isinstance(part, kinds)]


# ---- DeepViT beside the authors' numbers: wrong versions


@pytest.fixture(params=["1", "2"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return authors.load("deepvit_1" if request.param == "1" else FOLDER / "authors" / "deepvit_2.safetensors")


def no_mixing(model: DeepViT) -> None:
    for attention in each(model, ReAttention):
        attention.reatten_matrix.weight.data = torch.eye(attention.heads)


def transposed(model: DeepViT) -> None:
    for attention in each(model, ReAttention):
        attention.reatten_matrix.weight.data = attention.reatten_matrix.weight.data.T.clone()


def no_mixing_bias(model: DeepViT) -> None:
    for attention in each(model, ReAttention):
        attention.reatten_matrix.bias.data.zero_()


def no_norm(model: DeepViT) -> None:
    for attention in each(model, ReAttention):
        attention.var_norm = nn.Identity()


def norm_over_keys(model: DeepViT) -> None:
    for attention in each(model, ReAttention):
        attention.var_norm.forward = lambda maps: nn.functional.layer_norm(maps, maps.shape[-1:])


def norm_of_the_batch(model: DeepViT) -> None:
    for attention in each(model, ReAttention):
        attention.var_norm.train()


def mixed_before_the_softmax(model: DeepViT) -> None:
    for attention in each(model, ReAttention):

        def forward(self: ReAttention, tokens: Tensor) -> Tensor:
            q, k, v = (self.split(part) for part in self.qkv(tokens).chunk(3, dim=-1))
            scores = q @ k.mT * q.shape[-1] ** -0.5
            mixed = deeper.mix_heads(scores, self.reatten_matrix.weight, self.reatten_matrix.bias)
            return self.merge(self.map_scale * self.var_norm(mixed).softmax(dim=-1) @ v)

        attention.forward = MethodType(forward, attention)


def scores_divided_by_the_whole_width(model: DeepViT) -> None:
    for attention in each(model, MultiHeadAttention):
        for parameter in (attention.qkv.weight, attention.qkv.bias):
            parameter.data.chunk(3)[0].mul_(attention.heads**-0.5)


def class_token_last(model: DeepViT) -> None:
    prefix, patches = model.pos_embed.data[:, :1], model.pos_embed.data[:, 1:]
    model.pos_embed.data = torch.cat([patches, prefix], dim=1)


def no_positions(model: DeepViT) -> None:
    model.pos_embed.data.zero_()


EVERYWHERE = [
    no_mixing,
    transposed,
    no_mixing_bias,
    no_norm,
    norm_over_keys,
    norm_of_the_batch,
    mixed_before_the_softmax,
    scores_divided_by_the_whole_width,
    class_token_last,
    no_positions,
]


def error_of(golden: Golden, mutate: Callable[[DeepViT], None]) -> float:
    model = from_authors(golden.variant, golden.weights, golden.config)
    assert golden.error(model) < SAME
    mutate(model)
    return golden.error(model)


@pytest.mark.parametrize("mutate", EVERYWHERE, ids=lambda mutate: mutate.__name__)
def test_the_authors_numbers_show_mistakes(golden: Golden, mutate: Callable[[DeepViT], None]) -> None:
    assert error_of(golden, mutate) > DIFFERENT


def maps_not_scaled(model: DeepViT) -> None:
    for attention in each(model, ReAttention):
        attention.map_scale = 1.0


def branches_not_scaled(model: DeepViT) -> None:
    for block in each(model, AnyBlock):
        block.scale = 1.0


def mixed_everywhere_but_in_the_last(model: DeepViT) -> None:
    model.blocks[0].attn, model.blocks[2].attn = model.blocks[2].attn, model.blocks[0].attn


def stem_without_its_second_norm(model: DeepViT) -> None:
    model.patch_embed.bn2 = nn.Identity()


PUBLISHED_TRICKS = [maps_not_scaled, branches_not_scaled, mixed_everywhere_but_in_the_last]
PUBLISHED_TRICKS += [stem_without_its_second_norm]


@pytest.mark.parametrize("mutate", PUBLISHED_TRICKS, ids=lambda mutate: mutate.__name__)
def test_the_authors_numbers_show_mistakes_in_what_s_and_l_add(mutate: Callable[[DeepViT], None]) -> None:
    assert error_of(authors.load(FOLDER / "authors" / "deepvit_2.safetensors"), mutate) > DIFFERENT


# ---- forms of the authors' code that no stored file has


def plain_config(**changes: object) -> dict[str, object]:
    sizes = {
        "img_size": 16,
        "patch_size": 4,
        "num_classes": 5,
        "embed_dim": 8,
        "num_heads": 2,
        "mlp_ratio": 2,
    }
    return sizes | {"depth": [False] * 2, "apply_transform": [True] * 2, "qkv_bias": True} | changes


def weights_of(model: DeepViT) -> dict[str, Tensor]:
    """As the authors' files hold them: the mixing matrix as a convolution."""
    return {
        name: tensor[..., None, None] if name.endswith("reatten_matrix.weight") else tensor
        for name, tensor in model.state_dict().items()
    }


def model_of(**changes: object) -> DeepViT:
    sizes = dict(image_size=16, patch_size=4, num_classes=5, dim=8, depth=2, heads=2, mlp_dim=16)
    return randomise(DeepViT(**sizes | changes))


def test_no_bias_of_queries_keys_and_values_is_a_bias_of_zero() -> None:
    model = model_of()
    for attention in each(model, MultiHeadAttention):
        attention.qkv.bias.data.zero_()
    weights = {name: tensor for name, tensor in weights_of(model).items() if "qkv.bias" not in name}
    ours = from_authors("deepvit", weights, plain_config(qkv_bias=False, norm_eps=1e-6))
    assert disagreement(ours, model, normal(2, 3, 16, 16)) < SAME


@pytest.mark.parametrize("map_scaled", [False, True])
def test_another_scale_of_the_scores_is_that_of_the_maps_too(map_scaled: bool) -> None:
    model = model_of(map_scaled=map_scaled)
    config = plain_config(qk_scale=0.2, transform_scale=map_scaled, norm_eps=1e-6)
    ours = from_authors("deepvit", weights_of(model), config)
    for attention in each(model, ReAttention):
        attention.map_scale = 0.2 if map_scaled else 1.0
        for parameter in (attention.qkv.weight, attention.qkv.bias):
            parameter.data.chunk(3)[0].mul_(0.2 * 4**0.5)
    assert disagreement(ours, model, normal(2, 3, 16, 16)) < SAME


def test_epsilon_is_that_of_the_configuration() -> None:
    model = randomise(model_of(), input_scale=1e-3)
    faint = [
        from_authors("deepvit", weights_of(model), plain_config(**eps)) for eps in ({}, {"norm_eps": 1e-6})
    ]
    assert {norm.eps for norm in each(faint[0], nn.LayerNorm)} == {1e-5}
    assert disagreement(faint[1], model, normal(2, 3, 16, 16)) < SAME
    assert disagreement(faint[0], model, normal(2, 3, 16, 16)) > DIFFERENT


def test_without_re_attention_it_is_a_vit() -> None:
    model = model_of(mixed=0)
    config = plain_config(re_atten=False, scale_adjustment=0.5, norm_eps=1e-6)
    assert (
        disagreement(from_authors("deepvit", weights_of(model), config), model, normal(2, 3, 16, 16)) < SAME
    )


# ---- ParallelViT beside timm's: equal, and wrong versions

TINY = dict(img_size=32, patch_size=8, num_classes=5, embed_dim=16, depth=2, num_heads=4, mlp_ratio=2)
TIMM: dict[str, dict] = {
    "two branches": {},
    "three branches, no LayerScale": {
        "block_fn": partial(ParallelThingsBlock, num_parallel=3),
        "init_values": None,
    },
    "rectangular, grey": {"img_size": (24, 48), "patch_size": (6, 8), "in_chans": 1},
    "features": {"num_classes": 0},
}


def timm_parallel(**changes: object) -> VisionTransformer:
    torch.manual_seed(0)
    options = {"init_values": 1e-4, "no_embed_class": True, "block_fn": ParallelThingsBlock}
    return VisionTransformer(**TINY | options | changes)


def suited(model: VisionTransformer) -> Tensor:
    return normal(2, model.patch_embed.proj.in_channels, *model.patch_embed.img_size)


@pytest.mark.parametrize("config", TIMM.values(), ids=TIMM)
@pytest.mark.parametrize("input_scale", [1.0, 1e-3], ids=["large", "faint"])
def test_equal_to_timm(config: dict, input_scale: float) -> None:
    theirs = randomise(timm_parallel(**config), input_scale=input_scale)
    assert disagreement(from_timm(theirs), theirs, suited(theirs)) < SAME


def test_recorded_is_equal_to_timm_too() -> None:
    theirs = randomise(timm_parallel())
    ours = from_timm(theirs)
    with record_attention(ours) as record:
        assert disagreement(ours, theirs, suited(theirs)) < SAME
    assert [layer.name for layer in record][:2] == ["blocks.0.attns.0.attn", "blocks.0.attns.1.attn"]


def test_gradients_equal_to_timm() -> None:
    theirs = randomise(timm_parallel())
    gradients = []
    for model in (from_timm(theirs), theirs):
        pixels = suited(theirs).requires_grad_()
        model(pixels).square().sum().backward()
        gradients.append(pixels.grad)
    assert relative_error(*gradients) < SAME


def in_turn(self: ParallelBlock, tokens: Tensor) -> Tensor:
    """Attention, feed-forward, attention, feed-forward."""
    for attention, mlp in zip(self.attns, self.ffns, strict=True):
        tokens = tokens + attention(tokens)
        tokens = tokens + mlp(tokens)
    return tokens


def four_at_once(self: ParallelBlock, tokens: Tensor) -> Tensor:
    return tokens + sum(branch(tokens) for branch in (*self.attns, *self.ffns))


def one_by_one(self: ParallelBlock, tokens: Tensor) -> Tensor:
    """Both attentions, then both feed-forward layers, each behind the other."""
    for branch in (*self.attns, *self.ffns):
        tokens = tokens + branch(tokens)
    return tokens


def the_mean(self: ParallelBlock, tokens: Tensor) -> Tensor:
    for branches in (self.attns, self.ffns):
        tokens = tokens + sum(branch(tokens) for branch in branches) / len(branches)
    return tokens


def shared_norm(self: ParallelBlock, tokens: Tensor) -> Tensor:
    for branches in (self.attns, self.ffns):
        for branch in branches:
            branch.norm = branches[0].norm
    return ParallelBlock.forward(self, tokens)


@pytest.mark.parametrize(
    "forward", [in_turn, four_at_once, one_by_one, the_mean, shared_norm], ids=lambda f: f.__name__
)
def test_parity_sees_mistakes(forward: Callable) -> None:
    theirs = randomise(timm_parallel())
    ours = from_timm(theirs)
    for block in ours.blocks:
        block.forward = MethodType(forward, block)
    assert disagreement(ours, theirs, suited(theirs)) > DIFFERENT


def test_parity_sees_a_position_for_the_class_token() -> None:
    theirs = randomise(timm_parallel())
    ours = from_timm(theirs)
    ours.class_position = True
    ours.pos_embed.data = torch.cat([normal(1, 1, 16), ours.pos_embed.data], dim=1)
    assert disagreement(ours, theirs, suited(theirs)) > DIFFERENT


REFUSED: dict[str, tuple[dict, str]] = {
    "class position": ({"no_embed_class": False}, "no_embed_class=False"),
    "pooling": ({"global_pool": "avg"}, "global_pool='avg'"),
    "no qkv bias": ({"qkv_bias": False}, "qkv_bias"),
    "qk norm": ({"qk_norm": True}, "normalised queries"),
    "inner norm": ({"scale_mlp_norm": True}, "norms inside"),
    "ReLU": ({"act_layer": nn.ReLU}, "act_layer"),
    "epsilon": ({"norm_layer": nn.LayerNorm}, "eps 1e-6"),
    "registers": ({"reg_tokens": 2}, "reg_tokens"),
    "pre norm": ({"pre_norm": True}, "pre_norm"),
    "no positions": ({"pos_embed": "none"}, "pos_embed"),
}


@pytest.mark.parametrize(("config", "words"), REFUSED.values(), ids=REFUSED)
def test_what_differs_is_refused_by_name(config: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        from_timm(timm_parallel(**config))


def test_timm_s_own_model_has_one_position_more() -> None:
    with torch.device("meta"):
        theirs = timm.create_model("vit_small_patch16_18x2_224", pretrained=False)
    assert sum(parameter.numel() for parameter in theirs.parameters()) == 64_665_064 + 384


# ---- linear attention, and blocks from elsewhere


def test_linear_attention_is_its_map_times_the_values() -> None:
    layer = randomise(LinearAttention(dim=12, heads=3))
    tokens = normal(2, 7, 12)
    with record_attention(layer) as record:
        out = layer(tokens)
    maps = record[0].weights
    torch.testing.assert_close(maps.sum(dim=-1), torch.ones(2, 3, 7))
    values = layer.split(layer.qkv(tokens).chunk(3, dim=-1)[2])
    torch.testing.assert_close(layer.merge(maps @ values), out)
    assert (maps >= 0).all()


def linear_vit() -> BlockViT:
    sizes = {key: SMALL[key] for key in ("image_size", "patch_size", "num_classes", "dim")}
    blocks = [
        AnyBlock(LinearAttention(dim=32, heads=2), FeedForward(dim=32, hidden_dim=64), dim=32)
        for _ in range(2)
    ]
    return BlockViT(blocks, **sizes)


def test_a_vit_of_foreign_blocks_keeps_the_protocol() -> None:
    model = linear_vit().eval()
    images = normal(2, 3, 24, 16)
    features = model.forward_features(images)
    assert features.shape == (2, 25, 32) and torch.equal(model.forward_head(features), model(images))
    with record_attention(model) as record:
        model(images)
    assert [layer.grid for layer in record] == [(6, 4)] * 2


def test_blocks_of_a_vit_make_a_vit() -> None:
    torch.manual_seed(0)
    vit = randomise(ViT(**SMALL))
    sizes = {key: SMALL[key] for key in ("image_size", "patch_size", "num_classes", "dim")}
    ours = BlockViT([AnyBlock(b.attn, b.mlp, dim=32) for b in vit.blocks], **sizes).eval()
    ours.load_state_dict(vit.state_dict())
    assert disagreement(ours, vit, normal(2, 3, 16, 16)) < SAME


def test_a_model_of_modules_is_not_saved(tmp_path) -> None:
    with pytest.raises(ValueError, match="blocks=list.* cannot be saved"):
        linear_vit().save_pretrained(tmp_path / "linear")


@pytest.mark.parametrize("name", ["DeepViT", "ParallelViT"])
def test_a_model_is_saved_and_loaded(name: str, tmp_path) -> None:
    row = MODELS[name]
    for variant in ({}, *(variant.arguments() for variant in row.variants.values())):
        model = randomise(row.build(**variant))
        model.save_pretrained(tmp_path / "model")
        loaded = row.kind.from_pretrained(tmp_path / "model")
        assert torch.equal(loaded(normal(2, 3, 16, 16)), model(normal(2, 3, 16, 16)))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: AnyBlock(len, nn.Identity(), dim=4), TypeError, "attn must be a torch.nn.Module"),
        (lambda: AnyBlock(nn.Identity(), nn.Identity(), dim=4, scale=0), ValueError, "scale must be above 0"),
        (
            lambda: BlockViT([], image_size=8, patch_size=4, num_classes=2, dim=4),
            ValueError,
            "at least one block",
        ),
        (lambda: DeepViTStem(patch_size=5, dim=4), ValueError, "must be even, got 5"),
        (lambda: DeepViT(**SMALL, mixed=3), ValueError, "at most the depth 2, got 3"),
        (lambda: DeepViT(**SMALL, mixed=[True]), ValueError, "each of 2 blocks, got 1"),
        (lambda: DeepViT(**SMALL, mixed="all"), TypeError, "mixed must be an int, or .*got 'all'"),
        (
            lambda: DeepViT(**SMALL, conv_stem=True, patch_embedding=nn.Identity()),
            ValueError,
            "conv_stem or patch_embedding, got both",
        ),
        (lambda: ReAttention(dim=4, heads=2, map_scale=-1), ValueError, "map_scale must be in"),
        (lambda: ParallelViT(**SMALL, branches=0), ValueError, "branches must be at least 1"),
    ],
)
def test_bad_arguments_are_refused_in_words(make: Callable, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        make()


def test_which_blocks_mix() -> None:
    assert which_mix(None, 2) == [True, True] and which_mix(1, 3) == [False, False, True]
    assert which_mix([True, False], 2) == [True, False]


# ---- blocks side by side


def test_one_branch_side_by_side_is_the_vit_itself() -> None:
    vit = randomise(ViT(**SMALL))
    assert disagreement(side_by_side(vit, 1), vit, normal(2, 3, 16, 16)) < SAME


def test_side_by_side_differs_by_the_square_of_what_branches_add() -> None:
    differences = []
    vit = randomise(ViT(**SMALL)).double()
    for layer in [layer for block in vit.blocks for layer in (block.attn.proj, block.mlp.fc2)]:
        for parameter in layer.parameters():
            parameter.data.mul_(1e-2)
    for _ in range(2):
        differences.append(disagreement(side_by_side(vit), vit, normal(2, 3, 16, 16).double()))
        for layer in [layer for block in vit.blocks for layer in (block.attn.proj, block.mlp.fc2)]:
            for parameter in layer.parameters():
                parameter.data.mul_(0.1)
    assert 80 < differences[0] / differences[1] < 120


def test_side_by_side_refuses_other_models() -> None:
    with pytest.raises(ValueError, match="branches 3 do not divide the depth 2"):
        side_by_side(ViT(**SMALL), 3)
    with pytest.raises(TypeError, match="a ViT with a class token, got ViT"):
        side_by_side(ViT(**SMALL, pool="mean"))
