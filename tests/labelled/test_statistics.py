"""Numbers of landscapes against closed forms, and the laws that make them numbers of the surface, not of its grid."""

import itertools
import math

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from scipy.special import spherical_jn

from lltoolkit.labelled.persistence import find_minima
from lltoolkit.labelled.statistics import NUMBERS, surface_statistics
from lltoolkit.labelled.terrain import area_below, barrier, roughness, smallest_curvature

AXES = ("alpha", "beta", "gamma")


def make(function, *coords, status=None, attrs=None, **more):
    """A surface of one split, train, of a function of the coordinates."""
    coords = [np.asarray(points, dtype=float) for points in coords]
    axes = AXES[: len(coords)]
    values = function(*np.meshgrid(*coords, indexing="ij"))
    status = np.ones(values.shape, dtype=np.int8) if status is None else status
    variables = {"loss": (("split", *axes), values[None], {"units": "nat"}), "status": (axes, status)}
    variables |= {name: (("split", *axes), np.broadcast_to(block, values.shape)[None]) for name, block in more.items()}
    return xr.Dataset(variables, coords={"split": ["train"], **dict(zip(axes, coords, strict=True))}, attrs=attrs or {})


def number(numbers, name, **where):
    return numbers[name].sel(split="train", **where).item()


def even(n=41, low=-1.0, high=1.0):
    return np.linspace(low, high, n)


def uneven(n=41, seed=0):
    return np.sort(np.concatenate([[-1, 0, 1], np.random.default_rng(seed).uniform(-1, 1, n - 3)]))


UNEVEN = uneven()


def bowl(*x):
    return 0.5 + sum(axis**2 for axis in x)


# --- minima


def test_a_bowl_has_one_minimum_and_no_negative_curvature():
    for dims in (1, 2, 3):
        numbers = surface_statistics(make(bowl, *[even(13)] * dims))
        assert number(numbers, "n_minima") == 1
        assert number(numbers, "n_minima_at_edge") == 0
        assert number(numbers, "negative_curvature") == 0
        assert number(numbers, "undecided_curvature") == 0
        assert all(numbers[f"minimum_{axis}"].item() == 0 for axis in AXES[:dims])
        assert numbers["minimum_loss"].item() == 0.5
        assert numbers["minimum_persistence"].item() == math.inf


@pytest.mark.parametrize("n", [61, 97])
def test_a_product_of_cosines_has_its_known_minima_at_their_places_and_heights(n):
    # 3 + cos(3 pi a) + cos(3 pi b): minima where both cosines are -1, at -1, -1/3, 1/3, 1; 4 of the 16 lie inside.
    numbers = surface_statistics(make(lambda a, b: 3 + np.cos(3 * np.pi * a) + np.cos(3 * np.pi * b), even(n), even(n)))
    assert number(numbers, "n_minima") == number(numbers, "n_minima_coarse") == 4
    assert number(numbers, "n_minima_at_edge") == number(numbers, "n_minima_at_edge_coarse") == 12
    found = numbers.squeeze("split")
    inside = found["minimum_at_edge"].values == 0
    np.testing.assert_allclose(np.abs(found["minimum_alpha"].values[inside]), 1 / 3, atol=1e-9)
    np.testing.assert_allclose(np.abs(found["minimum_beta"].values[inside]), 1 / 3, atol=1e-9)
    # The pass between two minima has one cosine at 1, the other at -1: ln 3 above ln 1.
    finite = found["minimum_persistence"].values[np.isfinite(found["minimum_persistence"].values)]
    np.testing.assert_allclose(finite, math.log(3), rtol=1e-9)


