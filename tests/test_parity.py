"""The harness that compares models: what it prints, and that it fails where it should."""

import pytest
import torch
from torch import nn

from vit_course.lab.parity import disagreement, randomise, try_mistakes


def network() -> nn.Module:
    return randomise(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)))


def without_bias(model: nn.Module) -> None:
    model[0].bias.data.zero_()


IMAGES = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))


def test_the_same_weights_agree_and_wrong_versions_are_printed(capsys):
    assert disagreement(network(), network(), IMAGES) == 0
    try_mistakes(network, network(), IMAGES, {"no bias": without_bias})
    assert capsys.readouterr().out.startswith("no bias")


def test_a_mistake_that_does_not_show_is_named():
    with pytest.raises(AssertionError, match="does not see 'nothing': relative error 0"):
        try_mistakes(network, network(), IMAGES, {"no bias": without_bias, "nothing": lambda model: None})
