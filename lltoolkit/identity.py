"""What a surface was made of: its attributes, and whether a stored one belongs to what is asked for."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from lltoolkit.errors import ResumeMismatch
from lltoolkit.labelled.provenance import hash_config, provenance
from lltoolkit.tensors.objective import Objective, Values
from lltoolkit.tensors.subspace import Subspace

SAME = {
    "theta_sha256": "the minimizer (weights or buffers)",
    "data_sha256": "the examples",
    "subspace_id": "the subspace",
    "config_sha256": "the configuration",
}
WORDS = {"curvature": "curvature map", "sharpness": "table of sharpness"}  # for kinds whose name alone says too little


def identity(
    objective: Objective | None, subspaces: Sequence[Subspace], more: Mapping[str, object] | None = None
) -> dict[str, str]:
    """Give the hashes that two results must share to be cells of one surface; `more` as in `surface_config`."""
    ids = [subspace.id for subspace in subspaces]
    measured = {} if objective is None else {name: getattr(objective, name) for name in ("theta_sha256", "data_sha256")}
    return {
        **measured,
        "subspace_id": ids[0] if len(ids) == 1 else hashlib.sha256("".join(ids).encode()).hexdigest(),
        "config_sha256": hash_config(surface_config(objective, subspaces, more)),
    }


def surface_config(
    objective: Objective | None, subspaces: Sequence[Subspace], more: Mapping[str, object] | None = None
) -> dict[str, object]:
    """Give all that decides a cell's values beside weights, examples and subspaces; `more` is what a kind adds."""
    if objective is None:  # nothing is measured
        return dict(more or {})
    return {**objective.config, "buffers": buffer_policy(objective, subspaces), **(more or {})}


def buffer_policy(objective: Objective, subspaces: Sequence[Subspace]) -> str:
    """Say what the buffers really do at a cell: "frozen", "interpolate" or "recompute"."""
    if objective.buffers == "recompute":
        return "recompute"
    return "interpolate" if any(subspace.buffer_names for subspace in subspaces) else "frozen"


def describe_surface(
    objective: Objective,
    subspaces: Sequence[Subspace],
    how: Mapping[str, Any],
    *,
    kind: str = "surface",
    more: Mapping[str, object] | None = None,
) -> dict[str, Any]:
    """Collect the attributes of a surface, or of another result over a subspace.

    Parameters
    ----------
    objective, subspaces
        What is measured, and where.
    how : mapping
        Engine, batch size, number of threads and precision, fixed before the first cell.
    kind : str
        Of result.
    more : mapping, optional
        What decides the values of this kind beside the objective's configuration, JSON-able.

    Returns
    -------
    dict
        As `schema.validate` asks for, str, int and float only.
    """
    config = surface_config(objective, subspaces, more)
    return {
        **describe_objective(kind, objective, config),
        **identity(objective, subspaces, more),
        **how,
        **describe_subspaces(subspaces),
    }


def describe_subspaces(subspaces: Sequence[Subspace]) -> dict[str, Any]:
    """Collect the attributes that say how subspaces were made; their hash is of `identity`."""
    options = [subspace.config for subspace in subspaces]
    return {
        "subspace_kind": _common([subspace.kind for subspace in subspaces]),
        "subspace": json.dumps(options[0] if len(options) == 1 else options, sort_keys=True),
        **{
            name: _common([str_or_number(each.get(name, "none")) for each in options])
            for name in ("seed", "normalize", "ignore")
        },
        **geometry(subspaces),
    }


def describe_objective(kind: str, objective: Objective, config: Mapping[str, object]) -> dict[str, Any]:
    """Collect the attributes of a result that was measured with one objective.

    Parameters
    ----------
    kind : str
        Of result.
    objective : Objective
        What was measured.
    config : mapping
        All that decides the values beside weights and examples, JSON-able.

    Returns
    -------
    dict
        Provenance, hashes of weights and examples, and the values at the minimizer; str, int and float only.
    """
    minimum = {f"{split} {name}": value for (split, name), value in objective.at_minimizer().items()}
    return {
        **provenance(
            kind,
            config=config,
            model=objective.model_name,
            n_params=objective.n_params,
            device=device_name(objective.device),
            torch_version=str(torch.__version__),
        ),
        "theta_sha256": objective.theta_sha256,
        "data_sha256": objective.data_sha256,
        "data_normalize": objective.data_normalize,
        "buffers": str(config["buffers"]),
        "n_examples": _count_examples(objective),
        "examples": ", ".join(f"{name} {n} of {objective.n_total[name]}" for name, n in objective.n_examples.items()),
        "dtype": objective.dtype,
        "grad_norm": objective.gradient_norm(),
        "at_minimizer": json.dumps(minimum),
    }


