"""Exercises of lesson 08: soft targets and losses, a teacher that stays as it is, two heads, other uses."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_course.distillation import (
    DistilledViT,
    distillation_loss,
    soft_loss,
    soft_targets,
    teacher_answers,
    teacher_loss,
)

from .exercise import Exercise, Mistake, filled

_generator = torch.Generator().manual_seed(8)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=_generator)


# ---- step 1: soft_targets ----------------------------------------------------------------------------------


def _row_sum(answer: Tensor) -> str:
    return f"your first row sums to {answer[0].sum():.2f}"


SOFT_TARGETS = Exercise(
    name="soft_targets",
    solution=soft_targets,
    cases=((2 * _random(4, 4), 3.0), (_random(3, 5), 0.5), (_random(2, 6), 10.0)),
    praise="Divided before the softmax, the logits become odds of which the T-th root is taken.",
    mistakes={
        "multiplied": Mistake(
            lambda logits, temperature: (logits * temperature).softmax(dim=-1),
            says=lambda answer: (
                f"The largest share of the first row is {answer[0].max():.3f}: it became harder, not "
                "softer. Divide by the temperature."
            ),
        ),
        "divided after the softmax": Mistake(
            lambda logits, temperature: logits.softmax(dim=-1) / temperature,
            says=lambda answer: f"{_row_sum(answer).capitalize()}: divide the logits, before the softmax.",
        ),
        "over the pictures": Mistake(
            lambda logits, temperature: (logits / temperature).softmax(dim=0),
            says=lambda answer: (
                f"{_row_sum(answer).capitalize()}: the softmax ran over the pictures. Use dim=-1, the "
                "classes."
            ),
        ),
        "temperature forgotten": Mistake(
            lambda logits, temperature: logits.softmax(dim=-1),
            says="These are the shares at temperature 1: divide the logits by the temperature first.",
        ),
        "not normalised": Mistake(
            lambda logits, temperature: (logits / temperature).exp(),
            says=lambda answer: f"{_row_sum(answer).capitalize()}: these are odds. Divide them by their sum.",
        ),
        "root without normalising": Mistake(
            lambda logits, temperature: logits.softmax(dim=-1) ** (1 / temperature),
            says=lambda answer: (
                f"Nearly: the roots of the shares are right as odds, but {_row_sum(answer)}. Divide by the "
                "sum, or divide the logits and take one softmax."
            ),
        ),
        "hard answers": Mistake(
            lambda logits, temperature: F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).float(),
            says=(
                "These are the teacher's answers, zero or one: soft targets also say how likely it finds the "
                "other classes."
            ),
        ),
    },
)


# ---- step 2: soft_loss -------------------------------------------------------------------------------------


def _kl(wanted: Tensor, given: Tensor) -> Tensor:
    """The terms (b, classes) of KL(softmax(wanted) ‖ softmax(given))."""
    log_p, log_q = wanted.log_softmax(dim=-1), given.log_softmax(dim=-1)
    return log_p.exp() * (log_p - log_q)


def _says_ratio(words: str) -> Callable[[Tensor], str]:
    return lambda answer: f"You get {float(answer):.3f}. {words}"


SOFT_LOSS = Exercise(
    name="soft_loss",
    solution=soft_loss,
    cases=(
        (2 * _random(4, 5), 2 * _random(4, 5), 3.0),
        (_random(3, 10), 3 * _random(3, 10), 2.0),
        (3 * _random(2, 4), _random(2, 4), 0.5),
    ),
    praise=(
        "Zero where they agree, the same for a batch shown twice, and with a gradient whose length T hardly "
        "changes."
    ),
    mistakes={
        "no T²": Mistake(
            lambda student, teacher, temperature: soft_loss(student, teacher, temperature) / temperature**2,
            _says_ratio(
                "The divergence is right, but its gradient shrinks with the square of the temperature: "
                "multiply by temperature**2."
            ),
        ),
        "T instead of T²": Mistake(
            lambda student, teacher, temperature: soft_loss(student, teacher, temperature) / temperature,
            _says_ratio(
                "You multiplied by T. One factor 1/T stands in front of the gradient, the other hides in q "
                "- p: it takes T²."
            ),
        ),
        "turned round": Mistake(
            lambda student, teacher, temperature: soft_loss(teacher, student, temperature),
            "This is KL(student ‖ teacher). The teacher's shares are the weights: sum p · (log p - log q) "
            "with p from the teacher. (F.kl_div wants the student first, which is easy to turn round.)",
        ),
        "only the teacher softened": Mistake(
            lambda student, teacher, temperature: (
                temperature**2 * _kl(teacher / temperature, student).sum() / len(student)
            ),
            "The teacher was softened and the student was not: they would agree only if the student "
            "learned to be T times as unsure. Divide both by the temperature.",
        ),
        "only the student softened": Mistake(
            lambda student, teacher, temperature: (
                temperature**2 * _kl(teacher, student / temperature).sum() / len(student)
            ),
            "The student was softened and the teacher was not. Divide both by the temperature.",
        ),
        "mean over classes too": Mistake(
            lambda student, teacher, temperature: (
                soft_loss(student, teacher, temperature) / student.shape[-1]
            ),
            _says_ratio(
                "You took the mean over all b · classes numbers. A divergence is a sum over classes; only "
                'the pictures are averaged (reduction="batchmean", not "mean").'
            ),
        ),
        "sum over pictures": Mistake(
            lambda student, teacher, temperature: soft_loss(student, teacher, temperature) * len(student),
            _says_ratio(
                "You summed over the pictures, so a larger batch is a larger loss. Divide by their number."
            ),
        ),
        "cross-entropy": Mistake(
            lambda student, teacher, temperature: (
                -(temperature**2)
                * ((teacher / temperature).softmax(-1) * (student / temperature).log_softmax(-1)).sum()
                / len(student)
            ),
            _says_ratio(
                "This is the cross-entropy with the soft targets. Its gradient is right, but it is not "
                "zero where both agree: subtract the teacher's own entropy, p · log p."
            ),
        ),
        "probabilities for log-probabilities": Mistake(
            lambda student, teacher, temperature: (
                temperature**2
                * F.kl_div(
                    soft_targets(student, temperature),
                    soft_targets(teacher, temperature),
                    reduction="batchmean",
                )
            ),
            _says_ratio(
                "F.kl_div takes the student's *logarithms*: it got probabilities. Use log_softmax for the "
                "first argument, and log_target=True if the second is a logarithm too."
            ),
        ),
        "a logarithm for the teacher's probabilities": Mistake(
            lambda student, teacher, temperature: (
                temperature**2
                * F.kl_div(
                    (student / temperature).log_softmax(dim=-1),
                    (teacher / temperature).log_softmax(dim=-1),
                    reduction="none",
                ).sum()
                / len(student)
            ),
            _says_ratio(
                "F.kl_div took the teacher's logarithms for probabilities: say log_target=True, or give it "
                "the softmax."
            ),
        ),
        "sign": Mistake(
            lambda student, teacher, temperature: -soft_loss(student, teacher, temperature),
            _says_ratio("A divergence is never negative: it is log p - log q, not the other way."),
        ),
        "no T², mean over classes too": Mistake(
            lambda student, teacher, temperature: (
                soft_loss(student, teacher, temperature) / student.numel() * len(student) / temperature**2
            ),
            _says_ratio(
                "Two things are missing: F.kl_div's default divides by b · classes (take "
                'reduction="batchmean"), and the divergence is to be multiplied by temperature**2.'
            ),
        ),
        "neither softened": Mistake(
            lambda student, teacher, temperature: temperature**2 * soft_loss(student, teacher, 1),
            "The factor T² is there, but neither was softened: divide both logits by the temperature.",
        ),
    },
)


# ---- step 3: distillation_loss -----------------------------------------------------------------------------


def _mixed(by_label: Tensor, by_teacher: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    return (1 - alpha) * by_label + alpha * by_teacher, by_label, by_teacher


def _changed(change: Callable[..., tuple]) -> Callable:
    """A wrong answer: the right one for arguments that a change makes of the given ones."""
    return lambda *arguments: distillation_loss(*change(*arguments))


def _label_mean_over_all(
    class_logits: Tensor,
    dist_logits: Tensor,
    labels: Tensor,
    teacher: Tensor,
    kind: str,
    temperature: float,
    alpha: float,
) -> tuple[Tensor, Tensor, Tensor]:
    by_label = F.cross_entropy(class_logits, labels, reduction="sum") / len(labels)
    return _mixed(by_label, teacher_loss(dist_logits, teacher, kind, temperature), alpha)


def _label_mean_of_none(
    class_logits: Tensor,
    dist_logits: Tensor,
    labels: Tensor,
    teacher: Tensor,
    kind: str,
    temperature: float,
    alpha: float,
) -> tuple[Tensor, Tensor, Tensor]:
    by_label = F.cross_entropy(class_logits, labels)
    return _mixed(by_label, teacher_loss(dist_logits, teacher, kind, temperature), alpha)


def _label_sum(
    class_logits: Tensor,
    dist_logits: Tensor,
    labels: Tensor,
    teacher: Tensor,
    kind: str,
    temperature: float,
    alpha: float,
) -> tuple[Tensor, Tensor, Tensor]:
    by_label = F.cross_entropy(class_logits, labels, reduction="sum")
    return _mixed(by_label, teacher_loss(dist_logits, teacher, kind, temperature), alpha)


def _parts_weighted(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    loss, by_label, by_teacher = distillation_loss(*arguments)
    alpha = arguments[-1]
    return loss, (1 - alpha) * by_label, alpha * by_teacher


def _shares_exchanged(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    _, by_label, by_teacher = distillation_loss(*arguments)
    return _mixed(by_label, by_teacher, 1 - arguments[-1])


def _teacher_of_labelled_only(
    class_logits: Tensor,
    dist_logits: Tensor,
    labels: Tensor,
    teacher: Tensor,
    kind: str,
    temperature: float,
    alpha: float,
) -> tuple[Tensor, Tensor, Tensor]:
    kept = labels != -100
    return distillation_loss(
        class_logits[kept], dist_logits[kept], labels[kept], teacher[kept], kind, temperature, alpha
    )


def _losses(labels: list[int], kind: str, temperature: float, alpha: float) -> tuple:
    b = len(labels)
    logits = (2 * _random(b, 5), 2 * _random(b, 5), torch.tensor(labels), 2 * _random(b, 5))
    return (*logits, kind, temperature, alpha)


DISTILLATION_LOSS = Exercise(
    name="distillation_loss",
    solution=distillation_loss,
    cases=(
        _losses([2, -100, 0, 4], "soft", 3.0, 0.1),
        _losses([1, 1, -100], "hard", 3.0, 0.3),
        _losses([-100, -100], "soft", 2.0, 0.6),
    ),
    praise="Each head learns from its own target, and a picture without a label from the teacher alone.",
    mistakes={
        "mean over all pictures": Mistake(
            _label_mean_over_all,
            "The label's part is divided by all pictures. Only those that have a label count: divide by "
            "their number.",
        ),
        "NaN without labels": Mistake(
            _label_mean_of_none,
            "Right, until a batch has no label at all: the mean over nothing is NaN. Divide the sum by the "
            "number of labels, or by one.",
        ),
        "shares exchanged": Mistake(
            _shares_exchanged,
            "Both parts are right; alpha is the *teacher's* share, and the label has 1 - alpha.",
        ),
        "heads exchanged": Mistake(
            _changed(lambda one, two, *rest: (two, one, *rest)),
            "The heads changed places: class_logits meet the labels, dist_logits the teacher.",
        ),
        "class head for both": Mistake(
            _changed(lambda one, two, *rest: (one, one, *rest)),
            "The teacher's part reads the class head: it belongs to dist_logits.",
        ),
        "always soft": Mistake(
            _changed(lambda *arguments: (*arguments[:4], "soft", *arguments[5:])),
            'Kind "hard" gave the soft loss: there it is the cross-entropy with the teacher\'s argmax.',
        ),
        "teacher on labelled pictures only": Mistake(
            _teacher_of_labelled_only,
            "The teacher's part left out the pictures without a label: it is about all of them.",
        ),
        "distillation head for both": Mistake(
            _changed(lambda one, two, *rest: (two, two, *rest)),
            "The label's part reads the distillation head: the labels belong to class_logits.",
        ),
        "sum over the labels": Mistake(
            _label_sum,
            "The label's part is a sum: divide it by the number of labels, or by one where there is none.",
        ),
        "parts weighted": Mistake(
            _parts_weighted,
            "The loss is right, but the two parts are returned with their shares: return them unweighted.",
        ),
        "always hard": Mistake(
            _changed(lambda *arguments: (*arguments[:4], "hard", *arguments[5:])),
            'Kind "soft" gave the hard loss: there it is soft_loss with the temperature.',
        ),
    },
)


# ---- step 4: teacher_answers -------------------------------------------------------------------------------


def _watched(function: Callable, case: tuple[nn.Sequential, Tensor]) -> Any:
    """The answers for a batch, and what has become of the teacher: statistics, modes, gradients."""
    teacher, images = case
    with torch.enable_grad():
        answers = function(teacher, images)
    if answers is None or answers is Ellipsis:
        return answers
    modes = torch.tensor([part.training for part in teacher.modules()])
    return answers, teacher[2].running_mean, modes, getattr(answers, "requires_grad", False)


def _teacher(is_training: bool) -> nn.Sequential:
    """A teacher with dropout and statistics, of which one part is frozen in eval."""
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten()]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        teacher = nn.Sequential(*layers, nn.Linear(16, 3))
        filled(teacher).train(is_training)
    teacher[1].eval()
    return teacher


def _in_the_mode_it_has(teacher: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return teacher(images)


def _left_in_eval(teacher: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return teacher.eval()(images)


def _all_in_training_afterwards(teacher: nn.Module, images: Tensor) -> Tensor:
    was_training = teacher.training
    answers = _left_in_eval(teacher, images)
    teacher.train(was_training)
    return answers


def _with_gradients(teacher: nn.Module, images: Tensor) -> Tensor:
    modes = [part.training for part in teacher.modules()]
    answers = teacher.eval()(images)
    for part, mode in zip(teacher.modules(), modes, strict=True):
        part.training = mode
    return answers


def _as_it_is(teacher: nn.Module, images: Tensor) -> Tensor:
    return teacher(images)


def _left_in_eval_with_gradients(teacher: nn.Module, images: Tensor) -> Tensor:
    return teacher.eval()(images)


def _in_training_afterwards(teacher: nn.Module, images: Tensor) -> Tensor:
    answers = _left_in_eval(teacher, images)
    teacher.train()
    return answers


TEACHER_ANSWERS = Exercise(
    name="teacher_answers",
    solution=teacher_answers,
    cases=((_teacher(True), _random(4, 2, 4, 4)), (_teacher(False), _random(2, 2, 4, 4))),
    praise="The teacher answers, and nothing of it has changed: no statistic, no mode, no gradient.",
    mistakes={
        "in training mode": Mistake(
            _in_the_mode_it_has,
            "The teacher answered in the mode in which it was: in training, dropout makes its answers random "
            "and the running mean of its BatchNorm moves. Gradients are not all that must be switched off.",
        ),
        "left in eval": Mistake(
            _left_in_eval,
            "The answers are right, but the teacher is left in evaluation mode; it was in training. "
            "eval_mode gives every part its mode back.",
        ),
        "a frozen part woken": Mistake(
            _all_in_training_afterwards,
            "The answers are right, but train() reaches every part: one that its owner had frozen in "
            "evaluation mode is in training now. eval_mode remembers the mode of each part.",
        ),
        "with gradients": Mistake(
            _with_gradients,
            "The answers are still part of the teacher's graph: without torch.no_grad() gradients flow into "
            "it.",
        ),
        "as it is": Mistake(
            _as_it_is,
            "The teacher answered in the mode in which it was, and with gradients. It takes both: "
            "torch.no_grad() and eval_mode.",
        ),
        "left in eval, with gradients": Mistake(
            _left_in_eval_with_gradients,
            "The answers are right, but they carry gradients, and the teacher is left in evaluation mode. It "
            "takes both: torch.no_grad() and eval_mode.",
        ),
        "in training afterwards": Mistake(
            _in_training_afterwards,
            "The answers are right, but afterwards every part is in training mode, whatever its mode was "
            "before. eval_mode gives each part its own back.",
        ),
    },
    calls=_watched,
)


# ---- step 5: DistilledViT ----------------------------------------------------------------------------------


def _in_both_modes(module_type: Callable[..., nn.Module], case: tuple[dict, Tensor]) -> Any:
    """Build a model, fill it, and give its logits in evaluation and in training."""
    arguments, images = case
    model = filled(module_type(**arguments))
    return model.eval()(images), model.train()(images)


def _heads(change: Callable[[DistilledViT, Tensor], Any]) -> type[DistilledViT]:
    """A model with another `forward_head`."""

    class Changed(DistilledViT):
        def forward_head(self, features: Tensor) -> Any:
            return change(self, features)

    return Changed


def _pair(model: DistilledViT, features: Tensor) -> tuple[Tensor, Tensor]:
    return model.head(features[:, 0]), model.head_dist(features[:, 1])


def _in_training(model: DistilledViT, pair: tuple, combined: Any) -> Any:
    return pair if model.training else combined


_SIZES = {"image_size": 8, "patch_size": 4, "dim": 8, "depth": 1, "heads": 2, "mlp_dim": 16, "num_classes": 3}

DISTILLED_VIT = Exercise(
    name="DistilledViT",
    solution=DistilledViT,
    cases=((_SIZES, _random(2, 3, 8, 8)), (_SIZES | {"channels": 1}, _random(3, 1, 8, 12))),
    praise="Two tokens, each read by its own head: a pair in training, the mean of the logits in evaluation.",
    mistakes={
        "mean in training too": Mistake(
            _heads(lambda model, features: sum(_pair(model, features)) / 2),
            "In training the loss needs both: return the pair (class logits, distillation logits) where "
            "self.training is true.",
        ),
        "a pair in evaluation too": Mistake(
            _heads(_pair),
            "In evaluation the model gives one tensor: the mean of the two logits.",
        ),
        "sum": Mistake(
            _heads(
                lambda model, features: _in_training(
                    model, _pair(model, features), sum(_pair(model, features))
                )
            ),
            "You added the two logits. The class stays the same, but the probabilities get too sharp: "
            "divide by 2.",
        ),
        "class head only": Mistake(
            _heads(
                lambda model, features: _in_training(model, _pair(model, features), _pair(model, features)[0])
            ),
            "In evaluation only the class head is read: half of what was learned is thrown away. Take the "
            "mean of both.",
        ),
        "both heads on the class token": Mistake(
            _heads(
                lambda model, features: _in_training(
                    model,
                    pair := (model.head(features[:, 0]), model.head_dist(features[:, 0])),
                    sum(pair) / 2,
                )
            ),
            "Both heads read token 0. `head_dist` reads token 1, which learns from the teacher.",
        ),
        "heads exchanged": Mistake(
            _heads(
                lambda model, features: _in_training(
                    model,
                    pair := (model.head(features[:, 1]), model.head_dist(features[:, 0])),
                    sum(pair) / 2,
                )
            ),
            "The heads read each other's token: `head` reads token 0, `head_dist` token 1.",
        ),
        "the last token": Mistake(
            _heads(
                lambda model, features: _in_training(
                    model,
                    pair := (model.head(features[:, 0]), model.head_dist(features[:, -1])),
                    sum(pair) / 2,
                )
            ),
            "`head_dist` reads the last token, a patch. The distillation token is the second: "
            "features[:, 1].",
        ),
        "mean of the probabilities": Mistake(
            _heads(
                lambda model, features: _in_training(
                    model,
                    pair := _pair(model, features),
                    sum(logits.softmax(dim=-1) for logits in pair) / 2,
                )
            ),
            "You averaged after the softmax, as the paper's text has it. Average the logits, as the "
            "published code does, so that the result is logits again.",
        ),
        "distillation head only": Mistake(
            _heads(
                lambda model, features: _in_training(model, _pair(model, features), _pair(model, features)[1])
            ),
            "In evaluation only the distillation head is read. Take the mean of both.",
        ),
        "one head for both tokens": Mistake(
            _heads(
                lambda model, features: _in_training(
                    model,
                    pair := (model.head(features[:, 0]), model.head(features[:, 1])),
                    sum(pair) / 2,
                )
            ),
            "Both tokens are read by `head`: token 1 has a head of its own, `head_dist`.",
        ),
        "pair in the wrong order": Mistake(
            _heads(
                lambda model, features: _in_training(
                    model, _pair(model, features)[::-1], sum(_pair(model, features)) / 2
                )
            ),
            "The pair is in the wrong order: class logits first, distillation logits second.",
        ),
        "modes exchanged": Mistake(
            _heads(
                lambda model, features: (
                    sum(_pair(model, features)) / 2 if model.training else _pair(model, features)
                )
            ),
            "The modes changed places: the pair belongs to training (self.training is true), the mean to "
            "evaluation.",
        ),
    },
    calls=_in_both_modes,
)


# ---- practice ----------------------------------------------------------------------------------------------


def soft_gradient(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    difference = soft_targets(student, temperature) - soft_targets(teacher, temperature)
    return temperature * difference / len(student)


SOFT_GRADIENT = Exercise(
    name="soft_gradient",
    solution=soft_gradient,
    cases=((2 * _random(4, 5), 2 * _random(4, 5), 3.0), (_random(3, 6), _random(3, 6), 0.5)),
    praise="Autograd says the same: the difference of the softened probabilities, and one T is left of T².",
    mistakes={
        "no T²": Mistake(
            lambda student, teacher, temperature: (
                soft_gradient(student, teacher, temperature) / temperature**2
            ),
            "This is the gradient of the plain divergence: multiply by T².",
        ),
        "T² without the inner derivative": Mistake(
            lambda student, teacher, temperature: soft_gradient(student, teacher, temperature) * temperature,
            "One factor is missing: z enters the softmax as z / T, which gives 1/T. T² times 1/T is T.",
        ),
        "sign": Mistake(
            lambda student, teacher, temperature: -soft_gradient(student, teacher, temperature),
            "The sign is wrong: where the student gives a class too much (q > p), the loss grows with its "
            "logit.",
        ),
        "sum over pictures": Mistake(
            lambda student, teacher, temperature: soft_gradient(student, teacher, temperature) * len(student),
            "The loss is the mean over pictures: divide by b.",
        ),
        "not softened": Mistake(
            lambda student, teacher, temperature: (
                temperature * (student.softmax(-1) - teacher.softmax(-1)) / len(student)
            ),
            "p and q are the *softened* probabilities: divide both logits by T before the softmax.",
        ),
        "of the plain divergence, for one picture": Mistake(
            lambda student, teacher, temperature: (
                soft_gradient(student, teacher, temperature) * len(student) / temperature**2
            ),
            "This is (q - p) / T, for one picture and without T²: multiply by T², and divide by b.",
        ),
        "no factor T": Mistake(
            lambda student, teacher, temperature: soft_gradient(student, teacher, temperature) / temperature,
            "A factor is missing from (q - p) / b: the inner derivative gives 1/T, and the loss has T².",
        ),
        "the limit": Mistake(
            lambda student, teacher, temperature: (
                ((student - teacher) - (student - teacher).mean(dim=-1, keepdim=True)) / student.numel()
            ),
            "This is the limit for logits that are small beside T. Take q - p itself.",
        ),
    },
)


def ensemble_loss(student: Tensor, teachers: Tensor, temperature: float) -> Tensor:
    targets = soft_targets(teachers, temperature).mean(dim=0)
    log_q = F.log_softmax(student / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_q, targets, reduction="batchmean")


ENSEMBLE_LOSS = Exercise(
    name="ensemble_loss",
    solution=ensemble_loss,
    cases=((2 * _random(4, 5), 3 * _random(3, 4, 5), 2.0), (_random(2, 3), 3 * _random(2, 2, 3), 4.0)),
    praise="The mean of probabilities keeps what only one teacher doubts; the mean of logits washes it out.",
    mistakes={
        "mean of logits": Mistake(
            lambda student, teachers, temperature: soft_loss(student, teachers.mean(dim=0), temperature),
            _says_ratio("You averaged the teachers' logits. Average their soft targets, after the softmax."),
        ),
        "mean of losses": Mistake(
            lambda student, teachers, temperature: torch.stack(
                [soft_loss(student, teacher, temperature) for teacher in teachers]
            ).mean(),
            _says_ratio(
                "This is the mean of the divergences from each teacher. Its gradient is the same, but it is "
                "not zero where the student matches the mean: average the targets first."
            ),
        ),
        "no T²": Mistake(
            lambda student, teachers, temperature: (
                ensemble_loss(student, teachers, temperature) / temperature**2
            ),
            _says_ratio("The factor T² is missing."),
        ),
        "softened twice": Mistake(
            lambda student, teachers, temperature: soft_loss(
                student, soft_targets(teachers, temperature).mean(dim=0).log(), temperature
            ),
            _says_ratio(
                "The targets were softened, turned into logits, and softened again. Logarithms of soft "
                "targets are logits at T = 1: divide only the student's by T."
            ),
        ),
        "student not softened": Mistake(
            lambda student, teachers, temperature: (
                temperature**2 * soft_loss(student, soft_targets(teachers, temperature).mean(dim=0).log(), 1)
            ),
            _says_ratio("The student was not softened: divide its logits by T too."),
        ),
        "student not softened, no T²": Mistake(
            lambda student, teachers, temperature: soft_loss(
                student, soft_targets(teachers, temperature).mean(dim=0).log(), 1
            ),
            _says_ratio(
                "At T = 1 soft_loss neither softens the student nor multiplies by T²: both are left to you."
            ),
        ),
        "targets for logits": Mistake(
            lambda student, teachers, temperature: soft_loss(
                student, soft_targets(teachers, temperature).mean(dim=0), temperature
            ),
            _says_ratio("soft_loss took the mean targets for logits, but they are probabilities already."),
        ),
    },
)


def partial_soft_loss(student: Tensor, teacher: Tensor, known: Tensor, temperature: float) -> Tensor:
    return soft_loss(student[:, known], teacher, temperature)


def _not_renormalised(student: Tensor, teacher: Tensor, known: Tensor, temperature: float) -> Tensor:
    log_q = F.log_softmax(student / temperature, dim=-1)[:, known]
    log_p = F.log_softmax(teacher / temperature, dim=-1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum() / len(student)


PARTIAL_SOFT_LOSS = Exercise(
    name="partial_soft_loss",
    solution=partial_soft_loss,
    cases=(
        (2 * _random(4, 6), 2 * _random(4, 3), torch.tensor([4, 0, 3]), 2.0),
        (_random(3, 5), 2 * _random(3, 2), torch.tensor([1, 4]), 3.0),
    ),
    praise="Compared on the classes that both know; what it holds of the others stays the student's own.",
    mistakes={
        "not renormalised": Mistake(
            _not_renormalised,
            _says_ratio(
                "You dropped classes after the softmax, so the student's probabilities do not sum to one, "
                "and it is punished for every class that the teacher does not know. Choose the logits first."
            ),
        ),
        "the first classes": Mistake(
            lambda student, teacher, known, temperature: soft_loss(
                student[:, : teacher.shape[1]], teacher, temperature
            ),
            _says_ratio("You took the first k classes: `known` says which they are, and in which order."),
        ),
        "sorted": Mistake(
            lambda student, teacher, known, temperature: soft_loss(
                student[:, known.sort().values], teacher, temperature
            ),
            _says_ratio("You sorted the classes: column j of the teacher belongs to class known[j]."),
        ),
        "no T²": Mistake(
            lambda student, teacher, known, temperature: (
                partial_soft_loss(student, teacher, known, temperature) / temperature**2
            ),
            _says_ratio("The factor T² is missing."),
        ),
        "zeros for the unknown": Mistake(
            lambda student, teacher, known, temperature: soft_loss(
                student, torch.zeros_like(student).index_copy(1, known, teacher), temperature
            ),
            _says_ratio(
                "You gave the teacher zeros for the classes that it does not know, but a logit of zero is an "
                "opinion too. Choose the student's known logits instead."
            ),
        ),
        "turned round": Mistake(
            lambda student, teacher, known, temperature: soft_loss(teacher, student[:, known], temperature),
            _says_ratio("Student and teacher changed places: soft_loss takes the student first."),
        ),
    },
)


EXERCISES: list[Exercise] = [
    SOFT_TARGETS,
    SOFT_LOSS,
    DISTILLATION_LOSS,
    TEACHER_ANSWERS,
    DISTILLED_VIT,
    SOFT_GRADIENT,
    ENSEMBLE_LOSS,
    PARTIAL_SOFT_LOSS,
]
