"""Exercises of lesson 14: settings for a batch, shares of processes, measuring while a model trains."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from vit_course.training import eval_mode

from .exercise import Exercise, Mistake

_generator = torch.Generator().manual_seed(14)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=_generator)


# ---- step 1: scaled ----------------------------------------------------------------------------------------


def scaled(batch: int) -> tuple[float, float]:
    """Learning rate and momentum of DINO's teacher for a batch, from those for 256 and 1,024 photographs.

    Args:
        batch: photographs of one step, of all processes and micro-batches together.
    """
    return 5e-4 * batch / 256, 0.996 ** (batch / 1024)


SCALED = Exercise(
    name="scaled",
    solution=scaled,
    cases=((32,), (256,), (4096,)),
    praise="The rate grows with the batch; the teacher forgets as fast as before, counted in photographs.",
    mistakes={
        "rate times batch": Mistake(
            lambda batch: (5e-4 * batch, scaled(batch)[1]),
            "5e-4 is for 256 photographs, not for one: divide by 256.",
        ),
        "the same base for both": Mistake(
            lambda batch: (scaled(batch)[0], 0.996 ** (batch / 256)),
            "The momentum .996 belongs to batches of 1,024, the rate to 256.",
        ),
        "rate of 1,024": Mistake(
            lambda batch: (5e-4 * batch / 1024, scaled(batch)[1]),
            "The rate 5e-4 belongs to batches of 256, the momentum to 1,024.",
        ),
        "momentum as it was": Mistake(
            lambda batch: (scaled(batch)[0], 0.996),
            "You left the momentum at .996. With small batches the teacher then forgets after far fewer "
            "photographs.",
        ),
        "momentum times the share": Mistake(
            lambda batch: (scaled(batch)[0], 0.996 * batch / 1024),
            "A momentum is multiplied once a step, so the share of the batch is an exponent: "
            "0.996 ** (batch / 1024).",
        ),
        "distance from one": Mistake(
            lambda batch: (scaled(batch)[0], 1 - 0.004 * batch / 1024),
            "1 - .004 · batch / 1,024 is the first term only: near for small batches, wrong for large ones. "
            "Take the power.",
        ),
        "power the wrong way": Mistake(
            lambda batch: (scaled(batch)[0], 0.996 ** (1024 / batch)),
            "The exponent is upside down: a smaller batch makes more steps, so each forgets less.",
        ),
        "square root": Mistake(
            lambda batch: (5e-4 * (batch / 256) ** 0.5, scaled(batch)[1]),
            "The root is a rule that others use; DINO's authors scale in proportion to the batch.",
        ),
        "rate upside down": Mistake(
            lambda batch: (5e-4 * 256 / batch, scaled(batch)[1]),
            "The rate is upside down: it grows with the batch.",
        ),
        "whole divisions": Mistake(
            lambda batch: (5e-4 * (batch // 256), 0.996 ** (batch // 1024)),
            "`//` rounds down, to 0 for small batches. Divide with `/`.",
        ),
        "changed places": Mistake(
            lambda batch: scaled(batch)[::-1],
            "The two changed places: the rate comes first.",
        ),
    },
)


# ---- step 2: own_share -------------------------------------------------------------------------------------


def own_share(batch: Tensor, index: int, count: int) -> Tensor:
    """The rows of a batch (b, …) that belong to process `index` of `count`: b / count of them, in order."""
    rows = len(batch) // count
    return batch[index * rows : (index + 1) * rows]


OWN_SHARE = Exercise(
    name="own_share",
    solution=own_share,
    cases=((_random(6, 2), 1, 2), (_random(8, 3), 0, 4), (_random(8, 3), 3, 4)),
    praise="Every row belongs to exactly one process, and each knows its own without asking.",
    mistakes={
        "the whole batch": Mistake(
            lambda batch, index, count: batch,
            "Each process would draw the same batch: twice the work for nothing. Keep b / count rows.",
        ),
        "always the first": Mistake(
            lambda batch, index, count: batch[: len(batch) // count],
            "Every process takes the first rows: `index` says where its own begin.",
        ),
        "rows instead of shares": Mistake(
            lambda batch, index, count: batch[index : index + len(batch) // count],
            "Process `index` begins at row index · b / count: your shares overlap.",
        ),
        "counted from one": Mistake(
            lambda batch, index, count: own_share(batch, (index - 1) % count, count),
            "Processes are counted from 0.",
        ),
        "mixed": Mistake(
            lambda batch, index, count: batch[index::count],
            "Every count-th row is a partition too, and as good for the mean. The course keeps rows that "
            "follow each other, so that the shares put together are the batch in its order.",
        ),
        "count rows": Mistake(
            lambda batch, index, count: batch[index * count : (index + 1) * count],
            "You took `count` rows; a share has b / count.",
        ),
        "to the end": Mistake(
            lambda batch, index, count: batch[index * (len(batch) // count) :],
            "Your share begins at the right row but runs to the end: keep b / count rows.",
        ),
        "one row": Mistake(
            lambda batch, index, count: batch[index],
            "This is one row. A share has b / count of them, and keeps the first axis.",
        ),
    },
)


# ---- step 3: MeasureEvery ----------------------------------------------------------------------------------


class MeasureEvery:
    """A callback of `fit` that measures the model every so many steps.

    Args:
        measure: of a model, gives a number.
        every: steps between two measurements.
    """

    def __init__(self, measure: Callable[[nn.Module], float], every: int) -> None:
        self.measure, self.every = measure, every

    def after_step(self, run: Any) -> None:
        """Measure in evaluation mode, and record the number and the steps that are done."""
        if run.finished % self.every == 0:
            with eval_mode(run.model), torch.no_grad():
                number = self.measure(run.model)
            run.record({"knn": number, "knn_step": run.finished})


def _trained_and_watched(kind: Callable[..., Any], case: tuple[int, int]) -> Any:
    """What a callback records in a run of so many steps, (numbers,), with the modes that it meets and leaves.

    The model is `weight = finished`, so the number that is measured says when.
    """
    every, steps = case
    layer, frozen = nn.Linear(1, 1, bias=False), nn.Dropout().eval()
    model = nn.Sequential(layer, frozen)
    modes: list[float] = []
    history: dict[str, list[float]] = {"knn": [], "knn_step": []}

    def measure(measured: Any) -> float:
        modes.append(float(measured.training) + 2.0 * torch.is_grad_enabled())
        return measured[0].weight.item()

    def record(numbers: dict[str, float]) -> None:
        for name, number in numbers.items():
            history[name].append(float(number))

    callback = kind(measure, every)
    run = SimpleNamespace(model=model, step=0, finished=0, steps=steps, record=record, history=history)
    with torch.enable_grad():
        for step in range(steps):
            run.step, run.finished = step, step + 1
            with torch.no_grad():
                layer.weight.fill_(float(step + 1))
            callback.after_step(run)
    if not modes:
        return None  # nothing was measured: a stub
    return (
        torch.tensor(history["knn"]),
        torch.tensor(history["knn_step"]),
        torch.tensor(modes),
        torch.tensor([float(part.training) for part in model.modules()]),
    )


_trained_and_watched.methods = ("after_step",)  # type: ignore[attr-defined]


class _ByStep(MeasureEvery):
    def after_step(self, run: Any) -> None:
        if run.step % self.every == 0:
            with eval_mode(run.model), torch.no_grad():
                run.record({"knn": self.measure(run.model), "knn_step": run.finished})


class _NumbersSteps(MeasureEvery):
    def after_step(self, run: Any) -> None:
        if run.finished % self.every == 0:
            with eval_mode(run.model), torch.no_grad():
                run.record({"knn": self.measure(run.model), "knn_step": run.step})


class _InTraining(MeasureEvery):
    def after_step(self, run: Any) -> None:
        if run.finished % self.every == 0:
            with torch.no_grad():
                run.record({"knn": self.measure(run.model), "knn_step": run.finished})


class _LeftInEvaluation(MeasureEvery):
    def after_step(self, run: Any) -> None:
        if run.finished % self.every == 0:
            with torch.no_grad():
                run.record({"knn": self.measure(run.model.eval()), "knn_step": run.finished})


class _WithGradients(MeasureEvery):
    def after_step(self, run: Any) -> None:
        if run.finished % self.every == 0:
            with eval_mode(run.model):
                run.record({"knn": self.measure(run.model), "knn_step": run.finished})


class _AllInTraining(MeasureEvery):
    def after_step(self, run: Any) -> None:
        if run.finished % self.every == 0:
            with torch.no_grad():
                run.record({"knn": self.measure(run.model.eval()), "knn_step": run.finished})
            run.model.train()


class _Returned(MeasureEvery):
    def after_step(self, run: Any) -> Any:
        if run.finished % self.every == 0:
            with eval_mode(run.model), torch.no_grad():
                return {"knn": self.measure(run.model), "knn_step": run.finished}


class _NoStep(MeasureEvery):
    def after_step(self, run: Any) -> None:
        if run.finished % self.every == 0:
            with eval_mode(run.model), torch.no_grad():
                run.record({"knn": self.measure(run.model)})


class _Once(MeasureEvery):
    def after_step(self, run: Any) -> None:
        if run.finished == self.every:
            super().after_step(run)


class _NumbersEvery(MeasureEvery):
    def after_step(self, run: Any) -> None:
        if run.finished % self.every == 0:
            with eval_mode(run.model), torch.no_grad():
                run.record({"knn": self.measure(run.model), "knn_step": self.every})


class _OneEarly(MeasureEvery):
    def after_step(self, run: Any) -> None:
        if (run.finished + 1) % self.every == 0:
            with eval_mode(run.model), torch.no_grad():
                run.record({"knn": self.measure(run.model), "knn_step": run.finished})


class _EveryStep(MeasureEvery):
    def after_step(self, run: Any) -> None:
        with eval_mode(run.model), torch.no_grad():
            run.record({"knn": self.measure(run.model), "knn_step": run.finished})


MEASURE_EVERY = Exercise(
    name="MeasureEvery",
    solution=MeasureEvery,
    calls=_trained_and_watched,
    cases=((3, 9), (2, 4)),
    praise="Measured in evaluation mode, without gradients, and the model goes on training as it was.",
    mistakes={
        "by the number of the step": Mistake(
            _ByStep,
            "`run.step` counts from 0, so you measure after the first step, the fourth … Ask for "
            "`run.finished`, the steps that are done.",
        ),
        "step recorded from zero": Mistake(
            _NumbersSteps, "Record `run.finished`: `run.step` counts from 0, so the curve is one step off."
        ),
        "in training mode": Mistake(
            _InTraining, "The model is measured in training mode, with dropout: use eval_mode(run.model)."
        ),
        "left in evaluation mode": Mistake(
            _LeftInEvaluation,
            "After .eval() the model trains on without dropout. eval_mode(run.model) gives back the mode.",
        ),
        "with gradients": Mistake(
            _WithGradients, "Measure under torch.no_grad(): the graph of all photographs fills the memory."
        ),
        "all parts in training mode": Mistake(
            _AllInTraining,
            ".train() switches on what was off before too, such as a frozen part. eval_mode(run.model) gives "
            "every part the mode that it had.",
        ),
        "returned": Mistake(
            _Returned, "You return the numbers, which `fit` does not look at: hand them to run.record(…)."
        ),
        "without the step": Mistake(_NoStep, 'Record "knn_step" too, or nobody knows when it was measured.'),
        "only once": Mistake(_Once, "You measure once, after `every` steps: take a multiple, with %."),
        "interval recorded": Mistake(
            _NumbersEvery, "You recorded `self.every` as the step, always the same: record `run.finished`."
        ),
        "one step early": Mistake(
            _OneEarly, "You measure a step too early: `run.finished` counts from 1 already."
        ),
        "at every step": Mistake(_EveryStep, "You measure after every step: only every `every`-th."),
    },
)


# ---- practice ----------------------------------------------------------------------------------------------


def whole_center(means: Tensor, counts: Tensor) -> Tensor:
    """The mean over all rows, of the means (p, k) of processes that had so many rows (p,)."""
    return (means * counts[:, None]).sum(dim=0) / counts.sum()


WHOLE_CENTER = Exercise(
    name="whole_center",
    solution=whole_center,
    cases=((_random(3, 4), torch.tensor([8, 8, 2])), (_random(2, 5), torch.tensor([6, 1]))),
    praise="Every row counts once, whichever process had it.",
    mistakes={
        "mean of means": Mistake(
            lambda means, counts: means.mean(dim=0),
            "This is the mean of the means: a row of the small process counts more than one of the others. "
            "Weigh each process by its rows.",
        ),
        "not divided": Mistake(
            lambda means, counts: (means * counts[:, None]).sum(dim=0),
            "This is the sum of all rows: divide by how many there are.",
        ),
        "divided by the processes": Mistake(
            lambda means, counts: (means * counts[:, None]).mean(dim=0),
            "Divide by the number of rows, not by that of the processes.",
        ),
        "means divided by rows": Mistake(
            lambda means, counts: means.sum(dim=0) / counts.sum(),
            "You divided a sum of means by rows: make each mean a sum first, times its count.",
        ),
        "the first process": Mistake(
            lambda means, counts: means[0], "This is the centre of process 0 alone: nothing was reduced."
        ),
        "weights the wrong way": Mistake(
            lambda means, counts: (means / counts[:, None]).sum(dim=0) / (1 / counts).sum(),
            "The weights are upside down: many rows weigh more, not less.",
        ),
    },
)


def translated(pictures: int, epochs: int, batch: int, accumulate: int, count: int) -> tuple[int, int]:
    """Steps that `fit` is given, and photographs of each loader's batch, for a recipe in epochs.

    Args:
        pictures: in the folder.
        epochs: of the recipe.
        batch: photographs of one step, of all processes and micro-batches together.
        accumulate: micro-batches of a step.
        count: of processes.
    """
    return epochs * (pictures // batch), batch // (accumulate * count)


TRANSLATED = Exercise(
    name="translated",
    solution=translated,
    cases=((1000, 10, 64, 2, 4), (1_281_167, 100, 1024, 1, 16), (450, 3, 32, 4, 1)),
    praise="A step is a step of the optimiser, whatever it took to collect its gradients.",
    mistakes={
        "steps are micro-batches": Mistake(
            lambda pictures, epochs, batch, accumulate, count: (
                epochs * (pictures // batch) * accumulate,
                batch // (accumulate * count),
            ),
            "`fit` counts steps of the optimiser, not micro-batches: accumulate does not change them.",
        ),
        "steps of a process": Mistake(
            lambda pictures, epochs, batch, accumulate, count: (
                epochs * (pictures // (batch // (accumulate * count))),
                batch // (accumulate * count),
            ),
            "You divided the folder by a process's own batch, but the processes share the folder: divide by "
            "the whole batch.",
        ),
        "the whole batch in each": Mistake(
            lambda pictures, epochs, batch, accumulate, count: (epochs * (pictures // batch), batch),
            "Each process would load the whole batch for each micro-batch: divide it.",
        ),
        "processes forgotten": Mistake(
            lambda pictures, epochs, batch, accumulate, count: (
                epochs * (pictures // batch),
                batch // accumulate,
            ),
            "The micro-batch is divided among the processes too.",
        ),
        "micro-batches forgotten": Mistake(
            lambda pictures, epochs, batch, accumulate, count: (
                epochs * (pictures // batch),
                batch // count,
            ),
            "A process's share of the step comes in micro-batches: divide by accumulate too.",
        ),
        "epochs run together": Mistake(
            lambda pictures, epochs, batch, accumulate, count: (
                epochs * pictures // batch,
                batch // (accumulate * count),
            ),
            "Every epoch leaves its own last batch out: round down before you multiply by the epochs.",
        ),
        "one epoch": Mistake(
            lambda pictures, epochs, batch, accumulate, count: (
                pictures // batch,
                batch // (accumulate * count),
            ),
            "These are the steps of one epoch.",
        ),
        "steps divided": Mistake(
            lambda pictures, epochs, batch, accumulate, count: (
                epochs * (pictures // batch) // (accumulate * count),
                batch // (accumulate * count),
            ),
            "`batch` holds all processes and micro-batches already: they change no number of steps.",
        ),
        "changed places": Mistake(
            lambda pictures, epochs, batch, accumulate, count: translated(
                pictures, epochs, batch, accumulate, count
            )[::-1],
            "The two changed places: the steps come first.",
        ),
        "the last batch counted": Mistake(
            lambda pictures, epochs, batch, accumulate, count: (
                epochs * -(-pictures // batch),
                batch // (accumulate * count),
            ),
            "The shuffled loader leaves a last, smaller batch out: round down.",
        ),
    },
)


def artefacts(tokens: Tensor, times: float) -> Tensor:
    """Which tokens (b, n, d) are more than so many times as long as their picture's median token, (b, n)."""
    norms = tokens.norm(dim=-1)
    return norms > times * norms.median(dim=1, keepdim=True).values


