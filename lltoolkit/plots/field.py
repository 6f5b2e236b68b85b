"""One variable of a surface on one plane, ready to draw: its values, the cells that have none, its name. Torch-free."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from lltoolkit.errors import did_you_mean
from lltoolkit.labelled.schema import AXES, STATUS, axes_of


@dataclass(frozen=True)
class Field:
    """What a picture of a plane shows.

    Attributes
    ----------
    axes : tuple of str
        The two axes, for example ``("alpha", "beta")``.
    first, second : ndarray
        Their coordinates, shapes ``(n,)`` and ``(m,)``, ascending.
    values : ndarray
        Shape ``(n, m)``, float64, as stored: NaN and inf included.
    missing : ndarray of bool
        Shape ``(n, m)``: cells that nobody has computed yet.
    label : str
        The name with its units, for example ``"train loss [nat]"``.
    is_loss : bool
        Whether a log scale is its natural one.
    interpolated, estimated : ndarray of bool
        Shape ``(n, m)``: cells whose value was not computed on all examples, but filled in from those around them, or
        estimated from a sample.
    at : str
        Where the plane cuts the other axes, if not at 0: ``"gamma = 0.5"``; it then misses the minimizer. Else empty.
    """

    axes: tuple[str, str]
    first: np.ndarray
    second: np.ndarray
    values: np.ndarray
    missing: np.ndarray
    label: str
    is_loss: bool
    interpolated: np.ndarray
    estimated: np.ndarray
    at: str = ""

    @property
    def nonfinite(self) -> np.ndarray:
        """Cells that were computed and gave NaN or inf, shape ``(n, m)``."""
        return ~np.isfinite(self.values) & ~self.missing

    @property
    def drawn(self) -> np.ndarray:
        """Cells with a finite value, shape ``(n, m)``."""
        return np.isfinite(self.values) & ~self.missing

    @property
    def finite(self) -> np.ndarray:
        """The finite values, shape ``(k,)``."""
        return self.values[self.drawn]


def pick_plane(surface: xr.Dataset, var: str, split: str | None) -> Field:
    """Take one variable of one split of a two-dimensional surface.

    Parameters
    ----------
    surface : xr.Dataset
        With two of the axes alpha, beta, gamma. Coordinates may descend or be uneven.
    var : str
        ``"loss"``, ``"accuracy"`` or any variable on the two axes.
    split : str or None
        ``"train"``, ``"test"``; passed over where `var` has no dim ``split``.

    Returns
    -------
    Field
        With ascending coordinates.

    Raises
    ------
    ValueError
        If `surface` has not exactly two axes, more dims than these, a coordinate twice, or lacks `var` or `split`.
    """
    array = pick_variable(surface, var, split)
    axes = axes_of(surface)
    if surface.attrs.get("kind", "surface") != "surface" and not axes:
        raise ValueError(f"this is a {surface.attrs['kind']}, not a surface; open a file NAME.surface.nc.")
    if len(axes) != 2:
        raise ValueError(
            f"this surface runs over {', '.join(axes) or 'no axis'}; a picture of a plane takes two axes. "
            + (
                f"Choose a plane first: surface.sel({axes[-1]}=0, method='nearest')."
                if len(axes) == 3
                else "Draw a line with plot_slice(surface)."
            )
        )
    require_no_more_dims(array, axes)
    # Ascending order once, here: contour, splines and cell edges all want it, and the picture must not
    # depend on the order in which somebody gave the grid.
    array = array.sortby(list(axes)).transpose(*axes)
    for axis in axes:
        points = array[axis].values
        if (twice := points[1:][points[1:] == points[:-1]]).size:
            raise ValueError(
                f"{axis} = {twice[0]:.6g} stands twice in this surface; keep one: surface.drop_duplicates({axis!r})."
            )
    status = _status(surface.sortby(list(axes)), axes)
    cuts = {axis: float(array[axis]) for axis in AXES if axis in array.coords and not array[axis].dims}
    at = ", ".join(f"{axis_label(axis)} = {value:.3g}" for axis, value in cuts.items() if value)
    return Field(
        axes=(axes[0], axes[1]),
        first=array[axes[0]].values.astype(np.float64),
        second=array[axes[1]].values.astype(np.float64),
        values=array.values.astype(np.float64),
        missing=status == STATUS["missing"],
        label=", ".join(filter(None, [label_of(array), at])),
        is_loss="loss" in var,
        interpolated=status == STATUS["interpolated"],
        estimated=status == STATUS["estimated"],
        at=at,
    )


def pick_variable(surface: xr.Dataset, var: str, split: str | None) -> xr.DataArray:
    """Take a variable, of one split where it has several.

    Returns
    -------
    xr.DataArray
        Without the dim ``split`` unless `split` is None.

    Raises
    ------
    TypeError
        If `surface` is no Dataset.
    ValueError
        If there is no such variable or split; near names are told.
    """
    if not isinstance(surface, xr.Dataset):
        raise TypeError(
            f"surface is a {type(surface).__name__}, not an xarray.Dataset. "
            "Open a file with lltoolkit.open_result(path)."
        )
    if var not in surface.data_vars:
        raise ValueError(f"var={var!r} is not in this surface, which has {_listed(surface.data_vars)}."
                         f"{did_you_mean(var, map(str, surface.data_vars))}")  # fmt: skip
    array = surface[var]
    if split is None or "split" not in array.dims:
        return array
    present = [str(name) for name in array["split"].values]
    if split not in present:
        raise ValueError(
            f"split={split!r} is not in this surface, which has {_listed(present)}.{did_you_mean(split, present)}"
        )
    return array.isel(split=present.index(split))


def require_no_more_dims(array: xr.DataArray, dims: Iterable[Hashable]) -> None:
    """Raise unless `array` runs over `dims` alone.

    Raises
    ------
    ValueError
        Naming the other dims and how to choose along one.
    """
    if more := [str(dim) for dim in array.dims if dim not in set(dims)]:
        raise ValueError(
            f"{array.name!r} also runs over {_listed(more)} (sizes {dict(array.sizes)}). Choose one first: "
            f"surface.isel({more[0]}=0)."
        )


def _status(surface: xr.Dataset, axes: tuple[str, ...]) -> np.ndarray:
    """Return the origin of each cell's value, computed where the surface does not tell."""
    if "status" not in surface or set(surface["status"].dims) != set(axes):
        return np.full([surface.sizes[axis] for axis in axes], STATUS["computed"])
    return surface["status"].transpose(*axes).values


