"""What a result is: its kinds, variables, units and required attributes. Torch-free.

A result is a plain ``xarray.Dataset``; this module says what must be in it, labels what is in it,
and refuses what is not a result, before a plot or a resume goes wrong further on.
"""

from collections.abc import Hashable, Iterable, Mapping
from numbers import Integral

import xarray as xr

from lltoolkit.errors import SchemaError

SCHEMA_VERSION = 1
KINDS = ("surface", "curvature", "trajectory", "sharpness", "spectrum", "statistics", "history")
AXES = ("alpha", "beta", "gamma")
STATUS = {"missing": 0, "computed": 1, "interpolated": 2, "estimated": 3}

REQUIRED_ATTRS = [
    "schema_version",
    "kind",
    "created_at",
    "lltoolkit_version",
    "torch_version",
    "device",
    "config",
    "config_sha256",
    "model",
    "n_params",
    "command",
    "git_commit",
]
OBJECTIVE_ATTRS = [
    "theta_sha256",
    "data_sha256",
    "data_normalize",
    "buffers",
    "n_examples",
    "dtype",
    "precision",
    "engine",
    "batch_size",
    "grad_norm",
]
SUBSPACE_ATTRS = ["subspace_id", "subspace_kind", "seed", "normalize", "ignore", "direction_cosine"]
SHARPNESS_ROWS = ("model", "step")  # a table of sharpness runs over one of them, and over its measures
SHARPNESS_VARIABLES = ("value", "value_se", "censored", "status")
SHARPNESS_COORDS = ("measure_long_name", "measure_units", "measure_kind", "measure_formula")
CURVATURE_ATTRS = ["split", "parameters", "metric", "tol"]
TRAJECTORY_ATTRS = ["run", "captured_share", "n_checkpoints", "n_skipped"]
TRAJECTORY_VARIABLES = ("residual", "residual_weights", "residual_bias_bn", "distance", "status", "checkpoint_sha256")
PATH_STATISTICS = (
    "distance_from_start",
    "distance_to_end",
    "step_length",
    "path_length",
    "cosine_to_previous",
    "cosine_to_displacement",
    "cosine_to_end",
    "theta_norm",
)
CURVATURE_VARIABLES = ("eig_min", "eig_max", "eig_ratio", "nonconvexity", "residual_min", "residual_max", "n_hvp")

