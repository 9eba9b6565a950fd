"""What is given to the explorer stays unchanged; the usual forms are taken, and what is wrong is named."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from support.explorer_models import EVERY_KIND, FixedLayer, FixedModel, noise, pictures, true_masks, vit
from torch import Tensor, nn
from torchvision.transforms import Normalize

from vit_course.lab.data import normalise
from vit_course.lab.explorer import AttentionExplorer

# ---- what is lent comes back unchanged ---------------------------------------------------------------------


def in_place(images: Tensor) -> Tensor:
    return Normalize([0.5] * 3, [0.5] * 3, inplace=True)(images)


class ChangesItsInput(nn.Module):
    """A model that begins with an operation in place."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = vit()

    def forward(self, images: Tensor) -> Tensor:
        return self.vit(images.sub_(0.5))


@pytest.mark.parametrize(
    ("model", "transform"), [(vit(), in_place), (ChangesItsInput(), None)], ids=["transform", "model"]
)
def test_what_works_in_place_changes_no_picture(model: nn.Module, transform: Callable | None) -> None:
    images = pictures()
    explorer = AttentionExplorer(model, images, compare=model, transform=transform)
    assert torch.equal(images, pictures()), "the caller's pictures"
    assert torch.equal(explorer._images, pictures()), "the explorer's pictures"
    assert torch.equal(explorer.map(0), explorer.map(1)), "the same model, but other pictures"


def test_what_is_changed_afterwards_does_not_reach_the_explorer() -> None:
    images, masks, weights = pictures(1), true_masks(1), noise(1, 2, 49, 49).softmax(-1)
    explorer = AttentionExplorer(
        FixedModel(FixedLayer("global", weights)), images, masks=masks, token=11, head=1, mass=0.6
    )
    words, shown = explorer.words, explorer.map().clone()
    for lent in (images, masks, weights, explorer.map(), explorer.mask(0.6)):
        lent.zero_()
    assert explorer.words == words and torch.equal(explorer.map(), shown)


def test_windows_and_channels_are_given_as_copies() -> None:
    for name in ("window", "channel"):
        explorer = EVERY_KIND[name]()
        explorer.head = 0
        before = explorer.map().clone()
        explorer.map().zero_()
        torch.testing.assert_close(explorer.map(), before, equal_nan=True, rtol=0, atol=0)


def test_every_part_of_a_model_keeps_its_mode() -> None:
    """Also one that is in another mode than the whole, and one whose train() does more than set a flag."""

    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit, self.frozen = vit(dropout=0.5), nn.Dropout(0.5)
            self.train()

        def train(self, mode: bool = True) -> "Frozen":
            super().train(mode)
            self.frozen.eval()
            return self

        def forward(self, images: Tensor) -> Tensor:
            return self.vit(self.frozen(images))

    model = Frozen()
    model.vit.blocks[0].eval()
    before = {name: part.training for name, part in model.named_modules()}
    first, second = (AttentionExplorer(model, pictures()).map() for _ in range(2))
    assert torch.equal(first, second), "dropout is on"
    assert {name: part.training for name, part in model.named_modules()} == before
    with pytest.raises(ValueError, match="not divisible"):
        AttentionExplorer(model, pictures()[..., :30])
    assert {name: part.training for name, part in model.named_modules()} == before


# ---- standard callers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_another_default_type_changes_nothing(kind: str, request: pytest.FixtureRequest) -> None:
    expected = EVERY_KIND[kind]()
    request.addfinalizer(lambda: torch.set_default_dtype(torch.float32))
    torch.set_default_dtype(torch.float64)
    explorer = EVERY_KIND[kind]()
    for layer in range(len(explorer._panels[0].layers)):
        expected.layer = explorer.layer = layer
        assert explorer.map().dtype == torch.float32 and explorer.map().shape == expected.map().shape
        assert explorer.words and explorer.figure().axes


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_of_another_type_gets_its_own(dtype: torch.dtype) -> None:
    explorer = AttentionExplorer(vit().to(dtype), pictures())
    assert explorer.map().dtype == torch.float32
    torch.testing.assert_close(explorer.map(), AttentionExplorer(vit(), pictures()).map(), atol=0.1, rtol=0)


def test_names_and_choices_may_be_numpys() -> None:
    explorer = AttentionExplorer(
        vit(),
        pictures(),
        compare=vit(depth=2),
        names=np.array(["cat", "dog"]),
        model_names=np.array(["one", "two"]),
        layer=np.int64(1),
        head=np.int64(0),
        token=np.array(7),
        mass=np.float32(0.5),
    )
    assert explorer._meta["images"]["names"] == ["cat", "dog"] and explorer.words.startswith("one: Patch 7 ")
    assert [explorer.layer, explorer.head, explorer.token, explorer.mass] == [1, 0, 7, 0.5]
    assert {type(getattr(explorer, name)) for name in ("layer", "head", "token")} == {int}
    assert AttentionExplorer(vit(), pictures(), names=[3, 4])._meta["images"]["names"] == ["3", "4"]


