"""The loop trains, can be stopped and resumed without a trace, and never writes half a checkpoint."""

import math
import random
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from vit_course import training
from vit_course.training import augment, cosine_schedule, evaluate, fit
from vit_course.vit import ViT

STEPS = 13
PIXELS = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 3


def small_vit(seed: int = 0, dim: int = 8, dropout: float = 0.3) -> ViT:
    torch.manual_seed(seed)
    sizes = {
        "image_size": 8,
        "patch_size": 4,
        "num_classes": 3,
        "dim": dim,
        "depth": 1,
        "heads": 2,
        "mlp_dim": dim,
    }
    return ViT(**sizes, dropout=dropout, emb_dropout=dropout)


def drawn(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    index = torch.randint(0, 40, (8,), generator=generator)
    return PIXELS[index] + 0.1 * torch.randn(8, 3, 8, 8, generator=generator), LABELS[index]


class NoisyImages(TensorDataset):
    """Images that are augmented as they are read, from the global random state, as torchvision's transforms do."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pixels, label = super().__getitem__(index)
        return pixels + 0.1 * torch.randn(pixels.shape), label


BATCHES: dict[str, Callable] = {
    "function": lambda: drawn,
    "list": lambda: [(PIXELS[:8], LABELS[:8]), (PIXELS[8:16], LABELS[8:16]), (PIXELS[16:24], LABELS[16:24])],
    "loader": lambda: DataLoader(NoisyImages(PIXELS, LABELS), batch_size=8, shuffle=True),
}


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


class CentredLoss(nn.Module):
    """A loss with a state of its own, as DINO's has a centre."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(3))

    def forward(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        logits = model(batch[0])
        self.center.lerp_(logits.detach().mean(dim=0), 0.1)
        return F.cross_entropy(logits - self.center, batch[1]), {"center": self.center.norm()}


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


def run(
    model: nn.Module, batches: Callable | list | DataLoader = drawn, loss: Callable = cross_entropy, **changes
) -> dict:
    return fit(model, batches, loss, **{"steps": STEPS, "progress": False} | changes)


class Stop(Exception):
    """A kill at a chosen step."""


def stop_at(step: int) -> Callable[[int], None]:
    def after_step(now: int) -> None:
        if now == step:
            raise Stop

    return after_step


# ---- schedules -------------------------------------------------------------------------------------------------------------------------


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


# ---- the loop --------------------------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("stop", [0, 4, 5, 9, STEPS - 2])
@pytest.mark.parametrize("kind", BATCHES)
def test_resumed_training_is_the_same(kind: str, stop: int, tmp_path: Path) -> None:
    """Stopped after any step, within the first pass or a later one: weights, loss state, history come out bit by bit."""
    straight, straight_loss = small_vit(), CentredLoss()
    history = run(straight, BATCHES[kind](), straight_loss)
    path = tmp_path / "deep" / "run.pt"
    with pytest.raises(Stop):
        run(
            small_vit(),
            BATCHES[kind](),
            CentredLoss(),
            checkpoint=path,
            checkpoint_every=1,
            after_step=stop_at(stop + 1),
        )
    resumed, resumed_loss, steps = small_vit(seed=9), CentredLoss(), []
    torch.manual_seed(99)
    again = run(
        resumed, BATCHES[kind](), resumed_loss, checkpoint=path, resume=True, before_step=steps.append
    )
    assert steps == list(range(stop + 1, STEPS))
    assert same(straight, resumed) and same(straight_loss, resumed_loss)
    assert (
        again == history
        and set(history) == {"loss", "lr", "center"}
        and {len(values) for values in history.values()} == {STEPS}
    )


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    model = small_vit()
    history = run(model, checkpoint=tmp_path / "run.pt")
    again = small_vit(seed=3)
    assert (
        run(
            again,
            checkpoint=tmp_path / "run.pt",
            resume=True,
            before_step=lambda step: pytest.fail("it trained"),
        )
        == history
    )
    assert same(model, again)


def test_resume_without_a_file_starts_from_the_beginning(tmp_path: Path) -> None:
    one, other = small_vit(), small_vit()
    run(one)
    run(other, checkpoint=tmp_path / "run.pt", resume=True)
    assert same(one, other)


def test_checkpoints_come_on_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    monkeypatch.setattr(training, "_write_checkpoint", lambda path, state: written.append(state["step"]))
    run(small_vit(), checkpoint=tmp_path / "run.pt", checkpoint_every=5)
    assert written == [5, 10, 13]
    written.clear()
    run(small_vit(), checkpoint=tmp_path / "run.pt", steps=30)
    assert written == list(range(3, 31, 3))


@pytest.mark.parametrize("step", [2, STEPS - 1])
def test_ctrl_c_waits_for_the_step_and_leaves_a_checkpoint(step: int, tmp_path: Path) -> None:
    straight, path = small_vit(), tmp_path / "run.pt"
    run(straight)
    handler, model, finished = signal.getsignal(signal.SIGINT), small_vit().eval(), []

    def interrupt(now: int) -> None:
        if now == step:
            signal.raise_signal(signal.SIGINT)
        finished.append(now)

    with pytest.raises(KeyboardInterrupt, match=f"after step {step}"):
        run(model, checkpoint=path, checkpoint_every=100, after_step=interrupt)
    assert finished[-1] == step, "the step was cut short"
    assert signal.getsignal(signal.SIGINT) is handler and not model.training
    assert torch.load(path, weights_only=True)["step"] == step + 1
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]
    resumed = small_vit(seed=3)
    run(resumed, checkpoint=path, resume=True)
    assert same(straight, resumed)


def test_ctrl_c_without_a_checkpoint_and_twice() -> None:
    with pytest.raises(KeyboardInterrupt, match="after step 1"):
        run(small_vit(), after_step=lambda step: step == 1 and signal.raise_signal(signal.SIGINT))
    finished = []

    def impatient(step: int) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        finished.append(step)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(small_vit(), after_step=impatient)
    assert not finished and signal.getsignal(signal.SIGINT) is handler


def test_kill_while_writing_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, path = small_vit(), tmp_path / "run.pt"
    run(straight)
    save, saved = torch.save, []

    def dying_save(state: dict, file: Path) -> None:
        save(state, file)
        saved.append(state["step"])
        if len(saved) == 2:
            Path(file).write_bytes(Path(file).read_bytes()[:500])
            raise Stop

    monkeypatch.setattr(torch, "save", dying_save)
    with pytest.raises(Stop):
        run(small_vit(), checkpoint=path, checkpoint_every=4)
    monkeypatch.undo()
    assert saved == [4, 8] and torch.load(path, weights_only=True)["step"] == 4
    resumed = small_vit(seed=3)
    run(resumed, checkpoint=path, checkpoint_every=4, resume=True)
    assert same(straight, resumed)
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]


