"""DistillationLoss is the formula, equal to timm's task, and names what does not fit."""

from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from support.distillation import TINY, Fixed, cnn_teacher, images, small_vit, suited, timm_vit
from timm.task import LogitDistillationTask, TokenDistillationTask
from torch import Tensor, nn

from vit_course.distillation import DistillationLoss
from vit_course.lab.parity import SAME, randomise, relative_error
from vit_course.lab.pretrained import from_timm


def loss_of(loss: DistillationLoss, labels: list[int], *student: Tensor) -> Tensor:
    return loss(Fixed(*student), (images(len(labels), 1, 2, 2), torch.tensor(labels)))[0]


def logs(*odds: list[float]) -> Tensor:
    return torch.tensor(odds).log()


def test_two_classes_by_hand() -> None:
    """Teacher 16 : 1, student 1 : 4, label 1. At T = 2 these are 4/5, 1/5 beside 1/3, 2/3."""
    teacher, student = Fixed(logs([16.0, 1.0])), logs([1.0, 4.0])
    label = torch.tensor(5 / 4).log()
    kl = 4 / 5 * torch.tensor(12 / 5).log() + 1 / 5 * torch.tensor(3 / 10).log()
    for alpha in (0.0, 0.1, 1.0):
        soft = DistillationLoss(teacher, "soft", temperature=2.0, alpha=alpha)
        torch.testing.assert_close(loss_of(soft, [1], student), (1 - alpha) * label + alpha * 4 * kl)
        hard = DistillationLoss(teacher, "hard", alpha=alpha)
        # Its answer is class 0, and it is wrong.
        expected = (1 - alpha) * label + alpha * torch.tensor(5.0).log()
        torch.testing.assert_close(loss_of(hard, [1], student), expected)


def test_defaults_are_the_papers() -> None:
    soft, hard = DistillationLoss(nn.Identity()), DistillationLoss(nn.Identity(), kind="hard")
    assert (soft.kind, soft.temperature, soft.alpha, hard.alpha) == ("soft", 3.0, 0.1, 0.5)


def test_heads_get_the_target_that_is_theirs() -> None:
    """The class logits learn from the labels alone, the distillation logits from the teacher alone."""
    for kind in ("soft", "hard"):
        for alpha, silent in ((0.0, 1), (1.0, 0)):
            student = Fixed(images(4, 5, seed=1), images(4, 5, seed=2))
            loss = DistillationLoss(Fixed(images(4, 5, seed=3)), kind, alpha=alpha)
            loss(student, (images(), torch.arange(4)))[0].backward()
            sizes = [logits.grad.abs().sum().item() for logits in student.logits]
            assert sizes[silent] == 0 and sizes[1 - silent] > 0.1


def test_a_teacher_who_agrees_costs_nothing() -> None:
    logits = images(4, 5)
    for temperature in (1.0, 3.0, 10.0):
        loss = DistillationLoss(Fixed(logits), "soft", temperature, alpha=1.0)
        assert abs(loss_of(loss, [0] * 4, logits + 7)) < 1e-5  # softmax does not see a constant
        assert loss_of(loss, [0] * 4, logits.flip(1)) > 0.1


def test_hard_is_the_cross_entropy_with_the_teachers_answer() -> None:
    teacher, student = images(6, 5, seed=1), images(6, 5, seed=2)
    labels = ((teacher.argmax(1) + 1) % 5).tolist()  # the teacher is always wrong
    loss = DistillationLoss(Fixed(teacher), "hard", alpha=1.0)
    torch.testing.assert_close(loss_of(loss, labels, student), F.cross_entropy(student, teacher.argmax(1)))


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_a_batch_twice_is_the_same_loss(kind: str) -> None:
    teacher, student, labels = images(4, 5, seed=1), images(4, 5, seed=2), [0, 3, -100, 1]
    once = loss_of(DistillationLoss(Fixed(teacher), kind), labels, student)
    twice = loss_of(DistillationLoss(Fixed(teacher.repeat(2, 1)), kind), labels * 2, student.repeat(2, 1))
    torch.testing.assert_close(once, twice)


def gradient_norm(scale: float, temperature: float) -> float:
    student = Fixed(scale * images(8, 10, seed=1))
    loss = DistillationLoss(Fixed(scale * images(8, 10, seed=2)), "soft", temperature, alpha=1.0).double()
    loss(student.double(), (images(8, 1, 2, 2), torch.zeros(8, dtype=torch.int64)))[0].backward()
    return student.logits[0].grad.norm().item()


def test_temperature_squared_keeps_the_gradient() -> None:
    """For small logits the gradient does not depend on T; without T² it would be 1 % of that at T = 10."""
    norms = [gradient_norm(0.01, temperature) for temperature in (1.0, 3.0, 10.0)]
    assert max(norms) / min(norms) < 1.01
    # Large logits do feel it: at T = 1 they are saturated.
    assert gradient_norm(5.0, 10.0) > 1.5 * gradient_norm(5.0, 1.0)


def test_gradient_is_the_derived_one() -> None:
    """d/dz of T² KL is T (softmax(z/T) - softmax(v/T)) / b; for high T (z - v) / (K b), both centred."""
    student, teacher = images(8, 10, seed=1), images(8, 10, seed=2)
    for temperature in (1.0, 3.0, 1000.0):
        model = Fixed(student)
        loss_inputs = (images(8, 1, 2, 2), torch.zeros(8, dtype=torch.int64))
        DistillationLoss(Fixed(teacher), "soft", temperature, 1.0)(model, loss_inputs)[0].backward()
        difference = (student / temperature).softmax(1) - (teacher / temperature).softmax(1)
        assert relative_error(model.logits[0].grad, temperature * difference / 8) < 1e-3
    centred = [logits - logits.mean(dim=1, keepdim=True) for logits in (student, teacher)]
    assert relative_error(model.logits[0].grad, (centred[0] - centred[1]) / 80) < 5e-3


