"""Checks for the exercises: `from vit_course.lab import check`, then `check.name(your_function)`.

Each lesson's exercises stand in a module of its own here, as data: the solution, the cases to compare, and
the wrong answers that are recognised. A check judges values, says what share of them is right and names the
mistake where it knows it.
"""

from collections.abc import Callable

from ..defaults import cpu_float32
from .exercise import Exercise, Result

with cpu_float32():  # the cases are drawn while their modules are imported
    from .attention import EXERCISES as ATTENTION
    from .cait import EXERCISES as CAIT
    from .deeper import EXERCISES as DEEPER
    from .dino import EXERCISES as DINO
    from .distillation import EXERCISES as DISTILLATION
    from .es_vit import EXERCISES as ES_VIT
    from .evaluation import EXERCISES as EVALUATION
    from .for_real import EXERCISES as FOR_REAL
    from .max_vit import EXERCISES as MAX_VIT
    from .mpp import EXERCISES as MPP
    from .patching import EXERCISES as PATCHING
    from .start import EXERCISES as START
    from .training import EXERCISES as TRAINING
    from .vit import EXERCISES as VIT
    from .xcit import EXERCISES as XCIT

EXERCISES: dict[str, Exercise] = {
    exercise.name: exercise
    for exercise in START
    + PATCHING
    + ATTENTION
    + VIT
    + TRAINING
    + CAIT
    + XCIT
    + MAX_VIT
    + DISTILLATION
    + EVALUATION
    + DINO
    + ES_VIT
    + MPP
    + FOR_REAL
    + DEEPER
}


class Check:
    """`check.name(function)` judges the answer to the exercise of that name and returns a Result."""

    def __getattr__(self, name: str) -> Callable[[Callable], Result]:
        if name not in EXERCISES:
            raise AttributeError(f"there is no exercise {name!r}; there are {', '.join(EXERCISES)}")
        return EXERCISES[name].check

    def __dir__(self) -> list[str]:
        return list(EXERCISES)


check = Check()
