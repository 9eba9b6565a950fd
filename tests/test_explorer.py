"""The explorer in Python: what it sends, what it shows, and what Python and the page tell each other."""

import re
import zlib
from pathlib import Path

import pytest
import torch
from support.explorer_models import (
    EVERY_KIND,
    GRID,
    FixedModel,
    choose,
    noise,
    pictures,
    talking_heads,
    true_masks,
    vit,
    windows,
)

from vit_course.attention import record_attention, rollout
from vit_course.cait import CaiT
from vit_course.lab import explorer as package
from vit_course.lab.data import normalise
from vit_course.lab.explorer import AttentionExplorer, payload
from vit_course.lab.explorer.payload import decode, encode, payload_bytes
from vit_course.lab.explorer.views import iou, moved
from vit_course.max_vit import MaxViT
from vit_course.xcit import XCiT

HERE = Path(__file__).parent
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


# ---- bytes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_a_weight_comes_back_within_half_a_percent_of_its_rows_maximum(scale):
    weights = (scale * noise(4, 6, 50, 197)).softmax(-1)
    codes, scales = encode(weights)
    assert (codes.nbytes, scales.nbytes) == (weights.numel(), 4 * weights.numel() // 197)
    error = (decode(codes, scales) - weights).abs() / weights.amax(-1, keepdim=True)
    assert 0.001 < error.max() < 0.005
    assert torch.equal(decode(codes, scales).amax(-1), weights.amax(-1))


def test_rows_with_negative_weights_keep_their_signs_and_the_bound():
    weights = noise(2, 3, 20, 65)
    back = decode(*encode(weights))
    assert ((back - weights).abs() <= 0.005 * weights.abs().amax(-1, keepdim=True)).all()
    large = weights.abs() > 0.01 * weights.abs().amax(-1, keepdim=True)
    assert torch.equal(back[large].sign(), weights[large].sign())


def test_rows_of_zeros_and_of_one_weight_come_back():
    assert torch.equal(decode(*encode(torch.zeros(2, 5))), torch.zeros(2, 5))
    assert torch.equal(decode(*encode(torch.eye(4))), torch.eye(4))


def test_the_payload_is_one_byte_for_each_weight_and_four_for_each_row():
    model, images = vit(), pictures()
    explorer = AttentionExplorer(model, images)
    weights = 2 * 3 * 2 * 49 * 49
    assert payload_bytes(explorer._panels) == weights + 4 * weights // 49
    rest = len(explorer._data) - payload_bytes(explorer._panels)
    assert 0 <= rest - images.numel() - 768 < 4 * 8, (
        "beside the weights only pictures, colours and padding are sent"
    )
    assert explorer._meta["bytes"] == len(explorer._data)


def test_too_large_a_payload_is_refused_before_it_is_made(monkeypatch):
    monkeypatch.setattr(payload, "encode", lambda weights: pytest.fail("it was encoded"))
    monkeypatch.setattr(payload, "MAX_BYTES", 40_000)
    with pytest.raises(ValueError, match=r"of 3 images take .*MB, 0.0 MB each.*give at most 2"):
        AttentionExplorer(vit(), pictures(3))
    monkeypatch.setattr(payload, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="one image alone is too much: give a smaller one"):
        AttentionExplorer(vit(), pictures(1))


# ---- views -------------------------------------------------------------------------------------------------


def test_the_map_is_the_models_own_attention():
    model, images = vit(), pictures()
    with torch.no_grad(), record_attention(model) as record:
        model(normalise(images))
    explorer = AttentionExplorer(model, images, transform=normalise, layer=1)
    weights = record[1].weights[0]
    assert explorer.token == "cls"
    assert torch.equal(explorer.map(), weights.mean(0)[0, 1:].view(GRID))
    explorer.token, explorer.head = 11, 1
    assert torch.equal(explorer.map(), weights[1, 12, 1:].view(GRID))
    explorer.direction = "key"
    assert torch.equal(explorer.map(), weights[1, 1:, 12].view(GRID))
    explorer.head, explorer.image, explorer.direction = "rollout", 1, "query"
    torch.testing.assert_close(explorer.map(), rollout(list(record)[:2])[1, 12, 1:].view(GRID))


def test_windows_show_only_their_members():
    layer = windows("grid", (6, 8), 2, 1)
    explorer = AttentionExplorer(FixedModel(layer), pictures(), token=9)
    (_, members) = layer.more
    (mine,) = [row for row in members if 9 in row]
    shown = explorer.map().flatten()
    assert (~shown.isnan()).nonzero()[:, 0].tolist() == sorted(mine.tolist())
    window, slot = (members == 9).nonzero()[0]
    assert torch.equal(shown[mine], layer.weights(pictures())[window, 0, slot])
    explorer.image, explorer.direction = 1, "key"
    assert torch.equal(
        explorer.map().flatten()[mine], layer.weights(pictures())[len(members) + window, 0, :, slot]
    )
    assert not explorer.mask(0.6).flatten()[shown.isnan()].any()


def test_class_layers_have_one_row_and_channels_a_matrix():
    explorer = EVERY_KIND["class"]()
    row = explorer.map()
    explorer.token, explorer.direction = 13, "key"
    assert (
        torch.equal(explorer.map(), row)
        and f"Patch 13 (row 1, column 5) gets {100 * row.flatten()[13]:.1f} %" in explorer.words
    )
    explorer = EVERY_KIND["channel"]()
    assert explorer.map().shape == (8, 8) and "channels, not patches" in explorer.words
    with pytest.raises(ValueError, match="compares channels"):
        explorer.mask(0.6)


def test_the_mask_keeps_the_fewest_patches():
    explorer = AttentionExplorer(vit(), pictures())
    kept, weights = explorer.mask(0.6), explorer.map()
    share = weights[kept].sum() / weights.sum()
    assert share >= 0.6 > share - weights[kept].min() / weights.sum()


def test_true_masks_are_scored_in_words():
    truth = true_masks()[0]
    kept = torch.zeros(48, dtype=torch.bool)
    kept[9:14] = True  # row 1, columns 1 to 5: pixels 4..8 by 4..24
    both = 3 * 14  # rows 5 to 7, columns 9 to 22
    assert iou(kept, truth, GRID) == pytest.approx(both / (5 * 16 + 13 * 14 - both))
    explorer = AttentionExplorer(vit(), pictures(), masks=true_masks(), mass=0.6)
    score = iou(explorer.mask(0.6).flatten(), truth, GRID)
    assert f"IoU with the true mask {score:.2f}" in explorer.words
    assert f"covers {100 * 13 * 14 / (24 * 32):.1f} % of the picture" in explorer.words


def test_talking_heads_are_shown_with_their_signs_and_said():
    explorer = AttentionExplorer(talking_heads(), pictures(), token=11, head=0)
    row = explorer.map().flatten()
    negative = row[row < 0]
    assert 0 < len(negative) < 48
    assert (
        f"Negative weights (orange, with a dash) add up to −{-100 * negative.sum():.1f} %" in explorer.words
    )
    assert f"The weights add up to {100 * row.sum():.1f} %" in explorer.words
    strongest = int(row.abs().argmax())
    assert f"looks most at patch {strongest} " in explorer.words


def test_two_models_stand_side_by_side_layer_by_layer():
    model, other = vit(), vit(depth=5, pool="mean")
    explorer = AttentionExplorer(model, pictures(), compare=other, token=11, model_names=("three", "five"))
    seen = []
    for explorer.layer in range(3):
        seen.append(explorer._view(1).number)
    assert seen == [0, 2, 4]
    assert explorer.words.startswith("three: Patch 11") and " five: Patch 11" in explorer.words
    assert explorer.map(1).shape == GRID and not torch.allclose(explorer.map(0), explorer.map(1))


SMALL = dict(num_classes=3, dim=16, heads=2, mlp_dim=32, image_size=32, patch_size=4, depth=2)
REAL = {
    "CaiT": (lambda: CaiT(**SMALL), {"global", "class"}),
    "XCiT": (lambda: XCiT(**SMALL), {"channel", "class"}),
    "MaxViT": (lambda: MaxViT(num_classes=3, dim=16, depth=(1, 1), window_size=4, dim_head=8), {"window"}),
}


@pytest.mark.parametrize("name", REAL)
def test_the_courses_models_of_every_kind_can_be_explored(name):
    make, kinds = REAL[name]
    torch.manual_seed(0)
    explorer = AttentionExplorer(make(), torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    layers = explorer._panels[0].layers
    assert {layer.kind for layer in layers} == kinds
    for explorer.layer in range(len(layers)):
        explorer.token = 5
        assert explorer.map().isfinite().any() and explorer.words


def test_foreign_models_are_adapted_and_left_as_they_were():
    timm = pytest.importorskip("timm")
    from torchvision.models.vision_transformer import VisionTransformer

    foreign = [
        timm.create_model(
            "vit_tiny_patch16_224", img_size=32, patch_size=4, embed_dim=48, depth=2, num_heads=3
        ),
        VisionTransformer(image_size=32, patch_size=4, num_layers=2, num_heads=3, hidden_dim=48, mlp_dim=96),
    ]
    for model in foreign:
        model.train()
        explorer = AttentionExplorer(model, torch.rand(1, 3, 32, 32))
        assert explorer.map().shape == (8, 8) and len(explorer._panels[0].layers) == 2
        assert all(module.training for module in model.modules())


def test_the_model_is_run_as_it_is_used_and_keeps_its_mode():
    model = vit(dropout=0.5).train()
    first, second = (AttentionExplorer(model, pictures()).map() for _ in range(2))
    assert torch.equal(first, second) and model.training
    assert all(parameter.grad is None for parameter in model.parameters())


# ---- choices -----------------------------------------------------------------------------------------------


def from_the_page(explorer: AttentionExplorer, **state: object) -> None:
    """What the widget gets when the page has changed its choices."""
    data = {"method": "update", "state": state, "buffer_paths": []}
    explorer._handle_msg({"content": {"data": data}, "buffers": []})


def test_what_is_clicked_reaches_python_and_its_observers():
    explorer, seen = AttentionExplorer(vit(), pictures()), []
    explorer.observe(lambda change: seen.append((change["name"], change["new"])), ["token", "layer", "head"])
    from_the_page(explorer, token=11)
    from_the_page(explorer, layer=0, head=1)
    assert seen == [("token", 11), ("layer", 0), ("head", 1)]
    assert (explorer.token, explorer.layer, explorer.head) == (11, 0, 1)


@pytest.mark.parametrize("order", [("layer", "token"), ("token", "layer")])
def test_a_token_that_the_page_has_moved_to_a_new_grid_stays_there(order):
    explorer = EVERY_KIND["window"]()
    explorer.token = 16 * 5 + 7
    there = {"layer": 3, "token": moved(16 * 5 + 7, (12, 16), (6, 8))}
    from_the_page(explorer, **{name: there[name] for name in order})
    assert (explorer.layer, explorer.token) == (3, 8 * 2 + 3)


def test_python_moves_the_token_to_a_new_grid_and_drops_a_head_that_is_not_there():
    explorer = EVERY_KIND["window"]()
    explorer.token, explorer.layer, explorer.head = 16 * 11 + 15, 2, 2
    assert explorer.token == 47
    explorer.layer = 1
    assert (explorer.token, explorer.head) == (moved(47, (6, 8), (12, 16)), "mean")


def test_last_layer_middle_patch_and_numbers_from_tensors():
    explorer = AttentionExplorer(vit(pool="mean"), pictures())
    assert (explorer.layer, explorer.token) == (2, 3 * 8 + 4)
    explorer.token = torch.tensor(7)
    assert explorer.token == 7 and type(explorer.token) is int
    explorer.layer = -1
    assert explorer.layer == 2


BAD_CHOICES = {
    "image": (2, "image must be 0 to 1, there are 2 images; got 2"),
    "layer": (3, "layer must be 0 to 2, there are 3 layers; got 3"),
    "head": (2, "head must be 0 to 1, there are 2 heads in layer 2"),
    "token": (48, r"token must be 0 to 47, there are 48 patches \(6 by 8\); got 48"),
    "direction": ("back", "direction must be 'query' or 'key', got 'back'"),
    "mass": (1.5, "mass must be in 0 … 1, got 1.5"),
}


@pytest.mark.parametrize("name", BAD_CHOICES)
def test_a_choice_that_is_not_there_is_refused_and_the_old_one_stays(name, caplog):
    value, sentence = BAD_CHOICES[name]
    explorer = AttentionExplorer(vit(), pictures())
    before = getattr(explorer, name)
    with pytest.raises(ValueError, match=sentence):
        setattr(explorer, name, value)
    from_the_page(explorer, **{name: value})
    assert re.search(sentence, caplog.text), "ipywidgets logs what a message went wrong with"
    assert getattr(explorer, name) == before
    if name != "image":
        with pytest.raises(ValueError, match=sentence):
            AttentionExplorer(vit(), pictures(), **{name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("token", "x"), ("token", 1.5), ("token", True), ("head", "max"), ("layer", "last")]
)
def test_a_choice_of_another_kind_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        AttentionExplorer(vit(), pictures(), **{name: value})


def test_rollout_needs_global_layers():
    with pytest.raises(ValueError, match="of kind 'class': rollout needs 'global' layers"):
        EVERY_KIND["class"]().head = "rollout"


# ---- where there is no kernel ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY_KIND)
def test_a_stored_notebook_gets_a_picture_and_stable_words(name):
    data, metadata = EVERY_KIND[name]()._repr_mimebundle_()
    again, _ = EVERY_KIND[name]()._repr_mimebundle_()
    assert set(data) == {"text/plain", "image/png", WIDGET_VIEW}
    assert data["image/png"].startswith(b"\x89PNG") and 3_000 < len(data["image/png"]) < 150_000
    assert data["image/png"] == again["image/png"] and data["text/plain"] == again["text/plain"]
    assert metadata["image/png"]["alt"] == data["text/plain"] and "0x" not in data["text/plain"]
    assert data["text/plain"].startswith("Attention explorer. Layer ")


def test_the_figure_is_not_left_open_for_another_to_show():
    from matplotlib import pyplot

    figure = EVERY_KIND["two models"]().figure()
    assert len(figure.axes) >= 2 * (1 + 2) and pyplot.get_fignums() == []


def test_the_page_names_no_host_and_holds_everything(tmp_path):
    explorer = EVERY_KIND["vit"]()
    path = explorer.to_html(tmp_path / "page.html")
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"https?:|//\w+\.\w", re.sub(r"[A-Za-z0-9+/=]{200,}", "", text))
    folder = Path(package.__file__).parent
    for name in ("explorer.js", "explorer.css"):
        assert (folder / name).read_text(encoding="utf-8") in text
    assert len(text) < 4 / 3 * len(zlib.compress(explorer._data)) + 150_000


def test_names_cannot_break_out_of_the_page(tmp_path):
    explorer = AttentionExplorer(vit(), pictures(), names=["</script><b>", "&"])
    assert "</script><b>" not in explorer.to_html(tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_view_does_not_depend_on_what_was_looked_at_before():
    explorer = EVERY_KIND["vit"]()
    before, words = explorer.map(), explorer.words
    choose(explorer, {"image": 1, "layer": 0, "head": "rollout", "token": 3, "direction": "key", "mass": 0.6})
    assert explorer.words != words
    choose(explorer, {"image": 0, "layer": 2, "head": "mean", "token": 11, "direction": "query", "mass": 0.0})
    assert torch.equal(explorer.map(), before) and explorer.words == words
