"""Every exercise accepts its solution, names each of its mistakes, and survives whatever a learner does."""

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vit_course.lab import check
from vit_course.lab.checks import EXERCISES
from vit_course.lab.checks.exercise import Exercise, Mistake, forward

MISTAKES = [(exercise, name) for exercise in EXERCISES.values() for name in exercise.mistakes]


class Subclass(Tensor):
    """A tensor of a class of its own, as tv_tensors have them."""


class Contrary(Tensor):
    """A tensor that refuses every operation."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        raise NotImplementedError("not on this tensor")


def raises(*arguments):
    raise RuntimeError("the learner's own error")


def stops(*arguments):
    sys.exit("enough")


def yields(*arguments):
    yield torch.zeros(3)


def needs_gradient(*arguments):
    with torch.enable_grad():
        return torch.ones(4, 4, requires_grad=True) * 2


def quantised(*arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch announces the end of quantised tensors
        return torch.quantize_per_tensor(torch.rand(4, 4), 0.1, 0, torch.qint8)


def nested(*arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch calls nested tensors a prototype
        return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])


def compressed(*arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch calls compressed rows beta
        return torch.eye(4).to_sparse_csr()


NONSENSE = {
    "a number": lambda *arguments: 3,
    "a huge number": lambda *arguments: 10**400,
    "a string": lambda *arguments: "patches",
    "a dictionary": lambda *arguments: {"answer": 3},
    "an object": lambda *arguments: object(),
    "an empty tensor": lambda *arguments: torch.empty(0),
    "a tensor of another shape": lambda *arguments: torch.zeros(2, 3, 5, 7, 11),
    "a tensor without axes": lambda *arguments: torch.tensor(-7.5),
    "not a number": lambda *arguments: torch.full((4, 4), float("nan")),
    "not a number alone": lambda *arguments: float("nan"),
    "infinite": lambda *arguments: torch.full((4, 4), float("inf")),
    "whole numbers": lambda *arguments: torch.zeros(3, dtype=torch.int64),
    "complex numbers": lambda *arguments: torch.zeros(3, dtype=torch.complex64),
    "a complex number": lambda *arguments: torch.tensor(1j),
    "sparse": lambda *arguments: torch.eye(4).to_sparse(),
    "compressed rows": compressed,
    "without values": lambda *arguments: torch.zeros(4, 4, device="meta"),
    "quantised": quantised,
    "nested": nested,
    "a gradient": needs_gradient,
    "a parameter": lambda *arguments: nn.Parameter(torch.zeros(4, 4)),
    "a subclass": lambda *arguments: torch.zeros(4, 4).as_subclass(Subclass),
    "a contrary subclass": lambda *arguments: torch.zeros(4, 4).as_subclass(Contrary),
    "an array": lambda *arguments: np.zeros((4, 4)),
    "an array without axes": lambda *arguments: np.array(-7.5),
    "a long double": lambda *arguments: np.longdouble(-7.5),
    "objects in an array": lambda *arguments: np.array([None, "a", 3], dtype=object),
    "words in an array": lambda *arguments: np.array(["a", "b"]),
    "a module": lambda *arguments: nn.Linear(2, 2),
    "a list": lambda *arguments: [],
    "odd things in a tuple": lambda *arguments: (torch.eye(4).to_sparse(), nested(), None),
    "a generator": yields,
    "no argument": lambda: None,
    "an exception": raises,
    "the end of the program": stops,
    "the first argument": lambda *arguments: arguments[0] if arguments else None,
}


def destroy(value: Any) -> None:
    """Change everything in an argument that can be changed, in place."""
    if isinstance(value, Tensor):
        value.zero_()
    elif isinstance(value, nn.Module):
        for tensor in value.state_dict().values():
            tensor.zero_()
    elif isinstance(value, dict):
        for part in value.values():
            destroy(part)
        value.clear()
    elif isinstance(value, tuple | list):
        for part in value:
            destroy(part)
        if isinstance(value, list):
            value.clear()


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def another_device() -> Iterator[None]:
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=lambda exercise: exercise.name)
class TestExercise:
    def test_accepts_its_solution(self, exercise):
        result = exercise.check(exercise.solution)
        assert result.ok and result.message.startswith("Right."), result

    def test_says_when_it_is_not_answered(self, exercise):
        result = exercise.check(around(exercise, lambda solution, *arguments: ...))
        assert not result.ok and result.message.startswith("Not answered yet"), result
        unanswered = around(exercise, lambda solution, *arguments: None)
        assert exercise.check(unanswered).message.startswith("Not answered yet")

    def test_survives_what_is_no_function(self, exercise):
        assert "without brackets" in exercise.check(torch.zeros(3)).message

    def test_survives_an_answer_that_destroys_its_question(self, exercise):
        def destroying(solution, *arguments):
            result = solution(*arguments)
            destroy(arguments)
            return result

        exercise.check(around(exercise, destroying))
        assert exercise.check(exercise.solution).ok

    def test_accepts_its_solution_under_other_defaults(self, exercise, float64, another_device):
        assert exercise.check(exercise.solution).ok
        assert torch.get_default_dtype() == torch.float64 and torch.empty(1).is_meta

    def test_accepts_the_right_values_in_other_forms(self, exercise):
        def as_array(tensor):
            return tensor.numpy()

        for form in (torch.clone, as_array):
            changed = partial(in_form, form)
            assert exercise.check(around(exercise, changed)).ok

    def test_knows_mistakes(self, exercise):
        assert len(exercise.mistakes) >= 2 and len(exercise.praise) > 20

    def test_is_offered_under_its_name(self, exercise):
        assert getattr(check, exercise.name).__self__ is exercise


@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE.keys())
def test_every_check_survives_nonsense(nonsense):
    for exercise in EXERCISES.values():
        result = exercise.check(nonsense)
        assert not result.ok and len(result.message) > 10, exercise.name


def around(exercise: Exercise, wrapper: Callable) -> Callable:
    """The solution within `wrapper(solution, *arguments)`, as a function or as the class of a module."""
    if not isinstance(exercise.solution, type):
        return lambda *arguments: wrapper(exercise.solution, *arguments)
    methods = getattr(exercise.calls, "methods", ("forward",))  # what the learner writes

    def wrapped(method):
        return lambda self, *inputs: wrapper(partial(getattr(exercise.solution, method), self), *inputs)

    return type("Wrapped", (exercise.solution,), {method: wrapped(method) for method in methods})


def in_form(form: Callable[[Tensor], Any], solution: Callable, *arguments: Any) -> Any:
    """What the solution returns, in another form."""
    return formed(solution(*arguments), form)


def formed(value: Any, form: Callable[[Tensor], Any]) -> Any:
    """A value in double precision, a list for a tuple, with its tensors and numbers in another form."""
    if value is None:  # of a method that returns nothing
        return None
    if isinstance(value, tuple):
        return [formed(part, form) for part in value]
    tensor = torch.as_tensor(value)
    return form(tensor.double() if tensor.is_floating_point() else tensor)


@pytest.mark.parametrize(
    "exercise, name", MISTAKES, ids=[f"{exercise.name}: {name}" for exercise, name in MISTAKES]
)
def test_names_the_mistake(exercise, name):
    result = exercise.check(exercise.mistakes[name].answer)
    assert not result.ok and result.mistake == name, result


def test_checks_are_the_same_where_the_defaults_were_changed_before():
    program = """
