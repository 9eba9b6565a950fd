"""Stored measurements: found by name, and made of numbers."""

import pytest
from scipy.stats import ttest_1samp

from vit_course.lab import results


@pytest.mark.parametrize("name", results.names())
def test_every_stored_table_can_be_read(name):
    table = results.load(name)
    assert {"title", "date", "machine", "rows"} <= set(table) and table["rows"]


def test_an_unknown_table_is_answered_with_those_there_are():
    with pytest.raises(ValueError, match=f"there is no table 'nothing'; there are '{results.names()[0]}', '"):
        results.load("nothing")


@pytest.mark.parametrize("number", ["NaN", "-Infinity"])
def test_a_table_with_something_that_is_no_measurement_is_refused(tmp_path, monkeypatch, number):
    (tmp_path / "mine.json").write_text(f'{{"rows": [{{"accuracy": {number}}}]}}', encoding="utf-8")
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match=f"table 'mine' holds {number}, which is no measurement"):
        results.load("mine")


def test_an_interval_is_that_of_a_t_test():
    values = [0.90, 0.93, 0.91, 0.95]
    low, high = ttest_1samp(values, 0).confidence_interval(0.95)
    assert results.half_interval(values) == pytest.approx((high - low) / 2)
    with pytest.raises(ValueError, match="at least two values, got 1"):
        results.half_interval(values[:1])


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [(10, 10, 0.7225, 1.0), (0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_s_interval_has_the_known_ends(right, count, low, high):
    """The last row is the example of Newcombe 1998, table I."""
    assert results.wilson(right, count) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("right", "count"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_s_interval_needs_hits_among_trials(right, count):
    with pytest.raises(ValueError, match=f"0 … n hits in n trials, at least one; got {right} in {count}"):
        results.wilson(right, count)


def test_pairs_are_of_one_seed_each():
    assert results.paired([1, 2, 3], [2, 2, 5]) == [1, 0, 2]
    with pytest.raises(ValueError, match="as many numbers in both rows, got 1 and 2"):
        results.paired([1], [1, 2])
