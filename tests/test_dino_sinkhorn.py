"""Sinkhorn-Knopp targets are those of DINOv2's code, by itself and in the loss; wrong versions are not."""

import math

import pytest
import torch
from support.unlabelled import draw, same, slow_view_loss
from torch import Tensor

from vit_course.dino import DINOLoss, dino_loss, log_targets, sinkhorn_knopp
from vit_course.lab.dino_parity import SINKHORN, WRONG_TARGETS, load, scaled
from vit_course.lab.parity import DIFFERENT, relative_error


@pytest.mark.parametrize("name", SINKHORN)
def test_targets_are_those_of_the_authors_code(name: str) -> None:
    numbers, config = load(name)
    for iterations, key in {1: "mid/one_iteration", 3: "output", 50: "mid/fifty_iterations"}.items():
        ours = sinkhorn_knopp(numbers["input"], config["teacher_temp"], iterations)
        assert relative_error(ours, numbers[key]) < 1e-5
    assert torch.equal(
        sinkhorn_knopp(numbers["input"], config["teacher_temp"]),
        sinkhorn_knopp(numbers["input"], config["teacher_temp"], 3),
    )


@pytest.mark.parametrize("name", SINKHORN)
def test_loss_of_two_views_is_that_of_the_authors_code(name: str) -> None:
    """Their loss of one view of the student and of both, against the targets of one teacher view."""
    numbers, config = load(name)
    temperatures = config["student_temp"], config["teacher_temp"]
    student = torch.stack([numbers["input/student1"], numbers["input/student0"]])
    loss, _ = dino_loss(
        student, numbers["input"][None], torch.zeros(int(config["K"])), *temperatures, centring="sinkhorn"
    )
    assert loss.item() == pytest.approx(numbers["mid/dino_loss_first_term"].item(), rel=1e-5)


@pytest.mark.parametrize("name", SINKHORN)
def test_center_and_its_targets_are_those_of_the_authors_code(name: str) -> None:
    numbers, config = load(name)
    loss = DINOLoss(int(config["K"]), config["student_temp"], config["teacher_temp"])
    loss.center.copy_(numbers["input/center"][0])
    centred = log_targets(numbers["input"], loss.center, config["teacher_temp"]).exp()
    assert relative_error(centred, numbers["mid/softmax_centred"]) < 1e-5
    loss(torch.stack([numbers["input/student0"], numbers["input/student1"]]), numbers["input"][None])
    assert relative_error(loss.center, numbers["mid/center_after"][0]) < 1e-5


# ---- wrong versions ----------------------------------------------------------------------------------------


def test_the_formula_as_it_stands_is_the_authors() -> None:
    for name in SINKHORN:
        numbers, config = load(name)
        assert relative_error(scaled(numbers["input"], config["teacher_temp"]), numbers["output"]) < 1e-5


@pytest.mark.parametrize("mistake", WRONG_TARGETS)
def test_the_numbers_of_the_authors_see_mistakes(mistake: str) -> None:
    for name in SINKHORN:
        numbers, config = load(name)
        targets = WRONG_TARGETS[mistake](numbers["input"], config["teacher_temp"])
        error = relative_error(targets, numbers["output"])
        print(f"{mistake}, {name}: {error:.3g}")
        assert error > DIFFERENT


# ---- properties --------------------------------------------------------------------------------------------


def test_rows_are_distributions_and_columns_nearly_even() -> None:
    logits = draw(64, 12).clamp(-1, 1)
    logits[:, 3] += 0.3  # everybody's favourite
    q = sinkhorn_knopp(logits, 0.1)
    torch.testing.assert_close(q.sum(dim=1), torch.ones(64))
    plain = (logits / 0.1).softmax(dim=1).sum(dim=0)
    assert (q.sum(dim=0) - 64 / 12).abs().max() < 0.2 * (plain - 64 / 12).abs().max()
    torch.testing.assert_close(sinkhorn_knopp(logits, 0.1, 200).sum(dim=0), torch.full((12,), 64 / 12))
    torch.testing.assert_close(
        sinkhorn_knopp(logits + draw(1, 12, seed=1), 0.1, 200).sum(dim=1).max(), q.sum(1)[0]
    )


