"""``project_trajectory``: the checkpoints of a training on a subspace, with what lies outside of it."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from lltoolkit.checkpoint_reader import CheckpointReader, Source, State, row_of, weights_in
from lltoolkit.compute import computing, keep_subspaces
from lltoolkit.errors import ResumeMismatch
from lltoolkit.identity import describe_subspaces, describe_surface, identity, require_same, require_same_minimum
from lltoolkit.keeping import TILE_SECONDS
from lltoolkit.labelled.provenance import provenance
from lltoolkit.labelled.trajectory import adopt_steps, empty_trajectory, fill_step, is_missing, summarize
from lltoolkit.store import TableFile, require_writable
from lltoolkit.tensors.checkpoints import Checkpoint
from lltoolkit.tensors.engines import Engine, make_engine, require_match
from lltoolkit.tensors.objective import Objective, Values
from lltoolkit.tensors.params import Params, sha256
from lltoolkit.tensors.restore import restore
from lltoolkit.tensors.subspace import Subspace


def project_trajectory(
    run: Source,
    subspace: Subspace,
    objective: Objective | None = None,
    *,
    path: str | Path | None = None,
    resume: bool = True,
    damaged: Literal["stop", "skip"] = "stop",
    progress: bool = True,
) -> xr.Dataset:
    """Project the checkpoints of a training on a line, plane or volume.

    Each checkpoint goes to the nearest point of the subspace, by least squares, whatever the lengths of the directions
    and the angles between them: ``subspace.at(alpha, beta)`` is that point. (The code of Li et al. gives the length of
    the projection instead, which is a coordinate only for orthogonal directions of length 1.) What lies outside is told
    beside it, and with an objective what is lost by that: the contour under a path is not the loss along the path.

    Parameters
    ----------
    run : Run, path of a folder, or sequence of Checkpoint
        The training, its folder or any that `open_checkpoints` reads, also while it is being written: with `path` a
        later call goes on. One training gives one result; for several on one subspace write
        ``{name: project_trajectory(run, plane) for name, run in runs.items()}``.
    subspace : Subspace
        Any: `pca_subspace`, `random_subspace`, `interpolate`, `hessian_subspace`, or one of your own.
    objective : Objective, optional
        Of the same model: measure each checkpoint, with all of its own weights and buffers, and the point under it.
    path : str or Path, optional
        Where to keep the result, ``<name>.trajectory.nc``; written about every second. A subspace that is not random is
        kept beside it.
    resume : bool
        True: checkpoints that `path` knows are not measured again. It holds what was asked for last. False: replace it.
    damaged : {"stop", "skip"}
        What to do about a checkpoint whose file is missing or damaged, or that holds NaN: raise, or leave it out, with
        a warning in the log.
    progress : bool
        Show a progress bar.

    Returns
    -------
    xr.Dataset
        In the order of the steps::

            alpha, [beta, [gamma]]  (step)         float64  coordinates, in units of the directions
            residual                (step)         float64  norm of what lies outside the subspace over the norm of the
                                                            displacement from its origin, in [0, 1]; 0 at the origin
            residual_weights        (step)         float64  the same over tensors with two or more axes alone
            residual_bias_bn        (step)         float64  and over biases and batch norm's scale and shift; a part may
                                                            pass 1, where the point nearest in all misfits it
            distance                (step)         float64  norm of the displacement
            status                  (step)         int8     1 computed, 0 missing: only where it was interrupted
            checkpoint_sha256       (step)         str      of the tensors in the file
            explained_variance      (axis)         float64  share of the checkpoints' variance, of a PCA; else NaN
            explained_variance_null (axis)         float64  the share that a random walk of that length gives
            loss, accuracy, ...     (split, step)  float64  of the checkpoint itself
            plane_loss, ...         (split, step)  float64  of the point under it, as `compute_surface` measures there

        with the coords ``epoch`` and ``learning_rate`` (NaN where they are not on record). A loss that is NaN stays
        NaN. Attributes: ``captured_share``, the squares of what lies inside over those of the displacements, summed
        over checkpoints; ``n_checkpoints``, ``n_skipped``, ``run``, and as of a surface.

        Buffers (batch-norm statistics) count in no coordinate and no residual. A checkpoint is measured with its own,
        a point of the subspace with those that the subspace gives it, or the objective's; with
        ``buffers="recompute"`` both with recomputed ones.

    Raises
    ------
    ValueError
        For several runs at once, no checkpoint, two of one step, one that is of another model, holds NaN or is damaged,
        or keeps only a sketch.
    FileNotFoundError
        If there is no such run, or a checkpoint's file is gone.
    ResumeMismatch
        If `path` holds a path on another subspace, or measured by another objective.
    SchemaError
        If `path` holds something else, or a damaged result; only with `resume`.
    NondeterministicObjective
        If two measurements of the minimizer differ.
    OSError
        If `path` can't be written.
    RuntimeError
        If another process is writing `path`.

    References
    ----------
    Li et al. (2018), Visualizing the Loss Landscape of Neural Nets, section 7.

    Examples
    --------
    >>> import tempfile
    >>> from lltoolkit.tensors.checkpoints import list_checkpoints, save_checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for step, weights in enumerate(([3.0, 4.0], [3.0, 0.0], [0.0, 0.0])):
    ...         _ = save_checkpoint(folder, {"w": torch.tensor(weights)}, step=step, epoch=step)
    ...     line = Subspace({"w": torch.zeros(2)}, [{"w": torch.tensor([2.0, 0.0])}])
    ...     path = project_trajectory(list_checkpoints(folder), line, progress=False)
    >>> path["alpha"].values.tolist(), path["residual"].values.round(3).tolist()
    ([1.5, 1.5, 0.0], [0.8, 0.0, 0.0])
    """
    if not isinstance(subspace, Subspace):
        raise ValueError(f"subspace is a {type(subspace).__name__}; give one Subspace, pca_subspace(run) for example.")
    if objective is not None:
        if not isinstance(objective, Objective):
            raise ValueError(f"objective is a {type(objective).__name__}; give Objective(model, data), or None.")
        require_match(objective, subspace)
    reader = CheckpointReader(run, damaged, call="project_trajectory(run, plane)")
    reader.require_weights()
    if objective is None:
        reader.require_all_in(subspace)
    with ExitStack() as stack:
        file, stored = None, None
        if path is not None:
            file = stack.enter_context(TableFile(require_writable(path, 10**6, "trajectory")))
            stored = file.load() if resume else None
        if stored is not None:
            _require_same(stored, objective, subspace, file.path)
        before: Mapping[str, Any] = {} if stored is None else stored.attrs
        how: dict[str, Any] = {}
        engine = None
        if objective is not None:
            engine = make_engine(objective, subspace, before.get("engine", "auto"))
            how = {
                "engine": engine.name,
                "batch_size": before.get("batch_size", objective.batch_size),
                "n_threads": before.get("n_threads", objective.n_threads),
                "precision": "exact",
            }
            stack.enter_context(computing(objective, how))
        hashes = reader.hashes(set() if stored is None else set(stored["step"].values.tolist()))
        projected = _lay_out(reader, hashes, subspace, objective, how, stored)
        todo = set(projected["step"].values[is_missing(projected)].tolist()) - reader.skipped
        if objective is not None and (todo or objective.has_own_functions):
            if todo:
                objective.verify()
            if stored is not None:
                require_same_minimum(stored, objective.at_minimizer(), file.path)
        if file is not None:
            keep_subspaces([subspace], file.path)
        if todo:
            _fill(projected, todo, reader, _Meter(subspace, engine), file, progress)
        projected = _whole(projected, reader)
        if file is not None and (stored is None or not projected.identical(stored)):
            file.write(projected)
        return projected


class _Meter:
    """Takes all numbers of one checkpoint after another, in one network."""

    def __init__(self, subspace: Subspace, engine: Engine | None) -> None:
        self.subspace = subspace
        self._projector = subspace.projector()
        self._engine = engine
        if engine is not None:
            # A network of its own: the parameters that the objective does not move are other ones at a checkpoint.
            self._probe = engine.objective.moved_to(engine.objective.theta)

    def numbers(self, checkpoint: Checkpoint, weights: Params, state: State) -> dict[str, Any]:
        """Project and measure a checkpoint.

        Returns
        -------
        dict
            Variable to its value, or its values by split.
        """
        projection = self._projector.project(weights)
        found: dict[str, Any] = dict(zip(self.subspace.axes, projection.coordinates, strict=True))
        found |= {
            "residual": projection.residual(),
            "residual_weights": projection.residual(lambda name: weights[name].ndim >= 2),
            "residual_bias_bn": projection.residual(lambda name: weights[name].ndim < 2),
            "distance": projection.distance,
        }
        if self._engine is not None:
            model = self._probe.network.model
            restore(model, _as_in(model.state_dict(), state), source=str(checkpoint.path))
            found |= self._by_split(self._probe.measure_current(), "")
            found |= self._by_split(self._engine.measure(projection.coordinates), "plane_")
        return found

    def _by_split(self, values: Values, prefix: str) -> dict[str, np.ndarray]:
        names = dict.fromkeys(name for _, name in values)
        splits = self._probe.splits
        return {prefix + name: np.array([values[split, name] for split in splits], dtype=np.float64) for name in names}


def _as_in(own: State, state: State) -> dict[str, Tensor]:
    """Give the values of a state the types of a network's own: what it runs in is the objective's choice."""
    return {
        name: tensor.to(own[name].dtype) if tensor.is_floating_point() and name in own else tensor
        for name, tensor in state.items()
    }


def _lay_out(
    reader: CheckpointReader,
    hashes: Mapping[int, str],
    subspace: Subspace,
    objective: Objective | None,
    how: Mapping[str, Any],
    stored: xr.Dataset | None,
) -> xr.Dataset:
    """Lay out the path, with what is stored of it filled in."""
    if stored is not None:
        attrs = dict(stored.attrs)
    elif objective is not None:
        attrs = describe_surface(objective, [subspace], how, kind="trajectory")
    else:
        attrs = _describe(reader, subspace)
    attrs |= {"run": reader.name}
    minimum = {} if objective is None else objective.at_minimizer()
    projected = empty_trajectory(
        [row_of(one, hashes.get(one.step, "")) for one in reader.checkpoints],
        subspace.axes,
        () if objective is None else objective.splits,
        list(dict.fromkeys(name for _, name in minimum)),
        units="1" if objective is None else objective.units,
        attrs=attrs,
        explained={name: share for name, share in subspace.config.items() if name.startswith("explained_variance")},
    )
    if stored is not None:
        adopt_steps(projected, stored)
    return projected


def _describe(reader: CheckpointReader, subspace: Subspace) -> dict[str, Any]:
    """Collect the attributes of a path that nothing was measured of."""
    about = provenance(
        "trajectory",
        config={},
        model=reader.model,
        n_params=sum(tensor.numel() for tensor in subspace.weights(subspace.origin).values()),
        device="cpu",
        torch_version=str(torch.__version__),
    )
    return {**about, **identity(None, [subspace]), **describe_subspaces([subspace])}


def _fill(
    projected: xr.Dataset,
    todo: set[int],
    reader: CheckpointReader,
    meter: _Meter,
    file: TableFile | None,
    progress: bool,
) -> None:
    """Project and measure these steps, and keep them about every second; in place."""
    written, is_new = time.monotonic(), False
    try:
        with tqdm(total=len(todo), unit="checkpoint", disable=not progress, desc="trajectory") as bar:
            for place, checkpoint, state in reader.read(todo):
                bar.update()
                weights = weights_in(checkpoint, state, meter.subspace)
                if broken := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
                    reader.skip(checkpoint, ValueError(_not_finite(checkpoint, broken)))
                    continue
                fill_step(projected, place, meter.numbers(checkpoint, weights, state))
                projected["checkpoint_sha256"].values[place] = sha256(dict(state))
                is_new = True
                if file is not None and time.monotonic() - written > TILE_SECONDS:
                    file.write(_summed_up(projected, reader))
                    written, is_new = time.monotonic(), False
    except BaseException:  # after an interrupt or a failure too, what is done is kept
        if file is not None and is_new:
            file.write(_summed_up(projected, reader))
        raise


def _not_finite(checkpoint: Checkpoint, broken: Sequence[str]) -> str:
    more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
    return (
        f"{checkpoint.path} holds NaN or inf in {', '.join(broken[:3])}{more}: the training diverged before it was "
        "written, and it lies nowhere."
    )


def _summed_up(projected: xr.Dataset, reader: CheckpointReader) -> xr.Dataset:
    return projected.assign_attrs(summarize(projected) | {"n_skipped": len(reader.skipped)})


def _whole(projected: xr.Dataset, reader: CheckpointReader) -> xr.Dataset:
    """Give the path without the checkpoints that were left out."""
    kept = projected.isel(step=np.flatnonzero(~is_missing(projected)))
    if not kept.sizes["step"]:
        raise ValueError(f"none of the {len(reader.skipped)} checkpoints can be used; the log says why.")
    return _summed_up(kept, reader)


def _require_same(stored: xr.Dataset, objective: Objective | None, subspace: Subspace, path: Path) -> None:
    """Check that a stored path lies on this subspace and was measured by this objective, or by none as now."""
    if stored.attrs["kind"] == "trajectory" and ("theta_sha256" in stored.attrs) != (objective is not None):
        there, here = (
            ("with an objective", "without one") if objective is None else ("without an objective", "with one")
        )
        raise ResumeMismatch(
            f"{path} was projected {there}, and is asked for {here}. Use another path, or resume=False to replace it."
        )
    require_same(stored, objective, [subspace], path, kind="trajectory")
