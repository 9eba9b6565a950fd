"""Rollout multiplies what the layers mixed, and refuses what does not multiply."""

import pytest
import torch
from support.attention import SMALL, noise, random_vit
from torch import Tensor

from vit_course.attention import AttentionLayer, record_attention, rollout
from vit_course.lab.parity import DIFFERENT, relative_error
from vit_course.vit import SimpleViT


def layer_of(weights: Tensor, kind: str = "global") -> AttentionLayer:
    return AttentionLayer(weights, kind, None, 0, kind)


def test_rollout_of_a_model() -> None:
    model = SimpleViT(**SMALL)
    with record_attention(model) as record:
        model(noise(2, 3, 16, 16))
    result = rollout(record)
    assert result.shape == (2, 16, 16) and (result >= 0).all()
    torch.testing.assert_close(result.sum(-1), torch.ones(2, 16))


def test_rollout_by_hand() -> None:
    identity = torch.eye(4)
    first, second = (noise(2, 3, 4, 4, seed=seed).softmax(-1) for seed in (1, 2))
    one, two = (first.mean(1) + identity) / 2, (second.mean(1) + identity) / 2
    torch.testing.assert_close(rollout([layer_of(first)]), one)
    torch.testing.assert_close(rollout([layer_of(first), layer_of(second)]), two @ one)
    assert relative_error(one @ two, two @ one) > DIFFERENT, "the order of the layers does not show"
    torch.testing.assert_close(rollout([layer_of(identity.expand(2, 3, 4, 4))] * 3), identity.expand(2, 4, 4))
    uniform = torch.full((1, 2, 4, 4), 0.25)
    torch.testing.assert_close(rollout([layer_of(uniform)] * 2), (0.25 * identity + 0.75 * uniform[:, 0]))
    torch.testing.assert_close(rollout([layer_of(first), layer_of(torch.ones(2, 3, 1, 9), "class")]), one)


def test_rollout_refuses_what_does_not_multiply() -> None:
    with pytest.raises(ValueError, match=r"\[4, 5\]"):
        rollout([layer_of(torch.ones(1, 1, 4, 4)), layer_of(torch.ones(1, 1, 5, 5))])
    with pytest.raises(ValueError, match="none"):
        rollout([layer_of(torch.ones(1, 1, 4, 4), "channel")])
    with (
        pytest.raises(ValueError, match="nothing was recorded yet"),
        record_attention(random_vit()) as record,
    ):
        rollout(record)
    with pytest.raises(TypeError, match="tensor"):
        rollout([torch.ones(1, 1, 4, 4)])
