"""What features and attention are worth, beside rules that learned nothing: values known beforehand."""

import math

import pytest
import torch
from skimage.filters import threshold_otsu

from vit_course.lab import yardsticks
from vit_course.lab.data import ImageSet, normalise, shapes
from vit_course.max_vit import MaxViT
from vit_course.vit import ViT

SCENES = shapes("hard", "test", 20)


def vit(**others: object) -> ViT:
    torch.manual_seed(0)
    sizes = dict(image_size=32, patch_size=8, num_classes=0, dim=16, depth=2, heads=2, mlp_dim=16)
    return ViT(**sizes | others)  # type: ignore[arg-type]


def test_its_threshold_is_otsu_s() -> None:
    """The cut with the largest variance between its sides, and nearly the mask of scikit-image, which tries
    256 cuts.
    """
    masks, scores = yardsticks.otsu(SCENES.images)
    for image, mask, score in zip(SCENES.images.mean(dim=1), masks, scores.tolist(), strict=True):
        theirs = image > threshold_otsu(image.numpy())
        assert (mask == theirs).float().mean() > 0.95
        share = theirs.float().mean()
        between = share * (1 - share) * (image[theirs].mean() - image[~theirs].mean()) ** 2
        explained = (between / image.var(correction=0)).item()
        assert explained - 1e-5 < score < explained + 0.01


def test_grey_pixels_have_no_mean_and_at_most_32_pixels_a_side() -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    pixels = yardsticks.grey_pixels(images)
    expected = images.mean(dim=1).flatten(1)
    assert torch.allclose(pixels, expected - expected.mean(dim=1, keepdim=True))
    large = yardsticks.grey_pixels(images.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3))
    assert large.shape == (2, 1024) and torch.allclose(large[0].view(32, 32)[::4, ::4].flatten(), pixels[0])


def test_features_without_classes_have_a_rank_and_no_accuracy() -> None:
    features = torch.eye(6).repeat(2, 1)
    unlabelled = ImageSet(torch.rand(12, 3, 8, 8), torch.zeros(12, dtype=torch.int64), ())
    scores = yardsticks.score_features(features, features, unlabelled, unlabelled)
    assert scores.keys() == {"rank"} and scores["rank"] == pytest.approx(5)  # six corners less their middle
    named = ImageSet(unlabelled.images, torch.arange(12) % 2, ("a", "b"))
    both = yardsticks.score_features(features, features, named, named)
    assert both.keys() == {"kNN", "linear", "rank"} and both["kNN"] == 1


def test_rules_on_a_scene_whose_object_is_the_middle() -> None:
    masks = torch.zeros(1, 8, 8, dtype=torch.bool)
    masks[:, 2:6, 2:6] = True
    boxes = torch.tensor([[2.0, 2.0, 6.0, 6.0]])
    images = masks[:, None].float().expand(1, 3, 8, 8)
    scene = ImageSet(images, torch.zeros(1, dtype=torch.int64), ("a",), masks, boxes)
    rules = yardsticks.score_rules(scene)
    assert rules["a square in the middle"] == {"IoU": 1, "mAP": 1, "AP50": 1}
    assert rules["brighter than Otsu's threshold"]["IoU"] == 1
    assert rules["the whole picture"] == {"IoU": 0.25, "mAP": 0, "AP50": 0}
    assert yardsticks.score_patches(scene, patch_size=4)["the best that whole patches can"]["IoU"] == 1


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_attention_is_the_last_layer_s_and_sums_to_one(pool: str) -> None:
    from vit_course.attention import record_attention

    model, inputs = vit(pool=pool).eval(), yardsticks.closer(SCENES.images[:3])
    assert inputs.shape[-1] == 64
    rows, grid = yardsticks.where_it_attends(model, inputs)
    with torch.no_grad(), record_attention(model) as record:
        model(inputs)
    last = record[-1].weights.mean(dim=1)
    expected = last[:, 0, 1:] if record[-1].num_prefix_tokens else last.mean(dim=1)
    assert grid == (8, 8) and torch.allclose(rows, expected / expected.sum(dim=1, keepdim=True), atol=1e-6)


def test_attention_makes_a_mask_at_the_size_of_the_picture() -> None:
    masks, scores = yardsticks.attention_finds(vit(), SCENES.images[:4])
    assert masks.shape == (4, 32, 32) and masks.dtype == torch.bool
    assert ((scores > 0) & (scores <= 1 + 1e-6)).all()
    assert (masks.view(4, 8, 4, 8, 4).float().mean(dim=(2, 4)) % 1 == 0).all()


