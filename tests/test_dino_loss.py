"""DINO's loss is the paper's: beside slow loops and closed forms; its center moves as it says."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from support.unlabelled import crops_of, draw, same, slow_view_loss, small_dino
from torch import Tensor

from vit_course.dino import DINOLoss, dino_loss
from vit_course.lab.parity import relative_error


@pytest.mark.parametrize("views, global_views", [(2, 2), (3, 2), (6, 2), (10, 2), (4, 1), (5, 3)])
@pytest.mark.parametrize("student_temp, teacher_temp", [(0.1, 0.04), (0.1, 0.07), (0.9, 0.5)])
@pytest.mark.parametrize("center_size", [0.0, 0.3, 2.0])
def test_loss_is_that_of_the_slow_loops(
    views: int, global_views: int, student_temp: float, teacher_temp: float, center_size: float
) -> None:
    student, teacher = draw(views, 3, 7, seed=1), draw(global_views, 3, 7, seed=2)
    center = center_size * draw(7, seed=3)
    for dtype, tolerance in {torch.float64: 1e-12, torch.float32: 1e-6}.items():
        loss, new_center = dino_loss(
            student.to(dtype), teacher.to(dtype), center.to(dtype), student_temp, teacher_temp
        )
        lists = [part.to(dtype).tolist() for part in (student, teacher, center)]
        wanted, pairs = slow_view_loss(*lists, student_temp, teacher_temp)
        assert abs(loss.item() - wanted) <= tolerance * abs(wanted)
        assert pairs == global_views * (views - 1)
        torch.testing.assert_close(
            new_center, (0.9 * center + 0.1 * teacher.flatten(0, 1).mean(dim=0)).to(dtype)
        )


def test_number_of_terms_is_the_paper_s() -> None:
    """2(n + 2) - 2 pairs for n local crops: with one wrong pair, the loss is that pair's part of it."""
    for local_crops in (0, 1, 4, 8):
        views = local_crops + 2
        student, teacher = torch.zeros(views, 1, 2), torch.zeros(2, 1, 2)
        teacher[:, 0, 0] = 100.0  # the targets are (1, 0), the student says (1/2, 1/2): log 2 for every pair
        student[-1, 0] = torch.tensor(
            [0.0, 20.0]
        )  # but 200 in the pairs of the last view: both teachers, or one if it is theirs
        pairs, wrong = 2 * (local_crops + 2) - 2, 1 if local_crops == 0 else 2
        loss, _ = dino_loss(student, teacher, torch.zeros(2))
        assert loss.item() == pytest.approx((wrong * 200 + (pairs - wrong) * math.log(2)) / pairs, rel=1e-6)


def test_pairs_of_one_view_are_skipped() -> None:
    """What the student says of a global view is compared with the other view's target only."""
    teacher, center = draw(2, 3, 5, seed=1), torch.zeros(5)
    student = draw(2, 3, 5, seed=2).requires_grad_()
    dino_loss(student, teacher, center)[0].backward()
    changed = teacher.clone()
    changed[0] = draw(3, 5, seed=9)
    again = student.detach().clone().requires_grad_()
    dino_loss(again, changed, center)[0].backward()
    torch.testing.assert_close(student.grad[0], again.grad[0])
    assert relative_error(student.grad[1], again.grad[1]) > 0.01


@pytest.mark.parametrize("k", [2, 64, 4096])
def test_uniform_answers_cost_log_k(k: int) -> None:
    for teacher in (torch.zeros(2, 3, k), 50 * one_hot(torch.randint(k, (2, 3)), k)):
        loss, _ = dino_loss(torch.ones(4, 3, k), teacher, torch.zeros(k))
        assert loss.item() == pytest.approx(math.log(k), abs=1e-6 * math.log(k))


def one_hot(labels: Tensor, classes: int) -> Tensor:
    return F.one_hot(labels, classes).float()


def test_extreme_logits_give_the_true_value() -> None:
    """log(softmax + eps) would stop at 46.05 and lose its gradient there."""
    student = torch.tensor([[[20.0, 0.0]], [[20.0, 0.0]]], requires_grad=True)
    teacher = torch.tensor([[[0.0, 20.0]], [[0.0, 20.0]]])
    loss, _ = dino_loss(student, teacher, torch.zeros(2))
    loss.backward()
    assert loss.item() == pytest.approx(200.0, abs=1e-4)
    torch.testing.assert_close(student.grad[0, 0], torch.tensor([5.0, -5.0]))  # 1 / (2 pairs · 0.1)


