"""Any backbone with plain patches learns by MPP; one whose tokens see their neighbours is refused."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.masked import colours, seeded, small_mpp
from support.models import CASES
from support.unlabelled import SMALL
from timm.models import VisionTransformer
from torch import Tensor, nn
from torchvision.models import VisionTransformer as TorchvisionViT

from vit_course.lab.catalogue import FOREIGN
from vit_course.lab.data import MEAN, STD, normalise
from vit_course.lab.parity import relative_error
from vit_course.lab.pretrained import adapt
from vit_course.max_vit import MaxViT
from vit_course.mpp import MPP, patch_changes
from vit_course.patching import ConvStem, PatchEmbedding
from vit_course.training import fit
from vit_course.vit import ViT
from vit_course.xcit import XCiT

BACKBONES: dict[str, Callable[[], nn.Module]] = {
    **{name: case.build for name, case in CASES.items() if case.plain_patches},
    **FOREIGN,
    "torchvision's ViT": lambda: adapt(TorchvisionViT(16, 4, 2, 2, 32, 64)),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_any_backbone_with_plain_patches_learns_and_can_be_taken_out(name: str) -> None:
    torch.manual_seed(0)
    backbone = BACKBONES[name]()
    names, before = list(backbone.state_dict()), copy.deepcopy(backbone.state_dict())
    model, images = MPP(backbone, mean=MEAN, std=STD), normalise(colours(8, 3, 16, 16))
    history = fit(
        model, lambda generator: images, lambda model, batch: model(batch), 40, lr=3e-3, progress=False
    )
    assert sum(history["loss"][-3:]) / 3 < 0.8 * history["loss"][0]
    assert model.backbone is backbone and list(backbone.state_dict()) == names
    fresh = BACKBONES[name]()
    fresh.load_state_dict(backbone.state_dict())  # what a fine-tuning starts from
    assert torch.equal(fresh.eval().forward_features(images), backbone.eval().forward_features(images))
    assert any(not torch.equal(before[key], value) for key, value in backbone.state_dict().items())


REFUSED = {
    "a pyramid": (
        lambda: MaxViT(num_classes=0, dim=16, depth=(1, 1), window_size=1, dim_head=8),
        TypeError,
        "single patches, of which a pyramid has none: its backbone must be a model with .*, got MaxViT",
    ),
    "not adapted": (
        lambda: VisionTransformer(img_size=16, patch_size=4, embed_dim=32, depth=1, num_heads=2),
        TypeError,
        "must be a model with forward_tokens, got VisionTransformer; .*lab.pretrained.adapt",
    ),
    "a stem": (
        lambda: ViT(**SMALL, patch_embedding=ConvStem(patch_size=4, dim=32)),
        ValueError,
        "the tokens of ConvStem see pixels of neighbouring patches",
    ),
    "XCiT's stem": (
        lambda: XCiT(**SMALL | {"patch_size": 8}),
        ValueError,
        "the tokens of ConvPatchEmbedding see pixels",
    ),
    "one pixel more": (
        lambda: ViT(**SMALL, patch_embedding=Overlapping()),
        ValueError,
        "the tokens of Overlapping see pixels",
    ),
    "nan": (
        lambda: ViT(**SMALL, patch_embedding=NotANumber()),
        ValueError,
        "the tokens of NotANumber are not finite: .* differ by .*nan",
    ),
    "another layer": (lambda: nn.Linear(3, 3), TypeError, "got Linear"),
    "nothing": (lambda: None, TypeError, "got NoneType"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_backbones_that_would_leak_are_refused(name: str) -> None:
    build, error, says = REFUSED[name]
    torch.manual_seed(0)
    with pytest.raises(error, match=says):
        MPP(build())


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.plain_patches])
def test_no_model_without_plain_patches_is_taken(name: str) -> None:
    with pytest.raises((TypeError, ValueError), match="MPP hides single patches|see pixels of neighbouring"):
        MPP(CASES[name].build())


class NotANumber(PatchEmbedding):
    """The embedding of a run that diverged."""

    def __init__(self) -> None:
        super().__init__(patch_size=4, dim=32)
        nn.init.constant_(self.proj.weight, torch.nan)


class Overlapping(nn.Module):
    """One pixel further than the patch, to the right and down: the top left corner would not notice."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, 32, 5, stride=4)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(F.pad(images, (0, 1, 0, 1))).flatten(2).transpose(1, 2)


class Dropping(PatchEmbedding):
    """Plain patches with dropout, and a large bias that white and black pictures share."""

    def __init__(self) -> None:
        super().__init__(patch_size=4, dim=32)
        nn.init.constant_(self.proj.bias, 50.0)
        self.drop = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        return self.drop(super().forward(images))


def test_changes_are_those_of_the_middle_patch() -> None:
    """Of plain patches, square or not, the middle token alone changes; of a stem its neighbours do too."""
    plain = patch_changes(PatchEmbedding(patch_size=(2, 4), dim=8, channels=2), (2, 4), channels=2)
    assert plain.shape == (9,) and plain[4] > 0 and plain[torch.arange(9) != 4].abs().max() == 0
    assert (patch_changes(ConvStem(patch_size=4, dim=8), 4, channels=3) > 0).sum() > 1
    assert patch_changes(Dropping().train(), 4, channels=3)[torch.arange(9) != 4].max() == 0


def test_trying_the_patches_changes_nothing() -> None:
    """No mode, no statistics, and no random number is used up: the head starts as without dropout."""
    plain, backbone = ViT(**SMALL), ViT(**SMALL, patch_embedding=Dropping()).train()
    backbone.blocks[0].eval()
    modes = [part.training for part in backbone.modules()]
    before = copy.deepcopy(backbone.state_dict())
    torch.manual_seed(7)
    model = MPP(backbone)
    assert [part.training for part in backbone.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())
    torch.manual_seed(7)
    assert torch.equal(model.head.weight, MPP(plain).head.weight)
    stem = XCiT(**SMALL | {"patch_size": 8}).train()  # its BatchNorm must not take nine patches for data
    before = copy.deepcopy(stem.state_dict())
    with pytest.raises(ValueError, match="ConvPatchEmbedding see pixels"):
        MPP(stem)
    assert all(torch.equal(before[name], tensor) for name, tensor in stem.state_dict().items())
    assert all(part.training for part in stem.modules())


def test_the_leak_of_a_stem_is_real() -> None:
    """Put in after the check, a ConvStem lets pixels of masked patches through; PatchEmbedding does not."""
    changes = {}
    for name, embed in {
        "plain": PatchEmbedding(patch_size=4, dim=32),
        "stem": ConvStem(patch_size=4, dim=32),
    }.items():
        model = small_mpp(replace_prob=1.0, random_patch_prob=0.0).eval()
        model.backbone.patch_embed = embed
        images = colours(2, 3, 16, 16)
        logits, _, corruption = model.predict(images, seeded())
        hidden = (
            torch.zeros(2, 16, dtype=torch.bool).scatter(1, corruption.index, True).view(2, 1, 4, 1, 4, 1)
        )
        blocks = images.view(2, 3, 4, 4, 4, 4)
        repainted = torch.where(hidden, 1 - blocks, blocks).view_as(images)
        changes[name] = relative_error(model.predict(repainted, seeded())[0], logits)
    assert changes["plain"] == 0 and changes["stem"] > 0.01
