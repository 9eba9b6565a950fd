"""Exercises of lesson 09: features, neighbours, a linear layer, ranks, masks, and three that go on."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vit_course.distillation import DistilledViT
from vit_course.evaluation import (
    attention_masks,
    effective_rank,
    extract_features,
    jaccard,
    knn_accuracy,
    logistic_regression,
)
from vit_course.training import eval_mode
from vit_course.vit import SimpleViT, ViT

from .exercise import Exercise, Mistake, filled

_generator = torch.Generator().manual_seed(9)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=_generator)


def _blobs(seed: int, b: int, d: int, classes: int) -> tuple[Tensor, Tensor]:
    """Features (b, d) around one centre per class, of very different lengths, and their labels (b,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (b,), generator=generator)
    features = 1.5 * torch.randn(classes, d, generator=generator)[labels] + torch.randn(
        b, d, generator=generator
    )
    return features * (0.3 + 3 * torch.rand(b, 1, generator=generator)), labels


# ---- step 1: extract_features ------------------------------------------------------------------------------


class _Map(nn.Module):
    """The least of a model that gives a map; it says, for its own purposes, that it has a class token."""

    num_prefix_tokens = 1

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drop = nn.Conv2d(3, 6, 4, stride=4), nn.Dropout(0.5)

    def forward_features(self, images: Tensor) -> Tensor:
        return self.drop(self.layer(images))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_features(images).mean(dim=(-2, -1))


_SIZES: dict[str, Any] = dict(image_size=8, patch_size=4, num_classes=6, dim=6, depth=1, heads=2, mlp_dim=12)


