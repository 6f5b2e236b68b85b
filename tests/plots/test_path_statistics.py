"""Statistics of a training as data: a panel for each question, runs by colour."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from lltoolkit.plots.path_statistics import plot_trajectory_statistics
from tests.plots.surfaces import make_path, make_statistics

NAMES = [
    ["distance_from_start", "distance_to_end"],
    ["step_length"],
    ["cosine_to_previous", "cosine_to_displacement", "cosine_to_end"],
]


@pytest.fixture
def statistics():
    return make_statistics()


def curves(ax):
    return [line for line in ax.get_lines() if not line.get_label().startswith("_") and len(line.get_xdata()) > 2]


@pytest.mark.parametrize("venue", ["neurips", "icml"])
def test_panels_show_the_variables(statistics, venue):
    fig = plot_trajectory_statistics(statistics, venue=venue)
    assert fig.get_size_inches()[0] == {"neurips": 5.5, "icml": 3.25}[venue]
    for ax, names in zip(fig.axes, NAMES, strict=True):
        for line, name in zip(curves(ax), names, strict=True):
            np.testing.assert_array_equal(line.get_ydata(), statistics[name])
            np.testing.assert_array_equal(line.get_xdata(), statistics["epoch"])
        assert sorted(line.get_xdata()[0] for line in ax.get_lines() if len(set(line.get_xdata())) == 1) == [15, 22]
    assert any(set(line.get_ydata()) == {0} for line in fig.axes[2].get_lines())  # the zero of the cosines
    assert fig.axes[2].get_ylim()[0] < -1


def test_runs_have_colours_and_one_legend(statistics):
    fig = plot_trajectory_statistics({"SGD": statistics, "Adam": make_statistics(seed=3, drops=())})
    lines = curves(fig.axes[0])
    assert [line.get_label() for line in lines] == [
        "SGD from the start", "SGD to the end", "Adam from the start", "Adam to the end",
    ]  # fmt: skip
    assert lines[0].get_color() == lines[1].get_color() != lines[2].get_color()
    assert lines[0].get_linestyle() == lines[2].get_linestyle() != lines[1].get_linestyle()
    (legend,) = fig.legends
    assert [text.get_text() for text in legend.get_texts()] == ["SGD", "Adam", "learning rate drops"]


def test_one_panel_on_given_axes(statistics, ax):
    assert plot_trajectory_statistics(statistics, panels="step", ax=ax) is ax
    np.testing.assert_array_equal(ax.get_lines()[0].get_ydata(), statistics["step_length"])
    assert ax.get_yscale() == "log"


@pytest.mark.parametrize("venue", ["neurips", "icml", "jmlr"])
def test_nothing_is_cut_or_overlaps(statistics, venue):
    fig = plot_trajectory_statistics({"SGD": statistics, "Adam": make_statistics(seed=3)}, venue=venue)
    for _ in range(2):
        fig.draw_without_rendering()
    boxes = [ax.get_tightbbox() for ax in fig.axes] + [fig.legends[0].get_window_extent()]
    for place, box in enumerate(boxes):
        assert box.x0 >= -1
        assert box.x1 <= fig.bbox.x1 + 1
        assert box.y1 <= fig.bbox.y1 + 1
        assert not any(box.overlaps(other) for other in boxes[:place])
    assert min(ax.get_window_extent().height for ax in fig.axes) > 0.8 * fig.dpi


def test_bad_input(statistics):
    with pytest.raises(ValueError, match="Did you mean 'cosine'"):
        plot_trajectory_statistics(statistics, panels=["cosin"])
    with pytest.raises(ValueError, match="ax takes one panel"):
        plot_trajectory_statistics(statistics, ax=Figure().subplots())
    with pytest.raises(ValueError, match=r"no 'cosine_to_end' for the panel 'cosine'.*trajectory_statistics"):
        plot_trajectory_statistics(statistics.drop_vars("cosine_to_end"))
    with pytest.raises(ValueError, match="is a trajectory, not a statistics"):
        plot_trajectory_statistics(make_path())
    with pytest.raises(TypeError, match="statistics is a str"):
        plot_trajectory_statistics("run")
