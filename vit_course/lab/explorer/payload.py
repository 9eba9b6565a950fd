"""Attention weights as bytes for the browser, and back: one byte for each weight, four for each row.

A row is stored as its scale (float32) and a byte q for each weight. A row without negative weights has its
maximum as scale, and weight = (q / 255)² · scale: the square spends the bytes where most weights are. A row
with negative weights (talking heads) has *minus* its largest absolute value as scale, and
weight = (q - 128) / 127 · |scale|. Either way a weight is off by less than 0.4 % of that maximum.
"""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import colormaps
from torch import Tensor

from .recording import CheckedLayer, Panel

VERSION = 1
MAX_BYTES = 64_000_000  # 48 MB were measured to reach a notebook page in three seconds
COLOURS = "viridis"


def encode(weights: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Weights as bytes and scales; the module says in what form.

    Args:
        weights: (…, k), float32.

    Returns:
        Bytes (…, k), uint8, and scales (…,), float32.

    Raises:
        ValueError: for NaN and infinite weights.
    """
    if not weights.isfinite().all():
        raise ValueError(
            f"{int((~weights.isfinite()).sum())} of {weights.numel()} weights are NaN or infinite"
        )
    largest = weights.abs().amax(dim=-1, keepdim=True)
    share = weights / largest.clamp(min=torch.finfo(torch.float32).tiny)
    signed = (weights < 0).any(dim=-1, keepdim=True)
    codes = torch.where(signed, share * 127 + 128, share.clamp(min=0).sqrt() * 255).round()
    scales = torch.where(signed, -largest, largest).squeeze(-1)
    return codes.to(torch.uint8).numpy(), scales.numpy().astype("<f4")


def decode(codes: np.ndarray, scales: np.ndarray) -> Tensor:
    """The weights that the browser sees.

    Args:
        codes: bytes (…, k).
        scales: (…,).

    Returns:
        Weights (…, k), float32.
    """
    code, scale = torch.from_numpy(np.array(codes)).float(), torch.from_numpy(np.array(scales))[..., None]
    return torch.where(scale < 0, (code - 128) / 127 * scale.abs(), (code / 255) ** 2 * scale)


def pack(
    panels: Sequence[Panel], images: Tensor, masks: Tensor | None, names: Sequence[str]
) -> tuple[dict, bytes]:
    """Everything a page needs.

    Args:
        panels: the models.
        images: (b, c, h, w) in 0..1.
        masks: (b, h, w) or None.
        names: captions of the images.

    Returns:
        A description for JSON, and one block of bytes to which its offsets point.

    Raises:
        ValueError: before anything is encoded, where it would take more than MAX_BYTES.
    """
    _require_fitting(panels, len(images))
    block = bytearray()

    def add(array: np.ndarray) -> int:
        """Append an array, at a multiple of four as the browser's views need it, and say where."""
        block.extend(bytes(-len(block) % 4))
        offset = len(block)
        block.extend(np.ascontiguousarray(array).tobytes())
        return offset

    def described(layer: CheckedLayer, rolls: bool) -> dict:
        codes, scales = encode(layer.weights)
        _, heads, queries, keys = layer.weights.shape
        return {
            "name": layer.name,
            "kind": layer.kind,
            "heads": heads,
            "queries": queries,
            "keys": keys,
            "grid": list(layer.grid),
            "prefix": layer.num_prefix_tokens,
            "windows": layer.windows,
            "rolls": rolls,
            "scales": add(scales),
            "codes": add(codes),
            "members": add(layer.members.numpy().astype("<i4")) if layer.kind == "window" else None,
        }

    height, width = images.shape[-2:]
    pixels = (images.expand(-1, 3, -1, -1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    colours = (colormaps[COLOURS](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
    meta: dict = {
        "version": VERSION,
        "images": {"names": list(names), "height": height, "width": width, "pixels": add(pixels)},
        "masks": None if masks is None else add(masks.to(torch.uint8).numpy()),
        "colours": add(colours),
        "panels": [
            {
                "name": panel.name,
                "layers": [
                    described(layer, panel.rolls(number)) for number, layer in enumerate(panel.layers)
                ],
            }
            for panel in panels
        ],
    }
    meta["bytes"] = len(block)
    return meta, bytes(block)


def payload_bytes(panels: Sequence[Panel]) -> int:
    """What the weights of these models will take: one byte for each, and four for each row."""
    weights = [layer.weights for panel in panels for layer in panel.layers]
    return sum(tensor.numel() + 4 * (tensor.numel() // tensor.shape[-1]) for tensor in weights)


def _require_fitting(panels: Sequence[Panel], images: int) -> None:
    """Raise a ValueError where the weights of so many images are too much for a page."""
    size = payload_bytes(panels)
    if size <= MAX_BYTES:
        return
    one = size / images
    fitting = int(MAX_BYTES // one)
    advice = (
        f"give at most {fitting}"
        if fitting
        else "one image alone is too much: give a smaller one, since half the side takes about a sixteenth"
    )
    raise ValueError(
        f"the attention weights of {images} images take {size / 1e6:,.0f} MB, {one / 1e6:,.1f} MB each, "
        f"and a notebook page takes {MAX_BYTES / 1e6:.0f} MB; {advice}"
    )
