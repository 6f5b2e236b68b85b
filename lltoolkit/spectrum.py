"""``hessian_spectrum``: the density of all eigenvalues, by stochastic Lanczos quadrature."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from lltoolkit.errors import ResumeMismatch, SchemaError, require_whole
from lltoolkit.identity import describe_objective
from lltoolkit.labelled.spectrum import add_density, empty_spectrum
from lltoolkit.store import open_result, require_writable, save_result
from lltoolkit.tensors.hessian import Hessian
from lltoolkit.tensors.lanczos import tridiagonalize
from lltoolkit.tensors.objective import Objective
from lltoolkit.tensors.params import ParameterFilter
from lltoolkit.tensors.seeds import generator

SAME = ("theta_sha256", "data_sha256", "config_sha256")


def hessian_spectrum(
    objective: Objective,
    *,
    split: str | None = None,
    parameters: ParameterFilter = None,
    metric: Literal["euclidean", "filter"] = "euclidean",
    n_probes: int = 8,
    n_steps: int = 64,
    bandwidth: float | None = None,
    seed: int = 0,
    path: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
) -> xr.Dataset:
    """Estimate the density of the Hessian's eigenvalues at the minimizer.

    Stochastic Lanczos quadrature: each random probe sees the spectrum through Gauss's quadrature for its own spectral
    measure, whose nodes and weights come from some Lanczos steps; the mean over probes estimates the density. The
    Lanczos process is reorthogonalized in full, so no eigenvalue shows twice.

    Parameters
    ----------
    objective : Objective
        Whose minimizer and loss.
    split : str, optional
        Of the data; by default the first.
    parameters, metric
        Which weights are variables, and the metric: see `tensors.hessian.Hessian`.
    n_probes : int
        Random vectors (Gaussian); the interval is over them.
    n_steps : int
        Hessian-vector products for each: moments up to ``2 * n_steps - 1`` are exact for the probe.
    bandwidth : float, optional
        Of the Gaussian that nodes are smoothed by, in units of the eigenvalues; default 1 % of the spectrum's width.
        It can be changed afterwards without new products: `labelled.spectrum.add_density`.
    seed : int
        Of the probes.
    path : str or Path, optional
        Keep the result there, as a rule ``<name>.spectrum.nc``; written after every probe.
    resume : bool
        Go on from what is in `path`, with more probes too.
    progress : bool
        Show a progress bar.

    Returns
    -------
    xr.Dataset
        ::

            density, density_low, density_high  (eigenvalue)   mean over probes and its 95 % interval; integrates to 1
            ritz_value, ritz_weight             (probe, node)  of the quadratures

        with the extreme Ritz values ``eig_min`` and ``eig_max``, the ``trace`` and its standard error as attributes.

    Raises
    ------
    ValueError
        For unknown options, if the loss is not finite or can't be differentiated twice.
    ResumeMismatch
        If `path` holds another spectrum.

    References
    ----------
    Ghorbani, Krishnan and Xiao (2019), An investigation into neural net optimization via Hessian eigenvalue density;
    Ubaru, Chen and Saad (2017), Fast estimation of tr(f(A)) via stochastic Lanczos quadrature.

    Examples
    --------
    >>> import lltoolkit as ll
    >>> objective = ll.Objective(torch.nn.Linear(2, 2), (torch.eye(2), torch.tensor([0, 1])))
    >>> spectrum = ll.hessian_spectrum(objective, n_probes=2, progress=False)
    >>> sorted(spectrum.data_vars)
    ['density', 'density_high', 'density_low', 'ritz_value', 'ritz_weight']
    """
    n_probes = require_whole("n_probes", n_probes, least=1)
    seed = require_whole("seed", seed)
    hessian = Hessian(objective, split=split, parameters=parameters, metric=metric)
    n_steps = min(require_whole("n_steps", n_steps, least=2), hessian.n)
    config = {
        **objective.config,
        "split": hessian.split,
        "hessian_parameters": "all" if parameters is None else str(getattr(parameters, "__qualname__", parameters)),
        "metric": metric,
        "n_steps": n_steps,
        "seed": seed,
    }
    attrs = describe_objective("spectrum", objective, config) | {
        "split": hessian.split,
        "parameters": str(config["hessian_parameters"]),
        "metric": metric,
        "n_weights": hessian.n,
        "seed": seed,
    }
    spectrum = empty_spectrum(n_probes, n_steps, units=objective.units, attrs=attrs)
    if path is not None:
        path = require_writable(path, 10**6)
        if resume and path.exists():
            _adopt(spectrum, open_result(path), path)
    nodes, weights = spectrum["ritz_value"].values, spectrum["ritz_weight"].values
    todo = [probe for probe in range(n_probes) if np.isnan(nodes[probe]).all()]
    if todo:
        with (
            tqdm(total=len(todo) * n_steps, unit="product", disable=not progress, desc="spectrum") as bar,
            hessian.at() as point,
        ):

            def product(vector: torch.Tensor) -> torch.Tensor:
                bar.update()
                return point(vector)

            for probe in todo:
                draw = torch.randn(hessian.n, generator=generator("spectrum", seed, probe), dtype=torch.float32)
                diagonal, off_diagonal = tridiagonalize(product, draw.to(hessian.device, hessian.dtype), n_steps)
                matrix = np.diag(diagonal) + np.diag(off_diagonal, 1) + np.diag(off_diagonal, -1)
                values, vectors = np.linalg.eigh(matrix)
                nodes[probe, : len(values)] = values
                weights[probe, : len(values)] = vectors[0] ** 2
                if path is not None:
                    known = spectrum.isel(probe=np.flatnonzero(np.isfinite(nodes).any(axis=1)))
                    save_result(add_density(known, bandwidth), path)
    spectrum = add_density(spectrum, bandwidth)
    if path is not None:
        save_result(spectrum, path)
    return spectrum


def _adopt(spectrum: xr.Dataset, stored: xr.Dataset, path: Path) -> None:
    """Take over the probes of an older file; in place."""
    if stored.attrs["kind"] != "spectrum":
        raise ResumeMismatch(f"{path} holds a {stored.attrs['kind']}, not a spectrum. Use another path.")
    differing = [name for name in SAME if stored.attrs.get(name) != spectrum.attrs[name]]
    if differing:
        raise ResumeMismatch(
            f"{path} is the spectrum of something else: it differs in {', '.join(differing)}; it has the configuration "
            f"{stored.attrs['config']}. Use another path, or resume=False to replace it."
        )
    if stored.sizes["node"] != spectrum.sizes["node"]:
        raise SchemaError(f"{path} has {stored.sizes['node']} nodes for each probe, not {spectrum.sizes['node']}.")
    there = [probe for probe in stored["probe"].values if probe < spectrum.sizes["probe"]]
    for name in ("ritz_value", "ritz_weight"):
        spectrum[name].values[there] = stored[name].sel(probe=there).values
