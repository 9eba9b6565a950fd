"""Exercises of lesson 04: schedule, loop, evaluation and comparison; a split, a step of AdamW, mixup."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_course import training

from .exercise import Exercise, Mistake, _is_unanswered, filled

_generator = torch.Generator().manual_seed(4)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=_generator)


# ---- cosine_schedule ---------------------------------------------------------------------------------------


def _schedule(progress: Callable[[int, int, int], float], warm: Callable[[int, int], float]) -> Callable:
    """A schedule with another progress along the cosine, or another share of the warm-up."""

    def schedule(step: int, steps: int, start: float, end: float, warmup: int) -> float:
        if step < warmup:
            return start * warm(step, warmup)
        return end + (start - end) * (1 + math.cos(math.pi * progress(step, steps, warmup))) / 2

    return schedule


def _progress(step: int, steps: int, warmup: int) -> float:
    return (step - warmup) / (steps - warmup)


def _warm(step: int, warmup: int) -> float:
    return (step + 1) / warmup


def _each_step(function: Callable, case: tuple[int, float, float, int]) -> Any:
    """The values of a schedule at every step of a run, (steps,)."""
    steps, start, end, warmup = case
    values = [function(step, steps, start, end, warmup) for step in range(steps)]
    return values[0] if any(map(_is_unanswered, values)) else torch.tensor([float(v) for v in values])


COSINE_SCHEDULE = Exercise(
    name="cosine_schedule",
    solution=training.cosine_schedule,
    calls=_each_step,
    cases=((8, 1.0, 0.1, 2), (10, 2.0, 0.0, 0), (9, 0.996, 1.0, 0), (12, 1e-3, 1e-5, 3)),
    praise="It climbs, then falls along half a cosine; and it rises where the end is above the start.",
    mistakes={
        "warm-up from zero": Mistake(
            _schedule(_progress, lambda step, warmup: step / warmup),
            "Your first step has the rate 0 and is wasted: in step 0 the warm-up has come 1 / warmup of the "
            "way, (step + 1) / warmup.",
        ),
        "cosine begun at step 0": Mistake(
            _schedule(lambda step, steps, warmup: step / steps, _warm),
            "The cosine began with the run, so the rate jumps down where the warm-up ends: count its steps "
            "from there, (step - warmup) / (steps - warmup).",
        ),
        "cosine not shortened": Mistake(
            _schedule(lambda step, steps, warmup: (step - warmup) / steps, _warm),
            "The cosine is not done when the run is: warmup steps are gone, so divide by steps - warmup.",
        ),
        "end reached in the last step": Mistake(
            _schedule(lambda step, steps, warmup: (step - warmup) / (steps - warmup - 1), _warm),
            "Your last step has the end value already; here it would be reached one step later, at step "
            "`steps`. Divide by steps - warmup.",
        ),
        "a whole cosine": Mistake(
            _schedule(lambda step, steps, warmup: 2 * _progress(step, steps, warmup), _warm),
            "Your rate falls and climbs again: that is a whole turn of the cosine. Half a turn is pi times "
            "the progress.",
        ),
        "pi forgotten": Mistake(
            _schedule(lambda step, steps, warmup: _progress(step, steps, warmup) / math.pi, _warm),
            "Your cosine turns by one radian only and stays near its top: it should turn by pi times the "
            "progress.",
        ),
        "not halved": Mistake(
            lambda step, steps, start, end, warmup: (
                start * _warm(step, warmup)
                if step < warmup
                else end + (start - end) * (1 + math.cos(math.pi * _progress(step, steps, warmup)))
            ),
            "The warm-up is right; your cosine begins too far from `end`, at twice the distance: 1 + cos(…) "
            "runs from 2 to 0, so divide it by 2.",
        ),
        "a straight line": Mistake(
            lambda step, steps, start, end, warmup: (
                start * _warm(step, warmup)
                if step < warmup
                else end + (start - end) * (1 - _progress(step, steps, warmup))
            ),
            "You fall in a straight line: put (1 + cos(pi · progress)) / 2 in the place of 1 - progress.",
        ),
        "end forgotten": Mistake(
            lambda step, steps, start, end, warmup: training.cosine_schedule(step, steps, start, 0.0, warmup),
            "Your curve falls to zero: it should come down to `end`, end + (start - end) · …",
        ),
        "no warm-up": Mistake(
            lambda step, steps, start, end, warmup: training.cosine_schedule(step, steps, start, end),
            "The cosine is right; the warm-up is missing. For step < warmup: start · (step + 1) / warmup.",
        ),
    },
)


# ---- fit ---------------------------------------------------------------------------------------------------

_FEATURES, _LABELS = _random(24, 5), torch.arange(24) % 3


def _draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    index = torch.randint(0, 24, (6,), generator=generator)
    return _FEATURES[index], _LABELS[index]


def _cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def _trained(function: Callable, case: tuple[dict, int]) -> Any:
    """Train a small model: all losses, the weights, and whether the caller's random state is kept."""
    settings, dropout_seed = case
    model = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Dropout(0.3), nn.Linear(8, 3))
    filled(model)
    torch.default_generator.manual_seed(dropout_seed)
    before = torch.get_rng_state()
    with torch.enable_grad():
        answer = function(model, _draw, _cross_entropy, *settings.values())
    losses = answer["loss"] if isinstance(answer, dict) and "loss" in answer else answer
    if _is_unanswered(losses) or (isinstance(losses, list) and not losses):
        return None
    if isinstance(losses, list | tuple):
        if len(losses) != settings["steps"]:
            raise ValueError(
                f"it gave {len(losses)} of {settings['steps']} losses; every step gives one, and `return` "
                f"stands behind the loop"
            )
        losses = torch.tensor([float(value) for value in losses])
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    return losses, weights, torch.equal(before, torch.get_rng_state())


