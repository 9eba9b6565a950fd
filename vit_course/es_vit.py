"""EsViT.

DINO compares whole pictures. What is gained when every patch has to find its match as well?

Made from notebooks/11_es_vit.ipynb by `make export`: read and edit the lesson, not this file.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import pack, rearrange, repeat, unpack
from torch import Tensor, nn

from vit_course.dino import (
    DINO,
    DINOHead,
    DINOLoss,
    MultiCropWrapper,
    batch_by_size,
    log_targets,
    next_center,
    require_centring,
    require_finite,
    require_temperatures,
)
from vit_course.max_vit import Pyramid
from vit_course.patching import require_between, require_floats
from vit_course.vit import Backbone, require_backbone

__all__ = ["best_match", "pair_loss", "regions_of", "region_loss", "ViewsAndRegions", "EsViT", "EsViTLoss"]


@torch.no_grad()
def best_match(student: Tensor, teacher: Tensor) -> Tensor:
    """For each region of the student's view, the region of the teacher's view whose features are most like
    its own: the largest cosine.

    Args:
        student: features (b, s, d).
        teacher: features (b, t, d).

    Returns:
        Places among the t regions, (b, s), int64.

    Raises:
        ValueError: for features that do not fit each other.
        TypeError: for anything but tensors of floats.

    Source: Li et al. 2021, section 3.2.

    Built in lesson 11.
    """
    require_floats("student", student, "b s d")
    require_floats("teacher", teacher, "b t d")
    if student.shape[0] != teacher.shape[0] or student.shape[2] != teacher.shape[2]:
        raise ValueError(
            "regions are matched within an image, by features of one width: got shapes "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    precision = torch.promote_types(student.dtype, torch.float32)  # bfloat16 makes many cosines equal
    student, teacher = (F.normalize(part.to(precision), dim=-1) for part in (student, teacher))
    return (student @ teacher.mT).argmax(dim=-1)


def pair_loss(
    log_p: Tensor, student_features: Tensor, targets: Tensor, teacher_features: Tensor
) -> tuple[Tensor, Tensor]:
    """How far the regions of the student's view are from the targets of their best matches.

    Args:
        log_p: the student's log-probabilities (b, s, k).
        student_features: for the match (b, s, d).
        targets: the teacher's probabilities for its regions (b, t, k).
        teacher_features: for the match (b, t, d).

    Returns:
        Two scalars, means over images and the student's regions: the cross-entropy, and the entropy of the
        targets that were used. Their difference is the KL divergence.

    Source: Li et al. 2021, section 3.2.

    Built in lesson 11.
    """
    match = best_match(student_features, teacher_features)
    of_match = targets.gather(1, repeat(match, "b s -> b s k", k=targets.shape[2]))  # (b, s, k)
    return -(of_match * log_p).sum(dim=-1).mean(), torch.special.entr(of_match).sum(dim=-1).mean()


def regions_of(features: Tensor, num_prefix_tokens: int = 0) -> Tensor:
    """The parts of a view that have features of their own: patches, or the cells of a map.

    Args:
        features: of a backbone, tokens (b, n, d) or a map (b, d, h, w).
        num_prefix_tokens: class tokens, which stand first and for no place in the view.

    Returns:
        (b, n, d), in reading order.

    Built in lesson 11.
    """
    if features.ndim == 4:
        return rearrange(features, "b d rows columns -> b (rows columns) d")
    return features[:, num_prefix_tokens:]


def region_loss(
    student: Sequence[Tensor],
    student_features: Sequence[Tensor],
    teacher: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    center: Tensor,
    student_temp: float = 0.1,
    teacher_temp: float = 0.04,
    center_momentum: float = 0.9,
    centring: str = "mean",
) -> tuple[Tensor, Tensor, Tensor]:
    """How far the student's regions are from their best matches in the teacher's views.

    As dino_loss, with one cross-entropy for each region of the student's view: its target is made of the
    teacher's logits for the region that matches it best. The mean over all pairs of different views, of the
    means over images and regions. No gradient reaches features, teacher or center.

    Args:
        student: for each of v views, the logits of its regions (b, s, k); s may differ from view to view.
        student_features: for each view (b, s, d), for the match.
        teacher: logits (b, t, k) for the first g views, the global ones.
        teacher_features: for each of these (b, t, d).
        center: (k,), taken from the teacher's logits.
        student_temp: as for dino_loss.
        teacher_temp: as for dino_loss.
        center_momentum: as for dino_loss.
        centring: as for dino_loss; "sinkhorn" is over the regions of all images and global views together.

    Returns:
        The loss and the mean entropy of its targets, both scalars, and the center for the next step: the old
        one moved towards the mean of the teacher's raw logits, over images, views and regions, in float32 at
        least.

    Raises:
        ValueError: for a single view, shapes that do not fit, and numbers that are not finite, naming the
            view.
        TypeError: for anything but tensors of floats.

    Source: Li et al. 2021, section 3.2; Oquab et al. 2023 for Sinkhorn-Knopp centring.

    Built in lesson 11.
    """
    require_floats("center", center, "k")
    require_temperatures(student_temp=student_temp, teacher_temp=teacher_temp)
    require_between(0, 1, center_momentum=center_momentum)
    require_centring(centring)
    _require_regions("student", student, student_features, center)
    _require_regions("teacher", teacher, teacher_features, center)
    views, global_views = len(student), len(teacher)
    if views < 2 or not 1 <= global_views <= views:
        raise ValueError(
            "a view is compared with other views: the student needs two or more, the teacher the first of "
            f"them; got {views} and {global_views}"
        )

    precision = torch.promote_types(student[0].dtype, torch.float32)  # sums of bfloat16 logits are float32
    center = center.detach()
    said, shapes = pack([logits.detach().to(precision) for logits in teacher], "* k")
    targets = unpack(log_targets(said, center, teacher_temp, centring).exp(), shapes, "* k")
    log_p = [F.log_softmax(logits.to(precision) / student_temp, dim=-1) for logits in student]
    pairs = [
        pair_loss(log_p[v], student_features[v], targets[i], teacher_features[i])
        for i in range(global_views)
        for v in range(views)
        if v != i
    ]
    loss, entropy = (torch.stack(numbers).mean() for numbers in zip(*pairs, strict=True))
    new_center = next_center(said, center, center_momentum) if centring == "mean" else center
    parts = {
        "student region logits": student,
        "student region features": student_features,
        "teacher region logits": teacher,
        "teacher region features": teacher_features,
    }
    # Features are among the results: a loss is finite also where a match was made of numbers that are not.
    require_finite("region loss", [loss, new_center, *student_features, *teacher_features], parts)
    return loss, entropy, new_center


def _require_regions(name: str, logits: Sequence[Tensor], features: Sequence[Tensor], center: Tensor) -> None:
    """Raise a TypeError or ValueError unless each view has logits (b, n, k) and features (b, n, d) for its
    regions.
    """
    if len(logits) != len(features):
        raise ValueError(
            f"the {name}'s regions have logits of {len(logits)} views, but features of {len(features)}"
        )
    for view, (of_view, features_of_view) in enumerate(zip(logits, features, strict=True)):
        require_floats(f"{name} region logits of view {view}", of_view, "b n k")
        require_floats(f"{name} region features of view {view}", features_of_view, "b n d")
        if of_view.shape[:2] != features_of_view.shape[:2] or of_view.shape[2] != center.shape[0]:
            raise ValueError(
                f"{name} regions of view {view} must agree on b, n and k, got logits {tuple(of_view.shape)}, "
                f"features {tuple(features_of_view.shape)} and center {tuple(center.shape)}"
            )


class ViewsAndRegions(NamedTuple):
    """The answers of a network to the v views of b images, and to the n regions of each view, n its own for
    every size of view.

    Args:
        views: logits (v, b, k).
        regions: for each view, logits (b, n, k).
        features: for each view, what its regions are compared by (b, n, d).

    Built in lesson 11.
    """

    views: Tensor
    regions: list[Tensor]
    features: list[Tensor]


class _RegionWrapper(MultiCropWrapper):
    """A backbone, a head for views and a head for regions: crops -> ViewsAndRegions."""

    def __init__(self, backbone: Backbone | Pyramid, head: DINOHead, region_head: DINOHead) -> None:
        super().__init__(backbone, head)
        self.region_head = region_head

    def features_and_regions(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Crops of one size, after one pass: pooled features (b, d), and those of the regions (b, n, d)."""
        features = self.run(self.backbone.forward_features, images)
        pooled = self.require_pooled(self.backbone.forward_head(features), images)
        return pooled, regions_of(features, self.backbone.num_prefix_tokens)

    def forward(self, crops: Sequence[Tensor]) -> ViewsAndRegions:
        pooled, regions = [], []
        for batch in batch_by_size(crops):
            of_batch, regions_of_batch = self.features_and_regions(batch)
            pooled.append(of_batch)
            regions += regions_of_batch.split(crops[0].shape[0])  # a tensor for each view
        all_regions, shapes = pack(regions, "* d")  # one pass, so that a BatchNorm sees them all
        return ViewsAndRegions(
            self.head(torch.cat(pooled)).unflatten(0, (len(crops), -1)),
            unpack(self.region_head(all_regions), shapes, "* k"),
            regions,
        )