def _model(kind: Callable[..., nn.Module], **sizes: Any) -> nn.Module:
    """A model in training with a part that someone froze."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        model = filled(kind(**sizes)).train()
    next(model.children()).eval()
    return model


def _watched(function: Callable, case: tuple[Any, Tensor, str | None]) -> Any:
    """The features, and what has become of the model: its modes, and whether gradients were recorded."""
    backbone, images, pool = case
    with torch.enable_grad():
        features = function(backbone, images, pool)
    if features is None or features is Ellipsis:
        return features
    modes = torch.tensor([part.training for part in backbone.modules()])
    return features, modes, bool(getattr(features, "requires_grad", False))


def _features_by(choose: Callable[[Tensor, int, str | None], Tensor]) -> Callable:
    """A wrong answer that takes the right tokens, with the number of class tokens, and chooses badly."""

    @torch.no_grad()
    def wrong(backbone: Any, images: Tensor, pool: str | None) -> Tensor:
        with eval_mode(backbone):
            features = backbone.forward_features(images)
        prefix = backbone.num_prefix_tokens
        if features.ndim == 4:
            features, prefix = rearrange(features, "b d h w -> b (h w) d"), 0
        return choose(features, prefix, pool)

    return wrong


def _chosen(features: Tensor, prefix: int, pool: str | None) -> Tensor:
    takes_class = pool == "cls" or (pool is None and prefix > 0)
    return features[:, 0] if takes_class else features[:, prefix:].mean(dim=1)


def _mean_of_all(features: Tensor, prefix: int, pool: str | None) -> Tensor:
    chosen = _chosen(features, prefix, pool)
    return chosen if pool == "cls" or (pool is None and prefix) else features.mean(dim=1)


def _one_prefix(features: Tensor, prefix: int, pool: str | None) -> Tensor:
    return _chosen(features, prefix, pool) if pool != "mean" else features[:, min(prefix, 1) :].mean(dim=1)


def _always_mean(features: Tensor, prefix: int, pool: str | None) -> Tensor:
    return features[:, 0] if pool == "cls" else features[:, prefix:].mean(dim=1)


def _always_first(features: Tensor, prefix: int, pool: str | None) -> Tensor:
    return _chosen(features, prefix, pool) if pool == "mean" else features[:, 0]


def _pool_ignored(features: Tensor, prefix: int, pool: str | None) -> Tensor:
    return _chosen(features, prefix, None)


def _last_token(features: Tensor, prefix: int, pool: str | None) -> Tensor:
    takes_class = pool == "cls" or (pool is None and prefix > 0)
    return features[:, -1] if takes_class else features[:, prefix:].mean(dim=1)


def _right_features(backbone: Any, images: Tensor, pool: str | None) -> Tensor:
    features = backbone.forward_features(images)
    prefix = backbone.num_prefix_tokens
    if features.ndim == 4:
        features, prefix = rearrange(features, "b d h w -> b (h w) d"), 0
    return _chosen(features, prefix, pool)


def _in_the_mode_it_has(backbone: Any, images: Tensor, pool: str | None) -> Tensor:
    with torch.no_grad():
        return _right_features(backbone, images, pool)


def _batches_in_the_mode_it_has(backbone: Any, images: Tensor, pool: str | None) -> Tensor:
    return torch.cat([_in_the_mode_it_has(backbone, batch, pool) for batch in images.split(100)])


def _the_whole_model(backbone: Any, images: Tensor, pool: str | None) -> Tensor:
    with torch.no_grad(), eval_mode(backbone):
        return backbone(images)


def _prefix_of_one(backbone: Any, images: Tensor, pool: str | None) -> Tensor:
    with torch.no_grad(), eval_mode(backbone):
        features = backbone.forward_features(images)
    if features.ndim == 4:
        return features.mean(dim=(-2, -1))
    return _chosen(features, 1, pool)


def _left_in_eval(backbone: Any, images: Tensor, pool: str | None) -> Tensor:
    return _in_the_mode_it_has(backbone.eval(), images, pool)


def _all_in_training_afterwards(backbone: Any, images: Tensor, pool: str | None) -> Tensor:
    features = _left_in_eval(backbone, images, pool)
    backbone.train()
    return features


def _with_gradients(backbone: Any, images: Tensor, pool: str | None) -> Tensor:
    with eval_mode(backbone):
        return _right_features(backbone, images, pool)


def _left_in_eval_with_gradients(backbone: Any, images: Tensor, pool: str | None) -> Tensor:
    return _right_features(backbone.eval(), images, pool)


def _map_with_prefix(backbone: Any, images: Tensor, pool: str | None) -> Tensor:
    with torch.no_grad(), eval_mode(backbone):
        features = backbone.forward_features(images)
    if features.ndim == 4:
        features = rearrange(features, "b d h w -> b (h w) d")
    return _chosen(features, backbone.num_prefix_tokens, pool)


def _first_batch(backbone: Any, images: Tensor, pool: str | None) -> Tensor:
    return extract_features(backbone, images[:100], pool)


_MODE = (
    "The model answered in the mode in which it was. In training, dropout gives a picture other features at "
    "each call: use eval_mode around the loop."
)

EXTRACT_FEATURES = Exercise(
    name="extract_features",
    solution=extract_features,
    cases=(
        (_model(ViT, **_SIZES, dropout=0.4), _random(3, 3, 8, 8), None),
        (_model(DistilledViT, **_SIZES, dropout=0.4), _random(103, 3, 8, 8), "mean"),
        (_model(ViT, **_SIZES, dropout=0.4), _random(2, 3, 8, 12), "cls"),
        (_model(SimpleViT, **(_SIZES | {"dim": 8})), _random(2, 3, 8, 8), None),
        (_model(_Map), _random(2, 3, 8, 12), None),
    ),
    praise="The same numbers at every call, whatever the mode was, and the model is as it was before.",
    errors={
        "stack expects each tensor": "The last batch may be smaller: torch.cat joins batches of any size."
    },
    mistakes={
        "the mode that it has": Mistake(_batches_in_the_mode_it_has, _MODE),
        "the mode that it has, all images at once": Mistake(_in_the_mode_it_has, _MODE),
        "the whole model": Mistake(
            _the_whole_model,
            "You called the model itself, which goes on through its head. The features are what "
            "forward_features gives.",
        ),
        "left in eval": Mistake(
            _left_in_eval,
            "The features are right, but the model is left in evaluation mode; it was in training. eval_mode "
            "gives every part its mode back.",
        ),
        "a frozen part woken": Mistake(
            _all_in_training_afterwards,
            "The features are right, but train() reaches every part: one that its owner had frozen in "
            "evaluation mode is in training now. eval_mode remembers the mode of each part.",
        ),
        "with gradients": Mistake(
            _with_gradients,
            "The features are right, but they still hold the whole graph in memory: use torch.no_grad().",
        ),
        "left in eval, with gradients": Mistake(
            _left_in_eval_with_gradients,
            "The features are right, but they carry gradients, and the model is left in evaluation mode. It "
            "takes both: torch.no_grad() and eval_mode.",
        ),
        "class tokens in the mean": Mistake(
            _features_by(_mean_of_all),
            "The mean runs over all tokens. It should leave the first num_prefix_tokens out: they are no "
            "patches.",
        ),
        "one class token left out": Mistake(
            _features_by(_one_prefix),
            "You leave one token out of the mean. A distilled ViT has two before its patches: ask "
            "num_prefix_tokens.",
        ),
        "one class token everywhere": Mistake(
            _prefix_of_one,
            "You counted on one class token. Some models have two, others none: ask num_prefix_tokens.",
        ),
        "the first token by default": Mistake(
            _features_by(_always_first),
            "For pool=None you took the first token of a model that has no class token: it is a patch there. "
            "None means: the class token if there is one, else the mean.",
        ),
        "the mean by default": Mistake(
            _features_by(_always_mean),
            "For pool=None you took the mean where there is a class token. None means: the class token if "
            "there is one, else the mean.",
        ),
        "pool ignored": Mistake(
            _features_by(_pool_ignored),
            'pool="mean" gave the class token. Where the caller says what to take, take that.',
        ),
        "the last token": Mistake(
            _features_by(_last_token),
            "You took the last token, which is a patch. Class tokens stand first.",
        ),
        "a map's prefix": Mistake(
            _map_with_prefix,
            "Of a map you took a cell for a class token, or left one out. A map has none, whatever "
            "num_prefix_tokens says.",
        ),
        "the first batch only": Mistake(
            _first_batch,
            lambda answer: (
                "Of 103 pictures you returned 100: collect the features of all batches, then torch.cat."
            ),
        ),
    },
    calls=_watched,
    watches=True,
)


# ---- step 2: knn_accuracy ----------------------------------------------------------------------------------


def _share_by(
    similarity: Tensor,
    labels: Tensor,
    test_labels: Tensor,
    k: int,
    temperature: float,
    weigh: Callable[[Tensor, float], Tensor] | None = None,
) -> float:
    """The share that is right, by similarities (test, train); a vote weighs exp(similarity / temperature)."""
    near, nearest = similarity.topk(min(k, similarity.shape[1]))
    if weigh is None:
        weights = ((near - near[:, :1]) / temperature).exp()
    else:
        weights = weigh(near, temperature)
    votes = weights.new_zeros(len(near), int(labels.max()) + 1).scatter_add_(1, labels[nearest], weights)
    return (votes.argmax(dim=1) == test_labels).double().mean().item()


def _cosines(train: Tensor, test: Tensor) -> Tensor:
    return F.normalize(test, dim=1) @ F.normalize(train, dim=1).T


def _knn(
    similarity: Callable[[Tensor, Tensor], Tensor] = _cosines,
    weigh: Callable[[Tensor, float], Tensor] | None = None,
) -> Callable:
    """A wrong answer with another similarity of (train, d) and (test, d), or with other weights."""

    def wrong(
        train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, k: int, temperature: float
    ) -> float:
        return _share_by(similarity(train, test), labels, test_labels, k, temperature, weigh)

    return wrong


def _one_side(train: Tensor, test: Tensor) -> Tensor:
    return test @ F.normalize(train, dim=1).T


def _votes_overwritten(
    train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, k: int, temperature: float
) -> float:
    near, nearest = _cosines(train, test).topk(min(k, len(train)))
    weights = ((near - near[:, :1]) / temperature).exp()
    votes = weights.new_zeros(len(test), int(labels.max()) + 1).scatter_(1, labels[nearest], weights)
    return (votes.argmax(dim=1) == test_labels).double().mean().item()


def _not_share(
    train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, k: int, temperature: float
) -> float:
    return knn_accuracy(train, labels, test, test_labels, k, temperature) * len(test)


def _per_cent(
    train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, k: int, temperature: float
) -> float:
    return knn_accuracy(train, labels, test, test_labels, k, temperature) * 100


def _nearest_alone(
    train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, k: int, temperature: float
) -> float:
    return knn_accuracy(train, labels, test, test_labels, 1, temperature)


def _knn_case(seed: int, b: int, tests: int, k: int, temperature: float) -> tuple:
    features, labels = _blobs(seed, b + tests, 4, 5)
    return features[:b], labels[:b], features[b:], labels[b:], k, temperature


KNN_ACCURACY = Exercise(
    name="knn_accuracy",
    solution=knn_accuracy,
    cases=(
        _knn_case(10, 60, 80, 10, 0.1),
        _knn_case(11, 12, 50, 20, 0.3),
        _knn_case(12, 80, 60, 15, 0.004),
    ),
    praise="Also where fewer than k pictures are known, and where exp(1 / 0.004) would overflow.",
    errors={
        "k out of range": "There are fewer training pictures than k: then all vote. Take the smaller number."
    },
    mistakes={
        "rows not normalised": Mistake(
            _knn(lambda train, test: test @ train.T),
            "Plain dot products: a long row of features is then everybody's neighbour. A cosine wants rows "
            "of length one, F.normalize(features, dim=1).",
        ),
        "one side normalised": Mistake(
            _knn(_one_side),
            "Only the training rows have length one: a long test row then weighs its votes as at another "
            "temperature. Normalise both.",
        ),
        "votes overwritten": Mistake(
            _votes_overwritten,
            "Where several neighbours are of one class, only the last one's weight is left: scatter_ "
            "overwrites, scatter_add_ adds up.",
        ),
        "columns normalised": Mistake(
            _knn(lambda train, test: F.normalize(test, dim=0) @ F.normalize(train, dim=0).T),
            "The columns were normalised, not the rows: dim=1, so that each picture's features have length "
            "one.",
        ),
        "by distance": Mistake(
            _knn(lambda train, test: -torch.cdist(test, train)),
            "These are neighbours by distance, which agree with those by cosine only where all rows have one "
            "length.",
        ),
        "the farthest": Mistake(
            _knn(lambda train, test: -_cosines(train, test)),
            "The k least similar pictures voted: topk gives the largest values, and a cosine is large where "
            "two are alike.",
        ),
        "temperature multiplied": Mistake(
            _knn(weigh=lambda near, temperature: ((near - near[:, :1]) * temperature).exp()),
            "The similarity was multiplied by the temperature, so all votes weigh nearly the same. Divide.",
        ),
        "all votes alike": Mistake(
            _knn(weigh=lambda near, temperature: torch.ones_like(near)),
            "Every neighbour has one vote here. Each weighs exp(cosine / temperature).",
        ),
        "no temperature": Mistake(
            _knn(weigh=lambda near, temperature: near.exp()),
            "The temperature is missing: a vote weighs exp(cosine / temperature).",
        ),
        "the cosine as weight": Mistake(
            _knn(weigh=lambda near, temperature: near),
            "The votes weigh the cosine itself. Take exp(cosine / temperature).",
        ),
        "overflow": Mistake(
            _knn(weigh=lambda near, temperature: (near / temperature).exp()),
            "At a temperature of 0.004 your votes are infinite: subtract each row's largest similarity "
            "before exp, which changes no winner.",
        ),
        "the nearest alone": Mistake(
            _nearest_alone,
            "Only the nearest picture was heard. All k vote, the nearer the heavier.",
        ),
        "a number of pictures": Mistake(
            _not_share,
            lambda answer: (
                f"{answer:.0f} is a number of pictures: divide by how many test pictures there are."
            ),
        ),
        "per cent": Mistake(_per_cent, "These are per cent. Wanted is a share in 0 … 1."),
    },
)


# ---- step 3: logistic_regression ---------------------------------------------------------------------------


def _fitted(function: Callable, case: tuple) -> Any:
    """A fit, with the bias of mean 0: of the biases that fit, which differ by one number, all are right."""
    with torch.enable_grad():
        answer = function(*case)
    if isinstance(answer, tuple | list) and len(answer) == 2 and all(isinstance(p, Tensor) for p in answer):
        weight, bias = answer
        return weight, bias - bias.mean() if bias.is_floating_point() else bias
    return answer


def _solved(
    features: Tensor,
    labels: Tensor,
    classes: int,
    penalty: float,
    *,
    on_bias: float = 0.0,
    with_bias: bool = True,
    size_of: Callable[[Tensor], Tensor] = lambda weight: weight.square().sum(),
    clears: bool = True,
) -> tuple[Tensor, Tensor]:
    """Like the solution, with an objective that may differ from it."""
    # Gradients that pile up go nowhere in particular: only the same precision repeats where.
    features = features.double() if clears else features
    weight = features.new_zeros(classes, features.shape[1], requires_grad=True)
    bias = features.new_zeros(classes, requires_grad=True)
    parameters = [weight, bias] if with_bias else [weight]
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=100 if clears else 500,
        tolerance_grad=1e-5 if clears else 1e-7,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        if clears:
            optimizer.zero_grad()
        size = size_of(weight) + on_bias * bias.square().sum()
        loss = F.cross_entropy(features @ weight.T + bias, labels) + penalty / 2 * size
        loss.backward()
        return loss

    optimizer.step(objective)
    return weight.detach(), bias.detach()


def _penalty_times(factor: Callable[[Tensor, int], float]) -> Callable:
    """A wrong answer whose penalty is a multiple of the right one."""
    return lambda features, labels, classes, penalty: _solved(
        features, labels, classes, penalty * factor(features, classes)
    )


def _fit_case(seed: int, b: int, d: int, classes: int, penalty: float) -> tuple:
    features, labels = _blobs(seed, b, d, classes)
    return 0.5 * features + torch.linspace(-0.5, 0.5, d), labels, classes, penalty


def _transposed(features: Tensor, labels: Tensor, classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    weight, bias = _solved(features, labels, classes, penalty)
    return weight.T, bias


LOGISTIC_REGRESSION = Exercise(
    name="logistic_regression",
    solution=logistic_regression,
    cases=(_fit_case(20, 40, 4, 3, 0.2), _fit_case(21, 30, 3, 4, 0.1)),
    praise="The bottom of a convex sum: any other way down ends at the same weights.",
    mistakes={
        "penalty not halved": Mistake(
            _penalty_times(lambda features, classes: 2.0),
            "Your weights are a little too small: the price is penalty / 2 times the sum of squares.",
        ),
        "penalty averaged": Mistake(
            _penalty_times(lambda features, classes: 1 / (classes * features.shape[1])),
            "Your weights are too large: the squares are summed over all weights, not averaged.",
        ),
        "cross-entropy summed": Mistake(
            _penalty_times(lambda features, classes: 1 / len(features)),
            "Your weights are too large: the cross-entropy is a mean over the pictures; summed, it outweighs "
            "the penalty.",
        ),
        "no penalty": Mistake(
            _penalty_times(lambda features, classes: 0.0),
            "The penalty is missing: add penalty / 2 times the sum of the squared weights.",
        ),
        "the length, not its square": Mistake(
            lambda *arguments: _solved(*arguments, size_of=torch.norm),
            "The price is on the length of the weights, weight.norm(). It should be penalty / 2 times the "
            "sum of their squares.",
        ),
        "gradients not cleared": Mistake(
            lambda *arguments: _solved(*arguments, clears=False),
            "Each call of the objective adds its gradients to those of the calls before: begin it with "
            "optimizer.zero_grad().",
        ),
        "the bias pays too": Mistake(
            lambda *arguments: _solved(*arguments, on_bias=1.0),
            "The bias pays a penalty here. It should cost nothing, or the result depends on where the "
            "features' zero lies.",
        ),
        "no bias": Mistake(
            lambda *arguments: _solved(*arguments, with_bias=False),
            "There is no bias in it: classes that are more frequent, and features that are not centred, need "
            "one.",
        ),
        "transposed": Mistake(
            _transposed,
            lambda answer: (
                f"Your weight has the shape {tuple(answer[0].shape)}: as in nn.Linear it is (classes, d), "
                "and logits are features @ weight.T + bias."
            ),
        ),
    },
    errors={
        "not 'NoneType'": "optimizer.step(objective) needs the loss: end the objective with return loss."
    },
    unknown=(
        "the gradient of the sum is not zero at your weights. If your loss is this sum, train on until it no "
        "longer falls, with gradients cleared at each step; if it has stopped falling, it is another sum."
    ),
    tolerance=3e-3,
    calls=_fitted,
)


# ---- step 4: effective_rank --------------------------------------------------------------------------------


def _rank_of_shares(values: Callable[[Tensor], Tensor]) -> Callable[[Tensor], float]:
    """A wrong answer: e to the entropy of other shares (…,) of features (b, d)."""

    def wrong(features: Tensor) -> float:
        shares = values(features.double())
        return torch.special.entr(shares).sum().exp().item()

    return wrong


def _shares(features: Tensor) -> Tensor:
    lengths = torch.linalg.svdvals(features.double())
    return lengths / lengths.sum()


def _of_squares(features: Tensor) -> Tensor:
    return _shares(features) ** 2 / (_shares(features) ** 2).sum()


def _bits(features: Tensor) -> float:
    shares = _shares(features)
    return (-(shares * shares.log2()).sum()).exp().item()


def _by_the_formula(features: Tensor) -> float:
    shares = torch.linalg.svdvals(features)
    shares = shares / shares.sum()
    return (-(shares * shares.log()).sum()).exp().item()


def _about_shares(answer: Callable, says: str | Callable[[Any], str]) -> Mistake:
    """A mistake that shows in the first three cases; the last is about a share of 0."""
    return Mistake(answer, says, cases=3)


# Singular values near 1: e to the entropy of what is no share stays within float32. Three directions and the
# common one, exactly: whole numbers over a power of two.
_TALL, _SCALED = 0.1 * (_random(20, 6) + 1), 0.1 * _random(8, 4) * torch.tensor([4.0, 2.0, 1.0, 0.2])
_FLAT = ((4 * _random(12, 3)).round() @ (4 * _random(3, 5)).round() + 8) / 256

EFFECTIVE_RANK = Exercise(
    name="effective_rank",
    solution=effective_rank,
    cases=((_TALL,), (_SCALED,), (_FLAT,), (torch.tensor([[1.0, 0.0], [2.0, 0.0]]),)),
    praise="No label, no second set, no choice to make: it can run beside any training.",
    mistakes={
        "entropy alone": _about_shares(
            lambda features: torch.special.entr(_shares(features)).sum().item(),
            lambda answer: f"{answer:.2f} is the entropy. Its exponential is a number of directions.",
        ),
        "squared shares": _about_shares(
            _rank_of_shares(_of_squares),
            "These are shares of the squares, that is of the variance. Both papers take the singular values "
            "themselves.",
        ),
        "centred": _about_shares(
            _rank_of_shares(lambda features: _shares(features - features.mean(dim=0))),
            "You took the mean out first. That is the rank of the covariance; both papers take the features "
            "as they are, so that one common direction counts as one.",
        ),
        "centred, squared shares": _about_shares(
            _rank_of_shares(lambda features: _of_squares(features - features.mean(dim=0))),
            "Two things differ: the mean was taken out, and the shares are of squares. The papers take the "
            "singular values of the features as they are.",
        ),
        "rows of length one": _about_shares(
            _rank_of_shares(lambda features: _shares(F.normalize(features, dim=1))),
            "The rows were normalised first. They count as they are here.",
        ),
        "bits": _about_shares(
            _bits,
            "You mix bases: with a logarithm to base 2 it is 2 to the entropy, with the natural one e to it.",
        ),
        "plain rank": _about_shares(
            lambda features: float(torch.linalg.matrix_rank(features.double())),
            lambda answer: (
                f"{answer:.0f} is the rank: it counts a direction of length 0.001 like one of length 1000. "
                "The effective rank weighs them."
            ),
        ),
        "not shares": _about_shares(
            _rank_of_shares(torch.linalg.svdvals),
            "The singular values were not divided by their sum: entropy is of shares that sum to one.",
        ),
        "a share of zero": Mistake(
            _by_the_formula,
            "Where a singular value is 0, you compute 0 · log 0, which is nan. torch.special.entr gives 0.",
        ),
        "sign": _about_shares(
            lambda features: (-torch.special.entr(_shares(features)).sum()).exp().item(),
            lambda answer: f"{answer:.2f} is below one: the sign of the entropy is turned round.",
        ),
    },
)


# ---- step 5: attention_masks, jaccard ----------------------------------------------------------------------


def _kept(keep_of: Callable[[Tensor, Tensor, float], Tensor]) -> Callable[[Tensor, float], Tensor]:
    """A wrong answer that sorts rightly and then keeps, by sorted shares and what was held before, badly."""

    def wrong(weights: Tensor, keep: float) -> Tensor:
        shares = weights.double() / weights.double().sum(dim=-1, keepdim=True)
        ordered, order = shares.sort(dim=-1, descending=True, stable=True)
        kept = keep_of(ordered, ordered.cumsum(dim=-1) - ordered, keep)
        return torch.zeros_like(kept).scatter(-1, order, kept)

    return wrong


def _first(ordered: Tensor, keep: float, whole: Callable[[float], int] = math.ceil) -> Tensor:
    """The first patches of each row (…, n), a share of their number."""
    n = ordered.shape[-1]
    return (torch.arange(n) < whole(keep * n)).expand(ordered.shape)


def _not_put_back(weights: Tensor, keep: float) -> Tensor:
    ordered = weights.sort(dim=-1, descending=True).values
    return attention_masks(ordered, keep)


def _gathered(weights: Tensor, keep: float) -> Tensor:
    ordered, order = weights.sort(dim=-1, descending=True)
    return attention_masks(ordered, keep).gather(-1, order)


def _lightest(weights: Tensor, keep: float) -> Tensor:
    shares = weights.double() / weights.double().sum(dim=-1, keepdim=True)
    ordered, order = shares.sort(dim=-1, stable=True)
    kept = ordered.cumsum(dim=-1) - ordered < keep * (1 - 1e-6)
    return torch.zeros_like(kept).scatter(-1, order, kept)


def _not_of_the_row(weights: Tensor, keep: float) -> Tensor:
    ordered, order = weights.double().sort(dim=-1, descending=True, stable=True)
    kept = ordered.cumsum(dim=-1) - ordered < keep * (1 - 1e-6)
    return torch.zeros_like(kept).scatter(-1, order, kept)


def _rows(*shape: int) -> Tensor:
    """Rows of weights, some much heavier than others, which do not sum to one."""
    return torch.rand(*shape, generator=_generator) ** 3


# 0.59 + 0.21 is 0.8, but less in floats of 32 and of 64 bits; and the other row has a single heavy patch.
_EXACT = torch.tensor([[[0.59, 0.21, 0.11, 0.09], [0.02, 0.03, 0.91, 0.04]]])
_HALVES = torch.tensor([[[4.0, 2.0, 1.0, 1.0]]])  # the first holds a half, exactly

_SHARE_OF_PATCHES = (
    "You kept a share of the patches. Wanted are the fewest that hold this share of the attention."
)

ATTENTION_MASKS = Exercise(
    name="attention_masks",
    solution=attention_masks,
    cases=((_rows(2, 3, 9), 0.6), (_EXACT, 0.8), (3 * _rows(2, 1, 16), 0.3), (_HALVES, 0.5)),
    praise="The fewest patches that hold the share, each row for itself, with exactly reached counting.",
    mistakes={
        "one patch too few": Mistake(
            _kept(lambda ordered, before, keep: before + ordered <= keep * (1 + 1e-6)),
            "The last patch is missing: those kept hold less than the share. Keep a patch if the ones before "
            "it held less than the share.",
            cases=1,
        ),
        "one patch too many": Mistake(
            _kept(lambda ordered, before, keep: before - ordered.roll(1, -1) * (before > 0) < keep),
            "One patch too many: those before it held the share already.",
        ),
        "rounding": Mistake(
            _kept(lambda ordered, before, keep: before < keep),
            "0.59 + 0.21 of 1 is a share of 0.8, which floats miss by the last bit, so you kept a third "
            "patch. Allow a millionth.",
        ),
        "or equal": Mistake(
            _kept(lambda ordered, before, keep: before <= keep),
            "A patch was kept although those before it held the share already: compare with `<`, not `<=`, "
            "and with a millionth less, since floats may miss the share by the last bit.",
        ),
        "gathered": Mistake(
            _gathered,
            "The right number of patches, in the wrong places: gather reads at the places in `order`, "
            "scatter writes there.",
        ),
        "not put back": Mistake(
            _not_put_back,
            "Your masks begin with the patches that they keep: they are still in sorted order. scatter puts "
            "them back.",
        ),
        "the lightest": Mistake(
            _lightest, "You began with the lightest patches. Sort descending: heaviest first."
        ),
        "a share of the patches": Mistake(
            _kept(lambda ordered, before, keep: _first(ordered, keep)),
            _SHARE_OF_PATCHES,
        ),
        "a share of the patches, rounded down": Mistake(
            _kept(lambda ordered, before, keep: _first(ordered, keep, math.floor)), _SHARE_OF_PATCHES
        ),
        "a threshold": Mistake(
            lambda weights, keep: weights >= keep * weights.amax(dim=-1, keepdim=True),
            "You kept patches above a share of the largest weight. Wanted are the fewest that together hold "
            "the share.",
        ),
        "not of the row's sum": Mistake(
            _not_of_the_row,
            "Rows need not sum to one: the share is of each row's own sum.",
        ),
        "inverted": Mistake(
            lambda weights, keep: ~attention_masks(weights, keep),
            "These are the patches that were not kept.",
        ),
    },
)


def _masks(*shape: int, share: float = 0.4) -> Tensor:
    return torch.rand(*shape, generator=_generator) < share


def _overlap(found: Tensor, truth: Tensor, empty: float = 1.0, dims: tuple[int, ...] = (-2, -1)) -> Tensor:
    both, either = (found & truth).sum(dim=dims), (found | truth).sum(dim=dims)
    return torch.where(either > 0, both / either.clamp(min=1), empty)


def _dice(found: Tensor, truth: Tensor) -> Tensor:
    iou = jaccard(found, truth)
    return 2 * iou / (1 + iou)


def _both(found: Tensor, truth: Tensor) -> Tensor:
    return (found & truth).sum(dim=(-2, -1))


_SOME = _masks(3, 4, 5)
_SOME[1] = False

JACCARD = Exercise(
    name="jaccard",
    solution=jaccard,
    cases=(
        (_masks(4, 3, 5), _masks(4, 3, 5)),
        (_masks(2, 3, 4, 4), _masks(2, 1, 4, 4)),
        (_SOME, _SOME & _masks(3, 4, 5, share=0.6)),
    ),
    praise="One number for each pair of masks, and 1 where there is nothing to find and nothing was found.",
    mistakes={
        "dice": Mistake(
            _dice,
            "This is the Dice index, twice the intersection by the sum of both areas. Jaccard divides by the "
            "union.",
            cases=1,
        ),
        "the sum of both areas": Mistake(
            lambda found, truth: _dice(found, truth) / 2,
            "You divided by the sum of both areas, which counts the intersection twice. Divide by the union.",
            cases=1,
        ),
        "precision": Mistake(
            lambda found, truth: _both(found, truth) / found.sum(dim=(-2, -1)),
            "You divided by the size of what was found: that is precision. A tiny mask inside the object "
            "would be perfect. Divide by the union.",
            cases=1,
        ),
        "recall": Mistake(
            lambda found, truth: _both(found, truth) / truth.sum(dim=(-2, -1)),
            "You divided by the size of the object: that is recall. A mask of the whole picture would be "
            "perfect. Divide by the union.",
            cases=1,
        ),
        "accuracy": Mistake(
            lambda found, truth: (found == truth).double().mean(dim=(-2, -1)),
            "This is the share of pixels on which the masks agree, mostly background. Leave out the pixels "
            "that are in neither.",
        ),
        "all pictures at once": Mistake(
            lambda found, truth: _overlap(found, truth, dims=tuple(range(max(found.ndim, truth.ndim)))),
            "You summed over all pictures: one number came out. Wanted is one for each: sum over the last "
            "two axes.",
        ),
        "empty is no number": Mistake(
            lambda found, truth: _overlap(found, truth, empty=float("nan")),
            "Where both masks are empty you divide zero by zero. They agree: 1.",
        ),
        "empty is zero": Mistake(
            lambda found, truth: _overlap(found, truth, empty=0.0),
            "Two empty masks got 0. They agree: 1.",
        ),
        "one minus": Mistake(
            lambda found, truth: 1 - jaccard(found, truth),
            "This is the Jaccard distance, one minus the index.",
        ),
    },
)


# ---- practise: neighbour_purity ----------------------------------------------------------------------------


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


def _one_more_with_itself(features: Tensor, labels: Tensor, k: int) -> float:
    return _purity(_cosine(features), labels, k + 1)


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
        "No training, no test set, and no picture was its own neighbour: the cheapest measure of features."
    ),
    mistakes={
        "itself among the neighbours": Mistake(
            _with_itself,
            says=(
                "Each picture was counted among its own neighbours: it always agrees with itself. Put the "
                "diagonal of the similarities out of the way before topk, with fill_diagonal_(-2)."
            ),
        ),
        "itself among k + 1": Mistake(
            _one_more_with_itself,
            says=(
                "You took k + 1, and each picture is still the first of its own neighbours: drop it, with "
                "indices[:, 1:]."
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


# ---- practise: voc_average_precision -----------------------------------------------------------------------


def _ranks(hits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Precision and recall after each rank (m,)."""
    found = hits.double().cumsum(dim=0)
    return found / torch.arange(1, len(hits) + 1), found / count


