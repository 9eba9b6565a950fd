"""EsViT's networks are the paper's: views are DINO's, regions stand by view, the teacher follows."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from support.regions import clear_case, small_es_vit
from support.unlabelled import HEAD, REFUSED_CROPS, SMALL, crops_of, draw, same
from torch import Tensor, nn

from vit_course import dino
from vit_course.dino import DINO, DINOHead, SelfDistillation
from vit_course.es_vit import EsViT, EsViTLoss, region_loss
from vit_course.lab.parity import DIFFERENT, relative_error
from vit_course.max_vit import MaxViT
from vit_course.vit import ViT


def test_views_are_dino_s() -> None:
    """With the same weights an EsViT says of whole views what a DINO says."""
    torch.manual_seed(0)
    backbone = ViT(**SMALL)
    plain, model, crops = DINO(backbone, **HEAD), EsViT(copy.deepcopy(backbone), **HEAD), crops_of()
    model.student.head.load_state_dict(plain.student.head.state_dict())
    model.teacher.head.load_state_dict(plain.teacher.head.state_dict())
    (student, teacher), (wanted, wanted_of_teacher) = model(crops), plain(crops)
    torch.testing.assert_close(student.views, wanted)
    torch.testing.assert_close(teacher.views, wanted_of_teacher)


def test_regions_stand_by_view() -> None:
    """Whatever was put into one batch, entry v is view v, its regions in reading order."""
    model, crops = small_es_vit().eval(), crops_of((16, 16, 8, 12, 12, 8))
    student, teacher = model(crops)
    assert [tuple(view.shape) for view in student.regions] == [(4, t, 24) for t in (16, 16, 4, 9, 9, 4)]
    assert [tuple(view.shape) for view in teacher.features] == [(4, 16, 32)] * 2
    assert student.views.shape == (6, 4, 24) and teacher.views.shape == (2, 4, 24)
    for view, crop in enumerate(crops):
        patches = model.student.backbone.forward_features(crop)[:, 1:]
        torch.testing.assert_close(student.features[view], patches)
        torch.testing.assert_close(student.regions[view], model.student.region_head(patches))
    for view in range(2):
        torch.testing.assert_close(teacher.regions[view], student.regions[view])


def test_class_token_is_no_region() -> None:
    """Another class token, after the last block, changes what is said of views and nothing of regions."""
    model, crops = small_es_vit().eval(), crops_of()
    student, _ = model(crops)

    def other_class_token(module: nn.Module, inputs: tuple, tokens: Tensor) -> Tensor:
        return torch.cat([draw(tokens.shape[0], 1, 32, seed=8), tokens[:, 1:]], dim=1)

    model.student.backbone.norm.register_forward_hook(other_class_token)
    changed, _ = model(crops)
    assert relative_error(changed.views, student.views) > DIFFERENT
    for one, other in zip(changed.regions, student.regions, strict=True):
        assert torch.equal(one, other)


def test_cells_of_a_map_are_the_regions_of_a_pyramid() -> None:
    torch.manual_seed(0)
    model = EsViT(MaxViT(num_classes=0, dim=16, depth=(1, 1), window_size=2, dim_head=8), **HEAD).eval()
    crops = crops_of((32, 32, 16))
    student, teacher = model(crops)
    feature_map = model.student.backbone.forward_features(crops[0])
    assert feature_map.shape == (4, 32, 4, 4)
    for row in range(4):
        for column in range(4):
            cell = student.features[0][:, 4 * row + column]
            torch.testing.assert_close(cell, feature_map[:, :, row, column])
    torch.testing.assert_close(student.views[0], model.student.head(model.student.backbone(crops[0])))
    assert [view.shape[1] for view in student.regions] == [16, 16, 4] and len(teacher.regions) == 2
    assert EsViTLoss(24)(student, teacher).isfinite()


def test_one_pass_for_each_size_of_crops() -> None:
    model, calls = small_es_vit(), []
    for network in (model.student, model.teacher):
        network.backbone.patch_embed.register_forward_hook(
            lambda module, inputs, output: calls.append(tuple(inputs[0].shape))
        )
        for head in (network.head, network.region_head):
            head.register_forward_hook(lambda module, inputs, output: calls.append(tuple(inputs[0].shape)))
    model(crops_of((16, 16, 8, 8, 8)))
    teacher_s = [(8, 3, 16, 16), (8, 32), (128, 32)]
    student_s = [(8, 3, 16, 16), (12, 3, 8, 8), (20, 32), (128 + 48, 32)]
    assert sorted(calls) == sorted(teacher_s + student_s)


def test_region_head_has_length_one_for_each_region() -> None:
    """vit-pytorch's normalises over the regions of a picture; ours over the numbers of each."""
    model, crops = small_es_vit(), crops_of((16, 16))
    head = model.student.region_head
    student, _ = model(crops)
    alone = head(student.features[0][:1, 5])
    torch.testing.assert_close(student.regions[0][:1, 5], alone)
    bottleneck = head.mlp(student.features[0])
    cosines = F.cosine_similarity(bottleneck[..., None, :], head.prototypes.weight, dim=-1)
    torch.testing.assert_close(student.regions[0], cosines)


