"""The loop trains, repeats itself, and leaves no trace."""

import math
import random
from collections import namedtuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.training import (
    BATCHES,
    LABELS,
    PIXELS,
    STEPS,
    NoisyImages,
    Stop,
    cross_entropy,
    run,
    same,
    small_vit,
    stop_at,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vit_course.lab.catalogue import MODELS
from vit_course.training import cosine_schedule, eval_mode, evaluate, fit, paired_difference

# ---- schedules


def test_cosine_schedule_in_numbers() -> None:
    assert cosine_schedule(0, 100, 2.0) == 2.0
    assert cosine_schedule(50, 100, 2.0) == pytest.approx(1.0)
    assert cosine_schedule(25, 100, 1.0) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert cosine_schedule(99, 100, 1.0) == pytest.approx((1 - math.cos(math.pi / 100)) / 2)
    # DINO's momentum rises from .996 towards 1.
    values = [cosine_schedule(step, 100, 0.996, 1.0) for step in (0, 50, 99)]
    assert values == pytest.approx([0.996, 0.998, 0.999999], abs=1e-6)
    assert cosine_schedule(0, 1, 3.0) == 3.0


def test_warm_up_climbs_in_a_line_then_falls() -> None:
    values = [cosine_schedule(step, 100, 1.0, 0.01, warmup=10) for step in range(100)]
    assert values[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert values[10] == pytest.approx(1.0) and values[55] == pytest.approx(0.505)
    assert all(later < earlier for earlier, later in zip(values[10:-1], values[11:], strict=True))
    assert values[-1] == pytest.approx(0.01, abs=0.001)


# ---- the loop


def test_a_model_learns() -> None:
    model = small_vit(dim=32, dropout=0.0)
    history = fit(model, [(PIXELS[:12], LABELS[:12])], cross_entropy, 60, lr=1e-2, progress=False)
    assert history["loss"][0] > 0.8 and history["loss"][-1] < 0.5 * history["loss"][0]
    assert evaluate(model, [(PIXELS[:12], LABELS[:12])]) > 0.9


@pytest.mark.parametrize("kind", BATCHES)
def test_seed_decides_everything(kind: str) -> None:
    models = []
    for outside, seed in ((1, 0), (2, 0), (1, 1)):
        model = small_vit()
        torch.manual_seed(outside)  # what the caller drew before has no influence
        run(model, BATCHES[kind](), seed=seed)
        models.append(model)
    assert same(models[0], models[1]) and not same(models[0], models[2])


@pytest.mark.parametrize("kind", BATCHES)
def test_random_states_of_the_caller_are_untouched(kind: str) -> None:
    model = small_vit()
    torch.manual_seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    run(model, BATCHES[kind]())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]
    with pytest.raises(Stop):
        run(model, BATCHES[kind](), after_step=stop_at(3))
    assert torch.equal(torch.get_rng_state(), before[0])


def test_weight_decay_pulls_on_matrices_only() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm, self.frozen = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)
            nn.init.ones_(self.linear.bias)
            self.frozen.requires_grad_(False)

        def forward(self, batch: Tensor) -> Tensor:
            return 0 * self.norm(self.linear(batch)).sum()

    model = Scaled()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    run(
        model,
        lambda generator: torch.ones(2, 4),
        lambda model, batch: model(batch),
        steps=1,
        lr=0.1,
        weight_decay=0.5,
    )
    after = dict(model.named_parameters())
    torch.testing.assert_close(after["linear.weight"], before["linear.weight"] * 0.95)
    for name in before.keys() - {"linear.weight"}:
        assert torch.equal(after[name], before[name]), name


# What has two axes or more and is no matrix or kernel of a layer, by model: the parameters that timm 1.0.31
# leaves alone too, and XCiT's temperatures, which its layer declares and timm's optimisers never ask it for.
NOT_DECAYED = {
    "ViT": {"cls_token", "pos_embed"},
    "SimpleViT": set(),
    "DistilledViT": {"cls_token", "dist_token", "pos_embed"},
    "CaiT": {"cls_token", "pos_embed"},
    "XCiT": {"cls_token", "temperature"},
    "MaxViT": {"relative_position_bias_table"},
}


