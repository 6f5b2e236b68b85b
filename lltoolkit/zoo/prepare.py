"""Before the first step: the options checked, the data read, the network built, and all tried together."""

import copy
import math
from collections.abc import Mapping
from numbers import Integral
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lltoolkit.errors import require_choice
from lltoolkit.tensors.examples import read_splits
from lltoolkit.tensors.measures import require_labels
from lltoolkit.tensors.params import sha256
from lltoolkit.zoo.models import build_model
from lltoolkit.zoo.recipe import AUGMENTS, OPTIMIZERS, SCHEDULES
from lltoolkit.zoo.recording import Keeping
from lltoolkit.zoo.runs import Every, describe_model

RECORDS = ("dtype", "thin", "n_last", "n_projected", "optimizer_state")
Splits: TypeAlias = dict[str, tuple[Tensor, Tensor]]


def read_options(
    *,
    optimizer: str,
    lr: float | None,
    momentum: float,
    batch_size: int,
    weight_decay: float,
    epochs: int,
    schedule: str,
    augment: str,
    seed: int,
    every: Every,
    record: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Check the options of a training, which ``train`` describes.

    Returns
    -------
    dict
        The same, as a run's record has them: plain numbers, and the default learning rate filled in.

    Raises
    ------
    ValueError
        If one is not allowed.
    """
    require_choice("optimizer", optimizer, OPTIMIZERS)
    require_choice("schedule", schedule, SCHEDULES)
    require_choice("augment", augment, AUGMENTS)
    record = dict(record or {})
    for name in record:
        require_choice("record's option", name, RECORDS)
    kept = Keeping(every, **record).describe()
    for name, value, least in (("batch_size", batch_size, 1), ("epochs", epochs, 1), ("seed", seed, 0)):
        _require_count(name, value, least)
    lr = OPTIMIZERS[optimizer] if lr is None else lr
    if not (math.isfinite(lr) and lr > 0):
        raise ValueError(f"lr={lr!r}: give a finite number above 0.")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum={momentum!r}: give a number in [0, 1).")
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise ValueError(f"weight_decay={weight_decay!r}: give a finite number of at least 0.")
    return {
        "optimizer": optimizer,
        "lr": float(lr),
        "momentum": float(momentum),
        "batch_size": int(batch_size),
        "weight_decay": float(weight_decay),
        "epochs": int(epochs),
        "schedule": schedule,
        "augment": augment,
        "seed": int(seed),
        "every": kept.pop("every"),
    } | ({"record": kept} if kept else {})


def _require_count(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name}={value!r}: give a whole number of at least {least}.")


def read_tensors(data: Any) -> Splits:
    """Read the splits of `data`, in whatever form they came, each as inputs and labels on the CPU.

    Returns
    -------
    dict
        With ``"train"``: floating-point inputs in float32, labels as whole numbers in int64.

    Raises
    ------
    ValueError
        If a split is more than one tensor of inputs and one of labels, or none is called ``"train"``.
    """
    splits: Splits = {}
    for name, examples in read_splits(data, None, 0).items():
        if not isinstance(examples.inputs, Tensor) or examples.target is None:
            raise ValueError(
                f"split {name!r}: train() takes one tensor of inputs and one of labels. For models with several inputs "
                "write your own loop with ll.Recorder."
            )
        x, y = examples.inputs, examples.target
        splits[name] = (x.float() if x.is_floating_point() else x, y if y.is_floating_point() else y.long())
    if "train" not in splits:
        raise ValueError(f"data has the splits {sorted(splits)}; one called 'train' is needed.")
    return splits


def describe_data(data: Any, splits: Splits) -> dict[str, Any]:
    """Say what a network is trained on, for the record: name, normalization, and a hash of every number."""
    tensors = {f"{split}/{part}": t for split, pair in splits.items() for part, t in zip("xy", pair, strict=True)}
    return {
        "name": getattr(data, "name", "given"),
        "normalize": getattr(data, "normalize", "as given"),
        "sha256": sha256(tensors),
    }


def build_network(
    model: str | nn.Module, options: Mapping[str, Any] | None, data: Any, splits: Splits
) -> tuple[nn.Module, dict[str, Any]]:
    """Build the model of a name to fit the data, or copy a module.

    Returns
    -------
    nn.Module
        Its random weights are drawn from the global stream, which the caller has seeded.
    dict
        What it is, for the record.

    Raises
    ------
    ValueError
        If the model has nothing to train, or an option or the data do not suit it.
    """
    if isinstance(model, nn.Module):
        if options:
            raise ValueError(f"model_options={dict(options)!r} are for a model given by its name, not for a module.")
        network = copy.deepcopy(model)
        if not any(weight.requires_grad for weight in network.parameters()):
            raise ValueError(f"this {type(model).__name__} has no parameter with requires_grad=True: nothing to train.")
        return network, {**describe_model(network), "initial_sha256": sha256(network.state_dict())}
    x, _ = splits["train"]
    if x.ndim != 4:
        raise ValueError(f"model={model!r} takes images (N, C, H, W), the inputs are {tuple(x.shape)}. Pass a module.")
    found = {
        "in_channels": x.shape[1],
        "input_size": tuple(x.shape[2:]),
        "n_classes": getattr(data, "n_classes", None) or int(max(y.max() for _, y in splits.values())) + 1,
    }
    options = dict(options or {})
    if unknown := [key for key in options if key not in ("shortcut", "width", *found)]:
        raise ValueError(
            f"model_options has {unknown}; allowed are 'shortcut' and 'width', the rest comes from the data."
        )
    network = build_model(model, **{**found, **options})
    return network, dict(network.zoo_config)


def require_logits(network: nn.Module, splits: Splits) -> None:
    """Run two examples through the model, so that a misfit shows before anything is written.

    Raises
    ------
    ValueError
        If the model fails, or answers with no logits for the labels.
    """
    x, _ = splits["train"]
    network.eval()
    try:
        with torch.no_grad():
            logits = network(x[:2])
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ValueError(
            f"the model fails on inputs of shape {tuple(x[:2].shape)} and type {x.dtype}: {error}. Build it for these "
            "data (in_channels, input_size), or pass its name, so that train() does."
        ) from error
    for name, (_, y) in splits.items():
        require_labels(logits, y, f"split {name!r}")
