"""The empty curvature map, its tiles and audited cells, the ratios, and what an audit says."""

import math

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from lltoolkit import SchemaError, open_result, save_result
from lltoolkit.labelled.curvature import (
    AUDIT_SHARE,
    TILE,
    draw_audited,
    empty_curvature,
    ratios,
    snake,
    summarize_audit,
    tiles,
)
from lltoolkit.labelled.schema import CURVATURE_ATTRS, OBJECTIVE_ATTRS, REQUIRED_ATTRS, SUBSPACE_ATTRS, validate
from lltoolkit.labelled.surface import count_nonfinite, fill_cells, read_cells, tile_id
from lltoolkit.store import GridFile

AXES = ("alpha", "beta", "gamma")
shapes = st.lists(st.integers(2, 9), min_size=1, max_size=3)


def grid(shape, low=-1.0, high=1.0):
    return {axis: np.linspace(low, high, n) for axis, n in zip(AXES, shape, strict=False)}


def curvature(shape=(3, 4), **attrs):
    names = [*REQUIRED_ATTRS, *OBJECTIVE_ATTRS, *SUBSPACE_ATTRS, *CURVATURE_ATTRS]
    attrs = dict.fromkeys(names, "x") | {"kind": "curvature", "schema_version": 1} | attrs
    return empty_curvature(grid(shape), "train", units="nat", attrs=attrs)


# --- layout


def test_nothing_of_an_empty_map_is_computed():
    empty = curvature()
    assert all(variable.dims == ("alpha", "beta") for variable in empty.data_vars.values())
    for name, variable in empty.data_vars.items():
        if variable.dtype == np.float64:
            assert variable.isnull().all()
        else:
            assert (variable == 0).all()
            assert variable.dtype == (np.int32 if "n_hvp" in name else np.int8)
    assert empty["eig_min"].attrs["units"] == empty["residual_max"].attrs["units"] == "nat"
    assert empty["eig_ratio"].attrs["units"] == "1"
    assert empty["loss"].attrs["long_name"] == "train loss"
    assert validate(empty) is empty


@pytest.mark.parametrize("name", [*OBJECTIVE_ATTRS, *SUBSPACE_ATTRS, *CURVATURE_ATTRS])
def test_every_required_attribute_is_required(name):
    broken = curvature()
    del broken.attrs[name]
    with pytest.raises(SchemaError, match=name):
        validate(broken)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.drop_vars("eig_max"), r"no variable 'eig_max'"),
        (lambda d: d.drop_vars("converged"), r"no variable 'converged'"),
        (lambda d: d.isel(alpha=0), r"a curvature map runs over alpha\[, beta"),
        (lambda d: d.assign(eig_min=d["eig_min"].isel(beta=0)), r"'eig_min' lacks the dims \['beta'\]"),
    ],
)
def test_what_is_no_curvature_map_is_refused(change, message):
    with pytest.raises(SchemaError, match=message):
        validate(change(curvature()))


def test_tiles_reach_the_file_and_come_back_bit_for_bit(tmp_path):
    path = tmp_path / "a.curvature.nc"
    cells = np.array([2, 7, 3])
    block = {
        "eig_min": np.array([[-1.0, math.nan, 0.1]]),
        "n_hvp": np.array([[12, 0, 30]], dtype=np.int32),
        "converged": np.array([[1, 0, 1]], dtype=np.int8),
    }
    with GridFile(path) as file:
        file.begin(curvature())
        file.add(cells, block)
        from_tiles = GridFile(path).load()
        file.merge()
    merged = open_result(path)
    xr.testing.assert_equal(from_tiles, merged)
    for name, values in block.items():
        assert read_cells(merged, name, cells).tobytes() == values.tobytes()
    assert sorted(np.flatnonzero(merged["status"].values)) == [2, 3, 7]
    assert merged["n_hvp"].dtype == np.int32


def test_a_map_saved_with_other_dims_takes_no_tiles(tmp_path):
    path = save_result(curvature().transpose("beta", "alpha"), tmp_path / "a.curvature.nc")
    with pytest.raises(SchemaError, match=r"another order, loss over \('beta', 'alpha'\)"):
        GridFile(path).load()


def test_a_tile_belongs_to_one_configuration():
    assert tile_id(curvature()) != tile_id(curvature(config_sha256="other"))


def test_nonfinite_losses_are_counted():
    some = curvature()
    fill_cells(some, np.array([0, 1, 2]), {"loss": np.array([[math.nan, math.inf, 1.0]])})
    assert count_nonfinite(some) == {"n_nan": 1, "n_inf": 1}


# --- tiles


