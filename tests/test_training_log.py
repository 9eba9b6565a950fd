"""Logs hold one line for each step, whatever stops a run, and never two."""

import json
from pathlib import Path

import pytest
from support.training import PIXELS, STEPS, CentredLoss, Stop, run, same, small_vit, stop_at
from torch import Tensor, nn

from vit_course.training import JSONLog, TensorBoard, Validation


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def validation() -> Validation:
    return Validation(lambda model: {"mean": model(PIXELS).mean().item()}, 5)


def without_times(lines: list[dict]) -> list[dict]:
    return [{name: number for name, number in line.items() if name != "seconds"} for line in lines]


def test_a_line_for_each_step(tmp_path: Path) -> None:
    """The numbers of a callback that comes behind the log in the list are in the step's line too."""
    path, plain = tmp_path / "deep" / "log.jsonl", small_vit()
    run(plain, loss=CentredLoss())
    model = small_vit()
    history = run(model, loss=CentredLoss(), callbacks=[JSONLog(str(path)), validation()])
    lines = lines_of(path)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1)) and same(plain, model)
    for name in ("loss", "lr", "center"):
        assert [line[name] for line in lines] == history[name]
    validated = [line for line in lines if "validation_mean" in line]
    assert [line["step"] for line in validated] == [5, 10, STEPS]
    assert [line["validation_mean"] for line in validated] == history["validation_mean"]
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds) and 0 <= seconds[0] and seconds[-1] < 60
    assert [file.name for file in path.parent.iterdir()] == ["log.jsonl"]


def test_a_line_is_there_when_its_step_ends(tmp_path: Path) -> None:
    path, seen = tmp_path / "log.jsonl", []

    class Look:
        def before_step(self, run: object) -> None:
            seen.append(len(path.read_text(encoding="utf-8").splitlines()))

    run(small_vit(), callbacks=[JSONLog(path), Look()])
    assert seen == list(range(STEPS))


@pytest.mark.parametrize("cut", ["", '{"step": 10, "sec', '{"step": 10, "seconds": 1.0}'])
def test_a_resumed_run_goes_on_without_doubling(cut: str, tmp_path: Path) -> None:
    """Killed after step 9, with a checkpoint of step 8 and perhaps half a line."""
    path, log, straight = tmp_path / "run.pt", tmp_path / "log.jsonl", tmp_path / "straight.jsonl"
    run(small_vit(), callbacks=[JSONLog(straight), validation()])
    with pytest.raises(Stop):
        run(
            small_vit(),
            callbacks=[JSONLog(log), validation()],
            checkpoint=path,
            checkpoint_every=4,
            before_step=stop_at(9),
        )
    assert len(lines_of(log)) == 9
    before = lines_of(log)[7]["seconds"]
    with open(log, "a", encoding="utf-8") as file:
        file.write(cut)
    run(small_vit(), callbacks=[JSONLog(log), validation()], checkpoint=path, resume=True)
    assert without_times(lines_of(log)) == without_times(lines_of(straight))
    assert lines_of(log)[8]["seconds"] >= before, "the clock began anew"
    run(small_vit(), callbacks=[JSONLog(log)], checkpoint=path, resume=True)
    assert len(lines_of(log)) == STEPS, "resuming a finished run changed its log"


def test_a_new_run_begins_a_new_log_but_never_over_another_file(tmp_path: Path) -> None:
    log, other = tmp_path / "log.jsonl", tmp_path / "notes.txt"
    for _ in range(2):
        run(small_vit(), steps=3, callbacks=[JSONLog(log)])
    assert [line["step"] for line in lines_of(log)] == [1, 2, 3]
    for text in ("my notes\n", "[1]\n", "{}\n"):
        other.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"notes\.txt is not a log"):
            run(small_vit(), callbacks=[JSONLog(other)])
        assert other.read_text(encoding="utf-8") == text


def test_numbers_that_are_none_are_null(tmp_path: Path) -> None:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, float]]:
        return model(batch[0]).square().mean(), {"ratio": float("inf")}

    run(small_vit(), loss=loss, steps=1, callbacks=[JSONLog(tmp_path / "log.jsonl")])
    assert lines_of(tmp_path / "log.jsonl")[0]["ratio"] is None


def test_tensorboard_reads_what_was_recorded(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    path, folder = tmp_path / "run.pt", tmp_path / "events"
    settings = {"checkpoint": path, "checkpoint_every": 4, "callbacks": [TensorBoard(folder), validation()]}
    with pytest.raises(Stop):
        run(small_vit(), before_step=stop_at(9), **settings)
    history = run(small_vit(), resume=True, **settings)
    events = accumulator.EventAccumulator(str(folder)).Reload()
    losses = {event.step: event.value for event in events.Scalars("loss")}
    assert list(losses) == list(range(1, STEPS + 1)) and len(events.Scalars("loss")) == STEPS
    assert list(losses.values()) == pytest.approx(history["loss"])
    assert [event.step for event in events.Scalars("validation_mean")] == [5, 10, STEPS]


def test_a_missing_tensorboard_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"vit_course\[scale\]"):
        TensorBoard("events")
