"""DINO.

How can a model learn what is in a picture without a single label, and what keeps it from giving every picture
the same answer?

Made from notebooks/10_dino.ipynb by `make export`: read and edit the lesson, not this file.
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, groupby
from types import SimpleNamespace
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from vit_course.max_vit import Pyramid
from vit_course.patching import require_at_least, require_between, require_floats, require_images
from vit_course.training import Run, augment, cosine_schedule
from vit_course.vit import Backbone, require_backbone

__all__ = [
    "MultiCrop",
    "DINOHead",
    "batch_by_size",
    "MultiCropWrapper",
    "DINO",
    "teacher_target",
    "dino_loss",
    "log_targets",
    "next_center",
    "require_temperatures",
    "require_centring",
    "require_finite",
    "DINOLoss",
    "SelfDistillation",
    "DINOSchedule",
    "dino_schedules",
    "sinkhorn_knopp",
    "KoLeo",
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


def _require_pairs(low: float, high: float, **pairs: tuple[float, float]) -> None:
    """Raise a TypeError or ValueError unless each is a pair of numbers in low … high."""
    for name, pair in pairs.items():
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(f"{name} must be a pair of numbers, got {pair!r}")
        for number in pair:
            require_between(low, high, **{name: number})


class MultiCrop:
    """Several views of every image: two global crops that show most of it, and local crops that show a part.

    Every view of every image has its own draw: place, shape and size of the crop, turn, mirroring and
    colours.

    Args:
        global_size: side of the global crops, in pixels.
        local_size: side of the local crops, in pixels.
        local_crops: how many local crops.
        global_scale: smallest and largest share of the area that a global crop shows.
        local_scale: the same of a local crop.
        rotation: largest turn in degrees, either way.
        flip: mirror half of the views.
        recolour: change colours, light and sharpness too, for pictures of 3 channels that are centred on 0
            (`normalise`).

    Shape: images (b, c, h, w) and, where the draws must be repeatable, a torch.Generator -> a list of
    2 + local_crops tensors, (b, c, global_size, global_size) twice, then (b, c, local_size, local_size).

    Raises:
        ValueError: for sizes, scales and turns out of range, and for images that do not fit.
        TypeError: for arguments of another kind.

    Source: Caron et al. 2021, section 3.1.

    Built in lesson 10.
    """

    def __init__(
        self,
        global_size: int = 224,
        local_size: int = 96,
        local_crops: int = 8,
        *,
        global_scale: tuple[float, float] = (0.4, 1.0),
        local_scale: tuple[float, float] = (0.05, 0.4),
        rotation: float = 0.0,
        flip: bool = True,
        recolour: bool = True,
    ) -> None:
        require_at_least(1, global_size=global_size, local_size=local_size)
        require_at_least(0, local_crops=local_crops)
        require_between(0, 360, rotation=rotation)
        for name, scale in {"global_scale": global_scale, "local_scale": local_scale}.items():
            _require_pairs(0, 1, **{name: scale})
            if not 0 < scale[0] <= scale[1]:
                raise ValueError(f"{name} must be two shares 0 < smallest <= largest <= 1, got {scale}")
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


class DINOHead(nn.Module):
    """From features to logits over K prototypes.

    Three linear layers with a GELU after the first and the second, none after the third; the result is scaled
    to length 1; then its cosine with each of K prototypes: a linear layer without bias whose rows have length
    1 too. So every logit is in -1 … 1.

    The layers start as PyTorch's do: the normal distribution of width 0.02 of the paper's code, made for
    layers of 2048, stalled narrow heads.

    Args:
        in_dim: width d of the features.
        out_dim: K, the number of prototypes.
        hidden_dim: width of the first two layers.
        bottleneck_dim: width of the third.
        batch_norm: a BatchNorm before each GELU, which the paper has none of for ViTs. It takes mean and
            variance from the batch at hand, two rows or more, in the teacher and in evaluation mode too.

    Shape: features (…, d) -> logits (…, K).

    Raises:
        ValueError: for sizes below 1, and for features of another width.

    Source: Caron et al. 2021, section 3.1, and the projection head of its appendix C.

    Built in lesson 10.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        require_at_least(
            1, in_dim=in_dim, out_dim=out_dim, hidden_dim=hidden_dim, bottleneck_dim=bottleneck_dim
        )

        def hidden_layer(width: int) -> list[nn.Module]:
            norm = [nn.BatchNorm1d(hidden_dim, track_running_stats=False)] if batch_norm else []
            return [nn.Linear(width, hidden_dim), *norm, nn.GELU()]

        self.in_dim = in_dim
        self.mlp = nn.Sequential(
            *hidden_layer(in_dim), *hidden_layer(hidden_dim), nn.Linear(hidden_dim, bottleneck_dim)
        )
        self.prototypes = nn.Linear(bottleneck_dim, out_dim, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        if features.shape[-1] != self.in_dim:
            raise ValueError(
                f"this head takes features of width {self.in_dim}, got shape {tuple(features.shape)}"
            )
        bottleneck = F.normalize(self.mlp(features.reshape(-1, self.in_dim)), dim=-1)
        logits = F.linear(bottleneck, F.normalize(self.prototypes.weight, dim=-1))
        return logits.reshape(*features.shape[:-1], -1)


def batch_by_size(crops: Sequence[Tensor]) -> list[Tensor]:
    """Crops that follow each other and have one size, put into one batch: a network then runs once for each
    size, and the order stays.

    Args:
        crops: v tensors (b, c, h, w), h and w their own.

    Returns:
        Tensors (views · b, c, h, w), as many as there are runs of one size.

    Raises:
        ValueError: where the crops are not of the same b images.
        TypeError: for anything but a list of image tensors.

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


class MultiCropWrapper(nn.Module):
    """A backbone and a head, run once for each size of crops; the name is that of the authors' code.

    Args:
        backbone: images -> pooled features (b, num_features).
        head: features (…, num_features) -> logits (…, k).

    Shape: crops, v tensors (b, c, h, w) -> logits (v, b, k).

    Raises:
        ValueError: for crops that the backbone refuses, naming their size, and for one that gives other than
            pooled features.

    Built in lesson 10.
    """

    def __init__(self, backbone: Backbone | Pyramid, head: DINOHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def run(self, part: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """What a part of the backbone gives for crops of one size, which is named if they are refused."""
        try:
            return part(images)
        except ValueError as error:
            height, width = images.shape[-2:]
            raise ValueError(f"the backbone refuses crops of {height} × {width} pixels: {error}") from error

    def require_pooled(self, features: Tensor, images: Tensor) -> Tensor:
        """The features, if they are pooled ones (b, num_features) of these images."""
        width = self.backbone.num_features
        if features.shape != (images.shape[0], width):
            raise ValueError(
                f"the backbone must give pooled features (b, {width}), got {tuple(features.shape)}: "
                "build it with num_classes=0"
            )
        return features

    def features(self, images: Tensor) -> Tensor:
        """Pooled features (b, d) of crops of one size (b, c, h, w)."""
        return self.require_pooled(self.run(self.backbone, images), images)

    def forward(self, crops: Sequence[Tensor]) -> Any:
        logits = self.head(torch.cat([self.features(batch) for batch in batch_by_size(crops)]))
        return logits.unflatten(0, (len(crops), -1))


class DINO(nn.Module):
    """Self-distillation with no labels: a student learns to give the answers that its own slow copy, the
    teacher, gives for another view.

    The teacher starts as a copy of the student, gets no gradients and is always in evaluation mode;
    `update_teacher` moves it. `backbone` is the teacher's, the one to keep.

    Args:
        backbone: any model of the backbone protocol with num_classes=0, images -> pooled features (b,
            num_features); it becomes the student's.
        out_dim: K, the number of prototypes.
        hidden_dim: as for DINOHead.
        bottleneck_dim: as for DINOHead.
        batch_norm: as for DINOHead.

    Shape: crops, the two global ones first, v tensors (b, c, h, w) -> the student's logits of all views
    (v, b, k) and the teacher's of the two global ones (2, b, k).

    Raises:
        ValueError: for sizes or crops that do not fit.
        TypeError: for a backbone or crops of another kind.

    Source: Caron et al. 2021, section 3.1 and algorithm 1.

    Built in lesson 10.
    """

    def __init__(
        self,
        backbone: Backbone | Pyramid,
        out_dim: int = 65536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        require_backbone("backbone", backbone, "num_features")

        def make_head() -> DINOHead:
            return DINOHead(backbone.num_features, out_dim, hidden_dim, bottleneck_dim, batch_norm)

        self.student = self.make_network(backbone, make_head)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()
        self._averages: dict[str, Tensor] = {}

    def make_network(
        self, backbone: Backbone | Pyramid, make_head: Callable[[], DINOHead]
    ) -> MultiCropWrapper:
        """The student; its teacher is a copy of it."""
        return MultiCropWrapper(backbone, make_head())

    @property
    def backbone(self) -> Backbone | Pyramid:
        """The teacher's backbone."""
        return self.teacher.backbone

    def train(self, mode: bool = True) -> Self:
        """Training mode for the student, never for the teacher: it has no dropout, and its backbone no batch
        statistics of its own.
        """
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, crops: Sequence[Tensor]) -> tuple[Any, Any]:
        if len(crops) < 2:
            raise ValueError(
                f"DINO compares views of an image: it needs two global crops or more, got {len(crops)}"
            )
        with torch.no_grad():  # first, while no activations of the student wait for their gradient
            of_teacher = self.teacher(crops[:2])
        return self.student(crops), of_teacher

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """teacher <- momentum · teacher + (1 - momentum) · student: every weight, and every buffer such as
        BatchNorm's statistics. Call it after the optimiser's step.

        The average is kept in float32 at least, also where the teacher's weights are bfloat16 or float16.

        Args:
            momentum: share of the old teacher in the new one.

        Raises:
            ValueError: for a momentum outside 0 … 1.
        """
        require_between(0, 1, momentum=momentum)
        student, teacher = (
            dict(chain(network.named_parameters(), network.named_buffers()))
            for network in (self.student, self.teacher)
        )
        for name, own in teacher.items():
            if own.is_floating_point():
                average = self._average(name, own)
                average.lerp_(student[name].to(average.dtype), 1 - momentum)
                own.copy_(average)
            else:  # a counter
                own.copy_(student[name])

    def _average(self, name: str, own: Tensor) -> Tensor:
        """A tensor of the teacher, or in its place the float32 average that it is the rounded form of."""
        if own.dtype.itemsize >= 4:
            self._averages.pop(name, None)  # the model was bfloat16 once
            return own
        kept = self._averages.get(name, own).to(own.device, torch.float32)
        is_current = kept.to(own.dtype) == own  # other weights may have been loaded since
        self._averages[name] = torch.where(is_current, kept, own.float())
        return self._averages[name]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({f"{prefix}averages.{name}": kept for name, kept in self._averages.items()})

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        start = f"{prefix}averages."
        stored = [key for key in state_dict if key.startswith(start)]
        self._averages = {key.removeprefix(start): state_dict.pop(key).clone() for key in stored}
        super()._load_from_state_dict(state_dict, prefix, *others)


