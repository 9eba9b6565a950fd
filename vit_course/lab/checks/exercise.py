"""What an exercise is made of, and how an answer is judged: by its values, beside solution and mistakes."""

import copy
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..defaults import cpu_float32

NOT_ANSWERED = "not answered yet"


@dataclass(frozen=True)
class Result:
    """The verdict of a check. In a notebook it shows itself as its message.

    Attributes:
        ok: whether the answer is right.
        message: one or two sentences.
        mistake: name of the recognised mistake, None where there is none.
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

    Attributes:
        answer: a function like the learner's, with the mistake in it.
        says: the sentence, or a function that makes it from what the learner's function returned for the
            first case.
        cases: by how many of the first cases it is recognised, where the later ones are about another mistake
            that often comes with it; by all of them by default.
    """

    answer: Callable
    says: str | Callable[[Any], str]
    cases: int | None = None


def call(function: Callable, case: tuple) -> Any:
    """Call a function with the arguments of a case."""
    return function(*case)


def forward(module_type: Callable[..., nn.Module], case: tuple[dict, tuple]) -> Any:
    """Build a module, fill it, and call it in eval mode.

    Args:
        module_type: the class; the learner's differs from the solution's in what is to be written only.
        case: the arguments of the constructor by name, and those of ``forward``.
    """
    arguments, inputs = case
    return filled(module_type(**arguments)).eval()(*inputs)


def filled(module: nn.Module) -> nn.Module:
    """Give a module the weights that every module of such parts gets here: each part counts in them."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            torch.default_generator.manual_seed(zlib.crc32(name.encode()))
            fan_in = tensor[0].numel() if tensor.ndim > 1 else 4
            tensor.normal_(std=2 * fan_in**-0.5)
            if name.endswith("running_var"):
                tensor.abs_().add_(0.5)
    return module


@dataclass(frozen=True)
class Exercise:
    """An exercise that checks itself.

    Attributes:
        name: the name of the learner's function or class.
        solution: the right answer, which may be the package's own. It gives a tensor, a number, or a tuple of
            them.
        cases: what each call gets, as tuples; the first is the one that the sentences are about.
        praise: what the reader has just shown, said when every value is right.
        mistakes: wrong answers that are recognised, by name; each differs from the solution in at least one
            case.
        tolerance: how far, relative to the largest value, a right answer may be off.
        calls: how an answer meets a case: `call` for a function, `forward` for the class of a module.
        errors: sentences for errors that a mistake ends in, each by words of the error's own message.
        watches: whether `calls` gives a tuple of what the learner's function returned and of what it did
            besides; sentences are then about the first, and tell no share of values.
        unknown: what to do where no mistake is known.
    """

    name: str
    solution: Callable
    cases: tuple[tuple, ...]
    praise: str
    mistakes: dict[str, Mistake]
    tolerance: float = 1e-5
    calls: Callable[[Callable, tuple], Any] = call
    errors: dict[str, str] = field(default_factory=dict)
    watches: bool = False
    unknown: str = "work that number out by hand, or with a loop."

    def check(self, function: Callable) -> Result:
        """Judge the learner's function.

        Args:
            function: the answer, a function or a class. It is called once for each case, with arguments of
                its own to keep or to change.

        Returns:
            The verdict. A check never raises, whatever it is given.
        """
        if not callable(function):
            return Result(
                False,
                f"check.{self.name} wants {self.name} itself, without brackets; it got {_kind(function)}.",
            )
        expected = [self._call(self.solution, case) for case in self.cases]
        answers = []
        try:
            for case, wanted in zip(self.cases, expected, strict=True):
                try:
                    answer = self._call(function, case)
                except (Exception, SystemExit) as error:  # it is told, not raised
                    if _is_stub(error):
                        return Result(
                            False, f"Not answered yet: {self.name} raises NotImplementedError.", NOT_ANSWERED
                        )
                    known = [says for words, says in self.errors.items() if words in str(error)]
                    words = f"{self.name} stopped with {type(error).__name__}: {error}"
                    return Result(False, "\n".join([words, *known]))
                answers.append(_as_wanted(answer, wanted))
            return self._judge(answers, expected)
        except Exception as error:  # an answer of a kind that nobody thought of
            return Result(
                False,
                f"{self.name} returned a {type(answer).__name__} that cannot be compared "
                f"({type(error).__name__}: {error}); it should be {_kind(wanted)}.",
            )

    def _judge(self, answers: list, expected: list) -> Result:
        """The verdict on the answers to all cases."""
        if all(map(_is_unanswered, answers)):
            return Result(False, f"Not answered yet: {self.name} returned {answers[0]}.", NOT_ANSWERED)
        pairs = list(zip(answers, expected, strict=True))
        share = min(_share_right(answer, wanted, self.tolerance) for answer, wanted in pairs)
        if share == 1:
            return Result(True, f"Right. {self.praise}")
        partly = f"{share:.0%} of the values are right. " if share > 0 and not self.watches else ""
        for name, mistake in self.mistakes.items():
            if self._is(mistake, pairs):
                says = mistake.says(answers[0]) if callable(mistake.says) else mistake.says
                return Result(False, f"{partly}{says}", name)
        returned = [self._returned(answer, wanted) for answer, wanted in pairs]
        for answer, wanted in returned:
            complaint = _misfit(answer, wanted)
            if complaint:
                return Result(False, f"{self.name} returned {complaint}.")
        differences = [_first_difference(answer, wanted, self.tolerance) for answer, wanted in returned]
        case, difference = next((case, words) for case, words in enumerate(differences, start=1) if words)
        return Result(
            False,
            f"{partly}In case {case}, {difference} No mistake that this check knows: {self.unknown}",
        )

    def _returned(self, answer: Any, wanted: Any) -> tuple[Any, Any]:
        """What a sentence about an unknown mistake compares: what was returned, unless it is right."""
        watched = self.watches and isinstance(answer, tuple)
        if watched and _share_right(answer[0], wanted[0], self.tolerance) < 1:
            return answer[0], wanted[0]
        return answer, wanted

    def _call(self, function: Callable, case: tuple) -> Any:
        """Call with copies, which no answer can change, and from a seed, so that random answers repeat."""
        with torch.random.fork_rng(devices=[]), torch.no_grad(), cpu_float32():
            torch.default_generator.manual_seed(0)  # that of the CPU alone: torch.manual_seed takes 2 ms
            return self.calls(function, _copied(case))

    def _is(self, mistake: Mistake, pairs: list[tuple[Any, Any]]) -> bool:
        """Whether the answers, each beside the expected one, are those of the mistake in all of its cases."""
        for case, (answer, wanted) in list(zip(self.cases, pairs, strict=True))[: mistake.cases]:
            try:
                wrong = _as_wanted(self._call(mistake.answer, case), wanted)
            except Exception:  # a mistake that cannot even be computed for this case is another one
                return False
            if _share_right(answer, wrong, self.tolerance) != 1:
                return False
        return True


def _is_unanswered(answer: Any) -> bool:
    """Whether an answer is what a stub returns: nothing, or three dots, in each of its parts."""
    if isinstance(answer, tuple):
        return len(answer) > 0 and all(map(_is_unanswered, answer))
    return answer is None or answer is Ellipsis


def _copied(value: Any) -> Any:
    """A copy down to the last tensor; each gets memory of its own, also where several were views of one."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        parts = [_copied(part) for part in value]
        # The constructor of a named tuple takes its parts one by one.
        return value._make(parts) if hasattr(value, "_make") else type(value)(parts)
    return copy.deepcopy(value)