@pytest.mark.parametrize("name", NOT_DECAYED)
def test_decay_alone_moves_no_token_position_or_temperature(name: str) -> None:
    model = MODELS[name].build()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}

    def nothing(model: nn.Module, batch: Tensor) -> Tensor:
        return sum(0 * parameter.sum() for parameter in model.parameters())

    run(model, lambda generator: torch.ones(1), nothing, steps=3, lr=0.1, weight_decay=0.5)
    still = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert {name.split(".")[-1] for name in still if before[name].ndim > 1} == NOT_DECAYED[name]
    assert all(name in still for name in before if before[name].ndim <= 1)


def test_a_temperature_is_trained_though_it_does_not_decay() -> None:
    torch.manual_seed(0)
    model = MODELS["XCiT"].build(num_classes=3)
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    run(model, [(images, torch.arange(8) % 3)], steps=3, weight_decay=0.0)
    assert not any(torch.equal(block.attn.temperature, torch.ones(2, 1, 1)) for block in model.blocks)


def test_schedules_reach_the_optimiser(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, optimizers, AdamW = [], [], torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda *args: optimizers.append(AdamW(*args)) or optimizers[-1])

    def note(step: int) -> None:
        groups = optimizers[-1].param_groups
        seen.append((groups[0]["lr"], groups[1]["lr"], groups[0]["weight_decay"], groups[1]["weight_decay"]))

    history = run(
        small_vit(),
        lr=lambda step: 0.01 / (step + 1),
        weight_decay=lambda step: 0.1 * step,
        before_step=note,
        steps=3,
    )
    assert seen == [(0.01, 0.01, 0.0, 0.0), (0.005, 0.005, 0.1, 0.0), (0.01 / 3, 0.01 / 3, 0.2, 0.0)]
    assert history["lr"] == [0.01, 0.005, 0.01 / 3]
    history = run(small_vit(), lr=0.01, steps=40)
    assert history["lr"] == pytest.approx(
        [cosine_schedule(step, 40, 0.01, 0.0001, warmup=2) for step in range(40)]
    )


def test_batches_may_be_dictionaries() -> None:
    def loss(model: nn.Module, batch: dict) -> Tensor:
        assert batch["name"] == "x"
        return cross_entropy(model, batch["pair"])

    assert len(run(small_vit(), [{"pair": [PIXELS[:4], LABELS[:4]], "name": "x"}], loss)["loss"]) == STEPS


@pytest.mark.parametrize("mode", [True, False])
def test_mode_is_restored(mode: bool) -> None:
    model = small_vit().train(mode)
    inside = []
    run(model, loss=lambda model, batch: inside.append(model.training) or cross_entropy(model, batch))
    assert all(inside) and model.training is mode
    evaluate(model, [(PIXELS, LABELS)])
    assert model.training is mode
    with pytest.raises(ValueError):
        evaluate(model, [(PIXELS, LABELS[:3])])
    assert model.training is mode


# ---- what is the user's stays the user's


def frozen_norm() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 3)
    )
    model[1].eval()
    return model


def modes(model: nn.Module) -> list[bool]:
    return [part.training for part in model.modules()]


def test_a_part_in_eval_is_frozen_and_stays_so() -> None:
    model = frozen_norm()
    before, mean, inside = modes(model), model[1].running_mean.clone(), []
    evaluate(model, [(PIXELS, LABELS)])
    assert modes(model) == before

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        inside.append(modes(model))
        return cross_entropy(model, batch)

    run(model, loss=loss)
    assert inside[0] == before == modes(model) and torch.equal(model[1].running_mean, mean)
    with pytest.raises(Stop):
        run(model, after_step=stop_at(1))
    assert modes(model) == before


def test_a_model_wholly_in_eval_is_trained_in_training_mode() -> None:
    model = frozen_norm().eval()
    mean, inside = model[1].running_mean.clone(), []
    run(model, after_step=lambda step: inside.append(modes(model)))
    assert all(inside[0]) and not any(modes(model)) and not torch.equal(model[1].running_mean, mean)


