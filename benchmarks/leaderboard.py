"""The leaderboard: every model of the lessons on the same tasks, with the same budget (`make results`).

    python benchmarks/leaderboard.py [--seeds 0 1 2]   only this table
    python benchmarks/leaderboard.py --step-costs      what a step of each model costs, for EQUAL_TIME

All models have about 240 thousand parameters, take pictures of 32 × 32 pixels and give ten logits: the same
networks stand in every column. Data, batch, schedule and number of steps are the same for all, but where
the time is; the learning rate of each model was chosen once, on validation scenes, among three.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
import torch.nn.functional as F
from calibrate_shapes import colour_histogram, grey, knn, without_mean
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tables import Table, Task, image_sets, make, summary
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vit_course.attention import record_attention
from vit_course.distillation import DistillationLoss
from vit_course.lab import catalogue, leaderboard, results
from vit_course.lab.data import normalise
from vit_course.training import augment, eval_mode, evaluate, fit

# --- The networks -------------------------------------------------------------------------------------------


def convolutions(widths: tuple[int, ...], strides: tuple[int, ...]) -> nn.Module:
    """3 × 3 convolutions with BatchNorm and ReLU, the maximum over the picture, one linear layer.

    Args:
        widths, strides: of each convolution.
    """
    layers: list[nn.Module] = []
    for before, after, stride in zip((3, *widths), widths, strides, strict=False):
        convolution = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))


def build(kind: type[nn.Module], entrant: catalogue.Entrant) -> nn.Module:
    """A network of the leaderboard."""
    return kind(**entrant.arguments())


VIT, CNN, DEIT = "ViT, convolutional stem", leaderboard.CNN, "DeiT"
MODELS: dict[str, Callable[[], nn.Module]] = {
    name: partial(build, row.kind, entrant)
    for row in catalogue.MODELS.values()
    for name, entrant in row.entrants.items()
} | {CNN: lambda: convolutions((16, 32, 64, 112, 144), (1, 2, 1, 2, 1))}

# --- One training -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Training:
    """One training, spelled out: all that changes its result, except the seed."""

    data: str
    model: str
    steps: int
    batch: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    crop: float = 1.0  # smallest share of the area that `augment` keeps
    rotation: float = 180.0
    flip: bool = True
    precision: str = "medium"  # of float32 products: see torch.set_float32_matmul_precision

    @property
    def name(self) -> str:
        return self.model

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], label_smoothing=self.label_smoothing)

    def train(self, seed: int, loss: Callable | None = None, validation: bool = False) -> tuple:
        """Train from this seed and test.

        Returns:
            The network, and its numbers.
        """
        torch.set_float32_matmul_precision(self.precision)
        train, test = image_sets(self.data, validation)

        def batches(generator: torch.Generator) -> tuple[Tensor, Tensor]:
            images, labels = train.sample(self.batch, generator)
            turned = dict(scale=(self.crop, 1.0), rotation=self.rotation, flip=self.flip)
            return augment(normalise(images), **turned, generator=generator), labels

        torch.manual_seed(seed)
        model = MODELS[self.model]()
        start = time.process_time()
        history = fit(
            model,
            batches,
            loss or self.loss,
            self.steps,
            lr=self.lr,
            weight_decay=self.weight_decay,
            seed=seed,
        )
        core_s = time.process_time() - start
        accuracy = evaluate(model, ((normalise(images), labels) for images, labels in test.batches()))
        return model, {
            "accuracy": accuracy,
            "core_s": core_s,
            "parameters": count_parameters(model),
            "loss": mean(history["loss"][-50:]),
        }

    def run(self, seed: int) -> dict[str, float]:
        """Train from this seed and test."""
        return self.train(seed)[1]


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@dataclass(frozen=True)
class Entry(Training):
    """One training of the leaderboard.

    A model with a teacher learns from it too, half from the labels and half from its answers (hard
    distillation). The teacher is trained from the same seed, and what that costs is a number of its own.
    """

    task: str = ""  # the column
    teacher: "Entry | None" = None
    validation: bool = False

    def run(self, seed: int) -> dict[str, float]:
        """Train from this seed and test; with a teacher there is its price too, "teacher_core_s"."""
        if self.teacher is None:
            return _trained(self, seed)[1]
        teacher, of_teacher = _trained(self.teacher, seed)
        loss = DistillationLoss(teacher, kind="hard")
        numbers = self.train(seed, loss, self.validation)[1]
        return numbers | {
            "teacher_core_s": of_teacher["core_s"],
            "teacher_accuracy": of_teacher["accuracy"],
        }


@cache
def _trained(entry: Entry, seed: int) -> tuple:
    """A network with its numbers, kept: the CNN of a column is the teacher of the next row."""
    model, numbers = entry.train(seed, validation=entry.validation)
    return model if entry.model == CNN else None, numbers


# --- What they have to beat ---------------------------------------------------------------------------------


def nearest_neighbours(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    return knn(train, train_labels, test, test_labels) / 100


def logistic_regression(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
    return model.fit(train.numpy(), train_labels.numpy()).score(test.numpy(), test_labels.numpy())


BASELINES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[..., float]]] = {
    "grey pixels without their mean, nearest neighbours": (
        lambda images: without_mean(grey(images)),
        nearest_neighbours,
    ),
    "grey pixels, logistic regression": (grey, logistic_regression),
    "colour histogram, logistic regression": (colour_histogram, logistic_regression),
}
PIXELS, REGRESSION, COLOURS = BASELINES


@dataclass(frozen=True)
class Baseline:
    """A method that learns no representation, on all training images."""

    data: str
    name: str

    def run(self, seed: int) -> dict[str, float]:
        """Nothing is drawn at random here: the seed changes nothing."""
        describe, classify = BASELINES[self.name]
        train, test = image_sets(self.data)
        start = time.process_time()
        features = [
            torch.cat([describe(part) for part in images.images.split(500)]) for images in (train, test)
        ]
        accuracy = classify(features[0], train.labels, features[1], test.labels)
        return {"accuracy": accuracy, "core_s": time.process_time() - start}


@dataclass(frozen=True)
class BaselineEntry:
    """A baseline's row in a column of the leaderboard."""

    data: str
    task: str
    baseline: str

    @property
    def name(self) -> str:
        return {PIXELS: "neighbours", REGRESSION: "logistic regression"}[self.baseline]

    def run(self, seed: int) -> dict[str, float]:
        """Nothing is drawn at random here: the seed changes nothing."""
        return Baseline(self.data, self.baseline).run(seed)


