"""The training loop: the paper's recipe, data kept on the device, every random number from the seed.

Nothing random is carried from step to step: the order of an epoch follows from (seed, epoch), augmentation and dropout
of a step from (seed, step). A training that was cut off therefore goes on exactly as if it had not been, from the
weights, the optimizer's state and the counters that ``resume.pt`` holds. Bit for bit on one CPU with one number of
threads; a GPU adds up in an order of its own.
"""

import copy
import hashlib
import math
import pickle
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from lltoolkit.errors import DivergedTraining, ResumeMismatch, require_choice
from lltoolkit.files import write_atomically
from lltoolkit.tensors.checkpoints import list_checkpoints, save_checkpoint
from lltoolkit.tensors.examples import read_splits
from lltoolkit.tensors.measures import require_labels
from lltoolkit.tensors.params import sha256
from lltoolkit.zoo.models import build_model
from lltoolkit.zoo.recorder import (
    Every,
    Run,
    checkpoints_of,
    clear_run,
    describe_model,
    history_attrs,
    open_run,
    read_note,
    require_every,
    row,
    save_history,
    write_note,
)

Splits: TypeAlias = dict[str, tuple[Tensor, Tensor]]

OPTIMIZERS = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3}  # with the default learning rate
SCHEDULES = ("step", "cosine", "constant")
AUGMENTS = ("auto", "crop_flip", "none")
DROPS = ((1, 2), (3, 4), (11, 12))  # of the epochs: 150, 225, 275 of the paper's 300
PADDING = 4  # pixels on each side before the crop
TEST_BATCH = 1000  # examples; shows in nothing but memory
RESUME = "resume.pt"


@dataclass
class _State:
    """Where a training stands, apart from weights and optimizer."""

    step: int = 0
    loss_sum: float = 0.0  # over the epoch so far, as are the next two
    n_right: int = 0
    n_seen: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)


