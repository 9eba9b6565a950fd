"""The catalogue: one row for each model of the course.

    from vit_course.lab.catalogue import MODELS

    row = MODELS["CaiT"]
    row.build(depth=4)                                    # its small form for tests, with a change
    row.kind(**row.published["CaiT-XXS24"].sizes)         # a published size
    row.published["CaiT-XXS24"].twins["timm"].make()      # the same size as timm has it

Tests, benches, the tables of the README, the menus of lesson 13 and the table of objectives read it, and keep
no list of models of their own. Adding a model touches its lesson, its converter in
`vit_course.lab.pretrained` if it has a twin, and one row here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from vit_course.atlas.deeper import DeepViT, ParallelViT
from vit_course.cait import CaiT
from vit_course.distillation import DistilledViT
from vit_course.max_vit import MaxViT
from vit_course.patching import ConvStem
from vit_course.vit import SimpleViT, ViT
from vit_course.xcit import XCiT

__all__ = ["FOREIGN", "MODELS", "OBJECTIVES", "Entrant", "Published", "Reservation", "Row", "Twin", "Variant"]

Sizes = tuple[tuple[int, int], ...]

# Objectives with a module of their own, and the lesson that builds each. Any of them may have a reservation
# about a model.
OBJECTIVES = {"distillation": "08", "DINO": "10", "EsViT": "11", "MPP": "12"}


@dataclass(frozen=True)
class Twin:
    """A published size in somebody else's library.

    Args:
        make: builds it without published weights; imports its library only when called.
        is_equal: whether it is the same function of the same weights, which `vit_course.lab.pretrained` takes
            over. A twin that is not is a peer to be timed beside.
    """

    make: Callable[[], nn.Module]
    is_equal: bool = True


@dataclass(frozen=True)
class Published:
    """A size that the authors published.

    Args:
        sizes: the constructor's arguments.
        parameters: exactly how many parameters that makes.
        twins: the same size elsewhere, by the name of the distribution: "timm", "torchvision", "vit-pytorch".
        bench_batch: images in a batch of `make bench`; None where this size is not timed.
    """

    sizes: dict[str, Any]
    parameters: int
    twins: dict[str, Twin] = field(default_factory=dict)
    bench_batch: int | None = None

    @property
    def image_size(self) -> int:
        """Side of its images in pixels. A pyramid is built for no size in particular; 224 is what it saw."""
        return self.sizes.get("image_size", 224)


@dataclass(frozen=True)
class Variant:
    """Another small form of a model that tests must hold to the same promises.

    Args:
        arguments: makes the constructor's arguments that differ from the row's `tiny`; anew each time, for a
            module belongs to one model.
        other_sizes, prefix_tokens, plain_patches: as for Row; None where they are the row's.
    """

    arguments: Callable[[], dict[str, Any]]
    other_sizes: Sizes | None = None
    prefix_tokens: int | None = None
    plain_patches: bool | None = None


@dataclass(frozen=True)
class Entrant:
    """A form of a model that stands on the leaderboard, with about 240 thousand parameters.

    Args:
        arguments: makes the constructor's arguments for images of 32 × 32 pixels and ten classes; anew each
            time, for a module belongs to one model.
        steps: how many steps of training take about 40 core-seconds on scenes of the default level, rounded
            to ten: `python benchmarks/leaderboard.py --step-costs` says what one takes.
    """

    arguments: Callable[[], dict[str, Any]]
    steps: int


@dataclass(frozen=True)
class Reservation:
    """What to know before an objective trains a model.

    Args:
        sentence: what the README says; of a refused pair, the words of the error.
        is_refused: whether the pair is refused.
        untrained: a pattern for the names of the parameters that then get no gradient; everywhere else all
            get one.
    """

    sentence: str
    is_refused: bool = False
    untrained: str = ""


@dataclass(frozen=True)
class Row:
    """All that the rest of the course has to know about a model.

    Args:
        kind: its class.
        lesson: the number of the lesson that builds it.
        tiny: the constructor's arguments of a small form for images (b, 3, 16, 16) and 5 classes.
        attention: the kinds of attention that `record_attention` finds in it.
        dropouts: all arguments that make training random.
        other_sizes: other (height, width) of images that its small form must take.
        features: what forward_features gives, 'tokens' (b, n, d) or a 'map' (b, d, rows, columns).
        prefix_tokens: how many tokens of the features are no patches: class and distillation tokens.
        plain_patches: whether a token of patch_embed sees the pixels of its own patch only, as MPP needs it.
        least_depth: a depth that shows each kind of layer once.
        small: the constructor's arguments, but for image, patches, channels and classes, of a network that
            learns pictures of 32 pixels in minutes, for the menu of lesson 13; None keeps it off the menu.
        entrants: its forms on the leaderboard, by their names there.
        variants: more small forms, by what they add to the name.
        published: the sizes that its authors published, by their name.
        reservations: by the name of an objective of OBJECTIVES.
    """

    kind: type[nn.Module]
    lesson: str
    tiny: dict[str, Any]
    attention: tuple[str, ...]
    dropouts: tuple[str, ...] = ("dropout", "emb_dropout", "layer_dropout")
    other_sizes: Sizes = ((8, 8), (24, 16), (4, 32))
    features: Literal["tokens", "map"] = "tokens"
    prefix_tokens: int = 1
    plain_patches: bool = True
    least_depth: int | tuple[int, ...] = 1
    small: dict[str, Any] | None = None
    entrants: dict[str, Entrant] = field(default_factory=dict)
    variants: dict[str, Variant] = field(default_factory=dict)
    published: dict[str, Published] = field(default_factory=dict)
    reservations: dict[str, Reservation] = field(default_factory=dict)

    def build(self, **changes: Any) -> nn.Module:
        """The small form, with changes of its arguments."""
        return self.kind(**self.tiny | changes)

    @property
    def sees_everything(self) -> bool:
        """Whether the attention of some layer covers the whole picture."""
        return bool({"global", "class"} & set(self.attention))


# ---- Twins -------------------------------------------------------------------------------------------------


def _timm(name: str, is_equal: bool = True, **changes: Any) -> Twin:
    def make() -> nn.Module:
        import timm

        # Of some sizes timm has weights without a classifier only, and would build them without one.
        return timm.create_model(name, pretrained=False, num_classes=1000, **changes)

    return Twin(make, is_equal)


def _torchvision_vit(sizes: dict[str, Any]) -> Twin:
    def make() -> nn.Module:
        from torchvision.models import VisionTransformer

        return VisionTransformer(
            image_size=sizes["image_size"],
            patch_size=sizes["patch_size"],
            num_layers=sizes["depth"],
            num_heads=sizes["heads"],
            hidden_dim=sizes["dim"],
            mlp_dim=sizes["mlp_dim"],
        )

    return Twin(make)


def _vit_pytorch(name: str, sizes: dict[str, Any]) -> Twin:
    """Its models have the arguments of ours, and other norms and biases."""

    def make() -> nn.Module:
        import vit_pytorch

        return getattr(vit_pytorch, name)(**sizes)

    return Twin(make, is_equal=False)


def _torchvision_max_vit(sizes: dict[str, Any]) -> Twin:
    def make() -> nn.Module:
        from torchvision.models.maxvit import MaxVit

        return MaxVit(
            input_size=(224, 224),
            stem_channels=sizes["dim_stem"],
            partition_size=7,
            block_channels=[sizes["dim"] * 2**stage for stage in range(4)],
            block_layers=list(sizes["depth"]),
            head_dim=32,
            stochastic_depth_prob=0.2,
        )

    return Twin(make)


# ---- Published sizes ---------------------------------------------------------------------------------------


def _sizes(
    dim: int, depth: int, heads: int, patch_size: int = 16, image_size: int = 224, **more: Any
) -> dict[str, Any]:
    """ImageNet's classes, and feed-forward layers four times as wide as a token, as all of them have."""
    return {
        "image_size": image_size,
        "patch_size": patch_size,
        "num_classes": 1000,
        "dim": dim,
        "depth": depth,
        "heads": heads,
        "mlp_dim": 4 * dim,
        **more,
    }


