"""EsViT.

DINO compares whole pictures. What is gained when every patch has to find its match as well?

Made from notebooks/11_es_vit.ipynb by `make export`: read and edit the lesson, not this file.
"""

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import pack, rearrange, repeat, unpack
from torch import Tensor, nn

from vit_course.dino import DINO, DINOHead, DINOLoss, batch_by_size, dino_loss
from vit_course.patching import require_between, require_floats

__all__ = ["best_match", "region_loss", "ViewsAndRegions", "EsViT", "EsViTLoss"]


@torch.no_grad()
def best_match(student: Tensor, teacher: Tensor) -> Tensor:
    """For each region of the student's view, the region of the teacher's view whose features are most like
    its own: the largest cosine (Li et al. 2021, section 3.2).

    student: features (b, t, d). teacher: (b, s, d). Returns places among the s regions, (b, t), int64.
    Raises ValueError or TypeError for features that do not fit.

    Built in lesson 11.
    """
    require_floats("student", student, "b t d")
    require_floats("teacher", teacher, "b s d")
    if student.shape[0] != teacher.shape[0] or student.shape[2] != teacher.shape[2]:
        raise ValueError(
            f"regions are matched within an image, by features of one width: got shapes {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}"
        )
    return (F.normalize(student, dim=-1) @ F.normalize(teacher, dim=-1).mT).argmax(dim=-1)