# --- What they cost -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What a network takes, whatever it learns.

    Parameters; floating-point operations of one image (a multiplication and an addition are two), counted by
    PyTorch with the weights of attention computed one by one; milliseconds of process time for one image,
    in batches, median of the rounds, one thread; growth of resident memory at its peak in some steps of
    training, in megabytes, in a fresh process.
    """

    model: str
    data: str = "default"
    task: str = "cost"
    batch: int = 64
    rounds: int = 30
    precision: str = "medium"

    @property
    def name(self) -> str:
        return self.model

    @torch.no_grad()
    def run(self, seed: int) -> dict[str, float]:
        """Measure; the seed is that of the weights."""
        torch.set_float32_matmul_precision(self.precision)
        torch.manual_seed(seed)
        model = MODELS[self.model]()
        images = torch.randn(self.batch, 3, 32, 32)
        with eval_mode(model):
            recording = nullcontext() if self.model == CNN else record_attention(model)
            with recording, FlopCounterMode(display=False) as counter:
                model(images[:1])
            times = [process_time(lambda: model(images)) for _ in range(self.rounds + 3)][3:]
        numbers = {
            "parameters": count_parameters(model),
            "flops": counter.get_total_flops(),
            "ms": 1000 * median(times) / self.batch,
        }
        return numbers | peak_memory(self.model)


def process_time(do: Callable[[], object]) -> float:
    start = time.process_time()
    do()
    return time.process_time() - start


def peak_memory(model: str) -> dict[str, float]:
    """The "megabytes" of Cost; nothing on systems without Linux's /proc."""
    if not Path("/proc/self/clear_refs").exists():
        return {}
    command = [sys.executable, __file__, "--memory-of", model]
    answer = subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout
    return {"megabytes": json.loads(answer.splitlines()[-1])}


def memory_of_training(model: str) -> float:
    """Growth of this process's memory at its peak in three steps, over what network and images take."""
    from bench import memory_in_kilobytes

    entry = Entry("default", model, steps=3, teacher=Entry("default", CNN, 1) if model == DEIT else None)
    network, images = MODELS[model](), torch.randn(entry.batch, 3, 32, 32)
    labels = torch.arange(entry.batch) % 10
    loss = DistillationLoss(MODELS[CNN](), kind="hard") if model == DEIT else entry.loss
    # the peak starts again from what is resident now
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = memory_in_kilobytes("VmRSS")
    fit(network, [(images, labels)], loss, entry.steps, progress=False)
    return (memory_in_kilobytes("VmHWM") - before) / 1024


