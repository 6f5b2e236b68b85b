import numpy as np
import pytest

from lltoolkit.plots.field import pick_plane
from lltoolkit.plots.scale import Scale, choose_scale
from tests.plots.surfaces import field_of

RNG = np.random.default_rng(0)


def digits(values):
    return {f"{value:.12e}".split("e")[0].rstrip("0").rstrip(".") for value in values}


@pytest.mark.parametrize(
    ("decades", "n_levels", "allowed"), [(9, 12, "125"), (7.5, 6, "1"), (6, 12, "125"), (3, 12, "125"), (2, 12, "125")]
)
def test_log_levels_are_round_and_hold_the_values(decades, n_levels, allowed):
    values = 10 ** RNG.uniform(-decades / 2, decades / 2, (20, 20))
    values[0, :2] = 10 ** np.array([-decades / 2, decades / 2])
    scale = choose_scale([field_of(values)], "log", clip=np.inf, n_levels=n_levels)
    assert scale.log
    assert digits(scale.levels) == set(allowed)
    assert (scale.levels[1:] / scale.levels[:-1] < (2.6 if len(allowed) > 1 else 10.1)).all()  # none is left out
    assert not scale.note or "floor" in scale.note
    assert scale.high >= values.max() * (1 - 1e-9) > scale.levels[-2]
    assert 6 <= len(scale.levels) <= 26


@pytest.mark.parametrize("decades", [0.002, 0.02, 0.3, 0.7, 1, 1.3])
def test_close_values_have_finer_round_levels(decades):
    values = 3 * 10 ** RNG.uniform(-decades / 2, decades / 2, (20, 20))
    levels = choose_scale([field_of(values)], "log", clip=np.inf).levels
    assert 6 <= len(levels) <= 20
    assert 0 < levels[0] <= values.min() < levels[1]
    assert levels[-2] < values.max() <= levels[-1]
    assert all(len(f"{level:.10g}".strip("0").replace(".", "")) <= 5 for level in levels)


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


@pytest.mark.parametrize("clip", [90.0, 101.0, 100.0])
def test_no_level_crowds_an_explicit_clip(surface, clip):
    for levels in ("log", "linear"):
        chosen = choose_scale([pick_plane(surface, "loss", "train")], levels, clip).levels
        assert chosen[-1] == clip
        assert chosen[-1] - chosen[-2] > 0.3 * (chosen[-2] - chosen[-3])


@pytest.mark.parametrize("clip", [0.0, -3.0, 1e-4])
def test_a_clip_below_all_that_has_a_logarithm_is_linear(clip):
    values = np.logspace(-3, 2, 100).reshape(10, 10)
    values[0, 0] = -5.0
    scale = choose_scale([field_of(values)], "log", clip=clip)
    assert not scale.log
    assert scale.high == clip
    assert "clipped at" in scale.note


def test_linear_levels_are_round(surface):
    scale = choose_scale([pick_plane(surface, "accuracy", "train")], "linear")
    np.testing.assert_allclose(scale.levels, np.arange(0.1, 1.01, 0.1), atol=1e-12)
    np.testing.assert_allclose(scale.major(), np.arange(0.2, 1.01, 0.2), atol=1e-12)


def test_numbers_of_a_far_scale_are_all_powers():
    near, far = (choose_scale([field_of(np.geomspace(low, 50, 100).reshape(10, 10))]) for low in (0.006, 2e-4))
    assert [near.write(level) for level in near.major()] == ["0.01", "0.1", "1", "10"]
    assert [far.write(level) for level in far.major()] == [f"$10^{{{k}}}$" for k in range(-3, 2)]


def test_what_lies_below_the_levels_is_told(surface):
    scale = choose_scale([pick_plane(surface, "loss", "train")], [1.0, 2.0, 5.0])
    assert "floor 1 (min " in scale.note
    assert "clipped at 5 (max " in scale.note
    assert scale.extend == "both"


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


def test_levels_that_lie_close_together_are_told_apart():
    levels = 4.5e-4 * (1 + 1e-4 * np.arange(6))
    scale = Scale(levels, False, levels[0], levels[-1])
    written = [scale.write(level) for level in levels]
    assert len(set(written)) == 6
    read = [float(text.strip("$").replace(r"\times10^{", "e").rstrip("}")) for text in written]
    np.testing.assert_allclose(read, levels, rtol=1e-4)