def test_eval_mode_gives_back_every_mode() -> None:
    model = frozen_norm()
    before = modes(model)
    with eval_mode(model) as device:
        assert not any(modes(model)) and device == torch.device("cpu")
    assert modes(model) == before
    with pytest.raises(Stop), eval_mode(model):
        raise Stop
    assert modes(model) == before
    with eval_mode(nn.ReLU()) as device:
        assert device == torch.device("cpu")
    with pytest.raises(TypeError, match="'vit'"), eval_mode("vit"):
        pass


# ---- parameters of a loss


class WeightedLoss(nn.Module):
    """Two losses, balanced by a learnt temperature, beside a teacher that is not to be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale, self.projection = nn.Parameter(torch.zeros(())), nn.Linear(3, 3)
        self.teacher = nn.Linear(3, 3).requires_grad_(False)

    def forward(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        logits = model(batch[0])
        return F.cross_entropy(self.teacher(self.projection(logits)) * self.log_scale.exp(), batch[1])


def test_parameters_of_a_loss_are_trained_with_the_model() -> None:
    torch.manual_seed(1)
    model, loss = small_vit(), WeightedLoss()
    before = {name: parameter.clone() for name, parameter in loss.named_parameters()}
    norms = []

    def note(step: int) -> None:
        gradients = [parameter.grad for parameter in (*model.parameters(), *loss.parameters())]
        norms.append(torch.stack([g.norm() for g in gradients if g is not None]).norm().item())

    run(model, loss=loss, clip=0.01, after_step=note)
    moved = {name for name, parameter in loss.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {"log_scale", "projection.weight", "projection.bias"}
    assert norms == pytest.approx([0.01] * STEPS, rel=1e-3), "gradients pile up"


def test_a_loss_that_holds_the_model_trains_it_once() -> None:
    class Objective(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            return cross_entropy(self.model, batch)

    one, other = small_vit(), small_vit()
    run(one)
    run(other, loss=Objective(other))
    assert same(one, other)


# ---- standard callers


def test_batches_may_be_named_tuples() -> None:
    Pair = namedtuple("Pair", "images labels")

    def loss(model: nn.Module, batch: Pair) -> Tensor:
        return F.cross_entropy(model(batch.images), batch.labels)

    assert len(run(small_vit(), [Pair(PIXELS[:4], LABELS[:4])], loss)["loss"]) == STEPS


def test_persistent_workers_start_every_run_anew() -> None:
    loader = DataLoader(
        NoisyImages(PIXELS, LABELS), batch_size=8, shuffle=True, num_workers=1, persistent_workers=True
    )
    one, other = small_vit(), small_vit()
    run(one, loader, steps=6)
    run(other, loader, steps=6)
    assert same(one, other)


# ---- two models on the same pictures


def test_paired_difference_in_numbers() -> None:
    place = torch.arange(2000)
    first, second = place < 1980, (place < 1950) | (place >= 1990)  # alone right on 30 and on 10
    difference, half_width = paired_difference(first, second)
    assert difference == pytest.approx(0.01)
    assert half_width == pytest.approx(1.96 * math.sqrt((0.02 - 0.01**2) / 2000))
    assert paired_difference(second, first) == pytest.approx((-difference, half_width))
    assert paired_difference(first, first) == (0.0, 0.0)


@pytest.mark.parametrize(
    "first, second",
    [
        (torch.ones(3, dtype=torch.bool), torch.ones(2, dtype=torch.bool)),
        (torch.ones(3, dtype=torch.bool), torch.ones(3)),
        (torch.ones(2, 2, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool)),
        (torch.ones(0, dtype=torch.bool), torch.ones(0, dtype=torch.bool)),
    ],
    ids=["lengths", "floats", "axes", "empty"],
)
def test_paired_difference_refuses_what_is_not_paired(first: Tensor, second: Tensor) -> None:
    with pytest.raises(ValueError, match="two rows of booleans of one length"):
        paired_difference(first, second)
