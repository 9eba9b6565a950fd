"""Training.

A training run ends and reports a number: is the number true?

Made from notebooks/04_training.ipynb by `make export`: read and edit the lesson, not this file.
"""

import math
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from multiprocessing import resource_tracker
from pathlib import Path
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
    """Batches without end, on the model's device, and what it takes to draw them again."""

    def __init__(self, batches: Callable | Iterable, seed: int, device: torch.device) -> None:
        self.batches, self.seed, self.device = batches, seed, device
        self.generator = torch.Generator().manual_seed(seed)
        self.first_states = self._own_states()
        if isinstance(batches, DataLoader):
            batches._iterator = None  # persistent workers would go on from the random state of another run
        self.draws = self._draw()

    def _draw(self) -> Iterator:
        """Call the function, or go through the iterable again and again, each time from a seed of its own."""
        while callable(self.batches):
            yield self.batches(self.generator)
        for epoch in count():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed + epoch)
                with _interrupts_kept_from_workers(self.batches):
                    iterator = iter(self.batches)
                batch = next(iterator, None)  # a DataLoader draws its order with the first batch, not before
            if batch is None:
                raise ValueError(
                    f"batches gave nothing in pass {epoch + 1}: give a function, a DataLoader or a list, not "
                    f"an iterator"
                )
            yield batch
            yield from iterator

    def __next__(self) -> Any:
        """The next batch. A draw that fails leaves the random states as they were."""
        before = self.generator.get_state(), _get_random_state()
        try:
            return _to_device(next(self.draws), self.device)
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


def _to_device(batch: Any, device: torch.device) -> Any:
    """The batch, tensors in tuples, lists and dictionaries included, on the device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: _to_device(part, device) for key, part in batch.items()}
    if isinstance(batch, tuple | list):
        parts = [_to_device(part, device) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)  # a named tuple
    return batch


@contextmanager
def _training_mode(model: nn.Module) -> Iterator[torch.device]:
    """Put a model that is wholly in evaluation mode into training mode, for a while.

    A part in evaluation mode inside a model in training was put there by its user: it stays.
    """
    with _modes_kept(model):
        if not any(part.training for part in model.modules()):
            model.train()
        yield _device(model)


def _get_random_state() -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def _set_random_state(state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state[1:])


def _loss_and_numbers(result: Tensor | tuple[Tensor, dict], step: int) -> tuple[Tensor, dict[str, float]]:
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
    if not math.isfinite(value.item()):
        raise ValueError(
            f"the loss was {value.item()} at step {step}: look at the batch, or try a smaller learning rate"
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

    Built in lesson 04.
    """

    model: nn.Module
    loss: Callable
    optimizer: torch.optim.Optimizer
    steps: int
    step: int = 0
    finished: int = 0
    history: dict[str, list[float]] = field(default_factory=dict)

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
    learning_rate = _as_schedule(
        "lr", lr, lambda peak, step: cosine_schedule(step, steps, peak, peak / 100, warmup=steps // 20)
    )
    decay = _as_schedule("weight_decay", weight_decay, lambda constant, step: constant)
    path = _checkpoint_path(checkpoint, checkpoint_every, resume)
    callbacks = [_StepFunctions(before_step, after_step), *_require_callbacks(callbacks)]

    with _training_mode(model) as device, torch.random.fork_rng(), _Interrupts() as interrupts:
        torch.manual_seed(seed)
        stream = _Stream(batches, seed, device)
        optimizer = torch.optim.AdamW(_decay_groups(*_modules(model, loss)))
        run = Run(model, loss, optimizer, steps)
        saver = _Checkpoint(path, checkpoint_every or max(1, steps // 10), seed, stream) if path else None
        if saver:
            saver.start(run, resume)
            callbacks.append(saver)
        if progress:
            callbacks.append(_Progress())
        _notify(callbacks, "on_start", run)
        try:
            for step, batch in interrupts.until_pressed(stream, range(run.finished, steps)):
                run.step = step
                _set_rates(optimizer, learning_rate(step), decay(step))
                value, numbers = _loss_and_numbers(loss(model, batch), step)
                optimizer.zero_grad()
                value.backward()
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


def _read_checkpoint(path: Path, steps: int, seed: int) -> dict:
    """What a checkpoint of this run holds."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        its_own = (state["steps"], state["seed"])
    except Exception as error:  # whatever torch.load and pickle make of another file
        raise ValueError(f"{path} is not a checkpoint that fit wrote: {error}") from error
    if its_own != (steps, seed):
        raise ValueError(
            f"{path} is of a run with steps={state['steps']}, seed={state['seed']}; this one has "
            f"steps={steps}, seed={seed}"
        )
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

    def __init__(self, path: Path, every: int, seed: int, stream: _Stream) -> None:
        self.path, self.every, self.seed, self.stream = path, every, seed, stream

    def start(self, run: Run, resume: bool) -> None:
        """Try whether the file can be written, leaving nothing behind; load one that is there to resume."""
        missing = [folder for folder in self.path.parents if not os.path.exists(folder)]
        try:
            with _written_beside(self.path, self._state(run)):
                pass
        except OSError as error:
            raise ValueError(f"checkpoint {self.path} cannot be written: {error}") from error
        finally:
            for folder in missing:
                with suppress(OSError):
                    folder.rmdir()
        if resume and self.path.exists():
            self._load(run)

    def after_step(self, run: Run) -> None:
        if run.finished % self.every == 0 or run.finished == run.steps:
            self.save(run)

    def save(self, run: Run) -> None:
        _require_finite_weights(run)
        try:
            _write_checkpoint(self.path, self._state(run))
        except OSError as error:
            raise OSError(
                f"the checkpoint after step {run.step} could not be written to {self.path}: {error}; what "
                f"stood there before is kept"
            ) from error

    def _parts(self, run: Run) -> dict[str, Any]:
        loss = {"loss": run.loss} if isinstance(run.loss, nn.Module) else {}
        return {"model": run.model, "optimizer": run.optimizer, **loss}

    def _state(self, run: Run) -> dict[str, Any]:
        state = {name: part.state_dict() for name, part in self._parts(run).items()}
        state |= {"step": run.finished, "steps": run.steps, "seed": self.seed, "history": run.history}
        return state | self.stream.state_dict() | {"random": _get_random_state()}

    def _load(self, run: Run) -> None:
        saved = _read_checkpoint(self.path, run.steps, self.seed)
        for name, part in self._parts(run).items():
            try:
                part.load_state_dict(saved[name])
            except (RuntimeError, KeyError, ValueError) as error:
                raise ValueError(
                    f"{self.path} holds another {name} than the one to train: {error}"
                ) from error
        run.step = run.finished = saved["step"]
        run.history = saved["history"]
        self.stream.load_state_dict(saved, drawn=run.finished)
        _set_random_state(saved["random"])


class _Interrupts:
    """Ctrl-C (or Jupyter's stop button), held back until a step is done; pressed twice, it stops at once."""

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

    def until_pressed(self, stream: _Stream, steps: Iterable[int]) -> Iterator[tuple[int, Any]]:
        """The steps with their batches, until the button is pressed."""
        for step in steps:
            if self.pressed:
                return
            try:
                batch = next(stream)
            except Exception:
                if self.pressed:  # the signal stopped a worker too; what it owed is drawn again on resuming
                    return
                raise
            yield step, batch

    def stop(self, run: Run, saver: _Checkpoint | None) -> None:
        """If the button was pressed, save what is done and raise KeyboardInterrupt."""
        if not self.pressed:
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
