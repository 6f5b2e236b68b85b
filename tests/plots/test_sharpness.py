import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from lltoolkit.labelled.correlation import rank_correlation
from lltoolkit.plots.sharpness import plot_sharpness


@pytest.fixture
def table():
    """Twelve models, three measures: over two decades, linear, and a radius."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=12)
    value = np.stack([10.0**hidden, 3 + hidden + rng.normal(size=12), 0.5 * np.exp(-0.3 * hidden)], axis=1)
    named = {"long_name": ["largest eigenvalue", "trace", "radius"], "units": ["nat", "nat", "1"]}
    named |= {"sharper": ["higher", "higher", "lower"]}
    return xr.Dataset(
        {
            "value": (("model", "measure"), value),
            "value_se": (("model", "measure"), np.stack([np.full(12, np.nan), np.full(12, 0.2), 0.1 * value[:, 2]], 1)),
            "censored": (("model", "measure"), np.zeros((12, 3), dtype=np.int8)),
        },
        coords={
            "measure": ["lambda_max", "trace", "volume_epsilon"],
            **{f"measure_{name}": ("measure", values) for name, values in named.items()},
            "error_gap": ("model", 0.1 + 0.02 * hidden, {"long_name": "error gap"}),
            "error_gap_se": ("model", np.full(12, 0.004)),
            "optimizer": ("model", ["sgd", "adam", "lion"] * 4),
            "batch_size": ("model", [1024, 128] * 6, {"long_name": "batch size"}),
            "configuration": ("model", np.arange(12) // 2),
        },
    )


def points(ax):
    """All markers that are drawn, as sorted pairs."""
    found = [line.get_xydata() for line in ax.get_lines() if line.get_marker() not in {"None", "_", "|"}]
    return np.array(sorted(map(tuple, np.concatenate(found)))) if found else np.empty((0, 2))


def test_a_panel_for_each_measure(table):
    fig = plot_sharpness(table)
    assert isinstance(fig, Figure)
    assert len(fig.axes) == 3
    for ax, measure in zip(fig.axes, table.measure.values, strict=True):
        expected = zip(table.value.sel(measure=measure).values, table.error_gap.values, strict=True)
        np.testing.assert_array_equal(points(ax), sorted(expected))
    assert [ax.get_xscale() for ax in fig.axes] == ["log", "linear", "linear"]
    assert fig.axes[0].get_xlabel() == "largest eigenvalue [nat]"
    assert [ax.get_ylabel() for ax in fig.axes] == ["error gap", "", ""]
    fig.draw_without_rendering()


def test_titles_are_tau_and_its_interval(table):
    correlation = rank_correlation(table, given=None, n_bootstrap=100)
    fig = plot_sharpness(table, correlation=correlation)
    for ax, measure in zip(fig.axes, table.measure.values, strict=True):
        entry = correlation.sel(against="error_gap", measure=measure)
        words = [f"{float(entry[name]):.2f}" for name in ("tau", "tau_low", "tau_high")]
        assert ax.get_title().replace("\N{MINUS SIGN}", "-") == rf"$\tau$ = {words[0]} [{words[1]}, {words[2]}]"
    assert "12 models in 6 configurations" in fig.get_supxlabel()


def test_sharper_is_to_the_right(table, ax):
    plot_sharpness(table, measures="volume_epsilon", ax=ax)
    first, last = ax.get_xlim()
    assert first > last
    assert "reversed: low is sharp" in ax.get_xlabel()
    assert ax.get_title().startswith(r"$\tau$ = 1.00")


def test_error_bars_are_one_standard_error(table, ax):
    assert plot_sharpness(table, measures="trace", ax=ax) is ax
    horizontal, vertical = (bars.get_segments() for bars in ax.collections)
    np.testing.assert_allclose([bar[1, 0] - bar[0, 0] for bar in horizontal], 0.4)
    np.testing.assert_allclose([bar[1, 1] - bar[0, 1] for bar in vertical], 0.008)


def test_a_bar_down_to_zero_does_not_stretch_a_log_axis(table, ax):
    least = float(table.value[:, 0].min())
    table["value_se"][:, 0] = 0.01 * table.value[:, 0]
    table["value_se"][int(np.argmin(table.value.values[:, 0])), 0] = 5 * least
    plot_sharpness(table, measures="lambda_max", ax=ax)
    assert ax.get_xlim()[0] > least / 4
    ax.figure.draw_without_rendering()


def test_groups_have_colours_and_markers(table):
    fig = plot_sharpness(table, group="batch_size")
    (legend,) = fig.legends
    assert [text.get_text() for text in legend.get_texts()] == ["128", "1024"]
    assert legend.get_title().get_text() == "batch size"
    drawn = [line for line in fig.axes[1].get_lines() if line.get_marker() in {"o", "s"}]
    assert len({(line.get_marker(), line.get_color()) for line in drawn}) == 2
    for line, size in zip(drawn, (128, 1024), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), table.error_gap[table.batch_size == size])
    both = plot_sharpness(table, group=["optimizer", "batch_size"])
    assert both.legends[0].get_texts()[0].get_text() == "adam, 128"
    assert len(both.legends[0].get_texts()) == 6
    fig.draw_without_rendering()


def test_a_model_without_the_attribute_is_drawn(table, ax):
    table["optimizer"] = ("model", np.array(["sgd", ""] * 6, dtype=object))
    plot_sharpness(table.set_coords("optimizer"), measures="trace", group="optimizer", ax=ax)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["sgd", "not given"]
    assert len(points(ax)) == 12


def test_bounds_are_hollow_and_point_onward(table, ax):
    table["censored"][[2, 5], 2] = 1
    plot_sharpness(table, measures="volume_epsilon", ax=ax)
    hollow = [line for line in ax.get_lines() if line.get_markerfacecolor() == "white"]
    assert [len(line.get_xdata()) for line in hollow] == [2]
    arrows = [text for text in ax.texts if text.arrow_patch is not None]
    assert len(arrows) == 2
    # A radius that was never reached is larger, and the axis is reversed.
    assert all(arrow.get_position()[0] < 0 for arrow in arrows)
    ax.figure.draw_without_rendering()
    assert "hollow: only a bound (up to 2 models)" in plot_sharpness(table).get_supxlabel()
    assert "hollow" not in plot_sharpness(table, measures=["lambda_max", "trace"]).get_supxlabel()


def test_values_that_cannot_be_drawn_are_counted(table, ax):
    table["value"][3, 0], table["value"][4, 0], table["value"][5, 0] = np.nan, np.inf, -1.0
    plot_sharpness(table, measures="lambda_max", xscale="log", ax=ax)
    told = ax.get_title().replace("\N{NO-BREAK SPACE}", " ").splitlines()[1:]
    assert " ".join(told) == "not drawn: 1 NaN only ranked: 1 infinite, 1 not above 0"
    assert len(points(ax)) == 9
    assert not ax.texts  # nothing lies on the points
    ax.figure.draw_without_rendering()


def test_nothing_to_draw(table):
    table["value"][:] = np.nan
    fig = plot_sharpness(table)
    assert all(ax.get_title() == "$\\tau$ undefined\nnot drawn: 12 NaN" for ax in fig.axes)
    fig.draw_without_rendering()


def test_few_configurations_are_told(table):
    fig = plot_sharpness(table.isel(model=slice(0, 4)))
    assert "fewer than 5 configurations mean little" in fig.get_supxlabel()


def test_log_of_nothing_above_zero(table, ax):
    table["value"][:] = -table.value
    plot_sharpness(table, measures="lambda_max", xscale="log", ax=ax)
    assert ax.get_xscale() == "linear"
    assert "nothing is above 0" in ax.get_xlabel()


def test_size_is_the_venues(table):
    assert plot_sharpness(table, venue="icml", columns=1).get_size_inches()[0] == 3.25
    fig = plot_sharpness(table, n_columns=2)
    assert [ax.get_subplotspec().rowspan.start for ax in fig.axes] == [0, 0, 1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"measures": "trase"}, "Did you mean 'trace'"),
        ({"against": "error_gop"}, "Did you mean 'error_gap'"),
        ({"against": ["error_gap"]}, "name one"),
        ({"group": "optimiser"}, "Did you mean 'optimizer'"),
        ({"xscale": "lin"}, "Did you mean 'linear'"),
    ],
)
def test_bad_choices(table, options, words):
    with pytest.raises(ValueError, match=words):
        plot_sharpness(table, **options)


def test_bad_input(table, ax):
    with pytest.raises(ValueError, match="ax takes one measure, these are 3"):
        plot_sharpness(table, ax=ax)
    with pytest.raises(ValueError, match="table has 1 model"):
        plot_sharpness(table.isel(model=[0]))
    with pytest.raises(ValueError, match="correlation has no measure 'trace'"):
        plot_sharpness(table, correlation=rank_correlation(table, measures="lambda_max", given=None, n_bootstrap=5))
    with pytest.raises(TypeError, match="no result of rank_correlation"):
        plot_sharpness(table, correlation=table)
