"""DINO is the paper's: its loss beside slow double loops, its teacher and its centre beside closed forms, its training beside a stop."""

import copy
import io
import math
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.parity import DIFFERENT, heat, relative_error
from timm.models import VisionTransformer
from torch import Tensor, nn
from support.unlabelled import HEAD, SMALL, crops_of, draw, log_softmax, same, slow_uniformity, stop_and_resume, train

from vit_course import dino
from vit_course.cait import CaiT
from vit_course.dino import (
    DINO,
    DINOHead,
    DINOLoss,
    MultiCrop,
    SelfDistillation,
    batch_by_size,
    dino_loss,
    dino_schedules,
    uniformity,
)
from vit_course.distillation import DistilledViT
from vit_course.lab.pretrained import adapt
from vit_course.max_vit import MaxViT
from vit_course.patching import ConvStem
from vit_course.training import fit
from vit_course.vit import SimpleViT, ViT
from vit_course.xcit import XCiT


def small_vit(seed: int = 0, **changes) -> ViT:
    torch.manual_seed(seed)
    return ViT(**SMALL | changes)


def small_dino(seed: int = 0, **changes) -> DINO:
    return DINO(small_vit(seed), **HEAD | changes)


# ---- the loss -------------------------------------------------------------------------------------------------------------------------


def slow_loss(
    student: list, teacher: list, center: list, student_temp: float, teacher_temp: float
) -> tuple[float, int]:
    """Equations 1 to 4 as loops over plain numbers: the loss and how many pairs of views it is the mean of."""

    total, pairs = 0.0, 0
    for i, targets_of_view in enumerate(teacher):
        for v, outputs_of_view in enumerate(student):
            if v == i:
                continue
            pairs += 1
            for target, output in zip(targets_of_view, outputs_of_view, strict=True):
                centred = [logit - middle for logit, middle in zip(target, center, strict=True)]
                for log_q, log_p in zip(
                    log_softmax(centred, teacher_temp), log_softmax(output, student_temp), strict=True
                ):
                    total -= math.exp(log_q) * log_p / len(targets_of_view)
    return total / pairs, pairs


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
        wanted, pairs = slow_loss(
            student.to(dtype).tolist(), teacher.to(dtype).tolist(), center.to(dtype).tolist(), student_temp, teacher_temp
        )  # fmt: skip
        assert abs(loss.item() - wanted) <= tolerance * abs(wanted)
        assert pairs == global_views * (views - 1)
        torch.testing.assert_close(
            new_center, (0.9 * center + 0.1 * teacher.flatten(0, 1).mean(dim=0)).to(dtype)
        )


def test_number_of_terms_is_the_paper_s() -> None:
    """2(n + 2) - 2 pairs for n local crops: with one wrong pair of views, the loss is that pair's part of it."""
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
        wanted, _ = slow_loss(student.tolist(), teacher.tolist(), center.tolist(), 0.1, 0.04)
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


# ---- the head -------------------------------------------------------------------------------------------------------------------------


def test_head_is_the_paper_s() -> None:
    """Three layers, no activation after the third, both sides of the last product of length one; 22,286,592 weights for a ViT-S."""
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


