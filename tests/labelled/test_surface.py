"""The empty surface, the order of its cells, and how cells come into it."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lltoolkit.labelled.surface import (
    adopt_cells,
    cell_order,
    cells_with,
    count_nonfinite,
    empty_surface,
    fill_cells,
    tile_id,
)

AXES = ("alpha", "beta", "gamma")
shapes = st.lists(st.integers(2, 9), min_size=1, max_size=3)


def grid(shape, low=-1.0, high=1.0):
    return {axis: np.linspace(low, high, n) for axis, n in zip(AXES, shape, strict=False)}


def surface(coords, **attrs):
    return empty_surface(coords, ["train", "test"], ["loss", "accuracy", "loss_se"], units="nat", attrs=attrs)


# --- layout


@pytest.mark.parametrize("shape", [(3,), (3, 2), (2, 4, 3)])
def test_nothing_of_an_empty_surface_is_computed(shape):
    empty = surface(grid(shape), kind="surface")
    assert dict(empty.sizes) == {"split": 2, **dict(zip(AXES, shape, strict=False))}
    assert empty["loss"].dims == ("split", *AXES[: len(shape)])
    assert empty["status"].dims == AXES[: len(shape)]
    assert empty["loss"].dtype == np.float64
    assert empty["status"].dtype == np.int8
    assert empty["loss"].isnull().all()
    assert (empty["status"] == 0).all()
    assert empty["loss"].attrs["units"] == empty["loss_se"].attrs["units"] == "nat"
    assert empty["accuracy"].attrs["units"] == "1"
    assert empty.attrs == {"kind": "surface"}


def test_only_the_loss_takes_the_units_of_the_loss():
    empty = empty_surface(grid((2,)), ["train"], ["loss", "gloss", "gloss_se"], units="nat", attrs={})
    assert [empty[name].attrs["units"] for name in ("loss", "gloss", "gloss_se")] == ["nat", "1", "1"]


# --- order


@given(shapes, st.sampled_from([(-1, 1), (-0.5, 1.5), (0, 1), (-1, 0), (0.5, 2), (1, -1)]))
def test_the_order_names_every_cell_once_and_begins_at_the_origin(shape, ends):
    coords = grid(shape, *ends)
    order = cell_order(coords)
    assert sorted(order) == list(range(int(np.prod(shape))))
    first = np.unravel_index(order[0], shape)
    for index, values in zip(first, coords.values(), strict=True):
        assert abs(values[index]) == np.abs(values).min()


@given(shapes)
def test_the_first_cells_are_always_a_whole_coarser_grid(shape):
    coords = grid(shape)
    order = cell_order(coords)
    origin = np.unravel_index(order[0], shape)
    stride = 2 ** int(np.log2(max(shape)))
    while stride >= 1:
        coarse = {
            int(np.ravel_multi_index(cell, shape))
            for cell in itertools.product(*(range(o % stride, n, stride) for o, n in zip(origin, shape, strict=True)))
        }
        assert set(order[: len(coarse)]) == coarse
        stride //= 2


# --- filling


@given(shapes, st.data())
def test_filled_cells_hold_their_values_and_no_others_change(shape, data):
    empty = surface(grid(shape))
    n_cells = int(np.prod(shape))
    cells = np.array(data.draw(st.lists(st.integers(0, n_cells - 1), min_size=1, max_size=n_cells, unique=True)))
    block = np.arange(2 * len(cells), dtype=float).reshape(2, -1)
    fill_cells(empty, cells, {"loss": block, "accuracy": -block})
    for place, cell in enumerate(cells):
        index = np.unravel_index(cell, shape)
        for split in range(2):
            assert empty["loss"].values[split][index] == block[split, place]
            assert empty["accuracy"].values[split][index] == -block[split, place]
        assert empty["status"].values[index] == 1
    assert int((empty["status"] == 1).sum()) == len(cells)
    assert int(empty["loss"].notnull().sum()) == 2 * len(cells)
    assert set(cells_with(empty, "missing")) == set(range(n_cells)) - set(cells)


def test_a_computed_nan_is_computed():
    filled = surface(grid((3,)))
    fill_cells(filled, np.arange(3), {"loss": np.array([[1, np.nan, np.inf], [np.nan, -np.inf, 2]])})
    assert len(cells_with(filled, "missing")) == 0
    assert count_nonfinite(filled) == {"n_nan": 2, "n_inf": 2}
    half = surface(grid((3,)))
    fill_cells(half, np.array([1]), {"loss": np.array([[np.nan], [1]])})
    assert count_nonfinite(half) == {"n_nan": 1, "n_inf": 0}  # what is missing is no NaN


# --- adopting


@given(st.lists(st.integers(2, 5), min_size=1, max_size=3), st.integers(1, 3), st.booleans())
def test_a_finer_grid_adopts_the_cells_of_the_coarser_at_their_coordinates(shape, factor, descending):
    old = surface(grid(shape))
    n_cells = int(np.prod(shape))
    fill_cells(old, np.arange(0, n_cells, 2), {"loss": np.random.default_rng(0).normal(size=(2, (n_cells + 1) // 2))})
    ends = (1.0, -1.0) if descending else (-1.0, 1.0)
    new = surface(grid([(n - 1) * factor + 1 for n in shape], *ends))
    assert adopt_cells(new, old)
    back = new.sel({axis: old[axis] for axis in AXES[: len(shape)]}, method="nearest")
    np.testing.assert_array_equal(back["loss"].values, old["loss"].values)
    np.testing.assert_array_equal(back["status"].values, old["status"].values)
    assert int(new["status"].sum()) == int(old["status"].sum())


@pytest.mark.parametrize("coords", [[-1.0, 0.1, 1.0], [-1.0, 0.0, 1.1], [-2.0, 0.0, 1.0], [0.0, 1.0]])
def test_a_grid_that_lacks_a_coordinate_adopts_nothing(coords):
    old = surface({"alpha": np.array([-1.0, 0.0, 1.0])})
    fill_cells(old, np.arange(3), {"loss": np.ones((2, 3))})
    new = surface({"alpha": np.array(coords)})
    assert not adopt_cells(new, old)
    assert (new["status"] == 0).all()
    assert new["loss"].isnull().all()


# --- tiles


def test_a_tile_belongs_to_one_grid_of_one_result():
    base = {"theta_sha256": "a", "data_sha256": "b", "subspace_id": "c", "config_sha256": "d", "at_minimizer": "{}"}
    coords = grid((3, 4))
    first = tile_id(surface(coords, **base))
    assert tile_id(surface(coords, **base, created_at="later", n_nan=3)) == first
    others = [surface(coords, **(base | {key: "other"})) for key in base]
    others += [surface(grid((4, 3)), **base), surface(grid((3, 4), -1, 1.1), **base), surface(grid((3,)), **base)]
    assert len({first, *map(tile_id, others)}) == 9
