"""Training.

A training run ends and reports a number: is the number true?

Made from notebooks/04_training.ipynb by `make export`: read and edit the lesson, not this file.
"""

import importlib.util
import json
import math
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import count
from multiprocessing import resource_tracker
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vit_course.patching import require_at_least, require_between, require_images

__all__ = [
    "cosine_schedule",
    "eval_mode",
    "evaluate",
    "paired_difference",
    "augment",
    "Run",
    "fit",
    "Validation",
    "JSONLog",
    "TensorBoard",
]


def cosine_schedule(step: int, steps: int, start: float, end: float = 0.0, warmup: int = 0) -> float:
    """A value that climbs linearly to `start`, then falls (or rises) along half a cosine towards `end`.

    Args:
        step: 0 … steps - 1.
        steps: length of the whole run.
        start: the value after the warm-up.
        end: the value that the cosine would reach at step `steps`.
        warmup: how many of the steps climb, (step + 1) / warmup of the way.

    Returns:
        The value at this step.

    Raises:
        ValueError: for a step outside the run, or a warm-up that fills it.

    Source:
        Loshchilov and Hutter 2016, SGDR, eq. 5.

    Built in lesson 04.
    """
    require_at_least(1, steps=steps)
    require_between(0, steps - 1, step=step, warmup=warmup)
    require_between(-math.inf, math.inf, start=start, end=end)
    if step < warmup:
        return float(start * (step + 1) / warmup)
    progress = (step - warmup) / (steps - warmup)
    return float(end + (start - end) * (1 + math.cos(math.pi * progress)) / 2)


def _decay_groups(*modules: nn.Module) -> list[dict]:
    """Two groups: weight decay pulls on the matrices and kernels of layers, which are called `weight`.

    What is added or scales is left alone: biases, norms, class tokens, positions, learned temperatures.
    """
    groups: list[dict] = [{"params": [], "is_decayed": True}, {"params": [], "is_decayed": False}]
    names = {parameter: name for module in modules for name, parameter in module.named_parameters()}
    for parameter, name in names.items():
        if parameter.requires_grad:
            is_decayed = parameter.ndim > 1 and "weight" in name
            groups[0 if is_decayed else 1]["params"].append(parameter)
    return groups


@contextmanager
def _modes_kept(model: nn.Module) -> Iterator[None]:
    """Give every part of a model back the mode it had, training or evaluation, whatever happens."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {model!r}")
    modes = {part: part.training for part in model.modules()}
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[torch.device]:
    """Put every part of a model into evaluation mode; afterwards each part has the mode it had.

    Args:
        model: any module.

    Yields:
        The device of its first parameter, the CPU where it has none.

    Raises:
        TypeError: for anything but a module.

    Built in lesson 04.
    """
    with _modes_kept(model):
        model.eval()
        yield _device(model)


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The share of images that a model names right, with dropout off and without gradients.

    Args:
        model: images (b, c, h, w) -> logits (b, classes).
        batches: pairs of images (b, c, h, w) and labels (b,).

    Returns:
        A share in 0 … 1.

    Raises:
        ValueError: where there are no images, for shapes that do not fit, and for logits that are NaN.

    Built in lesson 04.
    """
    right = seen = 0
    with eval_mode(model) as device:
        for batch in batches:
            if (
                not isinstance(batch, tuple | list)
                or len(batch) != 2
                or not all(isinstance(part, Tensor) for part in batch)
            ):
                raise TypeError(f"evaluate needs pairs of images and labels, got {batch!r}"[:200])
            logits, labels = model(batch[0].to(device)), batch[1].to(device)
            if logits.ndim != 2 or labels.shape != logits.shape[:1] or labels.is_floating_point():
                shapes = f"{tuple(logits.shape)} and {tuple(labels.shape)} of {labels.dtype}"
                raise ValueError(f"evaluate needs logits (b, classes) and whole labels (b,), got {shapes}")
            if spoilt := logits.isnan().any(dim=1).sum().item():
                raise ValueError(
                    f"{spoilt} of {len(logits)} images got logits that are NaN, after {seen} images"
                )
            right += (logits.argmax(dim=1) == labels).sum().item()
            seen += len(labels)
    if not seen:
        raise ValueError("evaluate was given no images")
    return right / seen


def paired_difference(first: Tensor, second: Tensor) -> tuple[float, float]:
    """How much more often one model is right than another on the same pictures, and how sure that is.

    It says nothing about other seeds: two trainings of one model differ too.

    Args:
        first: booleans (n,), on which pictures the first model is right.
        second: those of the second model, in the same order.

    Returns:
        The difference of the two accuracies, in -1 … 1, and the half width of its 95 % interval (normal
        approximation).

    Raises:
        ValueError: for anything but two rows of booleans of one length.

    Built in lesson 04.
    """
    for right in (first, second):
        if right.dtype != torch.bool or right.ndim != 1 or right.shape != first.shape or not len(right):
            raise ValueError(
                f"paired_difference needs two rows of booleans of one length, got {tuple(first.shape)} of "
                f"{first.dtype} and {tuple(second.shape)} of {second.dtype}"
            )
    differences = first.double() - second.double()
    return differences.mean().item(), 1.96 * differences.std(correction=0).item() / len(first) ** 0.5