def _log_centred(teacher: Tensor, center: Tensor, temperature: float) -> Tensor:
    """`teacher_target` as log-probabilities."""
    return F.log_softmax((teacher - center) / temperature, dim=-1)


def teacher_target(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """The targets of the teacher: its logits without their center, sharpened.

    Args:
        logits: of the teacher (…, k).
        center: (k,), a running mean of such logits.
        temperature: the teacher's, above 0; the lower, the sharper.

    Returns:
        Probabilities (…, k), each row summing to 1.

    Source: Caron et al. 2021, equation 1 and section 3.1.

    Built in lesson 10.
    """
    return _log_centred(logits, center, temperature).exp()


def dino_loss(
    student: Tensor,
    teacher: Tensor,
    center: Tensor,
    student_temp: float = 0.1,
    teacher_temp: float = 0.04,
    center_momentum: float = 0.9,
    centring: str = "mean",
) -> tuple[Tensor, Tensor]:
    """How far the student is from the teacher, over all pairs of different views.

    The teacher's logits of view i, minus the center, through a softmax of low temperature, are the target;
    the loss is the mean, over all v ≠ i and the batch, of the cross-entropy with the student's softmax of
    view v.

    Args:
        student: logits (v, b, k) of all views.
        teacher: logits (g, b, k) of the first g of them, the global ones; no gradient reaches it.
        center: (k,), taken from the teacher's logits.
        student_temp: the student's temperature, above 0.
        teacher_temp: the teacher's, above 0.
        center_momentum: share of the old center in the new one.
        centring: "mean", or "sinkhorn" for targets by `sinkhorn_knopp` of all global views together; the
            center then has no part, and stays.

    Returns:
        The loss, a scalar, and the center for the next step: the old one moved towards the mean of the
        teacher's raw logits, in float32 at least.

    Raises:
        ValueError: for a single view, shapes and numbers that do not fit, and a loss or a center that is not
            finite, naming the view.
        TypeError: for anything but tensors of floats.

    Source: Caron et al. 2021, equations 1 to 4; Oquab et al. 2023 for Sinkhorn-Knopp centring.

    Built in lesson 10.
    """
    loss, _, new_center = _compare(
        student, teacher, center, student_temp, teacher_temp, center_momentum, centring
    )
    return loss, new_center


def _compare(
    student: Tensor,
    teacher: Tensor,
    center: Tensor,
    student_temp: float,
    teacher_temp: float,
    center_momentum: float,
    centring: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of `dino_loss`, the mean entropy of its targets, and the center for the next step."""
    require_floats("student", student, "v b k")
    require_floats("teacher", teacher, "g b k")
    require_floats("center", center, "k")
    require_temperatures(student_temp=student_temp, teacher_temp=teacher_temp)
    require_between(0, 1, center_momentum=center_momentum)
    require_centring(centring)
    (views, b, k), global_views = student.shape, teacher.shape[0]
    if views < 2 or not 1 <= global_views <= views:
        raise ValueError(
            "a view is compared with other views: the student needs two or more, the teacher the first of "
            f"them; got {views} and {global_views}"
        )
    if teacher.shape[1:] != (b, k) or center.shape != (k,):
        raise ValueError(
            f"student, teacher and center must agree on b and k, got shapes {tuple(student.shape)}, "
            f"{tuple(teacher.shape)} and {tuple(center.shape)}"
        )

    precision = torch.promote_types(student.dtype, torch.float32)  # sums of bfloat16 logits are float32
    teacher = teacher.detach().to(precision)
    log_q = log_targets(teacher, center, teacher_temp, centring)
    log_probabilities = F.log_softmax(student.to(precision) / student_temp, dim=-1)
    pairs = torch.stack(
        [-(target * log_probabilities).sum(dim=-1).mean(dim=-1) for target in log_q.exp()]
    )  # (g, v)
    same_view = torch.eye(global_views, views, dtype=torch.bool, device=pairs.device)
    loss = pairs.masked_fill(same_view, 0).sum() / (global_views * (views - 1))
    new_center = next_center(teacher, center, center_momentum) if centring == "mean" else center
    logits = {"student logits": student, "teacher logits": teacher}
    require_finite("DINO loss", [loss, new_center], logits)
    return loss, _entropy(log_q), new_center


def log_targets(teacher: Tensor, center: Tensor, teacher_temp: float, centring: str = "mean") -> Tensor:
    """The targets of the teacher, as log-probabilities.

    Args:
        teacher: logits (…, k), in float32 at least.
        center: (k,), subtracted by the centring "mean".
        teacher_temp: the temperature, above 0.
        centring: "mean" for a softmax of the logits without their center, "sinkhorn" for `sinkhorn_knopp` of
            all rows together.

    Returns:
        (…, k), whose exponentials sum to 1.

    Built in lesson 10.
    """
    if centring == "mean":
        return _log_centred(teacher, center, teacher_temp)
    return _log_sinkhorn(teacher.flatten(0, -2), teacher_temp, iterations=3).view_as(teacher)


def _entropy(log_targets: Tensor) -> Tensor:
    """Mean entropy of targets (g, b, k), given as log-probabilities."""
    return -(log_targets.exp() * log_targets).sum(dim=-1).mean()


def next_center(teacher: Tensor, center: Tensor, center_momentum: float = 0.9) -> Tensor:
    """The center for the next step: the old one, moved towards the mean of the teacher's raw logits.

    Args:
        teacher: logits (…, k), of every process where torch.distributed runs.
        center: (k,).
        center_momentum: share of the old center in the new one.

    Returns:
        (k,), in float32 at least.

    Source: Caron et al. 2021, equation 4.

    Built in lesson 10.
    """
    rows = teacher.detach().flatten(0, -2)
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    count = _sum_over_processes(rows.new_tensor(float(len(rows))))
    moved = torch.lerp(_sum_over_processes(rows.sum(dim=0)) / count, center.to(rows.dtype), center_momentum)
    return moved.to(torch.promote_types(center.dtype, torch.float32))


def require_temperatures(**temperatures: float) -> None:
    """Raise a TypeError or ValueError unless each is in 1e-6 … 1e6: with 0 there is no softmax, and with
    infinity nothing to learn.

    Built in lesson 10.
    """
    require_between(1e-6, 1e6, **temperatures)


def require_centring(centring: str) -> None:
    """Raise a ValueError unless it is "mean" or "sinkhorn".

    Built in lesson 10.
    """
    if centring not in ("mean", "sinkhorn"):
        raise ValueError(f"centring must be 'mean' or 'sinkhorn', got {centring!r}")


def require_finite(
    name: str, results: Sequence[Tensor], views: Mapping[str, Tensor | Sequence[Tensor]]
) -> None:
    """Raise a ValueError that names the views with numbers that are not finite, if a result is not finite.

    Args:
        name: what the first result is called in the sentence.
        results: tensors of any shape; the first is a scalar.
        views: for each kind of input its name and its views, a tensor or a list of them.

    Built in lesson 10.
    """
    if all(result.isfinite().all() for result in results):
        return
    causes = [
        f"{kind} of view {number}"
        for kind, of_kind in views.items()
        for number, view in enumerate(of_kind)
        if not view.isfinite().all()
    ]
    raise ValueError(
        f"the {name} is {results[0].item()}: not finite are the "
        f"{', '.join(causes) or 'logits divided by the temperature'}"
    )


def _all_reduce(values: Tensor, operation: str) -> Tensor:
    """Values of every process of torch.distributed, put together by "SUM" or "MAX"; where none runs, the
    values themselves.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return values
    values = values.clone()  # all_reduce writes into what it is given
    distributed.all_reduce(values, getattr(distributed.ReduceOp, operation))
    return values


def _sum_over_processes(values: Tensor) -> Tensor:
    """The sum of such values of all processes of torch.distributed; where none runs, the values."""
    return _all_reduce(values, "SUM")


class DINOLoss(nn.Module):
    """`dino_loss` with a memory: the center is a buffer that moves after every loss in training.

    Center and temperature stay float32 where the module is cast to a type of fewer digits, which would round
    most steps of the center away.

    Args:
        out_dim: K, the number of prototypes.
        student_temp: the student's temperature.
        teacher_temp: the teacher's; a buffer too, since it has a schedule.
        center_momentum: share of the old center in the new one.
        centring: "mean", or "sinkhorn" for targets by `sinkhorn_knopp` of all global views together, as in
            DINOv2; the center then stays.

    Where torch.distributed runs, the mean and the sums of Sinkhorn and Knopp are over all processes.

    Shape: student logits (v, b, k) and teacher logits (g, b, k) -> loss, a scalar.

    Raises:
        ValueError: for numbers and logits that do not fit, and for a loss that is not finite; the center is
            then the old one.
        TypeError: for logits of another kind.

    Source: Caron et al. 2021, section 3.1; Oquab et al. 2023 for Sinkhorn-Knopp centring.

    Built in lesson 10.
    """

    center: Tensor
    teacher_temp: Tensor

    def __init__(
        self,
        out_dim: int,
        student_temp: float = 0.1,
        teacher_temp: float = 0.04,
        center_momentum: float = 0.9,
        centring: str = "mean",
    ) -> None:
        super().__init__()
        require_at_least(1, out_dim=out_dim)
        require_temperatures(student_temp=student_temp, teacher_temp=teacher_temp)
        require_between(0, 1, center_momentum=center_momentum)
        require_centring(centring)
        self.student_temp, self.center_momentum, self.centring = student_temp, center_momentum, centring
        self.register_buffer("center", torch.zeros(out_dim))
        self.register_buffer("teacher_temp", torch.tensor(float(teacher_temp)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As of any module, but for the type of center and temperature."""
        before = {"center": self.center, "teacher_temp": self.teacher_temp}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            cast = self.get_buffer(name)
            if cast.dtype.itemsize < 4:
                setattr(self, name, buffer.to(cast.device))
        return self

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.with_numbers(student, teacher)[0]

    def with_numbers(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and what tells of a collapse: {"entropy": of the targets, "kl": how far the student still
        is from them}. The loss is their sum.
        """
        loss, entropy, center = self.compare(student, teacher)
        self.move_center(center)
        return loss, {"entropy": entropy, "kl": loss.detach() - entropy}

    def compare(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, the mean entropy of its targets, and the center for the next step, not yet set."""
        return _compare(student, teacher, *self.settings())

    def settings(self) -> tuple[Tensor, float, float, float, str]:
        """Center, temperatures, momentum and centring, in the order in which `dino_loss` takes them."""
        temperatures = self.student_temp, self.teacher_temp.item()
        return self.center, *temperatures, self.center_momentum, self.centring

    def move_center(self, center: Tensor) -> None:
        """Set the center for the next step (k,); in evaluation mode it stays."""
        if self.training:
            self.center.copy_(center)

    @torch.no_grad()
    def entropy(self, teacher: Tensor) -> Tensor:
        """Mean entropy of the targets that teacher logits (g, b, k) make, with the present center: 0 where
        each target is one prototype, log K where they are uniform.
        """
        if teacher.shape[-1:] != self.center.shape:
            raise ValueError(
                f"the center has one number for each prototype: got {self.center.shape[0]} for logits of "
                f"shape {tuple(teacher.shape)}"
            )
        return _entropy(log_targets(teacher, self.center, self.teacher_temp.item(), self.centring))


_Part = TypeVar("_Part", bound=nn.Module)


def _parts(module: nn.Module, kind: type[_Part]) -> list[_Part]:
    """The module's parts of one kind, itself included."""
    return [part for part in module.modules() if isinstance(part, kind)]


@runtime_checkable
class _LossWithNumbers(Protocol):
    """DINOLoss here, and EsViTLoss of the next lesson."""

    def with_numbers(self, student: Any, teacher: Any, /) -> tuple[Tensor, dict[str, Tensor]]: ...


class SelfDistillation(nn.Module):
    """What `fit` minimises: the loss of a model on crops, with the numbers that tell of a collapse.

    Args:
        loss: a DINOLoss, or an EsViTLoss for an EsViT; a checkpoint of `fit` then holds its centers.
        koleo: the weight of `KoLeo` of the student's two global crops, each on its own, summed over both.
            DINOv2 has 0.1, DINO none.
        koleo_at: "features", which the head is given, as DINOv2 has it; or "bottleneck", what the head
            compares with its prototypes. EsViT's head for regions is left alone.
        crop: images (b, c, h, w) -> crops, such as a MultiCrop, for batches of images. It draws from the
            random state, which `fit` seeds and keeps in a checkpoint.

    Shape: a model and its crops, v tensors (b, c, h, w) -> the loss, a scalar, and its numbers: {"entropy",
    "kl"}, more for EsViT, and "koleo" where it has a weight. With `crop`: a model and images, as a tensor or
    in a list. Labels beside crops or images, as a DataLoader gives them, are left out.

    Raises:
        ValueError: for a weight out of range or another place, and what model and loss raise.
        TypeError: for a loss of another kind, or one that is not for this model.

    Source: Oquab et al. 2023, section 4, and their code for place and sum.

    Built in lesson 10.
    """

    def __init__(
        self,
        loss: nn.Module,
        koleo: float = 0.0,
        koleo_at: str = "features",
        crop: Callable[[Tensor], Sequence[Tensor]] | None = None,
    ) -> None:
        super().__init__()
        require_between(0, 1e6, koleo=koleo)
        if koleo_at not in ("features", "bottleneck"):
            raise ValueError(f"koleo_at must be 'features' or 'bottleneck', got {koleo_at!r}")
        if not isinstance(loss, _LossWithNumbers):
            raise TypeError(f"loss must be a DINOLoss or an EsViTLoss, got {loss!r}"[:200])
        if crop is not None and not callable(crop):
            raise TypeError(f"crop must be a function of images, such as a MultiCrop, got {crop!r}")
        self.loss, self.koleo, self.koleo_at, self.crop = loss, koleo, koleo_at, crop

    def forward(self, model: nn.Module, batch: Tensor | Sequence[Any]) -> tuple[Tensor, dict[str, Tensor]]:
        crops = self._crops(batch)
        if not self.koleo:
            return self.loss.with_numbers(*model(crops))
        with _record_head(_find_dino(model, "koleo is of the student of")) as recorded:
            answers = model(crops)
        of_global_crops = recorded[self.koleo_at].unflatten(0, (len(crops), -1))[:2]
        koleo = torch.stack([KoLeo()(of_crop) for of_crop in of_global_crops]).sum()
        loss, numbers = self.loss.with_numbers(*answers)  # last: a refused call must not move the center
        return loss + self.koleo * koleo, numbers | {"koleo": koleo.detach()}

    def _crops(self, batch: Tensor | Sequence[Any]) -> Sequence[Tensor]:
        """The crops of a batch, without its labels; drawn here from images where `crop` is given."""
        first: Any = batch[0] if isinstance(batch, list | tuple) and batch else batch
        if self.crop is not None:
            device = first.device.type if isinstance(first, Tensor) else "cpu"
            with torch.autocast(device, enabled=False):  # pixels keep their digits
                return self.crop(first)
        if isinstance(first, list | tuple):
            return first
        if isinstance(batch, Tensor) or (len(batch) == 2 and getattr(batch[1], "ndim", 4) < 4):
            raise TypeError(
                "SelfDistillation takes a list of crops; for batches of images give it a crop, as in "
                "SelfDistillation(loss, crop=MultiCrop(...))"
            )
        return batch


def _find_dino(model: nn.Module, what: str) -> DINO:
    """The DINO that a model is, or that it wraps."""
    found = _parts(model, DINO)
    if not found:
        raise TypeError(f"{what} a DINO, got {type(model).__name__}")
    return found[0]


@contextmanager
def _record_head(model: DINO) -> Iterator[dict[str, Tensor]]:
    """While open: the features (n, d) that the student's head is given, and its bottleneck."""
    recorded: dict[str, Tensor] = {}

    def keep(mlp: nn.Module, given: tuple[Tensor], output: Tensor) -> None:
        recorded.update(features=given[0], bottleneck=output)

    hook = model.student.head.mlp.register_forward_hook(keep)
    try:
        yield recorded
    finally:
        hook.remove()


def _dino_losses(loss: Callable) -> list[DINOLoss]:
    losses = _parts(loss, DINOLoss) if isinstance(loss, nn.Module) else []
    if not losses:
        raise ValueError(f"DINOSchedule sets the temperature of a DINOLoss; there is none in {loss!r}"[:200])
    return losses


class DINOSchedule:
    """All that changes with the step of a DINO or an EsViT, as a callback of `fit`: fit(model, crops, loss,
    steps, callbacks=[DINOSchedule()]).

    It sets learning rate and weight decay (those of `fit` do not count), clips each gradient, keeps the
    prototypes at rest, moves the teacher and sets its temperature. The defaults are the paper's for 100
    epochs.

    Args:
        lr: the highest learning rate, after a warm-up, then along a cosine to 1e-6. The authors' rule is
            5e-4 · batch / 256, where batch counts the pictures of all processes.
        weight_decay: first and last value, along a cosine.
        momentum: of the teacher, along a cosine to 1.
        teacher_temp: first and last temperature, linear at first, then constant.
        clip: largest norm of the gradient of each parameter; infinity clips none.
        warmup: share of the run in which the learning rate climbs.
        temp_warmup: share of the run in which the temperature changes.
        frozen: share of the run in which the prototypes of every DINOHead rest.

    Raises:
        ValueError: for numbers out of range; when a run starts, for a warm-up that fills it and for a loss
            without a DINOLoss in it.
        TypeError: when a run starts, for a model that is no DINO.

    Source: Caron et al. 2021, section 3.2 and appendix; the authors' code for what the paper leaves open.

    Built in lesson 10.
    """

    def __init__(
        self,
        *,
        lr: float = 5e-4,
        weight_decay: tuple[float, float] = (0.04, 0.4),
        momentum: float = 0.996,
        teacher_temp: tuple[float, float] = (0.04, 0.07),
        clip: float = 3.0,
        warmup: float = 0.1,
        temp_warmup: float = 0.3,
        frozen: float = 0.01,
    ) -> None:
        require_between(1e-6, 1e6, lr=lr)
        require_between(1e-6, math.inf, clip=clip)
        require_between(0, 1, momentum=momentum, warmup=warmup, temp_warmup=temp_warmup, frozen=frozen)
        _require_pairs(0, 1e6, weight_decay=weight_decay)
        _require_pairs(1e-6, 1e6, teacher_temp=teacher_temp)
        self.lr, self.momentum, self.clip, self.frozen = lr, momentum, clip, frozen
        self.weight_decay, self.teacher_temp = weight_decay, teacher_temp
        self.warmup, self.temp_warmup = warmup, temp_warmup

    def values(self, step: int, steps: int) -> dict[str, float]:
        """The four curves at a step of a run of so many: lr, weight_decay, momentum, teacher_temp."""
        warmup = int(self.warmup * steps)
        values = {
            "lr": cosine_schedule(step, steps, self.lr, 1e-6, warmup=warmup),
            "weight_decay": cosine_schedule(step, steps, *self.weight_decay),
            "momentum": cosine_schedule(step, steps, self.momentum, 1.0),
            "teacher_temp": self._temperature(step, steps),
        }
        return {name: float(value) for name, value in values.items()}  # NumPy's would spoil a checkpoint

    def _temperature(self, step: int, steps: int) -> float:
        first, last = self.teacher_temp
        return first + (last - first) * min(1.0, step / max(1, int(self.temp_warmup * steps) - 1))

    def on_start(self, run: Run) -> None:
        self._model(run)
        self.values(0, run.steps)  # refuses a warm-up that fills the run
        self._set_temperature(run.loss, run.step, run.steps)

    def before_step(self, run: Run) -> None:
        student, values = self._model(run).student, self.values(run.step, run.steps)
        for group in run.optimizer.param_groups:
            group["lr"] = values["lr"]
            group["weight_decay"] = values["weight_decay"] if group["is_decayed"] else 0.0
        for parameter in student.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_((self.clip / (parameter.grad.norm() + 1e-6)).clamp(max=1.0))
        if run.step < self.frozen * run.steps:
            for head in _parts(student, DINOHead):
                head.prototypes.weight.grad = None  # not zero: AdamW would still decay it

    def after_step(self, run: Run) -> None:
        self._model(run).update_teacher(self.values(run.step, run.steps)["momentum"])
        self._set_temperature(run.loss, run.step + 1, run.steps)

    def _model(self, run: Run) -> DINO:
        return _find_dino(run.model, "DINOSchedule moves the teacher of")

    def _set_temperature(self, loss: Callable, step: int, steps: int) -> None:
        for part in _dino_losses(loss):
            part.teacher_temp.fill_(self._temperature(step, steps))


def dino_schedules(model: DINO, loss: nn.Module, steps: int, **settings: Any) -> dict[str, Callable]:
    """`DINOSchedule` in its old form, as arguments of `fit`; deprecated.

    The learning rate is not scaled to the batch: the authors' rule is lr = 5e-4 · batch / 256.

    Args:
        model: as of the run.
        loss: as of the run.
        steps: as of the run.
        **settings: those of DINOSchedule.

    Returns:
        {"lr", "weight_decay", "before_step", "after_step"}, functions of the step.

    Raises:
        ValueError: as DINOSchedule.
        TypeError: as DINOSchedule.

    Built in lesson 10.
    """
    warnings.warn(
        "dino_schedules is deprecated: use fit(..., callbacks=[DINOSchedule(...)])",
        DeprecationWarning,
        stacklevel=2,
    )
    require_at_least(1, steps=steps)
    schedule = DINOSchedule(**settings)
    no_optimizer: Any = SimpleNamespace(param_groups=[])  # fit sets the rates itself
    run = Run(model, loss, no_optimizer, steps)
    schedule.on_start(run)

    def before_step(step: int) -> None:
        run.step = step
        schedule.before_step(run)

    def after_step(step: int) -> None:
        run.step = step
        schedule.after_step(run)

    return {
        "lr": lambda step: schedule.values(step, steps)["lr"],
        "weight_decay": lambda step: schedule.values(step, steps)["weight_decay"],
        "before_step": before_step,
        "after_step": after_step,
    }


def _log_sinkhorn(logits: Tensor, temperature: float, iterations: int) -> Tensor:
    """`sinkhorn_knopp` as log-probabilities, in which nothing overflows."""
    log_q = logits / temperature  # (n, k)
    for _ in range(iterations):
        largest = _all_reduce(log_q.amax(dim=0), "MAX")
        log_q = log_q - largest  # columns: every prototype is given as much, over all processes
        log_q = log_q - _sum_over_processes(log_q.exp().sum(dim=0)).log()
        log_q = F.log_softmax(log_q, dim=1)  # rows: every sample gives 1
    return log_q


@torch.no_grad()
def sinkhorn_knopp(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Targets that use all prototypes alike: exp(logits / temperature), in turn scaled to equal sums for
    every prototype, and to the sum 1 for every sample.

    Samples come last, so that each target is a distribution. Where torch.distributed runs, a prototype's sum
    is over the samples of all processes.

    Args:
        logits: of the teacher (n, k), not divided by the temperature.
        temperature: the teacher's, above 0.
        iterations: how often each of the two is done; they do not converge in 3, and are not meant to.

    Returns:
        Targets (n, k): rows sum to 1, columns nearly to n / k. In float32 at least, without gradient.

    Raises:
        ValueError: for logits of another shape, and numbers out of range.
        TypeError: for anything but a tensor of floats.

    Source: Oquab et al. 2023 (DINOv2), section 4, after Caron et al. 2020 (SwAV) and Cuturi 2013.

    Built in lesson 10.
    """
    require_floats("logits", logits, "n k")
    require_temperatures(temperature=temperature)
    require_at_least(1, iterations=iterations)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return _log_sinkhorn(logits, temperature, iterations).exp()


class KoLeo(nn.Module):
    """Keeps the pictures of a batch apart: minus the mean logarithm of the distance from each direction to
    its nearest neighbour.

    It estimates, up to constants, minus the entropy of the features on the sphere (Kozachenko and Leonenko).
    The choice of a neighbour has no gradient, both ends of the distance have. Over several processes each
    one compares its own pictures, as in DINOv2. Nearest neighbours come nearer in larger batches: compare
    its values at equal b.

    Shape: features (b, d), any lengths -> a scalar, in float32 at least.

    Raises:
        ValueError: for features of another shape, and for a single picture, which has no neighbour.
        TypeError: for anything but a tensor of floats.

    Source: Sablayrolles et al. 2019, section 3; Oquab et al. 2023, section 4.

    Built in lesson 10.
    """

    EPS = 1e-8

    def forward(self, features: Tensor) -> Tensor:
        require_floats("features", features, "b d")
        if len(features) < 2:
            raise ValueError(
                "KoLeo needs two pictures or more, one is its own neighbour: got features of shape "
                f"{tuple(features.shape)}"
            )
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(torch.promote_types(features.dtype, torch.float32))
            directions = F.normalize(features, dim=1, eps=self.EPS)
            with torch.no_grad():
                cosines = directions @ directions.T  # (b, b)
                nearest = cosines.fill_diagonal_(-math.inf).argmax(dim=1)
            distances = F.pairwise_distance(directions, directions[nearest], eps=self.EPS)
            return -(distances + self.EPS).log().mean()
