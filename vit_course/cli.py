"""The command `vit-course`.

Each command is a dataclass: its fields are the options, its docstring is the help.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import metadata
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor, nn

from vit_course.lab import zoo
from vit_course.lab.data import normalise
from vit_course.lab.pretrain import (
    OBJECTIVES,
    LabelledPictures,
    Pretraining,
    RunFolder,
    load_model,
    pretrain,
)
from vit_course.lab.pretrain.folder import CONFIG
from vit_course.lab.pretrain.run import find_device, is_main
from vit_course.lab.pretrain.views import square
from vit_course.lab.writing import folder_beside, write_whole

DESCRIPTION = "Train on photographs; measure, explore and export the model; open the lessons."
STOPPED = 130  # what shells give for a program that Ctrl-C ended
REFUSED = 2


@dataclass(frozen=True)
class Evaluate:
    """Measure the backbone of a run by its nearest neighbours and by a linear layer.

    Photographs that were kept from training are named, by the backbone and by the same network before its
    training; the numbers go to evaluation.json in the run.

    Args:
        run: folder that `vit-course pretrain` wrote.
        data: folder of photographs whose sub-folders are classes, that of the run by default.
        batch: photographs at a time.
        workers: processes that read photographs ahead.
        device: auto, cpu, cuda …
        progress: whether to show bars in a terminal.
    """

    run: tyro.conf.Positional[Path]
    data: Path | None = None
    batch: int = 64
    workers: int = 2
    device: str = "auto"
    progress: bool = True


@dataclass(frozen=True)
class Explore:
    """Write the attention explorer of a picture as one HTML page, which needs no network.

    Args:
        picture: any picture file; its middle square is taken.
        model: folder of a run, folder of `save_pretrained`, name of a model of the zoo, or of timm: its
            published weights are then fetched over the network, once.
        output: the page.
        image_size: side of the picture in pixels; that of the model by default.
    """

    picture: tyro.conf.Positional[Path]
    model: str
    output: Path = Path("explorer.html")
    image_size: int | None = None


@dataclass(frozen=True)
class Export:
    """Write the model of a run for other programs, which need neither Python nor PyTorch.

    Args:
        run: folder that `vit-course pretrain` wrote, or one of `save_pretrained`.
        format: onnx.
        output: the file; model.onnx in the run by default.
    """

    run: tyro.conf.Positional[Path]
    format: Literal["onnx"] = "onnx"
    output: Path | None = None


@dataclass(frozen=True)
class Lab:
    """Open JupyterLab at your copies of the lessons."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: what follows its name; those of this program by default.

    Returns:
        The exit code: 0, 2 for what was refused in a sentence, 130 after Ctrl-C.

    Raises:
        SystemExit: for arguments that no command has, with code 2, and for --help, with code 0.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            command = parse(sys.argv[1:] if arguments is None else arguments)
            run = next(run for kind, run in COMMANDS.values() if isinstance(command, kind))
            run(command)
    except KeyboardInterrupt as stop:
        _say(str(stop) or "stopped")
        return STOPPED
    except (ValueError, TypeError, OSError, ImportError) as error:
        _say(str(error) or type(error).__name__)
        return REFUSED
    return 0


def parse(arguments: Sequence[str]) -> Any:
    """The command that arguments mean, an instance of one of the dataclasses of COMMANDS.

    Raises:
        SystemExit: as `main` does.
    """
    kinds = {name: kind for name, (kind, _) in COMMANDS.items()}
    return tyro.extras.subcommand_cli_from_dict(
        kinds, prog="vit-course", args=list(arguments), description=DESCRIPTION
    )


def _say(words: str) -> None:
    """One sentence on stderr, from the main process only."""
    if is_main():
        line = textwrap.shorten(" ".join(words.split()), 400, placeholder=" …")
        clear = "\r\033[K" if sys.stderr.isatty() else ""  # of a bar, which is drawn again below
        print(f"{clear}vit-course: {line}", file=sys.stderr)


def _warn(message: Any, *where: Any, **more: Any) -> None:
    """A warning as one line, without the place in our code that it comes from."""
    _say(f"warning: {message}")


def run_pretrain(settings: Pretraining) -> None:
    try:
        history = pretrain(replace(settings, progress=_shows_bars(settings.progress)))
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"{stop or 'stopped'}; the same command with --resume goes on") from None
    words = f"loss {history['loss'][-1]:.3f} after {len(history['loss'])} steps"
    if "validation_knn" in history:
        words += f", {100 * history['validation_knn'][-1]:.1f} % by nearest neighbours"
    if is_main():
        print(f"{words}; weights and log are in {settings.output}")


def _shows_bars(progress: bool) -> bool:
    """Whether bars are wanted and someone sees them: a file or a pipe gets none."""
    return progress and sys.stderr.isatty()


def run_evaluate(command: Evaluate) -> None:
    folder = RunFolder(command.run.expanduser())
    config = folder.config()
    settings = config["settings"]
    device = find_device(command.device)
    model = load_model(folder.weights)
    try:
        labelled = LabelledPictures(
            command.data or settings["data"],
            config["image_size"],
            settings["validation"],
            batch=command.batch,
            workers=command.workers,
            progress=_shows_bars(command.progress),
        )
    except ValueError as error:
        if command.data:
            raise
        raise ValueError(f"{error}; --data FOLDER names another, with a sub-folder for each class") from error
    pool = OBJECTIVES[settings["objective"]].pool
    numbers: dict[str, Any] = labelled.measure(model.to(device), pool)
    untrained = labelled.measure(_untrained(model, config).to(device), pool)
    stored = numbers | {"photographs": labelled.count, "untrained": untrained}
    write_whole(folder.path / "evaluation.json", json.dumps(stored, indent=1) + "\n")
    print(f"{_in_per_cent(numbers)}, of {labelled.count} photographs; untrained {_in_per_cent(untrained)}")