def tell_filled(fields: Sequence[Field]) -> str:
    """Count the cells whose values were not computed on all examples.

    Parameters
    ----------
    fields : sequence of Field
        All that one label speaks of.

    Returns
    -------
    str
        For example ``"480 of 961 cells interpolated (dots)"``; empty where all were computed.
    """
    total = sum(field.values.size for field in fields)
    counts = {word: sum(int(getattr(field, word).sum()) for field in fields) for word in ("interpolated", "estimated")}
    told = {word: count for word, count in counts.items() if count}
    if len(told) == 1:
        ((word, count),) = told.items()
        return f"{count} of {total} cells {word} (dots)"
    return f"{' and '.join(f'{count} {word}' for word, count in told.items())} of {total} cells (dots)" if told else ""


def label_of(array: xr.DataArray) -> str:
    """Name a variable by its ``long_name`` and ``units``.

    Returns
    -------
    str
        With the split, where one was chosen; units in brackets unless the number has none.

    Examples
    --------
    >>> import xarray as xr
    >>> label_of(xr.DataArray(0.0, {"split": "train"}, name="loss", attrs={"units": "nat"}))
    'train loss [nat]'
    """
    name = str(array.attrs.get("long_name", array.name)).replace("_", " ")
    if "split" in array.coords and not array["split"].dims:
        name = f"{array['split'].item()} {name}"
    units = str(array.attrs.get("units", "1"))
    return name if units in {"", "1", "none"} else f"{name} [{units}]"


def count_cells(cells: np.ndarray) -> str:
    """Say how many cells of a mask are set.

    Returns
    -------
    str
        The count with its noun.

    Examples
    --------
    >>> count_cells(np.array([True, False])), count_cells(np.ones((2, 2), dtype=bool))
    ('1 cell', '4 cells')
    """
    count = int(np.count_nonzero(cells))
    return f"{count} cell" if count == 1 else f"{count} cells"


def axis_label(axis: str) -> str:
    r"""Give an axis of a subspace its Greek letter, as mathtext.

    Returns
    -------
    str
        For a label of matplotlib.

    Examples
    --------
    >>> axis_label("alpha")
    '$\\alpha$'
    """
    return f"$\\{axis}$"


def _listed(names: Iterable[object]) -> str:
    return ", ".join(map(str, names)) or "nothing"
