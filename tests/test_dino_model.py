"""DINO's networks are the paper's: the head, a teacher that follows its student, any backbone."""

import copy
import io
import math
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.unlabelled import (
    BACKBONES,
    HEAD,
    REFUSED_CROPS,
    SMALL,
    crops_of,
    draw,
    same,
    small_dino,
    small_vit,
)
from torch import nn

from vit_course.dino import (
    DINO,
    DINOHead,
    DINOLoss,
    DINOSchedule,
    MultiCrop,
    SelfDistillation,
    batch_by_size,
)
from vit_course.lab.parity import DIFFERENT, relative_error
from vit_course.max_vit import MaxViT
from vit_course.training import fit
from vit_course.vit import ViT
from vit_course.xcit import XCiT

# ---- the head ----------------------------------------------------------------------------------------------


def test_head_is_the_paper_s() -> None:
    """Three layers, no activation after the third, both sides of the last product of length one; for a ViT-S
    22,286,592 weights.
    """
    with torch.device("meta"):
        parameters = DINOHead(384, 65536).parameters()
        assert sum(parameter.numel() for parameter in parameters) == 22_286_592
    torch.manual_seed(0)
    head, features = DINOHead(6, 9, hidden_dim=8, bottleneck_dim=4), draw(5, 6)
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    first, second, third = (layer for layer in head.mlp if isinstance(layer, nn.Linear))
    hidden = F.gelu(second(F.gelu(first(features))))
    bottleneck, weight = third(hidden), head.prototypes.weight
    wanted = torch.stack(
        [torch.stack([torch.cosine_similarity(row, other, dim=0) for other in weight]) for row in bottleneck]
    )
    torch.testing.assert_close(head(features), wanted)
    with_activation = torch.cosine_similarity(
        F.gelu(bottleneck)[:, None], weight[None], dim=-1
    )  # vit-pytorch's head
    assert relative_error(with_activation, wanted) > 0.01


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_stands_before_each_gelu_and_takes_the_batch_at_hand(training: bool) -> None:
    """By hand: mean and variance of this batch, in evaluation mode too, and nothing is kept of it."""
    torch.manual_seed(0)
    head = DINOHead(6, 9, hidden_dim=8, bottleneck_dim=4, batch_norm=True)
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    before, hidden = copy.deepcopy(head), draw(32, 6)
    layers = [layer for layer in head.mlp if not isinstance(layer, nn.GELU)]
    assert [type(layer) for layer in layers] == 2 * [nn.Linear, nn.BatchNorm1d] + [nn.Linear]
    for linear, norm in (layers[:2], layers[2:4]):
        hidden = F.linear(hidden, linear.weight, linear.bias)
        hidden = (hidden - hidden.mean(dim=0)) / (hidden.var(dim=0, correction=0) + 1e-5).sqrt()
        hidden = F.gelu(hidden * norm.weight + norm.bias)
    wanted = F.cosine_similarity(layers[4](hidden)[:, None], head.prototypes.weight[None], dim=-1)
    torch.testing.assert_close(head.train(training)(draw(32, 6)), wanted)
    assert not list(head.buffers()) and same(head, before)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_head_takes_features_of_any_leading_axes(batch_norm: bool) -> None:
    head = DINOHead(6, 9, hidden_dim=8, bottleneck_dim=4, batch_norm=batch_norm)
    assert sum(isinstance(layer, nn.BatchNorm1d) for layer in head.mlp) == 2 * batch_norm
    features = draw(3, 4, 5, 6)
    torch.testing.assert_close(head(features).flatten(0, 2), head(features.flatten(0, 2)))
    assert head(features).abs().max() <= 1 + 1e-6
    with pytest.raises(ValueError, match=r"takes features of width 6, got shape \(3, 7\)"):
        head(draw(3, 7))


def test_head_can_be_copied_stored_and_pickled_after_training() -> None:
    """The old weight_norm cannot be copied after a backward pass; here the length is taken off in forward."""
    head, features = DINOHead(6, 9, hidden_dim=8, bottleneck_dim=4, batch_norm=True), draw(5, 6)
    head(features).sum().backward()
    file = io.BytesIO()
    torch.save(head.eval().state_dict(), file)
    file.seek(0)
    loaded = DINOHead(6, 9, hidden_dim=8, bottleneck_dim=4, batch_norm=True).eval()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for twin in (copy.deepcopy(head), pickle.loads(pickle.dumps(head)), loaded):
        assert torch.equal(twin(features), head(features))