def augment(
    images: Tensor,
    *,
    scale: tuple[float, float] = (0.6, 1.0),
    rotation: float = 180.0,
    flip: bool = True,
    size: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A random crop, turned and mirrored, of every image: one draw per image, all in one affine resampling.

    Args:
        images: (b, c, h, w).
        scale: smallest and largest share of the area that a crop keeps.
        rotation: largest turn in degrees, either way.
        flip: mirror half of the images.
        size: side of the result in pixels, that of the images by default.
        generator: source of the draws.

    Returns:
        Images (b, c, size, size) or (b, c, h, w) in the type of `images`, computed in float32 at least.

    Raises:
        ValueError: for a scale outside 0 … 1 or in the wrong order.

    Built in lesson 04.
    """
    require_images(images)
    if not isinstance(scale, tuple | list) or len(scale) != 2:
        raise TypeError(f"scale must be a pair of shares, got {scale!r}")
    require_between(0, 1, smallest_scale=scale[0], largest_scale=scale[1])
    if not 0 < scale[0] <= scale[1]:
        raise ValueError(f"scale must be two shares 0 < smallest <= largest <= 1, got {scale}")
    require_between(0, 360, rotation=rotation)
    require_at_least(1, size=1 if size is None else size)
    if not isinstance(generator, torch.Generator | None):
        raise TypeError(f"generator must be a torch.Generator, got {generator!r}")
    b, c, height, width = images.shape

    def uniform(low: float | Tensor, high: float | Tensor) -> Tensor:
        return low + (high - low) * torch.rand(b, generator=generator, dtype=torch.float32)

    area = uniform(*scale)
    stretch = (-area.log()).clamp(max=math.log(1.25))  # no further than the crop fits into the image
    ratio = uniform(-stretch, stretch).exp()
    half_width, half_height = (area * ratio).sqrt(), (area / ratio).sqrt()
    shift_x, shift_y = uniform(-1, 1) * (1 - half_width), uniform(-1, 1) * (1 - half_height)
    angle = uniform(-1, 1) * math.radians(rotation)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0) if flip else 1.0
    cos, sin = angle.cos(), angle.sin()
    out = (height, width) if size is None else (size, size)
    aspect = out[1] / out[0]  # a turn is one in pixels, while the grid counts from -1 to 1 both ways
    corners = torch.stack(
        [
            torch.stack([half_width * cos * mirror, -half_width * sin / aspect, shift_x], dim=1),
            torch.stack([half_height * sin * mirror * aspect, half_height * cos, shift_y], dim=1),
        ],
        dim=1,
    )
    pixels = images.to(torch.promote_types(images.dtype, torch.float32))  # in bfloat16 a grid misses pixels
    grid = F.affine_grid(corners.to(pixels), [b, c, *out], align_corners=False)
    sampled = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return sampled.to(images.dtype)


class _Processes:
    """The processes that train a model together: this one alone, or those of an Accelerator."""

    def __init__(self, accelerator: Any = None) -> None:
        self.accelerator = accelerator
        self.count: int = accelerator.num_processes if accelerator is not None else 1
        self.index: int = accelerator.process_index if accelerator is not None else 0

    def own_seed(self, seed: int) -> int:
        """The seed for what a process draws by itself, such as dropout: in the main process the given one."""
        return seed + 1_000_003 * self.index

    def prepare(
        self, call: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The module on its device, and wrapped so that gradients become their mean over the processes."""
        if self.accelerator is None:
            return call, optimizer
        if self.count > 1 and self.accelerator.ddp_handler is None:
            # So a parameter may go without a gradient, as in one process; and gradients are always added
            # up in one order, which DDP otherwise changes after its first step: a resumed run rounds anew.
            from accelerate.utils import DistributedDataParallelKwargs

            self.accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)
        if self.count > 1 and self.accelerator.device.type == "cuda":  # SyncBatchNorm has no form for CPUs
            call = nn.SyncBatchNorm.convert_sync_batchnorm(call)
        return self.accelerator.prepare(call, optimizer)

    def shard(self, batches: Any) -> Any:
        """A DataLoader of which each process reads its own batches; anything else as it is."""
        if self.count == 1 or not isinstance(batches, DataLoader):
            return batches
        return self.accelerator.prepare_data_loader(batches)

    def share(self, batch: Any) -> Any:
        """This process's slice of every tensor of a whole batch."""
        return batch if self.count == 1 else _map_tensors(self._slice, batch)

    def _slice(self, tensor: Tensor) -> Tensor:
        if tensor.ndim == 0:
            return tensor
        rows, rest = divmod(len(tensor), self.count)
        if rest or not rows:
            raise ValueError(
                f"a batch of {len(tensor)} cannot be divided among {self.count} processes: got a tensor of "
                f"shape {tuple(tensor.shape)}"
            )
        return tensor[self.index * rows : (self.index + 1) * rows]

    def backward(self, value: Tensor) -> None:
        if self.accelerator is None:
            value.backward()
        else:
            self.accelerator.backward(value)

    def unreduced(self, call: nn.Module) -> AbstractContextManager:
        """While open, each process adds up gradients by itself."""
        return nullcontext() if self.accelerator is None else self.accelerator.no_sync(call)

    def mean(self, own: Tensor) -> Tensor:
        """The mean over the processes of a tensor."""
        return own if self.count == 1 else self.accelerator.reduce(own, "mean")

    def mean_numbers(self, own: dict[str, float]) -> dict[str, float]:
        """The mean over the processes of each number."""
        if self.count == 1:
            return own
        values = torch.tensor(list(own.values()), dtype=torch.float64, device=self.accelerator.device)
        return dict(zip(own, self.mean(values).tolist(), strict=True))

    def any(self, is_so: bool) -> bool:
        """Whether it is so in one of the processes."""
        return self.mean_numbers({"": float(is_so)})[""] > 0

    def gather(self, own: Any) -> list:
        """An object of each process, in order."""
        if self.count == 1:
            return [own]
        from accelerate.utils import gather_object  # here, so that whoever trains alone does not need it

        return gather_object([own])

    def in_main(self, function: Callable[[], Any]) -> Any:
        """What a function gives in the main process. What it raises there is raised in all."""
        if self.count == 1:
            return function()
        from accelerate.utils import broadcast_object_list

        outcome: list[Any] = [None, None]
        if self.index == 0:
            try:
                outcome[0] = function()
            except Exception as raised:
                outcome[1] = raised
        result, error = broadcast_object_list(outcome)
        if error is not None:
            raise error
        return result


