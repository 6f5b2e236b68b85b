"""compute_*: run the network over a subspace, keep what is done, go on from where it stopped."""

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from lltoolkit.errors import ResumeMismatch, require_choice
from lltoolkit.labelled.grid import Span, make_grid
from lltoolkit.labelled.provenance import hash_config, provenance
from lltoolkit.labelled.surface import adopt_cells, count_nonfinite, empty_surface, fill_cells, missing_cells
from lltoolkit.store import SurfaceFile, require_writable
from lltoolkit.tensors.evaluate import FlatEngine
from lltoolkit.tensors.objective import Objective, Values
from lltoolkit.tensors.subspace import Subspace

log = logging.getLogger(__name__)

TILE_SECONDS = 1.0  # a tile is written about so often: what a kill may cost, and far more than an fsync takes
MERGE_SECONDS = 30.0  # the merged file that readers open is at most so old
# Default grids of a kind of subspace, where they differ: the models of an interpolation are grid points of theirs.
SPANS: dict[str, float | tuple[float, float]] = {"interpolation": (-0.5, 1.5)}
RESOLUTIONS = {("interpolation", 2): 53}
SAME = {
    "theta_sha256": "the minimizer (weights or buffers)",
    "data_sha256": "the examples",
    "subspace_id": "the subspace",
    "config_sha256": "the configuration",
}