def _vit(timm: str, sizes: dict[str, Any], parameters: int, bench_batch: int | None = None) -> Published:
    twins = {
        "timm": _timm(timm),
        "torchvision": _torchvision_vit(sizes),
        "vit-pytorch": _vit_pytorch("ViT", sizes),
    }
    return Published(sizes, parameters, twins, bench_batch)


def _of_timm(timm: str, sizes: dict[str, Any], parameters: int, bench_batch: int | None = None) -> Published:
    return Published(sizes, parameters, {"timm": _timm(timm)}, bench_batch)


def _max_vit(
    timm: str,
    dim: int,
    depth: tuple[int, ...],
    parameters: int,
    dim_stem: int = 64,
    bench_batch: int | None = None,
) -> Published:
    """timm's has biases that torchvision's has not, and no shortcut convolution where the widths agree."""
    sizes = {"num_classes": 1000, "dim": dim, "depth": depth, "dim_stem": dim_stem}
    twins = {"torchvision": _torchvision_max_vit(sizes), "timm": _timm(timm, is_equal=False)}
    return Published(sizes, parameters, twins, bench_batch)


def _deep_vit(dim: int, depth: int, **more: Any) -> dict[str, Any]:
    """Twelve heads, and feed-forward layers three times as wide as a token."""
    return _sizes(dim, depth, 12, **more) | {"mlp_dim": 3 * dim}