def _eleven(precision: Tensor, recall: Tensor, recalls: int = 11) -> float:
    best = [
        max(precision[recall >= wanted / 10 - 1e-6].tolist(), default=0.0)
        for wanted in range(11 - recalls, 11)
    ]
    return sum(best) / recalls


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


def _ten_recalls(hits: Tensor, count: int) -> float:
    return _eleven(*_ranks(hits, count), recalls=10)


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
        "PASCAL's mean over eleven recalls. COCO takes 101, and the numbers differ: say which one you report."
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
                "that rank or any later one, which never grows with the recall."
            ),
        ),
        "mean precision at the hits": Mistake(
            _mean_at_hits,
            says=(
                "This is the mean of the precision at each hit, as search engines use it. VOC takes "
                "it at eleven fixed recalls, 0, 0.1 … 1."
            ),
        ),
        "ten recalls": Mistake(
            _ten_recalls,
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
        "101 recalls": Mistake(
            _hundred_and_one,
            says="That is COCO's number, from 101 recalls. VOC took eleven: 0, 0.1 … 1.",
        ),
    },
)


# ---- practise: ridge_scores --------------------------------------------------------------------------------


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
    on_diagonal: bool = True,
) -> Tensor:
    targets = F.one_hot(train_labels, classes).to(train_features)
    mean = train_features.mean(dim=0) * centre
    share = targets.mean(dim=0)
    x, y = train_features - mean, targets - share * offset
    b, d = x.shape
    where = torch.eye(d) if on_diagonal else torch.ones(d, d)
    weight = torch.linalg.solve(x.T @ x + penalty * (b if times_b else 1) * where, x.T @ y)
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