@given(st.tuples(st.integers(2, 7), st.integers(2, 7)), st.integers(0, 2**32 - 1), st.sampled_from([3, 50, 10**6]))
def test_the_pairs_tell_the_number_of_lakes_at_every_level(shape, seed, n_heights):
    rng = np.random.default_rng(seed)
    values = rng.integers(n_heights, size=shape).astype(float)
    known = rng.random(shape) < 0.85
    values[rng.random(shape) < 0.1] = np.inf
    found = find_minima(values, known)
    born = values.ravel()[found.cells]
    for level in np.unique(values[np.isfinite(values)]):
        lakes = ndimage.label(known & (values <= level), structure=np.ones((3, 3)))[1]
        assert lakes == ((born <= level) & (level < born + found.persistence)).sum()
    assert (np.diff(found.persistence[np.isfinite(found.persistence)]) <= 0).all()


@pytest.mark.parametrize("shape", [(9,), (6, 7), (3, 4, 4)])
def test_mirrored_and_turned_grids_have_the_mirrored_minima(shape):
    rng = np.random.default_rng(0)
    for _ in range(100 // 4 ** (len(shape) - 1)):
        values = rng.integers(4, size=shape).astype(float)
        values[rng.random(shape) < 0.1] = np.inf
        known = rng.random(shape) < 0.9
        told = set()
        for axes in itertools.permutations(range(len(shape))):
            for steps in itertools.product((1, -1), repeat=len(shape)):
                box = tuple(slice(None, None, step) for step in steps)
                found = find_minima(values[box].transpose(axes), known[box].transpose(axes))
                told.add(tuple(sorted(zip(found.persistence.tolist(), found.at_edge.tolist(), strict=True))))
        assert len(told) == 1


@pytest.mark.parametrize(
    ("values", "at_edge"),
    [
        ([1, 1, 2, 3, 2, 4], [True, False]),
        ([math.inf, 1, 1, 1], [True]),
        ([2, 1, 1, 1, 2], [False]),
        ([1, 2, 1, 2], [False, True]),  # of equal bottoms the one inside goes on
    ],
)
def test_a_floor_is_at_the_edge_where_any_of_its_cells_is(values, at_edge):
    for each in (values, values[::-1]):
        found = find_minima(np.array(each, dtype=float), np.ones(len(values), dtype=bool))
        assert found.at_edge.tolist() == at_edge


def test_an_askew_valley_is_one_valley():
    numbers = surface_statistics(make(lambda a, b: 0.01 + (a - b) ** 2 * 50 + 0.02 * (a + b) ** 2, even(), even()))
    assert number(numbers, "n_minima") == 1
    assert numbers.sizes["minimum"] == 1


def test_the_persistence_counts_what_it_says():
    # ln of the loss has two wells, 2 and 1.5 deep, of either side of a pass at 0.
    def function(a):
        return np.exp(np.interp(a, [-1, -0.5, 0, 0.5, 1], [1, -2, 0, -1.5, 1]))

    line = make(function, even(81))
    assert number(surface_statistics(line), "n_minima") == 2
    assert number(surface_statistics(line, persistence=1.49), "n_minima") == 2
    assert number(surface_statistics(line, persistence=1.51), "n_minima") == 1
    assert surface_statistics(line)["minimum_persistence"].values[0, 1] == pytest.approx(1.5)


def test_minima_below_the_errors_do_not_count():
    def ripple(a):
        return 1 + a**2 + 0.1 * np.cos(12 * np.pi * a)

    filled = np.where(np.arange(97) % 4 == 2, 1, 2).astype(np.int8)  # the tops and bottoms are filled
    whole = surface_statistics(make(ripple, even(97)))
    assert number(whole, "n_minima") > 5
    sampled = surface_statistics(make(ripple, even(97), loss_se=0.5))  # a draw of examples of 50 % error
    assert number(sampled, "n_minima") == 1
    audited = surface_statistics(make(ripple, even(97), status=filled, attrs={"audited_p95_upper": 0.5}))
    assert number(audited, "n_minima") == 1
    few = {"audited_p95_upper": math.inf, "audited_max": 0.5}  # fewer than 59 audited cells bound no percentile
    assert number(surface_statistics(make(ripple, even(97), status=filled, attrs=few)), "n_minima") == 1
    told = surface_statistics(make(ripple, even(97), status=filled, loss_se=np.where(filled == 2, 0.5, 0.0)))
    assert number(told, "n_minima") == 1
    exact = surface_statistics(make(ripple, even(97), attrs={"audited_p95_upper": 0.5}))  # nothing was filled
    assert number(exact, "n_minima") == number(whole, "n_minima")


# --- curvature


@pytest.mark.parametrize("points", [even(), even()[::-1], UNEVEN], ids=["even", "descending", "uneven"])
def test_a_saddle_curves_downwards_everywhere_and_a_bowl_nowhere(points):
    saddle = surface_statistics(make(lambda a, b: 5 + a * b, points, points))
    for suffix in ("", "_coarse"):
        # Between points that lie very close the rounding of the values leaves the sign open.
        open_signs = number(saddle, f"undecided_curvature{suffix}")
        assert number(saddle, f"negative_curvature{suffix}") == pytest.approx(1 - open_signs)
        assert open_signs < (0.1 if points is UNEVEN else 1e-9)
    tilted = surface_statistics(make(lambda a, b: 5 + a**2 + b**2 + 1.9 * a * b, points, points))
    assert number(tilted, "negative_curvature") == 0


def test_the_curvature_of_a_quadratic_is_exact_on_uneven_coordinates():
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(3, 3))
    hessian = matrix + matrix.T
    coords = [uneven(9, seed) for seed in range(3)]
    grid = np.stack(np.meshgrid(*coords, indexing="ij"), axis=-1)
    values = 0.5 * np.einsum("...i,ij,...j", grid, hessian, grid) + grid @ rng.normal(size=3)
    eigenvalue, tolerance = smallest_curvature(coords, values, np.zeros(values.shape))
    np.testing.assert_allclose(eigenvalue, np.linalg.eigvalsh(hessian)[0], rtol=1e-7)
    assert (tolerance == 0).all()


