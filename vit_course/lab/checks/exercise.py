"""What an exercise is made of, and how an answer is judged: by its values, beside the solution and beside the mistakes people make."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

NOT_ANSWERED = "not answered yet"


@dataclass(frozen=True)
class Result:
    """What a check has to say. In a notebook it shows itself as its message.

    ok: whether the answer is right. message: one or two sentences. mistake: name of the recognised mistake, None where there is none.
    """

    ok: bool
    message: str
    mistake: str | None = None

    def __repr__(self) -> str:
        mark = "✓" if self.ok else "…" if self.mistake == NOT_ANSWERED else "✗"
        return f"{mark} {self.message}"


@dataclass(frozen=True)
class Mistake:
    """A wrong answer that people give, and the sentence that helps them on.

    answer: a function like the learner's, with the mistake in it. says: the sentence, or a function of what the learner's function
    returned for the first case that gives the sentence.
    """

    answer: Callable
    says: str | Callable[[Any], str]


@dataclass(frozen=True)
class Exercise:
    """An exercise that checks itself.

    name: the name of the learner's function. solution: the right answer. cases: the arguments of each call to compare, as tuples; the first
    is the one that the sentences speak of. praise: said when every value is right: what the reader has just shown.
    mistakes: wrong answers that are recognised, by name; each differs from the solution in at least one case.
    tolerance: how far, relative to the largest value, a right answer may be off.
    """

    name: str
    solution: Callable
    cases: tuple[tuple, ...]
    praise: str
    mistakes: dict[str, Mistake]
    tolerance: float = 1e-5

    def check(self, function: Callable) -> Result:
        """Judge the learner's function. Never raises, whatever it is given."""
        if not callable(function):
            return Result(
                False,
                f"check.{self.name} wants your function itself, without brackets; it got {_kind(function)}.",
            )
        answers = []
        for case in self.cases:
            try:
                answers.append(_call(function, case))
            except NotImplementedError:
                return Result(
                    False, f"Not answered yet: {self.name} raises NotImplementedError.", NOT_ANSWERED
                )
            except Exception as error:  # whatever goes wrong in the learner's function is told, not raised
                return Result(False, f"{self.name} stopped with {type(error).__name__}: {error}")
        if all(answer is None or answer is Ellipsis for answer in answers):
            return Result(False, f"Not answered yet: {self.name} returned {answers[0]}.", NOT_ANSWERED)

        expected = [_call(self.solution, case) for case in self.cases]
        shares = [
            _share_right(answer, wanted, self.tolerance)
            for answer, wanted in zip(answers, expected, strict=True)
        ]
        if all(share == 1 for share in shares):
            return Result(True, f"Right. {self.praise}")
        for name, mistake in self.mistakes.items():
            if self._is(mistake, answers):
                says = mistake.says(answers[0]) if callable(mistake.says) else mistake.says
                return Result(False, f"{_percent(min(shares))}{says}", name)
        for answer, wanted in zip(answers, expected, strict=True):
            complaint = _misfit(answer, wanted)
            if complaint:
                return Result(False, f"{self.name} returned {complaint}.")
        return Result(
            False,
            f"{_percent(min(shares))}No mistake that this check knows; compare with a loop on the smallest case you can write down.",
        )

    def _is(self, mistake: Mistake, answers: list) -> bool:
        """Whether the answers are those of the mistake, in every case."""
        for case, answer in zip(self.cases, answers, strict=True):
            try:
                wrong = _call(mistake.answer, case)
            except Exception:  # a mistake that cannot even be computed for this case is another one
                return False
            if _share_right(answer, wanted=wrong, tolerance=self.tolerance) != 1:
                return False
        return True


def _call(function: Callable, case: tuple) -> Any:
    """Call with copies, so that no answer can change the question, and from a seed, so that random answers repeat."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        return function(
            *(argument.clone() if isinstance(argument, Tensor) else argument for argument in case)
        )


def _percent(share: float) -> str:
    return f"{share:.0%} of the values are right. " if share > 0 else ""


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return (
        f"a {type(value).__name__}"
        if not isinstance(value, nn.Module)
        else f"the module {type(value).__name__}"
    )


def _misfit(answer: Any, wanted: Any) -> str | None:
    """What the answer is and should be, in words, where its kind or its shape is already wrong."""
    if isinstance(wanted, Tensor) and not (isinstance(answer, Tensor) and answer.shape == wanted.shape):
        return f"{_kind(answer)}; it should be {_kind(wanted)}"
    if isinstance(wanted, tuple) and not (isinstance(answer, tuple | list) and len(answer) == len(wanted)):
        return f"{_kind(answer)}; it should be {_kind(wanted)}"
    if isinstance(answer, Tensor) and not answer.isfinite().all():
        return "values that are not finite numbers"
    return None


def _share_right(answer: Any, wanted: Any, tolerance: float) -> float:
    """The share of the values that are right, in 0 … 1; 0 where the kinds or the shapes differ."""
    if isinstance(wanted, tuple | list):
        if not isinstance(answer, tuple | list) or len(answer) != len(wanted):
            return 0.0
        shares = [_share_right(part, goal, tolerance) for part, goal in zip(answer, wanted, strict=True)]
        return sum(shares) / len(shares)
    if isinstance(wanted, Tensor):
        if (
            not isinstance(answer, Tensor)
            or answer.shape != wanted.shape
            or answer.is_complex()
            or wanted.numel() == 0
        ):
            return 0.0
        scale = wanted.abs().max().item() if wanted.is_floating_point() else 0
        return (
            torch.isclose(answer.double(), wanted.double(), rtol=0, atol=tolerance * (scale or 1))
            .double()
            .mean()
            .item()
        )
    if isinstance(wanted, float):
        if not isinstance(answer, int | float | Tensor) or isinstance(answer, Tensor) and answer.numel() != 1:
            return 0.0
        return float(abs(float(answer) - wanted) <= tolerance * (abs(wanted) or 1))
    return float(type(answer) is type(wanted) and answer == wanted)