def _map_tensors(function: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """The batch with its tensors replaced, those in tuples, lists and dictionaries included."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, dict):
        return {key: _map_tensors(function, part) for key, part in batch.items()}
    if isinstance(batch, tuple | list):
        parts = [_map_tensors(function, part) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)  # a named tuple
    return batch


def _as_schedule(
    name: str, rate: float | Callable[[int], float], of_number: Callable[[float, int], float]
) -> Callable[[int], float]:
    """A rate as a function of the step: the caller's own, or `of_number` where the caller gave a number.

    It gives plain floats, checked at every step: a checkpoint with NumPy's numbers could not be read back.
    """
    if not callable(rate):
        require_between(0, math.inf, **{name: rate})

    def checked(step: int) -> float:
        value: Any = rate(step) if callable(rate) else of_number(rate, step)
        number = value.item() if hasattr(value, "item") else value
        require_between(0, math.inf, **{f"{name} at step {step}": number})
        if number == math.inf:
            raise ValueError(f"{name} at step {step} must be finite, got {number}")
        return float(number)

    return checked


def _set_rates(optimizer: torch.optim.Optimizer, learning_rate: float, decay: float) -> None:
    """Set the learning rate of all groups, and the weight decay of those that decay."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
        group["weight_decay"] = decay if group["is_decayed"] else 0.0


class _Stream:
    """Batches without end, this process's part of them, and what it takes to draw them again."""

    def __init__(self, batches: Callable | Iterable, seed: int, processes: _Processes) -> None:
        self.batches, self.seed, self.processes = batches, seed, processes
        self.generator = torch.Generator().manual_seed(seed)
        if isinstance(batches, DataLoader):
            batches._iterator = None  # persistent workers would go on from the random state of another run
        self.sampler: Any = getattr(batches, "sampler", None)
        self.is_lent_a_generator = getattr(self.sampler, "generator", ...) is None
        self.shards = processes.shard(batches)  # puts a generator into a sampler that has none
        self.first_states = self._own_states()
        self.draws = self._draw()

    def close(self) -> None:
        """Give the loader back as it was."""
        if self.is_lent_a_generator:
            self.sampler.generator = None

    def _draw(self) -> Iterator:
        """Call the function, or go through the iterable again and again, each time from a seed of its own.

        An iterable draws from a random state of its own, so that a loader may read ahead.
        """
        while callable(self.batches):
            yield self.processes.share(self.batches(self.generator))
        end = object()
        for epoch in count():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.processes.own_seed(self.seed + epoch))
                with _interrupts_kept_from_workers(self.shards):
                    iterator = iter(self.shards)
                batch = next(iterator, end)  # a DataLoader draws its order with the first batch, not before
                state = torch.get_rng_state()
            if batch is end:
                raise ValueError(
                    f"batches gave nothing in pass {epoch + 1}: give a function, a DataLoader or a list, not "
                    f"an iterator"
                )
            while batch is not end:
                yield batch if self.shards is not self.batches else self.processes.share(batch)
                with torch.random.fork_rng(devices=[]):
                    torch.set_rng_state(state)
                    batch = next(iterator, end)
                    state = torch.get_rng_state()

    def draw(self, batches: int) -> list:
        """The next so many batches. A draw that fails leaves the random states as they were."""
        before = self.generator.get_state(), _get_random_state()
        try:
            return [next(self.draws) for _ in range(batches)]
        except Exception:
            self.generator.set_state(before[0])
            _set_random_state(before[1])
            raise

    def state_dict(self) -> dict[str, Any]:
        own = self._own_states() if callable(self.batches) else self.first_states
        return {"generator": self.generator.get_state(), "own_generators": own}

    def _own_states(self) -> list[Tensor]:
        return [generator.get_state() for generator in _own_generators(self.batches)]

    def load_state_dict(self, state: dict[str, Any], drawn: int) -> None:
        """Go on behind `drawn` batches. The order of an iterable cannot be loaded, so it is drawn again."""
        own = _own_generators(self.batches)
        self.first_states = state.get("own_generators", self.first_states)  # an older file has none
        if len(own) != len(self.first_states):
            raise ValueError(
                f"the batches of the stopped run had {len(self.first_states)} generators of their own, these "
                f"have {len(own)}: their order cannot be drawn again"
            )
        for generator, saved in zip(own, self.first_states, strict=True):
            generator.set_state(saved)
        for _ in range(0 if callable(self.batches) else drawn):
            next(self.draws)
        self.generator.set_state(state["generator"])


def _own_generators(batches: Callable | Iterable) -> list[torch.Generator]:
    """The generators that batches bring themselves: those of a DataLoader, its samplers and its data set."""
    sampler, batch_sampler, dataset = (
        getattr(batches, name, None) for name in ("sampler", "batch_sampler", "dataset")
    )
    parts = [batches, sampler, batch_sampler, getattr(batch_sampler, "sampler", None), dataset]
    generators = [getattr(part, "generator", None) for part in parts]
    return list(dict.fromkeys(found for found in generators if isinstance(found, torch.Generator)))


