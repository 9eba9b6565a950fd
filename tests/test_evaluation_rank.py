"""The effective rank is e to the entropy of singular values, beside SciPy's."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch import Tensor

from vit_course.evaluation import effective_rank


@pytest.mark.parametrize("shape", [(50, 8), (5, 30), (1, 4), (40, 1)])
def test_it_is_the_exponential_of_scipys_entropy(shape: tuple[int, int]) -> None:
    features = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) + 0.5
    wanted = math.exp(entropy(np.linalg.svd(features.double().numpy(), compute_uv=False)))
    assert effective_rank(features) == pytest.approx(wanted, rel=1e-9)
    assert effective_rank(1e20 * features) == pytest.approx(wanted, rel=1e-6)
    assert 1 - 1e-9 <= effective_rank(features) <= min(shape) + 1e-9


@pytest.mark.parametrize(
    ("features", "rank"),
    [
        (torch.diag(torch.tensor([2.0, 1.0, 1.0])), 2**1.5),
        (torch.eye(6), 6.0),
        (torch.ones(9, 5), 1.0),
        (torch.tensor([[1.0, 2.0], [-2.0, -4.0]]), 1.0),
        (torch.zeros(4, 3), 0.0),
    ],
)
def test_ranks_known_by_hand(features: Tensor, rank: float) -> None:
    assert effective_rank(features) == pytest.approx(rank, abs=1e-5)


def test_turning_the_features_changes_nothing_and_nothing_is_changed() -> None:
    features = torch.randn(30, 6, requires_grad=True)
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    before = features.detach().clone()
    with torch.autocast("cpu", torch.bfloat16):
        found = effective_rank(features)
    assert found == pytest.approx(effective_rank(before.double() @ turn))
    assert torch.equal(features, before) and features.grad is None


@pytest.mark.parametrize(
    ("features", "error", "sentence"),
    [
        ([[1.0]], TypeError, "features must be a tensor"),
        (torch.ones(3, 2, dtype=torch.int64), TypeError, "features must be floats, got torch.int64"),
        (torch.ones(2, 3, 4), ValueError, r"axes \(b d\), got shape \(2, 3, 4\)"),
        (torch.ones(0, 3), ValueError, r"at least one, got shape \(0, 3\)"),
        (torch.tensor([[1.0, math.nan]]), ValueError, "must be finite"),
    ],
)
def test_refused_by_effective_rank(features: object, error: type, sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        effective_rank(features)
