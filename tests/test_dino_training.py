"""DINO's training: the paper's curves, set in every step; stops; refusals before it begins."""

import math
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.unlabelled import HEAD, SMALL, same, small_batches, small_dino, small_vit, stop_and_resume, train
from torch import Tensor, nn

from vit_course.dino import DINO, DINOLoss, DINOSchedule, SelfDistillation, dino_schedules
from vit_course.training import fit
from vit_course.vit import ViT


def a_run(model: DINO, loss: nn.Module, steps: int, step: int = 0) -> SimpleNamespace:
    """What `fit` hands to a callback."""
    matrices = {"params": [p for p in model.student.parameters() if p.ndim > 1], "is_decayed": True}
    others = {"params": [p for p in model.student.parameters() if p.ndim <= 1], "is_decayed": False}
    optimizer = torch.optim.AdamW([matrices, others])
    return SimpleNamespace(model=model, loss=loss, optimizer=optimizer, steps=steps, step=step, history={})


def test_curves_are_the_paper_s() -> None:
    values = [DINOSchedule().values(step, 100) for step in range(100)]
    rates, decays, momenta, temperatures = (
        [of_step[name] for of_step in values] for name in ("lr", "weight_decay", "momentum", "teacher_temp")
    )
    assert rates[0] == pytest.approx(5e-5) and max(rates) == rates[9] == rates[10] == pytest.approx(5e-4)
    assert rates[99] < 2e-6
    assert all(later <= earlier for earlier, later in pairwise(rates[10:]))
    assert [decays[step] for step in (0, 50, 99)] == [
        pytest.approx(0.04),
        pytest.approx(0.22),
        pytest.approx(0.4, abs=1e-3),
    ]
    assert momenta[0] == pytest.approx(0.996)
    assert momenta[50] == pytest.approx(0.998)
    assert 0.999998 < momenta[99] < 1
    assert temperatures[0] == pytest.approx(0.04) and temperatures[28] < 0.0695
    # the epochs of the official code: linspace(.04, .07, 30)
    assert temperatures[29:] == [pytest.approx(0.07)] * 71
    assert temperatures[10] == pytest.approx(0.04 + 0.03 * 10 / 29)