def test_head_refuses_sizes_below_one() -> None:
    for name in ("in_dim", "out_dim", "hidden_dim", "bottleneck_dim"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            DINOHead(**{"in_dim": 2, "out_dim": 2} | {name: 0})


# ---- student and teacher -----------------------------------------------------------------------------------


def test_teacher_is_another_object_and_starts_equal() -> None:
    model = small_dino()
    assert model.teacher is not model.student and same(model.teacher, model.student)
    shared = {p.data_ptr() for p in model.student.parameters()} & {
        p.data_ptr() for p in model.teacher.parameters()
    }
    assert not shared
    assert model.backbone is model.teacher.backbone


@pytest.mark.parametrize("name", ["ViT", "XCiT"])
def test_teacher_has_neither_gradient_nor_dropout_nor_statistics_of_its_own(name: str) -> None:
    """Also after .train() on the whole; BatchNorm in its backbone uses what it holds and learns nothing from
    the batch.
    """
    torch.manual_seed(0)
    sizes = SMALL | {"patch_size": 8, "dropout": 0.5}
    backbone = {"ViT": ViT, "XCiT": XCiT}[name](**sizes)
    model = DINO(backbone, **HEAD, batch_norm=True).train()
    assert model.student.training and not any(part.training for part in model.teacher.modules())
    before, untrained = copy.deepcopy(model.teacher), copy.deepcopy(model.student)
    crops = crops_of()
    (one, first), (other, second) = model(crops), model(crops)
    assert torch.equal(first, second), "dropout is active in the teacher"
    assert not torch.equal(one, other), "dropout is not active in the student"
    SelfDistillation(DINOLoss(24), koleo=1.0)(model, crops)[0].backward()
    assert not first.requires_grad
    assert all(
        parameter.grad is None and not parameter.requires_grad for parameter in model.teacher.parameters()
    )
    assert all(parameter.grad is not None for parameter in model.student.parameters())
    assert same(before, model.teacher)
    assert same(untrained, model.student) == (name == "ViT")  # the statistics of the student's XCiT did learn


def test_head_of_the_teacher_takes_the_batch_at_hand() -> None:
    """What it says of a picture depends on the others in the batch; what its backbone gives does not."""
    torch.manual_seed(0)
    model, crops = DINO(XCiT(**SMALL | {"patch_size": 8}), **HEAD, batch_norm=True).train(), crops_of()
    others = [torch.cat([crop[:1], 3 * draw(*crop[1:].shape, seed=9)]) for crop in crops]
    (_, said), (_, said_beside_others) = model(crops), model(others)
    assert relative_error(said_beside_others[:, 0], said[:, 0]) > DIFFERENT
    torch.testing.assert_close(model.backbone(crops[0])[0], model.backbone(others[0])[0])


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.996, 1.0])
def test_moving_average_has_its_closed_form_buffers_included(momentum: float) -> None:
    """For a student at rest θ_n = mⁿ θ_0 + (1 - mⁿ) θ_s; a counter is copied."""
    torch.manual_seed(0)
    model = DINO(XCiT(**SMALL | {"patch_size": 8}), **HEAD, batch_norm=True)  # BatchNorm in the backbone
    start = {name: tensor.clone() for name, tensor in model.teacher.state_dict().items()}
    model(crops_of((16, 16, 8)))  # the student's statistics move
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(torch.randn_like(parameter))
    for _ in range(7):
        model.update_teacher(momentum)
    student, kept = model.student.state_dict(), momentum**7
    moved = 0
    for name, tensor in model.teacher.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(
                tensor, kept * start[name] + (1 - kept) * student[name], atol=1e-5, rtol=1e-5
            )
            moved += "running" in name and not torch.equal(student[name], start[name])
        else:
            assert torch.equal(tensor, student[name])
    assert moved == 2 * (3 + 2)  # stem, and one in each block; none in the head


@pytest.mark.parametrize("momentum", [-0.1, 1.1, "0.9", None])
def test_momentum_out_of_range_is_refused(momentum: object) -> None:
    with pytest.raises((ValueError, TypeError), match="momentum must be"):
        small_dino().update_teacher(momentum)