def test_the_tolerance_of_the_curvature_bounds_what_noise_does():
    coords = [even(21), uneven(21)]
    values = np.add.outer(coords[0] ** 2, coords[1] ** 2)
    noise = 1e-3 * np.random.default_rng(0).normal(size=values.shape)
    exact = 2.0
    eigenvalue, tolerance = smallest_curvature(coords, values + noise, np.full(values.shape, 1.96e-3))
    assert (np.abs(eigenvalue - exact) <= tolerance).mean() > 0.95
    assert (np.abs(eigenvalue - exact) > 0.1 * tolerance).mean() > 0.5  # and is no bound that anything meets


def test_a_cylinder_is_neither_and_errors_leave_the_sign_open():
    cylinder = surface_statistics(make(lambda a, b: 1 + a**2 + 0 * b, even(), even()))
    assert number(cylinder, "negative_curvature") == 0
    assert number(cylinder, "undecided_curvature") == 1
    status = np.full((41, 41), 2, dtype=np.int8)
    saddle = make(lambda a, b: 5 + a * b, even(), even(), status=status, attrs={"audited_p95_upper": 0.05})
    assert number(surface_statistics(saddle), "undecided_curvature") == 1
    # The draw of examples is no error between neighbours.
    drawn = make(lambda a, b: 5 + a * b, even(), even(), loss_se=1.0)
    assert number(surface_statistics(drawn), "negative_curvature") == 1


def test_half_of_a_cosine_curves_downwards():
    numbers = surface_statistics(make(lambda a: 2 + np.cos(4 * np.pi * a), even(401)))
    assert number(numbers, "negative_curvature") == pytest.approx(0.5, abs=0.02)


# --- roughness


