"""The widget: choices that the page and Python share, and what can be read of them."""

import operator
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any

import anywidget
import traitlets
from matplotlib.figure import Figure
from torch import Tensor, nn

from vit_course.patching import require_between

from .figure import draw
from .page import page
from .payload import pack
from .recording import check_comparable, check_images, check_masks, record_panel
from .views import View, keep_mass, look, middle, moved
from .words import describe, place

HERE = Path(__file__).parent


class ChoiceError(traitlets.TraitError, ValueError):
    """A choice that model or pictures do not have; as a TraitError it makes traitlets keep the old one."""


class AttentionExplorer(anywidget.AnyWidget):
    """A picture on which every patch shows what it attends to: move over it, click, choose layer and head.

    The arguments from `layer` to `mass` are the first choices. They and `image` are traits, shared with the
    page in both directions. Where a layer lacks the chosen head, its mean is shown; where its grid is
    another, the token moves to the patch at the same place.

    Args:
        model: any model of the course, or a ViT of timm or torchvision. It is run once, in eval mode, and
            stays as it is.
        images: the pictures as they look, (c, h, w) or (b, c, h, w), floats in 0..1, with 1 or 3 channels.
        compare: a second model, shown beside the first on the same hover.
        layer: number of the layer, -1 for the last.
        head: a number, 'mean' of the heads, or 'rollout' through all layers up to this one.
        token: the patch that was clicked, a number in reading order on the layer's grid, or 'cls', the class
            token. None takes the class token, or the patch in the middle where no layer has one.
        direction: 'query', what the token attends to, or 'key', what attends to it.
        mass: above 0, only the patches with this share of the attention stay bright.
        names: captions of the images, one each.
        masks: the true masks (h, w) or (b, h, w), booleans. They are outlined, and the words say how well
            attention finds them.
        transform: makes of the pictures what the model was trained on, for the models of the lessons
            transform=normalise. None feeds them as they are.
        model_names: what the models are called.

    Attributes:
        image: number of the picture that is shown.
        layer, head, token, direction, mass: the choices, as above.

    Raises:
        TypeError, ValueError: for images, masks, models and choices that do not fit, naming the numbers.
    """

    _esm = HERE / "explorer.js"
    _css = HERE / "explorer.css"

    image = traitlets.Any(0).tag(sync=True)
    layer = traitlets.Any(-1).tag(sync=True)
    head = traitlets.Any("mean").tag(sync=True)
    token = traitlets.Any("cls").tag(sync=True)
    direction = traitlets.Any("query").tag(sync=True)
    mass = traitlets.Any(0.0).tag(sync=True)
    _meta = traitlets.Dict().tag(sync=True)
    _data = traitlets.Bytes().tag(sync=True)

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        *,
        compare: nn.Module | None = None,
        layer: int = -1,
        head: int | str = "mean",
        token: int | str | None = None,
        direction: str = "query",
        mass: float = 0.0,
        names: Sequence[str] | None = None,
        masks: Tensor | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
        model_names: Sequence[str] = ("model", "compare"),
    ) -> None:
        self._images = check_images(images)
        self._masks = check_masks(masks, self._images)
        captions = _strings("names", range(len(self._images)) if names is None else names)
        if len(captions) != len(self._images):
            raise ValueError(
                f"{len(self._images)} images need as many names, got {len(captions)}: {captions}"
            )
        models = [model] if compare is None else [model, compare]
        titles = _strings("model_names", model_names)
        if len(titles) < len(models):
            raise ValueError(f"{len(models)} models need as many model_names, got {titles}")
        self._panels = [
            record_panel(title, each, self._images, transform)
            for title, each in zip(titles, models, strict=False)
        ]
        if compare is not None:
            check_comparable(*self._panels)
        meta, data = pack(self._panels, self._images, self._masks, captions)
        layer = self._checked_layer(layer)
        # the token, and the grid on which it is counted
        self._place: tuple[int | str, tuple[int, int]] = ("cls", self._layer_grid(layer))
        super().__init__(
            image=0,
            layer=layer,
            head=head,
            token=token,
            direction=direction,
            mass=mass,
            _meta=meta,
            _data=data,
        )

    # ---- what can be read ----------------------------------------------------------------------------------

    def map(self, model: int = 0) -> Tensor:
        """The weights of the present view in full precision, a copy.

        Args:
            model: 0 for the first, 1 for the one to compare.

        Returns:
            (rows, columns), NaN outside a window; (k, k) for channels.

        Raises:
            ValueError: for a model that is not there.
        """
        return self._view(model).map().clone()

    def mask(self, keep: float, model: int = 0) -> Tensor:
        """The fewest patches that hold a share of the present view's positive weight.

        Args:
            keep: the share, in 0..1.
            model: 0 for the first, 1 for the one to compare.

        Returns:
            Booleans (rows, columns).

        Raises:
            ValueError: for a share outside 0..1, a model that is not there, and channels, which have no map.
        """
        require_between(0, 1, keep=keep)
        view = self._view(model)
        if view.matrix is not None:
            raise ValueError(
                f"layer {view.number} ({view.layer.name}) compares channels: there are no patches to keep"
            )
        return keep_mass(view.values, keep).unflatten(0, view.layer.grid)

    @property
    def words(self) -> str:
        """The present view in sentences, as they stand below the picture."""
        truth = None if self._masks is None else self._masks[self.image]
        words = [describe(self._view(model), self.mass, truth) for model in range(len(self._panels))]
        if len(words) == 1:
            return words[0]
        return " ".join(f"{panel.name}: {each}" for panel, each in zip(self._panels, words, strict=True))

    def figure(self) -> Figure:
        """The present view as a matplotlib figure: the map on the picture, one for each head, the words."""
        views = []
        for number, panel in enumerate(self._panels):
            view = self._view(number)
            heads = range(view.layer.weights.shape[1])
            views.append((panel.name, view, [self._view(number, head) for head in heads]))
        truth = None if self._masks is None else self._masks[self.image]
        return draw(self._images[self.image], views, self.mass, truth, self._title(), self.words)

    def to_html(self, path: str | PathLike[str]) -> Path:
        """Write one HTML file with everything in it, which works from disk without server or network.

        Args:
            path: of the file; ~ is the user's home.

        Returns:
            Its path.
        """
        choices = ("image", "layer", "head", "token", "direction", "mass", "_meta")
        state = {name: getattr(self, name) for name in choices}
        script = (HERE / "explorer.js").read_text(encoding="utf-8")
        style = (HERE / "explorer.css").read_text(encoding="utf-8")
        target = Path(path).expanduser()
        target.write_text(
            page(script, style, state, self._data, self._picture(), repr(self)), encoding="utf-8"
        )
        return target

    def __repr__(self) -> str:
        return f"Attention explorer. {self._title()}. {self.words}"

    def _repr_mimebundle_(self, **kwargs: dict) -> tuple[dict, dict]:
        """Beside the widget a picture and its words, which a notebook keeps where no kernel runs."""
        data, metadata = super()._repr_mimebundle_(**kwargs) or ({}, {})
        return data | {"image/png": self._picture()}, metadata | {"image/png": {"alt": repr(self)}}

    # ---- choices -------------------------------------------------------------------------------------------

    @traitlets.validate("image")
    def _check_image(self, proposal: dict) -> int:
        return _number("image", proposal["value"], len(self._images), "images")

    @traitlets.validate("layer")
    def _check_layer(self, proposal: dict) -> int:
        return self._checked_layer(proposal["value"])

    @traitlets.validate("head")
    def _check_head(self, proposal: dict) -> int | str:
        head, number = proposal["value"], self.layer
        layer = self._panels[0].layers[number]
        if head == "rollout" and not self._panels[0].rolls(number):
            raise ChoiceError(
                f"layer {number} ({layer.name}) is of kind {layer.kind!r}: rollout needs 'global' "
                "layers of one number of tokens"
            )
        if isinstance(head, str):
            if head not in ("mean", "rollout"):
                raise ChoiceError(f"head must be a number, 'mean' or 'rollout', got {head!r}")
            return head
        return _number("head", head, layer.weights.shape[1], f"heads in layer {number} ({layer.name})")

    @traitlets.validate("token")
    def _check_token(self, proposal: dict) -> int | str:
        token = proposal["value"]
        if token is None or isinstance(token, str):
            if token not in (None, "cls"):
                raise ChoiceError(f"token must be the number of a patch, 'cls' or None, got {token!r}")
            has_class_token = any(layer.num_prefix_tokens for panel in self._panels for layer in panel.layers)
            return "cls" if has_class_token else middle(self._layer_grid(self.layer))
        rows, columns = self._layer_grid(self.layer)
        return _number("token", token, rows * columns, f"patches ({rows} by {columns})")

    @traitlets.validate("direction")
    def _check_direction(self, proposal: dict) -> str:
        if proposal["value"] not in ("query", "key"):
            raise ChoiceError(f"direction must be 'query' or 'key', got {proposal['value']!r}")
        return proposal["value"]

    @traitlets.validate("mass")
    def _check_mass(self, proposal: dict) -> float:
        try:
            require_between(0, 1, mass=proposal["value"])
        except (TypeError, ValueError) as error:
            raise ChoiceError(str(error)) from None
        return float(proposal["value"])

    @traitlets.observe("layer")
    def _follow_layer(self, change: dict) -> None:
        """Keep the other choices where the new layer has them.

        A page that has done so already sends them along: nothing changes then.
        """
        number, panel = change["new"], self._panels[0]
        heads, grid = panel.layers[number].weights.shape[1], self._layer_grid(number)
        lacks_rollout = self.head == "rollout" and not panel.rolls(number)
        if lacks_rollout or (isinstance(self.head, int) and self.head >= heads):
            self.head = "mean"
        place, counted_on = self._place
        if grid != counted_on and not isinstance(place, str):
            self.token = moved(place, counted_on, grid)
        self._place = (self.token, grid)

    @traitlets.observe("token")
    def _note_place(self, change: dict) -> None:
        self._place = (change["new"], self._layer_grid(self.layer))

    def _checked_layer(self, layer: int) -> int:
        layers = len(self._panels[0].layers)
        return layers - 1 if layer == -1 else _number("layer", layer, layers, "layers")

    def _layer_grid(self, number: int) -> tuple[int, int]:
        return self._panels[0].layers[number].grid

    # ---- views ---------------------------------------------------------------------------------------------

    def _view(self, model: int, head: int | str | None = None) -> View:
        """What a model shows for the present choices, or for another head."""
        if model not in range(len(self._panels)):
            raise ValueError(f"model must be 0 to {len(self._panels) - 1}, got {model!r}")
        panel, head = self._panels[model], self.head if head is None else head
        number = panel.matching(self.layer, len(self._panels[0].layers))
        return look(panel, number, self.image, head, self.token, self.direction)

    def _title(self) -> str:
        view = self._view(0)
        head = {"mean": "mean of the heads", "rollout": "rollout"}.get(str(view.head), f"head {view.head}")
        token = place(view.token, view.layer.grid)
        shown = f"what {token} looks at" if view.direction == "query" else f"what looks at {token}"
        if view.matrix is not None:
            shown = "channels"
        return f"Layer {view.number} ({view.layer.name}), {head}: {shown}"

    def _picture(self) -> bytes:
        """The figure as a PNG; without the program's name in it, the same figure makes the same bytes."""
        picture = BytesIO()
        self.figure().savefig(picture, format="png", facecolor="white", metadata={"Software": None})
        return picture.getvalue()


def _strings(name: str, given: Iterable[object]) -> list[str]:
    """Names as strings, of a list or an array; one string alone would pass for a list of letters."""
    if isinstance(given, str):
        raise TypeError(f"{name} must be a list of names, got {given!r}")
    return [str(each) for each in given]


def _number(name: str, value: Any, count: int, what: str) -> int:
    """`value` as an int of 0 … count - 1; tensors and arrays of one number are welcome."""
    try:
        number = operator.index(value)
    except (TypeError, ValueError):
        raise ChoiceError(f"{name} must be a whole number, got {value!r}") from None
    if isinstance(value, bool) or not 0 <= number < count:
        raise ChoiceError(f"{name} must be 0 to {count - 1}, there are {count} {what}; got {value!r}")
    return number
