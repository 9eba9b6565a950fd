"""DINO.

How can a model learn what is in a picture when nobody tells it, and why does it not simply say the same of
every picture?

Made from notebooks/10_dino.ipynb by `make export`: read and edit the lesson, not this file.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_course.patching import require_at_least, require_between, require_floats, require_images
from vit_course.training import augment, cosine_schedule

__all__ = [
    "MultiCrop",
    "batch_by_size",
    "DINOHead",
    "DINO",
    "dino_loss",
    "DINOLoss",
    "uniformity",
    "SelfDistillation",
    "dino_schedules",
]


def _recolour(images: Tensor, generator: torch.Generator | None) -> Tensor:
    """Other colours for every picture (b, 3, h, w), one draw each: the hue turned about the grey axis,
    saturation, contrast and brightness changed, some blurred, noise on top. What is lighter than its
    surroundings stays lighter.
    """

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(images.shape[0], 1, 1, generator=generator)

    grey = torch.full((3, 3), 1 / 3)
    turn = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    angle, is_coloured = uniform(0, 2 * math.pi), uniform(0, 1) > 0.15
    saturation = uniform(0, 1.5) * is_coloured
    mix = grey + saturation * (angle.cos() * (torch.eye(3) - grey) + angle.sin() * turn)
    shift = 0.3 * torch.randn(images.shape[0], 1, 1, generator=generator)
    pixels = (uniform(0.5, 1.5) * mix).to(images) @ images.flatten(2) + shift.to(images)
    images = pixels.view_as(images)

    is_blurred = (uniform(0, 1) < 0.3).to(images)[..., None]
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    noise = uniform(0, 0.1)[..., None] * torch.randn(images.shape, generator=generator)
    return torch.lerp(images, blurred, is_blurred) + noise.to(images)


class MultiCrop:
    """Several views of every image: two global crops that show most of it, and local crops that show a part
    (Caron et al. 2021, section 3.1).

    Every view of every image has its own draw: place, shape and size of the crop, turn, mirroring and
    colours.

    global_size, local_size: sides of the crops in pixels. local_crops: how many local crops. global_scale,
    local_scale: smallest and largest share of the area that a crop shows. rotation: largest turn in degrees,
    either way. flip: mirror half of the views. recolour: change colours, light and sharpness too, for
    pictures of 3 channels that are centred on 0 (`normalise`).

    Called with images (b, c, h, w) and, where the draws must be repeatable, a torch.Generator, it gives a
    list of 2 + local_crops tensors, (b, c, global_size, global_size) twice, then (b, c, local_size,
    local_size).
    Raises ValueError or TypeError for arguments that do not fit.

    Built in lesson 10.
    """

    def __init__(
        self, global_size: int = 224, local_size: int = 96, local_crops: int = 8, *,
        global_scale: tuple[float, float] = (0.4, 1.0), local_scale: tuple[float, float] = (0.05, 0.4),
        rotation: float = 0.0, flip: bool = True, recolour: bool = True,
    ) -> None:  # fmt: skip
        require_at_least(1, global_size=global_size, local_size=local_size)
        require_at_least(0, local_crops=local_crops)
        self.views = [(global_size, global_scale)] * 2 + [(local_size, local_scale)] * local_crops
        self.rotation, self.flip, self.recolour = rotation, flip, recolour

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
        require_images(images, 3 if self.recolour else None)
        crops = [
            augment(
                images, scale=scale, rotation=self.rotation, flip=self.flip, size=size, generator=generator
            )
            for size, scale in self.views
        ]
        return [_recolour(crop, generator) for crop in crops] if self.recolour else crops


def batch_by_size(crops: Sequence[Tensor]) -> list[Tensor]:
    """Crops that follow each other and have one size, put into one batch: a network then runs once for each
    size, and the order stays.

    crops: v tensors (b, c, h, w), h and w their own. Returns tensors (views · b, c, h, w), as many as there
    are runs of one size. Raises ValueError or TypeError where the crops are not of the same b images. Built
    in lesson 10.

    Built in lesson 10.
    """
    if not isinstance(crops, list | tuple) or not crops:
        raise TypeError(f"crops must be a list of image tensors, one for each view, got {crops!r}"[:200])
    for crop in crops:
        require_images(crop)
    if len({tuple(crop.shape[:2]) for crop in crops}) > 1:
        raise ValueError(
            f"crops must be views of the same images, got shapes {[tuple(crop.shape) for crop in crops]}"
        )
    return [torch.cat(list(group)) for _, group in groupby(crops, key=lambda crop: tuple(crop.shape[-2:]))]


class DINOHead(nn.Module):
    """From features to logits over K prototypes (Caron et al. 2021, section 3.1, and the projection head of
    its appendix C).

    Three linear layers with a GELU after the first and the second, none after the third; the result is scaled
    to length 1; then its cosine with each of K prototypes: a linear layer without bias whose rows have length
    1 too. So every logit is in -1 … 1.

    in_dim: width d of the features. out_dim: K. hidden_dim, bottleneck_dim: widths of the first two layers
    and of the third. batch_norm: a BatchNorm before each GELU, which the paper has none of for ViTs; it takes
    mean and variance from the batch at hand, two rows or more, in the teacher and in evaluation mode too.
    The layers start as PyTorch's do: the normal distribution of width 0.02 of the paper's code, made for
    layers of 2048, stalled narrow heads.

    Features (…, d) -> logits (…, K). Raises ValueError for features of another width.

    Built in lesson 10.
    """

    def __init__(
        self, in_dim: int, out_dim: int, hidden_dim: int = 2048, bottleneck_dim: int = 256, batch_norm: bool = False
    ) -> None:  # fmt: skip
        super().__init__()
        require_at_least(
            1, in_dim=in_dim, out_dim=out_dim, hidden_dim=hidden_dim, bottleneck_dim=bottleneck_dim
        )
        layers: list[nn.Module] = []
        for width_in in (in_dim, hidden_dim):
            layers += [
                nn.Linear(width_in, hidden_dim),
                *([nn.BatchNorm1d(hidden_dim, track_running_stats=False)] if batch_norm else []),
                nn.GELU(),
            ]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden_dim, bottleneck_dim))
        self.prototypes = nn.Linear(bottleneck_dim, out_dim, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        in_dim = self.mlp[0].in_features
        if features.shape[-1] != in_dim:
            raise ValueError(f"this head takes features of width {in_dim}, got shape {tuple(features.shape)}")
        bottleneck = F.normalize(self.mlp(features.reshape(-1, in_dim)), dim=-1)
        logits = F.linear(bottleneck, F.normalize(self.prototypes.weight, dim=-1))
        return logits.reshape(*features.shape[:-1], -1)


class _Network(nn.Module):
    """A backbone and a head: crops -> logits (v, b, k)."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def features(self, images: Tensor) -> Tensor:
        """Pooled features (b, d) of crops of one size."""
        height, width = images.shape[-2:]
        try:
            features = self.backbone(images)
        except ValueError as error:
            raise ValueError(f"the backbone refuses crops of {height} × {width} pixels: {error}") from error
        if features.shape != (images.shape[0], self.backbone.num_features):
            raise ValueError(
                f"the backbone must give pooled features (b, {self.backbone.num_features}), got {tuple(features.shape)}: build it "
                "with num_classes=0"
            )
        return features

    def forward(self, crops: Sequence[Tensor]) -> Tensor:
        logits = self.head(torch.cat([self.features(batch) for batch in batch_by_size(crops)]))
        return logits.unflatten(0, (len(crops), -1))