def test_a_quadratic_of_the_logarithm_has_no_roughness():
    for dims, n in ((1, 41), (2, 41), (3, 17)):
        numbers = surface_statistics(
            make(lambda *x: np.exp(1 - sum(x) + bowl(*x) + x[0] * x[-1]), *[even(n)] * dims), window=0.25
        )
        assert number(numbers, "roughness") < 1e-12
    numbers = surface_statistics(make(lambda a, b: np.exp(bowl(a, b) + a * b), uneven(41), uneven(41, 1)), window=0.4)
    assert number(numbers, "roughness") < 1e-12


@pytest.mark.parametrize("ratio", [0.8, 1.0, 2.0])  # of the wavelength to the window
@pytest.mark.parametrize("dims", [1, 2])
def test_the_roughness_of_a_ripple_has_its_closed_form(ratio, dims):
    window, height = 0.1, 0.3
    k = 2 * np.pi / (ratio * window)
    coords = [even(801)] if dims == 1 else [even(401), even(21) / 5]
    values = np.broadcast_to(
        (height * np.cos(k * coords[0])).reshape(-1, *[1] * (dims - 1)), [len(points) for points in coords]
    )
    expected = (
        height / math.sqrt(2) * math.sqrt(1 - sum((2 * n + 1) * spherical_jn(n, k * window) ** 2 for n in range(3)))
    )
    assert roughness(coords, values, window) == pytest.approx(expected, rel=0.03)


def test_roughness_is_of_the_surface_and_not_of_its_grid():
    def function(a, b):
        return np.exp(bowl(a, b) + 0.1 * np.cos(18 * a) * np.cos(22 * b + 1))

    numbers = surface_statistics(make(function, even(81), even(81)), window=0.2)
    assert number(numbers, "roughness_coarse") == pytest.approx(number(numbers, "roughness"), rel=0.15)
    noise = np.random.default_rng(0).normal(size=(41, 41))
    rough = surface_statistics(make(lambda a, b: np.exp(0.1 * noise + 0 * a), even(41), even(41)), window=0.2)
    for name in ("roughness", "roughness_coarse"):  # white noise is as rough as it is high, however fine the grid
        assert number(rough, name) == pytest.approx(0.1, rel=0.2)


def test_roughness_that_the_grid_can_not_show_is_nan():
    assert math.isnan(number(surface_statistics(make(bowl, even(11))), "roughness"))
    assert math.isnan(number(surface_statistics(make(bowl, even(41)), window=3.0), "roughness"))


# --- area


def test_areas_have_their_closed_forms():
    numbers = surface_statistics(make(lambda a, b: a**2 + b**2 + 1e-6, even(), even()), levels=[0.25, 0.64, 5.0])
    for level, area in ((0.25, np.pi / 4), (0.64, 0.64 * np.pi), (5.0, 4.0)):
        assert number(numbers, "area", level=level) == pytest.approx(area, rel=0.01)
        assert number(numbers, "area_share", level=level) == pytest.approx(area / 4, rel=0.01)
        assert number(numbers, "area_coarse", level=level) == pytest.approx(area, rel=0.03)
    ball = surface_statistics(make(lambda a, b, c: a**2 + b**2 + c**2 + 1e-6, *[even(17)] * 3), levels=[0.64])
    assert number(ball, "area") == pytest.approx(4 / 3 * np.pi * 0.8**3, rel=0.02)


def test_the_length_of_a_ramp_below_a_level_is_exact_between_grid_points():
    for points in (even(5), uneven(9)):
        areas, spanned = area_below([points], points, [-2.0, 0.3, 2.0])
        np.testing.assert_allclose(areas, [0, 1.3, 2], atol=2 / 256)
        assert spanned == pytest.approx(2)


# --- barrier


