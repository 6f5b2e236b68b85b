"""Tables of sharpness: measures of models, or of one training's steps, beside how the models generalize. Torch-free."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from lltoolkit.errors import did_you_mean
from lltoolkit.labelled.schema import SHARPNESS_ROWS, SHARPNESS_VARIABLES, STATUS, label

# How a row generalizes; each has a standard error, <name>_se.
GENERALIZATION = ("train_loss", "test_loss", "train_error", "test_error", "loss_gap", "error_gap")
NUMBERS = tuple(full for name in GENERALIZATION for full in (name, f"{name}_se"))
# Whose numbers a row's are: two rows of one name must agree in all of them.
IDENTITY = {
    "theta_sha256": "the minimizer (weights or buffers)",
    "data_sha256": "the examples",
    "objective_sha256": "the objective's configuration",
}
TEXTS = ("model_name", *IDENTITY, "initial_sha256", "test_sha256")
COUNTS = ("n_params", "n_test_examples", "eval_batch_size", "eval_threads")
DESCRIPTIONS = ("model_name", "n_params")  # of these, coordinates; the others are for the resume, not to group by
OF_STEPS = {"epoch": np.int64, "learning_rate": np.float64, "stability_threshold": np.float64}
PER_EXAMPLE = ("test_example_loss", "test_example_error")
# Their names, and their dim's, in a file of models of several test sets: nobody takes these examples for the same.
MIXED = {name: f"mixed_{name}" for name in (*PER_EXAMPLE, "example")}
SE_NOTE = (
    "s / sqrt(n) over the examples, as if drawn from an endless population; of a gap the root of the sum of squares. "
    "It holds nothing of how trainings differ from one another."
)
VALUE_SE_NOTE = (
    "of the estimate (random directions, samples of examples); NaN where the value is exact or none is known"
)


@dataclass(frozen=True)
class Column:
    """A measure as a column of a table.

    Attributes
    ----------
    label : str
        Its coordinate on the dim ``measure``.
    long_name, units, kind, formula : str
        What it is; `kind` is "exact", "estimate" or "lower bound".
    options : str
        All that decides its values beside the model, as JSON.
    sharper : str
        "higher" where a higher value means sharper, else "lower".
    """

    label: str
    long_name: str
    units: str
    kind: str
    formula: str
    options: str
    sharper: str = "higher"


def empty_table(
    rows: Sequence[str | int],
    columns: Sequence[Column],
    *,
    dim: str,
    units: str,
    attrs: Mapping[str, str | int | float],
) -> xr.Dataset:
    """Lay out a table that nothing has been computed of.

    Parameters
    ----------
    rows : sequence
        Names of models, or numbers of steps.
    columns : sequence of Column
        The measures.
    dim : {"model", "step"}
        What the rows are.
    units : str
        Units of the loss.
    attrs : mapping
        Attributes of the Dataset.

    Returns
    -------
    xr.Dataset
        ::

            value            (model, measure)  float64  NaN
            value_se         (model, measure)  float64  NaN
            censored         (model, measure)  int8     0
            status           (model, measure)  int8     0, missing
            measure_options  (measure)         str      JSON
            those of `TEXTS` and `COUNTS` that are not in `DESCRIPTIONS`
                             (model)           str, int64  empty, 0

        with the coords of `NUMBERS` (NaN) and `DESCRIPTIONS` on the rows and ``measure_*`` on the measures.
    """
    shape, dims = (len(rows), len(columns)), (dim, "measure")
    variables: dict[str, Any] = {
        "value": (dims, np.full(shape, np.nan)),
        "value_se": (dims, np.full(shape, np.nan), {"note": VALUE_SE_NOTE}),
        "censored": (dims, np.zeros(shape, dtype=np.int8)),
        "status": (dims, np.full(shape, STATUS["missing"], dtype=np.int8)),
    }
    coords: dict[str, Any] = {dim: np.array(rows, dtype=np.int64 if dim == "step" else object)}
    for name in NUMBERS:
        told = {"units": units} if "loss" in name else {"units": "1"}
        coords[name] = (dim, np.full(len(rows), np.nan), told | ({"note": SE_NOTE} if name.endswith("_se") else {}))
    told_of_rows: dict[str, Any] = {name: (dim, np.full(len(rows), "", dtype=object)) for name in TEXTS}
    told_of_rows |= {name: (dim, np.zeros(len(rows), dtype=np.int64)) for name in COUNTS}
    for name, blank in told_of_rows.items():
        (coords if name in DESCRIPTIONS else variables)[name] = blank
    if dim == "step":
        for name, dtype in OF_STEPS.items():
            nothing = 0 if dtype is np.int64 else np.nan
            coords[name] = (dim, np.full(len(rows), nothing, dtype=dtype), {"units": units} if "stab" in name else {})
    coords["measure"] = np.array([column.label for column in columns], dtype=object)
    for name in ("long_name", "units", "kind", "formula", "options", "sharper"):
        told_of_column = ("measure", np.array([getattr(each, name) for each in columns], dtype=object))
        (variables if name == "options" else coords)[f"measure_{name}"] = told_of_column
    return label(xr.Dataset(variables, coords=coords, attrs=dict(attrs)))


def row_dim(table: xr.Dataset) -> str:
    """Name the dim of the rows: ``"model"``, or ``"step"`` for a training."""
    return next(dim for dim in SHARPNESS_ROWS if dim in table["value"].dims)


def columns_of(table: xr.Dataset) -> list[Column]:
    """Read the measures of a table."""
    names = ("long_name", "units", "kind", "formula", "options", "sharper")
    told = [table[f"measure_{name}"].values if f"measure_{name}" in table else None for name in names]
    return [
        Column(str(measure), *(str(values[place]) for values in told if values is not None))
        for place, measure in enumerate(table["measure"].values)
    ]


def is_begun(table: xr.Dataset) -> np.ndarray:
    """Tell, for each row, whether it has been measured: how it generalizes, and whose it is."""
    return np.array([str(value) != "" for value in table["theta_sha256"].values], dtype=bool)


def is_missing(table: xr.Dataset) -> np.ndarray:
    """Tell, for each row and measure, whether its value has yet to be computed."""
    return table["status"].values == STATUS["missing"]


def fill_row(table: xr.Dataset, place: int, record: Mapping[str, Any], examples: Mapping[str, np.ndarray]) -> None:
    """Write what is known of a row beside its measures; in place.

    Parameters
    ----------
    table : xr.Dataset
        From `empty_table`.
    place : int
        Which row.
    record : mapping
        Variable to its value.
    examples : mapping
        Variables of `PER_EXAMPLE` to their values, shape ``(n_examples,)``; of a table of models.
    """
    for name, value in record.items():
        table[name].values[place] = value
    _make_room(table, list(examples), max((len(values) for values in examples.values()), default=0))
    for name, values in examples.items():
        table[name].values[place, : len(values)] = values


def _make_room(table: xr.Dataset, names: Sequence[str], n_examples: int) -> None:
    """Give the values by example so many places, and these names a variable; in place."""
    known = {each: table[each] for each in PER_EXAMPLE if each in table}
    if set(names) <= set(known) and n_examples <= table.sizes.get("example", 0):
        return
    n_examples = max(n_examples, table.sizes.get("example", 0))
    for each in known:
        del table[each]
    for each in dict.fromkeys([*known, *names]):
        room = np.full((table.sizes["model"], n_examples), np.nan, dtype=np.float32)
        if each in known:
            room[:, : known[each].shape[1]] = known[each].values
        units = {"units": str(table["test_loss"].attrs["units"])} if "loss" in each else {}
        table[each] = (("model", "example"), room, units)
    label(table)


def has_one_test_set(table: xr.Dataset) -> bool:
    """Tell whether all rows that have been measured have the same test examples, and these by example."""
    tested = {str(value) for value in table["test_sha256"].values[is_begun(table)]}
    return len(tested) == 1 and "" not in tested


def to_file(table: xr.Dataset) -> xr.Dataset:
    """Name the values by example for a file: those of several test sets are not to be taken for those of one."""
    if has_one_test_set(table):
        return table
    return table.rename({name: mixed for name, mixed in MIXED.items() if name in (*table, *table.dims)})


def part_of(table: xr.Dataset, rows: Sequence[int], columns: Sequence[int]) -> xr.Dataset:
    """Take some rows and measures out of a table, with their values by example where they have one test set.

    Parameters
    ----------
    table : xr.Dataset
        From `empty_table`.
    rows, columns : sequence of int
        Their places.

    Returns
    -------
    xr.Dataset
        A copy.
    """
    part = table.isel({row_dim(table): list(rows), "measure": list(columns)})
    if "variables_sha256" in part and not any(part["variables_sha256"].values.ravel()):
        del part["variables_sha256"]
    if "example" not in part.dims:
        return part
    if not has_one_test_set(part):
        return part.drop_dims("example")
    return part.isel(example=slice(int(part["n_test_examples"].max())))


def fill_value(
    table: xr.Dataset, place: tuple[int, int], value: float, se: float, censored: bool, variables_sha256: str = ""
) -> None:
    """Write the value of a measure and mark it as computed; in place.

    Parameters
    ----------
    table : xr.Dataset
        From `empty_table`.
    place : (int, int)
        Row and measure.
    value, se : float
        The value and its standard error.
    censored : bool
        Whether the value is a bound at the end of the range that was searched.
    variables_sha256 : str
        Of the names of the parameters that it is of, where a function chose them.
    """
    for name, found in zip(SHARPNESS_VARIABLES, (value, se, censored, STATUS["computed"]), strict=True):
        table[name].values[place] = found
    if variables_sha256:
        if "variables_sha256" not in table:
            table["variables_sha256"] = _no_variables(table)
        table["variables_sha256"].values[place] = variables_sha256


def _no_variables(table: xr.Dataset) -> xr.Variable:
    told = {"long_name": "hash of the parameters that a function chose for a measure", "units": "1"}
    return xr.Variable(table["value"].dims, np.full(table["value"].shape, "", dtype=object), told)


def adopt_table(table: xr.Dataset, old: xr.Dataset) -> None:
    """Copy what an older table has of the rows and measures of `table`, which holds them all; in place.

    Parameters
    ----------
    table : xr.Dataset
        From `empty_table`.
    old : xr.Dataset
        Of the same kind of rows, maybe from `to_file`.
    """
    old = old.rename({mixed: name for name, mixed in MIXED.items() if mixed in (*old, *old.dims)})
    dim = row_dim(table)
    rows = places_of(table, dim, old[dim].values)
    columns = places_of(table, "measure", old["measure"].values)
    for name in SHARPNESS_VARIABLES:
        table[name].values[np.ix_(rows, columns)] = old[name].transpose(dim, "measure").values
    for name in (*NUMBERS, *TEXTS, *COUNTS, *(OF_STEPS if dim == "step" else ())):
        if name in old:
            table[name].values[rows] = old[name].values
    if "variables_sha256" in old:
        table["variables_sha256"] = _no_variables(table)
        table["variables_sha256"].values[np.ix_(rows, columns)] = old["variables_sha256"].transpose(dim, "measure")
    if present := [name for name in PER_EXAMPLE if name in old]:
        _make_room(table, present, old.sizes["example"])
        for name in present:
            table[name].values[rows] = old[name].transpose(dim, "example").values


def places_of(table: xr.Dataset, dim: str, names: Iterable[Any]) -> list[int]:
    """Find names, all of them there, on a dim of a table."""
    known = {name: place for place, name in enumerate(table[dim].values.tolist())}
    return [known[name] for name in np.asarray(names).tolist()]


def gaps(record: Mapping[str, float]) -> dict[str, float]:
    """Add the generalization gaps to what was measured on train and test.

    Parameters
    ----------
    record : mapping
        ``train_loss``, ``test_loss``, ``train_error``, ``test_error`` and their ``*_se``; what is absent is NaN.

    Returns
    -------
    dict
        All of `NUMBERS`.
    """
    found = {name: float(record.get(name, math.nan)) for name in NUMBERS}
    for name in ("loss", "error"):
        found[f"{name}_gap"] = found[f"test_{name}"] - found[f"train_{name}"]
        found[f"{name}_gap_se"] = math.hypot(found[f"test_{name}_se"], found[f"train_{name}_se"])
    return found


def read_attributes(attributes: Mapping[str, Any] | None, rows: Sequence[str | int]) -> dict[str, dict[Any, Any]]:
    """Read the attributes of rows in any of the accepted forms.

    Parameters
    ----------
    attributes : mapping, optional
        ``{row: {attribute: value}}``, or ``{attribute: {row: value}}``, or ``{attribute: [a value for each row]}``.
    rows : sequence
        The rows that there are.

    Returns
    -------
    dict
        ``{attribute: {row: value}}``.

    Raises
    ------
    ValueError
        For a row that is not there, a sequence of another length, or a name that the table needs for something else.
    """
    given = dict(attributes or {})
    if given and set(given) <= set(rows) and all(isinstance(value, Mapping) for value in given.values()):
        names = dict.fromkeys(name for told in given.values() for name in told)
        given = {name: {row: told[name] for row, told in given.items() if name in told} for name in names}
    reserved = {*NUMBERS, *TEXTS, *COUNTS, *OF_STEPS, *SHARPNESS_VARIABLES, *PER_EXAMPLE, *SHARPNESS_ROWS, "example"}
    reserved |= {"variables_sha256", *MIXED.values()}
    found: dict[str, dict[Any, Any]] = {}
    for name, values in given.items():
        if name in reserved or str(name).startswith("measure"):
            raise ValueError(f"attributes: {name!r} is something else in this table already. Give it another name.")
        if isinstance(values, Mapping):
            if unknown := [row for row in values if row not in set(rows)]:
                raise ValueError(
                    f"attributes: {unknown[0]!r} (of {name!r}) is none of the models {_some(rows)}."
                    f"{did_you_mean(unknown[0], rows)}"
                )
            found[str(name)] = dict(values)
            continue
        if isinstance(values, str) or not hasattr(values, "__len__") or len(values) != len(rows):
            raise ValueError(
                f"attributes: {name!r} is {values!r}; give {{name: value}}, or {len(rows)} values in the order of the "
                f"models {_some(rows)}."
            )
        found[str(name)] = dict(zip(rows, values, strict=True))
    return found


def add_attributes(table: xr.Dataset, attributes: Mapping[str, Mapping[Any, Any]], old: xr.Dataset | None) -> None:
    """Make attributes coordinates of the rows, beside those that an older table has; in place.

    Parameters
    ----------
    table : xr.Dataset
        From `empty_table`.
    attributes : mapping
        From `read_attributes`; they go before what `old` says.
    old : xr.Dataset, optional
        A table of some of the rows.
    """
    dim = row_dim(table)
    known: dict[str, dict[Any, Any]] = {}
    if old is not None:
        rows = old[dim].values.tolist()
        for name in old.coords:
            if name not in table.variables and old[name].dims == (dim,):
                known[str(name)] = dict(zip(rows, old[name].values.tolist(), strict=True))
    for name, values in attributes.items():
        known[name] = known.get(name, {}) | dict(values)
    for name, values in known.items():
        column = _as_column([values.get(row) for row in table[dim].values.tolist()])
        table.coords[name] = (dim, column)
    label(table)


def _as_column(values: Sequence[Any]) -> np.ndarray:
    """Give values, None where there is none, the narrowest type that holds them: whole numbers, numbers or texts."""
    values = [value.item() if isinstance(value, np.generic) else value for value in values]
    present = [value for value in values if value is not None and value != ""]
    if present and all(isinstance(value, bool) for value in present) and len(present) == len(values):
        return np.array(values, dtype=bool)
    if present and all(isinstance(value, int | float) and not isinstance(value, bool) for value in present):
        whole = len(present) == len(values) and all(isinstance(value, int) for value in present)
        return np.array(
            [math.nan if value in (None, "") else value for value in values], dtype=np.int64 if whole else float
        )
    return np.array(["" if value is None else str(value) for value in values], dtype=object)


def _some(rows: Iterable[Any]) -> str:
    names = [str(row) for row in rows]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
