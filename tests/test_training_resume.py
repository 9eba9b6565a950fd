"""A training resumes without a trace, and a bad or broken state never replaces a good checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from support.training import (
    BATCHES,
    LABELS,
    PIXELS,
    STEPS,
    CentredLoss,
    Stop,
    cross_entropy,
    drawn,
    run,
    same,
    small_vit,
    stop_at,
)
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, TensorDataset, WeightedRandomSampler

from vit_course.training import Run, Validation


@pytest.mark.parametrize("stop", [0, 4, 5, 9, STEPS - 2])
@pytest.mark.parametrize("kind", BATCHES)
def test_resumed_training_is_the_same(kind: str, stop: int, tmp_path: Path) -> None:
    """After any step, in the first pass or a later one: weights, loss state and history are the same bits."""
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


@pytest.mark.parametrize(
    ("changes", "written"),
    [({"checkpoint_every": 5}, [5, 10, 13]), ({"steps": 30}, list(range(3, 31, 3)))],
    ids=["every 5", "a tenth"],
)
def test_checkpoints_come_on_time(changes: dict, written: list[int], tmp_path: Path) -> None:
    path, seen = tmp_path / "run.pt", []

    class Look:
        def before_step(self, run: Run) -> None:
            self.look()

        def on_end(self, run: Run) -> None:
            self.look()

        def look(self) -> None:
            if path.exists():
                seen.append(torch.load(path, weights_only=True)["step"])

    run(small_vit(), checkpoint=path, callbacks=[Look()], **changes)
    assert list(dict.fromkeys(seen)) == written


def test_kill_while_writing_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, path = small_vit(), tmp_path / "run.pt"
    run(straight)
    save, saved = torch.save, []

    def dying_save(state: dict, file: BinaryIO) -> None:
        save(state, file)
        saved.append(state["step"])
        if len(saved) == 3:
            file.truncate(500)
            raise Stop

    monkeypatch.setattr(torch, "save", dying_save)
    with pytest.raises(Stop):
        run(small_vit(), checkpoint=path, checkpoint_every=4)
    monkeypatch.undo()
    assert saved == [0, 4, 8] and torch.load(path, weights_only=True)["step"] == 4
    resumed = small_vit(seed=3)
    run(resumed, checkpoint=path, checkpoint_every=4, resume=True)
    assert same(straight, resumed)
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]


# ---- what is written can be read back


@pytest.mark.parametrize(
    "rate",
    [np.float64(1e-3), lambda step: np.float32(1e-3), lambda step: torch.tensor(1e-3), lambda step: 0],
    ids=["number", "of NumPy", "tensor", "int"],
)
def test_rates_of_any_kind_can_be_resumed(rate: Callable | float, tmp_path: Path) -> None:
    path, rates = tmp_path / "run.pt", {"lr": rate, "weight_decay": rate}
    straight, resumed = small_vit(), small_vit(seed=3)
    history = run(straight, **rates)
    with pytest.raises(Stop):
        run(small_vit(), **rates, checkpoint=path, checkpoint_every=1, after_step=stop_at(5))
    assert run(resumed, **rates, checkpoint=path, resume=True) == history and same(straight, resumed)
    assert all(type(number) is float for numbers in history.values() for number in numbers)


def test_numbers_of_a_loss_of_any_kind_can_be_resumed(tmp_path: Path) -> None:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict]:
        return cross_entropy(model, batch), {"numpy": np.float32(2), "tensor": torch.tensor([3]), "int": 4}

    history = run(small_vit(), loss=loss, checkpoint=tmp_path / "run.pt")
    assert run(small_vit(), loss=loss, checkpoint=tmp_path / "run.pt", resume=True) == history
    assert [history[name][0] for name in ("numpy", "tensor", "int")] == [2.0, 3.0, 4.0]


class UnreadableLoss(CentredLoss):
    """A loss with something in its state that a checkpoint cannot be read back with."""

    def get_extra_state(self) -> object:
        return np.float64(1.0)

    def set_extra_state(self, state: object) -> None:
        pass


def test_a_state_that_cannot_be_read_back_is_refused_before_the_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run\.pt cannot be read back"):
        run(
            small_vit(),
            loss=UnreadableLoss(),
            checkpoint=tmp_path / "run.pt",
            before_step=lambda step: pytest.fail("it trained"),
        )
    assert list(tmp_path.iterdir()) == []


def test_a_history_that_cannot_be_read_back_never_replaces_a_good_file(tmp_path: Path) -> None:
    class Careless:
        def after_step(self, run: Run) -> None:
            run.history.setdefault("step", []).append(np.float64(run.step) if run.step == 6 else 0.0)

    path = tmp_path / "run.pt"
    with pytest.raises(ValueError, match=r"run\.pt cannot be read back"):
        run(small_vit(), checkpoint=path, checkpoint_every=1, callbacks=[Careless()])
    assert torch.load(path, weights_only=True)["step"] == 6
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]


def test_validation_can_be_resumed(tmp_path: Path) -> None:
    def callbacks() -> list[Validation]:
        def measure(model: nn.Module) -> dict[str, float]:
            return {"mean": model(PIXELS).mean().item(), "noise": torch.rand(()).item()}

        return [Validation(measure, 3), Validation(measure, 4, name="other")]

    path = tmp_path / "run.pt"
    straight, resumed = small_vit(), small_vit(seed=3)
    history = run(straight, callbacks=callbacks())
    with pytest.raises(Stop):
        run(small_vit(), callbacks=callbacks(), checkpoint=path, checkpoint_every=1, after_step=stop_at(7))
    again = run(resumed, callbacks=callbacks(), checkpoint=path, resume=True)
    assert again == history and same(straight, resumed) and history["validation_step"] == [3, 6, 9, 12, 13]


def test_parameters_of_a_loss_can_be_resumed(tmp_path: Path) -> None:
    class Scaled(CentredLoss):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict]:
            loss, numbers = super().forward(model, batch)
            return loss + (model(batch[0]) * self.scale).square().mean(), numbers

    path, straight, resumed = tmp_path / "run.pt", (small_vit(), Scaled()), (small_vit(seed=3), Scaled())
    run(straight[0], loss=straight[1])
    with pytest.raises(Stop):
        run(small_vit(), loss=Scaled(), checkpoint=path, checkpoint_every=1, after_step=stop_at(7))
    run(resumed[0], loss=resumed[1], checkpoint=path, resume=True)
    assert same(straight[0], resumed[0]) and same(straight[1], resumed[1])
    assert not torch.equal(resumed[1].scale, torch.ones(3))


# ---- a bad state never replaces a good one


def test_a_nan_gradient_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    path, straight, resumed = tmp_path / "run.pt", small_vit(), small_vit(seed=3)
    run(straight)

    def spoil(step: int) -> None:
        if step == 9:
            model.head.bias.grad.fill_(torch.nan)

    model = small_vit()
    with pytest.raises(ValueError, match="head.bias.*step 9"):
        run(model, checkpoint=path, checkpoint_every=5, before_step=spoil)
    assert torch.load(path, weights_only=True)["step"] == 5
    run(resumed, checkpoint=path, resume=True)
    assert same(straight, resumed)


@pytest.mark.parametrize("part", ["model", "loss", "buffer"])
def test_weights_that_are_not_finite_are_not_written(part: str, tmp_path: Path) -> None:
    path, model, loss = tmp_path / "run.pt", small_vit(), CentredLoss()
    loss.weight = nn.Parameter(torch.ones(3))
    tensor, bad = {
        "model": (model.head.weight, torch.inf),
        "loss": (loss.weight, torch.nan),
        "buffer": (loss.center, torch.nan),
    }[part]

    def spoil(step: int) -> None:
        if step == 6:
            tensor.data.fill_(bad)

    with pytest.raises(ValueError, match="not finite after step 6"):
        run(model, loss=loss, checkpoint=path, checkpoint_every=1, after_step=spoil)
    assert torch.load(path, weights_only=True)["step"] == 6


def test_a_mask_of_minus_infinity_is_written(tmp_path: Path) -> None:
    loss = CentredLoss()
    loss.register_buffer("mask", torch.full((3,), -torch.inf))
    run(small_vit(), loss=loss, checkpoint=tmp_path / "run.pt")
    assert torch.load(tmp_path / "run.pt", weights_only=True)["step"] == STEPS


# ---- paths


def test_a_path_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    run(small_vit(), checkpoint="~/runs/x.pt")
    assert (tmp_path / "home" / "runs" / "x.pt").exists() and not (tmp_path / "~").exists()


@pytest.mark.parametrize("below", ["file/run.pt", "file/deep/run.pt", "new/" + "x" * 300 + ".pt"])
def test_a_path_that_cannot_be_written_is_refused_before_the_training(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("something else", encoding="utf-8")
    with pytest.raises(ValueError, match="cannot be written"):
        run(small_vit(), checkpoint=tmp_path / below, before_step=lambda step: pytest.fail("it trained"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_trying_a_path_leaves_nothing_behind(tmp_path: Path) -> None:
    def look(step: int) -> None:
        assert list(tmp_path.iterdir()) == []
        raise Stop

    with pytest.raises(Stop):
        run(small_vit(), checkpoint=tmp_path / "new" / "deep" / "run.pt", before_step=look)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
@pytest.mark.parametrize("when", [-1, 6], ids=["before", "during"])
def test_a_full_disk_is_named_and_leaves_no_part(when: int, tmp_path: Path) -> None:
    path = tmp_path / "run.pt"

    def fill(step: int) -> None:
        if step == when:
            (tmp_path / "run.pt.part").symlink_to("/dev/full")

    fill(-1)
    error, words = (ValueError, "cannot be written") if when < 0 else (OSError, "step 6 could not be written")
    with pytest.raises(error, match=f"{words}.*No space left"):
        run(small_vit(), checkpoint=path, checkpoint_every=1, after_step=fill)
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"][: when + 1]
    if when > 0:
        assert torch.load(path, weights_only=True)["step"] == 6


def test_a_file_too_large_is_named_and_leaves_no_part(tmp_path: Path) -> None:
    """Here torch notices before the file is closed, and speaks of positions."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(step: int) -> None:
        if step == 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))

    try:
        with pytest.raises(OSError, match="step 6 could not be written.*File too large"):
            run(small_vit(dim=64), checkpoint=tmp_path / "run.pt", checkpoint_every=1, after_step=limit)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]
    assert torch.load(tmp_path / "run.pt", weights_only=True)["step"] == 6