def _fit(
    model: nn.Module,
    draw: Callable,
    loss: Callable,
    steps: int,
    lr: float,
    weight_decay: float,
    clip: float | None,
    seed: int,
) -> Tensor:
    """The package's loop, with its arguments in a row."""
    settings: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "clip": clip, "seed": seed}
    return torch.tensor(training.fit(model, draw, loss, steps, **settings, progress=False)["loss"])


def _fit_with(mistake: str) -> Callable:
    """The loop in short, with a mistake in it."""

    def fit(
        model: nn.Module,
        draw: Callable,
        loss: Callable,
        steps: int,
        lr: float,
        weight_decay: float,
        clip: float | None,
        seed: int,
    ) -> list[float]:
        outside = torch.get_rng_state()
        if mistake != "no seed for dropout":
            torch.default_generator.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        groups = training._decay_groups(model)
        if mistake == "decay on everything":
            groups = [{"params": list(model.parameters()), "is_decayed": True}]
        optimizer = torch.optim.AdamW(groups, lr=1e-3)
        model.train(mistake != "dropout switched off")
        losses = []
        for step in range(steps):
            if mistake == "the same batch":
                generator.manual_seed(seed)
            late = mistake == "rate one step late" and step > 0
            end = 0.0 if mistake == "rate down to zero" else lr / 100
            warmup = 0 if mistake == "no warm-up" else steps // 20
            rate = training.cosine_schedule(step - late, steps, lr, end, warmup)
            for group in optimizer.param_groups:
                group["lr"] = lr if mistake == "rate never changed" else rate
                if group["is_decayed"] or mistake != "the other group left alone":
                    group["weight_decay"] = weight_decay if group["is_decayed"] else 0.0
            if mistake == "no decay":
                group["weight_decay"] = optimizer.param_groups[0]["weight_decay"] = 0.0
            value = loss(model, draw(generator))
            if mistake != "zero_grad forgotten":
                optimizer.zero_grad()
            value.backward()
            if clip is not None and mistake == "each value clipped":
                nn.utils.clip_grad_value_(model.parameters(), clip)
            elif clip is not None and mistake != "no clipping":
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            losses.append(value.item())
        if mistake != "random state left changed":
            torch.set_rng_state(outside)
        return losses

    return fit


