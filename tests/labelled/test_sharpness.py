"""The table of sharpness: what is laid out, filled, adopted and read, without a model."""

import math

import numpy as np
import pytest
import xarray as xr

from lltoolkit import SchemaError, open_result, save_result
from lltoolkit.labelled.schema import REQUIRED_ATTRS, SHARPNESS_COORDS, SHARPNESS_VARIABLES, validate
from lltoolkit.labelled.sharpness import (
    COUNTS,
    NUMBERS,
    TEXTS,
    Column,
    add_attributes,
    adopt_table,
    columns_of,
    empty_table,
    fill_row,
    fill_value,
    gaps,
    is_begun,
    is_missing,
    part_of,
    places_of,
    read_attributes,
    row_dim,
    to_file,
)

ATTRS = dict.fromkeys(REQUIRED_ATTRS, "x") | {"kind": "sharpness", "schema_version": 1}


def column(label, **told):
    plain = {"long_name": label.upper(), "units": "nat", "kind": "exact", "formula": "x", "options": "{}"}
    return Column(label, **plain | told)


def table(rows=("a", "b", "c"), labels=("one", "two"), dim="model"):
    return empty_table(rows, [column(label) for label in labels], dim=dim, units="nat", attrs=ATTRS)


def begin(of, name, tests="same", n_examples=3, **numbers):
    place = places_of(of, row_dim(of), [name])[0]
    examples = {"test_example_loss": np.full(n_examples, place)} if tests and row_dim(of) == "model" else {}
    record = {"theta_sha256": f"theta {name}", "test_sha256": tests, "n_test_examples": n_examples}
    fill_row(of, place, record | gaps(numbers), examples)


def part(of, *names):
    return part_of(of, places_of(of, "model", names), range(of.sizes["measure"]))


# --- layout


@pytest.mark.parametrize(("dim", "rows"), [("model", ["b", "a"]), ("step", [0, 10])])
def test_nothing_of_an_empty_table_is_computed(dim, rows):
    empty = table(rows, dim=dim)
    assert row_dim(empty) == dim
    assert dict(empty.sizes) == {dim: 2, "measure": 2}
    assert empty[dim].values.tolist() == rows
    for name in SHARPNESS_VARIABLES:
        assert empty[name].dims == (dim, "measure")
    assert empty["value"].dtype == empty["value_se"].dtype == np.float64
    assert empty["status"].dtype == empty["censored"].dtype == np.int8
    assert empty["value"].isnull().all()
    assert is_missing(empty).all()
    assert not is_begun(empty).any()
    for name in NUMBERS:
        assert empty.coords[name].dims == (dim,)
        assert empty.coords[name].attrs["units"] == ("nat" if "loss" in name else "1")
    assert "not" not in empty.coords["loss_gap_se"].attrs["long_name"]
    assert empty.coords["loss_gap_se"].attrs["long_name"] == "standard error of the test loss - train loss"
    assert ("epoch" in empty.coords) == (dim == "step")


@pytest.mark.parametrize(("dim", "rows"), [("model", ["b", "a"]), ("step", [0, 10])])
def test_a_saved_table_opens_identical(tmp_path, dim, rows):
    whole = table(rows, dim=dim)
    fill_value(whole, (1, 0), math.inf, 0.5, True)
    begin(whole, rows[1], train_loss=0.25)
    fill_value(whole, (0, 0), 1.0, math.nan, False, "f00")
    add_attributes(whole, {"lr": {rows[0]: 0.1}, "note": {rows[1]: "é"}, "decay": dict.fromkeys(rows, True)}, None)
    opened = open_result(save_result(whole, tmp_path / "a.sharpness.nc"))
    xr.testing.assert_identical(opened, whole)
    assert opened["decay"].dtype == bool
    assert columns_of(opened) == columns_of(whole) == [column("one"), column("two")]


def test_a_table_is_a_plain_frame():
    whole = table()
    fill_value(whole, (0, 1), 2.0, 0.5, False)
    for name in "abc":
        begin(whole, name)
    frame = whole[["value", "value_se", "status"]].to_dataframe()
    assert frame.index.names == ["model", "measure"]
    assert frame.loc[("a", "two"), ["value", "value_se", "status"]].tolist() == [2.0, 0.5, 1]
    assert len(frame) == 6
    columns = {"value", *NUMBERS, "model_name", "n_params", *SHARPNESS_COORDS, "measure_sharper"}
    assert set(whole["value"].to_dataframe().columns) == columns
    assert {*TEXTS, *COUNTS, "measure_options"} - {"model_name", "n_params"} < set(whole.data_vars)


@pytest.mark.parametrize("name", [*SHARPNESS_VARIABLES, *SHARPNESS_COORDS])
def test_every_variable_is_required(name):
    with pytest.raises(SchemaError, match=rf"a\.nc has no variable '{name}' \(present: .*table of sharpness"):
        validate(table().drop_vars(name), source="a.nc")


def test_other_dims_are_refused():
    with pytest.raises(
        SchemaError, match=r"'value' has the dims \('measure',\).*runs over model, or step, and measure"
    ):
        validate(table().isel(model=0))
    with pytest.raises(SchemaError, match=r"'status' has the dims"):
        validate(table().assign(status=("model", np.zeros(3, dtype=np.int8))))
    assert validate(table().transpose("measure", "model")) is not None


# --- filling


def test_a_computed_nan_is_computed():
    whole = table()
    fill_value(whole, (2, 1), math.nan, math.nan, False)
    assert is_missing(whole).sum() == 5
    assert not is_missing(whole)[2, 1]


