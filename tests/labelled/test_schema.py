"""What is no result is refused, with what is missing."""

import json
import sys

import numpy as np
import pytest
import xarray as xr

from lltoolkit import SchemaError
from lltoolkit.labelled.provenance import command, hash_config, provenance
from lltoolkit.labelled.schema import (
    OBJECTIVE_ATTRS,
    REQUIRED_ATTRS,
    SUBSPACE_ATTRS,
    axes_of,
    label,
    require_plain_attrs,
    validate,
)
from lltoolkit.labelled.surface import empty_surface


def surface():
    attrs = dict.fromkeys([*REQUIRED_ATTRS, *OBJECTIVE_ATTRS, *SUBSPACE_ATTRS], "x") | {
        "kind": "surface",
        "schema_version": 1,
    }
    coords = {"alpha": np.array([0.0, 1.0]), "beta": np.array([0.0, 1.0, 2.0])}
    return empty_surface(coords, ["train"], ["loss", "accuracy"], units="nat", attrs=attrs)


def test_a_complete_surface_passes_as_it_is():
    complete = surface()
    assert validate(complete) is complete


@pytest.mark.parametrize("name", [*REQUIRED_ATTRS, *OBJECTIVE_ATTRS, *SUBSPACE_ATTRS])
def test_every_required_attribute_is_required(name):
    dataset = surface()
    del dataset.attrs[name]
    with pytest.raises(SchemaError, match=name):
        validate(dataset, source="a.surface.nc")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.assign_attrs(kind="surfac"), r"a\.nc is no lltoolkit result: its attribute kind is 'surfac'"),
        (lambda d: xr.Dataset(), r"kind is None.*xarray\.open_dataset"),
        (lambda d: d.assign_attrs(schema_version=2), r"schema_version 2, this lltoolkit reads 1\. Upgrade lltoolkit"),
        (lambda d: d.assign_attrs(schema_version=np.int64(2)), r"schema_version 2.*Upgrade lltoolkit"),
        (lambda d: d.assign_attrs(schema_version=0), r"schema_version 0.*Compute it again"),
        (lambda d: d.drop_vars("status"), r"no variable 'status' \(present: loss, accuracy\)"),
        (lambda d: d.drop_vars("loss"), r"no variable 'loss'"),
        (lambda d: d.isel(split=0), r"'loss' lacks the dims \['split'\]"),
        (lambda d: d.isel(alpha=0), r"a surface runs over alpha\[, beta\[, gamma\]\]"),
        (lambda d: d.isel(alpha=0, beta=0), r"a surface runs over alpha"),
        (lambda d: d.assign(status=d["status"].isel(beta=0)), r"'status' lacks the dims \['beta'\]"),
    ],
)
def test_what_is_no_surface_is_refused_with_the_reason(change, message):
    with pytest.raises(SchemaError, match=message):
        validate(change(surface()), source="a.nc")


@pytest.mark.parametrize("value", [True, np.True_, None, {"a": 1}, [1, 2], (1,), np.datetime64("2020-01-01"), b"x"])
def test_attributes_that_netcdf_would_not_give_back_are_refused(value):
    with pytest.raises(SchemaError, match=r"a\.nc: attribute 'option' is a .*NetCDF keeps str, int and float"):
        require_plain_attrs({"ok": 1, "option": value}, "a.nc")


@pytest.mark.parametrize("value", ["text", "", 3, 2.5, np.float32(1), np.int64(3), float("nan")])
def test_str_int_and_float_are_kept(value):
    require_plain_attrs({"option": value}, "a.nc")


def test_labels_are_added_and_the_users_are_kept():
    dataset = xr.Dataset({"loss": ("alpha", [1.0], {"units": "nat"}), "loss_se": ("alpha", [1.0]), "my_thing": 3.0})
    dataset["alpha"] = ("alpha", [0.0], {"long_name": "my direction"})
    assert label(dataset) is dataset
    assert dataset["loss"].attrs == {"units": "nat", "long_name": "loss"}
    assert dataset["loss_se"].attrs == {"units": "nat", "long_name": "standard error of the loss"}
    assert dataset["my_thing"].attrs == {"units": "1", "long_name": "my thing"}
    assert dataset["alpha"].attrs == {"units": "1", "long_name": "my direction"}


def test_status_says_what_its_flags_mean():
    flags = surface()["status"].attrs
    assert list(flags["flag_values"]) == [0, 1, 2, 3]
    assert flags["flag_meanings"] == "missing computed interpolated estimated"


def test_axes_come_in_their_order():
    assert axes_of(surface().transpose("beta", "alpha", "split")) == ("alpha", "beta")


# --- provenance


def test_provenance_gives_every_required_attribute_plain():
    given = {"a": 1, "b": [1, {"c": None}]}
    attrs = provenance("surface", config=given, model="m", n_params=3, device="cpu", torch_version="2")
    assert set(attrs) == set(REQUIRED_ATTRS)
    require_plain_attrs(attrs, "x")
    assert json.loads(attrs["config"]) == given
    assert attrs["config_sha256"] == hash_config({"b": [1, {"c": None}], "a": 1})


def test_hashes_of_configurations_tell_values_apart_and_not_orders():
    assert hash_config({"a": 1, "b": 2}) == hash_config({"b": 2, "a": 1})
    assert len({hash_config(c) for c in ({"a": 1}, {"a": 2}, {"a": "1"}, {"b": 1}, {})}) == 5


def test_no_git_is_no_fault(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    attrs = provenance("surface", config={}, model="m", n_params=3, device="cpu", torch_version="2")
    assert attrs["git_commit"] == "none"


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["/home/me/.venv/bin/lltoolkit", "demo", "--out", "my folder"], "lltoolkit demo --out 'my folder'"),
        (["/x/ipykernel_launcher.py", "-f", "/tmp/kernel.json"], "jupyter"),
        ([""], "python"),
    ],
)
def test_the_command_is_told_without_folders(monkeypatch, argv, told):
    monkeypatch.setattr(sys, "argv", argv)
    assert command() == told