@contextmanager
def _training_mode(model: nn.Module) -> Iterator[None]:
    """Put a model that is wholly in evaluation mode into training mode, for a while.

    A part in evaluation mode inside a model in training was put there by its user: it stays.
    """
    with _modes_kept(model):
        if not any(part.training for part in model.modules()):
            model.train()
        yield


def _get_random_state() -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def _set_random_state(state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state[1:])


def _loss_and_numbers(result: Tensor | tuple[Tensor, dict]) -> tuple[Tensor, dict[str, float]]:
    """What a loss function gave, as a scalar tensor and a dictionary of plain numbers, the loss first."""
    value, numbers = result if isinstance(result, tuple) and len(result) == 2 else (result, {})
    if (
        not isinstance(value, Tensor)
        or value.numel() != 1
        or not value.requires_grad
        or not isinstance(numbers, dict)
    ):
        raise TypeError(
            f"loss must give a scalar tensor with a gradient, or that and a dictionary of numbers, got "
            f"{result!r}"
        )
    return value, {"loss": value.item()} | {name: float(number) for name, number in numbers.items()}


@dataclass
class Run:
    """A training, as its callbacks see it.

    Args:
        model: the model that is trained.
        loss: its loss, a function or a module.
        optimizer: AdamW; each of its `param_groups` says whether it "is_decayed".
        steps: length of the whole run.
        step: number of the step that runs, from 0; in `on_start` that of the first one to come.
        finished: how many steps are done, those before a resume included.
        history: the numbers recorded so far, in lists under their names.
        is_main: of several processes, whether this is the one that writes files.

    Built in lesson 04.
    """

    model: nn.Module
    loss: Callable
    optimizer: torch.optim.Optimizer
    steps: int
    step: int = 0
    finished: int = 0
    history: dict[str, list[float]] = field(default_factory=dict)
    is_main: bool = True

    def record(self, numbers: dict[str, Any]) -> None:
        """Append numbers to the history, as plain floats, which a checkpoint can hold.

        Args:
            numbers: plain, NumPy's, or tensors of one element, under their names.
        """
        for name, number in numbers.items():
            self.history.setdefault(name, []).append(float(number))


def _modules(model: nn.Module, loss: Callable) -> list[nn.Module]:
    """Whatever can hold parameters."""
    return [model, loss] if isinstance(loss, nn.Module) else [model]


