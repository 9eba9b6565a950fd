"""Speed and memory of the course's models beside the published libraries (`make bench`).

    python benchmarks/bench.py [--threads 1] [--rounds 15] [--quick] [--only NAME] [--save]

Which models and sizes there are, and who else has them, says the catalogue. Every library gets a row for each
way of multiplying float32 matrices, the same for all: exact float32, the faster products that
`torch.set_float32_matmul_precision("medium")` allows, and bfloat16 autocast. All models of a family are timed
in turn, round after round, so that a machine that slows down slows all of them; a ratio is the median over
the rounds. With one thread the clock is the process's own time, which other programs disturb little. Peak
memory is measured in a fresh process per row. How fast photographs are read and augmented stands in a table
of its own (`loading.py`).
"""

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import loading
import torch
from torch import Tensor, nn
from tqdm import tqdm

from vit_course.dino import DINO, DINOLoss, MultiCrop
from vit_course.lab import catalogue
from vit_course.lab.results import describe_machine
from vit_course.vit import ViT

OURS = "vit_course"
SAVED = Path(__file__).parent / "results" / "speed.md"
PACKAGES = ("torch", "torchvision", "timm", "vit-pytorch")


# --- What is compared ---------------------------------------------------------------------------------------


class DinoStep(nn.Module):
    """A step of DINO but for the optimiser's part: draw two views of every image, run student and teacher on
    them, move the teacher.

    Images (b, c, h, w) -> loss. The views are the same in every call, so that losses can be compared.

    Args:
        parts: the modules behind `loss`.
        loss: of the images.
        update_teacher: moves the teacher, in training only.
    """

    def __init__(
        self, parts: list[nn.Module], loss: Callable[[Tensor], Tensor], update_teacher: Callable[[], None]
    ) -> None:
        super().__init__()
        self.parts, self.loss, self.update_teacher = nn.ModuleList(parts), loss, update_teacher

    def forward(self, images: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            random.seed(0)  # torchvision's draws and vit-pytorch's
            loss = self.loss(images)
        if self.training:
            self.update_teacher()
        return loss


def dino_backbone() -> ViT:
    """One backbone for both libraries; vit-pytorch's reads features off its layer `head`."""
    return ViT(image_size=32, patch_size=4, num_classes=0, dim=128, depth=6, heads=2, mlp_dim=512)


def dino_step() -> nn.Module:
    """Ours, two global views: a draw of its own for each image."""
    model, loss = DINO(dino_backbone(), out_dim=1024, hidden_dim=256, bottleneck_dim=256), DINOLoss(1024)
    crop = MultiCrop(32, local_crops=0)
    return DinoStep(
        [model, loss], lambda images: loss(*model(crop(images))), lambda: model.update_teacher(0.99)
    )


def dino_step_of_vit_pytorch() -> nn.Module:
    """Theirs, two views for the student and two for the teacher: one draw for the whole batch."""
    from vit_pytorch import Dino

    head = dict(projection_hidden_size=256, num_classes_K=1024)
    model = Dino(dino_backbone(), image_size=32, hidden_layer="head", **head)
    return DinoStep([model], model, model.update_moving_average)


@dataclass(frozen=True)
class Family:
    """One architecture in several libraries, ours among them, at one batch of square images.

    Args:
        libraries: what makes the model of each, by the name of its distribution.
        batch: how many images.
        image_size: their sides in pixels.
    """

    libraries: dict[str, Callable[[], nn.Module]]
    batch: int = 8
    image_size: int = 224

    def images(self) -> Tensor:
        return torch.randn(
            self.batch,
            3,
            self.image_size,
            self.image_size,
            generator=torch.Generator().manual_seed(0),
        )

    def build(self, library: str) -> nn.Module:
        """The model of one library.

        What starts at zero is drawn instead: a head of zeros would hide every error behind it.
        """
        torch.manual_seed(0)
        model = self.libraries[library]()
        for parameter in model.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.02)
        return model


def families() -> dict[str, Family]:
    """The sizes that the catalogue wants timed, each with its twins; last a step of DINO."""
    found = {
        name: Family(
            {OURS: partial(row.kind, **size.sizes)}
            | {library: twin.make for library, twin in size.twins.items()},
            size.bench_batch,
            size.image_size,
        )
        for row in catalogue.MODELS.values()
        for name, size in row.published.items()
        if size.bench_batch
    }
    step = Family({OURS: dino_step, "vit-pytorch": dino_step_of_vit_pytorch}, batch=64, image_size=32)
    return found | {"DINO step": step}


