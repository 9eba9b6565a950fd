"""What all adapters of foreign ViTs share: the backbone protocol around a model that stays as it is."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

from torch import Tensor, nn

from vit_course.patching import patch_grid, require_images, resize_positions
from vit_course.vit import Backbone

Recorder = Callable[[Tensor], None]
# Makes a foreign attention layer hand its weights to a recorder, inside a `with` block.
Recording = Callable[[Any, Recorder], AbstractContextManager[None]]


class Tap(nn.Module):
    """Stands for one foreign attention layer where `record_attention` looks for ours."""

    kind = "global"

    def __init__(self, layer: nn.Module, recording: Recording) -> None:
        super().__init__()
        self._layer = (layer,)  # in a tuple, because it is a submodule of the foreign model already
        self._recording = recording
        self.attention_recorder: Recorder | None = None  # set by record_attention

    def open(self) -> AbstractContextManager:
        """Record the layer inside a `with` block, if anybody wants its weights."""
        if self.attention_recorder is None:
            return nullcontext()
        return self._recording(self._layer[0], self.attention_recorder)


class Step(nn.Module):
    """A step of the foreign model under a name of ours; its weights are listed under their own name only."""

    def __init__(self, step: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.step = step

    def forward(self, given: Tensor) -> Tensor:
        return self.step(given)


class ViTAdapter(Backbone):
    """What the adapters of ViTs share.

    The foreign layers are changed only while the adapter runs: a copy made at any other time, or the foreign
    model called by itself, is as if nobody recorded.
    """

    model: Any

    def __init__(
        self,
        model: nn.Module,
        *,
        grid: tuple[int, int],
        patch_size: tuple[int, int],
        num_classes: int,
        dim: int,
        num_prefix_tokens: int,
    ) -> None:
        super().__init__(
            image_size=(grid[0] * patch_size[0], grid[1] * patch_size[1]),
            patch_size=patch_size,
            num_classes=num_classes,
            dim=dim,
            patch_embedding=Step(self.embed),
        )
        self.model, self.num_prefix_tokens = model, num_prefix_tokens
        self.add_module("norm", Step(self.normalise))
        self._taps = []
        for name, layer, recording in self.attention_layers():
            tap = Tap(layer, recording)
            self._taps.append(tap)
            self._add_under(name, tap)
        foreign = set(model.modules())  # whose parts may be in modes of their own: train() would reach them
        for part in self.modules():
            if part not in foreign:
                part.training = model.training

    def _add_under(self, name: str, part: nn.Module) -> None:
        """Make `part` a submodule of this name, which may have dots."""
        *path, last = name.split(".")
        place: nn.Module = self
        for step in path:
            if not hasattr(place, step):
                place.add_module(step, nn.Module())
            place = place.get_submodule(step)
        place.add_module(last, part)

    def attention_layers(self) -> Iterator[tuple[str, nn.Module, Recording]]:
        """The name of every attention layer in the foreign model, the layer, and the way to record it."""
        raise NotImplementedError

    def embed(self, images: Tensor) -> Tensor:
        """Images (b, c, h, w) of any size that patches fill -> patch tokens (b, n, d) before positions."""
        require_images(images)
        patch_grid(images.shape[-2:], self.patch_size)
        return self.embed_patches(images)

    def embed_patches(self, images: Tensor) -> Tensor:
        """The foreign patch embedding: (b, c, h, w) -> (b, n, d)."""
        raise NotImplementedError

    def run_blocks(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Class tokens, positions and blocks of the foreign model; see `encode`."""
        raise NotImplementedError

    def normalise(self, tokens: Tensor) -> Tensor:
        """The foreign model's last norm: (b, n, d) -> (b, n, d)."""
        raise NotImplementedError

    def encode(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        with ExitStack() as recording:
            for tap in self._taps:
                recording.enter_context(tap.open())
            return self.run_blocks(tokens, grid)

    def resized(self, positions: Tensor, grid: tuple[int, int], num_prefix_tokens: int) -> Tensor:
        """The foreign position embedding (1, n, d), resized to the grid that the tokens have."""
        return resize_positions(positions[0], self.grid, grid, num_prefix_tokens)
