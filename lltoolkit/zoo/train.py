"""The training loop: the paper's recipe, data kept on the device, every random number from the seed.

Nothing random is carried from step to step: the order of an epoch follows from (seed, epoch), augmentation and dropout
of a step from (seed, step). A training that was cut off therefore goes on exactly as if it had not been, from the
weights, the optimizer's state and the counters that ``resume.pt`` holds. Bit for bit on one CPU with one number of
threads; a GPU adds up in an order of its own.
"""

import math
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from lltoolkit.errors import DivergedTraining
from lltoolkit.files import require_folder
from lltoolkit.tensors.checkpoints import list_checkpoints
from lltoolkit.tensors.machine import count_flops, default_threads, resolve_device, using_threads
from lltoolkit.tensors.seeds import generator, stream
from lltoolkit.zoo.prepare import Splits, build_network, describe_data, read_options, read_tensors, require_logits
from lltoolkit.zoo.recipe import black_of, build_optimizer, choose_augment, crop_and_flip, learning_rate_at
from lltoolkit.zoo.recording import Keeping, Recording
from lltoolkit.zoo.resume import going_on, may_go_on, restore_state, save_state
from lltoolkit.zoo.runs import (
    RESUME,
    Every,
    Run,
    checkpoints_of,
    clear_run,
    history_attrs,
    next_due,
    open_run,
    row,
    write_note,
)
from lltoolkit.zoo.snapshot import Snapshot

