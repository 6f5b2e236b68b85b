"""Spectral densities as Datasets: from the nodes and weights of Gauss's quadratures to a curve. Torch-free."""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from scipy import stats

from lltoolkit.labelled.schema import label

BANDWIDTH = 0.01  # of the width of the spectrum: a kernel that wide shows the bulk as one and outliers as peaks
POINTS = 1001
MARGIN = 4.0  # bandwidths beyond the extreme nodes


def empty_spectrum(n_probes: int, n_steps: int, *, units: str, attrs: Mapping[str, str | int | float]) -> xr.Dataset:
    """Lay out a spectrum that no probe has been run of.

    Parameters
    ----------
    n_probes, n_steps : int
        Random vectors, and Lanczos steps from each.
    units : str
        Of an eigenvalue.
    attrs : mapping
        Attributes of the Dataset.

    Returns
    -------
    xr.Dataset
        ``ritz_value`` and ``ritz_weight`` (probe, node) float64, NaN.
    """
    nothing = np.full((n_probes, n_steps), np.nan)
    return label(
        xr.Dataset(
            {
                "ritz_value": (("probe", "node"), nothing.copy(), {"units": units}),
                "ritz_weight": (("probe", "node"), nothing.copy()),
            },
            coords={"probe": np.arange(n_probes), "node": np.arange(n_steps)},
            attrs=dict(attrs),
        )
    )


def require_bandwidth(bandwidth: float | None) -> None:
    """Check a bandwidth before anything is spent on it.

    Raises
    ------
    ValueError
        If it is not above 0.
    """
    if bandwidth is not None and (isinstance(bandwidth, bool | str) or not 0 < bandwidth < np.inf):
        raise ValueError(f"bandwidth={bandwidth!r}: give a number above 0, in units of the eigenvalues, or None.")


def add_density(spectrum: xr.Dataset, bandwidth: float | None = None, n_points: int = POINTS) -> xr.Dataset:
    """Smooth the nodes of all probes to a density.

    Parameters
    ----------
    spectrum : xr.Dataset
        With ``ritz_value`` and ``ritz_weight`` (probe, node); NaN where a probe ended before its last step.
    bandwidth : float, optional
        Standard deviation of the Gaussian kernel, in units of the eigenvalues; by default 1 % of the width of the
        spectrum.
    n_points : int
        Of the curve.

    Returns
    -------
    xr.Dataset
        A new one with ``density``, ``density_low`` and ``density_high`` over ``eigenvalue``: the mean over probes and
        its pointwise 95 % interval (Student's t; NaN for a single probe; not below 0), all in 1 / units; the integral
        of the density is 1. ``eig_min``, ``eig_max``, ``bandwidth``, ``trace`` and ``trace_se`` stand in the
        attributes.

    Raises
    ------
    ValueError
        If `bandwidth` is not above 0.

    References
    ----------
    Ghorbani, Krishnan and Xiao (2019), An investigation into neural net optimization via Hessian eigenvalue density.
    """
    require_bandwidth(bandwidth)
    nodes, weights = spectrum["ritz_value"].values, spectrum["ritz_weight"].values
    low, high = float(np.nanmin(nodes)), float(np.nanmax(nodes))
    # A spectrum without width, of a quadratic in one variable for example, is drawn as a bump of some width.
    bandwidth = bandwidth or BANDWIDTH * (high - low) or BANDWIDTH * max(abs(high), 1e-12)
    curve = np.linspace(low - MARGIN * bandwidth, high + MARGIN * bandwidth, n_points)
    densities = []
    for place, share in zip(nodes, weights, strict=True):
        there = np.isfinite(place)
        kernels = stats.norm.pdf(curve[:, None], loc=place[None, there], scale=bandwidth)
        densities.append(kernels @ share[there])
    density = np.mean(densities, axis=0)
    n_probes = len(densities)
    if n_probes > 1:
        half = stats.t.ppf(0.975, n_probes - 1) * np.std(densities, axis=0, ddof=1) / np.sqrt(n_probes)
    else:
        half = np.full_like(density, np.nan)
    units = str(spectrum["ritz_value"].attrs.get("units", "1"))
    per = "1" if units == "1" else f"1 / ({units})"
    added = spectrum.drop_dims("eigenvalue", errors="ignore").assign_coords(
        eigenvalue=("eigenvalue", curve, {"units": units})
    )
    added = added.assign(
        density=("eigenvalue", density, {"units": per}),
        density_low=("eigenvalue", np.maximum(density - half, 0.0), {"units": per}),
        density_high=("eigenvalue", density + half, {"units": per}),
    )
    n_weights = int(spectrum.attrs["n_weights"])
    traces = n_weights * np.nansum(nodes * weights, axis=1)
    added.attrs |= {
        "eig_min": low,
        "eig_max": high,
        "bandwidth": float(bandwidth),
        "trace": float(traces.mean()),
        "trace_se": float(traces.std(ddof=1) / np.sqrt(n_probes)) if n_probes > 1 else float("nan"),
    }
    return label(added)
