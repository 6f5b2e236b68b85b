"""What is saved opens identical; a writer that fails loses nothing; what is no result is refused."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lltoolkit import SchemaError, open_result, save_result
from lltoolkit.labelled.schema import OBJECTIVE_ATTRS, REQUIRED_ATTRS, SUBSPACE_ATTRS
from lltoolkit.labelled.surface import cell_order, cells_with, empty_surface, fill_cells
from lltoolkit.store import GridFile, require_writable

ROOT = Path(__file__).parents[1]


def surface(shape=(3, 4), **attrs):
    plain = dict.fromkeys([*REQUIRED_ATTRS, *OBJECTIVE_ATTRS, *SUBSPACE_ATTRS], "x")
    coords = {axis: np.linspace(-1, 1, n) for axis, n in zip(("alpha", "beta", "gamma"), shape, strict=False)}
    attrs = plain | {"kind": "surface", "schema_version": 1} | attrs
    return empty_surface(coords, ["train", "test"], ["loss", "accuracy"], units="nat", attrs=attrs)


def filled(shape=(3, 4), **attrs):
    dataset = surface(shape, **attrs)
    n_cells = int(np.prod(shape))
    fill_cells(dataset, np.arange(n_cells), {"loss": np.arange(2.0 * n_cells).reshape(2, -1)})
    return dataset


# --- round trip

text = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=20)
attr = st.one_of(text, st.integers(-(2**62), 2**62), st.floats(allow_nan=False))


@given(
    arrays.arrays(np.float64, (2, 3, 2)), arrays.arrays(np.int8, (3, 2)), st.dictionaries(st.sampled_from("abc"), attr)
)
def test_a_saved_result_opens_identical(tmp_path_factory, loss, status, attrs):
    dataset = surface((3, 2), **attrs)
    dataset["loss"].values[:] = loss
    dataset["status"].values[:] = status
    opened = open_result(save_result(dataset, tmp_path_factory.mktemp("trip") / "a.surface.nc"))
    xr.testing.assert_identical(opened, dataset)
    assert opened["loss"].values.tobytes() == loss.tobytes()  # every bit, NaN and -0.0 included
    assert opened["status"].dtype == np.int8
    for name, value in attrs.items():
        assert isinstance(opened.attrs[name], str) == isinstance(value, str)


def test_nan_and_infinity_come_back_beside_what_is_missing(tmp_path):
    dataset = surface((4,))
    fill_cells(dataset, np.array([0, 1, 2]), {"loss": np.array([[np.nan, np.inf, -np.inf], [1, 2, 3]])})
    opened = open_result(save_result(dataset, tmp_path / "a.surface.nc"))
    np.testing.assert_array_equal(opened["loss"].sel(split="train"), [np.nan, np.inf, -np.inf, np.nan])
    np.testing.assert_array_equal(opened["status"], [1, 1, 1, 0])


def test_plain_xarray_opens_a_result_and_works_on_it(tmp_path):
    path = save_result(filled(), tmp_path / "a.surface.nc")
    with xr.open_dataset(path) as plain:
        plain.load()
    assert plain.attrs["kind"] == "surface"
    other = filled().assign_coords(seed=1)
    both = xr.concat([plain.assign_coords(seed=0), other], "seed", combine_attrs="drop_conflicts")
    assert dict(both.sizes) == {"seed": 2, "split": 2, "alpha": 3, "beta": 4}
    assert float(both["loss"].sel(seed=1, split="test", alpha=0, beta=1)) == 19
    frame = plain.to_dataframe().reset_index()
    assert len(frame) == 24
    assert frame.query("split == 'test' and alpha == 0 and beta == 1")["loss"].item() == 19


def test_no_file_stays_open(tmp_path):
    path = save_result(filled(), tmp_path / "a.surface.nc")
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    opened = open_result(path)
    if before:
        assert len(os.listdir("/proc/self/fd")) == before
    path.unlink()
    assert float(opened["loss"].sum()) == 276


def test_saving_does_not_change_the_callers_dataset(tmp_path):
    dataset = filled()
    del dataset["loss"].attrs["long_name"]
    dataset["loss"].encoding = {"zlib": False}
    before = dataset.copy(deep=True)
    save_result(dataset, tmp_path / "a.surface.nc")
    xr.testing.assert_identical(dataset, before)
    assert dataset["loss"].encoding == {"zlib": False}
    assert open_result(tmp_path / "a.surface.nc")["loss"].attrs["long_name"] == "loss"


def test_files_are_deflated_netcdf4(tmp_path):
    path = save_result(filled((50, 50)), tmp_path / "a.surface.nc")
    with xr.open_dataset(path) as plain:
        encoding = plain["loss"].encoding
    assert encoding["zlib"]
    assert encoding["shuffle"]
    assert encoding["complevel"] == 1


def test_a_result_of_scalars_and_strings_is_saved_too(tmp_path):
    attrs = dict.fromkeys(REQUIRED_ATTRS, "x") | {"kind": "history", "schema_version": 1}
    dataset = xr.Dataset({"value": 3.0, "name": ("model", ["a", "b"])}, attrs=attrs)
    opened = open_result(save_result(dataset, tmp_path / "a.history.nc"))
    assert float(opened["value"]) == 3
    assert list(opened["name"].values) == ["a", "b"]


# --- saving what can't be saved


def test_a_writer_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = save_result(filled(), tmp_path / "a.surface.nc")
    old = path.read_bytes()

    def fail(self, target, **options):
        Path(target).write_bytes(old[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(xr.Dataset, "to_netcdf", fail)
    with pytest.raises(OSError, match="No space left"):
        save_result(filled((2, 2)), path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("value", [True, np.True_, None, {"a": 1}, [1, 2]])
def test_attributes_that_would_not_come_back_are_refused_before_the_file_is_touched(value, tmp_path):
    path = save_result(filled(), tmp_path / "a.surface.nc")
    old = path.read_bytes()
    with pytest.raises(SchemaError, match=r"attribute 'option' is a .*Use 0 or 1 for a bool"):
        save_result(filled(option=value), path)
    dataset = filled()
    if not isinstance(value, list):
        dataset["loss"].attrs["option"] = value
        with pytest.raises(SchemaError, match=r"variable 'loss' of this Dataset: attribute 'option'"):
            save_result(dataset, path)
    assert path.read_bytes() == old


def test_what_is_no_result_is_not_saved(tmp_path):
    with pytest.raises(SchemaError, match="this Dataset is no lltoolkit result"):
        save_result(xr.Dataset({"a": 1}), tmp_path / "a.surface.nc")
    assert not list(tmp_path.iterdir())


def test_a_name_without_nc_is_refused_with_a_better_one(tmp_path):
    with pytest.raises(ValueError, match=r"does not end with \.nc; for example resnet\.surface\.nc"):
        save_result(filled(), tmp_path / "resnet")


def test_paths_that_cannot_be_written_are_named_before_anything_is_done(tmp_path):
    (tmp_path / "file").write_text("a regular file")
    with pytest.raises(OSError, match=r"a\.surface\.nc can't be written .*Choose another path"):
        require_writable(tmp_path / "file" / "a.surface.nc")
    with pytest.raises(OSError, match="can't be written"):
        require_writable(tmp_path / "file" / "deeper" / "a.surface.nc")
    (tmp_path / "folder.nc").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder; give the name of a file in it"):
        require_writable(tmp_path / "folder.nc")
    with pytest.raises(OSError, match=r"needs about 1000000000000 MB, its disk has \d+ MB free"):
        require_writable(tmp_path / "a.nc", n_bytes=10**18)
    if Path("/proc/self").exists():
        with pytest.raises(OSError, match=r"/proc/self/a\.nc can't be written"):
            require_writable("/proc/self/a.nc")


def test_a_missing_folder_is_made_and_no_probe_is_left(tmp_path):
    path = require_writable(tmp_path / "new" / "folder" / "a.surface.nc")
    assert path.parent.is_dir()
    assert not list(path.parent.iterdir())


# --- opening what is no result


def test_a_missing_file_is_answered_with_the_nearest(tmp_path):
    save_result(filled(), tmp_path / "resnet20.surface.nc")
    with pytest.raises(
        FileNotFoundError, match=r"resnet2\.surface\.nc does not exist\. Did you mean 'resnet20\.surface"
    ):
        open_result(tmp_path / "resnet2.surface.nc")
    with pytest.raises(FileNotFoundError, match=r"does not exist\.$"):
        open_result(tmp_path / "none" / "a.nc")


def test_a_folder_is_no_result(tmp_path):
    with pytest.raises(SchemaError, match=r"is a folder; a result is one \.nc file"):
        open_result(tmp_path)


@pytest.mark.parametrize("content", [b"", b"alpha,beta,loss\n", b"PK\x03\x04" + bytes(50)])
def test_a_file_that_is_no_netcdf_is_refused(content, tmp_path):
    path = tmp_path / "a.surface.nc"
    path.write_bytes(content)
    with pytest.raises(SchemaError, match=rf"is no NetCDF file \({len(content)} bytes, begins with"):
        open_result(path)


@pytest.mark.parametrize("share", [0.002, 0.3, 0.7, 0.99])
def test_a_truncated_file_is_refused(share, tmp_path):
    path = save_result(filled((30, 30)), tmp_path / "a.surface.nc")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(SchemaError, match=r"a\.surface\.nc is damaged or cut short .*resume=False"):
        open_result(path)


def test_netcdf_of_others_is_refused(tmp_path):
    path = tmp_path / "weather.nc"
    xr.Dataset({"t": ("x", [1.0])}).to_netcdf(path)
    with pytest.raises(SchemaError, match=r"weather\.nc is no lltoolkit result.*xarray\.open_dataset"):
        open_result(path)


def test_a_result_of_a_newer_version_asks_for_an_upgrade(tmp_path):
    path = tmp_path / "a.surface.nc"
    filled().assign_attrs(schema_version=2).to_netcdf(path)
    with pytest.raises(SchemaError, match=r"schema_version 2, this lltoolkit reads 1\. Upgrade lltoolkit"):
        open_result(path)


# --- a surface under construction


def block(cells, value=1.0):
    return {"loss": np.full((2, len(cells)), value) + np.arange(len(cells)), "accuracy": np.zeros((2, len(cells)))}


def test_tiles_and_merge_give_the_same_surface(tmp_path):
    path = tmp_path / "a.surface.nc"
    order = cell_order({"alpha": np.linspace(-1, 1, 3), "beta": np.linspace(-1, 1, 4)})
    with GridFile(path) as file:
        assert file.load() is None
        file.begin(surface())
        file.add(order[:3], block(order[:3]))
        file.add(order[3:7], block(order[3:7], 5.0))
        by_tiles = GridFile(path).load()
        assert (open_result(path)["status"] == 0).all()  # the last merge
        file.merge()
        assert not list(file.folder.glob("*.npz"))
        by_merge = open_result(path)
    xr.testing.assert_equal(by_tiles, by_merge)
    assert set(cells_with(by_merge, "missing")) == set(order[7:])
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.surface.nc"]


def test_tiles_outlive_a_writer_that_ends_without_a_merge(tmp_path):
    path = tmp_path / "a.surface.nc"
    with GridFile(path) as file:
        file.begin(surface())
        file.add(np.array([2, 5]), block([2, 5]))
    with GridFile(path) as file:
        assert set(cells_with(file.load(), "missing")) == set(range(12)) - {2, 5}


@pytest.mark.parametrize(
    "damage", [lambda tile: tile.write_bytes(tile.read_bytes()[:-40]), lambda tile: tile.write_bytes(b"")]
)
def test_a_damaged_tile_is_left_out_and_told(damage, tmp_path, caplog):
    path = tmp_path / "a.surface.nc"
    with GridFile(path) as file:
        file.begin(surface())
        file.add(np.array([2, 5]), block([2, 5]))
        file.add(np.array([7]), block([7]))
    damage(sorted(file.folder.glob("*.npz"))[0])
    with GridFile(path) as file:
        assert set(cells_with(file.load(), "missing")) == set(range(12)) - {7}
    assert "its cells are computed again" in caplog.text


@pytest.mark.parametrize(
    "other",
    [surface((4, 3)), surface(theta_sha256="other"), surface(config_sha256="other")],
    ids=["grid", "theta", "config"],
)
def test_a_tile_of_another_surface_is_left_out(other, tmp_path):
    path = tmp_path / "a.surface.nc"
    with GridFile(path) as file:
        file.begin(other)
        file.add(np.array([2]), block([2]))
    save_result(surface(), path)  # as by a kill between the merge and the removal of old tiles
    with GridFile(path) as file:
        assert len(cells_with(file.load(), "missing")) == 12


def test_a_second_writer_in_this_process_is_refused(tmp_path):
    path = tmp_path / "a.surface.nc"
    with GridFile(path) as file:
        file.begin(surface())
        file.add(np.array([2]), block([2]))
        with pytest.raises(RuntimeError, match=r"is being written by another process\. Wait for it"):
            GridFile(path).__enter__()
        assert list(file.folder.glob("*.npz"))
    with GridFile(path) as file:  # and may follow it
        assert len(cells_with(file.load(), "missing")) == 11


def test_a_second_writer_in_another_process_is_refused(tmp_path):
    path = tmp_path / "a.surface.nc"
    imports = "from pathlib import Path; from lltoolkit.store import GridFile"
    code = f"{imports}\nwith GridFile(Path({str(path)!r})):\n    pass"
    with GridFile(path):
        result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert result.returncode == 1
        assert "is being written by another process" in result.stderr
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_child_process_does_not_inherit_the_lock(tmp_path):
    path = tmp_path / "a.surface.nc"
    with GridFile(path):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    try:
        with GridFile(path):
            pass
    finally:
        child.communicate(b"\n")


def test_nothing_is_added_before_it_began(tmp_path):
    with GridFile(tmp_path / "a.surface.nc") as file:
        with pytest.raises(RuntimeError, match=r"begin\(surface\) first"):
            file.add(np.array([0]), block([0]))
        with pytest.raises(RuntimeError, match=r"begin\(surface\) first"):
            file.merge()