TEST_BATCH = 1000  # examples; shows in nothing but memory


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
    schedule: Literal["step", "cosine", "one_cycle", "constant"] = "step",
    augment: Literal["auto", "crop_flip", "none"] = "auto",
    seed: int = 0,
    out: str | Path | None = None,
    every: Every = "epoch",
    record: Mapping[str, Any] | None = None,
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
        Learning rate at the start, with ``"one_cycle"`` the largest; 0.1 for SGD, 0.001 for Adam and AdamW.
    momentum : float
        Of SGD; the first beta of Adam and AdamW. In [0, 1).
    batch_size : int
        Examples per step; larger than the data means one step per epoch. A shorter last batch is kept; one of a single
        example joins the batch before, since batch norm can't be trained on one.
    weight_decay : float
        As torch's optimizers take it: on all parameters; decoupled for AdamW.
    epochs : int
        At least 1.
    schedule : {"step", "cosine", "one_cycle", "constant"}
        ``"step"``: divided by 10 at 1/2, 3/4 and 11/12 of the epochs. ``"cosine"``: to 0, step by step.
        ``"one_cycle"``: from ``lr / 25`` up to `lr` in the first 30 % of the steps, then down to ``lr / 250000``, on
        half cosines, as torch's ``OneCycleLR``; momentum is not cycled.
    augment : {"auto", "crop_flip", "none"}
        Random crops (4 pixels of black on each side) and mirror images. ``"auto"``: for colour images of 32x32.
    seed : int
        Of everything random: weights, order, augmentation, dropout. The global random numbers stay untouched.
    out : str or Path, optional
        Folder of the run. The same call with the same folder goes on where it was cut off, or returns at once where it
        had finished. None: a temporary folder that goes away with the Run.
    every : "epoch", "geometric" or int
        When to keep a checkpoint: after each epoch; after steps 1, 2, 3, ..., the next always about 10 % later; or
        after each so many steps and at the end of each epoch. The initial and the last weights are always kept.
        Training can be resumed from each of these, and from the end of each epoch.
    record : mapping, optional
        What a checkpoint holds, by `Recorder`'s words: ``dtype``, ``thin``, ``n_last``, ``n_projected``; and
        ``{"optimizer_state": True}`` to keep the momentum or Adam's moments too.
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
    Smith and Topin (2019), Super-Convergence: the one-cycle schedule.

    Examples
    --------
    >>> from lltoolkit.zoo import load_data
    >>> run = train("mlp", load_data("digits"), lr=0.05, epochs=2, progress=False)
    >>> dict(run.history.sizes)
    {'split': 2, 'step': 3}
    """
    options = read_options(
        optimizer=optimizer,
        lr=lr,
        momentum=momentum,
        batch_size=batch_size,
        weight_decay=weight_decay,
        epochs=epochs,
        schedule=schedule,
        augment=augment,
        seed=seed,
        every=every,
        record=record,
    )
    splits = read_tensors(data)
    images, _ = splits["train"]
    options["augment"] = choose_augment(augment, images)
    place = torch.empty(0, device=resolve_device(device)).device  # with the number of the GPU
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        _seed(seed, "weights", 0, place)
        network, described = build_network(model, model_options, data, splits)
        config = {"model": described, "data": describe_data(data, splits), **options, "device": place.type}
        network.to(place)
        splits = {split: (x.to(place), y.to(place)) for split, (x, y) in splits.items()}
        require_logits(network, splits)
        forward = count_flops(lambda: network(splits["train"][0][:2])) / 2
        n_threads = default_threads(3 * forward * min(batch_size, len(images)))  # the backward pass is two more
        path = Path(tempfile.mkdtemp(prefix="lltoolkit-run-")) if out is None else Path(out)
        require_folder(path)
        try:
            with FileLock(path / ".lock", timeout=0):
                if not resume:
                    clear_run(path)
                if not may_go_on(path, config):
                    (path / RESUME).unlink(missing_ok=True)  # where a kill came just before that, below
                    return open_run(path, model=network.cpu())
                write_note(path, config, finished=False)
                fill = black_of(data, images).to(place) if config["augment"] == "crop_flip" else None
                with using_threads(n_threads):
                    _fit(network, splits, config, fill, path, progress)
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
    optimizer = build_optimizer(model, config)
    attrs = history_attrs(model, config)
    state = restore_state(path, model, optimizer)
    n_steps = count_steps(len(x), config["batch_size"])
    keeping = Keeping(every, **config.get("record", {}))
    snapshot = Snapshot(optimizer if keeping.optimizer_state else None)
    recording = Recording(path, keeping, attrs, rows=state.rows, units="nat")
    recording.thin_out()  # where a kill came before that

    def diverged(what: str) -> DivergedTraining:
        recording.wait()
        kept = list_checkpoints(checkpoints_of(path))
        return DivergedTraining(
            f"training diverged: {what} at epoch {state.step // n_steps}, step {state.step}, learning rate {rate:g}. "
            f"Everything up to the last checkpoint is kept: {kept[-1].path if kept else 'none'}. Try a smaller lr, for "
            f"instance lr={config['lr'] / 10:g}."
        )

    def keep(loss: float, *, is_due: bool = True) -> None:
        if not all(bool(weight.isfinite().all()) for weight in model.parameters()):
            raise diverged("a weight is NaN or infinite")
        recording.keep_up()
        recording.make_room()
        snapshot.take(model)
        kept = snapshot.hand_over()
        content = going_on(kept.model, optimizer, state)
        # Behind its checkpoint, in one line: a training never goes on beyond a checkpoint that is missing.
        recording.save(
            kept if is_due else None,
            step=state.step,
            epoch=state.step // n_steps,
            whole=state.step == epochs * n_steps,
            then=lambda: save_state(path, content),
            learning_rate=rate,
            loss=loss,
            seed=seed,
        )

    def measured() -> dict[str, dict[str, float]]:
        pairs = {split: _evaluate(model, *splits[split]) for split in splits if split != "train"}
        return {
            "loss": {"train": state.loss_sum / (state.n_seen or math.nan)}
            | {split: a for split, (a, _) in pairs.items()},
            "accuracy": {"train": state.n_right / (state.n_seen or math.nan)}
            | {split: b for split, (_, b) in pairs.items()},
        }

    rate = learning_rate_at(0, n_steps, config)
    bar = tqdm(
        total=epochs * n_steps, initial=state.step, desc=_title(config["model"]), disable=not progress, unit="step"
    )
    with closing(recording), bar:
        if not state.rows:
            state.rows.append(row(0, 0, rate, **measured()))
            keep(math.nan)
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
                    inputs = crop_and_flip(inputs, fill, generator("train", seed, "augment", state.step))
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
                if state.step % n_steps and next_due(every, state.step - 1) == state.step:
                    keep(state.loss_sum / state.n_seen)
            result = measured()
            if not all(map(math.isfinite, result["loss"].values())):
                raise diverged(f"the loss after the epoch is {result['loss']}")
            state.rows.append(row(state.step, epoch + 1, rate, **result))
            state.loss_sum, state.n_right, state.n_seen = 0.0, 0, 0
            is_due = every != "geometric" or epoch == epochs - 1 or next_due(every, state.step - 1) == state.step
            keep(result["loss"]["train"], is_due=is_due)
            told = {f"{split} accuracy": f"{value:.3f}" for split, value in result["accuracy"].items()}
            bar.set_postfix(epoch=epoch + 1, loss=f"{result['loss']['train']:.3f}", **told)


def count_steps(n_examples: int, batch_size: int) -> int:
    """Return the number of steps of an epoch; a last batch of a single example is none of its own."""
    alone = batch_size > 1 and n_examples > 1 and n_examples % batch_size == 1
    return math.ceil(n_examples / batch_size) - alone


def _batches(n_examples: int, batch_size: int, seed: int, epoch: int, skip: int) -> Iterator[Tensor]:
    order = torch.randperm(n_examples, generator=generator("train", seed, "order", epoch))
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


def _seed(seed: int, what: str, number: int, device: torch.device) -> None:
    """Seed the global numbers of the CPU and of one GPU; the caller has forked them."""
    start = stream("train", seed, what, number)
    torch.default_generator.manual_seed(start)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(start)


def _title(model: Mapping[str, Any]) -> str:
    """Name a model so that two progress bars can be told apart: ``resnet38 shortcut=none``."""
    unusual = [
        f"{key}={model[key]}" for key, usual in (("shortcut", "A"), ("width", 1)) if model.get(key, usual) != usual
    ]
    return " ".join([str(model.get("name", model.get("class"))), *unusual])
