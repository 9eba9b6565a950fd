"""The ViT is the published one, and every model of the course keeps the promises of a model."""

from collections.abc import Callable
from types import MethodType

import pytest
import timm
import torch
from einops import rearrange
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from vit_course.attention import record_attention
from vit_course.lab.catalogue import MODELS
from vit_course.lab.parity import DIFFERENT, SAME, disagreement, randomise, relative_error
from vit_course.lab.pretrained import from_timm, from_torchvision
from vit_course.patching import ConvStem, resize_positions, sincos_positions
from vit_course.vit import Backbone, FeedForward, SimpleViT, TransformerBlock, ViT, require_backbone, residual

SMALL = MODELS["ViT"].tiny


def small_vit(**changes) -> ViT:
    return ViT(**SMALL | changes)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*(shape or (4, 3, 16, 16)), generator=torch.Generator().manual_seed(seed))


# ---- equal to the published models
# -----------------------------------------------------------------------------------------------------

TIMM = {
    "Ti/16": {"model": "vit_tiny_patch16_224"},
    "S/16": {"model": "vit_small_patch16_224"},
    "rectangular": {"img_size": (24, 48), "patch_size": (6, 8)},
    "averaged": {"img_size": 32, "class_token": False, "global_pool": "avg", "fc_norm": False},
    "features": {"img_size": 32, "num_classes": 0},
    "averaged features": {
        "img_size": 32,
        "num_classes": 0,
        "class_token": False,
        "global_pool": "avg",
        "fc_norm": False,
    },
    "grey, narrow heads": {"img_size": 32, "in_chans": 1, "num_heads": 8, "mlp_ratio": 1.5},
    "dynamic sizes": {"img_size": 32, "dynamic_img_size": True},
}
TINY = {"patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4, "num_classes": 7}


def timm_vit(model: str | None = None, **config) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(model) if model else timm.models.VisionTransformer(**TINY | config)


def torchvision_vit(**config) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {
        "image_size": 32,
        "patch_size": 8,
        "num_layers": 3,
        "num_heads": 4,
        "hidden_dim": 64,
        "mlp_dim": 96,
        "num_classes": 7,
    }
    return VisionTransformer(**sizes | config)


def suited(model: nn.Module, batch: int = 2) -> Tensor:
    """Images that a model of timm or torchvision was made for."""
    if isinstance(model, VisionTransformer):
        return images(batch, 3, model.image_size, model.image_size)
    return images(batch, model.in_chans, *model.patch_embed.img_size)


@pytest.mark.parametrize("config", TIMM.values(), ids=TIMM.keys())
@pytest.mark.parametrize("input_scale", [1.0, 1e-3], ids=["large", "faint"])
def test_equal_to_timm(config: dict, input_scale: float) -> None:
    theirs = randomise(timm_vit(**config), input_scale=input_scale)
    assert disagreement(from_timm(theirs), theirs, suited(theirs)) < SAME


@pytest.mark.parametrize("name", ["Ti/16", "rectangular", "averaged"])
def test_recorded_is_equal_to_timm_too(name: str) -> None:
    """The explicit path, with weights kept, as well as the fused one."""
    theirs = randomise(timm_vit(**TIMM[name]))
    ours = from_timm(theirs)
    with record_attention(ours) as record:
        assert disagreement(ours, theirs, suited(theirs)) < SAME
    assert len(record) == len(theirs.blocks)


@pytest.mark.parametrize("config", [{}, {"image_size": 48, "num_heads": 2}], ids=["32 px", "48 px"])
@pytest.mark.parametrize("input_scale", [1.0, 1e-3], ids=["large", "faint"])
def test_equal_to_torchvision(config: dict, input_scale: float) -> None:
    theirs = randomise(torchvision_vit(**config), input_scale=input_scale)
    assert disagreement(from_torchvision(theirs), theirs, suited(theirs)) < SAME


def test_gradients_equal_to_timm() -> None:
    theirs = randomise(timm_vit(img_size=32))
    ours = from_timm(theirs)
    gradients = []
    for model in (ours, theirs):
        pixels = suited(theirs).requires_grad_()
        model(pixels).square().sum().backward()
        gradients.append(pixels.grad)
    assert relative_error(*gradients) < SAME
    for (name, parameter), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        # Keys meet every query with the same bias, which softmax does not see: both gradients of it are
        # rounding.
        if not name.endswith("attn.qkv.bias"):
            assert relative_error(parameter.grad, other.grad) < 10 * SAME, name


def wrong_scale(model: ViT) -> None:
    """Scores divided by the width k of a head, not by its square root."""
    for block in model.blocks:
        k = block.attn.proj.in_features // block.attn.heads
        for parameter in (block.attn.qkv.weight, block.attn.qkv.bias):
            parameter.data.chunk(3)[0].mul_(k**-0.5)


def no_scale(model: ViT) -> None:
    for block in model.blocks:
        k = block.attn.proj.in_features // block.attn.heads
        for parameter in (block.attn.qkv.weight, block.attn.qkv.bias):
            parameter.data.chunk(3)[0].mul_(k**0.5)


def swapped_norms(model: ViT) -> None:
    for block in model.blocks:
        block.norm1, block.norm2 = block.norm2, block.norm1


def heads_first(model: ViT) -> None:
    """Rows of the joint matrix read as (h qkv k), not as (qkv h k)."""
    for block in model.blocks:
        for parameter in (block.attn.qkv.weight, block.attn.qkv.bias):
            parameter.data.copy_(
                rearrange(parameter.data, "(h qkv k) ... -> (qkv h k) ...", h=block.attn.heads, qkv=3)
            )


def keys_first(model: ViT) -> None:
    for block in model.blocks:
        for parameter in (block.attn.qkv.weight, block.attn.qkv.bias):
            q, k, v = parameter.data.clone().chunk(3)
            parameter.data.copy_(torch.cat([k, q, v]))


def _with_block_forward(forward: Callable[[TransformerBlock, Tensor], Tensor]) -> Callable[[ViT], None]:
    def mutate(model: ViT) -> None:
        for block in model.blocks:
            block.forward = MethodType(forward, block)

    mutate.__name__ = forward.__name__
    return mutate


def post_norm(block: TransformerBlock, tokens: Tensor) -> Tensor:
    tokens = block.norm1(tokens + block.attn(tokens))
    return block.norm2(tokens + block.mlp(tokens))


def no_residual(block: TransformerBlock, tokens: Tensor) -> Tensor:
    tokens = tokens + block.attn(block.norm1(tokens))
    return block.mlp(block.norm2(tokens))


def parallel(block: TransformerBlock, tokens: Tensor) -> Tensor:
    return tokens + block.attn(block.norm1(tokens)) + block.mlp(block.norm2(tokens))


def no_class_position(model: ViT) -> None:
    model.pos_embed.data[:, 0] = 0


def shifted_positions(model: ViT) -> None:
    model.pos_embed.data[:] = model.pos_embed.roll(1, dims=1)


def transposed_patches(model: ViT) -> None:
    model.patch_embed.proj.weight.data[:] = model.patch_embed.proj.weight.mT.clone()


def no_last_norm(model: ViT) -> None:
    model.norm = nn.Identity()


def relu(model: ViT) -> None:
    for block in model.blocks:
        block.mlp.act = nn.ReLU()


def wrong_epsilon(model: ViT) -> None:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5


BROKEN_BLOCKS = [_with_block_forward(forward) for forward in (post_norm, no_residual, parallel)]
MUTANTS = [
    wrong_scale,
    no_scale,
    swapped_norms,
    heads_first,
    keys_first,
    no_class_position,
    shifted_positions,
]
MUTANTS += [transposed_patches, no_last_norm, relu, *BROKEN_BLOCKS]


@pytest.mark.parametrize("mutate", MUTANTS, ids=lambda mutate: mutate.__name__)
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_parity_sees_mistakes(library: str, mutate: Callable[[ViT], None]) -> None:
    theirs = randomise(timm_vit(img_size=32) if library == "timm" else torchvision_vit())
    ours = from_timm(theirs) if library == "timm" else from_torchvision(theirs)
    assert disagreement(ours, theirs, suited(theirs)) < SAME
    mutate(ours)
    assert disagreement(ours, theirs, suited(theirs)) > DIFFERENT


def test_parity_sees_a_wrong_epsilon_in_faint_tokens() -> None:
    theirs = randomise(timm_vit(img_size=32), input_scale=1e-3)
    ours = from_timm(theirs)
    wrong_epsilon(ours)
    assert disagreement(ours, theirs, suited(theirs)) > DIFFERENT


def test_parity_sees_an_approximate_gelu() -> None:
    theirs = randomise(timm_vit(img_size=32))
    ours = from_timm(theirs)
    for block in ours.blocks:
        block.mlp.act = nn.GELU("tanh")
    assert disagreement(ours, theirs, suited(theirs)) > 10 * SAME


VARIANTS = {
    "Ti/16": (192, 12, 3, 16, 5_717_416),
    "S/16": (384, 12, 6, 16, 22_050_664),
    "B/16": (768, 12, 12, 16, 86_567_656),
    "B/32": (768, 12, 12, 32, 88_224_232),
    "L/16": (1024, 24, 16, 16, 304_326_632),
    "L/32": (1024, 24, 16, 32, 306_535_400),
    "H/14": (1280, 32, 16, 14, 632_045_800),
}


@pytest.mark.parametrize(
    ("dim", "depth", "heads", "patch_size", "count"), VARIANTS.values(), ids=VARIANTS.keys()
)
def test_parameter_counts_are_the_published_ones(
    dim: int, depth: int, heads: int, patch_size: int, count: int
) -> None:
    with torch.device("meta"):
        model = ViT(
            image_size=224,
            patch_size=patch_size,
            num_classes=1000,
            dim=dim,
            depth=depth,
            heads=heads,
            mlp_dim=4 * dim,
        )
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_small_parameter_counts() -> None:
    sizes = {
        "image_size": 32,
        "patch_size": 4,
        "num_classes": 10,
        "dim": 64,
        "depth": 2,
        "heads": 4,
        "mlp_dim": 256,
    }
    assert sum(parameter.numel() for parameter in ViT(**sizes).parameters()) == 108_106
    # Without class token, and with positions that are no parameters.
    assert sum(parameter.numel() for parameter in SimpleViT(**sizes).parameters()) == 108_106 - 64 - 65 * 64


# ---- what only the ViT promises
# --------------------------------------------------------------------------------------------------------


def test_positions_decide_whether_order_matters() -> None:
    model = randomise(small_vit())
    tokens = images(2, 16, 32)
    shuffled = tokens[:, torch.randperm(16, generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        assert (
            relative_error(model.forward_tokens(shuffled)[:, 0], model.forward_tokens(tokens)[:, 0])
            > DIFFERENT
        )
        model.pos_embed[:, 1:] = 0
        assert relative_error(model.forward_tokens(shuffled)[:, 0], model.forward_tokens(tokens)[:, 0]) < SAME


def test_pooling() -> None:
    tokens = images(2, 17, 32)
    with torch.no_grad():
        for num_classes in (0, 5):
            model = randomise(small_vit(num_classes=num_classes))
            assert torch.equal(model.forward_head(tokens), model.head(tokens[:, 0]))
            model = randomise(small_vit(num_classes=num_classes, pool="mean"))
            torch.testing.assert_close(model.forward_head(tokens), model.head(tokens.mean(dim=1)))
            assert model.cls_token is None


def test_positions_are_resized_for_other_sizes() -> None:
    model = randomise(small_vit())
    assert torch.equal(model.positions((4, 4)), model.pos_embed[0])
    assert torch.equal(model.positions((2, 6)), resize_positions(model.pos_embed[0], (4, 4), (2, 6), 1))


def test_simple_vit_is_a_vit_with_fixed_positions() -> None:
    torch.manual_seed(0)
    simple, plain = SimpleViT(**SMALL), small_vit(pool="mean")
    assert not any(isinstance(module, nn.Dropout) and module.p for module in simple.modules())
    assert "pos_embed" not in simple.state_dict() and "pos_embed" not in dict(simple.named_parameters())
    plain.load_state_dict(simple.state_dict() | {"pos_embed": sincos_positions((4, 4), 32)[None]})
    with torch.no_grad():
        assert relative_error(simple(images()), plain(images())) < SAME
    assert torch.equal(simple.positions((2, 6)), sincos_positions((2, 6), 32))
    assert simple.double().positions((2, 6)).dtype == torch.float64


def test_simple_vit_beside_timm() -> None:
    theirs = randomise(timm_vit(img_size=32, class_token=False, global_pool="avg", fc_norm=False))
    theirs.pos_embed.data[:] = sincos_positions((4, 4), 64)
    sizes = {
        "image_size": 32,
        "patch_size": 8,
        "num_classes": 7,
        "dim": 64,
        "depth": 3,
        "heads": 4,
        "mlp_dim": 256,
    }
    ours = SimpleViT(**sizes)
    ours.load_state_dict(
        {name: tensor for name, tensor in theirs.state_dict().items() if name != "pos_embed"}
    )
    assert disagreement(ours, theirs, suited(theirs)) < SAME


def test_linear_layers_start_xavier_uniform() -> None:
    """Each of q, k and v for itself: a bound for the joint matrix would be smaller by √2."""
    torch.manual_seed(0)
    model = ViT(image_size=32, patch_size=8, num_classes=10, dim=128, depth=1, heads=2, mlp_dim=256)
    block = model.blocks[0]
    for matrix in (
        *block.attn.qkv.weight.chunk(3),
        block.attn.proj.weight,
        block.mlp.fc1.weight,
        block.mlp.fc2.weight,
        model.head.weight,
    ):
        bound = (6 / sum(matrix.shape)) ** 0.5
        assert 0.98 * bound < matrix.abs().max() <= bound
    assert all((parameter == 0).all() for key, parameter in model.named_parameters() if key.endswith("bias"))
    assert 0.018 < model.pos_embed.std() < 0.022


def test_own_patch_embedding() -> None:
    class Zeros(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return torch.zeros(len(pixels), 16, 32)

    with torch.no_grad():
        model = small_vit(patch_embedding=Zeros())
        assert torch.equal(model(images(seed=1)), model(images(seed=2)))
    assert small_vit(patch_embedding=(stem := ConvStem(patch_size=4, dim=32))).patch_embed is stem


# ---- the parts of a backbone, drop path, computed buffers


def test_residual_is_the_sum_and_takes_steps_in_order() -> None:
    tokens, norm = images(2, 5, 8), nn.LayerNorm(8)
    branch, scale, drop = nn.Linear(8, 8), nn.Threshold(0.1, 2.0), nn.Hardtanh(-1.0, 1.0)
    expected = tokens + drop(scale(branch(norm(tokens))))
    assert torch.equal(residual(tokens, norm, branch, scale, drop), expected)
    assert not torch.equal(residual(tokens, norm, branch, drop, scale), expected), "the order does not show"


def test_drop_path_rises_with_the_depth_and_drops_whole_samples() -> None:
    model = small_vit(depth=3, layer_dropout=0.4)
    assert [block.drop_path.rate for block in model.blocks] == pytest.approx([0.0, 0.2, 0.4])
    assert small_vit(depth=1, layer_dropout=0.4).blocks[0].drop_path.rate == 0.0
    torch.manual_seed(0)
    block, tokens = TransformerBlock(dim=8, heads=2, mlp_dim=8, layer_dropout=0.5), images(64, 3, 8)
    unchanged = (block(tokens) == tokens).flatten(1).all(dim=1).float().mean()
    assert 0.1 < unchanged < 0.45, "a quarter of the samples should lose both branches"


def test_require_backbone_names_what_is_missing() -> None:
    require_backbone("backbone", small_vit(), "forward_features", "patch_embed", "num_features")
    with pytest.raises(TypeError, match="student must be a model with forward_tokens, got Linear"):
        require_backbone("student", nn.Linear(2, 2), "forward_tokens")
    with pytest.raises(TypeError, match="got str"):
        require_backbone("student", "vit", "lower")


def test_a_backbone_needs_encode_only() -> None:
    class Mean(Backbone):
        """Every token becomes the mean of all patches, the class token too."""

        def __init__(self) -> None:
            super().__init__(image_size=16, patch_size=4, num_classes=5, dim=8)
            self.add_head()

        def encode(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
            return tokens.mean(dim=1, keepdim=True).expand(-1, 1 + tokens.shape[1], -1)

    model = Mean()
    assert model.forward_features(images(2, 3, 8, 24)).shape == (2, 13, 8)
    assert model(images(2, 3, 8, 24)).shape == (2, 5)
    with pytest.raises(ValueError, match="2 by 2 patches needs 4 tokens"):
        model.forward_tokens(images(1, 5, 8), (2, 2))
    with pytest.raises(NotImplementedError, match="Backbone has no encode"):
        Backbone(image_size=16, patch_size=4, num_classes=5, dim=8)(images(1, 3, 16, 16))


@pytest.mark.parametrize("assign", [False, True], ids=["to_empty", "assign"])
def test_positions_are_computed_again_in_a_model_made_without_memory(assign: bool) -> None:
    model = randomise(SimpleViT(**SMALL))
    with torch.device("meta"):
        copied = SimpleViT(**SMALL).eval()
    if not assign:
        copied.to_empty(device="cpu")
        copied.pos_embed.fill_(7.0)  # what memory happens to hold
    copied.load_state_dict(model.state_dict(), assign=assign)
    assert torch.equal(copied(images(2, 3, 16, 16)), model(images(2, 3, 16, 16)))


BAD_CALLS = {
    "image_size": (lambda: small_vit(image_size=(30, 32)), ValueError, r"\(30, 32\)"),
    "image_size type": (lambda: small_vit(image_size=16.0), TypeError, "16.0"),
    "image_size triple": (lambda: small_vit(image_size=(16, 16, 3)), TypeError, r"\(16, 16, 3\)"),
    "patch_size zero": (lambda: small_vit(patch_size=0), ValueError, "0"),
    "patch_size bool": (lambda: small_vit(patch_size=True), TypeError, "True"),
    "num_classes": (lambda: small_vit(num_classes=-1), ValueError, "-1"),
    "num_classes type": (lambda: small_vit(num_classes="5"), TypeError, "'5'"),
    "dim type": (lambda: small_vit(dim="64"), TypeError, "'64'"),
    "dim and heads": (lambda: small_vit(heads=3), ValueError, "32.* 3"),
    "depth": (lambda: small_vit(depth=0), ValueError, "depth .* 0"),
    "heads": (lambda: small_vit(heads=0), ValueError, "heads .* 0"),
    "dim_head": (lambda: small_vit(dim_head=0), ValueError, "dim_head .* 0"),
    "mlp_dim": (lambda: small_vit(mlp_dim=2.5), TypeError, "2.5"),
    "channels": (lambda: small_vit(channels=0), ValueError, "channels .* 0"),
    "dropout": (lambda: small_vit(dropout=2.0), ValueError, "2.0"),
    "dropout type": (lambda: small_vit(dropout="some"), TypeError, "'some'"),
    "emb_dropout": (lambda: small_vit(emb_dropout=-0.5), ValueError, "-0.5"),
    "emb_dropout nan": (lambda: small_vit(emb_dropout=float("nan")), ValueError, "nan"),
    "pool": (lambda: small_vit(pool="max"), ValueError, "'max'"),
    "patch_embedding": (lambda: small_vit(patch_embedding="conv"), TypeError, "'conv'"),
    "patch_embedding shape": (
        lambda: small_vit(patch_embedding=nn.Flatten())(images()),
        ValueError,
        r"\(4, 768\)",
    ),
    "no images": (lambda: small_vit()([1, 2]), TypeError, r"\[1, 2\]"),
    "bytes": (lambda: small_vit()(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)), TypeError, "uint8"),
    "one image": (lambda: small_vit()(images(3, 16, 16)), ValueError, r"\(3, 16, 16\)"),
    "grey images": (lambda: small_vit()(images(4, 1, 16, 16)), ValueError, r"3 channels, got 1"),
    "odd images": (lambda: small_vit()(images(4, 3, 16, 18)), ValueError, r"\(16, 18\)"),
    "token width": (lambda: small_vit().forward_tokens(images(2, 16, 31)), ValueError, r"\(2, 16, 31\)"),
    "token number": (lambda: small_vit().forward_tokens(images(2, 15, 32)), ValueError, r"\(2, 15, 32\)"),
    "token grid": (lambda: small_vit().forward_tokens(images(2, 16, 32), (2, 6)), ValueError, "2 by 6"),
    "grid type": (lambda: small_vit().forward_tokens(images(2, 16, 32), "4x4"), TypeError, "'4x4'"),
    "features": (lambda: small_vit().forward_head(images(2, 32)), ValueError, r"\(2, 32\)"),
    "simple dim": (lambda: SimpleViT(**SMALL | {"dim": 34}), ValueError, "34"),
    "block heads": (lambda: TransformerBlock(dim=8, heads=3, mlp_dim=8), ValueError, "8.* 3"),
    "feed-forward width": (lambda: FeedForward(dim=8, hidden_dim=0), ValueError, "hidden_dim .* 0"),
    "feed-forward dropout": (lambda: FeedForward(dim=8, hidden_dim=8, dropout=1.5), ValueError, "1.5"),
}


@pytest.mark.parametrize(("call", "error", "words"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_bad_input_is_named(call: Callable, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
