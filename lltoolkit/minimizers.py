"""The minimizers that are compared: models by name, or the checkpoints of one training, each as an objective."""

import copy
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from torch import Tensor, nn

from lltoolkit.tensors.checkpoints import Checkpoint
from lltoolkit.tensors.measures import Gathered, standard_error
from lltoolkit.tensors.objective import Objective
from lltoolkit.tensors.params import Params, buffers_of, parameters_of, sha256
from lltoolkit.tensors.stability import threshold_of
from lltoolkit.tensors.subspace import require_fit
from lltoolkit.zoo.runs import Run

Initial: TypeAlias = Params | nn.Module | Objective
ENDLESS = 2**62  # so large a population that its correction is 1

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Minimizer:
    """One row of a table.

    Attributes
    ----------
    name : str or int
        Of the model, or the number of the step.
    make : callable
        Gives the objective that stands there; cheap enough to be called twice.
    initial : Params or None
        Its weights at initialization, where they are known.
    told : dict
        Further coordinates of the row.
    """

    name: str | int
    make: Callable[[], Objective]
    initial: Params | None = None
    told: dict[str, float] = field(default_factory=dict)


def read_minimizers(
    models: Any, objective: Objective | None, initial: Any
) -> tuple[str, list[Minimizer], dict[str, str]]:
    """Read what is to be measured.

    Parameters
    ----------
    models : mapping of str to Objective, Run, or sequence of Checkpoint
        Models by name, or a training.
    objective : Objective, optional
        What is measured at the checkpoints of a training.
    initial : None, Params, nn.Module, Objective, or mapping of name to these
        The weights at initialization.

    Returns
    -------
    (str, list of Minimizer, dict)
        The dim, "model" or "step"; its rows; attributes of the table.

    Raises
    ------
    ValueError
        If it is neither, or `objective` is missing or too much.
    """
    if isinstance(models, Mapping):
        if objective is not None:
            raise ValueError("objective= is for a training; models by name have objectives of their own.")
        return "model", minimizers_of_models(models, initial), {}
    checkpoints = isinstance(models, Sequence) and all(isinstance(each, Checkpoint) for each in models)
    if not (isinstance(models, Run) or checkpoints):
        raise ValueError(
            f"models is a {type(models).__name__}; give {{name: Objective}}, a Run (zoo.open_run) or its checkpoints."
        )
    if not isinstance(objective, Objective):
        raise ValueError(
            "a training needs objective=, an Objective of the same architecture: it says which loss on which examples "
            "is measured at the checkpoints. For example objective=Objective(run.model, data)."
        )
    rows = minimizers_of_run(models, objective, initial)
    return "step", rows, stability_of(models, objective) if isinstance(models, Run) else {}


def minimizers_of_models(models: Mapping[str, Objective], initial: Any) -> list[Minimizer]:
    """Read models by name.

    Parameters
    ----------
    models : mapping
        Name to its objective.
    initial : None, Params, nn.Module, Objective, or mapping of name to these
        The weights at initialization, of each model or of all.

    Returns
    -------
    list of Minimizer
        In the order given.

    Raises
    ------
    ValueError
        If something is no objective, a name is given twice, or initial weights do not fit.
    """
    for name, given in models.items():
        if not isinstance(given, Objective):
            raise ValueError(
                f"models[{name!r}] is a {type(given).__name__}; give an Objective: Objective(model, data)."
            )
    if not models or len({str(name) for name in models}) < len(models):
        raise ValueError(f"models has the names {list(models)}: give at least one model, each with its own name.")
    each = _initial_of(initial, list(models))
    return [
        Minimizer(str(name), partial(_same, given), _weights(each.get(name), given, f"model {name!r}"))
        for name, given in models.items()
    ]


def minimizers_of_run(run: Run | Sequence[Checkpoint], objective: Objective, initial: Any) -> list[Minimizer]:
    """Read the checkpoints of a training, each as `objective` moved to its weights and buffers.

    Parameters
    ----------
    run : Run or sequence of Checkpoint
        The training; a Run also gives the initial weights, those of its first checkpoint, and the threshold of its
        optimizer.
    objective : Objective
        Of the same architecture.
    initial : None, Params, nn.Module or Objective
        Other initial weights.

    Returns
    -------
    list of Minimizer
        In the order of the steps.

    Raises
    ------
    ValueError
        If there is no checkpoint, two have one step, or they are of another architecture.
    """
    checkpoints = sorted(run.checkpoints if isinstance(run, Run) else run, key=lambda each: each.step)
    steps = [each.step for each in checkpoints]
    if not steps or len(set(steps)) < len(steps):
        found = (
            f"{run.path} has no complete checkpoint yet" if isinstance(run, Run) else f"the checkpoints' steps: {steps}"
        )
        raise ValueError(f"{found}; at least one is needed, and each of another step.")
    template = copy.deepcopy(objective.network.model).cpu()
    if initial is None and isinstance(run, Run):
        initial = parameters_of(checkpoints[0].load_into(template))
    start = _weights(initial, objective, "initial")
    thresholds = thresholds_of(run, checkpoints, objective) if isinstance(run, Run) else {}
    return [
        Minimizer(
            each.step,
            partial(_at_checkpoint, objective, template, each),
            start,
            {
                "epoch": each.epoch,
                "learning_rate": _learning_rate(each),
                "stability_threshold": thresholds.get(each.step, math.nan),
            },
        )
        for each in checkpoints
    ]


