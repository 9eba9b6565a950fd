"""Multi-crop with the photometric augmentation that DINO published, for photographs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from vit_course.patching import require_at_least, require_between

from .image_set import MEAN, STD

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LUMA = (0.299, 0.587, 0.114)  # the weights of red, green and blue in the grey of ITU-R BT.601, as in Pillow


@dataclass(frozen=True)
class PhotoView:
    """How one view of a photograph is drawn: a resized crop, then colours, blur and solarisation.

    Args:
        size: side of the view in pixels.
        scale: smallest and largest share of the photograph's area that the crop shows.
        flip: probability of mirroring.
        jitter: probability of **colour jitter**, which changes brightness, contrast, saturation and hue, in
            random order, by factors drawn for each image.
        grey: probability of losing all colour.
        blur: probability of a Gaussian blur.
        solarise: probability of **solarisation**, which inverts every value from 128 (of 255) on.
        strength: of the jitter: factors of brightness, contrast and saturation are drawn in 1 ± strength, the
            hue is turned by up to that share of a full turn.
        sigma: smallest and largest width of the blur in pixels.

    Raises:
        TypeError, ValueError: for an argument out of range.

    Source:
        Caron et al. 2021, section 3.1 and their published code; colour jitter, blur and solarisation as in
        Grill et al. 2020 (BYOL), appendix B; the crop as in Szegedy et al. 2015, section 6.
    """

    size: int
    scale: tuple[float, float]
    flip: float = 0.5
    jitter: float = 0.8
    grey: float = 0.2
    blur: float = 0.0
    solarise: float = 0.0
    strength: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    sigma: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        require_at_least(1, size=self.size)
        require_between(
            0, 1, flip=self.flip, jitter=self.jitter, grey=self.grey, blur=self.blur, solarise=self.solarise
        )
        _require_range("scale", self.scale, 1)
        _require_range("sigma", self.sigma, 100)
        if len(self.strength) != 4:
            raise ValueError(f"strength must be four numbers, not {self.strength!r}")
        for name, strength in zip(("brightness", "contrast", "saturation"), self.strength, strict=False):
            require_between(0, 1, **{f"strength of {name}": strength})
        require_between(0, 0.5, **{"strength of hue": self.strength[3]})

    def crop(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A random part of a photograph, resized with an antialiased bicubic filter and perhaps mirrored.

        Args:
            image: (3, h, w) uint8.
            generator: source of the draws; PyTorch's own by default.

        Returns:
            (3, size, size) uint8.
        """
        top, left, height, width = _draw_box(image.shape[1], image.shape[2], self.scale, generator)
        part = image[None, :, top : top + height, left : left + width]
        part = part.contiguous(memory_format=torch.channels_last)  # the layout with a vectorised kernel
        view = F.interpolate(part, (self.size, self.size), mode="bicubic", antialias=True)[0]
        return view.flip(-1) if _uniform(1, generator)[0] < self.flip else view

    def recolour(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Jitter, grey, blur and solarisation, on any device, one draw for each image.

        Only the order of the four parts of the jitter is drawn once for the whole batch.

        Args:
            images: (b, 3, h, w) uint8, or float with values in 0..1.
            generator: source of the draws, on the CPU, so that a GPU need not be waited for.

        Returns:
            (b, 3, h, w) float32, values in 0..1.

        Raises:
            TypeError, ValueError: for anything but a batch of colour images.
        """
        images = _as_floats(images)
        draws = [_uniform(len(images), generator) for _ in range(9)]

        def chosen(probability: float) -> list[bool]:
            return [draw < probability for draw in draws.pop()]

        def drawn(low: float, high: float, where: list[bool], neutral: float) -> list[float]:
            numbers = [low + (high - low) * draw for draw in draws.pop()]
            return [number if here else neutral for number, here in zip(numbers, where, strict=True)]

        is_jittered, is_grey, is_blurred, is_solarised = map(
            chosen, (self.jitter, self.grey, self.blur, self.solarise)
        )
        *strengths, turn = self.strength
        factors = [drawn(1 - strength, 1 + strength, is_jittered, 1.0) for strength in strengths]
        factors.append(drawn(-turn, turn, is_jittered, 0.0))
        for part in torch.randperm(4, generator=generator, device="cpu").tolist():
            images = _applied(_JITTER[part], images, factors[part], neutral=0.0 if part == 3 else 1.0)
        images = _applied(_saturate, images, [1.0 - here for here in is_grey], neutral=1.0)
        images = _applied(_blur, images, drawn(*self.sigma, is_blurred, 0.0), neutral=0.0)
        return _applied(_solarise, images, [float(here) for here in is_solarised], neutral=0.0)


class PhotoCrops:
    """The views that DINO draws of a photograph: two global crops, then local crops.

    Global and local crops are jittered and made grey alike. The first global crop is always blurred; the
    second is blurred with probability .1 and solarised with .2; local crops are blurred with .5.

    Args:
        global_size: side of the global crops in pixels.
        local_size: side of the local crops in pixels.
        local_crops: how many local crops; without any, the authors advise a `global_scale` from .14 on.
        global_scale: smallest and largest share of the area that a global crop shows.
        local_scale: the same of a local crop.
        mean, std: what is subtracted from the values 0..1 and what they are divided by, numbers or three of
            them: those of `normalise` by default, `IMAGENET_MEAN` and `IMAGENET_STD` for published weights.

    Attributes:
        views: a `PhotoView` for each crop, global crops first.
        least_side: the shorter side in pixels from which on no crop of a square photograph is enlarged:
            photographs need not be decoded larger.

    Raises:
        TypeError, ValueError: for an argument out of range.

    Source:
        Caron et al. 2021, section 3.1 and their published code.
    """

    def __init__(
        self,
        global_size: int = 224,
        local_size: int = 96,
        local_crops: int = 8,
        *,
        global_scale: tuple[float, float] = (0.4, 1.0),
        local_scale: tuple[float, float] = (0.05, 0.4),
        mean: float | Sequence[float] = MEAN,
        std: float | Sequence[float] = STD,
    ) -> None:
        require_at_least(0, local_crops=local_crops)
        self.views = (
            PhotoView(global_size, global_scale, blur=1.0),
            PhotoView(global_size, global_scale, blur=0.1, solarise=0.2),
            *[PhotoView(local_size, local_scale, blur=0.5)] * local_crops,
        )
        self.least_side = math.ceil(max(view.size / math.sqrt(view.scale[0]) for view in self.views))
        self.mean, self.std = _of_channels("mean", mean), _of_channels("std", std)
        if not (self.std > 0).all():
            raise ValueError(f"std must be positive, not {std!r}")

    def __call__(self, image: Tensor | Image.Image, generator: torch.Generator | None = None) -> list[Tensor]:
        """All views of one photograph, for a data set's `transform`.

        Args:
            image: (3, h, w) uint8, or a picture of Pillow.
            generator: source of the draws; PyTorch's own by default.

        Returns:
            2 + local_crops float tensors (3, size, size), normalised.

        Raises:
            TypeError, ValueError: for another image.
        """
        return [
            view[0] for view in self.recolour([crop[None] for crop in self.cut(image, generator)], generator)
        ]

    def cut(self, image: Tensor | Image.Image, generator: torch.Generator | None = None) -> list[Tensor]:
        """The first half of the work: the crops of one photograph as they are, (3, size, size) uint8.

        A data set's `transform` where `recolour` does the second half on a GPU, in batches.
        """
        pixels = pil_to_tensor(image.convert("RGB")) if isinstance(image, Image.Image) else image
        _require_photograph(pixels)
        return [view.crop(pixels, generator) for view in self.views]

    def recolour(self, crops: Sequence[Tensor], generator: torch.Generator | None = None) -> list[Tensor]:
        """The second half of the work: colours, blur, solarisation and normalisation, on any device.

        Args:
            crops: one batch (b, 3, size, size) for each view, uint8, or float with values in 0..1.
            generator: source of the draws, on the CPU.

        Returns:
            Float tensors of the same shapes.

        Raises:
            ValueError: where the crops are not one batch for each view.
        """
        if len(crops) != len(self.views):
            raise ValueError(f"{len(self.views)} views need as many batches of crops, not {len(crops)}")
        return [
            (view.recolour(batch, generator) - self.mean.to(batch.device)) / self.std.to(batch.device)
            for view, batch in zip(self.views, crops, strict=True)
        ]


def _require_range(name: str, given: tuple[float, float], most: float) -> None:
    """Raise a TypeError or ValueError unless these are two numbers 0 < low <= high <= most."""
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise TypeError(f"{name} must be two numbers, not {given!r}")
    require_between(0, most, **{f"smallest {name}": given[0], f"largest {name}": given[1]})
    if not 0 < given[0] <= given[1]:
        raise ValueError(f"{name} must be two numbers 0 < smallest <= largest, not {given!r}")


def _require_photograph(image: object) -> None:
    if not isinstance(image, Tensor) or image.dtype != torch.uint8:
        kind = image.dtype if isinstance(image, Tensor) else type(image).__name__
        raise TypeError(f"a photograph is a uint8 tensor (3, h, w) or a picture of Pillow, not {kind}")
    if image.ndim != 3 or len(image) != 3 or not image.numel():
        raise ValueError(f"a photograph has the shape (3, h, w), not {tuple(image.shape)}")


def _as_floats(images: Tensor) -> Tensor:
    """A batch of colour images as float32 in 0..1, in memory of its own, plane by plane."""
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 and not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a tensor of uint8 or of floats in 0..1, not {kind}")
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must have the shape (b, 3, h, w), not {tuple(images.shape)}")
    if images.dtype == torch.uint8:
        return images.float().contiguous().div_(255)
    return images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)


def _of_channels(name: str, values: float | Sequence[float]) -> Tensor:
    """One number, or one for each channel, as (c, 1, 1)."""
    tensor = torch.tensor(values, dtype=torch.float32, device="cpu").reshape(-1, 1, 1)
    if len(tensor) not in (1, 3) or not tensor.isfinite().all():
        raise ValueError(f"{name} must be a number or three, not {values!r}")
    return tensor


def _uniform(count: int, generator: torch.Generator | None) -> list[float]:
    """Draws in 0..1, whatever the default device and type are."""
    return torch.rand(count, generator=generator, dtype=torch.float32, device="cpu").tolist()


def _draw_box(
    height: int, width: int, scale: tuple[float, float], generator: torch.Generator | None
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a crop with a random share of the area and a random aspect ratio.

    The ratio is drawn between 3:4 and 4:3, evenly in its logarithm. Of ten draws the first that fits counts;
    if none does, the largest crop from the middle whose ratio is allowed.
    """
    widest = math.log(4 / 3)
    draws = _uniform(22, generator)
    down, right = draws[20:]
    for share, stretch in zip(draws[0:20:2], draws[1:20:2], strict=True):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * share)
        ratio = math.exp(widest * (2 * stretch - 1))
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
    h, w = min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))
    return (height - h) // 2, (width - w) // 2, max(1, h), max(1, w)