def _is_stub(error: BaseException) -> bool:
    """Whether an answer raises on purpose what a stub does: PyTorch raises it too, of operations it lacks."""
    return isinstance(error, NotImplementedError) and "not implemented for" not in str(error)


def _as_wanted(answer: Any, wanted: Any) -> Any:
    """The answer in the form of the wanted value, in memory of its own, where only the form differs.

    An array stands for a tensor, an array or a tensor of one value for a number and the other way round, and
    a row of values for a tuple; floats, whole numbers and booleans stay apart.
    """
    values = _values(answer)
    if isinstance(wanted, tuple | list):
        if values is not None and values.ndim == 1:
            answer = list(values)
        if isinstance(answer, tuple | list) and len(answer) == len(wanted):
            return tuple(_as_wanted(part, goal) for part, goal in zip(answer, wanted, strict=True))
        return answer
    if isinstance(wanted, Tensor):
        if wanted.ndim == 0 and type(answer) in (bool, int, float):
            return torch.tensor(answer)
        return answer if values is None else values
    if values is None or values.numel() != 1:
        return answer
    number = values.item()
    return float(number) if isinstance(wanted, float) and type(number) is int else number


def _values(answer: Any) -> Tensor | None:
    """The values of a tensor or an array as a plain tensor; None for one that has no real, dense values."""
    if isinstance(answer, np.ndarray | np.generic):
        kinds = {"b": np.bool_, "i": np.int64, "u": np.int64, "f": np.float64}
        kind = kinds.get(answer.dtype.kind)
        return None if kind is None else torch.from_numpy(np.array(answer, dtype=kind))
    if not isinstance(answer, Tensor) or answer.is_nested or answer.layout != torch.strided:
        return None
    if answer.is_meta or answer.is_quantized or answer.is_complex():
        return None
    return answer.detach().as_subclass(Tensor).to("cpu", copy=True)