def test_properties_of_the_loss() -> None:
    student, teacher, center = draw(5, 3, 7, seed=1), draw(2, 3, 7, seed=2), 0.2 * draw(7, seed=3)
    loss, _ = dino_loss(student, teacher, center)
    shifted, _ = dino_loss(student + 3, teacher - 2, center)
    order = torch.tensor([2, 0, 1])
    permuted, _ = dino_loss(student[:, order], teacher[:, order], center)
    moved, _ = dino_loss(
        student, teacher + center, 2 * center
    )  # the centre is taken from the teacher, not the student
    for other in (shifted, permuted, moved):
        torch.testing.assert_close(other, loss)


def test_gradient_is_the_difference_of_the_probabilities() -> None:
    """For each pair (p - q) / (τ_s b), averaged over the pairs."""
    student, teacher, center = draw(4, 3, 7, seed=1).double(), draw(2, 3, 7, seed=2).double(), torch.zeros(7)
    student.requires_grad_()
    dino_loss(student, teacher, center.double())[0].backward()
    p, q = (student / 0.1).softmax(dim=-1), (teacher / 0.04).softmax(dim=-1)
    wanted = torch.zeros(4, 3, 7, dtype=torch.float64)
    for i in range(2):
        for v in range(4):
            if v != i:
                wanted[v] += (p[v] - q[i]) / (0.1 * 3) / 6
    torch.testing.assert_close(student.grad, wanted.detach())


def test_no_gradient_goes_to_the_teacher() -> None:
    student, teacher = draw(3, 2, 5).requires_grad_(), draw(2, 2, 5).requires_grad_()
    dino_loss(student, teacher, torch.zeros(5))[0].backward()
    assert teacher.grad is None and student.grad is not None


def test_bfloat16_logits_are_summed_in_float32() -> None:
    student, teacher = draw(4, 3, 64, seed=1).bfloat16(), draw(2, 3, 64, seed=2).bfloat16()
    wanted, _ = dino_loss(student.float(), teacher.float(), torch.zeros(64))
    with torch.autocast("cpu", torch.bfloat16):
        loss, center = dino_loss(student, teacher, torch.zeros(64))
    assert loss.dtype == center.dtype == torch.float32
    torch.testing.assert_close(loss, wanted)


def test_center_moves_after_the_loss_by_all_teacher_views() -> None:
    loss, center = DINOLoss(5), torch.zeros(5)
    for step in range(3):
        student, teacher = draw(4, 3, 5, seed=step), draw(2, 3, 5, seed=10 + step)
        wanted, _ = slow_view_loss(student.tolist(), teacher.tolist(), center.tolist(), 0.1, 0.04)
        assert loss(student, teacher).item() == pytest.approx(wanted, rel=1e-5), (
            "the loss saw another centre than the old one"
        )
        center = 0.9 * center + 0.1 * (teacher[0].mean(dim=0) + teacher[1].mean(dim=0)) / 2
        torch.testing.assert_close(loss.center, center)
    loss.eval()(draw(4, 3, 5), draw(2, 3, 5))
    torch.testing.assert_close(loss.center, center)


def test_entropy_and_kl_add_up_to_the_loss() -> None:
    loss, model = DINOLoss(24), small_dino()
    loss.center.copy_(0.1 * draw(24))
    student, teacher = model(crops_of())
    q = ((teacher - loss.center) / 0.04).softmax(dim=-1)
    kl = [
        torch.distributions.kl_divergence(
            torch.distributions.Categorical(q[i]),
            torch.distributions.Categorical(logits=student[v].detach() / 0.1),
        ).mean()
        for i in range(2)
        for v in range(4)
        if v != i
    ]
    torch.testing.assert_close(
        loss.entropy(teacher), torch.distributions.Categorical(q).entropy().mean(), rtol=1e-5, atol=0
    )
    center = loss.center.clone()
    value, numbers = loss.with_numbers(student, teacher)
    assert value.requires_grad and not any(number.requires_grad for number in numbers.values())
    torch.testing.assert_close(
        numbers["kl"], torch.stack(kl).mean(), rtol=1e-4, atol=0
    )  # of the center before it moved
    torch.testing.assert_close(numbers["kl"] + numbers["entropy"], value.detach())
    plain = DINOLoss(24)
    plain.center.copy_(center)
    assert torch.equal(plain(student, teacher), value) and same(plain, loss)
    assert loss.entropy(torch.zeros(2, 3, 24) + loss.center).item() == pytest.approx(math.log(24), rel=1e-5)