import torch
torch.set_default_dtype(torch.float64)
torch.set_default_device("meta")
from vit_course.lab.checks import EXERCISES
print([name for name, exercise in EXERCISES.items() if not exercise.check(exercise.solution).ok])
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8")
    assert result.stdout.strip() == "[]", result.stderr


DOUBLE = Exercise(
    name="double",
    solution=lambda numbers: 2 * numbers,
    cases=((torch.tensor([1.0, 2.0, 0.0]),),),
    praise="Twice as much, everywhere.",
    mistakes={
        "square": Mistake(
            lambda numbers: numbers**2,
            says=lambda answer: f"Your last but one is {answer[1]:.0f}: that is a square.",
        )
    },
)


class Blend(nn.Module):
    """A linear layer and batch normalisation, added up in a share that is learned."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(dim, dim), nn.BatchNorm1d(dim)
        self.share = nn.Parameter(torch.zeros(dim))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear(tokens) + self.share * self.norm(tokens)


class NoShare(Blend):
    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear(tokens) + self.norm(tokens)


BLEND = Exercise(
    name="Blend",
    solution=Blend,
    cases=(({"dim": 3}, (torch.eye(3),)), ({"dim": 2}, (torch.ones(4, 2),))),
    praise="Both branches count.",
    mistakes={"no share": Mistake(NoShare, says="You left the learned share out.")},
    calls=forward,
)
# Two arguments that are views of one tensor, a module, and a dictionary of lists.
OVERLAPPING = torch.arange(4.0)
LENT = Exercise(
    name="lent",
    solution=lambda first, second, module, tables: (
        first.sum() + second.sum() + module(tables["one"][0])[0],
        len(tables["one"]),
    ),
    cases=((OVERLAPPING[:3], OVERLAPPING[1:], nn.Linear(2, 1), {"one": [torch.ones(2), torch.zeros(2)]}),),
    praise="Everything is added up.",
    mistakes={},
)


def test_share_of_right_values_and_sentence():
    assert (
        str(DOUBLE.check(lambda numbers: numbers**2))
        == "✗ 67% of the values are right. Your last but one is 4: that is a square."
    )


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (lambda numbers: 2 * numbers[None], "a tensor of shape (1, 3); it should be a tensor of shape (3,)"),
        (lambda numbers: (2 * numbers).to_sparse(), "a sparse tensor of shape (3,); it should be"),
        (lambda numbers: (2 * numbers).cfloat(), "a complex tensor of shape (3,); it should be"),
        (lambda numbers: numbers.to("meta"), "a tensor of shape (3,) on the meta device, which holds no"),
        (quantised, "a quantised tensor of shape (4, 4); it should be"),
        (nested, "a nested tensor; it should be"),
        (lambda numbers: 2 * numbers / 0, "values that are not finite numbers"),
        (lambda numbers: np.array([None]), "an array of shape (1,) and type object; it should be"),
        (lambda numbers: 3, "an int; it should be a tensor of shape (3,)"),
        (yields, "a generator; it should be"),
        (lambda numbers: numbers.as_subclass(Contrary), "a Contrary that cannot be compared"),
    ],
)
def test_what_the_answer_is_is_said(answer, sentence):
    message = DOUBLE.check(answer).message
    assert message.startswith("double returned ") and sentence in message


def test_which_value_of_a_tuple_does_not_fit_is_said():
    answer = lambda *arguments: (torch.eye(2).to_sparse(), 2)  # noqa: E731
    assert LENT.check(answer).message == (
        "lent returned a tuple of 2, and value 1 of it is a sparse tensor of shape (2, 2); "
        "it should be a tensor of shape ()."
    )


def test_whole_numbers_stay_apart_from_others():
    def answer(number: Any) -> Callable:
        return lambda *arguments: (LENT.solution(*arguments)[0], number)

    assert LENT.check(answer(np.int32(2))).ok and LENT.check(answer(torch.tensor([2]))).ok
    for number in (2.0, True, torch.tensor(2.0), np.bool_(True)):
        assert not LENT.check(answer(number)).ok


def test_an_answer_that_is_changed_later_counts_as_it_was():
    exercise = Exercise("double", DOUBLE.solution, ((torch.ones(2),), (torch.zeros(2),)), "Twice.", {})
    memory = torch.empty(2)
    assert exercise.check(lambda numbers: torch.mul(numbers, 2, out=memory)).ok


def test_question_cannot_be_changed():
    assert not DOUBLE.check(lambda numbers: numbers.zero_()).ok
    assert DOUBLE.check(DOUBLE.solution).ok
    for _ in range(2):
        assert not LENT.check(lambda *arguments: destroy(arguments)).ok
        assert LENT.check(LENT.solution).ok


def test_arguments_that_were_views_of_one_tensor_can_be_changed_in_place():
    def answer(first: Tensor, second: Tensor, module: nn.Module, tables: dict) -> tuple:
        first.zero_()
        return second.sum() + 3 + module(tables["one"][0])[0], 2

    assert LENT.check(answer).ok


def test_error_of_the_learner_is_told():
    assert "RuntimeError: the learner's own error" in DOUBLE.check(raises).message
    assert "SystemExit: enough" in DOUBLE.check(stops).message


def test_operation_that_pytorch_lacks_is_no_missing_answer():
    message = DOUBLE.check(lambda *arguments: torch.tensor([1, 2]).softmax(0)).message
    assert "stopped with NotImplementedError" in message and "Not answered" not in message


class TestModules:
    """A reader's class gets weights in which every part counts, whatever it starts with."""

    def test_judges_forward_with_weights_that_make_every_part_count(self):
        class Rewritten(Blend):
            def __init__(self, dim: int) -> None:
                super().__init__(dim)
                nn.init.ones_(self.share)  # another start is no mistake

            def forward(self, tokens: Tensor) -> Tensor:
                return torch.addcmul(self.linear(tokens), self.share, self.norm(tokens))

        assert BLEND.check(Rewritten).ok
        assert BLEND.check(NoShare).mistake == "no share"

    def test_says_when_forward_is_not_written(self):
        class Stub(Blend):
            def forward(self, tokens): ...

        assert BLEND.check(Stub).message.startswith("Not answered yet")

    def test_survives_a_module_in_place_of_its_class(self):
        assert "TypeError" in BLEND.check(Blend(3)).message


