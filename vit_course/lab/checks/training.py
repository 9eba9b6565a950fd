"""Exercises of lesson 04: soft targets, one step of AdamW, and mixup."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .exercise import Exercise, Mistake

_generator = torch.Generator().manual_seed(4)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=_generator)


# ---- warm-up: smooth_labels --------------------------------------------------------------------------------


def _smooth_labels(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    return (1 - smoothing) * F.one_hot(labels, classes) + smoothing / classes


def _row_sum(answer: Tensor) -> str:
    return f"your first row sums to {answer[0].sum():.2f}"


SMOOTH_LABELS = Exercise(
    name="smooth_labels",
    solution=_smooth_labels,
    cases=(
        (torch.tensor([2, 0, 3, 3, 1]), 4, 0.1),
        (torch.tensor([6, 0, 5]), 7, 0.3),
        (torch.tensor([1, 0]), 2, 0.0),
    ),
    praise="Each row still sums to one, and no target asks the logits to grow for ever.",
    mistakes={
        "shared among the others": Mistake(
            lambda labels, classes, smoothing: (
                F.one_hot(labels, classes) * (1 - smoothing)
                + (1 - F.one_hot(labels, classes)) * smoothing / (classes - 1)
            ),
            says=lambda answer: (
                f"The right class has {answer[0].max():.3f}: you shared the smoothing among the other "
                "classes only. In Szegedy et al. (and in torch) every class gets smoothing / classes, the "
                "right one too."
            ),
        ),
        "right class not lowered": Mistake(
            lambda labels, classes, smoothing: F.one_hot(labels, classes) + smoothing / classes,
            says=lambda answer: (
                f"{_row_sum(answer).capitalize()}: take the smoothing away from the right class first, (1 - "
                "smoothing) · one_hot."
            ),
        ),
        "taken away, not handed out": Mistake(
            lambda labels, classes, smoothing: (1 - smoothing) * F.one_hot(labels, classes),
            says=lambda answer: (
                f"{_row_sum(answer).capitalize()}: you took the smoothing away, now hand it out, + "
                "smoothing / classes."
            ),
        ),
        "right class left out": Mistake(
            lambda labels, classes, smoothing: (
                (1 - smoothing) * F.one_hot(labels, classes)
                + (1 - F.one_hot(labels, classes)) * smoothing / classes
            ),
            says=lambda answer: (
                f"{_row_sum(answer).capitalize()}: the right class gets its smoothing / classes too."
            ),
        ),
        "not divided": Mistake(
            lambda labels, classes, smoothing: (1 - smoothing) * F.one_hot(labels, classes) + smoothing,
            says=lambda answer: (
                f"{_row_sum(answer).capitalize()}: the smoothing is shared by all classes, so divide it by "
                "their number."
            ),
        ),
        "shares swapped": Mistake(
            lambda labels, classes, smoothing: (
                smoothing * F.one_hot(labels, classes) + (1 - smoothing) / classes
            ),
            says=lambda answer: (
                f"The right class has only {answer[0].max():.3f}: the two shares are swapped. It keeps 1 - "
                "smoothing; `smoothing` is what is spread."
            ),
        ),
        "not smoothed": Mistake(
            lambda labels, classes, smoothing: F.one_hot(labels, classes).float(),
            says="These are the plain one-hot targets: the smoothing is not in them yet.",
        ),
    },
)


# ---- core: adamw_step --------------------------------------------------------------------------------------


def _adamw_step(
    weight: Tensor,
    gradient: Tensor,
    m: Tensor,
    v: Tensor,
    step: int,
    lr: float,
    decay: float,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    mistake: str = "",
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of AdamW, or one with a mistake in it."""
    if mistake in ("weight decay in the gradient", "decay twice"):
        gradient = gradient + decay * weight
    if mistake == "decay without the learning rate":
        weight = weight * (1 - decay)
    elif mistake not in ("weight decay in the gradient", "decay last", "no decay"):
        weight = weight * (1 - lr * decay)
    m = betas[0] * m + (1 - betas[0]) * gradient
    v = betas[1] * v + (1 - betas[1]) * gradient**2
    power = 1 if mistake == "correction once for all" else step
    m_hat, v_hat = m / (1 - betas[0] ** power), v / (1 - betas[1] ** power)
    if mistake == "no bias correction":
        m_hat, v_hat = m, v
    length = v_hat.sqrt() + eps
    if mistake == "epsilon inside the root":
        length = (v_hat + eps).sqrt()
    elif mistake == "no epsilon":
        length = v_hat.sqrt()
    elif mistake == "no root":
        length = v_hat + eps
    weight = weight + lr * m_hat / length if mistake == "uphill" else weight - lr * m_hat / length
    if mistake == "decay last":
        weight = weight * (1 - lr * decay)
    return (weight, m_hat, v_hat) if mistake == "corrected moments kept" else (weight, m, v)


def _adamw_mistake(name: str, says: str, **changed: Any) -> Mistake:
    return Mistake(lambda *case: _adamw_step(*case, mistake=name, **changed), says)


