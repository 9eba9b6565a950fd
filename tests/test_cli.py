"""The command: every objective trains every kind of backbone, stops and goes on; what it refuses it says."""

import json
import os
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from layout import ROOT
from safetensors.torch import load_file
from support.photo_folder import write_broken, write_pictures
from torch import Tensor
from torchvision.utils import save_image

from vit_course import cli, training
from vit_course.cli import _untrained, main
from vit_course.lab import catalogue
from vit_course.lab.data import ImageFolderStream
from vit_course.lab.pretrain import (
    OBJECTIVES,
    LabelledPictures,
    Pretraining,
    RunFolder,
    form,
    load_model,
    menu,
    pretrain,
)
from vit_course.lab.pretrain.run import _require_shares, make_accelerator

# One for each kind of attention and of features, and one with two class tokens.
KINDS = ["ViT", "CaiT", "XCiT", "MaxViT", "DistilledViT"]
GIVEN = ("num_classes", "image_size", "patch_size")
PAIRS = [(objective, backbone) for backbone in KINDS for objective in OBJECTIVES]
REFUSED = [("mpp", "MaxViT")]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gives a folder of 24 pictures, two classes of twelve, one redder than the other."""
    folder = tmp_path_factory.mktemp("photographs")
    generator = torch.Generator().manual_seed(0)
    for channel, name in enumerate(["barns", "ponds"]):
        (folder / name).mkdir()
        for number in range(12):
            picture = torch.rand(3, 20, 26, generator=generator)
            picture[channel] += 0.5
            save_image(picture.clamp(0, 1), folder / name / f"{number}.png")
    return folder


def words(pictures: Path, output: Path, backbone: str = "ViT", **changes: Any) -> list[str]:
    """The arguments of a short run on pictures of 16 pixels."""
    tiny = catalogue.MODELS[backbone].tiny.items() if backbone in catalogue.MODELS else ()
    sizes = [f"{name}={str(value).strip('()').replace(' ', '')}" for name, value in tiny if name not in GIVEN]
    options: dict[str, Any] = {"data": pictures, "output": output, "backbone": backbone, "sizes": sizes}
    options |= {"image_size": 16, "steps": 3, "batch": 6, "local_crops": 1, "prototypes": 24, "workers": 0}
    options |= {} if backbone == "MaxViT" else {"patch_size": 4}
    command = ["pretrain", "--no-progress"]
    for name, value in (options | changes).items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            command.append(option)
        else:
            command += [option, *map(str, value if isinstance(value, list) else [value])]
    return command


def log(run: Path) -> list[dict[str, float]]:
    """What each step recorded, without the time."""
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        {name: number for name, number in json.loads(line).items() if name != "seconds"} for line in lines
    ]


def tensors(run: Path) -> dict[str, Tensor]:
    """All that training moved: weights, teacher, centres, moments of the optimiser."""
    found: dict[str, Tensor] = {}

    def collect(name: str, part: Any) -> None:
        if isinstance(part, Tensor):
            found[name] = part
        elif isinstance(part, dict | list):
            for key, value in part.items() if isinstance(part, dict) else enumerate(part):
                collect(f"{name}.{key}", value)

    collect("checkpoint", torch.load(run / "checkpoint.pt", weights_only=True))
    return found | load_file(run / "model" / "model.safetensors")


def assert_same(one: Path, other: Path) -> None:
    """Bit for bit."""
    assert log(one) == log(other)
    ours, theirs = tensors(one), tensors(other)
    assert ours.keys() == theirs.keys() and len(ours) > 50
    assert not [name for name in ours if not torch.equal(ours[name], theirs[name])]


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Gives a function: in the step of that number Ctrl-C is pressed, in every run to come; 0 is none."""
    write, stop = training.JSONLog.write, 0

    def pressed(self: Any, step: int, numbers: dict[str, float]) -> None:
        write(self, step, numbers)
        if step == stop:
            signal.raise_signal(signal.SIGINT)

    def choose(step: int) -> None:
        nonlocal stop
        stop = step

    monkeypatch.setattr(training.JSONLog, "write", pressed)
    return choose


