"""The zoo: every stored model is what its card says, and its recipe still makes such a model."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
import zoo as recipes

from vit_course.lab import zoo
from vit_course.lab.data import normalise, photo

NAMES = zoo.names()
LIMIT = 8 * 2**20  # bytes, of all models together


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_every_model_is_stored():
    assert set(NAMES) == set(recipes.RECIPES), "run `make results`"
    assert sum(path.stat().st_size for path in zoo.FOLDER.glob("*.safetensors")) < LIMIT


@pytest.mark.parametrize("name", NAMES)
def test_a_card_is_of_today_s_recipe_and_of_this_file(name):
    card = zoo.card(name)
    assert recipes.is_stored(name, recipes.RECIPES[name]), f"run `make results`: {name} has another recipe"
    model = zoo.load(name)
    assert not any(module.training for module in model.modules())
    assert sum(parameter.numel() for parameter in model.parameters()) == card.parameters
    assert card.date and card.machine["torch"] and len(card.sha256) == 64


@pytest.mark.parametrize("name", NAMES)
def test_a_card_says_what_is_measured_again(name):
    card = zoo.card(name)
    wanted = [
        *recipes.measure(zoo.load(name), zoo.untrained(name), card.recipe["data"], recipes.SAMPLE).items()
    ]
    assert wanted == [(key, pytest.approx(card.sample[key], abs=0.011)) for key, _ in wanted]
    assert card.sample.keys() == card.measured.keys()
    # The sample is part of what the card measures: the two cannot lie far apart.
    assert card.sample["accuracy"] == pytest.approx(card.measured["accuracy"], abs=0.08)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_takes_the_whole_cup_of_coffee(name):
    picture = normalise(photo("coffee"))[None, :, :384, :576]
    with torch.no_grad():
        assert zoo.load(name)(picture).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_the_untrained_twin_has_other_weights_by_seed_and_leaves_the_random_state(name):
    before = torch.get_rng_state()
    twin = zoo.untrained(name)
    assert torch.equal(before, torch.get_rng_state())
    assert not twin.training and type(twin) is type(zoo.load(name))
    assert same_weights(twin, zoo.untrained(name))
    assert not same_weights(twin, zoo.untrained(name, seed=1)) and not same_weights(twin, zoo.load(name))


def test_another_name_is_answered_with_those_there_are():
    for function in (zoo.load, zoo.card, zoo.untrained):
        with pytest.raises(ValueError, match=f"'nonsense' is unknown; it can be '{NAMES[0]}'"):
            function("nonsense")
        with pytest.raises(TypeError, match="name must be one of"):
            function(7)


@pytest.fixture
def own_zoo(tmp_path, monkeypatch):
    """A zoo with one model, that a test may spoil."""
    for path in zoo.FOLDER.glob(f"{NAMES[0]}.*"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    return tmp_path


@pytest.mark.parametrize("damage", ["another number", "half of it", "nothing"])
def test_a_damaged_file_is_refused_in_words(own_zoo, damage):
    path = own_zoo / f"{NAMES[0]}.safetensors"
    whole = path.read_bytes()
    last = whole[:-1] + bytes([whole[-1] ^ 1])
    path.write_bytes({"another number": last, "half of it": whole[: len(whole) // 2], "nothing": b""}[damage])
    with pytest.raises(ValueError, match=f"{NAMES[0]}.safetensors is not the file that its card describes"):
        zoo.load(NAMES[0])
    assert not recipes.is_stored(NAMES[0], recipes.RECIPES[NAMES[0]])
    path.unlink()
    with pytest.raises(ValueError, match=f"{NAMES[0]}.safetensors is missing"):
        zoo.load(NAMES[0])


def test_a_damaged_card_is_refused_in_words(own_zoo):
    path = own_zoo / f"{NAMES[0]}.json"
    card = json.loads(path.read_text(encoding="utf-8"))
    for spoilt in (path.read_text(encoding="utf-8")[:50], json.dumps({"model": card["model"]}), "[]"):
        path.write_text(spoilt, encoding="utf-8")
        with pytest.raises(ValueError, match=f"{NAMES[0]}.json is not a card of the zoo"):
            zoo.card(NAMES[0])


def short(recipe: recipes.Recipe) -> recipes.Recipe:
    """The recipe with one step on few pictures at each stage."""
    return replace(recipe, images=20, stages=tuple(replace(s, steps=1, batch=4) for s in recipe.stages))


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_trains_its_model(name):
    recipe = short(recipes.RECIPES[name])
    before, after = recipe.build(), recipes.train(recipe, progress=False)
    moved = [not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2
    assert same_weights(after, recipes.train(recipe, progress=False))
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.fixture
def empty_zoo(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    monkeypatch.setattr(recipes, "unseen_images", lambda data: recipes.training_images(data, 64, 20))
    monkeypatch.setattr(recipes, "validation_images", lambda data: recipes.training_images(data, 64, 20))
    return tmp_path


def test_what_is_stored_is_not_trained_again(empty_zoo, monkeypatch):
    name, recipe = "photos-vit", short(recipes.RECIPES["photos-vit"])
    assert not recipes.is_stored(name, recipe)
    recipes.make(name, recipe, progress=False)
    assert recipes.is_stored(name, recipe)
    assert sorted(path.name for path in empty_zoo.iterdir()) == [f"{name}.json", f"{name}.safetensors"]
    assert not recipes.is_stored(name, replace(recipe, seed=1))
    assert not recipes.is_stored(name, replace(recipe, stages=recipe.stages[:1] * 2))

    monkeypatch.setattr(recipes, "RECIPES", {name: recipe})
    monkeypatch.setattr(recipes, "train", lambda *_: pytest.fail("it was stored"))
    monkeypatch.setattr("sys.argv", ["zoo.py"])
    recipes.main()
    assert not recipes.is_stored("scenes-vit", recipe)


def test_a_writing_cut_short_leaves_no_model(empty_zoo, monkeypatch):
    name, recipe = "photos-vit", short(recipes.RECIPES["photos-vit"])
    recipes.make(name, recipe, progress=False)

    def stop(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        recipes.make(name, replace(recipe, seed=1), progress=False)
    assert zoo.names() == [] and not recipes.is_stored(name, recipe)


def test_attention_on_objects_counts_what_lies_on_them():
    """A network whose class token takes nothing but the darkest patches of a scene of known mask."""
    pictures = recipes.training_images("scenes", 64, 20)
    covered = torch.nn.functional.adaptive_avg_pool2d(pictures.masks[:, None].float(), (16, 16)).flatten(1)

    class Layer:
        name, kind, grid, num_prefix_tokens = "blocks.0.attn", "global", (16, 16), 1
        weights = torch.cat([torch.ones(20, 1), covered.square()], dim=1)[:, None, None].expand(
            -1, 2, 257, -1
        )

    class Recorded:
        def __enter__(self):
            return [Layer]

        def __exit__(self, *error):
            pass

    original = recipes.record_attention
    recipes.record_attention = lambda model: Recorded()
    try:
        found = recipes.attention_on_objects(torch.nn.Identity(), pictures)
    finally:
        recipes.record_attention = original
    assert found["last_top_patch"] == found["middle_top_patch"] == 1
    assert found["last_attention"] > 0.85 and found["last_precision"] > 0.9
    assert found["last_jaccard"] == pytest.approx(0.55, abs=0.15)  # 60 % of the object's own patches