def test_loss_that_is_not_finite_names_the_step() -> None:
    for bad in ("nan", "inf"):
        model = small_vit().eval()
        losses = iter([1.0, 1.0, float(bad)])
        before = None

        def loss(model: nn.Module, batch: tuple[Tensor, Tensor], losses=losses) -> Tensor:
            return cross_entropy(model, batch) * next(losses)

        with pytest.raises(ValueError, match=f"{bad} at step 2"):
            run(model, loss=loss)
        before = [parameter.isfinite().all() for parameter in model.parameters()]
        assert all(before) and not model.training, "the bad step reached the weights"


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


def test_callbacks_come_before_and_after_the_weights_move() -> None:
    model, events = small_vit(), []
    weight = model.head.weight

    def before_step(step: int) -> None:
        events.append(("before", step, weight.grad is not None, weight.detach().clone()))

    def after_step(step: int) -> None:
        events.append(("after", step, weight.grad is not None, weight.detach().clone()))

    run(model, before_step=before_step, after_step=after_step, steps=2, lr=lambda step: 0.01)
    assert [event[:3] for event in events] == [
        ("before", 0, True),
        ("after", 0, True),
        ("before", 1, True),
        ("after", 1, True),
    ]
    assert not torch.equal(events[0][3], events[1][3]) and torch.equal(events[1][3], events[2][3])


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


