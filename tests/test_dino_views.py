"""MultiCrop: two global views and local ones, each with a draw of its own."""

import math

import pytest
import torch
from support.unlabelled import draw

from vit_course import dino
from vit_course.dino import MultiCrop


def test_multicrop_gives_the_global_views_first() -> None:
    crops = MultiCrop(20, 12, 3)(draw(4, 3, 32, 32))
    assert [tuple(crop.shape) for crop in crops] == [(4, 3, 20, 20)] * 2 + [(4, 3, 12, 12)] * 3
    assert all(crop.isfinite().all() for crop in crops)
    assert len(MultiCrop(20, local_crops=0)(draw(4, 3, 32, 32))) == 2
    assert [len(MultiCrop().views), MultiCrop().views[0], MultiCrop().views[-1]] == [
        10,
        (224, (0.4, 1.0)),
        (96, (0.05, 0.4)),
    ]  # the paper's


def test_every_view_of_every_image_has_its_own_draw() -> None:
    """Six times one image: all views differ, where vit-pytorch draws once for the whole batch."""
    images = draw(1, 3, 32, 32).expand(6, -1, -1, -1)
    for recolour in (False, True):
        views = torch.cat(MultiCrop(16, 16, 1, recolour=recolour)(images)).flatten(1)
        distances = torch.cdist(views, views) + 99 * torch.eye(len(views))
        assert distances.min() > 0.1


def test_views_repeat_with_their_generator_and_leave_the_global_state() -> None:
    images, crop = draw(4, 3, 32, 32), MultiCrop(16, 8, 2, rotation=180.0)
    state = torch.get_rng_state()
    one, other, third = (crop(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, third, strict=True))
    assert torch.equal(state, torch.get_rng_state())


def test_recolouring_turns_the_hue_and_keeps_grey_grey_and_light_light() -> None:
    """A grey picture stays grey but for the noise; the lighter half stays the lighter; colours change."""
    torch.manual_seed(0)
    grey = torch.zeros(200, 3, 8, 8)
    grey[..., 4:] = 1.0
    changed = dino._recolour(grey, None)
    assert (changed - changed.mean(dim=1, keepdim=True)).abs().mean() < 0.05  # noise only
    steps = changed[..., 6:].mean(dim=(1, 2, 3)) - changed[..., :2].mean(dim=(1, 2, 3))
    assert steps.min() > 0.4 and steps.max() < 1.6  # the contrast, 0.5 to 1.5

    coloured = torch.zeros(200, 3, 8, 8)
    coloured[:, 0] = 1.0
    means = dino._recolour(coloured, None).mean(dim=(2, 3))
    hues = torch.atan2(
        math.sqrt(3) * (means[:, 1] - means[:, 2]), 2 * means[:, 0] - means[:, 1] - means[:, 2]
    )
    assert (hues.cos().mean() ** 2 + hues.sin().mean() ** 2).sqrt() < 0.25, (
        "hues are not spread over the circle"
    )


@pytest.mark.parametrize(
    "arguments, kind, message",
    [
        ({"global_size": 0}, ValueError, "global_size must be at least 1"),
        ({"local_size": 0}, ValueError, "local_size must be at least 1"),
        ({"local_crops": -1}, ValueError, "local_crops must be at least 0"),
        ({"global_scale": (0.9, 0.5)}, ValueError, r"global_scale must be two shares .*, got \(0.9, 0.5\)"),
        ({"local_scale": (0.0, 0.5)}, ValueError, r"local_scale must be two shares .*, got \(0.0, 0.5\)"),
        ({"local_scale": (0.5, 1.2)}, ValueError, "local_scale must be in 0 … 1, got 1.2"),
        ({"global_scale": (math.nan, 1.0)}, ValueError, "global_scale must be in 0 … 1, got nan"),
        ({"global_scale": 0.5}, TypeError, "global_scale must be a pair of numbers, got 0.5"),
        ({"local_scale": (0.1, 0.2, 0.3)}, TypeError, "local_scale must be a pair of numbers"),
        ({"rotation": -1.0}, ValueError, "rotation must be in 0 … 360, got -1.0"),
        ({"rotation": math.inf}, ValueError, "rotation must be in 0 … 360, got inf"),
    ],
)
def test_multicrop_refuses_what_does_not_fit_when_it_is_made(
    arguments: dict, kind: type[Exception], message: str
) -> None:
    """Also what concerns local crops where there are none: the next to change their number would meet it."""
    for local_crops in (0, 1):
        with pytest.raises(kind, match=message):
            MultiCrop(**{"global_size": 8, "local_size": 4, "local_crops": local_crops} | arguments)


def test_multicrop_refuses_images_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="must have 3 channels, got 1"):
        MultiCrop(8, 4, 1)(draw(2, 1, 16, 16))
    assert len(MultiCrop(8, 4, 1, recolour=False)(draw(2, 1, 16, 16))) == 3
