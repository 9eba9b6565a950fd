"""Numbers that are none, and arguments that do not fit, are named, with the step where there is one."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.training import LABELS, PIXELS, STEPS, cross_entropy, run, small_vit
from torch import Tensor, nn

from vit_course.training import Validation, cosine_schedule, evaluate


def test_loss_that_is_not_finite_names_the_step() -> None:
    for bad in ("nan", "inf"):
        model = small_vit().eval()
        losses = iter([1.0, 1.0, float(bad)])

        def loss(model: nn.Module, batch: tuple[Tensor, Tensor], losses=losses) -> Tensor:
            return cross_entropy(model, batch) * next(losses)

        with pytest.raises(ValueError, match=f"{bad} at step 2"):
            run(model, loss=loss)
        finite = [parameter.isfinite().all() for parameter in model.parameters()]
        assert all(finite) and not model.training, "the bad step reached the weights"


def nan_gradient_at(step: int) -> Callable:
    """A loss that is finite at every step, and its gradient at all but one: the slope of a root at zero."""
    now = iter(range(STEPS))

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        value = cross_entropy(model, batch)
        return (
            value + 0 * model.head.weight.sub(model.head.weight).sqrt().sum() if next(now) == step else value
        )

    return loss


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_gradient_that_is_not_finite_names_the_step(clip: float | None) -> None:
    model = small_vit()
    with pytest.raises(ValueError, match=r"gradient of head\.weight.* step 9"):
        run(model, loss=nan_gradient_at(9), clip=clip)
    assert all(parameter.isfinite().all() for parameter in model.parameters()), (
        "the bad step reached the weights"
    )


def test_large_gradients_are_finite() -> None:
    """Their sum overflows where they do not."""
    model = nn.Linear(4, 4)
    run(model, [torch.ones(2, 4)], lambda model, batch: model(batch).sum() * 1e38, steps=1)
    assert model.weight.grad.sum().isinf() and model.weight.isfinite().all()


@pytest.mark.parametrize("name", ["lr", "weight_decay"])
@pytest.mark.parametrize("bad", [float("nan"), -0.1, math.inf, "fast", None])
def test_a_bad_rate_names_the_step(name: str, bad: object) -> None:
    def schedule(step: int) -> object:
        return bad if step == 3 else 0.01

    with pytest.raises((ValueError, TypeError), match=f"{name} at step 3.*{bad}"):
        run(small_vit(), **{name: schedule})


def test_evaluate_does_not_count_nan() -> None:
    class Broken(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return torch.where(pixels[:, 0, 0, :3] > 0, 1.0, torch.nan)

    pixels = torch.ones(8, 3, 8, 8)
    pixels[5:, 0, 0, 1] = -1
    with pytest.raises(ValueError, match="3 of 8 images.*NaN"):
        evaluate(Broken(), [(pixels, LABELS[:8])])
    masked = torch.tensor([[0.0, -math.inf, -math.inf]]).expand(4, -1)
    assert evaluate(nn.Identity(), [(masked, torch.zeros(4, dtype=torch.long))]) == 1.0


def test_evaluate_counts() -> None:
    class Fixed(nn.Module):
        """The first pixel is the class that is predicted; checks how it is called; has no parameters."""

        def forward(self, pixels: Tensor) -> Tensor:
            assert not self.training and not torch.is_grad_enabled()
            return F.one_hot(pixels[:, 0, 0, 0].long(), 3).float()

    pixels = torch.zeros(7, 3, 2, 2)
    pixels[:, 0, 0, 0] = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    labels = torch.tensor([0, 1, 2, 1, 1, 0, 0])
    batches = [
        (pixels[:5], labels[:5]),
        [pixels[5:], labels[5:]],
    ]  # the last one is smaller: each image counts once
    assert evaluate(Fixed(), batches) == pytest.approx(5 / 7)


# ---- bad input

PAIRS = [(PIXELS[:4], LABELS[:4])]
BAD_CALLS = {
    "schedule step": (lambda: cosine_schedule(10, 10, 1.0), ValueError, "step.* 10"),
    "schedule negative": (lambda: cosine_schedule(-1, 10, 1.0), ValueError, "step.* -1"),
    "schedule steps": (lambda: cosine_schedule(0, 0, 1.0), ValueError, "steps.* 0"),
    "schedule warmup": (lambda: cosine_schedule(0, 10, 1.0, warmup=10), ValueError, "warmup.* 10"),
    "schedule start": (lambda: cosine_schedule(0, 10, "1"), TypeError, "start.* '1'"),
    "schedule end": (lambda: cosine_schedule(0, 10, 1.0, float("nan")), ValueError, "end.* nan"),
    "fit steps": (lambda: run(small_vit(), steps=0), ValueError, "steps.* 0"),
    "fit steps type": (lambda: run(small_vit(), steps=1.5), TypeError, "1.5"),
    "fit model": (lambda: run("vit"), TypeError, "'vit'"),
    "fit nothing to train": (
        lambda: run(small_vit().requires_grad_(False)),
        TypeError,
        "with a gradient.*got tensor",
    ),
    "fit batches": (lambda: run(small_vit(), 5), TypeError, "int"),
    "fit empty": (lambda: run(small_vit(), []), ValueError, "nothing in pass 1"),
    "fit used up": (lambda: run(small_vit(), iter(PAIRS)), ValueError, "nothing in pass 2"),
    "fit loss": (lambda: run(small_vit(), loss="mse"), TypeError, "'mse'"),
    "fit loss value": (lambda: run(small_vit(), loss=lambda model, batch: 1.5), TypeError, "1.5"),
    "fit loss vector": (
        lambda: run(small_vit(), loss=lambda model, batch: model(batch[0])),
        TypeError,
        "scalar.*tensor",
    ),
    "fit loss numbers": (
        lambda: run(small_vit(), loss=lambda model, batch: (cross_entropy(model, batch), 5)),
        TypeError,
        "5",
    ),
    "fit lr": (lambda: run(small_vit(), lr=-1.0), ValueError, "lr.* -1.0"),
    "fit lr type": (lambda: run(small_vit(), lr="fast"), TypeError, "lr.* 'fast'"),
    "fit weight decay": (lambda: run(small_vit(), weight_decay=-0.1), ValueError, "weight_decay.* -0.1"),
    "fit after_step": (lambda: run(small_vit(), after_step=5), TypeError, "after_step.* 5"),
    "fit before_step": (lambda: run(small_vit(), before_step="x"), TypeError, "before_step.* 'x'"),
    "fit seed": (lambda: run(small_vit(), seed="a"), TypeError, "seed.* 'a'"),
    "fit seed sign": (lambda: run(small_vit(), seed=-1), ValueError, "seed.* -1"),
    "fit resume": (lambda: run(small_vit(), resume=True), ValueError, "resume=True"),
    "fit checkpoint_every": (
        lambda: run(small_vit(), checkpoint="x.pt", checkpoint_every=0),
        ValueError,
        "checkpoint_every.* 0",
    ),
    "fit checkpoint": (lambda: run(small_vit(), checkpoint=5), TypeError, "int"),
    "fit clip": (lambda: run(small_vit(), clip=0), ValueError, "clip.* 0"),
    "fit clip type": (lambda: run(small_vit(), clip="all"), TypeError, "clip.* 'all'"),
    "fit one callback": (
        lambda: run(small_vit(), callbacks=Validation(len, 5)),
        TypeError,
        "list.*Validation",
    ),
    "fit callback": (lambda: run(small_vit(), callbacks=[print]), TypeError, "on_start.*print"),
    "fit callback class": (lambda: run(small_vit(), callbacks=[Validation]), TypeError, "object.*Validation"),
    "validation measure": (lambda: Validation(5, 5), TypeError, "measure.* 5"),
    "validation every": (lambda: Validation(len, 0), ValueError, "every.* 0"),
    "validation numbers": (
        lambda: run(small_vit(), callbacks=[Validation(lambda model: 0.5, 5)]),
        TypeError,
        "dictionary.* 0.5",
    ),
    "evaluate model": (lambda: evaluate("vit", PAIRS), TypeError, "'vit'"),
    "evaluate nothing": (lambda: evaluate(small_vit(), []), ValueError, "no images"),
    "evaluate column": (
        lambda: evaluate(small_vit(), [(PIXELS[:4], LABELS[:4, None])]),
        ValueError,
        r"\(4, 1\)",
    ),
    "evaluate number": (lambda: evaluate(small_vit(), [(PIXELS[:4], LABELS[:3])]), ValueError, r"\(3,\)"),
    "evaluate floats": (
        lambda: evaluate(small_vit(), [(PIXELS[:4], LABELS[:4].float())]),
        ValueError,
        "float32",
    ),
    "evaluate images alone": (lambda: evaluate(small_vit(), [PIXELS[:4]]), TypeError, "pairs"),
    "evaluate lists": (lambda: evaluate(small_vit(), [([1], [2])]), TypeError, r"\[1\]"),
}


@pytest.mark.parametrize(("call", "error", "words"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_bad_input_is_named(call: Callable, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