FIT = Exercise(
    name="fit",
    solution=_fit,
    calls=_trained,
    cases=(
        ({"steps": 24, "lr": 0.05, "weight_decay": 0.5, "clip": 0.5, "seed": 3}, 0),
        ({"steps": 10, "lr": 0.02, "weight_decay": 0.1, "clip": None, "seed": 1}, 5),
    ),
    tolerance=1e-4,
    praise="Step for step the losses and the weights of the package's own loop.",
    mistakes={
        name: Mistake(_fit_with(name), says)
        for name, says in {
            "zero_grad forgotten": (
                "Your gradients pile up: PyTorch adds each new one to the last. Call optimizer.zero_grad() "
                "before backward()."
            ),
            "decay on everything": (
                "The weight decay pulls on biases and norms as well: set it only in groups that are "
                '"is_decayed", and 0 in the other.'
            ),
            "the other group left alone": (
                "The group that should not decay keeps AdamW's own weight decay, 0.01: set its weight_decay "
                "to 0."
            ),
            "no decay": "Nothing decays: set weight_decay in the groups that are marked as decayed.",
            "rate never changed": (
                'Every step has the same learning rate: set group["lr"] from the schedule in each step, in '
                "every group."
            ),
            "no warm-up": (
                "Your first steps have the full rate: the first twentieth of the steps, steps // 20, is the "
                "warm-up of cosine_schedule."
            ),
            "rate down to zero": (
                "Your learning rate falls to 0: it ends at a hundredth of its peak, lr / 100."
            ),
            "rate one step late": (
                "Each step uses the learning rate of the step before: set the rate first, then step."
            ),
            "no clipping": (
                "The gradients reach the optimiser as they are: clip their norm between backward() and "
                "step()."
            ),
            "each value clipped": (
                "You clip each number by itself, which changes the direction; clip_grad_norm_ scales the "
                "whole gradient down."
            ),
            "the same batch": (
                "Every step sees the same pictures: make the generator once, before the loop, and draw on "
                "from it."
            ),
            "dropout switched off": (
                "It trains in evaluation mode, without dropout: call model.train() before the loop."
            ),
            "no seed for dropout": (
                "The batches follow the seed, dropout does not: torch.manual_seed(seed) inside fork_rng."
            ),
            "random state left changed": (
                "The training is right, but the caller's random state has changed afterwards: do it all in "
                "torch.random.fork_rng()."
            ),
        }.items()
    },
)


# ---- evaluate ----------------------------------------------------------------------------------------------