def compute_surface(
    objective: Objective,
    subspace: Subspace,
    *,
    span: Span | None = None,
    resolution: int | Mapping[str, int] | None = None,
    coords: Mapping[str, Any] | None = None,
    around: xr.Dataset | None = None,
    path: str | Path | None = None,
    resume: bool = True,
    engine: Literal["auto", "flat"] = "auto",
    progress: bool = True,
) -> xr.Dataset:
    """Measure an objective on a grid of a line, plane or volume.

    Parameters
    ----------
    objective : Objective
        What is measured. It is checked first: finite at the minimizer, and the same twice.
    subspace : Subspace
        Where, from `random_subspace`, `interpolate`, ...
    span : float, (float, float) or mapping, optional
        ``s`` for ``(-s, s)``, two ends, or ``{"alpha": ..., "beta": ...}``. Default 1, in units of the
        directions; for `interpolate` (-0.5, 1.5).
    resolution : int or mapping, optional
        Points per axis. Default 51 for a plane as in Li et al. (2018) (53 through three models, which makes them
        grid points), 201 for a line, 21 for a volume.
    coords : mapping, optional
        ``{"alpha": array, ...}``: the grid by hand; uneven and descending are fine.
    around : xr.Dataset, optional
        A trajectory to fit the grid to. One of `span`, `coords`, `around`.
    path : str or Path, optional
        Where to keep the result, ``<name>.surface.nc``. Computed cells are on disk about every second.
    resume : bool
        True: go on from what `path` holds; a finished surface is returned at once (the minimizer is measured
        where loss or metrics are functions of yours, which only their values tell apart), a finer grid that
        contains the stored one keeps its cells. False: replace it.
    engine : {"auto", "flat"}
        How a cell is computed: "flat" writes its weights into one flat buffer.
    progress : bool
        Show a progress bar.

    Returns
    -------
    xr.Dataset
        ::

            loss      (split, alpha[, beta[, gamma]])  float64  mean over examples [nat] for cross-entropy
            accuracy  (split, alpha, ...)              float64  fraction in [0, 1]
            loss_se   (split, alpha, ...)              float64  standard error, where n_examples made a subset
            status    (alpha, ...)                     int8     0 missing, 1 computed

        NaN is a computed NaN and inf an overflow: both are kept and counted in ``n_nan`` and ``n_inf``.
        Attributes say how it was made.

    Raises
    ------
    ValueError
        For a bad grid, a subspace of another model, NaN at the minimizer, unknown options.
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
        If another process is writing `path`.

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
    require_choice("engine", engine, ("auto", "flat"))
    grid = grid_of(subspace, span=span, resolution=resolution, coords=coords, around=around)
    for axis, values in grid.items():
        if values.min() < 0 < values.max() and 0 not in values:
            log.warning("no grid point at 0 of %s, so the minimizer is in no cell; an odd resolution has one", axis)
    cells = FlatEngine(objective, subspace)
    n_cells = math.prod(len(values) for values in grid.values())
    with ExitStack() as stack:
        file, stored = None, None
        if path is not None:
            n_bytes = 2 * n_cells * len(objective.splits) * 8 * 4 + 10**6  # two copies of up to four variables
            file = stack.enter_context(SurfaceFile(require_writable(path, n_bytes)))
            stored = file.load() if resume else None
        how = {"engine": cells.name, "batch_size": objective.batch_size, "n_threads": objective.n_threads}
        if stored is not None:
            require_same(stored, objective, subspace, file.path)
            # Batch size and threads show in the last bits: a resumed surface is computed as it was begun.
            how = {key: stored.attrs.get(key, value) for key, value in how.items()}
        stack.enter_context(_computing(objective, how))
        surface = _prepare(objective, subspace, grid, how, stored, file)
        todo = missing_cells(surface)
        if file is not None and (len(todo) or file.has_tiles):
            _keep_subspace(subspace, file.path)
            file.begin(surface)
        if len(todo):
            _fill(surface, todo, cells, file, progress)
        surface.attrs |= count_nonfinite(surface)
        return surface


def grid_of(subspace: Subspace, **options: Any) -> dict[str, np.ndarray]:
    """Make the grid that `compute_surface` uses for the same options; see `make_grid`."""
    options["default_span"] = SPANS.get(subspace.kind, 1.0)
    options["default_resolution"] = RESOLUTIONS.get((subspace.kind, subspace.dims))
    return make_grid(subspace.axes, **options)


def _prepare(
    objective: Objective,
    subspace: Subspace,
    grid: dict[str, np.ndarray],
    how: Mapping[str, Any],
    stored: xr.Dataset | None,
    file: SurfaceFile | None,
) -> xr.Dataset:
    """Give the surface to fill: the stored one, a larger grid around it, or an empty one; the objective verified."""
    same_grid = stored is not None and all(
        stored.sizes.get(axis) == len(values) and np.array_equal(stored[axis].values, values)
        for axis, values in grid.items()
    )
    finished = same_grid and not len(missing_cells(stored))
    if finished and not objective.has_own_functions:
        return stored
    if not finished:
        objective.verify()
    minimum = objective.at_minimizer()
    if stored is not None:
        _require_same_minimum(stored, minimum, file.path)
        if same_grid:
            return stored
    metrics = list(dict.fromkeys(name for _, name in minimum))
    attrs = stored.attrs if stored is not None else describe_surface(objective, subspace, how)
    surface = empty_surface(grid, objective.splits, metrics, units=objective.units, attrs=attrs)
    if stored is not None and not adopt_cells(surface, stored):
        raise ResumeMismatch(
            f"{file.path} has another grid, and the one asked for does not contain it: {_extent(stored)} against "
            f"{_extent(surface)}. Use another path, or resume=False to replace it."
        )
    return surface


def _fill(surface: xr.Dataset, todo: np.ndarray, cells: FlatEngine, file: SurfaceFile | None, progress: bool) -> None:
    """Compute the missing cells, coarse to fine, and keep them tile by tile."""
    names = [name for name in surface.data_vars if name != "status"]
    splits = [str(split) for split in surface["split"].values]
    shape = surface["status"].shape
    axes = [surface[axis].values for axis in surface["status"].dims]
    tile: list[tuple[int, Values]] = []
    merged = written = time.monotonic()

    def keep() -> None:
        if not tile:
            return
        computed = np.array([cell for cell, _ in tile])
        block = {name: np.array([[value[split, name] for _, value in tile] for split in splits]) for name in names}
        if file is None:
            fill_cells(surface, computed, block)
        else:
            file.add(computed, block)
        tile.clear()

    def finish() -> None:
        keep()
        if file is not None:
            file.merge()

    bar = tqdm(
        total=math.prod(shape), initial=math.prod(shape) - len(todo), desc="surface", unit="cell", disable=not progress
    )
    lowest = np.nanmin(surface["loss"].values[0], initial=np.inf)
    try:
        with bar:
            for cell in todo:
                point = [axis[index] for axis, index in zip(axes, np.unravel_index(cell, shape), strict=True)]
                measured = cells.measure(point)
                tile.append((int(cell), measured))  # at once, whenever an interrupt comes
                lowest = np.fmin(lowest, measured[splits[0], "loss"])
                bar.set_postfix_str(f"lowest {splits[0]} loss {lowest:.4g}", refresh=False)
                bar.update()
                now = time.monotonic()
                if now - written > TILE_SECONDS:
                    keep()
                    written = now
                if file is not None and now - merged > MERGE_SECONDS:
                    file.merge()
                    merged = now
    except OSError:
        raise  # from the disk, as a rule: writing once more would only hide the reason
    except BaseException:
        finish()  # an interrupt, or a fault of the model: what is computed is kept
        raise
    finish()


def identity(objective: Objective, subspace: Subspace) -> dict[str, str]:
    """Give the hashes that two results must share to be cells of one surface."""
    return {
        "theta_sha256": objective.theta_sha256,
        "data_sha256": objective.data_sha256,
        "subspace_id": subspace.id,
        "config_sha256": hash_config(surface_config(objective, subspace)),
    }


def surface_config(objective: Objective, subspace: Subspace) -> dict[str, object]:
    """Give all that decides a cell's values beside weights, examples and subspace."""
    return {**objective.config, "buffers": buffer_policy(objective, subspace)}


def buffer_policy(objective: Objective, subspace: Subspace) -> str:
    """Say what the buffers really do at a cell: "frozen", "interpolate" or "recompute"."""
    if objective.buffers == "recompute":
        return "recompute"
    return "interpolate" if subspace.buffer_names else "frozen"