def _applied(
    change: Callable[[Tensor, Tensor], Tensor], images: Tensor, amounts: list[float], neutral: float
) -> Tensor:
    """The images (b, c, h, w) changed by their amounts (b, 1, 1, 1), unless all of these are neutral."""
    if all(amount == neutral for amount in amounts):
        return images
    return change(images, torch.tensor(amounts, dtype=images.dtype, device="cpu").view(-1, 1, 1, 1))


def _beside(amount: Tensor, images: Tensor) -> Tensor:
    """Amounts on the device of the images, without waiting for it."""
    return amount.to(images.device, non_blocking=True)


def _grey(images: Tensor) -> Tensor:
    """(b, 3, h, w) -> (b, 1, h, w)."""
    red, green, blue = images.split(1, dim=1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def _brighten(images: Tensor, factor: Tensor) -> Tensor:
    return images.mul_(_beside(factor, images)).clamp_(0, 1)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Towards the mean grey of the image, or away from it."""
    factor = _beside(factor, images)
    mean = _grey(images).mean(dim=(1, 2, 3), keepdim=True)
    return images.mul_(factor).add_((1 - factor) * mean).clamp_(0, 1)


def _saturate(images: Tensor, factor: Tensor) -> Tensor:
    """Towards the grey of each pixel, which factor 0 reaches, or away from it."""
    factor = _beside(factor, images)
    grey = _grey(images).mul_(1 - factor)
    return images.mul_(factor).add_(grey).clamp_(0, 1)


def _turn_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue by a share of a full turn, keeping the largest and the smallest value of each pixel (HSV).

    Hue h, in sixths of a turn, is a place on the hexagon red, yellow, green, cyan, blue, magenta. Of red,
    green and blue, with n = 5, 3, 1 and k = (n + h) mod 6, each has the value
    high - (high - low) · clamp(2 - |k - 2|, 0, 1).
    """
    red, green, blue = images.split(1, dim=1)
    high = torch.maximum(torch.maximum(red, green), blue)
    chroma = high - torch.minimum(torch.minimum(red, green), blue)
    # `lerp` with a sign, 0 or 1, chooses as `where` does, several times as fast.
    by_blue, by_green = (red - green).add_(chroma, alpha=4), (blue - red).add_(chroma, alpha=2)
    hue = torch.lerp(by_green, by_blue, (high - green).sign_())
    hue = torch.lerp(green - blue, hue, (high - red).sign_()).div_(chroma.clamp(min=1e-12))
    places = 6 * turn + torch.tensor([5.0, 3.0, 1.0], dtype=turn.dtype, device="cpu").view(1, 3, 1, 1)
    k = hue + _beside(places, images)
    k.sub_(k.div(6).floor_().mul_(6))  # `remainder` is slower
    return torch.addcmul(high, chroma, k.sub_(2).abs_().neg_().add_(2).clamp_(0, 1), value=-1)


def _blur(images: Tensor, sigma: Tensor) -> Tensor:
    """A Gaussian blur along rows, then along columns; values beyond the border are those at the border.

    The kernel ends at three sigma. Sums over shifted images: a convolution of three channels is slower.
    """
    reach = math.ceil(3 * float(sigma.max()))
    offsets = torch.arange(reach + 1, dtype=sigma.dtype, device="cpu").view(-1, 1, 1, 1, 1)
    kernel = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3)).square())
    kernel = _beside(kernel / (2 * kernel.sum(0) - 1), images)  # all but the middle count twice
    pair = torch.empty_like(images)
    for axis, padding in ((-1, (reach, reach, 0, 0)), (-2, (0, 0, reach, reach))):
        padded, side = F.pad(images, padding, mode="replicate"), images.shape[axis]
        images = padded.narrow(axis, reach, side) * kernel[0]
        for offset in range(1, reach + 1):
            before, after = (padded.narrow(axis, reach + shift, side) for shift in (-offset, offset))
            images.addcmul_(torch.add(before, after, out=pair), kernel[offset])
    return images


def _solarise(images: Tensor, is_chosen: Tensor) -> Tensor:
    """Invert the upper half of the values, from 128 of 255 on, where this is 1: x becomes 1 - x if larger."""
    return torch.lerp(images, torch.minimum(images, 1 - images), _beside(is_chosen, images))


_JITTER = (_brighten, _contrast, _saturate, _turn_hue)
