"""Nearest neighbours, to measure what pixels alone give away."""

import torch
import torch.nn.functional as F
from torch import Tensor


def knn(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, k: int = 20) -> float:
    """Share of right answers of weighted nearest neighbours by cosine, as in the DINO paper."""
    similarity, neighbours = (F.normalize(test, dim=1) @ F.normalize(train, dim=1).T).topk(k)
    votes = torch.zeros(len(test), 10).scatter_add_(1, train_labels[neighbours], (similarity / 0.07).exp())
    return (votes.argmax(1) == test_labels).float().mean().item()
