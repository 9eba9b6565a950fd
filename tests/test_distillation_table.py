"""The stored table of lesson 08: its recipes run, and it holds what the lesson claims to show."""

from dataclasses import replace

import distillation
import pytest
from distillation import SEEDS, TABLE, Student

from vit_course.lab import results


@pytest.fixture
def short_lessons(monkeypatch):
    """Teachers that are hardly trained, and not kept for other tests."""
    monkeypatch.setattr(distillation, "fit", lambda *arguments, **options: None)
    yield
    distillation.teacher.cache_clear()


@pytest.mark.parametrize("student", TABLE.several, ids=lambda student: student.name)
def test_every_recipe_runs(student: Student, short_lessons):
    numbers = replace(student, steps=1).run(seed=0)
    assert 0 <= numbers["accuracy"] <= 1
    assert ("teacher_accuracy" in numbers) == (student.teacher is not None)


def test_one_step_changes_the_student(monkeypatch):
    trained = []
    fit = distillation.fit
    monkeypatch.setattr(
        distillation, "fit", lambda *arguments, **options: trained.append(fit(*arguments, **options))
    )
    replace(TABLE.several[0], steps=1).run(seed=0)
    assert len(trained) == 1 and len(trained[0]["loss"]) == 1


def test_the_stored_table_is_complete():
    rows = results.load("distillation")["rows"]
    assert {(row["name"], row["seed"]) for row in rows} == {
        (s.name, seed) for s in TABLE.several for seed in SEEDS
    }