FAMILIES = families()
LOADING = "photographs"  # the row beside the families: what is measured in `loading.py`


def is_installed(library: str) -> bool:
    """Whether it can be imported. vit-pytorch is installed by `make bench` only."""
    return find_spec(library.replace("-", "_")) is not None


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Products of float32 matrices, exact ('highest') or as fast as the machine can ('medium')."""
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


PRECISIONS: dict[str, Callable[[], AbstractContextManager]] = {
    "float32": lambda: float32_products("highest"),
    "float32 'medium'": lambda: float32_products("medium"),
    "bfloat16 autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def forward(model: nn.Module, images: Tensor) -> Tensor:
    """Logits, as in use: evaluation mode, no gradients."""
    model.eval()
    with torch.no_grad():
        return model(images)


def forward_backward(model: nn.Module, images: Tensor) -> None:
    """Logits and all gradients, as in training."""
    model.train()
    model.zero_grad()
    model(images).float().square().mean().backward()


WORK: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "forward": forward,
    "forward + backward": forward_backward,
}


# --- How it is measured -------------------------------------------------------------------------------------


@dataclass
class Row:
    """What was measured of one library under one precision.

    Args:
        family, library: what it was.
        precision: how it multiplied; "not installed" where the library is not there.
        images_per_second: for each kind of work.
        ours_is_faster: how many times as fast ours is, for each kind of work.
        error: of the logits, beside the same model in float32.
        megabytes: peak, for each kind of work.
    """

    family: str
    library: str
    precision: str
    images_per_second: dict[str, float] = field(default_factory=dict)
    ours_is_faster: dict[str, float] = field(default_factory=dict)
    error: float | None = None
    megabytes: dict[str, float] = field(default_factory=dict)


def measure_times(
    family: Family, rounds: int, clock: Callable[[], float], bar: tqdm
) -> dict[tuple[str, str, str], list[float]]:
    """Time every library in turn, round after round.

    Args:
        family: what is timed; all of its libraries are installed.
        rounds: how many are kept.
        clock: gives the time in seconds.
        bar: moves on with each library.

    Returns:
        The seconds of every round for each (library, precision, work).
    """
    images = family.images()
    models = {library: family.build(library) for library in family.libraries}
    times: dict[tuple[str, str, str], list[float]] = {}
    for round_ in range(-1, rounds):  # the first round warms up and is not kept
        for precision, switch in PRECISIONS.items():
            for library, model in models.items():
                with switch():
                    for work, do in WORK.items():
                        start = clock()
                        do(model, images)
                        if round_ >= 0:
                            times.setdefault((library, precision, work), []).append(clock() - start)
                bar.update()
    return times


def logit_error(family: Family, library: str, precision: str) -> float:
    """How far the logits are from those of the same model in float32, relative to their size."""
    model, images = family.build(library), family.images()
    reference = forward(model, images)
    with PRECISIONS[precision]():
        return ((forward(model, images).float() - reference).norm() / reference.norm()).item()


def memory_in_kilobytes(field: str) -> int:
    """VmRSS (now) or VmHWM (the peak) of this process, from Linux's /proc."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1])


def peak_megabytes(family: Family, library: str, precision: str) -> dict[str, float]:
    """Growth of this process's memory at its peak, over what the model and the images take.

    Args:
        family: of FAMILIES.
        library: one of the family's.
        precision: one of PRECISIONS.

    Returns:
        Megabytes for each kind of work.
    """
    model, images = family.build(library), family.images()
    Path("/proc/self/clear_refs").write_text(
        "5", encoding="utf-8"
    )  # the peak starts again from what is resident now
    before, peaks = memory_in_kilobytes("VmRSS"), {}
    with PRECISIONS[precision]():
        for work, do in WORK.items():  # from the lighter to the heavier: the peak only grows
            do(model, images)
            do(model, images)
            peaks[work] = (memory_in_kilobytes("VmHWM") - before) / 1024
    return peaks


def in_fresh_process(family: str, library: str, precision: str, threads: int) -> dict[str, float]:
    """`peak_megabytes` in a process of its own; nothing on systems without Linux's /proc."""
    if not Path("/proc/self/clear_refs").exists():
        return {}
    command = [
        sys.executable,
        __file__,
        "--threads",
        str(threads),
        "--memory-of",
        family,
        library,
        precision,
    ]
    answer = subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout
    return json.loads(answer.splitlines()[-1])


