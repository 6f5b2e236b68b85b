import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from lltoolkit.plots.contour import plot_contour
from lltoolkit.plots.field import pick_plane


def test_order_of_coordinates_does_not_show(surface):
    turned = surface.isel(alpha=slice(None, None, -1), beta=slice(None, None, -1)).transpose("beta", "alpha", "split")
    expected, field = pick_plane(surface, "loss", "test"), pick_plane(turned, "loss", "test")
    np.testing.assert_array_equal(field.first, expected.first)
    np.testing.assert_array_equal(field.values, expected.values)
    assert field.label == "test loss [nat]"


def test_cells_without_a_value_are_told_apart(surface):
    surface["loss"][0, 2, 3], surface["loss"][0, 4, 5], surface["status"][6, 7] = np.nan, np.inf, 0
    field = pick_plane(surface, "loss", "train")
    assert np.argwhere(field.nonfinite).tolist() == [[2, 3], [4, 5]]
    assert np.argwhere(field.missing).tolist() == [[6, 7]]
    assert field.finite.size == 31 * 31 - 3


@pytest.mark.parametrize(
    ("change", "var", "split", "words"),
    [
        (lambda s: s, "los", "train", r"var='los' .* Did you mean 'loss'"),
        (lambda s: s, "loss", "trian", r"split='trian' .* Did you mean 'train'"),
        (lambda s: s.isel(beta=0), "loss", "train", "plot_slice"),
        (lambda s: s.expand_dims(gamma=[0.0, 1.0]), "loss", "train", r"surface.sel\(gamma=0"),
        (lambda s: xr.concat([s, s], "direction"), "loss", "train", r"surface.isel\(direction=0\)"),
    ],
)
def test_what_cannot_be_drawn(surface, change, var, split, words):
    with pytest.raises(ValueError, match=words):
        pick_plane(change(surface), var, split)


def test_another_kind_of_result_is_named():
    with pytest.raises(ValueError, match="this is a history"):
        pick_plane(xr.Dataset({"loss": ("step", [1.0])}, attrs={"kind": "history"}), "loss", "train")


def test_a_plane_beside_the_minimizer_says_where_it_cuts(surface):
    volume = xr.concat([surface, surface], xr.DataArray([0.0, 0.5], dims="gamma", name="gamma"))
    at, beside = (pick_plane(volume.isel(gamma=place), "loss", "train") for place in (0, 1))
    assert (at.at, at.label) == ("", "train loss [nat]")
    assert beside.label == "train loss [nat], $\\gamma$ = 0.5"
    marks = []
    for place in (0, 1):
        ax = plot_contour(volume.isel(gamma=place), ax=Figure().subplots())
        marks.append([line.get_gid() for line in ax.get_lines()].count("lltoolkit:minimizer"))
    assert marks == [1, 0]


def test_no_dataset():
    with pytest.raises(TypeError, match="open_result"):
        pick_plane("a.nc", "loss", "train")
