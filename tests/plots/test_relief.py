import numpy as np
import pytest
from scipy.interpolate import RegularGridInterpolator
from scipy.sparse.linalg import spsolve

from lltoolkit.plots.relief import smooth_relief

UNEVEN = np.array([-1.0, -0.7, -0.1, 0.0, 0.4, 1.0])
AXIS = np.linspace(-1, 1, 9)


def heights(first, second):
    return np.sin(2 * first)[:, None] + np.cos(3 * second)[None, :] + np.outer(first, second)


def test_every_cell_keeps_its_value():
    given = heights(UNEVEN, AXIS)
    relief = smooth_relief(UNEVEN, AXIS, given, 100)
    i = [np.argmin(abs(relief.first - point)) for point in UNEVEN]
    j = [np.argmin(abs(relief.second - point)) for point in AXIS]
    np.testing.assert_array_equal(relief.first[i], UNEVEN)
    np.testing.assert_allclose(relief.height[np.ix_(i, j)], given, atol=1e-12)


def test_agrees_with_another_spline():
    given = heights(UNEVEN, AXIS)
    relief = smooth_relief(UNEVEN, AXIS, given, 50)
    other = RegularGridInterpolator((UNEVEN, AXIS), given, method="cubic", solver=spsolve)
    points = np.stack(np.meshgrid(relief.first, relief.second, indexing="ij"), axis=-1)
    np.testing.assert_allclose(relief.height, other(points), atol=1e-9)


def test_bounded_heights_stay_between_their_corners():
    given = np.random.default_rng(1).normal(size=(9, 9))
    relief = smooth_relief(AXIS, AXIS, given, 80, bounded=True)
    places = np.minimum((relief.first + 1) / 0.25, 7.999).astype(int)
    corners = np.stack([given[np.ix_(places + i, places + j)] for i in (0, 1) for j in (0, 1)])
    assert (relief.height <= corners.max(axis=0) + 1e-12).all()
    assert (relief.height >= corners.min(axis=0) - 1e-12).all()
    free = smooth_relief(AXIS, AXIS, given, 80).height
    assert ((free > corners.max(axis=0)) | (free < corners.min(axis=0))).any()


def test_one_bad_cell_spoils_nothing_far_away():
    given = heights(AXIS, AXIS)
    bad = given.copy()
    bad[1, 1], bad[2, 1] = np.nan, np.inf
    relief, clean = smooth_relief(AXIS, AXIS, bad, 80), smooth_relief(AXIS, AXIS, given, 80)
    far = np.ix_(relief.first > 0.2, relief.second > 0.2)
    assert np.isfinite(relief.height).all()
    np.testing.assert_allclose(relief.height[far], clean.height[far], atol=0.01)
    hole = np.argwhere(relief.hole)
    assert relief.first[hole[:, 0]].min() >= -0.875 - 1e-12
    assert relief.first[hole[:, 0]].max() <= -0.375 + 1e-12


def test_what_has_no_relief():
    with pytest.raises(ValueError, match="finite"):
        smooth_relief(AXIS, AXIS, np.full((9, 9), np.inf))
    with pytest.raises(ValueError, match="plot_slice"):
        smooth_relief(AXIS, np.array([0.0]), np.ones((9, 1)))


def test_two_points_along_an_axis_have_the_slope_between_them():
    two = np.array([0.0, 2.0])
    for first, second in ((two, two), (two, AXIS), (AXIS, two)):
        relief = smooth_relief(first, second, np.add.outer(3 * first, 5 * second), 9)
        np.testing.assert_allclose(relief.spline.ev([0.5], [0.5], dx=1), 3, rtol=1e-9)
        np.testing.assert_allclose(relief.spline.ev([0.5], [0.5], dy=1), 5, rtol=1e-9)
