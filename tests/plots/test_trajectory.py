"""Optimizer paths on a plane as data: lines, marks, limits, labels; what lies outside is told."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from lltoolkit.plots.contour import plot_contour
from lltoolkit.plots.paths import find_drops, time_axis
from lltoolkit.plots.series import color_of
from lltoolkit.plots.style import figure
from lltoolkit.plots.trajectory import plot_trajectory
from tests.plots.surfaces import make_path, make_surface


@pytest.fixture
def path():
    return make_path()


def parts(ax, name):
    return [each for each in ax.get_children() if each.get_gid() == f"lltoolkit:{name}"]


def points_of(dataset):
    return np.stack([dataset["alpha"].values, dataset["beta"].values], axis=1)


def texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_line_points_and_ends_are_the_coordinates(path, ax):
    plot_trajectory(path, ax=ax)
    (line,), (scatter, drops), (start,), (end,) = (parts(ax, name) for name in ("path", "checkpoints", "start", "end"))
    np.testing.assert_array_equal(line.get_xydata(), points_of(path))
    np.testing.assert_array_equal(scatter.get_offsets(), points_of(path))
    np.testing.assert_array_equal(start.get_xydata()[0], points_of(path)[0])
    np.testing.assert_array_equal(end.get_xydata()[0], points_of(path)[-1])
    np.testing.assert_array_equal(drops.get_offsets(), points_of(path)[[15, 22]])
    assert ax.get_aspect() == 1.0
    (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
    assert x0 < path["alpha"].min() < path["alpha"].max() < x1
    assert y0 < path["beta"].min() < path["beta"].max() < y1


def test_the_residual_is_the_colour_of_the_points_from_0_to_1(path, ax):
    plot_trajectory(path, ax=ax)
    scatter = parts(ax, "checkpoints")[0]
    shown = np.ma.filled(scatter.get_array(), np.nan)
    np.testing.assert_array_equal(shown[:-1], path["residual"].values[:-1])
    assert np.isnan(shown[-1])  # the origin itself: 0 of 0
    assert scatter.get_clim() == (0.0, 1.0)
    assert "residual" in ax.child_axes[0].get_ylabel()
    light = scatter.to_rgba([0.0, 0.25, 0.5, 0.75, 1.0])[:, :3] @ [0.3, 0.59, 0.11]
    assert (np.diff(light) < -0.05).all()  # told apart in grey


def test_epochs_or_no_colours_by_choice(path, ax):
    plot_trajectory(path, color="epoch", ax=ax)
    np.testing.assert_array_equal(parts(ax, "checkpoints")[0].get_array(), path["epoch"].values)
    other = plot_trajectory(path, color="run", ax=Figure().subplots())
    assert parts(other, "checkpoints")[0].get_array() is None
    assert not other.child_axes
    plain = plot_trajectory(path.drop_vars("residual"), ax=Figure().subplots())
    assert not plain.child_axes


@pytest.mark.parametrize(
    ("rates", "places"),
    [
        ([0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001], [2, 4]),
        ([0.1, 0.01, 0.01], [0]),
        ([0.1, 0.1, 0.06, 0.06], []),  # less than a half
        ([0.01, 0.1, 0.1, 0.1], []),  # a warm-up
        (0.5 * (1 + np.cos(np.linspace(0, np.pi, 31))), []),
        (0.5 ** np.arange(10), []),
        ([np.nan, np.nan, np.nan], []),
        ([0.1], []),
        ([], []),
    ],
)
def test_drops_are_where_a_held_rate_falls_by_half_or_more(rates, places):
    assert find_drops(np.array(rates, dtype=float)).tolist() == places


def test_drops_by_option(path, ax):
    plot_trajectory(path, drops=False, ax=ax)
    assert not parts(ax, "drops")
    assert texts(ax) == ["start", "end"]
    assert "learning rate drops" in texts(plot_trajectory(path, ax=Figure().subplots()))


def test_the_variance_stands_in_the_labels_beside_that_of_a_random_walk(path, ax):
    plot_trajectory(path, ax=ax)
    share = 100 * path["explained_variance"].values
    assert ax.get_xlabel() == f"$\\alpha$ (PC 1): {share[0]:.0f} % of the variance\n(a random walk gives 63 %)"
    assert ax.get_ylabel() == f"$\\beta$ (PC 2): {share[1]:.0f} %\n(a random walk: 15 %)"
    path["explained_variance"][:] = np.nan
    assert plot_trajectory(path, ax=Figure().subplots()).get_xlabel() == "$\\alpha$"
    assert plot_trajectory(path.drop_dims("axis"), ax=Figure().subplots()).get_ylabel() == "$\\beta$"


def test_a_surface_is_drawn_below_and_keeps_its_limits(path, surface, ax):
    plot_trajectory(path, surface=surface, ax=ax)
    assert (ax.get_xlim(), ax.get_ylim()) == ((-1, 1), (-1, 1))
    assert "outside" not in ax.get_xlabel()
    lines = [each for each in ax.collections if each.get_gid() is None]
    assert lines
    assert all(each.get_zorder() < parts(ax, "path")[0].get_zorder() for each in lines)
    assert not parts(ax, "minimizer")  # the star at the end stands for it


def test_checkpoints_outside_the_surface_are_shown_and_counted(surface, ax):
    wide = make_path(extent=1.5)
    beyond = int((np.abs(points_of(wide)) > 1).any(axis=1).sum())
    plot_trajectory(wide, surface=surface, ax=ax)
    assert f"{beyond} of 31 checkpoints lie outside the surface" in ax.get_xlabel()
    assert ax.get_xlim()[0] < wide["alpha"].min()
    own = plot_contour(surface, ax=Figure().subplots())
    plot_trajectory(wide, ax=own)
    assert own.get_xlabel() == ax.get_xlabel()


def test_a_second_path_on_one_axes_is_not_outside_of_a_surface(path, ax):
    plot_trajectory(path, ax=ax)
    plot_trajectory(make_path(extent=2.0), ax=ax)
    assert "outside" not in ax.get_xlabel()
    assert ax.get_xlim()[0] < -1


def test_checkpoints_without_coordinates_are_told(path, ax):
    path["alpha"][[0, 4]] = np.nan
    plot_trajectory(path, ax=ax)
    assert "2 of 31 checkpoints have no coordinates" in ax.get_xlabel()
    np.testing.assert_array_equal(parts(ax, "start")[0].get_xydata()[0], points_of(path)[1])
    assert len(parts(ax, "path")[0].get_xydata()) == 29


def test_several_runs_differ_in_colour_and_marker(path, surface, ax):
    runs = {"SGD": path, "Adam": make_path(seed=3, drops=())}
    plot_trajectory(runs, surface=surface, ax=ax)
    lines = parts(ax, "path")
    assert [line.get_color() for line in lines] == [color_of(0), color_of(1)]
    np.testing.assert_array_equal(lines[1].get_xydata(), points_of(runs["Adam"]))
    worst = [float(run["residual"].max()) for run in runs.values()]
    expected = [f"SGD (residual up to {worst[0]:.2f})", f"Adam (residual up to {worst[1]:.2f})"]
    assert texts(ax) == [*expected, "start", "end", "learning rate drops"]
    handles = ax.get_legend().legend_handles[:2]
    assert len({handle.get_marker() for handle in handles}) == 2


def test_the_companion_shows_the_loss_along_the_path(path, ax):
    other = Figure().subplots()
    assert plot_trajectory(path, companion=other, split="test", ax=ax) is ax
    np.testing.assert_array_equal(other.get_lines()[0].get_ydata(), path["loss"].sel(split="test"))


def test_the_plane_of_the_surface_chooses_the_axes(path, ax):
    three = path.assign(gamma=("step", np.linspace(1, 0, 31)))
    surface = make_surface().rename(beta="gamma")
    plot_trajectory(three, surface=surface, ax=ax)
    np.testing.assert_array_equal(parts(ax, "path")[0].get_ydata(), three["gamma"].values)


@pytest.mark.parametrize("form", ["lines", "filled", "heat"])
@pytest.mark.parametrize("several", [False, True])
def test_legend_bar_and_labels_do_not_overlap(path, surface, form, several):
    given = {"SGD": path, "Adam": make_path(seed=3)} if several else path
    with figure("icml", aspect=0.8) as (fig, ax):
        plot_trajectory(given, surface=surface, form=form, ax=ax)
        for _ in range(3):
            fig.draw_without_rendering()
        legend = ax.get_legend().get_window_extent()
        boxes = [child.get_tightbbox() for child in ax.child_axes]
        assert legend.y0 >= ax.get_window_extent().y1
        assert not any(legend.overlaps(box) for box in boxes)
        assert not any(one.overlaps(two) for place, one in enumerate(boxes) for two in boxes[:place])
        for box in [legend, *boxes, ax.get_tightbbox()]:
            assert box.x0 >= -1
            assert box.x1 <= fig.bbox.x1 + 1
            assert box.y1 <= fig.bbox.y1 + 1


def test_epochs_are_the_time_where_all_tell_them(path):
    assert time_axis({"": path}) == "epoch"
    assert time_axis({"a": path, "b": path.drop_vars("epoch")}) == "step"
    assert time_axis({"": path.assign_coords(epoch=("step", np.arange(31) // 2))}) == "step"


def test_other_subspaces_are_refused(path, surface, ax):
    path.attrs["subspace_id"], surface.attrs["subspace_id"] = "abc", "abd"
    with pytest.raises(ValueError, match=r"surface lies in the subspace abd, the trajectory in abc.*around=path"):
        plot_trajectory(path, surface=surface, ax=ax)
    with pytest.raises(ValueError, match="trajectory 'b' in abx"):
        plot_trajectory({"a": path, "b": path.assign_attrs(subspace_id="abx")}, ax=ax)
    surface.attrs["subspace_id"] = "none"
    plot_trajectory(path, surface=surface, ax=ax)


@pytest.mark.parametrize(
    ("change", "options", "error", "words"),
    [
        (lambda p: p, {"color": "residul"}, ValueError, "Did you mean 'residual'"),
        (lambda p: p.drop_vars("residual"), {"color": "residual"}, ValueError, "no residual"),
        (lambda p: p.drop_vars("beta"), {}, ValueError, "has alpha; .*plot_trajectory_loss"),
        (lambda p: p.drop_vars("beta"), {"surface": make_surface()}, ValueError, "has no 'beta', an axis"),
        (lambda p: p.assign(alpha=p["alpha"] * np.nan), {}, ValueError, "nothing to draw"),
        (lambda p: xr.concat([p, p], "run"), {}, ValueError, "Choose one run"),
        (lambda p: p.assign_attrs(kind="surface"), {}, ValueError, "is a surface, not a trajectory"),
        (lambda _: {}, {}, ValueError, "empty"),
        (lambda p: {"a": p["alpha"]}, {}, TypeError, r"path\['a'\] is a DataArray"),
        (lambda p: [p], {}, TypeError, "path is a list"),
    ],
)
def test_bad_input(path, ax, change, options, error, words):
    with pytest.raises(error, match=words):
        plot_trajectory(change(path), ax=ax, **options)