@pytest.mark.parametrize("size", [1.0, 40.0, 4000.0])
def test_large_logits_do_not_overflow(size: float) -> None:
    """exp(40 / 0.04) has no float32, and exp(-40 / 0.04) none but zero."""
    logits = size * draw(6, 5)
    for iterations in (3, 20):
        q = sinkhorn_knopp(logits, 0.04, iterations)
        assert q.isfinite().all()
        torch.testing.assert_close(q.sum(dim=1), torch.ones(6))
    wanted = scaled(
        (logits.double() - logits.max()).clamp(min=-25), 0.04
    ).float()  # float64 reaches exp(-700)
    if size == 1.0:
        torch.testing.assert_close(sinkhorn_knopp(logits, 0.04), wanted)


def test_precision_gradient_and_what_is_refused() -> None:
    logits = draw(6, 5).requires_grad_()
    assert not sinkhorn_knopp(logits, 0.1).requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        half = sinkhorn_knopp(logits.bfloat16(), 0.1)
    assert half.dtype == torch.float32 and sinkhorn_knopp(logits.double(), 0.1).dtype == torch.float64
    torch.testing.assert_close(half, sinkhorn_knopp(logits.bfloat16().float(), 0.1))
    for given, kind, message in [
        ((draw(5), 0.1), ValueError, r"logits must have axes \(n k\)"),
        ((torch.ones(2, 3, dtype=torch.int64), 0.1), TypeError, "logits must be floats"),
        ((draw(2, 3), 0.0), ValueError, "temperature must be in"),
        ((draw(2, 3), 0.1, 0), ValueError, "iterations must be at least 1, got 0"),
        ((draw(2, 3), 0.1, 3.0), TypeError, "iterations must be an int, got 3.0"),
    ]:
        with pytest.raises(kind, match=message):
            sinkhorn_knopp(*given)


# ---- in the loss -------------------------------------------------------------------------------------------


def test_loss_takes_the_targets_of_both_global_views_together() -> None:
    student, teacher = 0.3 * draw(4, 6, 7, seed=1), 0.3 * draw(2, 6, 7, seed=2)
    loss = DINOLoss(7, centring="sinkhorn")
    loss.center.copy_(draw(7, seed=3))
    before = loss.center.clone()
    value, numbers = loss.with_numbers(student, teacher)

    def wanted(q: Tensor) -> float:
        """A teacher whose softmax of temperature 0.04 is q."""
        return slow_view_loss(student.tolist(), (0.04 * q.log()).tolist(), 7 * [0.0])[0]

    together = sinkhorn_knopp(teacher.flatten(0, 1), 0.04).unflatten(0, (2, 6))
    assert value.item() == pytest.approx(wanted(together), rel=1e-5)
    assert numbers["entropy"].item() == pytest.approx(
        -(together * together.log()).sum(-1).mean().item(), rel=1e-5
    )
    assert loss.entropy(teacher).item() == pytest.approx(numbers["entropy"].item(), rel=1e-6)
    assert torch.equal(loss.center, before), "Sinkhorn and Knopp need no center"
    one_by_one = torch.stack([sinkhorn_knopp(view, 0.04) for view in teacher])
    assert abs(wanted(one_by_one) - value.item()) > DIFFERENT * value.item()
    assert same(loss, torch.nn.Module.eval(loss))


def test_other_centrings_are_refused() -> None:
    for make in (
        lambda: DINOLoss(7, centring="Sinkhorn"),
        lambda: dino_loss(draw(3, 2, 5), draw(2, 2, 5), torch.zeros(5), centring="Sinkhorn"),
    ):
        with pytest.raises(ValueError, match="centring must be 'mean' or 'sinkhorn', got 'Sinkhorn'"):
            make()
    loss = DINOLoss(5, centring="sinkhorn")
    for bad in (math.nan, math.inf):
        teacher = draw(2, 2, 5)
        teacher[1, 0, 0] = bad
        with pytest.raises(ValueError, match="not finite are the teacher logits of view 1$"):
            loss(draw(3, 2, 5), teacher)