class TestForms:
    """What counts as the same value, and the numbers that are shown where no mistake is known."""

    @staticmethod
    def exercise(wanted: Any) -> Exercise:
        return Exercise("f", lambda: wanted, ((),), "That is what was wanted.", {})

    @pytest.mark.parametrize(
        "wanted, given",
        [
            (True, np.bool_(True)),
            (True, torch.tensor(True)),
            (3, np.array(3)),
            (0.5, np.float32(0.5)),
            (2.0, 2),
            (torch.tensor(2.0), 2.0),
            ((3, 4), torch.tensor([3, 4])),
            ((3, 4), np.array([3, 4])),
            (torch.tensor([1.0, 2.0]), torch.tensor([1, 2])),
            (torch.tensor([1, 2]), np.array([1, 2], dtype=np.uint8)),
        ],
        ids=str,
    )
    def test_takes_equal_values_of_another_type(self, wanted, given):
        result = self.exercise(wanted).check(lambda: given)
        assert result.ok, result

    @pytest.mark.parametrize(
        "wanted, given, kind",
        [
            (3, 3.0, "float"),
            (3, torch.tensor(3.0), "float"),
            (True, 1, "int"),
            (
                torch.tensor([1, 2]),
                torch.tensor([1.0, 2.0]),
                "floats; it should be a tensor of whole numbers",
            ),
            (torch.tensor([True]), torch.tensor([1.0]), "floats; it should be a tensor of booleans"),
            (torch.tensor([True]), torch.tensor([1]), "whole numbers; it should be a tensor of booleans"),
        ],
        ids=str,
    )
    def test_refuses_other_numbers_where_the_type_is_the_point(self, wanted, given, kind):
        result = self.exercise(wanted).check(lambda: given)
        assert not result.ok and kind in result.message, result

    def test_an_error_that_is_known_gets_its_sentence(self):
        exercise = replace(self.exercise(1.0), errors={"out of range": "Take the smaller number."})

        def stumbles():
            raise RuntimeError("selected index k out of range")

        message = exercise.check(stumbles).message
        assert "RuntimeError: selected index k out of range" in message
        assert message.endswith("Take the smaller number.")

    @pytest.mark.parametrize(
        "wanted, given, words",
        [
            (
                torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
                torch.tensor([[1.0, 2.0], [3.5, 4.0]]),
                "at [1, 0] you have 3.5, expected is 3.",
            ),
            (torch.tensor(2.0), torch.tensor(5.0), "you have 5, expected is 2."),
            (7, 8, "you have 8, expected is 7."),
            ((1, 0.25), (1, 0.5), "Value 2: you have 0.5, expected is 0.25."),
            (0.33331, 0.33332, "you have 0.33332, expected is 0.33331."),
        ],
        ids=str,
    )
    def test_shows_one_given_and_one_expected_number(self, wanted, given, words):
        assert words in self.exercise(wanted).check(lambda: given).message

    def test_a_mistake_may_be_recognised_by_the_first_cases(self):
        def halves(number: float) -> float:
            return number / 2 if number else float("nan")

        exercise = Exercise(
            name="double",
            solution=lambda number: 2 * number,
            cases=((3.0,), (0.0,)),
            praise="Twice.",
            mistakes={"half": Mistake(lambda number: number / 2, "A half.", cases=1)},
        )
        assert exercise.check(halves).mistake == "half"
        of_all = {"half": replace(exercise.mistakes["half"], cases=None)}
        assert replace(exercise, mistakes=of_all).check(halves).mistake is None

    def test_a_number_of_a_mistake_may_be_nan(self):
        nothing = Mistake(lambda: float("nan"), "No number.")
        exercise = replace(self.exercise(1.0), mistakes={"nan": nothing})
        assert exercise.check(lambda: float("nan")).mistake == "nan"
        assert exercise.check(lambda: 2.0).mistake is None

    def test_what_was_watched_is_no_part_of_what_was_returned(self):
        exercise = replace(
            self.exercise((torch.tensor([1.0, 2.0]), True)),
            watches=True,
            calls=lambda function, case: function(),
        )
        assert exercise.check(lambda: (torch.zeros(3), True)).message == (
            f"{exercise.name} returned a tensor of shape (3,); it should be a tensor of shape (2,)."
        )
        values = exercise.check(lambda: (torch.tensor([1.0, 5.0]), True)).message
        assert values.startswith("In case 1, at [1] you have 5, expected is 2.")
        besides = exercise.check(lambda: (torch.tensor([1.0, 2.0]), False)).message
        assert "Value 2: you have False, expected is True." in besides and "of the values" not in besides

    def test_says_what_to_do_where_no_mistake_is_known(self):
        exercise = replace(self.exercise(1.0), unknown="draw it.")
        assert exercise.check(lambda: 2.0).message.endswith("No mistake that this check knows: draw it.")


