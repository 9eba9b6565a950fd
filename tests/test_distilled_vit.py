"""DistilledViT is the published DeiT, and what it promises beside it."""

from collections.abc import Callable
from functools import partial
from types import MethodType

import pytest
import timm
import torch
from support.distillation import images, small_vit, suited, timm_vit
from torch import Tensor, nn

from vit_course.attention import record_attention
from vit_course.distillation import DistilledViT
from vit_course.lab.parity import DIFFERENT, SAME, disagreement, randomise, relative_error
from vit_course.lab.pretrained import from_timm
from vit_course.patching import ConvStem
from vit_course.vit import ViT

TIMM = {
    "DeiT-Ti/16": {"model": "deit_tiny_distilled_patch16_224"},
    "small": {"img_size": 32},
    "rectangular": {"img_size": (24, 48), "patch_size": (6, 8)},
    "features": {"num_classes": 0},
    "grey, narrow heads": {"in_chans": 1, "num_heads": 8, "mlp_ratio": 1.5},
    "dynamic sizes": {"dynamic_img_size": True},
}


@pytest.mark.parametrize("config", TIMM.values(), ids=TIMM.keys())
@pytest.mark.parametrize("input_scale", [1.0, 1e-3], ids=["large", "faint"])
def test_equal_to_timm(config: dict, input_scale: float) -> None:
    theirs = randomise(timm_vit(**config), input_scale=input_scale)
    ours = from_timm(theirs)
    assert type(ours) is DistilledViT
    assert disagreement(ours, theirs, suited(theirs)) < SAME


def test_both_logits_are_timms_in_training() -> None:
    theirs = randomise(timm_vit()).train()
    theirs.set_distilled_training()
    ours, pixels = from_timm(theirs), suited(theirs)
    with torch.no_grad():
        errors = [relative_error(a, b) for a, b in zip(ours(pixels), theirs(pixels), strict=True)]
        assert max(errors) < SAME
        class_logits, dist_logits = ours(pixels)
        assert relative_error(class_logits, dist_logits) > DIFFERENT
        torch.testing.assert_close(ours.eval()(pixels), (class_logits + dist_logits) / 2)


def test_recorded_is_equal_to_timm_too() -> None:
    theirs = randomise(timm_vit())
    ours = from_timm(theirs)
    with record_attention(ours) as record:
        assert disagreement(ours, theirs, suited(theirs)) < SAME
    assert [(layer.kind, layer.grid, layer.num_prefix_tokens) for layer in record] == [
        ("global", (4, 4), 2)
    ] * 3


def test_other_image_sizes_are_timms() -> None:
    theirs = randomise(timm_vit(dynamic_img_size=True))
    ours = from_timm(theirs)
    for size in ((16, 48), (64, 40)):
        assert disagreement(ours, theirs, images(2, 3, *size)) < SAME


def test_gradients_equal_to_timm() -> None:
    theirs = randomise(timm_vit())
    ours = from_timm(theirs)
    gradients = []
    for model in (ours, theirs):
        pixels = suited(theirs).requires_grad_()
        model(pixels).square().sum().backward()
        gradients.append(pixels.grad)
    assert relative_error(*gradients) < SAME
    others = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        # Keys meet every query with the same bias, which softmax does not see: its gradients are rounding.
        if not name.endswith("attn.qkv.bias"):
            assert relative_error(parameter.grad, others[name].grad) < 10 * SAME, name


def heads_swapped(model: DistilledViT) -> None:
    model.head, model.head_dist = model.head_dist, model.head


def _with_head(forward_head: Callable[[DistilledViT, Tensor], Tensor]) -> Callable[[DistilledViT], None]:
    def mutate(model: DistilledViT) -> None:
        model.forward_head = MethodType(forward_head, model)

    mutate.__name__ = forward_head.__name__
    return mutate


def only_class_head(model: DistilledViT, features: Tensor) -> Tensor:
    return model.head(features[:, 0])


def only_dist_head(model: DistilledViT, features: Tensor) -> Tensor:
    return model.head_dist(features[:, 1])


