"""Patching.

How does a picture become a table that a transformer can read, one row per patch, and what must we add so that
nothing is lost?

Made from notebooks/01_patching.ipynb by `make export`: read and edit the lesson, not this file.
"""

import math
from collections.abc import Sequence
from numbers import Real

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

__all__ = [
    "pair",
    "require_at_least",
    "require_between",
    "require_floats",
    "patch_grid",
    "require_images",
    "require_tokens",
    "patchify",
    "unpatchify",
    "start_linear",
    "PatchEmbedding",
    "sincos_positions",
    "resize_positions",
    "halvings",
    "ConvStem",
]


def pair(size: int | Sequence[int], name: str = "size") -> tuple[int, int]:
    """A (height, width) pair from one positive int or from two.

    Args:
        size: a positive int or a pair of them.
        name: what the size is called in the error sentence.

    Raises:
        TypeError: for anything but ints.
        ValueError: for sizes below one.

    Built in lesson 01.
    """
    sides = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) for side in sides):
        raise TypeError(f"{name} must be an int or a (height, width) pair of ints, got {size!r}")
    if min(sides) < 1:
        raise ValueError(f"{name} must be at least 1, got {size!r}")
    height, width = sides
    return height, width


def require_at_least(minimum: int, **sizes: int) -> None:
    """Raise a TypeError or ValueError with its name, unless every size is an int from `minimum` on.

    Built in lesson 01.
    """
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"{name} must be an int, got {size!r}")
        if size < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {size}")


def require_between(low: float, high: float, **numbers: float) -> None:
    """Raise a TypeError or ValueError with its name, unless every number is in low … high.

    Built in lesson 01.
    """
    for name, number in numbers.items():
        if not isinstance(number, Real) or isinstance(number, bool):
            raise TypeError(f"{name} must be a number, got {number!r}")
        if not low <= number <= high:
            raise ValueError(f"{name} must be in {low} … {high}, got {number}")


