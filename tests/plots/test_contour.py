import subprocess
import sys
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure

from lltoolkit.plots import figure, plot_contour, plot_grid
from tests.plots.surfaces import make_surface


def contours(ax):
    return [each for each in ax.collections if isinstance(each, QuadContourSet)]


def vertices(ax):
    return np.concatenate([path.vertices for path in contours(ax)[-1].get_paths()])


def gids(ax):
    return {each.get_gid() for each in ax.get_children()} - {None}


def test_lines_lie_on_their_levels(surface, ax):
    """Second road: the loss of the synthetic surface in closed form, at the vertices of a line."""
    plot_contour(surface, levels=[0.5, 50.0], form="lines", labels=False, ax=ax)
    (lines,) = contours(ax)
    for level, path in zip(lines.levels, lines.get_paths(), strict=True):
        exact = [make_surface(alpha=[a], beta=[b]).loss.values[0, 0, 0] for a, b in path.vertices[::40]]
        np.testing.assert_allclose(np.log10(exact), np.log10(level), atol=0.05)


def test_levels_labels_and_minimizer(surface, ax):
    plot_contour(surface, split="test", ax=ax)
    bands, lines = contours(ax)
    assert set(lines.levels) <= set(bands.levels)
    assert (ax.get_xlabel(), ax.get_ylabel()) == (r"$\alpha$", r"$\beta$")
    assert ax.get_aspect() == 1
    assert "lltoolkit:minimizer" in gids(ax)
    assert ax.child_axes[0].get_ylabel() == "test loss [nat]"
    assert (ax.get_xlim(), ax.get_ylim()) == ((-1, 1), (-1, 1))


@pytest.mark.parametrize("form", ["filled", "lines", "heat"])
def test_order_of_the_grid_does_not_show(form):
    axis = np.array([-1.0, -0.8, -0.3, 0.0, 0.2, 0.5, 1.0])
    up, down = Figure().subplots(), Figure().subplots()
    plot_contour(make_surface(alpha=axis, beta=axis**3), form=form, ax=up)
    plot_contour(make_surface(alpha=axis[::-1], beta=axis[::-1] ** 3), form=form, ax=down)
    if form == "heat":
        np.testing.assert_array_equal(up.collections[0].get_array(), down.collections[0].get_array())
    else:
        np.testing.assert_array_equal(vertices(up), vertices(down))


def test_swapping_the_axes_mirrors_the_picture(surface):
    swapped = surface.rename(alpha="beta", beta="alpha").transpose("split", "alpha", "beta")
    one, other = Figure().subplots(), Figure().subplots()
    plot_contour(surface, levels=[1.0, 10.0], labels=False, form="heat", ax=one)
    plot_contour(swapped, levels=[1.0, 10.0], labels=False, form="heat", ax=other)
    np.testing.assert_array_equal(one.collections[0].get_array(), other.collections[0].get_array().T)


def test_cells_without_a_value_are_shown_and_counted(surface, ax):
    surface["loss"][:, 2, 3], surface["loss"][:, 10:12, 5] = np.nan, np.inf
    surface["status"][20:, :5] = 0
    surface["loss"][:, 20:, :5] = np.nan
    plot_contour(surface, ax=ax)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "not computed (55 cells)",
        "NaN or inf (3 cells)",
    ]
    assert {"lltoolkit:not computed", "lltoolkit:NaN or inf"} <= gids(ax)
    hatched = next(each for each in ax.collections if each.get_gid() == "lltoolkit:NaN or inf")
    assert len(hatched.get_paths()) == 3
    assert hatched.get_hatch()
    inside = vertices(ax)
    assert not ((inside[:, 0] > 0.37) & (inside[:, 1] < -0.77)).any()  # no line where nothing was computed


def test_clipping_is_told(surface, ax):
    plot_contour(surface, clip=10, ax=ax)
    assert "clipped at 10 (max" in ax.child_axes[0].get_ylabel()
    assert contours(ax)[0].levels[-1] == 10


@pytest.mark.parametrize(
    "values", [np.full((5, 6), 0.7), np.zeros((5, 6)), np.full((5, 6), np.nan), np.full((5, 6), np.inf)]
)
@pytest.mark.parametrize("form", ["filled", "lines", "heat"])
def test_flat_and_empty_surfaces(values, form, ax):
    surface = make_surface(5, 6)
    surface["loss"][:] = values
    plot_contour(surface, form=form, ax=ax).figure.canvas.draw()


@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (2, 2), (3, 9)])
@pytest.mark.parametrize("form", ["filled", "lines", "heat"])
def test_small_grids(shape, form, ax):
    plot_contour(make_surface(*shape), form=form, ax=ax).figure.canvas.draw()


def test_losses_below_zero(surface, ax):
    surface["loss"][:] = surface["loss"] - 100
    plot_contour(surface, ax=ax).figure.canvas.draw()
    assert "linear scale" in ax.child_axes[0].get_ylabel()


def test_accuracy_is_linear_and_invents_no_islands(surface, ax):
    plot_contour(surface, var="accuracy", ax=ax)
    lines = contours(ax)[-1]
    np.testing.assert_allclose(np.diff(lines.levels), np.diff(lines.levels)[0])
    ring = lines.get_paths()[0].to_polygons(closed_only=False)
    assert len(ring) == 1  # the plateau at 0.1 around it has no ripples


def test_unequal_spans(ax):
    plot_contour(make_surface().assign_coords(alpha=np.linspace(-50, 50, 31)), ax=ax)
    assert ax.get_aspect() == "auto"


def test_the_dataset_stays_as_it_was(surface, ax):
    before = surface.copy(deep=True)
    plot_contour(surface, ax=ax)
    assert surface.identical(before)


