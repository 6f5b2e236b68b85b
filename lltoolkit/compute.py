"""compute_*: run the network over a subspace, keep what is done, go on from where it stopped."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from lltoolkit.errors import ResumeMismatch, require_choice, require_whole
from lltoolkit.execute import Execution
from lltoolkit.identity import describe_surface, require_same, require_same_minimum
from lltoolkit.journal import Journal
from lltoolkit.keeping import Progress
from lltoolkit.labelled.grid import MARGIN, Around, Span, make_grid
from lltoolkit.labelled.plan import Ask, Filled, Plan
from lltoolkit.labelled.refine import refine
from lltoolkit.labelled.surface import (
    adopt_cells,
    cell_order,
    cells_with,
    count_nonfinite,
    empty_surface,
    extent_of,
    fill_rest,
    forget_filled,
    know_exactly,
    owner_id,
)
from lltoolkit.labelled.twolevel import two_level
from lltoolkit.pools import can_travel, choose_pool
from lltoolkit.store import GridFile, require_writable
from lltoolkit.tensors.engines import ENGINES, group_of, make_engine, require_match
from lltoolkit.tensors.machine import PRECISIONS
from lltoolkit.tensors.objective import Objective
from lltoolkit.tensors.subspace import Subspace

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)

EXAMPLES = ("all", "two-level")
AUDITS = ("audited_", "n_audit", "tolerance_met", "n_computed", "n_estimated", "n_forwards")  # attributes of a plan
# Default grids of a kind of subspace, where they differ: the models of an interpolation are grid points of theirs.
SPANS: dict[str, float | tuple[float, float]] = {"interpolation": (-0.5, 1.5)}
RESOLUTIONS = {("interpolation", 2): 53}


def compute_surface(
    objective: Objective,
    subspace: Subspace | Sequence[Subspace],
    *,
    span: Span | None = None,
    resolution: int | Mapping[str, int] | None = None,
    coords: Mapping[str, Any] | None = None,
    around: Around | None = None,
    margin: float = MARGIN,
    path: str | Path | None = None,
    resume: bool = True,
    tolerance: float | None = None,
    examples: Literal["all", "two-level"] = "all",
    engine: Literal["auto", "plain", "flat", "folded", "batched"] = "auto",
    precision: Literal["exact", "tf32", "bf16"] = "exact",
    client: "Client | None" = None,
    n_workers: int | None = None,
    progress: bool = True,
    callback: Callable[[Progress], None] | None = None,
) -> xr.Dataset:
    """Measure an objective on a grid of a line, plane or volume.

    Parameters
    ----------
    objective : Objective
        What is measured. It is checked first: finite at the minimizer, and the same twice.
    subspace : Subspace or sequence of Subspace
        Where, from `random_subspace`, `interpolate`, ... Several of one kind, seeds for instance, give one result with
        a dim ``direction``.
    span : float, (float, float) or mapping, optional
        ``s`` for ``(-s, s)``, two ends, or ``{"alpha": ..., "beta": ...}``. Default 1, in units of the
        directions; for `interpolate` (-0.5, 1.5), for `pca_subspace` all of its checkpoints, as with `around`.
    resolution : int or mapping, optional
        Points per axis. Default 51 for a plane as in Li et al. (2018) (53 through three models, which makes them
        grid points), 201 for a line, 21 for a volume.
    coords : mapping, optional
        ``{"alpha": array, ...}``: the grid by hand; uneven and descending are fine.
    around : xr.Dataset, or sequence or mapping of these, optional
        Trajectories to fit the grid to, of `project_trajectory`. One of `span`, `coords`, `around`.
    margin : float
        Share of the trajectories' extent that is left free on each side.
    path : str or Path, optional
        Where to keep the result, ``<name>.surface.nc``. Computed cells are on disk about every second.
    resume : bool
        True: go on from what `path` holds; a finished surface is returned at once (the minimizer is measured
        where loss or metrics are functions of yours, which only their values tell apart), a finer grid that
        contains the stored one, or a smaller `tolerance`, keeps its cells. False: replace it.
    tolerance : float, optional
        Compute only the cells that interpolation does not give to within this error, and fill the rest (status 2): in
        nats of log loss, so that 0.05 is about 5 % of the loss, on every split, and absolute for the accuracy; a share
        of the range where a loss touches 0. The error is audited on fresh random cells (``audited_*``). In (0, 1];
        None: compute every cell.
    examples : {"all", "two-level"}
        "two-level": all examples on few cells, elsewhere an importance sample of them chosen from what those cells
        gave (status 3), audited likewise; it needs values per example of every loss and metric.
    engine : {"auto", "plain", "flat", "folded", "batched"}
        How a cell is computed, see `tensors.engines`. "auto" chooses from the model, never by a clock. An engine that
        can't take the model gives way to "flat", with the reason in the log. A resumed surface keeps its own.
    precision : {"exact", "tf32", "bf16"}
        "exact": float32 as IEEE has it. "tf32" (GPUs) and "bf16" are faster and off by about 1e-3 and 5e-3.
    client : dask.distributed.Client, optional
        Compute on the workers of a cluster (extra ``cluster``).
    n_workers : int, optional
        Processes on this machine, one thread (or GPU) each. Default: one for each core where there is enough to do.
        It shows in no value.
    progress : bool
        Show a progress bar.
    callback : callable, optional
        Called about every second with a `Progress`. What it raises stops the computing as an interrupt does: what is
        computed is kept.

    Returns
    -------
    xr.Dataset
        ::

            loss      ([direction,] split, alpha[, beta[, gamma]])  float64  mean over examples [nat] for cross-entropy
            accuracy  ([direction,] split, alpha, ...)              float64  fraction in [0, 1]
            loss_se   ([direction,] split, alpha, ...)              float64  standard error, where a sample was used
            status    ([direction,] alpha, ...)                     int8     0 missing, 1 computed, 2 interpolated,
                                                                             3 estimated

        NaN is a computed NaN and inf an overflow: both are kept and counted in ``n_nan`` and ``n_inf``.
        Attributes say how it was made; ``n_forwards`` counts the examples that went through the network.

    Raises
    ------
    ValueError
        For a bad grid, a subspace of another model, NaN at the minimizer, unknown options; with `client` for a model
        that can't be pickled.
    ResumeMismatch
        If `path` holds a result of another minimizer, data set, subspace or configuration, or a grid that the one
        asked for does not contain.
    SchemaError
        If `path` holds something else, or a damaged result; only with `resume`.
    NondeterministicObjective
        If two measurements of the minimizer differ.
    OSError
        If `path` can't be written, before anything is computed where that can be known. On a disk that fills up
        later, what was computed is kept, and a second call goes on from there.
    RuntimeError
        If another process is writing `path`, or the workers of `client` lack this version of lltoolkit.

    References
    ----------
    Li et al. (2018), Visualizing the Loss Landscape of Neural Nets, sections 4 and 5.

    Examples
    --------
    >>> import lltoolkit as ll, torch
    >>> objective = ll.Objective(torch.nn.Linear(2, 2), (torch.eye(2), torch.tensor([0, 1])))
    >>> plane = ll.random_subspace(objective, seed=0)
    >>> surface = ll.compute_surface(objective, plane, resolution=3, progress=False)
    >>> dict(surface.sizes)
    {'split': 1, 'alpha': 3, 'beta': 3}
    """
    require_choice("engine", engine, ENGINES)
    require_choice("precision", precision, PRECISIONS)
    require_choice("examples", examples, EXAMPLES)
    if tolerance is not None and (isinstance(tolerance, bool | str) or not 0 < tolerance <= 1):
        raise ValueError(f"tolerance={tolerance!r}: give an error in nats of log loss in (0, 1], 0.05 for example.")
    if examples == "two-level" and objective.n_examples != objective.n_total:
        raise ValueError(
            "examples='two-level' chooses its own samples, and n_examples has already made one. Leave n_examples out."
        )
    if n_workers is not None:
        n_workers = require_whole("n_workers", n_workers, least=1)
    ensemble = not isinstance(subspace, Subspace)
    subspaces = _as_list(subspace)
    grid = grid_of(subspaces[0], span=span, resolution=resolution, coords=coords, around=around, margin=margin)
    warn_of_no_origin(grid)
    for each in subspaces:
        require_match(objective, each)
    plan = {"sampling": examples, "tolerance": "none" if tolerance is None else float(tolerance)}
    with ExitStack() as stack:
        file, stored = None, None
        if path is not None:
            n_cells = len(subspaces) * math.prod(len(values) for values in grid.values())
            n_bytes = 2 * n_cells * len(objective.splits) * 8 * 4 + 10**6  # two copies of up to four variables
            file = stack.enter_context(GridFile(require_writable(path, n_bytes)))
            stored = file.load() if resume else None
        # All of these show in the last bits: a resumed surface is computed as it was begun.
        before: Mapping[str, Any] = {} if stored is None else stored.attrs
        how = {
            "engine": before.get("engine") or make_engine(objective, subspaces[0], engine).name,
            "batch_size": before.get("batch_size", objective.batch_size),
            "n_threads": before.get("n_threads") or (1 if can_travel(objective) else objective.n_threads),
            "precision": precision,
        }
        stack.enter_context(computing(objective, how))
        if stored is not None:
            require_same(stored, objective, subspaces, file.path)
        surface = _prepare(objective, subspaces, ensemble, grid, how, plan, stored, file)
        if is_filled(surface, plan):
            if file is not None and file.has_tiles:
                file.begin(surface)
            return surface
        for name in [name for name in surface.attrs if name.startswith(AUDITS)]:
            del surface.attrs[name]  # they are of another plan
        surface.attrs |= plan
        journal = _open_journal(file, surface, resume)
        if file is not None:
            keep_subspaces(subspaces, file.path)
            file.begin(surface)
        work = objective.seconds_per_cell() * len(cells_with(surface, "missing"))
        pool = stack.enter_context(choose_pool(objective, subspaces, how, client, n_workers, work))
        execution = Execution(
            surface,
            file,
            journal,
            pool,
            n_examples=sum(objective.n_examples.values()),
            seconds_per_cell=objective.seconds_per_cell(),
            group=group_of(how["engine"]),
            progress=progress,
            callback=callback,
        )
        filled = execution.run([_plan(objective, grid, plan) for _ in subspaces])
        _fill(objective, surface, filled)
        surface.attrs |= count_nonfinite(surface)
        if file is not None:
            journal.finish()
            file.merge()
        return surface


def grid_of(subspace: Subspace, **options: Any) -> dict[str, np.ndarray]:
    """Make the grid that `compute_surface` uses for the same options; see `make_grid`."""
    options["default_span"] = SPANS.get(subspace.kind, 1.0)
    if subspace.kind == "pca" and subspace.config.get("extent"):
        options["default_extent"] = dict(zip(subspace.axes, subspace.config["extent"], strict=True))
    options["default_resolution"] = RESOLUTIONS.get((subspace.kind, subspace.dims))
    return make_grid(subspace.axes, **options)


def warn_of_no_origin(grid: Mapping[str, np.ndarray]) -> None:
    """Say in the log that the minimizer is in no cell, where a grid steps over it."""
    for axis, values in grid.items():
        if values.min() < 0 < values.max() and 0 not in values:
            log.warning("no grid point at 0 of %s, so the minimizer is in no cell; an odd resolution has one", axis)


def _as_list(subspace: Subspace | Sequence[Subspace]) -> list[Subspace]:
    subspaces = [subspace] if isinstance(subspace, Subspace) else list(subspace)
    if not subspaces:
        raise ValueError("subspace is an empty list; give at least one Subspace.")
    kinds = {(each.kind, each.dims) for each in subspaces}
    if len(kinds) > 1:
        words = ", ".join(f"{kind} with {dims} axes" for kind, dims in sorted(kinds))
        raise ValueError(
            f"the subspaces are of different kinds ({words}); "
            "one result holds several of one kind, random directions of several seeds for example."
        )
    if len({each.id for each in subspaces}) < len(subspaces):
        raise ValueError("the list holds the same subspace twice; give each another seed.")
    return subspaces


def _prepare(
    objective: Objective,
    subspaces: Sequence[Subspace],
    ensemble: bool,
    grid: dict[str, np.ndarray],
    how: Mapping[str, Any],
    plan: Mapping[str, Any],
    stored: xr.Dataset | None,
    file: GridFile | None,
) -> xr.Dataset:
    """Give the surface to fill: the stored one, a larger grid around it, or an empty one; the objective verified."""
    if stored is not None and ("direction" in stored.dims) != ensemble:
        there, here = ("a list of subspaces", "one") if not ensemble else ("one subspace", "a list of them")
        raise ResumeMismatch(
            f"{file.path} is the surface of {there}, and {here} is asked for. Use another path, or resume=False to "
            "replace it."
        )
    if stored is not None and not is_filled(stored, plan):
        forget_filled(stored)
    same_grid = stored is not None and all(
        stored.sizes.get(axis) == len(values) and np.array_equal(stored[axis].values, values)
        for axis, values in grid.items()
    )
    finished = same_grid and is_filled(stored, plan)
    if finished and not objective.has_own_functions:
        return stored
    if not finished:
        objective.verify()
    minimum = objective.at_minimizer()
    if stored is not None:
        require_same_minimum(stored, minimum, file.path)
    metrics = list(dict.fromkeys(name for _, name in minimum))
    if plan["sampling"] == "two-level":
        metrics += [f"{name}_se" for name in metrics]
    if same_grid and set(metrics) <= set(stored.data_vars):
        return stored
    attrs = stored.attrs if stored is not None else describe_surface(objective, subspaces, how)
    n_directions = len(subspaces) if ensemble else None
    surface = empty_surface(
        grid, objective.splits, metrics, units=objective.units, attrs=attrs, n_directions=n_directions
    )
    if ensemble:
        surface = surface.assign_coords(_of_directions(subspaces))
    if stored is not None and not adopt_cells(surface, stored):
        raise ResumeMismatch(
            f"{file.path} has another grid, and the one asked for does not contain it: {extent_of(stored)} against "
            f"{extent_of(surface)}. Use another path, or resume=False to replace it."
        )
    return surface


def _of_directions(subspaces: Sequence[Subspace]) -> dict[str, Any]:
    """Tell the directions of an ensemble apart: their seeds, where they have some, and their cosines."""
    cosines = [subspace.geometry()["direction_cosine"] for subspace in subspaces]
    known: dict[str, Any] = {"direction_cosine": ("direction", cosines)}
    seeds = [subspace.config.get("seed") for subspace in subspaces]
    return known | ({"seed": ("direction", seeds)} if all(isinstance(seed, int) for seed in seeds) else {})


def is_filled(surface: xr.Dataset, plan: Mapping[str, Any]) -> bool:
    """Tell whether a surface is what a plan makes, or better: no cell missing, and filled by a plan as strict."""
    if len(cells_with(surface, "missing")):
        return False
    if not len(cells_with(surface, "interpolated", "estimated")):
        return True
    there, asked = surface.attrs.get("tolerance"), plan["tolerance"]
    if surface.attrs.get("sampling") != plan["sampling"] or "none" in (there, asked):
        return surface.attrs.get("sampling") == plan["sampling"] and there == asked
    return float(there) <= float(asked)  # a stricter one serves


def _plan(objective: Objective, grid: Mapping[str, np.ndarray], plan: Mapping[str, Any]) -> Plan:
    """Make the plan of one direction."""
    names = list(dict.fromkeys(name for _, name in objective.at_minimizer() if not name.endswith("_se")))
    common = {"splits": objective.splits, "metrics": names, "seed": objective.seed}
    tolerance = None if plan["tolerance"] == "none" else plan["tolerance"]
    if plan["sampling"] == "two-level":
        return two_level(
            grid, **common, n_examples=objective.n_examples, weights=objective.example_weights(), tolerance=tolerance
        )
    return _everything(grid) if tolerance is None else refine(grid, **common, tolerance=tolerance)


def _everything(grid: Mapping[str, np.ndarray]) -> Plan:
    yield Ask(cell_order(grid), "grid")


def _open_journal(file: GridFile | None, surface: xr.Dataset, resume: bool) -> Journal:
    if file is None:
        return Journal()
    path = file.path.with_suffix(".samples.npz")
    how = [str(surface.attrs.get(name)) for name in ("engine", "batch_size", "n_threads")]  # show in the last bits
    journal = Journal(path, file.folder, "|".join([owner_id(surface), *how]))
    if resume:
        journal.load()
    else:
        journal.forget()
    return journal


def _fill(objective: Objective, surface: xr.Dataset, filled: Sequence[Filled | None]) -> None:
    """Write what the plans filled in, and their audits."""
    sampled = objective.n_examples != objective.n_total
    if not sampled:
        know_exactly(surface)
    numbers: dict[str, list[Any]] = {}
    for place, each in enumerate(filled):
        if each is not None:
            fill_rest(surface, place, each, sampled=sampled)
            for name, value in each.attrs.items():
                numbers.setdefault(name, []).append(value)
    for name, values in numbers.items():  # of an ensemble the worst
        join = sum if name.startswith("n_") else min if name == "tolerance_met" else max
        surface.attrs[name] = join(values)
    n_computed = len(cells_with(surface, "computed"))
    surface.attrs["n_computed"] = n_computed
    surface.attrs.setdefault("n_forwards", n_computed * sum(objective.n_examples.values()))


def keep_subspaces(subspaces: Sequence[Subspace], path: Path) -> None:
    """Save any subspace that can't be drawn again from its seed, beside the result."""
    stem = path.name.removesuffix(".nc")
    for kind in ("surface", "curvature", "trajectory"):
        stem = stem.removesuffix(f".{kind}")
    for place, subspace in enumerate(subspaces):
        number = f"-{place}" if len(subspaces) > 1 else ""
        if subspace.kind != "random":
            subspace.save(path.with_name(f"{stem}.subspace{number}.safetensors"))


@contextmanager
def computing(objective: Objective, how: Mapping[str, Any]) -> Iterator[None]:
    """Compute in a given way, and leave the objective as it was."""
    before = objective.batch_size, objective.n_threads, objective.precision
    objective.compute_as(int(how["batch_size"]), int(how["n_threads"]), str(how["precision"]))
    try:
        yield
    finally:
        objective.compute_as(*before)