def require_floats(name: str, tensor: Tensor, axes: str) -> None:
    """Raise a TypeError or ValueError unless `tensor` holds floats and has axes such as "b n d".

    Built in lesson 01.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor with axes ({axes}), got {tensor!r}"[:200])
    if tensor.ndim != len(axes.split()):
        raise ValueError(f"{name} must have axes ({axes}), got shape {tuple(tensor.shape)}")
    if tensor.dtype == torch.uint8:
        raise TypeError(f"{name} must be floats, got {tensor.dtype}; divide bytes by 255 first")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be floats, got {tensor.dtype}")


def patch_grid(image_size: int | Sequence[int], patch_size: int | Sequence[int]) -> tuple[int, int]:
    """How many patches an image is cut into: (rows, columns).

    Args:
        image_size, patch_size: in pixels, an int or a (height, width) pair.

    Raises:
        TypeError, ValueError: for other sizes, and where the patches do not fill the image exactly.

    Built in lesson 01.
    """
    image_size, patch_size = pair(image_size, "image_size"), pair(patch_size, "patch_size")
    if image_size[0] % patch_size[0] or image_size[1] % patch_size[1]:
        raise ValueError(f"image_size {image_size} is not divisible by patch_size {patch_size}")
    return image_size[0] // patch_size[0], image_size[1] // patch_size[1]


def require_images(images: Tensor, channels: int | None = None) -> None:
    """Raise a TypeError or ValueError unless `images` is a float tensor (b, c, h, w).

    Every model of the course begins with it, so that a wrong batch is named before it enters a layer.

    Args:
        images: the batch.
        channels: the c that it must have, any by default.

    Built in lesson 01.
    """
    require_floats("images", images, "b c h w")
    if channels is not None and images.shape[1] != channels:
        raise ValueError(
            f"images must have {channels} channels, got {images.shape[1]} in shape {tuple(images.shape)}"
        )


def require_tokens(tokens: Tensor, dim: int) -> None:
    """Raise a TypeError or ValueError unless `tokens` is a float tensor (b, n, dim).

    Built in lesson 01.
    """
    require_floats("tokens", tokens, "b n d")
    if tokens.shape[2] != dim:
        raise ValueError(f"tokens must have shape (b, n, {dim}), got {tuple(tokens.shape)}")


def patchify(images: Tensor, patch_size: int | tuple[int, int]) -> Tensor:
    """Cut images into patches and flatten each patch.

    Patches come in reading order. Inside a patch the order is row, column, channel, so that the colours of
    one pixel stay together.

    Args:
        images: (b, c, h, w).
        patch_size: p or (p1, p2), in pixels.

    Returns:
        (b, n, p1·p2·c) with n = (h / p1) · (w / p2).

    Raises:
        TypeError, ValueError: for other images, and where patches do not fill them.

    Source: Dosovitskiy et al. 2020, section 3.1.

    Built in lesson 01.
    """
    require_images(images)
    p1, p2 = pair(patch_size, "patch_size")
    patch_grid(images.shape[-2:], (p1, p2))
    return rearrange(images, "b c (rows p1) (columns p2) -> b (rows columns) (p1 p2 c)", p1=p1, p2=p2)


def unpatchify(
    patches: Tensor, patch_size: int | tuple[int, int], image_size: int | tuple[int, int]
) -> Tensor:
    """Put flattened patches back into images: the exact inverse of `patchify`.

    Args:
        patches: (b, n, p1·p2·c).
        patch_size: p or (p1, p2), in pixels.
        image_size: (h, w), in pixels.

    Returns:
        Images (b, c, h, w).

    Raises:
        TypeError, ValueError: where the number or the length of the patches does not fit.

    Built in lesson 01.
    """
    p1, p2 = pair(patch_size, "patch_size")
    rows, columns = patch_grid(image_size, (p1, p2))
    require_floats("patches", patches, "b n (p1·p2·c)")
    if patches.shape[1] != rows * columns or patches.shape[2] % (p1 * p2):
        raise ValueError(
            f"patches of shape {tuple(patches.shape)} do not fill a grid of {rows} by {columns} patches of "
            f"{p1} by {p2} pixels"
        )
    return rearrange(
        patches, "b (rows columns) (p1 p2 c) -> b c (rows p1) (columns p2)", rows=rows, p1=p1, p2=p2
    )


def start_linear(layer: nn.Linear | nn.Conv2d, parts: int = 1) -> None:
    """Start a linear layer as the original ViT starts those of its blocks: Xavier-uniform, biases zero.

    Args:
        layer: changed in place; a convolution counts as the matrix that it multiplies patches with, as in MAE
            (the patch embedding of the original ViT starts LeCun-normal).
        parts: how many matrices lie on top of each other in its weight; each starts for itself.

    Built in lesson 01.
    """
    for matrix in layer.weight.flatten(1).chunk(parts):
        nn.init.xavier_uniform_(matrix)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class PatchEmbedding(nn.Module):
    """One linear layer, the same for every patch, as a convolution.

    A convolution whose stride equals its kernel looks at each patch once; its weight (d, c, p1, p2),
    flattened, is the matrix E of the paper. No position is added and nothing is normalised here.

    Args:
        patch_size: p or (p1, p2), in pixels.
        dim: width d of a token.
        channels: c.

    Shape: images (b, c, h, w) of any size that patches fill -> tokens (b, n, d).

    Raises:
        TypeError, ValueError: for sizes and images that do not fit.

    Source: Dosovitskiy et al. 2020, equation 1.

    Built in lesson 01.
    """

    def __init__(self, *, patch_size: int | tuple[int, int], dim: int, channels: int = 3) -> None:
        super().__init__()
        require_at_least(1, dim=dim, channels=channels)
        self.patch_size = pair(patch_size, "patch_size")
        self.proj = nn.Conv2d(channels, dim, kernel_size=self.patch_size, stride=self.patch_size)
        start_linear(self.proj)

    def forward(self, images: Tensor) -> Tensor:
        require_images(images, self.proj.in_channels)
        patch_grid(images.shape[-2:], self.patch_size)
        return rearrange(self.proj(images), "b d rows columns -> b (rows columns) d")


def sincos_positions(grid: tuple[int, int], dim: int, temperature: float = 10000.0) -> Tensor:
    """Fixed two-dimensional positions from sines and cosines.

    A quarter of the width each for sin x, cos x, sin y, cos y, at q = dim / 4 frequencies temperature^(-i /
    (q - 1)), i = 0 … q - 1.

    Args:
        grid: (rows, columns).
        dim: width d, divisible by 4.
        temperature: how much slower the last frequency is than the first.

    Returns:
        (n, d), one row per patch in reading order.

    Raises:
        TypeError, ValueError: for another grid, width or temperature.

    Source: Beyer et al. 2022, as in the SimpleViT of big_vision.

    Built in lesson 01.
    """
    rows, columns = pair(grid, "grid")
    require_at_least(4, dim=dim)
    require_between(1, math.inf, temperature=temperature)
    if dim % 4:
        raise ValueError(f"sine-cosine positions need a dim divisible by 4, got {dim}")
    quarter = dim // 4
    # With one frequency (dim 4) the formula would divide 0 by 0; the frequency is then 1.
    frequencies = temperature ** (-torch.arange(quarter) / max(quarter - 1, 1))
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    x_angles, y_angles = x.flatten()[:, None] * frequencies, y.flatten()[:, None] * frequencies
    return torch.cat([x_angles.sin(), x_angles.cos(), y_angles.sin(), y_angles.cos()], dim=1)


def resize_positions(
    positions: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], num_prefix_tokens: int = 0
) -> Tensor:
    """Stretch learned positions to another grid.

    The rows of class tokens have no place on the grid: they stay as they are. The others are resized like a
    picture with d channels, bicubic and antialiased.

    Args:
        positions: (num_prefix_tokens + rows·columns, d).
        old_grid, new_grid: (rows, columns).
        num_prefix_tokens: how many rows come before those of the patches.

    Returns:
        (num_prefix_tokens + new rows·columns, d).

    Raises:
        TypeError, ValueError: where the positions do not fill the old grid.

    Source: Dosovitskiy et al. 2020, section 3.2 (2D interpolation of the positions).

    Built in lesson 01.
    """
    old_grid, new_grid = pair(old_grid, "old_grid"), pair(new_grid, "new_grid")
    require_floats("positions", positions, "n d")
    require_at_least(0, num_prefix_tokens=num_prefix_tokens)
    if len(positions) != num_prefix_tokens + old_grid[0] * old_grid[1]:
        raise ValueError(
            f"positions of shape {tuple(positions.shape)} are not {num_prefix_tokens} prefix tokens "
            f"and a grid of {old_grid[0]} by {old_grid[1]} patches"
        )
    if old_grid == new_grid:
        return positions
    prefix, patches = positions[:num_prefix_tokens], positions[num_prefix_tokens:]
    picture = rearrange(patches, "(rows columns) d -> 1 d rows columns", rows=old_grid[0])
    # PyTorch has no bicubic resizing for halves on the CPU
    picture = picture.to(torch.promote_types(picture.dtype, torch.float32))
    picture = F.interpolate(picture, size=new_grid, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([prefix, rearrange(picture, "1 d rows columns -> (rows columns) d").to(prefix.dtype)])


def halvings(patch_size: int) -> int:
    """How many convolutions of stride 2 make one cell of each patch: log2 of its side.

    Args:
        patch_size: side of a patch in pixels, a power of two from 2 on.

    Raises:
        TypeError, ValueError: for another side.

    Built in lesson 01.
    """
    require_at_least(1, patch_size=patch_size)
    steps = patch_size.bit_length() - 1
    if steps < 1 or patch_size != 2**steps:
        raise ValueError(f"patch_size of a stem must be a power of two from 2 on, got {patch_size}")
    return steps


class ConvStem(nn.Module):
    """A few small convolutions in the place of one big one.

    Each 3 × 3 convolution of stride 2 halves the picture; a last 1 × 1 convolution sets the width. The paper
    uses BatchNorm and ReLU; here GroupNorm, which is the same in training and evaluation, and GELU.

    Args:
        patch_size: the overall stride in pixels, a power of two from 2 on.
        dim: width d of a token, divisible by 8.
        channels: c.

    Shape: images (b, c, h, w) of any size that the stride divides -> tokens (b, n, d), n = (h / patch_size) ·
    (w / patch_size).

    Raises:
        TypeError, ValueError: for sizes and images that do not fit.

    Source: Xiao et al. 2021, "Early convolutions help transformers see better".

    Built in lesson 01.
    """

    def __init__(self, *, patch_size: int, dim: int, channels: int = 3) -> None:
        super().__init__()
        require_at_least(1, dim=dim, channels=channels)
        if dim % 8:
            raise ValueError(f"dim of a ConvStem must be divisible by 8, got {dim}")
        widths = [channels] + [dim // 2] * (halvings(patch_size) - 1) + [dim]
        layers: list[nn.Module] = []
        for width_in, width_out in zip(widths[:-1], widths[1:], strict=True):
            layers += [
                nn.Conv2d(width_in, width_out, 3, stride=2, padding=1, bias=False),
                nn.GroupNorm(4, width_out),
                nn.GELU(),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(dim, dim, 1))
        self.patch_size, self.channels = pair(patch_size), channels

    def forward(self, images: Tensor) -> Tensor:
        require_images(images, self.channels)
        patch_grid(images.shape[-2:], self.patch_size)
        return rearrange(self.layers(images), "b d rows columns -> b (rows columns) d")
