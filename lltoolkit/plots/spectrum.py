"""The density of a Hessian's eigenvalues on a log axis, with its band over probes and both extremes. Torch-free."""

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from matplotlib.ticker import SymmetricalLogLocator

from lltoolkit.errors import require_choice
from lltoolkit.plots.field import label_of
from lltoolkit.plots.path_loss import fit_columns
from lltoolkit.plots.scale import number
from lltoolkit.plots.style import BLUE, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SCALES = ("linear", "symlog")
_NEEDED = {"density": ("eigenvalue",), "ritz_value": ("probe", "node")}
_CURVE = "lltoolkit:density"
_DECADES = 9  # below the top, where the number of weights is not told


def plot_spectrum(
    spectrum: xr.Dataset,
    *,
    xscale: str = "linear",
    nodes: bool = True,
    name: str | None = None,
    color: str | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    r"""Draw the spectral density of a Hessian.

    Parameters
    ----------
    spectrum : xr.Dataset
        From `hessian_spectrum`: ``density`` with ``density_low`` and ``density_high`` over ``eigenvalue``, and
        ``ritz_value`` (probe, node).
    xscale : {"linear", "symlog"}
        ``"symlog"`` is log outside of one bandwidth around 0: for a bulk beside outliers that are far away.
    nodes : bool
        Draw the Lanczos nodes of all probes as ticks at the bottom: where the curve has something to stand on.
    name : str, optional
        Put before the legend entry, for several spectra on one `ax`.
    color : str, optional
        Of the curve; default blue.
    ax : Axes, optional
        Where to draw; by default in a new pyplot figure.

    Returns
    -------
    Axes
        The density is on a log axis whose bottom is a tenth of what a single eigenvalue gives, smoothed by the
        bandwidth, which the legend tells as sigma. Dashed lines are the smallest and the largest Ritz value.

    Raises
    ------
    TypeError
        If `spectrum` is no Dataset.
    ValueError
        If it is no spectrum, holds several, or `xscale` is unknown.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> spectrum = xr.Dataset(
    ...     {"density": ("eigenvalue", [0.01, 1.0, 0.01]), "ritz_value": (("probe", "node"), [[-1.0, 0.0, 2.0]])},
    ...     coords={"eigenvalue": ("eigenvalue", [-1.0, 0.0, 2.0], {"units": "nat"})},
    ... )
    >>> ax = plot_spectrum(spectrum, ax=Figure().subplots())
    >>> ax.get_xlabel(), ax.get_yscale()
    ('eigenvalue [nat]', 'log')
    """
    require_choice("xscale", xscale, _SCALES)
    _require(spectrum)
    ax = new_axes() if ax is None else ax
    color = color or BLUE
    points, density = spectrum["eigenvalue"].values, spectrum["density"].values
    ritz = spectrum["ritz_value"].values
    low = float(spectrum.attrs.get("eig_min", np.nanmin(ritz)))
    high = float(spectrum.attrs.get("eig_max", np.nanmax(ritz)))
    bandwidth = float(spectrum.attrs.get("bandwidth", 0.0))

    ax.set_yscale("log", nonpositive="clip")
    if xscale == "symlog" and ax.get_xscale() != "symlog":  # the first of several decides where it is linear
        linear = bandwidth or 1e-3 * max(abs(low), abs(high)) or 1.0
        ax.set_xscale("symlog", linthresh=linear)
        ax.xaxis.set_major_locator(_OuterLocator(base=10, linthresh=linear))
    bottom = _bottom(density, bandwidth, int(spectrum.attrs.get("n_weights", 0)))
    ax.plot(points, density, color=color, gid=_CURVE, label=_entry(name, bandwidth, spectrum.sizes["probe"]))
    if {"density_low", "density_high"} <= set(spectrum) and spectrum["density_high"].notnull().any():
        # A log axis has no 0, which the lower end is where probes differ, and both are far from all nodes.
        band = [np.maximum(spectrum[f"density_{end}"].values, bottom / 10) for end in ("low", "high")]
        ax.fill_between(points, *band, color=color, alpha=0.2, linewidth=0, label="_band")
    for place, value in enumerate((low, high)):
        sign = r"\min" if place == 0 else r"\max"
        text = " ".join(filter(None, [name, rf"$\lambda_{{{sign}}}$ = {_signed(value)}"]))
        ax.axvline(value, color=color, ls=(0, (4, 2)) if place else (0, (1, 1.5)), lw=0.9, label=text)
    if nodes:
        some = ritz[np.isfinite(ritz)]
        rail = np.full(some.size, 0.018)
        ax.plot(some, rail, "|", c=color, ms=4, mew=0.5, alpha=0.5, transform=ax.get_xaxis_transform(), label="_nodes")
    _set_limits(ax, bottom)
    ax.set_xlabel(label_of(spectrum["eigenvalue"]))
    ax.set_ylabel(re.sub(r"1 / \((\w+)\)", r"1/\1", label_of(spectrum["density"])))
    n_drawn = len(_curves(ax))  # one row of three entries, or one column for each spectrum
    where: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "borderaxespad": 0.2}
    labels = [text for text in ax.get_legend_handles_labels()[1] if not text.startswith("_")]
    plain = [re.sub(r"[$\\{}]", "", text) for text in labels]  # mathtext is shorter than its source
    ax.legend(ncols=fit_columns(ax, plain, 3) if n_drawn == 1 else n_drawn, frameon=False, fontsize="small", **where)
    return ax


