"""Grids: 0 is exactly 0, ends are what was asked for, a finer grid holds the coarser one; bad input is named."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import assume, example, given
from hypothesis import strategies as st

from lltoolkit.labelled.grid import RESOLUTION, make_grid

PLANE = ("alpha", "beta")
bound = st.floats(-100, 100).map(lambda value: round(value, 3))


@given(bound, bound, st.integers(2, 60))
def test_span_gives_even_steps_from_one_end_to_the_other(low, high, count):
    assume(low != high)
    values = make_grid(["alpha"], span=(low, high), resolution=count)["alpha"]
    assert len(values) == count
    assert (values[0], values[-1]) == (low, high)
    np.testing.assert_allclose(np.diff(values), (high - low) / (count - 1), rtol=1e-6)


@given(st.floats(1e-6, 1e6), st.integers(1, 50))
@example(771073.8729969, 11)  # two of its points lie halfway between two numbers of 12 digits
def test_a_symmetric_span_with_an_odd_resolution_holds_0_exactly(span, half):
    values = make_grid(["alpha"], span=span, resolution=2 * half + 1)["alpha"]
    assert values[half] == 0
    assert not np.signbit(values[half])
    np.testing.assert_array_equal(values, -values[::-1])


@given(st.integers(1, 40), st.integers(0, 40), st.integers(1, 7))
def test_a_span_whose_step_hits_0_holds_0_exactly(above, below, tenths):
    step = tenths / 10
    values = make_grid(["alpha"], span=(-below * step, above * step), resolution=below + above + 1)["alpha"]
    assert values[below] == 0
    assert not np.signbit(values[below])


@given(st.floats(0.01, 100), st.integers(2, 20), st.integers(2, 5))
def test_a_finer_grid_holds_the_points_of_the_coarser_one_bit_for_bit(span, count, factor):
    coarse = make_grid(["alpha"], span=span, resolution=count)["alpha"]
    fine = make_grid(["alpha"], span=span, resolution=(count - 1) * factor + 1)["alpha"]
    np.testing.assert_array_equal(fine[::factor], coarse)


def test_a_bound_of_0_is_a_bound():
    values = make_grid(["alpha"], span=(0, 1), resolution=3)["alpha"]
    np.testing.assert_array_equal(values, [0, 0.5, 1])
    np.testing.assert_array_equal(make_grid(["alpha"], span=(-1, 0), resolution=3)["alpha"], [-1, -0.5, 0])


def test_a_descending_span_gives_descending_coordinates():
    np.testing.assert_array_equal(make_grid(["alpha"], span=(1, -1), resolution=3)["alpha"], [1, 0, -1])


def test_every_axis_may_have_its_own_span_and_resolution():
    grid = make_grid(PLANE, span={"beta": 2, "alpha": (0, 1)}, resolution={"alpha": 2, "beta": 5})
    np.testing.assert_array_equal(grid["alpha"], [0, 1])
    np.testing.assert_array_equal(grid["beta"], [-2, -1, 0, 1, 2])
    assert list(grid) == ["alpha", "beta"]


def test_coords_are_taken_as_they_are():
    uneven, descending = [-1.0, 0.1, 0.7], np.array([3, 2, -1])
    grid = make_grid(PLANE, coords={"alpha": uneven, "beta": descending})
    np.testing.assert_array_equal(grid["alpha"], uneven)
    np.testing.assert_array_equal(grid["beta"], descending)
    assert grid["beta"].dtype == np.float64


def test_a_0_of_coords_that_is_0_but_for_rounding_is_exactly_0():
    values = np.arange(-1, 1.05, 0.1)
    assert values[10] != 0
    assert make_grid(["alpha"], coords={"alpha": values})["alpha"][10] == 0
    log = np.array([-1.0, -1e-6, 1e-9])
    np.testing.assert_array_equal(make_grid(["alpha"], coords={"alpha": log})["alpha"], log)


def test_changing_the_coords_later_does_not_show():
    values = np.array([0.0, 1.0])
    grid = make_grid(["alpha"], coords={"alpha": values})
    values[0] = 7
    assert grid["alpha"][0] == 0


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_defaults_are_those_of_the_docs(dims):
    axes = ("alpha", "beta", "gamma")[:dims]
    for values in make_grid(axes).values():
        assert len(values) == RESOLUTION[dims] == {1: 201, 2: 51, 3: 21}[dims]
        assert (values[0], values[-1]) == (-1, 1)
        assert 0 in values
    assert RESOLUTION[dims] % 2 == 1


def path_through(alpha, beta):
    return xr.Dataset({"alpha": ("step", alpha), "beta": ("step", beta)})


@given(st.lists(st.tuples(bound, bound), min_size=1, max_size=6))
def test_around_covers_the_path_and_the_origin_with_a_margin(points):
    alpha, beta = (np.array(values) for values in zip(*points, strict=True))
    assume(np.abs(points).max() > 0.01)
    grid = make_grid(PLANE, around=path_through(alpha, beta), resolution=5)
    for axis, values in (("alpha", alpha), ("beta", beta)):
        low, high = min(0, *values, 0), max(0, *values, 0)
        margin = 0.1 * (high - low)
        assert grid[axis][0] <= low - margin
        assert grid[axis][-1] >= high + margin
    widths = [np.ptp(values) for values in grid.values()]
    # An axis along which nothing moves is shown all the same; five points leave little choice for the 0 of the others.
    assert min(widths) >= 0.15 * max(widths)


@given(st.lists(st.tuples(bound, bound), min_size=1, max_size=6), st.integers(3, 60), st.sampled_from([0.01, 0.15, 2]))
def test_around_holds_0_exactly_and_widens_the_margin_by_less_than_a_step(points, count, margin):
    alpha, beta = (np.array(values) for values in zip(*points, strict=True))
    assume(np.abs(points).max() > 0.01)
    grid = make_grid(PLANE, around=path_through(alpha, beta), resolution=count, margin=margin)
    extent = {axis: np.ptp([0, *values]) for axis, values in (("alpha", alpha), ("beta", beta))}
    for axis, values in grid.items():
        assert 0 in values
        asked = max(extent[axis], 0.25 * max(extent.values())) * (1 + 2 * margin)
        assert asked * (1 - 1e-9) <= np.ptp(values) <= asked + (values[1] - values[0]) * (1 + 1e-9)


def test_two_points_are_the_ends():
    values = make_grid(["alpha"], around=xr.Dataset({"alpha": ("step", [1.0])}), resolution=2, margin=0.5)["alpha"]
    np.testing.assert_array_equal(values, [-0.5, 1.5])


def test_around_several_paths_covers_each_of_them():
    one, other = path_through([1.0, 2.0], [0.0, 0.0]), path_through([-4.0], [3.0])
    whole = path_through([1.0, 2.0, -4.0], [0.0, 0.0, 3.0])
    for several in ([one, other], (other, one), {"sgd": one, "adam": other}):
        for axis, values in make_grid(PLANE, around=several).items():
            np.testing.assert_array_equal(values, make_grid(PLANE, around=whole)[axis])


def test_a_default_extent_is_a_path_where_nothing_else_is_said():
    extent = {"alpha": (-3.0, 0.0), "beta": (1.0, 2.0)}
    path = path_through([-3.0, 0.0], [1.0, 2.0])
    for options in ({}, {"resolution": 9}, {"margin": 1.0}):
        grid = make_grid(PLANE, default_extent=extent, default_span=7, **options)
        for axis, values in make_grid(PLANE, around=path, **options).items():
            np.testing.assert_array_equal(grid[axis], values)
    assert make_grid(PLANE, default_extent=extent, span=1)["alpha"][0] == -1
    assert make_grid(PLANE, default_extent=extent, coords={"alpha": [0, 1], "beta": [0, 1]})["alpha"][0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 1}, r"resolution=1 for alpha: .*at least 2"),
        ({"resolution": 0}, r"resolution=0"),
        ({"resolution": 2.5}, r"resolution=2\.5"),
        ({"resolution": True}, r"resolution=True"),
        ({"resolution": "51"}, r"resolution='51'"),
        ({"resolution": "many"}, r"resolution='many'"),
        ({"resolution": float("nan")}, r"resolution=nan"),
        ({"resolution": float("inf")}, r"resolution=inf"),
        ({"resolution": (31, 21)}, r"resolution=\(31, 21\).*\{'alpha': 31"),
        ({"resolution": {"alpha": 3}}, r"resolution says nothing of beta; give all of alpha, beta"),
        ({"resolution": {"alpha": 3, "bta": 3}}, r"resolution names 'bta'; the axes are alpha, beta.*mean 'beta'"),
        ({"span": float("nan")}, r"span=nan for alpha is not finite"),
        ({"span": (0, float("inf"))}, r"span=\(0, inf\) for alpha is not finite"),
        ({"span": (1, 1)}, r"span=\(1, 1\) for alpha has zero length; its two ends must differ"),
        ({"span": 0}, r"span=0 for alpha has zero length"),
        ({"span": (1, 2, 3)}, r"span=\(1, 2, 3\) for alpha: give a number s for \(-s, s\), or two numbers"),
        ({"span": "wide"}, r"span='wide' for alpha: give a number"),
        ({"span": ((-1, 1), (-2, 2))}, r"span=\(\(-1, 1\), \(-2, 2\)\)"),
        ({"span": {"alpha": 1, "gamma": 1}}, r"span names 'gamma'; the axes are alpha, beta"),
        ({"span": {"alpha": 1}}, r"span says nothing of beta"),
        ({"span": 1e-320}, r"span=1e-320"),
        ({"span": (1, 1 + 1e-14)}, r"span=\(1, 1\.0+1\).*too short"),
        ({"span": 1, "coords": {"alpha": [0, 1], "beta": [0, 1]}}, r"span and coords are both given"),
        ({"span": 1, "around": xr.Dataset()}, r"span and around are both given"),
        ({"coords": {"alpha": [0, 1]}, "around": xr.Dataset()}, r"coords and around are both given"),
        ({"coords": {"alpha": [0, 1], "beta": [0, 1]}, "resolution": 3}, r"coords and resolution are both given"),
        ({"coords": [0, 1]}, r"coords is a list; give a mapping"),
        ({"coords": {"alpha": [0, 1]}}, r"coords says nothing of beta"),
        ({"coords": {"alpha": [0], "beta": [0, 1]}}, r"coords of alpha have the shape \(1,\).*at least 2"),
        ({"coords": {"alpha": [[0, 1]], "beta": [0, 1]}}, r"coords of alpha have the shape \(1, 2\)"),
        ({"coords": {"alpha": [0, np.nan], "beta": [0, 1]}}, r"coords of alpha hold nan"),
        ({"coords": {"alpha": [0, 1, 1], "beta": [0, 1]}}, r"coords of alpha must rise or fall throughout"),
        ({"coords": {"alpha": [0, 2, 1], "beta": [0, 1]}}, r"coords of alpha must rise or fall"),
        ({"coords": {"alpha": ["a", "b"], "beta": [0, 1]}}, r"coords of alpha are no numbers"),
        ({"around": 3}, r"around must be a trajectory, or several: a Dataset with alpha, beta along step"),
        ({"around": xr.Dataset({"alpha": ("step", [1.0])})}, r"around must be a trajectory"),
        ({"around": []}, r"around must be a trajectory"),
        ({"around": {"sgd": 3}}, r"around must be a trajectory"),
        ({"around": path_through([], [])}, r"around is a path without a step"),
        ({"around": path_through([1.0], [1.0]), "margin": -0.1}, r"margin=-0\.1: give the share"),
        ({"around": path_through([1.0], [1.0]), "margin": float("nan")}, r"margin=nan"),
        ({"around": path_through([1.0], [1.0]), "margin": True}, r"margin=True"),
        ({"around": path_through([1.0, np.nan], [0.0, 1.0])}, r"around holds NaN or infinite alpha"),
        ({"around": path_through([0.0, 0.0], [0.0, 0.0])}, r"never leaves the origin; give span"),
    ],
)
def test_bad_grids_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make_grid(PLANE, **options)


@pytest.mark.parametrize("margin", [-0.1, float("nan"), float("inf"), "wide", None, True])
def test_a_margin_that_is_no_share_is_named(margin):
    with pytest.raises(ValueError, match=r"margin=.*give the share of the extent"):
        make_grid(["alpha"], default_extent={"alpha": (0.0, 1.0)}, margin=margin)