def _kind(value: Any) -> str:
    """What a value is, in words."""
    name = type(value).__name__
    if isinstance(value, Tensor):
        if value.is_nested:
            return "a nested tensor"
        shape = tuple(value.shape)
        if value.is_meta:
            return f"a tensor of shape {shape} on the meta device, which holds no values"
        words = {
            "sparse": value.layout != torch.strided,
            "quantised": value.is_quantized,
            "complex": value.is_complex(),
        }
        return " ".join(["a", *(word for word, fits in words.items() if fits), f"tensor of shape {shape}"])
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and type {value.dtype}"
    if isinstance(value, tuple | list):
        return f"a {name} of {len(value)}"
    if isinstance(value, nn.Module):
        return f"the module {name}"
    return f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"


def _misfit(answer: Any, wanted: Any) -> str | None:
    """What the answer is and should be, in words, where its kind or its shape is already wrong."""
    if isinstance(wanted, tuple | list):
        if not isinstance(answer, tuple | list) or len(answer) != len(wanted):
            return f"{_kind(answer)}; it should be {_kind(wanted)}"
        for number, (part, goal) in enumerate(zip(answer, wanted, strict=True), start=1):
            complaint = _misfit(part, goal)
            if complaint:
                return f"{_kind(answer)}, and value {number} of it is {complaint}"
        return None
    values = _values(answer)
    if isinstance(wanted, Tensor):
        if values is None or values.shape != wanted.shape:
            return f"{_kind(answer)}; it should be {_kind(wanted)}"
        if not _same_numbers(values, wanted):
            return f"{_numbers(values)}; it should be {_numbers(wanted)}"
        return None if values.isfinite().all() else "values that are not finite numbers"
    if type(answer) is not type(wanted):
        return f"{_kind(answer)}; it should be {_kind(wanted)}"
    return None if np.isfinite(answer) else "a value that is not a finite number"


def _numbers(values: Tensor) -> str:
    """What kind of numbers a tensor holds, in words."""
    if values.dtype == torch.bool:
        return "a tensor of booleans"
    return "a tensor of floats" if values.is_floating_point() else "a tensor of whole numbers"


def _same_numbers(values: Tensor, wanted: Tensor) -> bool:
    """Whether values may stand for the wanted ones: whole numbers and booleans only for their like."""
    return wanted.is_floating_point() or _numbers(values) == _numbers(wanted)


def _first_difference(answer: Any, wanted: Any, tolerance: float) -> str | None:
    """One given and one expected number, at the first place where they differ; None where none does."""
    if isinstance(wanted, tuple | list):
        for number, (part, goal) in enumerate(zip(answer, wanted, strict=True), start=1):
            if difference := _first_difference(part, goal, tolerance):
                return f"Value {number}: {difference}"
        return None
    if _share_right(answer, wanted, tolerance) == 1:
        return None
    place = ""
    if isinstance(wanted, Tensor):
        index = np.unravel_index(
            int((~_right(answer, wanted, tolerance)).flatten().int().argmax()), wanted.shape
        )
        place = f"at [{', '.join(map(str, index))}] " if index else ""
        answer, wanted = answer[index].item(), wanted[index].item()
    given, expected = _told_apart(answer, wanted)
    return f"{place}you have {given}, expected is {expected}."


def _told_apart(given: Any, expected: Any) -> tuple[str, str]:
    """Two values in words, floats with four digits, or with as many as it takes to see that they differ."""
    for digits in range(4, 18):
        words = [
            f"{value:.{digits}g}" if isinstance(value, float) else str(value) for value in (given, expected)
        ]
        if words[0] != words[1]:
            break
    return words[0], words[1]


def _right(values: Tensor, wanted: Tensor, tolerance: float) -> Tensor:
    """Which values are right, within the tolerance of the largest wanted one; a mistake's may be NaN."""
    scale = wanted.abs().nan_to_num(0, 0, 0).max().item() if wanted.is_floating_point() else 0
    distance = tolerance * (scale or 1)
    return torch.isclose(values.double(), wanted.double(), rtol=0, atol=distance, equal_nan=True)


def _share_right(answer: Any, wanted: Any, tolerance: float) -> float:
    """The share of the values that are right, in 0 … 1; 0 where the kinds or the shapes differ."""
    if isinstance(wanted, tuple | list):
        if not isinstance(answer, tuple | list) or len(answer) != len(wanted):
            return 0.0
        shares = [_share_right(part, goal, tolerance) for part, goal in zip(answer, wanted, strict=True)]
        return sum(shares) / len(shares)
    if isinstance(wanted, Tensor):
        values = _values(answer)
        if values is None or values.shape != wanted.shape or not _same_numbers(values, wanted):
            return 0.0
        if wanted.numel() == 0:
            return 1.0
        return _right(values, wanted, tolerance).double().mean().item()
    if isinstance(wanted, float) and type(answer) in (float, int):
        if np.isnan(answer) and np.isnan(wanted):  # of a mistake: nothing right is NaN
            return 1.0
        return float(abs(answer - wanted) <= tolerance * (abs(wanted) or 1))
    return float(type(answer) is type(wanted) and answer == wanted)