def test_logits_stand_by_view() -> None:
    """Whatever was put into one batch, row v of the logits is view v; the teacher sees the first two."""
    model, crops = small_dino().eval(), crops_of((16, 16, 8, 12, 12, 8))
    student, teacher = model(crops)
    assert student.shape == (6, 4, 24) and teacher.shape == (2, 4, 24)
    for view, crop in enumerate(crops):
        torch.testing.assert_close(student[view], model.student.head(model.student.backbone(crop)))
    torch.testing.assert_close(teacher, student[:2])


def test_crops_of_one_size_are_one_batch() -> None:
    crops = crops_of((16, 16, 8, 8, 8, 16))
    batches = batch_by_size(crops)
    assert [tuple(batch.shape) for batch in batches] == [(8, 3, 16, 16), (12, 3, 8, 8), (4, 3, 16, 16)]
    assert torch.equal(
        torch.cat([batch.flatten() for batch in batches]), torch.cat([crop.flatten() for crop in crops])
    )
    model, calls = small_dino(), []
    model.student.backbone.register_forward_hook(
        lambda module, inputs, output: calls.append(tuple(inputs[0].shape))
    )
    model(crops[:5])
    assert calls == [(8, 3, 16, 16), (12, 3, 8, 8)]


def test_dino_refuses_what_does_not_fit() -> None:
    model = small_dino()
    for crops, kind, message in REFUSED_CROPS:
        with pytest.raises(kind, match=message):
            model(crops)
    with pytest.raises(TypeError, match="must be a list of image tensors"):
        batch_by_size([])
    with pytest.raises(TypeError, match="backbone must be a model with num_features, got Linear"):
        DINO(nn.Linear(3, 3))
    with pytest.raises(
        ValueError, match=r"pooled features \(b, 32\), got \(8, 10\): build it with num_classes=0"
    ):
        DINO(small_vit(num_classes=10), **HEAD)(crops_of((16, 16)))
    mismatched = small_dino()
    mismatched.student.head = DINOHead(48, 24, hidden_dim=20, bottleneck_dim=12)
    with pytest.raises(
        ValueError, match=r"takes features of width 32|takes features of width 48, got shape \(8, 32\)"
    ):
        mismatched(crops_of((16, 16)))
    with pytest.raises(ValueError, match="agree on b and k"):
        DINOLoss(25)(*model(crops_of()))


def few_digits(dtype: torch.dtype) -> tuple[DINO, DINO]:
    """A DINO of few digits whose student is 2 % away from its teacher, and a float32 one with its weights."""
    model = small_dino().to(dtype)
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.mul_(1.02)
    return model, copy.deepcopy(model).float()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_teacher_of_few_digits_arrives(dtype: torch.dtype) -> None:
    """Its steps are below the type's resolution. It holds at any time what a float32 average rounds to."""
    model, exact = few_digits(dtype)
    for step in range(1000):
        model.update_teacher(0.996)
        exact.update_teacher(0.996)
        if step % 100 == 0:
            assert same(model.teacher, copy.deepcopy(exact.teacher).to(dtype))
    student, teacher = model.student.state_dict(), model.teacher.state_dict()
    for name, tensor in teacher.items():
        assert tensor.dtype == dtype
        torch.testing.assert_close(tensor, student[name], rtol=0.008, atol=1e-6)
    assert model.backbone(draw(2, 3, 16, 16).to(dtype)).dtype == dtype


def test_averages_of_few_digits_go_on_from_a_checkpoint_and_from_a_copy() -> None:
    straight, _ = few_digits(torch.bfloat16)
    for _ in range(5):
        straight.update_teacher(0.996)
    file = io.BytesIO()
    torch.save(straight.state_dict(), file)
    file.seek(0)
    loaded = small_dino(seed=9).bfloat16()
    loaded.update_teacher(0.5)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    inside = nn.ModuleDict({"model": small_dino(seed=9).bfloat16()})
    inside.load_state_dict(nn.ModuleDict({"model": straight}).state_dict())
    twins = [loaded, inside["model"], copy.deepcopy(straight), pickle.loads(pickle.dumps(straight))]
    for _ in range(40):
        for model in (straight, *twins):
            model.update_teacher(0.996)
        assert all(same(twin, straight) for twin in twins)


