"""Distillation.

How can a small model learn from the answers of a trained one, and what is that worth where labels are few?

Made from notebooks/08_distillation.ipynb by `make export`: read and edit the lesson, not this file.
"""

import copy
import math
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_course.patching import require_between, require_images, require_tokens
from vit_course.training import eval_mode
from vit_course.vit import ViT, classifier

__all__ = [
    "soft_targets",
    "soft_loss",
    "teacher_loss",
    "distillation_loss",
    "teacher_answers",
    "DistillationLoss",
    "DistilledViT",
]


def soft_targets(logits: Tensor, temperature: float) -> Tensor:
    """A teacher's softened probabilities: the softmax of logits that are divided by a temperature.

    Args:
        logits: (…, classes).
        temperature: T, above 0; the larger, the more even the result.

    Returns:
        Probabilities (…, classes).

    Source: Hinton et al. 2015, equation 1.

    Built in lesson 08.
    """
    return F.softmax(logits / temperature, dim=-1)


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² times the Kullback-Leibler divergence of the softened student from the softened teacher.

    Args:
        student, teacher: logits (b, classes).
        temperature: T, above 0.

    Returns:
        A scalar, the mean over the pictures: T² KL(softmax(teacher / T) ‖ softmax(student / T)).

    Source: Hinton et al. 2015, section 2; Touvron et al. 2020, equation 2.

    Built in lesson 08.
    """
    log_q, log_p = (F.log_softmax(logits / temperature, dim=-1) for logits in (student, teacher))
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def teacher_loss(logits: Tensor, teacher_logits: Tensor, kind: str, temperature: float) -> Tensor:
    """The teacher's part of the loss: `soft_loss`, or the cross-entropy with the teacher's answer.

    Args:
        logits, teacher_logits: (b, classes).
        kind: 'soft' or 'hard'.
        temperature: T, for 'soft'.

    Returns:
        A scalar.

    Source: Touvron et al. 2020, equations 2 and 3.

    Built in lesson 08.
    """
    if kind == "hard":
        return F.cross_entropy(logits, teacher_logits.argmax(dim=-1))
    return soft_loss(logits, teacher_logits, temperature)


def distillation_loss(
    class_logits: Tensor,
    dist_logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor,
    kind: str,
    temperature: float,
    alpha: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """A mixture of what the labels say and what the teacher says.

    Args:
        class_logits: (b, classes), compared with the labels.
        dist_logits: (b, classes), compared with the teacher; the same tensor where the student has one head.
        labels: (b,); -100 stands for a missing one.
        teacher_logits: (b, classes).
        kind, temperature: as for `teacher_loss`.
        alpha: the teacher's share.

    Returns:
        Three scalars: the loss, its label's part, its teacher's part.

    Source: Touvron et al. 2020, equations 2 and 3.

    Built in lesson 08.
    """
    labelled = (labels != -100).sum().clamp(min=1)
    by_label = F.cross_entropy(class_logits, labels, reduction="sum") / labelled
    by_teacher = teacher_loss(dist_logits, teacher_logits, kind, temperature)
    return (1 - alpha) * by_label + alpha * by_teacher, by_label, by_teacher


@torch.no_grad()
def teacher_answers(teacher: nn.Module, images: Tensor) -> Tensor:
    """A teacher's logits: without gradients, and in evaluation mode, in which no statistic of it moves.

    Args:
        teacher: a trained model, images -> logits.
        images: (b, c, h, w).

    Returns:
        Logits (b, classes). Every part of the teacher gets back its mode.

    Built in lesson 08.
    """
    with eval_mode(teacher):
        return teacher(images)


class DistillationLoss(nn.Module):
    """Learn from labels and from a teacher at once.

    (1 - alpha) · cross-entropy with the labels + alpha · the teacher's part: for kind 'soft' T² KL(teacher ‖
    student), both softened by the temperature T; for 'hard' the cross-entropy with the teacher's answer.

    Called with a student and a batch, images (b, c, h, w) and labels (b,), it gives the loss and its two
    parts, as `fit` wants them. A student with two heads, a DistilledViT in training, shows the class logits
    to the labels and the distillation logits to the teacher; any other shows its logits to both. A label of
    -100, PyTorch's mark for "ignore", is none: that image learns from the teacher alone.

    Args:
        teacher: a trained model, images -> logits (b, classes). A copy of it is kept, which answers in
            evaluation mode and is never trained.
        kind: 'soft' or 'hard'.
        temperature: T, for 'soft'.
        alpha: the teacher's share; by default 0.1 for 'soft' and 0.5 for 'hard'.

    Raises:
        TypeError, ValueError: for arguments, batches and logits that do not fit.

    Source: Hinton et al. 2015; Touvron et al. 2020, equations 2 and 3.

    Built in lesson 08.
    """

    def __init__(
        self, teacher: nn.Module, kind: str = "soft", temperature: float = 3.0, alpha: float | None = None
    ) -> None:
        super().__init__()
        if not isinstance(teacher, nn.Module):
            raise TypeError(f"teacher must be a torch.nn.Module, got {teacher!r}")
        if kind not in ("soft", "hard"):
            raise ValueError(f"kind must be 'soft' or 'hard', got {kind!r}")
        require_between(0, math.inf, temperature=temperature)
        if temperature in (0, math.inf):
            raise ValueError(f"temperature must be above 0 and finite, got {temperature}")
        self.kind, self.temperature = kind, temperature
        self.alpha = {"soft": 0.1, "hard": 0.5}[kind] if alpha is None else alpha
        require_between(0, 1, alpha=self.alpha)
        self.teacher = copy.deepcopy(teacher).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Training mode for the loss, never for its teacher."""
        super().train(mode)
        self.teacher.eval()
        return self

    def teacher_logits(self, images: Tensor) -> Tensor:
        """What the teacher answers (b, classes)."""
        return teacher_answers(self.teacher, images)

    def teacher_loss(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """The teacher's part of the loss for logits (b, classes) of the student."""
        return teacher_loss(logits, teacher_logits, self.kind, self.temperature)

    def forward(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise TypeError(f"batch must be a pair of images and labels, got {batch!r}"[:200])
        images, labels = batch
        require_images(images)
        outputs = model(images)
        class_logits, dist_logits = outputs if isinstance(outputs, tuple) else (outputs, outputs)
        teacher_logits = self.teacher_logits(images)
        shapes = [tuple(logits.shape) for logits in (class_logits, dist_logits, teacher_logits)]
        if len(shapes[0]) != 2 or len(set(shapes)) != 1:
            raise ValueError(f"student and teacher must give logits (b, classes) of one shape, got {shapes}")
        if not isinstance(labels, Tensor) or labels.is_floating_point():
            raise TypeError(f"labels must be whole numbers (b,), got {labels!r}"[:200])
        if labels.shape != shapes[0][:1]:
            raise ValueError(f"{shapes[0][0]} images need as many labels, got shape {tuple(labels.shape)}")
        loss, by_label, by_teacher = distillation_loss(
            class_logits, dist_logits, labels, teacher_logits, self.kind, self.temperature, self.alpha
        )
        return loss, {"label_loss": by_label.detach(), "teacher_loss": by_teacher.detach()}


class DistilledViT(ViT):
    """ViT with a second learned token, the distillation token, whose head learns from a teacher.

    The class token stands first, the distillation token second, each with its own row of positions and its
    own head. Arguments and errors as for `ViT`; there is always a class token.

    Shape: images (b, c, h, w) -> in training a pair, class logits and distillation logits (b, num_classes)
    each; in evaluation their mean. For num_classes 0 pooled features (b, d) in both: the mean of the two
    tokens. Other image sizes that patches fill are welcome. Submodules are named as in timm's
    VisionTransformerDistilled.

    Source: Touvron et al. 2020, section 4.

    Built in lesson 08.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int],
        patch_size: int | tuple[int, int],
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        channels: int = 3,
        dim_head: int | None = None,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        layer_dropout: float = 0.0,
        patch_embedding: nn.Module | None = None,
    ) -> None:
        super().__init__(
            image_size=image_size,
            patch_size=patch_size,
            num_classes=num_classes,
            dim=dim,
            depth=depth,
            heads=heads,
            mlp_dim=mlp_dim,
            channels=channels,
            dim_head=dim_head,
            dropout=dropout,
            emb_dropout=emb_dropout,
            layer_dropout=layer_dropout,
            patch_embedding=patch_embedding,
        )
        self.head_dist = classifier(dim, num_classes)

    def add_prefix(self) -> int:
        """Make the class token, and return how many tokens stand before the patches."""
        return super().add_prefix() + 1

    def add_positions(self) -> None:
        """Make the position embeddings, and the distillation token behind them, where files have it."""
        super().add_positions()
        self.dist_token = nn.Parameter(torch.zeros(1, 1, self.num_features))

    def prefix(self) -> list[Tensor]:
        """Class token and distillation token (1, 1, d)."""
        return [*super().prefix(), self.dist_token]

    # The type is Any because a Backbone promises one Tensor, and here training gives two.
    def forward_head(self, features: Tensor) -> Any:
        """Normalised tokens -> logits of both heads.

        Args:
            features: (b, 2 + n, d), class token and distillation token first.

        Returns:
            Class logits and distillation logits (b, num_classes) in training, a tuple of two tensors; in
            evaluation their mean, one tensor. Where there are no classes, the mean of both tokens (b, d).
        """
        require_tokens(features, self.num_features)
        class_logits, dist_logits = self.head(features[:, 0]), self.head_dist(features[:, 1])
        if self.training and self.num_classes:
            return class_logits, dist_logits
        return (class_logits + dist_logits) / 2
