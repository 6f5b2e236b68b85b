import numpy as np
import pytest
from matplotlib.contour import QuadContourSet

from lltoolkit.plots import plot_grid
from tests.plots.surfaces import make_surface


def panels(fig):
    return [ax for ax in fig.axes if ax.get_label() != "<colorbar>"]


def levels(ax):
    return next(each for each in ax.collections if isinstance(each, QuadContourSet)).levels


@pytest.fixture
def small():
    """A surface quick to draw, with the origin among its cells; test accuracy there 0.97 times that in training."""
    return make_surface(11, 11)


def test_pairs_make_a_table_with_headings(small):
    names = [("SGD", "wd 0"), ("SGD", "wd 5e-4"), ("Adam", "wd 0"), ("Adam", "wd 5e-4")]
    fig = plot_grid({pair: small.copy(deep=True) for pair in reversed(names)}, captions={})
    axes = panels(fig)
    assert [ax.get_title() for ax in axes] == ["wd 5e-4", "wd 0", "", ""]
    assert [ax.get_ylabel() for ax in axes] == ["Adam\n$\\beta$", "", "SGD\n$\\beta$", ""]
    assert [ax.get_xlabel() for ax in axes] == ["", "", "$\\alpha$", "$\\alpha$"]
    for ax in axes:
        np.testing.assert_array_equal(levels(ax), levels(axes[0]))


def test_an_open_place_of_a_table_keeps_its_headings(small):
    fig = plot_grid({("SGD", "wd 0"): small, ("SGD", "wd 5e-4"): small, ("Adam", "wd 5e-4"): small}, captions={})
    axes = panels(fig)
    assert [text.get_text() for text in axes[2].texts] == ["not given"]
    assert axes[2].get_ylabel() == "Adam"
    assert axes[3].get_ylabel() == r"$\beta$"  # the one left of it has none
    assert axes[0].get_xlabel() == r"$\alpha$"
    assert axes[3].yaxis.get_tick_params()["labelleft"]
    assert axes[0].xaxis.get_tick_params()["labelbottom"]


def test_the_test_error_at_the_minimizer_is_told(small):
    accuracy = float(small["accuracy"].sel(split="test", alpha=0, beta=0))
    fig = plot_grid({"with": small})
    assert panels(fig)[0].get_title() == f"with\ntest error {100 - 100 * accuracy:.1f} %"
    assert "on 300 examples" in fig.get_supxlabel()
    assert plot_grid({"with": small.assign_attrs(n_examples="all")}).get_supxlabel() == ""


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.drop_vars("accuracy"),
        lambda s: s.sel(split=["train"]),
        lambda s: s.isel(alpha=slice(6, None)),
        lambda s: s.assign(status=s["status"] * 2),
        lambda s: s.assign(accuracy=s["accuracy"] * np.nan),
    ],
)
def test_a_test_error_that_is_not_known_is_not_told(small, change):
    fig = plot_grid({"with": change(small)})
    assert panels(fig)[0].get_title() == "with"
    assert fig.get_supxlabel() == ""


def test_given_captions_are_the_only_ones(small):
    fig = plot_grid({("SGD", "wd 0"): small, ("Adam", "wd 0"): small}, captions={("Adam", "wd 0"): "diverged"})
    assert [ax.get_title() for ax in panels(fig)] == ["wd 0", "diverged"]


def test_mixed_grids_show_each_its_own_range(small):
    other = make_surface(7, 9, alpha=np.linspace(-0.5, 0.5, 7), beta=np.linspace(-2, 2, 9))
    fig = plot_grid({"a": small, "b": other}, n_columns=2)
    one, two = panels(fig)
    assert (one.get_xlim(), one.get_ylim()) == ((-1, 1), (-1, 1))
    assert (two.get_xlim(), two.get_ylim()) == ((-0.5, 0.5), (-2, 2))
    assert two.get_ylabel() == r"$\beta$"
    np.testing.assert_array_equal(levels(one), levels(two))


def test_one_empty_panel_does_not_spoil_the_others(small):
    empty = small.copy(deep=True)
    empty["loss"][:], empty["status"][:] = np.nan, 0
    fig = plot_grid({"a": empty, "b": small})
    alone = plot_grid({"b": small})
    np.testing.assert_array_equal(levels(panels(fig)[1]), levels(panels(alone)[0]))
    assert panels(fig)[0].get_legend().get_texts()[0].get_text() == "not computed (121 cells)"
    plot_grid({"a": empty})  # no colour bar, no error


def test_the_height_is_that_of_the_panels(small):
    fig = plot_grid({"a": small, "b": small})
    fig.draw_without_rendering()
    box, (width, height) = fig.get_tightbbox(), fig.get_size_inches()
    assert width == 5.5
    assert -0.01 < box.y0 < 0.1
    assert -0.01 < height - box.y1 < 0.1


def test_a_narrow_page_leaves_titles_and_ticks_apart(small):
    """Second road: the boxes of what matplotlib drew."""
    fig = plot_grid({f"ResNet-{depth} without shortcuts": small for depth in (20, 32, 56, 110)})
    with fig.settled():
        fig.draw_without_rendering()
        titles = [ax.title.get_window_extent() for ax in panels(fig)]
        ticks = [label.get_window_extent() for ax in panels(fig) for label in ax.get_xticklabels() if label.get_text()]
    for boxes in (titles, ticks):
        assert not any(a.overlaps(b) for place, a in enumerate(boxes) for b in boxes[place + 1 :])


@pytest.mark.parametrize(
    ("surfaces", "words"),
    [
        (lambda s: [s, s], "surfaces is a list"),
        (lambda s: s, r"surfaces is a Dataset.*plot_contour\(surface\)"),
        (lambda s: {"a": "a.nc"}, r"surfaces\['a'\].*open_result"),
    ],
)
def test_what_is_no_mapping_of_datasets(small, surfaces, words):
    with pytest.raises(TypeError, match=words):
        plot_grid(surfaces(small))


@pytest.mark.parametrize(
    ("surfaces", "options", "words"),
    [
        (lambda s: {"a": s, "b": s.drop_vars("accuracy")}, {"var": "accuracy"}, r"surfaces\['b'\]: .* which has loss,"),
        (lambda s: {"a": s, "b": s.isel(beta=0)}, {}, r"surfaces\['b'\]: .*plot_slice"),
        (lambda s: {"a": s, ("b", "c"): s}, {}, r"key \('b', 'c'\)"),
        (lambda s: {("a", "b", "c"): s}, {}, "by one title, or all by"),
        (lambda s: {("a", "b"): s}, {"n_columns": 3}, "a column for each"),
        (lambda s: {("a", "b"): s}, {"captions": {("a", "bb"): "x"}}, "Did you mean 'a, b'"),
    ],
)
def test_what_cannot_be_a_grid(small, surfaces, options, words):
    with pytest.raises(ValueError, match=words):
        plot_grid(surfaces(small), **options)


def test_a_grid_of_grids_is_small_in_a_file(tmp_path):
    surface = make_surface(51, 51, rugged=1.0)
    surface["status"][::2, 1::2], surface["status"][1::2] = 2, 2
    for suffix in ("pdf", "svg"):
        plot_grid({"a": surface}).savefig(tmp_path / f"a.{suffix}")
        assert (tmp_path / f"a.{suffix}").stat().st_size < 1e6
