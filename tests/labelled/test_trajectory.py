"""Paths as Datasets: rows that stay, sums over them, and statistics against plain differences of the weights."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from lltoolkit.errors import SchemaError
from lltoolkit.labelled.schema import (
    OBJECTIVE_ATTRS,
    PATH_STATISTICS,
    REQUIRED_ATTRS,
    SUBSPACE_ATTRS,
    TRAJECTORY_ATTRS,
    validate,
)
from lltoolkit.labelled.trajectory import (
    N_COMPONENTS,
    Row,
    adopt_steps,
    empty_trajectory,
    fill_step,
    is_missing,
    path_statistics,
    summarize,
)

ATTRS = dict.fromkeys([*REQUIRED_ATTRS, *OBJECTIVE_ATTRS, *SUBSPACE_ATTRS, *TRAJECTORY_ATTRS], "x")
ATTRS |= {"schema_version": 1, "kind": "trajectory"}


def rows(*steps, sha=str):
    return [Row(step, step / 10, 0.1, sha(step)) for step in steps]


def numbers(value):
    return {
        "alpha": value,
        "beta": -value,
        "residual": 0.6,
        "residual_weights": 0.5,
        "residual_bias_bn": 0.7,
        "distance": 2 * value,
        "loss": np.array([value, value + 1]),
        "plane_loss": np.array([value, value + 2]),
    }


def empty(*steps, sha=str, metrics=("loss",)):
    splits = ("train", "test") if metrics else ()
    return empty_trajectory(rows(*steps, sha=sha), ("alpha", "beta"), splits, metrics, units="nat", attrs=ATTRS)


def test_the_layout_is_the_one_of_the_docs_and_passes_as_a_result():
    path = empty(0, 10, 20)
    assert dict(path.sizes) == {"step": 3, "axis": 2, "split": 2}
    assert path["step"].dtype == np.int64
    assert path["loss"].dims == path["plane_loss"].dims == ("split", "step")
    assert path["loss"].attrs["units"] == path["plane_loss"].attrs["units"] == "nat"
    assert path["alpha"].attrs["long_name"] == "coordinate along the first direction"
    assert is_missing(path).all()
    assert path["explained_variance"].isnull().all()
    assert validate(path) is path
    assert path["epoch"].values.tolist() == [0, 1, 2]
    bare = empty(0, metrics=())
    assert "split" not in bare.dims
    assert "loss" not in bare


def test_explained_variance_stands_on_the_axes():
    explained = {"explained_variance": [0.7, 0.2], "explained_variance_null": [0.6, 0.1]}
    path = empty_trajectory(rows(0), ("alpha", "beta"), attrs=ATTRS, explained=explained)
    assert path["explained_variance"].sel(axis="beta") == 0.2
    assert path["explained_variance_null"].sel(axis="alpha") == 0.6
    unknown = empty_trajectory(rows(0), ("alpha",), attrs=ATTRS, explained={"explained_variance_null": None})
    assert unknown["explained_variance_null"].isnull().all()


@pytest.mark.parametrize("name", ["alpha", "residual", "distance", "status", "checkpoint_sha256"])
def test_what_lacks_a_variable_is_no_trajectory(name):
    with pytest.raises(SchemaError, match=rf"p\.nc has no variable '{name}'"):
        validate(empty(0).drop_vars([name, *(["beta"] if name == "alpha" else [])]), source="p.nc")


def test_a_trajectory_with_losses_says_whose_they_are():
    path = empty(0)
    del path.attrs["data_sha256"]
    with pytest.raises(SchemaError, match="data_sha256"):
        validate(path)
    validate(path.drop_vars(["loss", "plane_loss"]))
    with pytest.raises(SchemaError, match=r"'residual' has the dims \(\); in a trajectory it runs over step"):
        validate(path.assign(residual=path["residual"].isel(step=0, drop=True)))


def test_rows_of_the_same_files_are_kept_and_others_are_not():
    old = empty(0, 10, 20)
    for place, value in enumerate((5.0, 6.0)):
        fill_step(old, place, numbers(value))
    new = empty(0, 10, 20, 30, sha=lambda step: "another" if step == 10 else str(step))
    adopt_steps(new, old.transpose("step", ...))
    assert is_missing(new).tolist() == [False, True, True, True]  # 10 is another file, 20 was missing, 30 is new
    assert new["alpha"].values[0] == 5
    assert new["loss"].values[:, 0].tolist() == [5, 6]
    assert np.isnan(new["loss"].values[:, 1:]).all()
    assert new["checkpoint_sha256"].values.tolist() == ["0", "another", "20", "30"]


def test_a_file_without_the_metrics_asked_for_gives_nothing():
    old = empty(0, metrics=())
    fill_step(old, 0, {"alpha": 1.0})
    new = empty(0)
    adopt_steps(new, old)
    assert is_missing(new).all()


def test_captured_share_is_of_the_squares():
    path = empty(0, 10, 20)
    for place, (distance, residual) in enumerate([(3.0, 0.6), (1.0, 1.0)]):
        fill_step(
            path, place, numbers(1.0) | {"distance": distance, "residual": residual, "loss": np.array([np.nan, 1])}
        )
    found = summarize(path)
    assert found["captured_share"] == pytest.approx(9 * 0.64 / 10)
    assert found["n_checkpoints"] == found["n_nan"] == 2
    assert np.isnan(summarize(empty(0, metrics=()))["captured_share"])


# --- statistics


def by_hand(weights):
    """The same from the weights themselves, one number at a time."""
    n, end = len(weights), weights[-1]
    found = {name: np.full(n, np.nan) for name in PATH_STATISTICS}
    length = 0.0

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    for t in range(n):
        found["distance_from_start"][t] = np.linalg.norm(weights[t] - weights[0])
        found["distance_to_end"][t] = np.linalg.norm(weights[t] - end)
        found["theta_norm"][t] = np.linalg.norm(weights[t])
        if t:
            step = weights[t] - weights[t - 1]
            length += np.linalg.norm(step)
            found["step_length"][t] = np.linalg.norm(step)
            found["cosine_to_displacement"][t] = cosine(step, end - weights[0])
            found["cosine_to_end"][t] = cosine(step, end - weights[t - 1])
        if t > 1:
            found["cosine_to_previous"][t] = cosine(step, weights[t - 1] - weights[t - 2])
        found["path_length"][t] = length
    return found


def statistics_of(weights, null_shares=()):
    moved = weights - weights[-1]
    attrs = dict.fromkeys(REQUIRED_ATTRS, "x") | {"schema_version": 1, "kind": "statistics"}
    given = rows(*range(len(weights)))
    return path_statistics(
        moved @ moved.T, np.linalg.norm(weights, axis=1), given, attrs=attrs, null_shares=null_shares
    )


@given(st.integers(2, 9), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_inner_products_give_what_the_weights_give(n, size, seed):
    weights = np.random.default_rng(seed).normal(size=(n, size)).cumsum(axis=0)
    found = statistics_of(weights)
    validate(found)
    for name, values in by_hand(weights).items():
        np.testing.assert_allclose(found[name].values, values, atol=1e-6, err_msg=name)


def test_principal_coordinates_are_those_of_a_singular_value_decomposition_about_the_end():
    weights = np.random.default_rng(0).normal(size=(20, 7)).cumsum(axis=0)
    found = statistics_of(weights, null_shares=[0.6, 0.2])
    left, singular, _ = np.linalg.svd(weights - weights[-1], full_matrices=False)
    assert found.sizes["component"] == N_COMPONENTS
    np.testing.assert_allclose(np.abs(found["principal"].values[:, :7]), np.abs(left * singular), atol=1e-6)
    np.testing.assert_allclose(found["principal"].values[:, 7:], 0, atol=1e-6)
    np.testing.assert_allclose(found["explained_variance"].values[:7], singular**2 / (singular**2).sum(), atol=1e-9)
    assert found["explained_variance"].sum() == pytest.approx(1)
    assert found["explained_variance_null"].values[:3].tolist()[:2] == [0.6, 0.2]
    assert np.isnan(found["explained_variance_null"].values[2:]).all()
    assert (found["principal"].max("step") <= -found["principal"].min("step") + 1e-9).all()  # the sign is settled
    distances = np.sqrt((found["principal"].values ** 2).sum(axis=1))
    np.testing.assert_allclose(distances, found["distance_to_end"].values, atol=1e-6)


def test_a_step_of_no_length_has_no_angle():
    weights = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    found = statistics_of(weights)
    assert np.isnan(found["cosine_to_previous"].values).all()
    assert found["cosine_to_displacement"].values[[1, 3]] == pytest.approx(0.5**0.5)
    assert np.isnan(found["cosine_to_displacement"].values[2])
    assert found["path_length"].values.tolist() == [0, 1, 1, 2]


def test_checkpoints_that_are_all_equal_have_no_shares():
    found = statistics_of(np.ones((3, 4)))
    assert (found["distance_from_start"] == 0).all()
    assert found["explained_variance"].isnull().all()
    assert found["cosine_to_end"].isnull().all()


@pytest.mark.parametrize("name", [*PATH_STATISTICS, "principal"])
def test_what_lacks_a_variable_is_no_statistics_of_a_path(name):
    found = statistics_of(np.eye(3))
    assert isinstance(validate(found), xr.Dataset)
    with pytest.raises(SchemaError, match=f"no variable '{name}'"):
        validate(found.drop_vars(name))
