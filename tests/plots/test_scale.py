import numpy as np
import pytest

from lltoolkit.plots.field import pick_plane
from lltoolkit.plots.scale import choose_scale
from tests.plots.surfaces import field_of

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("decades", [0.02, 0.3, 1, 3, 9])
def test_log_levels_are_equidistant_and_hold_the_values(decades):
    values = 10 ** RNG.uniform(-decades / 2, decades / 2, (20, 20))
    scale = choose_scale([field_of(values)], "log", clip=np.inf)
    steps = np.diff(np.log10(scale.levels))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-9)
    assert scale.log
    assert not scale.note or "floor" in scale.note
    assert scale.high >= values.max() * (1 - 1e-12)
    assert 3 <= len(scale.levels) <= 30


def test_whole_decades_are_levels(surface):
    scale = choose_scale([pick_plane(surface, "loss", "train")])
    assert {0.1, 1.0, 10.0, 100.0} <= set(scale.levels.round(12))
    assert set(scale.major()) <= set(scale.levels)


def test_one_far_cell_is_clipped_and_told(surface):
    surface["loss"][0, 0, 0] = 1e30
    scale = choose_scale([pick_plane(surface, "loss", "train")])
    assert scale.high < 1e8
    assert "clipped at" in scale.note
    assert "10^{30}" in scale.note
    assert scale.extend == "max"


def test_the_few_high_cells_of_an_accuracy_are_not_cut(surface):
    surface["accuracy"][:] = 0.1
    surface["accuracy"][:, 15, 15] = 0.9
    scale = choose_scale([pick_plane(surface, "accuracy", "train")])
    assert scale.high >= 0.9
    assert not scale.note


def test_an_explicit_clip_is_the_last_level(surface):
    field = pick_plane(surface, "loss", "train")
    assert choose_scale([field], "log", clip=7.3).high == pytest.approx(7.3, rel=1e-12)
    assert choose_scale([field], "linear", clip=7.3).high == 7.3
    with pytest.raises(ValueError, match="leaves nothing"):
        choose_scale([field], clip=1e-9)


def test_paper_levels_are_the_papers(surface):
    scale = choose_scale([pick_plane(surface, "loss", "train")], "paper")
    np.testing.assert_array_equal(scale.levels, np.arange(0.1, 10, 0.5))


def test_shared_scale_spans_all(surface, rugged):
    fields = [pick_plane(each, "loss", "train") for each in (surface, rugged)]
    both = choose_scale(fields, clip=np.inf)
    assert both.low <= min(field.finite.min() for field in fields)
    assert both.high >= max(field.finite.max() for field in fields)


def test_losses_that_touch_zero_keep_a_log_scale():
    values = np.logspace(-3, 2, 100).reshape(10, 10)
    values[0, 0] = 0.0
    scale = choose_scale([field_of(values)])
    assert scale.log
    assert "floor" in scale.note


def test_mostly_negative_losses_are_linear_and_told():
    scale = choose_scale([field_of(np.linspace(-5, 1, 100).reshape(10, 10))])
    assert not scale.log
    assert "linear scale" in scale.note
    assert scale.low <= -5


def test_constant_and_empty():
    assert choose_scale([field_of(np.full((3, 3), 0.7))]).constant
    assert choose_scale([field_of(np.zeros((3, 3)))]).constant
    assert np.isnan(choose_scale([field_of(np.full((3, 3), np.nan))]).lowest)


@pytest.mark.parametrize("levels", [[1.0], [2.0, 1.0], [1.0, np.nan], "lo"])
def test_bad_levels(levels, surface):
    with pytest.raises(ValueError, match="levels"):
        choose_scale([pick_plane(surface, "loss", "train")], levels)