ADAMW_STEP = Exercise(
    name="adamw_step",
    solution=_adamw_step,
    cases=(
        (_random(3, 4), _random(3, 4), 0.3 * _random(3, 4), 0.1 * _random(3, 4) ** 2, 3, 0.1, 0.5),
        (_random(5), _random(5), torch.zeros(5), torch.zeros(5), 1, 0.1, 0.3),
        (
            _random(2, 3, 2),
            1e-4 * _random(2, 3, 2),
            1e-4 * _random(2, 3, 2),
            1e-8 * _random(2, 3, 2) ** 2,
            40,
            0.05,
            0.4,
        ),
    ),
    praise="The same weights and the same moments as torch.optim.AdamW, for the first step and the fortieth.",
    mistakes={
        name: _adamw_mistake(name, says)
        for name, says in {
            "weight decay in the gradient": (
                "The decay went into the gradient: that is Adam with L2, where big gradients drown it. "
                "AdamW shrinks the weight itself, weight · (1 - lr · decay), and leaves the gradient as it "
                "is."
            ),
            "decay twice": (
                "The weights decay twice, once by themselves and once through the gradient. Leave the "
                "gradient as it is."
            ),
            "no decay": (
                "The moments are right, but nothing decays: multiply the weight by (1 - lr · decay) before "
                "you move it."
            ),
            "decay without the learning rate": (
                "Your weights shrink by (1 - decay) at each step; it is (1 - lr · decay)."
            ),
            "decay last": (
                "You moved the weight first and shrank it afterwards, so the move shrinks too. Shrink, "
                "then move."
            ),
            "no bias correction": (
                "The moments are right, but they start at zero and are still too small: divide m by 1 - "
                "0.9**step and v by 1 - 0.999**step."
            ),
            "correction once for all": (
                "The bias correction of every step is that of the first: take 0.9**step and 0.999**step, "
                "not 0.9 and 0.999."
            ),
            "corrected moments kept": (
                "The weight is right, but you hand back the corrected moments. Keep the plain ones; the "
                "correction is for this step only."
            ),
            "epsilon inside the root": (
                "Small gradients give it away: eps stands outside the root, sqrt(v_hat) + eps."
            ),
            "no epsilon": (
                "Nearly: the small gradients are a little off. Divide by sqrt(v_hat) + eps, which also "
                "saves you when v_hat is zero."
            ),
            "no root": (
                "You divided by v_hat. It holds squares: divide by its square root, so that the units of "
                "the gradient cancel."
            ),
            "uphill": "The weight went up the gradient: subtract the step.",
        }.items()
    }
    | {
        "betas swapped": Mistake(
            lambda *case: _adamw_step(*case, betas=(0.999, 0.9)),
            "The two memories are swapped: m forgets fast (0.9), v forgets slowly (0.999).",
        )
    },
)


# ---- stretch: mixup ----------------------------------------------------------------------------------------


def _mixup(images: Tensor, targets: Tensor, share: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    of_image, of_target = share[:, None, None, None], share[:, None]
    return of_image * images + (1 - of_image) * images[order], of_target * targets + (
        1 - of_target
    ) * targets[order]


def _one_share(images: Tensor, targets: Tensor, share: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    return _mixup(images, targets, share[:1].expand(len(share)), order)


def _along_the_width(images: Tensor, targets: Tensor, share: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    return share * images + (1 - share) * images[order], _mixup(images, targets, share, order)[1]


def _mixup_case(b: int, order: list[int]) -> tuple[Tensor, ...]:
    # as wide as there are images, so that shares laid along the width pass every test of shapes
    share = 0.1 + 0.8 * torch.rand(b, generator=_generator)
    return _random(b, 3, b + 2, b), _random(b, 6).softmax(dim=1), share, torch.tensor(order)


MIXUP = Exercise(
    name="mixup",
    solution=_mixup,
    cases=(_mixup_case(4, [2, 0, 3, 1]), _mixup_case(5, [1, 2, 3, 4, 0])),
    praise="One share for each image, the same for its pixels and its target.",
    mistakes={
        "one share for the batch": Mistake(
            _one_share,
            "Every image was mixed with the share of the first: one draw for the whole batch. "
            "Give each image its own, share[:, None, None, None].",
        ),
        "along the width": Mistake(
            _along_the_width,
            "The targets are right, but the shares of the images lie along the width: they fit only "
            "because the images are as wide as the batch is long. Line them up with the batch, share[:, "
            "None, None, None].",
        ),
        "targets not mixed": Mistake(
            lambda images, targets, share, order: (_mixup(images, targets, share, order)[0], targets),
            "The images are right, but the targets are still those of one image: a picture that is 30 % "
            "cat wants 30 % cat.",
        ),
        "targets the other way round": Mistake(
            lambda images, targets, share, order: (
                _mixup(images, targets, share, order)[0],
                _mixup(images, targets, 1 - share, order)[1],
            ),
            "The images are right; in the targets, share and 1 - share are swapped.",
        ),
        "shares swapped": Mistake(
            lambda images, targets, share, order: _mixup(images, targets, 1 - share, order),
            "share and 1 - share are swapped: `share` is what an image keeps of itself.",
        ),
        "order undone": Mistake(
            lambda images, targets, share, order: _mixup(images, targets, share, order.argsort()),
            "The partners are wrong: image i is mixed with image order[i], which is images[order]; no "
            "argsort here.",
        ),
        "mixed with the flipped batch": Mistake(
            lambda images, targets, share, order: _mixup(
                images, targets, share, torch.arange(len(order)).flip(0)
            ),
            "You paired first with last. The partner of image i is image order[i].",
        ),
    },
)

EXERCISES: list[Exercise] = [SMOOTH_LABELS, ADAMW_STEP, MIXUP]
