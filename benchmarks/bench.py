"""Speed and memory of the course's models beside the published libraries (`make bench`).

    python benchmarks/bench.py [--threads 1] [--rounds 15] [--quick] [--only NAME] [--save]

Every library gets a row for each way of multiplying float32 matrices, the same for all: exact float32, the faster products that
`torch.set_float32_matmul_precision("medium")` allows, and bfloat16 autocast. All models of a family are timed in turn, round after round,
so that a change of the machine's mood hits all of them; a ratio is the median over the rounds. With one thread the clock is the
process's own time, which other programs disturb little. Peak memory is measured in a fresh process per row.
"""

import argparse
import json
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vit_course.cait import CaiT
from vit_course.dino import DINO, DINOLoss, MultiCrop
from vit_course.lab.results import describe_machine
from vit_course.max_vit import MaxViT
from vit_course.vit import ViT
from vit_course.xcit import XCiT

OURS = "vit_course"
SAVED = Path(__file__).parent / "results" / "speed.md"
PACKAGES = ("torch", "torchvision", "timm", "vit-pytorch")


# --- What is compared ---------------------------------------------------------------------------------------------------------------


def published_sizes(dim: int) -> dict:
    """The sizes of ViT-Ti/16 (192) and ViT-S/16 (384), under the names that vit-pytorch has too."""
    return dict(
        image_size=224,
        patch_size=16,
        num_classes=1000,
        dim=dim,
        depth=12,
        heads=dim // 64,
        mlp_dim=4 * dim,
    )


def from_timm(name: str) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False)


def vit_of_torchvision(dim: int) -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(
        image_size=224,
        patch_size=16,
        num_layers=12,
        num_heads=dim // 64,
        hidden_dim=dim,
        mlp_dim=4 * dim,
    )


def vit_of_vit_pytorch(dim: int) -> nn.Module:
    from vit_pytorch import ViT as TheirViT

    return TheirViT(**published_sizes(dim))


def max_vit_of_torchvision() -> nn.Module:
    from torchvision.models import maxvit_t

    return maxvit_t()


class DinoStep(nn.Module):
    """A step of DINO but for the optimiser's part: draw two views of every image, ask student and teacher, move the teacher.

    parts: the modules behind `loss`. images -> loss. The views are the same in every call, so that losses can be compared.
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
    """One architecture in several libraries, ours among them, at one batch of square images."""

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
        """The model of one library. What starts at zero is drawn instead: a head of zeros would hide every error behind it."""
        torch.manual_seed(0)
        model = self.libraries[library]()
        for parameter in model.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.02)
        return model


# A later model of the course is one more entry here.
FAMILIES: dict[str, Family] = {
    "ViT-Ti/16": Family(
        {
            OURS: lambda: ViT(**published_sizes(192)),
            "timm": lambda: from_timm("vit_tiny_patch16_224"),
            "torchvision": lambda: vit_of_torchvision(192),
            "vit-pytorch": lambda: vit_of_vit_pytorch(192),
        }
    ),
    "ViT-S/16": Family(
        {
            OURS: lambda: ViT(**published_sizes(384)),
            "timm": lambda: from_timm("vit_small_patch16_224"),
            "torchvision": lambda: vit_of_torchvision(384),
            "vit-pytorch": lambda: vit_of_vit_pytorch(384),
        }
    ),
    "CaiT-XXS24": Family(
        {
            OURS: lambda: CaiT(**published_sizes(192) | {"depth": 24, "heads": 4}),
            "timm": lambda: from_timm("cait_xxs24_224"),
        }
    ),
    "XCiT-N12/16": Family(
        {
            OURS: lambda: XCiT(**published_sizes(128) | {"heads": 4}, tokens_norm=False),
            "timm": lambda: from_timm("xcit_nano_12_p16_224"),
        }
    ),
    "MaxViT-T": Family(
        {
            OURS: lambda: MaxViT(num_classes=1000, dim=64, depth=(2, 2, 5, 2)),
            "torchvision": max_vit_of_torchvision,
            "timm": lambda: from_timm("maxvit_tiny_tf_224"),
        },
        batch=2,
    ),
    "DINO step": Family({OURS: dino_step, "vit-pytorch": dino_step_of_vit_pytorch}, batch=64, image_size=32),
}


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


# --- How it is measured -------------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """What was measured of one library under one precision."""

    family: str
    library: str
    precision: str
    images_per_second: dict[str, float]  # for each kind of work
    ours_is_faster: dict[str, float]  # how many times as fast ours is, for each kind of work
    error: float  # of the logits, beside the same model in float32
    megabytes: dict[str, float] | None  # peak, for each kind of work


def measure_times(
    family: Family, rounds: int, clock: Callable[[], float], bar: tqdm
) -> dict[tuple[str, str, str], list[float]]:
    """Seconds of every round for each (library, precision, work), all of them in turn in every round."""
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
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1])


def peak_megabytes(family: Family, library: str, precision: str) -> dict[str, float]:
    """Growth of this process's memory at its peak, for each kind of work, over what the model and the images take."""
    model, images = family.build(library), family.images()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before, peaks = memory_in_kilobytes("VmRSS"), {}
    with PRECISIONS[precision]():
        for work, do in WORK.items():  # from the lighter to the heavier: the peak only grows
            do(model, images)
            do(model, images)
            peaks[work] = (memory_in_kilobytes("VmHWM") - before) / 1024
    return peaks