class EsViT(DINO):
    """DINO for views and for their regions: a student learns to give the answers that its own slow copy, the
    teacher, gives for another view, and for each region those for its best match there.

    Regions are the patches of a ViT, without class tokens, or the cells of a pyramid's map. Each network has
    one head for views and one for regions. Everything else is as in DINO: the teacher gets no gradients and
    is always in evaluation mode, `update_teacher` moves it, `backbone` is the teacher's.

    Args:
        backbone: any model of the backbone protocol with num_classes=0; forward_features gives tokens (b,
            num_prefix_tokens + n, d) or a map (b, d, h, w), and forward_head pools them to (b, d). It runs
            once for each size of crops.
        out_dim: of both heads, as for DINO.
        hidden_dim: of both heads, as for DINOHead.
        bottleneck_dim: of both heads, as for DINOHead.
        batch_norm: of both heads, as for DINOHead.

    Shape: crops, the two global ones first, v tensors (b, c, h, w) -> the student's ViewsAndRegions of all
    views and the teacher's of the two global ones.

    Raises:
        ValueError: for sizes or crops that do not fit.
        TypeError: for a backbone or crops of another kind.

    Source: Li et al. 2021, section 3.2.

    Built in lesson 11.
    """

    def make_network(
        self, backbone: Backbone | Pyramid, make_head: Callable[[], DINOHead]
    ) -> MultiCropWrapper:
        require_backbone("backbone", backbone, "forward_features", "forward_head")
        return _RegionWrapper(backbone, make_head(), make_head())


