"""Distillation.

How can a small model learn from what a trained one thinks, and not only from labels, and what is that worth
where labels are few?

Made from notebooks/08_distillation.ipynb by `make export`: read and edit the lesson, not this file.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_course.patching import pair, require_between, require_images, require_tokens
from vit_course.vit import ViT

__all__ = ["DistillationLoss", "DistilledViT"]


class DistillationLoss(nn.Module):
    """Learn from labels and from a teacher at once (Hinton et al. 2015; Touvron et al. 2020, equations 2
    and 3).

    (1 - alpha) · cross-entropy with the labels + alpha · the teacher's part: for kind 'soft' T² KL(teacher ‖
    student), both softened by the temperature T; for 'hard' the cross-entropy with the teacher's answer.

    teacher: a trained model, images -> logits (b, classes); a copy of it is kept, always in evaluation mode
    and never trained. kind: 'soft' or 'hard'. temperature: T, for 'soft'. alpha: the teacher's share, 0.1 for
    'soft' and 0.5 for 'hard' by default.

    Called with a student and a batch, images (b, c, h, w) and labels (b,), it gives the loss and its two
    parts, as `fit` wants them. A student with two heads, a DistilledViT in training, shows the class logits
    to the labels and the distillation logits to the teacher; any other shows its logits to both. A label of
    -100, PyTorch's mark for "ignore", is none: that image learns from the teacher alone.
    Raises ValueError or TypeError for arguments and logits that do not fit.

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

    def train(self, mode: bool = True) -> "DistillationLoss":
        """Training mode for the loss, never for its teacher: BatchNorm would learn from the student's batches."""
        super().train(mode)
        self.teacher.eval()
        return self

    def teacher_loss(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """How far a student's logits (b, classes) are from the teacher's (b, classes): a scalar, zero for 'soft'
        where they agree.
        """
        if self.kind == "hard":
            return F.cross_entropy(logits, teacher_logits.argmax(dim=-1))
        student, teacher = (F.log_softmax(z / self.temperature, dim=-1) for z in (logits, teacher_logits))
        return self.temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)

    def forward(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise TypeError(f"batch must be a pair of images and labels, got {batch!r}"[:200])
        images, labels = batch
        require_images(images)
        outputs = model(images)
        class_logits, dist_logits = outputs if isinstance(outputs, tuple) else (outputs, outputs)
        with torch.no_grad():
            teacher_logits = self.teacher(images)
        shapes = [tuple(logits.shape) for logits in (class_logits, dist_logits, teacher_logits)]
        if len(shapes[0]) != 2 or len(set(shapes)) != 1:
            raise ValueError(f"student and teacher must give logits (b, classes) of one shape, got {shapes}")
        if not isinstance(labels, Tensor) or labels.is_floating_point():
            raise TypeError(f"labels must be whole numbers (b,), got {labels!r}"[:200])
        if labels.shape != shapes[0][:1]:
            raise ValueError(f"{shapes[0][0]} images need as many labels, got shape {tuple(labels.shape)}")
        labelled = (labels != -100).sum().clamp(min=1)
        label_loss = F.cross_entropy(class_logits, labels, reduction="sum") / labelled
        teacher_loss = self.teacher_loss(dist_logits, teacher_logits)
        loss = (1 - self.alpha) * label_loss + self.alpha * teacher_loss
        return loss, {"label_loss": label_loss.detach(), "teacher_loss": teacher_loss.detach()}


class DistilledViT(ViT):
    """ViT with a second learned token, the distillation token, that listens to a teacher (Touvron et al.
    2020, section 4).

    Arguments, and the errors for sizes that do not fit, as for ViT; there is always a class token. The class
    token stands first, the distillation token second, each with its own row of positions and its own head.

    Images (b, c, h, w) -> in training a pair, class logits and distillation logits (b, num_classes) each; in
    evaluation their mean. num_classes 0 gives pooled features in both: the mean of the two tokens. Other image
    sizes that patches fill are welcome. Submodules are named as in timm's VisionTransformerDistilled.

    Built in lesson 08.
    """

    def __init__(
        self, *, image_size: int | tuple[int, int], patch_size: int | tuple[int, int], num_classes: int, dim: int, depth: int, heads: int,
        mlp_dim: int, channels: int = 3, dim_head: int | None = None, dropout: float = 0.0, emb_dropout: float = 0.0,
        patch_embedding: nn.Module | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            image_size=image_size, patch_size=patch_size, num_classes=num_classes, dim=dim, depth=depth, heads=heads, mlp_dim=mlp_dim,
            channels=channels, dim_head=dim_head, dropout=dropout, emb_dropout=emb_dropout, patch_embedding=patch_embedding,
        )  # fmt: skip
        self.num_prefix_tokens = 2
        self.dist_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 2 + self.grid[0] * self.grid[1], dim).normal_(std=0.02))
        self.head_dist = copy.deepcopy(self.head)
        if num_classes:
            nn.init.xavier_uniform_(self.head_dist.weight)

    def forward_tokens(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Patch tokens (b, n, d) before positions -> normalised tokens (b, 2 + n, d): class token, distillation
        token, patches.

        grid: (rows, columns) of the patches, the one of image_size by default. Raises ValueError where the
        tokens do not fill it.
        """
        require_tokens(tokens, self.num_features)
        rows, columns = grid = pair(grid or self.grid, "grid")
        if tokens.shape[1] != rows * columns:
            raise ValueError(
                f"a grid of {rows} by {columns} patches needs {rows * columns} tokens, got shape {tuple(tokens.shape)}"
            )
        prefix = torch.cat([self.cls_token, self.dist_token], dim=1)
        tokens = torch.cat([prefix.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return self.norm(self.blocks(self.pos_drop(tokens + self.positions(grid))))

    def forward_head(self, features: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Normalised tokens -> (class logits, distillation logits) in training, their mean in evaluation; pooled
        features (b, d) where there are no classes.
        """
        require_tokens(features, self.num_features)
        class_logits, dist_logits = self.head(features[:, 0]), self.head_dist(features[:, 1])
        if self.training and isinstance(self.head, nn.Linear):
            return class_logits, dist_logits
        return (class_logits + dist_logits) / 2
