"""Whether a stored table of sharpness belongs to what is asked for: the same models and measures under one name."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from lltoolkit.columns import Chosen, hash_variables
from lltoolkit.errors import ResumeMismatch
from lltoolkit.labelled.provenance import hash_config
from lltoolkit.labelled.sharpness import COUNTS, IDENTITY, TEXTS, columns_of, is_begun, is_missing, row_dim
from lltoolkit.minimizers import Minimizer, sha256_or_none
from lltoolkit.tensors.objective import Objective
from lltoolkit.tensors.sharpness.registry import MEASURES


def identity_of(objective: Objective) -> dict[str, str]:
    """Give the hashes that two rows of one name must share."""
    return {
        "theta_sha256": objective.theta_sha256,
        "data_sha256": objective.data_sha256,
        "objective_sha256": hash_config(objective.config),
    }


def require_same_kind(stored: xr.Dataset, dim: str, path: Path) -> None:
    """Check that a stored result is a table over the same kind of rows.

    Raises
    ------
    ResumeMismatch
        Saying what it is.
    """
    if stored.attrs["kind"] != "sharpness":
        raise ResumeMismatch(f"{path} holds a {stored.attrs['kind']}, no table of sharpness. Use another path.")
    if row_dim(stored) != dim:
        there, here = ("a training", "models by name") if dim == "model" else ("models by name", "a training")
        raise ResumeMismatch(
            f"{path} is the table of {there}, and {here} is asked for. Use another path, or resume=False to replace it."
        )
    if lacking := [name for name in (*TEXTS, *COUNTS, "measure_options") if name not in stored.variables]:
        raise ResumeMismatch(
            f"{path} does not say whose its values are (it lacks {', '.join(lacking)}): compute_sharpness can't go on "
            "from it. Use another path, or resume=False to replace it."
        )


def require_same_columns(stored: xr.Dataset, columns: Sequence[Chosen], path: Path) -> None:
    """Check that measures of one label are the same, with the same options, split and seed.

    Raises
    ------
    ResumeMismatch
        Naming every option that differs.
    """
    there = {column.label: json.loads(column.options) for column in columns_of(stored)}
    differing = []
    for column in columns:
        here = json.loads(column.column.options)
        old = there.get(column.label, here)
        changes = [
            f"{name} {old.get(name, 'none')!r} there, {here.get(name, 'none')!r} here"
            for name in sorted(old.keys() | here.keys())
            if old.get(name) != here.get(name)
        ]
        if changes:
            differing.append(f"{column.label} ({'; '.join(changes)})")
    if differing:
        raise ResumeMismatch(
            f"{path} has measures of the same name with other options: {', '.join(differing)}. Give them labels of "
            "their own, measures={label: (name, options)}, use another path, or resume=False to replace it."
        )


def uses_initial(table: xr.Dataset) -> np.ndarray:
    """Tell, for each row, whether it has a value that is of the weights at initialization."""
    names = [json.loads(column.options).get("measure") for column in columns_of(table)]
    needing = np.array([name in MEASURES and MEASURES[name].needs_initial for name in names], dtype=bool)
    return (~is_missing(table) & needing).any(axis=1)


def require_same_rows(stored: xr.Dataset, rows: Sequence[Minimizer], columns: Sequence[Chosen], path: Path) -> None:
    """Check that rows of one name are of one minimizer, on the same examples, measured in the same way.

    Raises
    ------
    ResumeMismatch
        Naming all that differs in the first row that does.
    """
    dim = row_dim(stored)
    stored = stored.transpose(dim, "measure", ...)
    places = {name: place for place, name in enumerate(stored[dim].values.tolist())}
    begun, of_initial = is_begun(stored), uses_initial(stored)
    from_initial = any(column.measure.needs_initial for column in columns)
    for row in rows:
        place = places.get(row.name)
        if place is None or not begun[place]:
            continue
        objective, there = row.make(), stored.isel({dim: place})
        differing = _other_identity(there, objective)
        old, value = str(there["initial_sha256"].values), sha256_or_none(row.initial)
        if from_initial and of_initial[place] and old != value:
            differing.append(f"the weights at initialization (initial_sha256 {old:.12} there, {value:.12} here)")
        differing += _other_variables(there, objective, columns)
        if not differing and objective.has_own_functions:  # two lambdas may bear one name
            differing = _other_losses(there, objective)
        if differing:
            raise ResumeMismatch(
                f"{path} belongs to something else: {dim} {row.name!r} differs in {'; '.join(differing)}. Give it "
                "another name, use another path, or resume=False to replace it."
            )


def _other_identity(there: xr.Dataset, objective: Objective) -> list[str]:
    """Say which hashes of a stored row are not an objective's."""
    configs = json.loads(there.attrs["config"]).get("objectives", {})
    differing = []
    for name, value in identity_of(objective).items():
        old = str(there[name].values)
        if old != value:
            then, now = configs.get(old, {}), json.loads(json.dumps(objective.config))
            changes = "".join(
                f"; {key} {then.get(key, 'none')!r} there, {now.get(key, 'none')!r} here"
                for key in sorted(then.keys() | now.keys())
                if name == "objective_sha256" and then.get(key) != now.get(key)
            )
            differing.append(f"{IDENTITY[name]} ({name} {old:.12} there, {value:.12} here{changes})")
    return differing


def _other_variables(there: xr.Dataset, objective: Objective, columns: Sequence[Chosen]) -> list[str]:
    """Say of which measures of a stored row a function chose other parameters than the one given chooses."""
    across = {column.label: place for place, column in enumerate(columns_of(there))}
    missing = is_missing(there)
    differing = []
    for column in columns:
        place = across.get(column.label)
        if place is None or missing[place] or not (names := column.variables_of(objective)):
            continue
        old = str(there["variables_sha256"].values[place]) if "variables_sha256" in there else ""
        if old != hash_variables(names):
            differing.append(f"the parameters of {column.label} ({', '.join(names[:5])} here, others there)")
    return differing


def _other_losses(there: xr.Dataset, objective: Objective) -> list[str]:
    """Say which losses of a stored row are not an objective's."""
    differing = []
    for (split, name), loss in objective.at_minimizer().items():
        old = float(there[f"{split}_loss"].values) if split in ("train", "test") else loss
        if name == "loss" and not (math.isnan(loss) or math.isclose(old, loss, rel_tol=1e-5, abs_tol=1e-7)):
            differing.append(f"the {split} loss ({old!r} there, {loss!r} here)")
    return differing