class _OuterLocator(SymmetricalLogLocator):
    """Ticks where the scale is logarithmic, and 0: within the narrow linear part their numbers would overlap."""

    def tick_values(self, vmin: float, vmax: float) -> np.ndarray:
        """Choose them between two limits."""
        values = np.asarray(super().tick_values(vmin, vmax))
        return values[(values == 0) | (np.abs(values) > self._linthresh)]


def _require(spectrum: xr.Dataset) -> None:
    if not isinstance(spectrum, xr.Dataset):
        raise TypeError(
            f"spectrum is a {type(spectrum).__name__}, not an xarray.Dataset; make one with hessian_spectrum, or open "
            "a file with lltoolkit.open_result(path)."
        )
    for name, dims in _NEEDED.items():
        if name not in spectrum:
            have = ", ".join(map(str, spectrum.data_vars)) or "nothing"
            kind = spectrum.attrs.get("kind", "Dataset")
            raise ValueError(
                f"this {kind} has no variable {name!r}, but {have}; plot_spectrum draws what hessian_spectrum returns."
            )
        if more := [str(dim) for dim in spectrum[name].dims if dim not in dims]:
            raise ValueError(f"{name!r} also runs over {', '.join(more)}; choose one with spectrum.isel({more[0]}=0).")


def _bottom(density: np.ndarray, bandwidth: float, n_weights: int) -> float:
    """Return where the axis ends: below the height of one eigenvalue among all, since less is the kernel's own tail."""
    top = float(np.nanmax(density))
    if n_weights > 0 and bandwidth > 0:
        single = 1 / (n_weights * bandwidth * np.sqrt(2 * np.pi))
        return min(single / 10, top / 100)
    return top * 10.0**-_DECADES


def _set_limits(ax: "Axes", bottom: float) -> None:
    """Fit the density's axis, to all spectra that share it."""
    drawn = _curves(ax)
    if len(drawn) > 1:
        bottom = min(bottom, ax.get_ylim()[0])
    ax.set_ylim(bottom, 3 * max(float(np.nanmax(values)) for values in drawn))
    ax.margins(x=0.02)


def _curves(ax: "Axes") -> list[np.ndarray]:
    return [np.asarray(line.get_ydata()) for line in ax.get_lines() if line.get_gid() == _CURVE]


def _signed(value: float) -> str:
    return number(value).replace("-", "\N{MINUS SIGN}")


def _entry(name: str | None, bandwidth: float, n_probes: int) -> str:
    probes = f"{n_probes} probe{'s' if n_probes > 1 else ''}"
    width = rf", $\sigma$ = {number(bandwidth)}" if bandwidth > 0 else ""
    return " ".join(filter(None, [name, f"density ({probes}{width})"]))