def measure(name: str, rounds: int, threads: int, memory: bool) -> list[Row]:
    """All rows of one family.

    Args:
        name: one of FAMILIES.
        rounds: interleaved rounds to take the median of.
        threads: CPU threads; with one the clock is the process's own time.
        memory: whether peak memory is measured too.
    """
    libraries = FAMILIES[name].libraries
    installed = {library: make for library, make in libraries.items() if is_installed(library)}
    family = replace(FAMILIES[name], libraries=installed)
    clock = time.process_time if threads == 1 else time.perf_counter
    kinds = [(library, precision) for precision in PRECISIONS for library in installed]
    with tqdm(total=(rounds + 1 + 1) * len(kinds), desc=name) as bar:
        times = measure_times(family, rounds, clock, bar)
        rows = []
        for library, precision in kinds:
            row = Row(name, library, precision, error=logit_error(family, library, precision))
            for work in WORK:
                theirs, ours = times[library, precision, work], times[OURS, precision, work]
                row.images_per_second[work] = family.batch / median(theirs)
                row.ours_is_faster[work] = median(a / b for a, b in zip(theirs, ours, strict=True))
            if memory:
                row.megabytes = in_fresh_process(name, library, precision, threads)
            rows.append(row)
            bar.update()
    return rows + [Row(name, library, "not installed") for library in libraries if library not in installed]


# --- How it is shown ----------------------------------------------------------------------------------------


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table that reads well as plain text too."""
    head = ["model", "library", "precision", "error"]
    for work in WORK:
        head += [f"{work}, images/s", "ours ×", "peak MB"]
    lines = [head]
    for row in rows:
        line = [row.family, row.library, row.precision, written(row.error, ".0e") if row.error != 0 else "0"]
        for work in WORK:
            line.append(written(row.images_per_second.get(work), ".1f"))
            line.append(written(row.ours_is_faster.get(work), ".2f"))
            line.append(written(row.megabytes.get(work), ".0f"))
        lines.append(line)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def written(number: float | None, form: str) -> str:
    """A number in a form, or a dash where nothing was measured."""
    return "–" if number is None else format(number, form)


def report(rows: list[Row], rounds: int, threads: int) -> str:
    """The table with what a reader needs to judge it."""
    packages = ", ".join(
        f"{name} {version(name)}" if is_installed(name) else f"{name} not installed" for name in PACKAGES
    )
    machine = describe_machine()
    clock = "process time" if threads == 1 else "wall-clock time"
    batches = ", ".join(
        f"{FAMILIES[name].batch} for {name}" for name in dict.fromkeys(row.family for row in rows)
    )
    return f"""# Speed beside the published libraries

{date.today().isoformat()}, {machine["cpu"]}, {machine["system"]}, Python {machine["python"]}, {packages}.
{threads} thread(s), {clock}, batches of {batches}, median of {rounds} interleaved rounds.
Made by `make bench`.

{table(rows)}

*ours ×*: how many times as fast ours is under the same switch, the median over the rounds; above 1 ours is
faster. *error*: how far the logits move from those of the same model in plain float32, relative to their
size. *peak MB*: growth of resident memory over the loaded model, in a fresh process.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Speed and memory of the course's models beside the published libraries."
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="CPU threads; with more than one the clock is the wall's (default 1)",
    )
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds (default 15)")
    choices = [*FAMILIES, LOADING]
    parser.add_argument("--only", choices=choices, metavar="NAME", help=f"one of {', '.join(choices)}")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="three rounds of the first family, no memory: does it still run?",
    )
    parser.add_argument(
        "--save",
        action="store_true",
        help=f"write the report to benchmarks/results/{SAVED.name} too",
    )
    parser.add_argument("--memory-of", nargs=3, help=argparse.SUPPRESS)  # how this script starts itself
    options = parser.parse_args()
    if options.save and (options.only or options.quick):
        parser.error("--save stores the whole table: leave out --only and --quick")
    torch.set_num_threads(options.threads)
    if options.memory_of:
        family, library, precision = options.memory_of
        print(json.dumps(peak_megabytes(FAMILIES[family], library, precision)))
        return

    rounds = 3 if options.quick else options.rounds
    names = [options.only] if options.only else choices[:1] if options.quick else choices
    families = [name for name in names if name != LOADING]
    rows = [row for name in families for row in measure(name, rounds, options.threads, not options.quick)]
    parts = [report(rows, rounds, options.threads)] if rows else []
    if LOADING in names:
        parts.append(loading.report(loading.measure(rounds)))
    text = "\n".join(parts)
    print(text)
    if options.save:
        SAVED.parent.mkdir(exist_ok=True)
        SAVED.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