def _tests_not_centred(*arguments: Any) -> Tensor:
    features, labels, tests, classes, penalty = arguments
    return _ridge(features, labels, tests + features.mean(dim=0), classes, penalty)


def _penalty_everywhere(*arguments: Any) -> Tensor:
    return _ridge(*arguments, on_diagonal=False)


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
        "gave nothing to the mean."
    ),
    mistakes={
        "no penalty": Mistake(
            _no_penalty,
            says=(
                "The penalty is missing: these are plain least squares. Add b · penalty to the diagonal of "
                "XᵀX."
            ),
        ),
        "penalty everywhere": Mistake(
            _penalty_everywhere,
            says=(
                "The penalty was added to every entry of XᵀX. It belongs on the diagonal: b · penalty · "
                "torch.eye(d)."
            ),
        ),
        "test features not centred": Mistake(
            _tests_not_centred,
            says=(
                "The test features were not centred: the weights belong to features minus the training mean. "
                "Subtract train_features.mean(dim=0) from them too."
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
                "gets must not depend on the others beside it. Use the training mean."
            ),
        ),
        "scores of the training pictures": Mistake(
            _training_scores,
            says="These are scores of the training pictures, one row for each. The test pictures are wanted.",
        ),
    },
)


EXERCISES: list[Exercise] = [
    EXTRACT_FEATURES,
    KNN_ACCURACY,
    LOGISTIC_REGRESSION,
    EFFECTIVE_RANK,
    ATTENTION_MASKS,
    JACCARD,
    NEIGHBOUR_PURITY,
    RIDGE_SCORES,
    VOC_AVERAGE_PRECISION,
]