def by_steps(optimizer_of: Callable, steps: int = 100) -> Callable:
    """A logistic regression by steps that end before the bottom."""

    def fitted(features: Tensor, labels: Tensor, classes: int, penalty: float) -> tuple[Tensor, Tensor]:
        weight = torch.zeros(classes, features.shape[1], requires_grad=True)
        bias = torch.zeros(classes, requires_grad=True)
        optimizer = optimizer_of([weight, bias])
        for _ in range(steps):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(features @ weight.T + bias, labels)
            (loss + penalty / 2 * weight.square().sum()).backward()
            optimizer.step()
        return weight, bias

    return fitted


def without_a_loss(features: Tensor, labels: Tensor, classes: int, penalty: float) -> None:
    weight = torch.zeros(classes, features.shape[1], requires_grad=True)
    torch.optim.LBFGS([weight]).step(lambda: (features @ weight.T).sum().backward())


def held(keeps: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable:
    """Masks in float32 by the sorted weights, what was held before each, and the share to hold."""

    def masks(weights: Tensor, keep: float) -> Tensor:
        ordered, order = weights.sort(dim=-1, descending=True)
        kept = keeps(ordered, ordered.cumsum(dim=-1) - ordered, keep * weights.sum(dim=-1, keepdim=True))
        return torch.zeros_like(kept).scatter(-1, order, kept)

    return masks


def areas(found: Tensor, truth: Tensor) -> Tensor:
    return found.sum(dim=(-2, -1)) + truth.sum(dim=(-2, -1))


def both(found: Tensor, truth: Tensor) -> Tensor:
    return (found & truth).sum(dim=(-2, -1))


@pytest.mark.parametrize(
    "name, answer, words",
    [
        ("effective_rank", torch.linalg.matrix_rank, "is the rank: it counts"),
        (
            "effective_rank",
            lambda features: torch.special.entr(torch.linalg.svdvals(features)).sum().exp(),
            "were not divided by their sum",
        ),
        ("attention_masks", held(lambda ordered, before, share: before < share), "Allow a millionth"),
        ("attention_masks", held(lambda ordered, before, share: before <= share), "not `<=`"),
        (
            "attention_masks",
            held(lambda ordered, before, share: before + ordered < share),
            "The last patch is missing",
        ),
        ("jaccard", lambda found, truth: 2 * both(found, truth) / areas(found, truth).clamp(min=1), "Dice"),
        ("jaccard", lambda found, truth: both(found, truth) / areas(found, truth), "intersection twice"),
        (
            "jaccard",
            lambda found, truth: both(found, truth) / found.sum(dim=(-2, -1)).clamp(min=1),
            "that is precision",
        ),
        ("logistic_regression", by_steps(partial(torch.optim.SGD, lr=0.1)), "train on until"),
        ("logistic_regression", by_steps(partial(torch.optim.Adam, lr=0.01)), "train on until"),
        ("logistic_regression", without_a_loss, "end the objective with return loss"),
        ("extract_features", lambda model, images, pool: [images], "returned a list of 1; it should be a"),
        (
            "extract_features",
            lambda model, images, pool: torch.stack([images[0], images[0, 0]]),
            "torch.cat joins",
        ),
    ],
)
def test_knows_the_mistakes_of_lesson_09_as_learners_write_them(name, answer, words):
    result = EXERCISES[name].check(answer)
    assert not result.ok and words in result.message, result


def test_masks_need_the_millionth_in_every_natural_form():
    """In float32 and float64, of weights and of shares: 0.59 + 0.21 falls short of 0.8."""

    def of_shares(weights: Tensor, keep: float) -> Tensor:
        return held(lambda ordered, before, share: before < share)(
            weights / weights.sum(dim=-1, keepdim=True), keep
        )

    def in_double(weights: Tensor, keep: float) -> Tensor:
        return held(lambda ordered, before, share: before < share)(weights.double(), keep)

    assert 0.59 + 0.21 < 0.8
    for answer in (of_shares, in_double):
        assert EXERCISES["attention_masks"].check(answer).mistake == "rounding"


def divided(*axes: int) -> Callable:
    """The exponentials, divided by their sums over each axis in turn."""

    def targets(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
        q = ((logits - logits.max()) / temperature).exp()
        for _ in range(iterations):
            for axis in axes:
                q = q / q.sum(dim=axis, keepdim=True)
        return q

    return targets


def koleo_of(neighbours: Callable[[Tensor], Tensor], rows: Callable[[Tensor], Tensor]) -> type[nn.Module]:
    """KoLeo with the neighbours that a function finds, and the distance between rows that another makes."""

    class KoLeo(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            distances = rows(features) - rows(features)[neighbours(features)]
            return -distances.norm(dim=1).log().mean()

    return KoLeo


def by_product(features: Tensor) -> Tensor:
    return (features @ features.T).fill_diagonal_(-torch.inf).argmax(dim=1)


def averaged(teacher: nn.Module, student: nn.Module, momentum: float) -> tuple[Tensor, ...]:
    states = zip(teacher.state_dict().values(), student.state_dict().values(), strict=True)
    return tuple(torch.lerp(new, own, momentum) for own, new in states)


@pytest.mark.parametrize(
    "name, answer, words",
    [
        ("teacher_target", lambda x, center, t: ((x - center) / t).softmax(dim=0), "ran over the pictures"),
        (
            "teacher_target",
            lambda x, center, t: ((x - center) / t).softmax(dim=1),
            "Right for logits with two",
        ),
        (
            "two_view_loss",
            lambda student, teacher, center: torch.nn.functional.cross_entropy(
                student / 0.1, ((teacher - center) / 0.04).softmax(dim=-1).flip(0)
            ),
            "axis 1 for the classes",
        ),
        ("sinkhorn_knopp", divided(1, 0), "Rows first, then columns"),
        ("sinkhorn_knopp", divided(0), "Only the prototypes"),
        ("KoLeo", koleo_of(by_product, lambda features: features), "keep their lengths"),
        (
            "KoLeo",
            koleo_of(
                lambda features: by_product(nn.functional.normalize(features, dim=1)),
                lambda features: features,
            ),
            "between the directions",
        ),
        ("follow", averaged, "is a counter, a whole number, which has no average"),
    ],
)
def test_knows_the_mistakes_of_lesson_10_as_learners_write_them(name, answer, words):
    result = EXERCISES[name].check(answer)
    assert not result.ok and words in result.message, result


def test_the_best_koleo_may_be_computed_in_float32():
    def on_a_circle(points: int) -> Tensor:
        return -(2 * torch.sin(torch.tensor(torch.pi / points))).log()

    assert EXERCISES["best_koleo"].check(on_a_circle).ok