def test_loss_refuses_what_it_cannot_compare() -> None:
    student, teacher, center = draw(3, 2, 5), draw(2, 2, 5), torch.zeros(5)
    for arguments, message in [
        ((student[:1], teacher[:1], center), "needs two or more, the teacher the first of them; got 1 and 1"),
        ((student[:2], draw(3, 2, 5), center), "got 2 and 3"),
        ((student, teacher[:, :1], center), r"agree on b and k, got shapes \(3, 2, 5\), \(2, 1, 5\)"),
        ((student, draw(2, 2, 4), center), r"\(2, 2, 4\)"),
        ((student, teacher, torch.zeros(4)), r"and \(4,\)"),
        ((student[0], teacher, center), r"student must have axes \(v b k\)"),
        ((student, teacher, center, 0.0), "student_temp must be in"),
        ((student, teacher, center, 0.1, -1.0), "teacher_temp must be in"),
        ((student, teacher, center, 0.1, 0.04, 1.5), "center_momentum must be in"),
    ]:
        with pytest.raises(ValueError, match=message):
            dino_loss(*arguments)
    with pytest.raises(TypeError, match="student must be a tensor"):
        dino_loss([1.0], teacher, center)
    with pytest.raises(ValueError, match="out_dim must be at least 1"):
        DINOLoss(0)


def test_a_loss_that_is_not_finite_names_the_view_and_leaves_the_center() -> None:
    for bad in (math.nan, math.inf):
        loss = DINOLoss(5)
        loss(draw(3, 2, 5), draw(2, 2, 5))
        before = loss.center.clone()
        student, teacher = draw(3, 2, 5), draw(2, 2, 5)
        student[2, 0, 1] = bad
        with pytest.raises(ValueError, match="not finite are the student logits of view 2$"):
            loss(student, teacher)
        teacher[1, 1, 1] = bad
        with pytest.raises(ValueError, match="student logits of view 2, teacher logits of view 1"):
            loss(student, teacher)
        assert torch.equal(loss.center, before)
    with pytest.raises(ValueError, match="divided by the temperature"):
        dino_loss(1e38 * draw(3, 2, 5).sign(), draw(2, 2, 5), torch.zeros(5))


def test_targets_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One softmax for the teacher and one for the student, also where the entropy is reported."""
    real, shapes = F.log_softmax, []

    def counted(logits: Tensor, dim: int) -> Tensor:
        shapes.append(tuple(logits.shape))
        return real(logits, dim=dim)

    monkeypatch.setattr(F, "log_softmax", counted)
    DINOLoss(5).with_numbers(draw(3, 2, 5), draw(2, 2, 5))
    assert sorted(shapes) == [(2, 2, 5), (3, 2, 5)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_center_of_a_cast_module_arrives(dtype: torch.dtype) -> None:
    """bfloat16 would stand still at a distance of several percent; the buffers stay float32."""
    wanted, cast = DINOLoss(5), DINOLoss(5).to(dtype)
    student, teacher = draw(3, 2, 5).to(dtype), (0.5 * draw(2, 2, 5, seed=1)).to(dtype)
    for _ in range(200):
        assert torch.equal(cast(student, teacher), wanted(student, teacher))
    assert same(cast, wanted)
    torch.testing.assert_close(cast.center, teacher.float().mean(dim=(0, 1)))
    for part in (cast.center, cast.teacher_temp):
        assert part.dtype == torch.float32
    assert DINOLoss(5).double().center.dtype == torch.float64


def test_center_of_few_digits_is_given_back_with_more() -> None:
    center = draw(5, seed=3).bfloat16()
    _, new_center = dino_loss(draw(3, 2, 5), draw(2, 2, 5), center)
    _, wanted = dino_loss(draw(3, 2, 5), draw(2, 2, 5), center.float())
    assert torch.equal(new_center, wanted)


def test_loss_comes_whole_from_a_meta_device_a_copy_and_a_pickle() -> None:
    loss = DINOLoss(5, teacher_temp=0.05)
    loss(draw(3, 2, 5), draw(2, 2, 5))
    with torch.device("meta"):
        empty = DINOLoss(5)
    empty.to_empty(device="cpu").load_state_dict(loss.state_dict())
    wanted = copy.deepcopy(loss)(draw(3, 2, 5, seed=4), draw(2, 2, 5, seed=5))
    for twin in (empty, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(twin(draw(3, 2, 5, seed=4), draw(2, 2, 5, seed=5)), wanted)


@pytest.mark.parametrize("name", ["student_temp", "teacher_temp"])
@pytest.mark.parametrize("value", [0, -0.1, math.inf, math.nan])
def test_temperatures_that_teach_nothing_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be in 1e-06 … 1000000.0, got {value}"):
        DINOLoss(5, **{name: value})
    with pytest.raises(ValueError, match=f"{name} must be in 1e-06 … 1000000.0, got {value}"):
        dino_loss(draw(3, 2, 5), draw(2, 2, 5), torch.zeros(5), **{name: value})


def test_entropy_of_other_logits_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got 5 for logits of shape \(2, 3, 4\)"):
        DINOLoss(5).entropy(draw(2, 3, 4))