def _untrained(model: nn.Module, config: dict[str, Any]) -> nn.Module:
    """The network of a run as it was before the training, without a head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config["settings"]["seed"])
        return type(model)(**config["arguments"] | {"num_classes": 0})


def _in_per_cent(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {100 * share:.1f} %" for name, share in numbers.items())


def run_explore(command: Explore) -> None:
    from vit_course.lab.explorer import AttentionExplorer
    from vit_course.lab.report import check_page

    page = check_page(command.output)
    model, size, transform = _model_to_explore(command.model)
    image = _square(command.picture, command.image_size or size)
    explorer = AttentionExplorer(
        model, image, transform=transform, names=[command.picture.name], model_names=[command.model]
    )
    with folder_beside(page) as beside:
        explorer.to_html(beside / page.name).replace(page)
    print(f"Open in a browser: {page}")


def _square(picture: Path, size: int) -> Tensor:
    """The middle of a picture, (3, size, size) with values in 0..1."""
    from torchvision.transforms.v2.functional import pil_to_tensor

    from vit_course.lab.data.files import read_picture

    try:
        pixels = pil_to_tensor(read_picture(picture.expanduser()))
    except Exception as error:  # decoders raise whatever a broken file makes them stumble over
        raise ValueError(f"{picture} cannot be read as a picture: {error}") from error
    return square(pixels, size)


def _model_to_explore(name: str) -> tuple[nn.Module, int, Callable[[Tensor], Tensor]]:
    """A model, the side of its pictures, and what makes its input of pictures in 0..1."""
    folder = Path(name).expanduser()
    if (folder / CONFIG).is_file():
        return *_saved_model(folder), normalise
    if name in zoo.names():
        model = zoo.load(name)
        return model, _image_size(model), normalise
    return _timm_model(name)


def _saved_model(folder: Path) -> tuple[nn.Module, int]:
    """The model of a run, or of a folder of `save_pretrained`, and the side of its pictures."""
    run = RunFolder(folder)
    if run.weights.is_dir():
        return load_model(run.weights), run.config()["image_size"]
    model = load_model(folder)
    return model, _image_size(model)


def _timm_model(name: str) -> tuple[nn.Module, int, Callable[[Tensor], Tensor]]:
    """A model of timm with its published weights, and its own way to normalise."""
    import timm
    from torchvision.transforms.v2.functional import normalize

    from vit_course.lab.pretrained import adapt, from_timm

    if not timm.is_model(name.split(".")[0]):
        raise ValueError(
            f"model {name!r} is no folder of a run or of save_pretrained, none of the zoo "
            f"({', '.join(zoo.names())}), and no model of timm"
        )
    try:
        foreign = timm.create_model(name, pretrained=True)
    except Exception as error:  # every library on the way to a hub has errors of its own
        raise ConnectionError(f"the published weights of {name} could not be had: {error}") from error
    config = timm.data.resolve_model_data_config(foreign)
    try:
        model = adapt(foreign)
    except TypeError:
        model = from_timm(foreign)
    return (
        model.eval(),
        config["input_size"][-1],
        lambda images: normalize(images, config["mean"], config["std"]),
    )


def _image_size(model: Any) -> int:
    """The side of the pictures that a model is made for; a pyramid's is a multiple of its unit, about 224."""
    if hasattr(model, "grid"):
        return model.grid[0] * model.patch_size[0]
    return model.size_unit * max(1, round(224 / model.size_unit))


def run_export(command: Export) -> None:
    from vit_course.lab import onnx

    folder = command.run.expanduser()
    model, side = _saved_model(folder)
    images = torch.randn(2, 3, side, side)
    target = (command.output or folder / "model.onnx").expanduser()
    with folder_beside(target) as beside:
        onnx.export(model, beside / target.name, images)
        for file in beside.iterdir():
            file.replace(target.parent / file.name)
    print(f"{target}: images (b, 3, {side}, {side}) -> {'logits' if model.num_classes else 'features'}")


def run_lab(command: Lab) -> None:
    root = Path(__file__).parent.parent
    workspace = root / "tools" / "workspace.py"
    if not workspace.is_file() or not (root / "notebooks").is_dir():
        links = dict(link.split(", ", 1) for link in metadata("vit_course").get_all("Project-URL") or [])
        raise FileNotFoundError(
            "the lessons are not installed with the package: clone "
            f"{links.get('Repository', 'its repository')} and type `make lab` there"
        )
    subprocess.run([sys.executable, workspace], cwd=root, check=True)
    options = ["--ServerApp.root_dir=work", "--LabApp.default_url=/lab/tree/00_start_here.ipynb"]
    subprocess.run([sys.executable, "-m", "jupyterlab", "--ip=localhost", *options], cwd=root)


COMMANDS: dict[str, tuple[Any, Callable[[Any], None]]] = {
    "pretrain": (Pretraining, run_pretrain),
    "evaluate": (Evaluate, run_evaluate),
    "explore": (Explore, run_explore),
    "export": (Export, run_export),
    "lab": (Lab, run_lab),
}