def test_a_double_well_has_its_barrier():
    def wells(a):  # 1 between the wells at 0 and 1, whose bottoms are at 0.2 and 0.4
        return 0.2 + 16 * (a * (1 - a)) ** 2 + 0.2 * a

    line = make(wells, even(61, -0.5, 1.5), attrs={"subspace_kind": "interpolation"})
    numbers = surface_statistics(line)
    assert number(numbers, "barrier") == pytest.approx(1)
    assert number(numbers, "barrier_above_mean") == pytest.approx(1, abs=1e-3)
    assert number(surface_statistics(line, ends=(1, 0)), "barrier") == pytest.approx(1)
    # The pass is no grid point of every second one; its neighbours are lower by some 8 h^2.
    assert number(numbers, "barrier_coarse") == pytest.approx(1, abs=8 * (2 / 30) ** 2)
    random = make(wells, even(61, -0.5, 1.5), attrs={"subspace_kind": "random"})
    assert number(surface_statistics(random), "barrier") == 0  # from end to end the line sags


def test_barriers_of_what_is_not_known():
    points = np.array([0.0, 0.5, 1.0])
    assert barrier(points, np.array([1.0, np.inf, 1.0]), (0, 1)) == (math.inf, math.inf)
    assert barrier(points, np.array([1.0, np.nan, 2.0]), (0, 1)) == (0.0, 0.5)
    assert all(map(math.isnan, barrier(points, np.array([np.nan, 3.0, 1.0]), (0, 1))))
    assert barrier(points, np.array([0.0, 3.0, 0.0]), (0.25, 1.0)) == (pytest.approx(3 - 1.5 * 2 / 3), 2.25)


def test_planes_have_no_barrier():
    assert math.isnan(number(surface_statistics(make(bowl, even(11), even(11))), "barrier"))


# --- what is not a number, and what is missing


def test_unknown_cells_are_counted_and_kept_out():
    def holes(a, b):
        values = bowl(a, b)
        values[0, 0], values[0, 1], values[1, 0] = np.nan, np.inf, -np.inf
        return values

    status = np.ones((41, 41), dtype=np.int8)
    status[-1, -3:], status[5, 5], status[6, 5] = 0, 2, 3
    numbers = surface_statistics(make(holes, even(), even(), status=status), levels=[0.75])
    told = {name: number(numbers, name) for name in ("n_known", "n_filled", "n_missing", "n_nan", "n_inf")}
    assert told == {"n_known": 41 * 41 - 6, "n_filled": 2, "n_missing": 3, "n_nan": 1, "n_inf": 2}
    whole = surface_statistics(make(bowl, even(), even()), levels=[0.75])
    for name in ("n_minima", "negative_curvature", "area"):
        assert number(numbers, name) == number(whole, name)
    assert number(numbers, "roughness") == pytest.approx(number(whole, "roughness"), rel=0.05)


def test_a_missing_minimum_is_not_counted_and_its_rim_is_an_edge():
    status = np.ones((41, 41), dtype=np.int8)
    status[18:23, 18:23] = 0
    numbers = surface_statistics(make(bowl, even(), even(), status=status))
    assert number(numbers, "n_minima") == 0
    assert number(numbers, "n_minima_at_edge") >= 1


def test_a_wall_of_inf_is_no_edge():
    line = surface_statistics(make(lambda a: np.where(np.abs(a) < 0.12, 1 + a**2, np.inf), even(21)))
    assert number(line, "n_minima") == 1
    assert number(line, "n_minima_at_edge") == 0


def test_nothing_known_gives_nan():
    numbers = surface_statistics(make(bowl, even(11), even(11), status=np.zeros((11, 11), dtype=np.int8)))
    assert number(numbers, "n_minima") == number(numbers, "n_known") == 0
    for name in ("roughness", "negative_curvature", "barrier"):
        assert math.isnan(number(numbers, name))
    assert numbers["area"].isnull().all()


def test_a_loss_that_touches_zero_is_told_in_shares_of_its_range():
    numbers = surface_statistics(make(lambda a: 4 * (a**2 - 0.25) ** 2, even(81)))
    assert numbers.attrs["scale"] == "range"
    assert number(numbers, "n_minima") == 2
    assert numbers["minimum_persistence"].values[0, 1] == pytest.approx(0.25 / 2.25)


# --- the Dataset


