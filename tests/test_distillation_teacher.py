"""A teacher that nothing moves, and students of every kind that learn from it."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from support.distillation import TINY, cnn_teacher, draw, images, same, small_vit, state, timm_vit
from support.models import CASES
from torch import Tensor, nn

from vit_course.distillation import DistillationLoss
from vit_course.lab.pretrained import adapt
from vit_course.training import evaluate, fit


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_teacher_is_untouched_by_training(kind: str) -> None:
    teacher, student = cnn_teacher(), small_vit()
    loss = DistillationLoss(teacher, kind).train()
    before, student_before = state(loss.teacher), state(student)
    assert any("running_mean" in name for name in before)
    fit(student, draw, loss, 5, progress=False)
    assert same(before, state(loss.teacher)) and not same(student_before, state(student))
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in loss.parameters())
    assert not loss.teacher.training and not any(part.training for part in loss.teacher.modules())


def test_these_tests_would_see_a_teacher_in_training_mode() -> None:
    class Careless(DistillationLoss):
        @torch.no_grad()
        def teacher_logits(self, images: Tensor) -> Tensor:
            return self.teacher.train()(images)

    loss = Careless(cnn_teacher())
    before = state(loss.teacher)
    fit(small_vit(), draw, loss, 5, progress=False)
    assert not same(before, state(loss.teacher)), "BatchNorm did not move: the test above proves nothing"


@pytest.mark.parametrize("part", ["", "0", "0.1", "1"], ids=["all of it", "a block", "BatchNorm", "dropout"])
def test_a_teacher_put_into_training_mode_by_hand_learns_from_no_batch(part: str) -> None:
    """`fit` never calls `loss.train()`: the loss itself has to see to the mode before each answer."""
    loss, batch = DistillationLoss(cnn_teacher()), draw(torch.Generator().manual_seed(0))
    before, expected = state(loss.teacher), loss(small_vit(), batch)[1]["teacher_loss"]
    loss.teacher.get_submodule(part).train()
    assert torch.equal(loss(small_vit(), batch)[1]["teacher_loss"], expected)
    loss.teacher.get_submodule(part).train()
    fit(small_vit(), draw, loss, 3, progress=False)
    assert same(before, state(loss.teacher))


def test_teacher_stays_in_evaluation_mode_inside_other_modules() -> None:
    loss = DistillationLoss(cnn_teacher())
    around = nn.ModuleDict({"loss": loss, "student": small_vit()}).train()
    assert loss.training and not loss.teacher.training and around["student"].training
    assert not loss.eval().teacher.training and not loss.train().teacher.training
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert not twin.train().teacher.training


def test_the_callers_model_stays_the_callers() -> None:
    """The loss keeps a copy: whoever trains the original later does not move the target."""
    teacher = cnn_teacher().train()
    loss = DistillationLoss(teacher)
    assert teacher.training and all(parameter.requires_grad for parameter in teacher.parameters())
    before = state(loss.teacher)
    fit(teacher, draw, lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]), 3, progress=False)
    assert same(before, state(loss.teacher)) and not same(state(teacher), state(loss.teacher))


def test_a_model_can_be_its_own_teacher() -> None:
    """Born again (Furlanello et al. 2018): the copy does not follow the student."""
    student = small_vit()
    loss = DistillationLoss(student)
    before = state(loss.teacher)
    fit(student, draw, loss, 3, progress=False)
    assert same(before, state(loss.teacher)) and not same(before, state(student))


def test_resumed_training_gives_the_same_weights(tmp_path: Path) -> None:
    def stop(step: int) -> None:
        if step == 2:
            raise RuntimeError("on purpose")

    students = [small_vit(dropout=0.1) for _ in range(2)]
    fit(students[0], draw, DistillationLoss(cnn_teacher()), 6, progress=False)
    file = tmp_path / "student.pt"
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(
            small_vit(dropout=0.1),
            draw,
            DistillationLoss(cnn_teacher()),
            6,
            progress=False,
            checkpoint=file,
            checkpoint_every=2,
            after_step=stop,
        )
    other_teacher = nn.Sequential(*cnn_teacher()).apply(lambda part: getattr(part, "reset_parameters", int)())
    fit(students[1], draw, DistillationLoss(other_teacher), 6, progress=False, checkpoint=file, resume=True)
    assert same(state(students[0]), state(students[1])), "the checkpoint does not bring its teacher"


@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("name", CASES)
def test_every_model_of_the_course_can_be_a_student(name: str, kind: str) -> None:
    """Two heads share the targets, one head gets both, as in Hinton et al. 2015; the teacher never learns."""
    torch.manual_seed(0)
    student, loss = CASES[name].build().train(), DistillationLoss(cnn_teacher(), kind)
    labels = torch.arange(4)
    torch.manual_seed(0)
    value, parts = loss(student, (images(), labels))
    torch.testing.assert_close(
        value, (1 - loss.alpha) * parts["label_loss"] + loss.alpha * parts["teacher_loss"]
    )
    value.backward()
    for key, parameter in student.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key
    assert all(parameter.grad is None for parameter in loss.parameters())

    student.eval()
    with torch.no_grad():
        logits, teacher_logits = student(images()), loss.teacher(images())
        _, parts = loss(student, (images(), labels))
    torch.testing.assert_close(parts["label_loss"], F.cross_entropy(logits, labels))
    torch.testing.assert_close(parts["teacher_loss"], loss.teacher_loss(logits, teacher_logits))


FOREIGN = {
    "timm ViT": lambda: timm.models.VisionTransformer(**TINY | {"num_classes": 5}),
    "timm ViT, adapted": lambda: adapt(timm.models.VisionTransformer(**TINY | {"num_classes": 5})),
    "timm distilled": lambda: timm_vit(num_classes=5),
}


@pytest.mark.parametrize("build", FOREIGN.values(), ids=FOREIGN.keys())
def test_foreign_students_learn(build: Callable[[], nn.Module]) -> None:
    """Eight pictures by heart, labelled by the teacher alone."""
    torch.manual_seed(0)
    student, pictures = build(), images(8, 3, 32, 32)
    if hasattr(student, "set_distilled_training"):
        student.set_distilled_training()
    teacher = cnn_teacher().eval()
    with torch.no_grad():
        teacher[0](pictures)
        teacher[-1].weight.mul_(20)
        teacher[-1].bias.sub_(teacher(pictures).mean(dim=0))
        answers = teacher(pictures).argmax(dim=1)
    assert len(answers.unique()) > 1
    loss = DistillationLoss(teacher, "hard")
    fit(student, [(pictures, answers)], loss, 40, lr=2e-3, progress=False)
    assert evaluate(student, [(pictures, answers)]) == 1