# ---- Training ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair not in REFUSED], ids=" × ".join)
def test_every_objective_trains_every_kind_of_backbone(
    pair: tuple[str, str], pictures: Path, tmp_path: Path
) -> None:
    objective, backbone = pair
    run = tmp_path / "run"
    assert main(words(pictures, run, backbone, objective=objective, evaluate_every=2)) == 0
    assert sorted(os.listdir(run)) == ["checkpoint.pt", "config.json", "log.jsonl", "model"]
    steps = log(run)
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert all(torch.tensor(list(step.values())).isfinite().all() for step in steps)
    assert [step["validation_step"] for step in steps if "validation_knn" in step] == [2, 3]
    model = load_model(run / "model")
    assert type(model) is catalogue.MODELS[backbone].kind
    assert model.num_classes == (2 if objective == "supervised" else 0)
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    assert config["settings"]["objective"] == objective and config["classes"] == ["barns", "ponds"]
    assert config["settings"].keys() == Pretraining.__dataclass_fields__.keys()
    assert config["versions"] == {name: version(name) for name in ("vit_course", "torch", "torchvision")}
    if objective in ("dino", "es_vit"):
        trained = torch.load(run / "checkpoint.pt", weights_only=True)["model"]
        name, weight = next(iter(model.named_parameters()))
        assert torch.equal(weight, trained[f"teacher.backbone.{name}"])
        assert not torch.equal(weight, trained[f"student.backbone.{name}"])
    first = type(model)(**config["arguments"], num_classes=model.num_classes).state_dict()
    assert model.state_dict().keys() == first.keys()