def train(
    model: str | nn.Module,
    data: Any,
    *,
    model_options: Mapping[str, Any] | None = None,
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd",
    lr: float | None = None,
    momentum: float = 0.9,
    batch_size: int = 128,
    weight_decay: float = 5e-4,
    epochs: int = 300,
    schedule: Literal["step", "cosine", "constant"] = "step",
    augment: Literal["auto", "crop_flip", "none"] = "auto",
    seed: int = 0,
    out: str | Path | None = None,
    every: Every = "epoch",
    device: str | torch.device = "auto",
    progress: bool = True,
    resume: bool = True,
) -> Run:
    """Train a classifier on cross-entropy; the defaults are the paper's recipe.

    Parameters
    ----------
    model : str or nn.Module
        A name for ``build_model``, or any module that maps a batch of inputs to logits ``(B, n_classes)``. A module is
        copied: the training begins from its weights, and it stays as it is.
    data : LoadedData, or mapping of splits
        ``{"train": (x, y), "test": (x, y)}``, or any other form that ``Objective`` takes with one tensor of inputs;
        ``"train"`` is trained on, the others are measured after each epoch.
    model_options : mapping, optional
        For a name: ``shortcut``, ``width``. ``in_channels``, ``n_classes`` and ``input_size`` come from the data.
    optimizer : {"sgd", "adam", "adamw"}
        SGD is with Nesterov momentum.
    lr : float, optional
        Learning rate at the start; 0.1 for SGD, 0.001 for Adam and AdamW.
    momentum : float
        Of SGD; the first beta of Adam and AdamW. In [0, 1).
    batch_size : int
        Examples per step; larger than the data means one step per epoch. A shorter last batch is kept; one of a single
        example joins the batch before, since batch norm can't be trained on one.
    weight_decay : float
        As torch's optimizers take it: on all parameters; decoupled for AdamW.
    epochs : int
        At least 1.
    schedule : {"step", "cosine", "constant"}
        ``"step"``: divided by 10 at 1/2, 3/4 and 11/12 of the epochs. ``"cosine"``: to 0, step by step.
    augment : {"auto", "crop_flip", "none"}
        Random crops (4 pixels of black on each side) and mirror images. ``"auto"``: for colour images of 32x32.
    seed : int
        Of everything random: weights, order, augmentation, dropout. The global random numbers stay untouched.
    out : str or Path, optional
        Folder of the run. The same call with the same folder goes on where it was cut off, or returns at once where it
        had finished. None: a temporary folder that goes away with the Run.
    every : "epoch" or int
        When to keep a checkpoint and to be able to resume: after each epoch, or after each so many steps and at the end
        of each epoch. The initial weights are always kept.
    device : str or torch.device
        ``"auto"``: a GPU if there is one.
    progress : bool
        Show a progress bar.
    resume : bool
        False: an older run in `out` is removed, and the training begins anew.

    Returns
    -------
    Run
        ``.model`` (on the CPU, in eval mode), ``.checkpoints``, ``.history``, ``.path``, ``.config``. The history has
        dim ``step`` (step 0 and the end of each epoch): ``loss (split, step)`` [nat], ``accuracy (split, step)`` in
        [0, 1], ``epoch``, ``learning_rate``. Values of ``train`` are means over the epoch while the weights moved, with
        augmentation, NaN at step 0; those of the other splits are measured at the end of the epoch, in eval mode.

    Raises
    ------
    ValueError
        For an option that is not allowed, or data and model that do not fit each other.
    ResumeMismatch
        If `out` holds a training of another configuration, naming what differs.
    DivergedTraining
        If the loss or a weight became NaN or infinite; everything up to the last checkpoint is kept.
    RuntimeError
        If another training is writing to `out`.

    References
    ----------
    Li et al. (2018), Visualizing the Loss Landscape of Neural Nets, section 3 and the recipe of its published code.

    Examples
    --------
    >>> from lltoolkit.zoo import load_data
    >>> run = train("mlp", load_data("digits"), lr=0.05, epochs=2, progress=False)
    >>> dict(run.history.sizes)
    {'split': 2, 'step': 3}
    """
    require_choice("optimizer", optimizer, OPTIMIZERS)
    require_choice("schedule", schedule, SCHEDULES)
    require_choice("augment", augment, AUGMENTS)
    require_every(every)
    for name, value, least in (("batch_size", batch_size, 1), ("epochs", epochs, 1), ("seed", seed, 0)):
        _require_count(name, value, least)
    lr = OPTIMIZERS[optimizer] if lr is None else lr
    if not (math.isfinite(lr) and lr > 0):
        raise ValueError(f"lr={lr!r}: give a finite number above 0.")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum={momentum!r}: give a number in [0, 1).")
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise ValueError(f"weight_decay={weight_decay!r}: give a finite number of at least 0.")
    splits = _read(data)
    x, _ = splits["train"]
    if augment == "auto":
        augment = "crop_flip" if x.shape[1:] == (3, 32, 32) else "none"
    if augment == "crop_flip" and x.ndim != 4:
        raise ValueError(f"augment='crop_flip' needs images (N, C, H, W), the inputs are {tuple(x.shape)}. Use 'none'.")
    place = _device(device)
    cuda = [place] if place.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        _seed(seed, "weights", 0, place)
        network, described = _network(model, model_options, data, splits)
        config = {
            "model": described,
            "data": {
                "name": getattr(data, "name", "given"),
                "normalize": getattr(data, "normalize", "as given"),
                "sha256": sha256(
                    {f"{split}/{part}": t for split, pair in splits.items() for part, t in zip("xy", pair, strict=True)}
                ),
            },
            "optimizer": optimizer,
            "lr": float(lr),
            "momentum": float(momentum),
            "batch_size": int(batch_size),
            "weight_decay": float(weight_decay),
            "epochs": int(epochs),
            "schedule": schedule,
            "augment": augment,
            "seed": int(seed),
            "every": every,
            "device": place.type,
        }
        network.to(place)
        on_device = {split: (x.to(place), y.to(place)) for split, (x, y) in splits.items()}
        _require_fit(network, on_device)
        path = Path(tempfile.mkdtemp(prefix="lltoolkit-run-")) if out is None else Path(out)
        try:
            path.mkdir(parents=True, exist_ok=True)
            with FileLock(path / ".lock", timeout=0):
                if not resume:
                    clear_run(path)
                if not _may_go_on(path, config):
                    return open_run(path, model=network.cpu())
                write_note(path, config, finished=False)
                fill = _black(data, x).to(place) if augment == "crop_flip" else None
                _fit(network, on_device, config, fill, path, progress)
                write_note(path, config, finished=True)
                (path / RESUME).unlink(missing_ok=True)
        except Timeout as error:
            raise RuntimeError(f"another training is writing to {path}. Wait for it, or give another out=.") from error
        except BaseException as error:
            if out is None and not isinstance(error, DivergedTraining):  # which names a checkpoint in there
                shutil.rmtree(path, ignore_errors=True)
            raise
    run = Run(path, config, model=network.cpu().eval())
    if out is None:
        weakref.finalize(run, shutil.rmtree, path, ignore_errors=True)
    return run


