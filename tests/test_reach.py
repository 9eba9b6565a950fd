"""The task whose answer lies far away: labels are right, and nothing but reach helps."""

import pytest
import torch
from torch import nn

from vit_course.lab.data import reach, reach_dense
from vit_course.lab.data.reach import COLOURS


def read_cells(image, cells, cell_size):
    """The colours of a picture's cells by name, and which cell is marked: pixel by pixel."""
    names, marked = {}, []
    for row in range(cells):
        for column in range(cells):
            top, left = row * cell_size, column * cell_size
            corner = image[:, top, left].tolist()
            middle = image[:, top + cell_size // 2, left + cell_size // 2].tolist()
            distances = {
                name: sum((a - b) ** 2 for a, b in zip(corner, colour, strict=True))
                for name, colour in COLOURS.items()
            }
            names[row, column] = min(distances, key=distances.get)
            if sum(middle) < 0.4:
                marked.append((row, column))
    return names, marked


@pytest.mark.parametrize(("cells", "cell_size"), [(4, 8), (6, 4), (8, 5)])
def test_the_label_is_the_colour_opposite_the_mark(cells, cell_size):
    images = reach("test", 40, cells, cell_size)
    for picture, label, mask in zip(images.images, images.labels, images.masks, strict=True):
        names, marked = read_cells(picture, cells, cell_size)
        ((row, column),) = marked
        opposite = cells - 1 - row, cells - 1 - column
        assert images.classes[label] == names[opposite]
        assert mask.nonzero()[0].tolist() == [place * cell_size for place in opposite]
        assert mask.sum() == cell_size**2
        counts = [list(names.values()).count(name) for name in COLOURS]
        assert counts == [cells**2 // 4] * 4


def test_pictures_belong_to_their_seed_and_split():
    some = reach("train", 30)
    assert torch.equal(some.images, reach("train", 1500).images[:30])
    assert torch.equal(some.labels, reach("train", 1500).labels[:30])
    for other in (reach("test", 30), reach("train", 30, seed=1)):
        assert not torch.equal(some.images, other.images)
    assert torch.equal(reach("train", 1500).images[1000:], reach("train", 2000).images[1000:1500])


def test_the_state_of_the_session_changes_nothing():
    before = torch.get_rng_state()
    first = reach("train", 10).images
    torch.manual_seed(5)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(first, reach("train", 10).images) and first.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_rng_state(before)


def test_colours_and_places_are_drawn_evenly():
    images = reach("train", 8000)
    assert ((images.labels.bincount() / 8000 - 0.25).abs() < 0.02).all()
    cell_of_answer = images.boxes[:, 1] / 8 * 4 + images.boxes[:, 0] / 8
    assert ((cell_of_answer.long().bincount() / 8000 - 1 / 16).abs() < 0.01).all()
    # The colour at the mark tells nothing of the label.
    marked = images.images[:, :, ::8, ::8].flatten(2).flip(2)  # the upper left pixel of each cell, opposite
    at_mark = marked[torch.arange(8000), :, cell_of_answer.long()]
    palette = torch.tensor(list(COLOURS.values()))
    colour = torch.cdist(at_mark, palette).argmin(1)
    together = torch.zeros(4, 4).index_put_((colour, images.labels), torch.ones(8000), accumulate=True)
    assert ((together / 500 - 1).abs() < 0.2).all()


@pytest.mark.parametrize("hidden", [0, 64])
def test_who_forgets_the_places_stays_at_chance(hidden):
    """1 × 1 features, pooled: how much of each colour there is, marked or not."""
    train, test = reach("train", 6000), reach("test", 2000)
    palette = torch.cat([torch.tensor(list(COLOURS.values())), torch.zeros(1, 3)])

    def counts(images):
        # Cell by cell, the share of the pixels of each colour and of the mark, then pooled over the cells.
        pixels = images.movedim(1, -1).unflatten(1, (4, 8)).unflatten(3, (4, 8)).transpose(2, 3)
        nearest = torch.cdist(pixels.reshape(-1, 3), palette).argmin(1).reshape(len(images), 16, 64)
        share = nn.functional.one_hot(nearest, 5).float().mean(2)  # b, cells, colours and mark
        marked = share[..., 4:] > 0
        return torch.cat([share.mean(1), share.amax(1), (share * marked).sum(1)], dim=1)

    torch.manual_seed(0)
    head = nn.Linear(15, 4)
    if hidden:
        head = nn.Sequential(nn.Linear(15, hidden), nn.ReLU(), nn.Linear(hidden, 4))
    features, seen = counts(train.images), counts(test.images)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    for _ in range(200):
        loss = nn.functional.cross_entropy(head(features), train.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    accuracy = (head(seen).argmax(1) == test.labels).float().mean()
    assert abs(accuracy - 0.25) < 0.035  # three standard deviations of 2,000 guesses


@pytest.mark.parametrize(("arguments", "words"), [
    ({"cells": 5}, "cells must be even, .* got 5"),
    ({"cells": 2}, "cells must be at least 4"),
    ({"cells": 34}, "cells"),
    ({"cell_size": 1}, "cell_size must be at least 2"),
    ({"count": 0}, "count must be at least 1"),
    ({"split": "other"}, "split 'other' is unknown"),
    ({"seed": -1}, "seed"),
])  # fmt: skip
def test_bad_sizes_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        reach(**arguments)


@pytest.mark.parametrize(("cells", "distance"), [(8, 1), (16, 6), (6, 3)])
def test_a_dense_map_holds_one_mark_and_one_colour_in_another_quarter(cells, distance):
    maps, colours, places = reach_dense(300, cells, distance=distance, generator=torch.Generator())
    assert maps.shape == (300, 5, cells, cells)
    for one, colour, place in zip(maps, colours.tolist(), places.tolist(), strict=True):
        (mark,) = one[4].nonzero().tolist()
        ((channel, *answer),) = one[:4].nonzero().tolist()
        assert channel == colour and mark == [place // cells, place % cells]
        assert max(abs(mark[0] - answer[0]), abs(mark[1] - answer[1])) >= distance
        half = cells // 2
        assert [at // half for at in mark] != [at // half for at in answer]
        assert one.sum() == 2


def test_dense_maps_are_drawn_evenly_and_by_their_generator():
    maps, colours, places = reach_dense(8000, generator=torch.Generator().manual_seed(1))
    again = reach_dense(8000, generator=torch.Generator().manual_seed(1))
    assert all(torch.equal(a, b) for a, b in zip((maps, colours, places), again, strict=True))
    assert ((colours.bincount() / 8000 - 0.25).abs() < 0.02).all()
    assert ((places.bincount() / 8000 - 1 / 64).abs() < 0.006).all()
    where = maps[:, :4].sum(1).flatten(1)
    assert ((where.mean(0) - 1 / 64).abs() < 0.006).all()


@pytest.mark.parametrize("arguments", [
    {"count": 0}, {"cells": 7}, {"colours": 1}, {"distance": 0}, {"distance": 8},
])  # fmt: skip
def test_bad_sizes_of_dense_maps_are_refused(arguments):
    with pytest.raises(ValueError):
        reach_dense(**{"count": 2, **arguments})
    with pytest.raises(TypeError, match="generator"):
        reach_dense(2, generator=3)