class EsViTLoss(nn.Module):
    """The mean of DINO's loss for views and `region_loss` for their regions, each with a center of its own.

    `view` and `region` hold their centers and the temperature that has a schedule. In evaluation mode the
    centers stay.

    Args:
        out_dim: K, the number of prototypes of both heads.
        student_temp: as for DINOLoss, for both parts.
        teacher_temp: as for DINOLoss, for both parts.
        center_momentum: as for DINOLoss, for both parts.
        centring: as for DINOLoss, for both parts.

    Shape: the student's ViewsAndRegions of v views and the teacher's of the g global ones -> loss, a scalar.

    Raises:
        ValueError: for numbers and logits that do not fit, and for a loss that is not finite; both centers
            are then the old ones.
        TypeError: for anything but ViewsAndRegions.

    Source: Li et al. 2021, section 3.2; the mean instead of the sum is from the authors' code.

    Built in lesson 11.
    """

    def __init__(
        self,
        out_dim: int,
        student_temp: float = 0.1,
        teacher_temp: float = 0.04,
        center_momentum: float = 0.9,
        centring: str = "mean",
    ) -> None:
        super().__init__()
        self.view = DINOLoss(out_dim, student_temp, teacher_temp, center_momentum, centring)
        self.region = DINOLoss(out_dim, student_temp, teacher_temp, center_momentum, centring)

    def forward(self, student: ViewsAndRegions, teacher: ViewsAndRegions) -> Tensor:
        return self.with_numbers(student, teacher)[0]

    def with_numbers(
        self, student: ViewsAndRegions, teacher: ViewsAndRegions
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and what tells of a collapse: entropy of the targets and kl of the views, region_entropy
        and region_kl of the regions.
        """
        for name, answers in {"student": student, "teacher": teacher}.items():
            if not isinstance(answers, ViewsAndRegions):
                raise TypeError(
                    f"{name} must be the ViewsAndRegions of an EsViT, got {type(answers).__name__}; the loss "
                    "of a DINO is DINOLoss"
                )
        view, entropy, view_center = self.view.compare(student.views, teacher.views)
        region, region_entropy, region_center = region_loss(
            student.regions, student.features, teacher.regions, teacher.features, *self.region.settings()
        )
        self.view.move_center(view_center)  # only now that both parts are known to be finite
        self.region.move_center(region_center)
        return (view + region) / 2, {
            "entropy": entropy,
            "kl": view.detach() - entropy,
            "region_entropy": region_entropy,
            "region_kl": region.detach() - region_entropy,
        }