def sum_of_heads(model: DistilledViT, features: Tensor) -> Tensor:
    return model.head(features[:, 0]) + model.head_dist(features[:, 1])


def both_heads_on_class_token(model: DistilledViT, features: Tensor) -> Tensor:
    return (model.head(features[:, 0]) + model.head_dist(features[:, 0])) / 2


def no_position_for_dist_token(model: DistilledViT) -> None:
    model.pos_embed.data[:, 1] = 0


def positions_of_the_two_swapped(model: DistilledViT) -> None:
    model.pos_embed.data[:, :2] = model.pos_embed.data[:, :2].flip(1)


def tokens_swapped(model: DistilledViT) -> None:
    model.cls_token, model.dist_token = model.dist_token, model.cls_token


def dist_token_last(model: DistilledViT) -> None:
    """As in vit-pytorch: appended behind the patches, without a position; its head follows it there."""
    dist_token = model.dist_token.data

    def forward_tokens(self: DistilledViT, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        positions = self.positions(grid or self.grid)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = tokens + torch.cat([positions[:1], positions[2:]])
        tokens = torch.cat([tokens, dist_token.expand(len(tokens), -1, -1)], dim=1)
        return self.norm(self.blocks(tokens)).roll(1, dims=1)[:, [1, 0, *range(2, tokens.shape[1])]]

    model.forward_tokens = MethodType(forward_tokens, model)


MUTANTS = [
    heads_swapped,
    _with_head(only_class_head),
    _with_head(only_dist_head),
    _with_head(sum_of_heads),
    _with_head(both_heads_on_class_token),
    no_position_for_dist_token,
    positions_of_the_two_swapped,
    tokens_swapped,
    dist_token_last,
]


@pytest.mark.parametrize("mutate", MUTANTS, ids=lambda mutate: mutate.__name__)
def test_parity_sees_mistakes(mutate: Callable[[DistilledViT], None]) -> None:
    theirs = randomise(timm_vit())
    ours = from_timm(theirs)
    assert disagreement(ours, theirs, suited(theirs)) < SAME
    mutate(ours)
    assert disagreement(ours, theirs, suited(theirs)) > DIFFERENT


VARIANTS = {"Ti": (192, 3, 5_910_800), "S": (384, 6, 22_436_432), "B": (768, 12, 87_338_192)}


@pytest.mark.parametrize(("dim", "heads", "count"), VARIANTS.values(), ids=VARIANTS.keys())
def test_parameter_counts_are_the_published_ones(dim: int, heads: int, count: int) -> None:
    sizes = {
        "image_size": 224,
        "patch_size": 16,
        "num_classes": 1000,
        "dim": dim,
        "depth": 12,
        "heads": heads,
    }
    with torch.device("meta"):
        distilled, plain = DistilledViT(**sizes, mlp_dim=4 * dim), ViT(**sizes, mlp_dim=4 * dim)
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in (distilled, plain)]
    assert counts[0] == count == counts[1] + 2 * dim + dim * 1000 + 1000


REFUSED = {
    "LayerScale": (lambda: timm_vit(init_values=0.1), r"blocks\.\*\.ls1, LayerScale"),
    "qk_norm": (lambda: timm_vit(qk_norm=True), r"blocks\.\*\.attn\.q_norm"),
    "attention norm": (lambda: timm_vit(scale_attn_norm=True), r"blocks\.\*\.attn\.norm"),
    "mlp norm": (lambda: timm_vit(scale_mlp_norm=True), r"blocks\.\*\.mlp\.norm"),
    "no qkv bias": (lambda: timm_vit(qkv_bias=False), r"blocks\.\*\.attn\.qkv, Linear.*bias=False"),
    "no proj bias": (lambda: timm_vit(proj_bias=False), r"blocks\.\*\.attn\.proj, Linear.*bias=False"),
    "pre-norm": (lambda: timm_vit(pre_norm=True), "norm_pre"),
    "norm after pooling": (lambda: timm_vit(fc_norm=True), "fc_norm"),
    "no final norm": (lambda: timm_vit(final_norm=False), "its norm, Identity"),
    "other eps": (
        lambda: timm_vit(norm_layer=partial(nn.LayerNorm, eps=1e-5)),
        r"blocks\.\*\.norm1, .*1e-05",
    ),
    "ReLU": (lambda: timm_vit(act_layer=nn.ReLU), r"blocks\.\*\.mlp\.act, ReLU"),
    "approximate GELU": (
        lambda: timm_vit(act_layer=partial(nn.GELU, approximate="tanh")),
        r"approximate='tanh'",
    ),
    "gated mlp": (lambda: timm_vit(mlp_layer=timm.layers.GluMlp), "its blocks"),
    "parallel blocks": (
        lambda: timm_vit(block_fn=timm.models.vision_transformer.ParallelScalingBlock),
        "its blocks",
    ),
    "embedding norm": (lambda: timm_vit(embed_norm_layer=nn.LayerNorm), r"patch_embed\.norm, LayerNorm"),
    "no positions for the tokens": (lambda: timm_vit(no_embed_class=True), "no_embed_class"),
    "registers": (lambda: timm_vit(reg_tokens=2), "reg_tokens"),
}


