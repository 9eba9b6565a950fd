"""Training.

How does a model get from random numbers to right answers, and how do you know that the number at the end is true?

Made from notebooks/04_training.ipynb by `make export`: read and edit the lesson, not this file.
"""

import math
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from vit_course.patching import require_at_least, require_between, require_images

__all__ = ["cosine_schedule", "augment", "eval_mode", "fit", "evaluate"]


def cosine_schedule(step: int, steps: int, start: float, end: float = 0.0, warmup: int = 0) -> float:
    """A value that climbs linearly to `start`, then falls (or rises) along half a cosine towards `end`
    (Loshchilov and Hutter 2016, eq. 5).

    step: 0 … steps - 1. steps: length of the whole run. warmup: how many of the steps climb, (step + 1) /
    warmup of the way. Raises ValueError for a step outside the run or a warm-up that fills it. Built in
    lesson 04.
    """
    require_at_least(1, steps=steps)
    require_between(0, steps - 1, step=step, warmup=warmup)
    require_between(-math.inf, math.inf, start=start, end=end)
    if step < warmup:
        return start * (step + 1) / warmup
    progress = (step - warmup) / (steps - warmup)
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def _decay_groups(model: nn.Module) -> list[dict]:
    """Weight decay pulls on matrices; biases and norms, which have one axis, are left alone."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "is_decayed": True},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "is_decayed": False},
    ]


def _as_schedule(
    name: str, rate: float | Callable[[int], float], of_number: Callable[[int], float]
) -> Callable[[int], float]:
    """A rate as a function of the step: the caller's own, or `of_number` where the caller gave a number."""
    if callable(rate):
        return rate
    require_between(0, math.inf, **{name: rate})
    return of_number


def _set_rates(optimizer: torch.optim.Optimizer, learning_rate: float, decay: float) -> None:
    """Set the learning rate of all groups, and the weight decay of those that decay."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
        group["weight_decay"] = decay if group["is_decayed"] else 0.0


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

    images: (b, c, h, w). scale: smallest and largest share of the area that a crop keeps. rotation: largest
    turn in degrees, either way. flip: mirror half of the images. size: side of the result in pixels, that of
    the images by default. generator: source of the draws. Returns (b, c, size, size) or (b, c, h, w).
    Raises ValueError for a scale outside 0 … 1 or in the wrong order. Built in lesson 04.
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
        return low + (high - low) * torch.rand(b, generator=generator)

    area = uniform(*scale)
    stretch = (-area.log()).clamp(max=math.log(1.25))  # no further than the crop fits into the image
    ratio = uniform(-stretch, stretch).exp()
    half_width, half_height = (area * ratio).sqrt(), (area / ratio).sqrt()
    shift_x, shift_y = uniform(-1, 1) * (1 - half_width), uniform(-1, 1) * (1 - half_height)
    angle = uniform(-1, 1) * math.radians(rotation)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0) if flip else torch.ones(b)
    cos, sin = angle.cos(), angle.sin()
    out = (height, width) if size is None else (size, size)
    aspect = out[1] / out[0]  # a turn is one in pixels, while the grid counts from -1 to 1 both ways
    corners = torch.stack(
        [
            torch.stack([half_width * cos * mirror, -half_width * sin / aspect, shift_x], dim=1),
            torch.stack([half_height * sin * mirror * aspect, half_height * cos, shift_y], dim=1),
        ],
        dim=1,
    ).to(images)
    grid = F.affine_grid(corners, [b, c, *out], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _endless(batches: Callable | Iterable, generator: torch.Generator, seed: int) -> Iterator:
    """Batches without end: drawn by a function, or an iterable gone through again and again, each time from a
    seed of its own.
    """
    if callable(batches):
        while True:
            yield batches(generator)
    for epoch in count():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + epoch)
            iterator = iter(batches)
            batch = next(iterator, None)  # a DataLoader draws its order with the first batch, not before
        if batch is None:
            raise ValueError(
                f"batches gave nothing in pass {epoch + 1}: give a function, a DataLoader or a list, not an "
                f"iterator"
            )
        yield batch
        yield from iterator


def _to_device(batch, device: torch.device):
    """The batch, tensors in tuples, lists and dictionaries included, on the device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, tuple | list):
        return type(batch)(_to_device(part, device) for part in batch)
    if isinstance(batch, dict):
        return {key: _to_device(part, device) for key, part in batch.items()}
    return batch


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
    """
    with _modes_kept(model):
        model.eval()
        yield _device(model)


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
    numbers = {"loss": value.item()} | {name: float(number) for name, number in numbers.items()}
    if not math.isfinite(numbers["loss"]):
        raise ValueError(
            f"the loss was {numbers['loss']} at step {step}: look at the batch, or try a smaller learning "
            f"rate"
        )
    return value, numbers


def _checkpoint_path(checkpoint: str | Path | None, resume: bool) -> Path | None:
    """The file to write to, if any, refused before the training rather than after it."""
    if resume and checkpoint is None:
        raise ValueError("resume=True needs the checkpoint to resume from")
    path = None if checkpoint is None else Path(checkpoint)
    if path and path.is_dir():
        raise ValueError(f"checkpoint must be a file, got the folder {path}")
    return path


def _write_checkpoint(path: Path, state: dict) -> None:
    """Write to a temporary name, then move: a kill leaves the old checkpoint or the new one, never half of
    one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    torch.save(state, temporary)
    os.replace(temporary, path)