def test_extreme_logits_are_not_clipped() -> None:
    loss = DistillationLoss(Fixed(torch.tensor([[0.0, 400.0]])), "soft", temperature=2.0, alpha=1.0)
    torch.testing.assert_close(loss_of(loss, [0], torch.tensor([[400.0, 0.0]])), torch.tensor(4 * 200.0))


def test_unlabelled_images_learn_from_the_teacher_alone() -> None:
    teacher, student, labels = images(4, 5, seed=1), images(4, 5, seed=2), torch.tensor([2, -100, 0, -100])
    for kind in ("soft", "hard"):
        loss = DistillationLoss(Fixed(teacher), kind, alpha=0.5)
        total, parts = loss(Fixed(student), (images(), labels))
        torch.testing.assert_close(parts["label_loss"], F.cross_entropy(student[[0, 2]], labels[[0, 2]]))
        torch.testing.assert_close(parts["teacher_loss"], loss.teacher_loss(student, teacher))
        torch.testing.assert_close(total, (parts["label_loss"] + parts["teacher_loss"]) / 2)
        total, parts = loss(Fixed(student), (images(), torch.full((4,), -100)))
        assert parts["label_loss"] == 0
        torch.testing.assert_close(total, parts["teacher_loss"] / 2)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_equal_to_timms_task(kind: str) -> None:
    """Loss and gradients beside timm.task, with two heads and with one."""
    teacher = timm_vit(num_classes=7)
    for student, task, weight in (
        (timm_vit(), TokenDistillationTask, {"distill_type": kind}),
        (timm.models.VisionTransformer(**TINY), LogitDistillationTask, {"loss_type": "kl"}),
    ):
        if kind == "hard" and task is LogitDistillationTask:
            continue
        for model in (student, teacher):
            model.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
            randomise(model, seed=1 if model is teacher else 0)
        ours = from_timm(student).train()
        theirs = task(
            student.train(),
            teacher,
            criterion=nn.CrossEntropyLoss(),
            task_loss_weight=0.3,
            temperature=4.0,
            verbose=False,
            **weight,
        ).train()
        batch = (suited(student, 4), torch.tensor([0, 6, 3, 2]))
        loss, _ = DistillationLoss(teacher, kind, temperature=4.0, alpha=0.7)(ours, batch)
        expected = theirs(*batch)["loss"]
        assert relative_error(loss, expected) < SAME
        loss.backward()
        expected.backward()
        others = dict(student.named_parameters())
        for name, parameter in ours.named_parameters():
            if not name.endswith("attn.qkv.bias"):
                assert relative_error(parameter.grad, others[name].grad) < 10 * SAME, name


def test_bfloat16_autocast_gives_the_same_loss() -> None:
    student, loss, batch = small_vit(), DistillationLoss(cnn_teacher()), (images(), torch.arange(4))
    with torch.no_grad():
        plain = loss(student, batch)[0]
        with torch.autocast("cpu", torch.bfloat16):
            assert relative_error(loss(student, batch)[0].float(), plain) < 0.02


def call(student: nn.Module | None = None, batch: object = None, **options) -> Tensor:
    loss = DistillationLoss(cnn_teacher(), **options)
    return loss(student or small_vit(), (images(), torch.arange(4)) if batch is None else batch)


BAD_CALLS: dict[str, tuple[Callable, type[Exception], str]] = {
    "teacher": (lambda: DistillationLoss("resnet50"), TypeError, "'resnet50'"),
    "kind": (lambda: call(kind="warm"), ValueError, "'warm'"),
    "temperature": (lambda: call(temperature=0.0), ValueError, "temperature .* 0.0"),
    "negative temperature": (lambda: call(temperature=-1.0), ValueError, "-1.0"),
    "endless temperature": (lambda: call(temperature=float("inf")), ValueError, "inf"),
    "temperature type": (lambda: call(temperature="3"), TypeError, "'3'"),
    "alpha": (lambda: call(alpha=1.5), ValueError, "alpha .* 1.5"),
    "alpha type": (lambda: call(alpha="half"), TypeError, "'half'"),
    "batch": (lambda: call(batch=images()), TypeError, "pair of images and labels"),
    "batch of three": (lambda: call(batch=(images(), 1, 2)), TypeError, "pair of images and labels"),
    "bytes": (lambda: call(batch=(images().byte(), torch.arange(4))), TypeError, "uint8"),
    "labels": (lambda: call(batch=(images(), torch.arange(3))), ValueError, r"4 images .* \(3,\)"),
    "soft labels": (lambda: call(batch=(images(), torch.rand(4))), TypeError, "whole numbers .* tensor"),
    "no labels": (lambda: call(batch=(images(), None)), TypeError, "labels .* None"),
    "other classes": (lambda: call(small_vit(num_classes=7)), ValueError, r"\(4, 7\), \(4, 7\), \(4, 5\)"),
    "features": (lambda: call(small_vit(num_classes=0)), ValueError, r"\(4, 32\).*\(4, 5\)"),
}


@pytest.mark.parametrize(("bad", "error", "words"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_bad_input_is_named(bad: Callable, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        bad()