def test_averages_follow_weights_that_are_loaded() -> None:
    """A checkpoint without averages, and a teacher whose weights were set: the old averages are void."""
    model, _ = few_digits(torch.bfloat16)
    model.update_teacher(0.9)
    other = small_dino(seed=5).bfloat16()
    model.load_state_dict(other.state_dict())
    model.update_teacher(1.0)
    assert same(model.teacher, other.teacher)
    other = small_dino(seed=6).bfloat16()
    model.teacher.load_state_dict(other.teacher.state_dict())
    model.update_teacher(1.0)
    assert same(model.teacher, other.teacher)


def test_float32_averages_add_no_names_to_a_checkpoint() -> None:
    model = small_dino()
    names = list(model.state_dict())
    model.update_teacher(0.9)
    assert list(model.state_dict()) == names
    assert names == [
        f"{network}.{name}" for network in ("student", "teacher") for name in model.student.state_dict()
    ]
    once = small_dino().bfloat16()
    once.update_teacher(0.9)
    assert len(once.state_dict()) > len(names)
    once.float().update_teacher(0.9)
    assert list(once.state_dict()) == names


def test_student_and_teacher_may_differ_in_type() -> None:
    model, wanted = small_dino(), small_dino()
    for twin in (model, wanted):
        with torch.no_grad():
            for parameter in twin.student.parameters():
                parameter.copy_(parameter.mul(1.02).bfloat16())
    model.student.bfloat16()
    model.update_teacher(0.996)
    wanted.update_teacher(0.996)
    assert same(model.teacher, wanted.teacher)


@pytest.mark.parametrize("name", BACKBONES)
def test_model_comes_whole_from_a_meta_device_a_copy_and_a_pickle(name: str) -> None:
    torch.manual_seed(0)
    build, _ = BACKBONES[name]
    model, crops = DINO(build(), **HEAD), crops_of((16, 16))
    model(crops)[0].sum().backward()
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.update_teacher(0.5)
    with torch.device("meta"):
        empty = DINO(build(), **HEAD)
    empty.to_empty(device="cpu").load_state_dict(model.state_dict())
    wanted = model.eval()(crops)
    for twin in (empty, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same(twin, model) and not any(p.requires_grad for p in twin.teacher.parameters())
        for answer, of_model in zip(twin.eval()(crops), wanted, strict=True):
            torch.testing.assert_close(answer, of_model)


# ---- any backbone ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BACKBONES)
def test_any_backbone_learns(name: str, tmp_path: Path) -> None:
    """Three steps with local crops: every weight of the student is reached, the teacher follows, and both
    come back from the checkpoint.
    """
    torch.manual_seed(0)
    build, local_size = BACKBONES[name]
    model, loss = DINO(build(), **HEAD, batch_norm=True), SelfDistillation(DINOLoss(24))
    crop, images = MultiCrop(16, local_size, 2, rotation=180.0), draw(8, 3, 16, 16)
    before, path = copy.deepcopy(model), tmp_path / "run.pt"
    schedule = DINOSchedule(momentum=0.5, frozen=0.0)
    history = fit(
        model,
        lambda generator: crop(images, generator),
        loss,
        3,
        callbacks=[schedule],
        checkpoint=path,
        progress=False,
    )
    assert all(math.isfinite(value) for value in history["loss"])
    for (key, student), teacher, old in zip(
        model.student.named_parameters(), model.teacher.parameters(), before.teacher.parameters(), strict=True
    ):
        assert student.grad is not None, key
        assert not torch.equal(teacher, old) and not torch.equal(student, old), key
    again = DINO(build(), **HEAD, batch_norm=True)
    again.load_state_dict(torch.load(path, weights_only=True)["model"])
    assert same(model, again)
    assert model.backbone(images).shape == (8, model.backbone.num_features)


def test_maxvit_says_why_small_crops_do_not_fit() -> None:
    torch.manual_seed(0)
    model = DINO(MaxViT(num_classes=0, dim=16, depth=(1, 1), window_size=2, dim_head=8), **HEAD)
    model(crops_of((16, 16)))
    with pytest.raises(ValueError, match="refuses crops of 8 × 8 pixels"):
        model(crops_of((16, 16, 8)))