class DINO(nn.Module):
    """Self-distillation with no labels: a student learns to say what its own slow copy, the teacher, says of
    another view (Caron et al. 2021).

    The teacher starts as a copy of the student, gets no gradients and is always in evaluation mode;
    `update_teacher` moves it.

    backbone: any model of the backbone protocol with num_classes=0, images -> pooled features (b,
    num_features); it becomes the student's. out_dim, hidden_dim, bottleneck_dim, batch_norm: as for DINOHead.

    Called with crops, the two global ones first, v tensors (b, c, h, w), it gives the student's logits of all
    views (v, b, k) and the teacher's of the two global ones (2, b, k). `backbone` is the teacher's, the one
    to keep.
    Raises ValueError or TypeError for a backbone or crops that do not fit.

    Built in lesson 10.
    """

    def __init__(
        self, backbone: nn.Module, out_dim: int = 65536, hidden_dim: int = 2048, bottleneck_dim: int = 256,
        batch_norm: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if not isinstance(backbone, nn.Module) or not hasattr(backbone, "num_features"):
            raise TypeError(
                f"backbone must be a model with num_features (lab.pretrained.adapt makes one), got {backbone!r}"[
                    :200
                ]
            )
        head = DINOHead(backbone.num_features, out_dim, hidden_dim, bottleneck_dim, batch_norm)
        self.student = _Network(backbone, head)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()

    @property
    def backbone(self) -> nn.Module:
        """The teacher's backbone."""
        return self.teacher.backbone

    def train(self, mode: bool = True) -> "DINO":
        """Training mode for the student, never for the teacher: it has no dropout, and its backbone no batch
        statistics of its own.
        """
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, crops: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        if len(crops) < 2:
            raise ValueError(
                f"DINO compares views of an image: it needs two global crops or more, got {len(crops)}"
            )
        with torch.no_grad():  # first, while no activations of the student wait for their gradient
            teacher_logits = self.teacher(crops[:2])
        return self.student(crops), teacher_logits

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """teacher <- momentum · teacher + (1 - momentum) · student: every weight, and every buffer such as
        BatchNorm's statistics.

        Call it after the optimiser's step. Raises ValueError for a momentum outside 0 … 1.
        """
        require_between(0, 1, momentum=momentum)
        student, teacher = (
            chain(network.parameters(), network.buffers()) for network in (self.student, self.teacher)
        )
        for theirs, own in zip(student, teacher, strict=True):
            if own.is_floating_point():
                own.lerp_(theirs, 1 - momentum)
            else:  # a counter
                own.copy_(theirs)


def _log_targets(teacher: Tensor, center: Tensor, teacher_temp: float) -> Tensor:
    """What the teacher asks for: its logits (g, b, k), centred and sharpened, as log-probabilities."""
    if center.shape != teacher.shape[-1:]:
        raise ValueError(
            f"the center has one number for each prototype: got {center.shape[0]} for logits of shape {tuple(teacher.shape)}"
        )
    return F.log_softmax((teacher - center) / teacher_temp, dim=-1)


def dino_loss(
    student: Tensor, teacher: Tensor, center: Tensor, student_temp: float = 0.1, teacher_temp: float = 0.04,
    center_momentum: float = 0.9,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """How far the student is from the teacher, over all pairs of different views (Caron et al. 2021,
    equations 1 to 4).

    The teacher's logits of view i, minus the center, through a softmax of low temperature, are the target;
    the loss is the mean, over all v ≠ i and the batch, of the cross-entropy with the student's softmax of
    view v.

    student: logits (v, b, k) of all views. teacher: logits (g, b, k) of the first g of them, the global ones;
    no gradient reaches it. center: (k,). student_temp, teacher_temp: temperatures, above 0. center_momentum:
    share of the old center in the new one. Returns the loss, a scalar, and the center for the next step: the
    old one moved towards the mean of the teacher's raw logits. Raises ValueError or TypeError for a single
    view, shapes that do not fit, and a loss or a center that is not finite, naming the view.

    Built in lesson 10.
    """
    require_floats("student", student, "v b k")
    require_floats("teacher", teacher, "g b k")
    require_floats("center", center, "k")
    require_between(1e-6, math.inf, student_temp=student_temp, teacher_temp=teacher_temp)
    require_between(0, 1, center_momentum=center_momentum)
    (views, b, k), global_views = student.shape, teacher.shape[0]
    if views < 2 or not 1 <= global_views <= views:
        raise ValueError(
            f"a view is compared with other views: the student needs two or more, the teacher the first of them; got "
            f"{views} and {global_views}"
        )
    if teacher.shape[1:] != (b, k) or center.shape != (k,):
        raise ValueError(
            f"student, teacher and center must agree on b and k, got shapes {tuple(student.shape)}, "
            f"{tuple(teacher.shape)} and {tuple(center.shape)}"
        )

    precision = torch.promote_types(
        student.dtype, torch.float32
    )  # of the sums, also where the logits are bfloat16
    teacher = teacher.detach().to(precision)
    targets = _log_targets(teacher, center, teacher_temp).exp()
    log_probabilities = F.log_softmax(student.to(precision) / student_temp, dim=-1)
    pairs = torch.stack(
        [-(target * log_probabilities).sum(dim=-1).mean(dim=-1) for target in targets]
    )  # (g, v)
    same_view = torch.eye(global_views, views, dtype=torch.bool, device=pairs.device)
    loss = pairs.masked_fill(same_view, 0).sum() / (global_views * (views - 1))
    new_center = torch.lerp(teacher.mean(dim=(0, 1)), center.to(precision), center_momentum)
    _require_finite(loss, new_center, student, teacher)
    return loss, new_center.to(center.dtype)


def _require_finite(loss: Tensor, center: Tensor, student: Tensor, teacher: Tensor) -> None:
    """Raise a ValueError that names the views with logits that are no numbers, where loss or center is none."""
    if loss.isfinite() and center.isfinite().all():
        return
    guilty = [
        f"{name} logits of view {view}"
        for name, logits in {"student": student, "teacher": teacher}.items()
        for view in range(logits.shape[0])
        if not logits[view].isfinite().all()
    ]
    raise ValueError(
        f"the DINO loss is {loss.item()}: not finite are the {', '.join(guilty) or 'logits divided by the temperature'}"
    )


class DINOLoss(nn.Module):
    """`dino_loss` with a memory: the center is a buffer that moves after every loss in training. Built in
    lesson 10.

    out_dim: K. student_temp, teacher_temp, center_momentum: as for dino_loss; teacher_temp is a buffer too,
    since it has a schedule.

    Student logits (v, b, k) and teacher logits (g, b, k) -> loss, a scalar. In evaluation mode the center
    stays. Raises ValueError or TypeError for arguments and logits that do not fit, and for a loss that is not
    finite; the center is then the old one.

    Built in lesson 10.
    """

    def __init__(
        self,
        out_dim: int,
        student_temp: float = 0.1,
        teacher_temp: float = 0.04,
        center_momentum: float = 0.9,
    ) -> None:
        super().__init__()
        require_at_least(1, out_dim=out_dim)
        require_between(1e-6, math.inf, student_temp=student_temp, teacher_temp=teacher_temp)
        require_between(0, 1, center_momentum=center_momentum)
        self.student_temp, self.center_momentum = student_temp, center_momentum
        self.register_buffer("center", torch.zeros(out_dim))
        self.register_buffer("teacher_temp", torch.tensor(float(teacher_temp)))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        loss, center = dino_loss(
            student, teacher, self.center, self.student_temp, self.teacher_temp.item(), self.center_momentum
        )
        if self.training:
            self.center.copy_(center)
        return loss

    def with_numbers(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and what tells of a collapse: {"entropy": of the targets, "kl": what the student is still
        short of them}. The loss is their sum.
        """
        entropy = self.entropy(teacher)  # with the center of the loss, before it moves
        loss = self(student, teacher)
        return loss, {"entropy": entropy, "kl": loss.detach() - entropy}

    @torch.no_grad()
    def entropy(self, teacher: Tensor) -> Tensor:
        """Mean entropy of the targets that teacher logits (g, b, k) make with the present center: 0 where
        each target is one prototype, log K where they are uniform.
        """
        log_targets = _log_targets(teacher, self.center, self.teacher_temp.item())
        return -(log_targets.exp() * log_targets).sum(dim=-1).mean()


def uniformity(features: Tensor) -> Tensor:
    """How close together the directions of a batch lie: the logarithm of the mean, over all pairs of images (or
    of regions) of a view, of exp(-2 · squared distance), each direction scaled to length 1 (Wang and Isola 2020,
    L_uniform with t = 2).

    features: (v, b, d). Returns the mean over views, a scalar: 0 where all images of a view have one
    direction, about -4 where they fill a sphere of many dimensions. Raises ValueError or TypeError for
    features of another form, and for a single image, which is no pair.

    Built in lesson 10.
    """
    require_floats("features", features, "v b d")
    images = features.shape[1]
    if images < 2:
        raise ValueError(f"uniformity is of pairs of images: got shape {tuple(features.shape)}")
    precision = torch.promote_types(features.dtype, torch.float32)  # also where features are bfloat16
    directions = F.normalize(features.to(precision), dim=-1)
    closeness = 4 * directions @ directions.mT - 4  # -2 · squared distance, without a root
    with_itself = torch.eye(images, dtype=torch.bool, device=features.device)
    sums = closeness.masked_fill(with_itself, -math.inf).logsumexp(dim=(1, 2))
    return sums.mean() - math.log(images * (images - 1))


class SelfDistillation(nn.Module):
    """What `fit` minimises: the loss of a model on crops, with the numbers that tell of a collapse. Built in
    lesson 10.

    loss: a DINOLoss, or an EsViTLoss for an EsViT; a checkpoint of `fit` then holds its centers. spread: the
    weight of `uniformity` of the directions in which the student's heads send what they see; the paper has
    none. The head for views is asked view by view; EsViT's head for regions about at most 1,024 regions of
    all views together; the mean of both counts.

    Called with a model and crops, it gives the loss and its numbers: {"entropy", "kl"}, more for EsViT, and
    "spread" where it has a weight.

    Built in lesson 10.
    """

    def __init__(self, loss: nn.Module, spread: float = 0.0) -> None:
        super().__init__()
        require_between(0, math.inf, spread=spread)
        self.loss, self.spread = loss, spread

    def forward(self, model: nn.Module, crops: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        if not self.spread:
            return self.loss.with_numbers(*model(crops))
        with _record_directions(model.student) as directions:
            answers = model(crops)
        of_views = directions.pop(model.student.head).unflatten(0, (len(crops), -1))
        of_regions = [_at_most(1024, rows)[None] for rows in directions.values()]
        spread = torch.stack([uniformity(rows) for rows in (of_views, *of_regions)]).mean()
        loss, numbers = self.loss.with_numbers(*answers)  # last: a refused call must not move the center
        return loss + self.spread * spread, numbers | {"spread": spread.detach()}


def _at_most(count: int, rows: Tensor) -> Tensor:
    """Rows (n, d), so many of them where there are more: the same at every step, spread over all places."""
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count]
    return rows[drawn.sort().values.to(rows.device)]


@contextmanager
def _record_directions(student: nn.Module) -> Iterator[dict[nn.Module, Tensor]]:
    """While it is open, what each DINOHead of the student compares with its prototypes, (n, bottleneck_dim)."""
    directions: dict[nn.Module, Tensor] = {}
    heads = [part for part in student.modules() if isinstance(part, DINOHead)]
    hooks = [
        head.mlp.register_forward_hook(lambda mlp, given, made, head=head: directions.update({head: made}))
        for head in heads
    ]
    try:
        yield directions
    finally:
        for hook in hooks:
            hook.remove()


def dino_schedules(
    model: DINO, loss: nn.Module, steps: int, *, lr: float = 5e-4, weight_decay: tuple[float, float] = (0.04, 0.4),
    momentum: float = 0.996, teacher_temp: tuple[float, float] = (0.04, 0.07), clip: float = 3.0,
    warmup: float = 0.1, temp_warmup: float = 0.3, frozen: float = 0.01,
) -> dict[str, Callable]:  # fmt: skip
    """All that changes with the step, as arguments of `fit`: fit(model, crops, loss, steps,
    **dino_schedules(model, loss, steps)) (Caron et al. 2021, section 3.2 and appendix; the defaults are
    the paper's for 100 epochs).

    steps: length of the run; the last three arguments are shares of it. lr: the highest learning rate, after
    a warm-up over the share `warmup`, then along a cosine to 1e-6. weight_decay: first and last value, along
    a cosine. momentum: of the teacher, along a cosine to 1. teacher_temp: first and last value, linear over
    the share `temp_warmup`, then constant. clip: largest norm of the gradient of each parameter. frozen: how
    long the prototypes of every DINOHead rest.
    Sets the first temperature at once. Raises ValueError for a loss without a DINOLoss in it and for numbers
    out of range.

    Built in lesson 10.
    """
    require_at_least(1, steps=steps)
    require_between(0, 1, momentum=momentum, warmup=warmup, temp_warmup=temp_warmup, frozen=frozen)
    losses = [part for part in loss.modules() if isinstance(part, DINOLoss)]
    heads = [part for part in model.student.modules() if isinstance(part, DINOHead)]
    if not losses:
        raise ValueError(
            f"dino_schedules sets the temperature of a DINOLoss; there is none in {loss!r}"[:200]
        )

    def set_temperature(step: int) -> None:
        risen = min(1.0, step / max(1, int(temp_warmup * steps) - 1))
        for part in losses:
            part.teacher_temp.fill_(teacher_temp[0] + (teacher_temp[1] - teacher_temp[0]) * risen)

    def before_step(step: int) -> None:
        for parameter in model.student.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_((clip / (parameter.grad.norm() + 1e-6)).clamp(max=1.0))
        if step < frozen * steps:
            for head in heads:
                head.prototypes.weight.grad = None  # not zero: AdamW would still decay it

    def after_step(step: int) -> None:
        model.update_teacher(cosine_schedule(step, steps, momentum, 1.0))
        set_temperature(step + 1)

    set_temperature(0)
    return {
        "lr": lambda step: cosine_schedule(step, steps, lr, 1e-6, warmup=int(warmup * steps)),
        "weight_decay": lambda step: cosine_schedule(step, steps, *weight_decay),
        "before_step": before_step,
        "after_step": after_step,
    }
