"""Which published models come in, from where and how: each with a small twin that shows that it is right.

    for family in FAMILIES:
        print(family.published, family.library, family.way, family.error())

A twin is built offline from a configuration, with random weights that make every part count. The tests hold
each to `vit_course.lab.parity.SAME`; `python benchmarks/parity.py` stores what was measured, and the README
shows it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vit_course.attention import record_attention
from vit_course.lab.parity import randomise, relative_error

from .adapters import adapt
from .dino import from_dino
from .weights import from_timm, from_torchvision

__all__ = ["FAMILIES", "LIBRARIES", "Family"]

LIBRARIES = ("timm", "torchvision", "transformers", "the authors' files")
WAYS: dict[str, Callable[[Any], nn.Module]] = {
    "adapt": adapt,
    "from_timm": from_timm,
    "from_torchvision": from_torchvision,
}


@dataclass(frozen=True)
class Family:
    """Published models of one kind, from one library.

    Args:
        published: what they are.
        library: where they are from, one of LIBRARIES.
        way: the function of `vit_course.lab.pretrained` that takes them.
        make: a small foreign model of the kind; imports its library only when called. For files of the
            authors it is transformers' or timm's model, whose weights then get the authors' names.
        image_size: side of its images in pixels.
    """

    published: str
    library: str
    way: str
    make: Callable[[], nn.Module]
    image_size: int = 32

    def pair(self) -> tuple[nn.Module, nn.Module]:
        """Ours and theirs with the same weights, in evaluation mode."""
        torch.manual_seed(0)
        theirs = randomise(self.make())
        if self.way == "from_dino":
            return from_dino(names_of_authors(theirs)).eval(), theirs
        return WAYS[self.way](theirs), theirs

    def images(self, count: int = 2) -> Tensor:
        """Noise that its models take: (b, 3, h, w)."""
        size = (count, 3, self.image_size, self.image_size)
        return torch.randn(size, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def error(self) -> float:
        """Relative error of our outputs beside theirs, the larger of two: as it comes, and while recorded.

        Outputs are logits, or features of the class token.
        """
        ours, theirs = self.pair()
        expected = outputs(theirs, self.images())
        plain = relative_error(ours(self.images()), expected)
        with record_attention(ours):
            return max(plain, relative_error(ours(self.images()), expected))


def outputs(theirs: nn.Module, images: Tensor) -> Tensor:
    """What a foreign model gives for images: logits (b, classes), or class token features (b, d)."""
    given = theirs(images)
    if isinstance(given, Tensor):
        return given
    for name in ("logits", "image_embeds", "pooler_output"):  # of transformers
        if given.get(name) is not None:
            return given[name]
    return given.last_hidden_state[:, 0]


# What transformers calls the parts of DINOv2 and DINOv3, and what the authors do.
_AUTHORS_NAMES = {
    r"^embeddings\.patch_embeddings(\.projection)?\.": "patch_embed.proj.",
    r"^embeddings\.position_embeddings$": "pos_embed",
    r"^embeddings\.": "",
    r"^(encoder|model)\.layer\.": "blocks.",
    r"layer_scale(\d)\.lambda1$": r"ls\1.gamma",
    r"\.attention\.o_proj\.": ".attn.proj.",
    r"\.mlp\.up_proj\.": ".mlp.fc1.",
    r"\.mlp\.down_proj\.": ".mlp.fc2.",
    r"^layernorm\.": "norm.",
}


def names_of_authors(theirs: nn.Module) -> dict[str, Tensor]:
    """The weights of a DINO, DINOv2 or DINOv3 model as the authors' files name them.

    Queries, keys and values lie in one matrix there. In DINOv3 the biases of the keys are there and masked.
    """
    weights = theirs.state_dict()
    if not hasattr(theirs, "config"):  # timm has DINO's own names
        return weights
    is_dinov3 = hasattr(theirs, "rope_embeddings")
    state: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        for pattern, authors in _AUTHORS_NAMES.items():
            name = re.sub(pattern, authors, name)
        if is_dinov3:
            name = name.replace("register_tokens", "storage_tokens")
        state[name] = tensor
    for name in [name for name in state if ".q_proj." in name]:
        queries, joint = state.pop(name), name.replace("attention.q_proj", "attn.qkv")
        keys = state.pop(name.replace("q_proj", "k_proj"), torch.full_like(queries, 7.0))
        state[joint] = torch.cat([queries, keys, state.pop(name.replace("q_proj", "v_proj"))])
        if is_dinov3 and joint.endswith(".bias"):
            shares = torch.ones_like(queries), torch.zeros_like(queries), torch.ones_like(queries)
            state[f"{joint}_mask"] = torch.cat(shares)
    if is_dinov3:
        state["rope_embed.periods"] = torch.ones(16)  # a quarter of the head's 64
    return state


def _of_timm(name: str, **sizes: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from timm import models

        common = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 4, "num_classes": 7}
        return getattr(models, name)(**common | {"depth": 2} | sizes)

    return make


def _parallel_of_timm() -> nn.Module:
    from timm.models.vision_transformer import ParallelThingsBlock

    changes = {"block_fn": ParallelThingsBlock, "init_values": 1e-4, "no_embed_class": True}
    return _of_timm("VisionTransformer", **changes)()


def _dinov3_of_timm() -> nn.Module:
    from timm import create_model

    # Published sizes are named; a narrow one of two blocks has the same parts.
    sizes: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8, "img_size": 32}
    return create_model("vit_small_patch16_dinov3", pretrained=False, num_classes=7, **sizes)


def _of_torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=48, num_classes=7)


def _of_torchvision_max_vit() -> nn.Module:
    from torchvision.models.maxvit import MaxVit

    return MaxVit((32, 32), 8, 2, [16, 32], [1, 2], 8, stochastic_depth_prob=0.2, num_classes=7)


def _of_transformers(
    kind: str, configuration: str, options: dict[str, Any] | None = None, **sizes: Any
) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        common = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 7}
        common |= {"image_size": 32, "patch_size": 8, "intermediate_size": 48, "mlp_ratio": 2}
        config = getattr(transformers, configuration)(**common | sizes)
        return getattr(transformers, kind)(config, **options or {})

    return make


_WIDE: dict[str, Any] = {"hidden_size": 128}  # two heads of 64, the width that the authors' files imply
_REGISTERS = "Dinov2WithRegistersConfig"
_CLIP = "CLIP, pictures"
FAMILIES = [
    Family("ViT", "timm", "from_timm", _of_timm("VisionTransformer")),
    Family("ViT", "torchvision", "from_torchvision", _of_torchvision_vit),
    Family("ViT", "transformers", "adapt", _of_transformers("ViTForImageClassification", "ViTConfig")),
    Family("DeiT, distilled", "timm", "from_timm", _of_timm("VisionTransformerDistilled")),
    Family(
        "DeiT, distilled",
        "transformers",
        "adapt",
        _of_transformers("DeiTForImageClassificationWithTeacher", "DeiTConfig"),
    ),
    Family("CaiT", "timm", "from_timm", _of_timm("Cait", init_values=0.1, depth_token_only=2)),
    Family("XCiT", "timm", "from_timm", _of_timm("Xcit", cls_attn_layers=2)),
    Family("MaxViT", "torchvision", "from_torchvision", _of_torchvision_max_vit),
    Family("Parallel ViT", "timm", "from_timm", _parallel_of_timm),
    Family("DINO", "timm", "from_timm", _of_timm("VisionTransformer", num_classes=0)),
    Family(
        "DINO",
        "transformers",
        "adapt",
        _of_transformers("ViTModel", "ViTConfig", {"add_pooling_layer": False}),
    ),
    Family(
        "DINO",
        "the authors' files",
        "from_dino",
        _of_timm("VisionTransformer", num_classes=0, embed_dim=128, num_heads=2),
    ),
    Family("DINOv2", "timm", "adapt", _of_timm("VisionTransformer", init_values=1e-5)),
    Family(
        "DINOv2", "transformers", "adapt", _of_transformers("Dinov2ForImageClassification", "Dinov2Config")
    ),
    Family(
        "DINOv2",
        "the authors' files",
        "from_dino",
        _of_transformers("Dinov2Model", "Dinov2Config", **_WIDE),
    ),
    Family(
        "DINOv2 with registers",
        "timm",
        "adapt",
        _of_timm("VisionTransformer", init_values=1e-5, reg_tokens=4, no_embed_class=True),
    ),
    Family(
        "DINOv2 with registers",
        "transformers",
        "adapt",
        _of_transformers("Dinov2WithRegistersForImageClassification", _REGISTERS),
    ),
    Family(
        "DINOv2 with registers",
        "the authors' files",
        "from_dino",
        _of_transformers("Dinov2WithRegistersModel", _REGISTERS, **_WIDE),
    ),
    Family("DINOv3", "timm", "adapt", _dinov3_of_timm),
    Family(
        "DINOv3",
        "transformers",
        "adapt",
        _of_transformers("DINOv3ViTModel", "DINOv3ViTConfig", num_register_tokens=4),
    ),
    Family(
        "DINOv3",
        "the authors' files",
        "from_dino",
        _of_transformers("DINOv3ViTModel", "DINOv3ViTConfig", num_register_tokens=4, **_WIDE),
    ),
    Family(_CLIP, "timm", "adapt", _of_timm("VisionTransformer", pre_norm=True)),
    Family(
        _CLIP,
        "transformers",
        "adapt",
        _of_transformers("CLIPVisionModelWithProjection", "CLIPVisionConfig", projection_dim=7),
    ),
]
