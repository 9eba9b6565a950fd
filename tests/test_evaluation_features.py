"""Features are what a frozen backbone gives, whatever its kind, and taking them changes nothing."""

import copy
import math
from collections.abc import Callable, Iterator

import pytest
import timm
import torch
from support.models import CASES
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import VisionTransformer

from vit_course.distillation import DistilledViT
from vit_course.evaluation import extract_features, knn_accuracy, linear_probe
from vit_course.lab.catalogue import FOREIGN, MODELS
from vit_course.lab.pretrained import adapt, from_timm
from vit_course.vit import ViT

SMALL = MODELS["ViT"].tiny
IMAGES = torch.randn(7, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class LeastPyramid(nn.Module):
    """The least of a backbone that gives a map."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 4, stride=4)

    def forward_features(self, images: Tensor) -> Tensor:
        return self.layer(images)


BACKBONES: dict[str, Callable[[], nn.Module]] = {
    **{name: case.build for name, case in CASES.items()},
    **FOREIGN,
    "with dropout": lambda: ViT(**SMALL, dropout=0.5),
    "two prefix tokens": lambda: DistilledViT(**SMALL, dropout=0.5),
    "a map": LeastPyramid,
    "torchvision's ViT": lambda: adapt(
        VisionTransformer(
            image_size=16, patch_size=4, num_layers=1, num_heads=2, hidden_dim=32, mlp_dim=32, dropout=0.5
        )
    ),
}
PREFIX = {"two prefix tokens": 2, "a map": 0, "torchvision's ViT": 1}


@pytest.mark.parametrize("name", BACKBONES)
def test_features_of_every_backbone(name: str) -> None:
    torch.manual_seed(0)
    backbone = BACKBONES[name]().eval()
    prefix = PREFIX.get(name, getattr(backbone, "num_prefix_tokens", 0))
    with torch.no_grad():
        tokens = torch.cat([backbone.forward_features(image[None]) for image in IMAGES])
    if tokens.ndim == 4:
        tokens = tokens.flatten(2).transpose(1, 2)
    wanted = {"mean": tokens[:, prefix:].mean(dim=1), "patches": tokens[:, prefix:]}
    if prefix:
        wanted["cls"] = tokens[:, 0]
    backbone.train()
    for pool, features in wanted.items():
        found = extract_features(backbone, IMAGES, pool, batch_size=3)
        assert found.shape == features.shape and torch.allclose(found, features, atol=1e-4), pool
        assert not found.requires_grad
    assert torch.equal(
        extract_features(backbone, IMAGES), extract_features(backbone, IMAGES, "cls" if prefix else "mean")
    )
    if not prefix:
        with pytest.raises(ValueError, match="has no class token"):
            extract_features(backbone, IMAGES, "cls")


def test_every_part_is_put_back_into_its_own_mode_even_after_an_error() -> None:
    backbone = ViT(**SMALL, dropout=0.5).train()
    backbone.blocks[0].eval()
    modes = [module.training for module in backbone.modules()]
    extract_features(backbone, IMAGES)
    assert [module.training for module in backbone.modules()] == modes
    with pytest.raises(ValueError, match="not divisible"):
        extract_features(backbone, torch.zeros(2, 3, 15, 15))
    assert [module.training for module in backbone.modules()] == modes and len(set(modes)) == 2


def test_running_statistics_of_a_frozen_backbone_do_not_move() -> None:
    backbone = LeastPyramid()
    backbone.layer = nn.Sequential(backbone.layer, nn.BatchNorm2d(8))
    before = backbone.layer[1].running_mean.clone()
    extract_features(backbone.train(), IMAGES)
    assert torch.equal(before, backbone.layer[1].running_mean)


def test_batches_in_every_form_give_the_same_features() -> None:
    backbone = ViT(**SMALL)
    wanted = extract_features(backbone, IMAGES)
    loader = DataLoader(TensorDataset(IMAGES, torch.arange(7)), batch_size=2)
    for batches in (IMAGES.split(3), loader, iter([IMAGES[:4], IMAGES[4:]]), pairs(), map(list, pairs())):
        assert torch.allclose(extract_features(backbone, batches), wanted, atol=1e-5)


def pairs() -> Iterator[tuple[Tensor, Tensor]]:
    yield from ((part, torch.zeros(len(part))) for part in IMAGES.split(5))


@pytest.mark.parametrize("inside", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_features_may_be_taken_and_measured_in_any_gradient_mode(inside: Callable) -> None:
    """Tensors of inference mode cannot be trained on, and the probe trains."""
    backbone, labels = ViT(**SMALL), torch.arange(7) % 2
    wanted = extract_features(backbone, IMAGES)
    with inside():
        features = extract_features(backbone, IMAGES.clone())
        own_labels = labels.clone()
        shares = [
            measure(features, own_labels, features, own_labels) for measure in (knn_accuracy, linear_probe)
        ]
    assert torch.equal(features, wanted)
    assert shares == [
        measure(features, own_labels, features, own_labels) for measure in (knn_accuracy, linear_probe)
    ]
    assert shares == [measure(wanted, labels, wanted, labels) for measure in (knn_accuracy, linear_probe)]


def test_nothing_that_is_lent_is_changed() -> None:
    backbone, images = ViT(**SMALL), IMAGES.clone()
    state = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    extract_features(backbone, images)[:] = 0
    extract_features(backbone, [images], "patches")[:] = 0
    assert torch.equal(images, IMAGES)
    assert all(torch.equal(state[name], tensor) for name, tensor in backbone.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize("measure", [knn_accuracy, linear_probe])
def test_a_nan_of_the_model_is_handed_on_and_named_by_the_measures(measure: Callable) -> None:
    images, labels = IMAGES.clone(), torch.arange(7) % 2
    images[4, 0, 0, 0] = math.nan
    features = extract_features(ViT(**SMALL), images)
    assert features.isnan().any(dim=1).tolist() == [False, False, False, False, True, False, False]
    clean = extract_features(ViT(**SMALL), IMAGES)
    for sets, sentence in [
        ((features, labels, clean, labels), "train_features hold nan .* first in row 4, in 1 of 7 rows"),
        ((clean, labels, features, labels), "test_features hold nan .* first in row 4, in 1 of 7 rows"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            measure(*sets)


def test_features_of_several_layers_are_those_of_shorter_networks_side_by_side() -> None:
    torch.manual_seed(0)
    backbone = ViT(**SMALL | {"depth": 3}).train()
    for pool in (None, "cls", "mean", "patches"):
        parts = []
        for depth in (2, 3):
            shorter = copy.deepcopy(backbone)
            shorter.blocks = shorter.blocks[:depth]
            parts.append(extract_features(shorter, IMAGES, pool))
        found = extract_features(backbone, IMAGES, pool, batch_size=3, layers=2)
        assert torch.allclose(found, torch.cat(parts, dim=-1), atol=1e-5)
    assert not torch.allclose(parts[0], parts[1], atol=0.1)
    assert all(not block._forward_hooks for block in backbone.blocks)


def test_last_layers_of_dino_s_own_code() -> None:
    """get_intermediate_layers of timm gives the tokens after each of the last blocks, normalised."""
    torch.manual_seed(0)
    twin = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=48, depth=5, num_heads=3, num_classes=4
    ).eval()
    with torch.no_grad():
        parts = twin.forward_intermediates(
            IMAGES, indices=4, return_prefix_tokens=True, norm=True, output_fmt="NLC", intermediates_only=True
        )
    wanted = torch.cat([prefix[:, 0] for _, prefix in parts], dim=1)
    assert torch.allclose(extract_features(from_timm(twin), IMAGES, layers=4), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("backbone", "layers", "error", "sentence"),
    [
        (ViT(**SMALL), 0, ValueError, "layers must be at least 1, got 0"),
        (ViT(**SMALL), 1.0, TypeError, "layers must be an int"),
        (ViT(**SMALL), 99, ValueError, r"ViT has \d blocks, got layers=99"),
        (LeastPyramid(), 2, ValueError, "LeastPyramid has 0 blocks, got layers=2"),
        (
            MODELS["CaiT"].kind(**MODELS["CaiT"].tiny | {"depth": 3}),
            2,
            ValueError,
            "blocks of CaiT give .* layers must be 1",
        ),
    ],
)
def test_layers_that_a_model_does_not_have_are_refused(
    backbone: nn.Module, layers: int, error: type, sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        extract_features(backbone, IMAGES, layers=layers)
    assert all(not module._forward_hooks for module in backbone.modules())


class Flat(nn.Module):
    """A model that has pooled already."""

    def forward_features(self, images: Tensor) -> Tensor:
        return images.flatten(1)


@pytest.mark.parametrize(
    "arguments, error, sentence",
    [
        ((lambda images: images, IMAGES), TypeError, "forward_features, got function"),
        ((nn.Linear(3, 3), IMAGES), TypeError, "got Linear; vit_course.lab.pretrained.adapt makes one"),
        ((ViT(**SMALL), IMAGES, "max"), ValueError, "pool must be .* got 'max'"),
        ((ViT(**SMALL), IMAGES, None, 0), ValueError, "batch_size must be at least 1, got 0"),
        ((ViT(**SMALL), (IMAGES * 255).byte()), TypeError, "divide bytes by 255"),
        ((ViT(**SMALL), IMAGES[0]), ValueError, r"got shape \(3, 16, 16\)"),
        ((ViT(**SMALL), []), ValueError, "no images"),
        ((ViT(**SMALL), IMAGES[:0]), ValueError, "no images"),
        ((ViT(**SMALL), ["path.png"]), TypeError, "path.png"),
        ((Flat(), IMAGES), ValueError, r"must give tokens .* or a map .* got \(7, 768\) from Flat"),
    ],
)
def test_refused_by_extract_features(arguments: tuple, error: type, sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        extract_features(*arguments)
