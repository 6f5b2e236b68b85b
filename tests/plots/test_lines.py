import numpy as np
import pytest
import xarray as xr

from lltoolkit.plots import plot_slice
from lltoolkit.plots.series import wrap_label
from tests.plots.surfaces import make_surface


def lines(ax):
    return {line.get_label(): line for each in ax.figure.axes for line in each.get_lines()}


def test_lines_are_the_cells(surface, ax):
    plot_slice(surface, ax=ax)
    drawn = lines(ax)
    assert list(drawn) == ["train loss", "test loss", "train accuracy", "test accuracy"]
    row = surface.sel(beta=0, method="nearest")
    for split in ("train", "test"):
        np.testing.assert_array_equal(drawn[f"{split} loss"].get_ydata(), row.loss.sel(split=split))
        np.testing.assert_array_equal(drawn[f"{split} accuracy"].get_ydata(), row.accuracy.sel(split=split))
    np.testing.assert_array_equal(drawn["train loss"].get_xdata(), surface.alpha)
    assert [drawn[f"{split} loss"].get_linestyle() for split in ("train", "test")] == ["-", "--"]
    assert ax.get_yscale() == "log"
    assert ax.get_xlabel() == r"$\alpha$"
    assert ax.get_ylabel() == "loss [nat]"


def test_a_cut_beside_the_origin_is_named(ax):
    plot_slice(make_surface(beta=[-1.0, -0.25, 0.5]), var="loss", ax=ax)
    assert ax.get_xlabel() == r"$\alpha$, $\beta$ = -0.25"


def test_along_the_other_axis(surface, ax):
    plot_slice(surface, var="loss", split="test", along="beta", at={"alpha": 0.61}, ax=ax)
    (line,) = ax.get_lines()
    expected = surface.loss.sel(split="test").sel(alpha=0.61, method="nearest")
    np.testing.assert_array_equal(line.get_ydata(), expected)
    assert ax.get_xlabel() == r"$\beta$, $\alpha$ = 0.6"


def test_order_of_the_grid_does_not_show(surface, ax):
    plot_slice(surface.isel(alpha=slice(None, None, -1)), var="loss", ax=ax)
    assert (np.diff(ax.get_lines()[0].get_xdata()) > 0).all()


def test_standard_error_is_a_band(surface, ax):
    plot_slice(surface, var="loss", split="train", ax=ax)
    (band,) = ax.collections
    row = surface.sel(split="train").sel(beta=0, method="nearest")
    edges = band.get_paths()[0].vertices
    for expected in (row.loss + row.loss_se, row.loss - row.loss_se):
        assert np.isclose(edges[:, 1], float(expected[3]), rtol=1e-12).any()


def test_an_ensemble_is_a_median_in_a_band(ax):
    members = [make_surface(rugged=1, seed=seed)[["loss"]].isel(beta=15) for seed in range(5)]
    ensemble = xr.concat(members, "direction")
    plot_slice(ensemble, split="train", quantiles=(0.25, 0.75), ax=ax)
    (line,) = ax.get_lines()
    np.testing.assert_allclose(line.get_ydata(), np.median(ensemble.loss.values[:, 0], axis=0))
    assert "5 directions" in ax.get_legend().get_title().get_text()
    assert len(ax.collections) == 1


def test_cells_without_a_value_are_gaps_and_crosses(surface, ax):
    surface["loss"][:, 3:5, 15], surface["status"][20:, 15] = np.inf, 0
    plot_slice(surface, var="loss", split="train", ax=ax)
    line, crosses = ax.get_lines()
    assert np.isnan(line.get_ydata()[[3, 4, 20, 30]]).all()
    np.testing.assert_array_equal(crosses.get_xdata(), surface.alpha[3:5])
    ax.figure.canvas.draw()


def test_losses_below_zero(surface, ax):
    surface["loss"][:] = surface["loss"] - 1e3
    plot_slice(surface, ax=ax)
    assert ax.get_yscale() == "linear"
    assert "not above 0" in ax.get_ylabel()


def test_two_surfaces_on_one_axes(surface, rugged, ax):
    plot_slice(surface, name="with", ax=ax)
    plot_slice(rugged, name="without", color="green", ax=ax)
    assert len(ax.figure.axes) == 2
    assert len(ax.get_legend().get_texts()) == 8


def test_without_accuracy(surface, ax):
    plot_slice(surface.drop_vars("accuracy"), ax=ax)
    assert len(ax.figure.axes) == 1


def test_a_volume(surface, ax):
    plot_slice(surface.expand_dims(gamma=[-1.0, 0.0, 1.0]), var="loss", along="gamma", ax=ax)
    assert len(ax.get_lines()[0].get_xdata()) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"along": "gama"}, "along='gama'"),
        ({"at": {"alpha": 0}}, "at='alpha'"),
        ({"var": ("loss", "acuracy")}, "Did you mean 'accuracy'"),
        ({"var": ("a", "b", "c")}, "3 variables"),
        ({"split": "tset"}, "Did you mean 'test'"),
        ({"scale": "lin"}, "Did you mean 'linear'"),
    ],
)
def test_bad_choices(surface, options, words, ax):
    with pytest.raises(ValueError, match=words):
        plot_slice(surface, **options, ax=ax)


def test_ends_of_an_interpolation_are_marked(surface, ax):
    line = surface.isel(beta=15, drop=True).assign_attrs(subspace_kind="interpolation")
    plot_slice(line, name="a", ax=ax)
    plot_slice(line, name="b", ax=ax)
    marks = [mark.get_xdata()[0] for mark in ax.get_lines() if mark.get_gid() == "lltoolkit:minimizer"]
    assert marks == [0, 1]
    assert ax.get_xlabel() == r"$\alpha$, minimizers at 0 and 1"
    assert not any(text.get_text().startswith("_") for text in ax.get_legend().get_texts())


def test_filled_cells_are_hollow_dots(surface, ax):
    surface["status"][3:6, 15], surface["status"][8, 15] = 2, 3
    plot_slice(surface, var="loss", split="train", ax=ax)
    drawn = lines(ax)
    np.testing.assert_array_equal(drawn["interpolated"].get_xdata(), surface.alpha[3:6])
    np.testing.assert_array_equal(drawn["interpolated"].get_ydata(), surface.loss[0, 3:6, 15])
    np.testing.assert_array_equal(drawn["estimated from a sample"].get_xdata(), surface.alpha[8:9])


@pytest.mark.parametrize("value", [0.7, 0.0, -3.0, np.nan, np.inf])
def test_flat_and_empty_lines(surface, value, ax):
    surface["loss"][:] = value
    plot_slice(surface, ax=ax).figure.canvas.draw()


def test_what_has_no_axes(ax):
    with pytest.raises(ValueError, match="this trajectory has none of the axes alpha"):
        plot_slice(xr.Dataset({"loss": ("step", [1.0])}, attrs={"kind": "trajectory"}), ax=ax)


def test_a_point_between_missing_ones_is_seen(surface, ax):
    one = surface.loss.sel(split="train").where(surface.alpha == surface.alpha[3]).to_dataset()
    plot_slice(one, var="loss", ax=ax)
    (point,) = (line for line in ax.get_lines() if line.get_marker() == ".")
    np.testing.assert_array_equal(point.get_xdata(), surface.alpha[[3]])


def test_a_broken_formula_stays_whole():
    assert wrap_label(r"loss at $\lambda = 10^{-3} b - c$ and more", 12).splitlines() == [
        "loss at",
        r"$\lambda = 10^{-3} b - c$",
        "and more",
    ]