class _Classifier(nn.Module):
    """A model that answers otherwise in training: with dropout and the statistics of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Dropout(0.9), nn.Linear(5, 3), nn.BatchNorm1d(3))
        filled(self)

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)


def _evaluated(function: Callable, case: tuple[bool, tuple[int, ...]]) -> Any:
    """The answer of a function, whether the model is in training mode afterwards, and what it remembers."""
    is_training, sizes = case
    model = _Classifier().train(is_training)
    with torch.no_grad():
        right = model.eval()(_FEATURES).argmax(dim=1)
        wrong = torch.arange(24) % 5 < 2
        labels = torch.where(wrong, (right + 1) % 3, right)
        labels[-sizes[-1] :] = (right[-sizes[-1] :] + 1) % 3  # the last, small batch is all wrong
    model.train(is_training)
    batches = list(zip(_FEATURES.split(sizes), labels.split(sizes), strict=True))
    answer = function(model, batches)
    return answer if _is_unanswered(answer) else (answer, model.training)


def _evaluate_with(mistake: str) -> Callable:
    def evaluate(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
        was = model.training
        if mistake != "in training mode":
            model.eval()
        shares, right, seen = [], 0, 0
        for images, labels in batches:
            hits = (model(images).argmax(dim=1) == labels).sum().item()
            shares.append(hits / len(labels))
            right, seen = right + hits, seen + len(labels)
        if mistake != "left in evaluation mode":
            model.train(was or mistake == "always left in training mode")
        if mistake == "mean of the batches":
            return sum(shares) / len(shares)
        if mistake == "the last batch only":
            return shares[-1]
        return float(right) if mistake == "a count" else right / seen

    return evaluate


EVALUATE = Exercise(
    name="evaluate",
    solution=training.evaluate,
    calls=_evaluated,
    cases=((True, (10, 10, 4)), (False, (20, 4)), (True, (9, 9, 6))),
    praise="Every picture counts the same, dropout is off, and the model comes back in the mode it had.",
    mistakes={
        name: Mistake(_evaluate_with(name), says)
        for name, says in {
            "mean of the batches": (
                "You took the mean of the batches' accuracies. The last batch is smaller, and its pictures "
                "count for more: add up right answers and pictures, and divide once."
            ),
            "in training mode": (
                "The model answered in training mode, with dropout and the batch's own statistics: "
                "model.eval() first."
            ),
            "left in evaluation mode": (
                "The number is right, but the model stays in evaluation mode: the training that goes on has "
                "no dropout any more. Put back the mode it had."
            ),
            "always left in training mode": (
                "The number is right, but a model that came in evaluation mode leaves in training mode: put "
                "back the mode it had."
            ),
            "the last batch only": "That is the accuracy of the last batch: add up over all of them.",
            "a count": "That is how many are right: divide by the number of pictures.",
        }.items()
    },
)


# ---- paired_difference -------------------------------------------------------------------------------------


def _paired_with(mistake: str) -> Callable:
    def paired_difference(first: Tensor, second: Tensor) -> tuple[float, float]:
        n = len(first)
        differences = first.double() - second.double()
        mean, spread = differences.mean(), differences.std(correction=0)
        if mistake == "not paired":
            shares = torch.stack([first.double().mean(), second.double().mean()])
            spread = (shares * (1 - shares)).sum().sqrt()
        if mistake == "among the disagreements":
            apart = differences[differences != 0]
            mean = apart.mean()
        if mistake == "corrected spread":
            spread = differences.std()
        if mistake == "mean not taken off":
            spread = differences.square().mean().sqrt()
        if mistake == "no root of the variance":
            spread = differences.var(correction=0)
        half = 1.96 * spread / n**0.5
        if mistake == "one standard error":
            half = half / 1.96
        if mistake == "not divided by the root":
            half = 1.96 * spread
        if mistake == "divided by n":
            half = 1.96 * spread / n
        if mistake == "both ends":
            return (mean - half).item(), (mean + half).item()
        return (-mean if mistake == "the wrong way round" else mean).item(), half.item()

    return paired_difference


def _right(n: int, both: int, first: int, second: int) -> tuple[Tensor, Tensor]:
    """What two models got right of n pictures: so many both, so many the first or the second alone."""
    place = torch.arange(n)
    return place < both + first, (place < both) | ((place >= both + first) & (place < both + first + second))


PAIRED_DIFFERENCE = Exercise(
    name="paired_difference",
    solution=training.paired_difference,
    cases=(_right(2000, 1950, 30, 10), _right(360, 310, 13, 25), _right(40, 20, 3, 1)),
    praise="Only the pictures on which the two disagree widen the interval.",
    mistakes={
        name: Mistake(_paired_with(name), says)
        for name, says in {
            "not paired": (
                "The difference is right. The half width is that of two *different* test sets, where both "
                "spreads add up; here the pictures are the same, so take the spread of the differences."
            ),
            "among the disagreements": (
                "You divided by the pictures on which they disagree; a difference of accuracies is over all "
                "of them."
            ),
            "one standard error": "That half width is one standard error: 95 % take 1.96 of them.",
            "not divided by the root": "The half width is that of one picture: divide by the root of n.",
            "corrected spread": (
                "Very close: PyTorch's std() divides by n - 1 by default. The formula divides by n, which is "
                "std(correction=0)."
            ),
            "mean not taken off": (
                "Very close: you took the root of the mean square. The variance is that less the square of "
                "the mean."
            ),
            "no root of the variance": (
                "You used the variance of the differences: the half width takes its root, the standard "
                "deviation."
            ),
            "divided by n": "Divide the spread by the root of n, not by n.",
            "both ends": "You gave the two ends of the interval; give its middle and its half width.",
            "the wrong way round": "Your sign is the wrong way round: positive means the first is better.",
        }.items()
    },
)


# ---- practice: adamw_step ----------------------------------------------------------------------------------


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


# ---- practice: mixup ---------------------------------------------------------------------------------------


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


# ---- practice: held_out ------------------------------------------------------------------------------------


def _held_out(groups: Tensor, share: float) -> Tensor:
    chosen = torch.zeros(len(groups), dtype=torch.bool)
    for group in groups.unique().flip(0):
        if chosen.sum() >= share * len(groups):
            break
        chosen |= groups == group
    return chosen


def _too_many(groups: Tensor, share: float) -> Tensor:
    chosen = torch.zeros(len(groups), dtype=torch.bool)
    for group in groups.unique().flip(0):
        chosen |= groups == group
        if chosen.sum() > share * len(groups):
            break
    return chosen


def _too_few(groups: Tensor, share: float) -> Tensor:
    chosen = torch.zeros(len(groups), dtype=torch.bool)
    for group in groups.unique().flip(0):
        more = chosen | (groups == group)
        if more.sum() > share * len(groups):
            break
        chosen = more
    return chosen


def _share_of_groups(groups: Tensor, share: float) -> Tensor:
    kinds = groups.unique()
    return torch.isin(groups, kinds[len(kinds) - math.ceil(share * len(kinds)) :])


HELD_OUT = Exercise(
    name="held_out",
    solution=_held_out,
    cases=(
        (torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 0, 3]), 0.2),
        (torch.tensor([5, 5, 5, 2, 2, 9, 9, 9, 9, 2]), 0.4),
        (torch.tensor([1, 3, 3, 2, 1, 1, 2, 4]), 0.5),
    ),
    praise="No photograph has crops on both sides.",
    mistakes={
        "the last pictures": Mistake(
            lambda groups, share: torch.arange(len(groups)) >= len(groups) - math.ceil(share * len(groups)),
            "You held out the last pictures, whatever photograph they are of: their neighbours are still "
            "trained on. Hold out whole groups.",
        ),
        "a share of the groups": Mistake(
            _share_of_groups,
            "You held out that share of the *groups*; they have different sizes. Add groups until that share "
            "of the *pictures* is reached.",
        ),
        "one group alone": Mistake(
            lambda groups, share: groups == groups.max(),
            "You held out the last group and stopped: go on, group by group, until the share is reached.",
        ),
        "one group too many": Mistake(
            _too_many,
            "You go on where the share is reached exactly: stop as soon as it is.",
        ),
        "one group too few": Mistake(
            _too_few,
            "You stop before the share is reached: at *least* that share is to be held out, so the last "
            "group may go beyond it.",
        ),
        "the first groups": Mistake(
            lambda groups, share: _held_out(-groups, share),
            "You began with the smallest number; begin with the largest.",
        ),
        "training marked": Mistake(
            lambda groups, share: ~_held_out(groups, share),
            "True stands at the pictures to train on: it should stand at those held out.",
        ),
    },
)

EXERCISES: list[Exercise] = [
    COSINE_SCHEDULE,
    FIT,
    EVALUATE,
    PAIRED_DIFFERENCE,
    HELD_OUT,
    ADAMW_STEP,
    MIXUP,
]