def test_a_page_is_written_at_home(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert EVERY_KIND["grey"]().to_html("~/page.html") == tmp_path / "page.html"
    assert (tmp_path / "page.html").is_file()


def spoiled(value: float) -> Tensor:
    weights = noise(1, 2, 49, 49).softmax(-1)
    weights[0, 1, 3, 4] = value
    return weights


ONE = pictures(1)


def show(model: object = None, images: object = ONE, **more: object) -> AttentionExplorer:
    return AttentionExplorer(model or vit(), images, **more)


def fixed(kind: str, *shape: int) -> AttentionExplorer:
    """A layer of this kind with weights of this shape, on a grid of 6 by 8 patches."""
    return show(FixedModel(FixedLayer(kind, torch.ones(shape))))


def in_windows(members: list[list[int]], tokens: int) -> AttentionExplorer:
    """Two windows of so many tokens on a grid of 2 by 2 patches."""
    return show(
        FixedModel(FixedLayer("window", torch.ones(2, 1, tokens, tokens), (2, 2), torch.tensor(members)))
    )


BAD_INPUT = {
    "no picture": (lambda: show(images=[[1.0]]), TypeError, "images must be a tensor"),
    "NumPy": (
        lambda: show(images=ONE.numpy()),
        TypeError,
        r"images must be a tensor \(c, h, w\) or \(b, c, h, w\), got ndarray; .*to_tensor",
    ),
    "a list": (lambda: show(images=[ONE[0], ONE[0]]), TypeError, "got list; .*torch.stack"),
    "transform": (
        lambda: show(transform=lambda images: images.numpy()),
        TypeError,
        r"transform must give a tensor \(b, c, h, w\), got ndarray",
    ),
    "bytes": (lambda: show(images=(255 * ONE).byte()), TypeError, "divide bytes by 255"),
    "axes": (lambda: show(images=ONE[0, 0]), ValueError, r"got shape \(24, 32\)"),
    "channels": (lambda: show(images=ONE[:, :2]), ValueError, r"1 or 3 channels, got shape \(1, 2, 24, 32\)"),
    "none": (lambda: show(images=ONE[:0]), ValueError, r"got shape \(0, 3, 24, 32\)"),
    "range": (
        lambda: show(images=normalise(ONE)),
        ValueError,
        "in 0..1, got -1.85 to 1.85; .*transform=normalise",
    ),
    "NaN": (lambda: show(images=ONE * torch.nan), ValueError, "in 0..1, got nan to nan"),
    "size": (lambda: show(images=ONE[..., :30]), ValueError, r"\(24, 30\) is not divisible"),
    "no model": (lambda: show("vit"), TypeError, "model must be a torch.nn.Module, got str"),
    "no attention": (lambda: show(nn.Linear(2, 2)), ValueError, "model is a Linear, which has no attention"),
    "NaN weights": (
        lambda: show(FixedModel(FixedLayer("global", spoiled(torch.nan)))),
        ValueError,
        "layer 'layers.0' has 1 of 4,802 attention weights that are NaN",
    ),
    "infinite weights": (
        lambda: show(FixedModel(FixedLayer("global", spoiled(torch.inf)))),
        ValueError,
        "1 of 4,802",
    ),
    "tokens": (
        lambda: fixed("global", 1, 2, 53, 53),
        ValueError,
        "53 tokens, which are not 1 class tokens and a grid of 6 by 8",
    ),
    "few tokens": (
        lambda: fixed("class", 1, 2, 1, 40),
        ValueError,
        "40 tokens, which are not 1 class tokens",
    ),
    "no grid": (
        lambda: show(FixedLayer("global", torch.ones(1, 2, 4, 4))),
        ValueError,
        "4 tokens but no patch grid",
    ),
    "queries": (lambda: fixed("global", 1, 2, 3, 49), ValueError, "as many queries as keys, got 3 and 49"),
    "class rows": (lambda: fixed("class", 1, 2, 2, 49), ValueError, "has one query, but it has 2"),
    "batch": (lambda: fixed("global", 3, 2, 49, 49), ValueError, r"\(3, 2, 49, 49\) for 1 images"),
    "kind": (lambda: fixed("sparse", 1, 2, 49, 49), ValueError, "kind 'sparse'"),
    "members": (
        lambda: in_windows([[0, 1], [1, 2]], 2),
        ValueError,
        "do not name each of the 2 by 2 patches once",
    ),
    "window size": (lambda: in_windows([[0, 1], [2, 3]], 3), ValueError, "windows of 2 patches, but weights"),
    "other grid": (
        lambda: show(compare=vit(patch_size=8)),
        ValueError,
        "of model has 6 by 8 patches, .* of compare has 3 by 4",
    ),
    "masks": (lambda: show(masks=true_masks(2)), ValueError, r"need masks \(1, 24, 32\), got \(2, 24, 32\)"),
    "mask floats": (lambda: show(masks=true_masks(1).float()), TypeError, "booleans .* got torch.float32"),
    "NumPy's masks": (
        lambda: show(masks=true_masks(1).numpy()),
        TypeError,
        r"masks must be a tensor of booleans \(b, h, w\), got ndarray; torch.from_numpy",
    ),
    "NumPy's names": (lambda: show(names=np.array(["a", "b"])), ValueError, r"got 2: \['a', 'b'\]"),
    "names": (lambda: show(names=["a", "b"]), ValueError, "1 images need as many names, got 2"),
    "model names": (
        lambda: show(compare=vit(), model_names=["a"]),
        ValueError,
        "2 models need as many model_names",
    ),
    "one name": (lambda: show(names="cat"), TypeError, "names must be a list of names, got 'cat'"),
    "one model name": (lambda: show(model_names="cat"), TypeError, "model_names must be a list of names"),
    "which model": (lambda: show().map(1), ValueError, "model must be 0 to 0, got 1"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_named(name):
    make, error, sentence = BAD_INPUT[name]
    with pytest.raises(error, match=sentence):
        make()