LABELS: dict[str, dict[str, str]] = {
    "alpha": {"long_name": "first direction", "units": "1"},
    "beta": {"long_name": "second direction", "units": "1"},
    "gamma": {"long_name": "third direction", "units": "1"},
    "split": {"long_name": "split of the data"},
    "loss": {"long_name": "loss"},  # its units depend on the loss function: nat for cross-entropy
    "accuracy": {"long_name": "accuracy", "units": "1"},
    "status": {"long_name": "origin of the value"},
    # Eigenvalues have the units of the loss, per square of a weight, or of a filter-normalized step: both pure numbers.
    "eig_min": {"long_name": "smallest Hessian eigenvalue"},
    "eig_max": {"long_name": "largest Hessian eigenvalue"},
    "eig_ratio": {"long_name": "|smallest / largest Hessian eigenvalue|", "units": "1"},
    "nonconvexity": {"long_name": "negative part of the smallest / largest Hessian eigenvalue", "units": "1"},
    "residual_min": {"long_name": "residual of the smallest eigenvalue"},
    "residual_max": {"long_name": "residual of the largest eigenvalue"},
    "n_hvp": {"long_name": "Hessian-vector products", "units": "1"},
    "converged": {"long_name": "whether both residuals met the tolerance", "units": "1"},
    "audit_eig_min": {"long_name": "smallest Hessian eigenvalue, audited"},
    "audit_eig_max": {"long_name": "largest Hessian eigenvalue, audited"},
    "audit_converged": {"long_name": "whether the audit met its tolerance", "units": "1"},
    "audit_n_hvp": {"long_name": "Hessian-vector products of the audit", "units": "1"},
    "residual": {"long_name": "share of the displacement outside the subspace", "units": "1"},
    "residual_weights": {"long_name": "share outside the subspace, weights", "units": "1"},
    "residual_bias_bn": {"long_name": "share outside the subspace, biases and batch norm", "units": "1"},
    "distance": {"long_name": "distance from the origin", "units": "1"},
    "axis": {"long_name": "axis of the subspace"},
    "explained_variance": {"long_name": "share of the checkpoints' variance", "units": "1"},
    "explained_variance_null": {"long_name": "share that a random walk gives", "units": "1"},
    "plane_loss": {"long_name": "loss at the projected point"},
    "plane_accuracy": {"long_name": "accuracy at the projected point", "units": "1"},
    "checkpoint_sha256": {"long_name": "hash of the checkpoint's file", "units": "1"},
    "distance_from_start": {"long_name": "distance from the first checkpoint", "units": "1"},
    "distance_to_end": {"long_name": "distance to the last checkpoint", "units": "1"},
    "step_length": {"long_name": "distance from the checkpoint before", "units": "1"},
    "path_length": {"long_name": "length of the path so far", "units": "1"},
    "cosine_to_previous": {"long_name": "cosine with the step before", "units": "1"},
    "cosine_to_displacement": {"long_name": "cosine with the whole displacement", "units": "1"},
    "cosine_to_end": {"long_name": "cosine with the way that is left", "units": "1"},
    "theta_norm": {"long_name": "norm of the weights", "units": "1"},
    "component": {"long_name": "principal component", "units": "1"},
    "principal": {"long_name": "principal coordinate", "units": "1"},
    "step": {"long_name": "optimizer step", "units": "1"},
    "epoch": {"long_name": "epoch", "units": "1"},
    "learning_rate": {"long_name": "learning rate", "units": "1"},
    "model": {"long_name": "model"},
    "measure": {"long_name": "sharpness measure"},
    "value": {"long_name": "value of the measure"},  # in the units of its own measure: measure_units
    "censored": {"long_name": "whether the value is a bound at the end of the search range", "units": "1"},
    "train_loss": {"long_name": "train loss"},
    "test_loss": {"long_name": "test loss"},
    "train_error": {"long_name": "train error", "units": "1"},
    "test_error": {"long_name": "test error", "units": "1"},
    "loss_gap": {"long_name": "test loss - train loss"},
    "error_gap": {"long_name": "test error - train error", "units": "1"},
    "test_example_loss": {"long_name": "loss of a test example"},
    "test_example_error": {"long_name": "error of a test example", "units": "1"},
    "stability_threshold": {"long_name": "sharpness that the optimizer bears on full batches"},
}


def label(dataset: xr.Dataset) -> xr.Dataset:
    """Give every known variable its ``long_name`` and ``units`` where it has none; in place.

    Returns
    -------
    xr.Dataset
        The same object.
    """
    for name, variable in dataset.variables.items():
        base = str(name).removesuffix("_se")
        known = dict(LABELS.get(base, {"long_name": base.replace("_", " "), "units": "1"}))
        if base != name:
            known["long_name"] = f"standard error of the {known['long_name']}"
            known.setdefault("units", str(dataset[base].attrs.get("units", "1")) if base in dataset else "1")
        for key, value in known.items():
            variable.attrs.setdefault(key, value)
    if "status" in dataset:
        dataset["status"].attrs.setdefault("flag_values", list(STATUS.values()))
        dataset["status"].attrs.setdefault("flag_meanings", " ".join(STATUS))
    return dataset


def axes_of(dataset: xr.Dataset) -> tuple[str, ...]:
    """Name the subspace axes of a result in their order, for example ``("alpha", "beta")``."""
    return tuple(axis for axis in AXES if axis in dataset.dims)