# ---- the stream


@pytest.mark.parametrize("stop", [1, 7])
@pytest.mark.parametrize("kind", ["shuffle", "sampler", "batch sampler", "dataset", "function"])
def test_a_generator_of_the_loader_is_set_back(kind: str, stop: int, tmp_path: Path) -> None:
    """Stopped and resumed in one session, with one loader whose generator has moved."""

    class OwnNoise(TensorDataset):
        def __init__(self, generator: torch.Generator) -> None:
            super().__init__(PIXELS, LABELS)
            self.generator = generator

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            pixels, label = super().__getitem__(index)
            return pixels + torch.randn(pixels.shape, generator=self.generator), label

    class OwnDraws:
        def __init__(self, generator: torch.Generator) -> None:
            self.generator = generator

        def __call__(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            return drawn(self.generator)

    def loader() -> Callable | DataLoader:
        generator = torch.Generator().manual_seed(3)
        images = TensorDataset(PIXELS, LABELS)
        sampler = WeightedRandomSampler(torch.arange(40) + 1.0, 40, generator=generator)
        return {
            "shuffle": lambda: DataLoader(images, batch_size=8, shuffle=True, generator=generator),
            "sampler": lambda: DataLoader(images, batch_size=8, sampler=sampler),
            "batch sampler": lambda: DataLoader(
                images, batch_sampler=BatchSampler(sampler, 8, drop_last=True)
            ),
            "dataset": lambda: DataLoader(OwnNoise(generator), batch_size=8),
            "function": lambda: OwnDraws(generator),
        }[kind]()

    straight, resumed, path, batches = small_vit(), small_vit(seed=3), tmp_path / "run.pt", loader()
    run(straight, loader())
    with pytest.raises(Stop):
        run(small_vit(), batches, checkpoint=path, checkpoint_every=1, after_step=stop_at(stop))
    run(resumed, batches, checkpoint=path, resume=True)
    assert same(straight, resumed)


def test_a_loader_without_the_generator_of_the_run_is_refused(tmp_path: Path) -> None:
    images, path = TensorDataset(PIXELS, LABELS), tmp_path / "run.pt"
    run(small_vit(), DataLoader(images, 8, shuffle=True, generator=torch.Generator()), checkpoint=path)
    with pytest.raises(ValueError, match="had 1 generators.*have 0"):
        run(small_vit(), DataLoader(images, 8, shuffle=True), checkpoint=path, resume=True)


# ---- checkpoints of something else


def test_wrong_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    run(small_vit(), loss=CentredLoss(), checkpoint=path)
    cases = [
        ({"steps": STEPS + 1}, "is of a run with steps=13; this one has steps=14"),
        ({"seed": 4}, "with seed=0; this one has seed=4"),
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


def test_folder_as_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"folder {tmp_path}"):
        run(small_vit(), checkpoint=tmp_path)