def _tokens() -> Tensor:
    tokens = _random(3, 7, 4) * torch.tensor([1.0, 5.0, 1.0])[:, None, None]
    tokens[0, 2] *= 12
    tokens[1, [0, 4]] *= 9
    tokens[2, 6] *= 4
    return tokens


def _tokens_with_an_even_one() -> Tensor:
    """One token is 2.5 times as long as the others, but the sum of its entries five times as large."""
    tokens = torch.eye(4)[[0, 1, 2, 3, 0, 1, 2]]
    tokens[4] = 1.25
    return tokens[None]


ARTEFACTS = Exercise(
    name="artefacts",
    solution=artefacts,
    cases=((_tokens(), 3.0), (_tokens(), 2.0), (_tokens_with_an_even_one(), 3.0)),
    praise="The median does not move for a few long tokens; the mean would hide them.",
    mistakes={
        "mean": Mistake(
            lambda tokens, times: tokens.norm(dim=-1) > times * tokens.norm(dim=-1).mean(dim=1, keepdim=True),
            "You compared with the mean, which the long tokens themselves lift. Take the median.",
        ),
        "median of the batch": Mistake(
            lambda tokens, times: tokens.norm(dim=-1) > times * tokens.norm(dim=-1).median(),
            "The median is of each picture, not of the whole batch: dim=1.",
        ),
        "over the pictures": Mistake(
            lambda tokens, times: tokens.norm(dim=-1) > times * tokens.norm(dim=-1).median(dim=0).values,
            "The median ran over the pictures of the batch. Use dim=1, the tokens.",
        ),
        "short ones": Mistake(
            lambda tokens, times: (
                tokens.norm(dim=-1) < times * tokens.norm(dim=-1).median(dim=1, keepdim=True).values
            ),
            "You marked the usual tokens: the comparison is the wrong way round.",
        ),
        "largest entry": Mistake(
            lambda tokens, times: (
                tokens.abs().amax(dim=-1)
                > times * tokens.abs().amax(dim=-1).median(dim=1, keepdim=True).values
            ),
            "The length of a token is its norm, not its largest entry.",
        ),
        "sum of sizes": Mistake(
            lambda tokens, times: (
                tokens.abs().sum(dim=-1) > times * tokens.abs().sum(dim=-1).median(dim=1, keepdim=True).values
            ),
            "The length of a token is the root of its summed squares, not the sum of its sizes.",
        ),
        "times alone": Mistake(
            lambda tokens, times: tokens.norm(dim=-1) > times,
            "You compared with `times` itself: it counts medians.",
        ),
        "added": Mistake(
            lambda tokens, times: (
                tokens.norm(dim=-1) > times + tokens.norm(dim=-1).median(dim=1, keepdim=True).values
            ),
            "You added `times` to the median: multiply.",
        ),
        "squares": Mistake(
            lambda tokens, times: (
                tokens.square().sum(dim=-1)
                > times * tokens.square().sum(dim=-1).median(dim=1, keepdim=True).values
            ),
            "You compared squared lengths, so √times would be enough: take the root.",
        ),
    },
)


EXERCISES: list[Exercise] = [SCALED, OWN_SHARE, MEASURE_EVERY, WHOLE_CENTER, TRANSLATED, ARTEFACTS]