def step_costs(steps: int = 12, rounds: int = 3) -> dict[str, float]:
    """Process time of one step on default scenes, for each model: the median over rounds.

    All models are timed in turn, so that a machine that slows down slows all of them. A teacher answers in
    the step; its training is not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in MODELS}
    for _ in range(rounds + 1):
        for name, of_model in times.items():
            loss = DistillationLoss(MODELS[CNN](), kind="hard") if name == DEIT else None
            numbers = Training("default", name, steps).train(0, loss)[1]
            of_model.append(numbers["core_s"] / steps)
    return {name: median(of_model[1:]) for name, of_model in times.items()}


# --- The table ----------------------------------------------------------------------------------------------

# Each model's highest learning rate: the middle one of SWEPT, unless on validation scenes (the rows "learning
# rate", seed 0) another was better by more than two standard errors of the difference. None was. DeiT is the
# ViT's network and has its rate.
SWEPT, SWEEP_STEPS = (1e-3, 2e-3, 4e-3), 300
RATES = dict.fromkeys(MODELS, 2e-3)

SHAPES = dict(data="default", steps=800)
REACH = dict(data="reach", steps=800, rotation=0.0, flip=False)
DIGITS = dict(data="digits", steps=400, crop=0.7, rotation=15.0, flip=False)
# The steps of the CNN that take as long as those of the entrants.
EQUAL_TIME = {
    name: entrant.steps for row in catalogue.MODELS.values() for name, entrant in row.entrants.items()
} | {CNN: 400}


def entry(task: str, model: str, **recipe: Any) -> Entry:
    """A model's training in a column, with the model's learning rate and, for DeiT, its teacher."""
    steps = {"steps": EQUAL_TIME[model]} if task == "shapes, equal time" else {}
    teacher = entry(task, CNN, **recipe) if model == DEIT else None
    return Entry(**{"lr": RATES[model]} | recipe | steps, model=model, task=task, teacher=teacher)


@dataclass(frozen=True)
class Board(Table):
    """A table that is of use before it is whole: its first seed comes first."""

    def jobs(self, seeds: Sequence[int]) -> list[tuple[Task, int]]:
        first, *others = ([(task, seed) for task in self.several] for seed in seeds)
        return first + [(task, 0) for task in self.single] + [job for jobs in others for job in jobs]


COLUMNS = {"shapes": SHAPES, "reach": REACH, "digits": DIGITS, "shapes, equal time": SHAPES}
# The CNN first: it is DeiT's teacher.
ORDER = (CNN, DEIT, *(name for name in MODELS if name not in (CNN, DEIT)))
BOARD = Board(
    "The leaderboard: shapes, reach and digits",
    several=tuple(entry(task, name, **recipe) for task, recipe in COLUMNS.items() for name in ORDER),
    single=(
        *(
            BaselineEntry(recipe["data"], task, baseline)
            for task, recipe in COLUMNS.items()
            if task != "shapes, equal time"
            for baseline in (PIXELS, REGRESSION)
        ),
        *(Cost(name) for name in MODELS),
        # Is reach beyond a model, or does it learn it late?
        *(entry(leaderboard.LONGER, name, **REACH | {"steps": 4000}) for name in (VIT, "CaiT", CNN)),
        *(
            entry("learning rate", name, **SHAPES | {"steps": SWEEP_STEPS, "lr": lr, "validation": True})
            for name in ORDER
            if name != DEIT
            for lr in SWEPT
        ),
    ),
)
PATH = results.FOLDER / "leaderboard.json"


def main() -> None:
    parser = argparse.ArgumentParser(description="Compute the leaderboard; what is stored already is kept.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default 0 1 2")
    parser.add_argument("--step-costs", action="store_true", help="print what a step of each model costs")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # how this script starts itself
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory_of:
        print(json.dumps(memory_of_training(options.memory_of)))
    elif options.step_costs:
        for name, seconds in step_costs().items():
            print(f"{1000 * seconds:7.1f} ms  {name}")
    else:
        make(BOARD, PATH, options.seeds)
        print(summary("leaderboard"))


if __name__ == "__main__":
    main()