def test_evaluate_counts() -> None:
    class Fixed(nn.Module):
        """The first pixel is the class that is predicted; it has no parameters, and checks how it is called."""

        def forward(self, pixels: Tensor) -> Tensor:
            assert not self.training and not torch.is_grad_enabled()
            return F.one_hot(pixels[:, 0, 0, 0].long(), 3).float()

    pixels = torch.zeros(7, 3, 2, 2)
    pixels[:, 0, 0, 0] = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    labels = torch.tensor([0, 1, 2, 1, 1, 0, 0])
    batches = [
        (pixels[:5], labels[:5]),
        [pixels[5:], labels[5:]],
    ]  # the last one is smaller: each image counts once
    assert evaluate(Fixed(), batches) == pytest.approx(5 / 7)


# ---- checkpoints of something else -----------------------------------------------------------------------------------------------------


def test_wrong_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    run(small_vit(), loss=CentredLoss(), checkpoint=path)
    cases = [
        ({"steps": STEPS + 1}, "steps=13, seed=0; this one has steps=14"),
        ({"seed": 4}, "this one has steps=13, seed=4"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(192, 3))}, "another model"),
    ]
    for changes, words in cases:
        with pytest.raises(ValueError, match=words):
            run(**{"model": small_vit(), "loss": CentredLoss(), "checkpoint": path, "resume": True} | changes)
    run(small_vit(), checkpoint=path)
    with pytest.raises(ValueError, match="another loss"):
        run(small_vit(), loss=CentredLoss(), checkpoint=path, resume=True)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None], ids=["empty", "text", "weights alone"])
def test_files_that_are_no_checkpoints_are_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    path.write_bytes(content or b"")
    if content is None:
        torch.save(small_vit().state_dict(), path)
    with pytest.raises(ValueError, match=r"run\.pt is not a checkpoint"):
        run(small_vit(), checkpoint=path, resume=True)


# ---- augment ---------------------------------------------------------------------------------------------------------------------------