def _trained(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _require_finite_loss(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise ValueError(
            f"the loss was {loss} at step {step}: look at the batch, or try a smaller learning rate"
        )


def _require_finite_gradients(run: Run) -> None:
    """Refuse a gradient that is not finite, naming the step and the parameter, before the weights move."""
    gradients = [parameter.grad for parameter in _trained(run.optimizer) if parameter.grad is not None]
    device = _device(run.model)
    total = sum(gradient.sum().to(device) for gradient in gradients)  # a NaN or an inf never leaves a sum
    if math.isfinite(total):
        return
    for module in _modules(run.model, run.loss):
        for name, parameter in module.named_parameters():
            if parameter.grad is not None and not parameter.grad.isfinite().all():
                raise ValueError(
                    f"the gradient of {name} was not finite at step {run.step}, though the loss was: no "
                    f"weight was moved"
                )


class _LossCall(nn.Module):
    """A model and its loss in one module, batch -> what the loss gives.

    An Accelerator wraps this module. So the loss is handed the model itself, with all its parts, and its own
    parameters are trained like the model's.
    """

    def __init__(self, model: nn.Module, loss: Callable, precision: str | None) -> None:
        super().__init__()
        self.model, self.loss, self.precision = model, loss, precision

    def forward(self, batch: Any) -> Any:
        with self._cast():
            return self.loss(self.model, batch)

    def _cast(self) -> AbstractContextManager:
        if self.precision is None:
            return nullcontext()
        return torch.autocast(_device(self.model).type, dtype=torch.bfloat16)


class _LossBuffers:
    """The state of a loss, DINO's centre for one, in a step of several micro-batches or processes.

    Each of them begins with the same state; at the end it is the mean of where they moved it.
    """

    def __init__(self, loss: Callable) -> None:
        buffers = loss.buffers() if isinstance(loss, nn.Module) else []
        self.buffers = [buffer for buffer in buffers if buffer.is_floating_point()]
        self.before = [buffer.clone() for buffer in self.buffers]
        self.moves = [torch.zeros_like(buffer) for buffer in self.buffers]

    def take_back(self) -> None:
        """Note how far a micro-batch moved the state, and set it back."""
        for buffer, before, moves in zip(self.buffers, self.before, self.moves, strict=True):
            moves += torch.where(buffer == before, 0, buffer - before)  # inf - inf is no number
            buffer.copy_(before)

    def move(self, micro_batches: int, processes: _Processes) -> None:
        if not self.buffers:
            return
        together = torch.cat([moves.flatten() for moves in self.moves])
        means = (processes.mean(together) / micro_batches).split([moves.numel() for moves in self.moves])
        for buffer, mean in zip(self.buffers, means, strict=True):
            buffer += mean.view_as(buffer)


def _accumulate(run: Run, call: nn.Module, batches: Sequence[Any], processes: _Processes) -> dict[str, float]:
    """Add up the gradients of a step's micro-batches, and give the means of their numbers."""
    run.optimizer.zero_grad()
    device = _device(run.model)
    numbers: dict[str, list[float]] = {}
    buffers = _LossBuffers(run.loss) if len(batches) > 1 or processes.count > 1 else None
    for index, batch in enumerate(batches):
        is_last = index == len(batches) - 1
        with nullcontext() if is_last else processes.unreduced(call):
            result = call(_map_tensors(lambda tensor: tensor.to(device), batch))
            value, of_batch = _loss_and_numbers(result)
            processes.backward(value / len(batches))
        for name, number in of_batch.items():
            numbers.setdefault(name, []).append(number)
        if buffers:
            buffers.take_back()
    if buffers:
        buffers.move(len(batches), processes)
    return processes.mean_numbers({name: fmean(of_name) for name, of_name in numbers.items()})


def _notify(callbacks: Sequence[Any], event: str, run: Run) -> None:
    """Call every callback that has a method for the event."""
    for callback in callbacks:
        if method := getattr(callback, event, None):
            method(run)


def fit(
    model: nn.Module,
    batches: Callable[[torch.Generator], Any] | Iterable,
    loss: Callable,
    steps: int,
    *,
    lr: float | Callable[[int], float] = 1e-3,
    weight_decay: float | Callable[[int], float] = 0.05,
    before_step: Callable[[int], Any] | None = None,
    after_step: Callable[[int], Any] | None = None,
    callbacks: Sequence[Any] = (),
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
    seed: int = 0,
    progress: bool = True,
    clip: float | None = None,
    precision: str | None = None,
    accumulate: int = 1,
    accelerator: Any = None,
) -> dict[str, list[float]]:
    """Train a model for a fixed number of steps with AdamW: the one training loop of the course.

    A model that is wholly in evaluation mode is trained in training mode. A part in evaluation mode inside a
    model in training stays as it is: its user froze it. Afterwards every part has the mode that it had.

    Args:
        model: the model; parameters that need no gradient are left alone.
        batches: a function of a torch.Generator that draws a batch, or an iterable of batches (a DataLoader)
            gone through again and again.
        loss: (model, batch) -> a scalar tensor, or that and a dictionary of numbers to record. A loss with
            state of its own is an nn.Module; its parameters are trained with those of the model.
        steps: length of the run.
        lr: the highest learning rate, reached after a warm-up over 5 % of the steps and followed by a cosine
            down to a hundredth of it; or a function of the step.
        weight_decay: of the matrices and kernels of layers; or a function of the step.
        before_step: called with the step when the gradients are there, before the weights move.
        after_step: called with the step after the weights moved.
        callbacks: objects with some of the methods on_start, before_step, after_step and on_end, each called
            with the `Run`. on_end comes after a finished run, a stop and an error alike.
        checkpoint: a file that is written every `checkpoint_every` steps, on Ctrl-C and at the end. It holds
            the model, the loss if it is a module, the optimiser, the history and the random states.
        checkpoint_every: a tenth of the run by default.
        resume: go on from that file if it is there; the weights come out the same as without the stop.
        seed: of the batches and of dropout; the caller's random state is left as it was.
        progress: show a bar.
        clip: the largest total norm of the gradients after `before_step`; above it they are scaled down.
        precision: "bf16" computes the loss under autocast, with products of matrices in bfloat16. Weights,
            gradients, optimiser and checkpoints stay what they are.
        accumulate: batches of one step. Their gradients are averaged before the weights move once, and so are
            their numbers. `steps`, rates and callbacks count steps, not batches. Floats in the buffers of a
            loss, such as DINO's centre, are the same for all batches of a step, and of all processes, and
            then move once, by the mean. What looks at a whole batch (BatchNorm, Sinkhorn, KoLeo) sees one of
            them at a time.
        accelerator: an `accelerate.Accelerator`, to train on its device, with all its processes. Each holds
            the whole model; every gradient and every number is the mean over the processes. A batch that a
            function draws, or a list holds, is the whole one: all draw it, and each keeps its slice. A
            DataLoader is sharded by Accelerate: each process reads batches of its own, of the loader's size
            unless the accelerator splits them. Callbacks are called in every process, with the model itself.
            The main one writes the checkpoint, which all must be able to read. Dropout differs from process
            to process. BatchNorm becomes SyncBatchNorm on GPUs (untested); on a CPU each process takes the
            statistics of its own part. Between two runs, `accelerator.free_memory()` lets go of the first.

    Returns:
        The history: a number for each step under "loss", "lr" and the names that the loss gave, and what the
        callbacks recorded.

    Raises:
        ValueError: for a loss, a gradient or a rate that is not finite, naming the step; for a checkpoint of
            another run, or one that cannot be written, before the training.
        KeyboardInterrupt: after Ctrl-C, when the step is done and the checkpoint is written.

    Source:
        Loshchilov and Hutter 2017, Decoupled weight decay regularization.

    Built in lesson 04.
    """
    _require_settings(loss, steps, seed, clip)
    _require_scale(precision, accumulate, accelerator)
    learning_rate = _as_schedule(
        "lr", lr, lambda peak, step: cosine_schedule(step, steps, peak, peak / 100, warmup=steps // 20)
    )
    decay = _as_schedule("weight_decay", weight_decay, lambda constant, step: constant)
    path = _checkpoint_path(checkpoint, checkpoint_every, resume)
    callbacks = [_StepFunctions(before_step, after_step), *_in_order(_require_callbacks(callbacks))]
    processes = _Processes(accelerator)

    with _training_mode(model), torch.random.fork_rng(), _Interrupts(processes) as interrupts:
        torch.manual_seed(seed)
        stream = _Stream(batches, seed, processes)
        torch.manual_seed(processes.own_seed(seed))
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(_decay_groups(*_modules(model, loss)))
        call, optimizer = processes.prepare(_LossCall(model, loss, precision), optimizer)
        run = Run(model, loss, optimizer, steps, is_main=processes.index == 0)
        saver = None
        if path:
            every = checkpoint_every or max(1, steps // 10)
            saver = _Checkpoint(path, every, {"seed": seed, "accumulate": accumulate}, stream)
            saver.start(run, resume)
            callbacks.append(saver)
        if progress and run.is_main:
            callbacks.append(_Progress())
        _notify(callbacks, "on_start", run)
        try:
            for step, drawn in interrupts.until_pressed(stream, range(run.finished, steps), accumulate):
                run.step = step
                _set_rates(optimizer, learning_rate(step), decay(step))
                numbers = _accumulate(run, call, drawn, processes)
                _require_finite_loss(numbers["loss"], step)
                _notify(callbacks, "before_step", run)
                _require_finite_gradients(run)
                if clip is not None:
                    nn.utils.clip_grad_norm_(_trained(optimizer), clip)
                optimizer.step()
                run.finished = step + 1
                run.record(numbers | {"lr": optimizer.param_groups[0]["lr"]})
                _notify(callbacks, "after_step", run)
            interrupts.stop(run, saver)
        finally:
            stream.close()
            _notify(callbacks, "on_end", run)
    return run.history


def _checkpoint_path(checkpoint: str | Path | None, every: int | None, resume: bool) -> Path | None:
    """The file to write to, if any."""
    require_at_least(1, checkpoint_every=1 if every is None else every)
    if resume and checkpoint is None:
        raise ValueError("resume=True needs the checkpoint to resume from")
    path = None if checkpoint is None else Path(checkpoint).expanduser()
    if path and os.path.isdir(path):
        raise ValueError(f"checkpoint must be a file, got the folder {path}")
    return path


@contextmanager
def _written_beside(path: Path, state: dict) -> Iterator[Path]:
    """A temporary file beside `path` that holds the state and can be read back; it is gone afterwards."""
    temporary = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            torch.save(state, file)
        torch.load(temporary, weights_only=True, mmap=True)
        yield temporary
    except RuntimeError as error:
        # torch speaks of positions in the file; what happened is the error behind it
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
    except pickle.UnpicklingError as error:
        raise ValueError(f"what this run would write to {path} cannot be read back: {error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _write_checkpoint(path: Path, state: dict) -> None:
    """Write to a temporary name, then move: a kill leaves the old checkpoint or the new one, never a half."""
    with _written_beside(path, state) as temporary:
        os.replace(temporary, path)


def _read_checkpoint(path: Path, settings: dict[str, int]) -> dict:
    """What a checkpoint of this run holds."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        state.setdefault("accumulate", 1)  # an older file has none
        others = {name: state[name] for name, value in settings.items() if state[name] != value}
    except Exception as error:  # whatever torch.load and pickle make of another file
        raise ValueError(f"{path} is not a checkpoint that fit wrote: {error}") from error
    if others:
        theirs, ours = (
            ", ".join(f"{name}={values[name]}" for name in others) for values in (state, settings)
        )
        raise ValueError(f"{path} is of a run with {theirs}; this one has {ours}")
    return state


def _require_finite_weights(run: Run) -> None:
    """Refuse to save what no training could go on from. Buffers may hold inf: masks do."""
    for module in _modules(run.model, run.loss):
        trained = [(name, weight) for name, weight in module.named_parameters() if weight.requires_grad]
        spoilt = [name for name, weight in trained if not weight.isfinite().all()]
        spoilt += [name for name, buffer in module.named_buffers() if buffer.isnan().any()]
        if spoilt:
            raise ValueError(
                f"{spoilt[0]} is not finite after step {run.step}: no checkpoint is written of it"
            )


class _Checkpoint:
    """The file that a run is written to, every so many steps and at the end, and goes on from."""

    def __init__(self, path: Path, every: int, settings: dict[str, int], stream: _Stream) -> None:
        self.path, self.every, self.settings, self.stream = path, every, settings, stream
        self.processes = stream.processes

    def start(self, run: Run, resume: bool) -> None:
        """Try whether the file can be written; load one that is there to resume."""
        self.processes.in_main(lambda: self._try_to_write(run))
        if resume and self.processes.in_main(self.path.exists):
            self._load(run)

    def _try_to_write(self, run: Run) -> None:
        """Write what a checkpoint would hold, leaving nothing behind."""
        missing = [folder for folder in self.path.parents if not os.path.exists(folder)]
        try:
            with _written_beside(self.path, self._state(run, [_get_random_state()])):
                pass
        except OSError as error:
            raise ValueError(f"checkpoint {self.path} cannot be written: {error}") from error
        finally:
            for folder in missing:
                with suppress(OSError):
                    folder.rmdir()

    def after_step(self, run: Run) -> None:
        if run.finished % self.every == 0 or run.finished == run.steps:
            self.save(run)

    def save(self, run: Run) -> None:
        """Write the file, in the main process, with the random states of all."""
        states = self.processes.gather(_get_random_state())
        self.processes.in_main(lambda: self._write(run, states))

    def _write(self, run: Run, random_states: list[list[Tensor]]) -> None:
        _require_finite_weights(run)
        try:
            _write_checkpoint(self.path, self._state(run, random_states))
        except OSError as error:
            raise OSError(
                f"the checkpoint after step {run.step} could not be written to {self.path}: {error}; what "
                f"stood there before is kept"
            ) from error

    def _parts(self, run: Run) -> dict[str, Any]:
        loss = {"loss": run.loss} if isinstance(run.loss, nn.Module) else {}
        return {"model": run.model, "optimizer": run.optimizer, **loss}

    def _state(self, run: Run, random_states: list[list[Tensor]]) -> dict[str, Any]:
        state = {name: part.state_dict() for name, part in self._parts(run).items()}
        state |= {"step": run.finished, "steps": run.steps, "history": run.history} | self.settings
        random, *of_others = random_states
        return state | self.stream.state_dict() | {"random": random, "random_of_others": of_others}

    def _load(self, run: Run) -> None:
        saved = _read_checkpoint(self.path, {"steps": run.steps} | self.settings)
        for name, part in self._parts(run).items():
            try:
                part.load_state_dict(saved[name])
            except (RuntimeError, KeyError, ValueError) as error:
                raise ValueError(
                    f"{self.path} holds another {name} than the one to train: {error}"
                ) from error
        run.step = run.finished = saved["step"]
        run.history = saved["history"]
        self.stream.load_state_dict(saved, drawn=run.finished * self.settings["accumulate"])
        random_states = [saved["random"], *saved.get("random_of_others", [])]
        if self.processes.index < len(random_states):  # there may be more processes than before
            _set_random_state(random_states[self.processes.index])


class _Interrupts:
    """Ctrl-C (or Jupyter's stop button), held back until a step is done; pressed twice, it stops at once."""

    def __init__(self, processes: _Processes) -> None:
        self.processes = processes

    def __enter__(self) -> "_Interrupts":
        self.pressed = False
        self.in_main_thread = threading.current_thread() is threading.main_thread()
        if self.in_main_thread:
            self.previous = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *error: object) -> None:
        if self.in_main_thread:
            signal.signal(signal.SIGINT, self.previous)

    def _press(self, number: int, frame: Any) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True

    def until_pressed(
        self, stream: _Stream, steps: Iterable[int], accumulate: int
    ) -> Iterator[tuple[int, list]]:
        """The steps with their batches, until the button is pressed: in one process, then in all."""
        for step in steps:
            if self.processes.any(self.pressed):
                return
            try:
                batches = stream.draw(accumulate)
            except Exception:
                if self.pressed and self.processes.count == 1:
                    return  # the signal stopped a worker too; what it owed is drawn again on resuming
                raise
            yield step, batches

    def stop(self, run: Run, saver: _Checkpoint | None) -> None:
        """If the button was pressed, save what is done and raise KeyboardInterrupt."""
        if not self.processes.any(self.pressed):
            return
        if not run.finished:
            raise KeyboardInterrupt("stopped before the first step")
        if saver:
            saver.save(run)
        raise KeyboardInterrupt(f"stopped after step {run.finished - 1}")


@contextmanager
def _interrupts_kept_from_workers(batches: Iterable) -> Iterator[None]:
    """Let the worker processes that a DataLoader starts by spawn inherit a blocked Ctrl-C.

    Forked ones inherit the handler. A fork server outlives the loader, so it is left alone.
    """
    context = getattr(batches, "multiprocessing_context", None) or multiprocessing
    has_workers = bool(getattr(batches, "num_workers", 0))
    if not has_workers or context.get_start_method() != "spawn" or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # started later, it would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _require_settings(loss: Callable, steps: int, seed: int, clip: float | None) -> None:
    """Refuse numbers out of range and a loss that cannot be called, before the training."""
    require_at_least(1, steps=steps)
    require_at_least(0, seed=seed)
    if not callable(loss):
        raise TypeError(f"loss must be a function, got {loss!r}")
    if clip is not None:
        require_between(0, math.inf, clip=clip)
        if clip == 0:
            raise ValueError("clip must be above 0, got 0: no gradient would be left")


def _require_scale(precision: str | None, accumulate: int, accelerator: Any) -> None:
    """Refuse a precision that fit does not know, and an accelerator that does what fit does itself."""
    if precision not in (None, "bf16"):
        raise ValueError(f'precision must be None, for that of the model, or "bf16", got {precision!r}')
    require_at_least(1, accumulate=accumulate)
    if accelerator is None:
        return
    if isinstance(accelerator, type) or not hasattr(accelerator, "prepare_data_loader"):
        raise TypeError(f"accelerator must be an accelerate.Accelerator, got {accelerator!r}")
    if (k := accelerator.gradient_accumulation_steps) != 1:
        raise ValueError(
            f"the accelerator has gradient_accumulation_steps={k}: leave it at 1 and give fit accumulate={k}"
        )
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise ValueError(f'the accelerator casts to {accelerator.mixed_precision}; fit knows "bf16" only')
    kind = str(accelerator.distributed_type).removeprefix("DistributedType.")
    if kind != "NO" and not kind.startswith("MULTI_"):
        raise ValueError(f"every process must hold the whole model; the accelerator divides it: {kind}")


def _require_callbacks(callbacks: Sequence[Any]) -> Sequence[Any]:
    """The callbacks, once each is known to have a method that the loop calls."""
    if not isinstance(callbacks, list | tuple):
        raise TypeError(f"callbacks must be a list of callbacks, got {callbacks!r}")
    events = ("on_start", "before_step", "after_step", "on_end")
    for callback in callbacks:
        if isinstance(callback, type) or not any(
            callable(getattr(callback, event, None)) for event in events
        ):
            raise TypeError(
                f"a callback is an object with some of the methods {', '.join(events)}, got {callback!r}"
            )
    return callbacks


class _StepFunctions:
    """The functions `before_step` and `after_step` of `fit`, which take a step's number, as a callback."""

    def __init__(self, before: Callable[[int], Any] | None, after: Callable[[int], Any] | None) -> None:
        for name, function in {"before_step": before, "after_step": after}.items():
            if function is not None and not callable(function):
                raise TypeError(f"{name} must be a function, got {function!r}")
        self.before, self.after = before, after

    def before_step(self, run: Run) -> None:
        if self.before:
            self.before(run.step)

    def after_step(self, run: Run) -> None:
        if self.after:
            self.after(run.step)


class _Progress:
    """A bar with the numbers that are recorded at every step."""

    def on_start(self, run: Run) -> None:
        from tqdm import tqdm  # here, so that whoever shows no bar does not need it

        self.bar = tqdm(initial=run.finished, total=run.steps, mininterval=0.5)

    def after_step(self, run: Run) -> None:
        latest = {
            name: f"{numbers[-1]:.3f}"
            for name, numbers in run.history.items()
            if name != "lr" and len(numbers) == run.finished
        }
        self.bar.set_postfix(latest, refresh=False)
        self.bar.update()

    def on_end(self, run: Run) -> None:
        self.bar.close()


class Validation:
    """A callback of `fit` that measures the model every so many steps and at the end.

    A number that `measure` calls "accuracy" stands in the history under "validation_accuracy", and the number
    of steps done at each measurement under "validation_step". The training comes out the same as without it:
    the modes of the model and PyTorch's random state are given back.

    Args:
        measure: model -> a dictionary of numbers; the model is in evaluation mode, without gradients.
        every: steps between two measurements.
        name: how the names in the history begin; two validations of one run need two names.

    Raises:
        ValueError: for `every` below 1, and in `fit` for a second validation of the same name.
        TypeError: for a measure that is no function or gives no dictionary.

    Built in lesson 04.
    """

    def __init__(
        self, measure: Callable[[nn.Module], dict[str, Any]], every: int, name: str = "validation"
    ) -> None:
        if not callable(measure):
            raise TypeError(f"measure must be a function of the model, got {measure!r}")
        require_at_least(1, every=every)
        self.measure, self.every, self.name = measure, every, name

    def on_start(self, run: Run) -> None:
        if f"{self.name}_step" in run.history and not run.finished:
            raise ValueError(f"there are two validations with the name {self.name!r}: give one another name")
        run.history.setdefault(f"{self.name}_step", [])

    def after_step(self, run: Run) -> None:
        if run.finished % self.every and run.finished != run.steps:
            return
        with eval_mode(run.model), torch.no_grad(), torch.random.fork_rng():
            numbers = self.measure(run.model)
        if not isinstance(numbers, dict):
            raise TypeError(f"measure must give a dictionary of numbers, got {numbers!r}")
        run.record(
            {f"{self.name}_{name}": number for name, number in {"step": run.finished, **numbers}.items()}
        )


class _Log:
    """A callback that writes down what each step recorded. It is called after all others."""

    def on_start(self, run: Run) -> None:
        self.lengths = {name: len(numbers) for name, numbers in run.history.items()}
        if run.is_main:
            self.open(run)

    def after_step(self, run: Run) -> None:
        lengths = {name: len(numbers) for name, numbers in run.history.items()}
        grown = [name for name, length in lengths.items() if length > self.lengths.get(name, 0)]
        self.lengths = lengths
        if run.is_main:
            self.write(run.finished, {name: run.history[name][-1] for name in grown})

    def on_end(self, run: Run) -> None:
        if run.is_main:
            self.close()

    def open(self, run: Run) -> None: ...

    def write(self, step: int, numbers: dict[str, float]) -> None: ...

    def close(self) -> None: ...


def _in_order(callbacks: Sequence[Any]) -> list[Any]:
    """Logs last, so that they see what the others record."""
    return sorted(callbacks, key=lambda callback: isinstance(callback, _Log))


class JSONLog(_Log):
    """A callback of `fit` that writes one line of JSON for each step.

    A line is {"step": steps done, "seconds": since the run began, pauses left out} and the numbers that the
    step recorded, null where one is not finite. It is in the file when the step ends. A resumed run goes on
    in its file: lines of steps behind the checkpoint, and one that a kill cut off, are taken out and written
    again. A new run begins the file anew. Of several processes the main one writes.

    Args:
        path: of the file; folders are made.

    Raises:
        ValueError: in `fit`, for a file that is there and is no such log.

    Built in lesson 04.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()

    def open(self, run: Run) -> None:
        lines = self._lines(run.finished)
        before = json.loads(lines[-1])["seconds"] if lines else 0.0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(self.path.name + ".part")
        temporary.write_text("".join(lines), encoding="utf-8")
        os.replace(temporary, self.path)
        self.file = open(self.path, "a", encoding="utf-8")
        self.began = time.monotonic() - before

    def _lines(self, finished: int) -> list[str]:
        """The lines of the steps that are done."""
        if not self.path.exists():
            return []
        try:
            *lines, cut_off = self.path.read_text(encoding="utf-8").split("\n")
            return [f"{line}\n" for line in lines if json.loads(line)["step"] <= finished]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{self.path} is not a log that JSONLog wrote: {error}") from error

    def write(self, step: int, numbers: dict[str, float]) -> None:
        seconds = round(time.monotonic() - self.began, 3)
        finite = {name: number if math.isfinite(number) else None for name, number in numbers.items()}
        self.file.write(json.dumps({"step": step, "seconds": seconds} | finite) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class TensorBoard(_Log):
    """A callback of `fit` that writes what each step recorded for TensorBoard.

    A resumed run goes on in its folder; what was written of steps behind the checkpoint is hidden. Of several
    processes the main one writes.

    Args:
        folder: for the event files.

    Raises:
        ImportError: where TensorBoard is not installed.

    Built in lesson 04.
    """

    def __init__(self, folder: str | Path) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise ImportError('TensorBoard is not installed: pip install "vit_course[scale]"')
        self.folder = Path(folder).expanduser()

    def open(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

        self.writer = SummaryWriter(self.folder, purge_step=run.finished + 1)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        for name, number in numbers.items():
            self.writer.add_scalar(name, number, step)

    def close(self) -> None:
        self.writer.close()