# ---- student and teacher --------------------------------------------------------------------------------------------------------------


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
    """Also after .train() on the whole; BatchNorm in its backbone uses what it holds and learns nothing from the batch."""
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
    SelfDistillation(DINOLoss(24), spread=1.0)(model, crops)[0].backward()
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
    for crops, message in [
        (crops_of((16,)), "needs two global crops or more, got 1"),
        (crops_of((16, 16, 10)), r"refuses crops of 10 × 10 pixels: image_size \(10, 10\) is not divisible by patch_size \(4, 4\)"),
        ([draw(4, 3, 16, 16), draw(3, 3, 16, 16)], r"views of the same images, got shapes \[\(4, 3, 16, 16\), \(3, 3, 16, 16\)\]"),
        ([draw(4, 1, 16, 16)] * 2, "must have 3 channels, got 1"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            model(crops)
    for crops in (draw(4, 3, 16, 16), [1, 2], [None, None]):
        with pytest.raises(TypeError, match="must be a"):
            model(crops)
    with pytest.raises(TypeError, match="must be a list of image tensors"):
        batch_by_size([])
    with pytest.raises(TypeError, match="a model with num_features"):
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


# ---- any backbone -----------------------------------------------------------------------------------------------------


def timm_vit() -> nn.Module:
    return adapt(
        VisionTransformer(img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=0)
    )


BACKBONES = {
    "ViT": lambda: ViT(**SMALL),
    "ViT, mean of the patches": lambda: ViT(**SMALL | {"pool": "mean"}),
    "ViT, convolutional stem": lambda: ViT(**SMALL, patch_embedding=ConvStem(patch_size=4, dim=32)),
    "SimpleViT": lambda: SimpleViT(**SMALL),
    "DistilledViT": lambda: DistilledViT(**SMALL),
    "CaiT": lambda: CaiT(**SMALL, layer_dropout=0.1),
    "XCiT": lambda: XCiT(**SMALL),
    "MaxViT": lambda: MaxViT(num_classes=0, dim=16, depth=(1, 1), window_size=1, dim_head=8),
    "timm's ViT": timm_vit,
}  # fmt: skip


@pytest.mark.parametrize("name", BACKBONES)
def test_any_backbone_learns(name: str, tmp_path: Path) -> None:
    """Three steps with local crops: every weight of the student is reached, the teacher follows, and both come back from the checkpoint."""
    torch.manual_seed(0)
    model, loss = DINO(BACKBONES[name](), **HEAD, batch_norm=True), SelfDistillation(DINOLoss(24))
    crop, images = MultiCrop(16, 8, 2, rotation=180.0), draw(8, 3, 16, 16)
    before, path = copy.deepcopy(model), tmp_path / "run.pt"
    schedules = dino_schedules(model, loss, 3, momentum=0.5, frozen=0.0)
    history = fit(
        model, lambda generator: crop(images, generator), loss, 3, checkpoint=path, progress=False, **schedules
    )  # fmt: skip
    assert all(math.isfinite(value) for value in history["loss"])
    for (key, student), teacher, old in zip(
        model.student.named_parameters(), model.teacher.parameters(), before.teacher.parameters(), strict=True
    ):
        assert student.grad is not None, key
        assert not torch.equal(teacher, old) and not torch.equal(student, old), key
    again = DINO(BACKBONES[name](), **HEAD, batch_norm=True)
    again.load_state_dict(torch.load(path, weights_only=True)["model"])
    assert same(model, again)
    assert model.backbone(images).shape == (8, model.backbone.num_features)


def test_maxvit_says_why_small_crops_do_not_fit() -> None:
    torch.manual_seed(0)
    model = DINO(MaxViT(num_classes=0, dim=16, depth=(1, 1), window_size=2, dim_head=8), **HEAD)
    model(crops_of((16, 16)))
    with pytest.raises(ValueError, match="refuses crops of 8 × 8 pixels"):
        model(crops_of((16, 16, 8)))


# ---- keeping pictures apart -------------------------------------------------------------------------------------------------------------


def apart(*shape: int) -> Tensor:
    """Features (v, b, d) of very different lengths; those of the first view lie close together, those of the last all around."""
    near = torch.linspace(4.0, 0.0, shape[0])[:, None, None]
    return (draw(*shape, seed=1) + near * draw(1, 1, shape[2], seed=2)) * draw(*shape[:2], 1, seed=3).exp()


@pytest.mark.parametrize("shape", [(1, 2, 3), (2, 2, 1), (2, 3, 4), (3, 8, 16), (4, 32, 12), (1, 40, 256)])
def test_uniformity_is_that_of_the_slow_loops(shape: tuple[int, int, int]) -> None:
    for dtype, tolerance in {torch.float64: 1e-12, torch.float32: 1e-6}.items():
        features = apart(*shape).to(dtype)
        assert abs(uniformity(features).item() - slow_uniformity(features)) <= tolerance


@pytest.mark.parametrize("degrees, wanted", [(0, 0.0), (60, -2.0), (90, -4.0), (180, -8.0)])
def test_uniformity_of_two_directions_is_known(degrees: float, wanted: float) -> None:
    """-2 · squared distance, and that is 2 - 2 cos of the angle."""
    angle = torch.tensor(math.radians(degrees))
    pair = torch.stack([torch.tensor([3.0, 0.0]), 0.2 * torch.stack([angle.cos(), angle.sin()])])
    assert uniformity(pair[None]).item() == pytest.approx(wanted, abs=1e-6)


def test_properties_of_uniformity() -> None:
    features = apart(3, 8, 5)
    value = uniformity(features)
    torch.testing.assert_close(uniformity(features * draw(3, 8, 1, seed=4).exp()), value)
    torch.testing.assert_close(uniformity(features.flip(1)), value)
    torch.testing.assert_close(uniformity(features @ torch.linalg.qr(draw(5, 5, seed=5)).Q), value)
    torch.testing.assert_close(torch.stack([uniformity(view[None]) for view in features]).mean(), value)
    assert uniformity(draw(2, 1, 16).expand(2, 8, 16)).item() == pytest.approx(0.0, abs=2e-6)
    assert uniformity(draw(1, 200, 1000)).item() == pytest.approx(-4.0, abs=0.02)


def test_uniformity_drives_points_apart_and_has_a_gradient_where_two_coincide() -> None:
    """The root in a distance has none there. Four points in space end as a tetrahedron: squared distances 8/3."""
    points = torch.eye(3)[None, [0, 0, 1, 2]]  # whole numbers: the distance is 0, not nearly 0
    points.requires_grad_()
    (gradient,) = torch.autograd.grad(uniformity(points), points)
    assert gradient.isfinite().all() and gradient.norm() > 0.01
    with torch.no_grad():
        points += 0.01 * draw(1, 4, 3)
    optimizer = torch.optim.SGD([points], lr=0.5)
    for _ in range(300):
        optimizer.zero_grad()
        uniformity(points).backward()
        optimizer.step()
    assert uniformity(points).item() == pytest.approx(-2 * 8 / 3, abs=1e-3)
    together = torch.eye(3)[None, [0, 0, 0, 0]].requires_grad_()
    assert torch.autograd.grad(uniformity(together), together)[0].isfinite().all()


def test_uniformity_refuses_what_has_no_pairs() -> None:
    for features, kind, message in [
        (draw(2, 1, 5), ValueError, r"of pairs of images: got shape \(2, 1, 5\)"),
        (draw(4, 5), ValueError, r"features must have axes \(v b d\), got shape \(4, 5\)"),
        (torch.ones(2, 3, 5, dtype=torch.int64), TypeError, "features must be floats, got torch.int64"),
        ([[[1.0]]], TypeError, "features must be a tensor"),
    ]:
        with pytest.raises(kind, match=message):
            uniformity(features)
    for spread in (-0.1, math.nan):
        with pytest.raises(ValueError, match="spread must be in 0"):
            SelfDistillation(DINOLoss(24), spread)


def spread_by_hand(model: DINO, crops: list[Tensor]) -> tuple[float, Tensor]:
    """The loss with spread=3 from backbone, head and slow loops, view by view; and the directions (v, b, d)."""
    features = torch.stack([model.student.backbone(crop) for crop in crops])
    directions = model.student.head.mlp(features.flatten(0, 1)).unflatten(0, features.shape[:2])
    student = F.linear(
        F.normalize(directions, dim=-1), F.normalize(model.student.head.prototypes.weight, dim=-1)
    )
    teacher = model.teacher.head(torch.cat([model.teacher.backbone(crop) for crop in crops[:2]]))
    paper, _ = slow_loss(student.tolist(), teacher.unflatten(0, (2, -1)).tolist(), 24 * [0.0], 0.1, 0.04)
    return paper + 3 * slow_uniformity(directions), directions


def hot(batch_norm: bool = False) -> tuple[DINO, list[Tensor]]:
    model = small_dino(batch_norm=batch_norm)
    heat(model.student, seed=1)
    heat(model.teacher, seed=2)
    return model, [(1 + view) * crop for view, crop in enumerate(crops_of(b=6))]


def test_a_refused_call_leaves_the_center_where_it_was() -> None:
    model, loss = small_dino(), DINOLoss(24)
    with pytest.raises(ValueError, match=r"of pairs of images: got shape \(4, 1, 12\)"):
        SelfDistillation(loss, spread=1.0)(model, crops_of(b=1))
    assert not loss.center.any()


def test_uniformity_of_bfloat16_is_summed_in_float32() -> None:
    features = draw(2, 6, 8).bfloat16()
    assert uniformity(features).dtype == torch.float32
    torch.testing.assert_close(uniformity(features), uniformity(features.float()))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_spread_adds_the_uniformity_of_the_student_s_directions(batch_norm: bool) -> None:
    model, crops = hot(batch_norm)
    wanted, directions = spread_by_hand(model, crops)
    value, numbers = SelfDistillation(DINOLoss(24), spread=3.0)(model, crops)
    assert value.item() == pytest.approx(wanted, rel=1e-5)
    assert set(numbers) == {"entropy", "kl", "spread"}
    assert numbers["spread"].item() == pytest.approx(slow_uniformity(directions), rel=1e-5)
    assert not any(number.requires_grad for number in numbers.values())
    paper = DINOLoss(24)(*model(crops))
    torch.testing.assert_close(numbers["entropy"] + numbers["kl"], paper)


def squared_distances(features: Tensor) -> Tensor:
    """Of the directions of features (v, b, d), all pairs of a view: (v, pairs)."""
    return torch.stack([torch.pdist(F.normalize(view, dim=-1)) for view in features]).square()


def lengths_count(features: Tensor) -> Tensor:
    distances = torch.stack([torch.pdist(view) for view in features]).square()
    return (-2 * distances).exp().mean(dim=1).log().mean()


def all_views_at_once(features: Tensor) -> Tensor:
    return uniformity(features.flatten(0, 1)[None])


def one_log_for_all_views(features: Tensor) -> Tensor:
    return (-2 * squared_distances(features)).exp().mean().log()


def temperature_one(features: Tensor) -> Tensor:
    return (-squared_distances(features)).exp().mean(dim=1).log().mean()


def mean_of_logs(features: Tensor) -> Tensor:
    return -2 * squared_distances(features).mean()


def no_square(features: Tensor) -> Tensor:
    return (-2 * squared_distances(features).sqrt()).exp().mean(dim=1).log().mean()


def each_with_itself(features: Tensor) -> Tensor:
    directions = F.normalize(features, dim=-1)
    return (-2 * torch.cdist(directions, directions) ** 2).exp().mean(dim=(1, 2)).log().mean()


def sum_over_views(features: Tensor) -> Tensor:
    return features.shape[0] * uniformity(features)


def other_sign(features: Tensor) -> Tensor:
    return -uniformity(features)


OTHER_SPREADS = [
    lengths_count, all_views_at_once, one_log_for_all_views, temperature_one, mean_of_logs, no_square, each_with_itself,
    sum_over_views, other_sign,
]  # fmt: skip


@pytest.mark.parametrize("mutant", OTHER_SPREADS, ids=lambda mutant: mutant.__name__)
def test_the_slow_loops_see_another_spread(mutant: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    model, crops = hot()
    wanted, _ = spread_by_hand(model, crops)
    monkeypatch.setattr(dino, "uniformity", mutant)
    error = abs(SelfDistillation(DINOLoss(24), spread=3.0)(model, crops)[0].item() - wanted) / abs(wanted)
    print(f"{mutant.__name__}: {error:.3g}")
    assert error > DIFFERENT


@pytest.mark.parametrize(
    "place", ["student.backbone", "student.head", "student.head.mlp.2", "teacher.head.mlp"]
)
def test_the_slow_loops_see_directions_of_another_place(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def record_there(student: nn.Module) -> Iterator[dict[nn.Module, Tensor]]:
        made: list[Tensor] = []
        directions: dict[nn.Module, Tensor] = {}

        def keep(module: nn.Module, given: tuple, output: Tensor) -> None:
            made.append(output)  # the backbone runs once for each size
            directions[student.head] = torch.cat(made)

        with model.get_submodule(place).register_forward_hook(keep):
            yield directions

    model, crops = hot()
    wanted, _ = spread_by_hand(model, crops)
    monkeypatch.setattr(dino, "_record_directions", record_there)
    error = abs(SelfDistillation(DINOLoss(24), spread=3.0)(model, crops)[0].item() - wanted) / abs(wanted)
    print(f"{place}: {error:.3g}")
    assert error > DIFFERENT


def gradients(network: nn.Module) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


def test_gradient_of_the_spread_reaches_the_backbone_and_no_prototype() -> None:
    """It is that of the formula written with distances, and no small part of the whole."""
    model, crops = hot()
    found = {}
    for spread in (0.0, 3.0):
        model.zero_grad()
        SelfDistillation(DINOLoss(24), spread)(model, crops)[0].backward()
        found[spread] = gradients(model.student.backbone), model.student.head.prototypes.weight.grad.clone()
    model.zero_grad()
    _, directions = spread_by_hand(model, crops)
    (-2 * squared_distances(directions)).exp().mean(dim=1).log().mean().mul(3).backward()
    own = gradients(model.student.backbone)
    torch.testing.assert_close(found[3.0][0] - found[0.0][0], own, rtol=1e-3, atol=1e-5)
    assert own.norm() > 0.05 * found[0.0][0].norm()
    assert torch.equal(found[3.0][1], found[0.0][1])


def test_no_spread_is_the_paper_s_loss_bit_by_bit() -> None:
    model, crops = hot()
    for objective in (SelfDistillation(DINOLoss(24)), SelfDistillation(DINOLoss(24), spread=0)):
        value, numbers = objective(model, crops)
        wanted, of_loss = DINOLoss(24).with_numbers(*model(crops))
        assert torch.equal(value, wanted) and numbers == of_loss and set(numbers) == {"entropy", "kl"}


def test_recording_leaves_nothing_on_the_model() -> None:
    """Also where the model refuses its crops halfway; a hook that stayed could not be pickled."""
    model, objective = small_dino(), SelfDistillation(DINOLoss(24), spread=1.0)
    objective(model, crops_of())
    pickle.dumps(model)
    with pytest.raises(ValueError, match="refuses crops of 10 × 10"):
        objective(model, crops_of((16, 16, 10)))
    pickle.dumps(model)


# ---- views ------------------------------------------------------------------------------------------------------------------------------


def test_multicrop_gives_the_global_views_first() -> None:
    crops = MultiCrop(20, 12, 3)(draw(4, 3, 32, 32))
    assert [tuple(crop.shape) for crop in crops] == [(4, 3, 20, 20)] * 2 + [(4, 3, 12, 12)] * 3
    assert all(crop.isfinite().all() for crop in crops)
    assert len(MultiCrop(20, local_crops=0)(draw(4, 3, 32, 32))) == 2
    assert [len(MultiCrop().views), MultiCrop().views[0], MultiCrop().views[-1]] == [
        10,
        (224, (0.4, 1.0)),
        (96, (0.05, 0.4)),
    ]  # the paper's


def test_every_view_of_every_image_has_its_own_draw() -> None:
    """Six times one image: all views differ, where vit-pytorch draws once for the whole batch."""
    images = draw(1, 3, 32, 32).expand(6, -1, -1, -1)
    for recolour in (False, True):
        views = torch.cat(MultiCrop(16, 16, 1, recolour=recolour)(images)).flatten(1)
        distances = torch.cdist(views, views) + 99 * torch.eye(len(views))
        assert distances.min() > 0.1


def test_views_repeat_with_their_generator_and_leave_the_global_state() -> None:
    images, crop = draw(4, 3, 32, 32), MultiCrop(16, 8, 2, rotation=180.0)
    state = torch.get_rng_state()
    one, other, third = (crop(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, third, strict=True))
    assert torch.equal(state, torch.get_rng_state())


def test_recolouring_turns_the_hue_and_keeps_grey_grey_and_light_light() -> None:
    """A grey picture stays grey but for the noise; the lighter half stays the lighter half; colours change."""
    torch.manual_seed(0)
    grey = torch.zeros(200, 3, 8, 8)
    grey[..., 4:] = 1.0
    changed = dino._recolour(grey, None)
    assert (changed - changed.mean(dim=1, keepdim=True)).abs().mean() < 0.05  # noise only
    steps = changed[..., 6:].mean(dim=(1, 2, 3)) - changed[..., :2].mean(dim=(1, 2, 3))
    assert steps.min() > 0.4 and steps.max() < 1.6  # the contrast, 0.5 to 1.5

    coloured = torch.zeros(200, 3, 8, 8)
    coloured[:, 0] = 1.0
    means = dino._recolour(coloured, None).mean(dim=(2, 3))
    hues = torch.atan2(
        math.sqrt(3) * (means[:, 1] - means[:, 2]), 2 * means[:, 0] - means[:, 1] - means[:, 2]
    )
    assert (hues.cos().mean() ** 2 + hues.sin().mean() ** 2).sqrt() < 0.25, (
        "hues are not spread over the circle"
    )


def test_multicrop_refuses_what_does_not_fit() -> None:
    for arguments, message in [
        ({"global_size": 0}, "global_size must be at least 1"),
        ({"local_size": 0}, "local_size must be at least 1"),
        ({"local_crops": -1}, "local_crops must be at least 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            MultiCrop(**{"global_size": 8, "local_size": 4, "local_crops": 1} | arguments)
    with pytest.raises(ValueError, match="scale must be two shares"):
        MultiCrop(8, 4, 1, global_scale=(0.9, 0.5))(draw(2, 3, 16, 16))
    with pytest.raises(ValueError, match="must have 3 channels, got 1"):
        MultiCrop(8, 4, 1)(draw(2, 1, 16, 16))
    assert len(MultiCrop(8, 4, 1, recolour=False)(draw(2, 1, 16, 16))) == 3


# ---- schedules and training -----------------------------------------------------------------------------------------------------


def test_schedules_are_the_paper_s() -> None:
    model, loss = small_dino(), SelfDistillation(DINOLoss(24))
    schedules = dino_schedules(model, loss, 100)
    assert loss.loss.teacher_temp.item() == pytest.approx(0.04)
    rates = [schedules["lr"](step) for step in range(100)]
    assert rates[0] == pytest.approx(5e-5) and max(rates) == rates[9] == rates[10] == pytest.approx(5e-4)
    assert rates[99] < 2e-6 and all(
        later <= earlier for earlier, later in zip(rates[10:], rates[11:], strict=False)
    )
    decays = [schedules["weight_decay"](step) for step in (0, 50, 99)]
    assert decays == [pytest.approx(0.04), pytest.approx(0.22), pytest.approx(0.4, abs=1e-3)]

    momenta, temperatures = [], []
    model.update_teacher = momenta.append
    for step in range(100):
        temperatures.append(loss.loss.teacher_temp.item())
        schedules["after_step"](step)
    assert (
        momenta[0] == pytest.approx(0.996)
        and momenta[50] == pytest.approx(0.998)
        and 0.999998 < momenta[99] < 1
    )
    assert temperatures[0] == pytest.approx(0.04) and temperatures[28] < 0.0695
    assert (
        temperatures[29:] == [pytest.approx(0.07)] * 71
    )  # the epochs of the official code: linspace(.04, .07, 30)
    assert temperatures[10] == pytest.approx(0.04 + 0.03 * 10 / 29)


def test_gradients_are_clipped_one_by_one() -> None:
    model = small_dino()
    schedules = dino_schedules(model, SelfDistillation(DINOLoss(24)), 100, clip=3.0)
    for number, parameter in enumerate(model.student.parameters()):
        parameter.grad = torch.ones_like(parameter) * (100.0 if number % 2 else 1e-3)
    schedules["before_step"](50)
    for number, parameter in enumerate(model.student.parameters()):
        length = parameter.grad.norm().item()
        assert (
            length == pytest.approx(3.0, rel=1e-3)
            if number % 2
            else length == pytest.approx(1e-3 * parameter.numel() ** 0.5, rel=1e-3)
        )


def whole(seed: int = 0) -> tuple[DINO, SelfDistillation]:
    torch.manual_seed(seed)
    model = DINO(ViT(**SMALL | {"dropout": 0.2}), **HEAD, batch_norm=True)
    return model, SelfDistillation(DINOLoss(24), spread=1.0)


def test_prototypes_rest_at_first_and_move_later() -> None:
    """Neither a gradient nor weight decay moves them; nothing else rests."""
    (model, loss), resting = whole(), []
    before = [parameter.clone() for parameter in model.student.parameters()]

    def watch(step: int) -> None:
        *others, prototypes = [
            torch.equal(parameter, old)
            for parameter, old in zip(model.student.parameters(), before, strict=True)
        ]
        assert not any(others)
        resting.append(prototypes)

    train(model, loss, steps=4, frozen=0.5, after=watch)
    assert resting == [True, True, False, False]


@pytest.mark.parametrize("stop", range(5))
def test_training_stopped_anywhere_and_resumed_is_the_same(stop: int, tmp_path: Path) -> None:
    """Student, teacher, centre, temperature, optimiser, schedules and random state: bit by bit."""
    straight, straight_loss = whole()
    history = train(straight, straight_loss)
    resumed, resumed_loss, again = stop_and_resume(whole, stop, tmp_path / "run.pt")
    assert same(straight, resumed) and same(straight_loss, resumed_loss)
    assert again == history and set(history) == {"loss", "entropy", "kl", "spread", "lr"}
    assert resumed_loss.loss.center.abs().sum() > 0


def test_a_loss_that_is_not_finite_stops_the_training_and_saves_nothing(tmp_path: Path) -> None:
    model, loss = whole()

    def poison(step: int) -> None:
        if step == 2:
            with torch.no_grad():
                model.student.head.mlp[0].weight[0, 0] = math.nan

    path = tmp_path / "run.pt"
    with pytest.raises(ValueError, match="student logits of view 0, student logits of view 1"):
        train(model, loss, checkpoint=path, checkpoint_every=2, after=poison)
    state = torch.load(path, weights_only=True)
    assert state["step"] == 2
    assert all(tensor.isfinite().all() for tensor in [*state["model"].values(), *state["loss"].values()])


def test_schedules_refuse_what_does_not_fit() -> None:
    model = small_dino()
    with pytest.raises(ValueError, match="there is none in MSELoss"):
        dino_schedules(model, nn.MSELoss(), 10)
    for name, value in {"momentum": 1.5, "warmup": -0.1, "temp_warmup": 2.0, "frozen": -1.0}.items():
        with pytest.raises(ValueError, match=f"{name} must be in"):
            dino_schedules(model, DINOLoss(24), 10, **{name: value})
    with pytest.raises(ValueError, match="steps must be at least 1"):
        dino_schedules(model, DINOLoss(24), 0)
