"""Whether a stored table of sharpness belongs to what is asked for: the same models and measures under one name."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import xarray as xr

from lltoolkit.columns import Chosen
from lltoolkit.errors import ResumeMismatch
from lltoolkit.labelled.provenance import hash_config
from lltoolkit.labelled.sharpness import IDENTITY, columns_of, is_begun, row_dim
from lltoolkit.minimizers import Minimizer, sha256_or_none
from lltoolkit.tensors.objective import Objective


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
    if lacking := [name for name in (*IDENTITY, "initial_sha256", "measure_options") if name not in stored.coords]:
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


def require_same_rows(stored: xr.Dataset, rows: Sequence[Minimizer], columns: Sequence[Chosen], path: Path) -> None:
    """Check that rows of one name are of one minimizer, on the same examples, measured in the same way.

    Raises
    ------
    ResumeMismatch
        Naming all that differs in the first row that does.
    """
    dim = row_dim(stored)
    places = {name: place for place, name in enumerate(stored[dim].values.tolist())}
    begun = is_begun(stored)
    configs = json.loads(stored.attrs["config"]).get("objectives", {})
    from_initial = any(column.measure.needs_initial for column in columns)
    for row in rows:
        place = places.get(row.name)
        if place is None or not begun[place]:
            continue
        objective = row.make()
        differing = []
        for name, value in identity_of(objective).items():
            old = str(stored[name].values[place])
            if old != value:
                there, here = configs.get(old, {}), json.loads(json.dumps(objective.config))
                changes = "".join(
                    f"; {key} {there.get(key, 'none')!r} there, {here.get(key, 'none')!r} here"
                    for key in sorted(there.keys() | here.keys())
                    if name == "objective_sha256" and there.get(key) != here.get(key)
                )
                differing.append(f"{IDENTITY[name]} ({name} {old:.12} there, {value:.12} here{changes})")
        old, value = str(stored["initial_sha256"].values[place]), sha256_or_none(row.initial)
        if from_initial and old not in ("", value):
            differing.append(f"the weights at initialization (initial_sha256 {old:.12} there, {value:.12} here)")
        if not differing and objective.has_own_functions:  # two lambdas may bear one name
            for (split, name), loss in objective.at_minimizer().items():
                old_loss = float(stored[f"{split}_loss"].values[place]) if split in ("train", "test") else loss
                if name == "loss" and not (
                    math.isnan(loss) or math.isclose(old_loss, loss, rel_tol=1e-5, abs_tol=1e-7)
                ):
                    differing.append(f"the {split} loss ({old_loss!r} there, {loss!r} here)")
        if differing:
            raise ResumeMismatch(
                f"{path} belongs to something else: {dim} {row.name!r} differs in {'; '.join(differing)}. Give it "
                "another name, use another path, or resume=False to replace it."
            )
