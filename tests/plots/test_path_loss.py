"""The loss along a path as data: both curves, the gap, the residual's axis, what cannot be drawn."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from lltoolkit.plots.path_loss import plot_trajectory_loss
from tests.plots.surfaces import make_path


@pytest.fixture
def path():
    return make_path()


def labelled(ax):
    return {line.get_label(): line for line in ax.get_lines()}


@pytest.mark.parametrize(("var", "split"), [("loss", "train"), ("loss", "test"), ("accuracy", "train")])
def test_curves_are_those_of_the_dataset(path, ax, var, split):
    plot_trajectory_loss(path, var=var, split=split, ax=ax)
    true, plane, *drops = ax.get_lines()
    np.testing.assert_array_equal(true.get_ydata(), path[var].sel(split=split))
    np.testing.assert_array_equal(plane.get_ydata(), path[f"plane_{var}"].sel(split=split))
    np.testing.assert_array_equal(true.get_xdata(), path["epoch"])
    assert (true.get_linestyle(), plane.get_linestyle() != "-") == ("-", True)
    assert [line.get_xdata()[0] for line in drops] == [15, 22]
    assert ax.get_yscale() == ("log" if var == "loss" else "linear")
    assert split in ax.get_ylabel()
    assert ax.get_xlabel() == "epoch"


def test_the_residual_has_an_axis_of_its_own(path, ax):
    plot_trajectory_loss(path, ax=ax)
    (twin,) = [other for other in ax.figure.axes if other is not ax]
    np.testing.assert_array_equal(twin.get_lines()[0].get_ydata()[:-1], path["residual"][:-1])
    assert np.isnan(twin.get_lines()[0].get_ydata()[-1])
    assert twin.get_ylim() == (0, 1.02)
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["checkpoints", "plane below them", "learning rate drops", "residual"]
    for options in ({"path": path, "residual": False}, {"path": path.drop_vars("residual")}):
        alone = plot_trajectory_loss(**options, ax=Figure().subplots())
        assert len(alone.figure.axes) == 1


def test_several_runs(path, ax):
    other = make_path(20, drops=())
    plot_trajectory_loss({"SGD": path, "Adam": other}, ax=ax)
    lines = labelled(ax)
    np.testing.assert_array_equal(lines["Adam"].get_ydata(), other["loss"].sel(split="train"))
    assert lines["SGD"].get_color() != lines["Adam"].get_color()
    assert len(ax.figure.axes) == 1
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["SGD", "Adam", "checkpoints", "plane below them", "learning rate drops"]


def test_steps_where_epochs_are_not_known(path, ax):
    plot_trajectory_loss(path.drop_vars("epoch"), ax=ax)
    np.testing.assert_array_equal(ax.get_lines()[0].get_xdata(), path["step"])


def test_what_a_log_axis_cannot_show_is_told(path, ax):
    path["plane_loss"][0, 3] = 0.0
    plot_trajectory_loss(path, ax=ax)
    assert ax.get_yscale() == "linear"
    assert "1 values are not above 0" in ax.get_ylabel()


def test_infinite_losses_are_crosses_and_missing_ones_gaps(path, ax):
    path["loss"][0, 4], path["plane_loss"][0, 7], path["loss"][0, 9] = np.inf, -np.inf, np.nan
    path["status"][9] = 0
    plot_trajectory_loss(path, ax=ax)
    np.testing.assert_array_equal(labelled(ax)["NaN or inf"].get_xdata(), [4, 7])
    assert np.isnan(ax.get_lines()[0].get_ydata()[[4, 9]]).all()
    path["status"][9] = 1  # it was computed, and is NaN
    again = plot_trajectory_loss(path, ax=Figure().subplots())
    np.testing.assert_array_equal(labelled(again)["NaN or inf"].get_xdata(), [4, 7, 9])


def test_bad_input(path, ax):
    bare = path.drop_vars(["loss", "plane_loss", "accuracy", "plane_accuracy"])
    with pytest.raises(ValueError, match=r"without an objective.*objective=objective"):
        plot_trajectory_loss(bare, ax=ax)
    with pytest.raises(ValueError, match=r"no eig_max with a plane_eig_max beside it; it has loss, accuracy"):
        plot_trajectory_loss(path, var="eig_max", ax=ax)
    with pytest.raises(ValueError, match="Did you mean 'test'"):
        plot_trajectory_loss(path, split="tst", ax=ax)
    with pytest.raises(TypeError, match="path is a int"):
        plot_trajectory_loss(3, ax=ax)
