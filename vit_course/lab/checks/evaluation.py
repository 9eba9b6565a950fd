"""Exercises of lesson 09: purity of neighbourhoods, PASCAL's average precision, a linear probe by algebra."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .exercise import Exercise, Mistake


def _blobs(seed: int, b: int, d: int, classes: int) -> tuple[Tensor, Tensor]:
    """Features (b, d) around one centre per class, of very different lengths, and their labels (b,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (b,), generator=generator)
    features = 1.5 * torch.randn(classes, d, generator=generator)[labels] + torch.randn(
        b, d, generator=generator
    )
    return features * (0.3 + 3 * torch.rand(b, 1, generator=generator)), labels


# ------------------------------------------------------------------------------------------- neighbour_purity


def neighbour_purity(features: Tensor, labels: Tensor, k: int) -> float:
    """Of the k nearest other rows by cosine, the share with the row's own label; mean over rows (b, d)."""
    return _purity(_cosine(features).fill_diagonal_(-2), labels, k)


def _cosine(features: Tensor) -> Tensor:
    directions = F.normalize(features, dim=1)
    return directions @ directions.T


def _purity(similarity: Tensor, labels: Tensor, k: int) -> float:
    nearest = similarity.topk(k).indices
    return (labels[nearest] == labels[:, None]).double().mean().item()


def _with_itself(features: Tensor, labels: Tensor, k: int) -> float:
    return _purity(_cosine(features), labels, k)


def _one_too_few(features: Tensor, labels: Tensor, k: int) -> float:
    nearest = _cosine(features).topk(k).indices[:, 1:]
    return (labels[nearest] == labels[:, None]).double().mean().item()


def _not_normalised(features: Tensor, labels: Tensor, k: int) -> float:
    return _purity((features @ features.T).fill_diagonal_(-torch.inf), labels, k)


def _by_distance(features: Tensor, labels: Tensor, k: int) -> float:
    return _purity((-torch.cdist(features, features)).fill_diagonal_(-torch.inf), labels, k)


def _farthest(features: Tensor, labels: Tensor, k: int) -> float:
    return _purity(-_cosine(features), labels, k)


def _majority(features: Tensor, labels: Tensor, k: int) -> float:
    nearest = _cosine(features).fill_diagonal_(-2).topk(k).indices
    return (labels[nearest].mode(dim=1).values == labels).double().mean().item()


NEIGHBOUR_PURITY = Exercise(
    name="neighbour_purity",
    solution=neighbour_purity,
    cases=((*_blobs(0, 40, 6, 4), 5), (*_blobs(1, 30, 4, 3), 3), (*_blobs(2, 50, 8, 5), 7)),
    praise=(
        "No training, no test set, and nobody was his own neighbour: the cheapest honest question to "
        "features."
    ),
    mistakes={
        "itself among the neighbours": Mistake(
            _with_itself,
            says=(
                "Each picture was counted among its own neighbours: it always agrees with itself. Put the "
                "diagonal of the similarities out of the way before topk, with fill_diagonal_(-2)."
            ),
        ),
        "one neighbour too few": Mistake(
            _one_too_few,
            says=(
                "The picture itself was dropped after topk(k), so only k - 1 others are left. Take k + "
                "1 and drop the first, or put the diagonal out of the way beforehand."
            ),
        ),
        "not normalised": Mistake(
            _not_normalised,
            says=(
                "Plain dot products: a long feature is then everybody's neighbour. The cosine wants rows "
                "of length one, F.normalize(features, dim=1)."
            ),
        ),
        "by distance": Mistake(
            _by_distance,
            says=(
                "These are neighbours by distance. They agree with those by cosine only where all features "
                "have one length; normalise the rows and take dot products."
            ),
        ),
        "the farthest": Mistake(
            _farthest,
            says=(
                "These are the k least similar pictures. topk gives the largest values, and a cosine is "
                "large where two are alike."
            ),
        ),
        "majority vote": Mistake(
            _majority,
            says=(
                "You let the neighbours vote and counted right answers: that is accuracy. Wanted is the "
                "share of neighbours with the right label, (labels[nearest] == labels[:, None])."
            ),
        ),
    },
)


