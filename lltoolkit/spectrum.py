"""``hessian_spectrum``: the density of all eigenvalues, by stochastic Lanczos quadrature."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from scipy import linalg
from tqdm.auto import tqdm

from lltoolkit.compute import computing
from lltoolkit.errors import ResumeMismatch, require_whole
from lltoolkit.identity import WORDS, describe_objective, require_same_minimum
from lltoolkit.labelled.spectrum import add_density, empty_spectrum, require_bandwidth
from lltoolkit.store import TableFile, require_writable
from lltoolkit.tensors.derivative_check import check_derivatives
from lltoolkit.tensors.hessian import Hessian
from lltoolkit.tensors.lanczos import tridiagonalize
from lltoolkit.tensors.objective import Objective
from lltoolkit.tensors.params import ParameterFilter, name_of_filter
from lltoolkit.tensors.seeds import generator

IDENTITY = ("theta_sha256", "data_sha256", "config_sha256")


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
        Go on from what is in `path`, with more probes too; the file keeps all that were ever run.
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
    NondeterministicObjective
        If two measurements of the minimizer differ.
    RuntimeError
        If another process is writing `path`.

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
    require_bandwidth(bandwidth)
    hessian = Hessian(objective, split=split, parameters=parameters, metric=metric)
    n_steps = min(require_whole("n_steps", n_steps, least=2), hessian.n)
    config = {
        **objective.config,
        "split": hessian.split,
        "hessian_parameters": name_of_filter(parameters),
        "hessian_variables": hessian.variables_sha256,
        "metric": metric,
        "n_steps": n_steps,
        "seed": seed,
    }
    with ExitStack() as stack:
        file, stored = None, None
        if path is not None:
            file = stack.enter_context(TableFile(require_writable(path, 10**6, "spectrum")))
            stored = file.load() if resume else None
        before: Mapping[str, Any] = {} if stored is None else stored.attrs
        how = {
            "engine": "hessian",
            "batch_size": before.get("batch_size", objective.batch_size),
            "n_threads": before.get("n_threads", objective.n_threads),
            "precision": "exact",
        }
        stack.enter_context(computing(objective, how))
        hessian.batch_size = objective.batch_size
        objective.verify()
        attrs = describe_objective("spectrum", objective, config) | how
        attrs |= {"split": hessian.split, "parameters": name_of_filter(parameters), "metric": metric, "seed": seed}
        attrs |= {"buffers_in_hessian": "constants", "n_weights": hessian.n}
        n_stored = 0 if stored is None else stored.sizes.get("probe", 0)
        spectrum = empty_spectrum(max(n_probes, n_stored), n_steps, units=objective.units, attrs=attrs)
        if stored is not None:
            _adopt(spectrum, stored, objective, file.path)
        _run(hessian, spectrum, range(n_probes), bandwidth, file, progress)
        known = np.isfinite(spectrum["ritz_value"].values).any(axis=1)
        if file is not None:
            file.write(add_density(spectrum.isel(probe=np.flatnonzero(known)), bandwidth))
        return add_density(spectrum.isel(probe=slice(n_probes)), bandwidth)


def _run(
    hessian: Hessian,
    spectrum: xr.Dataset,
    probes: Iterable[int],
    bandwidth: float | None,
    file: TableFile | None,
    progress: bool,
) -> None:
    """Run the probes that are not known yet, and keep each as it comes; in place."""
    nodes, weights = spectrum["ritz_value"].values, spectrum["ritz_weight"].values
    seed, n_steps = int(spectrum.attrs["seed"]), spectrum.sizes["node"]
    todo = [probe for probe in probes if np.isnan(nodes[probe]).all()]
    if not todo:
        return
    check_derivatives(hessian)
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
            values, vectors = linalg.eigh_tridiagonal(diagonal, off_diagonal)
            nodes[probe, : len(values)] = values
            weights[probe, : len(values)] = vectors[0] ** 2
            if file is not None:
                known = spectrum.isel(probe=np.flatnonzero(np.isfinite(nodes).any(axis=1)))
                file.write(add_density(known, bandwidth))


def _adopt(spectrum: xr.Dataset, stored: xr.Dataset, objective: Objective, path: Path) -> None:
    """Take over the probes of an older file; in place."""
    if (kind := stored.attrs["kind"]) != "spectrum":
        raise ResumeMismatch(f"{path} holds a {WORDS.get(kind, kind)}, not a spectrum. Use another path.")
    differing = [name for name in IDENTITY if stored.attrs.get(name) != spectrum.attrs[name]]
    if differing:
        raise ResumeMismatch(
            f"{path} is the spectrum of something else: it differs in {', '.join(differing)}; it has the configuration "
            f"{stored.attrs['config']}. Use another path, or resume=False to replace it."
        )
    require_same_minimum(stored, objective.at_minimizer(), path)
    for name in ("ritz_value", "ritz_weight"):
        spectrum[name].values[stored["probe"].values] = stored[name].values
