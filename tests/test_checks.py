"""Every exercise accepts its solution, names each of its mistakes, and survives nonsense."""

import pytest
import torch

from vit_course.lab import check
from vit_course.lab.checks import EXERCISES
from vit_course.lab.checks.exercise import Exercise, Mistake

MISTAKES = [(exercise, name) for exercise in EXERCISES.values() for name in exercise.mistakes]


def raises(*arguments):
    raise RuntimeError("the learner's own error")


NONSENSE = {
    "a number": lambda *arguments: 3,
    "a string": lambda *arguments: "patches",
    "an empty tensor": lambda *arguments: torch.empty(0),
    "a tensor of another shape": lambda *arguments: torch.zeros(2, 3, 5, 7, 11),
    "not a number": lambda *arguments: torch.full((4, 4), float("nan")),
    "whole numbers": lambda *arguments: torch.zeros(3, dtype=torch.int64),
    "complex numbers": lambda *arguments: torch.zeros(3, dtype=torch.complex64),
    "a list": lambda *arguments: [],
    "no argument": lambda: None,
    "an exception": raises,
    "the first argument": lambda *arguments: arguments[0] if arguments else None,
}


@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=lambda exercise: exercise.name)
class TestExercise:
    def test_accepts_its_solution(self, exercise):
        result = exercise.check(exercise.solution)
        assert result.ok and result.message.startswith("Right."), result

    def test_says_when_it_is_not_answered(self, exercise):
        result = exercise.check(lambda *arguments: ...)
        assert not result.ok and result.message.startswith("Not answered yet"), result
        assert exercise.check(lambda *arguments: None).message.startswith("Not answered yet")

    @pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE.keys())
    def test_survives_nonsense(self, exercise, nonsense):
        result = exercise.check(nonsense)
        assert not result.ok and len(result.message) > 10

    def test_survives_what_is_no_function(self, exercise):
        assert "without brackets" in exercise.check(torch.zeros(3)).message

    def test_knows_mistakes(self, exercise):
        assert len(exercise.mistakes) >= 2 and len(exercise.praise) > 20

    def test_is_offered_under_its_name(self, exercise):
        assert getattr(check, exercise.name).__self__ is exercise


@pytest.mark.parametrize(
    "exercise, name", MISTAKES, ids=[f"{exercise.name}: {name}" for exercise, name in MISTAKES]
)
def test_names_the_mistake(exercise, name):
    result = exercise.check(exercise.mistakes[name].answer)
    assert not result.ok and result.mistake == name, result


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


def test_share_of_right_values_and_sentence():
    assert (
        str(DOUBLE.check(lambda numbers: numbers**2))
        == "✗ 67% of the values are right. Your last but one is 4: that is a square."
    )


def test_shape_is_named():
    assert (
        "shape (1, 3); it should be a tensor of shape (3,)"
        in DOUBLE.check(lambda numbers: 2 * numbers[None]).message
    )


def test_question_cannot_be_changed():
    assert not DOUBLE.check(lambda numbers: numbers.zero_()).ok
    assert DOUBLE.check(DOUBLE.solution).ok


def test_error_of_the_learner_is_told():
    assert "RuntimeError: the learner's own error" in DOUBLE.check(raises).message