# -------------------------------------------------------------------------------------- voc_average_precision


def _ranks(hits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Precision and recall after each rank (m,)."""
    found = hits.double().cumsum(dim=0)
    return found / torch.arange(1, len(hits) + 1), found / count


def _eleven(precision: Tensor, recall: Tensor, questions: int = 11) -> float:
    best = [
        max(precision[recall >= wanted / 10 - 1e-6].tolist(), default=0.0)
        for wanted in range(11 - questions, 11)
    ]
    return sum(best) / questions


def voc_average_precision(hits: Tensor, count: int) -> float:
    """Mean over the recalls 0, .1 … 1 of the best precision from there on; hits (m,), surest first."""
    return _eleven(*_ranks(hits, count))


def _over_detections(hits: Tensor, count: int) -> float:
    return _eleven(*_ranks(hits, max(int(hits.sum()), 1)))


def _first_rank(hits: Tensor, count: int) -> float:
    precision, recall = _ranks(hits, count)
    first = [precision[recall >= wanted / 10 - 1e-6][:1].tolist() for wanted in range(11)]
    return sum(values[0] for values in first if values) / 11


def _mean_at_hits(hits: Tensor, count: int) -> float:
    precision, _ = _ranks(hits, count)
    return (precision * hits).sum().item() / count


def _ten_questions(hits: Tensor, count: int) -> float:
    return _eleven(*_ranks(hits, count), questions=10)


def _skips_unreached(hits: Tensor, count: int) -> float:
    precision, recall = _ranks(hits, count)
    best = [precision[recall >= wanted / 10 - 1e-6] for wanted in range(11)]
    reached = [values.max().item() for values in best if len(values)]
    return sum(reached) / len(reached)


def _hundred_and_one(hits: Tensor, count: int) -> float:
    precision, recall = _ranks(hits, count)
    return (
        sum(max(precision[recall >= wanted / 100 - 1e-6].tolist(), default=0.0) for wanted in range(101))
        / 101
    )


def _hits(text: str) -> Tensor:
    return torch.tensor([float(letter) for letter in text])


VOC_AVERAGE_PRECISION = Exercise(
    name="voc_average_precision",
    solution=voc_average_precision,
    cases=((_hits("1010"), 3), (_hits("0110010"), 5), (_hits("1101101"), 10), (_hits("01"), 1)),
    praise=(
        "Eleven questions to a staircase. COCO asks 101, and the numbers differ: say which one you report."
    ),
    mistakes={
        "recall over the detected": Mistake(
            _over_detections,
            says=(
                "Your recall ends at 1: it was divided by the hits. Objects that nobody found count too: "
                "divide by `count`."
            ),
        ),
        "no staircase": Mistake(
            _first_rank,
            says=(
                "You took the precision at the first rank that reaches the recall. Wanted is the best at "
                "that rank or any later one: the staircase never climbs to the right."
            ),
        ),
        "mean precision at the hits": Mistake(
            _mean_at_hits,
            says=(
                "This is the mean of the precision at each hit, as search engines use it. VOC takes "
                "it at eleven fixed recalls, 0, 0.1 … 1."
            ),
        ),
        "ten questions": Mistake(
            _ten_questions,
            says=(
                "You took ten recalls. From 0 to 1 in steps of 0.1 there are eleven: recall 0 is one of them."
            ),
        ),
        "recalls nobody reached left out": Mistake(
            _skips_unreached,
            says=(
                "Recalls that no rank reaches were left out of the mean. They count as 0: whoever finds "
                "half cannot get full marks."
            ),
        ),
        "101 questions": Mistake(
            _hundred_and_one,
            says="That is COCO's number, from 101 recalls. VOC took eleven: 0, 0.1 … 1.",
        ),
    },
)


# ----------------------------------------------------------------------------------------------- ridge_scores


def ridge_scores(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, classes: int, penalty: float
) -> Tensor:
    """Least squares with a penalty, centred features to centred one-hot targets: scores (test, classes)."""
    return _ridge(train_features, train_labels, test_features, classes, penalty)


def _ridge(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    classes: int,
    penalty: float,
    *,
    centre: bool = True,
    offset: bool = True,
    own_mean: bool = False,
    times_b: bool = True,
) -> Tensor:
    targets = F.one_hot(train_labels, classes).to(train_features)
    mean = train_features.mean(dim=0) * centre
    share = targets.mean(dim=0)
    x, y = train_features - mean, targets - share * offset
    b, d = x.shape
    weight = torch.linalg.solve(x.T @ x + penalty * (b if times_b else 1) * torch.eye(d), x.T @ y)
    return (test_features - (test_features.mean(dim=0) if own_mean else mean)) @ weight + share * offset


def _no_penalty(*arguments: Any) -> Tensor:
    features, labels, tests, classes, _ = arguments
    return _ridge(features, labels, tests, classes, 0.0)


def _not_centred(*arguments: Any) -> Tensor:
    return _ridge(*arguments, centre=False)


def _without_offset(*arguments: Any) -> Tensor:
    features, labels, _, classes, _ = arguments
    return _ridge(*arguments) - F.one_hot(labels, classes).to(features).mean(dim=0)


def _test_mean(*arguments: Any) -> Tensor:
    return _ridge(*arguments, own_mean=True)


def _penalty_not_times_b(*arguments: Any) -> Tensor:
    return _ridge(*arguments, times_b=False)


def _training_scores(*arguments: Any) -> Tensor:
    features, labels, _, classes, penalty = arguments
    return _ridge(features, labels, features, classes, penalty)


def _ridge_case(seed: int, b: int, tests: int, d: int, classes: int, penalty: float) -> tuple:
    features, labels = _blobs(seed, b + tests, d, classes)
    features = features + torch.linspace(-2, 2, d)  # far from the origin: centring must show
    return features[:b], labels[:b], features[b:], classes, penalty


RIDGE_SCORES = Exercise(
    name="ridge_scores",
    solution=ridge_scores,
    cases=(_ridge_case(0, 40, 9, 5, 3, 0.1), _ridge_case(1, 60, 12, 7, 4, 0.5)),
    praise=(
        "A linear probe in one line of algebra. Its largest score names the class, and the test pictures "
        "were never asked for a mean."
    ),
    mistakes={
        "no penalty": Mistake(
            _no_penalty,
            says=(
                "The penalty is missing: these are plain least squares. Add b · penalty to the diagonal of "
                "XᵀX."
            ),
        ),
        "penalty not times b": Mistake(
            _penalty_not_times_b,
            says=(
                "The penalty was added as it is. XᵀX is a sum over b pictures, so the penalty that belongs "
                "to the mean is b · penalty."
            ),
        ),
        "features not centred": Mistake(
            _not_centred,
            says=(
                "The features were not centred. Without it the weights must also carry the mean, and the "
                "penalty punishes them for it: subtract train_features.mean(dim=0) from both sets."
            ),
        ),
        "offset forgotten": Mistake(
            _without_offset,
            says=(
                "The weights are right, the mean of the targets was not added back: your scores sum to 0 "
                "in each row, not to 1."
            ),
        ),
        "the test set's own mean": Mistake(
            _test_mean,
            says=(
                "The test pictures were centred by their own mean. That is a small leak: what one picture "
                "gets must not depend on the others that are asked with it. Use the training mean."
            ),
        ),
        "scores of the training pictures": Mistake(
            _training_scores,
            says="These are scores of the training pictures, one row for each. The test pictures are wanted.",
        ),
    },
)


EXERCISES: list[Exercise] = [NEIGHBOUR_PURITY, VOC_AVERAGE_PRECISION, RIDGE_SCORES]
