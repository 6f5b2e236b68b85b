"""compute_curvature: extreme Hessian eigenvalues over a subspace, tile by tile."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import xarray as xr

from lltoolkit.compute import computing, grid_of, keep_subspaces, warn_of_no_origin
from lltoolkit.errors import ResumeMismatch, require_whole
from lltoolkit.identity import describe_surface, require_same, require_same_minimum
from lltoolkit.keeping import Keeper, Progress, Reporter
from lltoolkit.labelled.curvature import Tile, empty_curvature, ratios, summarize_audit, tiles
from lltoolkit.labelled.grid import MARGIN, Around, Span
from lltoolkit.labelled.schema import STATUS
from lltoolkit.labelled.surface import count_nonfinite, extent_of
from lltoolkit.pools import InProcess, can_travel, choose_pool
from lltoolkit.store import GridFile, require_writable
from lltoolkit.tensors.curvature import CurvatureEvaluator, TileResult, TileTask
from lltoolkit.tensors.derivative_check import check_derivatives
from lltoolkit.tensors.engines import require_match
from lltoolkit.tensors.hessian import Hessian
from lltoolkit.tensors.lanczos import require_tolerance
from lltoolkit.tensors.objective import Objective
from lltoolkit.tensors.params import ParameterFilter, name_of_filter
from lltoolkit.tensors.seeds import generator
from lltoolkit.tensors.subspace import Subspace
from lltoolkit.workers import Pool

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)

RESOLUTION = 15
RESOLUTIONS = {"interpolation": 17}  # of (-0.5, 1.5), so that the models are grid points
PRODUCTS = 10  # of a cell, about: whether worker processes are worth starting depends on it, and nothing else


def compute_curvature(
    objective: Objective,
    subspace: Subspace,
    *,
    split: str | None = None,
    span: Span | None = None,
    resolution: int | Mapping[str, int] | None = None,
    coords: Mapping[str, Any] | None = None,
    around: Around | None = None,
    margin: float = MARGIN,
    parameters: ParameterFilter = None,
    metric: Literal["euclidean", "filter"] = "euclidean",
    tol: float = 1e-2,
    path: str | Path | None = None,
    resume: bool = True,
    client: "Client | None" = None,
    n_workers: int | None = None,
    progress: bool = True,
    callback: Callable[[Progress], None] | None = None,
) -> xr.Dataset:
    """Map the smallest and the largest Hessian eigenvalue over a line, plane or volume.

    The Hessian is that of the loss in all its parameters, not in the plane alone: a surface can look convex while the
    loss curves downwards in a direction that the plane does not hold. Both ends come from one Lanczos run at each cell.
    Cells are computed in tiles (4 x 4 in a plane). The first cell of a tile starts at random, each other one from its
    neighbour's two eigenvectors and something random. A small residual proves an eigenvalue, not the extreme one, so
    every twentieth cell, drawn by the objective's seed, is computed a second time, from a random start and to 1e-6, and
    the map is compared with that.

    Parameters
    ----------
    objective : Objective
        What is measured. It is checked first: finite at the minimizer, and the same twice.
    subspace : Subspace
        Where, from `random_subspace`, `interpolate`, ...
    split : str, optional
        Whose mean loss is differentiated; default the first, which is ``"train"`` as a rule.
    span, coords, around, margin
        As in `compute_surface`.
    resolution : int or mapping, optional
        Points per axis. Default 15 (17 through the models of an interpolation): a cell costs about 10 Hessian-vector
        products, each about six forward passes.
    parameters : str, callable or None
        Which parameters are variables of the Hessian: None for all that the objective moves, ``"weights"`` for tensors
        with two or more axes, as in the code of Li et al. (2018), a regular expression, or ``f(name, parameter)``.
    metric : {"euclidean", "filter"}
        "filter": eigenvalues of ``D H D``, with D the norm of the minimizer's filter over the square root of its size.
        It is the metric in which surfaces of filter-normalized directions are drawn, and it does not change when layers
        are scaled against each other; biases and batch norm are left out.
    tol : float
        Both residuals are at most `tol` times the largest eigenvalue, in (0, 1).
    path : str or Path, optional
        Where to keep the result, ``<name>.curvature.nc``. Computed tiles are on disk at once.
    resume : bool
        True: go on from what `path` holds; a finished map is returned at once. False: replace it.
    client, n_workers, progress
        As in `compute_surface`. One task is one tile.
    callback : callable, optional
        Called about every second with a `Progress`. What it raises stops the computing as an interrupt does: finished
        tiles are kept.

    Returns
    -------
    xr.Dataset
        Over ``(alpha[, beta[, gamma]])``; eigenvalues in units of the loss::

            eig_min, eig_max            float64  the extreme eigenvalues
            eig_ratio                   float64  |eig_min / eig_max|, the paper's; in [0, inf], NaN for a Hessian of 0
            nonconvexity                float64  max(0, -eig_min) / eig_max, 0 where convex; inf where only concave
            residual_min, residual_max  float64  ||H v - lambda v||: an eigenvalue lies within so much of each value
            loss                        float64  of that split
            n_hvp                       int32    Hessian-vector products
            converged                   int8     1: both residuals met the tolerance
            status                      int8     0 missing, 1 computed
            audit_eig_min, audit_eig_max, audit_n_hvp     of audited cells; else NaN and 0

        A cell whose loss is NaN or inf has NaN eigenvalues and status 1. Attributes say how it was made: ``split``,
        ``parameters``, ``metric``, ``tol``, ``n_variables``; ``n_audit``, ``n_audit_missed``, ``audit_miss_rate``,
        ``audited_max`` (the largest difference over the largest eigenvalue), ``n_audit_unconverged``;
        ``n_unconverged``, ``n_hvp_total``, ``n_hvp_audit``, ``n_hvp_median``.

    Raises
    ------
    ValueError
        For a bad grid, a subspace of another model, NaN at the minimizer, unknown options, an operator without a second
        derivative; with `client` for a model that can't be pickled.
    ResumeMismatch
        If `path` holds a result of another minimizer, data set, subspace, configuration or grid. A finer grid does not
        go on from a coarser one: the cells would start from other neighbours.
    SchemaError
        If `path` holds something else, or a damaged result; only with `resume`.
    NondeterministicObjective
        If two measurements of the minimizer differ.
    OSError
        If `path` can't be written. What was computed before is kept.
    RuntimeError
        If another process is writing `path`, or the workers of `client` lack this version of lltoolkit.

    References
    ----------
    Li et al. (2018), Visualizing the Loss Landscape of Neural Nets, section 6: maps of the eigenvalue ratio. Its code
    takes the sum over batches for the loss, which leaves the ratio as it is and scales the eigenvalues.

    Examples
    --------
    >>> import lltoolkit as ll, torch
    >>> objective = ll.Objective(torch.nn.Linear(2, 2), (torch.eye(2), torch.tensor([0, 1])))
    >>> plane = ll.random_subspace(objective, seed=0)
    >>> curvature = compute_curvature(objective, plane, resolution=3, progress=False)
    >>> dict(curvature.sizes), bool((curvature["converged"] == 1).all())
    ({'alpha': 3, 'beta': 3}, True)
    """
    require_tolerance(tol)
    if not isinstance(objective, Objective):
        raise ValueError(f"objective is a {type(objective).__name__}; give Objective(model, data).")
    if not isinstance(subspace, Subspace):
        raise ValueError(
            f"subspace is a {type(subspace).__name__}; a curvature map is of one Subspace. Call once for each of "
            "several, and join the results with xarray.concat."
        )
    if n_workers is not None:
        n_workers = require_whole("n_workers", n_workers, least=1)
    if resolution is None and coords is None:
        plain = span is None and around is None
        resolution = RESOLUTIONS.get(subspace.kind, RESOLUTION) if plain else RESOLUTION
    grid = grid_of(subspace, span=span, resolution=resolution, coords=coords, around=around, margin=margin)
    warn_of_no_origin(grid)
    require_match(objective, subspace)
    hessian = Hessian(objective, split=split, parameters=parameters, metric=metric)
    more = {
        "split": hessian.split,
        "hessian_parameters": name_of_filter(parameters),
        "hessian_variables": hessian.variables_sha256,
        "metric": metric,
        "tol": float(tol),
    }
    with ExitStack() as stack:
        file, stored = None, None
        if path is not None:
            n_cells = int(np.prod([len(values) for values in grid.values()]))
            file = stack.enter_context(GridFile(require_writable(path, 200 * n_cells + 10**6, "curvature")))
            stored = file.load() if resume else None
        # All of these show in the last bits: a resumed map is computed as it was begun.
        before: Mapping[str, Any] = {} if stored is None else stored.attrs
        how = {
            "engine": "hessian",
            "batch_size": before.get("batch_size", objective.batch_size),
            "n_threads": before.get("n_threads") or (1 if can_travel(objective) else objective.n_threads),
            "precision": "exact",
        }
        stack.enter_context(computing(objective, how))
        if stored is not None:
            require_same(stored, objective, [subspace], file.path, kind="curvature", more=more)
            _require_same_grid(stored, grid, file.path)
        curvature = _begin(objective, subspace, grid, hessian, how, more, stored, file)
        todo = _unfinished(curvature, tiles(grid, objective.seed))
        if todo:
            seconds = PRODUCTS * sum(len(tile.cells) for tile in todo) * _try(hessian)
            if file is not None:
                keep_subspaces([subspace], file.path)
                file.begin(curvature)
            reporter = stack.enter_context(Reporter(curvature, hessian.split, progress=progress, callback=callback))

            def told(loss: float) -> None:
                reporter.count(1, loss)
                reporter.tell("tile")

            options = {**how, "split": hessian.split, "parameters": parameters, "metric": metric, "tol": float(tol)}
            pool = stack.enter_context(
                choose_pool(
                    objective, [subspace], options, client, n_workers, seconds, CurvatureEvaluator, on_cell=told
                )
            )
            _run(curvature, todo, Keeper(curvature, file), reporter, pool)
        _finish(curvature, file, float(tol), new=bool(todo))
        return curvature


def _require_same_grid(stored: xr.Dataset, grid: Mapping[str, np.ndarray], path: Path) -> None:
    if any(not np.array_equal(stored[axis].values, values) for axis, values in grid.items()):
        asked = extent_of(xr.Dataset(coords=grid))
        raise ResumeMismatch(
            f"{path} has another grid: {extent_of(stored)} against {asked}. A curvature map goes on only on its own "
            "grid, since each cell starts from its neighbour's eigenvectors. Use another path, or resume=False to "
            "replace it."
        )


def _begin(
    objective: Objective,
    subspace: Subspace,
    grid: Mapping[str, np.ndarray],
    hessian: Hessian,
    how: Mapping[str, Any],
    more: Mapping[str, Any],
    stored: xr.Dataset | None,
    file: GridFile | None,
) -> xr.Dataset:
    """Give the map to fill, the stored one or an empty one; the objective verified."""
    finished = stored is not None and bool((stored["status"] == STATUS["computed"]).all())
    if finished and not objective.has_own_functions:
        return stored
    if not finished:
        objective.verify()
    if stored is not None:
        require_same_minimum(stored, objective.at_minimizer(), file.path)
        return stored
    attrs = describe_surface(objective, [subspace], how, kind="curvature", more=more)
    attrs |= {"split": more["split"], "parameters": more["hessian_parameters"], "n_variables": hessian.n}
    attrs |= {"metric": more["metric"], "tol": more["tol"], "buffers_in_hessian": "constants"}
    return empty_curvature(grid, hessian.split, units=objective.units, attrs=attrs)


def _unfinished(curvature: xr.Dataset, all_tiles: Sequence[Tile]) -> list[Tile]:
    """Choose the tiles that lack a cell: a tile is computed whole, or its cells would start elsewhere."""
    status = curvature["status"].values.reshape(-1)
    return [tile for tile in all_tiles if (status[tile.cells] != STATUS["computed"]).any()]


def _try(hessian: Hessian) -> float:
    """Multiply at the minimizer, so that faults show before a file is begun; give the seconds that a product takes."""
    check_derivatives(hessian)
    vector = torch.randn(hessian.n, generator=generator("curvature", "try"), dtype=hessian.dtype).to(hessian.device)
    with hessian.at() as point:
        begun = time.perf_counter()
        point(vector)
        return time.perf_counter() - begun


def _run(curvature: xr.Dataset, todo: Sequence[Tile], keeper: Keeper, reporter: Reporter, pool: Pool) -> None:
    """Have tiles computed, and keep each as it comes."""
    axes = [curvature[axis].values for axis in curvature["status"].dims]
    tasks = []
    for tile in todo:
        indices = np.unravel_index(tile.cells, curvature["status"].shape)
        columns = [values[index].tolist() for values, index in zip(axes, indices, strict=True)]
        tasks.append(TileTask(tile.cells, list(zip(*columns, strict=True)), tile.audited))
    reporter.ask(sum(len(tile.cells) for tile in todo), "curvature")
    try:
        for task, result in pool.run(tasks):
            with keeper.writing():
                keeper.add(task.cells, _block(result), result.batch_size)
                keeper.merge()
            if not isinstance(pool, InProcess):  # there each cell is told as it is done
                reporter.count(len(task.cells), float(np.fmin.reduce(result.values["loss"])))
            reporter.tell("tile")
    except BaseException:
        if not keeper.disk_failed:  # an interrupt, or a fault of the model: finished tiles are kept
            with keeper.writing():
                keeper.merge(last=True)
        raise
    reporter.tell("done")


def _block(result: TileResult) -> dict[str, np.ndarray]:
    """Lay out a tile's values as `GridFile.add` takes them, with the ratios."""
    values = result.values | ratios(result.values["eig_min"], result.values["eig_max"])
    return {name: column[None] for name, column in values.items()}


def _finish(curvature: xr.Dataset, file: GridFile | None, tol: float, *, new: bool) -> None:
    """Count what was found, say what is doubtful, and write the file where it lacks something."""
    complete = "n_audit" in curvature.attrs
    curvature.attrs |= count_nonfinite(curvature) | summarize_audit(curvature, tol)
    if file is not None and (new or file.has_tiles or not complete):
        file.begin(curvature)
    attrs = curvature.attrs
    if new and (n := attrs["n_unconverged"] - attrs["n_nan"] - attrs["n_inf"]) > 0:
        log.warning("%d cells did not converge: their residuals exceed %g of the largest eigenvalue", n, tol)
    if new and attrs["n_audit_missed"]:
        log.warning(
            "%d of %d audited cells are off by more than %g of the largest eigenvalue (at most %.3g); a smaller tol "
            "finds more",
            attrs["n_audit_missed"],
            attrs["n_audit"],
            tol,
            attrs["audited_max"],
        )