def region_loss(
    student: Sequence[Tensor], student_features: Sequence[Tensor],
    teacher: Sequence[Tensor], teacher_features: Sequence[Tensor],
    center: Tensor, student_temp: float = 0.1, teacher_temp: float = 0.04, center_momentum: float = 0.9,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """How far the student's regions are from their best matches in the teacher's views (Li et al. 2021,
    section 3.2).

    As dino_loss, with one cross-entropy for each region of the student's view: its target is made of the
    teacher's logits for the region that matches it best. The mean over all pairs of different views, of the
    means over images and regions.

    student: for each of v views, the logits of its regions (b, t, k); t may differ from view to view.
    student_features: for each view (b, t, d), for the match; no gradient reaches them. teacher,
    teacher_features: the same for the first g views, the global ones; no gradient reaches them. center: (k,).
    student_temp, teacher_temp, center_momentum: as for dino_loss. Returns the loss, the mean entropy of its
    targets, both scalars, and the center for the next step: the old one moved towards the mean of the
    teacher's raw logits, over images, views and regions. Raises ValueError or TypeError for a single view,
    shapes that do not fit, and numbers that are not finite, naming the view.

    Built in lesson 11.
    """
    require_floats("center", center, "k")
    require_between(1e-6, math.inf, student_temp=student_temp, teacher_temp=teacher_temp)
    require_between(0, 1, center_momentum=center_momentum)
    _require_regions("student", student, student_features, center)
    _require_regions("teacher", teacher, teacher_features, center)
    views, global_views = len(student), len(teacher)
    if views < 2 or not 1 <= global_views <= views:
        raise ValueError(
            f"a view is compared with other views: the student needs two or more, the teacher the first of them; got "
            f"{views} and {global_views}"
        )

    # Sums are taken in float32 at least, also where the logits are bfloat16.
    precision = torch.promote_types(student[0].dtype, torch.float32)
    teacher = [logits.detach().to(precision) for logits in teacher]
    log_targets = [F.log_softmax((logits - center) / teacher_temp, dim=-1) for logits in teacher]
    entropies = [-(log_target.exp() * log_target).sum(dim=-1) for log_target in log_targets]  # (b, s)
    log_probabilities = [F.log_softmax(logits.to(precision) / student_temp, dim=-1) for logits in student]
    pairs, entropies_of_pairs = [], []
    for i in range(global_views):
        for v in range(views):
            if v != i:
                match = best_match(student_features[v], teacher_features[i])  # (b, t)
                targets = log_targets[i].exp().gather(1, repeat(match, "b t -> b t k", k=center.shape[0]))
                pairs.append(-(targets * log_probabilities[v]).sum(dim=-1).mean())
                entropies_of_pairs.append(entropies[i].gather(1, match).mean())
    loss = torch.stack(pairs).mean()
    raw_mean = pack(teacher, "* k")[0].mean(dim=0)
    new_center = torch.lerp(raw_mean, center.to(precision), center_momentum)
    parts = {
        "student region logits": student, "student region features": student_features,
        "teacher region logits": teacher, "teacher region features": teacher_features,
    }  # fmt: skip
    _require_finite(loss, new_center, parts)
    return loss, torch.stack(entropies_of_pairs).mean(), new_center.to(center.dtype)


def _require_regions(name: str, logits: Sequence[Tensor], features: Sequence[Tensor], center: Tensor) -> None:
    """Raise a TypeError or ValueError unless each view has logits (b, t, k) and features (b, t, d) for its
    regions.
    """
    if len(logits) != len(features):
        raise ValueError(
            f"the {name}'s regions have logits of {len(logits)} views, but features of {len(features)}"
        )
    for view, (of_view, features_of_view) in enumerate(zip(logits, features, strict=True)):
        require_floats(f"{name} region logits of view {view}", of_view, "b t k")
        require_floats(f"{name} region features of view {view}", features_of_view, "b t d")
        if of_view.shape[:2] != features_of_view.shape[:2] or of_view.shape[2] != center.shape[0]:
            raise ValueError(
                f"{name} regions of view {view} must agree on b, t and k, got logits {tuple(of_view.shape)}, features "
                f"{tuple(features_of_view.shape)} and center {tuple(center.shape)}"
            )


def _require_finite(loss: Tensor, center: Tensor, parts: dict[str, Sequence[Tensor]]) -> None:
    """Raise a ValueError that names the views with numbers that are none, where there are such views, or loss
    or center is none.
    """
    guilty = [
        f"{name} of view {view}"
        for name, tensors in parts.items()
        for view, tensor in enumerate(tensors)
        if not tensor.isfinite().all()
    ]
    if guilty or not (loss.isfinite() and center.isfinite().all()):
        raise ValueError(
            f"the region loss is {loss.item()}: not finite are the "
            f"{', '.join(guilty) or 'logits divided by the temperature'}"
        )


class ViewsAndRegions(NamedTuple):
    """What a network says of the v views of b images, and of the t regions of each view, t its own for every
    size of view.

    views: logits (v, b, k). regions: for each view, logits (b, t, k). features: for each view, what its
    regions are compared by (b, t, d).

    Built in lesson 11.
    """

    views: Tensor
    regions: list[Tensor]
    features: list[Tensor]


class _Network(nn.Module):
    """A backbone, a head for views and a head for regions: crops -> ViewsAndRegions."""

    def __init__(self, backbone: nn.Module, head: DINOHead, region_head: DINOHead) -> None:
        super().__init__()
        self.backbone, self.head, self.region_head = backbone, head, region_head

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Crops of one size, after one pass: pooled features (b, d), and those of the regions (b, t, d)."""
        height, width = images.shape[-2:]
        try:
            features = self.backbone.forward_features(images)
        except ValueError as error:
            raise ValueError(f"the backbone refuses crops of {height} × {width} pixels: {error}") from error
        pooled = self.backbone.forward_head(features)
        if pooled.shape != (images.shape[0], self.backbone.num_features):
            raise ValueError(
                f"the backbone must give pooled features (b, {self.backbone.num_features}), got "
                f"{tuple(pooled.shape)}: build it with num_classes=0"
            )
        if features.ndim == 4:  # a map
            return pooled, rearrange(features, "b d rows columns -> b (rows columns) d")
        return pooled, features[:, self.backbone.num_prefix_tokens :]  # class tokens are no regions

    def forward(self, crops: Sequence[Tensor]) -> ViewsAndRegions:
        pooled, regions = [], []
        for batch in batch_by_size(crops):
            of_batch, regions_of_batch = self.features(batch)
            pooled.append(of_batch)
            regions += regions_of_batch.split(crops[0].shape[0])  # a tensor for each view
        all_regions, shapes = pack(regions, "* d")  # one pass, so that a BatchNorm sees them all
        return ViewsAndRegions(
            self.head(torch.cat(pooled)).unflatten(0, (len(crops), -1)),
            unpack(self.region_head(all_regions), shapes, "* k"),
            regions,
        )


class EsViT(DINO):
    """DINO for views and for their regions: a student learns to say what its own slow copy, the teacher, says
    of another view, and of each region what the teacher says of its best match there (Li et al. 2021, section
    3.2).

    Regions are the patches of a ViT, without class tokens, or the cells of a pyramid's map. Each network has
    one head for views and one for regions. Everything else is as in DINO: the teacher gets no gradients and
    is always in evaluation mode, `update_teacher` moves it, `backbone` is the teacher's.

    backbone: any model of the backbone protocol with num_classes=0; forward_features gives tokens (b,
    num_prefix_tokens + t, d) or a map (b, d, h, w), and forward_head pools them to (b, d). It runs once for
    each size of crops. out_dim, hidden_dim, bottleneck_dim, batch_norm: of both heads, as for DINOHead.

    Called with crops, the two global ones first, v tensors (b, c, h, w), it gives the student's
    ViewsAndRegions of all views and the teacher's of the two global ones.
    Raises ValueError or TypeError for a backbone or crops that do not fit.

    Built in lesson 11.
    """

    def __init__(
        self, backbone: nn.Module, out_dim: int = 65536, hidden_dim: int = 2048, bottleneck_dim: int = 256,
        batch_norm: bool = False,
    ) -> None:  # fmt: skip
        for door in ("forward_features", "forward_head"):
            if not callable(getattr(backbone, door, None)):
                raise TypeError(
                    f"backbone must be a model with {door} (lab.pretrained.adapt makes one), got "
                    f"{type(backbone).__name__}"
                )
        super().__init__(backbone, out_dim, hidden_dim, bottleneck_dim, batch_norm)
        region_head = DINOHead(backbone.num_features, out_dim, hidden_dim, bottleneck_dim, batch_norm)
        self.student = _Network(backbone, self.student.head, region_head)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()


class EsViTLoss(nn.Module):
    """The mean of DINO's loss for views and `region_loss` for their regions, each with a center of its own
    (Li et al. 2021, section 3.2).

    out_dim: K. student_temp, teacher_temp, center_momentum: as for DINOLoss, for both parts. `view` and
    `region` hold their centers and the temperature that has a schedule.

    The student's ViewsAndRegions of v views and the teacher's of the g global ones -> loss, a scalar. In
    evaluation mode the centers stay. Raises ValueError or TypeError for arguments and logits that do not fit,
    and for a loss that is not finite; both centers are then the old ones.

    Built in lesson 11.
    """

    def __init__(
        self,
        out_dim: int,
        student_temp: float = 0.1,
        teacher_temp: float = 0.04,
        center_momentum: float = 0.9,
    ) -> None:
        super().__init__()
        self.view = DINOLoss(out_dim, student_temp, teacher_temp, center_momentum)
        self.region = DINOLoss(out_dim, student_temp, teacher_temp, center_momentum)

    def with_numbers(
        self, student: ViewsAndRegions, teacher: ViewsAndRegions
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and what tells of a collapse: entropy of the targets and kl of the views, region_entropy and
        region_kl of the regions.
        """
        view, view_center = dino_loss(student.views, teacher.views, *_settings(self.view))
        region, region_entropy, region_center = region_loss(
            student.regions, student.features, teacher.regions, teacher.features, *_settings(self.region)
        )
        entropy = self.view.entropy(teacher.views)  # with the center of the loss, before it moves
        if self.training:  # only now that both parts are known to be numbers
            self.view.center.copy_(view_center)
            self.region.center.copy_(region_center)
        return (view + region) / 2, {
            "entropy": entropy,
            "kl": view.detach() - entropy,
            "region_entropy": region_entropy,
            "region_kl": region.detach() - region_entropy,
        }

    def forward(self, student: ViewsAndRegions, teacher: ViewsAndRegions) -> Tensor:
        return self.with_numbers(student, teacher)[0]


def _settings(part: DINOLoss) -> tuple[Tensor, float, float, float]:
    """Center, temperatures and momentum, in the order in which dino_loss and region_loss take them."""
    return part.center, part.student_temp, part.teacher_temp.item(), part.center_momentum