def thresholds_of(run: Run, checkpoints: Sequence[Checkpoint], objective: Objective) -> dict[int, float]:
    """Give the sharpness that a training's optimizer bears at each step's learning rate; empty if not on record."""
    found = {}
    for each in checkpoints:
        rate = _learning_rate(each)
        if rate == 0:
            found[each.step] = math.inf
            continue
        try:
            found[each.step] = threshold_of(run.config, lr=None if math.isnan(rate) else rate).value
        except ValueError as error:
            log.info("no stability threshold: %s", error)
            return {}
    return found


def stability_of(run: Run, objective: Objective) -> dict[str, str]:
    """Say what the stability threshold of a training is held against, and whether it holds there.

    Returns
    -------
    dict
        ``stability``, the statement, and ``stability_hessian``, "euclidean" or "preconditioned"; empty where the
        training's record does not name its optimizer.
    """
    # One step an epoch is what the checkpoints show of a full-batch training; the objective may hold other examples.
    last = max(run.checkpoints, key=lambda each: each.step)
    n_examples = objective.n_total.get("train")
    if n_examples is not None and (run.config.get("batch_size", 0) >= n_examples) != (last.step == last.epoch):
        n_examples = None
    try:
        found = threshold_of(run.config, n_examples=n_examples)
    except ValueError as error:
        return {"stability": f"unknown: {error}", "stability_hessian": "none"}
    adaptive = "; not to be held against lambda_max, which is of H itself" if found.hessian != "euclidean" else ""
    return {"stability": found.text + adaptive, "stability_hessian": found.hessian}


def _learning_rate(checkpoint: Checkpoint) -> float:
    rate = checkpoint.metadata.get("learning_rate")
    return math.nan if rate is None else float(rate)


def _same(objective: Objective) -> Objective:
    return objective


def _at_checkpoint(objective: Objective, template: nn.Module, checkpoint: Checkpoint) -> Objective:
    """Move an objective to a checkpoint; `template` is a model of its architecture that may be written over."""
    checkpoint.load_into(template)
    return objective.moved_to(parameters_of(template), buffers_of(template))


def _initial_of(initial: Any, names: Sequence[str]) -> dict[str, Initial]:
    """Read initial weights by model."""
    if initial is None:
        return {}
    if isinstance(initial, nn.Module | Objective) or _are_params(initial):
        return dict.fromkeys(names, initial)
    if not isinstance(initial, Mapping):
        raise ValueError(
            f"initial is a {type(initial).__name__}; give weights (a module, an objective or tensors by name), or "
            "{name of a model: weights}."
        )
    if unknown := [name for name in initial if name not in names]:
        raise ValueError(f"initial names {unknown[0]!r}, which is none of the models {', '.join(map(str, names[:5]))}.")
    return dict(initial)


def _are_params(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(each, Tensor) for each in value.values())


def _weights(initial: Initial | None, objective: Objective, what: str) -> Params | None:
    """Give initial weights as the objective's own are: the same names, shapes and type."""
    if initial is None:
        return None
    if isinstance(initial, Objective):
        initial = initial.theta
    elif isinstance(initial, nn.Module):
        initial = parameters_of(initial)
    elif not _are_params(initial):
        raise ValueError(
            f"initial of {what} is a {type(initial).__name__}; give a module, an objective or tensors by name."
        )
    theta = objective.theta
    chosen = {name: tensor for name, tensor in initial.items() if name in theta}
    require_fit(chosen, theta, what=f"initial of {what}", against="its objective")
    return {name: chosen[name].detach().to("cpu", tensor.dtype) for name, tensor in theta.items()}


@contextmanager
def computing(objective: Objective, batch_size: int, n_threads: int) -> Iterator[None]:
    """Compute in such batches and threads for a while: both show in a value's last bits."""
    before = objective.batch_size, objective.n_threads, objective.precision
    objective.compute_as(batch_size, n_threads, objective.precision)
    try:
        yield
    finally:
        objective.compute_as(*before)


def how_it_generalizes(objective: Objective) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Measure an objective's minimizer on its splits "train" and "test".

    Returns
    -------
    dict
        ``train_loss``, ``train_loss_se``, ``train_error`` and so on, of the splits and metrics that there are. Standard
        errors are of a population without end that the examples were drawn from.
    dict
        ``test_example_loss`` and ``test_example_error``, shape ``(n_examples,)`` on the CPU, where the loss gives
        values by example and each counts the same.
    """
    with objective.measuring():
        objective.network.flat.copy_(objective.network.flatten(objective.theta))
        objective.network.write_buffers({})
        gathered = objective.gather()[0]
    record: dict[str, float] = {}
    examples: dict[str, Tensor] = {}
    for split in ("train", "test"):
        for metric, name in (("loss", "loss"), ("accuracy", "error")):
            found = gathered.get((split, metric))
            if found is None:
                continue
            if metric == "accuracy":
                found = Gathered(1 - found.values, found.weights, found.per_example)
            record[f"{split}_{name}"] = found.mean()
            if found.per_example:
                spread = standard_error(found.values, found.weights, ENDLESS)
                record[f"{split}_{name}_se"] = spread
                if split == "test" and found.weights is None:
                    examples[f"test_example_{name}"] = found.values.cpu()
    return record, examples


def sha256_or_none(vector: Params | None) -> str:
    """Hash weights; an empty text where there are none."""
    return "" if vector is None else sha256(vector)