def test_schedule_sets_its_curves_in_every_step_of_fit() -> None:
    """Rates of both groups when the weights move, the temperature when the loss is computed, the momentum
    after it; the rates of fit itself do not count.
    """
    model, loss = small_dino(), SelfDistillation(DINOLoss(24))
    schedule = DINOSchedule(lr=3e-3, weight_decay=(0.1, 0.3), momentum=0.9, teacher_temp=(0.03, 0.06))
    seen: list[dict[str, float]] = []
    momenta: list[float] = []
    move, compare = model.update_teacher, loss.loss.compare

    def update_teacher(momentum: float) -> None:
        momenta.append(momentum)
        move(momentum)

    def watched_compare(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen.append({"teacher_temp": loss.loss.teacher_temp.item()})
        return compare(student, teacher)

    class Rates:
        def before_step(self, run: SimpleNamespace) -> None:
            decayed, others = run.optimizer.param_groups
            assert decayed["is_decayed"] and not others["is_decayed"]
            assert others["weight_decay"] == 0 and others["lr"] == decayed["lr"]
            seen[-1] |= {name: decayed[name] for name in ("lr", "weight_decay")}

    model.update_teacher, loss.loss.compare = update_teacher, watched_compare
    history = fit(
        model,
        small_batches(),
        loss,
        8,
        lr=0.5,
        weight_decay=0.5,
        callbacks=[schedule, Rates()],
        progress=False,
    )
    for step, of_step in enumerate(seen):
        wanted = schedule.values(step, 8)
        assert of_step.pop("teacher_temp") == pytest.approx(wanted.pop("teacher_temp"), rel=1e-6)
        assert momenta[step] == wanted.pop("momentum")
        assert of_step == wanted
    assert history["lr"] == [schedule.values(step, 8)["lr"] for step in range(8)]


def test_gradients_are_clipped_one_by_one() -> None:
    model = small_dino()
    run = a_run(model, SelfDistillation(DINOLoss(24)), 100, step=50)
    for clip in (3.0, math.inf):
        for number, parameter in enumerate(model.student.parameters()):
            parameter.grad = torch.ones_like(parameter) * (100.0 if number % 2 else 1e-3)
        DINOSchedule(clip=clip).before_step(run)
        for number, parameter in enumerate(model.student.parameters()):
            before = (100.0 if number % 2 else 1e-3) * parameter.numel() ** 0.5
            assert parameter.grad.norm().item() == pytest.approx(min(before, clip), rel=1e-3)


def whole(seed: int = 0) -> tuple[DINO, SelfDistillation]:
    torch.manual_seed(seed)
    model = DINO(ViT(**SMALL | {"dropout": 0.2}), **HEAD, batch_norm=True)
    return model, SelfDistillation(DINOLoss(24), koleo=1.0)


def test_prototypes_rest_at_first_and_move_later() -> None:
    """Neither a gradient nor weight decay moves them; nothing else rests."""
    (model, loss), resting = whole(), []
    before = [parameter.clone() for parameter in model.student.parameters()]

    def watch(step: int) -> None:
        *others, prototypes = [
            torch.equal(parameter, old)
            for parameter, old in zip(model.student.parameters(), before, strict=True)
        ]
        assert not any(others)
        resting.append(prototypes)

    train(model, loss, steps=4, frozen=0.5, after=watch)
    assert resting == [True, True, False, False]


@pytest.mark.parametrize("stop", range(5))
def test_training_stopped_anywhere_and_resumed_is_the_same(stop: int, tmp_path: Path) -> None:
    """Student, teacher, centre, temperature, optimiser, schedules and random state: bit by bit."""
    straight, straight_loss = whole()
    history = train(straight, straight_loss)
    resumed, resumed_loss, again = stop_and_resume(whole, stop, tmp_path / "run.pt")
    assert same(straight, resumed) and same(straight_loss, resumed_loss)
    assert again == history and set(history) == {"loss", "entropy", "kl", "koleo", "lr"}
    assert resumed_loss.loss.center.abs().sum() > 0


def test_a_loss_that_is_not_finite_stops_the_training_and_saves_nothing(tmp_path: Path) -> None:
    model, loss = whole()

    def poison(step: int) -> None:
        if step == 2:
            with torch.no_grad():
                model.student.head.mlp[0].weight[0, 0] = math.nan

    path = tmp_path / "run.pt"
    with pytest.raises(ValueError, match="student logits of view 0, student logits of view 1"):
        train(model, loss, checkpoint=path, checkpoint_every=2, after=poison)
    state = torch.load(path, weights_only=True)
    assert state["step"] == 2
    assert all(tensor.isfinite().all() for tensor in [*state["model"].values(), *state["loss"].values()])


REFUSED: list[tuple[str, object, type[Exception]]] = [
    *(("lr", value, ValueError) for value in (0, -1e-3, math.inf, math.nan)),
    *(("clip", value, ValueError) for value in (0, -1.0, math.nan)),
    *(("momentum", value, ValueError) for value in (-0.1, 1.5, math.nan)),
    *((name, value, ValueError) for name in ("warmup", "temp_warmup", "frozen") for value in (-0.1, 2.0)),
    *(("weight_decay", value, ValueError) for value in ((-0.1, 0.4), (0.04, -0.4), (0.04, math.inf))),
    *(("teacher_temp", value, ValueError) for value in ((0, 0.07), (0.04, 0), (-0.04, 0.07), (math.inf, 1))),
    *(("weight_decay", value, TypeError) for value in (0.04, (0.04,), "ab", None)),
    *(("teacher_temp", value, TypeError) for value in (0.04, (0.04,), "ab", None)),
    *((name, value, TypeError) for name in ("lr", "clip", "frozen") for value in (None, "1", True)),
]


@pytest.mark.parametrize("name, value, kind", REFUSED)
def test_a_schedule_that_would_never_learn_is_refused_when_it_is_made(
    name: str, value: object, kind: type[Exception]
) -> None:
    pair = value if isinstance(value, tuple) and len(value) == 2 else (value,)
    bad = next(number for number in pair if kind is TypeError or not 0 < number < 1)
    message = f"{name} must be .*, got {re.escape(repr(bad))}"
    with pytest.raises(kind, match=message):
        DINOSchedule(**{name: value})
    with pytest.raises(kind, match=message), pytest.warns(DeprecationWarning):
        dino_schedules(small_dino(), DINOLoss(24), 10, **{name: value})


@pytest.mark.parametrize(
    "model, loss, settings, kind, message",
    [
        (small_dino(), nn.MSELoss(), {}, ValueError, "there is none in MSELoss"),
        (small_dino(), lambda model, crops: 0.0, {}, ValueError, "there is none in <function"),
        (small_vit(), DINOLoss(24), {}, TypeError, "moves the teacher of a DINO, got ViT"),
        (small_dino(), DINOLoss(24), {"warmup": 1.0}, ValueError, "warmup must be in 0 … 9, got 10"),
    ],
)
def test_a_run_that_does_not_fit_is_refused_before_its_first_step(
    model: nn.Module, loss: Callable, settings: dict, kind: type[Exception], message: str
) -> None:
    def batches(generator: torch.Generator) -> None:
        raise AssertionError("the run has begun")

    with pytest.raises(kind, match=message):
        fit(model, batches, loss, 10, callbacks=[DINOSchedule(**settings)], progress=False)
    with pytest.raises(kind, match=message), pytest.warns(DeprecationWarning):
        dino_schedules(model, loss, 10, **settings)


def test_one_schedule_serves_several_runs() -> None:
    schedule, (model, loss), (again, its_loss) = DINOSchedule(lr=3e-3, momentum=0.9), whole(), whole()
    for one, its, steps in (
        (model, loss, 3),
        (small_dino(), SelfDistillation(DINOLoss(24)), 5),
        (again, its_loss, 3),
    ):
        fit(one, small_batches(), its, steps, callbacks=[schedule], progress=False)
    assert same(model, again) and same(loss, its_loss)


def test_numbers_of_numpy_do_not_spoil_the_checkpoint(tmp_path: Path) -> None:
    """`fit` writes the optimiser's rates; a NumPy number among them could not be read back."""
    schedule = DINOSchedule(
        lr=np.float64(3e-3), weight_decay=(np.float64(0.1), np.float64(0.2)), momentum=np.float32(0.9)
    )
    path = tmp_path / "run.pt"
    model, loss = whole()
    arguments = {"callbacks": [schedule], "checkpoint": path, "progress": False}
    history = fit(model, small_batches(), loss, 3, **arguments)
    torch.load(path, weights_only=True)
    assert fit(*whole()[:1], small_batches(), whole()[1], 3, **arguments, resume=True) == history


# ---- the old form ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 7])
def test_dino_schedules_gives_the_same_run_and_warns(steps: int) -> None:
    settings = {"lr": 3e-3, "momentum": 0.9, "frozen": 0.3, "weight_decay": (0.1, 0.3)}
    (model, loss), (old, its_loss) = whole(), whole()
    history = fit(model, small_batches(), loss, steps, callbacks=[DINOSchedule(**settings)], progress=False)
    with pytest.warns(DeprecationWarning, match=r"callbacks=\[DINOSchedule"):
        schedules = dino_schedules(old, its_loss, steps, **settings)
    assert fit(old, small_batches(), its_loss, steps, progress=False, **schedules) == history
    assert same(model, old) and same(loss, its_loss)


def test_dino_schedules_sets_the_first_temperature_at_once() -> None:
    loss = SelfDistillation(DINOLoss(24))
    with pytest.warns(DeprecationWarning):
        dino_schedules(small_dino(), loss, 100, teacher_temp=(0.03, 0.05))
    assert loss.loss.teacher_temp.item() == pytest.approx(0.03)
    with pytest.raises(ValueError, match="steps must be at least 1"), pytest.warns(DeprecationWarning):
        dino_schedules(small_dino(), DINOLoss(24), 0)