def _read_checkpoint(path: Path, parts: dict, steps: int, seed: int) -> dict:
    """Read a checkpoint and load the state of every part (model, optimiser, loss) into it."""
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
    for name, part in parts.items():
        try:
            part.load_state_dict(state[name])
        except (RuntimeError, KeyError, ValueError) as error:
            raise ValueError(f"{path} holds another {name} than the one to train: {error}") from error
    return state


@contextmanager
def _interrupt_between_steps() -> Iterator[list]:
    """Hold back Ctrl-C (or Jupyter's stop button) until a step is finished. Yields a list that is not empty
    once it was asked for.
    """
    asked: list[bool] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    previous = signal.getsignal(signal.SIGINT)

    def answer(number, frame):
        if asked:  # asked twice: stop at once
            raise KeyboardInterrupt
        asked.append(True)

    signal.signal(signal.SIGINT, answer)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, previous)


def fit(
    model: nn.Module,
    batches: Callable | Iterable,
    loss: Callable,
    steps: int,
    *,
    lr: float | Callable[[int], float] = 1e-3,
    weight_decay: float | Callable[[int], float] = 0.05,
    before_step: Callable[[int], None] | None = None,
    after_step: Callable[[int], None] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, list[float]]:
    """Train `model` for a fixed number of steps with AdamW (Loshchilov and Hutter 2017): the one training
    loop of the course.

    batches: a function of a torch.Generator that draws a batch, or an iterable of batches (a DataLoader) gone
    through again and again. loss: (model, batch) -> a scalar tensor, or that and a dictionary of numbers to
    show. A loss with state of its own is an nn.Module. lr: the highest learning rate, reached after a warm-up
    over 5 % of the steps and followed by a cosine down to a hundredth of it; or a function of the step.
    weight_decay: of the matrices; or a function of the step.
    before_step: called with the step when the gradients are there, before the weights move. after_step:
    called after they moved. checkpoint: a file that is written every `checkpoint_every` steps (a tenth of the
    run by default), on Ctrl-C and at the end; it holds the model, the loss if it is a module, the optimiser,
    the history and the random states.
    resume: go on from that file if it is there; the weights come out the same as without the stop.
    seed: of the batches and of dropout; the caller's random state is left as it was. progress: show a bar.

    Returns the history: a number for each step under "loss", "lr" and the names that the loss gave.
    Raises ValueError for a loss that is not finite, naming the step, and for a checkpoint of another run.
    Built in lesson 04.
    """
    require_at_least(1, steps=steps, checkpoint_every=1 if checkpoint_every is None else checkpoint_every)
    require_at_least(0, seed=seed)
    for name, function in {"loss": loss, "before_step": before_step, "after_step": after_step}.items():
        if not callable(function) and (function is not None or name == "loss"):
            raise TypeError(f"{name} must be a function, got {function!r}")
    path = _checkpoint_path(checkpoint, resume)
    every = checkpoint_every or max(1, steps // 10)
    learning_rate = _as_schedule(
        "lr", lr, lambda step: cosine_schedule(step, steps, lr, lr / 100, warmup=steps // 20)
    )
    decay = _as_schedule("weight_decay", weight_decay, lambda step: weight_decay)
    generator = torch.Generator().manual_seed(seed)
    history: dict[str, list[float]] = {}
    first = 0

    with (
        _training_mode(model) as device,
        torch.random.fork_rng(),
        _interrupt_between_steps() as interrupted,
    ):
        optimizer = torch.optim.AdamW(_decay_groups(model))
        parts = {"model": model, "optimizer": optimizer} | (
            {"loss": loss} if isinstance(loss, nn.Module) else {}
        )
        torch.manual_seed(seed)
        stream = _endless(batches, generator, seed)
        if resume and path.exists():
            saved = _read_checkpoint(path, parts, steps, seed)
            first, history = saved["step"], saved["history"]
            generator.set_state(saved["generator"])
            for _ in range(
                0 if callable(batches) else first
            ):  # the order of an iterable cannot be loaded, but it can be drawn again
                next(stream)
            _set_random_state(saved["random"])

        bar = tqdm(range(first, steps), initial=first, total=steps, disable=not progress, mininterval=0.5)
        for step in bar:
            _set_rates(optimizer, learning_rate(step), decay(step))
            value, numbers = _loss_and_numbers(loss(model, _to_device(next(stream), device)), step)
            optimizer.zero_grad()
            value.backward()
            if before_step:
                before_step(step)
            optimizer.step()
            if after_step:
                after_step(step)

            for name, number in {**numbers, "lr": learning_rate(step)}.items():
                history.setdefault(name, []).append(number)
            bar.set_postfix({name: f"{number:.3f}" for name, number in numbers.items()}, refresh=False)
            stop = bool(interrupted)  # asked once, so that no checkpoint is missed
            if path and (stop or (step + 1) % every == 0 or step + 1 == steps):
                state = {name: part.state_dict() for name, part in parts.items()}
                state |= {"step": step + 1, "steps": steps, "seed": seed, "history": history}
                _write_checkpoint(
                    path, state | {"generator": generator.get_state(), "random": _get_random_state()}
                )
            if stop:
                raise KeyboardInterrupt(f"stopped after step {step}")
    return history


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The share of images that `model` names right, in 0 … 1, with dropout off and without gradients.

    batches: pairs of images (b, c, h, w) and labels (b,); the model gives logits (b, classes).
    Raises ValueError where there are no images. Built in lesson 04.
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
            right += (logits.argmax(dim=1) == labels).sum().item()
            seen += len(labels)
    if not seen:
        raise ValueError("evaluate was given no images")
    return right / seen
