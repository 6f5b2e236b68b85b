"""What the study trains: every minimizer of PROTOCOL.md with its recipe, and the data it is trained on."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

import lltoolkit as ll

LARGE = {"digits": 230, "cifar10": 160}  # 16 % of the training images: the paper's 8192 of 50,000
SMALL = {"digits": 16, "cifar10": 16}
DECAYS = (0.0, 5e-4)
# Name, optimizer of the zoo, momentum, learning rates. SGD's are momentum's / (1 - 0.9): steps of the same length.
METHODS = (
    ("sgd", "sgd", 0.0, (0.2, 1.0)),
    ("momentum", "sgd", 0.9, (0.02, 0.1)),
    ("adam", "adam", 0.9, (1e-3, 5e-3)),
)
EPOCHS = {"grid": 50, "constant": 120, "shapes": 30, "vgg": 40, "cifar10": 80}
DEPTHS = (8, 14, 20, 32)
WIDTHS = (1, 2, 4)

DIVERGED = "diverged.txt"  # stands in the folder of a training that did

N_CIFAR_TRAIN = 1000  # images, equally many of each class
POOLED = 2  # pixels of CIFAR-10 per side that become one


@dataclass(frozen=True, eq=False)
class Minimizer:
    """One training.

    Attributes
    ----------
    family : str
        The set it belongs to, and its folder: ``<data>-<set>``.
    method : {"sgd", "momentum", "adam"}
        The optimizer in the study's words.
    recipe : dict
        Options of `lltoolkit.zoo.train` beside the model and the data.
    model : str
        A network of the zoo.
    options : dict
        Its options.
    """

    family: str
    method: str
    recipe: dict[str, Any]
    model: str = "resnet8"
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def data(self) -> str:
        """The data set: ``"digits"`` or ``"cifar10"``."""
        return self.family.split("-")[0]

    @property
    def batch(self) -> str:
        """Which of the two batch sizes: ``"small"`` or ``"large"``."""
        return "large" if self.recipe["batch_size"] == LARGE[self.data] else "small"

    @property
    def configuration(self) -> str:
        """All but the seed, the epochs and the schedule; runs of one family that agree in it are one cluster."""
        shape = "".join(f"-{key}{value}" for key, value in sorted(self.options.items()))
        recipe = self.recipe
        return f"{self.model}{shape}-{self.method}-lr{recipe['lr']:g}-{self.batch}-wd{recipe['weight_decay']:g}"

    @property
    def name(self) -> str:
        """The configuration and the seed."""
        return f"{self.configuration}-s{self.recipe['seed']}"

    def folder(self, work: Path) -> Path:
        """Where its run lies."""
        return work / self.family / self.name

    def has_diverged(self, work: Path) -> bool:
        """Tell whether it was trained and came to a loss that is no number."""
        return (self.folder(work) / DIVERGED).exists()

    @property
    def attributes(self) -> dict[str, str | int | float]:
        """Coordinates of the sharpness table."""
        recipe = self.recipe
        return {
            "family": self.family,
            "configuration": self.configuration,
            "network": self.model,
            "depth": int(self.model.removeprefix("resnet").removeprefix("vgg")),
            "width": self.options.get("width", 1),
            "shortcut": self.options.get("shortcut", "A") if self.model.startswith("resnet") else "none",
            "optimizer": self.method,
            "lr": recipe["lr"],
            "batch": self.batch,
            "batch_size": recipe["batch_size"],
            "weight_decay": recipe["weight_decay"],
            "schedule": recipe["schedule"],
            "epochs": recipe["epochs"],
            "seed": recipe["seed"],
        }


def _recipe(method: str, lr: float, batch_size: int, decay: float, seed: int, **more: Any) -> dict[str, Any]:
    _, optimizer, momentum, _ = next(each for each in METHODS if each[0] == method)
    recipe = {"optimizer": optimizer, "momentum": momentum, "lr": lr, "batch_size": batch_size}
    return recipe | {"weight_decay": decay, "seed": seed, "schedule": "step", "augment": "none"} | more


def _grid(family: str, seed: int, batches: tuple[int, ...], **more: Any) -> Iterator[Minimizer]:
    for method, _, _, rates in METHODS:
        for lr in rates:
            for decay in DECAYS:
                for batch_size in batches:
                    yield Minimizer(family, method, _recipe(method, lr, batch_size, decay, seed, **more))


def _shapes() -> Iterator[Minimizer]:
    recipe = _recipe("momentum", 0.02, SMALL["digits"], 5e-4, 0, epochs=EPOCHS["shapes"])
    for shortcut in ("A", "none"):
        for depth in DEPTHS:
            yield Minimizer("digits-shapes", "momentum", recipe, f"resnet{depth}", {"shortcut": shortcut, "width": 1})
        for width in WIDTHS[1:]:
            yield Minimizer("digits-shapes", "momentum", recipe, "resnet8", {"shortcut": shortcut, "width": width})


def minimizers(only: str | None = None) -> list[Minimizer]:
    """List all trainings in their order: what matters most comes first.

    Parameters
    ----------
    only : {"digits", "cifar10"}, optional
        One data set.

    Returns
    -------
    list of Minimizer
        Names are unique within a family.
    """
    both = (SMALL["digits"], LARGE["digits"])
    digits = [
        *_grid("digits-grid", 0, both, epochs=EPOCHS["grid"]),
        *(
            Minimizer("digits-vgg", "momentum", _recipe("momentum", 0.1, size, decay, 0, epochs=EPOCHS["vgg"]), "vgg9")
            for decay in DECAYS
            for size in both
        ),
        *_shapes(),
        *_grid("digits-constant", 0, both[1:], epochs=EPOCHS["constant"], schedule="constant"),
        *_grid("digits-grid", 1, both, epochs=EPOCHS["grid"]),
    ]
    cifar10 = _grid("cifar10-grid", 0, (SMALL["cifar10"], LARGE["cifar10"]), epochs=EPOCHS["cifar10"])
    return [each for each in (*digits, *cifar10) if only in (None, each.data)]


def load(name: str, work: Path, source: str) -> ll.zoo.LoadedData:
    """Load the images of the study.

    Parameters
    ----------
    name : {"digits", "cifar10"}
        ``"cifar10"``: `N_CIFAR_TRAIN` training images, drawn class by class with seed 0, and all test images, both as
        means of 2x2 pixels.
    work : Path
        Where the reduced CIFAR-10 is kept.
    source : str
        Of CIFAR-10: ``"cifar10"``, or an ``.npz`` as `lltoolkit.zoo.load_data` takes it.

    Returns
    -------
    LoadedData
        With the splits ``"train"`` and ``"test"``.
    """
    if name == "digits":
        return ll.zoo.load_data("digits")
    path = work / "cifar10-16x16.npz"
    if not path.exists():
        whole = ll.zoo.load_data(source, normalize="none")
        labels = whole["train"][1].numpy()
        rng = np.random.default_rng(0)
        each = N_CIFAR_TRAIN // whole.n_classes
        chosen = [rng.choice(np.flatnonzero(labels == label), each, replace=False) for label in range(whole.n_classes)]
        train = torch.from_numpy(np.sort(np.concatenate(chosen)))
        arrays = {}
        for split, (x, y) in whole.items():
            kept = train if split == "train" else torch.arange(len(y))
            arrays[f"x_{split}"] = functional.avg_pool2d(x[kept], POOLED).numpy()
            arrays[f"y_{split}"] = y[kept].numpy()
        work.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **arrays)
    return ll.zoo.load_data(path)
