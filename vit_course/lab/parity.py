"""How two models are compared: with weights large enough to show a mistake, and with tokens faint enough to
show an epsilon.

With the small weights of a fresh model attention is nearly uniform, norms hardly matter, and a wrong scale
still "agrees" to 1e-7.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

SAME = 1e-5  # relative error below which two models are one
DIFFERENT = 1e-2  # above which a mistake shows beyond doubt

# What tokens are first made of, in the course's models, timm's and torchvision's.
FIRST = (
    "patch_embed.",
    "conv_proj.",
    "cls_token",
    "class_token",
    "reg_token",
    "dist_token",
    "pos_embed",
    "encoder.pos_embedding",
)
SCALES = ("weight", "gamma", "gamma1", "gamma2", "gamma3", "gamma_1", "gamma_2", "running_var")


def randomise(model: nn.Module, seed: int = 0, input_scale: float = 1.0) -> nn.Module:
    """Give every parameter and buffer a value that matters, in place.

    Matrices N(0, 2 / fan_in), scales of norms and running variances U(.5, 1.5), biases N(0, .3²), tokens and
    positions N(0, 1), temperatures U(5, 15).

    Args:
        model: the model to change.
        seed: decides the values.
        input_scale: shrinks all that tokens are first made of (patch embedding, class token, positions): 1e-3
            makes them faint.

    Returns:
        The same model, in evaluation mode.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():  # shares memory with the model
        noise = torch.randn(tensor.shape, generator=generator)
        if not tensor.is_floating_point():
            continue
        if tensor.ndim <= 1 and name.endswith(SCALES):
            value = 0.5 + torch.rand(tensor.shape, generator=generator)
        elif tensor.ndim <= 1:
            value = 0.3 * noise
        elif name.endswith("weight"):
            value = noise * (2 / tensor[0].numel()) ** 0.5
        elif name.endswith("temperature"):  # of XCiT: it multiplies cosines, which are small
            value = 10 * (0.5 + torch.rand(tensor.shape, generator=generator))
        else:
            value = noise
        tensor.copy_(value * input_scale if name.startswith(FIRST) else value)
    return model.eval()


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """The length of the difference, as a share of the length of `theirs`."""
    assert ours.shape == theirs.shape, f"{tuple(ours.shape)} beside {tuple(theirs.shape)}"
    return ((ours - theirs).norm() / theirs.norm()).item()


@torch.no_grad()
def disagreement(ours: nn.Module, theirs: Callable[[Tensor], Tensor], images: Tensor) -> float:
    """Relative error of the outputs of two models on the same images."""
    return relative_error(ours(images), theirs(images))


def try_mistakes(
    right: Callable[[], nn.Module],
    theirs: Callable[[Tensor], Tensor],
    images: Tensor,
    mistakes: Mapping[str, Callable[[nn.Module], None]],
) -> None:
    """Print how far wrong versions of a model are from the published one: a check that cannot fail is none.

    Args:
        right: makes a model that agrees with `theirs`; called once for each mistake.
        theirs: the published model, in evaluation mode.
        images: what both see.
        mistakes: by name, what changes a model, in place, into a wrong version.

    Raises:
        AssertionError: where a wrong version agrees within `DIFFERENT`, naming it.
    """
    for name, make in mistakes.items():
        wrong = right()
        make(wrong)
        error = disagreement(wrong, theirs, images)
        print(f"{name:34} relative error {error:5.0%}")
        if error <= DIFFERENT:
            raise AssertionError(f"the check does not see {name!r}: relative error {error:.1e}")