def validate(dataset: xr.Dataset, *, source: str = "this Dataset") -> xr.Dataset:
    """Check that `dataset` is a complete result of a known kind.

    Parameters
    ----------
    dataset : xr.Dataset
        The candidate.
    source : str
        What to call it in an error: the path, as a rule.

    Returns
    -------
    xr.Dataset
        The same object.

    Raises
    ------
    SchemaError
        Naming the first thing that is missing or wrong, and what to do.
    """
    kind = dataset.attrs.get("kind")
    if kind not in KINDS:
        raise SchemaError(
            f"{source} is no lltoolkit result: its attribute kind is {kind!r}, not one of {', '.join(KINDS)}. "
            "Open other NetCDF files with xarray.open_dataset."
        )
    version = dataset.attrs.get("schema_version")
    if version != SCHEMA_VERSION:
        newer = isinstance(version, Integral) and int(version) > SCHEMA_VERSION  # NumPy's integers come from a file
        raise SchemaError(
            f"{source} has schema_version {version}, this lltoolkit reads {SCHEMA_VERSION}. "
            + ("Upgrade lltoolkit." if newer else "Compute it again with this version.")
        )
    needed = list(REQUIRED_ATTRS)
    if kind == "surface":
        needed += OBJECTIVE_ATTRS + SUBSPACE_ATTRS
        _require_variables(dataset, {"loss": ("split",), "status": ()}, source)
    if kind == "curvature":
        needed += OBJECTIVE_ATTRS + SUBSPACE_ATTRS + CURVATURE_ATTRS
        _require_variables(dataset, dict.fromkeys([*CURVATURE_VARIABLES, "converged", "status"], ()), source)
    if kind == "sharpness":
        _require_table(dataset, source)
    if kind == "trajectory":
        needed += SUBSPACE_ATTRS + TRAJECTORY_ATTRS + (OBJECTIVE_ATTRS if "loss" in dataset else [])
        axes = tuple(axis for axis in AXES if axis in dataset) or AXES[:1]
        _require_path(dataset, [*axes, *TRAJECTORY_VARIABLES], "a trajectory", source)
    if kind == "statistics" and "step" in dataset.dims:  # of a path, and not of a surface
        _require_path(dataset, [*PATH_STATISTICS, "principal"], "the statistics of a path", source)
    if missing := [name for name in needed if name not in dataset.attrs]:
        raise SchemaError(f"{source} ({kind}) lacks the attributes {', '.join(missing)}; it was not written whole.")
    require_plain_attrs(dataset.attrs, source)
    return dataset


def _require_variables(dataset: xr.Dataset, variables: Mapping[str, tuple[str, ...]], source: str) -> None:
    axes = axes_of(dataset)
    word = "surface" if dataset.attrs["kind"] == "surface" else "curvature map"
    if not axes or axes != AXES[: len(axes)]:
        raise SchemaError(f"{source} has the dims {tuple(dataset.dims)}; a {word} runs over alpha[, beta[, gamma]].")
    for name, dims in variables.items():
        if name not in dataset:
            present = ", ".join(map(str, dataset.data_vars)) or "none"
            raise SchemaError(f"{source} has no variable {name!r} (present: {present}).")
        if missing := set(dims + axes) - set(dataset[name].dims):
            raise SchemaError(f"{source}: {name!r} lacks the dims {sorted(missing)}, it has {dataset[name].dims}.")


def _require_table(dataset: xr.Dataset, source: str) -> None:
    for name in (*SHARPNESS_VARIABLES, "measure", *SHARPNESS_COORDS):
        if name not in dataset.variables:
            present = ", ".join(map(str, dataset.variables)) or "none"
            raise SchemaError(f"{source} has no variable {name!r} (present: {present}); a table of sharpness does.")
    for name in SHARPNESS_VARIABLES:
        dims = dataset[name].dims
        if not any(set(dims) == {row, "measure"} for row in SHARPNESS_ROWS):
            raise SchemaError(
                f"{source}: {name!r} has the dims {dims}; in a table of sharpness it runs over model, or step, and "
                "measure."
            )


def _require_path(dataset: xr.Dataset, variables: Iterable[str], word: str, source: str) -> None:
    for name in ("step", *variables):
        if name not in dataset.variables:
            present = ", ".join(map(str, dataset.variables)) or "none"
            raise SchemaError(f"{source} has no variable {name!r} (present: {present}); {word} does.")
        if "step" not in dataset[name].dims:
            raise SchemaError(f"{source}: {name!r} has the dims {dataset[name].dims}; in {word} it runs over step.")


def require_plain_attrs(attrs: Mapping[Hashable, object], source: str) -> None:
    """Check that attributes are str, int or float: netCDF takes no bool, None or dict.

    Raises
    ------
    SchemaError
        Naming the attribute and its type.
    """
    for name, value in attrs.items():
        kind = getattr(getattr(value, "dtype", None), "kind", None)  # a number or an array of NumPy, from a file
        if isinstance(value, bool) or not (isinstance(value, str | int | float) or kind in ("i", "u", "f", "U")):
            raise SchemaError(
                f"{source}: attribute {name!r} is a {type(value).__name__}; NetCDF keeps str, int and float. "
                "Use 0 or 1 for a bool, 'none' for None, json.dumps for a dict."
            )
