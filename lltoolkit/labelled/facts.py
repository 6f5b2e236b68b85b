"""What a result tells of itself, read back from its attributes: nothing is guessed. Torch-free."""

import json
from typing import Any

import xarray as xr

from lltoolkit.errors import SchemaError
from lltoolkit.labelled.schema import KINDS, STATUS


def kind_of(result: Any) -> str:
    """Name the kind of a result.

    Returns
    -------
    str
        One of `schema.KINDS`.

    Raises
    ------
    SchemaError
        If it is none.
    """
    kind = result.attrs.get("kind") if isinstance(result, xr.Dataset) else type(result).__name__
    if not isinstance(result, xr.Dataset) or kind not in KINDS:
        raise SchemaError(
            f"this is no result of lltoolkit: its kind is {kind!r}, not one of {', '.join(KINDS)}. Give a Dataset as "
            "compute_* and open_result give it; what xarray makes of one keeps its attributes under "
            "xarray.set_options(keep_attrs=True)."
        )
    return str(kind)


def config_of(result: xr.Dataset) -> dict[str, Any]:
    """Read the configuration, empty where there is none."""
    config = read_json(result.attrs.get("config"))
    return config if isinstance(config, dict) else {}


def recipes_of(result: xr.Dataset) -> list[dict[str, Any]]:
    """Read how the subspaces were made: one, several of an ensemble, or none where it is not told."""
    told = read_json(result.attrs.get("subspace"))
    if told is None and "subspace_kind" in result.attrs:
        names = ("normalize", "ignore", "seed")
        told = {name: result.attrs[name] for name in names if result.attrs.get(name, "none") != "none"}
        told["kind"] = result.attrs["subspace_kind"]
    return [recipe for recipe in (told if isinstance(told, list) else [told]) if isinstance(recipe, dict)]


def measures_of(table: xr.Dataset) -> list[tuple[str, dict[str, Any]]]:
    """Read the labels of a table's measures, and the options of each with its name as ``measure``."""
    labels = [str(label) for label in table["measure"].values] if "measure" in table.coords else []
    options = table["measure_options"].values if "measure_options" in table.variables else [None] * len(labels)
    return [(label, {"measure": label, **(read_json(told) or {})}) for label, told in zip(labels, options, strict=True)]


def counts_of(result: xr.Dataset) -> dict[str, int]:
    """Count the cells of each status, from ``missing`` to ``estimated``; empty where no status is told."""
    if "status" not in result:
        return {}
    status = result["status"].values
    return {word: int((status == number).sum()) for word, number in STATUS.items()}


def read_json(text: Any) -> Any:
    """Read JSON, None where there is none or it is damaged."""
    try:
        return json.loads(str(text)) if text is not None else None
    except ValueError:
        return None
