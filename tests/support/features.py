"""Features for the measures of lesson 09, and the judge of the linear probe."""

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

Data = tuple[Tensor, Tensor, Tensor, Tensor]


def blobs(seed: int = 0, train: int = 150, test: int = 90, d: int = 6, classes: int = 4) -> Data:
    """Overlapping clouds of points of very different lengths, as train and test features with labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (train + test,), generator=generator)
    features = torch.randn(classes, d, generator=generator)[labels]
    features = features + torch.randn(train + test, d, generator=generator)
    features *= 0.2 + 3 * torch.rand(train + test, 1, generator=generator)
    return features[:train], labels[:train], features[train:], labels[train:]


def named_by_scikit_learn(train: Tensor, labels: Tensor, test: Tensor, penalty: float) -> Tensor:
    """The labels that scikit-learn's logistic regression gives to test features: (test,), int64."""
    regression = LogisticRegression(C=1 / (penalty * len(train)), tol=1e-8, max_iter=10_000)
    judge = make_pipeline(StandardScaler(), regression).fit(train.double(), labels)
    return torch.tensor(judge.predict(test.double()))
