"""What the tests of EsViT share: a small model, random regions, their loss in loops over plain numbers."""

import math
from typing import Any

import torch
from torch import Tensor

from support.unlabelled import HEAD, SMALL, crops_of, cross_entropy, draw, small_vit
from vit_course.es_vit import EsViT, EsViTLoss, ViewsAndRegions
from vit_course.lab.parity import randomise
from vit_course.vit import ViT


def small_es_vit(seed: int = 0, **changes: Any) -> EsViT:
    return EsViT(small_vit(seed), **HEAD | changes)


def clear_case(prefix_tokens: int = 1) -> tuple[EsViT, EsViTLoss, list[list[Tensor]]]:
    """A model whose weights show mistakes, the teacher's others than the student's; a loss with centers;
    crops for four steps.
    """
    torch.manual_seed(0)
    model = EsViT(ViT(**SMALL, pool="cls" if prefix_tokens else "mean"), **HEAD)
    randomise(model.student, seed=1)
    randomise(model.teacher, seed=2)
    with torch.no_grad():
        for network in (model.student, model.teacher):
            network.backbone.norm.weight[:4] *= 6  # LayerNorm makes all lengths alike
    loss = EsViTLoss(24, center_momentum=0.3)  # a center that moves far shows when it moves
    loss.view.center.copy_(0.5 * draw(24, seed=3))
    loss.region.center.copy_(0.5 * draw(24, seed=4))
    return model, loss, [crops_of((8, 8, 4), b=2, seed=seed) for seed in range(0, 200, 50)]


def outputs(seed: int = 0, k: int = 7) -> tuple[ViewsAndRegions, ViewsAndRegions]:
    case = a_case(seed=seed, k=k)
    student = ViewsAndRegions(0.3 * draw(3, 3, k, seed=seed + 1), case["student"], case["student_features"])
    teacher = ViewsAndRegions(0.3 * draw(2, 3, k, seed=seed + 2), case["teacher"], case["teacher_features"])
    return student, teacher


def cosine(one: list[float], other: list[float]) -> float:
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / math.hypot(*one) / math.hypot(*other)


def slow_region_loss(
    student: list,
    student_features: list,
    teacher: list,
    teacher_features: list,
    center: list,
    student_temp: float = 0.1,
    teacher_temp: float = 0.04,
) -> float:
    """For every pair of views, picture and region of the student: find the match, take its target."""
    of_pairs = []
    for i, of_teacher in enumerate(teacher):
        for v, of_student in enumerate(student):
            if v == i:
                continue
            terms = []
            for picture, regions in enumerate(of_student):
                for region, answer in enumerate(regions):
                    feature = student_features[v][picture][region]
                    likeness = [cosine(feature, other) for other in teacher_features[i][picture]]
                    target = of_teacher[picture][likeness.index(max(likeness))]
                    terms.append(cross_entropy(target, answer, center, student_temp, teacher_temp))
            of_pairs.append(sum(terms) / len(terms))
    return sum(of_pairs) / len(of_pairs)


def regions_of(
    counts: tuple[int, ...], width: int, b: int = 3, seed: int = 0, size: float = 1.0
) -> list[Tensor]:
    """For each view (b, n, width), the lengths of the rows very different."""
    rows = [draw(b, n, width, seed=seed + view) for view, n in enumerate(counts)]
    return [size * row * (1 + 5 * draw(*row.shape[:2], 1, seed=99).abs()) for row in rows]


def a_case(counts: tuple[int, ...] = (5, 4, 2), global_views: int = 2, k: int = 7, seed: int = 0) -> dict:
    return {
        "student": regions_of(counts, k, seed=seed + 10, size=0.3),
        "student_features": regions_of(counts, 6, seed=seed + 20),
        "teacher": regions_of(counts[:global_views], k, seed=seed + 30, size=0.3),
        "teacher_features": regions_of(counts[:global_views], 6, seed=seed + 40),
        "center": 0.3 * draw(k, seed=seed + 50),
    }