def test_gaps_by_hand():
    found = gaps(
        {"train_loss": 0.25, "test_loss": 1.0, "train_loss_se": 0.3, "test_loss_se": 0.4}
        | {"train_error": 0.5, "test_error": 0.125}
    )
    assert (found["loss_gap"], found["loss_gap_se"], found["error_gap"]) == (0.75, 0.5, -0.375)
    assert math.isnan(found["error_gap_se"])
    only_train = gaps({"train_loss": 0.25})
    assert math.isnan(only_train["loss_gap"])
    assert only_train["train_loss"] == 0.25
    assert set(found) == set(only_train) == set(NUMBERS)


@pytest.mark.parametrize(
    "other", [{"tests": "others", "n_examples": 5}, {"tests": "others", "n_examples": 2}, {"tests": ""}]
)
def test_examples_are_shown_where_models_share_them(other, tmp_path):
    whole = table()
    begin(whole, "a")
    begin(whole, "c")
    xr.testing.assert_identical(part(whole, "a", "b", "c"), to_file(whole))
    np.testing.assert_array_equal(whole["test_example_loss"], np.float32([[0] * 3, [np.nan] * 3, [2] * 3]))
    assert whole["test_example_loss"].dtype == np.float32
    assert whole["test_example_loss"].attrs["units"] == "nat"
    alike = part(whole, "c", "a")
    begin(whole, "b", **other)
    saved = open_result(save_result(to_file(whole), tmp_path / "a.sharpness.nc"))
    again = table()
    adopt_table(again, saved)
    for mixed in (whole, again):
        xr.testing.assert_identical(part(mixed, "c", "a"), alike)
        for names in ("ab", "abc"):
            assert "example" not in part(mixed, *names).dims
        found = part(mixed, "b").get("test_example_loss", np.array([]))
        assert found.values.tolist() == [[1] * other["n_examples"]] if other["tests"] else not found.size
    # Of the file nobody takes the values for those of the same examples.
    assert "test_example_loss" not in saved
    assert "mixed_test_example_loss" in saved


# --- adopting


def test_a_larger_table_adopts_values_at_their_names():
    old = table(("a", "c"), ("two", "one"))
    for place, (i, j) in enumerate(np.ndindex(2, 2)):
        fill_value(old, (i, j), place + 1.0, place + 0.5, bool(place % 2))
    begin(old, "c", train_loss=0.5)
    new = table(("c", "b", "a"), ("one", "zero", "two"))
    adopt_table(new, old.transpose("measure", "model", "example"))
    both = new.sel(model=["a", "c"], measure=["two", "one"])
    for name in SHARPNESS_VARIABLES:
        np.testing.assert_array_equal(both[name], old[name])
    assert is_missing(new).sum() == 9 - 4
    assert is_begun(new).tolist() == [True, False, False]
    assert new["train_loss"].sel(model="c") == 0.5
    assert new["test_example_loss"].attrs == old["test_example_loss"].attrs
    np.testing.assert_array_equal(new["test_example_loss"].sel(model="c"), [1, 1, 1])
    assert new["test_example_loss"].sel(model="b").isnull().all()


# --- attributes


@pytest.mark.parametrize(
    "given",
    [
        {"a": {"lr": 1, "kind": "x"}, "c": {"lr": 3, "kind": "z"}, "b": {"lr": 2}},
        {"lr": {"b": 2, "a": 1, "c": 3}, "kind": {"a": "x", "c": "z"}},
        {"lr": [1, 2, 3], "kind": ("x", None, "z")},
        {"lr": np.array([1, 2, 3]), "kind": {"a": "x", "c": "z"}},
    ],
)
def test_attributes_come_in_three_forms(given):
    whole = table()
    add_attributes(whole, read_attributes(given, ["a", "b", "c"]), None)
    assert whole["lr"].dims == ("model",)
    assert whole["lr"].values.tolist() == [1, 2, 3]
    assert whole["lr"].dtype == np.int64
    assert whole["kind"].values.tolist() == ["x", "", "z"]


def test_attributes_take_the_narrowest_type():
    whole = table()
    given = {
        "half": {"a": 1},
        "float": [1, 2.5, 3],
        "flag": [True, False, True],
        "some": {"b": True},
        "mixed": [1, "x", None],
    }
    add_attributes(whole, read_attributes(given, ["a", "b", "c"]), None)
    np.testing.assert_array_equal(whole["half"], [1, np.nan, np.nan])
    assert [whole[name].dtype.kind for name in given] == ["f", "f", "b", "O", "O"]
    assert whole["some"].values.tolist() == ["", "True", ""]
    assert whole["mixed"].values.tolist() == ["1", "x", ""]


def test_what_a_file_says_of_its_models_stays():
    old = table(("a", "b"))
    add_attributes(old, {"lr": {"a": 1.0, "b": 2.0}, "kind": {"a": "x", "b": "y"}}, None)
    new = table(("c", "a", "b"))
    add_attributes(new, {"lr": {"c": 3.0, "b": 20.0}}, old)
    assert new["lr"].values.tolist() == [3, 1, 20]
    assert new["kind"].values.tolist() == ["", "x", "y"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr": {"aa": 1}}, r"'aa' \(of 'lr'\) is none of the models a, b, c\. Did you mean 'a'\?"),
        ({"lr": [1, 2]}, r"'lr' is \[1, 2\]; give \{name: value\}, or 3 values"),
        ({"lr": "abc"}, r"'lr' is 'abc'"),
        ({"train_loss": [1, 2, 3]}, "'train_loss' is something else in this table"),
        ({"variables_sha256": [1, 2, 3]}, "'variables_sha256' is something else in this table"),
        ({"a": {"measure": 1}}, "'measure' is something else"),
    ],
)
def test_attributes_that_fit_nothing_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        read_attributes(given, ["a", "b", "c"])
