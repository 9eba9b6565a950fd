"""Several processes train as one: same losses, centres, weights; nothing is drawn or written twice."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.experiments import BATCH, EXPERIMENTS, difference
from support.processes import STEPS, TASKS, launch
from support.training import run, small_vit
from test_training_accumulate import in_parts
from torch import distributed, nn

from vit_course.training import Validation

pytest.importorskip("accelerate")
pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="this PyTorch has no processes")

Done = list[dict[str, Any]]
ENDS = {"error": "Stop", "button": "KeyboardInterrupt: stopped after"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def pair(folder: Path) -> Done:
    """What each of two processes did."""
    return launch(2, folder, list(TASKS))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_two_processes_with_half_the_batch_are_one(name: str, pair: Done) -> None:
    one = EXPERIMENTS[name]().train(STEPS)
    assert difference(pair[0][name], one) < 1e-10
    assert difference(pair[0][name], pair[1][name]) == 0.0


def test_two_processes_with_two_parts_each_are_one(pair: Done) -> None:
    """Four quarters: the first part of a step is the first and second quarter."""
    experiment = EXPERIMENTS["DINO"]()
    experiment.batches = in_parts(experiment.batches, 1)
    one = experiment.train(STEPS, accumulate=2)
    assert difference(pair[0]["DINO in parts"], one) < 1e-10


@pytest.mark.parametrize("name", ["DINO", "DINO, Sinkhorn"])
def test_the_equality_can_fail(name: str, pair: Done) -> None:
    """Each process with a centre or sums of its own: the fault that was measured before they were reduced."""
    one = EXPERIMENTS[name]().train(STEPS)
    assert difference(pair[0][f"{name} apart"], one) > 1e-4


def test_each_process_gets_its_part(pair: Done) -> None:
    first, second = (done["parts"] for done in pair)
    rows = torch.arange(24).tolist()
    for name in ("function", "list"):
        for one, other in zip(first[name], second[name], strict=True):
            assert len(one) == len(other) == 12 and sorted(one + other) == rows
    assert first["list"][0] + second["list"][0] == rows
    for name in ("loader", "weighted"):
        for of_pass in (slice(0, 4), slice(4, 8)):
            read = [sum(part[name][of_pass], []) for part in (first, second)]
            assert [len(part) for part in read] == [12, 12] and sorted(read[0] + read[1]) == rows
        assert first[name][:4] != first[name][4:], "the second pass has the order of the first"
    assert first["loader"] == first["loader again"] and second["loader"] == second["loader again"]


@pytest.mark.parametrize("way", ["error", "button"])
@pytest.mark.parametrize("kind", ["function", "loader"])
def test_resumed_training_is_the_same(kind: str, way: str, pair: Done) -> None:
    """Stopped in all, or by a button that one of them saw: bit for bit, dropout and noise included."""
    assert_resumed(pair, kind, way)
    one, other = (done[f"{kind} resumed"]["straight"]["state"] for done in pair)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def assert_resumed(processes: Done, kind: str, way: str) -> None:
    for done in processes:
        trained = done[f"{kind} resumed"]
        straight, stopped, resumed = (trained[part] for part in ("straight", way, f"after {way}"))
        assert stopped["stopped"].startswith(ENDS[way])
        assert resumed["history"] == straight["history"] and len(straight["history"]["loss"]) == 9
        for name, tensor in straight["state"].items():
            assert torch.equal(tensor, resumed["state"][name])
        assert not torch.equal(straight["random"], resumed["random"]), "the caller's random state was touched"


def test_dropout_differs_between_processes(folder: Path, pair: Done) -> None:
    saved = torch.load(folder / "function error.pt", weights_only=True)
    assert len(saved["random_of_others"]) == 1
    assert not torch.equal(saved["random"][0], saved["random_of_others"][0][0])


def test_the_main_process_writes(folder: Path, pair: Done) -> None:
    assert [done["files"]["writers"] for done in pair] == [[True], [False]]
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 7))
    assert pair[0]["files"]["sentences"] == pair[1]["files"]["sentences"]
    before, during = pair[0]["files"]["sentences"]
    assert before.startswith("ValueError: checkpoint") and "cannot be written" in before
    assert during.startswith("OSError: the checkpoint after step 2 could not be written")


def test_what_cannot_be_shared_or_is_not_finite_is_named_in_all(pair: Done) -> None:
    for done in pair:
        uneven, spoilt = done["refused"]
        assert (
            uneven == "a batch of 7 cannot be divided among 2 processes: got a tensor of shape (7, 3, 8, 8)"
        )
        assert spoilt.startswith("the loss was nan at step 0")


@pytest.mark.slow
def test_four_processes_with_a_quarter_of_the_batch_are_one(tmp_path: Path) -> None:
    """Resumed to the bit too, though the sum of four numbers depends on their order."""
    four = launch(4, tmp_path, [*EXPERIMENTS, "function resumed"])
    assert_resumed(four, "function", "error")
    for name, make in EXPERIMENTS.items():
        assert difference(four[0][name], make().train(STEPS)) < 1e-10
        assert all(difference(four[0][name], done[name]) == 0.0 for done in four)
    assert BATCH == 8


# ---- one process with an accelerator


@pytest.fixture
def accelerator() -> Any:
    from accelerate import Accelerator

    return Accelerator(cpu=True)


def test_one_process_with_an_accelerator_is_one_without(accelerator: Any) -> None:
    from support.training import BATCHES, same

    for kind, batches in BATCHES.items():
        plain, accelerated = small_vit(), small_vit()
        history = run(plain, batches(), accumulate=2)
        assert run(accelerated, batches(), accumulate=2, accelerator=accelerator) == history, kind
        assert same(plain, accelerated)


def test_callbacks_get_the_model_itself(accelerator: Any) -> None:
    seen = []
    model = small_vit()
    run(model, callbacks=[Validation(lambda given: seen.append(given) or {}, 5)], accelerator=accelerator)
    assert all(given is model for given in seen) and len(seen) == 3


def test_what_fit_does_itself_is_refused(accelerator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for bad, words in ((5, "Accelerator, got 5"), (type(accelerator), "Accelerator, got <class")):
        with pytest.raises(TypeError, match=words):
            run(small_vit(), accelerator=bad)
    for name, value, words in (
        ("gradient_accumulation_steps", 4, "give fit accumulate=4"),
        ("mixed_precision", "fp16", "casts to fp16"),
        ("distributed_type", "FSDP", "hold the whole model.*FSDP"),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(type(accelerator), name, property(lambda self, value=value: value))
            with pytest.raises(ValueError, match=words):
                run(small_vit(), accelerator=accelerator)


def test_batch_norms_become_those_of_all_gpus() -> None:
    """The conversion alone: SyncBatchNorm has no form for a CPU."""
    from vit_course.training import _LossCall, _Processes

    class OnGPUs:
        num_processes, process_index, device, ddp_handler = 2, 1, torch.device("cuda"), None

        def prepare(self, *given: Any) -> Any:
            return given

    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    weight = model[1].weight
    _Processes(OnGPUs()).prepare(_LossCall(model, len, None), torch.optim.AdamW(model.parameters()))
    assert isinstance(model[1], nn.SyncBatchNorm) and model[1].weight is weight