def _fit(
    model: nn.Module,
    splits: Splits,
    config: Mapping[str, Any],
    fill: Tensor | None,
    path: Path,
    progress: bool,
) -> None:
    """Train `model` in place, from the start or from where ``resume.pt`` stands."""
    x, y = splits["train"]
    seed, epochs, every = config["seed"], config["epochs"], config["every"]
    optimizer = _optimizer(model, config)
    attrs = history_attrs(model, config)
    state = _restore(path, model, optimizer)
    n_steps = count_steps(len(x), config["batch_size"])

    def diverged(what: str) -> DivergedTraining:
        kept = list_checkpoints(checkpoints_of(path))
        return DivergedTraining(
            f"training diverged: {what} at epoch {state.step // n_steps}, step {state.step}, learning rate {rate:g}. "
            f"Everything up to the last checkpoint is kept: {kept[-1].path if kept else 'none'}. Try a smaller lr, for "
            f"instance lr={config['lr'] / 10:g}."
        )

    def keep(loss: float) -> None:
        if not all(bool(weight.isfinite().all()) for weight in model.parameters()):
            raise diverged("a weight is NaN or infinite")
        told = {"learning_rate": rate, "loss": loss, "seed": seed}
        save_checkpoint(checkpoints_of(path), model, step=state.step, epoch=state.step // n_steps, **told)
        save_history(path, state.rows, attrs, units="nat")
        _save(path, model, optimizer, state)

    def measured() -> dict[str, dict[str, float]]:
        pairs = {split: _evaluate(model, *splits[split]) for split in splits if split != "train"}
        return {
            "loss": {"train": state.loss_sum / (state.n_seen or math.nan)}
            | {split: a for split, (a, _) in pairs.items()},
            "accuracy": {"train": state.n_right / (state.n_seen or math.nan)}
            | {split: b for split, (_, b) in pairs.items()},
        }

    rate = learning_rate_at(0, n_steps, config)
    if not state.rows:
        state.rows.append(row(0, 0, rate, **measured()))
        keep(math.nan)
    with tqdm(
        total=epochs * n_steps, initial=state.step, desc=_title(config["model"]), disable=not progress, unit="step"
    ) as bar:
        for epoch in range(state.step // n_steps, epochs):
            model.train()
            for chosen in _batches(len(x), config["batch_size"], seed, epoch, skip=state.step % n_steps):
                rate = learning_rate_at(state.step, n_steps, config)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                _seed(seed, "step", state.step, x.device)
                chosen = chosen.to(x.device)
                inputs, target = x[chosen], y[chosen]
                if fill is not None:
                    inputs = crop_and_flip(inputs, fill, _generator(seed, "augment", state.step))
                logits = model(inputs)
                loss = functional.cross_entropy(logits, target)
                if not math.isfinite(value := loss.item()):
                    raise diverged(f"the loss is {value}")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                state.step += 1
                state.loss_sum += value * len(target)
                state.n_right += int((logits.argmax(dim=1) == target).sum())
                state.n_seen += len(target)
                bar.update()
                if every != "epoch" and state.step % every == 0 and state.step % n_steps:
                    keep(state.loss_sum / state.n_seen)
            result = measured()
            if not all(map(math.isfinite, result["loss"].values())):
                raise diverged(f"the loss after the epoch is {result['loss']}")
            state.rows.append(row(state.step, epoch + 1, rate, **result))
            state.loss_sum, state.n_right, state.n_seen = 0.0, 0, 0
            keep(result["loss"]["train"])
            told = {f"{split} accuracy": f"{value:.3f}" for split, value in result["accuracy"].items()}
            bar.set_postfix(epoch=epoch + 1, loss=f"{result['loss']['train']:.3f}", **told)


def learning_rate_at(step: int, n_steps: int, config: Mapping[str, Any]) -> float:
    """Return the learning rate of a step.

    Parameters
    ----------
    step : int
        Optimizer steps before it, from 0.
    n_steps : int
        Steps of an epoch.
    config : mapping
        With ``lr``, ``schedule`` and ``epochs``.

    Returns
    -------
    float
        Not negative.
    """
    lr, epochs = config["lr"], config["epochs"]
    if config["schedule"] == "step":
        # In whole numbers: 300 * (11 / 12) is not 275 in floating point.
        return lr / 10 ** sum(step // n_steps * below >= epochs * above for above, below in DROPS)
    if config["schedule"] == "cosine":
        return lr * 0.5 * (1 + math.cos(math.pi * step / (epochs * n_steps)))
    return lr


def crop_and_flip(images: Tensor, fill: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by up to 4 pixels and mirror every second one, at random.

    Parameters
    ----------
    images : Tensor
        Shape ``(B, C, H, W)``; it is not changed.
    fill : Tensor
        Shape ``(C,)``: the normalized value of black, which comes in at the borders.
    generator : torch.Generator
        On the CPU, so that every device draws the same.

    Returns
    -------
    Tensor
        Shape ``(B, C, H, W)``.
    """
    n, channels, height, width = images.shape
    shifts = torch.randint(2 * PADDING + 1, (2, n, 1), generator=generator).to(images.device)
    flips = torch.randint(2, (n, 1), generator=generator).bool().to(images.device)
    padded = fill.view(1, -1, 1, 1).repeat(n, 1, height + 2 * PADDING, width + 2 * PADDING)
    padded[:, :, PADDING:-PADDING, PADDING:-PADDING] = images
    rows = shifts[0] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(n, -1)
    columns = shifts[1] + torch.where(flips, width - 1 - columns, columns)
    example = torch.arange(n, device=images.device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=images.device).view(1, -1, 1, 1)
    return padded[example, channel, rows.view(n, 1, height, 1), columns.view(n, 1, 1, width)]


def count_steps(n_examples: int, batch_size: int) -> int:
    """Return the number of steps of an epoch; a last batch of a single example is none of its own."""
    alone = batch_size > 1 and n_examples > 1 and n_examples % batch_size == 1
    return math.ceil(n_examples / batch_size) - alone


def _title(model: Mapping[str, Any]) -> str:
    """Name a model so that two progress bars can be told apart: ``resnet38 shortcut=none``."""
    unusual = [
        f"{key}={model[key]}" for key, usual in (("shortcut", "A"), ("width", 1)) if model.get(key, usual) != usual
    ]
    return " ".join([str(model.get("name", model.get("class"))), *unusual])


def _batches(n_examples: int, batch_size: int, seed: int, epoch: int, skip: int) -> Iterator[Tensor]:
    order = torch.randperm(n_examples, generator=_generator(seed, "order", epoch))
    n_steps = count_steps(n_examples, batch_size)
    for step in range(skip, n_steps):
        yield order[step * batch_size : (step + 1) * batch_size if step < n_steps - 1 else n_examples]


@torch.no_grad()
def _evaluate(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    model.eval()
    loss, right = 0.0, 0
    for inputs, target in zip(x.split(TEST_BATCH), y.split(TEST_BATCH), strict=True):
        logits = model(inputs)
        loss += functional.cross_entropy(logits.double(), target, reduction="sum").item()
        right += int((logits.argmax(dim=1) == target).sum())
    return loss / len(y), right / len(y)


def _optimizer(model: nn.Module, config: Mapping[str, Any]) -> torch.optim.Optimizer:
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    lr, momentum, decay = config["lr"], config["momentum"], config["weight_decay"]
    if config["optimizer"] == "sgd":
        return torch.optim.SGD(weights, lr=lr, momentum=momentum, nesterov=momentum > 0, weight_decay=decay)
    kind = torch.optim.Adam if config["optimizer"] == "adam" else torch.optim.AdamW
    return kind(weights, lr=lr, betas=(momentum, 0.999), weight_decay=decay)


def _save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: _State) -> None:
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "state": vars(state)}
    write_atomically(path / RESUME, lambda temporary: torch.save(content, temporary))


def _restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> _State:
    file = path / RESUME
    if not file.exists():
        return _State()
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error}). Train anew with resume=False.") from error
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    return _State(**content["state"])


def _may_go_on(path: Path, config: Mapping[str, Any]) -> bool:
    """Tell whether there is something left to train in `path`."""
    note = read_note(path)
    if note is None:
        return True
    there, here = _flat(note["config"]), _flat(config)
    if differ := [key for key in {**there, **here} if there.get(key) != here.get(key)]:
        told = "; ".join(
            f"{key}: {there.get(key, 'not set')!r} there, {here.get(key, 'not set')!r} here" for key in differ
        )
        raise ResumeMismatch(
            f"{path} holds a training of another configuration ({told}). Use another out=, or resume=False to "
            "train anew."
        )
    return not note["finished"]


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _read(data: Any) -> Splits:
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


def _network(
    model: str | nn.Module, options: Mapping[str, Any] | None, data: Any, splits: Splits
) -> tuple[nn.Module, dict[str, Any]]:
    """Build or copy the model, and describe it for the record."""
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


def _require_fit(model: nn.Module, splits: Splits) -> None:
    """Run two examples through the model before anything is written."""
    x, _ = splits["train"]
    model.eval()
    try:
        with torch.no_grad():
            logits = model(x[:2])
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ValueError(
            f"the model fails on inputs of shape {tuple(x[:2].shape)} and type {x.dtype}: {error}. Build it for these "
            "data (in_channels, input_size), or pass its name, so that train() does."
        ) from error
    for name, (_, y) in splits.items():
        require_labels(logits, y, f"split {name!r}")


def _black(data: Any, x: Tensor) -> Tensor:
    """Return what black is after normalization, ``(C,)``; 0, the mean colour, where the normalization is not known."""
    if hasattr(data, "mean") and hasattr(data, "std"):
        return -data.mean / data.std
    return torch.zeros(x.shape[1])


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    return torch.device(device)


def _generator(seed: int, what: str, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(_mix(seed, what, number))


def _seed(seed: int, what: str, number: int, device: torch.device) -> None:
    """Seed the global numbers of the CPU and of one GPU; the caller has forked them."""
    torch.default_generator.manual_seed(_mix(seed, what, number))
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(_mix(seed, what, number))


def _mix(seed: int, what: str, number: int) -> int:
    """Make independent streams of one seed: seed + 1 must not be the next step of seed."""
    return int.from_bytes(hashlib.sha256(f"train/{seed}/{what}/{number}".encode()).digest()[:8], "big") >> 1


def _require_count(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name}={value!r}: give a whole number of at least {least}.")