def geometry(subspaces: Sequence[Subspace]) -> dict[str, float]:
    """Describe the directions in numbers, see `Subspace.geometry`; of several subspaces the means."""
    each = [subspace.geometry() for subspace in subspaces]
    return {name: float(np.mean([numbers[name] for numbers in each])) for name in each[0]}


def _common(values: Sequence[str | int | float]) -> str | int | float:
    """Return the value that all share, or all of them in words."""
    return values[0] if len(set(values)) == 1 else ", ".join(map(str, values))


def _count_examples(objective: Objective) -> str | int:
    """Return ``"all"``, the number where it is one for all splits, or the numbers by split."""
    if objective.n_examples == objective.n_total:
        return "all"
    counts = set(objective.n_examples.values())
    return counts.pop() if len(counts) == 1 else ", ".join(f"{name} {n}" for name, n in objective.n_examples.items())


def str_or_number(value: object) -> str | int | float:
    """Return what NetCDF attributes can hold: numbers as they are, anything else as text."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def device_name(device: torch.device) -> str:
    """Name a device for the record: ``cpu``, or the GPU's own name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def require_same(
    stored: xr.Dataset,
    objective: Objective | None,
    subspaces: Sequence[Subspace],
    path: Path,
    *,
    kind: str = "surface",
    more: Mapping[str, object] | None = None,
) -> None:
    """Check that a stored result belongs to this minimizer, these examples, this subspace and configuration.

    Parameters
    ----------
    stored : xr.Dataset
        From `path`.
    objective, subspaces
        What is asked for; without an objective a result that measures nothing.
    path : Path
        For the error.
    kind, more
        As in `describe_surface`.

    Raises
    ------
    ResumeMismatch
        Naming all that differs, with both hashes, and the next step.
    """
    if (there := stored.attrs["kind"]) != kind:
        raise ResumeMismatch(
            f"{path} holds a {WORDS.get(there, there)}, not a {WORDS.get(kind, kind)}. Use another path."
        )
    recipe = json.loads(stored.attrs["subspace"])
    options = {"config_sha256": (json.loads(stored.attrs["config"]), surface_config(objective, subspaces, more))}
    if len(subspaces) == 1 and isinstance(recipe, dict):
        options["subspace_id"] = (recipe, subspaces[0].config)
    here, nothing = identity(objective, subspaces, more), "none"
    differing = [
        f"{words} ({key} {stored.attrs.get(key, nothing):.12} there, {here.get(key, nothing):.12} here"
        f"{_changes(*options.get(key, ({}, {})))})"
        for key, words in SAME.items()
        if stored.attrs.get(key, nothing) != here.get(key, nothing)
    ]
    if differing:
        raise ResumeMismatch(
            f"{path} belongs to something else: it differs in {'; '.join(differing)}. It was computed for "
            f"{stored.attrs['model']}. Use another path, or resume=False to replace it."
        )


def _changes(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    here = json.loads(json.dumps(here))  # as the file has it: tuples are lists there
    return "".join(
        f"; {name} {there.get(name, 'none')!r} there, {here.get(name, 'none')!r} here"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    )


def require_same_minimum(stored: xr.Dataset, minimum: Values, path: Path) -> None:
    """Compare the values at the minimizer: two lambdas may bear one name, and only their values tell them apart.

    Raises
    ------
    ResumeMismatch
        With both values.
    """
    there = json.loads(stored.attrs["at_minimizer"])
    for (split, name), value in minimum.items():
        old = there.get(f"{split} {name}", math.nan)
        same = math.isclose(old, value, rel_tol=1e-5, abs_tol=1e-7) or (math.isnan(old) and math.isnan(value))
        if not same:
            raise ResumeMismatch(
                f"{path} has {name} {old!r} on {split} at the minimizer, this objective gives {value!r}. Is the loss "
                "another function, or the machine another kind? Use another path, or resume=False to replace it."
            )