_DEEP_VIT_S = {"mixed": 5, "map_scaled": True, "branch_scale": 0.5, "conv_stem": True}
_DEEP_VIT_L = {"mixed": 12, "branch_scale": 0.5, "conv_stem": True}


# ---- The rows ----------------------------------------------------------------------------------------------

_TINY = {
    "image_size": 16,
    "patch_size": 4,
    "num_classes": 5,
    "dim": 32,
    "depth": 2,
    "heads": 2,
    "mlp_dim": 64,
}
_SMALL = {"dim": 64, "heads": 2, "mlp_dim": 256}
_SCENES = {"image_size": 32, "patch_size": 8, "num_classes": 10}
_ENTRANT = _SCENES | _SMALL | {"mlp_dim": 224}

_WINDOWS_MUST_FILL = Reservation(
    "Local crops must have a size that the windows fill, as global ones: a multiple of `MaxViT.size_unit`."
)


def _patches_only(untrained: str) -> Reservation:
    return Reservation(
        "The class token and its layers learn nothing, because they change no patch and MPP predicts from "
        "patches only: take the mean of the patches as the feature.",
        untrained=untrained,
    )


MODELS: dict[str, Row] = {
    "ViT": Row(
        kind=ViT,
        lesson="03",
        tiny=_TINY,
        attention=("global",),
        small=_SMALL | {"depth": 4, "pool": "mean"},
        entrants={
            "ViT": Entrant(lambda: _ENTRANT | {"depth": 5, "pool": "mean"}, steps=1080),
            "ViT, convolutional stem": Entrant(
                lambda: (
                    _SCENES
                    | _SMALL
                    | {"depth": 4, "pool": "mean", "patch_embedding": ConvStem(patch_size=8, dim=64)}
                ),
                steps=920,
            ),
        },
        variants={
            "mean": Variant(lambda: {"pool": "mean"}, prefix_tokens=0),
            "wide heads": Variant(lambda: {"dim_head": 24}),
            "stem": Variant(lambda: {"patch_embedding": ConvStem(patch_size=4, dim=32)}, plain_patches=False),
        },
        published={
            "ViT-Ti/16": _vit("vit_tiny_patch16_224", _sizes(192, 12, 3), 5_717_416, bench_batch=8),
            "ViT-S/16": _vit("vit_small_patch16_224", _sizes(384, 12, 6), 22_050_664, bench_batch=8),
            "ViT-B/16": _vit("vit_base_patch16_224", _sizes(768, 12, 12), 86_567_656),
            "ViT-B/32": _vit("vit_base_patch32_224", _sizes(768, 12, 12, patch_size=32), 88_224_232),
            "ViT-L/16": _vit("vit_large_patch16_224", _sizes(1024, 24, 16), 304_326_632),
            "ViT-L/32": _vit("vit_large_patch32_224", _sizes(1024, 24, 16, patch_size=32), 306_535_400),
            "ViT-H/14": _vit("vit_huge_patch14_224", _sizes(1280, 32, 16, patch_size=14), 632_045_800),
        },
    ),
    "SimpleViT": Row(
        kind=SimpleViT,
        lesson="03",
        tiny=_TINY,
        attention=("global",),
        dropouts=(),
        prefix_tokens=0,
        small=_SMALL | {"depth": 4},
        published={  # nobody else has it with the same norms and biases
            "SimpleViT-S/16": Published(_sizes(384, 12, 6), 21_974_632),
            "SimpleViT-B/16": Published(_sizes(768, 12, 12), 86_415_592),
            "SimpleViT-L/16": Published(_sizes(1024, 24, 16), 304_123_880),
        },
    ),
    "DistilledViT": Row(
        kind=DistilledViT,
        lesson="08",
        tiny=_TINY,
        attention=("global",),
        dropouts=("dropout", "emb_dropout", "layer_dropout"),
        prefix_tokens=2,
        entrants={"DeiT": Entrant(lambda: _ENTRANT | {"depth": 5}, steps=550)},
        published={
            "DeiT-Ti/16 distilled": _of_timm(
                "deit_tiny_distilled_patch16_224", _sizes(192, 12, 3), 5_910_800
            ),
            "DeiT-S/16 distilled": _of_timm(
                "deit_small_distilled_patch16_224", _sizes(384, 12, 6), 22_436_432
            ),
            "DeiT-B/16 distilled": _of_timm(
                "deit_base_distilled_patch16_224", _sizes(768, 12, 12), 87_338_192
            ),
        },
    ),
    "CaiT": Row(
        kind=CaiT,
        lesson="05",
        tiny=_TINY,
        attention=("global", "class"),
        small=_SMALL | {"depth": 3, "cls_depth": 1},
        entrants={"CaiT": Entrant(lambda: _ENTRANT | {"depth": 4, "cls_depth": 1}, steps=960)},
        published={
            "CaiT-XXS24": _of_timm("cait_xxs24_224", _sizes(192, 24, 4), 11_956_264, bench_batch=8),
            "CaiT-XXS36": _of_timm("cait_xxs36_224", _sizes(192, 36, 4), 17_299_720),
            "CaiT-XS24 384": _of_timm("cait_xs24_384", _sizes(288, 24, 6, image_size=384), 26_670_088),
            "CaiT-S24": _of_timm("cait_s24_224", _sizes(384, 24, 8), 46_916_200),
            "CaiT-S36": Published(_sizes(384, 36, 8), 68_220_712),
            "CaiT-S36 384": _of_timm("cait_s36_384", _sizes(384, 36, 8, image_size=384), 68_366_632),
            "CaiT-M36 384": _of_timm("cait_m36_384", _sizes(768, 36, 16, image_size=384), 271_221_352),
        },
        reservations={"MPP": _patches_only(r"backbone\.(cls_token|blocks_token_only\..*)")},
    ),
    "XCiT": Row(
        kind=XCiT,
        lesson="06",
        tiny=_TINY,
        attention=("channel", "class"),
        small=_SMALL | {"depth": 3, "cls_depth": 1},
        entrants={"XCiT": Entrant(lambda: _SCENES | _SMALL | {"depth": 3, "cls_depth": 1}, steps=690)},
        variants={
            "stem": Variant(
                lambda: {"patch_size": 8, "tokens_norm": False},
                other_sizes=((8, 16), (24, 16), (8, 32)),
                plain_patches=False,
            )
        },
        published={
            "XCiT-N12/16": _of_timm(
                "xcit_nano_12_p16_224", _sizes(128, 12, 4, tokens_norm=False), 3_053_224, bench_batch=8
            ),
            "XCiT-N12/8": _of_timm(
                "xcit_nano_12_p8_224", _sizes(128, 12, 4, patch_size=8, tokens_norm=False), 3_049_016
            ),
            "XCiT-T12/16": _of_timm("xcit_tiny_12_p16_224", _sizes(192, 12, 4), 6_716_272),
            "XCiT-T24/16": _of_timm("xcit_tiny_24_p16_224", _sizes(192, 24, 4), 12_116_896),
            "XCiT-S12/16": _of_timm("xcit_small_12_p16_224", _sizes(384, 12, 8), 26_253_304),
            "XCiT-S24/16": _of_timm("xcit_small_24_p16_224", _sizes(384, 24, 8), 47_671_384),
            "XCiT-M24/16": _of_timm("xcit_medium_24_p16_224", _sizes(512, 24, 8), 84_395_752),
            "XCiT-L24/16": _of_timm("xcit_large_24_p16_224", _sizes(768, 24, 16), 189_096_136),
        },
        reservations={"MPP": _patches_only(r"backbone\.(cls_token|cls_attn_blocks\.\d\.(attn|mlp|ls2)\..*)")},
    ),
    "MaxViT": Row(
        kind=MaxViT,
        lesson="07",
        tiny={"num_classes": 5, "dim": 16, "depth": (1, 2), "window_size": 2, "dim_head": 8},
        attention=("window",),
        dropouts=("dropout", "layer_dropout"),
        other_sizes=((32, 16), (16, 48)),
        features="map",
        prefix_tokens=0,
        plain_patches=False,
        least_depth=(1, 1),
        small={"dim": 32, "depth": (2, 2), "window_size": 4, "dim_head": 16},
        entrants={
            "MaxViT": Entrant(
                lambda: {"num_classes": 10, "dim": 36, "depth": (1, 1), "window_size": 4, "dim_head": 12},
                steps=280,
            )
        },
        published={
            "MaxViT-T": _max_vit("maxvit_tiny_tf_224", 64, (2, 2, 5, 2), 30_919_624, bench_batch=2),
            "MaxViT-S": _max_vit("maxvit_small_tf_224", 96, (2, 2, 5, 2), 68_926_892),
            "MaxViT-B": _max_vit("maxvit_base_tf_224", 96, (2, 6, 14, 2), 119_466_644),
            "MaxViT-L": _max_vit("maxvit_large_tf_224", 128, (2, 6, 14, 2), 211_800_944, dim_stem=128),
        },
        reservations={
            "DINO": _WINDOWS_MUST_FILL,
            "EsViT": _WINDOWS_MUST_FILL,
            "MPP": Reservation(
                "MPP hides single patches, of which a pyramid has none: its backbone must be a model with "
                "patch_embed, got MaxViT; vit_course.lab.pretrained.adapt makes one of a model of timm or "
                "torchvision",
                is_refused=True,
            ),
        },
    ),
    "DeepViT": Row(
        kind=DeepViT,
        lesson="a1",
        tiny=_TINY,
        attention=("global",),
        small=_SMALL | {"depth": 4},
        variants={
            "published tricks": Variant(
                lambda: {"mixed": 1, "map_scaled": True, "branch_scale": 0.5, "conv_stem": True},
                plain_patches=False,
            ),
        },
        published={  # nobody else has it with the same norm
            "DeepViT 16B": Published(_deep_vit(384, 16), 24_426_664),
            "DeepViT 24B": Published(_deep_vit(384, 24), 36_261_448),
            "DeepViT 32B": Published(_deep_vit(384, 32), 48_096_232),
            "DeepViT-S": Published(_deep_vit(396, 16, **_DEEP_VIT_S), 27_312_632),
            "DeepViT-L": Published(_deep_vit(420, 32, **_DEEP_VIT_L), 58_883_708),
            "DeepViT-L 384": Published(_deep_vit(420, 32, image_size=384, **_DEEP_VIT_L), 59_043_308),
        },
    ),
    "ParallelViT": Row(
        kind=ParallelViT,
        lesson="a1",
        tiny=_TINY,
        attention=("global",),
        small=_SMALL | {"depth": 2},
        variants={"LayerScale": Variant(lambda: {"branches": 3, "layer_scale": 0.1})},
        published={
            "S18x2": Published(_sizes(384, 18, 6), 64_637_416),
            "S18x2 LS": Published(
                _sizes(384, 18, 6, layer_scale=1e-4),
                64_665_064,
                # theirs gives the class token a position, which the authors' has not
                {"timm": _timm("vit_small_patch16_18x2_224", no_embed_class=True)},
            ),
            "B18x2": Published(_sizes(768, 18, 12), 256_675_816),
            "B18x2 LS": Published(_sizes(768, 18, 12, layer_scale=1e-4), 256_731_112),
            "H26x2 LS": Published(
                _sizes(1280, 26, 16, patch_size=14, layer_scale=1e-4),
                1_025_726_440,
            ),
        },
    ),
}


# ---- Models of others --------------------------------------------------------------------------------------


def _tiny_timm_vit(num_classes: int = 5, dropout: float = 0.0) -> nn.Module:
    from timm.models import VisionTransformer

    from vit_course.lab.pretrained import adapt

    model = VisionTransformer(
        img_size=16,
        patch_size=4,
        embed_dim=32,
        depth=2,
        num_heads=2,
        num_classes=num_classes,
        proj_drop_rate=dropout,
    )
    return adapt(model)


# Small models of other libraries that stand beside ours in the table of objectives: images (b, 3, 16, 16),
# num_classes and dropout.
FOREIGN: dict[str, Callable[..., nn.Module]] = {"a ViT of timm": _tiny_timm_vit}