def pictures(b: int = 6, height: int = 24, width: int = 24) -> Tensor:
    """Smooth pictures, all the same one."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    return torch.stack([x, y, (3 * x).sin() * (2 * y).cos()]).expand(b, -1, -1, -1).clone()


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "only",
    [{"rotation": 0, "flip": False}, {"scale": (1, 1), "flip": False}, {"scale": (1, 1), "rotation": 0}],
    ids=["crop", "turn", "flip"],
)
def test_every_image_has_a_draw_of_its_own(only: dict) -> None:
    out = augment(pictures(), generator=draws(), **only)
    different = sum(not torch.allclose(out[i], out[j]) for i in range(6) for j in range(i))
    assert different >= 5 if "rotation" in only and "scale" in only else different == 15


def test_nothing_to_do_gives_the_images_back() -> None:
    for shape in ((24, 24), (12, 30)):
        out = augment(pictures(6, *shape), scale=(1, 1), rotation=0, flip=False, generator=draws())
        torch.testing.assert_close(out, pictures(6, *shape), atol=1e-5, rtol=0)


def test_flip_alone_mirrors_half_of_the_images() -> None:
    originals = torch.rand(200, 1, 8, 8, generator=draws())
    out = augment(originals, scale=(1, 1), rotation=0, flip=True, generator=draws())
    kept = (out - originals).abs().amax(dim=(1, 2, 3)) < 1e-4
    mirrored = (out - originals.flip(-1)).abs().amax(dim=(1, 2, 3)) < 1e-4
    assert (kept ^ mirrored).all() and 70 < kept.sum() < 130


def test_crops_keep_the_share_that_was_asked_for() -> None:
    """On pictures of their own coordinates, the spread of the result is that of the crop."""
    out = augment(pictures(300), scale=(0.3, 0.5), rotation=0, flip=False, generator=draws())
    width, height = (out[:, axis].amax(dim=(1, 2)) - out[:, axis].amin(dim=(1, 2)) for axis in (0, 1))
    area = width * height / 4
    assert 0.28 < area.min() < 0.34 and 0.46 < area.max() < 0.52
    assert 0.79 < (width / height).min() < 0.9 and 1.1 < (width / height).max() < 1.27
    whole = augment(pictures(300), scale=(0.9, 1), rotation=0, flip=False, generator=draws())
    width, height = (whole[:, axis].amax(dim=(1, 2)) - whole[:, axis].amin(dim=(1, 2)) for axis in (0, 1))
    assert (width * height / 4).min() > 0.87, "a stretched crop no longer fits and was cut"
    assert out.amax() <= pictures().amax() + 1e-5 and out.amin() >= pictures().amin() - 1e-5


@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 80)])
def test_turns_keep_shapes(height: int, width: int) -> None:
    """A disc keeps its pixels and a bar its length, in wide pictures too."""
    y, x = torch.meshgrid(
        torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij"
    )
    distance = (x.square() + y.square()).sqrt()
    middle = distance < 18  # further out are reflections
    disc, bar = (distance < 12).float(), ((x.abs() < 12) & (y.abs() < 2)).float()
    turned = (
        augment(
            torch.stack([disc, bar]).expand(20, 2, -1, -1),
            scale=(1, 1),
            rotation=180,
            flip=False,
            generator=draws(),
        )
        * middle
    )
    torch.testing.assert_close(turned[:, 0].sum(dim=(1, 2)), disc.sum().expand(20), rtol=0.03, atol=0)
    length = (turned[:, 1] * distance).amax(dim=(1, 2))
    assert (length - (bar * distance).amax()).abs().max() < 1, "the bar changes its length with the turn"


def test_small_turns_stay_small() -> None:
    out = augment(pictures(), scale=(1, 1), rotation=5, flip=False, generator=draws())
    assert 0.001 < (out - pictures())[:, :, 4:-4, 4:-4].abs().mean() < 0.06


def test_augment_is_reproducible_finite_and_sized() -> None:
    for size, shape in ((None, (6, 3, 12, 30)), (16, (6, 3, 16, 16)), (40, (6, 3, 40, 40))):
        one, other = (augment(pictures(6, 12, 30), size=size, generator=draws(3)) for _ in range(2))
        assert one.shape == shape and torch.equal(one, other) and one.isfinite().all()
    assert not torch.equal(augment(pictures(), generator=draws(1)), augment(pictures(), generator=draws(2)))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    augment(pictures(), generator=draws())
    assert torch.equal(torch.get_rng_state(), state), "the global random state was used"
    assert augment(pictures().double()).dtype == torch.float64


# ---- bad input -------------------------------------------------------------------------------------------------------------------------

PAIRS = [(PIXELS[:4], LABELS[:4])]
BAD_CALLS = {
    "schedule step": (lambda: cosine_schedule(10, 10, 1.0), ValueError, "step.* 10"),
    "schedule negative": (lambda: cosine_schedule(-1, 10, 1.0), ValueError, "step.* -1"),
    "schedule steps": (lambda: cosine_schedule(0, 0, 1.0), ValueError, "steps.* 0"),
    "schedule warmup": (lambda: cosine_schedule(0, 10, 1.0, warmup=10), ValueError, "warmup.* 10"),
    "schedule start": (lambda: cosine_schedule(0, 10, "1"), TypeError, "start.* '1'"),
    "schedule end": (lambda: cosine_schedule(0, 10, 1.0, float("nan")), ValueError, "end.* nan"),
    "augment bytes": (lambda: augment(PIXELS.byte()), TypeError, "uint8"),
    "augment one image": (lambda: augment(PIXELS[0]), ValueError, r"\(3, 8, 8\)"),
    "augment scale": (lambda: augment(PIXELS, scale=(0, 1)), ValueError, r"\(0, 1\)"),
    "augment scale order": (lambda: augment(PIXELS, scale=(0.9, 0.5)), ValueError, r"\(0.9, 0.5\)"),
    "augment scale large": (lambda: augment(PIXELS, scale=(0.5, 1.5)), ValueError, "1.5"),
    "augment scale type": (lambda: augment(PIXELS, scale=0.5), TypeError, "0.5"),
    "augment scale text": (lambda: augment(PIXELS, scale=("a", "b")), TypeError, "'a'"),
    "augment rotation": (lambda: augment(PIXELS, rotation=-10), ValueError, "rotation.* -10"),
    "augment rotation type": (lambda: augment(PIXELS, rotation="left"), TypeError, "'left'"),
    "augment size": (lambda: augment(PIXELS, size=0), ValueError, "size.* 0"),
    "augment size type": (lambda: augment(PIXELS, size=(8, 8)), TypeError, r"\(8, 8\)"),
    "augment generator": (lambda: augment(PIXELS, generator=5), TypeError, "generator.* 5"),
    "fit steps": (lambda: run(small_vit(), steps=0), ValueError, "steps.* 0"),
    "fit steps type": (lambda: run(small_vit(), steps=1.5), TypeError, "1.5"),
    "fit model": (lambda: run("vit"), TypeError, "'vit'"),
    "fit nothing to train": (
        lambda: run(small_vit().requires_grad_(False)),
        TypeError,
        "with a gradient.*got tensor",
    ),
    "fit batches": (lambda: run(small_vit(), 5), TypeError, "int"),
    "fit empty": (lambda: run(small_vit(), []), ValueError, "nothing in pass 1"),
    "fit used up": (lambda: run(small_vit(), iter(PAIRS)), ValueError, "nothing in pass 2"),
    "fit loss": (lambda: run(small_vit(), loss="mse"), TypeError, "'mse'"),
    "fit loss value": (lambda: run(small_vit(), loss=lambda model, batch: 1.5), TypeError, "1.5"),
    "fit loss vector": (
        lambda: run(small_vit(), loss=lambda model, batch: model(batch[0])),
        TypeError,
        "scalar.*tensor",
    ),
    "fit loss numbers": (
        lambda: run(small_vit(), loss=lambda model, batch: (cross_entropy(model, batch), 5)),
        TypeError,
        "5",
    ),
    "fit lr": (lambda: run(small_vit(), lr=-1.0), ValueError, "lr.* -1.0"),
    "fit lr type": (lambda: run(small_vit(), lr="fast"), TypeError, "lr.* 'fast'"),
    "fit weight decay": (lambda: run(small_vit(), weight_decay=-0.1), ValueError, "weight_decay.* -0.1"),
    "fit after_step": (lambda: run(small_vit(), after_step=5), TypeError, "after_step.* 5"),
    "fit before_step": (lambda: run(small_vit(), before_step="x"), TypeError, "before_step.* 'x'"),
    "fit seed": (lambda: run(small_vit(), seed="a"), TypeError, "seed.* 'a'"),
    "fit seed sign": (lambda: run(small_vit(), seed=-1), ValueError, "seed.* -1"),
    "fit resume": (lambda: run(small_vit(), resume=True), ValueError, "resume=True"),
    "fit checkpoint_every": (
        lambda: run(small_vit(), checkpoint="x.pt", checkpoint_every=0),
        ValueError,
        "checkpoint_every.* 0",
    ),
    "fit checkpoint": (lambda: run(small_vit(), checkpoint=5), TypeError, "int"),
    "evaluate model": (lambda: evaluate("vit", PAIRS), TypeError, "'vit'"),
    "evaluate nothing": (lambda: evaluate(small_vit(), []), ValueError, "no images"),
    "evaluate column": (
        lambda: evaluate(small_vit(), [(PIXELS[:4], LABELS[:4, None])]),
        ValueError,
        r"\(4, 1\)",
    ),
    "evaluate number": (lambda: evaluate(small_vit(), [(PIXELS[:4], LABELS[:3])]), ValueError, r"\(3,\)"),
    "evaluate floats": (
        lambda: evaluate(small_vit(), [(PIXELS[:4], LABELS[:4].float())]),
        ValueError,
        "float32",
    ),
    "evaluate images alone": (lambda: evaluate(small_vit(), [PIXELS[:4]]), TypeError, "pairs"),
    "evaluate lists": (lambda: evaluate(small_vit(), [([1], [2])]), TypeError, r"\[1\]"),
}


@pytest.mark.parametrize(("call", "error", "words"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_bad_input_is_named(call: Callable, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


def test_folder_as_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"folder {tmp_path}"):
        run(small_vit(), checkpoint=tmp_path)
