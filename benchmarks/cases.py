"""The four models that are measured, with their examples."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lltoolkit.errors import require_choice
from lltoolkit.zoo.data import load_data
from lltoolkit.zoo.models import build_model, load_weights

# Examples per cell of a full and of a quick run: a cell of a ResNet takes a peer 0.2 to 1 s. 320 and 160 are two and a
# half and one and a quarter loader batches of 128, so that what a tool does with a short last batch shows.
N_EXAMPLES = {"mlp": (1437, 1437), "cnn": (1437, 1437), "resnet20": (320, 160), "resnet56": (160, 64)}
LABELS = {"mlp": "MLP", "cnn": "small CNN", "resnet20": "ResNet-20", "resnet56": "ResNet-56"}
CASES = tuple(N_EXAMPLES)
LOADER_BATCH = 128  # of every tool that reads from a DataLoader, as in Li et al.'s code


@dataclass(frozen=True)
class Sources:
    """Where images and weights come from, where they are there.

    Parameters
    ----------
    cifar : Path, optional
        An ``.npz`` with ``x_train``, ``y_train``, ``x_test``, ``y_test``; random images otherwise.
    weights : dict of str to Path
        Trained weights by case; fresh ones otherwise.
    normalize : str
        How the weights want their images, see `lltoolkit.zoo.load_data`.
    """

    cifar: Path | None
    weights: dict[str, Path]
    normalize: str


@dataclass(frozen=True)
class Case:
    """A model in eval mode and the examples that its loss is the mean over.

    Parameters
    ----------
    name, label : str
        In files, in tables.
    model : nn.Module
        Never changed: contestants copy it.
    x, y : Tensor
        Images ``(N, C, H, W)`` and labels ``(N,)``.
    about : str
        Which images and weights.
    """

    name: str
    label: str
    model: nn.Module
    x: Tensor
    y: Tensor
    about: str

    @property
    def n_examples(self) -> int:
        """Examples in one cell."""
        return len(self.x)

    @property
    def n_params(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def copy_model(self) -> nn.Module:
        """Give a copy in eval mode, for a tool that changes what it is given."""
        return copy.deepcopy(self.model).eval()


def make_case(name: str, sources: Sources, *, n_examples: int | None = None, quick: bool = False) -> Case:
    """Make a model and its examples; the same every time.

    Parameters
    ----------
    name : str
        One of `CASES`.
    sources : Sources
        Files to use.
    n_examples : int, optional
        Examples per cell, instead of those of `N_EXAMPLES`.
    quick : bool
        The smaller of the two numbers there.

    Returns
    -------
    Case
        In eval mode on the CPU.

    Raises
    ------
    ValueError
        For an unknown name, or if there are not so many examples.
    """
    require_choice("case", name, CASES)
    n_examples = n_examples or N_EXAMPLES[name][int(quick)]
    if name in ("mlp", "cnn"):
        x, y = load_data("digits")["train"]
        images = "digits"
    elif sources.cifar is not None:
        x, y = load_data(sources.cifar, normalize=sources.normalize)["train"]  # type: ignore[arg-type]
        images = "CIFAR-10"
    else:
        draw = torch.Generator().manual_seed(0)
        x = torch.randn(n_examples, 3, 32, 32, generator=draw)
        y = torch.randint(10, (n_examples,), generator=draw)
        images = "random images"
    if len(x) < n_examples:
        raise ValueError(f"{n_examples} examples are wanted, {images} has {len(x)}. Ask for fewer.")
    x, y = x[:n_examples].contiguous(), y[:n_examples].contiguous()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _build(name)
        if name in sources.weights:
            load_weights(model, sources.weights[name])
        else:
            _settle(model, x)
    about = f"{images}, {'trained' if name in sources.weights else 'fresh'} weights"
    return Case(name, LABELS[name], model.eval(), x, y, about)


def _build(name: str) -> nn.Module:
    if name == "mlp":
        return build_model("mlp", in_channels=1, input_size=8)
    if name == "cnn":  # 162 kFLOP an image
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(256, 10),
        )
    return build_model(name)


def _settle(model: nn.Module, x: Tensor) -> None:
    """Make fresh weights usable: no zeros, since a peer divides by every one, and batch-norm statistics that fit."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
        norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.momentum = None  # the plain mean of what it sees, and it sees one batch
        model.train()(x[:LOADER_BATCH])
        for norm in norms:
            norm.momentum = 0.1