def test_components_are_the_principal_ones_as_colours() -> None:
    model, inputs = vit(), normalise(SCENES.images[:4])
    colours = yardsticks.components(model, inputs)
    assert colours.shape == (4, 3, 4, 4) and 0 <= colours.min() and colours.max() <= 1
    from sklearn.decomposition import PCA

    from vit_course.evaluation import extract_features

    patches = extract_features(model, inputs, "patches").flatten(0, 1).double().numpy()
    theirs = torch.from_numpy(PCA(3, svd_solver="full").fit_transform(patches))
    ours = colours.permute(0, 2, 3, 1).reshape(-1, 3)
    for component in range(3):
        pair = torch.stack([ours[:, component].double(), theirs[:, component]])
        assert abs(torch.corrcoef(pair)[0, 1]) > 0.98  # but for what the percentiles cut off
    # Normalised features: every direction sums to 0, but for rounding, and has a sign all the same.
    assert (colours.amax(dim=(0, 2, 3)) > colours.amin(dim=(0, 2, 3))).all()
    torch.manual_seed(0)
    pyramid = MaxViT(num_classes=0, dim=16, depth=(1, 1), window_size=4, dim_head=8)
    assert yardsticks.components(pyramid, inputs).shape == (4, 3, 4, 4)


def test_nearest_is_by_cosine() -> None:
    known = torch.tensor([[10.0, 0.0], [0.1, 0.1], [0.0, 1.0]])
    assert yardsticks.nearest(known, torch.tensor([[1.0, 1.1]]), 3).tolist() == [[1, 2, 0]]


def test_a_table_has_the_columns_that_somebody_fills() -> None:
    scores = {
        "pixels": {"kNN": 0.2, "linear": 0.1, "rank": 3.4},
        "DINO": {"kNN": 1, "linear": 0.5, "rank": 9},
    }
    table = yardsticks.score_table(scores, "DINO", "One seed.")
    assert table.header == ["", "kNN", "linear", "rank"] and table.marked == "DINO"
    assert table.rows == [["DINO", "100 %", "50 %", "9"], ["pixels", "20 %", "10 %", "3"]]
    with_masks = yardsticks.score_table(scores | {"square": {"IoU": 0.384}}, "DINO", "")
    assert with_masks.header[-1] == "IoU" and with_masks.rows[-1] == ["square", "", "", "", "0.38"]


def test_reading_a_table_speaks_of_no_other_columns() -> None:
    only_rank = yardsticks.how_to_read({"DINO": {"rank": 9.0}})
    assert "Rank" in only_rank and "kNN" not in only_rank and "IoU" not in only_rank
    everything = yardsticks.how_to_read({"DINO": {"kNN": 1.0, "rank": 9.0}, "square": {"IoU": 0.4}})
    assert all(word in everything for word in ("kNN", "linear", "Rank", "IoU", "mAP"))


@pytest.mark.parametrize(
    ("guess", "share", "words"),
    [
        (
            None,
            0.5,
            "named right by their nearest neighbours (Wilson's 95 % interval 40 to 60). Nobody guessed",
        ),
        (55, 0.5, "The guess was 55: as near as 100 pictures can tell."),
        (20, 0.5, "The guess was 20: 30 too low."),
        (90.5, 0.5, "The guess was 90.5: 40 too high."),
        (100, 1.0, "Wilson's 95 % interval 96 to 100). The guess was 100: as near as"),
    ],
)
def test_a_guess_gets_its_verdict(guess: float | None, share: float, words: str) -> None:
    assert words in yardsticks.verdict(guess, share, 100)


def test_whole_patches_count_where_the_object_covers_half() -> None:
    masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    masks[0, 0, :3] = masks[0, 1, 0] = True  # 3 of 4 pixels of one patch, 1 of 4 of its neighbour
    scene = ImageSet(
        torch.rand(1, 3, 4, 4), torch.zeros(1, dtype=torch.int64), ("a",), masks, torch.zeros(1, 4)
    )
    found = yardsticks.whole_patches(scene, (2, 2))
    assert found.sum() == 4 and found[0, :2, :2].all()
    assert math.isclose(yardsticks.score_masks(found, torch.ones(1), scene)["IoU"], 3 / 5, rel_tol=1e-6)