@pytest.mark.parametrize("pair", REFUSED, ids=" × ".join)
def test_a_pair_that_the_catalogue_refuses_is_refused_in_its_words(
    pair: tuple[str, str], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    objective, backbone = pair
    assert main(words(pictures, tmp_path / "run", backbone, objective=objective)) == 2
    sentence = catalogue.MODELS[backbone].reservations[OBJECTIVES[objective].name].sentence
    assert capsys.readouterr().err == f"vit-course: {sentence}\n"
    assert not (tmp_path / "run").exists()


def test_objectives_are_those_of_the_catalogue() -> None:
    """But for distillation, which needs a teacher, and with training by labels."""
    names = {objective.name for objective in OBJECTIVES.values()}
    assert names == catalogue.OBJECTIVES.keys() - {"distillation"} | {"supervised"}


def test_the_menu_has_every_model_and_every_published_size() -> None:
    published = [name for row in catalogue.MODELS.values() for name in row.published]
    assert list(menu()) == [*catalogue.MODELS, *published]


@pytest.mark.parametrize("backbone", KINDS)
def test_stopped_and_resumed_is_undisturbed(
    backbone: str,
    pictures: Path,
    tmp_path: Path,
    stop_after: Callable[[int], None],
    capsys: pytest.CaptureFixture,
) -> None:
    """Ctrl-C twice; the second part begins in the second pass through the pictures."""
    settings = {"steps": 6, "evaluate_every": 2}
    assert main(words(pictures, tmp_path / "straight", backbone, **settings)) == 0
    for step in (2, 4):
        stop_after(step)
        assert main(words(pictures, tmp_path / "run", backbone, **settings, resume=True)) == 130
        assert (
            f"stopped after {step} of 6 steps; the same command with --resume goes on"
            in capsys.readouterr().err
        )
        assert len(log(tmp_path / "run")) == step
    stop_after(0)
    assert main(words(pictures, tmp_path / "run", backbone, **settings, resume=True)) == 0
    assert_same(tmp_path / "run", tmp_path / "straight")


def test_a_broken_file_is_named_once_and_passed_over(
    pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """Whichever process meets it, in training or when neighbours are looked for."""
    folder = tmp_path / "photographs"
    shutil.copytree(pictures, folder)
    broken = [path for name in ("barns", "ponds") for path in write_broken(folder / name)]
    settings = {"objective": "mpp", "steps": 14, "evaluate_every": 5, "validation": 0.25, "workers": 1}
    assert main(words(folder, tmp_path / "run", **settings)) == 0
    said = capfd.readouterr().err.splitlines()
    assert len(log(tmp_path / "run")) == 14
    for path in broken:
        assert sum(f"warning: {path} cannot be read as a picture" in line for line in said) == 1
    assert len(said) == len(broken)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_bars_are_for_a_terminal(
    is_terminal: bool,
    run: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    arguments = words(pictures, tmp_path / "run", objective="mpp", validation=0)
    arguments.remove("--no-progress")
    for command in (arguments, ["evaluate", str(run), "--workers", "0"]):
        assert main(command) == 0
        bars = capsys.readouterr().err
        assert ("100%" in bars) == is_terminal, command
        assert is_terminal or not bars
    assert main([*arguments, "--no-progress", "--resume"]) == 0
    assert not capsys.readouterr().err


def test_a_log_for_tensorboard(pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    assert main(words(pictures, run, objective="mpp", validation=0, tensorboard=True)) == 0
    assert [file.name.startswith("events") for file in (run / "tensorboard").iterdir()] == [True]


def test_a_resumed_run_does_not_read_again_what_it_has_seen(
    pictures: Path, tmp_path: Path, stop_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = 0

    def counted(self: ImageFolderStream, position: int, read_one: Any = ImageFolderStream._read) -> Any:
        nonlocal read
        read += 1
        return read_one(self, position)

    monkeypatch.setattr(ImageFolderStream, "_read", counted)
    flat = pictures / "ponds"
    settings = {"steps": 5, "objective": "mpp"}
    stop_after(4)
    assert main(words(flat, tmp_path / "run", **settings)) == 130
    assert read == 4 * 6 and len(log(tmp_path / "run")) == 4
    stop_after(0)
    assert main(words(flat, tmp_path / "run", **settings, resume=True)) == 0
    assert read == 5 * 6


@pytest.mark.parametrize(
    "option",
    [
        {"precision": "bf16"},
        {"augment_on_device": True},
        {"koleo": 0.1},
        {"centring": "sinkhorn"},
        {"teacher_temp": [0.05, 0.05]},
    ],
    ids=lambda option: " ".join(option),
)
def test_options_of_scale(option: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    """Each trains, and to other weights than without."""
    assert main(words(pictures, tmp_path / "plain", validation=0)) == 0
    assert main(words(pictures, tmp_path / "run", validation=0, **option)) == 0
    plain, other = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("plain", "run"))
    assert any(not torch.equal(plain[name], other[name]) for name in plain)


def test_micro_batches_train_as_the_whole_batch(pictures: Path, tmp_path: Path) -> None:
    for accumulate in (1, 3):
        assert main(words(pictures, tmp_path / str(accumulate), validation=0, accumulate=accumulate)) == 0
    assert_trained_as_one(tmp_path / "1", tmp_path / "3")


def test_workers_change_nothing(pictures: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        assert main(words(pictures, tmp_path / str(workers), steps=2, workers=workers)) == 0
    assert_same(tmp_path / "0", tmp_path / "2")


def test_pictures_without_labels_have_no_curve(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(words(pictures / "ponds", tmp_path / "run")) == 0
    assert not any("validation_knn" in step for step in log(tmp_path / "run"))
    assert "nothing is measured by nearest neighbours" in capsys.readouterr().err


def test_labels_train_without_a_validation_too(pictures: Path, tmp_path: Path) -> None:
    assert main(words(pictures, tmp_path / "run", objective="supervised", validation=0)) == 0
    assert load_model(tmp_path / "run" / "model").num_classes == 2


def test_no_picture_that_is_asked_about_was_trained_on(pictures: Path) -> None:
    """Whether or not the training looks at labels."""

    def names(stream: Any) -> set[Path]:
        return {stream._path(number) for number in range(len(stream))}

    labelled = LabelledPictures(pictures, 16, 0.25)
    known, asked = (names(loader.dataset) for loader in labelled.loaders)
    for labels in (False, True):
        trained = names(ImageFolderStream(pictures, labels=labels, test_share=0.25))
        assert trained == known and not trained & asked
    assert len(asked) == 6


def test_photographs_get_the_photographic_views(pictures: Path, tmp_path: Path) -> None:
    """As a function: the settings decide size and number of the views, and the rate is the authors' rule."""
    settings = Pretraining(pictures, tmp_path / "run", backbone="ViT-S/16", batch=512)
    wanted = form(settings)
    experiment = OBJECTIVES["dino"].prepare(settings, wanted, 0)
    assert [view.size for view in experiment.views.views] == [224] * 2 + [96] * 8
    assert form(replace(settings, sizes=("layer_dropout=0.1",))).arguments["layer_dropout"] == 0.1
    assert experiment.lr == 1e-3 and experiment.model.student.head.prototypes.out_features == 65536
    with pytest.raises(ValueError, match="not empty"):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "mine.txt").touch()
        pretrain(settings)


# ---- What is refused ---------------------------------------------------------------------------------------


def refusals() -> dict[str, tuple[dict[str, Any], str]]:
    """Settings that are refused, and words of the sentence."""
    return {
        "an unknown backbone": ({"backbone": "ViT-Q"}, "'ViT-Q' is unknown; it can be ViT, SimpleViT"),
        "an unknown objective": ({"objective": "magic"}, "'magic' is none of dino, es_vit, mpp, supervised"),
        "an unknown size": ({"sizes": ["dims=3"]}, "pairs such as dim=64, of dim, depth"),
        "a size that is no number": ({"sizes": ["dim=x"]}, "'dim=x'"),
        "sizes that do not fit": (
            {"patch_size": 5},
            "image_size must be a multiple of 5, as this ViT has it, got 16",
        ),
        "no such folder": ({"data": "nowhere"}, "there is no folder 'nowhere'"),
        "an empty folder": ({"data": "empty"}, "holds no pictures"),
        "a folder of text": ({"data": "text"}, "holds no pictures"),
        "one class": (
            {"data": "one", "objective": "supervised"},
            "1 class folders; labels need at least two",
        ),
        "an unknown device": ({"device": "abacus"}, "'abacus' is not to be had here"),
        "fewer pictures than a batch": ({"batch": 100}, "too few for a batch of 100"),
        "a batch that cannot be divided": ({"accumulate": 4}, "6 cannot be divided into 4"),
        "a file for output": ({"output": "text/notes.txt"}, "is a file"),
        "a folder that is not empty": ({"output": "text"}, "is not empty"),
        "an output that cannot be written": ({"output": "text/notes.txt/run"}, "annot be written"),
        "a local crop that patches do not fill": ({"local_size": 9}, "local_size must be a multiple of 4"),
    }


@pytest.mark.parametrize("name", refusals())
def test_it_is_refused_in_one_sentence(
    name: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "text", "one/ponds"):
        Path(folder).mkdir(parents=True)
    Path("text/notes.txt").write_text("no picture", encoding="utf-8")
    (tmp_path / "one" / "ponds" / "0.png").write_bytes((pictures / "ponds" / "0.png").read_bytes())
    before = sorted(tmp_path.rglob("*"))
    changes, sentence = refusals()[name]
    assert main(words(**{"pictures": pictures, "output": tmp_path / "run"} | changes)) == 2
    said = capsys.readouterr().err
    assert said.startswith("vit-course: ") and said.count("\n") == 1 and sentence in said
    assert sorted(tmp_path.rglob("*")) == before, "something was left behind"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_resuming_with_other_settings_names_them(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = tmp_path / "run"
    assert main(words(pictures, run, "ViT", steps=2)) == 0
    before = contents(run)
    assert main(words(pictures, run, "ViT", steps=4, lr=0.01, resume=True)) == 2
    assert "has steps=2, lr=None; it cannot go on with steps=4, lr=0.01" in capsys.readouterr().err
    assert main(words(pictures, run, "ViT", steps=2)) == 2
    assert "is not empty; give --resume" in capsys.readouterr().err
    assert contents(run) == before
    assert main(words(pictures, run, "ViT", steps=2, checkpoint_every=1, workers=1, resume=True)) == 0


def test_a_checkpoint_that_is_none_or_of_another_model_is_refused(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    assert main(words(pictures, run, "ViT")) == 0
    assert main(words(pictures, other, "XCiT")) == 0
    capsys.readouterr()
    for content, sentence in [
        ((other / "checkpoint.pt").read_bytes(), "holds another model than the one to train"),
        (b"a letter to a friend", "is not a checkpoint that fit wrote"),
    ]:
        (run / "checkpoint.pt").write_bytes(content)
        before = contents(run)
        assert main(words(pictures, run, "ViT", resume=True)) == 2
        said = capsys.readouterr().err
        assert sentence in said and said.count("\n") == 1 and len(said) < 500
        assert contents(run) == before


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """As on a full disk, no file grows beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_before_the_training_leaves_nothing(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with files_up_to(20_000):
        assert main(words(pictures, tmp_path / "run")) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("fails", ["checkpoint", "weights"])
def test_a_disk_that_fills_up_costs_no_more_than_the_steps_since_the_checkpoint(
    fails: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run, straight = tmp_path / "run", tmp_path / "straight"
    settings = {"steps": 4, "checkpoint_every": 1, "validation": 0}
    assert main(words(pictures, straight, **settings)) == 0
    kind, method, file = {
        "checkpoint": (training.JSONLog, "write", "checkpoint.pt"),  # the log comes before the checkpoint
        "weights": (RunFolder, "keep", "model/model.safetensors"),
    }[fails]
    too_small, calls, full = (straight / file).stat().st_size - 1000, 0, ExitStack()
    before = getattr(kind, method)

    def fill(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            full.enter_context(files_up_to(too_small))
        before(*arguments)

    monkeypatch.setattr(kind, method, fill)
    with full:
        assert main(words(pictures, run, **settings)) == 2
    said = capsys.readouterr().err
    assert f"the {fails}" in said and "what stood there before is kept" in said and said.count("\n") == 1
    assert sorted(os.listdir(run)) == sorted(os.listdir(straight))
    load_model(run / "model")
    monkeypatch.undo()
    assert main(words(pictures, run, **settings, resume=True)) == 0
    assert_same(run, straight)


# ---- What comes afterwards ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gives a run with labels that has learned red from green."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = {"objective": "supervised", "steps": 30, "batch": 12, "lr": 3e-3, "validation": 0.25}
    assert main(words(pictures, folder, **settings)) == 0
    return folder


def test_evaluate_prints_and_stores_what_it_measures(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["evaluate", str(run), "--workers", "0"]) == 0
    numbers = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    untrained = numbers.pop("untrained")
    assert numbers == {"knn": 1.0, "linear": 1.0, "accuracy": 1.0, "photographs": 6}
    before, after = capsys.readouterr().out.split("; untrained ")
    assert before == "knn 100.0 %, linear 100.0 %, accuracy 100.0 %, of 6 photographs"
    assert after == f"knn {100 * untrained['knn']:.1f} %, linear {100 * untrained['linear']:.1f} %\n"


def test_evaluate_compares_with_the_first_weights_of_the_run(run: Path) -> None:
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    untrained = _untrained(load_model(run / "model"), config).state_dict()
    settings = config["settings"]
    sizes = {"sizes": tuple(settings["sizes"]), "image_size": 16, "patch_size": 4}
    first = form(Pretraining(Path(settings["data"]), run, **sizes)).build(0, settings["seed"])
    assert first.state_dict().keys() == untrained.keys()
    assert all(torch.equal(untrained[name], value) for name, value in first.state_dict().items())


def test_evaluate_of_a_run_without_labels_says_what_it_needs(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(pictures.rglob("*.png")):
        shutil.copy(path, flat / f"{number}.png")
    assert main(words(flat, tmp_path / "run", "ViT", sizes=["pool=cls"])) == 0
    assert load_model(tmp_path / "run" / "model").num_prefix_tokens == 1  # the class token of pool=cls
    assert main(["evaluate", str(tmp_path / "run"), "--workers", "0"]) == 2
    assert "--data FOLDER names another, with a sub-folder for each class" in capsys.readouterr().err


def test_evaluate_asks_about_pictures_that_were_kept_from_training(
    run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """In a folder where these, and only these, lie in the wrong class, no answer is right."""
    asked = LabelledPictures(pictures, 16, 0.25).loaders[1].dataset
    others = {"barns": "ponds", "ponds": "barns"}
    for path in pictures.rglob("*.png"):
        place = tmp_path / path.relative_to(pictures)
        place.parent.mkdir(exist_ok=True)
        shutil.copy(path, place)
    for path in (asked._path(number) for number in range(len(asked))):
        shutil.copy(pictures / others[path.parent.name] / path.name, tmp_path / path.relative_to(pictures))
    assert main(["evaluate", str(run), "--data", str(tmp_path), "--workers", "0"]) == 0
    assert capsys.readouterr().out.startswith("knn 0.0 %, linear 0.0 %, accuracy 0.0 %, of 6 photographs")


def test_explore_writes_one_page(
    run: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, page = pictures / "barns" / "0.png", tmp_path / "page.html"
    import timm

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: create(name, pretrained=False))
    for model in (str(run), str(run / "model"), "photos-vit", "vit_tiny_patch16_224"):
        page.unlink(missing_ok=True)
        assert main(["explore", str(picture), "--model", model, "--output", str(page)]) == 0
        assert "<main>" in page.read_text(encoding="utf-8")
        assert os.listdir(tmp_path) == ["page.html"]


def test_explore_makes_the_input_that_the_model_was_trained_on(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its size, and normalised by its own means: the course's, and 0.5 both for timm's tiny ViT."""
    import timm

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: create(name, pretrained=False))
    white = torch.ones(1, 3, 2, 2)
    for model, size, value in [
        (run, 16, 0.5 / 0.27),
        (run / "model", 16, 0.5 / 0.27),
        ("photos-vit", 64, 0.5 / 0.27),
        ("vit_tiny_patch16_224", 224, 1.0),
    ]:
        _, side, transform = cli._model_to_explore(str(model))
        assert side == size
        assert transform(white)[0, 0, 0, 0].item() == pytest.approx(value)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["explore", "no.png", "--model", "photos-vit"], "no.png cannot be read as a picture"),
        (["explore", "no.png", "--model", "nobody"], "'nobody' is no folder of a run"),
        (
            ["explore", "no.png", "--model", "vit_tiny_patch16_224"],
            "published weights of vit_tiny_patch16_224",
        ),
        (["evaluate", "."], "holds no run of vit-course pretrain"),
        (["export", "."], "holds no model that can be read"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_had_is_said(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
    assert not os.listdir(tmp_path)


@pytest.mark.skipif(
    not (find_spec("onnxscript") and find_spec("onnxruntime")), reason="needs the extra export"
)
def test_export_gives_the_same_logits(run: Path, tmp_path: Path) -> None:
    from vit_course.lab import onnx

    path = tmp_path / "model.onnx"
    assert main(["export", str(run), "--format", "onnx", "--output", str(path)]) == 0
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            onnx.run(path, images), load_model(run / "model")(images), rtol=0, atol=1e-5
        )


def test_lab_outside_a_clone_says_where_the_lessons_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "site-packages" / "vit_course" / "cli.py"))
    assert main(["lab"]) == 2
    repository = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"][
        "Repository"
    ]
    assert repository in capsys.readouterr().err


def test_the_commands_of_the_readme_are_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = re.findall(
        r"^(?:(?:accelerate launch|torchrun) --\S+ \d -m vit_course|vit-course) (.+)$",
        readme,
        re.MULTILINE,
    )
    assert len(lines) >= 7
    for line in lines:
        if line != "pretrain --help":
            command = cli.parse(shlex.split(line))
            if isinstance(command, Pretraining):
                form(command)


# ---- As a program ------------------------------------------------------------------------------------------


def program(arguments: list[str], **more: Any) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "vit_course", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        **more,
    )


def wait_for_step(run: Path, step: int) -> None:
    """Until the log has so many lines."""
    for _ in range(12000):
        if (run / "log.jsonl").exists() and len((run / "log.jsonl").read_bytes().splitlines()) >= step:
            return
        time.sleep(0.05)
    raise TimeoutError(f"no step {step} within ten minutes")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_a_program_that_is_stopped_goes_on(number: int, pictures: Path, tmp_path: Path) -> None:
    settings = {"steps": 60, "checkpoint_every": 2, "validation": 0, "workers": 2}
    with program(words(pictures, tmp_path / "run", **settings), start_new_session=True) as process:
        wait_for_step(tmp_path / "run", 5)
        os.killpg(process.pid, number) if number == signal.SIGINT else process.kill()
        said = process.communicate(timeout=60)[1]
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL), said
    if number == signal.SIGINT:
        assert said.count("\n") == 1 and "the same command with --resume goes on" in said
    done = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"]
    assert len(log(tmp_path / "run")) - 2 < done < 60
    assert main(words(pictures, tmp_path / "run", **settings | {"workers": 0}, resume=True)) == 0
    assert main(words(pictures, tmp_path / "straight", **settings | {"workers": 0})) == 0
    assert_same(tmp_path / "run", tmp_path / "straight")


@pytest.mark.soak
@pytest.mark.parametrize("objective", ["dino", "supervised"])
def test_ten_kills_at_random_moments_cost_nothing(objective: str, pictures: Path, tmp_path: Path) -> None:
    """Checkpoint and weights are written after every step: many kills hit that."""
    draws, halves, done = random.Random(0), 0, 0
    run, straight = tmp_path / "run", tmp_path / "straight"
    settings = {"objective": objective, "steps": 200, "checkpoint_every": 1, "evaluate_every": 50}
    for kill in range(10):
        with program(words(pictures, run, **settings, workers=1, resume=True)) as process:
            wait_for_step(run, done + draws.randint(1, 15))
            time.sleep(draws.uniform(0, 0.1))
            assert process.poll() is None, process.communicate()
            process.kill()
        halves += any(name.endswith(".part") for name in os.listdir(run))
        load_model(run / "model")
        before, done = done, torch.load(run / "checkpoint.pt", weights_only=True)["step"]
        assert done > before and len(log_of_whole_lines(run)) - done in (0, 1), f"kill {kill}"
    assert halves, "no kill hit the writing of a file"
    assert main(words(pictures, run, **settings, resume=True)) == 0
    assert main(words(pictures, straight, **settings)) == 0
    assert_same(run, straight)
    assert sorted(os.listdir(run)) == sorted(os.listdir(straight))


def log_of_whole_lines(run: Path) -> list[bytes]:
    return (run / "log.jsonl").read_bytes().split(b"\n")[:-1]


@pytest.mark.soak
def test_ten_thousand_pictures_and_fifty_broken_files(tmp_path: Path) -> None:
    """Three passes: no crash, every broken file named once, as much memory as after the first."""
    folder, run, broken = tmp_path / "photographs", tmp_path / "run", []
    for name, times in {"barns": 2, "ponds": 3}.items():
        (folder / name).mkdir(parents=True)
        write_pictures(folder / name, 5000, seed=times)
        broken += write_broken(folder / name, times)
    of_a_pass, memory = 9045 // 50, []
    settings = {"objective": "mpp", "steps": 3 * of_a_pass + 10, "batch": 50, "workers": 2}
    with program(words(folder, run, **settings, evaluate_every=of_a_pass)) as process:
        for number in (1, 2, 3):
            wait_for_step(run, number * of_a_pass + 5)
            memory.append(memory_of(process.pid))
        said = process.communicate(timeout=600)[1]
    assert process.returncode == 0, said
    assert [said.count(f"{path} cannot be read as a picture") for path in broken] == [1] * 50
    assert memory[-1] - memory[0] < 30_000, f"memory in kB in each pass: {memory}"
    assert len(log(run)) == settings["steps"]


def memory_of(process: int) -> int:
    """In kB, of a process and the workers that it started."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="utf-8").split()
    lines = [
        line
        for number in (process, *children)
        for line in Path(f"/proc/{number}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    ]
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def test_help_names_every_command(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    for name in ("pretrain", "evaluate", "explore", "export", "lab"):
        assert f"• {name}" in said
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts == {"vit-course": "vit_course.cli:main"}


# ---- Several processes -------------------------------------------------------------------------------------

# What `torchrun` and `accelerate launch` are, at a free port each: their own, 29500, may be taken by another
# training. The second starts several processes on GPUs only, so it is told that there are some.
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node"],
    "accelerate launch": [
        "accelerate.commands.launch",
        "--main_process_port=0",
        "--multi_gpu",
        "--num_processes",
    ],
}

# `python -m vit_course`, which writes down which pictures each process reads to train.
COUNTING = """
import os, sys
from pathlib import Path
from vit_course.cli import _untrained, main
from vit_course.lab.data import ImageFolderStream

read_one = ImageFolderStream._read

def read(self, position):
    if self.transform.__class__.__name__ != "CentreView":
        with open(f"{sys.argv[1]}.{os.environ['RANK']}", "a") as file:
            print(self._path(position).relative_to(self.root), file=file)
    return read_one(self, position)

ImageFolderStream._read = read
sys.exit(main(sys.argv[2:]))
"""


def launch(launcher: str, processes: int, program: list[str]) -> str:
    """What a program says on stderr that a launcher starts so many times."""
    module, *options = LAUNCHERS[launcher]
    done = subprocess.run(
        [sys.executable, "-m", module, *options, str(processes), *program],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def assert_trained_as_one(one: Path, many: Path) -> None:
    """Losses, right answers, and weights, in float32."""
    for ours, theirs in zip(log(one), log(many), strict=True):
        assert ours.keys() == theirs.keys()
        torch.testing.assert_close(list(theirs.values()), list(ours.values()), rtol=1e-5, atol=1e-5)
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (one, many))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        difference = (theirs[name] - tensor).abs()
        if name.endswith("qkv.bias"):  # that of keys has no gradient but for rounding, which AdamW scales up
            difference = difference.unflatten(0, (3, -1))[[0, 2]]
        assert difference.max() < 1e-5, name


needs_accelerate = pytest.mark.skipif(not find_spec("accelerate"), reason="needs the extra scale")


@pytest.mark.slow
@needs_accelerate
def test_two_processes_train_as_one(pictures: Path, tmp_path: Path) -> None:
    """Each reads and trains on half of every batch, and none on a picture of the other."""
    counting, read = tmp_path / "counting.py", tmp_path / "read"
    counting.write_text(COUNTING, encoding="utf-8")
    settings = {"device": "cpu", "batch": 8, "steps": 2}
    arguments = words(pictures, tmp_path / "two", **settings)
    launch("torchrun", 2, [str(counting), str(read), *arguments])
    assert main(words(pictures, tmp_path / "one", **settings)) == 0
    assert_trained_as_one(tmp_path / "one", tmp_path / "two")
    halves = [Path(f"{read}.{rank}").read_text(encoding="utf-8").split() for rank in (0, 1)]
    assert [len(half) for half in halves] == [8, 8] and len({*halves[0], *halves[1]}) == 16


@pytest.mark.soak
@needs_accelerate
@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("objective", ["dino", "es_vit", "supervised"])
def test_four_processes_train_as_one(objective: str, launcher: str, pictures: Path, tmp_path: Path) -> None:
    """Not MPP, whose corruption each process draws for its own part."""
    settings = {"objective": objective, "device": "cpu", "batch": 8, "steps": 10, "centring": "sinkhorn"}
    settings |= {"evaluate_every": 5, "accumulate": 2 if objective == "supervised" else 1}
    launch(launcher, 4, ["-m", "vit_course", *words(pictures, tmp_path / "four", **settings)])
    assert main(words(pictures, tmp_path / "one", **settings)) == 0
    assert_trained_as_one(tmp_path / "one", tmp_path / "four")


@needs_accelerate
def test_a_batch_that_processes_cannot_divide_is_refused() -> None:
    settings = Pretraining(Path("pictures"), Path("run"), batch=16)
    _require_shares(settings, 4)
    _require_shares(replace(settings, accumulate=2), 4)
    with pytest.raises(ValueError, match="a batch of 16 cannot be divided among 3 processes"):
        _require_shares(settings, 3)
    with pytest.raises(ValueError, match="a micro-batch of 4 cannot be divided among 8 processes"):
        _require_shares(replace(settings, accumulate=4), 8)


@needs_accelerate
def test_one_process_in_the_place_of_several_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `accelerate launch --num_processes 2` does on a computer without GPUs."""
    assert make_accelerator("cpu") is None
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert make_accelerator("cpu").num_processes == 1
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.warns(UserWarning, match="one process only.*torchrun starts several"):
        assert make_accelerator("cpu").num_processes == 1