@pytest.mark.parametrize(("build", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_ours_does_not_compute_is_refused(build: Callable, words: str) -> None:
    with pytest.raises(ValueError, match=f"DistilledViT cannot take over this model of timm.*{words}"):
        from_timm(build())


def test_one_strange_block_is_refused() -> None:
    theirs = timm_vit()
    theirs.blocks[2].mlp.act = nn.ReLU()
    with pytest.raises(ValueError, match="ReLU"):
        from_timm(theirs)


def test_training_gives_two_logits_and_evaluation_their_mean() -> None:
    model = small_vit(patch_embedding=ConvStem(patch_size=4, dim=32))
    class_logits, dist_logits = model.train()(images())
    assert class_logits.shape == dist_logits.shape == (4, 5)
    assert relative_error(model.head.weight, model.head_dist.weight) > 1, "the two heads start alike"
    torch.testing.assert_close(model.eval()(images()), (class_logits + dist_logits) / 2)
    assert model.num_prefix_tokens == 2 and model.forward_features(images()).shape == (4, 18, 32)


def test_features_are_the_mean_of_both_tokens_in_both_modes() -> None:
    model = randomise(small_vit(num_classes=0))
    tokens = model.forward_features(images())
    for mode in (True, False):
        torch.testing.assert_close(model.train(mode)(images()), tokens[:, :2].mean(dim=1))


def test_layer_dropout_rises_evenly() -> None:
    model = small_vit(depth=3, layer_dropout=0.2).train()
    assert [block.drop_path.rate for block in model.blocks] == [0.0, 0.1, 0.2]
    assert not torch.equal(model(images())[0], model(images())[0])


def test_each_head_reads_its_own_token() -> None:
    model = randomise(small_vit()).train()
    features = images(2, 18, 32).requires_grad_()
    for index, logits in enumerate(model.forward_head(features)):
        (gradient,) = torch.autograd.grad(logits.sum(), features, retain_graph=True)
        assert gradient.abs().sum(dim=(0, 2)).nonzero().flatten().tolist() == [index]


BAD_CALLS: dict[str, tuple[Callable, type[Exception], str]] = {
    "pool": (lambda: small_vit(pool="mean"), TypeError, "pool"),
    "num_classes": (lambda: small_vit(num_classes=-1), ValueError, "-1"),
    "odd images": (lambda: small_vit()(images(4, 3, 16, 18)), ValueError, r"\(16, 18\)"),
    "token width": (lambda: small_vit().forward_tokens(images(2, 16, 31)), ValueError, r"\(2, 16, 31\)"),
    "token number": (lambda: small_vit().forward_tokens(images(2, 15, 32)), ValueError, r"\(2, 15, 32\)"),
    "token grid": (lambda: small_vit().forward_tokens(images(2, 16, 32), (2, 6)), ValueError, "2 by 6"),
    "features shape": (lambda: small_vit().forward_head(images(2, 32)), ValueError, r"\(2, 32\)"),
}


@pytest.mark.parametrize(("bad", "error", "words"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_bad_input_is_named(bad: Callable, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        bad()