def test_own_figure_goes_to_pyplot(surface):
    backend, settings = plt.get_backend(), plt.rcParams.copy()
    ax = plot_contour(surface)
    assert plt.gcf() is ax.figure
    assert plt.get_backend() == backend
    assert plt.rcParams == settings
    plt.close(ax.figure)


def test_bad_form(surface):
    with pytest.raises(ValueError, match="Did you mean 'lines'"):
        plot_contour(surface, form="line")


def test_grid_shares_levels_and_colours(surface, rugged):
    fig = plot_grid({"with": surface, "without": rugged}, captions={"with": "test error 1.4 %"})
    one, other = fig.axes[:2]
    np.testing.assert_array_equal(contours(one)[0].levels, contours(other)[0].levels)
    assert contours(one)[0].get_clim() == contours(other)[0].get_clim()
    assert one.get_title() == "with\ntest error 1.4 %"
    assert other.get_title() == "without"
    assert len(one.child_axes + other.child_axes) == 1
    assert plt.get_fignums() == []


def test_grid_rows_and_caption(surface):
    fig = plot_grid({str(n): surface for n in range(5)}, n_columns=3, form="heat", provenance=True)
    assert fig.get_supxlabel().startswith("300 train examples; filter-normalized")
    assert len(fig.axes) == 6
    fig.canvas.draw()


@pytest.mark.parametrize(
    ("surfaces", "options", "words"),
    [
        ({}, {}, "empty"),
        ({"with": None}, {"captions": {"wiht": "x"}}, "Did you mean 'with'"),
        ({"with": None}, {"venue": "neurps"}, "Did you mean 'neurips'"),
    ],
)
def test_bad_grids(surface, surfaces, options, words):
    with pytest.raises(ValueError, match=words):
        plot_grid(dict.fromkeys(surfaces, surface), **options)


def test_grid_of_different_units(surface):
    other = surface.copy(deep=True)
    other["loss"].attrs["units"] = "bit"
    with pytest.raises(ValueError, match="cannot share"):
        plot_grid({"a": surface, "b": other})


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_same_bytes_twice_and_embedded_fonts(surface, tmp_path, suffix):
    written = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.{suffix}"
        plot_grid({"with": surface}).savefig(path)
        written.append(path.read_bytes())
    assert written[0] == written[1]
    assert len(written[0]) < 1e6
    assert b"/Type3" not in written[0]


def test_importing_plots_loads_no_pyplot():
    code = "import sys, lltoolkit.plots as p; p.plot_contour, p.plot_grid, p.plot_slice, p.plot_surface, p.figure; "
    code += "assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_warnings_from_huge_values(surface, ax):
    surface["loss"][0, 0, :3] = [1e7, 1e200, 1e-200]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_contour(surface, ax=ax).figure.canvas.draw()


@pytest.mark.parametrize("form", ["filled", "lines", "heat"])
def test_cells_that_were_not_computed_on_all_examples_are_marked_and_counted(surface, form, ax):
    surface["status"][::2, 1::2], surface["status"][5, 7] = 2, 3
    plot_contour(surface, form=form, ax=ax)
    marked = {word: [line for line in ax.get_lines() if line.get_gid() == f"lltoolkit:{word}"]
              for word in ("interpolated", "estimated")}  # fmt: skip
    points = {(x, y) for line in marked["interpolated"] for x, y in zip(*line.get_data(), strict=True)}
    assert points == {(x, y) for x in surface.alpha.values[::2] for y in surface.beta.values[1::2]}
    (estimated,) = marked["estimated"]
    assert [values.item() for values in estimated.get_data()] == [surface.alpha[5], surface.beta[7]]
    assert "240 interpolated and 1 estimated of 961 cells" in ax.child_axes[0].get_ylabel()


def test_cells_that_were_computed_are_not_marked(surface, ax):
    plot_contour(surface, ax=ax)
    assert [line.get_gid() for line in ax.get_lines()] == ["lltoolkit:minimizer"]


def test_lines_on_white_can_be_seen(surface, ax):
    plot_contour(surface, form="lines", ax=ax)
    (lines,) = contours(ax)
    lightness = lines.cmap(np.linspace(0, 1, 50))[:, :3] @ [0.3, 0.59, 0.11]
    assert lightness.max() < 0.7
    assert plot_contour(surface, form="lines", cmap="magma", ax=Figure().subplots()).collections[0].cmap.name == "magma"


def test_numbers_on_the_colour_bar_fit_its_height(surface):
    tall, low = (Figure(figsize=(3, height), layout="constrained").subplots() for height in (6, 1.2))
    counts = []
    for ax in (tall, low):
        plot_contour(surface, ax=ax).figure.draw_without_rendering()
        counts.append(len(ax.child_axes[0].get_yticks()))
    assert counts[0] > counts[1] >= 2


@pytest.mark.parametrize("venue", ["icml", "slides", (3.0, 1.6)])
def test_the_label_of_the_bar_stays_within_the_figure(surface, venue):
    surface["status"] = (("alpha", "beta"), np.full(surface["loss"].isel(split=0).shape, 2, dtype=np.int8))
    with figure(venue) as (fig, ax):
        plot_contour(surface, form="heat", ax=ax)
    with fig.settled():
        label = ax.child_axes[0].yaxis.label
        box = label.get_window_extent()
        assert label.get_text().replace("\n", " ").endswith("interpolated (dots)")
        assert box.y0 >= 0
        assert box.y1 <= fig.bbox.height


def test_a_coordinate_that_stands_twice_is_told(surface):
    with pytest.raises(ValueError, match=r"alpha = 0.* stands twice .*drop_duplicates\('alpha'\)"):
        plot_contour(surface.assign_coords(alpha=np.zeros(surface.sizes["alpha"])))