def describe_surface(objective: Objective, subspace: Subspace, how: Mapping[str, Any]) -> dict[str, Any]:
    """Collect the attributes of a surface.

    Parameters
    ----------
    objective, subspace
        What is measured, and where.
    how : mapping
        Engine, batch size and number of threads, fixed before the first cell.

    Returns
    -------
    dict
        As `schema.validate` asks for, str, int and float only.
    """
    config = surface_config(objective, subspace)
    options = subspace.config
    minimum = {f"{split} {name}": value for (split, name), value in objective.at_minimizer().items()}
    return {
        **provenance(
            "surface",
            config=config,
            model=objective.model_name,
            n_params=objective.n_params,
            device=device_name(objective.device),
            torch_version=str(torch.__version__),
        ),
        **identity(objective, subspace),
        **how,
        "data_normalize": objective.data_normalize,
        "buffers": str(config["buffers"]),
        "n_examples": _count_examples(objective),
        "examples": ", ".join(f"{name} {n} of {objective.n_total[name]}" for name, n in objective.n_examples.items()),
        "dtype": objective.dtype,
        "precision": "exact",
        "grad_norm": objective.gradient_norm(),
        "at_minimizer": json.dumps(minimum),
        "subspace_kind": subspace.kind,
        "subspace": json.dumps(options, sort_keys=True),
        **{name: str_or_number(options.get(name, "none")) for name in ("seed", "normalize", "ignore")},
        **subspace.geometry(),
    }


def _count_examples(objective: Objective) -> str | int:
    """Return ``"all"``, the number where it is one for all splits, or the numbers by split."""
    if objective.n_examples == objective.n_total:
        return "all"
    counts = set(objective.n_examples.values())
    return counts.pop() if len(counts) == 1 else ", ".join(f"{name} {n}" for name, n in objective.n_examples.items())


def str_or_number(value: object) -> str | int | float:
    """Return what NetCDF attributes can hold: numbers as they are, anything else as text."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def device_name(device: torch.device) -> str:
    """Name a device for the record: ``cpu``, or the GPU's own name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def require_same(stored: xr.Dataset, objective: Objective, subspace: Subspace, path: Path) -> None:
    """Check that a stored result belongs to this minimizer, these examples, this subspace and configuration.

    Raises
    ------
    ResumeMismatch
        Naming all that differs, with both hashes, and the next step.
    """
    if stored.attrs["kind"] != "surface":
        raise ResumeMismatch(f"{path} holds a {stored.attrs['kind']}, not a surface. Use another path.")
    options = {
        "subspace_id": (json.loads(stored.attrs["subspace"]), subspace.config),
        "config_sha256": (json.loads(stored.attrs["config"]), surface_config(objective, subspace)),
    }
    differing = [
        f"{SAME[key]} ({key} {stored.attrs[key]:.12} there, {value:.12} here{_changes(*options.get(key, ({}, {})))})"
        for key, value in identity(objective, subspace).items()
        if stored.attrs[key] != value
    ]
    if differing:
        raise ResumeMismatch(
            f"{path} belongs to something else: it differs in {'; '.join(differing)}. It was computed for "
            f"{stored.attrs['model']}. Use another path, or resume=False to replace it."
        )


def _changes(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    here = json.loads(json.dumps(here))  # as the file has it: tuples are lists there
    return "".join(
        f"; {name} {there.get(name, 'none')!r} there, {here.get(name, 'none')!r} here"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    )


def _require_same_minimum(stored: xr.Dataset, minimum: Values, path: Path) -> None:
    """Compare the values at the minimizer: two lambdas may bear one name, and only their values tell them apart."""
    there = json.loads(stored.attrs["at_minimizer"])
    for (split, name), value in minimum.items():
        old = there.get(f"{split} {name}", math.nan)
        same = math.isclose(old, value, rel_tol=1e-5, abs_tol=1e-7) or (math.isnan(old) and math.isnan(value))
        if not same:
            raise ResumeMismatch(
                f"{path} has {name} {old!r} on {split} at the minimizer, this objective gives {value!r}. Is the loss "
                "another function, or the machine another kind? Use another path, or resume=False to replace it."
            )


def _extent(surface: xr.Dataset) -> str:
    return " x ".join(
        f"{axis} {len(surface[axis])} points in [{surface[axis].values[0]:g}, {surface[axis].values[-1]:g}]"
        for axis in surface["status"].dims
    )


def _keep_subspace(subspace: Subspace, path: Path) -> None:
    """Save any subspace that can't be drawn again from its seed, beside the result."""
    if subspace.kind != "random":
        subspace.save(path.with_name(path.name.removesuffix(".nc").removesuffix(".surface") + ".subspace.safetensors"))


@contextmanager
def _computing(objective: Objective, how: Mapping[str, Any]) -> Iterator[None]:
    """Compute with a given batch size and number of threads, and leave both as they were."""
    before = objective.batch_size, objective.n_threads
    objective.compute_as(int(how["batch_size"]), int(how["n_threads"]))
    try:
        yield
    finally:
        objective.compute_as(*before)