def test_teacher_has_neither_gradient_nor_dropout_nor_statistics_of_its_own() -> None:
    torch.manual_seed(0)
    model = EsViT(ViT(**SMALL | {"dropout": 0.5}), **HEAD, batch_norm=True).train()
    assert model.student.training and not any(part.training for part in model.teacher.modules())
    assert not {p.data_ptr() for p in model.student.parameters()} & {
        p.data_ptr() for p in model.teacher.parameters()
    }
    assert same(model.student, model.teacher) and model.backbone is model.teacher.backbone
    before, crops = copy.deepcopy(model.teacher), crops_of()
    (_, first), (_, second) = model(crops), model(crops)
    assert torch.equal(first.views, second.views) and torch.equal(first.regions[1], second.regions[1])
    SelfDistillation(EsViTLoss(24))(model, crops)[0].backward()
    assert not first.views.requires_grad and not first.regions[0].requires_grad
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())
    assert all(p.grad is not None for p in model.student.parameters())
    assert same(before, model.teacher)
    for _ in range(3):
        model.update_teacher(0.5)
    moved = zip(
        model.teacher.state_dict().items(),
        before.state_dict().values(),
        model.student.state_dict().values(),
        strict=True,
    )
    for (name, tensor), old, student in moved:
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, old / 8 + student * 7 / 8, msg=name)


def test_both_parts_reach_the_backbone() -> None:
    """The gradient of the loss is half of each part's, and neither is small."""
    model, loss, (crops, *_) = clear_case()
    gradients = {}
    for name in ("both", "view", "region"):
        model.zero_grad()
        student, teacher = model(crops)
        {
            "both": lambda s, t: copy.deepcopy(loss)(s, t),
            "view": lambda s, t: copy.deepcopy(loss.view)(s.views, t.views),
            "region": lambda s, t: region_loss(
                s.regions, s.features, t.regions, t.features, loss.region.center
            )[0],
        }[name](student, teacher).backward()
        gradients[name] = torch.cat(
            [p.grad.flatten() for p in model.student.backbone.parameters() if p.grad is not None]
        )
    torch.testing.assert_close(
        gradients["both"], (gradients["view"] + gradients["region"]) / 2, rtol=1e-4, atol=1e-5
    )
    assert min(gradients["view"].norm(), gradients["region"].norm()) > 0.05 * gradients["both"].norm()


def test_es_vit_refuses_what_does_not_fit() -> None:
    model = small_es_vit()
    for crops, kind, message in REFUSED_CROPS:
        with pytest.raises(kind, match=message):
            model(crops)
    with pytest.raises(TypeError, match="backbone must be a model with num_features, got Linear"):
        EsViT(nn.Linear(3, 3))
    pooled_only = nn.Linear(3, 3)
    pooled_only.num_features = 3
    with pytest.raises(TypeError, match="backbone must be a model with forward_features, got Linear"):
        EsViT(pooled_only)
    with pytest.raises(
        ValueError, match=r"pooled features \(b, 32\), got \(8, 10\): build it with num_classes=0"
    ):
        EsViT(ViT(**SMALL | {"num_classes": 10}), **HEAD)(crops_of((16, 16)))
    mismatched = small_es_vit()
    mismatched.student.region_head = DINOHead(48, 24, hidden_dim=20, bottleneck_dim=12)
    with pytest.raises(ValueError, match=r"takes features of width 48, got shape \(128, 32\)"):
        mismatched(crops_of((16, 16)))
    narrow = small_es_vit()
    for network in (narrow.student, narrow.teacher):
        network.region_head = DINOHead(32, 20, hidden_dim=20, bottleneck_dim=12)
    loss = EsViTLoss(24)
    with pytest.raises(ValueError, match=r"logits \(4, 16, 20\), features \(4, 16, 32\) and center \(24,\)"):
        loss(*narrow(crops_of()))
    with pytest.raises(ValueError, match="agree on b and k"):
        EsViTLoss(25)(*model(crops_of()))
    for network in (model.student, model.teacher):
        network.head = DINOHead(32, 20, hidden_dim=20, bottleneck_dim=12)
    with pytest.raises(ValueError, match="agree on b and k"):
        loss(*model(crops_of()))
    assert loss.view.center.abs().sum() == loss.region.center.abs().sum() == 0


def test_networks_are_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two heads are drawn, in this order, and the student is copied once."""
    made, copied = [], []
    draw_head, copy_network = dino.DINOHead.__init__, copy.deepcopy

    def counted_head(head: DINOHead, *sizes: int) -> None:
        made.append(head)
        draw_head(head, *sizes)

    def counted_copy(network: nn.Module) -> nn.Module:
        copied.append(network)
        return copy_network(network)

    monkeypatch.setattr(DINOHead, "__init__", counted_head)
    monkeypatch.setattr(dino.copy, "deepcopy", counted_copy)
    model = small_es_vit()
    assert made == [model.student.head, model.student.region_head]
    assert copied == [model.student]


def test_teacher_of_few_digits_arrives() -> None:
    """The average is DINO's: it holds at any time what a float32 average rounds to, both heads included."""
    model = small_es_vit().bfloat16()
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.mul_(1.02)
    exact = copy.deepcopy(model).float()
    for _ in range(200):
        model.update_teacher(0.996)
        exact.update_teacher(0.996)
    assert same(model.teacher, copy.deepcopy(exact.teacher).bfloat16())
    start = small_es_vit().bfloat16()
    assert not torch.equal(model.teacher.region_head.mlp[0].weight, start.teacher.region_head.mlp[0].weight)


def test_model_comes_whole_from_a_copy_and_a_pickle() -> None:
    model, crops = small_es_vit(), crops_of((16, 16))
    SelfDistillation(EsViTLoss(24))(model, crops)[0].backward()
    model.update_teacher(0.5)
    (wanted, _) = model.eval()(crops)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same(twin, model)
        torch.testing.assert_close(twin.eval()(crops)[0].regions[1], wanted.regions[1])
