"""A sharpness table as a set of models: which measures and targets are asked for, who agrees in what. Torch-free."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from lltoolkit.errors import did_you_mean, require_choice

TARGETS = ("loss_gap", "error_gap", "test_loss", "test_error")


def choose(
    table: xr.Dataset, against: str | Sequence[str], measures: str | Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Check a table and the names of what is wanted of it.

    Parameters
    ----------
    table : xr.Dataset
        From `compute_sharpness`, with ``value`` (model, measure) of two models or more.
    against : str or sequence of str
        Of `TARGETS`.
    measures : str or sequence of str, optional
        Default: all of the table.

    Returns
    -------
    (list of str, list of str)
        The targets and the measures.

    Raises
    ------
    TypeError
        If `table` is no Dataset.
    ValueError
        If it holds fewer than two models or no such value, or a name is unknown.
    """
    if not isinstance(table, xr.Dataset):
        raise TypeError(f"table is a {type(table).__name__}, not an xarray.Dataset; make one with compute_sharpness.")
    if "value" not in table or not {"model", "measure"} <= set(table["value"].dims):
        have = ", ".join(f"{name} {array.dims}" for name, array in table.data_vars.items()) or "nothing"
        raise ValueError(
            f"table has no variable value (model, measure), but {have}. A rank correlation needs several models: "
            "compute_sharpness({'name': objective, ...})."
        )
    if more := set(table["value"].dims) - {"model", "measure"}:
        raise ValueError(f"value also runs over {', '.join(map(str, more))}; choose one first with table.isel.")
    if (n_models := table.sizes["model"]) < 2:
        raise ValueError(
            f"table has {n_models} {'model' if n_models == 1 else 'models'}; a rank correlation takes 2 or more, and "
            "means little below 5."
        )
    targets = [against] if isinstance(against, str) else list(against)
    present = [str(name) for name in table["measure"].values]
    names = present if measures is None else [measures] if isinstance(measures, str) else list(measures)
    if not targets or not names:
        raise ValueError(f"{'measures' if targets else 'against'} is empty; name one or more.")
    for target in targets:
        require_choice("against", target, TARGETS)
        if target not in table.coords:
            have = ", ".join(name for name in TARGETS if name in table.coords) or "none of its kind"
            raise ValueError(f"against={target!r} is no coordinate of this table, which has {have}.")
    for name in names:
        if name not in present:
            raise ValueError(
                f"measures={name!r} is not in this table, which has {', '.join(present)}.{did_you_mean(name, present)}"
            )
    return targets, names


def labels_of(table: xr.Dataset, names: str | Sequence[str], argument: str) -> np.ndarray:
    """Label each model by its values of some coordinates.

    Parameters
    ----------
    table : xr.Dataset
        From `compute_sharpness`.
    names : str or sequence of str
        Coordinates on the dim ``model``.
    argument : str
        What the user calls them, for an error.

    Returns
    -------
    ndarray of str
        Shape ``(n_models,)``; models with one label agree in all of the coordinates. Empty for a model that lacks one
        of them (an empty text or NaN).

    Raises
    ------
    ValueError
        If there is no such coordinate.

    Examples
    --------
    >>> table = xr.Dataset(coords={"lr": ("model", [0.1, 0.2]), "seed": ("model", [0, 0])})
    >>> labels_of(table, ["lr", "seed"], "group").tolist()
    ['lr=0.1, seed=0', 'lr=0.2, seed=0']
    """
    columns = []
    for name in [names] if isinstance(names, str) else list(names):
        values = _coordinate(table, name, argument).values
        columns.append([None if _is_blank(value) else f"{name}={value}" for value in values])
    if not columns:
        raise ValueError(f"{argument} is empty; name one coordinate or more, or leave it out.")
    return np.array(["" if None in row else ", ".join(row) for row in zip(*columns, strict=True)])


def numbers_of(table: xr.Dataset, name: str, argument: str) -> np.ndarray:
    """Take a coordinate of the models that can be ranked.

    Parameters
    ----------
    table : xr.Dataset
        From `compute_sharpness`.
    name : str
        A coordinate on the dim ``model``.
    argument : str
        What the user calls it, for an error.

    Returns
    -------
    ndarray
        Shape ``(n_models,)``, float64.

    Raises
    ------
    ValueError
        If there is no such coordinate or it holds words.
    """
    values = _coordinate(table, name, argument).values
    try:
        return values.astype(np.float64)
    except ValueError as error:
        raise ValueError(f"{argument}={name!r} holds words, which have no order; use it as group= instead.") from error


def signs_of(value: xr.DataArray) -> np.ndarray:
    """Say which measures are high where it is sharp.

    Parameters
    ----------
    value : xr.DataArray
        With the dim ``measure`` of size m, and maybe a coordinate ``measure_sharper`` on it.

    Returns
    -------
    ndarray
        Shape ``(m,)``: -1 where ``measure_sharper`` is ``"lower"``, as for a radius, and 1 elsewhere.
    """
    if "measure_sharper" not in value.coords:
        return np.ones(value.sizes["measure"])
    return np.where(value["measure_sharper"].values == "lower", -1.0, 1.0)


def _is_blank(value: object) -> bool:
    return value == "" or (isinstance(value, float) and np.isnan(value))


def _coordinate(table: xr.Dataset, name: str, argument: str) -> xr.DataArray:
    if name == "model" and "model" not in table.coords:
        return table["model"]  # xarray counts them
    present = [str(key) for key, array in table.coords.items() if array.dims == ("model",)]
    if name not in present:
        raise ValueError(
            f"{argument}={name!r} is no coordinate of the models, which have {', '.join(present) or 'none'}."
            f"{did_you_mean(name, present)}"
        )
    return table[name]