@given(shapes, st.integers(0, 3))
def test_tiles_cover_every_cell_once_in_steps_to_neighbours(shape, seed):
    found = tiles(grid(shape), seed)
    n_cells = int(np.prod(shape))
    assert sorted(np.concatenate([tile.cells for tile in found])) == list(range(n_cells))
    for tile in found:
        indices = np.stack(np.unravel_index(tile.cells, shape), axis=1)
        assert (np.abs(np.diff(indices, axis=0)).sum(axis=1) == 1).all()
        assert (np.ptp(indices, axis=0) < TILE[len(shape)]).all()
    audited = np.concatenate([tile.cells[tile.audited] for tile in found])
    assert sorted(audited) == list(draw_audited(grid(shape), seed))


def test_the_paper_like_grid_has_sixteen_tiles_and_begins_at_the_origin():
    found = tiles(grid((15, 15)), 0)
    assert sorted(len(tile.cells) for tile in found) == [9] + [12] * 6 + [16] * 9
    assert 7 * 15 + 7 in found[0].cells


def test_a_snake_of_three_axes():
    path = snake((2, 2, 3))
    assert path[:4] == [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 2)]
    assert len(set(path)) == 12


@given(shapes)
def test_one_cell_in_twenty_is_audited_and_at_least_one(shape):
    drawn = draw_audited(grid(shape), 0)
    assert len(set(drawn)) == len(drawn) == max(1, round(AUDIT_SHARE * np.prod(shape)))
    assert set(drawn) <= set(range(int(np.prod(shape))))


def test_the_draw_follows_from_seed_and_grid():
    first = list(draw_audited(grid((15, 15)), 0))
    assert first == list(draw_audited(grid((15, 15)), 0))
    assert first != list(draw_audited(grid((15, 15)), 1))
    assert first != list(draw_audited(grid((15, 15), high=2.0), 0))


# --- ratios and audit


@pytest.mark.parametrize(
    ("eig_min", "eig_max", "ratio", "nonconvexity"),
    [
        (-1.0, 4.0, 0.25, 0.25),
        (1.0, 4.0, 0.25, 0.0),  # convex: the paper's ratio doesn't say it
        (0.0, 4.0, 0.0, 0.0),
        (-8.0, 4.0, 2.0, 2.0),
        (-2.0, -1.0, 2.0, math.inf),  # nothing curves upwards
        (-2.0, 0.0, math.inf, math.inf),
        (0.0, 0.0, math.nan, 0.0),  # a flat place is convex
        (math.nan, math.nan, math.nan, math.nan),
    ],
)
def test_ratios_by_hand(eig_min, eig_max, ratio, nonconvexity):
    found = ratios(np.array([eig_min]), np.array([eig_max]))
    np.testing.assert_array_equal(found["eig_ratio"], [ratio])
    np.testing.assert_array_equal(found["nonconvexity"], [nonconvexity])


def test_an_audit_by_hand():
    some = curvature((6,))
    fill_cells(
        some,
        np.arange(6),
        {
            "eig_min": np.array([[-1.0, -1.0, -1.0, math.nan, -3.0, -1.0]]),
            "eig_max": np.array([[10.0, 10.0, 9.0, math.nan, -1.0, 10.0]]),
            # Right within 1 %; the lower end missed; the upper end missed; NaN; nothing positive, right.
            # The last one's audit did not converge: it says nothing.
            "audit_eig_min": np.array([[-1.1, -1.2, -1.0, math.nan, -3.02, -7.0]]),
            "audit_eig_max": np.array([[10.0, 10.0, 10.0, math.nan, -1.0, 10.0]]),
            "n_hvp": np.array([[10, 20, 30, 0, 40, 50]]),
            "audit_n_hvp": np.array([[100, 100, 100, 0, 100, 0]]),
            "converged": np.array([[1, 1, 1, 0, 1, 1]]),
            "audit_converged": np.array([[1, 1, 1, 0, 1, 0]]),
        },
    )
    found = summarize_audit(some, 0.0101)
    assert found.pop("audited_max") == pytest.approx(0.1)
    assert found == {
        "n_audit": 4,
        "n_audit_unconverged": 1,
        "n_audit_missed": 2,
        "audit_miss_rate": 0.5,
        "n_unconverged": 1,
        "n_hvp_total": 550,
        "n_hvp_audit": 400,
        "n_hvp_median": 30.0,
    }


def test_no_audited_cell_gives_no_rate():
    found = summarize_audit(curvature(), 0.01)
    assert found["n_audit"] == found["n_audit_missed"] == 0
    assert math.isnan(found["audit_miss_rate"])
    assert math.isnan(found["audited_max"])