def test_every_number_comes_with_its_coarse_twin_of_every_second_point():
    def function(a, b):
        return np.exp(np.cos(7 * a) + np.sin(5 * b) * a)

    fine, half = even(41), even(41)[::2]
    numbers, again = (
        surface_statistics(make(function, fine, fine)),
        surface_statistics(make(function, half, half), window=0.2),
    )
    for name in NUMBERS:
        xr.testing.assert_equal(numbers[f"{name}_coarse"].rename(name), again[name])


def test_the_coarse_grid_keeps_the_origin():
    numbers = surface_statistics(make(lambda a: np.where(a == 0, 0.001, 1 + a**2), even(51 + 12)))
    assert number(numbers, "n_minima_coarse") == 1


def test_ensembles_and_splits_have_numbers_of_their_own():
    def stack(*functions):
        return xr.concat([make(function, even(21), even(21)) for function in functions], "direction", data_vars="all")

    bowls, saddles = stack(bowl, lambda a, b: 5 + a * b), stack(lambda a, b: 5 - a * b, bowl)
    both = xr.concat([bowls, saddles.assign_coords(split=["test"])], "split", data_vars=["loss"])
    numbers = surface_statistics(both.assign_coords(direction=[0, 1]))
    assert numbers["negative_curvature"].dims == ("direction", "split")
    assert numbers["negative_curvature"].values.tolist() == [[0, 1], [1, 0]]
    one = surface_statistics(bowls.isel(direction=1))
    xr.testing.assert_equal(numbers["area"].isel(direction=1).sel(split=["train"]).drop_vars("direction"), one["area"])
    assert surface_statistics(both, split="test").sizes["split"] == 1


def test_the_numbers_say_whose_they_are():
    surface = make(bowl, even(11), attrs={"kind": "surface", "model": "resnet20", "theta_sha256": "ab"})
    numbers = surface_statistics(surface)
    assert numbers.attrs["model"] == "resnet20"
    assert numbers.attrs["theta_sha256"] == "ab"
    assert numbers.attrs["kind"] == "statistics"
    assert all({"long_name", "units"} <= set(numbers[name].attrs) for name in numbers.data_vars)


def test_a_surface_of_one_chosen_split_keeps_its_name():
    chosen = make(bowl, even(11)).sel(split="train")
    assert surface_statistics(chosen)["split"].values.tolist() == ["train"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"var": "los"}, "Did you mean 'loss'"),
        ({"split": "tset"}, "split='tset'"),
        ({"levels": "log"}, "levels='log'"),
        ({"persistence": -1}, "persistence=-1"),
        ({"window": 0}, "window=0"),
        ({"levels": []}, r"levels=\[\]: give one finite number or more"),
        ({"levels": [1, [2]]}, "finite number"),
        ({"levels": 1.0}, "levels=1.0"),
        ({"persistence": "x"}, "persistence='x': give a number of at least 0"),
        ({"window": "a"}, "window='a': give a number above 0"),
        ({"ends": (1, 1)}, "two different"),
        ({"ends": 3}, "ends=3: give two different coordinates"),
        ({"ends": (0, 3)}, r"ends=\(0, 3\): the line goes from -1 to 1"),
        ({"var": "status"}, None),
    ],
)
def test_bad_options_are_told(change, told):
    surface = make(bowl, even(11))
    if told is None:
        assert surface_statistics(surface, **change).sizes["split"] == 1
        return
    with pytest.raises(ValueError, match=told):
        surface_statistics(surface, **change)


def test_what_is_no_surface_is_told():
    with pytest.raises(TypeError, match="DataArray"):
        surface_statistics(make(bowl, even(11))["loss"])
    with pytest.raises(ValueError, match="alpha"):
        surface_statistics(xr.Dataset({"loss": ("step", np.ones(3))}))
    with pytest.raises(ValueError, match=r"isel\(step=0\)"):
        surface_statistics(make(bowl, even(11)).expand_dims(step=[0, 1]))