def in_fresh_process(family: str, library: str, precision: str, threads: int) -> dict[str, float] | None:
    """`peak_megabytes` in a process of its own; None on systems without Linux's /proc."""
    if not Path("/proc/self/clear_refs").exists():
        return None
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
    return json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    )


def measure(name: str, rounds: int, threads: int, memory: bool) -> list[Row]:
    """All rows of one family."""
    family = FAMILIES[name]
    clock = time.process_time if threads == 1 else time.perf_counter
    kinds = [(library, precision) for precision in PRECISIONS for library in family.libraries]
    with tqdm(total=(rounds + 1 + 1) * len(kinds), desc=name) as bar:
        times = measure_times(family, rounds, clock, bar)
        rows = []
        for library, precision in kinds:
            speed, faster = {}, {}
            for work in WORK:
                theirs, ours = times[library, precision, work], times[OURS, precision, work]
                speed[work] = family.batch / median(theirs)
                faster[work] = median(a / b for a, b in zip(theirs, ours, strict=True))
            megabytes = in_fresh_process(name, library, precision, threads) if memory else None
            rows.append(
                Row(
                    name,
                    library,
                    precision,
                    speed,
                    faster,
                    logit_error(family, library, precision),
                    megabytes,
                )
            )
            bar.update()
    return rows


# --- How it is shown ----------------------------------------------------------------------------------------------------------------


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table that reads well as plain text too."""
    head = ["model", "library", "precision", "error"]
    for work in WORK:
        head += [f"{work}, images/s", "ours ×", "peak MB"]
    lines = [head]
    for row in rows:
        line = [row.family, row.library, row.precision, f"{row.error:.0e}" if row.error else "0"]
        for work in WORK:
            peak = f"{row.megabytes[work]:.0f}" if row.megabytes else "–"
            line += [f"{row.images_per_second[work]:.1f}", f"{row.ours_is_faster[work]:.2f}", peak]
        lines.append(line)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def report(rows: list[Row], rounds: int, threads: int) -> str:
    """The table with what a reader needs to judge it."""
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    clock = "process time" if threads == 1 else "wall-clock time"
    batches = ", ".join(
        f"{FAMILIES[name].batch} for {name}" for name in dict.fromkeys(row.family for row in rows)
    )
    return f"""# Speed beside the published libraries

{date.today().isoformat()}, {describe_machine()["cpu"]}, {platform.system()}, Python {platform.python_version()}, {packages}.
{threads} thread(s), {clock}, batches of {batches}, median of {rounds} interleaved rounds. Made by `make bench`.

{table(rows)}

*ours ×*: how many times as fast ours is under the same switch, the median over the rounds; above 1 ours is faster. *error*: how far the
logits move from those of the same model in plain float32, relative to their size. *peak MB*: growth of resident memory over the loaded
model, in a fresh process.
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
    parser.add_argument("--only", choices=FAMILIES, metavar="NAME", help=f"one family: {', '.join(FAMILIES)}")
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
    names = [options.only] if options.only else list(FAMILIES)[:1] if options.quick else list(FAMILIES)
    text = report(
        [row for name in names for row in measure(name, rounds, options.threads, not options.quick)],
        rounds,
        options.threads,
    )
    print(text)
    if options.save:
        SAVED.parent.mkdir(exist_ok=True)
        SAVED.write_text(text)


if __name__ == "__main__":
    main()
