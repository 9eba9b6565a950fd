"""The linear probe is scikit-learn's logistic regression on standardised features, whatever their scale.

scikit-learn's own answers are handed to the probe as test labels: the share that it gives back is how often
the two agree. Of 20,000 points a penalty that is wrong by a half moves more than a hundred.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from support.features import Data, blobs, named_by_scikit_learn
from torch import Tensor

from vit_course.evaluation import knn_accuracy, linear_probe, logistic_regression

SAME = 0.9995  # the share of equal answers from which two layers are one
PENALTIES = (10.0, 1.0, 0.1, 0.01, 0.001, 0.0001)


@pytest.mark.parametrize("penalty", [1.0, 0.1, 0.01, 0.001])
def test_linear_probe_is_scikit_learns_logistic_regression(penalty: float) -> None:
    train, labels, test, test_labels = blobs(4, d=8, test=20_000)
    train, test = train + 5, test + 5
    theirs = named_by_scikit_learn(train, labels, test, penalty)
    assert linear_probe(train, labels, test, theirs, penalty) >= SAME
    assert linear_probe(train, labels, test, test_labels, penalty) == pytest.approx(
        (theirs == test_labels).double().mean().item(), abs=1e-3
    )
    assert linear_probe(train, labels, test, theirs, 1.5 * penalty) < 0.995


def with_useless_columns(loud: float, faint: float) -> Data:
    """Columns of pure noise times `loud` beside the informative ones times `faint`."""
    train, labels, test, test_labels = blobs(1, test=2000)
    noise = torch.randn(len(train) + len(test), 4, generator=torch.Generator().manual_seed(5)) * loud
    return (
        torch.cat([faint * train, noise[: len(train)]], dim=1),
        labels,
        torch.cat([faint * test, noise[len(train) :]], dim=1),
        test_labels,
    )


@pytest.mark.parametrize("loud, faint", [(1e5, 1e-2), (1e5, 1e-5), (1e-2, 1e5), (1.0, 1.0), (1e20, 1e-20)])
def test_how_large_another_column_is_changes_nothing(loud: float, faint: float) -> None:
    train, labels, test, test_labels = with_useless_columns(loud, faint)
    theirs = named_by_scikit_learn(train, labels, test, 0.01)
    assert linear_probe(train, labels, test, theirs, penalty=0.01) >= SAME
    assert linear_probe(train, labels, test, test_labels, penalty=0.01) > 0.7
    assert linear_probe(train, labels, test, test_labels) > 0.7


@pytest.mark.parametrize(
    "dtype, spread", [(torch.float16, 0.05), (torch.float32, 1e-5), (torch.float64, 1e-10)]
)
def test_a_column_that_varies_far_from_zero_counts(dtype: torch.dtype, spread: float) -> None:
    """It varies by many roundings of its own type, however little that is beside its mean."""
    train, labels, test, _ = blobs(1, test=2000)
    train, test = (1 + spread * train.double()).to(dtype), (1 + spread * test.double()).to(dtype)
    theirs = named_by_scikit_learn(train, labels, test, 0.01)
    assert linear_probe(train, labels, test, theirs, penalty=0.01) >= SAME


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.25, 2.0**14, -0.25, 0.0])
def test_features_that_never_vary_do_no_harm(dtype: torch.dtype, size: float) -> None:
    """Not even where they vary in the test set, nor where they toggle between two neighbouring numbers."""
    train, labels, test, test_labels = blobs(7)
    constant = torch.full((len(train), 1), size, dtype=dtype)
    toggling = constant.clone()
    toggling[::2] *= 1 + torch.finfo(dtype).eps  # the next number
    assert len(toggling.unique()) == (2 if size else 1)
    varying = 0.3 + torch.rand(len(test), 1, generator=torch.Generator().manual_seed(0))
    wanted = linear_probe(train.to(dtype), labels, test.to(dtype), test_labels)
    for useless in (constant, toggling):
        wide = torch.cat([train.to(dtype), useless], dim=1), torch.cat([test, varying], dim=1).to(dtype)
        assert linear_probe(wide[0], labels, wide[1], test_labels) == pytest.approx(wanted, abs=1e-9)


def test_features_that_are_all_constant_give_the_commonest_class() -> None:
    labels = torch.tensor([0] * 8 + [1] * 12)
    share = linear_probe(
        torch.ones(20, 3), labels, torch.rand(9, 3), torch.tensor([1, 1, 1, 1, 1, 0, 0, 0, 0])
    )
    assert share == pytest.approx(5 / 9)


def test_linear_probe_is_deterministic_and_leaves_no_trace() -> None:
    data = blobs(5)
    state = torch.get_rng_state()
    with torch.no_grad():
        first = linear_probe(*data)
    torch.manual_seed(7)
    assert linear_probe(*data) == first
    torch.set_rng_state(state)
    linear_probe(*data)
    assert torch.equal(state, torch.get_rng_state())


def test_penalty_is_chosen_without_the_test_set() -> None:
    """Each test picture gets the same answer in any company."""
    train, labels, test, test_labels = blobs(6, train=60, test=30)
    companies = [slice(start, start + 5) for start in range(0, 30, 5)]
    shares = [linear_probe(train, labels, test[company], test_labels[company]) for company in companies]
    assert linear_probe(train, labels, test, test_labels) == pytest.approx(sum(shares) / 6, abs=1e-9)
    assert len(set(shares)) > 1


def test_noise_wants_a_strong_penalty_and_clean_features_a_weak_one() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    noise = torch.randn(200, 50, generator=generator)
    clean = noise.clone()
    clean[:, 0] = 5.0 * (2 * labels - 1) + noise[:, 0]
    elsewhere = torch.randn(4000, 50, generator=generator)
    chosen = {}
    for name, train in {"noise": noise, "clean": clean}.items():
        theirs = [named_by_scikit_learn(train, labels, elsewhere, penalty) for penalty in PENALTIES]
        agreement = [linear_probe(train, labels, elsewhere, answers) for answers in theirs]
        chosen[name] = PENALTIES[agreement.index(max(agreement))]
    assert chosen["noise"] > 10 * chosen["clean"]


def loud_and_faint() -> Data:
    """Features as random networks have them: loud directions hold noise, the classes are in faint ones."""
    generator = torch.Generator().manual_seed(0)
    loud = torch.randn(600, 8, generator=generator) @ torch.randn(8, 32, generator=generator)
    faint = torch.randn(600, 32, generator=generator)
    features, labels = loud + 0.1 * faint, faint[:, :5].argmax(dim=1)
    return features[:400], labels[:400], features[400:], labels[400:]


def test_penalty_is_found_behind_a_rise_of_the_loss() -> None:
    """From a penalty of 10 to 1 the held-out loss rises, far below them it is lowest."""
    data = loud_and_faint()
    assert linear_probe(*data, penalty=10.0) < 0.3 and linear_probe(*data, penalty=1.0) < 0.3
    assert linear_probe(*data) > 0.5


def test_few_steps_are_enough_where_features_vary_together(monkeypatch: pytest.MonkeyPatch) -> None:
    train, labels, test, _ = loud_and_faint()
    everything = torch.cat([train, test])
    theirs = named_by_scikit_learn(train, labels, everything, 1e-4)
    calls = []
    cross_entropy = F.cross_entropy
    monkeypatch.setattr(F, "cross_entropy", lambda *args: calls.append(1) or cross_entropy(*args))
    assert linear_probe(train, labels, everything, theirs, penalty=1e-4) >= SAME
    assert 0 < len(calls) < 40


def test_labels_that_training_never_saw_are_wrong_not_an_error() -> None:
    train, labels, test, test_labels = blobs(3)
    assert linear_probe(train, labels, test, test_labels + 50) == 0.0


# ---- what both probes take and refuse ----------------------------------------------------------------------


LABEL_FORMS: dict[str, Callable[[Tensor], object]] = {
    "a list": Tensor.tolist,
    "NumPy": Tensor.numpy,
    "NumPy's smallest": lambda labels: labels.numpy().astype(np.uint8),
    "NumPy's unsigned": lambda labels: labels.numpy().astype(np.uint16),
    "int32": Tensor.int,
    "bytes": Tensor.byte,
}


@pytest.mark.parametrize("measure", [knn_accuracy, linear_probe])
@pytest.mark.parametrize("form", LABEL_FORMS)
def test_labels_may_come_in_any_form(measure: Callable, form: str) -> None:
    train, labels, test, test_labels = blobs()
    given = LABEL_FORMS[form](labels), LABEL_FORMS[form](test_labels)
    assert measure(train, given[0], test, given[1]) == measure(train, labels, test, test_labels)


@pytest.mark.parametrize("measure", [knn_accuracy, linear_probe])
def test_nothing_that_is_lent_is_changed(measure: Callable) -> None:
    data = blobs()
    for features in (data[0], data[2]):
        features.requires_grad_()
    before = [part.detach().clone() for part in data]
    measure(*data)
    assert all(torch.equal(part, copy) for part, copy in zip(data, before, strict=True))
    assert data[0].grad is None and data[2].grad is None


BAD_FEATURES = {
    "a list": (lambda d: ([[1.0]], *d[1:]), TypeError, "train_features must be a tensor"),
    "whole numbers": (lambda d: (d[0].long(), *d[1:]), TypeError, "train_features must be floats"),
    "tokens": (lambda d: (d[0][None], *d[1:]), ValueError, r"axes \(b d\), got shape \(1, 150, 6\)"),
    "float labels": (
        lambda d: (d[0], d[1].float(), *d[2:]),
        TypeError,
        "train_labels must be an int64 tensor",
    ),
    "a list of float labels": (
        lambda d: (*d[:3], d[3].double().tolist()),
        TypeError,
        "test_labels must be .* whole numbers, got torch.float32",
    ),
    "too few labels": (
        lambda d: (*d[:3], d[3][:5]),
        ValueError,
        r"test_features need one label each, .* \(90, 6\) and labels \(5,\)",
    ),
    "no features": (lambda d: (d[0][:0], d[1][:0], *d[2:]), ValueError, "at least one"),
    "no columns": (
        lambda d: (d[0][:, :0], d[1], d[2][:, :0], d[3]),
        ValueError,
        r"at least one, .* \(150, 0\)",
    ),
    "a negative label": (lambda d: (d[0], d[1] - 1, *d[2:]), ValueError, "must not be negative, got -1"),
    "other widths": (
        lambda d: (d[0], d[1], d[2][:, :4], d[3]),
        ValueError,
        r"one width, got shapes \(150, 6\) and \(90, 4\)",
    ),
    "nan": (
        lambda d: (d[0].index_fill(0, torch.tensor([3]), math.nan), *d[1:]),
        ValueError,
        "train_features hold nan .* row 3",
    ),
    "infinity": (
        lambda d: (*d[:2], d[2].index_fill(0, torch.tensor([8, 60]), math.inf), d[3]),
        ValueError,
        "test_features .* row 8, in 2 of 90 rows",
    ),
}


@pytest.mark.parametrize("measure", [knn_accuracy, linear_probe])
@pytest.mark.parametrize("name", BAD_FEATURES)
def test_bad_features_are_named(measure: Callable, name: str) -> None:
    spoil, error, sentence = BAD_FEATURES[name]
    with pytest.raises(error, match=sentence):
        measure(*spoil(blobs()))


def test_bad_penalties_are_named() -> None:
    with pytest.raises(ValueError, match="penalty must be in 0 … inf, got -1.0"):
        linear_probe(*blobs(), penalty=-1.0)
    with pytest.raises(ValueError, match="got nan"):
        linear_probe(*blobs(), penalty=math.nan)
    with pytest.raises(ValueError, match="penalty must be finite, got inf"):
        linear_probe(*blobs(), penalty=math.inf)
    few = blobs(train=4)
    with pytest.raises(ValueError, match="at least 5 training images, got 4"):
        linear_probe(*few)
    assert 0 <= linear_probe(*few, penalty=0.1) <= 1


# ---- the layer itself --------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [1.0, 0.1, 0.01])
def test_the_layer_is_scikit_learns(penalty: float) -> None:
    """The weights are unique; of the biases, which differ by one number, it is the one of mean 0."""
    train, labels, _, _ = blobs(4, d=8)
    train = 3 * train + 5
    weight, bias = logistic_regression(train, labels, int(labels.max()) + 1, penalty)
    judge = LogisticRegression(C=1 / (penalty * len(labels)), tol=1e-9, max_iter=5000).fit(
        train.double(), labels
    )
    assert np.abs(judge.coef_ - weight.numpy()).max() < 2e-3
    theirs = torch.tensor(judge.intercept_)
    assert torch.allclose(bias, theirs - theirs.mean(), atol=0.03) and abs(bias.mean()) < 1e-9


def test_nothing_but_the_penalised_sum_decides_the_layer() -> None:
    """At the bottom the gradient is zero, also after the features are moved: the bias carries their mean."""
    train, labels, _, _ = blobs()
    for features in (train, train + 100.0):
        weight, bias = (part.requires_grad_() for part in logistic_regression(features, labels, 9, 0.05))
        loss = F.cross_entropy(features.double() @ weight.T + bias, labels)
        (loss + 0.05 / 2 * weight.square().sum()).backward()
        assert bias.grad.abs().max() < 1e-4 and weight.grad.abs().max() < 1e-2


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ((torch.ones(3), [0, 1, 0], 2, 0.1), ValueError, r"features must have axes \(b d\)"),
        (
            (torch.ones(3, 2), [0.0, 1.0, 0.0], 2, 0.1),
            TypeError,
            "^labels must be .* whole numbers, got torch.float32",
        ),
        ((torch.ones(3, 2), [0, 1], 2, 0.1), ValueError, "^features need one label each"),
        ((torch.ones(3, 2), [0, 2, 1], 2, 0.1), ValueError, "labels must be below 2, .* got 2"),
        ((torch.ones(3, 2), [0, 1, 0], 0, 0.1), ValueError, "classes must be at least 1, got 0"),
        ((torch.ones(3, 2), [0, 1, 0], 2, -0.1), ValueError, "penalty must be in 0 … inf, got -0.1"),
        ((torch.ones(3, 2), [0, 1, 0], 2, math.inf), ValueError, "penalty must be finite, got inf"),
    ],
)
def test_refused_by_logistic_regression(arguments: tuple, error: type, sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        logistic_regression(*arguments)
