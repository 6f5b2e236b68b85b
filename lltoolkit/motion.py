"""``trajectory_statistics``: how a training moves, from the inner products of its checkpoints alone."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr

from lltoolkit.checkpoint_reader import CheckpointReader, Source, row_of
from lltoolkit.labelled.provenance import provenance
from lltoolkit.labelled.trajectory import N_COMPONENTS, path_statistics
from lltoolkit.tensors.checkpoints import SKETCH, Checkpoint
from lltoolkit.tensors.gram import gram, load_parameters, parameter_names
from lltoolkit.tensors.params import Params, name_of_filter, norm
from lltoolkit.tensors.pca import WeightFilter, choose_weights
from lltoolkit.tensors.random_walk import walk_variance
from lltoolkit.tensors.sketch import sketch


def trajectory_statistics(
    run: Source, *, parameters: WeightFilter = None, damaged: Literal["stop", "skip"] = "stop"
) -> xr.Dataset:
    """Tell how a training moves through the space of weights: distances, lengths and angles.

    Parameters
    ----------
    run : Run, path of a folder, or sequence of Checkpoint
        The training, its folder or any that `open_checkpoints` reads; sketches will do (``thin="projection"``).
    parameters : str, callable or None
        Which weights count: a regular expression searched in the name, ``"weights"`` for tensors with two or more axes,
        or ``f(name, tensor) -> bool``. Default all, without buffers.
    damaged : {"stop", "skip"}
        What to do about a checkpoint whose file is missing or damaged, or that holds NaN: raise, or leave it out, with
        a warning in the log.

    Returns
    -------
    xr.Dataset
        In the order of the steps; "a step" is the way from the checkpoint before::

            distance_from_start     (step)             float64  in units of the weights, as all lengths here
            distance_to_end         (step)             float64
            step_length             (step)             float64  NaN at the first
            path_length             (step)             float64  sum of the step lengths so far
            cosine_to_previous      (step)             float64  between a step and the one before; NaN at the first two
            cosine_to_displacement  (step)             float64  between a step and the way from the first checkpoint to
                                                                the last; NaN at the first
            cosine_to_end           (step)             float64  between a step and the way that was left before it
            theta_norm              (step)             float64  norm of the weights
            principal               (step, component)  float64  principal coordinates about the last checkpoint, of at
                                                                most 10 components
            explained_variance      (component)        float64  share of the squared distances to the end, in [0, 1]
            explained_variance_null (component)        float64  the share that a random walk of as many steps gives

        with the coords ``epoch`` and ``learning_rate`` (NaN where they are not on record). A step of length 0 has no
        angle: NaN. Where sketches stand for weights, all numbers are estimates, and the attribute ``sketch`` is the
        number of entries: a cosine is off by about ``1 / sqrt(sketch)``.

    Raises
    ------
    ValueError
        For several runs, fewer than 2 checkpoints, two of one step, one that is of another model, holds NaN or is
        damaged, or `parameters` beside sketches.
    FileNotFoundError
        If there is no such folder.

    Notes
    -----
    Cosines near -1 from step to step are an optimizer that bounces between two walls, near 0 one that diffuses (random
    steps in many dimensions are orthogonal), near 1 one that goes straight.

    References
    ----------
    Antognini and Sohl-Dickstein (2018), PCA of high dimensional random walks with comparison to neural network
    training, for ``explained_variance_null``.

    Examples
    --------
    >>> import tempfile
    >>> from lltoolkit.tensors.checkpoints import save_checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for step, weights in enumerate(([3.0, 4.0], [3.0, 0.0], [0.0, 0.0])):
    ...         _ = save_checkpoint(folder, {"w": torch.tensor(weights)}, step=step, epoch=step)
    ...     statistics = trajectory_statistics(folder)
    >>> statistics["distance_to_end"].values.tolist(), statistics["path_length"].values.tolist()
    ([5.0, 3.0, 0.0], [0.0, 4.0, 7.0])
    """
    reader = CheckpointReader(run, damaged, call="trajectory_statistics(run)")
    n_entries = next((each.metadata["sketch"] for each in reader.checkpoints if each.is_sketch), None)
    if n_entries is not None and parameters is not None:
        raise ValueError("parameters= chooses among weights, and this training kept sketches of all of them.")
    names: Sequence[str] = parameter_names(reader.checkpoints, reader.run)
    kept, norms, n_weights = [], [], n_entries
    for checkpoint in reader.checkpoints:
        try:
            weights = _read(checkpoint, names, n_entries)
        except (OSError, ValueError) as error:
            reader.skip(checkpoint, error)
            continue
        if n_weights is None:
            names = choose_weights(weights, parameters)
            n_weights = sum(weights[name].numel() for name in names)
        kept.append(checkpoint)
        norms.append(norm({name: weights[name] for name in (names if n_entries is None else weights)}))
    if len(kept) < 2:
        raise ValueError(f"{reader.name!r} has {len(kept)} checkpoints that can be read; a path takes 2 at least.")
    products = gram(kept, names=names, reference=len(kept) - 1)
    steps = [checkpoint.step for checkpoint in kept]
    null = walk_variance(steps, n_components=min(N_COMPONENTS, len(kept) - 1), n_weights=n_weights)
    return path_statistics(
        products.numpy(),
        np.array(norms),
        [row_of(checkpoint) for checkpoint in kept],
        attrs=_describe(reader, parameters, len(kept), n_weights, n_entries),
        null_shares=null,
    )


def _read(checkpoint: Checkpoint, names: Sequence[str], n_entries: int | None) -> Params:
    """Read the weights, or their sketch of so many entries."""
    if checkpoint.is_sketch:
        return {SKETCH: checkpoint.sketch()}
    weights = load_parameters(checkpoint, names)
    return weights if n_entries is None else {SKETCH: sketch(weights, n_entries)}


def _describe(
    reader: CheckpointReader, parameters: WeightFilter, n_kept: int, n_weights: int, n_entries: int | None
) -> dict[str, Any]:
    config = {"parameters": name_of_filter(parameters), "sketch": n_entries or "none"}
    about = provenance(
        "statistics",
        config=config,
        model=reader.model,
        n_params=n_weights,
        device="cpu",
        torch_version=str(torch.__version__),
    )
    told = {"run": reader.name, "n_checkpoints": n_kept, "n_skipped": len(reader.skipped)}
    return about | told | ({} if n_entries is None else {"sketch": int(n_entries)})
